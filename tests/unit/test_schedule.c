/* Which units are read, and how often: positions in a schedule, a decoder's loop within the budget, loops
 * that are larger than it, and random schedules against the minimum number of reads. */
#include "support_residency.h"

#define LAYERS 12
#define HIDDEN 32

static heft_ctx *ctx;
static char folder[256];
static heft_model *model;
static size_t first; /* unit of layer 0; the others follow */

static const char *at(const char *name)
{
    return test_path(folder, name);
}

/* ---- schedules alone ------------------------------------------------------------------------- */
static heft__schedule make(const size_t *units, size_t count, size_t repeat, size_t unit_count)
{
    heft__schedule s;
    heft_error err = {0};
    test_expect_status(heft__schedule_make(ctx, units, count, repeat, unit_count, &s, &err),
                       HEFT_OK, &err, "schedule");
    return s;
}

static void distances_are_places_until_the_next_use(void **state)
{
    (void)state;
    static const size_t units[] = {0, 1, 2, 3, 2, 4}; /* 2 3 2 4 over and over after 0 1 */
    static const struct {
        const char *name;
        size_t acquired; /* SIZE_MAX: nothing yet */
        uint64_t distances[6];
        size_t ahead[4];
    } rows[] = {
        {"at the beginning",     SIZE_MAX, {0, 1, 2, 3, 5, HEFT__NEVER},                     {0, 1, 2, 3}},
        {"one along",            0,        {HEFT__NEVER, 0, 1, 2, 4, HEFT__NEVER},           {1, 2, 3, 2}},
        {"the same again",       0,        {HEFT__NEVER, 0, 1, 2, 4, HEFT__NEVER},           {1, 2, 3, 2}},
        {"some are skipped",     3,        {HEFT__NEVER, HEFT__NEVER, 0, 3, 1, HEFT__NEVER}, {2, 4, 2, 3}},
        {"what is passed stays", 1,        {HEFT__NEVER, HEFT__NEVER, 0, 3, 1, HEFT__NEVER}, {2, 4, 2, 3}},
        {"in no schedule",       5,        {HEFT__NEVER, HEFT__NEVER, 0, 3, 1, HEFT__NEVER}, {2, 4, 2, 3}},
        {"its second place",     2,        {HEFT__NEVER, HEFT__NEVER, 1, 2, 0, HEFT__NEVER}, {4, 2, 3, 2}},
        {"the last one",         4,        {HEFT__NEVER, HEFT__NEVER, 0, 1, 3, HEFT__NEVER}, {2, 3, 2, 4}},
        {"around",               3,        {HEFT__NEVER, HEFT__NEVER, 0, 3, 1, HEFT__NEVER}, {2, 4, 2, 3}},
    };
    heft__schedule s = make(units, 6, 2, 6);
    for (size_t row = 0; row < sizeof rows / sizeof rows[0]; row++) {
        if (rows[row].acquired != SIZE_MAX) {
            heft__schedule_advance(&s, rows[row].acquired);
        }
        for (size_t u = 0; u < 6; u++) {
            if (heft__schedule_distance(&s, u) != rows[row].distances[u]) {
                fail_msg("%s: unit %zu is %llu away", rows[row].name, u,
                         (unsigned long long)heft__schedule_distance(&s, u));
            }
        }
        for (size_t i = 0; i < 4; i++) {
            assert_int_equal(heft__schedule_ahead(&s, i), rows[row].ahead[i]);
        }
    }
    assert_false(heft__schedule_has(&s, 5));
    heft__schedule_fini(&s);
}

static void a_schedule_that_does_not_repeat_ends(void **state)
{
    (void)state;
    static const size_t units[] = {0, 1, 0};
    heft__schedule s = make(units, 3, SIZE_MAX, 2);
    assert_int_equal(heft__schedule_distance(&s, 1), 1);
    assert_int_equal(heft__schedule_ahead(&s, 3), HEFT__NO_UNIT);
    heft__schedule_advance(&s, 1);
    heft__schedule_advance(&s, 0);
    assert_int_equal(s.next, 3);
    assert_true(heft__schedule_distance(&s, 0) == HEFT__NEVER);
    assert_int_equal(heft__schedule_ahead(&s, 0), HEFT__NO_UNIT);
    heft__schedule_advance(&s, 1);
    assert_int_equal(s.next, 3);
    heft__schedule_fini(&s);
}

/* ---- schedules of a residency ------------------------------------------------------------------ */
static void bad_schedules_are_refused(void **state)
{
    (void)state;
    const size_t there[] = {first, first + 1}, gone[] = {first, 1000};
    const struct {
        const size_t *units;
        size_t count, repeat;
        const char *says;
    } rows[] = {
        {there, 0, 0,       "empty"                                        },
        {NULL,  2, 0,       "is NULL"                                      },
        {gone,  2, 0,       "entry 1 of the schedule is unit 1000"         },
        {there, 2, 2,       "repeats from entry 2, but has 2 entries"      },
        {there, 2, 1 << 20, "repeats from entry 1048576, but has 2 entries"},
        {NULL,  0, 1 << 20, "repeats from entry 1048576"                   },
    };
    heft_residency *r = test_residency(model, NULL), *none = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_error err = {0};
        const heft_residency_options options =
            HEFT_OPTIONS(heft_residency_options, .schedule = rows[i].units,
                         .schedule_count = rows[i].count, .repeat_from = rows[i].repeat);
        test_expect_status(
            heft_residency_set_schedule(r, rows[i].units, rows[i].count, rows[i].repeat, &err),
            HEFT_INVALID_ARG, &err, rows[i].says);
        assert_non_null(strstr(err.message, rows[i].says));
        if (rows[i].units == there && rows[i].count == 0) {
            continue; /* of options that is the standard order */
        }
        err = (heft_error){0};
        test_expect_status(heft_residency_new(model, &options, &none, &err), HEFT_INVALID_ARG, &err,
                           rows[i].says);
        assert_non_null(strstr(err.message, rows[i].says));
        assert_null(none);
    }
    heft_lease_free(test_acquire(r, first)); /* the schedule that was there is in force */
    heft_residency_free(r);
}

/* Acquire a unit like an engine with long computations: all of the read-ahead completes meanwhile. */
static void use(heft_residency *r, size_t unit)
{
    heft_lease *lease = test_acquire(r, unit);
    heft__residency_settle(r);
    heft_lease_free(lease);
    heft__residency_settle(r);
}

static size_t brought(heft_residency *r)
{
    return (size_t)test_counts(r).brought_units;
}

/* Generation with an encoder-decoder: the encoder once, the decoder over and over. */
static void a_decoder_loop_within_the_budget_is_read_once(void **state)
{
    (void)state;
    static const char config[] =
        "{\"model_type\":\"bart\",\"d_model\":64,\"encoder_layers\":6,\"decoder_layers\":6,"
        "\"encoder_attention_heads\":4,\"decoder_attention_heads\":4,\"encoder_ffn_dim\":128,"
        "\"decoder_ffn_dim\":128,\"vocab_size\":100,\"max_position_embeddings\":40,"
        "\"dtype\":\"float32\"}";
    test_save_random(ctx, config, "BartModel", at("bart"), NULL);
    for (unsigned computes = 0; computes < 2; computes++) {
        heft_model *bart =
            test_load_on_disk(ctx, at("bart"), "encoder.layers decoder.layers", HEFT_DTYPE_NONE);
        heft_residency *r = test_residency(bart, NULL);
        size_t schedule[12];
        char name[64];
        for (size_t i = 0; i < 12; i++) {
            snprintf(name, sizeof name, "%s.layers.%zu.fc1.weight", i < 6 ? "encoder" : "decoder",
                     i % 6);
            schedule[i] = test_unit(r, bart, name);
        }
        const uint64_t layer = heft_residency_unit(r, schedule[6])->brought_bytes;
        assert_true(layer > heft_residency_unit(r, schedule[0])->brought_bytes);
        heft_residency_free(r);
        const heft_residency_options options =
            HEFT_OPTIONS(heft_residency_options, .budget_bytes = 6 * layer, .schedule = schedule,
                         .schedule_count = 12, .repeat_from = 6);
        r = test_residency(bart, &options);
        size_t after_encoder = 0;
        for (size_t i = 0; i < 6 + 20 * 6; i++) {
            const size_t unit = schedule[i < 6 ? i : 6 + i % 6];
            if (computes) {
                use(r, unit);
            } else {
                heft_lease_free(test_acquire(r, unit));
            }
            after_encoder = i == 5 ? brought(r) : after_encoder;
        }
        heft__residency_settle(r);
        assert_true(after_encoder >= 6);
        assert_int_equal(brought(r), 6 + 6); /* the encoder's, and the decoder's: 6 in 20 passes */
        assert_true(test_counts(r).peak_bytes <= 6 * layer);
        heft_residency_free(r);
        heft_model_free(bart);
    }
}

/* ---- the fewest reads that are possible -------------------------------------------------------- */
/* With room for `room` of up to 12 units, tried out: for each set that may be in memory, the fewest reads
 * that lead to it. */
static unsigned fewest_reads(const size_t *used, size_t count, unsigned room)
{
    static unsigned best[1 << LAYERS], next[1 << LAYERS];
    const unsigned none = 1U << 30;
    unsigned least = none;
    for (unsigned set = 0; set < 1U << LAYERS; set++) {
        best[set] = set == 0 ? 0 : none;
    }
    for (size_t i = 0; i < count; i++) {
        const unsigned own = 1U << used[i];
        for (unsigned set = 0; set < 1U << LAYERS; set++) {
            next[set] = none;
        }
        for (unsigned set = 0; set < 1U << LAYERS; set++) {
            if (best[set] == none) {
                continue;
            }
            const unsigned reads = best[set] + ((set & own) == 0), here = set | own;
            if ((set & own) || (unsigned)__builtin_popcount(set) < room) {
                next[here] = reads < next[here] ? reads : next[here];
                continue;
            }
            for (unsigned out = 0; out < LAYERS; out++) {
                const unsigned left = here & ~(1U << out);
                if (left != here && (left & own)) {
                    next[left] = reads < next[left] ? reads : next[left];
                }
            }
        }
        memcpy(best, next, sizeof best);
    }
    for (unsigned set = 0; set < 1U << LAYERS; set++) {
        least = best[set] < least ? best[set] : least;
    }
    return least;
}

static heft_residency *residency_for(unsigned room, const size_t *units, size_t count,
                                     size_t repeat)
{
    const heft_residency_options options =
        HEFT_OPTIONS(heft_residency_options, .budget_bytes = room * test_layer_bytes(HIDDEN),
                     .schedule = units, .schedule_count = count, .repeat_from = repeat);
    return test_residency(model, &options);
}

/* A loop that is larger than the budget keeps a part in memory: one place is for the unit in use, one
 * for the next unit. */
static void a_loop_larger_than_the_budget_keeps_a_part(void **state)
{
    (void)state;
    size_t units[LAYERS], used[10 * LAYERS];
    for (size_t i = 0; i < LAYERS; i++) {
        units[i] = first + i;
    }
    for (size_t i = 0; i < 10 * LAYERS; i++) {
        used[i] = i % LAYERS;
    }
    for (unsigned room = 2; room <= LAYERS; room++) {
        heft_residency *r = residency_for(room, units, LAYERS, 0);
        for (size_t i = 0; i < 10 * LAYERS; i++) {
            use(r, first + used[i]);
        }
        const unsigned most = fewest_reads(used, 10 * LAYERS, room < LAYERS ? room - 1 : room);
        if (brought(r) > most + 1) { /* one has come for the next pass */
            fail_msg("room for %u of %u: %zu reads, %u at most", room, LAYERS, brought(r), most);
        }
        assert_true(brought(r) >= fewest_reads(used, 10 * LAYERS, room));
        assert_int_equal(test_counts(r).waited, 1); /* the first of all */
        heft_residency_free(r);
    }
}

static unsigned next_random(unsigned *seed)
{
    *seed = *seed * 1103515245U + 12345U;
    return *seed >> 16;
}

static void random_schedules_are_read_as_seldom_as_possible(void **state)
{
    (void)state;
    unsigned seed = 7;
    for (unsigned round = 0; round < 150; round++) {
        size_t units[40], used[80];
        const unsigned kinds = 3 + next_random(&seed) % 6, room = 2 + next_random(&seed) % 4;
        const size_t count = 4 + next_random(&seed) % 36;
        const bool repeats = next_random(&seed) % 2;
        const size_t from = repeats ? next_random(&seed) % count : SIZE_MAX;
        size_t total = count;
        for (size_t i = 0; i < count; i++) {
            used[i] = next_random(&seed) % kinds;
            units[i] = first + used[i];
        }
        for (size_t i = from; repeats && total < 2 * count; total++) {
            used[total] = used[i];
            i = i + 1 == count ? from : i + 1;
        }
        heft_residency *r = residency_for(room, units, count, from);
        for (size_t i = 0; i < total; i++) {
            use(r, first + used[i]);
        }
        const size_t most = fewest_reads(used, total, room - 1) + (repeats ? 1 : 0);
        if (brought(r) > most || brought(r) < fewest_reads(used, total, room)) {
            fail_msg("round %u, room for %u of %u: %zu reads, %u to %zu are right", round, room,
                     kinds, brought(r), fewest_reads(used, total, room), most);
        }
        heft_residency_free(r);
    }
}

/* Units outside the schedule are brought in on demand, and dropped before those in it, the least recently
 * used first. */
static void what_is_in_no_schedule_comes_on_demand(void **state)
{
    (void)state;
    const size_t units[] = {first, first + 1};
    heft_residency *r = residency_for(4, units, 2, 0);
    static const size_t picked[] = {0, 5, 1, 6, 0, 5, 1, 7, 0, 5, 1, 7};
    for (size_t i = 0; i < sizeof picked / sizeof picked[0]; i++) {
        use(r, first + picked[i]);
    }
    assert_int_equal(brought(r), 2 + 3); /* 5 and 6, then 7 for 6: 5 was used later */
    heft_residency_free(r);
}

/* ---- experts: in no schedule, but of layers that are in one ------------------------------------- */
#define MIXTURE_LAYERS 6
#define EXPERTS 8

struct mixture {
    heft_model *model;
    heft_residency *r;
    size_t layers[MIXTURE_LAYERS], experts[MIXTURE_LAYERS][EXPERTS];
};

/* Room for all layers without their experts, and for so many experts. */
static struct mixture begin_mixture(size_t room)
{
    struct mixture m = {.model =
                            test_load_on_disk(ctx, at("mixtral"), "model.layers", HEFT_DTYPE_NONE)};
    char name[100];
    m.r = test_residency(m.model, NULL);
    for (size_t i = 0; i < MIXTURE_LAYERS; i++) {
        snprintf(name, sizeof name, "model.layers.%zu.input_layernorm.weight", i);
        m.layers[i] = test_unit(m.r, m.model, name);
        for (size_t e = 0; e < EXPERTS; e++) {
            snprintf(name, sizeof name, "model.layers.%zu.block_sparse_moe.experts.%zu.w1.weight",
                     i, e);
            m.experts[i][e] = test_unit(m.r, m.model, name);
        }
    }
    const uint64_t layer = heft_residency_unit(m.r, m.layers[0])->brought_bytes,
                   expert = heft_residency_unit(m.r, m.experts[0][0])->brought_bytes;
    heft_residency_free(m.r);
    const heft_residency_options options =
        HEFT_OPTIONS(heft_residency_options, .budget_bytes = MIXTURE_LAYERS * layer + room * expert,
                     .schedule = m.layers, .schedule_count = MIXTURE_LAYERS, .repeat_from = 0);
    m.r = test_residency(m.model, &options);
    return m;
}

/* Two experts of a layer are used, as many times as not the first two, which are `usual`. */
static void use_layer(struct mixture *m, size_t layer, bool usual, unsigned *seed)
{
    const size_t a = usual ? 0 : 2 + next_random(seed) % 3,
                 b = usual ? 1 : 5 + next_random(seed) % 3;
    const size_t chosen[2] = {m->experts[layer][a], m->experts[layer][b]};
    use(m->r, m->layers[layer]);
    heft__residency_expect(m->r, chosen, 2);
    heft__residency_settle(m->r);
    use(m->r, chosen[0]);
    use(m->r, chosen[1]);
}

/* The reader brings experts that are expected, also where all layers are in memory already. */
static void experts_that_are_expected_are_read_ahead(void **state)
{
    (void)state;
    unsigned seed = 3;
    struct mixture m = begin_mixture(4);
    for (size_t i = 0; i < 20 * MIXTURE_LAYERS; i++) {
        use_layer(&m, i % MIXTURE_LAYERS, next_random(&seed) % 2, &seed);
    }
    assert_int_equal(test_counts(m.r).waited, 1); /* the first layer */
    heft_residency_free(m.r);
    heft_model_free(m.model);
}

/* With room for the usual experts and two more, the usual ones stay, though others were used later. */
static void experts_that_are_used_often_stay(void **state)
{
    (void)state;
    unsigned seed = 5;
    struct mixture m = begin_mixture(2 * MIXTURE_LAYERS + 2);
    size_t unusual = 0;
    for (size_t i = 0; i < 1000 * MIXTURE_LAYERS; i++) { /* counts are halved on the way */
        const bool usual = next_random(&seed) % 4 > 0;
        use_layer(&m, i % MIXTURE_LAYERS, usual, &seed);
        unusual += !usual;
    }
    /* all layers, the usual experts once or twice, and at most each of the others each time */
    assert_in_range(brought(m.r), MIXTURE_LAYERS,
                    MIXTURE_LAYERS + 4 * MIXTURE_LAYERS + 2 * unusual);
    heft_residency_free(m.r);
    heft_model_free(m.model);
}

/* After a schedule is replaced, read-ahead starts at the beginning of the new one. */
static void a_schedule_can_be_replaced(void **state)
{
    (void)state;
    const size_t up[] = {first, first + 1, first + 2}, down[] = {first + 5, first + 4, first + 3};
    heft_residency *r = residency_for(3, up, 3, SIZE_MAX);
    heft_error err = {0};
    use(r, first);
    assert_int_equal(brought(r), 3);
    test_expect_status(heft_residency_set_schedule(r, down, 3, 0, &err), HEFT_OK, &err, "down");
    heft__residency_settle(r);
    for (size_t i = 0; i < 9; i++) {
        use(r, down[i % 3]);
    }
    assert_int_equal(brought(r), 6);
    assert_int_equal(test_counts(r).waited, 1); /* nothing but the first of all */
    test_expect_status(heft_residency_set_schedule(r, NULL, 0, 0, &err), HEFT_OK, &err, "standard");
    heft_lease_free(test_acquire(r, first + 11));
    heft_residency_free(r);
}

/* ---- nothing half done ----------------------------------------------------------------------- */
static heft_status make_residency(heft_ctx *with, void *user, heft_error *err)
{
    (void)user;
    heft_residency *r = NULL;
    heft_model *small = NULL;
    size_t units[] = {0, 1, 0};
    const heft_residency_options options = HEFT_OPTIONS(heft_residency_options, .schedule = units,
                                                        .schedule_count = 3, .repeat_from = 1);
    const test_how load = {.load = {.mode = HEFT_LOAD_MAP}};
    heft_status status = test_load(with, at("model"), &load, &small, NULL, err);
    if (status == HEFT_OK) {
        status = heft_residency_new(small, &options, &r, err);
    }
    if (status == HEFT_OK) {
        status = heft_residency_set_schedule(r, units, 2, SIZE_MAX, err);
    }
    heft_residency_free(r);
    heft_model_free(small);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    test_oom_sweep(make_residency, NULL);
}

static int set_up(void **state)
{
    (void)state;
    test_folder_make(folder);
    ctx = heft_ctx_new(NULL);
    test_save_layers(ctx, at("model"), LAYERS, HIDDEN);
    test_file_cache(at("model/model.safetensors"), true);
    model = test_load_on_disk(ctx, at("model"), "encoder.layer", HEFT_DTYPE_NONE);
    test_save_random(ctx,
                     "{\"model_type\":\"mixtral\",\"hidden_size\":32,\"num_hidden_layers\":6,"
                     "\"num_attention_heads\":2,\"num_key_value_heads\":2,\"intermediate_size\":64,"
                     "\"vocab_size\":50,\"num_local_experts\":8,\"dtype\":\"float32\"}",
                     "MixtralForCausalLM", at("mixtral"), NULL);
    heft_residency *r = test_residency(model, NULL);
    first = test_unit(r, model, "encoder.layer.0.output.dense.weight");
    assert_int_equal(heft_residency_unit(r, first)->brought_bytes, test_layer_bytes(HIDDEN));
    heft_residency_free(r);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    heft_model_free(model);
    test_folder_remove(folder);
    heft_ctx_free(ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(distances_are_places_until_the_next_use),
        cmocka_unit_test(a_schedule_that_does_not_repeat_ends),
        cmocka_unit_test(bad_schedules_are_refused),
        cmocka_unit_test(a_decoder_loop_within_the_budget_is_read_once),
        cmocka_unit_test(a_loop_larger_than_the_budget_keeps_a_part),
        cmocka_unit_test(random_schedules_are_read_as_seldom_as_possible),
        cmocka_unit_test(what_is_in_no_schedule_comes_on_demand),
        cmocka_unit_test(experts_that_are_expected_are_read_ahead),
        cmocka_unit_test(experts_that_are_used_often_stay),
        cmocka_unit_test(a_schedule_can_be_replaced),
        cmocka_unit_test(memory_can_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
