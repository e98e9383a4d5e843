/* falcon.c - Falcon: query, key and value in one matrix, one or all heads of keys.
 *
 *   transformer.word_embeddings -> transformer.h.0 .. N-1 -> transformer.ln_f -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

struct falcon {
    uint64_t vocab, hidden, layers, heads, intermediate, qkv;
    int64_t norms; /* in front of attention and MLP, where those are parallel */
    bool new_decoder, parallel, bias, tied;
};

/* How wide query, key and value are together. */
static uint64_t qkv_width(heft__skeleton *s, const struct falcon *c)
{
    const uint64_t head_dim = c->hidden / c->heads,
                   kv_heads = heft__sk_count_or(s, "num_kv_heads", c->heads, c->heads);
    if (c->new_decoder) {
        return (2 * kv_heads + c->heads) * head_dim;
    }
    return heft__sk_flag(s, "multi_query", true) ? c->hidden + 2 * head_dim : 3 * c->hidden;
}

static struct falcon read_config(heft__skeleton *s)
{
    struct falcon c = {
        .vocab = heft__sk_count(s, "vocab_size", 65024),
        .hidden = heft__sk_count(s, "hidden_size", 4544),
        .layers = heft__sk_layers(s, "num_hidden_layers", 32),
        .heads = heft__sk_count(s, "num_attention_heads", 71),
        .new_decoder = heft__sk_flag(s, "new_decoder_architecture", false),
        .parallel = heft__sk_flag(s, "parallel_attn", true),
        .bias = heft__sk_flag(s, "bias", false),
        .tied = heft__sk_flag(s, "tie_word_embeddings", true),
    };
    if (c.hidden % c.heads) {
        heft__sk_fail(s, HEFT_FORMAT, "num_attention_heads",
                      "expected a divisor of hidden_size, %llu, found %llu",
                      (unsigned long long)c.hidden, (unsigned long long)c.heads);
    }
    c.intermediate = heft__sk_count_or(s, "ffn_hidden_size", 4 * c.hidden, 4 * c.hidden);
    c.norms = heft__sk_integer(s, "num_ln_in_parallel_attn", c.new_decoder ? 2 : 1);
    c.qkv = qkv_width(s, &c);
    heft__sk_initializer_range(s, 0.02);
    return c;
}

/* ---- modules --------------------------------------------------------------------------------- */
static void linear(heft__skeleton *s, const char *name, uint64_t in, uint64_t out, bool bias)
{
    heft__sk_enter(s, HEFT_MODULE_LINEAR, "*Linear", "%s", name);
    heft__sk_matrix(s, in, out, bias);
    heft__sk_leave(s);
}

static void layer(heft__skeleton *s, const struct falcon *c)
{
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attention");
    heft__sk_cache(s, c->qkv - c->hidden, 0);
    linear(s, "query_key_value", c->hidden, c->qkv, c->bias);
    linear(s, "dense", c->hidden, c->hidden, c->bias);
    heft__sk_leave(s);
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MLP", "mlp");
    linear(s, "dense_h_to_4h", c->hidden, c->intermediate, c->bias);
    linear(s, "dense_4h_to_h", c->intermediate, c->hidden, c->bias);
    heft__sk_leave(s);
    if (c->new_decoder && c->norms == 2) {
        heft__sk_layer_norm(s, "ln_attn", c->hidden, true);
        heft__sk_layer_norm(s, "ln_mlp", c->hidden, true);
        return;
    }
    if (!c->parallel) {
        heft__sk_layer_norm(s, "post_attention_layernorm", c->hidden, true);
    }
    heft__sk_layer_norm(s, "input_layernorm", c->hidden, true);
}

static struct falcon body(heft__skeleton *s)
{
    struct falcon c = read_config(s);
    heft__sk_embedding(s, "word_embeddings", c.vocab, c.hidden, -1);
    for (uint64_t i = 0; i < c.layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, "*DecoderLayer", "h.%llu", (unsigned long long)i);
        layer(s, &c);
        heft__sk_leave(s);
    }
    heft__sk_layer_norm(s, "ln_f", c.hidden, true);
    heft__sk_rotary(s, NULL, c.hidden / c.heads);
    return c;
}

/* The body below a head. */
static struct falcon falcon(heft__skeleton *s)
{
    heft__sk_enter_body(s, "transformer");
    struct falcon c = body(s);
    heft__sk_leave(s);
    return c;
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    (void)body(s);
}

static void causal_lm(heft__skeleton *s)
{
    struct falcon c = falcon(s);
    heft__sk_linear(s, "lm_head", c.hidden, c.vocab, false);
    if (c.tied) {
        heft__sk_tie(s, "lm_head.weight", "transformer.word_embeddings.weight");
    }
}

static void sequence_classes(heft__skeleton *s)
{
    struct falcon c = falcon(s);
    heft__sk_linear(s, "score", c.hidden, heft__sk_labels(s), false);
}

static void token_classes(heft__skeleton *s)
{
    struct falcon c = falcon(s);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void question_answering(heft__skeleton *s)
{
    struct falcon c = falcon(s);
    heft__sk_linear(s, "qa_outputs", c.hidden, 2, true);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
struct falcon_pass {
    struct falcon c;
    double eps;
    heft__act act;
    heft__rope rope;
    heft__attention attend;
    bool alibi;
};

/* Query, key and value of a row are [kv head][its queries, key, value]; with one head of keys that is
 * [all queries, key, value], and with as many as queries [head][q k v]. */
static heft__rows attention_forward(heft__pass *p, const struct falcon_pass *f, heft__rows h)
{
    const heft__attention *a = &f->attend;
    const size_t head = a->key_width, queries = a->heads / a->kv_heads * head,
                 group = queries + 2 * head;
    heft__enter(p, "self_attention");
    heft__rows qkv = heft__linear(p, "query_key_value", h);
    heft__rows q = heft__columns(p, qkv, group, 0, queries),
               k = heft__columns(p, qkv, group, queries, head),
               v = heft__columns(p, qkv, group, queries + head, head);
    if (!f->alibi) {
        heft__rotate(p, q, a->heads, 0, &f->rope);
        heft__rotate(p, k, a->kv_heads, 0, &f->rope);
    }
    h = heft__linear(p, "dense", heft__attend(p, q, k, v, a));
    heft__leave(p);
    return h;
}

static void layer_forward(heft__pass *p, const struct falcon_pass *f, heft__rows x)
{
    const bool two = f->c.new_decoder && f->c.norms == 2;
    heft__rows h = heft__layer_norm(p, two ? "ln_attn" : "input_layernorm", x, f->eps);
    heft__rows m = two ? heft__layer_norm(p, "ln_mlp", x, f->eps) : h;
    heft__rows a = attention_forward(p, f, h);
    heft__add(p, x, a);
    if (!f->c.new_decoder && !f->c.parallel) {
        m = heft__layer_norm(p, "post_attention_layernorm", x, f->eps);
    }
    m = heft__linear(p, "mlp.dense_h_to_4h", m);
    heft__activate(p, f->act, m);
    heft__add(p, x, heft__linear(p, "mlp.dense_4h_to_h", m));
}

static struct falcon_pass begin(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    struct falcon_pass f = {.c = read_config(s)};
    const size_t heads = (size_t)f.c.heads, head = (size_t)(f.c.hidden / f.c.heads);
    f.eps = heft__sk_real(s, "layer_norm_epsilon", 1e-5);
    f.act = heft__act_of(p, "activation", "gelu");
    f.alibi = heft__sk_flag(s, "alibi", false);
    f.attend = heft__attention_of(heads, head, true);
    f.attend.kv_heads = (f.c.qkv / head - heads) / 2;
    if (f.alibi) {
        float *slopes = heft__alibi_slopes(p, heads);
        for (size_t h = 0; slopes && h < heads; h++) {
            slopes[h] = heft__round_bf16(slopes[h]);
        }
        f.attend.slopes = slopes;
        f.attend.coarse = f.attend.scale; /* they are scaled with the logits */
        heft__number(p, HEFT__NUMBER_ALIBI, 0);
    } else {
        f.rope = heft__rope_table(p, NULL, head);
    }
    if (f.c.new_decoder && !f.c.parallel && f.c.norms != 2) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "new_decoder_architecture without parallel_attn needs two norms");
    }
    return f;
}

static heft__rows body_forward(heft__pass *p)
{
    const heft__pass_inputs *in = heft__inputs(p);
    const struct falcon_pass f = begin(p);
    heft__rows x = heft__embed(p, "word_embeddings", in->ids, in->tokens, 0);
    heft__out_hidden(p, 0, x);
    for (uint64_t i = 0; i < f.c.layers && heft__pass_going(p); i++) {
        heft__block(p, "h", (size_t)i);
        layer_forward(p, &f, x);
        heft__block_end(p, x);
        if (i + 1 < f.c.layers) {
            heft__out_hidden(p, (size_t)i + 1, x);
        }
    }
    x = heft__layer_norm(p, "ln_f", x, f.eps);
    heft__out_hidden(p, (size_t)f.c.layers, x);
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    return x;
}

static const heft__class classes[] = {
    {"FalconModel",                     "AutoModel",                          base_model,         heft__base_forward       },
    {"FalconForCausalLM",               "AutoModelForCausalLM",               causal_lm,          decoder_causal_lm_forward},
    {"FalconForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                      },
    {"FalconForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                         },
    {"FalconForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     decoder_question_answering_forward                                                                                    },
    {NULL,                              NULL,                                 NULL,               NULL                     },
};

static const char *const no_split[] = {"FalconDecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};
/* Falcon 40B's first configs */
static const char *const other_keys[][2] = {
    {"num_hidden_layers",   "n_layer"  },
    {"num_attention_heads", "n_head"   },
    {"num_kv_heads",        "n_head_kv"},
    {NULL,                  NULL       },
};

extern const heft__family heft__family_falcon; /* registry.c has a line for it */
const heft__family heft__family_falcon = {
    .model_type = "falcon",
    .base_prefix = "transformer",
    .class_prefix = "Falcon",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .other_keys = other_keys,
    .body = body_forward,
};
