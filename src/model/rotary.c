/* rotary.c - rotary position embeddings: their two buffers, and the frequencies in them.
 *
 *   inv_freq[i] = 1 / theta^(2i / width), changed by what rope_type asks for
 *
 * A config of 5.x has rope_parameters, one object or one per type of layer; one of 4.x has
 * rope_theta and rope_scaling beside each other.
 *
 * Source: docs/config.md. */
#include "model/skeleton.h"

#include <math.h>

struct heft__rotary {
    double theta, width;
};

void heft__rotary_fill(const heft__rotary *rotary, uint64_t first, float *dst, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        double exponent = 2.0 * (double)(first + i) / rotary->width;
        dst[i] = (float)(1.0 / pow(rotary->theta, exponent));
    }
}

/* The object that holds the parameters of a layer type, NULL in configs of 4.x. */
static const heft__json_value *parameters_of(const heft__skeleton *s, const char *layer_type)
{
    const heft__json_value *all =
        s->object ? heft__json_member(s->object, "rope_parameters") : NULL;
    const heft__json_value *one = layer_type && all ? heft__json_member(all, layer_type) : NULL;
    return one ? one : all;
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

uint64_t heft__sk_rotary_part(heft__skeleton *s, uint64_t width, double standard)
{
    const heft__json_value *object = parameters_of(s, NULL);
    double part = positive(s, s->object, "partial_rotary_factor", standard);
    part = positive(s, object, "partial_rotary_factor", part);
    if (part > 1) {
        heft__sk_fail(s, HEFT_FORMAT, "partial_rotary_factor", "expected at most 1, found %g",
                      part);
        part = 1;
    }
    return (uint64_t)((double)width * part);
}

static heft__rotary *read_rotary(heft__skeleton *s, uint64_t width)
{
    heft__rotary *rotary = heft__arena_array(&s->model->arena, 1, sizeof *rotary);
    if (!rotary) {
        heft__sk_fail(s, HEFT_NOMEM, NULL, "no memory for a rotary embedding");
        return NULL;
    }
    *rotary = (heft__rotary){.theta = 10000.0, .width = (double)width};
    return rotary;
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
        rule.rotary = read_rotary(s, width);
    }
    heft__sk_enter(s, "rotary_emb");
    for (int original = 0; original < 2; original++) {
        snprintf(name, sizeof name, "%s%s%s", layer_type ? layer_type : "", layer_type ? "_" : "",
                 original ? "original_inv_freq" : "inv_freq");
        heft__sk_buffer(s, name, HEFT_DTYPE_F32, &frequencies, 1, false, rule);
    }
    heft__sk_leave(s);
}
