/* modelopt.c - the method "modelopt", which hf_quant_config.json or config.json declares.
 *
 *   FP8    P.weight F8_E4M3 [out, in]; P.weight_scale F32, one or one for each row or block: scaled.c
 *   NVFP4  P.weight U8 [out, in / 2]; P.weight_scale F8_E4M3 [out, in / 16]; P.weight_scale_2 F32, which is
 *          multiplied: value * (scale * scale_2), grouped4.c
 *
 * Both in the model's dtype. P.input_scale, k_scale and v_scale are not needed.
 * Source: docs/formats/quantized.md. */
#include "quant/quant.h"

static heft_status read_factor(const heft__quant_finder *finder, size_t i, float *out,
                               heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    uint8_t bytes[4];
    if (info->dtype != HEFT_DTYPE_F32 || info->size_bytes != 4) {
        return heft__quant_fail(finder, i, err, "expected one float32 value");
    }
    const heft_status status = finder->table->read(finder->table->user, i, bytes, 4, err);
    const uint32_t bits = heft__le32(bytes);
    memcpy(out, &bits, sizeof *out);
    return status;
}

static heft_status find_nvfp4(heft__quant_finder *finder, heft__quant_weight *weight, size_t i,
                              size_t prefix, size_t scales, size_t *second, heft_error *err)
{
    float factor = 0;
    heft_status status = heft__quant_need(finder, i, prefix, ".weight_scale_2", second, err);
    if (status == HEFT_OK) {
        status = read_factor(finder, *second, &factor, err);
    }
    return status == HEFT_OK
               ? heft__quant_grouped4(finder, weight, i, scales, 16, 1.0F, factor, err)
               : status;
}

/* One scale, one for each row, or a grid whose cells divide both sides. */
static heft_status find_fp8(heft__quant_finder *finder, heft__quant_weight *weight, size_t i,
                            size_t scales, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i], *grid = &finder->table->infos[scales];
    uint64_t block[2] = {0, 0};
    for (uint32_t d = 0; d < 2 && info->rank == 2 && d < grid->rank; d++) {
        if (grid->shape[d] > 1) {
            if (info->shape[d] % grid->shape[d]) {
                return heft__quant_fail(
                    finder, scales, err, "%llu scales do not divide %llu values",
                    (unsigned long long)grid->shape[d], (unsigned long long)info->shape[d]);
            }
            block[d] = info->shape[d] / grid->shape[d];
        }
    }
    return heft__quant_scaled(finder, weight, i, scales, HEFT__NO_PART, block[0], block[1], err);
}

static bool is_marked(const heft__quant_table *table, size_t i)
{
    const size_t prefix = heft__quant_prefix(table->infos[i].name, ".weight_scale_2");
    return prefix != SIZE_MAX && heft__quant_sibling(table, i, prefix, ".weight") != HEFT__NO_PART;
}

static heft_status find(heft__quant_finder *finder, size_t i, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    const size_t prefix = heft__quant_prefix(info->name, ".weight");
    heft__quant_weight weight;
    size_t scales = HEFT__NO_PART, second = HEFT__NO_PART;
    const bool half = info->dtype == HEFT_DTYPE_U8, byte = info->dtype == HEFT_DTYPE_F8_E4M3FN;
    if (prefix == SIZE_MAX || (!half && !byte)) {
        return HEFT_OK;
    }
    heft_status status = heft__quant_need(finder, i, prefix, ".weight_scale", &scales, err);
    if (status == HEFT_OK) {
        status = heft__quant_weight_init(finder, &weight, i, prefix, ".weight", err);
    }
    if (status == HEFT_OK) {
        status = half ? find_nvfp4(finder, &weight, i, prefix, scales, &second, err)
                      : find_fp8(finder, &weight, i, scales, err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_add(finder, &weight, err);
    }
    if (status == HEFT_OK) {
        heft__quant_companion(finder, second);
        heft__quant_companion(finder,
                              heft__quant_sibling(finder->table, i, prefix, ".input_scale"));
        heft__quant_companion(finder,
                              heft__quant_sibling(finder->table, i, prefix, ".output_scale"));
    }
    return status;
}

const heft__quant_method heft__quant_modelopt = {
    .name = "modelopt",
    .names = (const char *const[]){"modelopt", "modelopt_fp4", "modelopt_fp8", NULL},
    .is_marked = is_marked,
    .find = find,
};
