/* nibble_lanes.c - loops over half-byte values: looking them up in a table of 16, and computing and turning
 * those that are stored the other way round.
 *
 * All 4-bit layouts have few scales beside many values: a group of 32 or more values with one scale has
 * 16 possible results. They are computed and rounded once, and the values are looked up.
 *
 * Every level gives the same bits. Pointers may have any alignment. */
#include "quant/nibble_table.h"

static inline void lookup(uint16_t *restrict dst, const uint16_t table[16],
                          const uint8_t *restrict src, size_t count, bool high_first, bool stream)
{
    const unsigned even = high_first ? 4 : 0, odd = 4 - even;
    const nibble_entries entries = entries_load(table);
    size_t k = lookup_vectors(dst, &entries, src, count, high_first, stream);
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

static void lookup16(uint16_t *restrict dst, const uint16_t table[16], const uint8_t *restrict src,
                     size_t count, bool high_first, bool stream)
{
    stream = stream && heft__can_stream(dst);
    if (high_first) {
        lookup(dst, table, src, count, true, stream);
    } else {
        lookup(dst, table, src, count, false, stream);
    }
}

/* Blocks of a multiple of 32 values, each by map[value] * its factor; the high half of a byte first. */
static void lookup_blocks(uint16_t *restrict dst, const float map[16],
                          const float *restrict factors, bool half, const uint8_t *restrict src,
                          size_t blocks, size_t block, bool stream)
{
    stream = stream && heft__can_stream(dst);
    for (size_t b = 0; b < blocks; b++) {
        const nibble_entries entries =
            half ? entries_scaled(map, factors[b], true) : entries_scaled(map, factors[b], false);
        (void)lookup_vectors(dst + b * block, &entries, src + b * block / 2, block, true, stream);
    }
}

/* Groups of an even number of values, each by the table of its scale; the low half first. */
static void lookup_groups(uint16_t *restrict dst, const uint16_t tables[][16],
                          const uint8_t *restrict scales, const uint8_t *restrict src,
                          size_t groups, size_t group, bool stream)
{
    stream = stream && heft__can_stream(dst) && group % (HEFT__STREAM_LINE / sizeof *dst) == 0;
    for (size_t g = 0; g < groups; g++) {
        lookup(dst + g * group, tables[scales[g]], src + g * group / 2, group, false, stream);
    }
}

/* One value in each byte, above `shift` bits: dst[k] = table[src[k] >> shift & mask]. */
static void lookup_bits(uint16_t *restrict dst, const uint16_t table[16],
                        const uint8_t *restrict src, size_t count, unsigned shift, uint8_t mask)
{
    size_t k = 0;
#if defined(__AVX2__)
    const __m128i first = _mm_loadu_si128((const __m128i *)(const void *)table),
                  second = _mm_loadu_si128((const __m128i *)(const void *)(table + 8)),
                  byte = _mm_set1_epi16(0xff), keep = _mm_set1_epi8((char)(mask & 15)),
                  by = _mm_cvtsi32_si128((int)shift);
    const __m128i low_table =
                      _mm_packus_epi16(_mm_and_si128(first, byte), _mm_and_si128(second, byte)),
                  high_table =
                      _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8));
    for (; k + 16 <= count; k += 16) {
        const __m128i codes = _mm_and_si128(
            _mm_srl_epi16(_mm_loadu_si128((const __m128i *)(const void *)(src + k)), by), keep);
        const __m128i l = _mm_shuffle_epi8(low_table, codes),
                      u = _mm_shuffle_epi8(high_table, codes);
        __m128i *to = (__m128i *)(void *)(dst + k);
        _mm_storeu_si128(to, _mm_unpacklo_epi8(l, u));
        _mm_storeu_si128(to + 1, _mm_unpackhi_epi8(l, u));
    }
#endif
    for (; k < count; k++) {
        dst[k] = table[src[k] >> shift & mask];
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

/* ---- eight columns of 16 outputs as float16 ----------------------------------------------------- */
#if defined(__AVX512F__)
static __m512i sixteen(const uint8_t *words)
{
    return _mm512_loadu_si512(words);
}
static __m512i pair(const uint8_t *words)
{
    uint32_t two[2];
    memcpy(two, words, sizeof two);
    return _mm512_inserti64x4(_mm512_set1_epi32((int)two[0]), _mm256_set1_epi32((int)two[1]), 1);
}
static void column(uint16_t *dst, __m512i values, const float *zeros, const float *scales)
{
    const __m512 q = _mm512_cvtepi32_ps(_mm512_and_si512(values, _mm512_set1_epi32(15)));
    const __m512 w =
        _mm512_mul_ps(_mm512_sub_ps(q, _mm512_loadu_ps(zeros)), _mm512_loadu_ps(scales));
    _mm256_storeu_si256((__m256i *)(void *)dst,
                        _mm512_cvtps_ph(w, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__AVX2__)
static void half_column(uint16_t *dst, __m256i values, const float *zeros, const float *scales)
{
    const __m256 q = _mm256_cvtepi32_ps(_mm256_and_si256(values, _mm256_set1_epi32(15)));
    const __m256 w =
        _mm256_mul_ps(_mm256_sub_ps(q, _mm256_loadu_ps(zeros)), _mm256_loadu_ps(scales));
    _mm_storeu_si128((__m128i *)(void *)dst,
                     _mm256_cvtps_ph(w, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
static void plain_column(uint16_t *dst, const uint32_t values[16], const float *zeros,
                         const float *scales)
{
    float results[16];
    for (size_t o = 0; o < 16; o++) {
        results[o] = ((float)(int32_t)(values[o] & 15) - zeros[o]) * scales[o];
    }
    heft__cast(HEFT_DTYPE_F16, dst, HEFT_DTYPE_F32, results, 16);
}
#endif

static void along_in(uint16_t *restrict dst, const uint8_t *restrict words,
                     const float *const zeros[8], const float *const scales[8])
{
#if defined(__AVX512F__)
    const __m512i all = sixteen(words);
    for (unsigned i = 0; i < 8; i++) {
        column(dst + 16 * i, _mm512_srli_epi32(all, 4 * i), zeros[i], scales[i]);
    }
#elif defined(__AVX2__)
    for (unsigned h = 0; h < 16; h += 8) {
        const __m256i all = _mm256_loadu_si256((const __m256i *)(const void *)(words + 4 * h));
        for (unsigned i = 0; i < 8; i++) {
            half_column(dst + 16 * i + h, _mm256_srli_epi32(all, (int)(4 * i)), zeros[i] + h,
                        scales[i] + h);
        }
    }
#else
    for (unsigned i = 0; i < 8; i++) {
        uint32_t values[16];
        for (size_t o = 0; o < 16; o++) {
            values[o] = heft__le32(words + 4 * o) >> 4 * i;
        }
        plain_column(dst + 16 * i, values, zeros[i], scales[i]);
    }
#endif
}

static void along_out(uint16_t *restrict dst, const uint8_t *restrict words, size_t stride,
                      const uint8_t order[8], const float *const zeros[8],
                      const float *const scales[8])
{
#if defined(__AVX512F__)
    const __m256i half = _mm256_slli_epi32(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)order)), 2);
    const __m512i shifts = _mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1);
    for (unsigned i = 0; i < 8; i++) {
        column(dst + 16 * i, _mm512_srlv_epi32(pair(words + i * stride), shifts), zeros[i],
               scales[i]);
    }
#elif defined(__AVX2__)
    const __m256i shifts = _mm256_slli_epi32(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)order)), 2);
    for (unsigned i = 0; i < 8; i++) {
        for (unsigned h = 0; h < 16; h += 8) {
            const __m256i word = _mm256_set1_epi32((int)heft__le32(words + i * stride + h / 2));
            half_column(dst + 16 * i + h, _mm256_srlv_epi32(word, shifts), zeros[i] + h,
                        scales[i] + h);
        }
    }
#else
    for (unsigned i = 0; i < 8; i++) {
        uint32_t values[16];
        for (size_t o = 0; o < 16; o++) {
            values[o] = heft__le32(words + i * stride + o / 8 * 4) >> 4 * order[o % 8];
        }
        plain_column(dst + 16 * i, values, zeros[i], scales[i]);
    }
#endif
}

static void settle(void)
{
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

const struct heft__nibble_lanes HEFT__LANES(heft__nibble_lanes) = {.lookup16 = lookup16,
                                                                   .lookup_blocks = lookup_blocks,
                                                                   .lookup_groups = lookup_groups,
                                                                   .lookup_bits = lookup_bits,
                                                                   .turn16 = turn16,
                                                                   .unpack16 = unpack16,
                                                                   .along_in = along_in,
                                                                   .along_out = along_out,
                                                                   .settle = settle};
