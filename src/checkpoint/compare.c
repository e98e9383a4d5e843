/* compare.c - an index against its files, and a folder against its checkpoint: the one place.
 *
 * An index is a hint, the files are the truth. What does not fit together is a finding; whether that
 * is an error, a warning or a line of a report is decided by who reads the findings.
 * Source: docs/formats/shard_index.md [3], docs/formats/offload.md [3]. */
#include "checkpoint/checkpoint.h"

#include <stdlib.h>

/* ---- claims: what an index says of each tensor ------------------------------------------------ */
struct claims {
    heft_checkpoint *ckpt;
    size_t *order;         /* [entry_count] numbers of entries, file after file */
    heft__map map;         /* names of one file's tensors */
    heft__file_tensor *to; /* the tensors of one file that are kept */
    size_t kept;
};

/* Entry i against its tensor, NULL if the file has none of this name; *good is whether they agree. */
static heft_status compare_claim(struct claims *c, size_t i, const heft__file_tensor *tensor,
                                 bool *good, heft_error *err)
{
    heft_checkpoint *ckpt = c->ckpt;
    const heft__shard_entry *entry = &ckpt->index.entries[i];
    const heft__claim *claim = &ckpt->index.claims[i];
    const char *path = ckpt->index.files[entry->file].path;
    char ours[HEFT__SHAPE_TEXT], theirs[HEFT__SHAPE_TEXT];
    const heft__finding finding = {.kind = "index_wrong",
                                   .severity = HEFT__FAULT,
                                   .status = HEFT_FORMAT,
                                   .file = ckpt->where.index,
                                   .tensor = entry->name,
                                   .path = ckpt->index.path,
                                   .offset = entry->offset};
    *good = false;
    if (!tensor) {
        return heft__find(&ckpt->findings, &finding, err, "'%.100s' is not in '%.200s'",
                          claim->weight, path);
    }
    if (claim->dtype != HEFT_DTYPE_NONE && claim->dtype != tensor->dtype) {
        return heft__find(&ckpt->findings, &finding, err, "dtype %s in the index, %s in '%.200s'",
                          heft_dtype_name(claim->dtype), heft_dtype_name(tensor->dtype), path);
    }
    if (claim->shape &&
        !heft__shape_equal(claim->shape, claim->rank, tensor->shape, tensor->rank)) {
        return heft__find(&ckpt->findings, &finding, err, "shape %s in the index, %s in '%.200s'",
                          heft__shape_text(claim->shape, claim->rank, ours),
                          heft__shape_text(tensor->shape, tensor->rank, theirs), path);
    }
    *good = true;
    return HEFT_OK;
}

/* What a tensor is called in its file: one that another index has named keeps it as its record. */
static const char *name_in_file(const heft__file *file, const heft__file_tensor *tensor)
{
    const char *record = file->lender ? file->storages[tensor->storage].record : NULL;
    return record ? record : tensor->name;
}

static heft_status map_tensors(struct claims *c, const heft__file *file, heft_error *err)
{
    size_t found;
    for (size_t i = 0; i < file->tensor_count; i++) {
        const char *name = name_in_file(file, &file->tensors[i]);
        if (!heft__map_put(&c->map, name, strlen(name), i, &found)) {
            return heft__fail_nomem(err, strlen(name));
        }
    }
    return HEFT_OK;
}

/* Leave only these entries' tensors in a file, in this order, under the index's names; a storage's
 * `record` is then the name in the file. */
static heft_status keep_claimed(struct claims *c, heft__file *file, const size_t *order,
                                size_t count, heft_error *err)
{
    const heft__index *index = &c->ckpt->index;
    heft__file_tensor *chosen = heft__arena_array(&file->arena, count, sizeof *chosen);
    size_t kept = 0;
    if (!chosen) {
        return heft__fail_nomem(err, count * sizeof *chosen);
    }
    heft__map_init(&c->map, c->ckpt->ctx);
    heft_status status = map_tensors(c, file, err);
    for (size_t k = 0; k < count && status == HEFT_OK; k++) {
        const char *weight = index->claims[order[k]].weight;
        const size_t at = heft__map_get(&c->map, weight, strlen(weight));
        const heft__file_tensor *tensor = at == HEFT__MAP_NONE ? NULL : &file->tensors[at];
        bool good;
        status = compare_claim(c, order[k], tensor, &good, err);
        if (status == HEFT_OK && good) {
            chosen[kept] = *tensor;
            chosen[kept++].name = index->entries[order[k]].name;
            file->storages[tensor->storage].record = name_in_file(file, tensor);
        }
    }
    heft__map_fini(&c->map);
    file->tensors = chosen;
    file->tensor_count = kept;
    return status;
}

/* A file that is nothing but one tensor, which the index describes, is as the index has it. */
static bool is_described(const heft__index *index, const heft__file *file, size_t entry)
{
    return file->tensor_count == 1 && file->tensors[0].name == index->entries[entry].name;
}

/* Numbers of the entries, file after file, each file's in the order of the index; first[f] is where
 * those of file f begin. */
static void sort_entries(const heft__index *index, size_t *order, size_t *first)
{
    for (size_t i = 0; i < index->entry_count; i++) {
        first[index->entries[i].file + 1]++;
    }
    for (size_t f = 0; f < index->file_count; f++) {
        first[f + 1] += first[f];
    }
    for (size_t i = 0; i < index->entry_count; i++) {
        order[first[index->entries[i].file]++] = i;
    }
    for (size_t f = index->file_count; f > 0; f--) { /* each has become the beginning of the next */
        first[f] = first[f - 1];
    }
    first[0] = 0;
}

heft_status heft__compare_claims(heft_checkpoint *ckpt, heft_error *err)
{
    const heft__index *index = &ckpt->index;
    struct claims c = {.ckpt = ckpt};
    size_t *order = heft__alloc_zero(ckpt->ctx, index->entry_count, sizeof *order);
    size_t *first = heft__alloc_zero(ckpt->ctx, index->file_count + 1, sizeof *first);
    heft_status status =
        order && first ? HEFT_OK : heft__fail_nomem(err, index->entry_count * sizeof *order);
    if (status == HEFT_OK) {
        sort_entries(index, order, first);
    }
    for (size_t f = 0; f < index->file_count && status == HEFT_OK; f++) {
        heft__file *file = ckpt->files[f].file;
        const size_t count = first[f + 1] - first[f];
        if (file && !is_described(index, file, order[first[f]])) {
            status = keep_claimed(&c, file, order + first[f], count, err);
            ckpt->files[f].info.tensors = file->tensor_count;
        }
    }
    heft__free(ckpt->ctx, order, index->entry_count * sizeof *order);
    heft__free(ckpt->ctx, first, (index->file_count + 1) * sizeof *first);
    return status;
}

/* ---- listings: which file has which tensor ---------------------------------------------------- */
/* The number of an entry's tensor: most often the one after the last that was found in its file,
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

/* An entry whose tensor is not in the file where the index has it, but at `at`, or nowhere. */
static heft_status misplaced(heft_checkpoint *ckpt, const heft__index *index,
                             const heft__shard_entry *entry, size_t at, heft_error *err)
{
    const bool nowhere = at == HEFT__MAP_NONE;
    const heft__finding finding = {.kind = "index_wrong",
                                   .severity = HEFT__CONTRADICTION,
                                   .status = HEFT_FORMAT,
                                   .file = ckpt->where.index,
                                   .tensor = entry->name,
                                   .path = index->path,
                                   .offset = entry->offset};
    if (nowhere && !ckpt->files[entry->file].file) {
        return HEFT_OK; /* the file itself is the fault */
    }
    return heft__find(&ckpt->findings, &finding, err,
                      "not found in '%.100s', where the index lists it%s%.100s%s",
                      index->files[entry->file].name, nowhere ? "" : ", but in '",
                      nowhere ? "" : ckpt->infos[at].file, nowhere ? "" : "'");
}

/* `next`: by file, its first tensor. */
static heft_status compare_listed(heft_checkpoint *ckpt, const heft__index *index, bool *listed,
                                  size_t *next, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < index->entry_count && status == HEFT_OK; i++) {
        const heft__shard_entry *entry = &index->entries[i];
        const size_t at = find_entry(ckpt, entry, next);
        if (at == HEFT__MAP_NONE || ckpt->infos[at].file_index != entry->file) {
            status = misplaced(ckpt, index, entry, at, err);
        }
        if (at != HEFT__MAP_NONE) {
            listed[at] = true;
        }
    }
    return status;
}

static heft_status compare_unlisted(heft_checkpoint *ckpt, const bool *listed, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < ckpt->count && status == HEFT_OK; i++) {
        if (!listed[i]) {
            const heft__checkpoint_file *slot = &ckpt->files[ckpt->infos[i].file_index];
            const heft__finding finding = {.kind = "not_in_index",
                                           .severity = HEFT__DOUBT,
                                           .file = slot->info.name,
                                           .tensor = ckpt->infos[i].name,
                                           .path = slot->info.path,
                                           .offset = HEFT_NO_OFFSET};
            status = heft__find(&ckpt->findings, &finding, err, "not listed in the index");
        }
    }
    return status;
}

/* A total as writers of other times have it: a float; tied tensors once for each name; an eighth of a byte
 * for a bool, with either way of counting. */
static bool is_old_total(const heft_checkpoint *ckpt, const heft__json_value *total, double said)
{
    double every_name = 0, less = 0;
    for (size_t i = 0; i < ckpt->count; i++) {
        const double bytes = (double)ckpt->infos[i].size_bytes;
        every_name += bytes;
        less += ckpt->infos[i].dtype == HEFT_DTYPE_BOOL ? bytes * 7 / 8 : 0;
    }
    const double once = (double)ckpt->total_bytes;
    return strpbrk(total->text, ".eE") || said == every_name ||
           (said > once - less - 1 && said < once - less + 1) ||
           (said > every_name - less - 1 && said < every_name - less + 1);
}

/* metadata.total_size against the storages, each once. Without every file there is nothing to
 * compare. */
static heft_status compare_total(heft_checkpoint *ckpt, const heft__index *index, heft_error *err)
{
    double said;
    const heft__json_value *total = heft__json_member(index->metadata, "total_size");
    bool whole = true;
    for (size_t f = 0; f < ckpt->file_count; f++) {
        whole = whole && ckpt->files[f].file;
    }
    if (!whole || !total || !heft__json_as_double(total, &said) ||
        said == (double)ckpt->total_bytes) {
        return HEFT_OK;
    }
    const heft__finding finding = {.kind = "total_size",
                                   .severity =
                                       is_old_total(ckpt, total, said) ? HEFT__NOTE : HEFT__DOUBT,
                                   .file = ckpt->where.index,
                                   .path = index->path,
                                   .offset = HEFT_NO_OFFSET};
    return heft__find(&ckpt->findings, &finding, err,
                      "total_size is %.60s in the index, but the tensors have %llu bytes",
                      total->text, (unsigned long long)ckpt->total_bytes);
}

heft_status heft__compare_index(heft_checkpoint *ckpt, const heft__index *index, heft_error *err)
{
    bool *listed = heft__alloc_zero(ckpt->ctx, ckpt->count, sizeof *listed);
    size_t *next = heft__alloc_zero(ckpt->ctx, index->file_count, sizeof *next), at = 0;
    for (size_t f = 0; next && f < index->file_count; f++) {
        next[f] = at;
        at += ckpt->files[f].info.tensors;
    }
    heft_status status = listed && next ? compare_listed(ckpt, index, listed, next, err)
                                        : heft__fail_nomem(err, ckpt->count);
    if (status == HEFT_OK) {
        status = compare_unlisted(ckpt, listed, err);
    }
    if (status == HEFT_OK) {
        status = compare_total(ckpt, index, err);
    }
    heft__free(ckpt->ctx, listed, ckpt->count * sizeof *listed);
    heft__free(ckpt->ctx, next, index->file_count * sizeof *next);
    return status;
}

/* ---- what lies beside ------------------------------------------------------------------------- */
/* Whether a name is one that only weights have; files of a format with an index of its own are known
 * by that index only. */
static bool is_weights(const heft_checkpoint *ckpt, const char *name, const char *variant)
{
    const heft__format *format;
    for (size_t i = 0; (format = heft__format_in_folder(NULL, i)) != NULL; i++) {
        if ((!format->file_each || format == ckpt->where.index_format) &&
            heft__is_shard_name(name, format, variant)) {
            return true;
        }
    }
    return false;
}

static heft_status look_at_name(const heft_checkpoint *ckpt, const heft__map *used,
                                const char *name, const char *variant, heft__findings *findings,
                                heft_error *err)
{
    const heft__finding finding = {
        .kind = "stale_file", .severity = HEFT__NOTE, .file = name, .offset = HEFT_NO_OFFSET};
    if (ckpt->file_count > 0 && is_weights(ckpt, name, variant) && /* an index was read */
        heft__map_get(used, name, strlen(name)) == HEFT__MAP_NONE) {
        const bool each = ckpt->where.index_format && ckpt->where.index_format->file_each;
        return heft__find(findings, &finding, err,
                          each ? "weights that the index does not list"
                               : "a shard that this checkpoint does not use");
    }
    return strstr(name, ".heft-tmp-")
               ? heft__find(findings, &finding, err, "left by an interrupted save")
               : HEFT_OK;
}

/* Work folders beside the folder: PARENT/.NAME.heft-tmp-*; locks say nothing. A parent that cannot be listed has none. */
static heft_status look_beside(const heft_checkpoint *ckpt, heft__arena *arena,
                               heft__findings *findings, heft_error *err)
{
    char *real = realpath(ckpt->where.folder, NULL);
    const char *base = real ? heft__path_base(real) : "",
               *parent = heft__path_join(arena, ckpt->where.folder, "..");
    const char *prefix = heft__arena_format(arena, ".%s.heft-tmp-", base), *const *names = NULL;
    size_t count = 0;
    heft_error why = {0};
    heft_status status =
        parent && prefix ? HEFT_OK : heft__fail_nomem(err, strlen(ckpt->where.folder));
    const heft_status listing = status == HEFT_OK && *base
                                    ? heft__folder_names(arena, parent, &names, &count, &why)
                                    : status;
    const bool listed = names != NULL && listing == HEFT_OK;
    if (listing == HEFT_NOMEM) {
        status = heft__fail_nomem(err, 0);
    }
    for (size_t i = 0; listed && i < count && status == HEFT_OK; i++) {
        const heft__finding finding = {
            .kind = "leftover", .severity = HEFT__NOTE, .file = names[i], .offset = HEFT_NO_OFFSET};
        if (strncmp(names[i], prefix, strlen(prefix)) == 0 && !heft__ends_with(names[i], "-lock")) {
            status = heft__find(findings, &finding, err,
                                "beside this folder: a write to it that is under way, was killed, "
                                "or waits for --resume; the next write to it removes it");
        }
    }
    free(real);
    return status;
}

heft_status heft__compare_folder(const heft_checkpoint *ckpt, const char *variant,
                                 heft__findings *findings, heft_error *err)
{
    heft__map used; /* names of the checkpoint's files */
    heft_status status = HEFT_OK;
    size_t found;
    if (!heft__checkpoint_has_folder(ckpt)) {
        return HEFT_OK;
    }
    heft__map_init(&used, ckpt->ctx);
    for (size_t f = 0; f < ckpt->file_count && status == HEFT_OK; f++) {
        const char *name = ckpt->files[f].info.name;
        if (heft__file_is_local(ckpt, f) && !heft__map_put(&used, name, strlen(name), f, &found)) {
            status = heft__fail_nomem(err, strlen(name));
        }
    }
    const char *const *names = NULL;
    size_t count = 0;
    heft__arena arena;
    heft__arena_init(&arena, ckpt->ctx);
    if (status == HEFT_OK) {
        status = heft__folder_names(&arena, ckpt->where.folder, &names, &count, err);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        status = look_at_name(ckpt, &used, names[i], variant, findings, err);
    }
    if (status == HEFT_OK) {
        status = look_beside(ckpt, &arena, findings, err);
    }
    heft__arena_fini(&arena);
    heft__map_fini(&used);
    return status;
}
