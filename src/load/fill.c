/* fill.c - from a checkpoint's bytes to a model's parameters.
 *
 * Mapped parameters point into the file and cost nothing. Others get memory of their own, which is
 * filled in pieces by all threads: plain tensors piece by piece straight from the file, the rest
 * (strided, deflated, other byte order) one tensor at a time. A cast goes through one small buffer
 * per piece. Not done here: deciding which tensor fills which parameter. */
#include "load/load.h"

#include <pthread.h>

#define PIECE_BYTES ((uint64_t)16 << 20) /* of one read, in the file's dtype */
#define SCRATCH_BYTES ((size_t)1 << 20)  /* of one cast */

struct item { /* one piece of work */
    size_t parameter, tensor;
    uint64_t first, count; /* elements */
    bool whole;            /* through a tensor reader */
    uint64_t offset;       /* of `first` in the file, where not whole */
};

struct fill {
    heft_model *model;
    const heft_checkpoint *ckpt;
    const heft__match *match;
    uint8_t **data;       /* [model->count] where to write, NULL: not copied */
    heft_storage **fresh; /* [model->count] new storages, bound when all went well */
    heft_tensor **mapped; /* [model->count] */
    struct item *items;
    size_t count, cap;
    pthread_mutex_t lock; /* guards done_bytes and the progress callback */
    uint64_t done_bytes, total_bytes;
};

/* ---- work ------------------------------------------------------------------------------------ */
static heft_status fill_plain(struct fill *f, const struct item *item, heft_error *err)
{
    const heft_tensor_info *info = &f->ckpt->infos[item->tensor];
    const heft_dtype to = f->model->parameters[item->parameter].dtype;
    heft__source *source = heft__file_of(f->ckpt, item->tensor)->source;
    uint64_t from_bits = heft_dtype_bits(info->dtype), to_bytes = heft_dtype_bits(to) / 8;
    uint8_t *dst = f->data[item->parameter];
    if (info->dtype == to) {
        return heft__source_read(source, item->offset, dst + item->first * from_bits / 8,
                                 (size_t)(item->count * from_bits / 8), err);
    }
    uint8_t *scratch = heft__alloc(f->model->ctx, SCRATCH_BYTES);
    heft_status status = scratch ? HEFT_OK : heft__fail_nomem(err, SCRATCH_BYTES);
    uint64_t from_bytes = from_bits / 8, most = SCRATCH_BYTES / from_bytes;
    for (uint64_t done = 0; done < item->count && status == HEFT_OK;) {
        uint64_t elems = item->count - done < most ? item->count - done : most;
        status = heft__source_read(source, item->offset + done * from_bytes, scratch,
                                   (size_t)(elems * from_bytes), err);
        if (status == HEFT_OK) {
            heft__cast(to, dst + (item->first + done) * to_bytes, info->dtype, scratch,
                       (size_t)elems);
        }
        done += elems;
    }
    heft__free(f->model->ctx, scratch, SCRATCH_BYTES);
    return status;
}

static heft_status fill_whole(struct fill *f, const struct item *item, heft_error *err)
{
    const heft_tensor_info *info = &f->ckpt->infos[item->tensor];
    const heft_dtype to = f->model->parameters[item->parameter].dtype;
    uint8_t *dst = f->data[item->parameter];
    if (info->dtype == to) {
        return heft_checkpoint_read(f->ckpt, item->tensor, dst, info->size_bytes, err);
    }
    heft__tensor_reader *reader = NULL;
    uint8_t *scratch = heft__alloc(f->model->ctx, SCRATCH_BYTES);
    heft_status status =
        scratch ? heft__tensor_reader_new(f->model->ctx, heft__file_of(f->ckpt, item->tensor),
                                          f->ckpt->entries[item->tensor], &reader, err)
                : heft__fail_nomem(err, SCRATCH_BYTES);
    size_t piece = 1;
    while (status == HEFT_OK && piece > 0) {
        status = heft__tensor_reader_next(reader, scratch, SCRATCH_BYTES, &piece, err);
        if (status == HEFT_OK) {
            size_t elems = piece / (heft_dtype_bits(info->dtype) / 8);
            heft__cast(to, dst, info->dtype, scratch, elems);
            dst += elems * (heft_dtype_bits(to) / 8);
        }
    }
    heft__tensor_reader_free(reader);
    heft__free(f->model->ctx, scratch, SCRATCH_BYTES);
    return status;
}

static heft_status fill_item(void *user, size_t i, heft_error *err)
{
    struct fill *f = user;
    const struct item *item = &f->items[i];
    const heft_tensor_info *info = &f->ckpt->infos[item->tensor];
    heft_status status = item->whole ? fill_whole(f, item, err) : fill_plain(f, item, err);
    if (status == HEFT_OK) {
        pthread_mutex_lock(&f->lock);
        f->done_bytes += item->count * heft_dtype_bits(info->dtype) / 8;
        status = heft__tell_progress(f->model->ctx, "reading", f->done_bytes, f->total_bytes, err);
        pthread_mutex_unlock(&f->lock);
    }
    heft__add_item(status, err, info->name);
    return heft__add_path(status, err, f->ckpt->files[info->file_index].info.path);
}

/* ---- planning -------------------------------------------------------------------------------- */
static heft_status add_items(struct fill *f, size_t parameter, size_t tensor, heft_error *err)
{
    const heft_tensor_info *info = &f->ckpt->infos[tensor];
    const heft_parameter *wanted = &f->model->parameters[parameter];
    uint64_t elems, offset = info->offset, bits = heft_dtype_bits(info->dtype);
    bool whole = offset == HEFT_NO_OFFSET || bits < 8;
    (void)heft__shape_elems(wanted->shape, wanted->rank, &elems); /* checked by the builder */
    offset = whole ? offset : offset + f->match->first[parameter] * bits / 8;
    uint64_t step = whole ? elems : PIECE_BYTES * 8 / bits;
    for (uint64_t first = 0; first < elems; first += step) {
        if (!heft__array_reserve(f->model->ctx, (void **)&f->items, f->count, &f->cap,
                                 sizeof *f->items)) {
            return heft__fail_nomem(err, sizeof *f->items);
        }
        f->items[f->count++] = (struct item){
            .parameter = parameter,
            .tensor = tensor,
            .first = first,
            .count = elems - first < step ? elems - first : step,
            .whole = whole,
            .offset = whole ? 0 : offset + first * bits / 8,
        };
    }
    f->total_bytes += elems * bits / 8;
    return HEFT_OK;
}

static heft_status plan_copy(struct fill *f, size_t i, size_t tensor, bool reuse,
                             heft__fill_counts *counts, heft_error *err)
{
    const heft_parameter *parameter = &f->model->parameters[i];
    const heft_tensor_info *info = &f->ckpt->infos[tensor];
    const heft__binding *binding = &f->model->bindings[i];
    heft_status status = HEFT_OK;
    if (info->dtype != parameter->dtype && !heft__cast_known(info->dtype, parameter->dtype)) {
        return heft__fail(err, HEFT_UNSUPPORTED, "%s cannot be cast to %s",
                          heft_dtype_name(info->dtype), heft_dtype_name(parameter->dtype));
    }
    if (reuse && parameter->state == HEFT_PARAMETER_OWNED) {
        f->data[i] = (uint8_t *)heft_storage_data(binding->storage) + binding->byte_offset;
    } else {
        status = heft__storage_new(f->model->ctx, parameter->size_bytes, &f->fresh[i], err);
        if (status == HEFT_OK) {
            f->data[i] = heft_storage_data(f->fresh[i]);
        }
    }
    counts->copied_bytes += parameter->size_bytes;
    counts->cast_bytes += info->dtype != parameter->dtype ? parameter->size_bytes : 0;
    return status == HEFT_OK ? add_items(f, i, tensor, err) : status;
}

/* Whether a parameter is a part of its tensor only. */
static bool is_slice(const struct fill *f, size_t i)
{
    const heft_parameter *parameter = &f->model->parameters[i];
    const heft_tensor_info *info = &f->ckpt->infos[f->match->source[i]];
    uint64_t ours, theirs;
    return heft__shape_elems(parameter->shape, parameter->rank, &ours) &&
           heft__shape_elems(info->shape, info->rank, &theirs) && ours != theirs;
}

static heft_status plan(struct fill *f, bool map, bool reuse, heft__fill_counts *counts,
                        heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < f->model->count && status == HEFT_OK; i++) {
        size_t tensor = f->match->source[i];
        if (tensor == HEFT__NO_TENSOR) {
            continue;
        }
        if (is_slice(f, i) && f->ckpt->infos[tensor].offset == HEFT_NO_OFFSET) {
            return heft__add_item(heft__fail(err, HEFT_UNSUPPORTED,
                                             "is a part of '%.100s', which is strided or packed",
                                             f->ckpt->infos[tensor].name),
                                  err, f->model->parameters[i].name);
        }
        bool as_it_lies = f->ckpt->infos[tensor].dtype == f->model->parameters[i].dtype &&
                          f->ckpt->infos[tensor].offset != HEFT_NO_OFFSET;
        if (map && as_it_lies) {
            status = heft_checkpoint_map(f->ckpt, tensor, &f->mapped[i], err);
            counts->mapped_bytes += f->model->parameters[i].size_bytes;
        } else {
            status = plan_copy(f, i, tensor, reuse, counts, err);
        }
        heft__add_item(status, err, f->model->parameters[i].name);
    }
    return status;
}

/* Hand every parameter its new storage; cannot fail. */
static void bind_all(struct fill *f)
{
    for (size_t i = 0; i < f->model->count; i++) {
        if (f->mapped[i]) {
            const heft_tensor *tensor = f->mapped[i];
            uint64_t start =
                (uint64_t)((uint8_t *)tensor->data - (uint8_t *)heft_storage_data(tensor->storage));
            start += f->match->first[i] * (heft_dtype_bits(tensor->dtype) / 8);
            heft__model_bind(f->model, i, heft_storage_ref(tensor->storage), start,
                             HEFT_PARAMETER_MAPPED);
        } else if (f->fresh[i]) {
            heft__model_bind(f->model, i, f->fresh[i], 0, HEFT_PARAMETER_OWNED);
            f->fresh[i] = NULL;
        }
    }
    for (size_t i = 0; i < f->model->count; i++) {
        size_t source = f->model->parameters[i].tied_to;
        const heft__binding *binding = &f->model->bindings[source];
        if (source != i && f->match->source[source] != HEFT__NO_TENSOR && binding->storage) {
            heft__model_bind(f->model, i, heft_storage_ref(binding->storage), binding->byte_offset,
                             f->model->parameters[source].state);
        }
    }
}

heft_status heft__fill(heft_model *model, const heft_checkpoint *ckpt, const heft__match *match,
                       bool map, bool reuse, heft__fill_counts *counts, heft_error *err)
{
    const size_t count = model->count;
    struct fill f = {.model = model, .ckpt = ckpt, .match = match};
    f.data = heft__alloc_zero(model->ctx, count, sizeof *f.data);
    f.fresh = heft__alloc_zero(model->ctx, count, sizeof *f.fresh);
    f.mapped = heft__alloc_zero(model->ctx, count, sizeof *f.mapped);
    pthread_mutex_init(&f.lock, NULL);
    heft_status status = f.data && f.fresh && f.mapped
                             ? plan(&f, map, reuse, counts, err)
                             : heft__fail_nomem(err, count * sizeof *f.data);
    if (status == HEFT_OK) {
        status = heft__parallel(model->ctx, f.count, fill_item, &f, err);
    }
    if (status == HEFT_OK) {
        bind_all(&f);
    }
    for (size_t i = 0; i < count; i++) {
        if (f.fresh) {
            heft_storage_unref(f.fresh[i]);
        }
        if (f.mapped) {
            heft_tensor_free(f.mapped[i]);
        }
    }
    pthread_mutex_destroy(&f.lock);
    heft__free(model->ctx, f.items, f.cap * sizeof *f.items);
    heft__free(model->ctx, f.data, count * sizeof *f.data);
    heft__free(model->ctx, f.fresh, count * sizeof *f.fresh);
    heft__free(model->ctx, f.mapped, count * sizeof *f.mapped);
    return status;
}

heft_status heft__fill_touch(const heft_model *model, const heft_checkpoint *ckpt,
                             const heft__match *match, heft_error *err)
{
    heft_status status = HEFT_OK;
    uint64_t done = 0, total = heft_model_bytes(model);
    for (size_t i = 0; i < model->count && status == HEFT_OK; i++) {
        size_t tensor = match->source[i];
        if (tensor == HEFT__NO_TENSOR || model->parameters[i].state != HEFT_PARAMETER_MAPPED) {
            continue;
        }
        const heft_tensor_info *info = &ckpt->infos[tensor];
        const uint64_t bytes = model->parameters[i].size_bytes;
        const uint64_t skipped = match->first[i] * (heft_dtype_bits(info->dtype) / 8);
        status = heft__source_touch(heft__file_of(ckpt, tensor)->source, info->offset + skipped,
                                    bytes, err);
        heft__add_item(status, err, info->name);
        done += bytes;
        if (status == HEFT_OK) {
            status = heft__tell_progress(model->ctx, "touching", done, total, err);
        }
    }
    return status;
}

heft_status heft__tensors_equal(const heft_checkpoint *ckpt, size_t a, size_t b, bool *equal,
                                heft_error *err)
{
    const size_t numbers[2] = {a, b};
    heft__tensor_reader *readers[2] = {NULL, NULL};
    heft_status status = HEFT_OK;
    uint8_t *scratch = heft__alloc(ckpt->ctx, 2 * SCRATCH_BYTES);
    if (!scratch) {
        return heft__fail_nomem(err, 2 * SCRATCH_BYTES);
    }
    *equal = ckpt->infos[a].dtype == ckpt->infos[b].dtype &&
             ckpt->infos[a].size_bytes == ckpt->infos[b].size_bytes;
    for (size_t k = 0; k < 2 && status == HEFT_OK; k++) {
        status = heft__tensor_reader_new(ckpt->ctx, heft__file_of(ckpt, numbers[k]),
                                         ckpt->entries[numbers[k]], &readers[k], err);
    }
    for (uint64_t done = 0; done < ckpt->infos[a].size_bytes && *equal && status == HEFT_OK;) {
        uint64_t left = ckpt->infos[a].size_bytes - done;
        size_t wanted = left < SCRATCH_BYTES ? (size_t)left : SCRATCH_BYTES;
        for (size_t k = 0; k < 2 && status == HEFT_OK; k++) {
            status = heft__tensor_reader_fill(readers[k], scratch + k * SCRATCH_BYTES, wanted, err);
        }
        *equal = memcmp(scratch, scratch + SCRATCH_BYTES, wanted) == 0;
        done += wanted;
    }
    heft__tensor_reader_free(readers[0]);
    heft__tensor_reader_free(readers[1]);
    heft__free(ckpt->ctx, scratch, 2 * SCRATCH_BYTES);
    return status;
}
