/* compat.c - the device maps that Accelerate 1.15 makes: first fit in order.
 *
 * Items (modules, or tensors that stand directly in a module that was split) are taken from a queue
 * and put on the first device, in order, on which they and what is tied to them fit; what does not fit
 * is split into its children. The first accelerator and the CPU keep room for the largest
 * layer that is still to come. A device is never returned to once it was left. Accelerate's oddities are
 * kept where they change a map, but not where they lose a tensor (docs/differences.md).
 *
 * Each step costs as much as what it moves, but for looking for a later module to pull forward,
 * which goes through all that waits.
 * Source: docs/placing.md [3]. */
#include "place/compat.h"

#define STEPS_A_LOOK 1024 /* between two looks whether the caller wants to stop */

struct fit {
    const heft__tree *tree;
    heft__arena arena;
    heft__queue queue;
    heft__tie_index ties;
    const heft_budget *budgets; /* in the order of trying; disk is last */
    size_t budget_count, at;    /* at == budget_count: disk */
    double used;                /* on the device that is tried */
    double placed;              /* on all */
    heft__map_facts *facts;
    heft__map_of_devices *map;
    int32_t main[2]; /* devices that keep a reserve */
    size_t *pulled;  /* [nodes] the last device, from 1, for which it was pulled forward */
    uint64_t steps;
    heft_status status;
    heft_error *err;
};

/* False, with a status, if the caller wants to stop. */
static bool go_on(struct fit *f)
{
    if (f->steps++ % STEPS_A_LOOK == 0 && f->status == HEFT_OK) {
        f->status = heft__tell_progress(f->tree->ctx, "planning", (uint64_t)f->placed,
                                        (uint64_t)f->tree->modules[0].bytes, f->err);
    }
    return f->status == HEFT_OK;
}

static void push_front(struct fit *f, uint32_t node)
{
    heft__queue_add(&f->queue, node, f->queue.next[f->queue.head]);
}

/* ---- placing --------------------------------------------------------------------------------- */
/* The item and its owners. Buffers of owners are not counted, nor those beside modules: Accelerate
 * does not either. */
static bool place(struct fit *f, uint32_t item, int32_t device)
{
    const bool offloaded = device == HEFT_DEVICE_CPU || device == HEFT_DEVICE_DISK;
    bool good = heft__devices_put(f->map, item, device);
    for (uint32_t i = 0; good && i < f->ties.owner_count; i++) {
        const uint32_t owner = f->ties.owners[i];
        if (heft__queue_waits(&f->queue, owner)) { /* one may be there twice */
            heft__queue_remove(&f->queue, owner);
            good = heft__devices_put(f->map, owner, device);
        }
    }
    if (offloaded && !heft__tree_is_tensor(f->tree, item)) {
        f->facts->offloaded_buffers += heft__tree_buffers(f->tree, item);
    }
    return good;
}

/* The item fits alone, its ties do not: split the first owner that can be. */
static bool split_owner(struct fit *f, uint32_t item)
{
    const uint32_t owner = heft__tie_index_splits(&f->ties);
    if (owner == HEFT__NO_NODE) {
        return false;
    }
    const uint32_t behind = f->queue.next[owner];
    heft__queue_remove(&f->queue, owner);
    heft__queue_expand(&f->queue, owner, behind);
    heft__tie_index_resettle(&f->ties, &f->queue, owner);
    push_front(f, item); /* it is still to come for the reserve */
    heft__queue_find_largest(&f->queue);
    heft__queue_remove(&f->queue, item);
    return true;
}

/* ---- a later module pulled forward ----------------------------------------------------------- */
/* The first of a waiting node and the modules and parameters in it that fits with its ties, in depth;
 * NO_NODE if none does. */
static uint32_t search(struct fit *f, uint32_t item, uint32_t node, double limit)
{
    const heft__tree *tree = f->tree;
    const bool alone = heft__tree_is_tensor(tree, node);
    const uint32_t end = alone ? node + 1 : tree->modules[node].end;
    for (uint32_t at = node; at < end && go_on(f);) {
        heft__tie_index_find(&f->ties, &f->queue, at, item);
        if (heft__tree_bytes(tree, at) + f->ties.owner_bytes <= limit) {
            return at;
        }
        if (alone || !heft__tree_splits(tree, at)) {
            at = alone ? end : tree->modules[at].end;
            continue;
        }
        const uint32_t first = tree->modules[at].first_tensor;
        for (uint32_t i = first; i < first + tree->modules[at].tensor_count; i++) {
            const uint32_t tensor = tree->module_count + i;
            heft__tie_index_find(&f->ties, &f->queue, tensor, item);
            if (!tree->tensors[i].buffer && tree->tensors[i].bytes + f->ties.owner_bytes <= limit) {
                return tensor;
            }
        }
        at++;
    }
    return HEFT__NO_NODE;
}

/* Bring `found` to the front, its ancestors in the queue replaced by their children; `item` after
 * it. */
static void pull_forward(struct fit *f, uint32_t item, uint32_t found)
{
    for (uint32_t holder; (holder = heft__queue_holder(&f->queue, found)) != found;) {
        const uint32_t behind = f->queue.next[holder];
        heft__queue_remove(&f->queue, holder);
        heft__queue_expand(&f->queue, holder, behind);
    }
    heft__queue_remove(&f->queue, found);
    push_front(f, item);
    push_front(f, found);
}

static bool fall_back(struct fit *f, uint32_t item, double needed)
{
    const double reserve = f->queue.reserve;
    const double most = reserve > needed ? reserve : needed;
    const double limit = f->budgets[f->at].bytes - most - f->used;
    uint32_t found = HEFT__NO_NODE;
    for (uint32_t node = f->queue.next[f->queue.head];
         limit >= 0 && found == HEFT__NO_NODE && node != f->queue.head && f->status == HEFT_OK;
         node = f->queue.next[node]) {
        found = search(f, item, node, limit);
    }
    /* once for a device: two that each pull the other forward would do so for ever */
    if (found == HEFT__NO_NODE || f->pulled[found] == f->at + 1) {
        return false;
    }
    f->pulled[found] = f->at + 1;
    pull_forward(f, item, found);
    return true;
}

/* ---- the loop -------------------------------------------------------------------------------- */
/* What a device has left for items now; its reserve. */
static double room(const struct fit *f, double *reserve)
{
    const int32_t device = f->budgets[f->at].device;
    const bool is_main = device == f->main[0] || device == f->main[1];
    *reserve = is_main ? f->queue.reserve : 0;
    return f->budgets[f->at].bytes - *reserve;
}

/* One item from the front: placed, split, or put back while the next device is taken. */
static bool step(struct fit *f, uint32_t item, bool fallback)
{
    const heft__tree *tree = f->tree;
    const bool disk = f->at == f->budget_count;
    const double bytes = heft__tree_bytes(tree, item);
    double reserve = 0, cap = 0, all;
    heft__tie_index_find(&f->ties, &f->queue, item, HEFT__NO_NODE);
    do {
        heft__queue_forget(&f->queue, item);
        all = bytes + f->ties.owner_bytes;
        cap = disk ? 0 : room(f, &reserve);
        if (disk || f->used + all <= cap) {
            f->used += all;
            f->placed += all;
            return place(f, item, disk ? HEFT_DEVICE_DISK : f->budgets[f->at].device);
        }
        if (!go_on(f)) {
            return false;
        }
    } while (f->ties.owner_count > 0 && f->used + bytes <= cap && split_owner(f, item));
    if (f->used + bytes >= cap && heft__tree_splits(tree, item)) {
        heft__queue_expand(&f->queue, item, f->queue.next[f->queue.head]);
        heft__queue_find_largest(&f->queue);
        return true;
    }
    if (fallback && f->used == 0 && fall_back(f, item, all)) {
        return true;
    }
    f->facts->needed[f->at] = f->used == 0 ? all + reserve : 0;
    f->facts->used[f->at++] = f->used + reserve;
    f->used = 0;
    push_front(f, item);
    return true;
}

static void choose_main(struct fit *f)
{
    f->main[0] = f->main[1] = HEFT_DEVICE_CPU;
    for (size_t i = f->budget_count; i-- > 0;) {
        if (f->budgets[i].device >= 0) {
            f->main[0] = f->budgets[i].device;
        }
    }
    for (size_t i = 0; i < f->budget_count; i++) {
        if (f->budgets[i].device == HEFT_DEVICE_MPS) {
            f->main[0] = f->main[1] = HEFT_DEVICE_MPS;
        }
    }
}

heft_status heft__compat_map(const heft__tree *tree, const heft_budget *budgets, size_t count,
                             bool fallback, heft__map_facts *facts, heft__map_of_devices *map,
                             heft_error *err)
{
    struct fit f = {.tree = tree,
                    .budgets = budgets,
                    .budget_count = count,
                    .facts = facts,
                    .map = map,
                    .err = err};
    *map = (heft__map_of_devices){.ctx = tree->ctx};
    heft__arena_init(&f.arena, tree->ctx);
    while (f.budget_count > 0 && budgets[f.budget_count - 1].device == HEFT_DEVICE_DISK) {
        f.budget_count--;
    }
    choose_main(&f);
    const uint64_t nodes = (uint64_t)tree->module_count + tree->tensor_count;
    f.pulled = heft__arena_array(&f.arena, nodes, sizeof *f.pulled);
    bool good = f.pulled && heft__queue_init(&f.queue, tree, &f.arena) &&
                heft__tie_index_init(&f.ties, tree, &f.arena);
    for (uint32_t item;
         good && go_on(&f) && (item = heft__queue_first(&f.queue)) != HEFT__NO_NODE;) {
        heft__queue_remove(&f.queue, item);
        good = step(&f, item, fallback);
    }
    if (f.at < f.budget_count) {
        facts->used[f.at] = f.used;
    }
    heft__arena_fini(&f.arena);
    if (f.status == HEFT_OK && !good) {
        f.status = heft__fail_nomem(err, tree->tensor_count * sizeof *map->entries);
    }
    if (f.status != HEFT_OK) {
        heft__devices_fini(map);
    }
    return f.status;
}
