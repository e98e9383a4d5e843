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

/* ---- forward pass ---------------------------------------------------------------------------- */
static void attention_forward(heft__pass *p, const struct decoder_pass *d, heft__rows x,
                              heft__rows h)
{
    heft__enter(p, "self_attn");
    heft__rows q = heft__linear(p, "q_proj", h), k = heft__linear(p, "k_proj", h),
               v = heft__linear(p, "v_proj", h);
    q = heft__rms_norm_heads(p, "q_norm", q, d->attend.heads, d->eps, 0);
    k = heft__rms_norm_heads(p, "k_norm", k, d->attend.kv_heads, d->eps, 0);
    heft__rotate(p, q, d->attend.heads, 0, &d->rope);
    heft__rotate(p, k, d->attend.kv_heads, 0, &d->rope);
    heft__add(p, x, heft__linear(p, "o_proj", heft__attend(p, q, k, v, &d->attend)));
    heft__leave(p);
}

static void layer_forward(heft__pass *p, const struct decoder_pass *d, heft__rows x,
                          const void *user)
{
    static const struct experts names = {.gate = "gate_proj", .up = "up_proj", .down = "down_proj"};
    const heft__routing *routing = user;
    attention_forward(p, d, x, heft__rms_norm(p, "input_layernorm", x, d->eps, 0));
    heft__rows h = heft__rms_norm(p, "post_attention_layernorm", x, d->eps, 0);
    heft__enter(p, "mlp");
    heft__add(p, x,
              mixture_is_sparse(heft__pass_config(p), d->c.layer, routing->experts)
                  ? mixture_forward(p, &names, routing, d->act, heft__linear(p, "gate", h), h)
                  : decoder_gated(p, d->act, h));
    heft__leave(p);
}

static heft__rows body_forward(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    struct decoder_pass d = decoder_begin(p, &standard, "rms_norm_eps");
    const heft__routing routing = {.scoring = HEFT__SOFTMAX_THEN_TOP,
                                   .experts = heft__sk_layers(s, "num_experts", 128),
                                   .top = heft__sk_count(s, "num_experts_per_tok", 8),
                                   .normalize = heft__sk_flag(s, "norm_topk_prob", false),
                                   .scale = 1};
    d.rope = heft__rope_table(p, NULL, (size_t)d.c.head_dim);
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, &routing);
    return decoder_finish(p, &d, heft__rms_norm(p, "norm", x, d.eps, 0));
}

static const heft__class classes[] = {
    {"Qwen3MoeModel",                     "AutoModel",                          base_model,         heft__base_forward       },
    {"Qwen3MoeForCausalLM",               "AutoModelForCausalLM",               causal_lm,          decoder_causal_lm_forward},
    {"Qwen3MoeForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                        },
    {"Qwen3MoeForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                           },
    {"Qwen3MoeForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     decoder_question_answering_forward                                                                                      },
    {NULL,                                NULL,                                 NULL,               NULL                     },
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
    .body = body_forward,
    .rope_length = 32768,
};
