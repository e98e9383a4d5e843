/* element_kernels.c - what works on each number by itself, and what looks through a row.
 *
 * Loops without intrinsics are left to the compiler: nothing is fused or reordered in them, so an
 * element's result does not depend on its place. */
#include "kernel/act.h"
#include "kernel/level.h"

#include <math.h>

/* ---- dtypes -------------------------------------------------------------------------------------- */
INLINE void widen_from(float *dst, const void *src, heft_dtype dtype, size_t count)
{
    for (size_t i = 0; i < count; i += LANES) {
        store_some(dst + i, load_some_as(src, i, dtype, count - i), count - i);
    }
}

void HEFT__KERNEL(widen)(float *dst, const void *src, heft_dtype dtype, size_t count)
{
    if (dtype == HEFT_DTYPE_F32) {
        memmove(dst, src, count * sizeof *dst);
    } else if (dtype == HEFT_DTYPE_BF16) {
        widen_from(dst, src, HEFT_DTYPE_BF16, count);
    } else {
        widen_from(dst, src, HEFT_DTYPE_F16, count);
    }
}

INLINE void narrow_to(uint16_t *dst, heft_dtype dtype, const float *src, size_t count)
{
    for (size_t i = 0; i < count; i += LANES) {
        const size_t left = count - i;
        const floats v = load_some(src + i, left);
        const halves h = __builtin_convertvector(
            dtype == HEFT_DTYPE_BF16 ? narrow_bf16(v) : narrow_f16(v), halves);
        memcpy(dst + i, &h, left < LANES ? left * sizeof *dst : sizeof h);
    }
}

void HEFT__KERNEL(narrow)(void *dst, heft_dtype dtype, const float *src, size_t count)
{
    if (dtype == HEFT_DTYPE_F32) {
        memmove(dst, src, count * sizeof *src);
    } else if (dtype == HEFT_DTYPE_BF16) {
        narrow_to(dst, HEFT_DTYPE_BF16, src, count);
    } else {
        narrow_to(dst, HEFT_DTYPE_F16, src, count);
    }
}

/* ---- rotary positions ---------------------------------------------------------------------------- */
static void rotate_halves(float *restrict a, float *restrict b, const float *restrict cosines,
                          const float *restrict sines, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const float from_a = a[i], from_b = b[i];
        a[i] = from_a * cosines[i] - from_b * sines[i];
        b[i] = from_b * cosines[i] + from_a * sines[i];
    }
}

static void rotate_pairs(float *restrict x, const float *restrict cosines,
                         const float *restrict sines, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosines[i] - b * sines[i];
        x[2 * i + 1] = b * cosines[i] + a * sines[i];
    }
}

void HEFT__KERNEL(rotate)(float *x, const float *cosines, const float *sines, size_t count,
                          bool interleaved)
{
    if (interleaved) {
        rotate_pairs(x, cosines, sines, count);
    } else {
        rotate_halves(x, x + count, cosines, sines, count);
    }
}

/* ---- activations --------------------------------------------------------------------------------- */
INLINE void act_loop(heft__act act, float *x, size_t count)
{
    for (size_t i = 0; i < count; i += LANES) {
        store_some(x + i, act_of(act, load_some(x + i, count - i)), count - i);
    }
}

INLINE void gate_loop(heft__act act, float *a, const float *b, size_t count)
{
    for (size_t i = 0; i < count; i += LANES) {
        const size_t left = count - i;
        store_some(a + i, act_of(act, load_some(a + i, left)) * load_some(b + i, left), left);
    }
}

/* A loop of its own for each kind: `run(kind)` is inlined with a constant. */
#define EACH_ACT(act, run)                                                                         \
    switch (act) {                                                                                 \
    case HEFT__ACT_SILU:                                                                           \
        run(HEFT__ACT_SILU);                                                                       \
        break;                                                                                     \
    case HEFT__ACT_GELU:                                                                           \
        run(HEFT__ACT_GELU);                                                                       \
        break;                                                                                     \
    case HEFT__ACT_GELU_TANH:                                                                      \
        run(HEFT__ACT_GELU_TANH);                                                                  \
        break;                                                                                     \
    case HEFT__ACT_QUICK_GELU:                                                                     \
        run(HEFT__ACT_QUICK_GELU);                                                                 \
        break;                                                                                     \
    case HEFT__ACT_RELU:                                                                           \
        run(HEFT__ACT_RELU);                                                                       \
        break;                                                                                     \
    case HEFT__ACT_RELU2:                                                                          \
        run(HEFT__ACT_RELU2);                                                                      \
        break;                                                                                     \
    case HEFT__ACT_TANH:                                                                           \
        run(HEFT__ACT_TANH);                                                                       \
        break;                                                                                     \
    case HEFT__ACT_SIGMOID:                                                                        \
        run(HEFT__ACT_SIGMOID);                                                                    \
        break;                                                                                     \
    case HEFT__ACT_NONE:                                                                           \
    case HEFT__ACT_COUNT:                                                                          \
        run(HEFT__ACT_NONE);                                                                       \
        break;                                                                                     \
    }

void HEFT__KERNEL(act)(heft__act act, float *x, size_t count)
{
#define RUN(kind) act_loop(kind, x, count)
    EACH_ACT(act, RUN)
#undef RUN
}

void HEFT__KERNEL(gate)(heft__act act, float *a, const float *b, size_t count)
{
#define RUN(kind) gate_loop(kind, a, b, count)
    EACH_ACT(act, RUN)
#undef RUN
}

void HEFT__KERNEL(cap)(float *x, float limit, size_t count)
{
    for (size_t i = 0; i < count; i += LANES) {
        store_some(x + i, capped(load_some(x + i, count - i), splat(limit)), count - i);
    }
}

/* ---- sums ---------------------------------------------------------------------------------------- */
void HEFT__KERNEL(add)(float *x, const float *y, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        x[i] += y[i];
    }
}

void HEFT__KERNEL(add_scaled)(float *x, const float *y, float s, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        x[i] += s * y[i];
    }
}

void HEFT__KERNEL(scale)(float *x, float s, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        x[i] *= s;
    }
}

/* ---- rows ---------------------------------------------------------------------------------------- */
/* The largest number that is not NaN; -infinity if there is none. */
static float top_of(const float *x, size_t count)
{
    floats top = splat(-INFINITY);
    size_t i = 0;
    for (; count - i >= LANES; i += LANES) {
        top = larger(load(x + i), top);
    }
    float best = largest_of(top);
    for (; i < count; i++) {
        best = x[i] > best ? x[i] : best;
    }
    return best;
}

void HEFT__KERNEL(softmax)(float *x, size_t count)
{
    const float best = top_of(x, count);
    const floats top = splat(best == -INFINITY ? 0.0F : best);
    floats sums = {0};
    size_t i = 0;
    for (; count - i >= LANES; i += LANES) {
        const floats e = exp_of(load(x + i) - top);
        store(x + i, e);
        sums += e;
    }
    float sum = sum_of(sums);
    if (i < count) {
        store_part(x + i, exp_of(load_part(x + i, count - i) - top), count - i);
    }
    for (; i < count; i++) {
        sum += x[i];
    }
    HEFT__KERNEL(scale)(x, sum == 0 ? 0.0F : 1.0F / sum, count);
}

static bool has_nan(const float *x, size_t count)
{
    ints found = {0};
    size_t i = 0;
    for (; count - i >= LANES; i += LANES) {
        const floats v = load(x + i);
        found |= v != v;
    }
    bool has = any(found);
    for (; i < count; i++) {
        has = has || isnan(x[i]);
    }
    return has;
}

size_t HEFT__KERNEL(largest)(const float *x, size_t count)
{
    size_t i = 0;
    if (has_nan(x, count)) {
        while (!isnan(x[i])) {
            i++;
        }
        return i;
    }
    const float best = top_of(x, count);
    while (count - i > LANES && !any(load(x + i) == splat(best))) {
        i += LANES;
    }
    while (x[i] != best) {
        i++;
    }
    return i;
}

bool HEFT__KERNEL(finite)(const float *x, size_t count)
{
    ints found = {0};
    size_t i = 0;
    for (; count - i >= LANES; i += LANES) {
        found |= ((words)load(x + i) & 0x7f800000U) == 0x7f800000U;
    }
    bool all = !any(found);
    for (; i < count; i++) {
        all = all && isfinite(x[i]);
    }
    return all;
}
