/* torchao.c - the method "torchao", as its safetensors files have it.
 *
 * A weight P.NAME is in tensors P._NAME_qdata, P._NAME_scale and others. The file's metadata say under the
 * key P.NAME, or under the weight's name in memory, what they are:
 * {"_type": class, "_data": {attributes}, "_tensor_data_names": [...]}.
 *
 *   Float8Tensor               qdata float8 [out, in], scale F32 [out / bm, in / bn], `block_size` [bm, bn] (none:
 *                              one scale): value * scale, scaled.c
 *   Int8Tensor,                qdata I8 [out, in], scale, zero_point I8 (may be absent), `block_size`:
 *   IntxUnpackedToInt8Tensor   (value - zero) * scale, scaled.c
 *   NVFP4Tensor                qdata U8 [out, in / 2], scale F8_E4M3 [out, in / 16], per_tensor_scale F32 (may be
 *                              absent): value * (per_tensor_scale * scale), grouped4.c
 *   MXTensor                   qdata float8 [out, in] or U8 [out, in / 2], scale F8_E8M0 [out, in / block_size]
 *
 * In the type that `dtype` (or `orig_dtype`) says, else the model's. Not computed: layouts of GPU kernels
 * (Int4Tensor, Int4TilePackedTo4dTensor, Int4PlainInt32Tensor, `is_swizzled_scales`), weights whose inputs are
 * scaled, too (act_pre_scale), MXTensor in float16, whose scales torchao rounds to it.
 * Source: docs/formats/quantized.md. */
#include "quant/quant.h"

#define DEPTH 32 /* of the JSON in metadata */

/* One weight, while its tensors are looked up. */
struct subject {
    size_t i, prefix;   /* of qdata: its number, and the bytes of its name in front of "qdata" */
    const char *name;   /* of the weight */
    heft__arena *trees; /* of its metadata; it ends with the subject */
    const char *type;   /* its class */
    const heft__json_value *data;
    const heft__json_value *parts; /* the names of its tensors, without the prefix */
};

/* The bytes in front of "qdata" in "P._NAME_qdata", by its end "_qdata"; SIZE_MAX: it is no such name. */
static size_t before(const char *name, const char *part)
{
    const size_t end = heft__quant_prefix(name, part);
    if (end == SIZE_MAX) {
        return SIZE_MAX;
    }
    size_t dot = end;
    while (dot > 0 && name[dot - 1] != '.') {
        dot--;
    }
    return dot > 1 && name[dot] == '_' && dot + 1 < end ? end + 1 : SIZE_MAX;
}

static size_t before_qdata(const char *name)
{
    return before(name, "_qdata");
}

/* "P.NAME" of "P._NAME_qdata". */
static char *plain_name(heft__arena *arena, const char *name, size_t prefix)
{
    char *text = heft__arena_text(arena, name, prefix - 1);
    char *mark = text ? strrchr(text, '.') : NULL;
    if (mark) {
        memmove(mark + 1, mark + 2, strlen(mark + 1));
    }
    return text;
}

static size_t tensor_of(const heft__quant_finder *finder, const struct subject *s, const char *what)
{
    return heft__quant_sibling(finder->table, s->i, s->prefix, what);
}

/* ---- metadata --------------------------------------------------------------------------------- */
static heft_status wrong_metadata(const heft__quant_finder *finder, const struct subject *s,
                                  const char *key, heft_error *err)
{
    return heft__quant_fail(finder, s->i, err, "\"%s\" in the metadata of \"%.200s\" is malformed",
                            key, s->name);
}

/* {"_type": "torch.dtype", "_data": "bfloat16"}; *out is left where it is absent or null. */
static heft_status dtype_in(const heft__quant_finder *finder, const struct subject *s,
                            const char *key, heft_dtype *out, heft_error *err)
{
    const heft__json_value *value = heft__json_member(s->data, key);
    const heft__json_value *text = heft__json_member(value, "_data");
    heft_error why;
    if (!value || value->type == HEFT__JSON_TYPE_NULL) {
        return HEFT_OK;
    }
    return text && text->type == HEFT__JSON_TYPE_STRING &&
                   heft_dtype_parse(text->text, out, &why) == HEFT_OK &&
                   (*out == HEFT_DTYPE_F32 || *out == HEFT_DTYPE_F16 || *out == HEFT_DTYPE_BF16)
               ? HEFT_OK
               : wrong_metadata(finder, s, key, err);
}

/* `block_size` as a list of the rank of the matrix; an empty or absent one is the whole matrix. */
static heft_status block_in(const heft__quant_finder *finder, const struct subject *s,
                            uint64_t block[2], heft_error *err)
{
    const heft__json_value *list = heft__json_member(s->data, "block_size");
    block[0] = block[1] = 0;
    if (!list || list->type == HEFT__JSON_TYPE_NULL ||
        (list->type == HEFT__JSON_TYPE_ARRAY && list->count == 0)) {
        return HEFT_OK;
    }
    if (list->type == HEFT__JSON_TYPE_ARRAY && list->count == 3) {
        return HEFT_OK; /* of several matrices, which are not computed */
    }
    return list->type == HEFT__JSON_TYPE_ARRAY && list->count == 2 &&
                   heft__json_as_u64(list->first, &block[0]) &&
                   heft__json_as_u64(list->last, &block[1]) && block[0] && block[1]
               ? HEFT_OK
               : wrong_metadata(finder, s, "block_size", err);
}

/* The text under the weight's name; Transformers writes it under the name in memory. NULL: there is none. */
static heft_status find_metadata(const heft__quant_finder *finder, const char *name,
                                 const char **text, heft_error *err)
{
    const heft__quant_table *table = finder->table;
    const heft__quant_settings *settings = finder->settings;
    const char *inner = NULL;
    *text = table->metadata ? table->metadata(table->user, name) : NULL;
    if (*text || !table->metadata || !settings->inner_name) {
        return HEFT_OK;
    }
    const heft_status status = settings->inner_name(settings->user, name, &inner, err);
    *text = status == HEFT_OK && inner ? table->metadata(table->user, inner) : NULL;
    return status;
}

/* s->type is NULL where the metadata say nothing of the weight. */
static heft_status read_metadata(const heft__quant_finder *finder, struct subject *s,
                                 heft_error *err)
{
    const char *text = NULL;
    heft__json_value *root = NULL;
    heft_error why = {0};
    heft_status status = find_metadata(finder, s->name, &text, err);
    if (status != HEFT_OK || !text) {
        return status;
    }
    status = heft__json_parse(s->trees, text, strlen(text), DEPTH, &root, &why);
    if (status == HEFT_NOMEM) {
        return heft__fail_nomem(err, strlen(text));
    }
    const heft__json_value *type = heft__json_member(root, "_type");
    if (status != HEFT_OK || !type || type->type != HEFT__JSON_TYPE_STRING) {
        return wrong_metadata(finder, s, "_type", err);
    }
    s->type = type->text;
    s->data = heft__json_member(root, "_data");
    s->parts = heft__json_member(root, "_tensor_data_names");
    return HEFT_OK;
}

/* ---- classes ---------------------------------------------------------------------------------- */
static heft_status find_bytes(const heft__quant_finder *finder, const struct subject *s,
                              heft__quant_weight *weight, size_t scales, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[s->i];
    const size_t zeros = tensor_of(finder, s, "zero_point");
    uint64_t block[2];
    heft_status status = block_in(finder, s, block, err);
    if (status == HEFT_OK && heft_dtype_bits(finder->table->infos[scales].dtype) == 8) {
        return heft__quant_fail(finder, scales, err, "%s cannot be a scale of %s",
                                heft_dtype_name(finder->table->infos[scales].dtype), s->type);
    }
    if (status == HEFT_OK && info->rank == 2 && block[1] == info->shape[1]) {
        block[1] = 0; /* rows have no groups */
    }
    if (status == HEFT_OK) {
        status = dtype_in(finder, s, "dtype", &weight->dtype, err);
    }
    if (status == HEFT_OK && zeros != HEFT__NO_PART &&
        finder->table->infos[zeros].dtype != HEFT_DTYPE_I8) {
        weight->why = "its zero points are not integers";
        return HEFT_OK;
    }
    return status == HEFT_OK
               ? heft__quant_scaled(finder, weight, s->i, scales, zeros, block[0], block[1], err)
               : status;
}

static heft_status find_nvfp4(const heft__quant_finder *finder, const struct subject *s,
                              heft__quant_weight *weight, size_t scales, heft_error *err)
{
    const size_t whole = tensor_of(finder, s, "per_tensor_scale");
    float factor = 1.0F;
    int64_t block = 16;
    heft_status status = dtype_in(finder, s, "orig_dtype", &weight->dtype, err);
    if (status == HEFT_OK) {
        status = heft__quant_integer(finder, s->data, "block_size", 16, 16, 16, &block, err);
    }
    if (status == HEFT_OK && finder->table->infos[scales].dtype != HEFT_DTYPE_F8_E4M3FN) {
        return heft__quant_fail(finder, scales, err, "expected float8_e4m3fn, found %s",
                                heft_dtype_name(finder->table->infos[scales].dtype));
    }
    if (status == HEFT_OK && whole != HEFT__NO_PART && finder->table->infos[whole].rank != 3) {
        status = heft__quant_read_factor(finder, whole, false, &factor, err);
    }
    return status == HEFT_OK ? heft__quant_grouped4(finder, weight, s->i, scales, (uint64_t)block,
                                                    1.0F, factor, err)
                             : status;
}

static heft_status find_mx(const heft__quant_finder *finder, const struct subject *s,
                           heft__quant_weight *weight, size_t scales, heft_error *err)
{
    const heft_dtype values = finder->table->infos[s->i].dtype;
    const heft__json_value *element =
        heft__json_member(heft__json_member(s->data, "elem_dtype"), "_data");
    int64_t block = 32;
    heft_status status = dtype_in(finder, s, "orig_dtype", &weight->dtype, err);
    if (status == HEFT_OK) {
        status = heft__quant_integer(finder, s->data, "block_size", 2, 1 << 20, 32, &block, err);
    }
    if (status == HEFT_OK) {
        const heft_dtype dtype = finder->table->infos[scales].dtype;
        status = dtype == HEFT_DTYPE_F8_E8M0FNU || dtype == HEFT_DTYPE_U8
                     ? HEFT_OK
                     : heft__quant_fail(finder, scales, err, "expected exponents, found %s",
                                        heft_dtype_name(dtype));
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (weight->dtype == HEFT_DTYPE_F16) {
        weight->why = "MXTensor in float16 is not supported";
        return HEFT_OK;
    }
    if (values != HEFT_DTYPE_U8) {
        return heft__quant_scaled(finder, weight, s->i, scales, HEFT__NO_PART, 1, (uint64_t)block,
                                  err);
    }
    if (block % 2 || !element || element->type != HEFT__JSON_TYPE_STRING ||
        strcmp(element->text, "float4_e2m1fn_x2") != 0) {
        weight->why = "its elements are not 4-bit floats";
        return HEFT_OK;
    }
    return heft__quant_grouped4(finder, weight, s->i, scales, (uint64_t)block, 1.0F, 1.0F, err);
}

/* ---- the method ------------------------------------------------------------------------------- */
static const char *const classes_of_bytes[] = {"Float8Tensor", "Int8Tensor",
                                               "IntxUnpackedToInt8Tensor", NULL};

static bool is_of_bytes(const char *type)
{
    for (const char *const *name = classes_of_bytes; *name; name++) {
        if (strcmp(type, *name) == 0) {
            return true;
        }
    }
    return false;
}

/* Why it is not computed, whatever its tensors are; NULL: it may be. */
static const char *why_not(const heft__quant_finder *finder, const struct subject *s)
{
    if (!s->type) {
        return "the metadata of its file does not describe it";
    }
    if (tensor_of(finder, s, "act_pre_scale") != HEFT__NO_PART) {
        return "its inputs are scaled too (act_pre_scale)";
    }
    if (heft__quant_flag(s->data, "is_swizzled_scales", false)) {
        return "its scales are in a GPU kernel layout (is_swizzled_scales)";
    }
    return is_of_bytes(s->type) || strcmp(s->type, "NVFP4Tensor") == 0 ||
                   strcmp(s->type, "MXTensor") == 0
               ? NULL
               : "its torchao class is a GPU kernel layout, or is not supported";
}

static heft_status find_values(const heft__quant_finder *finder, const struct subject *s,
                               heft__quant_weight *weight, heft_error *err)
{
    size_t scales = HEFT__NO_PART;
    const heft_status status = heft__quant_need(finder, s->i, s->prefix, "scale", &scales, err);
    if (status != HEFT_OK) {
        return status;
    }
    weight->part[1] = scales;
    return is_of_bytes(s->type)               ? find_bytes(finder, s, weight, scales, err)
           : strcmp(s->type, "MXTensor") == 0 ? find_mx(finder, s, weight, scales, err)
                                              : find_nvfp4(finder, s, weight, scales, err);
}

static bool is_marked(const heft__quant_table *table, size_t i)
{
    const size_t prefix = before_qdata(table->infos[i].name);
    return prefix != SIZE_MAX &&
           (heft__quant_sibling(table, i, prefix, "scale") != HEFT__NO_PART ||
            heft__quant_sibling(table, i, prefix, "scale_and_zero") != HEFT__NO_PART);
}

/* Every tensor that the metadata list must be there. */
static heft_status check_parts(const heft__quant_finder *finder, const struct subject *s,
                               heft_error *err)
{
    const bool list = s->parts && s->parts->type == HEFT__JSON_TYPE_ARRAY;
    heft_status status = HEFT_OK;
    for (const heft__json_value *part = list ? s->parts->first : NULL; part && status == HEFT_OK;
         part = part->next) {
        size_t found;
        status = part->type == HEFT__JSON_TYPE_STRING
                     ? heft__quant_need(finder, s->i, s->prefix, part->text, &found, err)
                     : wrong_metadata(finder, s, "_tensor_data_names", err);
    }
    return status;
}

/* A part of a weight that the metadata describe is a fault without its values. */
static heft_status check_orphan(const heft__quant_finder *finder, size_t i, heft_error *err)
{
    static const char *const parts[] = {"_scale", "_scale_and_zero", "_zero_point",
                                        "_per_tensor_scale", NULL};
    const heft__quant_table *table = finder->table;
    for (const char *const *part = parts; *part && table->metadata; part++) {
        const size_t prefix = before(table->infos[i].name, *part);
        if (prefix == SIZE_MAX || heft__quant_sibling(table, i, prefix, "qdata") != HEFT__NO_PART) {
            continue;
        }
        const char *name = plain_name(finder->arena, table->infos[i].name, prefix);
        size_t missing;
        if (!name) {
            return heft__fail_nomem(err, prefix);
        }
        if (table->metadata(table->user, name)) {
            return heft__quant_need(finder, i, prefix, "qdata", &missing, err);
        }
    }
    return HEFT_OK;
}

static heft_status find(heft__quant_finder *finder, size_t i, heft_error *err)
{
    static const char *const rest[] = {"scale",
                                       "scale_and_zero",
                                       "zero_point",
                                       "per_tensor_scale",
                                       "act_quant_scale",
                                       "act_quant_zero_point",
                                       "act_pre_scale",
                                       "act_per_tensor_scale",
                                       NULL};
    heft__arena trees;
    struct subject s = {
        .i = i, .prefix = before_qdata(finder->table->infos[i].name), .trees = &trees};
    heft__quant_weight weight;
    if (s.prefix == SIZE_MAX) {
        return check_orphan(finder, i, err);
    }
    heft__arena_init(&trees, finder->arena->ctx);
    s.name = plain_name(finder->arena, finder->table->infos[i].name, s.prefix);
    heft_status status = s.name ? read_metadata(finder, &s, err) : heft__fail_nomem(err, s.prefix);
    if (status == HEFT_OK) {
        status = check_parts(finder, &s, err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_weight_init(finder, &weight, i, s.prefix, "qdata", err);
    }
    if (status == HEFT_OK) {
        weight.name = s.name;
        weight.part[0] = i;
        weight.why = why_not(finder, &s);
        status = weight.why ? HEFT_OK : find_values(finder, &s, &weight, err);
    }
    heft__arena_fini(&trees);
    if (status == HEFT_OK) {
        status = heft__quant_add(finder, &weight, err);
    }
    for (const char *const *what = rest; status == HEFT_OK && *what; what++) {
        heft__quant_companion(finder, tensor_of(finder, &s, *what));
    }
    return status;
}

const heft__quant_method heft__quant_torchao = {
    .name = "torchao",
    .names = (const char *const[]){"torchao", NULL},
    .is_marked = is_marked,
    .find = find,
};
