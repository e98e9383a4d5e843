/* room.c - what has to be in memory besides the weights: caches of attention, activations, a reserve;
 * and what weights would take if they were quantized.
 *
 *   cache        batch * tokens * elements that an attention keeps of a token, on the attention's device
 *   activations  batch * context * 2 * (in + out) of the widest matrix of a layer, on each device that
 *                computes: the residual stream, what is normalized of it, and two results of that matrix
 *
 * Both in the model's dtype, or in 16 bits if that is smaller. Attention is taken to store no matrix of
 * scores, and the whole context to be read at once.
 * Source: docs/placing.md [9], [10]. */
#include "place/place.h"

#include <math.h>

/* ---- quantized ------------------------------------------------------------------------------- */
#define GROUP 128 /* columns, of int4; rows and columns of a block, of fp8 */

static double up(double value, double unit)
{
    return ceil(value / unit);
}

/* Bytes of matrices [..][rows][columns] with their scales. */
static double quantized_bytes(heft_plan_quantization how, double count, double rows, double columns)
{
    switch (how) {
    case HEFT_PLAN_AS_STORED:
        break;
    case HEFT_PLAN_INT4: /* 16-bit scales, one for a group of a row */
        return count * rows * (up(columns, 2) + 2 * up(columns, GROUP));
    case HEFT_PLAN_INT8: /* a 16-bit scale for a row */
        return count * rows * (columns + 2);
    case HEFT_PLAN_FP8: /* a float32 scale for a block */
        return count * (rows * columns + 4 * up(rows, GROUP) * up(columns, GROUP));
    }
    return 0;
}

static bool ends_with(const char *text, const char *end)
{
    const size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

/* A matrix inside a layer, but not a table, a router, or a list of biases. */
static bool is_quantizable(const heft_model *model, const heft_parameter *parameter)
{
    const heft_module *module = heft_model_module(model, parameter->module);
    if (parameter->kind != HEFT_PARAMETER_WEIGHT || parameter->rank < 2 || parameter->rank > 3 ||
        !heft_dtype_is_floating(parameter->dtype) || ends_with(parameter->name, "bias") ||
        module->kind == HEFT_MODULE_EMBEDDING || module->kind == HEFT_MODULE_ROUTER ||
        module->kind == HEFT_MODULE_CONVOLUTION) {
        return false;
    }
    while (module->kind != HEFT_MODULE_LAYER && module->parent != SIZE_MAX) {
        module = heft_model_module(model, module->parent);
    }
    return module->kind == HEFT_MODULE_LAYER;
}

void heft__tree_quantize(heft__tree *tree, const heft_model *model, heft_plan_quantization how)
{
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        const heft_parameter *parameter = &model->parameters[tree->tensors[i].parameter];
        const uint64_t *shape = parameter->shape;
        const uint32_t rank = parameter->rank;
        tree->tensors[i].quantized =
            how != HEFT_PLAN_AS_STORED && is_quantizable(model, parameter)
                ? quantized_bytes(how, rank == 3 ? (double)shape[0] : 1, (double)shape[rank - 2],
                                  (double)shape[rank - 1])
                : 0;
    }
}

/* ---- caches and activations ------------------------------------------------------------------ */
static double elem_bytes(const heft_model *model)
{
    const double bytes = (double)heft_dtype_bits(model->dtype) / 8;
    return bytes < 2 ? 2 : bytes;
}

/* The first tensor in a module; NO_NODE without any. */
static uint32_t first_tensor(const heft__tree *tree, uint32_t module)
{
    uint32_t first, end;
    heft__tree_tensors(tree, module, &first, &end);
    while (first < end && tree->tensors[first].first != first) {
        first++;
    }
    return first < end ? first : HEFT__NO_NODE;
}

void heft__tree_cache(heft__tree *tree, const heft_model *model, uint64_t context, uint64_t batch)
{
    for (size_t i = 0; context > 0 && i < model->cache_count; i++) {
        const heft__cache *cache = &model->caches[i];
        const uint32_t tensor = first_tensor(tree, cache->module);
        double tokens = (double)context;
        tokens = cache->most > 0 && tokens > (double)cache->most ? (double)cache->most : tokens;
        tokens = tokens < (double)cache->least ? (double)cache->least : tokens;
        if (tensor != HEFT__NO_NODE) {
            tree->tensors[tensor].room +=
                (double)batch * tokens * (double)cache->token_elems * elem_bytes(model);
        }
    }
}

double heft__activation_bytes(const heft_model *model, uint64_t context, uint64_t batch)
{
    return (double)batch * (double)context * 2 * (double)model->widest * elem_bytes(model);
}

bool heft__cache_known(const heft_model *model)
{
    return model->known_family || model->cache_count > 0;
}

void heft__tree_add_room(heft__tree *tree, double sign)
{
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        const double room = tree->tensors[i].room * sign;
        tree->tensors[i].bytes += room;
        for (uint32_t m = tree->tensors[i].module; room != 0 && m != HEFT__NO_NODE;
             m = tree->modules[m].parent) {
            tree->modules[m].bytes += room;
        }
    }
}
