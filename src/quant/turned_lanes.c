/* turned_lanes.c - loops over half-bytes that are stored the other way round than the weight: gptq, awq and
 * mxfp4, for many columns of some rows at once.
 *
 * Columns of a group have one scale and one zero point for each row, so that a row of a group is looked up in a
 * table of 16 results. Only what is stored is turned, words (gptq) or bytes (awq, mxfp4), and each row gets
 * 64 or more bytes at once: whole cache lines.
 *
 * There are loops where there are vectors of 32 bytes; turned.c and mxfp4.c have others for the rest. The bits
 * are the same. */
#include "quant/nibble_table.h"

#if defined(__AVX2__)

/* ---- tables ----------------------------------------------------------------------------------- */
/* (value - zero) * scale for all values of a row in a group. */
static inline struct nibble_bytes results_of(float zero, float scale, bool half)
{
    const __m256 first = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7),
                 last = _mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15);
    const __m256 from = _mm256_set1_ps(zero), by = _mm256_set1_ps(scale);
    return bytes_scaled(_mm256_mul_ps(_mm256_sub_ps(first, from), by),
                        _mm256_mul_ps(_mm256_sub_ps(last, from), by), half);
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
                          const float scales[16], bool half)
{
    for (size_t h = 0; h < 16; h += 8) {
        struct nibble_bytes tables[8];
        for (size_t o = 0; o < 8; o++) {
            tables[o] = results_of(zeros[h + o], scales[h + o], half);
        }
        for (size_t c = 0; c < columns; c += 64) {
            __m256i v[8];
            for (size_t i = 0; i < 8; i++) {
                v[i] = load256(words + (c / 8 + i) * line + h * 4);
            }
            turn_words(v);
            for (size_t o = 0; o < 8; o++) {
                lookup_64(dst + (h + o) * stride + c, &tables[o], v[o], false);
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
                           const float zeros[16], const float scales[16], bool half)
{
    const __m256i mask = _mm256_set1_epi8(15);
    struct nibble_bytes tables[16];
    for (size_t o = 0; o < 16; o++) {
        tables[o] = results_of(zeros[o], scales[o], half);
    }
    for (size_t c = 0; c < columns; c += 32) {
        __m256i bytes[8];
        turn_bytes8(bytes, words + c * line, line);
        for (size_t o = 0; o < 16; o++) {
            const unsigned at = order[o % 8];
            const __m256i pairs = bytes[o / 8 * 4 + at / 2];
            const __m256i codes =
                _mm256_and_si256(at % 2 ? _mm256_srli_epi16(pairs, 4) : pairs, mask);
            lookup_codes(dst + o * stride + c, &tables[o], codes);
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
    const __m256i zero =
        _mm256_cmpeq_epi16(_mm256_and_si256(t, _mm256_set1_epi16(0x7fff)), _mm256_setzero_si256());
    return _mm256_add_epi16(t, _mm256_andnot_si256(zero, exponent));
}

static void turn_e2m1(uint16_t *restrict dst, size_t stride, const uint8_t *restrict blocks,
                      size_t line, const uint8_t scales[32])
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
    __m256i exponents[2], v[16];
    for (size_t h = 0; h < 2; h++) {
        exponents[h] = _mm256_slli_epi16(
            _mm256_sub_epi16(_mm256_cvtepu8_epi16(load128(scales + 16 * h)), one), 7);
    }
    for (size_t j = 0; j < 16; j++) {
        const uint8_t *at = blocks + (j < 8 ? j : j + 8) * line;
        v[j] =
            _mm256_inserti128_si256(_mm256_castsi128_si256(load128(at)), load128(at + 8 * line), 1);
    }
    turn_bytes16(v);
    for (size_t k = 0; k < 32; k++) {
        const __m256i pairs = v[k / 2];
        const __m256i codes = _mm256_and_si256(k % 2 ? _mm256_srli_epi16(pairs, 4) : pairs, mask);
        const __m256i lows = _mm256_shuffle_epi8(table.low, codes),
                      highs = _mm256_shuffle_epi8(table.high, codes);
        uint16_t *to = dst + k * stride;
        store256(to, raised(_mm256_unpacklo_epi8(lows, highs), exponents[0]));
        store256(to + 16, raised(_mm256_unpackhi_epi8(lows, highs), exponents[1]));
    }
}

const struct heft__turned_lanes HEFT__LANES(heft__turned_lanes) = {
    .rows_along_in = rows_along_in, .rows_along_out = rows_along_out, .turn_e2m1 = turn_e2m1};
#else
const struct heft__turned_lanes HEFT__LANES(heft__turned_lanes) = {0};
#endif
