/* nibble_lanes.c - looking up half-byte values in a table of 16.
 *
 * All 4-bit layouts have few scales beside many values: a group of 32 or more values with one scale has
 * 16 possible results. They are computed and rounded once, and the values are looked up. */
#include "quant/quant.h"

static void lookup16(uint16_t *restrict dst, const uint16_t table[16], const uint8_t *restrict src,
                     size_t count, bool high_first)
{
    const unsigned even = high_first ? 4 : 0, odd = 4 - even;
    for (size_t k = 0; k + 2 <= count; k += 2) {
        const uint8_t pair = src[k / 2];
        dst[k] = table[pair >> even & 15];
        dst[k + 1] = table[pair >> odd & 15];
    }
    if (count % 2) {
        dst[count - 1] = table[src[count / 2] >> even & 15];
    }
}

const struct heft__nibble_lanes HEFT__LANES(heft__nibble_lanes) = {.lookup16 = lookup16};
