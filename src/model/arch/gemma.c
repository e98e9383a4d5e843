/* gemma.c - Gemma.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Norms are stored as the difference from one, so they begin at zero.
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

static const struct decoder standard = {.vocab = 256000,
                                        .hidden = 3072,
                                        .layers = 28,
                                        .intermediate = 24576,
                                        .heads = 16,
                                        .kv_heads = 16,
                                        .head_dim = 256,
                                        .padding_row = 0,
                                        .tied = true,
                                        .std = 0.02,
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
    decoder_attention(p, d, x, heft__rms_norm(p, "input_layernorm", x, d->eps, 1));
    heft__rows h = heft__rms_norm(p, "post_attention_layernorm", x, d->eps, 1);
    heft__enter(p, "mlp");
    heft__add(p, x, decoder_gated(p, d->act, h));
    heft__leave(p);
}

static heft__rows body_forward(heft__pass *p)
{
    struct decoder_pass d = decoder_begin(p, &standard, "rms_norm_eps");
    const char *act = heft__sk_text(heft__pass_config(p), "hidden_act", standard.act);
    if (act && strcmp(act, "gelu") == 0) {
        d.act = HEFT__ACT_GELU_TANH; /* what the first configs meant */
    }
    decoder_must_be_causal(p);
    decoder_scale_embeddings(p, &d);
    d.rope = heft__rope_table(p, NULL, (size_t)d.c.head_dim);
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, NULL);
    return decoder_finish(p, &d, heft__rms_norm(p, "norm", x, d.eps, 1));
}

static void sequence_classes_forward(heft__pass *p)
{
    decoder_sequence_classes_padded(p, standard.padding_row);
}

static const heft__class classes[] = {
    {"GemmaModel",                     "AutoModel",                          base_model,       heft__base_forward       },
    {"GemmaForCausalLM",               "AutoModelForCausalLM",               causal_lm,        decoder_causal_lm_forward},
    {"GemmaForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     sequence_classes_forward                                                                                           },
    {"GemmaForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                      },
    {NULL,                             NULL,                                 NULL,             NULL                     },
};

static const char *const no_split[] = {"GemmaDecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};

extern const heft__family heft__family_gemma; /* registry.c has a line for it */
const heft__family heft__family_gemma = {
    .model_type = "gemma",
    .base_prefix = "model",
    .class_prefix = "Gemma",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
    .rope_length = 8192,
};
