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
