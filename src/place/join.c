/* join.c - a map's entries joined where all of a module is on one device.
 *
 * Source: docs/placing.md [3]. */
#include "place/place.h"

#include <stdlib.h>

void heft__devices_fini(heft__map_of_devices *map)
{
    heft__free(map->ctx, map->entries, map->cap * sizeof *map->entries);
    map->entries = NULL;
    map->count = map->cap = 0;
}

bool heft__devices_put(heft__map_of_devices *map, uint32_t node, int32_t device)
{
    if (!heft__array_reserve(map->ctx, (void **)&map->entries, map->count, &map->cap,
                             sizeof *map->entries)) {
        return false;
    }
    map->entries[map->count++] = (heft__placement){node, device};
    return true;
}

/* By place in the tree: a module before what is in it. */
static int by_node(const void *left, const void *right)
{
    const heft__placement *a = left, *b = right;
    return a->node < b->node ? -1 : a->node > b->node;
}

struct below { /* entries strictly below a module */
    uint32_t count;
    int32_t device; /* of one of them */
    bool mixed, joined;
};

static void add_below(struct below *sum, uint32_t count, int32_t device, bool mixed)
{
    if (count > 0) {
        sum->mixed = sum->mixed || mixed || (sum->count > 0 && sum->device != device);
        sum->device = device;
        sum->count += count;
    }
}

/* Sums from the leaves to the root. */
static void sum_below(const heft__tree *tree, const heft__map_of_devices *map, struct below *sums)
{
    for (size_t i = 0; i < map->count; i++) {
        const uint32_t up = heft__tree_parent(tree, map->entries[i].node);
        if (up != HEFT__NO_NODE) {
            add_below(&sums[up], 1, map->entries[i].device, false);
        }
    }
    for (uint32_t i = tree->module_count; i-- > 1;) {
        add_below(&sums[tree->modules[i].parent], sums[i].count, sums[i].device, sums[i].mixed);
    }
}

/* The outermost modules with several entries below them, all on one device. */
static void choose_joined(const heft__tree *tree, struct below *sums)
{
    for (uint32_t i = 0; i < tree->module_count;) {
        sums[i].joined = sums[i].count > 1 && !sums[i].mixed;
        i = sums[i].joined || sums[i].count < 2 ? tree->modules[i].end : i + 1;
    }
}

bool heft__devices_clean(const heft__tree *tree, heft__map_of_devices *map)
{
    struct below *sums = heft__alloc_zero(tree->ctx, tree->module_count, sizeof *sums);
    if (!sums) {
        return false;
    }
    sum_below(tree, map, sums);
    choose_joined(tree, sums);
    size_t kept = 0;
    for (size_t i = 0; i < map->count; i++) {
        uint32_t up = heft__tree_parent(tree, map->entries[i].node);
        while (up != HEFT__NO_NODE && !sums[up].joined) {
            up = tree->modules[up].parent;
        }
        if (up == HEFT__NO_NODE) {
            map->entries[kept++] = map->entries[i];
        } else if (sums[up].count > 0) { /* its first one: there is room for the module's */
            map->entries[kept++] = (heft__placement){up, map->entries[i].device};
            sums[up].count = 0;
        }
    }
    map->count = kept;
    heft__free(tree->ctx, sums, tree->module_count * sizeof *sums);
    if (map->count > 1) {
        qsort(map->entries, map->count, sizeof *map->entries, by_node);
    }
    return true;
}

void heft__devices_spread(const heft__tree *tree, const heft__map_of_devices *map, int32_t *devices)
{
    for (uint32_t node = 0; node < tree->module_count + tree->tensor_count; node++) {
        devices[node] = HEFT__NO_DEVICE;
    }
    for (size_t i = 0; i < map->count; i++) {
        devices[map->entries[i].node] = map->entries[i].device;
    }
    for (uint32_t node = 1; node < tree->module_count + tree->tensor_count; node++) {
        if (devices[node] == HEFT__NO_DEVICE) { /* a parent comes before what is in it */
            devices[node] = devices[heft__tree_parent(tree, node)];
        }
    }
}
