/* heft/base.h - status, errors, the context and size strings. Every other header of heft includes
 * this one.
 *
 * Conventions of the whole interface: a function that can fail returns a heft_status, must be
 * checked, and takes an optional heft_error as its last argument. `err` is untouched on success and
 * outputs are untouched on failure. "borrows": only during the call. "takes": ownership moves.
 * "returns owned": the caller frees it. "fills": writes through the pointer.
 *
 * Structures that the caller allocates begin with their size, so that later versions of the library
 * can add members at the end: make options with HEFT_OPTIONS(), structures to be filled with
 * HEFT_SIZED(). A NULL pointer to options means defaults, and so does a member that is 0. */
#ifndef HEFT_BASE_H
#define HEFT_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HEFT_VERSION_MAJOR 0
#define HEFT_VERSION_MINOR 1
#define HEFT_VERSION_PATCH 0
#define HEFT_VERSION "0.1.0"

#define HEFT_API __attribute__((visibility("default")))
#define HEFT_MUST_CHECK __attribute__((warn_unused_result))

/**
 * Make options of a type, with designated members: `&HEFT_OPTIONS(heft_load_options, .strict = true)`.
 *
 * Members of `type` that are not named are 0, which means their default. A function that takes
 * options returns INVALID_ARG for a struct_size of 0, and for options of a newer library version if
 * a member that this version does not know is not 0.
 */
#define HEFT_OPTIONS(type, ...) ((type){.struct_size = sizeof(type), __VA_ARGS__})
/** Make a structure of a type that carries its size and is 0 otherwise: options to be set member by
 * member, or a structure that a function fills. A function fills the members that the caller's
 * version of the structure has. */
#define HEFT_SIZED(type) ((type){.struct_size = sizeof(type)})

/* name, exit code of the command, text. The one table from which enum, names and exit codes come.
 */
#define HEFT_STATUS_TABLE(X)                                                                       \
    X(OK, 0, "ok")                                                                                 \
    X(INVALID_ARG, 2, "invalid argument")                                                          \
    X(IO, 3, "input or output failed")                                                             \
    X(NOT_FOUND, 4, "not found")                                                                   \
    X(FORMAT, 5, "malformed file")                                                                 \
    X(MISMATCH, 6, "checkpoint and model differ")                                                  \
    X(UNSUPPORTED, 7, "not supported")                                                             \
    X(REFUSED, 8, "refused for safety")                                                            \
    X(LIMIT, 9, "limit exceeded")                                                                  \
    X(NOMEM, 10, "out of memory")                                                                  \
    X(EXISTS, 11, "destination exists")                                                            \
    X(CANCELLED, 12, "cancelled")

typedef enum heft_status {
#define HEFT_STATUS_ENUM(name, exit_code, text) HEFT_##name,
    HEFT_STATUS_TABLE(HEFT_STATUS_ENUM)
#undef HEFT_STATUS_ENUM
} heft_status;

/** heft_error.offset when no byte of a file is meant. */
#define HEFT_NO_OFFSET UINT64_MAX

/** What went wrong, where, and at which byte. Fixed size, no heap; long paths keep their end, long
 * items their start. */
typedef struct heft_error {
    heft_status status;
    int sys_errno;     /* 0 if no system call is to blame */
    uint64_t offset;   /* byte in the file, or HEFT_NO_OFFSET */
    char path[512];    /* file or folder, "" if none */
    char item[256];    /* tensor, key or record, "" if none */
    char message[512]; /* one line, no full stop, control characters escaped */
} heft_error;

/** Return the name of a status, "FORMAT" for HEFT_FORMAT. Never NULL. */
HEFT_API const char *heft_status_name(heft_status status);
/** Return the one-line meaning of a status. Never NULL. */
HEFT_API const char *heft_status_text(heft_status status);
/** Return the exit code with which the command reports a status. */
HEFT_API int heft_status_exit_code(heft_status status);

/**
 * Write an error as one line, `path: item: byte N: message`, without a newline.
 *
 * @param err  borrowed
 * @param dst  filled, NUL-terminated if cap > 0
 * @param cap  bytes at dst
 * @return     the length the whole line has, as snprintf does
 */
HEFT_API int heft_error_format(const heft_error *err, char *dst, size_t cap);
/** Print an error as one line with a newline on a stream. Both are borrowed. */
HEFT_API void heft_error_print(const heft_error *err, FILE *stream);

/** Return the version of the library that runs, "0.1.0". */
HEFT_API const char *heft_version(void);

/* ---- context --------------------------------------------------------------------------------- */

/**
 * Memory functions. Sizes are handed back, so an implementation needs no headers. `alloc` returns
 * NULL when it has nothing left; alignment as malloc's. `resize` may be NULL: then alloc, copy,
 * free is used.
 *
 * Threads  called from several threads at once, the caller's and those of the context; a block may be
 *          freed on another thread than the one that allocated it. They must not call functions of
 *          heft's. `user` must stay valid until the last thing made from the context is freed.
 */
typedef struct heft_allocator {
    void *(*alloc)(void *user, size_t bytes);
    void *(*resize)(void *user, void *block, size_t old_bytes, size_t new_bytes);
    void (*free)(void *user, void *block, size_t bytes);
    void *user;
} heft_allocator;

/** What a hostile file may make heft do at most. A member that is 0 stands for its default. */
typedef struct heft_limits {
    size_t struct_size;    /* set by HEFT_OPTIONS */
    uint64_t header_bytes; /* safetensors header, zip directory: 100,000,000 */
    uint64_t pickle_bytes; /* data.pkl, legacy object pickle: 256 MiB */
    uint64_t index_bytes;  /* *.index.json: 1 GiB */
    uint64_t config_bytes; /* config.json and its like: 16 MiB */
    uint64_t tensors;      /* tensors of one file: 16 Mi */
    uint64_t name_bytes;   /* one tensor name: 64 KiB */
    uint64_t shards;       /* files of one checkpoint: 100,000 */
    uint32_t json_depth;   /* nested arrays and objects: 128 */
    uint32_t pickle_depth; /* nested containers of a pickle: 1,000 */
    uint32_t rank;         /* dimensions of a tensor: 64 */
} heft_limits;

typedef struct heft_progress {
    const char *what; /* lent during the call: "reading", "writing", ... */
    uint64_t done_bytes;
    uint64_t total_bytes; /* 0 if not known */
} heft_progress;

/** Called now and then from the thread that called the operation, never from a thread of heft's.
 * Return false to cancel: the operation then ends with HEFT_CANCELLED and leaves nothing half done. */
typedef bool (*heft_progress_fn)(void *user, const heft_progress *progress);
/** Called with one line, without newline, for what a person may want to know; from the thread that
 * called the operation. */
typedef void (*heft_log_fn)(void *user, const char *line);

typedef struct heft_ctx_options {
    size_t struct_size;              /* set by HEFT_OPTIONS */
    const heft_allocator *allocator; /* copied; NULL: malloc, and huge pages for large blocks */
    unsigned threads;                /* that work at once; 0: as many as the process may use */
    size_t staging_bytes;            /* buffer for copying and casting; 0: 64 MiB */
    const heft_limits *limits;       /* copied; NULL: defaults */
    heft_progress_fn progress;
    void *progress_user;
    heft_log_fn log;
    void *log_user;
} heft_ctx_options;

/**
 * Allocator, threads, limits and callbacks of everything made from it. No global state.
 *
 * A context creates threads when an operation first needs them, keeps them for the next ones and ends
 * them with itself. They block the signals that are sent to the process. Operations that wait for a
 * disk may use more threads than `threads` says, up to four, and a residency one more. If the system
 * grants no threads, the calling thread does all the work.
 *
 * After fork() the child may use the context: it creates threads of its own. fork() must not be
 * called from inside a callback, and what another thread of the parent was doing stays undone.
 */
typedef struct heft_ctx heft_ctx;

/**
 * Create a context.
 *
 * @param options  borrowed; NULL for defaults
 * @return         owned, or NULL if there is no memory or the options' sizes are invalid
 *
 * Memory   some hundred bytes, and 264 KiB of address space for each thread's stack. What is made
 *          from a context keeps it alive.
 * Threads  may be shared by all threads.
 */
HEFT_API heft_ctx *heft_ctx_new(const heft_ctx_options *options);
/** Let go of a context. NULL is allowed. Its memory returns, and its threads end, when the last thing
 * made from it is gone; any thread may free that. */
HEFT_API void heft_ctx_free(heft_ctx *ctx);

/**
 * Tell how many bytes the context's allocator has given out.
 *
 * @param ctx         borrowed
 * @param live_bytes  filled with the bytes in use; may be NULL
 * @param peak_bytes  filled with the most that was in use at once; may be NULL
 */
HEFT_API void heft_ctx_memory(const heft_ctx *ctx, uint64_t *live_bytes, uint64_t *peak_bytes);

/**
 * Read a size such as `200MB`, `1.5 GiB` or `4096`.
 *
 * KB MB GB TB are powers of 1000, KiB MiB GiB TiB powers of 1024, in any case; a plain number
 * counts bytes. Decimals are exact, a rest below one byte is cut.
 *
 * @param text   borrowed
 * @param bytes  filled
 * @param err    filled on failure; may be NULL
 *
 * Memory   no heap.
 * Errors   INVALID_ARG for anything else, negative sizes and sizes over 2^63-1.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_size_parse(const char *text, uint64_t *bytes,
                                                     heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
