/* The internal header of the base layer.
 *
 * What it does: provides errors, a context's memory and limits, checked size arithmetic, arenas,
 * growable buffers, a string map, a list of warnings, and work on several threads. It knows nothing
 * about files, numbers or models.
 * May include: none.
 * Rules: all memory comes from heft__alloc and related functions (or an arena or buffer built on
 * them), which count it and may fail; nothing here prints, exits or keeps global state. */
#ifndef HEFT__BASE_BASE_H
#define HEFT__BASE_BASE_H

#include <heft/base.h>
#include <pthread.h>

#include <stdarg.h>
#include <string.h>
#include <sys/types.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "heft requires a little-endian machine: it uses the files' little-endian data directly"
#endif

/* ---- errors: filled where the fault is found; callers add path and item if they are empty ---- */
heft_status heft__fail(heft_error *err, heft_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
heft_status heft__fail_at(heft_error *err, heft_status status, uint64_t offset, const char *format,
                          ...) __attribute__((format(printf, 4, 5)));
/* The text of the errno is appended: "cannot open: No such file or directory". ENOENT gives
 * NOT_FOUND, ENOMEM NOMEM. */
heft_status heft__fail_errno(heft_error *err, int sys_errno, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same, always IO: a place that cannot be written to, also where the kernel says that something is
 * not there. */
heft_status heft__fail_io(heft_error *err, int sys_errno, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
heft_status heft__fail_nomem(heft_error *err, uint64_t bytes);
/* Return `status` and add what is still empty; both do nothing for HEFT_OK. */
heft_status heft__add_path(heft_status status, heft_error *err, const char *path);
heft_status heft__add_item(heft_status status, heft_error *err, const char *item);
/* Append " (limit NAME)" to the message of a LIMIT: the member of heft_limits that raises it. */
heft_status heft__add_limit(heft_status status, heft_error *err, const char *name);

/* ---- structures that carry their size ---------------------------------------------------------- */
/* Copy a caller's options, NULL for defaults, into `taken`, which then has this version's size.
 * INVALID_ARG for a size that cannot be, and for members of a newer version that are not 0. */
#define HEFT__TAKE_OPTIONS(taken, options, err)                                                    \
    heft__take_options((taken), sizeof *(taken), (options), (err))
heft_status heft__take_options(void *taken, size_t size, const void *options, heft_error *err);
/* Fill a caller's structure from `given`, up to the size of the caller's version; its own size
 * stays. INVALID_ARG for NULL and for a size that cannot be. */
#define HEFT__GIVE_SIZED(out, given, err) heft__give_sized((out), (given), sizeof *(given), (err))
heft_status heft__give_sized(void *out, const void *given, size_t size, heft_error *err);

/* ---- checked sizes --------------------------------------------------------------------------- */
static inline bool heft__mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool heft__add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}
/* The sum, or the largest number if it is more: for limits, which may be that number. */
static inline uint64_t heft__add_most(uint64_t a, uint64_t b)
{
    uint64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}
/* A size on disk to a size in memory: false where it does not fit (32-bit machines). */
static inline bool heft__to_size(uint64_t bytes, size_t *out)
{
    if (bytes > SIZE_MAX) {
        return false;
    }
    *out = (size_t)bytes;
    return true;
}

/* ---- numbers from file bytes ----------------------------------------------------------------- */
static inline uint16_t heft__le16(const uint8_t *p)
{
    return (uint16_t)(p[0] | (unsigned)p[1] << 8);
}
static inline uint32_t heft__le32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static inline uint64_t heft__le64(const uint8_t *p)
{
    return (uint64_t)heft__le32(p) | (uint64_t)heft__le32(p + 4) << 32;
}
static inline void heft__put_le16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}
static inline void heft__put_le32(uint8_t *p, uint32_t v)
{
    heft__put_le16(p, (uint16_t)v);
    heft__put_le16(p + 2, (uint16_t)(v >> 16));
}
static inline void heft__put_le64(uint8_t *p, uint64_t v)
{
    heft__put_le32(p, (uint32_t)v);
    heft__put_le32(p + 4, (uint32_t)(v >> 32));
}

/* ---- the context ----------------------------------------------------------------------------- */
heft_ctx *heft__ctx_ref(heft_ctx *ctx);
const heft_limits *heft__limits(const heft_ctx *ctx); /* with every default filled in */
unsigned heft__threads(const heft_ctx *ctx);          /* at least 1 */
size_t heft__staging_bytes(const heft_ctx *ctx);
/* Nothing on a thread of the pool, as heft__tell_progress. */
void heft__log(const heft_ctx *ctx, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* CANCELLED if the caller's callback requests it. Cheap enough to call per tensor or per few MiB. */
heft_status heft__tell_progress(const heft_ctx *ctx, const char *what, uint64_t done,
                                uint64_t total, heft_error *err);

void *heft__alloc(heft_ctx *ctx, size_t bytes); /* NULL if none; 0 bytes gives a valid block */
void *heft__alloc_zero(heft_ctx *ctx, size_t count, size_t size); /* count * size checked, zeroed */
void *heft__resize(heft_ctx *ctx, void *block, size_t old_bytes, size_t new_bytes);
void heft__free(heft_ctx *ctx, void *block, size_t bytes); /* NULL allowed */

/* ---- arena: the metadata of one file or model, freed in one call ----------------------------- */
typedef struct heft__arena {
    heft_ctx *ctx;
    struct heft__arena_chunk *chunks;
    size_t used, cap; /* of the newest chunk */
} heft__arena;

/* Allocates nothing; holds no reference on ctx. */
void heft__arena_init(heft__arena *arena, heft_ctx *ctx);
void heft__arena_fini(heft__arena *arena);
/* Free memory that holds its own arena and a reference on the arena's context, as reports do. */
void heft__free_with_arena(heft__arena *arena, void *memory, size_t bytes);
void *heft__arena_alloc(heft__arena *arena, size_t bytes); /* aligned for any type; NULL if none */
/* Aligned for pointers and for numbers of up to 64 bits. */
void *heft__arena_words(heft__arena *arena, size_t bytes);
/* Zeroed, overflow checked. */
void *heft__arena_array(heft__arena *arena, uint64_t count, size_t size);
/* Copy with a NUL after it. */
char *heft__arena_text(heft__arena *arena, const char *bytes, size_t length);
char *heft__arena_format(heft__arena *arena, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- growing bytes --------------------------------------------------------------------------- */
typedef struct heft__buffer {
    heft_ctx *ctx;
    uint8_t *data;
    size_t size, cap;
    bool failed; /* sticky: an append found no memory; ask once at the end */
} heft__buffer;

void heft__buffer_init(heft__buffer *buffer, heft_ctx *ctx);
void heft__buffer_fini(heft__buffer *buffer);
void heft__buffer_append(heft__buffer *buffer, const void *bytes, size_t length);
void heft__buffer_text(heft__buffer *buffer, const char *text);
void heft__buffer_byte(heft__buffer *buffer, uint8_t byte);
void heft__buffer_format(heft__buffer *buffer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* NOMEM if it failed. */
heft_status heft__buffer_check(const heft__buffer *buffer, heft_error *err);

/* Grow an array kept as (pointer, count, capacity) so that one more element fits; false if no
 * memory. The caller frees it with heft__free(ctx, *array, *cap * size). */
bool heft__array_reserve(heft_ctx *ctx, void **array, size_t count, size_t *cap, size_t size);

/* ---- string map: name -> number. Keys are borrowed and must outlive the map; seeded against
 * chosen collisions ---- */
typedef struct heft__map {
    heft_ctx *ctx;
    struct heft__map_slot *slots;
    size_t count, cap; /* cap a power of two */
    uint64_t seed;
} heft__map;

#define HEFT__MAP_NONE SIZE_MAX
void heft__map_init(heft__map *map, heft_ctx *ctx);
void heft__map_fini(heft__map *map);
/* Room for `count` keys, where their number is known and not only claimed. false if no memory. */
bool heft__map_reserve(heft__map *map, size_t count);
/* Put key -> value unless the key is there; `*found` then is its value, else HEFT__MAP_NONE. false
 * if no memory. */
bool heft__map_put(heft__map *map, const char *key, size_t length, size_t value, size_t *found);
/* HEFT__MAP_NONE if absent. */
size_t heft__map_get(const heft__map *map, const char *key, size_t length);
/* The same number for the same bytes on every machine and in every version: random numbers depend
 * on it. */
uint64_t heft__stable_hash(const char *bytes, size_t length);
/* 128 bits that stand for all that was added, in this order and these pieces; begins as zeros. */
typedef struct heft__digest {
    uint64_t low, high;
} heft__digest;
void heft__digest_add(heft__digest *digest, const void *bytes, size_t length);
/* As strcmp, by the parts between dots: whole numbers by value and before text, text by its letters
 * and then by the number at its end. Transformers' order of names. */
int heft__compare_natural(const char *a, const char *b);
/* The same of one part each. */
int heft__compare_natural_part(const char *a, size_t a_length, const char *b, size_t b_length);

/* ---- UTF-8 ----------------------------------------------------------------------------------- */
/* Index of the first byte that is not part of valid UTF-8 (no overlong forms, no surrogates), or
 * `length`. */
size_t heft__utf8_invalid_at(const uint8_t *bytes, size_t length);
/* Write a code point (at most 0x10FFFF) as 1 to 4 bytes; returns how many. */
size_t heft__utf8_put(uint32_t code, uint8_t dst[4]);

/* ---- warnings: a list on a result, not log lines --------------------------------------------- */
typedef struct heft__warnings {
    heft__arena *arena; /* lent by the owner of the result */
    const char **lines;
    size_t count, cap;
} heft__warnings;

void heft__warnings_init(heft__warnings *warnings, heft__arena *arena);
/* false if no memory. Arrays live in the arena. */
bool heft__warn(heft__warnings *warnings, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- work on several threads ----------------------------------------------------------------- */
/* The context has one pool of threads. It creates them when they are first needed and keeps them
 * until the context is gone; a child process, which has none of them, creates its own. They allocate
 * and free as any thread does, but the callbacks for progress and log lines are never called on them:
 * heft__tell_progress and heft__log do nothing there. Nothing that runs on them drops a reference to a
 * storage that may be a caller's: its release would be called there. */

/* Call fn(user, i, err) for every i below count, in any order, on this thread and on up to
 * heft__threads() - 1 helpers. After the first failure no new items start; that failure is returned.
 * With one thread or one item everything runs on this thread. An item may call this again: the
 * calling thread always works itself, so that the inner call ends even if no helper is free. The
 * helpers of all such calls together are at most heft__threads() - 1. */
typedef heft_status (*heft__work_fn)(void *user, size_t item, heft_error *err);
heft_status heft__parallel(heft_ctx *ctx, size_t count, heft__work_fn fn, void *user,
                           heft_error *err);
/* The same on this many threads, for work that waits for a disk rather than for a CPU. Its
 * helpers do not count among those above, and are at most `threads` - 1 themselves. */
heft_status heft__parallel_on(heft_ctx *ctx, size_t threads, size_t count, heft__work_fn fn,
                              void *user, heft_error *err);

/* Background work, on a thread of the pool that it keeps until it returns:
 *
 *     if (heft__background_begin(ctx, &r->reader, read_ahead, r)) ...
 *     r->quit = true (under a lock of yours, and wake it)
 *     heft__background_join(&r->reader)
 *
 * The structure is in the caller's memory, zeroed before its first use, and must not move until
 * it is joined. Who begins the work holds a reference on ctx until then. The work may itself call
 * heft__parallel and begin other work. */
typedef struct heft__background {
    void (*fn)(void *user); /* NULL: not begun, or joined */
    void *user;
    pthread_mutex_t lock; /* guards done */
    pthread_cond_t ended;
    bool done;
    pid_t process; /* in which it runs */
    struct heft__background *next;
} heft__background;

/* Call fn(user) at once on a thread of the pool, an idle one or a new one. False if no thread can be
 * created. */
bool heft__background_begin(heft_ctx *ctx, heft__background *work, void (*fn)(void *user),
                            void *user);
/* Returns when fn has returned; at once if the work was not begun, is joined already, or belongs to
 * the parent of this process. */
void heft__background_join(heft__background *work);

bool heft__on_pool_thread(void); /* whether this thread belongs to a pool, of any context */
/* How many threads the pool has created in this process, ended ones included. */
size_t heft__threads_created(heft_ctx *ctx);

/* Begin a thread outside the pool. Use heft__background_begin for new work. False if none can be
 * created. */
bool heft__thread_begin(pthread_t *thread, void *(*work)(void *), void *user);
#define HEFT__THREAD_BYTES                                                                         \
    ((size_t)264 << 10) /* of address space for each thread, of the pool too */

#endif
