/* Loading as Transformers does it: every scenario of tests/data/loading, with the lists, the ties
 * and the values that it has. Where heft is meant to differ, a table says so. */
#include "load/load.h"
#include "scratch.h"
#include "support_model.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

/* ---- what is refused, and what is meant to differ -------------------------------------------- */
static const struct {
    const char *scenario;
    heft_status status;
} refusals[] = {
    {"bin_with_use_safetensors",   HEFT_NOT_FOUND},
    {"index_missing_bin_shard",    HEFT_NOT_FOUND},
    {"index_missing_shard",        HEFT_NOT_FOUND},
    {"index_not_json",             HEFT_FORMAT   },
    {"index_without_weight_map",   HEFT_FORMAT   },
    {"mismatched_and_more_raises", HEFT_MISMATCH },
    {"bin_with_use_safetensors",   HEFT_NOT_FOUND},
    {"mismatched_raises",          HEFT_MISMATCH },
    {"moe_expert_mismatched",      HEFT_MISMATCH },
    {"no_weights",                 HEFT_NOT_FOUND},
    {"truncated",                  HEFT_FORMAT   },
    {"variant_absent",             HEFT_NOT_FOUND},
};

/* Transformers refuses these; heft loads them, and only this is missing. */
static const struct {
    const char *scenario, *missing;
} accepted[] = {
    {"index_without_metadata", NULL                                                 },
    {"variant_not_asked_for",  NULL                                                 },
    {"moe_expert_missing",     "model.layers.0.block_sparse_moe.experts.1.w2.weight"},
};

/* ---- lists ----------------------------------------------------------------------------------- */
static bool holds(const heft__json_value *list, const char *name)
{
    for (const heft__json_value *item = list ? list->first : NULL; item; item = item->next) {
        const heft__json_value *text = item->type == HEFT__JSON_TYPE_ARRAY ? item->first : item;
        if (strcmp(text->text, name) == 0) {
            return true;
        }
    }
    return false;
}

static const char *inner_name(const heft_model *model, size_t i)
{
    const heft__inner *inner = heft__model_place(model, i).inner;
    return inner ? inner->name : model->parameters[i].name;
}

/* Both ways; a name of heft's counts under that of Transformers. */
static void compare_missing(const char *what, const heft_model *model,
                            const heft_load_report *report, const heft__json_value *golden)
{
    for (size_t i = 0; i < report->missing_count; i++) {
        size_t at = heft_model_find(model, report->missing[i]);
        assert_true(at != SIZE_MAX);
        if (!holds(golden, inner_name(model, at))) {
            fail_msg("%s: '%s' is said to be missing", what, report->missing[i]);
        }
    }
    for (const heft__json_value *item = golden->first; item; item = item->next) {
        bool found = false;
        for (size_t i = 0; i < report->missing_count && !found; i++) {
            size_t at = heft_model_find(model, report->missing[i]);
            found = strcmp(inner_name(model, at), item->text) == 0;
        }
        if (!found) {
            fail_msg("%s: '%s' is not said to be missing", what, item->text);
        }
    }
}

static void compare_names(const char *what, const char *const *names, size_t count,
                          const heft__json_value *golden)
{
    for (size_t i = 0; i < count; i++) {
        if (!holds(golden, names[i])) {
            fail_msg("%s: '%s' should not be listed", what, names[i]);
        }
    }
    if (count != golden->count) {
        fail_msg("%s: %zu names, expected %zu", what, count, golden->count);
    }
}

static bool same_shape(const heft__json_value *golden, const uint64_t *shape, uint32_t rank)
{
    const heft__json_value *dim = golden->first;
    bool same = golden->count == rank;
    for (uint32_t d = 0; same && d < rank; d++, dim = dim->next) {
        uint64_t value;
        same = heft__json_as_u64(dim, &value) && value == shape[d];
    }
    return same;
}

static void compare_mismatches(const char *what, const heft_load_report *report,
                               const heft__json_value *golden)
{
    assert_int_equal(report->mismatched_count, golden->count);
    for (const heft__json_value *row = golden->first; row; row = row->next) {
        bool found = false;
        for (size_t i = 0; i < report->mismatched_count; i++) {
            const heft_mismatch *one = &report->mismatched[i];
            found = found ||
                    (strcmp(one->name, row->first->text) == 0 &&
                     same_shape(row->first->next, one->checkpoint_shape, one->checkpoint_rank) &&
                     same_shape(row->first->next->next, one->model_shape, one->model_rank));
        }
        if (!found) {
            fail_msg("%s: '%s' is not among the mismatches", what, row->first->text);
        }
    }
}

/* ---- values ---------------------------------------------------------------------------------- */
/* [name, shape, dtype, sha256 or "init"]: put together from its parts where there are several. */
static void compare_value(const char *what, const heft_model *model, const heft_load_report *report,
                          const heft__json_value *row)
{
    const char *name = row->first->text, *dtype = row->first->next->next->text,
               *sha256 = row->first->next->next->next->text;
    uint8_t *bytes = NULL;
    uint64_t size = 0, parts = 0;
    for (size_t i = 0; i < model->count; i++) {
        const heft_parameter *parameter = &model->parameters[i];
        const heft__inner *inner = heft__model_place(model, i).inner;
        heft_tensor *tensor = NULL;
        heft_error err;
        if (strcmp(inner_name(model, i), name) != 0) {
            continue;
        }
        const uint64_t element = heft_dtype_bits(parameter->dtype) / 8;
        test_expect_status(heft_model_tensor(model, i, &tensor, &err), HEFT_OK, &err, name);
        assert_string_equal(heft_dtype_safetensors_name(parameter->dtype), dtype);
        assert_true(same_shape(row->first->next, inner ? inner->shape : parameter->shape,
                               inner ? inner->rank : parameter->rank));
        if (!bytes) {
            assert_true(heft__shape_bytes(parameter->dtype, inner ? inner->shape : parameter->shape,
                                          inner ? inner->rank : parameter->rank, &size));
            bytes = calloc(size ? (size_t)size : 1, 1);
        }
        memcpy(bytes + heft__model_place_first(model, i) * element, tensor->data,
               (size_t)tensor->size_bytes);
        heft_tensor_free(tensor);
        parts++;
        if (strcmp(sha256, "init") == 0) {
            bool listed = false;
            for (size_t k = 0; k < report->initialized_count; k++) {
                listed = listed || strcmp(report->initialized[k], parameter->name) == 0;
            }
            if (!listed && parameter->tied_to == i) {
                fail_msg("%s: '%s' is not in the list of what was initialized", what, name);
            }
        }
    }
    char hex[65] = "";
    if (bytes) {
        test_sha256(bytes, (size_t)size, hex);
    }
    free(bytes);
    if (parts == 0 || (strcmp(sha256, "init") != 0 && strcmp(sha256, hex) != 0)) {
        fail_msg("%s: '%s' has another value", what, name);
    }
}

static void compare_ties(const char *what, const heft_model *model, const heft__json_value *groups)
{
    size_t tied = 0, expected = 0;
    for (const heft__json_value *group = groups->first; group; group = group->next) {
        size_t first = heft_model_find(model, group->first->text);
        expected += group->count - 1;
        for (const heft__json_value *name = group->first; name; name = name->next) {
            size_t at = heft_model_find(model, name->text);
            if (at == SIZE_MAX ||
                model->parameters[at].tied_to != model->parameters[first].tied_to) {
                fail_msg("%s: '%s' is not tied", what, name->text);
            }
        }
    }
    for (size_t i = 0; i < model->count; i++) {
        tied += model->parameters[i].tied_to != i;
    }
    assert_int_equal(tied, expected);
}

/* ---- one scenario ---------------------------------------------------------------------------- */
static void copy_scenario(const char *name)
{
    char command[1200];
    snprintf(command, sizeof command, "rm -rf '%s/at' && cp -r '%s/loading/%s' '%s/at'", folder,
             HEFT_TEST_DATA, name, folder);
    assert_int_equal(system(command), 0);
}

/* An argument that changes the config: in the copy. */
static void set_in_config(const char *key, const char *value)
{
    char path[300], *text = NULL;
    size_t length;
    FILE *out;
    snprintf(path, sizeof path, "%s/at/config.json", folder);
    text = test_read_file(path, &length);
    out = fopen(path, "w");
    assert_non_null(out);
    fprintf(out, "{\"%s\": %s,%s", key, value, strchr(text, '{') + 1);
    fclose(out);
    free(text);
}

static test_how read_arguments(const heft__json_value *root)
{
    test_how options = {.class_name = heft__json_member(root, "class")->text};
    const heft__json_value *kwargs = heft__json_member(root, "kwargs");
    for (const heft__json_value *one = kwargs->first; one; one = one->next) {
        if (strcmp(one->key, "dtype") == 0) {
            assert_int_equal(heft_dtype_parse(one->text, &options.load.dtype, NULL), HEFT_OK);
        } else if (strcmp(one->key, "use_safetensors") == 0) {
            options.where.prefer = one->boolean ? HEFT_FORMAT_SAFETENSORS : HEFT_FORMAT_TORCH;
        } else if (strcmp(one->key, "variant") == 0) {
            options.where.variant = one->text;
        } else if (strcmp(one->key, "subfolder") == 0) {
            options.where.subfolder = one->text;
        } else if (strcmp(one->key, "ignore_mismatched_sizes") == 0) {
            options.load.ignore_mismatched_sizes = one->boolean;
        } else if (strcmp(one->key, "num_labels") == 0) {
            set_in_config(one->key, one->text);
        } else {
            fail_msg("no such argument: %s", one->key);
        }
    }
    return options;
}

static void compare_loaded(const char *name, const heft_model *model,
                           const heft_load_report *report, const heft__json_value *root)
{
    compare_missing(name, model, report, heft__json_member(root, "missing_keys"));
    compare_names(name, report->unexpected, report->unexpected_count,
                  heft__json_member(root, "unexpected_keys"));
    compare_mismatches(name, report, heft__json_member(root, "mismatched_keys"));
    compare_ties(name, model, heft__json_member(root, "tied_groups"));
    assert_string_equal(heft_dtype_name(report->dtype), heft__json_member(root, "dtype")->text);
    assert_true(heft_model_module(model, 0)->bytes == heft_model_bytes(model)); /* also if untied */
    const heft__json_value *params = heft__json_member(root, "params");
    for (const heft__json_value *row = params->first; row; row = row->next) {
        compare_value(name, model, report, row);
    }
}

/* A model that heft loads, although Transformers does not. */
static void compare_accepted(const char *name, const heft_load_report *report)
{
    for (size_t i = 0; i < sizeof accepted / sizeof accepted[0]; i++) {
        if (strcmp(accepted[i].scenario, name) == 0) {
            assert_int_equal(report->missing_count, accepted[i].missing ? 1 : 0);
            if (accepted[i].missing) {
                assert_string_equal(report->missing[0], accepted[i].missing);
            }
            return;
        }
    }
    fail_msg("%s: Transformers refuses it", name);
}

static void compare_refused(const char *name, heft_status status, const heft_load_report *report,
                            const heft__json_value *root, const heft_error *err)
{
    const heft__json_value *before = heft__json_member(root, "before_ignoring_or_raising");
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        if (strcmp(refusals[i].scenario, name) == 0) {
            test_expect_status(status, refusals[i].status, err, name);
            assert_true((status == HEFT_MISMATCH) == (report != NULL));
            if (report && strncmp(name, "mismatched", 10) == 0) {
                compare_names(name, report->unexpected, report->unexpected_count,
                              heft__json_member(before, "unexpected_keys"));
                compare_mismatches(name, report, heft__json_member(before, "mismatched_keys"));
            }
            return;
        }
    }
    test_expect_status(status, HEFT_OK, err, name);
}

static void run_scenario(const char *name, heft_load_mode mode)
{
    char path[600];
    heft_error err = {0};
    heft__arena arena;
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    copy_scenario(name);
    heft__arena_init(&arena, ctx);
    snprintf(path, sizeof path, "%s/loading/%s/expected.json", HEFT_TEST_DATA, name);
    const heft__json_value *root = test_read_json(&arena, path);
    test_how options = read_arguments(root);
    options.load.mode = mode;
    snprintf(path, sizeof path, "%s/at", folder);
    heft_status status = test_load(ctx, path, &options, &model, &report, &err);
    if (status != HEFT_OK) {
        compare_refused(name, status, report, root, &err);
    } else if (heft__json_member(root, "error")->type != HEFT__JSON_TYPE_NULL) {
        compare_accepted(name, report);
    } else {
        compare_loaded(name, model, report, root);
    }
    heft_load_report_free(report);
    heft_model_free(model);
    heft__arena_fini(&arena);
}

static void scenarios_are_golden(void **state)
{
    (void)state;
    size_t count = 0;
    DIR *all = opendir(HEFT_TEST_DATA "/loading");
    assert_non_null(all);
    for (struct dirent *entry = readdir(all); entry; entry = readdir(all)) {
        if (entry->d_name[0] != '.') {
            run_scenario(entry->d_name, HEFT_LOAD_MAP);
            run_scenario(entry->d_name, HEFT_LOAD_COPY);
            count++;
        }
    }
    closedir(all);
    assert_true(count >= 69);
}

/* ---- beyond Transformers --------------------------------------------------------------------- */
static heft_status load_copy(bool strict, heft_model **model, heft_load_report **report,
                             heft_error *err)
{
    char path[300];
    const test_how options = {.load = {.strict = strict}};
    snprintf(path, sizeof path, "%s/at", folder);
    return test_load(ctx, path, &options, model, report, err);
}

static void strict_refuses_an_index_that_disagrees(void **state)
{
    (void)state;
    static const char *const names[] = {"index_entry_absent", "index_wrong_shard"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        heft_model *model = NULL;
        heft_error err = {0};
        copy_scenario(names[i]);
        test_expect_status(load_copy(true, &model, NULL, &err), HEFT_FORMAT, &err, names[i]);
        heft_load_report *report = NULL;
        test_expect_status(load_copy(false, &model, &report, &err), HEFT_OK, &err, names[i]);
        assert_true(report->warning_count > 0);
        heft_load_report_free(report);
        heft_model_free(model);
    }
}

/* Transformers silently uses the single file, however old it is. */
static void an_older_single_file_is_stale(void **state)
{
    (void)state;
    char path[300];
    heft_error err = {0};
    for (int older = 0; older < 2; older++) {
        heft_model *model = NULL;
        heft_load_report *report = NULL;
        copy_scenario("single_and_sharded");
        snprintf(path, sizeof path, "%s/at/model.safetensors", folder);
        const struct timespec times[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
        if (older) {
            assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
        }
        test_expect_status(load_copy(false, &model, &report, &err), HEFT_OK, &err, "stale");
        assert_int_equal(report->warning_count, 1);
        assert_non_null(strstr(report->warnings[0],
                               older ? "model.safetensors is older than" : "is used instead of"));
        heft_load_report_free(report);
        heft_model_free(model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scenarios_are_golden),
        cmocka_unit_test(strict_refuses_an_index_that_disagrees),
        cmocka_unit_test(an_older_single_file_is_stale),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
