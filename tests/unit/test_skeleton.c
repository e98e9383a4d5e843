/* Empty models: every golden skeleton (names, order, shapes, dtypes, ties, buffers, modules,
 * no-split blocks, counts), what they cost, and how their parameters are handed out. */
#include "model/model.h"
#include "support.h"
#include "support_model.h"

#include <stdlib.h>
#include <time.h>

static heft_ctx *ctx;

/* [name, shape, dtype] against parameter i. */
static void compare_row(const char *what, const heft_model *model, size_t i,
                        const heft__json_value *row)
{
    const heft_parameter *parameter = heft_model_parameter(model, i);
    const heft__json_value *name = row->first, *shape = name->next, *dtype = shape->next,
                           *dim = shape->first;
    if (!parameter || strcmp(parameter->name, name->text) != 0) {
        fail_msg("%s: place %zu has '%s', expected '%s'", what, i,
                 parameter ? parameter->name : "nothing", name->text);
        return;
    }
    bool same = parameter->rank == shape->count &&
                strcmp(heft_dtype_safetensors_name(parameter->dtype), dtype->text) == 0;
    for (uint32_t d = 0; same && d < parameter->rank; d++, dim = dim->next) {
        uint64_t value = 0;
        same = heft__json_as_u64(dim, &value) && value == parameter->shape[d];
    }
    if (!same) {
        fail_msg("%s: '%s' has another shape or dtype", what, name->text);
    }
}

/* ---- names in Transformers' memory that differ from those in files --------------------------- */
static bool has_inner_names(const heft_model *model)
{
    for (size_t i = 0; i < model->count; i++) {
        if (heft__model_place(model, i).inner) {
            return true;
        }
    }
    return false;
}

/* The first parameter that is `name` there, or a part of it; SIZE_MAX. */
static size_t find_inner(const heft_model *model, const char *name)
{
    for (size_t i = 0; i < model->count; i++) {
        const heft__inner *inner = heft__model_place(model, i).inner;
        if (strcmp(inner ? inner->name : model->parameters[i].name, name) == 0) {
            return i;
        }
    }
    return SIZE_MAX;
}

/* The parts of one inner tensor cover it once. */
static void compare_parts(const char *what, const heft_model *model, const heft__inner *inner)
{
    uint64_t elements = 0, sum = 0, count = 0, covered = 0, part;
    assert_true(heft__shape_elems(inner->shape, inner->rank, &elements));
    for (size_t i = 0; i < model->count; i++) {
        const heft_parameter *parameter = &model->parameters[i];
        if (heft__model_place(model, i).inner == inner) {
            assert_true(heft__shape_elems(parameter->shape, parameter->rank, &part));
            sum += part;
            covered += heft__model_place_first(model, i);
            count++;
            assert_true(heft__model_place_first(model, i) + part <= elements);
        }
    }
    /* parts of one size, none twice: their beginnings are 0, 1, 2, ... of that size */
    if (sum != elements || covered != elements / count * (count * (count - 1) / 2)) {
        fail_msg("%s: the parts of '%s' do not cover it", what, inner->name);
    }
}

/* As a set: the file's order is another. */
static void compare_inner(const char *what, const heft_model *model, const heft__json_value *params)
{
    for (const heft__json_value *row = params->first; row; row = row->next) {
        size_t i = find_inner(model, row->first->text);
        if (i == SIZE_MAX) {
            fail_msg("%s: nothing is '%s' in Transformers' memory", what, row->first->text);
            return;
        }
        const heft__inner *inner = heft__model_place(model, i).inner;
        const heft__json_value *shape = row->first->next, *dim = shape->first;
        uint32_t rank = inner ? inner->rank : model->parameters[i].rank;
        const uint64_t *ours = inner ? inner->shape : model->parameters[i].shape;
        bool same = rank == shape->count;
        for (uint32_t d = 0; same && d < rank; d++, dim = dim->next) {
            uint64_t value = 0;
            same = heft__json_as_u64(dim, &value) && value == ours[d];
        }
        if (!same) {
            fail_msg("%s: '%s' has another shape", what, row->first->text);
        }
        if (inner) {
            compare_parts(what, model, inner);
        }
    }
}

/* ---- lists ----------------------------------------------------------------------------------- */
/* The first parameter from i on that is saved. */
static size_t next_saved(const heft_model *model, size_t i)
{
    while (i < heft_model_count(model) &&
           (heft_model_parameter(model, i)->kind == HEFT_PARAMETER_BUFFER_TRANSIENT ||
            heft_model_parameter(model, i)->tied_to != i)) {
        i++;
    }
    return i;
}

static void compare_lists(const char *what, const heft_model *model, const heft__json_value *golden)
{
    const heft__json_value *saved = heft__json_member(golden, "saved"),
                           *params = heft__json_member(golden, "params");
    size_t at = next_saved(model, 0);
    for (const heft__json_value *row = saved ? saved->first : NULL; row;
         row = row->next, at = next_saved(model, at + 1)) {
        compare_row(what, model, at, row);
    }
    assert_true(!saved || at == heft_model_count(model));
    at = 0;
    if (params && has_inner_names(model)) {
        compare_inner(what, model, params);
        params = NULL;
    }
    for (const heft__json_value *row = params ? params->first : NULL; row; row = row->next) {
        compare_row(what, model, at++, row);
    }
    const heft__json_value *buffers = heft__json_member(golden, "buffers");
    const heft__json_value *transient = heft__json_member(buffers, "non_persistent");
    for (const heft__json_value *row = transient ? transient->first : NULL; row; row = row->next) {
        size_t i = heft_model_find(model, row->first->text);
        if (i == SIZE_MAX) {
            fail_msg("%s: no buffer '%s'", what, row->first->text);
        }
        compare_row(what, model, i, row);
        assert_int_equal(heft_model_parameter(model, i)->kind, HEFT_PARAMETER_BUFFER_TRANSIENT);
    }
}

static bool in_state_dict(const heft_model *model, size_t i)
{
    return heft_model_parameter(model, i)->kind != HEFT_PARAMETER_BUFFER_TRANSIENT;
}

/* The digest of what is saved, or of the whole state dict. */
static void compare_digest(const char *what, const heft_model *model,
                           const heft__json_value *golden, bool saved)
{
    heft__buffer text;
    char hex[65];
    heft__buffer_init(&text, ctx);
    for (size_t i = 0; i < heft_model_count(model) && in_state_dict(model, i); i++) {
        const heft_parameter *parameter = heft_model_parameter(model, i);
        if (saved && parameter->tied_to != i) {
            continue;
        }
        heft__buffer_format(&text, "%s\t%s\t", parameter->name,
                            heft_dtype_safetensors_name(parameter->dtype));
        for (uint32_t d = 0; d < parameter->rank; d++) {
            heft__buffer_format(&text, "%s%llu", d ? "x" : "",
                                (unsigned long long)parameter->shape[d]);
        }
        heft__buffer_byte(&text, '\n');
    }
    test_sha256(text.data, text.size, hex);
    heft__buffer_fini(&text);
    if (strcmp(hex, heft__json_member(golden, saved ? "sha256" : "sha256_in_memory")->text) != 0) {
        fail_msg("%s: the digest of the %s differs", what, saved ? "saved names" : "state dict");
    }
}

static void compare_counts(const char *what, const heft_model *model,
                           const heft__json_value *golden)
{
    uint64_t elements = 0, bytes = 0;
    assert_true(heft__json_as_u64(heft__json_member(golden, "num_parameters"), &elements));
    assert_true(heft__json_as_u64(heft__json_member(golden, "saved_bytes"), &bytes));
    if (heft_model_elements(model) != elements || heft_model_bytes(model) != bytes) {
        fail_msg("%s: %llu elements, %llu bytes", what,
                 (unsigned long long)heft_model_elements(model),
                 (unsigned long long)heft_model_bytes(model));
    }
    const heft__json_value *no_split = heft__json_member(golden, "no_split_modules");
    size_t k = 0;
    for (const heft__json_value *name = no_split->first; name; name = name->next) {
        assert_string_equal(heft_model_no_split(model, k++), name->text);
    }
    assert_null(heft_model_no_split(model, k));
    assert_string_equal(model->base_prefix, heft__json_member(golden, "base_model_prefix")->text);
}

static void compare_ties(const heft_model *model, const heft__json_value *golden)
{
    const heft__json_value *keys = heft__json_member(golden, "tied_weights_keys");
    size_t tied = 0;
    for (const heft__json_value *key = keys->first; key; key = key->next) {
        size_t source = find_inner(model, key->text);
        assert_int_equal(heft_model_parameter(model, find_inner(model, key->key))->tied_to, source);
        assert_int_equal(heft_model_parameter(model, source)->tied_to, source);
    }
    for (size_t i = 0; i < heft_model_count(model); i++) {
        tied += heft_model_parameter(model, i)->tied_to != i;
    }
    assert_int_equal(tied, keys->count);
}

static void compare_modules(const char *what, const heft_model *model,
                            const heft__json_value *golden)
{
    const heft__json_value *modules = heft__json_member(golden, "modules");
    size_t i = 0;
    for (const heft__json_value *path = modules ? modules->first : NULL; path;
         path = path->next, i++) {
        if (i >= model->module_count || strcmp(model->modules[i].path, path->text) != 0) {
            fail_msg("%s: module %zu is not '%s'", what, i, path->text);
        }
    }
    assert_true(!modules || i == model->module_count);
}

static size_t compare_file(const char *name, void *user)
{
    (void)user;
    char path[512], what[800];
    size_t classes_seen = 0;
    heft__arena arena;
    heft__arena_init(&arena, ctx);
    snprintf(path, sizeof path, "%s/skeletons/%s", HEFT_TEST_DATA, name);
    const heft__json_value *root = test_read_json(&arena, path),
                           *classes = heft__json_member(root, "classes"),
                           *of = heft__json_member(root, "dtype"); /* where it is not float32 */
    heft_dtype dtype = HEFT_DTYPE_NONE;
    heft_error err;
    if (of) {
        assert_int_equal(heft_dtype_parse(of->text, &dtype, &err), HEFT_OK);
    }
    for (const heft__json_value *golden = classes->first; golden;
         golden = golden->next, classes_seen++) {
        const heft__json_value *own = heft__json_member(golden, "config");
        snprintf(what, sizeof what, "%s %s", name, golden->key);
        uint64_t peak;
        heft_ctx *with = heft_ctx_new(NULL); /* of its own, so that it is known what it costs */
        heft_model *model = test_make_model(with, own ? own : heft__json_member(root, "config"),
                                            golden->key, dtype, what);
        heft_ctx_memory(with, NULL, &peak);
        if (peak >= 16000000) {
            fail_msg("%s: %llu bytes of heap", what, (unsigned long long)peak);
        }
        assert_string_equal(heft_model_class(model), golden->key);
        compare_lists(what, model, golden);
        compare_digest(what, model, golden, true);
        if (!has_inner_names(model)) {
            compare_digest(what, model, golden, false);
            compare_modules(what, model, golden);
        }
        compare_counts(what, model, golden);
        compare_ties(model, golden);
        heft_model_free(model);
        heft_ctx_free(with);
    }
    heft__arena_fini(&arena);
    return classes_seen;
}

static void skeletons_are_golden(void **state)
{
    (void)state;
    const size_t classes_seen = test_each_skeleton_file(compare_file, NULL);
    assert_true(classes_seen >= 190);
}

/* ---- looking --------------------------------------------------------------------------------- */
static const char tiny[] =
    "{\"model_type\":\"bert\",\"hidden_size\":8,\"num_hidden_layers\":1,\"num_attention_heads\":2,"
    "\"intermediate_size\":16,\"vocab_size\":12,\"max_position_embeddings\":6}";

static void parameters_are_found_by_name_and_number(void **state)
{
    (void)state;
    heft_model *model = test_model_from_text(ctx, tiny, "BertForMaskedLM");
    const size_t count = heft_model_count(model);
    for (size_t i = 0; i < count; i++) {
        const heft_parameter *parameter = heft_model_parameter(model, i);
        assert_int_equal(heft_model_find(model, parameter->name), i);
        assert_int_equal(parameter->state, HEFT_PARAMETER_ABSENT);
        bool transient = i + 2 >= count; /* position_ids and token_type_ids stand last */
        assert_int_equal(parameter->kind,
                         transient ? HEFT_PARAMETER_BUFFER_TRANSIENT : HEFT_PARAMETER_WEIGHT);
    }
    assert_null(heft_model_parameter(model, count));
    assert_null(heft_model_parameter(model, SIZE_MAX));
    assert_true(heft_model_find(model, "bert.pooler.dense.weight") == SIZE_MAX);
    assert_true(heft_model_find(model, "") == SIZE_MAX);
    heft_model_free(model);
    heft_model_free(NULL);
}

static void bound_parameters_are_handed_out_and_outlive_the_model(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_tensor *tensor = NULL;
    heft_storage *storage = NULL;
    heft_model *model = test_model_from_text(ctx, tiny, "BertModel");
    size_t i = heft_model_find(model, "embeddings.LayerNorm.weight");
    assert_int_equal(heft_model_tensor(model, i, &tensor, &err), HEFT_NOT_FOUND);
    assert_string_equal(err.item, "embeddings.LayerNorm.weight");
    assert_int_equal(heft_model_tensor(model, heft_model_count(model), &tensor, NULL),
                     HEFT_INVALID_ARG);
    assert_int_equal(heft_model_tensor(NULL, 0, &tensor, NULL), HEFT_INVALID_ARG);
    assert_null(tensor);
    assert_int_equal(heft__storage_new(ctx, 64, &storage, &err), HEFT_OK);
    float *values = heft_storage_data(storage); /* [16] */
    for (int k = 0; k < 16; k++) {
        values[k] = (float)k;
    }
    heft__model_bind(model, i, storage, 32, HEFT_PARAMETER_MAPPED);
    assert_int_equal(heft_model_parameter(model, i)->state, HEFT_PARAMETER_MAPPED);
    assert_int_equal(heft_model_tensor(model, i, &tensor, &err), HEFT_OK);
    heft_model_free(model);
    assert_int_equal(tensor->rank, 1);
    assert_int_equal(tensor->shape[0], 8);
    assert_int_equal(tensor->flags, HEFT_TENSOR_WRITABLE);
    assert_true(((const float *)tensor->data)[0] == 8.0F &&
                ((const float *)tensor->data)[7] == 15.0F);
    heft_tensor_free(tensor);
}

/* ---- the builder's limits -------------------------------------------------------------------- */
static void (*odd_build)(heft__skeleton *s);

static void builds_the_odd_one(heft__skeleton *s)
{
    odd_build(s);
}

static void nests_too_deep(heft__skeleton *s)
{
    for (int i = 0; i < 40; i++) {
        heft__sk_enter(s, HEFT_MODULE_OTHER, "", "m%d", i);
    }
    for (int i = 0; i < 40; i++) {
        heft__sk_leave(s);
    }
    heft__sk_linear(s, "never", 2, 2, true);
}

static void has_deep_parts(heft__skeleton *s)
{
    for (int i = 0; i < 4; i++) {
        heft__sk_enter(s, HEFT_MODULE_OTHER, "", "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a");
    }
    for (int i = 0; i < 4; i++) {
        heft__sk_leave(s);
    }
}

static void has_many_modules(heft__skeleton *s)
{
    heft__sk_enter(s, HEFT_MODULE_OTHER, "", "%0200d", 1);
    heft__sk_enter(s, HEFT_MODULE_OTHER, "", "%0200d", 1);
    for (unsigned i = 0; i < 1000000 && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_OTHER, "", "%0200u", i);
        heft__sk_leave(s);
    }
    heft__sk_leave(s);
    heft__sk_leave(s);
}

static void has_a_long_part(heft__skeleton *s)
{
    heft__sk_enter(s, HEFT_MODULE_OTHER, "", "%0300d", 1);
    heft__sk_leave(s);
}

static void has_a_long_name(heft__skeleton *s)
{
    static char name[(64 << 10) + 2];
    memset(name, 'n', sizeof name - 1);
    heft__sk_named(s, name, HEFT_DTYPE_F32, NULL, 0);
}

static void has_many_bytes(heft__skeleton *s)
{
    for (int i = 0; i < 1000000 && heft__sk_going(s); i++) {
        heft__sk_embedding(s, "e", (uint64_t)1 << 31, (uint64_t)1 << 20, -1);
    }
    assert_false(heft__sk_going(s));
}

static void overflows_64_bits(heft__skeleton *s)
{
    const uint64_t shape[3] = {(uint64_t)1 << 31, (uint64_t)1 << 31, (uint64_t)1 << 31};
    heft__sk_parameter(s, "p", shape, 3, heft__init_constant(0));
}

static void has_many_tensors(heft__skeleton *s)
{
    for (int i = 0; i < 101; i++) {
        heft__sk_linear(s, "l", 2, 2, false);
    }
}

static void ties_unequal_shapes(heft__skeleton *s)
{
    heft__sk_linear(s, "a", 2, 3, false);
    heft__sk_linear(s, "b", 3, 2, false);
    heft__sk_tie(s, "b.weight", "a.weight");
}

static const heft__class odd_classes[] = {
    {"Odd", NULL, builds_the_odd_one, NULL},
    {NULL,  NULL, NULL,               NULL},
};
static const heft__family odd_family = {
    .model_type = "odd", .base_prefix = "", .classes = odd_classes};

static heft_status build_odd(heft_ctx *own, const heft_config *config, heft_dtype dtype,
                             heft_model **model, heft_error *err)
{
    const heft__recipe recipe = {
        .config = config, .family = &odd_family, .class = odd_classes, .dtype = dtype};
    return heft__model_build(own, &recipe, model, err);
}

static void the_builder_has_limits(void **state)
{
    (void)state;
    const heft_ctx_options options =
        HEFT_OPTIONS(heft_ctx_options, .limits = &HEFT_OPTIONS(heft_limits, .tensors = 100));
    static const struct {
        const char *name;
        void (*build)(heft__skeleton *s);
        heft_status status;
        const char *item, *says;
    } rows[] = {
        {"nests_too_deep",      nests_too_deep,      HEFT_LIMIT,  "",         "nested too deep"        },
        {"has_a_long_part",     has_a_long_part,     HEFT_LIMIT,  "",         "too long"               },
        {"has_a_long_name",     has_a_long_name,     HEFT_LIMIT,  "",         "longer than 65536 bytes"},
        {"has_many_bytes",      has_many_bytes,      HEFT_LIMIT,  "e.weight", "[2147483648, 1048576]"  },
        {"overflows_64_bits",   overflows_64_bits,   HEFT_LIMIT,  "p",        "2147483648, 2147483648" },
        {"has_many_tensors",    has_many_tensors,    HEFT_LIMIT,  "",         "more than 100 tensors"  },
        {"has_deep_parts",      has_deep_parts,      HEFT_LIMIT,  "",         "nested too deep"        },
        {"has_many_modules",    has_many_modules,    HEFT_LIMIT,  "",         "modules"                },
        {"ties_unequal_shapes", ties_unequal_shapes, HEFT_FORMAT, "b.weight",
         "cannot be tied to 'a.wei"                                                                    },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_ctx *own = heft_ctx_new(&options);
        heft_config *config = NULL;
        heft_model *model = NULL;
        heft_error err = {0};
        uint64_t before, peak;
        assert_int_equal(heft__config_parse(own, "c", "{}", 2, &config, &err), HEFT_OK);
        heft_ctx_memory(own, &before, NULL);
        odd_build = rows[i].build;
        heft_status status = build_odd(own, config, HEFT_DTYPE_NONE, &model, &err);
        test_expect_status(status, rows[i].status, &err, rows[i].name);
        assert_string_equal(err.item, rows[i].item);
        assert_non_null(strstr(err.message, rows[i].says));
        assert_string_equal(err.path, "c");
        assert_null(model);
        heft_ctx_memory(own, NULL, &peak);
        assert_true(peak - before < 20000);
        heft_config_free(config);
        heft_ctx_free(own);
    }
}

static void broken_configs_take_no_memory(void **state)
{
    (void)state;
    static const char text[] =
        "{\"model_type\":\"bert\",\"num_hidden_layers\":10000,\"hidden_size\":2147483640,"
        "\"intermediate_size\":2147483647}";
    heft_ctx *own = heft_ctx_new(NULL);
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft_error err = {0};
    uint64_t peak;
    assert_int_equal(heft__config_parse(own, "c", text, strlen(text), &config, &err), HEFT_OK);
    assert_int_equal(heft_model_new(own, config, NULL, HEFT_DTYPE_NONE, &model, &err), HEFT_LIMIT);
    assert_string_equal(err.item, "encoder.layer.0.attention.self.query.weight");
    heft_ctx_memory(own, NULL, &peak);
    assert_true(peak < 20000);
    heft_config_free(config);
    heft_ctx_free(own);
}

/* ---- what an empty model costs --------------------------------------------------------------- */
static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void an_empty_bert_base_costs_little(void **state)
{
    (void)state;
    heft_error err;
    heft_model *model = NULL;
    uint64_t live, peak;
    heft_ctx *own = heft_ctx_new(NULL);
    heft_config *config = NULL;
    heft_status status = heft_config_read(
        own, HEFT_TEST_DATA "/config/bert_base_cased.v5.config.json", &config, &err);
    if (status == HEFT_OK) {
        status = heft_model_new(own, config, "BertForPreTraining", HEFT_DTYPE_NONE, &model, &err);
    }
    heft_config_free(config);
    test_expect_status(status, HEFT_OK, &err, "bert-base-cased");
    heft_ctx_memory(own, &live, &peak);
    print_message("empty BertForPreTraining: %llu bytes live, %llu at the peak\n",
                  (unsigned long long)live, (unsigned long long)peak);
    assert_true(peak < 200000); /* the promise is 1 MB */
    heft_model_free(model);
    heft_ctx_memory(own, &live, NULL);
    assert_int_equal(live, 0);
    heft_ctx_free(own);
}

/* As many names as a mixture of 256 experts in 61 layers has, one by one. */
static void mixture(heft__skeleton *s)
{
    const uint64_t hidden = 7168, width = 2048;
    heft__sk_embedding(s, "model.embed_tokens", 129280, hidden, -1);
    for (unsigned layer = 0; layer < 61; layer++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, "DecoderLayer", "model.layers.%u", layer);
        for (unsigned i = 0; i < 7; i++) {
            char name[40];
            snprintf(name, sizeof name, "self_attn.part_%u_proj", i);
            heft__sk_linear(s, name, hidden, 1536 + i, false);
        }
        for (unsigned expert = 0; expert < 256; expert++) {
            heft__sk_enter(s, HEFT_MODULE_EXPERT, "", "mlp.experts.%u", expert);
            heft__sk_linear(s, "gate_proj", hidden, width, false);
            heft__sk_linear(s, "up_proj", hidden, width, false);
            heft__sk_linear(s, "down_proj", width, hidden, false);
            heft__sk_leave(s);
        }
        heft__sk_layer_norm(s, "input_layernorm", hidden, false);
        heft__sk_layer_norm(s, "post_attention_layernorm", hidden, false);
        heft__sk_leave(s);
    }
    heft__sk_linear(s, "lm_head", hidden, 129280, false);
}

static void an_empty_mixture_of_experts_costs_under_16_mb(void **state)
{
    (void)state;
    heft_error err;
    heft_config *config = NULL;
    heft_model *model = NULL;
    uint64_t live, peak;
    heft_ctx *own = heft_ctx_new(NULL);
    assert_int_equal(heft__config_parse(own, "c", "{}", 2, &config, &err), HEFT_OK);
    odd_build = mixture;
    double start = seconds_now();
    heft_status status = build_odd(own, config, HEFT_DTYPE_BF16, &model, &err);
    double seconds = seconds_now() - start;
    test_expect_status(status, HEFT_OK, &err, "mixture");
    heft_ctx_memory(own, &live, &peak);
    print_message("empty mixture, %zu parameters: %.1f MB live, %.1f MB at the peak, %.0f ms\n",
                  heft_model_count(model), (double)live / 1e6, (double)peak / 1e6, seconds * 1e3);
    assert_int_equal(heft_model_count(model), 2 + 61 * (7 + 256 * 3 + 2));
    for (size_t i = 0; i < heft_model_count(model); i++) {
        assert_int_equal(heft_model_find(model, heft_model_parameter(model, i)->name), i);
    }
    assert_true(peak < 16000000);
    assert_true(seconds < 2); /* 50 ms are meant; sanitizers and busy machines take longer */
    heft_model_free(model);
    heft_config_free(config);
    heft_ctx_free(own);
}

/* ---- memory ---------------------------------------------------------------------------------- */
static heft_status make_one(heft_ctx *with, void *user, heft_error *err)
{
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft_status status = heft__config_parse(with, "c", tiny, strlen(tiny), &config, err);
    (void)user;
    if (status == HEFT_OK) {
        status = heft_model_new(with, config, "BertForPreTraining", HEFT_DTYPE_NONE, &model, err);
    }
    heft_config_free(config);
    heft_model_free(model);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    test_oom_sweep(make_one, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(skeletons_are_golden),
        cmocka_unit_test(parameters_are_found_by_name_and_number),
        cmocka_unit_test(bound_parameters_are_handed_out_and_outlive_the_model),
        cmocka_unit_test(the_builder_has_limits),
        cmocka_unit_test(broken_configs_take_no_memory),
        cmocka_unit_test(an_empty_bert_base_costs_little),
        cmocka_unit_test(an_empty_mixture_of_experts_costs_under_16_mb),
        cmocka_unit_test(memory_can_run_out_anywhere),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
