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
    heft_budget *budgets;  /* [budget_count] */
    double *placed;        /* [budget_count] */
    heft_plan_room *rooms; /* [budget_count] */
    double homeless;       /* on devices without a budget: bytes of weights and caches */
    int32_t homeless_device;
    bool cache_known;
    size_t budget_count, budget_cap;
    heft_machine machine; /* where the caller gave no budgets */
    uint32_t largest;     /* node */
    heft__map_facts facts;
    heft__warnings warnings;       /* in the tree's arena */
    heft__map by_path;             /* path of an entry -> its number */
    double stream_one, stream_two; /* of blocks on the disk */
    int32_t *devices;              /* [modules + tensors] by node */
    int32_t *parameter_devices;    /* [tensors] by number of the model's parameter */
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
    plan->rooms = heft__arena_array(&plan->tree->arena, most, sizeof *plan->rooms);
    plan->facts.used = heft__arena_array(&plan->tree->arena, most, sizeof *plan->facts.used);
    plan->facts.needed = heft__arena_array(&plan->tree->arena, most, sizeof *plan->facts.needed);
    if (!plan->budgets || !plan->placed || !plan->rooms || !plan->facts.used ||
        !plan->facts.needed) {
        return heft__fail_nomem(err, most * sizeof *plan->budgets);
    }
    bool disk = false;
    for (size_t i = 0; i < options->budget_count; i++) {
        const heft_budget *budget = &options->budgets[i];
        if (budget->device < HEFT_DEVICE_MPS || !(budget->bytes >= 0)) {
            return heft__fail(err, HEFT_INVALID_ARG,
                              "budget %zu has an unknown device or is negative", i);
        }
        for (size_t k = 0; k < i; k++) {
            if (options->budgets[k].device == budget->device) {
                return heft__fail(err, HEFT_INVALID_ARG, "two budgets are for the same device");
            }
        }
        disk = disk || budget->device == HEFT_DEVICE_DISK;
        plan->budgets[plan->budget_count++] = *budget;
    }
    if (options->budget_count == 0) {
        heft__machine_look(&plan->machine);
        plan->budgets[plan->budget_count++] =
            (heft_budget){HEFT_DEVICE_CPU, (double)heft__machine_for_weights(&plan->machine)};
    }
    if (!disk) {
        plan->budgets[plan->budget_count++] = (heft_budget){HEFT_DEVICE_DISK, (double)INFINITY};
    }
    qsort(plan->budgets, plan->budget_count, sizeof *plan->budgets, by_device);
    return HEFT_OK;
}

/* ---- room ------------------------------------------------------------------------------------ */
/* 2^53: doubles count exactly up to there. */
#define ROOM_MOST 9007199254740992.0

static heft_status check_room(const heft_plan_options *options, heft_error *err)
{
    const double tokens =
        (double)options->context * (double)(options->batch > 0 ? options->batch : 1);
    if (!(options->reserve_bytes >= 0) || !(options->reserve_share >= 0) ||
        options->reserve_share > 1 || !(tokens < ROOM_MOST)) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "the room is out of range: %llu tokens, batch %llu, reserve %.15g bytes "
                          "and %.3g of each accelerator",
                          (unsigned long long)options->context, (unsigned long long)options->batch,
                          options->reserve_bytes, options->reserve_share);
    }
    if (options->quantize > HEFT_PLAN_FP8) {
        return heft__fail(err, HEFT_INVALID_ARG, "unknown quantization %d", (int)options->quantize);
    }
    return HEFT_OK;
}

/* Take from the budgets what is not for weights and caches. */
static void keep_room(heft_plan *plan, const heft_plan_options *options, double activations)
{
    bool accelerators = false;
    for (size_t i = 0; i < plan->budget_count; i++) {
        accelerators = accelerators || plan->budgets[i].device >= 0 ||
                       plan->budgets[i].device == HEFT_DEVICE_MPS;
    }
    for (size_t i = 0; i < plan->budget_count; i++) {
        heft_budget *budget = &plan->budgets[i];
        heft_plan_room *room = &plan->rooms[i];
        room->given_bytes = budget->bytes;
        if (accelerators ? budget->device >= 0 || budget->device == HEFT_DEVICE_MPS
                         : budget->device == HEFT_DEVICE_CPU) {
            room->activation_bytes = activations;
            room->reserve_bytes =
                options->reserve_bytes +
                (accelerators ? floor(options->reserve_share * budget->bytes) : 0);
            const double less = room->activation_bytes + room->reserve_bytes;
            budget->bytes = less == 0              ? budget->bytes
                            : budget->bytes > less ? budget->bytes - less
                                                   : 0;
        }
    }
}

/* Caches are where the attentions are; what has no budget is noted apart. */
static void sum_caches(heft_plan *plan)
{
    const heft__tree *tree = plan->tree;
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        const int32_t device = plan->devices[tree->module_count + i];
        size_t k = 0;
        while (k < plan->budget_count && plan->budgets[k].device != device) {
            k++;
        }
        if (k < plan->budget_count) {
            plan->rooms[k].cache_bytes += tree->tensors[i].room;
        } else if (tree->tensors[i].room + tree->tensors[i].bytes > 0) {
            plan->homeless += tree->tensors[i].room + tree->tensors[i].bytes;
            plan->homeless_device = device;
        }
    }
}

/* ---- the plan -------------------------------------------------------------------------------- */
static double own_bytes(const heft__tree *tree, uint32_t module, double unit)
{
    return unit < 0 ? tree->modules[module].bytes : heft__tree_bytes_as(tree, module, unit);
}

/* The largest block, or module without children; unit: bytes of a floating-point number, < 0 for the
 * sizes as they are. */
static uint32_t find_largest(const heft__tree *tree, double unit)
{
    uint32_t largest = 0;
    double most = -1;
    for (uint32_t i = 1; i < tree->module_count; i++) {
        const heft__tree_module *module = &tree->modules[i];
        const bool inside = tree->modules[module->parent].block;
        if ((module->block || module->child_count == 0) && !inside) {
            const double bytes = own_bytes(tree, i, unit);
            largest = bytes > most ? i : largest;
            most = bytes > most ? bytes : most;
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

/* ---- what comes in from the disk ------------------------------------------------------------- */
struct streams {
    heft__rest_unit *units; /* [modules] as a residency brings them in: docs/residency.md [1] */
    size_t count;
    uint32_t *sites;   /* [modules] */
    size_t *of_site;   /* [modules] unit; SIZE_MAX: none yet */
    size_t *of_tensor; /* [tensors] unit */
    size_t *last_unit; /* [tensors] by first name: the unit that has counted it last */
};

/* Of a tied tensor the first name says where it is. */
static void add_stream(const heft_plan *plan, struct streams *s, uint32_t i)
{
    const heft__tree *tree = plan->tree;
    const uint32_t root = tree->tensors[i].first;
    const bool disk = plan->devices[tree->module_count + root] == HEFT_DEVICE_DISK;
    const double bytes = tree->tensors[root].buffer ? 0 : tree->tensors[root].bytes;
    size_t *number = &s->of_site[s->sites[tree->tensors[i].module]];
    if (*number == SIZE_MAX) {
        *number = s->count++;
        s->units[*number].leader = *number;
    }
    s->of_tensor[i] = *number;
    if (disk && s->last_unit[root] != *number) {
        heft__rest_unit *unit = &s->units[*number];
        s->last_unit[root] = *number;
        unit->stream += bytes;
        unit->tied += root == i ? 0 : bytes;
        unit->leader = root == i ? unit->leader : s->units[s->of_tensor[root]].leader;
    }
}

static bool measure_streams(heft_plan *plan)
{
    const heft__tree *tree = plan->tree;
    const size_t modules = tree->module_count, tensors = tree->tensor_count;
    struct streams s = {
        .units = heft__alloc_zero(plan->ctx, modules, sizeof *s.units),
        .sites = heft__alloc(plan->ctx, modules * sizeof *s.sites),
        .of_site = heft__alloc(plan->ctx, modules * sizeof *s.of_site),
        .of_tensor = heft__alloc(plan->ctx, tensors * sizeof *s.of_tensor),
        .last_unit = heft__alloc(plan->ctx, tensors * sizeof *s.last_unit),
    };
    const bool good = s.units && s.sites && s.of_site && s.of_tensor && s.last_unit;
    if (good) {
        memset(s.of_site, 0xff, modules * sizeof *s.of_site); /* SIZE_MAX */
        memset(s.last_unit, 0xff, tensors * sizeof *s.last_unit);
        heft__tree_sites(tree, s.sites);
        for (uint32_t i = 0; i < tensors; i++) {
            add_stream(plan, &s, i);
        }
        plan->stream_one = heft__rest_room(s.units, s.count, true);
        plan->stream_two = heft__rest_room(s.units, s.count, false);
    }
    heft__free(plan->ctx, s.units, modules * sizeof *s.units);
    heft__free(plan->ctx, s.sites, modules * sizeof *s.sites);
    heft__free(plan->ctx, s.of_site, modules * sizeof *s.of_site);
    heft__free(plan->ctx, s.of_tensor, tensors * sizeof *s.of_tensor);
    heft__free(plan->ctx, s.last_unit, tensors * sizeof *s.last_unit);
    return good;
}

/* ---- making ---------------------------------------------------------------------------------- */
static heft_status make_map(heft_plan *plan, const heft_plan_options *options, heft_error *err)
{
    if ((options->device_map_file != NULL) + (options->device_map != NULL) +
            (options->device_map_json != NULL) >
        1) {
        return heft__fail(err, HEFT_INVALID_ARG, "more than one device map is given");
    }
    if (options->device_map_file) {
        return heft__device_map_read(plan->tree, options->device_map_file, &plan->map,
                                     &plan->warnings, err);
    }
    if (options->device_map_json) {
        return heft__device_map_parse(plan->tree, options->device_map_json, &plan->map,
                                      &plan->warnings, err);
    }
    if (options->device_map) {
        return heft__device_map_take(plan->tree, options->device_map, options->device_map_count,
                                     &plan->map, &plan->warnings, err);
    }
    if (options->strategy == HEFT_STRATEGY_BEST) {
        return heft__best_map(plan->tree, plan->budgets, plan->budget_count, &plan->map, err);
    }
    heft_status status =
        heft__balance(plan->tree, options->strategy, plan->budgets, plan->budget_count,
                      options->no_split, options->no_split_count, err);
    if (status == HEFT_OK) {
        status = heft__compat_map(plan->tree, plan->budgets, plan->budget_count,
                                  options->fallback_allocation, &plan->facts, &plan->map, err);
    }
    return status;
}

/* heft's own map keeps no room: what is used is what was placed. */
static void note_facts(heft_plan *plan)
{
    for (size_t i = 0; i < plan->budget_count; i++) {
        plan->facts.used[i] = plan->placed[i];
    }
    for (size_t i = 0; i < plan->map.count; i++) {
        const heft__placement *entry = &plan->map.entries[i];
        if (entry->device == HEFT_DEVICE_CPU || entry->device == HEFT_DEVICE_DISK) {
            plan->facts.offloaded_buffers += heft__tree_buffers(plan->tree, entry->node);
        }
    }
}

static bool make_warnings(heft_plan *plan, bool ties_wanted, const heft_plan_options *options)
{
    heft__warnings *list = &plan->warnings;
    if (options->device_map_file || options->device_map || options->device_map_json) {
        return true;
    }
    if (options->strategy == HEFT_STRATEGY_BEST) {
        note_facts(plan);
    }
    return heft__warn_untied(list, plan->tree, ties_wanted) &&
           (options->offload_buffers ||
            heft__warn_buffers(list, plan->budgets, plan->budget_count, &plan->facts)) &&
           heft__warn_empty(list, plan->budgets, plan->budget_count, &plan->facts) &&
           heft__warn_ties(list, plan->tree, &plan->map);
}

static bool spread_devices(heft_plan *plan)
{
    heft__tree *tree = plan->tree;
    const size_t count = (size_t)tree->module_count + tree->tensor_count;
    plan->devices = heft__arena_array(&tree->arena, count, sizeof *plan->devices);
    plan->parameter_devices =
        heft__arena_array(&tree->arena, tree->tensor_count, sizeof *plan->parameter_devices);
    if (!plan->devices || !plan->parameter_devices) {
        return false;
    }
    heft__devices_spread(tree, &plan->map, plan->devices);
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        plan->parameter_devices[tree->tensors[i].parameter] = plan->devices[tree->module_count + i];
    }
    return true;
}

static bool index_entries(heft_plan *plan)
{
    size_t found;
    bool good = true;
    for (size_t i = 0; good && i < plan->map.count; i++) {
        const char *path = heft__tree_path(plan->tree, plan->map.entries[i].node);
        good = heft__map_put(&plan->by_path, path, strlen(path), i, &found);
    }
    return good;
}

static heft_status make_plan(heft_plan *plan, bool ties_wanted, double activations,
                             const heft_plan_options *options, heft_error *err)
{
    heft_status status = take_budgets(plan, options, err);
    if (status == HEFT_OK) {
        status = heft__tree_size_by(plan->tree, options, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    heft__tree_keep_whole(plan->tree, options->no_split, options->no_split_count);
    plan->largest = find_largest(plan->tree, -1);
    keep_room(plan, options, activations);
    heft__tree_add_room(plan->tree, 1);
    status = make_map(plan, options, err);
    heft__tree_add_room(plan->tree, -1);
    if (status != HEFT_OK) {
        return status;
    }
    if (!heft__devices_clean(plan->tree, &plan->map)) {
        return heft__fail_nomem(err, plan->tree->module_count);
    }
    sum_placed(plan);
    if (!index_entries(plan) || !spread_devices(plan)) {
        return heft__fail_nomem(err, plan->map.count);
    }
    sum_caches(plan);
    return measure_streams(plan) &&
                   heft__warn_names(&plan->warnings, plan->tree, options->no_split,
                                    options->no_split_count) &&
                   make_warnings(plan, ties_wanted, options)
               ? HEFT_OK
               : heft__fail_nomem(err, plan->map.count);
}

static heft_status plan_of_tree(heft__tree *tree, bool ties_wanted, double activations,
                                const heft_plan_options *options, heft_plan **out, heft_error *err)
{
    heft_plan *plan = heft__alloc_zero(tree->ctx, 1, sizeof *plan);
    if (!plan) {
        heft__tree_free(tree);
        return heft__fail_nomem(err, sizeof *plan);
    }
    plan->ctx = heft__ctx_ref(tree->ctx);
    plan->tree = tree;
    plan->map.ctx = tree->ctx;
    heft__warnings_init(&plan->warnings, &tree->arena);
    heft__map_init(&plan->by_path, tree->ctx);
    heft_status status = make_plan(plan, ties_wanted, activations, options, err);
    if (status == HEFT_OK) {
        *out = plan;
    } else {
        heft_plan_free(plan);
    }
    return status;
}

heft_status heft__plan_of_tree(heft__tree *tree, bool ties_wanted, const heft_plan_options *options,
                               heft_plan **out, heft_error *err)
{
    return plan_of_tree(tree, ties_wanted, 0, options, out, err);
}

/* A family that is known ties by itself what its config wants tied. */
static bool wants_ties(const heft_model *model)
{
    const heft__json_value *wanted =
        model->known_family || !model->config
            ? NULL
            : heft__json_member(model->config->root, "tie_word_embeddings");
    return wanted && wanted->type == HEFT__JSON_TYPE_BOOL && wanted->boolean;
}

heft_status heft_plan_new(const heft_model *model, const heft_plan_options *options,
                          heft_plan **out, heft_error *err)
{
    heft_plan_options taken;
    heft__tree *tree = NULL;
    if (!model || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "model or result is NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status == HEFT_OK) {
        status = check_room(&taken, err);
    }
    if (status == HEFT_OK) {
        status = heft__tree_of_model(model, &tree, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    taken.batch = taken.batch > 0 ? taken.batch : 1;
    heft__tree_quantize(tree, model, taken.quantize);
    heft__tree_cache(tree, model, taken.context, taken.batch);
    status =
        plan_of_tree(tree, wants_ties(model),
                     heft__activation_bytes(model, taken.context, taken.batch), &taken, out, err);
    if (status == HEFT_OK) {
        (*out)->cache_known = heft__cache_known(model);
    }
    return status;
}

void heft_plan_free(heft_plan *plan)
{
    if (plan) {
        heft_ctx *ctx = plan->ctx;
        heft__devices_fini(&plan->map);
        heft__map_fini(&plan->by_path);
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

int32_t heft_plan_device_of(const heft_plan *plan, const char *name)
{
    for (size_t length = strlen(name);;) {
        const size_t entry = heft__map_get(&plan->by_path, name, length);
        if (entry != HEFT__MAP_NONE) {
            return plan->map.entries[entry].device;
        }
        if (length == 0) {
            return HEFT_DEVICE_NONE;
        }
        while (length > 0 && name[--length] != '.') { /* what it is in; at last the whole model */
        }
    }
}

const char *heft_plan_warning(const heft_plan *plan, size_t i)
{
    return i < plan->warnings.count ? plan->warnings.lines[i] : NULL;
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

bool heft_plan_get_room(const heft_plan *plan, size_t i, heft_plan_room *room)
{
    heft_error err;
    heft_plan_room found = i < plan->budget_count ? plan->rooms[i] : (heft_plan_room){0};
    found.struct_size = sizeof found;
    return i < plan->budget_count && HEFT__GIVE_SIZED(room, &found, &err) == HEFT_OK;
}

bool heft_plan_cache_known(const heft_plan *plan)
{
    return plan->cache_known;
}

heft_plan_verdict heft_plan_fits(const heft_plan *plan, int32_t *device, double *bytes)
{
    heft_plan_verdict verdict = plan->homeless > 0 ? HEFT_PLAN_UNKNOWN : HEFT_PLAN_FITS;
    int32_t which = plan->homeless > 0 ? plan->homeless_device : HEFT_DEVICE_NONE;
    double most = plan->homeless;
    for (size_t i = 0; i < plan->budget_count; i++) {
        const heft_plan_room *room = &plan->rooms[i];
        const bool disk = plan->budgets[i].device == HEFT_DEVICE_DISK;
        const double used = plan->placed[i] + room->cache_bytes;
        const double over =
            used > 0 ? used + room->activation_bytes + room->reserve_bytes - room->given_bytes : 0;
        if (!disk && over > 0) {
            verdict = HEFT_PLAN_OVER;
            which = plan->budgets[i].device;
            most = over;
            break;
        }
        if (disk && used > 0) {
            verdict = HEFT_PLAN_ON_DISK;
            which = HEFT_DEVICE_DISK;
            most = plan->placed[i];
        }
    }
    if (device) {
        *device = which;
    }
    if (bytes) {
        *bytes = most;
    }
    return verdict;
}

double heft_plan_stream(const heft_plan *plan, double *one, double *two)
{
    double left = 0;
    for (size_t i = 0; i < plan->budget_count; i++) {
        if (plan->budgets[i].device == HEFT_DEVICE_CPU) {
            left = plan->budgets[i].bytes - plan->placed[i];
        }
    }
    left = left > 0 ? left : 0;
    *one = plan->stream_one;
    *two = plan->stream_two;
    return *two <= left ? *two : *one < left ? *one : left;
}

const char *heft_plan_reason(const heft_plan *plan)
{
    return plan->machine.reason ? plan->machine.reason : "given";
}

void heft_plan_sizes(const heft_plan *plan, double bytes_each, double *total, double *largest)
{
    const heft__tree *tree = plan->tree;
    *total = heft__tree_bytes_as(tree, 0, bytes_each);
    *largest = heft__tree_bytes_as(tree, find_largest(tree, bytes_each), bytes_each);
}

/* ---- by handle --------------------------------------------------------------------------------- */
int32_t heft_plan_module_device(const heft_plan *plan, size_t module)
{
    return module < plan->tree->module_count ? plan->devices[module] : HEFT_DEVICE_NONE;
}

int32_t heft_plan_parameter_device(const heft_plan *plan, size_t parameter)
{
    return parameter < plan->tree->tensor_count ? plan->parameter_devices[parameter]
                                                : HEFT_DEVICE_NONE;
}

heft_status heft__plan_devices(const heft_plan *plan, const heft_model *model,
                               const int32_t **devices, heft_error *err)
{
    const heft__tree *tree = plan->tree;
    if (tree->tensor_count != model->count) {
        return heft__fail(
            err, HEFT_INVALID_ARG,
            "the plan was made for a model with %u parameters and buffers, this one has %zu",
            (unsigned)tree->tensor_count, model->count);
    }
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        const heft_parameter *parameter = &model->parameters[tree->tensors[i].parameter];
        uint64_t elems = 0;
        if (!heft__shape_elems(parameter->shape, parameter->rank, &elems) ||
            elems != tree->tensors[i].elems ||
            strcmp(parameter->name, tree->tensors[i].path) != 0) {
            return heft__add_item(
                heft__fail(
                    err, HEFT_INVALID_ARG,
                    "the plan was made for a model with this tensor, this one does not have it"),
                err, tree->tensors[i].path);
        }
    }
    *devices = plan->parameter_devices;
    return HEFT_OK;
}
