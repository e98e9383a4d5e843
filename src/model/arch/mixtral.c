/* mixtral.c - Mixtral: Mistral with experts in every layer.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/mixture.h"

static const struct decoder standard = {.vocab = 32000,
                                        .hidden = 4096,
                                        .layers = 32,
                                        .intermediate = 14336,
                                        .heads = 32,
                                        .kv_heads = 8,
                                        .head_dim = 0,
                                        .padding_row = -1,
                                        .tied = false,
                                        .std = 0.02,
                                        .windows = DECODER_ALL_WINDOWS,
                                        .window = 0};

static void layer(heft__skeleton *s, const struct decoder *c, const void *flags)
{
    const struct experts *experts = flags;
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    decoder_projections(s, c, false, false);
    heft__sk_leave(s);
    heft__sk_enter(s, HEFT_MODULE_MLP, "*SparseMoeBlock", "block_sparse_moe");
    mixture_router(s, experts);
    mixture_experts(s, experts);
    heft__sk_leave(s);
    heft__sk_rms_norm(s, "input_layernorm", c->hidden, 1);
    heft__sk_rms_norm(s, "post_attention_layernorm", c->hidden, 1);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const struct experts experts = {.count = heft__sk_layers(s, "num_local_experts", 8),
                                    .hidden = c.hidden,
                                    .intermediate = c.intermediate,
                                    .gate = "w1",
                                    .up = "w3",
                                    .down = "w2"};
    decoder_embeddings(s, &c);
    decoder_layers(s, &c, layer, &experts);
    heft__sk_rms_norm(s, "norm", c.hidden, 1);
    heft__sk_rotary(s, NULL, c.head_dim);
    heft__sk_natural_order(s);
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

static void question_answering(heft__skeleton *s)
{
    decoder_question_answering(s, body, "model");
}

static const heft__class classes[] = {
    {"MixtralModel",                     "AutoModel",                          base_model,         NULL},
    {"MixtralForCausalLM",               "AutoModelForCausalLM",               causal_lm,          NULL},
    {"MixtralForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     NULL                                                                                              },
    {"MixtralForTokenClassification",    "AutoModelForTokenClassification",    token_classes,      NULL},
    {"MixtralForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering, NULL},
    {NULL,                               NULL,                                 NULL,               NULL},
};

static const char *const no_split[] = {"MixtralDecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};
static const char *const other_keys[][2] = {
    {"num_local_experts", "num_experts"},
    {NULL,                NULL         }
};
static const char *const inner_names[][2] = {
    {"block_sparse_moe", "mlp"},
    {NULL,               NULL }
};

extern const heft__family heft__family_mixtral; /* registry.c has a line for it */
const heft__family heft__family_mixtral = {
    .model_type = "mixtral",
    .base_prefix = "model",
    .class_prefix = "Mixtral",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .other_keys = other_keys,
    .inner_names = inner_names,
};
