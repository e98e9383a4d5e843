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

/* ---- forward passes -------------------------------------------------------------------------- */
struct encoder_pass encoder_begin(heft__pass *p, const struct encoder *standard)
{
    heft__skeleton *s = heft__pass_config(p);
    struct encoder_pass e = {.c = encoder_read(s, standard)};
    const size_t width = (size_t)(e.c.hidden / e.c.heads);
    e.eps = heft__sk_real(s, "layer_norm_eps", 1e-12);
    e.act = heft__act_of(p, "hidden_act", "gelu");
    e.attend = heft__attention_of((size_t)e.c.heads, width, e.c.decoder);
    return e;
}

heft__rows encoder_embeddings_forward(heft__pass *p, const struct encoder_pass *e,
                                      const int32_t *positions)
{
    const heft__pass_inputs *in = heft__inputs(p);
    heft__enter(p, "embeddings");
    heft__rows x = heft__embed(p, "word_embeddings", in->ids, in->tokens, 0);
    heft__add(p, x, heft__embed(p, "token_type_embeddings", in->types, in->tokens, 0));
    heft__add(p, x, heft__embed(p, "position_embeddings", positions, in->tokens, 0));
    x = heft__layer_norm(p, "LayerNorm", x, e->eps);
    heft__leave(p);
    return x;
}

/* x = LayerNorm(dense h + x) in `name` */
static void output_forward(heft__pass *p, const struct encoder_pass *e, const char *name,
                           heft__rows h, heft__rows x)
{
    heft__enter(p, name);
    heft__rows y = heft__linear(p, "dense", h);
    heft__add(p, y, x);
    heft__set(p, x, heft__layer_norm(p, "LayerNorm", y, e->eps));
    heft__leave(p);
}

static void layer_forward(heft__pass *p, const struct encoder_pass *e, heft__rows x)
{
    heft__rows a = heft__attend(p, heft__linear(p, "attention.self.query", x),
                                heft__linear(p, "attention.self.key", x),
                                heft__linear(p, "attention.self.value", x), &e->attend);
    output_forward(p, e, "attention.output", a, x);
    heft__rows h = heft__linear(p, "intermediate.dense", x);
    heft__activate(p, e->act, h);
    output_forward(p, e, "output", h, x);
}

heft__rows encoder_layers_forward(heft__pass *p, const struct encoder_pass *e, heft__rows x)
{
    heft__out_hidden(p, 0, x);
    for (uint64_t i = 0; i < e->c.layers && heft__pass_going(p); i++) {
        heft__block(p, "encoder.layer", (size_t)i);
        layer_forward(p, e, x);
        heft__block_end(p, x);
        heft__out_hidden(p, (size_t)i + 1, x);
    }
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    if (heft__has(p, "pooler")) {
        heft__rows pooled = heft__linear(p, "pooler.dense", encoder_first_rows(p, x));
        heft__activate(p, HEFT__ACT_TANH, pooled);
        heft__out(p, HEFT__OUT_SEQUENCES, "pooler_output", pooled);
    }
    return x;
}

heft__rows encoder_first_rows(heft__pass *p, heft__rows x)
{
    const heft__pass_inputs *in = heft__inputs(p);
    heft__keep_whole(p);
    return heft__pick(p, x, in->first, in->sequences);
}

heft__rows encoder_pooled(heft__pass *p, heft__rows x)
{
    heft__pass_enter_body(p);
    heft__rows pooled = heft__linear(p, "pooler.dense", encoder_first_rows(p, x));
    heft__activate(p, HEFT__ACT_TANH, pooled);
    heft__leave(p);
    return pooled;
}

/* ---- heads of forward passes -------------------------------------------------------------------- */
void encoder_pooled_classes_forward(heft__pass *p)
{
    heft__rows pooled = encoder_pooled(p, heft__body(p));
    heft__out(p, HEFT__OUT_SEQUENCES, "logits", heft__linear(p, "classifier", pooled));
}

void encoder_token_classes_forward(heft__pass *p)
{
    heft__out(p, HEFT__OUT_TOKENS, "logits", heft__linear(p, "classifier", heft__body(p)));
}

void encoder_question_answering_forward(heft__pass *p)
{
    heft__rows x = heft__linear(p, "qa_outputs", heft__body(p));
    heft__out(p, HEFT__OUT_TOKENS, "start_logits", heft__columns(p, x, x.width, 0, 1));
    heft__out(p, HEFT__OUT_TOKENS, "end_logits", heft__columns(p, x, x.width, 1, 1));
}

void encoder_sentence_classes_forward(heft__pass *p)
{
    heft__rows x = encoder_first_rows(p, heft__body(p));
    x = heft__linear(p, "classifier.dense", x);
    heft__activate(p, HEFT__ACT_TANH, x);
    heft__out(p, HEFT__OUT_SEQUENCES, "logits", heft__linear(p, "classifier.out_proj", x));
}
