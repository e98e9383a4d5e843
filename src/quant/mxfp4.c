/* mxfp4.c - the method "mxfp4", as gpt-oss has it: the experts of a layer in blocks of 32 half-bytes.
 *
 * NAME_blocks U8 [experts, rows, groups, 16]; NAME_scales U8 [experts, rows, groups], exponents. Byte k of a
 * block has element 2 k in its low half, 2 k + 1 in the high one, as E2M1. The weight NAME is turned against
 * its blocks, BF16 [experts, 32 * groups, rows]:
 *
 *   W[e][i][o] = value(e, o, i) * 2^(scale[e][o][i / 32] - 127)
 *
 * Computed for 16 bytes of a block, that is 32 rows of W, and all of its columns.
 * Source: docs/formats/quantized.md. */
#include "quant/quant.h"

enum { BLOCKS, SCALES };

#define GROUP 32 /* elements of a block */

struct experts {
    uint64_t rows, groups; /* of one expert's blocks */
};

static size_t mxfp4_regions(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                            heft__quant_region regions[HEFT__QUANT_REGIONS])
{
    const struct experts *x = weight->detail;
    const uint64_t per = x->groups * GROUP, expert = first / per, from = first % per / GROUP,
                   to = (first % per + rows + GROUP - 1) / GROUP;
    const uint64_t start = expert * x->rows * x->groups + from;
    regions[0] = (heft__quant_region){.part = BLOCKS,
                                      .offset = start * (GROUP / 2),
                                      .length = (to - from) * (GROUP / 2),
                                      .stride = x->groups * (GROUP / 2),
                                      .runs = x->rows};
    regions[1] = (heft__quant_region){
        .part = SCALES, .offset = start, .length = to - from, .stride = x->groups, .runs = x->rows};
    return 2;
}

static float power_of_two(int exponent)
{
    const uint32_t bits = (uint32_t)(exponent + 127) << 23;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The results of all values with all scales, rounded. A scale as two factors, as 2^128 is none; the first
 * product is exact. */
static void results(uint16_t table[256][16])
{
    float all[256][16];
    for (int s = 0; s < 256; s++) {
        const int half = (s - 127) / 2;
        const float first = power_of_two(half), second = power_of_two(s - 127 - half);
        for (unsigned v = 0; v < 16; v++) {
            all[s][v] = heft__e2m1_values[v] * first * second;
        }
    }
    heft__cast(HEFT_DTYPE_BF16, table, HEFT_DTYPE_F32, all, sizeof all / sizeof **all);
}

/* Less than eight rows of blocks: one value at a time. */
static void place_some(const struct experts *x, uint16_t (*values)[8][16], uint64_t count,
                       uint64_t left, uint16_t *dst)
{
    for (uint64_t i = 0; i < left; i++) {
        for (uint64_t k = 0; k < count; k++) {
            dst[i * x->rows + k] = values[i / 16][k][i % 16];
        }
    }
}

/* Eight rows of blocks at once, so that each row of W gets 16 bytes. */
static void decode_rows(const struct experts *x, uint64_t groups, uint64_t rows,
                        const uint8_t *blocks, const uint8_t *scales, uint16_t (*table)[16],
                        uint16_t *dst)
{
    const struct heft__nibble_lanes *lanes = heft__nibble_lanes();
    uint16_t values[2][8][16]; /* halves of a block, rows of blocks */
    for (uint64_t o = 0; o < x->rows; o += 8) {
        const uint64_t some = x->rows - o < 8 ? x->rows - o : 8;
        for (uint64_t g = 0; g < groups; g++) {
            for (uint64_t k = 0; k < some; k++) {
                const uint64_t block = (o + k) * groups + g;
                const uint8_t *from = blocks + block * (GROUP / 2);
                const uint16_t *results = table[scales[block]];
                lanes->lookup16(values[0][k], results, from, GROUP / 2, false);
                lanes->lookup16(values[1][k], results, from + GROUP / 4, GROUP / 2, false);
            }
            const uint64_t left = rows - g * GROUP < GROUP ? rows - g * GROUP : GROUP;
            uint16_t *to = dst + g * GROUP * x->rows + o;
            if (some == 8 && left == GROUP) {
                lanes->turn16(to, (size_t)x->rows, values[0][0]);
                lanes->turn16(to + 16 * x->rows, (size_t)x->rows, values[1][0]);
            } else {
                place_some(x, values, some, left, to);
            }
        }
    }
}

static heft_status mxfp4_decode(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                                const uint8_t *const bytes[HEFT__QUANT_REGIONS], void *dst,
                                heft_error *err)
{
    const struct experts *x = weight->detail;
    const uint64_t groups = (rows + GROUP - 1) / GROUP;
    (void)first;
    (void)err;
    uint16_t table[256][16];
    results(table);
    decode_rows(x, groups, rows, bytes[0], bytes[1], table, dst);
    return HEFT_OK;
}

static const heft__quant_layout mxfp4_layout = {.name = "E2M1 blocks of experts",
                                                .row_step = GROUP,
                                                .regions = mxfp4_regions,
                                                .decode = mxfp4_decode};

/* ---- finding ---------------------------------------------------------------------------------- */
static bool is_marked(const heft__quant_table *table, size_t i)
{
    const size_t prefix = heft__quant_prefix(table->infos[i].name, "_blocks");
    return prefix != SIZE_MAX && table->infos[i].dtype == HEFT_DTYPE_U8 &&
           heft__quant_sibling(table, i, prefix, "_scales") != HEFT__NO_PART;
}

static heft_status check(const heft__quant_finder *finder, size_t i, size_t scales, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    if (info->rank != 4 || info->dtype != HEFT_DTYPE_U8 || info->shape[3] != GROUP / 2 ||
        !info->shape[0] || !info->shape[1] || !info->shape[2] ||
        info->shape[2] > UINT64_MAX / GROUP) {
        char found[HEFT__SHAPE_TEXT];
        return heft__quant_fail(
            finder, i, err, "expected uint8 [experts, rows, groups, 16], found %s %s",
            heft_dtype_name(info->dtype), heft__shape_text(info->shape, info->rank, found));
    }
    return heft__quant_expect(finder, scales, HEFT_DTYPE_U8, HEFT_DTYPE_F8_E8M0FNU, info->shape, 3,
                              err);
}

/* Scales that no blocks have are a fault. */
static heft_status check_orphan(const heft__quant_finder *finder, size_t i, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    const size_t prefix = heft__quant_prefix(info->name, "_scales");
    size_t blocks = HEFT__NO_PART;
    return prefix == SIZE_MAX || info->rank != 3 || heft_dtype_bits(info->dtype) != 8
               ? HEFT_OK
               : heft__quant_need(finder, i, prefix, "_blocks", &blocks, err);
}

static heft_status find(heft__quant_finder *finder, size_t i, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    const size_t prefix = heft__quant_prefix(info->name, "_blocks");
    heft__quant_weight weight;
    size_t scales = HEFT__NO_PART;
    if (prefix == SIZE_MAX) {
        return check_orphan(finder, i, err);
    }
    heft_status status = heft__quant_need(finder, i, prefix, "_scales", &scales, err);
    if (status == HEFT_OK) {
        status = check(finder, i, scales, err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_weight_init(finder, &weight, i, prefix, "", err);
    }
    struct experts *x = status == HEFT_OK ? heft__arena_alloc(finder->arena, sizeof *x) : NULL;
    if (!x) {
        return status == HEFT_OK ? heft__fail_nomem(err, sizeof *x) : status;
    }
    *x = (struct experts){.rows = info->shape[1], .groups = info->shape[2]};
    weight.layout = &mxfp4_layout;
    weight.detail = x;
    weight.rank = 3;
    weight.shape[0] = info->shape[0];
    weight.shape[1] = info->shape[2] * GROUP;
    weight.shape[2] = info->shape[1];
    weight.dtype = HEFT_DTYPE_BF16;
    weight.bits = 4;
    weight.group = GROUP;
    weight.part[BLOCKS] = i;
    weight.part[SCALES] = scales;
    return heft__quant_add(finder, &weight, err);
}

const heft__quant_method heft__quant_mxfp4 = {
    .name = "mxfp4",
    .names = (const char *const[]){"mxfp4", NULL},
    .is_marked = is_marked,
    .find = find,
};
