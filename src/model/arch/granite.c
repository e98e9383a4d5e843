/* granite.c - Granite; its multipliers have no parameters.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

static const struct decoder standard = {.vocab = 32000,
                                        .hidden = 4096,
                                        .layers = 32,
                                        .intermediate = 11008,
                                        .heads = 32,
                                        .kv_heads = 0,
                                        .head_dim = 0,
                                        .padding_row = -1,
                                        .tied = false,
                                        .std = 0.02};

struct biases {
    bool attention, mlp;
};

static void layer(heft__skeleton *s, const struct decoder *c, const void *flags)
{
    const struct biases *bias = flags;
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    decoder_projections(s, c, bias->attention, bias->attention);
    heft__sk_leave(s);
    decoder_gated_mlp(s, c->hidden, c->intermediate, bias->mlp);
    heft__sk_rms_norm(s, "input_layernorm", c->hidden, 1);
    heft__sk_rms_norm(s, "post_attention_layernorm", c->hidden, 1);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const struct biases flags = {heft__sk_flag(s, "attention_bias", false),
                                 heft__sk_flag(s, "mlp_bias", false)};
    decoder_embeddings(s, &c);
    decoder_layers(s, &c, layer, &flags);
    heft__sk_rms_norm(s, "norm", c.hidden, 1);
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

static const heft__class classes[] = {
    {"GraniteModel",       "AutoModel",            base_model, NULL},
    {"GraniteForCausalLM", "AutoModelForCausalLM", causal_lm,  NULL},
    {NULL,                 NULL,                   NULL,       NULL},
};

static const char *const no_split[] = {"GraniteDecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};

extern const heft__family heft__family_granite; /* registry.c has a line for it */
const heft__family heft__family_granite = {
    .model_type = "granite",
    .base_prefix = "model",
    .class_prefix = "Granite",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
};
