/* starcoder2.c - StarCoder2: layer norms, an MLP without gate.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

static const struct decoder standard = {.vocab = 49152,
                                        .hidden = 3072,
                                        .layers = 30,
                                        .intermediate = 12288,
                                        .heads = 24,
                                        .kv_heads = 2,
                                        .head_dim = 0,
                                        .padding_row = -1,
                                        .tied = true,
                                        .std = 0.018042,
                                        .windows = DECODER_ALL_WINDOWS,
                                        .window = 0,
                                        .act = "gelu_pytorch_tanh"};

struct biases {
    bool all;
};

static void layer(heft__skeleton *s, const struct decoder *c, const void *flags)
{
    const struct biases *bias = flags;
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    decoder_projections(s, c, bias->all, bias->all);
    heft__sk_leave(s);
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MLP", "mlp");
    heft__sk_linear(s, "c_fc", c->hidden, c->intermediate, bias->all);
    heft__sk_linear(s, "c_proj", c->intermediate, c->hidden, bias->all);
    heft__sk_leave(s);
    heft__sk_layer_norm(s, "input_layernorm", c->hidden, true);
    heft__sk_layer_norm(s, "post_attention_layernorm", c->hidden, true);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const struct biases flags = {heft__sk_flag(s, "use_bias", true)};
    decoder_embeddings(s, &c);
    decoder_layers(s, &c, layer, &flags);
    heft__sk_layer_norm(s, "norm", c.hidden, true);
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
    decoder_attention(p, d, x, heft__layer_norm(p, "input_layernorm", x, d->eps));
    heft__rows h = heft__layer_norm(p, "post_attention_layernorm", x, d->eps);
    heft__enter(p, "mlp");
    h = heft__linear(p, "c_fc", h);
    heft__activate(p, d->act, h);
    heft__add(p, x, heft__linear(p, "c_proj", h));
    heft__leave(p);
}

static heft__rows body_forward(heft__pass *p)
{
    struct decoder_pass d = decoder_begin(p, &standard, "norm_epsilon");
    d.rope = heft__rope_table(p, NULL, (size_t)d.c.head_dim);
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, NULL);
    return decoder_finish(p, &d, heft__layer_norm(p, "norm", x, d.eps));
}

static const heft__class classes[] = {
    {"Starcoder2Model",                     "AutoModel",                          base_model,       heft__base_forward       },
    {"Starcoder2ForCausalLM",               "AutoModelForCausalLM",               causal_lm,        decoder_causal_lm_forward},
    {"Starcoder2ForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                        },
    {"Starcoder2ForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                           },
    {NULL,                                  NULL,                                 NULL,             NULL                     },
};

static const char *const no_split[] = {"Starcoder2DecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};

extern const heft__family heft__family_starcoder2; /* registry.c has a line for it */
const heft__family heft__family_starcoder2 = {
    .model_type = "starcoder2",
    .base_prefix = "model",
    .class_prefix = "Starcoder2",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
    .rope_length = 4096,
};
