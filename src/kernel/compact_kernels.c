/* compact_kernels.c - BF16 matrices in 12 bits a weight, without loss, and rows of them as BF16 again.
 *
 * The exponents of trained weights are few: of 16 neighboring ones all but one weight in thousands has one. So
 * 4 bits say which of 16 high bytes (sign, 7 of 8 bits of the exponent) a weight has, its low byte stays as it
 * is, and the rest are exceptions, which are listed. The high bytes are 8 exponents' with both signs: neighbors,
 * or 7 neighbors and that of zero. Source: docs/kernels.md. */
#include "kernel/compact.h"
#include "kernel/level.h"

#define SAMPLED_ROWS 64

/* How often there is a high byte without its sign in some rows. */
static void count_high(const uint16_t *w, size_t rows, size_t columns, uint32_t counts[128])
{
    const size_t step = rows > SAMPLED_ROWS ? rows / SAMPLED_ROWS : 1;
    memset(counts, 0, 128 * sizeof *counts);
    for (size_t r = 0; r < rows; r += step) {
        for (size_t c = 0; c < columns; c++) {
            counts[w[r * columns + c] >> 8 & 0x7f]++;
        }
    }
}

/* The first of 8 neighbors; with zero, of 7, if these cover more. */
static void choose_codes(const uint32_t counts[128], struct heft__compact_codes *codes)
{
    uint64_t best = 0;
    for (unsigned first = 0; first + 8 <= 128; first++) {
        uint64_t covered = 0;
        for (unsigned i = 0; i < 7; i++) {
            covered += counts[first + i];
        }
        const uint64_t with_last = covered + counts[first + 7],
                       with_zero = covered + (first > 0 ? counts[0] : 0);
        if (with_last > best || with_zero > best) {
            codes->first = (uint8_t)first;
            codes->zero = with_zero > with_last;
            best = codes->zero ? with_zero : with_last;
        }
    }
}

INLINE bool has_code(uint16_t w, unsigned first, unsigned most, bool zero)
{
    const unsigned high = w >> 8 & 0x7fU;
    return high - first < most || (zero && high == 0);
}

/* Weights of a row without a code. */
INLINE uint32_t count_row(const uint16_t *w, size_t columns, unsigned first, unsigned most,
                          const bool zero)
{
    uint32_t count = 0;
    for (size_t c = 0; c < columns; c += BLOCK) {
        uint16_t some = 0;
        for (size_t i = 0; i < BLOCK; i++) {
            const uint16_t high = w[c + i] >> 8 & 0x7f;
            some = (uint16_t)(some + ((uint16_t)(high - first) >= most && !(zero && high == 0)));
        }
        count += some;
    }
    return count;
}

bool HEFT__KERNEL(compact_survey)(const uint16_t *w, size_t rows, size_t columns,
                                  struct heft__compact_codes *codes, uint32_t *first)
{
    uint32_t counts[128];
    uint64_t all = 0;
    if (columns % BLOCK != 0 || columns == 0 || columns > UINT16_MAX || rows == 0) {
        return false;
    }
    count_high(w, rows, columns, counts);
    choose_codes(counts, codes);
    const uint64_t most = (uint64_t)rows * columns / HEFT__COMPACT_EXCEPTIONS;
    for (size_t r = 0; r < rows; r++) {
        first[r] = (uint32_t)all;
        all += codes->zero ? count_row(w + r * columns, columns, codes->first, 7, true)
                           : count_row(w + r * columns, columns, codes->first, 8, false);
        if (all > most || all > UINT32_MAX) {
            return false;
        }
    }
    first[rows] = (uint32_t)all;
    return true;
}

static void list_row(const uint16_t *w, size_t columns, const struct heft__compact_codes *codes,
                     uint32_t *exceptions)
{
    for (size_t c = 0; c < columns; c++) {
        if (!has_code(w[c], codes->first, codes->zero ? 7 : 8, codes->zero)) {
            *exceptions++ = (uint32_t)c << 16 | w[c];
        }
    }
}

void HEFT__KERNEL(compact_rows)(void *data, size_t rows, size_t columns,
                                const struct heft__compact_codes *codes, const uint32_t *first,
                                uint32_t *exceptions, uint16_t *room)
{
    for (size_t r = 0; r < rows; r++) {
        uint8_t *to = (uint8_t *)data + r * (columns / BLOCK * BLOCK_BYTES);
        memcpy(room, (const uint16_t *)data + r * columns, columns * sizeof *room);
        for (size_t c = 0; c < columns; c += BLOCK, to += BLOCK_BYTES) {
            if (codes->zero) {
                compact_block(to, room + c, codes->first, true);
            } else {
                compact_block(to, room + c, codes->first, false);
            }
        }
        if (first[r + 1] > first[r]) {
            list_row(room, columns, codes, exceptions + first[r]);
        }
    }
}

void HEFT__KERNEL(compact_table)(const struct heft__compact_codes *codes, uint8_t high[16])
{
    for (unsigned i = 0; i < 16; i++) {
        const unsigned exponent = codes->zero && i % 8 == ZERO_CODE ? 0 : codes->first + i % 8;
        high[i] = (uint8_t)(i / 8 << 7 | (exponent & 0x7f));
    }
}

void HEFT__KERNEL(unpack_row)(uint16_t *to, const heft__compact *compact, size_t row)
{
    struct compact_row at = compact_row_at(compact, row, 0);
    for (size_t c = 0; c < compact->columns; c += BLOCK) {
        const block b = unpack_block(&at, c, compact->high);
        memcpy(to + c, &b, sizeof b);
    }
}
