/* Sequences that share their cache: forks, windows, an encoder's rows, and what the budget counts. Results must be those of
 * sequences that were computed alone, bit for bit. */
#include "scratch.h"

#include "run/session_state.h"

#include <pthread.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define VOCABULARY 64

/* ---- models -------------------------------------------------------------------------------------- */
enum kind { FULL, HALF, WINDOW, LATENT, CROSS };
static const char *const texts[] = {
    [FULL] = "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "
             "\"hidden_size\": 32, \"intermediate_size\": 48, \"num_hidden_layers\": 2, "
             "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"vocab_size\": 64, "
             "\"max_position_embeddings\": 1024, \"initializer_range\": 0.5}",
    [HALF] = "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "
             "\"hidden_size\": 32, \"intermediate_size\": 48, \"num_hidden_layers\": 2, "
             "\"num_attention_heads\": 8, \"num_key_value_heads\": 1, \"vocab_size\": 64, "
             "\"max_position_embeddings\": 1024, \"initializer_range\": 0.5}",
    [WINDOW] = "{\"architectures\": [\"MistralForCausalLM\"], \"model_type\": \"mistral\", "
               "\"hidden_size\": 32, \"intermediate_size\": 48, \"num_hidden_layers\": 2, "
               "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"vocab_size\": 64, "
               "\"max_position_embeddings\": 1024, \"sliding_window\": 50, "
               "\"initializer_range\": 0.5}",
    [LATENT] = "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"model_type\": \"deepseek_v3\", "
               "\"hidden_size\": 32, \"intermediate_size\": 48, \"moe_intermediate_size\": 16, "
               "\"num_hidden_layers\": 2, \"first_k_dense_replace\": 1, \"n_routed_experts\": 4, "
               "\"n_shared_experts\": 1, \"num_experts_per_tok\": 2, \"n_group\": 2, "
               "\"topk_group\": 1, \"num_attention_heads\": 4, \"num_key_value_heads\": 4, "
               "\"q_lora_rank\": 16, \"kv_lora_rank\": 24, \"qk_nope_head_dim\": 8, "
               "\"qk_rope_head_dim\": 8, \"v_head_dim\": 8, \"vocab_size\": 64, "
               "\"max_position_embeddings\": 1024, \"initializer_range\": 0.5}",
    [CROSS] = "{\"architectures\": [\"T5ForConditionalGeneration\"], \"model_type\": \"t5\", "
              "\"d_model\": 32, \"d_kv\": 8, \"d_ff\": 48, \"num_layers\": 2, \"num_heads\": 4, "
              "\"vocab_size\": 64, \"decoder_start_token_id\": 0, \"initializer_factor\": 3.0}",
};

static heft_status new_model(heft_ctx *with, enum kind kind, heft_model **out, heft_error *err)
{
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft_status status = heft_config_new(with, texts[kind], strlen(texts[kind]), &config, err);
    if (status == HEFT_OK) {
        status = heft_model_new(with, config, NULL, kind == HALF ? HEFT_DTYPE_BF16 : HEFT_DTYPE_F32,
                                &model, err);
    }
    if (status == HEFT_OK) {
        status = heft_model_init(model, NULL, err);
    }
    heft_config_free(config);
    if (status == HEFT_OK) {
        *out = model;
    } else {
        heft_model_free(model);
    }
    return status;
}

struct setting {
    heft_model *model;
    heft_session *session;
};

static struct setting set_up_session(enum kind kind, uint64_t memory, uint64_t pass_tokens)
{
    struct setting made = {0};
    heft_error err = {0};
    const heft_session_options options =
        HEFT_OPTIONS(heft_session_options, .memory_bytes = memory, .pass_tokens = pass_tokens);
    test_expect_status(new_model(ctx, kind, &made.model, &err), HEFT_OK, &err, "model");
    test_expect_status(heft_session_new(made.model, &options, &made.session, &err), HEFT_OK, &err,
                       "session");
    return made;
}

static void tear_down_session(struct setting *made)
{
    heft_session_free(made->session);
    heft_model_free(made->model);
}

/* ---- what sequences do ----------------------------------------------------------------------------- */
static heft_sequence *new_sequence(heft_session *session, size_t capacity, size_t encoded)
{
    heft_sequence *made = NULL;
    heft_error err = {0};
    test_expect_status(heft_sequence_new(session, capacity, encoded, &made, &err), HEFT_OK, &err,
                       "sequence");
    return made;
}

static heft_sequence *fork_of(const heft_sequence *sequence)
{
    heft_sequence *made = NULL;
    heft_error err = {0};
    test_expect_status(heft_sequence_fork(sequence, &made, &err), HEFT_OK, &err, "fork");
    assert_int_equal(heft_sequence_length(made), heft_sequence_length(sequence));
    return made;
}

/* Some text; another one for each seed. */
static int32_t id_at(uint32_t seed, size_t i)
{
    const uint32_t mixed = (seed * 2654435761U + (uint32_t)i + 1) * 2246822519U;
    return (int32_t)(2 + (mixed >> 16) % (VOCABULARY - 2));
}

/* Add `count` tokens, those of a text from its place `first` on, to each of some sequences; copy the logits of the last
 * ones to `logits` (NULL: do not). */
static void run_ids(heft_session *session, heft_sequence *const *sequences, size_t sequence_count,
                    const int32_t *const *ids, size_t count, float *logits)
{
    static const char *const wanted[] = {"logits"};
    heft_input inputs[8];
    heft_output output = HEFT_SIZED(heft_output);
    heft_error err = {0};
    assert_true(sequence_count <= COUNT(inputs));
    for (size_t i = 0; i < sequence_count; i++) {
        inputs[i] =
            HEFT_OPTIONS(heft_input, .sequence = sequences[i], .ids = ids[i], .count = count);
    }
    test_expect_status(heft_session_run(session, inputs, sequence_count, wanted, 1, &err), HEFT_OK,
                       &err, "run");
    test_expect_status(heft_session_output(session, "logits", &output, &err), HEFT_OK, &err,
                       "logits");
    assert_int_equal(output.rows, sequence_count);
    assert_int_equal(output.width, VOCABULARY);
    if (logits) {
        memcpy(logits, output.data, output.rows * output.width * sizeof *logits);
    }
}

static void run_text(heft_session *session, heft_sequence *sequence, uint32_t seed, size_t first,
                     size_t count, float *logits)
{
    int32_t ids[512];
    const int32_t *const all = ids;
    assert_true(count <= COUNT(ids));
    for (size_t i = 0; i < count; i++) {
        ids[i] = id_at(seed, first + i);
    }
    run_ids(session, &sequence, 1, &all, count, logits);
}

/* The encoder's text, and the decoder's first token. */
static void encode(heft_session *session, heft_sequence *sequence, size_t count)
{
    static const char *const wanted[] = {"logits"};
    const int32_t start = 0;
    int32_t ids[256];
    heft_error err = {0};
    assert_true(count <= COUNT(ids));
    for (size_t i = 0; i < count; i++) {
        ids[i] = id_at(99, i);
    }
    const heft_input input =
        HEFT_OPTIONS(heft_input, .sequence = sequence, .ids = ids, .count = count,
                     .decoder_ids = &start, .decoder_count = 1);
    test_expect_status(heft_session_run(session, &input, 1, wanted, 1, &err), HEFT_OK, &err,
                       "encode");
}

static uint64_t reserved(const heft_session *session)
{
    heft_ledger_counts counts = HEFT_SIZED(heft_ledger_counts);
    heft_error err = {0};
    test_expect_status(heft_ledger_facts(session->ledger, &counts, &err), HEFT_OK, &err, "ledger");
    return counts.reserved_bytes - session->reserved;
}

/* Bytes of pages that a sequence has in memory, those that it shares included. */
static uint64_t page_bytes(const heft_sequence *sequence, size_t *pages)
{
    uint64_t bytes = 0;
    *pages = 0;
    for (size_t i = 0; i < sequence->kept->slot_count; i++) {
        const heft__kept *kept = &sequence->kept->kept[i];
        bytes += kept->page_count * kept->page_bytes;
        *pages += kept->page_count;
    }
    return bytes;
}

/* ---- beams ------------------------------------------------------------------------------------------- */
#define BEAMS 4
#define STEPS 50

struct beams {
    heft_sequence *sequences[BEAMS];
    int32_t histories[BEAMS][STEPS];
};

/* Beam i goes on as that of its parent did. */
static void choose_parents(struct beams *beams, size_t step)
{
    heft_sequence *next[BEAMS];
    int32_t histories[BEAMS][STEPS];
    for (size_t i = 0; i < BEAMS; i++) {
        const size_t parent = step % 7 == 0 ? i : (size_t)id_at(7, step * BEAMS + i) % BEAMS;
        next[i] = fork_of(beams->sequences[parent]);
        memcpy(histories[i], beams->histories[parent], sizeof histories[i]);
    }
    for (size_t i = 0; i < BEAMS; i++) {
        heft_sequence_free(beams->sequences[step % 2 ? i : BEAMS - 1 - i]);
    }
    memcpy(beams->sequences, next, sizeof next);
    memcpy(beams->histories, histories, sizeof histories);
}

static void step_beams(heft_session *session, struct beams *beams, size_t step, float *logits)
{
    const int32_t *ids[BEAMS];
    for (size_t i = 0; i < BEAMS; i++) {
        ids[i] = &beams->histories[i][step];
    }
    run_ids(session, beams->sequences, BEAMS, ids, 1, logits);
}

static void begin_text(heft_session *session, enum kind kind, heft_sequence *sequence,
                       size_t prompt)
{
    if (kind == CROSS) {
        encode(session, sequence, 90);
    }
    run_text(session, sequence, 1, 0, prompt, NULL);
}

/* Four beams after a prompt; what the budget counts is in `most`. */
static void check_beams(enum kind kind, size_t prompt, size_t capacity)
{
    struct setting made = set_up_session(kind, 0, 0);
    struct beams beams = {0}, alone = {0};
    float found[BEAMS * VOCABULARY], expected[BEAMS * VOCABULARY];
    const size_t encoded = kind == CROSS ? 90 : 0;
    beams.sequences[0] = new_sequence(made.session, capacity, encoded);
    const uint64_t one = reserved(made.session);
    begin_text(made.session, kind, beams.sequences[0], prompt);
    for (size_t i = 1; i < BEAMS; i++) {
        beams.sequences[i] = fork_of(beams.sequences[0]);
    }
    const uint64_t forked = reserved(made.session);
    for (size_t step = 0; step < STEPS; step++) {
        choose_parents(&beams, step);
        for (size_t i = 0; i < BEAMS; i++) {
            beams.histories[i][step] = id_at((uint32_t)(10 + i), step);
        }
        step_beams(made.session, &beams, step, found);
        assert_true(kind == WINDOW || reserved(made.session) <= forked);
    }
    for (size_t i = 0; i < BEAMS; i++) {
        alone.sequences[i] = new_sequence(made.session, capacity, encoded);
        memcpy(alone.histories[i], beams.histories[i], sizeof alone.histories[i]);
        begin_text(made.session, kind, alone.sequences[i], prompt);
    }
    for (size_t step = 0; step < STEPS; step++) {
        step_beams(made.session, &alone, step, expected);
    }
    assert_memory_equal(found, expected, sizeof found);
    for (size_t i = 0; i < BEAMS; i++) {
        heft_sequence_free(beams.sequences[i]);
        assert_true(reserved(made.session) >= BEAMS * one);
    }
    assert_int_equal(reserved(made.session), BEAMS * one);
    for (size_t i = 0; i < BEAMS; i++) {
        heft_sequence_free(alone.sequences[i]);
    }
    assert_int_equal(reserved(made.session), 0);
    tear_down_session(&made);
}

static void beams_are_as_sequences_alone(void **state)
{
    (void)state;
    for (int kind = FULL; kind <= CROSS; kind++) {
        check_beams((enum kind)kind, 40, 100);  /* the first page is shared while it is written */
        check_beams((enum kind)kind, 70, 150);  /* a whole page is shared */
        check_beams((enum kind)kind, 128, 179); /* the last page is full */
    }
}

/* One sequence of 4 pages, whose last page each beam has alone. */
static void beams_take_one_sequence_and_their_pages(void **state)
{
    struct setting made = set_up_session(FULL, 0, 0);
    struct beams beams = {0};
    size_t pages = 0;
    (void)state;
    beams.sequences[0] = new_sequence(made.session, 256, 0);
    const uint64_t one = reserved(made.session), page = one / 4;
    assert_int_equal(page_bytes(beams.sequences[0], &pages), 0); /* nothing is there yet */
    run_text(made.session, beams.sequences[0], 1, 0, 200, NULL);
    assert_int_equal(page_bytes(beams.sequences[0], &pages), one);
    for (size_t i = 1; i < BEAMS; i++) {
        beams.sequences[i] = fork_of(beams.sequences[0]);
        assert_int_equal(reserved(made.session), one + i * page);
    }
    for (size_t step = 0; step < STEPS; step++) {
        choose_parents(&beams, step);
        assert_int_equal(reserved(made.session), one + (BEAMS - 1) * page);
        step_beams(made.session, &beams, step, NULL);
        assert_int_equal(reserved(made.session), one + (BEAMS - 1) * page);
    }
    for (size_t i = 0; i < BEAMS; i++) {
        heft_sequence_free(beams.sequences[i]);
    }
    assert_int_equal(reserved(made.session), 0);
    tear_down_session(&made);
}

/* ---- windows ----------------------------------------------------------------------------------------- */
/* 600 tokens in passes of 16: pages that have left the window are dropped, those of both sides of a fork too. */
static void windows_drop_pages(void **state)
{
    struct setting made = set_up_session(WINDOW, 0, 16);
    float found[2][VOCABULARY], expected[2][VOCABULARY];
    size_t pages = 0;
    (void)state;
    heft_sequence *one = new_sequence(made.session, 600, 0);
    const uint64_t bytes = reserved(made.session);
    run_text(made.session, one, 1, 0, 150, NULL);
    heft_sequence *two = fork_of(one);
    assert_true(reserved(made.session) <= 2 * bytes);
    for (size_t at = 150; at < 600; at += 15) {
        run_text(made.session, one, 2, at, 15, found[0]);
        run_text(made.session, two, 3, at, 15, found[1]);
        (void)page_bytes(one, &pages);
        assert_true(pages <= 2 * 3); /* of a window of 50 and 16 tokens, in 2 layers */
    }
    for (uint32_t i = 0; i < 2; i++) {
        heft_sequence *alone = new_sequence(made.session, 600, 0);
        run_text(made.session, alone, 1, 0, 150, NULL);
        for (size_t at = 150; at < 600; at += 15) {
            run_text(made.session, alone, 2 + i, at, 15, expected[i]);
        }
        heft_sequence_free(alone);
    }
    assert_memory_equal(found, expected, sizeof found);
    heft_sequence_free(one);
    assert_int_equal(reserved(made.session), bytes);
    heft_sequence_free(two);
    assert_int_equal(reserved(made.session), 0);
    tear_down_session(&made);
}

/* ---- any order ---------------------------------------------------------------------------------------- */
#define LIVE 6

/* Forks of forks, freed in any order; each goes on as one that was computed alone. Its passes are others, and so are the
 * last places of its sums. */
static void check_any_order(enum kind kind)
{
    struct setting made = set_up_session(kind, 0, 32);
    heft_sequence *live[LIVE] = {0};
    int32_t histories[LIVE][400];
    const size_t encoded = kind == CROSS ? 90 : 0;
    float found[VOCABULARY], expected[VOCABULARY];
    for (size_t turn = 0; turn < 160; turn++) {
        const size_t i = (size_t)id_at(5, turn) % LIVE, from = (size_t)id_at(6, turn) % LIVE;
        if (!live[i]) {
            const bool forks = live[from] != NULL;
            live[i] = forks ? fork_of(live[from]) : new_sequence(made.session, 400, encoded);
            if (forks) {
                memcpy(histories[i], histories[from], sizeof histories[i]);
            } else if (kind == CROSS) {
                encode(made.session, live[i], 90);
            }
        } else if (turn % 5 == 0) {
            heft_sequence_free(live[i]);
            live[i] = NULL;
        }
        const size_t length = live[i] ? (size_t)heft_sequence_length(live[i]) - encoded / 90 : 0;
        const size_t more = 1 + (size_t)id_at(8, turn) % 24;
        if (live[i] && length + more < 400) {
            const int32_t *const ids = &histories[i][length];
            for (size_t k = 0; k < more; k++) {
                histories[i][length + k] = id_at((uint32_t)turn, k);
            }
            run_ids(made.session, &live[i], 1, &ids, more, found);
            if (turn % 8 == 0) {
                heft_sequence *alone = new_sequence(made.session, 400, encoded);
                heft_sequence *both[] = {fork_of(live[i]), alone};
                if (kind == CROSS) {
                    encode(made.session, alone, 90);
                }
                const int32_t last = 9, *const next = &last, *const all = histories[i];
                run_ids(made.session, &alone, 1, &all, length + more, NULL);
                run_ids(made.session, &both[0], 1, &next, 1, found);
                run_ids(made.session, &both[1], 1, &next, 1, expected);
                for (size_t e = 0; e < VOCABULARY; e++) {
                    assert_float_equal(found[e], expected[e], kind == HALF ? 0.5F : 2e-3F);
                }
                heft_sequence_free(both[0]);
                heft_sequence_free(both[1]);
            }
        }
    }
    for (size_t i = 0; i < LIVE; i++) {
        heft_sequence_free(live[i]);
    }
    assert_int_equal(reserved(made.session), 0);
    tear_down_session(&made);
}

static void forks_are_freed_in_any_order(void **state)
{
    (void)state;
    for (int kind = FULL; kind <= CROSS; kind++) {
        check_any_order((enum kind)kind);
    }
}

/* ---- budgets ------------------------------------------------------------------------------------------ */
static void a_sequence_reaches_its_capacity_beside_a_full_budget(void **state)
{
    struct setting made = set_up_session(FULL, (uint64_t)1 << 20, 64);
    heft_sequence *first = NULL, *other = NULL, *forks[64] = {0};
    heft_error err = {0};
    size_t count = 0;
    (void)state;
    first = new_sequence(made.session, 300, 0);
    run_text(made.session, first, 1, 0, 100, NULL);
    while (count < COUNT(forks) && heft_sequence_fork(first, &forks[count], &err) == HEFT_OK) {
        count++;
    }
    assert_true(count > 0 && count < COUNT(forks));
    test_expect_status(heft_sequence_fork(first, &forks[count], &err), HEFT_LIMIT, &err, "fork");
    assert_non_null(strstr(err.message, "of a budget of 1048576"));
    assert_null(forks[count]);
    test_expect_status(heft_sequence_new(made.session, 1000, 0, &other, &err), HEFT_LIMIT, &err,
                       "new");
    assert_null(other);
    run_text(made.session, first, 1, 100, 200, NULL);
    for (size_t i = 0; i < count; i++) {
        run_text(made.session, forks[i], 2, 100, 200, NULL);
    }
    heft_sequence_free(first);
    for (size_t i = 0; i < count; i++) {
        heft_sequence_free(forks[i]);
    }
    assert_int_equal(reserved(made.session), 0);
    tear_down_session(&made);
}

/* ---- what goes wrong ----------------------------------------------------------------------------------- */
/* A sequence goes back, goes on with another text, and has the results of one that never had the first text's end. */
static void a_sequence_goes_back(void **state)
{
    static const size_t lengths[] = {0, 1, 63, 64, 65, 100, 127, 128, 129, 150};
    static const enum kind kinds[] = {FULL, HALF, LATENT};
    heft_error err = {0};
    float found[VOCABULARY], expected[VOCABULARY];
    (void)state;
    for (size_t k = 0; k < COUNT(kinds); k++) {
        struct setting at = set_up_session(kinds[k], 0, 0);
        for (size_t i = 0; i < COUNT(lengths); i++) {
            heft_sequence *back = new_sequence(at.session, 200, 0),
                          *alone = new_sequence(at.session, 200, 0);
            run_text(at.session, back, 1, 0, 150, NULL);
            test_expect_status(heft_sequence_truncate(back, lengths[i], &err), HEFT_OK, &err,
                               "truncate");
            assert_int_equal(heft_sequence_length(back), lengths[i]);
            if (lengths[i] > 0) {
                run_text(at.session, alone, 1, 0, lengths[i], NULL);
            }
            run_text(at.session, back, 2, 0, 200 - lengths[i], found); /* to its capacity */
            run_text(at.session, alone, 2, 0, 200 - lengths[i], expected);
            for (size_t c = 0; c < VOCABULARY; c++) { /* other passes: other last places */
                assert_float_equal(found[c], expected[c], kinds[k] == HALF ? 0.1F : 1e-4F);
            }
            heft_sequence_free(back);
            heft_sequence_free(alone);
        }
        tear_down_session(&at);
    }
}

/* Where it cannot, it is as before. */
static void a_sequence_does_not_go_back_too_far(void **state)
{
    struct setting at = set_up_session(WINDOW, 0, 40);
    heft_sequence *sequence = new_sequence(at.session, 300, 0), *fork;
    heft_error err = {0};
    float found[VOCABULARY], expected[VOCABULARY];
    (void)state;
    run_text(at.session, sequence, 1, 0, 200, NULL);
    test_expect_status(heft_sequence_truncate(sequence, 201, &err), HEFT_INVALID_ARG, &err, "more");
    test_expect_status(heft_sequence_truncate(sequence, 100, &err), HEFT_UNSUPPORTED, &err,
                       "left by the window");
    assert_int_equal(heft_sequence_length(sequence), 200);
    heft_sequence *alone = new_sequence(at.session, 300, 0);
    run_text(at.session, alone, 1, 0, 200, NULL);
    run_text(at.session, sequence, 1, 200, 20, found);
    run_text(at.session, alone, 1, 200, 20, expected);
    assert_memory_equal(found, expected, sizeof found);
    test_expect_status(heft_sequence_truncate(sequence, 210, &err), HEFT_OK, &err, "some");
    run_text(at.session, sequence, 1, 210, 10, found);
    heft_sequence_free(alone);
    alone = new_sequence(at.session, 300, 0);
    run_text(at.session, alone, 1, 0, 200, NULL);
    run_text(at.session, alone, 1, 200, 10, NULL);
    run_text(at.session, alone, 1, 210, 10, expected);
    assert_memory_equal(found, expected, sizeof found);
    fork = fork_of(sequence);
    test_expect_status(heft_sequence_truncate(sequence, 219, &err), HEFT_UNSUPPORTED, &err,
                       "shared");
    heft_sequence_free(fork);
    test_expect_status(heft_sequence_truncate(sequence, 219, &err), HEFT_OK, &err, "alone again");
    heft_sequence_free(alone);
    heft_sequence_free(sequence);
    tear_down_session(&at);
}

static void a_sequence_is_in_one_input(void **state)
{
    static const char *const wanted[] = {"logits"};
    const int32_t ids[] = {3, 4};
    struct setting made = set_up_session(FULL, 0, 0);
    heft_sequence *sequence = new_sequence(made.session, 20, 0);
    const heft_input twice[] = {
        HEFT_OPTIONS(heft_input, .sequence = sequence, .ids = ids, .count = 2),
        HEFT_OPTIONS(heft_input, .sequence = sequence, .ids = ids, .count = 2)};
    heft_error err = {0};
    (void)state;
    test_expect_status(heft_session_run(made.session, twice, 2, wanted, 1, &err), HEFT_INVALID_ARG,
                       &err, "twice");
    assert_non_null(strstr(err.message, "same sequence"));
    heft_sequence_free(sequence);
    tear_down_session(&made);
}

/* A pass that failed leaves its sequence unusable; what it shares with others stays. */
static void broken_sequences_are_freed(void **state)
{
    static const char *const wanted[] = {"logits"};
    const int32_t bad = VOCABULARY + 1, good = 3;
    struct setting made = set_up_session(FULL, 0, 0);
    heft_sequence *sequence = new_sequence(made.session, 200, 0);
    float found[VOCABULARY], expected[VOCABULARY];
    heft_error err = {0};
    (void)state;
    run_text(made.session, sequence, 1, 0, 70, NULL);
    heft_sequence *fork = fork_of(sequence), *other = fork_of(sequence);
    heft_input input = HEFT_OPTIONS(heft_input, .sequence = fork, .ids = &bad, .count = 1);
    test_expect_status(heft_session_run(made.session, &input, 1, wanted, 1, &err), HEFT_INVALID_ARG,
                       &err, "bad id");
    heft_sequence *broken = fork_of(fork);
    input.sequence = broken;
    input.ids = &good;
    test_expect_status(heft_session_run(made.session, &input, 1, wanted, 1, &err), HEFT_INVALID_ARG,
                       &err, "fork of a broken one");
    heft_sequence_free(fork);
    run_text(made.session, sequence, 2, 70, 1, expected);
    heft_sequence_free(sequence);
    heft_sequence_free(broken);
    run_text(made.session, other, 2, 70, 1, found);
    assert_memory_equal(found, expected, sizeof found);
    heft_sequence_free(other);
    assert_int_equal(reserved(made.session), 0);
    tear_down_session(&made);
}

/* A sequence, two forks, and all of them go on. */
static heft_status go_on(heft_session *session, bool encodes, heft_error *err)
{
    static const char *const wanted[] = {"logits"};
    static const int32_t ids[70] = {1, 2, 3}, start = 0;
    heft_sequence *all[3] = {0};
    heft_status status = heft_sequence_new(session, 80, encodes ? 70 : 0, &all[0], err);
    heft_input inputs[3] = {HEFT_OPTIONS(heft_input, .sequence = all[0], .ids = ids, .count = 70)};
    if (encodes) {
        inputs[0].decoder_ids = &start;
        inputs[0].decoder_count = 1;
    }
    if (status == HEFT_OK) {
        status = heft_session_run(session, inputs, 1, wanted, 1, err);
    }
    for (size_t i = 1; i < 3 && status == HEFT_OK; i++) {
        status = heft_sequence_fork(all[i - 1], &all[i], err);
    }
    for (size_t i = 0; i < 3; i++) {
        inputs[i] = HEFT_OPTIONS(heft_input, .sequence = all[i], .ids = ids, .count = 3);
    }
    if (status == HEFT_OK) {
        status = heft_session_run(session, inputs, 3, wanted, 1, err);
    }
    for (size_t i = 0; i < 3; i++) {
        heft_sequence_free(all[i]);
    }
    return status;
}

/* Allocation n fails: NOMEM, nothing is leaked, and the budget is as before. */
static void check_allocations(enum kind kind)
{
    for (long fail_at = 0, ended = 0; !ended; fail_at++) {
        test_heap heap = {.fail_at = -1};
        heft_ctx *with = test_ctx_new(&heap);
        heft_model *model = NULL;
        heft_session *session = NULL;
        heft_error err = {0};
        test_expect_status(new_model(with, kind, &model, &err), HEFT_OK, &err, "model");
        test_expect_status(heft_session_new(model, NULL, &session, &err), HEFT_OK, &err, "session");
        heap.fail_at = heap.count + fail_at;
        const heft_status status = go_on(session, kind == CROSS, &err);
        ended = status == HEFT_OK && heap.count <= heap.fail_at;
        assert_true(status == HEFT_OK || status == HEFT_NOMEM);
        heap.fail_at = -1;
        assert_int_equal(reserved(session), 0);
        test_expect_status(go_on(session, kind == CROSS, &err), HEFT_OK, &err, "again");
        heft_session_free(session);
        heft_model_free(model);
        heft_ctx_free(with);
        assert_int_equal(heap.blocks, 0);
    }
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    check_allocations(FULL);
    check_allocations(CROSS);
}

/* ---- threads ------------------------------------------------------------------------------------------- */
static void *go_on_alone(void *user)
{
    heft_session *session = user;
    heft_error err = {0};
    size_t good = 0;
    for (size_t i = 0; i < 10; i++) {
        good += go_on(session, false, &err) == HEFT_OK;
    }
    return good == 10 ? session : NULL;
}

/* Two sessions of one model, each on a thread of its own. */
static void sessions_do_not_share_pages(void **state)
{
    struct setting made = set_up_session(WINDOW, 0, 16);
    heft_session *second = NULL;
    heft_error err = {0};
    pthread_t thread;
    void *good = NULL;
    (void)state;
    test_expect_status(heft_session_new(made.model, NULL, &second, &err), HEFT_OK, &err, "second");
    assert_int_equal(pthread_create(&thread, NULL, go_on_alone, second), 0);
    assert_non_null(go_on_alone(made.session));
    assert_int_equal(pthread_join(thread, &good), 0);
    assert_non_null(good);
    heft_session_free(second);
    tear_down_session(&made);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(beams_are_as_sequences_alone),
        cmocka_unit_test(beams_take_one_sequence_and_their_pages),
        cmocka_unit_test(windows_drop_pages),
        cmocka_unit_test(forks_are_freed_in_any_order),
        cmocka_unit_test(a_sequence_reaches_its_capacity_beside_a_full_budget),
        cmocka_unit_test(a_sequence_goes_back),
        cmocka_unit_test(a_sequence_does_not_go_back_too_far),
        cmocka_unit_test(a_sequence_is_in_one_input),
        cmocka_unit_test(broken_sequences_are_freed),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(sessions_do_not_share_pages),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
