/* chunk.h - a step of a dot product: CHUNK elements of a row of weights and of an operand.
 *
 * How the operand lies depends on the weights, so that their elements need not change lanes:
 *
 *   F32, F16   as they are
 *   BF16       the even elements, then the odd ones: a shift and a mask widen a chunk of weights
 *   pairs      bfloat16, multiplied as such by an instruction
 *
 * A row of an operand ends with zeros up to a whole chunk. */
#ifndef HEFT__KERNEL_CHUNK_H
#define HEFT__KERNEL_CHUNK_H

#include "kernel/vector.h"

#define CHUNK ((size_t)2 * LANES)

#if defined(__AVX512BF16__)
#define HAVE_PAIRS true
#else
#define HAVE_PAIRS false
#endif

enum kind { KIND_F32, KIND_BF16, KIND_F16, KIND_PAIRS };

INLINE enum kind kind_of(heft_dtype dtype, bool pairs)
{
    return pairs                      ? KIND_PAIRS
           : dtype == HEFT_DTYPE_F32  ? KIND_F32
           : dtype == HEFT_DTYPE_BF16 ? KIND_BF16
                                      : KIND_F16;
}

typedef struct chunk {
    floats part[2]; /* pairs: the first one's bits */
} chunk;

/* Bytes of an element of the weights, of the operand. */
INLINE size_t weight_bytes(enum kind kind)
{
    return kind == KIND_F32 ? 4 : 2;
}

INLINE size_t operand_element_bytes(enum kind kind)
{
    return kind == KIND_PAIRS ? 2 : 4;
}

/* Of bfloat16 weights. */
INLINE chunk chunk_of(words bits, enum kind kind)
{
    chunk c = {0};
    c.part[0] = kind == KIND_PAIRS ? (floats)bits : (floats)(bits << 16);
    c.part[1] = (floats)(bits & 0xffff0000U);
    return c;
}

INLINE chunk load_weights(const char *w, enum kind kind)
{
    chunk c = {0};
    if (kind == KIND_F32 || kind == KIND_F16) {
        const heft_dtype dtype = kind == KIND_F32 ? HEFT_DTYPE_F32 : HEFT_DTYPE_F16;
        c.part[0] = load_as(w, 0, dtype);
        c.part[1] = load_as(w, LANES, dtype);
    } else {
        words bits;
        memcpy(&bits, w, sizeof bits);
        c = chunk_of(bits, kind);
    }
    return c;
}

/* The last chunk of a row, shorter than others: nothing behind it is read. */
INLINE chunk load_last_weights(const char *w, enum kind kind, size_t count)
{
    char room[CHUNK * 4] = {0};
    memcpy(room, w, count * weight_bytes(kind));
    return load_weights(room, kind);
}

INLINE chunk load_operand(const char *x, enum kind kind)
{
    chunk c = {0};
    memcpy(&c.part[0], x, sizeof c.part[0]);
    if (kind != KIND_PAIRS) {
        memcpy(&c.part[1], x + sizeof c.part[0], sizeof c.part[1]);
    }
    return c;
}

INLINE floats add_pairs(floats sum, floats a, floats b)
{
#if defined(__AVX512BF16__)
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    (void)a, (void)b;
    return sum;
#endif
}

/* One sum for both parts, or a sum each. */
INLINE floats add_chunk(floats sum, const chunk *w, const chunk *x, enum kind kind)
{
    if (kind == KIND_PAIRS) {
        return add_pairs(sum, w->part[0], x->part[0]);
    }
    sum = multiply_add(w->part[0], x->part[0], sum);
    return multiply_add(w->part[1], x->part[1], sum);
}

#endif
