/* cast.c - convert arrays from one data type to another.
 *
 * Common pairs have a loop of their own in cast_lanes.c. All others go through float32 in pieces
 * that stay in the cache: exact on the way in, one rounding on the way out. float64 to a half type
 * is the exception, it rounds twice, because PyTorch converts through float as well
 * (c10/util/Half.h) and the same bytes matter more than the last half place. */
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

static bool is_wide_float(heft_dtype dtype)
{
    return dtype == HEFT_DTYPE_F64 || dtype == HEFT_DTYPE_F32 || dtype == HEFT_DTYPE_F16 ||
           dtype == HEFT_DTYPE_BF16;
}

static bool is_byte_float(heft_dtype dtype)
{
    return heft_dtype_is_floating(dtype) && heft_dtype_bits(dtype) == 8;
}

bool heft__cast_known(heft_dtype from, heft_dtype to)
{
    if (from == to) {
        return heft_dtype_bits(from) > 0;
    }
    return is_wide_float(to) && (is_wide_float(from) || is_byte_float(from));
}

/* To float32; NULL if it is that already. */
static heft__cast_fn widen_of(const struct heft__cast_lanes *lanes, heft_dtype from)
{
    const heft__cast_fn table[HEFT_DTYPE_COUNT] = {
        [HEFT_DTYPE_F64] = lanes->f32_from_f64,
        [HEFT_DTYPE_F16] = lanes->f32_from_f16,
        [HEFT_DTYPE_BF16] = lanes->f32_from_bf16,
        [HEFT_DTYPE_F8_E4M3FN] = lanes->f32_from_e4m3fn,
        [HEFT_DTYPE_F8_E5M2] = lanes->f32_from_e5m2,
        [HEFT_DTYPE_F8_E4M3FNUZ] = lanes->f32_from_e4m3fnuz,
        [HEFT_DTYPE_F8_E5M2FNUZ] = lanes->f32_from_e5m2fnuz,
        [HEFT_DTYPE_F8_E8M0FNU] = lanes->f32_from_e8m0fnu,
    };
    return table[from];
}

/* From float32; NULL if it stays that. */
static heft__cast_fn narrow_of(const struct heft__cast_lanes *lanes, heft_dtype to)
{
    const heft__cast_fn table[HEFT_DTYPE_COUNT] = {
        [HEFT_DTYPE_F64] = lanes->f64_from_f32,
        [HEFT_DTYPE_F16] = lanes->f16_from_f32,
        [HEFT_DTYPE_BF16] = lanes->bf16_from_f32,
    };
    return table[to];
}

static heft__cast_fn direct_of(const struct heft__cast_lanes *lanes, heft_dtype from, heft_dtype to)
{
    if (to == HEFT_DTYPE_F32) {
        return widen_of(lanes, from);
    }
    if (from == HEFT_DTYPE_F32) {
        return narrow_of(lanes, to);
    }
    if (from == HEFT_DTYPE_F16 && to == HEFT_DTYPE_BF16) {
        return lanes->bf16_from_f16;
    }
    if (from == HEFT_DTYPE_BF16 && to == HEFT_DTYPE_F16) {
        return lanes->f16_from_bf16;
    }
    return NULL;
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
    const struct heft__cast_lanes *lanes = heft__cast_lanes();
    heft__cast_fn direct = direct_of(lanes, from, to);
    if (direct != NULL && dst != src) {
        direct(dst, src, elems);
        return;
    }
    heft__cast_fn widen = widen_of(lanes, from);
    heft__cast_fn narrow = narrow_of(lanes, to);
    size_t from_bytes = heft_dtype_bits(from) / 8;
    size_t to_bytes = heft_dtype_bits(to) / 8;
    for (size_t done = 0; done < elems; done += PIECE_ELEMS) {
        float piece[PIECE_ELEMS];
        size_t count = elems - done < PIECE_ELEMS ? elems - done : PIECE_ELEMS;
        widen(piece, (const uint8_t *)src + done * from_bytes, count);
        narrow((uint8_t *)dst + done * to_bytes, piece, count);
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
    if (!heft__cast_known(from, to)) {
        return heft__fail(err, HEFT_INVALID_ARG, "%s cannot be cast to %s", heft_dtype_name(from),
                          heft_dtype_name(to));
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
