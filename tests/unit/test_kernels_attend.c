/* test_kernels_attend.c - attention of every instruction set that this CPU has, compared with the
 * reference. */
#include "support_kernels.h"

#include <math.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum {
    BOTH = 1, /* not causal */
    SLOPES = 2,
    SINKS = 4,
    HOLES = 8,           /* some keys have negative positions, with NaN values */
    RING = 16,           /* keys begin in the middle */
    ALIASED = 32,        /* values are the first elements of keys */
    COARSE = 64 | SLOPES /* slopes, rounded for each key */
};

struct attention_case {
    const char *name;
    size_t heads, kv_heads, key_width, value_width, queries, keys;
    heft_dtype dtype;
    float cap;
    int32_t window;
    int32_t reach; /* of a bias; 0: none */
    int32_t begin; /* position of the first query, -1: the queries are the last keys */
    int flags;
};

#define F32 HEFT_DTYPE_F32
#define BF16 HEFT_DTYPE_BF16
#define F16 HEFT_DTYPE_F16

static const struct attention_case cases[] = {
    {"one_key",               1,  1,  8,   8,   1,   1,    F32,  0, 0,   0,  -1,  0                     },
    {"decode_group_of_8",     8,  1,  64,  64,  1,   300,  BF16, 0, 0,   0,  -1,  0                     },
    {"decode_one_head_each",  3,  3,  64,  64,  1,   129,  F16,  0, 0,   0,  -1,  0                     },
    {"decode_f32_wide",       4,  2,  256, 256, 1,   65,   F32,  0, 0,   0,  -1,  0                     },
    {"decode_group_of_2",     4,  2,  80,  80,  1,   141,  BF16, 0, 0,   0,  -1,  0                     },
    {"decode_group_of_3",     6,  2,  40,  24,  1,   203,  F16,  0, 0,   0,  -1,  0                     },
    {"decode_two_tokens",     6,  2,  64,  64,  2,   192,  BF16, 0, 0,   0,  -1,  0                     },
    {"decode_many_keys",      4,  1,  32,  32,  1,   5000, BF16, 0, 0,   0,  -1,  0                     },
    {"prefill",               8,  2,  64,  64,  100, 100,  BF16, 0, 0,   0,  -1,  0                     },
    {"prefill_after_a_cache", 4,  4,  48,  48,  33,  190,  F16,  0, 0,   0,  -1,  0                     },
    {"both_ways",             12, 12, 64,  64,  77,  77,   F32,  0, 0,   0,  0,   BOTH                  },
    {"cross",                 6,  6,  64,  64,  5,   150,  F32,  0, 0,   0,  0,   BOTH                  },
    {"odd_widths",            3,  1,  37,  19,  21,  70,   BF16, 0, 0,   0,  -1,  0                     },
    {"width_1",               2,  1,  1,   1,   3,   9,    F16,  0, 0,   0,  -1,  0                     },
    {"window",                4,  2,  32,  32,  150, 150,  BF16, 0, 20,  0,  -1,  0                     },
    {"window_of_1",           2,  2,  16,  16,  70,  70,   F32,  0, 1,   0,  -1,  0                     },
    {"window_both_ways",      2,  2,  16,  16,  90,  90,   F32,  0, 9,   0,  0,   BOTH                  },
    {"window_decode",         4,  1,  32,  32,  1,   700,  BF16, 0, 100, 0,  -1,  0                     },
    {"ring",                  4,  1,  32,  32,  2,   200,  BF16, 0, 190, 0,  -1,  RING                  },
    {"holes",                 4,  2,  40,  40,  30,  140,  BF16, 0, 0,   0,  -1,  HOLES                 },
    {"holes_both_ways_f32",   2,  2,  64,  64,  30,  30,   F32,  0, 0,   0,  0,   BOTH | HOLES          },
    {"decode_holes",          2,  1,  64,  64,  1,   100,  F16,  0, 0,   0,  -1,  HOLES                 },
    {"no_keys_seen",          2,  1,  16,  16,  4,   30,   F32,  0, 2,   0,  500, 0                     },
    {"no_keys_seen_sinks",    2,  1,  16,  16,  4,   30,   F32,  0, 2,   0,  500, SINKS                 },
    {"no_keys",               2,  1,  16,  16,  4,   0,    F32,  0, 0,   0,  0,   0                     },
    {"slopes",                8,  8,  32,  32,  90,  90,   F32,  0, 0,   0,  -1,  SLOPES                },
    {"slopes_decode",         4,  4,  32,  32,  1,   90,   BF16, 0, 0,   0,  -1,  SLOPES                },
    {"coarse_slopes",         8,  8,  32,  32,  90,  390,  F32,  0, 0,   0,  -1,  COARSE                },
    {"coarse_slopes_decode",  8,  1,  32,  32,  1,   700,  BF16, 0, 0,   0,  -1,  COARSE                },
    {"coarse_slopes_holes",   3,  3,  16,  16,  30,  330,  F32,  0, 0,   0,  0,   COARSE | BOTH | HOLES },
    {"bias",                  4,  4,  16,  16,  80,  80,   F32,  0, 0,   25, 0,   BOTH                  },
    {"bias_decode",           4,  2,  16,  16,  1,   80,   F32,  0, 0,   5,  -1,  0                     },
    {"cap",                   4,  2,  64,  64,  40,  70,   BF16, 2, 0,   0,  -1,  0                     },
    {"cap_decode",            4,  2,  64,  64,  1,   70,   BF16, 2, 0,   0,  -1,  0                     },
    {"sinks",                 8,  2,  64,  64,  70,  70,   BF16, 0, 30,  0,  -1,  SINKS                 },
    {"sinks_decode",          8,  2,  64,  64,  1,   70,   BF16, 0, 0,   0,  -1,  SINKS                 },
    {"everything",            6,  3,  24,  40,  66,  200,  F16,  5, 77,  30, -1,  SLOPES | SINKS | HOLES},
    {"latent",                20, 1,  72,  64,  7,   100,  BF16, 0, 0,   0,  -1,  ALIASED               },
    {"latent_decode",         16, 1,  576, 512, 1,   100,  BF16, 0, 0,   0,  -1,  ALIASED               },
};

#undef F32
#undef BF16
#undef F16

struct attending {
    heft__attention a;
    heft__queries queries;
    heft__keys keys;
    heft__key_page page; /* of all keys */
    test_guarded q, k, v, at_keys, at_queries, slopes, sinks, bias;
};

static test_guarded random_floats(size_t count, float by, uint64_t *state)
{
    test_guarded made = test_guarded_new(count * sizeof(float), 1);
    for (size_t i = 0; i < count; i++) {
        ((float *)made.data)[i] = by * test_uniform(state);
    }
    return made;
}

static test_guarded random_cache(const struct attention_case *c, size_t width, size_t *stride,
                                 size_t *head, uint64_t *state)
{
    *stride = width + 3;
    *head = c->keys * *stride + 5;
    const size_t count = c->keys ? (c->kv_heads - 1) * *head + (c->keys - 1) * *stride + width : 0;
    test_guarded made = test_guarded_new(count * test_dtype_bytes(c->dtype), 1);
    for (size_t h = 0; h < c->kv_heads; h++) {
        for (size_t j = 0; j < c->keys; j++) {
            for (size_t e = 0; e < width; e++) {
                test_put(made.data, c->dtype, h * *head + j * *stride + e, test_uniform(state));
            }
        }
    }
    return made;
}

static void punch_holes(struct attending *t, const struct attention_case *c)
{
    for (size_t j = 0; (c->flags & HOLES) && j < c->keys; j += j % 3 + 2) {
        ((int32_t *)t->at_keys.data)[j] = -1;
        for (size_t h = 0; h < c->kv_heads; h++) {
            test_put(t->v.data, c->dtype, h * t->keys.value_head + j * t->keys.value_stride, NAN);
            test_put(t->k.data, c->dtype, h * t->keys.key_head + j * t->keys.key_stride, INFINITY);
        }
    }
}

static void attending_begin(struct attending *t, const struct attention_case *c)
{
    uint64_t state = 99 + c->keys;
    memset(t, 0, sizeof *t);
    t->q = random_floats(c->queries * (c->heads * c->key_width + 2), 3.0F, &state);
    t->k = random_cache(c, c->key_width, &t->keys.key_stride, &t->keys.key_head, &state);
    t->v = random_cache(c, c->value_width, &t->keys.value_stride, &t->keys.value_head, &state);
    t->at_keys = test_guarded_new(c->keys * sizeof(int32_t), 1);
    t->at_queries = test_guarded_new(c->queries * sizeof(int32_t), 1);
    for (size_t j = 0; j < c->keys; j++) {
        ((int32_t *)t->at_keys.data)[j] =
            (int32_t)((c->flags & RING) ? (j + c->keys / 3) % c->keys : j);
    }
    for (size_t i = 0; i < c->queries; i++) {
        ((int32_t *)t->at_queries.data)[i] =
            (int32_t)i + (c->begin < 0 ? (int32_t)(c->keys - c->queries) : c->begin);
    }
    t->slopes = random_floats(c->heads, 0.3F, &state);
    t->sinks = random_floats(c->heads, 2.0F, &state);
    t->bias = random_floats(c->heads * (2 * (size_t)c->reach + 1), 2.0F, &state);
    t->a = (heft__attention){.heads = c->heads,
                             .kv_heads = c->kv_heads,
                             .key_width = c->key_width,
                             .value_width = c->value_width,
                             .scale = 1.0F / sqrtf((float)c->key_width),
                             .cap = c->cap,
                             .causal = (c->flags & BOTH) == 0,
                             .window = c->window,
                             .slopes = (c->flags & SLOPES) ? t->slopes.data : NULL,
                             .coarse = (c->flags & COARSE) == COARSE ? 0.4F : 0,
                             .sinks = (c->flags & SINKS) ? t->sinks.data : NULL,
                             .bias = c->reach ? t->bias.data : NULL,
                             .bias_reach = c->reach};
    t->page = (heft__key_page){t->k.data, t->v.data, t->at_keys.data};
    t->keys.pages = &t->page, t->keys.page_keys = c->keys + 1;
    t->keys.dtype = c->dtype, t->keys.count = c->keys;
    punch_holes(t, c);
    if (c->flags & ALIASED) {
        t->page.values = t->k.data;
        t->keys.value_head = t->keys.key_head, t->keys.value_stride = t->keys.key_stride;
    }
    t->queries.q = t->q.data, t->queries.q_stride = c->heads * c->key_width + 2;
    t->queries.count = c->queries, t->queries.at = t->at_queries.data;
    t->queries.out_stride = c->heads * c->value_width + 1;
}

static void attending_end(struct attending *t)
{
    test_guarded *all[] = {&t->q,          &t->k,      &t->v,     &t->at_keys,
                           &t->at_queries, &t->slopes, &t->sinks, &t->bias};
    for (size_t i = 0; i < COUNT(all); i++) {
        test_guarded_free(all[i]);
    }
}

/* All heads and queries, in ranges of `step` queries; 0: at once. */
static test_guarded attending_run(struct attending *t, const heft__kernels *k, size_t step)
{
    const size_t stride = t->queries.out_stride, count = t->queries.count;
    test_guarded out = test_guarded_new((count * stride - 1) * sizeof(float), 1);
    test_guarded scratch = test_guarded_new(k->attend_scratch(&t->a, t->keys.count), 64);
    t->queries.out = out.data;
    step = step ? step : count;
    for (size_t head = 0; head < t->a.kv_heads; head++) {
        for (size_t first = 0; first < count; first += step) {
            const size_t last = count - first < step ? count : first + step;
            k->attend(&t->a, &t->queries, &t->keys, head, first, last, scratch.data);
        }
    }
    test_guarded_free(&scratch);
    return out;
}

/* ---- pages ---------------------------------------------------------------------------------------- */
#define MOST_PAGES 80

/* Keys, or values, first .. first + count - 1 of all heads; nothing behind the last one can be read. */
static test_guarded part_of(const void *from, heft_dtype dtype, const struct attention_case *c,
                            const size_t whole[2], const size_t page[2], size_t first, size_t count,
                            size_t width)
{
    const size_t size = test_dtype_bytes(dtype);
    const size_t elems = (c->kv_heads - 1) * page[0] + (count - 1) * page[1] + width;
    test_guarded made = test_guarded_new(elems * size, 1);
    for (size_t h = 0; h < c->kv_heads; h++) {
        for (size_t j = 0; j < count; j++) {
            memcpy((char *)made.data + (h * page[0] + j * page[1]) * size,
                   (const char *)from + (h * whole[0] + (first + j) * whole[1]) * size,
                   width * size);
        }
    }
    return made;
}

/* The same keys in pages, each by itself in memory, give the same bits. */
static void check_pages(struct attending *t, const heft__kernels *k, const struct attention_case *c,
                        size_t page_keys, const test_guarded *expected)
{
    const heft__keys whole = t->keys;
    const size_t whole_key[] = {whole.key_head, whole.key_stride};
    const size_t whole_value[] = {whole.value_head, whole.value_stride};
    const size_t key[] = {page_keys * (c->key_width + 1), c->key_width + 1};
    const size_t value[] = {page_keys * c->value_width + 3, c->value_width};
    test_guarded keys[MOST_PAGES], values[MOST_PAGES];
    heft__key_page pages[MOST_PAGES];
    size_t count = 0;
    for (size_t j = 0; j < c->keys; j += page_keys, count++) {
        const size_t some = c->keys - j < page_keys ? c->keys - j : page_keys;
        assert_true(count < MOST_PAGES);
        keys[count] = part_of(t->page.keys, c->dtype, c, whole_key, key, j, some, c->key_width);
        values[count] =
            part_of(t->page.values, c->dtype, c, whole_value, value, j, some, c->value_width);
        pages[count] = (heft__key_page){keys[count].data, values[count].data, t->page.at + j};
    }
    t->keys = (heft__keys){pages, page_keys, c->dtype, key[0], value[0], key[1], value[1], c->keys};
    test_guarded found = attending_run(t, k, 0);
    const size_t width = c->heads * c->value_width;
    for (size_t i = 0; i < c->queries; i++) {
        if (memcmp((float *)found.data + i * (width + 1), (float *)expected->data + i * (width + 1),
                   width * sizeof(float)) != 0) {
            fail_msg("%s %s: pages of %zu keys give other bits", k->isa, c->name, page_keys);
        }
    }
    test_guarded_free(&found);
    for (size_t i = 0; i < count; i++) {
        test_guarded_free(&keys[i]);
        test_guarded_free(&values[i]);
    }
    t->keys = whole;
}

static void check_case(const heft__kernels *k, const struct attention_case *c)
{
    struct attending t;
    attending_begin(&t, c);
    test_guarded expected = attending_run(&t, &heft__kernels_reference, 0);
    test_guarded whole = attending_run(&t, k, 0);
    const size_t width = c->heads * c->value_width;
    for (size_t i = 0; i < c->queries; i++) {
        for (size_t e = 0; e < width; e++) {
            const double is = (double)((float *)whole.data)[i * (width + 1) + e];
            const double should = (double)((float *)expected.data)[i * (width + 1) + e];
            if (!(fabs(is - should) < 4e-6)) {
                fail_msg("%s %s: query %zu element %zu is %.9g, should be %.9g", k->isa, c->name, i,
                         e, is, should);
            }
        }
        assert_true(i + 1 == c->queries || isnan(((float *)whole.data)[i * (width + 1) + width]));
    }
    static const size_t steps[] = {1, 3, 16, 50};
    for (size_t s = 0; s < COUNT(steps); s++) {
        test_guarded cut = attending_run(&t, k, steps[s]);
        for (size_t i = 0; i < c->queries; i++) {
            if (memcmp((float *)cut.data + i * (width + 1), (float *)whole.data + i * (width + 1),
                       width * sizeof(float)) != 0) {
                fail_msg("%s %s: ranges of %zu queries give other bits", k->isa, c->name, steps[s]);
            }
        }
        test_guarded_free(&cut);
    }
    check_pages(&t, k, c, HEFT__BLOCK_KEYS, &whole);
    check_pages(&t, k, c, 3 * HEFT__BLOCK_KEYS, &whole);
    test_guarded_free(&whole);
    test_guarded_free(&expected);
    attending_end(&t);
}

static void check_cases(const heft__kernels *k)
{
    for (size_t i = 0; i < COUNT(cases); i++) {
        check_case(k, &cases[i]);
    }
}

static void attention_matches_the_reference(void **state)
{
    (void)state;
    test_each_isa(check_cases);
}

/* Scores of thousands: an exponential of one would overflow, of the others it underflows. */
static void check_large(const heft__kernels *k)
{
    static const size_t queries[] = {1, 40};
    for (size_t i = 0; i < COUNT(queries); i++) {
        const struct attention_case c = {.name = "large",
                                         .heads = 4,
                                         .kv_heads = 1,
                                         .key_width = 32,
                                         .value_width = 32,
                                         .queries = queries[i],
                                         .keys = 300,
                                         .dtype = HEFT_DTYPE_F32,
                                         .begin = -1};
        struct attending t;
        attending_begin(&t, &c);
        t.a.scale = 1e4F;
        test_guarded expected = attending_run(&t, &heft__kernels_reference, 0);
        test_guarded is = attending_run(&t, k, 0);
        for (size_t e = 0; e < queries[i] * 129 - 1; e++) {
            if (e % 129 != 128) {
                assert_float_equal(((float *)is.data)[e], ((float *)expected.data)[e], 0.05);
            }
        }
        test_guarded_free(&is);
        test_guarded_free(&expected);
        attending_end(&t);
    }
}

static void large_scores_are_sound(void **state)
{
    (void)state;
    test_each_isa(check_large);
}

/* An infinite value reaches the queries that see it, and no others. */
static void check_infinite(const heft__kernels *k)
{
    const struct attention_case c = {.name = "infinite",
                                     .heads = 4,
                                     .kv_heads = 2,
                                     .key_width = 16,
                                     .value_width = 16,
                                     .queries = 50,
                                     .keys = 50,
                                     .dtype = HEFT_DTYPE_BF16,
                                     .begin = -1};
    struct attending t;
    attending_begin(&t, &c);
    test_put(t.v.data, c.dtype, 30 * t.keys.value_stride + 2, INFINITY);
    test_guarded out = attending_run(&t, k, 0);
    for (size_t i = 0; i < c.queries; i++) {
        for (size_t e = 0; e < 64; e++) {
            const bool reached = i >= 30 && e % 16 == 2 && e < 32;
            assert_int_equal(isfinite(((float *)out.data)[i * 65 + e]) == 0, reached);
        }
    }
    test_guarded_free(&out);
    attending_end(&t);
}

static void infinite_values_reach_who_sees_them(void **state)
{
    (void)state;
    test_each_isa(check_infinite);
    check_infinite(&heft__kernels_reference);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_matches_the_reference),
        cmocka_unit_test(large_scores_are_sound),
        cmocka_unit_test(infinite_values_reach_who_sees_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
