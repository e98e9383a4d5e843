/* support.h - what the unit tests share: a context that fails at the nth allocation, temporary
 * folders, small files. */
#ifndef HEFT_TEST_SUPPORT_H
#define HEFT_TEST_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/base.h"

/* ---- sanitizers ------------------------------------------------------------------------------ */
#ifndef __has_feature
#define __has_feature(name) 0
#endif
/* It does not allow threads in the child of a process that has threads. */
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define TEST_THREAD_SANITIZER 1
#else
#define TEST_THREAD_SANITIZER 0
#endif
/* They need memory beside what the program asks for. */
#if TEST_THREAD_SANITIZER || defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define TEST_SANITIZED 1
#else
#define TEST_SANITIZED 0
#endif

/* ---- allocation failures --------------------------------------------------------------------- */
typedef struct test_heap {
    long fail_at; /* the allocation with this number gives NULL; -1: none */
    long count;   /* allocations so far */
    long blocks;  /* not freed yet */
    uint64_t bytes;
    uint64_t peak;
} test_heap;

/* A context on the heap; the heap must outlive it. One thread, so that allocations are numbered the
 * same each time. */
heft_ctx *test_ctx_new(test_heap *heap);

/* Run `attempt` with allocation 0, 1, 2, ... failing until it succeeds; each failure must be NOMEM
 * and leave no block behind. `attempt` makes what it tests from ctx, and frees all of it. */
typedef heft_status (*test_attempt_fn)(heft_ctx *ctx, void *user, heft_error *err);
void test_oom_sweep(test_attempt_fn attempt, void *user);

/* ---- files ----------------------------------------------------------------------------------- */
/* A new folder; removed with everything in it by test_folder_remove. The path lies in a static
 * buffer of the caller. */
void test_folder_make(char path[256]);
void test_folder_remove(const char *path);
/* The path of a name in a folder, in one of 16 static buffers that take turns. */
const char *test_path(const char *folder, const char *name);
void test_write_file(const char *folder, const char *name, const void *bytes, size_t length);
/* The whole file, malloced, NUL behind its end; fails the test if it cannot be read. */
char *test_read_file(const char *path, size_t *length);
/* SHA-256 as 64 hex digits. Without OpenSSL a test that names this is not built. */
void test_sha256(const void *bytes, size_t length, char hex[65]);
/* How many entries a folder has, hidden ones included. */
size_t test_count_entries(const char *path);
/* Whether an emulator (qemu-user) takes the system calls: it allows any advice on memory and any limit of address
 * space and follows neither, and a fork of a program with threads may hang in its own locks. Cases that need
 * these are skipped. */
bool test_emulated(void);

/* A file that must be refused: with this status, at this byte, and with these words in the error's
 * line. */
typedef struct test_refusal {
    const char *name;
    heft_status status;
    uint64_t offset;
    const char *words;
} test_refusal;
/* The row of a name, NULL if there is none. */
const test_refusal *test_find_refusal(const test_refusal *rows, size_t count, const char *name);

/* Fails the test and prints the error unless status is what was expected. */
void test_expect_status(heft_status status, heft_status expected, const heft_error *err,
                        const char *row);

#endif
