/* metadata.c - the pairs of text that go into every file of a format that holds them.
 *
 * A save begins with {"format": "pt"}, as Transformers has it; a conversion with the union of what the
 * source's files hold, or with the same where they hold nothing. The caller's pairs are set on top. */
#include "checkpoint/checkpoint.h"

void heft__metadata_init(heft__metadata *metadata, heft__arena *arena)
{
    *metadata = (heft__metadata){.arena = arena};
    heft__map_init(&metadata->keys, arena->ctx);
}

void heft__metadata_fini(heft__metadata *metadata)
{
    if (metadata->arena) {
        heft__map_fini(&metadata->keys);
        heft__free(metadata->arena->ctx, metadata->pairs, metadata->cap * sizeof *metadata->pairs);
    }
    *metadata = (heft__metadata){0};
}

/* Set a pair, or replace the value of its key; *before is the number of the key's pair that was there,
 * or HEFT__MAP_NONE. */
static heft_status set(heft__metadata *metadata, const heft__text_pair *pair, size_t *before,
                       heft_error *err)
{
    if (!heft__array_reserve(metadata->arena->ctx, (void **)&metadata->pairs, metadata->count,
                             &metadata->cap, sizeof *pair) ||
        !heft__map_put(&metadata->keys, pair->key, pair->key_length, metadata->count, before)) {
        return heft__fail_nomem(err, pair->key_length);
    }
    if (*before == HEFT__MAP_NONE) {
        metadata->pairs[metadata->count++] = *pair;
    } else {
        metadata->pairs[*before].value = pair->value;
        metadata->pairs[*before].value_length = pair->value_length;
    }
    return HEFT_OK;
}

heft_status heft__metadata_standard(heft__metadata *metadata, heft_error *err)
{
    static const heft__text_pair pair = {
        .key = "format", .key_length = 6, .value = "pt", .value_length = 2};
    size_t before;
    return set(metadata, &pair, &before, err);
}

static heft_status check_text(const char *text, const char *what, heft_error *err)
{
    const size_t length = strlen(text);
    return heft__utf8_invalid_at((const uint8_t *)text, length) == length
               ? HEFT_OK
               : heft__fail(err, HEFT_INVALID_ARG, "the %s is not valid UTF-8", what);
}

heft_status heft__metadata_check(const char *key, const char *value, heft_error *err)
{
    if (!key) {
        return heft__fail(err, HEFT_INVALID_ARG, "a metadata key is NULL");
    }
    heft_status status = check_text(key, "metadata key", err);
    if (status == HEFT_OK && value) {
        status = check_text(value, "metadata value", err);
    }
    return heft__add_item(status, err, key);
}

heft_status heft__metadata_add(heft__metadata *metadata, const heft__text_pair *pairs, size_t count,
                               heft_error *err)
{
    heft_status status = HEFT_OK;
    size_t before;
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        status = set(metadata, &pairs[i], &before, err);
    }
    return status;
}

heft_status heft__metadata_set(heft__metadata *metadata, const heft_metadata_pair *pairs,
                               size_t count, heft_error *err)
{
    heft_status status = HEFT_OK;
    if (count > 0 && !pairs) {
        return heft__fail(err, HEFT_INVALID_ARG, "the metadata list is NULL");
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        status = heft__metadata_check(pairs[i].key, pairs[i].value, err);
        if (status == HEFT_OK) {
            const heft__text_pair pair = {.key = pairs[i].key,
                                          .value = pairs[i].value,
                                          .key_length = strlen(pairs[i].key),
                                          .value_length =
                                              pairs[i].value ? strlen(pairs[i].value) : 0};
            size_t before;
            status = set(metadata, &pair, &before, err);
        }
    }
    return status;
}

/* ---- what a checkpoint's files hold ----------------------------------------------------------- */
static bool same_value(const heft__text_pair *a, const heft__text_pair *b)
{
    return a->value_length == b->value_length && memcmp(a->value, b->value, a->value_length) == 0;
}

/* Of two files that differ the first counts; of a key twice in one file the last, as with the reader of
 * safetensors. owner: by pair, the file that it came from. warnings: NULL for none. */
static heft_status merge(heft__metadata *metadata, const heft_checkpoint *ckpt, size_t f,
                         size_t **owner, size_t *owner_cap, heft__warnings *warnings,
                         heft_error *err)
{
    const heft__file *file = ckpt->files[f].file; /* NULL in a survey: it cannot be opened */
    for (size_t i = 0; file && i < file->metadata_count; i++) {
        const heft__text_pair *pair = &file->metadata[i];
        size_t at = heft__map_get(&metadata->keys, pair->key, pair->key_length), before;
        if (at != HEFT__MAP_NONE && (*owner)[at] != f) {
            if (warnings && !same_value(&metadata->pairs[at], pair) &&
                !heft__warn(
                    warnings, "metadata '%.100s' differs between %s and %s: the first is kept",
                    pair->key, ckpt->files[(*owner)[at]].info.name, ckpt->files[f].info.name)) {
                return heft__fail_nomem(err, 0);
            }
            continue;
        }
        if (!heft__array_reserve(metadata->arena->ctx, (void **)owner, metadata->count, owner_cap,
                                 sizeof **owner)) {
            return heft__fail_nomem(err, sizeof **owner);
        }
        (*owner)[at == HEFT__MAP_NONE ? metadata->count : at] = f;
        heft_status status = set(metadata, pair, &before, err);
        if (status != HEFT_OK) {
            return status;
        }
    }
    return HEFT_OK;
}

static heft_status merge_all(heft__metadata *metadata, const heft_checkpoint *ckpt,
                             heft__warnings *warnings, heft_error *err)
{
    size_t *owner = NULL, owner_cap = 0;
    heft_status status = HEFT_OK;
    for (size_t f = 0; f < ckpt->file_count && status == HEFT_OK; f++) {
        status = merge(metadata, ckpt, f, &owner, &owner_cap, warnings, err);
    }
    heft__free(ckpt->ctx, owner, owner_cap * sizeof *owner);
    return status;
}

heft_status heft__metadata_gather(heft__metadata *metadata, const heft_checkpoint *ckpt,
                                  heft__warnings *warnings, heft_error *err)
{
    const heft_status status = merge_all(metadata, ckpt, warnings, err);
    return status == HEFT_OK && metadata->count == 0 ? heft__metadata_standard(metadata, err)
                                                     : status;
}

heft_status heft__metadata_of_files(heft_checkpoint *ckpt, heft_error *err)
{
    heft__metadata merged;
    heft__metadata_init(&merged, &ckpt->arena);
    heft_status status = merge_all(&merged, ckpt, NULL, err);
    if (status == HEFT_OK && merged.count > 0) {
        ckpt->metadata = heft__metadata_list(&merged, &ckpt->metadata_count);
        status = ckpt->metadata ? HEFT_OK : heft__fail_nomem(err, merged.count);
    }
    heft__metadata_fini(&merged);
    return status;
}

bool heft__metadata_is_standard(const heft__metadata *metadata)
{
    return metadata->count == 1 && metadata->pairs[0].key_length == 6 &&
           memcmp(metadata->pairs[0].key, "format", 6) == 0 &&
           metadata->pairs[0].value_length == 2 && memcmp(metadata->pairs[0].value, "pt", 2) == 0;
}

const heft__text_pair *heft__metadata_list(const heft__metadata *metadata, size_t *count)
{
    heft__text_pair *list = heft__arena_array(metadata->arena, metadata->count, sizeof *list);
    *count = 0;
    for (size_t i = 0; list && i < metadata->count; i++) {
        if (metadata->pairs[i].value) {
            list[(*count)++] = metadata->pairs[i];
        }
    }
    return list;
}
