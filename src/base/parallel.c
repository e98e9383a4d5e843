/* parallel.c - the same work on many items by several threads. Threads are made for one call and
 * gone after it. */
#include "base/base.h"

#include <pthread.h>
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
    while (started + 1 < wanted && pthread_create(&threads[started], NULL, work, &job) == 0) {
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
