/* qwen3_moe.c - Qwen 3 with experts in some or all layers.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/mixture.h"

static const struct decoder standard = {.vocab = 151936,
                                        .hidden = 2048,
                                        .layers = 24,
                                        .intermediate = 6144,
                                        .heads = 32,
                                        .kv_heads = 4,
                                        .head_dim = 0,
                                        .padding_row = -1,
                                        .tied = false,
                                        .std = 0.02,
                                        .windows = DECODER_WANTED_WINDOWS,
                                        .window = 4096};

static void layer(heft__skeleton *s, const struct decoder *c, const struct experts *experts,
                  bool sparse)
{
    const bool bias = heft__sk_flag(s, "attention_bias", false);
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    decoder_projections(s, c, bias, bias);
    heft__sk_rms_norm(s, "q_norm", c->head_dim, 1);
    heft__sk_rms_norm(s, "k_norm", c->head_dim, 1);
    heft__sk_leave(s);
    if (sparse) {
        heft__sk_enter(s, HEFT_MODULE_MLP, "*SparseMoeBlock", "mlp");
        mixture_experts(s, experts);
        mixture_router(s, experts);
        heft__sk_leave(s);
    } else {
        decoder_gated_mlp(s, c->hidden, c->intermediate, false);
    }
    heft__sk_rms_norm(s, "input_layernorm", c->hidden, 1);
    heft__sk_rms_norm(s, "post_attention_layernorm", c->hidden, 1);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const struct experts experts = {.count = heft__sk_layers(s, "num_experts", 128),
                                    .hidden = c.hidden,
                                    .intermediate = heft__sk_count(s, "moe_intermediate_size", 768),
                                    .gate = "gate_proj",
                                    .up = "up_proj",
                                    .down = "down_proj"};
    decoder_embeddings(s, &c);
    for (uint64_t i = 0; i < c.layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, "*DecoderLayer", "layers.%llu", (unsigned long long)i);
        c.layer = i;
        layer(s, &c, &experts, mixture_is_sparse(s, i, experts.count));
        heft__sk_leave(s);
    }
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
    decoder_question_answering(s, body, "transformer");
}

static const heft__class classes[] = {
    {"Qwen3MoeModel",                     "AutoModel",                          base_model,         NULL},
    {"Qwen3MoeForCausalLM",               "AutoModelForCausalLM",               causal_lm,          NULL},
    {"Qwen3MoeForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     NULL                                                                                               },
    {"Qwen3MoeForTokenClassification",    "AutoModelForTokenClassification",    token_classes,      NULL},
    {"Qwen3MoeForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering, NULL},
    {NULL,                                NULL,                                 NULL,               NULL},
};

static const char *const no_split[] = {"Qwen3MoeDecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};
static const char *const other_keys[][2] = {
    {"num_experts", "num_local_experts"},
    {NULL,          NULL               }
};

extern const heft__family heft__family_qwen3_moe; /* registry.c has a line for it */
const heft__family heft__family_qwen3_moe = {
    .model_type = "qwen3_moe",
    .base_prefix = "model",
    .class_prefix = "Qwen3Moe",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .other_keys = other_keys,
};
