/* Models of a type that heft has no family for: the checkpoint's own names, shapes and dtypes, its
 * repeated modules as blocks; loaded, saved and loaded again. */
#include "load/load.h"
#include "support.h"
#include "support_model.h"

#include <stdlib.h>

static heft_ctx *ctx;
static char folder[256];

static const char *at(const char *name)
{
    return test_path(folder, name);
}

/* A scenario of tests/data/loading with another model_type. */
static void make_unknown(const char *scenario, const char *name)
{
    char command[1200];
    snprintf(command, sizeof command,
             "rm -rf '%s/%s' && cp -r '%s/loading/%s' '%s/%s' && "
             "sed -i 's/\"model_type\": *\"[^\"]*\"/\"model_type\": \"quux\"/' '%s/%s/config.json'",
             folder, name, HEFT_TEST_DATA, scenario, folder, name, folder, name);
    assert_int_equal(system(command), 0);
}

static heft_model *load(heft_ctx *with, const char *name, heft_dtype dtype,
                        heft_load_report **report)
{
    heft_error err = {0};
    heft_model *model = NULL;
    const test_how options = {
        .load = {.strict = true, .dtype = dtype}
    };
    test_expect_status(test_load(with, at(name), &options, &model, report, &err), HEFT_OK, &err,
                       name);
    return model;
}

/* Every tensor of the checkpoint is a parameter with its bytes. */
static void compare_all(const char *name, const heft_model *model)
{
    heft_checkpoint *ckpt = NULL;
    heft_error err = {0};
    test_expect_status(heft_checkpoint_open(ctx, at(name), NULL, &ckpt, &err), HEFT_OK, &err, name);
    assert_int_equal(heft_model_count(model), heft_checkpoint_count(ckpt));
    for (size_t i = 0; i < heft_checkpoint_count(ckpt); i++) {
        const heft_tensor_info *info = heft_checkpoint_info(ckpt, i);
        heft_tensor *tensor = NULL;
        uint8_t *bytes = malloc(info->size_bytes + 1);
        size_t number = heft_model_find(model, info->name);
        assert_true(number != SIZE_MAX);
        test_expect_status(heft_model_tensor(model, number, &tensor, &err), HEFT_OK, &err, name);
        test_expect_status(heft_checkpoint_read(ckpt, i, bytes, info->size_bytes, &err), HEFT_OK,
                           &err, name);
        assert_int_equal(tensor->dtype, info->dtype);
        assert_int_equal(tensor->size_bytes, info->size_bytes);
        assert_memory_equal(tensor->data, bytes, info->size_bytes);
        heft_tensor_free(tensor);
        free(bytes);
    }
    heft_checkpoint_close(ckpt);
}

static void the_checkpoint_is_the_skeleton(void **state)
{
    (void)state;
    static const struct {
        const char *scenario, *blocks[3];
        size_t tied;
    } rows[] = {
        {"moe_per_expert",      {"model.layers.*"},  0},
        {"moe_fused_file",      {"model.layers.*"},  0},
        {"sharded_safetensors", {"model.layers.*"},  0},
        {"dtype_bf16_t5",       {NULL},              0}, /* of one block each */
        {"single_bin",          {"transformer.h.*"}, 1},
    };
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        const char *name = rows[r].scenario;
        heft_load_report *report = NULL;
        make_unknown(name, name);
        heft_model *model = load(ctx, name, HEFT_DTYPE_NONE, &report);
        assert_string_equal(report->model_type, "quux");
        assert_int_equal(report->warning_count, 1);
        assert_non_null(strstr(report->warnings[0], "'quux' is not known"));
        assert_int_equal(report->tied_count, rows[r].tied);
        compare_all(name, model);
        size_t k = 0;
        for (; rows[r].blocks[k]; k++) {
            assert_non_null(heft_model_no_split(model, k));
            assert_string_equal(heft_model_no_split(model, k), rows[r].blocks[k]);
        }
        assert_null(heft_model_no_split(model, k));
        heft_load_report_free(report);
        heft_model_free(model);
    }
}

static void it_is_cast_and_saved_and_loaded_again(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_load_report *report = NULL;
    make_unknown("moe_per_expert", "unknown");
    heft_model *model = load(ctx, "unknown", HEFT_DTYPE_BF16, &report);
    for (size_t i = 0; i < heft_model_count(model); i++) {
        assert_int_equal(heft_model_parameter(model, i)->dtype, HEFT_DTYPE_BF16);
    }
    const heft_save_options save = HEFT_OPTIONS(heft_save_options, .max_shard_bytes = 5000);
    test_expect_status(heft_model_save(model, at("saved"), &save, NULL, &err), HEFT_OK, &err,
                       "save");
    test_expect_status(heft_model_save_random(model, at("random"), NULL, &save, NULL, &err),
                       HEFT_UNSUPPORTED, &err, "random");
    test_expect_status(heft_model_init(model, NULL, &err), HEFT_UNSUPPORTED, &err, "init");
    heft_load_report_free(report);
    heft_model_free(model);
    model = load(ctx, "saved", HEFT_DTYPE_NONE, &report);
    compare_all("saved", model);
    assert_int_equal(report->dtype, HEFT_DTYPE_BF16);
    heft_load_report_free(report);
    heft_model_free(model);
}

static void a_class_must_be_known(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *model = NULL;
    const test_how options = {.class_name = "AutoModel"};
    make_unknown("moe_per_expert", "unknown");
    test_expect_status(test_load(ctx, at("unknown"), &options, &model, NULL, &err),
                       HEFT_UNSUPPORTED, &err, "class");
    assert_string_equal(err.item, "model_type");
}

static heft_status attempt(heft_ctx *with, void *user, heft_error *err)
{
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    heft_status status = test_load(with, at(user), NULL, &model, &report, err);
    heft_load_report_free(report);
    heft_model_free(model);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    static char name[] = "unknown";
    make_unknown("moe_fused_file", name);
    test_oom_sweep(attempt, name);
}

static int set_up(void **state)
{
    (void)state;
    ctx = heft_ctx_new(NULL);
    test_folder_make(folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    test_folder_remove(folder);
    heft_ctx_free(ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_checkpoint_is_the_skeleton),
        cmocka_unit_test(it_is_cast_and_saved_and_loaded_again),
        cmocka_unit_test(a_class_must_be_known),
        cmocka_unit_test(memory_can_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
