/* vector.h - float vectors of the instruction set that a *_kernels.c file is compiled for.
 *
 * The vector extensions of gcc and clang, and intrinsics for what these do not have: fused
 * multiply-add, the larger of two, and conversions of float16. -ffp-contract=off holds here as
 * elsewhere: what is fused says multiply_add, so that two loops over the same numbers give the same
 * bits. Loads and stores take any alignment.
 *
 * Functions over parts of a vector read or write `count` elements, 0 < count < LANES, and nothing
 * beyond; missing elements are 0. */
#ifndef HEFT__KERNEL_VECTOR_H
#define HEFT__KERNEL_VECTOR_H

#include <heft/tensor.h>

#include <float.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#elif defined(__SSE2__)
#include <emmintrin.h>
#define LANES 4
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#define LANES 4
#else
#define LANES 4
#endif
/* What stays in registers: sums, beside the operands of one step. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define SUMS 24
#else
#define SUMS 12
#endif

#define INLINE static inline __attribute__((always_inline, unused))
#define NOT_INLINE __attribute__((noinline, unused))

typedef float floats __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));

/* ---- loads and stores ---------------------------------------------------------------------------- */
INLINE floats load(const float *p)
{
    floats v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE floats load_part(const float *p, size_t count)
{
    floats v = {0};
    memcpy(&v, p, count * sizeof *p);
    return v;
}

INLINE void store(float *p, floats v)
{
    memcpy(p, &v, sizeof v);
}

INLINE void store_part(float *p, floats v, size_t count)
{
    memcpy(p, &v, count * sizeof *p);
}

INLINE floats splat(float s)
{
#if defined(__AVX512F__)
    return (floats)_mm512_set1_ps(s);
#elif defined(__AVX2__)
    return (floats)_mm256_set1_ps(s);
#else
    return (floats){s, s, s, s};
#endif
}

/* ---- arithmetic ---------------------------------------------------------------------------------- */
/* a * b + c, rounded once where the instruction set has that. */
INLINE floats multiply_add(floats a, floats b, floats c)
{
#if defined(__AVX512F__)
    return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* c - a * b */
INLINE floats multiply_less(floats a, floats b, floats c)
{
    return multiply_add(-a, b, c);
}

INLINE floats choose(ints mask, floats yes, floats no)
{
    return (floats)((mask & (ints)yes) | (~mask & (ints)no));
}

/* a > b ? a : b, so b where either is NaN. */
INLINE floats larger(floats a, floats b)
{
#if defined(__AVX512F__)
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (floats)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (floats)_mm_max_ps((__m128)a, (__m128)b);
#else
    return choose(a > b, a, b);
#endif
}

INLINE floats smaller(floats a, floats b)
{
#if defined(__AVX512F__)
    return (floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (floats)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (floats)_mm_min_ps((__m128)a, (__m128)b);
#else
    return choose(a < b, a, b);
#endif
}

INLINE floats magnitude(floats x)
{
    return (floats)((words)x & 0x7fffffffU);
}

/* The magnitude of x with the sign of `sign`. */
INLINE floats with_sign(floats x, floats sign)
{
    return (floats)(((words)x & 0x7fffffffU) | ((words)sign & 0x80000000U));
}

INLINE bool any(ints mask)
{
    int32_t part[LANES], all = 0;
    memcpy(part, &mask, sizeof part);
    for (int i = 0; i < LANES; i++) {
        all |= part[i];
    }
    return all != 0;
}

/* In the same order on every path. */
INLINE float sum_of(floats v)
{
    typedef float quads __attribute__((vector_size(16)));
    quads part[LANES / 4];
    memcpy(part, &v, sizeof part);
    for (int width = LANES / 8; width > 0; width /= 2) {
        for (int i = 0; i < width; i++) {
            part[i] += part[i + width];
        }
    }
    return (part[0][0] + part[0][2]) + (part[0][1] + part[0][3]);
}

/* Lanes of a and b by number; those of b begin at LANES. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif

/* fold_N: a sum has 2 N neighboring lanes of a, and another one of b. Their halves are added, so that each has N. */
#if LANES == 16
INLINE floats fold_8(floats a, floats b)
{
    return SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
INLINE floats fold_4(floats a, floats b)
{
    return SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
INLINE floats fold_2(floats a, floats b)
{
    return SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
INLINE floats fold_1(floats a, floats b)
{
    return SHUFFLE(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
           SHUFFLE(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
}
#elif LANES == 8
INLINE floats fold_4(floats a, floats b)
{
    return SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}
INLINE floats fold_2(floats a, floats b)
{
    return SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}
INLINE floats fold_1(floats a, floats b)
{
    return SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
}
#else
INLINE floats fold_2(floats a, floats b)
{
    return SHUFFLE(a, b, 0, 1, 4, 5) + SHUFFLE(a, b, 2, 3, 6, 7);
}
INLINE floats fold_1(floats a, floats b)
{
    return SHUFFLE(a, b, 0, 2, 4, 6) + SHUFFLE(a, b, 1, 3, 5, 7);
}
#endif

/* Lane i: sum_of(v[i]), with the same additions. */
INLINE floats sums_of(const floats v[LANES])
{
    floats part[4];
    for (int i = 0; i < 4; i++) {
#if LANES == 16
        part[i] = fold_4(fold_8(v[i], v[i + 4]), fold_8(v[i + 8], v[i + 12]));
#elif LANES == 8
        part[i] = fold_4(v[i], v[i + 4]);
#else
        part[i] = v[i];
#endif
    }
    return fold_1(fold_2(part[0], part[1]), fold_2(part[2], part[3]));
}

/* ZIP: lanes of a and b in turns, of their first or last halves. evens, odds: those lanes of a, then those of b. */
#if LANES == 16
#define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define EVENS 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODDS 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif LANES == 8
#define ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define EVENS 0, 2, 4, 6, 8, 10, 12, 14
#define ODDS 1, 3, 5, 7, 9, 11, 13, 15
#else
#define ZIP_LOW 0, 4, 1, 5
#define ZIP_HIGH 2, 6, 3, 7
#define EVENS 0, 2, 4, 6
#define ODDS 1, 3, 5, 7
#endif
INLINE floats evens(floats a, floats b)
{
    return SHUFFLE(a, b, EVENS);
}
INLINE floats odds(floats a, floats b)
{
    return SHUFFLE(a, b, ODDS);
}

/* Transpose: lane j of v[i] becomes lane i of v[j]. */
INLINE void turn(floats v[LANES])
{
    for (int step = LANES; step > 1; step /= 2) {
        floats next[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = SHUFFLE(v[i], v[i + LANES / 2], ZIP_LOW);
            next[2 * i + 1] = SHUFFLE(v[i], v[i + LANES / 2], ZIP_HIGH);
        }
        for (int i = 0; i < LANES; i++) {
            v[i] = next[i];
        }
    }
}

INLINE float largest_of(floats v)
{
    float part[LANES];
    memcpy(part, &v, sizeof part);
    for (int i = 1; i < LANES; i++) {
        part[0] = part[i] > part[0] ? part[i] : part[0];
    }
    return part[0];
}

/* ---- halves -------------------------------------------------------------------------------------- */
INLINE floats widen_bf16(halves h)
{
    return (floats)(__builtin_convertvector(h, words) << 16);
}

/* Nearest even; a NaN becomes quiet. */
INLINE words narrow_bf16(floats x)
{
    const words bits = (words)x;
    const words is_nan = (words)((bits & 0x7fffffffU) > 0x7f800000U);
    const words quiet = bits >> 16 | 0x40U;
    const words rounded = (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
    return (is_nan & quiet) | (~is_nan & rounded);
}

INLINE floats round_bf16(floats x)
{
    return (floats)(narrow_bf16(x) << 16);
}

/* As in half.h. */
INLINE floats widen_f16(halves h)
{
#if defined(__AVX512F__)
    return (floats)_mm512_cvtph_ps((__m256i)h);
#elif defined(__AVX2__)
    return (floats)_mm256_cvtph_ps((__m128i)h);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (floats)vcvt_f32_f16(vreinterpret_f16_u16((uint16x4_t)h));
#else
    const words wide = __builtin_convertvector(h, words);
    const words rest = wide & 0x7fffU;
    const words special = (words)(rest >= 0x7c00U), is_nan = (words)(rest > 0x7c00U);
    const floats scaled = (floats)(rest << 13) * splat(0x1p112F);
    const words bits = (special & (0x7f800000U | rest << 13)) | (~special & (words)scaled);
    return (floats)(bits | (is_nan & 0x400000U) | (wide & 0x8000U) << 16);
#endif
}

INLINE words narrow_f16(floats x)
{
#if defined(__AVX512F__)
    const __m256i h = _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return (words)_mm512_cvtepu16_epi32(h);
#elif defined(__AVX2__)
    return (words)_mm256_cvtepu16_epi32(_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
    const words bits = (words)x, rest = bits & 0x7fffffffU;
    const words is_nan = (words)(rest > 0x7f800000U), large = (words)(rest >= 0x47800000U);
    const words tiny = (words)(rest < 0x38800000U);
    const words subnormal = (words)((floats)rest + splat(0.5F)) - 0x3f000000U;
    const words normal = (rest - 0x38000000U + 0xfffU + (rest >> 13 & 1U)) >> 13;
    words half = (tiny & subnormal) | (~tiny & normal);
    half = (large & 0x7c00U) | (~large & half);
    half = (is_nan & (0x7e00U | (rest >> 13 & 0x3ffU))) | (~is_nan & half);
    return half | (bits >> 16 & 0x8000U);
#endif
}

INLINE halves load_halves(const uint16_t *p)
{
    halves h;
    memcpy(&h, p, sizeof h);
    return h;
}

/* LANES numbers of a dtype, beginning at element i. */
INLINE floats load_as(const void *data, size_t i, heft_dtype dtype)
{
    if (dtype == HEFT_DTYPE_F32) {
        return load((const float *)data + i);
    }
    const halves h = load_halves((const uint16_t *)data + i);
    return dtype == HEFT_DTYPE_BF16 ? widen_bf16(h) : widen_f16(h);
}

INLINE floats load_part_as(const void *data, size_t i, heft_dtype dtype, size_t count)
{
    if (dtype == HEFT_DTYPE_F32) {
        return load_part((const float *)data + i, count);
    }
    halves h = {0};
    memcpy(&h, (const uint16_t *)data + i, count * sizeof(uint16_t));
    return dtype == HEFT_DTYPE_BF16 ? widen_bf16(h) : widen_f16(h);
}

/* Full or part: for loops whose last step is shorter. */
INLINE floats load_some_as(const void *data, size_t i, heft_dtype dtype, size_t left)
{
    return left >= LANES ? load_as(data, i, dtype) : load_part_as(data, i, dtype, left);
}

INLINE floats load_some(const float *p, size_t left)
{
    return left >= LANES ? load(p) : load_part(p, left);
}

INLINE void store_some(float *p, floats v, size_t left)
{
    if (left >= LANES) {
        store(p, v);
    } else {
        store_part(p, v, left);
    }
}

/* ---- exponentials -------------------------------------------------------------------------------- */
/* exp(x + low), |low| < 0.1: x = n ln 2 + r, |r| <= ln 2 / 2, and a polynomial in r + low. The factor 2^n is two
 * factors, so that subnormal results and infinity come out by themselves. */
INLINE floats exp_sum(floats x, floats low)
{
    x = smaller(splat(89.0F), larger(splat(-104.0F), x)); /* NaN stays */
    const floats magic = splat(12582912.0F);              /* 1.5 * 2^23: rounds to an integer */
    const floats moved = multiply_add(x, splat(1.44269504F), magic);
    const floats n = moved - magic;
    floats r = multiply_less(n, splat(0.693145751953125F), x); /* ln 2 in two parts */
    r = multiply_less(n, splat(1.42860682e-6F), r) + low;
    floats p = splat(0.00139506003F);
    p = multiply_add(p, r, splat(0.00836895371F));
    p = multiply_add(p, r, splat(0.0416662042F));
    p = multiply_add(p, r, splat(0.166665183F));
    p = multiply_add(p, r, splat(0.5F));
    p = multiply_add(p, r * r, r) + splat(1.0F);
    const ints power = (ints)moved - 0x4b400000;
    const ints half = power >> 1;
    const floats first = (floats)((half + 127) << 23);
    const floats second = (floats)((power - half + 127) << 23);
    return p * first * second;
}

INLINE floats exp_of(floats x)
{
    return exp_sum(x, (floats){0});
}

#endif
