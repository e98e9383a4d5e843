/* grouped4.c - the layout of E2M1 half-bytes with an 8-bit scale for each group of columns: NVFP4 and MXFP4.
 *
 * A scale is one of 256, so there are 4096 possible results: they are computed before, and rows are looked
 * up.
 * Source: docs/formats/quantized.md. */
#include "quant/quant.h"

enum { VALUES, SCALES };

struct groups {
    uint64_t group, count; /* columns of one; groups of a row */
    heft_dtype scales;
    float divisor, factor;
};

static size_t grouped_regions(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                              heft__quant_region regions[HEFT__QUANT_REGIONS])
{
    const struct groups *g = weight->detail;
    const uint64_t bytes = heft__quant_columns(weight) / 2;
    regions[0] = (heft__quant_region){
        .part = VALUES, .offset = first * bytes, .length = rows * bytes, .runs = 1};
    regions[1] = (heft__quant_region){
        .part = SCALES, .offset = first * g->count, .length = rows * g->count, .runs = 1};
    return 2;
}

/* The results of all values with all scales. */
static void results(const struct groups *g, float table[256][16])
{
    for (unsigned s = 0; s < 256; s++) {
        const uint8_t byte = (uint8_t)s;
        float scale;
        heft__cast(HEFT_DTYPE_F32, &scale, g->scales, &byte, 1);
        scale = scale / g->divisor * g->factor;
        for (unsigned v = 0; v < 16; v++) {
            table[s][v] = heft__e2m1_values[v] * scale;
        }
    }
}

static heft_status grouped_decode(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                                  const heft__quant_bytes bytes[HEFT__QUANT_REGIONS], void *dst,
                                  bool stream, heft_error *err)
{
    const struct groups *g = weight->detail;
    const bool wide = weight->dtype == HEFT_DTYPE_F32;
    float table[256][16];
    uint16_t short_table[256][16];
    (void)first;
    (void)err;
    results(g, table);
    if (!wide) {
        heft__cast(weight->dtype, short_table, HEFT_DTYPE_F32, table, sizeof table / sizeof(float));
    }
    const size_t size = (size_t)g->group;
    const uint64_t groups = rows * g->count;
    if (!wide) {
        heft__nibble_lanes()->lookup_groups(dst, (const uint16_t(*)[16])short_table, bytes[1].at,
                                            bytes[0].at, (size_t)groups, size, stream);
    }
    for (uint64_t k = 0; wide && k < groups; k++) {
        const uint8_t *values = bytes[0].at + k * size / 2, scale = bytes[1].at[k];
        float *to = (float *)dst + k * size;
        for (size_t c = 0; c < size; c += 2) {
            to[c] = table[scale][values[c / 2] & 15];
            to[c + 1] = table[scale][values[c / 2] >> 4];
        }
    }
    return HEFT_OK;
}

static const heft__quant_layout grouped_layout = {
    .name = "E2M1 values", .row_step = 1, .regions = grouped_regions, .decode = grouped_decode};

heft_status heft__quant_grouped4(const heft__quant_finder *finder, heft__quant_weight *weight,
                                 size_t values, size_t scales, uint64_t group, float divisor,
                                 float factor, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[values],
                           *scale = &finder->table->infos[scales];
    weight->bits = 4;
    weight->group = group;
    weight->part[VALUES] = values;
    weight->part[SCALES] = scales;
    const bool bytes = info->dtype == HEFT_DTYPE_U8 || info->dtype == HEFT_DTYPE_I8;
    if (info->rank == 3 && bytes) {
        weight->why = "it holds several matrices in one tensor";
        return HEFT_OK;
    }
    if (info->rank != 2 || !bytes || !info->shape[0] || !info->shape[1] ||
        info->shape[1] > UINT64_MAX / 4 || info->shape[1] * 2 % group != 0) {
        char found[HEFT__SHAPE_TEXT];
        return heft__quant_fail(
            finder, values, err,
            "expected uint8 [out, in / 2] with rows of whole groups of %llu, found %s %s",
            (unsigned long long)group, heft_dtype_name(info->dtype),
            heft__shape_text(info->shape, info->rank, found));
    }
    struct groups *g = heft__arena_alloc(finder->arena, sizeof *g);
    if (!g) {
        return heft__fail_nomem(err, sizeof *g);
    }
    weight->layout = &grouped_layout;
    weight->detail = g;
    weight->rank = 2;
    weight->shape[0] = info->shape[0];
    weight->shape[1] = info->shape[1] * 2;
    *g = (struct groups){.group = group,
                         .count = weight->shape[1] / group,
                         .scales =
                             scale->dtype == HEFT_DTYPE_U8 ? HEFT_DTYPE_F8_E8M0FNU : scale->dtype,
                         .divisor = divisor,
                         .factor = factor};
    if (g->scales != HEFT_DTYPE_F8_E8M0FNU && g->scales != HEFT_DTYPE_F8_E4M3FN) {
        return heft__quant_fail(finder, scales, err, "%s cannot be a scale",
                                heft_dtype_name(scale->dtype));
    }
    const uint64_t shape[2] = {weight->shape[0], g->count};
    return heft__quant_expect(finder, scales, HEFT_DTYPE_NONE, HEFT_DTYPE_NONE, shape, 2, err);
}
