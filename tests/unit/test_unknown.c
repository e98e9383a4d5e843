/* Models of a type that heft has no family for: the checkpoint's own names, shapes and dtypes, its
 * repeated modules as blocks; loaded, saved and loaded again. */
#include "load/load.h"
#include "scratch.h"
#include "support_model.h"

#include <stdlib.h>

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
        uint8_t *bytes = malloc((size_t)info->size_bytes + 1);
        size_t number = heft_model_find(model, info->name);
        assert_true(number != SIZE_MAX);
        test_expect_status(heft_model_tensor(model, number, &tensor, &err), HEFT_OK, &err, name);
        test_expect_status(heft_checkpoint_read(ckpt, i, bytes, info->size_bytes, &err), HEFT_OK,
                           &err, name);
        assert_int_equal(tensor->dtype, info->dtype);
        assert_int_equal(tensor->size_bytes, info->size_bytes);
        assert_memory_equal(tensor->data, bytes, (size_t)info->size_bytes);
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
        assert_non_null(strstr(report->warnings[0], "unknown model type 'quux'"));
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

/* ---- layers and units by structure ------------------------------------------------------------ */
#define NAMES_MOST 200

/* Append the names that a text with ranges stands for: "layers.[0-2].q", "x.{a,b}". */
static void expand(const char *text, char names[NAMES_MOST][160], size_t *count)
{
    const char *open = strpbrk(text, "[{"), *close = open ? strpbrk(open, "]}") : NULL;
    char next[160];
    if (!open) {
        assert_true(*count < NAMES_MOST);
        snprintf(names[(*count)++], sizeof names[0], "%s", text);
    } else if (*open == '[') {
        for (char digit = open[1]; digit <= open[3]; digit++) {
            snprintf(next, sizeof next, "%.*s%c%s", (int)(open - text), text, digit, close + 1);
            expand(next, names, count);
        }
    } else {
        for (const char *one = open + 1; one < close;) {
            const size_t length = strcspn(one, ",}");
            snprintf(next, sizeof next, "%.*s%.*s%s", (int)(open - text), text, (int)length, one,
                     close + 1);
            expand(next, names, count);
            one += length + 1;
        }
    }
}

/* A checkpoint of type "quux" whose tensors have these names and one byte each. */
static void write_names(char names[NAMES_MOST][160], size_t count)
{
    heft__buffer file;
    heft__buffer_init(&file, ctx);
    heft__buffer_format(&file, "12345678{");
    for (size_t i = 0; i < count; i++) {
        heft__buffer_format(&file,
                            "%s\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}",
                            i ? "," : "", names[i], i, i + 1);
    }
    heft__buffer_byte(&file, '}');
    const uint64_t header = file.size - 8;
    for (size_t i = 0; i < 8; i++) {
        file.data[i] = (uint8_t)(header >> (8 * i));
    }
    for (size_t i = 0; i < count; i++) {
        heft__buffer_byte(&file, (uint8_t)i);
    }
    char command[700];
    snprintf(command, sizeof command, "rm -rf '%s/names' && mkdir '%s/names'", folder, folder);
    assert_int_equal(system(command), 0);
    test_write_file(at("names"), "model.safetensors", file.data, file.size);
    test_write_file(at("names"), "config.json", "{\"model_type\":\"quux\"}", 21);
    heft__buffer_fini(&file);
}

static bool is_among(char names[NAMES_MOST][160], size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(names[i], name) == 0) {
            return true;
        }
    }
    return false;
}

static const struct list_row {
    const char *what;
    const char *names[12];   /* with ranges */
    const char *layers[4];   /* modules that stay whole and are units */
    const char *units[3];    /* modules that are units inside of them */
    const char *patterns[4]; /* what heft_model_no_split says */
} list_rows[] = {
    {"a decoder",
     {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight",
      "model.layers.[0-2].{self_attn.q_proj,self_attn.o_proj,mlp.up_proj,input_layernorm}.weight"},
     {"model.layers.[0-2]"},
     {NULL},
     {"model.layers.*"}                                                                                                                                 },
    {"lists at the root",
     {"wte.weight", "ln_f.{weight,bias}", "h.[0-1].{ln_1,attn.c_attn,mlp.c_fc}.{weight,bias}"},
     {"h.[0-1]"},
     {NULL},
     {"h.*"}                                                                                                                                            },
    {"a classifier",                                /* two matrices are no layers */
     {"body.fc.weight", "head.{0,2}.{weight,bias}"},
     {NULL},
     {NULL},
     {NULL}                                                                                                                                             },
    {"one layer",                                   {"model.layers.0.{a,b}.weight", "head.weight"},                            {NULL},    {NULL}, {NULL}},
    {"two lists, the first block has a table more",
     {"shared.weight",
      "encoder.block.[0-1].layer.0.{SelfAttention.q,SelfAttention.k,SelfAttention.v,layer_norm}."
      "weight",
      "encoder.block.[0-1].layer.1.{DenseReluDense.wi,DenseReluDense.wo,layer_norm}.weight",
      "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
      "decoder.block.[0-1].layer.0.{SelfAttention.q,SelfAttention.k,layer_norm}.weight",
      "decoder.block.[0-1].layer.1.{EncDecAttention.q,EncDecAttention.k,layer_norm}.weight",
      "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"},
     {"encoder.block.[0-1]", "decoder.block.[0-1]"},
     {NULL},
     {"decoder.block.*", "encoder.block.*"}                                                                                                             },
    {"a mixture, its first layer dense",
     {"model.layers.0.mlp.{up,down}.weight", "model.layers.[1-2].mlp.gate.weight",
      "model.layers.[0-2].{attn.q,attn.o,norm}.weight",
      "model.layers.[1-2].mlp.experts.[0-3].{w1,w2,w3}.weight"},
     {"model.layers.[0-2]"},
     {"model.layers.[1-2].mlp.experts.[0-3]"},
     {"model.layers.*"}                                                                                                                                 },
    {"experts by names with numbers",               /* Switch Transformers: a ModuleDict */
     {"encoder.block.[0-2].layer.0.{SelfAttention.q,layer_norm}.weight",
      "encoder.block.[0-2].layer.1.mlp.router.classifier.weight",
      "encoder.block.[0-2].layer.1.mlp.experts.expert_[0-1].{wi,wo}.weight"},
     {"encoder.block.[0-2]"},
     {"encoder.block.[0-2].layer.1.mlp.experts.expert_[0-1]"},
     {"encoder.block.*"}                                                                                                                                },
    {"layers of numbered parts",                    /* vit-pytorch: attention and MLP are 0 and 1 */
     {"transformer.layers.[0-2].0.{norm,to_qkv,to_out.0}.weight",
      "transformer.layers.[0-2].1.net.{0,1,4}.{weight,bias}", "mlp_head.{0,1}.{weight,bias}"},
     {"transformer.layers.[0-2]"},
     {NULL},
     {"transformer.layers.*"}                                                                                                                           },
    {"numbers only",                                {"[0-2].{0,2}.{weight,bias}", "4.weight"},                                 {"[0-2]"}, {NULL}, {"*"} },
    {"numbers only, one matrix each",               {"{0,2,4}.{weight,bias}"},                                                 {NULL},    {NULL}, {NULL}},
    {"a pipeline of parts",                         /* GPT-NeoX: embeddings, layers, norm, head in one list */
     {"sequential.0.word_embeddings.weight", "sequential.[2-4].{attention.qkv,mlp.h}.{weight,bias}",
      "sequential.{6,7}.weight"},
     {"sequential.[2-4]"},
     {NULL},
     {"sequential.*"}                                                                                                                                   },
    {"stages with blocks",                          /* ResNet: the stages have numbers as well */
     {"conv1.weight", "layer[1-4].[0-1].{conv1,bn1,conv2,bn2}.weight",
      "layer[2-4].0.downsample.{0,1}.weight", "fc.{weight,bias}"},
     {"layer[1-4].[0-1]"},
     {NULL},
     {"layer1.*", "layer2.*", "layer3.*", "layer4.*"}                                                                                                   },
    {"stages in a list",                            /* Swin: a stage stays whole, its blocks come one by one */
     {"layers.[0-1].blocks.[0-1].{attn.qkv,attn.proj,mlp.fc1,norm1}.weight",
      "layers.0.downsample.{norm,reduction}.weight"},
     {"layers.[0-1]"},
     {"layers.[0-1].blocks.[0-1]"},
     {"layers.*"}                                                                                                                                       },
    {"blocks of a U-Net",                           /* attn1 and attn2 are parts of one thing */
     {"down_blocks.[0-1].attentions.[0-1].{norm,proj_in}.weight",
      "down_blocks.[0-1].attentions.[0-1].transformer_blocks.0.attn[1-2].{to_q,to_k,to_out.0}."
      "weight",
      "down_blocks.[0-1].resnets.[0-1].{conv1,conv2}.weight", "time_embedding.linear_[1-2].weight"},
     {"down_blocks.[0-1]"},
     {"down_blocks.[0-1].attentions.[0-1]", "down_blocks.[0-1].resnets.[0-1]"},
     {"down_blocks.*"}                                                                                                                                  },
    {"parallel lists",                              /* XLM */
     {"embeddings.weight", "attentions.[0-2].{q_lin,k_lin}.weight", "layer_norm1.[0-2].weight",
      "ffns.[0-2].{lin1,lin2}.weight"},
     {"attentions.[0-2]", "ffns.[0-2]"},
     {NULL},
     {"attentions.*", "ffns.*"}                                                                                                                         },
    {"names with numbers at the end",               /* DenseNet */
     {"features.conv0.weight",
      "features.denseblock1.denselayer[1-3].{norm1,conv1,norm2,conv2}.weight",
      "features.transition1.{norm,conv}.weight"},
     {"features.denseblock1.denselayer[1-3]"},
     {NULL},
     {"features.denseblock1.denselayer*"}                                                                                                               },
    {"names ported from TensorFlow",
     {"transformer.wte.weight", "transformer.h_._[0-1].{attn.c_attn,mlp.c_fc}.weight"},
     {"transformer.h_._[0-1]"},
     {NULL},
     {"transformer.h_._*"}                                                                                                                              },
    {"an adapter",                                  /* LoRA: two matrices in one linear module */
     {"base_model.model.layers.[0-1].self_attn.q_proj.{lora_A,lora_B}.weight"},
     {"base_model.model.layers.[0-1]"},
     {NULL},
     {"base_model.model.layers.*"}                                                                                                                      },
    {"a first layer with a norm more",              /* RWKV; parameters beside modules */
     {"emb.weight", "blocks.[0-1].att.{time_decay,key.weight,value.weight}",
      "blocks.[0-1].{ffn.key,ln1}.weight", "blocks.0.ln0.weight"},
     {"blocks.[0-1]"},
     {NULL},
     {"blocks.*"}                                                                                                                                       },
    {"tasks by name",                               {"heads.{ner,pos}.{dense,out}.weight"},                                    {NULL},    {NULL}, {NULL}},
    {"odd dots and zeros",                          /* nothing stands twice, and nothing is lost */
     {".x", ".x.y", "a..b", "a.", "a.b", "a.b.c", "l.{0,00,1}.{p,q}.w"},
     {"l.{0,00,1}"},
     {NULL},
     {"l.*"}                                                                                                                                            },
};

static void check_lists(const struct list_row *row)
{
    static char names[NAMES_MOST][160], layers[NAMES_MOST][160], units[NAMES_MOST][160];
    size_t count = 0, layer_count = 0, unit_count = 0, layers_found = 0, units_found = 0, k = 0;
    for (size_t i = 0; row->names[i]; i++) {
        expand(row->names[i], names, &count);
    }
    for (size_t i = 0; i < 4 && row->layers[i]; i++) {
        expand(row->layers[i], layers, &layer_count);
    }
    for (size_t i = 0; i < 3 && row->units[i]; i++) {
        expand(row->units[i], units, &unit_count);
    }
    write_names(names, count);
    heft_load_report *report = NULL;
    heft_model *model = load(ctx, "names", HEFT_DTYPE_NONE, &report);
    assert_int_equal(heft_model_count(model), count);
    for (size_t i = 0; i < heft_model_module_count(model); i++) {
        const heft_module *module = heft_model_module(model, i);
        const bool layer = is_among(layers, layer_count, module->path),
                   unit = layer || is_among(units, unit_count, module->path);
        if (module->no_split != layer || module->unit != unit ||
            (module->kind == HEFT_MODULE_LAYER) != layer) {
            fail_msg("%s: '%s' is %s layer and %s unit", row->what, module->path,
                     module->no_split ? "a" : "no", module->unit ? "a" : "no");
        }
        layers_found += layer;
        units_found += unit && !layer;
    }
    assert_int_equal(layers_found, layer_count);
    assert_int_equal(units_found, unit_count);
    for (; k < 4 && row->patterns[k]; k++) {
        assert_non_null(heft_model_no_split(model, k));
        assert_string_equal(heft_model_no_split(model, k), row->patterns[k]);
    }
    assert_null(heft_model_no_split(model, k));
    heft_load_report_free(report);
    heft_model_free(model);
}

static void layers_are_found_by_structure(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof list_rows / sizeof list_rows[0]; i++) {
        check_lists(&list_rows[i]);
    }
}

/* Whatever the names are: each parameter is in one module, each module is there once, in pre-order. */
static void any_names_make_a_tree(void **state)
{
    (void)state;
    static const char letters[] = "..01ab_";
    static char names[NAMES_MOST][160];
    srand(7);
    for (int round = 0; round < 200; round++) {
        size_t count = 0;
        for (int i = 0; i < 40; i++) {
            const int length = 1 + rand() % 9;
            char name[160];
            for (int k = 0; k < length; k++) {
                name[k] = letters[rand() % (int)(sizeof letters - 1)];
            }
            name[length] = '\0';
            if (!is_among(names, count, name)) {
                snprintf(names[count++], sizeof names[0], "%s", name);
            }
        }
        write_names(names, count);
        heft_load_report *report = NULL;
        heft_model *model = load(ctx, "names", HEFT_DTYPE_NONE, &report);
        const size_t modules = heft_model_module_count(model);
        size_t seen = 0;
        for (size_t i = 0; i < modules; i++) {
            const heft_module *module = heft_model_module(model, i);
            for (size_t k = i + 1; k < modules; k++) {
                assert_string_not_equal(module->path, heft_model_module(model, k)->path);
            }
            assert_true(i == 0 || (module->parent < i &&
                                   heft_model_module(model, module->parent)->end >= module->end));
            assert_int_equal(heft_model_find_module(model, 0, module->path), i);
            seen += module->parameter_count;
        }
        assert_int_equal(seen, count);
        for (size_t i = 0; i < count; i++) {
            assert_true(heft_model_find(model, names[i]) != SIZE_MAX);
        }
        heft_load_report_free(report);
        heft_model_free(model);
    }
}

/* Names of very many parts make few modules: what is left is the role. */
static void deep_names_make_few_modules(void **state)
{
    (void)state;
    static char names[NAMES_MOST][160];
    for (size_t i = 0; i < 70; i++) {
        memcpy(names[0] + 2 * i, "a.", 2);
    }
    snprintf(names[0] + 140, 20, "w");
    write_names(names, 1);
    heft_load_report *report = NULL;
    heft_model *model = load(ctx, "names", HEFT_DTYPE_NONE, &report);
    const heft_parameter *parameter = heft_model_parameter(model, 0);
    assert_int_equal(heft_model_module_count(model), 33);
    assert_int_equal(parameter->module, 32);
    assert_string_equal(parameter->name, names[0]);
    assert_string_equal(parameter->role, names[0] + 64);
    assert_int_equal(heft_model_module_parameter(model, 32, names[0] + 64), 0);
    heft_load_report_free(report);
    heft_model_free(model);
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

static void each_tensor_may_have_a_dtype(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_checkpoint *ckpt = NULL;
    make_unknown("sharded_safetensors", "unknown");
    test_expect_status(heft_checkpoint_open(ctx, at("unknown"), NULL, &ckpt, &err), HEFT_OK, &err,
                       "open");
    const size_t count = heft_checkpoint_count(ckpt);
    heft_dtype *dtypes = calloc(count + 1, sizeof *dtypes);
    dtypes[0] = HEFT_DTYPE_BF16;
    dtypes[1] = HEFT_DTYPE_F64;
    const struct {
        const char *name, *folder;
        size_t count;
        heft_dtype last;
        heft_status status;
    } rows[] = {
        {"two_of_them",   "unknown",             count,     HEFT_DTYPE_NONE,  HEFT_OK         },
        {"one_more",      "unknown",             count + 1, HEFT_DTYPE_NONE,  HEFT_INVALID_ARG},
        {"one_less",      "unknown",             count - 1, HEFT_DTYPE_NONE,  HEFT_INVALID_ARG},
        {"no_dtype",      "unknown",             count,     HEFT_DTYPE_COUNT, HEFT_INVALID_ARG},
        {"a_known_model", "sharded_safetensors", count,     HEFT_DTYPE_NONE,  HEFT_INVALID_ARG},
    };
    make_unknown("sharded_safetensors", "sharded_safetensors");
    char command[700];
    snprintf(command, sizeof command, "cp '%s/loading/sharded_safetensors/config.json' '%s/%s/'",
             HEFT_TEST_DATA, folder, "sharded_safetensors");
    assert_int_equal(system(command), 0);
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        heft_model *model = NULL;
        dtypes[count - 1] = rows[r].last;
        const test_how options = {
            .load = {.tensor_dtypes = dtypes, .tensor_dtype_count = rows[r].count}
        };
        test_expect_status(test_load(ctx, at(rows[r].folder), &options, &model, NULL, &err),
                           rows[r].status, &err, rows[r].name);
        for (size_t i = 0; model && i < count; i++) {
            const heft_tensor_info *info = heft_checkpoint_info(ckpt, i);
            const size_t number = heft_model_find(model, info->name);
            assert_int_equal(heft_model_parameter(model, number)->dtype,
                             dtypes[i] == HEFT_DTYPE_NONE ? info->dtype : dtypes[i]);
        }
        heft_model_free(model);
    }
    free(dtypes);
    heft_checkpoint_close(ckpt);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_checkpoint_is_the_skeleton),
        cmocka_unit_test(layers_are_found_by_structure),
        cmocka_unit_test(any_names_make_a_tree),
        cmocka_unit_test(deep_names_make_few_modules),
        cmocka_unit_test(it_is_cast_and_saved_and_loaded_again),
        cmocka_unit_test(each_tensor_may_have_a_dtype),
        cmocka_unit_test(a_class_must_be_known),
        cmocka_unit_test(memory_can_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
