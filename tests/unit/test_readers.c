/* test_readers.c - checkpoints from bytes in memory and through a caller's reader: the same tensors as
 * from a file, every way in which a reader can fail, and what keeps what alive. */
#include "checkpoint/checkpoint.h"
#include "support.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static heft_ctx *ctx; /* with several threads */

/* ---- a reader of bytes ------------------------------------------------------------------------- */
struct memory {
    const char *name;
    const uint8_t *bytes;
    size_t length;
    size_t most;        /* bytes that one call gives; 0: all that is asked for */
    uint64_t fail_from; /* calls that reach this byte fail; UINT64_MAX: none */
    int64_t failure;    /* what they return */
    bool maps, refuses_to_map;
    atomic_size_t calls, read, mapped, released;
};

static int64_t read_at(void *user, uint64_t offset, void *dst, size_t length)
{
    struct memory *m = user;
    atomic_fetch_add(&m->calls, 1);
    if (offset > m->length || length > m->length - offset) {
        return -ERANGE; /* heft promises not to ask for it */
    }
    if (offset >= m->fail_from) {
        return m->failure;
    }
    if (length > m->fail_from - offset) {
        length = (size_t)(m->fail_from - offset);
    }
    length = m->most && length > m->most ? m->most : length;
    memcpy(dst, m->bytes + offset, length);
    atomic_fetch_add(&m->read, length);
    return (int64_t)length;
}

static const void *map_all(void *user)
{
    struct memory *m = user;
    atomic_fetch_add(&m->mapped, 1);
    return m->refuses_to_map ? NULL : m->bytes;
}

static void count_release(void *user)
{
    struct memory *m = user;
    atomic_fetch_add(&m->released, 1);
}

static heft_reader reader_of(struct memory *m)
{
    return HEFT_OPTIONS(heft_reader, .name = m->name, .size = m->length, .read_at = read_at,
                        .map = m->maps ? map_all : NULL, .release = count_release, .user = m);
}

static heft_status open_reader(heft_ctx *on, struct memory *m, heft_checkpoint **out,
                               heft_error *err)
{
    const heft_reader reader = reader_of(m);
    return heft_checkpoint_open_reader(on, &reader, NULL, out, err);
}

static heft_status open_bytes(heft_ctx *on, struct memory *m, heft_checkpoint **out,
                              heft_error *err)
{
    heft_storage *storage = NULL;
    heft_status status =
        heft_storage_wrap_const(on, m->bytes, m->length, count_release, m, &storage, err);
    if (status == HEFT_OK) {
        status = heft_checkpoint_open_bytes(on, m->name, storage, NULL, out, err);
    }
    heft_storage_unref(storage);
    return status;
}

static struct memory memory_of(const uint8_t *bytes, size_t length)
{
    return (struct memory){
        .name = "store/a.bin", .bytes = bytes, .length = length, .fail_from = UINT64_MAX};
}

/* A safetensors file of a few tensors; malloced. */
static uint8_t *small_file(size_t *length)
{
    return (uint8_t *)test_read_file(HEFT_TEST_DATA "/safetensors/valid/st_all_dtypes.safetensors",
                                     length);
}

/* ---- the same tensors -------------------------------------------------------------------------- */
static bool is_row_by_row(const heft_tensor *tensor)
{
    int64_t expected = 1;
    for (size_t i = tensor->rank; i-- > 0;) {
        if (tensor->shape[i] != 1 && tensor->strides[i] != expected) {
            return false;
        }
        expected *= (int64_t)tensor->shape[i];
    }
    return true;
}

static void expect_same(const char *what, const heft_checkpoint *file, const heft_checkpoint *other)
{
    heft_error err;
    assert_int_equal(heft_checkpoint_count(file), heft_checkpoint_count(other));
    assert_int_equal(heft_checkpoint_total_bytes(file), heft_checkpoint_total_bytes(other));
    for (size_t i = 0; i < heft_checkpoint_count(file); i++) {
        const heft_tensor_info *a = heft_checkpoint_info(file, i),
                               *b = heft_checkpoint_info(other, i);
        assert_string_equal(a->name, b->name);
        assert_int_equal(a->dtype, b->dtype);
        assert_true(heft__shape_equal(a->shape, a->rank, b->shape, b->rank));
        assert_int_equal(a->offset, b->offset);
        assert_int_equal(a->storage, b->storage);
        uint8_t *left = malloc((size_t)a->size_bytes + 1),
                *right = malloc((size_t)a->size_bytes + 1);
        test_expect_status(heft_checkpoint_read(file, i, left, a->size_bytes, &err), HEFT_OK, &err,
                           what);
        test_expect_status(heft_checkpoint_read(other, i, right, a->size_bytes, &err), HEFT_OK,
                           &err, what);
        assert_memory_equal(left, right, (size_t)a->size_bytes);
        for (int mode = 0; mode < 2; mode++) {
            heft_tensor *one = NULL, *two = NULL;
            test_expect_status(heft_checkpoint_map(file, i, (heft_map_mode)mode, &one, &err),
                               HEFT_OK, &err, what);
            test_expect_status(heft_checkpoint_map(other, i, (heft_map_mode)mode, &two, &err),
                               HEFT_OK, &err, what);
            assert_false(two->flags & HEFT_TENSOR_MAPPED); /* it is no file's mapping */
            if (mode == HEFT_MAP_PRIVATE) {
                assert_true(two->flags & HEFT_TENSOR_WRITABLE);
            }
            if (is_row_by_row(two)) {
                assert_memory_equal(two->data, right, (size_t)a->size_bytes);
            }
            if (one->flags & HEFT_TENSOR_MAPPED && !(two->flags & HEFT_TENSOR_WRITABLE)) {
                assert_int_equal(one->offset_bytes, two->offset_bytes);
            }
            if (!is_row_by_row(two) || !(two->flags & HEFT_TENSOR_WRITABLE)) {
                assert_memory_equal(one->strides, two->strides, a->rank * sizeof *one->strides);
            }
            heft_tensor_free(one);
            heft_tensor_free(two);
        }
        free(left);
        free(right);
    }
}

static void check_file(const char *path)
{
    static const struct {
        size_t most;
        bool maps, refuses;
    } ways[] = {
        {0,  false, false},
        {0,  true,  false},
        {0,  true,  true },
        {7,  false, false},
        {64, true,  false},
    };
    heft_error err = {0}, other = {0};
    heft_checkpoint *file = NULL, *ckpt = NULL;
    size_t length;
    uint8_t *bytes = (uint8_t *)test_read_file(path, &length);
    const heft_status expected = heft_checkpoint_open(ctx, path, NULL, &file, &err);
    for (size_t i = 0; i <= COUNT(ways); i++) {
        struct memory m = memory_of(bytes, length);
        m.name = path; /* errors name it, and guess by its ending what it was meant to be */
        const bool whole = i == COUNT(ways); /* in memory */
        if (!whole) {
            m.most = ways[i].most;
            m.maps = ways[i].maps;
            m.refuses_to_map = ways[i].refuses;
        }
        heft_status status =
            whole ? open_bytes(ctx, &m, &ckpt, &other) : open_reader(ctx, &m, &ckpt, &other);
        test_expect_status(status, expected, &other, path);
        if (status != HEFT_OK) {
            assert_int_equal(err.offset, other.offset);
            assert_string_equal(other.message, err.message);
            assert_int_equal(m.released, whole ? 1 : 0); /* a reader stays the caller's */
            assert_null(ckpt);
            continue;
        }
        expect_same(path, file, ckpt);
        assert_string_equal(heft_checkpoint_file(ckpt, 0)->path, path);
        assert_string_equal(heft_checkpoint_file(ckpt, 0)->name,
                            heft_checkpoint_file(file, 0)->name);
        assert_null(heft_checkpoint_folder(ckpt));
        assert_null(heft_checkpoint_index(ckpt));
        assert_int_equal(m.released, 0);
        heft_checkpoint_close(ckpt);
        assert_int_equal(m.released, 1);
        ckpt = NULL;
    }
    heft_checkpoint_close(file);
    free(bytes);
}

static size_t check_folder(const char *folder, const char *const *endings)
{
    size_t files = 0;
    DIR *all = opendir(folder);
    assert_non_null(all);
    for (struct dirent *e = readdir(all); e; e = readdir(all)) {
        const char *end = strrchr(e->d_name, '.');
        for (size_t i = 0; end && endings[i]; i++) {
            if (strcmp(end, endings[i]) == 0) {
                char path[1024];
                snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
                check_file(path);
                files++;
            }
        }
    }
    closedir(all);
    return files;
}

static void every_format_reads_as_from_a_file(void **state)
{
    static const char *const endings[] = {".pt", ".tar", ".bin", ".safetensors", NULL};
    (void)state;
    assert_true(check_folder(HEFT_TEST_DATA "/formats", endings) > 40);
    assert_true(check_folder(HEFT_TEST_DATA "/safetensors/valid", endings) > 10);
    assert_true(check_folder(HEFT_TEST_DATA "/malformed", endings) > 80);
    assert_true(check_folder(HEFT_TEST_DATA "/safetensors/malformed", endings) > 30);
}

static size_t count_descriptors(void)
{
    return test_count_entries("/proc/self/fd");
}

static void no_descriptor_is_needed(void **state)
{
    size_t length;
    uint8_t *bytes = small_file(&length);
    heft_error err;
    (void)state;
    const size_t before = count_descriptors();
    for (int k = 0; k < 2; k++) {
        struct memory m = memory_of(bytes, length);
        heft_checkpoint *ckpt = NULL;
        heft_tensor *tensor = NULL;
        m.maps = true;
        assert_int_equal(k ? open_bytes(ctx, &m, &ckpt, &err) : open_reader(ctx, &m, &ckpt, &err),
                         HEFT_OK);
        assert_int_equal(heft_checkpoint_map(ckpt, 0, HEFT_MAP_READ_ONLY, &tensor, &err), HEFT_OK);
        assert_int_equal(count_descriptors(), before);
        heft_tensor_free(tensor);
        heft_checkpoint_close(ckpt);
    }
    free(bytes);
}

/* ---- readers that fail ------------------------------------------------------------------------- */
static void a_reader_that_fails_is_an_io_error(void **state)
{
    static const struct {
        const char *name;
        int64_t failure;
        int sys_errno;
        const char *words;
    } rows[] = {
        {"errno",          -EACCES,          EACCES, "the reader failed: "                      },
        {"no_such_file",   -ENOENT,          ENOENT, "the reader failed: "                      },
        {"no_memory",      -ENOMEM,          ENOMEM, "the reader failed: "                      },
        {"no_errno",       INT64_MIN,        EIO,    "the reader failed: "                      },
        {"ends_early",     0,                0,      "the reader ended early, its size is "     },
        {"gives_too_much", INT64_C(1) << 40, 0,      "the reader returned 1099511627776 bytes, "},
    };
    size_t length;
    uint8_t *bytes = small_file(&length);
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        /* at opening, in the header's text; in a tensor, after half of its bytes */
        for (int late = 0; late < 2; late++) {
            struct memory m = memory_of(bytes, length);
            heft_checkpoint *ckpt = NULL;
            heft_error err = {0};
            uint8_t found[256];
            uint64_t at = 20;
            m.failure = rows[i].failure;
            heft_status status = HEFT_OK;
            if (late) {
                assert_int_equal(open_reader(ctx, &m, &ckpt, &err), HEFT_OK);
                const heft_tensor_info *info = heft_checkpoint_info(ckpt, 1);
                assert_true(info->size_bytes >= 2 && info->size_bytes <= sizeof found);
                at = m.fail_from = info->offset + info->size_bytes / 2;
                status = heft_checkpoint_read(ckpt, 1, found, sizeof found, &err);
                assert_string_equal(err.item, info->name);
            } else {
                m.fail_from = at;
                status = open_reader(ctx, &m, &ckpt, &err);
            }
            test_expect_status(status, HEFT_IO, &err, rows[i].name);
            assert_int_equal(err.status, HEFT_IO);
            assert_int_equal(err.offset, at);
            assert_int_equal(err.sys_errno, rows[i].sys_errno);
            assert_string_equal(err.path, "store/a.bin");
            if (!strstr(err.message, rows[i].words)) {
                fail_msg("%s: %s", rows[i].name, err.message);
            }
            assert_int_equal(ckpt != NULL, late);
            heft_checkpoint_close(ckpt);
            assert_int_equal(m.released, late);
        }
    }
    free(bytes);
}

static void a_size_that_is_not_the_contents_is_refused(void **state)
{
    static const int changes[] = {-1, 1, -100, 1000};
    size_t length;
    uint8_t *bytes = small_file(&length);
    uint8_t *more = calloc(length + 1000, 1);
    (void)state;
    memcpy(more, bytes, length);
    for (size_t i = 0; i < COUNT(changes); i++) {
        struct memory m = memory_of(more, (size_t)((int64_t)length + changes[i]));
        heft_checkpoint *ckpt = NULL;
        heft_error err;
        test_expect_status(open_reader(ctx, &m, &ckpt, &err), HEFT_FORMAT, &err, "size");
        test_expect_status(open_bytes(ctx, &m, &ckpt, &err), HEFT_FORMAT, &err, "size");
        assert_null(ckpt);
    }
    free(more);
    free(bytes);
}

static void arguments_are_checked(void **state)
{
    size_t length;
    uint8_t *bytes = small_file(&length);
    struct memory m = memory_of(bytes, length);
    heft_checkpoint *ckpt = NULL;
    heft_storage *storage = NULL;
    heft_error err;
    (void)state;
    heft_reader reader = reader_of(&m);
    assert_int_equal(heft_checkpoint_open_reader(NULL, &reader, NULL, &ckpt, &err),
                     HEFT_INVALID_ARG);
    assert_int_equal(heft_checkpoint_open_reader(ctx, NULL, NULL, &ckpt, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_checkpoint_open_reader(ctx, &reader, NULL, NULL, &err), HEFT_INVALID_ARG);
    const heft_checkpoint_options sizeless = {.struct_size = 0};
    assert_int_equal(heft_checkpoint_open_reader(ctx, &reader, &sizeless, &ckpt, &err),
                     HEFT_INVALID_ARG);
    reader.read_at = NULL;
    assert_int_equal(heft_checkpoint_open_reader(ctx, &reader, NULL, &ckpt, &err),
                     HEFT_INVALID_ARG);
    reader = reader_of(&m);
    reader.struct_size = 0;
    assert_int_equal(heft_checkpoint_open_reader(ctx, &reader, NULL, &ckpt, &err),
                     HEFT_INVALID_ARG);
    assert_int_equal(heft_checkpoint_open_bytes(ctx, "a", NULL, NULL, &ckpt, &err),
                     HEFT_INVALID_ARG);
    assert_int_equal(m.released, 0);
    assert_int_equal(m.calls, 0);
    assert_null(ckpt);
    reader = reader_of(&m); /* names may be left out */
    reader.name = NULL;
    assert_int_equal(heft_checkpoint_open_reader(ctx, &reader, NULL, &ckpt, &err), HEFT_OK);
    assert_string_equal(heft_checkpoint_file(ckpt, 0)->path, "reader");
    heft_checkpoint_close(ckpt);
    assert_int_equal(heft_storage_wrap_const(ctx, bytes, length, NULL, NULL, &storage, &err),
                     HEFT_OK);
    assert_int_equal(heft_checkpoint_open_bytes(ctx, NULL, storage, NULL, &ckpt, &err), HEFT_OK);
    assert_string_equal(heft_checkpoint_file(ckpt, 0)->path, "bytes");
    heft_checkpoint_close(ckpt);
    heft_storage_unref(storage);
    ckpt = NULL;
    assert_int_equal(heft_storage_wrap_const(ctx, NULL, 0, NULL, NULL, &storage, &err), HEFT_OK);
    assert_int_equal(heft_checkpoint_open_bytes(ctx, NULL, storage, NULL, &ckpt, &err),
                     HEFT_FORMAT); /* nothing at all */
    assert_null(ckpt);
    heft_storage_unref(storage);
    free(bytes);
}

/* ---- lifetime ---------------------------------------------------------------------------------- */
static void *drop_tensor(void *user)
{
    heft_tensor_free(user);
    return NULL;
}

static void tensors_keep_the_callers_memory(void **state)
{
    size_t length;
    uint8_t *bytes = small_file(&length);
    (void)state;
    for (int k = 0; k < 2; k++) {
        struct memory m = memory_of(bytes, length);
        heft_checkpoint *ckpt = NULL;
        heft_tensor *tensor = NULL, *copy = NULL;
        heft_error err;
        pthread_t thread;
        m.maps = true;
        heft_ctx *own = heft_ctx_new(NULL);
        assert_int_equal(k ? open_bytes(own, &m, &ckpt, &err) : open_reader(own, &m, &ckpt, &err),
                         HEFT_OK);
        const size_t before = m.read;
        assert_int_equal(heft_checkpoint_map(ckpt, 1, HEFT_MAP_READ_ONLY, &tensor, &err), HEFT_OK);
        assert_int_equal(m.read, before); /* not copied */
        assert_ptr_equal(tensor->data, bytes + heft_checkpoint_info(ckpt, 1)->offset);
        assert_int_equal(tensor->flags, 0);
        assert_int_equal(heft_checkpoint_map(ckpt, 1, HEFT_MAP_PRIVATE, &copy, &err), HEFT_OK);
        assert_int_equal(copy->flags, HEFT_TENSOR_WRITABLE);
        assert_memory_equal(copy->data, tensor->data, (size_t)tensor->size_bytes);
        heft_checkpoint_close(ckpt);
        heft_ctx_free(own);
        assert_int_equal(m.released, 0);
        assert_int_equal(pthread_create(&thread, NULL, drop_tensor, tensor), 0);
        pthread_join(thread, NULL);
        assert_int_equal(m.released, 1); /* the copy does not need it */
        heft_tensor_free(copy);
        assert_int_equal(m.released, 1);
    }
    free(bytes);
}

/* ---- many threads, and how much they read ------------------------------------------------------ */
#define ROWS 3000
#define COLUMNS 2500

static void many_threads_read_what_is_needed(void **state)
{
    static const struct {
        const char *name;
        uint64_t start[2], stop[2];
        double most; /* bytes that are read, in those of the slice */
    } rows[] = {
        {"whole",          {0, 0},   {ROWS, COLUMNS},     1.0},
        {"rows",           {100, 0}, {2900, COLUMNS},     1.0},
        {"narrow_columns", {0, 10},  {ROWS, 11},          1.0},
        {"wide_columns",   {0, 1},   {ROWS, COLUMNS},     1.1},
        {"half",           {0, 0},   {ROWS, COLUMNS / 2}, 1.0},
    };
    char header[128] = "";
    const int text =
        snprintf(header + 8, sizeof header - 8,
                 "{\"a\":{\"dtype\":\"U32\",\"shape\":[%d,%d],\"data_offsets\":[0,%d]}}", ROWS,
                 COLUMNS, ROWS * COLUMNS * 4);
    const size_t first = 8 + (size_t)text, length = first + (size_t)ROWS * COLUMNS * 4;
    uint8_t *bytes = malloc(length), *found = malloc(length);
    heft_checkpoint *ckpt = NULL;
    heft_error err;
    (void)state;
    heft__put_le64((uint8_t *)header, (uint64_t)text);
    memcpy(bytes, header, first);
    for (uint32_t i = 0; i < ROWS * COLUMNS; i++) {
        heft__put_le32(bytes + first + (size_t)i * 4, i * 2654435761u);
    }
    struct memory m = memory_of(bytes, length);
    test_expect_status(open_reader(ctx, &m, &ckpt, &err), HEFT_OK, &err, "open");
    assert_true(m.read < 4096); /* metadata only */
    for (size_t i = 0; i < COUNT(rows); i++) {
        const uint64_t height = rows[i].stop[0] - rows[i].start[0],
                       width = rows[i].stop[1] - rows[i].start[1];
        const heft_read_request request = {
            .rank = 2, .start = rows[i].start, .stop = rows[i].stop, .dst = found, .cap = length};
        const size_t before = m.read;
        test_expect_status(heft_checkpoint_read_slice(ckpt, &request, &err), HEFT_OK, &err,
                           rows[i].name);
        const size_t read = m.read - before;
        if ((double)read > rows[i].most * (double)(height * width * 4)) {
            fail_msg("%s: %zu bytes read for %llu", rows[i].name, read,
                     (unsigned long long)(height * width * 4));
        }
        for (uint64_t r = 0; r < height; r++) {
            const size_t at = (size_t)((rows[i].start[0] + r) * COLUMNS + rows[i].start[1]) * 4;
            assert_memory_equal(found + r * width * 4, bytes + first + at, (size_t)width * 4);
        }
    }
    heft_checkpoint_close(ckpt);
    assert_int_equal(m.released, 1);
    free(bytes);
    free(found);
}

/* ---- failing allocations ----------------------------------------------------------------------- */
static heft_status use_reader(heft_ctx *on, void *user, heft_error *err)
{
    struct memory *m = user;
    heft_checkpoint *ckpt = NULL;
    heft_tensor *tensor = NULL;
    m->released = 0;
    heft_status status = open_reader(on, m, &ckpt, err);
    assert_int_equal(ckpt != NULL, status == HEFT_OK);
    const bool opened = status == HEFT_OK;
    if (opened) {
        status = heft_checkpoint_map(ckpt, 1, HEFT_MAP_READ_ONLY, &tensor, err);
    }
    heft_checkpoint_close(ckpt);
    heft_tensor_free(tensor);
    assert_int_equal(m->released, opened);
    return status;
}

static heft_status use_bytes(heft_ctx *on, void *user, heft_error *err)
{
    struct memory *m = user;
    heft_checkpoint *ckpt = NULL;
    heft_tensor *tensor = NULL;
    heft_status status = open_bytes(on, m, &ckpt, err);
    if (status == HEFT_OK) {
        status = heft_checkpoint_map(ckpt, 1, HEFT_MAP_READ_ONLY, &tensor, err);
    }
    heft_checkpoint_close(ckpt);
    heft_tensor_free(tensor);
    return status;
}

static void failing_allocations_leave_nothing(void **state)
{
    size_t length;
    uint8_t *bytes = small_file(&length);
    struct memory m = memory_of(bytes, length);
    (void)state;
    test_oom_sweep(use_reader, &m);
    m.maps = true;
    test_oom_sweep(use_reader, &m);
    test_oom_sweep(use_bytes, &m);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_format_reads_as_from_a_file),
        cmocka_unit_test(no_descriptor_is_needed),
        cmocka_unit_test(a_reader_that_fails_is_an_io_error),
        cmocka_unit_test(a_size_that_is_not_the_contents_is_refused),
        cmocka_unit_test(arguments_are_checked),
        cmocka_unit_test(tensors_keep_the_callers_memory),
        cmocka_unit_test(many_threads_read_what_is_needed),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    ctx = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .threads = 4));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
