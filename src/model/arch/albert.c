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

/* ---- forward pass ---------------------------------------------------------------------------- */
static void layer_forward(heft__pass *p, const struct encoder_pass *e, heft__rows x)
{
    heft__enter(p, "attention");
    heft__rows a = heft__attend(p, heft__linear(p, "query", x), heft__linear(p, "key", x),
                                heft__linear(p, "value", x), &e->attend);
    a = heft__linear(p, "dense", a);
    heft__add(p, a, x);
    a = heft__layer_norm(p, "LayerNorm", a, e->eps);
    heft__leave(p);
    heft__rows h = heft__linear(p, "ffn", a);
    heft__activate(p, e->act, h);
    h = heft__linear(p, "ffn_output", h);
    heft__add(p, h, a);
    heft__set(p, x, heft__layer_norm(p, "full_layer_layer_norm", h, e->eps));
}

/* Layer i is all layers of one group, each with a hidden state. */
static void group_forward(heft__pass *p, const struct encoder_pass *e, uint64_t i, heft__rows x)
{
    heft__skeleton *s = heft__pass_config(p);
    const uint64_t groups = heft__sk_layers(s, "num_hidden_groups", 1),
                   layers = heft__sk_layers(s, "inner_group_num", 1);
    heft__enter_item(p, "encoder.albert_layer_groups", (size_t)(i * groups / e->c.layers));
    for (uint64_t k = 0; k < layers && heft__pass_going(p); k++) {
        heft__block(p, "albert_layers", (size_t)k);
        layer_forward(p, e, x);
        heft__out_hidden(p, (size_t)(i * layers + k) + 1, x);
        heft__block_end(p, x);
    }
    heft__leave(p);
}

static heft__rows body_forward(heft__pass *p)
{
    struct encoder_pass e = encoder_begin(p, &standard);
    e.act = heft__act_of(p, "hidden_act", "gelu_new");
    e.attend.causal = false; /* whatever is_decoder says */
    heft__rows x = encoder_embeddings_forward(p, &e, heft__inputs(p)->at);
    x = heft__linear(p, "encoder.embedding_hidden_mapping_in", x);
    heft__out_hidden(p, 0, x);
    for (uint64_t i = 0; i < e.c.layers && heft__pass_going(p); i++) {
        group_forward(p, &e, i, x);
    }
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    if (heft__has(p, "pooler")) {
        heft__rows pooled = heft__linear(p, "pooler", encoder_first_rows(p, x));
        heft__activate(p, HEFT__ACT_TANH, pooled);
        heft__out(p, HEFT__OUT_SEQUENCES, "pooler_output", pooled);
    }
    return x;
}

static heft__rows pooled_forward(heft__pass *p, heft__rows x)
{
    heft__pass_enter_body(p);
    x = heft__linear(p, "pooler", encoder_first_rows(p, x));
    heft__activate(p, HEFT__ACT_TANH, x);
    heft__leave(p);
    return x;
}

static heft__rows predictions_forward(heft__pass *p, heft__rows x)
{
    const double eps = heft__sk_real(heft__pass_config(p), "layer_norm_eps", 1e-12);
    heft__enter(p, "predictions");
    x = heft__linear(p, "dense", x);
    heft__activate(p, heft__act_of(p, "hidden_act", "gelu_new"), x);
    x = heft__linear(p, "decoder", heft__layer_norm(p, "LayerNorm", x, eps));
    heft__leave(p);
    return x;
}

static void masked_lm_forward(heft__pass *p)
{
    heft__rows x = heft__wanted(p, heft__body(p));
    heft__out(p, HEFT__OUT_WANTED, "logits", predictions_forward(p, x));
}

static void pre_training_forward(heft__pass *p)
{
    heft__rows x = heft__body(p);
    heft__out(p, HEFT__OUT_WANTED, "prediction_logits", predictions_forward(p, heft__wanted(p, x)));
    heft__out(p, HEFT__OUT_SEQUENCES, "sop_logits",
              heft__linear(p, "sop_classifier.classifier", pooled_forward(p, x)));
}

static void pooled_classes_forward(heft__pass *p)
{
    heft__rows x = pooled_forward(p, heft__body(p));
    heft__out(p, HEFT__OUT_SEQUENCES, "logits", heft__linear(p, "classifier", x));
}

static const heft__class classes[] = {
    {"AlbertModel",                     "AutoModel",                          base_model,         heft__base_forward  },
    {"AlbertForPreTraining",            "AutoModelForPreTraining",            pre_training,       pre_training_forward},
    {"AlbertForMaskedLM",               "AutoModelForMaskedLM",               masked_lm,          masked_lm_forward   },
    {"AlbertForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     pooled_classes_forward                                                                                           },
    {"AlbertForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     encoder_token_classes_forward                                                                                    },
    {"AlbertForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     encoder_question_answering_forward                                                                               },
    {"AlbertForMultipleChoice",         "AutoModelForMultipleChoice",         multiple_choice,
     pooled_classes_forward                                                                                           },
    {NULL,                              NULL,                                 NULL,               NULL                },
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
    .body = body_forward,
};
