/* packed.c - the format "pack-quantized" of compressed-tensors: integers of 1 to 8 bits in 32-bit words.
 *
 * P.weight_packed I32 [out, ceil(in * bits / 32)]: each row is a little-endian bit stream of its own; the
 * stored value is q + 2^(bits - 1). P.weight_scale [out, in / g] or [out, 1]; P.weight_shape I64 [2], out and
 * in; P.weight_zero_point I32 [ceil(out * bits / 32), groups], each column a stream over the rows, with the
 * same offset. Older files have P.weight_g_idx I32 [in], the group of each column, and zero points as bytes, I8 [out,
 * groups], without the offset.
 *
 *   W[o][i] = (q - z) * scale[o][group of i], in float32, rounded to the scale's dtype
 *
 * The offset cancels when both are read unsigned; without zero points z is 2^(bits - 1).
 * Source: docs/formats/quantized.md. */
#include "quant/quant.h"

enum { VALUES, SCALES, ZEROS, GROUPS };

#define PIECE 1024

struct packing {
    uint32_t bits;
    uint64_t words;         /* of a row */
    uint64_t group, groups; /* columns that share a scale; scales of a row */
    heft_dtype scales;
    bool zeros, indexed;
    bool zero_bytes; /* zero points are bytes */
};

void heft__quant_unpack(const uint8_t *stream, uint64_t first, size_t count, unsigned bits,
                        uint8_t *dst)
{
    const unsigned mask = (1U << bits) - 1;
    if (bits == 8) {
        memcpy(dst, stream + first, count);
        return;
    }
    for (size_t k = 0; k < count; k++) {
        const uint64_t at = (first + k) * bits;
        const unsigned shift = (unsigned)(at % 8);
        unsigned word = stream[at / 8];
        if (shift + bits > 8) {
            word |= (unsigned)stream[at / 8 + 1] << 8;
        }
        dst[k] = (uint8_t)(word >> shift & mask);
    }
}

/* ---- computing -------------------------------------------------------------------------------- */
static size_t packed_regions(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                             heft__quant_region regions[HEFT__QUANT_REGIONS])
{
    const struct packing *p = weight->detail;
    const uint64_t row = p->words * 4, scales = p->groups * heft_dtype_bits(p->scales) / 8;
    size_t count = 2;
    regions[0] = (heft__quant_region){
        .part = VALUES, .offset = first * row, .length = rows * row, .runs = 1};
    regions[1] = (heft__quant_region){
        .part = SCALES, .offset = first * scales, .length = rows * scales, .runs = 1};
    if (p->zero_bytes) {
        regions[count++] = (heft__quant_region){
            .part = ZEROS, .offset = first * p->groups, .length = rows * p->groups, .runs = 1};
    } else if (p->zeros) { /* rows first .. are bits first * bits .. of each column */
        const uint64_t from = first * p->bits / 32, to = ((first + rows) * p->bits + 31) / 32;
        regions[count++] = (heft__quant_region){.part = ZEROS,
                                                .offset = from * p->groups * 4,
                                                .length = (to - from) * p->groups * 4,
                                                .runs = 1};
    }
    if (p->indexed) {
        regions[count++] = (heft__quant_region){
            .part = GROUPS, .length = heft__quant_columns(weight) * 4, .runs = 1};
    }
    return count;
}

/* The zero point of a row and group: in what was read from row `first` on. */
static float zero_of(const struct packing *p, const uint8_t *zeros, uint64_t first, uint64_t row,
                     uint64_t group)
{
    const float half = (float)(1U << (p->bits - 1));
    if (!zeros) {
        return half;
    }
    if (p->zero_bytes) {
        return (float)(int8_t)zeros[(row - first) * p->groups + group] + half;
    }
    const uint64_t at = row * p->bits, word = at / 32 - first * p->bits / 32;
    const unsigned shift = (unsigned)(at % 32);
    uint64_t both = heft__le32(zeros + (word * p->groups + group) * 4);
    if (shift + p->bits > 32) {
        both |= (uint64_t)heft__le32(zeros + ((word + 1) * p->groups + group) * 4) << 32;
    }
    return (float)(both >> shift & ((1U << p->bits) - 1));
}

/* Some columns of a row with one scale. */
struct run {
    const uint8_t *row;
    uint64_t column;
    size_t count;
    float zero, scale;
};

static void decode_run(const heft__quant_weight *weight, const struct run *run, uint8_t *dst,
                       bool stream)
{
    const struct packing *p = weight->detail;
    const size_t width = heft_dtype_bits(weight->dtype) / 8;
    if (p->bits == 4 && width == 2 && run->column % 2 == 0) {
        float results[16];
        uint16_t table[16];
        for (unsigned q = 0; q < 16; q++) {
            results[q] = ((float)q - run->zero) * run->scale;
        }
        heft__cast(weight->dtype, table, HEFT_DTYPE_F32, results, 16);
        heft__nibble_lanes()->lookup16((uint16_t *)(void *)dst, table, run->row + run->column / 2,
                                       run->count, false, stream);
        return;
    }
    for (size_t done = 0; done < run->count;) {
        uint8_t values[PIECE];
        float results[PIECE];
        const size_t some = run->count - done < PIECE ? run->count - done : PIECE;
        heft__quant_unpack(run->row, run->column + done, some, p->bits, values);
        for (size_t k = 0; k < some; k++) {
            results[k] = ((float)values[k] - run->zero) * run->scale;
        }
        heft__cast(weight->dtype, dst + done * width, HEFT_DTYPE_F32, results, some);
        done += some;
    }
}

static heft_status packed_decode(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                                 const heft__quant_bytes bytes[HEFT__QUANT_REGIONS], void *dst,
                                 bool stream, heft_error *err)
{
    const struct packing *p = weight->detail;
    const uint64_t columns = heft__quant_columns(weight);
    const size_t width = heft_dtype_bits(weight->dtype) / 8,
                 scale_bytes = heft_dtype_bits(p->scales) / 8;
    const uint8_t *zeros = p->zeros ? bytes[2].at : NULL,
                  *index = p->indexed ? bytes[p->zeros ? 3 : 2].at : NULL;
    uint8_t *to = dst;
    for (uint64_t r = 0; r < rows; r++) {
        const uint8_t *row = bytes[0].at + r * p->words * 4,
                      *scales = bytes[1].at + r * p->groups * scale_bytes;
        for (uint64_t c = 0; c < columns;) {
            const uint64_t group = index ? heft__le32(index + c * 4) : c / p->group;
            const uint64_t end = index ? c + 1 : (group + 1) * p->group;
            const size_t some = (size_t)((end < columns ? end : columns) - c);
            struct run run = {.row = row, .column = c, .count = some};
            if (group >= p->groups) {
                return heft__fail(err, HEFT_FORMAT,
                                  "weight_g_idx[%llu] is %llu, expected less than %llu",
                                  (unsigned long long)c, (unsigned long long)group,
                                  (unsigned long long)p->groups);
            }
            heft__cast(HEFT_DTYPE_F32, &run.scale, p->scales, scales + group * scale_bytes, 1);
            run.zero = zero_of(p, zeros, first, first + r, group);
            decode_run(weight, &run, to, stream);
            to += some * width;
            c += some;
        }
    }
    return HEFT_OK;
}

static const heft__quant_layout packed_layout = {.name = "integers in 32-bit words",
                                                 .row_step = 1,
                                                 .regions = packed_regions,
                                                 .decode = packed_decode};

/* ---- finding ---------------------------------------------------------------------------------- */
static heft_status read_shape(const heft__quant_finder *finder, size_t i, size_t prefix,
                              uint64_t shape[2], heft_error *err)
{
    uint8_t bytes[16];
    size_t at = HEFT__NO_PART;
    heft_status status = heft__quant_need(finder, i, prefix, ".weight_shape", &at, err);
    if (status != HEFT_OK) {
        return status;
    }
    const heft_tensor_info *info = &finder->table->infos[at];
    const bool wide = info->dtype == HEFT_DTYPE_I64, narrow = info->dtype == HEFT_DTYPE_I32;
    if ((!wide && !narrow) || info->rank != 1 || info->shape[0] != 2) {
        return heft__quant_fail(finder, at, err, "expected two int64 numbers");
    }
    status = finder->table->read(finder->table->user, at, bytes, wide ? 16 : 8, err);
    for (size_t d = 0; d < 2; d++) {
        shape[d] = wide ? heft__le64(bytes + 8 * d) : heft__le32(bytes + 4 * d);
    }
    if (status == HEFT_OK &&
        (!shape[0] || !shape[1] || shape[0] > INT32_MAX || shape[1] > INT32_MAX)) {
        status = heft__quant_fail(finder, at, err, "[%llu, %llu] is not the shape of a matrix",
                                  (unsigned long long)shape[0], (unsigned long long)shape[1]);
    }
    return status;
}

/* Bits from the settings, else from the width of a row, if that fits one number only. */
static heft_status find_bits(const heft__quant_finder *finder, size_t i,
                             const heft__json_value *arguments, uint64_t columns, struct packing *p,
                             heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    int64_t bits = 0;
    heft_status status = heft__quant_integer(finder, arguments, "num_bits", 1, 8, 0, &bits, err);
    for (int64_t b = 1; status == HEFT_OK && bits == 0 && info->rank == 2 && b <= 8; b++) {
        const bool fits = (columns * (uint64_t)b + 31) / 32 == info->shape[1],
                   next = (columns * (uint64_t)(b + 1) + 31) / 32 == info->shape[1];
        bits = fits && !next ? b : bits;
        if (fits) {
            break;
        }
    }
    if (status == HEFT_OK && bits == 0) {
        status = heft__quant_fail(
            finder, i, err, "the number of bits is not given, and does not follow from its shape");
    }
    p->bits = (uint32_t)bits;
    p->words = (columns * p->bits + 31) / 32;
    return status;
}

static heft_status find_groups(const heft__quant_finder *finder, size_t scales,
                               const heft__json_value *arguments, const uint64_t shape[2],
                               struct packing *p, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[scales];
    int64_t group = 0;
    if (info->dtype != HEFT_DTYPE_F16 && info->dtype != HEFT_DTYPE_BF16 &&
        info->dtype != HEFT_DTYPE_F32) {
        return heft__quant_fail(finder, scales, err, "%s cannot be a scale",
                                heft_dtype_name(info->dtype));
    }
    p->scales = info->dtype;
    heft_status status =
        heft__quant_integer(finder, arguments, "group_size", -1, INT32_MAX, 0, &group, err);
    const heft__json_value *strategy = heft__json_member(arguments, "strategy");
    const bool channel = strategy && strategy->type == HEFT__JSON_TYPE_STRING &&
                         strcmp(strategy->text, "channel") == 0;
    const uint64_t count = info->rank == 2 && !channel ? info->shape[1] : 1;
    if (status == HEFT_OK && (group <= 0 || count <= 1)) {
        group =
            count > 1 && shape[1] % count == 0 ? (int64_t)(shape[1] / count) : (int64_t)shape[1];
    }
    p->group = (uint64_t)group;
    p->groups = p->group ? (shape[1] + p->group - 1) / p->group : 1;
    const uint64_t expected[2] = {shape[0], p->groups};
    const bool flat = info->rank == 1 && p->groups == 1 && info->shape[0] == shape[0];
    return status != HEFT_OK || flat ? status
                                     : heft__quant_expect(finder, scales, HEFT_DTYPE_NONE,
                                                          HEFT_DTYPE_NONE, expected, 2, err);
}

static heft_status check_rest(const heft__quant_finder *finder, size_t zeros, size_t index,
                              const uint64_t shape[2], struct packing *p, heft_error *err)
{
    heft_status status = HEFT_OK;
    p->zeros = zeros != HEFT__NO_PART;
    p->indexed = index != HEFT__NO_PART;
    if (p->zeros) {
        p->zero_bytes = finder->table->infos[zeros].dtype == HEFT_DTYPE_I8;
        const uint64_t lines = p->zero_bytes ? shape[0] : (shape[0] * p->bits + 31) / 32,
                       expected[2] = {lines, p->groups};
        status = heft__quant_expect(finder, zeros, HEFT_DTYPE_I32, HEFT_DTYPE_I8, expected, 2, err);
    }
    return status == HEFT_OK && p->indexed ? heft__quant_expect(finder, index, HEFT_DTYPE_I32,
                                                                HEFT_DTYPE_NONE, &shape[1], 1, err)
                                           : status;
}

heft_status heft__quant_find_packed(heft__quant_finder *finder, size_t i, size_t prefix,
                                    const heft__json_value *arguments, heft_error *err)
{
    const heft__quant_table *table = finder->table;
    heft__quant_weight weight;
    struct packing *p = heft__arena_array(finder->arena, 1, sizeof *p);
    const size_t zeros = heft__quant_sibling(table, i, prefix, ".weight_zero_point"),
                 index = heft__quant_sibling(table, i, prefix, ".weight_g_idx");
    size_t scales = HEFT__NO_PART, needed;
    heft_status status = p ? heft__quant_weight_init(finder, &weight, i, prefix, ".weight", err)
                           : heft__fail_nomem(err, sizeof *p);
    if (status == HEFT_OK) {
        status = heft__quant_need(finder, i, prefix, ".weight_scale", &scales, err);
    }
    if (status == HEFT_OK && !heft__quant_flag(arguments, "symmetric", true)) {
        status = heft__quant_need(finder, i, prefix, ".weight_zero_point", &needed, err);
    }
    if (status == HEFT_OK) {
        status = read_shape(finder, i, prefix, weight.shape, err);
    }
    if (status == HEFT_OK) {
        status = find_bits(finder, i, arguments, weight.shape[1], p, err);
    }
    if (status == HEFT_OK) {
        const uint64_t expected[2] = {weight.shape[0], p->words};
        status = heft__quant_expect(finder, i, HEFT_DTYPE_I32, HEFT_DTYPE_NONE, expected, 2, err);
    }
    if (status == HEFT_OK) {
        status = find_groups(finder, scales, arguments, weight.shape, p, err);
    }
    if (status == HEFT_OK) {
        status = check_rest(finder, zeros, index, weight.shape, p, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    weight.layout = &packed_layout;
    weight.detail = p;
    weight.rank = 2;
    weight.dtype = p->scales;
    weight.bits = p->bits;
    weight.group = p->groups > 1 ? p->group : 0;
    weight.part[VALUES] = i;
    weight.part[SCALES] = scales;
    weight.part[ZEROS] = zeros;
    weight.part[GROUPS] = index;
    static const char *const companions[] = {".weight_shape", ".input_scale", ".input_zero_point",
                                             ".output_scale", NULL};
    return heft__quant_add_with(finder, &weight, i, prefix, companions, err);
}
