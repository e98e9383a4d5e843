/* parallel.c - the same work on many items, by the calling thread and helpers of the pool. */
#include "base/pool.h"

#define THREADS_MOST 256 /* for one call */

struct items {
    atomic_size_t next;
    atomic_bool stop;
    size_t count;
    heft__work_fn fn;
    void *user;
    pthread_mutex_t lock; /* guards status and error: the first failure stays */
    heft_status status;
    heft_error error;
};

static void work(void *user)
{
    struct items *items = user;
    while (!atomic_load_explicit(&items->stop, memory_order_relaxed)) {
        size_t item = atomic_fetch_add(&items->next, 1);
        if (item >= items->count) {
            break;
        }
        heft_error error;
        heft_status status = items->fn(items->user, item, &error);
        if (status != HEFT_OK) {
            pthread_mutex_lock(&items->lock);
            if (items->status == HEFT_OK) {
                items->status = status;
                items->error = error;
            }
            pthread_mutex_unlock(&items->lock);
            atomic_store(&items->stop, true);
        }
    }
}

static heft_status run(heft_ctx *ctx, enum heft__work_kind kind, size_t threads, size_t count,
                       heft__work_fn fn, void *user, heft_error *err)
{
    struct items items = {.count = count, .fn = fn, .user = user, .status = HEFT_OK};
    threads = threads < THREADS_MOST ? threads : THREADS_MOST;
    const size_t used = threads < count ? threads : count;
    heft__job job = {.work = work, .user = &items, .kind = kind};
    pthread_mutex_init(&items.lock, NULL);
    if (used > 1) {
        job.most = used - 1;
        job.limit = threads - 1;
        heft__ctx_ref(ctx); /* an item may drop the last reference but this */
        heft__pool_offer(heft__ctx_pool(ctx), &job);
    }
    work(&items);
    if (used > 1) {
        heft__pool_withdraw(heft__ctx_pool(ctx), &job);
        heft_ctx_free(ctx);
    }
    pthread_mutex_destroy(&items.lock);
    if (items.status != HEFT_OK && err) {
        *err = items.error;
    }
    return items.status;
}

heft_status heft__parallel(heft_ctx *ctx, size_t count, heft__work_fn fn, void *user,
                           heft_error *err)
{
    return run(ctx, HEFT__WORK_COMPUTES, heft__threads(ctx), count, fn, user, err);
}

heft_status heft__parallel_on(heft_ctx *ctx, size_t threads, size_t count, heft__work_fn fn,
                              void *user, heft_error *err)
{
    return run(ctx, HEFT__WORK_WAITS, threads, count, fn, user, err);
}
