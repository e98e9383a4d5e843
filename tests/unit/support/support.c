#include "support.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Files are read by threads of their own, whatever the number of threads that compute. */
static pthread_mutex_t heap_lock = PTHREAD_MUTEX_INITIALIZER;

static void *heap_alloc(void *user, size_t bytes)
{
    test_heap *heap = user;
    pthread_mutex_lock(&heap_lock);
    void *block = heap->count++ == heap->fail_at ? NULL : malloc(bytes);
    if (block) {
        heap->blocks++;
        heap->bytes += bytes;
        heap->peak = heap->bytes > heap->peak ? heap->bytes : heap->peak;
    }
    pthread_mutex_unlock(&heap_lock);
    if (block) {
        memset(block, 0xA5, bytes); /* what is used before it is set shows */
    }
    return block;
}

static void heap_free(void *user, void *block, size_t bytes)
{
    test_heap *heap = user;
    pthread_mutex_lock(&heap_lock);
    heap->blocks--;
    heap->bytes -= bytes;
    pthread_mutex_unlock(&heap_lock);
    memset(block, 0x5A, bytes);
    free(block);
}

heft_ctx *test_ctx_new(test_heap *heap)
{
    const heft_allocator allocator = {heap_alloc, NULL, heap_free, heap};
    const heft_ctx_options options = HEFT_OPTIONS(heft_ctx_options, .allocator = &allocator,
                                                  .threads = 1, .staging_bytes = 1 << 20);
    long fail_at = heap->fail_at;
    *heap = (test_heap){.fail_at = -1};
    heft_ctx *ctx = heft_ctx_new(&options);
    assert_non_null(ctx);
    heap->count = 0;
    heap->fail_at = fail_at;
    return ctx;
}

void test_oom_sweep(test_attempt_fn attempt, void *user)
{
    for (long n = 0;; n++) {
        test_heap heap = {.fail_at = n};
        heft_error err;
        heft_ctx *ctx = test_ctx_new(&heap);
        heft_status status = attempt(ctx, user, &err);
        heft_ctx_free(ctx);
        if (heap.blocks != 0) {
            fail_msg("allocation %ld fails: %ld blocks are left", n, heap.blocks);
        }
        if (status == HEFT_OK) {
            assert_true(heap.count <= n); /* it succeeded because nothing failed */
            return;
        }
        if (status != HEFT_NOMEM) {
            fail_msg("allocation %ld fails: status %s, %s", n, heft_status_name(status),
                     err.message);
        }
    }
}

const char *test_path(const char *folder, const char *name)
{
    static char paths[16][900];
    static unsigned next;
    char *path = paths[next++ % 16];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

void test_folder_make(char path[256])
{
    const char *base = getenv("TMPDIR");
    snprintf(path, 256, "%s/heft-test-XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(path));
}

static int remove_entry(const char *path, const struct stat *facts, int kind, struct FTW *walk)
{
    (void)facts, (void)kind, (void)walk;
    return remove(path);
}

void test_folder_remove(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

void test_write_file(const char *folder, const char *name, const void *bytes, size_t length)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

char *test_read_file(const char *path, size_t *length)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        fail_msg("cannot open %s: %s", path, strerror(errno));
        return NULL;
    }
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    long size = ftell(file);
    rewind(file);
    char *text = malloc((size_t)size + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, (size_t)size, file), size);
    text[size] = '\0';
    fclose(file);
    if (length) {
        *length = (size_t)size;
    }
    return text;
}

bool test_emulated(void)
{
    const int no_advice = 9999;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *memory = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    const bool emulated = madvise(memory, page, no_advice) == 0;
    munmap(memory, page);
    return emulated;
}

size_t test_count_entries(const char *path)
{
    size_t count = 0;
    DIR *folder = opendir(path);
    assert_non_null(folder);
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    }
    closedir(folder);
    return count;
}

const test_refusal *test_find_refusal(const test_refusal *rows, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(rows[i].name, name) == 0) {
            return &rows[i];
        }
    }
    return NULL;
}

void test_expect_status(heft_status status, heft_status expected, const heft_error *err,
                        const char *row)
{
    if (status != expected) {
        char line[1400] = "";
        if (status != HEFT_OK) {
            heft_error_format(err, line, sizeof line);
        }
        fail_msg("%s: status %s, expected %s; %s", row, heft_status_name(status),
                 heft_status_name(expected), line);
    }
}
