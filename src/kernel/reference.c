/* reference.c - the kernels as scalar code that follows the formulas of kernel.h, in double.
 *
 * Tests compare every instruction set with it. It reads no element that the formulas do not name: an unseen key's value may be
 * anything. */
#include "kernel/half.h"
#include "kernel/kernel.h"

#include <math.h>

static double element(const void *data, heft_dtype dtype, size_t i)
{
    if (dtype == HEFT_DTYPE_F32) {
        float value;
        memcpy(&value, (const char *)data + i * sizeof value, sizeof value);
        return (double)value;
    }
    uint16_t bits;
    memcpy(&bits, (const char *)data + i * sizeof bits, sizeof bits);
    return (double)(dtype == HEFT_DTYPE_BF16 ? heft__bf16_wide(bits) : heft__f16_wide(bits));
}

/* ---- products ---------------------------------------------------------------------------------- */
/* An operand is the activations as they are, rounded if they have to be: [tokens][columns]. */
static size_t operand_bytes(size_t tokens, const heft__matrix *w, bool exact)
{
    (void)exact;
    return tokens * w->columns * sizeof(float);
}

static size_t operand_pieces(const heft__operand *operand)
{
    return operand->tokens;
}

static void operand_fill(const heft__operand *operand, const float *x, size_t stride, size_t piece)
{
    float *to = (float *)operand->data + piece * operand->columns;
    const bool round = operand->dtype == HEFT_DTYPE_BF16 && !operand->exact;
    x += piece * stride;
    for (size_t c = 0; c < operand->columns; c++) {
        to[c] = round ? heft__bf16_wide(heft__bf16_narrow(x[c])) : x[c];
    }
}

static void product(float *y, size_t y_stride, const heft__operand *operand, const heft__matrix *w,
                    const float *bias, size_t first, size_t last, void *scratch)
{
    const float *data = (const float *)operand->data;
    (void)scratch;
    for (size_t t = 0; t < operand->tokens; t++) {
        const float *x = data + t * w->columns;
        for (size_t r = first; r < last; r++) {
            double sum = bias ? (double)bias[r] : 0;
            for (size_t c = 0; c < w->columns; c++) {
                const size_t at = w->turned ? c * w->stride + r : r * w->stride + c;
                sum += (double)x[c] * element(w->data, w->dtype, at);
            }
            y[t * y_stride + r] = (float)sum;
        }
    }
}

/* ---- attention --------------------------------------------------------------------------------- */
static bool sees(const heft__attention *a, int64_t query, int64_t key)
{
    const int64_t ahead = key - query;
    if (key < 0 || (a->causal && ahead > 0)) {
        return false;
    }
    return a->window == 0 || (-ahead < a->window && (a->causal || ahead < a->window));
}

/* The logit of a key that a query sees. */
static double logit(const heft__attention *a, const float *q, const heft__keys *keys, size_t j,
                    size_t head, int64_t ahead)
{
    const size_t from =
        head * a->kv_heads / a->heads * keys->key_head + j % keys->page_keys * keys->key_stride;
    double s = 0;
    for (size_t e = 0; e < a->key_width; e++) {
        s += (double)q[e] * element(keys->pages[j / keys->page_keys].keys, keys->dtype, from + e);
    }
    s *= (double)a->scale;
    if (a->cap != 0) {
        s = (double)a->cap * tanh(s / (double)a->cap);
    }
    if (a->slopes && a->coarse != 0) {
        const int32_t at = keys->pages[j / keys->page_keys].at[j % keys->page_keys];
        const float place = heft__bf16_wide(heft__bf16_narrow((float)at));
        s +=
            (double)a->coarse * (double)heft__bf16_wide(heft__bf16_narrow(a->slopes[head] * place));
    } else if (a->slopes) {
        s += (double)a->slopes[head] * (double)ahead;
    }
    if (a->bias) {
        const int64_t reach = a->bias_reach;
        const int64_t near = ahead < -reach ? -reach : ahead > reach ? reach : ahead;
        s += (double)a->bias[head * (2 * (size_t)reach + 1) + (size_t)(near + reach)];
    }
    return s;
}

static void attend_one(const heft__attention *a, const heft__queries *queries,
                       const heft__keys *keys, size_t i, size_t head, double *weights)
{
    const float *q = queries->q + i * queries->q_stride + head * a->key_width;
    float *out = queries->out + i * queries->out_stride + head * a->value_width;
    double top = a->sinks ? (double)a->sinks[head] : -(double)INFINITY;
    double sum = 0;
    for (size_t j = 0; j < keys->count; j++) {
        weights[j] = -(double)INFINITY;
        const int32_t at = keys->pages[j / keys->page_keys].at[j % keys->page_keys];
        if (sees(a, queries->at[i], at)) {
            const int64_t ahead = (int64_t)at - queries->at[i];
            weights[j] = logit(a, q, keys, j, head, ahead);
            top = weights[j] > top ? weights[j] : top;
        }
    }
    top = top == -(double)INFINITY ? 0 : top;
    sum += a->sinks ? exp((double)a->sinks[head] - top) : 0;
    for (size_t j = 0; j < keys->count; j++) {
        weights[j] = weights[j] == -(double)INFINITY ? 0 : exp(weights[j] - top);
        sum += weights[j];
    }
    const size_t from = head * a->kv_heads / a->heads * keys->value_head;
    for (size_t e = 0; e < a->value_width; e++) {
        double v = 0;
        for (size_t j = 0; j < keys->count; j++) {
            if (weights[j] != 0) {
                v += weights[j] * element(keys->pages[j / keys->page_keys].values, keys->dtype,
                                          from + j % keys->page_keys * keys->value_stride + e);
            }
        }
        out[e] = sum == 0 ? 0.0F : (float)(v / sum);
    }
}

static void attend(const heft__attention *a, const heft__queries *queries, const heft__keys *keys,
                   size_t head, size_t first, size_t last, void *scratch)
{
    const size_t group = a->heads / a->kv_heads;
    for (size_t i = first; i < last; i++) {
        for (size_t h = head * group; h < (head + 1) * group; h++) {
            attend_one(a, queries, keys, i, h, scratch);
        }
    }
}

static size_t attend_scratch(const heft__attention *a, size_t keys)
{
    (void)a;
    return keys * sizeof(double);
}

/* ---- elements ---------------------------------------------------------------------------------- */
static void widen(float *dst, const void *src, heft_dtype dtype, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        dst[i] = (float)element(src, dtype, i);
    }
}

static void narrow(void *dst, heft_dtype dtype, const float *src, size_t count)
{
    if (dtype == HEFT_DTYPE_F32) {
        memmove(dst, src, count * sizeof *src);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        const uint16_t bits =
            dtype == HEFT_DTYPE_BF16 ? heft__bf16_narrow(src[i]) : heft__f16_narrow(src[i]);
        memcpy((char *)dst + i * sizeof bits, &bits, sizeof bits);
    }
}

static void rms_norm(float *y, const float *x, const float *w, float one, float eps, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    const double scale = 1 / sqrt(sum / (double)count + (double)eps);
    for (size_t i = 0; i < count; i++) {
        y[i] = (float)((double)x[i] * scale * (w ? (double)one + (double)w[i] : 1));
    }
}

static void layer_norm(float *y, const float *x, const float *w, const float *b, float eps,
                       size_t count)
{
    double mean = 0, var = 0;
    for (size_t i = 0; i < count; i++) {
        mean += (double)x[i] / (double)count;
    }
    for (size_t i = 0; i < count; i++) {
        var += ((double)x[i] - mean) * ((double)x[i] - mean) / (double)count;
    }
    const double scale = 1 / sqrt(var + (double)eps);
    for (size_t i = 0; i < count; i++) {
        const double z = ((double)x[i] - mean) * scale;
        y[i] = (float)(z * (w ? (double)w[i] : 1) + (b ? (double)b[i] : 0));
    }
}

static void unit(float *y, const float *x, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    const double scale = sum == 0 ? 0 : 1 / sqrt(sum);
    for (size_t i = 0; i < count; i++) {
        y[i] = (float)((double)x[i] * scale);
    }
}

static void rotate(float *x, const float *cosines, const float *sines, size_t count,
                   bool interleaved)
{
    for (size_t i = 0; i < count; i++) {
        float *a = interleaved ? x + 2 * i : x + i;
        float *b = interleaved ? a + 1 : a + count;
        const double c = (double)cosines[i], s = (double)sines[i];
        const double from_a = (double)*a, from_b = (double)*b;
        *a = (float)(from_a * c - from_b * s);
        *b = (float)(from_b * c + from_a * s);
    }
}

/* x / (1 + exp(-k)), also where the exponential overflows and x is infinite. */
static double gated_by_sigmoid(double x, double k)
{
    const double sigmoid = 1 / (1 + exp(-k));
    return sigmoid == 0 ? 0 : x * sigmoid;
}

static double act_one(heft__act act, double x)
{
    switch (act) {
    case HEFT__ACT_SILU:
        return gated_by_sigmoid(x, x);
    case HEFT__ACT_GELU:
        return erfc(-x / sqrt(2)) == 0 ? 0 : x / 2 * erfc(-x / sqrt(2));
    case HEFT__ACT_GELU_TANH:
        return gated_by_sigmoid(x, 2 * sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x));
    case HEFT__ACT_QUICK_GELU:
        return gated_by_sigmoid(x, 1.702 * x);
    case HEFT__ACT_RELU:
        return x < 0 ? 0 : x;
    case HEFT__ACT_RELU2:
        return x < 0 ? 0 : x * x;
    case HEFT__ACT_TANH:
        return tanh(x);
    case HEFT__ACT_SIGMOID:
        return 1 / (1 + exp(-x));
    case HEFT__ACT_NONE:
    case HEFT__ACT_COUNT:
        break;
    }
    return x;
}

static void act(heft__act kind, float *x, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        x[i] = (float)act_one(kind, (double)x[i]);
    }
}

static void gate(heft__act kind, float *a, const float *b, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        a[i] = (float)(act_one(kind, (double)a[i]) * (double)b[i]);
    }
}

static void add(float *x, const float *y, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        x[i] += y[i];
    }
}

static void add_scaled(float *x, const float *y, float s, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        x[i] = (float)((double)x[i] + (double)s * (double)y[i]);
    }
}

static void scale(float *x, float s, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        x[i] *= s;
    }
}

static void cap(float *x, float limit, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        x[i] = (float)((double)limit * tanh((double)x[i] / (double)limit));
    }
}

static void softmax(float *x, size_t count)
{
    double top = -(double)INFINITY, sum = 0;
    for (size_t i = 0; i < count; i++) {
        top = (double)x[i] > top ? (double)x[i] : top;
    }
    top = top == -(double)INFINITY ? 0 : top;
    for (size_t i = 0; i < count; i++) {
        sum += exp((double)x[i] - top);
    }
    for (size_t i = 0; i < count; i++) {
        x[i] = sum == 0 ? 0.0F : (float)(exp((double)x[i] - top) / sum);
    }
}

static size_t largest(const float *x, size_t count)
{
    size_t best = 0;
    for (size_t i = 0; i < count; i++) {
        if (isnan(x[i])) {
            return i;
        }
        best = x[i] > x[best] ? i : best;
    }
    return best;
}

static bool all_finite(const float *x, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) {
            return false;
        }
    }
    return true;
}

const heft__kernels heft__kernels_reference = {
    .isa = "reference",
    .operand_bytes = operand_bytes,
    .operand_pieces = operand_pieces,
    .operand_fill = operand_fill,
    .product = product,
    .product_scratch = 0,
    .product_rows = 1,
    .attend = attend,
    .attend_scratch = attend_scratch,
    .widen = widen,
    .narrow = narrow,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .unit = unit,
    .rotate = rotate,
    .act = act,
    .gate = gate,
    .add = add,
    .add_scaled = add_scaled,
    .scale = scale,
    .cap = cap,
    .softmax = softmax,
    .largest = largest,
    .finite = all_finite,
};
