/* nibble_table.h - private to the layer's *_lanes.c: a table of 16 entries of 16 bits in vector registers,
 * and looking half-bytes up in it.
 *
 * AVX-512 permutes whole entries. AVX2 and NEON permute bytes: the low and the high bytes of the entries
 * are two tables, whose results are interleaved. Only integers move, so every level gives the same bits.
 * Pointers may have any alignment. */
#ifndef HEFT__QUANT_NIBBLE_TABLE_H
#define HEFT__QUANT_NIBBLE_TABLE_H

#include "quant/quant.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#include <arm_neon.h>
#define NIBBLE_NEON 1
#endif

#if defined(__AVX2__)
static inline __m256i load256(const void *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}
static inline __m128i load128(const void *from)
{
    return _mm_loadu_si128((const __m128i *)from);
}
static inline void store256(void *to, __m256i x)
{
    _mm256_storeu_si256((__m256i *)to, x);
}
static inline void put256(void *to, __m256i x, bool stream)
{
    if (stream) {
        _mm256_stream_si256((__m256i *)to, x);
    } else {
        store256(to, x);
    }
}
static inline void store128(void *to, __m128i x)
{
    _mm_storeu_si128((__m128i *)to, x);
}

struct nibble_bytes {
    __m256i low, high; /* bytes of all entries, in both halves */
};

/* Entries 0 to 7 and 8 to 15, each in both halves. */
static inline struct nibble_bytes split_entries(__m256i first, __m256i last)
{
    const __m256i byte = _mm256_set1_epi16(0xff);
    return (struct nibble_bytes){
        _mm256_packus_epi16(_mm256_and_si256(first, byte), _mm256_and_si256(last, byte)),
        _mm256_packus_epi16(_mm256_srli_epi16(first, 8), _mm256_srli_epi16(last, 8))};
}
static inline struct nibble_bytes bytes_load(const uint16_t table[16])
{
    return split_entries(_mm256_broadcastsi128_si256(load128(table)),
                         _mm256_broadcastsi128_si256(load128(table + 8)));
}
static inline __m256i bf16_bits(__m256 x)
{
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    return _mm256_srli_epi32(
        _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q))),
        16);
}
/* Of 16 results, rounded. */
static inline struct nibble_bytes bytes_scaled(__m256 first, __m256 last, bool half)
{
    if (half) {
        return split_entries(
            _mm256_broadcastsi128_si256(_mm256_cvtps_ph(first, _MM_FROUND_TO_NEAREST_INT)),
            _mm256_broadcastsi128_si256(_mm256_cvtps_ph(last, _MM_FROUND_TO_NEAREST_INT)));
    }
    /* of a half each: four of the first, four of the last */
    const __m256i mixed = _mm256_packus_epi32(bf16_bits(first), bf16_bits(last));
    return split_entries(_mm256_permute4x64_epi64(mixed, 0x88),
                         _mm256_permute4x64_epi64(mixed, 0xdd));
}
/* 32 values in order by a vector of their codes, of which either half has eight for dst and eight for dst + 16. */
static inline void lookup_codes(uint16_t *restrict dst, const struct nibble_bytes *entries,
                                __m256i codes, bool stream)
{
    const __m256i lows = _mm256_shuffle_epi8(entries->low, codes),
                  highs = _mm256_shuffle_epi8(entries->high, codes);
    put256(dst, _mm256_unpacklo_epi8(lows, highs), stream);
    put256(dst + 16, _mm256_unpackhi_epi8(lows, highs), stream);
}
/* 64 values in 32 bytes. */
static inline void lookup_64(uint16_t *restrict dst, const struct nibble_bytes *entries,
                             __m256i pairs, bool high_first, bool stream)
{
    const __m256i mask = _mm256_set1_epi8(15);
    /* 4 bytes have 8 values: those of a store go to the same place of either half. */
    pairs = _mm256_permutevar8x32_epi32(pairs, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    const __m256i low = _mm256_and_si256(pairs, mask),
                  high = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), mask);
    const __m256i even = high_first ? high : low, odd = high_first ? low : high;
    lookup_codes(dst, entries, _mm256_unpacklo_epi8(even, odd), stream);
    lookup_codes(dst + 32, entries, _mm256_unpackhi_epi8(even, odd), stream);
}
#endif

/* entries_load: from memory.
 * entries_scaled: map[e] * factor, rounded to bfloat16, or to float16 where `half` is set.
 * lookup_vectors: as heft__lookup4_fn, whole vectors only; returns how many values that were, an even number.
 * Where `stream` is set, dst begins a cache line. */
#if defined(__AVX512BW__)
typedef __m512i nibble_entries;

static inline nibble_entries entries_load(const uint16_t table[16])
{
    return _mm512_broadcast_i64x4(load256(table));
}
static inline nibble_entries entries_scaled(const float map[16], float factor, bool half)
{
    const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(map), _mm512_set1_ps(factor));
    if (half) {
        return _mm512_broadcast_i64x4(
            _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits,
                                   _mm512_set1_epi32(0x400000));
    return _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
static inline size_t lookup_vectors(uint16_t *restrict dst, const nibble_entries *entries,
                                    const uint8_t *restrict src, size_t count, bool high_first,
                                    bool stream)
{
    const __m512i mask = _mm512_set1_epi32(0x000f000f);
    /* A byte in 32 bits becomes two indices of 16 bits. */
    const __m128i down = _mm_cvtsi32_si128(high_first ? 4 : 0);
    const __m128i up = _mm_cvtsi32_si128(high_first ? 16 : 12);
    size_t k = 0;
    for (; k + 32 <= count; k += 32) {
        const __m512i pairs = _mm512_cvtepu8_epi32(load128(src + k / 2));
        const __m512i codes = _mm512_and_si512(
            _mm512_or_si512(_mm512_srl_epi32(pairs, down), _mm512_sll_epi32(pairs, up)), mask);
        const __m512i found = _mm512_permutexvar_epi16(codes, *entries);
        if (stream) {
            _mm512_stream_si512((void *)(dst + k), found);
        } else {
            _mm512_storeu_si512((void *)(dst + k), found);
        }
    }
    return k;
}
#elif defined(__AVX2__)
typedef struct nibble_bytes nibble_entries;

static inline nibble_entries entries_load(const uint16_t table[16])
{
    return bytes_load(table);
}
static inline nibble_entries entries_scaled(const float map[16], float factor, bool half)
{
    return bytes_scaled(_mm256_mul_ps(_mm256_loadu_ps(map), _mm256_set1_ps(factor)),
                        _mm256_mul_ps(_mm256_loadu_ps(map + 8), _mm256_set1_ps(factor)), half);
}
static inline size_t lookup_vectors(uint16_t *restrict dst, const nibble_entries *entries,
                                    const uint8_t *restrict src, size_t count, bool high_first,
                                    bool stream)
{
    const __m256i mask = _mm256_set1_epi8(15);
    size_t k = 0;
    for (; k + 64 <= count; k += 64) {
        lookup_64(dst + k, entries, load256(src + k / 2), high_first, stream);
    }
    if (k + 32 <= count) {
        const __m256i pairs =
            _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(load128(src + k / 2)),
                                        _mm256_setr_epi32(0, 2, 0, 2, 1, 3, 1, 3));
        const __m256i low = _mm256_and_si256(pairs, mask),
                      high = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), mask);
        lookup_codes(dst + k, entries,
                     _mm256_unpacklo_epi8(high_first ? high : low, high_first ? low : high),
                     stream);
        k += 32;
    }
    return k;
}
#else
#if defined(NIBBLE_NEON)
typedef uint8x16x2_t nibble_entries; /* low bytes, high bytes */

static inline nibble_entries entries_load(const uint16_t table[16])
{
    return vld2q_u8((const uint8_t *)table);
}
static inline size_t lookup_vectors(uint16_t *restrict dst, const nibble_entries *entries,
                                    const uint8_t *restrict src, size_t count, bool high_first,
                                    bool stream)
{
    (void)stream;
    size_t k = 0;
    for (; k + 32 <= count; k += 32) {
        const uint8x16_t pairs = vld1q_u8(src + k / 2);
        const uint8x16_t low = vandq_u8(pairs, vdupq_n_u8(15)), high = vshrq_n_u8(pairs, 4);
        const uint8x16_t even = high_first ? high : low, odd = high_first ? low : high;
        const uint8x16_t codes[2] = {vzip1q_u8(even, odd), vzip2q_u8(even, odd)};
        for (size_t h = 0; h < 2; h++) {
            const uint8x16x2_t found = {
                {vqtbl1q_u8(entries->val[0], codes[h]), vqtbl1q_u8(entries->val[1], codes[h])}
            };
            vst2q_u8((uint8_t *)dst + 2 * k + 32 * h, found);
        }
    }
    return k;
}
#else
typedef struct nibble_entries {
    uint16_t table[16];
} nibble_entries;

static inline nibble_entries entries_load(const uint16_t table[16])
{
    nibble_entries entries;
    memcpy(entries.table, table, sizeof entries.table);
    return entries;
}
static inline size_t lookup_vectors(uint16_t *restrict dst, const nibble_entries *entries,
                                    const uint8_t *restrict src, size_t count, bool high_first,
                                    bool stream)
{
    const unsigned even = high_first ? 4 : 0, odd = 4 - even;
    (void)stream;
    uint8_t *to = (uint8_t *)dst;
    for (size_t k = 0; k + 2 <= count; k += 2) {
        const uint8_t pair = src[k / 2];
        const uint16_t both[2] = {entries->table[pair >> even & 15],
                                  entries->table[pair >> odd & 15]};
        memcpy(to + 2 * k, both, sizeof both);
    }
    return count / 2 * 2;
}
#endif
static inline nibble_entries entries_scaled(const float map[16], float factor, bool half)
{
    float results[16];
    uint16_t table[16];
    for (unsigned e = 0; e < 16; e++) {
        results[e] = map[e] * factor;
    }
    heft__cast(half ? HEFT_DTYPE_F16 : HEFT_DTYPE_BF16, table, HEFT_DTYPE_F32, results, 16);
    return entries_load(table);
}
#endif
#endif
