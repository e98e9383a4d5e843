/* whisper.c - Whisper and its heads.
 *
 *   encoder.conv1 -> encoder.conv2 -> encoder.layers.0 .. N-1 -> encoder.layer_norm
 *   decoder.embed_tokens -> decoder.layers.0 .. M-1 -> decoder.layer_norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/seq2seq.h"

#include <math.h>

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

/* ---- forward pass ---------------------------------------------------------------------------- */
/* Frames of sound, through two convolutions, the second of which halves them. The last hidden state, or, with
 * shares [1][layers + 1], the sum of all by their shares. */
static heft__rows encoder_forward(heft__pass *p, heft__side side, heft__rows shares)
{
    heft__skeleton *s = heft__pass_config(p);
    struct seq2seq_pass q = seq2seq_begin(p, &standard, false);
    const size_t frames = 2 * (size_t)heft__sk_count(s, "max_source_positions", 1500);
    heft__enter(p, "encoder");
    heft__rows x = heft__windows(p, heft__frames(p), frames, 3, 1);
    x = heft__linear(p, "conv1", x);
    heft__activate(p, HEFT__ACT_GELU, x);
    x = heft__linear(p, "conv2", heft__windows(p, x, frames, 3, 2));
    heft__activate(p, HEFT__ACT_GELU, x);
    heft__add_tiled(p, x, heft__parameter(p, "embed_positions.weight", 0));
    q.side = side;
    if (shares.width > 0) {
        q.shares = shares;
        q.mix = heft__zeros(p, x.count, x.width);
    }
    seq2seq_layers_forward(p, &q, x);
    x = heft__layer_norm(p, "layer_norm", x, 1e-5);
    seq2seq_hidden(p, &q, q.c.encoder_layers, x);
    heft__leave(p);
    return q.mix.width > 0 ? q.mix : x;
}

static void encode_forward(heft__pass *p)
{
    heft__pass_enter_body(p);
    heft__rows x = encoder_forward(p, HEFT__SIDE_ENCODER, (heft__rows){0});
    heft__out(p, HEFT__OUT_ENCODED, "encoder_last_hidden_state", x);
    heft__keep_encoded(p, x);
    heft__leave(p);
}

/* The decoder; without an encoder in WhisperForCausalLM. */
static heft__rows body_forward(heft__pass *p)
{
    const heft__pass_inputs *in = heft__inputs(p);
    struct seq2seq_pass q = seq2seq_begin(p, &standard, true);
    heft__number(p, HEFT__NUMBER_FIXED, 0);
    q.cross = heft__has(p, "encoder");
    q.side = q.cross ? HEFT__SIDE_DECODER : HEFT__SIDE_ONLY;
    heft__enter(p, "decoder");
    heft__rows x = heft__embed(p, "embed_tokens", in->ids, in->tokens, 0);
    heft__add(p, x, heft__embed(p, "embed_positions", in->at, in->tokens, 0));
    seq2seq_layers_forward(p, &q, x);
    x = heft__layer_norm(p, "layer_norm", x, 1e-5);
    seq2seq_hidden(p, &q, q.c.decoder_layers, x);
    heft__leave(p);
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    return x;
}

static void language_head_forward(heft__pass *p)
{
    heft__rows x = heft__wanted(p, heft__body(p));
    heft__out(p, HEFT__OUT_WANTED, "logits", heft__linear(p, "proj_out", x));
}

/* The mean of all frames of the last hidden state, or of a weighted sum of all, classified. */
static void audio_classes_forward(heft__pass *p)
{
    heft__rows shares = {0};
    if (heft__sk_flag(heft__pass_config(p), "use_weighted_layer_sum", false)) {
        shares = heft__parameter(p, "layer_weights", 0);
        heft__softmax(p, shares);
    }
    heft__rows x = encoder_forward(p, HEFT__SIDE_ONLY, shares);
    x = heft__linear(p, "projector", x);
    x = heft__mean_rows(p, x, 0);
    heft__out(p, HEFT__OUT_SEQUENCES, "logits", heft__linear(p, "classifier", x));
}

/* Mel frames, as many as two for each position. */
static size_t features(heft__skeleton *s, size_t shape[3])
{
    const size_t positions = (size_t)heft__sk_count(s, "max_source_positions", 1500);
    shape[0] = (size_t)heft__sk_count(s, "num_mel_bins", 80);
    shape[1] = 2 * positions;
    shape[2] = 1;
    return positions;
}

static const heft__class classes[] = {
    {"WhisperModel",                    "AutoModel",                       base_model,             heft__base_forward   },
    {"WhisperForConditionalGeneration", "AutoModelForSpeechSeq2Seq",       conditional_generation,
     language_head_forward                                                                                              },
    {"WhisperForCausalLM",              "AutoModelForCausalLM",            causal_lm,              language_head_forward},
    {"WhisperForAudioClassification",   "AutoModelForAudioClassification", audio_classes,
     audio_classes_forward                                                                                              },
    {NULL,                              NULL,                              NULL,                   NULL                 },
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
    .body = body_forward,
    .encode = encode_forward,
    .features = features,
};
