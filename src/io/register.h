/* register.h - private to the layer: which processes hold a shared copy.
 *
 * A register is a small file in a folder of this user's, named after what the copy holds: a line
 * "PID DESCRIPTOR INODE" for each process that has it, or "building PID BYTES". Who changes it holds its
 * lock, flock(2), which the kernel lets go of when its owner dies. The lines are hints: segment.c proves
 * what they lead to. */
#ifndef HEFT__IO_REGISTER_H
#define HEFT__IO_REGISTER_H

#include "io/io.h"

#include <stdatomic.h>

#define HEFT__REGISTER_BYTES 65536
#define HEFT__REGISTER_NAME 17 /* 16 hexadecimal digits and NUL */
#define HEFT__REGISTER_PLACES 3

typedef struct heft__holder {
    long pid;
    int number; /* of its descriptor */
    uint64_t inode;
} heft__holder;

typedef struct heft__register {
    heft_ctx *ctx;
    int dir; /* held: this user's folder of registers; -1: none */
    int fd;  /* locked; -1: not */
    char name[HEFT__REGISTER_NAME];
    char *text; /* [2 * HEFT__REGISTER_BYTES] as read, and what of it stays; NULL: not read */
    atomic_llong beat; /* seconds: when it was last said that the building goes on */
} heft__register;

enum heft__register_how {
    HEFT__REGISTER_JOIN,  /* create it, and wait for who builds */
    HEFT__REGISTER_LEAVE, /* wait a moment, but not for who builds */
    HEFT__REGISTER_TRY    /* do not wait */
};

/* Open this user's folder of registers in place number i; -1 if there is none. `make`: create it. A folder
 * that another user owns or may write to is passed over. */
int heft__register_place(heft_ctx *ctx, size_t i, bool make);
bool heft__register_is_name(const char *name);
/* Open for reading, without the lock; -1 if it is no register of this user's. */
int heft__register_open(int dir, const char *name);
/* Lock it, and read its text. JOIN: waits for the lock as long as its owner shows that it works, at most
 * patience_ms without a sign of that (IO), and can be cancelled. LEAVE and TRY: NOT_FOUND if there is no
 * register, EXISTS if it is locked. */
heft_status heft__register_lock(heft__register *reg, enum heft__register_how how,
                                unsigned patience_ms, heft_error *err);
void heft__register_unlock(heft__register *reg); /* frees the text */
/* Whether the name is still that of the locked file. */
bool heft__register_is_current(const heft__register *reg);
/* Read the text of an open register, NUL-terminated, into HEFT__REGISTER_BYTES. */
void heft__register_read(int fd, char *text);
/* The process that builds, by the text; 0 if none does. */
long heft__register_builder(const char *text, uint64_t *bytes);
/* The next holder of a text, and where the text goes on; false at its end. Lines of other kinds are
 * passed over. */
bool heft__register_next(const char **text, heft__holder *holder);
/* Keep the lines of which keep(user, holder) is true. */
typedef bool (*heft__register_keep)(void *user, const heft__holder *holder);
size_t heft__register_scan(heft__register *reg, heft__register_keep keep, void *user);
/* Write the lines that were kept, and one more (NULL: none). LIMIT if they are too many. */
heft_status heft__register_write(heft__register *reg, const heft__holder *more, heft_error *err);
/* Say that this process builds, which frees the text: nobody else has the copy. And from time to time
 * that it still does; any thread. */
heft_status heft__register_build(heft__register *reg, uint64_t bytes, heft_error *err);
void heft__register_beat(heft__register *reg);
/* Take the locked register away. */
void heft__register_remove(heft__register *reg);
/* Remove every register of the folder none of whose lines is kept. */
void heft__register_sweep(heft_ctx *ctx, int dir, heft__register_keep keep, void *user);

#endif
