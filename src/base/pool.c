/* pool.c - the threads of a context: created when they are first needed, kept until the context goes.
 *
 *   heft__parallel ---> job -------------.
 *                                         >---> idle threads, and new ones up to the limits
 *   heft__background_begin -> background '
 *
 * A thread that offers a job works on it as well, and waits only for helpers that have begun: a job
 * inside of a job ends even if every other thread is busy. A helper that finds nothing left looks
 * for another job that still wants helpers. Background work gets a thread at once, and is never run
 * by one that helps.
 *
 * A child process has none of its parent's threads, and perhaps a lock that is never released.
 * The pool therefore remembers its process; another process sets it up anew at its first use.
 *
 * Only threads that have left the lists below can end, so a pool needs no other memory. */
#include "base/pool.h"

#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

struct heft__worker {
    pthread_t thread;
    pthread_cond_t wake;
    atomic_bool woken; /* work may be there */
    atomic_bool leave; /* is out of the list of workers */
    bool alone;        /* its own work has ended the pool: touches nothing of it */
    struct heft__worker *next, *next_idle;
};

static _Thread_local bool of_pool;

bool heft__on_pool_thread(void)
{
    return of_pool;
}

/* ---- threads --------------------------------------------------------------------------------- */
/* The default, 8 MiB as a rule, would be most of what a load takes beside its model. */
#ifndef __has_feature
#define __has_feature(x) 0 /* clang has it */
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define STACK_BYTES ((size_t)4 << 20) /* the frames of kernels are many times as large then */
#else
#define STACK_BYTES (HEFT__THREAD_BYTES - ((size_t)8 << 10)) /* beside a guard page */
#endif

/* Signals for the process are for the program's own threads. Those that a thread raises itself, and
 * a profiler's, stay as they are. */
static void block_signals(sigset_t *before)
{
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT, SIGPROF};
    sigset_t blocked;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) {
        sigdelset(&blocked, own[i]);
    }
    pthread_sigmask(SIG_BLOCK, &blocked, before);
}

bool heft__thread_begin(pthread_t *thread, void *(*work)(void *), void *user)
{
    pthread_attr_t attributes;
    sigset_t before;
    if (pthread_attr_init(&attributes) != 0) {
        return false;
    }
    block_signals(&before);
    bool good = pthread_attr_setstacksize(&attributes, STACK_BYTES) == 0 &&
                pthread_create(thread, &attributes, work, user) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return good;
}

/* ---- watching ---------------------------------------------------------------------------------- */
/* Waking a thread that sleeps takes longer than many a job of a forward pass, and the next job is there after some
 * microseconds. So threads look for it a little while, without the lock, before they sleep. */
#define WATCH_NANOSECONDS ((uint64_t)50000)
#define LOOKS 32 /* between two readings of the clock */

struct watch {
    uint64_t end;
    unsigned looks;
};

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static struct watch begin_watch(void)
{
    return (struct watch){.end = now() + WATCH_NANOSECONDS};
}

static bool keep_watch(struct watch *watch)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
    return ++watch->looks % LOOKS != 0 || now() < watch->end;
}

/* ---- what a thread of the pool does ------------------------------------------------------------ */
static heft__background *take_background(heft__pool *pool)
{
    heft__background *work = pool->waiting;
    if (work) {
        pool->waiting = work->next;
        pool->promised--;
    }
    return work;
}

/* A job that this thread was woken for, else one that wants more helpers. */
static heft__job *take_job(heft__pool *pool)
{
    heft__job *job = pool->jobs;
    while (job && job->promised == 0) {
        job = job->next;
    }
    if (job) {
        job->promised--;
        pool->promised--;
        return job;
    }
    job = pool->jobs;
    while (job && (job->helpers >= job->most || pool->engaged[job->kind] >= job->limit)) {
        job = job->next;
    }
    if (job) {
        job->helpers++;
        pool->engaged[job->kind]++;
    }
    return job;
}

static void help(heft__pool *pool, heft__job *job)
{
    pthread_mutex_unlock(&pool->lock);
    job->work(job->user);
    pthread_mutex_lock(&pool->lock);
    job->most = 0;
    pool->engaged[job->kind]--;
    if (--job->helpers == 0) {
        pthread_cond_broadcast(&pool->changed);
    }
}

/* Whoever joins the work finds this thread free again, to begin more. */
static void run_background(heft__pool *pool, const struct heft__worker *self,
                           heft__background *work)
{
    pthread_mutex_unlock(&pool->lock);
    work->fn(work->user);
    if (!self->alone) {
        pthread_mutex_lock(&pool->lock);
        pool->coming++;
        pthread_mutex_unlock(&pool->lock);
    }
    pthread_mutex_lock(&work->lock);
    work->done = true;
    pthread_cond_signal(&work->ended);
    pthread_mutex_unlock(&work->lock);
    if (!self->alone) {
        pthread_mutex_lock(&pool->lock);
        pool->coming--;
    }
}

static void wait_idle(heft__pool *pool, struct heft__worker *self)
{
    self->woken = false;
    self->next_idle = pool->idle;
    pool->idle = self;
    pthread_mutex_unlock(&pool->lock);
    for (struct watch w = begin_watch(); !self->woken && !self->leave && keep_watch(&w);) {
    }
    pthread_mutex_lock(&pool->lock);
    while (!self->woken && !self->leave) {
        pthread_cond_wait(&self->wake, &pool->lock);
    }
    pool->coming -= self->woken;
}

static void *serve(void *argument)
{
    heft__pool *pool = argument;
    struct heft__worker self = {.thread = pthread_self()};
    of_pool = true;
    pthread_cond_init(&self.wake, NULL);
    pthread_mutex_lock(&pool->lock);
    self.next = pool->workers;
    pool->workers = &self;
    pool->starting--;
    pool->coming--;
    pthread_cond_broadcast(&pool->changed);
    while (!self.leave) {
        heft__background *work = take_background(pool);
        heft__job *job = work ? NULL : take_job(pool);
        if (work) {
            run_background(pool, &self, work);
        } else if (job) {
            help(pool, job);
        } else {
            wait_idle(pool, &self);
        }
    }
    if (!self.alone) {
        pthread_mutex_unlock(&pool->lock);
    }
    pthread_cond_destroy(&self.wake);
    return NULL;
}

/* See that a thread comes: one that is coming already and has nothing to do, an idle one, or a new
 * one. The lock is held. */
static bool summon(heft__pool *pool)
{
    struct heft__worker *worker = pool->idle;
    pthread_t thread;
    if (pool->coming <= pool->promised) {
        if (worker) {
            pool->idle = worker->next_idle;
            worker->woken = true;
            pthread_cond_signal(&worker->wake);
        } else if (heft__thread_begin(&thread, serve, pool)) {
            pool->starting++;
            pool->created++;
        } else {
            return false;
        }
        pool->coming++;
    }
    pool->promised++;
    return true;
}

/* ---- the pool -------------------------------------------------------------------------------- */
static uint64_t this_process(void)
{
    return (uint64_t)getpid() << 1;
}

static void set_up(heft__pool *pool)
{
    pool->workers = pool->idle = NULL;
    pool->jobs = NULL;
    pool->waiting = NULL;
    pool->created = pool->starting = 0;
    pool->coming = pool->promised = 0;
    memset(pool->engaged, 0, sizeof pool->engaged);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->changed, NULL);
}

static void lock_pool(heft__pool *pool)
{
    const uint64_t own = this_process();
    uint64_t owner = atomic_load_explicit(&pool->owner, memory_order_acquire);
    while (owner != own) {
        if (owner == (own | 1)) { /* another thread sets it up */
            sched_yield();
            owner = atomic_load_explicit(&pool->owner, memory_order_acquire);
        } else if (atomic_compare_exchange_strong(&pool->owner, &owner, own | 1)) {
            set_up(pool);
            atomic_store_explicit(&pool->owner, own, memory_order_release);
            owner = own;
        }
    }
    pthread_mutex_lock(&pool->lock);
}

void heft__pool_fini(heft__pool *pool)
{
    if (atomic_load_explicit(&pool->owner, memory_order_acquire) != this_process()) {
        return; /* never used by this process */
    }
    pthread_mutex_lock(&pool->lock);
    pool->idle = NULL;
    while (pool->starting > 0) {
        pthread_cond_wait(&pool->changed, &pool->lock);
    }
    while (pool->workers) {
        struct heft__worker *worker = pool->workers;
        const pthread_t thread = worker->thread;
        pool->workers = worker->next;
        worker->leave = true;
        if (pthread_equal(thread, pthread_self())) {
            worker->alone = true;
            pthread_detach(thread);
        } else {
            pthread_cond_signal(&worker->wake);
            pthread_mutex_unlock(&pool->lock);
            pthread_join(thread, NULL);
            pthread_mutex_lock(&pool->lock);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    pthread_cond_destroy(&pool->changed);
    pthread_mutex_destroy(&pool->lock);
    atomic_store(&pool->owner, 0);
}

/* ---- jobs -------------------------------------------------------------------------------------- */
void heft__pool_offer(heft__pool *pool, heft__job *job)
{
    lock_pool(pool);
    job->next = pool->jobs;
    pool->jobs = job;
    while (job->helpers < job->most && pool->engaged[job->kind] < job->limit && summon(pool)) {
        job->helpers++;
        job->promised++;
        pool->engaged[job->kind]++;
    }
    pthread_mutex_unlock(&pool->lock);
}

void heft__pool_withdraw(heft__pool *pool, heft__job *job)
{
    pthread_mutex_lock(&pool->lock);
    heft__job **link = &pool->jobs;
    while (*link != job) {
        link = &(*link)->next;
    }
    *link = job->next;
    job->helpers -= job->promised; /* threads woken for it will find nothing */
    pool->promised -= job->promised;
    pool->engaged[job->kind] -= job->promised;
    if (job->helpers > 0) {
        pthread_mutex_unlock(&pool->lock);
        for (struct watch w = begin_watch(); job->helpers > 0 && keep_watch(&w);) {
        }
        pthread_mutex_lock(&pool->lock);
    }
    while (job->helpers > 0) {
        pthread_cond_wait(&pool->changed, &pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
}

/* ---- background work --------------------------------------------------------------------------- */
bool heft__background_begin(heft_ctx *ctx, heft__background *work, void (*fn)(void *user),
                            void *user)
{
    heft__pool *pool = heft__ctx_pool(ctx);
    *work = (heft__background){.fn = fn, .user = user, .process = getpid()};
    pthread_mutex_init(&work->lock, NULL);
    pthread_cond_init(&work->ended, NULL);
    lock_pool(pool);
    const bool good = summon(pool);
    if (good) {
        heft__background **link = &pool->waiting;
        while (*link) {
            link = &(*link)->next;
        }
        *link = work;
    }
    pthread_mutex_unlock(&pool->lock);
    if (!good) {
        pthread_cond_destroy(&work->ended);
        pthread_mutex_destroy(&work->lock);
        work->fn = NULL;
    }
    return good;
}

void heft__background_join(heft__background *work)
{
    if (work->fn && work->process == getpid()) {
        pthread_mutex_lock(&work->lock);
        while (!work->done) {
            pthread_cond_wait(&work->ended, &work->lock);
        }
        pthread_mutex_unlock(&work->lock);
        pthread_cond_destroy(&work->ended);
        pthread_mutex_destroy(&work->lock);
    }
    work->fn = NULL;
}

size_t heft__threads_created(heft_ctx *ctx)
{
    heft__pool *pool = heft__ctx_pool(ctx);
    lock_pool(pool);
    const size_t created = pool->created;
    pthread_mutex_unlock(&pool->lock);
    return created;
}
