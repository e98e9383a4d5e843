/* Forward passes of golden models, all at once or in pieces, in memory or from the disk: results are the
 * reference's, and the same whatever the budget, the passes and the threads. */
#include "scratch.h"

#include <heft/session.h>

#include "kernel/kernel.h"
#include "run/run.h"

#include <math.h>
#include <stdlib.h>

/* ---- models and their inputs --------------------------------------------------------------------- */
static const char *model_path(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/models/%s", HEFT_TEST_DATA, name);
    return path;
}

/* `disk`: everything stays in its files. */
static heft_status load(heft_ctx *with, const char *name, bool disk, heft_model **model,
                        heft_error *err)
{
    heft_source *source = NULL;
    heft_model *skeleton = NULL;
    heft_plan *plan = NULL;
    heft_load_options options = HEFT_OPTIONS(heft_load_options, .mode = HEFT_LOAD_COPY);
    const heft_plan_options wanted =
        HEFT_OPTIONS(heft_plan_options, .device_map_json = "{\"\": \"disk\"}");
    heft_status status = heft_source_open(with, model_path(name), NULL, &source, err);
    if (status == HEFT_OK && disk) {
        status = heft_model_skeleton(source, &options, &skeleton, err);
        if (status == HEFT_OK) {
            status = heft_plan_new(skeleton, &wanted, &plan, err);
        }
        options.plan = plan;
    }
    if (status == HEFT_OK) {
        status = heft_model_load(source, &options, model, NULL, err);
    }
    heft_plan_free(plan);
    heft_model_free(skeleton);
    heft_source_close(source);
    return status;
}

struct golden { /* what the reference was given, and what came of it */
    heft_checkpoint *file;
    size_t rows, tokens, decoder_tokens;
    int32_t *ids, *mask, *types, *positions, *decoder_ids;
    uint8_t *seen;
};

/* A tensor in another dtype, owned; NULL if there is none. */
static void *read(heft_checkpoint *file, const char *name, heft_dtype dtype, size_t *elems,
                  size_t shape[3])
{
    const size_t i = heft_checkpoint_find(file, name);
    heft_error err = {0};
    if (i == SIZE_MAX) {
        return NULL;
    }
    const heft_tensor_info *info = heft_checkpoint_info(file, i);
    *elems = 1;
    for (uint32_t d = 0; d < info->rank; d++) {
        shape[d] = (size_t)info->shape[d];
        *elems *= shape[d];
    }
    const size_t bytes = *elems * heft_dtype_bits(dtype) / 8;
    void *data = malloc(bytes);
    const heft_read_request request = {.tensor = i, .dtype = dtype, .dst = data, .cap = bytes};
    assert_non_null(data);
    test_expect_status(heft_checkpoint_read_slice(file, &request, &err), HEFT_OK, &err, name);
    return data;
}

static struct golden open_golden(const char *name, const char *prefix)
{
    struct golden g = {0};
    heft_error err = {0};
    char path[600], tensor[100];
    size_t elems, shape[3];
    snprintf(path, sizeof path, "%s/expected.safetensors", model_path(name));
    test_expect_status(heft_checkpoint_open(ctx, path, NULL, &g.file, &err), HEFT_OK, &err, name);
    struct {
        const char *name;
        int32_t **out;
    } const inputs[] = {
        {"input_ids",      &g.ids      },
        {"attention_mask", &g.mask     },
        {"token_type_ids", &g.types    },
        {"position_ids",   &g.positions}
    };
    for (size_t i = 0; i < 4; i++) {
        snprintf(tensor, sizeof tensor, "%s%s", prefix, inputs[i].name);
        *inputs[i].out = read(g.file, tensor, HEFT_DTYPE_I32, &elems, shape);
        if (i == 0) {
            assert_non_null(g.ids);
            g.rows = shape[0];
            g.tokens = shape[1];
        }
    }
    g.decoder_ids = read(g.file, "decoder_input_ids", HEFT_DTYPE_I32, &elems, shape);
    g.decoder_tokens = g.decoder_ids ? shape[1] : 0;
    g.seen = malloc(g.rows * g.tokens);
    assert_non_null(g.seen);
    for (size_t i = 0; i < g.rows * g.tokens; i++) {
        g.seen[i] = !g.mask || g.mask[i];
    }
    return g;
}

static void close_golden(struct golden *g)
{
    heft_checkpoint_close(g->file);
    free(g->ids);
    free(g->mask);
    free(g->types);
    free(g->positions);
    free(g->decoder_ids);
    free(g->seen);
}

static heft_input *inputs_of(const struct golden *g, heft_logits logits)
{
    heft_input *inputs = calloc(g->rows, sizeof *inputs);
    assert_non_null(inputs);
    for (size_t i = 0; i < g->rows; i++) {
        const size_t at = i * g->tokens;
        inputs[i] = HEFT_OPTIONS(heft_input, .ids = g->ids + at, .count = g->tokens,
                                 .mask = g->seen + at, .types = g->types ? g->types + at : NULL,
                                 .positions = g->positions ? g->positions + at : NULL,
                                 .decoder_ids =
                                     g->decoder_ids ? g->decoder_ids + i * g->decoder_tokens : NULL,
                                 .decoder_count = g->decoder_tokens, .logits = logits);
    }
    return inputs;
}

/* Rows of a result against the golden tensor, padding left out: in a decoder it has no rows. */
static void compare(const struct golden *g, const heft_session *session, const char *output,
                    const char *tensor, bool half)
{
    heft_output found = HEFT_SIZED(heft_output);
    heft_error err = {0};
    size_t elems, shape[3] = {0}, row = 0;
    float *expected = read(g->file, tensor, HEFT_DTYPE_F32, &elems, shape);
    assert_non_null(expected);
    test_expect_status(heft_session_output(session, output, &found, &err), HEFT_OK, &err, output);
    const size_t rows = elems / found.width;
    const bool masks = rows == g->rows * g->tokens && !g->decoder_ids;
    for (size_t i = 0; i < rows; i++) {
        const bool seen = !masks || g->seen[i];
        if (!seen && found.rows < rows) {
            continue;
        }
        for (size_t k = 0; seen && k < found.width; k++) {
            const float want = expected[i * found.width + k],
                        have = found.data[row * found.width + k];
            const float most = half ? 0.3F + 0.05F * fabsf(want) : 1e-4F + 1e-3F * fabsf(want);
            if (!(fabsf(have - want) <= most)) {
                fail_msg("%s row %zu column %zu: %g, expected %g", tensor, i, k, (double)have,
                         (double)want);
            }
        }
        row++;
    }
    assert_int_equal(row, found.rows);
    free(expected);
}

/* ---- golden models --------------------------------------------------------------------------------- */
static const struct {
    const char *model, *prefix, *outputs[4], *tensors[4];
    bool half;
} cases[] = {
    {"llama_gqa",
     "",                                    {"logits", "last_hidden_state", "hidden_states.0", "hidden_states.1"},
     {"logits", "last_hidden_state", "embedding_output", "block0_output"},
     false                                                                                                                                               },
    {"llama_gqa",          "right_padded.", {"logits"},                                                            {"right_padded.logits"},         false},
    {"llama_gqa",          "left_padded.",  {"logits"},                                                            {"left_padded.logits"},          false},
    {"llama_bf16",         "",              {"logits"},                                                            {"logits"},                      true },
    {"llama_rope_yarn",    "",              {"logits"},                                                            {"logits"},                      false},
    {"llama_rope_dynamic", "",              {"logits"},                                                            {"logits"},                      false},
    {"gpt2",               "",              {"logits", "last_hidden_state"},                                       {"logits", "last_hidden_state"}, false},
    {"gpt2",               "left_padded.",  {"logits"},                                                            {"left_padded.logits"},          false},
    {"opt",                "right_padded.", {"logits"},                                                            {"right_padded.logits"},         false},
    {"gpt_neox",           "",              {"logits"},                                                            {"logits"},                      false},
    {"mixtral",            "",              {"logits", "last_hidden_state"},                                       {"logits", "last_hidden_state"}, false},
    {"bert_mlm",
     "",                                    {"logits", "last_hidden_state", "hidden_states.0"},
     {"logits", "last_hidden_state", "embedding_output"},
     false                                                                                                                                               },
    {"t5_gated",
     "",                                    {"logits", "encoder_last_hidden_state"},
     {"logits", "encoder.last_hidden_state"},
     false                                                                                                                                               },
    {"mistral_window",     "",              {"logits"},                                                            {"logits"},                      false},
    {"gemma3_text",        "",              {"logits"},                                                            {"logits"},                      false},
    {"phi3_longrope",      "",              {"logits"},                                                            {"logits"},                      false},
};

static void run_case(size_t c, bool disk, uint64_t memory, uint64_t pass_tokens)
{
    heft_model *model = NULL;
    heft_session *session = NULL;
    heft_error err = {0};
    const heft_session_options options =
        HEFT_OPTIONS(heft_session_options, .memory_bytes = memory, .pass_tokens = pass_tokens);
    struct golden g = open_golden(cases[c].model, cases[c].prefix);
    heft_input *inputs = inputs_of(&g, HEFT_LOGITS_ALL);
    size_t count = 0;
    while (count < 4 && cases[c].outputs[count]) {
        count++;
    }
    test_expect_status(load(ctx, cases[c].model, disk, &model, &err), HEFT_OK, &err, "load");
    test_expect_status(heft_session_new(model, &options, &session, &err), HEFT_OK, &err, "session");
    test_expect_status(heft_session_run(session, inputs, g.rows, cases[c].outputs, count, &err),
                       HEFT_OK, &err, cases[c].model);
    for (size_t i = 0; i < count; i++) {
        compare(&g, session, cases[c].outputs[i], cases[c].tensors[i], cases[c].half);
    }
    heft_session_free(session);
    heft_model_free(model);
    free(inputs);
    close_golden(&g);
}

static void golden_models_are_matched(void **state)
{
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        run_case(c, false, 0, 0);
    }
}

static void golden_models_are_matched_in_pieces_from_the_disk(void **state)
{
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        run_case(c, true, (uint64_t)4 << 20, 5);
    }
}

/* More padding on the left than a pass takes tokens. */
static void golden_models_are_matched_token_by_token(void **state)
{
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        run_case(c, false, 0, 1);
    }
}

/* ---- generation ----------------------------------------------------------------------------------- */
/* Greedy ids after each row, as one session makes them. `ids` is [rows][count]. */
static void generate(heft_session *session, const struct golden *g, size_t count, int32_t *ids)
{
    static const char *const wanted[] = {"logits"};
    heft_input *inputs = inputs_of(g, HEFT_LOGITS_LAST);
    heft_sequence **sequences = calloc(g->rows, sizeof *sequences);
    heft_generation_ids special = HEFT_SIZED(heft_generation_ids);
    heft_error err = {0};
    assert_non_null(sequences);
    test_expect_status(heft_session_ids(session, &special, &err), HEFT_OK, &err, "ids");
    const bool encodes = heft_session_has_encoder(session);
    for (size_t i = 0; i < g->rows; i++) {
        inputs[i].decoder_ids = encodes ? &special.decoder_start : NULL;
        inputs[i].decoder_count = encodes;
        test_expect_status(heft_sequence_new(session, (encodes ? 1 : g->tokens) + count,
                                             encodes ? g->tokens : 0, &sequences[i], &err),
                           HEFT_OK, &err, "sequence");
        inputs[i].sequence = sequences[i];
    }
    for (size_t t = 0; t < count; t++) {
        heft_output logits = HEFT_SIZED(heft_output);
        test_expect_status(heft_session_run(session, inputs, g->rows, wanted, 1, &err), HEFT_OK,
                           &err, "run");
        test_expect_status(heft_session_output(session, "logits", &logits, &err), HEFT_OK, &err,
                           "logits");
        assert_int_equal(logits.rows, g->rows);
        for (size_t i = 0; i < g->rows; i++) {
            int32_t *id = &ids[i * count + t];
            test_expect_status(heft_session_sample(session, NULL, logits.data + i * logits.width,
                                                   logits.width, NULL, 0, t, id, &err),
                               HEFT_OK, &err, "sample");
            inputs[i] = encodes && t % 2 ? HEFT_OPTIONS(heft_input, .sequence = sequences[i],
                                                        .decoder_ids = id, .decoder_count = 1)
                                         : HEFT_OPTIONS(heft_input, .sequence = sequences[i],
                                                        .ids = id, .count = 1);
        }
    }
    for (size_t i = 0; i < g->rows; i++) {
        heft_sequence_free(sequences[i]);
    }
    free(sequences);
    free(inputs);
}

static void greedy_ids_are_the_references(void **state)
{
    static const char *const models[] = {"llama_gqa", "gpt2",           "mixtral",    "t5_gated",
                                         "opt",       "mistral_window", "gemma3_text"};
    (void)state;
    for (size_t m = 0; m < 2 * sizeof models / sizeof *models; m++) {
        const char *name = models[m / 2];
        const bool disk = m % 2;
        heft_model *model = NULL;
        heft_session *session = NULL;
        heft_error err = {0};
        size_t elems, shape[3];
        struct golden g = open_golden(name, "");
        int32_t *expected = read(g.file, "greedy_ids", HEFT_DTYPE_I32, &elems, shape);
        int32_t *found = calloc(elems, sizeof *found);
        const heft_session_options options =
            HEFT_OPTIONS(heft_session_options, .memory_bytes = disk ? (uint64_t)4 << 20 : 0,
                         .pass_tokens = disk ? 3 : 0);
        assert_non_null(expected);
        assert_non_null(found);
        test_expect_status(load(ctx, name, disk, &model, &err), HEFT_OK, &err, name);
        test_expect_status(heft_session_new(model, &options, &session, &err), HEFT_OK, &err, name);
        free(g.decoder_ids);
        g.decoder_ids = NULL;
        generate(session, &g, shape[1], found);
        assert_memory_equal(found, expected, elems * sizeof *found);
        heft_session_free(session);
        heft_model_free(model);
        free(expected);
        free(found);
        close_golden(&g);
    }
}

/* ---- the same bits ---------------------------------------------------------------------------------- */
/* Logits of the last tokens, owned. */
static float *last_logits(heft_ctx *with, const char *name, bool disk, uint64_t memory,
                          uint64_t pass_tokens, size_t *bytes)
{
    static const char *const wanted[] = {"logits"};
    heft_model *model = NULL;
    heft_session *session = NULL;
    heft_error err = {0};
    heft_output logits = HEFT_SIZED(heft_output);
    const heft_session_options options =
        HEFT_OPTIONS(heft_session_options, .memory_bytes = memory, .pass_tokens = pass_tokens);
    struct golden g = open_golden(name, "");
    heft_input *inputs = inputs_of(&g, HEFT_LOGITS_LAST);
    test_expect_status(load(with, name, disk, &model, &err), HEFT_OK, &err, name);
    test_expect_status(heft_session_new(model, &options, &session, &err), HEFT_OK, &err, name);
    test_expect_status(heft_session_run(session, inputs, g.rows, wanted, 1, &err), HEFT_OK, &err,
                       name);
    test_expect_status(heft_session_output(session, "logits", &logits, &err), HEFT_OK, &err, name);
    *bytes = logits.rows * logits.width * sizeof(float);
    float *copy = malloc(*bytes);
    assert_non_null(copy);
    memcpy(copy, logits.data, *bytes);
    heft_session_free(session);
    heft_model_free(model);
    free(inputs);
    close_golden(&g);
    return copy;
}

static void budget_and_threads_do_not_change_a_bit(void **state)
{
    static const char *const models[] = {"llama_gqa", "llama_bf16", "mixtral", "bert_mlm"};
    const heft_ctx_options single = HEFT_OPTIONS(heft_ctx_options, .threads = 1);
    const heft_ctx_options five = HEFT_OPTIONS(heft_ctx_options, .threads = 5);
    heft_ctx *one = heft_ctx_new(&single), *many = heft_ctx_new(&five);
    (void)state;
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        size_t bytes, other_bytes;
        float *expected = last_logits(one, models[m], false, 0, 0, &bytes);
        float *found[] = {last_logits(many, models[m], false, 0, 0, &other_bytes),
                          last_logits(many, models[m], true, (uint64_t)4 << 20, 0, &other_bytes)};
        for (size_t i = 0; i < 2; i++) {
            assert_int_equal(bytes, other_bytes);
            assert_memory_equal(found[i], expected, bytes);
            free(found[i]);
        }
        free(expected);
    }
    heft_ctx_free(one);
    heft_ctx_free(many);
}

static void a_fork_goes_on_as_its_origin(void **state)
{
    static const char *const wanted[] = {"logits"};
    const int32_t prompt[] = {5, 17, 3, 99, 42, 8}, more[] = {11, 7};
    heft_model *model = NULL;
    heft_session *session = NULL;
    heft_sequence *sequence = NULL, *fork = NULL;
    heft_error err = {0};
    heft_output logits = HEFT_SIZED(heft_output);
    (void)state;
    test_expect_status(load(ctx, "llama_gqa", false, &model, &err), HEFT_OK, &err, "load");
    test_expect_status(heft_session_new(model, NULL, &session, &err), HEFT_OK, &err, "session");
    test_expect_status(heft_sequence_new(session, 20, 0, &sequence, &err), HEFT_OK, &err, "new");
    heft_input input = HEFT_OPTIONS(heft_input, .sequence = sequence, .ids = prompt, .count = 6);
    test_expect_status(heft_session_run(session, &input, 1, wanted, 1, &err), HEFT_OK, &err, "run");
    test_expect_status(heft_sequence_fork(sequence, &fork, &err), HEFT_OK, &err, "fork");
    heft_input both[] = {HEFT_OPTIONS(heft_input, .sequence = sequence, .ids = more, .count = 2),
                         HEFT_OPTIONS(heft_input, .sequence = fork, .ids = more, .count = 2)};
    test_expect_status(heft_session_run(session, both, 2, wanted, 1, &err), HEFT_OK, &err, "both");
    test_expect_status(heft_session_output(session, "logits", &logits, &err), HEFT_OK, &err, "out");
    assert_int_equal(logits.rows, 2);
    assert_memory_equal(logits.data, logits.data + logits.width, logits.width * sizeof(float));
    assert_int_equal(heft_sequence_length(sequence), 8);
    assert_int_equal(heft_sequence_length(fork), 8);
    heft_sequence_free(sequence);
    heft_sequence_free(fork);
    heft_session_free(session);
    heft_model_free(model);
}

/* ---- sampling ------------------------------------------------------------------------------------------ */
static void samples_follow_their_options(void **state)
{
    const float logits[] = {1, 4, 3.9F, -2, 0};
    const int32_t seen[] = {1, 1};
    heft_model *model = NULL;
    heft_session *session = NULL;
    heft_error err = {0};
    int32_t id = -1;
    (void)state;
    test_expect_status(load(ctx, "llama_gqa", false, &model, &err), HEFT_OK, &err, "load");
    test_expect_status(heft_session_new(model, NULL, &session, &err), HEFT_OK, &err, "session");
    const struct {
        heft_sampling options;
        size_t seen;
        int32_t allowed[3]; /* -1 ends */
    } rows[] = {
        {HEFT_OPTIONS(heft_sampling,   .temperature = 0), 0,          {1, -1}},
        {                          HEFT_OPTIONS(heft_sampling, .repetition_penalty = 1.5F),                 2,    {2, -1}       },
        { HEFT_OPTIONS(heft_sampling,                 .temperature = 1,                                 .top_k = 1),    0,        {1, -1}},
        { HEFT_OPTIONS(heft_sampling,                 .temperature = 1,                                 .top_k = 2), 0,        {1, 2, -1}},
        { HEFT_OPTIONS(heft_sampling,              .temperature = 1,                              .top_p = 0.4F),    0,        {1, -1}},
        { HEFT_OPTIONS(heft_sampling,              .temperature = 1,                              .min_p = 0.5F), 0,        {1, 2, -1}},
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        for (uint64_t index = 0; index < 40; index++) {
            test_expect_status(heft_session_sample(session, &rows[r].options, logits, 5, seen,
                                                   rows[r].seen, index, &id, &err),
                               HEFT_OK, &err, "sample");
            bool allowed = false;
            for (size_t i = 0; rows[r].allowed[i] >= 0; i++) {
                allowed = allowed || rows[r].allowed[i] == id;
            }
            assert_true(allowed);
        }
    }
    const heft_sampling negative = HEFT_OPTIONS(heft_sampling, .temperature = -1);
    test_expect_status(heft_session_sample(session, &negative, logits, 5, NULL, 0, 0, &id, &err),
                       HEFT_INVALID_ARG, &err, "negative");
    heft_session_free(session);
    heft_model_free(model);
}

/* ---- what is refused ------------------------------------------------------------------------------------ */
static void wrong_inputs_are_refused(void **state)
{
    static const char *const wanted[] = {"logits"}, *const unknown[] = {"pooler_output"};
    const int32_t good[] = {1, 2, 3}, large[] = {1, 2, 100000}, negative[] = {1, -2, 3};
    const float pixels[12] = {0};
    int32_t *many = calloc(5000, sizeof *many);
    heft_model *model = NULL;
    heft_session *session = NULL;
    heft_error err = {0};
    (void)state;
    assert_non_null(many);
    test_expect_status(load(ctx, "llama_gqa", false, &model, &err), HEFT_OK, &err, "load");
    test_expect_status(heft_session_new(model, NULL, &session, &err), HEFT_OK, &err, "session");
    const struct {
        heft_input input;
        const char *const *outputs;
        heft_status status;
    } rows[] = {
        {HEFT_OPTIONS(heft_input, .ids = large,    .count = 3),            wanted,              HEFT_INVALID_ARG                },
        {HEFT_OPTIONS(heft_input, .ids = negative, .count = 3),            wanted,              HEFT_INVALID_ARG                },
        {HEFT_OPTIONS(heft_input, .ids = good,     .count = 0),            wanted,              HEFT_INVALID_ARG                },
        {HEFT_OPTIONS(heft_input, .count = 3),     wanted,                 HEFT_INVALID_ARG   },
        {HEFT_OPTIONS(heft_input,            .ids = many,  .count = 5000),                 wanted,    HEFT_INVALID_ARG                                },
        {HEFT_OPTIONS(heft_input,            .ids = good,      .count = 3, .positions = negative),              wanted,
         HEFT_INVALID_ARG},
        {HEFT_OPTIONS(heft_input, .ids = good,     .count = 3,             .decoder_ids = good, .decoder_count = 3),
         wanted, HEFT_INVALID_ARG},
        {HEFT_OPTIONS(heft_input,       .features = pixels,                      .feature_shape = {3, 2, 2}),                      wanted,
         HEFT_INVALID_ARG             },
        {HEFT_OPTIONS(heft_input,        .ids = good,                       .count = 3),                       unknown,                        HEFT_NOT_FOUND},
        {HEFT_OPTIONS(heft_input,         .ids = good,                        .count = 3),                        wanted,
         HEFT_OK         }, /* nothing is broken */
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        char label[40];
        snprintf(label, sizeof label, "row %zu", r);
        test_expect_status(heft_session_run(session, &rows[r].input, 1, rows[r].outputs, 1, &err),
                           rows[r].status, &err, label);
    }
    free(many);
    heft_session_free(session);
    heft_model_free(model);
}

/* A router has no order of such numbers to choose experts by, nor may it choose one twice. */
static void numbers_that_are_not_finite_name_their_block(void **state)
{
    static const struct {
        const char *model, *tensor, *block;
        bool whole; /* all numbers of the tensor, else the first */
    } rows[] = {
        {"llama_gqa", "model.layers.1.mlp.up_proj.weight",      "model.layers.1", false},
        {"mixtral",   "model.layers.0.self_attn.v_proj.weight", "model.layers.0", true },
    };
    static const char *const wanted[] = {"logits"};
    const int32_t ids[] = {1, 2, 3};
    const heft_input input = HEFT_OPTIONS(heft_input, .ids = ids, .count = 3);
    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        heft_model *model = NULL;
        heft_session *session = NULL;
        heft_tensor *tensor = NULL;
        heft_error err = {0};
        test_expect_status(load(ctx, rows[r].model, false, &model, &err), HEFT_OK, &err, "load");
        const size_t i = heft_model_find(model, rows[r].tensor);
        test_expect_status(heft_model_tensor(model, i, &tensor, &err), HEFT_OK, &err, "tensor");
        assert_true(tensor->flags & HEFT_TENSOR_WRITABLE);
        const size_t count = rows[r].whole ? tensor->size_bytes / sizeof(float) : 1;
        for (size_t k = 0; k < count; k++) {
            ((float *)tensor->data)[k] = NAN;
        }
        heft_tensor_free(tensor);
        test_expect_status(heft_session_new(model, NULL, &session, &err), HEFT_OK, &err, "session");
        test_expect_status(heft_session_run(session, &input, 1, wanted, 1, &err), HEFT_FORMAT, &err,
                           rows[r].tensor);
        assert_non_null(strstr(err.message, rows[r].block));
        heft_session_free(session);
        heft_model_free(model);
    }
}

static void a_budget_that_is_too_small_is_refused(void **state)
{
    heft_model *model = NULL;
    heft_session *session = NULL;
    heft_error err = {0};
    const heft_session_options options = HEFT_OPTIONS(heft_session_options, .memory_bytes = 20000);
    (void)state;
    test_expect_status(load(ctx, "llama_gqa", true, &model, &err), HEFT_OK, &err, "load");
    test_expect_status(heft_session_new(model, &options, &session, &err), HEFT_LIMIT, &err,
                       "session");
    assert_null(session);
    heft_model_free(model);
}

/* Logits of the last of `count` tokens within a budget, in a sequence with room for 40. */
static heft_status run_within(const heft_model *model, uint64_t budget, size_t count, float *logits,
                              uint64_t *passes)
{
    static const char *const wanted[] = {"logits"};
    const heft_session_options options = HEFT_OPTIONS(heft_session_options, .memory_bytes = budget);
    heft_session *session = NULL;
    heft_sequence *sequence = NULL;
    heft_output output = HEFT_SIZED(heft_output);
    heft_session_counts facts = HEFT_SIZED(heft_session_counts);
    int32_t ids[40];
    for (size_t i = 0; i < 40; i++) {
        ids[i] = (int32_t)(3 + i * 7 % 90);
    }
    heft_status status = heft_session_new(model, &options, &session, NULL);
    if (status == HEFT_OK) {
        status = heft_sequence_new(session, 40, 0, &sequence, NULL);
    }
    if (status == HEFT_OK) {
        const heft_input input =
            HEFT_OPTIONS(heft_input, .sequence = sequence, .ids = ids, .count = count);
        status = heft_session_run(session, &input, 1, wanted, 1, NULL);
    }
    if (status == HEFT_OK) {
        assert_int_equal(heft_session_output(session, "logits", &output, NULL), HEFT_OK);
        assert_int_equal(heft_session_facts(session, &facts, NULL), HEFT_OK);
        assert_true(facts.peak_bytes <= budget);
        memcpy(logits, output.data, (output.width < 64 ? output.width : 64) * sizeof *logits);
        *passes = facts.passes;
    }
    heft_sequence_free(sequence);
    heft_session_free(session);
    return status;
}

static void passes_are_cut_to_the_budget(void **state)
{
    float expected[64] = {0}, found[64] = {0};
    uint64_t passes, least = 0, enough = (uint64_t)4 << 20;
    heft_model *model = NULL;
    heft_error err = {0};
    (void)state;
    test_expect_status(load(ctx, "llama_gqa", true, &model, &err), HEFT_OK, &err, "load");
    assert_int_equal(run_within(model, enough, 40, expected, &passes), HEFT_OK);
    assert_int_equal(passes, 1);
    while (enough - least > 64) { /* the least budget for one token */
        const uint64_t middle = least + (enough - least) / 2;
        const heft_status status = run_within(model, middle, 1, found, &passes);
        assert_true(status == HEFT_OK || status == HEFT_LIMIT);
        *(status == HEFT_OK ? &enough : &least) = middle;
    }
    assert_int_equal(run_within(model, enough + 1024, 40, found, &passes), HEFT_OK);
    assert_true(passes > 1);
    for (size_t i = 0; i < 64; i++) {
        assert_true(fabsf(found[i] - expected[i]) < 1e-4F);
    }
    heft_model_free(model);
}

/* Whether a session of this budget runs four tokens; if not, it says so before it has read anything. */
static bool runs_within(const heft_model *model, uint64_t budget)
{
    static const char *const wanted[] = {"logits"};
    const int32_t ids[] = {1, 2, 3, 4};
    const heft_session_options options = HEFT_OPTIONS(heft_session_options, .memory_bytes = budget);
    const heft_input input = HEFT_OPTIONS(heft_input, .ids = ids, .count = 4);
    heft_session_counts facts = HEFT_SIZED(heft_session_counts);
    heft_session *session = NULL;
    heft_error err = {0};
    if (heft_session_new(model, &options, &session, NULL) != HEFT_OK) {
        return false;
    }
    const heft_status status = heft_session_run(session, &input, 1, wanted, 1, &err);
    assert_int_equal(heft_session_facts(session, &facts, NULL), HEFT_OK);
    heft_session_free(session);
    if (status != HEFT_OK) {
        test_expect_status(status, HEFT_LIMIT, &err, "run");
        assert_string_equal(err.item, "memory_bytes");
        assert_int_equal(facts.read_bytes, 0);
    }
    assert_true(status != HEFT_OK || facts.peak_bytes <= budget);
    return status == HEFT_OK;
}

static void a_pass_that_does_not_fit_is_refused_before_it_reads(void **state)
{
    static const char *const names[] = {"llama_gqa", "gpt2", "mixtral", "opt"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        heft_model *model = NULL;
        heft_error err = {0};
        size_t runs = 0, refused = 0;
        test_expect_status(load(ctx, names[i], true, &model, &err), HEFT_OK, &err, names[i]);
        for (uint64_t budget = 100000; budget < 1200000; budget += 4000) {
            const bool ran = runs_within(model, budget);
            runs += ran;
            refused += !ran;
            assert_true(runs == 0 || ran); /* with more, too */
        }
        assert_true(runs > 0 && refused > 0);
        heft_model_free(model);
    }
}

/* ---- compact weights ------------------------------------------------------------------------------- */
/* All that a model makes of its golden inputs, owned: hidden states, logits, and those of a token more. */
static float *all_results(heft_session *session, const struct golden *g, size_t *count)
{
    static const char *const wanted[] = {"logits", "last_hidden_state", "hidden_states.1"};
    heft_input *inputs = inputs_of(g, HEFT_LOGITS_ALL);
    heft_sequence **sequences = calloc(g->rows, sizeof *sequences);
    heft_error err = {0};
    float *all = NULL;
    *count = 0;
    for (size_t i = 0; i < g->rows; i++) {
        test_expect_status(heft_sequence_new(session, g->tokens + 1, 0, &sequences[i], &err),
                           HEFT_OK, &err, "sequence");
        inputs[i].sequence = sequences[i];
    }
    for (size_t pass = 0; pass < 2; pass++) {
        test_expect_status(heft_session_run(session, inputs, g->rows, wanted, 3, &err), HEFT_OK,
                           &err, "run");
        for (size_t i = 0; i < 3; i++) {
            heft_output out = HEFT_SIZED(heft_output);
            test_expect_status(heft_session_output(session, wanted[i], &out, &err), HEFT_OK, &err,
                               wanted[i]);
            const size_t some = out.rows * out.width;
            all = realloc(all, (*count + some) * sizeof *all);
            assert_non_null(all);
            memcpy(all + *count, out.data, some * sizeof *all);
            *count += some;
        }
        for (size_t i = 0; i < g->rows; i++) {
            inputs[i] =
                HEFT_OPTIONS(heft_input, .sequence = sequences[i], .ids = g->ids, .count = 1);
        }
    }
    for (size_t i = 0; i < g->rows; i++) {
        heft_sequence_free(sequences[i]);
    }
    free(sequences);
    free(inputs);
    return all;
}

static void check_results(heft_session *session, const struct golden *g, const float *expected,
                          size_t count)
{
    size_t found_count;
    float *found = all_results(session, g, &found_count);
    assert_int_equal(found_count, count);
    assert_memory_equal(found, expected, count * sizeof *found);
    free(found);
}

static uint64_t compact_bytes(const heft_session *session)
{
    heft_session_counts counts = HEFT_SIZED(heft_session_counts);
    heft_error err = {0};
    test_expect_status(heft_session_facts(session, &counts, &err), HEFT_OK, &err, "facts");
    return counts.compact_bytes;
}

static heft_model *load_bf16(heft_ctx *with, const char *name)
{
    heft_source *source = NULL;
    heft_model *model = NULL;
    heft_error err = {0};
    const heft_load_options options =
        HEFT_OPTIONS(heft_load_options, .mode = HEFT_LOAD_COPY, .dtype = HEFT_DTYPE_BF16);
    test_expect_status(heft_source_open(with, model_path(name), NULL, &source, &err), HEFT_OK, &err,
                       name);
    test_expect_status(heft_model_load(source, &options, &model, NULL, &err), HEFT_OK, &err, name);
    heft_source_close(source);
    return model;
}

static heft_session *open_session(const heft_model *model, bool exact, uint64_t pass_tokens)
{
    const heft_session_options options =
        HEFT_OPTIONS(heft_session_options, .exact = exact, .pass_tokens = pass_tokens);
    heft_session *session = NULL;
    heft_error err = {0};
    test_expect_status(heft_session_new(model, &options, &session, &err), HEFT_OK, &err, "session");
    return session;
}

/* Whether a CPU is one for which compact weights are worth it. */
static bool can_compact(void)
{
    return heft__kernels_best()->compacts;
}

static void compact_weights_change_no_bit(void **state)
{
    static const char *const models[] = {"llama_bf16", "llama_gqa", "llama_rope_yarn", "gpt_neox"};
    (void)state;
    for (size_t m = 0; m < 6 * sizeof models / sizeof *models; m++) {
        const bool exact = m / 4 % 2;
        const uint64_t pass_tokens = (const uint64_t[]){0, 1, 7}[m / 8];
        struct golden g = open_golden(models[m % 4], "");
        heft_model *model = load_bf16(ctx, models[m % 4]);
        heft_error err = {0};
        size_t count;
        heft_session *session = open_session(model, exact, pass_tokens);
        float *expected = all_results(session, &g, &count);
        assert_int_equal(compact_bytes(session), 0);
        test_expect_status(heft_session_compact(session, model, &err), HEFT_OK, &err,
                           models[m % 4]);
        assert_int_equal(compact_bytes(session) > 20000, can_compact());
        check_results(session, &g, expected, count);
        heft_session_free(session);
        session = open_session(model, exact, pass_tokens); /* one that is made afterwards */
        check_results(session, &g, expected, count);
        free(expected);
        heft_session_free(session);
        heft_model_free(model);
        close_golden(&g);
    }
}

/* Nobody sees the bytes of a compact weight. */
static void compact_weights_are_for_sessions_only(void **state)
{
    heft_model *model = load_bf16(ctx, "llama_bf16");
    heft_session *session = open_session(model, false, 0);
    heft_residency *residency = NULL;
    heft_lease *lease = NULL;
    heft_tensor *tensor = NULL;
    heft_error err = {0};
    size_t refused = 0;
    (void)state;
    test_expect_status(heft_session_compact(session, model, &err), HEFT_OK, &err, "compact");
    test_expect_status(heft_residency_new(model, NULL, &residency, &err), HEFT_OK, &err, "units");
    for (size_t i = 0; i < heft_model_count(model); i++) {
        const heft_status status = heft_model_tensor(model, i, &tensor, &err);
        const size_t unit = heft_residency_find_parameter(residency, i);
        heft_tensor_free(tensor);
        tensor = NULL;
        assert_true(status == HEFT_OK || status == HEFT_UNSUPPORTED);
        refused += status == HEFT_UNSUPPORTED;
        if (unit != SIZE_MAX) {
            test_expect_status(heft_residency_acquire(residency, &unit, 1, &lease, &err), HEFT_OK,
                               &err, "acquire");
            assert_int_equal(heft_lease_view(lease, i) != NULL, status == HEFT_OK);
            assert_int_equal(heft_lease_tensor(lease, i, &tensor, &err), status);
            heft_tensor_free(tensor);
            tensor = NULL;
            heft_lease_free(lease);
        }
    }
    assert_int_equal(refused > 10, can_compact());
    heft_residency_free(residency);
    char path[600];
    snprintf(path, sizeof path, "%s/compact", folder);
    const heft_save_options dry = HEFT_OPTIONS(heft_save_options, .dry_run = true);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(heft_model_save(model, path, i ? NULL : &dry, NULL, &err),
                         can_compact() ? HEFT_UNSUPPORTED : HEFT_OK);
    }
    heft_session_free(session);
    heft_model_free(model);
}

/* What somebody else holds, and what is not the model's own memory, stays as it is. */
static void weights_of_others_stay_plain(void **state)
{
    heft_model *model = load_bf16(ctx, "llama_bf16"), *other = load_bf16(ctx, "llama_bf16");
    heft_session *session = open_session(model, false, 0), *second = open_session(model, false, 0);
    heft_tensor *tensor = NULL;
    heft_error err = {0};
    (void)state;
    test_expect_status(heft_session_compact(session, model, &err), HEFT_OK, &err, "two sessions");
    assert_int_equal(compact_bytes(session), 0);
    heft_session_free(second);
    const size_t held = heft_model_find(model, "model.layers.0.self_attn.q_proj.weight");
    test_expect_status(heft_model_tensor(model, held, &tensor, &err), HEFT_OK, &err, "tensor");
    void *bytes = malloc(tensor->size_bytes);
    assert_non_null(bytes);
    memcpy(bytes, tensor->data, tensor->size_bytes);
    test_expect_status(heft_session_compact(session, model, &err), HEFT_OK, &err, "a tensor");
    assert_memory_equal(bytes, tensor->data, tensor->size_bytes);
    heft_tensor_free(tensor);
    free(bytes);
    assert_int_equal(heft_session_compact(session, other, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_session_compact(NULL, model, &err), HEFT_INVALID_ARG);
    heft_session_free(session);
    heft_model_free(model);

    test_expect_status(heft_model_tensor(other, held, &tensor, &err), HEFT_OK, &err, "tensor");
    const size_t same = heft_model_find(other, "model.layers.1.self_attn.q_proj.weight");
    test_expect_status(heft_model_set(other, heft_model_parameter(other, same)->name, tensor, &err),
                       HEFT_OK, &err, "set");
    heft_tensor_free(tensor);
    session = open_session(other, false, 0);
    test_expect_status(heft_session_compact(session, other, &err), HEFT_OK, &err, "one tensor");
    for (size_t i = 0; i < 2; i++) { /* both names of its bytes */
        test_expect_status(heft_model_tensor(other, i ? same : held, &tensor, &err), HEFT_OK, &err,
                           "as it was");
        heft_tensor_free(tensor);
    }
    heft_session_free(session);
    heft_model_free(other);

    test_expect_status(load(ctx, "llama_bf16", true, &model, &err), HEFT_OK, &err, "on the disk");
    session = open_session(model, false, 0);
    test_expect_status(heft_session_compact(session, model, &err), HEFT_OK, &err, "on the disk");
    assert_int_equal(compact_bytes(session), 0);
    heft_session_free(session);
    heft_model_free(model);
}

/* Weights that are loaded once more are what the file has, in memory of their own. */
static void loading_again_replaces_compact_weights(void **state)
{
    struct golden g = open_golden("llama_bf16", "");
    heft_model *model = load_bf16(ctx, "llama_bf16");
    heft_session *session = open_session(model, false, 0);
    heft_tensor *tensor = NULL;
    heft_error err = {0};
    size_t count;
    float *expected = all_results(session, &g, &count);
    (void)state;
    test_expect_status(heft_session_compact(session, model, &err), HEFT_OK, &err, "compact");
    heft_session_free(session);
    test_expect_status(heft_model_load_sharded(model, model_path("llama_bf16"), NULL, NULL, &err),
                       HEFT_OK, &err, "again");
    for (size_t i = 0; i < heft_model_count(model); i++) {
        test_expect_status(heft_model_tensor(model, i, &tensor, &err), HEFT_OK, &err, "plain");
        heft_tensor_free(tensor);
    }
    session = open_session(model, false, 0);
    assert_int_equal(compact_bytes(session), 0);
    check_results(session, &g, expected, count);
    free(expected);
    heft_session_free(session);
    heft_model_free(model);
    close_golden(&g);
}

/* Allocation n fails: some weights are compact then, and results are the same. */
static void compacting_may_fail_anywhere(void **state)
{
    struct golden g = open_golden("llama_bf16", "");
    heft_model *plain = load_bf16(ctx, "llama_bf16");
    heft_session *session = open_session(plain, false, 0);
    size_t count;
    float *expected = all_results(session, &g, &count);
    (void)state;
    heft_session_free(session);
    heft_model_free(plain);
    for (long fail_at = 0, ended = 0; !ended; fail_at++) {
        test_heap heap = {.fail_at = -1};
        heft_ctx *with = test_ctx_new(&heap);
        heft_model *model = load_bf16(with, "llama_bf16");
        heft_error err = {0};
        session = open_session(model, false, 0);
        heap.fail_at = heap.count + fail_at;
        const heft_status status = heft_session_compact(session, model, &err);
        ended = status == HEFT_OK && heap.count <= heap.fail_at;
        assert_true(status == HEFT_OK || status == HEFT_NOMEM);
        heap.fail_at = -1;
        check_results(session, &g, expected, count);
        heft_session_free(session);
        heft_model_free(model);
        heft_ctx_free(with);
        assert_int_equal(heap.blocks, 0);
    }
    free(expected);
    close_golden(&g);
}

/* Allocation n fails: NOMEM, nothing leaked. */
static void every_allocation_may_fail(void **state)
{
    static const char *const wanted[] = {"logits"};
    const int32_t ids[] = {1, 2, 3};
    const heft_input input = HEFT_OPTIONS(heft_input, .ids = ids, .count = 3);
    (void)state;
    for (long fail_at = 0, ended = 0; !ended; fail_at++) {
        test_heap heap = {.fail_at = -1};
        heft_ctx *with = test_ctx_new(&heap);
        heft_model *model = NULL;
        heft_session *session = NULL;
        heft_error err = {0};
        test_expect_status(load(with, "llama_gqa", true, &model, &err), HEFT_OK, &err, "load");
        heap.fail_at = heap.count + fail_at;
        heft_status status = heft_session_new(model, NULL, &session, &err);
        if (status == HEFT_OK) {
            status = heft_session_run(session, &input, 1, wanted, 1, &err);
        }
        ended = status == HEFT_OK && heap.count <= heap.fail_at;
        assert_true(status == HEFT_OK || status == HEFT_NOMEM);
        heap.fail_at = -1;
        heft_session_free(session);
        heft_model_free(model);
        heft_ctx_free(with);
        assert_int_equal(heap.blocks, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_models_are_matched),
        cmocka_unit_test(golden_models_are_matched_in_pieces_from_the_disk),
        cmocka_unit_test(golden_models_are_matched_token_by_token),
        cmocka_unit_test(greedy_ids_are_the_references),
        cmocka_unit_test(budget_and_threads_do_not_change_a_bit),
        cmocka_unit_test(a_fork_goes_on_as_its_origin),
        cmocka_unit_test(samples_follow_their_options),
        cmocka_unit_test(wrong_inputs_are_refused),
        cmocka_unit_test(numbers_that_are_not_finite_name_their_block),
        cmocka_unit_test(a_budget_that_is_too_small_is_refused),
        cmocka_unit_test(passes_are_cut_to_the_budget),
        cmocka_unit_test(a_pass_that_does_not_fit_is_refused_before_it_reads),
        cmocka_unit_test(compact_weights_change_no_bit),
        cmocka_unit_test(compact_weights_are_for_sessions_only),
        cmocka_unit_test(weights_of_others_stay_plain),
        cmocka_unit_test(loading_again_replaces_compact_weights),
        cmocka_unit_test(compacting_may_fail_anywhere),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
