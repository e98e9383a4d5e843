/* mixture.h - a layer's experts, for the mixtures among the decoders (decoder.h).
 *
 * Files hold three matrices for each expert; Transformers stacks them into two tensors:
 *
 *   gate_up_proj [experts, 2 * intermediate, hidden]  each expert's gate rows, then its up rows
 *   down_proj    [experts, hidden, intermediate] */
#ifndef HEFT__MODEL_ARCH_MIXTURE_H
#define HEFT__MODEL_ARCH_MIXTURE_H

#include "model/arch/decoder.h"

struct experts {
    uint64_t count, hidden, intermediate;
    const char *gate, *up, *down; /* as files name them */
};

/* experts.0 .. N-1 at the module that is entered. Transformers has a module "experts", and none for
 * an expert or its matrices: these have no class. */
void mixture_experts(heft__skeleton *s, const struct experts *e);
/* gate */
void mixture_router(heft__skeleton *s, const struct experts *e);
/* Whether layer i has experts: by decoder_sparse_step and mlp_only_layers. */
bool mixture_is_sparse(heft__skeleton *s, uint64_t i, uint64_t experts);

/* ---- forward pass ---------------------------------------------------------------------------- */
/* What a layer's experts make of rows h, at the module that is entered: each row is routed by its
 * logits. An expert that no row goes to is not brought in. */
heft__rows mixture_forward(heft__pass *p, const struct experts *e, const heft__routing *routing,
                           heft__act act, heft__rows logits, heft__rows h);

#endif
