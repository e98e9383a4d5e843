/* utf8.c - UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF. */
#include "base/base.h"

/* Length of the valid sequence at p (left bytes are there), 0 if it is not one. */
static size_t sequence(const uint8_t *p, size_t left)
{
    if (p[0] < 0x80) {
        return 1;
    }
    size_t length = p[0] < 0xC2 ? 0 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : p[0] < 0xF5 ? 4 : 0;
    if (length == 0 || left < length) {
        return 0;
    }
    for (size_t i = 1; i < length; i++) {
        if ((p[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    bool overlong = (p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xF0 && p[1] < 0x90);
    bool surrogate = p[0] == 0xED && p[1] >= 0xA0;
    bool too_large = p[0] == 0xF4 && p[1] >= 0x90;
    return overlong || surrogate || too_large ? 0 : length;
}

size_t heft__utf8_invalid_at(const uint8_t *bytes, size_t length)
{
    size_t i = 0;
    while (i < length) {
        uint64_t eight;
        if (length - i >= 8 && (memcpy(&eight, bytes + i, 8), !(eight & 0x8080808080808080u))) {
            i += 8;
            continue;
        }
        size_t step = sequence(bytes + i, length - i);
        if (step == 0) {
            break;
        }
        i += step;
    }
    return i;
}

size_t heft__utf8_put(uint32_t code, uint8_t dst[4])
{
    if (code < 0x80) {
        dst[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800) {
        dst[0] = (uint8_t)(0xC0 | code >> 6);
        dst[1] = (uint8_t)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        dst[0] = (uint8_t)(0xE0 | code >> 12);
        dst[1] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
        dst[2] = (uint8_t)(0x80 | (code & 0x3F));
        return 3;
    }
    dst[0] = (uint8_t)(0xF0 | code >> 18);
    dst[1] = (uint8_t)(0x80 | (code >> 12 & 0x3F));
    dst[2] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
    dst[3] = (uint8_t)(0x80 | (code & 0x3F));
    return 4;
}
