/* The internal header of the kernel layer.
 *
 * What it does: computes on plain arrays: products with weight matrices as they lie in a file, or in
 * 12 bits a weight, attention over cached keys and values, norms, rotary positions, activations. Each function has its
 * formula and shapes in its comment. It knows no names, files, models or threads: a caller splits
 * rows, heads or tokens among threads by the ranges that it passes.
 * May include: base, and dtypes of <heft/tensor.h>.
 * Rules: one implementation, compiled for each instruction set (`*_lanes.c`), and a scalar reference
 * that every variant is tested against. A result depends on its inputs and the instruction set only,
 * never on how the work is split. Nothing allocates and nothing fails: callers have checked shapes. */
#ifndef HEFT__KERNEL_KERNEL_H
#define HEFT__KERNEL_KERNEL_H

#include <heft/tensor.h>

#include "base/base.h"

/* Activations are float32, row by row: x[tokens][width], with `stride` floats from one row to the
 * next. Weights are F32, BF16 or F16, aligned to their dtype. A BF16 or F16 weight is widened exactly.
 *
 * Rounding: unless `exact`, an activation that is multiplied with BF16 weights is rounded to bfloat16
 * (nearest even) first, on every instruction set; sums are float32. With F32 and F16 weights nothing
 * is rounded. */

/* ---- products ---------------------------------------------------------------------------------- */
/* y[t][r] = sum over c of x[t][c] * w[r][c]: row r begins at element r * stride; a turned matrix is
 * stored as [columns][rows], and w[r][c] is element c * stride + r. */
typedef struct heft__matrix {
    const void *data;
    heft_dtype dtype;
    size_t rows, columns;
    size_t stride; /* elements from one stored row to the next */
    bool turned;
    const struct heft__compact *compact; /* instead of data: BF16, not turned; NULL: none */
    size_t compact_row;                  /* the one of it that is row 0 */
} heft__matrix;

/* A BF16 matrix in 12 bits a weight, without loss; compact.h says how a row lies. */
typedef struct heft__compact {
    const uint8_t *rows;        /* [row_count][columns * 3 / 2] */
    const uint32_t *first;      /* [row_count + 1] the first exception of each row */
    const uint32_t *exceptions; /* column << 16 | weight, by rows and columns */
    size_t row_count, columns;  /* columns: a multiple of the block */
    uint8_t high[16];           /* high bytes by their code */
} heft__compact;
#define HEFT__COMPACT_BLOCK ((size_t)64)
#define HEFT__COMPACT_EXCEPTIONS                                                                   \
    256 /* of so many weights one may be an exception, otherwise a matrix stays as it is */

/* Which high bytes have a code. */
struct heft__compact_codes {
    uint8_t first; /* exponents / 2: 8 neighbors from here on */
    bool zero;     /* 7, and 0 */
};

/* Up to so many tokens dot products are faster than panels, whose lanes would be empty. */
#define HEFT__FEW_TOKENS 8

/* Activations in the form that products with weights of one dtype read. Made once, read by all
 * threads. */
typedef struct heft__operand {
    size_t tokens, columns;
    heft_dtype dtype; /* of the weights */
    bool exact, turned;
    void *data; /* [bytes] aligned to 64 */
} heft__operand;

/* ---- attention --------------------------------------------------------------------------------- */
/* For query i and head h, whose keys are those of head h * kv_heads / heads, over the keys j that it sees:
 *
 *   s[j] = cap(scale * dot(q[i][h], k[j])) + slopes[h] * (at(j) - at(i)) + bias[h][at(j) - at(i)]
 *   out[i][h] = sum over j of softmax(s)[j] * v[j]
 *
 * cap(s) = cap * tanh(s / cap). A sink is one more logit of a head in the softmax, whose value is 0.
 * Keys whose position is negative are not seen; causal: at(j) <= at(i); window: at(i) - at(j) < window
 * (and at(j) - at(i) < window if not causal). A query that sees no key gets zeros. */
typedef struct heft__attention {
    size_t heads, kv_heads, key_width, value_width;
    float scale;
    float cap; /* 0: none */
    bool causal;
    int32_t window;      /* tokens; 0: all */
    const float *slopes; /* [heads]; NULL: none */
    /* 0: as above. Else instead of the distance's term the key's: coarse * bf16(slopes[h] * bf16(at(j))), as Falcon's
     * reference rounds it; slopes are bfloat16. */
    float coarse;
    const float *sinks; /* [heads]; NULL: none */
    /* [heads][2 * bias_reach + 1] by the distance at(j) - at(i), which is cut to -bias_reach ..
     * bias_reach; NULL: none */
    const float *bias;
    int32_t bias_reach;
} heft__attention;

/* Keys and values of some tokens. Values may lie in the keys' memory. */
typedef struct heft__key_page {
    const void *keys, *values;
    const int32_t *at; /* positions; negative: not seen */
} heft__key_page;

/* What one sequence keeps of one layer, in pages of the same number of keys; the last may have fewer. Element e
 * of key j of kv head g: pages[j / page_keys].keys[g * key_head + j % page_keys * key_stride + e]. */
typedef struct heft__keys {
    const heft__key_page *pages;
    size_t page_keys;            /* a multiple of HEFT__BLOCK_KEYS where there are several pages */
    heft_dtype dtype;            /* F32, BF16, F16 */
    size_t key_head, value_head; /* elements from one head to the next */
    size_t key_stride, value_stride; /* from one token to the next */
    size_t count;                    /* of all pages */
} heft__keys;
#define HEFT__BLOCK_KEYS ((size_t)64) /* that are attended to at a time */

typedef struct heft__queries {
    const float *q;              /* [count][heads][key_width] */
    float *out;                  /* [count][heads][value_width] */
    size_t q_stride, out_stride; /* floats from one token to the next */
    size_t count;
    const int32_t *at; /* [count] positions, not negative */
} heft__queries;

/* ---- elements ---------------------------------------------------------------------------------- */
typedef enum heft__act {
    HEFT__ACT_NONE,
    HEFT__ACT_SILU,       /* x / (1 + exp(-x)) */
    HEFT__ACT_GELU,       /* x / 2 * (1 + erf(x / sqrt 2)) */
    HEFT__ACT_GELU_TANH,  /* x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) */
    HEFT__ACT_QUICK_GELU, /* x / (1 + exp(-1.702 x)) */
    HEFT__ACT_RELU,
    HEFT__ACT_RELU2, /* relu(x)^2 */
    HEFT__ACT_TANH,
    HEFT__ACT_SIGMOID,
    HEFT__ACT_COUNT
} heft__act;

/* ---- a table per instruction set --------------------------------------------------------------- */
typedef struct heft__kernels {
    const char *isa; /* "plain", "neon", "avx2", "avx512", "avx512_bf16" */

    /* Bytes of an operand. */
    size_t (*operand_bytes)(size_t tokens, const heft__matrix *w, bool exact);
    /* Pieces that an operand is made of, each by one call of operand_fill. */
    size_t (*operand_pieces)(const heft__operand *operand);
    void (*operand_fill)(const heft__operand *operand, const float *x, size_t stride, size_t piece);
    /* Rows first .. last - 1 of the product: y[t * y_stride + r] for all tokens, plus bias[r] (NULL: none).
     * scratch: product_scratch bytes, aligned to 64. Ranges may be cut anywhere; those that begin at
     * multiples of product_rows are fastest. */
    void (*product)(float *y, size_t y_stride, const heft__operand *operand, const heft__matrix *w,
                    const float *bias, size_t first, size_t last, void *scratch);
    size_t product_scratch, product_rows;

    /* Whether products with compact matrices are faster than with others where memory bounds them. */
    bool compacts;
    /* Choose codes for w[rows][columns] and count exceptions: first[rows + 1]. False: it is to stay as it is. */
    bool (*compact_survey)(const uint16_t *w, size_t rows, size_t columns,
                           struct heft__compact_codes *codes, uint32_t *first);
    /* Rewrite it in its place, where its rows take three quarters then. exceptions[first[rows]]; room[columns] */
    void (*compact_rows)(void *data, size_t rows, size_t columns,
                         const struct heft__compact_codes *codes, const uint32_t *first,
                         uint32_t *exceptions, uint16_t *room);
    /* The high byte of each of the 16 codes. */
    void (*compact_table)(const struct heft__compact_codes *codes, uint8_t high[16]);
    /* A row as it was: to[columns] */
    void (*unpack_row)(uint16_t *to, const heft__compact *compact, size_t row);

    /* Attention of the query heads of kv head `head` (heads / kv_heads of them), queries first .. last - 1.
     * scratch: attend_scratch(a, keys->count) bytes, aligned to 64. */
    void (*attend)(const heft__attention *a, const heft__queries *queries, const heft__keys *keys,
                   size_t head, size_t first, size_t last, void *scratch);
    size_t (*attend_scratch)(const heft__attention *a, size_t keys);

    /* dst[i] = src[i] as float32, and the other way (nearest even). dtype: F32, BF16, F16 */
    void (*widen)(float *dst, const void *src, heft_dtype dtype, size_t count);
    void (*narrow)(void *dst, heft_dtype dtype, const float *src, size_t count);

    /* y[i] = x[i] / sqrt(mean(x^2) + eps) * (one + w[i]); w NULL: without it. y may be x. */
    void (*rms_norm)(float *y, const float *x, const float *w, float one, float eps, size_t count);
    /* y[i] = (x[i] - mean(x)) / sqrt(var(x) + eps) * w[i] + b[i]; w, b may be NULL. y may be x. */
    void (*layer_norm)(float *y, const float *x, const float *w, const float *b, float eps,
                       size_t count);
    /* x[i] / sqrt(sum(x^2)), 0 for a zero row. y may be x. */
    void (*unit)(float *y, const float *x, size_t count);

    /* Pairs (a, b) of x become (a cos - b sin, b cos + a sin), for i < count: halves: a = x[i], b = x[count + i];
     * interleaved: a = x[2 i], b = x[2 i + 1]. */
    void (*rotate)(float *x, const float *cos, const float *sin, size_t count, bool interleaved);

    void (*act)(heft__act act, float *x, size_t count); /* in place */
    /* a[i] = act(a[i]) * b[i] */
    void (*gate)(heft__act act, float *a, const float *b, size_t count);
    void (*add)(float *x, const float *y, size_t count);                 /* x += y */
    void (*add_scaled)(float *x, const float *y, float s, size_t count); /* x += s * y */
    void (*scale)(float *x, float s, size_t count);                      /* x *= s */
    void (*cap)(float *x, float cap, size_t count); /* x = cap * tanh(x / cap) */
    void (*softmax)(float *x, size_t count);        /* in place; zeros if all are -inf */
    /* Index of the largest, the first of equal ones; NaN counts as larger than anything. count >= 1 */
    size_t (*largest)(const float *x, size_t count);
    bool (*finite)(const float *x, size_t count); /* neither NaN nor infinite */
} heft__kernels;

/* The best table that this CPU supports; the one by its name (tests), NULL if it is not supported or not
 * built. HEFT_ISA in the environment is not read: a program's results must not depend on it. */
const heft__kernels *heft__kernels_best(void);
const heft__kernels *heft__kernels_named(const char *isa);
/* Table number i of those that this CPU supports, the plain one first; NULL past the end. */
const heft__kernels *heft__kernels_at(size_t i);
/* Scalar code that follows the formulas, in double where that is simpler: what tests compare with. */
extern const heft__kernels heft__kernels_reference;

#endif
