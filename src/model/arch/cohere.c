/* cohere.c - Command-R: one norm before attention and MLP, which run beside each other.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

static const struct decoder standard = {.vocab = 256000,
                                        .hidden = 8192,
                                        .layers = 40,
                                        .intermediate = 22528,
                                        .heads = 64,
                                        .kv_heads = 0,
                                        .head_dim = 0,
                                        .padding_row = 0,
                                        .tied = true,
                                        .std = 0.02};

struct flags {
    bool attention_bias, qk_norm;
};

static void norm(heft__skeleton *s, const char *name, uint64_t width)
{
    heft__sk_enter(s, HEFT_MODULE_NORM, "*LayerNorm", "%s", name);
    heft__sk_parameter(s, "weight", &width, 1, heft__init_constant(1));
    heft__sk_leave(s);
}

/* A norm with weights of its own for each head. */
static void head_norm(heft__skeleton *s, const char *name, uint64_t heads, uint64_t head_dim)
{
    heft__sk_enter(s, HEFT_MODULE_NORM, "*LayerNorm", "%s", name);
    heft__sk_parameter(s, "weight", (const uint64_t[]){heads, head_dim}, 2, heft__init_constant(1));
    heft__sk_leave(s);
}

static void layer(heft__skeleton *s, const struct decoder *c, const void *user)
{
    const struct flags *flags = user;
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    decoder_projections(s, c, flags->attention_bias, flags->attention_bias);
    if (flags->qk_norm) {
        head_norm(s, "q_norm", c->heads, c->head_dim);
        head_norm(s, "k_norm", c->kv_heads, c->head_dim);
    }
    heft__sk_leave(s);
    decoder_gated_mlp(s, c->hidden, c->intermediate, false);
    norm(s, "input_layernorm", c->hidden);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const struct flags flags = {heft__sk_flag(s, "attention_bias", false),
                                heft__sk_flag(s, "use_qk_norm", false)};
    decoder_embeddings(s, &c);
    decoder_layers(s, &c, layer, &flags);
    norm(s, "norm", c.hidden);
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
    (void)user;
    heft__rows h = heft__layer_norm(p, "input_layernorm", x, d->eps);
    heft__enter(p, "self_attn");
    struct decoder_heads heads = decoder_project(p, h);
    if (heft__has(p, "q_norm")) {
        heads.q = heft__layer_norm_heads(p, "q_norm", heads.q, d->attend.heads, d->eps);
        heads.k = heft__layer_norm_heads(p, "k_norm", heads.k, d->attend.kv_heads, d->eps);
    }
    heft__add(p, x, heft__linear(p, "o_proj", decoder_attend(p, d, &heads)));
    heft__leave(p);
    heft__enter(p, "mlp");
    heft__add(p, x, decoder_gated(p, d->act, h));
    heft__leave(p);
}

static heft__rows body_forward(heft__pass *p)
{
    struct decoder_pass d = decoder_begin(p, &standard, "layer_norm_eps");
    d.rope = heft__rope_table(p, NULL, (size_t)d.c.head_dim);
    d.rope.interleaved = true;
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, NULL);
    return decoder_finish(p, &d, heft__layer_norm(p, "norm", x, d.eps));
}

static void causal_lm_forward(heft__pass *p)
{
    heft__rows y = decoder_logits(p);
    heft__scale_by(p, y, heft__sk_real(heft__pass_config(p), "logit_scale", 0.0625));
    heft__out(p, HEFT__OUT_WANTED, "logits", y);
}

static const heft__class classes[] = {
    {"CohereModel",       "AutoModel",            base_model, heft__base_forward},
    {"CohereForCausalLM", "AutoModelForCausalLM", causal_lm,  causal_lm_forward },
    {NULL,                NULL,                   NULL,       NULL              },
};

static const char *const no_split[] = {"CohereDecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};

extern const heft__family heft__family_cohere; /* registry.c has a line for it */
const heft__family heft__family_cohere = {
    .model_type = "cohere",
    .base_prefix = "model",
    .class_prefix = "Cohere",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
    .rope_theta = 500000,
    .rope_length = 8192,
};
