/* conv1d.c - quantized weights of "Conv1D" modules.
 *
 * GPT-2 and its kin have linear layers of a class whose weight is [in, out]. Quantizing makes them linear layers of
 * the usual kind, so that a file has the weight as [out, in]: as it is, it fits; dequantized, it is turned to what
 * the class needs. Where in = out nothing but the names shows that.
 * Source: docs/formats/quantized.md [1]. */
#include "load/load.h"

static bool is_conv1d(const heft_model *model, const heft_parameter *parameter)
{
    return parameter->rank == 2 &&
           strcmp(model->modules[parameter->module].class_name, "Conv1D") == 0;
}

bool heft__packed_fits(const heft_model *plain, size_t i, const heft__quant_weight *weight)
{
    const heft_parameter *parameter = &plain->parameters[i];
    const uint64_t turned[2] = {weight->shape[1], weight->shape[0]};
    return weight->rank == 0 ||
           heft__shape_equal(weight->shape, weight->rank, parameter->shape, parameter->rank) ||
           (weight->rank == 2 && is_conv1d(plain, parameter) &&
            heft__shape_equal(turned, 2, parameter->shape, parameter->rank));
}

/* ---- by names: the type need not be one that heft knows ------------------------------------------ */
static bool has_conv1d(const heft__json_value *config)
{
    static const char *const types[] = {"gpt2",     "openai-gpt", "decision_transformer",
                                        "imagegpt", "clvp",       "clvp_decoder"};
    const heft__json_value *type = heft__json_member(config, "model_type");
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (type && type->type == HEFT__JSON_TYPE_STRING && strcmp(type->text, types[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* Also of a part of a model, as the decoder of an encoder-decoder. */
static bool has_conv1d_within(const heft__json_value *config)
{
    bool has = has_conv1d(config);
    for (const heft__json_value *part = config->first; part && !has; part = part->next) {
        has = has_conv1d(part);
    }
    return has;
}

bool heft__conv1d_has(const heft_config *config, const char *name)
{
    static const char *const names[] = {"c_attn.weight", "c_fc.weight", "c_proj.weight",
                                        "q_attn.weight"};
    bool has = false;
    for (size_t i = 0; config && i < sizeof names / sizeof names[0] && !has; i++) {
        has = heft__ends_with(name, names[i]);
    }
    return has && has_conv1d_within(config->root);
}

heft_status heft__conv1d_check(const heft__quant_found *found, heft_error *err)
{
    for (size_t w = 0; w < found->count; w++) {
        const heft__quant_weight *weight = &found->weights[w];
        const bool widens = heft__ends_with(weight->name, "c_attn.weight") ||
                            heft__ends_with(weight->name, "c_fc.weight");
        if (weight->turned && widens && weight->shape[0] <= weight->shape[1]) {
            const heft_status status = heft__fail(
                err, HEFT_UNSUPPORTED,
                "cannot be dequantized: a quantized layer of the class Conv1D is "
                "expected as [out, in] with more rows than columns, found [%llu, %llu]",
                (unsigned long long)weight->shape[0], (unsigned long long)weight->shape[1]);
            return heft__add_item(status, err, weight->name);
        }
    }
    return HEFT_OK;
}
