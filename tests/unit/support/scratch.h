/* scratch.h - the context and the folder that all tests of a program use: for cmocka_run_group_tests(). */
#ifndef HEFT_TESTS_SCRATCH_H
#define HEFT_TESTS_SCRATCH_H

#include "support.h"

static heft_ctx *ctx;
static char folder[256];

static inline int set_up(void **state)
{
    (void)state;
    ctx = heft_ctx_new(NULL);
    test_folder_make(folder);
    return ctx ? 0 : -1;
}

static inline int tear_down(void **state)
{
    (void)state;
    test_folder_remove(folder);
    heft_ctx_free(ctx);
    return 0;
}

/* A path in the folder; as test_path(). */
static inline const char *at(const char *name)
{
    return test_path(folder, name);
}

#endif
