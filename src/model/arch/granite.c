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

/* ---- forward pass ---------------------------------------------------------------------------- */
static void layer_forward(heft__pass *p, const struct decoder_pass *d, heft__rows x,
                          const void *user)
{
    const double *residual = user;
    heft__rows h = heft__rms_norm(p, "input_layernorm", x, d->eps, 0);
    heft__enter(p, "self_attn");
    const struct decoder_heads heads = decoder_project(p, h);
    h = heft__linear(p, "o_proj", decoder_attend(p, d, &heads));
    heft__leave(p);
    heft__add_scaled(p, x, h, *residual);
    h = heft__rms_norm(p, "post_attention_layernorm", x, d->eps, 0);
    heft__enter(p, "mlp");
    h = decoder_gated(p, d->act, h);
    heft__leave(p);
    heft__add_scaled(p, x, h, *residual);
}

static heft__rows body_forward(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    struct decoder_pass d = decoder_begin(p, &standard, "rms_norm_eps");
    d.attend.scale = (float)heft__sk_real(s, "attention_multiplier", 1);
    d.embedding_scale = heft__sk_real(s, "embedding_multiplier", 1);
    const double residual = heft__sk_real(s, "residual_multiplier", 1);
    d.rope = heft__rope_table(p, NULL, (size_t)d.c.head_dim);
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, &residual);
    return decoder_finish(p, &d, heft__rms_norm(p, "norm", x, d.eps, 0));
}

static void causal_lm_forward(heft__pass *p)
{
    heft__rows y = decoder_logits(p);
    heft__scale_by(p, y, 1 / heft__sk_real(heft__pass_config(p), "logits_scaling", 1));
    heft__out(p, HEFT__OUT_WANTED, "logits", y);
}

static const heft__class classes[] = {
    {"GraniteModel",       "AutoModel",            base_model, heft__base_forward},
    {"GraniteForCausalLM", "AutoModelForCausalLM", causal_lm,  causal_lm_forward },
    {NULL,                 NULL,                   NULL,       NULL              },
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
    .body = body_forward,
};
