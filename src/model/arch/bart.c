/* bart.c - BART and its heads.
 *
 *   shared -> encoder.layers.0 .. N-1
 *   shared -> decoder.layers.0 .. M-1 -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/encoder.h"
#include "model/arch/seq2seq.h"

#include <math.h>

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

/* ---- forward pass ---------------------------------------------------------------------------- */
static heft__rows stack_forward(heft__pass *p, bool decoder, bool cross)
{
    const heft__pass_inputs *in = heft__inputs(p);
    struct seq2seq_pass q = seq2seq_begin(p, &standard, decoder);
    q.after = true;
    q.cross = cross;
    q.side = decoder && !cross ? HEFT__SIDE_ONLY : q.side;
    heft__number(p, HEFT__NUMBER_FIXED, 0);
    heft__enter(p, decoder ? "decoder" : "encoder");
    heft__rows x = heft__embed(p, "embed_tokens", in->ids, in->tokens, 0);
    if (heft__sk_flag(heft__pass_config(p), "scale_embedding", false)) {
        heft__scale_by(p, x, sqrt((double)q.c.hidden));
    }
    heft__add(p, x, heft__embed(p, "embed_positions", in->at, in->tokens, 2));
    x = heft__layer_norm(p, "layernorm_embedding", x, 1e-5);
    seq2seq_layers_forward(p, &q, x);
    heft__leave(p);
    return x;
}

static void encode_forward(heft__pass *p)
{
    heft__pass_enter_body(p);
    heft__rows x = stack_forward(p, false, false);
    heft__out(p, HEFT__OUT_ENCODED, "encoder_last_hidden_state", x);
    heft__keep_encoded(p, x);
    heft__leave(p);
}

/* The decoder; without an encoder in BartForCausalLM. */
static heft__rows body_forward(heft__pass *p)
{
    heft__rows x = stack_forward(p, true, heft__has(p, "encoder"));
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    return x;
}

static void language_model_forward(heft__pass *p)
{
    heft__rows y = heft__linear(p, "lm_head", heft__wanted(p, heft__body(p)));
    if (heft__has(p, "final_logits_bias")) {
        heft__add_tiled(p, y, heft__parameter(p, "final_logits_bias", 0));
    }
    heft__out(p, HEFT__OUT_WANTED, "logits", y);
}

static const heft__class classes[] = {
    {"BartModel",                     "AutoModel",                          base_model,             heft__base_forward    },
    {"BartForConditionalGeneration",  "AutoModelForSeq2SeqLM",              conditional_generation,
     language_model_forward                                                                                               },
    {"BartForCausalLM",               "AutoModelForCausalLM",               causal_lm,              language_model_forward},
    {"BartForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     seq2seq_classes_forward                                                                                              },
    {"BartForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     encoder_question_answering_forward                                                                                   },
    {NULL,                            NULL,                                 NULL,                   NULL                  },
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
    .body = body_forward,
    .encode = encode_forward,
};
