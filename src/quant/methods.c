/* methods.c - the registry of quantization methods, and finding what is quantized.
 *
 * Which method it is: the settings say so (`quant_method`), or, where older writers left that out, keys
 * that only one method has; without settings, the tensors themselves. Then every tensor is shown to the
 * method once. */
#include "quant/quant.h"

#include <stdarg.h>

#define NAME_MOST 4096 /* bytes of a name that is looked up; longer ones have no companions */

static const heft__quant_method *const methods[] = {
    &heft__quant_fp8,        &heft__quant_modelopt,
    &heft__quant_compressed, &heft__quant_bitsandbytes,
    &heft__quant_awq,        &heft__quant_gptq,
    &heft__quant_mxfp4,      &heft__quant_quanto,
    &heft__quant_torchao,    NULL,
};

/* ---- which method ----------------------------------------------------------------------------- */
static bool has(const heft__json_value *config, const char *key)
{
    return heft__json_member(config, key) != NULL;
}

/* AutoRound writes the layouts of other methods, and says which. Of its own, "auto_round" and
 * "auto_round:gptqmodel", the zero points are not known. */
static const char *packed_as(const heft__json_value *config)
{
    static const char *const formats[][2] = {
        {"auto_round:auto_gptq", "gptq"},
        {"auto_round:gptq",      "gptq"},
        {"auto_gptq",            "gptq"},
        {"auto_round:auto_awq",  "awq" },
        {"auto_round:awq",       "awq" },
        {"auto_awq",             "awq" },
        {"auto_round:fp8",       "fp8" },
    };
    const heft__json_value *format = heft__json_member(config, "packing_format");
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        if (format && format->type == HEFT__JSON_TYPE_STRING &&
            strcmp(format->text, formats[i][0]) == 0) {
            return formats[i][1];
        }
    }
    return NULL;
}

/* What the settings call it; NULL if they do not say. */
static const char *declared_name(const heft__quant_settings *settings)
{
    const heft__json_value *config = settings->config;
    if (settings->quanto) {
        return "quanto";
    }
    const heft__json_value *name = heft__json_member(config, "quant_method");
    if (name && name->type == HEFT__JSON_TYPE_STRING) {
        const bool packed =
            strcmp(name->text, "auto-round") == 0 || strcmp(name->text, "intel/auto-round") == 0;
        const char *as = packed ? packed_as(config) : NULL;
        return as ? as : name->text;
    }
    if (has(config, "quant_algo") || has(config, "producer")) {
        return "modelopt";
    }
    if (heft__quant_flag(config, "load_in_4bit", false) ||
        heft__quant_flag(config, "load_in_8bit", false)) {
        return "bitsandbytes";
    }
    if (has(config, "config_groups")) {
        return "compressed-tensors";
    }
    if (has(config, "bits") && has(config, "group_size")) { /* quantize_config.json */
        return has(config, "zero_point") || has(config, "w_bit") ? "awq" : "gptq";
    }
    return NULL;
}

static const heft__quant_method *method_of(const char *name)
{
    for (size_t m = 0; methods[m]; m++) {
        for (const char *const *names = methods[m]->names; *names; names++) {
            if (strcmp(*names, name) == 0) {
                return methods[m];
            }
        }
    }
    return NULL;
}

/* Most tensors of most checkpoints: no method is known by such a name. */
bool heft__quant_is_plain_name(const char *name)
{
    static const char weight[] = ".weight", bias[] = ".bias";
    const size_t length = strlen(name), weight_end = sizeof weight - 1, bias_end = sizeof bias - 1;
    return (length > weight_end && memcmp(name + length - weight_end, weight, weight_end) == 0) ||
           (length > bias_end && memcmp(name + length - bias_end, bias, bias_end) == 0);
}

/* The method of the first tensor that can only come from one. */
static const heft__quant_method *marked(const heft__quant_table *table)
{
    for (size_t i = 0; i < table->count; i++) {
        const bool plain = heft__quant_is_plain_name(table->infos[i].name);
        for (size_t m = 0; !plain && methods[m]; m++) {
            if (methods[m]->is_marked(table, i)) {
                return methods[m];
            }
        }
    }
    return NULL;
}

#define UNNAMED "unknown" /* no config and no tensor says how the weights are stored */

/* Of methods that are known by their tensors, whatever a config says, and not supported. MLX packs weights into
 * words, P.weight uint32, beside P.scales; its settings look like those of gptq. */
static const char *foreign_name(const heft__quant_table *table)
{
    for (size_t i = 0; i < table->count; i++) {
        const size_t prefix = table->infos[i].dtype == HEFT_DTYPE_U32
                                  ? heft__quant_prefix(table->infos[i].name, ".weight")
                                  : SIZE_MAX;
        if (prefix != SIZE_MAX &&
            heft__quant_sibling(table, i, prefix, ".scales") != HEFT__NO_PART) {
            return "mlx";
        }
    }
    return NULL;
}

/* Where nothing is declared and no tensor tells the method: whether there are integers that have scales. */
static void find_codes(const heft__quant_table *table, heft__quant_found *out)
{
    for (size_t i = 0; i < table->count && !out->method; i++) {
        if (heft__quant_has_codes(table, i)) {
            out->method = UNNAMED;
            out->bar_item = table->infos[i].name;
        }
    }
}

/* Another method than the one in use that alone has such a tensor. */
static const char *other_method(const heft__quant_finder *finder, size_t i)
{
    for (size_t m = 0; methods[m]; m++) {
        if (methods[m]->name != finder->found->method && methods[m]->is_marked(finder->table, i)) {
            return methods[m]->name;
        }
    }
    return NULL;
}

/* ---- finding ---------------------------------------------------------------------------------- */
static bool alike(const heft__quant_weight *a, const heft__quant_weight *b)
{
    return a->bits == b->bits && a->group == b->group && a->lines == b->lines;
}

/* Bits, group and block of the most weights. */
static void sum_up(heft__quant_found *found)
{
    const heft__quant_weight *common = NULL;
    size_t most = 0;
    for (size_t i = 0; i < found->count && most <= found->count / 2; i++) {
        const heft__quant_weight *weight = &found->weights[i];
        size_t same = 0;
        if (common && alike(weight, common)) {
            continue;
        }
        for (size_t k = i; k < found->count; k++) {
            same += alike(&found->weights[k], weight);
        }
        common = same > most ? weight : common;
        most = same > most ? same : most;
    }
    if (common) {
        found->bits = common->bits;
        found->group = common->group;
        found->lines = common->lines;
    }
}

static heft_status keep_weights(heft__quant_finder *finder, heft_status status, heft_error *err)
{
    heft__quant_found *found = finder->found;
    heft__quant_weight *kept = NULL;
    if (status == HEFT_OK && found->count) {
        kept = heft__arena_array(finder->arena, found->count, sizeof *kept);
        status = kept ? HEFT_OK : heft__fail_nomem(err, found->count * sizeof *kept);
    }
    if (kept) {
        memcpy(kept, found->weights, found->count * sizeof *kept);
    }
    heft__free(finder->arena->ctx, found->weights, finder->cap * sizeof *found->weights);
    found->weights = kept;
    return status;
}

heft_status heft__quant_find(heft__arena *arena, const heft__quant_table *table,
                             const heft__quant_settings *settings, heft__quant_found *out,
                             heft_error *err)
{
    const char *foreign = foreign_name(table), *name = foreign ? foreign : declared_name(settings);
    const heft__quant_method *method = name ? method_of(name) : marked(table);
    heft__quant_finder finder = {
        .arena = arena, .table = table, .settings = settings, .found = out};
    heft_status status = HEFT_OK;
    *out = (heft__quant_found){.declared = name && (!foreign || settings->config),
                               .known = method != NULL};
    if (!method) {
        out->method = name;
        find_codes(table, out);
        return HEFT_OK;
    }
    out->method = method->name;
    out->owner = heft__arena_array(arena, table->count ? table->count : 1, sizeof *out->owner);
    if (!out->owner) {
        return heft__fail_nomem(err, table->count * sizeof *out->owner);
    }
    for (size_t i = 0; i < table->count; i++) {
        out->owner[i] = HEFT__NO_PART;
    }
    for (size_t i = 0; i < table->count && status == HEFT_OK; i++) {
        status = method->find(&finder, i, err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_find_state(&finder, other_method, err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_heed_comfy(&finder, err);
    }
    status = keep_weights(&finder, status, err);
    for (size_t w = 0; status == HEFT_OK && settings->is_turned && w < out->count; w++) {
        heft__quant_weight *weight = &out->weights[w];
        weight->turned = weight->rank == 2 && settings->is_turned(settings->user, weight->name);
    }
    if (status == HEFT_OK) {
        sum_up(out);
    }
    return status;
}

bool heft__quant_has_metadata(const heft__quant_found *found)
{
    return found->method == heft__quant_torchao.name;
}

bool heft__quant_owns_metadata(const heft__quant_found *found, const char *key, bool is_tensor)
{
    /* keys may be names in memory, which are no tensor's */
    return heft__quant_has_metadata(found) &&
           (is_tensor || heft__quant_is_plain_name(key) || strcmp(key, "tensor_names") == 0);
}

heft_status heft__quant_check_known(const heft__quant_found *found, heft_error *err)
{
    if (!found->method || found->known) {
        return HEFT_OK;
    }
    if (found->bar_item) {
        const heft_status status =
            heft__fail(err, HEFT_UNSUPPORTED,
                       "integers with a scale beside them: the weights are quantized, and neither "
                       "a config nor the names of the tensors tell by which method");
        return heft__add_item(status, err, found->bar_item);
    }
    return heft__fail(err, HEFT_UNSUPPORTED,
                      "the weights are quantized with \"%.100s\", a method that heft does not "
                      "support",
                      found->method);
}

heft_status heft__quant_check_plain(const heft__quant_found *found, heft_error *err)
{
    heft_status status = heft__quant_check_known(found, err);
    if (status == HEFT_OK && found->bar) {
        status = heft__fail(err, HEFT_UNSUPPORTED, "cannot be dequantized: %s", found->bar);
        heft__add_item(status, err, found->bar_item);
    }
    return status;
}

/* ---- for methods ------------------------------------------------------------------------------ */
size_t heft__quant_prefix(const char *name, const char *suffix)
{
    const size_t length = strlen(name), end = strlen(suffix);
    return length > end && memcmp(name + length - end, suffix, end) == 0 ? length - end : SIZE_MAX;
}

size_t heft__quant_sibling(const heft__quant_table *table, size_t i, size_t prefix,
                           const char *suffix)
{
    char name[NAME_MOST];
    const size_t end = strlen(suffix);
    if (prefix > sizeof name - end) {
        return HEFT__NO_PART;
    }
    memcpy(name, table->infos[i].name, prefix);
    memcpy(name + prefix, suffix, end);
    const size_t found = heft__map_get(table->names, name, prefix + end);
    return found == HEFT__MAP_NONE ? HEFT__NO_PART : found;
}

heft_status heft__quant_need(const heft__quant_finder *finder, size_t i, size_t prefix,
                             const char *suffix, size_t *out, heft_error *err)
{
    *out = heft__quant_sibling(finder->table, i, prefix, suffix);
    if (*out != HEFT__NO_PART) {
        return HEFT_OK;
    }
    return heft__quant_fail(finder, i, err, "its companion tensor \"%.*s%s\" is missing",
                            prefix < 200 ? (int)prefix : 200, finder->table->infos[i].name, suffix);
}

heft_status heft__quant_expect(const heft__quant_finder *finder, size_t i, heft_dtype dtype,
                               heft_dtype other, const uint64_t *shape, uint32_t rank,
                               heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    char expected[HEFT__SHAPE_TEXT], found[HEFT__SHAPE_TEXT];
    if (dtype != HEFT_DTYPE_NONE && info->dtype != dtype && info->dtype != other) {
        return heft__quant_fail(finder, i, err, "expected dtype %s%s%s, found %s",
                                heft_dtype_name(dtype), other ? " or " : "",
                                other ? heft_dtype_name(other) : "", heft_dtype_name(info->dtype));
    }
    bool same = info->rank == rank;
    for (uint32_t d = 0; d < rank && same; d++) {
        same = info->shape[d] == shape[d];
    }
    return same ? HEFT_OK
                : heft__quant_fail(finder, i, err, "expected shape %s, found %s",
                                   heft__shape_text(shape, rank, expected),
                                   heft__shape_text(info->shape, info->rank, found));
}

heft_status heft__quant_fail(const heft__quant_finder *finder, size_t i, heft_error *err,
                             const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    heft_status status =
        heft__fail(err, HEFT_FORMAT, "quantized weight (%s): %s", finder->found->method, text);
    return heft__add_item(status, err, finder->table->infos[i].name);
}

heft_status heft__quant_weight_init(const heft__quant_finder *finder, heft__quant_weight *weight,
                                    size_t i, size_t prefix, const char *suffix, heft_error *err)
{
    const heft_dtype dtype = finder->settings->model_dtype;
    const bool half = dtype == HEFT_DTYPE_F16 || dtype == HEFT_DTYPE_BF16;
    *weight = (heft__quant_weight){.dtype = half ? dtype : HEFT_DTYPE_F32};
    for (size_t p = 0; p < HEFT__QUANT_PARTS; p++) {
        weight->part[p] = HEFT__NO_PART;
    }
    const char *name = finder->table->infos[i].name;
    const size_t end = strlen(suffix);
    if (strlen(name) == prefix + end && strcmp(name + prefix, suffix) == 0) {
        weight->name = name;
        return HEFT_OK;
    }
    char *text = heft__arena_alloc(finder->arena, prefix + end + 1);
    if (!text) {
        return heft__fail_nomem(err, prefix + end + 1);
    }
    memcpy(text, name, prefix);
    memcpy(text + prefix, suffix, end + 1);
    weight->name = text;
    return HEFT_OK;
}

heft_status heft__quant_read_factor(const heft__quant_finder *finder, size_t i, bool divides,
                                    float *out, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    uint8_t bytes[4];
    if (info->dtype != HEFT_DTYPE_F32 || info->size_bytes != 4) {
        char shape[HEFT__SHAPE_TEXT];
        return heft__quant_fail(finder, i, err, "expected one float32 value, found %s %s",
                                heft_dtype_name(info->dtype),
                                heft__shape_text(info->shape, info->rank, shape));
    }
    const heft_status status = finder->table->read(finder->table->user, i, bytes, 4, err);
    if (status == HEFT_OK) {
        const uint32_t bits = heft__le32(bytes);
        memcpy(out, &bits, sizeof *out);
    }
    /* what divides may be infinite: a matrix of zeros; what multiplies may be 0 */
    if (status == HEFT_OK && (*out != *out || (divides ? *out == 0 : *out - *out != 0))) {
        return heft__quant_fail(finder, i, err,
                                divides
                                    ? "expected a scale other than 0 and NaN, by which values are "
                                      "divided, found %g"
                                    : "expected a finite scale, found %g",
                                (double)*out);
    }
    return status;
}

heft_status heft__quant_add(heft__quant_finder *finder, const heft__quant_weight *weight,
                            heft_error *err)
{
    heft__quant_found *found = finder->found;
    const size_t same = heft__map_get(finder->table->names, weight->name, strlen(weight->name));
    bool plain = same != HEFT__MAP_NONE;
    for (size_t p = 0; p < HEFT__QUANT_PARTS; p++) {
        plain = plain && weight->part[p] != same;
    }
    if (plain) {
        return heft__quant_fail(
            finder, same, err, "expected a weight to be stored once, found it plain and quantized");
    }
    for (size_t p = 0; p < HEFT__QUANT_PARTS; p++) {
        const size_t part = weight->part[p];
        if (part == HEFT__NO_PART) {
            continue;
        }
        if (found->owner[part] != HEFT__NO_PART && found->owner[part] != found->count) {
            return heft__quant_fail(finder, part, err, "belongs to both \"%s\" and \"%s\"",
                                    found->weights[found->owner[part]].name, weight->name);
        }
        found->owner[part] = found->count;
    }
    if (!heft__array_reserve(finder->arena->ctx, (void **)&found->weights, found->count,
                             &finder->cap, sizeof *found->weights)) {
        return heft__fail_nomem(err, sizeof *found->weights);
    }
    found->weights[found->count++] = *weight;
    return HEFT_OK;
}

heft_status heft__quant_add_with(heft__quant_finder *finder, const heft__quant_weight *weight,
                                 size_t i, size_t prefix, const char *const *companions,
                                 heft_error *err)
{
    const heft_status status = heft__quant_add(finder, weight, err);
    for (const char *const *name = companions; status == HEFT_OK && *name; name++) {
        heft__quant_companion(finder, heft__quant_sibling(finder->table, i, prefix, *name));
    }
    return status;
}

void heft__quant_companion(heft__quant_finder *finder, size_t i)
{
    heft__quant_found *found = finder->found;
    if (i != HEFT__NO_PART && found->count && found->owner[i] == HEFT__NO_PART) {
        found->owner[i] = found->count - 1;
    }
}

/* ---- settings --------------------------------------------------------------------------------- */
static heft_status wrong_setting(const heft__quant_finder *finder, const heft__json_value *value,
                                 const char *key, heft_error *err, const char *expected)
{
    heft_status status = heft__fail_at(err, HEFT_FORMAT, value->offset, "expected %s", expected);
    heft__add_item(status, err, key);
    return heft__add_path(status, err, finder->settings->path);
}

heft_status heft__quant_integer(const heft__quant_finder *finder, const heft__json_value *object,
                                const char *key, int64_t low, int64_t high, int64_t standard,
                                int64_t *out, heft_error *err)
{
    const heft__json_value *value = heft__json_member(object, key);
    *out = standard;
    if (!value || value->type == HEFT__JSON_TYPE_NULL ||
        (heft__json_as_i64(value, out) && *out >= low && *out <= high)) {
        return HEFT_OK;
    }
    char expected[80];
    (void)snprintf(expected, sizeof expected, "an integer from %lld to %lld", (long long)low,
                   (long long)high);
    return wrong_setting(finder, value, key, err, expected);
}

heft_status heft__quant_text(const heft__quant_finder *finder, const heft__json_value *object,
                             const char *key, const char *standard, const char **out,
                             heft_error *err)
{
    const heft__json_value *value = heft__json_member(object, key);
    *out = standard;
    if (!value || value->type == HEFT__JSON_TYPE_NULL) {
        return HEFT_OK;
    }
    if (value->type != HEFT__JSON_TYPE_STRING) {
        return wrong_setting(finder, value, key, err, "a string");
    }
    *out = value->text;
    return HEFT_OK;
}

bool heft__quant_flag(const heft__json_value *object, const char *key, bool standard)
{
    const heft__json_value *value = heft__json_member(object, key);
    return value && value->type == HEFT__JSON_TYPE_BOOL ? value->boolean : standard;
}

/* ---- loops ------------------------------------------------------------------------------------ */
const float heft__e2m1_values[16] = {0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,  4.0F,  6.0F,
                                     -0.0F, -0.5F, -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F};

const struct heft__nibble_lanes *heft__nibble_lanes(void)
{
    const int level = heft__lanes_level();
#ifdef HEFT_LANES_X86
    if (level == HEFT__LEVEL_AVX512) {
        return &heft__nibble_lanes_avx512;
    }
    if (level == HEFT__LEVEL_AVX2) {
        return &heft__nibble_lanes_avx2;
    }
#endif
    (void)level;
    return &heft__nibble_lanes_base;
}

const struct heft__turned_lanes *heft__turned_lanes(void)
{
    const int level = heft__lanes_level();
#ifdef HEFT_LANES_X86
    if (level == HEFT__LEVEL_AVX512) {
        return &heft__turned_lanes_avx512;
    }
    if (level == HEFT__LEVEL_AVX2) {
        return &heft__turned_lanes_avx2;
    }
#endif
    (void)level;
    return &heft__turned_lanes_base;
}
