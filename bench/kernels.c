/* kernels.c - the speed of src/kernel on one thread, beside what the core and the memory can do.
 *
 *   kernels [ISA ...]     default: every instruction set that this CPU supports
 *
 * Prints tables: products of a 5632 x 2048 matrix by the number of tokens (GB/s of weights for one token, else
 * Gflop/s), attention of one token and of a prompt, nanoseconds per element of the rest. Times are the thread's
 * processor time, the least of several runs, so that other processes disturb little; they still share caches
 * and memory. Weights rotate over 256 MiB, so that they come from memory. */
#include "kernel/kernel.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define ROWS 5632
#define COLUMNS 2048
#define ROOM ((size_t)256 << 20)

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void *memory(size_t bytes)
{
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        perror("kernels");
        exit(1);
    }
    madvise(data, bytes, MADV_HUGEPAGE);
    return data;
}

static float *random_floats(size_t count)
{
    float *x = memory(count * sizeof *x);
    uint32_t state = 1;
    for (size_t i = 0; i < count; i++) {
        state = state * 1664525U + 1013904223U;
        x[i] = (float)(int32_t)state * 0x1p-31F;
    }
    return x;
}

static void *as_dtype(const float *x, size_t count, heft_dtype dtype)
{
    void *data = memory(count * heft_dtype_bits(dtype) / 8);
    heft__kernels_best()->narrow(data, dtype, x, count);
    return data;
}

/* ---- what is possible ---------------------------------------------------------------------------- */
#if defined(__x86_64__)
#include <immintrin.h>
/* Fused multiply-adds without memory: Gflop/s. */
__attribute__((target("avx2,fma"))) static double peak_flops(void)
{
    __m256 sums[12], x = _mm256_set1_ps(1e-9F), y = _mm256_set1_ps(0.999F);
    double best = 1e9;
    for (int i = 0; i < 12; i++) {
        sums[i] = _mm256_set1_ps((float)i);
    }
    for (int run = 0; run < 10; run++) {
        const double begin = now();
        for (int i = 0; i < 1000000; i++) {
            for (int j = 0; j < 12; j++) {
                sums[j] = _mm256_fmadd_ps(sums[j], y, x);
            }
            __asm__ volatile("" : : "x"(sums[0]));
        }
        const double seconds = now() - begin;
        best = seconds < best ? seconds : best;
    }
    for (int i = 1; i < 12; i++) {
        sums[0] = _mm256_add_ps(sums[0], sums[i]);
    }
    __asm__ volatile("" : : "x"(sums[0]));
    return 12e6 * 16 / best * 1e-9;
}
#else
static double peak_flops(void)
{
    return 0;
}
#endif

/* The least time of reading ROOM bytes by vectors: GB/s. */
static double peak_memory(const void *data)
{
    typedef uint64_t lanes __attribute__((vector_size(32), aligned(16)));
    double best = 1e9;
    for (int run = 0; run < 10; run++) {
        const lanes *p = data;
        lanes sums[4] = {{0}};
        const double begin = now();
        for (size_t i = 0; i < ROOM / sizeof *p; i += 4) {
            for (size_t j = 0; j < 4; j++) {
                sums[j] += p[i + j];
            }
        }
        const double seconds = now() - begin;
        sums[0] += sums[1] + sums[2] + sums[3];
        __asm__ volatile("" : : "r"(sums[0][0] + sums[0][1]) : "memory");
        best = seconds < best ? seconds : best;
    }
    return (double)ROOM / best * 1e-9;
}

/* ---- products ------------------------------------------------------------------------------------ */
static const size_t tokens[] = {1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 512};

static double time_product(const heft__kernels *k, const void *weights,
                           const heft__compact *compact, heft_dtype dtype, bool turned,
                           size_t count, const float *x, float *y)
{
    const size_t bytes = (size_t)ROWS * COLUMNS * heft_dtype_bits(dtype) / 8;
    heft__matrix w = {.dtype = dtype,
                      .rows = ROWS,
                      .columns = COLUMNS,
                      .stride = turned ? ROWS : COLUMNS,
                      .turned = turned,
                      .compact = compact};
    heft__operand operand = {count, COLUMNS, dtype, false, turned, NULL};
    const size_t operand_bytes = (k->operand_bytes(count, &w, false) + 63) / 64 * 64;
    operand.data = aligned_alloc(64, operand_bytes);
    void *scratch = aligned_alloc(64, (k->product_scratch + 63) / 64 * 64);
    double best = 1e9;
    for (size_t run = 0; run < (count < 64 ? 24 : 5); run++) {
        w.data = (const char *)weights + run % (ROOM / bytes) * bytes;
        w.compact_row = run % (ROOM / bytes) * ROWS;
        const double begin = now();
        for (size_t piece = 0; piece < k->operand_pieces(&operand); piece++) {
            k->operand_fill(&operand, x, COLUMNS, piece);
        }
        k->product(y, ROWS, &operand, &w, NULL, 0, ROWS, scratch);
        const double seconds = now() - begin;
        best = seconds < best ? seconds : best;
    }
    free(operand.data);
    free(scratch);
    return count == 1 ? (double)bytes / best * 1e-9
                      : 2.0 * ROWS * COLUMNS * (double)count / best * 1e-9;
}

static void print_products(const heft__kernels *k, const void *weights,
                           const heft__compact *compact, heft_dtype dtype, bool turned,
                           const float *x, float *y)
{
    printf("%-12s %-9s %-7s", k->isa, heft_dtype_name(dtype),
           turned    ? "turned"
           : compact ? "compact"
                     : "");
    for (size_t t = 0; t < COUNT(tokens); t++) {
        printf(" %6.1f", time_product(k, weights, compact, dtype, turned, tokens[t], x, y));
        fflush(stdout);
    }
    printf("\n");
}

/* The same weights in 12 bits each; rates are those of 16. */
static void compact_products(const heft__kernels *k, void *weights, const float *x, float *y)
{
    const size_t rows = ROOM / 2 / COLUMNS;
    uint32_t *first = aligned_alloc(64, (rows + 64) * sizeof *first);
    uint16_t *room = aligned_alloc(64, COLUMNS * sizeof *room);
    struct heft__compact_codes codes;
    if (k->compact_survey(weights, rows, COLUMNS, &codes, first)) {
        uint32_t *exceptions = aligned_alloc(64, ((size_t)first[rows] + 64) / 16 * 64);
        k->compact_rows(weights, rows, COLUMNS, &codes, first, exceptions, room);
        heft__compact compact = {weights, first, exceptions, rows, COLUMNS, {0}};
        k->compact_table(&codes, compact.high);
        print_products(k, weights, &compact, HEFT_DTYPE_BF16, false, x, y);
        free(exceptions);
    }
    free(first);
    free(room);
}

static void products(const heft__kernels *k, const float *source)
{
    static const heft_dtype dtypes[] = {HEFT_DTYPE_F32, HEFT_DTYPE_BF16, HEFT_DTYPE_F16};
    float *y = memory((size_t)ROWS * 512 * sizeof *y);
    const float *x = source;
    for (size_t d = 0; d < COUNT(dtypes); d++) {
        const size_t count = ROOM / (heft_dtype_bits(dtypes[d]) / 8);
        void *weights = memory(ROOM);
        for (size_t done = 0; done < count; done += ROOM / 4) {
            const size_t some = count - done < ROOM / 4 ? count - done : ROOM / 4;
            k->narrow((char *)weights + done * heft_dtype_bits(dtypes[d]) / 8, dtypes[d], source,
                      some);
        }
        for (int turned = 0; turned < 2; turned++) {
            print_products(k, weights, NULL, dtypes[d], turned != 0, x, y);
        }
        if (dtypes[d] == HEFT_DTYPE_BF16) {
            compact_products(k, weights, x, y);
        }
        munmap(weights, ROOM);
    }
    munmap(y, (size_t)ROWS * 512 * sizeof *y);
}

/* ---- attention ----------------------------------------------------------------------------------- */
static const struct {
    const char *name;
    size_t heads, kv_heads, width, value_width, queries, keys;
} attentions[] = {
    {"decode 32/4 64, 1024",      32, 4,  64,  64,  1,    1024},
    {"decode 32/4 64, 4096",      32, 4,  64,  64,  1,    4096},
    {"decode 32/8 128, 1024",     32, 8,  128, 128, 1,    1024},
    {"decode 32/8 128, 4096",     32, 8,  128, 128, 1,    4096},
    {"decode 32/32 128, 4096",    32, 32, 128, 128, 1,    4096},
    {"decode 16/1 576/512, 4096", 16, 1,  576, 512, 1,    4096},
    {"prompt 32/4 64, 128",       32, 4,  64,  64,  128,  128 },
    {"prompt 32/4 64, 2048",      32, 4,  64,  64,  2048, 2048},
    {"prompt 12/12 64, 512",      12, 12, 64,  64,  512,  512 },
};

#define PAGE ((size_t)64) /* keys, as in a sequence's cache */

static void attention(const heft__kernels *k, const float *source, const void *cache, size_t i)
{
    const size_t heads = attentions[i].heads, kv_heads = attentions[i].kv_heads;
    const size_t width = attentions[i].width, value_width = attentions[i].value_width;
    const size_t queries = attentions[i].queries, keys = attentions[i].keys;
    int32_t at[4096];
    for (size_t j = 0; j < keys; j++) {
        at[j] = (int32_t)j;
    }
    float *out = memory(queries * heads * value_width * sizeof *out);
    heft__attention a = {.heads = heads, .kv_heads = kv_heads, .key_width = width};
    a.value_width = value_width, a.scale = 0.1F, a.causal = true;
    heft__queries q = {source, out, heads * width, heads * value_width, queries, NULL};
    q.at = at + keys - queries;
    heft__key_page pages[4096 / PAGE];
    const size_t page_keys = keys < PAGE ? keys : PAGE;
    for (size_t j = 0; j < keys; j += page_keys) {
        const uint16_t *page = (const uint16_t *)cache + j * kv_heads * (width + value_width);
        pages[j / page_keys] = (heft__key_page){page, page + page_keys * kv_heads * width, at + j};
    }
    heft__keys c = {.pages = pages, .page_keys = page_keys, .dtype = HEFT_DTYPE_BF16};
    c.count = keys, c.key_stride = width, c.value_stride = value_width;
    c.key_head = page_keys * width, c.value_head = page_keys * value_width;
    void *scratch = aligned_alloc(64, (k->attend_scratch(&a, keys) + 63) / 64 * 64);
    double best = 1e9;
    for (int run = 0; run < (queries > 1 ? 3 : 15); run++) {
        const double begin = now();
        for (size_t head = 0; head < kv_heads; head++) {
            k->attend(&a, &q, &c, head, 0, queries, scratch);
        }
        const double seconds = now() - begin;
        best = seconds < best ? seconds : best;
    }
    const double seen = queries == 1 ? (double)keys : (double)keys * (double)(queries + 1) / 2;
    printf("%-12s %-26s %9.3f ms %7.1f GB/s of the cache %7.1f Gflop/s\n", k->isa,
           attentions[i].name, best * 1e3,
           (double)(kv_heads * keys * (width + value_width) * 2) / best * 1e-9,
           2.0 * (double)(heads * (width + value_width)) * seen / best * 1e-9);
    free(scratch);
    munmap(out, queries * heads * value_width * sizeof *out);
}

/* ---- elements ------------------------------------------------------------------------------------ */
#define LENGTH ((size_t)2048)

static const char *const element_names[] = {"rms_norm", "layer_norm", "silu gate", "gelu",
                                            "softmax",  "rotate",     "add",       "narrow bf16"};

static void element(const heft__kernels *k, size_t which, float *x, const float *w)
{
    switch (which) {
    case 0:
        k->rms_norm(x, x, w, 0, 1e-5F, LENGTH);
        break;
    case 1:
        k->layer_norm(x, x, w, w, 1e-5F, LENGTH);
        break;
    case 2:
        k->gate(HEFT__ACT_SILU, x, w, LENGTH);
        break;
    case 3:
        k->act(HEFT__ACT_GELU, x, LENGTH);
        break;
    case 4:
        k->softmax(x, LENGTH);
        break;
    case 5:
        k->rotate(x, w, w, LENGTH / 2, false);
        break;
    case 6:
        k->add(x, w, LENGTH);
        break;
    default:
        k->narrow(x, HEFT_DTYPE_BF16, w, LENGTH);
        break;
    }
}

static void elements(const heft__kernels *k, const float *source)
{
    float x[LENGTH];
    printf("%-12s ns per element:", k->isa);
    for (size_t i = 0; i < COUNT(element_names); i++) {
        double best = 1e9;
        for (int run = 0; run < 30; run++) {
            double seconds = 0;
            for (int repeat = 0; repeat < 10; repeat++) {
                memcpy(x, source, sizeof x);
                const double begin = now();
                element(k, i, x, source + LENGTH);
                seconds += now() - begin;
            }
            best = seconds < best ? seconds : best;
        }
        printf(" %s %.2f,", element_names[i], best / 10 / (double)LENGTH * 1e9);
    }
    printf("\n");
}

static bool is_wanted(const char *isa, int count, char **names)
{
    for (int i = 1; i < count; i++) {
        if (strcmp(names[i], isa) == 0) {
            return true;
        }
    }
    return count < 2;
}

int main(int argc, char **argv)
{
    const float *source = random_floats(ROOM / 4);
    printf("one core: %.1f Gflop/s float32; memory: %.1f GB/s\n", peak_flops(),
           peak_memory(source));
    printf("%-30s", "products, 5632 x 2048, tokens:");
    for (size_t t = 0; t < COUNT(tokens); t++) {
        printf(" %6zu", tokens[t]);
    }
    printf("\n");
    for (size_t i = 0; heft__kernels_at(i); i++) {
        if (is_wanted(heft__kernels_at(i)->isa, argc, argv)) {
            products(heft__kernels_at(i), source);
        }
    }
    void *cache = as_dtype(source, ROOM / 4, HEFT_DTYPE_BF16);
    for (size_t i = 0; heft__kernels_at(i); i++) {
        for (size_t j = 0; j < COUNT(attentions); j++) {
            if (is_wanted(heft__kernels_at(i)->isa, argc, argv)) {
                attention(heft__kernels_at(i), source, cache, j);
            }
        }
    }
    for (size_t i = 0; heft__kernels_at(i); i++) {
        if (is_wanted(heft__kernels_at(i)->isa, argc, argv)) {
            elements(heft__kernels_at(i), source);
        }
    }
    return 0;
}
