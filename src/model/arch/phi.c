/* phi.c - Phi-1 to 2: layer norms, biases everywhere, the language head too.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.final_layernorm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

static const struct decoder standard = {.vocab = 51200,
                                        .hidden = 2048,
                                        .layers = 24,
                                        .intermediate = 8192,
                                        .heads = 32,
                                        .kv_heads = 0,
                                        .head_dim = 0,
                                        .padding_row = -1,
                                        .tied = false,
                                        .std = 0.02,
                                        .act = "gelu_new"};

struct flags {
    bool qk_norm;
};

static void layer(heft__skeleton *s, const struct decoder *c, const void *user)
{
    const struct flags *flags = user;
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    decoder_cache(s, c);
    heft__sk_linear(s, "q_proj", c->hidden, c->heads * c->head_dim, true);
    heft__sk_linear(s, "k_proj", c->hidden, c->kv_heads * c->head_dim, true);
    heft__sk_linear(s, "v_proj", c->hidden, c->kv_heads * c->head_dim, true);
    heft__sk_linear(s, "dense", c->heads * c->head_dim, c->hidden, true);
    if (flags->qk_norm) {
        const uint64_t width = c->hidden / c->heads;
        heft__sk_layer_norm(s, "q_layernorm", width, true);
        heft__sk_layer_norm(s, "k_layernorm", width, true);
    }
    heft__sk_leave(s);
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MLP", "mlp");
    heft__sk_linear(s, "fc1", c->hidden, c->intermediate, true);
    heft__sk_linear(s, "fc2", c->intermediate, c->hidden, true);
    heft__sk_leave(s);
    heft__sk_layer_norm(s, "input_layernorm", c->hidden, true);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const struct flags flags = {heft__sk_flag(s, "qk_layernorm", false)};
    decoder_embeddings(s, &c);
    decoder_layers(s, &c, layer, &flags);
    heft__sk_rotary(s, NULL, heft__sk_rotary_part(s, c.head_dim, 0.5));
    heft__sk_layer_norm(s, "final_layernorm", c.hidden, true);
    return c;
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    (void)body(s);
}

static void causal_lm(heft__skeleton *s)
{
    decoder_causal_lm(s, body, true);
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
    heft__rows h = heft__layer_norm(p, "input_layernorm", x, d->eps);
    heft__enter(p, "self_attn");
    struct decoder_heads heads = decoder_project(p, h);
    if (heft__has(p, "q_layernorm")) {
        heads.q = heft__layer_norm_heads(p, "q_layernorm", heads.q, d->attend.heads, d->eps);
        heads.k = heft__layer_norm_heads(p, "k_layernorm", heads.k, d->attend.kv_heads, d->eps);
    }
    heft__add(p, x, heft__linear(p, "dense", decoder_attend(p, d, &heads)));
    heft__leave(p);
    heft__enter(p, "mlp");
    h = heft__linear(p, "fc1", h);
    heft__activate(p, d->act, h);
    heft__add(p, x, heft__linear(p, "fc2", h));
    heft__leave(p);
}

static heft__rows body_forward(heft__pass *p)
{
    struct decoder_pass d = decoder_begin(p, &standard, "layer_norm_eps");
    d.rope = heft__rope_table(
        p, NULL, (size_t)heft__sk_rotary_part(heft__pass_config(p), d.c.head_dim, 0.5));
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, NULL);
    return decoder_finish(p, &d, heft__layer_norm(p, "final_layernorm", x, d.eps));
}

static const heft__class classes[] = {
    {"PhiModel",                     "AutoModel",                          base_model,       heft__base_forward       },
    {"PhiForCausalLM",               "AutoModelForCausalLM",               causal_lm,        decoder_causal_lm_forward},
    {"PhiForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                 },
    {"PhiForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                    },
    {NULL,                           NULL,                                 NULL,             NULL                     },
};

static const char *const no_split[] = {"PhiDecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};

extern const heft__family heft__family_phi; /* registry.c has a line for it */
const heft__family heft__family_phi = {
    .model_type = "phi",
    .base_prefix = "model",
    .class_prefix = "Phi",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
};
