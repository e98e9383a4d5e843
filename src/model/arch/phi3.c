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
                                        .window = 0};

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

static const heft__class classes[] = {
    {"Phi3Model",                     "AutoModel",                          base_model,       NULL},
    {"Phi3ForCausalLM",               "AutoModelForCausalLM",               causal_lm,        NULL},
    {"Phi3ForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes, NULL},
    {"Phi3ForTokenClassification",    "AutoModelForTokenClassification",    token_classes,    NULL},
    {NULL,                            NULL,                                 NULL,             NULL},
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
};
