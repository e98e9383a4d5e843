/* modelopt.c - the method "modelopt", which hf_quant_config.json or config.json declares (`quant_algo`).
 *
 *   FP8, FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO
 *           P.weight F8_E4M3 [out, in]; P.weight_scale F32: one, of rows [out], of blocks of 128, which may
 *           have the shape [lines, 1, columns, 1]: scaled.c
 *   MXFP8   the same with P.weight_scale U8 [out, in / 32], exponents
 *   W8A16, W8A8_SQ_PER_CHANNEL
 *           P.weight I8 [out, in]; P.weight_scale F32 [out]: scaled.c
 *   NVFP4, W4A16_NVFP4, W4A8_NVFP4_FP8, NVFP4_AWQ
 *           P.weight U8 [out, in / 2]; P.weight_scale F8_E4M3 [out, in / 16]; P.weight_scale_2 F32, which is
 *           multiplied: value * (scale * scale_2), grouped4.c
 *   W4A8_MXFP4_FP8, MXFP4
 *           P.weight U8 [out, in / 2]; P.weight_scale U8 [out, in / 32], exponents: grouped4.c
 *
 * All in the model's dtype. P.input_scale, P.output_scale are not needed; k_scale and v_scale stay as they are.
 * Not computed: weights whose inputs are scaled, too (P.pre_quant_scale), or that have a second term
 * (svdquant_lora_a), int4 (W4A16_AWQ: U8 [out / 2, in] with floating-point scales), and several matrices in
 * one tensor.
 * Source: docs/formats/quantized.md. */
#include "quant/quant.h"

static heft_status find_half_bytes(heft__quant_finder *finder, heft__quant_weight *weight, size_t i,
                                   size_t prefix, size_t scales, size_t *second, heft_error *err)
{
    const heft_dtype dtype = finder->table->infos[scales].dtype;
    float factor = 1.0F;
    heft_status status = HEFT_OK;
    if (dtype != HEFT_DTYPE_F8_E4M3FN && dtype != HEFT_DTYPE_U8) {
        weight->why = "int4 of modelopt is not supported";
        weight->bits = 4;
        weight->part[0] = i;
        weight->part[1] = scales;
        return HEFT_OK;
    }
    if (dtype == HEFT_DTYPE_U8) {
        return heft__quant_grouped4(finder, weight, i, scales, 32, 1.0F, 1.0F, err);
    }
    status = heft__quant_need(finder, i, prefix, ".weight_scale_2", second, err);
    if (status == HEFT_OK && finder->table->infos[i].rank != 3) {
        status = heft__quant_read_factor(finder, *second, false, &factor, err);
    }
    return status == HEFT_OK
               ? heft__quant_grouped4(finder, weight, i, scales, 16, 1.0F, factor, err)
               : status;
}

#define MX_GROUP 32
#define BLOCK 128 /* of FP8_PB_WO, whose last blocks may be short */

static uint64_t parts_of(uint64_t whole, uint64_t side)
{
    return whole ? (whole - 1) / side + 1 : 0;
}

/* One scale, one for each row, or a grid: of blocks of 128, or with cells that divide both sides. A grid
 * may have the shape [lines, 1, columns, 1]. */
static heft_status find_bytes(heft__quant_finder *finder, heft__quant_weight *weight, size_t i,
                              size_t scales, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i], *grid = &finder->table->infos[scales];
    const bool four = grid->rank == 4 && grid->shape[1] == 1 && grid->shape[3] == 1;
    uint64_t block[2] = {0, 0};
    if (grid->dtype == HEFT_DTYPE_U8 && info->rank == 2) { /* MXFP8 */
        return info->dtype == HEFT_DTYPE_F8_E4M3FN
                   ? heft__quant_scaled(finder, weight, i, scales, HEFT__NO_PART, 1, MX_GROUP, err)
                   : heft__quant_fail(finder, i, err,
                                      "has exponents for scales: expected float8_e4m3fn, found %s",
                                      heft_dtype_name(info->dtype));
    }
    const uint64_t cells[2] = {grid->rank ? grid->shape[0] : 1, four             ? grid->shape[2]
                                                                : grid->rank > 1 ? grid->shape[1]
                                                                                 : 1};
    const bool blocks = info->rank == 2 && cells[0] == parts_of(info->shape[0], BLOCK) &&
                        cells[1] == parts_of(info->shape[1], BLOCK);
    for (uint32_t d = 0; d < 2 && info->rank == 2; d++) {
        if (blocks) {
            block[d] = BLOCK;
        } else if (cells[d] > 1 && (!info->shape[d] || info->shape[d] % cells[d])) {
            return heft__quant_fail(finder, scales, err, "%llu scales do not divide %llu values",
                                    (unsigned long long)cells[d],
                                    (unsigned long long)info->shape[d]);
        } else {
            block[d] = cells[d] > 1 ? info->shape[d] / cells[d] : 0;
        }
    }
    return heft__quant_scaled(finder, weight, i, scales, HEFT__NO_PART, block[0], block[1], err);
}

static bool is_marked(const heft__quant_table *table, size_t i)
{
    const char *name = table->infos[i].name;
    const size_t second = heft__quant_prefix(name, ".weight_scale_2"),
                 first = heft__quant_prefix(name, ".weight_scale");
    const size_t weight = second != SIZE_MAX  ? heft__quant_sibling(table, i, second, ".weight")
                          : first != SIZE_MAX ? heft__quant_sibling(table, i, first, ".weight")
                                              : HEFT__NO_PART;
    return weight != HEFT__NO_PART &&
           (second != SIZE_MAX || table->infos[weight].dtype == HEFT_DTYPE_U8);
}

/* What makes the weight another than its own tensors say; NULL: nothing. */
static const char *what_else(const heft__quant_table *table, size_t i, size_t prefix)
{
    return heft__quant_sibling(table, i, prefix, ".pre_quant_scale") != HEFT__NO_PART
               ? "its inputs are scaled too (pre_quant_scale)"
           : heft__quant_sibling(table, i, prefix, ".svdquant_lora_a") != HEFT__NO_PART
               ? "it has a low-rank term (svdquant_lora_a)"
               : NULL;
}

/* A scale that no quantized weight has is a fault. */
static heft_status check_orphan(const heft__quant_finder *finder, size_t i, heft_error *err)
{
    const heft_tensor_info *infos = finder->table->infos;
    const size_t first = heft__quant_prefix(infos[i].name, ".weight_scale"),
                 prefix = first != SIZE_MAX ? first
                                            : heft__quant_prefix(infos[i].name, ".weight_scale_2");
    size_t weight = HEFT__NO_PART;
    if (prefix == SIZE_MAX) {
        return HEFT_OK;
    }
    const heft_status status = heft__quant_need(finder, i, prefix, ".weight", &weight, err);
    return status == HEFT_OK && heft_dtype_bits(infos[weight].dtype) != 8
               ? heft__quant_fail(finder, weight, err,
                                  "has a scale, but is not quantized: expected float8, int8 or "
                                  "uint8, found %s",
                                  heft_dtype_name(infos[weight].dtype))
               : status;
}

static heft_status find(heft__quant_finder *finder, size_t i, heft_error *err)
{
    static const char *const rest[] = {".input_scale",
                                       ".output_scale",
                                       ".pre_quant_scale",
                                       ".svdquant_lora_a",
                                       ".svdquant_lora_b",
                                       ".weight_scale_2",
                                       NULL};
    const heft_tensor_info *info = &finder->table->infos[i];
    const size_t prefix = heft__quant_prefix(info->name, ".weight");
    heft__quant_weight weight;
    size_t scales = HEFT__NO_PART, second = HEFT__NO_PART;
    const bool half = info->dtype == HEFT_DTYPE_U8,
               byte = info->dtype == HEFT_DTYPE_F8_E4M3FN || info->dtype == HEFT_DTYPE_I8;
    if (prefix == SIZE_MAX || (!half && !byte)) {
        return check_orphan(finder, i, err);
    }
    heft_status status = heft__quant_need(finder, i, prefix, ".weight_scale", &scales, err);
    if (status == HEFT_OK) {
        status = heft__quant_weight_init(finder, &weight, i, prefix, ".weight", err);
    }
    if (status == HEFT_OK) {
        status = half ? find_half_bytes(finder, &weight, i, prefix, scales, &second, err)
                      : find_bytes(finder, &weight, i, scales, err);
    }
    if (status == HEFT_OK && what_else(finder->table, i, prefix)) {
        weight.layout = NULL;
        weight.why = what_else(finder->table, i, prefix);
    }
    if (status == HEFT_OK) {
        status = heft__quant_add_with(finder, &weight, i, prefix, rest, err);
    }
    if (status == HEFT_OK) {
        heft__quant_companion(finder, second);
    }
    return status;
}

const heft__quant_method heft__quant_modelopt = {
    .name = "modelopt",
    .names =
        (const char *const[]){"modelopt", "modelopt_fp4", "modelopt_fp8", "modelopt_mxfp8", NULL},
    .is_marked = is_marked,
    .find = find,
};
