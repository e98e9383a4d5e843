/* mistral.c - Mistral.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

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
                                        .window = 4096};

static void layer(heft__skeleton *s, const struct decoder *c, const void *flags)
{
    (void)flags;
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    decoder_projections(s, c, false, false);
    heft__sk_leave(s);
    decoder_gated_mlp(s, c->hidden, c->intermediate, false);
    heft__sk_rms_norm(s, "input_layernorm", c->hidden, 1);
    heft__sk_rms_norm(s, "post_attention_layernorm", c->hidden, 1);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    decoder_embeddings(s, &c);
    decoder_layers(s, &c, layer, NULL);
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
    decoder_question_answering(s, body, "model");
}

/* ---- forward pass ---------------------------------------------------------------------------- */
static heft__rows body_forward(heft__pass *p)
{
    return decoder_plain_body(p, &standard);
}

static const heft__class classes[] = {
    {"MistralModel",                     "AutoModel",                          base_model,         heft__base_forward       },
    {"MistralForCausalLM",               "AutoModelForCausalLM",               causal_lm,          decoder_causal_lm_forward},
    {"MistralForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                       },
    {"MistralForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                          },
    {"MistralForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     decoder_question_answering_forward                                                                                     },
    {NULL,                               NULL,                                 NULL,               NULL                     },
};

static const char *const no_split[] = {"MistralDecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};

extern const heft__family heft__family_mistral; /* registry.c has a line for it */
const heft__family heft__family_mistral = {
    .model_type = "mistral",
    .base_prefix = "model",
    .class_prefix = "Mistral",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
    .rope_length = 131072,
};
