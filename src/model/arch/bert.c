/* bert.c - BERT and its heads.
 *
 *   embeddings -> encoder.layer.0 .. N-1 -> pooler (some classes) -> head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/encoder.h"

static const struct encoder standard = {.vocab = 30522,
                                        .hidden = 768,
                                        .layers = 12,
                                        .heads = 12,
                                        .intermediate = 3072,
                                        .positions = 512,
                                        .token_types = 2,
                                        .padding_row = 0};

/* ---- modules --------------------------------------------------------------------------------- */
static struct encoder body(heft__skeleton *s, bool pooler)
{
    struct encoder c = encoder_read(s, &standard);
    encoder_embeddings(s, &c);
    encoder_layers(s, &c);
    if (pooler) {
        encoder_pooler(s, &c);
    }
    return c;
}

/* The body below a head. */
static struct encoder bert(heft__skeleton *s, bool pooler)
{
    heft__sk_enter_body(s, "bert");
    struct encoder c = body(s, pooler);
    heft__sk_leave(s);
    return c;
}

/* The masked-word head; its decoder is the word embeddings once more. */
static void predictions(heft__skeleton *s, const struct encoder *c)
{
    heft__sk_enter(s, HEFT_MODULE_HEAD, "*LMPredictionHead", "predictions");
    heft__sk_parameter(s, "bias", &c->vocab, 1, heft__init_constant(0));
    heft__sk_enter(s, HEFT_MODULE_OTHER, "*PredictionHeadTransform", "transform");
    heft__sk_linear(s, "dense", c->hidden, c->hidden, true);
    heft__sk_layer_norm(s, "LayerNorm", c->hidden, true);
    heft__sk_leave(s);
    heft__sk_linear(s, "decoder", c->hidden, c->vocab, true);
    heft__sk_leave(s);
    if (c->tied) {
        heft__sk_tie(s, "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight");
        heft__sk_tie(s, "cls.predictions.decoder.bias", "cls.predictions.bias");
    }
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    (void)body(s, true);
}

static void pre_training(heft__skeleton *s)
{
    struct encoder c = bert(s, true);
    heft__sk_enter(s, HEFT_MODULE_HEAD, "*PreTrainingHeads", "cls");
    predictions(s, &c);
    heft__sk_linear(s, "seq_relationship", c.hidden, 2, true);
    heft__sk_leave(s);
}

static void masked_lm(heft__skeleton *s)
{
    struct encoder c = bert(s, false);
    heft__sk_enter(s, HEFT_MODULE_HEAD, "*OnlyMLMHead", "cls");
    predictions(s, &c);
    heft__sk_leave(s);
}

static void next_sentence(heft__skeleton *s)
{
    struct encoder c = bert(s, true);
    heft__sk_enter(s, HEFT_MODULE_HEAD, "*OnlyNSPHead", "cls");
    heft__sk_linear(s, "seq_relationship", c.hidden, 2, true);
    heft__sk_leave(s);
}

static void sequence_classes(heft__skeleton *s)
{
    struct encoder c = bert(s, true);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void multiple_choice(heft__skeleton *s)
{
    struct encoder c = bert(s, true);
    heft__sk_linear(s, "classifier", c.hidden, 1, true);
}

static void token_classes(heft__skeleton *s)
{
    struct encoder c = bert(s, false);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void question_answering(heft__skeleton *s)
{
    struct encoder c = bert(s, false);
    heft__sk_linear(s, "qa_outputs", c.hidden, heft__sk_labels(s), true);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
static heft__rows body_forward(heft__pass *p)
{
    const struct encoder_pass e = encoder_begin(p, &standard);
    return encoder_layers_forward(p, &e, encoder_embeddings_forward(p, &e, heft__inputs(p)->at));
}

static heft__rows predictions_forward(heft__pass *p, heft__rows x)
{
    const double eps = heft__sk_real(heft__pass_config(p), "layer_norm_eps", 1e-12);
    heft__enter(p, "cls.predictions");
    x = heft__linear(p, "transform.dense", x);
    heft__activate(p, heft__act_of(p, "hidden_act", "gelu"), x);
    x = heft__linear(p, "decoder", heft__layer_norm(p, "transform.LayerNorm", x, eps));
    heft__leave(p);
    return x;
}

static void masked_lm_forward(heft__pass *p)
{
    heft__rows x = heft__wanted(p, heft__body(p));
    heft__out(p, HEFT__OUT_WANTED, "logits", predictions_forward(p, x));
}

static void next_sentence_forward(heft__pass *p)
{
    heft__rows pooled = encoder_pooled(p, heft__body(p));
    heft__out(p, HEFT__OUT_SEQUENCES, "logits", heft__linear(p, "cls.seq_relationship", pooled));
}

static void pre_training_forward(heft__pass *p)
{
    heft__rows x = heft__body(p);
    heft__out(p, HEFT__OUT_WANTED, "prediction_logits", predictions_forward(p, heft__wanted(p, x)));
    heft__out(p, HEFT__OUT_SEQUENCES, "seq_relationship_logits",
              heft__linear(p, "cls.seq_relationship", encoder_pooled(p, x)));
}

/* BertLMHeadModel has the parameters of BertForMaskedLM. */
static const heft__class classes[] = {
    {"BertModel",                     "AutoModel",                          base_model,         heft__base_forward  },
    {"BertForPreTraining",            "AutoModelForPreTraining",            pre_training,       pre_training_forward},
    {"BertForMaskedLM",               "AutoModelForMaskedLM",               masked_lm,          masked_lm_forward   },
    {"BertLMHeadModel",               "AutoModelForCausalLM",               masked_lm,          masked_lm_forward   },
    {"BertForNextSentencePrediction", "AutoModelForNextSentencePrediction", next_sentence,
     next_sentence_forward                                                                                          },
    {"BertForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     encoder_pooled_classes_forward                                                                                 },
    {"BertForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     encoder_token_classes_forward                                                                                  },
    {"BertForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     encoder_question_answering_forward                                                                             },
    {"BertForMultipleChoice",         "AutoModelForMultipleChoice",         multiple_choice,
     encoder_pooled_classes_forward                                                                                 },
    {NULL,                            NULL,                                 NULL,               NULL                },
};

static const char *const no_split[] = {"BertEmbeddings", "BertLayer", NULL};
/* computed from the config; files of 4.30 and older hold it */
static const char *const ignore_unexpected[] = {"position_ids", NULL};

extern const heft__family heft__family_bert; /* registry.c has a line for it */
const heft__family heft__family_bert = {
    .model_type = "bert",
    .base_prefix = "bert",
    .class_prefix = "Bert",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .body = body_forward,
};
