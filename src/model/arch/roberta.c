/* roberta.c - RoBERTa and its heads: BERT with its own order of embeddings and language head.
 *
 *   embeddings -> encoder.layer.0 .. N-1 -> pooler (some classes) -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/encoder.h"

static const struct encoder standard = {.vocab = 50265,
                                        .hidden = 768,
                                        .layers = 12,
                                        .heads = 12,
                                        .intermediate = 3072,
                                        .positions = 512,
                                        .token_types = 2,
                                        .padding_row = 1};

/* ---- modules --------------------------------------------------------------------------------- */
/* Positions are counted from the padding row on, so it is one of the positions as well. */
static void embeddings(heft__skeleton *s, const struct encoder *c)
{
    if (c->padding_row >= (int64_t)c->positions) {
        heft__sk_fail(s, HEFT_FORMAT, "pad_token_id", "expected one of %llu positions, found %lld",
                      (unsigned long long)c->positions, (long long)c->padding_row);
    }
    heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "*Embeddings", "embeddings");
    encoder_numbers(s, c);
    heft__sk_embedding(s, "word_embeddings", c->vocab, c->hidden, c->padding_row);
    heft__sk_embedding(s, "token_type_embeddings", c->token_types, c->hidden, -1);
    heft__sk_layer_norm(s, "LayerNorm", c->hidden, true);
    heft__sk_embedding(s, "position_embeddings", c->positions, c->hidden, c->padding_row);
    heft__sk_leave(s);
}

static struct encoder body(heft__skeleton *s, bool pooler)
{
    struct encoder c = encoder_read(s, &standard);
    embeddings(s, &c);
    encoder_layers(s, &c);
    if (pooler) {
        encoder_pooler(s, &c);
    }
    return c;
}

/* The body below a head. */
static struct encoder roberta(heft__skeleton *s, bool pooler)
{
    heft__sk_enter_body(s, "roberta");
    struct encoder c = body(s, pooler);
    heft__sk_leave(s);
    return c;
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    (void)body(s, true);
}

/* The head's decoder is the word embeddings once more. */
static void language_head(heft__skeleton *s)
{
    struct encoder c = roberta(s, false);
    heft__sk_enter(s, HEFT_MODULE_HEAD, "*LMHead", "lm_head");
    heft__sk_parameter(s, "bias", &c.vocab, 1, heft__init_constant(0));
    heft__sk_linear(s, "dense", c.hidden, c.hidden, true);
    heft__sk_layer_norm(s, "layer_norm", c.hidden, true);
    heft__sk_linear(s, "decoder", c.hidden, c.vocab, true);
    heft__sk_leave(s);
    if (c.tied) {
        heft__sk_tie(s, "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight");
        heft__sk_tie(s, "lm_head.decoder.bias", "lm_head.bias");
    }
}

static void sequence_classes(heft__skeleton *s)
{
    struct encoder c = roberta(s, false);
    encoder_sentence_classifier(s, &c);
}

static void multiple_choice(heft__skeleton *s)
{
    struct encoder c = roberta(s, true);
    heft__sk_linear(s, "classifier", c.hidden, 1, true);
}

static void token_classes(heft__skeleton *s)
{
    struct encoder c = roberta(s, false);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void question_answering(heft__skeleton *s)
{
    struct encoder c = roberta(s, false);
    heft__sk_linear(s, "qa_outputs", c.hidden, heft__sk_labels(s), true);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
/* Positions count the tokens that are not padding, from the padding row on, which padding has itself. */
static heft__rows body_forward(heft__pass *p)
{
    const struct encoder_pass e = encoder_begin(p, &standard);
    heft__number(p, HEFT__NUMBER_WORDS, e.c.padding_row);
    return encoder_layers_forward(p, &e,
                                  encoder_embeddings_forward(p, &e, heft__inputs(p)->counted));
}

static void language_head_forward(heft__pass *p)
{
    const double eps = heft__sk_real(heft__pass_config(p), "layer_norm_eps", 1e-12);
    heft__rows x = heft__linear(p, "lm_head.dense", heft__wanted(p, heft__body(p)));
    heft__activate(p, HEFT__ACT_GELU, x);
    x = heft__layer_norm(p, "lm_head.layer_norm", x, eps);
    heft__out(p, HEFT__OUT_WANTED, "logits", heft__linear(p, "lm_head.decoder", x));
}

static const heft__class classes[] = {
    {"RobertaModel",                     "AutoModel",                          base_model,         heft__base_forward   },
    {"RobertaForMaskedLM",               "AutoModelForMaskedLM",               language_head,      language_head_forward},
    {"RobertaForCausalLM",               "AutoModelForCausalLM",               language_head,      language_head_forward},
    {"RobertaForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     encoder_sentence_classes_forward                                                                                   },
    {"RobertaForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     encoder_token_classes_forward                                                                                      },
    {"RobertaForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     encoder_question_answering_forward                                                                                 },
    {"RobertaForMultipleChoice",         "AutoModelForMultipleChoice",         multiple_choice,
     encoder_pooled_classes_forward                                                                                     },
    {NULL,                               NULL,                                 NULL,               NULL                 },
};

static const char *const no_split[] = {"RobertaEmbeddings", "RobertaLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"position_ids", NULL};

extern const heft__family heft__family_roberta; /* registry.c has a line for it */
const heft__family heft__family_roberta = {
    .model_type = "roberta",
    .base_prefix = "roberta",
    .class_prefix = "Roberta",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
};
