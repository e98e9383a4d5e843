/* State of a quantization: scales of inputs and of the key/value cache are in the loaded model, in the saved
 * one, and in no dequantized one; and a quantized checkpoint goes into an existing model only if that has
 * the same tensors. */
#include "load/load.h"
#include "support.h"

#include <stdlib.h>

static heft_ctx *ctx;

#define QUANT HEFT_TEST_DATA "/quant/"

/* A copy of a folder of tests/data/quant with more float32 tensors of one element. */
static void copy_with(const char *from, const char *to, const char *const *names, size_t count)
{
    size_t length = 0, config_length = 0;
    char *file = test_read_file(test_path(from, "model.safetensors"), &length);
    char *config = test_read_file(test_path(from, "config.json"), &config_length);
    const size_t header = (size_t)heft__le64((const uint8_t *)file), data = length - 8 - header;
    char *made = malloc(length + count * 300);
    size_t at = 8;
    assert_non_null(made);
    made[at++] = '{';
    for (size_t i = 0; i < count; i++) {
        at += (size_t)sprintf(
            made + at, "\"%s\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[%zu,%zu]},",
            names[i], data + 4 * i, data + 4 * i + 4);
    }
    memcpy(made + at, file + 9, header - 1);
    at += header - 1;
    while (at % 8) {
        made[at++] = ' ';
    }
    for (int b = 0; b < 8; b++) {
        made[b] = (char)(uint8_t)((at - 8) >> 8 * b);
    }
    memcpy(made + at, file + 8 + header, data);
    at += data;
    for (size_t i = 0; i < count; i++) {
        const float value = 0.5F + (float)i;
        memcpy(made + at, &value, 4);
        at += 4;
    }
    test_write_file(to, "model.safetensors", made, at);
    test_write_file(to, "config.json", config, config_length);
    free(made);
    free(config);
    free(file);
}

static const char *const state_names[] = {
    "model.layers.0.self_attn.k_scale", "model.layers.0.self_attn.v_scale",
    "model.layers.0.self_attn.attn.q_scale", "model.layers.0.self_attn.k_proj.k_scale",
    "model.layers.0.mlp.down_proj.input_scale"};
#define STATE (sizeof state_names / sizeof *state_names)

static heft_source *opened(const char *folder, bool dequantize)
{
    heft_source *source = NULL;
    heft_error err = {0};
    const heft_source_options how = HEFT_OPTIONS(heft_source_options, .dequantize = dequantize);
    test_expect_status(heft_source_open(ctx, folder, &how, &source, &err), HEFT_OK, &err, folder);
    return source;
}

static const struct {
    const char *folder;
    size_t own; /* state that it has already */
} folders[] = {
    {"fp8_block",  0 },
    {"fp8_tensor", 14},
    {"gptq_4bit",  0 },
    {"bnb_nf4",    0 },
    {"ct_nvfp4",   0 },
    {"awq_4bit",   0 },
};

static void check_saved(const heft_model *model, const char *folder)
{
    heft_checkpoint *after = NULL;
    heft_error err = {0};
    test_expect_status(heft_model_save(model, test_path(folder, "new"), NULL, NULL, &err), HEFT_OK,
                       &err, "save");
    test_expect_status(heft_checkpoint_open(ctx, test_path(folder, "new"), NULL, &after, &err),
                       HEFT_OK, &err, "saved");
    for (size_t i = 0; i < STATE; i++) {
        const size_t at = heft_checkpoint_find(after, state_names[i]);
        float value = 0;
        assert_true(at != SIZE_MAX);
        test_expect_status(heft_checkpoint_read(after, at, &value, 4, &err), HEFT_OK, &err,
                           state_names[i]);
        assert_true(after->infos[at].dtype == HEFT_DTYPE_F32 &&
                    (value == 0.5F + (float)i || after->infos[at].rank == 0));
    }
    heft_checkpoint_close(after);
}

static void state_is_kept_and_told(void **state)
{
    (void)state;
    for (size_t f = 0; f < sizeof folders / sizeof *folders; f++) {
        char made[256];
        heft_model *model = NULL;
        heft_load_report *report = NULL;
        heft_error err = {0};
        const bool has_input = strcmp(folders[f].folder, "fp8_tensor") == 0;
        const size_t added = has_input ? STATE - 1 : STATE; /* it has the last one */
        test_folder_make(made);
        char from[512];
        (void)snprintf(from, sizeof from, "%s%s", QUANT, folders[f].folder);
        copy_with(from, made, state_names, added);
        heft_source *source = opened(made, false);
        const heft_quantization *told = heft_source_quantization(source);
        if (strcmp(folders[f].folder, "ct_nvfp4") != 0) {
            assert_int_equal(told->state_count, folders[f].own + added);
        }
        test_expect_status(heft_model_load(source, NULL, &model, &report, &err), HEFT_OK, &err,
                           made);
        assert_int_equal(report->unexpected_count, 0);
        assert_int_equal(report->missing_count, 0);
        assert_true(heft_model_find(model, state_names[0]) != SIZE_MAX);
        if (!has_input) {
            check_saved(model, made);
        }
        heft_load_report_free(report);
        heft_model_free(model);
        heft_source_close(source);

        source = opened(made, true);
        report = NULL;
        test_expect_status(heft_model_load(source, NULL, &model, &report, &err), HEFT_OK, &err,
                           made);
        assert_int_equal(report->unexpected_count, 0);
        assert_int_equal(report->warning_count, 1);
        assert_non_null(strstr(report->warnings[0], "is left out"));
        assert_true(heft_model_find(model, state_names[0]) == SIZE_MAX);
        heft_load_report_free(report);
        heft_model_free(model);
        heft_source_close(source);
        test_folder_remove(made);
    }
}

/* Layers that the model has not: their state is unexpected, like their weights. */
static void state_of_no_module_is_unexpected(void **state)
{
    static const char *const names[] = {"model.layers.77.self_attn.k_scale", "k_scale",
                                        "other.thing.k_scale"};
    char made[256];
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    heft_error err = {0};
    (void)state;
    test_folder_make(made);
    copy_with(QUANT "gptq_4bit", made, names, 3);
    heft_source *source = opened(made, false);
    test_expect_status(heft_model_load(source, NULL, &model, &report, &err), HEFT_OK, &err, made);
    assert_int_equal(report->unexpected_count, 3);
    heft_load_report_free(report);
    heft_model_free(model);
    heft_source_close(source);
    test_folder_remove(made);
}

/* ---- into an existing model -------------------------------------------------------------------- */
static void a_model_of_the_same_tensors_is_filled(void **state)
{
    static const char *const names[] = {"gptq_4bit", "fp8_block", "bnb_nf4_nested", "mxfp4"};
    (void)state;
    for (size_t f = 0; f < sizeof names / sizeof *names; f++) {
        char folder[512], shards[256];
        heft_model *model = NULL;
        heft_error err = {0};
        const heft_convert_options small =
            HEFT_OPTIONS(heft_convert_options, .max_shard_bytes = 20000);
        test_folder_make(shards);
        (void)snprintf(folder, sizeof folder, "%s%s", QUANT, names[f]);
        heft_source *source = opened(folder, false);
        test_expect_status(
            heft_source_convert(source, test_path(shards, "new"), &small, NULL, &err), HEFT_OK,
            &err, folder);
        test_expect_status(heft_model_skeleton(source, NULL, &model, &err), HEFT_OK, &err, folder);
        const heft_load_sharded_options strict =
            HEFT_OPTIONS(heft_load_sharded_options, .strict = true);
        test_expect_status(
            heft_model_load_sharded(model, test_path(shards, "new"), &strict, NULL, &err), HEFT_OK,
            &err, folder);
        const heft_checkpoint *ckpt = heft_source_checkpoint(source);
        for (size_t i = 0; i < ckpt->count; i++) {
            const heft_tensor_info *info = &ckpt->infos[i];
            const size_t at = heft_model_find(model, info->name);
            uint8_t *bytes = malloc(info->size_bytes ? info->size_bytes : 1);
            assert_true(at != SIZE_MAX && bytes);
            test_expect_status(heft_checkpoint_read(ckpt, i, bytes, info->size_bytes, &err),
                               HEFT_OK, &err, info->name);
            const heft__binding *b = &model->bindings[at];
            assert_memory_equal(bytes,
                                (const uint8_t *)heft_storage_data(b->storage) + b->byte_offset,
                                info->size_bytes);
            free(bytes);
        }
        heft_model_free(model);
        heft_source_close(source);
        test_folder_remove(shards);
    }
}

/* float8 would be cast without its scales, and what is packed would be left out. */
static void a_plain_model_is_not_filled_with_quantized_weights(void **state)
{
    static const char *const names[] = {"gptq_4bit", "fp8_block", "fp8_tensor",  "bnb_nf4",
                                        "mxfp4",     "ct_int8",   "ct_int4_pack"};
    (void)state;
    for (size_t f = 0; f < sizeof names / sizeof *names; f++) {
        char folder[512];
        heft_model *model = NULL;
        heft_error err = {0};
        (void)snprintf(folder, sizeof folder, "%s%s", QUANT, names[f]);
        heft_source *source = opened(folder, false);
        test_expect_status(
            heft_model_new(ctx, heft_source_config(source), NULL, HEFT_DTYPE_NONE, &model, &err),
            HEFT_OK, &err, folder);
        const heft_status status = heft_model_load_sharded(model, folder, NULL, NULL, &err);
        if (status != HEFT_MISMATCH) { /* by its shape */
            test_expect_status(status, HEFT_UNSUPPORTED, &err, folder);
            assert_non_null(strstr(err.message, "dequantize the checkpoint"));
        }
        heft_model_free(model);
        heft_source_close(source);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(state_is_kept_and_told),
        cmocka_unit_test(state_of_no_module_is_unexpected),
        cmocka_unit_test(a_model_of_the_same_tensors_is_filled),
        cmocka_unit_test(a_plain_model_is_not_filled_with_quantized_weights),
    };
    ctx = heft_ctx_new(NULL);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
