/* compressed.c - the method "compressed-tensors".
 *
 * `config_groups` has a group for each way of storing, with `format` (or one `format` for all), `weights`
 * {`num_bits`, `type`, `symmetric`, `strategy`, `group_size`, `block_structure`} and `targets`. A module is
 * quantized because its tensors are there; which format it has shows in them, and what the tensors do not
 * say is taken from the group.
 *
 *   float-quantized, int-quantized, naive-quantized   P.weight float8 or int8; P.weight_scale: one [1], of
 *       rows [out, 1], of groups [out, in / g], of blocks; P.weight_zero_point int8. scaled.c, in the scale's
 *       dtype
 *   pack-quantized        P.weight_packed I32, P.weight_scale, P.weight_shape: packed.c
 *   nvfp4-pack-quantized  P.weight_packed U8 [out, in / 2], P.weight_scale F8_E4M3 [out, in / 16],
 *       P.weight_global_scale F32 [1]: value * (scale / global scale), in the model's dtype: grouped4.c
 *   mxfp4-pack-quantized  P.weight_packed U8, P.weight_scale U8 [out, in / 32]: the same without global scale
 *
 * Scales of activations are not needed.
 * Source: docs/formats/quantized.md. */
#include "quant/quant.h"

static const char *const companions[] = {
    ".input_scale",       ".input_zero_point", ".input_global_scale", ".output_scale",
    ".output_zero_point", ".weight_shape",     ".weight_g_idx",       NULL};

/* ---- settings --------------------------------------------------------------------------------- */
static const heft__json_value *weights_of(const heft__json_value *group)
{
    const heft__json_value *weights = heft__json_member(group, "weights");
    return weights && weights->type == HEFT__JSON_TYPE_OBJECT ? weights : NULL;
}

static bool same_text(const heft__json_value *a, const heft__json_value *b)
{
    return a->length == b->length && memcmp(a->text, b->text, a->length) == 0;
}

/* Whether two groups store weights alike, as far as it decides values. */
static bool alike(const heft__json_value *a, const heft__json_value *b)
{
    static const char *const deciding[] = {"num_bits", "group_size"};
    for (size_t k = 0; k < 2; k++) {
        const heft__json_value *left = heft__json_member(a, deciding[k]),
                               *right = heft__json_member(b, deciding[k]);
        const bool none = !left || left->type == HEFT__JSON_TYPE_NULL,
                   nothing = !right || right->type == HEFT__JSON_TYPE_NULL;
        if (none != nothing || (!none && !(left->text && right->text && same_text(left, right)))) {
            return false;
        }
    }
    return true;
}

/* The last part of a module's path matches as a class does: targets name classes, whose modules cannot be
 * told apart by tensors. So does a path, or its end; or, after "re:", a text that its groups' expressions
 * contain. Only where groups differ does it matter. */
static bool names_module(const heft__json_value *targets, const char *name, size_t length)
{
    for (const heft__json_value *t = targets ? targets->first : NULL; t; t = t->next) {
        if (t->type == HEFT__JSON_TYPE_STRING && t->length <= length &&
            memcmp(name + length - t->length, t->text, t->length) == 0 &&
            (t->length == length || name[length - t->length - 1] == '.')) {
            return true;
        }
    }
    return false;
}

/* The arguments of a module's group. *unsure: several groups differ, and none names it. */
static const heft__json_value *arguments_of(const heft__quant_finder *finder, size_t i,
                                            size_t prefix, bool *unsure)
{
    const heft__json_value *groups = heft__json_member(finder->settings->config, "config_groups");
    const heft__json_value *first = NULL;
    *unsure = false;
    for (const heft__json_value *g = groups ? groups->first : NULL; g; g = g->next) {
        const heft__json_value *weights = weights_of(g);
        if (!weights) {
            continue;
        }
        if (names_module(heft__json_member(g, "targets"), finder->table->infos[i].name, prefix)) {
            *unsure = false;
            return weights;
        }
        *unsure = *unsure || (first && !alike(first, weights));
        first = first ? first : weights;
    }
    return first;
}

/* ---- weights ---------------------------------------------------------------------------------- */
static heft_status add(heft__quant_finder *finder, const heft__quant_weight *weight, size_t i,
                       size_t prefix, heft_error *err)
{
    const heft_status status = heft__quant_add(finder, weight, err);
    for (const char *const *name = companions; status == HEFT_OK && *name; name++) {
        heft__quant_companion(finder, heft__quant_sibling(finder->table, i, prefix, *name));
    }
    return status;
}

static heft_status read_scalar(const heft__quant_finder *finder, size_t i, float *out,
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

/* NVFP4 and MXFP4. */
static heft_status find_half_bytes(heft__quant_finder *finder, size_t i, size_t prefix,
                                   heft_error *err)
{
    const heft__quant_table *table = finder->table;
    const size_t global = heft__quant_sibling(table, i, prefix, ".weight_global_scale");
    heft__quant_weight weight;
    size_t scales = HEFT__NO_PART;
    float divisor = 1.0F;
    heft_status status = heft__quant_need(finder, i, prefix, ".weight_scale", &scales, err);
    const bool nvfp4 = status == HEFT_OK && table->infos[scales].dtype == HEFT_DTYPE_F8_E4M3FN;
    if (status == HEFT_OK && nvfp4 && global == HEFT__NO_PART) {
        size_t missing;
        status = heft__quant_need(finder, i, prefix, ".weight_global_scale", &missing, err);
    }
    if (status == HEFT_OK && global != HEFT__NO_PART) {
        status = read_scalar(finder, global, &divisor, err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_weight_init(finder, &weight, i, prefix, ".weight", err);
    }
    if (status == HEFT_OK) {
        status =
            heft__quant_grouped4(finder, &weight, i, scales, nvfp4 ? 16 : 32, divisor, 1.0F, err);
    }
    if (status == HEFT_OK) {
        status = add(finder, &weight, i, prefix, err);
    }
    if (status == HEFT_OK) {
        heft__quant_companion(finder, global);
    }
    return status;
}

/* The sides of a block, by the shape of the scales and, where that is not enough, the settings. */
static heft_status find_block(const heft__quant_finder *finder, size_t values, size_t scales,
                              const heft__json_value *arguments, uint64_t block[2], heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[values],
                           *grid = &finder->table->infos[scales];
    const heft__json_value *structure = heft__json_member(arguments, "block_structure");
    block[0] = block[1] = 0;
    if (structure && structure->type == HEFT__JSON_TYPE_ARRAY && structure->count == 2) {
        return heft__json_as_u64(structure->first, &block[0]) &&
                       heft__json_as_u64(structure->last, &block[1]) && block[0] && block[1]
                   ? HEFT_OK
                   : heft__quant_fail(finder, scales, err,
                                      "the block_structure of its group is not "
                                      "a list of two counts");
    }
    if (info->rank != 2 || grid->rank == 0 || grid->shape[0] <= 1) {
        return HEFT_OK; /* one scale */
    }
    block[0] = 1;
    if (grid->rank == 1 || grid->shape[1] <= 1) {
        return HEFT_OK; /* one for each row */
    }
    int64_t group = 0;
    heft_status status =
        heft__quant_integer(finder, arguments, "group_size", -1, INT32_MAX, 0, &group, err);
    if (status == HEFT_OK && group <= 0) {
        status = info->shape[1] % grid->shape[1] == 0
                     ? HEFT_OK
                     : heft__quant_fail(
                           finder, scales, err, "%llu scales do not divide rows of %llu values",
                           (unsigned long long)grid->shape[1], (unsigned long long)info->shape[1]);
        group = status == HEFT_OK ? (int64_t)(info->shape[1] / grid->shape[1]) : 0;
    }
    block[1] = (uint64_t)group;
    return status;
}

static heft_status find_bytes(heft__quant_finder *finder, size_t i, size_t prefix, size_t scales,
                              heft_error *err)
{
    bool unsure = false;
    const heft__json_value *arguments = arguments_of(finder, i, prefix, &unsure);
    const size_t zeros = heft__quant_sibling(finder->table, i, prefix, ".weight_zero_point");
    heft__quant_weight weight;
    uint64_t block[2];
    heft_status status = heft__quant_weight_init(finder, &weight, i, prefix, ".weight", err);
    if (status == HEFT_OK) {
        status = find_block(finder, i, scales, unsure ? NULL : arguments, block, err);
    }
    weight.dtype = finder->table->infos[scales].dtype;
    if (status == HEFT_OK) {
        status = heft__quant_scaled(finder, &weight, i, scales, zeros, block[0], block[1], err);
    }
    if (weight.dtype != HEFT_DTYPE_F32 && weight.dtype != HEFT_DTYPE_F16) {
        weight.dtype =
            weight.dtype == HEFT_DTYPE_BF16 ? HEFT_DTYPE_BF16 : finder->settings->model_dtype;
    }
    return status == HEFT_OK ? add(finder, &weight, i, prefix, err) : status;
}

/* ---- the method ------------------------------------------------------------------------------- */
static bool is_marked(const heft__quant_table *table, size_t i)
{
    return heft__quant_prefix(table->infos[i].name, ".weight_packed") != SIZE_MAX;
}

static heft_status find(heft__quant_finder *finder, size_t i, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    size_t prefix = heft__quant_prefix(info->name, ".weight_packed"), other = HEFT__NO_PART;
    if (prefix != SIZE_MAX && info->dtype == HEFT_DTYPE_I32) {
        bool unsure = false;
        const heft__json_value *arguments = arguments_of(finder, i, prefix, &unsure);
        return heft__quant_find_packed(finder, i, prefix, unsure ? NULL : arguments, err);
    }
    if (prefix != SIZE_MAX) {
        return find_half_bytes(finder, i, prefix, err);
    }
    prefix = heft__quant_prefix(info->name, ".weight");
    if (prefix != SIZE_MAX &&
        (info->dtype == HEFT_DTYPE_F8_E4M3FN || info->dtype == HEFT_DTYPE_I8)) {
        size_t scales = HEFT__NO_PART;
        const heft_status status =
            heft__quant_need(finder, i, prefix, ".weight_scale", &scales, err);
        return status == HEFT_OK ? find_bytes(finder, i, prefix, scales, err) : status;
    }
    prefix = heft__quant_prefix(info->name, ".weight_scale");
    if (prefix == SIZE_MAX ||
        heft__quant_sibling(finder->table, i, prefix, ".weight_packed") != HEFT__NO_PART) {
        return HEFT_OK;
    }
    return heft__quant_need(finder, i, prefix, ".weight", &other, err);
}

const heft__quant_method heft__quant_compressed = {
    .name = "compressed-tensors",
    .names = (const char *const[]){"compressed-tensors", "compressed_tensors", NULL},
    .is_marked = is_marked,
    .find = find,
};
