/* stablelm.c - StableLM: layer norms, a gated MLP, norms by head or none.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

static const struct decoder standard = {.vocab = 50304,
                                        .hidden = 2560,
                                        .layers = 32,
                                        .intermediate = 6912,
                                        .heads = 32,
                                        .kv_heads = 32,
                                        .head_dim = 0,
                                        .padding_row = -1,
                                        .tied = false,
                                        .std = 0.02};

struct flags {
    bool qkv_bias, qk_norm, parallel;
};

/* A norm without bias for each head. */
static void head_norms(heft__skeleton *s, const char *name, uint64_t heads, uint64_t width)
{
    heft__sk_enter(s, HEFT_MODULE_NORM, "*LayerNormPerHead", "%s", name);
    for (uint64_t i = 0; i < heads && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_NORM, "LayerNorm", "norms.%llu", (unsigned long long)i);
        heft__sk_parameter(s, "weight", &width, 1, heft__init_constant(1));
        heft__sk_leave(s);
    }
    heft__sk_leave(s);
}

static void layer(heft__skeleton *s, const struct decoder *c, const void *user)
{
    const struct flags *flags = user;
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    decoder_projections(s, c, flags->qkv_bias, false);
    if (flags->qk_norm) {
        head_norms(s, "q_layernorm", c->heads, c->head_dim);
        head_norms(s, "k_layernorm", c->kv_heads, c->head_dim);
    }
    heft__sk_leave(s);
    decoder_gated_mlp(s, c->hidden, c->intermediate, false);
    heft__sk_layer_norm(s, "input_layernorm", c->hidden, true);
    if (!flags->parallel) {
        heft__sk_layer_norm(s, "post_attention_layernorm", c->hidden, true);
    }
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const struct flags flags = {heft__sk_flag(s, "use_qkv_bias", false),
                                heft__sk_flag(s, "qk_layernorm", false),
                                heft__sk_flag(s, "use_parallel_residual", false)};
    decoder_embeddings(s, &c);
    decoder_layers(s, &c, layer, &flags);
    heft__sk_layer_norm(s, "norm", c.hidden, true);
    heft__sk_rotary(s, NULL, heft__sk_rotary_part(s, c.head_dim, 0.25));
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
    heft__rows h = heft__layer_norm(p, "input_layernorm", x, d->eps);
    heft__enter(p, "self_attn");
    struct decoder_heads heads = decoder_project(p, h);
    if (heft__has(p, "q_layernorm")) {
        heads.q = heft__layer_norm_list(p, "q_layernorm.norms", heads.q, d->attend.heads, d->eps);
        heads.k =
            heft__layer_norm_list(p, "k_layernorm.norms", heads.k, d->attend.kv_heads, d->eps);
    }
    heft__add(p, x, heft__linear(p, "o_proj", decoder_attend(p, d, &heads)));
    heft__leave(p);
    if (heft__has(p, "post_attention_layernorm")) { /* else both start from the same norm */
        h = heft__layer_norm(p, "post_attention_layernorm", x, d->eps);
    }
    heft__enter(p, "mlp");
    heft__add(p, x, decoder_gated(p, d->act, h));
    heft__leave(p);
}

static heft__rows body_forward(heft__pass *p)
{
    struct decoder_pass d = decoder_begin(p, &standard, "layer_norm_eps");
    d.rope = heft__rope_table(
        p, NULL, (size_t)heft__sk_rotary_part(heft__pass_config(p), d.c.head_dim, 0.25));
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, NULL);
    return decoder_finish(p, &d, heft__layer_norm(p, "norm", x, d.eps));
}

static const heft__class classes[] = {
    {"StableLmModel",                     "AutoModel",                          base_model,       heft__base_forward       },
    {"StableLmForCausalLM",               "AutoModelForCausalLM",               causal_lm,        decoder_causal_lm_forward},
    {"StableLmForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                      },
    {"StableLmForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                         },
    {NULL,                                NULL,                                 NULL,             NULL                     },
};

static const char *const no_split[] = {"StableLmDecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};

extern const heft__family heft__family_stablelm; /* registry.c has a line for it */
const heft__family heft__family_stablelm = {
    .model_type = "stablelm",
    .base_prefix = "model",
    .class_prefix = "StableLm",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
    .rope_length = 4096,
};
