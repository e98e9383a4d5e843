/* What a writer does where the destination has another checkpoint's config, tokenizer and their like: new
 * weights are never silently read with them, and no file is lost. */
#include <heft/writer.h>

#include "checkpoint/checkpoint.h"
#include "support.h"
#include "support_model.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static heft_ctx *ctx;
static char folder[256];

static const char *at(const char *name)
{
    return test_path(folder, name);
}

static void names_are_told_apart(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        bool is;
    } rows[] = {
        {"config.json",                       true },
        {"generation_config.json",            true },
        {"adapter_config.json",               true },
        {"tokenizer.json",                    true },
        {"tokenizer_config.json",             true },
        {"tokenizer.model",                   true },
        {"vocab.txt",                         true },
        {"vocab.json",                        true },
        {"merges.txt",                        true },
        {"special_tokens_map.json",           true },
        {"added_tokens.json",                 true },
        {"spiece.model",                      true },
        {"sentencepiece.bpe.model",           true },
        {"qwen.tiktoken",                     true },
        {"chat_template.jinja",               true },
        {"chat_template.json",                true },
        {"additional_chat_templates",         true },
        {"preprocessor_config.json",          true },
        {"video_preprocessor_config.json",    true },
        {"processor_config.json",             true },
        {"modules.json",                      true },
        {"sentence_bert_config.json",         true },
        {"config_sentence_transformers.json", true },
        {"1_Pooling",                         true },
        {"modeling_mine.py",                  true },
        {"README.md",                         false},
        {"notes.txt",                         false},
        {"config.json.bak",                   false},
        {"my_config.json",                    false},
        {"trainer_state.json",                false},
        {"optimizer.pt",                      false},
        {"1_notes",                           false},
        {"logs",                              false},
        {"train.py",                          false},
        {"model.safetensors",                 false},
        {"",                                  false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (heft__is_side_file_name(rows[i].name) != rows[i].is) {
            fail_msg("%s", rows[i].name);
        }
    }
}

static void folders_are_told_apart(void **state)
{
    (void)state;
    static const struct {
        const char *path, *names[3];
        bool is;
    } rows[] = {
        {"1_Pooling",                 {"config.json"},                                      true },
        {"2_Normalize",               {NULL},                                               true },
        {"2_Dense",                   {"config.json", "model.safetensors"},                 true },
        {"2_Dense",                   {"config.json", "pytorch_model.bin"},                 true },
        {"2_Dense/onnx",              {"model.onnx"},                                       false},
        {"additional_chat_templates", {"tool_use.jinja"},                                   true },
        {"vision-lora",               {"adapter_config.json", "adapter_model.safetensors"}, true },
        {"voices",                    {"af_heart.pt"},                                      true },
        {"speech_tokenizer",          {"config.json", "model.safetensors"},                 true },
        {"speech_tokenizer",          {"encoder.onnx"},                                     true },
        {"scheduler",                 {"scheduler_config.json"},                            true },
        {"scaler",                    {"scaler.npz"},                                       true },
        {"onnx",                      {"model.onnx", "model.onnx_data"},                    false},
        {"onnx",                      {"README.md"},                                        true },
        {"onnx",                      {NULL},                                               true },
        {"openvino",                  {"openvino_model.bin", "openvino_model.xml"},         false},
        {"OpenVINO",                  {"openvino_model.xml"},                               false},
        {"coreml/model.mlpackage",    {"Manifest.json"},                                    false},
        {"original",                  {"consolidated.00.pth", "params.json"},               false},
        {"original",                  {"params.json"},                                      true },
        {"originals",                 {"consolidated.00.pth"},                              true },
        {"metal",                     {"model.bin"},                                        false},
        {"checkpoint-500",            {"model.safetensors", "trainer_state.json"},          false},
        {"checkpoint-500",            {NULL},                                               false},
        {"checkpoint-best",           {"model.safetensors"},                                true },
        {"checkpoint-best",           {"optimizer.pt"},                                     false},
        {"checkpoint-",               {"a"},                                                true },
        {"global_step12",             {"mp_rank_00_model_states.pt"},                       false},
        {"last",                      {"bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"},   false},
        {"pytorch_model_fsdp_0",      {"__0_0.distcp"},                                     false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t count = 0;
        while (count < 3 && rows[i].names[count]) {
            count++;
        }
        if (heft__is_model_folder(rows[i].path, rows[i].names, count) != rows[i].is) {
            fail_msg("%s, %s", rows[i].path, rows[i].names[0]);
        }
    }
}

/* ---- one destination per row ------------------------------------------------------------------- */
static const char config[] =
    "{\"model_type\":\"bert\",\"hidden_size\":16,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":2,\"intermediate_size\":24,\"vocab_size\":30,"
    "\"max_position_embeddings\":10,\"dtype\":\"float32\",\"architectures\":[\"BertModel\"]}";

typedef enum route {
    CONVERT,      /* a folder with config.json, vocab.txt and 1_Pooling/config.json */
    CONVERT_BARE, /* one without side files */
    CONVERT_LONE, /* its weight file alone: the side files beside it are not brought */
    SAVE,
    SAVE_RANDOM,
    SAVE_LOADED, /* the model of the source folder: its config.json is still there */
    WRITER,
    WRITER_SINGLE_MODEL, /* model.safetensors */
    WRITER_SINGLE_OTHER, /* mine.safetensors */
    OFFLOAD,             /* of the source folder */
} route;

static heft_status make_model(heft_model **model, heft_error *err)
{
    *model = test_model_from_text(ctx, config, "BertModel");
    return heft_model_init(*model, NULL, err);
}

static heft_status save(route way, const char *dst, bool keep, heft_error *err)
{
    const heft_save_options options =
        HEFT_OPTIONS(heft_save_options, .force = true, .keep_side_files = keep);
    heft_model *model = NULL;
    heft_status status = way == SAVE_LOADED ? test_load(ctx, at("source"), NULL, &model, NULL, err)
                                            : make_model(&model, err);
    if (status == HEFT_OK) {
        status = way == SAVE_RANDOM ? heft_model_save_random(model, dst, NULL, &options, NULL, err)
                                    : heft_model_save(model, dst, &options, NULL, err);
    }
    heft_model_free(model);
    return status;
}

static heft_status write_own(route way, const char *dst, bool keep, heft_error *err)
{
    static const uint64_t shape[] = {2};
    static const float values[] = {1, 2};
    char path[400];
    heft_storage *storage = NULL;
    heft_tensor *tensor = NULL;
    heft_writer *writer = NULL;
    const heft_writer_options options = HEFT_OPTIONS(
        heft_writer_options, .single_file = way != WRITER, .force = true, .keep_side_files = keep);
    const heft_tensor_spec spec =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_F32, .rank = 1, .shape = shape);
    snprintf(path, sizeof path, "%s%s", dst,
             way == WRITER                ? ""
             : way == WRITER_SINGLE_MODEL ? "/model.safetensors"
                                          : "/mine.safetensors");
    heft_status status =
        heft_storage_wrap_const(ctx, values, sizeof values, NULL, NULL, &storage, err);
    if (status == HEFT_OK) {
        status = heft_tensor_new(storage, &spec, &tensor, err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_new(ctx, path, &options, &writer, err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_add(writer, "a", tensor, err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_commit(writer, NULL, err);
    }
    heft_writer_free(writer);
    heft_tensor_free(tensor);
    heft_storage_unref(storage);
    return status;
}

static heft_status run(route way, const char *dst, bool keep, heft_error *err)
{
    const heft_convert_options options =
        HEFT_OPTIONS(heft_convert_options, .force = true, .keep_side_files = keep);
    const test_how offload = {
        .module = "", .device = HEFT_DEVICE_DISK, .load = {.offload_folder = dst}};
    heft_model *model = NULL;
    heft_status status;
    switch (way) {
    case CONVERT:
        return test_convert(ctx, at("source"), dst, &options, NULL, err);
    case CONVERT_BARE:
        return test_convert(ctx, at("bare"), dst, &options, NULL, err);
    case CONVERT_LONE:
        return test_convert(ctx, at("source/model.safetensors"), dst, &options, NULL, err);
    case OFFLOAD:
        status = test_load(ctx, at("source"), &offload, &model, NULL, err);
        heft_model_free(model);
        return status;
    case SAVE:
    case SAVE_RANDOM:
    case SAVE_LOADED:
        return save(way, dst, keep, err);
    case WRITER:
    case WRITER_SINGLE_MODEL:
    case WRITER_SINGLE_OTHER:
        break;
    }
    return write_own(way, dst, keep, err);
}

/* Side files of the destination: '!' before a name: with other bytes than the source's. */
static const struct {
    const char *name;
    route way;
    const char *there[4];
    const char *words; /* of the refusal; NULL: it is written */
} rows[] = {
    {"empty",                CONVERT_BARE,        {NULL},                                                       NULL                                          },
    {"unknown_names",        CONVERT_BARE,        {"!README.md", "!notes.txt"},                                 NULL                                          },
    {"config",               CONVERT_BARE,        {"!config.json"},                                             "contains 'config.json' of another checkpoint"},
    {"tokenizer",            CONVERT_BARE,        {"!tokenizer.json", "!README.md"},                            "contains 'tokenizer.json' of"                },
    {"many",
     CONVERT_BARE,                                {"!a.tiktoken", "!config.json", "!merges.txt", "!vocab.txt"},
     "'a.tiktoken', 'config.json', 'merges.txt' and 'vocab.txt' of"                                                                                           },
    {"source_has_them",      CONVERT,             {"!config.json", "!vocab.txt"},                               NULL                                          },
    {"source_lacks_one",
     CONVERT,                                     {"!config.json", "!tokenizer.json"},
     "contains 'tokenizer.json' of"                                                                                                                           },
    {"generation_config",    CONVERT,             {"!generation_config.json"},                                  "'generation_config.json'"                    },
    {"chat_template",        CONVERT,             {"!chat_template.jinja"},                                     "'chat_template.jinja'"                       },
    {"folder_is_replaced",   CONVERT,             {"!1_Pooling/config.json"},                                   NULL                                          },
    {"folder_of_another",    CONVERT_LONE,        {"!1_Pooling/config.json"},                                   "'1_Pooling'"                                 },
    {"lone_folder_the_same", CONVERT_LONE,        {"1_Pooling/config.json"},                                    NULL                                          },
    {"folder_of_none",       CONVERT,             {"!2_Dense/config.json"},                                     "'2_Dense'"                                   },
    {"folder_the_same",      CONVERT,             {"1_Pooling/config.json"},                                    NULL                                          },
    {"folder_with_more",     CONVERT,             {"1_Pooling/config.json", "!1_Pooling/more"},                 "'1_Pooling/more'"                            },
    {"folder_with_hidden",   CONVERT,             {"1_Pooling/config.json", "!1_Pooling/.more"},                NULL                                          },
    {"lone_others",          CONVERT_LONE,        {"!config.json", "vocab.txt"},                                "contains 'config.json' of"                   },
    {"lone_the_same",        CONVERT_LONE,        {"config.json", "vocab.txt"},                                 NULL                                          },
    {"save_tokenizer",       SAVE,                {"!config.json", "!tokenizer.json"},                          "contains 'tokenizer.json' of"                },
    {"save_config",          SAVE,                {"!config.json"},                                             NULL                                          },
    {"save_random",          SAVE_RANDOM,         {"vocab.txt"},                                                "contains 'vocab.txt' of"                     },
    {"save_loaded_the_same", SAVE_LOADED,         {"!config.json", "vocab.txt"},                                NULL                                          },
    {"save_loaded_other",    SAVE_LOADED,         {"!vocab.txt"},                                               "contains 'vocab.txt' of"                     },
    {"writer",               WRITER,              {"!config.json"},                                             "contains 'config.json' of"                   },
    {"writer_single_model",  WRITER_SINGLE_MODEL, {"!config.json"},                                             "contains 'config.json' of"                   },
    {"writer_single_other",  WRITER_SINGLE_OTHER, {"!config.json"},                                             NULL                                          },
    {"offload_other",
     OFFLOAD,                                     {"!config.json"},
     "'config.json' of another checkpoint, which loaders would use with the "
     "new weights; write to another folder"                                                                                                                   },
    {"offload_the_same",     OFFLOAD,             {"config.json", "vocab.txt"},                                 NULL                                          },
};

static void put_file(const char *dst, const char *name, bool other)
{
    char path[400], *slash;
    snprintf(path, sizeof path, "%s/%s", dst, name);
    slash = strrchr(path + strlen(dst) + 1, '/');
    if (slash) {
        *slash = '\0';
        (void)mkdir(path, 0777);
    }
    if (other) {
        test_write_file(dst, name, "{\"x\":1}", 7);
        return;
    }
    size_t length;
    char source[400];
    snprintf(source, sizeof source, "source/%s", name);
    char *text = test_read_file(at(source), &length);
    test_write_file(dst, name, text, length);
    free(text);
}

static void new_weights_are_not_read_with_old_files(void **state)
{
    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        char dst[300];
        heft_error err = {0};
        size_t files = 0;
        snprintf(dst, sizeof dst, "%s", at(rows[r].name));
        assert_int_equal(mkdir(dst, 0777), 0);
        for (size_t i = 0; i < 4 && rows[r].there[i]; i++) {
            const bool other = rows[r].there[i][0] == '!';
            put_file(dst, rows[r].there[i] + other, other);
        }
        files = test_count_entries(dst);
        const heft_status status = run(rows[r].way, dst, false, &err);
        test_expect_status(status, rows[r].words ? HEFT_EXISTS : HEFT_OK, &err, rows[r].name);
        if (!rows[r].words) {
            continue;
        }
        if (!strstr(err.message, rows[r].words)) {
            fail_msg("%s: '%s'", rows[r].name, err.message);
        }
        assert_int_equal(test_count_entries(dst), files);
        if (rows[r].way == OFFLOAD) {
            assert_null(strstr(err.message, "keep_side_files"));
            continue;
        }
        assert_non_null(strstr(err.message, "'keep_side_files'"));
        test_expect_status(run(rows[r].way, dst, true, &err), HEFT_OK, &err, rows[r].name);
        for (size_t i = 0; i < 4 && rows[r].there[i]; i++) { /* none is lost */
            char path[400];
            snprintf(path, sizeof path, "%s/%s", dst,
                     rows[r].there[i] + (rows[r].there[i][0] == '!'));
            assert_true(heft__path_exists(path));
        }
    }
}

/* The source's folder is another checkpoint's by the time of the save. */
static void a_source_that_was_replaced_vouches_for_nothing(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *model = NULL;
    test_expect_status(test_convert(ctx, at("source"), at("home"), NULL, NULL, &err), HEFT_OK, &err,
                       "copy");
    const test_how how = {.load = {.mode = HEFT_LOAD_COPY}};
    test_expect_status(test_load(ctx, at("home"), &how, &model, NULL, &err), HEFT_OK, &err, "load");
    const heft_save_options options = HEFT_OPTIONS(heft_save_options, .force = true);
    test_expect_status(heft_model_save(model, at("home"), &options, NULL, &err), HEFT_OK, &err,
                       "at home");
    test_expect_status(heft_model_save(model, at("home"), &options, NULL, &err), HEFT_OK, &err,
                       "once more");
    put_file(at("home"), "config.json", true);
    test_expect_status(heft_model_save(model, at("home"), &options, NULL, &err), HEFT_EXISTS, &err,
                       "replaced");
    heft_model_free(model);
}

static void expect_saved(const heft_model *model, const char *name, const char *text)
{
    heft_error err = {0};
    const char *dst = at(name);
    test_expect_status(heft_model_save(model, dst, NULL, NULL, &err), HEFT_OK, &err, name);
    if (!text) {
        assert_false(heft__path_exists(test_path(dst, "generation_config.json")));
        return;
    }
    char *found = test_read_file(test_path(dst, "generation_config.json"), NULL);
    assert_string_equal(found, text);
    free(found);
}

/* How a model generates is saved with it, as it was when it was loaded; settings of weights that are not
 * quantized are not. */
static void a_loaded_model_is_saved_with_its_generation_config(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    const test_how how = {.load = {.mode = HEFT_LOAD_COPY}};
    test_expect_status(test_convert(ctx, at("source"), at("speaks"), NULL, NULL, &err), HEFT_OK,
                       &err, "copy");
    test_expect_status(test_load(ctx, at("speaks"), &how, &model, NULL, &err), HEFT_OK, &err,
                       "without");
    expect_saved(model, "speaks_not", NULL);
    heft_model_free(model);
    test_write_file(at("speaks"), "generation_config.json", "{\"top_k\": 7}", 12);
    test_write_file(at("speaks"), "quantize_config.json", "{}", 2);
    test_expect_status(test_load(ctx, at("speaks"), &how, &model, NULL, &err), HEFT_OK, &err,
                       "with");
    expect_saved(model, "speaks_too", "{\"top_k\": 7}");
    assert_false(heft__path_exists(at("speaks_too/quantize_config.json")));
    test_folder_remove(at("speaks"));
    expect_saved(model, "speaks_later", "{\"top_k\": 7}");
    heft_model_free(model);
    /* what is no file or too large is said, and left */
    test_expect_status(test_convert(ctx, at("source"), at("mute"), NULL, NULL, &err), HEFT_OK, &err,
                       "copy");
    const size_t large = (size_t)heft__limits(ctx)->config_bytes + 1;
    char *text = calloc(large, 1);
    assert_non_null(text);
    test_write_file(at("mute"), "generation_config.json", text, large);
    free(text);
    test_expect_status(test_load(ctx, at("mute"), &how, &model, &report, &err), HEFT_OK, &err,
                       "too large");
    assert_true(report->warning_count > 0);
    assert_non_null(strstr(report->warnings[report->warning_count - 1],
                           "a save will not have 'generation_config.json': "));
    expect_saved(model, "mute_too", NULL);
    heft_load_report_free(report);
    heft_model_free(model);
}

/* Weights that are read only by another format or variant stay, as they always did: with a warning. */
static void weights_that_stay_are_told(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_write_report *report = NULL;
    const heft_convert_options options = HEFT_OPTIONS(heft_convert_options, .force = true);
    const char *dst = at("weights");
    assert_int_equal(mkdir(dst, 0777), 0);
    test_write_file(dst, "model.safetensors", "old", 3);
    test_write_file(dst, "mine.safetensors", "mine", 4);
    test_expect_status(test_convert(ctx, at("source"), dst, &options, &report, &err), HEFT_OK, &err,
                       "none");
    const size_t others = report->warning_count; /* of what the source has */
    assert_true(others <= 1);
    heft_write_report_free(report);
    test_write_file(dst, "pytorch_model.bin", "old", 3);
    test_write_file(dst, "model.fp16.safetensors", "old", 3);
    test_expect_status(test_convert(ctx, at("source"), dst, &options, &report, &err), HEFT_OK, &err,
                       "two");
    assert_int_equal(report->warning_count, others + 1);
    assert_non_null(
        strstr(report->warnings[others], "'model.fp16.safetensors' and 1 more of another"));
    heft_write_report_free(report);
}

static int set_up(void **state)
{
    (void)state;
    heft_error err = {0};
    ctx = heft_ctx_new(NULL);
    test_folder_make(folder);
    heft_model *model = test_model_from_text(ctx, config, "BertModel");
    test_expect_status(heft_model_save_random(model, at("source"), NULL, NULL, NULL, &err), HEFT_OK,
                       &err, "source");
    heft_model_free(model);
    test_write_file(at("source"), "vocab.txt", "new\n", 4);
    assert_int_equal(mkdir(at("source/1_Pooling"), 0777), 0);
    test_write_file(at("source/1_Pooling"), "config.json", "{}", 2);
    test_expect_status(
        test_convert(ctx, at("source/model.safetensors"), at("bare"), NULL, NULL, &err), HEFT_OK,
        &err, "bare");
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
        cmocka_unit_test(names_are_told_apart),
        cmocka_unit_test(folders_are_told_apart),
        cmocka_unit_test(new_weights_are_not_read_with_old_files),
        cmocka_unit_test(a_source_that_was_replaced_vouches_for_nothing),
        cmocka_unit_test(a_loaded_model_is_saved_with_its_generation_config),
        cmocka_unit_test(weights_that_stay_are_told),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
