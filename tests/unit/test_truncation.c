/* A file that is truncated while it is read: a status with file and byte, no signal, nothing half done.
 *
 * The progress callback truncates the file in the middle of the work, or the test does between two calls. */
#include "support.h"
#include "support_model.h"

#include <heft/load.h>

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

static const heft_load_sharded_options strict = {.struct_size = sizeof strict, .strict = true};

static char folder[256];
static char victim[400]; /* the file to truncate; "": none */
static off_t cut_to;
static unsigned calls, cut_at; /* at this call of the progress callback, counted from 1 */

static bool cut_now(void *user, const heft_progress *progress)
{
    (void)user;
    (void)progress;
    if (++calls == cut_at && victim[0]) {
        assert_int_equal(truncate(victim, cut_to), 0);
    }
    return true;
}

static const char model_config[] =
    "{\"model_type\":\"bert\",\"architectures\":[\"BertModel\"],\"hidden_size\":64,"
    "\"num_hidden_layers\":6,\"num_attention_heads\":4,\"intermediate_size\":256,"
    "\"vocab_size\":2000,\"max_position_embeddings\":64}";

static heft_ctx *make_ctx(void)
{
    const heft_ctx_options options = HEFT_OPTIONS(heft_ctx_options, .threads = 1,
                                                  .staging_bytes = 64 << 10, .progress = cut_now);
    heft_ctx *ctx = heft_ctx_new(&options);
    assert_non_null(ctx);
    return ctx;
}

/* A checkpoint in `folder`/source, and its weight file as the victim. */
static void make_source(heft_ctx *ctx, heft_format format)
{
    char path[300];
    struct stat info;
    const heft_save_options options = HEFT_OPTIONS(heft_save_options, .format = format);
    heft_error err = {0};
    victim[0] = '\0';
    snprintf(path, sizeof path, "%s/source", folder);
    heft_model *model = test_model_from_text(ctx, model_config, "BertModel");
    test_expect_status(heft_model_init(model, NULL, &err), HEFT_OK, &err, "init");
    test_expect_status(heft_model_save(model, path, &options, NULL, &err), HEFT_OK, &err, "save");
    heft_model_free(model);
    snprintf(victim, sizeof victim, "%s/%s", path,
             format == HEFT_FORMAT_TORCH ? "pytorch_model.bin" : "model.safetensors");
    assert_int_equal(stat(victim, &info), 0);
    cut_to = info.st_size / 2;
    calls = 0;
}

/* ---- what is under way when it happens ------------------------------------------------------- */
static heft_status convert(heft_ctx *ctx, const char *source, const char *dst, heft_error *err)
{
    return test_convert(ctx, source, dst, NULL, NULL, err);
}

static heft_status load_with(heft_ctx *ctx, const char *source, test_how options, heft_error *err)
{
    heft_model *model = NULL;
    heft_status status = test_load(ctx, source, &options, &model, NULL, err);
    assert_true((status == HEFT_OK) == (model != NULL));
    heft_model_free(model);
    return status;
}

static heft_status load_copied(heft_ctx *ctx, const char *source, const char *dst, heft_error *err)
{
    (void)dst;
    return load_with(ctx, source, (test_how){.load = {.mode = HEFT_LOAD_COPY}}, err);
}

static heft_status load_cast(heft_ctx *ctx, const char *source, const char *dst, heft_error *err)
{
    (void)dst;
    return load_with(ctx, source, (test_how){.load = {.dtype = HEFT_DTYPE_BF16}}, err);
}

static heft_status load_touched(heft_ctx *ctx, const char *source, const char *dst, heft_error *err)
{
    (void)dst;
    return load_with(ctx, source,
                     (test_how){
                         .load = {.mode = HEFT_LOAD_MAP, .touch = true}
    },
                     err);
}

static heft_status load_into(heft_ctx *ctx, const char *source, const char *dst, heft_error *err)
{
    (void)dst;
    heft_model *model = test_model_from_text(ctx, model_config, "BertModel");
    heft_status status = heft_model_load_sharded(model, source, &strict, NULL, err);
    heft_model_free(model);
    return status;
}

/* The model is mapped, then its file is truncated, then it is saved. */
static heft_status save_mapped(heft_ctx *ctx, const char *source, const char *dst, heft_error *err)
{
    const test_how options = {.load = {.mode = HEFT_LOAD_MAP}};
    heft_model *model = NULL;
    heft_status status = test_load(ctx, source, &options, &model, NULL, err);
    test_expect_status(status, HEFT_OK, err, "load");
    assert_int_equal(truncate(victim, cut_to), 0);
    status = heft_model_save(model, dst, NULL, NULL, err);
    heft_model_free(model);
    return status;
}

static const struct {
    const char *name;
    heft_status (*work)(heft_ctx *ctx, const char *source, const char *dst, heft_error *err);
    unsigned cut_at; /* 0: the work cuts by itself */
    bool byte_known; /* a mapping that is gone does not say where it was in the file */
} rows[] = {
    {"convert",           convert,      1, true },
    {"convert, later",    convert,      3, true },
    {"load copied",       load_copied,  1, true },
    {"load and cast",     load_cast,    1, true },
    {"load and touch",    load_touched, 1, true },
    {"load into a model", load_into,    1, true },
    {"save mapped",       save_mapped,  0, false},
};
#define ROWS (sizeof rows / sizeof rows[0])

static void check_row(size_t row, heft_format format)
{
    char source[300], dst[300];
    heft_error err = {0};
    uint64_t live;
    heft_ctx *ctx = make_ctx();
    make_source(ctx, format);
    snprintf(source, sizeof source, "%s/source", folder);
    snprintf(dst, sizeof dst, "%s/dst", folder);
    cut_at = rows[row].cut_at;
    heft_status status = rows[row].work(ctx, source, dst, &err);
    test_expect_status(status, HEFT_IO, &err, rows[row].name);
    if (rows[row].byte_known) {
        assert_string_equal(err.path, victim);
        if (err.offset < (uint64_t)cut_to || err.offset == HEFT_NO_OFFSET) {
            fail_msg("%s: byte %llu, cut at %lld", rows[row].name, (unsigned long long)err.offset,
                     (long long)cut_to);
        }
    }
    assert_int_equal(test_count_entries(folder), 1); /* the source alone */
    heft_ctx_memory(ctx, &live, NULL);
    assert_int_equal(live, 0);
    heft_ctx_free(ctx);
    test_folder_remove(source);
}

static void a_cut_is_a_status(void **state)
{
    (void)state;
    if (test_emulated()) {
        skip();
    }
    for (size_t row = 0; row < ROWS; row++) {
        check_row(row, HEFT_FORMAT_SAFETENSORS);
        check_row(row, HEFT_FORMAT_TORCH);
    }
}

static void verify_tells_of_a_cut(void **state)
{
    (void)state;
    static const heft_format formats[] = {HEFT_FORMAT_SAFETENSORS, HEFT_FORMAT_TORCH};
    for (size_t i = 0; i < 2; i++) {
        char source[300];
        const heft_verify_options options = HEFT_OPTIONS(heft_verify_options, .deep = true);
        heft_verify_report *report = NULL;
        heft_error err = {0};
        heft_ctx *ctx = make_ctx();
        make_source(ctx, formats[i]);
        snprintf(source, sizeof source, "%s/source", folder);
        cut_at = 1;
        test_expect_status(test_verify(ctx, source, &options, &report, &err), HEFT_OK, &err,
                           "verify");
        assert_false(report->ok);
        assert_string_equal(report->problems[0].kind, "unreadable");
        assert_true(report->problems[0].offset >= (uint64_t)cut_to);
        heft_verify_report_free(report);
        heft_ctx_free(ctx);
        test_folder_remove(source);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cut_is_a_status),
        cmocka_unit_test(verify_tells_of_a_cut),
    };
    test_folder_make(folder);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    test_folder_remove(folder);
    return failed;
}
