/* support_kernels.h - arrays for the tests of kernels: memory that ends where the process may not read,
 * and random numbers. */
#ifndef HEFT_TEST_SUPPORT_KERNELS_H
#define HEFT_TEST_SUPPORT_KERNELS_H

#include "kernel/kernel.h"
#include "support.h"

/* Bytes before a page that can be neither read nor written. `data` is aligned to `align` only as far as
 * its end allows: with align 1 the last byte is the last of the page. Filled with 0xff bytes, which are
 * NaN in every dtype. */
typedef struct test_guarded {
    void *data;
    void *map;
    size_t map_bytes;
} test_guarded;

test_guarded test_guarded_new(size_t bytes, size_t align);
void test_guarded_free(test_guarded *guarded);

/* The same numbers on every machine: uniform in -1 .. 1. */
float test_uniform(uint64_t *state);
/* Element i of an array of F32, BF16 or F16. */
void test_put(void *data, heft_dtype dtype, size_t i, float value);
size_t test_dtype_bytes(heft_dtype dtype);

/* Every table that this CPU supports: calls `check` for each. */
void test_each_isa(void (*check)(const heft__kernels *k));

#endif
