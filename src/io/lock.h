/* lock.h - private to the layer: who writes to a destination.
 *
 * A lock is a small file beside the destination, held with flock(2): the kernel lets go of it when its
 * owner dies, however it dies. The file says who holds it and since when; its last owner removes it. */
#ifndef HEFT__IO_LOCK_H
#define HEFT__IO_LOCK_H

#include "io/io.h"

typedef struct heft__lock {
    int dir; /* borrowed: where the file is */
    int fd;  /* -1: not held */
    char name[256];
    bool useless; /* the file system knows no locks */
} heft__lock;

#define HEFT__LOCK_NONE ((heft__lock){.dir = -1, .fd = -1})

/* Take the lock `name` in the folder `dir`. EXISTS if another process has it, with what its file says;
 * with `wait`, waits until it is free (CANCELLED through the progress callback). */
heft_status heft__lock_take(heft_ctx *ctx, heft__lock *lock, int dir, const char *name, bool wait,
                            heft_error *err);
void heft__lock_release(heft__lock *lock);
/* flock(2) without waiting: 1 taken, 0 another has it, -1 the file system knows no locks. */
int heft__lock_try(int fd, int how);

#endif
