/* albert.c - ALBERT: a few layers, each run several times.
 *
 *   embeddings -> encoder.embedding_hidden_mapping_in -> encoder.albert_layer_groups -> pooler ->
 *   a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/encoder.h"

static const struct encoder standard = {.vocab = 30000,
                                        .hidden = 4096,
                                        .layers = 12,
                                        .heads = 64,
                                        .intermediate = 16384,
                                        .positions = 512,
                                        .token_types = 2,
                                        .embedding = 128,
                                        .padding_row = 0};

/* ---- modules --------------------------------------------------------------------------------- */
static void layer(heft__skeleton *s, const struct encoder *c)
{
    heft__sk_layer_norm(s, "full_layer_layer_norm", c->hidden, true);
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "attention");
    heft__sk_linear(s, "query", c->hidden, c->hidden, true);
    heft__sk_linear(s, "key", c->hidden, c->hidden, true);
    heft__sk_linear(s, "value", c->hidden, c->hidden, true);
    heft__sk_linear(s, "dense", c->hidden, c->hidden, true);
    heft__sk_layer_norm(s, "LayerNorm", c->hidden, true);
    heft__sk_leave(s);
    heft__sk_linear(s, "ffn", c->hidden, c->intermediate, true);
    heft__sk_linear(s, "ffn_output", c->intermediate, c->hidden, true);
}

static struct encoder body(heft__skeleton *s, bool pooler)
{
    struct encoder c = encoder_read(s, &standard);
    const uint64_t groups = heft__sk_layers(s, "num_hidden_groups", 1),
                   layers = heft__sk_layers(s, "inner_group_num", 1);
    encoder_embeddings(s, &c);
    heft__sk_enter(s, HEFT_MODULE_MODEL, "*Transformer", "encoder");
    heft__sk_linear(s, "embedding_hidden_mapping_in", c.embedding, c.hidden, true);
    for (uint64_t i = 0; i < groups && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_CONTAINER, "*LayerGroup", "albert_layer_groups.%llu",
                       (unsigned long long)i);
        for (uint64_t k = 0; k < layers && heft__sk_going(s); k++) {
            heft__sk_enter(s, HEFT_MODULE_LAYER, "*Layer", "albert_layers.%llu",
                           (unsigned long long)k);
            layer(s, &c);
            heft__sk_leave(s);
        }
        heft__sk_leave(s);
    }
    heft__sk_leave(s);
    if (pooler) {
        heft__sk_linear(s, "pooler", c.hidden, c.hidden, true);
    }
    return c;
}

/* The body below a head. */
static struct encoder albert(heft__skeleton *s, bool pooler)
{
    heft__sk_enter_body(s, "albert");
    struct encoder c = body(s, pooler);
    heft__sk_leave(s);
    return c;
}

/* The masked-word head; its decoder is the word embeddings once more. */
static void predictions(heft__skeleton *s, const struct encoder *c)
{
    heft__sk_enter(s, HEFT_MODULE_HEAD, "*MLMHead", "predictions");
    heft__sk_parameter(s, "bias", &c->vocab, 1, heft__init_constant(0));
    heft__sk_layer_norm(s, "LayerNorm", c->embedding, true);
    heft__sk_linear(s, "dense", c->hidden, c->embedding, true);
    heft__sk_linear(s, "decoder", c->embedding, c->vocab, true);
    heft__sk_leave(s);
    if (c->tied) {
        heft__sk_tie(s, "predictions.decoder.weight", "albert.embeddings.word_embeddings.weight");
        heft__sk_tie(s, "predictions.decoder.bias", "predictions.bias");
    }
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    (void)body(s, true);
}

static void pre_training(heft__skeleton *s)
{
    struct encoder c = albert(s, true);
    predictions(s, &c);
    heft__sk_enter(s, HEFT_MODULE_HEAD, "*SOPHead", "sop_classifier");
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
    heft__sk_leave(s);
}

static void masked_lm(heft__skeleton *s)
{
    struct encoder c = albert(s, false);
    predictions(s, &c);
}

static void sequence_classes(heft__skeleton *s)
{
    struct encoder c = albert(s, true);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void multiple_choice(heft__skeleton *s)
{
    struct encoder c = albert(s, true);
    heft__sk_linear(s, "classifier", c.hidden, 1, true);
}

static void token_classes(heft__skeleton *s)
{
    struct encoder c = albert(s, false);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void question_answering(heft__skeleton *s)
{
    struct encoder c = albert(s, false);
    heft__sk_linear(s, "qa_outputs", c.hidden, heft__sk_labels(s), true);
}

static const heft__class classes[] = {
    {"AlbertModel",                     "AutoModel",                          base_model,         NULL},
    {"AlbertForPreTraining",            "AutoModelForPreTraining",            pre_training,       NULL},
    {"AlbertForMaskedLM",               "AutoModelForMaskedLM",               masked_lm,          NULL},
    {"AlbertForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     NULL                                                                                             },
    {"AlbertForTokenClassification",    "AutoModelForTokenClassification",    token_classes,      NULL},
    {"AlbertForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering, NULL},
    {"AlbertForMultipleChoice",         "AutoModelForMultipleChoice",         multiple_choice,    NULL},
    {NULL,                              NULL,                                 NULL,               NULL},
};

/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"position_ids", NULL};

extern const heft__family heft__family_albert; /* registry.c has a line for it */
const heft__family heft__family_albert = {
    .model_type = "albert",
    .base_prefix = "albert",
    .class_prefix = "Albert",
    .classes = classes,
    .ignore_unexpected = ignore_unexpected,
};
