/* turned_lanes.c - loops over half-bytes that are stored the other way round than the weight: gptq, awq and
 * mxfp4, for many columns of some rows at once.
 *
 * Columns of a group have one scale and one zero point for each row, so that a row of a group is looked up in a
 * table of 16 results. Only what is stored is turned, words (gptq) or bytes (awq, mxfp4), and held for some columns,
 * so that each row gets several neighboring cache lines at once: memory that is far apart is slow to write.
 *
 * There are loops where there are vectors of 32 bytes; turned.c and mxfp4.c have others for the rest. The bits
 * are the same. */
#include "quant/nibble_table.h"

#if defined(__AVX2__)

/* ---- tables ----------------------------------------------------------------------------------- */
static inline __m256 rounded_half(__m256 x)
{
    return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
/* (value - zero) * scale for all values of a row in a group. */
static inline struct nibble_bytes results_of(float zero, float scale, enum heft__turned_result as)
{
    const __m256 from = _mm256_set1_ps(zero), by = _mm256_set1_ps(scale);
    __m256 first = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7),
           last = _mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15);
    first = _mm256_mul_ps(_mm256_sub_ps(first, from), by);
    last = _mm256_mul_ps(_mm256_sub_ps(last, from), by);
    if (as == HEFT__AS_BF16_OF_F16) {
        first = rounded_half(first);
        last = rounded_half(last);
    }
    return bytes_scaled(first, last, as == HEFT__AS_F16);
}

#define AHEAD 64 /* bytes: the next 16 rows of words along the columns */

/* What is used next of a line: there are too many lines for the processor to see that they are read in order. */
static inline void prefetch(const uint8_t *at)
{
    _mm_prefetch((const void *)((uintptr_t)at + AHEAD), _MM_HINT_T0); /* may be past the end */
}

#define HELD 256 /* columns of what is turned, at most 4 KiB */

/* Whether all rows begin cache lines, where that is wished. */
static inline bool can_stream_rows(const uint16_t *dst, size_t stride, bool wished)
{
    return wished && heft__can_stream(dst) && stride % (HEFT__STREAM_LINE / sizeof *dst) == 0;
}

/* ---- words along the columns: gptq -------------------------------------------------------------- */
/* Eight vectors of eight words, turned: word o of vector i becomes word i of vector o. */
static inline void turn_words(__m256i v[8])
{
    __m256i a[8], b[8];
    for (size_t i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (size_t i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (size_t i = 0; i < 4; i++) {
        v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

static void rows_along_in(uint16_t *restrict dst, size_t stride, const uint8_t *restrict words,
                          size_t line, size_t columns, const float zeros[16],
                          const float scales[16], enum heft__turned_result as, bool stream)
{
    stream = can_stream_rows(dst, stride, stream);
    for (size_t c = 0; c < columns; c += HELD) {
        const size_t some = columns - c < HELD ? columns - c : HELD;
        __m256i pairs[16][HELD / 64];
        for (size_t k = 0; k < some; k += 64) {
            for (size_t h = 0; h < 16; h += 8) {
                __m256i v[8];
                for (size_t i = 0; i < 8; i++) {
                    const uint8_t *at = words + ((c + k) / 8 + i) * line + h * 4;
                    v[i] = load256(at);
                    prefetch(at);
                }
                turn_words(v);
                for (size_t o = 0; o < 8; o++) {
                    pairs[h + o][k / 64] = v[o];
                }
            }
        }
        for (size_t o = 0; o < 16; o++) {
            const struct nibble_bytes table = results_of(zeros[o], scales[o], as);
            for (size_t k = 0; k < some; k += 64) {
                lookup_64(dst + o * stride + c + k, &table, pairs[o][k / 64], false, stream);
            }
        }
    }
}

/* ---- words along the rows: awq ------------------------------------------------------------------ */
/* 32 columns of eight bytes, turned: byte b of all columns is in vector b, in the order of lookup_codes(). */
static inline void turn_bytes8(__m256i dst[8], const uint8_t *src, size_t line)
{
    __m256i a[8], b[8];
    for (size_t k = 0; k < 8; k++) {
        __m256i pair[2];
        for (size_t i = 0; i < 2; i++) {
            const size_t j =
                2 * k + i; /* of a half; from the ninth on they are 16 columns further */
            const uint8_t *at = src + (j < 8 ? j : j + 8) * line;
            pair[i] = _mm256_inserti128_si256(
                _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)(const void *)at)),
                _mm_loadl_epi64((const __m128i *)(const void *)(at + 8 * line)), 1);
        }
        a[k] = _mm256_unpacklo_epi8(pair[0], pair[1]);
    }
    for (size_t k = 0; k < 8; k += 2) { /* bytes 0..3 and 4..7 of four columns */
        b[k] = _mm256_unpacklo_epi16(a[k], a[k + 1]);
        b[k + 1] = _mm256_unpackhi_epi16(a[k], a[k + 1]);
    }
    for (size_t k = 0; k < 8; k += 4) { /* two bytes of eight columns */
        for (size_t i = 0; i < 2; i++) {
            a[k + 2 * i] = _mm256_unpacklo_epi32(b[k + i], b[k + i + 2]);
            a[k + 2 * i + 1] = _mm256_unpackhi_epi32(b[k + i], b[k + i + 2]);
        }
    }
    for (size_t i = 0; i < 4; i++) {
        dst[2 * i] = _mm256_unpacklo_epi64(a[i], a[i + 4]);
        dst[2 * i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 4]);
    }
}

static void rows_along_out(uint16_t *restrict dst, size_t stride, const uint8_t *restrict words,
                           size_t line, size_t columns, const uint8_t order[8],
                           const float zeros[16], const float scales[16],
                           enum heft__turned_result as, bool stream)
{
    const __m256i mask = _mm256_set1_epi8(15);
    stream = can_stream_rows(dst, stride, stream);
    for (size_t c = 0; c < columns; c += HELD) {
        const size_t some = columns - c < HELD ? columns - c : HELD;
        __m256i bytes[HELD / 32][8];
        for (size_t k = 0; k < some; k += 32) {
            turn_bytes8(bytes[k / 32], words + (c + k) * line, line);
        }
        for (size_t k = 0; k < some && (uintptr_t)words % AHEAD == 0; k++) {
            prefetch(words + (c + k) * line);
        }
        for (size_t o = 0; o < 16; o++) {
            const struct nibble_bytes table = results_of(zeros[o], scales[o], as);
            const unsigned at = order[o % 8];
            const __m128i by = _mm_cvtsi32_si128(at % 2 ? 4 : 0);
            for (size_t k = 0; k < some; k += 32) {
                const __m256i pairs = bytes[k / 32][o / 8 * 4 + at / 2];
                lookup_codes(dst + o * stride + c + k, &table,
                             _mm256_and_si256(_mm256_srl_epi16(pairs, by), mask), stream);
            }
        }
    }
}

/* ---- E2M1 blocks with exponents: mxfp4 ------------------------------------------------------------ */
/* 16 vectors of 16 bytes in either half, turned in each half: byte b of all is in vector b. */
static inline void turn_bytes16(__m256i v[16])
{
    __m256i a[16];
    for (unsigned stage = 0; stage < 4; stage++) { /* a perfect shuffle; four of them turn */
        for (size_t i = 0; i < 8; i++) {
            a[2 * i] = _mm256_unpacklo_epi8(v[i], v[i + 8]);
            a[2 * i + 1] = _mm256_unpackhi_epi8(v[i], v[i + 8]);
        }
        memcpy(v, a, sizeof a);
    }
}

/* t, and the exponent where it is not zero. */
static inline __m256i raised(__m256i t, __m256i exponent)
{
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return _mm256_mask_add_epi16(t, _mm256_test_epi16_mask(t, _mm256_set1_epi16(0x7fff)), t,
                                 exponent);
#else
    const __m256i zero =
        _mm256_cmpeq_epi16(_mm256_and_si256(t, _mm256_set1_epi16(0x7fff)), _mm256_setzero_si256());
    return _mm256_add_epi16(t, _mm256_andnot_si256(zero, exponent));
#endif
}

static void turn_e2m1(uint16_t *restrict dst, size_t stride, const uint8_t *restrict blocks,
                      size_t line, const uint8_t *restrict scales, size_t columns, bool stream)
{
    /* as bfloat16: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives */
    const struct nibble_bytes table = {
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, (char)0x80, (char)0xc0, 0, 0x40, (char)0x80,
                                                  (char)0xc0, 0, 0, (char)0x80, (char)0xc0, 0, 0x40,
                                                  (char)0x80, (char)0xc0)),
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
                                                  (char)0x80, (char)0xbf, (char)0xbf, (char)0xbf,
                                                  (char)0xc0, (char)0xc0, (char)0xc0, (char)0xc0))};
    const __m256i mask = _mm256_set1_epi8(15), one = _mm256_set1_epi16(127);
    const size_t bands = columns / 32;
    __m256i exponents[HEFT__E2M1_COLUMNS / 32][2], v[HEFT__E2M1_COLUMNS / 32][16];
    stream = can_stream_rows(dst, stride, stream);
    for (size_t b = 0; b < bands; b++) {
        for (size_t h = 0; h < 2; h++) {
            exponents[b][h] = _mm256_slli_epi16(
                _mm256_sub_epi16(_mm256_cvtepu8_epi16(load128(scales + 32 * b + 16 * h)), one), 7);
        }
        for (size_t j = 0; j < 16; j++) {
            const uint8_t *at = blocks + (32 * b + (j < 8 ? j : j + 8)) * line;
            v[b][j] = _mm256_inserti128_si256(_mm256_castsi128_si256(load128(at)),
                                              load128(at + 8 * line), 1);
        }
        turn_bytes16(v[b]);
    }
    for (size_t k = 0; k < 32; k++) {
        const __m128i by = _mm_cvtsi32_si128(k % 2 ? 4 : 0);
        uint16_t *to = dst + k * stride;
        for (size_t b = 0; b < bands; b++, to += 32) {
            const __m256i codes = _mm256_and_si256(_mm256_srl_epi16(v[b][k / 2], by), mask);
            const __m256i lows = _mm256_shuffle_epi8(table.low, codes),
                          highs = _mm256_shuffle_epi8(table.high, codes);
            put256(to, raised(_mm256_unpacklo_epi8(lows, highs), exponents[b][0]), stream);
            put256(to + 16, raised(_mm256_unpackhi_epi8(lows, highs), exponents[b][1]), stream);
        }
    }
}

const struct heft__turned_lanes HEFT__LANES(heft__turned_lanes) = {
    .rows_along_in = rows_along_in, .rows_along_out = rows_along_out, .turn_e2m1 = turn_e2m1};
#else
const struct heft__turned_lanes HEFT__LANES(heft__turned_lanes) = {0};
#endif
