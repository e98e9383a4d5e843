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

/* Whether a path lies below another, "" above all. */
static bool lies_below(const char *path, const char *above)
{
    const size_t length = strlen(above);
    return length == 0 || (strncmp(path, above, length) == 0 && path[length] == '.');
}

struct tied_name {
    const char *path;
    uint32_t first, tensor;
};

/* Group by group; in a group by letters, as the reference has them. */
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
    uint32_t open = 0; /* the module whose subtree we are in */
    for (uint32_t i = 0; i < tree->module_count; i++) {
        heft__tree_module *module = &tree->modules[i];
        module->parent = HEFT__NO_NODE;
        while (i > 0 && open != HEFT__NO_NODE &&
               !lies_below(module->path, tree->modules[open].path)) {
            tree->modules[open].end = i;
            open = tree->modules[open].parent;
        }
        if (i > 0) {
            module->parent = open == HEFT__NO_NODE ? 0 : open;
            tree->modules[module->parent].child_count++;
        }
        open = i;
    }
    while (open != HEFT__NO_NODE && tree->module_count > 0) {
        tree->modules[open].end = tree->module_count;
        open = tree->modules[open].parent;
    }
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        heft__tree_module *module = &tree->modules[tree->tensors[i].module];
        module->first_tensor = module->tensor_count == 0 ? i : module->first_tensor;
        module->tensor_count++;
    }
    return list_ties(tree, err);
}

/* ---- of a model ------------------------------------------------------------------------------ */
/* The number of the module in which a tensor is, by its name. */
static uint32_t module_of(const heft__map *modules, const char *name)
{
    const char *dot = strrchr(name, '.');
    size_t at = heft__map_get(modules, name, dot ? (size_t)(dot - name) : 0);
    return at == HEFT__MAP_NONE ? 0 : (uint32_t)at;
}

struct entry { /* a parameter, for sorting by module */
    uint32_t module, parameter;
    bool buffer;
};

/* Stable: by module, parameters before buffers. */
static heft_status group_by_module(const heft_model *model, const heft__map *modules,
                                   struct entry *entries, heft_error *err)
{
    uint32_t *starts = heft__alloc_zero(model->ctx, 2 * model->module_count + 1, sizeof *starts);
    struct entry *grouped = heft__alloc(model->ctx, model->count * sizeof *grouped);
    bool room = starts && grouped;
    for (uint32_t i = 0; room && i < model->count; i++) {
        bool buffer = model->parameters[i].kind != HEFT_PARAMETER_WEIGHT;
        entries[i] = (struct entry){module_of(modules, model->parameters[i].name), i, buffer};
        starts[2 * entries[i].module + buffer + 1]++;
    }
    for (size_t i = 1; room && i < 2 * model->module_count + 1; i++) {
        starts[i] += starts[i - 1];
    }
    for (uint32_t i = 0; room && i < model->count; i++) {
        grouped[starts[2 * entries[i].module + entries[i].buffer]++] = entries[i];
    }
    if (room && model->count > 0) {
        memcpy(entries, grouped, model->count * sizeof *entries);
    }
    heft__free(model->ctx, starts, (2 * model->module_count + 1) * sizeof *starts);
    heft__free(model->ctx, grouped, model->count * sizeof *grouped);
    return room ? HEFT_OK : heft__fail_nomem(err, model->count * sizeof *grouped);
}

static bool is_number(const char *text)
{
    return *text && text[strspn(text, "0123456789")] == '\0';
}

/* The family's class of a block: of its embeddings, or of its layers, of which an encoder-decoder has
 * two. NULL if it has none. */
static const char *class_of_block(const heft_model *model, const char *path, bool embeddings)
{
    const char *found = NULL;
    for (size_t i = 0; i < model->no_split_count; i++) {
        const char *name = model->no_split[i];
        if ((strstr(name, "Embeddings") != NULL) != embeddings) {
            continue;
        }
        bool fits = (strstr(name, "Decoder") != NULL) == (strstr(path, "decoder") != NULL);
        found = !found || fits ? name : found;
    }
    return found;
}

/* Which modules must not be split: the outermost numbered ones, where the family has such a class
 * ("LlamaDecoderLayer"), and the embeddings, where it has ("BertEmbeddings"). A type that is not
 * known has its blocks by name ("model.layers.*"). */
static void mark_blocks(heft__tree *tree, const heft_model *model)
{
    for (uint32_t i = 1; i < tree->module_count; i++) {
        heft__tree_module *module = &tree->modules[i];
        const char *dot = strrchr(module->path, '.'), *last = dot ? dot + 1 : module->path;
        const char *name = NULL;
        if (is_number(last) || strcmp(last, "embeddings") == 0) {
            name = class_of_block(model, module->path, !is_number(last));
        }
        module->class_name = name ? name : "";
        module->block = name || tree->modules[module->parent].block; /* blocks do not nest */
        if (tree->modules[module->parent].block) {
            module->class_name = "";
        }
    }
}

static bool fill_tensors(heft__tree *tree, const heft_model *model, const struct entry *entries,
                         uint32_t *numbers)
{
    for (uint32_t i = 0; i < model->count; i++) {
        numbers[entries[i].parameter] = i;
    }
    for (uint32_t i = 0; i < model->count; i++) {
        const heft_parameter *parameter = &model->parameters[entries[i].parameter];
        heft__tree_tensor *tensor = &tree->tensors[i];
        tensor->path = heft__arena_text(&tree->arena, parameter->name, strlen(parameter->name));
        if (!tensor->path) {
            return false;
        }
        tensor->module = entries[i].module;
        tensor->dtype = parameter->dtype;
        tensor->buffer = entries[i].buffer;
        tensor->transient = parameter->kind == HEFT_PARAMETER_BUFFER_TRANSIENT;
        (void)heft__shape_elems(parameter->shape, parameter->rank, &tensor->elems);
        tensor->first = i;
    }
    /* the name that comes first stands for the group */
    for (uint32_t i = 0; i < model->count; i++) {
        uint32_t source = numbers[model->parameters[entries[i].parameter].tied_to];
        uint32_t first = tree->tensors[source].first < i ? tree->tensors[source].first : i;
        tree->tensors[source].first = first;
        tree->tensors[i].first = first;
    }
    return true;
}

heft_status heft__tree_of_model(const heft_model *model, heft__tree **out, heft_error *err)
{
    heft__map modules;
    heft__tree *tree = NULL;
    struct entry *entries = heft__alloc(model->ctx, model->count * sizeof *entries);
    uint32_t *numbers = heft__alloc(model->ctx, model->count * sizeof *numbers);
    heft_status status = entries && numbers
                             ? heft__tree_new(model->ctx, (uint32_t)model->module_count,
                                              (uint32_t)model->count, &tree, err)
                             : heft__fail_nomem(err, model->count * sizeof *entries);
    heft__map_init(&modules, model->ctx);
    for (uint32_t i = 0; i < model->module_count && status == HEFT_OK; i++) {
        size_t found;
        const char *path = model->module_paths[i];
        tree->modules[i].path = heft__arena_text(&tree->arena, path, strlen(path));
        tree->modules[i].class_name = "";
        if (!tree->modules[i].path || !heft__map_put(&modules, model->module_paths[i],
                                                     strlen(model->module_paths[i]), i, &found)) {
            status = heft__fail_nomem(err, 0);
        }
    }
    if (status == HEFT_OK) {
        status = group_by_module(model, &modules, entries, err);
    }
    if (status == HEFT_OK) {
        status = fill_tensors(tree, model, entries, numbers) ? heft__tree_finish(tree, err)
                                                             : heft__fail_nomem(err, model->count);
    }
    if (status == HEFT_OK) {
        mark_blocks(tree, model);
        heft__tree_size(tree, HEFT_DTYPE_NONE, 0, NULL);
        *out = tree;
    } else {
        heft__tree_free(tree);
    }
    heft__map_fini(&modules);
    heft__free(model->ctx, entries, model->count * sizeof *entries);
    heft__free(model->ctx, numbers, model->count * sizeof *numbers);
    return status;
}

/* ---- sizes and marks ------------------------------------------------------------------------- */
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

double heft__tree_stream(const heft__tree *tree, uint32_t node, double *tied)
{
    uint32_t first, end;
    double bytes = 0;
    *tied = 0;
    heft__tree_tensors(tree, node, &first, &end);
    for (uint32_t i = first; i < end; i++) {
        const heft__tree_tensor *tensor = &tree->tensors[i];
        const double own = tensor->buffer ? 0 : tree->tensors[tensor->first].bytes;
        if (heft__tree_is_first(tree, i, first)) {
            bytes += own;
            *tied += tensor->first == i ? 0 : own;
        }
    }
    return bytes;
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
