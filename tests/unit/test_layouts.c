/* How models are split into shards: the golden layouts of real models by names, sizes and the text of
 * the index, in both orders; and small models on disk. */
#include "checkpoint/checkpoint.h"
#include "load/load.h"
#include "scratch.h"
#include "support_model.h"

#include <dirent.h>
#include <stdlib.h>

/* ---- layouts of models that are never written ------------------------------------------------ */
struct layout {
    const heft_model *model;
    heft__out_tensor *tensors; /* malloced */
    size_t count;
    heft__shard_plan plan;
    const char **files; /* by shard, in the arena */
    heft__arena arena;
};

static void list_tensors(struct layout *l, bool keep_tied, bool natural)
{
    const heft_model *model = l->model;
    size_t *order = malloc(model->count * sizeof *order);
    heft_error err = {0};
    l->tensors = calloc(model->count, sizeof *l->tensors);
    test_expect_status(heft_model_natural_order(model, order, &err), HEFT_OK, &err, "order");
    for (size_t k = 0; k < model->count; k++) {
        const size_t i = natural ? order[k] : k;
        const heft_parameter *parameter = &model->parameters[i];
        if (parameter->kind == HEFT_PARAMETER_BUFFER_TRANSIENT ||
            (parameter->tied_to != i && !keep_tied)) {
            continue;
        }
        l->tensors[l->count++] = (heft__out_tensor){.name = parameter->name,
                                                    .size_bytes = parameter->size_bytes,
                                                    .storage = parameter->tied_to};
    }
    free(order);
}

static void plan_shards(struct layout *l, const char *limit, heft_format format,
                        const char *variant)
{
    heft_error err = {0};
    uint64_t bytes = 0;
    test_expect_status(heft_size_parse(limit, &bytes, &err), HEFT_OK, &err, limit);
    test_expect_status(heft__shard_plan_make(ctx, l->tensors, l->count, bytes, &l->plan, &err),
                       HEFT_OK, &err, limit);
    heft__arena_init(&l->arena, ctx);
    l->files = heft__arena_array(&l->arena, l->plan.shard_count, sizeof *l->files);
    const heft__format *known = heft__format_find(format);
    for (size_t i = 0; i < l->plan.shard_count; i++) {
        l->files[i] = l->plan.shard_count == 1 ? heft__weights_single(&l->arena, known, variant)
                                               : heft__weights_shard(&l->arena, known, variant,
                                                                     i + 1, l->plan.shard_count);
    }
}

static void free_layout(struct layout *l)
{
    heft__shard_plan_fini(ctx, &l->plan, l->count);
    heft__arena_fini(&l->arena);
    free(l->tensors);
}

/* [file, first name, last name, tensors, bytes] */
static void compare_file(const char *what, const struct layout *l, size_t shard,
                         const heft__json_value *row)
{
    if (row->type == HEFT__JSON_TYPE_STRING) { /* sharded like the row before it */
        assert_string_equal(l->files[shard], row->text);
        return;
    }
    const heft__json_value *first = row->first->next, *last = first->next, *count = last->next,
                           *bytes = count->next;
    uint64_t sum = 0, tensors = 0, value;
    const char *begin = NULL, *end = NULL;
    for (size_t i = 0; i < l->count; i++) {
        if (l->plan.shard[i] == shard) {
            begin = begin ? begin : l->tensors[i].name;
            end = l->tensors[i].name;
            tensors++;
            sum += l->tensors[i].size_bytes;
        }
    }
    bool same = shard < l->plan.shard_count && strcmp(l->files[shard], row->first->text) == 0 &&
                begin && strcmp(begin, first->text) == 0;
    same = same && heft__json_as_u64(count, &value) && value == tensors;
    same = same && heft__json_as_u64(bytes, &value) && value == sum;
    same = same && strcmp(end, last->text) == 0;
    if (!same) {
        fail_msg("%s: shard %zu is %s .. %s (%llu, %llu bytes), expected %s %s .. %s", what, shard,
                 begin, end, (unsigned long long)tensors, (unsigned long long)sum, row->first->text,
                 first->text, last->text);
    }
}

static void compare_index(const char *what, struct layout *l, const heft__json_value *row)
{
    uint64_t parameters = 0;
    char hex[65];
    heft__buffer text;
    heft_error err = {0};
    const heft__json_value *metadata = heft__json_member(row, "metadata");
    assert_true(heft__json_as_u64(heft__json_member(metadata, "total_parameters"), &parameters));
    assert_int_equal(parameters, heft_model_elements(l->model));
    heft__buffer_init(&text, ctx);
    const heft__out_index index = {.tensors = l->tensors,
                                   .count = l->count,
                                   .file_of = l->plan.shard,
                                   .files = l->files,
                                   .total_size = l->plan.total_size,
                                   .total_parameters = parameters};
    test_expect_status(heft__shard_index_text(&l->arena, &index, &text, &err), HEFT_OK, &err, what);
    test_sha256(text.data, text.size, hex);
    heft__buffer_fini(&text);
    if (strcmp(hex, heft__json_member(row, "index_sha256")->text) != 0) {
        fail_msg("%s: the text of the index differs", what);
    }
}

/* Of a string or a number. */
static const char *text_of(const heft__json_value *row, const char *key)
{
    const heft__json_value *value = heft__json_member(row, key);
    const bool text =
        value && (value->type == HEFT__JSON_TYPE_STRING || value->type == HEFT__JSON_TYPE_NUMBER);
    return text ? value->text : NULL;
}

/* Whether Transformers shards a mixture by its stacked experts here: heft shards each expert alone. */
static bool is_stacked(const heft_model *model, const heft__json_value *row)
{
    bool parts = false;
    for (size_t i = 0; i < model->count; i++) {
        parts =
            parts || (heft__model_place(model, i).inner && heft__model_place(model, i).turn > 0);
    }
    return parts && !text_of(row, "views");
}

/* False for a row that is not for heft. */
static bool compare_row(const char *name, const heft_model *model, const heft__json_value *row)
{
    char what[300];
    const char *limit = text_of(row, "max_shard_size"), *order = text_of(row, "order"),
               *naming = text_of(row, "naming"), *tied = text_of(row, "tied");
    if (!order || is_stacked(model, row)) { /* sizes that only Transformers refuses */
        return false;
    }
    const bool natural = strcmp(order, "natural") == 0;
    const heft_format format =
        strcmp(naming, "bin") == 0 ? HEFT_FORMAT_TORCH : HEFT_FORMAT_SAFETENSORS;
    snprintf(what, sizeof what, "%s %s %s %s %s", name, limit, order, naming, tied ? tied : "");
    struct layout l = {.model = model};
    list_tensors(&l, tied != NULL, natural);
    plan_shards(&l, limit, format, text_of(row, "variant"));
    uint64_t files = 0;
    assert_true(heft__json_as_u64(heft__json_member(row, "num_files"), &files));
    if (files != l.plan.shard_count) {
        fail_msg("%s: %zu shards, expected %llu", what, l.plan.shard_count,
                 (unsigned long long)files);
    }
    const heft__json_value *list = heft__json_member(row, "files");
    size_t shard = 0;
    for (const heft__json_value *file = list ? list->first : NULL; file; file = file->next) {
        compare_file(what, &l, shard++, file);
    }
    uint64_t total = 0;
    const heft__json_value *metadata = heft__json_member(row, "metadata");
    assert_true(heft__json_as_u64(heft__json_member(metadata, "total_size"), &total));
    assert_int_equal(l.plan.total_size, total);
    if (files > 1) {
        compare_index(what, &l, row);
    }
    free_layout(&l);
    return true;
}

static void layouts_are_golden(void **state)
{
    (void)state;
    size_t rows = 0;
    DIR *all = opendir(HEFT_TEST_DATA "/layouts");
    assert_non_null(all);
    for (struct dirent *entry = readdir(all); entry; entry = readdir(all)) {
        char path[600];
        heft__arena arena;
        heft_dtype dtype;
        if (entry->d_name[0] == '.' || strncmp(entry->d_name, "full_", 5) == 0) {
            continue;
        }
        heft__arena_init(&arena, ctx);
        snprintf(path, sizeof path, "%s/layouts/%s", HEFT_TEST_DATA, entry->d_name);
        const heft__json_value *root = test_read_json(&arena, path);
        assert_int_equal(heft_dtype_parse(heft__json_member(root, "dtype")->text, &dtype, NULL),
                         HEFT_OK);
        heft_model *model = test_make_model(ctx, heft__json_member(root, "config"),
                                            heft__json_member(root, "class")->text, dtype, path);
        const heft__json_value *layouts = heft__json_member(root, "layouts");
        for (const heft__json_value *row = layouts->first; row; row = row->next) {
            rows += compare_row(entry->d_name, model, row);
        }
        heft_model_free(model);
        heft__arena_fini(&arena);
    }
    closedir(all);
    assert_true(rows >= 150);
}

/* ---- small models on disk --------------------------------------------------------------------- */
/* The index, and the size of every file. */
static void compare_save(const heft_model *model, const heft__json_value *save)
{
    char path[600], *text = NULL;
    size_t length;
    heft_error err = {0};
    const heft__json_value *limit = heft__json_member(save, "max_shard_size"),
                           *files = heft__json_member(save, "files_in_file_order");
    heft_save_options options = HEFT_OPTIONS(heft_save_options, .force = true);
    options.natural_order = strcmp(text_of(save, "order"), "natural") == 0;
    test_expect_status(heft_size_parse(limit->text, &options.max_shard_bytes, &err), HEFT_OK, &err,
                       "size");
    test_expect_status(heft_model_save_random(model, folder, NULL, &options, NULL, &err), HEFT_OK,
                       &err, "save");
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
    text = test_read_file(path, &length);
    assert_string_equal(text, text_of(save, "index_text"));
    free(text);
    for (const heft__json_value *file = files->first; file; file = file->next) {
        uint64_t size = 0;
        snprintf(path, sizeof path, "%s/%s", folder, file->key);
        free(test_read_file(path, &length));
        assert_true(heft__json_as_u64(heft__json_member(file, "size"), &size));
        assert_int_equal(length, size);
    }
}

static void small_saves_are_golden(void **state)
{
    (void)state;
    heft__arena arena;
    heft__arena_init(&arena, ctx);
    const heft__json_value *root =
        test_read_json(&arena, HEFT_TEST_DATA "/layouts/full_bert_tiny.json");
    heft_model *model =
        test_make_model(ctx, heft__json_member(root, "config"),
                        heft__json_member(root, "class")->text, HEFT_DTYPE_NONE, "full_bert_tiny");
    const heft__json_value *saves = heft__json_member(root, "saves");
    assert_true(saves->count >= 4);
    for (const heft__json_value *save = saves->first; save; save = save->next) {
        compare_save(model, save);
    }
    heft_model_free(model);
    heft__arena_fini(&arena);
}

/* No shard of a mixture passes the limit, and the names are those of Transformers. */
static void a_mixture_is_cut_between_its_experts(void **state)
{
    (void)state;
    heft__arena arena;
    heft_error err = {0};
    heft_write_report *report = NULL;
    char path[600], *text = NULL;
    size_t length;
    heft__arena_init(&arena, ctx);
    const heft__json_value *root =
        test_read_json(&arena, HEFT_TEST_DATA "/layouts/full_mixtral_tiny.json");
    heft_model *model = test_make_model(ctx, heft__json_member(root, "config"),
                                        heft__json_member(root, "class")->text, HEFT_DTYPE_NONE,
                                        "full_mixtral_tiny");
    const heft_save_options options =
        HEFT_OPTIONS(heft_save_options, .force = true, .max_shard_bytes = 20000);
    test_expect_status(heft_model_save_random(model, folder, NULL, &options, &report, &err),
                       HEFT_OK, &err, "save");
    for (size_t i = 0; i < report->file_count; i++) {
        assert_true(report->files[i].size_bytes < 20000 + 4096);
    }
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
    text = test_read_file(path, &length);
    const heft__json_value *files =
        heft__json_member(heft__json_member(root, "saves")->first, "files_in_file_order");
    for (const heft__json_value *file = files->first; file; file = file->next) {
        const heft__json_value *tensors = heft__json_member(file, "tensors");
        for (const heft__json_value *row = tensors->first; row; row = row->next) {
            char quoted[300];
            snprintf(quoted, sizeof quoted, "\"%s\"", row->first->text);
            assert_non_null(strstr(text, quoted));
        }
    }
    free(text);
    heft_write_report_free(report);
    heft_model_free(model);
    heft__arena_fini(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layouts_are_golden),
        cmocka_unit_test(small_saves_are_golden),
        cmocka_unit_test(a_mixture_is_cut_between_its_experts),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
