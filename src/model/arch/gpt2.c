/* gpt2.c - GPT-2 and its heads.
 *
 *   transformer.wte, wpe -> transformer.h.0 .. N-1 -> transformer.ln_f -> a head
 *
 * Its linear layers are "Conv1D": the weight is [in, out]. What goes into the residual stream begins
 * smaller, by the root of twice the layers.
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

#include <math.h>

struct gpt2 {
    uint64_t vocab, hidden, layers, inner, positions;
    double std;
    bool cross_attention, tied;
};

static struct gpt2 read_config(heft__skeleton *s)
{
    struct gpt2 c = {
        .vocab = heft__sk_count(s, "vocab_size", 50257),
        .hidden = heft__sk_count(s, "n_embd", 768),
        .layers = heft__sk_layers(s, "n_layer", 12),
        .positions = heft__sk_count(s, "n_positions", 1024),
        .cross_attention = heft__sk_flag(s, "add_cross_attention", false),
        .tied = heft__sk_flag(s, "tie_word_embeddings", true),
    };
    uint64_t heads = heft__sk_count(s, "n_head", 12);
    c.inner = heft__sk_count_or(s, "n_inner", 4 * c.hidden, 4 * c.hidden);
    if (c.hidden % heads) {
        heft__sk_fail(s, HEFT_FORMAT, "n_head", "expected a divisor of n_embd, %llu, found %llu",
                      (unsigned long long)c.hidden, (unsigned long long)heads);
    }
    heft__sk_initializer_range(s, 0.02);
    c.std = heft__sk_real(s, "initializer_range", 0.02);
    return c;
}

/* ---- modules --------------------------------------------------------------------------------- */
static void conv(heft__skeleton *s, const char *name, uint64_t in, uint64_t out, double std)
{
    const heft__init_rule rule = {.kind = HEFT__INIT_NORMAL, .b = (float)std, .zero_row = -1};
    heft__sk_enter(s, HEFT_MODULE_LINEAR, "Conv1D", "%s", name);
    heft__sk_parameter(s, "weight", (const uint64_t[]){in, out}, 2, rule);
    heft__sk_parameter(s, "bias", &out, 1, heft__init_constant(0));
    heft__sk_leave(s);
}

static void block(heft__skeleton *s, const struct gpt2 *c)
{
    const double residual = c->std / sqrt(2.0 * (double)c->layers);
    heft__sk_layer_norm(s, "ln_1", c->hidden, true);
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "attn");
    heft__sk_cache(s, 2 * c->hidden, 0);
    conv(s, "c_attn", c->hidden, 3 * c->hidden, c->std);
    conv(s, "c_proj", c->hidden, c->hidden, residual);
    heft__sk_leave(s);
    heft__sk_layer_norm(s, "ln_2", c->hidden, true);
    if (c->cross_attention) {
        heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "crossattention");
        heft__sk_cache(s, 2 * c->hidden, 0);
        conv(s, "c_attn", c->hidden, 2 * c->hidden, c->std);
        conv(s, "q_attn", c->hidden, c->hidden, c->std);
        conv(s, "c_proj", c->hidden, c->hidden, residual);
        heft__sk_leave(s);
        heft__sk_layer_norm(s, "ln_cross_attn", c->hidden, true);
    }
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MLP", "mlp");
    conv(s, "c_fc", c->hidden, c->inner, c->std);
    conv(s, "c_proj", c->inner, c->hidden, residual);
    heft__sk_leave(s);
}

static void body(heft__skeleton *s, const struct gpt2 *c)
{
    heft__sk_embedding(s, "wte", c->vocab, c->hidden, -1);
    heft__sk_embedding(s, "wpe", c->positions, c->hidden, -1);
    for (uint64_t i = 0; i < c->layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, "*Block", "h.%llu", (unsigned long long)i);
        block(s, c);
        heft__sk_leave(s);
    }
    heft__sk_layer_norm(s, "ln_f", c->hidden, true);
}

/* The body below a head. */
static struct gpt2 transformer(heft__skeleton *s)
{
    struct gpt2 c = read_config(s);
    heft__sk_enter_body(s, "transformer");
    body(s, &c);
    heft__sk_leave(s);
    return c;
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    struct gpt2 c = read_config(s);
    body(s, &c);
}

static struct gpt2 language_model(heft__skeleton *s)
{
    struct gpt2 c = transformer(s);
    heft__sk_linear(s, "lm_head", c.hidden, c.vocab, false);
    if (c.tied) {
        heft__sk_tie(s, "lm_head.weight", "transformer.wte.weight");
    }
    return c;
}

static void lm_head(heft__skeleton *s)
{
    (void)language_model(s);
}

/* Its second head has one output, whatever number of labels the config has. */
static void double_heads(heft__skeleton *s)
{
    struct gpt2 c = language_model(s);
    const bool labels = heft__sk_flag(s, "summary_proj_to_labels", true);
    if (heft__sk_flag(s, "summary_use_proj", true)) {
        heft__sk_enter(s, HEFT_MODULE_HEAD, "*SequenceSummary", "multiple_choice_head");
        heft__sk_linear(s, "summary", c.hidden, labels ? 1 : c.hidden, true);
        heft__sk_leave(s);
    }
}

static void sequence_classes(heft__skeleton *s)
{
    struct gpt2 c = transformer(s);
    heft__sk_linear(s, "score", c.hidden, heft__sk_labels(s), false);
}

static void token_classes(heft__skeleton *s)
{
    struct gpt2 c = transformer(s);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void question_answering(heft__skeleton *s)
{
    struct gpt2 c = transformer(s);
    heft__sk_linear(s, "qa_outputs", c.hidden, 2, true);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
struct gpt2_pass {
    struct gpt2 c;
    double eps;
    heft__act act;
    heft__attention attend;
    bool by_layer; /* scores are divided by the number of the layer */
};

static void block_forward(heft__pass *p, const struct gpt2_pass *g, uint64_t i, heft__rows x)
{
    const size_t width = (size_t)g->c.hidden;
    heft__attention attend = g->attend;
    attend.scale /= g->by_layer ? (float)(i + 1) : 1;
    heft__rows qkv = heft__linear_turned(p, "attn.c_attn", heft__layer_norm(p, "ln_1", x, g->eps));
    heft__rows a = heft__attend(p, heft__columns(p, qkv, 3 * width, 0, width),
                                heft__columns(p, qkv, 3 * width, width, width),
                                heft__columns(p, qkv, 3 * width, 2 * width, width), &attend);
    heft__add(p, x, heft__linear_turned(p, "attn.c_proj", a));
    heft__rows h = heft__linear_turned(p, "mlp.c_fc", heft__layer_norm(p, "ln_2", x, g->eps));
    heft__activate(p, g->act, h);
    heft__add(p, x, heft__linear_turned(p, "mlp.c_proj", h));
}

static struct gpt2_pass begin(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    struct gpt2_pass g = {.c = read_config(s)};
    const size_t heads = heft__sk_count(s, "n_head", 12), width = (size_t)g.c.hidden / heads;
    g.eps = heft__sk_real(s, "layer_norm_epsilon", 1e-5);
    g.act = heft__act_of(p, "activation_function", "gelu_new");
    g.by_layer = heft__sk_flag(s, "scale_attn_by_inverse_layer_idx", false);
    g.attend = heft__attention_of(heads, width, true);
    if (!heft__sk_flag(s, "scale_attn_weights", true)) {
        g.attend.scale = 1;
    }
    return g;
}

/* Token types are rows of the same table as ids, added only to sequences that have them. */
static void add_types(heft__pass *p, heft__rows x)
{
    const heft__pass_inputs *in = heft__inputs(p);
    bool any = !in->typed;
    for (size_t s = 0; in->typed && s < in->sequences; s++) {
        any = any || in->typed[s];
    }
    if (!any) {
        return;
    }
    const size_t mark = heft__mark(p);
    heft__rows y = heft__embed(p, "wte", in->types, in->tokens, 0);
    for (size_t s = 0; y.x && s < in->sequences; s++) {
        const size_t first = (size_t)in->first[s],
                     end = s + 1 < in->sequences ? (size_t)in->first[s + 1] : in->tokens;
        if (!in->typed[s]) {
            memset(y.x + first * y.width, 0, (end - first) * y.width * sizeof *y.x);
        }
    }
    heft__add(p, x, y);
    heft__release(p, mark);
}

static heft__rows body_forward(heft__pass *p)
{
    const heft__pass_inputs *in = heft__inputs(p);
    const struct gpt2_pass g = begin(p);
    heft__rows x = heft__embed(p, "wte", in->ids, in->tokens, 0);
    heft__add(p, x, heft__embed(p, "wpe", in->at, in->tokens, 0));
    add_types(p, x);
    heft__out_hidden(p, 0, x);
    for (uint64_t i = 0; i < g.c.layers && heft__pass_going(p); i++) {
        heft__block(p, "h", (size_t)i);
        block_forward(p, &g, i, x);
        heft__block_end(p, x);
        if (i + 1 < g.c.layers) {
            heft__out_hidden(p, (size_t)i + 1, x);
        }
    }
    x = heft__layer_norm(p, "ln_f", x, g.eps);
    heft__out_hidden(p, (size_t)g.c.layers, x);
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    return x;
}

/* The head of choices looks at each sequence's last token, where the cls token belongs. */
static void double_heads_forward(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    const char *type = heft__sk_text(s, "summary_type", "cls_index"),
               *act = heft__sk_text(s, "summary_activation", NULL);
    heft__rows x = heft__body(p);
    heft__out(p, HEFT__OUT_WANTED, "logits", heft__linear(p, "lm_head", heft__wanted(p, x)));
    if (strcmp(type, "cls_index") != 0 && strcmp(type, "last") != 0) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "summary_type is '%s'; heft computes 'cls_index' and 'last'", type);
        return;
    }
    const heft__pass_inputs *in = heft__inputs(p);
    heft__rows choices = heft__pick(p, x, in->last, in->sequences);
    if (heft__has(p, "multiple_choice_head.summary")) {
        choices = heft__linear(p, "multiple_choice_head.summary", choices);
    }
    if (act) {
        heft__activate(p, heft__act_of(p, "summary_activation", act), choices);
    }
    heft__out(p, HEFT__OUT_SEQUENCES, "mc_logits", choices);
}

static const heft__class classes[] = {
    {"GPT2Model",                     "AutoModel",                          base_model,         heft__base_forward       },
    {"GPT2LMHeadModel",               "AutoModelForCausalLM",               lm_head,            decoder_causal_lm_forward},
    {"GPT2DoubleHeadsModel",          NULL,                                 double_heads,       double_heads_forward     },
    {"GPT2ForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                    },
    {"GPT2ForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                       },
    {"GPT2ForQuestionAnswering",      "AutoModelForQuestionAnswering",      question_answering,
     decoder_question_answering_forward                                                                                  },
    {NULL,                            NULL,                                 NULL,               NULL                     },
};

static const char *const no_split[] = {"GPT2Block", NULL};
/* masks of older files */
static const char *const ignore_unexpected[] = {"attn.bias", "crossattention.bias", NULL};
static const char *const other_keys[][2] = {
    {"n_embd",      "hidden_size"            },
    {"n_layer",     "num_hidden_layers"      },
    {"n_head",      "num_attention_heads"    },
    {"n_positions", "max_position_embeddings"},
    {NULL,          NULL                     },
};

extern const heft__family heft__family_gpt2; /* registry.c has a line for it */
const heft__family heft__family_gpt2 = {
    .model_type = "gpt2",
    .base_prefix = "transformer",
    .class_prefix = "GPT2",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .other_keys = other_keys,
    .body = body_forward,
};
