/* support_model.h - golden JSON, and empty models made of it. Each fails the test if it cannot be. */
#ifndef HEFT_TEST_SUPPORT_MODEL_H
#define HEFT_TEST_SUPPORT_MODEL_H

#include "load/load.h"

/* How test_load() opens and loads. What is 0 is a default; struct_size is set. */
typedef struct test_how {
    const char *class_name;
    const char
        *module; /* whose weights live on `device`, "" for all; the rest on cpu; NULL: no plan */
    int32_t device;
    heft_load_options load;
    heft_checkpoint_options where;
} test_how;
/* Open the source of a path, load or ask, and close it. how: NULL for defaults. */
heft_status test_load(heft_ctx *ctx, const char *path, const test_how *how, heft_model **model,
                      heft_load_report **report, heft_error *err);
heft_status test_needs(heft_ctx *ctx, const char *path, const test_how *how, heft_load_needs *needs,
                       heft_error *err);
heft_status test_convert(heft_ctx *ctx, const char *src, const char *dst,
                         const heft_convert_options *options, heft_write_report **report,
                         heft_error *err);

heft_status test_verify(heft_ctx *ctx, const char *path, const heft_verify_options *options,
                        heft_verify_report **report, heft_error *err);

/* A file as a tree in the arena. */
heft__json_value *test_read_json(heft__arena *arena, const char *path);
/* The empty model of a config that is a tree already; `what` is for messages. */
heft_model *test_make_model(heft_ctx *ctx, const heft__json_value *config, const char *class_name,
                            heft_dtype dtype, const char *what);
/* The same of a config's text. */
heft_model *test_model_from_text(heft_ctx *with, const char *text, const char *class_name);
/* Visit the files of golden skeletons; the sum of what was returned. */
size_t test_each_skeleton_file(size_t (*visit)(const char *name, void *user), void *user);
/* Visit an empty model of each class in them; how many there are. */
size_t test_each_skeleton(heft_ctx *ctx, void (*visit)(const char *what, heft_model *model));

#endif
