/* half.h - one number in bfloat16 or float16, widened exactly and narrowed to nearest even.
 *
 * A NaN stays one: it becomes quiet and keeps its sign and the high bits of its payload. What is too
 * large for float16 becomes infinity. */
#ifndef HEFT__KERNEL_HALF_H
#define HEFT__KERNEL_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t heft__f32_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float heft__f32_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float heft__bf16_wide(uint16_t bits)
{
    return heft__f32_of((uint32_t)bits << 16);
}

static inline uint16_t heft__bf16_narrow(float value)
{
    const uint32_t bits = heft__f32_bits(value);
    if ((bits & 0x7fffffffU) > 0x7f800000U) {
        return (uint16_t)(bits >> 16 | 0x40U);
    }
    return (uint16_t)((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

/* The exponent and mantissa are moved to float32's places, and the product corrects the bias: exact,
 * also for subnormal numbers. */
static inline float heft__f16_wide(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000U) << 16;
    const uint32_t rest = half & 0x7fffU;
    uint32_t bits = heft__f32_bits(heft__f32_of(rest << 13) * 0x1p112F);
    if (rest >= 0x7c00U) { /* infinity, NaN */
        bits = 0x7f800000U | rest << 13 | (rest > 0x7c00U ? 0x400000U : 0);
    }
    return heft__f32_of(sign | bits);
}

static inline uint16_t heft__f16_narrow(float value)
{
    const uint32_t bits = heft__f32_bits(value);
    const uint32_t sign = bits >> 16 & 0x8000U;
    const uint32_t rest = bits & 0x7fffffffU;
    if (rest > 0x7f800000U) {
        return (uint16_t)(sign | 0x7e00U | (rest >> 13 & 0x3ffU));
    }
    if (rest >=
        0x47800000U) { /* 65536 and more; what rounds up to it comes out as infinity below */
        return (uint16_t)(sign | 0x7c00U);
    }
    if (rest < 0x38800000U) { /* subnormal: a sum whose last place is 2^-24 rounds */
        return (uint16_t)(sign | (heft__f32_bits(heft__f32_of(rest) + 0.5F) - 0x3f000000U));
    }
    return (uint16_t)(sign | (rest - 0x38000000U + 0xfffU + (rest >> 13 & 1U)) >> 13);
}

#endif
