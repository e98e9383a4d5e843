/* scaled.c - the layout of 8-bit values with a grid of scales: fp8, and the 8-bit formats of other methods.
 *
 * A weight of rank 3 is several matrices, each with a grid of its own.
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
    uint64_t rows;                      /* of a matrix */
    uint64_t lines, columns;            /* of its grid */
    bool zeros;                         /* int8, shaped like the scales */
};

/* ---- computing -------------------------------------------------------------------------------- */
/* The line of scales of a row; rows and lines are numbered through all matrices. */
static uint64_t line_of(const struct grid *grid, uint64_t row)
{
    return row / grid->rows * grid->lines + row % grid->rows / grid->block_rows;
}

static size_t scaled_regions(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                             heft__quant_region regions[HEFT__QUANT_REGIONS])
{
    const struct grid *grid = weight->detail;
    const uint64_t columns = heft__quant_columns(weight), scale = heft_dtype_bits(grid->scales) / 8;
    const uint64_t from = line_of(grid, first) * grid->columns,
                   to = (line_of(grid, first + rows - 1) + 1) * grid->columns;
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
    bool stream;
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
                 row->zeros ? (float)(int8_t)row->zeros[block] : 0.0F, row->stream);
        }
        done += some;
    }
}

static heft_status scaled_decode(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                                 const heft__quant_bytes bytes[HEFT__QUANT_REGIONS], void *dst,
                                 bool stream, heft_error *err)
{
    const struct grid *grid = weight->detail;
    const uint64_t columns = heft__quant_columns(weight), top = line_of(grid, first);
    const size_t scale_bytes = heft_dtype_bits(grid->scales) / 8,
                 row_bytes = (size_t)columns * heft_dtype_bits(weight->dtype) / 8;
    const heft__scaled_fn loop = loop_for(grid->values, weight->dtype);
    (void)err;
    for (uint64_t r = 0; r < rows; r++) {
        const uint64_t line = (line_of(grid, first + r) - top) * grid->columns;
        const struct row row = {.values = bytes[0].at + r * columns,
                                .scales = bytes[1].at + line * scale_bytes,
                                .zeros = grid->zeros ? bytes[2].at + line : NULL,
                                .dst = (uint8_t *)dst + r * row_bytes,
                                .stream = stream};
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

/* Of several matrices: [matrices, lines, columns], or [matrices] for one scale each. */
static bool are_grids(const heft_tensor_info *info, uint64_t matrices, uint64_t lines,
                      uint64_t columns)
{
    const uint64_t shape[3] = {matrices, lines, columns};
    return heft__shape_equal(info->shape, info->rank, shape, 3) ||
           (lines == 1 && columns == 1 && heft__shape_equal(info->shape, info->rank, shape, 1));
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

/* Values [out, in], or [matrices, out, in], and what can be a scale of them. */
static heft_status check_dtypes(const heft__quant_finder *finder, const heft__quant_weight *weight,
                                size_t values, size_t scales, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[values],
                           *scale = &finder->table->infos[scales];
    bool good = (info->rank == 2 || info->rank == 3) && is_value(info->dtype);
    for (uint32_t d = 0; d < info->rank && good; d++) {
        good = info->shape[d] != 0;
    }
    if (!good) {
        char shape[HEFT__SHAPE_TEXT];
        return heft__quant_fail(
            finder, values, err, "expected a matrix of float8 or int8 values, found %s %s",
            heft_dtype_name(info->dtype), heft__shape_text(info->shape, info->rank, shape));
    }
    return is_scale(scale->dtype) && is_result(weight->dtype)
               ? HEFT_OK
               : heft__quant_fail(finder, scales, err, "%s cannot be a scale",
                                  heft_dtype_name(scale->dtype));
}

/* The same for the grids of scales and, where there are any, of zero points. *why: what keeps several matrices
 * from being computed. */
static heft_status check_grids(const heft__quant_finder *finder, const heft__quant_weight *weight,
                               const struct grid *grid, const char **why, heft_error *err)
{
    const heft_tensor_info *infos = finder->table->infos, *info = &infos[weight->part[VALUES]];
    const size_t scales = weight->part[SCALES], zeros = weight->part[ZEROS];
    if (grid->zeros && infos[zeros].dtype != HEFT_DTYPE_I8) {
        return heft__quant_fail(finder, zeros, err, "expected dtype int8, found %s",
                                heft_dtype_name(infos[zeros].dtype));
    }
    if (info->rank == 3) {
        const uint64_t count = info->shape[0];
        const bool good =
            are_grids(&infos[scales], count, grid->lines, grid->columns) &&
            (!grid->zeros || are_grids(&infos[zeros], count, grid->lines, grid->columns));
        *why = good ? NULL
                    : "it holds several matrices in one tensor, and its scales are no grid for "
                      "each of them";
        return HEFT_OK;
    }
    const heft_status status = check_grid(finder, scales, grid->lines, grid->columns, err);
    return status == HEFT_OK && grid->zeros
               ? check_grid(finder, zeros, grid->lines, grid->columns, err)
               : status;
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
    heft_status status = check_dtypes(finder, weight, values, scales, err);
    struct grid *grid = status == HEFT_OK ? heft__arena_alloc(finder->arena, sizeof *grid) : NULL;
    if (!grid) {
        return status == HEFT_OK ? heft__fail_nomem(err, sizeof *grid) : status;
    }
    const uint64_t rows = info->shape[info->rank - 2], columns = info->shape[info->rank - 1];
    *grid = (struct grid){.values = info->dtype,
                          .scales =
                              scale->dtype == HEFT_DTYPE_U8 ? HEFT_DTYPE_F8_E8M0FNU : scale->dtype,
                          .block_rows = block_rows ? block_rows : rows,
                          .block_columns = block_columns ? block_columns : columns,
                          .rows = rows,
                          .zeros = zeros != HEFT__NO_PART};
    grid->lines = (rows - 1) / grid->block_rows + 1;
    grid->columns = (columns - 1) / grid->block_columns + 1;
    status = check_grids(finder, weight, grid, &weight->why, err);
    if (weight->why) {
        return status;
    }
    weight->layout = &scaled_layout;
    weight->detail = grid;
    weight->rank = info->rank;
    memcpy(weight->shape, info->shape, info->rank * sizeof *info->shape);
    weight->group = grid->columns > 1 || block_columns ? grid->block_columns : 0;
    weight->lines = weight->group && block_rows > 1 ? block_rows : 0;
    return status;
}
