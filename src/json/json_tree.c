/* json_tree.c - a small document as a tree in an arena: order kept, keys unique, numbers as they
 * stood.
 *
 * For config.json and the like. Reading is a loop with an explicit stack; its depth is the reader's
 * limit. Trusted: nothing; a hostile object of a million keys costs a hash table, not a million
 * comparisons each. It does not: look members up by hash, or judge numbers before they are asked
 * for.
 * Source: RFC 8259. */
#include "json/json.h"

#include <assert.h>
#include <locale.h>
#include <stdlib.h>

#define FEW_MEMBERS 16 /* up to here comparing beats hashing */
#define TEXT_BYTES 32  /* what a text takes beside its bytes, at most */
#define HASH_BYTES 104 /* what a key takes in a hash table that is being enlarged */

static heft__json_value *value_new(heft__arena *arena, heft__json_type type)
{
    heft__json_value *value = heft__arena_alloc(arena, sizeof *value);
    if (value) {
        *value = (heft__json_value){.type = type};
    }
    return value;
}

/* ---- parsing --------------------------------------------------------------------------------- */
struct level { /* an array or object that is still open */
    heft__json_value *value;
    heft__map seen; /* its keys, once they are too many to compare */
    bool hashed;
};

struct builder {
    heft__arena *arena;
    heft__json_value *root;
    struct level *levels;
    size_t depth, cap;
    const char *key; /* of the value to come */
    size_t key_length;
    uint64_t bytes, most; /* of memory: what the values take, and may take */
};

/* Count what is about to be taken. */
static heft_status take(struct builder *b, uint64_t bytes, uint64_t at, heft_error *err)
{
    b->bytes += bytes;
    return b->bytes <= b->most
               ? HEFT_OK
               : heft__fail_at(err, HEFT_LIMIT, at,
                               "the values take more than %llu bytes (limit value_bytes)",
                               (unsigned long long)b->most);
}

static heft_status open_level(struct builder *b, heft__json_value *value, heft_error *err)
{
    /* the deepest level is counted, not each: lists side by side use the same place */
    const uint64_t more = b->depth == b->cap ? (b->cap + 16) * sizeof *b->levels : 0;
    heft_status status = take(b, more, value->offset, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (!heft__array_reserve(b->arena->ctx, (void **)&b->levels, b->depth, &b->cap,
                             sizeof *b->levels)) {
        return heft__fail_nomem(err, sizeof *b->levels);
    }
    b->levels[b->depth++] = (struct level){.value = value};
    return HEFT_OK;
}

static void close_level(struct builder *b)
{
    struct level *level = &b->levels[--b->depth];
    if (level->hashed) {
        heft__map_fini(&level->seen);
    }
}

/* Whether an object has a key yet: by comparing where there are few, by hash where there are many.
 */
static heft_status find_twin(struct builder *b, const char *key, size_t length, bool *twin,
                             heft_error *err)
{
    struct level *level = &b->levels[b->depth - 1];
    const heft__json_value *member = level->value->first;
    size_t found = HEFT__MAP_NONE;
    if (level->value->count < FEW_MEMBERS) {
        while (member && (member->key_length != length || memcmp(member->key, key, length) != 0)) {
            member = member->next;
        }
        *twin = member != NULL;
        return HEFT_OK;
    }
    if (!level->hashed) {
        level->hashed = true;
        heft__map_init(&level->seen, b->arena->ctx);
        for (; member; member = member->next) {
            if (!heft__map_put(&level->seen, member->key, member->key_length, 0, &found)) {
                return heft__fail_nomem(err, member->key_length);
            }
        }
    }
    if (!heft__map_put(&level->seen, key, length, 0, &found)) {
        return heft__fail_nomem(err, length);
    }
    *twin = found != HEFT__MAP_NONE;
    return HEFT_OK;
}

static heft_status take_key(struct builder *b, const heft__json_token *token, heft_error *err)
{
    bool twin = false;
    const bool hashed = b->levels[b->depth - 1].value->count >= FEW_MEMBERS;
    heft_status status =
        take(b, token->length + TEXT_BYTES + (hashed ? HASH_BYTES : 0), token->offset, err);
    if (status == HEFT_OK) {
        status = heft__json_string(token, b->arena, &b->key, &b->key_length, err);
    }
    if (status == HEFT_OK) {
        status = find_twin(b, b->key, b->key_length, &twin, err);
    }
    if (twin) {
        status =
            heft__fail_at(err, HEFT_FORMAT, token->offset, "key '%.100s' occurs twice", b->key);
        status = heft__add_item(status, err, b->key);
    }
    return status;
}

static heft_status take_value(struct builder *b, const heft__json_token *token, heft_error *err)
{
    static const heft__json_type types[] = {
        [HEFT__JSON_OBJECT_BEGIN] = HEFT__JSON_TYPE_OBJECT,
        [HEFT__JSON_ARRAY_BEGIN] = HEFT__JSON_TYPE_ARRAY,
        [HEFT__JSON_STRING] = HEFT__JSON_TYPE_STRING,
        [HEFT__JSON_NUMBER] = HEFT__JSON_TYPE_NUMBER,
        [HEFT__JSON_TRUE] = HEFT__JSON_TYPE_BOOL,
        [HEFT__JSON_FALSE] = HEFT__JSON_TYPE_BOOL,
        [HEFT__JSON_NULL] = HEFT__JSON_TYPE_NULL,
    };
    const bool texts = token->kind == HEFT__JSON_STRING || token->kind == HEFT__JSON_NUMBER;
    heft_status status = take(
        b, sizeof(heft__json_value) + (texts ? token->length + TEXT_BYTES : 0), token->offset, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft__json_value *value = value_new(b->arena, types[token->kind]);
    if (!value) {
        return heft__fail_nomem(err, sizeof *value);
    }
    value->offset = token->offset;
    value->boolean = token->kind == HEFT__JSON_TRUE;
    if (texts) {
        status = heft__json_string(token, b->arena, &value->text, &value->length, err);
        if (status != HEFT_OK) {
            return status;
        }
    }
    value->key = b->key;
    value->key_length = b->key_length;
    b->key = NULL;
    b->key_length = 0;
    if (b->depth > 0) {
        heft__json_append(b->levels[b->depth - 1].value, value);
    } else {
        b->root = value;
    }
    bool opens = value->type == HEFT__JSON_TYPE_OBJECT || value->type == HEFT__JSON_TYPE_ARRAY;
    return opens ? open_level(b, value, err) : HEFT_OK;
}

heft_status heft__json_read_tree(heft__json_reader *reader, const heft__json_token *first,
                                 heft__arena *arena, heft__json_value **out, heft_error *err)
{
    struct builder b = {.arena = arena,
                        .most = heft__add_most(heft__limits(arena->ctx)->value_bytes,
                                               (uint64_t)(reader->end - reader->start))};
    heft__json_token token;
    assert(first->kind != HEFT__JSON_KEY && first->kind != HEFT__JSON_OBJECT_END &&
           first->kind != HEFT__JSON_ARRAY_END && first->kind != HEFT__JSON_END);
    heft_status status = take_value(&b, first, err);
    while (status == HEFT_OK && b.depth > 0) {
        status = heft__json_next(reader, &token, err);
        if (status != HEFT_OK) {
            break;
        }
        if (token.kind == HEFT__JSON_KEY) {
            status = take_key(&b, &token, err);
        } else if (token.kind == HEFT__JSON_OBJECT_END || token.kind == HEFT__JSON_ARRAY_END) {
            close_level(&b);
        } else {
            status = take_value(&b, &token, err);
        }
    }
    if (status == HEFT_OK) {
        *out = b.root;
    }
    while (b.depth > 0) {
        close_level(&b);
    }
    heft__free(arena->ctx, b.levels, b.cap * sizeof *b.levels);
    return status;
}

heft_status heft__json_parse(heft__arena *arena, const void *bytes, size_t length,
                             uint32_t depth_limit, heft__json_value **out, heft_error *err)
{
    heft__json_reader reader;
    heft__json_token token;
    heft__json_value *root = NULL;
    heft__json_init(&reader, bytes, length, 0, depth_limit);
    reader.python = true;
    heft_status status = heft__json_next(&reader, &token, err);
    if (status == HEFT_OK) {
        status = heft__json_read_tree(&reader, &token, arena, &root, err);
    }
    if (status == HEFT_OK) {
        status = heft__json_expect(&reader, HEFT__JSON_END, "the end of the text", &token, err);
    }
    if (status == HEFT_OK) {
        *out = root;
    }
    return status;
}

/* ---- looking --------------------------------------------------------------------------------- */
const heft__json_value *heft__json_member(const heft__json_value *object, const char *key)
{
    if (!object || object->type != HEFT__JSON_TYPE_OBJECT) {
        return NULL;
    }
    size_t length = strlen(key);
    for (const heft__json_value *member = object->first; member; member = member->next) {
        if (member->key_length == length && memcmp(member->key, key, length) == 0) {
            return member;
        }
    }
    return NULL;
}

bool heft__json_as_u64(const heft__json_value *value, uint64_t *out)
{
    uint64_t sum = 0;
    if (!value || value->type != HEFT__JSON_TYPE_NUMBER) {
        return false;
    }
    for (size_t i = 0; i < value->length; i++) {
        char c = value->text[i];
        if (c < '0' || c > '9' || !heft__mul_u64(sum, 10, &sum) ||
            !heft__add_u64(sum, (uint64_t)(c - '0'), &sum)) {
            return false;
        }
    }
    *out = sum;
    return true;
}

bool heft__json_as_i64(const heft__json_value *value, int64_t *out)
{
    if (!value || value->type != HEFT__JSON_TYPE_NUMBER) {
        return false;
    }
    heft__json_value magnitude = *value;
    bool negative = value->text[0] == '-';
    magnitude.text += negative;
    magnitude.length -= negative;
    uint64_t number;
    if (!heft__json_as_u64(&magnitude, &number) || number > (uint64_t)INT64_MAX + negative) {
        return false;
    }
    *out = negative ? (int64_t)(0 - number) : (int64_t)number;
    return true;
}

bool heft__json_as_double(const heft__json_value *value, double *out)
{
    if (!value || value->type != HEFT__JSON_TYPE_NUMBER) {
        return false;
    }
    locale_t c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0); /* the process may write 1,5 */
    if (!c_locale) {
        return false;
    }
    *out = strtod_l(value->text, NULL, c_locale);
    freelocale(c_locale);
    return true;
}

/* ---- making ---------------------------------------------------------------------------------- */
static heft__json_value *new_text(heft__arena *arena, heft__json_type type, const char *text)
{
    heft__json_value *value = value_new(arena, type);
    if (value) {
        value->length = strlen(text);
        value->text = heft__arena_text(arena, text, value->length);
    }
    return value && value->text ? value : NULL;
}

heft__json_value *heft__json_new_string(heft__arena *arena, const char *text)
{
    return new_text(arena, HEFT__JSON_TYPE_STRING, text);
}

heft__json_value *heft__json_new_number(heft__arena *arena, const char *text)
{
    return new_text(arena, HEFT__JSON_TYPE_NUMBER, text);
}

heft__json_value *heft__json_new_bool(heft__arena *arena, bool truth)
{
    heft__json_value *value = value_new(arena, HEFT__JSON_TYPE_BOOL);
    if (value) {
        value->boolean = truth;
    }
    return value;
}

heft__json_value *heft__json_new_null(heft__arena *arena)
{
    return value_new(arena, HEFT__JSON_TYPE_NULL);
}

heft__json_value *heft__json_new_array(heft__arena *arena)
{
    return value_new(arena, HEFT__JSON_TYPE_ARRAY);
}

heft__json_value *heft__json_new_object(heft__arena *arena)
{
    return value_new(arena, HEFT__JSON_TYPE_OBJECT);
}

void heft__json_append(heft__json_value *parent, heft__json_value *item)
{
    item->next = NULL;
    if (parent->last) {
        parent->last->next = item;
    } else {
        parent->first = item;
    }
    parent->last = item;
    parent->count++;
}

/* The link that points to a member and the member before it; *link is NULL where the key is absent.
 */
static heft__json_value **find_link(heft__json_value *object, const char *key,
                                    heft__json_value **before)
{
    const heft__json_value *member = heft__json_member(object, key);
    heft__json_value **link = &object->first;
    *before = NULL;
    while (*link && *link != member) {
        *before = *link;
        link = &(*link)->next;
    }
    return link;
}

bool heft__json_set(heft__arena *arena, heft__json_value *object, const char *key,
                    heft__json_value *value)
{
    size_t length = strlen(key);
    const char *copy = value ? heft__arena_text(arena, key, length) : NULL;
    if (!copy) {
        return false;
    }
    heft__json_value *before, **link = find_link(object, key, &before), *old = *link;
    value->key = copy;
    value->key_length = length;
    if (!old) {
        heft__json_append(object, value);
    } else if (old != value) { /* a new value keeps the place, as in Python's dict */
        value->next = old->next;
        *link = value;
        object->last = object->last == old ? value : object->last;
    }
    return true;
}

void heft__json_remove(heft__json_value *object, const char *key)
{
    heft__json_value *before, **link = find_link(object, key, &before), *old = *link;
    if (old) {
        *link = old->next;
        object->last = object->last == old ? before : object->last;
        object->count--;
    }
}
