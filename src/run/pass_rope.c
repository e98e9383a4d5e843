/* pass_rope.c - rotary positions: cosines and sines of all tokens, and turning heads by them.
 *
 *   angle[t][i] = position of token t * frequency[i]     i < width / 2
 *
 * Frequencies are kept from pass to pass; types that depend on the length of the text are asked again for
 * that of each sequence, whatever others are in the pass. Keys that are kept were turned by the
 * frequencies of their time: a longrope text that has outgrown its short ones is refused. */
#include "run/pass_state.h"

#include <math.h>

void heft__pass_ropes_free(heft__pass *p)
{
    for (size_t i = 0; i < HEFT__PASS_ROPES; i++) {
        heft__rope_memory *rope = &p->ropes[i];
        heft__free(p->ctx, rope->frequencies, (rope->width / 2 + 1) * sizeof(float));
        *rope = (heft__rope_memory){0};
    }
}

/* The place of an embedding's frequencies, made for a text of this length; NULL after an error. */
static const heft__rope_memory *frequencies_of(heft__pass *p, const char *layer_type, size_t width,
                                               uint64_t length)
{
    heft__rope_memory *rope = NULL;
    for (size_t i = 0; i < HEFT__PASS_ROPES && !rope; i++) {
        heft__rope_memory *one = &p->ropes[i];
        if (!one->frequencies || (one->layer_type == layer_type && one->width == width)) {
            rope = one;
        }
    }
    if (!rope) {
        heft__pass_fail(p, HEFT_LIMIT, "the model has too many rotary embeddings");
        return NULL;
    }
    if (!rope->frequencies) {
        *rope = (heft__rope_memory){.layer_type = layer_type, .width = width};
        rope->frequencies = heft__alloc(p->ctx, (width / 2 + 1) * sizeof(float));
    }
    if (!rope->frequencies) {
        heft__pass_fail(p, HEFT_NOMEM, "no memory for a rotary embedding");
        return NULL;
    }
    if (rope->length == 0 ||
        (rope->length != length && heft__sk_rotary_by_length(p->config, layer_type))) {
        rope->factor =
            heft__sk_rotary_frequencies(p->config, layer_type, width, length, rope->frequencies);
        rope->length = length;
    }
    return heft__sk_going(p->config) ? rope : NULL;
}

/* A text keeps its first tokens' keys: they must not need other frequencies than they had. */
static void check_turn(heft__pass *p, const char *layer_type, const heft__span *span)
{
    const uint64_t turn = heft__sk_rotary_turn(p->config, layer_type);
    const int32_t before = span->sequence->reach;
    if (turn > 0 && before > 0 && (uint64_t)before <= turn && (uint64_t)span->reach > turn) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "the text grows past %llu tokens, from where its rotary positions "
                        "(longrope) differ: it must be computed anew in another sequence",
                        (unsigned long long)turn);
    }
}

heft__rope heft__rope_table(heft__pass *p, const char *layer_type, size_t width)
{
    const size_t half = width / 2;
    float *cosines = heft__pass_take(p, p->in.tokens * half, sizeof *cosines);
    float *sines = heft__pass_take(p, p->in.tokens * half, sizeof *sines);
    if (width % 2 != 0) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "rotary positions of an odd number of dimensions, %zu",
                        width);
    }
    if (p->dry && p->status == HEFT_OK) { /* what is wrong with the config, at once */
        (void)frequencies_of(p, layer_type, width, 1);
    }
    for (size_t s = 0; heft__pass_live(p) && s < p->in.sequences; s++) {
        const heft__span *span = &p->spans[s];
        const heft__rope_memory *rope = frequencies_of(p, layer_type, width, (uint64_t)span->reach);
        check_turn(p, layer_type, span);
        for (size_t t = span->first; rope && t < span->first + span->count; t++) {
            for (size_t i = 0; i < half; i++) {
                const float angle = (float)p->in.at[t] * rope->frequencies[i];
                cosines[t * half + i] = cosf(angle) * rope->factor;
                sines[t * half + i] = sinf(angle) * rope->factor;
            }
        }
    }
    return (heft__rope){.cos = cosines, .sin = sines, .width = width};
}

struct turning {
    const heft__pass *p;
    const heft__rope *rope;
    heft__rows x;
    size_t heads, first;
};

static heft_status rotate_item(void *user, size_t t, heft_error *err)
{
    const struct turning *work = user;
    const size_t half = work->rope->width / 2, head = work->x.width / work->heads;
    float *x = work->x.x + t * work->x.width + work->first;
    (void)err;
    for (size_t h = 0; h < work->heads; h++) {
        work->p->kernels->rotate(x + h * head, work->rope->cos + t * half,
                                 work->rope->sin + t * half, half, work->rope->interleaved);
    }
    return HEFT_OK;
}

void heft__rotate(heft__pass *p, heft__rows x, size_t heads, size_t first, const heft__rope *rope)
{
    struct turning work = {p, rope, x, heads, first};
    heft_error error;
    if (heads == 0 || x.width % heads != 0 || first + rope->width > x.width / heads) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "%zu heads in rows of %zu numbers cannot be turned by %zu", heads, x.width,
                        rope->width);
    }
    heft__tally_split(p, x.count > 16 ? x.count : 1);
    if (!heft__pass_live(p)) {
        return;
    }
    if (x.count > 16) {
        heft__pass_parallel(p, x.count, rotate_item, &work);
    } else {
        for (size_t t = 0; t < x.count; t++) {
            (void)rotate_item(&work, t, &error);
        }
    }
}
