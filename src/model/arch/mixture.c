/* mixture.c - a layer's experts.
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/mixture.h"

/* One matrix of an expert: part `part` of a stacked tensor, which is saved as number `turn` of them. */
static void matrix(heft__skeleton *s, const char *name, const uint64_t shape[2],
                   const heft__inner *inner, uint64_t part, uint64_t turn)
{
    heft__sk_enter(s, HEFT_MODULE_LINEAR, "", "%s", name);
    heft__sk_part(s, "weight", shape, 2, heft__sk_normal(s),
                  (heft__place){inner, (uint32_t)part, (uint32_t)turn});
    heft__sk_leave(s);
}

void mixture_experts(heft__skeleton *s, const struct experts *e)
{
    const uint64_t in[2] = {e->intermediate, e->hidden}, out[2] = {e->hidden, e->intermediate};
    const uint64_t both[3] = {e->count, 2 * e->intermediate, e->hidden},
                   down[3] = {e->count, e->hidden, e->intermediate};
    heft__sk_enter(s, HEFT_MODULE_EXPERTS, "*Experts", "experts");
    const heft__inner *gate_up = heft__sk_inner(s, "gate_up_proj", both, 3, 2 * (uint32_t)e->count);
    const heft__inner *below = heft__sk_inner(s, "down_proj", down, 3, (uint32_t)e->count);
    for (uint64_t i = 0; i < e->count && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_EXPERT, "", "%llu", (unsigned long long)i);
        matrix(s, e->gate, in, gate_up, 2 * i, i);
        matrix(s, e->up, in, gate_up, 2 * i + 1, e->count + i);
        matrix(s, e->down, out, below, i, i);
        heft__sk_leave(s);
    }
    heft__sk_leave(s);
}

void mixture_router(heft__skeleton *s, const struct experts *e)
{
    heft__sk_enter(s, HEFT_MODULE_ROUTER, "*TopKRouter", "gate");
    heft__sk_matrix(s, e->hidden, e->count, false);
    heft__sk_leave(s);
}

bool mixture_is_sparse(heft__skeleton *s, uint64_t i, uint64_t experts)
{
    return !heft__sk_list_has(s, "mlp_only_layers", i) && experts > 0 &&
           (i + 1) % heft__sk_count(s, "decoder_sparse_step", 1) == 0;
}

/* ---- forward pass ---------------------------------------------------------------------------- */
heft__rows mixture_forward(heft__pass *p, const struct experts *e, const heft__routing *routing,
                           heft__act act, heft__rows logits, heft__rows h)
{
    heft__rows y = heft__zeros(p, h.count, h.width);
    const heft__routes routes = heft__route(p, logits, routing);
    heft__expect(p, "experts", &routes, routing->experts);
    for (size_t i = 0; i < routing->experts && heft__pass_going(p); i++) {
        if (heft__routed_count(p, &routes, i) == 0) {
            continue;
        }
        heft__section(p, "experts", i);
        heft__rows z = heft__routed(p, h, &routes, i), gate = heft__linear(p, e->gate, z);
        heft__gate(p, act, gate, heft__linear(p, e->up, z));
        heft__add_routed(p, y, &routes, i, heft__linear(p, e->down, gate));
        heft__section_end(p);
    }
    return y;
}
