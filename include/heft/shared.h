/* heft/shared.h - the shared copies of this user on this host: list them, remove them. */
#ifndef HEFT_SHARED_H
#define HEFT_SHARED_H

#include <heft/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** A copy of converted weights that processes share (HEFT_LOAD_SHARED). */
typedef struct heft_shared_copy {
    const char *id;     /* 16 hexadecimal digits */
    const char *source; /* absolute path of the checkpoint; NULL if unknown, as while it is built */
    uint64_t bytes;     /* of weights */
    int64_t created;    /* when a process began to build it, in seconds since 1970; 0: unknown */
    bool building;      /* by the only process in pids; others wait for it */
    const int64_t *pids; /* [pid_count] the processes that hold it */
    size_t pid_count;
} heft_shared_copy;

/** The copies in the order of their ids. Free it with heft_shared_list_free(). */
typedef struct heft_shared_list {
    const heft_shared_copy *copies;
    size_t count;
} heft_shared_list;

/** Free a list. NULL is allowed. */
HEFT_API void heft_shared_list_free(heft_shared_list *list);

/**
 * List the shared copies of this user on this host, and remove the registers of copies that no
 * process holds any more. Copies whose processes are in other PID namespaces, and removed copies
 * that are still in use, are not listed.
 *
 * @param ctx  borrowed
 * @param out  filled with an owned list
 * @param err  filled on failure; may be NULL
 *
 * Memory   the list, and 128 KiB during the call.
 * Errors   NOMEM.
 * Source   docs/sharing.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_shared_list_read(heft_ctx *ctx, heft_shared_list **out,
                                                           heft_error *err);

/**
 * Remove shared copies of this user: no other process joins them from now on, and the next load
 * builds a new copy. Processes that hold a copy keep it, and the kernel frees it with the last of
 * them. A process that is building a copy finishes it for its own use.
 *
 * @param ctx      borrowed
 * @param id       borrowed; the id of one copy; NULL for all copies
 * @param removed  filled with the number of removed copies; may be NULL
 * @param err      filled on failure; may be NULL
 *
 * Memory   128 KiB during the call.
 * Errors   INVALID_ARG for an id that is not 16 hexadecimal digits in lower case; NOT_FOUND if
 *          there is no such copy; IO if it cannot be removed.
 * Source   docs/sharing.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_shared_remove(heft_ctx *ctx, const char *id,
                                                        size_t *removed, heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
