/* Models placed by a device map: what is on cpu has memory of its own, what is on disk stays in its
 * file, is brought in module by module and given back; and what cannot be placed is refused. */
#include "load/load.h"
#include "support.h"
#include "support_model.h"

#include <stdlib.h>
#include <unistd.h>

static heft_ctx *ctx;
static char folder[256];

static const char *at(const char *name)
{
    static char paths[4][512];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, 512, "%s/%s", folder, name);
    return path;
}

/* Eight layers of 3 MB each. */
static void make_checkpoint(const char *name)
{
    static const char config[] =
        "{\"model_type\":\"bert\",\"hidden_size\":256,\"num_hidden_layers\":8,"
        "\"num_attention_heads\":4,\"intermediate_size\":1024,\"vocab_size\":1000,"
        "\"max_position_embeddings\":40,\"dtype\":\"float32\"}";
    heft_error err = {0};
    heft_model *model = test_model_from_text(ctx, config, "BertModel");
    test_expect_status(heft_model_save_random(model, at(name), NULL, NULL, NULL, &err), HEFT_OK,
                       &err, name);
    heft_model_free(model);
}

static int32_t layers_on_disk(void *user, const char *name)
{
    const int32_t *device = user;
    return strncmp(name, "encoder.layer.", 14) == 0 ? *device : HEFT_DEVICE_CPU;
}

static heft_status load_with(int32_t device, heft_dtype dtype, heft_model **model, heft_error *err)
{
    heft_load_options options = {
        .device_of = layers_on_disk, .device_user = &device, .strict = true, .dtype = dtype};
    return heft_model_load(ctx, at("model"), &options, model, NULL, err);
}

/* Pages of files in this process's page tables, in bytes. */
static long resident_file_bytes(void)
{
    char line[256];
    long kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, "RssFile:", 8) == 0) {
            kib = strtol(line + 8, NULL, 10);
        }
    }
    if (file) {
        fclose(file);
    }
    return kib * 1024;
}

static void modules_come_and_go(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *model = NULL, *whole = NULL;
    const heft_load_options copy = {.mode = HEFT_LOAD_COPY};
    test_expect_status(load_with(HEFT_DEVICE_DISK, HEFT_DTYPE_NONE, &model, &err), HEFT_OK, &err,
                       "placed");
    test_expect_status(heft_model_load(ctx, at("model"), &copy, &whole, NULL, &err), HEFT_OK, &err,
                       "whole");
    for (size_t i = 0; i < heft_model_count(model); i++) {
        const heft_parameter *parameter = heft_model_parameter(model, i);
        bool layer = strncmp(parameter->name, "encoder.layer.", 14) == 0;
        if (parameter->kind == HEFT_PARAMETER_WEIGHT) {
            assert_int_equal(parameter->state,
                             layer ? HEFT_PARAMETER_MAPPED : HEFT_PARAMETER_OWNED);
        }
    }
    const long before = resident_file_bytes(), layer_bytes = 3 << 20;
    long most = 0;
    for (int i = 0; i < 8; i++) {
        char module[64], next[64];
        snprintf(module, sizeof module, "encoder.layer.%d", i);
        snprintf(next, sizeof next, "encoder.layer.%d", i + 1);
        test_expect_status(heft_model_acquire(model, module, i < 7 ? next : NULL, &err), HEFT_OK,
                           &err, module);
        long now = resident_file_bytes() - before;
        most = now > most ? now : most;
        assert_true(now >= layer_bytes / 2);
        for (size_t k = 0; k < heft_model_count(model); k++) {
            heft_tensor *left = NULL, *right = NULL;
            if (strncmp(heft_model_parameter(model, k)->name, module, strlen(module)) != 0) {
                continue;
            }
            assert_int_equal(heft_model_tensor(model, k, &left, &err), HEFT_OK);
            assert_int_equal(heft_model_tensor(whole, k, &right, &err), HEFT_OK);
            assert_memory_equal(left->data, right->data, left->size_bytes);
            heft_tensor_free(left);
            heft_tensor_free(right);
        }
        heft_model_release(model, module);
    }
    assert_true(most < 3 * layer_bytes); /* not the eight of them */
    assert_int_equal(heft_model_acquire(NULL, "", NULL, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_model_acquire(model, NULL, NULL, &err), HEFT_INVALID_ARG);
    heft_model_release(model, NULL);
    heft_model_free(model);
    heft_model_free(whole);
}

static void what_cannot_be_placed_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int32_t device;
        heft_dtype dtype;
        const char *says;
    } rows[] = {
        {"an_accelerator", 3,                HEFT_DTYPE_NONE, "device 3"               },
        {"no_device",      HEFT_DEVICE_NONE, HEFT_DTYPE_NONE, "no device"              },
        {"a_cast_on_disk", HEFT_DEVICE_DISK, HEFT_DTYPE_BF16, "cannot stay in its file"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_model *model = NULL;
        heft_error err = {0};
        test_expect_status(load_with(rows[i].device, rows[i].dtype, &model, &err), HEFT_UNSUPPORTED,
                           &err, rows[i].name);
        assert_non_null(strstr(err.message, rows[i].says));
        assert_non_null(strstr(err.item, "encoder.layer.0."));
        assert_null(model);
    }
}

/* A file that is cut after the load: a status, and no signal. */
static void a_cut_file_is_told(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *model = NULL;
    test_expect_status(load_with(HEFT_DEVICE_DISK, HEFT_DTYPE_NONE, &model, &err), HEFT_OK, &err,
                       "placed");
    assert_int_equal(truncate(at("model/model.safetensors"), 100000), 0);
    assert_int_equal(heft_model_acquire(model, "encoder.layer.7", NULL, &err), HEFT_IO);
    assert_non_null(strstr(err.item, "encoder.layer.7."));
    heft_model_free(model);
}

static int set_up(void **state)
{
    (void)state;
    test_folder_make(folder);
    ctx = heft_ctx_new(NULL);
    make_checkpoint("model");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    test_folder_remove(folder);
    heft_ctx_free(ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(modules_come_and_go), cmocka_unit_test(what_cannot_be_placed_is_refused),
        cmocka_unit_test(a_cut_file_is_told), /* last: the file is gone then */
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
