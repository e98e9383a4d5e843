/* Files on network file systems and files that are not cached: the former are copied with large reads and
 * mapped only on request; the latter are read with direct reads, with the same values. This program
 * replaces fstatfs, so that any file system can pretend to be another, and pread, so that it can refuse
 * direct reads. */
#include "load/load.h"
#include "support.h"
#include "support_model.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

static const heft_load_sharded_options strict = {.struct_size = sizeof strict, .strict = true};

static heft_ctx *ctx;
static char folder[256];
static long pretended; /* magic number; 0: the file system as it is, of which nothing is known */

int fstatfs(int fd, struct statfs *facts)
{
    (void)fd;
    memset(facts, 0, sizeof *facts);
    facts->f_type = pretended;
    return 0;
}

static int refusal;                /* errno of direct reads; 0: they are done */
static atomic_size_t asked_direct; /* direct reads that were tried */

ssize_t pread(int fd, void *dst, size_t length, off_t offset)
{
    struct iovec to = {dst, length};
    if (fcntl(fd, F_GETFL) & O_DIRECT) {
        atomic_fetch_add(&asked_direct, 1);
        if (refusal) {
            errno = refusal;
            return -1;
        }
    }
    return preadv(fd, &to, 1, offset);
}

static const char *at(const char *name)
{
    return test_path(folder, name);
}

/* About 44 MB in one file. */
static void make_checkpoint(const char *name)
{
    static const char config[] =
        "{\"model_type\":\"bert\",\"hidden_size\":256,\"num_hidden_layers\":2,"
        "\"num_attention_heads\":4,\"intermediate_size\":1000,\"vocab_size\":40001,"
        "\"max_position_embeddings\":40,\"dtype\":\"float32\"}";
    heft_error err = {0};
    heft_model *model = test_model_from_text(ctx, config, "BertModel");
    test_expect_status(heft_model_save_random(model, at(name), NULL, NULL, NULL, &err), HEFT_OK,
                       &err, name);
    heft_model_free(model);
}

static heft_model *load(const char *name, heft_load_mode mode, heft_dtype dtype,
                        heft_load_report **report)
{
    heft_error err = {0};
    heft_model *model = NULL;
    const test_how options = {
        .load = {.mode = mode, .dtype = dtype, .strict = true, .touch = true}
    };
    test_expect_status(test_load(ctx, at(name), &options, &model, report, &err), HEFT_OK, &err,
                       name);
    return model;
}

static void auto_copies_from_a_network(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        long magic;
        heft_load_mode mode;
        const char *chosen, *says;
    } rows[] = {
        {"disk",          0xef53,           HEFT_LOAD_AUTO, "map",  "mapped"},
        {"nfs",           0x6969,           HEFT_LOAD_AUTO, "copy", "NFS"   },
        {"fuse",          0x65735546,       HEFT_LOAD_AUTO, "copy", "FUSE"  },
        {"smb",           (long)0xfe534d42, HEFT_LOAD_AUTO, "copy", "SMB"   },
        {"nfs_asked_for", 0x6969,           HEFT_LOAD_MAP,  "map",  "mapped"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_load_report *report = NULL;
        pretended = rows[i].magic;
        heft_model *model = load("model", rows[i].mode, HEFT_DTYPE_NONE, &report);
        if (strcmp(report->mode, rows[i].chosen) != 0 || !strstr(report->strategy, rows[i].says)) {
            fail_msg("%s: %s, %s", rows[i].name, report->mode, report->strategy);
        }
        assert_int_equal(
            strcmp(report->mode, "copy") == 0 ? report->mapped_bytes : report->copied_bytes, 0);
        heft_load_report_free(report);
        heft_model_free(model);
    }
    pretended = 0;
}

/* Out of the page cache, as far as the file system lets us; the values are the same either way. */
static void make_cold(const char *name)
{
    int fd = open(at(name), O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fdatasync(fd), 0);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    close(fd);
}

static void expect_equal(const heft_model *a, const heft_model *b)
{
    heft_error err;
    for (size_t i = 0; i < heft_model_count(a); i++) {
        heft_tensor *left = NULL, *right = NULL;
        assert_int_equal(heft_model_tensor(a, i, &left, &err), HEFT_OK);
        assert_int_equal(heft_model_tensor(b, i, &right, &err), HEFT_OK);
        assert_int_equal(left->size_bytes, right->size_bytes);
        assert_memory_equal(left->data, right->data, (size_t)left->size_bytes);
        heft_tensor_free(left);
        heft_tensor_free(right);
    }
}

static void cold_files_give_the_same_values(void **state)
{
    (void)state;
    static const heft_dtype dtypes[] = {HEFT_DTYPE_F32, HEFT_DTYPE_BF16};
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        heft_load_report *report = NULL;
        heft_model *warm = load("model", HEFT_LOAD_COPY, dtypes[i], NULL);
        make_cold("model/model.safetensors");
        heft_model *cold = load("model", HEFT_LOAD_COPY, dtypes[i], &report);
        print_message("cold, %s: %s\n", heft_dtype_name(dtypes[i]), report->strategy);
        expect_equal(warm, cold);
        heft_load_report_free(report);
        heft_model_free(cold);
        make_cold("model/model.safetensors");
        heft_error err = {0};
        heft_model *into = load("model", HEFT_LOAD_COPY, dtypes[i], NULL);
        make_cold("model/model.safetensors");
        test_expect_status(heft_model_load_sharded(into, at("model"), &strict, NULL, &err), HEFT_OK,
                           &err, "into");
        expect_equal(warm, into);
        heft_model_free(into);
        heft_model_free(warm);
    }
}

/* Every phase, every short length, both ends of the file. */
static void direct_reads_are_reads(void **state)
{
    (void)state;
    enum { SIZE = 3 * HEFT__DIRECT_BLOCK + 777 };
    static uint8_t bytes[SIZE];
    static _Alignas(HEFT__DIRECT_BLOCK) uint8_t memory[SIZE + 2 * HEFT__DIRECT_BLOCK];
    heft_error err = {0};
    heft__input *source = NULL;
    for (size_t i = 0; i < SIZE; i++) {
        bytes[i] = (uint8_t)(i * 31 + i / 251);
    }
    test_write_file(folder, "bytes", bytes, SIZE);
    test_expect_status(heft__input_open(ctx, at("bytes"), &source, &err), HEFT_OK, &err, "open");
    static const size_t offsets[] = {0, 1, 511, 4095, 4096, 4097, 8192, SIZE - 1, SIZE};
    static const size_t lengths[] = {0, 1, 4095, 4096, 4097, 8191, 8192, 8193, 12288, SIZE};
    for (size_t o = 0; o < sizeof offsets / sizeof offsets[0]; o++) {
        for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++) {
            for (size_t k = 0; k < 4; k++) { /* in phase and out of it, with room around and not */
                const bool spill = k / 2 == 1;
                uint8_t *dst = memory + offsets[o] % HEFT__DIRECT_BLOCK + k % 2;
                memset(memory, 0xee, sizeof memory);
                heft_status status =
                    heft__input_read_direct(source, offsets[o], dst, lengths[l], spill, &err);
                if (offsets[o] + lengths[l] > SIZE) {
                    assert_int_equal(status, HEFT_FORMAT);
                    continue;
                }
                test_expect_status(status, HEFT_OK, &err, "read");
                assert_memory_equal(dst, bytes + offsets[o], lengths[l]);
                assert_true(spill || dst[lengths[l]] == 0xee);
            }
        }
    }
    assert_int_equal(truncate(at("bytes"), 5000), 0);
    assert_int_equal(heft__input_read_direct(source, 0, memory, SIZE, false, &err), HEFT_IO);
    assert_int_equal(err.offset, 5000);
    heft__input_unref(source);
}

/* Some file systems open a file for direct reads and then refuse each of them. */
static void a_refusal_of_direct_reads_is_remembered(void **state)
{
    (void)state;
    enum { SIZE = 8 * HEFT__DIRECT_BLOCK };
    static const int refusals[] = {EINVAL, EOPNOTSUPP};
    static uint8_t bytes[SIZE];
    static _Alignas(HEFT__DIRECT_BLOCK) uint8_t memory[SIZE];
    for (size_t i = 0; i < SIZE; i++) {
        bytes[i] = (uint8_t)(i * 31 + i / 251);
    }
    test_write_file(folder, "refused", bytes, SIZE);
    for (size_t k = 0; k < sizeof refusals / sizeof refusals[0]; k++) {
        heft__input *sources[2] = {NULL, NULL};
        heft_error err = {0};
        for (size_t i = 0; i < 2; i++) {
            test_expect_status(heft__input_open(ctx, at("refused"), &sources[i], &err), HEFT_OK,
                               &err, "open");
        }
        atomic_store(&asked_direct, 0);
        refusal = refusals[k];
        for (size_t i = 0; i < 20; i++) {
            memset(memory, 0xee, sizeof memory);
            test_expect_status(
                heft__input_read_direct(sources[0], 0, memory, SIZE, i % 2 == 0, &err), HEFT_OK,
                &err, "read");
            assert_memory_equal(memory, bytes, SIZE);
        }
        refusal = 0;
        const size_t tried = atomic_load(&asked_direct);
        assert_true(tried <= 1); /* none where the file system refuses at open() already */
        (void)heft__input_read_direct(sources[1], 0, memory, SIZE, true, &err);
        assert_int_equal(atomic_load(&asked_direct), 2 * tried); /* that file only */
        heft__input_unref(sources[0]);
        heft__input_unref(sources[1]);
    }
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
        cmocka_unit_test(auto_copies_from_a_network),
        cmocka_unit_test(cold_files_give_the_same_values),
        cmocka_unit_test(direct_reads_are_reads),
        cmocka_unit_test(a_refusal_of_direct_reads_is_remembered),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
