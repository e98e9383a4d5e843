/* mxfp4.c - the method "mxfp4", as gpt-oss has it: the experts of a layer in blocks of 32 half-bytes.
 *
 * NAME_blocks U8 [experts, rows, groups, 16]; NAME_scales U8 [experts, rows, groups], exponents. Byte k of a
 * block has element 2 k in its low half, 2 k + 1 in the high one, as E2M1. The weight NAME is turned against
 * its blocks, BF16 [experts, 32 * groups, rows]:
 *
 *   W[e][i][o] = value(e, o, i) * 2^(scale[e][o][i / 32] - 127)
 *
 * Computed for 16 bytes of a block, that is 32 rows of W: for up to 128 rows of blocks at once (turned_lanes.c), so
 * that each row of W gets 256 bytes, or for eight.
 * Source: docs/formats/quantized.md. */
#include "quant/quant.h"

enum { BLOCKS, SCALES };

#define GROUP 32 /* elements of a block */
#define LINE 4   /* blocks in a cache line */
#define BAND 32  /* rows of blocks, which the loops take some of at once */

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

/* The blocks of a tile, and what they become. */
struct tile {
    const struct experts *x;
    uint64_t groups, rows; /* of each row of blocks; rows of W */
    heft__quant_bytes blocks, scales;
    uint16_t (*table)[16];
    uint16_t *dst;
    bool stream;
};

/* Blocks g of up to eight rows of blocks from o on, so that each row of W gets 16 bytes. */
static void decode_eight(const struct tile *tile, uint64_t o, uint64_t g)
{
    const struct heft__nibble_lanes *lanes = heft__nibble_lanes();
    const struct experts *x = tile->x;
    const uint64_t some = x->rows - o < 8 ? x->rows - o : 8;
    uint16_t values[2][8][16]; /* halves of a block, rows of blocks */
    for (uint64_t k = 0; k < some; k++) {
        const uint8_t *from = tile->blocks.at + (o + k) * tile->blocks.line + g * (GROUP / 2);
        const uint16_t *results = tile->table[tile->scales.at[(o + k) * tile->scales.line + g]];
        lanes->lookup16(values[0][k], results, from, GROUP / 2, false, false);
        lanes->lookup16(values[1][k], results, from + GROUP / 4, GROUP / 2, false, false);
    }
    const uint64_t left = tile->rows - g * GROUP < GROUP ? tile->rows - g * GROUP : GROUP;
    uint16_t *to = tile->dst + g * GROUP * x->rows + o;
    if (some == 8 && left == GROUP) {
        lanes->turn16(to, (size_t)x->rows, values[0][0]);
        lanes->turn16(to + 16 * x->rows, (size_t)x->rows, values[1][0]);
    } else {
        place_some(x, values, some, left, to);
    }
}

/* The same of some rows of blocks at once, if there are whole bands of them and their scales are not extreme.
 * Returns how many. */
static uint64_t decode_bands(const struct tile *tile, uint64_t o, uint64_t g)
{
    const struct heft__turned_lanes *lanes = heft__turned_lanes();
    const uint64_t left = (tile->x->rows - o) / BAND * BAND,
                   some = left < HEFT__E2M1_COLUMNS ? left : HEFT__E2M1_COLUMNS;
    uint8_t scales[HEFT__E2M1_COLUMNS], least = UINT8_MAX, most = 0;
    if (!lanes->turn_e2m1 || tile->rows - g * GROUP < GROUP) {
        return 0;
    }
    for (uint64_t k = 0; k < some; k++) {
        scales[k] = tile->scales.at[(o + k) * tile->scales.line + g];
    }
    for (uint64_t k = 0; k < some; k++) {
        least = scales[k] < least ? scales[k] : least;
        most = scales[k] > most ? scales[k] : most;
    }
    if (some == 0 || least < HEFT__E2M1_LEAST || most > HEFT__E2M1_MOST) {
        return 0;
    }
    lanes->turn_e2m1(tile->dst + g * GROUP * tile->x->rows + o, (size_t)tile->x->rows,
                     tile->blocks.at + o * tile->blocks.line + g * (GROUP / 2),
                     (size_t)tile->blocks.line, scales, (size_t)some, tile->stream);
    return some;
}

/* The four blocks of a cache line one after the other, in all rows of blocks. */
static void decode_tile(const struct tile *tile)
{
    const uint64_t step = HEFT__E2M1_COLUMNS;
    for (uint64_t first = 0; first < tile->groups; first += LINE) {
        const uint64_t end = first + LINE < tile->groups ? first + LINE : tile->groups;
        for (uint64_t o = 0; o < tile->x->rows; o += step) {
            const uint64_t last = tile->x->rows - o < step ? tile->x->rows : o + step;
            for (uint64_t g = first; g < end; g++) {
                for (uint64_t k = o + decode_bands(tile, o, g); k < last; k += 8) {
                    decode_eight(tile, k, g);
                }
            }
        }
    }
}

static heft_status mxfp4_decode(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                                const heft__quant_bytes bytes[HEFT__QUANT_REGIONS], void *dst,
                                bool stream, heft_error *err)
{
    const struct experts *x = weight->detail;
    uint16_t table[256][16];
    (void)first;
    (void)err;
    results(table);
    decode_tile(&(struct tile){.x = x,
                               .groups = (rows + GROUP - 1) / GROUP,
                               .rows = rows,
                               .blocks = bytes[0],
                               .scales = bytes[1],
                               .table = table,
                               .dst = dst,
                               .stream = stream});
    return HEFT_OK;
}

static const heft__quant_layout mxfp4_layout = {.name = "E2M1 blocks of experts",
                                                .row_step = GROUP,
                                                .in_place = true,
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
