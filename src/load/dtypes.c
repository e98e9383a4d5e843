/* dtypes.c - other dtypes of parts of a model than its own: of a sub-model, or of modules that stay float32.
 *
 * Names are those of heft_plan_options.dtypes: paths, ends of paths, classes, tensors. What is stored quantized
 * is never cast.
 * Source: docs/loading.md [4]. */
#include "load/load.h"

static bool matches(const heft_module *module, const char *name)
{
    return (*name && strcmp(module->class_name, name) == 0) || heft__names_path(module->path, name);
}

/* The innermost name decides, of several for one thing the last. */
static void find_dtypes(const heft_model *model, const heft_module_dtype *entry, bool *found,
                        heft_dtype *modules, heft_dtype *parameters, size_t count)
{
    for (size_t i = 0; i < model->module_count; i++) {
        const heft_module *module = &model->modules[i];
        modules[i] = i > 0 ? modules[module->parent] : HEFT_DTYPE_NONE;
        for (size_t k = 0; k < count; k++) {
            if (matches(module, entry[k].name)) {
                modules[i] = entry[k].dtype;
                found[k] = true;
            }
        }
    }
    for (size_t i = 0; i < model->count; i++) {
        parameters[i] = modules[model->parameters[i].module];
        for (size_t k = 0; k < count; k++) {
            if (heft__names_path(model->parameters[i].name, entry[k].name)) {
                parameters[i] = entry[k].dtype;
                found[k] = true;
            }
        }
    }
}

static heft_status check(const heft_module_dtype *list, size_t count, heft_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (!list[i].name) {
            return heft__fail(err, HEFT_INVALID_ARG, "entry %zu of dtypes has no name", i);
        }
        if (!heft_dtype_is_floating(list[i].dtype) ||
            !heft__cast_known(HEFT_DTYPE_F32, list[i].dtype)) {
            return heft__add_item(heft__fail(err, HEFT_INVALID_ARG, "cannot have dtype %s",
                                             heft_dtype_name(list[i].dtype)),
                                  err, list[i].name);
        }
    }
    return HEFT_OK;
}

static heft_status set_dtypes(heft_model *model, const heft_dtype *dtypes, heft_error *err)
{
    for (size_t i = 0; i < model->count; i++) {
        heft_parameter *parameter = &model->parameters[i];
        const heft_dtype dtype = dtypes[i];
        if (dtype == HEFT_DTYPE_NONE || !heft_dtype_is_floating(parameter->dtype) ||
            parameter->kind == HEFT_PARAMETER_BUFFER_TRANSIENT) {
            continue;
        }
        parameter->dtype = dtype;
        if (!heft__shape_bytes(dtype, parameter->shape, parameter->rank, &parameter->size_bytes)) {
            return heft__add_item(
                heft__fail(err, HEFT_LIMIT, "has no size as %s", heft_dtype_name(dtype)), err,
                parameter->name);
        }
    }
    return heft__modules_measure(model, err);
}

heft_status heft__model_dtypes(const heft_model *model, const heft_module_dtype *list, size_t count,
                               heft_dtype *dtypes, heft_error *err)
{
    heft__arena arena;
    heft_status status = check(list, count, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft__arena_init(&arena, model->ctx);
    bool *found = heft__arena_array(&arena, count, sizeof *found);
    heft_dtype *modules = heft__arena_array(&arena, model->module_count, sizeof *modules);
    heft_dtype *own = heft__arena_array(&arena, model->count + 1, sizeof *own);
    if (!found || !modules || !own) {
        status = heft__fail_nomem(err, model->count * sizeof *own);
    } else {
        find_dtypes(model, list, found, modules, own, count);
    }
    for (size_t k = 0; status == HEFT_OK && k < count; k++) {
        if (!found[k]) {
            status = heft__fail(err, HEFT_MISMATCH, "is not a module or tensor of the model");
            heft__add_item(status, err, list[k].name);
        }
    }
    for (size_t i = 0; status == HEFT_OK && i < model->count; i++) {
        dtypes[i] = own[model->parameters[i].tied_to];
    }
    heft__arena_fini(&arena);
    return status;
}

heft_status heft__model_retype(heft_model *model, const heft_module_dtype *list, size_t count,
                               heft_error *err)
{
    const size_t bytes = (model->count + 1) * sizeof(heft_dtype);
    heft_dtype *dtypes = count ? heft__alloc(model->ctx, bytes) : NULL;
    heft_status status = HEFT_OK;
    if (count) {
        status = dtypes ? heft__model_dtypes(model, list, count, dtypes, err)
                        : heft__fail_nomem(err, bytes);
    }
    if (count && status == HEFT_OK) {
        status = set_dtypes(model, dtypes, err);
    }
    heft__free(model->ctx, dtypes, bytes);
    return status;
}

static heft_status check_empty(const heft_model *model, heft_error *err)
{
    for (size_t i = 0; i < model->count; i++) {
        if (model->bindings[i].storage) {
            return heft__add_item(heft__fail(err, HEFT_INVALID_ARG,
                                             "has a value: only an empty model can be retyped"),
                                  err, model->parameters[i].name);
        }
    }
    return HEFT_OK;
}

heft_status heft_model_retype(heft_model *model, const heft_module_dtype *dtypes, size_t count,
                              heft_error *err)
{
    if (!model || (!dtypes && count)) {
        return heft__fail(err, HEFT_INVALID_ARG, "model or list is NULL");
    }
    const heft_status status = check_empty(model, err);
    return status == HEFT_OK ? heft__model_retype(model, dtypes, count, err) : status;
}

heft_status heft_model_keep_float32(heft_model *model, heft_error *err)
{
    if (!model) {
        return heft__fail(err, HEFT_INVALID_ARG, "model is NULL");
    }
    const size_t bytes = (model->count + 1) * sizeof(heft_dtype);
    heft_status status = check_empty(model, err);
    heft_dtype *dtypes = status == HEFT_OK ? heft__alloc(model->ctx, bytes) : NULL;
    if (status == HEFT_OK && !dtypes) {
        status = heft__fail_nomem(err, bytes);
    }
    if (status == HEFT_OK) {
        for (size_t i = 0; i < model->count; i++) {
            const heft_parameter *saved = &model->parameters[model->parameters[i].tied_to];
            const bool keep = heft__family_keeps_float32(model->family, saved->dtype, saved->name);
            dtypes[i] = keep ? HEFT_DTYPE_F32 : saved->dtype;
        }
        status = set_dtypes(model, dtypes, err);
    }
    heft__free(model->ctx, dtypes, bytes);
    return status;
}

heft_status heft__packed_refuse_casts(const heft_source *source, const heft_model *model,
                                      const heft__match *match, heft_error *err)
{
    for (size_t i = 0; heft__source_is_packed(source) && i < model->count; i++) {
        const size_t tensor = match->source[i];
        const heft_dtype to = model->parameters[i].dtype;
        if (tensor != HEFT__NO_TENSOR && source->quant.owner[tensor] != HEFT__NO_PART &&
            source->ckpt->infos[tensor].dtype != to) {
            return heft__add_item(
                heft__fail(err, HEFT_UNSUPPORTED,
                           "is part of a quantized weight (%.40s) and cannot be cast to %s: "
                           "dequantize the checkpoint",
                           source->quant.method, heft_dtype_name(to)),
                err, model->parameters[i].name);
        }
    }
    return HEFT_OK;
}
