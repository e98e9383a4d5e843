/* decoder.c - what the decoders of the Llama kind have in common.
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

#include <math.h>

/* The window that the config has; no shape depends on it. */
static uint64_t read_window(heft__skeleton *s, const struct decoder *standard)
{
    const enum decoder_windows windows = standard->windows;
    const bool must_ask = windows == DECODER_LATE_WINDOWS || windows == DECODER_EARLY_WINDOWS ||
                          windows == DECODER_WANTED_WINDOWS;
    return windows == DECODER_NO_WINDOWS || (must_ask && !heft__sk_true(s, "use_sliding_window"))
               ? 0
               : heft__sk_count_if(s, "sliding_window", standard->window);
}

struct decoder decoder_read(heft__skeleton *s, const struct decoder *standard)
{
    struct decoder c = {
        .vocab = heft__sk_count(s, "vocab_size", standard->vocab),
        .hidden = heft__sk_count(s, "hidden_size", standard->hidden),
        .layers = heft__sk_layers(s, "num_hidden_layers", standard->layers),
        .intermediate = heft__sk_count(s, "intermediate_size", standard->intermediate),
        .heads = heft__sk_count(s, "num_attention_heads", standard->heads),
        .tied = heft__sk_flag(s, "tie_word_embeddings", standard->tied),
    };
    c.kv_heads = heft__sk_count_or(s, "num_key_value_heads",
                                   standard->kv_heads ? standard->kv_heads : c.heads, c.heads);
    c.head_dim = heft__sk_count_or(s, "head_dim", standard->head_dim, 0);
    if (c.head_dim == 0 && c.hidden % c.heads) {
        heft__sk_fail(s, HEFT_FORMAT, "num_attention_heads",
                      "expected a divisor of hidden_size, %llu, found %llu",
                      (unsigned long long)c.hidden, (unsigned long long)c.heads);
    }
    c.head_dim = c.head_dim ? c.head_dim : c.hidden / c.heads;
    c.padding_row = heft__sk_padding_row(s, "pad_token_id", standard->padding_row, c.vocab);
    c.windows = standard->windows;
    c.window = read_window(s, standard);
    heft__sk_initializer_range(s, standard->std);
    return c;
}

/* ---- modules --------------------------------------------------------------------------------- */
void decoder_embeddings(heft__skeleton *s, const struct decoder *c)
{
    heft__sk_embedding(s, "embed_tokens", c->vocab, c->hidden, c->padding_row);
}

void decoder_scaled_embeddings(heft__skeleton *s, const struct decoder *c)
{
    heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "*TextScaledWordEmbedding", "embed_tokens");
    heft__sk_table(s, c->vocab, c->hidden, c->padding_row);
    heft__sk_buffer(s, "embed_scale", HEFT_DTYPE_F32, NULL, 0, false,
                    heft__init_constant((float)sqrt((double)c->hidden)));
    heft__sk_leave(s);
}

void decoder_layers(heft__skeleton *s, const struct decoder *c, decoder_layer layer,
                    const void *flags)
{
    struct decoder at = *c;
    for (uint64_t i = 0; i < c->layers && heft__sk_going(s); i++) {
        at.layer = i;
        heft__sk_enter(s, HEFT_MODULE_LAYER, "*DecoderLayer", "layers.%llu", (unsigned long long)i);
        layer(s, &at, flags);
        heft__sk_leave(s);
    }
}

static bool has_window(const heft__skeleton *s, const struct decoder *c)
{
    const uint64_t i = c->layer, from = heft__sk_count_if(s, "max_window_layers", 28);
    switch (c->windows) {
    case DECODER_NO_WINDOWS:
        return false;
    case DECODER_EVEN_WINDOWS:
        return i % 2 == 0;
    case DECODER_SIX_WINDOWS: {
        const uint64_t pattern = heft__sk_count_if(s, "sliding_window_pattern", 6);
        return pattern == 0 || (i + 1) % pattern != 0;
    }
    case DECODER_LATE_WINDOWS:
        return i >= from;
    case DECODER_EARLY_WINDOWS:
        return i % 2 == 0 && i < from;
    case DECODER_ALL_WINDOWS:
    case DECODER_WANTED_WINDOWS:
        break;
    }
    return true;
}

void decoder_cache(heft__skeleton *s, const struct decoder *c)
{
    const bool windowed = c->window > 0 && heft__sk_list_is(s, "layer_types", c->layer,
                                                            "sliding_attention", has_window(s, c));
    heft__sk_cache(s, 2 * c->kv_heads * c->head_dim, windowed ? c->window : 0);
}

void decoder_projections(heft__skeleton *s, const struct decoder *c, bool qkv_bias, bool o_bias)
{
    decoder_cache(s, c);
    heft__sk_linear(s, "q_proj", c->hidden, c->heads * c->head_dim, qkv_bias);
    heft__sk_linear(s, "k_proj", c->hidden, c->kv_heads * c->head_dim, qkv_bias);
    heft__sk_linear(s, "v_proj", c->hidden, c->kv_heads * c->head_dim, qkv_bias);
    heft__sk_linear(s, "o_proj", c->heads * c->head_dim, c->hidden, o_bias);
}

void decoder_gated_matrices(heft__skeleton *s, uint64_t hidden, uint64_t intermediate, bool bias)
{
    heft__sk_linear(s, "gate_proj", hidden, intermediate, bias);
    heft__sk_linear(s, "up_proj", hidden, intermediate, bias);
    heft__sk_linear(s, "down_proj", intermediate, hidden, bias);
}

void decoder_gated_mlp(heft__skeleton *s, uint64_t hidden, uint64_t intermediate, bool bias)
{
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MLP", "mlp");
    decoder_gated_matrices(s, hidden, intermediate, bias);
    heft__sk_leave(s);
}

/* ---- heads ----------------------------------------------------------------------------------- */
static struct decoder below(heft__skeleton *s, const char *prefix, decoder_body body)
{
    heft__sk_enter_body(s, prefix);
    struct decoder c = body(s);
    heft__sk_leave(s);
    return c;
}

void decoder_causal_lm(heft__skeleton *s, decoder_body body, bool bias)
{
    struct decoder c = below(s, "model", body);
    heft__sk_linear(s, "lm_head", c.hidden, c.vocab, bias);
    if (c.tied) {
        heft__sk_tie(s, "lm_head.weight", "model.embed_tokens.weight");
    }
}

void decoder_sequence_classes(heft__skeleton *s, decoder_body body)
{
    struct decoder c = below(s, "model", body);
    heft__sk_linear(s, "score", c.hidden, heft__sk_labels(s), false);
}

void decoder_token_classes(heft__skeleton *s, decoder_body body)
{
    struct decoder c = below(s, "model", body);
    heft__sk_linear(s, "score", c.hidden, heft__sk_labels(s), true);
}

void decoder_question_answering(heft__skeleton *s, decoder_body body, const char *prefix)
{
    struct decoder c = below(s, prefix, body);
    heft__sk_linear(s, "qa_outputs", c.hidden, 2, true);
    heft__sk_base_prefix(s, prefix);
}
