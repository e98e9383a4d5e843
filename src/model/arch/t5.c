/* t5.c - T5, encoder and decoder of one kind of block; relative positions in the first block.
 *
 *   shared -> encoder.block.0 .. N-1 -> encoder.final_layer_norm
 *   shared -> decoder.block.0 .. M-1 -> decoder.final_layer_norm -> lm_head
 *
 * The embeddings of both and the language head are always `shared`; a file that has other values
 * for one of them (T5 v1.1) unties it. Source: config keys, names and order as Transformers saves
 * them; docs/models.md. */
#include "model/arch/encoder.h"
#include "model/arch/seq2seq.h"

#include <math.h>

struct t5 {
    uint64_t vocab, hidden, intermediate, heads, head_dim, encoder_layers, decoder_layers, buckets;
    bool gated;
    double factor; /* of all initial values */
};

static struct t5 read_config(heft__skeleton *s)
{
    struct t5 c = {
        .vocab = heft__sk_count(s, "vocab_size", 32128),
        .hidden = heft__sk_count(s, "d_model", 512),
        .intermediate = heft__sk_count(s, "d_ff", 2048),
        .heads = heft__sk_count(s, "num_heads", 8),
        .head_dim = heft__sk_count(s, "d_kv", 64),
        .encoder_layers = heft__sk_layers(s, "num_layers", 6),
        .buckets = heft__sk_count(s, "relative_attention_num_buckets", 32),
        .gated = strncmp(heft__sk_text(s, "feed_forward_proj", "relu"), "gated-", 6) == 0,
        .factor = heft__sk_real(s, "initializer_factor", 1),
    };
    c.decoder_layers = heft__sk_has(s, "num_decoder_layers")
                           ? heft__sk_layers(s, "num_decoder_layers", 6)
                           : c.encoder_layers;
    return c;
}

/* ---- modules --------------------------------------------------------------------------------- */
/* A matrix whose initial values are as large as its input is wide. */
static void matrix(heft__skeleton *s, const struct t5 *c, const char *name, uint64_t in,
                   uint64_t out, double width)
{
    heft__sk_std(s, c->factor / sqrt(width));
    heft__sk_linear(s, name, in, out, false);
}

static void norm(heft__skeleton *s, const struct t5 *c, const char *name)
{
    heft__sk_enter(s, HEFT_MODULE_NORM, "*LayerNorm", "%s", name);
    heft__sk_parameter(s, "weight", &c->hidden, 1, heft__init_constant((float)c->factor));
    heft__sk_leave(s);
}

static void attention(heft__skeleton *s, const struct t5 *c, const char *name, bool relative,
                      bool cached)
{
    const uint64_t inner = c->heads * c->head_dim;
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "%s", name);
    if (cached) {
        heft__sk_cache(s, 2 * inner, 0);
    }
    matrix(s, c, "q", c->hidden, inner, (double)c->hidden * (double)c->head_dim);
    matrix(s, c, "k", c->hidden, inner, (double)c->hidden);
    matrix(s, c, "v", c->hidden, inner, (double)c->hidden);
    matrix(s, c, "o", inner, c->hidden, (double)inner);
    if (relative) {
        heft__sk_std(s, c->factor / sqrt((double)c->hidden));
        heft__sk_embedding(s, "relative_attention_bias", c->buckets, c->heads, -1);
    }
    heft__sk_leave(s);
    norm(s, c, "layer_norm");
}

static void feed_forward(heft__skeleton *s, const struct t5 *c)
{
    heft__sk_enter(s, HEFT_MODULE_MLP, c->gated ? "*DenseGatedActDense" : "*DenseActDense",
                   "DenseReluDense");
    if (c->gated) {
        matrix(s, c, "wi_0", c->hidden, c->intermediate, (double)c->hidden);
        matrix(s, c, "wi_1", c->hidden, c->intermediate, (double)c->hidden);
    } else {
        matrix(s, c, "wi", c->hidden, c->intermediate, (double)c->hidden);
    }
    matrix(s, c, "wo", c->intermediate, c->hidden, (double)c->intermediate);
    heft__sk_leave(s);
    norm(s, c, "layer_norm");
}

static void block(heft__skeleton *s, const struct t5 *c, bool first, bool decoder)
{
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*LayerSelfAttention", "layer.0");
    attention(s, c, "SelfAttention", first, decoder);
    heft__sk_leave(s);
    if (decoder) {
        heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*LayerCrossAttention", "layer.1");
        attention(s, c, "EncDecAttention", false, true);
        heft__sk_leave(s);
    }
    heft__sk_enter(s, HEFT_MODULE_MLP, "*LayerFF", decoder ? "layer.2" : "layer.1");
    feed_forward(s, c);
    heft__sk_leave(s);
}

static void stack(heft__skeleton *s, const struct t5 *c, const char *name, bool decoder)
{
    const uint64_t layers = decoder ? c->decoder_layers : c->encoder_layers;
    heft__sk_enter(s, HEFT_MODULE_MODEL, "*Stack", "%s", name);
    heft__sk_std(s, c->factor);
    heft__sk_embedding(s, "embed_tokens", c->vocab, c->hidden, -1);
    for (uint64_t i = 0; i < layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, "*Block", "block.%llu", (unsigned long long)i);
        block(s, c, i == 0, decoder);
        heft__sk_leave(s);
    }
    norm(s, c, "final_layer_norm");
    heft__sk_leave(s);
}

/* `prefix`: "transformer." below some heads. */
static struct t5 body(heft__skeleton *s, const char *prefix, bool decoder)
{
    struct t5 c = read_config(s);
    char source[40], target[60];
    heft__sk_std(s, c.factor);
    heft__sk_embedding(s, "shared", c.vocab, c.hidden, -1);
    stack(s, &c, "encoder", false);
    snprintf(source, sizeof source, "%sshared.weight", prefix);
    snprintf(target, sizeof target, "%sencoder.embed_tokens.weight", prefix);
    heft__sk_tie(s, target, source);
    if (decoder) {
        stack(s, &c, "decoder", true);
        snprintf(target, sizeof target, "%sdecoder.embed_tokens.weight", prefix);
        heft__sk_tie(s, target, source);
    }
    return c;
}

/* The body below a head. */
static struct t5 transformer(heft__skeleton *s, bool decoder)
{
    heft__sk_enter(s, HEFT_MODULE_MODEL, decoder ? "*Model" : "*EncoderModel", "transformer");
    struct t5 c = body(s, "transformer.", decoder);
    heft__sk_leave(s);
    return c;
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    (void)body(s, "", true);
}

static void encoder_model(heft__skeleton *s)
{
    (void)body(s, "", false);
}

static void conditional_generation(heft__skeleton *s)
{
    struct t5 c = body(s, "", true);
    heft__sk_std(s, c.factor);
    heft__sk_linear(s, "lm_head", c.hidden, c.vocab, false);
    heft__sk_tie(s, "lm_head.weight", "shared.weight");
}

static void sequence_classes(heft__skeleton *s)
{
    struct t5 c = transformer(s, true);
    heft__sk_std(s, c.factor / sqrt((double)c.hidden));
    heft__sk_enter(s, HEFT_MODULE_HEAD, "*ClassificationHead", "classification_head");
    heft__sk_linear(s, "dense", c.hidden, c.hidden, true);
    heft__sk_linear(s, "out_proj", c.hidden, heft__sk_labels(s), true);
    heft__sk_leave(s);
}

static void token_classes(heft__skeleton *s)
{
    struct t5 c = transformer(s, false);
    heft__sk_std(s, c.factor);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void question_answering(heft__skeleton *s)
{
    struct t5 c = body(s, "", true);
    heft__sk_std(s, c.factor / sqrt((double)c.hidden));
    heft__sk_linear(s, "qa_outputs", c.hidden, heft__sk_labels(s), true);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
struct t5_pass {
    struct t5 c;
    double eps;
    heft__act act;
    heft__attention self, cross;
};

/* "gated-gelu" is the tanh form; "relu", "gated-silu". */
static heft__act act_forward(heft__pass *p)
{
    const char *text = heft__sk_text(heft__pass_config(p), "feed_forward_proj", "relu");
    const char *name = strncmp(text, "gated-", 6) == 0 ? text + 6 : text;
    return strcmp(text, "gated-gelu") == 0 ? HEFT__ACT_GELU_TANH
                                           : heft__act_of(p, "dense_act_fn", name);
}

static struct t5_pass begin(heft__pass *p, bool decoder)
{
    heft__skeleton *s = heft__pass_config(p);
    struct t5_pass t = {.c = read_config(s)};
    t.eps = heft__sk_real(s, "layer_norm_epsilon", 1e-6);
    t.act = act_forward(p);
    t.cross = (heft__attention){.heads = (size_t)t.c.heads,
                                .kv_heads = (size_t)t.c.heads,
                                .key_width = (size_t)t.c.head_dim,
                                .value_width = (size_t)t.c.head_dim,
                                .scale = 1};
    t.self = t.cross;
    t.self.causal = decoder;
    return t;
}

/* The bucket of a distance (key - query): exact ones first, then ones that grow with its logarithm. */
static uint64_t bucket_of(int64_t distance, uint64_t buckets, uint64_t most, bool decoder)
{
    uint64_t first = 0, far = distance < 0 ? (uint64_t)-distance : (uint64_t)distance;
    if (!decoder) {
        buckets /= 2;
        first = distance > 0 ? buckets : 0;
    } else if (distance > 0) {
        far = 0;
    }
    const uint64_t exact = buckets / 2;
    if (far < exact || exact == 0) {
        return first + far;
    }
    const float steps = logf((float)far / (float)exact) / logf((float)most / (float)exact) *
                        (float)(buckets - exact);
    const uint64_t bucket = exact + (uint64_t)steps;
    return first + (bucket < buckets ? bucket : buckets - 1);
}

/* The bias of all distances, which the first block has for all: it stays in scratch until the stack's end. */
static void read_bias(heft__pass *p, struct t5_pass *t, bool decoder)
{
    const uint64_t most =
        heft__sk_count(heft__pass_config(p), "relative_attention_max_distance", 128);
    const size_t reach = (size_t)most + 1, heads = (size_t)t->c.heads, span = 2 * reach + 1;
    const uint64_t exact = t->c.buckets / (decoder ? 2 : 4);
    if (exact == 0 || most <= exact) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "config.json: relative_attention_max_distance is %llu: %llu buckets hold "
                        "distances of %llu and more",
                        (unsigned long long)most, (unsigned long long)t->c.buckets,
                        (unsigned long long)exact);
        return;
    }
    heft__rows bias = heft__zeros(p, heads, span);
    heft__rows table =
        heft__parameter(p, "block.0.layer.0.SelfAttention.relative_attention_bias.weight", heads);
    for (size_t h = 0; table.x && bias.x && h < heads; h++) {
        for (size_t i = 0; i < span; i++) {
            const uint64_t bucket =
                bucket_of((int64_t)i - (int64_t)reach, t->c.buckets, most, decoder);
            bias.x[h * span + i] = bucket < table.count ? table.x[bucket * heads + h] : 0;
        }
    }
    t->self.bias = bias.x;
    t->self.bias_reach = (int32_t)reach;
}

static heft__rows feed_forward_pass(heft__pass *p, const struct t5_pass *t, heft__rows h)
{
    heft__enter(p, "DenseReluDense");
    heft__rows a = heft__linear(p, t->c.gated ? "wi_0" : "wi", h);
    if (t->c.gated) {
        heft__gate(p, t->act, a, heft__linear(p, "wi_1", h));
    } else {
        heft__activate(p, t->act, a);
    }
    h = heft__linear(p, "wo", a);
    heft__leave(p);
    return h;
}

static void block_forward(heft__pass *p, const struct t5_pass *t, bool decoder, heft__rows x)
{
    heft__enter(p, "layer.0");
    heft__rows h = heft__rms_norm(p, "layer_norm", x, t->eps, 0);
    heft__enter(p, "SelfAttention");
    h = heft__attend(p, heft__linear(p, "q", h), heft__linear(p, "k", h), heft__linear(p, "v", h),
                     &t->self);
    heft__add(p, x, heft__linear(p, "o", h));
    heft__leave(p);
    heft__leave(p);
    if (decoder) {
        heft__enter(p, "layer.1");
        h = heft__rms_norm(p, "layer_norm", x, t->eps, 0);
        heft__enter(p, "EncDecAttention");
        h = heft__attend_cross(p, heft__linear(p, "q", h), "k", "v", &t->cross);
        heft__add(p, x, heft__linear(p, "o", h));
        heft__leave(p);
        heft__leave(p);
    }
    heft__enter(p, decoder ? "layer.2" : "layer.1");
    heft__add(p, x, feed_forward_pass(p, t, heft__rms_norm(p, "layer_norm", x, t->eps, 0)));
    heft__leave(p);
}

static heft__rows stack_forward(heft__pass *p, bool decoder, heft__side side)
{
    const heft__pass_inputs *in = heft__inputs(p);
    struct t5_pass t = begin(p, decoder);
    heft__number(p, HEFT__NUMBER_FIXED, 0);
    const uint64_t layers = decoder ? t.c.decoder_layers : t.c.encoder_layers;
    heft__enter(p, decoder ? "decoder" : "encoder");
    heft__rows x = heft__embed(p, "embed_tokens", in->ids, in->tokens, 0);
    read_bias(p, &t, decoder);
    heft__out_hidden_of(p, side, 0, x);
    for (uint64_t i = 0; i < layers && heft__pass_going(p); i++) {
        heft__block(p, "block", (size_t)i);
        block_forward(p, &t, decoder, x);
        if (i + 1 < layers) {
            heft__out_hidden_of(p, side, (size_t)i + 1, x);
        }
        heft__block_end(p, x);
    }
    x = heft__rms_norm(p, "final_layer_norm", x, t.eps, 0);
    heft__out_hidden_of(p, side, (size_t)layers, x);
    heft__leave(p);
    return x;
}

static void encode_forward(heft__pass *p)
{
    heft__pass_enter_body(p);
    heft__rows x = stack_forward(p, false, HEFT__SIDE_ENCODER);
    heft__out(p, HEFT__OUT_ENCODED, "encoder_last_hidden_state", x);
    heft__keep_encoded(p, x);
    heft__leave(p);
}

static heft__rows body_forward(heft__pass *p)
{
    heft__rows x = stack_forward(p, true, HEFT__SIDE_DECODER);
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    return x;
}

/* T5EncoderModel, and heads on it: the encoder is the whole pass. */
static heft__rows encoder_forward(heft__pass *p)
{
    heft__pass_enter_body(p);
    heft__rows x = stack_forward(p, false, HEFT__SIDE_ONLY);
    heft__leave(p);
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    return x;
}

static void encoder_model_forward(heft__pass *p)
{
    (void)encoder_forward(p);
}

static void token_classes_forward(heft__pass *p)
{
    heft__out(p, HEFT__OUT_TOKENS, "logits", heft__linear(p, "classifier", encoder_forward(p)));
}

/* A head that was trained as the embeddings takes smaller numbers than one of its own. */
static void conditional_generation_forward(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    heft__rows x = heft__wanted(p, heft__body(p));
    const bool tied = heft__sk_flag(s, "tie_word_embeddings", true);
    if (heft__sk_flag(s, "scale_decoder_outputs", tied)) {
        heft__scale_by(p, x, 1 / sqrt((double)read_config(s).hidden));
    }
    heft__out(p, HEFT__OUT_WANTED, "logits", heft__linear(p, "lm_head", x));
}

static const heft__class classes[] = {
    {"T5Model",                     "AutoModel",                          base_model,             heft__base_forward   },
    {"T5ForConditionalGeneration",  "AutoModelForSeq2SeqLM",              conditional_generation,
     conditional_generation_forward                                                                                    },
    {"T5EncoderModel",              "AutoModelForTextEncoding",           encoder_model,          encoder_model_forward},
    {"T5ForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     seq2seq_classes_forward                                                                                           },
    {"T5ForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     token_classes_forward                                                                                             },
    {"T5ForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     encoder_question_answering_forward                                                                                },
    {NULL,                          NULL,                                 NULL,                   NULL                 },
};

static const char *const no_split[] = {"T5Block", NULL};
/* Older files hold it, and nothing has ever used it. */
static const char *const ignore_unexpected[] = {
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", NULL};
static const char *const keep_f32[] = {"wo", NULL};
static const char *const other_keys[][2] = {
    {"d_model",    "hidden_size"        },
    {"num_heads",  "num_attention_heads"},
    {"num_layers", "num_hidden_layers"  },
    {"d_kv",       "head_dim"           },
    {NULL,         NULL                 },
};

extern const heft__family heft__family_t5; /* registry.c has a line for it */
const heft__family heft__family_t5 = {
    .model_type = "t5",
    .base_prefix = "transformer",
    .class_prefix = "T5",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .keep_f32 = keep_f32,
    .other_keys = other_keys,
    .body = body_forward,
    .encode = encode_forward,
};
