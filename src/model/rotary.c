/* rotary.c - rotary position embeddings: their two buffers, and the frequencies in them.
 *
 *   inv_freq[i] = theta^(-2i / width), adjusted as rope_type requires
 *
 * A config of 5.x has rope_parameters, one object or one per type of layer; one of 4.x has
 * rope_theta beside rope_scaling (and rope_local_base_freq for sliding layers). "dynamic" and
 * "longrope" have their values for short texts. An unknown type is refused: a wrong frequency would
 * go unnoticed.
 *
 * Source: docs/config.md [4]. */
#include "model/skeleton.h"

#include <math.h>

enum kind { KIND_DEFAULT, KIND_LINEAR, KIND_LLAMA3, KIND_YARN, KIND_LONGROPE };

struct heft__rotary {
    enum kind kind;
    double theta, width, factor;
    double low, high; /* llama3: wavelengths; yarn: the dimensions between which it blends */
    double low_factor, high_factor, original; /* llama3 */
    const double *by_dimension;               /* longrope: [count] */
    uint64_t count;
};

/* ---- values ---------------------------------------------------------------------------------- */
/* Long waves are stretched, short ones stay, those between are blended. */
static double llama3(const heft__rotary *r, double frequency)
{
    const double length = 2 * 3.14159265358979323846 / frequency;
    if (length < r->high) {
        return frequency;
    }
    if (length > r->low) {
        return frequency / r->factor;
    }
    double smooth = (r->original / length - r->low_factor) / (r->high_factor - r->low_factor);
    return (1 - smooth) * frequency / r->factor + smooth * frequency;
}

static double yarn(const heft__rotary *r, double frequency, double dimension)
{
    double ramp = (dimension - r->low) / (r->high - r->low);
    ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
    return frequency / r->factor * ramp + frequency * (1 - ramp);
}

static double frequency_at(const heft__rotary *r, uint64_t i)
{
    const double base = pow(r->theta, -2.0 * (double)i / r->width);
    switch (r->kind) {
    case KIND_LINEAR:
        return base / r->factor;
    case KIND_LLAMA3:
        return llama3(r, base);
    case KIND_YARN:
        return yarn(r, base, (double)i);
    case KIND_LONGROPE:
        return i < r->count ? base / r->by_dimension[i] : base;
    case KIND_DEFAULT:
        break;
    }
    return base;
}

void heft__rotary_fill(const heft__rotary *rotary, uint64_t first, float *dst, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        dst[i] = (float)frequency_at(rotary, first + i);
    }
}

/* ---- the config ------------------------------------------------------------------------------ */
static const heft__json_value *object_at(const heft__json_value *object, const char *key)
{
    const heft__json_value *value = object && key ? heft__json_member(object, key) : NULL;
    return value && value->type == HEFT__JSON_TYPE_OBJECT ? value : NULL;
}

/* The object that holds the parameters of a layer type: of 5.x, else of 4.x, whose scaling is not
 * for sliding layers; NULL without any. Where layers do not differ, that of 4.x counts more. */
static const heft__json_value *parameters_of(const heft__skeleton *s, const char *layer_type)
{
    const heft__json_value *all = object_at(s->object, "rope_parameters");
    const heft__json_value *one = object_at(all, layer_type);
    const heft__json_value *scaling = object_at(s->object, "rope_scaling");
    scaling = scaling && scaling->count > 0 ? scaling : NULL;
    if (all && layer_type) {
        return one;
    }
    if (layer_type && strcmp(layer_type, "sliding_attention") == 0) {
        return NULL;
    }
    return scaling ? scaling : all;
}

/* A config without parameters has those of its family. */
static bool is_standard(const heft__skeleton *s, const heft__json_value *object)
{
    return !object && s->model->family->rope_factor > 0;
}

/* The name of an object's type: "longrope" under its older names as well. */
static const char *type_of(const heft__skeleton *s, const heft__json_value *object)
{
    const bool by_layer = object && object == object_at(s->object, "rope_scaling") &&
                          strcmp(s->model->family->model_type, "gemma3_text") == 0;
    const heft__json_value *type = object ? heft__json_member(object, "rope_type") : NULL;
    if (!type && object && !by_layer) { /* which the reference overlooks in a config by layers */
        type = heft__json_member(object, "type"); /* the older name */
    }
    if (is_standard(s, object)) {
        return "yarn";
    }
    const char *name = type && type->type == HEFT__JSON_TYPE_STRING ? type->text : "default";
    const bool is_phi3 = strcmp(s->model->family->model_type, "phi3") == 0;
    return strcmp(name, "su") == 0 || (is_phi3 && strcmp(name, "yarn") == 0) ? "longrope" : name;
}

static bool is_type(const heft__skeleton *s, const heft__json_value *object, const char *wanted)
{
    return strcmp(type_of(s, object), wanted) == 0;
}

/* A number that must be positive and finite, where it is there. */
static double positive(heft__skeleton *s, const heft__json_value *object, const char *key,
                       double standard)
{
    const heft__json_value *value = object ? heft__json_member(object, key) : NULL;
    double number = standard;
    if (!value || value->type == HEFT__JSON_TYPE_NULL) {
        return standard;
    }
    if (!heft__json_as_double(value, &number) || !isfinite(number) || number <= 0) {
        heft__sk_fail(s, HEFT_FORMAT, key, "expected a positive number");
        return standard;
    }
    return number;
}

/* The same; 0 counts as absent. */
static double positive_if(heft__skeleton *s, const heft__json_value *object, const char *key,
                          double standard)
{
    const heft__json_value *value = object ? heft__json_member(object, key) : NULL;
    double number = 1;
    const bool is_zero = value && heft__json_as_double(value, &number) && number == 0;
    return is_zero ? standard : positive(s, object, key, standard);
}

/* GPT-NeoX has names of its own beside the object, and the reference reads no others there. */
static const char *own_key(const heft__skeleton *s, const char *key, const char *of_neox)
{
    return strcmp(s->model->family->model_type, "gpt_neox") == 0 ? of_neox : key;
}

uint64_t heft__sk_rotary_part(heft__skeleton *s, uint64_t width, double standard)
{
    double part =
        positive(s, s->object, own_key(s, "partial_rotary_factor", "rotary_pct"), standard);
    part = positive(s, parameters_of(s, NULL), "partial_rotary_factor", part);
    if (part > 1) {
        heft__sk_fail(s, HEFT_FORMAT, "partial_rotary_factor", "expected at most 1, found %g",
                      part);
        part = 1;
    }
    return (uint64_t)((double)width * part);
}

static void read_llama3(heft__skeleton *s, const heft__json_value *object, heft__rotary *r)
{
    r->low_factor = positive(s, object, "low_freq_factor", 1);
    r->high_factor = positive(s, object, "high_freq_factor", 4);
    r->low = r->original / r->low_factor;
    r->high = r->original / r->high_factor;
    if (r->high_factor <= r->low_factor) {
        heft__sk_fail(s, HEFT_FORMAT, "high_freq_factor", "expected more than low_freq_factor");
    }
}

/* The dimension whose wave turns `turns` times in the original length. */
static double dimension_of(const heft__rotary *r, double turns)
{
    return r->width * log(r->original / (turns * 2 * 3.14159265358979323846)) / (2 * log(r->theta));
}

static void read_yarn(heft__skeleton *s, const heft__json_value *object, heft__rotary *r)
{
    const heft__json_value *truncate = object ? heft__json_member(object, "truncate") : NULL;
    const bool whole =
        object && (!truncate || truncate->type != HEFT__JSON_TYPE_BOOL || truncate->boolean);
    r->low = dimension_of(r, positive_if(s, object, "beta_fast", 32));
    r->high = dimension_of(r, positive_if(s, object, "beta_slow", 1));
    if (whole) {
        r->low = floor(r->low);
        r->high = ceil(r->high);
    }
    r->low = r->low > 0 ? r->low : 0;
    r->high = r->high < r->width - 1 ? r->high : r->width - 1;
    r->high += r->high == r->low ? 0.001 : 0;
}

/* [count] factors of the dimensions. */
static void read_factors(heft__skeleton *s, const heft__json_value *object, const char *key,
                         uint64_t count, double *factors)
{
    const heft__json_value *list = heft__json_member(object, key);
    if (!list || list->type != HEFT__JSON_TYPE_ARRAY || list->count != count) {
        heft__sk_fail(s, HEFT_FORMAT, key, "expected a list of %llu numbers",
                      (unsigned long long)count);
        return;
    }
    size_t at = 0;
    for (const heft__json_value *item = list->first; item; item = item->next, at++) {
        if (!heft__json_as_double(item, &factors[at]) || !isfinite(factors[at]) ||
            factors[at] <= 0) {
            heft__sk_fail(s, HEFT_FORMAT, key, "expected positive numbers");
            return;
        }
    }
}

/* Tokens of the longest text. */
static double length_of(heft__skeleton *s)
{
    const double standard = s->model->family->rope_length;
    return positive(s, s->object, "max_position_embeddings", standard > 0 ? standard : 2048);
}

static void read_kind(heft__skeleton *s, const heft__json_value *object, heft__rotary *r)
{
    const char *name = type_of(s, object);
    const bool is_phi3 = strcmp(s->model->family->model_type, "phi3") == 0;
    const heft__family *family = s->model->family;
    const bool standard = is_standard(s, object);
    const double most = length_of(s);
    /* beside the object it counts more than in it; Phi3's config always has it */
    r->original = positive(s, object, "original_max_position_embeddings",
                           standard ? family->rope_original : most);
    r->original =
        positive(s, s->object, "original_max_position_embeddings", is_phi3 ? 4096 : r->original);
    const bool by_lengths = strcmp(name, "yarn") == 0 || strcmp(name, "longrope") == 0;
    r->factor = positive(s, object, "factor",
                         standard     ? family->rope_factor
                         : by_lengths ? most / r->original
                                      : 1);
    if (strcmp(name, "linear") == 0) {
        r->kind = KIND_LINEAR;
    } else if (strcmp(name, "llama3") == 0) {
        r->kind = KIND_LLAMA3;
        read_llama3(s, object, r);
    } else if (strcmp(name, "yarn") == 0) {
        r->kind = KIND_YARN;
        read_yarn(s, object, r);
    } else if (strcmp(name, "longrope") == 0) {
        r->kind = KIND_LONGROPE;
    } else if (strcmp(name, "default") != 0 && strcmp(name, "dynamic") != 0) {
        heft__sk_fail(s, HEFT_UNSUPPORTED, "rope_type", "unknown rope_type '%.60s'", name);
    }
}

/* All but longrope's factors of the dimensions. */
static void read_parameters(heft__skeleton *s, const heft__json_value *object,
                            const char *layer_type, uint64_t width, heft__rotary *r)
{
    const bool sliding = layer_type && strcmp(layer_type, "sliding_attention") == 0;
    const double standard = s->model->family->rope_theta;
    *r = (heft__rotary){.factor = 1, .width = (double)width};
    r->theta = sliding ? positive(s, s->object, "rope_local_base_freq", 10000)
                       : positive(s, s->object, own_key(s, "rope_theta", "rotary_emb_base"),
                                  standard > 0 ? standard : 10000);
    r->theta = positive(s, object, "rope_theta", r->theta);
    if ((object || is_standard(s, object)) && heft__sk_going(s)) {
        read_kind(s, object, r);
    }
}

static heft__rotary *read_rotary(heft__skeleton *s, const char *layer_type, uint64_t width)
{
    const heft__json_value *object = parameters_of(s, layer_type);
    heft__rotary *r = heft__arena_array(&s->model->arena, 1, sizeof *r);
    double *factors = r ? heft__arena_array(&s->model->arena, width / 2, sizeof *factors) : NULL;
    if (!factors) {
        heft__sk_fail(s, HEFT_NOMEM, NULL, "no memory for a rotary embedding");
        return NULL;
    }
    read_parameters(s, object, layer_type, width, r);
    if (r->kind == KIND_LONGROPE && heft__sk_going(s)) {
        read_factors(s, object, "short_factor", width / 2, factors);
        r->by_dimension = factors;
        r->count = width / 2;
    }
    return r;
}

void heft__sk_rotary(heft__skeleton *s, const char *layer_type, uint64_t width)
{
    const uint64_t frequencies = width / 2;
    heft__init_rule rule = {.kind = HEFT__INIT_ROTARY, .zero_row = -1};
    char name[80];
    if (!heft__sk_going(s)) {
        return;
    }
    if (s->filling) {
        rule.rotary = read_rotary(s, layer_type, width);
    }
    heft__sk_enter(s, HEFT_MODULE_ROTARY, "*RotaryEmbedding", "rotary_emb");
    for (int original = 0; original < 2; original++) {
        snprintf(name, sizeof name, "%s%s%s", layer_type ? layer_type : "", layer_type ? "_" : "",
                 original ? "original_inv_freq" : "inv_freq");
        heft__sk_buffer(s, name, HEFT_DTYPE_F32, &frequencies, 1, false, rule);
    }
    heft__sk_leave(s);
}

/* ---- for a forward pass ------------------------------------------------------------------------- */
bool heft__sk_rotary_is_dynamic(const heft__skeleton *s)
{
    return is_type(s, parameters_of(s, NULL), "dynamic");
}

bool heft__sk_rotary_by_length(const heft__skeleton *s, const char *layer_type)
{
    const heft__json_value *object = parameters_of(s, layer_type);
    return is_type(s, object, "dynamic") || is_type(s, object, "longrope");
}

uint64_t heft__sk_rotary_turn(heft__skeleton *s, const char *layer_type)
{
    const heft__json_value *object = parameters_of(s, layer_type);
    heft__rotary r = {.kind = KIND_DEFAULT};
    if (is_type(s, object, "longrope")) {
        read_parameters(s, object, layer_type, 2, &r);
    }
    return r.kind == KIND_LONGROPE && r.original < 1e15 ? (uint64_t)r.original : 0;
}

/* "dynamic": a larger base for texts that are longer than those of the training. */
static void stretch_dynamic(heft__skeleton *s, const heft__json_value *object, heft__rotary *r,
                            uint64_t length)
{
    const double most = length_of(s);
    if (is_type(s, object, "dynamic") && (double)length > most && r->width > 2) {
        r->theta *=
            pow(r->factor * (double)length / most - (r->factor - 1), r->width / (r->width - 2));
    }
}

/* How much yarn makes logits sharper for a factor, by 0.1 * scale * ln(factor) + 1. */
static double yarn_scale(double factor, double scale)
{
    return factor <= 1 ? 1 : 0.1 * scale * log(factor) + 1;
}

static double attention_factor(heft__skeleton *s, const heft__json_value *object,
                               const heft__rotary *r)
{
    const bool longrope = r->kind == KIND_LONGROPE;
    if (!longrope && r->kind != KIND_YARN) {
        return 1;
    }
    const double given = positive(s, object, "attention_factor", 0);
    if (given > 0) {
        return given;
    }
    if (longrope) {
        return r->factor <= 1 ? 1 : sqrt(1 + log(r->factor) / log(r->original));
    }
    const double scale = positive_if(s, object, "mscale", 0),
                 all = positive_if(s, object, "mscale_all_dim", 0);
    return scale > 0 && all > 0 ? yarn_scale(r->factor, scale) / yarn_scale(r->factor, all)
                                : yarn_scale(r->factor, 1);
}

double heft__sk_rotary_mscale(heft__skeleton *s)
{
    const heft__json_value *object = parameters_of(s, NULL);
    const double all = object ? positive_if(s, object, "mscale_all_dim", 0) : 0;
    return all > 0 && !is_type(s, object, "default")
               ? yarn_scale(positive(s, object, "factor", 1), all)
               : 1;
}

float heft__sk_rotary_frequencies(heft__skeleton *s, const char *layer_type, uint64_t width,
                                  uint64_t length, float *frequencies)
{
    const heft__json_value *object = parameters_of(s, layer_type);
    double *factors = NULL;
    heft__rotary r = {.factor = 1};
    if (!heft__sk_going(s)) {
        return 1;
    }
    read_parameters(s, object, layer_type, width, &r);
    const bool is_long = r.kind == KIND_LONGROPE && (double)length > r.original;
    if (r.kind == KIND_LONGROPE) {
        factors = heft__alloc(s->model->ctx, (width / 2 + 1) * sizeof *factors);
        if (!factors) {
            heft__sk_fail(s, HEFT_NOMEM, NULL, "no memory for a rotary embedding");
            return 1;
        }
        r.by_dimension = factors;
        r.count = width / 2;
        read_factors(s, object, is_long ? "long_factor" : "short_factor", width / 2, factors);
    }
    stretch_dynamic(s, object, &r, length);
    heft__rotary_fill(&r, 0, frequencies, (size_t)(width / 2));
    heft__free(s->model->ctx, factors, (width / 2 + 1) * sizeof *factors);
    return (float)attention_factor(s, object, &r);
}
