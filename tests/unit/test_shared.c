/* One copy per host: several processes that load the same weights in another dtype share them, a
 * builder that dies is replaced, nothing is left behind, and other weights are another copy. Nothing that
 * others plant is used, and sources that change are an error.
 *
 * This program replaces some system functions: memfd_create can fail, fstat can make files look like
 * others, and the process can kill itself before or after any of them. */
#include <heft/shared.h>

#include "load/load.h"
#include "support.h"
#include "support_model.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static heft_ctx *ctx;
static char folder[256], runtime[256];

/* ---- system functions ------------------------------------------------------------------------ */
static bool no_memfd; /* as in a kernel before 3.17, or below a strict filter */

/* Before and after each call of the functions below, the process may kill itself: at this of these
 * moments, counted from 1; 0: never. */
static int die_at, moments;

static void maybe_die(void)
{
    if (die_at && ++moments == die_at) {
        kill(getpid(), SIGKILL);
        pause();
    }
}

int memfd_create(const char *name, unsigned flags)
{
    if (no_memfd) {
        errno = ENOSYS;
        return -1;
    }
    maybe_die();
    const int fd = (int)syscall(SYS_memfd_create, name, flags);
    maybe_die();
    return fd;
}

int flock(int fd, int how)
{
    maybe_die();
    const int done = (int)syscall(SYS_flock, fd, how);
    maybe_die();
    return done;
}

int ftruncate(int fd, off_t length)
{
    maybe_die();
    const int done = (int)syscall(SYS_ftruncate, fd, length);
    maybe_die();
    return done;
}

int unlinkat(int dir, const char *name, int flags)
{
    maybe_die();
    const int done = (int)syscall(SYS_unlinkat, dir, name, flags);
    maybe_die();
    return done;
}

int fchmod(int fd, mode_t mode)
{
    maybe_die();
    const int done = (int)syscall(SYS_fchmod, fd, mode);
    maybe_die();
    return done;
}

/* How weight files look, whatever they are: as on two file systems that were made alike. */
static struct {
    bool on;
    uint64_t device, change;
} look;

int fstat(int fd, struct stat *facts)
{
    char link[64], path[512];
    const int done = fstatat(fd, "", facts, AT_EMPTY_PATH);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t length = look.on && done == 0 ? readlink(link, path, sizeof path - 1) : -1;
    if (length > 0) {
        path[length] = '\0';
        if (strstr(path, ".safetensors")) {
            facts->st_dev = (dev_t)look.device;
            facts->st_ino = 42;
            facts->st_mtim = (struct timespec){.tv_sec = 1};
            facts->st_ctim = (struct timespec){.tv_sec = (time_t)look.change};
        }
    }
    return done;
}

/* ---- helpers --------------------------------------------------------------------------------- */
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

/* The folder of registers: the usual one, or that with a suffix where another user has its name. */
static const char *registers(void)
{
    static char path[512];
    char prefix[32];
    struct stat facts;
    snprintf(prefix, sizeof prefix, "heft-%lu", (unsigned long)geteuid());
    path[0] = '\0';
    DIR *all = opendir(runtime);
    for (struct dirent *entry = all ? readdir(all) : NULL; entry; entry = readdir(all)) {
        char one[512];
        snprintf(one, sizeof one, "%s/%.200s", runtime, entry->d_name);
        if (strncmp(entry->d_name, prefix, strlen(prefix)) == 0 && lstat(one, &facts) == 0 &&
            S_ISDIR(facts.st_mode) && facts.st_uid == geteuid() && (facts.st_mode & 077) == 0) {
            memcpy(path, one, sizeof path);
        }
    }
    if (all) {
        closedir(all);
    }
    return path;
}

/* Files in it. */
static size_t count_registers(void)
{
    size_t count = 0;
    DIR *all = opendir(registers());
    for (struct dirent *entry = all ? readdir(all) : NULL; entry; entry = readdir(all)) {
        count += entry->d_name[0] != '.';
    }
    if (all) {
        closedir(all);
    }
    return count;
}

static const char *register_name(const char *what)
{
    static char name[32];
    snprintf(name, sizeof name, "%016llx",
             (unsigned long long)heft__stable_hash(what, strlen(what)));
    return name;
}

static heft_status open_segment(const char *what, uint64_t bytes, unsigned patience_ms,
                                heft__segment **out, heft_error *err)
{
    const heft__segment_request request = {.what = what,
                                           .what_bytes = strlen(what),
                                           .source = "/some/where",
                                           .bytes = bytes,
                                           .patience_ms = patience_ms};
    return heft__segment_open(ctx, &request, out, err);
}

/* Descriptors of this process that are segments. */
static size_t count_segments(void)
{
    size_t count = 0;
    DIR *all = opendir("/proc/self/fd");
    for (struct dirent *entry = all ? readdir(all) : NULL; entry; entry = readdir(all)) {
        char target[64] = "";
        count += readlinkat(dirfd(all), entry->d_name, target, sizeof target - 1) > 0 &&
                 strstr(target, "memfd:heft") != NULL;
    }
    if (all) {
        closedir(all);
    }
    return count;
}

/* A child that does `work`, says so by a byte, and waits to be killed. */
static pid_t begin_child(void (*work)(void *user), void *user)
{
    int pipes[2];
    char byte = 0;
    assert_int_equal(pipe(pipes), 0);
    const pid_t child = fork();
    if (child == 0) {
        work(user);
        ssize_t put = write(pipes[1], &byte, 1);
        (void)put;
        pause();
        _exit(1);
    }
    assert_int_equal(read(pipes[0], &byte, 1), 1);
    close(pipes[0]);
    close(pipes[1]);
    return child;
}

static void end_child(pid_t child)
{
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
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
        heft_map_mode map;
    } rows[] = {
        {HEFT_LOAD_SHARED, HEFT_DTYPE_BF16, HEFT_TENSOR_SHARED,                        HEFT_MAP_READ_ONLY},
        {HEFT_LOAD_SHARED, HEFT_DTYPE_BF16, HEFT_TENSOR_SHARED | HEFT_TENSOR_WRITABLE,
         HEFT_MAP_PRIVATE                                                                                },
        {HEFT_LOAD_SHARED, HEFT_DTYPE_F32,  HEFT_TENSOR_MAPPED,                        HEFT_MAP_READ_ONLY},
        {HEFT_LOAD_SHARED, HEFT_DTYPE_F32,  HEFT_TENSOR_MAPPED | HEFT_TENSOR_WRITABLE,
         HEFT_MAP_PRIVATE                                                                                },
        {HEFT_LOAD_MAP,    HEFT_DTYPE_F32,  HEFT_TENSOR_MAPPED,                        HEFT_MAP_READ_ONLY},
        {HEFT_LOAD_COPY,   HEFT_DTYPE_F32,  HEFT_TENSOR_WRITABLE,                      HEFT_MAP_READ_ONLY},
        {HEFT_LOAD_MAP,    HEFT_DTYPE_BF16, HEFT_TENSOR_WRITABLE,                      HEFT_MAP_READ_ONLY},
    };
    (void)state;
    make_checkpoint("flags", 1);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_error err = {0};
        heft_model *model = NULL;
        heft_tensor *tensor = NULL;
        const test_how options = {
            .load = {.mode = rows[i].mode, .dtype = rows[i].dtype, .map = rows[i].map}
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

/* Two private views and a read-only one of the same copy: what is written in one is in no other. */
static void writes_to_a_private_view_stay_in_it(void **state)
{
    static const heft_map_mode maps[] = {HEFT_MAP_PRIVATE, HEFT_MAP_PRIVATE, HEFT_MAP_READ_ONLY};
    heft_model *models[3] = {0};
    heft_tensor *tensors[3] = {0};
    heft_error err = {0};
    (void)state;
    make_checkpoint("private", 1);
    for (size_t i = 0; i < 3; i++) {
        heft_load_report *report = NULL;
        const test_how options = {
            .load = {.mode = HEFT_LOAD_SHARED, .dtype = HEFT_DTYPE_BF16, .map = maps[i]}
        };
        test_expect_status(test_load(ctx, at("private"), &options, &models[i], &report, &err),
                           HEFT_OK, &err, "load");
        assert_int_equal(strstr(report->strategy, "already existed") != NULL, i > 0);
        heft_load_report_free(report);
        assert_int_equal(heft_model_parameter(models[i], 0)->state, HEFT_PARAMETER_SHARED);
        assert_int_equal(heft_model_tensor(models[i], 0, &tensors[i], &err), HEFT_OK);
    }
    memset(tensors[0]->data, 0x55, (size_t)tensors[0]->size_bytes);
    assert_memory_equal(tensors[1]->data, tensors[2]->data, (size_t)tensors[1]->size_bytes);
    assert_memory_not_equal(tensors[0]->data, tensors[1]->data, (size_t)tensors[0]->size_bytes);
    for (size_t i = 0; i < 3; i++) {
        heft_tensor_free(tensors[i]);
        heft_model_free(models[i]);
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

struct holding {
    const char *what;
    bool sealed;
};

static void hold_segment(void *user)
{
    const struct holding *holding = user;
    heft__segment *segment = NULL;
    if (open_segment(holding->what, 10000, 0, &segment, NULL) != HEFT_OK ||
        (holding->sealed && heft__segment_seal(segment, NULL) != HEFT_OK)) {
        _exit(1);
    }
}

/* A process that dies while it builds, and one that dies while it holds the copy. */
static void who_dies_leaves_nothing(void **state)
{
    (void)state;
    heft_error err = {0};
    for (int sealed = 0; sealed < 2; sealed++) {
        end_child(begin_child(hold_segment, &(struct holding){"test-dies", sealed}));
        assert_int_equal(count_registers(), 1); /* a few bytes, which the next one removes */
        heft__segment *segment = NULL;
        test_expect_status(open_segment("test-dies", 10000, 0, &segment, &err), HEFT_OK, &err,
                           "after a death");
        assert_true(heft__segment_is_new(segment));
        test_expect_status(heft__segment_seal(segment, &err), HEFT_OK, &err, "seal");
        heft__segment_close(segment);
        assert_int_equal(count_registers(), 0);
    }
}

/* Killed users of copies that nobody asks for again. */
static void the_next_one_clears_what_the_dead_left(void **state)
{
    (void)state;
    heft__segment *segment = NULL;
    heft_error err = {0};
    char what[8][16];
    for (int i = 0; i < 8; i++) {
        snprintf(what[i], sizeof what[i], "dead-%d", i);
        end_child(begin_child(hold_segment, &(struct holding){what[i], i % 2}));
        assert_int_equal(count_registers(), 1); /* its own: it has cleared the others */
    }
    const pid_t alive = begin_child(hold_segment, &(struct holding){"alive", true});
    test_expect_status(open_segment("other", 10, 0, &segment, &err), HEFT_OK, &err, "other");
    assert_int_equal(count_registers(), 2); /* that of the living stays */
    heft__segment_close(segment);
    assert_int_equal(count_registers(), 1);
    end_child(alive);
    test_expect_status(open_segment("other", 10, 0, &segment, &err), HEFT_OK, &err, "other");
    heft__segment_close(segment);
    assert_int_equal(count_registers(), 0);
}

/* A builder that is killed before or after any of its system calls. */
static void a_builder_may_die_anywhere(void **state)
{
    (void)state;
    int died = 0;
    make_checkpoint("die", 7);
    heft_model *private = load("die", HEFT_LOAD_COPY, NULL);
    for (int n = 1; n < 200; n++) {
        const pid_t child = fork();
        if (child == 0) {
            die_at = n;
            heft_model_free(load("die", HEFT_LOAD_SHARED, NULL));
            _exit(0);
        }
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        heft_model *own = load("die", HEFT_LOAD_SHARED, NULL);
        expect_equal(private, own);
        heft_model_free(own);
        assert_int_equal(count_registers(), 0);
        assert_int_equal(count_segments(), 0);
        if (WIFEXITED(status)) {
            assert_int_equal(WEXITSTATUS(status), 0);
            break;
        }
        died++;
    }
    assert_true(died >= 10 && died <= 198);
    heft_model_free(private);
}

static void a_builder_that_has_stopped_is_not_waited_for(void **state)
{
    (void)state;
    heft_error err = {0};
    heft__segment *segment = NULL;
    const pid_t child = begin_child(hold_segment, &(struct holding){"stopped", false});
    kill(child, SIGSTOP);
    test_expect_status(open_segment("stopped", 10000, 200, &segment, &err), HEFT_UNSUPPORTED, &err,
                       "stopped");
    assert_non_null(strstr(err.message, "no sign of work for 200 ms"));
    end_child(child);
    assert_int_equal(count_registers(), 1);
    test_expect_status(open_segment("stopped", 10000, 200, &segment, &err), HEFT_OK, &err,
                       "killed");
    heft__segment_close(segment);
    assert_int_equal(count_registers(), 0);
}

static void hold_and_fork(void *user)
{
    hold_segment(user);
    if (fork() == 0) {
        close(1); /* nobody waits for its output */
        close(2);
        sleep(10);
        _exit(0);
    }
}

/* The builder is dead, but a child that it made meanwhile has its lock. */
static void a_lock_that_a_child_has_is_taken_away(void **state)
{
    (void)state;
    heft_error err = {0};
    heft__segment *segment = NULL;
    end_child(begin_child(hold_and_fork, &(struct holding){"forked", false}));
    test_expect_status(open_segment("forked", 10000, 15000, &segment, &err), HEFT_OK, &err,
                       "forked");
    heft__segment_close(segment);
    assert_int_equal(count_registers(), 0);
}

static void build_slowly(void *user)
{
    heft__segment *segment = NULL;
    if (open_segment(user, 10000, 0, &segment, NULL) != HEFT_OK) {
        _exit(1);
    }
    if (fork() == 0) { /* in place of the threads that fill */
        for (int i = 0; i < 30; i++) {
            heft__segment_beat(segment);
            usleep(100000);
        }
        kill(getppid(), SIGKILL);
        _exit(0);
    }
}

static void a_slow_builder_is_waited_for(void **state)
{
    (void)state;
    static char what[] = "slow";
    heft_error err = {0};
    heft__segment *segment = NULL;
    const pid_t child = begin_child(build_slowly, what);
    test_expect_status(open_segment(what, 10000, 1900, &segment, &err), HEFT_OK, &err, "slow");
    assert_true(heft__segment_is_new(segment));
    heft__segment_close(segment);
    end_child(child);
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
    static const char *const texts[] = {"",
                                        "garbage\n",
                                        "1 0\n",
                                        "1 0 5\n",
                                        "999999999 3 4\n-5 -7 -9\n",
                                        "99999999999999999999999999 1 1\n",
                                        "building 99999999\n",
                                        "building"};
    heft_error err = {0};
    heft__segment *segment = NULL;
    test_expect_status(open_segment("first", 10, 0, &segment, &err), HEFT_OK, &err, "folder");
    heft__segment_close(segment);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        char own[64];
        snprintf(own, sizeof own, "%ld 0 1\n%ld 1 1\n", (long)getpid(), (long)getpid());
        test_write_file(registers(), register_name("test-odd"), i ? texts[i] : own,
                        strlen(i ? texts[i] : own));
        assert_int_equal(chmod(test_path(registers(), register_name("test-odd")), 0600), 0);
        test_expect_status(open_segment("test-odd", 5000, 0, &segment, &err), HEFT_OK, &err,
                           texts[i]);
        assert_true(heft__segment_is_new(segment));
        heft__segment_close(segment); /* abandoned before it was sealed */
        assert_int_equal(count_registers(), 0);
    }
}

enum flaw { NO_FLAW, OTHER_MODE, NOT_SEALED, OTHER_WHAT, OTHER_SIZE, CUT, NO_FOOTER, FLAWS };

/* A memfd like those of heft, for "planted", but with a flaw. */
static int plant_segment(enum flaw flaw)
{
    heft_error err = {0};
    heft__segment *model = NULL;
    uint8_t bytes[20000];
    size_t line_bytes = 0;
    struct stat facts;
    char text[64];
    test_expect_status(open_segment("planted", 5000, 0, &model, &err), HEFT_OK, &err, "model");
    test_expect_status(heft__segment_seal(model, &err), HEFT_OK, &err, "model");
    char *line = test_read_file(test_path(registers(), register_name("planted")), &line_bytes);
    snprintf(text, sizeof text, "/proc/self/fd/%ld", strtol(strchr(line, ' '), NULL, 10));
    free(line);
    const int from = open(text, O_RDONLY);
    const ssize_t size = read(from, bytes, sizeof bytes);
    assert_true(size >= 5000 && size <= 6000);
    close(from);
    heft__segment_close(model);
    assert_int_equal(count_registers(), 0);

    uint8_t *what = memmem(bytes, (size_t)size, "planted", 7);
    assert_non_null(what);
    what[0] = flaw == OTHER_WHAT ? 'P' : what[0];
    const ssize_t length = flaw == CUT ? size - 1 : flaw == NO_FOOTER ? 5000 : size;
    const int fd = memfd_create("heft", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(write(fd, bytes, (size_t)length), length);
    if (flaw == OTHER_SIZE) { /* one byte more before the footer */
        assert_int_equal(pwrite(fd, bytes + size - 40, 40, size - 39), 40);
    }
    assert_int_equal(fchmod(fd, flaw == OTHER_MODE ? 0666 : 0600), 0);
    const int seals =
        F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | (flaw == NOT_SEALED ? 0 : F_SEAL_WRITE);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    assert_int_equal(fstat(fd, &facts), 0);
    snprintf(text, sizeof text, "%ld %d %llu\n", (long)getpid(), fd,
             (unsigned long long)facts.st_ino);
    test_write_file(registers(), register_name("planted"), text, strlen(text));
    assert_int_equal(chmod(test_path(registers(), register_name("planted")), 0600), 0);
    return fd;
}

static void only_a_sound_segment_is_joined(void **state)
{
    (void)state;
    for (int flaw = NO_FLAW; flaw < FLAWS; flaw++) {
        heft_error err = {0};
        heft__segment *segment = NULL;
        const int fd = plant_segment((enum flaw)flaw);
        test_expect_status(open_segment("planted", 5000, 0, &segment, &err), HEFT_OK, &err, "join");
        if (heft__segment_is_new(segment) != (flaw != NO_FLAW)) {
            fail_msg("flaw %d: new %d", flaw, heft__segment_is_new(segment));
        }
        close(fd);
        heft__segment_close(segment);
        assert_int_equal(count_registers(), 0);
    }
}

/* Something in the place of the folder that is not this user's alone: nothing is written to it, and there
 * is sharing all the same. */
static void what_others_plant_is_passed_over(void **state)
{
    (void)state;
    char usual[512], elsewhere[256];
    snprintf(usual, sizeof usual, "%s/heft-%lu", runtime, (unsigned long)geteuid());
    test_folder_make(elsewhere);
    test_folder_remove(usual);
    for (int kind = 0; kind < 4; kind++) {
        heft_error err = {0};
        heft__segment *segment = NULL, *second = NULL;
        if (kind == 0) {
            assert_int_equal(symlink(elsewhere, usual), 0);
        } else if (kind == 1) {
            test_write_file(runtime, strrchr(usual, '/') + 1, "", 0);
        } else {
            assert_int_equal(mkdir(usual, 0700), 0);
            assert_int_equal(chmod(usual, kind == 2 ? 0770 : 0700), 0);
            if (kind == 3 && (geteuid() != 0 || chown(usual, 65534, 65534) != 0)) {
                print_message("skipped: a folder of another user needs root\n");
                assert_int_equal(rmdir(usual), 0);
                continue;
            }
        }
        test_expect_status(open_segment("mine", 5000, 0, &segment, &err), HEFT_OK, &err, "open");
        test_expect_status(heft__segment_seal(segment, &err), HEFT_OK, &err, "seal");
        test_expect_status(open_segment("mine", 5000, 0, &second, &err), HEFT_OK, &err, "join");
        assert_false(heft__segment_is_new(second));
        assert_string_not_equal(registers(), usual);
        assert_int_equal(count_registers(), 1);
        heft__segment_close(segment);
        heft__segment_close(second);
        assert_int_equal(count_registers(), 0);
        assert_int_equal(rmdir(elsewhere), 0); /* empty */
        assert_int_equal(mkdir(elsewhere, 0700), 0);
        assert_int_equal(rmdir(registers()), 0);
        assert_int_equal(remove(usual), 0);
    }
    test_folder_remove(elsewhere);
}

static void a_register_that_is_no_private_file_is_not_used(void **state)
{
    (void)state;
    heft_error err = {0};
    char path[600], target[600];
    heft__segment *segment = NULL;
    test_expect_status(open_segment("first", 10, 0, &segment, &err), HEFT_OK, &err, "folder");
    heft__segment_close(segment);
    snprintf(path, sizeof path, "%s/%s", registers(), register_name("odd-file"));
    snprintf(target, sizeof target, "%s", at("target"));
    for (int kind = 0; kind < 4; kind++) {
        size_t length = 0;
        test_write_file(folder, "target", "precious", 8);
        assert_int_equal(chmod(target, 0600), 0);
        assert_int_equal(kind == 0   ? symlink(target, path)
                         : kind == 1 ? link(target, path)
                         : kind == 2 ? mkfifo(path, 0600)
                                     : mkdir(path, 0700),
                         0);
        test_expect_status(open_segment("odd-file", 5000, 500, &segment, &err), HEFT_UNSUPPORTED,
                           &err, "odd");
        char *text = test_read_file(target, &length);
        assert_int_equal(length, 8);
        assert_memory_equal(text, "precious", 8);
        free(text);
        assert_int_equal(remove(path), 0);
    }
    unlink(target);
}

/* ---- which copy ------------------------------------------------------------------------------ */
/* Files that agree in name, size, inode and times: on two devices, changed at two times, or, were that
 * possible, different in nothing but their headers. */
static void files_that_look_alike_are_not_mixed(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t device, change;
        bool exchange;
    } rows[] = {
        {"another device", 2, 1, false},
        {"another change", 1, 2, false},
        {"other headers",  1, 1, true },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        bool joined = true;
        size_t length = 0;
        make_checkpoint("alike-a", 11);
        make_checkpoint("alike-b", 12);
        if (rows[i].exchange) { /* two tensors exchange their offsets */
            char *bytes = test_read_file(at("alike-b/model.safetensors"), &length), offsets[64];
            char *first = memmem(bytes, length, "layer.0.attention.self.key.bias", 31),
                 *second = memmem(bytes, length, "layer.0.attention.self.query.bias", 33);
            assert_non_null(first);
            assert_non_null(second);
            first = strchr(strstr(first, "data_offsets"), '[');
            second = strchr(strstr(second, "data_offsets"), '[');
            const size_t span = strcspn(first, "]");
            assert_int_equal(strcspn(second, "]"), span);
            assert_true(span >= 1 && span <= sizeof offsets - 1);
            memcpy(offsets, first, span);
            memcpy(first, second, span);
            memcpy(second, offsets, span);
            test_write_file(at("alike-b"), "model.safetensors", bytes, length);
            free(bytes);
        }
        heft_model *private = load("alike-b", HEFT_LOAD_COPY, NULL);
        look.on = true;
        look.device = look.change = 1;
        heft_model *a = load("alike-a", HEFT_LOAD_SHARED, &joined);
        heft_model *again = load("alike-a", HEFT_LOAD_SHARED, &joined);
        assert_true(joined);
        look.device = rows[i].device;
        look.change = rows[i].change;
        heft_model *b = load("alike-b", HEFT_LOAD_SHARED, &joined);
        look.on = false;
        if (joined) {
            fail_msg("%s: the copy of another checkpoint", rows[i].name);
        }
        expect_equal(private, b);
        heft_model_free(a);
        heft_model_free(again);
        heft_model_free(b);
        heft_model_free(private);
        assert_int_equal(count_registers(), 0);
    }
}

/* Put another text in the place of the first one in a header, and fill the header up with spaces. */
static void change_header(const char *name, const char *from, const char *to)
{
    size_t length = 0;
    char *bytes = test_read_file(at(name), &length),
         *found = memmem(bytes, length, from, strlen(from));
    assert_non_null(found);
    const size_t before = (size_t)(found - bytes), after = before + strlen(from),
                 header = (size_t)heft__le64((const uint8_t *)bytes);
    const size_t grown = header - strlen(from) + strlen(to), room = (grown + 7) / 8 * 8;
    char *changed = calloc(1, length - header + room + 1);
    assert_non_null(changed);
    for (size_t i = 0; i < 8; i++) {
        changed[i] = (char)(uint8_t)((uint64_t)room >> 8 * i);
    }
    memset(changed + 8, ' ', room);
    memcpy(changed + 8, bytes + 8, before - 8);
    memcpy(changed + before, to, strlen(to));
    memcpy(changed + before + strlen(to), bytes + after, header + 8 - after);
    memcpy(changed + 8 + room, bytes + 8 + header, length - 8 - header);
    test_write_file(folder, name, changed, length - header + room);
    free(changed);
    free(bytes);
}

static heft_model *load_f32(const char *name, heft_load_mode mode, bool *joined)
{
    heft_error err = {0};
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    const test_how how = {
        .load = {.mode = mode, .dtype = HEFT_DTYPE_F32, .strict = true}
    };
    test_expect_status(test_load(ctx, at(name), &how, &model, &report, &err), HEFT_OK, &err, name);
    *joined = strstr(report->strategy, "already existed") != NULL;
    heft_load_report_free(report);
    return model;
}

/* The parameters are made of the same tensors at the same places, and files and sizes agree: only the
 * hash of the headers tells that the bytes of one tensor mean other numbers. */
static void headers_that_differ_only_in_a_dtype_are_not_mixed(void **state)
{
    (void)state;
    heft_error err = {0};
    bool joined = true;
    const heft_convert_options half = HEFT_OPTIONS(heft_convert_options, .dtype = HEFT_DTYPE_F16);
    make_checkpoint("wide", 11);
    test_expect_status(test_convert(ctx, at("wide"), at("dtype-a"), &half, NULL, &err), HEFT_OK,
                       &err, "a");
    test_expect_status(test_convert(ctx, at("wide"), at("dtype-b"), &half, NULL, &err), HEFT_OK,
                       &err, "b");
    change_header("dtype-a/model.safetensors", "\"F16\"", " \"F16\"");
    change_header("dtype-b/model.safetensors", "\"F16\"", "\"BF16\"");
    heft_model *private = load_f32("dtype-b", HEFT_LOAD_COPY, &joined);
    look.on = true;
    look.device = look.change = 1;
    heft_model *a = load_f32("dtype-a", HEFT_LOAD_SHARED, &joined);
    assert_false(joined);
    heft_model *again = load_f32("dtype-a", HEFT_LOAD_SHARED, &joined);
    assert_true(joined);
    heft_model *b = load_f32("dtype-b", HEFT_LOAD_SHARED, &joined);
    look.on = false;
    assert_false(joined);
    expect_equal(private, b);
    heft_model_free(a);
    heft_model_free(again);
    heft_model_free(b);
    heft_model_free(private);
}

/* ---- sources that change --------------------------------------------------------------------- */
/* Overwrite a file with the bytes of another, and give it its time back. */
static void overwrite(const char *path, const char *other)
{
    size_t length = 0;
    struct stat facts;
    assert_int_equal(stat(path, &facts), 0);
    char *bytes = test_read_file(other, &length);
    const int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, length, 0), length);
    assert_int_equal(futimens(fd, (struct timespec[]){facts.st_atim, facts.st_mtim}), 0);
    close(fd);
    free(bytes);
}

static char changing[600], other[600]; /* weight files */
static bool change_once;               /* while the next bytes are read */

static void make_changing(uint64_t seed)
{
    make_checkpoint("changing", seed);
    make_checkpoint("other", seed + 1);
    snprintf(changing, sizeof changing, "%s", at("changing/model.safetensors"));
    snprintf(other, sizeof other, "%s", at("other/model.safetensors"));
    usleep(20000); /* until the clock of file times has gone on */
}

static bool change_while_reading(void *user, const heft_progress *progress)
{
    (void)user;
    if (change_once && strcmp(progress->what, "reading") == 0) {
        change_once = false;
        overwrite(changing, other);
    }
    return true;
}

static const struct {
    heft_load_mode mode;
    heft_dtype dtype;
} ways[] = {
    {HEFT_LOAD_SHARED, HEFT_DTYPE_BF16},
    {HEFT_LOAD_MAP,    HEFT_DTYPE_BF16},
    {HEFT_LOAD_COPY,   HEFT_DTYPE_BF16},
    {HEFT_LOAD_COPY,   HEFT_DTYPE_F32 },
};
#define WAYS (sizeof ways / sizeof ways[0])

static void a_source_that_changes_while_it_is_read_is_an_error(void **state)
{
    (void)state;
    heft_ctx *usual = ctx;
    for (size_t i = 0; i < WAYS; i++) {
        heft_error err = {0};
        heft_model *model = NULL;
        heft_load_report *report = NULL;
        const test_how options = {
            .load = {.mode = ways[i].mode, .dtype = ways[i].dtype}
        };
        make_changing(21);
        ctx = heft_ctx_new(
            &HEFT_OPTIONS(heft_ctx_options, .threads = 1, .progress = change_while_reading));
        change_once = true;
        test_expect_status(test_load(ctx, at("changing"), &options, &model, &report, &err), HEFT_IO,
                           &err, "changed");
        heft_ctx_free(ctx);
        ctx = usual;
        assert_false(change_once);
        assert_non_null(strstr(err.message, "changed while it was read"));
        assert_non_null(strstr(err.path, "changing/model.safetensors"));
        assert_null(model);
        assert_null(report);
        assert_int_equal(count_registers(), 0);
        assert_int_equal(count_segments(), 0);
    }
}

/* Between open and load: overwritten, or replaced by another file. */
static void a_source_that_changes_before_it_is_read_is_an_error(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2 * WAYS; i++) {
        heft_error err = {0};
        heft_model *model = NULL, *fresh = NULL;
        heft_source *source = NULL;
        bool joined = true;
        const bool replace = i >= WAYS;
        const heft_load_options options = HEFT_OPTIONS(
            heft_load_options, .mode = ways[i % WAYS].mode, .dtype = ways[i % WAYS].dtype);
        make_changing(31);
        test_expect_status(heft_source_open(ctx, at("changing"), NULL, &source, &err), HEFT_OK,
                           &err, "open");
        if (replace) {
            assert_int_equal(rename(other, changing), 0);
        } else {
            overwrite(changing, other);
        }
        test_expect_status(heft_model_load(source, &options, &model, NULL, &err), HEFT_IO, &err,
                           "load");
        assert_null(model);
        fresh = load("changing", HEFT_LOAD_SHARED, &joined); /* who comes now gets the new one */
        assert_false(joined);
        heft_model_free(fresh);
        heft_source_close(source);
        assert_int_equal(count_registers(), 0);
        assert_int_equal(count_segments(), 0);
    }
}

/* ---- list and remove ------------------------------------------------------------------------- */
static heft_shared_list *list_copies(void)
{
    heft_error err = {0};
    heft_shared_list *list = NULL;
    test_expect_status(heft_shared_list_read(ctx, &list, &err), HEFT_OK, &err, "list");
    return list;
}

/* One with an id of NULL if it is not there. */
static const heft_shared_copy *find_copy(const heft_shared_list *list, const char *id)
{
    static const heft_shared_copy none = {0};
    for (size_t i = 0; i < list->count; i++) {
        if (strcmp(list->copies[i].id, id) == 0) {
            return &list->copies[i];
        }
    }
    return &none;
}

static void copies_are_listed_with_their_processes(void **state)
{
    (void)state;
    heft_error err = {0};
    make_checkpoint("listed", 41);
    heft_model *model = load("listed", HEFT_LOAD_SHARED, NULL);
    const pid_t builder = begin_child(hold_segment, &(struct holding){"list-builds", false}),
                holder = begin_child(hold_segment, &(struct holding){"list-holds", true});
    heft__segment *segment = NULL, *again = NULL;
    test_expect_status(open_segment("list-holds", 10000, 0, &segment, &err), HEFT_OK, &err, "join");
    test_expect_status(open_segment("list-holds", 10000, 0, &again, &err), HEFT_OK, &err, "join");
    end_child(begin_child(hold_segment, &(struct holding){"list-dead", true}));
    heft_shared_list *list = list_copies();
    assert_int_equal(list->count, 3);
    assert_null(find_copy(list, register_name("list-dead"))->id);
    assert_int_equal(count_registers(), 3); /* that of the dead is gone */

    const heft_shared_copy *copy = find_copy(list, register_name("list-builds"));
    assert_non_null(copy->id);
    assert_true(copy->building);
    assert_null(copy->source);
    assert_true(copy->bytes == 10000);
    assert_int_equal(copy->pid_count, 1);
    assert_true(copy->pids[0] == builder);

    copy = find_copy(list, register_name("list-holds"));
    assert_non_null(copy->id);
    assert_false(copy->building);
    assert_string_equal(copy->source, "/some/where");
    assert_true(copy->bytes == 10000);
    assert_true(time(NULL) - copy->created >= 0 && time(NULL) - copy->created <= 100);
    assert_int_equal(copy->pid_count, 2); /* each process once */
    assert_true(copy->pids[0] == holder && copy->pids[1] == getpid());

    for (size_t i = 0; i < list->count; i++) { /* the one that is left is the model's */
        char *source = realpath(at("listed"), NULL);
        copy = &list->copies[i];
        if (strcmp(copy->id, register_name("list-builds")) != 0 &&
            strcmp(copy->id, register_name("list-holds")) != 0) {
            assert_string_equal(copy->source, source);
            assert_true(copy->bytes >= heft_model_bytes(model));
        }
        free(source);
        assert_true(i == 0 || strcmp(list->copies[i - 1].id, copy->id) < 0);
    }
    heft_shared_list_free(list);
    end_child(builder);
    end_child(holder);
    heft__segment_close(segment);
    heft__segment_close(again);
    heft_model_free(model);
    list = list_copies();
    assert_int_equal(list->count, 0);
    assert_int_equal(count_registers(), 0);
    heft_shared_list_free(list);
    heft_shared_list_free(NULL);
}

/* Who holds a removed copy keeps it, and goes without disturbing the new one. */
static void a_removed_copy_stays_with_those_who_hold_it(void **state)
{
    (void)state;
    heft_error err = {0};
    bool joined = true;
    size_t removed = 0;
    make_checkpoint("removed", 42);
    heft_model *private = load("removed", HEFT_LOAD_COPY, NULL);
    heft_model *old = load("removed", HEFT_LOAD_SHARED, NULL);
    heft_shared_list *list = list_copies();
    assert_int_equal(list->count, 1);
    test_expect_status(heft_shared_remove(ctx, list->copies[0].id, &removed, &err), HEFT_OK, &err,
                       "remove");
    assert_int_equal(removed, 1);
    assert_int_equal(count_registers(), 0);
    expect_equal(private, old);
    heft_model *new = load("removed", HEFT_LOAD_SHARED, &joined);
    assert_false(joined);
    heft_model_free(old);
    assert_int_equal(count_registers(), 1);
    heft_model *newer = load("removed", HEFT_LOAD_SHARED, &joined);
    assert_true(joined);
    heft_model_free(newer);
    heft_model_free(new);
    heft_model_free(private);
    heft_shared_list_free(list);
    assert_int_equal(count_registers(), 0);
    assert_int_equal(count_segments(), 0);
}

/* Removed while it is built: the builder keeps it for itself, and whoever waited builds. Who closes does
 * not wait for a builder. */
static void a_copy_that_is_being_built_can_be_removed(void **state)
{
    (void)state;
    if (test_emulated()) {
        skip();
    }
    heft_error err = {0};
    heft__segment *mine = NULL, *next = NULL;
    test_expect_status(open_segment("rebuilt", 10000, 0, &mine, &err), HEFT_OK, &err, "mine");
    test_expect_status(heft_shared_remove(ctx, NULL, NULL, &err), HEFT_OK, &err, "all");
    const pid_t child = begin_child(hold_segment, &(struct holding){"rebuilt", false});
    memset(heft__segment_base(mine), 7, 10000);
    test_expect_status(heft__segment_seal(mine, &err), HEFT_OK, &err, "seal");
    assert_int_equal(heft__segment_base(mine)[9999], 7);
    test_expect_status(open_segment("rebuilt", 10000, 100, &next, &err), HEFT_UNSUPPORTED, &err,
                       "the child builds");
    heft__segment_close(mine);
    assert_int_equal(count_registers(), 1); /* the child's */
    end_child(child);
    test_expect_status(open_segment("rebuilt", 10000, 0, &next, &err), HEFT_OK, &err, "again");
    heft__segment_close(next);
    assert_int_equal(count_registers(), 0);
}

static void removing_refuses_what_is_no_copy(void **state)
{
    (void)state;
    static const struct {
        const char *id;
        heft_status status;
    } rows[] = {
        {"0123456789abcdef",    HEFT_NOT_FOUND  },
        {"0123456789abcde",     HEFT_INVALID_ARG},
        {"0123456789ABCDEF",    HEFT_INVALID_ARG},
        {"../../../etc/passwd", HEFT_INVALID_ARG},
        {"",                    HEFT_INVALID_ARG},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_error err = {0};
        size_t removed = 77;
        test_expect_status(heft_shared_remove(ctx, rows[i].id, &removed, &err), rows[i].status,
                           &err, rows[i].id);
        assert_string_equal(err.item, rows[i].id);
        assert_int_equal(removed, 77);
    }
    heft_error err = {0};
    size_t removed = 77;
    test_expect_status(heft_shared_remove(ctx, NULL, &removed, &err), HEFT_OK, &err, "none");
    assert_int_equal(removed, 0);
    test_expect_status(heft_shared_remove(NULL, NULL, NULL, &err), HEFT_INVALID_ARG, &err, "ctx");
    test_expect_status(heft_shared_list_read(ctx, NULL, &err), HEFT_INVALID_ARG, &err, "out");
}

/* A register so full of lines of a process with the copy that no line can be added. */
static void fill_register(void)
{
    const char *path = NULL;
    size_t length = 0;
    DIR *all = opendir(registers());
    assert_non_null(all);
    for (struct dirent *entry = readdir(all); entry; entry = readdir(all)) {
        path = entry->d_name[0] != '.' ? test_path(registers(), entry->d_name) : path;
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
        cmocka_unit_test(writes_to_a_private_view_stay_in_it),
        cmocka_unit_test(one_of_many_builds),
        cmocka_unit_test(who_dies_leaves_nothing),
        cmocka_unit_test(other_weights_are_another_copy),
        cmocka_unit_test(the_next_one_clears_what_the_dead_left),
        cmocka_unit_test(a_builder_may_die_anywhere),
        cmocka_unit_test(a_builder_that_has_stopped_is_not_waited_for),
        cmocka_unit_test(a_lock_that_a_child_has_is_taken_away),
        cmocka_unit_test(a_slow_builder_is_waited_for),
        cmocka_unit_test(a_register_is_not_trusted),
        cmocka_unit_test(only_a_sound_segment_is_joined),
        cmocka_unit_test(what_others_plant_is_passed_over),
        cmocka_unit_test(a_register_that_is_no_private_file_is_not_used),
        cmocka_unit_test(files_that_look_alike_are_not_mixed),
        cmocka_unit_test(headers_that_differ_only_in_a_dtype_are_not_mixed),
        cmocka_unit_test(a_source_that_changes_while_it_is_read_is_an_error),
        cmocka_unit_test(a_source_that_changes_before_it_is_read_is_an_error),
        cmocka_unit_test(copies_are_listed_with_their_processes),
        cmocka_unit_test(a_removed_copy_stays_with_those_who_hold_it),
        cmocka_unit_test(a_copy_that_is_being_built_can_be_removed),
        cmocka_unit_test(removing_refuses_what_is_no_copy),
        cmocka_unit_test(without_a_shared_copy_there_is_a_private_one),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
