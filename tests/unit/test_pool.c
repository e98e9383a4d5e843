/* The context's threads: created once, shared by all calls, nested and from several callers, over a
 * fork, and gone with the context. Threads that meet wait for each other, so a pool with too few threads
 * hangs, and the test times out. */
#include "support.h"

#include <dirent.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static heft_ctx *new_ctx(unsigned threads)
{
    heft_ctx *ctx = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .threads = threads));
    assert_non_null(ctx);
    return ctx;
}

static size_t live_threads(void)
{
    size_t count = 0;
    DIR *folder = opendir("/proc/self/task");
    assert_non_null(folder);
    while (readdir(folder)) {
        count++;
    }
    closedir(folder);
    return count - 2; /* . and .. */
}

/* ---- which threads work ------------------------------------------------------------------------ */
struct roll { /* of the threads that were seen */
    pthread_mutex_t lock;
    pid_t seen[64];
    size_t count;
    pthread_barrier_t *together; /* NULL: no waiting */
};

static heft_status sign(void *user, size_t item, heft_error *err)
{
    struct roll *roll = user;
    const pid_t self = gettid();
    size_t k = 0;
    (void)item, (void)err;
    pthread_mutex_lock(&roll->lock);
    while (k < roll->count && roll->seen[k] != self) {
        k++;
    }
    if (k == roll->count && k < sizeof roll->seen / sizeof roll->seen[0]) {
        roll->seen[roll->count++] = self;
    }
    pthread_mutex_unlock(&roll->lock);
    if (roll->together) {
        pthread_barrier_wait(roll->together);
    }
    return HEFT_OK;
}

/* As many items as threads, each of which waits for all others: so there are that many threads. */
static void meet(heft_ctx *ctx, unsigned threads, struct roll *roll)
{
    pthread_barrier_t together;
    pthread_barrier_init(&together, NULL, threads);
    roll->together = &together;
    assert_int_equal(heft__parallel(ctx, threads, sign, roll, NULL), HEFT_OK);
    roll->together = NULL;
    pthread_barrier_destroy(&together);
}

static void no_thread_is_created_for_a_call(void **state)
{
    (void)state;
    heft_ctx *ctx = new_ctx(4);
    struct roll roll = {.lock = PTHREAD_MUTEX_INITIALIZER};
    assert_int_equal(heft__threads_created(ctx), 0);
    meet(ctx, 4, &roll);
    assert_int_equal(heft__threads_created(ctx), 3);
    for (size_t i = 0; i < 1000; i++) {
        assert_int_equal(heft__parallel(ctx, 8, sign, &roll, NULL), HEFT_OK);
    }
    assert_int_equal(heft__threads_created(ctx), 3);
    assert_int_equal(roll.count, 4);
    for (size_t i = 0; i < 1000; i++) { /* more for what waits, made once as well */
        assert_int_equal(heft__parallel_on(ctx, 6, 8, sign, &roll, NULL), HEFT_OK);
    }
    assert_true(heft__threads_created(ctx) <= 3 + 5);
    assert_true(roll.count <= 1 + 3 + 5);
    heft_ctx_free(ctx);
}

static void the_context_says_how_many(void **state)
{
    (void)state;
    static const unsigned threads[] = {1, 2, 3, 8};
    for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++) {
        heft_ctx *ctx = new_ctx(threads[i]);
        struct roll roll = {.lock = PTHREAD_MUTEX_INITIALIZER};
        for (size_t n = 0; n < 20; n++) {
            meet(ctx, threads[i], &roll);
        }
        for (size_t n = 0; n < 20; n++) {
            assert_int_equal(heft__parallel(ctx, 100, sign, &roll, NULL), HEFT_OK);
        }
        assert_int_equal(roll.count, threads[i]);
        assert_int_equal(heft__threads_created(ctx), threads[i] - 1);
        heft_ctx_free(ctx);
    }
}

static void threads_end_with_their_context(void **state)
{
    (void)state;
    const size_t before = live_threads();
    heft_ctx *ctx = new_ctx(8);
    struct roll roll = {.lock = PTHREAD_MUTEX_INITIALIZER};
    meet(ctx, 8, &roll);
    assert_int_equal(live_threads(), before + 7);
    heft_ctx_free(ctx);
    /* The kernel removes a thread's entry a moment after it was joined. */
    while (live_threads() > before) {
        sched_yield();
    }
}

/* ---- nested ------------------------------------------------------------------------------------ */
struct nest {
    heft_ctx *ctx;
    size_t depth, width;
    atomic_size_t leaves;
    pthread_barrier_t *together; /* of the outermost items */
    bool waits;                  /* the innermost calls are for work that waits */
};

struct level {
    struct nest *nest;
    size_t depth;
};

static heft_status descend(void *user, size_t item, heft_error *err)
{
    const struct level *level = user;
    struct nest *nest = level->nest;
    struct level next = {nest, level->depth + 1};
    (void)item;
    if (level->depth == 0 && nest->together) {
        pthread_barrier_wait(nest->together);
    }
    if (next.depth == nest->depth) {
        atomic_fetch_add(&nest->leaves, 1);
        return HEFT_OK;
    }
    return nest->waits ? heft__parallel_on(nest->ctx, nest->width, nest->width, descend, &next, err)
                       : heft__parallel(nest->ctx, nest->width, descend, &next, err);
}

static size_t power(size_t base, size_t exponent)
{
    return exponent == 0 ? 1 : base * power(base, exponent - 1);
}

static void calls_inside_of_calls_end(void **state)
{
    (void)state;
    static const unsigned threads[] = {1, 2, 8};
    for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++) {
        for (size_t waits = 0; waits < 2; waits++) {
            struct nest nest = {.ctx = new_ctx(threads[i]), .depth = 4, .width = 6, .waits = waits};
            struct level top = {&nest, 0};
            assert_int_equal(heft__parallel(nest.ctx, nest.width, descend, &top, NULL), HEFT_OK);
            assert_int_equal(nest.leaves, power(6, 4));
            assert_true(heft__threads_created(nest.ctx) <= threads[i] - 1 + (waits ? 5 : 0));
            heft_ctx_free(nest.ctx);
        }
    }
}

/* Every thread is inside of an outer item when the inner calls begin. */
static void calls_inside_of_calls_need_no_free_thread(void **state)
{
    (void)state;
    static const unsigned threads[] = {1, 2, 8};
    for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++) {
        pthread_barrier_t together;
        pthread_barrier_init(&together, NULL, threads[i]);
        struct nest nest = {
            .ctx = new_ctx(threads[i]), .depth = 3, .width = 9, .together = &together};
        struct level top = {&nest, 0};
        assert_int_equal(heft__parallel(nest.ctx, threads[i], descend, &top, NULL), HEFT_OK);
        assert_int_equal(nest.leaves, threads[i] * power(9, 2));
        heft_ctx_free(nest.ctx);
        pthread_barrier_destroy(&together);
    }
}

static heft_status fail_inside(void *user, size_t item, heft_error *err)
{
    const struct level *level = user;
    struct level next = {level->nest, level->depth + 1};
    if (level->depth == 1 && item == 3) {
        return heft__fail(err, HEFT_IO, "item 3 of an inner call");
    }
    return level->depth == 1 ? HEFT_OK
                             : heft__parallel(level->nest->ctx, 8, fail_inside, &next, err);
}

static void a_failure_inside_comes_out(void **state)
{
    (void)state;
    heft_error err = {0};
    struct nest nest = {.ctx = new_ctx(4)};
    struct level top = {&nest, 0};
    assert_int_equal(heft__parallel(nest.ctx, 8, fail_inside, &top, &err), HEFT_IO);
    assert_string_equal(err.message, "item 3 of an inner call");
    heft_ctx_free(nest.ctx);
}

static void *call_often(void *user)
{
    heft_ctx *ctx = user;
    for (size_t i = 0; i < 300; i++) {
        struct nest nest = {.ctx = ctx, .depth = 2, .width = 5, .waits = i % 3 == 0};
        struct level top = {&nest, 0};
        if (heft__parallel(ctx, 5, descend, &top, NULL) != HEFT_OK || nest.leaves != 25) {
            return (void *)"wrong";
        }
    }
    return NULL;
}

struct beginning {
    heft_ctx *ctx;
    sem_t begun;
};

static void *begin_to_call(void *user)
{
    struct beginning *self = user;
    sem_post(&self->begun);
    return call_often(self->ctx);
}

static void callers_share_the_threads(void **state)
{
    (void)state;
    static const unsigned threads[] = {1, 2, 8};
    for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++) {
        heft_ctx *ctx = new_ctx(threads[i]);
        pthread_t callers[3];
        for (size_t k = 0; k < 3; k++) {
            assert_int_equal(pthread_create(&callers[k], NULL, call_often, ctx), 0);
        }
        for (size_t k = 0; k < 3; k++) {
            void *result = NULL;
            pthread_join(callers[k], &result);
            assert_null(result);
        }
        assert_true(heft__threads_created(ctx) <= threads[i] - 1 + 4);
        heft_ctx_free(ctx);
    }
}

/* ---- fork -------------------------------------------------------------------------------------- */
static const char *volatile child_step; /* what a child was doing, if it takes too long */

static void tell_step(int signal_number)
{
    (void)signal_number;
    const char *step = child_step;
    if (write(STDERR_FILENO, step, strlen(step)) < 0 || write(STDERR_FILENO, "\n", 1) < 0) {
        _exit(4);
    }
    _exit(3);
}

/* A thread may be refused (EAGAIN) where processes are counted: threads that meet would wait for it
 * forever, and the pool would not be to blame. */
static void *end_at_once(void *user)
{
    return user;
}

static bool have_threads(unsigned count)
{
    pthread_t threads[8];
    unsigned begun = 0;
    while (begun < count && heft__thread_begin(&threads[begun], end_at_once, NULL)) {
        begun++;
    }
    for (unsigned i = 0; i < begun; i++) {
        pthread_join(threads[i], NULL);
    }
    return begun == count;
}

/* What a child does; it ends with 0 if the threads met. */
static void in_child(heft_ctx *ctx, unsigned threads)
{
    struct roll roll = {.lock = PTHREAD_MUTEX_INITIALIZER};
    signal(SIGALRM, tell_step);
    child_step = "a child waits for the system's threads";
    alarm(60);
    if (!have_threads(threads - 1)) {
        child_step = "a child got no thread of the system";
        tell_step(SIGALRM);
    }
    child_step = "a child's threads do not meet";
    meet(ctx, threads, &roll);
    child_step = "a child does not learn how many threads it has";
    const bool good = roll.count == threads && heft__threads_created(ctx) == threads - 1;
    child_step = "a child's context does not end";
    heft_ctx_free(ctx);
    _exit(good ? 0 : 1);
}

static void expect_child(pid_t child)
{
    int status = -1;
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void a_child_has_threads_of_its_own(void **state)
{
    (void)state;
    if (TEST_THREAD_SANITIZER || test_emulated()) {
        skip();
    }
    for (size_t used = 0; used < 2; used++) {
        heft_ctx *ctx = new_ctx(4);
        struct roll roll = {.lock = PTHREAD_MUTEX_INITIALIZER};
        if (used) {
            meet(ctx, 4, &roll);
        }
        pid_t child = fork();
        if (child == 0) {
            in_child(ctx, 4);
        }
        expect_child(child);
        meet(ctx, 4, &roll); /* and the parent has its own still */
        assert_int_equal(roll.count, 4);
        assert_int_equal(heft__threads_created(ctx), 3);
        heft_ctx_free(ctx);
    }
}

/* Another thread holds the pool's lock at any moment: the child must not wait for it. No thread is being
 * created meanwhile: glibc's own list of stacks may then be copied half changed, and a child could never
 * create a thread. */
static void a_child_does_not_wait_for_threads_it_lacks(void **state)
{
    (void)state;
    if (TEST_THREAD_SANITIZER || test_emulated()) {
        skip();
    }
    heft_ctx *ctx = new_ctx(2);
    struct roll roll = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct beginning caller = {.ctx = ctx};
    pthread_t thread;
    meet(ctx, 2, &roll); /* creates the pool's thread */
    assert_int_equal(sem_init(&caller.begun, 0, 0), 0);
    assert_int_equal(pthread_create(&thread, NULL, begin_to_call, &caller), 0);
    sem_wait(&caller.begun);
    for (size_t i = 0; i < 40; i++) {
        pid_t child = fork();
        if (child == 0) {
            in_child(ctx, 2);
        }
        expect_child(child);
    }
    pthread_join(thread, NULL);
    sem_destroy(&caller.begun);
    heft_ctx_free(ctx);
}

/* ---- background work --------------------------------------------------------------------------- */
struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t passed;
    bool open;
    heft_ctx *ctx;
};

static void wait_at(void *user)
{
    struct gate *gate = user;
    pthread_mutex_lock(&gate->lock);
    gate->passed++;
    pthread_cond_broadcast(&gate->changed);
    while (!gate->open) {
        pthread_cond_wait(&gate->changed, &gate->lock);
    }
    pthread_mutex_unlock(&gate->lock);
}

static void open_gate(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    gate->open = true;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->lock);
}

static void wait_for(struct gate *gate, size_t passed)
{
    pthread_mutex_lock(&gate->lock);
    while (gate->passed < passed) {
        pthread_cond_wait(&gate->changed, &gate->lock);
    }
    pthread_mutex_unlock(&gate->lock);
}

/* It gets a thread at once whatever the others do, takes no helper from a job, and its thread is
 * used again. */
static void background_work_runs_beside(void **state)
{
    (void)state;
    heft_ctx *ctx = new_ctx(2);
    struct roll roll = {.lock = PTHREAD_MUTEX_INITIALIZER};
    for (size_t i = 0; i < 100; i++) {
        heft__background works[3] = {0};
        struct gate gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
        for (size_t k = 0; k < 3; k++) {
            assert_true(heft__background_begin(ctx, &works[k], wait_at, &gate));
        }
        wait_for(&gate, 3);
        meet(ctx, 2, &roll);
        open_gate(&gate);
        for (size_t k = 0; k < 3; k++) {
            heft__background_join(&works[k]);
            heft__background_join(&works[k]); /* as often as one likes */
        }
    }
    assert_int_equal(heft__threads_created(ctx), 3 + 1);
    heft__background never = {0};
    heft__background_join(&never);
    heft_ctx_free(ctx);
}

static void use_the_pool(void *user)
{
    struct gate *gate = user;
    gate->passed = call_often(gate->ctx) == NULL ? 1 : 0;
}

static void background_work_uses_the_pool(void **state)
{
    (void)state;
    heft__background work = {0};
    struct gate gate = {.ctx = new_ctx(3)};
    assert_true(heft__background_begin(gate.ctx, &work, use_the_pool, &gate));
    assert_null(call_often(gate.ctx));
    heft__background_join(&work);
    assert_int_equal(gate.passed, 1);
    heft_ctx_free(gate.ctx);
}

static void a_child_does_not_join_its_parents_work(void **state)
{
    (void)state;
    if (TEST_THREAD_SANITIZER || test_emulated()) {
        skip();
    }
    heft__background work = {0};
    struct gate gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    heft_ctx *ctx = new_ctx(2);
    assert_true(heft__background_begin(ctx, &work, wait_at, &gate));
    pid_t child = fork();
    if (child == 0) {
        heft__background_join(&work);
        in_child(ctx, 2);
    }
    expect_child(child);
    open_gate(&gate);
    heft__background_join(&work);
    heft_ctx_free(ctx);
}

static void drop_the_last(void *user)
{
    struct gate *gate = user;
    wait_at(gate);
    heft_ctx_free(gate->ctx);
}

/* The heap is checked by the allocator: everything is back when the work has been joined. */
static void the_last_reference_may_go_in_a_pool_thread(void **state)
{
    (void)state;
    for (size_t i = 0; i < 50; i++) {
        heft__background work = {0};
        test_heap heap = {.fail_at = -1};
        struct gate gate = {.lock = PTHREAD_MUTEX_INITIALIZER,
                            .changed = PTHREAD_COND_INITIALIZER,
                            .ctx = test_ctx_new(&heap)};
        struct roll roll = {.lock = PTHREAD_MUTEX_INITIALIZER};
        assert_int_equal(heft__parallel_on(gate.ctx, 4, 4, sign, &roll, NULL), HEFT_OK);
        heft__ctx_ref(gate.ctx); /* for the work */
        assert_true(heft__background_begin(gate.ctx, &work, drop_the_last, &gate));
        heft_ctx_free(gate.ctx);
        open_gate(&gate);
        heft__background_join(&work);
        assert_int_equal(heap.blocks, 0);
    }
}

static heft_status drop_in_item(void *user, size_t item, heft_error *err)
{
    (void)err;
    if (item == 5) {
        heft_ctx_free(user);
    }
    return HEFT_OK;
}

static void an_item_may_drop_the_callers_reference(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 50; i++) {
        heft_ctx *ctx = new_ctx(1 + i % 4);
        assert_int_equal(heft__parallel(ctx, 8, drop_in_item, ctx, NULL), HEFT_OK);
    }
}

/* ---- callbacks, signals, no threads ------------------------------------------------------------- */
struct caller {
    heft_ctx *ctx;
    pthread_t thread;
    pthread_barrier_t together;
    atomic_size_t told, strange;
};

static bool note_progress(void *user, const heft_progress *progress)
{
    struct caller *caller = user;
    (void)progress;
    atomic_fetch_add(&caller->told, 1);
    atomic_fetch_add(&caller->strange, !pthread_equal(pthread_self(), caller->thread));
    return true;
}

static void note_line(void *user, const char *line)
{
    (void)line;
    note_progress(user, NULL);
}

static heft_status tell(void *user, size_t item, heft_error *err)
{
    struct caller *caller = user;
    pthread_barrier_wait(&caller->together);
    heft__log(caller->ctx, "item %zu", item);
    return heft__tell_progress(caller->ctx, "testing", item, 4, err);
}

static void callbacks_come_from_the_caller(void **state)
{
    (void)state;
    struct caller caller = {.thread = pthread_self()};
    pthread_barrier_init(&caller.together, NULL, 4);
    caller.ctx = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .threads = 4,
                                            .progress = note_progress, .progress_user = &caller,
                                            .log = note_line, .log_user = &caller));
    assert_int_equal(heft__parallel(caller.ctx, 4, tell, &caller, NULL), HEFT_OK);
    assert_int_equal(caller.told, 2); /* once each, for the item of the caller */
    assert_int_equal(caller.strange, 0);
    heft_ctx_free(caller.ctx);
    pthread_barrier_destroy(&caller.together);
}

static void signals_are_for_the_programs_threads(void **state)
{
    (void)state;
    heft_ctx *ctx = new_ctx(4);
    struct roll roll = {.lock = PTHREAD_MUTEX_INITIALIZER};
    sigset_t mine, before, pending;
    meet(ctx, 4, &roll);
    sigemptyset(&mine);
    sigaddset(&mine, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &mine, &before);
    assert_int_equal(kill(getpid(), SIGUSR1), 0); /* its default would end the process */
    meet(ctx, 4, &roll);
    sigpending(&pending);
    assert_true(sigismember(&pending, SIGUSR1));
    int number = 0;
    assert_int_equal(sigwait(&mine, &number), 0);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    heft_ctx_free(ctx);
}

static void without_threads_the_caller_does_it(void **state)
{
    (void)state;
    if (TEST_SANITIZED || test_emulated()) {
        skip();
    }
    pid_t child = fork();
    if (child == 0) {
        heft_ctx *ctx = new_ctx(8);
        heft__background work = {0};
        struct gate gate = {.open = true};
        struct roll roll = {.lock = PTHREAD_MUTEX_INITIALIZER};
        const struct rlimit none = {0, 0}; /* no address space for stacks */
        bool good = setrlimit(RLIMIT_AS, &none) == 0;
        good &= heft__parallel(ctx, 100, sign, &roll, NULL) == HEFT_OK;
        good &= roll.count == 1 && heft__threads_created(ctx) == 0;
        good &= !heft__background_begin(ctx, &work, wait_at, &gate);
        heft__background_join(&work);
        heft_ctx_free(ctx);
        _exit(good ? 0 : 1);
    }
    expect_child(child);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        /* first: the stacks of threads that have ended are kept, and need no more address space */
        cmocka_unit_test(without_threads_the_caller_does_it),
        cmocka_unit_test(no_thread_is_created_for_a_call),
        cmocka_unit_test(the_context_says_how_many),
        cmocka_unit_test(threads_end_with_their_context),
        cmocka_unit_test(calls_inside_of_calls_end),
        cmocka_unit_test(calls_inside_of_calls_need_no_free_thread),
        cmocka_unit_test(a_failure_inside_comes_out),
        cmocka_unit_test(callers_share_the_threads),
        cmocka_unit_test(a_child_has_threads_of_its_own),
        cmocka_unit_test(a_child_does_not_wait_for_threads_it_lacks),
        cmocka_unit_test(background_work_runs_beside),
        cmocka_unit_test(background_work_uses_the_pool),
        cmocka_unit_test(a_child_does_not_join_its_parents_work),
        cmocka_unit_test(the_last_reference_may_go_in_a_pool_thread),
        cmocka_unit_test(an_item_may_drop_the_callers_reference),
        cmocka_unit_test(callbacks_come_from_the_caller),
        cmocka_unit_test(signals_are_for_the_programs_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
