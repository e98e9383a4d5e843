/* scaled_lanes.c - 8-bit values times a scale, rounded once: the loops of scaled.c, 32 values at a time.
 *
 * float8 e4m3 becomes bfloat16, exactly, while it still has 16 bits: exponents move by 120, the eight
 * magnitudes without an exponent are looked up, 0x7f is NaN. So there are no subnormal float32 to slow it
 * down. For a bfloat16 result the even and the odd elements are computed apart, in the upper halves of
 * float32, and joined at the end.
 *
 * There are loops where there are vectors of bytes; the base level has none, and scaled.c converts step by
 * step there. The bits are the same. The scale is not NaN, so the only NaN is that of e4m3 or of an infinite
 * scale times zero: rounding cannot carry into its sign. */
#include "quant/quant.h"

#if defined(__AVX2__)
#include <immintrin.h>

#define WIDTH 32 /* values at a time */

/* ---- 32 values as two vectors of float32, even and odd elements, or the first and the last --------- */
#if defined(__AVX512BW__)
typedef __m512 floats;
typedef __m512i ints;
#define VECTORS 1 /* of 32 values as 16 bits */
#define HALF 16   /* elements of `floats` */

static inline ints widen_unsigned(const uint8_t *src)
{
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)src));
}
static inline ints widen_signed(const uint8_t *src)
{
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)src));
}
static inline ints bf16_of_e4m3(ints x)
{
    static const uint16_t tiny[32] = {0x0000, 0x3b00, 0x3b80, 0x3bc0,
                                      0x3c00, 0x3c20, 0x3c40, 0x3c60}; /* m * 2^-9 */
    const ints magnitude = _mm512_and_si512(x, _mm512_set1_epi16(0x7f));
    ints bits = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
    bits = _mm512_mask_permutexvar_epi16(bits,
                                         _mm512_cmplt_epi16_mask(magnitude, _mm512_set1_epi16(8)),
                                         magnitude, _mm512_loadu_si512(tiny));
    bits = _mm512_mask_mov_epi16(bits, _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f)),
                                 _mm512_set1_epi16(0x7fc0));
    return _mm512_or_si512(bits, _mm512_slli_epi16(_mm512_andnot_si512(magnitude, x), 8));
}
static inline floats even_bf16(ints x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
static inline floats odd_bf16(ints x)
{
    return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000U)));
}
static inline floats even_int(ints x)
{
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(x, 16), 16));
}
static inline floats odd_int(ints x)
{
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(x, 16));
}
static inline floats all(float x)
{
    return _mm512_set1_ps(x);
}
static inline floats scaled(floats x, floats zero, floats factor)
{
    return _mm512_mul_ps(_mm512_sub_ps(x, zero), factor);
}
static inline floats times(floats x, floats factor)
{
    return _mm512_mul_ps(x, factor);
}
/* Rounded to nearest even in the upper 16 bits; the lower ones are left over. */
static inline ints rounded(floats x)
{
    const ints bits = _mm512_castps_si512(x);
    const ints odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
}
static inline void store(void *dst, ints x, bool stream)
{
    if (stream) {
        _mm512_stream_si512(dst, x);
    } else {
        _mm512_storeu_si512(dst, x);
    }
}
static inline void join_bf16(uint16_t *dst, floats even, floats odd, bool stream)
{
    const ints low = _mm512_srli_epi32(rounded(even), 16);
    store(dst, _mm512_mask_mov_epi16(low, 0xaaaaaaaaU, rounded(odd)), stream);
}
static inline void join_f32(float *dst, floats even, floats odd, bool stream)
{
    const floats low = _mm512_unpacklo_ps(even, odd), high = _mm512_unpackhi_ps(even, odd);
    const ints first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0),
               last = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
    const __m512d a = _mm512_castps_pd(low), b = _mm512_castps_pd(high);
    store(dst, _mm512_castpd_si512(_mm512_permutex2var_pd(a, first, b)), stream);
    store(dst + 16, _mm512_castpd_si512(_mm512_permutex2var_pd(a, last, b)), stream);
}
static inline void join_f16(uint16_t *dst, floats even, floats odd, bool stream)
{
    const ints low = _mm512_cvtepu16_epi32(
                   _mm512_cvtps_ph(even, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)),
               high = _mm512_cvtepu16_epi32(
                   _mm512_cvtps_ph(odd, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    store(dst, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)), stream);
}
#else
typedef __m256 floats;
typedef __m256i ints;
#define VECTORS 2
#define HALF 8

static inline ints widen_unsigned(const uint8_t *src)
{
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)src));
}
static inline ints widen_signed(const uint8_t *src)
{
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)src));
}
static inline ints bf16_of_e4m3(ints x)
{
    const ints high = _mm256_broadcastsi128_si256(_mm_setr_epi8(
                   0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0)),
               low = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, (char)0x80, (char)0xc0, 0,
                                                               0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0,
                                                               0, 0)); /* of m * 2^-9 */
    const ints magnitude = _mm256_and_si256(x, _mm256_set1_epi16(0x7f));
    const ints normal =
        _mm256_add_epi16(_mm256_slli_epi16(magnitude, 4), _mm256_set1_epi16(120 << 7));
    const ints tiny = _mm256_or_si256(_mm256_shuffle_epi8(low, magnitude),
                                      _mm256_slli_epi16(_mm256_shuffle_epi8(high, magnitude), 8));
    const ints is_tiny = _mm256_cmpgt_epi16(_mm256_set1_epi16(8), magnitude),
               is_nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
    const ints bits = _mm256_blendv_epi8(_mm256_blendv_epi8(normal, tiny, is_tiny),
                                         _mm256_set1_epi16(0x7fc0), is_nan);
    return _mm256_or_si256(bits, _mm256_slli_epi16(_mm256_andnot_si256(magnitude, x), 8));
}
static inline floats even_bf16(ints x)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
static inline floats odd_bf16(ints x)
{
    return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000U)));
}
static inline floats even_int(ints x)
{
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(x, 16), 16));
}
static inline floats odd_int(ints x)
{
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(x, 16));
}
static inline floats all(float x)
{
    return _mm256_set1_ps(x);
}
static inline floats scaled(floats x, floats zero, floats factor)
{
    return _mm256_mul_ps(_mm256_sub_ps(x, zero), factor);
}
static inline floats times(floats x, floats factor)
{
    return _mm256_mul_ps(x, factor);
}
static inline ints rounded(floats x)
{
    const ints bits = _mm256_castps_si256(x);
    const ints odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
}
static inline void store(void *dst, ints x, bool stream)
{
    if (stream) {
        _mm256_stream_si256(dst, x);
    } else {
        _mm256_storeu_si256(dst, x);
    }
}
static inline void join_bf16(uint16_t *dst, floats even, floats odd, bool stream)
{
    store(dst, _mm256_blend_epi16(_mm256_srli_epi32(rounded(even), 16), rounded(odd), 0xaa),
          stream);
}
static inline void join_f32(float *dst, floats even, floats odd, bool stream)
{
    const floats low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    store(dst, _mm256_castps_si256(_mm256_permute2f128_ps(low, high, 0x20)), stream);
    store(dst + 8, _mm256_castps_si256(_mm256_permute2f128_ps(low, high, 0x31)), stream);
}
static inline void join_f16(uint16_t *dst, floats even, floats odd, bool stream)
{
    const ints low = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(even, _MM_FROUND_TO_NEAREST_INT)),
               high = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(odd, _MM_FROUND_TO_NEAREST_INT));
    store(dst, _mm256_or_si256(low, _mm256_slli_epi32(high, 16)), stream);
}
#endif

/* ---- loops ------------------------------------------------------------------------------------ */
/* What is less than 32 values at the end goes through buffers. */
#define SCALED_LOOP(name, type, widen, join, even_of, odd_of)                                      \
    static inline void name##_some(type *restrict dst, const uint8_t *restrict src, floats factor, \
                                   floats zero, bool stream)                                       \
    {                                                                                              \
        (void)zero;                                                                                \
        for (size_t v = 0; v < VECTORS; v++) {                                                     \
            const ints x = widen(src + 2 * HALF * v);                                              \
            join(dst + 2 * HALF * v, even_of, odd_of, stream);                                     \
        }                                                                                          \
    }                                                                                              \
    static inline size_t name##_whole(type *restrict dst, const uint8_t *restrict src,             \
                                      size_t count, floats factor, floats zero, bool stream)       \
    {                                                                                              \
        size_t k = 0;                                                                              \
        for (; k + WIDTH <= count; k += WIDTH) {                                                   \
            name##_some(dst + k, src + k, factor, zero, stream);                                   \
        }                                                                                          \
        return k;                                                                                  \
    }                                                                                              \
    static void name(void *restrict dst, const uint8_t *restrict src, size_t count, float scale,   \
                     float offset, bool stream)                                                    \
    {                                                                                              \
        const floats factor = all(scale), zero = all(offset);                                      \
        type *to = dst;                                                                            \
        const size_t k = stream && heft__can_stream(dst)                                           \
                             ? name##_whole(to, src, count, factor, zero, true)                    \
                             : name##_whole(to, src, count, factor, zero, false);                  \
        if (k < count) {                                                                           \
            uint8_t last[WIDTH] = {0};                                                             \
            type results[WIDTH];                                                                   \
            memcpy(last, src + k, count - k);                                                      \
            name##_some(results, last, factor, zero, false);                                       \
            memcpy(to + k, results, (count - k) * sizeof *to);                                     \
        }                                                                                          \
    }

#define E4M3(x) bf16_of_e4m3(widen_unsigned(x))
#define FLOAT8_EVEN times(even_bf16(x), factor)
#define FLOAT8_ODD times(odd_bf16(x), factor)
#define INT8_EVEN scaled(even_int(x), zero, factor)
#define INT8_ODD scaled(odd_int(x), zero, factor)

SCALED_LOOP(e4m3_bf16, uint16_t, E4M3, join_bf16, FLOAT8_EVEN, FLOAT8_ODD)
SCALED_LOOP(e4m3_f16, uint16_t, E4M3, join_f16, FLOAT8_EVEN, FLOAT8_ODD)
SCALED_LOOP(e4m3_f32, float, E4M3, join_f32, FLOAT8_EVEN, FLOAT8_ODD)
SCALED_LOOP(i8_bf16, uint16_t, widen_signed, join_bf16, INT8_EVEN, INT8_ODD)
SCALED_LOOP(i8_f16, uint16_t, widen_signed, join_f16, INT8_EVEN, INT8_ODD)
SCALED_LOOP(i8_f32, float, widen_signed, join_f32, INT8_EVEN, INT8_ODD)

const struct heft__scaled_lanes HEFT__LANES(heft__scaled_lanes) = {.e4m3_bf16 = e4m3_bf16,
                                                                   .e4m3_f16 = e4m3_f16,
                                                                   .e4m3_f32 = e4m3_f32,
                                                                   .i8_bf16 = i8_bf16,
                                                                   .i8_f16 = i8_f16,
                                                                   .i8_f32 = i8_f32};
#else
const struct heft__scaled_lanes HEFT__LANES(heft__scaled_lanes) = {0};
#endif
