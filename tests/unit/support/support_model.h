/* support_model.h - golden JSON, and empty models made of it. Each fails the test if it cannot be. */
#ifndef HEFT_TEST_SUPPORT_MODEL_H
#define HEFT_TEST_SUPPORT_MODEL_H

#include "model/model.h"

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
