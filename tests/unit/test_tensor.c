/* test_tensor.c - the dtype table, shapes, storages and tensors. */
#include "tensor/tensor.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdlib.h>

#include <cmocka.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define P32 (UINT64_C(1) << 32)

/* ---- dtypes ------------------------------------------------------------------------------- */
static void dtype_parse_knows_every_name(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        heft_dtype dtype;
    } rows[] = {
        {"float32",                HEFT_DTYPE_F32         },
        {"torch.float32",          HEFT_DTYPE_F32         },
        {"f32",                    HEFT_DTYPE_F32         },
        {"F32",                    HEFT_DTYPE_F32         },
        {"float",                  HEFT_DTYPE_F32         },
        {"torch.float",            HEFT_DTYPE_F32         },
        {"fp32",                   HEFT_DTYPE_F32         },
        {"double",                 HEFT_DTYPE_F64         },
        {"half",                   HEFT_DTYPE_F16         },
        {"torch.half",             HEFT_DTYPE_F16         },
        {"fp16",                   HEFT_DTYPE_F16         },
        {"bfloat16",               HEFT_DTYPE_BF16        },
        {"torch.bfloat16",         HEFT_DTYPE_BF16        },
        {"bf16",                   HEFT_DTYPE_BF16        },
        {"BF16",                   HEFT_DTYPE_BF16        },
        {"long",                   HEFT_DTYPE_I64         },
        {"int",                    HEFT_DTYPE_I32         },
        {"short",                  HEFT_DTYPE_I16         },
        {"uint8",                  HEFT_DTYPE_U8          },
        {"bool",                   HEFT_DTYPE_BOOL        },
        {"complex64",              HEFT_DTYPE_C64         },
        {"cdouble",                HEFT_DTYPE_C128        },
        {"float8_e4m3fn",          HEFT_DTYPE_F8_E4M3FN   },
        {"F8_E4M3",                HEFT_DTYPE_F8_E4M3FN   },
        {"torch.float8_e8m0fnu",   HEFT_DTYPE_F8_E8M0FNU  },
        {"torch.float4_e2m1fn_x2", HEFT_DTYPE_F4_E2M1FN_X2},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_dtype dtype = HEFT_DTYPE_NONE;
        heft_status status = heft_dtype_parse(rows[i].text, &dtype, NULL);
        if (status != HEFT_OK || dtype != rows[i].dtype) {
            fail_msg("'%s' gave %s, %s", rows[i].text, heft_status_name(status),
                     heft_dtype_name(dtype));
        }
    }
}

static void dtype_parse_refuses_the_rest(void **state)
{
    (void)state;
    static const char *const rows[] = {
        "",          "torch.",    "none",     "float33",  "Float32",
        "torch.F32", "torch.f32", " float32", "float32 ",
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_error err = {0};
        heft_dtype dtype = HEFT_DTYPE_BITS8;
        heft_status status = heft_dtype_parse(rows[i], &dtype, &err);
        if (status != HEFT_INVALID_ARG || dtype != HEFT_DTYPE_BITS8 ||
            err.status != HEFT_INVALID_ARG || strstr(err.message, "dtype") == NULL) {
            fail_msg("'%s' gave %s", rows[i], heft_status_name(status));
        }
        assert_int_equal(heft_dtype_parse(rows[i], &dtype, NULL), HEFT_INVALID_ARG);
    }
    assert_int_equal(heft_dtype_parse(NULL, &(heft_dtype){0}, NULL), HEFT_INVALID_ARG);
    assert_int_equal(heft_dtype_parse("f32", NULL, NULL), HEFT_INVALID_ARG);
}

static void dtype_names_read_back(void **state)
{
    (void)state;
    for (int i = HEFT_DTYPE_NONE + 1; i < HEFT_DTYPE_COUNT; i++) {
        heft_dtype dtype = (heft_dtype)i;
        heft_dtype back = HEFT_DTYPE_NONE;
        assert_int_equal(heft_dtype_parse(heft_dtype_name(dtype), &back, NULL), HEFT_OK);
        assert_int_equal(back, dtype);
        const char *name = heft_dtype_safetensors_name(dtype);
        assert_int_equal(heft__dtype_from_safetensors(name, strlen(name)),
                         *name != '\0' ? dtype : HEFT_DTYPE_NONE);
        assert_int_equal(heft__dtype_safetensors_rank(dtype) >= 0, *name != '\0');
    }
    assert_string_equal(heft_dtype_name(HEFT_DTYPE_NONE), "none");
    assert_string_equal(heft_dtype_name((heft_dtype)1000), "none");
    assert_int_equal(heft_dtype_bits(HEFT_DTYPE_NONE), 0);
    assert_int_equal(heft__dtype_from_safetensors("F3", 2), HEFT_DTYPE_NONE);
    assert_int_equal(heft__dtype_from_safetensors("F32x", 3), HEFT_DTYPE_F32);
    assert_int_equal(heft__dtype_from_safetensors("f32", 3), HEFT_DTYPE_NONE);
    assert_int_equal(heft__dtype_safetensors_rank(HEFT_DTYPE_NONE), -1);
}

static void dtype_rank_is_the_order_of_safetensors(void **state)
{
    (void)state;
    static const char *const order[] = {
        "BOOL",    "F4",          "F6_E2M3",     "F6_E3M2", "U8",  "I8",  "F8_E5M2", "F8_E4M3",
        "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I16",     "U16", "F16", "BF16",    "I32",
        "U32",     "F32",         "C64",         "F64",     "I64", "U64",
    };
    for (size_t i = 0; i < COUNT(order); i++) {
        heft_dtype dtype = heft__dtype_from_safetensors(order[i], strlen(order[i]));
        assert_int_equal(heft__dtype_safetensors_rank(dtype), i);
    }
}

static void dtype_kinds_and_swaps(void **state)
{
    (void)state;
    static const struct {
        heft_dtype dtype;
        bool floating, is_complex;
        unsigned swap_bytes;
    } rows[] = {
        {HEFT_DTYPE_F64,          true,  false, 8},
        {HEFT_DTYPE_F32,          true,  false, 4},
        {HEFT_DTYPE_BF16,         true,  false, 2},
        {HEFT_DTYPE_F8_E5M2,      true,  false, 1},
        {HEFT_DTYPE_F4_E2M1FN_X2, true,  false, 1},
        {HEFT_DTYPE_F6_E3M2,      true,  false, 1},
        {HEFT_DTYPE_I64,          false, false, 8},
        {HEFT_DTYPE_U16,          false, false, 2},
        {HEFT_DTYPE_BOOL,         false, false, 1},
        {HEFT_DTYPE_C32,          false, true,  2},
        {HEFT_DTYPE_C64,          false, true,  4},
        {HEFT_DTYPE_C128,         false, true,  8},
        {HEFT_DTYPE_QINT32,       false, false, 4},
        {HEFT_DTYPE_QUINT4X2,     false, false, 1},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        assert_int_equal(heft_dtype_is_floating(rows[i].dtype), rows[i].floating);
        assert_int_equal(heft__dtype_is_complex(rows[i].dtype), rows[i].is_complex);
        assert_int_equal(heft__dtype_swap_bytes(rows[i].dtype), rows[i].swap_bytes);
    }
}

static void dtype_bytes_rows(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        heft_dtype dtype;
        uint64_t elems;
        bool good;
        uint64_t bytes;
    } rows[] = {
        {"f32",                   HEFT_DTYPE_F32,          3,               true,  12            },
        {"nothing",               HEFT_DTYPE_F64,          0,               true,  0             },
        {"four_bits_even",        HEFT_DTYPE_F4_E2M1FN_X2, 6,               true,  3             },
        {"four_bits_end_in_byte", HEFT_DTYPE_F4_E2M1FN_X2, 7,               false, 0             },
        {"six_bits_by_four",      HEFT_DTYPE_F6_E2M3,      12,              true,  9             },
        {"six_bits_end_in_byte",  HEFT_DTYPE_F6_E2M3,      13,              false, 0             },
        {"most_bytes",            HEFT_DTYPE_U8,           UINT64_MAX,      true,  UINT64_MAX    },
        {"most_doubles",          HEFT_DTYPE_F64,          UINT64_MAX / 8,  true,  UINT64_MAX - 7},
        {"one_double_too_many",   HEFT_DTYPE_F64,          P32 * (P32 / 8), false, 0             },
        {"none_has_no_size",      HEFT_DTYPE_NONE,         1,               false, 0             },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint64_t bytes = 77;
        bool good = heft__dtype_bytes(rows[i].dtype, rows[i].elems, &bytes);
        if (good != rows[i].good || bytes != (good ? rows[i].bytes : 77)) {
            fail_msg("%s: %d, %llu", rows[i].name, good, (unsigned long long)bytes);
        }
    }
}

/* ---- shapes ------------------------------------------------------------------------------- */
static void shape_products(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t rank;
        uint64_t shape[4];
        bool good;
        uint64_t elems;
    } rows[] = {
        {"scalar",              0, {0},             true,  1                },
        {"matrix",              2, {768, 2304},     true,  UINT64_C(1769472)},
        {"zero_last_overflows", 3, {P32, P32, 0},   false, 0                },
        {"zero_first_is_zero",  3, {0, P32, P32},   true,  0                },
        {"just_fits",           2, {P32, P32 - 1},  true,  P32 * (P32 - 1)  },
        {"one_bit_too_many",    2, {P32, P32},      false, 0                },
        {"largest",             2, {UINT64_MAX, 1}, true,  UINT64_MAX       },
        {"largest_twice",       2, {UINT64_MAX, 2}, false, 0                },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint64_t elems = 77;
        bool good = heft__shape_elems(rows[i].shape, rows[i].rank, &elems);
        if (good != rows[i].good || elems != (good ? rows[i].elems : 77)) {
            fail_msg("%s: %d, %llu", rows[i].name, good, (unsigned long long)elems);
        }
    }
    uint64_t bytes = 77;
    assert_false(heft__shape_bytes(HEFT_DTYPE_F64, (const uint64_t[]){P32, P32 / 8}, 2, &bytes));
    assert_int_equal(bytes, 77);
    assert_true(heft__shape_bytes(HEFT_DTYPE_F16, (const uint64_t[]){3, 5}, 2, &bytes));
    assert_int_equal(bytes, 30);
}

static void shape_equality(void **state)
{
    (void)state;
    const uint64_t a[] = {2, 3};
    const uint64_t b[] = {2, 4};
    assert_true(heft__shape_equal(a, 2, a, 2));
    assert_false(heft__shape_equal(a, 2, b, 2));
    assert_true(heft__shape_equal(a, 1, b, 1));
    assert_false(heft__shape_equal(a, 1, a, 2));
    assert_true(heft__shape_equal(NULL, 0, NULL, 0));
}

static void shape_texts(void **state)
{
    (void)state;
    char text[HEFT__SHAPE_TEXT];
    assert_string_equal(heft__shape_text(NULL, 0, text), "[]");
    assert_string_equal(heft__shape_text((const uint64_t[]){768}, 1, text), "[768]");
    assert_string_equal(heft__shape_text((const uint64_t[]){768, 2304}, 2, text), "[768, 2304]");
    uint64_t many[64];
    for (size_t i = 0; i < COUNT(many); i++) {
        many[i] = UINT64_MAX - i % 2;
    }
    for (uint32_t rank = 1; rank <= COUNT(many); rank++) {
        memset(text, 'x', sizeof text);
        size_t length = strlen(heft__shape_text(many, rank, text));
        assert_true(length < HEFT__SHAPE_TEXT);
        assert_int_equal(text[length - 1], ']');
        assert_int_equal(strstr(text, ", ...]") != NULL, rank > 5);
    }
}

static void shape_strides_row_by_row(void **state)
{
    (void)state;
    int64_t strides[4];
    heft__shape_strides((const uint64_t[]){2, 3, 4}, 3, strides);
    assert_int_equal(strides[0], 12);
    assert_int_equal(strides[1], 4);
    assert_int_equal(strides[2], 1);
    heft__shape_strides((const uint64_t[]){2, 0, 4}, 3, strides);
    assert_int_equal(strides[0], 4);
    heft__shape_strides((const uint64_t[]){0, P32, P32, P32}, 4, strides);
    assert_int_equal(strides[0], INT64_MAX);
    assert_int_equal(strides[1], INT64_MAX);
    assert_int_equal(strides[2], (int64_t)P32);
    heft__shape_strides(NULL, 0, strides);
}

/* ---- an allocator that fails at the n-th call ----------------------------------------------- */
struct scarce {
    size_t calls, fail_at, live_blocks;
};

static void *scarce_alloc(void *user, size_t bytes)
{
    struct scarce *scarce = user;
    if (scarce->calls++ == scarce->fail_at) {
        return NULL;
    }
    scarce->live_blocks++;
    return malloc(bytes);
}

static void scarce_free(void *user, void *block, size_t bytes)
{
    struct scarce *scarce = user;
    (void)bytes;
    scarce->live_blocks--;
    free(block);
}

static heft_ctx *scarce_ctx(struct scarce *scarce)
{
    *scarce = (struct scarce){.fail_at = SIZE_MAX};
    heft_allocator allocator = {scarce_alloc, NULL, scarce_free, scarce};
    heft_ctx *ctx = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .allocator = &allocator));
    assert_non_null(ctx);
    return ctx;
}

static void count_release(void *user)
{
    atomic_fetch_add((atomic_int *)user, 1);
}

/* ---- storage ------------------------------------------------------------------------------ */
static void storage_calls_release_once(void **state)
{
    (void)state;
    heft_ctx *ctx = heft_ctx_new(NULL);
    atomic_int released = 0;
    uint8_t bytes[16];
    heft_storage *storage = NULL;
    assert_int_equal(
        heft_storage_wrap(ctx, bytes, sizeof bytes, count_release, &released, &storage, NULL),
        HEFT_OK);
    assert_ptr_equal(heft_storage_data(storage), bytes);
    assert_int_equal(heft_storage_bytes(storage), sizeof bytes);
    assert_ptr_equal(heft_storage_ref(storage), storage);
    heft_storage_unref(storage);
    assert_int_equal(released, 0);
    heft_ctx_free(ctx); /* the storage keeps it */
    heft_storage_unref(storage);
    assert_int_equal(released, 1);
    heft_storage_unref(NULL);
    heft_tensor_free(NULL);
}

static void storage_wrap_wants_data(void **state)
{
    (void)state;
    heft_ctx *ctx = heft_ctx_new(NULL);
    atomic_int released = 0;
    heft_storage *storage = NULL;
    heft_error err = {0};
    assert_int_equal(heft_storage_wrap(ctx, NULL, 1, count_release, &released, &storage, &err),
                     HEFT_INVALID_ARG);
    assert_null(storage);
    assert_int_equal(released, 0);
    assert_int_equal(heft_storage_wrap(NULL, &released, 1, NULL, NULL, &storage, NULL),
                     HEFT_INVALID_ARG);
    assert_int_equal(heft_storage_wrap(ctx, NULL, 0, NULL, NULL, &storage, NULL), HEFT_OK);
    heft_storage_unref(storage);
    heft_ctx_free(ctx);
}

static void storage_counts_its_bytes(void **state)
{
    (void)state;
    heft_ctx *ctx = heft_ctx_new(NULL);
    uint64_t before = 0;
    uint64_t live = 0;
    heft_ctx_memory(ctx, &before, NULL);
    static const uint64_t sizes[] = {0, 1, 4096, UINT64_C(9) << 20};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        heft_storage *storage = NULL;
        assert_int_equal(heft__storage_new(ctx, sizes[i], &storage, NULL), HEFT_OK);
        heft_ctx_memory(ctx, &live, NULL);
        assert_true(live >= before + sizes[i] && live < before + sizes[i] + 256);
        memset(heft_storage_data(storage), 1, (size_t)sizes[i]);
        heft_storage_unref(storage);
        heft_ctx_memory(ctx, &live, NULL);
        assert_int_equal(live, before);
    }
    heft_ctx_free(ctx);
}

static void storage_and_tensor_survive_no_memory(void **state)
{
    (void)state;
    struct scarce scarce;
    heft_ctx *ctx = scarce_ctx(&scarce);
    size_t base_blocks = scarce.live_blocks;
    const uint64_t shape[] = {2, 3};
    heft_status status = HEFT_NOMEM;
    size_t n = 0;
    for (; status == HEFT_NOMEM && n < 10; n++) {
        heft_storage *storage = NULL;
        heft_tensor *tensor = NULL;
        heft_error err = {0};
        scarce.calls = 0;
        scarce.fail_at = n;
        status = heft__storage_new(ctx, 24, &storage, &err);
        if (status == HEFT_OK) {
            status = heft_tensor_new(
                storage,
                &HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_F32, .rank = 2, .shape = shape),
                &tensor, &err);
        } else {
            assert_null(storage);
        }
        assert_int_equal(err.status, status);
        assert_int_equal(tensor != NULL, status == HEFT_OK);
        heft_tensor_free(tensor);
        heft_storage_unref(storage);
        assert_int_equal(scarce.live_blocks, base_blocks);
    }
    assert_int_equal(status, HEFT_OK);
    assert_int_equal(n, 4); /* bytes, storage, tensor */
    for (n = 0, status = HEFT_NOMEM; status == HEFT_NOMEM && n < 10; n++) {
        atomic_int released = 0;
        heft_storage *storage = NULL;
        scarce.calls = 0;
        scarce.fail_at = n;
        status = heft_storage_wrap(ctx, &n, sizeof n, count_release, &released, &storage, NULL);
        heft_storage_unref(storage);
        assert_int_equal(released, status == HEFT_OK);
        assert_int_equal(scarce.live_blocks, base_blocks);
    }
    assert_int_equal(n, 2);
    heft_ctx_free(ctx);
    assert_int_equal(scarce.live_blocks, 0);
}

/* ---- tensors ------------------------------------------------------------------------------ */
static void tensor_outlives_storage_and_context(void **state)
{
    (void)state;
    struct scarce scarce;
    heft_ctx *ctx = scarce_ctx(&scarce);
    heft_storage *storage = NULL;
    heft_tensor *a = NULL;
    heft_tensor *b = NULL;
    uint64_t shape[] = {2, 3};
    assert_int_equal(heft__storage_new(ctx, 64, &storage, NULL), HEFT_OK);
    const heft_tensor_spec matrix = HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_F32,
                                                 .rank = 2, .shape = shape, .offset_bytes = 40);
    const heft_tensor_spec byte =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_U8, .offset_bytes = 63);
    assert_int_equal(heft_tensor_new(storage, &matrix, &a, NULL), HEFT_OK);
    assert_int_equal(heft_tensor_new(storage, &byte, &b, NULL), HEFT_OK);
    shape[0] = 9; /* the tensor has its own copy */
    assert_ptr_equal(a->data, (uint8_t *)heft_storage_data(storage) + 40);
    heft_storage_unref(storage);
    heft_ctx_free(ctx);
    assert_int_equal(a->rank, 2);
    assert_int_equal(a->shape[0], 2);
    assert_int_equal(a->strides[0], 3);
    assert_int_equal(a->strides[1], 1);
    assert_int_equal(a->size_bytes, 24);
    assert_int_equal(a->offset_bytes, 40);
    assert_int_equal(a->alignment, 8); /* of malloc's block of 64 bytes, 40 on */
    assert_int_equal(b->alignment, 1);
    assert_int_equal(a->flags, HEFT_TENSOR_WRITABLE);
    assert_int_equal(a->device, HEFT_DEVICE_CPU);
    assert_int_equal(b->size_bytes, 1);
    memset(a->data, 1, 24);
    heft_tensor_free(a);
    *(uint8_t *)b->data = 2;
    heft_tensor_free(b);
    assert_int_equal(scarce.live_blocks, 0);
}

static void tensor_must_lie_in_its_storage(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        heft_dtype dtype;
        uint32_t rank;
        uint64_t shape[3];
        int64_t strides[3]; /* all 0: row by row */
        uint64_t offset;
        bool good;
    } rows[] = {
        {"whole",                  HEFT_DTYPE_F32,          2, {4, 4},         {0},                    0,          true },
        {"one_element_too_many",   HEFT_DTYPE_F32,          1, {17},           {0},                    0,          false},
        {"one_byte_past_end",      HEFT_DTYPE_U8,           1, {64},           {0},                    1,          false},
        {"offset_past_end",        HEFT_DTYPE_U8,           1, {1},            {0},                    64,         false},
        {"empty_at_end",           HEFT_DTYPE_F32,          1, {0},            {0},                    64,         true },
        {"empty_past_end",         HEFT_DTYPE_F32,          1, {0},            {0},                    65,         false},
        {"offset_overflows",       HEFT_DTYPE_F32,          1, {1},            {0},                    UINT64_MAX, false},
        {"elements_overflow",      HEFT_DTYPE_F32,          2, {P32, P32},     {0},                    0,          false},
        {"bytes_overflow",         HEFT_DTYPE_F64,          2, {P32, P32 / 2}, {0},                    0,          false},
        {"ends_inside_a_byte",     HEFT_DTYPE_F4_E2M1FN_X2, 1, {3},            {0},                    0,          false},
        {"transposed",             HEFT_DTYPE_F32,          2, {4, 4},         {1, 4},                 0,          true },
        {"transposed_past_end",    HEFT_DTYPE_F32,          2, {4, 4},         {1, 4},                 4,          false},
        {"every_second",           HEFT_DTYPE_F32,          1, {8},            {2},                    4,          true },
        {"every_second_past_end",  HEFT_DTYPE_F32,          1, {9},            {2},                    0,          false},
        {"negative_stride",        HEFT_DTYPE_F32,          1, {4},            {-1},                   32,         false},
        {"stride_overflows",       HEFT_DTYPE_F32,          2, {3, 3},         {INT64_MAX, INT64_MAX}, 0,          false},
        {"empty_with_wide_stride", HEFT_DTYPE_F32,          2, {0, 2},         {1, 1000},              0,          true },
        {"same_element_again",     HEFT_DTYPE_F32,          2, {9, 16},        {0, 1},                 0,          true },
    };
    heft_ctx *ctx = heft_ctx_new(NULL);
    heft_storage *storage = NULL;
    assert_int_equal(heft__storage_new(ctx, 64, &storage, NULL), HEFT_OK);
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_tensor *tensor = NULL;
        heft_error err = {0};
        bool strided = rows[i].strides[0] != 0 || rows[i].strides[1] != 0;
        const heft_tensor_spec spec = HEFT_OPTIONS(
            heft_tensor_spec, .dtype = rows[i].dtype, .rank = rows[i].rank, .shape = rows[i].shape,
            .strides = strided ? rows[i].strides : NULL, .offset_bytes = rows[i].offset);
        heft_status status = heft_tensor_new(storage, &spec, &tensor, &err);
        if (status != (rows[i].good ? HEFT_OK : HEFT_INVALID_ARG) || err.status != status) {
            fail_msg("%s: %s %s", rows[i].name, heft_status_name(status), err.message);
        }
        assert_int_equal(tensor != NULL, rows[i].good);
        heft_tensor_free(tensor);
    }
    heft_storage_unref(storage);
    heft_ctx_free(ctx);
}

static void tensor_spec_is_checked(void **state)
{
    (void)state;
    heft_ctx *ctx = heft_ctx_new(NULL);
    heft_storage *storage = NULL;
    heft_tensor *tensor = NULL;
    const uint64_t ones[65] = {1};
    assert_int_equal(heft__storage_new(ctx, 64, &storage, NULL), HEFT_OK);
    const heft_tensor_spec good = HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_U8);
    static const struct {
        const char *name;
        heft_dtype dtype;
        uint32_t rank;
        bool has_size, has_shape;
        heft_status status;
    } rows[] = {
        {"no_size",        HEFT_DTYPE_U8,   0,          false, true,  HEFT_INVALID_ARG},
        {"no_dtype",       HEFT_DTYPE_NONE, 0,          true,  true,  HEFT_INVALID_ARG},
        {"no_shape",       HEFT_DTYPE_U8,   1,          true,  false, HEFT_INVALID_ARG},
        {"rank_too_high",  HEFT_DTYPE_U8,   65,         true,  true,  HEFT_LIMIT      },
        {"rank_is_absurd", HEFT_DTYPE_U8,   UINT32_MAX, true,  true,  HEFT_LIMIT      },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_error err = {0};
        const heft_tensor_spec spec = {.struct_size = rows[i].has_size ? sizeof spec : 0,
                                       .dtype = rows[i].dtype,
                                       .rank = rows[i].rank,
                                       .shape = rows[i].has_shape ? ones : NULL};
        heft_status status = heft_tensor_new(storage, &spec, &tensor, &err);
        if (status != rows[i].status || err.status != status || tensor != NULL) {
            fail_msg("%s: %s %s", rows[i].name, heft_status_name(status), err.message);
        }
    }
    assert_int_equal(heft_tensor_new(NULL, &good, &tensor, NULL), HEFT_INVALID_ARG);
    assert_int_equal(heft_tensor_new(storage, NULL, &tensor, NULL), HEFT_INVALID_ARG);
    assert_int_equal(heft_tensor_new(storage, &good, NULL, NULL), HEFT_INVALID_ARG);
    heft_storage_unref(storage);
    heft_ctx_free(ctx);
}

static void tensor_says_what_its_storage_allows(void **state)
{
    (void)state;
    heft_ctx *ctx = heft_ctx_new(NULL);
    static _Alignas(4096) uint8_t page[8192];
    static const uint32_t flags[] = {0, HEFT_TENSOR_WRITABLE, HEFT_TENSOR_MAPPED,
                                     HEFT_TENSOR_MAPPED | HEFT_TENSOR_WRITABLE, HEFT_TENSOR_SHARED};
    static const struct {
        uint64_t offset;
        uint32_t alignment;
    } rows[] = {
        {0,    4096},
        {1,    1   },
        {6,    2   },
        {64,   64  },
        {4096, 4096},
        {2048, 2048},
        {4100, 4   },
    };
    const uint64_t shape[] = {1};
    for (size_t i = 0; i < COUNT(flags); i++) {
        heft_storage *storage = NULL;
        const heft__memory memory = {.data = page, .bytes = sizeof page, .flags = flags[i]};
        assert_int_equal(heft__storage_make(ctx, &memory, &storage, NULL), HEFT_OK);
        assert_int_equal(heft_storage_flags(storage), flags[i]);
        for (size_t k = 0; k < COUNT(rows); k++) {
            heft_tensor *tensor = NULL;
            const heft_tensor_spec spec =
                HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_U8, .rank = 1, .shape = shape,
                             .offset_bytes = rows[k].offset);
            assert_int_equal(heft_tensor_new(storage, &spec, &tensor, NULL), HEFT_OK);
            assert_int_equal(tensor->flags, flags[i]);
            assert_int_equal(tensor->offset_bytes, rows[k].offset);
            assert_int_equal(tensor->alignment, rows[k].alignment);
            heft_tensor_free(tensor);
        }
        heft_storage_unref(storage);
    }
    heft_storage *storage = NULL;
    assert_int_equal(heft_storage_wrap_const(ctx, page, 8, NULL, NULL, &storage, NULL), HEFT_OK);
    assert_int_equal(heft_storage_flags(storage), 0);
    assert_ptr_equal(heft_storage_data(storage), page);
    heft_storage_unref(storage);
    assert_int_equal(heft_storage_wrap_const(ctx, NULL, 1, NULL, NULL, &storage, NULL),
                     HEFT_INVALID_ARG);
    assert_int_equal(heft_storage_wrap(ctx, page, 8, NULL, NULL, &storage, NULL), HEFT_OK);
    assert_int_equal(heft_storage_flags(storage), HEFT_TENSOR_WRITABLE);
    heft_storage_unref(storage);
    heft_ctx_free(ctx);
}

/* ---- threads ------------------------------------------------------------------------------ */
#define THREADS 4
#define ROUNDS 2000

/* Every thread writes a byte of its own, the release reads them all: a race if dropping did not
 * order the two. */
struct watched {
    uint8_t bytes[THREADS];
    int sum, released;
};

static void sum_bytes(void *user)
{
    struct watched *watched = user;
    watched->released++;
    for (int i = 0; i < THREADS; i++) {
        watched->sum += watched->bytes[i];
    }
}

static void *ref_and_unref(void *user)
{
    heft_storage *storage = user;
    for (int i = 0; i < ROUNDS; i++) {
        heft_storage_unref(heft_storage_ref(storage));
    }
    heft_storage_unref(storage);
    return NULL;
}

static void *write_and_free(void *user)
{
    heft_tensor *tensor = user;
    *(uint8_t *)tensor->data = 1;
    heft_tensor_free(tensor);
    return NULL;
}

static void drop_by_many_threads(void)
{
    heft_ctx *ctx = heft_ctx_new(NULL);
    struct watched watched = {0};
    heft_storage *storage = NULL;
    heft_tensor *tensors[THREADS] = {NULL};
    pthread_t threads[2 * THREADS];
    assert_int_equal(
        heft_storage_wrap(ctx, watched.bytes, THREADS, sum_bytes, &watched, &storage, NULL),
        HEFT_OK);
    for (int i = 0; i < THREADS; i++) {
        const heft_tensor_spec spec =
            HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_U8, .offset_bytes = (uint64_t)i);
        assert_int_equal(heft_tensor_new(storage, &spec, &tensors[i], NULL), HEFT_OK);
        heft_storage_ref(storage);
    }
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[2 * i], NULL, ref_and_unref, storage), 0);
        assert_int_equal(pthread_create(&threads[2 * i + 1], NULL, write_and_free, tensors[i]), 0);
    }
    heft_storage_unref(storage);
    heft_ctx_free(ctx);
    for (int i = 0; i < 2 * THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(watched.released, 1);
    assert_int_equal(watched.sum, THREADS);
}

static void storage_is_dropped_by_many_threads(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        drop_by_many_threads();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dtype_parse_knows_every_name),
        cmocka_unit_test(dtype_parse_refuses_the_rest),
        cmocka_unit_test(dtype_names_read_back),
        cmocka_unit_test(dtype_rank_is_the_order_of_safetensors),
        cmocka_unit_test(dtype_kinds_and_swaps),
        cmocka_unit_test(dtype_bytes_rows),
        cmocka_unit_test(shape_products),
        cmocka_unit_test(shape_equality),
        cmocka_unit_test(shape_texts),
        cmocka_unit_test(shape_strides_row_by_row),
        cmocka_unit_test(storage_calls_release_once),
        cmocka_unit_test(storage_wrap_wants_data),
        cmocka_unit_test(storage_counts_its_bytes),
        cmocka_unit_test(storage_and_tensor_survive_no_memory),
        cmocka_unit_test(tensor_outlives_storage_and_context),
        cmocka_unit_test(tensor_must_lie_in_its_storage),
        cmocka_unit_test(tensor_spec_is_checked),
        cmocka_unit_test(tensor_says_what_its_storage_allows),
        cmocka_unit_test(storage_is_dropped_by_many_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
