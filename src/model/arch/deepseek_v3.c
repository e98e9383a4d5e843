/* deepseek_v3.c - DeepSeek V3 and R1: latent attention, dense layers first, then experts.
 *
 *   model.embed_tokens -> model.layers.0 .. N-1 -> model.norm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/mixture.h"

#include <math.h>

static const struct decoder standard = {.vocab = 129280,
                                        .hidden = 7168,
                                        .layers = 61,
                                        .intermediate = 18432,
                                        .heads = 128,
                                        .kv_heads = 128,
                                        .head_dim = 64,
                                        .padding_row = -1,
                                        .tied = false,
                                        .std = 0.02};

struct deepseek {
    uint64_t q_rank; /* 0: queries are not compressed */
    uint64_t kv_rank, nope_dim, rope_dim, value_dim;
    uint64_t dense_layers, shared_width;
    bool bias;
    struct experts experts;
};

static struct deepseek read_config(heft__skeleton *s, const struct decoder *c)
{
    struct deepseek d = {
        .q_rank = heft__sk_count_or(s, "q_lora_rank", 1536, 0),
        .kv_rank = heft__sk_count(s, "kv_lora_rank", 512),
        .nope_dim = heft__sk_count(s, "qk_nope_head_dim", 128),
        .rope_dim = heft__sk_count(s, "qk_rope_head_dim", 64),
        .value_dim = heft__sk_count(s, "v_head_dim", 128),
        .bias = heft__sk_flag(s, "attention_bias", false),
        .experts = {.count = heft__sk_layers(s, "n_routed_experts", 256),
                    .hidden = c->hidden,
                    .intermediate = heft__sk_count(s, "moe_intermediate_size", 2048),
                    .gate = "gate_proj",
                    .up = "up_proj",
                    .down = "down_proj"},
    };
    int64_t dense = heft__sk_integer(s, "first_k_dense_replace", 3);
    d.dense_layers = dense < 0 ? 0 : (uint64_t)dense;
    d.shared_width = d.experts.intermediate * heft__sk_count(s, "n_shared_experts", 1);
    return d;
}

/* ---- modules --------------------------------------------------------------------------------- */
static void attention(heft__skeleton *s, const struct decoder *c, const struct deepseek *d)
{
    const uint64_t q_width = c->heads * (d->nope_dim + d->rope_dim);
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    heft__sk_cache(s, d->kv_rank + d->rope_dim,
                   0); /* the latent of all heads, and one rotated key */
    if (d->q_rank) {
        heft__sk_linear(s, "q_a_proj", c->hidden, d->q_rank, d->bias);
        heft__sk_rms_norm(s, "q_a_layernorm", d->q_rank, 1);
        heft__sk_linear(s, "q_b_proj", d->q_rank, q_width, false);
    } else {
        heft__sk_linear(s, "q_proj", c->hidden, q_width, false);
    }
    heft__sk_linear(s, "kv_a_proj_with_mqa", c->hidden, d->kv_rank + d->rope_dim, d->bias);
    heft__sk_rms_norm(s, "kv_a_layernorm", d->kv_rank, 1);
    heft__sk_linear(s, "kv_b_proj", d->kv_rank, c->heads * (d->nope_dim + d->value_dim), false);
    heft__sk_linear(s, "o_proj", c->heads * d->value_dim, c->hidden, d->bias);
    heft__sk_leave(s);
}

static void mixture(heft__skeleton *s, const struct decoder *c, const struct deepseek *d)
{
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MoE", "mlp");
    mixture_experts(s, &d->experts);
    heft__sk_enter(s, HEFT_MODULE_ROUTER, "*TopkRouter", "gate"); /* spelled so */
    heft__sk_matrix(s, c->hidden, d->experts.count, false);
    heft__sk_buffer(s, "e_score_correction_bias", heft__sk_dtype(s), &d->experts.count, 1, true,
                    heft__init_constant(0));
    heft__sk_leave(s);
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MLP", "shared_experts");
    decoder_gated_matrices(s, c->hidden, d->shared_width, false);
    heft__sk_leave(s);
    heft__sk_leave(s);
}

static struct decoder body(heft__skeleton *s)
{
    struct decoder c = decoder_read(s, &standard);
    const struct deepseek d = read_config(s, &c);
    decoder_embeddings(s, &c);
    for (uint64_t i = 0; i < c.layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, "*DecoderLayer", "layers.%llu", (unsigned long long)i);
        attention(s, &c, &d);
        if (i < d.dense_layers) {
            decoder_gated_mlp(s, c.hidden, c.intermediate, false);
        } else {
            mixture(s, &c, &d);
        }
        heft__sk_rms_norm(s, "input_layernorm", c.hidden, 1);
        heft__sk_rms_norm(s, "post_attention_layernorm", c.hidden, 1);
        heft__sk_leave(s);
    }
    heft__sk_rms_norm(s, "norm", c.hidden, 1);
    heft__sk_rotary(s, NULL, d.rope_dim);
    heft__sk_natural_order(s);
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
struct deepseek_pass {
    struct deepseek c;
    heft__routing routing;
};

/* Keys and values of all heads are products with the latent: queries are multiplied with the keys' part of
 * kv_b_proj instead, and sums of latents with the values' part, so that the cache has the latent only. */
static heft__rows attention_forward(heft__pass *p, const struct decoder_pass *d,
                                    const struct deepseek *c, heft__rows h)
{
    const size_t heads = d->attend.heads, rank = (size_t)c->kv_rank, rope = (size_t)c->rope_dim;
    const size_t nope = (size_t)c->nope_dim, value = (size_t)c->value_dim, width = rank + rope;
    heft__slab keys = {.weight = "kv_b_proj.weight", .count = heads, .width = rank, .turned = true};
    heft__slab values = {
        .weight = "kv_b_proj.weight", .count = heads, .first = nope, .rows = value};
    heft__enter(p, "self_attn");
    heft__rows q = c->q_rank ? heft__linear(p, "q_b_proj",
                                            heft__rms_norm(p, "q_a_layernorm",
                                                           heft__linear(p, "q_a_proj", h), 1e-6, 0))
                             : heft__linear(p, "q_proj", h);
    heft__rotate(p, q, heads, nope, &d->rope);
    heft__rows latent = heft__linear(p, "kv_a_proj_with_mqa", h);
    heft__rotate(p, latent, 1, rank, &d->rope);
    heft__put(
        p, latent, 0,
        heft__rms_norm(p, "kv_a_layernorm", heft__columns(p, latent, width, 0, rank), 1e-6, 0));
    heft__rows wide = heft__zeros(p, h.count, heads * width),
               y = heft__zeros(p, h.count, heads * value);
    for (size_t i = 0; i < heads && heft__pass_going(p); i++) {
        keys.index = i;
        heft__rows one = heft__columns(p, q, q.width, i * (nope + rope), nope + rope);
        heft__put(p, wide, i * width,
                  heft__linear_slab(p, &keys, heft__columns(p, one, one.width, 0, nope)));
        heft__put(p, wide, i * width + rank, heft__columns(p, one, one.width, nope, rope));
    }
    heft__rows a = heft__attend(p, wide, latent, (heft__rows){.count = h.count}, &d->attend);
    for (size_t i = 0; i < heads && heft__pass_going(p); i++) {
        values.index = i;
        heft__put(p, y, i * value,
                  heft__linear_slab(p, &values, heft__columns(p, a, a.width, i * rank, rank)));
    }
    y = heft__linear(p, "o_proj", y);
    heft__leave(p);
    return y;
}

static void mlp_forward(heft__pass *p, const struct decoder_pass *d, const struct deepseek_pass *m,
                        heft__rows x, heft__rows h)
{
    heft__enter(p, "mlp");
    if (d->c.layer < m->c.dense_layers) {
        heft__add(p, x, decoder_gated(p, d->act, h));
    } else {
        heft__routing routing = m->routing;
        routing.bias = heft__parameter(p, "gate.e_score_correction_bias", 1).x;
        heft__rows y =
            mixture_forward(p, &m->c.experts, &routing, d->act, heft__linear(p, "gate", h), h);
        heft__enter(p, "shared_experts");
        heft__add(p, y, decoder_gated(p, d->act, h));
        heft__leave(p);
        heft__add(p, x, y);
    }
    heft__leave(p);
}

static void layer_forward(heft__pass *p, const struct decoder_pass *d, heft__rows x,
                          const void *user)
{
    const struct deepseek_pass *m = user;
    heft__rows h = heft__rms_norm(p, "input_layernorm", x, d->eps, 0);
    heft__add(p, x, attention_forward(p, d, &m->c, h));
    mlp_forward(p, d, m, x, heft__rms_norm(p, "post_attention_layernorm", x, d->eps, 0));
}

static heft__rows body_forward(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    struct decoder_pass d = decoder_begin(p, &standard, "rms_norm_eps");
    const struct deepseek_pass m = {
        .c = read_config(s, &d.c),
        .routing = {.scoring = HEFT__SIGMOID_GROUPS,
                    .experts = heft__sk_layers(s, "n_routed_experts", 256),
                    .top = heft__sk_count(s, "num_experts_per_tok", 8),
                    .normalize = heft__sk_flag(s, "norm_topk_prob", true),
                    .scale = (float)heft__sk_real(s, "routed_scaling_factor", 2.5),
                    .groups = heft__sk_count(s, "n_group", 8),
                    .top_groups = heft__sk_count(s, "topk_group", 4)}
    };
    const double sharper = heft__sk_rotary_mscale(s);
    d.attend.kv_heads = 1;
    d.attend.key_width = (size_t)(m.c.kv_rank + m.c.rope_dim);
    d.attend.value_width = (size_t)m.c.kv_rank;
    d.attend.scale = (float)(sharper * sharper / sqrt((double)(m.c.nope_dim + m.c.rope_dim)));
    d.rope = heft__rope_table(p, NULL, (size_t)m.c.rope_dim);
    d.rope.interleaved = heft__sk_flag(s, "rope_interleave", true);
    heft__rows x = decoder_layers_forward(p, &d, layer_forward, &m);
    return decoder_finish(p, &d, heft__rms_norm(p, "norm", x, d.eps, 0));
}

static const heft__class classes[] = {
    {"DeepseekV3Model",                     "AutoModel",                          base_model,       heft__base_forward       },
    {"DeepseekV3ForCausalLM",               "AutoModelForCausalLM",               causal_lm,        decoder_causal_lm_forward},
    {"DeepseekV3ForSequenceClassification", "AutoModelForSequenceClassification", sequence_classes,
     decoder_sequence_classes_forward                                                                                        },
    {"DeepseekV3ForTokenClassification",    "AutoModelForTokenClassification",    token_classes,
     decoder_token_classes_forward                                                                                           },
    {NULL,                                  NULL,                                 NULL,             NULL                     },
};

static const char *const no_split[] = {"DeepseekV3DecoderLayer", NULL};
/* the layer that predicts the next but one token: published files hold it, the model does not */
static const char *const ignore_unexpected[] = {"model.layers.61.", "rotary_emb.inv_freq", NULL};
static const char *const keep_f32_strict[] = {"e_score_correction_bias", NULL};
static const char *const other_keys[][2] = {
    {"n_routed_experts", "num_local_experts"},
    {NULL,               NULL               }
};

extern const heft__family heft__family_deepseek_v3; /* registry.c has a line for it */
const heft__family heft__family_deepseek_v3 = {
    .model_type = "deepseek_v3",
    .base_prefix = "model",
    .class_prefix = "DeepseekV3",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
    .keep_f32_strict = keep_f32_strict,
    .other_keys = other_keys,
    .body = body_forward,
    .rope_length = 4096,
};
