/* open.c - opening a checkpoint: every file's metadata, one table of names.
 *
 * A survey opens whatever can be opened, each file once, and lists what is wrong; opening is a survey
 * and a judgement on its findings. Files are read in the order of the index; with many of them no
 * descriptor is held between reads. */
#include "checkpoint/checkpoint.h"

#define FILES_HELD_OPEN 64
#define FILES_IN_PARALLEL 8 /* fewer are not worth the threads */
#define FILE_WEIGHT 8       /* tensors that a further file counts as */

/* ---- files ----------------------------------------------------------------------------------- */
struct failure { /* of one file */
    heft_status status;
    heft_error *error; /* NULL: there was no memory for it */
};

struct opening {
    heft_checkpoint *ckpt;
    struct failure *failures; /* [file_count] */
    size_t *leaders;          /* [file_count] the first file with the same inode */
    heft__quota quota;
};

/* The file if another checkpoint has it open; NULL else. */
static heft__file *open_beside(const heft_checkpoint *ckpt, const char *path)
{
    const size_t at =
        ckpt->beside ? heft__map_get(&ckpt->beside_paths, path, strlen(path)) : HEFT__MAP_NONE;
    return at == HEFT__MAP_NONE ? NULL : ckpt->beside->files[at].file;
}

/* A file that is open under another path or name, again. */
static heft_status share(struct opening *opening, heft__checkpoint_file *slot, heft__file *there,
                         heft_error *err)
{
    heft_status status =
        heft__quota_take(&opening->quota, there->tensor_count, HEFT_NO_OFFSET, err);
    return status == HEFT_OK ? heft__file_share(opening->ckpt->ctx, there, &slot->file, err)
                             : status;
}

static heft_status open_file(struct opening *opening, size_t i, heft_error *err)
{
    heft_checkpoint *ckpt = opening->ckpt;
    heft__checkpoint_file *slot = &ckpt->files[i];
    const heft__format *format = ckpt->where.index_format;
    heft__file *there = opening->leaders[i] != i ? ckpt->files[opening->leaders[i]].file
                                                 : open_beside(ckpt, slot->info.path);
    heft__input *source = NULL;
    heft_status status = there ? share(opening, slot, there, err)
                               : heft__input_open(ckpt->ctx, slot->info.path, &source, err);
    if (source) {
        status = format && format->open_file
                     ? format->open_file(ckpt->ctx, &ckpt->index, i, source, &opening->quota,
                                         &slot->file, err)
                     : heft__file_open_within(ckpt->ctx, source, &opening->quota,
                                              ckpt->whole_value && ckpt->file_count == 1,
                                              &slot->file, err);
    }
    if (source && ckpt->file_count > FILES_HELD_OPEN) {
        heft__input_park(source);
    }
    if (status == HEFT_OK) {
        slot->info.format = format && format->open_file ? format->id : slot->file->format;
        slot->info.size_bytes = heft__input_size(slot->file->source);
        slot->info.tensors = slot->file->tensor_count;
    }
    heft__input_unref(source);
    return heft__add_path(status, err, slot->info.path);
}

/* What is wrong with a file is noted beside it. */
static heft_status try_file(struct opening *opening, size_t i)
{
    struct failure *failure = &opening->failures[i];
    heft_error error = {0};
    failure->status = open_file(opening, i, &error);
    if (failure->status != HEFT_OK) {
        failure->error = heft__alloc(opening->ckpt->ctx, sizeof error);
        if (failure->error) {
            *failure->error = error;
        }
    }
    return failure->status;
}

/* One item of parallel work. It never fails as such. */
static heft_status open_item(void *user, size_t i, heft_error *err)
{
    struct opening *opening = user;
    (void)err;
    if (opening->leaders[i] == i) { /* the others are opened afterwards */
        (void)try_file(opening, i);
    }
    return HEFT_OK;
}

/* The first entry of each file, one pass for all; owned; NULL without memory. */
static size_t *first_entries(const heft_checkpoint *ckpt)
{
    size_t *first = heft__alloc_zero(ckpt->ctx, ckpt->file_count, sizeof *first);
    for (size_t i = ckpt->index.entry_count; first && i-- > 0;) {
        first[ckpt->index.entries[i].file] = i;
    }
    return first;
}

/* A shard that is missing is the index's fault, with one tensor that needs it. */
static heft_status blame_index(heft_checkpoint *ckpt, size_t i, size_t first, heft_error *err)
{
    const heft__shard_entry *entry = &ckpt->index.entries[first];
    const heft__finding finding = {.kind = "missing_file",
                                   .severity = HEFT__FAULT,
                                   .status = HEFT_NOT_FOUND,
                                   .file = ckpt->files[i].info.name,
                                   .tensor = entry->name,
                                   .path = ckpt->index.path,
                                   .offset = entry->offset};
    return heft__find(&ckpt->findings, &finding, err, "shard '%.200s' is missing",
                      ckpt->files[i].info.name);
}

static heft_status list_failure(heft_checkpoint *ckpt, size_t i, const struct failure *failure,
                                size_t first, heft_error *err)
{
    const heft__checkpoint_file *slot = &ckpt->files[i];
    const bool missing = failure->status == HEFT_NOT_FOUND;
    if (!failure->error) {
        return heft__fail_nomem(err, sizeof *failure->error);
    }
    if (ckpt->index.claims) {
        heft__add_item(failure->status, failure->error, ckpt->index.entries[first].name);
    } else if (missing && ckpt->where.index && !heft__path_exists(slot->info.path)) {
        return blame_index(ckpt, i, first, err);
    }
    return heft__find_failure(&ckpt->findings,
                              missing                      ? "missing_file"
                              : failure->status == HEFT_IO ? "unreadable"
                                                           : "malformed_file",
                              slot->info.name, failure->error, err);
}

static heft_status list_failures(const struct opening *opening, heft_error *err)
{
    heft_checkpoint *ckpt = opening->ckpt;
    size_t *first = NULL;
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < ckpt->file_count && status == HEFT_OK; i++) {
        if (opening->failures[i].status == HEFT_OK) {
            continue;
        }
        first = first ? first : first_entries(ckpt);
        status = first ? list_failure(ckpt, i, &opening->failures[i], first[i], err)
                       : heft__fail_nomem(err, ckpt->file_count * sizeof *first);
    }
    heft__free(ckpt->ctx, first, ckpt->file_count * sizeof *first);
    return status;
}

/* A file counts once, and is parsed once, whatever number of names lead to it. `bytes` is of all. */
static heft_status find_leaders(struct opening *opening, uint64_t *bytes, heft_error *err)
{
    struct inode {
        uint64_t device, number;
    };
    heft_checkpoint *ckpt = opening->ckpt;
    const bool each = ckpt->where.index_format && ckpt->where.index_format->open_file;
    heft__map seen;
    struct inode *inodes = heft__alloc_zero(ckpt->ctx, ckpt->file_count, sizeof *inodes);
    heft_status status =
        inodes ? HEFT_OK : heft__fail_nomem(err, ckpt->file_count * sizeof *inodes);
    heft__map_init(&seen, ckpt->ctx);
    for (size_t i = 0; i < ckpt->file_count && status == HEFT_OK; i++) {
        const heft__identity it = heft__path_identity(ckpt->files[i].info.path);
        size_t found = HEFT__MAP_NONE;
        inodes[i] = (struct inode){it.device, it.inode};
        opening->leaders[i] = i;
        if (it.inode != 0 &&
            !heft__map_put(&seen, (const char *)&inodes[i], sizeof inodes[i], i, &found)) {
            status = heft__fail_nomem(err, sizeof inodes[i]);
        } else if (found != HEFT__MAP_NONE) {
            ckpt->files[i].again = true;
            opening->leaders[i] = each ? i : found; /* else it is read as the index says */
        } else {
            *bytes = heft__add_most(*bytes, it.bytes);
        }
    }
    heft__map_fini(&seen);
    heft__free(ckpt->ctx, inodes, ckpt->file_count * sizeof *inodes);
    return status;
}

/* What is wrong with a file is wrong with it under another name. */
static void fail_alike(struct opening *opening, size_t i)
{
    const struct failure *first = &opening->failures[opening->leaders[i]];
    struct failure *failure = &opening->failures[i];
    if (first->status == HEFT_OK) {
        (void)try_file(opening, i);
        return;
    }
    failure->status = first->status;
    failure->error = first->error ? heft__alloc(opening->ckpt->ctx, sizeof *failure->error) : NULL;
    if (failure->error) {
        *failure->error = *first->error;
        snprintf(failure->error->path, sizeof failure->error->path, "%s",
                 opening->ckpt->files[i].info.path);
    }
}

/* Open all files, several at once if there are many. */
static void open_each(struct opening *opening)
{
    const size_t count = opening->ckpt->file_count;
    if (count < FILES_IN_PARALLEL) {
        for (size_t i = 0; i < count; i++) {
            (void)open_item(opening, i, NULL);
        }
    } else {
        (void)heft__parallel(opening->ckpt->ctx, count, open_item, opening, NULL);
    }
    for (size_t i = 0; i < count; i++) {
        if (opening->leaders[i] != i) {
            fail_alike(opening, i);
        }
    }
}

/* More tensors than the files may have together: no file is at fault, and none is used. */
static heft_status refuse_tensors(struct opening *opening, heft_error *err)
{
    heft_checkpoint *ckpt = opening->ckpt;
    const heft__finding finding = {.kind = "expansion",
                                   .severity = HEFT__FAULT,
                                   .status = HEFT_LIMIT,
                                   .offset = HEFT_NO_OFFSET};
    heft_error why = {0};
    (void)heft__quota_take(&opening->quota, 1, HEFT_NO_OFFSET, &why);
    for (size_t i = 0; i < ckpt->file_count; i++) {
        heft__file_close(ckpt->ctx, ckpt->files[i].file);
        ckpt->files[i].file = NULL;
        ckpt->files[i].info.tensors = 0;
    }
    return heft__find(&ckpt->findings, &finding, err, "%s", why.message);
}

static heft_status open_files(heft_checkpoint *ckpt, heft_error *err)
{
    const size_t count = ckpt->file_count;
    uint64_t bytes = 0;
    struct opening opening = {
        .ckpt = ckpt,
        .failures = heft__alloc_zero(ckpt->ctx, count, sizeof *opening.failures),
        .leaders = heft__alloc_zero(ckpt->ctx, count, sizeof *opening.leaders)};
    heft_status status = opening.failures && opening.leaders
                             ? find_leaders(&opening, &bytes, err)
                             : heft__fail_nomem(err, count * sizeof *opening.failures);
    if (status == HEFT_OK) {
        heft__quota_init(&opening.quota, ckpt->ctx, bytes);
        if (heft__quota_take(&opening.quota, count * FILE_WEIGHT - FILE_WEIGHT, HEFT_NO_OFFSET,
                             NULL) == HEFT_OK) {
            open_each(&opening);
        }
        status = count > 1 && heft__quota_is_exceeded(&opening.quota)
                     ? refuse_tensors(&opening, err)
                     : list_failures(&opening, err);
        heft__quota_fini(&opening.quota);
    }
    for (size_t i = 0; i < count && opening.failures; i++) {
        heft__free(ckpt->ctx, opening.failures[i].error, sizeof(heft_error));
        ckpt->files[i].first_storage = ckpt->storage_count;
        ckpt->storage_count += ckpt->files[i].file ? ckpt->files[i].file->storage_count : 0;
    }
    heft__free(ckpt->ctx, opening.failures, count * sizeof *opening.failures);
    heft__free(ckpt->ctx, opening.leaders, count * sizeof *opening.leaders);
    return status;
}

/* A file of the checkpoint; where the index goes away its texts are copied. */
static heft_status name_file(heft_checkpoint *ckpt, size_t i, const char *name, const char *path,
                             bool copy, heft_error *err)
{
    heft_file_info *info = &ckpt->files[i].info;
    info->name = copy ? heft__arena_text(&ckpt->arena, name, strlen(name)) : name;
    info->path = copy && path ? heft__arena_text(&ckpt->arena, path, strlen(path)) : path;
    return info->name && info->path ? HEFT_OK : heft__fail_nomem(err, strlen(name));
}

static heft_status make_slots(heft_checkpoint *ckpt, heft_error *err)
{
    const heft__index *index = &ckpt->index;
    const heft__resolved *where = &ckpt->where;
    const size_t set = where->set_count, count = where->index ? index->file_count : set ? set : 1;
    heft_status status = HEFT_OK;
    ckpt->files = heft__arena_array(&ckpt->arena, count, sizeof *ckpt->files);
    if (!ckpt->files) {
        return heft__fail_nomem(err, count * sizeof *ckpt->files);
    }
    ckpt->file_count = count;
    for (size_t i = 0; i < count && !where->index && status == HEFT_OK; i++) {
        const char *name = set ? where->set[i] : where->file;
        status = name_file(ckpt, i, name, heft__path_join(&ckpt->arena, where->folder, name), false,
                           err);
    }
    for (size_t i = 0; i < count && where->index && status == HEFT_OK; i++) {
        status =
            name_file(ckpt, i, index->files[i].name, index->files[i].path, !index->claims, err);
    }
    return status;
}

bool heft__file_is_local(const heft_checkpoint *ckpt, size_t f)
{
    const char *path = ckpt->files[f].info.path, *folder = ckpt->where.folder;
    const size_t length = strlen(folder);
    if (length == 0 || strncmp(path, folder, length) != 0) {
        return false;
    }
    path += length;
    path += folder[length - 1] != '/' && *path == '/';
    return strcmp(path, ckpt->files[f].info.name) == 0;
}

/* ---- the table of names ---------------------------------------------------------------------- */
void heft__checkpoint_place(heft_checkpoint *ckpt, size_t at, size_t f,
                            const heft__file_tensor *tensor)
{
    const heft__checkpoint_file *slot = &ckpt->files[f];
    uint64_t offset;
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
        .file_index = f,
        .offset = offset,
        .size_bytes = tensor->size_bytes,
        .storage = slot->first_storage + tensor->storage,
    };
}

/* At the end of the table, which has room for `most`, or in the place of one of the same name. */
static heft_status add_tensor(heft_checkpoint *ckpt, size_t file, const heft__file_tensor *tensor,
                              size_t most, heft_error *err)
{
    size_t found, at = ckpt->count;
    if (!heft__map_put(&ckpt->names, tensor->name, strlen(tensor->name), at, &found)) {
        return heft__fail_nomem(err, strlen(tensor->name));
    }
    if (found != HEFT__MAP_NONE && !ckpt->doubled) {
        ckpt->doubled = heft__arena_array(&ckpt->arena, most, sizeof *ckpt->doubled);
        if (!ckpt->doubled) {
            return heft__fail_nomem(err, most * sizeof *ckpt->doubled);
        }
    }
    if (found != HEFT__MAP_NONE) {
        ckpt->doubled[found] = true;
        at = found;
    }
    ckpt->count += at == ckpt->count;
    heft__checkpoint_place(ckpt, at, file, tensor);
    return HEFT_OK;
}

static heft_status build_table(heft_checkpoint *ckpt, heft_error *err)
{
    size_t most = 0;
    for (size_t f = 0; f < ckpt->file_count; f++) {
        most += ckpt->files[f].info.tensors;
    }
    ckpt->infos = heft__arena_array(&ckpt->arena, most, sizeof *ckpt->infos);
    ckpt->entries = heft__arena_array(&ckpt->arena, most, sizeof *ckpt->entries);
    if (!ckpt->infos || !ckpt->entries || !heft__map_reserve(&ckpt->names, most)) {
        return heft__fail_nomem(err, most * sizeof *ckpt->infos);
    }
    heft_status status = HEFT_OK;
    for (size_t f = 0; f < ckpt->file_count && status == HEFT_OK; f++) {
        const heft__file *file = ckpt->files[f].file;
        if (!file) {
            continue;
        }
        for (size_t i = 0; i < file->tensor_count && status == HEFT_OK; i++) {
            status = add_tensor(ckpt, f, &file->tensors[i], most, err);
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
    bool fits = true;
    for (size_t i = 0; i < ckpt->count && status == HEFT_OK && fits; i++) {
        fits = first[i] != i ||
               heft__add_u64(ckpt->total_bytes, ckpt->infos[i].size_bytes, &ckpt->total_bytes);
    }
    if (!fits) {
        const heft__finding finding = {.kind = "malformed_file",
                                       .severity = HEFT__FAULT,
                                       .status = HEFT_FORMAT,
                                       .offset = HEFT_NO_OFFSET};
        status = heft__find(&ckpt->findings, &finding, err, "the tensors exceed 2^64 bytes");
    }
    heft__free(ckpt->ctx, first, ckpt->count * sizeof *first);
    return status;
}

uint64_t heft__checkpoint_allowance(const heft_checkpoint *ckpt, uint64_t beyond)
{
    for (size_t f = 0; f < ckpt->file_count; f++) {
        const uint64_t bytes = ckpt->files[f].again ? 0 : ckpt->files[f].info.size_bytes;
        if (!heft__add_u64(beyond, bytes, &beyond) || !heft__add_u64(beyond, bytes, &beyond)) {
            return UINT64_MAX;
        }
    }
    return beyond;
}

/* Views and deflated records may show far more bytes than the files have. */
static heft_status check_expansion(heft_checkpoint *ckpt, heft_error *err)
{
    const uint64_t limit = heft__limits(ckpt->ctx)->expanded_bytes,
                   most = heft__checkpoint_allowance(ckpt, limit);
    const heft__finding finding = {.kind = "expansion",
                                   .severity = HEFT__FAULT,
                                   .status = HEFT_LIMIT,
                                   .offset = HEFT_NO_OFFSET};
    ckpt->expanded = ckpt->total_bytes > most;
    return ckpt->expanded
               ? heft__find(&ckpt->findings, &finding, err,
                            "the tensors expand to %llu bytes, expected at most %llu: twice the "
                            "files and the limit expanded_bytes, %llu",
                            (unsigned long long)ckpt->total_bytes, (unsigned long long)most,
                            (unsigned long long)limit)
               : HEFT_OK;
}

/* ---- a survey -------------------------------------------------------------------------------- */
/* false where the index cannot be read, which is a finding. */
static heft_status read_index(heft_checkpoint *ckpt, bool *good, heft_error *err)
{
    const heft__format *format = ckpt->where.index_format;
    heft_error failure = {0};
    heft_status status = format->read_index(ckpt->ctx, ckpt->where.folder, ckpt->where.index,
                                            ckpt->where.index_input, &ckpt->index, &failure);
    heft__input_unref(ckpt->where.index_input);
    ckpt->where.index_input = NULL;
    *good = status == HEFT_OK;
    ckpt->index.format = format;
    return *good ? HEFT_OK
                 : heft__find_failure(&ckpt->findings, "index", ckpt->where.index, &failure, err);
}

/* A single file and an index beside each other: one of the two is stale. */
static heft_status compare_entry_points(heft_checkpoint *ckpt, heft_error *err)
{
    const heft__resolved *where = &ckpt->where;
    const heft__finding finding = {.kind = where->index ? "stale_file" : "shadowed_index",
                                   .severity = HEFT__DOUBT,
                                   .file = where->shadowed,
                                   .offset = HEFT_NO_OFFSET};
    if (!where->shadowed) {
        return HEFT_OK;
    }
    return where->index
               ? heft__find(&ckpt->findings, &finding, err,
                            "%.200s is older than %.200s and treated as stale", where->shadowed,
                            where->index)
               : heft__find(
                     &ckpt->findings, &finding, err,
                     "%.200s is used instead of %.200s, which may be newer: one of them is stale",
                     where->file, where->shadowed);
}

static heft_status make_table(heft_checkpoint *ckpt, heft_error *err)
{
    heft_status status = open_files(ckpt, err);
    if (status == HEFT_OK && ckpt->index.claims) {
        status = heft__compare_claims(ckpt, err);
    }
    if (status == HEFT_OK) {
        status = build_table(ckpt, err);
    }
    if (status == HEFT_OK) {
        status = heft__settle_doubled(ckpt, err);
    }
    if (status == HEFT_OK) {
        status = sum_bytes(ckpt, err);
    }
    if (status == HEFT_OK) {
        status = check_expansion(ckpt, err);
    }
    return status == HEFT_OK ? heft__compare_doubled(ckpt, err) : status;
}

static heft_status survey(heft_checkpoint *ckpt, heft_error *err)
{
    bool good = true;
    heft_status status = ckpt->where.index ? read_index(ckpt, &good, err) : HEFT_OK;
    if (status != HEFT_OK || !good) {
        return status;
    }
    status = make_slots(ckpt, err);
    if (status == HEFT_OK && ckpt->where.note &&
        !heft__warn(&ckpt->warnings, "%s", ckpt->where.note)) {
        status = heft__fail_nomem(err, 0);
    }
    if (status == HEFT_OK && heft__has_adapter_beside(&ckpt->arena, &ckpt->where) &&
        !heft__warn(&ckpt->warnings,
                    "adapter_config.json: an adapter lies beside the model, which Transformers "
                    "applies if peft is installed; heft does not apply it (merge_and_unload() of "
                    "peft makes a model of both)")) {
        status = heft__fail_nomem(err, 0);
    }
    if (status == HEFT_OK) {
        status = make_table(ckpt, err);
    }
    if (status == HEFT_OK && ckpt->where.index && !ckpt->index.claims) {
        status = heft__compare_index(ckpt, &ckpt->index, err);
        heft__index_fini(&ckpt->index);
    }
    return status == HEFT_OK ? compare_entry_points(ckpt, err) : status;
}

/* An empty checkpoint; NULL without memory. */
static heft_checkpoint *begin(heft_ctx *ctx, heft_error *err)
{
    heft_checkpoint *ckpt = heft__alloc_zero(ctx, 1, sizeof *ckpt);
    if (!ckpt) {
        (void)heft__fail_nomem(err, sizeof *ckpt);
        return NULL;
    }
    ckpt->ctx = heft__ctx_ref(ctx);
    atomic_init(&ckpt->refs, 1);
    heft__arena_init(&ckpt->arena, ctx);
    heft__map_init(&ckpt->names, ctx);
    heft__warnings_init(&ckpt->warnings, &ckpt->arena);
    ckpt->findings.arena = &ckpt->arena;
    return ckpt;
}

/* Hand it out if all went well, else close it. */
static heft_status finish(heft_checkpoint *ckpt, heft_status status, const char *path,
                          heft_checkpoint **out, heft_error *err)
{
    if (status != HEFT_OK) {
        heft_checkpoint_close(ckpt);
        return heft__add_path(status, err, path);
    }
    *out = ckpt;
    return HEFT_OK;
}

static bool is_index_current(const heft__resolved *where)
{
    const heft__identity now =
        where->index_path ? heft__path_identity(where->index_path) : (heft__identity){0};
    return memcmp(&now, &where->index_identity, sizeof now) == 0;
}

bool heft__checkpoint_is_current(const heft_checkpoint *ckpt)
{
    if (!ckpt->where.folder || ckpt->where.lone) {
        return true; /* one file is of one moment */
    }
    const heft__since since = heft__snapshot_compare(ckpt->where.folder, &ckpt->where.snapshot);
    bool current = since != HEFT__REPLACED &&
                   (since == HEFT__UNCHANGED ||
                    (is_index_current(&ckpt->where) && heft__is_still_first(&ckpt->where)));
    for (size_t i = 0; current && since == HEFT__CHANGED && i < ckpt->file_count; i++) {
        const heft__file *file = ckpt->files[i].file;
        current = !file || heft__input_is_current(file->source);
    }
    return current;
}

/* Take what `other` has open, by the paths that an index has for it. */
static heft_status take_beside(heft_checkpoint *ckpt, const heft_checkpoint *other,
                               const char *const *paths, heft_error *err)
{
    size_t found;
    ckpt->beside = other;
    for (size_t i = 0; other && i < other->file_count; i++) {
        if (paths[i] &&
            !heft__map_put(&ckpt->beside_paths, paths[i], strlen(paths[i]), i, &found)) {
            return heft__fail_nomem(err, strlen(paths[i]));
        }
    }
    return HEFT_OK;
}

static bool is_torch(heft_format format)
{
    return format == HEFT_FORMAT_TORCH || format == HEFT_FORMAT_TORCH_LEGACY ||
           format == HEFT_FORMAT_TORCH_TAR;
}

/* Names promise a format, files have one: no other than the one that was asked for is read. */
static heft_status check_format(const heft_checkpoint *ckpt, heft_format asked, heft_error *err)
{
    for (size_t i = 0; asked != HEFT_FORMAT_AUTO && i < ckpt->file_count; i++) {
        const heft_file_info *info = &ckpt->files[i].info;
        const bool fits = info->format == asked || (is_torch(asked) && is_torch(info->format));
        if (ckpt->files[i].file && !fits) {
            return heft__add_path(heft__fail(err, HEFT_NOT_FOUND, "is %s, and %s was asked for",
                                             heft_format_name(info->format),
                                             heft_format_name(asked)),
                                  err, info->path);
        }
    }
    return HEFT_OK;
}

static heft_status survey_once(heft_checkpoint *ckpt, const char *path,
                               const heft_checkpoint_options *options, const heft_checkpoint *other,
                               const char *const *paths, heft_error *err)
{
    heft__map_init(&ckpt->beside_paths, ckpt->ctx);
    ckpt->whole_value = options->whole_value;
    heft_status status = take_beside(ckpt, other, paths, err);
    if (status == HEFT_OK) {
        status = heft__resolve(&ckpt->arena, path, options, &ckpt->where, err);
    }
    if (status == HEFT_OK) {
        status = survey(ckpt, err);
    }
    if (status == HEFT_OK) {
        status = check_format(ckpt, options->prefer, err);
    }
    heft__map_fini(&ckpt->beside_paths);
    ckpt->beside = NULL;
    if (status == HEFT_OK) {
        status = heft__metadata_of_files(ckpt, err);
    }
    return status == HEFT_OK ? heft__maps_make(ckpt, err) : status;
}

heft_status heft__checkpoint_survey_beside(heft_ctx *ctx, const char *path,
                                           const heft_checkpoint_options *options,
                                           const heft_checkpoint *other, const char *const *paths,
                                           heft_checkpoint **out, heft_error *err)
{
    for (unsigned tries = 0;; tries++) {
        heft_checkpoint *ckpt = begin(ctx, err);
        if (!ckpt) {
            return HEFT_NOMEM;
        }
        const heft_status status = survey_once(ckpt, path, options, other, paths, err);
        if (status == HEFT_NOMEM || status == HEFT_CANCELLED || tries == HEFT__OPEN_TRIES ||
            heft__checkpoint_is_current(ckpt)) {
            return finish(ckpt, status, path, out, err);
        }
        heft_checkpoint_close(ckpt); /* replaced while it was opened */
    }
}

heft_status heft__checkpoint_survey(heft_ctx *ctx, const char *path,
                                    const heft_checkpoint_options *options, heft_checkpoint **out,
                                    heft_error *err)
{
    return heft__checkpoint_survey_beside(ctx, path, options, NULL, NULL, out, err);
}

/* ---- opening --------------------------------------------------------------------------------- */
/* Fail by the first finding that is an error, make warnings of the others, and hand it out. */
static heft_status judge(heft_checkpoint *ckpt, bool trust_shards, const char *path,
                         heft_checkpoint **out, heft_error *err)
{
    heft_status status = heft__checkpoint_judge(ckpt, trust_shards, err);
    if (status == HEFT_OK) {
        status = heft__checkpoint_warn(ckpt, err);
    }
    return finish(ckpt, status, path, out, err);
}

heft_status heft_checkpoint_open(heft_ctx *ctx, const char *path,
                                 const heft_checkpoint_options *options, heft_checkpoint **out,
                                 heft_error *err)
{
    heft_checkpoint_options taken;
    heft_checkpoint *ckpt = NULL;
    if (!ctx || !path || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, path or result is NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status == HEFT_OK) {
        status = heft__checkpoint_survey(ctx, path, &taken, &ckpt, err);
    }
    return status == HEFT_OK ? judge(ckpt, taken.trust_shards, path, out, err)
                             : heft__add_path(status, err, path);
}

/* The one file of a checkpoint is an input that is open. */
static heft_status take_input(heft_checkpoint *ckpt, heft__input *source, heft_error *err)
{
    const char *name = heft__input_path(source); /* the file holds the input, and so the name */
    ckpt->where = (heft__resolved){.folder = "", .file = heft__path_base(name), .lone = true};
    ckpt->files = heft__arena_array(&ckpt->arena, 1, sizeof *ckpt->files);
    if (!ckpt->files) {
        return heft__fail_nomem(err, sizeof *ckpt->files);
    }
    heft__checkpoint_file *slot = &ckpt->files[0];
    heft_status status = ckpt->whole_value
                             ? heft__file_open_whole(ckpt->ctx, source, &slot->file, err)
                             : heft__file_open(ckpt->ctx, source, &slot->file, err);
    if (status != HEFT_OK) {
        return status;
    }
    slot->info = (heft_file_info){.name = ckpt->where.file,
                                  .path = name,
                                  .format = slot->file->format,
                                  .size_bytes = heft__input_size(source),
                                  .tensors = slot->file->tensor_count};
    ckpt->file_count = 1;
    ckpt->storage_count = slot->file->storage_count;
    status = build_table(ckpt, err);
    if (status == HEFT_OK) {
        status = sum_bytes(ckpt, err);
    }
    return status == HEFT_OK ? check_expansion(ckpt, err) : status;
}

heft_status heft__checkpoint_open_input(heft_ctx *ctx, heft__input *source,
                                        const heft_checkpoint_options *options,
                                        heft_checkpoint **out, heft_error *err)
{
    const char *name = heft__input_path(source);
    heft_checkpoint_options taken;
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    heft_checkpoint *ckpt = status == HEFT_OK ? begin(ctx, err) : NULL;
    if (!ckpt) {
        return status == HEFT_OK ? HEFT_NOMEM : status;
    }
    ckpt->whole_value = taken.whole_value;
    status = take_input(ckpt, source, err);
    if (status == HEFT_OK) {
        status = heft__metadata_of_files(ckpt, err);
    }
    if (status == HEFT_OK) {
        status = heft__maps_make(ckpt, err);
    }
    return status == HEFT_OK ? judge(ckpt, taken.trust_shards, name, out, err)
                             : finish(ckpt, status, name, out, err);
}

heft_checkpoint *heft__checkpoint_ref(heft_checkpoint *ckpt)
{
    atomic_fetch_add_explicit(&ckpt->refs, 1, memory_order_relaxed);
    return ckpt;
}

/* ---- views ------------------------------------------------------------------------------------ */
heft_status heft__checkpoint_begin_view(heft_checkpoint *base, heft_checkpoint **out,
                                        heft_error *err)
{
    heft_checkpoint *view = begin(base->ctx, err);
    if (!view) {
        return HEFT_NOMEM;
    }
    view->base = heft__checkpoint_ref(base);
    view->where = base->where; /* its texts are lent by the base */
    view->where.index_input = NULL;
    view->expanded = base->expanded;
    for (size_t i = 0; i < base->warnings.count; i++) {
        if (!heft__warn(&view->warnings, "%s", base->warnings.lines[i])) {
            heft_checkpoint_close(view);
            return heft__fail_nomem(err, 0);
        }
    }
    *out = view;
    return HEFT_OK;
}

/* Names and paths are those of the base. */
static heft_status take_files(heft_checkpoint *view, heft__file *const *files, heft_error *err)
{
    const heft_checkpoint *base = view->base;
    view->files = heft__arena_array(&view->arena, base->file_count, sizeof *view->files);
    if (!view->files) {
        return heft__fail_nomem(err, base->file_count * sizeof *view->files);
    }
    for (size_t f = 0; f < base->file_count; f++) {
        view->files[f] = (heft__checkpoint_file){
            .info = base->files[f].info, .file = files[f], .first_storage = view->storage_count};
        view->files[f].info.tensors = files[f]->tensor_count;
        view->storage_count += files[f]->storage_count;
    }
    view->file_count = base->file_count;
    return HEFT_OK;
}

heft_status heft__checkpoint_finish_view(heft_checkpoint *view, heft__file *const *files,
                                         heft_status status, heft_checkpoint **out, heft_error *err)
{
    const heft_checkpoint *base = view->base;
    if (status == HEFT_OK) {
        status = take_files(view, files, err);
    }
    for (size_t f = 0; files && view->file_count == 0 && f < base->file_count; f++) {
        heft__file_close(view->ctx, files[f]);
    }
    if (status == HEFT_OK) {
        status = build_table(view, err);
    }
    if (status == HEFT_OK) {
        status = sum_bytes(view, err);
    }
    if (status == HEFT_OK) {
        status = heft__metadata_of_files(view, err);
    }
    if (status == HEFT_OK) {
        status = heft__maps_make(view, err);
    }
    return finish(view, status, NULL, out, err);
}

void heft_checkpoint_close(heft_checkpoint *ckpt)
{
    if (!ckpt || atomic_fetch_sub_explicit(&ckpt->refs, 1, memory_order_acq_rel) > 1) {
        return;
    }
    heft__maps_free(ckpt);
    for (size_t i = 0; i < ckpt->file_count; i++) {
        heft__file_close(ckpt->ctx, ckpt->files[i].file);
    }
    heft_ctx *ctx = ckpt->ctx;
    heft_checkpoint *base = ckpt->base;
    heft__input_unref(ckpt->where.index_input);
    heft__index_fini(&ckpt->index);
    heft__map_fini(&ckpt->names);
    heft__arena_fini(&ckpt->arena);
    heft__free(ctx, ckpt, sizeof *ckpt);
    heft_checkpoint_close(base);
    heft_ctx_free(ctx);
}
