/* gpt_neox.c - GPT-NeoX and Pythia: query, key and value in one matrix, parallel MLP.
 *
 *   gpt_neox.embed_in -> gpt_neox.layers.0 .. N-1 -> gpt_neox.final_layer_norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

static const struct decoder standard = {.vocab = 50432,
                                        .hidden = 6144,
                                        .layers = 44,
                                        .intermediate = 24576,
                                        .heads = 64,
                                        .padding_row = -1,
                                        .tied = false,
                                        .std = 0.02};

static void layer(heft__skeleton *s, const struct decoder *c, bool bias)
{
    heft__sk_layer_norm(s, "input_layernorm", c->hidden, true);
    heft__sk_layer_norm(s, "post_attention_layernorm", c->hidden, true);
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "attention");
    heft__sk_cache(s, 2 * c->hidden, 0);
    heft__sk_linear(s, "query_key_value", c->hidden, 3 * c->hidden, bias);
    heft__sk_linear(s, "dense", c->hidden, c->hidden, bias);
    heft__sk_leave(s);
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MLP", "mlp");
    heft__sk_linear(s, "dense_h_to_4h", c->hidden, c->intermediate, true);
    heft__sk_linear(s, "dense_4h_to_h", c->intermediate, c->hidden, true);
    heft__sk_leave(s);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const bool bias = heft__sk_flag(s, "attention_bias", true);
    heft__sk_embedding(s, "embed_in", c.vocab, c.hidden, -1);
    for (uint64_t i = 0; i < c.layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, "*Layer", "layers.%llu", (unsigned long long)i);
        layer(s, &c, bias);
        heft__sk_leave(s);
    }
    heft__sk_layer_norm(s, "final_layer_norm", c.hidden, true);
    heft__sk_rotary(s, NULL, heft__sk_rotary_part(s, c.hidden / c.heads, 0.25));
    return c;
}

/* The body below a head. */
static struct decoder gpt_neox(heft__skeleton *s)
{
    heft__sk_enter_body(s, "gpt_neox");
    struct decoder c = body(s);
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
    struct decoder c = gpt_neox(s);
    heft__sk_linear(s, "embed_out", c.hidden, c.vocab, false);
    heft__sk_natural_order(s);
    if (c.tied) {
        heft__sk_tie(s, "embed_out.weight", "gpt_neox.embed_in.weight");
    }
}

static void sequence_classes(heft__skeleton *s)
{
    struct decoder c = gpt_neox(s);
    heft__sk_linear(s, "score", c.hidden, heft__sk_labels(s), false);
}

static void token_classes(heft__skeleton *s)
{
    struct decoder c = gpt_neox(s);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void question_answering(heft__skeleton *s)
{
    struct decoder c = gpt_neox(s);
    heft__sk_linear(s, "qa_outputs", c.hidden, 2, true);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
struct neox_pass {
    struct decoder_pass d;
    size_t head; /* numbers of one */
    bool parallel;
};

static void layer_forward(heft__pass *p, const struct neox_pass *n, heft__rows x)
{
    const struct decoder_pass *d = &n->d;
    heft__rows h = heft__layer_norm(p, "input_layernorm", x, d->eps);
    heft__rows qkv = heft__linear(p, "attention.query_key_value", h); /* [head][q k v] */
    heft__rows q = heft__columns(p, qkv, 3 * n->head, 0, n->head),
               k = heft__columns(p, qkv, 3 * n->head, n->head, n->head),
               v = heft__columns(p, qkv, 3 * n->head, 2 * n->head, n->head);
    heft__rotate(p, q, d->attend.heads, 0, &d->rope);
    heft__rotate(p, k, d->attend.heads, 0, &d->rope);
    heft__rows a = heft__linear(p, "attention.dense", heft__attend(p, q, k, v, &d->attend));
    if (!n->parallel) {
        heft__add(p, x, a);
    }
    h = heft__linear(p, "mlp.dense_h_to_4h",
                     heft__layer_norm(p, "post_attention_layernorm", x, d->eps));
    heft__activate(p, d->act, h);
    h = heft__linear(p, "mlp.dense_4h_to_h", h);
    if (n->parallel) {
        heft__add(p, h, a);
    }
    heft__add(p, x, h);
}

static heft__rows body_forward(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    const heft__pass_inputs *in = heft__inputs(p);
    struct neox_pass n = {.d = decoder_begin(p, &standard, "layer_norm_eps"),
                          .parallel = heft__sk_flag(s, "use_parallel_residual", true)};
    n.d.attend.kv_heads = n.d.attend.heads; /* whatever num_key_value_heads says */
    n.head = n.d.attend.key_width;
    n.d.act = heft__act_of(p, "hidden_act", "gelu");
    n.d.rope = heft__rope_table(p, NULL, heft__sk_rotary_part(s, n.head, 0.25));
    heft__rows x = heft__embed(p, "embed_in", in->ids, in->tokens, 0);
    heft__out_hidden(p, 0, x);
    for (uint64_t i = 0; i < n.d.c.layers && heft__pass_going(p); i++) {
        heft__block(p, "layers", (size_t)i);
        layer_forward(p, &n, x);
        heft__block_end(p, x);
        if (i + 1 < n.d.c.layers) {
            heft__out_hidden(p, (size_t)i + 1, x);
        }
    }
    return decoder_finish(p, &n.d, heft__layer_norm(p, "final_layer_norm", x, n.d.eps));
}

static const heft__class classes[] = {
    {"GPTNeoXModel",                     "AutoModel",                          base_model,         heft__base_forward       },
    {"GPTNeoXForCausalLM",               "AutoModelForCausalLM",               causal_lm,          decoder_causal_lm_forward},
    {"GPTNeoXForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                       },
    {"GPTNeoXForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                          },
    {"GPTNeoXForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     decoder_question_answering_forward                                                                                     },
    {NULL,                               NULL,                                 NULL,               NULL                     },
};

static const char *const no_split[] = {"GPTNeoXLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", "attention.bias",
                                                "attention.masked_bias", NULL};
static const char *const inner_names[][2] = {
    {"embed_out", "lm_head"},
    {NULL,        NULL     }
};

extern const heft__family heft__family_gpt_neox; /* registry.c has a line for it */
const heft__family heft__family_gpt_neox = {
    .model_type = "gpt_neox",
    .base_prefix = "gpt_neox",
    .class_prefix = "GPTNeoX",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .inner_names = inner_names,
    .body = body_forward,
};
