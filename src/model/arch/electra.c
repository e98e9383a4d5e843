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

/* ---- forward pass ---------------------------------------------------------------------------- */
static heft__rows body_forward(heft__pass *p)
{
    const struct encoder_pass e = encoder_begin(p, &standard);
    heft__rows x = encoder_embeddings_forward(p, &e, heft__inputs(p)->at);
    if (e.c.embedding != e.c.hidden) {
        x = heft__linear(p, "embeddings_project", x);
    }
    return encoder_layers_forward(p, &e, x);
}

static void discriminator_forward(heft__pass *p)
{
    heft__rows x = heft__body(p);
    heft__enter(p, "discriminator_predictions");
    x = heft__linear(p, "dense", x);
    heft__activate(p, heft__act_of(p, "hidden_act", "gelu"), x);
    heft__out(p, HEFT__OUT_TOKENS, "logits", heft__linear(p, "dense_prediction", x));
    heft__leave(p);
}

static void generator_forward(heft__pass *p)
{
    const double eps = heft__sk_real(heft__pass_config(p), "layer_norm_eps", 1e-12);
    heft__rows x = heft__wanted(p, heft__body(p));
    heft__enter(p, "generator_predictions");
    x = heft__linear(p, "dense", x);
    heft__activate(p, HEFT__ACT_GELU, x); /* whatever hidden_act is */
    x = heft__layer_norm(p, "LayerNorm", x, eps);
    heft__leave(p);
    heft__out(p, HEFT__OUT_WANTED, "logits", heft__linear(p, "generator_lm_head", x));
}

/* As encoder_sentence_classes_forward(), with another activation. */
static void sequence_classes_forward(heft__pass *p)
{
    heft__rows x = heft__linear(p, "classifier.dense", encoder_first_rows(p, heft__body(p)));
    heft__activate(p, HEFT__ACT_GELU, x);
    heft__out(p, HEFT__OUT_SEQUENCES, "logits", heft__linear(p, "classifier.out_proj", x));
}

static void multiple_choice_forward(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    heft__rows x = encoder_first_rows(p, heft__body(p));
    if (strcmp(heft__sk_text(s, "summary_type", "first"), "first") != 0) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "summary_type: heft computes \"first\" only");
    }
    if (heft__sk_flag(s, "summary_use_proj", true)) {
        x = heft__linear(p, "sequence_summary.summary", x);
    }
    heft__activate(p, heft__act_of(p, "summary_activation", "gelu"), x);
    heft__out(p, HEFT__OUT_SEQUENCES, "logits", heft__linear(p, "classifier", x));
}

static const heft__class classes[] = {
    {"ElectraModel",                     "AutoModel",                          base_model,         heft__base_forward   },
    {"ElectraForPreTraining",            "AutoModelForPreTraining",            discriminator,      discriminator_forward},
    {"ElectraForMaskedLM",               "AutoModelForMaskedLM",               generator,          generator_forward    },
    {"ElectraForCausalLM",               "AutoModelForCausalLM",               generator,          generator_forward    },
    {"ElectraForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     sequence_classes_forward                                                                                           },
    {"ElectraForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     encoder_token_classes_forward                                                                                      },
    {"ElectraForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     encoder_question_answering_forward                                                                                 },
    {"ElectraForMultipleChoice",         "AutoModelForMultipleChoice",         multiple_choice,
     multiple_choice_forward                                                                                            },
    {NULL,                               NULL,                                 NULL,               NULL                 },
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
    .body = body_forward,
};
