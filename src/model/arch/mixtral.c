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

/* ---- forward pass ---------------------------------------------------------------------------- */
static void layer_forward(heft__pass *p, const struct decoder_pass *d, heft__rows x,
                          const void *user)
{
    static const struct experts names = {.gate = "w1", .up = "w3", .down = "w2"};
    decoder_attention(p, d, x, heft__rms_norm(p, "input_layernorm", x, d->eps, 0));
    heft__rows h = heft__rms_norm(p, "post_attention_layernorm", x, d->eps, 0);
    heft__enter(p, "block_sparse_moe");
    heft__add(p, x, mixture_forward(p, &names, user, d->act, heft__linear(p, "gate", h), h));
    heft__leave(p);
}

static heft__rows body_forward(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    struct decoder_pass d = decoder_begin(p, &standard, "rms_norm_eps");
    const heft__routing routing = {.scoring = HEFT__SOFTMAX_THEN_TOP,
                                   .experts = heft__sk_layers(s, "num_local_experts", 8),
                                   .top = heft__sk_count(s, "num_experts_per_tok", 2),
                                   .normalize = true,
                                   .scale = 1};
    d.eps = heft__sk_real(s, "rms_norm_eps", 1e-5);
    d.rope = heft__rope_table(p, NULL, (size_t)d.c.head_dim);
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, &routing);
    return decoder_finish(p, &d, heft__rms_norm(p, "norm", x, d.eps, 0));
}

static const heft__class classes[] = {
    {"MixtralModel",                     "AutoModel",                          base_model,         heft__base_forward       },
    {"MixtralForCausalLM",               "AutoModelForCausalLM",               causal_lm,          decoder_causal_lm_forward},
    {"MixtralForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                       },
    {"MixtralForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                          },
    {"MixtralForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     decoder_question_answering_forward                                                                                     },
    {NULL,                               NULL,                                 NULL,               NULL                     },
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
    .body = body_forward,
    .rope_theta = 1000000,
    .rope_length = 131072,
};
