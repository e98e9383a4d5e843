/* balance.c - budgets of accelerators as Accelerate 1.15 balances them.
 *
 * Source: docs/placing.md [2]. */
#include "place/place.h"

#include <math.h>

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

static bool is_listed(const char *const *list, size_t count, const char *name)
{
    size_t i = 0;
    while (i < count && strcmp(list[i], name) != 0) {
        i++;
    }
    return i < count;
}

/* The largest of the first blocks of each class; where they have none, of the first below each parent.
 * Below 0 without memory. */
static double first_marked(const heft__tree *tree)
{
    double most = 0;
    size_t count = 0, cap = 0;
    const char **classes = NULL;
    bool *seen = heft__alloc_zero(tree->ctx, tree->module_count, sizeof *seen);
    bool good = seen != NULL;
    for (uint32_t i = 1; good && i < tree->module_count; i++) {
        const heft__tree_module *module = &tree->modules[i];
        if (!module->block || tree->modules[module->parent].block) {
            continue;
        }
        bool first = !seen[module->parent];
        seen[module->parent] = true;
        if (*module->class_name) {
            first = !is_listed(classes, count, module->class_name);
            good = !first ||
                   heft__array_reserve(tree->ctx, (void **)&classes, count, &cap, sizeof *classes);
            if (good && first) {
                classes[count++] = module->class_name;
            }
        }
        most = first && module->bytes > most ? module->bytes : most;
    }
    heft__free(tree->ctx, seen, tree->module_count * sizeof *seen);
    heft__free(tree->ctx, classes, cap * sizeof *classes);
    return good ? most : -1;
}

/* The largest of the first modules of each name. */
static double first_named(const heft__tree *tree, const char *const *names, size_t count)
{
    double most = 0;
    for (size_t k = 0; k < count; k++) {
        for (uint32_t i = 0; i < tree->module_count; i++) {
            if (heft__tree_names(&tree->modules[i], names[k])) {
                most = tree->modules[i].bytes > most ? tree->modules[i].bytes : most;
                break;
            }
        }
    }
    return most;
}

/* The budget of accelerator 0 is what the others cannot take. Accelerate takes positions for numbers;
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
                          size_t count, const char *const *names, size_t name_count,
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
    double block = name_count > 0 ? first_named(tree, names, name_count) : first_marked(tree),
           mean = mean_of_leaves(tree);
    if (mean < 0 || block < 0) {
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
