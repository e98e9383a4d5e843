/* qwen2_moe.c - Qwen 1.5 and 2 with experts in some or all layers, and one that all tokens share.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/mixture.h"

static const struct decoder standard = {.vocab = 151936,
                                        .hidden = 2048,
                                        .layers = 24,
                                        .intermediate = 5632,
                                        .heads = 16,
                                        .kv_heads = 16,
                                        .head_dim = 0,
                                        .padding_row = -1,
                                        .tied = false,
                                        .std = 0.02,
                                        .windows = DECODER_EARLY_WINDOWS,
                                        .window = 4096};

static void shared_expert(heft__skeleton *s, uint64_t hidden)
{
    const uint64_t intermediate = heft__sk_count(s, "shared_expert_intermediate_size", 5632);
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MLP", "shared_expert");
    decoder_gated_matrices(s, hidden, intermediate, false);
    heft__sk_leave(s);
    heft__sk_linear(s, "shared_expert_gate", hidden, 1, false);
}

static void layer(heft__skeleton *s, const struct decoder *c, const struct experts *experts,
                  bool sparse)
{
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    decoder_projections(s, c, heft__sk_flag(s, "qkv_bias", true), false);
    heft__sk_leave(s);
    if (sparse) {
        heft__sk_enter(s, HEFT_MODULE_MLP, "*SparseMoeBlock", "mlp");
        mixture_router(s, experts);
        mixture_experts(s, experts);
        shared_expert(s, c->hidden);
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
    const struct experts experts = {.count = heft__sk_layers(s, "num_experts", 60),
                                    .hidden = c.hidden,
                                    .intermediate =
                                        heft__sk_count(s, "moe_intermediate_size", 1408),
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
    decoder_question_answering(s, body, "model");
}

/* ---- forward pass ---------------------------------------------------------------------------- */
struct qwen2_moe_pass {
    heft__routing routing;
    const struct experts *names;
};

/* x += experts of h + sigmoid(shared_expert_gate h) * shared expert of h, in mlp */
static void mlp_forward(heft__pass *p, const struct decoder_pass *d, const struct qwen2_moe_pass *m,
                        heft__rows x, heft__rows h)
{
    heft__enter(p, "mlp");
    if (!mixture_is_sparse(heft__pass_config(p), d->c.layer, m->routing.experts)) {
        heft__add(p, x, decoder_gated(p, d->act, h));
        heft__leave(p);
        return;
    }
    heft__rows y = mixture_forward(p, m->names, &m->routing, d->act, heft__linear(p, "gate", h), h);
    heft__enter(p, "shared_expert");
    heft__rows shared = decoder_gated(p, d->act, h);
    heft__leave(p);
    heft__rows gate = heft__linear(p, "shared_expert_gate", h);
    heft__activate(p, HEFT__ACT_SIGMOID, gate);
    heft__scale_rows(p, shared, gate);
    heft__add(p, y, shared);
    heft__add(p, x, y);
    heft__leave(p);
}

static void layer_forward(heft__pass *p, const struct decoder_pass *d, heft__rows x,
                          const void *user)
{
    decoder_attention(p, d, x, heft__rms_norm(p, "input_layernorm", x, d->eps, 0));
    mlp_forward(p, d, user, x, heft__rms_norm(p, "post_attention_layernorm", x, d->eps, 0));
}

static heft__rows body_forward(heft__pass *p)
{
    static const struct experts names = {.gate = "gate_proj", .up = "up_proj", .down = "down_proj"};
    heft__skeleton *s = heft__pass_config(p);
    struct decoder_pass d = decoder_begin(p, &standard, "rms_norm_eps");
    const struct qwen2_moe_pass m = {
        .routing = {.scoring = HEFT__SOFTMAX_THEN_TOP,
                    .experts = heft__sk_layers(s, "num_experts", 60),
                    .top = heft__sk_count(s, "num_experts_per_tok", 4),
                    .normalize = heft__sk_flag(s, "norm_topk_prob", false),
                    .scale = 1},
        .names = &names
    };
    d.rope = heft__rope_table(p, NULL, (size_t)d.c.head_dim);
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, &m);
    return decoder_finish(p, &d, heft__rms_norm(p, "norm", x, d.eps, 0));
}

static const heft__class classes[] = {
    {"Qwen2MoeModel",                     "AutoModel",                          base_model,         heft__base_forward       },
    {"Qwen2MoeForCausalLM",               "AutoModelForCausalLM",               causal_lm,          decoder_causal_lm_forward},
    {"Qwen2MoeForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                        },
    {"Qwen2MoeForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                           },
    {"Qwen2MoeForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     decoder_question_answering_forward                                                                                      },
    {NULL,                                NULL,                                 NULL,               NULL                     },
};

static const char *const no_split[] = {"Qwen2MoeDecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};

extern const heft__family heft__family_qwen2_moe; /* registry.c has a line for it */
const heft__family heft__family_qwen2_moe = {
    .model_type = "qwen2_moe",
    .base_prefix = "model",
    .class_prefix = "Qwen2Moe",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
    .rope_length = 32768,
};
