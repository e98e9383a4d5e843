/* sample.c - choosing a token by its logits.
 *
 *   forced, suppressed -> penalty -> temperature -> top k -> min p -> top p -> softmax -> one random number
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

/* What the generation's config says of the token after `seen`: the id that it must be (-1: any), and whether it is
 * the first one. */
static int32_t forced_id(const heft_generation_ids *ids, const heft_sampling *s, size_t seen,
                         bool *first)
{
    const bool begins = ids->forced_begin >= 0;
    *first = seen == s->prompt_count + (begins && s->prompt_count <= 1);
    if (begins && seen == 1) {
        return ids->forced_begin;
    }
    return seen + 1 == s->most_count ? ids->forced_end : -1;
}

static void suppress(struct candidate *list, size_t count, const int32_t *ids, size_t id_count)
{
    for (size_t i = 0; i < id_count; i++) {
        if (ids[i] >= 0 && (size_t)ids[i] < count) {
            list[ids[i]].logit = -INFINITY;
        }
    }
}

/* The list has all candidates, in the order of their ids. */
static int32_t choose(struct candidate *list, size_t count, const heft_sampling *s, uint64_t index)
{
    if (s->temperature == 0) {
        size_t best = 0;
        for (size_t i = 1; i < count; i++) {
            best = list[i].logit > list[best].logit ? i : best;
        }
        return list[best].id;
    }
    for (size_t i = 0; i < count; i++) {
        list[i].logit /= s->temperature;
    }
    qsort(list, count, sizeof *list, compare);
    count = s->top_k && s->top_k < count ? s->top_k : count;
    return draw(list, keep_likely(list, count, s), s->seed, index);
}

static heft_status take(const heft_session *session, const heft_sampling *sampling,
                        heft_sampling *s, heft_generation_ids *ids, heft_error *err)
{
    heft_status status = HEFT__TAKE_OPTIONS(s, sampling, err);
    if (status == HEFT_OK &&
        !(s->temperature >= 0 && s->top_p >= 0 && s->min_p >= 0 && s->repetition_penalty >= 0)) {
        return heft__fail(err, HEFT_INVALID_ARG, "a sampling option is negative");
    }
    if (status == HEFT_OK && s->by_config) {
        status = heft_session_ids(session, ids, err);
        if (s->repetition_penalty == 0) {
            s->repetition_penalty = ids->repetition_penalty;
        }
    }
    return status;
}

heft_status heft_session_sample(const heft_session *session, const heft_sampling *sampling,
                                const float *logits, size_t count, const int32_t *seen,
                                size_t seen_count, uint64_t index, int32_t *id, heft_error *err)
{
    heft_sampling s;
    heft_generation_ids ids = HEFT_SIZED(heft_generation_ids);
    bool first = false;
    if (!session || !logits || !id || count == 0 || count > INT32_MAX) {
        return heft__fail(err, HEFT_INVALID_ARG, "session, logits or result is NULL");
    }
    const heft_status status = take(session, sampling, &s, &ids, err);
    if (status != HEFT_OK) {
        return status;
    }
    const int32_t forced = s.by_config ? forced_id(&ids, &s, seen_count, &first) : -1;
    const bool penalty = s.repetition_penalty > 0 && s.repetition_penalty != 1 && seen_count > 0;
    const size_t not_first = first ? ids.begin_suppress_count : 0;
    const bool as_is = s.temperature == 0 && !penalty && ids.suppress_count + not_first == 0;
    if (as_is || (forced >= 0 && (size_t)forced < count)) {
        *id = forced >= 0 && (size_t)forced < count
                  ? forced
                  : (int32_t)heft__kernels_best()->largest(logits, count);
        return HEFT_OK;
    }
    heft_ctx *ctx = heft__session_ctx(session);
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
    suppress(list, count, ids.suppress, ids.suppress_count);
    suppress(list, count, ids.begin_suppress, not_first);
    *id = choose(list, count, &s, index);
    heft__free(ctx, list, count * sizeof *list);
    return HEFT_OK;
}
