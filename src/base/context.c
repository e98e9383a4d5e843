/* context.c - heft_ctx: the allocator and its counters, limits, threads, callbacks.
 *
 * Everything made from a context holds a reference on it, so that a tensor may outlive the caller's
 * own handle. Large blocks come from mmap with huge pages asked for: copying into 4 KiB pages runs
 * at a fifth of the speed. */
#include "base/pool.h"

#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>

struct heft_ctx {
    atomic_size_t refs;
    heft_allocator allocator;
    heft_limits limits;
    unsigned threads;
    size_t staging_bytes;
    heft_progress_fn progress;
    void *progress_user;
    heft_log_fn log;
    void *log_user;
    atomic_ullong live_bytes, peak_bytes;
    heft__pool pool;
};

#define LARGE_BLOCK ((size_t)1 << 20)
#define STAGING_DEFAULT ((size_t)64 << 20)
#define STAGING_LEAST ((size_t)64 << 10)

/* ---- the default allocator ------------------------------------------------------------------- */
static void *default_alloc(void *user, size_t bytes)
{
    (void)user;
    if (bytes < LARGE_BLOCK) {
        return malloc(bytes);
    }
    void *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) {
        return NULL;
    }
    (void)madvise(block, bytes, MADV_HUGEPAGE); /* a wish: without it the block works as well */
    return block;
}

static void default_free(void *user, void *block, size_t bytes)
{
    (void)user;
    if (bytes < LARGE_BLOCK) {
        free(block);
    } else {
        munmap(block, bytes);
    }
}

static void *default_resize(void *user, void *block, size_t old_bytes, size_t new_bytes)
{
    if (old_bytes < LARGE_BLOCK && new_bytes < LARGE_BLOCK) {
        return realloc(block, new_bytes);
    }
    if (old_bytes >= LARGE_BLOCK && new_bytes >= LARGE_BLOCK) {
        void *moved = mremap(block, old_bytes, new_bytes, MREMAP_MAYMOVE);
        return moved == MAP_FAILED ? NULL : moved;
    }
    void *fresh = default_alloc(user, new_bytes);
    if (fresh) {
        memcpy(fresh, block, old_bytes < new_bytes ? old_bytes : new_bytes);
        default_free(user, block, old_bytes);
    }
    return fresh;
}

/* ---- the context ----------------------------------------------------------------------------- */
static void fill_limits(heft_limits *limits)
{
    const heft_limits defaults = {
        .struct_size = sizeof(heft_limits),
        .header_bytes = 100000000,
        .pickle_bytes = (uint64_t)256 << 20,
        .index_bytes = (uint64_t)1 << 30,
        .config_bytes = (uint64_t)16 << 20,
        .tensors = (uint64_t)16 << 20,
        .name_bytes = (uint64_t)64 << 10,
        .shards = 100000,
        .json_depth = 128,
        .pickle_depth = 1000,
        .rank = 64,
        .expanded_bytes = (uint64_t)32 << 20,
        .missing_bytes = (uint64_t)32 << 20,
        .modules = (uint64_t)96 << 10,
        .value_bytes = (uint64_t)24 << 20,
        .small_tensors = 100000,
        .tokenizer_bytes = (uint64_t)128 << 20,
        .chat_bytes = (uint64_t)64 << 20,
    };
#define LIMIT(member) limits->member = limits->member ? limits->member : defaults.member
    LIMIT(header_bytes);
    LIMIT(pickle_bytes);
    LIMIT(index_bytes);
    LIMIT(config_bytes);
    LIMIT(tensors);
    LIMIT(name_bytes);
    LIMIT(shards);
    LIMIT(json_depth);
    LIMIT(pickle_depth);
    LIMIT(rank);
    LIMIT(expanded_bytes);
    LIMIT(missing_bytes);
    LIMIT(modules);
    LIMIT(value_bytes);
    LIMIT(small_tensors);
    LIMIT(tokenizer_bytes);
    LIMIT(chat_bytes);
#undef LIMIT
}

static unsigned usable_processors(void)
{
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return count > 0 ? (unsigned)count : 1;
}

heft_ctx *heft_ctx_new(const heft_ctx_options *options)
{
    const heft_allocator standard = {default_alloc, default_resize, default_free, NULL};
    heft_ctx_options chosen;
    heft_limits limits;
    if (HEFT__TAKE_OPTIONS(&chosen, options, NULL) != HEFT_OK ||
        HEFT__TAKE_OPTIONS(&limits, chosen.limits, NULL) != HEFT_OK) {
        return NULL;
    }
    heft_allocator allocator = chosen.allocator ? *chosen.allocator : standard;
    heft_ctx *ctx = allocator.alloc(allocator.user, sizeof *ctx);
    if (!ctx) {
        return NULL;
    }
    *ctx = (heft_ctx){
        .allocator = allocator,
        .limits = limits,
        .threads = chosen.threads ? chosen.threads : usable_processors(),
        .staging_bytes = chosen.staging_bytes ? chosen.staging_bytes : STAGING_DEFAULT,
        .progress = chosen.progress,
        .progress_user = chosen.progress_user,
        .log = chosen.log,
        .log_user = chosen.log_user,
    };
    if (ctx->staging_bytes < STAGING_LEAST) {
        ctx->staging_bytes = STAGING_LEAST;
    }
    atomic_init(&ctx->refs, 1);
    fill_limits(&ctx->limits);
    return ctx;
}

heft_ctx *heft__ctx_ref(heft_ctx *ctx)
{
    atomic_fetch_add_explicit(&ctx->refs, 1, memory_order_relaxed);
    return ctx;
}

void heft_ctx_free(heft_ctx *ctx)
{
    if (ctx && atomic_fetch_sub_explicit(&ctx->refs, 1, memory_order_acq_rel) == 1) {
        heft_allocator allocator = ctx->allocator;
        heft__pool_fini(&ctx->pool);
        allocator.free(allocator.user, ctx, sizeof *ctx);
    }
}

void heft_ctx_memory(const heft_ctx *ctx, uint64_t *live_bytes, uint64_t *peak_bytes)
{
    if (live_bytes) {
        *live_bytes = atomic_load(&ctx->live_bytes);
    }
    if (peak_bytes) {
        *peak_bytes = atomic_load(&ctx->peak_bytes);
    }
}

const heft_limits *heft__limits(const heft_ctx *ctx)
{
    return &ctx->limits;
}

unsigned heft__threads(const heft_ctx *ctx)
{
    return ctx->threads;
}

heft__pool *heft__ctx_pool(heft_ctx *ctx)
{
    return &ctx->pool;
}

size_t heft__staging_bytes(const heft_ctx *ctx)
{
    return ctx->staging_bytes;
}

void heft__log(const heft_ctx *ctx, const char *format, ...)
{
    if (ctx->log && !heft__on_pool_thread()) {
        char line[1024];
        va_list args;
        va_start(args, format);
        vsnprintf(line, sizeof line, format, args);
        va_end(args);
        ctx->log(ctx->log_user, line);
    }
}

heft_status heft__tell_progress(const heft_ctx *ctx, const char *what, uint64_t done,
                                uint64_t total, heft_error *err)
{
    heft_progress progress = {.what = what, .done_bytes = done, .total_bytes = total};
    if (ctx->progress && !heft__on_pool_thread() && !ctx->progress(ctx->progress_user, &progress)) {
        return heft__fail(err, HEFT_CANCELLED, "cancelled while %s", what);
    }
    return HEFT_OK;
}

/* ---- counted memory -------------------------------------------------------------------------- */
static void count_more(heft_ctx *ctx, size_t bytes)
{
    unsigned long long live = atomic_fetch_add(&ctx->live_bytes, bytes) + bytes;
    unsigned long long peak = atomic_load_explicit(&ctx->peak_bytes, memory_order_relaxed);
    while (live > peak && !atomic_compare_exchange_weak(&ctx->peak_bytes, &peak, live)) {
    }
}

void *heft__alloc(heft_ctx *ctx, size_t bytes)
{
    void *block = ctx->allocator.alloc(ctx->allocator.user, bytes ? bytes : 1);
    if (block) {
        count_more(ctx, bytes);
    }
    return block;
}

void *heft__alloc_zero(heft_ctx *ctx, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        return NULL;
    }
    void *block = heft__alloc(ctx, bytes);
    if (block) {
        memset(block, 0, bytes);
    }
    return block;
}

void *heft__resize(heft_ctx *ctx, void *block, size_t old_bytes, size_t new_bytes)
{
    if (!block) {
        return heft__alloc(ctx, new_bytes);
    }
    if (!ctx->allocator.resize) {
        void *fresh = heft__alloc(ctx, new_bytes);
        if (fresh) {
            memcpy(fresh, block, old_bytes < new_bytes ? old_bytes : new_bytes);
            heft__free(ctx, block, old_bytes);
        }
        return fresh;
    }
    void *moved = ctx->allocator.resize(ctx->allocator.user, block, old_bytes ? old_bytes : 1,
                                        new_bytes ? new_bytes : 1);
    if (moved) {
        count_more(ctx, new_bytes);
        atomic_fetch_sub(&ctx->live_bytes, old_bytes);
    }
    return moved;
}

void heft__free(heft_ctx *ctx, void *block, size_t bytes)
{
    if (block) {
        ctx->allocator.free(ctx->allocator.user, block, bytes ? bytes : 1);
        atomic_fetch_sub(&ctx->live_bytes, bytes);
    }
}
