/* phi3.c - Phi-3 and 3.5: query, key and value in one matrix, gate and up in another.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

static const struct decoder standard = {.vocab = 32064,
                                        .hidden = 3072,
                                        .layers = 32,
                                        .intermediate = 8192,
                                        .heads = 32,
                                        .kv_heads = 0,
                                        .head_dim = 0,
                                        .padding_row = 32000,
                                        .tied = false,
                                        .std = 0.02,
                                        .windows = DECODER_ALL_WINDOWS,
                                        .window = 0,
                                        .eps = 1e-5};

static void layer(heft__skeleton *s, const struct decoder *c, const void *flags)
{
    (void)flags;
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    decoder_cache(s, c);
    heft__sk_linear(s, "o_proj", c->heads * c->head_dim, c->hidden, false);
    heft__sk_linear(s, "qkv_proj", c->hidden, (c->heads + 2 * c->kv_heads) * c->head_dim, false);
    heft__sk_leave(s);
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MLP", "mlp");
    heft__sk_linear(s, "gate_up_proj", c->hidden, 2 * c->intermediate, false);
    heft__sk_linear(s, "down_proj", c->intermediate, c->hidden, false);
    heft__sk_leave(s);
    heft__sk_rms_norm(s, "input_layernorm", c->hidden, 1);
    heft__sk_rms_norm(s, "post_attention_layernorm", c->hidden, 1);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    decoder_embeddings(s, &c);
    decoder_layers(s, &c, layer, NULL);
    heft__sk_rms_norm(s, "norm", c.hidden, 1);
    heft__sk_rotary(s, NULL, heft__sk_rotary_part(s, c.head_dim, 1));
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
    const size_t queries = d->attend.heads * d->attend.key_width,
                 keys = d->attend.kv_heads * d->attend.key_width;
    heft__rows h = heft__rms_norm(p, "input_layernorm", x, d->eps, 0);
    heft__enter(p, "self_attn");
    heft__rows y = heft__linear(p, "qkv_proj", h);
    const struct decoder_heads heads = {heft__columns(p, y, y.width, 0, queries),
                                        heft__columns(p, y, y.width, queries, keys),
                                        heft__columns(p, y, y.width, queries + keys, keys)};
    heft__add(p, x, heft__linear(p, "o_proj", decoder_attend(p, d, &heads)));
    heft__leave(p);
    h = heft__rms_norm(p, "post_attention_layernorm", x, d->eps, 0);
    heft__enter(p, "mlp");
    y = heft__linear(p, "gate_up_proj", h);
    heft__rows gate = heft__columns(p, y, y.width, 0, y.width / 2);
    heft__gate(p, d->act, gate, heft__columns(p, y, y.width, y.width / 2, y.width / 2));
    heft__add(p, x, heft__linear(p, "down_proj", gate));
    heft__leave(p);
}

static heft__rows body_forward(heft__pass *p)
{
    struct decoder_pass d = decoder_begin(p, &standard, "rms_norm_eps");
    d.rope = heft__rope_table(p, NULL,
                              (size_t)heft__sk_rotary_part(heft__pass_config(p), d.c.head_dim, 1));
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, NULL);
    return decoder_finish(p, &d, heft__rms_norm(p, "norm", x, d.eps, 0));
}

static void sequence_classes_forward(heft__pass *p)
{
    decoder_sequence_classes_padded(p, standard.padding_row);
}

static const heft__class classes[] = {
    {"Phi3Model",                     "AutoModel",                          base_model,       heft__base_forward       },
    {"Phi3ForCausalLM",               "AutoModelForCausalLM",               causal_lm,        decoder_causal_lm_forward},
    {"Phi3ForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     sequence_classes_forward                                                                                          },
    {"Phi3ForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                     },
    {NULL,                            NULL,                                 NULL,             NULL                     },
};

static const char *const no_split[] = {"Phi3DecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};

extern const heft__family heft__family_phi3; /* registry.c has a line for it */
const heft__family heft__family_phi3 = {
    .model_type = "phi3",
    .base_prefix = "model",
    .class_prefix = "Phi3",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
    .rope_length = 4096,
};
