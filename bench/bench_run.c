/* bench_run.c - one case of running a model, or a limit of the machine, in a separate process.
 *
 *   bench_run generate PATH PROMPT STEPS REPEATS    a prompt of random ids, then single tokens, each REPEATS times;
 *                                                   then the same with compact weights
 *   bench_run encode PATH SEQUENCES TOKENS REPEATS  passes of an encoder over a batch of random ids
 *   bench_run memory                                all threads read memory: GB/s
 *   bench_run products DTYPE                        all threads multiply a panel of 128 tokens: Gflop/s
 *   bench_run read PATH BYTES                       raw read of a file, around the page cache: GB/s
 *
 * The model is copied into memory, and the time of that is not counted. Prints "ready" and one line of JSON:
 * seconds of every prompt ("prefill"), token ("step") or batch ("batch"), or the rate of a limit. */
#include "kernel/kernel.h"

#include <heft/heft.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define THREADS_MOST 64
#define LIMIT_RUNS 10
#define ROOM                                                                                       \
    ((size_t)512 << 20) /* of the weights that products rotate over, and of what a thread reads */
#define ROWS 5632
#define COLUMNS 2048
#define TOKENS 128
#define READERS 4
#define PIECE ((size_t)16 << 20)

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void *huge_pages(size_t bytes)
{
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        perror("bench_run");
        exit(9);
    }
    (void)madvise(data, bytes, MADV_HUGEPAGE);
    return data;
}

/* Of /proc/self/status, in bytes; 0 if it is not there. */
static unsigned long long memory_of(const char *key)
{
    char line[256];
    unsigned long long kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
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

/* ---- running ------------------------------------------------------------------------------------- */
struct bench {
    heft_ctx *ctx;
    heft_model *model;
    heft_session *session;
    const char *output; /* that passes compute */
    uint32_t random;
};

static int fail(const heft_error *err)
{
    heft_error_print(err, stderr);
    return heft_status_exit_code(err->status);
}

static heft_status begin(struct bench *b, const char *path, const char *output, heft_error *err)
{
    const heft_load_options options = HEFT_OPTIONS(heft_load_options, .mode = HEFT_LOAD_COPY);
    heft_source *source = NULL;
    b->ctx = heft_ctx_new(NULL);
    heft_status status = heft_source_open(b->ctx, path, NULL, &source, err);
    if (status == HEFT_OK) {
        status = heft_model_load(source, &options, &b->model, NULL, err);
    }
    if (status == HEFT_OK) {
        status = heft_session_new(b->model, NULL, &b->session, err);
    }
    heft_source_close(source);
    b->output = output;
    return status;
}

static void end(struct bench *b)
{
    heft_session_free(b->session);
    heft_model_free(b->model);
    heft_ctx_free(b->ctx);
}

static void random_ids(struct bench *b, int32_t *ids, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        b->random = b->random * 1664525U + 1013904223U;
        ids[i] = (int32_t)(5 + (b->random >> 8) % 3000);
    }
}

static void put_seconds(const char *name, const double *seconds, size_t count)
{
    printf("\"%s\": [", name);
    for (size_t i = 0; i < count; i++) {
        printf("%s%.6f", i ? ", " : "", seconds[i]);
    }
    printf("], ");
}

static void put_end(const struct bench *b)
{
    printf("\"isa\": \"%s\", \"peak_rss\": %llu}\n", heft_session_isa(b->session),
           memory_of("VmHWM:"));
}

/* A sequence of its own: a prompt, then single tokens. */
static heft_status generate_once(struct bench *b, int32_t *ids, size_t prompt, size_t steps,
                                 double *prefill, double *step, heft_error *err)
{
    heft_sequence *sequence = NULL;
    random_ids(b, ids, prompt + steps);
    heft_status status = heft_sequence_new(b->session, prompt + steps, 0, &sequence, err);
    for (size_t i = 0; i <= steps && status == HEFT_OK; i++) {
        const heft_input input =
            HEFT_OPTIONS(heft_input, .sequence = sequence, .ids = i ? ids + prompt + i - 1 : ids,
                         .count = i ? 1 : prompt, .logits = HEFT_LOGITS_LAST);
        const double started = now();
        status = heft_session_run(b->session, &input, 1, &b->output, 1, err);
        *(i ? step++ : prefill) = now() - started;
    }
    heft_sequence_free(sequence);
    return status;
}

static int run_generate(const char *path, size_t prompt, size_t steps, size_t repeats)
{
    static const char *const names[2][2] = {
        {"prefill",         "step"        },
        {"compact_prefill", "compact_step"}
    };
    struct bench b = {.random = 1};
    heft_error err = {0};
    double compacting = 0;
    int32_t *ids = calloc(prompt + steps, sizeof *ids);
    double *prefill = calloc(2 * repeats, sizeof *prefill),
           *step = calloc(2 * repeats * steps, sizeof *step);
    heft_status status = ids && prefill && step ? begin(&b, path, "logits", &err) : HEFT_NOMEM;
    for (size_t i = 0; i < 2 * repeats && status == HEFT_OK; i++) {
        if (i == repeats) {
            const double started = now();
            status = heft_session_compact(b.session, b.model, &err);
            compacting = now() - started;
        }
        if (status == HEFT_OK) {
            status = generate_once(&b, ids, prompt, steps, prefill + i, step + i * steps, &err);
        }
    }
    if (status == HEFT_OK) {
        printf("ready\n{");
        for (size_t i = 0; i < 2; i++) {
            put_seconds(names[i][0], prefill + i * repeats, repeats);
            put_seconds(names[i][1], step + i * repeats * steps, repeats * steps);
        }
        put_seconds("compacting", &compacting, 1);
        put_end(&b);
    }
    end(&b);
    free(ids);
    free(prefill);
    free(step);
    return status == HEFT_OK ? 0 : fail(&err);
}

static int run_encode(const char *path, size_t sequences, size_t tokens, size_t repeats)
{
    struct bench b = {.random = 1};
    heft_error err = {0};
    int32_t *ids = calloc(sequences * tokens, sizeof *ids);
    heft_input *inputs = calloc(sequences, sizeof *inputs);
    double *seconds = calloc(repeats, sizeof *seconds);
    heft_status status =
        ids && inputs && seconds ? begin(&b, path, "last_hidden_state", &err) : HEFT_NOMEM;
    for (size_t i = 0; i < repeats && status == HEFT_OK; i++) {
        random_ids(&b, ids, sequences * tokens);
        for (size_t s = 0; s < sequences; s++) {
            inputs[s] = HEFT_OPTIONS(heft_input, .ids = ids + s * tokens, .count = tokens,
                                     .logits = HEFT_LOGITS_NONE);
        }
        const double started = now();
        status = heft_session_run(b.session, inputs, sequences, &b.output, 1, &err);
        seconds[i] = now() - started;
    }
    if (status == HEFT_OK) {
        printf("ready\n{");
        put_seconds("batch", seconds, repeats);
        put_end(&b);
    }
    end(&b);
    free(ids);
    free(inputs);
    free(seconds);
    return status == HEFT_OK ? 0 : fail(&err);
}

/* ---- limits -------------------------------------------------------------------------------------- */
/* Work that all threads do at once, several times. */
struct shared_work {
    void (*once)(struct shared_work *w, size_t thread, size_t run);
    size_t threads;
    pthread_barrier_t barrier;
    double best;                       /* seconds of the fastest run */
    const uint8_t *room[THREADS_MOST]; /* memory: what a thread reads */
    const heft__kernels *kernels;      /* products */
    heft__operand operand;
    heft__matrix matrix;
    size_t bytes; /* of a matrix */
    float *y;
    void *scratch[THREADS_MOST];
};

struct worker {
    struct shared_work *work;
    size_t number;
    pthread_t thread;
};

static void *work_on(void *user)
{
    const struct worker *worker = user;
    struct shared_work *w = worker->work;
    for (size_t run = 0; run < LIMIT_RUNS; run++) {
        pthread_barrier_wait(&w->barrier);
        const double started = now();
        w->once(w, worker->number, run);
        pthread_barrier_wait(&w->barrier);
        const double seconds = now() - started;
        if (worker->number == 0 && (run == 0 || seconds < w->best)) {
            w->best = seconds;
        }
    }
    return NULL;
}

static void work_together(struct shared_work *w)
{
    struct worker workers[THREADS_MOST];
    pthread_barrier_init(&w->barrier, NULL, (unsigned)w->threads);
    for (size_t i = 0; i < w->threads; i++) {
        workers[i] = (struct worker){.work = w, .number = i};
        if (pthread_create(&workers[i].thread, NULL, work_on, &workers[i]) != 0) {
            perror("bench_run");
            exit(1);
        }
    }
    for (size_t i = 0; i < w->threads; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    pthread_barrier_destroy(&w->barrier);
}

static size_t thread_count(void)
{
    const long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count < 1 ? 1 : count > THREADS_MOST ? THREADS_MOST : (size_t)count;
}

static void read_memory(struct shared_work *w, size_t thread, size_t run)
{
    typedef uint64_t lanes __attribute__((vector_size(32), aligned(16)));
    const lanes *p = (const void *)w->room[thread];
    lanes sums[4] = {{0}};
    (void)run;
    for (size_t i = 0; i < ROOM / sizeof *p; i += 4) {
        for (size_t j = 0; j < 4; j++) {
            sums[j] += p[i + j];
        }
    }
    sums[0] += sums[1] + sums[2] + sums[3];
    __asm__ volatile("" : : "r"(sums[0][0] + sums[0][1]) : "memory");
}

static int run_memory(void)
{
    struct shared_work w = {.once = read_memory, .threads = thread_count()};
    for (size_t i = 0; i < w.threads; i++) {
        void *room = huge_pages(ROOM);
        memset(room, 1, ROOM);
        w.room[i] = room;
    }
    work_together(&w);
    printf("ready\n{\"threads\": %zu, \"rate\": %.2f}\n", w.threads,
           (double)(ROOM * w.threads) / w.best * 1e-9);
    return 0;
}

/* Rows of the same product, split as a pass splits them. */
static void multiply(struct shared_work *w, size_t thread, size_t run)
{
    const size_t each = (ROWS / w->threads + 47) / 48 * 48;
    const size_t first = thread * each < ROWS ? thread * each : ROWS;
    const size_t last = first + each < ROWS && thread + 1 < w->threads ? first + each : ROWS;
    heft__matrix matrix = w->matrix;
    matrix.data = (const uint8_t *)w->matrix.data + run % (ROOM / w->bytes) * w->bytes;
    w->kernels->product(w->y, ROWS, &w->operand, &matrix, NULL, first, last, w->scratch[thread]);
}

static int run_products(heft_dtype dtype)
{
    const size_t element = heft_dtype_bits(dtype) / 8;
    const heft__kernels *k = heft__kernels_best();
    struct shared_work w = {
        .once = multiply,
        .threads = thread_count(),
        .kernels = k,
        .operand = {TOKENS, COLUMNS, dtype, false, false, NULL},
        .bytes = ROWS * COLUMNS * element
    };
    float *source = huge_pages(ROOM / element * sizeof *source);
    void *weights = huge_pages(ROOM);
    for (size_t i = 0; i < ROOM / element; i++) {
        source[i] = (float)(int32_t)((uint32_t)i * 2654435761U) * 0x1p-31F;
    }
    k->narrow(weights, dtype, source, ROOM / element);
    w.matrix = (heft__matrix){
        .data = weights, .dtype = dtype, .rows = ROWS, .columns = COLUMNS, .stride = COLUMNS};
    w.y = huge_pages((size_t)ROWS * TOKENS * sizeof *w.y);
    w.operand.data = huge_pages(k->operand_bytes(TOKENS, &w.matrix, false));
    for (size_t piece = 0; piece < k->operand_pieces(&w.operand); piece++) {
        k->operand_fill(&w.operand, source, COLUMNS, piece);
    }
    for (size_t i = 0; i < w.threads; i++) {
        w.scratch[i] = huge_pages(k->product_scratch + 64);
    }
    work_together(&w);
    printf("ready\n{\"threads\": %zu, \"isa\": \"%s\", \"rate\": %.2f}\n", w.threads, k->isa,
           2.0 * ROWS * COLUMNS * TOKENS / w.best * 1e-9);
    return 0;
}

struct reader {
    int fd;
    size_t bytes, first;
    uint8_t *piece;
    pthread_t thread;
};

static void *read_share(void *user)
{
    const struct reader *r = user;
    for (size_t at = r->first; at < r->bytes; at += READERS * PIECE) {
        if (pread(r->fd, r->piece, PIECE, (off_t)at) <= 0) {
            perror("bench_run");
            exit(3);
        }
    }
    return NULL;
}

/* The memory that is read into has been touched before. */
static int run_read(const char *path, size_t bytes)
{
    struct stat facts;
    struct reader readers[READERS];
    const int fd = open(path, O_RDONLY | O_DIRECT);
    if (fd < 0 || fstat(fd, &facts) != 0) {
        perror(path);
        return 3;
    }
    bytes = bytes && bytes < (size_t)facts.st_size ? bytes : (size_t)facts.st_size;
    bytes = bytes > PIECE ? bytes / PIECE * PIECE : bytes;
    for (size_t i = 0; i < READERS; i++) {
        readers[i] = (struct reader){fd, bytes, i * PIECE, huge_pages(PIECE), 0};
        memset(readers[i].piece, 1, PIECE);
    }
    const double started = now();
    for (size_t i = 0; i < READERS; i++) {
        pthread_create(&readers[i].thread, NULL, read_share, &readers[i]);
    }
    for (size_t i = 0; i < READERS; i++) {
        pthread_join(readers[i].thread, NULL);
    }
    printf("ready\n{\"bytes\": %zu, \"rate\": %.4f}\n", bytes,
           (double)bytes / (now() - started) * 1e-9);
    close(fd);
    return 0;
}

static size_t number(const char *word)
{
    return (size_t)strtoull(word, NULL, 10);
}

int main(int count, char **words)
{
    const char *what = count > 1 ? words[1] : "";
    heft_dtype dtype = HEFT_DTYPE_F32;
    heft_error err = {0};
    if (strcmp(what, "generate") == 0 && count == 6) {
        return run_generate(words[2], number(words[3]), number(words[4]), number(words[5]));
    }
    if (strcmp(what, "encode") == 0 && count == 6) {
        return run_encode(words[2], number(words[3]), number(words[4]), number(words[5]));
    }
    if (strcmp(what, "memory") == 0 && count == 2) {
        return run_memory();
    }
    if (strcmp(what, "products") == 0 && count == 3) {
        return heft_dtype_parse(words[2], &dtype, &err) == HEFT_OK ? run_products(dtype)
                                                                   : fail(&err);
    }
    if (strcmp(what, "read") == 0 && count == 4) {
        return run_read(words[2], number(words[3]));
    }
    fputs("bench_run: see the comment at the top of bench_run.c for usage\n", stderr);
    return 2;
}
