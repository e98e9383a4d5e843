/* bart.c - BART and its heads.
 *
 *   shared -> encoder.layers.0 .. N-1
 *   shared -> decoder.layers.0 .. M-1 -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/seq2seq.h"

static const struct seq2seq standard = {.vocab = 50265,
                                        .hidden = 1024,
                                        .encoder_layers = 12,
                                        .decoder_layers = 12,
                                        .encoder_width = 4096,
                                        .decoder_width = 4096,
                                        .padding_row = 1,
                                        .key_bias = true};

/* ---- modules --------------------------------------------------------------------------------- */
static void words(heft__skeleton *s, const char *name, const struct seq2seq *c)
{
    heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "*ScaledWordEmbedding", "%s", name);
    heft__sk_table(s, c->vocab, c->hidden, c->padding_row);
    heft__sk_leave(s);
}

static void stack(heft__skeleton *s, const struct seq2seq *c, bool decoder)
{
    const uint64_t positions = heft__sk_count(s, "max_position_embeddings", 1024);
    heft__sk_enter(s, HEFT_MODULE_MODEL, decoder ? "*Decoder" : "*Encoder",
                   decoder ? "decoder" : "encoder");
    words(s, "embed_tokens", c);
    heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "*LearnedPositionalEmbedding", "embed_positions");
    heft__sk_table(s, positions + 2, c->hidden, -1); /* two are not used */
    heft__sk_leave(s);
    seq2seq_layers(s, c, decoder);
    heft__sk_layer_norm(s, "layernorm_embedding", c->hidden, true);
    heft__sk_leave(s);
}

static struct seq2seq body(heft__skeleton *s)
{
    struct seq2seq c = seq2seq_read(s, &standard);
    words(s, "shared", &c);
    stack(s, &c, false);
    stack(s, &c, true);
    return c;
}

/* The body below a head. */
static struct seq2seq bart(heft__skeleton *s)
{
    heft__sk_enter_body(s, "model");
    struct seq2seq c = body(s);
    heft__sk_leave(s);
    if (c.tied) {
        heft__sk_tie(s, "model.encoder.embed_tokens.weight", "model.shared.weight");
        heft__sk_tie(s, "model.decoder.embed_tokens.weight", "model.shared.weight");
    }
    return c;
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    struct seq2seq c = body(s);
    if (c.tied) {
        heft__sk_tie(s, "encoder.embed_tokens.weight", "shared.weight");
        heft__sk_tie(s, "decoder.embed_tokens.weight", "shared.weight");
    }
}

static void conditional_generation(heft__skeleton *s)
{
    const uint64_t vocab = heft__sk_count(s, "vocab_size", standard.vocab);
    heft__sk_buffer(s, "final_logits_bias", heft__sk_dtype(s), (const uint64_t[]){1, vocab}, 2,
                    true, heft__init_constant(0));
    struct seq2seq c = bart(s);
    heft__sk_linear(s, "lm_head", c.hidden, c.vocab, false);
    if (c.tied) {
        heft__sk_tie(s, "lm_head.weight", "model.shared.weight");
    }
}

static void causal_lm(heft__skeleton *s)
{
    struct seq2seq c = seq2seq_read(s, &standard);
    heft__sk_enter(s, HEFT_MODULE_MODEL, "*DecoderWrapper", "model");
    stack(s, &c, true);
    heft__sk_leave(s);
    heft__sk_linear(s, "lm_head", c.hidden, c.vocab, false);
    if (c.tied) {
        heft__sk_tie(s, "lm_head.weight", "model.decoder.embed_tokens.weight");
    }
}

static void sequence_classes(heft__skeleton *s)
{
    struct seq2seq c = bart(s);
    heft__sk_enter(s, HEFT_MODULE_HEAD, "*ClassificationHead", "classification_head");
    heft__sk_linear(s, "dense", c.hidden, c.hidden, true);
    heft__sk_linear(s, "out_proj", c.hidden, heft__sk_labels_or(s, 3), true);
    heft__sk_leave(s);
}

static void question_answering(heft__skeleton *s)
{
    struct seq2seq c = bart(s);
    heft__sk_linear(s, "qa_outputs", c.hidden, 2, true); /* it sets num_labels itself */
}

static const heft__class classes[] = {
    {"BartModel",                     "AutoModel",                          base_model,             NULL},
    {"BartForConditionalGeneration",  "AutoModelForSeq2SeqLM",              conditional_generation, NULL},
    {"BartForCausalLM",               "AutoModelForCausalLM",               causal_lm,              NULL},
    {"BartForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,       NULL},
    {"BartForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,     NULL},
    {NULL,                            NULL,                                 NULL,                   NULL},
};

static const char *const no_split[] = {"BartDecoderLayer", "BartEncoderLayer", NULL};
/* of the first port from another library */
static const char *const ignore_unexpected[] = {"encoder.version", "decoder.version", NULL};
static const char *const ignore_missing[] = {"final_logits_bias", NULL};
static const char *const other_keys[][2] = {
    {"d_model",                 "hidden_size"        },
    {"encoder_layers",          "num_hidden_layers"  },
    {"encoder_attention_heads", "num_attention_heads"},
    {NULL,                      NULL                 },
};

extern const heft__family heft__family_bart; /* registry.c has a line for it */
const heft__family heft__family_bart = {
    .model_type = "bart",
    .base_prefix = "model",
    .class_prefix = "Bart",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .ignore_missing = ignore_missing,
    .other_keys = other_keys,
};
