/* act.h - activation functions of vectors.
 *
 * Each is right within a few units in the last place over all of float32: also where an exponential
 * overflows, and at infinities; a NaN stays one. */
#ifndef HEFT__KERNEL_ACT_H
#define HEFT__KERNEL_ACT_H

#include "kernel/kernel.h"
#include "kernel/vector.h"

/* 1 / (1 + exp(-x)), with the exponential of a number that is not positive: it cannot overflow. */
INLINE floats sigmoid(floats x)
{
    const floats e = exp_of(-magnitude(x));
    const floats one = splat(1.0F);
    return choose(x < 0, e, one) / (one + e);
}

/* x * sigmoid(k): 0 where x is so far below 0 that the product underflows, also at -infinity. */
INLINE floats times_sigmoid(floats x, floats k)
{
    return larger(splat(-1000.0F), x) * sigmoid(k);
}

INLINE floats gelu_tanh(floats x)
{
    /* 2 sqrt(2 / pi) (x + 0.044715 x^3); below -20 the result is 0, above 20 x */
    const floats t = smaller(splat(20.0F), larger(splat(-20.0F), x));
    const floats k = t * multiply_add(t * t, splat(0.0713548163F), splat(1.59576912F));
    return larger(splat(-20.0F), x) * sigmoid(k);
}

/* x times the normal distribution function of x, which is erfc(-x / sqrt 2) / 2. With t = |x| / sqrt 2:
 * erfc(t) = exp(-t^2) u p(u), u = 1 / (1 + t / 2), p fitted for t <= 10. The square is taken in two parts, since
 * a rounding of it would be an error of the exponential. */
INLINE floats gelu(floats x)
{
    const floats a = smaller(splat(20.0F), magnitude(x)), one = splat(1.0F);
    const floats high = (floats)((words)a & 0xfffff000U);
    const floats square = high * high * splat(-0.5F);
    const floats rest = (a - high) * (a + high) * splat(-0.5F);
    const floats u = one / multiply_add(a, splat(0.353553391F), one);
    floats p = splat(0.0353759121F);
    p = multiply_add(p, u, splat(-0.188708874F));
    p = multiply_add(p, u, splat(0.375364538F));
    p = multiply_add(p, u, splat(-0.280506461F));
    p = multiply_add(p, u, splat(-0.030635838F));
    p = multiply_add(p, u, splat(0.0409007725F));
    p = multiply_add(p, u, splat(0.0525461011F));
    p = multiply_add(p, u, splat(0.186247932F));
    p = multiply_add(p, u, splat(0.245063964F));
    p = multiply_add(p, u, splat(0.282263934F));
    p = multiply_add(p, u, splat(0.282088024F));
    const floats tail = splat(0.5F) * u * p * exp_sum(square, rest);
    return larger(splat(-20.0F), x) * choose(x < 0, tail, one - tail);
}

/* A polynomial near 0, where the other formula would cancel. */
INLINE floats tanh_of(floats x)
{
    const floats t = magnitude(x), s = x * x, one = splat(1.0F);
    floats p = splat(0.00214753687F);
    p = multiply_add(p, s, splat(-0.00818267386F));
    p = multiply_add(p, s, splat(0.0217029671F));
    p = multiply_add(p, s, splat(-0.0539472043F));
    p = multiply_add(p, s, splat(0.133332098F));
    p = multiply_add(p, s, splat(-0.333333309F));
    const floats near = multiply_add(x * s, p, x);
    const floats far = one - splat(2.0F) / (exp_of(t + t) + one);
    return with_sign(choose(t < splat(0.625F), near, far), x);
}

/* cap * tanh(x / cap) */
INLINE floats capped(floats x, floats cap)
{
    return cap * tanh_of(x / cap);
}

INLINE floats act_of(heft__act act, floats x)
{
    const floats zero = {0};
    switch (act) {
    case HEFT__ACT_SILU:
        return times_sigmoid(x, x);
    case HEFT__ACT_GELU:
        return gelu(x);
    case HEFT__ACT_GELU_TANH:
        return gelu_tanh(x);
    case HEFT__ACT_QUICK_GELU:
        return times_sigmoid(x, x * splat(1.702F));
    case HEFT__ACT_RELU:
        return choose(x < zero, zero, x);
    case HEFT__ACT_RELU2:
        return choose(x < zero, zero, x * x);
    case HEFT__ACT_TANH:
        return tanh_of(x);
    case HEFT__ACT_SIGMOID:
        return sigmoid(x);
    case HEFT__ACT_NONE:
    case HEFT__ACT_COUNT:
        break;
    }
    return x;
}

#endif
