/* turned.h - private to the layer: what gptq and awq share. */
#ifndef HEFT__QUANT_TURNED_H
#define HEFT__QUANT_TURNED_H

#include "quant/quant.h"

struct heft__turned {
    uint32_t bits;
    bool along_in; /* words hold values along `in` (gptq); false: along `out`, of 4 bits (awq) */
    const uint8_t *order;   /* [8] which half-byte has output k of eight; NULL: k */
    bool less_one;          /* stored zero points are one less (gptq, not gptq_v2) */
    uint64_t group, groups; /* columns that share a scale; how many */
    heft_dtype scales;
    bool indexed; /* g_idx has the group of each column */
};

extern const heft__quant_layout heft__turned_layout;

/* Whether P.qweight has the shape of awq's (gptq.c). */
bool heft__quant_is_awq(const heft__quant_table *table, size_t i);

/* Add the weight of P.qweight, which is tensor i, with P.qzeros, P.scales and P.g_idx. group: of the settings;
 * 0 or less: not given. t: in the arena, with `along_in`, `order` and `less_one` set. why_not: the reason
 * why it cannot be dequantized; NULL: it can. */
heft_status heft__turned_find(heft__quant_finder *finder, size_t i, size_t prefix, int64_t bits,
                              int64_t group, struct heft__turned *t, const char *why_not,
                              heft_error *err);

#endif
