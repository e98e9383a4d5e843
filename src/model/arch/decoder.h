/* decoder.h - what the decoders of the Llama kind have in common, for the families in this folder.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * A family has a body: it reads its config, lists the base model's modules, and returns what the
 * heads need to know. */
#ifndef HEFT__MODEL_ARCH_DECODER_H
#define HEFT__MODEL_ARCH_DECODER_H

#include "run/pass.h"

/* Which layers attend to a window of the last tokens only, where the config has no layer_types. */
enum decoder_windows {
    DECODER_NO_WINDOWS,
    DECODER_ALL_WINDOWS,    /* all, if the config has a sliding_window, whatever layer_types says */
    DECODER_EVEN_WINDOWS,   /* layers 0, 2, ... */
    DECODER_SIX_WINDOWS,    /* all but every sixth, or every sliding_window_pattern-th */
    DECODER_LATE_WINDOWS,   /* from max_window_layers on, if use_sliding_window */
    DECODER_EARLY_WINDOWS,  /* layers 0, 2, ... before max_window_layers, if use_sliding_window */
    DECODER_WANTED_WINDOWS, /* all, if use_sliding_window, whatever layer_types says */
};

struct decoder {
    uint64_t vocab, hidden, layers, intermediate;
    uint64_t heads, kv_heads; /* standard.kv_heads 0: as many as heads */
    uint64_t head_dim;        /* standard.head_dim 0: hidden / heads */
    int64_t padding_row;      /* of the embeddings, -1 for none */
    bool tied;                /* the language head is the embeddings */
    double std;
    enum decoder_windows windows;
    uint64_t window; /* tokens; 0: no layer has a window */
    uint64_t layer;  /* the one that is listed */
    /* Of `standard` only, for forward passes: */
    double eps;                /* of the norms; 0: 1e-6 for rms_norm_eps, else 1e-5 */
    const char *act_key, *act; /* NULL: "hidden_act", "silu" */
};

/* By the config; `standard` for keys that it does not have. Sets the builder's std. */
struct decoder decoder_read(heft__skeleton *s, const struct decoder *standard);

typedef struct decoder (*decoder_body)(heft__skeleton *s);
/* List a layer at the module that is entered. */
typedef void (*decoder_layer)(heft__skeleton *s, const struct decoder *c, const void *flags);

/* ---- modules --------------------------------------------------------------------------------- */
/* layers.0 .. N-1, each a "*DecoderLayer" */
void decoder_layers(heft__skeleton *s, const struct decoder *c, decoder_layer layer,
                    const void *flags);
/* What attention keeps of a token in c->layer: keys and values of kv_heads; of the last tokens only where
 * the layer has a window. */
void decoder_cache(heft__skeleton *s, const struct decoder *c);
/* Its window, 0 for none. */
uint64_t decoder_window(const heft__skeleton *s, const struct decoder *c);
/* q_proj, k_proj, v_proj, o_proj at the module that is entered, with its cache. */
void decoder_projections(heft__skeleton *s, const struct decoder *c, bool qkv_bias, bool o_bias);
/* gate_proj, up_proj, down_proj at the module that is entered. */
void decoder_gated_matrices(heft__skeleton *s, uint64_t hidden, uint64_t intermediate, bool bias);
/* The same in mlp. */
void decoder_gated_mlp(heft__skeleton *s, uint64_t hidden, uint64_t intermediate, bool bias);
/* The model's own embeddings. */
void decoder_embeddings(heft__skeleton *s, const struct decoder *c);
/* With a transient factor, the root of the width: Gemma. */
void decoder_scaled_embeddings(heft__skeleton *s, const struct decoder *c);

/* ---- heads: each lists a whole class --------------------------------------------------------- */
void decoder_causal_lm(heft__skeleton *s, decoder_body body, bool bias);
void decoder_sequence_classes(heft__skeleton *s, decoder_body body);
void decoder_token_classes(heft__skeleton *s, decoder_body body);
void decoder_question_answering(heft__skeleton *s, decoder_body body, const char *prefix);

/* ---- forward passes -------------------------------------------------------------------------- */
/* What the layers of a pass share. */
struct decoder_pass {
    struct decoder c; /* c.layer: the one that is computed */
    double eps;       /* of the norms */
    heft__act act;
    heft__rope rope;
    heft__attention attend; /* causal, with the window of c.layer; scale: head_dim^-1/2 */
    double embedding_scale; /* 1 */
};

/* By the config, as the skeleton was listed. `norm_eps`: the key of the norms' eps. */
struct decoder_pass decoder_begin(heft__pass *p, const struct decoder *standard,
                                  const char *norm_eps);
/* Multiply embeddings by the root of the width, rounded to the model's dtype: Gemma. */
void decoder_scale_embeddings(heft__pass *p, struct decoder_pass *d);
/* Refuse a config whose use_bidirectional_attention is true. */
void decoder_must_be_causal(heft__pass *p);
/* Compute a layer at the module that is entered: x becomes its output. */
typedef void (*decoder_layer_forward)(heft__pass *p, const struct decoder_pass *d, heft__rows x,
                                      const void *user);
/* Embeddings, then all layers; without the last norm. `user` is handed to the layers. */
heft__rows decoder_layers_forward(heft__pass *p, struct decoder_pass *d,
                                  decoder_layer_forward layer, const void *user);
/* The last hidden state: a result, and what heads take. */
heft__rows decoder_finish(heft__pass *p, const struct decoder_pass *d, heft__rows x);
/* q_proj, k_proj, v_proj of h at the module that is entered. */
struct decoder_heads {
    heft__rows q, k, v;
};
struct decoder_heads decoder_project(heft__pass *p, heft__rows h);
/* Attention of q to k and v, with rotary positions. */
heft__rows decoder_attend(heft__pass *p, const struct decoder_pass *d,
                          const struct decoder_heads *heads);
/* x += o_proj(attention of q_proj, k_proj, v_proj of h), with rotary positions, in self_attn. */
void decoder_attention(heft__pass *p, const struct decoder_pass *d, heft__rows x, heft__rows h);
/* down_proj(act(gate_proj h) * up_proj h) at the module that is entered. */
heft__rows decoder_gated(heft__pass *p, heft__act act, heft__rows h);
/* The body of Llama and what is the same: attention and MLP behind an rms_norm each, windows where the
 * config has them. */
heft__rows decoder_plain_body(heft__pass *p, const struct decoder *standard);

/* Heads, each of a whole class, on the family's body. */
void decoder_causal_lm_forward(heft__pass *p);
/* The same before logits are given out: lm_head of the wanted rows of the body. */
heft__rows decoder_logits(heft__pass *p);
void decoder_sequence_classes_forward(heft__pass *p);
/* `pad`: the pad_token_id of a config without one */
void decoder_sequence_classes_padded(heft__pass *p, int64_t pad);
void decoder_token_classes_forward(heft__pass *p);
void decoder_question_answering_forward(heft__pass *p);
/* The last token of each sequence that is not padding, by pad_token_id (`pad` where the config has none), as
 * classifiers take it. */
heft__rows decoder_last_rows(heft__pass *p, heft__rows x, int64_t pad);

#endif
