/* One copy per host: several processes that load the same weights in another dtype share them, a
 * builder that dies is replaced, nothing is left behind, and other weights are another copy. This
 * program replaces memfd_create, so that it can fail. */
#include "load/load.h"
#include "support.h"
#include "support_model.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static heft_ctx *ctx;
static char folder[256], runtime[256];

static bool no_memfd; /* as in a kernel before 3.17, or below a strict filter */

int memfd_create(const char *name, unsigned flags)
{
    if (no_memfd) {
        errno = ENOSYS;
        return -1;
    }
    return (int)syscall(SYS_memfd_create, name, flags);
}

static const char *at(const char *name)
{
    return test_path(folder, name);
}

static void make_checkpoint(const char *name, uint64_t seed)
{
    static const char tiny[] =
        "{\"model_type\":\"bert\",\"hidden_size\":64,\"num_hidden_layers\":2,"
        "\"num_attention_heads\":4,\"intermediate_size\":128,\"vocab_size\":300,"
        "\"max_position_embeddings\":40,\"dtype\":\"float32\"}";
    heft_error err = {0};
    heft_model *model = test_model_from_text(ctx, tiny, "BertModel");
    const heft_init_options init = HEFT_OPTIONS(heft_init_options, .seed = seed);
    const heft_save_options save = HEFT_OPTIONS(heft_save_options, .force = true);
    test_expect_status(heft_model_save_random(model, at(name), &init, &save, NULL, &err), HEFT_OK,
                       &err, name);
    heft_model_free(model);
}

static heft_model *load(const char *name, heft_load_mode mode, bool *joined)
{
    heft_error err = {0};
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    const test_how options = {
        .load = {.mode = mode, .dtype = HEFT_DTYPE_BF16, .strict = true}
    };
    test_expect_status(test_load(ctx, at(name), &options, &model, &report, &err), HEFT_OK, &err,
                       name);
    if (mode == HEFT_LOAD_SHARED) {
        assert_string_equal(report->mode, "shared");
        assert_int_equal(report->copied_bytes, 0);
        assert_int_equal(report->warning_count, 0);
        assert_true(report->shared_bytes == heft_model_bytes(model));
    }
    if (joined) {
        *joined = strstr(report->strategy, "already existed") != NULL;
    }
    heft_load_report_free(report);
    return model;
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

/* Files in the register's folder. */
static size_t count_registers(void)
{
    char path[512];
    size_t count = 0;
    snprintf(path, sizeof path, "%s/heft-%lu", runtime, (unsigned long)geteuid());
    DIR *all = opendir(path);
    for (struct dirent *entry = all ? readdir(all) : NULL; entry; entry = readdir(all)) {
        count += entry->d_name[0] != '.';
    }
    if (all) {
        closedir(all);
    }
    return count;
}

/* Whether a write to the tensor's first byte raises SIGSEGV, tried in a child. */
static bool write_crashes(const heft_tensor *tensor)
{
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL); /* whatever a sanitizer would make of it */
        *(volatile uint8_t *)tensor->data = 1;
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
}

static void tensors_say_whether_they_may_be_written(void **state)
{
    static const struct {
        heft_load_mode mode;
        heft_dtype dtype;
        uint32_t flags;
    } rows[] = {
        {HEFT_LOAD_SHARED, HEFT_DTYPE_BF16, HEFT_TENSOR_SHARED  },
        {HEFT_LOAD_SHARED, HEFT_DTYPE_F32,  HEFT_TENSOR_MAPPED  },
        {HEFT_LOAD_MAP,    HEFT_DTYPE_F32,  HEFT_TENSOR_MAPPED  },
        {HEFT_LOAD_COPY,   HEFT_DTYPE_F32,  HEFT_TENSOR_WRITABLE},
        {HEFT_LOAD_MAP,    HEFT_DTYPE_BF16, HEFT_TENSOR_WRITABLE},
    };
    (void)state;
    make_checkpoint("flags", 1);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_error err = {0};
        heft_model *model = NULL;
        heft_tensor *tensor = NULL;
        const test_how options = {
            .load = {.mode = rows[i].mode, .dtype = rows[i].dtype}
        };
        test_expect_status(test_load(ctx, at("flags"), &options, &model, NULL, &err), HEFT_OK, &err,
                           "load");
        assert_int_equal(heft_model_tensor(model, 0, &tensor, &err), HEFT_OK);
        assert_int_equal(tensor->flags, rows[i].flags);
        assert_int_equal(write_crashes(tensor), !(rows[i].flags & HEFT_TENSOR_WRITABLE));
        heft_model_free(model); /* the tensor stays, and what may be done with it */
        assert_int_equal(write_crashes(tensor), !(rows[i].flags & HEFT_TENSOR_WRITABLE));
        heft_tensor_free(tensor);
    }
    assert_int_equal(count_registers(), 0);
}

static void processes_share_one_copy(void **state)
{
    (void)state;
    bool joined = true;
    make_checkpoint("one", 1);
    heft_model *private = load("one", HEFT_LOAD_COPY, NULL);
    heft_model *first = load("one", HEFT_LOAD_SHARED, &joined);
    assert_false(joined);
    assert_int_equal(count_registers(), 1);
    assert_int_equal(heft_model_parameter(first, 0)->state, HEFT_PARAMETER_SHARED);
    expect_equal(private, first);
    pid_t children[4];
    for (size_t i = 0; i < 4; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            bool found = false;
            heft_model *own = load("one", HEFT_LOAD_SHARED, &found);
            expect_equal(private, own);
            heft_model_free(own);
            _exit(found ? 0 : 1);
        }
    }
    for (size_t i = 0; i < 4; i++) {
        int status = 0;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    heft_model *second = load("one", HEFT_LOAD_SHARED, &joined);
    assert_true(joined);
    heft_model_free(first); /* the builder may free it first */
    heft_model *third = load("one", HEFT_LOAD_SHARED, &joined);
    assert_true(joined);
    expect_equal(private, third);
    heft_model_free(second);
    heft_model_free(third);
    heft_model_free(private);
    assert_int_equal(count_registers(), 0);
}

/* All at once, with nothing there: one builds, the others wait for it. */
static void one_of_many_builds(void **state)
{
    (void)state;
    make_checkpoint("many", 2);
    int pipes[2], built = 0;
    assert_int_equal(pipe(pipes), 0);
    pid_t children[6];
    for (size_t i = 0; i < 6; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            bool found = false;
            char answer;
            heft_model *own = load("many", HEFT_LOAD_SHARED, &found);
            answer = found ? 'j' : 'b';
            ssize_t put = write(pipes[1], &answer, 1);
            usleep(300000); /* no process exits before all have the copy */
            heft_model_free(own);
            _exit(put == 1 ? 0 : 1);
        }
    }
    for (size_t i = 0; i < 6; i++) {
        char answer = 0;
        assert_int_equal(read(pipes[0], &answer, 1), 1);
        built += answer == 'b';
    }
    for (size_t i = 0; i < 6; i++) {
        int status = 0;
        waitpid(children[i], &status, 0);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    close(pipes[0]);
    close(pipes[1]);
    assert_int_equal(built, 1);
    assert_int_equal(count_registers(), 0);
}

/* A process that dies while it builds, and one that dies while it holds the copy. */
static void who_dies_leaves_nothing(void **state)
{
    (void)state;
    heft_error err = {0};
    for (int sealed = 0; sealed < 2; sealed++) {
        int pipes[2];
        char byte = 0;
        assert_int_equal(pipe(pipes), 0);
        pid_t child = fork();
        if (child == 0) {
            heft__segment *segment = NULL;
            heft_status status = heft__segment_open(ctx, "test-dies", 10000, &segment, &err);
            if (status == HEFT_OK && sealed) {
                status = heft__segment_seal(segment, &err);
            }
            ssize_t put = write(pipes[1], &byte, 1);
            (void)put;
            pause();
            _exit((int)status);
        }
        assert_int_equal(read(pipes[0], &byte, 1), 1);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        close(pipes[0]);
        close(pipes[1]);
        assert_int_equal(count_registers(), 1); /* some bytes, and the next one clears them */
        heft__segment *segment = NULL;
        test_expect_status(heft__segment_open(ctx, "test-dies", 10000, &segment, &err), HEFT_OK,
                           &err, "after a death");
        assert_true(heft__segment_is_new(segment));
        test_expect_status(heft__segment_seal(segment, &err), HEFT_OK, &err, "seal");
        heft__segment_close(segment);
        assert_int_equal(count_registers(), 0);
    }
}

static void other_weights_are_another_copy(void **state)
{
    (void)state;
    bool joined = true;
    make_checkpoint("a", 3);
    make_checkpoint("b", 4);
    heft_model *a = load("a", HEFT_LOAD_SHARED, &joined);
    heft_model *b = load("b", HEFT_LOAD_SHARED, &joined);
    assert_false(joined);
    assert_int_equal(count_registers(), 2);
    make_checkpoint("a", 5); /* saved again: the old copy no longer fits */
    heft_model *again = load("a", HEFT_LOAD_SHARED, &joined);
    assert_false(joined);
    heft_model_free(a);
    heft_model_free(b);
    heft_model_free(again);
    assert_int_equal(count_registers(), 0);
}

/* A corrupted register, and one that names processes that hold something else. */
static void a_register_is_not_trusted(void **state)
{
    (void)state;
    char path[600];
    static const char *const texts[] = {"", "garbage\n", "1 0\n", "999999999 3\n-5 -7\n",
                                        "99999999999999999999999999 1\n"};
    heft_error err = {0};
    snprintf(path, sizeof path, "%s/heft-%lu", runtime, (unsigned long)geteuid());
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        heft__segment *segment = NULL;
        char own[64];
        snprintf(own, sizeof own, "%ld 0\n%ld 1\n", (long)getpid(), (long)getpid());
        test_write_file(path, "test-odd", texts[i], strlen(texts[i]));
        if (i == 0) {
            test_write_file(path, "test-odd", own, strlen(own));
        }
        test_expect_status(heft__segment_open(ctx, "test-odd", 5000, &segment, &err), HEFT_OK, &err,
                           texts[i]);
        assert_true(heft__segment_is_new(segment));
        heft__segment_close(segment); /* given up before it was sealed */
        assert_int_equal(count_registers(), 0);
    }
}

/* A register so full of lines of a process with the copy that no line can be added. */
static void fill_register(void)
{
    char registers[600];
    const char *path = NULL;
    size_t length = 0;
    snprintf(registers, sizeof registers, "%s/heft-%lu", runtime, (unsigned long)geteuid());
    DIR *all = opendir(registers);
    assert_non_null(all);
    for (struct dirent *entry = readdir(all); entry; entry = readdir(all)) {
        path = entry->d_name[0] != '.' ? test_path(registers, entry->d_name) : path;
    }
    closedir(all);
    assert_non_null(path);
    char *line = test_read_file(path, &length);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    for (size_t i = 0; i < 65535 / length; i++) {
        assert_int_equal(fwrite(line, 1, length, file), length);
    }
    assert_int_equal(fclose(file), 0);
    free(line);
}

/* A process that cannot have a shared copy gets a private one, a warning, and no error. */
static void without_a_shared_copy_there_is_a_private_one(void **state)
{
    (void)state;
    static const char *const says[] = {"the register of shared copies is full",
                                       "cannot create a shared copy"};
    const test_how how = {
        .load = {.mode = HEFT_LOAD_SHARED, .dtype = HEFT_DTYPE_BF16, .strict = true}
    };
    for (size_t i = 0; i < sizeof says / sizeof says[0]; i++) {
        heft_error err, untouched;
        heft_load_report *report = NULL;
        heft_model *own = NULL;
        make_checkpoint("crowd", 6);
        heft_model *first = load("crowd", i == 0 ? HEFT_LOAD_SHARED : HEFT_LOAD_COPY, NULL);
        if (i == 0) {
            fill_register();
        }
        no_memfd = i == 1;
        memset(&err, 0x5a, sizeof err);
        memset(&untouched, 0x5a, sizeof untouched);
        test_expect_status(test_load(ctx, at("crowd"), &how, &own, &report, &err), HEFT_OK, &err,
                           says[i]);
        no_memfd = false;
        assert_memory_equal(&err, &untouched, sizeof err);
        assert_int_equal(report->shared_bytes, 0);
        assert_int_equal(report->copied_bytes, heft_model_bytes(own));
        assert_int_equal(report->warning_count, 1);
        assert_non_null(strstr(report->warnings[0], says[i]));
        expect_equal(first, own);
        heft_load_report_free(report);
        heft_model_free(own);
        heft_model_free(first);
        assert_int_equal(count_registers(), 0);
    }
}

static int set_up(void **state)
{
    (void)state;
    test_folder_make(folder);
    test_folder_make(runtime);
    setenv("XDG_RUNTIME_DIR", runtime, 1);
    const unsigned threads = TEST_THREAD_SANITIZER ? 1 : 0; /* children use the context */
    ctx = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .threads = threads));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    test_folder_remove(folder);
    test_folder_remove(runtime);
    heft_ctx_free(ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(processes_share_one_copy),
        cmocka_unit_test(tensors_say_whether_they_may_be_written),
        cmocka_unit_test(one_of_many_builds),
        cmocka_unit_test(who_dies_leaves_nothing),
        cmocka_unit_test(other_weights_are_another_copy),
        cmocka_unit_test(a_register_is_not_trusted),
        cmocka_unit_test(without_a_shared_copy_there_is_a_private_one),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
