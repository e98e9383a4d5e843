/* offload_index.c - Accelerate's index.json: which tensors an offload folder holds, and where.
 *
 *   {"a.weight": {"dtype": "float32", "shape": [2, 3]},                      a.weight.dat beside it
 *    "b.weight": {"safetensors_file": "/abs/model.safetensors",              a tensor of that file
 *                 "weight_name": "b.weight", "dtype": "float32"}}
 *
 * Trusted: nothing. A name may not lead out of the folder, a path must be absolute (Accelerate
 * takes a relative one from wherever it stands), a shape's product fits into 64 bits. It does not
 * look whether the files exist or hold what is said of them: that is offload_files.c's work.
 * Source: docs/formats/offload.md [1], [2], [4]; accelerate 1.15 utils/offload.py. */
#include "format/format.h"

#include <stdlib.h>

struct parse {
    heft_ctx *ctx;
    heft__offload_index *index;
    heft__json_reader json;
    heft__map names;
    heft__offload_entry *entries;
    size_t count, cap;
    uint64_t *shape; /* the one being read */
    size_t rank, shape_cap;
};

enum { FIELD_DTYPE = 1, FIELD_SHAPE = 2, FIELD_FILE = 4, FIELD_WEIGHT = 8 };

static unsigned field_of(const heft__json_token *key)
{
    return heft__json_is(key, "dtype")              ? FIELD_DTYPE
           : heft__json_is(key, "shape")            ? FIELD_SHAPE
           : heft__json_is(key, "safetensors_file") ? FIELD_FILE
           : heft__json_is(key, "weight_name")      ? FIELD_WEIGHT
                                                    : 0;
}

/* ---- dtypes ---------------------------------------------------------------------------------- */
/* What NumPy has, and what Accelerate stores as integers of the same width. */
static const heft_dtype held[] = {
    HEFT_DTYPE_F32,     HEFT_DTYPE_F64,         HEFT_DTYPE_F16,         HEFT_DTYPE_BF16,
    HEFT_DTYPE_I64,     HEFT_DTYPE_I32,         HEFT_DTYPE_I16,         HEFT_DTYPE_I8,
    HEFT_DTYPE_U8,      HEFT_DTYPE_U16,         HEFT_DTYPE_U32,         HEFT_DTYPE_U64,
    HEFT_DTYPE_BOOL,    HEFT_DTYPE_C64,         HEFT_DTYPE_C128,        HEFT_DTYPE_F8_E4M3FN,
    HEFT_DTYPE_F8_E5M2, HEFT_DTYPE_F8_E4M3FNUZ, HEFT_DTYPE_F8_E5M2FNUZ, HEFT_DTYPE_F8_E8M0FNU,
};

bool heft__offload_holds(heft_dtype dtype)
{
    for (size_t i = 0; i < sizeof held / sizeof held[0]; i++) {
        if (held[i] == dtype) {
            return true;
        }
    }
    return false;
}

static heft_dtype find_dtype(const char *name)
{
    for (size_t i = 0; i < sizeof held / sizeof held[0]; i++) {
        if (strcmp(heft_dtype_name(held[i]), name) == 0) {
            return held[i];
        }
    }
    return HEFT_DTYPE_NONE;
}

/* ---- fields ---------------------------------------------------------------------------------- */
/* A string without NULs. */
static heft_status read_text(struct parse *p, const char *what, const char **text, uint64_t *at,
                             heft_error *err)
{
    heft__json_token token;
    size_t length = 0;
    heft_status status = heft__json_expect(&p->json, HEFT__JSON_STRING, what, &token, err);
    if (status == HEFT_OK) {
        status = heft__json_string(&token, &p->index->arena, text, &length, err);
        *at = token.offset;
    }
    if (status == HEFT_OK && memchr(*text, 0, length)) {
        status =
            heft__fail_at(err, HEFT_FORMAT, token.offset, "'%.100s\\0...' contains a NUL", *text);
    }
    return status;
}

static heft_status read_dtype(struct parse *p, heft__offload_entry *entry, heft_error *err)
{
    const char *name = NULL;
    uint64_t at = 0;
    heft_status status = read_text(p, "a string as dtype", &name, &at, err);
    if (status == HEFT_OK) {
        entry->dtype = find_dtype(name);
        if (entry->dtype == HEFT_DTYPE_NONE) {
            status = heft__fail_at(err, HEFT_FORMAT, at, "unknown dtype '%.40s'", name);
        }
    }
    return status;
}

static heft_status read_file(struct parse *p, heft__offload_entry *entry, heft_error *err)
{
    uint64_t at = 0;
    heft_status status = read_text(p, "a string as safetensors_file", &entry->file, &at, err);
    if (status == HEFT_OK && entry->file[0] != '/') {
        status = heft__fail_at(err, HEFT_REFUSED, at,
                               "safetensors_file '%.200s' must be absolute: a relative path "
                               "depends on the current folder",
                               entry->file);
    }
    return status;
}

static heft_status read_shape(struct parse *p, heft__offload_entry *entry, heft_error *err)
{
    const uint32_t limit = heft__limits(p->ctx)->rank;
    heft__json_token token;
    heft_status status =
        heft__json_expect(&p->json, HEFT__JSON_ARRAY_BEGIN, "an array as shape", &token, err);
    p->rank = 0;
    while (status == HEFT_OK) {
        status = heft__json_next(&p->json, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_ARRAY_END) {
            break;
        }
        if (token.kind != HEFT__JSON_NUMBER) {
            return heft__fail_at(err, HEFT_FORMAT, token.offset,
                                 "a dimension must be a number, found %s",
                                 heft__json_kind_name(token.kind));
        }
        if (p->rank >= limit) {
            return heft__fail_at(err, HEFT_LIMIT, token.offset,
                                 "more than %u dimensions (limit rank)", limit);
        }
        if (!heft__array_reserve(p->ctx, (void **)&p->shape, p->rank, &p->shape_cap,
                                 sizeof *p->shape)) {
            return heft__fail_nomem(err, sizeof *p->shape);
        }
        status = heft__json_u64(&token, "a dimension", &p->shape[p->rank++], err);
    }
    uint64_t *copy =
        status == HEFT_OK ? heft__arena_array(&p->index->arena, p->rank, sizeof *copy) : NULL;
    if (status == HEFT_OK && !copy) {
        status = heft__fail_nomem(err, p->rank * sizeof *copy);
    }
    if (copy) {
        if (p->rank) {
            memcpy(copy, p->shape, p->rank * sizeof *copy);
        }
        entry->shape = copy;
        entry->rank = (uint32_t)p->rank;
    }
    return status;
}

static heft_status read_field(struct parse *p, unsigned field, heft__offload_entry *entry,
                              heft_error *err)
{
    heft__json_token token;
    uint64_t at;
    heft_status status;
    switch (field) {
    case FIELD_DTYPE:
        return read_dtype(p, entry, err);
    case FIELD_SHAPE:
        return read_shape(p, entry, err);
    case FIELD_FILE:
        return read_file(p, entry, err);
    case FIELD_WEIGHT:
        return read_text(p, "a string as weight_name", &entry->weight, &at, err);
    default: /* Accelerate looks at no other */
        status = heft__json_next(&p->json, &token, err);
        return status == HEFT_OK ? heft__json_skip(&p->json, &token, err) : status;
    }
}

/* ---- entries --------------------------------------------------------------------------------- */
/* A name that gives a file must be one. */
static heft_status check_file_name(const heft__offload_entry *entry, heft_error *err)
{
    const char *name = entry->name;
    if (strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        return heft__fail_at(err, HEFT_REFUSED, entry->offset,
                             "'%.100s.dat' would not be a file in this folder", name);
    }
    return HEFT_OK;
}

/* What an entry says, together. */
static heft_status check_entry(heft__offload_entry *entry, unsigned seen, heft_error *err)
{
    char shape[HEFT__SHAPE_TEXT];
    const unsigned needed = seen & FIELD_FILE ? 0 : FIELD_DTYPE | FIELD_SHAPE;
    if (needed & ~seen) {
        return heft__fail_at(err, HEFT_FORMAT, entry->offset, "field '%s' is missing",
                             needed & ~seen & FIELD_DTYPE ? "dtype" : "shape");
    }
    if (!entry->file) {
        entry->weight = NULL; /* Accelerate does not look at it */
        heft_status status = check_file_name(entry, err);
        if (status != HEFT_OK) {
            return status;
        }
    } else if (!entry->weight) {
        entry->weight = entry->name;
    }
    if (entry->shape && entry->dtype != HEFT_DTYPE_NONE &&
        !heft__shape_bytes(entry->dtype, entry->shape, entry->rank, &entry->size_bytes)) {
        return heft__fail_at(err, HEFT_FORMAT, entry->offset, "shape %s exceeds 2^64 bytes as %s",
                             heft__shape_text(entry->shape, entry->rank, shape),
                             heft_dtype_name(entry->dtype));
    }
    return HEFT_OK;
}

static heft_status read_key(struct parse *p, const heft__json_token *token,
                            heft__offload_entry *entry, heft_error *err)
{
    const heft_limits *limits = heft__limits(p->ctx);
    size_t length, found = HEFT__MAP_NONE;
    heft_status status = heft__json_string(token, &p->index->arena, &entry->name, &length, err);
    if (status != HEFT_OK) {
        return status;
    }
    entry->offset = token->offset;
    if (length > limits->name_bytes) {
        status = heft__fail_at(err, HEFT_LIMIT, token->offset,
                               "tensor name has %zu bytes, the limit is %llu (limit name_bytes)",
                               length, (unsigned long long)limits->name_bytes);
    } else if (p->count >= limits->tensors) {
        status =
            heft__fail_at(err, HEFT_LIMIT, token->offset, "more than %llu tensors (limit tensors)",
                          (unsigned long long)limits->tensors);
    } else if (p->count >= limits->small_tensors) {
        status = heft__fail_at(err, HEFT_LIMIT, token->offset,
                               "more than %zu names, the limit small_tensors", p->count);
    } else if (memchr(entry->name, 0, length)) {
        status = heft__fail_at(err, HEFT_FORMAT, token->offset, "tensor name contains a NUL");
    } else if (!heft__map_put(&p->names, entry->name, length, p->count, &found)) {
        status = heft__fail_nomem(err, length);
    } else if (found != HEFT__MAP_NONE) {
        status =
            heft__fail_at(err, HEFT_FORMAT, token->offset, "key occurs twice, first at byte %llu",
                          (unsigned long long)p->entries[found].offset);
    }
    return heft__add_item(status, err, entry->name);
}

static heft_status read_fields(struct parse *p, heft__offload_entry *entry, heft_error *err)
{
    heft__json_token token;
    unsigned seen = 0;
    heft_status status = heft__json_next(&p->json, &token, err);
    if (status == HEFT_OK && token.kind != HEFT__JSON_OBJECT_BEGIN) {
        return heft__fail_at(err, HEFT_FORMAT, token.offset, "an entry must be an object, found %s",
                             heft__json_kind_name(token.kind));
    }
    while (status == HEFT_OK) {
        status = heft__json_next(&p->json, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_OBJECT_END) {
            break;
        }
        const unsigned field = field_of(&token);
        if (seen & field) {
            return heft__fail_at(err, HEFT_FORMAT, token.offset, "field '%.*s' occurs twice",
                                 (int)token.length, token.text);
        }
        seen |= field;
        status = read_field(p, field, entry, err);
    }
    return status == HEFT_OK ? check_entry(entry, seen, err) : status;
}

static heft_status read_entry(struct parse *p, const heft__json_token *key, heft_error *err)
{
    heft__offload_entry entry = {0};
    heft_status status = read_key(p, key, &entry, err);
    if (status != HEFT_OK) {
        return status;
    }
    status = read_fields(p, &entry, err);
    if (status == HEFT_OK &&
        !heft__array_reserve(p->ctx, (void **)&p->entries, p->count, &p->cap, sizeof entry)) {
        status = heft__fail_nomem(err, sizeof entry);
    }
    if (status == HEFT_OK) {
        p->entries[p->count++] = entry;
    }
    return heft__add_item(status, err, entry.name);
}

static heft_status read_document(struct parse *p, heft_error *err)
{
    heft__offload_index *index = p->index;
    heft__json_token token = {0};
    heft_status status =
        heft__json_expect(&p->json, HEFT__JSON_OBJECT_BEGIN, "an object", &token, err);
    const uint64_t at = token.offset;
    while (status == HEFT_OK) {
        status = heft__json_next(&p->json, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_OBJECT_END) {
            break;
        }
        status = read_entry(p, &token, err);
    }
    if (status == HEFT_OK) {
        status = heft__json_expect(&p->json, HEFT__JSON_END, "the end of the index", &token, err);
    }
    if (status == HEFT_OK && p->count == 0) {
        status = heft__fail_at(err, HEFT_FORMAT, at, "the index contains no tensor");
    }
    if (status != HEFT_OK) {
        return status;
    }
    index->entries = heft__arena_array(&index->arena, p->count, sizeof *index->entries);
    if (!index->entries) {
        return heft__fail_nomem(err, p->count * sizeof *index->entries);
    }
    memcpy(index->entries, p->entries, p->count * sizeof *index->entries);
    index->count = p->count;
    return HEFT_OK;
}

heft_status heft__offload_index_parse(heft_ctx *ctx, const void *bytes, size_t length,
                                      heft__offload_index *out, heft_error *err)
{
    heft__offload_index index = {0};
    struct parse p = {.ctx = ctx, .index = &index};
    const uint64_t limit = heft__limits(ctx)->index_bytes;
    if (length > limit) {
        return heft__fail(err, HEFT_LIMIT,
                          "index has %zu bytes, the limit is %llu (limit index_bytes)", length,
                          (unsigned long long)limit);
    }
    heft__arena_init(&index.arena, ctx);
    heft__map_init(&p.names, ctx);
    heft__json_init(&p.json, bytes, length, 0, heft__limits(ctx)->json_depth);
    heft_status status = read_document(&p, err);
    heft__map_fini(&p.names);
    heft__free(ctx, p.entries, p.cap * sizeof *p.entries);
    heft__free(ctx, p.shape, p.shape_cap * sizeof *p.shape);
    if (status == HEFT_OK) {
        *out = index;
    } else {
        heft__arena_fini(&index.arena);
    }
    return status;
}

void heft__offload_index_fini(heft__offload_index *index)
{
    if (index && index->arena.ctx) {
        heft__arena_fini(&index->arena);
        *index = (heft__offload_index){0};
    }
}

/* ---- telling it from other JSON -------------------------------------------------------------- */
bool heft__offload_index_sniff(const void *head, size_t length)
{
    heft__json_reader json;
    heft__json_token token;
    heft__json_init(&json, head, length, 0, HEFT__JSON_DEPTH_MAX);
    if (heft__json_next(&json, &token, NULL) != HEFT_OK || token.kind != HEFT__JSON_OBJECT_BEGIN ||
        heft__json_next(&json, &token, NULL) != HEFT_OK || token.kind != HEFT__JSON_KEY ||
        heft__json_is(&token, "weight_map") || heft__json_is(&token, "metadata") ||
        heft__json_next(&json, &token, NULL) != HEFT_OK || token.kind != HEFT__JSON_OBJECT_BEGIN) {
        return false;
    }
    while (heft__json_next(&json, &token, NULL) == HEFT_OK && token.kind == HEFT__JSON_KEY) {
        if (field_of(&token)) {
            return true;
        }
        if (heft__json_next(&json, &token, NULL) != HEFT_OK ||
            heft__json_skip(&json, &token, NULL) != HEFT_OK) {
            break;
        }
    }
    return false;
}

/* ---- writing --------------------------------------------------------------------------------- */
static void put_member(heft__buffer *out, const char *before, const char *key, const char *value)
{
    heft__buffer_format(out, "%s    \"%s\": ", before, key);
    heft__json_write_string(out, value, strlen(value), true);
}

static void put_shape(heft__buffer *out, const heft__offload_entry *entry)
{
    heft__buffer_text(out, ",\n    \"shape\": [");
    for (uint32_t i = 0; i < entry->rank; i++) {
        heft__buffer_format(out, "%s\n      %llu", i ? "," : "",
                            (unsigned long long)entry->shape[i]);
    }
    heft__buffer_text(out, entry->rank ? "\n    ]" : "]");
}

void heft__offload_index_write(heft__buffer *out, const heft__offload_entry *entries, size_t count)
{
    heft__buffer_byte(out, '{');
    for (size_t i = 0; i < count; i++) {
        const heft__offload_entry *entry = &entries[i];
        heft__buffer_text(out, i ? ",\n  " : "\n  ");
        heft__json_write_string(out, entry->name, strlen(entry->name), true);
        heft__buffer_text(out, ": {\n");
        if (entry->file) {
            put_member(out, "", "safetensors_file", entry->file);
            put_member(out, ",\n", "weight_name", entry->weight);
            put_member(out, ",\n", "dtype", heft_dtype_name(entry->dtype));
        } else {
            put_member(out, "", "dtype", heft_dtype_name(entry->dtype));
            put_shape(out, entry);
        }
        heft__buffer_text(out, "\n  }");
    }
    heft__buffer_text(out, count ? "\n}" : "}");
}
