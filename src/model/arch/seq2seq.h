/* seq2seq.h - what BART and Whisper have in common: an encoder's and a decoder's layers.
 *
 *   self_attn -> encoder_attn (decoder) -> fc1 -> fc2, each with its norm */
#ifndef HEFT__MODEL_ARCH_SEQ2SEQ_H
#define HEFT__MODEL_ARCH_SEQ2SEQ_H

#include "run/pass.h"

struct seq2seq {
    uint64_t vocab, hidden, encoder_layers, decoder_layers, encoder_width, decoder_width;
    uint64_t frames; /* that the decoder attends to; 0: as many as the context */
    int64_t padding_row;
    bool key_bias; /* of the attentions */
    bool tied;
};

/* By the config; `standard` for keys that it does not have. Sets the builder's std. */
struct seq2seq seq2seq_read(heft__skeleton *s, const struct seq2seq *standard);
/* layers.0 .. N-1 at the module that is entered, each a "*EncoderLayer" or "*DecoderLayer". */
void seq2seq_layers(heft__skeleton *s, const struct seq2seq *c, bool decoder);

/* ---- forward passes -------------------------------------------------------------------------- */
/* One side of a pass. */
struct seq2seq_pass {
    struct seq2seq c;
    heft__act act;
    heft__attention attend;
    bool decoder;
    bool after; /* norms stand behind attentions and MLP: BART */
    bool cross; /* there is an encoder */
    heft__side side;
    heft__rows shares, mix; /* of hidden states, and their sum so far; no width: none is wanted */
};

struct seq2seq_pass seq2seq_begin(heft__pass *p, const struct seq2seq *standard, bool decoder);
/* layers.0 .. N-1 at the module that is entered: x becomes their output. Hidden states are results, but the
 * last where a norm follows. */
void seq2seq_layers_forward(heft__pass *p, const struct seq2seq_pass *q, heft__rows x);
/* Hidden state i is a result, and its share goes into the mix. */
void seq2seq_hidden(heft__pass *p, const struct seq2seq_pass *q, uint64_t i, heft__rows x);
/* classification_head on the decoder's row at the last end-of-text id of the encoder's input. */
void seq2seq_classes_forward(heft__pass *p);

#endif
