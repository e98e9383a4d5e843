/* gptq.c - the method "gptq".
 *
 * `bits` 2, 3, 4 or 8, `group_size` (-1: one group), `checkpoint_format` or `format`: gptq (the default) or gptq_v2;
 * in config.json, or in quantize_config.json. P.qweight I32 [in * bits / 32, out]: each column a little-
 * endian bit stream over i; P.qzeros I32 [groups, out * bits / 32]: each row a stream over o; P.scales F16
 * [groups, out]; P.g_idx I32 [in], the group of each column, may be absent.
 *
 *   W[o][i] = scales[g][o] * (q[i][o] - z[g][o]), the product exact, rounded to the scale's dtype
 *
 * gptq_v2 stores z, gptq z - 1: for 2, 4 and 8 bits, 0x55555555, 0x11111111 or 0x01010101 was subtracted
 * from each word, so it is added to each word, and a borrow of z = 0 is undone; for 3 bits z is the stored value
 * and 1, cut to 3 bits. Values of other sizes, and the formats marlin, bitblas and so on, are other layouts.
 * Source: docs/formats/quantized.md. */
#include "quant/turned.h"

/* P.qweight of AWQ has an input in each line and outputs in words: as many times 8 outputs as scales. */
bool heft__quant_is_awq(const heft__quant_table *table, size_t i)
{
    const heft_tensor_info *info = &table->infos[i];
    const size_t prefix = heft__quant_prefix(info->name, ".qweight");
    const size_t scales =
        prefix == SIZE_MAX ? HEFT__NO_PART : heft__quant_sibling(table, i, prefix, ".scales");
    return scales != HEFT__NO_PART && info->rank == 2 && table->infos[scales].rank == 2 &&
           heft__quant_sibling(table, i, prefix, ".g_idx") == HEFT__NO_PART &&
           info->shape[1] <= UINT64_MAX / 8 && info->shape[1] * 8 == table->infos[scales].shape[1];
}

static bool is_marked(const heft__quant_table *table, size_t i)
{
    const size_t prefix = heft__quant_prefix(table->infos[i].name, ".qweight");
    return prefix != SIZE_MAX &&
           heft__quant_sibling(table, i, prefix, ".scales") != HEFT__NO_PART &&
           !heft__quant_is_awq(table, i);
}

/* Without settings: a line of g_idx has the inputs. 0: not known. */
static int64_t bits_by_shape(const heft__quant_table *table, size_t i, size_t prefix)
{
    const size_t index = heft__quant_sibling(table, i, prefix, ".g_idx"),
                 zeros = heft__quant_sibling(table, i, prefix, ".qzeros"),
                 scales = heft__quant_sibling(table, i, prefix, ".scales");
    const heft_tensor_info *infos = table->infos;
    if (index != HEFT__NO_PART && infos[index].rank == 1 && infos[i].rank == 2 &&
        infos[index].shape[0] && infos[i].shape[0] < UINT32_MAX) {
        return (int64_t)(infos[i].shape[0] * 32 / infos[index].shape[0]);
    }
    if (zeros != HEFT__NO_PART && scales != HEFT__NO_PART && infos[zeros].rank == 2 &&
        infos[scales].rank == 2 && infos[scales].shape[1] && infos[zeros].shape[1] < UINT32_MAX) {
        return (int64_t)(infos[zeros].shape[1] * 32 / infos[scales].shape[1]);
    }
    return 0;
}

/* Which of the two zero points; NULL, or why the weight cannot be dequantized. */
static heft_status read_version(const heft__quant_finder *finder, struct heft__turned *t,
                                const char **why_not, heft_error *err)
{
    const heft__json_value *config = finder->settings->config;
    const char *form = NULL;
    heft_status status = heft__quant_text(finder, config, "checkpoint_format", NULL, &form, err);
    if (status == HEFT_OK && !form) {
        status = heft__quant_text(finder, config, "format", "gptq", &form, err);
    }
    *why_not = NULL;
    if (status != HEFT_OK) {
        return status;
    }
    if (!config) {
        *why_not = "no config gives its checkpoint_format (gptq or gptq_v2), which determines the "
                   "zero points";
    } else if (strcmp(form, "gptq") == 0) {
        t->less_one = true;
    } else if (strcmp(form, "gptq_v2") != 0) {
        *why_not = heft__arena_format(finder->arena,
                                      "its checkpoint_format \"%.40s\" is not supported", form);
        return *why_not ? HEFT_OK : heft__fail_nomem(err, 0);
    }
    return HEFT_OK;
}

/* ---- settings of single modules ----------------------------------------------------------------- */
/* `dynamic`, or AutoRound's `extra_config`: expressions of modules with settings of their own. The expressions are
 * not evaluated: which settings a module has shows in the shapes of its tensors. */
static const heft__json_value *overrides_in(const heft__quant_finder *finder)
{
    const heft__json_value *config = finder->settings->config,
                           *own = heft__json_member(config, "dynamic"),
                           *dynamic = own ? own : heft__json_member(config, "extra_config");
    return dynamic && dynamic->type == HEFT__JSON_TYPE_OBJECT ? dynamic->first : NULL;
}

/* Columns that share a scale, if a group size goes with so many groups; 0: it does not. */
static uint64_t columns_of_group(int64_t size, uint64_t columns, uint64_t groups)
{
    const uint64_t each = size > 0 && (uint64_t)size < columns ? (uint64_t)size : columns;
    return columns && (columns - 1) / each + 1 == groups ? each : 0;
}

/* The group size among the config's and those of single modules that goes with the scales; the config's if
 * none does. *unsure: several do. */
static int64_t group_by_scales(const heft__quant_finder *finder, size_t i, size_t prefix,
                               int64_t bits, int64_t standard, bool *unsure)
{
    const heft_tensor_info *infos = finder->table->infos;
    const size_t scales = heft__quant_sibling(finder->table, i, prefix, ".scales");
    if (scales == HEFT__NO_PART || infos[scales].rank != 2 || infos[i].rank != 2 ||
        infos[i].shape[0] > UINT32_MAX) {
        return standard;
    }
    const uint64_t columns = infos[i].shape[0] * 32 / (uint64_t)bits,
                   groups = infos[scales].shape[0];
    uint64_t each = columns_of_group(standard, columns, groups);
    int64_t found = standard;
    for (const heft__json_value *own = overrides_in(finder); own; own = own->next) {
        const heft__json_value *value = heft__json_member(own, "group_size");
        int64_t size = 0;
        const uint64_t other =
            value && heft__json_as_i64(value, &size) ? columns_of_group(size, columns, groups) : 0;
        *unsure = *unsure || (other && each && other != each);
        found = other && !each ? size : found;
        each = each ? each : other;
    }
    return found;
}

/* ---- zero points of symmetric weights ------------------------------------------------------------ */
#define LOOKED_AT 64

/* Symmetric weights have one zero point, so it shows whether it is stored as the config says. The config decides,
 * as in the reference; but the values are off by a scale if it is wrong, so that is told. */
static heft_status check_symmetric(const heft__quant_finder *finder,
                                   const heft__quant_weight *weight, size_t zeros, bool less_one,
                                   heft_error *err)
{
    uint8_t bytes[LOOKED_AT], values[LOOKED_AT];
    const uint64_t out = weight->shape[0];
    const size_t count = out < LOOKED_AT ? (size_t)out : LOOKED_AT;
    const unsigned half = 1U << (weight->bits - 1), expected = half - less_one,
                   other = half - !less_one;
    size_t wrong = 0;
    if (finder->found->doubt) {
        return HEFT_OK;
    }
    const heft_status status = finder->table->read(finder->table->user, zeros, bytes,
                                                   (count * weight->bits + 31) / 32 * 4, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft__quant_unpack(bytes, 0, count, weight->bits, values);
    for (size_t k = 0; k < count; k++) {
        wrong += values[k] != expected;
    }
    if (wrong) {
        const bool swapped = values[0] == other;
        finder->found->doubt =
            heft__arena_format(finder->arena,
                               "'%.200s': the config declares symmetric weights of %s, whose zero "
                               "points are stored as "
                               "%u, but here %u is stored%s: dequantized values follow the config",
                               weight->name, less_one ? "gptq" : "gptq_v2", expected, values[0],
                               !swapped   ? ""
                               : less_one ? ", as in gptq_v2"
                                          : ", as in gptq");
        return finder->found->doubt ? HEFT_OK : heft__fail_nomem(err, 0);
    }
    return HEFT_OK;
}

/* ---- the method ------------------------------------------------------------------------------- */
static heft_status find_bits(const heft__quant_finder *finder, size_t i, size_t prefix,
                             int64_t *bits, heft_error *err)
{
    const int64_t by_shape = bits_by_shape(finder->table, i, prefix);
    const heft_status status =
        heft__quant_integer(finder, finder->settings->config, "bits", 1, 8, 0, bits, err);
    const bool own = overrides_in(finder) && by_shape >= 1 && by_shape <= 8;
    if (status == HEFT_OK && by_shape > 0 && by_shape < *bits && !own) {
        return heft__quant_fail(finder, i, err, "expected values of %d bits, found room for %d",
                                (int)*bits, (int)by_shape);
    }
    *bits = own || !*bits ? by_shape : *bits;
    return status == HEFT_OK && (*bits < 1 || *bits > 8)
               ? heft__quant_fail(finder, i, err, "the bits of a value are not given")
               : status;
}

static heft_status find(heft__quant_finder *finder, size_t i, heft_error *err)
{
    const size_t prefix = heft__quant_prefix(finder->table->infos[i].name, ".qweight");
    const heft__json_value *config = finder->settings->config;
    int64_t bits = 0, group = 0;
    const char *why_not = NULL;
    bool unsure = false;
    if (prefix == SIZE_MAX) {
        return HEFT_OK;
    }
    struct heft__turned *t = heft__arena_array(finder->arena, 1, sizeof *t);
    heft_status status =
        t ? find_bits(finder, i, prefix, &bits, err) : heft__fail_nomem(err, sizeof *t);
    if (status == HEFT_OK) {
        status = heft__quant_integer(finder, config, "group_size", -1, INT32_MAX, 0, &group, err);
    }
    if (status == HEFT_OK) {
        status = read_version(finder, t, &why_not, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (!why_not && bits != 2 && bits != 3 && bits != 4 && bits != 8) {
        why_not = "its number of bits is not supported (2, 3, 4 and 8 are)";
    }
    t->along_in = true;
    group = group_by_scales(finder, i, prefix, bits, group, &unsure);
    status = heft__turned_find(finder, i, prefix, bits, group, t, why_not, err);
    if (status != HEFT_OK || why_not) {
        return status;
    }
    if (heft__quant_flag(config, "desc_act", false) && !t->indexed && t->groups > 1) {
        size_t missing; /* in which order the groups are is not known without it */
        return heft__quant_need(finder, i, prefix, ".g_idx", &missing, err);
    }
    heft__quant_weight *weight = &finder->found->weights[finder->found->count - 1];
    if (unsure && !t->indexed) {
        weight->layout = NULL;
        weight->why = "several group sizes of the config go with its scales";
    }
    return heft__quant_flag(config, "sym", false)
               ? check_symmetric(finder, weight,
                                 heft__quant_sibling(finder->table, i, prefix, ".qzeros"),
                                 t->less_one, err)
               : HEFT_OK;
}

const heft__quant_method heft__quant_gptq = {
    .name = "gptq",
    .names = (const char *const[]){"gptq", "gptqmodel", NULL},
    .is_marked = is_marked,
    .find = find,
};
