#include "support_model.h"
#include "support.h"

#include <dirent.h>
#include <stdlib.h>

heft__json_value *test_read_json(heft__arena *arena, const char *path)
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

heft_model *test_make_model(heft_ctx *ctx, const heft__json_value *config, const char *class_name,
                            heft_dtype dtype, const char *what)
{
    heft__buffer text;
    heft_config *parsed = NULL;
    heft_model *model = NULL;
    heft_error err;
    heft__buffer_init(&text, ctx);
    heft__json_write_compact(&text, config);
    test_expect_status(heft__config_parse(ctx, what, text.data, text.size, &parsed, &err), HEFT_OK,
                       &err, what);
    test_expect_status(heft_model_new(ctx, parsed, class_name, dtype, &model, &err), HEFT_OK, &err,
                       what);
    heft_config_free(parsed);
    heft__buffer_fini(&text);
    return model;
}

heft_model *test_model_from_text(heft_ctx *with, const char *text, const char *class_name)
{
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft_error err;
    heft_status status = heft__config_parse(with, "config.json", text, strlen(text), &config, &err);
    test_expect_status(status, HEFT_OK, &err, text);
    status = heft_model_new(with, config, class_name, HEFT_DTYPE_NONE, &model, &err);
    test_expect_status(status, HEFT_OK, &err, text);
    heft_config_free(config);
    return model;
}

size_t test_each_skeleton_file(size_t (*visit)(const char *name, void *user), void *user)
{
    size_t seen = 0;
    DIR *folder = opendir(HEFT_TEST_DATA "/skeletons");
    assert_non_null(folder);
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        const size_t length = strlen(entry->d_name);
        if (length > 5 && strcmp(entry->d_name + length - 5, ".json") == 0) {
            seen += visit(entry->d_name, user);
        }
    }
    closedir(folder);
    return seen;
}

struct visiting {
    heft_ctx *ctx;
    void (*visit)(const char *what, heft_model *model);
};

static size_t visit_classes(const char *name, void *user)
{
    const struct visiting *v = user;
    char path[512], what[800];
    size_t seen = 0;
    heft__arena arena;
    heft__arena_init(&arena, v->ctx);
    snprintf(path, sizeof path, HEFT_TEST_DATA "/skeletons/%s", name);
    const heft__json_value *root = test_read_json(&arena, path);
    for (const heft__json_value *golden = heft__json_member(root, "classes")->first; golden;
         golden = golden->next, seen++) {
        const heft__json_value *own = heft__json_member(golden, "config");
        snprintf(what, sizeof what, "%s %s", name, golden->key);
        heft_model *model = test_make_model(v->ctx, own ? own : heft__json_member(root, "config"),
                                            golden->key, HEFT_DTYPE_NONE, what);
        v->visit(what, model);
        heft_model_free(model);
    }
    heft__arena_fini(&arena);
    return seen;
}

size_t test_each_skeleton(heft_ctx *ctx, void (*visit)(const char *what, heft_model *model))
{
    struct visiting v = {ctx, visit};
    return test_each_skeleton_file(visit_classes, &v);
}

/* ---- a source for the time of a call ------------------------------------------------------------ */
struct opened {
    heft_source *source;
    heft_plan *plan;
    heft_load_options load;
};

#define MODULES_MOST 8

static heft_status make_plan(struct opened *o, const test_how *how, heft_error *err)
{
    heft_model *skeleton = NULL;
    heft_device_entry entries[MODULES_MOST] = {
        {"", *how->module ? HEFT_DEVICE_CPU : how->device}
    };
    size_t count = 1;
    char *names = strdup(how->module), *rest = names, *name;
    assert_non_null(names);
    while ((name = strsep(&rest, " ")) != NULL && *name) {
        assert_true(count < MODULES_MOST);
        entries[count++] = (heft_device_entry){name, how->device};
    }
    const heft_plan_options options =
        HEFT_OPTIONS(heft_plan_options, .device_map = entries, .device_map_count = count);
    heft_status status = heft_model_skeleton(o->source, &o->load, &skeleton, err);
    if (status == HEFT_OK) {
        status = heft_plan_new(skeleton, &options, &o->plan, err);
    }
    heft_model_free(skeleton);
    free(names);
    o->load.plan = o->plan;
    return status;
}

static heft_status open_as(struct opened *o, heft_ctx *with, const char *path, const test_how *how,
                           heft_error *err)
{
    const test_how standard = {.class_name = NULL};
    how = how ? how : &standard;
    heft_checkpoint_options where = how->where;
    where.struct_size = sizeof where;
    o->load = how->load;
    o->load.struct_size = sizeof o->load;
    const heft_source_options options =
        HEFT_OPTIONS(heft_source_options, .class_name = how->class_name, .checkpoint = &where);
    heft_status status = heft_source_open(with, path, &options, &o->source, err);
    return status == HEFT_OK && how->module ? make_plan(o, how, err) : status;
}

static void close_all(struct opened *o)
{
    heft_plan_free(o->plan);
    heft_source_close(o->source);
}

heft_status test_load(heft_ctx *with, const char *path, const test_how *how, heft_model **model,
                      heft_load_report **report, heft_error *err)
{
    struct opened o = {.source = NULL};
    heft_status status = open_as(&o, with, path, how, err);
    if (status == HEFT_OK) {
        status = heft_model_load(o.source, &o.load, model, report, err);
    }
    close_all(&o);
    return status;
}

heft_status test_needs(heft_ctx *with, const char *path, const test_how *how,
                       heft_load_needs *needs, heft_error *err)
{
    struct opened o = {.source = NULL};
    heft_status status = open_as(&o, with, path, how, err);
    if (status == HEFT_OK) {
        status = heft_model_needs(o.source, &o.load, needs, err);
    }
    close_all(&o);
    return status;
}

heft_status test_convert(heft_ctx *with, const char *src, const char *dst,
                         const heft_convert_options *options, heft_write_report **report,
                         heft_error *err)
{
    heft_source *source = NULL;
    heft_status status = heft_source_open(with, src, NULL, &source, err);
    if (status == HEFT_OK) {
        status = heft_source_convert(source, dst, options, report, err);
    }
    heft_source_close(source);
    return status;
}

heft_status test_verify(heft_ctx *with, const char *path, const heft_verify_options *options,
                        heft_verify_report **report, heft_error *err)
{
    heft_source *source = NULL;
    heft_status status = heft_source_open(
        with, path, &HEFT_OPTIONS(heft_source_options, .damaged = true), &source, err);
    if (status == HEFT_OK) {
        status = heft_source_verify(source, options, report, err);
    }
    heft_source_close(source);
    return status;
}
