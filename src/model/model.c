/* model.c - the empty model: made by a family's builder, looked at by everybody, bound by load/.
 *
 *   parameters [ state dict, in its order | transient buffers ]
 *   rules      [ the same places                              ]
 *   bindings   [ the same places                              ]
 *   places     [ the same places                              ]
 *
 * All of it lies in one arena; the bytes of tensors never do: they are storages. Not done here:
 * reading weights (load/).
 *
 * Source: docs/models.md. */
#include "model/model.h"

#include "model/skeleton.h"

#include <assert.h>

/* ---- from the builder to the model ----------------------------------------------------------- */
static void begin_run(heft__skeleton *s)
{
    s->std = 0.02F;
    s->object = s->config->root;
    s->path_length = s->last_length = s->depth = s->parts = 0;
    s->path[0] = s->last[0] = '\0';
    s->saved_count = s->transient_count = s->tie_count = s->cache_count = 0;
    s->inner_count = 0;
    s->has_inner = s->model->family->inner_names != NULL;
    s->total_bytes = s->tree_bytes = 0;
    s->module_count = 1; /* the root, whose path is "" */
    s->chain[0] = 0;
}

/* ---- names -> numbers ------------------------------------------------------------------------ */
/* Open addressing over the numbers alone: a tenth of a heft__map's memory, which counts with 50,000
 * names. The slot where a name is, or the free one where it belongs. The multiplier differs from
 * run to run, so that names cannot be chosen to collide. */
static uint32_t *name_slot(const heft_model *model, const char *name)
{
    const uint64_t multiplier = (uint64_t)(uintptr_t)model * 2 + 0x9E3779B97F4A7C15U;
    const size_t mask = model->name_slot_count - 1;
    uint64_t hash = heft__stable_hash(name, strlen(name)) * (multiplier | 1);
    size_t at = (size_t)(hash >> 32) & mask;
    while (model->name_slots[at] &&
           strcmp(model->parameters[model->name_slots[at] - 1].name, name) != 0) {
        at = (at + 1) & mask;
    }
    return &model->name_slots[at];
}

size_t heft_model_find(const heft_model *model, const char *name)
{
    return (size_t)*name_slot(model, name) - 1; /* SIZE_MAX for a free slot */
}

/* A power of two of which at most two thirds are used. */
static size_t slots_for(size_t count)
{
    size_t slots = 2;
    while (slots / 3 * 2 <= count) {
        slots *= 2;
    }
    return slots;
}

static void index_names(heft_model *model)
{
    for (size_t i = 0; i < model->count; i++) {
        uint32_t *slot = name_slot(model, model->parameters[i].name);
        assert(*slot == 0); /* a family lists every name once */
        *slot = (uint32_t)i + 1;
    }
}

/* ---- building -------------------------------------------------------------------------------- */
/* Room for what the first run has counted. */
static heft_status make_room(heft__skeleton *s, heft_error *err)
{
    heft_model *model = s->model;
    heft__arena *arena = &model->arena;
    const size_t count = s->saved_count + s->transient_count;
    if (count >= UINT32_MAX / 2) {
        return heft__fail(err, HEFT_LIMIT, "the model has %zu tensors", count);
    }
    model->name_slot_count = slots_for(count);
    model->name_slots = heft__arena_array(arena, model->name_slot_count, sizeof *model->name_slots);
    model->modules = heft__arena_array(arena, s->module_count, sizeof *model->modules);
    model->module_parameters = heft__arena_array(arena, count, sizeof *model->module_parameters);
    model->parameters = heft__arena_array(arena, count, sizeof *model->parameters);
    model->rules = heft__arena_array(arena, count, sizeof *model->rules);
    model->bindings = heft__arena_array(arena, count, sizeof *model->bindings);
    if (s->has_inner) {
        model->places = heft__arena_array(arena, count, sizeof *model->places);
    }
    s->ties = heft__arena_array(arena, s->tie_count, sizeof *s->ties);
    model->caches = heft__arena_array(arena, s->cache_count, sizeof *model->caches);
    if (!model->name_slots || !model->modules || !model->module_parameters || !model->parameters ||
        !model->rules || !model->bindings || (!model->places && (s->has_inner)) || !s->ties ||
        !model->caches) {
        return heft__fail(err, HEFT_NOMEM, "no memory for a list of %zu parameters", count);
    }
    model->modules[0] = (heft_module){.path = "",
                                      .name = "",
                                      .class_name = model->class_name,
                                      .kind = HEFT_MODULE_MODEL,
                                      .parent = SIZE_MAX};
    model->module_count = s->module_count;
    model->count = count;
    model->cache_count = s->cache_count;
    s->saved_total = s->saved_count;
    return HEFT_OK;
}

/* What is stored in the place of a parameter; NULL: itself. */
static const heft__packed *packed_as(const heft__skeleton *s, const char *name)
{
    const size_t found =
        s->packing ? heft__map_get(&s->packing->names, name, strlen(name)) : HEFT__MAP_NONE;
    return found == HEFT__MAP_NONE ? NULL : &s->packing->weights[found];
}

/* The parameter that a part of one is stored as. */
static size_t find_part(const heft_model *model, const char *name, const char *part)
{
    char path[HEFT__SKELETON_NAME];
    const char *dot = strrchr(name, '.');
    const int length =
        snprintf(path, sizeof path, "%.*s%s", dot ? (int)(dot + 1 - name) : 0, name, part);
    return length > 0 && (size_t)length < sizeof path ? heft_model_find(model, path) : SIZE_MAX;
}

/* What is stored packed has its own bytes, but where it is there for both. */
static void tie_packed(const heft__skeleton *s, const heft__skeleton_tie *tie)
{
    const heft__packed *to = packed_as(s, tie->target), *from = packed_as(s, tie->source);
    const size_t count = to && from && to->list == from->list
                             ? (to->count < from->count ? to->count : from->count)
                             : 0;
    for (size_t k = 0; k < count; k++) {
        const size_t target = find_part(s->model, tie->target, to->list[k].name),
                     source = find_part(s->model, tie->source, to->list[k].name);
        if (target != SIZE_MAX && source != SIZE_MAX) {
            s->model->parameters[target].tied_to = s->model->parameters[source].tied_to;
        }
    }
}

static heft_status tie_parameters(const heft__skeleton *s, heft_error *err)
{
    heft_parameter *parameters = s->model->parameters;
    s->model->has_ties = s->tie_count > 0;
    for (size_t i = 0; i < s->tie_count; i++) {
        const heft__skeleton_tie *tie = &s->ties[i];
        if (packed_as(s, tie->target) || packed_as(s, tie->source)) {
            tie_packed(s, tie);
            continue;
        }
        size_t target = heft_model_find(s->model, tie->target),
               source = heft_model_find(s->model, tie->source);
        assert(target != SIZE_MAX && source != SIZE_MAX); /* of one family's own names */
        if (!heft__shape_equal(parameters[target].shape, parameters[target].rank,
                               parameters[source].shape, parameters[source].rank)) {
            heft_status status = heft__fail(
                err, HEFT_FORMAT, "cannot be tied to '%.100s': their shapes differ", tie->source);
            return heft__add_item(status, err, tie->target);
        }
        parameters[target].tied_to = parameters[source].tied_to;
    }
    return HEFT_OK;
}

static heft_status run(heft__skeleton *s, const heft__class *class, heft_error *err)
{
    begin_run(s);
    class->build(s);
    if (s->status != HEFT_OK && err) {
        *err = s->error;
    }
    return s->status;
}

static heft_status fill_model(heft_model *model, const heft__recipe *recipe, heft_error *err)
{
    const heft__class *class = recipe->class;
    heft__skeleton s = {
        .model = model, .config = model->config, .user = recipe->user, .numbers = recipe->numbers};
    s.packing = recipe->packing;
    heft_status status = run(&s, class, err);
    if (status == HEFT_OK) {
        status = make_room(&s, err);
    }
    if (status == HEFT_OK) {
        s.filling = true;
        status = run(&s, class, err);
    }
    if (status == HEFT_OK) {
        assert(s.saved_count == s.saved_total && s.saved_count + s.transient_count == model->count);
        model->inner_count = s.inner_count;
        status = s.natural_order ? heft__order_naturally(model, s.saved_count, err) : HEFT_OK;
    }
    if (status == HEFT_OK) {
        index_names(model);
        status = tie_parameters(&s, err);
    }
    if (status == HEFT_OK) {
        status = heft__modules_finish(model, err);
    }
    return status == HEFT_OK && !model->known_family ? heft__modules_find_lists(model, err)
                                                     : status;
}

const heft_config *heft__model_config(const heft_model *model)
{
    return model->config;
}

heft_status heft__model_read(const heft_model *model, void (*read)(heft__skeleton *s, void *out),
                             void *out, heft_error *err)
{
    heft__skeleton s = {.model = (heft_model *)model, .config = model->config}; /* not changed */
    begin_run(&s);
    read(&s, out);
    if (s.status != HEFT_OK && err) {
        *err = s.error;
    }
    return s.status;
}

static size_t list_length(const char *const *list)
{
    size_t count = 0;
    while (list && list[count]) {
        count++;
    }
    return count;
}

/* Copies of the names: a class that is not registered may not live as long as the model. */
static heft_status take_names(heft_model *model, const heft__recipe *recipe, heft_error *err)
{
    const char *type = heft_config_model_type(recipe->config), *name = recipe->class->name;
    type = *type ? type : recipe->family->model_type;
    model->class_name = heft__arena_text(&model->arena, name, strlen(name));
    model->model_type = heft__arena_text(&model->arena, type, strlen(type));
    return model->class_name && model->model_type ? HEFT_OK : heft__fail_nomem(err, 0);
}

heft_status heft__model_build(heft_ctx *ctx, const heft__recipe *recipe, heft_model **out,
                              heft_error *err)
{
    const heft__family *family = recipe->family;
    heft_model *model = heft__alloc_zero(ctx, 1, sizeof *model);
    if (!model) {
        return heft__fail_nomem(err, sizeof *model);
    }
    model->ctx = heft__ctx_ref(ctx);
    heft__arena_init(&model->arena, ctx);
    model->base_prefix = family->base_prefix;
    model->family = family;
    model->dtype = recipe->dtype == HEFT_DTYPE_NONE ? HEFT_DTYPE_F32 : recipe->dtype;
    model->keep_f32 = recipe->keep_f32;
    model->packed = recipe->packing != NULL;
    model->known_family = recipe->user == NULL;
    model->no_split = family->no_split;
    model->no_split_count = list_length(family->no_split);
    heft_status status = take_names(model, recipe, err);
    if (status == HEFT_OK) {
        status = heft__config_copy(recipe->config, &model->config, err);
    }
    if (status == HEFT_OK) {
        status = fill_model(model, recipe, err);
    }
    if (status == HEFT_OK) {
        *out = model;
    } else {
        heft_model_free(model);
    }
    return heft__add_path(status, err, recipe->config->path);
}

heft_status heft_model_new(heft_ctx *ctx, const heft_config *config, const char *class_name,
                           heft_dtype dtype, heft_model **out, heft_error *err)
{
    heft__recipe recipe = {.config = config, .dtype = dtype};
    if (!ctx || !config || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, config or result is NULL");
    }
    if (dtype != HEFT_DTYPE_NONE && !heft__dtype_is_wide_float(dtype)) {
        return heft__fail(err, HEFT_INVALID_ARG, "a model cannot have dtype %s",
                          heft_dtype_name(dtype));
    }
    heft_status status = heft__class_find(config, class_name, &recipe.family, &recipe.class, err);
    return status == HEFT_OK ? heft__model_build(ctx, &recipe, out, err) : status;
}

void heft_model_free(heft_model *model)
{
    if (!model) {
        return;
    }
    heft_ctx *ctx = model->ctx;
    for (size_t i = 0; model->bindings && i < model->count; i++) {
        heft_storage_unref(model->bindings[i].storage);
    }
    if (model->homes) {
        model->free_homes(model->homes);
    }
    if (model->compact) {
        heft__free(ctx, model->compact, model->count * sizeof *model->compact);
    }
    heft_config_free(model->config);
    heft__arena_fini(&model->arena);
    heft__free(ctx, model, sizeof *model);
    heft_ctx_free(ctx);
}

/* ---- looking --------------------------------------------------------------------------------- */
const char *heft_model_class(const heft_model *model)
{
    return model->class_name;
}

const char *heft_model_type(const heft_model *model)
{
    return model->model_type;
}

heft_dtype heft_model_dtype(const heft_model *model)
{
    return model->dtype;
}

size_t heft_model_count(const heft_model *model)
{
    return model->count;
}

const heft_parameter *heft_model_parameter(const heft_model *model, size_t i)
{
    return i < model->count ? &model->parameters[i] : NULL;
}

const char *heft_model_no_split(const heft_model *model, size_t i)
{
    return i < model->no_split_count ? model->no_split[i] : NULL;
}

uint64_t heft_model_elements(const heft_model *model)
{
    uint64_t sum = 0;
    if (model->packed_elems) {
        return model->packed_elems;
    }
    for (size_t i = 0; i < model->count; i++) {
        const heft_parameter *parameter = &model->parameters[i];
        uint64_t elems;
        if (parameter->kind == HEFT_PARAMETER_WEIGHT && parameter->tied_to == i &&
            heft__shape_elems(parameter->shape, parameter->rank, &elems)) {
            sum += elems; /* the builder has bounded the sum */
        }
    }
    return sum;
}

uint64_t heft_model_bytes(const heft_model *model)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < model->count; i++) {
        const heft_parameter *parameter = &model->parameters[i];
        if (parameter->kind != HEFT_PARAMETER_BUFFER_TRANSIENT && parameter->tied_to == i) {
            sum += parameter->size_bytes;
        }
    }
    return sum;
}

/* ---- bindings -------------------------------------------------------------------------------- */
void heft__model_bind(heft_model *model, size_t i, heft_storage *storage, uint64_t byte_offset,
                      heft_parameter_state state)
{
    heft_storage_unref(model->bindings[i].storage);
    if (model->compact) {
        model->compact[i] = NULL;
    }
    model->bindings[i] = (heft__binding){.storage = storage, .byte_offset = byte_offset};
    model->parameters[i].state = state;
}

const char *heft__why_absent(heft_parameter_state state)
{
    return state == HEFT_PARAMETER_DISK ? "is not in memory: it stays in its file"
                                        : "has no value: the model has no weights for it";
}

heft_status heft_model_tensor(const heft_model *model, size_t i, heft_tensor **out, heft_error *err)
{
    if (!model || !out || i >= model->count) {
        return heft__fail(err, HEFT_INVALID_ARG, "parameter index %zu is out of range", i);
    }
    const heft_parameter *parameter = &model->parameters[i];
    const heft__binding *binding = &model->bindings[i];
    const heft_tensor_spec spec =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = parameter->dtype, .rank = parameter->rank,
                     .shape = parameter->shape, .offset_bytes = binding->byte_offset);
    heft_status status =
        heft__model_compact(model, i) ? heft__fail(err, HEFT_UNSUPPORTED, "%s", HEFT__IS_COMPACT)
        : binding->storage
            ? heft_tensor_new(binding->storage, &spec, out, err)
            : heft__fail(err, HEFT_NOT_FOUND, "%s", heft__why_absent(parameter->state));
    return heft__add_item(status, err, parameter->name);
}

/* ---- setting --------------------------------------------------------------------------------- */
/* Whether elements lie row by row, without gaps. */
static bool is_plain(const heft_tensor *tensor)
{
    uint64_t step = 1;
    bool plain = true;
    for (uint32_t d = tensor->rank; d-- > 0;) {
        if (tensor->shape[d] == 0) {
            return true;
        }
        plain = plain && (tensor->shape[d] == 1 || (uint64_t)tensor->strides[d] == step);
        step *= tensor->shape[d];
    }
    return plain;
}

/* Whether a tensor can be a parameter's value. */
static heft_status check_value(const heft_parameter *parameter, const heft_tensor *tensor,
                               heft_error *err)
{
    char theirs[HEFT__SHAPE_TEXT], ours[HEFT__SHAPE_TEXT];
    if (tensor->dtype != parameter->dtype) {
        return heft__fail(err, HEFT_MISMATCH, "dtype %s in tensor, %s in model",
                          heft_dtype_name(tensor->dtype), heft_dtype_name(parameter->dtype));
    }
    heft__shape_text(tensor->shape, tensor->rank, theirs);
    if (!heft__shape_equal(tensor->shape, tensor->rank, parameter->shape, parameter->rank)) {
        return heft__fail(err, HEFT_MISMATCH, "shape %s in tensor, %s in model", theirs,
                          heft__shape_text(parameter->shape, parameter->rank, ours));
    }
    if (tensor->device != HEFT_DEVICE_CPU) {
        return heft__fail(err, HEFT_UNSUPPORTED,
                          "the tensor is on device %d, a model is in the "
                          "CPU's memory",
                          (int)tensor->device);
    }
    return is_plain(tensor) ? HEFT_OK
                            : heft__fail(err, HEFT_INVALID_ARG,
                                         "the tensor of shape %s is not contiguous", theirs);
}

/* What nobody may write is as good as mapped: a load into the model replaces it. */
static heft_parameter_state state_of(const heft_storage *storage)
{
    const uint32_t flags = heft_storage_flags(storage);
    return flags & HEFT_TENSOR_SHARED                                        ? HEFT_PARAMETER_SHARED
           : (flags & HEFT_TENSOR_MAPPED) || !(flags & HEFT_TENSOR_WRITABLE) ? HEFT_PARAMETER_MAPPED
                                                                             : HEFT_PARAMETER_OWNED;
}

heft_status heft_model_set(heft_model *model, const char *name, const heft_tensor *tensor,
                           heft_error *err)
{
    if (!model || !name || !tensor) {
        return heft__fail(err, HEFT_INVALID_ARG, "model, name or tensor is NULL");
    }
    const size_t number = heft_model_find(model, name);
    heft_status status = number != SIZE_MAX
                             ? check_value(&model->parameters[number], tensor, err)
                             : heft__fail(err, HEFT_NOT_FOUND, "the model has no such parameter");
    if (status != HEFT_OK) {
        return heft__add_item(status, err, name);
    }
    const size_t root = model->parameters[number].tied_to;
    heft_storage *storage = heft_storage_ref(tensor->storage); /* the model may have the last one */
    const uint64_t start = tensor->offset_bytes;
    /* many are set one after the other, and few models have ties: do not look for any in others */
    const size_t first = model->has_ties ? 0 : number,
                 end = model->has_ties ? model->count : number + 1;
    for (size_t i = first; i < end; i++) {
        if (model->parameters[i].tied_to == root) {
            heft__model_bind(model, i, heft_storage_ref(storage), start, state_of(storage));
            model->bindings[i].given = true;
        }
    }
    heft_storage_unref(storage);
    return HEFT_OK;
}
