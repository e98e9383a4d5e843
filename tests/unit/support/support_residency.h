/* support_residency.h - a small model whose layers stay on the disk, and residencies of it. Each fails the
 * test if it cannot be. */
#ifndef HEFT_TEST_SUPPORT_RESIDENCY_H
#define HEFT_TEST_SUPPORT_RESIDENCY_H

#include "run/run.h"
#include "support.h"
#include "support_model.h"

/* Save random weights of a config into a folder that does not exist. */
void test_save_random(heft_ctx *ctx, const char *config, const char *class_name, const char *path,
                      const heft_save_options *options);
/* A BERT of `layers` layers, named encoder.layer.N. test_layer_bytes(): of one layer, in float32. */
void test_save_layers(heft_ctx *ctx, const char *path, unsigned layers, unsigned hidden);
uint64_t test_layer_bytes(unsigned hidden);

/* Load with everything on the disk, or only these modules, with spaces between them; "" for all. NONE: the files' dtype. */
heft_model *test_load_on_disk(heft_ctx *ctx, const char *path, const char *modules,
                              heft_dtype dtype);
/* Load with memory of its own. */
heft_model *test_load_whole(heft_ctx *ctx, const char *path, heft_dtype dtype);
heft_residency *test_residency(const heft_model *model, const heft_residency_options *options);
/* The number of the unit that has a parameter. */
size_t test_unit(const heft_residency *r, const heft_model *model, const char *parameter);
/* Acquire one unit. */
heft_lease *test_acquire(heft_residency *r, size_t unit);
/* All tensors of a unit in a lease have the bytes of the whole model. */
void test_compare_unit(const heft_residency *r, const heft_lease *lease, size_t unit,
                       const heft_model *whole);
void test_compare_bytes(const heft_tensor *tensor, const heft_model *whole, size_t parameter);
heft_residency_counts test_counts(heft_residency *r);
heft_ledger_counts test_ledger_counts(heft_ledger *ledger);
/* Push a file out of the page cache, or bring it in. */
void test_file_cache(const char *path, bool warm);

#endif
