/* attend_few_kernels.c - attention of a few rows, such as one token's heads: dot products with keys.
 *
 * Up to SET rows read a key at once. For each block of keys: scores, in whose softmax the lanes are keys; then
 * values, in which they are elements. The softmax is kept as in attend_kernels.c. Keys and values are
 * read where they lie, once, which is what one token waits for. */
#include "kernel/attend.h"

#include <math.h>

#define SET 4
/* Sums of rows times keys that become whole vectors together, and how many keys of them are read at once: more
 * than four would be too many streams of memory. */
#define DOTS (SUMS >= 24 ? 16 : 8)
#define DOT_KEYS(rows) ((rows) == 3 ? DOTS / 4 : DOTS / (rows))
#define DOT_STREAMS(rows) (DOT_KEYS(rows) < 4 ? DOT_KEYS(rows) : 4)

struct set {
    const heft__attention *a;
    const heft__keys *keys;
    struct block block, next; /* next: at the end this one again */
    bool asks;                /* nobody has read the keys before */
    bool all;                 /* every row sees every key of the block */
    size_t key, value;        /* where the head begins in a page, in elements */
    const float *q[SET];
    float *out[SET];
    size_t heads[SET];
    int32_t at[SET];
    float top[SET], sum[SET], scale[SET]; /* scale: of what was summed, by this block */
    float scores[SET][BLOCK_KEYS];
};

/* ---- reading ahead ------------------------------------------------------------------------------- */
/* Keys and values are in separate places, and pages too: the processor does not foresee them. So values are asked for
 * while keys of their block are read, and the next block's keys while values are. */
#define LINE_ELEMS ((size_t)32) /* of 16 bits, in 64 bytes */

INLINE size_t bytes_of(size_t elements, heft_dtype dtype)
{
    return elements * (dtype == HEFT_DTYPE_F32 ? sizeof(float) : sizeof(uint16_t));
}

/* `elements` from number `from` on, which may be past the end: nothing is read. */
INLINE void ask_for(const void *data, size_t from, size_t elements, heft_dtype dtype)
{
    const uintptr_t at = (uintptr_t)data + bytes_of(from, dtype);
    for (size_t i = 0; i < bytes_of(elements, dtype); i += 64) {
        __builtin_prefetch((const void *)(at + i));
    }
}

/* ---- scores -------------------------------------------------------------------------------------- */
/* The elements of keys past whole vectors: one code for all numbers of rows and keys. */
NOT_INLINE static void dot_last(floats sums[], const struct set *s, size_t j, size_t rows,
                                size_t count)
{
    const size_t left = s->a->key_width % LANES, e = s->a->key_width - left;
    const size_t stride = s->keys->key_stride, from = s->key + (s->block.first + j) * stride + e;
    for (size_t i = 0; i < count; i++) {
        const floats k = load_part_as(s->block.page.keys, from + i * stride, s->keys->dtype, left);
        for (size_t r = 0; r < rows; r++) {
            sums[r * count + i] =
                multiply_add(k, load_part(s->q[r] + e, left), sums[r * count + i]);
        }
    }
}

/* `streams` keys from j on times `rows` rows. */
INLINE void dot_streams(floats to[], const struct set *s, size_t j, heft_dtype dtype,
                        const size_t rows, const size_t streams)
{
    const size_t width = s->a->key_width, stride = s->keys->key_stride;
    const size_t from = s->key + (s->block.first + j) * stride;
    floats sums[DOTS];
    for (size_t i = 0; i < rows * streams; i++) {
        sums[i] = (floats){0};
    }
    for (size_t e = 0; e + LANES <= width; e += LANES) {
        floats k[SET];
        for (size_t i = 0; s->asks && e % LINE_ELEMS == 0 && i < streams; i++) {
            const size_t key = s->block.first + j + i;
            ask_for(s->block.page.values, s->value + key * s->keys->value_stride + e, LINE_ELEMS,
                    dtype);
        }
        for (size_t i = 0; i < streams; i++) {
            k[i] = load_as(s->block.page.keys, from + i * stride + e, dtype);
        }
        for (size_t r = 0; r < rows; r++) {
            const floats q = load(s->q[r] + e);
            for (size_t i = 0; i < streams; i++) {
                sums[r * streams + i] = multiply_add(k[i], q, sums[r * streams + i]);
            }
        }
    }
    for (size_t i = 0; i < rows * streams; i++) { /* a copy, so that sums stay in registers above */
        to[i] = sums[i];
    }
    if (width % LANES != 0) {
        dot_last(to, s, j, rows, streams);
    }
}

/* `count` keys from j on, some of them at once; one row's follow each other. */
INLINE void dot_keys(struct set *s, size_t j, heft_dtype dtype, const size_t rows,
                     const size_t count, const size_t streams)
{
    floats sums[DOTS];
    float scores[DOTS];
    for (size_t i = rows * count; i < DOTS; i++) {
        sums[i] = (floats){0};
    }
    for (size_t i = 0; i < count; i += streams) {
        dot_streams(sums + i * rows, s, j + i, dtype, rows, streams);
    }
    for (size_t i = 0; i < rows * count; i += LANES) {
        store(scores + i, sums_of(sums + i));
    }
    for (size_t i = 0; i < count; i += streams) {
        for (size_t r = 0; r < rows; r++) {
            memcpy(s->scores[r] + j + i, scores + i * rows + r * streams, streams * sizeof *scores);
        }
    }
}

INLINE void dot_all(struct set *s, heft_dtype dtype, const size_t rows)
{
    const size_t most = DOT_KEYS(rows), count = s->block.count;
    size_t j = 0;
    for (; j + most <= count; j += most) {
        dot_keys(s, j, dtype, rows, most, DOT_STREAMS(rows));
    }
    for (; j < count; j++) {
        dot_keys(s, j, dtype, rows, 1, 1);
    }
}

/* LANES scores of a row, from j on, where there is more to them than a product. */
NOT_INLINE static floats finish(const struct set *s, size_t row, size_t j)
{
    const heft__attention *a = s->a;
    const size_t left = s->block.count - j;
    floats score = load(s->scores[row] + j) * splat(a->scale);
    int32_t at[LANES], ahead[LANES];
    for (size_t i = 0; i < LANES; i++) {
        at[i] = i < left ? s->block.page.at[s->block.first + j + i] : -1;
        ahead[i] = at[i] - s->at[row];
    }
    score = a->cap != 0 ? capped(score, splat(a->cap)) : score;
    if (a->slopes) {
        const floats slope = splat(a->slopes[s->heads[row]]);
        score = sloped(a, slope, load_ints(ahead), load_ints(at), score);
    }
    if (a->bias) {
        float bias[LANES];
        for (size_t i = 0; i < LANES; i++) {
            bias[i] = bias_at(a, s->heads[row], ahead[i]);
        }
        score += load(bias);
    }
    return masked(a, score, load_ints(ahead), load_ints(at));
}

/* Scores of a row as the softmax takes them; those past the block's end become -infinity. */
INLINE void finish_all(struct set *s, size_t row)
{
    const heft__attention *a = s->a;
    const bool plain = s->all && a->cap == 0 && !a->slopes && !a->bias;
    float *scores = s->scores[row];
    size_t count = s->block.count;
    for (size_t j = 0; j < count; j += LANES) {
        store(scores + j, plain ? load(scores + j) * splat(a->scale) : finish(s, row, j));
    }
    for (; count % LANES != 0; count++) {
        scores[count] = -INFINITY;
    }
}

/* Scores become exp(score - top). */
INLINE void take(struct set *s, size_t row)
{
    float *scores = s->scores[row];
    const float before = s->top[row];
    floats top = splat(before), sums = {0};
    finish_all(s, row);
    for (size_t j = 0; j < s->block.count; j += LANES) {
        top = larger(load(scores + j), top);
    }
    s->top[row] = largest_of(top);
    const floats from = splat(s->top[row] == -INFINITY ? 0.0F : s->top[row]);
    for (size_t j = 0; j < s->block.count; j += LANES) {
        const floats p = exp_of(load(scores + j) - from);
        store(scores + j, p);
        sums += p;
    }
    s->scale[row] = s->top[row] == before ? 1.0F : exp_of(splat(before) - from)[0];
    s->sum[row] = s->sum[row] * s->scale[row] + sum_of(sums);
}

NOT_INLINE static void take_all(struct set *s, size_t rows)
{
    for (size_t r = 0; r < rows; r++) {
        take(s, r);
    }
}

/* ---- values -------------------------------------------------------------------------------------- */
/* One vector of one row again, where a sum is not finite: a value that the row does not see must not
 * reach it as 0 * infinity. */
NOT_INLINE static floats add_seen(const struct set *s, size_t row, size_t e, size_t left)
{
    floats sum = {0};
    for (size_t j = 0; j < s->block.count; j++) {
        const size_t from = s->value + (s->block.first + j) * s->keys->value_stride + e;
        if (s->scores[row][j] != 0) {
            const floats v = load_some_as(s->block.page.values, from, s->keys->dtype, left);
            sum = multiply_add(v, splat(s->scores[row][j]), sum);
        }
    }
    return sum;
}

INLINE ints not_finite(floats x)
{
    return ((words)x & 0x7f800000U) == 0x7f800000U;
}

/* The sums of a block, vectors from element e on, are added to what was summed before: each by itself, and all
 * if they are finite and whole. */
NOT_INLINE static void keep_each(const struct set *s, size_t e, size_t rows, size_t vectors,
                                 const floats sums[])
{
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < vectors; i++) {
            const size_t at = e + i * LANES, left = s->a->value_width - at;
            const floats sum = any(not_finite(sums[r * vectors + i])) ? add_seen(s, r, at, left)
                                                                      : sums[r * vectors + i];
            const floats before = load_some(s->out[r] + at, left);
            store_some(s->out[r] + at, multiply_add(before, splat(s->scale[r]), sum), left);
        }
    }
}

INLINE void keep(const struct set *s, size_t e, const size_t rows, const size_t vectors,
                 const floats sums[])
{
    ints odd = {0};
    for (size_t i = 0; i < rows * vectors; i++) {
        odd |= not_finite(sums[i]);
    }
    if (any(odd)) {
        floats spilled[SUMS];
        for (size_t i = 0; i < rows * vectors; i++) {
            spilled[i] = sums[i];
        }
        keep_each(s, e, rows, vectors, spilled);
        return;
    }
    for (size_t r = 0; r < rows; r++) {
        const floats scale = splat(s->scale[r]);
        for (size_t i = 0; i < vectors; i++) {
            float *out = s->out[r] + e + i * LANES;
            store(out, multiply_add(load(out), scale, sums[r * vectors + i]));
        }
    }
}

/* `vectors` whole vectors of elements from e on. */
INLINE void add_values(const struct set *s, size_t e, heft_dtype dtype, const size_t rows,
                       const size_t vectors)
{
    const size_t stride = s->keys->value_stride;
    floats sums[SUMS];
    for (size_t i = 0; i < rows * vectors; i++) {
        sums[i] = (floats){0};
    }
    for (size_t j = 0; j < s->block.count; j++) {
        const size_t from = s->value + (s->block.first + j) * stride + e;
        floats v[SET];
        if (s->asks) {
            const size_t key = s->next.first + j;
            ask_for(s->next.page.keys, s->key + key * s->keys->key_stride + e, vectors * LANES,
                    dtype);
        }
        for (size_t i = 0; i < vectors; i++) {
            v[i] = load_as(s->block.page.values, from + i * LANES, dtype);
        }
        for (size_t r = 0; r < rows; r++) {
            const floats p = splat(s->scores[r][j]);
            for (size_t i = 0; i < vectors; i++) {
                sums[r * vectors + i] = multiply_add(v[i], p, sums[r * vectors + i]);
            }
        }
    }
    keep(s, e, rows, vectors, sums);
}

/* The elements past whole vectors. */
NOT_INLINE static void add_last_values(const struct set *s, size_t e, size_t rows)
{
    const size_t left = s->a->value_width - e;
    floats sums[SET] = {{0}};
    for (size_t j = 0; j < s->block.count; j++) {
        const size_t from = s->value + (s->block.first + j) * s->keys->value_stride + e;
        const floats v = load_part_as(s->block.page.values, from, s->keys->dtype, left);
        for (size_t r = 0; r < rows; r++) {
            sums[r] = multiply_add(v, splat(s->scores[r][j]), sums[r]);
        }
    }
    keep_each(s, e, rows, 1, sums);
}

INLINE void add_all(const struct set *s, heft_dtype dtype, const size_t rows)
{
    const size_t most = rows * 4 <= SUMS ? 4 : 2, width = s->a->value_width;
    size_t e = 0;
    for (; e + most * LANES <= width; e += most * LANES) {
        add_values(s, e, dtype, rows, most);
    }
    for (; e + LANES <= width; e += LANES) {
        add_values(s, e, dtype, rows, 1);
    }
    if (e < width) {
        add_last_values(s, e, rows);
    }
}

/* ---- rows ---------------------------------------------------------------------------------------- */
INLINE void attend_block(struct set *s, heft_dtype dtype, const size_t rows)
{
    dot_all(s, dtype, rows);
    take_all(s, rows);
    add_all(s, dtype, rows);
}

INLINE void attend_block_as(struct set *s, heft_dtype dtype, size_t rows)
{
    switch (rows) {
    case 1:
        attend_block(s, dtype, 1);
        break;
    case 2:
        attend_block(s, dtype, 2);
        break;
    case 3:
        attend_block(s, dtype, 3);
        break;
    default:
        attend_block(s, dtype, 4);
        break;
    }
}

static void attend_any_block(struct set *s, size_t rows)
{
    if (s->keys->dtype == HEFT_DTYPE_F32) {
        attend_block_as(s, HEFT_DTYPE_F32, rows);
    } else if (s->keys->dtype == HEFT_DTYPE_BF16) {
        attend_block_as(s, HEFT_DTYPE_BF16, rows);
    } else {
        attend_block_as(s, HEFT_DTYPE_F16, rows);
    }
}

static void begin_row(struct set *s, const heft__queries *queries, size_t row, size_t query,
                      size_t head)
{
    const float sink = s->a->sinks ? s->a->sinks[head] : -INFINITY;
    s->q[row] = queries->q + query * queries->q_stride + head * s->a->key_width;
    s->out[row] = queries->out + query * queries->out_stride + head * s->a->value_width;
    s->at[row] = queries->at[query];
    s->heads[row] = head;
    s->top[row] = sink;
    s->sum[row] = sink == -INFINITY ? 0.0F : 1.0F;
    memset(s->out[row], 0, s->a->value_width * sizeof *s->out[row]);
}

static void attend_set(struct set *s, size_t rows)
{
    int32_t nearest = s->at[0], farthest = s->at[0];
    for (size_t r = 1; r < rows; r++) {
        nearest = s->at[r] < nearest ? s->at[r] : nearest;
        farthest = s->at[r] > farthest ? s->at[r] : farthest;
    }
    for (size_t j = 0; j < s->keys->count; j += s->block.count) {
        s->block = block_of(s->keys, j);
        const struct sight sight =
            look(s->a, s->block.page.at + s->block.first, s->block.count, nearest, farthest);
        s->all = sight.all;
        const size_t after = j + s->block.count;
        s->next = after < s->keys->count ? block_of(s->keys, after) : s->block;
        if (sight.some) {
            attend_any_block(s, rows);
        }
    }
    for (size_t r = 0; r < rows; r++) {
        HEFT__KERNEL(scale)
        (s->out[r], s->sum[r] == 0 ? 0.0F : 1.0F / s->sum[r], s->a->value_width);
    }
}

void HEFT__KERNEL(attend_few)(const heft__attention *a, const heft__queries *queries,
                              const heft__keys *keys, size_t head, size_t first, size_t last)
{
    const size_t group = a->heads / a->kv_heads;
    struct set s = {.a = a, .keys = keys};
    s.key = head * keys->key_head;
    s.value = head * keys->value_head;
    s.asks = true;
    for (; first < last; first += SET, s.asks = false) {
        const size_t rows = last - first < SET ? last - first : SET;
        for (size_t r = 0; r < rows; r++) {
            begin_row(&s, queries, r, (first + r) / group, head * group + (first + r) % group);
        }
        attend_set(&s, rows);
    }
}
