/* The tree of modules: pre-order, look-ups by relative name and by role, sizes, marks and units; on
 * every golden skeleton and on a few models by hand. */
#include "model/model.h"
#include "support.h"
#include "support_model.h"

#include <stdlib.h>

static heft_ctx *ctx;

/* ---- every golden skeleton -------------------------------------------------------------------- */
static int by_text(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

static void expect_unique_paths(const char *what, const heft_model *model)
{
    const size_t count = heft_model_module_count(model);
    const char **paths = malloc(count * sizeof *paths);
    for (size_t i = 0; i < count; i++) {
        paths[i] = heft_model_module(model, i)->path;
    }
    qsort(paths, count, sizeof *paths, by_text);
    for (size_t i = 1; i < count; i++) {
        if (strcmp(paths[i - 1], paths[i]) == 0) {
            fail_msg("%s: '%s' is there twice", what, paths[i]);
        }
    }
    free(paths);
}

static void expect_in_order(const char *what, const heft_model *model, size_t i)
{
    const heft_module *module = heft_model_module(model, i),
                      *parent = heft_model_module(model, module->parent);
    const size_t above = parent ? strlen(parent->path) : 0;
    bool good = module->end > i && module->end <= heft_model_module_count(model);
    if (i > 0) {
        good = good && parent && module->parent < i && module->end <= parent->end &&
               strncmp(module->path, parent->path, above) == 0 &&
               (above == 0 || module->path[above] == '.') &&
               strcmp(module->path + above + (above > 0), module->name) == 0 &&
               heft_model_find_module(model, module->parent, module->name) == i;
    } else {
        good = good && !parent && module->parent == SIZE_MAX && *module->path == '\0' &&
               strcmp(module->class_name, heft_model_class(model)) == 0;
    }
    if (!good) {
        fail_msg("%s: module %zu, '%s', does not stand where it should", what, i, module->path);
    }
}

/* Each parameter is in one module's list, weights first. */
static void expect_parameters(const char *what, const heft_model *model, size_t i, size_t *seen)
{
    const heft_module *module = heft_model_module(model, i);
    bool buffers = false;
    for (size_t k = 0; k < module->parameter_count; k++, ++*seen) {
        const size_t number = module->parameters[k];
        const heft_parameter *parameter = heft_model_parameter(model, number);
        char name[1100];
        snprintf(name, sizeof name, "%s%s%s", module->path, *module->path ? "." : "",
                 parameter->role);
        if (parameter->module != i || strcmp(name, parameter->name) != 0 ||
            heft_model_module_parameter(model, i, parameter->role) != number ||
            (buffers && parameter->kind == HEFT_PARAMETER_WEIGHT)) {
            fail_msg("%s: '%s' is not in the list of '%s'", what, parameter->name, module->path);
        }
        buffers = buffers || parameter->kind != HEFT_PARAMETER_WEIGHT;
    }
    if (module->parameter_count == 0 && module->end == i + 1) {
        fail_msg("%s: '%s' holds nothing", what, module->path);
    }
}

/* The long way: each storage of the subtree once. */
static uint64_t count_bytes(const heft_model *model, size_t i)
{
    const heft_module *module = heft_model_module(model, i);
    const size_t count = heft_model_count(model);
    uint64_t bytes = 0;
    bool *seen = calloc(count, 1);
    for (size_t k = 0; k < count; k++) {
        const heft_parameter *parameter = heft_model_parameter(model, k);
        if (parameter->module >= i && parameter->module < module->end &&
            parameter->kind != HEFT_PARAMETER_BUFFER_TRANSIENT && !seen[parameter->tied_to]) {
            seen[parameter->tied_to] = true;
            bytes += parameter->size_bytes;
        }
    }
    free(seen);
    return bytes;
}

/* Every parameter is in one unit: the innermost marked one, else its own module. */
static void expect_units(const char *what, const heft_model *model)
{
    heft__arena arena;
    heft__units units = {0};
    heft_error err = {0};
    heft__arena_init(&arena, ctx);
    test_expect_status(heft__units_list(model, &arena, &units, &err), HEFT_OK, &err, what);
    assert_int_equal(units.starts[units.count], heft_model_count(model));
    for (size_t u = 0; u < units.count; u++) {
        assert_true(u == 0 || units.modules[u] > units.modules[u - 1]);
        assert_true(units.starts[u] < units.starts[u + 1]);
        for (size_t k = units.starts[u]; k < units.starts[u + 1]; k++) {
            const size_t number = units.parameters[k];
            const heft_parameter *parameter = heft_model_parameter(model, number);
            size_t owner = parameter->module;
            while (owner != SIZE_MAX && !heft_model_module(model, owner)->unit) {
                owner = heft_model_module(model, owner)->parent;
            }
            owner = owner == SIZE_MAX ? parameter->module : owner;
            if (units.unit_of[number] != u || units.modules[u] != owner) {
                fail_msg("%s: '%s' is in the wrong unit", what, parameter->name);
            }
        }
    }
    heft__arena_fini(&arena);
}

static void check_tree(const char *what, heft_model *model)
{
    const size_t count = heft_model_module_count(model);
    size_t seen = 0;
    expect_unique_paths(what, model);
    for (size_t i = 0; i < count; i++) {
        const heft_module *module = heft_model_module(model, i);
        if (count < 3000) { /* looking a module up goes through its siblings */
            expect_in_order(what, model, i);
        }
        expect_parameters(what, model, i, &seen);
        if (count < 300 && module->bytes != count_bytes(model, i)) {
            fail_msg("%s: '%s' has %llu bytes", what, module->path,
                     (unsigned long long)module->bytes);
        }
        assert_non_null(heft_module_kind_name(module->kind));
    }
    assert_int_equal(seen, heft_model_count(model));
    assert_true(heft_model_module(model, 0)->bytes == heft_model_bytes(model));
    assert_null(heft_model_module(model, count));
    expect_units(what, model);
}

static void trees_hold_every_parameter_once(void **state)
{
    (void)state;
    assert_true(test_each_skeleton(ctx, check_tree) >= 190);
}

/* ---- by hand ---------------------------------------------------------------------------------- */
static const char tiny[] =
    "{\"model_type\":\"bert\",\"hidden_size\":8,\"num_hidden_layers\":2,\"num_attention_heads\":2,"
    "\"intermediate_size\":16,\"vocab_size\":12,\"max_position_embeddings\":6}";

static void modules_are_found_by_relative_names(void **state)
{
    (void)state;
    heft_model *model = test_model_from_text(ctx, tiny, "BertForMaskedLM");
    static const struct {
        const char *from, *relative, *found; /* found: the path; NULL: none */
    } rows[] = {
        {"",             "",                     ""                           },
        {"",             "bert",                 "bert"                       },
        {"",             "bert.encoder.layer.1", "bert.encoder.layer.1"       },
        {"bert.encoder", "",                     "bert.encoder"               },
        {"bert.encoder", "layer.0.output",       "bert.encoder.layer.0.output"},
        {"bert.encoder", "layer.2",              NULL                         },
        {"bert.encoder", "bert",                 NULL                         },
        {"",             "ber",                  NULL                         },
        {"",             "bertt",                NULL                         },
        {"",             "bert.",                NULL                         },
        {"",             ".bert",                NULL                         },
        {"",             "cls.predictions.bias", NULL                         }, /* is no module */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const size_t from = heft_model_find_module(model, 0, rows[i].from);
        const size_t found = heft_model_find_module(model, from, rows[i].relative);
        if (!rows[i].found) {
            assert_true(found == SIZE_MAX);
        } else {
            assert_string_equal(heft_model_module(model, found)->path, rows[i].found);
        }
    }
    const size_t count = heft_model_module_count(model);
    assert_true(heft_model_find_module(model, count, "") == SIZE_MAX);
    assert_true(heft_model_find_module(model, SIZE_MAX, "bert") == SIZE_MAX);
    const size_t head = heft_model_find_module(model, 0, "cls.predictions");
    assert_int_equal(heft_model_module_parameter(model, head, "bias"),
                     heft_model_find(model, "cls.predictions.bias"));
    assert_true(heft_model_module_parameter(model, head, "weight") == SIZE_MAX);
    assert_true(heft_model_module_parameter(model, count, "bias") == SIZE_MAX);
    assert_null(heft_module_kind_name((heft_module_kind)99));
    heft_model_free(model);
}

static void layers_and_embeddings_stay_whole(void **state)
{
    (void)state;
    heft_model *model = test_model_from_text(ctx, tiny, "BertForMaskedLM");
    static const struct {
        const char *path;
        bool marked;
    } rows[] = {
        {"",                                false},
        {"bert",                            false},
        {"bert.embeddings",                 true },
        {"bert.embeddings.word_embeddings", false},
        {"bert.encoder.layer",              false},
        {"bert.encoder.layer.0",            true },
        {"bert.encoder.layer.1",            true },
        {"bert.encoder.layer.1.attention",  false},
        {"cls.predictions.decoder",         false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const heft_module *module =
            heft_model_module(model, heft_model_find_module(model, 0, rows[i].path));
        assert_non_null(module);
        assert_int_equal(module->no_split, rows[i].marked);
        assert_int_equal(module->unit, rows[i].marked);
    }
    heft_model_free(model);
}

static heft_status list_units(heft_ctx *with, void *user, heft_error *err)
{
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft__arena arena;
    heft__units units;
    (void)user;
    heft__arena_init(&arena, with);
    heft_status status = heft__config_parse(with, "c", tiny, strlen(tiny), &config, err);
    if (status == HEFT_OK) {
        status = heft_model_create(with, config, "BertForMaskedLM", HEFT_DTYPE_NONE, &model, err);
    }
    if (status == HEFT_OK) {
        status = heft__units_list(model, &arena, &units, err);
    }
    if (status == HEFT_OK) {
        status = heft__modules_measure(model, err);
    }
    heft__arena_fini(&arena);
    heft_model_free(model);
    heft_config_free(config);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    test_oom_sweep(list_units, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trees_hold_every_parameter_once),
        cmocka_unit_test(modules_are_found_by_relative_names),
        cmocka_unit_test(layers_and_embeddings_stay_whole),
        cmocka_unit_test(memory_can_run_out_anywhere),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
