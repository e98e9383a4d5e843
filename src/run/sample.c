/* sample.c - choosing a token by its logits.
 *
 *   penalty -> temperature -> top k -> min p -> top p -> softmax -> one random number
 *
 * As Transformers' logits processors, in its order; which token a random number picks is heft's own. */
#include "run/pass_state.h"

#include <heft/session.h>

#include <math.h>
#include <stdlib.h>

struct candidate {
    float logit;
    int32_t id;
};

/* Larger logits first, then smaller ids. */
static int compare(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return x->logit > y->logit ? -1 : x->logit < y->logit ? 1 : (x->id > y->id) - (x->id < y->id);
}

static void penalize(struct candidate *list, size_t count, float penalty, const int32_t *seen,
                     size_t seen_count, const float *logits)
{
    for (size_t i = 0; i < seen_count; i++) {
        const int32_t id = seen[i];
        if (id >= 0 &&
            (size_t)id < count) { /* from the logits: a token that is seen twice counts once */
            list[id].logit = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
        }
    }
}

/* Probabilities of sorted candidates, which replace their logits; returns how many are left. */
static size_t keep_likely(struct candidate *list, size_t count, const heft_sampling *s)
{
    double sum = 0, before = 0;
    const float most = list[0].logit;
    for (size_t i = 0; i < count; i++) {
        list[i].logit = expf(list[i].logit - most);
        if (s->min_p > 0 && list[i].logit < s->min_p) {
            count = i;
            break;
        }
        sum += (double)list[i].logit;
    }
    for (size_t i = 0; s->top_p > 0 && s->top_p < 1 && i < count; i++) {
        before += (double)list[i].logit / sum;
        if (before >= (double)s->top_p) {
            return i + 1;
        }
    }
    return count;
}

static int32_t draw(const struct candidate *list, size_t count, uint64_t seed, uint64_t index)
{
    const heft__random random = {.seed = seed, .stream = heft__stable_hash("sample", 6)};
    double sum = 0, at = 0;
    float u = 0;
    heft__random_uniform(&random, 0, 1, index, &u, 1);
    for (size_t i = 0; i < count; i++) {
        sum += (double)list[i].logit;
    }
    for (size_t i = 0; i < count; i++) {
        at += (double)list[i].logit / sum;
        if ((double)u < at) {
            return list[i].id;
        }
    }
    return list[count - 1].id;
}

heft_status heft_session_sample(const heft_session *session, const heft_sampling *sampling,
                                const float *logits, size_t count, const int32_t *seen,
                                size_t seen_count, uint64_t index, int32_t *id, heft_error *err)
{
    heft_sampling s;
    heft_status status = HEFT__TAKE_OPTIONS(&s, sampling, err);
    if (status != HEFT_OK || !session || !logits || !id || count == 0 || count > INT32_MAX) {
        return status != HEFT_OK
                   ? status
                   : heft__fail(err, HEFT_INVALID_ARG, "session, logits or result is NULL");
    }
    if (!(s.temperature >= 0) || !(s.top_p >= 0) || !(s.min_p >= 0) ||
        !(s.repetition_penalty >= 0)) {
        return heft__fail(err, HEFT_INVALID_ARG, "a sampling option is negative");
    }
    const bool penalty = s.repetition_penalty > 0 && s.repetition_penalty != 1 && seen_count > 0;
    if (s.temperature == 0 && !penalty) {
        *id = (int32_t)heft__kernels_best()->largest(logits, count);
        return HEFT_OK;
    }
    heft_ctx *ctx = heft__session_ctx(session);
    const size_t size = count * sizeof(struct candidate);
    struct candidate *list = heft__alloc(ctx, count * sizeof *list);
    if (!list) {
        return heft__fail_nomem(err, count * sizeof *list);
    }
    for (size_t i = 0; i < count; i++) {
        list[i] = (struct candidate){logits[i], (int32_t)i};
    }
    if (penalty) {
        penalize(list, count, s.repetition_penalty, seen, seen_count, logits);
    }
    for (size_t i = 0; s.temperature > 0 && i < count; i++) {
        list[i].logit /= s.temperature;
    }
    qsort(list, count, sizeof *list, compare);
    if (s.temperature == 0) {
        *id = list[0].id;
    } else {
        count = s.top_k && s.top_k < count ? s.top_k : count;
        *id = draw(list, keep_likely(list, count, &s), s.seed, index);
    }
    heft__free(ctx, list, size);
    return HEFT_OK;
}
