/* test_cast_table.c - casts of numbers at the edges, for every pair of dtypes: what PyTorch's copy_()
 * gives (tests/data/casts), and where PyTorch gives no one answer, what heft documents. */
#include "tensor/lanes.h"

#include <math.h>
#include <stdlib.h>

#include "support.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define PARTS_MOST 64
#define ROOM_BYTES (PARTS_MOST * 16)

/* ---- bits ------------------------------------------------------------------------------------ */
static unsigned part_bytes(heft_dtype dtype)
{
    return heft__dtype_swap_bytes(dtype);
}

static uint64_t get_bits(const uint8_t *bytes, unsigned width)
{
    uint8_t one;
    uint16_t two;
    uint32_t four;
    uint64_t eight = 0;
    if (width == 1) {
        memcpy(&one, bytes, 1);
        return one;
    }
    if (width == 2) {
        memcpy(&two, bytes, 2);
        return two;
    }
    if (width == 4) {
        memcpy(&four, bytes, 4);
        return four;
    }
    memcpy(&eight, bytes, 8);
    return eight;
}

static void put_bits(uint8_t *bytes, unsigned width, uint64_t bits)
{
    const uint8_t one = (uint8_t)bits;
    const uint16_t two = (uint16_t)bits;
    const uint32_t four = (uint32_t)bits;
    const void *from = width == 1   ? (const void *)&one
                       : width == 2 ? (const void *)&two
                       : width == 4 ? (const void *)&four
                                    : (const void *)&bits;
    memcpy(bytes, from, width);
}

/* Of one part of a number. */
static bool is_nan_part(heft_dtype dtype, const uint8_t *bytes)
{
    const heft_dtype part = dtype == HEFT_DTYPE_C32    ? HEFT_DTYPE_F16
                            : dtype == HEFT_DTYPE_C64  ? HEFT_DTYPE_F32
                            : dtype == HEFT_DTYPE_C128 ? HEFT_DTYPE_F64
                                                       : dtype;
    double value = 0;
    if (heft_dtype_is_floating(part)) {
        heft__cast(HEFT_DTYPE_F64, &value, part, bytes, 1);
    }
    return isnan(value) != 0;
}

/* ---- the table ------------------------------------------------------------------------------- */
struct row {
    heft_dtype dtype;
    size_t parts;
    uint8_t bytes[ROOM_BYTES];
};

static heft_dtype read_dtype(char **rest)
{
    heft_dtype dtype = HEFT_DTYPE_NONE;
    heft_error err = {0};
    test_expect_status(heft_dtype_parse(strtok_r(NULL, " ", rest), &dtype, &err), HEFT_OK, &err,
                       "a dtype of the table");
    return dtype;
}

static void read_numbers(struct row *row, char **rest)
{
    *row = (struct row){.dtype = read_dtype(rest)};
    for (char *word; (word = strtok_r(NULL, " ", rest)) != NULL; row->parts++) {
        assert_true(row->parts < PARTS_MOST);
        put_bits(row->bytes + row->parts * part_bytes(row->dtype), part_bytes(row->dtype),
                 strtoull(word, NULL, 16));
    }
}

/* Cast all at once and one at a time, so that the ends of the loops take part. */
static void cast_row(const struct row *from, heft_dtype to, bool single, uint8_t *dst)
{
    const size_t elems = from->parts / (heft__dtype_is_complex(from->dtype) ? 2 : 1);
    const size_t from_bytes = heft_dtype_bits(from->dtype) / 8, to_bytes = heft_dtype_bits(to) / 8;
    for (size_t i = 0; i < (single ? elems : 1); i++) {
        heft__cast(to, dst + i * to_bytes, from->dtype, from->bytes + i * from_bytes,
                   single ? 1 : elems);
    }
}

static void check_line(const struct row *from, heft_dtype to, char *rest, bool single)
{
    uint8_t got[ROOM_BYTES];
    const unsigned width = part_bytes(to);
    size_t at = 0;
    cast_row(from, to, single, got);
    for (char *word; (word = strtok_r(NULL, " ", &rest)) != NULL; at++) {
        const uint8_t *bytes = got + at * width;
        const bool good =
            strcmp(word, "?") == 0 ||
            (strcmp(word, "nan") == 0 ? is_nan_part(to, bytes)
                                      : get_bits(bytes, width) == strtoull(word, NULL, 16));
        if (!good) {
            fail_msg("%s to %s, part %zu: %llx, not %s", heft_dtype_name(from->dtype),
                     heft_dtype_name(to), at, (unsigned long long)get_bits(bytes, width), word);
        }
    }
    const bool complex = heft__dtype_is_complex(to) && !heft__dtype_is_complex(from->dtype);
    assert_int_equal(at, from->parts * (complex ? 2 : 1));
}

static size_t check_table(bool single)
{
    char *text = test_read_file(HEFT_TEST_DATA "/casts/casts.txt", NULL);
    char *next = NULL;
    struct row from = {0};
    size_t pairs = 0;
    for (char *line = strtok_r(text, "\n", &next); line; line = strtok_r(NULL, "\n", &next)) {
        char *rest = NULL;
        const char *word = strtok_r(line, " ", &rest);
        if (strcmp(word, "from") == 0) {
            read_numbers(&from, &rest);
        } else if (strcmp(word, "to") == 0) {
            const heft_dtype to = read_dtype(&rest);
            check_line(&from, to, rest, single);
            pairs++;
        }
    }
    free(text);
    return pairs;
}

static void every_pair_as_pytorch(void **state)
{
    (void)state;
    for (int level = 0; level < HEFT__LEVEL_COUNT; level++) {
        if (heft__lanes_force(level)) {
            /* 18 real dtypes to 17 others and 3 complex, and these among each other */
            assert_int_equal(check_table(false), 18 * 20 + 3 * 2);
            assert_int_equal(check_table(true), 18 * 20 + 3 * 2);
        }
    }
    heft__lanes_force(-1);
}

/* ---- what C leaves open, and PyTorch with it --------------------------------------------------- */
static void floats_that_no_integer_holds(void **state)
{
    (void)state;
    static const struct {
        double value;
        uint64_t i64, u64;
        uint32_t i32, u32;
        uint16_t i16, u16;
        uint8_t i8, u8;
    } rows[] = {
        {(double)NAN,       UINT64_C(1) << 63,       UINT64_C(1) << 63,       0x80000000, 0,          0,      0,      0,    0},
        {-(double)NAN,      UINT64_C(1) << 63,       UINT64_C(1) << 63,       0x80000000, 0,          0,      0,      0,    0},
        {(double)INFINITY,  UINT64_C(1) << 63,       0,                       0x80000000, 0,          0,      0,      0,    0},
        {-(double)INFINITY, UINT64_C(1) << 63,       UINT64_C(1) << 63,       0x80000000, 0,          0,      0,      0,    0},
        {0x1p63,            UINT64_C(1) << 63,       UINT64_C(1) << 63,       0x80000000, 0,          0,      0,      0,    0},
        {0x1.8p63,          UINT64_C(1) << 63,       UINT64_C(3) << 62,       0x80000000, 0,          0,      0,      0,    0},
        {0x1p64,            UINT64_C(1) << 63,       0,                       0x80000000, 0,          0,      0,      0,    0},
        {-0x1p64,           UINT64_C(1) << 63,       UINT64_C(1) << 63,       0x80000000, 0,          0,      0,      0,    0},
        {-0x1p40,           0 - (UINT64_C(1) << 40), 0 - (UINT64_C(1) << 40), 0x80000000, 0,          0,      0,      0,    0},
        {-0x1.8p31,         0 - (UINT64_C(3) << 30), 0 - (UINT64_C(3) << 30), 0x80000000, 0x40000000, 0,      0,
         0,                                                                                                                 0},
        {0x1.8p32,          UINT64_C(3) << 31,       UINT64_C(3) << 31,       0x80000000, 0x80000000, 0,      0,      0,    0},
        {-300.5,            0 - UINT64_C(300),       0 - UINT64_C(300),       0xfffffed4, 0xfffffed4, 0xfed4, 0xfed4, 0xd4,
         0xd4                                                                                                                },
    };
    for (int level = 0; level < HEFT__LEVEL_COUNT; level++) {
        for (size_t i = 0; heft__lanes_force(level) && i < COUNT(rows); i++) {
            const float narrow = (float)rows[i].value;
            const struct {
                heft_dtype dtype;
                uint64_t want;
            } targets[] = {
                {HEFT_DTYPE_I64, rows[i].i64},
                {HEFT_DTYPE_U64, rows[i].u64},
                {HEFT_DTYPE_I32, rows[i].i32},
                {HEFT_DTYPE_U32, rows[i].u32},
                {HEFT_DTYPE_I16, rows[i].i16},
                {HEFT_DTYPE_U16, rows[i].u16},
                {HEFT_DTYPE_I8,  rows[i].i8 },
                {HEFT_DTYPE_U8,  rows[i].u8 },
            };
            for (size_t k = 0; k < COUNT(targets); k++) {
                uint8_t wide[8] = {0}, small[8] = {0};
                const unsigned width = heft_dtype_bits(targets[k].dtype) / 8;
                heft__cast(targets[k].dtype, wide, HEFT_DTYPE_F64, &rows[i].value, 1);
                heft__cast(targets[k].dtype, small, HEFT_DTYPE_F32, &narrow, 1);
                if (get_bits(wide, width) != targets[k].want ||
                    get_bits(small, width) != targets[k].want) {
                    fail_msg("%a to %s at level %d: %llx and %llx, not %llx", rows[i].value,
                             heft_dtype_name(targets[k].dtype), level,
                             (unsigned long long)get_bits(wide, width),
                             (unsigned long long)get_bits(small, width),
                             (unsigned long long)targets[k].want);
                }
            }
        }
    }
    heft__lanes_force(-1);
}

/* A file may hold any byte for a bool. */
static void any_byte_but_zero_is_true(void **state)
{
    (void)state;
    const uint8_t bytes[4] = {0, 1, 2, 255};
    float floats[4];
    int64_t integers[4];
    uint8_t same[4];
    heft__cast(HEFT_DTYPE_F32, floats, HEFT_DTYPE_BOOL, bytes, 4);
    heft__cast(HEFT_DTYPE_I64, integers, HEFT_DTYPE_BOOL, bytes, 4);
    heft__cast(HEFT_DTYPE_BOOL, same, HEFT_DTYPE_BOOL, bytes, 4);
    for (size_t i = 0; i < 4; i++) {
        assert_true(floats[i] == (i ? 1.0f : 0.0f));
        assert_int_equal(integers[i], i != 0);
    }
    assert_memory_equal(same, bytes, 4);
}

static void refusals_say_why(void **state)
{
    (void)state;
    static const struct {
        heft_dtype from, to;
        const char *words;
    } rows[] = {
        {HEFT_DTYPE_C64,          HEFT_DTYPE_F32,
         "complex64 cannot be cast to float32: the imaginary part would be lost"           },
        {HEFT_DTYPE_C32,          HEFT_DTYPE_BOOL,
         "complex32 cannot be cast to bool: the imaginary part would be lost"              },
        {HEFT_DTYPE_C128,         HEFT_DTYPE_I64,
         "complex128 cannot be cast to int64: the imaginary part would be lost"            },
        {HEFT_DTYPE_F4_E2M1FN_X2, HEFT_DTYPE_F32,
         "float4_e2m1fn_x2 cannot be cast to float32: the values to cast share bytes"      },
        {HEFT_DTYPE_F32,          HEFT_DTYPE_F4_E2M1FN_X2,
         "float32 cannot be cast to float4_e2m1fn_x2: the results would share bytes"       },
        {HEFT_DTYPE_F6_E2M3,      HEFT_DTYPE_BF16,
         "float6_e2m3 cannot be cast to bfloat16: the values to cast share bytes"          },
        {HEFT_DTYPE_QINT8,        HEFT_DTYPE_F32,
         "qint8 cannot be cast to float32: what is stored are codes, not numbers"          },
        {HEFT_DTYPE_U8,           HEFT_DTYPE_BITS8,
         "uint8 cannot be cast to bits8: it has codes, not numbers"                        },
        {HEFT_DTYPE_NONE,         HEFT_DTYPE_F32,          "none cannot be cast to float32"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_error err = {0};
        assert_int_equal(heft__cast_check(rows[i].from, rows[i].to, HEFT_UNSUPPORTED, &err),
                         HEFT_UNSUPPORTED);
        assert_string_equal(err.message, rows[i].words);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pair_as_pytorch),
        cmocka_unit_test(floats_that_no_integer_holds),
        cmocka_unit_test(any_byte_but_zero_is_true),
        cmocka_unit_test(refusals_say_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
