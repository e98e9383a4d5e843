/* From a config to files and back: every way of loading gives the same values, and the lists are
 * exact. */
#include "checkpoint/checkpoint.h"
#include "load/load.h"
#include "scratch.h"
#include "support_model.h"

#include <stdlib.h>

static const heft_load_sharded_options all_keys = {.struct_size = sizeof all_keys, .strict = true};

static const char tiny[] =
    "{\"architectures\":[\"%s\"],\"model_type\":\"bert\",\"hidden_size\":32,\"num_hidden_layers\":"
    "2,"
    "\"num_attention_heads\":4,\"intermediate_size\":64,\"vocab_size\":120,\"max_position_"
    "embeddings\":40,"
    "\"type_vocab_size\":2,\"pad_token_id\":0,\"initializer_range\":0.02,\"dtype\":\"float32\"}";

static heft_model *make_model(heft_ctx *with, const char *class_name)
{
    char text[1024];
    heft_error err;
    heft_model *model = NULL;
    heft_config *config = NULL;
    int length = snprintf(text, sizeof text, tiny, class_name);
    test_expect_status(heft__config_parse(with, "config.json", text, (size_t)length, &config, &err),
                       HEFT_OK, &err, class_name);
    test_expect_status(heft_model_new(with, config, NULL, HEFT_DTYPE_NONE, &model, &err), HEFT_OK,
                       &err, class_name);
    heft_config_free(config);
    return model;
}

/* A folder with a random model of a class. */
static void make_checkpoint(const char *name, const char *class_name, heft_format format,
                            uint64_t limit, uint64_t seed)
{
    heft_error err;
    heft_model *model = make_model(ctx, class_name);
    heft_init_options init = HEFT_OPTIONS(heft_init_options, .seed = seed);
    heft_save_options options =
        HEFT_OPTIONS(heft_save_options, .format = format, .max_shard_bytes = limit);
    test_expect_status(heft_model_save_random(model, at(name), &init, &options, NULL, &err),
                       HEFT_OK, &err, name);
    heft_model_free(model);
}

static void expect_equal(const heft_model *a, const heft_model *b, const char *what)
{
    heft_error err;
    assert_int_equal(heft_model_count(a), heft_model_count(b));
    for (size_t i = 0; i < heft_model_count(a); i++) {
        heft_tensor *left = NULL, *right = NULL;
        test_expect_status(heft_model_tensor(a, i, &left, &err), HEFT_OK, &err, what);
        test_expect_status(heft_model_tensor(b, i, &right, &err), HEFT_OK, &err, what);
        if (left->size_bytes != right->size_bytes ||
            memcmp(left->data, right->data, (size_t)left->size_bytes) != 0) {
            fail_msg("%s: '%s' differs", what, heft_model_parameter(a, i)->name);
        }
        heft_tensor_free(left);
        heft_tensor_free(right);
    }
}

static heft_model *load(const char *name, const test_how *options, heft_load_report **report)
{
    heft_error err;
    heft_model *model = NULL;
    test_expect_status(test_load(ctx, at(name), options, &model, report, &err), HEFT_OK, &err,
                       name);
    return model;
}

static void every_way_gives_the_same_values(void **state)
{
    (void)state;
    heft_error err;
    heft_model *made = make_model(ctx, "BertForMaskedLM");
    heft_init_options init = HEFT_OPTIONS(heft_init_options, .seed = 7);
    test_expect_status(heft_model_init(made, &init, &err), HEFT_OK, &err, "init");
    static const struct {
        const char *name;
        heft_format format;
        uint64_t limit;
    } rows[] = {
        {"st1", HEFT_FORMAT_SAFETENSORS, 0    },
        {"st2", HEFT_FORMAT_SAFETENSORS, 20000},
        {"pt1", HEFT_FORMAT_TORCH,       0    },
        {"pt2", HEFT_FORMAT_TORCH,       20000},
    };
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        heft_save_options save = HEFT_OPTIONS(heft_save_options, .format = rows[r].format,
                                              .max_shard_bytes = rows[r].limit);
        test_expect_status(heft_model_save(made, at(rows[r].name), &save, NULL, &err), HEFT_OK,
                           &err, rows[r].name);
        for (int copy = 0; copy < 2; copy++) {
            test_how options = {
                .load = {
                         .mode = copy ? HEFT_LOAD_COPY : HEFT_LOAD_MAP, .strict = true, .touch = true}
            };
            heft_load_report *report = NULL;
            heft_model *model = load(rows[r].name, &options, &report);
            expect_equal(made, model, rows[r].name);
            assert_int_equal(
                report->missing_count + report->unexpected_count + report->initialized_count, 0);
            assert_int_equal(report->tied_count, 2);
            assert_int_equal(copy ? report->mapped_bytes : report->copied_bytes, 0);
            heft_load_report_free(report);
            heft_model_free(model);
        }
        heft_model *again = make_model(ctx, "BertForMaskedLM"),
                   *other = make_model(ctx, "BertForMaskedLM");
        test_expect_status(heft_model_load_sharded(again, at(rows[r].name), &all_keys, NULL, &err),
                           HEFT_OK, &err, "into");
        heft_init_options other_seed = HEFT_OPTIONS(heft_init_options, .seed = 8);
        test_expect_status(heft_model_init(again, &init, &err), HEFT_OK, &err, "transient buffers");
        test_expect_status(heft_model_init(other, &other_seed, &err), HEFT_OK, &err, "other");
        test_expect_status(heft_model_load_sharded(other, at(rows[r].name), &all_keys, NULL, &err),
                           HEFT_OK, &err, "over");
        expect_equal(made, again, "into an empty model");
        expect_equal(made, other, "over a model with values");
        heft_model_free(again);
        heft_model_free(other);
    }
    heft_model_free(made);
}

static void a_random_save_is_the_same_as_init_and_save(void **state)
{
    (void)state;
    heft_error err;
    size_t a_bytes, b_bytes;
    make_checkpoint("streamed", "BertModel", HEFT_FORMAT_SAFETENSORS, 0, 42);
    heft_model *model = make_model(ctx, "BertModel");
    heft_init_options init = HEFT_OPTIONS(heft_init_options, .seed = 42);
    test_expect_status(heft_model_init(model, &init, &err), HEFT_OK, &err, "init");
    test_expect_status(heft_model_save(model, at("held"), NULL, NULL, &err), HEFT_OK, &err, "save");
    char *a = test_read_file(at("streamed/model.safetensors"), &a_bytes);
    char *b = test_read_file(at("held/model.safetensors"), &b_bytes);
    assert_int_equal(a_bytes, b_bytes);
    assert_memory_equal(a, b, a_bytes);
    free(a);
    free(b);
    heft_model_free(model);
}

static void base_into_head_and_head_into_base(void **state)
{
    (void)state;
    heft_load_report *report = NULL;
    make_checkpoint("base", "BertModel", HEFT_FORMAT_SAFETENSORS, 0, 1);
    make_checkpoint("head", "BertForMaskedLM", HEFT_FORMAT_SAFETENSORS, 0, 1);
    test_how as_head = {.class_name = "BertForMaskedLM"}, as_base = {.class_name = "BertModel"};
    heft_model *model = load("base", &as_head, &report);
    assert_int_equal(report->unexpected_count, 2); /* the pooler */
    assert_string_equal(report->unexpected[0], "pooler.dense.bias");
    assert_int_equal(report->missing_count,
                     6); /* cls.*, both names of the bias; decoder.weight comes with its tie */
    heft_load_report_free(report);
    heft_model_free(model);
    model = load("head", &as_base, &report);
    assert_int_equal(report->missing_count, 2);
    assert_string_equal(report->missing[0], "pooler.dense.weight");
    assert_int_equal(report->initialized_count, 2);
    assert_int_equal(report->unexpected_count, 5);
    heft_load_report_free(report);
    heft_model_free(model);
}

static void strict_and_shapes_are_refused_with_a_report(void **state)
{
    (void)state;
    heft_error err;
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    make_checkpoint("base", "BertModel", HEFT_FORMAT_SAFETENSORS, 0, 1);
    test_how strict = {.class_name = "BertForSequenceClassification", .load = {.strict = true}};
    assert_int_equal(test_load(ctx, at("base"), &strict, &model, &report, &err), HEFT_MISMATCH);
    assert_null(model);
    assert_int_equal(report->missing_count, 2);
    heft_load_report_free(report);
    report = NULL;
    char *text = test_read_file(at("base/config.json"), NULL), *found = strstr(text, "120");
    memcpy(found, "130", 3);
    test_write_file(at("base"), "config.json", text, strlen(text));
    free(text);
    assert_int_equal(test_load(ctx, at("base"), NULL, &model, &report, &err), HEFT_MISMATCH);
    assert_string_equal(err.item, "embeddings.word_embeddings.weight");
    assert_non_null(strstr(err.message, "shape [120, 32] in file, [130, 32] in model"));
    assert_int_equal(report->mismatched_count, 1);
    heft_load_report_free(report);
    test_how ignore = {.load = {.ignore_mismatched_sizes = true}};
    model = load("base", &ignore, &report);
    assert_int_equal(report->mismatched_count, 1);
    assert_int_equal(report->missing_count, 0);
    assert_string_equal(report->initialized[0], "embeddings.word_embeddings.weight");
    heft_load_report_free(report);
    heft_model_free(model);
}

static void casts_happen_while_loading(void **state)
{
    (void)state;
    heft_error err;
    static const heft_dtype dtypes[] = {HEFT_DTYPE_BF16, HEFT_DTYPE_F16, HEFT_DTYPE_F64};
    make_checkpoint("f32", "BertModel", HEFT_FORMAT_SAFETENSORS, 0, 5);
    heft_model *exact = load("f32", NULL, NULL);
    for (size_t d = 0; d < 3; d++) {
        test_how options = {.load = {.dtype = dtypes[d]}};
        heft_load_report *report = NULL;
        heft_model *model = load("f32", &options, &report);
        assert_int_equal(report->dtype, dtypes[d]);
        assert_int_equal(report->mapped_bytes, 0);
        heft_load_report_free(report);
        for (size_t i = 0; i < heft_model_count(model); i++) {
            heft_tensor *from = NULL, *to = NULL;
            assert_int_equal(heft_model_tensor(exact, i, &from, &err), HEFT_OK);
            assert_int_equal(heft_model_tensor(model, i, &to, &err), HEFT_OK);
            if (from->dtype == HEFT_DTYPE_F32) {
                uint8_t *wanted = malloc((size_t)to->size_bytes);
                heft__cast(dtypes[d], wanted, HEFT_DTYPE_F32, from->data,
                           (size_t)from->size_bytes / 4);
                assert_memory_equal(wanted, to->data, (size_t)to->size_bytes);
                free(wanted);
            }
            heft_tensor_free(from);
            heft_tensor_free(to);
        }
        heft_model_free(model);
    }
    heft_model_free(exact);
}

static heft_status load_and_save(heft_ctx *with, void *user, heft_error *err)
{
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    test_how copy = {.load = {.mode = HEFT_LOAD_COPY}};
    heft_save_options options =
        HEFT_OPTIONS(heft_save_options, .force = true, .max_shard_bytes = 30000);
    heft_status status = test_load(with, at("base"), user ? user : &copy, &model, &report, err);
    if (status == HEFT_OK) {
        status = heft_model_save(model, at("again"), &options, NULL, err);
    }
    heft_load_report_free(report);
    heft_model_free(model);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    test_how map = {.class_name = "BertForMaskedLM", .load = {.mode = HEFT_LOAD_MAP}};
    make_checkpoint("base", "BertModel", HEFT_FORMAT_SAFETENSORS, 30000, 1);
    test_oom_sweep(load_and_save, NULL);
    test_oom_sweep(load_and_save, &map);
}

static void loading_takes_the_model_and_little_more(void **state)
{
    (void)state;
    heft_error err;
    heft_model *model = NULL;
    make_checkpoint("base", "BertModel", HEFT_FORMAT_TORCH, 30000, 1);
    for (int copy = 0; copy < 2; copy++) {
        test_heap heap = {.fail_at = -1};
        heft_ctx *counted = test_ctx_new(&heap);
        test_how options = {.load = {.mode = copy ? HEFT_LOAD_COPY : HEFT_LOAD_MAP}};
        test_expect_status(test_load(counted, at("base"), &options, &model, NULL, &err), HEFT_OK,
                           &err, "load");
        uint64_t bytes = heft_model_bytes(model), metadata = 256 << 10;
        if (heap.peak > (copy ? bytes : 0) + metadata) {
            fail_msg("peak %llu bytes, the model has %llu", (unsigned long long)heap.peak,
                     (unsigned long long)bytes);
        }
        heft_model_free(model);
        heft_ctx_free(counted);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_way_gives_the_same_values),
        TEST(a_random_save_is_the_same_as_init_and_save),
        TEST(base_into_head_and_head_into_base),
        TEST(strict_and_shapes_are_refused_with_a_report),
        TEST(casts_happen_while_loading),
        TEST(memory_can_run_out_anywhere),
        TEST(loading_takes_the_model_and_little_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
