/* heft/base.h - status codes, errors, the context, and parsing of sizes. All other headers of heft
 * except dlpack.h include this one.
 *
 * Conventions of all headers: a function that can fail returns a heft_status, which the caller must
 * check, and takes an optional heft_error as its last argument. On success, `err` is unchanged; on
 * failure, outputs are unchanged. The words for ownership are: "borrowed", heft uses the argument
 * only during the call; "taken", ownership moves to heft; "owned", the caller must free it;
 * "filled", heft writes through the pointer; "lent", it belongs to heft and is valid while its
 * owner exists. A function that allocates can fail with NOMEM even where Errors does not list it.
 * Arguments must not be NULL unless their description says so.
 *
 * Structures that the caller allocates begin with their size, so that later versions of the library
 * can add members at the end: create options with HEFT_OPTIONS(), and structures to be filled with
 * HEFT_SIZED(). A NULL pointer to options selects the defaults; a member that is 0 selects its
 * default. */
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
 * Create options of a type, with the members that are named:
 * `&HEFT_OPTIONS(heft_load_options, .strict = true)`.
 *
 * Members that are not named are 0, which selects their default. A function that takes
 * options returns INVALID_ARG if struct_size is 0, or if the options are of a newer library version
 * and a member that this version does not know is not 0.
 */
#define HEFT_OPTIONS(type, ...) ((type){.struct_size = sizeof(type), __VA_ARGS__})
/** Create a structure of a type in which struct_size is set and all other members are 0: options to
 * be set member by member, or a structure for a function to fill. A function fills only the members
 * that the caller's version of the structure has. */
#define HEFT_SIZED(type) ((type){.struct_size = sizeof(type)})

/* Columns: name, exit code of the command, text. The enum is generated from this table. */
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

/** The value of heft_error.offset if the error does not refer to a byte in a file. */
#define HEFT_NO_OFFSET UINT64_MAX

/** An error: what went wrong, in which file and item, and at which byte. Fixed size, no heap. Long
 * paths are truncated at the start, long items at the end. */
typedef struct heft_error {
    heft_status status;
    int sys_errno;     /* errno of the failed system call, 0 if none */
    uint64_t offset;   /* byte in the file, or HEFT_NO_OFFSET */
    char path[512];    /* file or folder, "" if none */
    char item[256];    /* tensor, key or record, "" if none */
    char message[512]; /* one line, no full stop, control characters escaped */
} heft_error;

/** Return the name of a status, such as "FORMAT" for HEFT_FORMAT; static, never NULL. */
HEFT_API const char *heft_status_name(heft_status status);
/** Return a short description of a status, such as "malformed file"; static, never NULL. */
HEFT_API const char *heft_status_text(heft_status status);
/** Return the exit code of the `heft` command for a status. */
HEFT_API int heft_status_exit_code(heft_status status);

/**
 * Format an error as one line, `path: item: byte N: message`, without a newline.
 *
 * @param err  borrowed
 * @param dst  filled, NUL-terminated if cap > 0
 * @param cap  bytes at dst
 * @return     the length of the complete line, even if it was truncated, as for snprintf()
 */
HEFT_API int heft_error_format(const heft_error *err, char *dst, size_t cap);
/** Print an error to a stream, as one line with a newline. Both arguments are borrowed. */
HEFT_API void heft_error_print(const heft_error *err, FILE *stream);

/** Return the version of the library at run time, such as "0.1.0". */
HEFT_API const char *heft_version(void);

/* ---- context --------------------------------------------------------------------------------- */

/**
 * The caller's memory functions.
 *
 * `alloc` returns a block that is aligned as by malloc(), or NULL if out of memory. `free` and
 * `resize` get the size of the block, so that an allocator needs no block headers. `resize` may be
 * NULL: heft then allocates, copies and frees. The functions must not call heft. `user` must stay
 * valid until the last object created from the context is freed.
 *
 * Threads  the functions are called from several threads at once, the caller's and the context's; a
 *          block may be freed on another thread than the one that allocated it.
 */
typedef struct heft_allocator {
    void *(*alloc)(void *user, size_t bytes);
    void *(*resize)(void *user, void *block, size_t old_bytes, size_t new_bytes);
    void (*free)(void *user, void *block, size_t bytes);
    void *user;
} heft_allocator;

/** Upper bounds on what a file may claim, as protection against hostile files. The default, which 0
 * selects, is given with each member; the largest number of a member's type is no limit. With the
 * defaults, opening a checkpoint takes at most 64 MB and twice the bytes of its files. The message
 * of a LIMIT error names the member that raises the limit. SECURITY.md describes each. */
typedef struct heft_limits {
    size_t struct_size;      /* set by HEFT_OPTIONS */
    uint64_t header_bytes;   /* a safetensors header, a zip's central directory: 100,000,000 */
    uint64_t pickle_bytes;   /* a pickle: 256 MiB; a deflated one also at most expanded_bytes
                              * beyond twice its file */
    uint64_t index_bytes;    /* an *.index.json, a manifest: 1 GiB */
    uint64_t config_bytes;   /* a config.json: 16 MiB */
    uint64_t tensors;        /* tensors in one file: 16 Mi */
    uint64_t name_bytes;     /* one tensor name: 64 KiB */
    uint64_t shards;         /* files in one checkpoint: 100,000 */
    uint32_t json_depth;     /* nested arrays and objects: 128 */
    uint32_t pickle_depth;   /* nested containers in a pickle: 1,000 */
    uint32_t rank;           /* dimensions of a tensor: 64 */
    uint64_t expanded_bytes; /* a checkpoint's tensors, also in the dtype of its config, beyond
                              * twice its files: 32 MiB */
    uint64_t missing_bytes;  /* what a load initializes, beyond twice the files: 32 MiB */
    uint64_t modules;        /* modules of the model that a config describes: 98,304 */
    uint64_t value_bytes; /* the values of a pickle or of a JSON document, beyond what the bytes of
                              * its file allow: 24 MiB */
    uint64_t
        small_tensors; /* tensors of a checkpoint, beyond one for each 1,024 bytes of its files:
                              * 100,000 */
    uint64_t tokenizer_bytes; /* a tokenizer.json: 128 MiB */
    uint64_t chat_bytes;      /* memory for a chat template, and for each rendering of it: 64 MiB */
} heft_limits;

typedef struct heft_progress {
    const char *what; /* lent during the call: "reading", "writing", ... */
    uint64_t done_bytes;
    uint64_t total_bytes; /* 0 if unknown */
} heft_progress;

/** Called repeatedly during an operation, on the thread that called the operation. Return false to
 * cancel: the operation then fails with HEFT_CANCELLED, and its result is as after any other
 * failure. */
typedef bool (*heft_progress_fn)(void *user, const heft_progress *progress);
/** Called with a message for the user, one line without a newline, on the thread that called the
 * operation. */
typedef void (*heft_log_fn)(void *user, const char *line);

typedef struct heft_ctx_options {
    size_t struct_size;              /* set by HEFT_OPTIONS */
    const heft_allocator *allocator; /* copied; NULL: malloc, and huge pages for large blocks */
    unsigned threads;     /* maximum number that compute at once; 0: one per CPU of the process */
    size_t staging_bytes; /* size of a staging buffer; 0: 64 MiB; at least 64 KiB is used */
    const heft_limits *limits; /* copied; NULL: defaults */
    heft_progress_fn progress;
    void *progress_user;
    heft_log_fn log;
    void *log_user;
} heft_ctx_options;

/**
 * A context: the allocator, threads, limits and callbacks of all objects created from it. The
 * library has no other state.
 *
 * A context creates threads when an operation first needs them, reuses them for later operations,
 * and ends them when it is freed. These threads block signals that are sent to the process.
 * Operations that wait for a disk use up to four threads even if `threads` is less; a residency
 * uses one more. If the system cannot create threads, the calling thread does all the work.
 *
 * After fork(), the child may use the context, which then creates threads of its own. Do not call
 * fork() inside a callback. Operations that other threads of the parent were executing do not
 * continue in the child.
 */
typedef struct heft_ctx heft_ctx;

/**
 * Create a context.
 *
 * @param options  borrowed; NULL for defaults
 * @return         owned; NULL if out of memory, or if `options` or its limits have an invalid
 *                 struct_size (HEFT_OPTIONS())
 *
 * Memory   a few hundred bytes, and 264 KiB of address space for each thread's stack. Objects
 *          created from a context keep it alive.
 * Threads  any number of threads may use a context at once.
 */
HEFT_API heft_ctx *heft_ctx_new(const heft_ctx_options *options);
/** Free a context. It stays alive until the last object created from it is freed, which may happen
 * on any thread; then its threads end. NULL is allowed. */
HEFT_API void heft_ctx_free(heft_ctx *ctx);

/**
 * Get the number of bytes allocated through the context's allocator.
 *
 * @param ctx         borrowed
 * @param live_bytes  filled with the bytes in use; may be NULL
 * @param peak_bytes  filled with the maximum bytes in use at once; may be NULL
 */
HEFT_API void heft_ctx_memory(const heft_ctx *ctx, uint64_t *live_bytes, uint64_t *peak_bytes);

/**
 * Parse a size such as `200MB`, `1.5 GiB` or `4096`.
 *
 * KB, MB, GB and TB are powers of 1000; KiB, MiB, GiB and TiB are powers of 1024; a plain number is
 * in bytes. Case does not matter. The result is exact; a fraction of a byte is dropped.
 *
 * @param text   borrowed
 * @param bytes  filled
 * @param err    filled on failure; may be NULL
 *
 * Memory   no heap.
 * Errors   INVALID_ARG for anything else, for negative sizes, and for sizes over 2^63-1.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_size_parse(const char *text, uint64_t *bytes,
                                                     heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
