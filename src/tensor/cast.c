/* cast.c - convert arrays from one data type to another.
 *
 * Pairs with a loop of their own are in cast_lanes.c. All others take two or more of these loops, in
 * pieces that stay in the cache:
 *
 *   bool       --> uint8 (0 or 1) --> any
 *   a float of 8 or 16 bits --> float32 --> any
 *   any        --> float32 --> a float of 8 or 16 bits
 *   real       --> the type of the real part --> complex, with an imaginary part of 0
 *   complex    --> complex: part by part
 *
 * float64, and integers of more than 24 bits, to a float of 8 or 16 bits are rounded twice, because
 * PyTorch converts through float as well (c10/util/Half.h) and the same bytes matter more than the
 * last place. Complex numbers do not become real ones: PyTorch drops the imaginary part with a
 * warning, which nobody sees in a load. */
#include "tensor/lanes.h"

#include <assert.h>

#define PIECE_ELEMS 1024

const struct heft__cast_lanes *heft__cast_lanes(void)
{
    static const struct heft__cast_lanes *const tables[HEFT__LEVEL_COUNT] = {
        [HEFT__LEVEL_BASE] = &heft__cast_lanes_base,
#ifdef HEFT_LANES_X86
        [HEFT__LEVEL_AVX2] = &heft__cast_lanes_avx2,
        [HEFT__LEVEL_AVX512] = &heft__cast_lanes_avx512,
#endif
    };
    return tables[heft__lanes_level()];
}

/* ---- which pairs ---------------------------------------------------------------------------- */
/* The dtype of a complex dtype's parts; NONE for all others. */
static heft_dtype part_of(heft_dtype dtype)
{
    return dtype == HEFT_DTYPE_C32    ? HEFT_DTYPE_F16
           : dtype == HEFT_DTYPE_C64  ? HEFT_DTYPE_F32
           : dtype == HEFT_DTYPE_C128 ? HEFT_DTYPE_F64
                                      : HEFT_DTYPE_NONE;
}

/* One real number per element, in whole bytes. */
static bool is_real(heft_dtype dtype)
{
    return heft__dtype_is_integer(dtype) ||
           (heft_dtype_is_floating(dtype) && heft_dtype_bits(dtype) % 8 == 0);
}

bool heft__cast_known(heft_dtype from, heft_dtype to)
{
    if (from == to) {
        return heft_dtype_bits(from) > 0;
    }
    if (heft__dtype_is_complex(to)) {
        return is_real(from) || heft__dtype_is_complex(from);
    }
    return is_real(from) && is_real(to);
}

/* Why not; "" if there is nothing to say. */
static const char *why_not(heft_dtype from, heft_dtype to)
{
    const heft_dtype pair[2] = {from, to};
    for (size_t i = 0; i < 2; i++) {
        if (heft_dtype_bits(pair[i]) % 8 != 0) {
            return i == 0 ? ": the values to cast share bytes" : ": the results would share bytes";
        }
        if (heft_dtype_bits(pair[i]) > 0 && !is_real(pair[i]) && !heft__dtype_is_complex(pair[i])) {
            return i == 0 ? ": what is stored are codes, not numbers"
                          : ": it has codes, not numbers";
        }
    }
    return heft__dtype_is_complex(from) && is_real(to) ? ": the imaginary part would be lost" : "";
}

heft_status heft__cast_check(heft_dtype from, heft_dtype to, heft_status refusal, heft_error *err)
{
    return heft__cast_known(from, to)
               ? HEFT_OK
               : heft__fail(err, refusal, "%s cannot be cast to %s%s", heft_dtype_name(from),
                            heft_dtype_name(to), why_not(from, to));
}

bool heft__dtype_is_wide_float(heft_dtype dtype)
{
    return dtype == HEFT_DTYPE_F64 || dtype == HEFT_DTYPE_F32 || dtype == HEFT_DTYPE_F16 ||
           dtype == HEFT_DTYPE_BF16;
}

/* ---- the steps of a cast -------------------------------------------------------------------- */
#define STEPS_MOST 4 /* bool, uint8, float32, float16, complex32 */

struct steps {
    size_t count;
    heft__cast_fn run[STEPS_MOST];
};

/* What comes next on the way from one dtype to another. */
static heft_dtype next_of(const struct heft__cast_lanes *lanes, heft_dtype from, heft_dtype to)
{
    const heft_dtype part = part_of(to);
    if (lanes->direct[from][to] != NULL) {
        return to;
    }
    if (part != HEFT_DTYPE_NONE) {
        return next_of(lanes, from, part);
    }
    return from == HEFT_DTYPE_BOOL ? HEFT_DTYPE_U8 : HEFT_DTYPE_F32;
}

static struct steps find_steps(heft_dtype from, heft_dtype to)
{
    const struct heft__cast_lanes *lanes = heft__cast_lanes();
    struct steps steps = {0};
    while (from != to) {
        const heft_dtype next = next_of(lanes, from, to);
        assert(steps.count < STEPS_MOST);
        steps.run[steps.count++] = lanes->direct[from][next];
        from = next;
    }
    return steps;
}

/* One piece through all steps; the last one writes to dst, which may be src. */
static void run_steps(const struct steps *steps, void *dst, size_t dst_bytes, const void *src,
                      size_t elems)
{
    uint8_t between[2][PIECE_ELEMS * sizeof(uint64_t)];
    const void *from = src;
    for (size_t i = 0; i < steps->count; i++) {
        const bool last = i + 1 == steps->count;
        void *to = last && from != dst ? dst : between[i % 2];
        steps->run[i](to, from, elems);
        from = to;
    }
    if (from != dst) {
        memcpy(dst, from, dst_bytes);
    }
}

void heft__cast(heft_dtype to, void *dst, heft_dtype from, const void *src, size_t elems)
{
    assert(heft__cast_known(from, to));
    if (elems == 0) {
        return;
    }
    if (from == to) {
        size_t bits = heft_dtype_bits(from);
        if (dst != src) {
            memcpy(dst, src, elems / 8 * bits + (elems % 8 * bits + 7) / 8);
        }
        return;
    }
    if (heft__dtype_is_complex(from)) {
        heft__cast(part_of(to), dst, part_of(from), src, 2 * elems);
        return;
    }
    const struct steps steps = find_steps(from, to);
    if (steps.count == 1 && dst != src) {
        steps.run[0](dst, src, elems);
        return;
    }
    const size_t from_bytes = heft_dtype_bits(from) / 8;
    const size_t to_bytes = heft_dtype_bits(to) / 8;
    for (size_t done = 0; done < elems; done += PIECE_ELEMS) {
        const size_t count = elems - done < PIECE_ELEMS ? elems - done : PIECE_ELEMS;
        run_steps(&steps, (uint8_t *)dst + done * to_bytes, count * to_bytes,
                  (const uint8_t *)src + done * from_bytes, count);
    }
}

/* ---- the public edge ---------------------------------------------------------------------- */
bool heft_cast_known(heft_dtype from, heft_dtype to)
{
    return heft__cast_known(from, to);
}

/* Whether two runs share a byte. */
static bool overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    const uintptr_t first = (uintptr_t)a;
    const uintptr_t second = (uintptr_t)b;
    return first < second ? second - first < a_bytes : first - second < b_bytes;
}

heft_status heft_cast(heft_dtype to, void *dst, heft_dtype from, const void *src, size_t elems,
                      heft_error *err)
{
    uint64_t to_bytes = 0;
    uint64_t from_bytes = 0;
    const heft_status status = heft__cast_check(from, to, HEFT_INVALID_ARG, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (!heft__dtype_bytes(to, elems, &to_bytes) || !heft__dtype_bytes(from, elems, &from_bytes) ||
        to_bytes > SIZE_MAX || from_bytes > SIZE_MAX) {
        return heft__fail(err, HEFT_INVALID_ARG, "%zu elements of %s have no valid size in bytes",
                          elems, heft_dtype_name(from));
    }
    if (elems > 0 && (dst == NULL || src == NULL)) {
        return heft__fail(err, HEFT_INVALID_ARG, "source or destination of a cast is NULL");
    }
    const bool in_place = dst == src && to_bytes == from_bytes;
    if (elems > 0 && !in_place && overlap(dst, (size_t)to_bytes, src, (size_t)from_bytes)) {
        return heft__fail(err, HEFT_INVALID_ARG, "source and destination of a cast overlap");
    }
    heft__cast(to, dst, from, src, elems);
    return HEFT_OK;
}
