/* count.c - how many parameters of a model the tensors of a source stand for.
 *
 * A weight that is stored quantized counts as what it is when it is plain, in its first tensor; its other tensors and
 * state count nothing. Integers that belong to no weight are buffers (position_ids) where a config says that the
 * tensors are a model's. */
#include "load/load.h"

/* The first tensor of each quantized weight: an array of quant.count in the source's arena. */
heft_status heft__source_note_first(heft_source *source, heft_error *err)
{
    const heft__quant_found *found = &source->quant;
    source->quant_first = NULL;
    if (!found->count) {
        return HEFT_OK;
    }
    size_t *first = heft__arena_array(&source->arena, found->count, sizeof *first);
    if (!first) {
        return heft__fail_nomem(err, found->count * sizeof *first);
    }
    for (size_t i = source->ckpt->count; i-- > 0;) {
        if (found->owner[i] < found->count) {
            first[found->owner[i]] = i;
        }
    }
    source->quant_first = first;
    return HEFT_OK;
}

/* Of a weight whose plain shape is not known, by the bits of a value; of others, those of the shape. */
static uint64_t weight_elems(const heft_source *source, const heft__quant_weight *weight)
{
    const size_t part = weight->part[0];
    uint64_t elems = 0;
    if (weight->rank) {
        return heft__shape_elems(weight->shape, weight->rank, &elems) ? elems : UINT64_MAX;
    }
    if (part >= source->ckpt->count) {
        return 0;
    }
    const uint64_t bytes = source->ckpt->infos[part].size_bytes;
    return weight->bits && bytes <= UINT64_MAX / 8 ? bytes * 8 / weight->bits : bytes;
}

static bool is_whole(heft_dtype dtype)
{
    return !heft_dtype_is_floating(dtype) && !heft__dtype_is_complex(dtype);
}

uint64_t heft__source_elems(const heft_source *source, size_t i, bool model)
{
    const heft__quant_found *found = &source->quant;
    const heft_tensor_info *info = &source->ckpt->infos[i];
    const size_t owner = found->owner ? found->owner[i] : HEFT__NO_PART;
    uint64_t elems = 0;
    if (owner == HEFT__QUANT_STATE) {
        return 0;
    }
    if (owner < found->count) {
        return source->quant_first[owner] == i ? weight_elems(source, &found->weights[owner]) : 0;
    }
    if (model && is_whole(info->dtype)) {
        return 0;
    }
    return heft__shape_elems(info->shape, info->rank, &elems) ? elems : UINT64_MAX;
}

uint64_t heft_source_parameters(const heft_source *source, size_t i)
{
    return source->ckpt && i < source->ckpt->count
               ? heft__source_elems(source, i, source->config != NULL)
               : 0;
}

uint64_t heft__loading_elems(const heft__loading *l)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < l->model->count; i++) {
        const heft_parameter *parameter = &l->model->parameters[i];
        const size_t tensor = l->match.source[i];
        uint64_t elems = 0;
        if (parameter->kind != HEFT_PARAMETER_WEIGHT || parameter->tied_to != i) {
            continue;
        }
        if (l->source && tensor != HEFT__NO_TENSOR &&
            (heft__source_is_packed(l->source) || !l->model->known_family)) {
            elems = heft__source_elems(l->source, tensor, !l->model->known_family);
        } else if (!heft__shape_elems(parameter->shape, parameter->rank, &elems)) {
            elems = UINT64_MAX;
        }
        sum = heft__add_most(sum, elems);
    }
    return sum;
}
