/* tally.c - what a dry run counts: operations, bytes of weights and caches, what an expert is expected to do.
 *
 * A product of n tokens takes longer than that of one, but not n times as long while weights come from memory.
 * So its time is measured at a few numbers of tokens, the knots; between two of them it is a line, beyond the
 * last one it is proportional to the tokens:
 *
 *   seconds(bytes, n) = bytes * ((1 - f) * c[i] + f * c[i + 1])     n = (1 - f) * knot[i] + f * knot[i + 1]
 *
 * Bytes are added up per knot, so that a tally need not know the times.
 * With E experts of which a token goes to k, n tokens use E * (1 - (1 - k / E)^n) of them, if all are as likely.
 * In a dry run all tokens go to every expert: what is counted there is scaled.
 * Not done here: seconds (predict.c). */
#include "run/pass_state.h"

#include <math.h>

const size_t heft__knots[HEFT__KNOTS] = {1, 2, 4, 8, 16, 32, 64, 256};

static void add_weight(double *weight_at, double bytes, double tokens)
{
    size_t i = 0;
    while (i + 1 < HEFT__KNOTS && tokens > (double)heft__knots[i + 1]) {
        i++;
    }
    const double low = (double)heft__knots[i];
    if (i + 1 == HEFT__KNOTS) {
        weight_at[i] += bytes * tokens / low;
        return;
    }
    const double f = (tokens - low) / ((double)heft__knots[i + 1] - low);
    weight_at[i] += bytes * (1 - f);
    weight_at[i + 1] += bytes * f;
}

void heft__tally_product(heft__pass *p, size_t tokens, const heft__matrix *w, bool compact)
{
    const double elems = (double)w->rows * (double)w->columns;
    const bool expert = p->expected.expert;
    const double used = expert ? p->expected.used : 1, share = expert ? p->expected.share : 1;
    const double bytes = elems * (double)(heft_dtype_bits(w->dtype) / 8) * used;
    if (!p->dry || tokens == 0) {
        return;
    }
    const double each = (double)tokens * share / used; /* of an expert that is used */
    p->tally.flops += (uint64_t)(2 * elems * (double)tokens * share);
    p->tally.weight_bytes += (uint64_t)bytes;
    const size_t whole = each > 1 ? (size_t)(each + 0.5) : 1;
    const heft__operand operand = {
        .tokens = whole, .columns = w->columns, .dtype = w->dtype, .turned = w->turned};
    const bool lone = heft__product_chunk(p, w, whole) >= w->rows;
    const size_t form = (lone ? HEFT__FORM_LONE : 0) + (w->turned ? (size_t)HEFT__FORM_TURNED
                                                        : compact ? HEFT__FORM_COMPACT
                                                                  : 0);
    add_weight(p->tally.weight_at[form], bytes, each > 1 ? each : 1);
    p->tally.products += used;
    p->tally.splits += used * (!lone + (p->kernels->operand_pieces(&operand) > 1));
}

void heft__tally_split(heft__pass *p, size_t items)
{
    if (p->dry && items > 1) {
        p->tally.splits += p->expected.expert ? p->expected.used : 1;
    }
}

void heft__tally_rows(heft__pass *p, size_t table, size_t rows)
{
    const heft_parameter *shown = &p->model->parameters[table];
    if (p->dry && p->residency->brought_at[table] != SIZE_MAX && shown->shape[0] > 0 &&
        heft__home_is_plain(p->model, table)) {
        p->tally.row_bytes += (uint64_t)rows * (shown->size_bytes / shown->shape[0]);
    }
}

void heft__tally_expert(heft__pass *p, size_t parameter)
{
    const size_t unit = p->residency->unit_of[parameter];
    if (p->order_count > 0 && p->order[p->order_count - 1] == unit) {
        return; /* it comes with its layer */
    }
    const uint64_t bytes = p->residency->views[parameter].size_bytes;
    p->tally.expert_bytes += bytes;
    p->tally.expert_read_bytes += (double)bytes * p->expected.used;
}

void heft__tally_route(heft__pass *p, size_t tokens, const heft__routing *routing)
{
    if (!p->dry || p->status != HEFT_OK) {
        return;
    }
    p->tally.routes++;
    p->tally.experts += routing->experts;
    p->expected.share = (double)routing->top / (double)routing->experts;
    p->expected.used = 1 - pow(1 - p->expected.share, (double)tokens);
}

void heft__tally_attention(heft__pass *p, const heft__attention *a, size_t queries, size_t keys,
                           const heft__slot *kept)
{
    const size_t sequences = p->in.sequences;
    if (!p->dry || sequences == 0 || queries == 0) {
        return;
    }
    const double of_sequence = (double)queries / (double)sequences;
    double seen = kept && !kept->cross ? (double)keys : of_sequence, held = seen;
    if (kept && kept->cross) {
        seen = held = (double)keys / (double)sequences;
    } else if (a->causal) {
        seen -= (of_sequence - 1) / 2; /* of a query, on average */
    }
    if (a->window > 0 && seen > (double)a->window) {
        seen = (double)a->window;
        held = held < seen + of_sequence ? held : seen + of_sequence;
    }
    seen = seen < 1 ? 1 : seen;
    const size_t element = kept ? heft_dtype_bits(p->cache_dtype) / 8 : sizeof(float);
    const size_t values = kept ? kept->value_width : a->value_width;
    const double width = (double)(a->kv_heads * (a->key_width + values) * element);
    const bool several = of_sequence > 1;
    p->tally.attend_flops[several] += (uint64_t)(2 * (double)queries * seen * (double)a->heads *
                                                 (double)(a->key_width + a->value_width));
    p->tally.attention = *a;
    p->tally.attention.slopes = p->tally.attention.sinks = p->tally.attention.bias = NULL;
    p->tally.cache_bytes += (uint64_t)(held * (double)sequences * width);
}
