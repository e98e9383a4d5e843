/* Into a model that exists: ties of which the checkpoint has two values, dtypes, variants, subfolders and
 * formats, and checkpoints that are another model's. */
#include "load/load.h"
#include "scratch.h"
#include "support_model.h"

#include <heft/writer.h>

/* The layout of T5 v1.1: the config says that nothing is tied, and only lm_head has values of its own. */
static const char t5[] =
    "{\"architectures\":[\"T5ForConditionalGeneration\"],\"model_type\":\"t5\",\"vocab_size\":60,"
    "\"d_model\":16,\"d_kv\":8,\"d_ff\":24,\"num_layers\":1,\"num_heads\":2,"
    "\"feed_forward_proj\":\"gated-gelu\",\"tie_word_embeddings\":false,\"dtype\":\"float32\"}";
static const char gpt2[] = "{\"architectures\":[\"GPT2LMHeadModel\"],\"model_type\":\"gpt2\","
                           "\"vocab_size\":50,\"n_embd\":16,"
                           "\"n_layer\":1,\"n_head\":2,\"n_positions\":20,\"dtype\":\"float32\"}";

static heft_model *make_model(const char *config_text, uint64_t seed)
{
    heft_error err = {0};
    heft_model *model = NULL;
    heft_config *config = NULL;
    const heft_init_options init = HEFT_OPTIONS(heft_init_options, .seed = seed);
    test_expect_status(heft_config_new(ctx, config_text, strlen(config_text), &config, &err),
                       HEFT_OK, &err, "config");
    test_expect_status(heft_model_new(ctx, config, NULL, HEFT_DTYPE_NONE, &model, &err), HEFT_OK,
                       &err, "model");
    heft_config_free(config);
    if (seed > 0) {
        test_expect_status(heft_model_init(model, &init, &err), HEFT_OK, &err, "init");
    }
    return model;
}

static heft_tensor *tensor_of(const heft_model *model, const char *name)
{
    heft_error err = {0};
    heft_tensor *tensor = NULL;
    test_expect_status(heft_model_tensor(model, heft_model_find(model, name), &tensor, &err),
                       HEFT_OK, &err, name);
    return tensor;
}

static bool same(const heft_model *a, const char *left, const heft_model *b, const char *right)
{
    heft_tensor *x = tensor_of(a, left), *y = tensor_of(b, right);
    const bool equal = x->dtype == y->dtype && x->size_bytes == y->size_bytes &&
                       memcmp(x->data, y->data, (size_t)x->size_bytes) == 0;
    heft_tensor_free(x);
    heft_tensor_free(y);
    return equal;
}

/* A model's tensors under every name, but `name` with the values of another model. */
static void write_untied(const char *dst, const char *config, const heft_model *model,
                         const char *name, const heft_model *other)
{
    const heft_writer_options options =
        HEFT_OPTIONS(heft_writer_options, .ties = HEFT_TIES_DROP, .max_shard_bytes = 4000);
    heft_error err = {0};
    heft_writer *w = NULL;
    test_expect_status(heft_writer_new(ctx, dst, &options, &w, &err), HEFT_OK, &err, dst);
    for (size_t i = 0; i < heft_model_count(model); i++) {
        const heft_parameter *parameter = heft_model_parameter(model, i);
        const bool own = strcmp(parameter->name, name) == 0;
        if (parameter->kind == HEFT_PARAMETER_BUFFER_TRANSIENT) {
            continue;
        }
        heft_tensor *tensor = tensor_of(own ? other : model, parameter->name);
        test_expect_status(heft_writer_add(w, parameter->name, tensor, &err), HEFT_OK, &err, name);
        heft_tensor_free(tensor);
    }
    test_expect_status(heft_writer_side_file(w, "config.json", config, strlen(config), &err),
                       HEFT_OK, &err, "config");
    test_expect_status(heft_writer_commit(w, NULL, &err), HEFT_OK, &err, dst);
    heft_writer_free(w);
}

static void a_tie_with_two_values_gives_each_its_own(void **state)
{
    static const struct {
        const char *config, *root, *target, *third;
    } rows[] = {
        {t5,   "shared.weight",          "lm_head.weight", "decoder.embed_tokens.weight"},
        {gpt2, "transformer.wte.weight", "lm_head.weight", NULL                         },
    };
    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        heft_error err = {0};
        heft_model *model = make_model(rows[r].config, 1), *other = make_model(rows[r].config, 2);
        write_untied(at("untied"), rows[r].config, model, rows[r].target, other);
        heft_model *loaded = NULL;
        const test_how how = {.load = {.mode = HEFT_LOAD_COPY}};
        test_expect_status(test_load(ctx, at("untied"), &how, &loaded, NULL, &err), HEFT_OK, &err,
                           "load");
        for (uint64_t seed = 0; seed < 2; seed++) { /* empty, and with memory that is shared */
            heft_model *into = make_model(rows[r].config, 3 * seed);
            heft_load_report *report = NULL;
            const heft_load_sharded_options options =
                HEFT_OPTIONS(heft_load_sharded_options, .strict = true);
            test_expect_status(heft_model_load_sharded(into, at("untied"), &options, &report, &err),
                               HEFT_OK, &err, "into");
            assert_int_equal(report->warning_count, 1);
            assert_non_null(strstr(report->warnings[0], "both are kept"));
            for (size_t i = 0; i < heft_model_count(into); i++) {
                const heft_parameter *parameter = heft_model_parameter(into, i);
                assert_true(parameter->kind == HEFT_PARAMETER_BUFFER_TRANSIENT ||
                            same(into, parameter->name, loaded, parameter->name));
            }
            assert_true(same(into, rows[r].target, other, rows[r].target));
            assert_true(same(into, rows[r].root, model, rows[r].root));
            assert_true(!rows[r].third || same(into, rows[r].third, model, rows[r].root));
            const size_t target = heft_model_find(into, rows[r].target);
            assert_int_equal(heft_model_parameter(into, target)->tied_to, target);
            heft_load_report_free(report);
            heft_model_free(into);
        }
        heft_model_free(loaded);
        heft_model_free(model);
        heft_model_free(other);
        test_folder_remove(at("untied"));
    }
}

static void save(const heft_model *model, const char *dst, heft_format format, const char *variant,
                 uint64_t shard)
{
    const heft_save_options options =
        HEFT_OPTIONS(heft_save_options, .format = format, .variant = variant, .force = true,
                     .max_shard_bytes = shard, .keep_side_files = true);
    heft_error err = {0};
    test_expect_status(heft_model_save(model, dst, &options, NULL, &err), HEFT_OK, &err, dst);
}

static void another_models_checkpoint_is_a_mismatch(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *theirs = make_model(t5, 1), *ours = make_model(gpt2, 2),
               *as_it_was = make_model(gpt2, 2);
    save(theirs, at("theirs"), HEFT_FORMAT_SAFETENSORS, NULL, 4000);
    heft_load_report *report = NULL;
    test_expect_status(heft_model_load_sharded(ours, at("theirs"), NULL, &report, &err),
                       HEFT_MISMATCH, &err, "nothing fits");
    assert_non_null(strstr(err.message, "no tensor matches the model"));
    assert_non_null(strstr(err.message, "shared.weight"));
    assert_non_null(strstr(err.message, "transformer.wte.weight"));
    assert_true(report->missing_count > 0 && report->unexpected_count > 0);
    heft_load_report_free(report);
    const heft_load_sharded_options allowed =
        HEFT_OPTIONS(heft_load_sharded_options, .allow_missing = true);
    test_expect_status(heft_model_load_sharded(ours, at("theirs"), &allowed, NULL, &err), HEFT_OK,
                       &err, "allowed");
    assert_true(same(ours, "transformer.wte.weight", as_it_was, "transformer.wte.weight"));
    heft_model_free(theirs);
    heft_model_free(ours);
    heft_model_free(as_it_was);
}

static void the_checkpoint_is_chosen_by_options(void **state)
{
    static const struct {
        heft_checkpoint_options where;
        uint64_t seed;
        heft_status status;
    } rows[] = {
        {{.variant = NULL},                                 1, HEFT_OK       },
        {{.variant = "fp16"},                               2, HEFT_OK       },
        {{.variant = "none"},                               0, HEFT_NOT_FOUND},
        {{.subfolder = "sub"},                              3, HEFT_OK       },
        {{.prefer = HEFT_FORMAT_TORCH},                     4, HEFT_OK       },
        {{.subfolder = "sub", .prefer = HEFT_FORMAT_TORCH}, 0, HEFT_NOT_FOUND},
        {{.subfolder = "none"},                             0, HEFT_NOT_FOUND},
    };
    (void)state;
    heft_error err = {0};
    heft_model *models[5] = {NULL};
    for (uint64_t seed = 1; seed < 5; seed++) {
        models[seed] = make_model(gpt2, seed);
    }
    save(models[4], at("all"), HEFT_FORMAT_TORCH, NULL, 3000);
    save(models[1], at("all"), HEFT_FORMAT_SAFETENSORS, NULL, 3000);
    save(models[2], at("all"), HEFT_FORMAT_SAFETENSORS, "fp16", 3000);
    save(models[3], test_path(at("all"), "sub"), HEFT_FORMAT_SAFETENSORS, NULL, 3000);
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        heft_checkpoint_options where = rows[r].where;
        where.struct_size = sizeof where;
        const heft_load_sharded_options options =
            HEFT_OPTIONS(heft_load_sharded_options, .strict = true, .checkpoint = &where);
        heft_model *into = make_model(gpt2, 0);
        test_expect_status(heft_model_load_sharded(into, at("all"), &options, NULL, &err),
                           rows[r].status, &err, "row");
        if (rows[r].status == HEFT_OK) {
            assert_true(same(into, "transformer.wpe.weight", models[rows[r].seed],
                             "transformer.wpe.weight"));
        }
        heft_model_free(into);
    }
    for (uint64_t seed = 1; seed < 5; seed++) {
        heft_model_free(models[seed]);
    }
}

static heft_dtype dtype_of(const heft_model *model, const char *name)
{
    return heft_model_parameter(model, heft_model_find(model, name))->dtype;
}

static void values_get_the_dtypes_that_are_asked_for(void **state)
{
    static const heft_module_dtype parts[] = {
        {"ln_f",          HEFT_DTYPE_F32},
        {"GPT2Attention", HEFT_DTYPE_F16},
        {"mlp.c_fc",      HEFT_DTYPE_F32},
    };
    static const heft_module_dtype none[] = {
        {"no_such_module", HEFT_DTYPE_F32}
    };
    static const heft_module_dtype integer[] = {
        {"ln_f", HEFT_DTYPE_I32}
    };
    (void)state;
    heft_error err = {0};
    heft_model *model = make_model(gpt2, 1);
    save(model, at("gpt2"), HEFT_FORMAT_SAFETENSORS, NULL, 3000);
    heft_load_sharded_options options = HEFT_OPTIONS(
        heft_load_sharded_options, .dtype = HEFT_DTYPE_BF16, .dtypes = parts, .dtype_count = 3);
    const test_how how = {
        .load = {
                 .dtype = HEFT_DTYPE_BF16, .dtypes = parts, .dtype_count = 3, .mode = HEFT_LOAD_COPY}
    };
    heft_model *loaded = NULL;
    test_expect_status(test_load(ctx, at("gpt2"), &how, &loaded, NULL, &err), HEFT_OK, &err,
                       "load");
    for (uint64_t seed = 0; seed < 2; seed++) {
        heft_model *into = make_model(gpt2, seed);
        test_expect_status(heft_model_load_sharded(into, at("gpt2"), &options, NULL, &err), HEFT_OK,
                           &err, "into");
        assert_int_equal(heft_model_dtype(into), HEFT_DTYPE_BF16);
        assert_int_equal(dtype_of(into, "transformer.wte.weight"), HEFT_DTYPE_BF16);
        assert_int_equal(dtype_of(into, "lm_head.weight"), HEFT_DTYPE_BF16);
        assert_int_equal(dtype_of(into, "transformer.ln_f.weight"), HEFT_DTYPE_F32);
        assert_int_equal(dtype_of(into, "transformer.h.0.attn.c_attn.weight"), HEFT_DTYPE_F16);
        assert_int_equal(dtype_of(into, "transformer.h.0.mlp.c_fc.bias"), HEFT_DTYPE_F32);
        assert_int_equal(heft_model_bytes(into), heft_model_bytes(loaded));
        assert_int_equal(heft_model_module(into, 0)->bytes, heft_model_bytes(loaded));
        for (size_t i = 0; i < heft_model_count(into); i++) {
            const char *name = heft_model_parameter(into, i)->name;
            assert_true(same(into, name, loaded, name));
        }
        heft_model_free(into);
    }
    const struct {
        const heft_module_dtype *list;
        heft_status status;
    } bad[] = {
        {none,    HEFT_MISMATCH   },
        {integer, HEFT_INVALID_ARG}
    };
    for (size_t r = 0; r < 2; r++) { /* the model is as it was */
        heft_model *into = make_model(gpt2, 5), *before = make_model(gpt2, 5);
        options.dtypes = bad[r].list;
        options.dtype_count = 1;
        test_expect_status(heft_model_load_sharded(into, at("gpt2"), &options, NULL, &err),
                           bad[r].status, &err, bad[r].list->name);
        assert_string_equal(err.item, bad[r].list->name);
        assert_true(same(into, "transformer.wte.weight", before, "transformer.wte.weight"));
        assert_int_equal(heft_model_bytes(into), heft_model_bytes(before));
        heft_model_free(into);
        heft_model_free(before);
    }
    heft_model_free(loaded);
    heft_model_free(model);
}

/* The alias of a tie whose other name has another shape is mismatched with it, not missing. */
static void missing_lists_no_alias_of_a_mismatched_tie(void **state)
{
    static const char wider[] =
        "{\"architectures\":[\"GPT2LMHeadModel\"],\"model_type\":\"gpt2\",\"vocab_size\":51,"
        "\"n_embd\":16,\"n_layer\":1,\"n_head\":2,\"n_positions\":20,\"dtype\":\"float32\"}";
    (void)state;
    heft_error err = {0};
    heft_model *model = make_model(gpt2, 1), *into = make_model(wider, 0), *loaded = NULL;
    heft_load_report *report = NULL;
    save(model, at("gpt2"), HEFT_FORMAT_SAFETENSORS, NULL, 3000);
    test_expect_status(heft_model_load_sharded(into, at("gpt2"), NULL, &report, &err),
                       HEFT_MISMATCH, &err, "into");
    assert_int_equal(report->mismatched_count, 1);
    assert_int_equal(report->missing_count, 0);
    heft_load_report_free(report);
    test_write_file(at("gpt2"), "config.json", wider, strlen(wider));
    const test_how how = {.load = {.ignore_mismatched_sizes = true}};
    test_expect_status(test_load(ctx, at("gpt2"), &how, &loaded, &report, &err), HEFT_OK, &err,
                       "load");
    assert_int_equal(report->mismatched_count, 1);
    assert_string_equal(report->mismatched[0].name, "transformer.wte.weight");
    assert_int_equal(report->missing_count, 0);
    heft_load_report_free(report);
    heft_model_free(model);
    heft_model_free(into);
    heft_model_free(loaded);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_tie_with_two_values_gives_each_its_own),
        TEST(another_models_checkpoint_is_a_mismatch),
        TEST(the_checkpoint_is_chosen_by_options),
        TEST(values_get_the_dtypes_that_are_asked_for),
        TEST(missing_lists_no_alias_of_a_mismatched_tie),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
