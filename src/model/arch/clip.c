/* clip.c - CLIP: a model of texts, one of images, and both with projections.
 *
 *   text_model.embeddings -> text_model.encoder.layers.0 .. N-1 -> text_model.final_layer_norm
 *   vision_model.embeddings -> vision_model.encoder.layers.0 .. M-1 -> vision_model.post_layernorm
 *
 * The models of texts and of images alone are model types of their own, and have their config on
 * top. Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/model.h"

#include <math.h>

struct clip {
    uint64_t hidden, layers, intermediate, projection;
    double factor; /* of all initial values */
};

/* The config of one half: nested in CLIP's own, or on top. */
static struct clip read_config(heft__skeleton *s, const char *nested, uint64_t hidden,
                               uint64_t heads, uint64_t intermediate)
{
    if (heft__sk_has(s, nested)) {
        heft__sk_config_enter(s, nested);
    }
    struct clip c = {
        .hidden = heft__sk_count(s, "hidden_size", hidden),
        .layers = heft__sk_layers(s, "num_hidden_layers", 12),
        .intermediate = heft__sk_count(s, "intermediate_size", intermediate),
        .projection = heft__sk_count(s, "projection_dim", 512),
        .factor = heft__sk_real(s, "initializer_factor", 1),
    };
    heads = heft__sk_count(s, "num_attention_heads", heads);
    if (c.hidden % heads) {
        heft__sk_fail(s, HEFT_FORMAT, "num_attention_heads",
                      "expected a divisor of hidden_size, %llu, found %llu",
                      (unsigned long long)c.hidden, (unsigned long long)heads);
    }
    return c;
}

/* ---- modules --------------------------------------------------------------------------------- */
static void linear(heft__skeleton *s, const char *name, uint64_t in, uint64_t out, double std)
{
    heft__sk_std(s, std);
    heft__sk_linear(s, name, in, out, true);
}

static void layer(heft__skeleton *s, const struct clip *c)
{
    const double width = (double)c->hidden, outward = c->factor / sqrt(width),
                 inward = outward / sqrt(2 * (double)c->layers);
    heft__sk_enter(s, HEFT_MODULE_ATTENTION, "*Attention", "self_attn");
    linear(s, "k_proj", c->hidden, c->hidden, inward);
    linear(s, "v_proj", c->hidden, c->hidden, inward);
    linear(s, "q_proj", c->hidden, c->hidden, inward);
    linear(s, "out_proj", c->hidden, c->hidden, outward);
    heft__sk_leave(s);
    heft__sk_layer_norm(s, "layer_norm1", c->hidden, true);
    heft__sk_enter(s, HEFT_MODULE_MLP, "*MLP", "mlp");
    linear(s, "fc1", c->hidden, c->intermediate, c->factor / sqrt(2 * width));
    linear(s, "fc2", c->intermediate, c->hidden, inward);
    heft__sk_leave(s);
    heft__sk_layer_norm(s, "layer_norm2", c->hidden, true);
}

static void layers(heft__skeleton *s, const struct clip *c)
{
    heft__sk_enter(s, HEFT_MODULE_MODEL, "*Encoder", "encoder");
    for (uint64_t i = 0; i < c->layers && heft__sk_going(s); i++) {
        heft__sk_enter(s, HEFT_MODULE_LAYER, "*EncoderLayer", "layers.%llu", (unsigned long long)i);
        layer(s, c);
        heft__sk_leave(s);
    }
    heft__sk_leave(s);
}

static void position_ids(heft__skeleton *s, uint64_t positions)
{
    const heft__init_rule counting = {.kind = HEFT__INIT_ARANGE, .zero_row = -1};
    heft__sk_buffer(s, "position_ids", HEFT_DTYPE_I64, (const uint64_t[]){1, positions}, 2, false,
                    counting);
}

static struct clip text(heft__skeleton *s)
{
    struct clip c = read_config(s, "text_config", 512, 8, 2048);
    const uint64_t positions = heft__sk_count(s, "max_position_embeddings", 77);
    heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "*TextEmbeddings", "embeddings");
    position_ids(s, positions);
    heft__sk_std(s, 0.02 * c.factor);
    heft__sk_embedding(s, "token_embedding", heft__sk_count(s, "vocab_size", 49408), c.hidden, -1);
    heft__sk_embedding(s, "position_embedding", positions, c.hidden, -1);
    heft__sk_leave(s);
    layers(s, &c);
    heft__sk_layer_norm(s, "final_layer_norm", c.hidden, true);
    heft__sk_config_leave(s);
    return c;
}

static struct clip vision(heft__skeleton *s)
{
    struct clip c = read_config(s, "vision_config", 768, 12, 3072);
    const uint64_t image = heft__sk_count(s, "image_size", 224),
                   patch = heft__sk_count(s, "patch_size", 32),
                   positions = (image / patch) * (image / patch) + 1;
    const double range = heft__sk_real(s, "initializer_range", 0.02);
    heft__sk_enter(s, HEFT_MODULE_EMBEDDING, "*VisionEmbeddings", "embeddings");
    position_ids(s, positions);
    heft__sk_std(s, c.factor / sqrt((double)c.hidden));
    heft__sk_parameter(s, "class_embedding", &c.hidden, 1, heft__sk_normal(s));
    heft__sk_std(s, range * c.factor);
    heft__sk_enter(s, HEFT_MODULE_CONVOLUTION, "Conv2d", "patch_embedding");
    heft__sk_parameter(
        s, "weight",
        (const uint64_t[]){c.hidden, heft__sk_count(s, "num_channels", 3), patch, patch}, 4,
        heft__sk_normal(s));
    heft__sk_leave(s);
    heft__sk_embedding(s, "position_embedding", positions, c.hidden, -1);
    heft__sk_leave(s);
    heft__sk_layer_norm(s, "pre_layrnorm", c.hidden, true); /* spelled like this in Transformers */
    layers(s, &c);
    heft__sk_layer_norm(s, "post_layernorm", c.hidden, true);
    heft__sk_config_leave(s);
    return c;
}

static struct clip text_below(heft__skeleton *s)
{
    heft__sk_enter(s, HEFT_MODULE_MODEL, "*TextModel", "text_model");
    const struct clip c = text(s);
    heft__sk_leave(s);
    return c;
}

static struct clip vision_below(heft__skeleton *s)
{
    heft__sk_enter(s, HEFT_MODULE_MODEL, "*VisionModel", "vision_model");
    const struct clip c = vision(s);
    heft__sk_leave(s);
    return c;
}

static void projection(heft__skeleton *s, const char *name, const struct clip *c, uint64_t width)
{
    heft__sk_std(s, c->factor / sqrt((double)c->hidden));
    heft__sk_linear(s, name, c->hidden, width, false);
}

/* ---- classes --------------------------------------------------------------------------------- */
static void both(heft__skeleton *s)
{
    const double scale = heft__sk_real(s, "logit_scale_init_value", 2.6592);
    heft__sk_parameter(s, "logit_scale", NULL, 0, heft__init_constant((float)scale));
    const uint64_t width = heft__sk_count(s, "projection_dim", 512);
    const struct clip t = text_below(s), v = vision_below(s);
    projection(s, "visual_projection", &v, width);
    projection(s, "text_projection", &t, width);
}

static void image_classes(heft__skeleton *s)
{
    const struct clip c = vision_below(s);
    linear(s, "classifier", c.hidden, heft__sk_labels(s), c.factor / sqrt((double)c.hidden));
}

static void text_model(heft__skeleton *s)
{
    (void)text(s);
}

static void text_with_projection(heft__skeleton *s)
{
    const struct clip c = text_below(s);
    projection(s, "text_projection", &c, c.projection);
    heft__sk_base_prefix(s, "text_model");
}

static void vision_model(heft__skeleton *s)
{
    (void)vision(s);
}

static void vision_with_projection(heft__skeleton *s)
{
    const struct clip c = vision_below(s);
    projection(s, "visual_projection", &c, c.projection);
    heft__sk_base_prefix(s, "vision_model");
}

#define TEXT_CLASSES                                                                               \
    {"CLIPTextModel", "AutoModelForTextEncoding", text_model, NULL},                               \
    {                                                                                              \
        "CLIPTextModelWithProjection", NULL, text_with_projection, NULL                            \
    }
#define VISION_CLASSES                                                                             \
    {"CLIPVisionModel", NULL, vision_model, NULL},                                                 \
    {                                                                                              \
        "CLIPVisionModelWithProjection", NULL, vision_with_projection, NULL                        \
    }

static const heft__class classes[] = {
    {"CLIPModel",                  "AutoModel",                       both,          NULL},
    {"CLIPForImageClassification", "AutoModelForImageClassification", image_classes, NULL},
    TEXT_CLASSES,
    VISION_CLASSES,
    {NULL,                         NULL,                              NULL,          NULL},
};
static const heft__class text_classes[] = {
    TEXT_CLASSES, {NULL, NULL, NULL, NULL}
};
static const heft__class vision_classes[] = {
    VISION_CLASSES, {NULL, NULL, NULL, NULL}
};

static const char *const no_split[] = {"CLIPEncoderLayer", "CLIPTextEmbeddings",
                                       "CLIPVisionEmbeddings", NULL};
/* computed from the config; older files hold it */
static const char *const ignore_unexpected[] = {"position_ids", NULL};

/* registry.c has a line for each */
extern const heft__family heft__family_clip, heft__family_clip_text_model,
    heft__family_clip_vision_model;
const heft__family heft__family_clip = {
    .model_type = "clip",
    .base_prefix = "clip",
    .class_prefix = "CLIP",
    .classes = classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
};
const heft__family heft__family_clip_text_model = {
    .model_type = "clip_text_model",
    .base_prefix = "clip",
    .class_prefix = "CLIP",
    .file_prefix = "text_model",
    .classes = text_classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
};
const heft__family heft__family_clip_vision_model = {
    .model_type = "clip_vision_model",
    .base_prefix = "clip",
    .class_prefix = "CLIP",
    .file_prefix = "vision_model",
    .classes = vision_classes,
    .no_split = no_split,
    .ignore_unexpected = ignore_unexpected,
};
