/* Sources: what a path names, opened once; a missing part is an error only where it is needed; plans as an
 * input of a load. */
#include "load/load.h"
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

static heft_model *make_model(const char *class_name, unsigned layers)
{
    char config[400];
    snprintf(config, sizeof config,
             "{\"model_type\":\"bert\",\"hidden_size\":16,\"num_hidden_layers\":%u,"
             "\"num_attention_heads\":2,\"intermediate_size\":24,\"vocab_size\":30,"
             "\"max_position_embeddings\":10,\"dtype\":\"float32\",\"architectures\":[\"%s\"]}",
             layers, class_name);
    return test_model_from_text(ctx, config, class_name);
}

static void save_as(const char *name, heft_format format, uint64_t shard_bytes)
{
    heft_error err = {0};
    heft_model *model = make_model("BertModel", 2);
    const heft_save_options options =
        HEFT_OPTIONS(heft_save_options, .format = format, .max_shard_bytes = shard_bytes);
    test_expect_status(heft_model_save_random(model, at(name), NULL, &options, NULL, &err), HEFT_OK,
                       &err, name);
    heft_model_free(model);
}

static void copy_to(const char *from, const char *name, const char *but)
{
    char command[1200];
    snprintf(command, sizeof command, "cp -r '%s/%s' '%s/%s' && rm -f '%s/%s'/%s", folder, from,
             folder, name, folder, name, but);
    assert_int_equal(system(command), 0);
}

/* ---- what is found --------------------------------------------------------------------------- */
static void a_path_names_what_lies_there(void **state)
{
    (void)state;
    static const struct {
        const char *path, *class_name; /* asked for */
        heft_status status;
        heft_source_kind kind;
        const char *class_made; /* NULL: none */
        heft_status load;
    } rows[] = {
        {"st",                  NULL,                   HEFT_OK,          HEFT_SOURCE_FILE,    "BertModel",       HEFT_OK       },
        {"bins",                NULL,                   HEFT_OK,          HEFT_SOURCE_SHARDED, "BertModel",       HEFT_OK       },
        {"off",                 NULL,                   HEFT_OK,          HEFT_SOURCE_OFFLOAD, "BertModel",       HEFT_OK       },
        {"st/config.json",      NULL,                   HEFT_OK,          HEFT_SOURCE_CONFIG,  "BertModel",       HEFT_NOT_FOUND},
        {"bare",                NULL,                   HEFT_OK,          HEFT_SOURCE_CONFIG,  "BertModel",       HEFT_NOT_FOUND},
        {"st",                  "AutoModelForMaskedLM", HEFT_OK,          HEFT_SOURCE_FILE,    "BertForMaskedLM", HEFT_OK       },
        {"st",                  "GPT2Model",            HEFT_UNSUPPORTED, 0,                   NULL,              0             },
        {"no_config",           NULL,                   HEFT_OK,          HEFT_SOURCE_FILE,    NULL,              HEFT_NOT_FOUND},
        {"no_config",           "BertModel",            HEFT_NOT_FOUND,   0,                   NULL,              0             },
        {"bad_config",          NULL,                   HEFT_OK,          HEFT_SOURCE_FILE,    NULL,              HEFT_FORMAT   },
        {"other_class",         NULL,                   HEFT_OK,          HEFT_SOURCE_FILE,    "NertModel",       HEFT_OK       },
        {"unknown",             NULL,                   HEFT_OK,          HEFT_SOURCE_FILE,    "QuuxModel",       HEFT_OK       },
        {"unknown/config.json", NULL,                   HEFT_OK,          HEFT_SOURCE_CONFIG,  NULL,              HEFT_NOT_FOUND},
        {"lost_shard",          NULL,                   HEFT_NOT_FOUND,   0,                   NULL,              0             },
        {"none",                NULL,                   HEFT_NOT_FOUND,   0,                   NULL,              0             },
        {"empty",               NULL,                   HEFT_NOT_FOUND,   0,                   NULL,              0             },
        {"odd_index",           NULL,                   HEFT_OK,          HEFT_SOURCE_SHARDED, NULL,              HEFT_NOT_FOUND},
        {"odd_index/my.json",   NULL,                   HEFT_OK,          HEFT_SOURCE_SHARDED, NULL,              HEFT_NOT_FOUND},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_error err = {0};
        heft_source *source = NULL;
        heft_model *model = NULL;
        const heft_source_options options =
            HEFT_OPTIONS(heft_source_options, .class_name = rows[i].class_name);
        test_expect_status(heft_source_open(ctx, at(rows[i].path), &options, &source, &err),
                           rows[i].status, &err, rows[i].path);
        if (rows[i].status != HEFT_OK) {
            assert_null(source);
            continue;
        }
        assert_int_equal(heft_source_what(source), rows[i].kind);
        assert_int_equal(heft_source_checkpoint(source) != NULL,
                         rows[i].kind != HEFT_SOURCE_CONFIG);
        if (rows[i].class_made) {
            assert_string_equal(heft_source_class(source), rows[i].class_made);
        } else {
            assert_null(heft_source_class(source));
        }
        test_expect_status(heft_model_load(source, NULL, &model, NULL, &err), rows[i].load, &err,
                           rows[i].path);
        heft_source_close(source); /* before the model */
        assert_true((model != NULL) == (rows[i].load == HEFT_OK));
        if (model) {
            assert_int_equal(heft_model_parameter(model, 0)->state, HEFT_PARAMETER_MAPPED);
        }
        heft_model_free(model);
    }
}

static void a_source_serves_all_that_is_asked_of_it(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_source *source = NULL;
    heft_model *first = NULL, *second = NULL;
    heft_write_report *report = NULL;
    heft_load_needs needs = HEFT_SIZED(heft_load_needs);
    test_expect_status(heft_source_open(ctx, at("bins"), NULL, &source, &err), HEFT_OK, &err, "");
    test_expect_status(heft_model_needs(source, NULL, &needs, &err), HEFT_OK, &err, "needs");
    test_expect_status(heft_model_load(source, NULL, &first, NULL, &err), HEFT_OK, &err, "first");
    test_expect_status(heft_source_convert(source, at("again"), NULL, &report, &err), HEFT_OK, &err,
                       "convert");
    test_expect_status(heft_model_load(source, NULL, &second, NULL, &err), HEFT_OK, &err, "second");
    assert_int_equal(report->total_parameters, heft_model_elements(first));
    heft_source_close(source);
    heft_write_report_free(report);
    heft_model_free(first);
    heft_model_free(second);
}

/* A checkpoint whose index disagrees with its shards: what needs to be exact refuses it. */
static void operations_judge_an_index_themselves(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_source *source = NULL;
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    const heft_load_options strict = HEFT_OPTIONS(heft_load_options, .strict = true);
    test_expect_status(heft_source_open(ctx, at("disagrees"), NULL, &source, &err), HEFT_OK, &err,
                       "open");
    test_expect_status(heft_model_load(source, NULL, &model, &report, &err), HEFT_OK, &err, "load");
    assert_int_equal(report->missing_count, 0);
    assert_true(report->warning_count > 0);
    assert_int_equal(heft_source_check_index(source, &err), HEFT_FORMAT);
    assert_string_equal(err.item, "pooler.dense.biaz");
    assert_non_null(strstr(err.path, "pytorch_model.bin.index.json"));
    assert_true(err.offset != HEFT_NO_OFFSET);
    heft_model_free(model);
    model = NULL;
    assert_int_equal(heft_model_load(source, &strict, &model, NULL, &err), HEFT_FORMAT);
    assert_int_equal(heft_source_convert(source, at("never"), NULL, NULL, &err), HEFT_FORMAT);
    assert_int_not_equal(access(at("never"), F_OK), 0);
    heft_load_report_free(report);
    heft_source_close(source);
}

static void a_source_is_made_of_objects(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_source *source = NULL;
    heft_checkpoint *ckpt = NULL;
    heft_config *config = NULL;
    heft_model *model = NULL;
    test_expect_status(heft_checkpoint_open(ctx, at("st"), NULL, &ckpt, &err), HEFT_OK, &err, "");
    test_expect_status(heft_config_read(ctx, at("st"), &config, &err), HEFT_OK, &err, "");
    assert_int_equal(heft_source_new(NULL, NULL, NULL, &source, &err), HEFT_INVALID_ARG);
    test_expect_status(heft_source_new(ckpt, NULL, NULL, &source, &err), HEFT_OK, &err, "");
    assert_int_equal(heft_model_load(source, NULL, &model, NULL, &err), HEFT_NOT_FOUND);
    heft_source_close(source);
    test_expect_status(heft_source_new(NULL, config, NULL, &source, &err), HEFT_OK, &err, "");
    assert_int_equal(heft_model_load(source, NULL, &model, NULL, &err), HEFT_NOT_FOUND);
    assert_int_equal(heft_source_convert(source, at("x"), NULL, NULL, &err), HEFT_NOT_FOUND);
    heft_source_close(source);
    test_expect_status(heft_source_new(ckpt, config, NULL, &source, &err), HEFT_OK, &err, "");
    heft_checkpoint_close(ckpt); /* the source keeps both */
    heft_config_free(config);
    test_expect_status(heft_model_load(source, NULL, &model, NULL, &err), HEFT_OK, &err, "load");
    assert_string_equal(heft_model_class(model), "BertModel");
    heft_source_close(source);
    heft_model_free(model);
}

/* ---- plans ------------------------------------------------------------------------------------ */
static heft_plan *plan_of(const heft_model *model, const char *module, int32_t device)
{
    const heft_device_entry entries[] = {
        {"",     HEFT_DEVICE_CPU},
        {module, device         },
    };
    const heft_plan_options options =
        HEFT_OPTIONS(heft_plan_options, .device_map = entries, .device_map_count = module ? 2 : 1);
    heft_plan *plan = NULL;
    heft_error err = {0};
    test_expect_status(heft_plan_new(model, &options, &plan, &err), HEFT_OK, &err, module);
    return plan;
}

static void a_plan_of_another_model_is_refused(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_source *source = NULL;
    test_expect_status(heft_source_open(ctx, at("st"), NULL, &source, &err), HEFT_OK, &err, "");
    static const struct {
        const char *class_name;
        unsigned layers;
        heft_status status;
    } rows[] = {
        {"BertModel",                     2, HEFT_OK         },
        {"BertModel",                     1, HEFT_INVALID_ARG},
        {"BertForMaskedLM",               2, HEFT_INVALID_ARG},
        {"BertForNextSentencePrediction", 2, HEFT_INVALID_ARG},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_model *other = make_model(rows[i].class_name, rows[i].layers), *model = NULL;
        heft_load_needs needs = HEFT_SIZED(heft_load_needs);
        heft_plan *plan = plan_of(other, NULL, 0);
        const heft_load_options options = HEFT_OPTIONS(heft_load_options, .plan = plan);
        test_expect_status(heft_model_load(source, &options, &model, NULL, &err), rows[i].status,
                           &err, rows[i].class_name);
        test_expect_status(heft_model_needs(source, &options, &needs, &err), rows[i].status, &err,
                           rows[i].class_name);
        heft_model_free(model);
        heft_plan_free(plan);
        heft_model_free(other);
    }
    heft_source_close(source);
}

static void bad_device_maps_are_refused(void **state)
{
    (void)state;
    static const heft_device_entry lacks[] =
        {
            {"encoder", HEFT_DEVICE_CPU}
    },
                                   twice[] = {{"", 0}, {"encoder", 1}, {"encoder", 0}},
                                   not_there[] = {{"", 0}, {"decoder", 0}},
                                   no_device[] = {{"", -7}}, no_name[] = {{NULL, 0}};
    static const struct {
        const char *name;
        const heft_device_entry *entries;
        size_t count;
        heft_status status;
        const char *item;
    } rows[] = {
        {"a_tensor_without_a_device", lacks,     1, HEFT_MISMATCH,    "embeddings.word_embeddings.weight"},
        {"a_name_twice",              twice,     3, HEFT_INVALID_ARG, "encoder"                          },
        {"no_such_device",            no_device, 1, HEFT_INVALID_ARG, ""                                 },
        {"no_name",                   no_name,   1, HEFT_INVALID_ARG, ""                                 },
        {"no_entry",                  lacks,     0, HEFT_MISMATCH,    "embeddings.word_embeddings.weight"},
    };
    heft_model *model = make_model("BertModel", 1);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_error err = {0};
        heft_plan *plan = NULL;
        const heft_plan_options options = HEFT_OPTIONS(
            heft_plan_options, .device_map = rows[i].entries, .device_map_count = rows[i].count);
        test_expect_status(heft_plan_new(model, &options, &plan, &err), rows[i].status, &err,
                           rows[i].name);
        assert_string_equal(err.item, rows[i].item);
        assert_null(plan);
    }
    heft_plan *plan = NULL;
    heft_error err = {0};
    const heft_plan_options strange =
        HEFT_OPTIONS(heft_plan_options, .device_map = not_there, .device_map_count = 2);
    test_expect_status(heft_plan_new(model, &strange, &plan, &err), HEFT_OK, &err, "strange");
    assert_string_equal(
        heft_plan_warning(plan, 0),
        "The following device_map keys do not match any submodules in the model: decoder");
    heft_plan_free(plan);
    heft_model_free(model);
}

/* Sizes of other dtypes are computed, and the plan stays as it is. */
static void asking_a_plan_changes_nothing(void **state)
{
    (void)state;
    heft_model *model = make_model("BertModel", 2);
    heft_plan *plan = plan_of(model, "encoder", HEFT_DEVICE_DISK);
    double before, after, half, largest, ignored;
    int32_t device;
    (void)heft_plan_entry(plan, 0, &device, &before);
    (void)heft_plan_largest(plan, &largest);
    heft_plan_sizes(plan, 2, &half, &ignored);
    /* two transient buffers of ten 64-bit integers stay as they are */
    assert_true(half == (double)heft_model_bytes(model) / 2 + 160);
    assert_true(ignored * 2 == largest);
    (void)heft_plan_entry(plan, 0, &device, &after);
    assert_true(before == after);
    (void)heft_plan_largest(plan, &ignored);
    assert_true(ignored == largest);
    heft_plan_free(plan);
    heft_model_free(model);
}

static void devices_are_told_by_handle(void **state)
{
    (void)state;
    heft_model *model = make_model("BertModel", 2);
    heft_plan *plan = plan_of(model, "encoder", HEFT_DEVICE_DISK);
    const size_t layer = heft_model_find_module(model, 0, "encoder.layer.1");
    assert_int_equal(heft_plan_module_device(plan, 0), HEFT_DEVICE_NONE); /* on both */
    assert_int_equal(heft_plan_module_device(plan, layer), HEFT_DEVICE_DISK);
    assert_int_equal(heft_plan_module_device(plan, heft_model_module_count(model)),
                     HEFT_DEVICE_NONE);
    for (size_t i = 0; i < heft_model_count(model); i++) {
        const char *name = heft_model_parameter(model, i)->name;
        assert_int_equal(heft_plan_parameter_device(plan, i), heft_plan_device_of(plan, name));
        assert_int_equal(heft_plan_parameter_device(plan, i),
                         strncmp(name, "encoder.", 8) == 0 ? HEFT_DEVICE_DISK : HEFT_DEVICE_CPU);
    }
    assert_int_equal(heft_plan_parameter_device(plan, heft_model_count(model)), HEFT_DEVICE_NONE);
    heft_plan_free(plan);
    heft_model_free(model);
}

/* ---- memory ----------------------------------------------------------------------------------- */
static heft_status attempt(heft_ctx *with, void *user, heft_error *err)
{
    const test_how how = {
        .class_name = "BertForMaskedLM", .module = "bert.encoder", .device = HEFT_DEVICE_DISK};
    heft_model *model = NULL;
    heft_status status = test_load(with, at(user), &how, &model, NULL, err);
    heft_model_free(model);
    if (status == HEFT_OK) {
        status = test_convert(with, at(user), at("swept"),
                              &HEFT_OPTIONS(heft_convert_options, .force = true), NULL, err);
    }
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    char name[] = "bins";
    test_oom_sweep(attempt, name);
}

/* ---- set-up ------------------------------------------------------------------------------------ */
static void change(const char *name, const char *file, const char *from, const char *to)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s", at(name), file);
    char *text = test_read_file(path, NULL), *found = strstr(text, from);
    assert_non_null(found);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(found, to, strlen(to));
    test_write_file(at(name), file, text, strlen(text));
    free(text);
}

/* A config is found wherever its folder is: also at a path that an error could not hold, or would show
 * otherwise than it is, in a subfolder, and with other files beside it. */
static void a_config_alone_is_found_by_any_path(void **state)
{
    (void)state;
    static const char *const parts[] = {"a", "\x01\xff", NULL};
    for (size_t i = 0; i < 3; i++) {
        char path[1200], config[1300], from[1200];
        size_t length = (size_t)snprintf(path, sizeof path, "%s", at("alone"));
        heft_error err = {0};
        heft_source *source = NULL;
        assert_int_equal(mkdir(path, 0700), 0);
        for (size_t k = 0; k < (parts[i] ? 1 : 4); k++) { /* 4 * 200 > sizeof err.path */
            length +=
                (size_t)(parts[i] ? snprintf(path + length, sizeof path - length, "/%s", parts[i])
                                  : snprintf(path + length, sizeof path - length, "/%0200d", 7));
            assert_int_equal(mkdir(path, 0700), 0);
        }
        snprintf(config, sizeof config, "%s/config.json", path);
        snprintf(from, sizeof from, "%s", at("st/config.json"));
        assert_int_equal(link(from, config), 0);
        for (int below = 0; below < 2; below++) {
            const heft_checkpoint_options how =
                HEFT_OPTIONS(heft_checkpoint_options,
                             .subfolder = below ? path + strlen(at("alone")) + 1 : NULL);
            const heft_source_options options =
                HEFT_OPTIONS(heft_source_options, .checkpoint = &how);
            test_expect_status(
                heft_source_open(ctx, below ? at("alone") : path, &options, &source, &err), HEFT_OK,
                &err, parts[i] ? parts[i] : "long");
            assert_int_equal(heft_source_what(source), HEFT_SOURCE_CONFIG);
            assert_string_equal(heft_source_class(source), "BertModel");
            heft_source_close(source);
        }
        test_folder_remove(at("alone"));
    }
}

static int set_up(void **state)
{
    (void)state;
    heft_error err = {0};
    const heft_convert_options offload =
        HEFT_OPTIONS(heft_convert_options, .format = HEFT_FORMAT_OFFLOAD);
    test_folder_make(folder);
    ctx = heft_ctx_new(NULL);
    save_as("st", HEFT_FORMAT_SAFETENSORS, 0);
    save_as("bins", HEFT_FORMAT_TORCH, 8000);
    test_expect_status(test_convert(ctx, at("st"), at("off"), &offload, NULL, &err), HEFT_OK, &err,
                       "offload");
    copy_to("st", "bare", "model.safetensors");
    copy_to("st", "no_config", "config.json");
    copy_to("bare", "empty", "*");
    copy_to("bins", "lost_shard", "pytorch_model-00001-*.bin");
    copy_to("bins", "odd_index", "config.json");
    copy_to("st", "bad_config", "none");
    change("bad_config", "config.json", "{", "[");
    copy_to("st", "other_class", "none");
    change("other_class", "config.json", "\"BertModel\"", "\"NertModel\"");
    copy_to("st", "unknown", "none");
    change("unknown", "config.json", "\"bert\"", "\"quux\"");
    change("unknown", "config.json", "\"BertModel\"", "\"QuuxModel\"");
    copy_to("bins", "disagrees", "none");
    change("disagrees", "pytorch_model.bin.index.json", "pooler.dense.bias", "pooler.dense.biaz");
    char command[700];
    snprintf(command, sizeof command,
             "mv '%s/odd_index/pytorch_model.bin.index.json' '%s/odd_index/my.json'", folder,
             folder);
    return system(command);
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
        cmocka_unit_test(a_config_alone_is_found_by_any_path),
        cmocka_unit_test(a_path_names_what_lies_there),
        cmocka_unit_test(a_source_serves_all_that_is_asked_of_it),
        cmocka_unit_test(operations_judge_an_index_themselves),
        cmocka_unit_test(a_source_is_made_of_objects),
        cmocka_unit_test(a_plan_of_another_model_is_refused),
        cmocka_unit_test(bad_device_maps_are_refused),
        cmocka_unit_test(asking_a_plan_changes_nothing),
        cmocka_unit_test(devices_are_told_by_handle),
        cmocka_unit_test(memory_can_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
