/* offload_folder.c - Accelerate's offload folder as a format: an index.json, a file for each .dat and
 * one for each safetensors file that the index names, in the order in which it names them first.
 *
 * A .dat has no header: the index describes it. What the index says about tensors in safetensors files is
 * passed on as claims, which the caller that opens the folder compares.
 * Source: docs/formats/offload.md [3], [4]. */
#include "format/format.h"

#define HEAD_BYTES ((size_t)64 << 10) /* looked at to know an index */

/* Open an index; *opened stays NULL if it is none. */
static heft_status probe(heft_ctx *ctx, const char *path, heft__input **opened, heft_error *err)
{
    heft__input *source = NULL;
    uint8_t *head = NULL;
    size_t length = 0;
    heft_status status = heft__input_open(ctx, path, &source, err);
    if (status == HEFT_OK) {
        const uint64_t size = heft__input_size(source);
        length = size < HEAD_BYTES ? (size_t)size : HEAD_BYTES;
        head = heft__alloc(ctx, length);
        status =
            head ? heft__input_read(source, 0, head, length, err) : heft__fail_nomem(err, length);
    }
    if (status == HEFT_OK && heft__offload_index_sniff(head, length)) {
        *opened = source;
    } else {
        heft__input_unref(source);
    }
    heft__free(ctx, head, length);
    return status;
}

static heft_status open_index(heft_ctx *ctx, const char *path, heft__input **opened,
                              heft_error *err)
{
    heft_error reason = {
        0}; /* a file that cannot be read is not an index; its reader reports the error */
    const heft_status status = probe(ctx, path, opened, &reason);
    if (status == HEFT_NOMEM && err) {
        *err = reason;
    }
    return status == HEFT_NOMEM ? status : HEFT_OK;
}

/* ---- the index ------------------------------------------------------------------------------- */
struct folder {                         /* heft__index.own */
    const heft__offload_entry **firsts; /* [file_count] the first entry of each file */
    heft__offload_dat *dats;            /* [file_count] room for what a .dat is */
};

struct reading {
    heft__arena *arena; /* of the index */
    const char *folder;
    const heft__offload_index *read;
    heft__index_file *files; /* [read->count] */
    size_t file_count;
    heft__shard_entry *entries;
    heft__claim *claims;
    struct folder *own;
};

/* A new file for an entry. */
static heft_status add_file(struct reading *r, const heft__offload_entry *entry, heft_error *err)
{
    heft__index_file *file = &r->files[r->file_count];
    if (entry->file) {
        file->path = entry->file;
        file->name = heft__path_base(entry->file);
    } else {
        file->name = heft__arena_format(r->arena, "%s.dat", entry->name);
        file->path = file->name ? heft__path_join(r->arena, r->folder, file->name) : NULL;
    }
    if (!file->path) {
        return heft__fail_nomem(err, strlen(entry->name));
    }
    r->own->firsts[r->file_count++] = entry;
    return HEFT_OK;
}

static heft_status list_entries(struct reading *r, heft_error *err)
{
    heft__map paths; /* of safetensors files -> file */
    heft_status status = HEFT_OK;
    heft__map_init(&paths, r->arena->ctx);
    for (size_t i = 0; i < r->read->count && status == HEFT_OK; i++) {
        const heft__offload_entry *entry = &r->read->entries[i];
        size_t found = HEFT__MAP_NONE;
        if (entry->file &&
            !heft__map_put(&paths, entry->file, strlen(entry->file), r->file_count, &found)) {
            status = heft__fail_nomem(err, strlen(entry->file));
        } else if (found == HEFT__MAP_NONE) {
            found = r->file_count;
            status = add_file(r, entry, err);
        }
        r->entries[i] =
            (heft__shard_entry){.name = entry->name, .file = found, .offset = entry->offset};
        r->claims[i] = (heft__claim){.weight = entry->weight ? entry->weight : entry->name,
                                     .alone = !entry->file,
                                     .dtype = entry->dtype,
                                     .rank = entry->rank,
                                     .shape = entry->shape};
    }
    heft__map_fini(&paths);
    return status;
}

static heft_status make_index(struct reading *r, heft_error *err)
{
    const size_t count = r->read->count;
    r->own = heft__arena_array(r->arena, 1, sizeof *r->own);
    r->files = heft__arena_array(r->arena, count, sizeof *r->files);
    r->entries = heft__arena_array(r->arena, count, sizeof *r->entries);
    r->claims = heft__arena_array(r->arena, count, sizeof *r->claims);
    if (!r->own || !r->files || !r->entries || !r->claims) {
        return heft__fail_nomem(err, count * sizeof *r->claims);
    }
    r->own->firsts = heft__arena_array(r->arena, count, sizeof(heft__offload_entry *));
    heft_status status =
        r->own->firsts ? list_entries(r, err) : heft__fail_nomem(err, count * sizeof(void *));
    if (status == HEFT_OK) {
        r->own->dats = heft__arena_array(r->arena, r->file_count, sizeof *r->own->dats);
        status = r->own->dats ? HEFT_OK : heft__fail_nomem(err, r->file_count);
    }
    return status;
}

/* The text of the index: of the file that is open, or of the one at the path. */
static heft_status read_text(heft_ctx *ctx, const char *path, heft__input *opened,
                             heft__offload_index *out, heft_error *err)
{
    heft__arena arena; /* not needed afterwards */
    char *text = NULL;
    size_t length = 0;
    const uint64_t limit = heft__limits(ctx)->index_bytes;
    heft__arena_init(&arena, ctx);
    heft_status status = opened ? heft__read_input(&arena, opened, limit, &text, &length, err)
                                : heft__read_file(&arena, path, limit, &text, &length, err);
    heft__add_limit(status, err, "index_bytes");
    if (status == HEFT_OK) {
        status = heft__offload_index_parse(ctx, text, length, out, err);
    }
    heft__arena_fini(&arena);
    return heft__add_path(status, err, path);
}

static heft_status read_index(heft_ctx *ctx, const char *folder, const char *name,
                              heft__input *opened, heft__index *out, heft_error *err)
{
    heft__arena arena;
    heft__offload_index read = {0};
    struct reading r = {.arena = &read.arena, .folder = folder, .read = &read};
    heft__arena_init(&arena, ctx);
    const char *at = heft__path_join(&arena, folder, name), *path = NULL;
    heft_status status =
        at ? read_text(ctx, at, opened, &read, err) : heft__fail_nomem(err, strlen(folder));
    if (status == HEFT_OK) {
        status = make_index(&r, err);
    }
    if (status == HEFT_OK) {
        path = heft__arena_text(&read.arena, at, strlen(at));
        status = path ? HEFT_OK : heft__fail_nomem(err, strlen(at));
    }
    heft__arena_fini(&arena);
    if (status != HEFT_OK) {
        heft__offload_index_fini(&read);
        return status;
    }
    *out = (heft__index){.arena = read.arena, /* everything lies in it */
                         .path = path,
                         .files = r.files,
                         .file_count = r.file_count,
                         .entries = r.entries,
                         .entry_count = read.count,
                         .claims = r.claims,
                         .own = r.own};
    return HEFT_OK;
}

static heft_status open_file(heft_ctx *ctx, const heft__index *index, size_t number,
                             heft__input *input, heft__quota *quota, heft__file **out,
                             heft_error *err)
{
    const struct folder *own = index->own;
    const heft__offload_entry *first = own->firsts[number];
    heft__file *file = NULL;
    if (!first->file) {
        const heft_status taken =
            heft__quota_take(quota, heft__quota_weight(first->rank), HEFT_NO_OFFSET, err);
        return taken == HEFT_OK
                   ? heft__offload_dat_open(ctx, input, first, &own->dats[number], out, err)
                   : taken;
    }
    heft_status status = heft__file_open_within(ctx, input, quota, false, &file, err);
    if (status == HEFT_OK && file->format != HEFT_FORMAT_SAFETENSORS) {
        status = heft__fail_at(err, HEFT_FORMAT, 0, "is '%s', expected safetensors",
                               heft_format_name(file->format));
        heft__file_close(ctx, file);
    }
    if (status != HEFT_OK) {
        heft__add_item(status, err, first->name);
        return heft__add_path(status, err, heft__input_path(input));
    }
    *out = file;
    return HEFT_OK;
}

static heft_status list_files(heft__arena *arena, const char *folder, heft__map *names,
                              heft_error *err)
{
    const char *path = heft__path_join(arena, folder, HEFT__OFFLOAD_INDEX);
    heft__offload_index old = {0};
    heft__input *opened = NULL;
    size_t found;
    heft_error reason = {0};
    heft_status status = path ? probe(arena->ctx, path, &opened, &reason)
                              : heft__fail_nomem(&reason, strlen(folder));
    if (status == HEFT_OK && opened) {
        status = read_text(arena->ctx, path, opened, &old, &reason);
    } else if (status == HEFT_OK || (status != HEFT_IO && status != HEFT_NOMEM)) {
        return HEFT_OK;
    }
    heft__input_unref(opened);
    /* What it names would stay. A malformed index says nothing of other files. */
    if (status == HEFT_IO) {
        if (err) {
            *err = reason;
        }
        return status;
    }
    bool good = status != HEFT_NOMEM &&
                heft__map_put(names, HEFT__OFFLOAD_INDEX, strlen(HEFT__OFFLOAD_INDEX), 0, &found);
    for (size_t i = 0; i < old.count && good; i++) {
        const char *name = heft__arena_format(arena, "%s.dat", old.entries[i].name);
        good = name && (old.entries[i].file || heft__map_put(names, name, strlen(name), 0, &found));
    }
    heft__offload_index_fini(&old);
    return good ? HEFT_OK : heft__fail_nomem(err, 0);
}

/* ---- writing --------------------------------------------------------------------------------- */
struct plan {
    heft__layout layout; /* first */
    const heft__out_tensor *tensor;
};

static heft_status check(const heft__out_tensor *tensor, heft_error *err)
{
    uint64_t bytes;
    heft_status status = heft__offload_check_writable(tensor->name, tensor->dtype, err);
    if (status == HEFT_OK &&
        (!heft__shape_bytes(tensor->dtype, tensor->shape, tensor->rank, &bytes) ||
         bytes != tensor->size_bytes)) {
        status = heft__fail(err, HEFT_INVALID_ARG, "size in bytes does not match the shape");
    }
    return heft__add_item(status, err, tensor->name);
}

static void layout_free(heft__layout *layout)
{
    if (layout) {
        heft__free(layout->ctx, layout, sizeof(struct plan));
    }
}

static heft_status lay_out(heft_ctx *ctx, const heft__out_file *file, heft__layout **out,
                           heft_error *err)
{
    heft_status status = check(file->tensors, err);
    struct plan *plan = status == HEFT_OK ? heft__alloc_zero(ctx, 1, sizeof *plan) : NULL;
    if (!plan) {
        return status == HEFT_OK ? heft__fail_nomem(err, sizeof *plan) : status;
    }
    plan->layout.ctx = ctx;
    plan->layout.bytes = heft__offload_dat_bytes(file->tensors->size_bytes);
    plan->tensor = file->tensors;
    *out = &plan->layout;
    return HEFT_OK;
}

static heft_status write_dat(heft__layout *layout, const heft__out_io *io, heft_error *err)
{
    return heft__offload_dat_write(io, ((struct plan *)layout)->tensor, err);
}

static heft_status write_index(heft__arena *arena, const heft__out_index *index, heft__buffer *text,
                               heft_error *err)
{
    heft__offload_entry *entries = heft__arena_array(arena, index->count, sizeof *entries);
    if (!entries) {
        return heft__fail_nomem(err, index->count * sizeof *entries);
    }
    for (size_t i = 0; i < index->count; i++) {
        const heft__out_tensor *tensor = &index->tensors[i];
        entries[i] = (heft__offload_entry){.name = tensor->name,
                                           .dtype = tensor->dtype,
                                           .rank = tensor->rank,
                                           .shape = tensor->shape};
    }
    heft__offload_index_write(text, entries, index->count);
    return heft__buffer_check(text, err);
}

const heft__format heft__format_offload = {
    .id = HEFT_FORMAT_OFFLOAD,
    .name = "offload",
    .noun = "an offload folder",
    .convert_as = HEFT_FORMAT_SAFETENSORS,
    .has_order = true,
    .precedence = 3,
    .extension = "dat",
    .file_each = true,
    .index_name = HEFT__OFFLOAD_INDEX,
    .open_index = open_index,
    .read_index = read_index,
    .open_file = open_file,
    .list_files = list_files,
    .ties = HEFT__TIES_COPY,
    .check = check,
    .lay_out = lay_out,
    .write = write_dat,
    .layout_free = layout_free,
    .write_index = write_index,
};
