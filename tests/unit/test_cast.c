/* test_cast.c - casts against references that look numbers up instead of shifting bits.
 *
 * A small format is decoded with ldexp, code by code. To encode, the two neighboring codes of a
 * number are searched in that table, and the nearer one wins. Neither uses the methods of
 * cast_lanes.c. */
#include "tensor/lanes.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

struct format {
    const char *name;
    heft_dtype dtype;
    int exponent_bits, mantissa_bits, bias;
};

static const struct format formats[] = {
    {"f16",  HEFT_DTYPE_F16,  5, 10, 15 },
    {"bf16", HEFT_DTYPE_BF16, 8, 7,  127},
};

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* The value of a code without its sign; the code of infinity gives the value it would have if the
 * exponents continued. */
static double magnitude_of(const struct format *f, uint32_t code)
{
    int exponent = (int)(code >> f->mantissa_bits);
    double mantissa = (double)(code & ((1u << f->mantissa_bits) - 1));
    if (exponent == 0) {
        return ldexp(mantissa, 1 - f->bias - f->mantissa_bits);
    }
    return ldexp(mantissa + ldexp(1, f->mantissa_bits), exponent - f->bias - f->mantissa_bits);
}

static uint32_t infinity_of(const struct format *f)
{
    return ((1u << f->exponent_bits) - 1) << f->mantissa_bits;
}

static bool is_quiet_nan_code(const struct format *f, uint32_t code)
{
    return (code & 0x7fff) > infinity_of(f) && (code >> (f->mantissa_bits - 1) & 1) == 1;
}

/* By search in a table of all codes, nearest, ties to the even code. */
static uint32_t encode(const struct format *f, const double *table, double value)
{
    uint32_t sign = signbit(value) ? 0x8000 : 0;
    double magnitude = fabs(value);
    uint32_t low = 0;
    uint32_t high = infinity_of(f);
    if (magnitude >= table[high]) {
        return sign | high;
    }
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (table[middle] <= magnitude) {
            low = middle;
        } else {
            high = middle;
        }
    }
    double below = magnitude - table[low];
    double above = table[high] - magnitude;
    bool up = below > above || (!(below < above) && low % 2 == 1);
    return sign | (up ? high : low);
}

static double *table_of(const struct format *f)
{
    double *table = calloc(infinity_of(f) + 1, sizeof *table);
    assert_non_null(table);
    for (uint32_t code = 0; code <= infinity_of(f); code++) {
        table[code] = magnitude_of(f, code);
    }
    return table;
}

/* ---- widening ----------------------------------------------------------------------------- */
static void check_widened(const struct format *f, uint32_t code, float got)
{
    uint32_t magnitude = code & 0x7fff;
    uint32_t sign = (code & 0x8000) << 16;
    uint32_t want = 0;
    if (magnitude < infinity_of(f)) {
        want = bits_of((float)magnitude_of(f, magnitude)) | sign;
    } else if (magnitude == infinity_of(f)) {
        want = UINT32_C(0x7f800000) | sign;
    } else { /* quiet, sign and payload kept */
        uint32_t mantissa = code & ((1u << f->mantissa_bits) - 1);
        want = UINT32_C(0x7fc00000) | sign | mantissa << (23 - f->mantissa_bits);
    }
    if (bits_of(got) != want) {
        fail_msg("%s %04x: %08x, not %08x", f->name, code, bits_of(got), want);
    }
}

static void half_types_widen_exactly(void **state)
{
    (void)state;
    static uint16_t codes[65536];
    static float got[65536];
    static double wide[65536];
    for (uint32_t code = 0; code < 65536; code++) {
        codes[code] = (uint16_t)code;
    }
    for (size_t k = 0; k < COUNT(formats); k++) {
        for (int level = 0; level < HEFT__LEVEL_COUNT; level++) {
            if (heft__lanes_force(level)) {
                heft__cast(HEFT_DTYPE_F32, got, formats[k].dtype, codes, 65536);
                heft__cast(HEFT_DTYPE_F64, wide, formats[k].dtype, codes, 65536);
                for (uint32_t code = 0; code < 65536; code++) {
                    check_widened(&formats[k], code, got[code]);
                    check_widened(&formats[k], code, (float)wide[code]);
                }
            }
        }
    }
    heft__lanes_force(-1);
}

/* ---- 8 bits ------------------------------------------------------------------------------- */
static float byte_reference(heft_dtype dtype, uint32_t code)
{
    static const struct {
        heft_dtype dtype;
        struct format format;
        uint32_t infinity, nan_from; /* of the code without sign; 0: none */
        bool unsigned_zero;          /* 0x80 is the only NaN */
    } rows[] = {
        {HEFT_DTYPE_F8_E5M2,     {"e5m2", 0, 5, 2, 15},     0x7c, 0x7d, false},
        {HEFT_DTYPE_F8_E4M3FN,   {"e4m3fn", 0, 4, 3, 7},    0,    0x7f, false},
        {HEFT_DTYPE_F8_E5M2FNUZ, {"e5m2fnuz", 0, 5, 2, 16}, 0,    0,    true },
        {HEFT_DTYPE_F8_E4M3FNUZ, {"e4m3fnuz", 0, 4, 3, 8},  0,    0,    true },
    };
    if (dtype == HEFT_DTYPE_F8_E8M0FNU) {
        return code == 255 ? NAN : (float)ldexp(1, (int)code - 127);
    }
    for (size_t i = 0; i < COUNT(rows); i++) {
        if (rows[i].dtype == dtype) {
            uint32_t magnitude = code & 0x7f;
            float sign = code & 0x80 ? -1.0f : 1.0f;
            if ((rows[i].unsigned_zero && code == 0x80) ||
                (rows[i].nan_from > 0 && magnitude >= rows[i].nan_from)) {
                return NAN;
            }
            if (rows[i].infinity > 0 && magnitude == rows[i].infinity) {
                return sign * INFINITY;
            }
            return sign * (float)magnitude_of(&rows[i].format, magnitude);
        }
    }
    fail();
    return 0;
}

static void byte_types_widen_exactly(void **state)
{
    (void)state;
    static const heft_dtype dtypes[] = {HEFT_DTYPE_F8_E5M2, HEFT_DTYPE_F8_E4M3FN,
                                        HEFT_DTYPE_F8_E5M2FNUZ, HEFT_DTYPE_F8_E4M3FNUZ,
                                        HEFT_DTYPE_F8_E8M0FNU};
    uint8_t codes[256];
    float got[256];
    double wide[256];
    for (uint32_t code = 0; code < 256; code++) {
        codes[code] = (uint8_t)code;
    }
    for (size_t k = 0; k < COUNT(dtypes); k++) {
        heft__cast(HEFT_DTYPE_F32, got, dtypes[k], codes, 256);
        heft__cast(HEFT_DTYPE_F64, wide, dtypes[k], codes, 256);
        for (uint32_t code = 0; code < 256; code++) {
            float want = byte_reference(dtypes[k], code);
            bool same = isnan(want) ? isnan(got[code]) && (bits_of(got[code]) & 0x00400000) != 0
                                    : bits_of(got[code]) == bits_of(want);
            if (!same || bits_of((float)wide[code]) != bits_of(got[code])) {
                fail_msg("%s %02x: %08x, not %08x", heft_dtype_name(dtypes[k]), code,
                         bits_of(got[code]), bits_of(want));
            }
        }
    }
}

/* ---- narrowing ---------------------------------------------------------------------------- */
static uint16_t narrow_one(heft_dtype to, float value)
{
    uint16_t code = 0;
    heft__cast(to, &code, HEFT_DTYPE_F32, &value, 1);
    return code;
}

static void half_types_round_as_written_here(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        float value;
        uint16_t f16, bf16;
    } rows[] = {
        {"zero",                       0.0f,            0x0000, 0x0000},
        {"minus_zero",                 -0.0f,           0x8000, 0x8000},
        {"one",                        1.0f,            0x3c00, 0x3f80},
        {"minus_two",                  -2.0f,           0xc000, 0xc000},
        {"f16_tie_down_to_even",       0x1.002p0f,      0x3c00, 0x3f80},
        {"f16_tie_up_to_even",         0x1.006p0f,      0x3c02, 0x3f80},
        {"f16_above_tie",              0x1.002002p0f,   0x3c01, 0x3f80},
        {"bf16_tie_down_to_even",      0x1.01p0f,       0x3c04, 0x3f80},
        {"bf16_tie_up_to_even",        0x1.03p0f,       0x3c0c, 0x3f82},
        {"bf16_above_tie",             0x1.010002p0f,   0x3c04, 0x3f81},
        {"carry_into_exponent",        0x1.fffffep0f,   0x4000, 0x4000},
        {"f16_largest",                65504.0f,        0x7bff, 0x4780},
        {"f16_last_before_infinity",   65519.996f,      0x7bff, 0x4780},
        {"f16_first_infinity",         65520.0f,        0x7c00, 0x4780},
        {"f16_minus_infinity",         -65520.0f,       0xfc00, 0xc780},
        {"f16_65536",                  65536.0f,        0x7c00, 0x4780},
        {"f16_least_normal",           0x1p-14f,        0x0400, 0x3880},
        {"f16_rounds_up_to_normal",    0x1.ffep-15f,    0x0400, 0x3880},
        {"f16_largest_subnormal",      0x1.ff8p-15f,    0x03ff, 0x3880},
        {"f16_least_subnormal",        0x1p-24f,        0x0001, 0x3380},
        {"f16_half_of_least_to_even",  0x1p-25f,        0x0000, 0x3300},
        {"f16_above_half_of_least",    0x1.000002p-25f, 0x0001, 0x3300},
        {"f16_three_halves_to_even",   0x1.8p-24f,      0x0002, 0x33c0},
        {"f16_minus_tiny",             -0x1p-30f,       0x8000, 0xb080},
        {"bf16_largest",               0x1.fep127f,     0x7c00, 0x7f7f},
        {"bf16_last_before_infinity",  0x1.fefffep127f, 0x7c00, 0x7f7f},
        {"bf16_first_infinity",        0x1.ffp127f,     0x7c00, 0x7f80},
        {"largest_float",              -FLT_MAX,        0xfc00, 0xff80},
        {"infinity",                   INFINITY,        0x7c00, 0x7f80},
        {"minus_infinity",             -INFINITY,       0xfc00, 0xff80},
        {"bf16_least_subnormal",       0x1p-133f,       0x0000, 0x0001},
        {"bf16_half_of_least_to_even", 0x1p-134f,       0x0000, 0x0000},
        {"bf16_above_half_of_least",   0x1.0002p-134f,  0x0000, 0x0001},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint16_t f16 = narrow_one(HEFT_DTYPE_F16, rows[i].value);
        uint16_t bf16 = narrow_one(HEFT_DTYPE_BF16, rows[i].value);
        if (f16 != rows[i].f16 || bf16 != rows[i].bf16) {
            fail_msg("%s: f16 %04x, bf16 %04x", rows[i].name, f16, bf16);
        }
    }
}

static void nan_stays_a_quiet_nan(void **state)
{
    (void)state;
    static const uint32_t rows[][3] = {
  /* f32, f16, bf16 */
        {0x7fc00000, 0x7e00, 0x7fc0},
        {0xffc00000, 0xfe00, 0xffc0},
        {0x7f800001, 0x7e00, 0x7fc0}, /* signalling, payload lost */
        {0x7fffffff, 0x7fff, 0x7fff},
        {0xffffffff, 0xffff, 0xffff},
        {0x7fa00000, 0x7f00, 0x7fe0}, /* signalling, payload kept */
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        assert_int_equal(narrow_one(HEFT_DTYPE_F16, float_of(rows[i][0])), rows[i][1]);
        assert_int_equal(narrow_one(HEFT_DTYPE_BF16, float_of(rows[i][0])), rows[i][2]);
    }
    uint64_t signalling = UINT64_C(0x7ff0000000000001);
    uint16_t code = 0;
    heft__cast(HEFT_DTYPE_F16, &code, HEFT_DTYPE_F64, &signalling, 1);
    assert_int_equal(code, 0x7e00);
}

/* Half of the patterns are any float, half have an exponent that the format has or nearly has. */
static void fill_patterns(uint32_t *patterns, size_t count, const struct format *f)
{
    uint64_t seed = UINT64_C(0x9e3779b97f4a7c15);
    uint32_t span = (1u << f->exponent_bits) + (uint32_t)f->mantissa_bits + 2;
    uint32_t first =
        (uint32_t)(127 - f->bias - f->mantissa_bits > 0 ? 127 - f->bias - f->mantissa_bits : 0);
    for (size_t i = 0; i < count; i++) {
        uint64_t draw = next_random(&seed);
        patterns[i] = (uint32_t)(draw >> 16);
        if (i % 2 == 0) {
            uint32_t exponent = first + (uint32_t)(draw >> 48) % span;
            patterns[i] = (patterns[i] & 0x807fffff) | (exponent > 255 ? 255 : exponent) << 23;
        }
        if (i % 16 == 0) { /* a tie, or close to it */
            uint32_t half = 1u << (22 - f->mantissa_bits);
            patterns[i] = ((patterns[i] & ~(2 * half - 1)) | half) + (uint32_t)(draw & 3) - 1;
        }
    }
}

static void half_types_round_to_nearest_even(void **state)
{
    (void)state;
    const size_t count = (size_t)1 << 22;
    uint32_t *patterns = malloc(count * sizeof *patterns);
    uint16_t *got = malloc(count * sizeof *got);
    assert_true(patterns != NULL && got != NULL);
    for (size_t k = 0; k < COUNT(formats); k++) {
        const struct format *f = &formats[k];
        double *table = table_of(f);
        fill_patterns(patterns, count, f);
        heft__cast(f->dtype, got, HEFT_DTYPE_F32, patterns, count);
        for (size_t i = 0; i < count; i++) {
            float value = float_of(patterns[i]);
            bool good = isnan(value) ? is_quiet_nan_code(f, got[i])
                                     : got[i] == encode(f, table, (double)value);
            if (!good) {
                fail_msg("%s of %08x: %04x", f->name, patterns[i], got[i]);
            }
        }
        free(table);
    }
    free(patterns);
    free(got);
}

static void double_goes_to_half_through_float(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double value;
        uint16_t f16, bf16;
    } rows[] = {
  /* A little above a tie; float drops the little, and the tie goes to even. */
        {"f16_rounded_twice",  0x1.0020000000001p0, 0x3c00, 0x3f80},
        {"bf16_rounded_twice", 0x1.0100000000001p0, 0x3c04, 0x3f80},
        {"beyond_float",       1e300,               0x7c00, 0x7f80},
        {"below_float",        -1e-300,             0x8000, 0x8000},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint16_t f16 = 0;
        uint16_t bf16 = 0;
        heft__cast(HEFT_DTYPE_F16, &f16, HEFT_DTYPE_F64, &rows[i].value, 1);
        heft__cast(HEFT_DTYPE_BF16, &bf16, HEFT_DTYPE_F64, &rows[i].value, 1);
        if (f16 != rows[i].f16 || bf16 != rows[i].bf16) {
            fail_msg("%s: f16 %04x, bf16 %04x", rows[i].name, f16, bf16);
        }
    }
}

static void double_rounds_to_float(void **state)
{
    (void)state;
    static const struct {
        double value;
        float want;
    } rows[] = {
        {0x1.000001p0,          0x1p0f       }, /* tie to even */
        {0x1.000003p0,          0x1.000004p0f},
        {0x1.000001000001p0,    0x1.000002p0f},
        {0x1.fffffefffffffp127, FLT_MAX      },
        {0x1.ffffffp127,        INFINITY     },
        {-0x1p-149,             -0x1p-149f   },
        {0x1p-150,              0.0f         },
        {0x1.8p-149,            0x1p-148f    },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        float got = 1;
        heft__cast(HEFT_DTYPE_F32, &got, HEFT_DTYPE_F64, &rows[i].value, 1);
        if (bits_of(got) != bits_of(rows[i].want)) {
            fail_msg("%a: %a", rows[i].value, (double)got);
        }
    }
}

/* ---- every pair --------------------------------------------------------------------------- */
static void known_pairs(void **state)
{
    (void)state;
    static const struct {
        heft_dtype from, to;
        bool known;
    } rows[] = {
        {HEFT_DTYPE_F64,          HEFT_DTYPE_BF16,         true },
        {HEFT_DTYPE_F16,          HEFT_DTYPE_F64,          true },
        {HEFT_DTYPE_F8_E8M0FNU,   HEFT_DTYPE_F16,          true },
        {HEFT_DTYPE_F8_E4M3FNUZ,  HEFT_DTYPE_F32,          true },
        {HEFT_DTYPE_I64,          HEFT_DTYPE_I64,          true },
        {HEFT_DTYPE_F4_E2M1FN_X2, HEFT_DTYPE_F4_E2M1FN_X2, true },
        {HEFT_DTYPE_F32,          HEFT_DTYPE_F8_E4M3FN,    true },
        {HEFT_DTYPE_I32,          HEFT_DTYPE_F32,          true },
        {HEFT_DTYPE_F32,          HEFT_DTYPE_I32,          true },
        {HEFT_DTYPE_U64,          HEFT_DTYPE_BOOL,         true },
        {HEFT_DTYPE_BOOL,         HEFT_DTYPE_F8_E8M0FNU,   true },
        {HEFT_DTYPE_U16,          HEFT_DTYPE_C32,          true },
        {HEFT_DTYPE_C128,         HEFT_DTYPE_C64,          true },
        {HEFT_DTYPE_F4_E2M1FN_X2, HEFT_DTYPE_F32,          false},
        {HEFT_DTYPE_F6_E2M3,      HEFT_DTYPE_F32,          false},
        {HEFT_DTYPE_F32,          HEFT_DTYPE_F4_E2M1FN_X2, false},
        {HEFT_DTYPE_QINT8,        HEFT_DTYPE_I8,           false},
        {HEFT_DTYPE_C64,          HEFT_DTYPE_F32,          false},
        {HEFT_DTYPE_NONE,         HEFT_DTYPE_NONE,         false},
        {HEFT_DTYPE_NONE,         HEFT_DTYPE_F32,          false},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        assert_int_equal(heft__cast_known(rows[i].from, rows[i].to), rows[i].known);
        assert_int_equal(heft_cast_known(rows[i].from, rows[i].to), rows[i].known);
    }
}

static void public_cast_refuses_what_it_cannot_do(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        heft_dtype from, to;
        size_t elems;
        int src, dst; /* byte in the buffer; -1: NULL */
        bool good;
    } rows[] = {
        {"apart",                  HEFT_DTYPE_F32,          HEFT_DTYPE_BF16,         4,            0,  32, true },
        {"touching",               HEFT_DTYPE_F32,          HEFT_DTYPE_BF16,         4,            0,  16, true },
        {"touching_from_below",    HEFT_DTYPE_F32,          HEFT_DTYPE_BF16,         4,            8,  0,  true },
        {"one_byte_shared",        HEFT_DTYPE_F32,          HEFT_DTYPE_BF16,         4,            0,  15, false},
        {"one_byte_shared_below",  HEFT_DTYPE_F32,          HEFT_DTYPE_BF16,         4,            7,  0,  false},
        {"in_place_of_one_size",   HEFT_DTYPE_F16,          HEFT_DTYPE_BF16,         4,            0,  0,  true },
        {"in_place_of_two_sizes",  HEFT_DTYPE_F32,          HEFT_DTYPE_BF16,         4,            0,  0,  false},
        {"same_dtype_in_place",    HEFT_DTYPE_I64,          HEFT_DTYPE_I64,          2,            0,  0,  true },
        {"same_dtype_shifted",     HEFT_DTYPE_I64,          HEFT_DTYPE_I64,          2,            0,  8,  false},
        {"nothing_anywhere",       HEFT_DTYPE_F32,          HEFT_DTYPE_BF16,         0,            -1, -1, true },
        {"no_source",              HEFT_DTYPE_F32,          HEFT_DTYPE_BF16,         1,            -1, 0,  false},
        {"no_destination",         HEFT_DTYPE_F32,          HEFT_DTYPE_BF16,         1,            0,  -1, false},
        {"integer_to_float",       HEFT_DTYPE_I32,          HEFT_DTYPE_F32,          4,            0,  32, true },
        {"integer_in_place",       HEFT_DTYPE_I32,          HEFT_DTYPE_F32,          4,            0,  0,  true },
        {"complex_in_place",       HEFT_DTYPE_I64,          HEFT_DTYPE_C64,          4,            0,  0,  true },
        {"complex_to_real",        HEFT_DTYPE_C64,          HEFT_DTYPE_F64,          1,            0,  32, false},
        {"to_four_bits",           HEFT_DTYPE_F32,          HEFT_DTYPE_F4_E2M1FN_X2, 2,            0,  32, false},
        {"no_dtype",               HEFT_DTYPE_NONE,         HEFT_DTYPE_F32,          1,            0,  32, false},
        {"number_is_no_dtype",     (heft_dtype)999,         HEFT_DTYPE_F32,          1,            0,  32, false},
        {"pairs_of_four_bits",     HEFT_DTYPE_F4_E2M1FN_X2, HEFT_DTYPE_F4_E2M1FN_X2, 6,            0,  32, true },
        {"ends_inside_a_byte",     HEFT_DTYPE_F4_E2M1FN_X2, HEFT_DTYPE_F4_E2M1FN_X2, 5,            0,  32, false},
        {"bytes_leave_the_memory", HEFT_DTYPE_F64,          HEFT_DTYPE_F32,          SIZE_MAX / 4, 0,  32, false},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint8_t bytes[64];
        uint8_t before[64];
        heft_error err = {0};
        for (size_t k = 0; k < sizeof bytes; k++) {
            bytes[k] = (uint8_t)(k * 7);
        }
        memcpy(before, bytes, sizeof bytes);
        const heft_status status =
            heft_cast(rows[i].to, rows[i].dst < 0 ? NULL : bytes + rows[i].dst, rows[i].from,
                      rows[i].src < 0 ? NULL : bytes + rows[i].src, rows[i].elems, &err);
        if (status != (rows[i].good ? HEFT_OK : HEFT_INVALID_ARG) || err.status != status) {
            fail_msg("%s: %s %s", rows[i].name, heft_status_name(status), err.message);
        }
        if (!rows[i].good) {
            assert_memory_equal(bytes, before, sizeof bytes);
        } else if (rows[i].src >= 0) {
            uint8_t want[64];
            heft__cast(rows[i].to, want, rows[i].from, before + rows[i].src, rows[i].elems);
            assert_memory_equal(bytes + rows[i].dst, want,
                                rows[i].elems * heft_dtype_bits(rows[i].to) / 8);
        }
    }
}

#define MOST_ELEMS 3000
#define ROOM_BYTES (MOST_ELEMS * 16 + 64)

/* Cast at an odd address, at each level and count: the bytes of the base level, and no byte outside
 * the result. */
static void check_pair(heft_dtype from, heft_dtype to, const uint8_t *source)
{
    static const size_t counts[] = {0, 1, 3, 17, 63, 1024, 1025, MOST_ELEMS};
    static uint8_t want[ROOM_BYTES];
    static uint8_t got[ROOM_BYTES];
    for (size_t k = 0; k < COUNT(counts); k++) {
        size_t bytes = (counts[k] * heft_dtype_bits(to) + 7) / 8;
        heft__lanes_force(HEFT__LEVEL_BASE);
        memset(want, 0xa5, sizeof want);
        heft__cast(to, want + 8, from, source, counts[k]);
        for (int level = 0; level < HEFT__LEVEL_COUNT; level++) {
            for (size_t shift = 0; heft__lanes_force(level) && shift < 2; shift++) {
                memset(got, 0xa5, sizeof got);
                heft__cast(to, got + 8 + shift, from, source, counts[k]);
                bool good = memcmp(got + 8 + shift, want + 8, bytes) == 0 &&
                            got[7 + shift] == 0xa5 && got[8 + shift + bytes] == 0xa5;
                if (!good) {
                    fail_msg("%s to %s, %zu elements, level %d", heft_dtype_name(from),
                             heft_dtype_name(to), counts[k], level);
                }
            }
        }
        if (heft_dtype_bits(from) == heft_dtype_bits(to)) { /* in place */
            memcpy(got + 1, source, bytes);
            heft__cast(to, got + 1, from, got + 1, counts[k]);
            assert_memory_equal(got + 1, want + 8, bytes);
        }
    }
    heft__lanes_force(-1);
}

static void every_pair_is_the_same_on_every_level(void **state)
{
    (void)state;
    static uint8_t source[ROOM_BYTES];
    uint64_t seed = 42;
    for (size_t i = 0; i < sizeof source; i++) {
        source[i] = (uint8_t)(next_random(&seed) >> 32);
    }
    size_t pairs = 0;
    for (int from = 0; from < HEFT_DTYPE_COUNT; from++) {
        for (int to = 0; to < HEFT_DTYPE_COUNT; to++) {
            if (heft__cast_known((heft_dtype)from, (heft_dtype)to)) {
                check_pair((heft_dtype)from, (heft_dtype)to, source + 1);
                pairs++;
            }
        }
    }
    /* 18 real dtypes to 17 others and 3 complex ones, and these among each other */
    assert_int_equal(pairs, HEFT_DTYPE_COUNT - 1 + 18 * 20 + 3 * 2);
}

static void float_to_half_is_the_same_on_every_level(void **state)
{
    (void)state;
    const size_t count = (size_t)1 << 18;
    uint32_t *patterns = malloc(count * sizeof *patterns);
    uint16_t *want = malloc(count * sizeof *want);
    uint16_t *got = malloc(count * sizeof *got);
    assert_true(patterns != NULL && want != NULL && got != NULL);
    for (size_t k = 0; k < COUNT(formats); k++) {
        fill_patterns(patterns, count, &formats[k]);
        heft__lanes_force(HEFT__LEVEL_BASE);
        heft__cast(formats[k].dtype, want, HEFT_DTYPE_F32, patterns, count);
        for (int level = 1; level < HEFT__LEVEL_COUNT; level++) {
            if (heft__lanes_force(level)) {
                heft__cast(formats[k].dtype, got, HEFT_DTYPE_F32, patterns, count);
                assert_memory_equal(got, want, count * sizeof *got);
            }
        }
    }
    heft__lanes_force(-1);
    free(patterns);
    free(want);
    free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(half_types_widen_exactly),
        cmocka_unit_test(byte_types_widen_exactly),
        cmocka_unit_test(half_types_round_as_written_here),
        cmocka_unit_test(nan_stays_a_quiet_nan),
        cmocka_unit_test(half_types_round_to_nearest_even),
        cmocka_unit_test(double_goes_to_half_through_float),
        cmocka_unit_test(double_rounds_to_float),
        cmocka_unit_test(known_pairs),
        cmocka_unit_test(public_cast_refuses_what_it_cannot_do),
        cmocka_unit_test(every_pair_is_the_same_on_every_level),
        cmocka_unit_test(float_to_half_is_the_same_on_every_level),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
