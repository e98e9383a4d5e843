/* qwen3.c - Qwen3: queries and keys are normalized by head.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

static const struct decoder standard = {.vocab = 151936,
                                        .hidden = 4096,
                                        .layers = 32,
                                        .intermediate = 22016,
                                        .heads = 32,
                                        .kv_heads = 32,
                                        .head_dim = 128,
                                        .padding_row = -1,
                                        .tied = false,
                                        .std = 0.02,
                                        .windows = DECODER_LATE_WINDOWS,
                                        .window = 4096};

struct biases {
    bool attention;
};

static void layer(heft__skeleton *s, const struct decoder *c, const void *flags)
{
    const struct biases *bias = flags;
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    decoder_projections(s, c, bias->attention, bias->attention);
    heft__sk_rms_norm(s, "q_norm", c->head_dim, 1);
    heft__sk_rms_norm(s, "k_norm", c->head_dim, 1);
    heft__sk_leave(s);
    decoder_gated_mlp(s, c->hidden, c->intermediate, false);
    heft__sk_rms_norm(s, "input_layernorm", c->hidden, 1);
    heft__sk_rms_norm(s, "post_attention_layernorm", c->hidden, 1);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const struct biases flags = {heft__sk_flag(s, "attention_bias", false)};
    decoder_embeddings(s, &c);
    decoder_layers(s, &c, layer, &flags);
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

static void question_answering(heft__skeleton *s)
{
    decoder_question_answering(s, body, "transformer");
}

/* ---- forward pass ---------------------------------------------------------------------------- */
static void layer_forward(heft__pass *p, const struct decoder_pass *d, heft__rows x,
                          const void *user)
{
    (void)user;
    heft__rows h = heft__rms_norm(p, "input_layernorm", x, d->eps, 0);
    heft__enter(p, "self_attn");
    struct decoder_heads heads = decoder_project(p, h);
    heads.q = heft__rms_norm_heads(p, "q_norm", heads.q, d->attend.heads, d->eps, 0);
    heads.k = heft__rms_norm_heads(p, "k_norm", heads.k, d->attend.kv_heads, d->eps, 0);
    heft__add(p, x, heft__linear(p, "o_proj", decoder_attend(p, d, &heads)));
    heft__leave(p);
    h = heft__rms_norm(p, "post_attention_layernorm", x, d->eps, 0);
    heft__enter(p, "mlp");
    heft__add(p, x, decoder_gated(p, d->act, h));
    heft__leave(p);
}

static heft__rows body_forward(heft__pass *p)
{
    struct decoder_pass d = decoder_begin(p, &standard, "rms_norm_eps");
    d.rope = heft__rope_table(p, NULL, (size_t)d.c.head_dim);
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, NULL);
    return decoder_finish(p, &d, heft__rms_norm(p, "norm", x, d.eps, 0));
}

static const heft__class classes[] = {
    {"Qwen3Model",                     "AutoModel",                          base_model,         heft__base_forward       },
    {"Qwen3ForCausalLM",               "AutoModelForCausalLM",               causal_lm,          decoder_causal_lm_forward},
    {"Qwen3ForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                     },
    {"Qwen3ForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                        },
    {"Qwen3ForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     decoder_question_answering_forward                                                                                   },
    {NULL,                             NULL,                                 NULL,               NULL                     },
};

static const char *const no_split[] = {"Qwen3DecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};

extern const heft__family heft__family_qwen3; /* registry.c has a line for it */
const heft__family heft__family_qwen3 = {
    .model_type = "qwen3",
    .base_prefix = "model",
    .class_prefix = "Qwen3",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
    .rope_length = 32768,
};
