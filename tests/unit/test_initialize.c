/* Initial values: the golden rules of BERT, each kind of rule, and that values depend only on seed, name
 * and element. */
#include "model/model.h"
#include "support.h"
#include "support_model.h"

#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

static heft_ctx *ctx;

/* ---- golden rules ---------------------------------------------------------------------------- */
static void compare_values(const char *what, const heft_tensor *tensor,
                           const heft__json_value *rule)
{
    const float *values = tensor->data; /* [count] */
    size_t count = (size_t)tensor->size_bytes / sizeof *values, used = 0;
    const char *kind = heft__json_member(rule, "kind")->text;
    double mean = 0, std = 0, value = 0, sum = 0, squares = 0;
    const heft__json_value *zero = heft__json_member(rule, "zero_rows");
    if (strcmp(kind, "constant") == 0) {
        assert_true(heft__json_as_double(heft__json_member(rule, "value"), &value));
        for (size_t i = 0; i < count; i++) {
            if (values[i] != (float)value) {
                fail_msg("%s: element %zu is %g, expected %g", what, i, (double)values[i], value);
            }
        }
        return;
    }
    if (strcmp(kind, "fixed") == 0) { /* a table that no seed changes */
        const heft__json_value *one = heft__json_member(rule, "start_of_second_row")->first;
        const float *row = values + count / tensor->shape[0];
        for (; one; one = one->next, row++) {
            assert_true(heft__json_as_double(one, &value));
            if (fabs((double)*row - value) > 1e-6) {
                fail_msg("%s: %.9g in the second row, expected %.9g", what, (double)*row, value);
            }
        }
        return;
    }
    /* the golden cases of a truncated normal cut it at 40 and more deviations */
    if (strcmp(kind, "normal") != 0 && strcmp(kind, "trunc_normal") != 0) {
        fail_msg("%s: no check for rule %s", what, kind);
    }
    assert_true(heft__json_as_double(heft__json_member(rule, "mean"), &mean));
    assert_true(heft__json_as_double(heft__json_member(rule, "std"), &std));
    size_t width = count / (size_t)tensor->shape[0];
    for (size_t i = 0; i < count; i++) {
        uint64_t row;
        bool zeroed = zero && heft__json_as_u64(zero->first, &row) && i / width == row;
        if (zeroed && values[i] != 0) {
            fail_msg("%s: element %zu of the padding row is not zero", what, i);
        }
        if (!zeroed) {
            sum += (double)values[i];
            squares += (double)values[i] * (double)values[i];
            used++;
        }
    }
    double n = (double)used, found_mean = sum / n,
           found_std = sqrt(squares / n - found_mean * found_mean);
    if (fabs(found_mean - mean) > 5 * std / sqrt(n) ||
        fabs(found_std - std) > 5 * std / sqrt(2 * n)) {
        fail_msg("%s: mean %g, std %g, expected %g and %g", what, found_mean, found_std, mean, std);
    }
}

/* Every parameter that has the golden name in Transformers' memory, or is a part of it. */
static void compare_rule(const heft_model *model, const heft__json_value *rule)
{
    const char *name = heft__json_member(rule, "name")->text;
    size_t parts = 0;
    for (size_t i = 0; i < model->count; i++) {
        const heft__inner *inner = heft__model_place(model, i).inner;
        heft_tensor *tensor = NULL;
        heft_error err;
        if (strcmp(inner ? inner->name : model->parameters[i].name, name) != 0) {
            continue;
        }
        test_expect_status(heft_model_tensor(model, i, &tensor, &err), HEFT_OK, &err, name);
        if (!heft__json_member(rule, "tied_to")) {
            compare_values(name, tensor, rule);
        }
        heft_tensor_free(tensor);
        parts++;
    }
    if (parts == 0) {
        fail_msg("nothing is '%s' in Transformers' memory", name);
    }
}

static size_t compare_rules(const heft__json_value *config, const heft__json_value *class)
{
    size_t rules = 0;
    heft_error err;
    heft_model *model = test_make_model(ctx, config, class->key, HEFT_DTYPE_NONE, class->key);
    heft_init_options options = HEFT_OPTIONS(heft_init_options, .seed = 3);
    test_expect_status(heft_model_init(model, &options, &err), HEFT_OK, &err, class->key);
    for (const heft__json_value *rule = class->first; rule; rule = rule->next, rules++) {
        compare_rule(model, rule);
    }
    heft_model_free(model);
    return rules;
}

static void initial_values_follow_the_golden_rules(void **state)
{
    (void)state;
    size_t rules = 0;
    DIR *folder = opendir(HEFT_TEST_DATA "/init");
    assert_non_null(folder);
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        char path[600];
        heft__arena arena;
        if (entry->d_name[0] == '.') {
            continue;
        }
        heft__arena_init(&arena, ctx);
        snprintf(path, sizeof path, "%s/init/%s", HEFT_TEST_DATA, entry->d_name);
        const heft__json_value *cases = heft__json_member(test_read_json(&arena, path), "cases");
        for (const heft__json_value *one = cases->first; one; one = one->next) {
            const heft__json_value *classes = heft__json_member(one, "params");
            for (const heft__json_value *class = classes->first; class; class = class->next) {
                rules += compare_rules(heft__json_member(one, "config"), class);
            }
        }
        heft__arena_fini(&arena);
    }
    closedir(folder);
    assert_true(rules > 2000);
}

/* ---- rotary frequencies ---------------------------------------------------------------------- */
static void compare_frequencies(const char *what, const heft_model *model,
                                const heft__json_value *buffer)
{
    heft_tensor *tensor = NULL;
    heft_error err;
    size_t at = 0;
    test_expect_status(heft_model_tensor(model, heft_model_find(model, buffer->key), &tensor, &err),
                       HEFT_OK, &err, what);
    const float *values = tensor->data; /* [buffer->count] */
    assert_int_equal(tensor->size_bytes, buffer->count * sizeof *values);
    for (const heft__json_value *one = buffer->first; one; one = one->next, at++) {
        double expected = 0;
        assert_true(heft__json_as_double(one, &expected));
        if (fabs((double)values[at] - expected) > 1e-6 * expected) {
            fail_msg("%s: frequency %zu is %.9g, expected %.9g", what, at, (double)values[at],
                     expected);
        }
    }
    heft_tensor_free(tensor);
}

static void rotary_frequencies_are_golden(void **state)
{
    (void)state;
    static const char *const names[] = {"gemma3_text",
                                        "llama_mha",
                                        "llama_rope_linear",
                                        "llama_rope_llama3",
                                        "llama_rope_yarn",
                                        "llama_rope_yarn_attention_factor",
                                        "phi3",
                                        "phi3_partial"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[600];
        heft__arena arena;
        heft_error err;
        heft__arena_init(&arena, ctx);
        snprintf(path, sizeof path, "%s/rotary/%s.json", HEFT_TEST_DATA, names[i]);
        const heft__json_value *root = test_read_json(&arena, path),
                               *buffers = heft__json_member(root, "buffers");
        heft_model *model = test_make_model(ctx, heft__json_member(root, "config"), NULL,
                                            HEFT_DTYPE_NONE, names[i]);
        test_expect_status(heft_model_init(model, NULL, &err), HEFT_OK, &err, names[i]);
        assert_true(buffers->count > 0);
        for (const heft__json_value *buffer = buffers->first; buffer; buffer = buffer->next) {
            compare_frequencies(names[i], model, buffer);
        }
        heft_model_free(model);
        heft__arena_fini(&arena);
    }
}

/* ---- one rule -------------------------------------------------------------------------------- */
static const uint64_t shape_9_8[2] = {9, 8}, shape_1500_64[2] = {1500, 64},
                      shape_64_256[2] = {64, 256};

static heft_parameter parameter_of(const char *name, heft_dtype dtype, const uint64_t shape[2])
{
    heft_parameter parameter = {.name = name, .dtype = dtype, .rank = 2, .shape = shape};
    assert_true(heft__shape_bytes(dtype, shape, 2, &parameter.size_bytes));
    return parameter;
}

/* All elements of a parameter, made in pieces of `step`; malloced. */
static void *make_values(const heft_parameter *parameter, const heft__init_rule *rule,
                         uint64_t seed, size_t step)
{
    const size_t element = heft_dtype_bits(parameter->dtype) / 8;
    const size_t count = (size_t)parameter->size_bytes / element;
    uint8_t *values = malloc((size_t)parameter->size_bytes);
    float *scratch = malloc(step * sizeof *scratch);
    heft_error err;
    assert_non_null(values);
    assert_non_null(scratch);
    for (size_t first = 0; first < count; first += step) {
        size_t now = count - first < step ? count - first : step;
        heft_status status = heft__init_fill(parameter, rule, seed, first, now, scratch,
                                             values + first * element, &err);
        test_expect_status(status, HEFT_OK, &err, parameter->name);
    }
    free(scratch);
    return values;
}

static const struct {
    const char *name;
    heft__init_rule rule;
} kinds[] = {
    {"constant",     {.kind = HEFT__INIT_CONSTANT, .a = 1.5F, .zero_row = -1}                },
    {"normal",       {.kind = HEFT__INIT_NORMAL, .a = 0.5F, .b = 0.02F, .zero_row = -1}      },
    {"padded",       {.kind = HEFT__INIT_NORMAL, .b = 0.02F, .zero_row = 3}                  },
    {"trunc_normal",
     {.kind = HEFT__INIT_TRUNC_NORMAL, .b = 1.0F, .low = -1.5F, .high = 1.0F, .zero_row = -1}},
    {"uniform",      {.kind = HEFT__INIT_UNIFORM, .a = -2, .b = 3, .zero_row = -1}           },
    {"arange",       {.kind = HEFT__INIT_ARANGE, .zero_row = -1}                             },
    {"sinusoid",     {.kind = HEFT__INIT_SINUSOID, .zero_row = -1}                           },
    {"halves",       {.kind = HEFT__INIT_SINUSOID, .a = 1, .zero_row = -1}                   },
};
#define KINDS (sizeof kinds / sizeof kinds[0])

static void values_do_not_hang_on_the_pieces(void **state)
{
    (void)state;
    static const heft_dtype dtypes[] = {HEFT_DTYPE_F32, HEFT_DTYPE_F64, HEFT_DTYPE_F16,
                                        HEFT_DTYPE_BF16};
    static const size_t steps[] = {1, 3, 64, 1000, 4096, 96000};
    for (size_t k = 0; k < KINDS; k++) {
        for (size_t d = 0; d < 4; d++) {
            heft_parameter parameter = parameter_of("layer.weight", dtypes[d], shape_1500_64);
            void *whole = make_values(&parameter, &kinds[k].rule, 11, 96000);
            for (size_t i = 0; i < 5; i++) {
                void *pieces = make_values(&parameter, &kinds[k].rule, 11, steps[i]);
                if (memcmp(whole, pieces, (size_t)parameter.size_bytes) != 0) {
                    fail_msg("%s: %s in pieces of %zu differs", kinds[k].name,
                             heft_dtype_name(dtypes[d]), steps[i]);
                }
                free(pieces);
            }
            free(whole);
        }
    }
}

static void other_dtypes_are_the_float32_values_cast(void **state)
{
    (void)state;
    static const heft_dtype dtypes[] = {HEFT_DTYPE_F64, HEFT_DTYPE_F16, HEFT_DTYPE_BF16};
    for (size_t k = 0; k < KINDS; k++) {
        heft_parameter parameter = parameter_of("w", HEFT_DTYPE_F32, shape_1500_64);
        float *plain = make_values(&parameter, &kinds[k].rule, 5, 96000); /* [96000] */
        for (size_t d = 0; d < 3; d++) {
            heft_parameter other = parameter_of("w", dtypes[d], shape_1500_64);
            void *values = make_values(&other, &kinds[k].rule, 5, 7777),
                 *cast = malloc((size_t)other.size_bytes);
            heft__cast(dtypes[d], cast, HEFT_DTYPE_F32, plain, 96000);
            assert_memory_equal(values, cast, (size_t)other.size_bytes);
            free(values);
            free(cast);
        }
        free(plain);
    }
}

static void values_differ_by_seed_and_name(void **state)
{
    (void)state;
    heft_parameter a = parameter_of("a", HEFT_DTYPE_F32, shape_9_8),
                   b = parameter_of("b", HEFT_DTYPE_F32, shape_9_8);
    const heft__init_rule rule = {.kind = HEFT__INIT_NORMAL, .b = 1, .zero_row = -1};
    float *a0 = make_values(&a, &rule, 0, 72), *a1 = make_values(&a, &rule, 1, 72),
          *b0 = make_values(&b, &rule, 0, 72);
    for (size_t i = 0; i < 72; i++) {
        assert_true(a0[i] != a1[i] && a0[i] != b0[i]);
    }
    free(a0);
    free(a1);
    free(b0);
}

static void random_rules_keep_their_bounds_and_moments(void **state)
{
    (void)state;
    heft_parameter parameter = parameter_of("w", HEFT_DTYPE_F32, shape_1500_64);
    static const struct {
        size_t kind;
        double low, high, mean,
            std; /* a standard normal cut at -1.5 and 1: by the textbook's formula */
    } rows[] = {
        {3, -1.5, 1.0, -0.145187, 0.644736},
        {4, -2.0, 3.0, 0.5,       1.443376},
    };
    for (size_t r = 0; r < 2; r++) {
        const size_t count = 96000;
        double sum = 0, squares = 0;
        float *values = make_values(&parameter, &kinds[rows[r].kind].rule, 1, count); /* [count] */
        for (size_t i = 0; i < count; i++) {
            assert_true((double)values[i] >= rows[r].low && (double)values[i] <= rows[r].high);
            sum += (double)values[i];
            squares += (double)values[i] * (double)values[i];
        }
        double mean = sum / (double)count, std = sqrt(squares / (double)count - mean * mean);
        if (fabs(mean - rows[r].mean) > 0.01 || fabs(std - rows[r].std) > 0.01) {
            fail_msg("%s: mean %g, std %g", kinds[rows[r].kind].name, mean, std);
        }
        free(values);
    }
}

static void zero_rows_are_zero_and_no_others(void **state)
{
    (void)state;
    for (int64_t row = -1; row < 12; row++) { /* rows past the end zero nothing */
        heft_parameter parameter = parameter_of("w", HEFT_DTYPE_F32, shape_9_8);
        const heft__init_rule rule = {.kind = HEFT__INIT_NORMAL, .b = 1, .zero_row = row};
        float *values = make_values(&parameter, &rule, 2, 5); /* [9, 8] */
        for (int64_t i = 0; i < 72; i++) {
            assert_true((values[i] == 0) == (i / 8 == row));
        }
        free(values);
    }
}

static void buffers_of_integers_count_or_repeat(void **state)
{
    (void)state;
    static const heft_dtype dtypes[] = {HEFT_DTYPE_I64, HEFT_DTYPE_I32, HEFT_DTYPE_I16,
                                        HEFT_DTYPE_I8,  HEFT_DTYPE_U8,  HEFT_DTYPE_U16,
                                        HEFT_DTYPE_U32, HEFT_DTYPE_U64, HEFT_DTYPE_BOOL};
    const heft__init_rule counting = {.kind = HEFT__INIT_ARANGE, .zero_row = -1},
                          one = heft__init_constant(1);
    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
        heft_parameter parameter = parameter_of("ids", dtypes[d], shape_9_8);
        size_t element = heft_dtype_bits(dtypes[d]) / 8;
        uint8_t *counts = make_values(&parameter, &counting, 0, 5),
                *ones = make_values(&parameter, &one, 0, 72);
        for (size_t i = 0; i < 72; i++) {
            uint8_t expected[8] = {(uint8_t)(i % 8)},
                    unit[8] = {1}; /* as little-endian machines have it */
            assert_memory_equal(counts + i * element, expected, element);
            assert_memory_equal(ones + i * element, unit, element);
        }
        free(counts);
        free(ones);
    }
}

static void rules_that_a_dtype_cannot_hold_are_refused(void **state)
{
    (void)state;
    static const heft_dtype dtypes[] = {HEFT_DTYPE_I64, HEFT_DTYPE_BOOL, HEFT_DTYPE_C64,
                                        HEFT_DTYPE_F8_E4M3FN};
    for (size_t d = 0; d < 4; d++) {
        heft_parameter parameter = parameter_of("odd", dtypes[d], shape_9_8);
        heft_error err = {0};
        float scratch[4];
        uint8_t dst[64];
        heft_status status =
            heft__init_fill(&parameter, &kinds[1].rule, 0, 0, 4, scratch, dst, &err);
        test_expect_status(status, HEFT_UNSUPPORTED, &err, heft_dtype_name(dtypes[d]));
        assert_string_equal(err.item, "odd");
    }
}

static void sinusoids_are_those_of_the_reference(void **state)
{
    (void)state;
    /* the second row of whisper's encoder positions, [64, 256], as golden data has it */
    static const double second[] = {0.841470957, 0.801646829, 0.761084616,
                                    0.72046572,  0.680318117, 0.641043067};
    heft_parameter parameter = parameter_of("p", HEFT_DTYPE_F32, shape_64_256);
    float *halves = make_values(&parameter, &kinds[7].rule, 0, 1000); /* [64, 256] */
    for (size_t j = 0; j < 6; j++) {
        assert_true(fabs((double)halves[256 + j] - second[j]) < 2e-7);
    }
    assert_true(halves[0] == 0 && halves[128] == 1 &&
                fabs((double)halves[256 + 128] - cos(1)) < 1e-6);
    float *pairs = make_values(&parameter, &kinds[6].rule, 0, 1000); /* [64, 256] */
    assert_true(pairs[0] == 0 && pairs[1] == 1 && fabs((double)pairs[5 * 256] - sin(5)) < 1e-6);
    assert_true(fabs((double)pairs[5 * 256 + 7] - cos(5 / pow(10000, 6.0 / 256))) < 1e-6);
    free(halves);
    free(pairs);
}

/* ---- whole models ---------------------------------------------------------------------------- */
static const char wide[] =
    "{\"model_type\":\"bert\",\"hidden_size\":64,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":4,\"vocab_size\":40000,\"intermediate_size\":64}";
static const char tiny[] =
    "{\"model_type\":\"bert\",\"hidden_size\":8,\"num_hidden_layers\":1,\"num_attention_heads\":2,"
    "\"intermediate_size\":16,\"vocab_size\":12,\"max_position_embeddings\":6}";

/* SHA-256 of every parameter's bytes, in order. */
static void digest_of(const heft_model *model, char hex[65])
{
    char all[65 * 64] = "";
    heft_error err;
    size_t at = 0;
    for (size_t i = 0; i < heft_model_count(model); i++) {
        heft_tensor *tensor = NULL;
        test_expect_status(heft_model_tensor(model, i, &tensor, &err), HEFT_OK, &err, "digest");
        assert_true(at + 65 < sizeof all);
        test_sha256(tensor->data, (size_t)tensor->size_bytes, all + at);
        at += 64;
        heft_tensor_free(tensor);
    }
    test_sha256(all, at, hex);
}

static void values_do_not_hang_on_the_threads(void **state)
{
    (void)state;
    static const unsigned threads[] = {1, 2, 7};
    char first[65] = "", other[65];
    for (size_t t = 0; t < 3; t++) {
        const heft_ctx_options options = HEFT_OPTIONS(heft_ctx_options, .threads = threads[t]);
        heft_ctx *own = heft_ctx_new(&options);
        heft_model *model = test_model_from_text(own, wide, "BertForMaskedLM");
        heft_error err;
        test_expect_status(heft_model_init(model, NULL, &err), HEFT_OK, &err, "threads");
        digest_of(model, t ? other : first);
        assert_true(t == 0 || strcmp(first, other) == 0);
        heft_model_free(model);
        heft_ctx_free(own);
    }
}

static void tied_parameters_share_one_storage(void **state)
{
    (void)state;
    heft_error err;
    heft_tensor *a = NULL, *b = NULL;
    uint64_t before, after;
    heft_ctx *own = heft_ctx_new(NULL);
    heft_model *model = test_model_from_text(own, wide, "BertForPreTraining");
    heft_ctx_memory(own, &before, NULL);
    test_expect_status(heft_model_init(model, NULL, &err), HEFT_OK, &err, "init");
    heft_ctx_memory(own, &after, NULL);
    assert_true(after - before <
                heft_model_bytes(model) + 40000); /* buffers and heads of storages */
    for (size_t i = 0; i < heft_model_count(model); i++) {
        size_t source = heft_model_parameter(model, i)->tied_to;
        assert_int_equal(heft_model_parameter(model, i)->state, HEFT_PARAMETER_OWNED);
        test_expect_status(heft_model_tensor(model, i, &a, &err), HEFT_OK, &err, "tensor");
        test_expect_status(heft_model_tensor(model, source, &b, &err), HEFT_OK, &err, "tensor");
        assert_ptr_equal(a->data, b->data);
        heft_tensor_free(a);
        heft_tensor_free(b);
    }
    heft_model_free(model);
    heft_ctx_free(own);
}

static void only_absent_parameters_get_values(void **state)
{
    (void)state;
    heft_error err;
    heft_storage *storage = NULL;
    heft_tensor *tensor = NULL;
    heft_model *model = test_model_from_text(ctx, tiny, "BertForMaskedLM");
    size_t words = heft_model_find(model, "bert.embeddings.word_embeddings.weight");
    size_t decoder = heft_model_find(model, "cls.predictions.decoder.weight");
    size_t bytes = (size_t)heft_model_parameter(model, words)->size_bytes;
    assert_int_equal(heft__storage_new(ctx, bytes, &storage, &err), HEFT_OK);
    memset(heft_storage_data(storage), 0x3F, bytes);
    void *data = heft_storage_data(storage);
    heft__model_bind(model, words, storage, 0, HEFT_PARAMETER_MAPPED);
    test_expect_status(heft_model_init(model, NULL, &err), HEFT_OK, &err, "init");
    assert_int_equal(heft_model_parameter(model, words)->state, HEFT_PARAMETER_MAPPED);
    assert_int_equal(heft_model_parameter(model, decoder)->state, HEFT_PARAMETER_MAPPED);
    assert_int_equal(heft_model_tensor(model, decoder, &tensor, &err), HEFT_OK);
    assert_ptr_equal(tensor->data, data);
    assert_int_equal(*(uint8_t *)data, 0x3F);
    heft_tensor_free(tensor);
    test_expect_status(heft_model_init(model, NULL, &err), HEFT_OK, &err, "nothing is absent");
    heft_model_free(model);
    assert_int_equal(heft_model_init(NULL, NULL, NULL), HEFT_INVALID_ARG);
}

static void padding_and_deviation_come_from_the_config(void **state)
{
    (void)state;
    static const struct {
        const char *keys;
        int64_t row;
        float std;
    } rows[] = {
        {"\"a\":0",                    0,  0.02F},
        {"\"pad_token_id\":null",      -1, 0.02F},
        {"\"pad_token_id\":3",         3,  0.02F},
        {"\"pad_token_id\":-1",        11, 0.02F},
        {"\"initializer_range\":0",    0,  0.02F},
        {"\"initializer_range\":0.0",  0,  0.02F},
        {"\"initializer_range\":0.5",  0,  0.5F },
        {"\"initializer_range\":null", 0,  0.02F},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[400];
        snprintf(text, sizeof text, "{%s,%s", rows[i].keys, tiny + 1);
        heft_model *model = test_model_from_text(ctx, text, "BertModel");
        const heft__init_rule *rule =
            model->rules[heft_model_find(model, "embeddings.word_embeddings.weight")];
        assert_int_equal(rule->kind, HEFT__INIT_NORMAL);
        assert_int_equal(rule->zero_row, rows[i].row);
        assert_true(rule->a == 0 && rule->b == rows[i].std);
        rule = model->rules[heft_model_find(model, "embeddings.position_embeddings.weight")];
        assert_true(rule->zero_row == -1 && rule->b == rows[i].std);
        heft_model_free(model);
    }
}

static void transient_buffers_are_filled(void **state)
{
    (void)state;
    heft_error err;
    heft_tensor *ids = NULL, *types = NULL;
    heft_model *model = test_model_from_text(ctx, tiny, "BertModel");
    test_expect_status(heft_model_init(model, NULL, &err), HEFT_OK, &err, "init");
    size_t i = heft_model_find(model, "embeddings.position_ids");
    test_expect_status(heft_model_tensor(model, i, &ids, &err), HEFT_OK, &err, "position_ids");
    i = heft_model_find(model, "embeddings.token_type_ids");
    test_expect_status(heft_model_tensor(model, i, &types, &err), HEFT_OK, &err, "token_type_ids");
    for (int64_t k = 0; k < 6; k++) {
        assert_int_equal(((const int64_t *)ids->data)[k], k);
        assert_int_equal(((const int64_t *)types->data)[k], 0);
    }
    heft_tensor_free(ids);
    heft_tensor_free(types);
    heft_model_free(model);
}

/* ---- progress, memory ------------------------------------------------------------------------ */
struct watcher {
    pthread_t caller;
    uint64_t last, total;
    unsigned calls, stop_at; /* stop_at 0: never */
    bool other_thread;
};

static bool watch(void *user, const heft_progress *progress)
{
    struct watcher *watcher = user;
    watcher->other_thread |= !pthread_equal(pthread_self(), watcher->caller);
    assert_true(progress->done_bytes >= watcher->last &&
                progress->done_bytes <= progress->total_bytes);
    watcher->last = progress->done_bytes;
    watcher->total = progress->total_bytes;
    return ++watcher->calls != watcher->stop_at;
}

static void progress_is_told_by_the_caller_and_can_cancel(void **state)
{
    (void)state;
    for (unsigned stop_at = 0; stop_at < 3; stop_at++) {
        struct watcher watcher = {.caller = pthread_self(), .stop_at = stop_at};
        const heft_ctx_options options =
            HEFT_OPTIONS(heft_ctx_options, .threads = stop_at == 2 ? 1 : 3, .progress = watch,
                         .progress_user = &watcher);
        heft_ctx *own = heft_ctx_new(&options);
        heft_model *model = test_model_from_text(own, wide, "BertForMaskedLM");
        heft_error err = {0};
        uint64_t before, after;
        heft_ctx_memory(own, &before, NULL);
        heft_status status = heft_model_init(model, NULL, &err);
        test_expect_status(status, stop_at ? HEFT_CANCELLED : HEFT_OK, &err, "progress");
        heft_ctx_memory(own, &after, NULL);
        assert_false(watcher.other_thread);
        if (stop_at) {
            assert_int_equal(before, after);
            assert_int_equal(watcher.calls, stop_at);
            for (size_t i = 0; i < heft_model_count(model); i++) {
                assert_int_equal(heft_model_parameter(model, i)->state, HEFT_PARAMETER_ABSENT);
            }
        } else {
            assert_true(watcher.last == watcher.total && watcher.total > heft_model_bytes(model));
        }
        heft_model_free(model);
        heft_ctx_free(own);
    }
}

static heft_status make_and_init(heft_ctx *with, void *user, heft_error *err)
{
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft_status status = heft__config_parse(with, "c", tiny, strlen(tiny), &config, err);
    (void)user;
    if (status == HEFT_OK) {
        status = heft_model_new(with, config, "BertForMaskedLM", HEFT_DTYPE_F16, &model, err);
    }
    if (status == HEFT_OK) {
        status = heft_model_init(model, NULL, err);
        for (size_t i = 0; i < heft_model_count(model); i++) {
            assert_int_equal(heft_model_parameter(model, i)->state,
                             status == HEFT_OK ? HEFT_PARAMETER_OWNED : HEFT_PARAMETER_ABSENT);
        }
    }
    heft_config_free(config);
    heft_model_free(model);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    test_oom_sweep(make_and_init, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(initial_values_follow_the_golden_rules),
        cmocka_unit_test(rotary_frequencies_are_golden),
        cmocka_unit_test(values_do_not_hang_on_the_pieces),
        cmocka_unit_test(other_dtypes_are_the_float32_values_cast),
        cmocka_unit_test(values_differ_by_seed_and_name),
        cmocka_unit_test(random_rules_keep_their_bounds_and_moments),
        cmocka_unit_test(zero_rows_are_zero_and_no_others),
        cmocka_unit_test(buffers_of_integers_count_or_repeat),
        cmocka_unit_test(rules_that_a_dtype_cannot_hold_are_refused),
        cmocka_unit_test(sinusoids_are_those_of_the_reference),
        cmocka_unit_test(values_do_not_hang_on_the_threads),
        cmocka_unit_test(tied_parameters_share_one_storage),
        cmocka_unit_test(only_absent_parameters_get_values),
        cmocka_unit_test(padding_and_deviation_come_from_the_config),
        cmocka_unit_test(transient_buffers_are_filled),
        cmocka_unit_test(progress_is_told_by_the_caller_and_can_cancel),
        cmocka_unit_test(memory_can_run_out_anywhere),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
