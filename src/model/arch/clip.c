/* clip.c - CLIP: a model of texts, one of images, and both with projections.
 *
 *   text_model.embeddings -> text_model.encoder.layers.0 .. N-1 -> text_model.final_layer_norm
 *   vision_model.embeddings -> vision_model.encoder.layers.0 .. M-1 -> vision_model.post_layernorm
 *
 * The models of texts and of images alone are model types of their own, and have their config on
 * top. Source: config keys, names and order as Transformers saves them; docs/models.md. */
#include "model/arch/encoder.h"

#include <math.h>

struct clip {
    uint64_t hidden, layers, intermediate, projection;
    double factor; /* of all initial values */
};

/* The key of one half's config. A dictionary of the old name counts instead of the other one, with the defaults of all
 * that is not in it, for classes that have both halves in their config. */
static const char *key_of(const heft__skeleton *s, bool text)
{
    const char *key = text ? "text_config" : "vision_config",
               *old = text ? "text_config_dict" : "vision_config_dict", *name = heft__sk_class(s);
    const bool whole =
        strcmp(name, "CLIPModel") == 0 || strcmp(name, "CLIPForImageClassification") == 0;
    return whole && heft__sk_has(s, old) ? old : key;
}

/* The config of one half: nested in CLIP's own, or on top. */
static struct clip read_config(heft__skeleton *s, bool text)
{
    const char *key = key_of(s, text);
    if (heft__sk_has(s, key)) {
        heft__sk_config_enter(s, key);
    }
    struct clip c = {
        .hidden = heft__sk_count(s, "hidden_size", text ? 512 : 768),
        .layers = heft__sk_layers(s, "num_hidden_layers", 12),
        .intermediate = heft__sk_count(s, "intermediate_size", text ? 2048 : 3072),
        .projection = heft__sk_count(s, "projection_dim", 512),
        .factor = heft__sk_real(s, "initializer_factor", 1),
    };
    const uint64_t heads = heft__sk_count(s, "num_attention_heads", text ? 8 : 12);
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
    struct clip c = read_config(s, true);
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
    struct clip c = read_config(s, false);
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

/* ---- forward pass ---------------------------------------------------------------------------- */
struct clip_pass {
    struct clip c;
    double eps;
    heft__act act;
    heft__attention attend;
};

/* The numbers of one half; its config stays entered. */
static struct clip_pass begin(heft__pass *p, bool text)
{
    heft__skeleton *s = heft__pass_config(p);
    struct clip_pass t = {.c = read_config(s, text)};
    const size_t count = (size_t)heft__sk_count(s, "num_attention_heads", text ? 8 : 12),
                 width = count ? (size_t)t.c.hidden / count : 0;
    t.eps = heft__sk_real(s, "layer_norm_eps", 1e-5);
    t.act = heft__act_of(p, "hidden_act", "quick_gelu");
    t.attend = heft__attention_of(count, width, text);
    return t;
}

static void layers_forward(heft__pass *p, const struct clip_pass *t, heft__rows x)
{
    for (uint64_t i = 0; i < t->c.layers && heft__pass_going(p); i++) {
        heft__block(p, "encoder.layers", (size_t)i);
        heft__rows h = heft__layer_norm(p, "layer_norm1", x, t->eps);
        h = heft__attend(p, heft__linear(p, "self_attn.q_proj", h),
                         heft__linear(p, "self_attn.k_proj", h),
                         heft__linear(p, "self_attn.v_proj", h), &t->attend);
        heft__add(p, x, heft__linear(p, "self_attn.out_proj", h));
        h = heft__linear(p, "mlp.fc1", heft__layer_norm(p, "layer_norm2", x, t->eps));
        heft__activate(p, t->act, h);
        heft__add(p, x, heft__linear(p, "mlp.fc2", h));
        heft__block_end(p, x);
        heft__out_hidden(p, (size_t)i + 1, x);
    }
}

/* The row of each text's end: the first end-of-text id; configs from before that was right (2) mean the
 * largest id. */
static heft__rows text_ends(heft__pass *p, heft__rows x, int64_t eos)
{
    const heft__pass_inputs *in = heft__inputs(p);
    heft__rows y = heft__zeros(p, in->sequences, x.width);
    heft__keep_whole(p);
    for (size_t i = 0; y.x && i < in->sequences; i++) {
        const size_t first = (size_t)in->first[i],
                     end = i + 1 < in->sequences ? (size_t)in->first[i + 1] : in->tokens;
        size_t at = first;
        for (size_t t = first; eos == 2 && t < end; t++) {
            at = in->ids[t] > in->ids[at] ? t : at;
        }
        for (size_t t = first; eos != 2 && t < end && in->ids[at] != eos; t++) {
            at = in->ids[t] == eos ? t : at;
        }
        memcpy(y.x + i * x.width, x.x + at * x.width, x.width * sizeof *x.x);
    }
    return y;
}

/* The text model: returns its pooled rows. */
static heft__rows text_forward(heft__pass *p)
{
    const heft__pass_inputs *in = heft__inputs(p);
    const struct clip_pass t = begin(p, true);
    const int64_t eos = heft__sk_integer(heft__pass_config(p), "eos_token_id", 49407);
    heft__rows x = heft__embed(p, "embeddings.token_embedding", in->ids, in->tokens, 0);
    heft__add(p, x, heft__embed(p, "embeddings.position_embedding", in->at, in->tokens, 0));
    heft__out_hidden(p, 0, x);
    layers_forward(p, &t, x);
    x = heft__layer_norm(p, "final_layer_norm", x, t.eps);
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    heft__rows pooled = text_ends(p, x, eos);
    heft__out(p, HEFT__OUT_SEQUENCES, "pooler_output", pooled);
    heft__sk_config_leave(heft__pass_config(p));
    return pooled;
}

/* The model of images: returns all rows; *pooled: those of the classes. */
static heft__rows vision_forward(heft__pass *p, heft__rows *pooled)
{
    const struct clip_pass t = begin(p, false);
    const size_t patch = (size_t)heft__sk_count(heft__pass_config(p), "patch_size", 32);
    heft__enter(p, "embeddings");
    heft__rows x = heft__linear(p, "patch_embedding", heft__patches(p, patch, patch));
    x = heft__prepend(p, heft__parameter(p, "class_embedding", 0), x);
    heft__add_tiled(p, x, heft__parameter(p, "position_embedding.weight", 0));
    heft__leave(p);
    x = heft__layer_norm(p, "pre_layrnorm", x, t.eps);
    heft__out_hidden(p, 0, x);
    layers_forward(p, &t, x);
    heft__out(p, HEFT__OUT_TOKENS, "last_hidden_state", x);
    *pooled = heft__layer_norm(p, "post_layernorm", encoder_first_rows(p, x), t.eps);
    heft__out(p, HEFT__OUT_SEQUENCES, "pooler_output", *pooled);
    heft__sk_config_leave(heft__pass_config(p));
    return x;
}

static void text_model_forward(heft__pass *p)
{
    (void)text_forward(p);
}

static void text_with_projection_forward(heft__pass *p)
{
    heft__enter(p, "text_model");
    heft__rows x = text_forward(p);
    heft__leave(p);
    heft__out(p, HEFT__OUT_SEQUENCES, "text_embeds", heft__linear(p, "text_projection", x));
}

static void vision_model_forward(heft__pass *p)
{
    heft__rows pooled;
    (void)vision_forward(p, &pooled);
}

static heft__rows image_embeds(heft__pass *p)
{
    heft__rows pooled;
    heft__enter(p, "vision_model");
    (void)vision_forward(p, &pooled);
    heft__leave(p);
    return heft__linear(p, "visual_projection", pooled);
}

static void vision_with_projection_forward(heft__pass *p)
{
    heft__out(p, HEFT__OUT_SEQUENCES, "image_embeds", image_embeds(p));
}

/* Both, first half: the images' rows are kept for the texts. */
static void both_encode(heft__pass *p)
{
    heft__rows x = image_embeds(p);
    heft__unit_rows(p, x);
    heft__out(p, HEFT__OUT_SEQUENCES, "image_embeds", x);
    heft__stash(p, x);
}

static void both_forward(heft__pass *p)
{
    heft__enter(p, "text_model");
    heft__rows x = text_forward(p);
    heft__leave(p);
    heft__rows texts = heft__linear(p, "text_projection", x);
    heft__unit_rows(p, texts);
    heft__out(p, HEFT__OUT_SEQUENCES, "text_embeds", texts);
    if (!heft__is_asked(p, "logits_per_text") && !heft__is_asked(p, "logits_per_image")) {
        return;
    }
    heft__rows images = heft__stashed(p);
    heft__rows scale = heft__parameter(p, "logit_scale", 1);
    heft__rows by_text = heft__inner_products(p, texts, images),
               by_image = heft__inner_products(p, images, texts);
    heft__scale_by(p, by_text, scale.x ? exp((double)*scale.x) : 1);
    heft__scale_by(p, by_image, scale.x ? exp((double)*scale.x) : 1);
    heft__out(p, HEFT__OUT_WHOLE, "logits_per_text", by_text);
    heft__out(p, HEFT__OUT_COLUMNS, "logits_per_image", by_image);
}

/* The mean of all patches, without the class. */
static void image_classes_forward(heft__pass *p)
{
    heft__rows pooled;
    heft__enter(p, "vision_model");
    heft__rows x = vision_forward(p, &pooled);
    heft__leave(p);
    x = heft__mean_rows(p, x, 1);
    heft__out(p, HEFT__OUT_SEQUENCES, "logits", heft__linear(p, "classifier", x));
}

/* An image of the config's size: a token for each patch, and one for its class. */
static size_t features(heft__skeleton *s, size_t shape[3])
{
    (void)read_config(s, false);
    const uint64_t image = heft__sk_count(s, "image_size", 224),
                   patch = heft__sk_count(s, "patch_size", 32);
    shape[0] = (size_t)heft__sk_count(s, "num_channels", 3);
    shape[1] = shape[2] = (size_t)image;
    heft__sk_config_leave(s);
    return (size_t)((image / patch) * (image / patch)) + 1;
}

#define TEXT_CLASSES                                                                               \
    {"CLIPTextModel", "AutoModelForTextEncoding", text_model, text_model_forward},                 \
    {                                                                                              \
        "CLIPTextModelWithProjection", NULL, text_with_projection, text_with_projection_forward    \
    }
#define VISION_CLASSES                                                                             \
    {"CLIPVisionModel", NULL, vision_model, vision_model_forward},                                 \
    {                                                                                              \
        "CLIPVisionModelWithProjection", NULL, vision_with_projection,                             \
            vision_with_projection_forward                                                         \
    }

static const heft__class classes[] = {
    {"CLIPModel",                  "AutoModel",                       both,          both_forward},
    {"CLIPForImageClassification", "AutoModelForImageClassification", image_classes,
     image_classes_forward                                                                       },
    TEXT_CLASSES,
    VISION_CLASSES,
    {NULL,                         NULL,                              NULL,          NULL        },
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
    .encode = both_encode,
    .features = features,
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
    .features = features,
};
