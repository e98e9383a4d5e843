/* seq2seq.c - what BART and Whisper have in common.
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/seq2seq.h"

static void check_heads(heft__skeleton *s, const char *key, uint64_t hidden)
{
    const uint64_t heads = heft__sk_count(s, key, 1);
    if (hidden % heads) {
        heft__sk_fail(s, HEFT_FORMAT, key, "expected a divisor of d_model, %llu, found %llu",
                      (unsigned long long)hidden, (unsigned long long)heads);
    }
}

struct seq2seq seq2seq_read(heft__skeleton *s, const struct seq2seq *standard)
{
    struct seq2seq c = {
        .vocab = heft__sk_count(s, "vocab_size", standard->vocab),
        .hidden = heft__sk_count(s, "d_model", standard->hidden),
        .encoder_layers = heft__sk_layers(s, "encoder_layers", standard->encoder_layers),
        .decoder_layers = heft__sk_layers(s, "decoder_layers", standard->decoder_layers),
        .encoder_width = heft__sk_count(s, "encoder_ffn_dim", standard->encoder_width),
        .decoder_width = heft__sk_count(s, "decoder_ffn_dim", standard->decoder_width),
        .frames = standard->frames,
        .key_bias = standard->key_bias,
        .tied = heft__sk_flag(s, "tie_word_embeddings", true),
    };
    check_heads(s, "encoder_attention_heads", c.hidden);
    check_heads(s, "decoder_attention_heads", c.hidden);
    c.padding_row = heft__sk_padding_row(s, "pad_token_id", standard->padding_row, c.vocab);
    heft__sk_std(s, heft__sk_real(s, "init_std", 0.02));
    return c;
}

/* `cached`: it keeps keys and values; `frames`: of so many tokens, 0: of the context. */
static void attention(heft__skeleton *s, const struct seq2seq *c, const char *name, bool cached,
                      uint64_t frames)
{
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "%s", name);
    if (cached && frames > 0) {
        heft__sk_cache_fixed(s, 2 * c->hidden, frames);
    } else if (cached) {
        heft__sk_cache(s, 2 * c->hidden, 0);
    }
    heft__sk_linear(s, "k_proj", c->hidden, c->hidden, c->key_bias);
    heft__sk_linear(s, "v_proj", c->hidden, c->hidden, true);
    heft__sk_linear(s, "q_proj", c->hidden, c->hidden, true);
    heft__sk_linear(s, "out_proj", c->hidden, c->hidden, true);
    heft__sk_leave(s);
}

void seq2seq_layers(heft__skeleton *s, const struct seq2seq *c, bool decoder)
{
    const uint64_t layers = decoder ? c->decoder_layers : c->encoder_layers,
                   width = decoder ? c->decoder_width : c->encoder_width;
    for (uint64_t i = 0; i < layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, decoder ? "*DecoderLayer" : "*EncoderLayer",
                       "layers.%llu", (unsigned long long)i);
        attention(s, c, "self_attn", decoder, 0);
        heft__sk_layer_norm(s, "self_attn_layer_norm", c->hidden, true);
        if (decoder) {
            attention(s, c, "encoder_attn", true, c->frames);
            heft__sk_layer_norm(s, "encoder_attn_layer_norm", c->hidden, true);
        }
        heft__sk_linear(s, "fc1", c->hidden, width, true);
        heft__sk_linear(s, "fc2", width, c->hidden, true);
        heft__sk_layer_norm(s, "final_layer_norm", c->hidden, true);
        heft__sk_leave(s);
    }
}

/* ---- forward passes -------------------------------------------------------------------------- */
struct seq2seq_pass seq2seq_begin(heft__pass *p, const struct seq2seq *standard, bool decoder)
{
    heft__skeleton *s = heft__pass_config(p);
    struct seq2seq_pass q = {.c = seq2seq_read(s, standard),
                             .decoder = decoder,
                             .cross = decoder,
                             .side = decoder ? HEFT__SIDE_DECODER : HEFT__SIDE_ENCODER};
    const char *key = decoder ? "decoder_attention_heads" : "encoder_attention_heads";
    const size_t heads = heft__sk_count(s, key, 1), width = heads ? (size_t)q.c.hidden / heads : 0;
    q.act = heft__act_of(p, "activation_function", "gelu");
    q.attend = heft__attention_of(heads, width, decoder);
    return q;
}

static heft__rows cross_forward(heft__pass *p, const struct seq2seq_pass *q, heft__rows h)
{
    heft__attention attend = q->attend;
    attend.causal = false;
    heft__enter(p, "encoder_attn");
    h = heft__attend_cross(p, heft__linear(p, "q_proj", h), "k_proj", "v_proj", &attend);
    h = heft__linear(p, "out_proj", h);
    heft__leave(p);
    return h;
}

static heft__rows self_forward(heft__pass *p, const struct seq2seq_pass *q, heft__rows h)
{
    heft__enter(p, "self_attn");
    h = heft__attend(p, heft__linear(p, "q_proj", h), heft__linear(p, "k_proj", h),
                     heft__linear(p, "v_proj", h), &q->attend);
    h = heft__linear(p, "out_proj", h);
    heft__leave(p);
    return h;
}

static heft__rows feed_forward(heft__pass *p, const struct seq2seq_pass *q, heft__rows h)
{
    h = heft__linear(p, "fc1", h);
    heft__activate(p, q->act, h);
    return heft__linear(p, "fc2", h);
}

typedef heft__rows (*part_forward)(heft__pass *p, const struct seq2seq_pass *q, heft__rows h);

/* x + part(norm x), or norm(x + part x) */
static void with_norm(heft__pass *p, const struct seq2seq_pass *q, const char *norm,
                      part_forward part, heft__rows x)
{
    heft__add(p, x, part(p, q, q->after ? x : heft__layer_norm(p, norm, x, 1e-5)));
    if (q->after) {
        heft__set(p, x, heft__layer_norm(p, norm, x, 1e-5));
    }
}

void seq2seq_hidden(heft__pass *p, const struct seq2seq_pass *q, uint64_t i, heft__rows x)
{
    heft__out_hidden_of(p, q->side, (size_t)i, x);
    if (q->mix.width > 0) {
        const bool has_share = q->shares.x && i < q->shares.width;
        heft__add_scaled(p, q->mix, x, has_share ? (double)q->shares.x[i] : 0);
    }
}

void seq2seq_layers_forward(heft__pass *p, const struct seq2seq_pass *q, heft__rows x)
{
    const uint64_t layers = q->decoder ? q->c.decoder_layers : q->c.encoder_layers;
    seq2seq_hidden(p, q, 0, x);
    for (uint64_t i = 0; i < layers && heft__pass_going(p); i++) {
        heft__block(p, "layers", (size_t)i);
        with_norm(p, q, "self_attn_layer_norm", self_forward, x);
        if (q->cross) {
            with_norm(p, q, "encoder_attn_layer_norm", cross_forward, x);
        }
        with_norm(p, q, "final_layer_norm", feed_forward, x);
        if (q->after || i + 1 < layers) {
            seq2seq_hidden(p, q, i + 1, x);
        }
        heft__block_end(p, x);
    }
}

void seq2seq_classes_forward(heft__pass *p)
{
    const int64_t eos = heft__sk_integer(heft__pass_config(p), "eos_token_id", 2);
    heft__rows x = heft__body(p);
    const int32_t *rows = heft__rows_of_encoded(p, (int32_t)eos);
    x = heft__pick(p, x, rows, heft__inputs(p)->sequences);
    heft__enter(p, "classification_head");
    x = heft__linear(p, "dense", x);
    heft__activate(p, HEFT__ACT_TANH, x);
    heft__out(p, HEFT__OUT_SEQUENCES, "logits", heft__linear(p, "out_proj", x));
    heft__leave(p);
}
