/* state.c - what no weight has taken once all are found: the state of a quantization that its weights do
 * not need, and tensors that contradict the method.
 *
 * State is known by the last part of its name: scales of inputs and outputs, and of the key/value cache
 * (self_attn.k_scale, self_attn.k_proj.k_scale, ...), and ComfyUI's marks (comfy_quant, scaled_fp8). What lies in the module of a quantized weight goes with
 * that weight. A tensor that only another method has, or that a weight of this one should have, is FORMAT:
 * left alone, it would be lost without a word. What looks quantized and is known by no tensor of the method
 * (float8, a weight of integers, or packed integers of another name) is a weight that cannot be dequantized:
 * taken for plain numbers, it would be wrong without a word.
 * Source: docs/formats/quantized.md [1]. */
#include "quant/quant.h"

static const char *const states[] = {"input_scale",
                                     "input_zero_point",
                                     "input_global_scale",
                                     "input_scale_ub",
                                     "output_scale",
                                     "output_zero_point",
                                     "output_global_scale",
                                     "prob_output_scale",
                                     "activation_scale",
                                     "act_scale",
                                     "qscale_act",
                                     "scale_input",
                                     "q_scale",
                                     "k_scale",
                                     "v_scale",
                                     "kv_scale",
                                     "prob_scale",
                                     "q_zero_point",
                                     "k_zero_point",
                                     "v_zero_point",
                                     "q_global_scale",
                                     "k_global_scale",
                                     "v_global_scale",
                                     "comfy_quant",
                                     "scaled_fp8",
                                     NULL};

/* Ends of names that are a part of a quantized weight, and the methods that have it; NULL: several. */
static const struct part {
    const char *end, *methods;
} parts[] = {
    {".qweight",             "gptq or awq"       },
    {".qzeros",              "gptq or awq"       },
    {".g_idx",               "gptq"              },
    {".weight_packed",       "compressed-tensors"},
    {".weight_g_idx",        "compressed-tensors"},
    {".weight_global_scale", "compressed-tensors"},
    {".weight_zero_point",   NULL                },
    {".weight_scale",        NULL                },
    {".weight_scale_2",      "modelopt"          },
    {".weight_scale_inv",    "fp8"               },
    {".SCB",                 "bitsandbytes"      },
    {".absmax",              "bitsandbytes"      },
    {".quant_map",           "bitsandbytes"      },
    {".nested_absmax",       "bitsandbytes"      },
    {".nested_quant_map",    "bitsandbytes"      },
    {NULL,                   NULL                },
};

/* Names of the tensor by which a module's weight is known. */
static const char *const values[] = {".weight", ".qweight", ".weight_packed", NULL};

static bool is_one_of(const char *name, const char *const *list)
{
    for (; *list && strcmp(name, *list) != 0; list++) {
    }
    return *list != NULL;
}

bool heft__quant_is_state(const char *name)
{
    const char *dot = strrchr(name, '.');
    return is_one_of(dot ? dot + 1 : name, states) && (dot || strcmp(name, "scaled_fp8") == 0);
}

/* NULL: no part of a weight by its name. */
static const struct part *part_of(const char *name)
{
    const struct part *part = parts;
    for (; part->end && heft__quant_prefix(name, part->end) == SIZE_MAX; part++) {
    }
    return part->end ? part : NULL;
}

/* The quantized weight of the module that tensor i is in; HEFT__QUANT_STATE: it has none. */
static size_t weight_beside(const heft__quant_finder *finder, size_t i)
{
    const char *name = finder->table->infos[i].name;
    const char *dot = strrchr(name, '.');
    const size_t prefix = dot ? (size_t)(dot - name) : 0;
    for (const char *const *end = values; *end && dot; end++) {
        const size_t found = heft__quant_sibling(finder->table, i, prefix, *end);
        if (found != HEFT__NO_PART && finder->found->owner[found] < finder->found->count) {
            return finder->found->owner[found];
        }
    }
    return HEFT__QUANT_STATE;
}

static heft_status refuse(const heft__quant_finder *finder, size_t i, const char *methods,
                          heft_error *err)
{
    const char *own = finder->found->method;
    return methods && !strstr(methods, own)
               ? heft__quant_fail(finder, i, err, "expected tensors of %s only, found one of %s",
                                  own, methods)
               : heft__quant_fail(finder, i, err,
                                  "expected a quantized weight that it is a part of, found none");
}

/* Whether a tensor is there whose name is the first `length` bytes of tensor i's and one of the ends. */
static bool has_beside(const heft__quant_table *table, size_t i, size_t length,
                       const char *const *ends)
{
    for (; *ends && heft__quant_sibling(table, i, length, *ends) == HEFT__NO_PART; ends++) {
    }
    return *ends != NULL;
}

static const char *const scales_of_name[] = {"_scale_inv", "_scale", "_weight_scale", "_scales",
                                             NULL};
static const char *const scales_of_module[] = {
    ".weight_scale", ".weight_scales", ".weight_scale_inv", ".scale", ".scales", NULL};

/* A scale beside a weight (P.weight), a name (NAME) or what is in front of its last part (NAME_packed). */
static bool has_scale(const heft__quant_table *table, size_t i)
{
    const char *name = table->infos[i].name;
    const size_t module = heft__quant_prefix(name, ".weight"),
                 packed = heft__quant_prefix(name, "_packed");
    return has_beside(table, i, strlen(name), scales_of_name) ||
           (module != SIZE_MAX && has_beside(table, i, module, scales_of_module)) ||
           (packed != SIZE_MAX && has_beside(table, i, packed, scales_of_name));
}

static bool is_code(heft_dtype dtype)
{
    return dtype == HEFT_DTYPE_I8 || dtype == HEFT_DTYPE_U8 || dtype == HEFT_DTYPE_I16 ||
           dtype == HEFT_DTYPE_U16 || dtype == HEFT_DTYPE_I32 || dtype == HEFT_DTYPE_U32;
}

bool heft__quant_looks_packed(const heft__quant_table *table, size_t i)
{
    const heft_tensor_info *info = &table->infos[i];
    const bool float8 = heft_dtype_is_floating(info->dtype) && heft_dtype_bits(info->dtype) == 8;
    return info->rank >= 2 && (float8 || (is_code(info->dtype) &&
                                          (heft__quant_prefix(info->name, ".weight") != SIZE_MAX ||
                                           heft__quant_prefix(info->name, "_packed") != SIZE_MAX ||
                                           has_scale(table, i))));
}

/* Whether the module has such a scale and no weight: what tensor i holds stands for that (hqq, exl2, exl3). */
static bool stands_for_weight(const heft__quant_table *table, size_t i)
{
    static const char *const scales[] = {
        ".scale", ".scales", ".weight_scale", ".weight_scales", ".q_scale", ".suh", NULL};
    const char *name = table->infos[i].name, *dot = strrchr(name, '.');
    const size_t module = dot ? (size_t)(dot - name) : 0;
    return dot && heft__quant_sibling(table, i, module, ".weight") == HEFT__NO_PART &&
           has_beside(table, i, module, scales);
}

bool heft__quant_has_codes(const heft__quant_table *table, size_t i)
{
    const heft_tensor_info *info = &table->infos[i];
    return info->rank >= 2 && is_code(info->dtype) &&
           (has_scale(table, i) || stands_for_weight(table, i));
}

/* Take it as a weight of its own, as it is. */
static heft_status keep_unknown(heft__quant_finder *finder, size_t i, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    heft__quant_weight weight;
    heft_status status = heft__quant_weight_init(finder, &weight, i, strlen(info->name), "", err);
    if (status != HEFT_OK) {
        return status;
    }
    weight.part[0] = i;
    weight.bits = heft_dtype_bits(info->dtype);
    weight.why = heft__arena_format(finder->arena, "it is stored in %s, with no scale that %s has",
                                    heft_dtype_name(info->dtype), finder->found->method);
    if (weight.why && !finder->found->doubt) {
        finder->found->doubt = heft__arena_format(finder->arena, "'%.200s' is kept as it is: %s",
                                                  info->name, weight.why);
    }
    return weight.why && finder->found->doubt ? heft__quant_add(finder, &weight, err)
                                              : heft__fail_nomem(err, strlen(info->name));
}

heft_status heft__quant_find_state(heft__quant_finder *finder,
                                   const char *(*other)(const heft__quant_finder *finder, size_t i),
                                   heft_error *err)
{
    heft__quant_found *found = finder->found;
    size_t count = 0;
    for (size_t i = 0; i < finder->table->count; i++) {
        const char *name = finder->table->infos[i].name;
        const bool plain = heft__quant_is_plain_name(name);
        if (!plain && heft__quant_is_state(name)) {
            found->owner[i] =
                found->owner[i] == HEFT__NO_PART ? weight_beside(finder, i) : found->owner[i];
            found->loose += found->owner[i] == HEFT__QUANT_STATE;
            count++;
        } else if (found->owner[i] == HEFT__QUANT_STATE) { /* the method knows it */
            found->loose++;
            count++;
        } else if (!plain && found->owner[i] == HEFT__NO_PART) {
            const char *method = other(finder, i);
            const struct part *part = method ? NULL : part_of(name);
            if (method || part) {
                return refuse(finder, i, part ? part->methods : method, err);
            }
        }
        if (found->owner[i] == HEFT__NO_PART && heft__quant_looks_packed(finder->table, i)) {
            const heft_status status = keep_unknown(finder, i, err);
            if (status != HEFT_OK) {
                return status;
            }
        }
    }
    found->state = count ? heft__arena_array(finder->arena, count, sizeof *found->state) : NULL;
    if (count && !found->state) {
        return heft__fail_nomem(err, count * sizeof *found->state);
    }
    for (size_t i = 0; i < finder->table->count && found->state_count < count; i++) {
        const char *name = finder->table->infos[i].name;
        if (found->owner[i] == HEFT__QUANT_STATE ||
            (!heft__quant_is_plain_name(name) && heft__quant_is_state(name))) {
            found->state[found->state_count++] = name;
        }
    }
    return HEFT_OK;
}
