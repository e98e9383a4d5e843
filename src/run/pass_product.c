/* pass_product.c - products with weights, and rows of embeddings.
 *
 * The activations of a product are brought into the form that the kernels read once, by all threads; then
 * the rows of the weight are split among them. An embedding is read by row from where it is: its unit is
 * not brought in for it. */
#include "run/pass_state.h"

#define ITEM_OPERATIONS ((uint64_t)1 << 19) /* that are worth another thread */
#define ITEMS_PER_THREAD 8

/* ---- weights ----------------------------------------------------------------------------------- */
static bool computes(heft_dtype dtype)
{
    return dtype == HEFT_DTYPE_F32 || dtype == HEFT_DTYPE_BF16 || dtype == HEFT_DTYPE_F16;
}

/* Number of a weight that a product can use; HEFT__NONE after an error. */
static size_t find_weight(heft__pass *p, const char *name, const char *role)
{
    const size_t i = heft__pass_find(p, name, role);
    if (p->status != HEFT_OK) {
        return HEFT__NONE;
    }
    if (i == HEFT__NONE) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        p->model->packed ? "'%s' has no plain weight: it is stored quantized; load "
                                           "the model dequantized"
                                         : "the forward pass needs a parameter '%s' here",
                        name);
        return HEFT__NONE;
    }
    if (!computes(p->model->parameters[i].dtype)) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "parameter '%s' is %s: heft cannot compute with it",
                        p->model->parameters[i].name,
                        heft_dtype_name(p->model->parameters[i].dtype));
        return HEFT__NONE;
    }
    return i;
}

/* ---- the product ------------------------------------------------------------------------------- */
struct product {
    heft__pass *p;
    heft__matrix w;
    heft__operand operand;
    const float *bias;
    heft__rows x, y;
    size_t chunk; /* rows of an item */
};

static heft_status fill_item(void *user, size_t item, heft_error *err)
{
    const struct product *product = user;
    (void)err;
    product->p->kernels->operand_fill(&product->operand, product->x.x, product->x.width, item);
    return HEFT_OK;
}

static heft_status product_item(void *user, size_t item, heft_error *err)
{
    const struct product *product = user;
    heft__pass *p = product->p;
    const size_t first = item * product->chunk, left = product->w.rows - first;
    void *lane = heft__pass_lane_take(p);
    (void)err;
    p->kernels->product(product->y.x, product->y.width, &product->operand, &product->w,
                        product->bias, first,
                        first + (left < product->chunk ? left : product->chunk), lane);
    heft__pass_lane_give(p, lane);
    return HEFT_OK;
}

/* Enough work for each item, and a few items for each thread. The few tokens of a turned matrix have one for
 * each: the longer the pieces of its stored rows, the faster they are read. */
size_t heft__product_chunk(const heft__pass *p, const heft__matrix *w, size_t tokens)
{
    const size_t unit = p->kernels->product_rows;
    const uint64_t of_row = (uint64_t)tokens * w->columns;
    const size_t items = w->turned && tokens <= HEFT__FEW_TOKENS ? 1 : ITEMS_PER_THREAD;
    size_t rows = (w->rows + p->lane_count * items - 1) / (p->lane_count * items);
    const size_t least = of_row ? (size_t)(ITEM_OPERATIONS / of_row) + 1 : w->rows;
    rows = rows < least ? least : rows;
    rows = (rows + unit - 1) / unit * unit;
    return rows < w->rows ? rows : w->rows;
}

/* In a dry run, for as many tokens and for fewer: their operand may be larger, as its columns are filled up. */
static size_t operand_room(const heft__pass *p, const heft__matrix *w, size_t tokens)
{
    const size_t bytes = p->kernels->operand_bytes(tokens, w, p->exact);
    if (!p->dry || tokens <= HEFT__FEW_TOKENS) {
        return bytes;
    }
    const size_t few = p->kernels->operand_bytes(HEFT__FEW_TOKENS, w, p->exact);
    return few > bytes ? few : bytes;
}

static void run_product(struct product *product)
{
    heft__pass *p = product->p;
    const size_t bytes = operand_room(p, &product->w, product->x.count);
    product->operand = (heft__operand){.tokens = product->x.count,
                                       .columns = product->w.columns,
                                       .dtype = product->w.dtype,
                                       .exact = p->exact,
                                       .turned = product->w.turned,
                                       .data = heft__pass_take(p, bytes, 1)};
    if (!heft__pass_need_lanes(p, p->kernels->product_scratch) || p->dry || product->x.count == 0 ||
        product->w.rows == 0) {
        return;
    }
    heft__pass_parallel(p, p->kernels->operand_pieces(&product->operand), fill_item, product);
    product->chunk = heft__product_chunk(p, &product->w, product->x.count);
    heft__pass_parallel(p, (product->w.rows + product->chunk - 1) / product->chunk, product_item,
                        product);
}

/* The weight begins at element `first` of a parameter or slice. */
static void set_data(heft__pass *p, size_t weight, uint64_t first, const heft_tensor *view,
                     heft__matrix *w)
{
    const heft__compact *compact = heft__compact_of(p, weight);
    if (!compact) {
        w->data = (const uint8_t *)view->data + first * (heft_dtype_bits(w->dtype) / 8);
        return;
    }
    first += heft__slice_first(p->residency, weight);
    if (w->turned || w->stride != w->columns || w->columns != compact->columns ||
        first % w->columns != 0) { /* no dry run has seen this use */
        heft__pass_fail(p, HEFT_UNSUPPORTED, "parameter '%s' is compact: its rows have %zu numbers",
                        p->model->parameters[heft__whole_of(p->residency, weight)].name,
                        compact->columns);
        w->rows = 0;
        return;
    }
    w->compact = compact;
    w->compact_row = (size_t)(first / w->columns);
}

/* y = x w^T + bias; `w` without its data: that of the parameter or slice, from element `first` on. */
static heft__rows multiply(heft__pass *p, size_t weight, uint64_t first, heft__matrix w,
                           size_t bias, uint64_t bias_first, heft__rows x)
{
    struct product product = {.p = p, .w = w, .x = x};
    product.y = heft__pass_rows(p, x.count, w.rows);
    const size_t mark = heft__mark(p);
    if (p->dry) {
        heft__compact_note_product(p, weight, first, &w);
        heft__tally_product(p, x.count, &w, heft__compact_expected(p, weight));
    }
    if (bias != HEFT__NONE && (p->dry || x.count > 0)) {
        uint64_t all = 0;
        (void)heft__shape_elems(p->residency->views[bias].shape, p->residency->views[bias].rank,
                                &all);
        const float *vector = heft__pass_vector(p, bias, (size_t)all);
        product.bias = vector ? vector + bias_first : NULL;
        if (all < bias_first + w.rows) {
            heft__pass_fail(p, HEFT_UNSUPPORTED, "parameter '%s' has %llu numbers, %zu expected",
                            p->model->parameters[heft__whole_of(p->residency, bias)].name,
                            (unsigned long long)all, w.rows);
        }
    }
    const heft_tensor *view = p->dry || x.count > 0 ? heft__pass_view(p, weight) : NULL;
    if (view) {
        set_data(p, weight, first, view, &product.w);
    }
    run_product(&product);
    heft__release(p, mark);
    heft__pass_end_op(p);
    return product.y;
}

static heft__rows linear(heft__pass *p, const char *name, heft__rows x, bool turned)
{
    const size_t weight = find_weight(p, name, "weight"), bias = heft__pass_find(p, name, "bias");
    if (weight == HEFT__NONE) {
        return (heft__rows){0};
    }
    const heft_parameter *shown = &p->model->parameters[weight];
    uint64_t elems = 0;
    (void)heft__shape_elems(shown->shape, shown->rank, &elems);
    const size_t outer = shown->rank > 0 ? (size_t)shown->shape[0] : 1;
    const size_t inner = outer ? (size_t)elems / outer : 0;
    const heft__matrix w = {.dtype = shown->dtype,
                            .rows = turned ? inner : outer,
                            .columns = turned ? outer : inner,
                            .stride = inner,
                            .turned = turned};
    if (w.columns != x.width) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "parameter '%s' takes rows of %zu numbers, found %zu",
                        shown->name, w.columns, x.width);
        return (heft__rows){0};
    }
    return multiply(p, weight, 0, w, bias, 0, x);
}

heft__rows heft__linear(heft__pass *p, const char *name, heft__rows x)
{
    return linear(p, name, x, false);
}

heft__rows heft__linear_turned(heft__pass *p, const char *name, heft__rows x)
{
    return linear(p, name, x, true);
}

/* Whether a parameter that is cut into slices has one for each matrix of a slab. */
static bool matches_stack(const heft__pass *p, size_t parameter, const heft__slab *slab)
{
    return p->residency->slices[parameter] == SIZE_MAX ||
           slab->count == p->model->parameters[parameter].shape[0];
}

heft__rows heft__linear_slab(heft__pass *p, const heft__slab *slab, heft__rows x)
{
    const size_t weight = find_weight(p, slab->weight, NULL);
    const size_t bias = slab->bias ? heft__pass_find(p, slab->bias, NULL) : HEFT__NONE;
    uint64_t elems = 0;
    if (weight == HEFT__NONE) {
        return (heft__rows){0};
    }
    const heft_parameter *shown = &p->model->parameters[weight];
    (void)heft__shape_elems(shown->shape, shown->rank, &elems);
    const uint64_t of_slab = slab->count ? elems / slab->count : elems;
    const bool part = slab->turned && slab->width > 0; /* some of its stored rows */
    const size_t stored = slab->turned ? (part      ? slab->width
                                          : x.width ? (size_t)of_slab / x.width
                                                    : 0)
                                       : x.width; /* numbers of a stored row */
    const size_t lines = stored ? (size_t)(of_slab / stored) : 0;
    const size_t used = slab->turned ? x.width : slab->rows ? slab->rows : lines - slab->first;
    if (stored == 0 || of_slab % stored != 0 || slab->first > lines || used > lines - slab->first ||
        (slab->count && elems % slab->count != 0) || (slab->count && slab->index >= slab->count) ||
        !matches_stack(p, weight, slab) || (bias != HEFT__NONE && !matches_stack(p, bias, slab)) ||
        (part && slab->bias)) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "parameter '%s' does not fit rows of %zu numbers",
                        shown->name, x.width);
        return (heft__rows){0};
    }
    const heft__matrix w = {.dtype = shown->dtype,
                            .rows = slab->turned ? stored : used,
                            .columns = x.width,
                            .stride = stored,
                            .turned = slab->turned};
    const size_t matrix = heft__slice_of(p->residency, weight, slab->index),
                 vector =
                     bias == HEFT__NONE ? bias : heft__slice_of(p->residency, bias, slab->index);
    uint64_t first = (uint64_t)slab->first * stored, bias_first = slab->turned ? 0 : slab->first;
    first += matrix == weight ? slab->index * of_slab : 0; /* a slice is this matrix alone */
    bias_first += vector == bias ? slab->index * (uint64_t)(slab->turned ? stored : lines) : 0;
    return multiply(p, matrix, first, w, vector, bias_first, x);
}

/* ---- rows of a table ---------------------------------------------------------------------------- */
/* Rows that stay in their file, each read from there. */
static void read_rows(heft__pass *p, size_t table, const int32_t *ids, int32_t offset, heft__rows y)
{
    const heft_dtype dtype = p->model->parameters[table].dtype;
    const size_t mark = heft__mark(p);
    void *row = heft__pass_take(p, y.width, heft_dtype_bits(dtype) / 8);
    for (size_t i = 0; i < y.count && heft__pass_live(p); i++) {
        const uint64_t first = (uint64_t)(ids[i] + offset) * y.width;
        p->status = heft__home_read(p->model, table, first, y.width, row, &p->error);
        if (p->status == HEFT_OK) {
            p->kernels->widen(y.x + i * y.width, row, dtype, y.width);
        }
    }
    heft__release(p, mark);
}

static void copy_compact_rows(heft__pass *p, const heft__compact *compact, const int32_t *ids,
                              int32_t offset, heft__rows y)
{
    const size_t mark = heft__mark(p);
    uint16_t *row = heft__pass_take(p, y.width, sizeof *row);
    for (size_t i = 0; row && i < y.count; i++) {
        p->kernels->unpack_row(row, compact, (size_t)(ids[i] + offset));
        p->kernels->widen(y.x + i * y.width, row, HEFT_DTYPE_BF16, y.width);
    }
    heft__release(p, mark);
}

static bool ids_are_good(heft__pass *p, size_t table, const int32_t *ids, size_t count,
                         int32_t offset)
{
    const uint64_t rows = p->model->parameters[table].shape[0];
    for (size_t i = 0; i < count; i++) {
        const int64_t id = (int64_t)ids[i] + offset;
        if (id < 0 || (uint64_t)id >= rows) {
            heft__pass_fail(
                p, HEFT_INVALID_ARG, "id or position %lld is not in '%s', which has %llu rows",
                (long long)id, p->model->parameters[table].name, (unsigned long long)rows);
            return false;
        }
    }
    return true;
}

heft__rows heft__embed(heft__pass *p, const char *name, const int32_t *ids, size_t count,
                       int32_t offset)
{
    const size_t table = find_weight(p, name, "weight");
    if (table == HEFT__NONE || p->model->parameters[table].rank != 2) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "'%s' is not a table", name);
        return (heft__rows){0};
    }
    const heft_parameter *shown = &p->model->parameters[table];
    heft__rows y = heft__pass_rows(p, count, (size_t)shown->shape[1]);
    heft__compact_note_rows(p, table, y.width);
    if (p->dry) {
        const size_t mark = heft__mark(p);
        (void)heft__pass_take(p, y.width, heft_dtype_bits(shown->dtype) / 8);
        heft__release(p, mark);
        heft__tally_rows(p, table, count);
    }
    if (!heft__pass_live(p) || !ids_are_good(p, table, ids, count, offset)) {
        return y;
    }
    if (p->residency->brought_at[table] != SIZE_MAX && heft__home_is_plain(p->model, table)) {
        read_rows(p, table, ids, offset, y);
        return y;
    }
    const heft_tensor *view = heft__pass_view(p, table);
    const heft__compact *compact = heft__compact_of(p, table);
    const size_t bytes = y.width * (heft_dtype_bits(shown->dtype) / 8);
    if (compact) {
        copy_compact_rows(p, compact, ids, offset, y);
    }
    for (size_t i = 0; view && !compact && i < count; i++) {
        p->kernels->widen(y.x + i * y.width,
                          (const uint8_t *)view->data + (size_t)(ids[i] + offset) * bytes,
                          shown->dtype, y.width);
    }
    heft__pass_end_op(p);
    return y;
}

heft__rows heft__parameter(heft__pass *p, const char *name, size_t width)
{
    const size_t i = find_weight(p, name, NULL);
    uint64_t elems = 0;
    if (i == HEFT__NONE) {
        return (heft__rows){0};
    }
    const heft_parameter *shown = &p->model->parameters[i];
    (void)heft__shape_elems(shown->shape, shown->rank, &elems);
    width = width ? width : shown->rank ? (size_t)shown->shape[shown->rank - 1] : 1;
    if (width == 0 || elems % width != 0) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "parameter '%s' is not made of rows of %zu numbers",
                        shown->name, width);
        return (heft__rows){0};
    }
    const heft__rows y = {(float *)(uintptr_t)heft__pass_vector(p, i, (size_t)elems),
                          (size_t)(elems / width), width};
    heft__pass_end_op(p);
    return y;
}
