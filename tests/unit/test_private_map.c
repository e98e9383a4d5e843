/* test_private_map.c - copy-on-write mappings: writes stay in the process, one mapping a file and
 * mode, tied tensors stay tied, and a file larger than the memory can be mapped. */
#include "load/load.h"
#include "support.h"
#include "support_model.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static heft_ctx *ctx;
static char folder[256];

static const char *at(const char *name)
{
    return test_path(folder, name);
}

/* A BERT whose output layer is tied to its embeddings, as one file or as PyTorch's. */
static void make_checkpoint(const char *name, heft_format format)
{
    static const char tiny[] =
        "{\"model_type\":\"bert\",\"architectures\":[\"BertForMaskedLM\"],\"hidden_size\":32,"
        "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"intermediate_size\":64,"
        "\"vocab_size\":300,\"max_position_embeddings\":40,\"dtype\":\"float32\"}";
    heft_error err = {0};
    heft_model *model = test_model_from_text(ctx, tiny, "BertForMaskedLM");
    const heft_init_options init = HEFT_OPTIONS(heft_init_options, .seed = 3);
    const heft_save_options save = HEFT_OPTIONS(heft_save_options, .force = true, .format = format);
    test_expect_status(heft_model_save_random(model, at(name), &init, &save, NULL, &err), HEFT_OK,
                       &err, name);
    heft_model_free(model);
}

static heft_checkpoint *open_checkpoint(const char *path)
{
    heft_error err = {0};
    heft_checkpoint *ckpt = NULL;
    test_expect_status(heft_checkpoint_open(ctx, path, NULL, &ckpt, &err), HEFT_OK, &err, path);
    return ckpt;
}

static heft_tensor *map(const heft_checkpoint *ckpt, const char *name, heft_map_mode mode)
{
    heft_error err = {0};
    heft_tensor *tensor = NULL;
    const size_t i = heft_checkpoint_find(ckpt, name);
    assert_true(i != SIZE_MAX);
    test_expect_status(heft_checkpoint_map(ckpt, i, mode, &tensor, &err), HEFT_OK, &err, name);
    return tensor;
}

/* Mappings of this process whose line ends with a file's path. */
static size_t count_mappings(const char *path)
{
    char line[1024], end[600];
    size_t count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_non_null(maps);
    snprintf(end, sizeof end, "%s\n", path);
    while (fgets(line, sizeof line, maps)) {
        const size_t length = strlen(line), tail = strlen(end);
        count += length >= tail && strcmp(line + length - tail, end) == 0;
    }
    fclose(maps);
    return count;
}

#define EMBEDDINGS "bert.embeddings.word_embeddings.weight"
#define DECODER "cls.predictions.decoder.weight"
#define NORM "bert.embeddings.LayerNorm.weight"

/* ---- checkpoints ------------------------------------------------------------------------------ */
static void writes_stay_in_the_process(void **state)
{
    static const struct {
        const char *name, *file, *other;
        heft_format format;
    } rows[] = {
        {"one", "model.safetensors", EMBEDDINGS, HEFT_FORMAT_SAFETENSORS},
        {"bin", "pytorch_model.bin", DECODER,    HEFT_FORMAT_TORCH      }, /* tied in the file */
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        char path[600];
        size_t length;
        make_checkpoint(rows[i].name, rows[i].format);
        snprintf(path, sizeof path, "%s/%s", at(rows[i].name), rows[i].file);
        char *before = test_read_file(path, &length);
        heft_checkpoint *ckpt = open_checkpoint(at(rows[i].name)),
                        *again = open_checkpoint(at(rows[i].name));
        heft_tensor *read_only = map(ckpt, EMBEDDINGS, HEFT_MAP_READ_ONLY);
        assert_int_equal(count_mappings(path), 1);
        heft_tensor *mine = map(ckpt, EMBEDDINGS, HEFT_MAP_PRIVATE),
                    *tied = map(ckpt, rows[i].other, HEFT_MAP_PRIVATE),
                    *norm = map(ckpt, NORM, HEFT_MAP_PRIVATE);
        assert_int_equal(count_mappings(path), 2);
        heft_tensor *theirs = map(again, EMBEDDINGS, HEFT_MAP_PRIVATE);
        assert_int_equal(count_mappings(path), 3);
        assert_int_equal(read_only->flags, HEFT_TENSOR_MAPPED);
        assert_int_equal(mine->flags, HEFT_TENSOR_MAPPED | HEFT_TENSOR_WRITABLE);
        assert_ptr_equal(mine->storage, tied->storage);
        assert_ptr_equal(mine->data, tied->data);
        assert_ptr_not_equal(mine->storage, norm->storage);
        assert_ptr_not_equal(mine->storage, read_only->storage);
        assert_memory_equal(mine->data, read_only->data, (size_t)mine->size_bytes);
        memset(mine->data, 0x5a, (size_t)mine->size_bytes);
        assert_memory_equal(tied->data, mine->data, (size_t)mine->size_bytes);
        assert_memory_equal(theirs->data, read_only->data, (size_t)mine->size_bytes);
        assert_true(memcmp(mine->data, read_only->data, (size_t)mine->size_bytes) != 0);
        heft_tensor_free(mine);
        mine = map(ckpt, EMBEDDINGS, HEFT_MAP_PRIVATE); /* the checkpoint keeps what was written */
        assert_memory_equal(tied->data, mine->data, (size_t)mine->size_bytes);
        heft_checkpoint_close(ckpt);
        heft_checkpoint_close(again);
        assert_int_equal(((const uint8_t *)tied->data)[7], 0x5a);
        heft_tensor_free(read_only);
        heft_tensor_free(theirs);
        heft_tensor_free(norm);
        heft_tensor_free(mine);
        assert_int_equal(count_mappings(path), 2); /* of the input that `tied` holds: both modes */
        assert_int_equal(((const uint8_t *)tied->data)[7], 0x5a);
        heft_tensor_free(tied);
        assert_int_equal(count_mappings(path), 0);
        char *after = test_read_file(path, NULL);
        assert_memory_equal(before, after, length);
        free(before);
        free(after);
    }
}

static void an_unknown_mode_is_refused(void **state)
{
    heft_error err = {0};
    heft_tensor *tensor = NULL;
    (void)state;
    make_checkpoint("mode", HEFT_FORMAT_SAFETENSORS);
    heft_checkpoint *ckpt = open_checkpoint(at("mode"));
    assert_int_equal(heft_checkpoint_map(ckpt, 0, (heft_map_mode)4, &tensor, &err),
                     HEFT_INVALID_ARG);
    assert_int_equal(
        heft_checkpoint_map(ckpt, heft_checkpoint_count(ckpt), HEFT_MAP_PRIVATE, &tensor, &err),
        HEFT_INVALID_ARG);
    assert_null(tensor);
    heft_checkpoint_close(ckpt);
}

/* ---- many threads ----------------------------------------------------------------------------- */
#define THREADS 8

struct racer {
    const heft_checkpoint *ckpt;
    heft_tensor *tensors[2];
};

static void *race(void *user)
{
    struct racer *racer = user;
    for (int mode = 0; mode < 2; mode++) {
        heft_error err;
        if (heft_checkpoint_map(racer->ckpt, 0, (heft_map_mode)mode, &racer->tensors[mode], &err) !=
            HEFT_OK) {
            racer->tensors[mode] = NULL;
        }
    }
    return NULL;
}

static void threads_get_one_storage(void **state)
{
    (void)state;
    make_checkpoint("race", HEFT_FORMAT_SAFETENSORS);
    for (int round = 0; round < 20; round++) {
        heft_checkpoint *ckpt = open_checkpoint(at("race"));
        struct racer racers[THREADS];
        pthread_t threads[THREADS];
        for (size_t i = 0; i < THREADS; i++) {
            racers[i] = (struct racer){.ckpt = ckpt};
            assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
        }
        for (size_t i = 0; i < THREADS; i++) {
            pthread_join(threads[i], NULL);
        }
        for (size_t i = 0; i < THREADS; i++) {
            for (size_t mode = 0; mode < 2; mode++) {
                assert_non_null(racers[i].tensors[mode]);
                assert_ptr_equal(racers[i].tensors[mode]->storage,
                                 racers[0].tensors[mode]->storage);
            }
        }
        heft_checkpoint_close(ckpt);
        for (size_t i = 0; i < THREADS; i++) {
            heft_tensor_free(racers[i].tensors[0]);
            heft_tensor_free(racers[i].tensors[1]);
        }
    }
}

/* ---- a file larger than the memory ------------------------------------------------------------- */
#define SPARSE_BYTES (UINT64_C(64) << 30)

static void a_file_larger_than_the_memory_can_be_mapped(void **state)
{
    char header[256], path[600];
    struct stat facts;
    (void)state;
    const int text =
        snprintf(header + 8, sizeof header - 8,
                 "{\"a\":{\"dtype\":\"U8\",\"shape\":[%llu],\"data_offsets\":[0,%llu]},"
                 "\"b\":{\"dtype\":\"U8\",\"shape\":[4096],\"data_offsets\":[%llu,%llu]}}",
                 (unsigned long long)SPARSE_BYTES, (unsigned long long)SPARSE_BYTES,
                 (unsigned long long)SPARSE_BYTES, (unsigned long long)SPARSE_BYTES + 4096);
    heft__put_le64((uint8_t *)header, (uint64_t)text);
    snprintf(path, sizeof path, "%s", at("sparse.safetensors"));
    test_write_file(folder, "sparse.safetensors", header, 8 + (size_t)text);
    if (truncate(path, (off_t)(8 + (uint64_t)text + SPARSE_BYTES + 4096)) != 0) {
        fail_msg("this file system has no file of 64 GiB: %s", strerror(errno));
    }
    assert_int_equal(stat(path, &facts), 0);
    if (facts.st_blocks > 2048) {
        fail_msg("this file system has no sparse files: %lld blocks", (long long)facts.st_blocks);
    }
    heft_checkpoint *ckpt = open_checkpoint(path);
    if (sizeof(size_t) < 8) { /* 32 bits: there is no room for it, and that is said */
        heft_tensor *tensor = NULL;
        heft_error err;
        assert_int_equal(heft_checkpoint_map(ckpt, 0, HEFT_MAP_PRIVATE, &tensor, &err), HEFT_NOMEM);
        heft_checkpoint_close(ckpt);
        return;
    }
    heft_tensor *large = map(ckpt, "a", HEFT_MAP_PRIVATE),
                *small = map(ckpt, "b", HEFT_MAP_PRIVATE);
    assert_int_equal(count_mappings(path), 1);
    uint8_t *bytes = large->data;
    bytes[0] = 1;
    bytes[SPARSE_BYTES / 2] = 2;
    bytes[SPARSE_BYTES - 1] = 3;
    assert_int_equal(bytes[SPARSE_BYTES / 2], 2);
    assert_int_equal(bytes[SPARSE_BYTES / 2 + 1], 0);
    assert_ptr_equal(small->data, bytes + SPARSE_BYTES);
    heft_tensor_free(large);
    heft_tensor_free(small);
    uint8_t stored = 9;
    const int fd = open(path, O_RDONLY);
    assert_int_equal(pread(fd, &stored, 1, 8 + text), 1);
    assert_int_equal(stored, 0);
    close(fd);
    heft_checkpoint_close(ckpt);
    assert_int_equal(unlink(path), 0);
}

/* ---- models ------------------------------------------------------------------------------------ */
static heft_tensor *parameter(const heft_model *model, const char *name)
{
    heft_error err = {0};
    heft_tensor *tensor = NULL;
    const size_t i = heft_model_find(model, name);
    assert_true(i != SIZE_MAX);
    test_expect_status(heft_model_tensor(model, i, &tensor, &err), HEFT_OK, &err, name);
    return tensor;
}

static heft_model *load(const char *name, const test_how *options)
{
    heft_error err = {0};
    heft_model *model = NULL;
    test_expect_status(test_load(ctx, at(name), options, &model, NULL, &err), HEFT_OK, &err, name);
    return model;
}

static void parameters_of_a_model_can_be_written(void **state)
{
    heft_error err = {0};
    const test_how options = {
        .load = {.mode = HEFT_LOAD_MAP, .map = HEFT_MAP_PRIVATE, .touch = true}
    };
    (void)state;
    make_checkpoint("model", HEFT_FORMAT_SAFETENSORS);
    heft_model *model = load("model", &options);
    for (size_t i = 0; i < heft_model_count(model); i++) {
        heft_tensor *tensor = parameter(model, heft_model_parameter(model, i)->name);
        assert_true(tensor->flags & HEFT_TENSOR_WRITABLE);
        heft_tensor_free(tensor);
    }
    heft_tensor *embeddings = parameter(model, EMBEDDINGS), *decoder = parameter(model, DECODER);
    assert_int_equal(embeddings->flags, HEFT_TENSOR_MAPPED | HEFT_TENSOR_WRITABLE);
    assert_ptr_equal(embeddings->data, decoder->data);
    memset(embeddings->data, 0, 4096);
    assert_null(heft__model_homes(model)); /* nothing that a residency may drop */
    test_expect_status(heft_model_save(model, at("saved"), NULL, NULL, &err), HEFT_OK, &err,
                       "save");
    heft_model *saved = load("saved", NULL), *original = load("model", NULL);
    heft_tensor *now = parameter(saved, DECODER), *then = parameter(original, DECODER);
    assert_memory_equal(now->data, embeddings->data, (size_t)now->size_bytes);
    assert_true(memcmp(then->data, embeddings->data, (size_t)then->size_bytes) != 0);
    heft_model_free(model);
    assert_memory_equal(now->data, decoder->data, (size_t)now->size_bytes);
    heft_tensor *all[] = {embeddings, decoder, now, then};
    for (size_t i = 0; i < COUNT(all); i++) {
        heft_tensor_free(all[i]);
    }
    heft_model_free(saved);
    heft_model_free(original);
}

static void what_a_device_map_leaves_on_the_disk_stays_read_only(void **state)
{
    const test_how options = {
        .module = "", .device = HEFT_DEVICE_DISK, .load = {.map = HEFT_MAP_PRIVATE}};
    (void)state;
    make_checkpoint("disk", HEFT_FORMAT_SAFETENSORS);
    heft_model *model = load("disk", &options);
    const heft_parameter *shown = heft_model_parameter(model, heft_model_find(model, NORM));
    if (shown->state == HEFT_PARAMETER_MAPPED) { /* not where address space is limited */
        heft_tensor *tensor = parameter(model, NORM);
        assert_int_equal(tensor->flags, HEFT_TENSOR_MAPPED);
        heft_tensor_free(tensor);
    }
    assert_non_null(heft__model_homes(model));
    heft_model_free(model);
}

/* ---- failing allocations ----------------------------------------------------------------------- */
static heft_status map_both(heft_ctx *on, void *user, heft_error *err)
{
    heft_checkpoint *ckpt = NULL;
    heft_tensor *tensors[2] = {NULL, NULL};
    heft_status status = heft_checkpoint_open(on, user, NULL, &ckpt, err);
    for (int mode = 0; mode < 2 && status == HEFT_OK; mode++) {
        status = heft_checkpoint_map(ckpt, 1, (heft_map_mode)mode, &tensors[mode], err);
        assert_int_equal(tensors[mode] != NULL, status == HEFT_OK);
    }
    heft_checkpoint_close(ckpt);
    heft_tensor_free(tensors[0]);
    heft_tensor_free(tensors[1]);
    return status;
}

static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    make_checkpoint("oom", HEFT_FORMAT_TORCH);
    char path[600];
    snprintf(path, sizeof path, "%s", at("oom"));
    test_oom_sweep(map_both, path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_stay_in_the_process),
        cmocka_unit_test(an_unknown_mode_is_refused),
        cmocka_unit_test(threads_get_one_storage),
        cmocka_unit_test(a_file_larger_than_the_memory_can_be_mapped),
        cmocka_unit_test(parameters_of_a_model_can_be_written),
        cmocka_unit_test(what_a_device_map_leaves_on_the_disk_stays_read_only),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    test_folder_make(folder);
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    test_folder_remove(folder);
    return failed;
}
