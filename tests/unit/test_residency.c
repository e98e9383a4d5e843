/* Models placed by a device map: what is on cpu has memory of its own, what is on disk stays in its
 * file, is brought in block by block inside a budget and given back; and what cannot be placed is
 * refused. */
#include "run/run.h"
#include "support.h"
#include "support_model.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define LAYER_BYTES (789760 * (uint64_t)4) /* of a layer of 256, 1024 */

static heft_ctx *ctx;
static char folder[256];

static const char *at(const char *name)
{
    return test_path(folder, name);
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

static heft_status load_into(heft_ctx *with, int32_t device, heft_dtype dtype, const char *offload,
                             heft_model **model, heft_error *err)
{
    test_how options = {
        .module = "encoder.layer",
        .device = device,
        .load = {.strict = true, .dtype = dtype, .offload_folder = offload}
    };
    return test_load(with, at("model"), &options, model, NULL, err);
}

static heft_status load_with(int32_t device, heft_dtype dtype, heft_model **model, heft_error *err)
{
    return load_into(ctx, device, dtype, NULL, model, err);
}

static heft_residency *make_residency(const heft_model *model, uint64_t budget)
{
    const heft_residency_options options =
        HEFT_OPTIONS(heft_residency_options, .budget_bytes = budget);
    heft_residency *residency = NULL;
    heft_error err = {0};
    test_expect_status(heft_residency_new(model, &options, &residency, &err), HEFT_OK, &err,
                       "residency");
    return residency;
}

/* All tensors of a block that is here have the values of the whole model. */
static void compare_block(heft_residency *residency, const heft_block *block,
                          const heft_model *whole)
{
    for (size_t k = 0; k < block->parameter_count; k++) {
        const heft_tensor *tensor = heft_residency_tensor(residency, block->parameters[k]);
        const char *name = heft_model_parameter(whole, block->parameters[k])->name;
        heft_tensor *expected = NULL;
        heft_error err = {0};
        if (!tensor) {
            fail_msg("%s is not there", name);
        }
        assert_int_equal(heft_model_tensor(whole, block->parameters[k], &expected, &err), HEFT_OK);
        assert_int_equal(tensor->size_bytes, expected->size_bytes);
        if (memcmp(tensor->data, expected->data, tensor->size_bytes) != 0) {
            fail_msg("%s has other values", name);
        }
        heft_tensor_free(expected);
    }
}

/* Whole blocks that are read over both ends of a range stay in its memory, wherever that begins. */
static void blocks_stay_in_their_memory(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 2, 63, 64, 4095, 4096, 4097, 8191, 100000};
    const uintptr_t block = HEFT__DIRECT_BLOCK;
    for (uintptr_t base = block; base < 2 * block; base += 16) {
        for (uint64_t offset = 0; offset < block; offset += 7) {
            const uintptr_t at = (uintptr_t)heft__in_phase((uint8_t *)base, offset);
            assert_int_equal(at % block, offset % block);
            assert_true(at - at % block >= base);
            for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
                const uintptr_t end = (at + sizes[i] + block - 1) / block * block;
                assert_true(end <= base + sizes[i] + HEFT__SPARE_BYTES);
            }
        }
    }
}

/* Push the checkpoint's file out of the page cache, or bring it in. */
static void make_cache(bool warm)
{
    uint8_t scratch[1 << 16];
    int fd = open(at("model/model.safetensors"), O_RDONLY | O_CLOEXEC);
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

/* Two passes over all blocks, from a warm and a cold page cache, as they lie and cast. */
static void modules_come_and_go(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        heft_dtype dtype;
        bool warm, maps;
        uint64_t budget;     /* 0: of two blocks */
        const char *offload; /* a folder for what is cast */
    } rows[] = {
        {"warm",                    HEFT_DTYPE_NONE, true,  true,  0,               NULL },
        {"cold",                    HEFT_DTYPE_NONE, false, false, 0,               NULL },
        {"cast",                    HEFT_DTYPE_BF16, true,  false, 0,               NULL },
        {"cast, cold",              HEFT_DTYPE_F64,  false, false, 0,               NULL },
        {"room for one",            HEFT_DTYPE_NONE, false, false, LAYER_BYTES,     NULL },
        {"cast, for one",           HEFT_DTYPE_BF16, true,  false, LAYER_BYTES / 2, NULL },
        {"room for all",            HEFT_DTYPE_NONE, false, false, LAYER_BYTES * 9, NULL },
        {"a cast that was written", HEFT_DTYPE_BF16, true,  true,  0,               "off"},
        {"a cast that is there",    HEFT_DTYPE_BF16, true,  true,  LAYER_BYTES / 2, "off"},
    };
    for (size_t row = 0; row < sizeof rows / sizeof rows[0]; row++) {
        heft_error err = {0};
        heft_model *model = NULL, *whole = NULL;
        const test_how copy = {
            .load = {.mode = HEFT_LOAD_COPY, .dtype = rows[row].dtype}
        };
        const char *offload = rows[row].offload ? at(rows[row].offload) : NULL;
        test_expect_status(load_into(ctx, HEFT_DEVICE_DISK, rows[row].dtype, offload, &model, &err),
                           HEFT_OK, &err, rows[row].name);
        test_expect_status(test_load(ctx, at("model"), &copy, &whole, NULL, &err), HEFT_OK, &err,
                           rows[row].name);
        make_cache(rows[row].warm);
        heft_residency *residency = make_residency(model, rows[row].budget);
        uint64_t brought = 0;
        for (size_t i = 0; i < 2 * heft_residency_count(residency); i++) {
            const size_t number = i % heft_residency_count(residency);
            const heft_block *block = heft_residency_block(residency, number);
            brought += block->brought_bytes;
            test_expect_status(heft_residency_acquire(residency, number, &err), HEFT_OK, &err,
                               block->module);
            compare_block(residency, block, whole);
            heft_residency_release(residency, number);
            if (block->brought_bytes > 0) {
                assert_int_equal(heft_residency_find(residency, block->module), number);
                assert_null(heft_residency_tensor(residency, block->parameters[0]));
            }
        }
        heft_residency_facts facts = HEFT_SIZED(heft_residency_facts);
        assert_int_equal(heft_residency_tell(residency, &facts, NULL), HEFT_OK);
        assert_int_equal(facts.ahead + facts.waited, 16);
        assert_true(facts.peak_bytes <= facts.budget_bytes);
        const uint64_t seen = facts.read_bytes + facts.mapped_bytes;
        if (rows[row].budget > 8 * LAYER_BYTES) {
            assert_int_equal(seen, brought / 2); /* the second pass has them all */
        } else {                                 /* reading ahead may have gone on into a third */
            assert_in_range(seen, brought, brought + facts.budget_bytes);
        }
        if (rows[row].warm) { /* a cold file may have come back */
            assert_int_equal(facts.read_bytes > 0, !rows[row].maps);
        }
        heft_residency_free(residency);
        heft_model_free(model);
        heft_model_free(whole);
    }
}

/* Blocks in any order, several at once. */
static void any_order(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *model = NULL, *whole = NULL;
    const test_how copy = {.load = {.mode = HEFT_LOAD_COPY}};
    test_expect_status(load_with(HEFT_DEVICE_DISK, HEFT_DTYPE_NONE, &model, &err), HEFT_OK, &err,
                       "placed");
    test_expect_status(test_load(ctx, at("model"), &copy, &whole, NULL, &err), HEFT_OK, &err,
                       "whole");
    make_cache(false);
    heft_residency *residency = make_residency(model, 3 * LAYER_BYTES + (LAYER_BYTES >> 1));
    const size_t first = heft_residency_find(residency, "encoder.layer.0.output");
    unsigned random = 1;
    size_t held[2] = {first, first};
    test_expect_status(heft_residency_acquire(residency, first, &err), HEFT_OK, &err, "first");
    test_expect_status(heft_residency_acquire(residency, first, &err), HEFT_OK, &err, "again");
    for (int i = 0; i < 60; i++) {
        random = random * 1103515245U + 12345U;
        const size_t next = first + (random >> 16) % 8;
        test_expect_status(heft_residency_acquire(residency, next, &err), HEFT_OK, &err, "next");
        compare_block(residency, heft_residency_block(residency, next), whole);
        compare_block(residency, heft_residency_block(residency, held[0]), whole);
        heft_residency_release(residency, held[i % 2]);
        held[i % 2] = next;
    }
    heft_residency_free(residency);
    heft_model_free(model);
    heft_model_free(whole);
}

static void what_has_no_room_is_refused(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *model = NULL;
    heft_residency *residency = NULL;
    const heft_residency_options small =
        HEFT_OPTIONS(heft_residency_options, .budget_bytes = LAYER_BYTES / 2);
    test_expect_status(load_with(HEFT_DEVICE_DISK, HEFT_DTYPE_NONE, &model, &err), HEFT_OK, &err,
                       "placed");
    assert_int_equal(heft_residency_new(model, &small, &residency, &err), HEFT_LIMIT);
    assert_string_equal(err.item, "encoder.layer.0");
    assert_null(residency);
    residency = make_residency(model, LAYER_BYTES);
    const size_t first = heft_residency_find(residency, "encoder.layer.0");
    test_expect_status(heft_residency_acquire(residency, first, &err), HEFT_OK, &err, "first");
    assert_int_equal(heft_residency_acquire(residency, first + 1, &err), HEFT_LIMIT);
    assert_string_equal(err.item, "encoder.layer.1");
    heft_residency_release(residency, first);
    heft_residency_release(residency, first); /* once too often: nothing */
    test_expect_status(heft_residency_acquire(residency, first + 1, &err), HEFT_OK, &err, "second");
    assert_int_equal(heft_residency_acquire(residency, 1000, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_residency_acquire(NULL, 0, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_residency_new(NULL, NULL, &residency, &err), HEFT_INVALID_ARG);
    assert_null(heft_residency_block(residency, 1000));
    assert_null(heft_residency_tensor(residency, SIZE_MAX));
    assert_int_equal(heft_residency_find(residency, "decoder"), SIZE_MAX);
    heft_residency_free(residency); /* with a block acquired */
    heft_residency_free(NULL);
    heft_model_free(model);
}

/* A parameter that is cast on the way has no memory, and says so. */
static void a_cast_stays_on_disk(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *model = NULL;
    heft_tensor *tensor = NULL;
    test_expect_status(load_with(HEFT_DEVICE_DISK, HEFT_DTYPE_BF16, &model, &err), HEFT_OK, &err,
                       "placed");
    const size_t i = heft_model_find(model, "encoder.layer.3.output.dense.weight");
    assert_int_equal(heft_model_parameter(model, i)->state, HEFT_PARAMETER_DISK);
    assert_int_equal(heft_model_tensor(model, i, &tensor, &err), HEFT_NOT_FOUND);
    assert_non_null(strstr(err.message, "stays in its file"));
    assert_int_equal(heft_model_save(model, at("saved"), NULL, NULL, &err), HEFT_NOT_FOUND);
    heft_model_free(model);
}

static void what_cannot_be_placed_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int32_t device;
        heft_status status;
        const char *says, *item;
    } rows[] = {
        {"an_accelerator", 3,                HEFT_UNSUPPORTED, "device 3",  "encoder.layer.0."},
        {"no_device",      HEFT_DEVICE_NONE, HEFT_INVALID_ARG, "no device", "encoder.layer"   },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_model *model = NULL;
        heft_error err = {0};
        test_expect_status(load_with(rows[i].device, HEFT_DTYPE_NONE, &model, &err), rows[i].status,
                           &err, rows[i].name);
        assert_non_null(strstr(err.message, rows[i].says));
        assert_non_null(strstr(err.item, rows[i].item));
        assert_null(model);
    }
}

/* ---- every family ---------------------------------------------------------------------------- */
/* Whatever a file's tensors have to become (stacked, split, cast), a block's are the model's. */
static void compare_family(const char *what, heft_model *model, heft_format format,
                           heft_dtype dtype)
{
    heft_error err = {0};
    heft_model *placed = NULL, *whole = NULL;
    const heft_save_options save =
        HEFT_OPTIONS(heft_save_options, .format = format, .max_shard_bytes = 50000);
    const test_how copy =
                       {
                           .load = {.mode = HEFT_LOAD_COPY, .dtype = dtype}
    },
                   place = {.module = "", .device = HEFT_DEVICE_DISK, .load = {.dtype = dtype}};
    test_expect_status(heft_model_save_random(model, at("family"), NULL, &save, NULL, &err),
                       HEFT_OK, &err, what);
    test_expect_status(test_load(ctx, at("family"), &copy, &whole, NULL, &err), HEFT_OK, &err,
                       what);
    test_expect_status(test_load(ctx, at("family"), &place, &placed, NULL, &err), HEFT_OK, &err,
                       what);
    heft_residency *residency = make_residency(placed, 0);
    size_t seen = 0;
    for (size_t i = 0; i < heft_residency_count(residency); i++) {
        const heft_block *block = heft_residency_block(residency, i);
        test_expect_status(heft_residency_acquire(residency, i, &err), HEFT_OK, &err, what);
        compare_block(residency, block, whole);
        heft_residency_release(residency, i);
        seen += block->parameter_count;
    }
    assert_int_equal(seen, heft_model_count(placed));
    heft_residency_free(residency);
    heft_model_free(placed);
    heft_model_free(whole);
    test_folder_remove(at("family"));
}

static size_t families_seen;

static void compare_small(const char *what, heft_model *model)
{
    if (heft_model_bytes(model) < 4000000) {
        compare_family(what, model, HEFT_FORMAT_SAFETENSORS, HEFT_DTYPE_NONE);
        compare_family(what, model, HEFT_FORMAT_TORCH, HEFT_DTYPE_BF16);
        families_seen++;
    }
}

static void every_family_comes_in_as_it_is(void **state)
{
    (void)state;
    (void)test_each_skeleton(ctx, compare_small);
    assert_true(families_seen >= 60);
}

/* ---- nothing half done ----------------------------------------------------------------------- */
/* A block in a budget that has room for no other one, so that nothing is read ahead meanwhile. */
static heft_status bring_one(heft_ctx *with, void *user, heft_error *err)
{
    const heft_dtype dtype = *(const heft_dtype *)user;
    const heft_residency_options options =
        HEFT_OPTIONS(heft_residency_options,
                     .budget_bytes = dtype == HEFT_DTYPE_BF16 ? LAYER_BYTES / 2 : LAYER_BYTES);
    heft_model *model = NULL;
    heft_residency *residency = NULL;
    heft_status status = load_into(with, HEFT_DEVICE_DISK, dtype, NULL, &model, err);
    if (status == HEFT_OK) {
        status = heft_residency_new(model, &options, &residency, err);
    }
    if (status == HEFT_OK) {
        const size_t block = heft_residency_find(residency, "encoder.layer.3");
        status = heft_residency_acquire(residency, block, err);
        const heft_tensor *tensor =
            heft_residency_tensor(residency, heft_residency_block(residency, block)->parameters[0]);
        assert_int_equal(tensor != NULL, status == HEFT_OK);
    }
    heft_residency_free(residency);
    heft_model_free(model);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    heft_dtype dtypes[] = {HEFT_DTYPE_NONE, HEFT_DTYPE_BF16};
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        make_cache(false);
        test_oom_sweep(bring_one, &dtypes[i]);
    }
}

static bool stop_bringing(void *user, const heft_progress *progress)
{
    int *left = user;
    return strcmp(progress->what, "bringing in") != 0 || --*left > 0;
}

static void cancelled_in_the_middle(void **state)
{
    (void)state;
    int left = 4;
    const heft_ctx_options options =
        HEFT_OPTIONS(heft_ctx_options, .progress = stop_bringing, .progress_user = &left);
    heft_ctx *with = heft_ctx_new(&options);
    heft_model *model = NULL;
    heft_error err = {0};
    test_expect_status(load_into(with, HEFT_DEVICE_DISK, HEFT_DTYPE_NONE, NULL, &model, &err),
                       HEFT_OK, &err, "placed");
    heft_residency *residency = make_residency(model, 0);
    size_t done = 0;
    while (heft_residency_acquire(residency, done, &err) == HEFT_OK) {
        heft_residency_release(residency, done++);
    }
    assert_int_equal(err.status, HEFT_CANCELLED);
    assert_int_equal(done, 3);
    heft_residency_free(residency);
    heft_model_free(model);
    heft_ctx_free(with);
}

/* A file that is cut after the load: a status, and no signal; also where the cut is read ahead. */
static void a_cut_file_is_told(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *model = NULL;
    test_expect_status(load_with(HEFT_DEVICE_DISK, HEFT_DTYPE_NONE, &model, &err), HEFT_OK, &err,
                       "placed");
    assert_int_equal(truncate(at("model/model.safetensors"), 100000), 0);
    heft_residency *residency = make_residency(model, 0);
    const size_t first = heft_residency_find(residency, "encoder.layer.0");
    for (size_t i = 0; i < 16; i++) {
        const size_t number = first + i % 8;
        assert_int_equal(heft_residency_acquire(residency, number, &err), HEFT_IO);
        assert_non_null(strstr(err.item, heft_residency_block(residency, number)->module));
        assert_null(heft_residency_tensor(residency,
                                          heft_residency_block(residency, number)->parameters[0]));
    }
    heft_residency_free(residency);
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
        cmocka_unit_test(blocks_stay_in_their_memory),
        cmocka_unit_test(modules_come_and_go),
        cmocka_unit_test(any_order),
        cmocka_unit_test(what_has_no_room_is_refused),
        cmocka_unit_test(a_cast_stays_on_disk),
        cmocka_unit_test(what_cannot_be_placed_is_refused),
        cmocka_unit_test(every_family_comes_in_as_it_is),
        cmocka_unit_test(memory_can_run_out_anywhere),
        cmocka_unit_test(cancelled_in_the_middle),
        cmocka_unit_test(a_cut_file_is_told), /* last: the file is gone then */
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
