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

uint64_t decoder_window(const heft__skeleton *s, const struct decoder *c)
{
    bool has = has_window(s, c);
    if (c->windows != DECODER_ALL_WINDOWS && c->windows != DECODER_WANTED_WINDOWS) {
        has = heft__sk_list_is(s, "layer_types", c->layer, "sliding_attention", has);
    }
    return has ? c->window : 0;
}

void decoder_cache(heft__skeleton *s, const struct decoder *c)
{
    heft__sk_cache(s, 2 * c->kv_heads * c->head_dim, decoder_window(s, c));
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

/* ---- forward passes -------------------------------------------------------------------------- */
struct decoder_pass decoder_begin(heft__pass *p, const struct decoder *standard,
                                  const char *norm_eps)
{
    heft__skeleton *s = heft__pass_config(p);
    struct decoder_pass d = {.c = decoder_read(s, standard), .embedding_scale = 1};
    const double eps = strcmp(norm_eps, "rms_norm_eps") == 0 ? 1e-6 : 1e-5;
    d.eps = heft__sk_real(s, norm_eps, standard->eps > 0 ? standard->eps : eps);
    d.act = heft__act_of(p, standard->act_key ? standard->act_key : "hidden_act",
                         standard->act ? standard->act : "silu");
    d.attend = (heft__attention){.heads = (size_t)d.c.heads,
                                 .kv_heads = (size_t)d.c.kv_heads,
                                 .key_width = (size_t)d.c.head_dim,
                                 .value_width = (size_t)d.c.head_dim,
                                 .scale = (float)(1 / sqrt((double)d.c.head_dim)),
                                 .causal = true};
    return d;
}

void decoder_must_be_causal(heft__pass *p)
{
    if (heft__sk_true(heft__pass_config(p), "use_bidirectional_attention")) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "config.json: use_bidirectional_attention is true: this class's forward "
                        "pass is causal only");
    }
}

void decoder_scale_embeddings(heft__pass *p, struct decoder_pass *d)
{
    d->embedding_scale = heft__rounded(p, sqrt((double)d->c.hidden));
}

heft__rows decoder_layers_forward(heft__pass *p, struct decoder_pass *d,
                                  decoder_layer_forward layer, const void *user)
{
    const heft__pass_inputs *in = heft__inputs(p);
    heft__rows x = heft__embed(p, "embed_tokens", in->ids, in->tokens, 0);
    if (d->embedding_scale != 1) {
        heft__scale_by(p, x, d->embedding_scale);
    }
    heft__out_hidden(p, 0, x);
    for (uint64_t i = 0; i < d->c.layers && heft__pass_going(p); i++) {
        d->c.layer = i;
        d->attend.window = (int32_t)decoder_window(heft__pass_config(p), &d->c);
        heft__block(p, "layers", (size_t)i);
        layer(p, d, x, user);
        heft__block_end(p, x);
        if (i + 1 < d->c.layers) {
            heft__out_hidden(p, (size_t)i + 1, x);
        }
    }
    return x;
}

heft__rows decoder_finish(heft__pass *p, const struct decoder_pass *d, heft__rows x)
{
    heft__out_hidden(p, (size_t)d->c.layers, x);
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    return x;
}

struct decoder_heads decoder_project(heft__pass *p, heft__rows h)
{
    return (struct decoder_heads){heft__linear(p, "q_proj", h), heft__linear(p, "k_proj", h),
                                  heft__linear(p, "v_proj", h)};
}

heft__rows decoder_attend(heft__pass *p, const struct decoder_pass *d,
                          const struct decoder_heads *heads)
{
    heft__rotate(p, heads->q, d->attend.heads, 0, &d->rope);
    heft__rotate(p, heads->k, d->attend.kv_heads, 0, &d->rope);
    return heft__attend(p, heads->q, heads->k, heads->v, &d->attend);
}

void decoder_attention(heft__pass *p, const struct decoder_pass *d, heft__rows x, heft__rows h)
{
    heft__enter(p, "self_attn");
    const struct decoder_heads heads = decoder_project(p, h);
    heft__add(p, x, heft__linear(p, "o_proj", decoder_attend(p, d, &heads)));
    heft__leave(p);
}

heft__rows decoder_gated(heft__pass *p, heft__act act, heft__rows h)
{
    heft__rows gate = heft__linear(p, "gate_proj", h);
    heft__gate(p, act, gate, heft__linear(p, "up_proj", h));
    return heft__linear(p, "down_proj", gate);
}

static void plain_layer(heft__pass *p, const struct decoder_pass *d, heft__rows x, const void *user)
{
    (void)user;
    decoder_attention(p, d, x, heft__rms_norm(p, "input_layernorm", x, d->eps, 0));
    heft__rows h = heft__rms_norm(p, "post_attention_layernorm", x, d->eps, 0);
    heft__enter(p, "mlp");
    heft__add(p, x, decoder_gated(p, d->act, h));
    heft__leave(p);
}

heft__rows decoder_plain_body(heft__pass *p, const struct decoder *standard)
{
    struct decoder_pass d = decoder_begin(p, standard, "rms_norm_eps");
    d.rope = heft__rope_table(p, NULL, (size_t)d.c.head_dim);
    heft__rows x = decoder_layers_forward(p, &d, plain_layer, NULL);
    return decoder_finish(p, &d, heft__rms_norm(p, "norm", x, d.eps, 0));
}

/* ---- heads of forward passes -------------------------------------------------------------------- */
heft__rows decoder_logits(heft__pass *p)
{
    heft__rows x = heft__wanted(p, heft__body(p));
    return heft__linear(p, heft__has(p, "lm_head") ? "lm_head" : "embed_out", x);
}

void decoder_causal_lm_forward(heft__pass *p)
{
    heft__out(p, HEFT__OUT_WANTED, "logits", decoder_logits(p));
}

heft__rows decoder_last_rows(heft__pass *p, heft__rows x, int64_t pad)
{
    const heft__pass_inputs *in = heft__inputs(p);
    pad = heft__sk_integer_or(heft__pass_config(p), "pad_token_id", pad, -1);
    heft__rows y = heft__zeros(p, in->sequences, x.width);
    heft__keep_whole_behind(p, pad);
    for (size_t i = 0; y.x && i < in->sequences; i++) {
        int32_t at = in->last[i];
        while (pad >= 0 && at > in->first[i] && in->ids[at] == pad) {
            at--;
        }
        memcpy(y.x + i * x.width, x.x + (size_t)at * x.width, x.width * sizeof *x.x);
    }
    return y;
}

void decoder_sequence_classes_padded(heft__pass *p, int64_t pad)
{
    heft__rows x = decoder_last_rows(p, heft__body(p), pad);
    heft__out(p, HEFT__OUT_SEQUENCES, "logits", heft__linear(p, "score", x));
}

void decoder_sequence_classes_forward(heft__pass *p)
{
    decoder_sequence_classes_padded(p, -1);
}

void decoder_token_classes_forward(heft__pass *p)
{
    heft__rows x = heft__body(p);
    const char *head = heft__has(p, "score") ? "score" : "classifier";
    heft__out(p, HEFT__OUT_TOKENS, "logits", heft__linear(p, head, x));
}

void decoder_question_answering_forward(heft__pass *p)
{
    heft__rows x = heft__linear(p, "qa_outputs", heft__body(p));
    heft__out(p, HEFT__OUT_TOKENS, "start_logits", heft__columns(p, x, x.width, 0, 1));
    heft__out(p, HEFT__OUT_TOKENS, "end_logits", heft__columns(p, x, x.width, 1, 1));
}
