/* dot_kernels.c - products of a few tokens: dot products of rows of w with rows of x.
 *
 * One token: one row after the other, in the order of the file, which is what the memory likes best;
 * several rows at once would be as many streams. A few tokens: R rows times M tokens, so that weights
 * are read once and elements of x once for R rows. R * M sums stay in registers.
 *
 * A sum depends on its row and token only: rows at the end of a range, which are taken one by one, give
 * the same bits as groups of rows. */
#include "kernel/chunk.h"
#include "kernel/compact.h"
#include "kernel/level.h"

#define MOST_ROWS 6
/* Bytes ahead that are asked for: rows follow one another, but the hardware asks for a page of memory at most. */
#define AHEAD 4096
#define LINE 64
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

/* Rows of a group: as many as there are registers for. */
#define ROWS_OF(tokens)                                                                            \
    (SUMS / (tokens) > MOST_ROWS ? MOST_ROWS : SUMS / (tokens) > 0 ? SUMS / (tokens) : 1)

/* What a loop over rows needs, once. */
struct rows {
    const char *w;
    size_t w_step; /* bytes from one row to the next */
    const char *x;
    size_t x_step; /* bytes from one token to the next */
    size_t columns;
};

INLINE struct rows rows_of(const struct heft__few *few, enum kind kind)
{
    struct rows rows = {.w = few->w->data, .x = few->x, .columns = few->w->columns};
    const size_t whole = (rows.columns + CHUNK - 1) / CHUNK * CHUNK;
    rows.w_step = few->w->stride * weight_bytes(kind);
    rows.x_step = whole * operand_element_bytes(kind);
    return rows;
}

INLINE void write_sum(const struct heft__few *few, size_t token, size_t row, float sum)
{
    few->y[token * few->y_stride + row] = few->bias ? sum + few->bias[row] : sum;
}

/* ---- one token ----------------------------------------------------------------------------------- */
/* sums[0 ..1] take the parts of even chunks, sums[2 .. 3] of odd ones. */
INLINE void add_to_own(floats sums[2], const chunk *w, const chunk *x, enum kind kind)
{
    if (kind == KIND_PAIRS) {
        sums[0] = add_pairs(sums[0], w->part[0], x->part[0]);
        return;
    }
    sums[0] = multiply_add(w->part[0], x->part[0], sums[0]);
    sums[1] = multiply_add(w->part[1], x->part[1], sums[1]);
}

INLINE float dot_row(const struct rows *rows, size_t row, enum kind kind)
{
    const char *w = rows->w + row * rows->w_step, *x = rows->x;
    const size_t w_bytes = CHUNK * weight_bytes(kind),
                 x_bytes = CHUNK * operand_element_bytes(kind);
    floats sums[4] = {{0}, {0}, {0}, {0}};
    size_t left = rows->columns;
    for (; left >= 2 * CHUNK; left -= 2 * CHUNK, w += 2 * w_bytes, x += 2 * x_bytes) {
        for (size_t line = 0; line < 2 * w_bytes; line += LINE) {
            __builtin_prefetch(w + AHEAD + line);
        }
        const chunk w0 = load_weights(w, kind), x0 = load_operand(x, kind);
        const chunk w1 = load_weights(w + w_bytes, kind), x1 = load_operand(x + x_bytes, kind);
        add_to_own(sums, &w0, &x0, kind);
        add_to_own(sums + 2, &w1, &x1, kind);
    }
    if (left >= CHUNK) {
        const chunk w0 = load_weights(w, kind), x0 = load_operand(x, kind);
        add_to_own(sums, &w0, &x0, kind);
        left -= CHUNK, w += w_bytes, x += x_bytes;
    }
    if (left > 0) {
        const chunk w0 = load_last_weights(w, kind, left), x0 = load_operand(x, kind);
        add_to_own(sums + 2, &w0, &x0, kind);
    }
    return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/* The same sums, of a compact row. */
INLINE float dot_compact_row(const struct heft__few *few, size_t row, enum kind kind)
{
    const heft__compact *compact = few->w->compact;
    struct compact_row at = compact_row_at(compact, few->w->compact_row + row, 0);
    const char *x = few->x;
    floats sums[4] = {{0}, {0}, {0}, {0}};
    for (size_t c = 0; c < compact->columns; c += BLOCK) {
        __builtin_prefetch(at.bytes + c / BLOCK * BLOCK_BYTES + AHEAD);
        __builtin_prefetch(at.bytes + c / BLOCK * BLOCK_BYTES + AHEAD + LINE);
        const block b = unpack_block(&at, c, compact->high);
        for (size_t i = 0; i < BLOCK / CHUNK; i++, x += CHUNK * operand_element_bytes(kind)) {
            const chunk w = chunk_of(b.part[i], kind), of_x = load_operand(x, kind);
            add_to_own(sums + i % 2 * 2, &w, &of_x, kind);
        }
    }
    return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

INLINE void dot_one(const struct heft__few *few, enum kind kind, const bool compact)
{
    const struct rows rows = rows_of(few, kind);
    for (size_t r = few->first; r < few->last; r++) {
        write_sum(few, 0, r, compact ? dot_compact_row(few, r, kind) : dot_row(&rows, r, kind));
    }
}

/* ---- a few tokens -------------------------------------------------------------------------------- */
INLINE void add_chunks(floats sums[], const chunk *w, const char *x, size_t x_step, enum kind kind,
                       const size_t tokens, const size_t count)
{
    for (size_t t = 0; t < tokens; t++) {
        const chunk xt = load_operand(x + t * x_step, kind);
        for (size_t r = 0; r < count; r++) {
            sums[r * tokens + t] = add_chunk(sums[r * tokens + t], &w[r], &xt, kind);
        }
    }
}

/* The last chunks of rows, shorter than others: one code for all numbers of rows and tokens. */
NOT_INLINE static void add_last(floats sums[], const struct rows *rows, size_t row, enum kind kind,
                                size_t tokens, size_t count)
{
    const size_t left = rows->columns % CHUNK, done = rows->columns - left;
    const char *w = rows->w + row * rows->w_step + done * weight_bytes(kind);
    const char *x = rows->x + done * operand_element_bytes(kind);
    for (size_t r = 0; r < count; r++) {
        const chunk last = load_last_weights(w + r * rows->w_step, kind, left);
        for (size_t t = 0; t < tokens; t++) {
            const chunk xt = load_operand(x + t * rows->x_step, kind);
            sums[r * tokens + t] = add_chunk(sums[r * tokens + t], &last, &xt, kind);
        }
    }
}

/* `count` rows from `row` on, times `tokens` tokens; both are constants. */
INLINE void dot_rows(const struct heft__few *few, const struct rows *rows, size_t row,
                     enum kind kind, const size_t tokens, const size_t count)
{
    const char *w = rows->w + row * rows->w_step, *x = rows->x;
    floats sums[SUMS], spilled[SUMS];
    chunk c[MOST_ROWS];
    for (size_t i = 0; i < tokens * count; i++) {
        sums[i] = (floats){0};
    }
    for (size_t left = rows->columns; left >= CHUNK; left -= CHUNK) {
        for (size_t r = 0; r < count; r++) {
            c[r] = load_weights(w + r * rows->w_step, kind);
        }
        add_chunks(sums, c, x, rows->x_step, kind, tokens, count);
        w += CHUNK * weight_bytes(kind);
        x += CHUNK * operand_element_bytes(kind);
    }
    for (size_t i = 0; i < tokens * count; i++) { /* a copy, so that sums stay in registers above */
        spilled[i] = sums[i];
    }
    if (rows->columns % CHUNK != 0) {
        add_last(spilled, rows, row, kind, tokens, count);
    }
    for (size_t r = 0; r < count; r++) {
        for (size_t t = 0; t < tokens; t++) {
            write_sum(few, t, row + r, sum_of(spilled[r * tokens + t]));
        }
    }
}

/* Rows of a compact matrix: one, a single stream of memory, unless the operand is too large for the first cache;
 * then an element of x that is loaded serves more of them. */
#define COMPACT_MOST 3
#define COMPACT_ROWS(tokens, kind)                                                                 \
    ((tokens)*operand_element_bytes(kind) <= 12 ? 1                                                \
     : ROWS_OF(tokens) > COMPACT_MOST           ? COMPACT_MOST                                     \
                                                : ROWS_OF(tokens))

INLINE void dot_compact(const struct heft__few *few, const struct rows *rows, size_t row,
                        enum kind kind, const size_t tokens, const size_t count)
{
    const heft__compact *compact = few->w->compact;
    const char *x = rows->x;
    struct compact_row at[COMPACT_MOST];
    block b[COMPACT_MOST];
    floats sums[SUMS];
    for (size_t i = 0; i < tokens * count; i++) {
        sums[i] = (floats){0};
    }
    for (size_t r = 0; r < count; r++) {
        at[r] = compact_row_at(compact, few->w->compact_row + row + r, 0);
    }
    for (size_t c = 0; c < compact->columns; c += BLOCK) {
        UNROLL
        for (size_t r = 0; r < count; r++) {
            b[r] = unpack_block(&at[r], c, compact->high);
        }
        UNROLL
        for (size_t i = 0; i < BLOCK / CHUNK; i++, x += CHUNK * operand_element_bytes(kind)) {
            UNROLL
            for (size_t t = 0; t < tokens; t++) {
                const chunk of_x = load_operand(x + t * rows->x_step, kind);
                UNROLL
                for (size_t r = 0; r < count; r++) {
                    const chunk w = chunk_of(b[r].part[i], kind);
                    sums[r * tokens + t] = add_chunk(sums[r * tokens + t], &w, &of_x, kind);
                }
            }
        }
    }
    for (size_t r = 0; r < count; r++) {
        for (size_t t = 0; t < tokens; t++) {
            write_sum(few, t, row + r, sum_of(sums[r * tokens + t]));
        }
    }
}

INLINE void dot_some(const struct heft__few *few, const struct rows *rows, size_t row,
                     enum kind kind, const size_t tokens, const size_t count, const bool compact)
{
    if (compact) {
        dot_compact(few, rows, row, kind, tokens, count);
    } else {
        dot_rows(few, rows, row, kind, tokens, count);
    }
}

INLINE void dot_few(const struct heft__few *few, enum kind kind, const size_t tokens,
                    const bool compact)
{
    const struct rows rows = rows_of(few, kind);
    const size_t count = compact ? COMPACT_ROWS(tokens, kind) : ROWS_OF(tokens);
    size_t r = few->first;
    for (; few->last - r >= count; r += count) {
        dot_some(few, &rows, r, kind, tokens, count, compact);
    }
    for (; r < few->last; r++) {
        dot_some(few, &rows, r, kind, tokens, 1, compact);
    }
}

INLINE void dot_kind(const struct heft__few *few, enum kind kind, const bool compact)
{
    switch (few->tokens) {
    case 1:
        dot_one(few, kind, compact);
        break;
    case 2:
        dot_few(few, kind, 2, compact);
        break;
    case 3:
        dot_few(few, kind, 3, compact);
        break;
    case 4:
        dot_few(few, kind, 4, compact);
        break;
    case 5:
        dot_few(few, kind, 5, compact);
        break;
    case 6:
        dot_few(few, kind, 6, compact);
        break;
    case 7:
        dot_few(few, kind, 7, compact);
        break;
    case 8:
        dot_few(few, kind, 8, compact);
        break;
    default:
        break;
    }
}

void HEFT__KERNEL(dot)(const struct heft__few *few, bool pairs)
{
    switch (kind_of(few->w->dtype, pairs)) {
    case KIND_F32:
        dot_kind(few, KIND_F32, false);
        break;
    case KIND_BF16:
        if (few->w->compact) {
            dot_kind(few, KIND_BF16, true);
        } else {
            dot_kind(few, KIND_BF16, false);
        }
        break;
    case KIND_F16:
        dot_kind(few, KIND_F16, false);
        break;
    case KIND_PAIRS:
        if (HAVE_PAIRS && few->w->compact) {
            dot_kind(few, KIND_PAIRS, true);
        } else if (HAVE_PAIRS) {
            dot_kind(few, KIND_PAIRS, false);
        }
        break;
    }
}
