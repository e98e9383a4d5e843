/* pool.h - the threads of a context, for context.c, pool.c and parallel.c. */
#ifndef HEFT__BASE_POOL_H
#define HEFT__BASE_POOL_H

#include "base/base.h"

#include <stdatomic.h>

/* Two kinds of work have separate helpers: reading ahead must not take those of a computation. */
enum heft__work_kind { HEFT__WORK_COMPUTES, HEFT__WORK_WAITS, HEFT__WORK_KINDS };

/* Work that threads of the pool may join. Lies in the memory of the thread that offers it, which
 * works on it too and waits for no thread that has not begun. */
typedef struct heft__job {
    void (*work)(void *user); /* returns when nothing is left to begin */
    void *user;
    enum heft__work_kind kind;
    size_t most;           /* helpers of this job; 0 once one of them found nothing left */
    size_t limit;          /* helpers of its kind in the whole pool */
    atomic_size_t helpers; /* that are coming or working; others may read it without the lock */
    size_t promised;       /* of these: woken or created, and not yet here */
    struct heft__job *next;
} heft__job;

typedef struct heft__pool {
    /* Twice the number of the process that the members below belong to, plus 1 while that process
     * sets them up. 0: not used yet. */
    _Atomic uint64_t owner;
    pthread_mutex_t lock;         /* guards the rest */
    pthread_cond_t changed;       /* a helper has left its job, or a new thread is here */
    struct heft__worker *workers; /* the pool's threads, each in a structure on its own stack */
    struct heft__worker *idle;    /* those that wait for work */
    size_t created, starting;     /* threads ever created; those not yet in the list */
    /* Threads on their way to look for work, and what waits for one: calls that end early leave
     * more of the former, which the next ones use. */
    size_t coming, promised;
    heft__job *jobs;                  /* open ones, the newest first */
    heft__background *waiting;        /* a thread is coming for each, the oldest first */
    size_t engaged[HEFT__WORK_KINDS]; /* helpers that are coming or working */
} heft__pool;

heft__pool *heft__ctx_pool(heft_ctx *ctx);
/* End all threads. Returns when they are gone, but for the calling one if it is of the pool: that
 * one ends when its work returns. */
void heft__pool_fini(heft__pool *pool);

/* Let helpers join a job. If no thread can be created its owner does all of it. */
void heft__pool_offer(heft__pool *pool, heft__job *job);
/* Returns when no helper works on the job, and none will. */
void heft__pool_withdraw(heft__pool *pool, heft__job *job);

#endif
