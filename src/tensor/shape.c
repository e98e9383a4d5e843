/* shape.c - shapes: checked products, strides, text.
 *
 * A shape is an array of uint64_t in PyTorch's order, slowest dimension first. Shapes come from
 * files and are not trusted: every product is checked. The product runs from left to right, so
 * [2^32, 2^32, 0] overflows while [0, 2^32, 2^32] is 0; safetensors' own reader decides these two
 * the same way. */
#include "tensor/tensor.h"

bool heft__shape_elems(const uint64_t *shape, uint32_t rank, uint64_t *elems)
{
    uint64_t product = 1;
    for (uint32_t i = 0; i < rank; i++) {
        if (!heft__mul_u64(product, shape[i], &product)) {
            return false;
        }
    }
    *elems = product;
    return true;
}

bool heft__shape_bytes(heft_dtype dtype, const uint64_t *shape, uint32_t rank, uint64_t *bytes)
{
    uint64_t elems = 0;
    return heft__shape_elems(shape, rank, &elems) && heft__dtype_bytes(dtype, elems, bytes);
}

bool heft__shape_equal(const uint64_t *a, uint32_t a_rank, const uint64_t *b, uint32_t b_rank)
{
    if (a_rank != b_rank) {
        return false;
    }
    for (uint32_t i = 0; i < a_rank; i++) {
        if (a[i] != b[i]) {
            return false;
        }
    }
    return true;
}

char *heft__shape_text(const uint64_t *shape, uint32_t rank, char dst[HEFT__SHAPE_TEXT])
{
    static const char cut[] = "...]";
    size_t used = 0;
    dst[used++] = '[';
    for (uint32_t i = 0; i < rank; i++) {
        char number[32];
        int length = snprintf(number, sizeof number, "%s%llu", i > 0 ? ", " : "",
                              (unsigned long long)shape[i]);
        /* Room is kept for ", " and the dots, so that a truncated text is well-formed. */
        if (length < 0 || used + (size_t)length + 2 + sizeof cut > HEFT__SHAPE_TEXT) {
            snprintf(dst + used, HEFT__SHAPE_TEXT - used, "%s%s", i > 0 ? ", " : "", cut);
            return dst;
        }
        memcpy(dst + used, number, (size_t)length);
        used += (size_t)length;
    }
    dst[used++] = ']';
    dst[used] = '\0';
    return dst;
}

void heft__shape_strides(const uint64_t *shape, uint32_t rank, int64_t *dst)
{
    /* A dimension of 0 counts as 1, as in PyTorch. Only then can a stride leave the range although
     * the product of the shape did not; nothing is ever read through such a stride, so it stays at
     * the largest value. */
    uint64_t stride = 1;
    for (uint32_t i = rank; i-- > 0;) {
        dst[i] = stride > INT64_MAX ? INT64_MAX : (int64_t)stride;
        if (!heft__mul_u64(stride, shape[i] > 0 ? shape[i] : 1, &stride)) {
            stride = UINT64_MAX;
        }
    }
}
