/* panel_kernels.c - products of many tokens, whose lanes are tokens (tile.h).
 *
 *   for each 48 rows of w
 *     for each 256 tokens
 *       for each 1024 columns: widen 48 x 1024 weights, unless they are float32 or pairs
 *         for each panel of tokens: sums[48][tokens] += w * panel
 *       write the sums
 *
 * The weights are read as they lie; a tile of a compact matrix is made BF16 or float32 first. A tile stays in the
 * second cache and is used for 256 tokens. Sums are added per 1024 columns, so a range's cut changes no bit. */
#include "kernel/chunk.h"
#include "kernel/compact.h"
#include "kernel/level.h"
#include "kernel/tile.h"

struct product {
    const heft__operand *operand;
    const heft__matrix *w;
    bool pairs;
    float *sums; /* by panel: [HEFT__PANEL_ROWS][its width] */
    float *wide; /* weights as float32 */
    size_t row, rows;
    size_t column, columns; /* of this part */
};

/* ---- weights as float32 -------------------------------------------------------------------------- */
/* `count` rows at once from r on, a constant: each row is a stream of its own to the memory, and their first
 * misses overlap. The next rows' first lines are asked for already. */
INLINE void widen_together(const struct product *p, size_t r, heft_dtype dtype, const size_t count)
{
    const size_t stride = p->w->stride, from = (p->row + r) * stride + p->column;
    float *to = p->wide + r * HEFT__PANEL_PITCH;
    size_t c = 0;
    for (size_t i = count; i < 2 * count && r + i < p->rows; i++) {
        const char *next = (const char *)p->w->data + (from + i * stride) * sizeof(uint16_t);
        __builtin_prefetch(next);
        __builtin_prefetch(next + (p->columns > 32 ? 64 : 0));
    }
    for (; c + LANES <= p->columns; c += LANES) {
        for (size_t i = 0; i < count; i++) {
            store(to + i * HEFT__PANEL_PITCH + c,
                  load_as(p->w->data, from + i * stride + c, dtype));
        }
    }
    for (size_t i = 0; i < count && c < p->columns; i++) {
        store(to + i * HEFT__PANEL_PITCH + c,
              load_part_as(p->w->data, from + i * stride + c, dtype, p->columns - c));
    }
}

INLINE void widen_rows(const struct product *p, heft_dtype dtype)
{
    size_t r = 0;
    for (; r + 4 <= p->rows; r += 4) {
        widen_together(p, r, dtype, 4);
    }
    for (; r < p->rows; r++) {
        widen_together(p, r, dtype, 1);
    }
}

/* Of a compact matrix: as BF16, or widened, to[rows][HEFT__PANEL_PITCH]; rows together as above. */
INLINE void unpack_together(const struct product *p, size_t r, const bool widened,
                            const size_t count)
{
    const heft__compact *compact = p->w->compact;
    const size_t first = p->w->compact_row + p->row + r;
    uint16_t *to = (uint16_t *)(void *)p->wide + r * HEFT__PANEL_PITCH;
    float *wide = p->wide + r * HEFT__PANEL_PITCH;
    struct compact_row at[4];
    for (size_t i = 0; i < count; i++) {
        at[i] = compact_row_at(compact, first + i, p->column);
    }
    for (size_t c = 0; c < p->columns; c += BLOCK) {
        for (size_t i = 0; i < count; i++) {
            const uint8_t *later = compact_block_at(compact, first + i + count, p->column + c);
            __builtin_prefetch(later);
            __builtin_prefetch(later + 64);
            const block b = unpack_block(&at[i], p->column + c, compact->high);
            if (!widened) {
                memcpy(to + i * HEFT__PANEL_PITCH + c, &b, sizeof b);
            }
            for (size_t k = 0; widened && k < BLOCK; k += LANES) {
                store(wide + i * HEFT__PANEL_PITCH + c + k, load_as(&b, k, HEFT_DTYPE_BF16));
            }
        }
    }
}

INLINE void unpack_rows(const struct product *p, const bool widened)
{
    size_t r = 0;
    for (; r + 4 <= p->rows; r += 4) {
        unpack_together(p, r, widened, 4);
    }
    for (; r < p->rows; r++) {
        unpack_together(p, r, widened, 1);
    }
}

/* [columns][HEFT__PANEL_ROWS], as they lie. */
INLINE void copy_turned(const struct product *p, heft_dtype dtype)
{
    for (size_t c = 0; c < p->columns; c++) {
        const size_t from = (p->column + c) * p->w->stride + p->row;
        float *to = p->wide + c * HEFT__PANEL_ROWS;
        for (size_t r = 0; r < p->rows; r += LANES) {
            store(to + r, load_some_as(p->w->data, from + r, dtype, p->rows - r));
        }
    }
}

INLINE struct tile_weights weights_as(const struct product *p, heft_dtype dtype)
{
    if (p->w->turned) {
        copy_turned(p, dtype);
        return (struct tile_weights){.w = p->wide, .row_step = 1, .step = HEFT__PANEL_ROWS};
    }
    if (dtype == HEFT_DTYPE_F32) {
        const float *w = p->w->data;
        return (struct tile_weights){
            .w = w + p->row * p->w->stride + p->column, .row_step = p->w->stride, .step = 1};
    }
    widen_rows(p, dtype);
    return (struct tile_weights){.w = p->wide, .row_step = HEFT__PANEL_PITCH, .step = 1};
}

static struct tile_weights weights_of(const struct product *p)
{
    if (p->w->compact) {
        unpack_rows(p, true);
        return (struct tile_weights){.w = p->wide, .row_step = HEFT__PANEL_PITCH, .step = 1};
    }
    return p->w->dtype == HEFT_DTYPE_F32    ? weights_as(p, HEFT_DTYPE_F32)
           : p->w->dtype == HEFT_DTYPE_BF16 ? weights_as(p, HEFT_DTYPE_BF16)
                                            : weights_as(p, HEFT_DTYPE_F16);
}

/* ---- pairs of bfloat16 --------------------------------------------------------------------------- */
#if defined(__AVX512BF16__)
/* One pair of columns: `bytes` is 2 at an odd last one, which is paired with 0. */
INLINE void add_pair(floats a[], const float *p, const uint16_t *w, size_t row_step,
                     const size_t bytes, const size_t vectors, const size_t rows)
{
    floats x[TILE_VECTORS];
    for (size_t v = 0; v < vectors; v++) {
        x[v] = load(p + v * LANES);
    }
    for (size_t r = 0; r < rows; r++) {
        uint32_t pair = 0;
        memcpy(&pair, w + r * row_step, bytes);
        const floats b = (floats)_mm512_set1_epi32((int)pair);
        for (size_t v = 0; v < vectors; v++) {
            a[r * vectors + v] = add_pairs(a[r * vectors + v], x[v], b);
        }
    }
}

/* As tile(); w and p hold pairs of elements. */
INLINE void pair_tile(float *sums, const float *p, const uint16_t *w, size_t row_step, size_t depth,
                      const size_t vectors, const size_t rows)
{
    floats a[SUMS];
    size_t i = 0;
    for (size_t s = 0; s < rows * vectors; s++) {
        a[s] = (floats){0};
    }
    for (; i + 2 <= depth; i += 2, p += vectors * LANES) {
        add_pair(a, p, w + i, row_step, 4, vectors, rows);
    }
    if (i < depth) {
        add_pair(a, p, w + i, row_step, 2, vectors, rows);
    }
    for (size_t s = 0; s < rows * vectors; s++) {
        store(sums + s * LANES, load(sums + s * LANES) + a[s]);
    }
}

INLINE void pair_tiles_of(const struct product *p, float *sums, const float *panel,
                          const size_t vectors)
{
    const uint16_t *w = p->w->compact
                            ? (const uint16_t *)(const void *)p->wide
                            : (const uint16_t *)p->w->data + p->row * p->w->stride + p->column;
    const size_t most = TILE_ROWS(vectors), step = p->w->compact ? HEFT__PANEL_PITCH : p->w->stride;
    size_t r = 0;
    for (; p->rows - r >= most; r += most) {
        pair_tile(sums + r * vectors * LANES, panel, w + r * step, step, p->columns, vectors, most);
    }
    for (; r < p->rows; r++) {
        pair_tile(sums + r * vectors * LANES, panel, w + r * step, step, p->columns, vectors, 1);
    }
}

static void pair_tiles(const struct product *p, float *sums, const float *panel, size_t vectors)
{
    switch (vectors) {
    case 1:
        pair_tiles_of(p, sums, panel, 1);
        break;
    case 2:
        pair_tiles_of(p, sums, panel, 2);
        break;
    case 3:
        pair_tiles_of(p, sums, panel, 3);
        break;
    default:
        pair_tiles_of(p, sums, panel, 4);
        break;
    }
}
#else
static void pair_tiles(const struct product *p, float *sums, const float *panel, size_t vectors)
{
    (void)p, (void)sums, (void)panel, (void)vectors;
}
#endif

/* ---- the product --------------------------------------------------------------------------------- */
static size_t width_of(const struct product *p, size_t token)
{
    const size_t left = p->operand->tokens - token;
    return left >= TILE_TOKENS ? TILE_TOKENS : (left + LANES - 1) / LANES * LANES;
}

/* These columns, all panels of tokens first .. last - 1. */
static void add_part(const struct product *p, size_t first, size_t last)
{
    const size_t columns = p->w->columns;
    const size_t depth = p->pairs ? (columns + 1) / 2 : columns;
    const size_t from = p->pairs ? p->column / 2 : p->column;
    struct tile_weights weights = {0};
    if (!p->pairs) {
        weights = weights_of(p);
    } else if (p->w->compact) {
        unpack_rows(p, false);
    }
    for (size_t t = first; t < last; t += TILE_TOKENS) {
        const size_t width = width_of(p, t);
        const float *panel = (const float *)p->operand->data + t * depth + from * width;
        float *sums = p->sums + (t - first) * HEFT__PANEL_ROWS;
        if (p->pairs) {
            pair_tiles(p, sums, panel, width / LANES);
        } else {
            tiles(sums, panel, weights, p->columns, p->rows, width / LANES);
        }
    }
}

static void write_sums(const struct product *p, float *y, size_t y_stride, const float *bias,
                       size_t first, size_t last)
{
    for (size_t t = first; t < last; t += LANES) {
        const size_t panel = (t - first) / TILE_TOKENS * TILE_TOKENS;
        const size_t width = width_of(p, first + panel);
        const float *sums = p->sums + panel * HEFT__PANEL_ROWS + (t - first - panel);
        for (size_t r = 0; r < p->rows; r += LANES) {
            const size_t left = p->rows - r;
            const floats more = bias ? load_some(bias + p->row + r, left) : (floats){0};
            floats v[LANES];
            for (size_t i = 0; i < LANES; i++) {
                v[i] = i < left ? load(sums + (r + i) * width) : (floats){0};
            }
            turn(v);
            for (size_t i = 0; i < LANES && t + i < last; i++) {
                store_some(y + (t + i) * y_stride + p->row + r, v[i] + more, left);
            }
        }
    }
}

void HEFT__KERNEL(panel)(float *y, size_t y_stride, const heft__operand *operand,
                         const heft__matrix *w, const float *bias, size_t first, size_t last,
                         void *scratch)
{
    struct product p = {.operand = operand, .w = w, .sums = scratch};
    p.wide = p.sums + HEFT__PANEL_ROWS * HEFT__PANEL_TOKENS;
    p.pairs = HAVE_PAIRS && w->dtype == HEFT_DTYPE_BF16 && !operand->exact && !w->turned;
    for (p.row = first; p.row < last; p.row += HEFT__PANEL_ROWS) {
        p.rows = last - p.row < HEFT__PANEL_ROWS ? last - p.row : HEFT__PANEL_ROWS;
        for (size_t t = 0; t < operand->tokens; t += HEFT__PANEL_TOKENS) {
            const size_t left = operand->tokens - t;
            const size_t end = left < HEFT__PANEL_TOKENS ? operand->tokens : t + HEFT__PANEL_TOKENS;
            memset(p.sums, 0, HEFT__PANEL_ROWS * HEFT__PANEL_TOKENS * sizeof *p.sums);
            for (p.column = 0; p.column < w->columns; p.column += HEFT__PANEL_DEPTH) {
                const size_t rest = w->columns - p.column;
                p.columns = rest < HEFT__PANEL_DEPTH ? rest : HEFT__PANEL_DEPTH;
                add_part(&p, t, end);
            }
            write_sums(&p, y, y_stride, bias, t, end);
        }
    }
}
