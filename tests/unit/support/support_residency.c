#include "support_residency.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

void test_save_random(heft_ctx *ctx, const char *config, const char *class_name, const char *path,
                      const heft_save_options *options)
{
    heft_error err = {0};
    heft_model *model = test_model_from_text(ctx, config, class_name);
    test_expect_status(heft_model_save_random(model, path, NULL, options, NULL, &err), HEFT_OK,
                       &err, path);
    heft_model_free(model);
}

void test_save_layers(heft_ctx *ctx, const char *path, unsigned layers, unsigned hidden)
{
    char config[512];
    snprintf(config, sizeof config,
             "{\"model_type\":\"bert\",\"hidden_size\":%u,\"num_hidden_layers\":%u,"
             "\"num_attention_heads\":4,\"intermediate_size\":%u,\"vocab_size\":100,"
             "\"max_position_embeddings\":40,\"dtype\":\"float32\"}",
             hidden, layers, 4 * hidden);
    test_save_random(ctx, config, "BertModel", path, NULL);
}

uint64_t test_layer_bytes(unsigned hidden)
{
    const uint64_t h = hidden;
    return (4 * (h * h + h) + 2 * 4 * h * h + 4 * h + h + 4 * h) * 4;
}

heft_model *test_load_on_disk(heft_ctx *ctx, const char *path, const char *modules,
                              heft_dtype dtype)
{
    heft_error err = {0};
    heft_model *model = NULL;
    const test_how options = {
        .module = modules, .device = HEFT_DEVICE_DISK, .load = {.dtype = dtype}};
    test_expect_status(test_load(ctx, path, &options, &model, NULL, &err), HEFT_OK, &err, path);
    return model;
}

heft_model *test_load_whole(heft_ctx *ctx, const char *path, heft_dtype dtype)
{
    heft_error err = {0};
    heft_model *model = NULL;
    const test_how options = {
        .load = {.mode = HEFT_LOAD_COPY, .dtype = dtype}
    };
    test_expect_status(test_load(ctx, path, &options, &model, NULL, &err), HEFT_OK, &err, path);
    return model;
}

heft_residency *test_residency(const heft_model *model, const heft_residency_options *options)
{
    heft_error err = {0};
    heft_residency *r = NULL;
    test_expect_status(heft_residency_new(model, options, &r, &err), HEFT_OK, &err, "residency");
    return r;
}

size_t test_unit(const heft_residency *r, const heft_model *model, const char *parameter)
{
    const size_t number = heft_model_find(model, parameter);
    if (number == SIZE_MAX) {
        fail_msg("the model has no parameter %s", parameter);
    }
    const size_t unit = heft_residency_find_parameter(r, number);
    assert_true(unit < heft_residency_count(r));
    return unit;
}

heft_lease *test_acquire(heft_residency *r, size_t unit)
{
    heft_error err = {0};
    heft_lease *lease = NULL;
    test_expect_status(heft_residency_acquire(r, &unit, 1, &lease, &err), HEFT_OK, &err,
                       heft_residency_unit(r, unit)->name);
    return lease;
}

void test_compare_bytes(const heft_tensor *tensor, const heft_model *whole, size_t parameter)
{
    heft_error err = {0};
    heft_tensor *expected = NULL;
    const char *name = heft_model_parameter(whole, parameter)->name;
    if (!tensor) {
        fail_msg("%s is not there", name);
        return;
    }
    test_expect_status(heft_model_tensor(whole, parameter, &expected, &err), HEFT_OK, &err, name);
    assert_int_equal(tensor->dtype, expected->dtype);
    assert_true(heft__shape_equal(tensor->shape, tensor->rank, expected->shape, expected->rank));
    assert_int_equal(tensor->size_bytes, expected->size_bytes);
    if (memcmp(tensor->data, expected->data, (size_t)tensor->size_bytes) != 0) {
        fail_msg("%s has other values", name);
    }
    heft_tensor_free(expected);
}

void test_compare_unit(const heft_residency *r, const heft_lease *lease, size_t unit,
                       const heft_model *whole)
{
    const heft_unit *shown = heft_residency_unit(r, unit);
    for (size_t k = 0; k < shown->parameter_count; k++) {
        const size_t number = shown->parameters[k];
        test_compare_bytes(heft_lease_view(lease, number), whole, number);
    }
}

heft_residency_counts test_counts(heft_residency *r)
{
    heft_residency_counts counts = HEFT_SIZED(heft_residency_counts);
    assert_int_equal(heft_residency_facts(r, &counts, NULL), HEFT_OK);
    return counts;
}

heft_ledger_counts test_ledger_counts(heft_ledger *ledger)
{
    heft_ledger_counts counts = HEFT_SIZED(heft_ledger_counts);
    assert_int_equal(heft_ledger_facts(ledger, &counts, NULL), HEFT_OK);
    return counts;
}

void test_file_cache(const char *path, bool warm)
{
    uint8_t scratch[1 << 16];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    (void)fsync(fd);
    if (warm) {
        while (read(fd, scratch, sizeof scratch) > 0) {
        }
    } else {
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    }
    close(fd);
}
