/* test_kernels_elements.c - what works on single numbers and on rows: every instruction set that this CPU has,
 * compared with the reference, or with libm in double. */
#include "support_kernels.h"

#include <math.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const size_t lengths[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 255, 1000};

static float of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* |is - should| in units of the last place of `should`. */
static double places(float is, double should)
{
    const float rounded = (float)should;
    if (isnan(is) || isnan(rounded)) {
        return isnan(is) && isnan(rounded) ? 0 : 1e30;
    }
    if (isinf(is) || isinf(rounded)) {
        return is == rounded ? 0 : 1e30;
    }
    const float next = nextafterf(fabsf(rounded), INFINITY);
    const double place = isinf(next) ? 0x1p104 : (double)next - (double)fabsf(rounded);
    return fabs((double)is - should) / place;
}

/* ---- activations: over all of float32 ------------------------------------------------------------ */
/* `near` of them where |x| < 1, `far` beyond: where a formula multiplies x before its exponential, the rounding of
 * that product is an error that grows with it. A result below `tiny` is compared with tiny's places. */
static const struct {
    const char *name;
    heft__act act;
    double near, far;
    double tiny;
} acts[] = {
    {"none",       HEFT__ACT_NONE,       0,   0,   0    },
    {"silu",       HEFT__ACT_SILU,       4,   4,   1e-30},
    {"gelu",       HEFT__ACT_GELU,       6,   8,   1e-30},
    {"gelu_tanh",  HEFT__ACT_GELU_TANH,  4,   8,   1e-1 },
    {"quick_gelu", HEFT__ACT_QUICK_GELU, 4,   8,   1e-1 },
    {"relu",       HEFT__ACT_RELU,       0,   0,   0    },
    {"relu2",      HEFT__ACT_RELU2,      0.5, 0.5, 0    },
    {"tanh",       HEFT__ACT_TANH,       3,   3,   0    },
    {"sigmoid",    HEFT__ACT_SIGMOID,    3,   4,   0    },
};

#define SWEEP_STEP 4099U /* of 2^32 bit patterns */
#define BLOCK 1003

static void check_act(const heft__kernels *k, size_t which)
{
    static float x[BLOCK], y[BLOCK], expected[BLOCK];
    double worst = 0;
    uint64_t bits = 0;
    while (bits < UINT64_C(1) << 32) {
        size_t count = 0;
        for (; count < BLOCK && bits < UINT64_C(1) << 32; count++, bits += SWEEP_STEP) {
            x[count] = of_bits((uint32_t)bits);
        }
        memcpy(y, x, sizeof x);
        memcpy(expected, x, sizeof x);
        k->act(acts[which].act, y, count);
        heft__kernels_reference.act(acts[which].act, expected, count);
        for (size_t i = 0; i < count; i++) {
            const double least = acts[which].tiny * 0x1p-23;
            double off = places(y[i], (double)expected[i]);
            if (least > 0 && fabs((double)expected[i]) < acts[which].tiny) {
                off = fabs((double)y[i] - (double)expected[i]) / least;
            }
            if (isnan(x[i]) ? !isnan(y[i])
                            : !(off <= (fabsf(x[i]) < 1 ? acts[which].near : acts[which].far))) {
                fail_msg("%s %s(%.9g) is %.9g, should be %.9g: %.1f places", k->isa,
                         acts[which].name, (double)x[i], (double)y[i], (double)expected[i], off);
            }
            worst = off > worst && !isnan(x[i]) ? off : worst;
        }
    }
    print_message("             %-10s %.2f places\n", acts[which].name, worst);
}

static void check_acts(const heft__kernels *k)
{
    assert_int_equal(COUNT(acts), HEFT__ACT_COUNT);
    for (size_t i = 0; i < COUNT(acts); i++) {
        check_act(k, i);
    }
}

static void activations_over_all_numbers(void **state)
{
    (void)state;
    test_each_isa(check_acts);
}

static void check_edges(const heft__kernels *k)
{
    static const heft__act zero_at_minus_infinity[] = {
        HEFT__ACT_SILU, HEFT__ACT_GELU,  HEFT__ACT_GELU_TANH, HEFT__ACT_QUICK_GELU,
        HEFT__ACT_RELU, HEFT__ACT_RELU2, HEFT__ACT_SIGMOID};
    for (size_t i = 0; i < COUNT(zero_at_minus_infinity); i++) {
        float x[] = {-INFINITY, -3e38F, INFINITY, NAN, 0.0F, 3e38F};
        const heft__act act = zero_at_minus_infinity[i];
        k->act(act, x, COUNT(x));
        assert_true(x[0] == 0 && x[1] == 0);
        assert_true(act == HEFT__ACT_SIGMOID ? x[2] == 1.0F : x[2] == INFINITY);
        assert_true(isnan(x[3]));
        assert_true(x[4] == (act == HEFT__ACT_SIGMOID ? 0.5F : 0.0F));
        assert_true(act == HEFT__ACT_SIGMOID || x[5] >= 3e38F);
    }
    float x[] = {-INFINITY, INFINITY, NAN, -0.0F, 1e-40F, -1e-40F};
    k->act(HEFT__ACT_TANH, x, COUNT(x));
    assert_true(x[0] == -1 && x[1] == 1 && isnan(x[2]) && x[3] == 0 && signbit(x[3]));
    assert_true(x[4] == 1e-40F && x[5] == -1e-40F);
}

static void activations_at_the_edges(void **state)
{
    (void)state;
    test_each_isa(check_edges);
}

/* ---- arrays of every length, that end where nothing may be read ------------------------------------ */
struct arrays {
    size_t count;
    test_guarded a, b, w, is, should;
};

static void arrays_begin(struct arrays *s, size_t count, float by)
{
    uint64_t state = count;
    test_guarded *all[] = {&s->a, &s->b, &s->w, &s->is, &s->should};
    s->count = count;
    for (size_t i = 0; i < COUNT(all); i++) {
        *all[i] = test_guarded_new(count * sizeof(float), 1);
        for (size_t j = 0; j < count; j++) {
            ((float *)all[i]->data)[j] = by * test_uniform(&state);
        }
    }
}

static void arrays_reset(struct arrays *s)
{
    memcpy(s->is.data, s->a.data, s->count * sizeof(float));
    memcpy(s->should.data, s->a.data, s->count * sizeof(float));
}

static void arrays_compare(const struct arrays *s, const heft__kernels *k, const char *name,
                           double allowed)
{
    for (size_t i = 0; i < s->count; i++) {
        const float is = ((float *)s->is.data)[i], should = ((float *)s->should.data)[i];
        if (!(fabs((double)is - (double)should) <= allowed * (1 + fabs((double)should)))) {
            fail_msg("%s %s: element %zu of %zu is %.9g, should be %.9g", k->isa, name, i, s->count,
                     (double)is, (double)should);
        }
    }
}

static void arrays_end(struct arrays *s)
{
    test_guarded *all[] = {&s->a, &s->b, &s->w, &s->is, &s->should};
    for (size_t i = 0; i < COUNT(all); i++) {
        test_guarded_free(all[i]);
    }
}

/* Each calls one function of a table on s->is and others; `to` is where the result goes. */
typedef void operation(const heft__kernels *k, const struct arrays *s, float *to);

static void do_rms_norm(const heft__kernels *k, const struct arrays *s, float *to)
{
    k->rms_norm(to, s->a.data, s->w.data, 1.0F, 1e-6F, s->count);
}
static void do_rms_norm_in_place(const heft__kernels *k, const struct arrays *s, float *to)
{
    k->rms_norm(to, to, NULL, 0.0F, 1e-6F, s->count);
}
static void do_layer_norm(const heft__kernels *k, const struct arrays *s, float *to)
{
    k->layer_norm(to, s->a.data, s->w.data, s->b.data, 1e-5F, s->count);
}
static void do_layer_norm_in_place(const heft__kernels *k, const struct arrays *s, float *to)
{
    k->layer_norm(to, to, NULL, NULL, 1e-5F, s->count);
}
static void do_layer_norm_weight(const heft__kernels *k, const struct arrays *s, float *to)
{
    k->layer_norm(to, to, s->w.data, NULL, 1e-5F, s->count);
}
static void do_unit(const heft__kernels *k, const struct arrays *s, float *to)
{
    k->unit(to, to, s->count);
}
static void do_rotate_halves(const heft__kernels *k, const struct arrays *s, float *to)
{
    k->rotate(to, s->b.data, s->w.data, s->count / 2, false);
}
static void do_rotate_pairs(const heft__kernels *k, const struct arrays *s, float *to)
{
    k->rotate(to, s->b.data, s->w.data, s->count / 2, true);
}
static void do_act(const heft__kernels *k, const struct arrays *s, float *to)
{
    for (int act = 0; act < HEFT__ACT_COUNT; act++) {
        k->act((heft__act)act, to, s->count);
    }
}
static void do_gate(const heft__kernels *k, const struct arrays *s, float *to)
{
    for (int act = 0; act < HEFT__ACT_COUNT; act++) {
        k->gate((heft__act)act, to, s->b.data, s->count);
        k->add(to, s->w.data, s->count);
    }
}
static void do_add(const heft__kernels *k, const struct arrays *s, float *to)
{
    k->add(to, s->b.data, s->count);
}
static void do_add_scaled(const heft__kernels *k, const struct arrays *s, float *to)
{
    k->add_scaled(to, s->b.data, -1.7F, s->count);
}
static void do_scale(const heft__kernels *k, const struct arrays *s, float *to)
{
    k->scale(to, 0.3F, s->count);
}
static void do_cap(const heft__kernels *k, const struct arrays *s, float *to)
{
    k->cap(to, 1.5F, s->count);
}
static void do_softmax(const heft__kernels *k, const struct arrays *s, float *to)
{
    k->softmax(to, s->count);
}

static const struct {
    const char *name;
    operation *run;
    float by; /* size of the numbers */
    double allowed;
} operations[] = {
    {"rms_norm",            do_rms_norm,            3,      4e-7},
    {"rms_norm_in_place",   do_rms_norm_in_place,   100,    4e-7},
    {"layer_norm",          do_layer_norm,          3,      2e-6},
    {"layer_norm_in_place", do_layer_norm_in_place, 3,      2e-6},
    {"layer_norm_weight",   do_layer_norm_weight,   3,      2e-6},
    {"unit",                do_unit,                1,      3e-7},
    {"unit_small",          do_unit,                1e-25F, 3e-7},
    {"unit_large",          do_unit,                1e30F,  3e-7},
    {"rotate_halves",       do_rotate_halves,       1,      2e-7},
    {"rotate_pairs",        do_rotate_pairs,        1,      2e-7},
    {"act",                 do_act,                 2,      1e-6},
    {"gate",                do_gate,                2,      2e-6},
    {"add",                 do_add,                 2,      0   },
    {"add_scaled",          do_add_scaled,          2,      3e-7},
    {"scale",               do_scale,               2,      0   },
    {"cap",                 do_cap,                 6,      4e-7},
    {"softmax",             do_softmax,             4,      3e-7},
    {"softmax_far_apart",   do_softmax,             200,    3e-7},
};

static void check_operations(const heft__kernels *k)
{
    for (size_t i = 0; i < COUNT(operations); i++) {
        for (size_t l = 0; l < COUNT(lengths); l++) {
            struct arrays s;
            arrays_begin(&s, lengths[l], operations[i].by);
            arrays_reset(&s);
            operations[i].run(k, &s, s.is.data);
            operations[i].run(&heft__kernels_reference, &s, s.should.data);
            arrays_compare(&s, k, operations[i].name, operations[i].allowed);
            arrays_end(&s);
        }
    }
}

static void arrays_of_every_length(void **state)
{
    (void)state;
    test_each_isa(check_operations);
}

/* ---- dtypes: every half, and every way to round ---------------------------------------------------- */
static void check_widen(const heft__kernels *k, heft_dtype dtype)
{
    static uint16_t all[65536];
    static float is[65536], should[65536];
    for (size_t i = 0; i < COUNT(all); i++) {
        all[i] = (uint16_t)i;
    }
    k->widen(is, all, dtype, COUNT(all));
    heft__kernels_reference.widen(should, all, dtype, COUNT(all));
    for (size_t i = 0; i < COUNT(all); i++) {
        if (memcmp(&is[i], &should[i], 4) != 0 && !(isnan(is[i]) && isnan(should[i]))) {
            fail_msg("%s: %zu of %s is %.9g", k->isa, i, heft_dtype_name(dtype), (double)is[i]);
        }
        float exact;
        assert_int_equal(heft_cast(HEFT_DTYPE_F32, &exact, dtype, &all[i], 1, NULL), HEFT_OK);
        assert_true(memcmp(&exact, &should[i], 4) == 0 || isnan(exact));
    }
}

static void check_narrow(const heft__kernels *k, heft_dtype dtype)
{
    for (uint64_t bits = 0; bits < UINT64_C(1) << 32; bits += 2039) {
        float x[19];
        uint16_t is[19], should[19];
        for (size_t i = 0; i < COUNT(x); i++) { /* also ties, and what is near them */
            const uint32_t shift = dtype == HEFT_DTYPE_BF16 ? 15 : 12;
            uint32_t each = (uint32_t)bits + (uint32_t)i;
            each = i % 4 == 0 ? each : (each >> shift | 1U) << shift;
            x[i] = of_bits(i % 4 == 2 ? each + 1 : i % 4 == 3 ? each - 1 : each);
        }
        k->narrow(is, dtype, x, COUNT(x));
        assert_int_equal(heft_cast(dtype, should, HEFT_DTYPE_F32, x, COUNT(x), NULL), HEFT_OK);
        for (size_t i = 0; i < COUNT(x); i++) {
            if (is[i] != should[i] && !isnan(x[i])) {
                fail_msg("%s: %.9g to %s is %#x, should be %#x", k->isa, (double)x[i],
                         heft_dtype_name(dtype), is[i], should[i]);
            }
            float back;
            k->widen(&back, &is[i], dtype, 1);
            assert_true(!isnan(x[i]) || isnan(back));
        }
    }
}

static void check_dtypes(const heft__kernels *k)
{
    check_widen(k, HEFT_DTYPE_BF16);
    check_widen(k, HEFT_DTYPE_F16);
    check_narrow(k, HEFT_DTYPE_BF16);
    check_narrow(k, HEFT_DTYPE_F16);
    float x[5] = {1, 2, 3, 4, 5}, y[5] = {0};
    k->widen(y, x, HEFT_DTYPE_F32, 5);
    assert_memory_equal(x, y, sizeof x);
    k->narrow(x, HEFT_DTYPE_F32, y, 5);
    assert_memory_equal(x, y, sizeof x);
}

static void halves_are_converted_as_by_casts(void **state)
{
    (void)state;
    test_each_isa(check_dtypes);
    check_dtypes(&heft__kernels_reference);
}

static void check_ends(const heft__kernels *k)
{
    for (size_t l = 0; l < COUNT(lengths); l++) {
        test_guarded half = test_guarded_new(2 * lengths[l], 1);
        test_guarded wide = test_guarded_new(4 * lengths[l], 1);
        memset(half.data, 0, 2 * lengths[l]);
        k->widen(wide.data, half.data, HEFT_DTYPE_F16, lengths[l]);
        k->narrow(half.data, HEFT_DTYPE_BF16, wide.data, lengths[l]);
        k->narrow(half.data, HEFT_DTYPE_F16, wide.data, lengths[l]);
        k->widen(wide.data, half.data, HEFT_DTYPE_BF16, lengths[l]);
        for (size_t i = 0; i < lengths[l]; i++) {
            assert_true(((float *)wide.data)[i] == 0);
        }
        test_guarded_free(&half);
        test_guarded_free(&wide);
    }
}

static void halves_end_at_the_last(void **state)
{
    (void)state;
    test_each_isa(check_ends);
}

/* ---- rows ---------------------------------------------------------------------------------------- */
static void check_largest(const heft__kernels *k)
{
    for (size_t l = 0; l < COUNT(lengths); l++) {
        test_guarded row = test_guarded_new(lengths[l] * sizeof(float), 1);
        float *x = row.data;
        for (size_t at = 0; at < lengths[l]; at++) {
            for (size_t i = 0; i < lengths[l]; i++) {
                x[i] = i < at ? -2.0F : -3.0F;
            }
            x[at] = -1.0F;
            assert_int_equal(k->largest(x, lengths[l]), at);
            x[lengths[l] - 1] = -1.0F; /* equal: the first */
            assert_int_equal(k->largest(x, lengths[l]), at);
            assert_true(k->finite(x, lengths[l]));
            x[at] = INFINITY;
            assert_int_equal(k->largest(x, lengths[l]), at);
            assert_false(k->finite(x, lengths[l]));
            x[at] = -INFINITY;
            assert_false(k->finite(x, lengths[l]));
            x[at] = NAN;
            x[0] = at > 0 ? INFINITY : NAN;
            assert_int_equal(k->largest(x, lengths[l]), at);
            x[0] = at > 0 ? 0 : NAN;
            assert_false(k->finite(x, lengths[l]));
        }
        for (size_t i = 0; i < lengths[l]; i++) {
            x[i] = -INFINITY;
        }
        assert_int_equal(k->largest(x, lengths[l]), 0);
        test_guarded_free(&row);
    }
}

static void largest_is_the_first_and_finite_finds_all(void **state)
{
    (void)state;
    test_each_isa(check_largest);
    check_largest(&heft__kernels_reference);
}

static void check_softmax(const heft__kernels *k)
{
    for (size_t l = 0; l < COUNT(lengths); l++) {
        float x[1000];
        for (size_t i = 0; i < lengths[l]; i++) {
            x[i] = -INFINITY;
        }
        k->softmax(x, lengths[l]);
        for (size_t i = 0; i < lengths[l]; i++) {
            assert_true(x[i] == 0);
            x[i] = -INFINITY;
        }
        x[lengths[l] - 1] = -1e30F;
        k->softmax(x, lengths[l]);
        for (size_t i = 0; i < lengths[l]; i++) {
            assert_true(x[i] == (i + 1 == lengths[l] ? 1.0F : 0.0F));
        }
        x[lengths[l] / 2] = NAN;
        k->softmax(x, lengths[l]);
        for (size_t i = 0; i < lengths[l]; i++) {
            assert_true(isnan(x[i]));
        }
        float zero[1000] = {0};
        k->unit(zero, zero, lengths[l]);
        k->rms_norm(zero, zero, NULL, 0, 1e-6F, lengths[l]);
        k->layer_norm(zero, zero, NULL, NULL, 1e-6F, lengths[l]);
        for (size_t i = 0; i < lengths[l]; i++) {
            assert_true(zero[i] == 0);
        }
    }
}

static void rows_without_a_largest(void **state)
{
    (void)state;
    test_each_isa(check_softmax);
    check_softmax(&heft__kernels_reference);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(activations_over_all_numbers),
        cmocka_unit_test(activations_at_the_edges),
        cmocka_unit_test(arrays_of_every_length),
        cmocka_unit_test(halves_are_converted_as_by_casts),
        cmocka_unit_test(halves_end_at_the_last),
        cmocka_unit_test(largest_is_the_first_and_finite_finds_all),
        cmocka_unit_test(rows_without_a_largest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
