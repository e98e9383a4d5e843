/* order.c - a state dict in the natural order of the reference's own names.
 *
 * A merge sort over numbers that begins with the runs that are there: a family lists most of a
 * layer in order, and the layers one after another, so that most merges find nothing to do.
 *
 * Source: docs/models.md. */
#include "model/skeleton.h"

struct sorting {
    const heft_model *model;
    uint32_t *order, *spare; /* [count] numbers of parameters */
    size_t *ends;            /* [runs] where each run ends */
    size_t runs;
};

/* Whether a stands behind b. */
static bool is_behind(const heft_model *model, uint32_t a, uint32_t b)
{
    const heft__place *left = &model->places[a], *right = &model->places[b];
    if (left->inner && left->inner == right->inner) {
        return left->turn > right->turn;
    }
    int order =
        heft__compare_natural(left->inner ? left->inner->name : model->parameters[a].name,
                              right->inner ? right->inner->name : model->parameters[b].name);
    return order > 0 || (order == 0 && left->turn > right->turn);
}

static void find_runs(struct sorting *sorting, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        sorting->order[i] = (uint32_t)i;
        if (i > 0 && is_behind(sorting->model, (uint32_t)(i - 1), (uint32_t)i)) {
            sorting->ends[sorting->runs++] = i;
        }
    }
    sorting->ends[sorting->runs++] = count;
}

/* How many of the sorted numbers stand in front of b or beside it. */
static size_t count_before(const heft_model *model, const uint32_t *sorted, size_t count,
                           uint32_t b)
{
    size_t low = 0;
    while (low < count) {
        size_t middle = low + (count - low) / 2;
        if (is_behind(model, sorted[middle], b)) {
            count = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* order[first .. middle) and order[middle .. end) become one run: the left one's numbers move in
 * stretches, so that a layer's many experts cost a few comparisons. */
static void merge(struct sorting *sorting, size_t first, size_t middle, size_t end)
{
    uint32_t *order = sorting->order, *left = sorting->spare;
    size_t left_count = middle - first, at = first;
    if (!is_behind(sorting->model, order[middle - 1], order[middle])) {
        return;
    }
    memcpy(left, order + first, left_count * sizeof *order);
    for (size_t right = middle; right < end; right++) {
        size_t stretch = count_before(sorting->model, left, left_count, order[right]);
        uint32_t number = order[right];
        memmove(order + at, left, stretch * sizeof *order);
        at += stretch;
        order[at++] = number;
        left += stretch;
        left_count -= stretch;
    }
    memcpy(order + at, left, left_count * sizeof *order);
}

static void merge_runs(struct sorting *sorting)
{
    while (sorting->runs > 1) {
        size_t kept = 0, first = 0;
        for (size_t i = 0; i < sorting->runs; i += 2) {
            size_t end = sorting->ends[i + 1 < sorting->runs ? i + 1 : i];
            if (end != sorting->ends[i]) {
                merge(sorting, first, sorting->ends[i], end);
            }
            sorting->ends[kept++] = first = end;
        }
        sorting->runs = kept;
    }
}

/* Move everything to its new place, one circle after the other: parameter order[i] becomes number
 * i. Uses the list up. */
static void apply(heft_model *model, uint32_t *order, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const heft_parameter parameter = model->parameters[i];
        const heft__init_rule rule = model->rules[i];
        const heft__place place = model->places[i];
        size_t at = i;
        while (order[at] != i) {
            const size_t from = order[at];
            model->parameters[at] = model->parameters[from];
            model->rules[at] = model->rules[from];
            model->places[at] = model->places[from];
            order[at] = (uint32_t)at;
            at = from;
        }
        model->parameters[at] = parameter;
        model->rules[at] = rule;
        model->places[at] = place;
        order[at] = (uint32_t)at;
    }
    for (size_t i = 0; i < count; i++) {
        model->parameters[i].tied_to = i;
    }
}

/* Numbers 0 .. count - 1 in order; owned, NULL without memory. */
static uint32_t *sort(const heft_model *model, size_t count)
{
    heft_ctx *ctx = model->ctx;
    struct sorting sorting = {
        .model = model,
        .order = heft__alloc(ctx, count * sizeof *sorting.order),
        .spare = heft__alloc(ctx, count * sizeof *sorting.spare),
        .ends = heft__alloc(ctx, (count + 1) * sizeof *sorting.ends),
    };
    bool room = sorting.order && sorting.spare && sorting.ends;
    if (room) {
        find_runs(&sorting, count);
        merge_runs(&sorting);
    }
    heft__free(ctx, sorting.spare, count * sizeof *sorting.spare);
    heft__free(ctx, sorting.ends, (count + 1) * sizeof *sorting.ends);
    if (!room) {
        heft__free(ctx, sorting.order, count * sizeof *sorting.order);
        return NULL;
    }
    return sorting.order;
}

heft_status heft__order_naturally(heft_model *model, size_t count, heft_error *err)
{
    if (count >= UINT32_MAX) {
        return heft__fail(err, HEFT_LIMIT, "the model has %zu tensors", count);
    }
    uint32_t *order = sort(model, count);
    if (!order) {
        return heft__fail_nomem(err, count * sizeof *order);
    }
    apply(model, order, count);
    heft__free(model->ctx, order, count * sizeof *order);
    return HEFT_OK;
}

heft_status heft_model_natural_order(const heft_model *model, size_t *order, heft_error *err)
{
    size_t count = 0;
    if (!model || !order) {
        return heft__fail(err, HEFT_INVALID_ARG, "model or result is NULL");
    }
    while (count < model->count &&
           model->parameters[count].kind != HEFT_PARAMETER_BUFFER_TRANSIENT) {
        count++;
    }
    uint32_t *sorted = sort(model, count); /* a model's parameters are numbered by 32 bits */
    if (!sorted) {
        return heft__fail_nomem(err, count * sizeof *sorted);
    }
    for (size_t i = 0; i < model->count; i++) {
        order[i] = i < count ? sorted[i] : i;
    }
    heft__free(model->ctx, sorted, count * sizeof *sorted);
    return HEFT_OK;
}
