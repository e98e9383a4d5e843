/* Saving a model of which parameters stay in their files: the same files as of one that is in memory. */
#include "load/load.h"
#include "scratch.h"
#include "support_model.h"

#include <stdlib.h>

static const char config_text[] =
    "{\"architectures\":[\"BertForMaskedLM\"],\"model_type\":\"bert\",\"hidden_size\":32,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"intermediate_size\":64,\"vocab_size\":"
    "9000,"
    "\"max_position_embeddings\":40,\"type_vocab_size\":2,\"dtype\":\"float32\"}";

static void make_checkpoint(const char *dst, heft_format format)
{
    heft_error err = {0};
    heft_config *config = NULL;
    heft_model *model = NULL;
    const heft_init_options init = HEFT_OPTIONS(heft_init_options, .seed = 7);
    const heft_save_options save =
        HEFT_OPTIONS(heft_save_options, .format = format, .max_shard_bytes = 50000);
    test_expect_status(heft_config_new(ctx, config_text, strlen(config_text), &config, &err),
                       HEFT_OK, &err, "config");
    test_expect_status(heft_model_new(ctx, config, NULL, HEFT_DTYPE_NONE, &model, &err), HEFT_OK,
                       &err, "model");
    test_expect_status(heft_model_save_random(model, dst, &init, &save, NULL, &err), HEFT_OK, &err,
                       dst);
    heft_model_free(model);
    heft_config_free(config);
}

static heft_model *load(const char *path, const test_how *how)
{
    heft_error err = {0};
    heft_model *model = NULL;
    test_expect_status(test_load(ctx, path, how, &model, NULL, &err), HEFT_OK, &err, path);
    return model;
}

static void save(const heft_model *model, const char *dst, heft_format format)
{
    const heft_save_options options =
        HEFT_OPTIONS(heft_save_options, .format = format, .max_shard_bytes = 100000);
    heft_error err = {0};
    test_expect_status(heft_model_save(model, dst, &options, NULL, &err), HEFT_OK, &err, dst);
}

static size_t count_disk(const heft_model *model)
{
    size_t count = 0;
    for (size_t i = 0; i < heft_model_count(model); i++) {
        count += heft_model_parameter(model, i)->state == HEFT_PARAMETER_DISK;
    }
    return count;
}

static void expect_equal(const char *left, const char *right)
{
    heft_error err = {0};
    heft_checkpoint *a = NULL, *b = NULL;
    test_expect_status(heft_checkpoint_open(ctx, left, NULL, &a, &err), HEFT_OK, &err, left);
    test_expect_status(heft_checkpoint_open(ctx, right, NULL, &b, &err), HEFT_OK, &err, right);
    assert_int_equal(heft_checkpoint_count(a), heft_checkpoint_count(b));
    for (size_t i = 0; i < heft_checkpoint_count(a); i++) {
        const heft_tensor_info *info = heft_checkpoint_info(a, i);
        const size_t other = heft_checkpoint_find(b, info->name);
        bool equal = false;
        uint8_t *x = malloc((size_t)info->size_bytes + 1),
                *y = malloc((size_t)info->size_bytes + 1);
        assert_true(other != SIZE_MAX && x && y);
        assert_int_equal(heft_checkpoint_info(b, other)->dtype, info->dtype);
        assert_int_equal(heft_checkpoint_info(b, other)->size_bytes, info->size_bytes);
        test_expect_status(heft_checkpoint_read(a, i, x, info->size_bytes, &err), HEFT_OK, &err,
                           info->name);
        test_expect_status(heft_checkpoint_read(b, other, y, info->size_bytes, &err), HEFT_OK, &err,
                           info->name);
        equal = memcmp(x, y, (size_t)info->size_bytes) == 0;
        free(x);
        free(y);
        if (!equal) {
            fail_msg("'%s' differs", info->name);
        }
    }
    heft_checkpoint_close(a);
    heft_checkpoint_close(b);
}

static void what_is_on_disk_is_saved_too(void **state)
{
    static const struct {
        heft_format from, to;
        heft_dtype dtype;
        const char *module; /* of what is on the disk */
        bool offload;
    } rows[] = {
        {HEFT_FORMAT_SAFETENSORS, HEFT_FORMAT_SAFETENSORS, HEFT_DTYPE_BF16, "",             false},
        {HEFT_FORMAT_SAFETENSORS, HEFT_FORMAT_TORCH,       HEFT_DTYPE_F16,  "bert.encoder", false},
        {HEFT_FORMAT_TORCH,       HEFT_FORMAT_SAFETENSORS, HEFT_DTYPE_F64,  "",             false},
        {HEFT_FORMAT_TORCH,       HEFT_FORMAT_SAFETENSORS, HEFT_DTYPE_BF16, "",             true },
        {HEFT_FORMAT_SAFETENSORS, HEFT_FORMAT_TORCH,       HEFT_DTYPE_NONE, "",             true },
    };
    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        make_checkpoint(at("source"), rows[r].from);
        test_how how = {.module = rows[r].module, .device = HEFT_DEVICE_DISK};
        how.load.dtype = rows[r].dtype;
        how.load.offload_folder = rows[r].offload ? at("offload") : NULL;
        heft_model *on_disk = load(at("source"), &how);
        const test_how plain = {
            .load = {.dtype = rows[r].dtype, .mode = HEFT_LOAD_COPY}
        };
        heft_model *whole = load(at("source"), &plain);
        assert_true(rows[r].offload || count_disk(on_disk) > 0);
        save(on_disk, at("saved"), rows[r].to);
        save(whole, at("expected"), rows[r].to);
        expect_equal(at("saved"), at("expected"));
        expect_equal(at("expected"), at("saved"));
        heft_model_free(on_disk);
        heft_model_free(whole);
        static const char *const made[] = {"source", "offload", "saved", "expected"};
        for (size_t k = 0; k < 4; k++) {
            test_folder_remove(at(made[k]));
        }
    }
}

static void a_file_that_changed_is_an_error(void **state)
{
    (void)state;
    heft_error err = {0};
    make_checkpoint(at("source"), HEFT_FORMAT_SAFETENSORS);
    const test_how how = {
        .module = "", .device = HEFT_DEVICE_DISK, .load = {.dtype = HEFT_DTYPE_BF16}};
    heft_model *model = load(at("source"), &how);
    FILE *file = NULL;
    for (int shard = 1; !file && shard < 100; shard++) {
        char name[64];
        snprintf(name, sizeof name, "source/model-00001-of-%05d.safetensors", shard);
        file = fopen(at(name), "r+b");
    }
    assert_non_null(file);
    assert_int_equal(fseek(file, -4, SEEK_END), 0);
    assert_int_equal(fwrite("abcd", 1, 4, file), 4);
    assert_int_equal(fclose(file), 0);
    test_expect_status(heft_model_save(model, at("saved"), NULL, NULL, &err), HEFT_IO, &err,
                       "changed");
    assert_non_null(strstr(err.path, "model-00001-of-"));
    heft_model_free(model);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_on_disk_is_saved_too),
        TEST(a_file_that_changed_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
