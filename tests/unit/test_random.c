/* test_random.c - random numbers: known answers, independence of how they are split into pieces, and their
 * distributions.
 *
 * Seeds are fixed, so a test that passes once passes always. Bounds of the statistical ones are
 * five standard errors, or a Kolmogorov-Smirnov distance with a chance of 1 in 1000. */
#include "tensor/lanes.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define MANY ((size_t)1 << 22)

static const heft__random test_random = {UINT64_C(1234), UINT64_C(0xfeedfacecafebeef)};

static float *floats(size_t count)
{
    float *block = malloc(count * sizeof *block);
    assert_non_null(block);
    return block;
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a;
    float y = *(const float *)b;
    return (x > y) - (x < y);
}

/* ---- known answers ------------------------------------------------------------------------ */
static void philox_known_answers(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t block, stream, seed; /* low word first */
        uint32_t want[4];
    } rows[] = {
  /* Random123, kat_vectors, philox4x32 10 */
        {"zeros",        0,            0,          0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {"ones",
         UINT64_MAX,                   UINT64_MAX,
         UINT64_MAX,                                  {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {"digits_of_pi",
         UINT64_C(0x85a308d3243f6a88),
         UINT64_C(0x0370734413198a2e),
         UINT64_C(0x299f31d0a4093822),
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}                                             },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (int level = 0; level < HEFT__LEVEL_COUNT; level++) {
            if (!heft__lanes_force(level)) {
                continue;
            }
            heft__random random = {rows[i].seed, rows[i].stream};
            uint64_t blocks[HEFT__RANDOM_BLOCKS];
            uint32_t got[4 * HEFT__RANDOM_BLOCKS];
            for (size_t k = 0; k < HEFT__RANDOM_BLOCKS; k++) {
                blocks[k] = k % 3 == 0 ? rows[i].block : k;
            }
            heft__random_lanes()->bits(&random, blocks, HEFT__RANDOM_BLOCKS, got);
            for (size_t k = 0; k < HEFT__RANDOM_BLOCKS; k += 3) {
                if (memcmp(got + 4 * k, rows[i].want, sizeof rows[i].want) != 0) {
                    fail_msg("%s, level %d, block %zu: %08x", rows[i].name, level, k, got[4 * k]);
                }
            }
        }
    }
    heft__lanes_force(-1);
}

/* These never change: a model initialized today and in a later version must be the same. */
static void values_are_pinned(void **state)
{
    (void)state;
    static const char name[] = "encoder.layer.0.attention.self.query.weight";
    heft__random random = {42, heft__stable_hash(name, sizeof name - 1)};
    static const uint32_t normal[] = {0xba636934, 0x3d22f62e, 0x3b543985,
                                      0x3c39c1fe, 0x3c2e65d7, 0xbb57fedd};
    static const uint32_t uniform[] = {0xbdd2cca0, 0xbecb9968, 0xbefb095a,
                                       0x3d5e8af0, 0xbed1ed54, 0x3d303ac0};
    static const uint32_t trunc[] = {0xbd31aa31, 0x3e1e4eb7, 0x3e25ccf0,
                                     0x3dc07a5b, 0x3ea5afa1, 0xbe28bf1d};
    float got[6];
    heft__random_normal(&random, 0.0f, 0.02f, 1000003, got, COUNT(got));
    assert_memory_equal(got, normal, sizeof normal);
    heft__random_uniform(&random, -0.5f, 0.25f, 1000003, got, COUNT(got));
    assert_memory_equal(got, uniform, sizeof uniform);
    heft__random_trunc_normal(&random, 0.0f, 1.0f, -0.25f, 0.5f, 1000003, got, COUNT(got));
    assert_memory_equal(got, trunc, sizeof trunc);

    enum { ELEMS = 1 << 16 };
    float *many = floats(ELEMS);
    uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a over the bits, one float at a time */
    heft__random_normal(&random, 0.0f, 1.0f, 0, many, ELEMS);
    for (size_t i = 0; i < ELEMS; i++) {
        uint32_t bits;
        memcpy(&bits, &many[i], sizeof bits);
        hash = (hash ^ bits) * UINT64_C(0x100000001b3);
    }
    free(many);
    if (hash != UINT64_C(0x4a7799273f0ba1ac)) {
        fail_msg("hash of the normals is %016llx", (unsigned long long)hash);
    }
}

/* Box and Muller in double precision on the same words. */
static void normals_are_right_to_a_few_places(void **state)
{
    (void)state;
    const size_t count = 1 << 18;
    float *got = floats(count);
    double worst = 0;
    heft__random_normal(&test_random, 0.0f, 1.0f, 0, got, count);
    for (uint64_t block = 0; block < count / 4; block++) {
        uint32_t words[4];
        heft__random_lanes()->bits(&test_random, &block, 1, words);
        for (size_t i = 0; i < 4; i++) {
            const double turn = 2 * 3.14159265358979323846 * ldexp(words[i | 1], -32);
            const double radius = sqrt(-2 * log(ldexp(words[i & 2] + 0.5, -32)));
            const double want = radius * (i % 2 == 0 ? cos(turn) : sin(turn));
            /* Near a radius of 0 the 24 bits of u are what limits: 1 - u is a multiple of 2^-24. */
            const double unit = ldexp(radius + 0.25 / (radius + 1e-3), -24);
            double off = fabs((double)got[4 * block + i] - want) / unit;
            worst = off > worst ? off : worst;
        }
    }
    if (worst > 4) {
        fail_msg("off by %f units", worst);
    }
    free(got);
}

static void logarithm_is_right_to_a_few_places(void **state)
{
    (void)state;
    for (int exponent = -33; exponent < 0; exponent++) {
        float x[1000];
        float y[1000];
        for (size_t i = 0; i < COUNT(x); i++) {
            x[i] = ldexpf(1.0f + (float)i / 1000.0f, exponent);
        }
        memcpy(y, x, sizeof x);
        heft__random_lanes()->log(y, COUNT(y));
        for (size_t i = 0; i < COUNT(x); i++) {
            double want = log((double)x[i]);
            double off = fabs((double)y[i] - want) / (fabs(want) * ldexp(1, -24));
            if (off > 3) {
                fail_msg("ln %a is %a, off by %f", (double)x[i], (double)y[i], off);
            }
        }
    }
    float edge[] = {1.0f, 0x1p-33f};
    heft__random_lanes()->log(edge, 2);
    assert_true(edge[0] <= 0 && edge[0] >= 0);
    assert_true(sqrt(-2 * (double)edge[1]) > 6.6); /* the farthest normal */
}

/* ---- pieces ------------------------------------------------------------------------------- */
enum kind { NORMAL, UNIFORM, TRUNC, TRUNC_TAIL, KINDS };

static void draw(enum kind kind, const heft__random *random, uint64_t first, float *dst,
                 size_t count)
{
    if (kind == NORMAL) {
        heft__random_normal(random, 0.5f, 2.0f, first, dst, count);
    } else if (kind == UNIFORM) {
        heft__random_uniform(random, -3.0f, 5.0f, first, dst, count);
    } else if (kind == TRUNC) {
        heft__random_trunc_normal(random, 0.5f, 2.0f, -1.0f, 0.75f, first, dst, count);
    } else {
        heft__random_trunc_normal(random, 0.5f, 2.0f, 5.0f, 100.0f, first, dst, count);
    }
}

static void values_do_not_depend_on_the_cut_or_the_level(void **state)
{
    (void)state;
    enum { ELEMS = 5000 };
    static const size_t steps[] = {1, 2, 3, 4, 5, 7, 64, 1023, 1024, 1025, 4096};
    static const uint64_t starts[] = {0, 1, 2, 3, 1021, UINT64_C(0x3fffffff8), UINT64_C(1) << 40};
    static float want[ELEMS];
    static float got[ELEMS + 1];
    for (int kind = 0; kind < KINDS; kind++) {
        for (size_t s = 0; s < COUNT(starts); s++) {
            heft__lanes_force(HEFT__LEVEL_BASE);
            draw((enum kind)kind, &test_random, starts[s], want, ELEMS);
            heft__lanes_force(-1);
            for (size_t k = 0; k < COUNT(steps); k++) {
                heft__lanes_force((int)(k % HEFT__LEVEL_COUNT)); /* stays as it is if not there */
                got[ELEMS] = 77.0f;
                for (size_t i = 0; i < ELEMS; i += steps[k]) {
                    size_t count = ELEMS - i < steps[k] ? ELEMS - i : steps[k];
                    draw((enum kind)kind, &test_random, starts[s] + i, got + i, count);
                }
                assert_memory_equal(got, want, sizeof want);
                assert_true(got[ELEMS] > 76.0f && got[ELEMS] < 78.0f);
            }
            heft__lanes_force(-1);
        }
        draw((enum kind)kind, &test_random, 5, NULL, 0);
    }
}

static void streams_and_seeds_differ(void **state)
{
    (void)state;
    static const char *const names[] = {
        "", "a", "b", "layer.0.weight", "layer.1.weight", "layer.0.bias"};
    enum { ELEMS = 1000 };
    static float drawn[2 * COUNT(names)][ELEMS];
    for (size_t i = 0; i < 2 * COUNT(names); i++) {
        const char *name = names[i / 2];
        heft__random random = {i % 2, heft__stable_hash(name, strlen(name))};
        heft__random_normal(&random, 0.0f, 1.0f, 0, drawn[i], ELEMS);
        for (size_t k = 0; k < i; k++) {
            size_t equal = 0;
            double product = 0;
            for (size_t e = 0; e < ELEMS; e++) {
                equal += memcmp(&drawn[i][e], &drawn[k][e], sizeof(float)) == 0;
                product += (double)drawn[i][e] * (double)drawn[k][e];
            }
            assert_true(equal <= 1);
            assert_true(fabs(product) < 5 * sqrt(ELEMS));
        }
    }
}

/* ---- distributions ------------------------------------------------------------------------ */
static double tail_above(double z)
{
    return 0.5 * erfc(z / sqrt(2));
}

/* Both tails outside of each whole sigma, in standard errors. */
static void check_tails(const float *z, size_t count)
{
    for (int sigma = 1; sigma <= 4; sigma++) {
        size_t outside = 0;
        for (size_t i = 0; i < count; i++) {
            outside += fabsf(z[i]) > (float)sigma;
        }
        double p = 2 * tail_above(sigma);
        double n = (double)count;
        double off = ((double)outside - n * p) / sqrt(n * p * (1 - p));
        if (fabs(off) > 5) {
            fail_msg("beyond %d sigma: off by %f errors", sigma, off);
        }
    }
}

static void normals_have_the_moments(void **state)
{
    (void)state;
    float *z = floats(MANY);
    const double n = (double)MANY;
    double sum[5] = {0};
    double lagged = 0;
    heft__random_normal(&test_random, 0.0f, 1.0f, 0, z, MANY);
    for (size_t i = 0; i < MANY; i++) {
        double x = (double)z[i];
        sum[1] += x;
        sum[2] += x * x;
        sum[3] += x * x * x;
        sum[4] += x * x * x * x;
        lagged += i > 0 ? x * (double)z[i - 1] : 0;
    }
    const double mean = sum[1] / n;
    const double var = sum[2] / n - mean * mean;
    assert_true(fabs(mean) < 5 / sqrt(n));
    assert_true(fabs(var - 1) < 5 * sqrt(2 / n));
    assert_true(fabs(sum[3] / n) < 5 * sqrt(15 / n));
    assert_true(fabs(sum[4] / n - 3) < 5 * sqrt(96 / n));
    assert_true(fabs(lagged / n) < 5 / sqrt(n));
    check_tails(z, MANY);
    free(z);
}

static void normals_are_scaled(void **state)
{
    (void)state;
    float z[100];
    float y[100];
    heft__random_normal(&test_random, 0.0f, 1.0f, 7, z, COUNT(z));
    heft__random_normal(&test_random, 3.0f, 0.5f, 7, y, COUNT(y));
    for (size_t i = 0; i < COUNT(z); i++) {
        float want = 0.5f * z[i];
        want += 3.0f;
        assert_memory_equal(&y[i], &want, sizeof want);
    }
}

static void uniforms_fill_their_interval(void **state)
{
    (void)state;
    static const struct {
        float low, high;
    } rows[] = {
        {0.0f,   1.0f        },
        {-0.5f,  0.25f       },
        {1.0f,   0x1.00002p0f}, /* sixteen floats: rounding meets the upper end */
        {-1e30f, 1e30f       },
        {0.0f,   0x1p-126f   },
    };
    enum { BINS = 256, SOME = 1 << 20 };
    const double wide = BINS, each = (double)SOME / wide; /* expected in a bin */
    float *u = floats(SOME);
    for (size_t k = 0; k < COUNT(rows); k++) {
        size_t bins[BINS] = {0};
        double low = (double)rows[k].low;
        double range = (double)rows[k].high - low;
        heft__random_uniform(&test_random, rows[k].low, rows[k].high, 0, u, SOME);
        for (size_t i = 0; i < SOME; i++) {
            assert_true(u[i] >= rows[k].low && u[i] < rows[k].high);
            bins[(size_t)(((double)u[i] - low) / range * wide)]++;
        }
        double chi = 0;
        for (size_t i = 0; i < BINS; i++) {
            double off = (double)bins[i] - each;
            chi += off * off / each;
        }
        if (k != 2 && fabs(chi - (wide - 1)) > 5 * sqrt(2 * (wide - 1))) {
            fail_msg("row %zu: chi-square %f", k, chi);
        }
    }
    heft__random_uniform(&test_random, 2.0f, 2.0f, 0, u, 10);
    assert_true(u[0] >= 2.0f && u[9] <= 2.0f);
    free(u);
}

struct trunc_row {
    const char *name;
    float mean, std, low, high;
};

/* Kolmogorov-Smirnov: the largest distance between the two distribution functions. */
static void check_truncated(const struct trunc_row *row, float *x, size_t count)
{
    double mean = (double)row->mean;
    double std = (double)row->std;
    double a = ((double)row->low - mean) / std;
    double b = ((double)row->high - mean) / std;
    double side = a + b > 0 ? 1 : -1; /* differences of tails on the side where they are small */
    double whole = side * (tail_above(side * a) - tail_above(side * b));
    double worst = 0;
    size_t on_bounds = 0;
    size_t repeated = 0;
    qsort(x, count, sizeof *x, by_value);
    assert_true(x[0] >= row->low && x[count - 1] <= row->high);
    for (size_t i = 0; i < count; i++) {
        double z = ((double)x[i] - mean) / std;
        double want = side * (tail_above(side * a) - tail_above(side * z)) / whole;
        worst = fmax(worst, fabs(want - ((double)i + 0.5) / (double)count));
        on_bounds += x[i] <= row->low || x[i] >= row->high;
        repeated += i >= 8 && x[i] <= x[i - 8]; /* nine times the same value */
    }
    if (worst * sqrt((double)count) > 1.95 || on_bounds > 8 || repeated > 0) {
        fail_msg("%s: distance %f, %zu on the bounds, %zu repeated", row->name,
                 worst * sqrt((double)count), on_bounds, repeated);
    }
}

static void truncated_normals_have_the_distribution(void **state)
{
    (void)state;
    static const struct trunc_row rows[] = {
        {"two_sigma",             0.0f, 1.0f,  -2.0f,     2.0f    },
        {"initializer_range",     0.0f, 0.02f, -2.0f,     2.0f    },
        {"initializer_two_sigma", 0.0f, 0.02f, -0.04f,    0.04f   },
        {"one_side",              0.0f, 1.0f,  0.0f,      INFINITY},
        {"no_bounds",             1.0f, 2.0f,  -INFINITY, INFINITY},
        {"least_likely_redraw",   0.0f, 1.0f,  1.0f,      1.5f    },
        {"narrow",                0.0f, 1.0f,  -0.1f,     0.2f    },
        {"far_interval",          0.0f, 1.0f,  2.0f,      3.0f    },
        {"far_tail",              0.0f, 1.0f,  5.0f,      100.0f  },
        {"far_lower_tail",        1.0f, 2.0f,  -INFINITY, -8.0f   },
        {"very_far_tail",         0.0f, 1.0f,  30.0f,     INFINITY},
        {"lower_interval",        0.0f, 1.0f,  -2.5f,     -1.25f  },
    };
    enum { SOME = 1 << 15 };
    float *x = floats(SOME);
    for (size_t k = 0; k < COUNT(rows); k++) {
        heft__random_trunc_normal(&test_random, rows[k].mean, rows[k].std, rows[k].low,
                                  rows[k].high, 11, x, SOME);
        check_truncated(&rows[k], x, SOME);
    }
    free(x);
}

static void truncated_normals_without_room(void **state)
{
    (void)state;
    static const struct {
        struct trunc_row row;
        float least, most;
    } rows[] = {
        {{"no_spread", 0.5f, 0.0f, -1.0f, 1.0f},            0.5f,       0.5f         },
        {{"no_spread_outside", 3.0f, 0.0f, -1.0f, 1.0f},    1.0f,       1.0f         },
        {{"one_point", 0.0f, 1.0f, 0.75f, 0.75f},           0.75f,      0.75f        },
        {{"next_floats", 0.0f, 1.0f, 1.0f, 0x1.000002p0f},  1.0f,       0x1.000002p0f},
        {{"tiny_spread_far_off", 0.0f, 1e-10f, 1.0f, 2.0f}, 1.0f,       1.000001f    },
        {{"tiny_spread_below", 0.0f, 1e-10f, -2.0f, -1.0f}, -1.000001f, -1.0f        },
    };
    for (size_t k = 0; k < COUNT(rows); k++) {
        float x[100];
        const struct trunc_row *row = &rows[k].row;
        heft__random_trunc_normal(&test_random, row->mean, row->std, row->low, row->high, 0, x,
                                  COUNT(x));
        for (size_t i = 0; i < COUNT(x); i++) {
            if (!(x[i] >= rows[k].least && x[i] <= rows[k].most)) {
                fail_msg("%s: %a", row->name, (double)x[i]);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(values_are_pinned),
        cmocka_unit_test(normals_are_right_to_a_few_places),
        cmocka_unit_test(logarithm_is_right_to_a_few_places),
        cmocka_unit_test(values_do_not_depend_on_the_cut_or_the_level),
        cmocka_unit_test(streams_and_seeds_differ),
        cmocka_unit_test(normals_have_the_moments),
        cmocka_unit_test(normals_are_scaled),
        cmocka_unit_test(uniforms_fill_their_interval),
        cmocka_unit_test(truncated_normals_have_the_distribution),
        cmocka_unit_test(truncated_normals_without_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
