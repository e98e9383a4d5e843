/* gemma3_text.c - Gemma 3, the text model.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Norms are stored as the difference from one, so they begin at zero.
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

#include <math.h>

static const struct decoder standard = {.vocab = 262208,
                                        .hidden = 2304,
                                        .layers = 26,
                                        .intermediate = 9216,
                                        .heads = 8,
                                        .kv_heads = 4,
                                        .head_dim = 256,
                                        .padding_row = 0,
                                        .tied = true,
                                        .std = 0.02,
                                        .windows = DECODER_SIX_WINDOWS,
                                        .window = 4096,
                                        .act_key = "hidden_activation",
                                        .act = "gelu_pytorch_tanh"};

struct biases {
    bool attention;
};

static void layer(heft__skeleton *s, const struct decoder *c, const void *flags)
{
    const struct biases *bias = flags;
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    decoder_projections(s, c, bias->attention, bias->attention);
    heft__sk_rms_norm(s, "q_norm", c->head_dim, 0);
    heft__sk_rms_norm(s, "k_norm", c->head_dim, 0);
    heft__sk_leave(s);
    decoder_gated_mlp(s, c->hidden, c->intermediate, false);
    heft__sk_rms_norm(s, "input_layernorm", c->hidden, 0);
    heft__sk_rms_norm(s, "post_attention_layernorm", c->hidden, 0);
    heft__sk_rms_norm(s, "pre_feedforward_layernorm", c->hidden, 0);
    heft__sk_rms_norm(s, "post_feedforward_layernorm", c->hidden, 0);
}

/* Whether a layer has a window, and the positions of such: by layer_types, else all but every sixth. */
static bool slides(heft__skeleton *s, uint64_t layer)
{
    const uint64_t pattern = heft__sk_count(s, "sliding_window_pattern", 6);
    return heft__sk_list_is(s, "layer_types", layer, "sliding_attention",
                            (layer + 1) % pattern != 0);
}

/* One pair of buffers for each type of layer that is there. */
static void rotary(heft__skeleton *s, const struct decoder *c)
{
    static const char *const types[2] = {"sliding_attention", "full_attention"};
    bool seen[2] = {false, false};
    for (uint64_t i = 0; i < c->layers && heft__sk_going(s); i++) {
        (void)heft__sk_list_text(s, "layer_types", i); /* must be there, if the list is */
        seen[slides(s, i) ? 0 : 1] = true;
    }
    for (size_t i = 0; i < 2; i++) {
        if (seen[i]) {
            heft__sk_rotary(s, types[i], c->head_dim);
        }
    }
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const struct biases flags = {heft__sk_flag(s, "attention_bias", false)};
    decoder_scaled_embeddings(s, &c);
    decoder_layers(s, &c, layer, &flags);
    heft__sk_rms_norm(s, "norm", c.hidden, 0);
    rotary(s, &c);
    return c;
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    (void)body(s);
}

static void causal_lm(heft__skeleton *s)
{
    decoder_causal_lm(s, body, false);
}

static void sequence_classes(heft__skeleton *s)
{
    decoder_sequence_classes(s, body);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
/* Cosines and sines of the layers with a window, and of the others. */
struct ropes {
    heft__rope sliding, full;
};

static void layer_forward(heft__pass *p, const struct decoder_pass *d, heft__rows x,
                          const void *user)
{
    const struct ropes *ropes = user;
    struct decoder_pass own = *d;
    own.rope = slides(heft__pass_config(p), d->c.layer) ? ropes->sliding : ropes->full;
    heft__rows h = heft__rms_norm(p, "input_layernorm", x, d->eps, 1);
    heft__enter(p, "self_attn");
    struct decoder_heads heads = decoder_project(p, h);
    heads.q = heft__rms_norm_heads(p, "q_norm", heads.q, d->attend.heads, d->eps, 1);
    heads.k = heft__rms_norm_heads(p, "k_norm", heads.k, d->attend.kv_heads, d->eps, 1);
    h = heft__linear(p, "o_proj", decoder_attend(p, &own, &heads));
    heft__leave(p);
    heft__add(p, x, heft__rms_norm(p, "post_attention_layernorm", h, d->eps, 1));
    h = heft__rms_norm(p, "pre_feedforward_layernorm", x, d->eps, 1);
    heft__enter(p, "mlp");
    h = decoder_gated(p, d->act, h);
    heft__leave(p);
    heft__add(p, x, heft__rms_norm(p, "post_feedforward_layernorm", h, d->eps, 1));
}

static heft__rows body_forward(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    struct decoder_pass d = decoder_begin(p, &standard, "rms_norm_eps");
    d.attend.scale = (float)(1 / sqrt(heft__sk_real(s, "query_pre_attn_scalar", 256)));
    if (heft__sk_true(s, "use_bidirectional_attention")) {
        d.attend.causal = false;
        d.c.window = d.c.window ? d.c.window / 2 + 1 : 0; /* it is both sides together */
    }
    decoder_scale_embeddings(p, &d);
    const struct ropes ropes = {
        heft__rope_table(p, "sliding_attention", (size_t)d.c.head_dim),
        heft__rope_table(p, "full_attention", (size_t)d.c.head_dim),
    };
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, &ropes);
    return decoder_finish(p, &d, heft__rms_norm(p, "norm", x, d.eps, 1));
}

static void causal_lm_forward(heft__pass *p)
{
    decoder_must_be_causal(p);
    heft__rows y = decoder_logits(p);
    const double cap = heft__sk_real(heft__pass_config(p), "final_logit_softcapping", 0);
    if (cap > 0) {
        heft__cap_to(p, y, cap);
    }
    heft__out(p, HEFT__OUT_WANTED, "logits", y);
}

static void sequence_classes_forward(heft__pass *p)
{
    decoder_sequence_classes_padded(p, standard.padding_row);
}

static const heft__class classes[] = {
    {"Gemma3TextModel",                     "AutoModel",                          base_model,       heft__base_forward},
    {"Gemma3ForCausalLM",                   "AutoModelForCausalLM",               causal_lm,        causal_lm_forward },
    {"Gemma3TextForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     sequence_classes_forward                                                                                         },
    {NULL,                                  NULL,                                 NULL,             NULL              },
};

static const char *const no_split[] = {"Gemma3DecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};

extern const heft__family heft__family_gemma3_text; /* registry.c has a line for it */
const heft__family heft__family_gemma3_text = {
    .model_type = "gemma3_text",
    .base_prefix = "model",
    .class_prefix = "Gemma3",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
    .rope_theta = 1000000, /* of full layers */
    .rope_length = 131072,
};
