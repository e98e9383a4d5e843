/* What is brought in and dropped together: layers, experts one by one, modules outside layers, tied tensors. */
#include "support_residency.h"

#include <heft/session.h>

#include <stdlib.h>

static heft_ctx *ctx;
static char folder[256];

static const char *at(const char *name)
{
    return test_path(folder, name);
}

/* A module's number by its path. */
static size_t module_of(const heft_model *model, const char *path)
{
    const size_t found = heft_model_find_module(model, 0, path);
    if (found != SIZE_MAX) {
        return found;
    }
    fail_msg("there is no module %s", path);
    return SIZE_MAX;
}

static bool has_parameter(const heft_residency *r, size_t unit, const heft_model *model,
                          const char *name)
{
    const heft_unit *shown = heft_residency_unit(r, unit);
    const size_t number = heft_model_find(model, name);
    bool found = false;
    for (size_t k = 0; k < shown->parameter_count; k++) {
        found = found || shown->parameters[k] == number;
    }
    assert_int_equal(found, heft_residency_find_parameter(r, number) == unit);
    return found;
}

/* Save a model, and load it with everything on the disk. */
static heft_model *placed(const char *config, const char *class_name)
{
    test_folder_remove(at("model"));
    test_save_random(ctx, config, class_name, at("model"), NULL);
    return test_load_on_disk(ctx, at("model"), "", HEFT_DTYPE_NONE);
}

static const char mixtral[] =
    "{\"model_type\":\"mixtral\",\"hidden_size\":64,\"num_hidden_layers\":3,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"intermediate_size\":96,"
    "\"num_local_experts\":6,\"vocab_size\":128,\"max_position_embeddings\":64,"
    "\"dtype\":\"float32\"}";

/* ---- experts --------------------------------------------------------------------------------- */
static void experts_are_units_of_their_own(void **state)
{
    (void)state;
    heft_model *model = placed(mixtral, "MixtralForCausalLM");
    heft_residency *r = test_residency(model, NULL);
    char name[128];
    /* embed_tokens, norm, rotary_emb, lm_head; 3 layers; their experts */
    assert_int_equal(heft_residency_count(r), 4 + 3 + 3 * 6);
    for (unsigned l = 0; l < 3; l++) {
        snprintf(name, sizeof name, "model.layers.%u", l);
        const size_t module = module_of(model, name), layer = heft_residency_find_module(r, module);
        size_t units[16];
        assert_string_equal(heft_residency_unit(r, layer)->name, name);
        assert_int_equal(heft_residency_find_units(r, module, units, 16), 7);
        assert_int_equal(heft_residency_find_units(r, module, units, 2), 7); /* no more room */
        snprintf(name, sizeof name, "model.layers.%u.self_attn.q_proj.weight", l);
        assert_true(has_parameter(r, layer, model, name));
        for (unsigned e = 0; e < 6; e++) {
            snprintf(name, sizeof name, "model.layers.%u.block_sparse_moe.experts.%u.w2.weight", l,
                     e);
            const size_t expert = test_unit(r, model, name);
            const heft_unit *unit = heft_residency_unit(r, expert);
            assert_true(expert != layer);
            assert_false(has_parameter(r, layer, model, name));
            assert_int_equal(unit->parameter_count, 3);
            assert_int_equal(unit->brought_bytes, 3 * 64 * 96 * 4);
            assert_int_equal(unit->module_count, 1);
            *strrchr(name, '.') = '\0'; /* of ".weight", and then of ".w2" */
            assert_int_equal(heft_residency_find_module(r, module_of(model, name)), expert);
            *strrchr(name, '.') = '\0';
            assert_string_equal(unit->name, name);
            assert_int_equal(heft_residency_find_module(r, module_of(model, name)), expert);
            assert_int_equal(heft_residency_find_units(r, unit->modules[0], units, 16), 1);
            assert_int_equal(units[0], expert);
        }
    }
    assert_int_equal(heft_residency_find_module(r, 0), SIZE_MAX);
    heft_residency_free(r);
    heft_model_free(model);
}

/* A token's experts are brought in together, and no others. */
static void experts_come_as_they_are_asked_for(void **state)
{
    (void)state;
    heft_model *model = placed(mixtral, "MixtralForCausalLM"),
               *whole = test_load_whole(ctx, at("model"), HEFT_DTYPE_NONE);
    heft_error err = {0};
    heft_residency *r = test_residency(model, NULL);
    size_t layers[3], experts[3][6];
    char name[128];
    for (unsigned l = 0; l < 3; l++) {
        snprintf(name, sizeof name, "model.layers.%u", l);
        layers[l] = heft_residency_find_module(r, module_of(model, name));
        for (unsigned e = 0; e < 6; e++) {
            snprintf(name, sizeof name, "model.layers.%u.block_sparse_moe.experts.%u.w1.weight", l,
                     e);
            experts[l][e] = test_unit(r, model, name);
        }
    }
    const uint64_t expert = heft_residency_unit(r, experts[0][0])->brought_bytes;
    const uint64_t layer = heft_residency_unit(r, layers[0])->brought_bytes;
    heft_residency_free(r);
    const heft_residency_options options =
        HEFT_OPTIONS(heft_residency_options, .budget_bytes = 3 * layer + 4 * expert,
                     .schedule = layers, .schedule_count = 3);
    r = test_residency(model, &options);
    for (unsigned token = 0; token < 8; token++) {
        for (unsigned l = 0; l < 3; l++) {
            const size_t wanted[] = {layers[l], experts[l][token % 6], experts[l][(token + 2) % 6]};
            heft_lease *lease = NULL;
            test_expect_status(heft_residency_acquire(r, wanted, 3, &lease, &err), HEFT_OK, &err,
                               "experts");
            for (unsigned k = 0; k < 3; k++) {
                test_compare_unit(r, lease, wanted[k], whole);
            }
            heft_lease_free(lease);
            heft__residency_settle(r);
        }
    }
    assert_int_equal(test_counts(r).brought_units, 3 + 8 * 3 * 2); /* layers stay, experts go */
    assert_true(test_counts(r).peak_bytes <= 3 * layer + 4 * expert);
    heft_residency_free(r);
    heft_model_free(model);
    heft_model_free(whole);
}

/* ---- experts that one parameter stacks --------------------------------------------------------- */
#define STACKED_LAYERS 3
#define STACKED_EXPERTS 16
static const char gpt_oss[] =
    "{\"model_type\":\"gpt_oss\",\"hidden_size\":64,\"num_hidden_layers\":3,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":16,\"intermediate_size\":96,"
    "\"num_local_experts\":16,\"num_experts_per_tok\":2,\"vocab_size\":128,"
    "\"max_position_embeddings\":64,\"initializer_range\":0.2,\"dtype\":\"float32\"}";

static const char *const stacks[] = {"gate_up_proj", "gate_up_proj_bias", "down_proj",
                                     "down_proj_bias"};

static heft_residency *by_expert(const heft_model *model)
{
    heft_residency *r = NULL;
    heft_error err = {0};
    test_expect_status(heft__residency_make(model, NULL, true, &r, &err), HEFT_OK, &err,
                       "residency");
    return r;
}

static void compare_expert(const heft_residency *r, const heft_lease *lease,
                           const heft_model *model, const heft_model *whole, unsigned layer,
                           unsigned expert)
{
    char name[128];
    heft_error err = {0};
    for (size_t i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "model.layers.%u.mlp.experts.%s", layer, stacks[i]);
        const size_t parameter = heft_model_find(model, name);
        const heft_tensor *slice = heft_lease_view(lease, heft__slice_of(r, parameter, expert));
        heft_tensor *all = NULL;
        test_expect_status(heft_model_tensor(whole, parameter, &all, &err), HEFT_OK, &err, name);
        assert_non_null(slice);
        assert_null(heft_lease_view(lease, heft__slice_of(r, parameter, expert ? 0 : 1)));
        assert_int_equal(slice->rank, all->rank - 1);
        assert_int_equal(slice->size_bytes * STACKED_EXPERTS, all->size_bytes);
        assert_memory_equal(slice->data, (uint8_t *)all->data + expert * slice->size_bytes,
                            slice->size_bytes);
        heft_tensor_free(all);
    }
}

/* Each is a unit: its part of all four parameters, and nothing of the others. */
static void stacked_experts_are_units_of_their_own(void **state)
{
    (void)state;
    heft_model *model = placed(gpt_oss, "GptOssForCausalLM"),
               *whole = test_load_whole(ctx, at("model"), HEFT_DTYPE_NONE);
    heft_residency *r = by_expert(model);
    char name[128];
    /* embed_tokens, norm, rotary_emb, lm_head; 3 layers; their experts */
    assert_int_equal(heft_residency_count(r), 4 + STACKED_LAYERS * (1 + STACKED_EXPERTS));
    uint64_t bytes = 0;
    for (unsigned warm = 0; warm < 2; warm++) {
        char path[300];
        snprintf(path, sizeof path, "%s/model.safetensors", at("model"));
        test_file_cache(path, warm);
        for (unsigned l = 0; l < STACKED_LAYERS; l++) {
            snprintf(name, sizeof name, "model.layers.%u.mlp.experts", l);
            const size_t module = module_of(model, name);
            assert_int_equal(heft__unit_of_stacked(r, module, STACKED_EXPERTS), SIZE_MAX);
            for (unsigned e = 0; e < STACKED_EXPERTS; e++) {
                const size_t unit = heft__unit_of_stacked(r, module, e);
                heft_lease *lease = test_acquire(r, unit);
                compare_expert(r, lease, model, whole, l, e);
                heft_lease_free(lease);
                bytes = heft_residency_unit(r, unit)->brought_bytes;
                assert_int_equal(bytes, 4 * (64 * 192 + 192 + 96 * 64 + 64));
            }
            snprintf(name, sizeof name, "model.layers.%u.mlp.experts[%u]", l, 5);
            assert_string_equal(heft_residency_unit(r, heft__unit_of_stacked(r, module, 5))->name,
                                name);
        }
    }
    heft_residency_free(r);
    r = test_residency(model, NULL); /* a caller's: the parameters as a whole */
    assert_int_equal(heft_residency_count(r), 4 + STACKED_LAYERS);
    heft_residency_free(r);
    heft_model_free(model);
    heft_model_free(whole);
}

/* Ids that a session chooses after one, and what it reads for them. */
static uint64_t generate(const heft_model *model, uint64_t memory, int32_t ids[8])
{
    static const char *const wanted[] = {"logits"};
    const heft_session_options options =
        HEFT_OPTIONS(heft_session_options, .memory_bytes = memory, .pass_tokens = 1);
    heft_session_counts counts = HEFT_SIZED(heft_session_counts);
    heft_session *session = NULL;
    heft_sequence *sequence = NULL;
    heft_error err = {0};
    int32_t id = 7;
    test_expect_status(heft_session_new(model, &options, &session, &err), HEFT_OK, &err, "session");
    test_expect_status(heft_sequence_new(session, 8, 0, &sequence, &err), HEFT_OK, &err,
                       "sequence");
    for (size_t t = 0; t < 8; t++) {
        const heft_input input =
            HEFT_OPTIONS(heft_input, .sequence = sequence, .ids = &id, .count = 1);
        heft_output logits = HEFT_SIZED(heft_output);
        test_expect_status(heft_session_run(session, &input, 1, wanted, 1, &err), HEFT_OK, &err,
                           "run");
        test_expect_status(heft_session_output(session, "logits", &logits, &err), HEFT_OK, &err,
                           "logits");
        test_expect_status(heft_session_sample(session, NULL, logits.data, logits.width, NULL, 0, 0,
                                               &ids[t], &err),
                           HEFT_OK, &err, "sample");
        id = ids[t];
    }
    test_expect_status(heft_session_facts(session, &counts, &err), HEFT_OK, &err, "facts");
    assert_true(memory == 0 || counts.peak_bytes <= memory);
    heft_sequence_free(sequence);
    heft_session_free(session);
    return counts.read_bytes;
}

/* A session brings in those that tokens go to and no others, and its budget need not hold all of a layer's. */
static void stacked_experts_come_as_they_are_chosen(void **state)
{
    (void)state;
    heft_model *model = placed(gpt_oss, "GptOssForCausalLM"),
               *whole = test_load_whole(ctx, at("model"), HEFT_DTYPE_NONE);
    heft_residency *r = by_expert(model);
    const uint64_t expert = heft_residency_unit(
                                r, heft__unit_of_stacked(
                                       r, module_of(model, "model.layers.0.mlp.experts"), 0))
                                ->brought_bytes,
                   layer = heft_residency_unit(
                               r, heft_residency_find_module(r, module_of(model, "model.layers.0")))
                               ->brought_bytes,
                   head = 4 * 128 * 64 + 4 * 64; /* with norm */
    int32_t expected[8], ids[8];
    heft_residency_free(r);
    assert_int_equal(generate(whole, 0, expected), 0);
    /* everything stays: at most two more of each layer for each of the tokens */
    const uint64_t all = generate(model, 0, ids);
    assert_memory_equal(ids, expected, sizeof ids);
    assert_in_range(all, STACKED_LAYERS * (layer + 2 * expert) + head,
                    STACKED_LAYERS * (layer + 12 * expert) + head);
    /* a layer, three experts, caches and intermediate results fit, but not the experts of a layer */
    const uint64_t some = generate(model, layer + 3 * expert + 700000, ids);
    assert_memory_equal(ids, expected, sizeof ids);
    assert_in_range(some, all, 8 * (STACKED_LAYERS * (layer + 2 * expert) + head));
    heft_model_free(model);
    heft_model_free(whole);
}

/* ---- budgets --------------------------------------------------------------------------------- */
/* The largest unit, and the largest two neighbors in the model's order, the first behind the last. */
static uint64_t largest_units(const heft_residency *r, uint64_t *pair)
{
    uint64_t largest = 0, first = 0, before = 0;
    *pair = 0;
    for (size_t u = 0; u < heft_residency_count(r); u++) {
        const uint64_t bytes = heft_residency_unit(r, u)->brought_bytes;
        if (bytes > 0) {
            first = first ? first : bytes;
            largest = bytes > largest ? bytes : largest;
            *pair = before + bytes > *pair ? before + bytes : *pair;
            before = bytes;
        }
    }
    *pair = before + first > *pair ? before + first : *pair;
    return largest;
}

static heft_status take_all(heft_residency *r, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t u = 0; u < heft_residency_count(r) && status == HEFT_OK; u++) {
        heft_lease *lease = NULL;
        status = heft_residency_acquire(r, &u, 1, &lease, err);
        heft_lease_free(lease);
    }
    return status;
}

/* What a plan says that streaming takes is what a residency needs: with a byte less than for one unit it
 * is refused. */
static void plans_count_units(void **state)
{
    (void)state;
    heft_model *model = placed(mixtral, "MixtralForCausalLM");
    heft_residency *r = test_residency(model, NULL);
    const heft_device_entry entry = {"", HEFT_DEVICE_DISK};
    const heft_plan_options options =
        HEFT_OPTIONS(heft_plan_options, .device_map = &entry, .device_map_count = 1);
    heft_plan *plan = NULL;
    heft_error err = {0};
    double one = 0, two = 0;
    uint64_t pair;
    const uint64_t largest = largest_units(r, &pair);
    heft_residency_free(r);
    test_expect_status(heft_plan_new(model, &options, &plan, &err), HEFT_OK, &err, "plan");
    (void)heft_plan_stream(plan, &one, &two);
    assert_true(one == (double)largest && two == (double)pair);
    heft_plan_free(plan);
    for (unsigned less = 0; less < 2; less++) {
        const heft_residency_options with =
            HEFT_OPTIONS(heft_residency_options, .budget_bytes = largest - less);
        heft_residency *tight = NULL;
        test_expect_status(heft_residency_new(model, &with, &tight, &err),
                           less ? HEFT_LIMIT : HEFT_OK, &err, "tight");
        if (!less) {
            test_expect_status(take_all(tight, &err), HEFT_OK, &err, "pass");
        }
        heft_residency_free(tight);
    }
    heft_model_free(model);
}

/* best leaves room for units, wherever the budget has it; so also where it is less than a layer. */
static void best_leaves_room_for_units(void **state)
{
    (void)state;
    heft_model *model = placed(mixtral, "MixtralForCausalLM");
    heft_residency *r = test_residency(model, NULL);
    uint64_t pair;
    const uint64_t largest = largest_units(r, &pair);
    const uint64_t layer = heft_model_module(model, module_of(model, "model.layers.0"))->bytes;
    const uint64_t all = heft_model_bytes(model);
    heft_residency_free(r);
    assert_true(pair < layer);
    for (uint64_t bytes = largest; bytes < all; bytes += all / 50) {
        const heft_budget budget = {HEFT_DEVICE_CPU, (double)bytes};
        const heft_plan_options options =
            HEFT_OPTIONS(heft_plan_options, .strategy = HEFT_STRATEGY_BEST, .budgets = &budget,
                         .budget_count = 1);
        heft_plan *plan = NULL;
        heft_error err = {0};
        double one = 0, two = 0;
        test_expect_status(heft_plan_new(model, &options, &plan, &err), HEFT_OK, &err, "plan");
        const double stream = heft_plan_stream(plan, &one, &two);
        if (stream < (bytes < pair ? one : two)) {
            fail_msg("%llu bytes: %.0f are left, units have %.0f and %.0f",
                     (unsigned long long)bytes, stream, one, two);
        }
        heft_plan_free(plan);
    }
    heft_model_free(model);
}

/* ---- ties ------------------------------------------------------------------------------------ */
static void tied_tensors_are_one_unit(void **state)
{
    (void)state;
    static const struct {
        const char *config, *class_name;
        const char *names[4];   /* of the tied tensor */
        const char *modules[4]; /* that hold it */
        const char
            *beside; /* a tensor that was in the same block or module, and is not in the unit */
    } rows[] = {
        {"{\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":2,"
         "\"num_attention_heads\":4,\"intermediate_size\":96,\"vocab_size\":128,"
         "\"tie_word_embeddings\":true,\"dtype\":\"float32\"}",       "LlamaForCausalLM",
         {"model.embed_tokens.weight", "lm_head.weight"},
         {"model.embed_tokens", "lm_head"},
         "model.norm.weight"                         },
        {"{\"model_type\":\"t5\",\"d_model\":64,\"d_kv\":16,\"d_ff\":96,\"num_layers\":2,"
         "\"num_heads\":4,\"vocab_size\":128,\"dtype\":\"float32\"}", "T5ForConditionalGeneration",
         {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight",
          "lm_head.weight"},
         {"shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"},
         "encoder.final_layer_norm.weight"           },
        {"{\"model_type\":\"bert\",\"hidden_size\":64,\"num_hidden_layers\":2,"
         "\"num_attention_heads\":4,\"intermediate_size\":96,\"vocab_size\":128,"
         "\"dtype\":\"float32\"}",                                    "BertForMaskedLM",
         {"bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"},
         {"bert.embeddings.word_embeddings", "cls.predictions.decoder"},
         "bert.embeddings.position_embeddings.weight"},
    };
    for (size_t row = 0; row < sizeof rows / sizeof rows[0]; row++) {
        heft_model *model = placed(rows[row].config, rows[row].class_name),
                   *whole = test_load_whole(ctx, at("model"), HEFT_DTYPE_NONE);
        heft_residency *r = test_residency(model, NULL);
        const size_t tied = test_unit(r, model, rows[row].names[0]);
        const heft_unit *unit = heft_residency_unit(r, tied);
        size_t names = 0, places = 0;
        for (; names < 4 && rows[row].names[names]; names++) {
            assert_true(has_parameter(r, tied, model, rows[row].names[names]));
            const size_t module = module_of(model, rows[row].modules[names]);
            assert_int_equal(heft_residency_find_module(r, module), tied);
            assert_int_equal(unit->modules[names], module);
        }
        assert_int_equal(unit->module_count, names);
        assert_int_equal(unit->parameter_count, names);
        assert_int_equal(unit->brought_bytes, 64 * 128 * 4); /* once */
        assert_false(has_parameter(r, tied, model, rows[row].beside));
        for (size_t i = 0; i < r->order_count; i++) {
            places += r->order[i] == tied;
        }
        assert_int_equal(places, names); /* in the standard order at each of its modules */
        heft_lease *lease = test_acquire(r, tied);
        const size_t a = heft_model_find(model, rows[row].names[0]),
                     b = heft_model_find(model, rows[row].names[1]);
        test_compare_unit(r, lease, tied, whole);
        assert_ptr_equal(heft_lease_view(lease, a)->data, heft_lease_view(lease, b)->data);
        heft_lease_free(lease);
        heft_residency_free(r);
        heft_model_free(model);
        heft_model_free(whole);
    }
}

/* A tied unit is read once in a pass if the budget lets it stay. */
static void a_tied_unit_comes_once(void **state)
{
    (void)state;
    static const char config[] =
        "{\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":4,"
        "\"num_attention_heads\":4,\"intermediate_size\":96,\"vocab_size\":128,"
        "\"tie_word_embeddings\":true,\"dtype\":\"float32\"}";
    heft_model *model = placed(config, "LlamaForCausalLM");
    heft_residency *r = test_residency(model, NULL);
    const size_t tied = test_unit(r, model, "lm_head.weight"), places = r->order_count;
    uint64_t all = 0;
    size_t brought = 0, *order = calloc(places, sizeof *order);
    for (size_t i = 0; i < heft_residency_count(r); i++) {
        all += heft_residency_unit(r, i)->brought_bytes;
        brought += heft_residency_unit(r, i)->brought_bytes > 0;
    }
    memcpy(order, r->order, places * sizeof *order);
    heft_residency_free(r);
    assert_int_equal(order[places - 1], tied);
    const heft_residency_options options =
        HEFT_OPTIONS(heft_residency_options, .budget_bytes = all);
    r = test_residency(model, &options);
    for (size_t i = 0; i < 3 * places; i++) {
        heft_lease_free(test_acquire(r, order[i % places]));
        heft__residency_settle(r);
    }
    assert_int_equal(test_counts(r).brought_units, brought);
    assert_int_equal(test_counts(r).peak_bytes, all);
    free(order);
    heft_residency_free(r);
    heft_model_free(model);
}

/* ---- what is outside of layers ----------------------------------------------------------------- */
static void modules_outside_layers_are_units(void **state)
{
    (void)state;
    heft_model *model =
        placed("{\"model_type\":\"bert\",\"hidden_size\":64,\"num_hidden_layers\":2,"
               "\"num_attention_heads\":4,\"intermediate_size\":96,"
               "\"vocab_size\":128,\"dtype\":\"float32\"}",
               "BertForSequenceClassification");
    heft_residency *r = test_residency(model, NULL);
    static const struct {
        const char *name, *parameter;
    } rows[] = {
        {"bert.embeddings",      "bert.embeddings.word_embeddings.weight"      },
        {"bert.encoder.layer.0", "bert.encoder.layer.0.output.LayerNorm.bias"  },
        {"bert.encoder.layer.1", "bert.encoder.layer.1.attention.self.key.bias"},
        {"bert.pooler.dense",    "bert.pooler.dense.weight"                    },
        {"classifier",           "classifier.bias"                             },
    };
    assert_int_equal(heft_residency_count(r), 5);
    for (size_t i = 0; i < 5; i++) {
        const heft_unit *unit = heft_residency_unit(r, i);
        assert_string_equal(unit->name, rows[i].name);
        assert_int_equal(test_unit(r, model, rows[i].parameter), i);
        assert_int_equal(unit->modules[0], module_of(model, rows[i].name));
        assert_int_equal(heft_residency_find_module(r, unit->modules[0]), i);
    }
    assert_int_equal(heft_residency_find_module(r, module_of(model, "bert.encoder")), SIZE_MAX);
    heft_residency_free(r);
    heft_model_free(model);
}

static int set_up(void **state)
{
    (void)state;
    test_folder_make(folder);
    ctx = heft_ctx_new(NULL);
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
        cmocka_unit_test(experts_are_units_of_their_own),
        cmocka_unit_test(experts_come_as_they_are_asked_for),
        cmocka_unit_test(stacked_experts_are_units_of_their_own),
        cmocka_unit_test(stacked_experts_come_as_they_are_chosen),
        cmocka_unit_test(plans_count_units),
        cmocka_unit_test(best_leaves_room_for_units),
        cmocka_unit_test(tied_tensors_are_one_unit),
        cmocka_unit_test(a_tied_unit_comes_once),
        cmocka_unit_test(modules_outside_layers_are_units),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
