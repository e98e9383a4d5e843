/* test_dlpack.c - every field of a DLPack tensor, what keeps what alive, and what DLPack cannot
 * represent. The other side of the contract is tests/interop/test_dlpack.py. */
#include "support.h"
#include "tensor/tensor.h"

#include <heft/dlpack.h>

#include <pthread.h>
#include <stdatomic.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define STORAGE_BYTES 256

static heft_ctx *ctx;

static heft_tensor *make_tensor(heft_storage *storage, heft_dtype dtype, uint32_t rank,
                                const uint64_t *shape, const int64_t *strides, uint64_t offset)
{
    heft_tensor *tensor = NULL;
    heft_error err = {0};
    const heft_tensor_spec spec =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = dtype, .rank = rank, .shape = shape,
                     .strides = strides, .offset_bytes = offset);
    test_expect_status(heft_tensor_new(storage, &spec, &tensor, &err), HEFT_OK, &err,
                       heft_dtype_name(dtype));
    return tensor;
}

/* ---- dtypes ---------------------------------------------------------------------------------- */
static const struct {
    heft_dtype dtype;
    uint8_t code, bits;
    uint16_t lanes; /* 0: DLPack does not have it */
} types[] = {
    {HEFT_DTYPE_F32,          2,  32,  1},
    {HEFT_DTYPE_F64,          2,  64,  1},
    {HEFT_DTYPE_F16,          2,  16,  1},
    {HEFT_DTYPE_BF16,         4,  16,  1},
    {HEFT_DTYPE_I64,          0,  64,  1},
    {HEFT_DTYPE_I32,          0,  32,  1},
    {HEFT_DTYPE_I16,          0,  16,  1},
    {HEFT_DTYPE_I8,           0,  8,   1},
    {HEFT_DTYPE_U8,           1,  8,   1},
    {HEFT_DTYPE_U16,          1,  16,  1},
    {HEFT_DTYPE_U32,          1,  32,  1},
    {HEFT_DTYPE_U64,          1,  64,  1},
    {HEFT_DTYPE_BOOL,         6,  8,   1},
    {HEFT_DTYPE_C32,          5,  32,  1},
    {HEFT_DTYPE_C64,          5,  64,  1},
    {HEFT_DTYPE_C128,         5,  128, 1},
    {HEFT_DTYPE_F8_E4M3FN,    10, 8,   1},
    {HEFT_DTYPE_F8_E5M2,      12, 8,   1},
    {HEFT_DTYPE_F8_E4M3FNUZ,  11, 8,   1},
    {HEFT_DTYPE_F8_E5M2FNUZ,  13, 8,   1},
    {HEFT_DTYPE_F8_E8M0FNU,   14, 8,   1},
    {HEFT_DTYPE_F4_E2M1FN_X2, 17, 4,   2},
    {HEFT_DTYPE_F6_E2M3,      15, 6,   1},
    {HEFT_DTYPE_F6_E3M2,      16, 6,   1},
    {HEFT_DTYPE_QINT8,        0,  0,   0},
    {HEFT_DTYPE_QUINT8,       0,  0,   0},
    {HEFT_DTYPE_QINT32,       0,  0,   0},
    {HEFT_DTYPE_QUINT4X2,     0,  0,   0},
    {HEFT_DTYPE_QUINT2X4,     0,  0,   0},
    {HEFT_DTYPE_BITS8,        0,  0,   0},
    {HEFT_DTYPE_BITS16,       0,  0,   0},
    {HEFT_DTYPE_BITS1X8,      0,  0,   0},
    {HEFT_DTYPE_BITS2X4,      0,  0,   0},
    {HEFT_DTYPE_BITS4X2,      0,  0,   0},
};

static void every_dtype_has_its_code(void **state)
{
    static uint8_t bytes[STORAGE_BYTES];
    static const uint64_t shape[] = {2, 4};
    heft_storage *storage = NULL;
    (void)state;
    assert_int_equal(COUNT(types), HEFT_DTYPE_COUNT - 1);
    assert_int_equal(heft_storage_wrap(ctx, bytes, sizeof bytes, NULL, NULL, &storage, NULL),
                     HEFT_OK);
    for (size_t i = 0; i < COUNT(types); i++) {
        heft_error err = {0};
        DLManagedTensorVersioned *managed = NULL;
        heft_tensor *tensor = make_tensor(storage, types[i].dtype, 2, shape, NULL, 16);
        const heft_status status = heft_tensor_to_dlpack(tensor, &managed, &err);
        if (types[i].lanes == 0) {
            assert_int_equal(status, HEFT_UNSUPPORTED);
            assert_non_null(strstr(err.message, heft_dtype_name(types[i].dtype)));
            assert_null(managed);
        } else {
            const DLTensor *dl = &managed->dl_tensor;
            const bool pairs = types[i].lanes == 2;
            test_expect_status(status, HEFT_OK, &err, heft_dtype_name(types[i].dtype));
            assert_int_equal(managed->version.major, 1);
            assert_int_equal(managed->version.minor, DLPACK_MINOR_VERSION);
            assert_int_equal(managed->flags, 0);
            assert_int_equal(dl->dtype.code, types[i].code);
            assert_int_equal(dl->dtype.bits, types[i].bits);
            assert_int_equal(dl->dtype.lanes, types[i].lanes);
            assert_ptr_equal(dl->data, bytes + 16);
            assert_int_equal(dl->byte_offset, 0);
            assert_int_equal(dl->device.device_type, kDLCPU);
            assert_int_equal(dl->device.device_id, 0);
            assert_int_equal(dl->ndim, 2);
            assert_int_equal(dl->shape[0], 2);
            assert_int_equal(dl->shape[1], pairs ? 2 : 4);
            assert_int_equal(dl->strides[0], pairs ? 2 : 4);
            assert_int_equal(dl->strides[1], 1);
            managed->deleter(managed);
        }
        heft_tensor_free(tensor);
    }
    heft_storage_unref(storage);
}

/* ---- shapes ---------------------------------------------------------------------------------- */
#define BIG (UINT64_C(1) << 63)

static void shapes_and_strides(void **state)
{
    static uint8_t bytes[STORAGE_BYTES];
    static const struct {
        const char *name;
        heft_dtype dtype;
        uint32_t rank;
        uint64_t shape[3];
        int64_t strides[3]; /* all 0: row by row */
        bool good;
        int64_t want_shape[3], want_strides[3];
    } rows[] = {
        {"scalar",                 HEFT_DTYPE_F32,          0, {0},          {0},    true,  {0},            {0}      },
        {"vector",                 HEFT_DTYPE_F32,          1, {5},          {0},    true,  {5},            {1}      },
        {"transposed",             HEFT_DTYPE_F32,          2, {3, 2},       {1, 3}, true,  {3, 2},         {1, 3}   },
        {"expanded",               HEFT_DTYPE_F32,          2, {3, 2},       {0, 1}, true,  {3, 2},         {0, 1}   },
        {"nothing",                HEFT_DTYPE_F32,          2, {0, 2},       {0},    true,  {0, 2},         {2, 1}   },
        {"nothing_of_pairs",       HEFT_DTYPE_F4_E2M1FN_X2, 2, {0, 2},       {0},    true,  {0, 1},         {1, 1}   },
        {"pairs",                  HEFT_DTYPE_F4_E2M1FN_X2, 3, {2, 3, 4},    {0},    true,  {2, 3, 2},      {6, 2, 1}},
        {"pairs_with_strides",     HEFT_DTYPE_F4_E2M1FN_X2, 2, {2, 4},       {4, 1}, true,  {2, 2},         {2, 1}   },
        {"pairs_of_one_row",       HEFT_DTYPE_F4_E2M1FN_X2, 2, {1, 4},       {9, 1}, true,  {1, 2},         {2, 1}   },
        {"pairs_cross_rows",       HEFT_DTYPE_F4_E2M1FN_X2, 2, {2, 3},       {0},    false, {0},            {0}      },
        {"pairs_apart",            HEFT_DTYPE_F4_E2M1FN_X2, 2, {2, 4},       {8, 1}, false, {0},            {0}      },
        {"pairs_transposed",       HEFT_DTYPE_F4_E2M1FN_X2, 2, {2, 2},       {1, 2}, false, {0},            {0}      },
        {"six_bits",               HEFT_DTYPE_F6_E2M3,      2, {2, 2},       {0},    true,  {2, 2},         {2, 1}   },
        {"six_bits_apart",         HEFT_DTYPE_F6_E2M3,      2, {2, 4},       {8, 1}, false, {0},            {0}      },
        {"largest_dimension",      HEFT_DTYPE_U8,           2, {BIG - 1, 0}, {0},    true,  {INT64_MAX, 0}, {1, 1}   },
        {"dimension_out_of_range", HEFT_DTYPE_U8,           2, {BIG, 0},     {0},    false, {0},            {0}      },
    };
    heft_storage *storage = NULL;
    (void)state;
    assert_int_equal(heft_storage_wrap(ctx, bytes, sizeof bytes, NULL, NULL, &storage, NULL),
                     HEFT_OK);
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_error err = {0};
        DLManagedTensorVersioned *managed = NULL;
        const bool strided = rows[i].strides[0] || rows[i].strides[1];
        heft_tensor *tensor = make_tensor(storage, rows[i].dtype, rows[i].rank, rows[i].shape,
                                          strided ? rows[i].strides : NULL, 0);
        const heft_status status = heft_tensor_to_dlpack(tensor, &managed, &err);
        test_expect_status(status, rows[i].good ? HEFT_OK : HEFT_UNSUPPORTED, &err, rows[i].name);
        if (managed) {
            const DLTensor *dl = &managed->dl_tensor;
            assert_int_equal(dl->ndim, rows[i].rank);
            for (uint32_t d = 0; d < rows[i].rank; d++) {
                if (dl->shape[d] != rows[i].want_shape[d] ||
                    dl->strides[d] != rows[i].want_strides[d]) {
                    fail_msg("%s: dimension %u is %lld by %lld", rows[i].name, d,
                             (long long)dl->shape[d], (long long)dl->strides[d]);
                }
            }
            assert_int_equal(dl->data == NULL, tensor->size_bytes == 0);
            managed->deleter(managed);
        }
        heft_tensor_free(tensor);
    }
    heft_storage_unref(storage);
}

static void arguments_are_checked(void **state)
{
    static uint8_t bytes[4];
    heft_storage *storage = NULL;
    DLManagedTensorVersioned *managed = NULL;
    (void)state;
    assert_int_equal(heft_storage_wrap(ctx, bytes, sizeof bytes, NULL, NULL, &storage, NULL),
                     HEFT_OK);
    heft_tensor *tensor = make_tensor(storage, HEFT_DTYPE_F32, 0, NULL, NULL, 0);
    assert_int_equal(heft_tensor_to_dlpack(NULL, &managed, NULL), HEFT_INVALID_ARG);
    assert_int_equal(heft_tensor_to_dlpack(tensor, NULL, NULL), HEFT_INVALID_ARG);
    heft_tensor elsewhere = *tensor;
    elsewhere.device = 0;
    assert_int_equal(heft_tensor_to_dlpack(&elsewhere, &managed, NULL), HEFT_UNSUPPORTED);
    elsewhere = *tensor;
    elsewhere.storage = NULL;
    assert_int_equal(heft_tensor_to_dlpack(&elsewhere, &managed, NULL), HEFT_INVALID_ARG);
    assert_null(managed);
    heft_tensor_free(tensor);
    heft_storage_unref(storage);
}

/* ---- flags and lifetime ---------------------------------------------------------------------- */
static void count_release(void *user)
{
    atomic_fetch_add((atomic_int *)user, 1);
}

static void only_what_is_writable_says_so(void **state)
{
    static uint8_t bytes[4];
    static const struct {
        uint32_t flags;
        uint64_t want;
    } rows[] = {
        {HEFT_TENSOR_WRITABLE,                      0                            },
        {HEFT_TENSOR_WRITABLE | HEFT_TENSOR_MAPPED, 0                            },
        {HEFT_TENSOR_MAPPED,                        DLPACK_FLAG_BITMASK_READ_ONLY},
        {HEFT_TENSOR_SHARED,                        DLPACK_FLAG_BITMASK_READ_ONLY},
        {0,                                         DLPACK_FLAG_BITMASK_READ_ONLY},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_storage *storage = NULL;
        DLManagedTensorVersioned *managed = NULL;
        const heft__memory memory = {.data = bytes, .bytes = sizeof bytes, .flags = rows[i].flags};
        assert_int_equal(heft__storage_make(ctx, &memory, &storage, NULL), HEFT_OK);
        heft_tensor *tensor = make_tensor(storage, HEFT_DTYPE_F32, 0, NULL, NULL, 0);
        assert_int_equal(heft_tensor_to_dlpack(tensor, &managed, NULL), HEFT_OK);
        assert_int_equal(managed->flags, rows[i].want);
        managed->deleter(managed);
        heft_tensor_free(tensor);
        heft_storage_unref(storage);
    }
}

static void *delete_elsewhere(void *user)
{
    DLManagedTensorVersioned *managed = user;
    assert_int_equal(*(const uint8_t *)managed->dl_tensor.data, 7);
    managed->deleter(managed);
    return NULL;
}

static void an_export_outlives_everything(void **state)
{
    enum { EXPORTS = 4 };
    test_heap heap = {.fail_at = -1};
    heft_ctx *own = test_ctx_new(&heap);
    atomic_int released = 0;
    static uint8_t bytes[64] = {7};
    heft_storage *storage = NULL;
    DLManagedTensorVersioned *managed[EXPORTS] = {NULL};
    pthread_t threads[EXPORTS];
    (void)state;
    assert_int_equal(
        heft_storage_wrap(own, bytes, sizeof bytes, count_release, &released, &storage, NULL),
        HEFT_OK);
    uint64_t shape[] = {2, 3};
    heft_tensor *tensor = make_tensor(storage, HEFT_DTYPE_F32, 2, shape, NULL, 0);
    for (size_t i = 0; i < EXPORTS; i++) {
        assert_int_equal(heft_tensor_to_dlpack(tensor, &managed[i], NULL), HEFT_OK);
    }
    heft_tensor_free(tensor);
    heft_storage_unref(storage);
    heft_ctx_free(own);
    assert_int_equal(released, 0);
    assert_int_equal(managed[0]->dl_tensor.shape[1], 3);
    for (size_t i = 0; i < EXPORTS; i++) { /* the heap that counts is not for threads at once */
        assert_int_equal(pthread_create(&threads[i], NULL, delete_elsewhere, managed[i]), 0);
        pthread_join(threads[i], NULL);
        assert_int_equal(released, i == EXPORTS - 1);
    }
    assert_int_equal(heap.blocks, 0);
}

static heft_status export_one(heft_ctx *on, void *user, heft_error *err)
{
    heft_storage *storage = NULL;
    heft_tensor *tensor = NULL;
    DLManagedTensorVersioned *managed = NULL;
    const uint64_t shape[] = {2, 3};
    const heft_tensor_spec spec =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_F32, .rank = 2, .shape = shape);
    (void)user;
    heft_status status = heft__storage_new(on, 24, &storage, err);
    if (status == HEFT_OK) {
        status = heft_tensor_new(storage, &spec, &tensor, err);
    }
    if (status == HEFT_OK) {
        status = heft_tensor_to_dlpack(tensor, &managed, err);
    }
    assert_int_equal(managed != NULL, status == HEFT_OK);
    if (managed) {
        managed->deleter(managed);
    }
    heft_tensor_free(tensor);
    heft_storage_unref(storage);
    return status;
}

static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    test_oom_sweep(export_one, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_dtype_has_its_code),
        cmocka_unit_test(shapes_and_strides),
        cmocka_unit_test(arguments_are_checked),
        cmocka_unit_test(only_what_is_writable_says_so),
        cmocka_unit_test(an_export_outlives_everything),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
