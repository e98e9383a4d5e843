/* slice.c - reading parts of tensors, cast on the way, many at once.
 *
 * A slice of a tensor is a strided view of the same storage, whatever the tensor itself is:
 *
 *   start' = start + sum of start[d] * stride[d]     shape'[d] = stop[d] - start[d]     strides as ever
 *
 * Its dimensions are joined where one is contiguous with the next, and split into boxes of at most 16 MiB,
 * which threads read in the order of the files. A tensor reader does the reading: it gathers strided
 * boxes through a small window, passes gaps over, swaps bytes and turns signs. A deflated tensor has
 * no offsets: it is streamed from its beginning, and what the slice wants is picked out.
 * Elements below a byte are read as bytes, so a slice of them must begin and end with whole ones.
 *
 * Memory: for each thread a window and a cast's buffer, 256 KiB each. The exception is a strided
 * tensor in a deflated storage, whose reader holds the storage; such ones are read one by one. */
#include "checkpoint/checkpoint.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define BOX_BYTES ((uint64_t)16 << 20)    /* of one item of work, as stored */
#define SCRATCH_BYTES ((size_t)256 << 10) /* of a cast: stays in the second-level cache */
#define RANK_MOST 64                      /* after joining */

struct dim {
    uint64_t size, step; /* elements */
};

struct part { /* a request, as it is read */
    const heft_read_request *request;
    const heft__file *file;
    size_t file_index;
    const heft__file_tensor *entry;
    heft_dtype from, to;
    size_t elem_bytes; /* as stored; 1 where elements are smaller than a byte */
    uint64_t start; /* byte of the first element in the storage; streamed: among the tensor's own */
    struct dim *dims; /* [rank] outermost first, none of size 1; none if the slice is one element */
    uint32_t rank;
    uint32_t depth; /* the dimension that is split into chunks; those before it go index by index */
    uint64_t chunk, chunks;
    uint64_t inner;    /* elements of one index at that depth */
    uint64_t bytes;    /* of the slice, as stored */
    size_t first_item; /* number of its first box in the whole job */
    size_t items;
    bool streamed; /* deflated, or computed */
    bool heavy;    /* its reader holds the storage */
};

struct job {
    const heft_checkpoint *ckpt;
    heft__arena arena;
    struct part *parts; /* [count] in the order of the files, heavy ones last */
    size_t count, light_items, items;
    pthread_t caller; /* the only thread that reports progress */
    _Atomic uint64_t done_bytes;
    uint64_t total_bytes;
};

/* ---- what is asked for ----------------------------------------------------------------------- */
static uint64_t first_of(const heft_read_request *request, uint32_t d)
{
    return request->start ? request->start[d] : 0;
}

static uint64_t end_of(const heft_read_request *request, const heft__file_tensor *entry, uint32_t d)
{
    return request->stop ? request->stop[d] : entry->shape[d];
}

/* Whether the slice lies in the tensor; *elems is filled. */
static heft_status check_range(const heft_read_request *request, const heft__file_tensor *entry,
                               uint64_t *elems, heft_error *err)
{
    if ((request->start || request->stop) && request->rank != entry->rank) {
        return heft__fail(err, HEFT_INVALID_ARG, "the slice has rank %u, the tensor has rank %u",
                          request->rank, entry->rank);
    }
    *elems = 1;
    for (uint32_t d = 0; d < entry->rank; d++) {
        const unsigned long long first = first_of(request, d), end = end_of(request, entry, d);
        if (end > entry->shape[d]) {
            return heft__fail(err, HEFT_INVALID_ARG,
                              "dimension %u: the slice stops at %llu, the tensor has %llu", d, end,
                              (unsigned long long)entry->shape[d]);
        }
        if (first > end) {
            return heft__fail(err, HEFT_INVALID_ARG,
                              "dimension %u: the slice starts at %llu and stops at %llu", d, first,
                              end);
        }
    }
    for (uint32_t d = 0; d < entry->rank; d++) { /* at most the tensor's, or 0 */
        const uint64_t size = end_of(request, entry, d) - first_of(request, d);
        *elems = size == 0 || *elems == 0 ? 0 : *elems * size;
    }
    return HEFT_OK;
}

static heft_status check_memory(const heft_read_request *request, heft_dtype to, uint64_t elems,
                                heft_error *err)
{
    uint64_t needed = 0;
    size_t size = 0;
    if (!heft__dtype_bytes(to, elems, &needed)) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "a slice of %llu elements of %s does not end on a byte boundary",
                          (unsigned long long)elems, heft_dtype_name(to));
    }
    if (request->cap < needed || !heft__to_size(needed, &size)) {
        return heft__fail(err, HEFT_INVALID_ARG, "the buffer has %llu bytes, %llu are needed",
                          (unsigned long long)request->cap, (unsigned long long)needed);
    }
    return needed > 0 && !request->dst ? heft__fail(err, HEFT_INVALID_ARG, "destination is NULL")
                                       : HEFT_OK;
}

/* ---- the view -------------------------------------------------------------------------------- */
/* Add a dimension of the slice: none for size 1, joined with the one before where that is a run of it.
 * LIMIT beyond RANK_MOST. */
static heft_status add_dim(struct part *part, uint64_t size, uint64_t step, heft_error *err)
{
    struct dim *last = part->rank ? &part->dims[part->rank - 1] : NULL;
    uint64_t reach;
    if (size == 1) {
        return HEFT_OK;
    }
    if (last && heft__mul_u64(step, size, &reach) && last->step == reach) {
        last->size *= size;
        last->step = step;
        return HEFT_OK;
    }
    if (part->rank == RANK_MOST) {
        return heft__fail(err, HEFT_LIMIT,
                          "the slice has more than %d dimensions that are not contiguous",
                          RANK_MOST);
    }
    part->dims[part->rank++] = (struct dim){size, step};
    return HEFT_OK;
}

/* Elements of a byte or more: dimension by dimension, by the storage's strides or row by row. */
static heft_status view_elements(struct part *part, const int64_t *strides, heft_error *err)
{
    const heft_read_request *request = part->request;
    const heft__file_tensor *entry = part->entry;
    heft_status status = HEFT_OK;
    uint64_t at = 0, step = 1;
    for (uint32_t d = entry->rank; d-- > 0;) {
        at += first_of(request, d) * (strides ? (uint64_t)strides[d] : step);
        step *= entry->shape[d]; /* the tensor has elements, so this is at most their number */
    }
    part->start += at * part->elem_bytes;
    for (uint32_t d = 0; d < entry->rank && status == HEFT_OK; d++) {
        step /= entry->shape[d];
        status = add_dim(part, end_of(request, entry, d) - first_of(request, d),
                         strides ? (uint64_t)strides[d] : step, err);
    }
    return status;
}

/* Sub-byte elements, which are stored row by row: everything after the last dimension that is split is
 * one run of bytes. Whatever does not begin or end with a byte is refused. */
static heft_status view_bytes(struct part *part, heft_error *err)
{
    const heft_read_request *request = part->request;
    const heft__file_tensor *entry = part->entry;
    heft_status status = HEFT_OK;
    uint64_t step = 1;
    uint32_t cut =
        entry->rank; /* dimensions before it are indexed, it and those after it are contiguous */
    while (cut > 0 && first_of(request, cut - 1) == 0 &&
           end_of(request, entry, cut - 1) == entry->shape[cut - 1]) {
        cut--;
    }
    cut -= cut > 0;
    for (uint32_t d = 0; d < entry->rank; d++) {
        step *= entry->shape[d];
    }
    for (uint32_t d = 0; d <= cut && d < entry->rank && status == HEFT_OK; d++) {
        const uint64_t first = first_of(request, d), size = end_of(request, entry, d) - first;
        uint64_t before = 0, bytes = 0;
        step /= entry->shape[d]; /* elements of one index */
        const bool run = d == cut;
        if (!heft__dtype_bytes(part->from, first * step, &before) ||
            ((run || size > 1) &&
             !heft__dtype_bytes(part->from, run ? size * step : step, &bytes))) {
            return heft__fail(
                err, HEFT_INVALID_ARG,
                "dimension %u: %llu to %llu of %s does not begin and end on byte boundaries", d,
                (unsigned long long)first, (unsigned long long)(first + size),
                heft_dtype_name(part->from));
        }
        part->start += before;
        status = run ? add_dim(part, bytes, 1, err) : add_dim(part, size, bytes, err);
    }
    return status;
}

/* ---- boxes ----------------------------------------------------------------------------------- */
/* Cut the slice into boxes: whole indices of one dimension, as many as fit. */
static void cut_boxes(struct part *part, uint64_t elems)
{
    const uint64_t room = BOX_BYTES / part->elem_bytes;
    uint64_t outer = 1;
    part->inner = elems;
    for (part->depth = 0; part->depth < part->rank; part->depth++) {
        const uint64_t size = part->dims[part->depth].size;
        part->inner /= size;
        if (part->inner <= room) {
            break;
        }
        outer *= size;
    }
    if (part->streamed || part->rank == 0) { /* one element, or one box */
        part->items = 1;
        return;
    }
    const uint64_t size = part->dims[part->depth].size;
    part->chunk = room / part->inner < size ? room / part->inner : size;
    part->chunks = (size + part->chunk - 1) / part->chunk;
    part->items = (size_t)(outer * part->chunks); /* each but the last of a row is over half full */
}

static heft_status plan_part(struct job *job, const heft_read_request *request, struct part *part,
                             heft_error *err)
{
    const heft_checkpoint *ckpt = job->ckpt;
    if (request->tensor >= ckpt->count) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "tensor index %zu is out of range, the checkpoint has %zu",
                          request->tensor, ckpt->count);
    }
    const heft__file_tensor *entry = ckpt->entries[request->tensor];
    const unsigned bits = heft_dtype_bits(entry->dtype);
    uint64_t elems = 0;
    *part = (struct part){
        .request = request,
        .file = heft__file_of(ckpt, request->tensor),
        .file_index = ckpt->infos[request->tensor].file_index,
        .entry = entry,
        .from = entry->dtype,
        .to = request->dtype == HEFT_DTYPE_NONE ? entry->dtype : request->dtype,
        .elem_bytes = bits % 8 ? 1 : bits / 8,
    };
    part->streamed = part->file->storages[entry->storage].deflated || entry->decoded;
    part->heavy = part->streamed && entry->strides;
    heft_status status = heft__cast_check(part->from, part->to, HEFT_INVALID_ARG, err);
    if (status == HEFT_OK) {
        status = check_range(request, entry, &elems, err);
    }
    if (status == HEFT_OK) {
        status = check_memory(request, part->to, elems, err);
    }
    if (status == HEFT_OK && elems > 0) {
        part->dims = heft__arena_array(&job->arena, entry->rank, sizeof *part->dims);
        part->start = part->streamed ? 0 : entry->start;
        status = !part->dims ? heft__fail_nomem(err, entry->rank * sizeof *part->dims)
                 : bits % 8  ? view_bytes(part, err)
                             : view_elements(part, part->streamed ? NULL : entry->strides, err);
    }
    if (status == HEFT_OK && elems > 0) {
        elems = 1; /* bytes, where elements are smaller */
        for (uint32_t d = 0; d < part->rank; d++) {
            elems *= part->dims[d].size;
        }
        cut_boxes(part, elems);
        part->bytes = elems * part->elem_bytes;
        job->total_bytes += part->bytes;
    }
    return heft__checkpoint_blame(ckpt, request->tensor, status, err);
}

/* ---- reading a box --------------------------------------------------------------------------- */
/* Where elements go: in rising order, cast if that is asked for. */
struct sink {
    const struct part *part;
    uint8_t *dst;
    size_t to_bytes;  /* of one element at dst */
    uint8_t *scratch; /* of a cast, else NULL */
};

static heft_status sink_begin(struct sink *sink, heft_ctx *ctx, const struct part *part,
                              uint64_t first, heft_error *err)
{
    const bool cast = part->from != part->to;
    *sink = (struct sink){.part = part,
                          .to_bytes = cast ? heft_dtype_bits(part->to) / 8 : part->elem_bytes,
                          .scratch = cast ? heft__alloc(ctx, SCRATCH_BYTES) : NULL};
    sink->dst = (uint8_t *)part->request->dst + (size_t)first * sink->to_bytes;
    return cast && !sink->scratch ? heft__fail_nomem(err, SCRATCH_BYTES) : HEFT_OK;
}

/* Where the next elements may be read to, and how many of them at most. */
static uint8_t *sink_room(const struct sink *sink, uint64_t elems, size_t *bytes)
{
    const size_t elem = sink->part->elem_bytes, most = SCRATCH_BYTES / elem;
    const size_t count = sink->scratch && elems > most ? most : (size_t)elems;
    *bytes = count * elem;
    return sink->scratch ? sink->scratch : sink->dst;
}

static void sink_take(struct sink *sink, size_t bytes)
{
    const size_t elems = bytes / sink->part->elem_bytes;
    if (sink->scratch) {
        heft__cast(sink->part->to, sink->dst, sink->part->from, sink->scratch, elems);
    }
    sink->dst += elems * sink->to_bytes;
}

/* The box as a tensor of its own; shape and strides have room for RANK_MOST. *first is its first
 * element in the slice, *elems their number. */
static heft__file_tensor box_view(const struct part *part, size_t number, uint64_t *shape,
                                  int64_t *strides, uint64_t *first, uint64_t *elems)
{
    heft__file_tensor view = *part->entry;
    uint64_t at = 0, outer = 0;
    view.rank = 0;
    *elems = 1;
    if (part->rank > 0) {
        const uint64_t chunk = number % part->chunks * part->chunk;
        outer = number / part->chunks;
        *first = (outer * part->dims[part->depth].size + chunk) * part->inner;
        for (uint32_t d = part->depth; d-- > 0; outer /= part->dims[d].size) {
            at += outer % part->dims[d].size * part->dims[d].step;
        }
        at += chunk * part->dims[part->depth].step;
        for (uint32_t d = part->depth; d < part->rank; d++) {
            const uint64_t size = part->dims[d].size, left = size - (d == part->depth ? chunk : 0);
            shape[view.rank] = d == part->depth && part->chunk < left ? part->chunk : left;
            strides[view.rank] = (int64_t)part->dims[d].step;
            *elems *= shape[view.rank++];
        }
    } else {
        *first = 0;
    }
    const bool plain = view.rank == 0 || (view.rank == 1 && strides[0] == 1);
    view.dtype = heft_dtype_bits(part->from) % 8 ? HEFT_DTYPE_U8 : part->from;
    view.shape = shape;
    view.strides = plain ? NULL : strides;
    view.start = part->start + at * part->elem_bytes;
    view.size_bytes = *elems * part->elem_bytes;
    return view;
}

static heft_status read_box(heft_ctx *ctx, const struct part *part, size_t number, uint64_t *read,
                            heft_error *err)
{
    uint64_t shape[RANK_MOST], first, elems;
    int64_t strides[RANK_MOST];
    const heft__file_tensor view = box_view(part, number, shape, strides, &first, &elems);
    heft__tensor_reader *reader = NULL;
    struct sink sink;
    heft_status status = sink_begin(&sink, ctx, part, first, err);
    *read = view.size_bytes;
    if (status == HEFT_OK) {
        status = heft__tensor_reader_new(ctx, part->file, &view, &reader, err);
    }
    while (elems > 0 && status == HEFT_OK) {
        size_t bytes;
        uint8_t *to = sink_room(&sink, elems, &bytes);
        status = heft__tensor_reader_fill(reader, to, bytes, err);
        if (status == HEFT_OK) {
            sink_take(&sink, bytes);
            elems -= bytes / part->elem_bytes;
        }
    }
    heft__tensor_reader_free(reader);
    heft__free(ctx, sink.scratch, SCRATCH_BYTES);
    return status;
}

/* ---- reading a deflated tensor's slice -------------------------------------------------------- */
struct stream {
    heft__tensor_reader *reader;
    uint8_t *window;     /* SCRATCH_BYTES */
    uint64_t begin, end; /* what the window holds of the tensor */
};

/* Copy bytes of the tensor; each call begins at or after the end of the previous one. */
static heft_status stream_take(struct stream *stream, uint64_t at, uint8_t *dst, size_t length,
                               heft_error *err)
{
    while (length > 0) {
        if (at < stream->end) {
            const uint64_t there = stream->end - at;
            const size_t piece = there < length ? (size_t)there : length;
            memcpy(dst, stream->window + (size_t)(at - stream->begin), piece);
            dst += piece;
            at += piece;
            length -= piece;
            continue;
        }
        size_t got = 0;
        heft_status status =
            heft__tensor_reader_next(stream->reader, stream->window, SCRATCH_BYTES, &got, err);
        if (status == HEFT_OK && got == 0) {
            status = heft__fail(err, HEFT_FORMAT, "the tensor's data ends early");
        }
        if (status != HEFT_OK) {
            return status;
        }
        stream->begin = stream->end;
        stream->end += got;
    }
    return HEFT_OK;
}

/* Go through the slice run by run: the last dimension where its elements lie together. */
static heft_status pick_runs(const struct part *part, struct stream *stream, struct sink *sink,
                             heft_error *err)
{
    const struct dim *dims = part->dims;
    const bool together = part->rank > 0 && dims[part->rank - 1].step == 1;
    const uint32_t outer = part->rank - together;
    const uint64_t run = together ? dims[outer].size : 1;
    uint64_t index[RANK_MOST] = {0}, at = 0;
    for (;;) {
        for (uint64_t done = 0; done < run;) {
            size_t bytes;
            uint8_t *to = sink_room(sink, run - done, &bytes);
            heft_status status =
                stream_take(stream, part->start + (at + done) * part->elem_bytes, to, bytes, err);
            if (status != HEFT_OK) {
                return status;
            }
            sink_take(sink, bytes);
            done += bytes / part->elem_bytes;
        }
        uint32_t d = outer;
        for (; d > 0; d--) {
            at += dims[d - 1].step;
            if (++index[d - 1] < dims[d - 1].size) {
                break;
            }
            at -= dims[d - 1].step * dims[d - 1].size;
            index[d - 1] = 0;
        }
        if (d == 0) {
            return HEFT_OK;
        }
    }
}

static heft_status read_stream(heft_ctx *ctx, const struct part *part, heft_error *err)
{
    struct stream stream = {.window = heft__alloc(ctx, SCRATCH_BYTES)};
    struct sink sink = {0};
    heft_status status =
        stream.window ? sink_begin(&sink, ctx, part, 0, err) : heft__fail_nomem(err, SCRATCH_BYTES);
    if (status == HEFT_OK) {
        status = heft__tensor_reader_new(ctx, part->file, part->entry, &stream.reader, err);
    }
    if (status == HEFT_OK) {
        status = pick_runs(part, &stream, &sink, err);
    }
    heft__tensor_reader_free(stream.reader);
    heft__free(ctx, sink.scratch, SCRATCH_BYTES);
    heft__free(ctx, stream.window, SCRATCH_BYTES);
    return status;
}

/* ---- the job --------------------------------------------------------------------------------- */
/* In the order of the files, so that a disk's head and the kernel's reading ahead go one way. */
static int compare_parts(const void *a, const void *b)
{
    const struct part *left = a, *right = b;
    const heft__file_storage *one = &left->file->storages[left->entry->storage],
                             *two = &right->file->storages[right->entry->storage];
    const uint64_t here = one->offset + (left->streamed ? 0 : left->start),
                   there = two->offset + (right->streamed ? 0 : right->start);
    const heft_read_request *first = left->request, *second = right->request;
    if (left->heavy != right->heavy) {
        return left->heavy ? 1 : -1;
    }
    if (left->file_index != right->file_index) {
        return left->file_index < right->file_index ? -1 : 1;
    }
    if (here != there) {
        return here < there ? -1 : 1;
    }
    return first < second ? -1 : first > second;
}

static heft_status read_item(void *user, size_t item, heft_error *err)
{
    struct job *job = user;
    size_t low = 0, high = job->count; /* the last part that begins at or before the item */
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        *(job->parts[middle].first_item <= item ? &low : &high) = middle;
    }
    const struct part *part = &job->parts[low];
    heft_ctx *ctx = job->ckpt->ctx;
    uint64_t read = part->bytes;
    heft_status status = part->streamed ? read_stream(ctx, part, err)
                                        : read_box(ctx, part, item - part->first_item, &read, err);
    const uint64_t done = atomic_fetch_add(&job->done_bytes, read) + read;
    if (status == HEFT_OK && pthread_equal(pthread_self(), job->caller)) {
        status = heft__tell_progress(ctx, "reading", done, job->total_bytes, err);
    }
    return heft__checkpoint_blame(job->ckpt, part->request->tensor, status, err);
}

/* Check every request before anything is read, and put those that want bytes in order. */
static heft_status plan_job(struct job *job, const heft_read_request *requests, size_t count,
                            heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        struct part *part = &job->parts[job->count];
        status = plan_part(job, &requests[i], part, err);
        job->count += status == HEFT_OK && part->items > 0;
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (job->count > 1) {
        qsort(job->parts, job->count, sizeof *job->parts, compare_parts);
    }
    for (size_t i = 0; i < job->count; i++) {
        job->parts[i].first_item = job->items;
        job->items += job->parts[i].items;
        job->light_items = job->parts[i].heavy ? job->light_items : job->items;
    }
    return HEFT_OK;
}

heft_status heft_checkpoint_read_many(const heft_checkpoint *ckpt,
                                      const heft_read_request *requests, size_t count,
                                      heft_error *err)
{
    if (!ckpt || (!requests && count > 0)) {
        return heft__fail(err, HEFT_INVALID_ARG, "checkpoint or requests are NULL");
    }
    if (count == 0) {
        return HEFT_OK;
    }
    struct job job = {.ckpt = ckpt, .caller = pthread_self()};
    heft__arena_init(&job.arena, ckpt->ctx);
    job.parts = heft__alloc_zero(ckpt->ctx, count, sizeof *job.parts);
    heft_status status = job.parts ? plan_job(&job, requests, count, err)
                                   : heft__fail_nomem(err, count * sizeof *job.parts);
    if (status == HEFT_OK) {
        status = heft__parallel(ckpt->ctx, job.light_items, read_item, &job, err);
    }
    for (size_t i = job.light_items; i < job.items && status == HEFT_OK; i++) {
        status = read_item(&job, i, err);
    }
    heft__free(ckpt->ctx, job.parts, count * sizeof *job.parts);
    heft__arena_fini(&job.arena);
    return status;
}

heft_status heft_checkpoint_read_slice(const heft_checkpoint *ckpt,
                                       const heft_read_request *request, heft_error *err)
{
    return heft_checkpoint_read_many(ckpt, request, 1, err);
}
