/* gpt_oss.c - GPT-OSS: experts stacked in the files too, attention with sinks.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

static const struct decoder standard = {.vocab = 201088,
                                        .hidden = 2880,
                                        .layers = 36,
                                        .intermediate = 2880,
                                        .heads = 64,
                                        .kv_heads = 8,
                                        .head_dim = 64,
                                        .padding_row = -1,
                                        .tied = false,
                                        .std = 0.02,
                                        .windows = DECODER_EVEN_WINDOWS,
                                        .window = 128};

/* Here a matrix maps rows to columns: the input is the last dimension but one. */
static void experts(heft__skeleton *s, const struct decoder *c, uint64_t count)
{
    const uint64_t both = 2 * c->intermediate;
    heft__sk_enter(s, HEFT_MODULE_EXPERTS, "*Experts", "experts");
    heft__sk_parameter(s, "gate_up_proj", (const uint64_t[]){count, c->hidden, both}, 3,
                       heft__sk_normal(s));
    heft__sk_parameter(s, "gate_up_proj_bias", (const uint64_t[]){count, both}, 2,
                       heft__init_constant(0));
    heft__sk_parameter(s, "down_proj", (const uint64_t[]){count, c->intermediate, c->hidden}, 3,
                       heft__sk_normal(s));
    heft__sk_parameter(s, "down_proj_bias", (const uint64_t[]){count, c->hidden}, 2,
                       heft__init_constant(0));
    heft__sk_leave(s);
}

static void layer(heft__skeleton *s, const struct decoder *c, const void *flags)
{
    const uint64_t *count = flags;
    const bool bias = heft__sk_flag(s, "attention_bias", true);
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    heft__sk_parameter(s, "sinks", &c->heads, 1, heft__sk_normal(s));
    decoder_projections(s, c, bias, bias);
    heft__sk_leave(s);
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MLP", "mlp");
    heft__sk_enter(s, HEFT_MODULE_ROUTER, "*TopKRouter", "router");
    heft__sk_parameter(s, "weight", (const uint64_t[]){*count, c->hidden}, 2, heft__sk_normal(s));
    heft__sk_parameter(s, "bias", count, 1, heft__sk_normal(s));
    heft__sk_leave(s);
    experts(s, c, *count);
    heft__sk_leave(s);
    heft__sk_rms_norm(s, "input_layernorm", c->hidden, 1);
    heft__sk_rms_norm(s, "post_attention_layernorm", c->hidden, 1);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const uint64_t count = heft__sk_count(s, "num_local_experts", 128);
    decoder_embeddings(s, &c);
    decoder_layers(s, &c, layer, &count);
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

static void token_classes(heft__skeleton *s)
{
    decoder_token_classes(s, body);
}

static const heft__class classes[] = {
    {"GptOssModel",                     "AutoModel",                          base_model,       NULL},
    {"GptOssForCausalLM",               "AutoModelForCausalLM",               causal_lm,        NULL},
    {"GptOssForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     NULL                                                                                           },
    {"GptOssForTokenClassification",    "AutoModelForTokenClassification",    token_classes,    NULL},
    {NULL,                              NULL,                                 NULL,             NULL},
};

static const char *const no_split[] = {"GptOssDecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};
static const char *const keep_f32[] = {"input_layernorm", "norm", "post_attention_layernorm", NULL};
static const char *const other_keys[][2] = {
    {"num_local_experts", "num_experts"},
    {NULL,                NULL         }
};

extern const heft__family heft__family_gpt_oss; /* registry.c has a line for it */
const heft__family heft__family_gpt_oss = {
    .model_type = "gpt_oss",
    .base_prefix = "model",
    .class_prefix = "GptOss",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .keep_f32 = keep_f32,
    .other_keys = other_keys,
};
