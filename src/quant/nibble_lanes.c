/* nibble_lanes.c - looking up half-byte values in a table of 16.
 *
 * All 4-bit layouts have few scales beside many values: a group of 32 or more values with one scale has
 * 16 possible results. They are computed and rounded once, and the values are looked up.
 *
 * AVX-512 permutes whole 16-bit entries. AVX2 and NEON permute bytes: the low and the high bytes of the
 * entries are two tables, whose results are interleaved. Only integers move, so every level gives the
 * same bits. Pointers may have any alignment. */
#include "quant/quant.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#include <arm_neon.h>
#define NIBBLE_NEON 1
#endif

/* Looks up whole vectors; returns how many values that were, an even number. */
#if defined(__AVX512BW__)
static size_t lookup_vectors(uint16_t *restrict dst, const uint16_t table[16],
                             const uint8_t *restrict src, size_t count, bool high_first)
{
    const __m512i entries =
        _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)table));
    const __m512i mask = _mm512_set1_epi32(0x000f000f);
    /* A byte in 32 bits becomes two indices of 16 bits. */
    const __m128i down = _mm_cvtsi32_si128(high_first ? 4 : 0);
    const __m128i up = _mm_cvtsi32_si128(high_first ? 16 : 12);
    size_t k = 0;
    for (; k + 32 <= count; k += 32) {
        const __m512i pairs =
            _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(src + k / 2)));
        const __m512i codes = _mm512_and_si512(
            _mm512_or_si512(_mm512_srl_epi32(pairs, down), _mm512_sll_epi32(pairs, up)), mask);
        _mm512_storeu_si512((void *)(dst + k), _mm512_permutexvar_epi16(codes, entries));
    }
    return k;
}
#elif defined(__AVX2__)
static size_t lookup_vectors(uint16_t *restrict dst, const uint16_t table[16],
                             const uint8_t *restrict src, size_t count, bool high_first)
{
    uint8_t bytes[2][16];
    for (size_t e = 0; e < 16; e++) {
        bytes[0][e] = (uint8_t)table[e];
        bytes[1][e] = (uint8_t)(table[e] >> 8);
    }
    const __m256i low =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)bytes[0]));
    const __m256i high =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)bytes[1]));
    const __m256i mask = _mm256_set1_epi8(15);
    /* A byte in 16 bits becomes two indices of 8 bits. */
    const __m128i down = _mm_cvtsi32_si128(high_first ? 4 : 0);
    const __m128i up = _mm_cvtsi32_si128(high_first ? 8 : 4);
    size_t k = 0;
    for (; k + 32 <= count; k += 32) {
        const __m256i pairs =
            _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(src + k / 2)));
        const __m256i codes = _mm256_and_si256(
            _mm256_or_si256(_mm256_srl_epi16(pairs, down), _mm256_sll_epi16(pairs, up)), mask);
        const __m256i lows = _mm256_shuffle_epi8(low, codes);
        const __m256i highs = _mm256_shuffle_epi8(high, codes);
        const __m256i first = _mm256_unpacklo_epi8(lows, highs);  /* 0..7 and 16..23 */
        const __m256i second = _mm256_unpackhi_epi8(lows, highs); /* 8..15 and 24..31 */
        _mm256_storeu_si256((__m256i *)(void *)(dst + k),
                            _mm256_permute2x128_si256(first, second, 0x20));
        _mm256_storeu_si256((__m256i *)(void *)(dst + k + 16),
                            _mm256_permute2x128_si256(first, second, 0x31));
    }
    return k;
}
#elif defined(NIBBLE_NEON)
static size_t lookup_vectors(uint16_t *restrict dst, const uint16_t table[16],
                             const uint8_t *restrict src, size_t count, bool high_first)
{
    const uint8x16x2_t entries = vld2q_u8((const uint8_t *)table); /* low bytes, high bytes */
    size_t k = 0;
    for (; k + 32 <= count; k += 32) {
        const uint8x16_t pairs = vld1q_u8(src + k / 2);
        const uint8x16_t low = vandq_u8(pairs, vdupq_n_u8(15)), high = vshrq_n_u8(pairs, 4);
        const uint8x16_t even = high_first ? high : low, odd = high_first ? low : high;
        const uint8x16_t codes[2] = {vzip1q_u8(even, odd), vzip2q_u8(even, odd)};
        for (size_t h = 0; h < 2; h++) {
            const uint8x16x2_t found = {
                {vqtbl1q_u8(entries.val[0], codes[h]), vqtbl1q_u8(entries.val[1], codes[h])}
            };
            vst2q_u8((uint8_t *)dst + 2 * k + 32 * h, found);
        }
    }
    return k;
}
#else
static size_t lookup_vectors(uint16_t *restrict dst, const uint16_t table[16],
                             const uint8_t *restrict src, size_t count, bool high_first)
{
    (void)dst;
    (void)table;
    (void)src;
    (void)count;
    (void)high_first;
    return 0;
}
#endif

static void lookup16(uint16_t *restrict dst, const uint16_t table[16], const uint8_t *restrict src,
                     size_t count, bool high_first)
{
    const unsigned even = high_first ? 4 : 0, odd = 4 - even;
    size_t k = lookup_vectors(dst, table, src, count, high_first);
    uint8_t *to = (uint8_t *)dst;
    for (; k + 2 <= count; k += 2) {
        const uint8_t pair = src[k / 2];
        const uint16_t both[2] = {table[pair >> even & 15], table[pair >> odd & 15]};
        memcpy(to + 2 * k, both, sizeof both);
    }
    if (count % 2) {
        memcpy(to + 2 * (count - 1), &table[src[count / 2] >> even & 15], sizeof *table);
    }
}

const struct heft__nibble_lanes HEFT__LANES(heft__nibble_lanes) = {.lookup16 = lookup16};
