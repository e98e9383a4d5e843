/* Models with a part on the disk by a device map, and an offload folder for it: the same values as
 * without, from the checkpoint's files or the folder's; no failure leaves a partial folder. */
#include "load/load.h"
#include "support.h"
#include "support_model.h"

#include <stdlib.h>
#include <unistd.h>

static heft_ctx *ctx;
static char folder[256];

static const char *at(const char *name)
{
    return test_path(folder, name);
}

static void make_checkpoint(const char *name, heft_format format, uint64_t shard_bytes)
{
    static const char config[] =
        "{\"model_type\":\"bert\",\"hidden_size\":16,\"num_hidden_layers\":2,"
        "\"num_attention_heads\":2,\"intermediate_size\":24,\"vocab_size\":30,"
        "\"max_position_embeddings\":10,\"dtype\":\"float32\",\"architectures\":[\"BertModel\"]}";
    heft_error err = {0};
    const heft_save_options options =
        HEFT_OPTIONS(heft_save_options, .format = format, .max_shard_bytes = shard_bytes);
    heft_model *model = test_model_from_text(ctx, config, "BertModel");
    test_expect_status(heft_model_save_random(model, at(name), NULL, &options, NULL, &err), HEFT_OK,
                       &err, name);
    heft_model_free(model);
}

static const struct {
    const char *name, *from, *class_name;
    heft_dtype dtype;
    bool all;
    bool points; /* into the checkpoint's files, but for what is missing there */
} rows[] = {
    {"whole",       "st",   NULL,              HEFT_DTYPE_NONE, true,  true },
    {"layers",      "st",   NULL,              HEFT_DTYPE_NONE, false, true },
    {"bins",        "bins", NULL,              HEFT_DTYPE_NONE, true,  false},
    {"cast",        "st",   NULL,              HEFT_DTYPE_BF16, true,  false},
    {"bins_cast",   "bins", NULL,              HEFT_DTYPE_F16,  false, false},
    {"head",        "st",   "BertForMaskedLM", HEFT_DTYPE_NONE, true,  true },
    {"head_cast",   "bins", "BertForMaskedLM", HEFT_DTYPE_F64,  true,  false},
    {"from_folder", "off",  NULL,              HEFT_DTYPE_NONE, true,  false},
    {"from_head",   "head", "BertForMaskedLM", HEFT_DTYPE_NONE, true,  true }, /* tied, from both */
};
#define ROWS (sizeof rows / sizeof rows[0])

static test_how options_of(size_t row, const char *to)
{
    return (test_how){
        .class_name = rows[row].class_name,
        .module = rows[row].all ? "" : "encoder.layer.1",
        .device = HEFT_DEVICE_DISK,
        .load = {.dtype = rows[row].dtype, .seed = 5, .touch = true, .offload_folder = to}
    };
}

static void expect_equal(const heft_model *placed, const heft_model *whole, bool all,
                         const char *what)
{
    heft_error err;
    assert_int_equal(heft_model_count(placed), heft_model_count(whole));
    for (size_t i = 0; i < heft_model_count(placed); i++) {
        const heft_parameter *parameter = heft_model_parameter(placed, i);
        heft_tensor *left = NULL, *right = NULL;
        const bool disk = all || strstr(parameter->name, "encoder.layer.1.") != NULL;
        test_expect_status(heft_model_tensor(placed, i, &left, &err), HEFT_OK, &err, what);
        test_expect_status(heft_model_tensor(whole, i, &right, &err), HEFT_OK, &err, what);
        if (left->dtype != right->dtype || left->size_bytes != right->size_bytes ||
            memcmp(left->data, right->data, (size_t)left->size_bytes) != 0) {
            fail_msg("%s: '%s' differs", what, parameter->name);
        }
        if (parameter->kind != HEFT_PARAMETER_BUFFER_TRANSIENT) {
            assert_int_equal(parameter->state, disk ? HEFT_PARAMETER_MAPPED : HEFT_PARAMETER_OWNED);
        }
        heft_tensor_free(left);
        heft_tensor_free(right);
    }
}

static void values_are_those_without_a_folder(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i++) {
        const bool made = strcmp(rows[i].from, "head") == 0; /* by a row */
        if (made) {
            assert_int_equal(symlink(at("st/config.json"), at("head/config.json")), 0);
        }
        for (int again = 0; again < 2; again++) { /* the second time it is there */
            heft_error err = {0};
            heft_model *placed = NULL, *whole = NULL;
            heft_load_report *report = NULL;
            test_how options = options_of(i, at(rows[i].name));
            test_how copy = {
                .class_name = rows[i].class_name,
                .load = {.dtype = rows[i].dtype, .seed = 5, .mode = HEFT_LOAD_COPY}
            };
            test_expect_status(test_load(ctx, at(rows[i].from), &options, &placed, &report, &err),
                               HEFT_OK, &err, rows[i].name);
            test_expect_status(test_load(ctx, at(rows[i].from), &copy, &whole, NULL, &err), HEFT_OK,
                               &err, rows[i].name);
            expect_equal(placed, whole, rows[i].all, rows[i].name);
            const bool head = rows[i].class_name != NULL;
            assert_true(report->offload_entries > 10);
            assert_true(report->offload_kept == (again == 1));
            assert_true((report->offload_files == 0) == (rows[i].points && !head));
            assert_true(!rows[i].points || report->offload_files < 8);
            assert_true((report->initialized_count > 0) == (head && !made));
            heft_load_report_free(report);
            heft_model_free(placed);
            heft_model_free(whole);
        }
    }
}

/* The folder of one load is a checkpoint for the next, also when the first had many aliases. */
static void a_folder_is_a_checkpoint(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i++) {
        heft_checkpoint *ckpt = NULL;
        heft_error err = {0};
        test_expect_status(heft_checkpoint_open(ctx, at(rows[i].name), NULL, &ckpt, &err), HEFT_OK,
                           &err, rows[i].name);
        const size_t tied = heft_checkpoint_find(ckpt, "cls.predictions.decoder.weight");
        assert_true((tied != SIZE_MAX) == (rows[i].class_name != NULL)); /* a name of its own */
        heft_checkpoint_close(ckpt);
    }
}

/* ---- nothing half done ----------------------------------------------------------------------- */
static heft_status load_once(heft_ctx *with, void *user, heft_error *err)
{
    const size_t row = *(const size_t *)user;
    test_how options = options_of(row, at("new"));
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    heft_status status = test_load(with, at(rows[row].from), &options, &model, &report, err);
    heft_load_report_free(report);
    heft_model_free(model);
    if (access(at("new"), F_OK) == 0) { /* whole, or not there */
        heft_checkpoint *ckpt = NULL;
        heft_error reason;
        test_expect_status(heft_checkpoint_open(ctx, at("new"), NULL, &ckpt, &reason), HEFT_OK,
                           &reason, rows[row].name);
        heft_checkpoint_close(ckpt);
        test_folder_remove(at("new"));
    }
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i += 3) { /* whole, cast, head_cast */
        test_oom_sweep(load_once, &i);
    }
}

static bool stop_offloading(void *user, const heft_progress *progress)
{
    int *left = user;
    return strcmp(progress->what, "offloading") != 0 || --*left > 0;
}

static void cancelled_in_the_middle(void **state)
{
    (void)state;
    for (int pieces = 1; pieces < 20; pieces += 6) {
        int left = pieces;
        size_t row = 3;
        const heft_ctx_options options =
            HEFT_OPTIONS(heft_ctx_options, .progress = stop_offloading, .progress_user = &left);
        heft_ctx *with = heft_ctx_new(&options);
        heft_error err;
        const size_t before = test_count_entries(folder);
        assert_non_null(with);
        test_expect_status(load_once(with, &row, &err), HEFT_CANCELLED, &err, "cancelled");
        assert_int_equal(test_count_entries(folder), before);
        heft_ctx_free(with);
    }
}

static void a_folder_without_a_map_is_refused(void **state)
{
    (void)state;
    const test_how options = {.load = {.offload_folder = at("new")}};
    heft_model *model = NULL;
    heft_error err;
    test_expect_status(test_load(ctx, at("st"), &options, &model, NULL, &err), HEFT_INVALID_ARG,
                       &err, "no map");
    assert_null(model);
    assert_int_not_equal(access(at("new"), F_OK), 0);
}

static int set_up(void **state)
{
    (void)state;
    heft_error err;
    const heft_convert_options offload =
        HEFT_OPTIONS(heft_convert_options, .format = HEFT_FORMAT_OFFLOAD);
    test_folder_make(folder);
    ctx = heft_ctx_new(NULL);
    make_checkpoint("st", HEFT_FORMAT_SAFETENSORS, 8000);
    make_checkpoint("bins", HEFT_FORMAT_TORCH, 8000);
    return test_convert(ctx, at("st"), at("off"), &offload, NULL, &err) == HEFT_OK ? 0 : 1;
}

static int tear_down(void **state)
{
    (void)state;
    uint64_t live;
    test_folder_remove(folder);
    heft_ctx_memory(ctx, &live, NULL);
    heft_ctx_free(ctx);
    return live == 0 ? 0 : 1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_those_without_a_folder),
        cmocka_unit_test(a_folder_is_a_checkpoint),
        cmocka_unit_test(memory_can_run_out_anywhere),
        cmocka_unit_test(cancelled_in_the_middle),
        cmocka_unit_test(a_folder_without_a_map_is_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
