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
                                        .std = 0.02};

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

static const heft__class classes[] = {
    {"PhiModel",                     "AutoModel",                          base_model,       NULL},
    {"PhiForCausalLM",               "AutoModelForCausalLM",               causal_lm,        NULL},
    {"PhiForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes, NULL},
    {"PhiForTokenClassification",    "AutoModelForTokenClassification",    token_classes,    NULL},
    {NULL,                           NULL,                                 NULL,             NULL},
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
};
