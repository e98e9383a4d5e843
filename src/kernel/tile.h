/* tile.h - products whose lanes are tokens: sums[row][token] += w[row][i] * p[i][token], i < depth.
 *
 * An element of w is broadcast and meets a row of the panel p, which holds `width` tokens for each i.
 * The elements of w may lie in any order: row_step and step are elements from one row, one i to the
 * next, so the same code reads rows as they lie, and a turned matrix. Rows times vectors of sums stay in
 * registers; a sum is added to memory once per call. */
#ifndef HEFT__KERNEL_TILE_H
#define HEFT__KERNEL_TILE_H

#include "kernel/vector.h"

#define TILE_VECTORS (SUMS / 6)
#define TILE_TOKENS ((size_t)TILE_VECTORS * LANES)
/* Rows at once by the vectors of a panel: more where it is narrow, so that there are sums enough to hide
 * the latency of one. All divide HEFT__PANEL_ROWS. */
#define TILE_ROWS(vectors) ((vectors) == 1 ? 12 : SUMS / (vectors))

struct tile_weights {
    const float *w;
    size_t row_step, step;
};

INLINE void tile(float *sums, const float *p, const struct tile_weights *weights, size_t depth,
                 const size_t vectors, const size_t rows)
{
    const size_t width = vectors * LANES;
    const float *w = weights->w;
    const size_t row_step = weights->row_step, step = weights->step;
    floats a[SUMS];
    for (size_t i = 0; i < rows * vectors; i++) {
        a[i] = (floats){0};
    }
    for (size_t i = 0; i < depth; i++, p += width, w += step) {
        floats x[TILE_VECTORS];
        for (size_t v = 0; v < vectors; v++) {
            x[v] = load(p + v * LANES);
        }
        for (size_t r = 0; r < rows; r++) {
            const floats b = splat(w[r * row_step]);
            for (size_t v = 0; v < vectors; v++) {
                a[r * vectors + v] = multiply_add(b, x[v], a[r * vectors + v]);
            }
        }
    }
    for (size_t i = 0; i < rows * vectors; i++) {
        store(sums + i * LANES, load(sums + i * LANES) + a[i]);
    }
}

/* Rows that are left after groups of TILE_ROWS: fewer at once. */
#define TILE_FEWER(vectors) ((vectors) == 1 ? 4 : 2)

INLINE void tiles_of(float *sums, const float *p, struct tile_weights weights, size_t depth,
                     size_t rows, const size_t vectors)
{
    const size_t most = TILE_ROWS(vectors), fewer = TILE_FEWER(vectors);
    for (; rows >= most; rows -= most) {
        tile(sums, p, &weights, depth, vectors, most);
        weights.w += most * weights.row_step;
        sums += most * vectors * LANES;
    }
    for (; rows >= fewer; rows -= fewer) {
        tile(sums, p, &weights, depth, vectors, fewer);
        weights.w += fewer * weights.row_step;
        sums += fewer * vectors * LANES;
    }
    for (; rows > 0; rows--) {
        tile(sums, p, &weights, depth, vectors, 1);
        weights.w += weights.row_step;
        sums += vectors * LANES;
    }
}

/* All rows; a panel of `vectors` vectors, sums[rows][vectors * LANES]. */
static inline void tiles(float *sums, const float *p, struct tile_weights weights, size_t depth,
                         size_t rows, size_t vectors)
{
    switch (vectors) {
    case 1:
        tiles_of(sums, p, weights, depth, rows, 1);
        break;
    case 2:
        tiles_of(sums, p, weights, depth, rows, 2);
        break;
#if SUMS == 24
    case 3:
        tiles_of(sums, p, weights, depth, rows, 3);
        break;
    default:
        tiles_of(sums, p, weights, depth, rows, 4);
        break;
#endif
    }
}

#endif
