/* lists.c - the layers of a model whose type is not known, by the structure of its modules.
 *
 *   model.layers       a list: numbered children, at least two of them alike
 *   model.layers.3     an element: must not be split, and is a unit
 *   ... .experts.7     an element of a list inside of an element: a unit
 *
 * Children are a list if their names are numbers, or the same text and numbers ("expert_3"), and two of
 * them that hold more than one module with tensors are alike: the names below them are the same, or two
 * neighbors differ in few (T5's first block has a table more than the others, a stage's first of a ResNet
 * a shortcut). So the two matrices of a
 * classifier, head.0 and head.2, are no list. Text that ends with a letter ("layer3") counts only
 * where three are the same and there is no list inside, as such names are often those of stages.
 *
 * Source: docs/loading.md [8]. */
#include "model/skeleton.h"

#include <stdlib.h>

struct lists {
    heft_model *model;
    uint64_t *hashes;   /* [module_count] of the names below a module */
    uint32_t *holders;  /* [module_count] modules with tensors in a subtree */
    uint64_t *names[2]; /* [count] scratch: hashes of the names below two modules */
    const char **patterns;
    size_t pattern_count, pattern_cap;
    heft_status status;
    heft_error *err;
};

/* Neighbors below one parent whose names differ in a number at the end. */
struct group {
    size_t first, end; /* modules; end: the sibling after the last, or the parent's end */
    size_t stem;       /* bytes of the text before the number */
    size_t count;      /* of those that hold more than one module with tensors */
};

/* ---- what a module holds --------------------------------------------------------------------- */
static uint64_t mix(uint64_t hash)
{
    hash = (hash ^ (hash >> 31)) * 0x9E3779B97F4A7C15U;
    return hash ^ (hash >> 29);
}

/* Sums: the order in which children come does not count. */
static void measure(struct lists *l)
{
    const heft_model *model = l->model;
    for (size_t m = model->module_count; m-- > 0;) { /* what is below comes first */
        const heft_module *module = &model->modules[m];
        for (size_t k = 0; k < module->parameter_count; k++) {
            const char *role = model->parameters[module->parameters[k]].role;
            l->hashes[m] += mix(heft__stable_hash(role, strlen(role)));
        }
        l->holders[m] += module->parameter_count > 0;
        if (m > 0) {
            const uint64_t name = heft__stable_hash(module->name, strlen(module->name));
            l->hashes[module->parent] += mix(l->hashes[m] ^ mix(name));
            l->holders[module->parent] += l->holders[m];
        }
    }
}

static int by_hash(const void *left, const void *right)
{
    const uint64_t *a = left, *b = right;
    return *a < *b ? -1 : *a > *b;
}

/* The names of all parameters below a module, as sorted hashes; their lists lie side by side. */
static size_t list_names(const struct lists *l, size_t m, uint64_t *names)
{
    const heft_model *model = l->model;
    const size_t end = model->modules[m].end, skip = strlen(model->modules[m].path);
    const size_t *from = model->modules[m].parameters,
                 *to = end < model->module_count ? model->modules[end].parameters
                                                 : model->module_parameters + model->count;
    size_t count = 0;
    for (; from < to; from++) {
        const char *name = model->parameters[*from].name + skip;
        names[count++] = heft__stable_hash(name, strlen(name));
    }
    qsort(names, count, sizeof *names, by_hash);
    return count;
}

/* Whether two modules differ in a quarter of their names at most, or in one; or one has all names of the
 * other, and at most as many more. */
static bool are_alike(const struct lists *l, size_t a, size_t b)
{
    const size_t a_count = list_names(l, a, l->names[0]), b_count = list_names(l, b, l->names[1]),
                 most = a_count > b_count ? a_count : b_count,
                 least = a_count > b_count ? b_count : a_count;
    size_t common = 0;
    for (size_t i = 0, k = 0; i < a_count && k < b_count;) {
        const uint64_t left = l->names[0][i], right = l->names[1][k];
        common += left == right;
        i += left <= right;
        k += right <= left;
    }
    return common >= 2 &&
           (most - common <= (most >= 8 ? most / 4 : 1) || (common == least && most <= 2 * least));
}

/* ---- lists ----------------------------------------------------------------------------------- */
/* Bytes before the number at a name's end; SIZE_MAX if there is no number. */
static size_t stem_of(const char *name)
{
    size_t length = strlen(name), stem = length;
    while (stem > 0 && name[stem - 1] >= '0' && name[stem - 1] <= '9') {
        stem--;
    }
    return stem < length ? stem : SIZE_MAX;
}

static bool is_element(const struct lists *l, size_t m)
{
    return l->holders[m] > 1;
}

/* The group of neighbors that begins with a child; of one that has no number, itself alone. */
static struct group next_group(const struct lists *l, size_t child, size_t parent_end)
{
    const heft_module *modules = l->model->modules;
    const char *name = modules[child].name;
    struct group group = {.first = child, .end = child, .stem = stem_of(name)};
    do {
        group.count += is_element(l, group.end);
        group.end = modules[group.end].end;
    } while (group.stem != SIZE_MAX && group.end < parent_end &&
             stem_of(modules[group.end].name) == group.stem &&
             memcmp(modules[group.end].name, name, group.stem) == 0);
    return group;
}

/* How many elements have the structure that most of them have. */
static size_t count_same(const struct lists *l, const struct group *group)
{
    size_t count = 0, run = 1, most = 0;
    for (size_t m = group->first; m < group->end; m = l->model->modules[m].end) {
        if (is_element(l, m)) {
            l->names[0][count++] = l->hashes[m];
        }
    }
    qsort(l->names[0], count, sizeof *l->names[0], by_hash);
    for (size_t i = 0; i < count; i++) {
        run = i > 0 && l->names[0][i] == l->names[0][i - 1] ? run + 1 : 1;
        most = run > most ? run : most;
    }
    return most;
}

/* Whether two neighbors are alike. */
static bool has_alike(const struct lists *l, const struct group *group)
{
    size_t before = SIZE_MAX;
    for (size_t m = group->first; m < group->end; m = l->model->modules[m].end) {
        if (is_element(l, m)) {
            if (before != SIZE_MAX && are_alike(l, before, m)) {
                return true;
            }
            before = m;
        }
    }
    return false;
}

/* Whether the text before the numbers is such that each is an element of a list, whatever is inside. */
static bool is_plain(const struct lists *l, const struct group *group)
{
    const char *name = l->model->modules[group->first].name;
    const char last = group->stem != SIZE_MAX && group->stem > 0 ? name[group->stem - 1] : '_';
    return group->stem != SIZE_MAX && (last == '_' || last == '-');
}

static bool is_list(const struct lists *l, const struct group *group)
{
    return group->count > 1 && (count_same(l, group) > 1 || has_alike(l, group));
}

/* "model.layers.*" */
static void add_pattern(struct lists *l, const struct group *group)
{
    const heft_module *first = &l->model->modules[group->first];
    const char *pattern =
        heft__arena_format(&l->model->arena, "%.*s*",
                           (int)((size_t)(first->name - first->path) + group->stem), first->path);
    if (pattern && heft__array_reserve(l->model->ctx, (void **)&l->patterns, l->pattern_count,
                                       &l->pattern_cap, sizeof *l->patterns)) {
        l->patterns[l->pattern_count++] = pattern;
    } else {
        l->status = heft__fail_nomem(l->err, sizeof *l->patterns);
    }
}

static void mark_list(struct lists *l, const struct group *group, bool inside)
{
    heft_module *modules = l->model->modules;
    heft_module *parent = &modules[modules[group->first].parent];
    if (group->stem == 0 && parent->kind == HEFT_MODULE_OTHER) {
        parent->kind = HEFT_MODULE_CONTAINER;
    }
    for (size_t m = group->first; m < group->end; m = modules[m].end) {
        if (is_element(l, m)) {
            modules[m].unit = true;
            modules[m].no_split = !inside;
            modules[m].kind = inside ? modules[m].kind : HEFT_MODULE_LAYER;
        }
    }
    if (!inside) {
        add_pattern(l, group);
    }
}

/* Mark the lists below a module; whether there are any. As deep as modules are nested, which the
 * builder has bounded. */
static bool find_lists(struct lists *l, size_t parent, bool inside)
{
    const size_t end = l->model->modules[parent].end;
    bool found = false;
    for (size_t at = parent + 1; at < end && l->status == HEFT_OK;) {
        const struct group group = next_group(l, at, end);
        const bool list = is_plain(l, &group) && is_list(l, &group);
        bool below = false;
        if (list) {
            mark_list(l, &group, inside);
        }
        for (; at < group.end; at = l->model->modules[at].end) {
            below |= find_lists(l, at, inside || (list && is_element(l, at)));
        }
        if (!list && !below && !inside && group.count > 2 && count_same(l, &group) > 2) {
            mark_list(l, &group, inside);
            below = true;
        }
        found |= list || below;
    }
    return found;
}

/* The patterns become the model's list of what stays whole. */
static void keep_patterns(struct lists *l)
{
    heft_model *model = l->model;
    const char **kept = heft__arena_array(&model->arena, l->pattern_count, sizeof *kept);
    if (!kept) {
        l->status = heft__fail_nomem(l->err, l->pattern_count * sizeof *kept);
        return;
    }
    for (size_t i = 0; i < l->pattern_count; i++) {
        kept[i] = l->patterns[i];
    }
    model->no_split = kept;
    model->no_split_count = l->pattern_count;
}

heft_status heft__modules_find_lists(heft_model *model, heft_error *err)
{
    heft_ctx *ctx = model->ctx;
    const size_t count = model->module_count, names = model->count > count ? model->count : count;
    struct lists l = {
        .model = model,
        .hashes = heft__alloc_zero(ctx, count, sizeof *l.hashes),
        .holders = heft__alloc_zero(ctx, count, sizeof *l.holders),
        .names = {heft__alloc(ctx, names * sizeof *l.names[0]),
                  heft__alloc(ctx, names * sizeof *l.names[1])},
        .status = HEFT_OK,
        .err = err,
    };
    if (l.hashes && l.holders && l.names[0] && l.names[1]) {
        measure(&l);
        (void)find_lists(&l, 0, false);
    } else {
        l.status = heft__fail_nomem(err, count * sizeof *l.hashes);
    }
    if (l.status == HEFT_OK) {
        keep_patterns(&l);
    }
    heft__free(ctx, l.hashes, count * sizeof *l.hashes);
    heft__free(ctx, l.holders, count * sizeof *l.holders);
    heft__free(ctx, l.names[0], names * sizeof *l.names[0]);
    heft__free(ctx, l.names[1], names * sizeof *l.names[1]);
    heft__free(ctx, l.patterns, l.pattern_cap * sizeof *l.patterns);
    return l.status;
}
