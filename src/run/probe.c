/* probe.c - how fast products and attention are on this machine.
 *
 * A buffer is used as a weight of the model's dtype, [rows][2048], in pieces of 16 MB: larger than caches as a
 * whole, so that the time of one token is that of memory, and the time of 256 that of computing. Each knot of
 * tally.c gets a fixed time, and the median of its pieces counts: a thread that had to wait for a CPU does not.
 * What one thread computes alone is measured so, in pieces of 256 KB; and in the orientations that the model has.
 * The least product, and a job of all threads that does nothing, tell what each takes beside its weights.
 * Attention is measured with keys and values in the buffer, of the model's widths and numbers of heads.
 * Not done here: reading files (probe_files.c). */
#include "run/predict.h"

#include <stdlib.h>
#include <time.h>

#define KNOT_SECONDS 0.01
#define LONE_SECONDS 0.004
#define ATTEND_SECONDS 0.008
#define SAMPLES_LEAST 3
#define LATE 4 /* times of a knot, after which fewer are enough */
#define SAMPLES 256
#define PASSES_MOST 16 /* over the buffer */
#define PIECE_BYTES ((size_t)16 << 20)
#define COLUMNS ((size_t)2048)
#define ITEMS_PER_THREAD ((size_t)8)
#define LONE_BYTES ((size_t)256 << 10)
#define ATTEND_KEYS ((size_t)1024)
#define ATTEND_PAGES (ATTEND_KEYS / HEFT__BLOCK_KEYS) /* at most */
#define ATTEND_QUERIES ((size_t)64)                   /* of several */

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
    size_t rows_most;      /* of a piece */
    heft__compact compact; /* the buffer as one: any bytes are good ones */
    uint32_t *first;       /* [row_count + 1] zeros: it has no exceptions */
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
    const size_t rows = probe->w.rows, first = item * probe->chunk, left = rows - first;
    void *lane = heft__pass_lane_take(p);
    (void)err;
    p->kernels->product(probe->y, rows, &probe->operand, &probe->w, NULL, first,
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
                                     .turned = w->turned,
                                     .data = probe->packed};
    heft__pass_parallel(probe->p, kernels->operand_pieces(&probe->operand), fill_item, probe);
    probe->chunk = ((w->rows + items - 1) / items + unit - 1) / unit * unit;
    heft__pass_parallel(probe->p, (w->rows + probe->chunk - 1) / probe->chunk, product_item, probe);
    return heft__probe_clock() - started;
}

/* Piece i of the buffer as a weight: [rows][2048] of at most `most` bytes, or turned, [2048][rows], or compact. */
static heft__matrix piece_of(const uint8_t *memory, size_t bytes, size_t most, heft_dtype dtype,
                             unsigned form, size_t i)
{
    const size_t row = COLUMNS * heft_dtype_bits(dtype) / 8;
    const size_t stored = form & HEFT__FORM_COMPACT ? row / 4 * 3 : row;
    const size_t rows = (bytes < most ? bytes : most) / row, pieces = bytes / stored / rows;
    const bool turned = form & HEFT__FORM_TURNED;
    return (heft__matrix){.data = memory + i % pieces * rows * stored,
                          .dtype = dtype,
                          .rows = rows,
                          .columns = COLUMNS,
                          .stride = turned ? rows : COLUMNS,
                          .turned = turned,
                          .compact_row = i % pieces * rows};
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *each, size_t count)
{
    qsort(each, count, sizeof *each, compare);
    return each[count / 2];
}

/* Seconds per byte of weights that are multiplied with so many tokens: the median of some pieces. */
static double weigh(struct probe *probe, const uint8_t *memory, size_t bytes, heft_dtype dtype,
                    unsigned form, size_t tokens)
{
    const bool lone = form & HEFT__FORM_LONE;
    const heft__compact *compact = form & HEFT__FORM_COMPACT ? &probe->compact : NULL;
    const size_t items = lone ? 1 : probe->p->lane_count * ITEMS_PER_THREAD;
    const size_t element = heft_dtype_bits(dtype) / 8, most = lone ? LONE_BYTES : PIECE_BYTES;
    const double enough = lone ? LONE_SECONDS : KNOT_SECONDS;
    double each[SAMPLES], seconds = 0, done = 0;
    size_t count = 0;
    heft__matrix w = piece_of(memory, bytes, most, dtype, form, 0);
    w.compact = compact;
    if (tokens == heft__knots[0]) {
        (void)run_piece(probe, &w, tokens, items); /* threads are created, caches filled */
    }
    while (count == 0 || (count < SAMPLES_LEAST && seconds < LATE * enough) ||
           (count < SAMPLES && seconds < enough && done < PASSES_MOST * (double)bytes)) {
        w = piece_of(memory, bytes, most, dtype, form, count + 1);
        w.compact = compact;
        const double taken = run_piece(probe, &w, tokens, items);
        const double piece = (double)(w.rows * w.columns * element);
        each[count++] = taken / piece;
        seconds += taken;
        done += piece;
    }
    return median(each, count);
}

/* The forms that the model's products have: the weights' orientations or compact ones, split and by one thread. */
static void weigh_forms(struct probe *probe, const uint8_t *memory, size_t bytes, heft_dtype dtype,
                        const heft__tally *tally, heft__rates *rates)
{
    bool has[HEFT__FORMS] = {false};
    size_t split = HEFT__FORMS;
    for (size_t f = 0; f < HEFT__FORMS; f++) {
        for (size_t i = 0; i < HEFT__KNOTS; i++) {
            has[f & ~(size_t)HEFT__FORM_LONE] |= tally->weight_at[f][i] > 0;
        }
    }
    for (size_t f = 0; f < HEFT__FORMS; f += HEFT__FORM_LONE + 1) {
        split = has[f] && split == HEFT__FORMS ? f : split;
    }
    if (split == HEFT__FORMS) { /* it has no products */
        has[split = 0] = true;
    }
    for (unsigned f = 0; f < HEFT__FORMS; f++) {
        for (size_t i = 0; i < HEFT__KNOTS && has[f & ~(unsigned)HEFT__FORM_LONE]; i++) {
            rates->weight[f][i] = weigh(probe, memory, bytes, dtype, f, heft__knots[i]);
        }
    }
    rates->memory = (split == HEFT__FORM_COMPACT ? 0.75 : 1) / rates->weight[split][0];
    rates->operations =
        2 * (double)heft__knots[HEFT__KNOTS - 1] /
        ((double)(heft_dtype_bits(dtype) / 8) * rates->weight[split][HEFT__KNOTS - 1]);
}

/* ---- what each job takes ------------------------------------------------------------------------------ */
static heft_status nothing_item(void *user, size_t item, heft_error *err)
{
    (void)user;
    (void)item;
    (void)err;
    return HEFT_OK;
}

static void weigh_jobs(struct probe *probe, const uint8_t *memory, size_t bytes, heft_dtype dtype,
                       heft__rates *rates)
{
    const size_t items = probe->p->lane_count * ITEMS_PER_THREAD, few = 64;
    double each[SAMPLES];
    heft__matrix w = piece_of(memory, bytes, LONE_BYTES, dtype, 0, 0);
    w.rows = probe->p->kernels->product_rows;
    w.columns = w.stride = few;
    for (size_t i = 0; i < SAMPLES; i++) {
        each[i] = run_piece(probe, &w, 1, 1);
    }
    rates->product = median(each, SAMPLES);
    for (size_t i = 0; i < SAMPLES && probe->p->lane_count > 1; i++) {
        const double started = heft__probe_clock();
        heft__pass_parallel(probe->p, items, nothing_item, NULL);
        each[i] = heft__probe_clock() - started;
    }
    rates->split = probe->p->lane_count > 1 ? median(each, SAMPLES) : 0;
}

/* ---- attention ---------------------------------------------------------------------------------------- */
struct attending {
    heft__pass *p;
    const heft__attention *a;
    heft__queries queries;
    heft__keys keys;
};

static heft_status attend_item(void *user, size_t item, heft_error *err)
{
    const struct attending *work = user;
    heft__pass *p = work->p;
    void *lane = heft__pass_lane_take(p);
    (void)err;
    p->kernels->attend(work->a, &work->queries, &work->keys, item, 0, work->queries.count, lane);
    heft__pass_lane_give(p, lane);
    return HEFT_OK;
}

/* Operations a second of so many queries, those of the last keys. The buffer holds some caches of as many keys,
 * which are used in turn: caches of other layers come between two uses of one. */
static double attend_rate(struct attending *work, uint8_t *memory, size_t bytes, size_t page_bytes,
                          heft__key_page pages[ATTEND_PAGES], const int32_t *at, size_t queries)
{
    const heft__attention *a = work->a;
    const size_t value =
        a->kv_heads * HEFT__BLOCK_KEYS * a->key_width * (heft_dtype_bits(work->keys.dtype) / 8);
    const size_t keys = work->keys.count, count_pages = keys / HEFT__BLOCK_KEYS;
    const size_t caches = bytes / (count_pages * page_bytes);
    const double seen = (double)keys - (double)(queries - 1) / 2;
    const double flops =
        2 * (double)queries * seen * (double)a->heads * (double)(a->key_width + a->value_width);
    double each[SAMPLES], seconds = 0;
    size_t count = 0;
    work->queries.count = queries;
    work->queries.at = at + keys - queries;
    for (; count < SAMPLES && (count < 2 || seconds < ATTEND_SECONDS); count++) {
        for (size_t i = 0; i < count_pages; i++) {
            uint8_t *page = memory + (count % caches * count_pages + i) * page_bytes;
            pages[i] = (heft__key_page){page, page + value, at + i * HEFT__BLOCK_KEYS};
        }
        const double started = heft__probe_clock();
        heft__pass_parallel(work->p, a->kv_heads, attend_item, work);
        each[count] = heft__probe_clock() - started;
        seconds += each[count];
    }
    return flops / median(each, count);
}

static heft_status weigh_attention(struct probe *probe, uint8_t *memory, size_t bytes,
                                   const heft__tally *tally, heft__rates *rates, heft_error *err)
{
    heft__attention a = tally->attention;
    heft__pass *p = probe->p;
    int32_t at[ATTEND_KEYS];
    heft__key_page pages[ATTEND_PAGES];
    a.window = 0;
    a.causal = true;
    const size_t query = a.heads * a.key_width, out = a.heads * a.value_width;
    const size_t page = a.kv_heads * HEFT__BLOCK_KEYS * (a.key_width + a.value_width) *
                        (heft_dtype_bits(p->cache_dtype) / 8);
    if (page == 0 || bytes < page) {
        return HEFT_OK; /* no attention, or no room for its keys */
    }
    const size_t most = bytes / page < ATTEND_PAGES ? bytes / page : ATTEND_PAGES;
    const size_t numbers = ATTEND_QUERIES * (query + out);
    float *q = heft__alloc_zero(p->ctx, numbers, sizeof *q);
    if (!q || !heft__pass_need_lanes(p, p->kernels->attend_scratch(&a, ATTEND_KEYS))) {
        heft__free(p->ctx, q, numbers * sizeof *q);
        return heft__fail_nomem(err, numbers * sizeof *q);
    }
    for (size_t i = 0; i < ATTEND_KEYS; i++) {
        at[i] = (int32_t)i;
    }
    struct attending work = {
        .p = p,
        .a = &a,
        .queries = {.q = q,
                    .out = q + ATTEND_QUERIES * query,
                    .q_stride = query,
                    .out_stride = out               },
        .keys = { .pages = pages,
                    .page_keys = HEFT__BLOCK_KEYS,
                    .dtype = p->cache_dtype,
                    .key_head = HEFT__BLOCK_KEYS * a.key_width,
                    .value_head = HEFT__BLOCK_KEYS * a.value_width,
                    .key_stride = a.key_width,
                    .value_stride = a.value_width,
                    .count = most * HEFT__BLOCK_KEYS}
    };
    rates->attend[0] = attend_rate(&work, memory, bytes, page, pages, at, 1);
    rates->attend[1] = attend_rate(&work, memory, bytes, page, pages, at, ATTEND_QUERIES);
    heft__free(p->ctx, q, numbers * sizeof *q);
    return HEFT_OK;
}

/* ---- all of it ------------------------------------------------------------------------------------------ */
static heft_status make(struct probe *probe, const uint8_t *memory, size_t bytes, heft_dtype dtype,
                        heft_error *err)
{
    const size_t most = heft__knots[HEFT__KNOTS - 1];
    const heft__kernels *kernels = probe->p->kernels;
    const heft__matrix w = {.dtype = dtype, .columns = COLUMNS},
                       turned = {.dtype = dtype, .columns = COLUMNS, .turned = true};
    probe->packed_bytes = heft__larger(kernels->operand_bytes(most, &w, probe->p->exact),
                                       kernels->operand_bytes(most, &turned, probe->p->exact)) +
                          64;
    probe->rows_most = PIECE_BYTES / (COLUMNS * heft_dtype_bits(dtype) / 8);
    const size_t results = most * probe->rows_most * sizeof(float);
    const size_t rows = bytes / (COLUMNS / 2 * 3);
    probe->first = heft__alloc_zero(probe->p->ctx, rows + 1, sizeof *probe->first);
    probe->compact = (heft__compact){.rows = memory,
                                     .first = probe->first,
                                     .exceptions = probe->first,
                                     .row_count = rows,
                                     .columns = COLUMNS};
    memset(probe->compact.high, 0x3c, sizeof probe->compact.high); /* no subnormal numbers */
    probe->x = heft__alloc(probe->p->ctx, most * COLUMNS * sizeof(float));
    probe->y = heft__alloc(probe->p->ctx, results);
    probe->packed = heft__alloc(probe->p->ctx, probe->packed_bytes);
    if (!probe->x || !probe->y || !probe->packed || !probe->first) {
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
    heft_ctx *ctx = probe->p->ctx;
    heft__free(ctx, probe->x, most * COLUMNS * sizeof(float));
    heft__free(ctx, probe->y, most * probe->rows_most * sizeof(float));
    heft__free(ctx, packed, probe->packed_bytes);
    heft__free(ctx, probe->first, (probe->compact.row_count + 1) * sizeof *probe->first);
}

heft_status heft__probe_products(heft__pass *p, const heft__probe_weights *weights, uint8_t *memory,
                                 size_t bytes, heft__rates *rates, heft_error *err)
{
    const heft_dtype own = p->model->dtype;
    const bool computes = own == HEFT_DTYPE_F32 || own == HEFT_DTYPE_BF16 || own == HEFT_DTYPE_F16;
    const heft_dtype dtype = computes ? own : HEFT_DTYPE_F32;
    const heft__tally tally = p->tally;
    struct probe probe = {.p = p};
    p->status = HEFT_OK;
    p->dry = false;
    heft_status status = make(&probe, weights->data, weights->bytes, dtype, err);
    void *packed = probe.packed;
    if (status == HEFT_OK && !heft__pass_need_lanes(p, p->kernels->product_scratch)) {
        status = heft__fail_nomem(err, p->kernels->product_scratch);
    }
    if (status == HEFT_OK) {
        probe.packed = (uint8_t *)packed + (64 - (uintptr_t)packed % 64) % 64;
        weigh_forms(&probe, weights->data, weights->bytes, dtype, &tally, rates);
        weigh_jobs(&probe, weights->data, weights->bytes, dtype, rates);
        status = weigh_attention(&probe, memory, bytes, &tally, rates, err);
    }
    drop(&probe, packed);
    return status;
}
