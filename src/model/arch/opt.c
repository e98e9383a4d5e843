/* opt.c - OPT and its heads.
 *
 *   decoder.embed_tokens [, project_in], embed_positions -> decoder.layers.0 .. N-1
 *       [-> decoder.final_layer_norm] [-> decoder.project_out] -> a head
 *
 * Two positions more than the config says; embeddings may be narrower than the layers.
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

struct opt {
    uint64_t vocab, hidden, embedding, layers, intermediate, positions;
    int64_t padding_row; /* of the word embeddings, -1 for none */
    bool final_norm, bias, affine, tied;
};

static struct opt read_config(heft__skeleton *s)
{
    struct opt c = {
        .vocab = heft__sk_count(s, "vocab_size", 50272),
        .hidden = heft__sk_count(s, "hidden_size", 768),
        .layers = heft__sk_layers(s, "num_hidden_layers", 12),
        .intermediate = heft__sk_count(s, "ffn_dim", 3072),
        .positions = heft__sk_count(s, "max_position_embeddings", 2048) + 2,
        .final_norm = heft__sk_flag(s, "do_layer_norm_before", true) &&
                      !heft__sk_flag(s, "_remove_final_layer_norm", false),
        .bias = heft__sk_flag(s, "enable_bias", true),
        .affine = heft__sk_flag(s, "layer_norm_elementwise_affine", true),
        .tied = heft__sk_flag(s, "tie_word_embeddings", true),
    };
    uint64_t heads = heft__sk_count(s, "num_attention_heads", 12);
    c.embedding = heft__sk_count_or(s, "word_embed_proj_dim", c.hidden, c.hidden);
    if (c.hidden % heads) {
        heft__sk_fail(s, HEFT_FORMAT, "num_attention_heads",
                      "expected a divisor of hidden_size, %llu, found %llu",
                      (unsigned long long)c.hidden, (unsigned long long)heads);
    }
    c.padding_row = heft__sk_padding_row(s, "pad_token_id", 1, c.vocab);
    double std = heft__sk_real(s, "init_std", 0.02);
    if (std < 0 || std > 1e6) {
        heft__sk_fail(s, HEFT_FORMAT, "init_std", "expected 0 to 1e6, found %g", std);
    }
    heft__sk_std(s, std);
    return c;
}

/* ---- modules --------------------------------------------------------------------------------- */
/* Without affine values a norm has no parameters. */
static void norm(heft__skeleton *s, const char *name, const struct opt *c)
{
    if (c->affine) {
        heft__sk_layer_norm(s, name, c->hidden, true);
    }
}

static void layer(heft__skeleton *s, const struct opt *c)
{
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    heft__sk_cache(s, 2 * c->hidden, 0);
    heft__sk_linear(s, "k_proj", c->hidden, c->hidden, c->bias);
    heft__sk_linear(s, "v_proj", c->hidden, c->hidden, c->bias);
    heft__sk_linear(s, "q_proj", c->hidden, c->hidden, c->bias);
    heft__sk_linear(s, "out_proj", c->hidden, c->hidden, c->bias);
    heft__sk_leave(s);
    norm(s, "self_attn_layer_norm", c);
    heft__sk_linear(s, "fc1", c->hidden, c->intermediate, c->bias);
    heft__sk_linear(s, "fc2", c->intermediate, c->hidden, c->bias);
    norm(s, "final_layer_norm", c);
}

static void body(heft__skeleton *s, const struct opt *c)
{
    heft__sk_enter(s, HEFT_MODULE_MODEL, "*Decoder", "decoder");
    heft__sk_embedding(s, "embed_tokens", c->vocab, c->embedding, c->padding_row);
    heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "*LearnedPositionalEmbedding", "embed_positions");
    heft__sk_table(s, c->positions, c->hidden, -1);
    heft__sk_leave(s);
    if (c->embedding != c->hidden) {
        heft__sk_linear(s, "project_out", c->hidden, c->embedding, false);
        heft__sk_linear(s, "project_in", c->embedding, c->hidden, false);
    }
    if (c->final_norm) {
        norm(s, "final_layer_norm", c);
    }
    for (uint64_t i = 0; i < c->layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, "*DecoderLayer", "layers.%llu", (unsigned long long)i);
        layer(s, c);
        heft__sk_leave(s);
    }
    heft__sk_leave(s);
}

/* The body below a head. */
static struct opt model(heft__skeleton *s)
{
    struct opt c = read_config(s);
    heft__sk_enter_body(s, "model");
    body(s, &c);
    heft__sk_leave(s);
    return c;
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    struct opt c = read_config(s);
    body(s, &c);
}

static void causal_lm(heft__skeleton *s)
{
    struct opt c = model(s);
    heft__sk_linear(s, "lm_head", c.embedding, c.vocab, false);
    if (c.tied) {
        heft__sk_tie(s, "lm_head.weight", "model.decoder.embed_tokens.weight");
    }
}

static void sequence_classes(heft__skeleton *s)
{
    struct opt c = model(s);
    heft__sk_linear(s, "score", c.embedding, heft__sk_labels(s), false);
}

static void question_answering(heft__skeleton *s)
{
    struct opt c = model(s);
    heft__sk_linear(s, "qa_outputs", c.embedding, 2, true);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
struct opt_pass {
    struct opt c;
    heft__act act;
    heft__attention attend;
    bool before; /* norms stand in front of attention and MLP */
};

static void layer_forward(heft__pass *p, const struct opt_pass *o, heft__rows x)
{
    const double eps = 1e-5;
    heft__rows h = o->before ? heft__layer_norm(p, "self_attn_layer_norm", x, eps) : x;
    heft__enter(p, "self_attn");
    h = heft__attend(p, heft__linear(p, "q_proj", h), heft__linear(p, "k_proj", h),
                     heft__linear(p, "v_proj", h), &o->attend);
    heft__add(p, x, heft__linear(p, "out_proj", h));
    heft__leave(p);
    if (!o->before) {
        heft__set(p, x, heft__layer_norm(p, "self_attn_layer_norm", x, eps));
    }
    h = heft__linear(p, "fc1", o->before ? heft__layer_norm(p, "final_layer_norm", x, eps) : x);
    heft__activate(p, o->act, h);
    heft__add(p, x, heft__linear(p, "fc2", h));
    if (!o->before) {
        heft__set(p, x, heft__layer_norm(p, "final_layer_norm", x, eps));
    }
}

static struct opt_pass begin(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    struct opt_pass o = {.c = read_config(s)};
    const size_t heads = heft__sk_count(s, "num_attention_heads", 12),
                 width = (size_t)o.c.hidden / heads;
    o.before = heft__sk_flag(s, "do_layer_norm_before", true);
    o.act = heft__act_of(p, "activation_function", "relu");
    o.attend = heft__attention_of(heads, width, true);
    return o;
}

/* Positions count the tokens that are not masked, from 2 on. */
static heft__rows body_forward(heft__pass *p)
{
    const heft__pass_inputs *in = heft__inputs(p);
    const struct opt_pass o = begin(p);
    heft__number(p, HEFT__NUMBER_MASKED, 0);
    heft__enter(p, "decoder");
    heft__rows x = heft__embed(p, "embed_tokens", in->ids, in->tokens, 0);
    if (o.c.embedding != o.c.hidden) {
        x = heft__linear(p, "project_in", x);
    }
    heft__add(p, x, heft__embed(p, "embed_positions", in->counted, in->tokens, 2));
    heft__out_hidden(p, 0, x);
    for (uint64_t i = 0; i < o.c.layers && heft__pass_going(p); i++) {
        heft__block(p, "layers", (size_t)i);
        layer_forward(p, &o, x);
        heft__block_end(p, x);
        if (i + 1 < o.c.layers) {
            heft__out_hidden(p, (size_t)i + 1, x);
        }
    }
    if (o.c.final_norm) {
        x = heft__layer_norm(p, "final_layer_norm", x, 1e-5);
    }
    if (o.c.embedding != o.c.hidden) {
        x = heft__linear(p, "project_out", x);
    }
    heft__leave(p);
    heft__out_hidden(p, (size_t)o.c.layers, x);
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    return x;
}

static void sequence_classes_forward(heft__pass *p)
{
    decoder_sequence_classes_padded(p, 1);
}

static const heft__class classes[] = {
    {"OPTModel",                     "AutoModel",                          base_model,         heft__base_forward       },
    {"OPTForCausalLM",               "AutoModelForCausalLM",               causal_lm,          decoder_causal_lm_forward},
    {"OPTForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     sequence_classes_forward                                                                                           },
    {"OPTForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     decoder_question_answering_forward                                                                                 },
    {NULL,                           NULL,                                 NULL,               NULL                     },
};

static const char *const no_split[] = {"OPTDecoderLayer", NULL};

extern const heft__family heft__family_opt; /* registry.c has a line for it */
const heft__family heft__family_opt = {
    .model_type = "opt",
    .base_prefix = "model",
    .class_prefix = "OPT",
    .classes = classes,
    .no_split = no_split,
    .body = body_forward,
};
