/* cast_lanes.c - conversions between formats of numbers, as loops that the compiler turns into
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
 * conversions do. The 8-bit floats have one NaN each, with a sign in e5m2 and e4m3fn; where they
 * have no infinity, e4m3fn takes its largest number instead, the others NaN. e8m0fnu drops the sign.
 *
 * A float becomes an integer by cutting off its fraction, then by keeping the low bits. The cut is
 * made in 32 bits for int32, int16, int8 and uint16, and in 64 bits for int64, uint32 and uint8; what
 * does not fit there, and NaN, is the lowest integer of that width. uint64 takes numbers up to 2^64 as
 * they are, negative ones as int64 does, and 2^64 and more as 0. C leaves all of this open; it is what
 * PyTorch gives on x86-64, and every conversion below is of a number that fits.
 *
 * Elements are read and written through memcpy, so any alignment will do. Numbers are in the machine's
 * byte order.
 *
 * The rounding of subnormal halves leans on one float addition, so it wants the usual rounding
 * mode.
 *
 * Source: IEEE 754-2019; OCP 8-bit floating point specification; Fabian Giesen, "Float->half
 * conversions", 2016 (public domain), for the addition of a magic number; PyTorch 2.13's copy_() for
 * what these leave open. */
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

static inline uint64_t bits_of_double(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline double double_of(uint64_t bits)
{
    double value;
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

static inline uint64_t choose64(bool condition, uint64_t yes, uint64_t no)
{
    const uint64_t mask = (uint64_t)0 - (uint64_t)condition;
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

/* The magnitude of an 8-bit float, not held to its largest: what is too large is a larger number than
 * any code. */
static inline uint32_t f8_of_f32(uint32_t magnitude, unsigned man, unsigned bias)
{
    const unsigned shift = 23 - man;
    uint32_t rounded = (magnitude - ((uint32_t)(127 - bias) << 23) + (UINT32_C(1) << (shift - 1)) -
                        1 + ((magnitude >> shift) & 1)) >>
                       shift;
    /* Subnormal: the last place of the magic number is the step, so the addition rounds there. */
    uint32_t magic = (uint32_t)(127 + 24 - bias - man) << 23;
    uint32_t tiny = bits_of(float_of(magnitude) + float_of(magic)) - magic;
    return choose(mask_if(magnitude < (uint32_t)(128 - bias) << 23), tiny, rounded);
}

/* With a sign, and one NaN: what is larger than `most` is `most`. */
static inline uint8_t signed_f8_of_f32(uint32_t bits, unsigned man, unsigned bias, uint32_t most)
{
    uint32_t magnitude = bits & F32_ABS;
    uint32_t byte = f8_of_f32(magnitude, man, bias);
    byte = choose(mask_if(byte > most), most, byte);
    byte = choose(mask_if(magnitude > F32_INF), 0x7f, byte);
    return (uint8_t)(byte | ((bits >> 24) & 0x80));
}

static inline uint8_t fnuz_of_f32(uint32_t bits, unsigned man, unsigned bias)
{
    uint32_t byte = f8_of_f32(bits & F32_ABS, man, bias);
    uint32_t sign = choose(mask_if(byte == 0), 0, (bits >> 24) & 0x80);
    return (uint8_t)choose(mask_if(byte > 0x7f), 0x80, byte | sign);
}

/* The exponent, one more if the mantissa is above half, or half and not below a normal number. */
static inline uint8_t e8m0fnu_of_f32(uint32_t bits)
{
    uint32_t exponent = (bits >> 23) & 0xff;
    uint32_t half = UINT32_C(0x00400000) + (uint32_t)(exponent == 0);
    uint32_t up = (uint32_t)((bits & UINT32_C(0x007fffff)) >= half);
    return (uint8_t)choose(mask_if(exponent == 0xff), 0xff, exponent + up);
}

/* ---- one element, to an integer --------------------------------------------------------------- */
static inline int32_t i32_of_f32(uint32_t bits)
{
    uint32_t fits = mask_if((bits & F32_ABS) < bits_of(0x1p31f));
    return (int32_t)float_of(choose(fits, bits, bits_of(-0x1p31f)));
}

static inline int64_t i64_of_f32(uint32_t bits)
{
    uint32_t fits = mask_if((bits & F32_ABS) < bits_of(0x1p63f));
    return (int64_t)float_of(choose(fits, bits, bits_of(-0x1p63f)));
}

/* The low half of the integer in 64 bits: from 2^31 on, the mantissa moved to the left. */
static inline uint32_t u32_of_f32(uint32_t bits)
{
    uint32_t magnitude = bits & F32_ABS, places = (magnitude >> 23) - 150;
    uint32_t moved = ((bits & UINT32_C(0x007fffff)) | UINT32_C(0x00800000)) << (places & 31);
    uint32_t large = choose(mask_if(places < 32), moved, 0);
    large = choose(mask_if(bits > F32_ABS), 0 - large, large);
    return choose(mask_if(magnitude < bits_of(0x1p31f)), (uint32_t)i32_of_f32(bits), large);
}

#define F64_ABS UINT64_C(0x7fffffffffffffff)
#define F64_2_31 UINT64_C(0x41e0000000000000) /* the bits of 2^31 */
#define F64_2_63 UINT64_C(0x43e0000000000000)
#define F64_2_64 UINT64_C(0x43f0000000000000)
#define F64_SIGN (~F64_ABS)

static inline int32_t i32_of_f64(uint64_t bits)
{
    return (int32_t)double_of(choose64((bits & F64_ABS) < F64_2_31, bits, F64_SIGN | F64_2_31));
}

static inline int64_t i64_of_f64(uint64_t bits)
{
    return (int64_t)double_of(choose64((bits & F64_ABS) < F64_2_63, bits, F64_SIGN | F64_2_63));
}

static inline uint64_t u64_of_f64(uint64_t bits)
{
    uint64_t moved = (bits << 11) | (UINT64_C(1) << 63); /* of a number from 2^63 to 2^64 */
    uint64_t large = choose64(bits < F64_2_64, moved, 0);
    bool is_large = bits >= F64_2_63 && bits <= UINT64_C(0x7ff0000000000000); /* to infinity */
    return choose64(is_large, large, (uint64_t)i64_of_f64(bits));
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
CAST_LOOP(e5m2_from_f32, uint8_t, uint32_t, signed_f8_of_f32(from, 2, 15, 0x7c))
CAST_LOOP(e4m3fn_from_f32, uint8_t, uint32_t, signed_f8_of_f32(from, 3, 7, 0x7e))
CAST_LOOP(e4m3fnuz_from_f32, uint8_t, uint32_t, fnuz_of_f32(from, 3, 8))
CAST_LOOP(e5m2fnuz_from_f32, uint8_t, uint32_t, fnuz_of_f32(from, 2, 16))
CAST_LOOP(e8m0fnu_from_f32, uint8_t, uint32_t, e8m0fnu_of_f32(from))

/* Integers of a width: what is wider repeats the sign, or has zeros; what is narrower keeps the low
 * bits. */
CAST_LOOP(i16_from_i8, int16_t, int8_t, from)
CAST_LOOP(i32_from_i8, int32_t, int8_t, from)
CAST_LOOP(i64_from_i8, int64_t, int8_t, from)
CAST_LOOP(i32_from_i16, int32_t, int16_t, from)
CAST_LOOP(i64_from_i16, int64_t, int16_t, from)
CAST_LOOP(i64_from_i32, int64_t, int32_t, from)
CAST_LOOP(u16_from_u8, uint16_t, uint8_t, from)
CAST_LOOP(u32_from_u8, uint32_t, uint8_t, from)
CAST_LOOP(u64_from_u8, uint64_t, uint8_t, from)
CAST_LOOP(u32_from_u16, uint32_t, uint16_t, from)
CAST_LOOP(u64_from_u16, uint64_t, uint16_t, from)
CAST_LOOP(u64_from_u32, uint64_t, uint32_t, from)
CAST_LOOP(u8_from_u8, uint8_t, uint8_t, from)
CAST_LOOP(u8_from_u16, uint8_t, uint16_t, (uint8_t)from)
CAST_LOOP(u8_from_u32, uint8_t, uint32_t, (uint8_t)from)
CAST_LOOP(u8_from_u64, uint8_t, uint64_t, (uint8_t)from)
CAST_LOOP(u16_from_u16, uint16_t, uint16_t, from)
CAST_LOOP(u16_from_u32, uint16_t, uint32_t, (uint16_t)from)
CAST_LOOP(u16_from_u64, uint16_t, uint64_t, (uint16_t)from)
CAST_LOOP(u32_from_u32, uint32_t, uint32_t, from)
CAST_LOOP(u32_from_u64, uint32_t, uint64_t, (uint32_t)from)
CAST_LOOP(u64_from_u64, uint64_t, uint64_t, from)

CAST_LOOP(f32_from_i8, float, int8_t, (float)from)
CAST_LOOP(f32_from_i16, float, int16_t, (float)from)
CAST_LOOP(f32_from_i32, float, int32_t, (float)from)
CAST_LOOP(f32_from_i64, float, int64_t, (float)from)
CAST_LOOP(f32_from_u8, float, uint8_t, (float)from)
CAST_LOOP(f32_from_u16, float, uint16_t, (float)from)
CAST_LOOP(f32_from_u32, float, uint32_t, (float)from)
CAST_LOOP(f32_from_u64, float, uint64_t, (float)from)
CAST_LOOP(f64_from_i8, double, int8_t, (double)from)
CAST_LOOP(f64_from_i16, double, int16_t, (double)from)
CAST_LOOP(f64_from_i32, double, int32_t, (double)from)
CAST_LOOP(f64_from_i64, double, int64_t, (double)from)
CAST_LOOP(f64_from_u8, double, uint8_t, (double)from)
CAST_LOOP(f64_from_u16, double, uint16_t, (double)from)
CAST_LOOP(f64_from_u32, double, uint32_t, (double)from)
CAST_LOOP(f64_from_u64, double, uint64_t, (double)from)

/* From 2^31 on, the low byte of a float's integer is 0 in any width. */
CAST_LOOP(u8_from_f32, uint8_t, uint32_t, (uint8_t)i32_of_f32(from))
CAST_LOOP(u16_from_f32, uint16_t, uint32_t, (uint16_t)i32_of_f32(from))
CAST_LOOP(i32_from_f32, int32_t, uint32_t, i32_of_f32(from))
CAST_LOOP(u32_from_f32, uint32_t, uint32_t, u32_of_f32(from))
CAST_LOOP(i64_from_f32, int64_t, uint32_t, i64_of_f32(from))
CAST_LOOP(u64_from_f32, uint64_t, uint32_t, u64_of_f64(bits_of_double((double)float_of(from))))
CAST_LOOP(i8_from_f64, uint8_t, uint64_t, (uint8_t)i32_of_f64(from))
CAST_LOOP(u8_from_f64, uint8_t, uint64_t, (uint8_t)i64_of_f64(from))
CAST_LOOP(u16_from_f64, uint16_t, uint64_t, (uint16_t)i32_of_f64(from))
CAST_LOOP(i32_from_f64, int32_t, uint64_t, i32_of_f64(from))
CAST_LOOP(u32_from_f64, uint32_t, uint64_t, (uint32_t)i64_of_f64(from))
CAST_LOOP(i64_from_f64, int64_t, uint64_t, i64_of_f64(from))
CAST_LOOP(u64_from_f64, uint64_t, uint64_t, u64_of_f64(from))

/* 1 for all but zero, and so for NaN. The fnuz types have one zero, e8m0fnu has none. */
CAST_LOOP(bool_from_u8, uint8_t, uint8_t, from != 0)
CAST_LOOP(bool_from_u16, uint8_t, uint16_t, from != 0)
CAST_LOOP(bool_from_u32, uint8_t, uint32_t, from != 0)
CAST_LOOP(bool_from_u64, uint8_t, uint64_t, from != 0)
CAST_LOOP(bool_from_f8, uint8_t, uint8_t, (from & 0x7f) != 0)
CAST_LOOP(bool_from_half, uint8_t, uint16_t, (from & 0x7fff) != 0)
CAST_LOOP(bool_from_f32, uint8_t, uint32_t, (from & F32_ABS) != 0)
CAST_LOOP(bool_from_f64, uint8_t, uint64_t, (from & F64_ABS) != 0)

static void bool_from_e8m0fnu(void *restrict dst, const void *restrict src, size_t elems)
{
    (void)src;
    memset(dst, 1, elems);
}

/* A complex number is the real part and a zero behind it. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define SPREAD(wide, bits) ((wide)from << (bits))
#else
#define SPREAD(wide, bits) ((wide)from)
#endif
CAST_LOOP(c32_from_f16, uint32_t, uint16_t, SPREAD(uint32_t, 16))
CAST_LOOP(c64_from_f32, uint64_t, uint32_t, SPREAD(uint64_t, 32))

static void c128_from_f64(void *restrict dst, const void *restrict src, size_t elems)
{
    const uint8_t *from_bytes = src;
    uint8_t *to_bytes = dst;
    for (size_t i = 0; i < elems; i++) {
        uint64_t pair[2] = {0, 0};
        memcpy(pair, from_bytes + i * sizeof *pair, sizeof *pair);
        memcpy(to_bytes + i * sizeof pair, pair, sizeof pair);
    }
}

/* A row of the table: integers to everything that has a loop of its own. */
#define FROM_INTEGER(to_8, to_16, to_32, to_64, to_f32, to_f64, to_bool)                           \
    {                                                                                              \
        [HEFT_DTYPE_I8] = to_8, [HEFT_DTYPE_U8] = to_8, [HEFT_DTYPE_I16] = to_16,                  \
        [HEFT_DTYPE_U16] = to_16, [HEFT_DTYPE_I32] = to_32, [HEFT_DTYPE_U32] = to_32,              \
        [HEFT_DTYPE_I64] = to_64, [HEFT_DTYPE_U64] = to_64, [HEFT_DTYPE_F32] = to_f32,             \
        [HEFT_DTYPE_F64] = to_f64, [HEFT_DTYPE_BOOL] = to_bool                                     \
    }

const struct heft__cast_lanes HEFT__LANES(heft__cast_lanes) = {
    {
     [HEFT_DTYPE_I8] = FROM_INTEGER(u8_from_u8, i16_from_i8, i32_from_i8, i64_from_i8,
     f32_from_i8, f64_from_i8, bool_from_u8),
     [HEFT_DTYPE_I16] = FROM_INTEGER(u8_from_u16, u16_from_u16, i32_from_i16, i64_from_i16,
     f32_from_i16, f64_from_i16, bool_from_u16),
     [HEFT_DTYPE_I32] = FROM_INTEGER(u8_from_u32, u16_from_u32, u32_from_u32, i64_from_i32,
     f32_from_i32, f64_from_i32, bool_from_u32),
     [HEFT_DTYPE_I64] = FROM_INTEGER(u8_from_u64, u16_from_u64, u32_from_u64, u64_from_u64,
     f32_from_i64, f64_from_i64, bool_from_u64),
     [HEFT_DTYPE_U8] = FROM_INTEGER(u8_from_u8, u16_from_u8, u32_from_u8, u64_from_u8,
     f32_from_u8, f64_from_u8, bool_from_u8),
     [HEFT_DTYPE_U16] = FROM_INTEGER(u8_from_u16, u16_from_u16, u32_from_u16, u64_from_u16,
     f32_from_u16, f64_from_u16, bool_from_u16),
     [HEFT_DTYPE_U32] = FROM_INTEGER(u8_from_u32, u16_from_u32, u32_from_u32, u64_from_u32,
     f32_from_u32, f64_from_u32, bool_from_u32),
     [HEFT_DTYPE_U64] = FROM_INTEGER(u8_from_u64, u16_from_u64, u32_from_u64, u64_from_u64,
     f32_from_u64, f64_from_u64, bool_from_u64),
     /* Any byte but 0 is true. */
        [HEFT_DTYPE_BOOL] = {[HEFT_DTYPE_U8] = bool_from_u8, [HEFT_DTYPE_I8] = bool_from_u8},
     [HEFT_DTYPE_F32] =
            {
                [HEFT_DTYPE_F64] = f64_from_f32,
                [HEFT_DTYPE_F16] = f16_from_f32,
                [HEFT_DTYPE_BF16] = bf16_from_f32,
                [HEFT_DTYPE_F8_E4M3FN] = e4m3fn_from_f32,
                [HEFT_DTYPE_F8_E5M2] = e5m2_from_f32,
                [HEFT_DTYPE_F8_E4M3FNUZ] = e4m3fnuz_from_f32,
                [HEFT_DTYPE_F8_E5M2FNUZ] = e5m2fnuz_from_f32,
                [HEFT_DTYPE_F8_E8M0FNU] = e8m0fnu_from_f32,
                [HEFT_DTYPE_I8] = u8_from_f32,
                [HEFT_DTYPE_U8] = u8_from_f32,
                [HEFT_DTYPE_I16] = u16_from_f32,
                [HEFT_DTYPE_U16] = u16_from_f32,
                [HEFT_DTYPE_I32] = i32_from_f32,
                [HEFT_DTYPE_U32] = u32_from_f32,
                [HEFT_DTYPE_I64] = i64_from_f32,
                [HEFT_DTYPE_U64] = u64_from_f32,
                [HEFT_DTYPE_BOOL] = bool_from_f32,
                [HEFT_DTYPE_C64] = c64_from_f32,
            }, [HEFT_DTYPE_F64] =
            {
                [HEFT_DTYPE_F32] = f32_from_f64,
                [HEFT_DTYPE_I8] = i8_from_f64,
                [HEFT_DTYPE_U8] = u8_from_f64,
                [HEFT_DTYPE_I16] = u16_from_f64,
                [HEFT_DTYPE_U16] = u16_from_f64,
                [HEFT_DTYPE_I32] = i32_from_f64,
                [HEFT_DTYPE_U32] = u32_from_f64,
                [HEFT_DTYPE_I64] = i64_from_f64,
                [HEFT_DTYPE_U64] = u64_from_f64,
                [HEFT_DTYPE_BOOL] = bool_from_f64,
                [HEFT_DTYPE_C128] = c128_from_f64,
            }, [HEFT_DTYPE_F16] = {[HEFT_DTYPE_F32] = f32_from_f16,
                            [HEFT_DTYPE_BF16] = bf16_from_f16,
                            [HEFT_DTYPE_BOOL] = bool_from_half,
                            [HEFT_DTYPE_C32] = c32_from_f16},
     [HEFT_DTYPE_BF16] = {[HEFT_DTYPE_F32] = f32_from_bf16,
                             [HEFT_DTYPE_F16] = f16_from_bf16,
                             [HEFT_DTYPE_BOOL] = bool_from_half},
     [HEFT_DTYPE_F8_E4M3FN] =
            {[HEFT_DTYPE_F32] = f32_from_e4m3fn, [HEFT_DTYPE_BOOL] = bool_from_f8},
     [HEFT_DTYPE_F8_E5M2] = {[HEFT_DTYPE_F32] = f32_from_e5m2, [HEFT_DTYPE_BOOL] = bool_from_f8},
     [HEFT_DTYPE_F8_E4M3FNUZ] =
            {[HEFT_DTYPE_F32] = f32_from_e4m3fnuz, [HEFT_DTYPE_BOOL] = bool_from_u8},
     [HEFT_DTYPE_F8_E5M2FNUZ] =
            {[HEFT_DTYPE_F32] = f32_from_e5m2fnuz, [HEFT_DTYPE_BOOL] = bool_from_u8},
     [HEFT_DTYPE_F8_E8M0FNU] =
            {[HEFT_DTYPE_F32] = f32_from_e8m0fnu, [HEFT_DTYPE_BOOL] = bool_from_e8m0fnu},
     }
};
