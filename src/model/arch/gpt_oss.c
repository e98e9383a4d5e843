/* gpt_oss.c - GPT-OSS: experts stacked in the files too, attention with sinks.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/decoder.h"

#include <math.h>

static const struct decoder standard = {.vocab = 201088,
                                        .hidden = 2880,
                                        .layers = 36,
                                        .intermediate = 2880,
                                        .heads = 64,
                                        .kv_heads = 8,
                                        .head_dim = 64,
                                        .padding_row = -1,
                                        .tied = false,
                                        .std = 0.02,
                                        .windows = DECODER_EVEN_WINDOWS,
                                        .window = 128};

/* Here a matrix maps rows to columns: the input is the last dimension but one. */
static void experts(heft__skeleton *s, const struct decoder *c, uint64_t count)
{
    const uint64_t both = 2 * c->intermediate;
    heft__sk_enter(s, HEFT_MODULE_EXPERTS, "*Experts", "experts");
    heft__sk_parameter(s, "gate_up_proj", (const uint64_t[]){count, c->hidden, both}, 3,
                       heft__sk_normal(s));
    heft__sk_parameter(s, "gate_up_proj_bias", (const uint64_t[]){count, both}, 2,
                       heft__init_constant(0));
    heft__sk_parameter(s, "down_proj", (const uint64_t[]){count, c->intermediate, c->hidden}, 3,
                       heft__sk_normal(s));
    heft__sk_parameter(s, "down_proj_bias", (const uint64_t[]){count, c->hidden}, 2,
                       heft__init_constant(0));
    heft__sk_leave(s);
}

static void layer(heft__skeleton *s, const struct decoder *c, const void *flags)
{
    const uint64_t *count = flags;
    const bool bias = heft__sk_flag(s, "attention_bias", true);
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    heft__sk_parameter(s, "sinks", &c->heads, 1, heft__sk_normal(s));
    decoder_projections(s, c, bias, bias);
    heft__sk_leave(s);
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MLP", "mlp");
    heft__sk_enter(s, HEFT_MODULE_ROUTER, "*TopKRouter", "router");
    heft__sk_parameter(s, "weight", (const uint64_t[]){*count, c->hidden}, 2, heft__sk_normal(s));
    heft__sk_parameter(s, "bias", count, 1, heft__sk_normal(s));
    heft__sk_leave(s);
    experts(s, c, *count);
    heft__sk_leave(s);
    heft__sk_rms_norm(s, "input_layernorm", c->hidden, 1);
    heft__sk_rms_norm(s, "post_attention_layernorm", c->hidden, 1);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const uint64_t count = heft__sk_count(s, "num_local_experts", 128);
    decoder_embeddings(s, &c);
    decoder_layers(s, &c, layer, &count);
    heft__sk_rms_norm(s, "norm", c.hidden, 1);
    heft__sk_rotary(s, NULL, c.head_dim);
    return c;
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    (void)body(s);
}

static void causal_lm(heft__skeleton *s)
{
    decoder_causal_lm(s, body, false);
}

static void sequence_classes(heft__skeleton *s)
{
    decoder_sequence_classes(s, body);
}

static void token_classes(heft__skeleton *s)
{
    decoder_token_classes(s, body);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
struct gpt_oss_pass {
    heft__routing routing;
    double limit; /* of gate and up */
};

/* One expert: gate and up are every second column; (up + 1) * gate * sigmoid(1.702 gate), both cut. */
static heft__rows expert_forward(heft__pass *p, const struct gpt_oss_pass *m, size_t i,
                                 heft__rows z)
{
    const heft__slab in = {.weight = "gate_up_proj",
                           .bias = "gate_up_proj_bias",
                           .index = i,
                           .count = m->routing.experts,
                           .turned = true};
    const heft__slab out = {.weight = "down_proj",
                            .bias = "down_proj_bias",
                            .index = i,
                            .count = m->routing.experts,
                            .turned = true};
    heft__rows both = heft__linear_slab(p, &in, z);
    heft__rows gate = heft__columns(p, both, 2, 0, 1), up = heft__columns(p, both, 2, 1, 1);
    heft__clamp(p, gate, -HUGE_VAL, m->limit);
    heft__clamp(p, up, -m->limit, m->limit);
    heft__activate(p, HEFT__ACT_QUICK_GELU, gate);
    heft__rows y = heft__copy(p, gate);
    heft__multiply(p, y, up);
    heft__add(p, y, gate);
    return heft__linear_slab(p, &out, y);
}

static heft__rows experts_forward(heft__pass *p, const struct gpt_oss_pass *m, heft__rows h)
{
    heft__rows y = heft__zeros(p, h.count, h.width);
    const heft__routes routes = heft__route(p, heft__linear(p, "router", h), &m->routing);
    heft__expect(p, "experts", &routes, m->routing.experts);
    for (size_t i = 0; i < m->routing.experts && heft__pass_going(p); i++) {
        if (heft__routed_count(p, &routes, i) > 0) {
            heft__section_of_stack(p, "experts");
            heft__add_routed(p, y, &routes, i,
                             expert_forward(p, m, i, heft__routed(p, h, &routes, i)));
            heft__section_end(p);
        }
    }
    return y;
}

static void layer_forward(heft__pass *p, const struct decoder_pass *d, heft__rows x,
                          const void *user)
{
    struct decoder_pass layer = *d;
    layer.attend.sinks = heft__parameter(p, "self_attn.sinks", 1).x;
    decoder_attention(p, &layer, x, heft__rms_norm(p, "input_layernorm", x, d->eps, 0));
    heft__rows h = heft__rms_norm(p, "post_attention_layernorm", x, d->eps, 0);
    heft__enter(p, "mlp");
    heft__add(p, x, experts_forward(p, user, h));
    heft__leave(p);
}

static heft__rows body_forward(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    struct decoder_pass d = decoder_begin(p, &standard, "rms_norm_eps");
    const struct gpt_oss_pass m = {
        .routing = {.scoring = HEFT__TOP_THEN_SOFTMAX,
                    .experts = heft__sk_count(s, "num_local_experts", 128),
                    .top = heft__sk_count(s, "num_experts_per_tok", 4),
                    .scale = 1},
        .limit = heft__sk_real(s, "swiglu_limit", 7)
    };
    d.eps = heft__sk_real(s, "rms_norm_eps", 1e-5);
    if (fabs(heft__sk_real(s, "swiglu_alpha", 1.702) - 1.702) > 1e-9) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "swiglu_alpha: heft computes with 1.702 only");
    }
    d.rope = heft__rope_table(p, NULL, (size_t)d.c.head_dim);
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, &m);
    return decoder_finish(p, &d, heft__rms_norm(p, "norm", x, d.eps, 0));
}

static const heft__class classes[] = {
    {"GptOssModel",                     "AutoModel",                          base_model,       heft__base_forward       },
    {"GptOssForCausalLM",               "AutoModelForCausalLM",               causal_lm,        decoder_causal_lm_forward},
    {"GptOssForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                    },
    {"GptOssForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                       },
    {NULL,                              NULL,                                 NULL,             NULL                     },
};

static const char *const no_split[] = {"GptOssDecoderLayer", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"rotary_emb.inv_freq", NULL};
static const char *const keep_f32[] = {"input_layernorm", "norm", "post_attention_layernorm", NULL};
static const char *const other_keys[][2] = {
    {"num_local_experts", "num_experts"},
    {NULL,                NULL         }
};

extern const heft__family heft__family_gpt_oss; /* registry.c has a line for it */
const heft__family heft__family_gpt_oss = {
    .model_type = "gpt_oss",
    .base_prefix = "model",
    .class_prefix = "GptOss",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .keep_f32 = keep_f32,
    .other_keys = other_keys,
    .body = body_forward,
    .rope_theta = 150000,
    .rope_length = 131072,
    .rope_factor = 32,
    .rope_original = 4096,
};
