/* writer_commit.c - writing what a heft_writer has collected: which names are one tensor, in which order
 * they go, and where their bytes come from.
 *
 * Files, names, shard boundaries, the index and the transaction are those of every save: write.c.
 * Source: docs/writing.md. */
#include "checkpoint/writing.h"

#include <stdlib.h>

/* What takes a strided tensor in memory for a file, so that it is gathered as one from a file is. */
struct gathering {
    heft__input *input;
    heft__file file;
    heft__file_storage storage;
    heft__file_tensor tensor;
    heft__tensor_reader *reader;
};

struct commit {
    heft_writer *w;
    heft__arena arena;
    size_t *order; /* [w->count] numbers of additions as they are written */
    size_t *first; /* [w->count] by number: the first addition that is the same tensor */
    heft__out_tensor *tensors; /* [count] */
    size_t count;
    heft__warnings warnings;
    const heft__addition *reading; /* a strided tensor */
    uint64_t position;             /* of its next byte */
    struct gathering gathering;
};

/* ---- where the bytes come from --------------------------------------------------------------- */
static heft_status call(const heft__addition *addition, uint64_t at, void *dst, size_t length,
                        size_t *filled, heft_error *err)
{
    heft_error reason = {0};
    heft_status status = addition->fill(addition->user, at, dst, length, filled, &reason);
    if (status == HEFT_OK) {
        return HEFT_OK;
    }
    if ((unsigned)status > HEFT_CANCELLED) { /* none of ours */
        status = HEFT_IO;
    }
    if (!reason.message[0]) {
        return heft__fail(err, status, "its callback failed at byte %llu: %s",
                          (unsigned long long)at, heft_status_text(status));
    }
    if (err) {
        *err = reason;
        err->status = status;
    }
    return status;
}

static heft_status make_bytes(const heft__addition *addition, uint64_t first, void *dst,
                              size_t length, heft_error *err)
{
    for (size_t done = 0; done < length;) {
        size_t filled = 0;
        heft_status status =
            call(addition, first + done, (uint8_t *)dst + done, length - done, &filled, err);
        if (status != HEFT_OK) {
            return status;
        }
        if (filled == 0) {
            return heft__fail(
                err, HEFT_INVALID_ARG, "its callback ended after %llu bytes, its shape needs %llu",
                (unsigned long long)(first + done), (unsigned long long)addition->size_bytes);
        }
        if (filled > length - done) {
            return heft__fail(err, HEFT_INVALID_ARG,
                              "its callback gave %zu bytes, but %zu were requested", filled,
                              length - done);
        }
        done += filled;
    }
    return HEFT_OK;
}

static bool is_mapped(const heft__addition *addition)
{
    return addition->tensor->flags & HEFT_TENSOR_MAPPED;
}

static void stop_gathering(struct commit *c)
{
    heft__tensor_reader_free(c->gathering.reader);
    heft__input_unref(c->gathering.input);
    c->gathering = (struct gathering){0};
    c->reading = NULL;
}

static heft_status start_gathering(struct commit *c, const heft__addition *addition,
                                   heft_error *err)
{
    struct gathering *g = &c->gathering;
    const heft_tensor *tensor = addition->tensor;
    stop_gathering(c);
    if (is_mapped(addition) && !heft__touch_memory(tensor->data, (size_t)addition->extent_bytes)) {
        return heft__fail(err, HEFT_IO, "its mapped file has shrunk or cannot be read");
    }
    heft_status status = heft__input_from_bytes(c->w->ctx, addition->name, tensor->data,
                                                (size_t)addition->extent_bytes, &g->input, err);
    if (status != HEFT_OK) {
        return status;
    }
    g->storage = (heft__file_storage){.stored_bytes = addition->extent_bytes,
                                      .bytes = addition->extent_bytes};
    g->tensor = (heft__file_tensor){.name = addition->name,
                                    .dtype = addition->dtype,
                                    .rank = addition->rank,
                                    .shape = addition->shape,
                                    .strides = tensor->strides,
                                    .size_bytes = addition->size_bytes};
    g->file = (heft__file){.source = g->input,
                           .storages = &g->storage,
                           .storage_count = 1,
                           .tensors = &g->tensor,
                           .tensor_count = 1};
    c->reading = addition;
    c->position = 0;
    return heft__tensor_reader_new(c->w->ctx, &g->file, &g->tensor, &g->reader, err);
}

static heft_status gather(struct commit *c, const heft__addition *addition, uint64_t first,
                          void *dst, size_t length, heft_error *err)
{
    heft_status status = c->reading == addition && c->position == first
                             ? HEFT_OK
                             : start_gathering(c, addition, err);
    if (status == HEFT_OK) {
        status = heft__tensor_reader_fill(c->gathering.reader, dst, length, err);
        c->position += length;
    }
    return status;
}

static heft_status read_piece(void *user, const heft__out_tensor *out, uint64_t first, void *dst,
                              size_t length, heft_error *err)
{
    struct commit *c = user;
    const heft__addition *addition = out->source;
    heft_status status = HEFT_OK;
    if (addition->fill) {
        status = make_bytes(addition, first, dst, length, err);
    } else if (!addition->plain) {
        status = gather(c, addition, first, dst, length, err);
    } else if (is_mapped(addition)) {
        status =
            heft__copy_mapped(dst, (const uint8_t *)addition->tensor->data + first, length, err);
    } else {
        memcpy(dst, (const uint8_t *)addition->tensor->data + first, length);
    }
    return heft__add_item(status, err, addition->name);
}

/* ---- which names are one tensor --------------------------------------------------------------- */
/* What tells one tensor in memory from another; views are compared by the hash of shape and strides
 * first. */
struct view_key {
    uint64_t address, bytes, dtype, shape, strides; /* the last two: 0 where it is row by row */
};

static struct view_key key_of(const heft__addition *addition)
{
    const size_t bytes = addition->rank * sizeof *addition->shape;
    return (struct view_key){
        .address = (uintptr_t)addition->tensor->data,
        .bytes = addition->size_bytes,
        .dtype = (uint64_t)addition->dtype,
        .shape = addition->plain ? 0 : heft__stable_hash((const char *)addition->shape, bytes),
        .strides =
            addition->plain ? 0 : heft__stable_hash((const char *)addition->tensor->strides, bytes),
    };
}

static bool same_view(const heft__addition *a, const heft__addition *b)
{
    return a->plain ||
           (heft__shape_equal(a->shape, a->rank, b->shape, b->rank) &&
            memcmp(a->tensor->strides, b->tensor->strides, a->rank * sizeof(int64_t)) == 0);
}

static bool has_bytes(const heft__addition *addition)
{
    return addition->tensor && addition->size_bytes > 0;
}

/* Where a format can have one name of a tensor only: the one that others read. */
static heft_status choose_names(struct commit *c, heft_error *err)
{
    const heft_writer *w = c->w;
    const char **names = heft__arena_array(&c->arena, w->count, sizeof *names);
    if (!names) {
        return heft__fail_nomem(err, w->count * sizeof *names);
    }
    for (size_t i = 0; i < w->count; i++) {
        const heft__addition *own = &w->list[i], *first = &w->list[c->first[i]];
        names[i] = own->name;
        c->first[i] =
            heft__shape_equal(own->shape, own->rank, first->shape, first->rank) ? c->first[i] : i;
    }
    return heft__aliases_choose(w->ctx, names, w->count, c->first, err);
}

/* Fill `first`: in the order of writing. */
static heft_status find_ties(struct commit *c, heft_error *err)
{
    const heft_writer *w = c->w;
    struct view_key *keys = heft__arena_array(&c->arena, w->count, sizeof *keys);
    heft__map seen;
    heft_status status = keys ? HEFT_OK : heft__fail_nomem(err, w->count * sizeof *keys);
    heft__map_init(&seen, w->ctx);
    for (size_t k = 0; k < w->count && status == HEFT_OK; k++) {
        const size_t i = c->order[k];
        const heft__addition *addition = &w->list[i];
        size_t found = HEFT__MAP_NONE;
        c->first[i] = i;
        if (!has_bytes(addition)) {
            continue;
        }
        keys[k] = key_of(addition);
        if (!heft__map_put(&seen, (const char *)&keys[k], sizeof keys[k], i, &found)) {
            status = heft__fail_nomem(err, sizeof keys[k]);
        } else if (found != HEFT__MAP_NONE && same_view(&w->list[found], addition)) {
            c->first[i] = found;
        }
    }
    heft__map_fini(&seen);
    return status;
}

static int by_address(const void *left, const void *right)
{
    const heft__addition *a = *(const heft__addition *const *)left,
                         *b = *(const heft__addition *const *)right;
    const uintptr_t x = (uintptr_t)a->tensor->data, y = (uintptr_t)b->tensor->data;
    return x != y ? (x > y) - (x < y) : (a > b) - (a < b);
}

/* Whether any two tensors have bytes in common. */
static heft_status refuse_overlaps(struct commit *c, heft_error *err)
{
    const heft_writer *w = c->w;
    const heft__addition **list = heft__arena_array(&c->arena, w->count, sizeof *list);
    size_t count = 0;
    if (!list) {
        return heft__fail_nomem(err, w->count * sizeof *list);
    }
    for (size_t i = 0; i < w->count; i++) {
        if (has_bytes(&w->list[i])) {
            list[count++] = &w->list[i];
        }
    }
    if (count > 0) {
        qsort(list, count, sizeof *list, by_address);
    }
    const heft__addition *reach = NULL; /* the one that reaches furthest so far */
    for (size_t i = 0; i < count; i++) {
        const uintptr_t begin = (uintptr_t)list[i]->tensor->data;
        if (reach && begin < (uintptr_t)reach->tensor->data + reach->extent_bytes) {
            return heft__add_item(heft__fail(err, HEFT_INVALID_ARG,
                                             "shares memory with '%.200s', which %s cannot express",
                                             reach->name, w->format->noun),
                                  err, list[i]->name);
        }
        if (!reach ||
            begin + list[i]->extent_bytes > (uintptr_t)reach->tensor->data + reach->extent_bytes) {
            reach = list[i];
        }
    }
    return HEFT_OK;
}

/* ---- what is written, in which order ----------------------------------------------------------- */
struct ranked {
    const char *name;
    size_t number;
};

static int by_name(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;
    const int order = heft__compare_natural(a->name, b->name);
    return order ? order : (a->number > b->number) - (a->number < b->number);
}

static heft_status put_in_order(struct commit *c, heft_error *err)
{
    const heft_writer *w = c->w;
    struct ranked *ranked = heft__arena_array(&c->arena, w->count, sizeof *ranked);
    c->order = heft__arena_array(&c->arena, w->count, sizeof *c->order);
    c->first = heft__arena_array(&c->arena, w->count, sizeof *c->first);
    c->tensors = heft__arena_array(&c->arena, w->count, sizeof *c->tensors);
    if (!ranked || !c->order || !c->first || !c->tensors) {
        return heft__fail_nomem(err, w->count * sizeof *c->tensors);
    }
    for (size_t i = 0; i < w->count; i++) {
        ranked[i] = (struct ranked){w->list[i].name, i};
    }
    if (w->options.natural_order && w->count > 0) {
        qsort(ranked, w->count, sizeof *ranked, by_name);
    }
    for (size_t i = 0; i < w->count; i++) {
        c->order[i] = ranked[i].number;
    }
    return HEFT_OK;
}

/* The storage of addition i, by number; false where it is left out. */
static bool choose_storage(struct commit *c, size_t i, size_t *storage, heft_error *err,
                           heft_status *status)
{
    const heft_writer *w = c->w;
    const heft__addition *own = &w->list[i], *first = &w->list[c->first[i]];
    const bool share = w->format->ties == HEFT__TIES_SHARE;
    *storage = w->options.ties == HEFT_TIES_COPY || !share ? i : c->first[i];
    if (own == first || share || w->format->ties == HEFT__TIES_COPY ||
        w->options.ties != HEFT_TIES_DROP) {
        return true;
    }
    if (!heft__warn(&c->warnings, "'%s' is an alias of '%s' and is omitted", own->name,
                    first->name)) {
        *status = heft__fail_nomem(err, strlen(own->name));
    }
    return false;
}

static heft_status list_tensors(struct commit *c, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t k = 0; k < c->w->count && status == HEFT_OK; k++) {
        heft__addition *addition = &c->w->list[c->order[k]];
        size_t storage;
        if (choose_storage(c, c->order[k], &storage, err, &status)) {
            c->tensors[c->count++] = (heft__out_tensor){.name = addition->name,
                                                        .dtype = addition->dtype,
                                                        .rank = addition->rank,
                                                        .shape = addition->shape,
                                                        .size_bytes = addition->size_bytes,
                                                        .storage = storage,
                                                        .source = addition};
        }
    }
    return status;
}

static heft_status plan(struct commit *c, heft_error *err)
{
    const heft_writer *w = c->w;
    heft_status status = put_in_order(c, err);
    if (status == HEFT_OK && w->format->ties == HEFT__TIES_DROP &&
        w->options.ties == HEFT_TIES_REFUSE) {
        status = refuse_overlaps(c, err);
    }
    if (status == HEFT_OK) {
        status = find_ties(c, err);
    }
    if (status == HEFT_OK && w->format->ties == HEFT__TIES_DROP &&
        w->options.ties == HEFT_TIES_DROP) {
        status = choose_names(c, err);
    }
    return status == HEFT_OK ? list_tensors(c, err) : status;
}

static heft_status write_out(struct commit *c, heft_write_report **report, heft_error *err)
{
    const heft_writer_options *options = &c->w->options;
    heft__write_job job = {
        .dst = c->w->folder,
        .single = c->w->single,
        .format = c->w->format,
        .variant = options->variant,
        .max_shard_bytes = options->max_shard_bytes,
        .force = options->force,
        .wait = options->wait,
        .dry_run = options->dry_run,
        .tensors = c->tensors,
        .count = c->count,
        .total_parameters = options->total_parameters,
        .modules = options->modules,
        .module_count = options->module_count,
        .module_versions = options->module_versions,
        .sides = c->w->sides,
        .side_count = c->w->side_count,
        .keep_side_files = options->keep_side_files,
        .read = read_piece,
        .user = c,
        .warnings = c->warnings.lines,
        .warning_count = c->warnings.count,
    };
    job.metadata = heft__metadata_list(&c->w->metadata, &job.metadata_count);
    if (!job.metadata) {
        return heft__fail_nomem(err, 0);
    }
    if (c->w->single && heft__path_is_folder(c->w->dst)) {
        return heft__fail(err, HEFT_EXISTS, "destination is a folder, expected a file");
    }
    if (c->w->single && heft__path_is_special(c->w->dst)) {
        return heft__fail(err, HEFT_EXISTS, "destination is a device or pipe, expected a file");
    }
    return heft__write_checkpoint(c->w->ctx, &job, report, err);
}

heft_status heft_writer_commit(heft_writer *writer, heft_write_report **report, heft_error *err)
{
    if (!writer) {
        return heft__fail(err, HEFT_INVALID_ARG, "writer is NULL");
    }
    if (writer->committed) {
        return heft__fail(err, HEFT_INVALID_ARG, "the writer has already been committed");
    }
    struct commit c = {.w = writer};
    heft__arena_init(&c.arena, writer->ctx);
    heft__warnings_init(&c.warnings, &c.arena);
    heft_status status = plan(&c, err);
    if (status == HEFT_OK) {
        status = write_out(&c, report, err);
    }
    stop_gathering(&c);
    heft__arena_fini(&c.arena);
    writer->committed = status == HEFT_OK && !writer->options.dry_run;
    return heft__add_path(status, err, writer->dst);
}
