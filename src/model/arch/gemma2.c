/* gemma2.c - Gemma 2.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Norms are stored as the difference from one, so they begin at zero.
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

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
                                        .window = 4096};

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

static const heft__class classes[] = {
    {"Gemma2Model",                     "AutoModel",                          base_model,       NULL},
    {"Gemma2ForCausalLM",               "AutoModelForCausalLM",               causal_lm,        NULL},
    {"Gemma2ForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     NULL                                                                                           },
    {"Gemma2ForTokenClassification",    "AutoModelForTokenClassification",    token_classes,    NULL},
    {NULL,                              NULL,                                 NULL,             NULL},
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
};
