/* open.c - opening a checkpoint: every file's metadata, one table of names.
 *
 * An index is a hint, the shards are the truth: both are compared, and what an index promises must
 * be there. Files are read in the order of their names; with many of them no descriptor is held
 * between reads. */
#include "checkpoint/checkpoint.h"

#define FILES_HELD_OPEN 64

/* ---- files ----------------------------------------------------------------------------------- */
static heft_status open_file(heft_checkpoint *ckpt, size_t i, const char *name, heft_error *err)
{
    heft__checkpoint_file *slot = &ckpt->files[i];
    const char *path = heft__path_join(&ckpt->arena, ckpt->where.folder, name);
    if (!path) {
        return heft__fail_nomem(err, strlen(name));
    }
    heft__source *source = NULL;
    heft_status status = heft__source_open(ckpt->ctx, path, &source, err);
    if (status == HEFT_OK) {
        status = heft__file_open(ckpt->ctx, source, &slot->file, err);
        if (ckpt->file_count > FILES_HELD_OPEN) {
            heft__source_park(source);
        }
    }
    if (status == HEFT_OK) {
        slot->info = (heft_file_info){
            .name = name,
            .path = path,
            .format = slot->file->format,
            .size_bytes = heft__source_size(source),
            .tensors = slot->file->tensor_count,
        };
    }
    heft__source_unref(source);
    return heft__add_path(status, err, path);
}

static heft_status open_files(heft_checkpoint *ckpt, const char *const *names, size_t count,
                              heft_error *err)
{
    ckpt->files = heft__arena_array(&ckpt->arena, count, sizeof *ckpt->files);
    if (!ckpt->files) {
        return heft__fail_nomem(err, count * sizeof *ckpt->files);
    }
    ckpt->file_count = count;
    heft_status status = HEFT_OK;
    size_t storages = 0;
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        status = open_file(ckpt, i, names[i], err);
        if (status == HEFT_OK) {
            ckpt->files[i].first_storage = storages;
            storages += ckpt->files[i].file->storage_count;
            ckpt->count += ckpt->files[i].file->tensor_count;
        }
    }
    return status;
}

/* ---- the table of names ---------------------------------------------------------------------- */
static heft_status add_tensor(heft_checkpoint *ckpt, size_t file, const heft__file_tensor *tensor,
                              size_t at, heft_error *err)
{
    const heft__checkpoint_file *slot = &ckpt->files[file];
    size_t found;
    uint64_t offset;
    if (!heft__map_put(&ckpt->names, tensor->name, strlen(tensor->name), at, &found)) {
        return heft__fail_nomem(err, strlen(tensor->name));
    }
    if (found != HEFT__MAP_NONE) {
        heft_status status = heft__fail_at(err, HEFT_FORMAT, tensor->item_offset,
                                           "is in '%.100s' too", ckpt->infos[found].file);
        heft__add_item(status, err, tensor->name);
        return heft__add_path(status, err, slot->info.path);
    }
    if (!heft__tensor_is_plain(slot->file, tensor, &offset)) {
        offset = HEFT_NO_OFFSET;
    }
    ckpt->entries[at] = tensor;
    ckpt->infos[at] = (heft_tensor_info){
        .name = tensor->name,
        .dtype = tensor->dtype,
        .rank = tensor->rank,
        .shape = tensor->shape,
        .file = slot->info.name,
        .file_index = file,
        .offset = offset,
        .size_bytes = tensor->size_bytes,
        .storage = slot->first_storage + tensor->storage,
    };
    return HEFT_OK;
}

static heft_status build_table(heft_checkpoint *ckpt, heft_error *err)
{
    ckpt->infos = heft__arena_array(&ckpt->arena, ckpt->count, sizeof *ckpt->infos);
    ckpt->entries = heft__arena_array(&ckpt->arena, ckpt->count, sizeof *ckpt->entries);
    if (!ckpt->infos || !ckpt->entries || !heft__map_reserve(&ckpt->names, ckpt->count)) {
        return heft__fail_nomem(err, ckpt->count * sizeof *ckpt->infos);
    }
    heft_status status = HEFT_OK;
    size_t at = 0;
    for (size_t f = 0; f < ckpt->file_count && status == HEFT_OK; f++) {
        const heft__file *file = ckpt->files[f].file;
        for (size_t i = 0; i < file->tensor_count && status == HEFT_OK; i++) {
            status = add_tensor(ckpt, f, &file->tensors[i], at++, err);
        }
        for (size_t i = 0; i < file->warnings.count && status == HEFT_OK; i++) {
            if (!heft__warn(&ckpt->warnings, "%s: %s", ckpt->files[f].info.name,
                            file->warnings.lines[i])) {
                status = heft__fail_nomem(err, 0);
            }
        }
    }
    return status;
}

/* Sum of the storages' bytes as far as tensors use them; tensors that show the same bytes count
 * once. */
static heft_status sum_bytes(heft_checkpoint *ckpt, heft_error *err)
{
    size_t *first = NULL;
    heft_status status = heft__checkpoint_aliases(ckpt, &first, err);
    for (size_t i = 0; i < ckpt->count && status == HEFT_OK; i++) {
        if (first[i] == i &&
            !heft__add_u64(ckpt->total_bytes, ckpt->infos[i].size_bytes, &ckpt->total_bytes)) {
            status = heft__fail(err, HEFT_FORMAT, "the tensors have over 2^64 bytes");
        }
    }
    heft__free(ckpt->ctx, first, ckpt->count * sizeof *first);
    return status;
}

/* ---- aliases --------------------------------------------------------------------------------- */
/* Whether two tensors show the same bytes in the same order. Row by row, their shapes may differ.
 */
static bool same_view(const heft_checkpoint *ckpt, size_t a, size_t b)
{
    const heft__file_tensor *left = ckpt->entries[a], *right = ckpt->entries[b];
    if (left->dtype != right->dtype || left->start != right->start ||
        left->size_bytes != right->size_bytes || left->conj != right->conj ||
        left->neg != right->neg || !left->strides != !right->strides) {
        return false;
    }
    return !left->strides ||
           (heft__shape_equal(left->shape, left->rank, right->shape, right->rank) &&
            memcmp(left->strides, right->strides, left->rank * sizeof *left->strides) == 0);
}

/* What tells one view of a storage from another, as plain bytes: a hostile file may hold very many
 * views of one storage, so they are found by hash and not by walking. */
struct view_key {
    uint64_t storage, start, bytes, shape, strides; /* the last two: 0 where it is row by row */
};

/* How many tensors lie on each storage; owned, NULL without memory. */
static uint32_t *count_users(const heft_checkpoint *ckpt, size_t *storages)
{
    const heft__checkpoint_file *last =
        ckpt->file_count ? &ckpt->files[ckpt->file_count - 1] : NULL;
    *storages = last ? last->first_storage + last->file->storage_count : 0;
    uint32_t *users = heft__alloc_zero(ckpt->ctx, *storages, sizeof *users);
    for (size_t i = 0; users && i < ckpt->count; i++) {
        users[ckpt->infos[i].storage]++;
    }
    return users;
}

heft_status heft__checkpoint_aliases(const heft_checkpoint *ckpt, size_t **first, heft_error *err)
{
    heft__map seen;
    size_t storages = 0;
    uint32_t *users = count_users(ckpt, &storages);
    size_t *result = heft__alloc_zero(ckpt->ctx, ckpt->count, sizeof *result);
    struct view_key *keys = heft__alloc_zero(ckpt->ctx, ckpt->count, sizeof *keys);
    heft_status status =
        users && result && keys ? HEFT_OK : heft__fail_nomem(err, ckpt->count * sizeof *keys);
    heft__map_init(&seen, ckpt->ctx);
    for (size_t i = 0; i < ckpt->count && status == HEFT_OK; i++) {
        const heft__file_tensor *entry = ckpt->entries[i];
        size_t bytes = entry->rank * sizeof *entry->shape, found;
        result[i] = i;
        if (users[ckpt->infos[i].storage] == 1) {
            continue; /* as every tensor of a safetensors file */
        }
        keys[i] = (struct view_key){
            .storage = ckpt->infos[i].storage,
            .start = entry->start,
            .bytes = entry->size_bytes,
            .shape = entry->strides ? heft__stable_hash((const char *)entry->shape, bytes) : 0,
            .strides = entry->strides ? heft__stable_hash((const char *)entry->strides, bytes) : 0,
        };
        if (!heft__map_put(&seen, (const char *)&keys[i], sizeof keys[i], i, &found)) {
            status = heft__fail_nomem(err, sizeof keys[i]);
        } else if (found != HEFT__MAP_NONE && same_view(ckpt, found, i)) {
            result[i] = found;
        }
    }
    heft__map_fini(&seen);
    heft__free(ckpt->ctx, users, storages * sizeof *users);
    heft__free(ckpt->ctx, keys, ckpt->count * sizeof *keys);
    if (status == HEFT_OK) {
        *first = result;
    } else {
        heft__free(ckpt->ctx, result, ckpt->count * sizeof *result);
    }
    return status;
}

/* ---- index against shards -------------------------------------------------------------------- */
static heft_status check_listed(heft_checkpoint *ckpt, const heft__shard_index *index, bool *listed,
                                heft_error *err)
{
    for (size_t i = 0; i < index->entry_count; i++) {
        const heft__shard_entry *entry = &index->entries[i];
        size_t at = heft__map_get(&ckpt->names, entry->name, strlen(entry->name));
        if (at == HEFT__MAP_NONE || ckpt->infos[at].file_index != entry->file) {
            heft_status status =
                at == HEFT__MAP_NONE
                    ? heft__fail_at(err, HEFT_FORMAT, entry->offset,
                                    "not found in '%.100s', where the index has it",
                                    index->files[entry->file])
                    : heft__fail_at(
                          err, HEFT_FORMAT, entry->offset,
                          "not found in '%.100s', where the index has it, but in '%.100s'",
                          index->files[entry->file], ckpt->infos[at].file);
            return heft__add_item(status, err, entry->name);
        }
        listed[at] = true;
    }
    return HEFT_OK;
}

static heft_status check_unlisted(heft_checkpoint *ckpt, const bool *listed, heft_error *err)
{
    for (size_t i = 0; i < ckpt->count; i++) {
        if (!listed[i] && !heft__warn(&ckpt->warnings, "tensor '%s' is in %s but not in the index",
                                      ckpt->infos[i].name, ckpt->infos[i].file)) {
            return heft__fail_nomem(err, 0);
        }
    }
    return HEFT_OK;
}

static heft_status check_total(heft_checkpoint *ckpt, const heft__shard_index *index,
                               heft_error *err)
{
    double said;
    const heft__json_value *total = heft__json_member(index->metadata, "total_size");
    if (total && heft__json_as_double(total, &said) && said != (double)ckpt->total_bytes &&
        !heft__warn(&ckpt->warnings, "the index says total_size %s, the tensors have %llu bytes",
                    total->text, (unsigned long long)ckpt->total_bytes)) {
        return heft__fail_nomem(err, 0);
    }
    return HEFT_OK;
}

static heft_status check_index(heft_checkpoint *ckpt, const heft__shard_index *index,
                               heft_error *err)
{
    bool *listed = heft__alloc_zero(ckpt->ctx, ckpt->count, sizeof *listed);
    heft_status status =
        listed ? check_listed(ckpt, index, listed, err) : heft__fail_nomem(err, ckpt->count);
    if (status == HEFT_OK) {
        status = check_unlisted(ckpt, listed, err);
    }
    if (status == HEFT_OK) {
        status = check_total(ckpt, index, err);
    }
    heft__free(ckpt->ctx, listed, ckpt->count * sizeof *listed);
    return status;
}

/* A shard that is missing is blamed on the index, with one tensor that needs it. */
static heft_status check_present(heft_checkpoint *ckpt, const heft__shard_index *index,
                                 heft_error *err)
{
    for (size_t f = 0; f < index->file_count; f++) {
        const char *path = heft__path_join(&ckpt->arena, ckpt->where.folder, index->files[f]);
        if (!path) {
            return heft__fail_nomem(err, 0);
        }
        if (heft__path_exists(path)) {
            continue;
        }
        size_t needs = 0;
        while (index->entries[needs].file != f) {
            needs++;
        }
        heft_status status = heft__fail_at(err, HEFT_NOT_FOUND, index->entries[needs].offset,
                                           "shard '%.200s' is missing", index->files[f]);
        return heft__add_item(status, err, index->entries[needs].name);
    }
    return HEFT_OK;
}

static heft_status open_index(heft_checkpoint *ckpt, heft_error *err)
{
    heft__shard_index index = {0};
    const char *path = heft__path_join(&ckpt->arena, ckpt->where.folder, ckpt->where.index);
    heft_status status = path ? heft__shard_index_read(ckpt->ctx, path, &index, err)
                              : heft__fail_nomem(err, strlen(ckpt->where.index));
    if (status != HEFT_OK) {
        return heft__add_path(status, err, path);
    }
    const char **names = heft__arena_array(&ckpt->arena, index.file_count, sizeof *names);
    status = names ? HEFT_OK : heft__fail_nomem(err, index.file_count * sizeof *names);
    for (size_t i = 0; i < index.file_count && status == HEFT_OK; i++) {
        names[i] = heft__arena_text(&ckpt->arena, index.files[i], strlen(index.files[i]));
        status = names[i] ? HEFT_OK : heft__fail_nomem(err, 0);
    }
    if (status == HEFT_OK) {
        status = heft__add_path(check_present(ckpt, &index, err), err, path);
    }
    if (status == HEFT_OK) {
        status = open_files(ckpt, names, index.file_count, err);
    }
    if (status == HEFT_OK) {
        status = build_table(ckpt, err);
    }
    if (status == HEFT_OK) {
        status = sum_bytes(ckpt, err);
    }
    if (status == HEFT_OK) {
        status = heft__add_path(check_index(ckpt, &index, err), err, path);
    }
    heft__shard_index_fini(&index);
    return status;
}

static heft_status open_single(heft_checkpoint *ckpt, heft_error *err)
{
    heft_status status = open_files(ckpt, &ckpt->where.file, 1, err);
    if (status == HEFT_OK) {
        status = build_table(ckpt, err);
    }
    if (status == HEFT_OK && ckpt->where.shadowed &&
        !heft__warn(&ckpt->warnings, "%s wins over %s, which may be newer: one of them is stale",
                    ckpt->where.file, ckpt->where.shadowed)) {
        status = heft__fail_nomem(err, 0);
    }
    return status == HEFT_OK ? sum_bytes(ckpt, err) : status;
}

heft_status heft_checkpoint_open(heft_ctx *ctx, const char *path,
                                 const heft_checkpoint_options *options, heft_checkpoint **out,
                                 heft_error *err)
{
    const heft_checkpoint_options standard = {0};
    if (!ctx || !path || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, path or result is NULL");
    }
    heft_checkpoint *ckpt = heft__alloc_zero(ctx, 1, sizeof *ckpt);
    if (!ckpt) {
        return heft__fail_nomem(err, sizeof *ckpt);
    }
    ckpt->ctx = heft__ctx_ref(ctx);
    heft__arena_init(&ckpt->arena, ctx);
    heft__map_init(&ckpt->names, ctx);
    heft__warnings_init(&ckpt->warnings, &ckpt->arena);
    heft_status status =
        heft__resolve(&ckpt->arena, path, options ? options : &standard, &ckpt->where, err);
    if (status == HEFT_OK) {
        status = ckpt->where.index ? open_index(ckpt, err) : open_single(ckpt, err);
    }
    if (status != HEFT_OK) {
        heft_checkpoint_close(ckpt);
        return heft__add_path(status, err, path);
    }
    *out = ckpt;
    return HEFT_OK;
}

void heft_checkpoint_close(heft_checkpoint *ckpt)
{
    if (!ckpt) {
        return;
    }
    for (size_t i = 0; i < ckpt->file_count; i++) {
        heft__file_close(ckpt->ctx, ckpt->files[i].file);
    }
    heft_ctx *ctx = ckpt->ctx;
    heft__map_fini(&ckpt->names);
    heft__arena_fini(&ckpt->arena);
    heft__free(ctx, ckpt, sizeof *ckpt);
    heft_ctx_free(ctx);
}
