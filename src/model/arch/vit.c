/* vit.c - the Vision Transformer and its heads.
 *
 *   embeddings -> encoder.layer.0 .. N-1 -> layernorm -> a head
 *
 * Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/encoder.h"

struct vit {
    uint64_t hidden, layers, intermediate, channels, image[2], patch[2];
    bool bias;
};

static struct vit read_config(heft__skeleton *s)
{
    struct vit c = {
        .hidden = heft__sk_count(s, "hidden_size", 768),
        .layers = heft__sk_layers(s, "num_hidden_layers", 12),
        .intermediate = heft__sk_count(s, "intermediate_size", 3072),
        .channels = heft__sk_count(s, "num_channels", 3),
        .bias = heft__sk_flag(s, "qkv_bias", true),
    };
    const uint64_t heads = heft__sk_count(s, "num_attention_heads", 12);
    heft__sk_pair(s, "image_size", 224, c.image);
    heft__sk_pair(s, "patch_size", 16, c.patch);
    if (c.hidden % heads) {
        heft__sk_fail(s, HEFT_FORMAT, "num_attention_heads",
                      "expected a divisor of hidden_size, %llu, found %llu",
                      (unsigned long long)c.hidden, (unsigned long long)heads);
    }
    heft__sk_initializer_range(s, 0.02);
    return c;
}

/* ---- modules --------------------------------------------------------------------------------- */
static void embeddings(heft__skeleton *s, const struct vit *c, bool mask_token)
{
    const uint64_t patches = (c->image[0] / c->patch[0]) * (c->image[1] / c->patch[1]);
    const heft__init_rule cut = {.kind = HEFT__INIT_TRUNC_NORMAL,
                                 .b = heft__sk_normal(s).b,
                                 .low = -2,
                                 .high = 2,
                                 .zero_row = -1};
    heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "*Embeddings", "embeddings");
    heft__sk_parameter(s, "cls_token", (const uint64_t[]){1, 1, c->hidden}, 3, cut);
    if (mask_token) {
        heft__sk_parameter(s, "mask_token", (const uint64_t[]){1, 1, c->hidden}, 3,
                           heft__init_constant(0));
    }
    heft__sk_parameter(s, "position_embeddings", (const uint64_t[]){1, patches + 1, c->hidden}, 3,
                       cut);
    heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "*PatchEmbeddings", "patch_embeddings");
    heft__sk_enter(s, HEFT_MODULE_CONVOLUTION, "Conv2d", "projection");
    heft__sk_parameter(s, "weight",
                       (const uint64_t[]){c->hidden, c->channels, c->patch[0], c->patch[1]}, 4,
                       heft__sk_normal(s));
    heft__sk_parameter(s, "bias", &c->hidden, 1, heft__init_constant(0));
    heft__sk_leave(s);
    heft__sk_leave(s);
    heft__sk_leave(s);
}

/* A module around one matrix that files have and Transformers no longer has in memory. */
static void wrapped(heft__skeleton *s, const char *name, uint64_t in, uint64_t out)
{
    heft__sk_enter(s, HEFT_MODULE_OTHER, "", "%s", name);
    heft__sk_linear(s, "dense", in, out, true);
    heft__sk_leave(s);
}

static void layer(heft__skeleton *s, const struct vit *c)
{
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "attention");
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "", "attention");
    heft__sk_linear(s, "query", c->hidden, c->hidden, c->bias);
    heft__sk_linear(s, "key", c->hidden, c->hidden, c->bias);
    heft__sk_linear(s, "value", c->hidden, c->hidden, c->bias);
    heft__sk_leave(s);
    wrapped(s, "output", c->hidden, c->hidden);
    heft__sk_leave(s);
    wrapped(s, "intermediate", c->hidden, c->intermediate);
    wrapped(s, "output", c->intermediate, c->hidden);
    heft__sk_layer_norm(s, "layernorm_before", c->hidden, true);
    heft__sk_layer_norm(s, "layernorm_after", c->hidden, true);
}

static struct vit body(heft__skeleton *s, bool mask_token, bool pooler)
{
    struct vit c = read_config(s);
    embeddings(s, &c, mask_token);
    heft__sk_enter(s, HEFT_MODULE_MODEL, "", "encoder"); /* of files only */
    for (uint64_t i = 0; i < c.layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, "*Layer", "layer.%llu", (unsigned long long)i);
        layer(s, &c);
        heft__sk_leave(s);
    }
    heft__sk_leave(s);
    heft__sk_layer_norm(s, "layernorm", c.hidden, true);
    if (pooler) {
        uint64_t width = heft__sk_count_or(s, "pooler_output_size", c.hidden, c.hidden);
        heft__sk_enter(s, HEFT_MODULE_OTHER, "*Pooler", "pooler");
        heft__sk_linear(s, "dense", c.hidden, width, true);
        heft__sk_leave(s);
    }
    heft__sk_natural_order(s);
    return c;
}

/* The body below a head. */
static struct vit vit(heft__skeleton *s, bool mask_token)
{
    heft__sk_enter_body(s, "vit");
    struct vit c = body(s, mask_token, false);
    heft__sk_leave(s);
    return c;
}

/* ---- classes --------------------------------------------------------------------------------- */
static void base_model(heft__skeleton *s)
{
    (void)body(s, false, true);
}

static void image_classes(heft__skeleton *s)
{
    struct vit c = vit(s, false);
    heft__sk_linear(s, "classifier", c.hidden, heft__sk_labels(s), true);
}

static void masked_image(heft__skeleton *s)
{
    struct vit c = vit(s, true);
    const uint64_t stride = heft__sk_layers(s, "encoder_stride", 16),
                   pixels = stride * stride * c.channels;
    heft__sk_enter(s, HEFT_MODULE_HEAD, "Sequential", "decoder");
    heft__sk_enter(s, HEFT_MODULE_CONVOLUTION, "Conv2d", "0");
    heft__sk_parameter(s, "weight", (const uint64_t[]){pixels, c.hidden, 1, 1}, 4,
                       heft__sk_normal(s));
    heft__sk_parameter(s, "bias", &pixels, 1, heft__init_constant(0));
    heft__sk_leave(s);
    heft__sk_leave(s);
}

/* ---- forward pass ---------------------------------------------------------------------------- */
static void layer_forward(heft__pass *p, const heft__attention *a, heft__act act, double eps,
                          heft__rows x)
{
    heft__rows h = heft__layer_norm(p, "layernorm_before", x, eps);
    heft__enter(p, "attention");
    h = heft__attend(p, heft__linear(p, "attention.query", h), heft__linear(p, "attention.key", h),
                     heft__linear(p, "attention.value", h), a);
    heft__add(p, x, heft__linear(p, "output.dense", h));
    heft__leave(p);
    h = heft__linear(p, "intermediate.dense", heft__layer_norm(p, "layernorm_after", x, eps));
    heft__activate(p, act, h);
    heft__add(p, x, heft__linear(p, "output.dense", h));
}

static heft__rows body_forward(heft__pass *p)
{
    heft__skeleton *s = heft__pass_config(p);
    const struct vit c = read_config(s);
    const size_t heads = heft__sk_count(s, "num_attention_heads", 12),
                 width = heads ? (size_t)c.hidden / heads : 0;
    const double eps = heft__sk_real(s, "layer_norm_eps", 1e-12);
    const heft__act act = heft__act_of(p, "hidden_act", "gelu");
    const heft__attention attend = heft__attention_of(heads, width, false);
    heft__enter(p, "embeddings");
    heft__rows x = heft__linear(p, "patch_embeddings.projection",
                                heft__patches(p, (size_t)c.patch[0], (size_t)c.patch[1]));
    x = heft__prepend(p, heft__parameter(p, "cls_token", 0), x);
    heft__add_tiled(p, x, heft__parameter(p, "position_embeddings", 0));
    heft__leave(p);
    heft__out_hidden(p, 0, x);
    for (uint64_t i = 0; i < c.layers && heft__pass_going(p); i++) {
        heft__block(p, "encoder.layer", (size_t)i);
        layer_forward(p, &attend, act, eps, x);
        heft__block_end(p, x);
        heft__out_hidden(p, (size_t)i + 1, x);
    }
    x = heft__layer_norm(p, "layernorm", x, eps);
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    if (heft__has(p, "pooler")) {
        heft__rows pooled = heft__linear(p, "pooler.dense", encoder_first_rows(p, x));
        heft__activate(p, heft__act_of(p, "pooler_act", "tanh"), pooled);
        heft__out(p, HEFT__OUT_SEQUENCES, "pooler_output", pooled);
    }
    return x;
}

static void image_classes_forward(heft__pass *p)
{
    heft__rows x = encoder_first_rows(p, heft__body(p));
    heft__out(p, HEFT__OUT_SEQUENCES, "logits", heft__linear(p, "classifier", x));
}

static void masked_image_forward(heft__pass *p)
{
    const uint64_t stride = heft__sk_layers(heft__pass_config(p), "encoder_stride", 16);
    heft__rows x = heft__linear(p, "decoder.0", heft__body(p));
    heft__out(p, HEFT__OUT_SEQUENCES, "reconstruction", heft__pixels(p, x, 1, (size_t)stride));
}

/* An image of the config's size: a token for each patch, and one for its class. */
static size_t features(heft__skeleton *s, size_t shape[3])
{
    const struct vit c = read_config(s);
    shape[0] = (size_t)c.channels;
    shape[1] = (size_t)c.image[0];
    shape[2] = (size_t)c.image[1];
    return (size_t)((c.image[0] / c.patch[0]) * (c.image[1] / c.patch[1])) + 1;
}

static const heft__class classes[] = {
    {"ViTModel",                  "AutoModel",                       base_model,    heft__base_forward},
    {"ViTForImageClassification", "AutoModelForImageClassification", image_classes,
     image_classes_forward                                                                            },
    {"ViTForMaskedImageModeling", "AutoModelForMaskedImageModeling", masked_image,
     masked_image_forward                                                                             },
    {NULL,                        NULL,                              NULL,          NULL              },
};

static const char *const no_split[] = {"ViTEmbeddings", "ViTLayer", NULL};
static const char *const inner_names[][2] = {
    {"encoder.layer",             "layers"          },
    {"attention.attention.query", "attention.q_proj"},
    {"attention.attention.key",   "attention.k_proj"},
    {"attention.attention.value", "attention.v_proj"},
    {"attention.output.dense",    "attention.o_proj"},
    {"intermediate.dense",        "mlp.fc1"         },
    {"output.dense",              "mlp.fc2"         },
    {NULL,                        NULL              },
};

extern const heft__family heft__family_vit; /* registry.c has a line for it */
const heft__family heft__family_vit = {
    .model_type = "vit",
    .base_prefix = "vit",
    .class_prefix = "ViT",
    .classes = classes,
    .no_split = no_split,
    .inner_names = inner_names,
    .body = body_forward,
    .features = features,
};
