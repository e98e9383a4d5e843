/* nibble_lanes.c - looking up half-byte values in a table of 16.
 *
 * All 4-bit layouts have few scales beside many values: a group of 32 or more values with one scale has
 * 16 possible results. They are computed and rounded once, and the values are looked up. Where there are
 * byte shuffles, two of them look up 16 values: one in the low bytes of the table, one in the high bytes. */
#include "quant/quant.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

static size_t lookup16_fast(uint16_t *restrict dst, const uint16_t table[16],
                            const uint8_t *restrict src, size_t count, bool high_first)
{
    size_t k = 0;
#if defined(__AVX2__)
    const __m128i first = _mm_loadu_si128((const __m128i *)(const void *)table),
                  second = _mm_loadu_si128((const __m128i *)(const void *)(table + 8)),
                  byte = _mm_set1_epi16(0xff), half = _mm_set1_epi8(15);
    const __m128i low_table =
                      _mm_packus_epi16(_mm_and_si128(first, byte), _mm_and_si128(second, byte)),
                  high_table =
                      _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8));
    for (; k + 32 <= count; k += 32) {
        const __m128i pairs = _mm_loadu_si128((const __m128i *)(const void *)(src + k / 2)),
                      low = _mm_and_si128(pairs, half),
                      high = _mm_and_si128(_mm_srli_epi16(pairs, 4), half),
                      even = high_first ? high : low, odd = high_first ? low : high;
        const __m128i codes[2] = {_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd)};
        for (size_t h = 0; h < 2; h++) {
            const __m128i l = _mm_shuffle_epi8(low_table, codes[h]),
                          u = _mm_shuffle_epi8(high_table, codes[h]);
            __m128i *to = (__m128i *)(void *)(dst + k + 16 * h);
            _mm_storeu_si128(to, _mm_unpacklo_epi8(l, u));
            _mm_storeu_si128(to + 1, _mm_unpackhi_epi8(l, u));
        }
    }
#else
    (void)dst;
    (void)table;
    (void)src;
    (void)count;
    (void)high_first;
#endif
    return k;
}

static void lookup16(uint16_t *restrict dst, const uint16_t table[16], const uint8_t *restrict src,
                     size_t count, bool high_first)
{
    const unsigned even = high_first ? 4 : 0, odd = 4 - even;
    size_t k = lookup16_fast(dst, table, src, count, high_first);
    for (; k + 2 <= count; k += 2) {
        const uint8_t pair = src[k / 2];
        dst[k] = table[pair >> even & 15];
        dst[k + 1] = table[pair >> odd & 15];
    }
    if (count % 2) {
        dst[count - 1] = table[src[count / 2] >> even & 15];
    }
}

/* Eight columns of 16 outputs each, as they lie where values are stored the other way round, to 16 rows of
 * eight: dst[o * stride + i] = src[i * 16 + o]. */
static void turn16(uint16_t *restrict dst, size_t stride, const uint16_t *restrict src)
{
#if defined(__AVX2__)
    for (size_t half = 0; half < 16; half += 8) {
        __m128i a[8], b[8];
        for (size_t i = 0; i < 8; i++) {
            a[i] = _mm_loadu_si128((const __m128i *)(const void *)(src + i * 16 + half));
        }
        for (size_t i = 0; i < 4; i++) {
            b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
        }
        for (size_t i = 0; i < 8; i += 4) { /* b: pairs of columns i, i + 1 and i + 2, i + 3 */
            a[i] = _mm_unpacklo_epi32(b[i], b[i + 2]);
            a[i + 1] = _mm_unpackhi_epi32(b[i], b[i + 2]);
            a[i + 2] = _mm_unpacklo_epi32(b[i + 1], b[i + 3]);
            a[i + 3] = _mm_unpackhi_epi32(b[i + 1], b[i + 3]);
        }
        for (size_t i = 0; i < 4; i++) {
            uint16_t *to = dst + (half + 2 * i) * stride;
            _mm_storeu_si128((__m128i *)(void *)to, _mm_unpacklo_epi64(a[i], a[i + 4]));
            _mm_storeu_si128((__m128i *)(void *)(to + stride), _mm_unpackhi_epi64(a[i], a[i + 4]));
        }
    }
#else
    for (size_t o = 0; o < 16; o++) {
        for (size_t i = 0; i < 8; i++) {
            dst[o * stride + i] = src[i * 16 + o];
        }
    }
#endif
}

/* dst[o] = ((words[o] >> shift, with the low bits of more[o] above it) & mask) - zeros[o]) * scales[o] */
static void unpack16(float *restrict dst, const uint8_t *restrict words,
                     const uint8_t *restrict more, unsigned shift, uint32_t mask,
                     const float *restrict zeros, const float *restrict scales)
{
    uint32_t value[16];
    for (size_t o = 0; o < 16; o++) {
        value[o] = heft__le32(words + 4 * o) >> shift;
    }
    for (size_t o = 0; o < 16 && more; o++) { /* shift is not 0 then */
        value[o] |= heft__le32(more + 4 * o) << (32 - shift);
    }
    for (size_t o = 0; o < 16; o++) {
        dst[o] = ((float)(int32_t)(value[o] & mask) - zeros[o]) * scales[o];
    }
}

const struct heft__nibble_lanes HEFT__LANES(heft__nibble_lanes) = {
    .lookup16 = lookup16, .turn16 = turn16, .unpack16 = unpack16};
