/* modules.c - the tree of a model's modules: numbered in pre-order, looked up once and used by number.
 *
 *   modules     [ root | its first child | that one's first child | ... ]   end: after the subtree
 *   parameters  [ the root's own | its first child's own | ... ]            numbers of parameters
 *
 * The builder (skeleton.c) lists modules and says of each parameter in which it is; the rest is made
 * here, when the order of the parameters is settled.
 *
 * Source: docs/models.md. */
#include "model/skeleton.h"

/* ---- making ---------------------------------------------------------------------------------- */
/* From parents to ends: a subtree ends where the one of its last module does. */
static void find_ends(heft_model *model)
{
    for (size_t i = model->module_count; i-- > 0;) {
        heft_module *module = &model->modules[i];
        if (module->end == 0) {
            module->end = i + 1;
        }
        if (i > 0 && model->modules[module->parent].end < module->end) {
            model->modules[module->parent].end = module->end;
        }
    }
}

/* Each module's own parameters: weights, then buffers, in the order of the state dict. */
static void list_parameters(heft_model *model)
{
    size_t at = 0;
    for (size_t i = 0; i < model->count; i++) {
        model->modules[model->parameters[i].module].parameter_count++;
    }
    for (size_t m = 0; m < model->module_count; m++) {
        heft_module *module = &model->modules[m];
        module->parameters = &model->module_parameters[at];
        at += module->parameter_count;
        module->parameter_count = 0;
    }
    for (int buffers = 0; buffers < 2; buffers++) {
        for (size_t i = 0; i < model->count; i++) {
            const heft_parameter *parameter = &model->parameters[i];
            if ((parameter->kind != HEFT_PARAMETER_WEIGHT) == (buffers == 1)) {
                heft_module *module = &model->modules[parameter->module];
                const size_t first = (size_t)(module->parameters - model->module_parameters);
                model->module_parameters[first + module->parameter_count++] = i;
            }
        }
    }
}

/* A tied parameter counts in the modules that hold none of its other names: modules come in pre-
 * order, so those above the name that came before it hold one. */
static void measure(heft_model *model, size_t *last)
{
    for (size_t m = 0; m < model->module_count; m++) {
        model->modules[m].bytes = 0;
    }
    for (size_t k = 0; k < model->count; k++) { /* module by module */
        const heft_parameter *parameter = &model->parameters[model->module_parameters[k]];
        size_t *before = &last[parameter->tied_to];
        if (parameter->kind == HEFT_PARAMETER_BUFFER_TRANSIENT) {
            continue;
        }
        for (size_t m = parameter->module; m != SIZE_MAX; m = model->modules[m].parent) {
            if (*before != SIZE_MAX && *before >= m && *before < model->modules[m].end) {
                break;
            }
            model->modules[m].bytes += parameter->size_bytes;
        }
        *before = parameter->module;
    }
}

heft_status heft__modules_measure(heft_model *model, heft_error *err)
{
    size_t *last = heft__alloc(model->ctx, model->count * sizeof *last);
    if (!last) {
        return heft__fail_nomem(err, model->count * sizeof *last);
    }
    for (size_t i = 0; i < model->count; i++) {
        last[i] = SIZE_MAX;
    }
    measure(model, last);
    heft__free(model->ctx, last, model->count * sizeof *last);
    return HEFT_OK;
}

heft_status heft__modules_finish(heft_model *model, heft_error *err)
{
    find_ends(model);
    list_parameters(model);
    heft__modules_mark(model);
    return heft__modules_measure(model, err);
}

/* ---- flags ----------------------------------------------------------------------------------- */
static bool stays_whole(const heft_model *model, const char *class_name)
{
    for (size_t i = 0; i < model->no_split_count; i++) {
        if (strcmp(model->no_split[i], class_name) == 0) {
            return true;
        }
    }
    return false;
}

void heft__modules_mark(heft_model *model)
{
    size_t whole_end = 0, layer_end = 0; /* of the one that was marked last */
    for (size_t i = 0; i < model->module_count; i++) {
        heft_module *module = &model->modules[i];
        if (i >= whole_end && stays_whole(model, module->class_name)) {
            module->no_split = module->unit = true;
            whole_end = module->end;
        }
        if (module->kind == HEFT_MODULE_LAYER && i >= layer_end) {
            module->unit = true;
            layer_end = module->end;
        }
        module->unit = module->unit || module->kind == HEFT_MODULE_EXPERT;
    }
}

/* ---- looking --------------------------------------------------------------------------------- */
size_t heft_model_module_count(const heft_model *model)
{
    return model->module_count;
}

const heft_module *heft_model_module(const heft_model *model, size_t i)
{
    return i < model->module_count ? &model->modules[i] : NULL;
}

size_t heft_model_find_module(const heft_model *model, size_t parent, const char *relative)
{
    if (parent >= model->module_count || !*relative) {
        return parent < model->module_count ? parent : SIZE_MAX;
    }
    for (size_t at = parent, child = parent + 1; child < model->modules[at].end;) {
        const heft_module *module = &model->modules[child];
        const size_t length = strlen(module->name);
        if (strncmp(relative, module->name, length) != 0 ||
            (relative[length] && relative[length] != '.')) {
            child = module->end;
        } else if (relative[length] == '\0') {
            return child;
        } else {
            relative += length + 1;
            at = child++;
        }
    }
    return SIZE_MAX;
}

size_t heft_model_module_parameter(const heft_model *model, size_t module, const char *role)
{
    const heft_module *own = heft_model_module(model, module);
    for (size_t k = 0; own && k < own->parameter_count; k++) {
        if (strcmp(model->parameters[own->parameters[k]].role, role) == 0) {
            return own->parameters[k];
        }
    }
    return SIZE_MAX;
}

const char *heft_module_kind_name(heft_module_kind kind)
{
    static const char *const names[] = {
        [HEFT_MODULE_CONTAINER] = "container",
        [HEFT_MODULE_EMBEDDING] = "embedding",
        [HEFT_MODULE_LINEAR] = "linear",
        [HEFT_MODULE_NORM] = "norm",
        [HEFT_MODULE_CONVOLUTION] = "convolution",
        [HEFT_MODULE_ATTENTION] = "attention",
        [HEFT_MODULE_MLP] = "mlp",
        [HEFT_MODULE_ROUTER] = "router",
        [HEFT_MODULE_EXPERTS] = "experts",
        [HEFT_MODULE_EXPERT] = "expert",
        [HEFT_MODULE_ROTARY] = "rotary",
        [HEFT_MODULE_LAYER] = "layer",
        [HEFT_MODULE_MODEL] = "model",
        [HEFT_MODULE_HEAD] = "head",
        [HEFT_MODULE_OTHER] = "other",
    };
    return (size_t)kind < sizeof names / sizeof names[0] ? names[kind] : NULL;
}
