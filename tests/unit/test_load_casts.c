/* A file's tensor in another dtype than the model's parameter, or than a caller asks for: every pair, as
 * heft_cast() gives it, or refused with the reason. */
#include <heft/writer.h>

#include "checkpoint/checkpoint.h"
#include "scratch.h"
#include "support_model.h"

#include <stdlib.h>

#define ELEMS 35
#define ROOM_BYTES (ELEMS * 16)

static void fill(uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        bytes[i] = (uint8_t)(i * 151 + i / 7 * 29 + 3);
    }
}

static heft_model *make(heft_dtype dtype)
{
    static const uint64_t shape[2] = {5, 7};
    const heft_parameter_spec spec = {.name = "w", .dtype = dtype, .rank = 2, .shape = shape};
    heft_model *model = NULL;
    heft_error err = {0};
    test_expect_status(heft_model_new_from(ctx, &spec, 1, NULL, &model, &err), HEFT_OK, &err,
                       heft_dtype_name(dtype));
    return model;
}

/* One tensor "w" of [5, 7], in a safetensors file if that has a name for the dtype, else in a .bin. */
static void write_checkpoint(heft_dtype dtype, uint8_t *bytes)
{
    static const uint64_t shape[2] = {5, 7};
    const bool named = *heft_dtype_safetensors_name(dtype) != '\0';
    heft_writer *writer = NULL;
    heft_storage *storage = NULL;
    heft_tensor *tensor = NULL;
    heft_error err = {0};
    const heft_writer_options options =
        HEFT_OPTIONS(heft_writer_options, .force = true,
                     .format = named ? HEFT_FORMAT_SAFETENSORS : HEFT_FORMAT_TORCH);
    const heft_tensor_spec spec =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = dtype, .rank = 2, .shape = shape);
    fill(bytes, ROOM_BYTES);
    test_expect_status(heft_storage_wrap(ctx, bytes, ROOM_BYTES, NULL, NULL, &storage, &err),
                       HEFT_OK, &err, "storage");
    test_expect_status(heft_tensor_new(storage, &spec, &tensor, &err), HEFT_OK, &err, "tensor");
    test_expect_status(
        heft_writer_new(ctx, test_path(folder, heft_dtype_name(dtype)), &options, &writer, &err),
        HEFT_OK, &err, "writer");
    test_expect_status(heft_writer_add(writer, "w", tensor, &err), HEFT_OK, &err,
                       heft_dtype_name(dtype));
    test_expect_status(heft_writer_commit(writer, NULL, &err), HEFT_OK, &err,
                       heft_dtype_name(dtype));
    heft_writer_free(writer);
    heft_tensor_free(tensor);
    heft_storage_unref(storage);
}

static size_t size_of(heft_dtype dtype)
{
    return ELEMS * heft_dtype_bits(dtype) / 8;
}

static void check_sharded(heft_dtype from, heft_dtype to, const uint8_t *wanted)
{
    heft_model *model = make(to);
    heft_tensor *tensor = NULL;
    heft_load_report *report = NULL;
    heft_error err = {0};
    const heft_status status = heft_model_load_sharded(
        model, test_path(folder, heft_dtype_name(from)), NULL, &report, &err);
    if (!wanted) {
        test_expect_status(status, HEFT_UNSUPPORTED, &err, heft_dtype_name(from));
        assert_non_null(strstr(err.message, "the imaginary part would be lost"));
        assert_string_equal(err.item, "w");
        assert_int_equal(heft_model_parameter(model, 0)->state, HEFT_PARAMETER_ABSENT);
    } else {
        const bool told = heft__dtype_is_integer(from) && heft_dtype_is_floating(to);
        test_expect_status(status, HEFT_OK, &err, heft_dtype_name(from));
        assert_int_equal(report->warning_count, told);
        assert_true(!told || strstr(report->warnings[0], "is stored as integers, and cast: 'w'"));
        test_expect_status(heft_model_tensor(model, 0, &tensor, &err), HEFT_OK, &err, "tensor");
        if (memcmp(tensor->data, wanted, size_of(to)) != 0) {
            fail_msg("%s to %s", heft_dtype_name(from), heft_dtype_name(to));
        }
    }
    heft_tensor_free(tensor);
    heft_load_report_free(report);
    heft_model_free(model);
}

static void check_slice(const heft_checkpoint *ckpt, heft_dtype to, const uint8_t *wanted)
{
    static const uint64_t start[2] = {1, 2}, stop[2] = {4, 6};
    const size_t width = heft_dtype_bits(to) / 8;
    uint8_t got[ROOM_BYTES];
    heft_error err = {0};
    const heft_read_request request = {
        .rank = 2, .dtype = to, .start = start, .stop = stop, .dst = got, .cap = sizeof got};
    const heft_status status = heft_checkpoint_read_slice(ckpt, &request, &err);
    test_expect_status(status, wanted ? HEFT_OK : HEFT_INVALID_ARG, &err, heft_dtype_name(to));
    for (size_t row = 0; wanted && row < 3; row++) {
        assert_memory_equal(got + row * 4 * width, wanted + ((row + 1) * 7 + 2) * width, 4 * width);
    }
}

static void every_pair(void **state)
{
    (void)state;
    size_t cast = 0, refused = 0;
    for (int from = 1; from < HEFT_DTYPE_COUNT; from++) {
        uint8_t bytes[ROOM_BYTES], wanted[ROOM_BYTES];
        heft_checkpoint *ckpt = NULL;
        heft_error err = {0};
        const heft_dtype source = (heft_dtype)from;
        if (!heft__cast_known(source, HEFT_DTYPE_C64)) {
            continue;
        }
        write_checkpoint(source, bytes);
        test_expect_status(heft_checkpoint_open(ctx, test_path(folder, heft_dtype_name(source)),
                                                NULL, &ckpt, &err),
                           HEFT_OK, &err, heft_dtype_name(source));
        for (int to = 1; to < HEFT_DTYPE_COUNT; to++) {
            if (!heft__cast_known((heft_dtype)to, HEFT_DTYPE_C64)) {
                continue;
            }
            const bool known = heft__cast_known(source, (heft_dtype)to);
            if (known) {
                heft__cast((heft_dtype)to, wanted, source, bytes, ELEMS);
            }
            check_sharded(source, (heft_dtype)to, known ? wanted : NULL);
            check_slice(ckpt, (heft_dtype)to, known ? wanted : NULL);
            cast += known;
            refused += !known;
        }
        heft_checkpoint_close(ckpt);
    }
    assert_int_equal(cast, 18 * 18 + 18 * 3 + 3 * 3);
    assert_int_equal(refused, 3 * 18);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_pair)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
