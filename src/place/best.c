/* best.c - heft's own map: as many bytes as possible on accelerators, each with one run of modules.
 *
 * The model is a row of units that are not split: blocks, modules without children, tensors that
 * are next to modules. Tied units are one unit, at the place of the first name. Each accelerator takes
 * one run of neighbors. Of the units that no accelerator takes, one run goes to the CPU, the others to
 * the disk (rest.c).
 *
 *   best[state][i]: the most bytes that the accelerators of `state` can hold of the first i units
 *
 * Up to eight accelerators are tried in every order, and a state is a set of them. More of them, or fewer
 * with very many units, are used in their own order, and a state is the number of those already used.
 *
 * A run is always as long as possible: a longer one never takes anything from those after it. If
 * everything fits, the budgets are lowered together, so that devices are filled in proportion.
 * Source: docs/placing.md [4]. */
#include "place/place.h"

#define ANY_ORDER_MOST 8                  /* accelerators that are tried in every order */
#define ANY_ORDER_CELLS ((size_t)1 << 23) /* units times sets of accelerators, for that */
#define ACCELERATORS_MOST 1024
#define CELLS_A_LOOK 65536 /* between two looks whether the caller wants to stop */
#define SHARE_STEPS 24     /* of the search for the least share of the budgets */

struct unit {
    uint32_t node;
    uint32_t leader; /* the unit that it is tied to, its own number else */
    double bytes;    /* with all that is tied to it; 0 for those */
};

struct choice {            /* how a cell came about */
    int32_t device;        /* the accelerator of the run that ends here; -1: none */
    uint32_t start, state; /* the cell before */
};

struct best {
    const heft__tree *tree;
    heft_ctx *ctx;
    struct unit *units;
    uint32_t count, cap;
    uint32_t *by_node; /* [modules and tensors] unit, NO_NODE: none */
    double *sums;      /* [count + 1] of bytes before a unit */
    const heft_budget *accelerators[ACCELERATORS_MOST];
    uint32_t accelerator_count, state_count;
    bool any_order;
    uint32_t *ends; /* [accelerator_count * (count + 1)] where a run that begins here ends */
    int32_t *owner; /* [count] number of an accelerator, -1: none */
    uint64_t cells; /* looked at */
    heft_status status;
    heft_error *err;
};

/* ---- units ----------------------------------------------------------------------------------- */
static bool add_unit(void *user, uint32_t node)
{
    struct best *b = user;
    size_t cap = b->cap;
    if (!heft__array_reserve(b->ctx, (void **)&b->units, b->count, &cap, sizeof *b->units)) {
        return false;
    }
    b->cap = (uint32_t)cap;
    b->units[b->count] = (struct unit){node, b->count, heft__tree_bytes(b->tree, node)};
    b->count++;
    return true;
}

/* The unit that holds a tensor: itself, or a module above it. */
static uint32_t unit_of(const struct best *b, uint32_t tensor)
{
    uint32_t node = b->tree->module_count + tensor;
    while (node != HEFT__NO_NODE && b->by_node[node] == HEFT__NO_NODE) {
        node = heft__tree_parent(b->tree, node);
    }
    return node == HEFT__NO_NODE ? 0 : b->by_node[node];
}

static uint32_t leader_of(struct best *b, uint32_t unit)
{
    while (b->units[unit].leader != unit) {
        b->units[unit].leader = b->units[b->units[unit].leader].leader; /* shorter next time */
        unit = b->units[unit].leader;
    }
    return unit;
}

/* Units that share a tensor follow the first of them. */
static void tie_units(struct best *b)
{
    for (size_t i = 1; i < b->tree->tie_count; i++) {
        if (b->tree->ties[i][0] != b->tree->ties[i - 1][0]) {
            continue;
        }
        uint32_t one = leader_of(b, unit_of(b, b->tree->ties[i - 1][1])),
                 two = leader_of(b, unit_of(b, b->tree->ties[i][1]));
        uint32_t first = one < two ? one : two, second = one < two ? two : one;
        if (first != second) {
            b->units[second].leader = first;
            b->units[first].bytes += b->units[second].bytes;
            b->units[second].bytes = 0;
        }
    }
}

static bool make_units(struct best *b)
{
    const size_t nodes = (size_t)b->tree->module_count + b->tree->tensor_count;
    b->by_node = heft__alloc(b->ctx, nodes * sizeof *b->by_node);
    if (!b->by_node || !heft__tree_each_unit(b->tree, add_unit, b)) {
        return false;
    }
    memset(b->by_node, 0xff, nodes * sizeof *b->by_node);
    for (uint32_t i = 0; i < b->count; i++) {
        b->by_node[b->units[i].node] = i;
    }
    tie_units(b);
    b->sums = heft__alloc_zero(b->ctx, b->count + 1, sizeof *b->sums);
    b->owner = heft__alloc_zero(b->ctx, b->count + 1, sizeof *b->owner);
    for (uint32_t i = 0; b->sums && i < b->count; i++) {
        b->sums[i + 1] = b->sums[i] + b->units[i].bytes;
    }
    return b->sums && b->owner;
}

/* ---- runs ------------------------------------------------------------------------------------ */
/* Where a run that begins at `first` ends at the latest. */
static uint32_t run_end(const struct best *b, uint32_t first, double bytes)
{
    uint32_t low = first, high = b->count;
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (b->sums[middle] - b->sums[first] <= bytes) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

/* The state after accelerator d was used in `state`; state itself if it may not be. */
static uint32_t after(const struct best *b, uint32_t state, uint32_t d)
{
    if (b->any_order) {
        return state | (uint32_t)1 << d;
    }
    return state == d ? state + 1 : state;
}

static void improve(double *best, struct choice *choices, size_t cell, double held,
                    struct choice choice)
{
    if (held > best[cell]) {
        best[cell] = held;
        choices[cell] = choice;
    }
}

/* From one cell to the following ones: with a run on each accelerator, or without the next unit, or
 * without the next accelerator. */
static void go_on(const struct best *b, double *best, struct choice *choices, uint32_t i,
                  uint32_t state)
{
    const size_t width = (size_t)b->count + 1;
    const double held = best[state * width + i];
    const struct choice none = {-1, i, state};
    const uint32_t first = b->any_order ? 0 : state;
    const uint32_t end_device = b->any_order ? b->accelerator_count : state + 1;
    if (i < b->count) {
        improve(best, choices, state * width + i + 1, held, none);
    }
    if (!b->any_order && state + 1 < b->state_count) {
        improve(best, choices, (state + 1) * width + i, held, none);
    }
    for (uint32_t d = first; i < b->count && d < end_device && d < b->accelerator_count; d++) {
        const uint32_t more = after(b, state, d);
        const uint32_t end = b->ends[d * width + i];
        if (more != state && end > i) {
            improve(best, choices, more * width + end, held + b->sums[end] - b->sums[i],
                    (struct choice){(int32_t)d, i, state});
        }
    }
}

/* False, with a status, if the caller wants to stop. */
static bool may_go_on(struct best *b)
{
    if (b->cells++ % CELLS_A_LOOK == 0 && b->status == HEFT_OK) {
        b->status = heft__tell_progress(b->ctx, "planning", 0, 0, b->err);
    }
    return b->status == HEFT_OK;
}

/* The most bytes that can be held with this share of the budgets; the units' owners, if asked. */
static double solve(struct best *b, double share, double *best, struct choice *choices, bool trace)
{
    const size_t width = (size_t)b->count + 1;
    uint32_t winner = 0;
    for (size_t cell = 0; cell < b->state_count * width; cell++) {
        best[cell] = -1;
    }
    best[0] = 0;
    for (uint32_t i = 0; i <= b->count; i++) {
        for (uint32_t d = 0; d < b->accelerator_count; d++) {
            b->ends[d * width + i] = run_end(b, i, b->accelerators[d]->bytes * share);
        }
    }
    for (uint32_t state = 0; state < b->state_count; state++) { /* none leads to one before it */
        for (uint32_t i = 0; i <= b->count && may_go_on(b); i++) {
            if (best[state * width + i] >= 0) {
                go_on(b, best, choices, i, state);
            }
        }
    }
    if (b->status != HEFT_OK) {
        return -1;
    }
    for (uint32_t state = 1; state < b->state_count; state++) {
        winner = best[state * width + b->count] > best[winner * width + b->count] ? state : winner;
    }
    const double most = best[winner * width + b->count];
    for (uint32_t i = 0; trace && i < b->count; i++) {
        b->owner[i] = -1;
    }
    for (uint32_t i = b->count, state = winner; trace && (i > 0 || state > 0);) {
        const struct choice choice = choices[state * width + i];
        for (uint32_t k = choice.start; choice.device >= 0 && k < i; k++) {
            b->owner[k] = choice.device;
        }
        i = choice.start;
        state = choice.state;
    }
    return most;
}

/* All is held: the least share of the budgets with which it still is. */
static double least_share(struct best *b, double *best, struct choice *choices)
{
    double low = 0, high = 1;
    for (int i = 0; i < SHARE_STEPS; i++) {
        const double middle = (low + high) / 2;
        if (solve(b, middle, best, choices, false) >= b->sums[b->count]) {
            high = middle;
        } else {
            low = middle;
        }
    }
    return high;
}

/* One way of ordering devices: false without memory. `all`: whether everything is held. */
static bool try_order(struct best *b, bool any_order, bool *all)
{
    b->any_order = any_order;
    b->state_count = any_order ? (uint32_t)1 << b->accelerator_count : b->accelerator_count + 1;
    const size_t cells = ((size_t)b->count + 1) * b->state_count;
    double *best = heft__alloc(b->ctx, cells * sizeof *best);
    struct choice *choices = heft__alloc_zero(b->ctx, cells, sizeof *choices);
    bool room = best && choices;
    if (room) {
        *all = solve(b, 1, best, choices, false) >= b->sums[b->count];
        (void)solve(b, *all && !any_order ? least_share(b, best, choices) : 1, best, choices, true);
    }
    heft__free(b->ctx, best, cells * sizeof *best);
    heft__free(b->ctx, choices, cells * sizeof *choices);
    return room;
}

/* In the devices' own order, if all is held by it; else in every order, where those are few. */
static bool choose_owners(struct best *b)
{
    const size_t ends = (size_t)b->accelerator_count * (b->count + 1);
    bool all = false;
    b->ends = heft__alloc_zero(b->ctx, ends, sizeof *b->ends);
    bool room = b->ends && try_order(b, false, &all);
    if (room && !all && b->status == HEFT_OK && b->accelerator_count <= ANY_ORDER_MOST &&
        ((size_t)b->count + 1) << b->accelerator_count <= ANY_ORDER_CELLS) {
        room = try_order(b, true, &all);
    }
    heft__free(b->ctx, b->ends, ends * sizeof *b->ends);
    return room;
}

/* ---- the map --------------------------------------------------------------------------------- */
static void pick_accelerators(struct best *b, const heft_budget *budgets, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (budgets[i].device < 0 && budgets[i].device != HEFT_DEVICE_MPS) {
            continue;
        }
        if (b->accelerator_count < ACCELERATORS_MOST) {
            b->accelerators[b->accelerator_count++] = &budgets[i];
            continue;
        }
        uint32_t least = 0;
        for (uint32_t k = 1; k < b->accelerator_count; k++) {
            least = b->accelerators[k]->bytes < b->accelerators[least]->bytes ? k : least;
        }
        if (b->accelerators[least]->bytes < budgets[i].bytes) {
            b->accelerators[least] = &budgets[i];
        }
    }
}

static const heft_budget *budget_of(const heft_budget *budgets, size_t count, int32_t device)
{
    for (size_t i = 0; i < count; i++) {
        if (budgets[i].device == device) {
            return &budgets[i];
        }
    }
    return NULL;
}

/* What bringing a unit in takes, part by part; `sums`: [modules] zeroes, and again afterwards. */
static void measure_parts(const struct best *b, uint32_t node, const uint32_t *sites, double *sums,
                          heft__rest_unit *unit)
{
    const heft__tree *tree = b->tree;
    uint32_t first, end, parts = 0;
    double before = 0;
    heft__tree_tensors(tree, node, &first, &end);
    for (uint32_t i = first; i < end; i++) {
        const heft__tree_tensor *tensor = &tree->tensors[i];
        if (!tensor->buffer && heft__tree_is_first(tree, i, first)) {
            const double own = tree->tensors[tensor->first].bytes;
            sums[sites[tensor->module]] += own;
            unit->stream += own;
            unit->tied += tensor->first == i ? 0 : own;
        }
    }
    for (uint32_t i = first; i < end; i++) { /* in the order of their first tensors */
        double *sum = &sums[sites[tree->tensors[i].module]];
        if (*sum > 0) {
            unit->first = parts++ == 0 ? *sum : unit->first;
            unit->last = *sum;
            unit->one = *sum > unit->one ? *sum : unit->one;
            unit->two = before + *sum > unit->two ? before + *sum : unit->two;
            before = *sum;
            *sum = 0;
        }
    }
    unit->apart = parts > 1;
}

/* What no accelerator takes, as a row of its own; rest_of: numbers in it by unit. */
static size_t make_rest(struct best *b, const uint32_t *sites, double *sums, heft__rest_unit *rest,
                        uint32_t *rest_of)
{
    size_t count = 0;
    for (uint32_t i = 0; i < b->count; i++) {
        const uint32_t leader = leader_of(b, i);
        if (b->owner[leader] < 0) {
            rest_of[i] = (uint32_t)count++;
        }
    }
    for (uint32_t i = 0; i < b->count; i++) {
        const uint32_t leader = leader_of(b, i);
        if (b->owner[leader] < 0) {
            heft__rest_unit *unit = &rest[rest_of[i]];
            unit->leader = rest_of[leader];
            unit->bytes = b->units[i].bytes; /* of a leader, all of them */
            measure_parts(b, b->units[i].node, sites, sums, unit);
            rest[unit->leader].saves += unit->stream; /* no leader comes behind */
        }
    }
    return count;
}

/* Entries in the order of units. */
static bool put_units(struct best *b, const heft__rest_unit *rest, const uint32_t *rest_of,
                      size_t first, size_t end, heft__map_of_devices *map)
{
    bool good = true;
    for (uint32_t i = 0; good && i < b->count; i++) {
        const int32_t owner = b->owner[leader_of(b, i)];
        int32_t device = HEFT_DEVICE_DISK;
        if (owner >= 0) {
            device = b->accelerators[owner]->device;
        } else {
            const size_t at = rest[rest_of[i]].leader;
            device = at >= first && at < end ? HEFT_DEVICE_CPU : HEFT_DEVICE_DISK;
        }
        good = heft__devices_put(map, b->units[i].node, device);
    }
    return good;
}

static bool write_map(struct best *b, const heft_budget *budgets, size_t count,
                      heft__map_of_devices *map)
{
    const heft_budget *cpu = budget_of(budgets, count, HEFT_DEVICE_CPU);
    const size_t units = (size_t)b->count + 1;
    heft__rest_unit *rest = heft__alloc_zero(b->ctx, units, sizeof *rest);
    uint32_t *rest_of = heft__alloc(b->ctx, units * sizeof *rest_of);
    const size_t modules = b->tree->module_count;
    uint32_t *sites = heft__alloc(b->ctx, modules * sizeof *sites);
    double *sums = heft__alloc_zero(b->ctx, modules, sizeof *sums);
    size_t first = 0, end = 0;
    bool good = rest && rest_of && sites && sums;
    if (good) {
        heft__tree_sites(b->tree, sites);
        const size_t rest_count = make_rest(b, sites, sums, rest, rest_of);
        heft__rest_choose(rest, rest_count, cpu ? cpu->bytes : 0, &first, &end);
        good = put_units(b, rest, rest_of, first, end, map);
    }
    heft__free(b->ctx, rest, units * sizeof *rest);
    heft__free(b->ctx, rest_of, units * sizeof *rest_of);
    heft__free(b->ctx, sites, modules * sizeof *sites);
    heft__free(b->ctx, sums, modules * sizeof *sums);
    return good;
}

heft_status heft__best_map(const heft__tree *tree, const heft_budget *budgets, size_t count,
                           heft__map_of_devices *map, heft_error *err)
{
    struct best b = {.tree = tree, .ctx = tree->ctx, .err = err};
    *map = (heft__map_of_devices){.ctx = tree->ctx};
    pick_accelerators(&b, budgets, count);
    bool good = may_go_on(&b) && make_units(&b) && choose_owners(&b) && b.status == HEFT_OK &&
                write_map(&b, budgets, count, map);
    heft__free(b.ctx, b.units, b.cap * sizeof *b.units);
    heft__free(b.ctx, b.by_node,
               ((size_t)tree->module_count + tree->tensor_count) * sizeof *b.by_node);
    heft__free(b.ctx, b.sums, ((size_t)b.count + 1) * sizeof *b.sums);
    heft__free(b.ctx, b.owner, ((size_t)b.count + 1) * sizeof *b.owner);
    if (!good) {
        heft__devices_fini(map);
        return b.status != HEFT_OK ? b.status
                                   : heft__fail_nomem(err, (uint64_t)b.count * sizeof *b.units);
    }
    return HEFT_OK;
}
