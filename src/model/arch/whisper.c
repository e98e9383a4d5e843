/* whisper.c - Whisper and its heads.
 *
 *   encoder.conv1 -> encoder.conv2 -> encoder.layers.0 .. N-1 -> encoder.layer_norm
 *   decoder.embed_tokens -> decoder.layers.0 .. M-1 -> decoder.layer_norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/seq2seq.h"

static const struct seq2seq standard = {.vocab = 51865,
                                        .hidden = 384,
                                        .encoder_layers = 4,
                                        .decoder_layers = 4,
                                        .encoder_width = 1536,
                                        .decoder_width = 1536,
                                        .padding_row = 50256,
                                        .key_bias = false};

/* ---- modules --------------------------------------------------------------------------------- */
static void convolution(heft__skeleton *s, const char *name, uint64_t in, uint64_t out)
{
    heft__sk_enter(s, HEFT_MODULE_CONVOLUTION, "Conv1d", "%s", name);
    heft__sk_parameter(s, "weight", (const uint64_t[]){out, in, 3}, 3, heft__sk_normal(s));
    heft__sk_parameter(s, "bias", &out, 1, heft__init_constant(0));
    heft__sk_leave(s);
}

static void encoder(heft__skeleton *s, const struct seq2seq *c)
{
    const uint64_t positions = heft__sk_count(s, "max_source_positions", 1500);
    const heft__init_rule waves = {.kind = HEFT__INIT_SINUSOID, .a = 1, .zero_row = -1};
    heft__sk_enter(s, HEFT_MODULE_MODEL, "*Encoder", "encoder");
    convolution(s, "conv1", heft__sk_count(s, "num_mel_bins", 80), c->hidden);
    convolution(s, "conv2", c->hidden, c->hidden);
    heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "Embedding", "embed_positions");
    heft__sk_parameter(s, "weight", (const uint64_t[]){positions, c->hidden}, 2, waves);
    heft__sk_leave(s);
    seq2seq_layers(s, c, false);
    heft__sk_layer_norm(s, "layer_norm", c->hidden, true);
    heft__sk_leave(s);
}

static void decoder(heft__skeleton *s, const struct seq2seq *c)
{
    const uint64_t positions = heft__sk_count(s, "max_target_positions", 448);
    struct seq2seq heard = *c;
    heard.frames = heft__sk_count_if(s, "max_source_positions", 1500);
    heft__sk_enter(s, HEFT_MODULE_MODEL, "*Decoder", "decoder");
    heft__sk_embedding(s, "embed_tokens", c->vocab, c->hidden, c->padding_row);
    heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "*PositionalEmbedding", "embed_positions");
    heft__sk_table(s, positions, c->hidden, -1);
    heft__sk_leave(s);
    seq2seq_layers(s, &heard, true);
    heft__sk_layer_norm(s, "layer_norm", c->hidden, true);
    heft__sk_leave(s);
}

static void language_head(heft__skeleton *s, const struct seq2seq *c)
{
    heft__sk_linear(s, "proj_out", c->hidden, c->vocab, false);
    if (c->tied) {
        heft__sk_tie(s, "proj_out.weight", "model.decoder.embed_tokens.weight");
    }
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    struct seq2seq c = seq2seq_read(s, &standard);
    encoder(s, &c);
    decoder(s, &c);
}

static void conditional_generation(heft__skeleton *s)
{
    struct seq2seq c = seq2seq_read(s, &standard);
    heft__sk_enter_body(s, "model");
    encoder(s, &c);
    decoder(s, &c);
    heft__sk_leave(s);
    language_head(s, &c);
}

static void causal_lm(heft__skeleton *s)
{
    struct seq2seq c = seq2seq_read(s, &standard);
    heft__sk_enter(s, HEFT_MODULE_MODEL, "*DecoderWrapper", "model");
    decoder(s, &c);
    heft__sk_leave(s);
    language_head(s, &c);
}

static void audio_classes(heft__skeleton *s)
{
    struct seq2seq c = seq2seq_read(s, &standard);
    const uint64_t width = heft__sk_count(s, "classifier_proj_size", 256),
                   outputs = c.encoder_layers + 1;
    if (heft__sk_flag(s, "use_weighted_layer_sum", false)) {
        heft__sk_parameter(s, "layer_weights", &outputs, 1,
                           heft__init_constant(1.0F / (float)outputs));
    }
    encoder(s, &c);
    heft__sk_linear(s, "projector", c.hidden, width, true);
    heft__sk_linear(s, "classifier", width, heft__sk_labels(s), true);
}

static const heft__class classes[] = {
    {"WhisperModel",                    "AutoModel",                       base_model,             NULL},
    {"WhisperForConditionalGeneration", "AutoModelForSpeechSeq2Seq",       conditional_generation, NULL},
    {"WhisperForCausalLM",              "AutoModelForCausalLM",            causal_lm,              NULL},
    {"WhisperForAudioClassification",   "AutoModelForAudioClassification", audio_classes,          NULL},
    {NULL,                              NULL,                              NULL,                   NULL},
};

static const char *const no_split[] = {"WhisperDecoderLayer", "WhisperEncoderLayer", NULL};
static const char *const other_keys[][2] = {
    {"d_model",                 "hidden_size"        },
    {"encoder_layers",          "num_hidden_layers"  },
    {"encoder_attention_heads", "num_attention_heads"},
    {NULL,                      NULL                 },
};

extern const heft__family heft__family_whisper; /* registry.c has a line for it */
const heft__family heft__family_whisper = {
    .model_type = "whisper",
    .base_prefix = "model",
    .class_prefix = "Whisper",
    .classes = classes,
    .no_split = no_split,
    .other_keys = other_keys,
};
