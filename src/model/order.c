/* order.c - a state dict in the natural order of Transformers' own names.
 *
 * A tensor of Transformers' memory is sorted as one, by its name; its parts then take their turns
 * in its place. So a layer's many experts cost a few comparisons. The sort is a merge sort over
 * numbers that begins with the runs that are there: a family lists most of a layer in order, and the
 * layers one after another, so that most merges find nothing to do.
 *
 * Source: docs/models.md. */
#include "model/skeleton.h"

#include <assert.h>

struct sorting {
    const heft_model *model;
    uint32_t *order, *spare; /* [most] numbers of parameters: of parts the first one's */
    uint32_t *ends;          /* [most + 1] where each run ends */
    size_t most, runs;
};

static const char *name_of(const heft_model *model, uint32_t i)
{
    const heft__inner *inner = heft__model_place(model, i).inner;
    return inner ? inner->name : model->parameters[i].name;
}

/* Whether a comes after b. */
static bool is_behind(const heft_model *model, uint32_t a, uint32_t b)
{
    return heft__compare_natural(name_of(model, a), name_of(model, b)) > 0;
}

/* Whether a parameter stands for itself, or for all parts of its inner tensor. */
static bool leads(const heft_model *model, size_t i)
{
    return !heft__model_place(model, i).inner || heft__model_place(model, i).turn == 0;
}

static void find_runs(struct sorting *sorting, size_t count)
{
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        if (leads(sorting->model, i)) {
            sorting->order[found] = (uint32_t)i;
            if (found > 0 &&
                is_behind(sorting->model, sorting->order[found - 1], sorting->order[found])) {
                sorting->ends[sorting->runs++] = (uint32_t)found;
            }
            found++;
        }
    }
    sorting->ends[sorting->runs++] = (uint32_t)found;
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
 * stretches. */
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
            sorting->ends[kept++] = (uint32_t)end;
            first = end;
        }
        sorting->runs = kept;
    }
}

static void set_place(heft_model *model, size_t i, heft__place place)
{
    if (model->places) {
        model->places[i] = place;
    }
}

/* Move everything to its new place, one circle after the other: parameter order[i] becomes number
 * i. Uses the list up. */
static void apply(heft_model *model, uint32_t *order, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const heft_parameter parameter = model->parameters[i];
        const heft__init_rule *rule = model->rules[i];
        const heft__place place = heft__model_place(model, i);
        size_t at = i;
        while (order[at] != i) {
            const size_t from = order[at];
            model->parameters[at] = model->parameters[from];
            model->rules[at] = model->rules[from];
            set_place(model, at, heft__model_place(model, from));
            order[at] = (uint32_t)at;
            at = from;
        }
        model->parameters[at] = parameter;
        model->rules[at] = rule;
        set_place(model, at, place);
        order[at] = (uint32_t)at;
    }
    for (size_t i = 0; i < count; i++) {
        model->parameters[i].tied_to = i;
    }
}

/* From the sorted leaders to all parameters: parts go where their inner tensor stands. `starts`:
 * [inner_count] scratch. */
static void spread(const struct sorting *sorting, size_t count, uint32_t *starts, uint32_t *all)
{
    const heft_model *model = sorting->model;
    const size_t leaders = sorting->ends[0];
    uint32_t at = 0;
    for (size_t k = 0; k < leaders; k++) {
        const uint32_t i = sorting->order[k];
        const heft__inner *inner = heft__model_place(model, i).inner;
        if (inner) {
            starts[inner->number] = at;
            at += inner->parts;
        } else {
            all[at++] = i;
        }
    }
    assert(at == count);
    for (size_t i = 0; i < count; i++) {
        const heft__place place = heft__model_place(model, i);
        if (place.inner) {
            all[starts[place.inner->number] + place.turn] = (uint32_t)i;
        }
    }
}

static void free_sorting(struct sorting *sorting)
{
    heft_ctx *ctx = sorting->model->ctx;
    heft__free(ctx, sorting->order, sorting->most * sizeof *sorting->order);
    heft__free(ctx, sorting->spare, sorting->most * sizeof *sorting->spare);
    heft__free(ctx, sorting->ends, (sorting->most + 1) * sizeof *sorting->ends);
}

/* Numbers 0 .. count - 1 in order; owned, NULL without memory. */
static uint32_t *sort(const heft_model *model, size_t count)
{
    heft_ctx *ctx = model->ctx;
    struct sorting sorting = {.model = model};
    for (size_t i = 0; i < count; i++) {
        sorting.most += leads(model, i);
    }
    sorting.order = heft__alloc(ctx, sorting.most * sizeof *sorting.order);
    sorting.spare = heft__alloc(ctx, sorting.most * sizeof *sorting.spare);
    sorting.ends = heft__alloc(ctx, (sorting.most + 1) * sizeof *sorting.ends);
    uint32_t *starts = heft__alloc(ctx, model->inner_count * sizeof *starts);
    uint32_t *all = heft__alloc(ctx, count * sizeof *all);
    const bool room = sorting.order && sorting.spare && sorting.ends && starts && all;
    if (room) {
        find_runs(&sorting, count);
        merge_runs(&sorting);
        spread(&sorting, count, starts, all);
    }
    heft__free(ctx, starts, model->inner_count * sizeof *starts);
    free_sorting(&sorting);
    if (!room) {
        heft__free(ctx, all, count * sizeof *all);
        return NULL;
    }
    return all;
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
