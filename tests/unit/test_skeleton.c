/* Every golden skeleton: names, order, shapes, dtypes, ties, buffers, no-split blocks, counts; and
 * the initial values. */
#include "model/model.h"
#include "support.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>

static heft_ctx *ctx;

static heft__json_value *read_json(heft__arena *arena, const char *path)
{
    size_t length;
    heft_error err;
    heft__json_value *root = NULL;
    char *text = test_read_file(path, &length);
    test_expect_status(heft__json_parse(arena, text, length, 128, &root, &err), HEFT_OK, &err,
                       path);
    free(text);
    return root;
}

static heft_model *make_model(const heft__json_value *config, const char *class_name,
                              const char *what)
{
    heft__buffer text;
    heft_config *parsed = NULL;
    heft_model *model = NULL;
    heft_error err;
    heft__buffer_init(&text, ctx);
    heft__json_write_compact(&text, config);
    test_expect_status(heft__config_parse(ctx, what, text.data, text.size, &parsed, &err), HEFT_OK,
                       &err, what);
    test_expect_status(heft_model_create(ctx, parsed, class_name, HEFT_DTYPE_NONE, &model, &err),
                       HEFT_OK, &err, what);
    heft_config_free(parsed);
    heft__buffer_fini(&text);
    return model;
}

/* [name, shape, dtype] against parameter i. */
static void compare_row(const char *what, const heft_model *model, size_t i,
                        const heft__json_value *row)
{
    const heft_parameter *parameter = heft_model_parameter(model, i);
    const heft__json_value *name = row->first, *shape = name->next, *dtype = shape->next,
                           *dim = shape->first;
    if (!parameter || strcmp(parameter->name, name->text) != 0) {
        fail_msg("%s: place %zu has '%s', expected '%s'", what, i,
                 parameter ? parameter->name : "nothing", name->text);
        return;
    }
    bool same = parameter->rank == shape->count &&
                strcmp(heft_dtype_safetensors_name(parameter->dtype), dtype->text) == 0;
    for (uint32_t d = 0; same && d < parameter->rank; d++, dim = dim->next) {
        uint64_t value = 0;
        same = heft__json_as_u64(dim, &value) && value == parameter->shape[d];
    }
    if (!same) {
        fail_msg("%s: '%s' has another shape or dtype", what, name->text);
    }
}

static size_t next_saved(const heft_model *model, size_t i)
{
    while (i < heft_model_count(model) &&
           (heft_model_parameter(model, i)->kind == HEFT_PARAMETER_BUFFER_TRANSIENT ||
            heft_model_parameter(model, i)->tied_to != i)) {
        i++;
    }
    return i;
}

static void compare_lists(const char *what, const heft_model *model, const heft__json_value *golden)
{
    const heft__json_value *saved = heft__json_member(golden, "saved"),
                           *params = heft__json_member(golden, "params");
    size_t at = next_saved(model, 0);
    for (const heft__json_value *row = saved ? saved->first : NULL; row;
         row = row->next, at = next_saved(model, at + 1)) {
        compare_row(what, model, at, row);
    }
    assert_true(!saved || at == heft_model_count(model));
    at = 0;
    for (const heft__json_value *row = params ? params->first : NULL; row; row = row->next) {
        compare_row(what, model, at++, row);
    }
    const heft__json_value *buffers = heft__json_member(golden, "buffers");
    const heft__json_value *transient = heft__json_member(buffers, "non_persistent");
    for (const heft__json_value *row = transient ? transient->first : NULL; row; row = row->next) {
        size_t i = heft_model_find(model, row->first->text);
        if (i == SIZE_MAX) {
            fail_msg("%s: no buffer '%s'", what, row->first->text);
        }
        compare_row(what, model, i, row);
        assert_int_equal(heft_model_parameter(model, i)->kind, HEFT_PARAMETER_BUFFER_TRANSIENT);
    }
}

static void compare_digest(const char *what, const heft_model *model,
                           const heft__json_value *golden)
{
    heft__buffer text;
    char hex[65];
    heft__buffer_init(&text, ctx);
    for (size_t i = next_saved(model, 0); i < heft_model_count(model);
         i = next_saved(model, i + 1)) {
        const heft_parameter *parameter = heft_model_parameter(model, i);
        heft__buffer_format(&text, "%s\t%s\t", parameter->name,
                            heft_dtype_safetensors_name(parameter->dtype));
        for (uint32_t d = 0; d < parameter->rank; d++) {
            heft__buffer_format(&text, "%s%llu", d ? "x" : "",
                                (unsigned long long)parameter->shape[d]);
        }
        heft__buffer_byte(&text, '\n');
    }
    test_sha256(text.data, text.size, hex);
    heft__buffer_fini(&text);
    if (strcmp(hex, heft__json_member(golden, "sha256")->text) != 0) {
        fail_msg("%s: the digest differs", what);
    }
}

static void compare_numbers(const char *what, const heft_model *model,
                            const heft__json_value *golden)
{
    uint64_t elements = 0, bytes = 0;
    assert_true(heft__json_as_u64(heft__json_member(golden, "num_parameters"), &elements));
    assert_true(heft__json_as_u64(heft__json_member(golden, "saved_bytes"), &bytes));
    if (heft_model_elements(model) != elements || heft_model_bytes(model) != bytes) {
        fail_msg("%s: %llu elements, %llu bytes", what,
                 (unsigned long long)heft_model_elements(model),
                 (unsigned long long)heft_model_bytes(model));
    }
    const heft__json_value *groups = heft__json_member(golden, "tied_groups");
    size_t tied = 0, expected = 0;
    for (const heft__json_value *group = groups ? groups->first : NULL; group;
         group = group->next) {
        size_t source = heft_model_find(model, group->first->text);
        for (const heft__json_value *name = group->first->next; name;
             name = name->next, expected++) {
            assert_int_equal(
                heft_model_parameter(model, heft_model_find(model, name->text))->tied_to, source);
        }
    }
    for (size_t i = 0; i < heft_model_count(model); i++) {
        tied += heft_model_parameter(model, i)->tied_to != i;
    }
    assert_true(!groups || tied == expected); /* real sizes come without lists */
    const heft__json_value *no_split = heft__json_member(golden, "no_split_modules");
    size_t k = 0;
    for (const heft__json_value *name = no_split->first; name; name = name->next) {
        assert_string_equal(heft_model_no_split(model, k++), name->text);
    }
    assert_null(heft_model_no_split(model, k));
}

static void skeletons_are_golden(void **state)
{
    (void)state;
    size_t classes_seen = 0;
    DIR *folder = opendir(HEFT_TEST_DATA "/skeletons");
    assert_non_null(folder);
    for (struct dirent *e = readdir(folder); e; e = readdir(folder)) {
        char path[512], what[800];
        if (!strstr(e->d_name, ".json")) {
            continue;
        }
        heft__arena arena;
        heft__arena_init(&arena, ctx);
        snprintf(path, sizeof path, "%s/skeletons/%s", HEFT_TEST_DATA, e->d_name);
        const heft__json_value *root = read_json(&arena, path),
                               *classes = heft__json_member(root, "classes");
        for (const heft__json_value *golden = classes->first; golden;
             golden = golden->next, classes_seen++) {
            const heft__json_value *own = heft__json_member(golden, "config");
            snprintf(what, sizeof what, "%s %s", e->d_name, golden->key);
            heft_model *model =
                make_model(own ? own : heft__json_member(root, "config"), golden->key, what);
            compare_lists(what, model, golden);
            compare_digest(what, model, golden);
            compare_numbers(what, model, golden);
            heft_model_free(model);
        }
        heft__arena_fini(&arena);
    }
    closedir(folder);
    assert_true(classes_seen >= 8);
}

/* ---- initial values
 * --------------------------------------------------------------------------------------- */
static void compare_values(const char *what, const heft_tensor *tensor,
                           const heft__json_value *rule)
{
    const float *values = tensor->data; /* [count] */
    size_t count = tensor->size_bytes / sizeof *values, used = 0;
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
    if (strcmp(kind, "normal") != 0) {
        fail_msg("%s: no check for rule %s", what, kind);
    }
    assert_true(heft__json_as_double(heft__json_member(rule, "mean"), &mean));
    assert_true(heft__json_as_double(heft__json_member(rule, "std"), &std));
    size_t width = count / tensor->shape[0];
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

static void initial_values_follow_the_golden_rules(void **state)
{
    (void)state;
    heft__arena arena;
    heft_error err;
    heft__arena_init(&arena, ctx);
    const heft__json_value *cases =
        heft__json_member(read_json(&arena, HEFT_TEST_DATA "/init/bert.json"), "cases");
    size_t rules = 0;
    for (const heft__json_value *one = cases->first; one; one = one->next) {
        const heft__json_value *classes = heft__json_member(one, "params");
        for (const heft__json_value *class = classes->first; class; class = class->next) {
            heft_model *model =
                make_model(heft__json_member(one, "config"), class->key, class->key);
            heft_init_options options = {.seed = 3};
            test_expect_status(heft_model_init(model, &options, &err), HEFT_OK, &err, class->key);
            for (const heft__json_value *rule = class->first; rule; rule = rule->next, rules++) {
                heft_tensor *tensor = NULL;
                const char *name = heft__json_member(rule, "name")->text;
                size_t i = heft_model_find(model, name);
                test_expect_status(heft_model_tensor(model, i, &tensor, &err), HEFT_OK, &err, name);
                if (!heft__json_member(rule, "tied_to")) {
                    compare_values(name, tensor, rule);
                }
                heft_tensor_free(tensor);
            }
            heft_model_free(model);
        }
    }
    assert_true(rules > 70);
    heft__arena_fini(&arena);
}

static void values_do_not_hang_on_the_threads(void **state)
{
    (void)state;
    static const char config[] =
        "{\"model_type\":\"bert\",\"hidden_size\":64,\"num_hidden_layers\":1,"
        "\"num_attention_heads\":4,\"vocab_size\":40000,\"intermediate_size\":64}";
    uint8_t *first = NULL;
    for (unsigned threads = 1; threads < 8; threads += 3) {
        const heft_ctx_options options = {.threads = threads};
        heft_ctx *own = heft_ctx_new(&options);
        heft_config *parsed = NULL;
        heft_model *model = NULL;
        heft_tensor *tensor = NULL;
        heft_error err;
        assert_int_equal(heft__config_parse(own, "c", config, strlen(config), &parsed, &err),
                         HEFT_OK);
        assert_int_equal(heft_model_create(own, parsed, NULL, HEFT_DTYPE_NONE, &model, &err),
                         HEFT_OK);
        assert_int_equal(heft_model_init(model, NULL, &err), HEFT_OK);
        assert_int_equal(heft_model_tensor(model, 0, &tensor, &err), HEFT_OK);
        if (!first) {
            first = malloc(tensor->size_bytes);
            memcpy(first, tensor->data, tensor->size_bytes);
        }
        assert_memory_equal(first, tensor->data, tensor->size_bytes);
        heft_tensor_free(tensor);
        heft_model_free(model);
        heft_config_free(parsed);
        heft_ctx_free(own);
    }
    free(first);
}

static heft_status parse_and_create(heft_ctx *with, void *user, heft_error *err)
{
    static const char text[] =
        "{\"model_type\":\"bert\",\"hidden_size\":32,\"num_hidden_layers\":2,\"vocab_size\":99,"
        "\"num_attention_heads\":4,\"architectures\":[\"BertForPreTraining\"]}";
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft__buffer out;
    (void)user;
    heft__buffer_init(&out, with);
    heft_status status = heft__config_parse(with, "c", text, strlen(text), &config, err);
    if (status == HEFT_OK) {
        status = heft_model_create(with, config, NULL, HEFT_DTYPE_NONE, &model, err);
    }
    if (status == HEFT_OK) {
        status = heft_model_init(model, NULL, err);
    }
    if (status == HEFT_OK) {
        status = heft__config_write(config, "BertModel", HEFT_DTYPE_F32, &out, err);
    }
    heft__buffer_fini(&out);
    heft_model_free(model);
    heft_config_free(config);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    test_oom_sweep(parse_and_create, NULL);
}

static void an_empty_bert_base_costs_little(void **state)
{
    (void)state;
    heft_error err;
    heft_model *model = NULL;
    uint64_t peak;
    heft_ctx *own = heft_ctx_new(NULL);
    test_expect_status(heft_model_new(own, HEFT_TEST_DATA "/../../examples/bert-base-cased",
                                      "BertForPreTraining", &model, &err),
                       HEFT_OK, &err, "bert-base-cased");
    heft_ctx_memory(own, NULL, &peak);
    assert_true(peak < 1000000);
    heft_model_free(model);
    heft_ctx_free(own);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(skeletons_are_golden),
        cmocka_unit_test(initial_values_follow_the_golden_rules),
        cmocka_unit_test(values_do_not_hang_on_the_threads),
        cmocka_unit_test(memory_can_run_out_anywhere),
        cmocka_unit_test(an_empty_bert_base_costs_little),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
