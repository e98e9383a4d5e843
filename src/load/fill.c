/* fill.c - from a checkpoint's bytes to a model's parameters.
 *
 * Mapped parameters point into the file and cost nothing. Others get memory of their own, which is
 * filled in pieces by all threads: plain tensors piece by piece straight from the file, the rest
 * (strided, deflated, other byte order) one tensor at a time. A cast goes through one small buffer
 * per piece. A shared copy is filled the same way by whoever comes first, and bound by all. Not done
 * here: deciding which tensor fills which parameter. */
#include "load/load.h"

#include <pthread.h>

#define PIECE_BYTES ((uint64_t)16 << 20)  /* of one read, in the file's dtype */
#define SCRATCH_BYTES ((size_t)256 << 10) /* of one cast: stays in the second-level cache */
#define DIRECT_BYTES ((size_t)4 << 20) /* of one cast of a direct read: huge pages, long requests */
#define DIRECT_LEAST ((uint64_t)16 << 20) /* smaller files are read through the page cache */
#define DIRECT_RESIDENCY 0.2              /* of which less is in the page cache than this */
#define DISK_THREADS ((size_t)4)          /* that wait for a disk, at least */

struct item { /* one piece of work */
    size_t parameter, tensor;
    uint64_t first, count; /* elements */
    bool whole;            /* through a tensor reader */
    uint64_t offset;       /* of `first` in the file, where not whole */
    bool spill;            /* the blocks at both ends belong to it alone */
};

#define NO_PLACE UINT64_MAX
#define PLACE_ALIGN 64 /* of a parameter in a shared copy */

enum way { UNDECIDED, BUFFERED, DIRECT }; /* a file's bytes take: DIRECT is past the page cache */

struct fill {
    heft_model *model;
    const heft_checkpoint *ckpt;
    const heft__match *match;
    const heft__fill_options *options;
    uint8_t **data;         /* [model->count] where to write, NULL: not copied */
    heft_storage **fresh;   /* [model->count] new storages, bound when all went well */
    heft_tensor **mapped;   /* [model->count] */
    enum way *way;          /* [ckpt->file_count] */
    heft__segment *segment; /* the shared copy, NULL without */
    uint64_t *place;        /* [model->count] in it; NO_PLACE: not there */
    uint64_t segment_bytes;
    struct item *items;
    size_t count, cap;
    pthread_mutex_t lock; /* guards done_bytes and the progress callback */
    uint64_t done_bytes, total_bytes;
};

/* ---- work ------------------------------------------------------------------------------------ */
static heft_status read_piece(const struct fill *f, const struct item *item, uint64_t offset,
                              void *dst, size_t length, bool spill, heft_error *err)
{
    heft__source *source = heft__file_of(f->ckpt, item->tensor)->source;
    return f->way[f->ckpt->infos[item->tensor].file_index] == DIRECT
               ? heft__source_read_direct(source, offset, dst, length, spill, err)
               : heft__source_read(source, offset, dst, length, err);
}

/* The first place at or behind a block's beginning in `base` that has the phase of the offset: the
 * bytes in front of it, back to the block's beginning, are in `base` too. */
static uint8_t *in_phase(uint8_t *base, uint64_t offset)
{
    const uintptr_t block = HEFT__DIRECT_BLOCK,
                    start = ((uintptr_t)base + block - 1) / block * block;
    return base + (start - (uintptr_t)base) + offset % block;
}

/* Through a buffer, which for direct reads has the file's phase. */
static heft_status fill_cast(struct fill *f, const struct item *item, heft_error *err)
{
    const heft_tensor_info *info = &f->ckpt->infos[item->tensor];
    const heft_dtype to = f->model->parameters[item->parameter].dtype;
    const bool direct = f->way[info->file_index] == DIRECT;
    const size_t bytes = direct ? DIRECT_BYTES : SCRATCH_BYTES;
    const size_t from_bytes = heft_dtype_bits(info->dtype) / 8;
    const size_t to_bytes = heft_dtype_bits(to) / 8, most = bytes / from_bytes;
    uint8_t *dst = f->data[item->parameter] + item->first * to_bytes;
    const size_t room = bytes + 2 * HEFT__DIRECT_BLOCK; /* for the phase, and what spills over */
    uint8_t *scratch = heft__alloc(f->model->ctx, room);
    heft_status status = scratch ? HEFT_OK : heft__fail_nomem(err, bytes);
    for (uint64_t done = 0; done < item->count && status == HEFT_OK;) {
        const uint64_t left = item->count - done, offset = item->offset + done * from_bytes;
        const size_t elems = left < most ? (size_t)left : most;
        uint8_t *read_to = in_phase(scratch, offset);
        status = read_piece(f, item, offset, read_to, elems * from_bytes, true, err);
        if (status == HEFT_OK) {
            heft__cast(to, dst + done * to_bytes, info->dtype, read_to, elems);
        }
        done += elems;
    }
    heft__free(f->model->ctx, scratch, room);
    return status;
}

static heft_status fill_plain(struct fill *f, const struct item *item, heft_error *err)
{
    const heft_dtype from = f->ckpt->infos[item->tensor].dtype;
    const size_t bytes = heft_dtype_bits(from) / 8;
    if (from != f->model->parameters[item->parameter].dtype) {
        return fill_cast(f, item, err);
    }
    return read_piece(f, item, item->offset, f->data[item->parameter] + item->first * bytes,
                      (size_t)(item->count * bytes), item->spill, err);
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
    uint64_t step = whole ? elems : PIECE_BYTES * 8 / bits, count;
    /* Pieces of a direct read end where blocks do, so that none writes into another's. */
    const bool direct = !whole && f->way[info->file_index] == DIRECT && f->fresh[parameter];
    const uint64_t before = direct ? offset % HEFT__DIRECT_BLOCK : 0;
    const bool spill = direct && (before * 8) % bits == 0;
    for (uint64_t first = 0; first < elems; first += count) {
        count = first == 0 && spill ? step - before * 8 / bits : step;
        count = elems - first < count ? elems - first : count;
        if (!heft__array_reserve(f->model->ctx, (void **)&f->items, f->count, &f->cap,
                                 sizeof *f->items)) {
            return heft__fail_nomem(err, sizeof *f->items);
        }
        f->items[f->count++] = (struct item){
            .parameter = parameter,
            .tensor = tensor,
            .first = first,
            .count = count,
            .whole = whole,
            .offset = whole ? 0 : offset + first * bits / 8,
            .spill = spill,
        };
    }
    f->total_bytes += elems * bits / 8;
    return HEFT_OK;
}

/* Files of which little is in the page cache are read past it: it would only be a second copy, and
 * requests are longer. */
static bool is_direct(struct fill *f, size_t file, heft__fill_counts *counts)
{
    heft__source *source = f->ckpt->files[file].file->source;
    if (f->way[file] == UNDECIDED) {
        bool direct = heft__source_size(source) >= DIRECT_LEAST && !heft__source_network(source) &&
                      heft__source_residency(source) < DIRECT_RESIDENCY;
        f->way[file] = direct ? DIRECT : BUFFERED;
        counts->direct_files += direct;
    }
    return f->way[file] == DIRECT;
}

static heft_status plan_copy(struct fill *f, size_t i, size_t tensor, heft__fill_counts *counts,
                             heft_error *err)
{
    const heft_parameter *parameter = &f->model->parameters[i];
    const heft_tensor_info *info = &f->ckpt->infos[tensor];
    const heft__binding *binding = &f->model->bindings[i];
    heft_status status = HEFT_OK;
    if (info->dtype != parameter->dtype && !heft__cast_known(info->dtype, parameter->dtype)) {
        return heft__fail(err, HEFT_UNSUPPORTED, "%s cannot be cast to %s",
                          heft_dtype_name(info->dtype), heft_dtype_name(parameter->dtype));
    }
    const bool past_cache = is_direct(f, info->file_index, counts);
    if (f->options->share) {
        f->place[i] = f->segment_bytes;
        f->segment_bytes += (parameter->size_bytes + PLACE_ALIGN - 1) / PLACE_ALIGN * PLACE_ALIGN;
        counts->shared_bytes += parameter->size_bytes;
        counts->cast_bytes += info->dtype != parameter->dtype ? parameter->size_bytes : 0;
        return add_items(f, i, tensor, err);
    }
    if (f->options->reuse && parameter->state == HEFT_PARAMETER_OWNED) {
        f->data[i] = (uint8_t *)heft_storage_data(binding->storage) + binding->byte_offset;
    } else {
        const bool direct = past_cache && info->offset != HEFT_NO_OFFSET;
        const size_t more = direct ? 2 * HEFT__DIRECT_BLOCK : 0; /* the phase, and what spills */
        status = heft__storage_new(f->model->ctx, parameter->size_bytes + more, &f->fresh[i], err);
        if (status == HEFT_OK) {
            uint8_t *base = heft_storage_data(f->fresh[i]);
            uint64_t offset = info->offset + f->match->first[i] * heft_dtype_bits(info->dtype) / 8;
            f->data[i] = direct ? in_phase(base, offset) : base;
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

/* Whether parameter i is to be mapped: by its device, if it has one, else by the options. A file has
 * what is in it: nothing that must be cast or put in order can stay there. */
static heft_status decide(const struct fill *f, size_t i, bool as_it_lies, bool *map,
                          heft_error *err)
{
    const char *name = f->model->parameters[i].name;
    *map = f->options->map && as_it_lies;
    if (!f->options->device_of) {
        return HEFT_OK;
    }
    const int32_t device = f->options->device_of(f->options->device_user, name);
    if (device == HEFT_DEVICE_DISK && !as_it_lies) {
        return heft__fail(err, HEFT_UNSUPPORTED,
                          "cannot stay in its file: it is another dtype or layout there");
    }
    *map = device == HEFT_DEVICE_DISK;
    return device == HEFT_DEVICE_CPU || device == HEFT_DEVICE_DISK
               ? HEFT_OK
               : heft__fail(err, HEFT_UNSUPPORTED,
                            device == HEFT_DEVICE_NONE ? "has no device in the map"
                                                       : "device %d: this build has none",
                            (int)device);
}

static heft_status plan(struct fill *f, heft__fill_counts *counts, heft_error *err)
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
        bool map = false;
        status = decide(f, i, as_it_lies, &map, err);
        if (status != HEFT_OK) {
            return heft__add_item(status, err, f->model->parameters[i].name);
        }
        if (map) {
            status = heft_checkpoint_map(f->ckpt, tensor, &f->mapped[i], err);
            counts->mapped_bytes += f->model->parameters[i].size_bytes;
        } else {
            status = plan_copy(f, i, tensor, counts, err);
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
            uint64_t start = (uint64_t)(f->data[i] - (uint8_t *)heft_storage_data(f->fresh[i]));
            heft__model_bind(f->model, i, f->fresh[i], start, HEFT_PARAMETER_OWNED);
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

/* ---- the shared copy ------------------------------------------------------------------------- */
/* What the copy holds, as text: files by what tells one version from another, parameters by name,
 * dtype and place. Two processes with the same text want the same bytes. */
static heft_status name_copy(const struct fill *f, char key[HEFT__SEGMENT_KEY], heft_error *err)
{
    heft__buffer text;
    heft__buffer_init(&text, f->model->ctx);
    for (size_t i = 0; i < f->ckpt->file_count; i++) {
        heft__buffer_format(&text, "%s %llu\n", f->ckpt->files[i].info.name,
                            (unsigned long long)heft__path_stamp(f->ckpt->files[i].info.path));
    }
    for (size_t i = 0; i < f->model->count; i++) {
        if (f->place[i] != NO_PLACE) {
            heft__buffer_format(&text, "%s %d %llu %zu %llu\n", f->model->parameters[i].name,
                                (int)f->model->parameters[i].dtype, (unsigned long long)f->place[i],
                                f->match->source[i], (unsigned long long)f->match->first[i]);
        }
    }
    heft_status status = heft__buffer_check(&text, err);
    if (status == HEFT_OK) {
        const char *bytes = (const char *)text.data;
        uint64_t first = heft__stable_hash(bytes, text.size);
        heft__buffer_format(&text, "%llu", (unsigned long long)first); /* the second half */
        status = heft__buffer_check(&text, err);
        snprintf(key, HEFT__SEGMENT_KEY, "weights-%016llx%016llx", (unsigned long long)first,
                 (unsigned long long)heft__stable_hash((const char *)text.data, text.size));
    }
    heft__buffer_fini(&text);
    return status;
}

/* Join the copy, or begin it: then data[] points into it. */
static heft_status open_copy(struct fill *f, heft__fill_counts *counts, heft_error *err)
{
    char key[HEFT__SEGMENT_KEY] = {0};
    heft_status status = name_copy(f, key, err);
    if (status == HEFT_OK) {
        status = heft__segment_open(f->model->ctx, key, f->segment_bytes, &f->segment, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    counts->joined = !heft__segment_is_new(f->segment);
    for (size_t i = 0; i < f->model->count; i++) {
        if (f->place[i] != NO_PLACE) {
            f->data[i] = heft__segment_base(f->segment) + f->place[i];
        }
    }
    if (counts->joined) {
        f->count = 0; /* somebody else has done the work */
    }
    return HEFT_OK;
}

static void release_copy(void *user)
{
    heft__segment_close(user);
}

/* Seal what was filled, and hand it to a storage, which all parameters in it will share. */
static heft_status finish_copy(struct fill *f, heft_storage **out, heft_error *err)
{
    heft_status status =
        heft__segment_is_new(f->segment) ? heft__segment_seal(f->segment, err) : HEFT_OK;
    if (status == HEFT_OK) {
        status = heft_storage_wrap(f->model->ctx, heft__segment_base(f->segment), f->segment_bytes,
                                   release_copy, f->segment, out, err);
    }
    if (status == HEFT_OK) {
        f->segment = NULL;
    }
    return status;
}

static void bind_copy(struct fill *f, heft_storage *copy)
{
    for (size_t i = 0; i < f->model->count; i++) {
        if (f->place[i] != NO_PLACE) {
            heft__model_bind(f->model, i, heft_storage_ref(copy), f->place[i],
                             HEFT_PARAMETER_SHARED);
        }
    }
}

/* ---- filling --------------------------------------------------------------------------------- */
static heft_status make_arrays(struct fill *f, heft_error *err)
{
    heft_ctx *ctx = f->model->ctx;
    const size_t count = f->model->count;
    f->data = heft__alloc_zero(ctx, count, sizeof *f->data);
    f->fresh = heft__alloc_zero(ctx, count, sizeof *f->fresh);
    f->mapped = heft__alloc_zero(ctx, count, sizeof *f->mapped);
    f->place = heft__alloc(ctx, count * sizeof *f->place);
    f->way = heft__alloc_zero(ctx, f->ckpt->file_count, sizeof *f->way);
    for (size_t i = 0; f->place && i < count; i++) {
        f->place[i] = NO_PLACE;
    }
    return f->data && f->fresh && f->mapped && f->place && f->way
               ? HEFT_OK
               : heft__fail_nomem(err, count * sizeof *f->data);
}

static void free_arrays(struct fill *f)
{
    heft_ctx *ctx = f->model->ctx;
    const size_t count = f->model->count;
    for (size_t i = 0; i < count; i++) {
        if (f->fresh) {
            heft_storage_unref(f->fresh[i]);
        }
        if (f->mapped) {
            heft_tensor_free(f->mapped[i]);
        }
    }
    heft__free(ctx, f->items, f->cap * sizeof *f->items);
    heft__free(ctx, f->data, count * sizeof *f->data);
    heft__free(ctx, f->fresh, count * sizeof *f->fresh);
    heft__free(ctx, f->mapped, count * sizeof *f->mapped);
    heft__free(ctx, f->place, count * sizeof *f->place);
    heft__free(ctx, f->way, f->ckpt->file_count * sizeof *f->way);
}

static heft_status do_work(struct fill *f, const heft__fill_counts *counts, heft_error *err)
{
    size_t threads = heft__threads(f->model->ctx);
    if (counts->direct_files && threads > 1 && threads < DISK_THREADS) {
        threads = DISK_THREADS;
    }
    return heft__parallel_on(threads, f->count, fill_item, f, err);
}

heft_status heft__fill(heft_model *model, const heft_checkpoint *ckpt, const heft__match *match,
                       const heft__fill_options *options, heft__fill_counts *counts,
                       heft_error *err)
{
    struct fill f = {.model = model, .ckpt = ckpt, .match = match, .options = options};
    heft_storage *copy = NULL;
    pthread_mutex_init(&f.lock, NULL);
    heft_status status = make_arrays(&f, err);
    if (status == HEFT_OK) {
        status = plan(&f, counts, err);
    }
    if (status == HEFT_OK && f.segment_bytes > 0) {
        status = open_copy(&f, counts, err);
    }
    if (status == HEFT_OK) {
        status = do_work(&f, counts, err);
    }
    if (status == HEFT_OK && f.segment) {
        status = finish_copy(&f, &copy, err);
    }
    if (status == HEFT_OK) {
        bind_copy(&f, copy);
        bind_all(&f);
    }
    heft_storage_unref(copy);
    heft__segment_close(f.segment);
    free_arrays(&f);
    pthread_mutex_destroy(&f.lock);
    return status;
}

/* ---- touching -------------------------------------------------------------------------------- */
struct range { /* of a file, or of memory that is shared, to be brought in */
    size_t tensor;
    const uint8_t *memory; /* NULL: of the tensor's file */
    uint64_t offset, length;
};

struct touching {
    const heft_checkpoint *ckpt;
    heft_ctx *ctx;
    struct range *ranges;
    size_t count, cap;
    pthread_mutex_t lock; /* guards done and the progress callback */
    uint64_t done, total;
};

static heft_status touch_range(void *user, size_t i, heft_error *err)
{
    struct touching *t = user;
    const struct range *range = &t->ranges[i];
    heft_status status = HEFT_OK;
    if (range->memory) {
        (void)heft__touch_memory(range->memory + range->offset, (size_t)range->length);
    } else {
        status = heft__source_touch(heft__file_of(t->ckpt, range->tensor)->source, range->offset,
                                    range->length, err);
    }
    heft__add_item(status, err, t->ckpt->infos[range->tensor].name);
    if (status == HEFT_OK) {
        pthread_mutex_lock(&t->lock);
        t->done += range->length;
        status = heft__tell_progress(t->ctx, "touching", t->done, t->total, err);
        pthread_mutex_unlock(&t->lock);
    }
    return status;
}

static heft_status add_ranges(struct touching *t, size_t tensor, const uint8_t *memory,
                              uint64_t offset, uint64_t length, heft_error *err)
{
    for (uint64_t at = 0; at < length; at += PIECE_BYTES) {
        if (!heft__array_reserve(t->ctx, (void **)&t->ranges, t->count, &t->cap,
                                 sizeof *t->ranges)) {
            return heft__fail_nomem(err, sizeof *t->ranges);
        }
        uint64_t left = length - at;
        t->ranges[t->count++] =
            (struct range){tensor, memory, offset + at, left < PIECE_BYTES ? left : PIECE_BYTES};
    }
    t->total += length;
    return HEFT_OK;
}

heft_status heft__fill_touch(const heft_model *model, const heft_checkpoint *ckpt,
                             const heft__match *match, heft_error *err)
{
    struct touching t = {.ckpt = ckpt, .ctx = model->ctx};
    heft_status status = HEFT_OK;
    pthread_mutex_init(&t.lock, NULL);
    for (size_t i = 0; i < model->count && status == HEFT_OK; i++) {
        size_t tensor = match->source[i];
        if (tensor != HEFT__NO_TENSOR && model->parameters[i].state == HEFT_PARAMETER_MAPPED) {
            const heft_tensor_info *info = &ckpt->infos[tensor];
            const uint64_t skipped = match->first[i] * (heft_dtype_bits(info->dtype) / 8);
            status = add_ranges(&t, tensor, NULL, info->offset + skipped,
                                model->parameters[i].size_bytes, err);
        } else if (tensor != HEFT__NO_TENSOR &&
                   model->parameters[i].state == HEFT_PARAMETER_SHARED) {
            const heft__binding *binding = &model->bindings[i];
            status = add_ranges(&t, tensor, heft_storage_data(binding->storage),
                                binding->byte_offset, model->parameters[i].size_bytes, err);
        }
    }
    if (status == HEFT_OK) {
        size_t threads = heft__threads(model->ctx);
        threads = threads > 1 && threads < DISK_THREADS ? DISK_THREADS : threads;
        status = heft__parallel_on(threads, t.count, touch_range, &t, err);
    }
    pthread_mutex_destroy(&t.lock);
    heft__free(model->ctx, t.ranges, t.cap * sizeof *t.ranges);
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
