/* compat_queue.c - what is still to be placed, and how large the largest layer of it is.
 *
 * Source: docs/placing.md [3]. */
#include "place/compat.h"

#include <stdlib.h>

/* ---- layers ---------------------------------------------------------------------------------- */
static int by_value(const void *left, const void *right)
{
    const double a = *(const double *)left, b = *(const double *)right;
    return a < b ? -1 : a > b;
}

/* Backwards, so that what is in a module is known before the module. */
static void find_layers(heft__queue *queue)
{
    const heft__tree *tree = queue->tree;
    for (uint32_t i = tree->module_count; i-- > 0;) {
        if (!heft__tree_splits(tree, i)) {
            queue->most[i] = tree->modules[i].bytes;
            queue->layers[i] = 1;
        }
        const uint32_t up = tree->modules[i].parent;
        if (up == HEFT__NO_NODE || !heft__tree_splits(tree, up)) {
            continue;
        }
        if (queue->most[i] > queue->most[up]) {
            queue->most[up] = queue->most[i];
            queue->layers[up] = 0;
        }
        queue->layers[up] += queue->most[i] == queue->most[up] ? queue->layers[i] : 0;
    }
}

static void rank_layers(heft__queue *queue)
{
    const uint32_t count = queue->tree->module_count;
    memcpy(queue->sizes, queue->most, count * sizeof *queue->sizes);
    qsort(queue->sizes, count, sizeof *queue->sizes, by_value);
    for (uint32_t i = 0; i < count; i++) {
        if (i == 0 || queue->sizes[i] != queue->sizes[queue->size_count - 1]) {
            queue->sizes[queue->size_count++] = queue->sizes[i];
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        const double *found = bsearch(&queue->most[i], queue->sizes, queue->size_count,
                                      sizeof *queue->sizes, by_value);
        queue->rank[i] = (uint32_t)(found - queue->sizes);
    }
    for (queue->leaves = 1; queue->leaves < queue->size_count;) {
        queue->leaves *= 2;
    }
}

/* A module begins to wait (by 1), or no longer does (by -1). */
static void count_module(heft__queue *queue, uint32_t module, int by)
{
    const uint32_t rank = queue->rank[module];
    for (uint32_t at = queue->leaves + rank; at > 0; at /= 2) {
        queue->waiting[at] += (uint32_t)by;
    }
    queue->by_rank[rank] += by > 0 ? queue->layers[module] : 0;
    queue->by_rank[rank] -= by < 0 ? queue->layers[module] : 0;
}

void heft__queue_find_largest(heft__queue *queue)
{
    uint32_t at = 1;
    queue->round++;
    queue->reserve = 0;
    queue->left = 0;
    if (queue->waiting[1] == 0) {
        return;
    }
    while (at < queue->leaves) {
        at = 2 * at + (queue->waiting[2 * at + 1] > 0);
    }
    queue->reserve = queue->sizes[at - queue->leaves];
    queue->left = queue->by_rank[at - queue->leaves];
}

/* The root's own tensors are layers the first time, and only then. */
static void find_largest_of_all(heft__queue *queue)
{
    const heft__tree_module *root = &queue->tree->modules[0];
    heft__queue_find_largest(queue);
    for (uint32_t i = 0; i < root->tensor_count; i++) {
        const double bytes = queue->tree->tensors[root->first_tensor + i].bytes;
        if (bytes > queue->reserve) {
            queue->reserve = bytes;
            queue->left = 0;
        }
        queue->left += bytes == queue->reserve;
    }
}

void heft__queue_forget(heft__queue *queue, uint32_t item)
{
    const heft__tree *tree = queue->tree;
    if (queue->seen[item] != queue->round) {
        if (!heft__tree_is_tensor(tree, item)) {
            queue->left -= queue->most[item] == queue->reserve ? queue->layers[item] : 0;
        } else if (queue->round == 1 && tree->tensors[item - tree->module_count].module == 0) {
            queue->left -= heft__tree_bytes(tree, item) == queue->reserve;
        }
    }
    if (queue->left == 0) {
        heft__queue_find_largest(queue);
    }
    queue->seen[item] = queue->round;
}

/* ---- the ring -------------------------------------------------------------------------------- */
bool heft__queue_init(heft__queue *queue, const heft__tree *tree, heft__arena *arena)
{
    const uint32_t modules = tree->module_count, nodes = modules + tree->tensor_count;
    *queue = (heft__queue){.tree = tree, .head = nodes};
    queue->next = heft__arena_array(arena, (uint64_t)nodes + 1, sizeof *queue->next);
    queue->prev = heft__arena_array(arena, (uint64_t)nodes + 1, sizeof *queue->prev);
    queue->most = heft__arena_array(arena, modules, sizeof *queue->most);
    queue->layers = heft__arena_array(arena, modules, sizeof *queue->layers);
    queue->rank = heft__arena_array(arena, modules, sizeof *queue->rank);
    queue->sizes = heft__arena_array(arena, modules, sizeof *queue->sizes);
    queue->by_rank = heft__arena_array(arena, modules, sizeof *queue->by_rank);
    queue->seen = heft__arena_array(arena, nodes, sizeof *queue->seen);
    if (!queue->next || !queue->prev || !queue->most || !queue->layers || !queue->rank ||
        !queue->sizes || !queue->by_rank || !queue->seen) {
        return false;
    }
    memset(queue->next, 0xff, ((size_t)nodes + 1) * sizeof *queue->next);
    queue->next[nodes] = queue->prev[nodes] = nodes;
    find_layers(queue);
    rank_layers(queue);
    queue->waiting = heft__arena_array(arena, 2 * (uint64_t)queue->leaves, sizeof *queue->waiting);
    if (queue->waiting) {
        heft__queue_expand(queue, 0, queue->head);
        find_largest_of_all(queue);
    }
    return queue->waiting != NULL;
}

uint32_t heft__queue_first(const heft__queue *queue)
{
    const uint32_t first = queue->next[queue->head];
    return first == queue->head ? HEFT__NO_NODE : first;
}

void heft__queue_add(heft__queue *queue, uint32_t node, uint32_t before)
{
    const uint32_t after = queue->prev[before];
    queue->next[after] = queue->prev[before] = node;
    queue->next[node] = before;
    queue->prev[node] = after;
    if (!heft__tree_is_tensor(queue->tree, node)) {
        count_module(queue, node, 1);
    }
}

void heft__queue_remove(heft__queue *queue, uint32_t node)
{
    queue->next[queue->prev[node]] = queue->next[node];
    queue->prev[queue->next[node]] = queue->prev[node];
    queue->next[node] = HEFT__NO_NODE;
    if (!heft__tree_is_tensor(queue->tree, node)) {
        count_module(queue, node, -1);
    }
}

static void add_tensors(heft__queue *queue, uint32_t module, uint32_t before, bool buffers)
{
    const heft__tree *tree = queue->tree;
    const heft__tree_module *m = &tree->modules[module];
    for (uint32_t i = m->first_tensor; i < m->first_tensor + m->tensor_count; i++) {
        if (tree->tensors[i].buffer == buffers) {
            heft__queue_add(queue, tree->module_count + i, before);
        }
    }
}

void heft__queue_expand(heft__queue *queue, uint32_t module, uint32_t before)
{
    const heft__tree *tree = queue->tree;
    add_tensors(queue, module, before, false);
    for (uint32_t child = module + 1; child < tree->modules[module].end;
         child = tree->modules[child].end) {
        heft__queue_add(queue, child, before);
        queue->seen[child] = queue->seen[module]; /* its layers are in those of the module */
    }
    add_tensors(queue, module, before, true);
}

uint32_t heft__queue_holder(const heft__queue *queue, uint32_t node)
{
    while (node != HEFT__NO_NODE && !heft__queue_waits(queue, node)) {
        node = heft__tree_parent(queue->tree, node);
    }
    return node;
}
