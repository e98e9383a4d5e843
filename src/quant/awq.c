/* awq.c - the method "awq".
 *
 * `bits` 4, `group_size`, `version` (or `format`) gemm. P.qweight I32 [in, out / 8], P.qzeros I32 [groups,
 * out / 8], P.scales F16 [groups, out]. A word has eight neighboring outputs, output k in half-byte
 * (0 4 1 5 2 6 3 7)[k].
 *
 *   W[o][i] = (q[i][o] - z[g][o]) * scales[g][o], g = i / group_size, the product exact, rounded to the
 *   scale's dtype
 *
 * A module of activations may have P.scales of its own (mlp.act.scales), by which the activation is divided: the
 * weights that follow are multiplied by it, so plain weights alone are not the model.
 *
 * gemv, gemv_fast, marlin, exllama and llm-awq are other layouts.
 * Source: docs/formats/quantized.md. */
#include "quant/turned.h"

#include <strings.h>

static const uint8_t order[8] = {0, 4, 1, 5, 2, 6, 3, 7};

static bool is_marked(const heft__quant_table *table, size_t i)
{
    return heft__quant_is_awq(table, i);
}

static void note_activation(heft__quant_finder *finder, size_t i)
{
    const size_t prefix = heft__quant_prefix(finder->table->infos[i].name, ".scales");
    if (prefix != SIZE_MAX && !finder->found->bar &&
        heft__quant_sibling(finder->table, i, prefix, ".qweight") == HEFT__NO_PART) {
        finder->found->bar = "an activation is divided by these scales (awq), and the plain "
                             "weights after it would need that";
        finder->found->bar_item = finder->table->infos[i].name;
    }
}

static heft_status find(heft__quant_finder *finder, size_t i, heft_error *err)
{
    const size_t prefix = heft__quant_prefix(finder->table->infos[i].name, ".qweight");
    const heft__json_value *config = finder->settings->config;
    const char *version = NULL, *why_not = NULL;
    int64_t bits = 4, group = 0;
    if (prefix == SIZE_MAX) {
        note_activation(finder, i);
        return HEFT_OK;
    }
    struct heft__turned *t = heft__arena_array(finder->arena, 1, sizeof *t);
    if (!t) {
        return heft__fail_nomem(err, sizeof *t);
    }
    heft_status status = heft__quant_integer(
        finder, config, heft__json_member(config, "w_bit") ? "w_bit" : "bits", 4, 4, 4, &bits, err);
    if (status == HEFT_OK) {
        status = heft__quant_integer(finder, config,
                                     heft__json_member(config, "q_group_size") ? "q_group_size"
                                                                               : "group_size",
                                     -1, INT32_MAX, 0, &group, err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_text(finder, config, "version", NULL, &version, err);
    }
    if (status == HEFT_OK && !version) {
        status = heft__quant_text(finder, config, "format", "gemm", &version, err);
    }
    if (status == HEFT_OK && strcasecmp(version, "gemm") != 0) {
        why_not = heft__arena_format(
            finder->arena, "its version \"%.40s\" is not supported (only gemm is)", version);
        status = why_not ? HEFT_OK : heft__fail_nomem(err, 0);
    }
    t->order = order;
    return status == HEFT_OK ? heft__turned_find(finder, i, prefix, bits, group, t, why_not, err)
                             : status;
}

const heft__quant_method heft__quant_awq = {
    .name = "awq",
    .names = (const char *const[]){"awq", NULL},
    .is_marked = is_marked,
    .find = find,
};
