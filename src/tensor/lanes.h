/* lanes.h - loops over plain arrays, built once per instruction set level.
 *
 * A file called *_lanes.c is compiled once for each level with HEFT__LEVEL set to base, avx2 or
 * avx512. It exports one table of functions, `const struct ... HEFT__LANES(heft__cast_lanes)`, and
 * everything else in it is static. The file that calls it picks a table by heft__lanes_level().
 *
 * Every level gives the same bits: the loops hold only operations that IEEE 754 rounds correctly
 * (sums, products, quotients, square roots, conversions) and integers; no fused multiply-add
 * (-ffp-contract=off), no sum whose order may change, no libm. */
#ifndef HEFT__TENSOR_LANES_H
#define HEFT__TENSOR_LANES_H

#include "tensor/tensor.h"

/* ---- casts: cast_lanes.c -------------------------------------------------------------------- */
/* src and dst must not overlap; any alignment. */
typedef void (*heft__cast_fn)(void *restrict dst, const void *restrict src, size_t elems);

/* The pairs that have a loop of their own; others are steps of these, see cast.c. */
struct heft__cast_lanes {
    heft__cast_fn direct[HEFT_DTYPE_COUNT][HEFT_DTYPE_COUNT]; /* [from][to]; NULL: none */
};

extern const struct heft__cast_lanes heft__cast_lanes_base;
extern const struct heft__cast_lanes heft__cast_lanes_avx2;
extern const struct heft__cast_lanes heft__cast_lanes_avx512;

/* ---- random numbers: random_lanes.c --------------------------------------------------------- */
/* Philox blocks of one call; a block is four numbers. */
#define HEFT__RANDOM_BLOCKS 256

struct heft__random_lanes {
    /* Philox4x32-10 of the counters (blocks[i], stream) under the key seed: dst[4 * count]. */
    void (*bits)(const heft__random *random, const uint64_t *restrict blocks, size_t count,
                 uint32_t *restrict dst);
    /* mean + std * z, z standard normal: dst[4 * count]. */
    void (*normal)(const heft__random *random, const uint64_t *restrict blocks, size_t count,
                   float mean, float std, float *restrict dst);
    /* low + u * range, u a multiple of 2^-24 in [0, 1), but at most `top`: dst[4 * count]. */
    void (*uniform)(const heft__random *random, const uint64_t *restrict blocks, size_t count,
                    float low, float range, float top, float *restrict dst);
    /* Natural logarithm, for normal positive numbers; in place. */
    void (*log)(float *x, size_t count);
};

extern const struct heft__random_lanes heft__random_lanes_base;
extern const struct heft__random_lanes heft__random_lanes_avx2;
extern const struct heft__random_lanes heft__random_lanes_avx512;

/* The tables in use. */
const struct heft__cast_lanes *heft__cast_lanes(void);
const struct heft__random_lanes *heft__random_lanes(void);

#endif
