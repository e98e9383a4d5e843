/* bench_load.c - one case of loading, initializing or saving in a separate process.
 *
 *   bench_load load MODE DTYPE PATH    load, every byte in memory; MODE auto map copy shared
 *   bench_load dequantize PATH         quantized weights made plain, in memory
 *   bench_load into PATH               into an existing float32 model with values
 *   bench_load init CONFIG             random values in float32
 *   bench_load save PATH DST BYTES     a mapped model in shards of at most BYTES
 *   bench_load place S BYTES PATH      plan by strategy S with BYTES for cpu, and load
 *   bench_load pass S BYTES PATH       the same; times one pass over all units
 *   bench_load coldpass S BYTES PATH   after the files were pushed out of the page cache
 *   bench_load memcpy BYTES            two threads copy into fresh huge pages: a limit
 *   bench_load read HOW PATH           raw read of a file: buffered, direct
 *   bench_load warm BYTES              touch memory and free it, so that the host has backed it
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

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Processor time of all threads. */
static double processor_now(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
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
static double processor_before;

/* Bytes that went to or came from disks, of /proc/self/io. */
static unsigned long long disk_bytes(const char *key)
{
    return memory_of("/proc/self/io", key) / 1024;
}

/* A line as soon as it is ready, then what takes the kernel a walk through all page tables. */
static void report(double seconds, unsigned long long bytes, unsigned long long heap_peak)
{
    const double cpu = processor_now() - processor_before;
    puts("ready");
    fflush(stdout);
    printf("{\"seconds\": %.6f, \"cpu\": %.6f, \"bytes\": %llu, \"heap_peak\": %llu, \"peak_rss\": "
           "%llu, "
           "\"anon\": %llu, \"private\": %llu, \"pss\": %llu, \"read\": %llu, \"written\": %llu}\n",
           seconds, cpu, bytes, heap_peak, memory_of("/proc/self/status", "VmHWM:"),
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
        report(0, 0, 0);
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
    double started = seconds_now();
    if (open_and_load(ctx, path, &options, &model, &err) != HEFT_OK) {
        return fail(&err);
    }
    double seconds = seconds_now() - started;
    uint64_t peak;
    heft_ctx_memory(ctx, NULL, &peak);
    report(seconds, heft_model_bytes(model), peak);
    hold();
    heft_model_free(model);
    return 0;
}

static int run_dequantize(heft_ctx *ctx, const char *path)
{
    const heft_source_options how = HEFT_OPTIONS(heft_source_options, .dequantize = true);
    const heft_load_options options = HEFT_OPTIONS(heft_load_options, .mode = HEFT_LOAD_COPY);
    heft_error err = {0};
    heft_source *source = NULL;
    heft_model *model = NULL;
    processor_before = processor_now();
    double started = seconds_now();
    heft_status status = heft_source_open(ctx, path, &how, &source, &err);
    if (status == HEFT_OK) {
        status = heft_model_load(source, &options, &model, NULL, &err);
    }
    double seconds = seconds_now() - started;
    uint64_t peak;
    heft_ctx_memory(ctx, NULL, &peak);
    if (status == HEFT_OK) {
        report(seconds, heft_model_bytes(model), peak);
        hold();
    }
    heft_model_free(model);
    heft_source_close(source);
    return status == HEFT_OK ? 0 : fail(&err);
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
    double started = seconds_now();
    const heft_load_sharded_options strict =
        HEFT_OPTIONS(heft_load_sharded_options, .strict = true);
    if (heft_model_load_sharded(model, path, &strict, NULL, &err) != HEFT_OK) {
        return fail(&err);
    }
    report(seconds_now() - started, heft_model_bytes(model), 0);
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
    double started = seconds_now();
    if (heft_model_init(model, &init, &err) != HEFT_OK) {
        return fail(&err);
    }
    report(seconds_now() - started, heft_model_bytes(model), 0);
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
    double started = seconds_now();
    if (heft_model_save(model, dst, &save, NULL, &err) != HEFT_OK) {
        return fail(&err);
    }
    report(seconds_now() - started, heft_model_bytes(model), 0);
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
    double one, two, started = seconds_now();
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
        report(seconds_now() - started, pass ? (unsigned long long)placed : heft_model_bytes(model),
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

static uint8_t *huge_pages(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        exit(9);
    }
    (void)madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

static int run_memcpy(size_t bytes)
{
    uint8_t *from = huge_pages(bytes), *to = huge_pages(bytes);
    pthread_t threads[THREADS];
    struct share shares[THREADS];
    memset(from, 1, bytes);
    processor_before = processor_now();
    double started = seconds_now();
    for (size_t i = 0; i < THREADS; i++) {
        size_t part = bytes / THREADS;
        shares[i] = (struct share){to + i * part, from + i * part, part};
        pthread_create(&threads[i], NULL, copy_share, &shares[i]);
    }
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    report(seconds_now() - started, bytes, 0);
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
    double started = seconds_now();
    for (size_t i = 0; i < READERS; i++) {
        readings[i] = (struct reading){fd, to, bytes, i * PIECE, READERS * PIECE};
        pthread_create(&threads[i], NULL, read_share, &readings[i]);
    }
    for (size_t i = 0; i < READERS; i++) {
        pthread_join(threads[i], NULL);
    }
    report(seconds_now() - started, bytes, 0);
    return 0;
}

int main(int count, char **words)
{
    const char *what = count > 1 ? words[1] : "";
    heft_ctx *ctx = heft_ctx_new(NULL);
    int code = 2;
    if (strcmp(what, "load") == 0 && count == 5) {
        code = run_load(ctx, words[2], words[3], words[4]);
    } else if (strcmp(what, "dequantize") == 0 && count == 3) {
        code = run_dequantize(ctx, words[2]);
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
    } else if (strcmp(what, "memcpy") == 0 && count == 3) {
        code = run_memcpy((size_t)strtoull(words[2], NULL, 10));
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
