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
                                        .std = 0.02};

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

static const heft__class classes[] = {
    {"GemmaModel",                     "AutoModel",                          base_model,       NULL},
    {"GemmaForCausalLM",               "AutoModelForCausalLM",               causal_lm,        NULL},
    {"GemmaForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     NULL                                                                                          },
    {"GemmaForTokenClassification",    "AutoModelForTokenClassification",    token_classes,    NULL},
    {NULL,                             NULL,                                 NULL,             NULL},
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
};
