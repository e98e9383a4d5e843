/* open.c - opening a checkpoint: every file's metadata, one table of names.
 *
 * An index is a hint, the shards are the truth: both are compared, and what an index promises must
 * be there, unless the caller trusts the shards. Files are read in the order of their names; with many of them no descriptor is held
 * between reads. */
#include "checkpoint/checkpoint.h"

#include <pthread.h>

#define FILES_HELD_OPEN 64
#define FILES_IN_PARALLEL 8 /* fewer are not worth the threads */

/* ---- files ----------------------------------------------------------------------------------- */
struct opening {
    heft_checkpoint *ckpt;
    pthread_mutex_t lock;
    size_t failed; /* the first file, by number, that cannot be opened; file_count if none */
    heft_error error;
    heft_status status;
};

static heft_status open_file(const heft_checkpoint *ckpt, size_t i, heft_error *err)
{
    heft__checkpoint_file *slot = &ckpt->files[i];
    const bool offload = ckpt->where.offload;
    heft__input *source = NULL;
    heft_status status =
        offload ? heft__offload_open(ckpt->ctx, &ckpt->offload, i, &source, &slot->file, err)
                : heft__input_open(ckpt->ctx, slot->info.path, &source, err);
    if (status == HEFT_OK && !offload) {
        status = heft__file_open(ckpt->ctx, source, &slot->file, err);
    }
    if (source && ckpt->file_count > FILES_HELD_OPEN) {
        heft__input_park(source);
    }
    if (status == HEFT_OK) {
        slot->info.format = offload ? HEFT_FORMAT_OFFLOAD : slot->file->format;
        slot->info.size_bytes = heft__input_size(source);
        slot->info.tensors = slot->file->tensor_count;
    }
    heft__input_unref(source);
    return heft__add_path(status, err, slot->info.path);
}

/* One item of parallel work. It never fails as such: which error is told must not hang on the
 * threads, so the one of the file that comes first is kept. Items are handed out in order. */
static heft_status open_item(void *user, size_t i, heft_error *err)
{
    struct opening *opening = user;
    heft_status status = open_file(opening->ckpt, i, err);
    if (status != HEFT_OK) {
        pthread_mutex_lock(&opening->lock);
        if (i < opening->failed) {
            opening->failed = i;
            opening->error = *err;
            opening->status = status;
        }
        pthread_mutex_unlock(&opening->lock);
    }
    return status;
}

/* Open all files, several at once if there are many. */
static heft_status open_slots(heft_checkpoint *ckpt, heft_error *err)
{
    struct opening opening = {.ckpt = ckpt, .failed = ckpt->file_count};
    heft_status status = HEFT_OK;
    if (ckpt->file_count < FILES_IN_PARALLEL) {
        for (size_t i = 0; i < ckpt->file_count && status == HEFT_OK; i++) {
            status = open_file(ckpt, i, err);
        }
        return status;
    }
    pthread_mutex_init(&opening.lock, NULL);
    (void)heft__parallel(ckpt->ctx, ckpt->file_count, open_item, &opening, NULL);
    pthread_mutex_destroy(&opening.lock);
    if (opening.status != HEFT_OK && err) {
        *err = opening.error;
    }
    return opening.status;
}

static heft_status make_slots(heft_checkpoint *ckpt, size_t count, heft_error *err)
{
    ckpt->files = heft__arena_array(&ckpt->arena, count, sizeof *ckpt->files);
    ckpt->file_count = ckpt->files ? count : 0;
    return ckpt->files ? HEFT_OK : heft__fail_nomem(err, count * sizeof *ckpt->files);
}

/* Open all, and number their storages. */
static heft_status open_and_number(heft_checkpoint *ckpt, heft_error *err)
{
    heft_status status = open_slots(ckpt, err);
    size_t storages = 0;
    for (size_t i = 0; i < ckpt->file_count && status == HEFT_OK; i++) {
        ckpt->files[i].first_storage = storages;
        storages += ckpt->files[i].file->storage_count;
    }
    return status;
}

static heft_status open_files(heft_checkpoint *ckpt, const char *const *names, size_t count,
                              heft_error *err)
{
    heft_status status = make_slots(ckpt, count, err);
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        const char *path = heft__path_join(&ckpt->arena, ckpt->where.folder, names[i]);
        status = path ? HEFT_OK : heft__fail_nomem(err, strlen(names[i]));
        ckpt->files[i].info.name = names[i];
        ckpt->files[i].info.path = path;
    }
    return status == HEFT_OK ? open_and_number(ckpt, err) : status;
}

/* ---- the table of names ---------------------------------------------------------------------- */
/* A name that an earlier file has too. */
static heft_status doubled(heft_checkpoint *ckpt, const heft__checkpoint_file *slot,
                           const heft__file_tensor *tensor, const char *earlier, heft_error *err)
{
    if (ckpt->trust_shards) {
        return heft__warn(&ckpt->warnings, "tensor '%s' is in %s and in %s: the latter counts",
                          tensor->name, earlier, slot->info.name)
                   ? HEFT_OK
                   : heft__fail_nomem(err, 0);
    }
    heft_status status =
        heft__fail_at(err, HEFT_FORMAT, tensor->item_offset, "is in '%.100s' too", earlier);
    heft__add_item(status, err, tensor->name);
    return heft__add_path(status, err, slot->info.path);
}

/* At the end of the table, or in the place of one of the same name. */
static heft_status add_tensor(heft_checkpoint *ckpt, size_t file, const heft__file_tensor *tensor,
                              heft_error *err)
{
    const heft__checkpoint_file *slot = &ckpt->files[file];
    size_t found, at = ckpt->count;
    uint64_t offset;
    if (!heft__map_put(&ckpt->names, tensor->name, strlen(tensor->name), at, &found)) {
        return heft__fail_nomem(err, strlen(tensor->name));
    }
    if (found != HEFT__MAP_NONE) {
        heft_status status = doubled(ckpt, slot, tensor, ckpt->infos[found].file, err);
        if (status != HEFT_OK) {
            return status;
        }
        at = found;
    }
    ckpt->count += at == ckpt->count;
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
    size_t most = 0;
    for (size_t f = 0; f < ckpt->file_count; f++) {
        most += ckpt->files[f].file->tensor_count;
    }
    ckpt->infos = heft__arena_array(&ckpt->arena, most, sizeof *ckpt->infos);
    ckpt->entries = heft__arena_array(&ckpt->arena, most, sizeof *ckpt->entries);
    if (!ckpt->infos || !ckpt->entries || !heft__map_reserve(&ckpt->names, most)) {
        return heft__fail_nomem(err, most * sizeof *ckpt->infos);
    }
    heft_status status = HEFT_OK;
    for (size_t f = 0; f < ckpt->file_count && status == HEFT_OK; f++) {
        const heft__file *file = ckpt->files[f].file;
        for (size_t i = 0; i < file->tensor_count && status == HEFT_OK; i++) {
            status = add_tensor(ckpt, f, &file->tensors[i], err);
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

/* How many tensors lie on each storage, and how many of them do not have one to themselves; owned,
 * NULL without memory. */
static uint32_t *count_users(const heft_checkpoint *ckpt, size_t *storages, size_t *sharing)
{
    const heft__checkpoint_file *last =
        ckpt->file_count ? &ckpt->files[ckpt->file_count - 1] : NULL;
    *storages = last ? last->first_storage + last->file->storage_count : 0;
    *sharing = 0;
    uint32_t *users = heft__alloc_zero(ckpt->ctx, *storages, sizeof *users);
    for (size_t i = 0; users && i < ckpt->count; i++) {
        uint32_t before = users[ckpt->infos[i].storage]++;
        *sharing += before == 0 ? 0 : before == 1 ? 2 : 1;
    }
    return users;
}

/* Fill `result` for the tensors that share a storage; `keys` has room for them. */
static heft_status find_aliases(const heft_checkpoint *ckpt, const uint32_t *users,
                                struct view_key *keys, size_t *result, heft_error *err)
{
    heft__map seen;
    heft_status status = HEFT_OK;
    heft__map_init(&seen, ckpt->ctx);
    for (size_t i = 0; i < ckpt->count && status == HEFT_OK; i++) {
        const heft__file_tensor *entry = ckpt->entries[i];
        size_t bytes = entry->rank * sizeof *entry->shape, found;
        if (users[ckpt->infos[i].storage] == 1) {
            continue;
        }
        *keys = (struct view_key){
            .storage = ckpt->infos[i].storage,
            .start = entry->start,
            .bytes = entry->size_bytes,
            .shape = entry->strides ? heft__stable_hash((const char *)entry->shape, bytes) : 0,
            .strides = entry->strides ? heft__stable_hash((const char *)entry->strides, bytes) : 0,
        };
        if (!heft__map_put(&seen, (const char *)keys, sizeof *keys, i, &found)) {
            status = heft__fail_nomem(err, sizeof *keys);
        } else if (found != HEFT__MAP_NONE && same_view(ckpt, found, i)) {
            result[i] = found;
        }
        keys++;
    }
    heft__map_fini(&seen);
    return status;
}

heft_status heft__checkpoint_aliases(const heft_checkpoint *ckpt, size_t **first, heft_error *err)
{
    size_t storages = 0, sharing = 0; /* none shares in safetensors files */
    uint32_t *users = count_users(ckpt, &storages, &sharing);
    size_t *result = heft__alloc(ckpt->ctx, ckpt->count * sizeof *result);
    struct view_key *keys = heft__alloc_zero(ckpt->ctx, sharing, sizeof *keys);
    heft_status status =
        users && result && keys ? HEFT_OK : heft__fail_nomem(err, ckpt->count * sizeof *result);
    for (size_t i = 0; i < ckpt->count && status == HEFT_OK; i++) {
        result[i] = i;
    }
    if (status == HEFT_OK && sharing > 0) {
        status = find_aliases(ckpt, users, keys, result, err);
    }
    heft__free(ckpt->ctx, users, storages * sizeof *users);
    heft__free(ckpt->ctx, keys, sharing * sizeof *keys);
    if (status == HEFT_OK) {
        *first = result;
    } else {
        heft__free(ckpt->ctx, result, ckpt->count * sizeof *result);
    }
    return status;
}

/* ---- index against shards -------------------------------------------------------------------- */
/* The number of an entry's tensor: most often the one behind the last that was found in its file,
 * since both lists are sorted by name more often than not; else by hash. */
static size_t find_entry(const heft_checkpoint *ckpt, const heft__shard_entry *entry, size_t *next)
{
    const size_t guess = next[entry->file];
    size_t at = HEFT__MAP_NONE;
    if (guess < ckpt->count && ckpt->infos[guess].file_index == entry->file &&
        strcmp(ckpt->infos[guess].name, entry->name) == 0) {
        at = guess;
    } else {
        at = heft__map_get(&ckpt->names, entry->name, strlen(entry->name));
    }
    next[entry->file] = at != HEFT__MAP_NONE ? at + 1 : guess;
    return at;
}

/* A tensor that is not where the index has it, but at `at`, or nowhere. */
static heft_status misplaced(heft_checkpoint *ckpt, const heft__shard_index *index,
                             const heft__shard_entry *entry, size_t at, heft_error *err)
{
    const char *promised = index->files[entry->file];
    const bool nowhere = at == HEFT__MAP_NONE;
    const char *but = nowhere ? "" : ", but in ", *found = nowhere ? "" : ckpt->infos[at].file;
    if (ckpt->trust_shards) {
        return heft__warn(&ckpt->warnings, "tensor '%s' is not in %s, where the index has it%s%s",
                          entry->name, promised, but, found)
                   ? HEFT_OK
                   : heft__fail_nomem(err, 0);
    }
    heft_status status =
        heft__fail_at(err, HEFT_FORMAT, entry->offset,
                      "not found in '%.100s', where the index has it%s%s%.100s%s", promised, but,
                      nowhere ? "" : "'", found, nowhere ? "" : "'");
    return heft__add_item(status, err, entry->name);
}

/* `next`: by file, its first tensor. */
static heft_status check_listed(heft_checkpoint *ckpt, const heft__shard_index *index, bool *listed,
                                size_t *next, heft_error *err)
{
    for (size_t i = 0; i < index->entry_count; i++) {
        const heft__shard_entry *entry = &index->entries[i];
        size_t at = find_entry(ckpt, entry, next);
        if (at == HEFT__MAP_NONE || ckpt->infos[at].file_index != entry->file) {
            heft_status status = misplaced(ckpt, index, entry, at, err);
            if (status != HEFT_OK) {
                return status;
            }
        }
        if (at != HEFT__MAP_NONE) {
            listed[at] = true;
        }
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
    size_t *next = heft__alloc_zero(ckpt->ctx, index->file_count, sizeof *next), at = 0;
    for (size_t f = 0; next && f < index->file_count; f++) {
        next[f] = at;
        at += ckpt->files[f].file->tensor_count;
    }
    heft_status status = listed && next ? check_listed(ckpt, index, listed, next, err)
                                        : heft__fail_nomem(err, ckpt->count);
    if (status == HEFT_OK) {
        status = check_unlisted(ckpt, listed, err);
    }
    if (status == HEFT_OK) {
        status = check_total(ckpt, index, err);
    }
    heft__free(ckpt->ctx, listed, ckpt->count * sizeof *listed);
    heft__free(ckpt->ctx, next, index->file_count * sizeof *next);
    return status;
}

/* A shard that is missing is blamed on the index, with one tensor that needs it. */
static heft_status blame_index(const heft_checkpoint *ckpt, const heft__shard_index *index,
                               const char *path, heft_status status, heft_error *err)
{
    size_t needs = 0, missing = 0;
    if (status != HEFT_NOT_FOUND) {
        return status;
    }
    while (missing < ckpt->file_count && heft__path_exists(ckpt->files[missing].info.path)) {
        missing++;
    }
    if (missing == ckpt->file_count) { /* it has come back */
        return status;
    }
    while (index->entries[needs].file != missing) {
        needs++;
    }
    status = heft__fail_at(err, HEFT_NOT_FOUND, index->entries[needs].offset,
                           "shard '%.200s' is missing", index->files[missing]);
    heft__add_item(status, err, index->entries[needs].name);
    return heft__add_path(status, err, path);
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
        status = open_files(ckpt, names, index.file_count, err);
        status = blame_index(ckpt, &index, path, status, err);
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
    if (status == HEFT_OK && ckpt->where.shadowed &&
        !heft__warn(&ckpt->warnings, "%s is older than %s and taken for stale",
                    ckpt->where.shadowed, ckpt->where.index)) {
        status = heft__fail_nomem(err, 0);
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

static heft_status open_offload(heft_checkpoint *ckpt, heft_error *err)
{
    heft_status status = heft__offload_read(&ckpt->arena, ckpt->where.folder, ckpt->where.index,
                                            &ckpt->offload, err);
    if (status == HEFT_OK) {
        status = make_slots(ckpt, ckpt->offload.slot_count, err);
    }
    for (size_t i = 0; i < ckpt->file_count; i++) {
        ckpt->files[i].info.name = ckpt->offload.slots[i].name;
        ckpt->files[i].info.path = ckpt->offload.slots[i].path;
    }
    if (status == HEFT_OK) {
        status = open_and_number(ckpt, err);
    }
    if (status == HEFT_OK) {
        status = build_table(ckpt, err);
    }
    return status == HEFT_OK ? sum_bytes(ckpt, err) : status;
}

/* ---- the object ------------------------------------------------------------------------------ */
/* An empty checkpoint, and the options as this version has them; NULL and a status if not. */
static heft_checkpoint *begin(heft_ctx *ctx, const heft_checkpoint_options *options,
                              heft_checkpoint_options *taken, heft_status *status, heft_error *err)
{
    heft_checkpoint *ckpt = NULL;
    *status = HEFT__TAKE_OPTIONS(taken, options, err);
    if (*status == HEFT_OK) {
        ckpt = heft__alloc_zero(ctx, 1, sizeof *ckpt);
        *status = ckpt ? HEFT_OK : heft__fail_nomem(err, sizeof *ckpt);
    }
    if (!ckpt) {
        return NULL;
    }
    ckpt->ctx = heft__ctx_ref(ctx);
    heft__arena_init(&ckpt->arena, ctx);
    heft__map_init(&ckpt->names, ctx);
    heft__warnings_init(&ckpt->warnings, &ckpt->arena);
    ckpt->trust_shards = taken->trust_shards;
    return ckpt;
}

/* Hand it out if all went well, else close it. */
static heft_status finish(heft_checkpoint *ckpt, heft_status status, const char *path,
                          heft_checkpoint **out, heft_error *err)
{
    if (status == HEFT_OK) {
        status = heft__maps_make(ckpt, err);
    }
    if (status != HEFT_OK) {
        heft_checkpoint_close(ckpt);
        return heft__add_path(status, err, path);
    }
    *out = ckpt;
    return HEFT_OK;
}

heft_status heft_checkpoint_open(heft_ctx *ctx, const char *path,
                                 const heft_checkpoint_options *options, heft_checkpoint **out,
                                 heft_error *err)
{
    heft_checkpoint_options taken;
    if (!ctx || !path || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, path or result is NULL");
    }
    heft_status status = HEFT_OK;
    heft_checkpoint *ckpt = begin(ctx, options, &taken, &status, err);
    if (!ckpt) {
        return status;
    }
    status = heft__resolve(&ckpt->arena, path, &taken, &ckpt->where, err);
    if (status == HEFT_OK) {
        status = ckpt->where.offload ? open_offload(ckpt, err)
                 : ckpt->where.index ? open_index(ckpt, err)
                                     : open_single(ckpt, err);
    }
    return finish(ckpt, status, path, out, err);
}

heft_status heft__checkpoint_open_input(heft_ctx *ctx, heft__input *source,
                                        const heft_checkpoint_options *options,
                                        heft_checkpoint **out, heft_error *err)
{
    const char *name = heft__input_path(source);
    heft_checkpoint_options taken;
    heft_status status = HEFT_OK;
    heft_checkpoint *ckpt = begin(ctx, options, &taken, &status, err);
    if (!ckpt) {
        return status;
    }
    status = make_slots(ckpt, 1, err);
    if (status == HEFT_OK) {
        heft__checkpoint_file *slot = &ckpt->files[0];
        status = heft__file_open(ctx, source, &slot->file, err);
        if (status == HEFT_OK) {
            slot->info = (heft_file_info){.name = heft__path_base(name),
                                          .path = name, /* the file holds the input */
                                          .format = slot->file->format,
                                          .size_bytes = heft__input_size(source),
                                          .tensors = slot->file->tensor_count};
            status = build_table(ckpt, err);
        }
    }
    if (status == HEFT_OK) {
        status = sum_bytes(ckpt, err);
    }
    return finish(ckpt, status, name, out, err);
}

void heft_checkpoint_close(heft_checkpoint *ckpt)
{
    if (!ckpt) {
        return;
    }
    heft__maps_free(ckpt);
    for (size_t i = 0; i < ckpt->file_count; i++) {
        heft__file_close(ckpt->ctx, ckpt->files[i].file);
    }
    heft_ctx *ctx = ckpt->ctx;
    heft__offload_index_fini(&ckpt->offload.index);
    heft__map_fini(&ckpt->names);
    heft__arena_fini(&ckpt->arena);
    heft__free(ctx, ckpt, sizeof *ckpt);
    heft_ctx_free(ctx);
}
