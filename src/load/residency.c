/* residency.c - a model's modules brought in and given back, one after the other.
 *
 * What stays on the disk is mapped from the checkpoint's own files. To acquire a module is to have
 * the kernel read its pages, by a call that reports faults, and to ask for the next module's; to
 * release it is to drop them from this process's tables. Not done here: deciding what is mapped.
 * Source: madvise(2), docs/placing.md [6]. */
#include "load/load.h"

/* Whether a name lies in a module. */
static bool lies_in(const char *name, const char *module)
{
    const size_t length = strlen(module);
    return length == 0 || (strncmp(name, module, length) == 0 && name[length] == '.');
}

/* The mapped bytes of parameter i; false if it has none in the module. */
static bool mapped_bytes(const heft_model *model, size_t i, const char *module,
                         const uint8_t **bytes, size_t *length)
{
    const heft_parameter *parameter = &model->parameters[i];
    const heft__binding *binding = &model->bindings[i];
    if (parameter->state != HEFT_PARAMETER_MAPPED || parameter->tied_to != i ||
        !lies_in(parameter->name, module)) {
        return false;
    }
    *bytes = (const uint8_t *)heft_storage_data(binding->storage) + binding->byte_offset;
    *length = (size_t)parameter->size_bytes;
    return *length > 0;
}

heft_status heft_model_acquire(const heft_model *model, const char *module, const char *next,
                               heft_error *err)
{
    const uint8_t *bytes;
    size_t length;
    if (!model || !module) {
        return heft__fail(err, HEFT_INVALID_ARG, "model or module is NULL");
    }
    for (size_t i = 0; next && i < model->count; i++) {
        if (mapped_bytes(model, i, next, &bytes, &length)) {
            heft__expect_memory(bytes, length);
        }
    }
    for (size_t i = 0; i < model->count; i++) {
        if (mapped_bytes(model, i, module, &bytes, &length) && !heft__touch_memory(bytes, length)) {
            return heft__add_item(
                heft__fail(err, HEFT_IO,
                           "its bytes cannot be read: the file has shrunk, or its "
                           "disk fails"),
                err, model->parameters[i].name);
        }
    }
    return HEFT_OK;
}

void heft_model_release(const heft_model *model, const char *module)
{
    const uint8_t *bytes;
    size_t length;
    for (size_t i = 0; model && module && i < model->count; i++) {
        if (mapped_bytes(model, i, module, &bytes, &length)) {
            heft__forget_memory(bytes, length);
        }
    }
}
