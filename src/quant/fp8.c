/* fp8.c - the method "fp8": float8 weights with a scale for each block, as DeepSeek-V3 has them.
 *
 * P.weight F8_E4M3 [out, in]; P.weight_scale_inv [ceil(out / bm), ceil(in / bn)], F32, F16, BF16, F8_E8M0,
 * or U8 with the same exponent byte. `weight_block_size` [bm, bn]; null or absent: one scale for the
 * tensor. Other names of the scale: P.weight_scale, P.scale, P.qscale_weight, P.scale_weight. P.activation_scale,
 * P.input_scale and P.qscale_act are not needed. "fbgemm_fp8": P.weight_scale [out, 1] F32, a scale for each row.
 *
 *   W[o][i] = weight[o][i] * scale[o / bm][i / bn], in float32, rounded to the model's dtype
 *
 * The scale is multiplied, despite its name. The last block of a side may be short: the index is o / bm all
 * the same. Experts that are stored one by one are weights like any other; several in one tensor, NAME F8
 * [experts, rows, columns], have a grid each, NAME_scale_inv [experts, rows / bm, columns / bn].
 *
 * DeepSeek-V4 has experts of half-bytes among them (`expert_dtype` fp4): P.weight I8 or U8 [out, in / 2] with
 * exponents [out, in / 32] as scales: grouped4.c.
 * Source: docs/formats/quantized.md. */
#include "quant/quant.h"

/* Behind the name of the module. */
static const char *const scale_names[] = {".weight_scale_inv", ".weight_scale", ".scale",
                                          ".qscale_weight",    ".scale_weight", NULL};
static const char *const companions[] = {".activation_scale", ".input_scale", ".input_scale_ub",
                                         ".qscale_act", NULL};

static bool is_float8(heft_dtype dtype)
{
    return dtype == HEFT_DTYPE_F8_E4M3FN || dtype == HEFT_DTYPE_F8_E5M2;
}

/* By its scale: other methods have such scales too, but for these dtypes all of them mean the same. */
static bool is_marked(const heft__quant_table *table, size_t i)
{
    for (const char *const *end = scale_names; *end; end++) {
        const size_t prefix = heft__quant_prefix(table->infos[i].name, *end);
        const size_t weight =
            prefix == SIZE_MAX ? HEFT__NO_PART : heft__quant_sibling(table, i, prefix, ".weight");
        if (weight != HEFT__NO_PART && is_float8(table->infos[weight].dtype)) {
            return true;
        }
    }
    return false;
}

/* `weight_block_size`: two counts; zeros where there is none. */
static heft_status block_size(const heft__quant_finder *finder, uint64_t block[2], heft_error *err)
{
    const heft__json_value *value =
        heft__json_member(finder->settings->config, "weight_block_size");
    block[0] = block[1] = 0;
    if (!value || value->type == HEFT__JSON_TYPE_NULL) {
        return HEFT_OK;
    }
    if (value->type != HEFT__JSON_TYPE_ARRAY || value->count != 2 ||
        !heft__json_as_u64(value->first, &block[0]) || !heft__json_as_u64(value->last, &block[1]) ||
        !block[0] || !block[1]) {
        const heft_status status =
            heft__fail_at(err, HEFT_FORMAT, value->offset, "expected a list of two counts");
        heft__add_item(status, err, "weight_block_size");
        return heft__add_path(status, err, finder->settings->path);
    }
    return HEFT_OK;
}

static size_t find_scale(const heft__quant_finder *finder, size_t i, size_t prefix)
{
    size_t found = HEFT__NO_PART;
    for (const char *const *name = scale_names; *name && found == HEFT__NO_PART; name++) {
        found = heft__quant_sibling(finder->table, i, prefix, *name);
    }
    return found;
}

/* A scale that no float8 weight has is a fault. */
static heft_status check_orphan(const heft__quant_finder *finder, size_t i, heft_error *err)
{
    const heft_tensor_info *infos = finder->table->infos;
    const size_t inverse = heft__quant_prefix(infos[i].name, scale_names[0]),
                 prefix = inverse != SIZE_MAX ? inverse
                                              : heft__quant_prefix(infos[i].name, scale_names[1]);
    size_t weight = HEFT__NO_PART;
    if (prefix == SIZE_MAX) {
        return HEFT_OK;
    }
    const heft_status status = heft__quant_need(finder, i, prefix, ".weight", &weight, err);
    return status == HEFT_OK && heft_dtype_bits(infos[weight].dtype) != 8
               ? heft__quant_fail(finder, weight, err,
                                  "has a scale, but is not quantized: expected float8, found %s",
                                  heft_dtype_name(infos[weight].dtype))
               : status;
}

#define MX_GROUP 32 /* columns that share an exponent in the MX formats */

static bool is_exponent(heft_dtype dtype)
{
    return dtype == HEFT_DTYPE_F8_E8M0FNU || dtype == HEFT_DTYPE_U8;
}

/* The block of the scales of one weight: that of the settings, or another one that its scales show. */
static heft_status block_of(const heft__quant_finder *finder, const heft_tensor_info *info,
                            const heft_tensor_info *grid, uint64_t block[2], heft_error *err)
{
    const heft_status status = block_size(finder, block, err);
    const bool lines = info->rank == 2 && grid->rank > 0 && grid->shape[0] == info->shape[0];
    if (status != HEFT_OK || info->rank != 2) {
        return status;
    }
    if (grid->rank == 0 || (grid->rank == 1 && grid->shape[0] == 1)) {
        block[0] = block[1] = 0; /* one scale */
    } else if (lines && grid->shape[0] > 1 && (grid->rank == 1 || grid->shape[1] == 1) &&
               (!block[0] || block[0] > 1)) {
        block[0] = 1; /* a scale for each row */
        block[1] = 0;
    } else if (lines && grid->rank == 2 && is_exponent(grid->dtype) &&
               info->shape[1] % MX_GROUP == 0 && grid->shape[1] == info->shape[1] / MX_GROUP) {
        block[0] = 1;
        block[1] = MX_GROUP;
    }
    return status;
}

/* Without settings: why the values are not known for sure; NULL: they are. */
static const char *doubt(const heft_tensor_info *grid, const uint64_t block[2], heft_dtype dtype)
{
    const bool several = grid->rank > 0 && grid->shape[0] * grid->shape[grid->rank - 1] > 1;
    return !block[0] && several ? "no config gives the block size of its scales"
           : grid->dtype != HEFT_DTYPE_F32 && grid->dtype != dtype
               ? "no config gives the dtype of its dequantized values"
               : NULL;
}

/* What is computed by a weight's settings and shapes, or why it is not. */
static heft_status set_layout(const heft__quant_finder *finder, heft__quant_weight *weight,
                              size_t i, size_t scales, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i], *grid = &finder->table->infos[scales];
    uint64_t block[2];
    const heft_status status = block_of(finder, info, grid, block, err);
    const char *unsure =
        status == HEFT_OK && !finder->settings->config ? doubt(grid, block, weight->dtype) : NULL;
    if (unsure) {
        weight->why = unsure;
        weight->part[0] = i;
        weight->part[1] = scales;
        weight->bits = 8;
    }
    return status != HEFT_OK || unsure ? status
                                       : heft__quant_scaled(finder, weight, i, scales,
                                                            HEFT__NO_PART, block[0], block[1], err);
}

/* Experts in one tensor: NAME, NAME_scale_inv or NAME_scale. */
static heft_status find_stacked(heft__quant_finder *finder, size_t i, heft_error *err)
{
    const size_t length = strlen(finder->table->infos[i].name);
    size_t scales = heft__quant_sibling(finder->table, i, length, "_scale_inv");
    heft__quant_weight weight;
    if (scales == HEFT__NO_PART) {
        scales = heft__quant_sibling(finder->table, i, length, "_scale");
    }
    if (scales == HEFT__NO_PART) {
        return HEFT_OK;
    }
    heft_status status = heft__quant_weight_init(finder, &weight, i, length, "", err);
    if (status == HEFT_OK) {
        status = set_layout(finder, &weight, i, scales, err);
    }
    return status == HEFT_OK ? heft__quant_add(finder, &weight, err) : status;
}

/* Half-bytes: integers with exponents as scales. */
static heft_status find_half_bytes(heft__quant_finder *finder, size_t i, size_t prefix,
                                   size_t scales, heft_error *err)
{
    const heft_dtype dtype = finder->table->infos[scales].dtype;
    heft__quant_weight weight;
    if (!is_exponent(dtype)) {
        return heft__quant_fail(finder, scales, err,
                                "expected exponents as scales of half-bytes, found %s",
                                heft_dtype_name(dtype));
    }
    heft_status status = heft__quant_weight_init(finder, &weight, i, prefix, ".weight", err);
    if (status == HEFT_OK) {
        status = heft__quant_grouped4(finder, &weight, i, scales, MX_GROUP, 1.0F, 1.0F, err);
    }
    return status == HEFT_OK ? heft__quant_add_with(finder, &weight, i, prefix, companions, err)
                             : status;
}

static heft_status find(heft__quant_finder *finder, size_t i, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    const size_t prefix = heft__quant_prefix(info->name, ".weight");
    const bool bytes = info->dtype == HEFT_DTYPE_I8 || info->dtype == HEFT_DTYPE_U8;
    heft__quant_weight weight;
    if (prefix == SIZE_MAX || (!is_float8(info->dtype) && !bytes)) {
        return is_float8(info->dtype) ? find_stacked(finder, i, err) : check_orphan(finder, i, err);
    }
    const size_t scales = find_scale(finder, i, prefix);
    if (bytes && scales != HEFT__NO_PART) {
        return find_half_bytes(finder, i, prefix, scales, err);
    }
    if (scales == HEFT__NO_PART) {
        size_t missing;
        return bytes ? HEFT_OK
                     : heft__quant_need(finder, i, prefix, ".weight_scale_inv", &missing, err);
    }
    heft_status status = heft__quant_weight_init(finder, &weight, i, prefix, ".weight", err);
    if (status == HEFT_OK) {
        status = set_layout(finder, &weight, i, scales, err);
    }
    return status == HEFT_OK ? heft__quant_add_with(finder, &weight, i, prefix, companions, err)
                             : status;
}

const heft__quant_method heft__quant_fp8 = {
    .name = "fp8",
    .names = (const char *const[]){"fp8", "fbgemm_fp8", "finegrained_fp8", NULL},
    .is_marked = is_marked,
    .find = find,
};
