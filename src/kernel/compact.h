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

#endif
