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
    test_expect_status(heft_model_create(ctx, parsed, class_name, dtype, &model, &err), HEFT_OK,
                       &err, what);
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
    status = heft_model_create(with, config, class_name, HEFT_DTYPE_NONE, &model, &err);
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
