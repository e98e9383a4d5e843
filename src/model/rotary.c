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
