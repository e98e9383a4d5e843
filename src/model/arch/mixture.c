/* mixture.c - a layer's experts.
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/mixture.h"

/* One matrix of every expert. `first` and `stride`: where they lie in the stacked tensor. */
static void matrices(heft__skeleton *s, const struct experts *e, const char *name,
                     const uint64_t shape[2], const heft__inner *inner, uint64_t first,
                     uint64_t stride, uint32_t turn)
{
    for (uint64_t i = 0; i < e->count && heft__sk_going(s); i++) {
        const heft__place place = {inner, first + i * stride, turn + (uint32_t)i};
        heft__sk_enter(s, "%llu.%s", (unsigned long long)i, name);
        heft__sk_part(s, "weight", shape, 2, heft__sk_normal(s), place);
        heft__sk_leave(s);
    }
}

void mixture_experts(heft__skeleton *s, const struct experts *e)
{
    const uint64_t size = e->hidden * e->intermediate; /* each below 2^31 */
    const uint64_t in[2] = {e->intermediate, e->hidden}, out[2] = {e->hidden, e->intermediate};
    const uint64_t both[3] = {e->count, 2 * e->intermediate, e->hidden},
                   down[3] = {e->count, e->hidden, e->intermediate};
    heft__sk_enter(s, "experts");
    const heft__inner *inner = heft__sk_inner(s, "down_proj", down, 3);
    matrices(s, e, e->down, out, inner, 0, size, 0);
    inner = heft__sk_inner(s, "gate_up_proj", both, 3);
    matrices(s, e, e->gate, in, inner, 0, 2 * size, 0);
    matrices(s, e, e->up, in, inner, size, 2 * size, (uint32_t)e->count);
    heft__sk_leave(s);
}

bool mixture_is_sparse(heft__skeleton *s, uint64_t i, uint64_t experts)
{
    return !heft__sk_list_has(s, "mlp_only_layers", i) && experts > 0 &&
           (i + 1) % heft__sk_count(s, "decoder_sparse_step", 1) == 0;
}
