/* test_kernels_compact.c - BF16 matrices in 12 bits a weight: the same weights, and the same bits of every product. */
#include "support_kernels.h"

#include <math.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* How weights are drawn. */
enum kind {
    BELL,    /* as trained ones: the sum of some uniform numbers */
    PADDED,  /* the same; each fifth row is zero, with both signs */
    STRANGE, /* the same, with NaN, infinities, subnormal and huge numbers here and there */
    EDGES,   /* strange ones in the first and last column of every row */
    FLAT,    /* all bits at random: has no codes */
};

static const uint16_t strange[] = {0x7fc1, 0x7f80, 0xff80, 0x0001, 0x8001,
                                   0x7f7f, 0xff7f, 0x0000, 0x8000, 0x0080};

static const struct {
    const char *name;
    size_t rows, columns;
    enum kind kind;
    bool stays; /* as it is */
} cases[] = {
    {"one_block",         1,   64,    BELL,    false},
    {"blocks",            53,  320,   BELL,    false},
    {"more_than_a_panel", 49,  1088,  BELL,    false},
    {"many_rows",         700, 64,    BELL,    false},
    {"wide",              3,   65472, BELL,    false},
    {"rows_of_zeros",     60,  256,   PADDED,  false},
    {"strange_weights",   97,  1280,  STRANGE, false},
    {"strange_at_edges",  50,  1024,  EDGES,   false},
    {"no_codes",          60,  256,   FLAT,    true },
    {"half_a_block",      10,  96,    BELL,    true },
    {"less_than_a_block", 10,  32,    BELL,    true },
    {"too_wide",          1,   65536, BELL,    true },
};

static uint16_t draw(enum kind kind, size_t r, size_t c, size_t columns, uint64_t *state)
{
    float value = 0;
    for (int i = 0; i < 6; i++) {
        value += test_uniform(state) * 0.02F;
    }
    uint16_t bits;
    heft__kernels_reference.narrow(&bits, HEFT_DTYPE_BF16, &value, 1);
    const size_t pick = (size_t)(test_uniform(state) * 0.4999F * 4096 + 2048); /* 0 .. 4095 */
    if (kind == FLAT) {
        return (uint16_t)(bits * 40503U ^ pick * 9973U);
    }
    if (kind == PADDED && r % 5 == 0) {
        return c % 3 ? 0 : 0x8000;
    }
    if ((kind == STRANGE && pick < 4) || (kind == EDGES && (c == 0 || c + 1 == columns))) {
        return strange[(r + c + pick) % COUNT(strange)];
    }
    return bits;
}

struct matrix {
    uint16_t *plain, *place; /* as they were; the compact one is in `place` */
    uint32_t *first, *exceptions;
    heft__compact compact;
};

/* Whether it became compact. */
static bool matrix_begin(struct matrix *m, const heft__kernels *k, size_t rows, size_t columns,
                         enum kind kind)
{
    uint64_t state = 11 + rows + columns;
    struct heft__compact_codes codes = {0};
    memset(m, 0, sizeof *m);
    m->plain = malloc(rows * columns * sizeof *m->plain);
    m->place = malloc(rows * columns * sizeof *m->place);
    m->first = malloc((rows + 1) * sizeof *m->first);
    for (size_t i = 0; i < rows * columns; i++) {
        m->plain[i] = m->place[i] = draw(kind, i / columns, i % columns, columns, &state);
    }
    if (!k->compact_survey(m->place, rows, columns, &codes, m->first)) {
        assert_memory_equal(m->plain, m->place, rows * columns * sizeof *m->plain);
        return false;
    }
    uint16_t *room = malloc(columns * sizeof *room);
    m->exceptions = malloc((m->first[rows] + 1) * sizeof *m->exceptions);
    k->compact_rows(m->place, rows, columns, &codes, m->first, m->exceptions, room);
    free(room);
    m->compact = (heft__compact){.rows = (const uint8_t *)m->place,
                                 .first = m->first,
                                 .exceptions = m->exceptions,
                                 .row_count = rows,
                                 .columns = columns};
    k->compact_table(&codes, m->compact.high);
    return true;
}

static void matrix_end(struct matrix *m)
{
    free(m->plain);
    free(m->place);
    free(m->first);
    free(m->exceptions);
}

/* ---- rows ------------------------------------------------------------------------------------------ */
static void check_rows(const heft__kernels *k)
{
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct matrix m;
        const size_t columns = cases[i].columns;
        const bool is = matrix_begin(&m, k, cases[i].rows, columns, cases[i].kind);
        if (is == cases[i].stays) {
            fail_msg("%s: %s %s", k->isa, cases[i].name,
                     is ? "became compact" : "stayed as it was");
        }
        uint16_t *row = malloc(columns * sizeof *row);
        for (size_t r = 0; is && r < cases[i].rows; r++) {
            k->unpack_row(row, &m.compact, r);
            if (memcmp(row, m.plain + r * columns, columns * sizeof *row) != 0) {
                fail_msg("%s: %s: row %zu has other weights", k->isa, cases[i].name, r);
            }
        }
        free(row);
        matrix_end(&m);
    }
}

static void rows_are_what_they_were(void **state)
{
    (void)state;
    test_each_isa(check_rows);
}

/* The share of exceptions that makes a matrix stay as it is. */
static void check_share(const heft__kernels *k)
{
    enum { ROWS = 8, COLUMNS = 512 };
    static uint16_t w[ROWS * COLUMNS];
    uint32_t first[ROWS + 1];
    struct heft__compact_codes codes;
    const size_t most = ROWS * COLUMNS / HEFT__COMPACT_EXCEPTIONS;
    for (size_t count = most; count <= most + 1; count++) {
        for (size_t i = 0; i < ROWS * COLUMNS; i++) {
            w[i] = i < count ? 0x7f80 : 0x3c00;
        }
        assert_int_equal(k->compact_survey(w, ROWS, COLUMNS, &codes, first), count == most);
    }
}

static void many_exceptions_leave_a_matrix(void **state)
{
    (void)state;
    test_each_isa(check_share);
}

/* ---- products --------------------------------------------------------------------------------------- */
static void run(const heft__kernels *k, const heft__matrix *w, const float *x, size_t tokens,
                bool exact, size_t step, float *y)
{
    void *data = NULL, *scratch = NULL;
    assert_int_equal(posix_memalign(&data, 64, k->operand_bytes(tokens, w, exact) + 64), 0);
    assert_int_equal(posix_memalign(&scratch, 64, k->product_scratch), 0);
    const heft__operand operand = {
        .tokens = tokens, .columns = w->columns, .dtype = w->dtype, .exact = exact, .data = data};
    for (size_t i = k->operand_pieces(&operand); i-- > 0;) {
        k->operand_fill(&operand, x, w->columns, i);
    }
    for (size_t first = 0; first < w->rows; first += step) {
        k->product(y, w->rows, &operand, w, NULL, first,
                   w->rows - first < step ? w->rows : first + step, scratch);
    }
    free(data);
    free(scratch);
}

static bool same_bits(const float *a, const float *b, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (memcmp(a + i, b + i, sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i]))) {
            return false;
        }
    }
    return true;
}

static void check_product(const heft__kernels *k, const struct matrix *m, const char *name,
                          size_t skipped, size_t tokens)
{
    const size_t rows = m->compact.row_count - skipped, columns = m->compact.columns;
    const heft__matrix plain = {.data = m->plain + skipped * columns,
                                .dtype = HEFT_DTYPE_BF16,
                                .rows = rows,
                                .columns = columns,
                                .stride = columns};
    const heft__matrix compact = {.dtype = HEFT_DTYPE_BF16,
                                  .rows = rows,
                                  .columns = columns,
                                  .stride = columns,
                                  .compact = &m->compact,
                                  .compact_row = skipped};
    uint64_t state = tokens;
    float *x = malloc(tokens * columns * sizeof *x), *y = malloc(tokens * rows * sizeof *y),
          *expected = malloc(tokens * rows * sizeof *y);
    for (size_t i = 0; i < tokens * columns; i++) {
        x[i] = test_uniform(&state);
    }
    for (int exact = 0; exact < 2; exact++) {
        run(k, &plain, x, tokens, exact, rows, expected);
        for (size_t step = rows; step > 0; step = step > 7 ? 7 : 0) {
            memset(y, 0xff, tokens * rows * sizeof *y);
            run(k, &compact, x, tokens, exact, step, y);
            if (!same_bits(y, expected, tokens * rows)) {
                fail_msg("%s: %s: %zu tokens%s, from row %zu, %zu rows at once: other bits", k->isa,
                         name, tokens, exact ? " exact" : "", skipped, step);
            }
        }
    }
    free(x);
    free(y);
    free(expected);
}

static void check_products(const heft__kernels *k)
{
    static const size_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 40, 65, 300};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct matrix m;
        if (matrix_begin(&m, k, cases[i].rows, cases[i].columns, cases[i].kind)) {
            for (size_t t = 0; t < COUNT(tokens) && (tokens[t] < 10 || cases[i].columns < 10000);
                 t++) {
                check_product(k, &m, cases[i].name, 0, tokens[t]);
                if (cases[i].rows > 11) {
                    check_product(k, &m, cases[i].name, 11, tokens[t]);
                }
            }
        }
        matrix_end(&m);
    }
}

static void products_have_the_same_bits(void **state)
{
    (void)state;
    test_each_isa(check_products);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_what_they_were),
        cmocka_unit_test(many_exceptions_leave_a_matrix),
        cmocka_unit_test(products_have_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
