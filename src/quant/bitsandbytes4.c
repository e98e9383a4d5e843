/* bitsandbytes4.c - the 4-bit layouts of bitsandbytes: NF4 and FP4.
 *
 * P.weight, bytes of any dtype (`quant_storage`): the flat weight, two values a byte, the first in the HIGH
 * half. P.weight.absmax F32 [blocks], or U8 where it is quantized itself; P.weight.quant_map F32 [16];
 * P.weight.quant_state.bitsandbytes__nf4 (or __fp4) U8: a JSON text with `blocksize`, `dtype` of the result,
 * `shape`, and where absmax is quantized `nested_blocksize`, `nested_offset`; then P.weight.nested_absmax F32
 * and P.weight.nested_quant_map F32 [256].
 *
 *   absmax(b) = nested_quant_map[absmax[b]] * nested_absmax[b / nested_blocksize] + nested_offset
 *   W[k] = quant_map[value k] * absmax(k / blocksize), in float32, rounded to `dtype`
 *
 * Value 8 of FP4 is -0, though its map has 0. Product and sum are rounded one after the other. Blocks run over the flat weight: they cross rows where
 * `in` is no multiple of their size.
 * Source: docs/formats/quantized.md. */
#include "quant/bitsandbytes.h"

enum { VALUES, ABSMAX, NESTED_ABSMAX };

struct blocks {
    float map[16];
    float nested_map[256];
    uint64_t size, nested_size; /* nested_size 0: absmax is float32 */
    float offset;
};

static const char *const states[] = {".quant_state.bitsandbytes__nf4",
                                     ".quant_state.bitsandbytes__fp4"};

#define ABSMAX_HELD 256              /* at once */
#define STATE_MOST ((size_t)1 << 16) /* bytes of the JSON text */

/* ---- computing -------------------------------------------------------------------------------- */
static size_t blocks_regions(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                             heft__quant_region regions[HEFT__QUANT_REGIONS])
{
    const struct blocks *b = weight->detail;
    const uint64_t columns = heft__quant_columns(weight), from = first * columns,
                   to = (first + rows) * columns;
    const uint64_t block = from / b->size, end = (to + b->size - 1) / b->size;
    const uint64_t width = b->nested_size ? 1 : 4;
    regions[0] = (heft__quant_region){
        .part = VALUES, .offset = from / 2, .length = (to + 1) / 2 - from / 2, .runs = 1};
    regions[1] = (heft__quant_region){
        .part = ABSMAX, .offset = block * width, .length = (end - block) * width, .runs = 1};
    if (!b->nested_size) {
        return 2;
    }
    const uint64_t nested = block / b->nested_size, last = (end - 1) / b->nested_size + 1;
    regions[2] = (heft__quant_region){
        .part = NESTED_ABSMAX, .offset = nested * 4, .length = (last - nested) * 4, .runs = 1};
    return 3;
}

static float float_at(const uint8_t *bytes)
{
    const uint32_t bits = heft__le32(bytes);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The largest magnitudes of blocks first + from .. first + from + count - 1, where bytes[1] has the one of
 * block `first`. */
static void read_absmax(const struct blocks *b, const heft__quant_bytes bytes[], uint64_t first,
                        uint64_t from, size_t count, float *dst)
{
    if (!b->nested_size) {
        for (size_t k = 0; k < count; k++) {
            dst[k] = float_at(bytes[1].at + (from + k) * 4);
        }
        return;
    }
    for (size_t k = 0; k < count;) {
        const uint64_t block = first + from + k, nested = block / b->nested_size,
                       left = (nested + 1) * b->nested_size - block;
        const size_t end = left < count - k ? k + (size_t)left : count;
        const float scale = float_at(bytes[2].at + (nested - first / b->nested_size) * 4);
        for (; k < end; k++) {
            const float product = b->nested_map[bytes[1].at[from + k]] * scale;
            dst[k] = product + b->offset;
        }
    }
}

/* Values from the flat number `at` on, which have one absmax. */
static void decode_run(const struct blocks *b, heft_dtype dtype, const uint8_t *values, uint64_t at,
                       uint64_t start, size_t count, float absmax, uint8_t *dst)
{
    const size_t width = heft_dtype_bits(dtype) / 8;
    float results[16];
    uint64_t table[8];
    for (unsigned v = 0; v < 16; v++) {
        results[v] = b->map[v] * absmax;
    }
    heft__cast(dtype, table, HEFT_DTYPE_F32, results, 16);
    for (; count > 0 && (at % 2 || width != 2); at++, count--, dst += width) {
        const uint8_t pair = values[at / 2 - start / 2];
        const unsigned v = at % 2 ? pair & 15 : pair >> 4;
        memcpy(dst, (const uint8_t *)table + v * width, width);
    }
    if (count > 0) {
        heft__nibble_lanes()->lookup16((uint16_t *)(void *)dst, (const uint16_t *)table,
                                       values + (at / 2 - start / 2), count, true, false);
    }
}

struct tile {
    const heft__quant_bytes *bytes;
    uint64_t start, end, first; /* numbers of its values; its first block */
    uint8_t *dst;
    bool stream;
};

/* What is left of a block from number `at` on; returns the next number, as decode_whole() does. */
static uint64_t decode_part(const struct blocks *b, heft_dtype dtype, const struct tile *tile,
                            uint64_t at)
{
    const uint64_t block = at / b->size, next = (block + 1) * b->size;
    const size_t count = (size_t)((next < tile->end ? next : tile->end) - at);
    float absmax;
    read_absmax(b, tile->bytes, tile->first, block - tile->first, 1, &absmax);
    decode_run(b, dtype, tile->bytes[0].at, at, tile->start, count, absmax,
               tile->dst + (at - tile->start) * (heft_dtype_bits(dtype) / 8));
    return at + count;
}

/* Whole blocks from number `at` on, which is even. */
static uint64_t decode_whole(const struct blocks *b, heft_dtype dtype, const struct tile *tile,
                             uint64_t at)
{
    float absmax[ABSMAX_HELD];
    while (tile->end - at >= b->size) {
        const uint64_t left = (tile->end - at) / b->size;
        const size_t some = left < ABSMAX_HELD ? (size_t)left : ABSMAX_HELD;
        read_absmax(b, tile->bytes, tile->first, at / b->size - tile->first, some, absmax);
        heft__nibble_lanes()->lookup_blocks(
            (uint16_t *)(void *)(tile->dst + (at - tile->start) * 2), b->map, absmax,
            dtype == HEFT_DTYPE_F16, tile->bytes[0].at + (at / 2 - tile->start / 2), some,
            (size_t)b->size, tile->stream);
        at += some * b->size;
    }
    return at;
}

static heft_status blocks_decode(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                                 const heft__quant_bytes bytes[HEFT__QUANT_REGIONS], void *dst,
                                 bool stream, heft_error *err)
{
    const struct blocks *b = weight->detail;
    const uint64_t columns = heft__quant_columns(weight), start = first * columns;
    const struct tile tile = {.bytes = bytes,
                              .start = start,
                              .end = (first + rows) * columns,
                              .first = start / b->size,
                              .dst = dst,
                              .stream = stream};
    const bool in_vectors = heft_dtype_bits(weight->dtype) == 16 && b->size % 32 == 0;
    (void)err;
    for (uint64_t at = start; at < tile.end;) {
        at = in_vectors && at % b->size == 0 && tile.end - at >= b->size
                 ? decode_whole(b, weight->dtype, &tile, at)
                 : decode_part(b, weight->dtype, &tile, at);
    }
    return HEFT_OK;
}

static const heft__quant_layout blocks_layout = {.name = "half-bytes in flat blocks",
                                                 .row_step = 1,
                                                 .regions = blocks_regions,
                                                 .decode = blocks_decode};

/* ---- the quant state -------------------------------------------------------------------------- */
/* The tree lives in `trees`. */
static heft_status read_state(const heft__quant_finder *finder, size_t i, heft__arena *trees,
                              heft__json_value **out, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    if (info->dtype != HEFT_DTYPE_U8 || info->rank != 1 || info->size_bytes == 0 ||
        info->size_bytes > STATE_MOST) {
        return heft__quant_fail(finder, i, err, "expected a JSON text of uint8, at most %zu bytes",
                                STATE_MOST);
    }
    uint8_t *text = heft__arena_alloc(trees, (size_t)info->size_bytes);
    if (!text) {
        return heft__fail_nomem(err, info->size_bytes);
    }
    heft_status status =
        finder->table->read(finder->table->user, i, text, (size_t)info->size_bytes, err);
    heft_error why = {0};
    if (status == HEFT_OK) {
        status = heft__json_parse(trees, text, (size_t)info->size_bytes, 16, out, &why);
    }
    if (why.status == HEFT_NOMEM && err) {
        *err = why;
    } else if (why.status != HEFT_OK && why.status != HEFT_NOMEM) {
        status = heft__quant_fail(finder, i, err, "malformed JSON: %.200s", why.message);
    }
    return status;
}

static heft_status state_count(const heft__quant_finder *finder, size_t i,
                               const heft__json_value *state, const char *key, uint64_t *out,
                               heft_error *err)
{
    return heft__json_as_u64(heft__json_member(state, key), out) && *out > 0 && *out <= UINT32_MAX
               ? HEFT_OK
               : heft__quant_fail(finder, i, err, "\"%s\" is missing or not a positive integer",
                                  key);
}

static heft_status state_shape(const heft__quant_finder *finder, size_t i,
                               const heft__json_value *state, heft__quant_weight *weight,
                               heft_error *err)
{
    const heft__json_value *shape = heft__json_member(state, "shape");
    uint64_t elems = 0;
    bool good =
        shape && shape->type == HEFT__JSON_TYPE_ARRAY && shape->count > 0 && shape->count <= 4;
    weight->rank = 0;
    for (const heft__json_value *side = good ? shape->first : NULL; side; side = side->next) {
        good = good && heft__json_as_u64(side, &weight->shape[weight->rank]) &&
               weight->shape[weight->rank] > 0;
        weight->rank++;
    }
    good = good && heft__shape_elems(weight->shape, weight->rank, &elems) && elems < UINT64_MAX / 8;
    return good ? HEFT_OK
                : heft__quant_fail(finder, i, err, "\"shape\" is missing or not a valid shape");
}

static heft_status state_dtype(const heft__quant_finder *finder, size_t i,
                               const heft__json_value *state, heft_dtype *out, heft_error *err)
{
    const heft__json_value *text = heft__json_member(state, "dtype");
    heft_error why = {0};
    const bool good = text && text->type == HEFT__JSON_TYPE_STRING &&
                      heft_dtype_parse(text->text, out, &why) == HEFT_OK &&
                      (*out == HEFT_DTYPE_F16 || *out == HEFT_DTYPE_BF16 || *out == HEFT_DTYPE_F32);
    return good ? HEFT_OK
                : heft__quant_fail(finder, i, err, "\"dtype\" is not float16, bfloat16 or float32");
}

/* `quant_type` must be that of the name. */
static heft_status state_type(const heft__quant_finder *finder, size_t i,
                              const heft__json_value *state, heft_error *err)
{
    const heft__json_value *text = heft__json_member(state, "quant_type");
    const char *name = strrchr(finder->table->infos[i].name, '_') + 1;
    return !text || (text->type == HEFT__JSON_TYPE_STRING && strcmp(text->text, name) == 0)
               ? HEFT_OK
               : heft__quant_fail(finder, i, err, "expected \"quant_type\" %s, found %.40s", name,
                                  text->type == HEFT__JSON_TYPE_STRING ? text->text : "no text");
}

static heft_status read_floats(const heft__quant_finder *finder, size_t i, size_t count, float *out,
                               heft_error *err)
{
    uint8_t bytes[256 * 4];
    const uint64_t shape = count;
    heft_status status =
        heft__quant_expect(finder, i, HEFT_DTYPE_F32, HEFT_DTYPE_NONE, &shape, 1, err);
    if (status == HEFT_OK) {
        status = finder->table->read(finder->table->user, i, bytes, count * 4, err);
    }
    for (size_t k = 0; k < count && status == HEFT_OK; k++) {
        out[k] = float_at(bytes + 4 * k);
    }
    return status;
}

/* ---- finding ---------------------------------------------------------------------------------- */
static heft_status check_values(const heft__quant_finder *finder, const heft__quant_weight *weight,
                                const struct blocks *b, heft_error *err)
{
    const heft_tensor_info *values = &finder->table->infos[weight->part[VALUES]];
    uint64_t elems = 0;
    (void)heft__shape_elems(weight->shape, weight->rank, &elems);
    const uint64_t blocks = (elems + b->size - 1) / b->size;
    if (values->size_bytes != (elems + 1) / 2) {
        return heft__quant_fail(finder, weight->part[VALUES], err,
                                "expected %llu bytes for %llu values of 4 bits, found %llu",
                                (unsigned long long)((elems + 1) / 2), (unsigned long long)elems,
                                (unsigned long long)values->size_bytes);
    }
    heft_status status = heft__quant_expect(finder, weight->part[ABSMAX],
                                            b->nested_size ? HEFT_DTYPE_U8 : HEFT_DTYPE_F32,
                                            HEFT_DTYPE_NONE, &blocks, 1, err);
    if (status == HEFT_OK && b->nested_size) {
        const uint64_t nested = (blocks + b->nested_size - 1) / b->nested_size;
        status = heft__quant_expect(finder, weight->part[NESTED_ABSMAX], HEFT_DTYPE_F32,
                                    HEFT_DTYPE_NONE, &nested, 1, err);
    }
    return status;
}

static heft_status find_nested(const heft__quant_finder *finder, heft__quant_weight *weight,
                               size_t i, size_t prefix, const heft__json_value *state,
                               struct blocks *b, size_t *map, heft_error *err)
{
    double offset = 0;
    heft_status status =
        heft__quant_need(finder, i, prefix, ".nested_absmax", &weight->part[NESTED_ABSMAX], err);
    if (status == HEFT_OK) {
        status = heft__quant_need(finder, i, prefix, ".nested_quant_map", map, err);
    }
    if (status == HEFT_OK) {
        status = read_floats(finder, *map, 256, b->nested_map, err);
    }
    if (status == HEFT_OK) {
        status = state_count(finder, i, state, "nested_blocksize", &b->nested_size, err);
    }
    if (status == HEFT_OK &&
        !heft__json_as_double(heft__json_member(state, "nested_offset"), &offset)) {
        status = heft__quant_fail(finder, i, err, "\"nested_offset\" is missing or not a number");
    }
    b->offset = (float)offset;
    return status;
}

static heft_status find_state(heft__quant_finder *finder, size_t i, size_t prefix, heft_error *err)
{
    const heft__quant_table *table = finder->table;
    heft__quant_weight weight;
    heft__json_value *state = NULL;
    size_t map = HEFT__NO_PART, nested_map = HEFT__NO_PART;
    struct blocks *b = heft__arena_array(finder->arena, 1, sizeof *b);
    heft__arena trees; /* of the state alone: there may be very many */
    heft__arena_init(&trees, finder->arena->ctx);
    heft_status status = b ? heft__quant_weight_init(finder, &weight, i, prefix, "", err)
                           : heft__fail_nomem(err, sizeof *b);
    if (status == HEFT_OK) {
        status = heft__quant_need(finder, i, prefix, "", &weight.part[VALUES], err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_need(finder, i, prefix, ".absmax", &weight.part[ABSMAX], err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_need(finder, i, prefix, ".quant_map", &map, err);
    }
    if (status == HEFT_OK) {
        status = read_floats(finder, map, 16, b->map, err);
    }
    if (status == HEFT_OK) {
        status = read_state(finder, i, &trees, &state, err);
    }
    if (status == HEFT_OK) {
        status = state_count(finder, i, state, "blocksize", &b->size, err);
    }
    if (status == HEFT_OK) {
        status = state_shape(finder, i, state, &weight, err);
    }
    if (status == HEFT_OK) {
        status = state_dtype(finder, i, state, &weight.dtype, err);
    }
    if (status == HEFT_OK) {
        status = state_type(finder, i, state, err);
    }
    if (status == HEFT_OK && heft__quant_prefix(table->infos[i].name, states[1]) == prefix &&
        b->map[8] == 0.0F) {
        b->map[8] = -0.0F;
    }
    if (status == HEFT_OK && table->infos[weight.part[ABSMAX]].dtype == HEFT_DTYPE_U8) {
        status = find_nested(finder, &weight, i, prefix, state, b, &nested_map, err);
    }
    if (status == HEFT_OK) {
        status = check_values(finder, &weight, b, err);
    }
    heft__arena_fini(&trees);
    weight.layout = &blocks_layout;
    weight.detail = b;
    weight.bits = 4;
    weight.group = b ? b->size : 0;
    if (status == HEFT_OK) {
        status = heft__quant_add(finder, &weight, err);
    }
    if (status == HEFT_OK) {
        heft__quant_companion(finder, i);
        heft__quant_companion(finder, map);
        heft__quant_companion(finder, nested_map);
    }
    return status;
}

bool heft__bitsandbytes4_marked(const heft__quant_table *table, size_t i)
{
    return heft__quant_prefix(table->infos[i].name, states[0]) != SIZE_MAX ||
           heft__quant_prefix(table->infos[i].name, states[1]) != SIZE_MAX;
}

heft_status heft__bitsandbytes4_find(heft__quant_finder *finder, size_t i, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    size_t prefix = heft__quant_prefix(info->name, states[0]);
    prefix = prefix == SIZE_MAX ? heft__quant_prefix(info->name, states[1]) : prefix;
    if (prefix != SIZE_MAX) {
        return find_state(finder, i, prefix, err);
    }
    prefix = heft__quant_prefix(info->name, ".absmax");
    if (prefix == SIZE_MAX ||
        heft__quant_sibling(finder->table, i, prefix, states[0]) != HEFT__NO_PART ||
        heft__quant_sibling(finder->table, i, prefix, states[1]) != HEFT__NO_PART) {
        return HEFT_OK;
    }
    size_t missing;
    return heft__quant_need(finder, i, prefix, states[0], &missing, err);
}
