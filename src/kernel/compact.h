/* compact.h - blocks of a compact matrix (heft__compact) as BF16 again.
 *
 * A block of 64 weights has 96 bytes: the low byte of each weight, then four bits of each, which say what its
 * high byte is: a table of 16 is one shuffle. Byte 16 l + k of both is column 8 l + k for k < 8, and
 * 32 + 8 l + k - 8 from there on, so that putting low and high bytes together leaves columns in order. The four
 * bits of bytes 0 to 31 are the low halves of the 32 bytes, those of the others the high halves. All bytes of a
 * row are one stream: two, one of low bytes and one of codes, were read at half the speed. */
#ifndef HEFT__KERNEL_COMPACT_H
#define HEFT__KERNEL_COMPACT_H

#include "kernel/kernel.h"
#include "kernel/vector.h"

#define BLOCK HEFT__COMPACT_BLOCK
#define BLOCK_BYTES (BLOCK / 2 * 3)

/* A block as BF16, in registers. */
typedef struct block {
    words part[BLOCK * sizeof(uint16_t) / sizeof(words)];
} block;

/* A row that is read from one column on. */
struct compact_row {
    const uint8_t *bytes;              /* of column 0 */
    const uint32_t *exception, *after; /* the next one, and the end */
    size_t next;                       /* its column; SIZE_MAX: there is none */
};

INLINE size_t next_exception(const struct compact_row *row)
{
    return row->exception < row->after ? *row->exception >> 16 : SIZE_MAX;
}

INLINE const uint8_t *compact_block_at(const heft__compact *compact, size_t row, size_t column)
{
    return compact->rows + row * (compact->columns / BLOCK * BLOCK_BYTES) +
           column / BLOCK * BLOCK_BYTES;
}

INLINE struct compact_row compact_row_at(const heft__compact *compact, size_t row, size_t column)
{
    struct compact_row at = {
        .bytes = compact_block_at(compact, row, 0),
        .exception = compact->exceptions + compact->first[row],
        .after = compact->exceptions + compact->first[row + 1],
    };
    while (at.exception < at.after && *at.exception >> 16 < column) {
        at.exception++;
    }
    at.next = next_exception(&at);
    return at;
}

INLINE block unpack_bytes(const uint8_t *low, const uint8_t high[16])
{
    const uint8_t *codes = low + BLOCK;
    block b;
#if defined(__AVX512BW__)
    const __m512i shifts = _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0);
    const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)codes));
    const __m512i code = _mm512_and_si512(_mm512_srlv_epi64(both, shifts), _mm512_set1_epi8(0x0f));
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)high));
    const __m512i bytes = _mm512_loadu_si512(low), more = _mm512_shuffle_epi8(table, code);
    b.part[0] = (words)_mm512_unpacklo_epi8(bytes, more);
    b.part[1] = (words)_mm512_unpackhi_epi8(bytes, more);
#elif defined(__AVX2__)
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)high));
    const __m256i both = _mm256_loadu_si256((const void *)codes), mask = _mm256_set1_epi8(0x0f);
    for (size_t half = 0; half < 2; half++) {
        const __m256i code = _mm256_and_si256(half ? _mm256_srli_epi16(both, 4) : both, mask);
        const __m256i bytes = _mm256_loadu_si256((const void *)(low + 32 * half)),
                      more = _mm256_shuffle_epi8(table, code);
        b.part[half] = (words)_mm256_unpacklo_epi8(bytes, more);
        b.part[half + 2] = (words)_mm256_unpackhi_epi8(bytes, more);
    }
#elif defined(__ARM_NEON) && defined(__aarch64__)
    const uint8x16_t table = vld1q_u8(high);
    for (size_t l = 0; l < 4; l++) {
        const uint8x16_t both = vld1q_u8(codes + l % 2 * 16);
        const uint8x16_t code = l < 2 ? vandq_u8(both, vdupq_n_u8(0x0f)) : vshrq_n_u8(both, 4);
        const uint8x16_t bytes = vld1q_u8(low + 16 * l), more = vqtbl1q_u8(table, code);
        b.part[l] = (words)vzip1q_u8(bytes, more);
        b.part[l + 4] = (words)vzip2q_u8(bytes, more);
    }
#else
    uint16_t to[BLOCK];
    for (size_t p = 0; p < BLOCK; p++) {
        const uint8_t code = p < BLOCK / 2 ? codes[p] & 0x0f : codes[p - BLOCK / 2] >> 4;
        to[p % 16 / 8 * 32 + p / 16 * 8 + p % 8] = (uint16_t)(low[p] | high[code] << 8);
    }
    memcpy(&b, to, sizeof b);
#endif
    return b;
}

/* The block that begins at a column: blocks are asked for in order. */
INLINE block unpack_block(struct compact_row *row, size_t column, const uint8_t high[16])
{
    block b = unpack_bytes(row->bytes + column / BLOCK * BLOCK_BYTES, high);
    if (__builtin_expect(row->next < column + BLOCK, 0)) {
        uint16_t to[BLOCK];
        memcpy(to, &b, sizeof to);
        for (; row->next < column + BLOCK; row->next = next_exception(row)) {
            to[row->next - column] = (uint16_t)*row->exception++;
        }
        memcpy(&b, to, sizeof b);
    }
    return b;
}

/* ---- the other way ------------------------------------------------------------------------------------------ */
#define ZERO_CODE 7 /* the last exponent, where it is zero's */

/* Where there is no code, any. */
INLINE void compact_block(uint8_t *low, const uint16_t w[BLOCK], uint8_t first, const bool zero)
{
    uint8_t *codes = low + BLOCK;
#if defined(__AVX512BW__)
    const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 32);
    const __m512i byte = _mm512_set1_epi16(0x00ff), seven = _mm512_set1_epi8(7);
    const __m512i high = _mm512_packus_epi16(_mm512_srli_epi16(w0, 8), _mm512_srli_epi16(w1, 8));
    const __m512i exponent = _mm512_and_si512(high, _mm512_set1_epi8(0x7f));
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi16(high, 4), _mm512_set1_epi8(8));
    __m512i code =
        _mm512_and_si512(_mm512_sub_epi8(exponent, _mm512_set1_epi8((char)first)), seven);
    if (zero) {
        code = _mm512_mask_blend_epi8(_mm512_testn_epi8_mask(exponent, exponent), code, seven);
    }
    code = _mm512_or_si512(code, sign);
    _mm512_storeu_si512(
        low, _mm512_packus_epi16(_mm512_and_si512(w0, byte), _mm512_and_si512(w1, byte)));
    _mm256_storeu_si256((void *)codes,
                        _mm256_or_si256(_mm512_castsi512_si256(code),
                                        _mm256_slli_epi16(_mm512_extracti64x4_epi64(code, 1), 4)));
#else
    uint8_t code[BLOCK];
    for (size_t l = 0; l < 4; l++) {
        for (size_t half = 0; half < 2; half++) {
            const uint16_t *from = w + half * 32 + l * 8;
            uint8_t *to = low + l * 16 + half * 8, *its = code + l * 16 + half * 8;
            for (size_t k = 0; k < 8; k++) {
                const uint16_t high = from[k] >> 8 & 0x7f;
                const uint16_t number = zero && high == 0 ? ZERO_CODE : (high - first) & 7;
                to[k] = (uint8_t)from[k];
                its[k] = (uint8_t)(from[k] >> 15 << 3 | number);
            }
        }
    }
    for (size_t i = 0; i < BLOCK / 2; i++) {
        codes[i] = (uint8_t)(code[i] | code[i + BLOCK / 2] << 4);
    }
#endif
}

#endif
