/* gemma2.c - Gemma 2.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Norms are stored as the difference from one, so they begin at zero.
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

#include <math.h>

static const struct decoder standard = {.vocab = 256000,
                                        .hidden = 2304,
                                        .layers = 26,
                                        .intermediate = 9216,
                                        .heads = 8,
                                        .kv_heads = 4,
                                        .head_dim = 256,
                                        .padding_row = 0,
                                        .tied = true,
                                        .std = 0.02,
                                        .windows = DECODER_EVEN_WINDOWS,
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
    heft__sk_leave(s);
    decoder_gated_mlp(s, c->hidden, c->intermediate, false);
    heft__sk_rms_norm(s, "input_layernorm", c->hidden, 0);
    heft__sk_rms_norm(s, "post_attention_layernorm", c->hidden, 0);
    heft__sk_rms_norm(s, "pre_feedforward_layernorm", c->hidden, 0);
    heft__sk_rms_norm(s, "post_feedforward_layernorm", c->hidden, 0);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const struct biases flags = {heft__sk_flag(s, "attention_bias", false)};
    decoder_scaled_embeddings(s, &c);
    decoder_layers(s, &c, layer, &flags);
    heft__sk_rms_norm(s, "norm", c.hidden, 0);
    heft__sk_rotary(s, NULL, c.head_dim);
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

static void token_classes(heft__skeleton *s)
{
    decoder_token_classes(s, body);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
static void layer_forward(heft__pass *p, const struct decoder_pass *d, heft__rows x,
                          const void *user)
{
    (void)user;
    heft__rows h = heft__rms_norm(p, "input_layernorm", x, d->eps, 1);
    heft__enter(p, "self_attn");
    const struct decoder_heads heads = decoder_project(p, h);
    h = heft__linear(p, "o_proj", decoder_attend(p, d, &heads));
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
    d.attend.cap = (float)heft__sk_real_or(s, "attn_logit_softcapping", 50, 0);
    decoder_must_be_causal(p);
    decoder_scale_embeddings(p, &d);
    d.rope = heft__rope_table(p, NULL, (size_t)d.c.head_dim);
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, NULL);
    return decoder_finish(p, &d, heft__rms_norm(p, "norm", x, d.eps, 1));
}

static void causal_lm_forward(heft__pass *p)
{
    heft__rows y = decoder_logits(p);
    const double cap = heft__sk_real_or(heft__pass_config(p), "final_logit_softcapping", 30, 0);
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
    {"Gemma2Model",                     "AutoModel",                          base_model,       heft__base_forward},
    {"Gemma2ForCausalLM",               "AutoModelForCausalLM",               causal_lm,        causal_lm_forward },
    {"Gemma2ForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     sequence_classes_forward                                                                                     },
    {"Gemma2ForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                },
    {NULL,                              NULL,                                 NULL,             NULL              },
};

static const char *const no_split[] = {"Gemma2DecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};

extern const heft__family heft__family_gemma2; /* registry.c has a line for it */
const heft__family heft__family_gemma2 = {
    .model_type = "gemma2",
    .base_prefix = "model",
    .class_prefix = "Gemma2",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
    .rope_length = 8192,
};
