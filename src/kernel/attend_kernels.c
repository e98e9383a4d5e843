/* attend_kernels.c - attention over cached keys and values.
 *
 * A row is a query of one head; rows of a group of heads, which read the same keys, are side by side:
 * row = query * group + head. A few rows are attend_few_kernels.c's. Rows are the lanes of panels (tile.h), so keys and values are read as they
 * lie and widened once for BLOCK_ROWS rows:
 *
 *   for each BLOCK_KEYS keys that some row sees
 *     scores[key][row]  = keys * q
 *     scale, cap, slopes, bias; -infinity where a row does not see a key
 *     top[row], sum[row]: the largest score so far, the sum of exp(score - top); out is scaled to a new top
 *     out[element][row] += values^T * exp(scores - top)
 *
 * Blocks of keys begin at multiples of BLOCK_KEYS of a page, and a block that a row does not see adds nothing to it, not
 * even a rounding, so a row's result does not depend on the rows beside it. */
#include "kernel/attend.h"
#include "kernel/tile.h"

#include <math.h>

#define BLOCK_ROWS ((size_t)64)
#define PAD 16 /* floats between rows of a tile, so that they share no cache sets */

struct rows {
    const heft__attention *a;
    const heft__queries *queries;
    const heft__keys *keys;
    size_t head, group;        /* of keys; query heads per head of keys */
    size_t first, count;       /* rows of this block */
    int32_t nearest, farthest; /* positions of its queries: smallest, largest */
    int32_t at[BLOCK_ROWS] __attribute__((aligned(64)));
    float slopes[BLOCK_ROWS];
    float top[BLOCK_ROWS], sum[BLOCK_ROWS];
    float *q;                       /* by panel: [key_width][width] */
    float *out;                     /* by panel: [value_width][width] */
    float *scores;                  /* of a panel: [BLOCK_KEYS][width] */
    float *wide_keys, *wide_values; /* [BLOCK_KEYS][their width + PAD] */
};

/* Keys of a block. */
struct span {
    struct block block;
    struct sight sight;
    struct tile_weights keys, values;
    bool finite; /* the values */
};

size_t HEFT__KERNEL(attend_scratch)(const heft__attention *a, size_t keys)
{
    (void)keys;
    const size_t widths = a->key_width + a->value_width;
    return sizeof(struct rows) +
           (BLOCK_ROWS * (widths + BLOCK_KEYS) + BLOCK_KEYS * (widths + 2 * PAD)) * sizeof(float);
}

static size_t width_of(const struct rows *r, size_t row)
{
    const size_t left = r->count - row;
    return left >= TILE_TOKENS ? TILE_TOKENS : (left + LANES - 1) / LANES * LANES;
}

/* ---- rows ---------------------------------------------------------------------------------------- */
static size_t query_head(const struct rows *r, size_t row)
{
    return r->head * r->group + (r->first + row) % r->group;
}

static void fill_queries(struct rows *r)
{
    const size_t key_width = r->a->key_width;
    memset(r->q, 0, BLOCK_ROWS * key_width * sizeof *r->q);
    for (size_t row = 0; row < r->count; row++) {
        const size_t panel = row / TILE_TOKENS * TILE_TOKENS, width = width_of(r, panel);
        const size_t query = (r->first + row) / r->group;
        const float *q =
            r->queries->q + query * r->queries->q_stride + query_head(r, row) * key_width;
        float *to = r->q + panel * key_width + (row - panel);
        for (size_t e = 0; e < key_width; e++) {
            to[e * width] = q[e];
        }
    }
}

static void begin_rows(struct rows *r)
{
    r->nearest = INT32_MAX, r->farthest = 0;
    for (size_t row = 0; row < BLOCK_ROWS; row++) {
        const bool used = row < r->count;
        const size_t head = used ? query_head(r, row) : 0;
        const float sink = used && r->a->sinks ? r->a->sinks[head] : -INFINITY;
        r->at[row] = used ? r->queries->at[(r->first + row) / r->group] : r->at[0];
        r->slopes[row] = used && r->a->slopes ? r->a->slopes[head] : 0;
        r->top[row] = sink;
        r->sum[row] = sink == -INFINITY ? 0.0F : 1.0F;
        r->nearest = r->at[row] < r->nearest ? r->at[row] : r->nearest;
        r->farthest = r->at[row] > r->farthest ? r->at[row] : r->farthest;
    }
    memset(r->out, 0, BLOCK_ROWS * r->a->value_width * sizeof *r->out);
    fill_queries(r);
}

static void write_rows(const struct rows *r)
{
    const size_t value_width = r->a->value_width;
    for (size_t row = 0; row < r->count; row++) {
        const size_t panel = row / TILE_TOKENS * TILE_TOKENS, width = width_of(r, panel);
        const size_t query = (r->first + row) / r->group;
        const float *from = r->out + panel * value_width + (row - panel);
        float *to =
            r->queries->out + query * r->queries->out_stride + query_head(r, row) * value_width;
        const float scale = r->sum[row] == 0 ? 0.0F : 1.0F / r->sum[row];
        for (size_t e = 0; e < value_width; e++) {
            to[e] = from[e * width] * scale;
        }
    }
}

/* ---- keys and values as float32 ------------------------------------------------------------------ */
INLINE void widen_tile(float *to, size_t pitch, const void *from, size_t at, size_t stride,
                       heft_dtype dtype, size_t count, size_t width)
{
    for (size_t j = 0; j < count; j++, at += stride, to += pitch) {
        for (size_t e = 0; e < width; e += LANES) {
            store_some(to + e, load_some_as(from, at + e, dtype, width - e), width - e);
        }
    }
}

static struct tile_weights widened(float *to, const void *from, size_t at, size_t stride,
                                   heft_dtype dtype, size_t count, size_t width)
{
    const size_t pitch = width + PAD;
    if (dtype == HEFT_DTYPE_F32) {
        return (struct tile_weights){.w = (const float *)from + at, .row_step = stride, .step = 1};
    }
    if (dtype == HEFT_DTYPE_BF16) {
        widen_tile(to, pitch, from, at, stride, HEFT_DTYPE_BF16, count, width);
    } else {
        widen_tile(to, pitch, from, at, stride, HEFT_DTYPE_F16, count, width);
    }
    return (struct tile_weights){.w = to, .row_step = pitch, .step = 1};
}

static void widen_span(const struct rows *r, struct span *span)
{
    const heft__keys *k = r->keys;
    const struct block *block = &span->block;
    const size_t key = r->head * k->key_head + block->first * k->key_stride;
    const size_t value = r->head * k->value_head + block->first * k->value_stride;
    span->keys = widened(r->wide_keys, block->page.keys, key, k->key_stride, k->dtype, block->count,
                         r->a->key_width);
    span->values = widened(r->wide_values, block->page.values, value, k->value_stride, k->dtype,
                           block->count, r->a->value_width);
    span->finite = true;
    for (size_t j = 0; j < block->count && span->finite; j++) {
        span->finite =
            HEFT__KERNEL(finite)(span->values.w + j * span->values.row_step, r->a->value_width);
    }
    /* an output's element is a row of the product, a key a term */
    span->values.step = span->values.row_step;
    span->values.row_step = 1;
}

/* ---- scores -------------------------------------------------------------------------------------- */
static floats bias_of(const struct rows *r, size_t row, ints ahead)
{
    int32_t distance[LANES];
    float bias[LANES];
    memcpy(distance, &ahead, sizeof distance);
    for (size_t i = 0; i < LANES; i++) {
        bias[i] = bias_at(r->a, row + i < r->count ? query_head(r, row + i) : 0, distance[i]);
    }
    return load(bias);
}

/* The scores of one vector of rows. */
static void finish_scores(const struct rows *r, const struct span *span, float *scores,
                          size_t width, size_t row)
{
    const heft__attention *a = r->a;
    const ints at = load_ints(r->at + row);
    const floats slopes = load(r->slopes + row), scale = splat(a->scale);
    const bool plain = a->cap == 0 && !a->slopes && !a->bias && span->sight.all;
    for (size_t j = 0; j < span->block.count; j++, scores += width) {
        floats s = load(scores) * scale;
        if (!plain) {
            const int32_t key = span->block.page.at[span->block.first + j];
            const ints ahead = key - at;
            s = a->cap != 0 ? capped(s, splat(a->cap)) : s;
            s = a->slopes ? sloped(a, slopes, ahead, key + (ints){0}, s) : s;
            s = a->bias ? s + bias_of(r, row, ahead) : s;
            s = span->sight.all ? s : masked(a, s, ahead, key + (ints){0});
        }
        store(scores, s);
    }
}

/* Scores become exp(score - top); what was summed so far is scaled to the new top. */
static void take_scores(struct rows *r, const struct span *span, float *scores, size_t width,
                        size_t row, float *out)
{
    const floats before = load(r->top + row);
    floats top = before, sum = {0};
    for (size_t j = 0; j < span->block.count; j++) {
        top = larger(load(scores + j * width), top);
    }
    const floats from = choose(top == splat(-INFINITY), (floats){0}, top);
    for (size_t j = 0; j < span->block.count; j++) {
        const floats p = exp_of(load(scores + j * width) - from);
        store(scores + j * width, p);
        sum += p;
    }
    const floats scale = exp_of(before - from);
    store(r->top + row, top);
    store(r->sum + row, multiply_add(load(r->sum + row), scale, sum));
    if (any(scale != splat(1.0F))) {
        for (size_t e = 0; e < r->a->value_width; e++) {
            store(out + e * width, load(out + e * width) * scale);
        }
    }
}

/* ---- values -------------------------------------------------------------------------------------- */
/* Where a value is not finite: one that a row does not see must not reach it as 0 * infinity. The same sums
 * as those of tiles(). */
static void add_not_finite(float *out, const float *p, struct tile_weights values, size_t keys,
                           size_t width, size_t elements)
{
    for (size_t e = 0; e < elements; e++) {
        for (size_t v = 0; v < width; v += LANES) {
            floats sum = {0};
            for (size_t j = 0; j < keys; j++) {
                const floats weight = load(p + j * width + v);
                const floats value = splat(values.w[j * values.step + e]);
                sum = choose(weight == 0, sum, multiply_add(value, weight, sum));
            }
            store(out + e * width + v, load(out + e * width + v) + sum);
        }
    }
}

static void attend_span(struct rows *r, struct span *span)
{
    const size_t key_width = r->a->key_width, value_width = r->a->value_width;
    for (size_t panel = 0; panel < r->count; panel += TILE_TOKENS) {
        const size_t width = width_of(r, panel);
        float *out = r->out + panel * value_width;
        memset(r->scores, 0, span->block.count * width * sizeof *r->scores);
        tiles(r->scores, r->q + panel * key_width, span->keys, key_width, span->block.count,
              width / LANES);
        for (size_t v = 0; v < width; v += LANES) {
            finish_scores(r, span, r->scores + v, width, panel + v);
            take_scores(r, span, r->scores + v, width, panel + v, out + v);
        }
        if (span->finite) {
            tiles(out, r->scores, span->values, span->block.count, value_width, width / LANES);
        } else {
            add_not_finite(out, r->scores, span->values, span->block.count, width, value_width);
        }
    }
}

/* ---- all keys ------------------------------------------------------------------------------------ */
static void attend_rows(struct rows *r)
{
    struct span span = {0};
    begin_rows(r);
    for (size_t j = 0; j < r->keys->count; j += span.block.count) {
        span.block = block_of(r->keys, j);
        span.sight = look(r->a, span.block.page.at + span.block.first, span.block.count, r->nearest,
                          r->farthest);
        if (span.sight.some) {
            widen_span(r, &span);
            attend_span(r, &span);
        }
    }
    write_rows(r);
}

void HEFT__KERNEL(attend)(const heft__attention *a, const heft__queries *queries,
                          const heft__keys *keys, size_t head, size_t first, size_t last,
                          void *scratch)
{
    const size_t group = a->heads / a->kv_heads;
    struct rows *r = scratch;
    if (queries->count * group <= FEW_ROWS) {
        HEFT__KERNEL(attend_few)(a, queries, keys, head, first * group, last * group);
        return;
    }
    r->a = a, r->queries = queries, r->keys = keys;
    r->head = head, r->group = group;
    r->q = (float *)(r + 1);
    r->out = r->q + BLOCK_ROWS * a->key_width;
    r->scores = r->out + BLOCK_ROWS * a->value_width;
    r->wide_keys = r->scores + BLOCK_ROWS * BLOCK_KEYS;
    r->wide_values = r->wide_keys + BLOCK_KEYS * (a->key_width + PAD);
    for (r->first = first * r->group; r->first < last * r->group; r->first += BLOCK_ROWS) {
        const size_t left = last * r->group - r->first;
        r->count = left < BLOCK_ROWS ? left : BLOCK_ROWS;
        attend_rows(r);
    }
}
