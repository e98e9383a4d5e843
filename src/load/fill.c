/* fill.c - from a checkpoint's bytes to a model's parameters.
 *
 * Mapped parameters point into the file and cost nothing, and so do those that stay in it. Others get
 * their own memory, which all threads fill in pieces. A shared copy is filled the same way by the first
 * process, and all processes bind it. Not done here: deciding which tensor fills which
 * parameter, and reading. */
#include "load/load.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define NO_PLACE UINT64_MAX
#define MAPPED_BYTES                                                                               \
    ((uint64_t)128 << 10) /* blocks of malloc() with pages of their own, the last one not full */
#define HEADER_BYTES 128  /* of a smaller block, and of its storage */
#define PLACE_ALIGN 64    /* of a parameter in a shared copy */

enum way { UNDECIDED, BUFFERED, DIRECT }; /* a file's bytes take: DIRECT is past the page cache */

struct fill {
    heft_model *model;
    const heft_checkpoint *ckpt;
    const heft__match *match;
    const heft__fill_options *options;
    uint8_t **data;       /* [model->count] where to write, NULL: not copied */
    heft_storage **fresh; /* [model->count] new storages, bound when all went well */
    heft_tensor **mapped; /* [model->count] */
    bool *stays;          /* [model->count] in its file */
    enum way *way;        /* [ckpt->file_count] */
    bool *used;           /* [ckpt->file_count] bytes of it are copied, or have been for the copy */
    heft__segment *segment; /* the shared copy, NULL without */
    uint64_t *place;        /* [model->count] in it; NO_PLACE: not there */
    uint64_t segment_bytes;
    heft__pieces pieces; /* what is read; the owner is the parameter */
    pthread_t caller;    /* the only thread that reports progress */
    _Atomic uint64_t done_bytes;
};

/* ---- work ------------------------------------------------------------------------------------ */
static heft_status fill_piece(void *user, size_t i, heft_error *err)
{
    struct fill *f = user;
    heft_status status = heft__piece_read(&f->pieces, i, f->data[f->pieces.list[i].owner], err);
    const uint64_t bytes = heft__piece_bytes(&f->pieces, i),
                   done = atomic_fetch_add(&f->done_bytes, bytes) + bytes;
    if (f->segment) {
        heft__segment_beat(f->segment);
    }
    return status == HEFT_OK && pthread_equal(pthread_self(), f->caller)
               ? heft__tell_progress(f->model->ctx, "reading", done, f->pieces.bytes, err)
               : status;
}

/* ---- planning -------------------------------------------------------------------------------- */
/* Files of which little is in the page cache are read past it: it would only be a second copy, and
 * requests are longer. */
static bool is_cold(struct fill *f, size_t tensor)
{
    const size_t file = f->ckpt->infos[tensor].file_index;
    if (f->way[file] == UNDECIDED) {
        f->way[file] = heft__file_is_cold(f->ckpt, file) ? DIRECT : BUFFERED;
    }
    return f->way[file] == DIRECT;
}

/* But for what is small. */
static bool is_direct(struct fill *f, size_t i, size_t tensor)
{
    return f->model->parameters[i].size_bytes >= HEFT__DIRECT_TENSOR && is_cold(f, tensor);
}

/* The pieces of parameter i, which go to data[i]. */
static heft_status add_pieces(struct fill *f, size_t i, size_t tensor, heft_error *err)
{
    const heft_parameter *parameter = &f->model->parameters[i];
    heft__part part = {
        .tensor = tensor,
        .first = f->match->first[i],
        .to = parameter->dtype,
        .direct = is_direct(f, i, tensor),
        .spare = f->fresh[i] || f->options->count,
    };
    (void)heft__shape_elems(parameter->shape, parameter->rank,
                            &part.elems); /* checked by the builder */
    return heft__pieces_add(&f->pieces, &part, i, err);
}

/* Memory of the parameter's own; where it is read past the page cache, in the phase of the file. */
static heft_status take_memory(struct fill *f, size_t i, size_t tensor, const heft__device *device,
                               heft__fill_counts *counts, heft_error *err)
{
    const heft_parameter *parameter = &f->model->parameters[i];
    const uint64_t offset = heft__part_offset(f->ckpt, tensor, f->match->first[i]);
    const bool direct = is_direct(f, i, tensor) && offset != HEFT_NO_OFFSET;
    const size_t more = direct ? HEFT__SPARE_BYTES : 0;
    counts->beside_bytes +=
        more + (parameter->size_bytes < MAPPED_BYTES ? HEADER_BYTES : heft__page_bytes());
    if (f->options->count) {
        return HEFT_OK;
    }
    heft_status status =
        device->new_memory(f->model->ctx, parameter->size_bytes + more, &f->fresh[i], err);
    if (status == HEFT_OK) {
        uint8_t *base = heft_storage_data(f->fresh[i]);
        f->data[i] = direct ? heft__in_phase(base, offset) : base;
    }
    return status;
}

static heft_status plan_copy(struct fill *f, size_t i, size_t tensor, const heft__device *device,
                             heft__fill_counts *counts, heft_error *err)
{
    const heft_parameter *parameter = &f->model->parameters[i];
    const heft_tensor_info *info = &f->ckpt->infos[tensor];
    const heft__binding *binding = &f->model->bindings[i];
    heft_status status = HEFT_OK;
    counts->direct |= is_cold(f, tensor);
    f->used[info->file_index] = true;
    if (f->options->share) {
        f->place[i] = f->segment_bytes;
        f->segment_bytes += (parameter->size_bytes + PLACE_ALIGN - 1) / PLACE_ALIGN * PLACE_ALIGN;
        counts->shared_bytes += parameter->size_bytes;
    } else {
        counts->copied_bytes += parameter->size_bytes;
        if (f->options->reuse && parameter->state == HEFT_PARAMETER_OWNED &&
            !heft__model_compact(f->model, i) && !(f->options->anew && f->options->anew[i])) {
            f->data[i] = (uint8_t *)heft_storage_data(binding->storage) + binding->byte_offset;
        } else {
            counts->own_bytes += parameter->size_bytes;
            status = take_memory(f, i, tensor, device, counts, err);
        }
    }
    counts->cast_bytes += info->dtype != parameter->dtype ? parameter->size_bytes : 0;
    return status == HEFT_OK ? add_pieces(f, i, tensor, err) : status;
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

/* STAY: in its file, without memory, until it is brought in; AWAY: on a device that is not here. */
enum fate { COPY, MAP, STAY, AWAY };

/* How parameter i is filled: by its device, if it has one, otherwise by the options. Only parameters stored
 * in the form needed can be mapped. Buffers are small and always needed: where a device has no memory, they
 * get CPU memory. */
static heft_status decide(const struct fill *f, size_t i, bool as_it_lies, enum fate *fate,
                          const heft__device **device, heft_error *err)
{
    const heft_parameter *parameter = &f->model->parameters[i];
    int32_t number = HEFT_DEVICE_CPU;
    *fate = f->options->map && as_it_lies ? MAP : COPY;
    if (f->options->devices) {
        number = f->options->devices[i];
    }
    const heft_status status = heft__device_find(number, device, f->options->count ? NULL : err);
    if (status != HEFT_OK) {
        *fate = AWAY;
        return f->options->count ? HEFT_OK : status;
    }
    if (f->options->devices) {
        const bool stays = !(*device)->new_memory && parameter->kind == HEFT_PARAMETER_WEIGHT;
        *fate = !stays ? COPY : *fate == MAP ? MAP : STAY;
    }
    return (*device)->new_memory ? HEFT_OK : heft__device_find(HEFT_DEVICE_CPU, device, err);
}

/* Leave parameter i in its file: its bytes count where it lives. What bringing it in takes is that of one
 * thread, as long as the file is as cold as it is now. */
static heft_status plan_stay(struct fill *f, size_t i, size_t tensor, heft__fill_counts *counts)
{
    const heft_parameter *parameter = &f->model->parameters[i];
    const heft__part part = {
        .tensor = tensor, .to = parameter->dtype, .direct = is_direct(f, i, tensor)};
    const uint64_t scratch = heft__part_scratch(f->ckpt, &part);
    f->stays[i] = true;
    counts->disk_bytes += parameter->size_bytes;
    counts->stay_scratch = scratch > counts->stay_scratch ? scratch : counts->stay_scratch;
    return HEFT_OK;
}

static heft_status plan_map(struct fill *f, size_t i, size_t tensor, heft__fill_counts *counts,
                            heft_error *err)
{
    heft_status status = HEFT_OK;
    if (!f->options->count) {
        const heft_map_mode stay = heft__map_takes_unaligned(f->options->map_mode)
                                       ? HEFT_MAP_READ_ONLY_UNALIGNED
                                       : HEFT_MAP_READ_ONLY; /* in every mode */
        status = f->options->devices ? heft__map_or_stay(f->ckpt, tensor, stay, &f->mapped[i], err)
                                     : heft_checkpoint_map(f->ckpt, tensor, f->options->map_mode,
                                                           &f->mapped[i], err);
        if (status == HEFT_OK && !f->mapped[i]) {
            return plan_stay(f, i, tensor, counts);
        }
    }
    counts->mapped_bytes += f->model->parameters[i].size_bytes;
    return status;
}

static heft_status plan_parameter(struct fill *f, size_t i, size_t tensor,
                                  heft__fill_counts *counts, heft_error *err)
{
    const heft_tensor_info *info = &f->ckpt->infos[tensor];
    const heft_parameter *parameter = &f->model->parameters[i];
    const bool private = heft__map_is_private(f->options->map_mode) && !f->options->devices;
    const bool mappable = info->dtype == parameter->dtype && info->offset != HEFT_NO_OFFSET &&
                          heft__input_can_map(heft__file_of(f->ckpt, tensor)->source, private);
    const bool as_it_lies = mappable && (heft__map_takes_unaligned(f->options->map_mode) ||
                                         heft__checkpoint_is_aligned(f->ckpt, tensor));
    enum fate fate = COPY;
    heft_status status = heft__cast_check(info->dtype, parameter->dtype, HEFT_UNSUPPORTED, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (is_slice(f, i) && info->offset == HEFT_NO_OFFSET && !f->ckpt->entries[tensor]->decoded) {
        return heft__fail(err, HEFT_UNSUPPORTED, "is part of '%.100s', which is strided or packed",
                          info->name);
    }
    const heft__device *device = NULL;
    status = decide(f, i, as_it_lies, &fate, &device, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (fate == AWAY) {
        counts->away_bytes += parameter->size_bytes;
        return HEFT_OK;
    }
    if (fate == COPY && mappable && !as_it_lies && f->options->map && !f->options->devices) {
        counts->unaligned_count++;
        counts->unaligned_bytes += parameter->size_bytes;
    }
    return fate == STAY  ? plan_stay(f, i, tensor, counts)
           : fate == MAP ? plan_map(f, i, tensor, counts, err)
                         : plan_copy(f, i, tensor, device, counts, err);
}

static heft_status plan(struct fill *f, heft__fill_counts *counts, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < f->model->count && status == HEFT_OK; i++) {
        size_t tensor = f->match->source[i];
        if (tensor != HEFT__NO_TENSOR) {
            status = heft__add_item(plan_parameter(f, i, tensor, counts, err), err,
                                    f->model->parameters[i].name);
        }
    }
    return status;
}

/* Hand every parameter its new storage; cannot fail. */
static void bind_all(struct fill *f)
{
    for (size_t i = 0; i < f->model->count; i++) {
        if (f->mapped[i]) {
            const heft_tensor *tensor = f->mapped[i];
            const uint64_t start =
                tensor->offset_bytes + f->match->first[i] * (heft_dtype_bits(tensor->dtype) / 8);
            heft__model_bind(f->model, i, heft_storage_ref(tensor->storage), start,
                             HEFT_PARAMETER_MAPPED);
        } else if (f->fresh[i]) {
            uint64_t start = (uint64_t)(f->data[i] - (uint8_t *)heft_storage_data(f->fresh[i]));
            heft__model_bind(f->model, i, f->fresh[i], start, HEFT_PARAMETER_OWNED);
            f->fresh[i] = NULL;
        } else if (f->stays[i]) {
            heft__model_bind(f->model, i, NULL, 0, HEFT_PARAMETER_DISK);
        }
    }
    for (size_t i = 0; i < f->model->count; i++) {
        size_t source = f->model->parameters[i].tied_to;
        const heft__binding *binding = &f->model->bindings[source];
        if (source != i && f->match->source[source] != HEFT__NO_TENSOR &&
            (binding->storage || f->stays[source])) {
            heft__model_bind(f->model, i, heft_storage_ref(binding->storage), binding->byte_offset,
                             f->model->parameters[source].state);
        }
    }
}

/* ---- the shared copy ------------------------------------------------------------------------- */
/* The names, dtypes, shapes and offsets of all tensors: what the files' headers say. */
static heft__digest digest_headers(const heft_checkpoint *ckpt)
{
    heft__digest digest = {0};
    for (size_t i = 0; i < ckpt->count; i++) {
        const heft_tensor_info *info = &ckpt->infos[i];
        const uint64_t facts[] = {(uint64_t)info->dtype, info->rank, info->offset, info->size_bytes,
                                  info->file_index};
        heft__digest_add(&digest, info->name, strlen(info->name));
        heft__digest_add(&digest, facts, sizeof facts);
        heft__digest_add(&digest, info->shape, info->rank * sizeof *info->shape);
    }
    return digest;
}

/* What is made of them: name, dtype, size and place of each parameter, and the part of which tensor. */
static heft__digest digest_parameters(const struct fill *f)
{
    heft__digest digest = {0};
    for (size_t i = 0; i < f->model->count; i++) {
        const heft_parameter *parameter = &f->model->parameters[i];
        if (f->place[i] != NO_PLACE) {
            const uint64_t facts[] = {(uint64_t)parameter->dtype, parameter->size_bytes,
                                      f->place[i], f->match->source[i], f->match->first[i]};
            heft__digest_add(&digest, parameter->name, strlen(parameter->name));
            heft__digest_add(&digest, facts, sizeof facts);
        }
    }
    return digest;
}

/* What tells the copy from any other: the files themselves, by what their descriptors said when they
 * were opened, their headers, and what is made of them. Two processes with the same text want the same
 * bytes. */
static heft_status describe_copy(const struct fill *f, heft__buffer *what, heft_error *err)
{
    heft__digest digest;
    heft__buffer_format(what, "heft %s, %llu bytes\n", heft_version(),
                        (unsigned long long)f->segment_bytes);
    for (size_t i = 0; i < f->ckpt->file_count; i++) {
        const heft__file *file = f->ckpt->files[i].file;
        const heft__identity *identity = file ? heft__input_identity(file->source) : NULL;
        heft__buffer_format(what, "%s%c", f->ckpt->files[i].info.name, identity ? '\n' : '\r');
        if (identity) {
            heft__buffer_append(what, identity, sizeof *identity);
        }
    }
    digest = digest_headers(f->ckpt);
    heft__buffer_append(what, &digest, sizeof digest);
    digest = digest_parameters(f);
    heft__buffer_append(what, &digest, sizeof digest);
    heft__buffer_append(what, &f->ckpt->computed, sizeof f->ckpt->computed);
    return heft__buffer_check(what, err);
}

/* Where the copy comes from, for those who list the copies. */
static void name_source(const heft_checkpoint *ckpt, char dst[PATH_MAX])
{
    if (!realpath(ckpt->where.folder, dst)) {
        snprintf(dst, PATH_MAX, "%s", ckpt->where.folder);
    }
    const size_t length = strlen(dst);
    if (ckpt->where.lone) {
        snprintf(dst + length, PATH_MAX - length, "/%s", ckpt->where.file);
    }
}

/* Join the copy, or begin it: then data[] points into it. */
static heft_status open_copy(struct fill *f, heft__fill_counts *counts, heft_error *err)
{
    heft__buffer what;
    char source[PATH_MAX];
    heft__buffer_init(&what, f->model->ctx);
    heft_status status = describe_copy(f, &what, err);
    if (status == HEFT_OK) {
        name_source(f->ckpt, source);
        const heft__segment_request request = {.what = what.data,
                                               .what_bytes = what.size,
                                               .source = source,
                                               .bytes = f->segment_bytes,
                                               .private = f->options->map_mode == HEFT_MAP_PRIVATE};
        status = heft__segment_open(f->model->ctx, &request, &f->segment, err);
    }
    heft__buffer_fini(&what);
    if (status != HEFT_OK) {
        counts->unshared = status == HEFT_UNSUPPORTED;
        return status;
    }
    counts->joined = !heft__segment_is_new(f->segment);
    for (size_t i = 0; i < f->model->count; i++) {
        if (f->place[i] != NO_PLACE) {
            f->data[i] = heft__segment_base(f->segment) + f->place[i];
        }
    }
    if (counts->joined) {
        f->pieces.count = 0; /* another process has done the work */
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
        const heft__memory memory = {
            .data = heft__segment_base(f->segment),
            .bytes = f->segment_bytes,
            .flags = HEFT_TENSOR_SHARED |
                     (f->options->map_mode == HEFT_MAP_PRIVATE ? HEFT_TENSOR_WRITABLE : 0),
            .release = release_copy,
            .user = f->segment};
        status = heft__storage_make(f->model->ctx, &memory, out, err);
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
    f->stays = heft__alloc_zero(ctx, count, sizeof *f->stays);
    f->place = heft__alloc(ctx, count * sizeof *f->place);
    f->way = heft__alloc_zero(ctx, f->ckpt->file_count, sizeof *f->way);
    f->used = heft__alloc_zero(ctx, f->ckpt->file_count, sizeof *f->used);
    for (size_t i = 0; f->place && i < count; i++) {
        f->place[i] = NO_PLACE;
    }
    return f->data && f->fresh && f->mapped && f->stays && f->place && f->way && f->used
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
    heft__pieces_fini(&f->pieces);
    heft__free(ctx, f->data, count * sizeof *f->data);
    heft__free(ctx, f->fresh, count * sizeof *f->fresh);
    heft__free(ctx, f->mapped, count * sizeof *f->mapped);
    heft__free(ctx, f->stays, count * sizeof *f->stays);
    heft__free(ctx, f->place, count * sizeof *f->place);
    heft__free(ctx, f->way, f->ckpt->file_count * sizeof *f->way);
    heft__free(ctx, f->used, f->ckpt->file_count * sizeof *f->used);
}

/* Files that changed since they were opened have given bytes of both versions, or bytes that their
 * headers do not describe. */
static heft_status check_sources(const struct fill *f, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < f->ckpt->file_count && status == HEFT_OK; i++) {
        if (f->used[i]) {
            status = heft__input_unchanged(f->ckpt->files[i].file->source, err);
        }
    }
    return status;
}

/* Read everything, and bind it when all went well. */
static heft_status do_work(struct fill *f, size_t threads, heft__fill_counts *counts,
                           heft_error *err)
{
    heft_storage *copy = NULL;
    heft_status status = f->segment_bytes > 0 ? open_copy(f, counts, err) : HEFT_OK;
    if (status == HEFT_OK && f->segment && !counts->joined && f->options->may_build) {
        status = f->options->may_build(f->options->may_build_user, f->segment_bytes, err);
    }
    if (status == HEFT_OK) {
        status = heft__parallel_on(f->model->ctx, threads, f->pieces.count, fill_piece, f, err);
    }
    if (status == HEFT_OK && f->pieces.count > 0) { /* others may have done all of it */
        status =
            heft__tell_progress(f->model->ctx, "reading", f->pieces.bytes, f->pieces.bytes, err);
    }
    if (status == HEFT_OK) {
        status = check_sources(f, err);
    }
    if (status == HEFT_OK && f->segment) {
        status = finish_copy(f, &copy, err);
        counts->unshared = status == HEFT_UNSUPPORTED;
    }
    if (status == HEFT_OK) {
        bind_copy(f, copy);
        bind_all(f);
    }
    heft_storage_unref(copy);
    return status;
}

heft_status heft__fill(heft_model *model, const heft_checkpoint *ckpt, const heft__match *match,
                       const heft__fill_options *options, heft__fill_counts *counts,
                       heft_error *err)
{
    struct fill f = {
        .model = model, .ckpt = ckpt, .match = match, .options = options, .caller = pthread_self()};
    heft__pieces_init(&f.pieces, ckpt);
    heft_status status = make_arrays(&f, err);
    if (status == HEFT_OK) {
        status = plan(&f, counts, err);
    }
    const size_t threads = heft__reading_threads(model->ctx, counts->direct);
    counts->staging_bytes = heft__pieces_staging(&f.pieces, threads);
    if (status == HEFT_OK && !options->count) {
        status = do_work(&f, threads, counts, err);
    }
    heft__segment_close(f.segment);
    free_arrays(&f);
    return status;
}

/* ---- touching -------------------------------------------------------------------------------- */
struct range { /* of a file, or of memory that is shared, to be brought in */
    size_t tensor;
    const uint8_t *memory; /* NULL: of the tensor's file */
    bool private;          /* through the file's private mapping */
    uint64_t offset, length;
};

struct touching {
    const heft_checkpoint *ckpt;
    heft_ctx *ctx;
    struct range *ranges;
    size_t count, cap;
    pthread_t caller; /* the only thread that reports progress */
    _Atomic uint64_t done;
    uint64_t total;
};

static heft_status touch_range(void *user, size_t i, heft_error *err)
{
    struct touching *t = user;
    const struct range *range = &t->ranges[i];
    heft_status status = HEFT_OK;
    if (range->memory) {
        (void)heft__touch_memory(range->memory + range->offset, (size_t)range->length);
    } else {
        heft__input *source = heft__file_of(t->ckpt, range->tensor)->source;
        const uint8_t *base = NULL;
        uint8_t *private = NULL;
        status = range->private ? heft__input_map_private(source, &private, err)
                                : heft__input_map(source, &base, err);
        if (status == HEFT_OK) {
            status = heft__input_touch_at(source, range->private ? private : base, range->offset,
                                          range->length, err);
        }
    }
    heft__add_item(status, err, t->ckpt->infos[range->tensor].name);
    const uint64_t done = atomic_fetch_add(&t->done, range->length) + range->length;
    return status == HEFT_OK && pthread_equal(pthread_self(), t->caller)
               ? heft__tell_progress(t->ctx, "touching", done, t->total, err)
               : status;
}

static heft_status add_ranges(struct touching *t, struct range whole, heft_error *err)
{
    for (uint64_t at = 0; at < whole.length; at += HEFT__READ_BYTES) {
        if (!heft__array_reserve(t->ctx, (void **)&t->ranges, t->count, &t->cap,
                                 sizeof *t->ranges)) {
            return heft__fail_nomem(err, sizeof *t->ranges);
        }
        const uint64_t left = whole.length - at;
        struct range *range = &t->ranges[t->count++];
        *range = whole;
        range->offset += at;
        range->length = left < HEFT__READ_BYTES ? left : HEFT__READ_BYTES;
    }
    t->total += whole.length;
    return HEFT_OK;
}

heft_status heft__fill_touch(const heft_model *model, const heft_checkpoint *ckpt,
                             const heft__match *match, heft_error *err)
{
    struct touching t = {.ckpt = ckpt, .ctx = model->ctx, .caller = pthread_self()};
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < model->count && status == HEFT_OK; i++) {
        const heft__binding *binding = &model->bindings[i];
        struct range range = {.tensor = match->source[i],
                              .length = model->parameters[i].size_bytes};
        if (range.tensor == HEFT__NO_TENSOR) {
            continue;
        }
        if (model->parameters[i].state == HEFT_PARAMETER_MAPPED) {
            const heft_tensor_info *info = &ckpt->infos[range.tensor];
            range.offset = info->offset + match->first[i] * (heft_dtype_bits(info->dtype) / 8);
            range.private = heft_storage_flags(binding->storage) & HEFT_TENSOR_WRITABLE;
            status = add_ranges(&t, range, err);
        } else if (model->parameters[i].state == HEFT_PARAMETER_SHARED) {
            range.memory = heft_storage_data(binding->storage);
            range.offset = binding->byte_offset;
            status = add_ranges(&t, range, err);
        }
    }
    if (status == HEFT_OK) {
        status = heft__parallel_on(model->ctx, heft__reading_threads(model->ctx, true), t.count,
                                   touch_range, &t, err);
    }
    if (status == HEFT_OK && t.count > 0) {
        status = heft__tell_progress(t.ctx, "touching", t.total, t.total, err);
    }
    heft__free(model->ctx, t.ranges, t.cap * sizeof *t.ranges);
    return status;
}
