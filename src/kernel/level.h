/* level.h - what the files of one instruction set share: names, and the functions of its table.
 *
 * A file called *_kernels.c is compiled once for each level with HEFT__KERNEL_LEVEL set to plain, avx2,
 * avx512 or avx512_bf16. HEFT__KERNEL(name) is a name of that level; everything else in such a file is
 * static. table_kernels.c puts the functions into heft__kernels_LEVEL. */
#ifndef HEFT__KERNEL_LEVEL_H
#define HEFT__KERNEL_LEVEL_H

#include "kernel/kernel.h"

extern const heft__kernels heft__kernels_plain;
extern const heft__kernels heft__kernels_avx2;
extern const heft__kernels heft__kernels_avx512;
extern const heft__kernels heft__kernels_avx512_bf16;

#ifdef HEFT__KERNEL_LEVEL
#define HEFT__KERNEL_JOIN_(name, level) heft__##name##_##level
#define HEFT__KERNEL_JOIN(name, level) HEFT__KERNEL_JOIN_(name, level)
#define HEFT__KERNEL(name) HEFT__KERNEL_JOIN(name, HEFT__KERNEL_LEVEL)

/* ---- product_kernels.c: chooses the form by the number of tokens -------------------------------- */
size_t HEFT__KERNEL(operand_bytes)(size_t tokens, const heft__matrix *w, bool exact);
size_t HEFT__KERNEL(operand_pieces)(const heft__operand *operand);
void HEFT__KERNEL(operand_fill)(const heft__operand *operand, const float *x, size_t stride,
                                size_t piece);
void HEFT__KERNEL(product)(float *y, size_t y_stride, const heft__operand *operand,
                           const heft__matrix *w, const float *bias, size_t first, size_t last,
                           void *scratch);

/* A product of a few tokens. */
struct heft__few {
    float *y;
    size_t y_stride;
    const heft__matrix *w;
    const float *bias;
    const void *x; /* the operand's data */
    size_t tokens;
    size_t first, last; /* rows */
};
/* dot_kernels.c: rows of w times tokens. pairs: x is bfloat16 and multiplied as such. */
void HEFT__KERNEL(dot)(const struct heft__few *few, bool pairs);
/* turned_kernels.c: stored rows, scaled and added. x[tokens][columns]. sums: HEFT__TURNED_SUMS floats */
void HEFT__KERNEL(turned)(const struct heft__few *few, float *sums);
#define HEFT__TURNED_SUMS 8192

/* ---- panel_kernels.c ----------------------------------------------------------------------------- */
void HEFT__KERNEL(panel)(float *y, size_t y_stride, const heft__operand *operand,
                         const heft__matrix *w, const float *bias, size_t first, size_t last,
                         void *scratch);
#define HEFT__PANEL_ROWS 48                        /* rows of w at a time */
#define HEFT__PANEL_DEPTH 1024                     /* columns at a time */
#define HEFT__PANEL_TOKENS 256                     /* tokens at a time */
#define HEFT__PANEL_PITCH (HEFT__PANEL_DEPTH + 16) /* not a power of 2: rows share no cache sets */
#define HEFT__PANEL_SCRATCH                                                                        \
    (HEFT__PANEL_ROWS * (HEFT__PANEL_TOKENS + HEFT__PANEL_PITCH) * sizeof(float))

/* ---- compact_kernels.c ------------------------------------------------------------------------------ */
bool HEFT__KERNEL(compact_survey)(const uint16_t *w, size_t rows, size_t columns,
                                  struct heft__compact_codes *codes, uint32_t *first);
void HEFT__KERNEL(compact_rows)(void *data, size_t rows, size_t columns,
                                const struct heft__compact_codes *codes, const uint32_t *first,
                                uint32_t *exceptions, uint16_t *room);
void HEFT__KERNEL(compact_table)(const struct heft__compact_codes *codes, uint8_t high[16]);
void HEFT__KERNEL(unpack_row)(uint16_t *to, const heft__compact *compact, size_t row);

/* ---- attend_kernels.c ---------------------------------------------------------------------------- */
void HEFT__KERNEL(attend)(const heft__attention *a, const heft__queries *queries,
                          const heft__keys *keys, size_t head, size_t first, size_t last,
                          void *scratch);
size_t HEFT__KERNEL(attend_scratch)(const heft__attention *a, size_t keys);

/* ---- element_kernels.c, norm_kernels.c ----------------------------------------------------------- */
void HEFT__KERNEL(widen)(float *dst, const void *src, heft_dtype dtype, size_t count);
void HEFT__KERNEL(narrow)(void *dst, heft_dtype dtype, const float *src, size_t count);
void HEFT__KERNEL(rms_norm)(float *y, const float *x, const float *w, float one, float eps,
                            size_t count);
void HEFT__KERNEL(layer_norm)(float *y, const float *x, const float *w, const float *b, float eps,
                              size_t count);
void HEFT__KERNEL(unit)(float *y, const float *x, size_t count);
void HEFT__KERNEL(rotate)(float *x, const float *cosines, const float *sines, size_t count,
                          bool interleaved);
void HEFT__KERNEL(act)(heft__act act, float *x, size_t count);
void HEFT__KERNEL(gate)(heft__act act, float *a, const float *b, size_t count);
void HEFT__KERNEL(add)(float *x, const float *y, size_t count);
void HEFT__KERNEL(add_scaled)(float *x, const float *y, float s, size_t count);
void HEFT__KERNEL(scale)(float *x, float s, size_t count);
void HEFT__KERNEL(cap)(float *x, float limit, size_t count);
void HEFT__KERNEL(softmax)(float *x, size_t count);
size_t HEFT__KERNEL(largest)(const float *x, size_t count);
bool HEFT__KERNEL(finite)(const float *x, size_t count);
#endif

#endif
