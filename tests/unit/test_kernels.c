/* test_kernels.c - products of every instruction set that this CPU has, compared with the reference. */
#include "support_kernels.h"

#include <math.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const heft_dtype dtypes[] = {HEFT_DTYPE_F32, HEFT_DTYPE_BF16, HEFT_DTYPE_F16};

struct shape {
    const char *name;
    size_t rows, columns, tokens;
    size_t gap; /* elements between stored rows, NaN */
};

static const struct shape shapes[] = {
    {"one_element",                  1,    1,    1,   0},
    {"one_token_less_than_a_vector", 5,    3,    1,   0},
    {"one_token_whole_chunks",       50,   256,  1,   0},
    {"one_token_odd_columns",        97,   2049, 1,   0},
    {"one_token_many_rows",          9001, 19,   1,   0},
    {"one_token_gap",                33,   77,   1,   3},
    {"two_tokens",                   29,   130,  2,   0},
    {"three_tokens",                 50,   131,  3,   1},
    {"four_tokens",                  61,   1025, 4,   0},
    {"five_tokens",                  100,  1025, 5,   0},
    {"six_tokens",                   13,   64,   6,   0},
    {"seven_tokens",                 61,   48,   7,   5},
    {"eight_tokens",                 48,   1024, 8,   0},
    {"nine_tokens",                  49,   1023, 9,   0},
    {"ten_tokens",                   11,   30,   10,  0},
    {"eleven_tokens",                12,   31,   11,  0},
    {"twelve_tokens",                7,    33,   12,  0},
    {"panel_one_column",             60,   1,    13,  0},
    {"panel_one_row",                1,    70,   40,  0},
    {"panel_half_full",              100,  2050, 16,  0},
    {"panel_and_one",                55,   77,   17,  2},
    {"panel_25_tokens",              95,   200,  25,  0},
    {"panels_33_tokens",             131,  64,   33,  0},
    {"panels_48_tokens",             31,   65,   48,  0},
    {"panels_64_tokens",             48,   129,  64,  0},
    {"panels_65_tokens_deep",        50,   2100, 65,  0},
    {"panels_200_tokens",            29,   41,   200, 1},
    {"panels_more_than_a_block",     53,   40,   600, 0},
};

/* One product: its arrays end at pages that may not be touched. */
struct product {
    const heft__kernels *k;
    heft__matrix w;
    heft__operand operand;
    test_guarded weights, data, x, bias, scratch;
    size_t x_stride;
};

static void product_begin(struct product *p, const heft__kernels *k, const struct shape *shape,
                          heft_dtype dtype, bool turned, bool exact)
{
    uint64_t state = 7 + shape->rows * 31 + shape->tokens;
    const size_t stored = turned ? shape->columns : shape->rows;
    const size_t width = turned ? shape->rows : shape->columns;
    const size_t elements = (stored - 1) * (width + shape->gap) + width;
    memset(p, 0, sizeof *p);
    p->k = k;
    p->weights = test_guarded_new(elements * test_dtype_bytes(dtype), 1);
    p->w = (heft__matrix){.data = p->weights.data,
                          .dtype = dtype,
                          .rows = shape->rows,
                          .columns = shape->columns,
                          .stride = width + shape->gap,
                          .turned = turned};
    for (size_t i = 0; i < stored; i++) {
        for (size_t j = 0; j < width; j++) {
            test_put(p->weights.data, dtype, i * p->w.stride + j, test_uniform(&state));
        }
    }
    p->x_stride = shape->columns + shape->gap;
    p->x =
        test_guarded_new(((shape->tokens - 1) * p->x_stride + shape->columns) * sizeof(float), 1);
    for (size_t t = 0; t < shape->tokens; t++) {
        for (size_t c = 0; c < shape->columns; c++) {
            ((float *)p->x.data)[t * p->x_stride + c] = test_uniform(&state);
        }
    }
    p->bias = test_guarded_new(shape->rows * sizeof(float), 1);
    for (size_t r = 0; r < shape->rows; r++) {
        ((float *)p->bias.data)[r] = test_uniform(&state);
    }
    p->data = test_guarded_new(k->operand_bytes(shape->tokens, &p->w, exact), 64);
    p->scratch = test_guarded_new(k->product_scratch, 64);
    p->operand = (heft__operand){.tokens = shape->tokens,
                                 .columns = shape->columns,
                                 .dtype = dtype,
                                 .exact = exact,
                                 .turned = turned,
                                 .data = p->data.data};
    for (size_t i = k->operand_pieces(&p->operand); i-- > 0;) {
        k->operand_fill(&p->operand, p->x.data, p->x_stride, i);
    }
}

static void product_end(struct product *p)
{
    test_guarded_free(&p->weights);
    test_guarded_free(&p->data);
    test_guarded_free(&p->x);
    test_guarded_free(&p->bias);
    test_guarded_free(&p->scratch);
}

/* y[tokens][rows + 1], the last column untouched; rows cut at `step`, 0: not at all. */
static test_guarded product_run(const struct product *p, size_t step, bool bias)
{
    const size_t rows = p->w.rows, stride = rows + 1;
    test_guarded y = test_guarded_new((p->operand.tokens * stride - 1) * sizeof(float), 1);
    size_t first = 0;
    step = step ? step : rows;
    while (first < rows) {
        const size_t last = rows - first < step ? rows : first + step;
        p->k->product(y.data, stride, &p->operand, &p->w, bias ? p->bias.data : NULL, first, last,
                      p->scratch.data);
        first = last;
        step = step % 7 + 1 == 1 ? step + 1 : step; /* ranges of different lengths */
    }
    return y;
}

/* Sum of |x| |w|, which a sum's error is a part of. */
static double magnitude_of(const struct product *p, size_t t, size_t r)
{
    double sum = 1; /* the bias */
    for (size_t c = 0; c < p->w.columns; c++) {
        const size_t at = p->w.turned ? c * p->w.stride + r : r * p->w.stride + c;
        float value;
        heft__kernels_reference.widen(
            &value, (const char *)p->w.data + at * test_dtype_bytes(p->w.dtype), p->w.dtype, 1);
        sum += fabs((double)value * (double)((const float *)p->x.data)[t * p->x_stride + c]);
    }
    return sum;
}

static void compare(const struct product *p, const test_guarded *y, const test_guarded *expected,
                    const char *name)
{
    const size_t stride = p->w.rows + 1;
    const double usual = 2e-6 + 3e-6 * sqrt((double)p->w.columns); /* numbers are below 1 */
    for (size_t t = 0; t < p->operand.tokens; t++) {
        for (size_t r = 0; r < p->w.rows; r++) {
            const double is = (double)((const float *)y->data)[t * stride + r];
            const double should = (double)((const float *)expected->data)[t * stride + r];
            const double allowed = 4e-7 * (r % 16 == 0 ? magnitude_of(p, t, r) : 1e30);
            if (!(fabs(is - should) <= fmin(allowed, usual))) {
                fail_msg("%s %s: token %zu row %zu is %.9g, should be %.9g", p->k->isa, name, t, r,
                         is, should);
            }
        }
        if (t + 1 < p->operand.tokens) {
            assert_true(isnan(((const float *)y->data)[t * stride + p->w.rows]));
        }
    }
}

static void check_product(const heft__kernels *k, const struct shape *shape, heft_dtype dtype,
                          bool turned, bool exact)
{
    struct product p, reference;
    char name[128];
    snprintf(name, sizeof name, "%s %s%s%s", shape->name, heft_dtype_name(dtype),
             turned ? " turned" : "", exact ? " exact" : "");
    product_begin(&p, k, shape, dtype, turned, exact);
    product_begin(&reference, &heft__kernels_reference, shape, dtype, turned, exact);
    const bool bias = shape->rows % 2 == 1;
    test_guarded whole = product_run(&p, 0, bias);
    test_guarded expected = product_run(&reference, 0, bias);
    compare(&p, &whole, &expected, name);
    const size_t steps[] = {1, 5, 13, 48, 100};
    for (size_t i = 0; i < COUNT(steps); i++) {
        if (steps[i] < shape->rows && (steps[i] > 1 || shape->rows < 200)) {
            test_guarded cut = product_run(&p, steps[i], bias);
            for (size_t t = 0; t < shape->tokens; t++) {
                const size_t at = t * (shape->rows + 1);
                if (memcmp((float *)cut.data + at, (float *)whole.data + at,
                           shape->rows * sizeof(float)) != 0) {
                    fail_msg("%s %s: ranges of %zu rows give other bits", k->isa, name, steps[i]);
                }
            }
            test_guarded_free(&cut);
        }
    }
    test_guarded_free(&whole);
    test_guarded_free(&expected);
    product_end(&p);
    product_end(&reference);
}

static void check_products(const heft__kernels *k)
{
    for (size_t i = 0; i < COUNT(shapes); i++) {
        for (size_t d = 0; d < COUNT(dtypes); d++) {
            check_product(k, &shapes[i], dtypes[d], false, false);
            check_product(k, &shapes[i], dtypes[d], true, false);
        }
        check_product(k, &shapes[i], HEFT_DTYPE_BF16, false, true);
        check_product(k, &shapes[i], HEFT_DTYPE_BF16, true, true);
    }
}

static void products_match_the_reference(void **state)
{
    (void)state;
    test_each_isa(check_products);
}

/* Activations for bfloat16 weights are rounded, and others are not: 1 + 2^-10 shows which. */
static void check_rounding(const heft__kernels *k)
{
    const struct shape shape_of[] = {
        {"", 3, 40, 1,  0},
        {"", 3, 40, 4,  0},
        {"", 3, 40, 20, 0}
    };
    for (size_t i = 0; i < 3 * COUNT(shape_of); i++) {
        for (int turned = 0; turned < 2; turned++) {
            const bool exact = i % 3 == 1;
            const heft_dtype dtype = i % 3 == 2 ? HEFT_DTYPE_F16 : HEFT_DTYPE_BF16;
            const double should = i % 3 == 0 ? 40.0 : 40.0 + 40.0 / 1024;
            const struct shape *shape = &shape_of[i / 3];
            struct product p;
            product_begin(&p, k, shape, dtype, turned != 0, exact);
            for (size_t j = 0; j < 120; j++) {
                test_put(p.weights.data, dtype, j, 1.0F);
            }
            for (size_t j = 0; j < shape->tokens * 40; j++) {
                ((float *)p.x.data)[j] = 1.0F + 0x1p-10F;
            }
            for (size_t j = k->operand_pieces(&p.operand); j-- > 0;) {
                k->operand_fill(&p.operand, p.x.data, p.x_stride, j);
            }
            test_guarded y = product_run(&p, 0, false);
            for (size_t t = 0; t < shape->tokens; t++) {
                for (size_t r = 0; r < 3; r++) {
                    assert_float_equal(((float *)y.data)[t * 4 + r], should, 1e-5);
                }
            }
            test_guarded_free(&y);
            product_end(&p);
        }
    }
}

static void activations_are_rounded_for_bfloat16_only(void **state)
{
    (void)state;
    test_each_isa(check_rounding);
    check_rounding(&heft__kernels_reference);
}

/* NaN and infinity reach the rows that hold them, and no others. */
static void check_special(const heft__kernels *k)
{
    static const size_t tokens[] = {1, 3, 13, 70};
    for (size_t i = 0; i < COUNT(tokens) * COUNT(dtypes) * 2; i++) {
        const heft_dtype dtype = dtypes[i / 2 % COUNT(dtypes)];
        const struct shape shape = {"", 20, 51, tokens[i / 2 / COUNT(dtypes)], 0};
        const bool turned = i % 2 != 0;
        struct product p;
        product_begin(&p, k, &shape, dtype, turned, false);
        test_put(p.weights.data, dtype, turned ? 50 * 20 + 7 : 7 * 51 + 50, NAN);
        test_put(p.weights.data, dtype, turned ? 3 * 20 + 19 : 19 * 51 + 3, INFINITY);
        test_guarded y = product_run(&p, 0, false);
        for (size_t t = 0; t < shape.tokens; t++) {
            for (size_t r = 0; r < shape.rows; r++) {
                const float is = ((float *)y.data)[t * 21 + r];
                assert_true(r == 7 ? isnan(is) : r == 19 ? !isfinite(is) : isfinite(is));
            }
        }
        test_guarded_free(&y);
        product_end(&p);
    }
}

static void not_finite_weights_stay_in_their_rows(void **state)
{
    (void)state;
    test_each_isa(check_special);
}

/* ---- selection ----------------------------------------------------------------------------------- */
static void tables_are_found_by_name(void **state)
{
    (void)state;
    size_t count = 0;
    for (; heft__kernels_at(count); count++) {
        const heft__kernels *k = heft__kernels_at(count);
        assert_ptr_equal(heft__kernels_named(k->isa), k);
    }
    assert_true(count > 0);
    assert_ptr_equal(heft__kernels_best(), heft__kernels_at(count - 1));
#if defined(__aarch64__)
    assert_string_equal(heft__kernels_best()->isa, "neon");
    assert_null(heft__kernels_named("plain"));
#else
    assert_string_equal(heft__kernels_at(0)->isa, "plain");
    assert_null(heft__kernels_named("neon"));
#endif
    assert_null(heft__kernels_named("mmx"));
    assert_null(heft__kernels_at(count + 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_match_the_reference),
        cmocka_unit_test(activations_are_rounded_for_bfloat16_only),
        cmocka_unit_test(not_finite_weights_stay_in_their_rows),
        cmocka_unit_test(tables_are_found_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
