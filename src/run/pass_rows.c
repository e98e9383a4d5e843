/* pass_rows.c - operations on rows of activations: norms, activations, sums, picking and copying. */
#include "run/pass_state.h"

#include <math.h>

#define ITEM_NUMBERS ((size_t)1 << 15) /* that are worth another thread */

/* ---- rows, split among threads -------------------------------------------------------------------- */
struct rows_work {
    heft__pass *p;
    void (*fn)(const struct rows_work *work, size_t first, size_t last); /* rows */
    heft__rows x, y;
    const float *w, *b;
    size_t group;  /* numbers that are one unit: a row, or a head of it */
    bool per_head; /* weights of each head of a row differ */
    float a, one;
    heft__act act;
    size_t chunk;
};

static heft_status rows_item(void *user, size_t item, heft_error *err)
{
    const struct rows_work *work = user;
    const size_t first = item * work->chunk, left = work->x.count - first;
    (void)err;
    work->fn(work, first, first + (left < work->chunk ? left : work->chunk));
    return HEFT_OK;
}

static void run_rows(struct rows_work *work)
{
    const size_t count = work->x.count, width = work->x.width ? work->x.width : 1;
    work->chunk = ITEM_NUMBERS / width + 1;
    const size_t items = (count + work->chunk - 1) / work->chunk;
    heft__tally_split(work->p, items);
    if (heft__pass_live(work->p) && count > 0) {
        heft__pass_parallel(work->p, items, rows_item, work);
    }
}

/* Both of the same shape? */
static bool same(heft__pass *p, heft__rows x, heft__rows y)
{
    if (x.count != y.count || x.width != y.width) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "rows do not fit: [%zu, %zu] and [%zu, %zu]", x.count,
                        x.width, y.count, y.width);
    }
    return p->status == HEFT_OK;
}

/* ---- making and copying ---------------------------------------------------------------------------- */
heft__rows heft__zeros(heft__pass *p, size_t count, size_t width)
{
    heft__rows y = heft__pass_rows(p, count, width);
    if (heft__pass_live(p)) {
        memset(y.x, 0, count * width * sizeof *y.x);
    }
    return y;
}

heft__rows heft__copy(heft__pass *p, heft__rows x)
{
    heft__rows y = heft__pass_rows(p, x.count, x.width);
    heft__set(p, y, x);
    return y;
}

void heft__set(heft__pass *p, heft__rows dst, heft__rows src)
{
    if (same(p, dst, src) && heft__pass_live(p)) {
        memcpy(dst.x, src.x, src.count * src.width * sizeof *src.x);
    }
}

heft__rows heft__pick(heft__pass *p, heft__rows x, const int32_t *rows, size_t count)
{
    heft__rows y = heft__pass_rows(p, count, x.width);
    for (size_t i = 0; heft__pass_live(p) && i < count; i++) {
        memcpy(y.x + i * x.width, x.x + (size_t)rows[i] * x.width, x.width * sizeof *x.x);
    }
    return y;
}

heft__rows heft__columns(heft__pass *p, heft__rows x, size_t group, size_t first, size_t width)
{
    const size_t groups = group ? x.width / group : 0;
    if (group == 0 || x.width % group != 0 || first + width > group) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "rows of %zu numbers have no columns %zu to %zu in groups of %zu", x.width,
                        first, first + width, group);
        return (heft__rows){0};
    }
    heft__rows y = heft__pass_rows(p, x.count, groups * width);
    for (size_t i = 0; heft__pass_live(p) && i < x.count; i++) {
        for (size_t g = 0; g < groups; g++) {
            memcpy(y.x + i * y.width + g * width, x.x + i * x.width + g * group + first,
                   width * sizeof *x.x);
        }
    }
    return y;
}

void heft__put(heft__pass *p, heft__rows y, size_t first, heft__rows x)
{
    if (x.count != y.count || first > y.width || x.width > y.width - first) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "[%zu, %zu] does not fit into [%zu, %zu] at column %zu", x.count, x.width,
                        y.count, y.width, first);
    }
    for (size_t i = 0; heft__pass_live(p) && i < x.count; i++) {
        memcpy(y.x + i * y.width + first, x.x + i * x.width, x.width * sizeof *x.x);
    }
}

heft__rows heft__wanted(heft__pass *p, heft__rows x)
{
    return heft__pick(p, x, p->in.wanted, p->in.wanted_count);
}

/* ---- norms ------------------------------------------------------------------------------------------ */
static void layer_norm_rows(const struct rows_work *work, size_t first, size_t last)
{
    const size_t width = work->x.width;
    for (size_t i = first; i < last; i++) {
        for (size_t at = 0; at < width; at += work->group) {
            const size_t shift = work->per_head ? at : 0;
            work->p->kernels->layer_norm(work->y.x + i * width + at, work->x.x + i * width + at,
                                         work->w ? work->w + shift : NULL,
                                         work->b ? work->b + shift : NULL, work->a, work->group);
        }
    }
}

static void rms_norm_rows(const struct rows_work *work, size_t first, size_t last)
{
    const size_t width = work->x.width;
    for (size_t i = first; i < last; i++) {
        for (size_t at = 0; at < width; at += work->group) {
            work->p->kernels->rms_norm(work->y.x + i * width + at, work->x.x + i * width + at,
                                       work->w ? work->w + (work->per_head ? at : 0) : NULL,
                                       work->one, work->a, work->group);
        }
    }
}

/* Weight and bias of a norm, each of one group's width or of a whole row's. */
static heft__rows norm(heft__pass *p, const char *name, struct rows_work *work, size_t heads)
{
    const size_t weight = heft__pass_find(p, name, "weight"),
                 bias = heft__pass_find(p, name, "bias");
    work->p = p;
    work->y = heft__pass_rows(p, work->x.count, work->x.width);
    work->group = heads ? work->x.width / heads : work->x.width;
    if (work->group == 0 || (heads && work->x.width % heads != 0)) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "norm '%s' does not fit rows of %zu numbers", name,
                        work->x.width);
    }
    const size_t mark = heft__mark(p);
    if (weight != HEFT__NONE && p->status == HEFT_OK) {
        const heft_parameter *shown = &p->model->parameters[weight];
        work->per_head = shown->rank == 2; /* [heads][width] */
        const size_t expected = work->per_head ? work->x.width : work->group;
        work->w = heft__pass_vector(p, weight, expected);
        work->b = bias != HEFT__NONE ? heft__pass_vector(p, bias, expected) : NULL;
    }
    run_rows(work);
    heft__release(p, mark);
    heft__pass_end_op(p);
    return work->y;
}

heft__rows heft__layer_norm_heads(heft__pass *p, const char *name, heft__rows x, size_t heads,
                                  double eps)
{
    struct rows_work work = {.fn = layer_norm_rows, .x = x, .a = (float)eps};
    return norm(p, name, &work, heads);
}

heft__rows heft__layer_norm(heft__pass *p, const char *name, heft__rows x, double eps)
{
    return heft__layer_norm_heads(p, name, x, 0, eps);
}

heft__rows heft__rms_norm_heads(heft__pass *p, const char *name, heft__rows x, size_t heads,
                                double eps, float one)
{
    struct rows_work work = {.fn = rms_norm_rows, .x = x, .a = (float)eps, .one = one};
    return norm(p, name, &work, heads);
}

heft__rows heft__rms_norm(heft__pass *p, const char *name, heft__rows x, double eps, float one)
{
    return heft__rms_norm_heads(p, name, x, 0, eps, one);
}

/* Weights or biases of the heads' norms, one after the other; NULL without any, and in a dry run. */
static const float *listed_vectors(heft__pass *p, const char *name, const char *role, size_t heads,
                                   size_t width)
{
    float *all = heft__pass_take(p, heads * width, sizeof *all);
    size_t found = 0;
    for (size_t h = 0; h < heads && p->status == HEFT_OK; h++) {
        heft__enter_item(p, name, h);
        const size_t number = heft__pass_find(p, role, NULL), mark = heft__mark(p);
        const float *one = number == HEFT__NONE ? NULL : heft__pass_vector(p, number, width);
        found += number != HEFT__NONE;
        if (all && one) {
            memcpy(all + h * width, one, width * sizeof *one);
        }
        heft__release(p, mark);
        heft__pass_end_op(p);
        heft__leave(p);
    }
    if (found > 0 && found < heads) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "some of the norms '%s' have no %s", name, role);
    }
    return found ? all : NULL;
}

heft__rows heft__layer_norm_list(heft__pass *p, const char *name, heft__rows x, size_t heads,
                                 double eps)
{
    struct rows_work work = {.p = p, .fn = layer_norm_rows, .x = x, .a = (float)eps};
    work.y = heft__pass_rows(p, x.count, x.width);
    if (heads == 0 || x.width == 0 || x.width % heads != 0) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "norms '%s' do not fit rows of %zu numbers", name,
                        x.width);
        return work.y;
    }
    const size_t mark = heft__mark(p);
    work.group = x.width / heads;
    work.per_head = true;
    work.w = listed_vectors(p, name, "weight", heads, work.group);
    work.b = listed_vectors(p, name, "bias", heads, work.group);
    run_rows(&work);
    heft__release(p, mark);
    return work.y;
}

static void unit_rows(const struct rows_work *work, size_t first, size_t last)
{
    for (size_t i = first; i < last; i++) {
        float *x = work->x.x + i * work->x.width;
        work->p->kernels->unit(x, x, work->x.width);
    }
}

void heft__unit_rows(heft__pass *p, heft__rows x)
{
    struct rows_work work = {.p = p, .fn = unit_rows, .x = x};
    run_rows(&work);
}

/* ---- elements ---------------------------------------------------------------------------------------- */
static void act_rows(const struct rows_work *work, size_t first, size_t last)
{
    const size_t width = work->x.width;
    work->p->kernels->act(work->act, work->x.x + first * width, (last - first) * width);
}

static void softmax_rows(const struct rows_work *work, size_t first, size_t last)
{
    for (size_t i = first; i < last; i++) {
        work->p->kernels->softmax(work->x.x + i * work->x.width, work->x.width);
    }
}

static void gate_rows(const struct rows_work *work, size_t first, size_t last)
{
    const size_t width = work->x.width;
    work->p->kernels->gate(work->act, work->x.x + first * width, work->y.x + first * width,
                           (last - first) * width);
}

static void add_scaled_rows(const struct rows_work *work, size_t first, size_t last)
{
    const size_t width = work->x.width;
    float *x = work->x.x + first * width;
    const float *y = work->y.x + first * width;
    if (work->a == 1) {
        work->p->kernels->add(x, y, (last - first) * width);
    } else {
        work->p->kernels->add_scaled(x, y, work->a, (last - first) * width);
    }
}

static void scale_rows(const struct rows_work *work, size_t first, size_t last)
{
    const size_t width = work->x.width;
    work->p->kernels->scale(work->x.x + first * width, work->a, (last - first) * width);
}

static void cap_rows(const struct rows_work *work, size_t first, size_t last)
{
    const size_t width = work->x.width;
    work->p->kernels->cap(work->x.x + first * width, work->a, (last - first) * width);
}

static void clamp_rows(const struct rows_work *work, size_t first, size_t last)
{
    const size_t width = work->x.width;
    for (float *x = work->x.x + first * width; x < work->x.x + last * width; x++) {
        *x = *x < work->a ? work->a : *x > work->one ? work->one : *x; /* NaN stays */
    }
}

void heft__activate(heft__pass *p, heft__act act, heft__rows x)
{
    struct rows_work work = {.p = p, .fn = act_rows, .x = x, .act = act};
    run_rows(&work);
}

void heft__softmax(heft__pass *p, heft__rows x)
{
    struct rows_work work = {.p = p, .fn = softmax_rows, .x = x};
    run_rows(&work);
}

void heft__gate(heft__pass *p, heft__act act, heft__rows a, heft__rows b)
{
    struct rows_work work = {.p = p, .fn = gate_rows, .x = a, .y = b, .act = act};
    if (same(p, a, b)) {
        run_rows(&work);
    }
}

void heft__add(heft__pass *p, heft__rows x, heft__rows y)
{
    heft__add_scaled(p, x, y, 1);
}

void heft__add_scaled(heft__pass *p, heft__rows x, heft__rows y, double s)
{
    struct rows_work work = {.p = p, .fn = add_scaled_rows, .x = x, .y = y, .a = (float)s};
    if (same(p, x, y)) {
        run_rows(&work);
    }
}

void heft__multiply(heft__pass *p, heft__rows x, heft__rows y)
{
    heft__gate(p, HEFT__ACT_NONE, x, y);
}

void heft__scale_by(heft__pass *p, heft__rows x, double s)
{
    struct rows_work work = {.p = p, .fn = scale_rows, .x = x, .a = (float)s};
    run_rows(&work);
}

void heft__scale_rows(heft__pass *p, heft__rows x, heft__rows s)
{
    if (s.count != x.count || s.width != 1) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "%zu rows need as many factors, found [%zu, %zu]",
                        x.count, s.count, s.width);
    }
    for (size_t i = 0; heft__pass_live(p) && i < x.count; i++) {
        p->kernels->scale(x.x + i * x.width, s.x[i], x.width);
    }
}

float heft__round_bf16(float x)
{
    uint16_t half;
    heft__cast(HEFT_DTYPE_BF16, &half, HEFT_DTYPE_F32, &x, 1);
    heft__cast(HEFT_DTYPE_F32, &x, HEFT_DTYPE_BF16, &half, 1);
    return x;
}

void heft__cap_to(heft__pass *p, heft__rows x, double cap)
{
    struct rows_work work = {.p = p, .fn = cap_rows, .x = x, .a = (float)cap};
    run_rows(&work);
}

void heft__clamp(heft__pass *p, heft__rows x, double low, double high)
{
    struct rows_work work = {.p = p, .fn = clamp_rows, .x = x, .a = (float)low, .one = (float)high};
    run_rows(&work);
}

double heft__rounded(const heft__pass *p, double constant)
{
    const heft_dtype dtype = heft__sk_dtype(p->config);
    const float wide = (float)constant;
    float rounded = wide;
    if (!p->exact && (dtype == HEFT_DTYPE_BF16 || dtype == HEFT_DTYPE_F16)) {
        uint16_t bits = 0;
        p->kernels->narrow(&bits, dtype, &wide, 1);
        p->kernels->widen(&rounded, &bits, dtype, 1);
    }
    return (double)rounded;
}

/* ---- names of activations ---------------------------------------------------------------------------- */
static const struct {
    const char *name;
    heft__act act;
} acts[] = {
    {"silu",              HEFT__ACT_SILU      },
    {"swish",             HEFT__ACT_SILU      },
    {"gelu",              HEFT__ACT_GELU      },
    {"gelu_python",       HEFT__ACT_GELU      },
    {"gelu_new",          HEFT__ACT_GELU_TANH },
    {"gelu_fast",         HEFT__ACT_GELU_TANH },
    {"gelu_pytorch_tanh", HEFT__ACT_GELU_TANH },
    {"gelu_accurate",     HEFT__ACT_GELU_TANH },
    {"quick_gelu",        HEFT__ACT_QUICK_GELU},
    {"relu",              HEFT__ACT_RELU      },
    {"relu2",             HEFT__ACT_RELU2     },
    {"tanh",              HEFT__ACT_TANH      },
    {"sigmoid",           HEFT__ACT_SIGMOID   },
    {"linear",            HEFT__ACT_NONE      },
};

heft__act heft__act_of(heft__pass *p, const char *key, const char *standard)
{
    const char *name = heft__sk_text(p->config, key, standard);
    for (size_t i = 0; name && i < sizeof acts / sizeof *acts; i++) {
        if (strcmp(acts[i].name, name) == 0) {
            return acts[i].act;
        }
    }
    heft__pass_fail(p, HEFT_UNSUPPORTED,
                    "config.json: %s: heft does not know the activation '%.60s'", key,
                    name ? name : "");
    return HEFT__ACT_NONE;
}
