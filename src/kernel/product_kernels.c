/* product_kernels.c - operands and products: the form is chosen by the number of tokens.
 *
 *   tokens                weights [rows][columns]      turned, [columns][rows]
 *   .. HEFT__FEW_TOKENS   dot_kernels.c                turned_kernels.c
 *   more                  panel_kernels.c              the same
 *
 * The form depends on the operand alone, so ranges of rows may be cut anywhere. */
#include "kernel/chunk.h"
#include "kernel/level.h"
#include "kernel/tile.h"

enum form { FORM_DOT, FORM_TURNED, FORM_PANEL };

static enum form form_of(size_t tokens, bool turned)
{
    return tokens > HEFT__FEW_TOKENS ? FORM_PANEL : turned ? FORM_TURNED : FORM_DOT;
}

/* Whether bfloat16 weights are multiplied as such. */
static bool in_pairs(const heft__operand *operand)
{
    return HAVE_PAIRS && operand->dtype == HEFT_DTYPE_BF16 && !operand->exact && !operand->turned;
}

static bool is_rounded(const heft__operand *operand)
{
    return operand->dtype == HEFT_DTYPE_BF16 && !operand->exact;
}

static size_t whole_chunks(size_t columns)
{
    return (columns + CHUNK - 1) / CHUNK * CHUNK;
}

/* Floats of a panel's column: the last panel may be narrower. */
static size_t panel_width(const heft__operand *operand, size_t panel)
{
    const size_t left = operand->tokens - panel * TILE_TOKENS;
    return left >= TILE_TOKENS ? TILE_TOKENS : (left + LANES - 1) / LANES * LANES;
}

size_t HEFT__KERNEL(operand_bytes)(size_t tokens, const heft__matrix *w, bool exact)
{
    const heft__operand operand = {.tokens = tokens,
                                   .columns = w->columns,
                                   .dtype = w->dtype,
                                   .exact = exact,
                                   .turned = w->turned};
    const bool pairs = in_pairs(&operand);
    switch (form_of(tokens, w->turned)) {
    case FORM_DOT:
        return tokens * whole_chunks(w->columns) * (pairs ? 2 : sizeof(float));
    case FORM_TURNED:
        return tokens * w->columns * sizeof(float);
    case FORM_PANEL:
        break;
    }
    const size_t width = (tokens + LANES - 1) / LANES * LANES;
    return width * sizeof(float) * (pairs ? (w->columns + 1) / 2 : w->columns);
}

/* ---- filling ------------------------------------------------------------------------------------- */
static size_t depth_parts(const heft__operand *operand)
{
    return (operand->columns + HEFT__PANEL_DEPTH - 1) / HEFT__PANEL_DEPTH;
}

size_t HEFT__KERNEL(operand_pieces)(const heft__operand *operand)
{
    if (form_of(operand->tokens, operand->turned) != FORM_PANEL) {
        return operand->tokens;
    }
    return (operand->tokens + TILE_TOKENS - 1) / TILE_TOKENS * depth_parts(operand);
}

static void fill_row(float *to, const float *x, size_t count, bool round)
{
    for (size_t c = 0; c < count; c += LANES) {
        const floats v = load_some(x + c, count - c);
        store_some(to + c, round ? round_bf16(v) : v, count - c);
    }
}

/* A chunk of an operand of dot products: chunk.h says how it lies. */
static void fill_chunk(char *to, const float x[CHUNK], enum kind kind, bool round)
{
    float even_odd[CHUNK];
    if (kind == KIND_F32 || kind == KIND_F16) {
        memcpy(to, x, CHUNK * sizeof *x);
    } else if (kind == KIND_BF16) {
        for (size_t i = 0; i < LANES; i++) {
            even_odd[i] = x[2 * i];
            even_odd[LANES + i] = x[2 * i + 1];
        }
        fill_row((float *)(void *)to, even_odd, CHUNK, round);
    } else {
        for (size_t i = 0; i < CHUNK; i += LANES) {
            const halves h = __builtin_convertvector(narrow_bf16(load(x + i)), halves);
            memcpy(to + i * sizeof(uint16_t), &h, sizeof h);
        }
    }
}

static void fill_dot(const heft__operand *operand, const float *x, size_t token)
{
    const enum kind kind = kind_of(operand->dtype, in_pairs(operand));
    const size_t bytes = operand_element_bytes(kind), columns = operand->columns;
    char *to = (char *)operand->data + token * whole_chunks(columns) * bytes;
    for (size_t c = 0; c < columns; c += CHUNK, to += CHUNK * bytes) {
        float last[CHUNK] = {0};
        if (columns - c >= CHUNK) {
            fill_chunk(to, x + c, kind, is_rounded(operand));
        } else {
            memcpy(last, x + c, (columns - c) * sizeof *x);
            fill_chunk(to, last, kind, is_rounded(operand));
        }
    }
}

/* Columns of a panel: p[column][width], or p[column / 2][width][2] in bfloat16. */
struct columns {
    char *to;
    const float *x; /* of the panel's first token and the first of these columns */
    size_t stride, tokens, width, count;
    bool round;
};

/* LANES tokens from t on, and as many columns from c on, of what is there; else 0. */
INLINE void load_block(const struct columns *part, size_t t, size_t c, floats v[LANES])
{
    for (size_t i = 0; i < LANES; i++) {
        v[i] = t + i < part->tokens && c < part->count
                   ? load_some(part->x + (t + i) * part->stride + c, part->count - c)
                   : (floats){0};
    }
}

static void fill_floats(const struct columns *part)
{
    float *to = (float *)(void *)part->to;
    for (size_t c = 0; c < part->count; c += LANES) {
        const size_t left = part->count - c < LANES ? part->count - c : LANES;
        for (size_t t = 0; t < part->width; t += LANES) {
            floats v[LANES];
            load_block(part, t, c, v);
            turn(v);
            for (size_t i = 0; i < left; i++) {
                store(to + (c + i) * part->width + t, part->round ? round_bf16(v[i]) : v[i]);
            }
        }
    }
}

static void fill_pairs(const struct columns *part)
{
    float *to = (float *)(void *)part->to;
    for (size_t c = 0; c < part->count; c += 2 * LANES) {
        const size_t left = part->count - c < 2 * LANES ? part->count - c : 2 * LANES;
        for (size_t t = 0; t < part->width; t += LANES) {
            floats v[LANES], more[LANES];
            load_block(part, t, c, v);
            load_block(part, t, c + LANES, more);
            for (size_t i = 0; i < LANES; i++) {
                const words first = narrow_bf16(evens(v[i], more[i]));
                v[i] = (floats)(first | narrow_bf16(odds(v[i], more[i])) << 16);
            }
            turn(v);
            for (size_t i = 0; i < (left + 1) / 2; i++) {
                store(to + (c / 2 + i) * part->width + t, v[i]);
            }
        }
    }
}

static void fill_panel(const heft__operand *operand, const float *x, size_t stride, size_t piece)
{
    const size_t panel = piece / depth_parts(operand);
    const size_t from = piece % depth_parts(operand) * HEFT__PANEL_DEPTH;
    const size_t first = panel * TILE_TOKENS, left = operand->columns - from;
    const bool pairs = in_pairs(operand);
    struct columns part = {.x = x + first * stride + from,
                           .stride = stride,
                           .width = panel_width(operand, panel),
                           .count = left < HEFT__PANEL_DEPTH ? left : HEFT__PANEL_DEPTH,
                           .round = is_rounded(operand)};
    const size_t depth = pairs ? (operand->columns + 1) / 2 : operand->columns;
    const size_t at = first * depth + (pairs ? from / 2 : from) * part.width;
    part.to = (char *)operand->data + at * sizeof(float);
    part.tokens = operand->tokens - first < part.width ? operand->tokens - first : part.width;
    if (pairs) {
        fill_pairs(&part);
    } else {
        fill_floats(&part);
    }
}

void HEFT__KERNEL(operand_fill)(const heft__operand *operand, const float *x, size_t stride,
                                size_t piece)
{
    switch (form_of(operand->tokens, operand->turned)) {
    case FORM_DOT:
        fill_dot(operand, x + piece * stride, piece);
        break;
    case FORM_TURNED:
        fill_row((float *)operand->data + piece * operand->columns, x + piece * stride,
                 operand->columns, is_rounded(operand));
        break;
    case FORM_PANEL:
        fill_panel(operand, x, stride, piece);
        break;
    }
}

/* ---- the product --------------------------------------------------------------------------------- */
void HEFT__KERNEL(product)(float *y, size_t y_stride, const heft__operand *operand,
                           const heft__matrix *w, const float *bias, size_t first, size_t last,
                           void *scratch)
{
    const struct heft__few few = {.y = y,
                                  .y_stride = y_stride,
                                  .w = w,
                                  .bias = bias,
                                  .x = operand->data,
                                  .tokens = operand->tokens,
                                  .first = first,
                                  .last = last};
    switch (form_of(operand->tokens, operand->turned)) {
    case FORM_DOT:
        HEFT__KERNEL(dot)(&few, in_pairs(operand));
        break;
    case FORM_TURNED:
        HEFT__KERNEL(turned)(&few, scratch);
        break;
    case FORM_PANEL:
        HEFT__KERNEL(panel)(y, y_stride, operand, w, bias, first, last, scratch);
        break;
    }
}
