/* bloom.c - BLOOM and its heads.
 *
 *   transformer.word_embeddings, word_embeddings_layernorm -> transformer.h.0 .. N-1
 *       -> transformer.ln_f -> a head
 *
 * Positions are biases of the attention (ALiBi) and have no parameters.
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

struct bloom {
    uint64_t vocab, hidden, layers;
    bool tied;
};

static struct bloom read_config(heft__skeleton *s)
{
    struct bloom c = {
        .vocab = heft__sk_count(s, "vocab_size", 250880),
        .hidden = heft__sk_count(s, heft__sk_has(s, "n_embed") ? "n_embed" : "hidden_size", 64),
        .layers = heft__sk_layers(s, "n_layer", 2),
        .tied = heft__sk_flag(s, "tie_word_embeddings", true),
    };
    uint64_t heads = heft__sk_count(s, "n_head", 8);
    if (c.hidden % heads) {
        heft__sk_fail(s, HEFT_FORMAT, "n_head",
                      "expected a divisor of hidden_size, %llu, found %llu",
                      (unsigned long long)c.hidden, (unsigned long long)heads);
    }
    heft__sk_initializer_range(s, 0.02);
    return c;
}

/* ---- modules --------------------------------------------------------------------------------- */
static void block(heft__skeleton *s, const struct bloom *c)
{
    heft__sk_layer_norm(s, "input_layernorm", c->hidden, true);
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attention");
    heft__sk_cache(s, 2 * c->hidden, 0);
    heft__sk_linear(s, "query_key_value", c->hidden, 3 * c->hidden, true);
    heft__sk_linear(s, "dense", c->hidden, c->hidden, true);
    heft__sk_leave(s);
    heft__sk_layer_norm(s, "post_attention_layernorm", c->hidden, true);
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MLP", "mlp");
    heft__sk_linear(s, "dense_h_to_4h", c->hidden, 4 * c->hidden, true);
    heft__sk_linear(s, "dense_4h_to_h", 4 * c->hidden, c->hidden, true);
    heft__sk_leave(s);
}

static void body(heft__skeleton *s, const struct bloom *c)
{
    heft__sk_embedding(s, "word_embeddings", c->vocab, c->hidden, -1);
    heft__sk_layer_norm(s, "word_embeddings_layernorm", c->hidden, true);
    for (uint64_t i = 0; i < c->layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, "*Block", "h.%llu", (unsigned long long)i);
        block(s, c);
        heft__sk_leave(s);
    }
    heft__sk_layer_norm(s, "ln_f", c->hidden, true);
}

/* The body below a head. */
static struct bloom transformer(heft__skeleton *s)
{
    struct bloom c = read_config(s);
    heft__sk_enter_body(s, "transformer");
    body(s, &c);
    heft__sk_leave(s);
    return c;
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    struct bloom c = read_config(s);
    body(s, &c);
}

static void causal_lm(heft__skeleton *s)
{
    struct bloom c = transformer(s);
    heft__sk_linear(s, "lm_head", c.hidden, c.vocab, false);
    if (c.tied) {
        heft__sk_tie(s, "lm_head.weight", "transformer.word_embeddings.weight");
    }
}

static void sequence_classes(heft__skeleton *s)
{
    struct bloom c = transformer(s);
    heft__sk_linear(s, "score", c.hidden, heft__sk_labels(s), false);
}

static void token_classes(heft__skeleton *s)
{
    struct bloom c = transformer(s);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void question_answering(heft__skeleton *s)
{
    struct bloom c = transformer(s);
    heft__sk_linear(s, "qa_outputs", c.hidden, 2, true);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
struct bloom_pass {
    struct bloom c;
    double eps;
    heft__attention attend;
    size_t head;
    bool after_norm; /* residuals come from behind the norms */
};

static void block_forward(heft__pass *p, const struct bloom_pass *b, heft__rows x)
{
    heft__rows h = heft__layer_norm(p, "input_layernorm", x, b->eps);
    heft__rows qkv = heft__linear(p, "self_attention.query_key_value", h); /* [head][q k v] */
    heft__rows a =
        heft__attend(p, heft__columns(p, qkv, 3 * b->head, 0, b->head),
                     heft__columns(p, qkv, 3 * b->head, b->head, b->head),
                     heft__columns(p, qkv, 3 * b->head, 2 * b->head, b->head), &b->attend);
    if (b->after_norm) {
        heft__set(p, x, h);
    }
    heft__add(p, x, heft__linear(p, "self_attention.dense", a));
    h = heft__layer_norm(p, "post_attention_layernorm", x, b->eps);
    heft__rows m = heft__linear(p, "mlp.dense_h_to_4h", h);
    heft__activate(p, HEFT__ACT_GELU_TANH, m);
    if (b->after_norm) {
        heft__set(p, x, h);
    }
    heft__add(p, x, heft__linear(p, "mlp.dense_4h_to_h", m));
}

static heft__rows body_forward(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    const heft__pass_inputs *in = heft__inputs(p);
    struct bloom_pass b = {.c = read_config(s)};
    const size_t heads = heft__sk_count(s, "n_head", 8);
    b.head = (size_t)b.c.hidden / heads;
    b.eps = heft__sk_real(s, "layer_norm_epsilon", 1e-5);
    b.after_norm = heft__sk_flag(s, "apply_residual_connection_post_layernorm", false);
    b.attend = heft__attention_of(heads, b.head, true);
    heft__number(p, HEFT__NUMBER_ALIBI, 0);
    if (heft__sk_true(s, "slow_but_exact") && heft__sk_count(s, "pretraining_tp", 1) > 1) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "config.json: slow_but_exact is true with pretraining_tp above 1: products "
                        "in parts are not computed");
    }
    b.attend.slopes = heft__alibi_slopes(p, heads);
    heft__rows x = heft__embed(p, "word_embeddings", in->ids, in->tokens, 0);
    x = heft__layer_norm(p, "word_embeddings_layernorm", x, b.eps);
    heft__out_hidden(p, 0, x);
    for (uint64_t i = 0; i < b.c.layers && heft__pass_going(p); i++) {
        heft__block(p, "h", (size_t)i);
        block_forward(p, &b, x);
        heft__block_end(p, x);
        if (i + 1 < b.c.layers) {
            heft__out_hidden(p, (size_t)i + 1, x);
        }
    }
    x = heft__layer_norm(p, "ln_f", x, b.eps);
    heft__out_hidden(p, (size_t)b.c.layers, x);
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    return x;
}

static const heft__class classes[] = {
    {"BloomModel",                     "AutoModel",                          base_model,         heft__base_forward       },
    {"BloomForCausalLM",               "AutoModelForCausalLM",               causal_lm,          decoder_causal_lm_forward},
    {"BloomForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                     },
    {"BloomForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                        },
    {"BloomForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     decoder_question_answering_forward                                                                                   },
    {NULL,                             NULL,                                 NULL,               NULL                     },
};

static const char *const no_split[] = {"BloomBlock", NULL};
static const char *const other_keys[][2] = {
    {"n_layer", "num_hidden_layers"  },
    {"n_head",  "num_attention_heads"},
    {NULL,      NULL                 },
};

extern const heft__family heft__family_bloom; /* registry.c has a line for it */
const heft__family heft__family_bloom = {
    .model_type = "bloom",
    .base_prefix = "transformer",
    .class_prefix = "Bloom",
    .classes = classes,
    .no_split = no_split,
    .other_keys = other_keys,
    .body = body_forward,
};
