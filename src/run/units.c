/* units.c - what of a model is brought in and dropped together.
 *
 * Each module has a site: the layer or the expert that it lies in, else itself. Parameters of one site are
 * a unit. A tensor whose names lie in several sites is taken out of them: it is a unit under all the
 * modules that hold it, so that it comes once.
 *
 * Experts may be stacked: module "experts" has parameters [experts, ...], one for all. By expert, these are cut
 * along their first dimension, into slices. The slices of one expert are a unit:
 *
 *   gate_up_proj  [ e0 | e1 | e2 | ... ]      unit of expert 1: slice e1 of each
 *   down_proj     [ e0 | e1 | e2 | ... ]
 *
 * What is a layer and what an expert the model's module tree says (heft_module.unit).
 * Source: docs/residency.md [1]. */
#include "run/run.h"

#include <stdlib.h>
#include <unistd.h>

#define NONE UINT32_MAX
#define STACK_MOST 4096 /* experts of a layer: lists are not made for whatever a file claims */

struct making {
    heft_residency *r;
    const heft__tree *tree;
    uint32_t *site;         /* [modules] */
    uint32_t *group;        /* [modules] the outermost layer that it lies in, else itself */
    uint32_t *unit_of_site; /* [modules] */
    uint32_t *unit_of_tie;  /* [tensors] by the first name's number */
    uint32_t *last_module;  /* [all] by unit: that has given it a place in the order */
    uint32_t *last_unit;    /* [all] by root: the unit that has counted it */
    uint32_t *stack;        /* [modules] experts that its parameters stack; 0: none */
    uint32_t *first_expert; /* [modules] the unit of its first expert */
    uint32_t *holders;      /* [tensors] scratch: modules that hold a tied tensor */
    heft__map tied;         /* holders -> unit */
    heft__arena keys;       /* of the map */
    heft_error *err;
};

/* ---- sites ----------------------------------------------------------------------------------- */
static void mark_sites(struct making *m)
{
    const heft__tree_module *modules = m->tree->modules;
    heft__tree_sites(m->tree, m->site);
    for (uint32_t i = 0; i < m->tree->module_count; i++) {
        const uint32_t parent = modules[i].parent;
        const bool inside = i > 0 && (modules[parent].unit || m->site[parent] != parent);
        m->group[i] = inside ? m->group[parent] : i;
    }
}

/* ---- stacked experts --------------------------------------------------------------------------- */
/* Whether a parameter is to be brought in: it stays in a file that the model knows. */
static bool is_brought(const heft_model *model, size_t root)
{
    const heft__homes *homes = heft__model_homes(model);
    const heft_parameter_state state = model->parameters[root].state;
    return homes && homes->source[root] != HEFT__NO_TENSOR && !model->bindings[root].given &&
           model->parameters[root].size_bytes > 0 &&
           (state == HEFT_PARAMETER_MAPPED || state == HEFT_PARAMETER_DISK);
}

/* The experts that all of a module's own parameters stack; 0 if they do not, or if not all are to be brought
 * in. A tied parameter may be used in another place too. */
static uint32_t count_stacked(const struct making *m, uint32_t module)
{
    const heft_model *model = m->r->model;
    const heft__tree_module *node = &m->tree->modules[module];
    uint64_t count = 0;
    bool stacked = node->tensor_count > 0 && model->modules[module].kind == HEFT_MODULE_EXPERTS;
    for (uint32_t i = 0; i < node->tensor_count && stacked; i++) {
        const size_t number = m->r->tensors[node->first_tensor + i];
        const heft_parameter *parameter = &model->parameters[number];
        const uint64_t length = parameter->rank >= 2 ? parameter->shape[0] : 0;
        count = i == 0 ? length : count;
        stacked = length == count && length > 1 && length <= STACK_MOST &&
                  parameter->size_bytes % length == 0 && heft_dtype_bits(parameter->dtype) >= 8 &&
                  is_brought(model, number);
    }
    return stacked ? (uint32_t)count : 0;
}

/* Find the modules whose parameters are cut, and number the slices. */
static heft_status mark_stacks(struct making *m)
{
    heft_residency *r = m->r;
    const heft__tree *tree = m->tree;
    m->stack = heft__arena_array(&m->keys, tree->module_count, sizeof *m->stack);
    m->first_expert = heft__arena_array(&m->keys, tree->module_count, sizeof *m->first_expert);
    r->slices = heft__arena_array(&r->arena, r->count, sizeof *r->slices);
    if (!m->stack || !m->first_expert || !r->slices) {
        return heft__fail_nomem(m->err, r->count * sizeof *r->slices);
    }
    memset(r->slices, 0xff, r->count * sizeof *r->slices);
    for (uint32_t i = 0; i < tree->module_count && r->by_expert; i++) {
        m->stack[i] = count_stacked(m, i);
    }
    for (size_t i = 0; i < tree->tie_count; i++) {
        m->stack[tree->tensors[tree->ties[i][1]].module] = 0;
    }
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        const uint32_t stacked = m->stack[tree->tensors[i].module];
        if (stacked > 0) {
            r->slices[r->tensors[i]] = r->all;
            r->all += stacked;
        }
    }
    r->sliced = heft__arena_array(&r->arena, r->all - r->count, sizeof *r->sliced);
    if (!r->sliced) {
        return heft__fail_nomem(m->err, (r->all - r->count) * sizeof *r->sliced);
    }
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        const uint32_t stacked = m->stack[tree->tensors[i].module];
        for (uint32_t e = 0; e < stacked; e++) {
            r->sliced[r->slices[r->tensors[i]] + e - r->count] = r->tensors[i];
        }
    }
    return HEFT_OK;
}

uint64_t heft__slice_first(const heft_residency *r, size_t number)
{
    const size_t whole = heft__whole_of(r, number);
    uint64_t elems = 0;
    if (number != whole) {
        (void)heft__shape_elems(r->views[number].shape, r->views[number].rank, &elems);
        elems *= number - r->slices[whole];
    }
    return elems;
}

/* Bytes of a parameter or a slice. */
static uint64_t bytes_of(const heft_residency *r, size_t number)
{
    const heft_parameter *parameter = &r->model->parameters[heft__whole_of(r, number)];
    return number < r->count ? parameter->size_bytes : parameter->size_bytes / parameter->shape[0];
}

/* ---- numbers --------------------------------------------------------------------------------- */
static size_t parameter_of(const struct making *m, uint32_t tensor)
{
    return m->r->tensors[tensor];
}

/* A new unit, with the modules it comes under; NONE without memory. */
static uint32_t add_unit(struct making *m, const uint32_t *modules, size_t count)
{
    heft_residency *r = m->r;
    const char *path = m->tree->modules[modules[0]].path;
    size_t *numbers = heft__arena_array(&r->arena, count, sizeof *numbers);
    if (!heft__array_reserve(r->ctx, (void **)&r->units, r->unit_count, &r->unit_cap,
                             sizeof *r->units)) {
        return NONE;
    }
    heft__unit *unit = &r->units[r->unit_count];
    *unit = (heft__unit){.idle_at = HEFT__NO_PLACE, .group = m->group[modules[0]]};
    unit->shown.name = heft__arena_text(&r->arena, path, strlen(path));
    unit->shown.modules = numbers;
    unit->shown.module_count = count;
    if (!numbers || !unit->shown.name) {
        return NONE;
    }
    for (size_t i = 0; i < count; i++) {
        numbers[i] = modules[i];
    }
    m->last_module[r->unit_count] = NONE;
    return (uint32_t)r->unit_count++;
}

static int by_number(const void *left, const void *right)
{
    const uint32_t *a = left, *b = right;
    return (*a > *b) - (*a < *b);
}

/* The unit of the tied tensor whose names begin at `tie`: that of the same modules, or a new one. */
static uint32_t unit_of_holders(struct making *m, size_t tie)
{
    const heft__tree *tree = m->tree;
    const uint32_t group = tree->ties[tie][0];
    size_t count = 0, kept = 0, found = HEFT__MAP_NONE;
    for (; tie < tree->tie_count && tree->ties[tie][0] == group; tie++) {
        m->holders[count++] = tree->tensors[tree->ties[tie][1]].module;
    }
    qsort(m->holders, count, sizeof *m->holders, by_number);
    for (size_t i = 0; i < count; i++) {
        if (i == 0 || m->holders[i] != m->holders[kept - 1]) {
            m->holders[kept++] = m->holders[i];
        }
    }
    const size_t length = kept * sizeof *m->holders;
    const char *key = heft__arena_text(&m->keys, (const char *)m->holders, length);
    if (!key || !heft__map_put(&m->tied, key, length, m->r->unit_count, &found)) {
        return NONE;
    }
    return found != HEFT__MAP_NONE ? (uint32_t)found : add_unit(m, m->holders, kept);
}

/* Find the tensors that are in several sites, and number their units in unit_of_tie[]: NONE - 1 says
 * that it has to be made when its first name comes. */
#define TIED (NONE - 1)
static void mark_ties(struct making *m)
{
    const heft__tree *tree = m->tree;
    for (size_t i = 1; i < tree->tie_count; i++) {
        const uint32_t group = tree->ties[i][0], tensor = tree->ties[i][1],
                       before = tree->ties[i - 1][1];
        if (group == tree->ties[i - 1][0] &&
            m->site[tree->tensors[tensor].module] != m->site[tree->tensors[before].module]) {
            m->unit_of_tie[group] = TIED;
        }
    }
}

/* The unit of a tensor; NONE without memory. *tie goes along the list of ties. */
static uint32_t unit_of_tensor(struct making *m, uint32_t tensor, size_t *tie)
{
    const heft__tree_tensor *info = &m->tree->tensors[tensor];
    uint32_t *unit = &m->unit_of_tie[info->first];
    if (*unit == NONE) { /* not tied, or within its site */
        unit = &m->unit_of_site[m->site[info->module]];
        if (*unit == NONE) {
            *unit = add_unit(m, &m->site[info->module], 1);
        }
    } else if (*unit == TIED) {
        while (m->tree->ties[*tie][0] != info->first) {
            ++*tie; /* groups come in the order of their first names */
        }
        *unit = unit_of_holders(m, *tie);
    }
    return *unit;
}

/* Units of a module's experts, and the slices that they have. The name is a path with the expert's number. */
static heft_status number_experts(struct making *m, uint32_t module)
{
    heft_residency *r = m->r;
    const heft__tree_module *node = &m->tree->modules[module];
    char name[300];
    m->first_expert[module] = (uint32_t)r->unit_count;
    for (uint32_t e = 0; e < m->stack[module]; e++) {
        const uint32_t unit = add_unit(m, &module, 1);
        snprintf(name, sizeof name, "%.250s[%u]", node->path, e);
        const char *shown = heft__arena_text(&r->arena, name, strlen(name));
        if (unit == NONE || !shown) {
            return heft__fail_nomem(m->err, sizeof *r->units);
        }
        r->units[unit].shown.name = shown;
        r->units[unit].shown.parameter_count = node->tensor_count;
        r->order[r->order_count++] = unit;
        for (uint32_t i = 0; i < node->tensor_count; i++) {
            r->unit_of[r->slices[r->tensors[node->first_tensor + i]] + e] = unit;
        }
    }
    for (uint32_t i = 0; i < node->tensor_count; i++) {
        r->unit_of[r->tensors[node->first_tensor + i]] = m->first_expert[module];
    }
    return HEFT_OK;
}

/* Number units in the order of their first tensors. The order of use has each once, but a tied one at each
 * of its modules. */
static heft_status number_units(struct making *m)
{
    heft_residency *r = m->r;
    size_t tie = 0;
    mark_ties(m);
    for (uint32_t i = 0; i < m->tree->tensor_count; i++) {
        const uint32_t holder = m->tree->tensors[i].module;
        if (m->stack[holder] > 0) {
            if (i == m->tree->modules[holder].first_tensor &&
                number_experts(m, holder) != HEFT_OK) {
                return HEFT_NOMEM;
            }
            continue;
        }
        const uint32_t unit = unit_of_tensor(m, i, &tie);
        if (unit == NONE) {
            return heft__fail_nomem(m->err, sizeof *r->units);
        }
        const bool tied = m->unit_of_tie[m->tree->tensors[i].first] != NONE;
        const uint32_t module =
            tied ? m->tree->tensors[i].module : m->site[m->tree->tensors[i].module];
        if (m->last_module[unit] != module) {
            m->last_module[unit] = module;
            r->order[r->order_count++] = unit;
        }
        r->unit_of[parameter_of(m, i)] = unit;
        r->units[unit].shown.parameter_count++;
    }
    return HEFT_OK;
}

/* ---- lists ----------------------------------------------------------------------------------- */
/* The bytes of a buffer that hold so many, wherever their file has them. */
static uint64_t room_of(uint64_t bytes)
{
    const uint64_t spare = bytes < HEFT__DIRECT_TENSOR ? 64 : HEFT__SPARE_BYTES;
    return (bytes + 63) / 64 * 64 + spare;
}

/* What a number of a unit's list stands for: the parameter that it is tied to, or a slice. */
static size_t root_of(const heft_residency *r, size_t number)
{
    return number < r->count ? r->model->parameters[number].tied_to : number;
}

static int by_place(const void *left, const void *right)
{
    const heft__brought *a = left, *b = right;
    return a->file != b->file       ? (a->file < b->file ? -1 : 1)
           : a->offset != b->offset ? (a->offset < b->offset ? -1 : 1)
                                    : (a->parameter > b->parameter) - (a->parameter < b->parameter);
}

/* Count a unit's parameters, once for all names of a tensor. */
static void count_parameters(struct making *m, uint32_t number)
{
    heft__unit *unit = &m->r->units[number];
    const heft_model *model = m->r->model;
    for (size_t k = 0; k < unit->shown.parameter_count; k++) {
        const size_t root = root_of(m->r, unit->shown.parameters[k]),
                     whole = heft__whole_of(m->r, root);
        if (m->last_unit[root] == number) {
            continue;
        }
        m->last_unit[root] = number;
        unit->shown.bytes += bytes_of(m->r, root);
        if (is_brought(model, whole)) {
            const heft__homes *homes = heft__model_homes(model);
            const size_t tensor = homes->source[whole];
            const uint64_t first = homes->first[whole] + heft__slice_first(m->r, root);
            unit->mappable &= model->parameters[whole].state == HEFT_PARAMETER_MAPPED;
            unit->shown.brought_bytes += bytes_of(m->r, root);
            unit->brought[unit->brought_count++] =
                (heft__brought){.parameter = root,
                                .file = homes->ckpt->infos[tensor].file_index,
                                .offset = heft__part_offset(homes->ckpt, tensor, first)};
        }
    }
}

/* Put what is brought in into the order of the files, and give it room. */
static void place_parameters(struct making *m, heft__unit *unit)
{
    const heft_model *model = m->r->model;
    qsort(unit->brought, unit->brought_count, sizeof *unit->brought, by_place);
    for (size_t i = 0; i < unit->brought_count; i++) {
        heft__brought *brought = &unit->brought[i];
        brought->at = unit->room;
        unit->room += room_of(bytes_of(m->r, brought->parameter));
        m->last_unit[brought->parameter] = (uint32_t)i; /* its number in the list, from here on */
    }
    for (size_t k = 0; k < unit->shown.parameter_count; k++) {
        const size_t number = unit->shown.parameters[k], root = root_of(m->r, number);
        m->r->brought_at[number] =
            is_brought(model, heft__whole_of(m->r, root)) ? m->last_unit[root] : SIZE_MAX;
    }
}

/* Put a tensor into the list of its unit; its slices into those of theirs. */
static void list_tensor(struct making *m, size_t *numbers, uint32_t tensor)
{
    heft_residency *r = m->r;
    const size_t parameter = parameter_of(m, tensor), first = r->slices[parameter];
    const size_t count = m->stack[m->tree->tensors[tensor].module];
    for (size_t i = 0; i < (count ? count : 1); i++) {
        const size_t number = count ? first + i : parameter;
        heft__unit *unit = &r->units[r->unit_of[number]];
        numbers[(size_t)(unit->shown.parameters - numbers) + unit->shown.parameter_count++] =
            number;
    }
}

/* A list of parameters for each unit, in the order of the tree. */
static heft_status list_parameters(struct making *m)
{
    heft_residency *r = m->r;
    size_t *numbers = heft__arena_array(&r->arena, r->all, sizeof *numbers), filled = 0;
    heft__brought *brought = heft__arena_array(&r->arena, r->all, sizeof *brought);
    if (!numbers || !brought) {
        return heft__fail_nomem(m->err, r->all * sizeof *brought);
    }
    for (size_t u = 0; u < r->unit_count; u++) {
        r->units[u].shown.parameters = numbers + filled;
        r->units[u].brought = brought + filled;
        r->units[u].mappable = true;
        filled += r->units[u].shown.parameter_count;
        r->units[u].shown.parameter_count = 0;
    }
    for (uint32_t i = 0; i < m->tree->tensor_count; i++) {
        list_tensor(m, numbers, i);
    }
    for (uint32_t u = 0; u < r->unit_count; u++) {
        count_parameters(m, u);
        place_parameters(m, &r->units[u]);
        r->placed_count += r->units[u].brought_count;
    }
    return HEFT_OK;
}

/* Where files are mapped of which a parameter is. */
static heft_status find_mappings(heft_residency *r, heft_error *err)
{
    const heft__homes *homes = heft__model_homes(r->model);
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    if (!homes) {
        return HEFT_OK;
    }
    r->mappings = heft__arena_array(&r->arena, homes->ckpt->file_count, sizeof *r->mappings);
    if (!r->mappings) {
        return heft__fail_nomem(err, homes->ckpt->file_count * sizeof *r->mappings);
    }
    for (size_t i = 0; i < r->placed_count; i++) {
        const size_t parameter = heft__whole_of(r, r->placed[i]), tensor = homes->source[parameter];
        heft__input *input = heft__file_of(homes->ckpt, tensor)->source;
        heft__mapping *mapping = &r->mappings[homes->ckpt->infos[tensor].file_index];
        const uint8_t *base;
        if (r->model->parameters[parameter].state == HEFT_PARAMETER_MAPPED && mapping->end == 0 &&
            heft__input_map(input, &base, NULL) == HEFT_OK) {
            mapping->start = (uintptr_t)base;
            mapping->end =
                ((uintptr_t)base + (uintptr_t)heft__input_size(input) + page - 1) / page * page;
        }
    }
    return HEFT_OK;
}

/* All that is brought in, in the order of the files. */
static heft_status place_all(struct making *m)
{
    heft_residency *r = m->r;
    const size_t bytes = r->placed_count * sizeof(heft__brought);
    heft__brought *all = heft__alloc(r->ctx, bytes);
    r->placed = heft__arena_array(&r->arena, r->placed_count, sizeof *r->placed);
    if (!all || !r->placed) {
        heft__free(r->ctx, all, bytes);
        return heft__fail_nomem(m->err, bytes);
    }
    size_t filled = 0;
    for (size_t u = 0; u < r->unit_count; u++) {
        const heft__unit *unit = &r->units[u];
        for (size_t i = 0; i < unit->brought_count; i++) {
            all[filled++] = unit->brought[i];
        }
    }
    qsort(all, filled, sizeof *all, by_place);
    for (size_t i = 0; i < filled; i++) {
        const size_t parameter = all[i].parameter;
        r->placed[i] = (uint32_t)parameter;
        r->units[r->unit_of[parameter]].brought[r->brought_at[parameter]].place = i;
    }
    heft__free(r->ctx, all, bytes);
    return HEFT_OK;
}

/* Where each module's tensors begin, and its unit. */
static void span_modules(struct making *m)
{
    heft_residency *r = m->r;
    uint32_t first = 0;
    for (uint32_t i = 0; i < m->tree->module_count; i++) {
        const heft__tree_module *module = &m->tree->modules[i];
        r->modules[i] = (heft__module_span){module->end, first, NONE};
        first += module->tensor_count;
        const bool layer = module->block && m->site[i] == i && m->unit_of_site[i] != NONE,
                   own = module->tensor_count > 0 && !layer;
        r->modules[i].unit = own ? (uint32_t)r->unit_of[r->tensors[r->modules[i].first_tensor]]
                                 : m->unit_of_site[m->site[i]];
    }
}

static uint8_t nothing; /* where a tensor without elements begins */

/* Tensors as they are lent: row by row, without memory yet. What they need outlives the model. */
static heft_status make_views(heft_residency *r, heft_error *err)
{
    for (size_t i = 0; i < r->all; i++) {
        const size_t whole = heft__whole_of(r, i),
                     part = whole != i; /* without its first dimension */
        const heft_parameter *parameter = &r->model->parameters[whole];
        const heft__binding *binding = &r->model->bindings[whole];
        const uint32_t rank = parameter->rank - (uint32_t)part;
        uint64_t *shape = heft__arena_array(&r->arena, 2 * (uint64_t)rank, sizeof *shape);
        if (!shape) {
            return heft__fail_nomem(err, 2 * rank * sizeof *shape);
        }
        int64_t *strides = (int64_t *)(shape + rank);
        for (uint32_t d = 0; d < rank; d++) {
            shape[d] = parameter->shape[d + part];
        }
        heft__shape_strides(shape, rank, strides);
        r->bound[i] = (heft__bound){
            binding->storage ? heft_storage_ref(binding->storage) : NULL,
            binding->byte_offset + (part ? (i - r->slices[whole]) * bytes_of(r, i) : 0),
            binding->storage && (heft_storage_flags(binding->storage) & HEFT_TENSOR_MAPPED)};
        r->views[i] = (heft_tensor){
            .dtype = parameter->dtype,
            .rank = rank,
            .shape = shape,
            .strides = strides,
            .size_bytes = bytes_of(r, i),
        };
        if (binding->storage && r->brought_at[i] == SIZE_MAX) {
            r->views[i].flags = r->bound[i].mapped ? HEFT_TENSOR_MAPPED : 0;
            r->views[i].data =
                (uint8_t *)heft_storage_data(binding->storage) + binding->byte_offset;
        } else if (parameter->state == HEFT_PARAMETER_DISK && parameter->size_bytes == 0) {
            r->views[i].data = &nothing;
        }
    }
    return HEFT_OK;
}

/* ---- making ---------------------------------------------------------------------------------- */
static heft_status make_lists(struct making *m)
{
    heft_residency *r = m->r;
    heft__arena *arena = &r->arena;
    const size_t tensors = m->tree->tensor_count, modules = m->tree->module_count;
    r->count = r->all = tensors;
    r->module_count = modules;
    r->tensors = heft__arena_array(arena, tensors, sizeof *r->tensors);
    for (uint32_t i = 0; r->tensors && i < tensors; i++) {
        r->tensors[i] = m->tree->tensors[i].parameter;
    }
    const heft_status status =
        r->tensors ? mark_stacks(m) : heft__fail_nomem(m->err, tensors * sizeof *r->tensors);
    if (status != HEFT_OK) {
        return status;
    }
    r->order = heft__arena_array(arena, r->all, sizeof *r->order);
    r->unit_of = heft__arena_array(arena, r->all, sizeof *r->unit_of);
    r->brought_at = heft__arena_array(arena, r->all, sizeof *r->brought_at);
    r->views = heft__arena_array(arena, r->all, sizeof *r->views);
    r->bound = heft__arena_array(arena, r->all, sizeof *r->bound);
    r->modules = heft__arena_array(arena, modules, sizeof *r->modules);
    m->site = heft__arena_array(&m->keys, modules, sizeof *m->site);
    m->group = heft__arena_array(&m->keys, modules, sizeof *m->group);
    m->unit_of_site = heft__arena_array(&m->keys, modules, sizeof *m->unit_of_site);
    m->unit_of_tie = heft__arena_array(&m->keys, tensors, sizeof *m->unit_of_tie);
    m->last_module = heft__arena_array(&m->keys, r->all, sizeof *m->last_module);
    m->last_unit = heft__arena_array(&m->keys, r->all, sizeof *m->last_unit);
    m->holders = heft__arena_array(&m->keys, tensors, sizeof *m->holders);
    if (!r->order || !r->unit_of || !r->brought_at || !r->views || !r->bound || !r->modules ||
        !m->site || !m->group || !m->unit_of_site || !m->unit_of_tie || !m->last_module ||
        !m->last_unit || !m->holders) {
        return heft__fail_nomem(m->err, r->all * sizeof *r->views);
    }
    memset(m->unit_of_site, 0xff, modules * sizeof *m->unit_of_site);
    memset(m->unit_of_tie, 0xff, tensors * sizeof *m->unit_of_tie);
    memset(m->last_unit, 0xff, r->all * sizeof *m->last_unit);
    return HEFT_OK;
}

heft_status heft__units_make(heft_residency *r, heft_error *err)
{
    heft__tree *tree = NULL;
    heft_status status = heft__tree_of_model(r->model, &tree, err);
    if (status != HEFT_OK) {
        return status;
    }
    struct making m = {.r = r, .tree = tree, .err = err};
    heft__arena_init(&m.keys, r->ctx);
    heft__map_init(&m.tied, r->ctx);
    status = make_lists(&m);
    if (status == HEFT_OK) {
        mark_sites(&m);
        status = number_units(&m);
    }
    if (status == HEFT_OK) {
        status = list_parameters(&m);
    }
    if (status == HEFT_OK) {
        status = place_all(&m);
    }
    if (status == HEFT_OK) {
        status = find_mappings(r, err);
    }
    if (status == HEFT_OK) {
        span_modules(&m);
        status = make_views(r, err);
    }
    heft__map_fini(&m.tied);
    heft__arena_fini(&m.keys);
    heft__tree_free(tree);
    return status;
}

/* ---- looking --------------------------------------------------------------------------------- */
uint64_t heft__units_two_neighbors(const heft_residency *r, const heft__schedule *schedule)
{
    uint64_t largest = 0, first = 0, before = 0, now = 0;
    uint32_t group = NONE, first_group = NONE;
    for (size_t i = 0; i < schedule->count; i++) {
        const heft__unit *unit = &r->units[schedule->units[i]];
        if (unit->shown.brought_bytes == 0) {
            continue;
        }
        if (unit->group != group) { /* a run of one layer's units is over */
            first = first > 0 ? first : now;
            first_group = first_group == NONE ? unit->group : first_group;
            before = now;
            now = 0;
            group = unit->group;
        }
        now += unit->shown.brought_bytes;
        largest = before + now > largest ? before + now : largest;
    }
    if (schedule->repeat == 0 && group != first_group && now + first > largest) {
        largest = now + first; /* the last is followed by the first */
    }
    return largest;
}

size_t heft_residency_count(const heft_residency *r)
{
    return r->unit_count;
}

const heft_unit *heft_residency_unit(const heft_residency *r, size_t i)
{
    return i < r->unit_count ? &r->units[i].shown : NULL;
}

size_t heft_residency_find_parameter(const heft_residency *r, size_t parameter)
{
    return parameter < r->count ? r->unit_of[parameter] : SIZE_MAX;
}

size_t heft__unit_of_stacked(const heft_residency *r, size_t module, size_t expert)
{
    const size_t last =
        module + 1 < r->module_count ? r->modules[module + 1].first_tensor : r->count;
    for (size_t i = r->modules[module].first_tensor; i < last; i++) {
        const size_t parameter = r->tensors[i];
        if (r->slices[parameter] != SIZE_MAX && expert < r->model->parameters[parameter].shape[0]) {
            return r->unit_of[r->slices[parameter] + expert];
        }
    }
    return SIZE_MAX;
}

size_t heft_residency_find_module(const heft_residency *r, size_t module)
{
    return module < r->module_count && r->modules[module].unit != NONE ? r->modules[module].unit
                                                                       : SIZE_MAX;
}

/* Whether a unit has a parameter in the subtree [module, end) of the modules. */
static bool has_unit(const heft_residency *r, size_t unit, size_t module, size_t end)
{
    const heft_unit *shown = &r->units[unit].shown;
    bool around = false; /* it is that of a layer or expert in which the module lies */
    for (size_t i = 0; i < shown->module_count; i++) {
        const size_t own = shown->modules[i];
        if (own >= module && own < end) {
            return true;
        }
        around = around || (own < module && r->modules[own].end > module);
    }
    if (around) {
        const size_t last = end < r->module_count ? r->modules[end].first_tensor : r->count;
        for (size_t i = r->modules[module].first_tensor; i < last; i++) {
            if (r->unit_of[r->tensors[i]] == unit) {
                return true;
            }
        }
    }
    return false;
}

size_t heft_residency_find_units(const heft_residency *r, size_t module, size_t *units, size_t cap)
{
    size_t count = 0;
    for (size_t u = 0; module < r->module_count && u < r->unit_count; u++) {
        if (has_unit(r, u, module, r->modules[module].end)) {
            if (count < cap) {
                units[count] = u;
            }
            count++;
        }
    }
    return count;
}
