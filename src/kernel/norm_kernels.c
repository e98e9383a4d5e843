/* norm_kernels.c - norms of a row. Four sums in turn, which are added at the end. */
#include "kernel/level.h"
#include "kernel/vector.h"

#include <math.h>

#define STREAMS 4

/* Sum of (x - from)^2, or of x - from. */
INLINE float sum_row(const float *x, float from, size_t count, bool squared)
{
    floats sums[STREAMS] = {{0}, {0}, {0}, {0}};
    const floats shift = splat(from);
    size_t i = 0;
    for (; count - i >= STREAMS * LANES; i += STREAMS * LANES) {
        for (size_t s = 0; s < STREAMS; s++) {
            const floats d = load(x + i + s * LANES) - shift;
            sums[s] = squared ? multiply_add(d, d, sums[s]) : sums[s] + d;
        }
    }
    float sum = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
    float rest = 0;
    for (; i < count; i++) {
        const float d = x[i] - from;
        rest += squared ? d * d : d;
    }
    return sum + rest;
}

void HEFT__KERNEL(rms_norm)(float *y, const float *x, const float *w, float one, float eps,
                            size_t count)
{
    const float scale = 1.0F / sqrtf(sum_row(x, 0, count, true) / (float)count + eps);
    if (w) {
        for (size_t i = 0; i < count; i++) {
            y[i] = x[i] * scale * (one + w[i]);
        }
    } else {
        for (size_t i = 0; i < count; i++) {
            y[i] = x[i] * scale;
        }
    }
}

void HEFT__KERNEL(layer_norm)(float *y, const float *x, const float *w, const float *b, float eps,
                              size_t count)
{
    const float first = sum_row(x, 0, count, false) / (float)count;
    /* the rounding of a mean far from 0 is taken out */
    const float mean = first + sum_row(x, first, count, false) / (float)count;
    const float scale = 1.0F / sqrtf(sum_row(x, mean, count, true) / (float)count + eps);
    for (size_t i = 0; i < count; i++) {
        y[i] = (x[i] - mean) * scale;
    }
    for (size_t i = 0; w && i < count; i++) {
        y[i] *= w[i];
    }
    for (size_t i = 0; b && i < count; i++) {
        y[i] += b[i];
    }
}

/* The largest magnitude; NaN is left to the sum. */
static float reach_of(const float *x, size_t count)
{
    float most = 0;
    for (size_t i = 0; i < count; i++) {
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    }
    return most;
}

void HEFT__KERNEL(unit)(float *y, const float *x, size_t count)
{
    float sum = sum_row(x, 0, count, true), by = 1.0F;
    if (!(sum > 0x1p-80F && sum < 0x1p120F)) { /* squares under- or overflow: scale them */
        const float most = reach_of(x, count);
        if (most == 0 || isinf(most)) {
            by = 1.0F;
        } else {
            by = ldexpf(1.0F, -ilogbf(most) / 2);
        }
        for (size_t i = 0; i < count; i++) {
            y[i] = x[i] * by * by;
        }
        sum = sum_row(y, 0, count, true);
        x = y;
    }
    const float scale = sum == 0 ? 0.0F : 1.0F / sqrtf(sum);
    for (size_t i = 0; i < count; i++) {
        y[i] = x[i] * scale;
    }
}
