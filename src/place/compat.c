/* compat.c - the device maps that Accelerate 1.15 makes: balanced budgets, and first fit in order.
 *
 * Items (modules, or tensors that stand directly in a module that was split) are taken from a queue
 * and put on the first device, in order, on which they and what is tied to them fit; what does not fit
 * is split into its children. The first accelerator and the processor keep room for the largest
 * layer that is still to come. A device that was left is never returned to. Its oddities are kept
 * where they change a map, and not kept where they lose something (docs/differences.md).
 * Source: docs/placing.md [2], [3]. */
#include "place/place.h"

#include <math.h>
#include <stdlib.h>

/* ---- balanced budgets ------------------------------------------------------------------------ */
static bool is_accelerator(int32_t device)
{
    return device >= 0;
}

/* The mean size of modules that hold tensors and have no module below them that does; below 0 without
 * memory. */
static double mean_of_leaves(const heft__tree *tree)
{
    double sum = 0, count = 0;
    bool *holds = heft__alloc_zero(tree->ctx, tree->module_count, sizeof *holds);
    bool *inner = heft__alloc_zero(tree->ctx, tree->module_count, sizeof *inner);
    for (uint32_t i = 0; holds && inner && i < tree->tensor_count; i++) {
        if (tree->tensors[i].first != i) {
            continue;
        }
        uint32_t at = tree->tensors[i].module;
        holds[at] = true;
        for (uint32_t up = tree->modules[at].parent; up != HEFT__NO_NODE;
             up = tree->modules[up].parent) {
            holds[up] = inner[up] = true;
        }
    }
    for (uint32_t i = 1; holds && inner && i < tree->module_count; i++) {
        if (holds[i] && !inner[i]) {
            sum += tree->modules[i].bytes;
            count++;
        }
    }
    const bool room = holds && inner;
    heft__free(tree->ctx, holds, tree->module_count * sizeof *holds);
    heft__free(tree->ctx, inner, tree->module_count * sizeof *inner);
    return room ? floor(sum / (count > 0 ? count : 1)) : -1;
}

/* The largest of the first modules of each class. */
static double first_blocks(const heft__tree *tree, const char *const *classes, size_t count)
{
    double most = 0;
    for (size_t k = 0; k < count; k++) {
        for (uint32_t i = 0; i < tree->module_count; i++) {
            if (strcmp(tree->modules[i].class_name, classes[k]) == 0) {
                most = tree->modules[i].bytes > most ? tree->modules[i].bytes : most;
                break;
            }
        }
    }
    return most;
}

/* Room for accelerator 0 is what the others cannot take. The reference takes positions for numbers;
 * where a number is not there it fails, and all others are meant. */
static void lower_first(double total, heft_budget *budgets, size_t count, size_t used)
{
    double others = 0, found = 0;
    for (int32_t id = 1; id < (int32_t)used; id++) {
        for (size_t i = 0; i < count; i++) {
            if (budgets[i].device == id) {
                others += budgets[i].bytes;
                found++;
            }
        }
    }
    if (found < (double)used - 1) {
        others = 0;
        for (size_t i = 0; i < count; i++) {
            others += budgets[i].device > 0 ? budgets[i].bytes : 0;
        }
    }
    double least = total - others > 0 ? total - others : 0;
    for (size_t i = 0; i < count; i++) {
        if (budgets[i].device == 0 && least < budgets[i].bytes) {
            budgets[i].bytes = least;
        }
    }
}

heft_status heft__balance(const heft__tree *tree, heft_strategy strategy, heft_budget *budgets,
                          size_t count, const char *const *classes, size_t class_count,
                          heft_error *err)
{
    const bool low = strategy == HEFT_STRATEGY_BALANCED_LOW_0;
    const double total = tree->modules[0].bytes;
    size_t used = 0;
    int32_t last = -1;
    if (strategy == HEFT_STRATEGY_SEQUENTIAL) {
        return HEFT_OK;
    }
    for (size_t i = 0; i < count; i++) {
        if (is_accelerator(budgets[i].device) && budgets[i].bytes > 0) {
            used++;
            last = budgets[i].device > last ? budgets[i].device : last;
        }
    }
    if (used < 2) {
        return HEFT_OK;
    }
    double share = floor(total / (double)(low ? used - 1 : used));
    double block = first_blocks(tree, classes, class_count), mean = mean_of_leaves(tree);
    if (mean < 0) {
        return heft__fail_nomem(err, tree->module_count);
    }
    share += floor(1.25 * (block > mean ? block : mean));
    for (size_t i = 0; i < count; i++) {
        heft_budget *budget = &budgets[i];
        bool lowered = is_accelerator(budget->device) && budget->bytes > 0 &&
                       budget->device != last && !(low && budget->device == 0);
        if (lowered && share < budget->bytes) {
            budget->bytes = share;
        }
    }
    if (low) {
        lower_first(total, budgets, count, used);
    }
    return HEFT_OK;
}

/* ---- the queue ------------------------------------------------------------------------------- */
struct fit {
    const heft__tree *tree;
    uint32_t *queue; /* [count] its front is its end */
    size_t count, cap;
    const heft_budget *budgets; /* in the order of trying; disk is behind all */
    size_t budget_count, at;    /* at == budget_count: disk */
    double used;                /* on the device that is tried */
    double reserve;             /* the size of the largest layer to come */
    uint32_t *largest;          /* [largest_count] all layers of that size, in the order met */
    size_t largest_count, largest_cap;
    uint32_t *owners; /* [owner_count] items of the queue that hold what is tied to the item */
    uint32_t *tied;   /* [owner_count] the tensor of each */
    size_t owner_count, owner_cap, tied_cap;
    heft__map_of_devices *map;
    int32_t main[2]; /* devices that keep a reserve */
};

static bool push(heft_ctx *ctx, uint32_t **list, size_t *count, size_t *cap, uint32_t node)
{
    if (!heft__array_reserve(ctx, (void **)list, *count, cap, sizeof **list)) {
        return false;
    }
    (*list)[(*count)++] = node;
    return true;
}

/* Put a module's direct parameters, then its children, in the place of queue[at] (its front if `at` is
 * the end), and its buffers where `buffers` says so. */
static bool expand(struct fit *f, size_t at, uint32_t module, bool remove, bool buffers)
{
    const heft__tree *tree = f->tree;
    const heft__tree_module *m = &tree->modules[module];
    size_t more = m->child_count + m->tensor_count, tail = f->count - at - (remove ? 1 : 0);
    if (f->count + more > f->cap) {
        size_t cap = 2 * (f->count + more);
        uint32_t *bigger =
            heft__resize(tree->ctx, f->queue, f->cap * sizeof *f->queue, cap * sizeof *f->queue);
        if (!bigger) {
            return false;
        }
        f->queue = bigger;
        f->cap = cap;
    }
    uint32_t *list = heft__alloc(tree->ctx, (more + 1) * sizeof *list);
    if (!list) {
        return false;
    }
    size_t n = 0;
    for (uint32_t i = 0; i < m->tensor_count; i++) {
        if (!tree->tensors[m->first_tensor + i].buffer) {
            list[n++] = tree->module_count + m->first_tensor + i;
        }
    }
    for (uint32_t child = module + 1; child < m->end; child = tree->modules[child].end) {
        list[n++] = child;
    }
    for (uint32_t i = 0; buffers && i < m->tensor_count; i++) {
        if (tree->tensors[m->first_tensor + i].buffer) {
            list[n++] = tree->module_count + m->first_tensor + i;
        }
    }
    memmove(f->queue + at + n, f->queue + at + (remove ? 1 : 0), tail * sizeof *f->queue);
    for (size_t i = 0; i < n; i++) {
        f->queue[at + i] = list[n - 1 - i];
    }
    f->count = at + n + tail;
    heft__free(tree->ctx, list, (more + 1) * sizeof *list);
    return true;
}

/* ---- the largest layer ----------------------------------------------------------------------- */
/* A layer is a tensor, or a module that is not split any further. */
static bool look_at_layers(struct fit *f, uint32_t node, double *most)
{
    const heft__tree *tree = f->tree;
    if (heft__tree_splits(tree, node)) {
        bool good = true;
        for (uint32_t child = node + 1; good && child < tree->modules[node].end;
             child = tree->modules[child].end) {
            good = look_at_layers(f, child, most);
        }
        return good;
    }
    const double bytes = heft__tree_bytes(tree, node);
    if (bytes > *most) {
        *most = bytes;
        f->largest_count = 0;
    }
    return bytes < *most || push(tree->ctx, &f->largest, &f->largest_count, &f->largest_cap, node);
}

/* Of the queue's items, or of its modules only. */
static bool find_largest(struct fit *f, bool modules_only)
{
    double most = 0;
    bool good = true;
    f->largest_count = 0;
    for (size_t i = f->count; good && i-- > 0;) {
        if (!modules_only || !heft__tree_is_tensor(f->tree, f->queue[i])) {
            good = look_at_layers(f, f->queue[i], &most);
        }
    }
    f->reserve = most;
    return good;
}

/* The item is being placed: layers in it are no longer to come. */
static bool forget_largest(struct fit *f, uint32_t item)
{
    size_t kept = 0;
    for (size_t i = 0; i < f->largest_count; i++) {
        if (!heft__tree_is_inside(f->tree, f->largest[i], item)) {
            f->largest[kept++] = f->largest[i];
        }
    }
    f->largest_count = kept;
    return kept > 0 || find_largest(f, true);
}

/* ---- ties ------------------------------------------------------------------------------------ */
/* As the reference asks: the item's name is anywhere among the parts of the tensor's. */
static bool claims(const heft__tree *tree, uint32_t item, uint32_t tensor)
{
    const char *name = heft__tree_path(tree, item), *member = tree->tensors[tensor].path;
    const size_t length = strlen(name);
    for (const char *at = strstr(member, name); at; at = strstr(at + 1, name)) {
        if (at[length] == '.' || at[length] == '\0') {
            return true;
        }
    }
    return false;
}

/* The queue's first item of which a tensor is a part, itself not; or the tensor itself, where the
 * reference fails. HEFT__NO_NODE: placed already. */
static uint32_t owner_of(const struct fit *f, uint32_t tensor)
{
    const uint32_t node = f->tree->module_count + tensor;
    for (size_t i = f->count; i-- > 0;) {
        if (heft__tree_is_inside(f->tree, node, f->queue[i])) {
            return f->queue[i];
        }
    }
    return HEFT__NO_NODE;
}

/* The items that must go where this one goes. */
static bool find_owners(struct fit *f, uint32_t item)
{
    const heft__tree *tree = f->tree;
    f->owner_count = 0;
    for (size_t i = 0, end; i < tree->tie_count; i = end) {
        bool inside = false, outside = false;
        for (end = i; end < tree->tie_count && tree->ties[end][0] == tree->ties[i][0]; end++) {
            bool in = claims(tree, item, tree->ties[end][1]);
            inside = inside || in;
            outside = outside || !in;
        }
        for (size_t k = i; inside && outside && k < end; k++) {
            const uint32_t tensor = tree->ties[k][1];
            uint32_t owner = claims(tree, item, tensor) ? HEFT__NO_NODE : owner_of(f, tensor);
            size_t tied = f->owner_count;
            if (owner != HEFT__NO_NODE &&
                (!push(tree->ctx, &f->tied, &tied, &f->tied_cap, tensor) ||
                 !push(tree->ctx, &f->owners, &f->owner_count, &f->owner_cap, owner))) {
                return false;
            }
        }
    }
    return true;
}

/* The item with its owners: what an owner shares with it counts once; an owner of two tied tensors
 * counts twice, as it does there. */
static double size_with_owners(const struct fit *f, uint32_t item)
{
    double bytes = heft__tree_bytes(f->tree, item);
    for (size_t i = 0; i < f->owner_count; i++) {
        const bool alone = heft__tree_is_tensor(f->tree, f->owners[i]);
        bytes += heft__tree_bytes(f->tree, f->owners[i]);
        bytes -= alone ? 0 : f->tree->tensors[f->tied[i]].bytes;
    }
    return bytes;
}

/* ---- placing --------------------------------------------------------------------------------- */
static bool put(struct fit *f, uint32_t node, int32_t device)
{
    heft__map_of_devices *map = f->map;
    if (!heft__array_reserve(map->ctx, (void **)&map->entries, map->count, &map->cap,
                             sizeof *map->entries)) {
        return false;
    }
    map->entries[map->count++] = (heft__placement){node, device};
    return true;
}

static void take_out(struct fit *f, uint32_t node)
{
    for (size_t i = f->count; i-- > 0;) {
        if (f->queue[i] == node) {
            memmove(f->queue + i, f->queue + i + 1, (f->count - i - 1) * sizeof *f->queue);
            f->count--;
            return;
        }
    }
}

static bool place(struct fit *f, uint32_t item, int32_t device)
{
    bool good = put(f, item, device);
    for (size_t i = 0; good && i < f->owner_count; i++) {
        bool again = false;
        for (size_t k = 0; k < i; k++) {
            again = again || f->owners[k] == f->owners[i];
        }
        if (!again) {
            good = put(f, f->owners[i], device);
            take_out(f, f->owners[i]);
        }
    }
    return good;
}

/* The item fits alone, its ties do not: split the first owner that can be. */
static bool split_owner(struct fit *f, uint32_t item, bool *done)
{
    *done = false;
    for (size_t i = 0; i < f->owner_count && !*done; i++) {
        if (heft__tree_splits(f->tree, f->owners[i])) {
            size_t at = f->count;
            while (at-- > 0 && f->queue[at] != f->owners[i]) {
            }
            if (!expand(f, at, f->owners[i], true, true)) {
                return false;
            }
            *done = true;
        }
    }
    return !*done ||
           (push(f->tree->ctx, &f->queue, &f->count, &f->cap, item) && find_largest(f, true));
}

/* ---- a later module pulled forward ----------------------------------------------------------- */
/* The first item, or module in one that splits, that fits with its ties; searched in depth. */
static bool search(struct fit *f, uint32_t node, double limit, uint32_t *found)
{
    if (!find_owners(f, node)) {
        return false;
    }
    if (size_with_owners(f, node) <= limit) {
        *found = node;
        return true;
    }
    const heft__tree *tree = f->tree;
    if (!heft__tree_splits(tree, node)) {
        return true;
    }
    const heft__tree_module *m = &tree->modules[node];
    bool good = true;
    for (uint32_t i = 0; good && *found == HEFT__NO_NODE && i < m->tensor_count; i++) {
        if (!tree->tensors[m->first_tensor + i].buffer) {
            good = search(f, tree->module_count + m->first_tensor + i, limit, found);
        }
    }
    for (uint32_t child = node + 1; good && *found == HEFT__NO_NODE && child < m->end;
         child = tree->modules[child].end) {
        good = search(f, child, limit, found);
    }
    return good;
}

/* Bring `found` to the front, its ancestors in the queue replaced by their children; `item` behind
 * it. */
static bool pull_forward(struct fit *f, uint32_t item, uint32_t found)
{
    for (size_t i = f->count; i-- > 0;) {
        const uint32_t node = f->queue[i];
        if (node != found && heft__tree_is_inside(f->tree, found, node)) {
            if (!expand(f, i, node, true, true)) {
                return false;
            }
            i = f->count;
        }
    }
    take_out(f, found);
    return push(f->tree->ctx, &f->queue, &f->count, &f->cap, item) &&
           push(f->tree->ctx, &f->queue, &f->count, &f->cap, found);
}

static bool fall_back(struct fit *f, uint32_t item, double needed, bool *done)
{
    double most = f->reserve > needed ? f->reserve : needed;
    double limit = f->budgets[f->at].bytes - most - f->used;
    uint32_t found = HEFT__NO_NODE;
    *done = false;
    for (size_t i = f->count; limit >= 0 && found == HEFT__NO_NODE && i-- > 0;) {
        if (!search(f, f->queue[i], limit, &found)) {
            return false;
        }
    }
    *done = found != HEFT__NO_NODE;
    return !*done || pull_forward(f, item, found);
}

/* ---- the loop -------------------------------------------------------------------------------- */
/* One item from the front: placed, split, or put back while the next device is taken. */
static bool step(struct fit *f, uint32_t item, bool fallback)
{
    const bool disk = f->at == f->budget_count;
    const int32_t device = disk ? HEFT_DEVICE_DISK : f->budgets[f->at].device;
    if (!forget_largest(f, item) || !find_owners(f, item)) {
        return false;
    }
    const bool is_main = !disk && (device == f->main[0] || device == f->main[1]);
    const double reserve = is_main ? f->reserve : 0;
    const double cap = disk ? 0 : f->budgets[f->at].bytes - reserve;
    const double bytes = heft__tree_bytes(f->tree, item), all = size_with_owners(f, item);
    bool done = false;
    if (disk || f->used + all <= cap) {
        f->used += all;
        return place(f, item, device);
    }
    if (f->owner_count > 0 && f->used + bytes <= cap) {
        if (!split_owner(f, item, &done)) {
            return false;
        }
        if (done) {
            return true;
        }
    }
    if (f->used + bytes >= cap && heft__tree_splits(f->tree, item)) {
        return expand(f, f->count, item, false, true) && find_largest(f, true);
    }
    if (fallback && f->used == 0) {
        if (!fall_back(f, item, all, &done)) {
            return false;
        }
        if (done) {
            return true;
        }
    }
    f->at++;
    f->used = 0;
    return push(f->tree->ctx, &f->queue, &f->count, &f->cap, item);
}

static void choose_main(struct fit *f)
{
    f->main[0] = f->main[1] = HEFT_DEVICE_CPU;
    for (size_t i = f->budget_count; i-- > 0;) {
        if (is_accelerator(f->budgets[i].device)) {
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
                             bool fallback, heft__map_of_devices *map, heft_error *err)
{
    struct fit f = {.tree = tree, .budgets = budgets, .budget_count = count, .map = map};
    *map = (heft__map_of_devices){.ctx = tree->ctx};
    while (f.budget_count > 0 && budgets[f.budget_count - 1].device == HEFT_DEVICE_DISK) {
        f.budget_count--;
    }
    choose_main(&f);
    bool good = tree->module_count > 0 && expand(&f, 0, 0, false, true) && find_largest(&f, false);
    while (good && f.count > 0) {
        uint32_t item = f.queue[--f.count];
        good = step(&f, item, fallback);
    }
    heft__free(tree->ctx, f.queue, f.cap * sizeof *f.queue);
    heft__free(tree->ctx, f.largest, f.largest_cap * sizeof *f.largest);
    heft__free(tree->ctx, f.owners, f.owner_cap * sizeof *f.owners);
    heft__free(tree->ctx, f.tied, f.tied_cap * sizeof *f.tied);
    if (!good) {
        heft__devices_fini(map);
        return heft__fail_nomem(err, tree->tensor_count * sizeof *f.queue);
    }
    return HEFT_OK;
}

void heft__devices_fini(heft__map_of_devices *map)
{
    heft__free(map->ctx, map->entries, map->cap * sizeof *map->entries);
    map->entries = NULL;
    map->count = map->cap = 0;
}

/* ---- joining --------------------------------------------------------------------------------- */
/* Entries strictly below a module: how many, and whether they are on one device. */
static size_t count_below(const heft__tree *tree, const heft__map_of_devices *map, uint32_t module,
                          bool *same, int32_t *device)
{
    size_t below = 0;
    *same = true;
    for (size_t i = 0; i < map->count; i++) {
        const heft__placement *entry = &map->entries[i];
        if (entry->node != module && heft__tree_is_inside(tree, entry->node, module)) {
            *device = below == 0 ? entry->device : *device;
            *same = *same && entry->device == *device;
            below++;
        }
    }
    return below;
}

static void join(const heft__tree *tree, heft__map_of_devices *map, uint32_t module)
{
    bool same;
    int32_t device = 0;
    size_t below = count_below(tree, map, module, &same, &device), kept = 0;
    if (below < 2) {
        return;
    }
    if (!same) {
        for (uint32_t child = module + 1; child < tree->modules[module].end;
             child = tree->modules[child].end) {
            join(tree, map, child);
        }
        return;
    }
    for (size_t i = 0; i < map->count; i++) {
        const heft__placement entry = map->entries[i];
        if (entry.node == module || !heft__tree_is_inside(tree, entry.node, module)) {
            map->entries[kept++] = entry;
        }
    }
    map->entries[kept++] = (heft__placement){module, device};
    map->count = kept;
}

/* By place in the tree: a module before what is in it. */
static int by_node(const void *left, const void *right)
{
    const heft__placement *a = left, *b = right;
    return a->node < b->node ? -1 : a->node > b->node;
}

void heft__devices_clean(const heft__tree *tree, heft__map_of_devices *map)
{
    join(tree, map, 0);
    if (map->count > 1) {
        qsort(map->entries, map->count, sizeof *map->entries, by_node);
    }
}

int32_t heft__devices_of(const heft__tree *tree, const heft__map_of_devices *map, uint32_t node)
{
    for (size_t i = 0; i < map->count; i++) {
        if (heft__tree_is_inside(tree, node, map->entries[i].node)) {
            return map->entries[i].device;
        }
    }
    return HEFT__NO_DEVICE;
}
