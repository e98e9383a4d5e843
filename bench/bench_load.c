/* bench_load.c - one case of loading, initializing or saving in a separate process.
 *
 *   bench_load load MODE DTYPE PATH    load, every byte in memory; MODE auto map copy shared
 *   bench_load dequantize PATH [touched]   quantized weights made plain, in memory
 *   bench_load into PATH               into an existing float32 model with values
 *   bench_load init CONFIG             random values in float32
 *   bench_load save PATH DST BYTES     a mapped model in shards of at most BYTES
 *   bench_load place S BYTES PATH      plan by strategy S with BYTES for cpu, and load
 *   bench_load pass S BYTES PATH       the same; times one pass over all units
 *   bench_load coldpass S BYTES PATH   after the files were pushed out of the page cache
 *   bench_load memcpy BYTES [touched]  two threads copy into huge pages: a limit
 *   bench_load read HOW PATH           raw read of a file: buffered, direct
 *   bench_load warm BYTES              touch memory and free it, so that the host has backed it
 *
 * Memory for results is fresh: its pages are cleared when they are first written. `touched` instead uses that
 * of an earlier run in the same process, and prints the fastest of three runs.
 *
 * Prints "ready" and one line of JSON: seconds of the call, memory. With HEFT_BENCH_HOLD it then keeps
 * the model in memory until its input ends, and prints the memory again for each line of input. */
#include <heft/heft.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RUNS 3 /* in memory that is touched; the fastest counts */

struct seconds {
    double wall, cpu; /* cpu: of all threads */
};

static struct seconds seconds_now(void)
{
    struct timespec now;
    struct rusage used;
    clock_gettime(CLOCK_MONOTONIC, &now);
    getrusage(RUSAGE_SELF, &used);
    return (struct seconds){(double)now.tv_sec + (double)now.tv_nsec * 1e-9,
                            (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                                (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6};
}

static struct seconds seconds_since(struct seconds started)
{
    const struct seconds now = seconds_now();
    return (struct seconds){now.wall - started.wall, now.cpu - started.cpu};
}

static void keep_faster(struct seconds *best, const struct seconds *took, bool first)
{
    *best = first || took->wall < best->wall ? *took : *best;
}

static uint8_t *huge_pages(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        exit(9);
    }
    (void)madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

/* Of /proc/self/..., in bytes; 0 if it is not there. */
static unsigned long long memory_of(const char *path, const char *key)
{
    char line[256];
    unsigned long long kib = 0;
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, strlen(key)) == 0) {
            kib = strtoull(line + strlen(key), NULL, 10);
        }
    }
    if (file) {
        fclose(file);
    }
    return kib * 1024;
}

static unsigned long long read_before, written_before; /* the case is begun with */

/* Bytes that went to or came from disks, of /proc/self/io. */
static unsigned long long disk_bytes(const char *key)
{
    return memory_of("/proc/self/io", key) / 1024;
}

/* A line as soon as it is ready, then what takes the kernel a walk through all page tables. */
static void report(struct seconds took, unsigned long long bytes, unsigned long long heap_peak)
{
    puts("ready");
    fflush(stdout);
    printf("{\"seconds\": %.6f, \"cpu\": %.6f, \"bytes\": %llu, \"heap_peak\": %llu, \"peak_rss\": "
           "%llu, "
           "\"anon\": %llu, \"private\": %llu, \"pss\": %llu, \"read\": %llu, \"written\": %llu}\n",
           took.wall, took.cpu, bytes, heap_peak, memory_of("/proc/self/status", "VmHWM:"),
           memory_of("/proc/self/smaps_rollup", "Anonymous:"),
           memory_of("/proc/self/smaps_rollup", "Private_Dirty:"),
           memory_of("/proc/self/smaps_rollup", "Pss:"), disk_bytes("read_bytes:") - read_before,
           disk_bytes("write_bytes:") - written_before);
    fflush(stdout);
}

/* With others in memory PSS is another: it is asked for when the parent says so. */
static void hold(void)
{
    char line[16];
    while (getenv("HEFT_BENCH_HOLD") && fgets(line, sizeof line, stdin)) {
        report((struct seconds){0}, 0, 0);
    }
}

static int fail(const heft_error *err)
{
    heft_error_print(err, stderr);
    return heft_status_exit_code(err->status);
}

/* ---- heft ------------------------------------------------------------------------------------ */
static heft_status open_and_load(heft_ctx *ctx, const char *path, const heft_load_options *options,
                                 heft_model **model, heft_error *err)
{
    heft_source *source = NULL;
    heft_status status = heft_source_open(ctx, path, NULL, &source, err);
    if (status == HEFT_OK) {
        status = heft_model_load(source, options, model, NULL, err);
    }
    heft_source_close(source);
    return status;
}

static int run_load(heft_ctx *ctx, const char *mode, const char *dtype, const char *path)
{
    static const char *const modes[] = {"auto", "map", "copy", "shared"};
    heft_load_options options = HEFT_OPTIONS(heft_load_options, .touch = true);
    heft_error err = {0};
    heft_model *model = NULL;
    for (size_t i = 0; i < 4; i++) {
        options.mode = strcmp(mode, modes[i]) == 0 ? (heft_load_mode)i : options.mode;
    }
    if (strcmp(dtype, "auto") != 0 && heft_dtype_parse(dtype, &options.dtype, &err) != HEFT_OK) {
        return fail(&err);
    }
    const struct seconds started = seconds_now();
    if (open_and_load(ctx, path, &options, &model, &err) != HEFT_OK) {
        return fail(&err);
    }
    const struct seconds took = seconds_since(started);
    uint64_t peak;
    heft_ctx_memory(ctx, NULL, &peak);
    report(took, heft_model_bytes(model), peak);
    hold();
    heft_model_free(model);
    return 0;
}

/* Large blocks that were freed, for the next who asks for as many bytes. */
#define LARGE_BLOCK ((size_t)1 << 20)
#define BLOCKS_MOST 4096

static struct {
    pthread_mutex_t lock;
    struct block {
        void *start;
        size_t bytes;
    } list[BLOCKS_MOST];
    size_t count;
} kept = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void *kept_alloc(void *user, size_t bytes)
{
    void *found = NULL;
    (void)user;
    if (bytes < LARGE_BLOCK) {
        return malloc(bytes);
    }
    pthread_mutex_lock(&kept.lock);
    for (size_t i = 0; i < kept.count && !found; i++) {
        if (kept.list[i].bytes == bytes) {
            found = kept.list[i].start;
            kept.list[i] = kept.list[--kept.count];
        }
    }
    pthread_mutex_unlock(&kept.lock);
    return found ? found : huge_pages(bytes);
}

static void kept_free(void *user, void *block, size_t bytes)
{
    (void)user;
    if (bytes < LARGE_BLOCK) {
        free(block);
        return;
    }
    pthread_mutex_lock(&kept.lock);
    if (kept.count < BLOCKS_MOST) {
        kept.list[kept.count++] = (struct block){block, bytes};
    }
    pthread_mutex_unlock(&kept.lock);
}

/* One run; the model is the caller's. */
static int dequantize(heft_ctx *ctx, const char *path, heft_model **model, struct seconds *took)
{
    const heft_source_options how = HEFT_OPTIONS(heft_source_options, .dequantize = true);
    const heft_load_options options = HEFT_OPTIONS(heft_load_options, .mode = HEFT_LOAD_COPY);
    heft_error err = {0};
    heft_source *source = NULL;
    const struct seconds started = seconds_now();
    heft_status status = heft_source_open(ctx, path, &how, &source, &err);
    if (status == HEFT_OK) {
        status = heft_model_load(source, &options, model, NULL, &err);
    }
    *took = seconds_since(started);
    heft_source_close(source);
    return status == HEFT_OK ? 0 : fail(&err);
}

static int run_dequantize(heft_ctx *ctx, const char *path, bool touched)
{
    const heft_allocator keeping = {.alloc = kept_alloc, .free = kept_free};
    const heft_ctx_options with = HEFT_OPTIONS(heft_ctx_options, .allocator = &keeping);
    heft_ctx *used = touched ? heft_ctx_new(&with) : ctx;
    struct seconds best = {0}, took = {0};
    heft_model *model = NULL;
    int code = dequantize(used, path, &model, &best);
    for (int i = 0; i < RUNS && touched && code == 0; i++) {
        heft_model_free(model);
        model = NULL;
        code = dequantize(used, path, &model, &took);
        keep_faster(&best, &took, i == 0);
    }
    uint64_t peak;
    heft_ctx_memory(used, NULL, &peak);
    if (code == 0) {
        report(best, heft_model_bytes(model), peak);
        hold();
    }
    heft_model_free(model);
    if (touched) {
        heft_ctx_free(used);
    }
    return code;
}

/* The empty model of a config, in float32. */
static heft_status make_empty(heft_ctx *ctx, const char *path, heft_model **model, heft_error *err)
{
    heft_config *config = NULL;
    heft_status status = heft_config_read(ctx, path, &config, err);
    if (status == HEFT_OK) {
        status = heft_model_new(ctx, config, NULL, HEFT_DTYPE_NONE, model, err);
    }
    heft_config_free(config);
    return status;
}

static int run_into(heft_ctx *ctx, const char *path)
{
    heft_error err = {0};
    heft_model *model = NULL;
    heft_init_options init = HEFT_OPTIONS(heft_init_options, .seed = 1);
    if (make_empty(ctx, path, &model, &err) != HEFT_OK ||
        heft_model_init(model, &init, &err) != HEFT_OK) {
        return fail(&err);
    }
    const struct seconds started = seconds_now();
    const heft_load_sharded_options strict =
        HEFT_OPTIONS(heft_load_sharded_options, .strict = true);
    if (heft_model_load_sharded(model, path, &strict, NULL, &err) != HEFT_OK) {
        return fail(&err);
    }
    report(seconds_since(started), heft_model_bytes(model), 0);
    heft_model_free(model);
    return 0;
}

static int run_init(heft_ctx *ctx, const char *config)
{
    heft_error err = {0};
    heft_model *model = NULL;
    heft_init_options init = HEFT_OPTIONS(heft_init_options, .seed = 1);
    if (make_empty(ctx, config, &model, &err) != HEFT_OK) {
        return fail(&err);
    }
    const struct seconds started = seconds_now();
    if (heft_model_init(model, &init, &err) != HEFT_OK) {
        return fail(&err);
    }
    report(seconds_since(started), heft_model_bytes(model), 0);
    heft_model_free(model);
    return 0;
}

static int run_save(heft_ctx *ctx, const char *path, const char *dst, const char *limit)
{
    heft_error err = {0};
    heft_model *model = NULL;
    heft_save_options save =
        HEFT_OPTIONS(heft_save_options, .max_shard_bytes = strtoull(limit, NULL, 10));
    if (open_and_load(ctx, path, NULL, &model, &err) != HEFT_OK) {
        return fail(&err);
    }
    const struct seconds started = seconds_now();
    if (heft_model_save(model, dst, &save, NULL, &err) != HEFT_OK) {
        return fail(&err);
    }
    report(seconds_since(started), heft_model_bytes(model), 0);
    heft_model_free(model);
    return 0;
}

static int plan_and_load(heft_ctx *ctx, const char *strategy, const char *bytes, const char *path,
                         heft_plan **plan, heft_model **model)
{
    static const char *const names[] = {"auto", "balanced", "balanced_low_0", "sequential", "best"};
    const heft_budget budgets[] = {
        {HEFT_DEVICE_CPU, strtod(bytes, NULL)}
    };
    heft_plan_options wanted =
        HEFT_OPTIONS(heft_plan_options, .budgets = budgets, .budget_count = 1);
    heft_load_options options = HEFT_SIZED(heft_load_options);
    heft_source *source = NULL;
    heft_model *skeleton = NULL;
    heft_error err = {0};
    for (size_t i = 0; i < 5; i++) {
        wanted.strategy = strcmp(strategy, names[i]) == 0 ? (heft_strategy)i : wanted.strategy;
    }
    if (heft_source_open(ctx, path, NULL, &source, &err) != HEFT_OK ||
        heft_model_skeleton(source, NULL, &skeleton, &err) != HEFT_OK ||
        heft_plan_new(skeleton, &wanted, plan, &err) != HEFT_OK) {
        return fail(&err);
    }
    options.plan = *plan;
    if (heft_model_load(source, &options, model, NULL, &err) != HEFT_OK) {
        return fail(&err);
    }
    heft_model_free(skeleton);
    heft_source_close(source);
    return 0;
}

/* Push a checkpoint's files out of the page cache. */
static int make_cold(heft_ctx *ctx, const char *path)
{
    heft_checkpoint *ckpt = NULL;
    heft_error err = {0};
    if (heft_checkpoint_open(ctx, path, NULL, &ckpt, &err) != HEFT_OK) {
        return fail(&err);
    }
    for (size_t i = 0; i < heft_checkpoint_file_count(ckpt); i++) {
        int fd = open(heft_checkpoint_file(ckpt, i)->path, O_RDONLY);
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
    heft_checkpoint_close(ckpt);
    return 0;
}

static int run_place(heft_ctx *ctx, const char *what, const char *strategy, const char *bytes,
                     const char *path)
{
    const bool pass = strcmp(what, "place") != 0;
    heft_plan *plan = NULL;
    heft_model *model = NULL;
    heft_residency *residency = NULL;
    heft_error err = {0};
    double one, two;
    struct seconds started = seconds_now();
    int code = plan_and_load(ctx, strategy, bytes, path, &plan, &model);
    if (code == 0 && pass) {
        const heft_residency_options options = HEFT_OPTIONS(
            heft_residency_options, .budget_bytes = (uint64_t)heft_plan_stream(plan, &one, &two));
        code = strcmp(what, "coldpass") == 0 ? make_cold(ctx, path) : 0;
        read_before = disk_bytes("read_bytes:");
        started = seconds_now();
        if (code == 0 && heft_residency_new(model, &options, &residency, &err) != HEFT_OK) {
            return fail(&err);
        }
        for (size_t i = 0; code == 0 && i < heft_residency_count(residency); i++) {
            heft_lease *lease = NULL;
            if (heft_residency_acquire(residency, &i, 1, &lease, &err) != HEFT_OK) {
                return fail(&err);
            }
            heft_lease_free(lease);
        }
    }
    if (code == 0) {
        double placed = 0;
        heft_budget budget;
        for (size_t i = 0; pass && heft_plan_device(plan, i, &budget, &placed); i++) {
            if (budget.device == HEFT_DEVICE_DISK) {
                break;
            }
        }
        report(seconds_since(started), pass ? (unsigned long long)placed : heft_model_bytes(model),
               0);
    }
    heft_residency_free(residency);
    heft_model_free(model);
    heft_plan_free(plan);
    return code;
}

/* ---- limits ---------------------------------------------------------------------------------- */
#define THREADS 2
#define READERS 4
#define PIECE ((size_t)16 << 20)

struct share {
    uint8_t *to;
    const uint8_t *from;
    size_t bytes;
};

static void *copy_share(void *user)
{
    const struct share *share = user;
    memcpy(share->to, share->from, share->bytes);
    return NULL;
}

static struct seconds copy(uint8_t *to, const uint8_t *from, size_t bytes)
{
    pthread_t threads[THREADS];
    struct share shares[THREADS];
    const struct seconds started = seconds_now();
    for (size_t i = 0; i < THREADS; i++) {
        size_t part = bytes / THREADS;
        shares[i] = (struct share){to + i * part, from + i * part, part};
        pthread_create(&threads[i], NULL, copy_share, &shares[i]);
    }
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    return seconds_since(started);
}

static int run_memcpy(size_t bytes, bool touched)
{
    uint8_t *from = huge_pages(bytes), *to = huge_pages(bytes);
    memset(from, 1, bytes);
    struct seconds best = copy(to, from, bytes);
    for (int i = 0; i < RUNS && touched; i++) {
        const struct seconds took = copy(to, from, bytes);
        keep_faster(&best, &took, i == 0);
    }
    report(best, bytes, 0);
    return 0;
}

struct reading {
    int fd;
    uint8_t *to;
    size_t bytes, first, step;
};

static void *read_share(void *user)
{
    const struct reading *r = user;
    for (size_t at = r->first; at < r->bytes; at += r->step) {
        size_t length = r->bytes - at < PIECE ? r->bytes - at : PIECE;
        length = (length + 4095) / 4096 * 4096;
        if (pread(r->fd, r->to + at, length, (off_t)at) <= 0) {
            exit(3);
        }
    }
    return NULL;
}

static int run_read(const char *how, const char *path)
{
    struct stat facts;
    int flags = strcmp(how, "direct") == 0 ? O_DIRECT : 0, fd = open(path, O_RDONLY | flags);
    if (fd < 0 || fstat(fd, &facts) != 0) {
        perror(path);
        return 3;
    }
    size_t bytes = (size_t)facts.st_size;
    uint8_t *to = huge_pages(bytes + PIECE);
    pthread_t threads[READERS];
    struct reading readings[READERS];
    const struct seconds started = seconds_now();
    for (size_t i = 0; i < READERS; i++) {
        readings[i] = (struct reading){fd, to, bytes, i * PIECE, READERS * PIECE};
        pthread_create(&threads[i], NULL, read_share, &readings[i]);
    }
    for (size_t i = 0; i < READERS; i++) {
        pthread_join(threads[i], NULL);
    }
    report(seconds_since(started), bytes, 0);
    return 0;
}

int main(int count, char **words)
{
    const char *what = count > 1 ? words[1] : "";
    const bool touched = count == 4 && strcmp(words[3], "touched") == 0;
    heft_ctx *ctx = heft_ctx_new(NULL);
    int code = 2;
    if (strcmp(what, "load") == 0 && count == 5) {
        code = run_load(ctx, words[2], words[3], words[4]);
    } else if (strcmp(what, "dequantize") == 0 && (count == 3 || touched)) {
        code = run_dequantize(ctx, words[2], touched);
    } else if (strcmp(what, "into") == 0 && count == 3) {
        code = run_into(ctx, words[2]);
    } else if (strcmp(what, "init") == 0 && count == 3) {
        code = run_init(ctx, words[2]);
    } else if (strcmp(what, "save") == 0 && count == 5) {
        code = run_save(ctx, words[2], words[3], words[4]);
    } else if ((strcmp(what, "place") == 0 || strcmp(what, "pass") == 0 ||
                strcmp(what, "coldpass") == 0) &&
               count == 5) {
        code = run_place(ctx, what, words[2], words[3], words[4]);
    } else if (strcmp(what, "memcpy") == 0 && (count == 3 || touched)) {
        code = run_memcpy((size_t)strtoull(words[2], NULL, 10), touched);
    } else if (strcmp(what, "read") == 0 && count == 4) {
        code = run_read(words[2], words[3]);
    } else if (strcmp(what, "warm") == 0 && count == 3) {
        size_t bytes = (size_t)strtoull(words[2], NULL, 10);
        memset(huge_pages(bytes), 1, bytes);
        code = 0;
    } else {
        fputs("bench_load: see the comment at the top of bench_load.c for usage\n", stderr);
    }
    heft_ctx_free(ctx);
    return code;
}
