/* bert.c - BERT and its heads.
 *
 *   embeddings -> encoder.layer.0 .. N-1 -> pooler (some classes) -> head
 *
 * A decoder (is_decoder, add_cross_attention) has a second attention in each layer. Values of the
 * config are not trusted: the builder's look-ups refuse what cannot be.
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/model.h"

struct bert {
    uint64_t vocab, hidden, layers, intermediate, positions, token_types;
    int64_t padding_row; /* of the word embeddings, -1 for none */
    bool cross_attention, tied;
};

static struct bert read_config(heft__skeleton *s)
{
    struct bert c = {
        .vocab = heft__sk_count(s, "vocab_size", 30522),
        .hidden = heft__sk_count(s, "hidden_size", 768),
        .layers = heft__sk_layers(s, "num_hidden_layers", 12),
        .intermediate = heft__sk_count(s, "intermediate_size", 3072),
        .positions = heft__sk_count(s, "max_position_embeddings", 512),
        .token_types = heft__sk_count(s, "type_vocab_size", 2),
        .cross_attention = heft__sk_flag(s, "add_cross_attention", false),
        .tied = heft__sk_flag(s, "tie_word_embeddings", true),
    };
    uint64_t heads = heft__sk_count(s, "num_attention_heads", 12);
    if (c.hidden % heads) {
        heft__sk_fail(s, HEFT_FORMAT, "num_attention_heads",
                      "expected a divisor of hidden_size, %llu, found %llu",
                      (unsigned long long)c.hidden, (unsigned long long)heads);
    }
    if (c.cross_attention && !heft__sk_flag(s, "is_decoder", false)) {
        heft__sk_fail(s, HEFT_FORMAT, "add_cross_attention",
                      "expected is_decoder true beside it, found false");
    }
    c.padding_row = heft__sk_padding_row(s, "pad_token_id", 0, c.vocab);
    heft__sk_initializer_range(s, 0.02);
    return c;
}

/* ---- modules --------------------------------------------------------------------------------- */
static void embeddings(heft__skeleton *s, const struct bert *c)
{
    const uint64_t row[2] = {1, c->positions};
    const heft__init_rule counting = {.kind = HEFT__INIT_ARANGE, .zero_row = -1};
    heft__sk_enter(s, "embeddings");
    heft__sk_buffer(s, "position_ids", HEFT_DTYPE_I64, row, 2, false, counting);
    heft__sk_buffer(s, "token_type_ids", HEFT_DTYPE_I64, row, 2, false, heft__init_constant(0));
    heft__sk_embedding(s, "word_embeddings", c->vocab, c->hidden, c->padding_row);
    heft__sk_embedding(s, "position_embeddings", c->positions, c->hidden, -1);
    heft__sk_embedding(s, "token_type_embeddings", c->token_types, c->hidden, -1);
    heft__sk_layer_norm(s, "LayerNorm", c->hidden, true);
    heft__sk_leave(s);
}

static void dense_and_norm(heft__skeleton *s, const char *name, uint64_t in, uint64_t out)
{
    heft__sk_enter(s, "%s", name);
    heft__sk_linear(s, "dense", in, out, true);
    heft__sk_layer_norm(s, "LayerNorm", out, true);
    heft__sk_leave(s);
}

static void attention(heft__skeleton *s, const char *name, const struct bert *c)
{
    heft__sk_enter(s, "%s", name);
    heft__sk_linear(s, "self.query", c->hidden, c->hidden, true);
    heft__sk_linear(s, "self.key", c->hidden, c->hidden, true);
    heft__sk_linear(s, "self.value", c->hidden, c->hidden, true);
    dense_and_norm(s, "output", c->hidden, c->hidden);
    heft__sk_leave(s);
}

static void encoder_layer(heft__skeleton *s, const struct bert *c)
{
    attention(s, "attention", c);
    if (c->cross_attention) {
        attention(s, "crossattention", c);
    }
    heft__sk_linear(s, "intermediate.dense", c->hidden, c->intermediate, true);
    dense_and_norm(s, "output", c->intermediate, c->hidden);
}

static void body(heft__skeleton *s, const struct bert *c, bool pooler)
{
    embeddings(s, c);
    for (uint64_t i = 0; i < c->layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, "encoder.layer.%llu", (unsigned long long)i);
        encoder_layer(s, c);
        heft__sk_leave(s);
    }
    if (pooler) {
        heft__sk_linear(s, "pooler.dense", c->hidden, c->hidden, true);
    }
}

/* The body below a head. */
static struct bert bert(heft__skeleton *s, bool pooler)
{
    struct bert c = read_config(s);
    heft__sk_enter(s, "bert");
    body(s, &c, pooler);
    heft__sk_leave(s);
    return c;
}

/* The masked-word head; its decoder is the word embeddings once more. */
static void predictions(heft__skeleton *s, const struct bert *c)
{
    heft__sk_enter(s, "cls.predictions");
    heft__sk_parameter(s, "bias", &c->vocab, 1, heft__init_constant(0));
    heft__sk_linear(s, "transform.dense", c->hidden, c->hidden, true);
    heft__sk_layer_norm(s, "transform.LayerNorm", c->hidden, true);
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
    struct bert c = read_config(s);
    body(s, &c, true);
}

static void pre_training(heft__skeleton *s)
{
    struct bert c = bert(s, true);
    predictions(s, &c);
    heft__sk_linear(s, "cls.seq_relationship", c.hidden, 2, true);
}

static void masked_lm(heft__skeleton *s)
{
    struct bert c = bert(s, false);
    predictions(s, &c);
}

static void next_sentence(heft__skeleton *s)
{
    struct bert c = bert(s, true);
    heft__sk_linear(s, "cls.seq_relationship", c.hidden, 2, true);
}

static void sequence_classes(heft__skeleton *s)
{
    struct bert c = bert(s, true);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void multiple_choice(heft__skeleton *s)
{
    struct bert c = bert(s, true);
    heft__sk_linear(s, "classifier", c.hidden, 1, true);
}

static void token_classes(heft__skeleton *s)
{
    struct bert c = bert(s, false);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void question_answering(heft__skeleton *s)
{
    struct bert c = bert(s, false);
    heft__sk_linear(s, "qa_outputs", c.hidden, heft__sk_labels(s), true);
}

/* BertLMHeadModel has the parameters of BertForMaskedLM. */
static const heft__class classes[] = {
    {"BertModel",                     "AutoModel",                          base_model        },
    {"BertForPreTraining",            "AutoModelForPreTraining",            pre_training      },
    {"BertForMaskedLM",               "AutoModelForMaskedLM",               masked_lm         },
    {"BertLMHeadModel",               "AutoModelForCausalLM",               masked_lm         },
    {"BertForNextSentencePrediction", "AutoModelForNextSentencePrediction", next_sentence     },
    {"BertForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes  },
    {"BertForTokenClassification",    "AutoModelForTokenClassification",    token_classes     },
    {"BertForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering},
    {"BertForMultipleChoice",         "AutoModelForMultipleChoice",         multiple_choice   },
    {NULL,                            NULL,                                 NULL              },
};

static const char *const no_split[] = {"BertEmbeddings", "BertLayer", NULL};
/* computed from the config; files of 4.30 and older hold it */
static const char *const ignore_unexpected[] = {"position_ids", NULL};

extern const heft__family heft__family_bert; /* registry.c has a line for it */
const heft__family heft__family_bert = {
    .model_type = "bert",
    .base_prefix = "bert",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
};
