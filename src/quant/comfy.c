/* comfy.c - what ComfyUI says of single weights: another layout than their tensors show.
 *
 * P.comfy_quant U8 is a JSON text {"format": name, ...} about P.weight; or the files' metadata have one for all under
 * `_quantization_metadata`: {"layers": {P: {"format": ...}}}. float8_e4m3fn, float8_e5m2 and int8_tensorwise are what
 * their tensors show: a value times a scale. All others are not computed: nvfp4 and the MX formats have scales in the
 * tiled order of GPU kernels, and with `convrot` the weight is rotated.
 * Source: docs/formats/quantized.md [2]. */
#include "quant/quant.h"

#define TEXT_MOST 4096 /* bytes of one text; none is longer than 200 */
#define DEPTH 8

static bool is_text(const heft__json_value *value, const char *text)
{
    return value && value->type == HEFT__JSON_TYPE_STRING && strcmp(value->text, text) == 0;
}

/* Why a weight is not computed; NULL: it is. */
static const char *refusal(const heft__quant_finder *finder, const heft__json_value *layer)
{
    const heft__json_value *format = heft__json_member(layer, "format");
    const bool plain = is_text(format, "float8_e4m3fn") || is_text(format, "float8_e5m2") ||
                       is_text(format, "int8_tensorwise");
    if (plain && !heft__quant_flag(layer, "convrot", false)) {
        return NULL;
    }
    return heft__arena_format(finder->arena, "its ComfyUI format \"%.40s\"%s is not supported",
                              format && format->type == HEFT__JSON_TYPE_STRING ? format->text : "",
                              plain ? " with rotated weights (convrot)" : "");
}

/* The text of one weight; *layer is NULL if there is none. */
static heft_status read_own(const heft__quant_finder *finder, heft__arena *trees, size_t tensor,
                            heft__json_value **layer, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[tensor];
    uint8_t text[TEXT_MOST];
    heft_error why = {0};
    if (info->dtype != HEFT_DTYPE_U8 || info->size_bytes > sizeof text || !info->size_bytes) {
        return heft__quant_fail(finder, tensor, err, "expected a JSON text of at most %d bytes",
                                TEXT_MOST);
    }
    heft_status status =
        finder->table->read(finder->table->user, tensor, text, (size_t)info->size_bytes, err);
    if (status == HEFT_OK) {
        status = heft__json_parse(trees, text, (size_t)info->size_bytes, DEPTH, layer, &why);
        status = status == HEFT_OK      ? HEFT_OK
                 : status == HEFT_NOMEM ? heft__fail_nomem(err, sizeof text)
                                        : heft__quant_fail(finder, tensor, err, "malformed JSON");
    }
    return status;
}

/* `layers` of the files' metadata; NULL: there is none. */
static heft_status read_all(const heft__quant_finder *finder, heft__arena *trees,
                            const heft__json_value **layers, heft_error *err)
{
    const heft__quant_table *table = finder->table;
    const char *text =
        table->metadata ? table->metadata(table->user, "_quantization_metadata") : NULL;
    heft__json_value *root = NULL;
    heft_error why = {0};
    const heft_status status =
        text ? heft__json_parse(trees, text, strlen(text), DEPTH, &root, &why) : HEFT_OK;
    *layers = heft__json_member(root, "layers");
    return status == HEFT_NOMEM ? heft__fail_nomem(err, strlen(text)) : HEFT_OK;
}

/* Many layers and many weights: by their names. */
static heft_status index_layers(const heft__json_value *layers, heft__map *names,
                                const heft__json_value ***list, heft__arena *trees, heft_error *err)
{
    size_t count = 0, old;
    *list = layers ? heft__arena_array(trees, layers->count + 1, sizeof **list) : NULL;
    if (layers && !*list) {
        return heft__fail_nomem(err, layers->count * sizeof **list);
    }
    for (const heft__json_value *l = layers ? layers->first : NULL; l; l = l->next) {
        (*list)[count] = l;
        if (!l->key || !heft__map_put(names, l->key, l->key_length, count++, &old)) {
            return l->key ? heft__fail_nomem(err, l->key_length) : HEFT_OK;
        }
    }
    return HEFT_OK;
}

static heft_status look_at(heft__quant_finder *finder, heft__arena *trees, const heft__map *names,
                           const heft__json_value *const *list, heft__quant_weight *weight,
                           heft_error *err)
{
    const size_t module = heft__quant_prefix(weight->name, ".weight");
    heft__json_value *own = NULL;
    heft_status status = HEFT_OK;
    if (module == SIZE_MAX || !weight->layout || weight->part[0] >= finder->table->count) {
        return HEFT_OK;
    }
    const char *stored = finder->table->infos[weight->part[0]].name;
    const size_t prefix = heft__quant_prefix(stored, ".weight");
    const size_t tensor = prefix == SIZE_MAX ? HEFT__NO_PART
                                             : heft__quant_sibling(finder->table, weight->part[0],
                                                                   prefix, ".comfy_quant");
    const size_t entry = list ? heft__map_get(names, weight->name, module) : HEFT__MAP_NONE;
    if (tensor != HEFT__NO_PART) {
        status = read_own(finder, trees, tensor, &own, err);
    }
    if (status != HEFT_OK || (!own && entry == HEFT__MAP_NONE)) {
        return status;
    }
    const char *why = refusal(finder, own ? own : list[entry]);
    weight->why = why;
    weight->layout = why ? NULL : weight->layout;
    return HEFT_OK;
}

heft_status heft__quant_heed_comfy(heft__quant_finder *finder, heft_error *err)
{
    const heft__json_value *layers = NULL, **list = NULL;
    heft__arena trees;
    heft__map names;
    heft__arena_init(&trees, finder->arena->ctx);
    heft__map_init(&names, finder->arena->ctx);
    heft_status status = read_all(finder, &trees, &layers, err);
    if (status == HEFT_OK) {
        status = index_layers(layers, &names, &list, &trees, err);
    }
    for (size_t w = 0; w < finder->found->count && status == HEFT_OK; w++) {
        status = look_at(finder, &trees, &names, list, &finder->found->weights[w], err);
    }
    heft__map_fini(&names);
    heft__arena_fini(&trees);
    return status;
}
