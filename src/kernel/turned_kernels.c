/* turned_kernels.c - products of a few tokens with a matrix that is stored as [columns][rows].
 *
 * y[t][r] = sum over c of x[t][c] * w[c][r]: stored rows are scaled and added. STEP stored rows at a
 * time, over a range of outputs whose sums stay in the first cache; each stored row is read once, in
 * order, and asked for ahead, as processors do not foresee the step to the next ones. A sum's terms are
 * added in the order of c, in parts of DEPTH, whatever the range. */
#include "kernel/level.h"
#include "kernel/vector.h"

#define STEP 4           /* stored rows at once */
#define AHEAD (2 * STEP) /* stored rows that are asked for before they are read */
#define DEPTH 256        /* terms of a part */

struct block {
    const void *w;
    size_t stride;
    const float *x;
    size_t columns;
    size_t first, count; /* outputs */
    float *sums;         /* [tokens][pitch], of a part */
    size_t pitch;
};

/* Tokens t .. t + tokens - 1, terms c .. c + step - 1; both counts are constants. */
INLINE void add_terms(const struct block *b, size_t t, size_t c, heft_dtype dtype,
                      const size_t tokens, const size_t step)
{
    floats x[3 * STEP], w[STEP];
    const size_t size = dtype == HEFT_DTYPE_F32 ? sizeof(float) : sizeof(uint16_t);
    const bool ask = t == 0 && c + AHEAD + step <= b->columns;
    for (size_t i = 0; i < tokens; i++) {
        for (size_t s = 0; s < step; s++) {
            x[i * step + s] = splat(b->x[(t + i) * b->columns + c + s]);
        }
    }
    for (size_t r = 0; r < b->count; r += LANES) {
        const size_t left = b->count - r;
        for (size_t s = 0; s < step; s++) {
            const size_t at = (c + s) * b->stride + b->first + r;
            if (ask) {
                __builtin_prefetch((const uint8_t *)b->w + (at + AHEAD * b->stride) * size);
            }
            w[s] = load_some_as(b->w, at, dtype, left);
        }
        for (size_t i = 0; i < tokens; i++) {
            float *to = b->sums + (t + i) * b->pitch + r;
            floats sum = load(to);
            for (size_t s = 0; s < step; s++) {
                sum = multiply_add(w[s], x[i * step + s], sum);
            }
            store(to, sum);
        }
    }
}

INLINE void add_step(const struct block *b, size_t tokens, size_t c, heft_dtype dtype,
                     const size_t step)
{
    size_t t = 0;
    for (; t + 3 <= tokens; t += 3) {
        add_terms(b, t, c, dtype, 3, step);
    }
    for (; t + 2 <= tokens; t += 2) {
        add_terms(b, t, c, dtype, 2, step);
    }
    for (; t < tokens; t++) {
        add_terms(b, t, c, dtype, 1, step);
    }
}

/* A part's sums are added to y. */
static void add_part(const struct block *b, const struct heft__few *few)
{
    for (size_t t = 0; t < few->tokens; t++) {
        float *y = few->y + t * few->y_stride + b->first;
        float *part = b->sums + t * b->pitch;
        for (size_t r = 0; r < b->count; r++) {
            y[r] += part[r];
        }
        memset(part, 0, b->pitch * sizeof *part);
    }
}

INLINE void turned_block(const struct block *b, const struct heft__few *few, heft_dtype dtype)
{
    for (size_t t = 0; t < few->tokens; t++) {
        float *y = few->y + t * few->y_stride + b->first;
        memset(b->sums + t * b->pitch, 0, b->pitch * sizeof *b->sums);
        for (size_t r = 0; r < b->count; r++) {
            y[r] = few->bias ? few->bias[b->first + r] : 0.0F;
        }
    }
    for (size_t part = 0; part < b->columns; part += DEPTH) {
        const size_t end = b->columns - part < DEPTH ? b->columns : part + DEPTH;
        size_t c = part;
        for (; c + STEP <= end; c += STEP) {
            add_step(b, few->tokens, c, dtype, STEP);
        }
        for (; c < end; c++) {
            add_step(b, few->tokens, c, dtype, 1);
        }
        add_part(b, few);
    }
}

void HEFT__KERNEL(turned)(const struct heft__few *few, float *sums)
{
    struct block b = {.w = few->w->data,
                      .stride = few->w->stride,
                      .x = few->x,
                      .columns = few->w->columns,
                      .sums = sums};
    b.pitch = HEFT__TURNED_SUMS / few->tokens / LANES * LANES;
    for (b.first = few->first; b.first < few->last; b.first += b.pitch) {
        b.count = few->last - b.first < b.pitch ? few->last - b.first : b.pitch;
        if (few->w->dtype == HEFT_DTYPE_F32) {
            turned_block(&b, few, HEFT_DTYPE_F32);
        } else if (few->w->dtype == HEFT_DTYPE_BF16) {
            turned_block(&b, few, HEFT_DTYPE_BF16);
        } else {
            turned_block(&b, few, HEFT_DTYPE_F16);
        }
    }
}
