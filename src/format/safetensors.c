/* safetensors.c - reading a .safetensors file.
 *
 *   u64 N | N bytes of JSON | data
 *   {"__metadata__": {"k": "v"}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0,
 * 24]}, ...}
 *
 * Offsets count from the end of the JSON. Sorted by offset the tensors cover the data without holes
 * or overlaps, from its first byte to the file's last. Nothing is trusted: the length against the
 * file's size, every number against 64 bits, every range against its neighbors. Not done here:
 * reading tensor data. Duplicate names are refused (the safetensors library uses the last one), and so is a
 * NUL in a name.
 * Source: docs/formats/safetensors.md [1]-[3]. */
#include "format/safetensors.h"

#include <stdlib.h>

#define LENGTH_BYTES 8

struct parse {
    heft_ctx *ctx;
    heft__file *file;
    heft__json_reader json;
    heft__map names;
    heft__file_tensor *tensors; /* growing; moves into the arena at the end */
    size_t count, cap;
    heft__text_pair *metadata;
    size_t metadata_count, metadata_cap;
    uint64_t *shape; /* of the tensor being read, if it has many dimensions */
    size_t shape_cap;
    bool has_metadata;
    bool mapped; /* names holds every name so far; else they rise */
    uint64_t data_start, data_bytes;
    uint64_t ends_at; /* of the tensor being read: data_offsets[1] */
};

/* ---- one entry ------------------------------------------------------------------------------- */
static heft_status read_dtype(struct parse *p, heft__file_tensor *tensor, heft_error *err)
{
    heft__json_token token;
    const char *name;
    size_t length;
    heft_status status =
        heft__json_expect(&p->json, HEFT__JSON_STRING, "a string as dtype", &token, err);
    if (status == HEFT_OK) {
        status = heft__json_string(&token, &p->file->arena, &name, &length, err);
    }
    if (status == HEFT_OK) {
        tensor->dtype = heft__dtype_from_safetensors(name, length);
        if (tensor->dtype == HEFT_DTYPE_NONE) {
            status = heft__fail_at(err, HEFT_FORMAT, token.offset, "unknown dtype '%.40s'", name);
        }
    }
    return status;
}

static heft_status read_shape(struct parse *p, heft__file_tensor *tensor, heft_error *err)
{
    const uint32_t most = heft__limits(p->ctx)->rank;
    uint64_t small[8], *shape = small;
    heft__json_token token;
    heft_status status =
        heft__json_expect(&p->json, HEFT__JSON_ARRAY_BEGIN, "an array as shape", &token, err);
    uint32_t rank = 0;
    while (status == HEFT_OK) {
        status = heft__json_next(&p->json, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_ARRAY_END) {
            break;
        }
        if (rank == most) {
            return heft__fail_at(err, HEFT_LIMIT, token.offset,
                                 "shape has more than %u dimensions (limit rank)", most);
        }
        if (rank >= sizeof small / sizeof small[0]) {
            if (!heft__array_reserve(p->ctx, (void **)&p->shape, rank, &p->shape_cap,
                                     sizeof *p->shape)) {
                return heft__fail_nomem(err, rank * sizeof *p->shape);
            }
            if (shape == small) {
                memcpy(p->shape, small, sizeof small);
            }
            shape = p->shape;
        }
        status = heft__json_u64(&token, "a dimension of shape", &shape[rank++], err);
    }
    if (status == HEFT_OK) {
        status =
            heft__quota_take(p->file->quota, heft__quota_weight(rank), tensor->item_offset, err);
    }
    uint64_t *kept = status == HEFT_OK && rank > 0
                         ? heft__arena_array(&p->file->arena, rank, sizeof *kept)
                         : NULL;
    if (status != HEFT_OK) {
        return status;
    }
    if (rank > 0 && !kept) {
        return heft__fail_nomem(err, rank * sizeof *kept);
    }
    if (rank > 0) {
        memcpy(kept, shape, rank * sizeof *kept);
    }
    tensor->rank = rank;
    tensor->shape = kept;
    return HEFT_OK;
}

static heft_status read_offsets(struct parse *p, heft__file_tensor *tensor, heft_error *err)
{
    heft__json_token token;
    uint64_t values[2];
    size_t count = 0;
    heft_status status = heft__json_expect(&p->json, HEFT__JSON_ARRAY_BEGIN,
                                           "an array as data_offsets", &token, err);
    uint64_t at = token.offset;
    while (status == HEFT_OK) {
        status = heft__json_next(&p->json, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_ARRAY_END) {
            break;
        }
        if (count == 2) {
            return heft__fail_at(err, HEFT_FORMAT, token.offset,
                                 "data_offsets has more than 2 items");
        }
        status = heft__json_u64(&token, "data_offsets", &values[count++], err);
    }
    if (status == HEFT_OK && count != 2) {
        status =
            heft__fail_at(err, HEFT_FORMAT, at, "data_offsets has %zu items, expected 2", count);
    }
    if (status == HEFT_OK) {
        tensor->start = values[0];
        p->ends_at = values[1];
    }
    return status;
}

enum { FIELD_DTYPE = 1, FIELD_SHAPE = 2, FIELD_OFFSETS = 4, FIELDS_ALL = 7 };

/* One field of an entry; `seen` collects the three that must be there. Other fields are passed
 * over. */
static heft_status read_field(struct parse *p, const heft__json_token *key,
                              heft__file_tensor *tensor, unsigned *seen, heft_error *err)
{
    heft__json_token token;
    unsigned field = heft__json_is(key, "dtype")          ? FIELD_DTYPE
                     : heft__json_is(key, "shape")        ? FIELD_SHAPE
                     : heft__json_is(key, "data_offsets") ? FIELD_OFFSETS
                                                          : 0;
    if (field & *seen) {
        return heft__fail_at(err, HEFT_FORMAT, key->offset, "field '%.*s' occurs twice",
                             (int)key->length, key->text);
    }
    *seen |= field;
    switch (field) {
    case FIELD_DTYPE:
        return read_dtype(p, tensor, err);
    case FIELD_SHAPE:
        return read_shape(p, tensor, err);
    case FIELD_OFFSETS:
        return read_offsets(p, tensor, err);
    default:
        break;
    }
    heft_status status = heft__json_next(&p->json, &token, err);
    return status == HEFT_OK ? heft__json_skip(&p->json, &token, err) : status;
}

static heft_status check_range(struct parse *p, heft__file_tensor *tensor, heft_error *err)
{
    const uint64_t at = tensor->item_offset;
    uint64_t elems, needed, bits;
    char shape[HEFT__SHAPE_TEXT]; /* written for errors only */
    if (tensor->start > p->ends_at) {
        return heft__fail_at(err, HEFT_FORMAT, at, "data_offsets begin %llu is after end %llu",
                             (unsigned long long)tensor->start, (unsigned long long)p->ends_at);
    }
    if (p->ends_at > p->data_bytes) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "data_offsets end %llu, data section has %llu bytes",
                             (unsigned long long)p->ends_at, (unsigned long long)p->data_bytes);
    }
    if (!heft__shape_elems(tensor->shape, tensor->rank, &elems) ||
        !heft__mul_u64(elems, heft_dtype_bits(tensor->dtype), &bits)) {
        return heft__fail_at(err, HEFT_FORMAT, at, "element count of shape %s overflows",
                             heft__shape_text(tensor->shape, tensor->rank, shape));
    }
    if (!heft__dtype_bytes(tensor->dtype, elems, &needed)) {
        return heft__fail_at(err, HEFT_FORMAT, at, "shape %s of %s does not end on a byte boundary",
                             heft__shape_text(tensor->shape, tensor->rank, shape),
                             heft_dtype_name(tensor->dtype));
    }
    if (needed != p->ends_at - tensor->start) {
        return heft__fail_at(
            err, HEFT_FORMAT, at, "shape %s of %s needs %llu bytes, data_offsets span %llu",
            heft__shape_text(tensor->shape, tensor->rank, shape), heft_dtype_name(tensor->dtype),
            (unsigned long long)needed, (unsigned long long)(p->ends_at - tensor->start));
    }
    tensor->size_bytes = needed;
    return HEFT_OK;
}

static heft_status read_entry(struct parse *p, heft__file_tensor *tensor, heft_error *err)
{
    static const char *const fields[] = {"dtype", "shape", "data_offsets"};
    heft__json_token token;
    unsigned seen = 0;
    heft_status status =
        heft__json_expect(&p->json, HEFT__JSON_OBJECT_BEGIN, "an object", &token, err);
    while (status == HEFT_OK) {
        status = heft__json_next(&p->json, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_OBJECT_END) {
            break;
        }
        status = read_field(p, &token, tensor, &seen, err);
    }
    for (unsigned i = 0; i < 3 && status == HEFT_OK; i++) {
        if (!(seen & 1u << i)) {
            status = heft__fail_at(err, HEFT_FORMAT, tensor->item_offset, "field '%s' is missing",
                                   fields[i]);
        }
    }
    return status == HEFT_OK ? check_range(p, tensor, err) : status;
}

/* ---- the header ------------------------------------------------------------------------------ */
static heft_status read_metadata(struct parse *p, const heft__json_token *key, heft_error *err)
{
    heft__json_token token;
    heft_status status = heft__json_next(&p->json, &token, err);
    if (status == HEFT_OK && p->has_metadata) {
        status = heft__fail_at(err, HEFT_FORMAT, key->offset, "__metadata__ occurs twice");
    }
    p->has_metadata = true;
    if (status != HEFT_OK || token.kind == HEFT__JSON_NULL) {
        return status;
    }
    if (token.kind != HEFT__JSON_OBJECT_BEGIN) {
        return heft__fail_at(err, HEFT_FORMAT, token.offset,
                             "__metadata__ must be an object, found %s",
                             heft__json_kind_name(token.kind));
    }
    for (;;) {
        heft__text_pair pair = {0};
        status = heft__json_next(&p->json, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_OBJECT_END) {
            return status;
        }
        status = heft__quota_take(p->file->quota, 1, token.offset, err);
        if (status == HEFT_OK) {
            status = heft__json_string(&token, &p->file->arena, &pair.key, &pair.key_length, err);
        }
        if (status == HEFT_OK) {
            status = heft__json_next(&p->json, &token, err);
        }
        if (status == HEFT_OK && token.kind != HEFT__JSON_STRING) {
            status = heft__fail_at(err, HEFT_FORMAT, token.offset,
                                   "__metadata__ key '%.60s': value must be a string, found %s",
                                   pair.key, heft__json_kind_name(token.kind));
        }
        if (status == HEFT_OK) {
            status =
                heft__json_string(&token, &p->file->arena, &pair.value, &pair.value_length, err);
        }
        if (status == HEFT_OK &&
            !heft__array_reserve(p->ctx, (void **)&p->metadata, p->metadata_count, &p->metadata_cap,
                                 sizeof pair)) {
            status = heft__fail_nomem(err, sizeof pair);
        }
        if (status != HEFT_OK) {
            return status;
        }
        p->metadata[p->metadata_count++] = pair;
    }
}

/* Note a name; *found is the tensor that has it already. While names ascend, as safetensors writes
 * them, none can be there twice and no map is needed; at the first that does not, all go into one. */
static bool put_name(struct parse *p, const char *name, size_t length, size_t *found)
{
    *found = HEFT__MAP_NONE;
    if (!p->mapped && (p->count == 0 || strcmp(p->tensors[p->count - 1].name, name) < 0)) {
        return true;
    }
    for (size_t i = 0; !p->mapped && i < p->count; i++) {
        const char *earlier = p->tensors[i].name;
        if (!heft__map_put(&p->names, earlier, strlen(earlier), i, found)) {
            return false;
        }
    }
    p->mapped = true;
    return heft__map_put(&p->names, name, length, p->count, found);
}

static heft_status check_name(struct parse *p, const char *name, size_t length, uint64_t offset,
                              heft_error *err)
{
    const heft_limits *limits = heft__limits(p->ctx);
    size_t found;
    if (length > limits->name_bytes) {
        return heft__fail_at(err, HEFT_LIMIT, offset,
                             "tensor name has %zu bytes, the limit is %llu (limit name_bytes)",
                             length, (unsigned long long)limits->name_bytes);
    }
    if (memchr(name, 0, length)) {
        return heft__fail_at(err, HEFT_FORMAT, offset, "tensor name '%.60s\\0...' contains a NUL",
                             name);
    }
    if (p->count >= limits->tensors) {
        return heft__fail_at(err, HEFT_LIMIT, offset, "more than %llu tensors (limit tensors)",
                             (unsigned long long)limits->tensors);
    }
    if (!put_name(p, name, length, &found)) {
        return heft__fail_nomem(err, length);
    }
    if (found != HEFT__MAP_NONE) {
        heft_status status =
            heft__fail_at(err, HEFT_FORMAT, offset, "duplicate tensor name, first at byte %llu",
                          (unsigned long long)p->tensors[found].item_offset);
        return heft__add_item(status, err, name);
    }
    return HEFT_OK;
}

static heft_status read_tensor(struct parse *p, const heft__json_token *key, heft_error *err)
{
    heft__file_tensor tensor = {.item_offset = key->offset, .storage = p->count};
    const char *name;
    size_t length;
    heft_status status = heft__json_string(key, &p->file->arena, &name, &length, err);
    if (status == HEFT_OK) {
        status = check_name(p, name, length, key->offset, err);
    }
    if (status == HEFT_OK) {
        tensor.name = name;
        status = heft__add_item(read_entry(p, &tensor, err), err, name);
    }
    if (status == HEFT_OK &&
        !heft__array_reserve(p->ctx, (void **)&p->tensors, p->count, &p->cap, sizeof *p->tensors)) {
        status = heft__fail_nomem(err, sizeof tensor);
    }
    if (status == HEFT_OK) {
        p->tensors[p->count++] = tensor;
    }
    return status;
}

static heft_status read_header(struct parse *p, heft_error *err)
{
    heft__json_token token;
    heft_status status =
        heft__json_expect(&p->json, HEFT__JSON_OBJECT_BEGIN, "an object", &token, err);
    while (status == HEFT_OK) {
        status = heft__json_next(&p->json, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_OBJECT_END) {
            break;
        }
        status = heft__json_is(&token, "__metadata__") ? read_metadata(p, &token, err)
                                                       : read_tensor(p, &token, err);
    }
    return status == HEFT_OK
               ? heft__json_expect(&p->json, HEFT__JSON_END, "the end of the header", &token, err)
               : status;
}

/* ---- all ranges together --------------------------------------------------------------------- */
static int by_offset(const void *left, const void *right)
{
    const heft__file_tensor *a = left, *b = right;
    if (a->start != b->start) {
        return a->start < b->start ? -1 : 1;
    }
    if (a->size_bytes != b->size_bytes) {
        return a->size_bytes < b->size_bytes ? -1 : 1;
    }
    return a->storage < b->storage ? -1 : a->storage > b->storage; /* as they stood in the header */
}

static heft_status check_cover(struct parse *p, heft_error *err)
{
    uint64_t end = 0;
    bool sorted = true;
    for (size_t i = 1; i < p->count && sorted; i++) {
        sorted = by_offset(&p->tensors[i - 1], &p->tensors[i]) < 0;
    }
    if (!sorted) {
        qsort(p->tensors, p->count, sizeof *p->tensors, by_offset);
    }
    for (size_t i = 0; i < p->count; i++) {
        const heft__file_tensor *tensor = &p->tensors[i];
        if (tensor->start != end) {
            const char *before = i ? p->tensors[i - 1].name : "the start";
            heft_status status =
                heft__fail_at(err, HEFT_FORMAT, tensor->item_offset,
                              "begins at %llu, expected %llu, where '%.100s' ends: %s",
                              (unsigned long long)tensor->start, (unsigned long long)end, before,
                              tensor->start < end ? "they overlap" : "there is a gap");
            return heft__add_item(status, err, tensor->name);
        }
        end += tensor->size_bytes; /* within data_bytes: read_entry checked it */
    }
    if (end != p->data_bytes) {
        return heft__fail_at(err, HEFT_FORMAT, p->data_start + end,
                             "data section has %llu bytes, the tensors end at %llu",
                             (unsigned long long)p->data_bytes, (unsigned long long)end);
    }
    return HEFT_OK;
}

/* Move what was read into the file's arena; each tensor lies on a storage of its own. */
static heft_status publish(struct parse *p, heft_error *err)
{
    heft__file *file = p->file;
    file->tensors = heft__arena_array(&file->arena, p->count, sizeof *file->tensors);
    file->storages = heft__arena_array(&file->arena, p->count, sizeof *file->storages);
    file->metadata = heft__arena_array(&file->arena, p->metadata_count, sizeof *file->metadata);
    if (!file->tensors || !file->storages || !file->metadata) {
        return heft__fail_nomem(err, p->count);
    }
    for (size_t i = 0; i < p->count; i++) {
        heft__file_tensor *tensor = &file->tensors[i];
        *tensor = p->tensors[i];
        file->storages[i] = (heft__file_storage){
            .offset = p->data_start + tensor->start,
            .stored_bytes = tensor->size_bytes,
            .bytes = tensor->size_bytes,
        };
        tensor->storage = i;
        tensor->start = 0;
    }
    if (p->metadata_count) {
        memcpy(file->metadata, p->metadata, p->metadata_count * sizeof *p->metadata);
    }
    file->tensor_count = file->storage_count = p->count;
    file->metadata_count = p->metadata_count;
    file->format = HEFT_FORMAT_SAFETENSORS;
    return HEFT_OK;
}

static heft_status header_length(struct parse *p, uint64_t *length, heft_error *err)
{
    const uint64_t size = heft__input_size(p->file->source),
                   limit = heft__limits(p->ctx)->header_bytes;
    uint8_t raw[LENGTH_BYTES];
    if (size < LENGTH_BYTES) {
        return heft__fail_at(err, HEFT_FORMAT, 0, "file has %llu bytes, the header length needs %d",
                             (unsigned long long)size, LENGTH_BYTES);
    }
    heft_status status = heft__input_read(p->file->source, 0, raw, sizeof raw, err);
    if (status != HEFT_OK) {
        return status;
    }
    *length = heft__le64(raw);
    if (*length > size - LENGTH_BYTES) {
        return heft__fail_at(err, HEFT_FORMAT, 0, "header length %llu, file has %llu bytes",
                             (unsigned long long)*length, (unsigned long long)size);
    }
    if (*length > limit) {
        return heft__fail_at(err, HEFT_LIMIT, 0,
                             "header length %llu, the limit is %llu (limit header_bytes)",
                             (unsigned long long)*length, (unsigned long long)limit);
    }
    if (*length < 2) {
        return heft__fail_at(err, HEFT_FORMAT, 0, "header length %llu, an empty header has 2 bytes",
                             (unsigned long long)*length);
    }
    return HEFT_OK;
}

static heft_status parse_file(heft_ctx *ctx, heft__file *file, heft_error *err)
{
    struct parse p = {.ctx = ctx, .file = file};
    uint64_t length = 0;
    uint8_t *header = NULL;
    heft__map_init(&p.names, ctx);
    heft_status status = header_length(&p, &length, err);
    if (status == HEFT_OK) {
        header = heft__alloc(ctx, (size_t)length);
        status = header ? heft__input_read(file->source, LENGTH_BYTES, header, (size_t)length, err)
                        : heft__fail_nomem(err, length);
    }
    if (status == HEFT_OK) {
        p.data_start = LENGTH_BYTES + length;
        p.data_bytes = heft__input_size(file->source) - p.data_start;
        heft__json_init(&p.json, header, (size_t)length, LENGTH_BYTES,
                        heft__limits(ctx)->json_depth);
        status = read_header(&p, err);
    }
    if (status == HEFT_OK) {
        status = check_cover(&p, err);
    }
    if (status == HEFT_OK) {
        status = publish(&p, err);
    }
    heft__free(ctx, header, (size_t)length);
    heft__free(ctx, p.tensors, p.cap * sizeof *p.tensors);
    heft__free(ctx, p.shape, p.shape_cap * sizeof *p.shape);
    heft__free(ctx, p.metadata, p.metadata_cap * sizeof *p.metadata);
    heft__map_fini(&p.names);
    return status;
}

/* ---- the format ------------------------------------------------------------------------------ */
static bool sniff(const uint8_t *head, size_t length)
{
    return length > LENGTH_BYTES && memchr("{ \t\n\r", head[LENGTH_BYTES], 5) &&
           heft__le64(head) < UINT64_C(1) << 48 && memcmp(head, "GGUF", 4) != 0;
}

static const char *const endings[] = {".safetensors", NULL};

const heft__format heft__format_safetensors = {
    .id = HEFT_FORMAT_SAFETENSORS,
    .name = "safetensors",
    .noun = "a safetensors file",
    .convert_as = HEFT_FORMAT_SAFETENSORS,
    .sniff = sniff,
    .parse = parse_file,
    .endings = endings,
    .insist = true,
    .precedence = 1,
    .stem = "model",
    .extension = "safetensors",
    .read_index = heft__shard_index_open,
    .ties = HEFT__TIES_DROP,
    .metadata = true,
    .check = heft__safetensors_check,
    .lay_out = heft__safetensors_lay_out,
    .write = heft__safetensors_write,
    .layout_free = heft__safetensors_layout_free,
    .write_index = heft__shard_index_text,
};
