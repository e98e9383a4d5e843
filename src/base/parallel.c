/* parallel.c - the same work on many items by several threads. Threads are made for one call and
 * gone after it. */
#include "base/base.h"

#include <stdatomic.h>

struct job {
    atomic_size_t next;
    atomic_bool stop;
    size_t count;
    heft__work_fn fn;
    void *user;
    pthread_mutex_t lock; /* guards status and error: the first failure stays */
    heft_status status;
    heft_error error;
};

static void *work(void *argument)
{
    struct job *job = argument;
    while (!atomic_load_explicit(&job->stop, memory_order_relaxed)) {
        size_t item = atomic_fetch_add(&job->next, 1);
        if (item >= job->count) {
            break;
        }
        heft_error error;
        heft_status status = job->fn(job->user, item, &error);
        if (status != HEFT_OK) {
            pthread_mutex_lock(&job->lock);
            if (job->status == HEFT_OK) {
                job->status = status;
                job->error = error;
            }
            pthread_mutex_unlock(&job->lock);
            atomic_store(&job->stop, true);
        }
    }
    return NULL;
}

/* The default, 8 MiB as a rule, would be most of what a load takes beside its model. */
#define STACK_BYTES (HEFT__THREAD_BYTES - ((size_t)8 << 10)) /* beside a guard page */

bool heft__thread_begin(pthread_t *thread, void *(*work_fn)(void *), void *user)
{
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) {
        return false;
    }
    bool good = pthread_attr_setstacksize(&attributes, STACK_BYTES) == 0 &&
                pthread_create(thread, &attributes, work_fn, user) == 0;
    pthread_attr_destroy(&attributes);
    return good;
}

#define THREADS_MOST 256

heft_status heft__parallel(heft_ctx *ctx, size_t count, heft__work_fn fn, void *user,
                           heft_error *err)
{
    return heft__parallel_on(heft__threads(ctx), count, fn, user, err);
}

heft_status heft__parallel_on(size_t wanted, size_t count, heft__work_fn fn, void *user,
                              heft_error *err)
{
    struct job job = {.count = count, .fn = fn, .user = user, .status = HEFT_OK};
    pthread_t threads[THREADS_MOST];
    size_t started = 0;
    wanted = wanted > count ? count : wanted;
    wanted = wanted > THREADS_MOST ? THREADS_MOST : wanted;
    pthread_mutex_init(&job.lock, NULL);
    /* The caller works too; if no thread can be had it does all of it. */
    while (started + 1 < wanted && heft__thread_begin(&threads[started], work, &job)) {
        started++;
    }
    work(&job);
    for (size_t i = 0; i < started; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_mutex_destroy(&job.lock);
    if (job.status != HEFT_OK && err) {
        *err = job.error;
    }
    return job.status;
}
