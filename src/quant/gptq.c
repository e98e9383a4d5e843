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
        *why_not = "its checkpoint_format is not supported";
    }
    return HEFT_OK;
}

static heft_status find(heft__quant_finder *finder, size_t i, heft_error *err)
{
    const size_t prefix = heft__quant_prefix(finder->table->infos[i].name, ".qweight");
    const heft__json_value *config = finder->settings->config;
    int64_t bits = 0, group = 0;
    const char *why_not = NULL;
    if (prefix == SIZE_MAX) {
        return HEFT_OK;
    }
    struct heft__turned *t = heft__arena_array(finder->arena, 1, sizeof *t);
    if (!t) {
        return heft__fail_nomem(err, sizeof *t);
    }
    heft_status status = heft__quant_integer(finder, config, "bits", 1, 8, 0, &bits, err);
    if (status == HEFT_OK) {
        status = heft__quant_integer(finder, config, "group_size", -1, INT32_MAX, 0, &group, err);
    }
    if (status == HEFT_OK) {
        status = read_version(finder, t, &why_not, err);
    }
    bits = bits ? bits : bits_by_shape(finder->table, i, prefix);
    if (status == HEFT_OK && (bits < 1 || bits > 8)) {
        status = heft__quant_fail(finder, i, err, "the number of bits is not given");
    }
    if (!why_not && bits != 2 && bits != 3 && bits != 4 && bits != 8) {
        why_not = "its number of bits is not supported (2, 3, 4 and 8 are)";
    }
    t->along_in = true;
    return status == HEFT_OK ? heft__turned_find(finder, i, prefix, bits, group, t, why_not, err)
                             : status;
}

const heft__quant_method heft__quant_gptq = {
    .name = "gptq",
    .names = (const char *const[]){"gptq", "gptqmodel", NULL},
    .is_marked = is_marked,
    .find = find,
};
