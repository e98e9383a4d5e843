/* encoder.c - what the encoders of the BERT kind have in common.
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/encoder.h"

struct encoder encoder_read(heft__skeleton *s, const struct encoder *standard)
{
    struct encoder c = {
        .vocab = heft__sk_count(s, "vocab_size", standard->vocab),
        .hidden = heft__sk_count(s, "hidden_size", standard->hidden),
        .layers = heft__sk_layers(s, "num_hidden_layers", standard->layers),
        .heads = heft__sk_count(s, "num_attention_heads", standard->heads),
        .intermediate = heft__sk_count(s, "intermediate_size", standard->intermediate),
        .positions = heft__sk_count(s, "max_position_embeddings", standard->positions),
        .token_types = heft__sk_count(s, "type_vocab_size", standard->token_types),
        .decoder = heft__sk_true(s, "is_decoder"),
        .cross_attention = heft__sk_flag(s, "add_cross_attention", false),
        .tied = heft__sk_flag(s, "tie_word_embeddings", true),
    };
    c.embedding =
        standard->embedding ? heft__sk_count(s, "embedding_size", standard->embedding) : c.hidden;
    if (c.hidden % c.heads) {
        heft__sk_fail(s, HEFT_FORMAT, "num_attention_heads",
                      "expected a divisor of hidden_size, %llu, found %llu",
                      (unsigned long long)c.hidden, (unsigned long long)c.heads);
    }
    if (c.cross_attention && !heft__sk_flag(s, "is_decoder", false)) {
        heft__sk_fail(s, HEFT_FORMAT, "add_cross_attention",
                      "requires is_decoder true, found false");
    }
    c.padding_row = heft__sk_padding_row(s, "pad_token_id", standard->padding_row, c.vocab);
    heft__sk_initializer_range(s, 0.02);
    return c;
}

/* ---- modules --------------------------------------------------------------------------------- */
void encoder_numbers(heft__skeleton *s, const struct encoder *c)
{
    const uint64_t row[2] = {1, c->positions};
    const heft__init_rule counting = {.kind = HEFT__INIT_ARANGE, .zero_row = -1};
    heft__sk_buffer(s, "position_ids", HEFT_DTYPE_I64, row, 2, false, counting);
    heft__sk_buffer(s, "token_type_ids", HEFT_DTYPE_I64, row, 2, false, heft__init_constant(0));
}

void encoder_embeddings(heft__skeleton *s, const struct encoder *c)
{
    heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "*Embeddings", "embeddings");
    encoder_numbers(s, c);
    heft__sk_embedding(s, "word_embeddings", c->vocab, c->embedding, c->padding_row);
    heft__sk_embedding(s, "position_embeddings", c->positions, c->embedding, -1);
    heft__sk_embedding(s, "token_type_embeddings", c->token_types, c->embedding, -1);
    heft__sk_layer_norm(s, "LayerNorm", c->embedding, true);
    heft__sk_leave(s);
}

/* "output" of an attention or of a layer. */
static void output(heft__skeleton *s, const char *class_name, uint64_t in, uint64_t out)
{
    heft__sk_enter(s, HEFT_MODULE_OTHER, class_name, "output");
    heft__sk_linear(s, "dense", in, out, true);
    heft__sk_layer_norm(s, "LayerNorm", out, true);
    heft__sk_leave(s);
}

static void attention(heft__skeleton *s, const char *name, const char *inner_class,
                      const struct encoder *c)
{
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "%s", name);
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, inner_class, "self");
    if (c->decoder) {
        heft__sk_cache(s, 2 * c->hidden, 0);
    }
    heft__sk_linear(s, "query", c->hidden, c->hidden, true);
    heft__sk_linear(s, "key", c->hidden, c->hidden, true);
    heft__sk_linear(s, "value", c->hidden, c->hidden, true);
    heft__sk_leave(s);
    output(s, "*SelfOutput", c->hidden, c->hidden);
    heft__sk_leave(s);
}

static void layer(heft__skeleton *s, const struct encoder *c)
{
    attention(s, "attention", "*SelfAttention", c);
    if (c->cross_attention) {
        attention(s, "crossattention", "*CrossAttention", c);
    }
    heft__sk_enter(s, HEFT_MODULE_OTHER, "*Intermediate", "intermediate");
    heft__sk_linear(s, "dense", c->hidden, c->intermediate, true);
    heft__sk_leave(s);
    output(s, "*Output", c->intermediate, c->hidden);
}

void encoder_layers(heft__skeleton *s, const struct encoder *c)
{
    heft__sk_enter(s, HEFT_MODULE_MODEL, "*Encoder", "encoder");
    for (uint64_t i = 0; i < c->layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, "*Layer", "layer.%llu", (unsigned long long)i);
        layer(s, c);
        heft__sk_leave(s);
    }
    heft__sk_leave(s);
}

void encoder_pooler(heft__skeleton *s, const struct encoder *c)
{
    heft__sk_enter(s, HEFT_MODULE_OTHER, "*Pooler", "pooler");
    heft__sk_linear(s, "dense", c->hidden, c->hidden, true);
    heft__sk_leave(s);
}

/* ---- heads ----------------------------------------------------------------------------------- */
void encoder_sentence_classifier(heft__skeleton *s, const struct encoder *c)
{
    heft__sk_enter(s, HEFT_MODULE_HEAD, "*ClassificationHead", "classifier");
    heft__sk_linear(s, "dense", c->hidden, c->hidden, true);
    heft__sk_linear(s, "out_proj", c->hidden, heft__sk_labels(s), true);
    heft__sk_leave(s);
}
