/* pickle_read.c - a pickle out of a file that does not say how long it is, its memory, and what messages call
 * its values. */
#include "format/pickle.h"

#define READ_FIRST ((size_t)1 << 10) /* tar files have very many small ones */

/* ---- memory ---------------------------------------------------------------------------------- */
uint64_t heft__pickle_most(const heft_ctx *ctx, uint64_t file_bytes)
{
    return heft__add_most(heft__limits(ctx)->value_bytes,
                          heft__add_most(file_bytes, file_bytes / 2));
}

heft_status heft__pickle_take(heft__pickle *pickle, uint64_t bytes, uint64_t at, heft_error *err)
{
    if (pickle->used_bytes > pickle->most_bytes ||
        bytes > pickle->most_bytes - pickle->used_bytes) {
        return heft__fail_at(err, HEFT_LIMIT, at,
                             "the pickle and its values take more than %llu bytes (limit "
                             "value_bytes)",
                             (unsigned long long)pickle->most_bytes);
    }
    pickle->used_bytes += bytes;
    return HEFT_OK;
}

void *heft__pk_take(heft__pickle *pickle, uint32_t op_at, size_t bytes, heft_status *status,
                    heft_error *err)
{
    *status = heft__pickle_take(pickle, bytes, pickle->origin + op_at, err);
    if (*status != HEFT_OK) {
        return NULL;
    }
    void *block = heft__arena_words(&pickle->arena, bytes);
    *status = block ? HEFT_OK : heft__fail_nomem(err, bytes);
    return block;
}

heft_status heft__pk_new(heft__pickle *pickle, uint32_t op_at, uint32_t count,
                         heft__pk_object **out, heft_error *err)
{
    heft_status status;
    size_t bytes = sizeof(heft__pk_object) + count * sizeof(heft__pk_cell);
    heft__pk_object *object = heft__pk_take(pickle, op_at, bytes, &status, err);
    if (object) {
        *object = (heft__pk_object){.items = (heft__pk_cell *)(void *)(object + 1),
                                    .count = count,
                                    .cap = count,
                                    .at = op_at};
        *out = object;
        return HEFT_OK;
    }
    return status == HEFT_OK ? HEFT_NOMEM : status; /* never OK, but no compiler knows */
}

heft_status heft__pk_append(heft__pickle *pickle, uint32_t op_at, heft__pk_object *object,
                            const heft__pk_cell *cells, size_t count, heft_error *err)
{
    if (count > object->cap - object->count) {
        heft_status status;
        /* the sum is below the length of the stream; most are filled once */
        size_t cap = (object->count + count) * (object->count ? 2 : 1);
        heft__pk_cell *grown = heft__pk_take(pickle, op_at, cap * sizeof *grown, &status, err);
        if (!grown) {
            return status;
        }
        memcpy(grown, object->items, object->count * sizeof *grown);
        object->items = grown;
        object->cap = (uint32_t)(cap < UINT32_MAX ? cap : UINT32_MAX);
    }
    if (count) {
        memcpy(object->items + object->count, cells, count * sizeof *cells);
        object->count += (uint32_t)count;
    }
    return HEFT_OK;
}

/* ---- reading --------------------------------------------------------------------------------- */
/* A pickle does not say how long it is: it is run on the first bytes, and again on eight times as
 * many if they were too few. */
heft_status heft__pickle_read(heft_ctx *ctx, heft__input *source, uint64_t offset, uint64_t end,
                              heft__pk_ids ids, heft__pickle *pickle, heft_error *err)
{
    const uint64_t limit = heft__limits(ctx)->pickle_bytes, there = end - offset;
    const size_t most = (size_t)(there < limit ? there : limit);
    heft_error failure = {0};
    for (size_t length = READ_FIRST;; length *= 8) {
        length = length < most ? length : most;
        uint8_t *bytes = heft__alloc(ctx, length);
        if (!bytes) {
            return heft__fail_nomem(err, length);
        }
        heft_status status = heft__input_read(source, offset, bytes, length, err);
        if (status != HEFT_OK) {
            heft__free(ctx, bytes, length);
            return status;
        }
        status = heft__pickle_run(ctx, bytes, length, offset, heft__input_size(source), ids, pickle,
                                  &failure);
        pickle->owned = bytes;
        pickle->owned_bytes = length;
        if (status == HEFT_OK) {
            return status;
        }
        if (!pickle->truncated || length == most) {
            if (pickle->truncated && most < there) {
                return heft__fail_at(err, HEFT_LIMIT, offset,
                                     "pickle of more than %zu bytes (limit pickle_bytes)", most);
            }
            if (err) {
                *err = failure;
            }
            return status;
        }
        heft__pickle_fini(pickle);
    }
}

void heft__pickle_fini(heft__pickle *pickle)
{
    if (pickle->ctx) {
        heft__arena_fini(&pickle->arena);
        heft__free(pickle->ctx, pickle->owned, pickle->owned_bytes);
    }
    *pickle = (heft__pickle){0};
}

const char *heft__pk_kind_name(const heft__pk_cell *cell)
{
    static const char *const kinds[] = {
        [HEFT__PK_NONE] = "None",      [HEFT__PK_BOOL] = "a bool",
        [HEFT__PK_INT] = "an integer", [HEFT__PK_BIGINT] = "an integer of more than 64 bits",
        [HEFT__PK_FLOAT] = "a float",  [HEFT__PK_TEXT] = "a string",
        [HEFT__PK_BYTES] = "bytes",    [HEFT__PK_GLOBAL] = "a global",
        [HEFT__PK_TUPLE] = "a tuple",  [HEFT__PK_LIST] = "a list",
        [HEFT__PK_SET] = "a set",      [HEFT__PK_DICT] = "a dict",
        [HEFT__PK_CALL] = "an object", [HEFT__PK_PERSID] = "a storage",
    };
    return kinds[cell->kind];
}

bool heft__pk_is_text(const heft__pickle *pickle, const heft__pk_cell *cell, const char *text)
{
    return cell->kind == HEFT__PK_TEXT && cell->as.text.length == strlen(text) &&
           memcmp(heft__pk_text(pickle, cell), text, cell->as.text.length) == 0;
}

bool heft__pk_is_name(const heft__pickle *pickle, const heft__pk_cell *cell, const char *name)
{
    return cell->global != HEFT__PKG_UNKNOWN && cell->as.text.length == strlen(name) &&
           memcmp(heft__pk_text(pickle, cell), name, cell->as.text.length) == 0;
}

/* ---- persistent ids -------------------------------------------------------------------------- */
bool heft__pk_is_module_id(const heft__pickle *pickle, const heft__pk_cell *id)
{
    const heft__pk_object *tuple = id->as.object;
    return pickle->ids == HEFT__PK_IDS_LEGACY && id->kind == HEFT__PK_TUPLE && tuple->count == 4 &&
           heft__pk_is_text(pickle, &tuple->items[0], "module") &&
           tuple->items[1].kind == HEFT__PK_GLOBAL;
}

heft_status heft__pk_check_id(const heft__pickle *pickle, const heft__pk_cell *id, uint64_t at,
                              heft_error *err)
{
    const uint32_t wanted = pickle->ids == HEFT__PK_IDS_LEGACY ? 6 : 5;
    if (pickle->ids == HEFT__PK_IDS_NONE) {
        return heft__fail_at(err, HEFT_FORMAT, at, "unexpected persistent id: the format has none");
    }
    if (pickle->ids == HEFT__PK_IDS_TAR) {
        return id->kind == HEFT__PK_INT
                   ? HEFT_OK
                   : heft__fail_at(err, HEFT_UNSUPPORTED, at,
                                   "persistent id must be an integer, found %s",
                                   heft__pk_kind_name(id));
    }
    if (id->kind != HEFT__PK_TUPLE) {
        return heft__fail_at(err, HEFT_FORMAT, at, "persistent id must be a tuple of %u, found %s",
                             wanted, heft__pk_kind_name(id));
    }
    const heft__pk_object *tuple = id->as.object;
    const heft__pk_cell *tag = tuple->items;
    if (heft__pk_is_module_id(pickle, id)) {
        return HEFT_OK;
    }
    if (tuple->count > 0 && tag->kind == HEFT__PK_TEXT &&
        !heft__pk_is_text(pickle, tag, "storage")) {
        return heft__fail_at(err, HEFT_FORMAT, at, "persistent id tag '%.*s', expected 'storage'",
                             (int)(tag->as.text.length < 100 ? tag->as.text.length : 100),
                             heft__pk_text(pickle, tag));
    }
    if (tuple->count != wanted) {
        return heft__fail_at(err, HEFT_FORMAT, at, "persistent id has %u items, expected %u",
                             tuple->count, wanted);
    }
    if (tag->kind != HEFT__PK_TEXT) {
        return heft__fail_at(err, HEFT_FORMAT, at, "persistent id tag must be a string, found %s",
                             heft__pk_kind_name(tag));
    }
    return HEFT_OK;
}
