/* encoder.h - what the encoders of the BERT kind have in common, for the families in this folder.
 *
 *   embeddings -> encoder.layer.0 .. N-1 -> pooler (some classes) -> a head
 *
 * A decoder (is_decoder, add_cross_attention) has a second attention in each layer. */
#ifndef HEFT__MODEL_ARCH_ENCODER_H
#define HEFT__MODEL_ARCH_ENCODER_H

#include "run/pass.h"

struct encoder {
    uint64_t vocab, hidden, layers, intermediate, positions, token_types;
    uint64_t heads;
    uint64_t embedding; /* width of the embeddings; standard.embedding 0: the config has no key for
                           it, they are as wide as the model */
    int64_t padding_row;
    bool decoder; /* each token attends to those before it: is_decoder */
    bool cross_attention, tied;
};

/* By the config; `standard` for keys that it does not have. Sets the builder's std. */
struct encoder encoder_read(heft__skeleton *s, const struct encoder *standard);

/* ---- modules --------------------------------------------------------------------------------- */
/* The transient position_ids and token_type_ids of the embeddings. */
void encoder_numbers(heft__skeleton *s, const struct encoder *c);
/* embeddings: words, positions, token types, norm. */
void encoder_embeddings(heft__skeleton *s, const struct encoder *c);
/* encoder.layer.0 .. N-1, each a "*Layer" */
void encoder_layers(heft__skeleton *s, const struct encoder *c);
/* pooler */
void encoder_pooler(heft__skeleton *s, const struct encoder *c);

/* ---- heads ----------------------------------------------------------------------------------- */
/* classifier.dense, classifier.out_proj */
void encoder_sentence_classifier(heft__skeleton *s, const struct encoder *c);

/* ---- forward passes -------------------------------------------------------------------------- */
/* What the layers of a pass share. */
struct encoder_pass {
    struct encoder c;
    double eps;
    heft__act act;
    heft__attention attend;
};

struct encoder_pass encoder_begin(heft__pass *p, const struct encoder *standard);
/* Words, positions by number, token types, norm. */
heft__rows encoder_embeddings_forward(heft__pass *p, const struct encoder_pass *e,
                                      const int32_t *positions);
/* encoder.layer.0 .. N-1, then the last hidden state as a result, and the pooler's where there is one. */
heft__rows encoder_layers_forward(heft__pass *p, const struct encoder_pass *e, heft__rows x);
/* pooler of the body, for heads: tanh(dense(first token of each sequence)) */
heft__rows encoder_pooled(heft__pass *p, heft__rows x);
/* The rows of each sequence's first token. */
heft__rows encoder_first_rows(heft__pass *p, heft__rows x);

/* Heads, each of a whole class, on the family's body; `classifier` is the module "classifier". */
void encoder_pooled_classes_forward(heft__pass *p); /* of the pooler's output */
void encoder_token_classes_forward(heft__pass *p);  /* of each token */
void encoder_question_answering_forward(heft__pass *p);
void encoder_sentence_classes_forward(
    heft__pass *p); /* classifier.dense, tanh, classifier.out_proj */

#endif
