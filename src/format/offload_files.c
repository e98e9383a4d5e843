/* offload_files.c - NAME.dat, a file of an offload folder, which is nothing but elements.
 *
 *   NAME.dat   product(shape) elements, row by row, little-endian; one byte where there are none
 *
 * A .dat says nothing of itself, so its size is all that can be compared; one byte more or less is
 * another tensor. Source: docs/formats/offload.md [1], [3]. */
#include "format/format.h"

uint64_t heft__offload_dat_bytes(uint64_t size_bytes)
{
    return size_bytes ? size_bytes : 1; /* NumPy maps no empty file */
}

heft_status heft__offload_check_writable(const char *name, heft_dtype dtype, heft_error *err)
{
    const size_t length = strlen(name),
                 most = 246; /* of 255: ".dat", and ".part" until it is whole */
    heft_status status = HEFT_OK;
    if (strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        status = heft__fail(err, HEFT_INVALID_ARG, "'%.100s.dat' is not a valid file name", name);
    } else if (length > most) {
        status =
            heft__fail(err, HEFT_INVALID_ARG,
                       "the name has %zu bytes, the limit for a file name is %zu", length, most);
    } else if (!heft__offload_holds(dtype)) {
        status = heft__fail(err, HEFT_INVALID_ARG, "an offload folder cannot hold %s",
                            heft_dtype_name(dtype));
    }
    return heft__add_item(status, err, name);
}

/* ---- NAME.dat -------------------------------------------------------------------------------- */
heft_status heft__offload_dat_open(heft_ctx *ctx, heft__input *source,
                                   const heft__offload_entry *entry, heft__offload_dat *place,
                                   heft__file **out, heft_error *err)
{
    const uint64_t found = heft__input_size(source);
    const uint64_t needed = heft__offload_dat_bytes(entry->size_bytes);
    char shape[HEFT__SHAPE_TEXT];
    if (found != needed) {
        heft_status status = heft__fail_at(err, HEFT_FORMAT, found < needed ? found : needed,
                                           "file has %llu bytes, %s %s needs %llu",
                                           (unsigned long long)found, heft_dtype_name(entry->dtype),
                                           heft__shape_text(entry->shape, entry->rank, shape),
                                           (unsigned long long)needed);
        heft__add_item(status, err, entry->name);
        return heft__add_path(status, err, heft__input_path(source));
    }
    heft__file *file = heft__file_new(ctx, source, HEFT_FORMAT_OFFLOAD);
    if (!file) {
        return heft__fail_nomem(err, sizeof *file);
    }
    place->storage = (heft__file_storage){.stored_bytes = found, .bytes = entry->size_bytes};
    place->tensor = (heft__file_tensor){
        .name = entry->name,
        .dtype = entry->dtype,
        .rank = entry->rank,
        .shape = entry->shape,
        .size_bytes = entry->size_bytes,
    };
    file->storages = &place->storage;
    file->tensors = &place->tensor;
    file->storage_count = file->tensor_count = 1;
    *out = file;
    return HEFT_OK;
}

/* ---- writing --------------------------------------------------------------------------------- */
heft_status heft__offload_dat_write(const heft__out_io *io, const heft__out_tensor *tensor,
                                    heft_error *err)
{
    heft_status status = heft__out_copy(io, tensor, NULL, err);
    return status == HEFT_OK && tensor->size_bytes == 0 ? heft__folder_write(io->folder, "", 1, err)
                                                        : status;
}
