/* How long a pass takes: the arithmetic with given rates, what dry runs count, and what a session then reads. No
 * time is compared with a clock. */
#include "scratch.h"

#include <heft/session.h>

#include "run/predict.h"

#include <math.h>
#include <stdlib.h>

static void expect_near(double found, double expected, const char *label)
{
    if (!(fabs(found - expected) <= 1e-9 * fabs(expected))) {
        fail_msg("%s: %.12g, expected %.12g", label, found, expected);
    }
}

/* ---- arithmetic ---------------------------------------------------------------------------------- */
/* 1 GB/s from files, 10 GB/s from memory up to 4 tokens, then time grows with the tokens. */
static heft__rates simple_rates(void)
{
    heft__rates rates = {
        .known = true,
        .read = 1e9,
        .attend = {1e9, 2e9},
        .memory = 1e10,
        .product = 1e-6,
        .split = 1e-5
    };
    for (size_t i = 0; i < HEFT__KNOTS; i++) {
        const double tokens = (double)heft__knots[i];
        for (size_t f = 0; f < HEFT__FORMS;
             f++) { /* one thread takes twice as long, turned three times */
            rates.weight[f][i] = 1e-10 * (tokens > 4 ? tokens / 4 : 1) *
                                 (f & HEFT__FORM_LONE ? 2 : 1) * (f & HEFT__FORM_TURNED ? 3 : 1);
        }
    }
    return rates;
}

static void seconds_of_a_pass(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double weight_at_1, weight_at_64; /* bytes */
        uint64_t read, row, cache, attend[2];
        size_t blocks;
        double rate, cached;
        double seconds;
        heft_bound bound;
        uint64_t stays; /* bytes in use that are not read */
    } rows[] = {
        {"weights_in_memory",            1e9,   0,   0,          0,         0, {0, 0},         1,  0,   0, 0.1,                HEFT_BOUND_MEMORY,  0         },
        {"many_tokens",                  0,     1e9, 0,          0,         0, {0, 0},         1,  0,   0, 1.6,                HEFT_BOUND_COMPUTE, 0         },
        {"reading_hides_computing",
         1e9,                                   0,
         1000000000,                                             0,
         0,                                                                    {0, 0},
         10,                                                                                       1e9,
         0,                                                                                                1,
         HEFT_BOUND_DISK,                                                                                                                          0         },
        {"computing_hides_reading",
         0,                                     1e9,
         1000000000,                                             0,
         0,                                                                    {0, 0},
         10,                                                                                       1e9,
         0,                                                                                                1.6,
         HEFT_BOUND_COMPUTE,                                                                                                                       0         },
        {"near_each_other",
         9e9,                                   0,
         1000000000,                                             0,
         0,                                                                    {0, 0},
         10,                                                                                       1e9,
         0,                                                                                                1 + 0.9 / 10,
         HEFT_BOUND_DISK,                                                                                                                          0         },
        {"just_not_near",                7.4e9, 0,   1000000000, 0,         0, {0, 0},         10, 1e9, 0, 1,                  HEFT_BOUND_DISK,    0         },
        {"one_block_cannot_overlap",
         9e9,                                   0,
         1000000000,                                             0,
         0,                                                                    {0, 0},
         1,                                                                                        1e9,
         0,                                                                                                1.9,
         HEFT_BOUND_DISK,                                                                                                                          0         },
        {"page_cache_takes_the_cpus",
         1e9,                                   0,
         1000000000,                                             0,
         0,                                                                    {0, 0},
         10,                                                                                       1e9,
         1,                                                                                                1.1,
         HEFT_BOUND_DISK,                                                                                                                          0         },
        {"half_in_the_page_cache",
         6e9,                                   0,
         1000000000,                                             0,
         0,                                                                    {0, 0},
         10,                                                                                       1e9,
         0.5,                                                                                              1.1 + 1 * 0.5 / 10,
         HEFT_BOUND_DISK,                                                                                                                          0         },
        {"rows_of_a_table",              0,     0,   0,          500000000, 0, {0, 0},         1,  1e9, 0, 0.5,                HEFT_BOUND_DISK,    0         },
        {"attention_of_one_query",
         1e9,                                   0,
         0,                                                      0,
         1000,                                                                 {200000000, 0},
         1,                                                                                        0,
         0,                                                                                                0.1 + 0.2,
         HEFT_BOUND_COMPUTE,                                                                                                                       0         },
        {"attention_of_many_queries",
         1e9,                                   0,
         0,                                                      0,
         1000,                                                                 {0, 200000000},
         1,                                                                                        0,
         0,                                                                                                0.1 + 0.1,
         HEFT_BOUND_COMPUTE,                                                                                                                       0         },
        {"attention_waits_for_its_keys",
         1e9,                                   0,
         0,                                                      0,
         5000000000,                                                           {1000, 0},
         1,                                                                                        0,
         0,                                                                                                0.1 + 0.5,
         HEFT_BOUND_MEMORY,                                                                                                                        0         },
        {"half_of_the_weights_stay",
         4e9,                                   0,
         1000000000,                                             0,
         0,                                                                    {0, 0},
         10,                                                                                       1e9,
         0,                                                                                                1 + 0.2,
         HEFT_BOUND_DISK,                                                                                                                          1000000000},
        {"one_of_ten_is_read",
         0,                                     1e9,
         100000000,                                              0,
         0,                                                                    {0, 0},
         10,                                                                                       1e9,
         0,                                                                                                0.16 + 1.44,
         HEFT_BOUND_COMPUTE,                                                                                                                       900000000 },
        {"nothing",                      0,     0,   0,          0,         0, {0, 0},         1,  0,   0, 0,                  HEFT_BOUND_MEMORY,  0         },
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        heft__rates rates = simple_rates();
        heft__effort effort = {.read_bytes = rows[r].read, .blocks = rows[r].blocks};
        effort.used_bytes = rows[r].read + rows[r].stays;
        rates.read = rows[r].rate;
        rates.cached = rows[r].cached;
        effort.tally.weight_at[0][0] = rows[r].weight_at_1;
        effort.tally.weight_at[0][6] = rows[r].weight_at_64;
        effort.tally.weight_bytes = (uint64_t)(rows[r].weight_at_1 + rows[r].weight_at_64);
        effort.tally.row_bytes = rows[r].row;
        effort.tally.cache_bytes = rows[r].cache;
        memcpy(effort.tally.attend_flops, rows[r].attend, sizeof rows[r].attend);
        const heft__duration d = heft__effort_seconds(&effort, &rates);
        if (rows[r].seconds == 0) {
            assert_true(d.seconds == 0);
        } else {
            expect_near(d.seconds, rows[r].seconds, rows[r].name);
        }
        if (d.bound != rows[r].bound) {
            fail_msg("%s: bound %d, expected %d", rows[r].name, (int)d.bound, (int)rows[r].bound);
        }
    }
}

/* Products of each form have their own rate; each product and each job of all threads takes some time beside. */
static void small_products_take_longer(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t form;
        double bytes, products, splits, seconds;
    } rows[] = {
        {"split",           0,                                   1e6, 0,   0,  1e-4},
        {"lone",            HEFT__FORM_LONE,                     1e6, 0,   0,  2e-4},
        {"turned",          HEFT__FORM_TURNED,                   1e6, 0,   0,  3e-4},
        {"turned_and_lone", HEFT__FORM_TURNED | HEFT__FORM_LONE, 1e6, 0,   0,  6e-4},
        {"products",        0,                                   0,   100, 0,  1e-4},
        {"splits",          0,                                   0,   0,   10, 1e-4},
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        const heft__rates rates = simple_rates();
        heft__effort effort = {.blocks = 1};
        effort.tally.weight_at[rows[r].form][0] = rows[r].bytes;
        effort.tally.products = rows[r].products;
        effort.tally.splits = rows[r].splits;
        expect_near(heft__effort_seconds(&effort, &rates).seconds, rows[r].seconds, rows[r].name);
    }
}

/* A product that is too small for two threads is one thread's; one of many tokens is not. */
static void products_have_forms(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t tokens, rows, columns;
        bool turned;
        size_t form;
        bool splits; /* into jobs of all threads */
    } rows[] = {
        {"small",             1,  256,  256,  false, HEFT__FORM_LONE,                     false},
        {"small_turned",      1,  256,  256,  true,  HEFT__FORM_LONE | HEFT__FORM_TURNED, false},
        {"large",             1,  4096, 4096, false, 0,                                   true },
        {"large_turned",      1,  4096, 4096, true,  HEFT__FORM_TURNED,                   true },
        {"small_many_tokens", 64, 256,  256,  false, 0,                                   true },
        {"large_few_tokens",  2,  4096, 4096, false, 0,                                   true },
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        heft__pass pass = {.dry = true, .kernels = heft__kernels_best(), .lane_count = 2};
        const heft__matrix w = {.dtype = HEFT_DTYPE_F32,
                                .rows = rows[r].rows,
                                .columns = rows[r].columns,
                                .turned = rows[r].turned};
        heft__tally_product(&pass, rows[r].tokens, &w, false);
        for (size_t f = 0; f < HEFT__FORMS; f++) {
            double bytes = 0;
            for (size_t k = 0; k < HEFT__KNOTS; k++) {
                bytes += pass.tally.weight_at[f][k];
            }
            if ((bytes > 0) != (f == rows[r].form)) {
                fail_msg("%s: %g bytes in form %zu", rows[r].name, bytes, f);
            }
        }
        expect_near(pass.tally.products, 1, rows[r].name);
        /* the kernels of some machines have the operand of several tokens filled by all threads, too */
        const heft__operand operand = {
            .tokens = rows[r].tokens, .columns = w.columns, .dtype = w.dtype, .turned = w.turned};
        const bool filled = pass.kernels->operand_pieces(&operand) > 1;
        expect_near(pass.tally.splits, rows[r].splits + filled, rows[r].name);
    }
}

static void units_that_a_pass_reads(void **state)
{
    (void)state;
    static const uint64_t equal[] = {10, 10, 10, 10, 10, 10, 10, 10, 10, 10};
    static const uint64_t head[] = {10, 10, 10, 10, 10, 30};
    static const uint64_t tied[] = {10, 10, 10, 30};
    static const struct {
        const char *name;
        const uint64_t *bytes;
        size_t units;
        size_t order[10];
        size_t count;
        uint64_t budget, least, most;
    } rows[] = {
        {"all_stay",                equal, 10, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 10, 100, 0,   0  },
        {"one_byte_too_few",        equal, 10, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 10, 99,  10,  25 },
 /* places for k: as many are read as with k - 1 at best, n (n - (k - 1)) / (n - 1) */
        {"half_of_it",              equal, 10, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 10, 50,  50,  70 },
        {"room_for_two",            equal, 10, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 10, 20,  89,  100},
        {"room_for_one",            equal, 10, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 10, 10,  100, 100},
        {"a_large_head",            head,  6,  {0, 1, 2, 3, 4, 5},             6,  60,  30,  60 },
        {"a_unit_that_comes_twice", tied,  4,  {3, 0, 1, 2, 3},                5,  45,  15,  60 },
        {"units_in_memory",         equal, 10, {0, 1, 2, 3, 4},                5,  50,  0,   0  },
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        uint64_t read = 0;
        heft_error err = {0};
        test_expect_status(heft__steady_units(ctx, rows[r].order, rows[r].count, rows[r].bytes,
                                              rows[r].units, rows[r].budget, &read, &err),
                           HEFT_OK, &err, rows[r].name);
        if (read < rows[r].least || read > rows[r].most) {
            fail_msg("%s: %llu, expected %llu to %llu", rows[r].name, (unsigned long long)read,
                     (unsigned long long)rows[r].least, (unsigned long long)rows[r].most);
        }
    }
}

static void experts_that_a_pass_reads(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t others, budget, experts;
        double used;
        uint64_t read;
    } rows[] = {
        {"there_are_none",           1000, 500,  0,    0,   0  },
        {"all_stay",                 1000, 5000, 4000, 500, 0  },
        {"half_of_them_stay",        1000, 3000, 4000, 500, 250},
        {"no_room",                  1000, 1000, 4000, 500, 500},
        {"not_even_for_other_units", 1000, 600,  4000, 500, 500},
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        const heft__tally tally = {.expert_bytes = rows[r].experts,
                                   .expert_read_bytes = rows[r].used};
        const uint64_t read = heft__steady_experts(rows[r].others, rows[r].budget, &tally);
        if (read != rows[r].read) {
            fail_msg("%s: %llu, expected %llu", rows[r].name, (unsigned long long)read,
                     (unsigned long long)rows[r].read);
        }
    }
}

/* While a layer computes, units of the schedule make room for its experts: the one in use, and those that are read ahead,
 * but no more than are chosen. */
static void experts_take_room_from_the_schedule(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t budget, one, per_layer,
            chosen;      /* experts of a layer, and of those that are chosen */
        uint64_t in_use; /* experts */
    } rows[] = {
        {"none",                       1 << 20, 1 << 10, 0,   0,  0},
        {"two_of_sixteen",             1 << 20, 1 << 18, 16,  2,  2},
        {"one",                        1 << 20, 1 << 18, 16,  1,  1},
        {"no_more_than_is_read_ahead", 1 << 20, 1 << 18, 16,  8,  2},
        {"small_ones_come_together",   1 << 20, 1 << 12, 128, 64,
         17                                                        }, /* a 16th of the budget, and the one in use */
        {"and_all_of_these",           1 << 20, 1 << 12, 128, 8,  8},
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        const uint64_t layers = rows[r].per_layer ? 3 : 0;
        const heft__tally tally = {.routes = layers,
                                   .experts = layers * rows[r].per_layer,
                                   .expert_bytes = layers * rows[r].per_layer * rows[r].one,
                                   .expert_read_bytes =
                                       (double)(layers * rows[r].chosen * rows[r].one)};
        const uint64_t bytes = heft__experts_in_use(rows[r].budget, &tally);
        if (bytes != rows[r].in_use * rows[r].one) {
            fail_msg("%s: %llu bytes, expected %llu", rows[r].name, (unsigned long long)bytes,
                     (unsigned long long)(rows[r].in_use * rows[r].one));
        }
    }
}

/* Of a weight of 1000 x 100 bfloat16. */
static void products_are_split_over_the_knots(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t tokens;
        bool expert;
        double share, used;
        size_t knot;
        double at, next; /* bytes at the knot, and at the one after it */
        uint64_t flops, bytes;
    } rows[] = {
        {"one_token",             1,    false, 1,    1,    0, 200000, 0,      200000,    200000},
        {"on_a_knot",             8,    false, 1,    1,    2, 0,      200000, 1600000,   200000},
        {"between_two",           3,    false, 1,    1,    1, 100000, 100000, 600000,    200000},
        {"a_quarter_of_the_way",  20,   false, 1,    1,    4, 150000, 50000,  4000000,   200000},
        {"beyond_the_last",       1024, false, 1,    1,    7, 800000, 0,      204800000, 200000},
        {"between_the_last_two",  160,  false, 1,    1,    6, 100000, 100000, 32000000,  200000},
        {"no_token",              0,    false, 1,    1,    0, 0,      0,      0,         0     },
        {"an_expert_of_two",      16,   true,  0.25, 0.5,  2, 0,      100000, 800000,    100000},
        {"an_expert_seldom_used", 1,    true,  0.25, 0.25, 0, 50000,  0,      50000,     50000 },
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        heft__pass pass = {
            .dry = true,
            .kernels = heft__kernels_best(),
            .lane_count = 2,
            .expected = {.expert = rows[r].expert, .share = rows[r].share, .used = rows[r].used}
        };
        const heft__matrix w = {.dtype = HEFT_DTYPE_BF16, .rows = 1000, .columns = 100};
        heft__tally_product(&pass, rows[r].tokens, &w, false);
        for (size_t k = 0; k < HEFT__KNOTS; k++) {
            const double expected = k == rows[r].knot       ? rows[r].at
                                    : k == rows[r].knot + 1 ? rows[r].next
                                                            : 0;
            const double found =
                pass.tally.weight_at[0][k] + pass.tally.weight_at[HEFT__FORM_LONE][k];
            if (!(fabs(found - expected) < 1e-6)) {
                fail_msg("%s: knot %zu has %g, expected %g", rows[r].name, k, found, expected);
            }
        }
        assert_int_equal(pass.tally.flops, rows[r].flops);
        assert_int_equal(pass.tally.weight_bytes, rows[r].bytes);
    }
}

static void attention_counts_what_it_sees(void **state)
{
    (void)state;
    static const heft__slot kept = {.kv_heads = 2, .key_width = 8, .value_width = 8},
                            latent = {.kv_heads = 1, .key_width = 8},
                            cross = {
                                .kv_heads = 2, .key_width = 8, .value_width = 8, .cross = true};
    static const struct {
        const char *name;
        const heft__slot *slot;
        bool causal;
        int32_t window;
        size_t sequences, queries, keys, kv_heads;
        bool several;
        uint64_t flops, bytes;
    } rows[] = {
  /* 2 * queries * keys * 4 heads * 16 numbers; keys * kv_heads * 16 numbers * 2 bytes */
        {"one_token_after_99",         &kept,   true,  0,  1, 1,  100, 2, false, 12800,  6400 },
        {"a_batch_of_them",            &kept,   true,  0,  3, 3,  100, 2, false, 38400,  19200},
        {"a_window_cuts_them",         &kept,   true,  10, 1, 1,  100, 2, false, 1280,   704  },
        {"an_input_sees_half",         &kept,   true,  0,  1, 9,  9,   2, true,  5760,   576  },
        {"an_input_after_another",     &kept,   true,  0,  1, 9,  109, 2, true,  120960, 6976 },
        {"both_ways",                  NULL,    false, 0,  2, 20, 10,  2, true,  25600,  2560 },
        {"latent_keys_have_no_values", &latent, true,  0,  1, 1,  100, 1, false, 12800,  1600 },
        {"cross",                      &cross,  false, 0,  2, 2,  100, 2, false, 12800,  6400 },
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        heft__pass pass = {.dry = true, .cache_dtype = HEFT_DTYPE_BF16};
        pass.in.sequences = rows[r].sequences;
        const heft__attention a = {.heads = 4,
                                   .kv_heads = rows[r].kv_heads,
                                   .key_width = 8,
                                   .value_width = 8,
                                   .causal = rows[r].causal,
                                   .window = rows[r].window};
        heft__tally_attention(&pass, &a, rows[r].queries, rows[r].keys, rows[r].slot);
        const uint64_t flops = pass.tally.attend_flops[rows[r].several],
                       bytes = pass.tally.cache_bytes;
        if (flops != rows[r].flops || bytes != rows[r].bytes ||
            pass.tally.attend_flops[!rows[r].several] != 0) {
            fail_msg("%s: %llu operations, %llu bytes, expected %llu and %llu", rows[r].name,
                     (unsigned long long)flops, (unsigned long long)bytes,
                     (unsigned long long)rows[r].flops, (unsigned long long)rows[r].bytes);
        }
    }
}

static void tokens_are_expected_to_spread_over_experts(void **state)
{
    (void)state;
    const heft__routing routing = {.experts = 8, .top = 2};
    heft__pass pass = {.dry = true};
    heft__tally_route(&pass, 1, &routing);
    expect_near(pass.expected.share, 0.25, "share");
    expect_near(pass.expected.used, 0.25, "one token");
    heft__tally_route(&pass, 3, &routing);
    expect_near(pass.expected.used, 1 - 0.75 * 0.75 * 0.75, "three tokens");
}

/* ---- models ------------------------------------------------------------------------------------------ */
static heft_model *open_model(heft_ctx *with, const char *name, bool disk)
{
    heft_source *source = NULL;
    heft_model *skeleton = NULL, *model = NULL;
    heft_plan *plan = NULL;
    heft_error err = {0};
    char path[512];
    heft_load_options options = HEFT_OPTIONS(heft_load_options, .mode = HEFT_LOAD_COPY);
    const heft_plan_options wanted =
        HEFT_OPTIONS(heft_plan_options, .device_map_json = "{\"\": \"disk\"}");
    snprintf(path, sizeof path, "%s/models/%s", HEFT_TEST_DATA, name);
    test_expect_status(heft_source_open(with, path, NULL, &source, &err), HEFT_OK, &err, name);
    if (disk) {
        test_expect_status(heft_model_skeleton(source, &options, &skeleton, &err), HEFT_OK, &err,
                           name);
        test_expect_status(heft_plan_new(skeleton, &wanted, &plan, &err), HEFT_OK, &err, name);
        options.plan = plan;
    }
    test_expect_status(heft_model_load(source, &options, &model, NULL, &err), HEFT_OK, &err, name);
    heft_plan_free(plan);
    heft_model_free(skeleton);
    heft_source_close(source);
    return model;
}

static heft_session *open_session(const heft_model *model, uint64_t budget)
{
    heft_session *session = NULL;
    heft_error err = {0};
    const heft_session_options options =
        HEFT_OPTIONS(heft_session_options, .memory_bytes = budget, .over_limit = true);
    test_expect_status(heft_session_new(model, &options, &session, &err), HEFT_OK, &err, "session");
    return session;
}

static heft_prediction predict(heft_session *session, heft_pass_shape shape, const char *label)
{
    heft_prediction p = HEFT_SIZED(heft_prediction);
    heft_error err = {0};
    shape.struct_size = sizeof shape;
    test_expect_status(heft_session_predict(session, &shape, &p, &err), HEFT_OK, &err, label);
    assert_true(isfinite(p.seconds) && p.seconds > 0);
    assert_true(isfinite(p.first_seconds) && p.first_seconds >= p.seconds);
    assert_true(p.best_batch >= 1 && p.best_batch <= 512);
    assert_true(p.memory_rate > 0 && p.compute_rate > 0);
    return p;
}

static const char *const decoders[] = {"llama_gqa",      "llama_bf16",      "gpt2",    "gpt_neox",
                                       "mistral_window", "gemma3_text",     "opt",     "mixtral",
                                       "phi3_longrope",  "llama_rope_yarn", "t5_gated"};

static void each_family_is_counted(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof decoders / sizeof *decoders; i++) {
        const char *name = decoders[i];
        heft_model *model = open_model(ctx, name, false);
        heft_session *session = open_session(model, 0);
        const heft_pass_shape step = {.kept = 5, .encoded = 4}, later = {.kept = 9, .encoded = 4},
                              pair = {.kept = 5, .encoded = 4, .sequences = 2},
                              input = {.tokens = 6, .encoded = 4};
        const heft_prediction one = predict(session, step, name),
                              two = predict(session, pair, name),
                              far = predict(session, later, name),
                              many = predict(session, input, name);
        assert_true(one.continues);
        assert_int_equal(one.read_bytes, 0); /* all is in memory */
        assert_int_equal(one.ready_bytes, 0);
        assert_true(one.disk_rate == 0 && one.bound != HEFT_BOUND_DISK);
        assert_int_equal(one.passes, 1);
        assert_true(one.operations > 0 && one.weight_bytes > 0);
        assert_true(one.weight_bytes <= heft_model_bytes(model));
        assert_int_equal(two.operations, 2 * one.operations);
        assert_true(two.weight_bytes >= one.weight_bytes);
        assert_true(two.cache_bytes == 2 * one.cache_bytes);
        assert_true(far.operations >= one.operations); /* a window ends both */
        assert_true(far.cache_bytes >= one.cache_bytes);
        assert_true(many.operations > 3 * one.operations);
        heft_session_free(session);
        heft_model_free(model);
    }
}

static void an_encoder_has_no_further_tokens(void **state)
{
    (void)state;
    heft_model *model = open_model(ctx, "bert_mlm", false);
    heft_session *session = open_session(model, 0);
    const heft_pass_shape input = {.tokens = 6}, pair = {.tokens = 6, .sequences = 2};
    const heft_prediction one = predict(session, input, "one"), two = predict(session, pair, "two");
    assert_false(one.continues);
    assert_int_equal(two.operations, 2 * one.operations);
    heft_session_free(session);
    heft_model_free(model);
}

static void long_inputs_are_several_passes(void **state)
{
    static const struct {
        uint64_t sequences, tokens, pass_tokens, passes;
    } rows[] = {
        {1,          10, 4,   3         },
        {1,          12, 4,   3         },
        {2,          10, 4,   6         },
        {5,          3,  7,   3         }, /* two sequences each, and one */
        {5,          3,  512, 1         },
        {3,          1,  2,   2         },
        {2000000000, 20, 8,   6000000000}, /* counted, not tried */
    };
    (void)state;
    heft_model *model = open_model(ctx, "llama_gqa", false);
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        heft_session *session = NULL;
        heft_error err = {0};
        const heft_session_options options =
            HEFT_OPTIONS(heft_session_options, .pass_tokens = rows[r].pass_tokens);
        test_expect_status(heft_session_new(model, &options, &session, &err), HEFT_OK, &err, "new");
        const heft_pass_shape shape = {.sequences = rows[r].sequences, .tokens = rows[r].tokens};
        const heft_prediction p = predict(session, shape, "passes");
        if (p.passes != rows[r].passes) {
            fail_msg("row %zu: %llu passes, expected %llu", r, (unsigned long long)p.passes,
                     (unsigned long long)rows[r].passes);
        }
        heft_session_free(session);
    }
    heft_model_free(model);
}

/* What a session reads for one more token, over the next eight. */
static uint64_t read_by_a_step(heft_session *session, heft_sequence *sequence)
{
    static const char *const wanted[] = {"logits"};
    const int32_t ids[] = {5};
    const heft_input input = HEFT_OPTIONS(heft_input, .sequence = sequence, .ids = ids, .count = 1);
    heft_session_counts counts = HEFT_SIZED(heft_session_counts);
    heft_error err = {0};
    test_expect_status(heft_session_facts(session, &counts, &err), HEFT_OK, &err, "facts");
    const uint64_t before = counts.read_bytes;
    for (int i = 0; i < 8; i++) {
        test_expect_status(heft_session_run(session, &input, 1, wanted, 1, &err), HEFT_OK, &err,
                           "step");
    }
    test_expect_status(heft_session_facts(session, &counts, &err), HEFT_OK, &err, "facts");
    return (counts.read_bytes - before) / 8;
}

/* The least of five spans: where processors are busy, the reader gets units that an expert then pushes out. */
static uint64_t least_read_by_a_step(heft_session *session, heft_sequence *sequence)
{
    uint64_t least = UINT64_MAX;
    (void)read_by_a_step(session, sequence); /* until it is steady */
    for (size_t i = 0; i < 5; i++) {
        const uint64_t read = read_by_a_step(session, sequence);
        least = read < least ? read : least;
    }
    return least;
}

/* A budget in which this share of a model's weights fits beside the rest. */
static uint64_t budget_for(const heft_model *model, double share)
{
    heft_session *session = open_session(model, 0);
    const heft_prediction p = predict(session, (heft_pass_shape){.kept = 59}, "without a maximum");
    heft_session_free(session);
    return p.peak_bytes - p.ready_bytes + (uint64_t)(share * (double)p.ready_bytes);
}

static void what_is_read_is_predicted(void **state)
{
    static const struct {
        const char *name;
        double share; /* of the weights that fit; 0: there is no maximum */
        double off;   /* of all bytes at most, as the reader goes a unit further */
        bool experts; /* tokens choose */
    } rows[] = {
        {"llama_gqa", 0,   0,   false},
        {"llama_gqa", 0.5, 0.2, false},
        {"llama_gqa", 0.8, 0.2, false},
        {"gpt_neox",  0,   0,   false},
        {"gpt_neox",  0.7, 0.2, false},
        {"mixtral",   0,   0,   true },
        {"mixtral",   0.3, 0.3, true },
    };
    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        heft_model *model = open_model(ctx, rows[r].name, true);
        const uint64_t budget = rows[r].share > 0 ? budget_for(model, rows[r].share) : 0;
        heft_session *session = open_session(model, budget);
        heft_sequence *sequence = NULL;
        heft_error err = {0};
        const heft_pass_shape shape = {.kept = 15};
        const heft_prediction p = predict(session, shape, rows[r].name);
        test_expect_status(heft_sequence_new(session, 60, 0, &sequence, &err), HEFT_OK, &err,
                           "sequence");
        const uint64_t read = least_read_by_a_step(session, sequence);
        const uint64_t all = heft_model_bytes(model);
        assert_true(p.disk_rate > 0);
        if (budget == 0) { /* rows of the embedding aside */
            assert_true(p.read_bytes < all / 10);
            assert_int_equal(read, 0);
            assert_true(p.ready_bytes > all / 2 && p.ready_bytes <= all);
        } else {
            assert_true(p.peak_bytes <= budget);
            assert_true(p.read_bytes > 0);
            const double off = (double)read - (double)p.read_bytes;
            const bool any_more = rows[r].experts; /* on a busy machine, without a bound */
            if (off < -rows[r].off * (double)all ||
                (off > rows[r].off * (double)all && !any_more)) {
                fail_msg("row %zu: %llu bytes are read, %llu predicted", r,
                         (unsigned long long)read, (unsigned long long)p.read_bytes);
            }
        }
        heft_sequence_free(sequence);
        heft_session_free(session);
        heft_model_free(model);
    }
}

static void a_session_is_as_before(void **state)
{
    heft_session_counts before = HEFT_SIZED(heft_session_counts), after = before;
    heft_error err = {0};
    (void)state;
    heft_model *model = open_model(ctx, "llama_gqa", true);
    heft_session *session = open_session(model, 0);
    test_expect_status(heft_session_facts(session, &before, &err), HEFT_OK, &err, "facts");
    (void)predict(session, (heft_pass_shape){.tokens = 9, .sequences = 7}, "many");
    test_expect_status(heft_session_facts(session, &after, &err), HEFT_OK, &err, "facts");
    assert_memory_equal(&before, &after, sizeof before);
    heft_session_free(session);
    heft_model_free(model);
}

static void what_cannot_be_is_refused(void **state)
{
    heft_model *model = open_model(ctx, "llama_gqa", true);
    heft_session *session = open_session(model, budget_for(model, 0.8));
    heft_prediction p = HEFT_SIZED(heft_prediction);
    heft_error err = {0};
    (void)state;
    const struct {
        heft_pass_shape shape;
        heft_status status;
    } rows[] = {
        {HEFT_OPTIONS(heft_pass_shape, .tokens = UINT64_MAX),    HEFT_INVALID_ARG},
        {HEFT_OPTIONS(heft_pass_shape,                            .kept = UINT64_MAX),                         HEFT_INVALID_ARG},
        {HEFT_OPTIONS(heft_pass_shape,            .sequences = UINT64_MAX),            HEFT_INVALID_ARG},
        {HEFT_OPTIONS(heft_pass_shape,.tokens = 5000),HEFT_INVALID_ARG},
        {HEFT_OPTIONS(heft_pass_shape, .sequences = 100000,                  .kept = 15), HEFT_LIMIT},
        {(heft_pass_shape){0},                            HEFT_INVALID_ARG                        },
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        char label[40];
        snprintf(label, sizeof label, "row %zu", r);
        test_expect_status(heft_session_predict(session, &rows[r].shape, &p, &err), rows[r].status,
                           &err, label);
    }
    test_expect_status(heft_session_predict(NULL, NULL, &p, &err), HEFT_INVALID_ARG, &err, "NULL");
    test_expect_status(heft_session_predict(session, NULL, NULL, &err), HEFT_INVALID_ARG, &err,
                       "NULL");
    test_expect_status(heft_session_predict(session, NULL, &p, &err), HEFT_OK, &err,
                       "nothing broke");
    heft_session_free(session);
    heft_model_free(model);
}

/* Allocation n fails: NOMEM, nothing leaked. With known rates all of a prediction is tried, without them what
 * measuring adds. */
static void sweep(bool known)
{
    for (long fail_at = 0, ended = 0; !ended; fail_at++) {
        test_heap heap = {.fail_at = -1};
        heft_ctx *with = test_ctx_new(&heap);
        heft_model *model = open_model(with, "llama_gqa", true);
        heft_session *session = open_session(model, 0);
        heft_prediction p = HEFT_SIZED(heft_prediction);
        heft_error err = {0};
        if (known) {
            session->rates = simple_rates();
        }
        heap.fail_at = heap.count + fail_at;
        const heft_status status = heft_session_predict(session, NULL, &p, &err);
        ended =
            (status == HEFT_OK && heap.count <= heap.fail_at) || (!known && session->rates.known);
        assert_true(status == HEFT_OK || status == HEFT_NOMEM);
        heap.fail_at = -1;
        heft_session_free(session);
        heft_model_free(model);
        heft_ctx_free(with);
        assert_int_equal(heap.blocks, 0);
    }
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    sweep(true);
    sweep(false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(seconds_of_a_pass),
        cmocka_unit_test(small_products_take_longer),
        cmocka_unit_test(products_have_forms),
        cmocka_unit_test(units_that_a_pass_reads),
        cmocka_unit_test(experts_that_a_pass_reads),
        cmocka_unit_test(experts_take_room_from_the_schedule),
        cmocka_unit_test(products_are_split_over_the_knots),
        cmocka_unit_test(attention_counts_what_it_sees),
        cmocka_unit_test(tokens_are_expected_to_spread_over_experts),
        cmocka_unit_test(each_family_is_counted),
        cmocka_unit_test(an_encoder_has_no_further_tokens),
        cmocka_unit_test(long_inputs_are_several_passes),
        cmocka_unit_test(what_is_read_is_predicted),
        cmocka_unit_test(a_session_is_as_before),
        cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
