/* plan.c - a plan: budgets as they were balanced, a map, and what is where.
 *
 * Source: docs/placing.md. */
#include "place/place.h"

#include <math.h>
#include <stdlib.h>

struct heft_plan {
    heft_ctx *ctx;
    heft__tree *tree;
    heft__map_of_devices map;
    heft_budget *budgets; /* [budget_count] */
    double *placed;       /* [budget_count] */
    size_t budget_count, budget_cap;
    heft_machine machine; /* where the caller gave no budgets */
    uint32_t largest;     /* node */
};

/* ---- budgets --------------------------------------------------------------------------------- */
/* Accelerators by number, then mps, cpu, disk. */
static int by_device(const void *left, const void *right)
{
    static const int order[] = {0, 2, 3, 1}; /* by -device */
    const int32_t a = ((const heft_budget *)left)->device, b = ((const heft_budget *)right)->device;
    if (a >= 0 && b >= 0) {
        return a < b ? -1 : a > b;
    }
    return a >= 0 ? -1 : b >= 0 ? 1 : order[-a] - order[-b];
}

static heft_status take_budgets(heft_plan *plan, const heft_plan_options *options, heft_error *err)
{
    const size_t most = options->budget_count + 2;
    plan->budgets = heft__alloc_zero(plan->ctx, most, sizeof *plan->budgets);
    plan->placed = heft__alloc_zero(plan->ctx, most, sizeof *plan->placed);
    plan->budget_cap = most;
    if (!plan->budgets || !plan->placed) {
        return heft__fail_nomem(err, most * sizeof *plan->budgets);
    }
    bool disk = false;
    for (size_t i = 0; i < options->budget_count; i++) {
        const heft_budget *budget = &options->budgets[i];
        if (budget->device < HEFT_DEVICE_MPS || !(budget->bytes >= 0)) {
            return heft__fail(err, HEFT_INVALID_ARG, "budget %zu is of no device, or below 0", i);
        }
        for (size_t k = 0; k < i; k++) {
            if (options->budgets[k].device == budget->device) {
                return heft__fail(err, HEFT_INVALID_ARG, "two budgets are of one device");
            }
        }
        disk = disk || budget->device == HEFT_DEVICE_DISK;
        plan->budgets[plan->budget_count++] = *budget;
    }
    if (options->budget_count == 0) {
        heft_machine_memory(&plan->machine);
        plan->budgets[plan->budget_count++] =
            (heft_budget){HEFT_DEVICE_CPU, (double)plan->machine.bytes};
    }
    if (!disk) {
        plan->budgets[plan->budget_count++] = (heft_budget){HEFT_DEVICE_DISK, INFINITY};
    }
    qsort(plan->budgets, plan->budget_count, sizeof *plan->budgets, by_device);
    return HEFT_OK;
}

/* ---- the plan -------------------------------------------------------------------------------- */
/* What must not be split, as the caller has it: ends of modules' paths, or classes; a '*' stands for
 * a number ("model.layers.*"). */
static bool names_module(const heft__tree_module *module, const char *name)
{
    const char *path = module->path, *star = strchr(name, '*');
    if (strcmp(module->class_name, name) == 0 || strcmp(path, name) == 0) {
        return true;
    }
    if (!star) {
        const size_t length = strlen(path), tail = strlen(name);
        return length > tail && path[length - tail - 1] == '.' &&
               strcmp(path + length - tail, name) == 0;
    }
    const size_t before = (size_t)(star - name),
                 digits =
                     strspn(path + (strlen(path) < before ? strlen(path) : before), "0123456789");
    return strncmp(path, name, before) == 0 && digits > 0 &&
           strcmp(path + before + digits, star + 1) == 0;
}

static void mark(heft__tree *tree, const heft_plan_options *options)
{
    for (uint32_t i = 1; options->no_split_count > 0 && i < tree->module_count; i++) {
        heft__tree_module *module = &tree->modules[i];
        module->block = tree->modules[module->parent].block;
        for (size_t k = 0; k < options->no_split_count; k++) {
            module->block = module->block || names_module(module, options->no_split[k]);
        }
    }
}

/* The largest block, or module without children. */
static uint32_t find_largest(const heft__tree *tree)
{
    uint32_t largest = 0;
    double most = -1;
    for (uint32_t i = 1; i < tree->module_count; i++) {
        const heft__tree_module *module = &tree->modules[i];
        const bool inside = tree->modules[module->parent].block;
        if ((module->block || module->child_count == 0) && !inside && module->bytes > most) {
            most = module->bytes;
            largest = i;
        }
    }
    return largest;
}

/* An entry has the bytes of what is below it, but for what has an entry of its own there, which a map
 * does not have: no entry lies in another. A tied tensor's bytes are at its first name. */
static void sum_placed(heft_plan *plan)
{
    for (size_t i = 0; i < plan->map.count; i++) {
        const heft__placement *entry = &plan->map.entries[i];
        for (size_t k = 0; k < plan->budget_count; k++) {
            if (plan->budgets[k].device == entry->device) {
                plan->placed[k] += heft__tree_bytes(plan->tree, entry->node);
            }
        }
    }
}

static heft_status make_plan(heft_plan *plan, const heft_model *model,
                             const heft_plan_options *options, heft_error *err)
{
    heft_status status = heft__tree_of_model(model, &plan->tree, err);
    if (status == HEFT_OK) {
        status = take_budgets(plan, options, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (options->dtype != HEFT_DTYPE_NONE) {
        heft__tree_size(plan->tree, options->dtype, (double)heft_dtype_bits(options->dtype) / 8,
                        NULL);
    }
    mark(plan->tree, options);
    plan->largest = find_largest(plan->tree);
    if (options->map_file) {
        status = heft__map_read(plan->tree, options->map_file, &plan->map, err);
    } else if (options->strategy == HEFT_STRATEGY_BEST) {
        status = heft__best_map(plan->tree, plan->budgets, plan->budget_count, &plan->map, err);
    } else {
        status = heft__balance(plan->tree, options->strategy, plan->budgets, plan->budget_count,
                               model->no_split, model->no_split_count, err);
        if (status == HEFT_OK) {
            status = heft__compat_map(plan->tree, plan->budgets, plan->budget_count, false,
                                      &plan->map, err);
        }
    }
    if (status == HEFT_OK) {
        heft__devices_clean(plan->tree, &plan->map);
        sum_placed(plan);
    }
    return status;
}

heft_status heft_plan_new(const heft_model *model, const heft_plan_options *options,
                          heft_plan **out, heft_error *err)
{
    const heft_plan_options standard = {0};
    if (!model || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "model or result is NULL");
    }
    heft_plan *plan = heft__alloc_zero(model->ctx, 1, sizeof *plan);
    if (!plan) {
        return heft__fail_nomem(err, sizeof *plan);
    }
    plan->ctx = heft__ctx_ref(model->ctx);
    plan->map.ctx = model->ctx;
    heft_status status = make_plan(plan, model, options ? options : &standard, err);
    if (status == HEFT_OK) {
        *out = plan;
    } else {
        heft_plan_free(plan);
    }
    return status;
}

void heft_plan_free(heft_plan *plan)
{
    if (plan) {
        heft_ctx *ctx = plan->ctx;
        heft__devices_fini(&plan->map);
        heft__tree_free(plan->tree);
        heft__free(ctx, plan->budgets, plan->budget_cap * sizeof *plan->budgets);
        heft__free(ctx, plan->placed, plan->budget_cap * sizeof *plan->placed);
        heft__free(ctx, plan, sizeof *plan);
        heft_ctx_free(ctx);
    }
}

/* ---- looking --------------------------------------------------------------------------------- */
size_t heft_plan_count(const heft_plan *plan)
{
    return plan->map.count;
}

const char *heft_plan_entry(const heft_plan *plan, size_t i, int32_t *device, double *bytes)
{
    if (i >= plan->map.count) {
        return NULL;
    }
    *device = plan->map.entries[i].device;
    *bytes = heft__tree_bytes(plan->tree, plan->map.entries[i].node);
    return heft__tree_path(plan->tree, plan->map.entries[i].node);
}

/* Whether a name is a path, or lies below it. */
static bool lies_in(const char *name, const char *path)
{
    const size_t length = strlen(path);
    return length == 0 ||
           (strncmp(name, path, length) == 0 && (name[length] == '.' || !name[length]));
}

int32_t heft_plan_device_of(const heft_plan *plan, const char *name)
{
    for (size_t i = 0; i < plan->map.count; i++) {
        if (lies_in(name, heft__tree_path(plan->tree, plan->map.entries[i].node))) {
            return plan->map.entries[i].device;
        }
    }
    return HEFT_DEVICE_NONE;
}

bool heft_plan_device(const heft_plan *plan, size_t i, heft_budget *budget, double *placed)
{
    if (i >= plan->budget_count) {
        return false;
    }
    *budget = plan->budgets[i];
    *placed = plan->placed[i];
    return true;
}

const char *heft_plan_largest(const heft_plan *plan, double *bytes)
{
    *bytes = plan->tree->modules[plan->largest].bytes;
    return plan->tree->modules[plan->largest].path;
}

const char *heft_plan_reason(const heft_plan *plan)
{
    return plan->machine.reason ? plan->machine.reason : "given";
}

void heft_plan_sizes(heft_plan *plan, double bytes_each, double *total, double *largest)
{
    heft__tree_size_as(plan->tree, bytes_each);
    *total = plan->tree->modules[0].bytes;
    *largest = plan->tree->modules[find_largest(plan->tree)].bytes;
}
