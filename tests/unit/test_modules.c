/* The tree of modules: pre-order, lookups by relative name and by role, sizes, flags and units; on
 * every golden skeleton and on a few models by hand. */
#include "model/model.h"
#include "run/run.h"
#include "support.h"
#include "support_model.h"

#include <stdlib.h>

static heft_ctx *ctx;

/* ---- every golden skeleton -------------------------------------------------------------------- */
static int by_text(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

static void expect_unique_paths(const char *what, const heft_model *model)
{
    const size_t count = heft_model_module_count(model);
    const char **paths = malloc(count * sizeof *paths);
    for (size_t i = 0; i < count; i++) {
        paths[i] = heft_model_module(model, i)->path;
    }
    qsort(paths, count, sizeof *paths, by_text);
    for (size_t i = 1; i < count; i++) {
        if (strcmp(paths[i - 1], paths[i]) == 0) {
            fail_msg("%s: '%s' is there twice", what, paths[i]);
        }
    }
    free(paths);
}

static void expect_in_order(const char *what, const heft_model *model, size_t i)
{
    const heft_module *module = heft_model_module(model, i),
                      *parent = heft_model_module(model, module->parent);
    const size_t above = parent ? strlen(parent->path) : 0;
    bool good = module->end > i && module->end <= heft_model_module_count(model);
    if (i > 0) {
        good = good && parent && module->parent < i && module->end <= parent->end &&
               strncmp(module->path, parent->path, above) == 0 &&
               (above == 0 || module->path[above] == '.') &&
               strcmp(module->path + above + (above > 0), module->name) == 0 &&
               heft_model_find_module(model, module->parent, module->name) == i;
    } else {
        good = good && !parent && module->parent == SIZE_MAX && *module->path == '\0' &&
               strcmp(module->class_name, heft_model_class(model)) == 0;
    }
    if (!good) {
        fail_msg("%s: module %zu, '%s', does not stand where it should", what, i, module->path);
    }
}

/* Each parameter is in one module's list, weights first. */
static void expect_parameters(const char *what, const heft_model *model, size_t i, size_t *seen)
{
    const heft_module *module = heft_model_module(model, i);
    bool buffers = false;
    for (size_t k = 0; k < module->parameter_count; k++, ++*seen) {
        const size_t number = module->parameters[k];
        const heft_parameter *parameter = heft_model_parameter(model, number);
        char name[1100];
        snprintf(name, sizeof name, "%s%s%s", module->path, *module->path ? "." : "",
                 parameter->role);
        if (parameter->module != i || strcmp(name, parameter->name) != 0 ||
            heft_model_module_parameter(model, i, parameter->role) != number ||
            (buffers && parameter->kind == HEFT_PARAMETER_WEIGHT)) {
            fail_msg("%s: '%s' is not in the list of '%s'", what, parameter->name, module->path);
        }
        buffers = buffers || parameter->kind != HEFT_PARAMETER_WEIGHT;
    }
    if (module->parameter_count == 0 && module->end == i + 1) {
        fail_msg("%s: '%s' holds nothing", what, module->path);
    }
}

/* Computed independently: each storage of the subtree once. */
static uint64_t count_bytes(const heft_model *model, size_t i)
{
    const heft_module *module = heft_model_module(model, i);
    const size_t count = heft_model_count(model);
    uint64_t bytes = 0;
    bool *seen = calloc(count, 1);
    for (size_t k = 0; k < count; k++) {
        const heft_parameter *parameter = heft_model_parameter(model, k);
        if (parameter->module >= i && parameter->module < module->end &&
            parameter->kind != HEFT_PARAMETER_BUFFER_TRANSIENT && !seen[parameter->tied_to]) {
            seen[parameter->tied_to] = true;
            bytes += parameter->size_bytes;
        }
    }
    free(seen);
    return bytes;
}

/* The module of a parameter's unit: the innermost marked one, else its own. */
static size_t unit_module(const heft_model *model, size_t parameter)
{
    const size_t own = heft_model_parameter(model, parameter)->module;
    size_t at = own;
    while (at != SIZE_MAX && !heft_model_module(model, at)->unit) {
        at = heft_model_module(model, at)->parent;
    }
    return at == SIZE_MAX ? own : at;
}

static bool has_number(const size_t *numbers, size_t count, size_t number)
{
    bool found = false;
    for (size_t i = 0; i < count; i++) {
        found = found || numbers[i] == number;
    }
    return found;
}

/* Every parameter is in one unit of those that a residency brings in, and that is the one that the marks
 * say. A tensor with names in several has one under all the modules that hold it. */
static void expect_units(const char *what, const heft_model *model)
{
    const size_t count = heft_model_count(model);
    heft_residency *r = NULL;
    heft_error err = {0};
    size_t listed = 0;
    bool *apart = calloc(count + 1, sizeof *apart); /* by root: its names are in several */
    for (size_t i = 0; i < count; i++) {
        const size_t root = heft_model_parameter(model, i)->tied_to;
        apart[root] = apart[root] || unit_module(model, i) != unit_module(model, root);
    }
    test_expect_status(heft_residency_new(model, NULL, &r, &err), HEFT_OK, &err, what);
    for (size_t u = 0; u < heft_residency_count(r); u++) {
        listed += heft_residency_unit(r, u)->parameter_count;
        assert_true(heft_residency_unit(r, u)->parameter_count > 0);
    }
    assert_int_equal(listed, count);
    for (size_t i = 0; i < count; i++) {
        const heft_parameter *parameter = heft_model_parameter(model, i);
        const heft_unit *unit = heft_residency_unit(r, heft_residency_find_parameter(r, i));
        const bool tied = apart[parameter->tied_to];
        if (!has_number(unit->parameters, unit->parameter_count, i) ||
            !has_number(unit->modules, unit->module_count,
                        tied ? parameter->module : unit_module(model, i)) ||
            (unit->module_count > 1 && !tied) ||
            heft_residency_find_parameter(r, parameter->tied_to) !=
                heft_residency_find_parameter(r, i)) {
            fail_msg("%s: '%s' is in the wrong unit", what, parameter->name);
        }
    }
    heft_residency_free(r);
    free(apart);
}

static void check_tree(const char *what, heft_model *model)
{
    const size_t count = heft_model_module_count(model);
    size_t seen = 0;
    expect_unique_paths(what, model);
    for (size_t i = 0; i < count; i++) {
        const heft_module *module = heft_model_module(model, i);
        if (count < 3000) { /* looking a module up goes through its siblings */
            expect_in_order(what, model, i);
        }
        expect_parameters(what, model, i, &seen);
        if (count < 300 && module->bytes != count_bytes(model, i)) {
            fail_msg("%s: '%s' has %llu bytes", what, module->path,
                     (unsigned long long)module->bytes);
        }
        assert_non_null(heft_module_kind_name(module->kind));
    }
    assert_int_equal(seen, heft_model_count(model));
    assert_true(heft_model_module(model, 0)->bytes == heft_model_bytes(model));
    assert_null(heft_model_module(model, count));
    expect_units(what, model);
}

static void trees_hold_every_parameter_once(void **state)
{
    (void)state;
    assert_true(test_each_skeleton(ctx, check_tree) >= 190);
}

/* ---- by hand ---------------------------------------------------------------------------------- */
static const char tiny[] =
    "{\"model_type\":\"bert\",\"hidden_size\":8,\"num_hidden_layers\":2,\"num_attention_heads\":2,"
    "\"intermediate_size\":16,\"vocab_size\":12,\"max_position_embeddings\":6}";

static void modules_are_found_by_relative_names(void **state)
{
    (void)state;
    heft_model *model = test_model_from_text(ctx, tiny, "BertForMaskedLM");
    static const struct {
        const char *from, *relative, *found; /* found: the path; NULL: none */
    } rows[] = {
        {"",             "",                     ""                           },
        {"",             "bert",                 "bert"                       },
        {"",             "bert.encoder.layer.1", "bert.encoder.layer.1"       },
        {"bert.encoder", "",                     "bert.encoder"               },
        {"bert.encoder", "layer.0.output",       "bert.encoder.layer.0.output"},
        {"bert.encoder", "layer.2",              NULL                         },
        {"bert.encoder", "bert",                 NULL                         },
        {"",             "ber",                  NULL                         },
        {"",             "bertt",                NULL                         },
        {"",             "bert.",                NULL                         },
        {"",             ".bert",                NULL                         },
        {"",             "cls.predictions.bias", NULL                         }, /* is no module */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const size_t from = heft_model_find_module(model, 0, rows[i].from);
        const size_t found = heft_model_find_module(model, from, rows[i].relative);
        if (!rows[i].found) {
            assert_true(found == SIZE_MAX);
        } else {
            assert_string_equal(heft_model_module(model, found)->path, rows[i].found);
        }
    }
    const size_t count = heft_model_module_count(model);
    assert_true(heft_model_find_module(model, count, "") == SIZE_MAX);
    assert_true(heft_model_find_module(model, SIZE_MAX, "bert") == SIZE_MAX);
    const size_t head = heft_model_find_module(model, 0, "cls.predictions");
    assert_int_equal(heft_model_module_parameter(model, head, "bias"),
                     heft_model_find(model, "cls.predictions.bias"));
    assert_true(heft_model_module_parameter(model, head, "weight") == SIZE_MAX);
    assert_true(heft_model_module_parameter(model, count, "bias") == SIZE_MAX);
    assert_null(heft_module_kind_name((heft_module_kind)99));
    heft_model_free(model);
}

static void layers_and_embeddings_stay_whole(void **state)
{
    (void)state;
    heft_model *model = test_model_from_text(ctx, tiny, "BertForMaskedLM");
    static const struct {
        const char *path;
        bool marked;
    } rows[] = {
        {"",                                false},
        {"bert",                            false},
        {"bert.embeddings",                 true },
        {"bert.embeddings.word_embeddings", false},
        {"bert.encoder.layer",              false},
        {"bert.encoder.layer.0",            true },
        {"bert.encoder.layer.1",            true },
        {"bert.encoder.layer.1.attention",  false},
        {"cls.predictions.decoder",         false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const heft_module *module =
            heft_model_module(model, heft_model_find_module(model, 0, rows[i].path));
        assert_non_null(module);
        assert_int_equal(module->no_split, rows[i].marked);
        assert_int_equal(module->unit, rows[i].marked);
    }
    heft_model_free(model);
}

/* ---- classes and kinds -------------------------------------------------------------------------- */
static const struct class_row {
    const char *file, *model, *path, *class_name; /* class_name: "" if Transformers has none */
    heft_module_kind kind;
} class_rows[] = {
    {"llama__mha",          "LlamaForCausalLM",   "",                                       "LlamaForCausalLM",      HEFT_MODULE_MODEL      },
    {"llama__mha",          "LlamaForCausalLM",   "model",                                  "LlamaModel",            HEFT_MODULE_MODEL      },
    {"llama__mha",          "LlamaForCausalLM",   "model.embed_tokens",                     "Embedding",             HEFT_MODULE_EMBEDDING  },
    {"llama__mha",          "LlamaForCausalLM",   "model.layers",                           "ModuleList",            HEFT_MODULE_CONTAINER  },
    {"llama__mha",          "LlamaForCausalLM",   "model.layers.1",                         "LlamaDecoderLayer",     HEFT_MODULE_LAYER      },
    {"llama__mha",          "LlamaForCausalLM",   "model.layers.1.self_attn",               "LlamaAttention",
     HEFT_MODULE_ATTENTION                                                                                                                  },
    {"llama__mha",          "LlamaForCausalLM",   "model.layers.1.self_attn.q_proj",        "Linear",
     HEFT_MODULE_LINEAR                                                                                                                     },
    {"llama__mha",          "LlamaForCausalLM",   "model.layers.1.mlp",                     "LlamaMLP",              HEFT_MODULE_MLP        },
    {"llama__mha",          "LlamaForCausalLM",   "model.layers.1.input_layernorm",         "LlamaRMSNorm",
     HEFT_MODULE_NORM                                                                                                                       },
    {"llama__mha",          "LlamaForCausalLM",   "model.rotary_emb",                       "LlamaRotaryEmbedding",
     HEFT_MODULE_ROTARY                                                                                                                     },
    {"llama__mha",          "LlamaForCausalLM",   "lm_head",                                "Linear",                HEFT_MODULE_LINEAR     },
    {"gemma3_text__base",   "Gemma3ForCausalLM",  "model",                                  "Gemma3TextModel",       HEFT_MODULE_MODEL      },
    {"gemma3_text__base",   "Gemma3ForCausalLM",  "model.embed_tokens",
     "Gemma3TextScaledWordEmbedding",                                                                                HEFT_MODULE_EMBEDDING  },
    {"bert__heads",         "BertForMaskedLM",    "bert.embeddings",                        "BertEmbeddings",        HEFT_MODULE_EMBEDDING  },
    {"bert__heads",         "BertForMaskedLM",    "bert.encoder",                           "BertEncoder",           HEFT_MODULE_MODEL      },
    {"bert__heads",         "BertForMaskedLM",    "bert.encoder.layer.0",                   "BertLayer",             HEFT_MODULE_LAYER      },
    {"bert__heads",         "BertForMaskedLM",    "bert.encoder.layer.0.attention.self",    "BertSelfAttention",
     HEFT_MODULE_ATTENTION                                                                                                                  },
    {"bert__heads",         "BertForMaskedLM",    "cls",                                    "BertOnlyMLMHead",       HEFT_MODULE_HEAD       },
    {"bert__heads",         "BertForPreTraining", "cls",                                    "BertPreTrainingHeads",  HEFT_MODULE_HEAD       },
    {"distilbert__base",    "DistilBertModel",    "transformer.layer.0",                    "TransformerBlock",
     HEFT_MODULE_LAYER                                                                                                                      },
    {"falcon__multi_query", "FalconModel",        "h.0.mlp.dense_h_to_4h",                  "FalconLinear",
     HEFT_MODULE_LINEAR                                                                                                                     },
    {"gpt2__base",          "GPT2Model",          "h.0.attn.c_attn",                        "Conv1D",                HEFT_MODULE_LINEAR     },
    {"bart__base",          "BartModel",          "encoder.layers.0",                       "BartEncoderLayer",      HEFT_MODULE_LAYER      },
    {"bart__base",          "BartModel",          "decoder.layers.0",                       "BartDecoderLayer",      HEFT_MODULE_LAYER      },
    {"bart__base",          "BartForCausalLM",    "model",                                  "BartDecoderWrapper",    HEFT_MODULE_MODEL      },
    {"t5__gated_noscale",   "T5Model",            "decoder",                                "T5Stack",               HEFT_MODULE_MODEL      },
    {"t5__gated_noscale",   "T5Model",            "decoder.block.0",                        "T5Block",               HEFT_MODULE_LAYER      },
    {"t5__gated_noscale",   "T5Model",            "decoder.block.0.layer.1",                "T5LayerCrossAttention",
     HEFT_MODULE_ATTENTION                                                                                                                  },
    {"t5__gated_noscale",   "T5Model",            "decoder.block.0.layer.2",                "T5LayerFF",             HEFT_MODULE_MLP        },
    {"whisper__base",       "WhisperModel",       "encoder.conv1",                          "Conv1d",                HEFT_MODULE_CONVOLUTION},
    {"clip__base",          "CLIPModel",          "vision_model",                           "CLIPVisionModel",       HEFT_MODULE_MODEL      },
    {"vit__base",           "ViTModel",           "encoder",                                "",                      HEFT_MODULE_MODEL      },
    {"vit__base",           "ViTModel",           "encoder.layer.0",                        "ViTLayer",              HEFT_MODULE_LAYER      },
    {"mixtral__base",       "MixtralModel",       "layers.0.block_sparse_moe",              "MixtralSparseMoeBlock",
     HEFT_MODULE_MLP                                                                                                                        },
    {"mixtral__base",       "MixtralModel",       "layers.0.block_sparse_moe.gate",         "MixtralTopKRouter",
     HEFT_MODULE_ROUTER                                                                                                                     },
    {"mixtral__base",       "MixtralModel",       "layers.0.block_sparse_moe.experts",      "MixtralExperts",
     HEFT_MODULE_EXPERTS                                                                                                                    },
    {"mixtral__base",       "MixtralModel",       "layers.0.block_sparse_moe.experts.1",    "",
     HEFT_MODULE_EXPERT                                                                                                                     },
    {"mixtral__base",       "MixtralModel",       "layers.0.block_sparse_moe.experts.1.w2", "",
     HEFT_MODULE_LINEAR                                                                                                                     },
    {"deepseek_v3__base",   "DeepseekV3Model",    "layers.1.mlp.gate",                      "DeepseekV3TopkRouter",
     HEFT_MODULE_ROUTER                                                                                                                     },
};

static void modules_have_their_classes(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof class_rows / sizeof class_rows[0]; i++) {
        const struct class_row *row = &class_rows[i];
        char path[512];
        heft__arena arena;
        heft__arena_init(&arena, ctx);
        snprintf(path, sizeof path, HEFT_TEST_DATA "/skeletons/%s.json", row->file);
        const heft__json_value *root = test_read_json(&arena, path);
        heft_model *model = test_make_model(ctx, heft__json_member(root, "config"), row->model,
                                            HEFT_DTYPE_NONE, row->file);
        const heft_module *module =
            heft_model_module(model, heft_model_find_module(model, 0, row->path));
        if (!module || strcmp(module->class_name, row->class_name) != 0 ||
            module->kind != row->kind) {
            fail_msg("%s: '%s' is %s, a %s", row->model, row->path,
                     module ? module->class_name : "not there",
                     module ? heft_module_kind_name(module->kind) : "nothing");
        }
        heft_model_free(model);
        heft__arena_fini(&arena);
    }
}

/* Each expert is a unit; the rest of its layer is one too; everything else is one unit per module. */
static void experts_are_units_of_their_own(void **state)
{
    (void)state;
    static const char config[] =
        "{\"model_type\":\"mixtral\",\"hidden_size\":8,\"num_hidden_layers\":2,\"vocab_size\":12,"
        "\"num_attention_heads\":2,\"num_key_value_heads\":2,\"intermediate_size\":16,"
        "\"num_local_experts\":2}";
    static const struct {
        const char *path;
        size_t parameters;
    } rows[] = {
        {"model.embed_tokens",                        1},
        {"model.layers.0",                            7}, /* q, k, v, o, the router, two norms */
        {"model.layers.0.block_sparse_moe.experts.0", 3},
        {"model.layers.0.block_sparse_moe.experts.1", 3},
        {"model.layers.1",                            7},
        {"model.layers.1.block_sparse_moe.experts.0", 3},
        {"model.layers.1.block_sparse_moe.experts.1", 3},
        {"model.norm",                                1},
        {"model.rotary_emb",                          2},
        {"lm_head",                                   1},
    };
    heft_residency *r = NULL;
    heft_error err = {0};
    heft_model *model = test_model_from_text(ctx, config, "MixtralForCausalLM");
    test_expect_status(heft_residency_new(model, NULL, &r, &err), HEFT_OK, &err, "units");
    assert_int_equal(heft_residency_count(r), sizeof rows / sizeof rows[0]);
    for (size_t u = 0; u < heft_residency_count(r); u++) {
        assert_string_equal(heft_residency_unit(r, u)->name, rows[u].path);
        assert_int_equal(heft_residency_unit(r, u)->parameter_count, rows[u].parameters);
    }
    heft_residency_free(r);
    const heft_module *layer =
        heft_model_module(model, heft_model_find_module(model, 0, "model.layers.0"));
    const heft_module *expert = heft_model_module(
        model, heft_model_find_module(model, 0, "model.layers.0.block_sparse_moe.experts.0"));
    assert_true(layer->no_split && !expert->no_split && expert->unit);
    heft_model_free(model);
}

/* ---- the config, later ------------------------------------------------------------------------- */
struct numbers {
    uint64_t hidden, layers;
};

static void read_numbers(heft__skeleton *s, void *out)
{
    struct numbers *numbers = out;
    numbers->hidden = heft__sk_count(s, "hidden_size", 1);
    numbers->layers = heft__sk_layers(s, "num_hidden_layers", 1);
}

static void read_what_is_not_there(heft__skeleton *s, void *out)
{
    *(bool *)out = heft__sk_flag(s, "hidden_size", true);
}

static void a_model_keeps_its_config(void **state)
{
    (void)state;
    heft_model *model = test_model_from_text(ctx, tiny, "BertModel");
    struct numbers numbers = {0};
    heft_error err = {0};
    bool flag = false;
    test_expect_status(heft__model_read(model, read_numbers, &numbers, &err), HEFT_OK, &err,
                       "read");
    assert_true(numbers.hidden == 8 && numbers.layers == 2);
    assert_string_equal(heft_config_model_type(heft__model_config(model)), "bert");
    assert_int_equal(heft__model_read(model, read_what_is_not_there, &flag, &err), HEFT_FORMAT);
    assert_string_equal(err.item, "hidden_size");
    assert_true(err.offset == (uint64_t)(strstr(tiny, "8,") - tiny));
    assert_int_equal(heft__model_read(model, read_what_is_not_there, &flag, NULL), HEFT_FORMAT);
    heft_model_free(model);
}

static heft_status make_tree(heft_ctx *with, void *user, heft_error *err)
{
    heft_config *config = NULL;
    heft_model *model = NULL;
    (void)user;
    heft_status status = heft__config_parse(with, "c", tiny, strlen(tiny), &config, err);
    if (status == HEFT_OK) {
        status = heft_model_new(with, config, "BertForMaskedLM", HEFT_DTYPE_NONE, &model, err);
    }
    if (status == HEFT_OK) {
        status = heft__modules_measure(model, err);
    }
    heft_model_free(model);
    heft_config_free(config);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    test_oom_sweep(make_tree, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trees_hold_every_parameter_once),
        cmocka_unit_test(modules_are_found_by_relative_names),
        cmocka_unit_test(layers_and_embeddings_stay_whole),
        cmocka_unit_test(modules_have_their_classes),
        cmocka_unit_test(experts_are_units_of_their_own),
        cmocka_unit_test(a_model_keeps_its_config),
        cmocka_unit_test(memory_can_run_out_anywhere),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
