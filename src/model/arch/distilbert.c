/* distilbert.c - DistilBERT and its heads.
 *
 *   embeddings -> transformer.layer.0 .. N-1 -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/encoder.h"

struct distilbert {
    uint64_t vocab, hidden, layers, intermediate, positions;
    int64_t padding_row; /* of the word embeddings, -1 for none */
    bool sinusoidal, tied;
};

static struct distilbert read_config(heft__skeleton *s)
{
    struct distilbert c = {
        .vocab = heft__sk_count(s, "vocab_size", 30522),
        .hidden = heft__sk_count(s, "dim", 768),
        .layers = heft__sk_layers(s, "n_layers", 6),
        .intermediate = heft__sk_count(s, "hidden_dim", 3072),
        .positions = heft__sk_count(s, "max_position_embeddings", 512),
        .sinusoidal = heft__sk_flag(s, "sinusoidal_pos_embds", false),
        .tied = heft__sk_flag(s, "tie_word_embeddings", true),
    };
    uint64_t heads = heft__sk_count(s, "n_heads", 12);
    if (c.hidden % heads) {
        heft__sk_fail(s, HEFT_FORMAT, "n_heads", "expected a divisor of dim, %llu, found %llu",
                      (unsigned long long)c.hidden, (unsigned long long)heads);
    }
    c.padding_row = heft__sk_padding_row(s, "pad_token_id", 0, c.vocab);
    heft__sk_initializer_range(s, 0.02);
    return c;
}

/* ---- modules --------------------------------------------------------------------------------- */
static void embeddings(heft__skeleton *s, const struct distilbert *c)
{
    const heft__init_rule counting = {.kind = HEFT__INIT_ARANGE, .zero_row = -1};
    const heft__init_rule waves = {.kind = HEFT__INIT_SINUSOID, .zero_row = -1};
    heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "Embeddings", "embeddings");
    heft__sk_buffer(s, "position_ids", HEFT_DTYPE_I64, (const uint64_t[]){1, c->positions}, 2,
                    false, counting);
    heft__sk_embedding(s, "word_embeddings", c->vocab, c->hidden, c->padding_row);
    if (c->sinusoidal) {
        heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "Embedding", "position_embeddings");
        heft__sk_parameter(s, "weight", (const uint64_t[]){c->positions, c->hidden}, 2, waves);
        heft__sk_leave(s);
    } else {
        heft__sk_embedding(s, "position_embeddings", c->positions, c->hidden, -1);
    }
    heft__sk_layer_norm(s, "LayerNorm", c->hidden, true);
    heft__sk_leave(s);
}

static void layer(heft__skeleton *s, const struct distilbert *c)
{
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*SelfAttention", "attention");
    heft__sk_linear(s, "q_lin", c->hidden, c->hidden, true);
    heft__sk_linear(s, "k_lin", c->hidden, c->hidden, true);
    heft__sk_linear(s, "v_lin", c->hidden, c->hidden, true);
    heft__sk_linear(s, "out_lin", c->hidden, c->hidden, true);
    heft__sk_leave(s);
    heft__sk_layer_norm(s, "sa_layer_norm", c->hidden, true);
    heft__sk_enter(s, HEFT_MODULE_MLP, "FFN", "ffn");
    heft__sk_linear(s, "lin1", c->hidden, c->intermediate, true);
    heft__sk_linear(s, "lin2", c->intermediate, c->hidden, true);
    heft__sk_leave(s);
    heft__sk_layer_norm(s, "output_layer_norm", c->hidden, true);
}

static void body(heft__skeleton *s, const struct distilbert *c)
{
    embeddings(s, c);
    heft__sk_enter(s, HEFT_MODULE_MODEL, "Transformer", "transformer");
    for (uint64_t i = 0; i < c->layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, "TransformerBlock", "layer.%llu",
                       (unsigned long long)i);
        layer(s, c);
        heft__sk_leave(s);
    }
    heft__sk_leave(s);
}

/* The body below a head. */
static struct distilbert distilbert(heft__skeleton *s)
{
    struct distilbert c = read_config(s);
    heft__sk_enter_body(s, "distilbert");
    body(s, &c);
    heft__sk_leave(s);
    return c;
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    struct distilbert c = read_config(s);
    body(s, &c);
}

static void masked_lm(heft__skeleton *s)
{
    struct distilbert c = distilbert(s);
    heft__sk_linear(s, "vocab_transform", c.hidden, c.hidden, true);
    heft__sk_layer_norm(s, "vocab_layer_norm", c.hidden, true);
    heft__sk_linear(s, "vocab_projector", c.hidden, c.vocab, true);
    if (c.tied) {
        heft__sk_tie(s, "vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight");
    }
}

static void classifier(heft__skeleton *s, uint64_t hidden, uint64_t width)
{
    heft__sk_linear(s, "pre_classifier", hidden, hidden, true);
    heft__sk_linear(s, "classifier", hidden, width, true);
}

static void sequence_classes(heft__skeleton *s)
{
    struct distilbert c = distilbert(s);
    classifier(s, c.hidden, heft__sk_labels(s));
}

static void multiple_choice(heft__skeleton *s)
{
    struct distilbert c = distilbert(s);
    classifier(s, c.hidden, 1);
}

static void token_classes(heft__skeleton *s)
{
    struct distilbert c = distilbert(s);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void question_answering(heft__skeleton *s)
{
    struct distilbert c = distilbert(s);
    heft__sk_linear(s, "qa_outputs", c.hidden, heft__sk_labels(s), true);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
struct distilbert_pass {
    struct distilbert c;
    heft__act act;
    heft__attention attend;
};

/* x = norm(y + x) */
static void add_norm(heft__pass *p, const char *norm, heft__rows x, heft__rows y)
{
    heft__add(p, y, x);
    heft__set(p, x, heft__layer_norm(p, norm, y, 1e-12));
}

static void layer_forward(heft__pass *p, const struct distilbert_pass *d, heft__rows x)
{
    heft__enter(p, "attention");
    heft__rows a = heft__attend(p, heft__linear(p, "q_lin", x), heft__linear(p, "k_lin", x),
                                heft__linear(p, "v_lin", x), &d->attend);
    a = heft__linear(p, "out_lin", a);
    heft__leave(p);
    add_norm(p, "sa_layer_norm", x, a);
    heft__rows h = heft__linear(p, "ffn.lin1", x);
    heft__activate(p, d->act, h);
    add_norm(p, "output_layer_norm", x, heft__linear(p, "ffn.lin2", h));
}

static struct distilbert_pass begin(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    struct distilbert_pass d = {.c = read_config(s)};
    const size_t heads = heft__sk_count(s, "n_heads", 12), width = (size_t)d.c.hidden / heads;
    d.act = heft__act_of(p, "activation", "gelu");
    d.attend = heft__attention_of(heads, width, false);
    return d;
}

static heft__rows body_forward(heft__pass *p)
{
    const heft__pass_inputs *in = heft__inputs(p);
    const struct distilbert_pass d = begin(p);
    heft__rows x = heft__embed(p, "embeddings.word_embeddings", in->ids, in->tokens, 0);
    heft__add(p, x, heft__embed(p, "embeddings.position_embeddings", in->at, in->tokens, 0));
    x = heft__layer_norm(p, "embeddings.LayerNorm", x, 1e-12);
    heft__out_hidden(p, 0, x);
    for (uint64_t i = 0; i < d.c.layers && heft__pass_going(p); i++) {
        heft__block(p, "transformer.layer", (size_t)i);
        layer_forward(p, &d, x);
        heft__block_end(p, x);
        heft__out_hidden(p, (size_t)i + 1, x);
    }
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    return x;
}

static void masked_lm_forward(heft__pass *p)
{
    heft__rows x = heft__linear(p, "vocab_transform", heft__wanted(p, heft__body(p)));
    heft__activate(p, heft__act_of(p, "activation", "gelu"), x);
    x = heft__layer_norm(p, "vocab_layer_norm", x, 1e-12);
    heft__out(p, HEFT__OUT_WANTED, "logits", heft__linear(p, "vocab_projector", x));
}

static void sequence_classes_forward(heft__pass *p)
{
    heft__rows x = heft__linear(p, "pre_classifier", encoder_first_rows(p, heft__body(p)));
    heft__activate(p, HEFT__ACT_RELU, x);
    heft__out(p, HEFT__OUT_SEQUENCES, "logits", heft__linear(p, "classifier", x));
}

static const heft__class classes[] = {
    {"DistilBertModel",                     "AutoModel",                          base_model,         heft__base_forward},
    {"DistilBertForMaskedLM",               "AutoModelForMaskedLM",               masked_lm,          masked_lm_forward },
    {"DistilBertForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     sequence_classes_forward                                                                                           },
    {"DistilBertForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     encoder_token_classes_forward                                                                                      },
    {"DistilBertForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     encoder_question_answering_forward                                                                                 },
    {"DistilBertForMultipleChoice",         "AutoModelForMultipleChoice",         multiple_choice,
     sequence_classes_forward                                                                                           },
    {NULL,                                  NULL,                                 NULL,               NULL              },
};

/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"position_ids", NULL};
static const char *const other_keys[][2] = {
    {"dim",      "hidden_size"        },
    {"n_layers", "num_hidden_layers"  },
    {"n_heads",  "num_attention_heads"},
    {NULL,       NULL                 },
};

extern const heft__family heft__family_distilbert; /* registry.c has a line for it */
const heft__family heft__family_distilbert = {
    .model_type = "distilbert",
    .base_prefix = "distilbert",
    .class_prefix = "DistilBert",
    .classes = classes,
    .ignore_unexpected = ignore_unexpected,
    .other_keys = other_keys,
    .body = body_forward,
};
