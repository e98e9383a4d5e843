/* cast_lanes.c - conversions between floating-point formats, as loops that the compiler turns into
 * vectors.
 *
 *            sign exponent mantissa  bias   infinity   NaN
 *   f32        1      8       23      127   yes        exponent all ones
 *   f16        1      5       10       15   yes        exponent all ones
 *   bf16       1      8        7      127   yes        exponent all ones
 *   e5m2       1      5        2       15   yes        exponent all ones
 *   e4m3fn     1      4        3        7   no         0x7f 0xff
 *   e5m2fnuz   1      5        2       16   no         0x80, and no negative zero
 *   e4m3fnuz   1      4        3        8   no         0x80, and no negative zero
 *   e8m0fnu    0      8        0      127   no         0xff, and no zero
 *
 * To narrow means round to nearest, ties to even; what is too large becomes infinity. A NaN becomes
 * quiet and keeps its sign and as many high bits of its payload as fit, as the CPU's own
 * conversions do. Elements are read and written through memcpy, so any alignment will do. Numbers
 * are in the machine's byte order.
 *
 * The rounding of subnormal halves leans on one float addition, so it wants the usual rounding
 * mode.
 *
 * Source: IEEE 754-2019; OCP 8-bit floating point specification; Fabian Giesen, "Float->half
 * conversions", 2016 (public domain), for the addition of a magic number. */
#include "tensor/lanes.h"

#define F32_QUIET UINT32_C(0x00400000)
#define F32_INF UINT32_C(0x7f800000)
#define F32_ABS UINT32_C(0x7fffffff)
#define F32_F16_BIAS UINT32_C(0x38000000) /* 127 - 15, where float32 has its exponent */

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* All ones where the condition holds: choosing with masks needs no branch and reads the same on
 * every level. */
static inline uint32_t mask_if(bool condition)
{
    return (uint32_t)0 - (uint32_t)condition;
}

static inline uint32_t choose(uint32_t mask, uint32_t yes, uint32_t no)
{
    return (mask & yes) | (~mask & no);
}

/* ---- one element -------------------------------------------------------------------------- */
static inline uint32_t f32_of_bf16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    return bits | (mask_if((bits & F32_ABS) > F32_INF) & F32_QUIET);
}

static inline uint16_t bf16_of_f32(uint32_t bits)
{
    /* Half of the last kept place, one less if that place is even: a tie then does not carry. */
    uint32_t rounded = (bits + UINT32_C(0x7fff) + ((bits >> 16) & 1)) >> 16;
    uint32_t nan = (bits | F32_QUIET) >> 16;
    return (uint16_t)choose(mask_if((bits & F32_ABS) > F32_INF), nan, rounded);
}

static inline uint32_t f32_of_f16(uint16_t half)
{
    uint32_t sign = ((uint32_t)half & 0x8000) << 16;
    uint32_t moved = ((uint32_t)half & 0x7fff) << 13;
    uint32_t normal = moved + F32_F16_BIAS;
    uint32_t special = (moved + 2 * F32_F16_BIAS) | (mask_if((half & 0x3ff) != 0) & F32_QUIET);
    /* Subnormal: 2^-14 * (1 + m / 2^10) - 2^-14 is exact. */
    uint32_t tiny = bits_of(float_of(moved + (UINT32_C(113) << 23)) - 0x1p-14f);
    uint32_t exponent = (uint32_t)half & 0x7c00;
    return sign | choose(mask_if(exponent == 0), tiny,
                         choose(mask_if(exponent == 0x7c00), special, normal));
}

static inline uint16_t f16_of_f32(uint32_t bits)
{
    uint32_t sign = (bits >> 16) & 0x8000;
    uint32_t magnitude = bits & F32_ABS;
    /* The carry of the rounding runs into the exponent, and from 65520 on into that of infinity. */
    uint32_t rounded = (magnitude - F32_F16_BIAS + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    /* Below 2^-14: the last place of 0.5f is 2^-24, that of a subnormal half, so the addition
     * rounds there. */
    uint32_t tiny = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    uint32_t nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
    uint32_t half = choose(mask_if(magnitude < UINT32_C(113) << 23), tiny, rounded);
    half = choose(mask_if(magnitude >= UINT32_C(143) << 23), 0x7c00, half);
    half = choose(mask_if(magnitude > F32_INF), nan, half);
    return (uint16_t)(sign | half);
}

/* An 8-bit float with `man` bits of mantissa, without looking at infinity and NaN. */
static inline uint32_t f32_of_f8(uint8_t byte, unsigned man, unsigned bias)
{
    uint32_t sign = ((uint32_t)byte & 0x80) << 24;
    uint32_t magnitude = (uint32_t)byte & 0x7f;
    uint32_t normal = (magnitude << (23 - man)) + ((uint32_t)(127 - bias) << 23);
    /* Subnormal: the mantissa counts steps of 2^(1 - bias - man). */
    float step = float_of((uint32_t)(127 + 1 - bias - man) << 23);
    uint32_t tiny = bits_of((float)(int32_t)magnitude * step);
    return sign | choose(mask_if(magnitude >> man == 0), tiny, normal);
}

static inline uint32_t f32_of_e4m3fn(uint8_t byte)
{
    uint32_t nan = ((uint32_t)byte & 0x80) << 24 | F32_INF | F32_QUIET;
    return choose(mask_if((byte & 0x7f) == 0x7f), nan, f32_of_f8(byte, 3, 7));
}

static inline uint32_t f32_of_fnuz(uint8_t byte, unsigned man, unsigned bias)
{
    return choose(mask_if(byte == 0x80), F32_INF | F32_QUIET, f32_of_f8(byte, man, bias));
}

static inline uint32_t f32_of_e8m0fnu(uint8_t byte)
{
    uint32_t tiny = UINT32_C(0x00400000); /* 2^-127, a subnormal float */
    uint32_t bits = choose(mask_if(byte == 0), tiny, (uint32_t)byte << 23);
    return choose(mask_if(byte == 0xff), F32_INF | F32_QUIET, bits);
}

/* ---- loops -------------------------------------------------------------------------------- */
#define CAST_LOOP(name, to_type, from_type, expression)                                            \
    static void name(void *restrict dst, const void *restrict src, size_t elems)                   \
    {                                                                                              \
        const uint8_t *from_bytes = src;                                                           \
        uint8_t *to_bytes = dst;                                                                   \
        for (size_t i = 0; i < elems; i++) {                                                       \
            from_type from;                                                                        \
            memcpy(&from, from_bytes + i * sizeof from, sizeof from);                              \
            to_type to = (expression);                                                             \
            memcpy(to_bytes + i * sizeof to, &to, sizeof to);                                      \
        }                                                                                          \
    }

CAST_LOOP(f32_from_f64, float, double, (float)from)
CAST_LOOP(f64_from_f32, double, float, (double)from)
CAST_LOOP(f32_from_f16, uint32_t, uint16_t, f32_of_f16(from))
CAST_LOOP(f16_from_f32, uint16_t, uint32_t, f16_of_f32(from))
CAST_LOOP(f32_from_bf16, uint32_t, uint16_t, f32_of_bf16(from))
CAST_LOOP(bf16_from_f32, uint16_t, uint32_t, bf16_of_f32(from))
CAST_LOOP(bf16_from_f16, uint16_t, uint16_t, bf16_of_f32(f32_of_f16(from)))
CAST_LOOP(f16_from_bf16, uint16_t, uint16_t, f16_of_f32(f32_of_bf16(from)))
/* e5m2 is the upper half of a half. */
CAST_LOOP(f32_from_e5m2, uint32_t, uint8_t, f32_of_f16((uint16_t)(from << 8)))
CAST_LOOP(f32_from_e4m3fn, uint32_t, uint8_t, f32_of_e4m3fn(from))
CAST_LOOP(f32_from_e4m3fnuz, uint32_t, uint8_t, f32_of_fnuz(from, 3, 8))
CAST_LOOP(f32_from_e5m2fnuz, uint32_t, uint8_t, f32_of_fnuz(from, 2, 16))
CAST_LOOP(f32_from_e8m0fnu, uint32_t, uint8_t, f32_of_e8m0fnu(from))

const struct heft__cast_lanes HEFT__LANES(heft__cast_lanes) = {
    .f32_from_f64 = f32_from_f64,
    .f32_from_f16 = f32_from_f16,
    .f32_from_bf16 = f32_from_bf16,
    .f32_from_e4m3fn = f32_from_e4m3fn,
    .f32_from_e5m2 = f32_from_e5m2,
    .f32_from_e4m3fnuz = f32_from_e4m3fnuz,
    .f32_from_e5m2fnuz = f32_from_e5m2fnuz,
    .f32_from_e8m0fnu = f32_from_e8m0fnu,
    .f64_from_f32 = f64_from_f32,
    .f16_from_f32 = f16_from_f32,
    .bf16_from_f32 = bf16_from_f32,
    .bf16_from_f16 = bf16_from_f16,
    .f16_from_bf16 = f16_from_bf16,
};
