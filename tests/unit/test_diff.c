/* Comparing two checkpoints: which tensors differ, in what, and by how much. */
#include "load/load.h"
#include "support.h"

#include "scratch.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- files ----------------------------------------------------------------------------------- */
struct made {
    const char *name, *dtype; /* of safetensors */
    const char *shape;        /* JSON */
    const void *bytes;
    size_t length;
};

static void write_made(const char *file, const struct made *tensors, size_t count)
{
    size_t total = 0, at = 0;
    char header[4096] = "{";
    for (size_t i = 0; i < count; i++) {
        at += (size_t)snprintf(
            header + at, sizeof header - at,
            "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}", i ? "," : "{",
            tensors[i].name, tensors[i].dtype, tensors[i].shape, total, total + tensors[i].length);
        total += tensors[i].length;
    }
    strcpy(header + at, at ? "}" : "{}");
    at = strlen(header);
    uint8_t *bytes = malloc(8 + at + total), *end = bytes + 8 + at;
    heft__put_le64(bytes, at);
    memcpy(bytes + 8, header, at);
    for (size_t i = 0; i < count; i++) {
        end = (uint8_t *)memcpy(end, tensors[i].bytes, tensors[i].length) + tensors[i].length;
    }
    test_write_file(folder, file, bytes, 8 + at + total);
    free(bytes);
}

static heft_status diff_in(heft_ctx *with, const char *a, const char *b, double tolerance,
                           heft_diff_report **report, heft_error *err)
{
    heft_source *one = NULL, *two = NULL;
    const heft_diff_options options = HEFT_OPTIONS(heft_diff_options, .tolerance = tolerance);
    heft_status status = heft_source_open(with, a, NULL, &one, err);
    if (status == HEFT_OK) {
        status = heft_source_open(with, b, NULL, &two, err);
    }
    if (status == HEFT_OK) {
        status = heft_source_diff(one, two, &options, report, err);
    }
    heft_source_close(one); /* a report lends nothing */
    heft_source_close(two);
    return status;
}

static heft_diff_report *diff(const char *a, const char *b, double tolerance)
{
    heft_diff_report *report = NULL;
    heft_error err = {0};
    test_expect_status(diff_in(ctx, a, b, tolerance, &report, &err), HEFT_OK, &err, a);
    return report;
}

/* ---- pairs of tensors ------------------------------------------------------------------------ */
#define INF ((double)INFINITY)
#define NONE ((double)NAN)
#define BYTES(...)                                                                                 \
    {__VA_ARGS__}, sizeof(uint8_t[])                                                               \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

struct side {
    const char *dtype, *shape;
    uint8_t bytes[32];
    size_t length;
};

struct row {
    const char *name;
    struct side a, b;
    double tolerance;
    const char *what; /* NULL: equal */
    bool measured;
    double max_abs, max_rel, cosine;
};

#define F32_1 0, 0, 0x80, 0x3F
#define F32_MINUS_1 0, 0, 0x80, 0xBF
#define F32_2 0, 0, 0, 0x40
#define F32_0 0, 0, 0, 0
#define F32_MINUS_0 0, 0, 0, 0x80
#define F32_INF 0, 0, 0x80, 0x7F
#define F32_MINUS_INF 0, 0, 0x80, 0xFF
#define F32_NAN 0, 0, 0xC0, 0x7F
#define F32_OTHER_NAN 1, 0, 0xC0, 0xFF
#define I64_MOST 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F
#define I64_MOST_LESS_1 0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F
#define I64_LEAST 0, 0, 0, 0, 0, 0, 0, 0x80
#define I64_MINUS_1 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF

/* clang-format off */
static const struct row rows[] = {
    {"equal", {"F32", "[2]", BYTES(F32_1, F32_2)}, {"F32", "[2]", BYTES(F32_1, F32_2)}, .what = NULL},
    {"one_value", {"F32", "[2]", BYTES(F32_1, F32_0)}, {"F32", "[2]", BYTES(F32_2, F32_0)}, 0, "values", true, 1, 0.5, 1},
    {"opposite", {"F32", "[1]", BYTES(F32_1)}, {"F32", "[1]", BYTES(F32_MINUS_1)}, 0, "values", true, 2, 2, -1},
    {"rank_0", {"F32", "[]", BYTES(F32_1)}, {"F32", "[]", BYTES(F32_2)}, 0, "values", true, 1, 0.5, 1},
    {"tolerance_that_is_just_enough", {"F32", "[1]", BYTES(F32_1)}, {"F32", "[1]", BYTES(F32_2)}, 1, NULL, 0, 0, 0, 0},
    {"tolerance_just_too_small", {"F32", "[1]", BYTES(F32_1)}, {"F32", "[1]", BYTES(F32_2)}, 0.999, "values", true, 1, 0.5, 1},
    {"tolerance_is_not_of_dtypes", {"F32", "[1]", BYTES(F32_1)}, {"BF16", "[1]", BYTES(0, 0x40)}, 1, "dtype float32 -> bfloat16", true, 1, 0.5, 1},
    {"tolerance_is_not_of_nan", {"F32", "[1]", BYTES(F32_NAN)}, {"F32", "[1]", BYTES(F32_2)}, 1e300, "values", true, NONE, NONE, NONE},
    {"minus_0_equals_0", {"F32", "[1]", BYTES(F32_MINUS_0)}, {"F32", "[1]", BYTES(F32_0)}, .what = NULL},
    {"nan_equals_nan", {"F32", "[2]", BYTES(F32_NAN, F32_1)}, {"F32", "[2]", BYTES(F32_OTHER_NAN, F32_1)}, .what = NULL},
    {"nan_in_both_beside_a_change", {"F32", "[2]", BYTES(F32_NAN, F32_1)}, {"F32", "[2]", BYTES(F32_NAN, F32_2)}, 0, "values", true, 1, 0.5, NONE},
    {"nan_and_a_number", {"F32", "[2]", BYTES(F32_1, F32_1)}, {"F32", "[2]", BYTES(F32_2, F32_NAN)}, 0, "values", true, NONE, NONE, NONE},
    {"nan_and_infinity", {"F32", "[1]", BYTES(F32_INF)}, {"F32", "[1]", BYTES(F32_NAN)}, 0, "values", true, NONE, NONE, NONE},
    {"infinity_equals_infinity", {"F32", "[2]", BYTES(F32_INF, F32_0)}, {"F32", "[2]", BYTES(F32_INF, F32_MINUS_0)}, .what = NULL},
    {"infinities_of_two_signs", {"F32", "[1]", BYTES(F32_INF)}, {"F32", "[1]", BYTES(F32_MINUS_INF)}, 0, "values", true, INF, INF, NONE},
    {"infinity_and_a_number", {"F32", "[2]", BYTES(F32_1, F32_1)}, {"F32", "[2]", BYTES(F32_1, F32_INF)}, 0, "values", true, INF, INF, NONE},
    {"a_zero_vector_has_no_angle", {"F32", "[1]", BYTES(F32_0)}, {"F32", "[1]", BYTES(F32_2)}, 0, "values", true, 2, 1, NONE},
    {"empty", {"F32", "[0, 3]", {0}, 0}, {"F32", "[0, 3]", {0}, 0}, .what = NULL},
    {"empty_of_two_dtypes", {"F32", "[0]", {0}, 0}, {"I8", "[0]", {0}, 0}, 0, "dtype float32 -> int8", true, 0, 0, NONE},
    {"empty_of_two_shapes", {"F32", "[0, 3]", {0}, 0}, {"F32", "[3, 0]", {0}, 0}, 0, "shape [0, 3] -> [3, 0]", false, NONE, NONE, NONE},
    {"shape", {"F32", "[1, 2]", BYTES(F32_1, F32_2)}, {"F32", "[2]", BYTES(F32_1, F32_2)}, 0, "shape [1, 2] -> [2]", false, NONE, NONE, NONE},
    {"dtype_and_shape", {"F32", "[1]", BYTES(F32_1)}, {"I8", "[]", BYTES(1)}, 0, "dtype float32 -> int8; shape [1] -> []", false, NONE, NONE, NONE},
    {"dtype_of_equal_values", {"F32", "[2]", BYTES(F32_1, F32_2)}, {"BF16", "[2]", BYTES(0x80, 0x3F, 0, 0x40)}, 0, "dtype float32 -> bfloat16", true, 0, 0, 1},
    {"dtype_and_values", {"F16", "[1]", BYTES(0, 0x3C)}, {"F64", "[1]", BYTES(0, 0, 0, 0, 0, 0, 0, 0x40)}, 0, "dtype float16 -> float64; values", true, 1, 0.5, 1},
    {"fp8", {"F8_E4M3", "[2]", BYTES(0x38, 0x40)}, {"F8_E4M3", "[2]", BYTES(0x38, 0x38)}, 0, "values", true, 1, 0.5, 0.94868329805051377},
    {"bool", {"BOOL", "[2]", BYTES(0, 1)}, {"BOOL", "[2]", BYTES(1, 1)}, 0, "values", true, 1, 1, 0.70710678118654752},
    {"bool_is_any_byte_but_0", {"BOOL", "[1]", BYTES(1)}, {"BOOL", "[1]", BYTES(2)}, .what = NULL},
    {"int8", {"I8", "[1]", BYTES(0x80)}, {"I8", "[1]", BYTES(0x7F)}, 0, "values", true, 255, 255.0 / 128, -1},
    {"int64_beyond_float64", {"I64", "[1]", BYTES(I64_MOST)}, {"I64", "[1]", BYTES(I64_MOST_LESS_1)}, 0, "values", true, 1, 0x1p-63, 1},
    {"int64_whole_range", {"I64", "[1]", BYTES(I64_MOST)}, {"I64", "[1]", BYTES(I64_LEAST)}, 0, "values", true, 0x1p64, 2, -1},
    {"int64_tolerance", {"I64", "[1]", BYTES(I64_MOST)}, {"I64", "[1]", BYTES(I64_MOST_LESS_1)}, 1, NULL, 0, 0, 0, 0},
    {"uint64_is_not_negative", {"U64", "[1]", BYTES(I64_MINUS_1)}, {"I64", "[1]", BYTES(I64_MINUS_1)}, 0, "dtype uint64 -> int64; values", true, 0x1p64, 1, -1},
    {"int64_and_int8", {"I64", "[1]", BYTES(I64_MINUS_1)}, {"I8", "[1]", BYTES(0xFF)}, 0, "dtype int64 -> int8", true, 0, 0, 1},
    {"float64_that_overflows", {"F64", "[1]", BYTES(0, 0, 0, 0, 0, 0, 0xEF, 0x7F)}, {"F64", "[1]", BYTES(0, 0, 0, 0, 0, 0, 0xEF, 0xFF)}, 0, "values", true, INF, INF, NONE},
    {"complex", {"C64", "[1]", BYTES(F32_1, F32_0)}, {"C64", "[1]", BYTES(F32_0, F32_1)}, 0, "values", true, 1.4142135623730951, 1.4142135623730951, 0},
    {"complex_nan", {"C64", "[1]", BYTES(F32_NAN, F32_INF)}, {"C64", "[1]", BYTES(F32_1, F32_0)}, 0, "values", true, NONE, NONE, NONE},
    {"complex_equal", {"C64", "[1]", BYTES(F32_NAN, F32_0)}, {"C64", "[1]", BYTES(F32_OTHER_NAN, F32_MINUS_0)}, .what = NULL},
    {"complex_and_real", {"C64", "[1]", BYTES(F32_2, F32_0)}, {"F32", "[1]", BYTES(F32_2)}, 0, "dtype complex64 -> float32", true, 0, 0, 1},
    {"float4_has_bytes_only", {"F4", "[4]", BYTES(0x12, 0x34)}, {"F4", "[4]", BYTES(0x12, 0x35)}, 9, "values", false, NONE, NONE, NONE},
    {"float4_equal", {"F4", "[4]", BYTES(0x12, 0x34)}, {"F4", "[4]", BYTES(0x12, 0x34)}, .what = NULL},
    {"float4_and_uint8", {"F4", "[4]", BYTES(0x12, 0x34)}, {"U8", "[4]", BYTES(1, 2, 3, 4)}, 0, "dtype float4_e2m1fn_x2 -> uint8", false, NONE, NONE, NONE},
};
/* clang-format on */

static void expect_number(const char *row, const char *what, double found, double expected)
{
    if (isnan(expected) ? !isnan(found) : !(found == expected || fabs(found - expected) <= 1e-15)) {
        fail_msg("%s: %s is %.17g, expected %.17g", row, what, found, expected);
    }
}

static void pairs_of_tensors(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        const struct row *row = &rows[i];
        const struct made a = {"w", row->a.dtype, row->a.shape, row->a.bytes, row->a.length},
                          b = {"w", row->b.dtype, row->b.shape, row->b.bytes, row->b.length};
        write_made("a.safetensors", &a, 1);
        write_made("b.safetensors", &b, 1);
        heft_diff_report *report = diff(at("a.safetensors"), at("b.safetensors"), row->tolerance);
        const char *found = report->changed_count ? report->changed->what : "nothing";
        if (report->equal != !row->what || report->changed_count != (row->what ? 1 : 0) ||
            strcmp(found, row->what ? row->what : "nothing") != 0) {
            fail_msg("%s: '%s' differs, expected '%s'", row->name, found,
                     row->what ? row->what : "nothing");
        }
        if (row->what) {
            assert_string_equal(report->changed->name, "w");
            assert_int_equal(report->changed->measured, row->measured);
            expect_number(row->name, "max_abs", report->changed->max_abs, row->max_abs);
            expect_number(row->name, "max_rel", report->changed->max_rel, row->max_rel);
            expect_number(row->name, "cosine", report->changed->cosine, row->cosine);
        }
        assert_int_equal(report->common, 1);
        heft_diff_report_free(report);
    }
}

/* ---- names ----------------------------------------------------------------------------------- */
static void names_are_in_natural_order(void **state)
{
    (void)state;
    const struct made a[] = {
        {"l.10.w",  "U8", "[1]", "a", 1},
        {"l.9.w",   "U8", "[1]", "a", 1},
        {"gone.11", "U8", "[1]", "a", 1},
        {"gone.2",  "U8", "[1]", "a", 1},
        {"same",    "U8", "[1]", "a", 1}
    };
    const struct made b[] = {
        {"new.2",  "U8", "[1]", "a", 1},
        {"new.10", "U8", "[1]", "a", 1},
        {"l.10.w", "U8", "[1]", "b", 1},
        {"same",   "U8", "[1]", "a", 1},
        {"l.9.w",  "U8", "[1]", "c", 1},
        {"new.1",  "U8", "[1]", "a", 1}
    };
    write_made("a.safetensors", a, COUNT(a));
    write_made("b.safetensors", b, COUNT(b));
    heft_diff_report *report = diff(at("a.safetensors"), at("b.safetensors"), 0);
    assert_false(report->equal);
    assert_int_equal(report->common, 3);
    assert_int_equal(report->removed_count, 2);
    assert_string_equal(report->removed[0], "gone.2");
    assert_string_equal(report->removed[1], "gone.11");
    assert_int_equal(report->added_count, 3);
    assert_string_equal(report->added[0], "new.1");
    assert_string_equal(report->added[1], "new.2");
    assert_string_equal(report->added[2], "new.10");
    assert_int_equal(report->changed_count, 2);
    assert_string_equal(report->changed[0].name, "l.9.w");
    assert_string_equal(report->changed[1].name, "l.10.w");
    assert_true(report->changed[0].max_abs == 2 && report->changed[1].max_abs == 1);
    heft_diff_report_free(report);

    write_made("none.safetensors", NULL, 0);
    report = diff(at("none.safetensors"), at("b.safetensors"), 0);
    assert_int_equal(report->added_count, COUNT(b));
    assert_int_equal(report->common + report->removed_count + report->changed_count, 0);
    heft_diff_report_free(report);
    report = diff(at("none.safetensors"), at("none.safetensors"), 0);
    assert_true(report->equal);
    heft_diff_report_free(report);
}

/* ---- large tensors --------------------------------------------------------------------------- */
#define LARGE                                                                                      \
    ((size_t)5 << 20) /* elements of float32: several chunks of both passes, the last not whole */

static float *make_large(void)
{
    float *values = malloc((LARGE + 3) * sizeof *values);
    for (size_t i = 0; i < LARGE + 3; i++) {
        values[i] = (float)(i * 2654435761U % 1000) / 1000 - 0.5F;
    }
    return values;
}

static void write_large(const char *file, const float *values)
{
    const struct made tensors[] = {
        {"v", "U8",  "[3]",       "abc",  3                           },
        {"w", "F32", "[5242883]", values, (LARGE + 3) * sizeof *values},
    };
    write_made(file, tensors, COUNT(tensors));
}

/* A change is found wherever it is, and numbers do not depend on threads. */
static void every_element_counts(void **state)
{
    (void)state;
    static const size_t places[] = {0, 1, 2047, 2048, (1 << 20) - 1, 1 << 20, 2 << 20, LARGE + 2};
    float *values = make_large();
    write_large("a.safetensors", values);
    for (size_t i = 0; i < COUNT(places); i++) {
        double cosine = 0;
        const float before = values[places[i]];
        values[places[i]] += 3;
        write_large("b.safetensors", values);
        for (unsigned threads = 1; threads <= 4; threads++) {
            heft_ctx *with = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .threads = threads));
            heft_diff_report *report = NULL;
            heft_error err = {0};
            test_expect_status(
                diff_in(with, at("a.safetensors"), at("b.safetensors"), 0, &report, &err), HEFT_OK,
                &err, "large");
            assert_int_equal(report->changed_count, 1);
            const heft_change *change = report->changed;
            assert_true(change->max_abs == (double)values[places[i]] - (double)before);
            assert_true(change->cosine < 1 && change->cosine > 0.99);
            assert_true(threads == 1 || change->cosine == cosine);
            cosine = change->cosine;
            heft_diff_report_free(report);
            heft_ctx_free(with);
        }
        values[places[i]] = before;
    }
    free(values);
}

static bool note_end(void *user, const heft_progress *progress)
{
    const char **ends = user;
    if (progress->done_bytes == progress->total_bytes) {
        ends[strcmp(progress->what, "comparing") != 0] = progress->what;
    }
    return true;
}

/* Whichever thread has the last chunk. */
static void progress_ends_with_all(void **state)
{
    (void)state;
    const struct made a[] = {
        {"x", "U8", "[3]", "abc", 3},
        {"y", "U8", "[3]", "abc", 3}
    };
    const struct made b[] = {
        {"x", "U8", "[3]", "abd", 3},
        {"y", "U8", "[3]", "abd", 3}
    };
    write_made("a.safetensors", a, COUNT(a));
    write_made("b.safetensors", b, COUNT(b));
    for (unsigned threads = 1; threads <= 4; threads++) {
        const char *ends[2] = {NULL, NULL};
        heft_ctx *with = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .threads = threads,
                                                    .progress = note_end, .progress_user = ends));
        heft_diff_report *report = NULL;
        heft_error err = {0};
        test_expect_status(
            diff_in(with, at("a.safetensors"), at("b.safetensors"), 0, &report, &err), HEFT_OK,
            &err, "progress");
        assert_non_null(ends[0]);
        assert_non_null(ends[1]);
        assert_string_equal(ends[1], "measuring");
        heft_diff_report_free(report);
        heft_ctx_free(with);
    }
}

static bool cancel_late(void *user, const heft_progress *progress)
{
    unsigned *calls = user;
    assert_true(progress->done_bytes <= progress->total_bytes);
    return ++*calls < 2;
}

static void cancelling_ends_it(void **state)
{
    (void)state;
    float *values = make_large();
    write_large("a.safetensors", values);
    free(values);
    unsigned calls = 0;
    /* one thread: of several, this one, which tells progress, may get a single piece */
    heft_ctx *with = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .threads = 1,
                                                .progress = cancel_late, .progress_user = &calls));
    heft_diff_report *report = NULL;
    heft_error err = {0};
    test_expect_status(diff_in(with, at("a.safetensors"), at("a.safetensors"), 0, &report, &err),
                       HEFT_CANCELLED, &err, "cancelled");
    assert_null(report);
    assert_int_equal(calls, 2);
    heft_ctx_free(with);
}

/* ---- how tensors are stored -------------------------------------------------------------------- */
/* Views, deflated records, big-endian and conjugated tensors equal the same tensors in safetensors or in
 * another .bin; a changed one is found in them. */
static void storage_is_of_no_account(void **state)
{
    (void)state;
    static const char *const files[] = {
        "zip_views.pt",       "zip_deflated.pt",  "zip_big_endian.pt",
        "zip_conj_neg.pt",    "zip_dtypes_v3.pt", "zip_empty_0dim.pt",
        "zip_dtypes_bits.pt", "legacy_basic.pt",  "tar_basic.tar"};
    for (size_t i = 0; i < COUNT(files); i++) {
        char path[512], copy[300];
        snprintf(path, sizeof path, HEFT_TEST_DATA "/formats/%s", files[i]);
        snprintf(copy, sizeof copy, "%s/%zu", folder, i);
        heft_source *source = NULL;
        heft_error err = {0};
        const heft_convert_options options =
            HEFT_OPTIONS(heft_convert_options, .format = HEFT_FORMAT_TORCH);
        test_expect_status(heft_source_open(ctx, path, NULL, &source, &err), HEFT_OK, &err, path);
        test_expect_status(heft_source_convert(source, copy, &options, NULL, &err), HEFT_OK, &err,
                           path);
        heft_source_close(source);
        heft_diff_report *report = diff(path, copy, 0);
        if (!report->equal || report->common == 0) {
            fail_msg("%s: %zu removed, %zu added, %zu changed of %zu", files[i],
                     report->removed_count, report->added_count, report->changed_count,
                     report->common);
        }
        heft_diff_report_free(report);
    }
}

/* A source that was opened with `dequantize` has plain weights, which are computed while they are compared. */
static void dequantized_weights(void **state)
{
    (void)state;
    static const char *const methods[] = {"gptq_4bit", "bnb_nf4_nested", "fp8_block", "ct_int8"};
    for (size_t i = 0; i < COUNT(methods); i++) {
        char path[512], plain[560];
        heft_source *packed = NULL, *expected = NULL;
        heft_diff_report *report = NULL;
        heft_error err = {0};
        snprintf(path, sizeof path, HEFT_TEST_DATA "/quant/%s", methods[i]);
        snprintf(plain, sizeof plain, "%s/expected.safetensors", path);
        test_expect_status(heft_source_open(ctx, path,
                                            &HEFT_OPTIONS(heft_source_options, .dequantize = true),
                                            &packed, &err),
                           HEFT_OK, &err, path);
        test_expect_status(heft_source_open(ctx, plain, NULL, &expected, &err), HEFT_OK, &err,
                           plain);
        test_expect_status(heft_source_diff(packed, expected, NULL, &report, &err), HEFT_OK, &err,
                           path);
        if (report->changed_count > 0 || report->common == 0) {
            fail_msg("%s: %zu changed of %zu: %s %s", methods[i], report->changed_count,
                     report->common, report->changed_count ? report->changed->name : "",
                     report->changed_count ? report->changed->what : "");
        }
        heft_diff_report_free(report);
        heft_source_close(expected);
        heft_source_close(packed);
    }
}

/* ---- failures -------------------------------------------------------------------------------- */
static void what_cannot_be(void **state)
{
    (void)state;
    const struct made a = {"w", "U8", "[3]", "abc", 3};
    write_made("a.safetensors", &a, 1);
    heft_source *source = NULL, *config = NULL;
    heft_diff_report *report = NULL;
    heft_error err = {0};
    test_expect_status(heft_source_open(ctx, at("a.safetensors"), NULL, &source, &err), HEFT_OK,
                       &err, "a");
    static const double wrong[] = {-1, -0x1p-1074, INF, NONE};
    for (size_t i = 0; i < COUNT(wrong); i++) {
        const heft_diff_options options = HEFT_OPTIONS(heft_diff_options, .tolerance = wrong[i]);
        test_expect_status(heft_source_diff(source, source, &options, &report, &err),
                           HEFT_INVALID_ARG, &err, "tolerance");
    }
    assert_int_equal(heft_source_diff(NULL, source, NULL, &report, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_source_diff(source, NULL, NULL, &report, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_source_diff(source, source, NULL, NULL, NULL), HEFT_INVALID_ARG);
    test_expect_status(
        heft_source_open(ctx, HEFT_TEST_DATA "/tiny-bert/config.json", NULL, &config, &err),
        HEFT_OK, &err, "config");
    err = (heft_error){0};
    test_expect_status(heft_source_diff(source, config, NULL, &report, &err), HEFT_NOT_FOUND, &err,
                       "no weights");
    assert_non_null(strstr(err.path, "tiny-bert"));
    assert_null(report);
    heft_source_close(config);
    heft_source_close(source);
    heft_diff_report_free(NULL);
}

/* A file that becomes shorter after it was opened: the error names the file and the tensor. */
static void files_that_shrink(void **state)
{
    (void)state;
    const struct made a = {"w", "U8", "[3]", "abc", 3};
    write_made("a.safetensors", &a, 1);
    write_made("b.safetensors", &a, 1);
    heft_source *one = NULL, *two = NULL;
    heft_diff_report *report = NULL;
    heft_error err = {0};
    test_expect_status(heft_source_open(ctx, at("a.safetensors"), NULL, &one, &err), HEFT_OK, &err,
                       "a");
    test_expect_status(heft_source_open(ctx, at("b.safetensors"), NULL, &two, &err), HEFT_OK, &err,
                       "b");
    assert_int_equal(truncate(at("b.safetensors"), 10), 0);
    const heft_status status = heft_source_diff(one, two, NULL, &report, &err);
    assert_true(status == HEFT_FORMAT || status == HEFT_IO);
    assert_non_null(strstr(err.path, "b.safetensors"));
    assert_string_equal(err.item, "w");
    assert_null(report);
    heft_source_close(one);
    heft_source_close(two);
}

static heft_status diff_it(heft_ctx *with, void *user, heft_error *err)
{
    (void)user;
    heft_diff_report *report = NULL;
    heft_status status = diff_in(with, at("a.safetensors"), at("b.safetensors"), 0, &report, err);
    if (status == HEFT_OK) {
        assert_int_equal(report->added_count, 1);
        assert_int_equal(report->removed_count, 1);
        assert_int_equal(report->changed_count, 2);
    } else {
        assert_null(report);
    }
    heft_diff_report_free(report);
    return status;
}

static heft_status diff_views(heft_ctx *with, void *user, heft_error *err)
{
    (void)user;
    static const char path[] = HEFT_TEST_DATA "/formats/zip_views.pt";
    heft_diff_report *report = NULL;
    heft_status status = diff_in(with, path, path, 0, &report, err);
    assert_true(status != HEFT_OK || report->equal);
    heft_diff_report_free(report);
    return status;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    const struct made a[] = {
        {"x",    "U8", "[3]", "abc", 3},
        {"y",    "U8", "[3]", "abc", 3},
        {"z",    "U8", "[3]", "abc", 3},
        {"gone", "U8", "[3]", "abc", 3}
    };
    const struct made b[] = {
        {"x",   "U8", "[3]", "abd", 3},
        {"y",   "I8", "[3]", "abc", 3},
        {"z",   "U8", "[3]", "abc", 3},
        {"new", "U8", "[3]", "abc", 3}
    };
    write_made("a.safetensors", a, COUNT(a));
    write_made("b.safetensors", b, COUNT(b));
    test_oom_sweep(diff_it, NULL);
    test_oom_sweep(diff_views, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pairs_of_tensors),       cmocka_unit_test(names_are_in_natural_order),
        cmocka_unit_test(every_element_counts),   cmocka_unit_test(cancelling_ends_it),
        cmocka_unit_test(progress_ends_with_all), cmocka_unit_test(storage_is_of_no_account),
        cmocka_unit_test(dequantized_weights),    cmocka_unit_test(what_cannot_be),
        cmocka_unit_test(files_that_shrink),      cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
