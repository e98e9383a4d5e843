/* probe.c - how fast products are on this machine, on all threads.
 *
 * A buffer is used as a weight of the model's dtype, [rows][2048], in pieces of 16 MB: larger than caches as a
 * whole, so that the time of one token is that of memory, and the time of 256 that of computing. Each knot of
 * tally.c gets a fixed time, and the median of its pieces counts: a thread that had to wait for a CPU does not.
 * Attention is taken for a product with float32 keys that are in a cache: its scores and its sums are two such.
 * Not done here: reading files (probe_files.c). */
#include "run/predict.h"

#include <stdlib.h>
#include <time.h>

#define KNOT_SECONDS 0.015
#define ATTEND_SECONDS 0.005
#define SAMPLES_LEAST 3
#define LATE 4 /* times of a knot, after which fewer are enough */
#define SAMPLES 256
#define PASSES_MOST 16 /* over the buffer */
#define PIECE_BYTES ((size_t)16 << 20)
#define COLUMNS ((size_t)2048)
#define ITEMS_PER_THREAD ((size_t)8)
#define ATTEND_KEYS ((size_t)512)
#define ATTEND_WIDTH ((size_t)128)
#define ATTEND_ROWS ((size_t)64) /* at most */

double heft__probe_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

struct probe {
    heft__pass *p;
    heft__matrix w; /* a piece of the buffer */
    heft__operand operand;
    float *x, *y; /* [tokens][columns], [tokens][rows] */
    void *packed; /* [packed_bytes] of the operand */
    size_t tokens, chunk, packed_bytes;
    size_t rows_most; /* of a piece */
    bool whole;       /* each item does all rows, into rows of its own */
};

static heft_status fill_item(void *user, size_t item, heft_error *err)
{
    struct probe *probe = user;
    (void)err;
    probe->p->kernels->operand_fill(&probe->operand, probe->x, probe->w.columns, item);
    return HEFT_OK;
}

static heft_status product_item(void *user, size_t item, heft_error *err)
{
    struct probe *probe = user;
    heft__pass *p = probe->p;
    const size_t rows = probe->w.rows;
    const size_t first = probe->whole ? 0 : item * probe->chunk;
    const size_t left = rows - first;
    float *y = probe->y + (probe->whole ? item * probe->tokens * rows : 0);
    void *lane = heft__pass_lane_take(p);
    (void)err;
    p->kernels->product(y, rows, &probe->operand, &probe->w, NULL, first,
                        first + (left < probe->chunk ? left : probe->chunk), lane);
    heft__pass_lane_give(p, lane);
    return HEFT_OK;
}

/* One product of `tokens` with a weight: seconds. */
static double run_piece(struct probe *probe, const heft__matrix *w, size_t tokens, size_t items)
{
    const heft__kernels *kernels = probe->p->kernels;
    const size_t unit = kernels->product_rows;
    const double started = heft__probe_clock();
    probe->w = *w;
    probe->tokens = tokens;
    probe->operand = (heft__operand){.tokens = tokens,
                                     .columns = w->columns,
                                     .dtype = w->dtype,
                                     .exact = probe->p->exact,
                                     .data = probe->packed};
    heft__pass_parallel(probe->p, kernels->operand_pieces(&probe->operand), fill_item, probe);
    probe->chunk = probe->whole ? w->rows : (w->rows + items - 1) / items;
    probe->chunk = (probe->chunk + unit - 1) / unit * unit;
    const size_t count = probe->whole ? items : (w->rows + probe->chunk - 1) / probe->chunk;
    heft__pass_parallel(probe->p, count, product_item, probe);
    return heft__probe_clock() - started;
}

static heft__matrix piece_of(const struct probe *probe, uint8_t *memory, size_t bytes,
                             heft_dtype dtype, size_t i)
{
    const size_t row = COLUMNS * heft_dtype_bits(dtype) / 8;
    const size_t pieces = (bytes / row + probe->rows_most - 1) / probe->rows_most;
    const size_t first = i % pieces * probe->rows_most, left = bytes / row - first;
    return (heft__matrix){.data = memory + first * row,
                          .dtype = dtype,
                          .rows = left < probe->rows_most ? left : probe->rows_most,
                          .columns = COLUMNS,
                          .stride = COLUMNS};
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds per byte of weights that are multiplied with so many tokens: the median of some pieces. */
static double weigh(struct probe *probe, uint8_t *memory, size_t bytes, heft_dtype dtype,
                    size_t tokens)
{
    const size_t items = probe->p->lane_count * ITEMS_PER_THREAD;
    const size_t element = heft_dtype_bits(dtype) / 8;
    double each[SAMPLES], seconds = 0, done = 0;
    size_t count = 0;
    heft__matrix w = piece_of(probe, memory, bytes, dtype, 0);
    if (tokens == heft__knots[0]) {
        (void)run_piece(probe, &w, tokens, items); /* threads are created, caches filled */
    }
    while (count == 0 || (count < SAMPLES_LEAST && seconds < LATE * KNOT_SECONDS) ||
           (count < SAMPLES && seconds < KNOT_SECONDS && done < PASSES_MOST * (double)bytes)) {
        w = piece_of(probe, memory, bytes, dtype, count + 1);
        const double taken = run_piece(probe, &w, tokens, items);
        const double piece = (double)(w.rows * w.columns * element);
        each[count++] = taken / piece;
        seconds += taken;
        done += piece;
    }
    qsort(each, count, sizeof *each, compare);
    return each[count / 2];
}

/* Operations a second of attention in which so many rows share the keys of a head. */
static double attend_rate(struct probe *probe, uint8_t *memory, size_t rows)
{
    const heft__matrix w = {.data = memory,
                            .dtype = HEFT_DTYPE_F32,
                            .rows = ATTEND_KEYS,
                            .columns = ATTEND_WIDTH,
                            .stride = ATTEND_WIDTH};
    const size_t items = probe->p->lane_count;
    const double each = 2.0 * (double)(rows * ATTEND_KEYS * ATTEND_WIDTH) * (double)items;
    double seconds = 0, done = 0;
    probe->whole = true;
    (void)run_piece(probe, &w, rows, items);
    while (done == 0 || seconds < ATTEND_SECONDS) {
        seconds += run_piece(probe, &w, rows, items);
        done += each;
        if (done > 1000 * each) {
            break;
        }
    }
    probe->whole = false;
    return seconds > 0 ? done / seconds : 0;
}

/* How many rows are measured for attention: 0 queries have 1. */
static size_t rows_of(uint64_t rows)
{
    return rows < 1 ? 1 : rows > ATTEND_ROWS ? ATTEND_ROWS : (size_t)rows;
}

static heft_status make(struct probe *probe, heft_dtype dtype, heft_error *err)
{
    const size_t most = heft__knots[HEFT__KNOTS - 1];
    const size_t attend = probe->p->lane_count * ATTEND_KEYS; /* rows of results, if that is more */
    const heft__kernels *kernels = probe->p->kernels;
    const heft__matrix w = {.dtype = dtype, .columns = COLUMNS},
                       keys = {.dtype = HEFT_DTYPE_F32, .columns = ATTEND_WIDTH};
    const size_t a = kernels->operand_bytes(most, &w, probe->p->exact),
                 b = kernels->operand_bytes(most, &keys, probe->p->exact);
    probe->packed_bytes = heft__larger(a, b) + 64;
    probe->rows_most = PIECE_BYTES / (COLUMNS * heft_dtype_bits(dtype) / 8);
    const size_t results = most * heft__larger(probe->rows_most, attend) * sizeof(float);
    probe->x = heft__alloc(probe->p->ctx, most * COLUMNS * sizeof(float));
    probe->y = heft__alloc(probe->p->ctx, results);
    probe->packed = heft__alloc(probe->p->ctx, probe->packed_bytes);
    if (!probe->x || !probe->y || !probe->packed) {
        return heft__fail_nomem(err, results);
    }
    for (size_t i = 0; i < most * COLUMNS; i++) {
        probe->x[i] = 0.5F;
    }
    return HEFT_OK;
}

static void drop(struct probe *probe, void *packed)
{
    const size_t most = heft__knots[HEFT__KNOTS - 1];
    const size_t attend = probe->p->lane_count * ATTEND_KEYS;
    heft_ctx *ctx = probe->p->ctx;
    heft__free(ctx, probe->x, most * COLUMNS * sizeof(float));
    heft__free(ctx, probe->y, most * heft__larger(probe->rows_most, attend) * sizeof(float));
    heft__free(ctx, packed, probe->packed_bytes);
}

heft_status heft__probe_products(heft__pass *p, uint8_t *memory, size_t bytes, heft__rates *rates,
                                 heft_error *err)
{
    const heft_dtype own = p->model->dtype;
    const bool computes = own == HEFT_DTYPE_F32 || own == HEFT_DTYPE_BF16 || own == HEFT_DTYPE_F16;
    const heft_dtype dtype = computes ? own : HEFT_DTYPE_F32;
    struct probe probe = {.p = p};
    p->status = HEFT_OK;
    p->dry = false;
    heft_status status = make(&probe, dtype, err);
    void *packed = probe.packed;
    if (status == HEFT_OK && !heft__pass_need_lanes(p, p->kernels->product_scratch)) {
        status = heft__fail_nomem(err, p->kernels->product_scratch);
    }
    if (status == HEFT_OK) {
        probe.packed = (uint8_t *)packed + (64 - (uintptr_t)packed % 64) % 64;
        for (size_t i = 0; i < HEFT__KNOTS; i++) {
            rates->weight[i] = weigh(&probe, memory, bytes, dtype, heft__knots[i]);
        }
        for (size_t i = 0; i < 2; i++) {
            rates->attend[i] = attend_rate(&probe, memory, rows_of(rates->attend_rows[i]));
        }
        rates->memory = 1 / rates->weight[0];
        rates->operations = 2 * (double)heft__knots[HEFT__KNOTS - 1] /
                            ((double)(heft_dtype_bits(dtype) / 8) * rates->weight[HEFT__KNOTS - 1]);
    }
    drop(&probe, packed);
    return status;
}
