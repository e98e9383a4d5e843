/* disk_reader.c - the bytes of parameters that stay in their files, in order, for a save.
 *
 * A parameter that is a whole tensor is read as it lies in its file (plain, strided, deflated, computed); one
 * that is a part of a tensor, piece by piece. Casts go through one buffer.
 * Not done here: bringing parameters into memory (layer run). */
#include "load/load.h"

#define SCRATCH_BYTES ((size_t)256 << 10) /* as of a cast while loading */

void heft__disk_reader_fini(heft__disk_reader *disk)
{
    heft__tensor_reader_free(disk->reader);
    if (disk->scratch) {
        heft__free(disk->model->ctx, disk->scratch, SCRATCH_BYTES);
    }
    *disk = (heft__disk_reader){.model = disk->model};
}

static bool is_part(const heft_parameter *parameter, const heft_tensor_info *info)
{
    uint64_t ours, theirs;
    return heft__shape_elems(parameter->shape, parameter->rank, &ours) &&
           heft__shape_elems(info->shape, info->rank, &theirs) && ours != theirs;
}

/* `length` bytes of a part of a tensor, `start` elements after the tensor's first. */
static heft_status read_part(const heft_checkpoint *ckpt, size_t tensor, uint64_t start,
                             heft_dtype to, void *dst, size_t length, heft_error *err)
{
    heft__pieces pieces;
    const heft__part part = {.tensor = tensor,
                             .first = start,
                             .elems = (uint64_t)length * 8 / heft_dtype_bits(to),
                             .to = to};
    heft__pieces_init(&pieces, ckpt);
    heft_status status = heft__pieces_add(&pieces, &part, 0, err);
    for (size_t i = 0; i < pieces.count && status == HEFT_OK; i++) {
        status = heft__piece_read(&pieces, i, dst, err);
    }
    heft__pieces_fini(&pieces);
    return status;
}

/* The next bytes of a whole tensor. */
static heft_status read_next(heft__disk_reader *disk, heft_dtype from, heft_dtype to, uint8_t *dst,
                             size_t length, heft_error *err)
{
    const size_t from_bytes = heft_dtype_bits(from) / 8, to_bytes = heft_dtype_bits(to) / 8;
    heft_status status = HEFT_OK;
    if (from == to) {
        return heft__tensor_reader_fill(disk->reader, dst, length, err);
    }
    for (size_t left = length / to_bytes, elems; left > 0 && status == HEFT_OK; left -= elems) {
        elems = left < SCRATCH_BYTES / from_bytes ? left : SCRATCH_BYTES / from_bytes;
        status = heft__tensor_reader_fill(disk->reader, disk->scratch, elems * from_bytes, err);
        if (status == HEFT_OK) {
            heft__cast(to, dst, from, disk->scratch, elems);
        }
        dst += elems * to_bytes;
    }
    return status;
}

static heft_status start(heft__disk_reader *disk, const heft_checkpoint *ckpt, size_t parameter,
                         size_t tensor, heft_error *err)
{
    heft__tensor_reader_free(disk->reader);
    disk->reader = NULL;
    disk->parameter = parameter;
    disk->position = 0;
    disk->scratch = disk->scratch ? disk->scratch : heft__alloc(disk->model->ctx, SCRATCH_BYTES);
    return disk->scratch ? heft__tensor_reader_new(disk->model->ctx, heft__file_of(ckpt, tensor),
                                                   ckpt->entries[tensor], &disk->reader, err)
                         : heft__fail_nomem(err, SCRATCH_BYTES);
}

heft_status heft__disk_read(heft__disk_reader *disk, size_t i, uint64_t first, void *dst,
                            size_t length, heft_error *err)
{
    const heft_parameter *parameter = &disk->model->parameters[i];
    const heft__homes *homes = heft__model_homes(disk->model);
    const size_t tensor = homes->source[i];
    const heft_checkpoint *ckpt = homes->ckpt;
    const heft_tensor_info *info = &ckpt->infos[tensor];
    heft_status status = HEFT_OK;
    if (is_part(parameter, info)) {
        const uint64_t elems = first * 8 / heft_dtype_bits(parameter->dtype);
        return read_part(ckpt, tensor, homes->first[i] + elems, parameter->dtype, dst, length, err);
    }
    if (!disk->reader || disk->parameter != i || first != disk->position) {
        status = first == 0 ? start(disk, ckpt, i, tensor, err)
                            : heft__fail(err, HEFT_IO, "is read out of order");
    }
    if (status == HEFT_OK) {
        status = read_next(disk, info->dtype, parameter->dtype, dst, length, err);
        disk->position += length;
    }
    heft__add_item(status, err, info->name);
    return heft__add_path(status, err, ckpt->files[info->file_index].info.path);
}

heft_status heft__disk_unchanged(const heft_model *model, heft_error *err)
{
    const heft__homes *homes = heft__model_homes(model);
    heft_status status = HEFT_OK;
    for (size_t i = 0; homes && i < homes->ckpt->file_count && status == HEFT_OK; i++) {
        const heft__checkpoint_file *file = &homes->ckpt->files[i];
        status = file->file ? heft__input_unchanged(file->file->source, err) : HEFT_OK;
    }
    return status;
}
