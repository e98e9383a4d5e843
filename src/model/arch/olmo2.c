/* olmo2.c - OLMo 2: queries and keys are normalized as a whole; norms follow attention and MLP.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

static const struct decoder standard = {.vocab = 50304,
                                        .hidden = 4096,
                                        .layers = 32,
                                        .intermediate = 11008,
                                        .heads = 32,
                                        .kv_heads = 0,
                                        .head_dim = 0,
                                        .padding_row = 1,
                                        .tied = false,
                                        .std = 0.02,
                                        .eps = 1e-5};

struct biases {
    bool attention;
};

static void layer(heft__skeleton *s, const struct decoder *c, const void *flags)
{
    const struct biases *bias = flags;
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    decoder_projections(s, c, bias->attention, bias->attention);
    heft__sk_rms_norm(s, "q_norm", c->heads * c->head_dim, 1);
    heft__sk_rms_norm(s, "k_norm", c->kv_heads * c->head_dim, 1);
    heft__sk_leave(s);
    decoder_gated_mlp(s, c->hidden, c->intermediate, false);
    heft__sk_rms_norm(s, "post_attention_layernorm", c->hidden, 1);
    heft__sk_rms_norm(s, "post_feedforward_layernorm", c->hidden, 1);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const struct biases flags = {heft__sk_flag(s, "attention_bias", false)};
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

static void sequence_classes(heft__skeleton *s)
{
    decoder_sequence_classes(s, body);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
static void layer_forward(heft__pass *p, const struct decoder_pass *d, heft__rows x,
                          const void *user)
{
    (void)user;
    heft__enter(p, "self_attn");
    struct decoder_heads heads = decoder_project(p, x);
    heads.q = heft__rms_norm(p, "q_norm", heads.q, d->eps, 0); /* all heads together */
    heads.k = heft__rms_norm(p, "k_norm", heads.k, d->eps, 0);
    heft__rows h = heft__linear(p, "o_proj", decoder_attend(p, d, &heads));
    heft__leave(p);
    heft__add(p, x, heft__rms_norm(p, "post_attention_layernorm", h, d->eps, 0));
    heft__enter(p, "mlp");
    h = decoder_gated(p, d->act, x);
    heft__leave(p);
    heft__add(p, x, heft__rms_norm(p, "post_feedforward_layernorm", h, d->eps, 0));
}

static heft__rows body_forward(heft__pass *p)
{
    struct decoder_pass d = decoder_begin(p, &standard, "rms_norm_eps");
    d.rope = heft__rope_table(p, NULL, (size_t)d.c.head_dim);
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, NULL);
    return decoder_finish(p, &d, heft__rms_norm(p, "norm", x, d.eps, 0));
}

static void sequence_classes_forward(heft__pass *p)
{
    decoder_sequence_classes_padded(p, standard.padding_row);
}

static const heft__class classes[] = {
    {"Olmo2Model",                     "AutoModel",                          base_model,       heft__base_forward       },
    {"Olmo2ForCausalLM",               "AutoModelForCausalLM",               causal_lm,        decoder_causal_lm_forward},
    {"Olmo2ForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     sequence_classes_forward                                                                                           },
    {NULL,                             NULL,                                 NULL,             NULL                     },
};

static const char *const no_split[] = {"Olmo2DecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};

extern const heft__family heft__family_olmo2; /* registry.c has a line for it */
const heft__family heft__family_olmo2 = {
    .model_type = "olmo2",
    .base_prefix = "model",
    .class_prefix = "Olmo2",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
};
