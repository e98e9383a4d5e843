/* electra.c - ELECTRA, generator and discriminator: BERT with narrow embeddings.
 *
 *   embeddings -> embeddings_project (if narrower) -> encoder.layer.0 .. N-1 -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/encoder.h"

static const struct encoder standard = {.vocab = 30522,
                                        .hidden = 256,
                                        .layers = 12,
                                        .heads = 4,
                                        .intermediate = 1024,
                                        .positions = 512,
                                        .token_types = 2,
                                        .embedding = 128,
                                        .padding_row = 0};

/* ---- modules --------------------------------------------------------------------------------- */
static struct encoder body(heft__skeleton *s)
{
    struct encoder c = encoder_read(s, &standard);
    encoder_embeddings(s, &c);
    if (c.embedding != c.hidden) {
        heft__sk_linear(s, "embeddings_project", c.embedding, c.hidden, true);
    }
    encoder_layers(s, &c);
    return c;
}

/* The body below a head. */
static struct encoder electra(heft__skeleton *s)
{
    heft__sk_enter_body(s, "electra");
    struct encoder c = body(s);
    heft__sk_leave(s);
    return c;
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    (void)body(s);
}

static void discriminator(heft__skeleton *s)
{
    struct encoder c = electra(s);
    heft__sk_enter(s, HEFT_MODULE_HEAD, "*DiscriminatorPredictions", "discriminator_predictions");
    heft__sk_linear(s, "dense", c.hidden, c.hidden, true);
    heft__sk_linear(s, "dense_prediction", c.hidden, 1, true);
    heft__sk_leave(s);
}

static void generator(heft__skeleton *s)
{
    struct encoder c = electra(s);
    heft__sk_enter(s, HEFT_MODULE_HEAD, "*GeneratorPredictions", "generator_predictions");
    heft__sk_layer_norm(s, "LayerNorm", c.embedding, true);
    heft__sk_linear(s, "dense", c.hidden, c.embedding, true);
    heft__sk_leave(s);
    heft__sk_linear(s, "generator_lm_head", c.embedding, c.vocab, true);
    if (c.tied) {
        heft__sk_tie(s, "generator_lm_head.weight", "electra.embeddings.word_embeddings.weight");
    }
}

static void sequence_classes(heft__skeleton *s)
{
    struct encoder c = electra(s);
    encoder_sentence_classifier(s, &c);
}

/* The sequence summary is a matrix only if the config wants a projection; it is as wide as the
 * labels if it says so. */
static void multiple_choice(heft__skeleton *s)
{
    struct encoder c = electra(s);
    if (heft__sk_flag(s, "summary_use_proj", true)) {
        bool labels = heft__sk_flag(s, "summary_proj_to_labels", false);
        uint64_t width = labels ? heft__sk_labels(s) : c.hidden;
        heft__sk_enter(s, HEFT_MODULE_HEAD, "*SequenceSummary", "sequence_summary");
        heft__sk_linear(s, "summary", c.hidden, width, true);
        heft__sk_leave(s);
    }
    heft__sk_linear(s, "classifier", c.hidden, 1, true);
}

static void token_classes(heft__skeleton *s)
{
    struct encoder c = electra(s);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void question_answering(heft__skeleton *s)
{
    struct encoder c = electra(s);
    heft__sk_linear(s, "qa_outputs", c.hidden, heft__sk_labels(s), true);
}

static const heft__class classes[] = {
    {"ElectraModel",                     "AutoModel",                          base_model,         NULL},
    {"ElectraForPreTraining",            "AutoModelForPreTraining",            discriminator,      NULL},
    {"ElectraForMaskedLM",               "AutoModelForMaskedLM",               generator,          NULL},
    {"ElectraForCausalLM",               "AutoModelForCausalLM",               generator,          NULL},
    {"ElectraForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     NULL                                                                                              },
    {"ElectraForTokenClassification",    "AutoModelForTokenClassification",    token_classes,      NULL},
    {"ElectraForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering, NULL},
    {"ElectraForMultipleChoice",         "AutoModelForMultipleChoice",         multiple_choice,    NULL},
    {NULL,                               NULL,                                 NULL,               NULL},
};

/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"position_ids", NULL};

extern const heft__family heft__family_electra; /* registry.c has a line for it */
const heft__family heft__family_electra = {
    .model_type = "electra",
    .base_prefix = "electra",
    .class_prefix = "Electra",
    .classes = classes,
    .ignore_unexpected = ignore_unexpected,
};
