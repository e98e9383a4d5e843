/* compressed.c - the method "compressed-tensors".
 *
 * `config_groups` has a group for each way of storing, with `format` (or one `format` for all), `weights`
 * {`num_bits`, `type`, `symmetric`, `strategy`, `group_size`, `block_structure`} and `targets`. A module is
 * quantized because its tensors are there; which format it has shows in them, and what the tensors do not
 * say is taken from the group whose blocks go with the shape of the scales. `targets` decide where they
 * name the module; classes and expressions are not looked up: where groups that differ go with the
 * scales, the weight is not computed.
 *
 *   float-quantized, int-quantized, naive-quantized, mxfp8-quantized
 *       P.weight float8 or int8; P.weight_scale: one [1], of rows [out, 1], of groups [out, in / g], of
 *       blocks; P.weight_zero_point int8. scaled.c, in the scale's dtype (in the model's for exponents)
 *   pack-quantized        P.weight_packed I32, P.weight_scale, P.weight_shape: packed.c
 *   nvfp4-pack-quantized  P.weight_packed U8 [out, in / 2], P.weight_scale F8_E4M3 [out, in / 16],
 *       P.weight_global_scale F32 [1]: value * (scale / global scale), in the model's dtype: grouped4.c
 *   mxfp4-pack-quantized  P.weight_packed U8, P.weight_scale U8 [out, in / 32]: the same without global scale
 *
 * Scales of activations are not needed. A `quantization_status` other than "compressed" means plain weights, beside
 * which scales lie, to which the library rounds them whenever it computes: these are state. `transform_config` (QuIP, SpinQuant): the
 * stored weights are rotated, and activations are to be rotated as well.
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

static bool says(const heft__json_value *config, const char *key, const char *text)
{
    const heft__json_value *value = heft__json_member(config, key);
    return value && value->type == HEFT__JSON_TYPE_STRING && strcmp(value->text, text) == 0;
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

/* Whether targets name a module by its path or the end of it. */
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

/* Where a group says other numbers than the tensors have, which decide: a line about the first such weight. group: 0:
 * not compared. */
static heft_status doubt_arguments(const heft__quant_finder *finder,
                                   const heft__quant_weight *weight, size_t i, size_t prefix,
                                   uint64_t bits, uint64_t group, heft_error *err)
{
    bool unsure = false;
    const heft__json_value *arguments = arguments_of(finder, i, prefix, &unsure);
    static const char *const keys[] = {"num_bits", "group_size"};
    const uint64_t values[] = {bits, group};
    for (size_t k = 0; k < 2 && arguments && !unsure && !finder->found->doubt; k++) {
        const heft__json_value *value = heft__json_member(arguments, keys[k]);
        if (value && value->type == HEFT__JSON_TYPE_NUMBER && values[k] &&
            (!heft__json_as_u64(value, &group) || group != values[k])) {
            finder->found->doubt = heft__arena_format(
                finder->arena,
                "'%.200s': the config says %s %.40s, and the tensors have %llu: they decide",
                weight->name, keys[k], value->text, (unsigned long long)values[k]);
            if (!finder->found->doubt) {
                return heft__fail_nomem(err, 0);
            }
        }
    }
    return HEFT_OK;
}

/* ---- weights ---------------------------------------------------------------------------------- */
#define MX_GROUP 32 /* columns that share an exponent */

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
        status = heft__quant_read_factor(finder, global, true, &divisor, err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_weight_init(finder, &weight, i, prefix, ".weight", err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_grouped4(finder, &weight, i, scales, nvfp4 ? 16 : MX_GROUP, divisor,
                                      1.0F, err);
    }
    if (status == HEFT_OK) {
        status = doubt_arguments(finder, &weight, i, prefix, 4, nvfp4 ? 16 : MX_GROUP, err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_add_with(finder, &weight, i, prefix, companions, err);
    }
    if (status == HEFT_OK) {
        heft__quant_companion(finder, global);
    }
    return status;
}

/* ---- 8 bits ----------------------------------------------------------------------------------- */
static const heft__json_value *list_of_two(const heft__json_value *arguments)
{
    const heft__json_value *list = heft__json_member(arguments, "block_structure");
    return list && list->type == HEFT__JSON_TYPE_ARRAY && list->count == 2 ? list : NULL;
}

static bool strategy_is(const heft__json_value *arguments, const char *name)
{
    return says(arguments, "strategy", name);
}

/* The sides of a block, 0 for a whole side, by a group's arguments; false: they do not say. */
static bool block_by_arguments(const heft__json_value *arguments, uint64_t block[2])
{
    const heft__json_value *list = list_of_two(arguments),
                           *size = heft__json_member(arguments, "group_size");
    uint64_t group = 0;
    block[0] = 1;
    block[1] = 0;
    if (list) {
        return heft__json_as_u64(list->first, &block[0]) &&
               heft__json_as_u64(list->last, &block[1]) && block[0] && block[1];
    }
    if (size && heft__json_as_u64(size, &group) && group) {
        block[1] = group;
        return true;
    }
    if (strategy_is(arguments, "tensor")) {
        block[0] = 0;
        return true;
    }
    return strategy_is(arguments, "channel");
}

/* The same by the shape of the scales alone: one, one for each row, or groups that divide the rows. */
static bool block_by_shape(const heft_tensor_info *grid, const uint64_t shape[2], uint64_t block[2])
{
    const uint64_t lines = grid->rank > 0 ? grid->shape[0] : 1,
                   columns = grid->rank > 1 ? grid->shape[1] : 1;
    if (grid->rank > 2 || !columns || (lines != 1 && lines != shape[0]) ||
        (lines == 1 && columns > 1 && shape[0] != 1) || shape[1] % columns) {
        return false;
    }
    block[0] = lines == 1 ? 0 : 1;
    block[1] = columns == 1 ? 0 : shape[1] / columns;
    return true;
}

/* A side that is 0 or too long is the whole one. */
static uint64_t whole_side(uint64_t side, uint64_t whole)
{
    return side && side < whole ? side : whole;
}

static bool fits(const heft_tensor_info *grid, const uint64_t shape[2], const uint64_t block[2])
{
    const uint64_t lines = (shape[0] - 1) / whole_side(block[0], shape[0]) + 1,
                   columns = (shape[1] - 1) / whole_side(block[1], shape[1]) + 1;
    const uint64_t first = grid->rank > 0 ? grid->shape[0] : 1,
                   second = grid->rank > 1 ? grid->shape[1] : 1;
    return grid->rank <= 2 && first == lines && second == columns;
}

static bool same_block(const uint64_t a[2], const uint64_t b[2], const uint64_t shape[2])
{
    return whole_side(a[0], shape[0]) == whole_side(b[0], shape[0]) &&
           whole_side(a[1], shape[1]) == whole_side(b[1], shape[1]);
}

/* What groups say about the block of a module. */
struct blocks {
    bool said, fitting;          /* a group says something; something that goes with the scales */
    uint64_t first[2], found[2]; /* what the first says; what goes with the scales */
    bool differ;                 /* others go with the scales, too */
};

static void ask_groups(const heft__quant_finder *finder, size_t i, const heft_tensor_info *grid,
                       size_t prefix, struct blocks *b)
{
    const heft__json_value *groups = heft__json_member(finder->settings->config, "config_groups");
    const heft_tensor_info *info = &finder->table->infos[i];
    *b = (struct blocks){0};
    for (const heft__json_value *g = groups ? groups->first : NULL; g; g = g->next) {
        const heft__json_value *weights = weights_of(g);
        uint64_t sides[2];
        if (!weights || !block_by_arguments(weights, sides)) {
            continue;
        }
        const bool named = names_module(heft__json_member(g, "targets"), info->name, prefix),
                   good = fits(grid, info->shape, sides);
        if (!b->said || named) {
            memcpy(b->first, sides, sizeof sides);
        }
        b->said = true;
        if (named) {
            memcpy(b->found, sides, sizeof sides);
            b->fitting = good;
            b->differ = false;
            return;
        }
        b->differ = b->differ || (good && b->fitting && !same_block(b->found, sides, info->shape));
        if (good) {
            memcpy(b->found, sides, sizeof sides);
            b->fitting = true;
        }
    }
}

/* The sides of a block: of the groups whose blocks go with the shape of the scales. *unsure: those differ.
 * Where none does, what a group says, for the error. */
static heft_status find_block(const heft__quant_finder *finder, size_t i, size_t scales,
                              size_t prefix, uint64_t block[2], bool *unsure, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i], *grid = &finder->table->infos[scales];
    struct blocks b;
    ask_groups(finder, i, grid, prefix, &b);
    *unsure = b.differ;
    if (b.fitting || b.said) {
        memcpy(block, b.fitting ? b.found : b.first, sizeof b.found);
        return HEFT_OK;
    }
    char shape[HEFT__SHAPE_TEXT];
    return block_by_shape(grid, info->shape, block)
               ? HEFT_OK
               : heft__quant_fail(finder, scales, err,
                                  "the block size for scales of shape %s is not given",
                                  heft__shape_text(grid->shape, grid->rank, shape));
}

/* Whether all groups say that zero points are stored. */
static bool needs_zeros(const heft__quant_finder *finder)
{
    const heft__json_value *groups = heft__json_member(finder->settings->config, "config_groups");
    bool all = false;
    for (const heft__json_value *g = groups ? groups->first : NULL; g; g = g->next) {
        const heft__json_value *weights = weights_of(g);
        if (weights && heft__quant_flag(weights, "symmetric", true)) {
            return false;
        }
        all = all || weights;
    }
    return all;
}

static heft_status find_bytes(heft__quant_finder *finder, size_t i, size_t prefix, size_t scales,
                              heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    size_t zeros = heft__quant_sibling(finder->table, i, prefix, ".weight_zero_point");
    heft__quant_weight weight;
    uint64_t block[2] = {0, 0};
    bool unsure = false, unclear = false;
    heft_status status = heft__quant_weight_init(finder, &weight, i, prefix, ".weight", err);
    if (status == HEFT_OK && info->dtype == HEFT_DTYPE_I8 && needs_zeros(finder)) {
        status = heft__quant_need(finder, i, prefix, ".weight_zero_point", &zeros, err);
    }
    if (status == HEFT_OK && info->rank == 2 && info->shape[0] && info->shape[1]) {
        status = find_block(finder, i, scales, prefix, block, &unsure, err);
    }
    const bool exponents = heft_dtype_bits(finder->table->infos[scales].dtype) == 8;
    if (status == HEFT_OK && exponents && info->rank == 2 &&
        (info->dtype == HEFT_DTYPE_I8 || whole_side(block[1], info->shape[1]) > MX_GROUP)) {
        return heft__quant_fail(finder, scales, err, "%s cannot be a scale of %s",
                                heft_dtype_name(finder->table->infos[scales].dtype),
                                heft_dtype_name(info->dtype));
    }
    if (status == HEFT_OK) {
        status = doubt_arguments(finder, &weight, i, prefix, 8, 0, err);
    }
    if (status == HEFT_OK) {
        const heft_dtype dtype = finder->table->infos[scales].dtype, own = weight.dtype;
        weight.dtype = heft_dtype_bits(dtype) == 8 ? own : dtype;
        unclear = !finder->settings->config && dtype != HEFT_DTYPE_F32 && dtype != own;
        status = heft__quant_scaled(finder, &weight, i, scales, zeros, block[0], block[1], err);
    }
    if (status == HEFT_OK && (unsure || unclear)) {
        weight.layout = NULL;
        weight.why =
            unsure ? "several config_groups match its scales, and none of them names its module"
                   : "no config gives the dtype of its dequantized values";
    }
    return status == HEFT_OK ? heft__quant_add_with(finder, &weight, i, prefix, companions, err)
                             : status;
}

/* ---- formats that are not computed ------------------------------------------------------------- */
static heft_status keep_as_it_is(heft__quant_finder *finder, size_t i, size_t prefix,
                                 const char *why, heft_error *err)
{
    static const char *const rest[] = {".weight_scale",
                                       ".weight_zero_point",
                                       ".weight_global_scale",
                                       ".scale_packed",
                                       ".meta",
                                       ".bitmask",
                                       ".shape",
                                       ".row_offsets",
                                       ".compressed",
                                       NULL};
    heft__quant_weight weight;
    heft_status status = heft__quant_weight_init(finder, &weight, i, prefix, ".weight", err);
    if (status != HEFT_OK) {
        return status;
    }
    weight.part[0] = i;
    weight.why = why;
    status = heft__quant_add_with(finder, &weight, i, prefix, companions, err);
    for (const char *const *name = rest; status == HEFT_OK && *name; name++) {
        heft__quant_companion(finder, heft__quant_sibling(finder->table, i, prefix, *name));
    }
    return status;
}

/* Why a packed weight is of another format; NULL: it is not. */
static const char *other_format(const heft__quant_table *table, size_t i, size_t prefix)
{
    const heft_tensor_info *info = &table->infos[i];
    const size_t scales = heft__quant_sibling(table, i, prefix, ".weight_scale");
    if (heft__quant_sibling(table, i, prefix, ".scale_packed") != HEFT__NO_PART ||
        heft__quant_sibling(table, i, prefix, ".meta") != HEFT__NO_PART) {
        return "marlin-24 is a GPU kernel layout";
    }
    const heft_tensor_info *grid = scales == HEFT__NO_PART ? NULL : &table->infos[scales];
    return info->dtype == HEFT_DTYPE_U8 && grid && grid->dtype == HEFT_DTYPE_U8 &&
                   info->rank == 2 && grid->rank == 2 && info->shape[1] % 24 == 0 &&
                   info->shape[1] / 24 == grid->shape[1]
               ? "mxfp6-pack-quantized is not supported"
               : NULL;
}

/* ---- the method ------------------------------------------------------------------------------- */
static bool is_marked(const heft__quant_table *table, size_t i)
{
    const size_t prefix = heft__quant_prefix(table->infos[i].name, ".weight_scale"),
                 weight = prefix == SIZE_MAX ? HEFT__NO_PART
                                             : heft__quant_sibling(table, i, prefix, ".weight");
    return heft__quant_prefix(table->infos[i].name, ".weight_packed") != SIZE_MAX ||
           (weight != HEFT__NO_PART && table->infos[weight].dtype == HEFT_DTYPE_I8);
}

static heft_status find_packed(heft__quant_finder *finder, size_t i, size_t prefix, heft_error *err)
{
    const char *why = other_format(finder->table, i, prefix);
    bool unsure = false;
    if (why) {
        return keep_as_it_is(finder, i, prefix, why, err);
    }
    if (finder->table->infos[i].dtype != HEFT_DTYPE_I32) {
        return find_half_bytes(finder, i, prefix, err);
    }
    const heft__json_value *arguments = arguments_of(finder, i, prefix, &unsure);
    return heft__quant_find_packed(finder, i, prefix, unsure ? NULL : arguments, err);
}

/* Whether the config says that weights are stored as they are. */
static bool is_uncompressed(const heft__quant_finder *finder)
{
    const heft__json_value *config = finder->settings->config;
    return says(config, "format", "dense") || says(config, "quantization_status", "initialized") ||
           says(config, "quantization_status", "calibration") ||
           says(config, "quantization_status", "frozen");
}

/* What lies beside a plain weight in such a file. */
static bool take_calibration(heft__quant_finder *finder, size_t i)
{
    static const char *const ends[] = {".weight_scale", ".weight_zero_point",
                                       ".weight_global_scale", ".weight_g_idx", NULL};
    const heft_tensor_info *infos = finder->table->infos;
    size_t prefix = SIZE_MAX;
    for (const char *const *end = ends; *end && prefix == SIZE_MAX; end++) {
        prefix = heft__quant_prefix(infos[i].name, *end);
    }
    const size_t weight = prefix == SIZE_MAX
                              ? HEFT__NO_PART
                              : heft__quant_sibling(finder->table, i, prefix, ".weight");
    const bool taken = weight != HEFT__NO_PART && heft_dtype_is_floating(infos[weight].dtype) &&
                       heft_dtype_bits(infos[weight].dtype) >= 16 && is_uncompressed(finder);
    if (taken) {
        finder->found->owner[i] = HEFT__QUANT_STATE;
        finder->found->bar = "the weights are plain, and rounded to these scales whenever they "
                             "are used";
        finder->found->bar_item = finder->found->bar_item ? finder->found->bar_item : infos[i].name;
    }
    return taken;
}

static void note_transform(heft__quant_finder *finder)
{
    const heft__json_value *transform =
                               heft__json_member(finder->settings->config, "transform_config"),
                           *groups = heft__json_member(transform, "config_groups");
    if (transform && transform->count > 0 && (!groups || groups->count > 0)) {
        finder->found->bar = "the stored weights are rotated (QuIP, SpinQuant), and so must "
                             "activations be";
        finder->found->bar_item = "transform_config";
    }
}

/* A scale that no weight has is a fault. */
static heft_status check_orphan(const heft__quant_finder *finder, size_t i, heft_error *err)
{
    const heft__quant_table *table = finder->table;
    const size_t prefix = heft__quant_prefix(table->infos[i].name, ".weight_scale");
    size_t weight = HEFT__NO_PART;
    if (prefix == SIZE_MAX ||
        heft__quant_sibling(table, i, prefix, ".weight_packed") != HEFT__NO_PART ||
        heft__quant_sibling(table, i, prefix, ".compressed") != HEFT__NO_PART) {
        return HEFT_OK;
    }
    const heft_status status = heft__quant_need(finder, i, prefix, ".weight", &weight, err);
    if (status == HEFT_OK && heft_dtype_bits(table->infos[weight].dtype) != 8) {
        return heft__quant_fail(finder, weight, err,
                                "has a scale, but is not quantized: expected int8 or float8, "
                                "found %s",
                                heft_dtype_name(table->infos[weight].dtype));
    }
    return status;
}

static heft_status find(heft__quant_finder *finder, size_t i, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    size_t prefix = heft__quant_prefix(info->name, ".weight_packed");
    if (i == 0) {
        note_transform(finder);
    }
    if (prefix != SIZE_MAX) {
        return find_packed(finder, i, prefix, err);
    }
    prefix = heft__quant_prefix(info->name, ".weight");
    if (prefix != SIZE_MAX &&
        (info->dtype == HEFT_DTYPE_F8_E4M3FN || info->dtype == HEFT_DTYPE_I8)) {
        size_t scales = HEFT__NO_PART;
        const heft_status status =
            heft__quant_need(finder, i, prefix, ".weight_scale", &scales, err);
        return status == HEFT_OK ? find_bytes(finder, i, prefix, scales, err) : status;
    }
    prefix = heft__quant_prefix(info->name, ".compressed");
    if (prefix != SIZE_MAX &&
        heft__quant_sibling(finder->table, i, prefix, ".bitmask") != HEFT__NO_PART) {
        return keep_as_it_is(finder, i, prefix, "sparse-24-bitmask is not supported", err);
    }
    return take_calibration(finder, i) ? HEFT_OK : check_orphan(finder, i, err);
}

const heft__quant_method heft__quant_compressed = {
    .name = "compressed-tensors",
    .names = (const char *const[]){"compressed-tensors", "compressed_tensors", NULL},
    .is_marked = is_marked,
    .find = find,
};
