/* tree.c - modules and tensors as numbered nodes, with sizes.
 *
 * Source: docs/placing.md [1]. */
#include "place/place.h"

#include <stdlib.h>

heft_status heft__tree_new(heft_ctx *ctx, uint32_t modules, uint32_t tensors, heft__tree **out,
                           heft_error *err)
{
    heft__tree *tree = heft__alloc_zero(ctx, 1, sizeof *tree);
    if (!tree) {
        return heft__fail_nomem(err, sizeof *tree);
    }
    tree->ctx = heft__ctx_ref(ctx);
    heft__arena_init(&tree->arena, ctx);
    tree->modules = heft__arena_array(&tree->arena, modules, sizeof *tree->modules);
    tree->tensors = heft__arena_array(&tree->arena, tensors, sizeof *tree->tensors);
    tree->ties = heft__arena_array(&tree->arena, tensors, sizeof *tree->ties);
    tree->module_count = modules;
    tree->tensor_count = tensors;
    if (!tree->modules || !tree->tensors || !tree->ties) {
        heft__tree_free(tree);
        return heft__fail_nomem(err, (uint64_t)tensors * sizeof *tree->tensors);
    }
    *out = tree;
    return HEFT_OK;
}

void heft__tree_free(heft__tree *tree)
{
    if (tree) {
        heft_ctx *ctx = tree->ctx;
        heft__arena_fini(&tree->arena);
        heft__free(ctx, tree, sizeof *tree);
        heft_ctx_free(ctx);
    }
}

struct tied_name {
    const char *path;
    uint32_t first, tensor;
};

/* Group by group; alphabetically in a group, as Accelerate does. */
static int by_group(const void *left, const void *right)
{
    const struct tied_name *a = left, *b = right;
    return a->first != b->first ? (a->first < b->first ? -1 : 1) : strcmp(a->path, b->path);
}

/* Names on one tensor are side by side in `ties`. */
static heft_status list_ties(heft__tree *tree, heft_error *err)
{
    const uint32_t count = tree->tensor_count;
    uint32_t *names = heft__alloc_zero(tree->ctx, count, sizeof *names);
    struct tied_name *tied = heft__alloc(tree->ctx, count * sizeof *tied);
    const bool room = names && tied;
    for (uint32_t i = 0; room && i < count; i++) {
        names[tree->tensors[i].first]++;
    }
    for (uint32_t i = 0; room && i < count; i++) {
        const heft__tree_tensor *tensor = &tree->tensors[i];
        if (names[tensor->first] > 1) {
            tied[tree->tie_count++] = (struct tied_name){tensor->path, tensor->first, i};
        }
    }
    if (tree->tie_count > 1) {
        qsort(tied, tree->tie_count, sizeof *tied, by_group);
    }
    for (size_t i = 0; i < tree->tie_count; i++) {
        tree->ties[i][0] = tied[i].first;
        tree->ties[i][1] = tied[i].tensor;
    }
    heft__free(tree->ctx, names, count * sizeof *names);
    heft__free(tree->ctx, tied, count * sizeof *tied);
    return room ? HEFT_OK : heft__fail_nomem(err, count * sizeof *tied);
}

heft_status heft__tree_finish(heft__tree *tree, heft_error *err)
{
    for (uint32_t i = tree->module_count;
         i-- > 0;) { /* a subtree ends where its last module's does */
        heft__tree_module *module = &tree->modules[i];
        module->end = module->end ? module->end : i + 1;
        if (i > 0) {
            heft__tree_module *parent = &tree->modules[module->parent];
            parent->child_count++;
            parent->end = parent->end ? parent->end : module->end;
        } else {
            module->parent = HEFT__NO_NODE;
        }
    }
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        heft__tree_module *module = &tree->modules[tree->tensors[i].module];
        module->first_tensor = module->tensor_count == 0 ? i : module->first_tensor;
        module->tensor_count++;
    }
    return list_ties(tree, err);
}

/* ---- of a model ------------------------------------------------------------------------------ */
#define CLASSES_MOST 64 /* remembered, so that each class's name is copied once */

struct copying {
    heft__tree *tree;
    const char *from[CLASSES_MOST], *to[CLASSES_MOST];
    size_t next;
};

/* A class's name in the tree's arena, NULL without memory. */
static const char *copy_class(struct copying *c, const char *name)
{
    for (size_t i = 0; i < CLASSES_MOST; i++) {
        if (c->from[i] == name) {
            return c->to[i];
        }
    }
    c->from[c->next] = name;
    const char *copy = heft__arena_text(&c->tree->arena, name, strlen(name));
    c->to[c->next] = copy;
    c->next = (c->next + 1) % CLASSES_MOST;
    return copy;
}

/* The model may be gone before the tree. */
static bool copy_modules(heft__tree *tree, const heft_model *model)
{
    struct copying c = {.tree = tree};
    for (uint32_t i = 0; i < tree->module_count; i++) {
        const heft_module *from = heft_model_module(model, i);
        heft__tree_module *to = &tree->modules[i];
        to->path = heft__arena_text(&tree->arena, from->path, strlen(from->path));
        to->class_name = copy_class(&c, from->class_name);
        if (!to->path || !to->class_name) {
            return false;
        }
        to->parent = i > 0 ? (uint32_t)from->parent : HEFT__NO_NODE;
        to->block = from->no_split || (i > 0 && tree->modules[to->parent].block);
        to->unit = from->unit;
    }
    return true;
}

/* Module by module, in each as the model lists them. `numbers`: [count] filled with each parameter's
 * tensor. */
static bool copy_tensors(heft__tree *tree, const heft_model *model, uint32_t *numbers)
{
    uint32_t at = 0;
    for (uint32_t m = 0; m < tree->module_count; m++) {
        const heft_module *module = heft_model_module(model, m);
        for (size_t k = 0; k < module->parameter_count; k++, at++) {
            const size_t number = module->parameters[k];
            const heft_parameter *parameter = &model->parameters[number];
            heft__tree_tensor *tensor = &tree->tensors[at];
            *tensor = (heft__tree_tensor){
                .path = heft__arena_text(&tree->arena, parameter->name, strlen(parameter->name)),
                .module = m,
                .parameter = (uint32_t)number,
                .first = at,
                .dtype = parameter->dtype,
                .buffer = parameter->kind != HEFT_PARAMETER_WEIGHT,
                .transient = parameter->kind == HEFT_PARAMETER_BUFFER_TRANSIENT,
            };
            if (!tensor->path) {
                return false;
            }
            (void)heft__shape_elems(parameter->shape, parameter->rank, &tensor->elems);
            numbers[number] = at;
        }
    }
    return true;
}

/* The name that comes first stands for all that are tied. */
static void find_first_names(heft__tree *tree, const heft_model *model, const uint32_t *numbers)
{
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        const uint32_t source = numbers[model->parameters[tree->tensors[i].parameter].tied_to];
        const uint32_t first = tree->tensors[source].first < i ? tree->tensors[source].first : i;
        tree->tensors[source].first = first;
        tree->tensors[i].first = first;
    }
}

heft_status heft__tree_of_model(const heft_model *model, heft__tree **out, heft_error *err)
{
    heft__tree *tree = NULL;
    uint32_t *numbers = heft__alloc(model->ctx, model->count * sizeof *numbers);
    heft_status status = numbers ? heft__tree_new(model->ctx, (uint32_t)model->module_count,
                                                  (uint32_t)model->count, &tree, err)
                                 : heft__fail_nomem(err, model->count * sizeof *numbers);
    if (status == HEFT_OK) {
        status = copy_modules(tree, model) && copy_tensors(tree, model, numbers)
                     ? HEFT_OK
                     : heft__fail_nomem(err, model->count * sizeof *tree->tensors);
    }
    if (status == HEFT_OK) {
        find_first_names(tree, model, numbers);
        status = heft__tree_finish(tree, err);
    }
    if (status == HEFT_OK) {
        heft__tree_size(tree, HEFT_DTYPE_NONE, 0, NULL);
        *out = tree;
    } else {
        heft__tree_free(tree);
    }
    heft__free(model->ctx, numbers, model->count * sizeof *numbers);
    return status;
}

/* ---- sizes and flags ------------------------------------------------------------------------- */
static double unit_of(heft_dtype dtype)
{
    return dtype == HEFT_DTYPE_BOOL ? 0.125 : (double)heft_dtype_bits(dtype) / 8;
}

/* From the tensors' own sizes to the modules' sums. */
static void sum_up(heft__tree *tree)
{
    for (uint32_t i = 0; i < tree->module_count; i++) {
        tree->modules[i].bytes = 0;
    }
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        const heft__tree_tensor *tensor = &tree->tensors[i];
        for (uint32_t m = tensor->module; m != HEFT__NO_NODE; m = tree->modules[m].parent) {
            tree->modules[m].bytes += tensor->bytes;
        }
    }
}

void heft__tree_size(heft__tree *tree, heft_dtype dtype, double unit, const heft_dtype *special)
{
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        heft__tree_tensor *tensor = &tree->tensors[i];
        double own = unit_of(tensor->dtype), bytes = own;
        if (special && special[i] != HEFT_DTYPE_NONE) {
            bytes = unit_of(special[i]);
        } else if (tensor->quantized > 0) {
            tensor->bytes = tensor->first == i ? tensor->quantized : 0;
            continue;
        } else if (dtype != HEFT_DTYPE_NONE && heft_dtype_is_floating(tensor->dtype)) {
            bytes = unit < own ? unit : own;
        }
        tensor->bytes = tensor->first == i ? bytes * (double)tensor->elems : 0;
    }
    sum_up(tree);
}

double heft__tree_bytes_as(const heft__tree *tree, uint32_t node, double unit)
{
    uint32_t first, end;
    double bytes = 0;
    heft__tree_tensors(tree, node, &first, &end);
    for (uint32_t i = first; i < end; i++) {
        const heft__tree_tensor *tensor = &tree->tensors[i];
        const double each = heft_dtype_is_floating(tensor->dtype) ? unit : unit_of(tensor->dtype);
        bytes += tensor->first == i ? each * (double)tensor->elems : 0;
    }
    return bytes;
}

bool heft__tree_is_inside(const heft__tree *tree, uint32_t node, uint32_t ancestor)
{
    if (node == ancestor) {
        return true;
    }
    if (heft__tree_is_tensor(tree, ancestor)) {
        return false;
    }
    uint32_t module =
        heft__tree_is_tensor(tree, node) ? tree->tensors[node - tree->module_count].module : node;
    return module >= ancestor && module < tree->modules[ancestor].end;
}

bool heft__tree_splits(const heft__tree *tree, uint32_t node)
{
    return !heft__tree_is_tensor(tree, node) && tree->modules[node].child_count > 0 &&
           !tree->modules[node].block;
}

bool heft__tree_each_unit(const heft__tree *tree, bool (*visit)(void *user, uint32_t node),
                          void *user)
{
    bool good = true;
    for (uint32_t at = 0; good && at < tree->module_count;) {
        const heft__tree_module *m = &tree->modules[at];
        if (at > 0 && !heft__tree_splits(tree, at)) {
            good = visit(user, at);
            at = m->end;
            continue;
        }
        for (uint32_t i = 0; good && i < m->tensor_count; i++) {
            good = visit(user, tree->module_count + m->first_tensor + i);
        }
        at++;
    }
    return good;
}

void heft__tree_tensors(const heft__tree *tree, uint32_t node, uint32_t *first, uint32_t *end)
{
    *first = *end = 0;
    if (heft__tree_is_tensor(tree, node)) {
        *first = node - tree->module_count;
        *end = *first + 1;
        return;
    }
    for (uint32_t i = node; i < tree->modules[node].end; i++) { /* pre-order: side by side */
        const heft__tree_module *module = &tree->modules[i];
        *first = *end == *first ? module->first_tensor : *first;
        *end = module->tensor_count ? module->first_tensor + module->tensor_count : *end;
    }
}

void heft__tree_sites(const heft__tree *tree, uint32_t *sites)
{
    for (uint32_t i = 0; i < tree->module_count; i++) {
        const uint32_t parent = tree->modules[i].parent;
        const bool inside = i > 0 && (tree->modules[parent].unit || sites[parent] != parent);
        sites[i] = inside && !tree->modules[i].unit ? sites[parent] : i;
    }
}

double heft__tree_buffers(const heft__tree *tree, uint32_t node)
{
    uint32_t first, end;
    double bytes = 0;
    heft__tree_tensors(tree, node, &first, &end);
    for (uint32_t i = first; i < end; i++) {
        bytes += tree->tensors[i].buffer ? tree->tensors[i].bytes : 0;
    }
    return bytes;
}
