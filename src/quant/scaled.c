/* scaled.c - the layout of 8-bit values with a grid of scales: fp8, and the 8-bit formats of other methods.
 *
 * Computed block by block in vectors (scaled_lanes.c); where there are none, in pieces that stay in the
 * first-level cache: the values as float32, times the scale, then rounded once.
 * Source: docs/formats/quantized.md. */
#include "quant/quant.h"

#define PIECE 1024  /* values at once */
#define FACTORS 128 /* scales at once */

enum { VALUES, SCALES, ZEROS };

struct grid {
    heft_dtype values, scales;
    uint64_t block_rows, block_columns; /* at least 1 */
    uint64_t columns;                   /* of the grid */
    bool zeros;                         /* int8, shaped like the scales */
};

/* ---- computing -------------------------------------------------------------------------------- */
static size_t scaled_regions(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                             heft__quant_region regions[HEFT__QUANT_REGIONS])
{
    const struct grid *grid = weight->detail;
    const uint64_t columns = heft__quant_columns(weight), scale = heft_dtype_bits(grid->scales) / 8;
    const uint64_t from = first / grid->block_rows * grid->columns,
                   to = ((first + rows - 1) / grid->block_rows + 1) * grid->columns;
    regions[0] = (heft__quant_region){
        .part = VALUES, .offset = first * columns, .length = rows * columns, .runs = 1};
    regions[1] = (heft__quant_region){
        .part = SCALES, .offset = from * scale, .length = (to - from) * scale, .runs = 1};
    regions[2] =
        (heft__quant_region){.part = ZEROS, .offset = from, .length = to - from, .runs = 1};
    return grid->zeros ? 3 : 2;
}

/* The loop of the level in use; NULL: there is none, and values are converted step by step. */
static heft__scaled_fn loop_for(heft_dtype values, heft_dtype results)
{
    const struct heft__scaled_lanes *lanes = &heft__scaled_lanes_base;
    const int level = heft__lanes_level();
#ifdef HEFT_LANES_X86
    lanes = level == HEFT__LEVEL_AVX512 ? &heft__scaled_lanes_avx512
            : level == HEFT__LEVEL_AVX2 ? &heft__scaled_lanes_avx2
                                        : lanes;
#endif
    (void)level;
    const bool whole = values == HEFT_DTYPE_I8;
    if (!whole && values != HEFT_DTYPE_F8_E4M3FN) {
        return NULL;
    }
    return results == HEFT_DTYPE_BF16  ? (whole ? lanes->i8_bf16 : lanes->e4m3_bf16)
           : results == HEFT_DTYPE_F16 ? (whole ? lanes->i8_f16 : lanes->e4m3_f16)
           : results == HEFT_DTYPE_F32 ? (whole ? lanes->i8_f32 : lanes->e4m3_f32)
                                       : NULL;
}

static void widen(float *dst, heft_dtype dtype, const uint8_t *src, size_t count)
{
    if (dtype != HEFT_DTYPE_I8) {
        heft__cast(HEFT_DTYPE_F32, dst, dtype, src, count);
        return;
    }
    for (size_t k = 0; k < count; k++) {
        dst[k] = (float)(int8_t)src[k];
    }
}

struct row {
    const uint8_t *values, *scales, *zeros; /* zeros may be NULL */
    uint8_t *dst;
};

/* Values from column `begin` on, which are in `piece`, by the blocks that they are in. What a scale that is
 * NaN makes is that NaN, whatever the values are. */
static void scale(float *piece, uint64_t begin, size_t count, const struct grid *grid,
                  const struct row *row)
{
    const size_t width = heft_dtype_bits(grid->scales) / 8;
    for (size_t k = 0; k < count;) {
        const uint64_t block = (begin + k) / grid->block_columns;
        const uint64_t left = (block + 1) * grid->block_columns - (begin + k);
        const size_t end = left < count - k ? k + (size_t)left : count;
        const float zero = row->zeros ? (float)(int8_t)row->zeros[block] : 0.0F;
        float factor;
        heft__cast(HEFT_DTYPE_F32, &factor, grid->scales, row->scales + block * width, 1);
        for (; k < end && factor != factor; k++) {
            piece[k] = factor;
        }
        for (; k < end; k++) {
            piece[k] = (piece[k] - zero) * factor;
        }
    }
}

/* Columns of a row without vectors. */
static void step_by_step(const heft__quant_weight *weight, const struct row *row, uint64_t begin,
                         uint64_t end)
{
    const struct grid *grid = weight->detail;
    const size_t width = heft_dtype_bits(weight->dtype) / 8;
    float piece[PIECE];
    while (begin < end) {
        const size_t some = end - begin < PIECE ? (size_t)(end - begin) : PIECE;
        widen(piece, grid->values, row->values + begin, some);
        scale(piece, begin, some, grid, row);
        heft__cast(weight->dtype, row->dst + begin * width, HEFT_DTYPE_F32, piece, some);
        begin += some;
    }
}

static void by_blocks(const heft__quant_weight *weight, heft__scaled_fn loop, const struct row *row)
{
    const struct grid *grid = weight->detail;
    const uint64_t columns = heft__quant_columns(weight);
    const size_t width = heft_dtype_bits(weight->dtype) / 8,
                 scale_width = heft_dtype_bits(grid->scales) / 8;
    float scales[FACTORS];
    uint64_t done = 0;
    for (uint64_t block = 0; block < grid->columns; block++) {
        if (block % FACTORS == 0) {
            const uint64_t left = grid->columns - block;
            heft__cast(HEFT_DTYPE_F32, scales, grid->scales, row->scales + block * scale_width,
                       left < FACTORS ? (size_t)left : FACTORS);
        }
        const uint64_t left = columns - done,
                       some = left < grid->block_columns ? left : grid->block_columns;
        const float factor = scales[block % FACTORS];
        if (factor != factor) {
            step_by_step(weight, row, done, done + some);
        } else {
            loop(row->dst + done * width, row->values + done, (size_t)some, factor,
                 row->zeros ? (float)(int8_t)row->zeros[block] : 0.0F);
        }
        done += some;
    }
}

static heft_status scaled_decode(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                                 const heft__quant_bytes bytes[HEFT__QUANT_REGIONS], void *dst,
                                 heft_error *err)
{
    const struct grid *grid = weight->detail;
    const uint64_t columns = heft__quant_columns(weight), top = first / grid->block_rows;
    const size_t scale_bytes = heft_dtype_bits(grid->scales) / 8,
                 row_bytes = (size_t)columns * heft_dtype_bits(weight->dtype) / 8;
    const heft__scaled_fn loop = loop_for(grid->values, weight->dtype);
    (void)err;
    for (uint64_t r = 0; r < rows; r++) {
        const uint64_t line = ((first + r) / grid->block_rows - top) * grid->columns;
        const struct row row = {.values = bytes[0].at + r * columns,
                                .scales = bytes[1].at + line * scale_bytes,
                                .zeros = grid->zeros ? bytes[2].at + line : NULL,
                                .dst = (uint8_t *)dst + r * row_bytes};
        if (loop) {
            by_blocks(weight, loop, &row);
        } else {
            step_by_step(weight, &row, 0, columns);
        }
    }
    return HEFT_OK;
}

static const heft__quant_layout scaled_layout = {.name = "8-bit values with a grid of scales",
                                                 .row_step = 1,
                                                 .regions = scaled_regions,
                                                 .decode = scaled_decode};

/* ---- checking --------------------------------------------------------------------------------- */
static bool is_value(heft_dtype dtype)
{
    return dtype == HEFT_DTYPE_I8 || dtype == HEFT_DTYPE_F8_E4M3FN || dtype == HEFT_DTYPE_F8_E5M2 ||
           dtype == HEFT_DTYPE_F8_E4M3FNUZ || dtype == HEFT_DTYPE_F8_E5M2FNUZ;
}

static bool is_scale(heft_dtype dtype)
{
    return dtype == HEFT_DTYPE_F32 || dtype == HEFT_DTYPE_F16 || dtype == HEFT_DTYPE_BF16 ||
           dtype == HEFT_DTYPE_F8_E8M0FNU || dtype == HEFT_DTYPE_U8;
}

static bool is_result(heft_dtype dtype)
{
    return dtype == HEFT_DTYPE_F32 || dtype == HEFT_DTYPE_F16 || dtype == HEFT_DTYPE_BF16;
}

/* [lines, columns], or fewer dimensions where sides of 1 are left out, or [lines, 1, columns, 1]. */
static heft_status check_grid(const heft__quant_finder *finder, size_t i, uint64_t lines,
                              uint64_t columns, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    const uint64_t shape[2] = {lines, columns};
    const bool flat = columns == 1 && info->rank == 1 && info->shape[0] == lines,
               scalar = lines == 1 && columns == 1 && info->rank == 0;
    const bool spread = info->rank == 4 && info->shape[0] == lines && info->shape[1] == 1 &&
                        info->shape[2] == columns && info->shape[3] == 1;
    return flat || scalar || spread
               ? HEFT_OK
               : heft__quant_expect(finder, i, HEFT_DTYPE_NONE, HEFT_DTYPE_NONE, shape, 2, err);
}

heft_status heft__quant_scaled(const heft__quant_finder *finder, heft__quant_weight *weight,
                               size_t values, size_t scales, size_t zeros, uint64_t block_rows,
                               uint64_t block_columns, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[values],
                           *scale = &finder->table->infos[scales];
    weight->bits = 8;
    weight->part[VALUES] = values;
    weight->part[SCALES] = scales;
    weight->part[ZEROS] = zeros;
    if (info->rank == 3 && is_value(info->dtype)) {
        weight->why = "it holds several matrices in one tensor";
        return HEFT_OK;
    }
    if (info->rank != 2 || !info->shape[0] || !info->shape[1] || !is_value(info->dtype)) {
        char shape[HEFT__SHAPE_TEXT];
        return heft__quant_fail(
            finder, values, err, "expected a matrix of float8 or int8 values, found %s %s",
            heft_dtype_name(info->dtype), heft__shape_text(info->shape, info->rank, shape));
    }
    if (!is_scale(scale->dtype) || !is_result(weight->dtype)) {
        return heft__quant_fail(finder, scales, err, "%s cannot be a scale",
                                heft_dtype_name(scale->dtype));
    }
    struct grid *grid = heft__arena_alloc(finder->arena, sizeof *grid);
    if (!grid) {
        return heft__fail_nomem(err, sizeof *grid);
    }
    *grid = (struct grid){.values = info->dtype,
                          .scales =
                              scale->dtype == HEFT_DTYPE_U8 ? HEFT_DTYPE_F8_E8M0FNU : scale->dtype,
                          .block_rows = block_rows ? block_rows : info->shape[0],
                          .block_columns = block_columns ? block_columns : info->shape[1],
                          .zeros = zeros != HEFT__NO_PART};
    const uint64_t lines = (info->shape[0] - 1) / grid->block_rows + 1;
    grid->columns = (info->shape[1] - 1) / grid->block_columns + 1;
    heft_status status = check_grid(finder, scales, lines, grid->columns, err);
    if (status == HEFT_OK && grid->zeros) {
        status = finder->table->infos[zeros].dtype == HEFT_DTYPE_I8
                     ? check_grid(finder, zeros, lines, grid->columns, err)
                     : heft__quant_fail(finder, zeros, err, "expected dtype int8, found %s",
                                        heft_dtype_name(finder->table->infos[zeros].dtype));
    }
    weight->layout = &scaled_layout;
    weight->detail = grid;
    weight->rank = 2;
    memcpy(weight->shape, info->shape, 2 * sizeof *info->shape);
    weight->group = grid->columns > 1 || block_columns ? grid->block_columns : 0;
    return status;
}
