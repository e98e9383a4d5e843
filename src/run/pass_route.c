/* pass_route.c - which experts a token goes to.
 *
 * In a dry run all tokens go to every expert, which bounds what one of them takes. */
#include "run/pass_state.h"

#include <math.h>

#define LOWEST (-1e30F) /* instead of what is not a number: -inf is what has been taken */

struct choice { /* of one token */
    const heft__routing *routing;
    const float *logits; /* [experts] */
    float *scores;       /* [experts] what the weights are made of */
    float *order;        /* [experts] by which they are chosen; -inf: taken, or not to be chosen */
};

/* The expert with the largest number, the first of equal ones; it is taken then. */
static size_t take_best(float *order, size_t count)
{
    size_t best = 0;
    for (size_t i = 1; i < count; i++) {
        best = order[i] > order[best] ? i : best;
    }
    order[best] = -INFINITY;
    return best;
}

/* Of each group the sum of its two best counts; experts of the other groups are not chosen. */
static void keep_best_groups(const struct choice *choice)
{
    const heft__routing *r = choice->routing;
    const size_t of_group = r->experts / r->groups;
    float sums[256];
    bool keeps[256] = {false};
    for (size_t g = 0; g < r->groups; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (size_t i = 0; i < of_group; i++) {
            const float x = choice->order[g * of_group + i];
            second = x > first ? first : x > second ? x : second;
            first = x > first ? x : first;
        }
        sums[g] = of_group > 1 ? first + second : first;
    }
    for (size_t i = 0; i < r->top_groups; i++) {
        keeps[take_best(sums, r->groups)] = true;
    }
    for (size_t e = 0; e < r->experts; e++) {
        choice->order[e] = keeps[e / of_group] ? choice->order[e] : -INFINITY;
    }
}

static void score(const heft__kernels *kernels, const struct choice *choice)
{
    const heft__routing *r = choice->routing;
    memcpy(choice->scores, choice->logits, r->experts * sizeof *choice->scores);
    if (r->scoring == HEFT__SOFTMAX_THEN_TOP) {
        kernels->softmax(choice->scores, r->experts);
    } else if (r->scoring == HEFT__SIGMOID_GROUPS) {
        kernels->act(HEFT__ACT_SIGMOID, choice->scores, r->experts);
    }
    memcpy(choice->order, choice->scores, r->experts * sizeof *choice->order);
    for (size_t e = 0; r->bias && e < r->experts; e++) {
        choice->order[e] += r->bias[e];
    }
    for (size_t e = 0; e < r->experts; e++) { /* none is chosen twice */
        choice->order[e] = choice->order[e] >= LOWEST ? choice->order[e] : LOWEST;
    }
    if (r->scoring == HEFT__SIGMOID_GROUPS && r->groups > 1) {
        keep_best_groups(choice);
    }
}

static void weigh(const heft__kernels *kernels, const heft__routing *r, float *weights)
{
    float sum = 0;
    if (r->scoring == HEFT__TOP_THEN_SOFTMAX) {
        kernels->softmax(weights, r->top);
    } else if (r->normalize) {
        for (size_t i = 0; i < r->top; i++) {
            sum += weights[i];
        }
        sum += r->scoring == HEFT__SIGMOID_GROUPS ? 1e-20F : 0;
        for (size_t i = 0; i < r->top; i++) {
            weights[i] /= sum;
        }
    }
    kernels->scale(weights, r->scale, r->top);
}

static bool good_routing(heft__pass *p, heft__rows logits, const heft__routing *r)
{
    const bool groups =
        r->scoring != HEFT__SIGMOID_GROUPS ||
        (r->groups >= 1 && r->groups <= 256 && r->experts % r->groups == 0 && r->top_groups >= 1 &&
         r->top_groups <= r->groups && r->top <= r->experts / r->groups * r->top_groups);
    if (logits.width != r->experts || r->top < 1 || r->top > r->experts || !groups) {
        heft__pass_fail(p, HEFT_FORMAT, "%zu of %zu experts cannot be chosen by %zu logits", r->top,
                        r->experts, logits.width);
    }
    return p->status == HEFT_OK;
}

/* Sort the choices of all tokens by expert, tokens in their order. */
static void sort_choices(const heft__routing *r, size_t tokens, const uint32_t *experts,
                         const float *weights, size_t *next, heft__routes *routes)
{
    size_t at = 0;
    for (size_t e = 0; e < r->experts; e++) {
        routes->first[e] = next[e] = at;
        at += routes->count[e];
    }
    for (size_t i = 0; i < tokens * r->top; i++) {
        const size_t place = next[experts[i]]++;
        routes->rows[place] = (int32_t)(i / r->top);
        routes->weights[place] = weights[i];
    }
}

heft__routes heft__route(heft__pass *p, heft__rows logits, const heft__routing *r)
{
    const size_t tokens = logits.count, chosen = tokens * r->top;
    heft__routes routes = {.tokens = tokens,
                           .count = heft__pass_take(p, r->experts, sizeof(size_t)),
                           .first = heft__pass_take(p, r->experts, sizeof(size_t)),
                           .rows = heft__pass_take(p, chosen, sizeof(int32_t)),
                           .weights = heft__pass_take(p, chosen, sizeof(float))};
    const size_t mark = heft__mark(p);
    uint32_t *experts = heft__pass_take(p, chosen, sizeof *experts);
    float *weights = heft__pass_take(p, chosen, sizeof *weights);
    size_t *next = heft__pass_take(p, r->experts, sizeof *next);
    struct choice choice = {.routing = r,
                            .scores = heft__pass_take(p, r->experts, sizeof(float)),
                            .order = heft__pass_take(p, r->experts, sizeof(float))};
    heft__release(p, mark);
    if (!good_routing(p, logits, r) || !heft__pass_live(p)) {
        heft__tally_route(p, tokens, r);
        return routes;
    }
    memset(routes.count, 0, r->experts * sizeof *routes.count);
    for (size_t t = 0; t < tokens; t++) {
        choice.logits = logits.x + t * logits.width;
        score(p->kernels, &choice);
        for (size_t i = 0; i < r->top; i++) {
            const size_t e = take_best(choice.order, r->experts);
            experts[t * r->top + i] = (uint32_t)e;
            weights[t * r->top + i] = choice.scores[e];
            routes.count[e]++;
        }
        weigh(p->kernels, r, weights + t * r->top);
    }
    sort_choices(r, tokens, experts, weights, next, &routes);
    return routes;
}

size_t heft__routed_count(const heft__pass *p, const heft__routes *routes, size_t expert)
{
    return p->dry ? routes->tokens : heft__pass_live(p) ? routes->count[expert] : 0;
}

heft__rows heft__routed(heft__pass *p, heft__rows x, const heft__routes *routes, size_t expert)
{
    const size_t first = heft__pass_live(p) ? routes->first[expert] : 0;
    p->expected.expert = true;
    return heft__pick(p, x, routes->rows ? routes->rows + first : NULL,
                      heft__routed_count(p, routes, expert));
}

void heft__add_routed(heft__pass *p, heft__rows y, const heft__routes *routes, size_t expert,
                      heft__rows x)
{
    const size_t first = heft__pass_live(p) ? routes->first[expert] : 0;
    p->expected.expert = false;
    for (size_t i = 0; heft__pass_live(p) && i < x.count; i++) {
        const size_t row = (size_t)routes->rows[first + i];
        p->kernels->add_scaled(y.x + row * y.width, x.x + i * x.width, routes->weights[first + i],
                               x.width);
    }
}

void heft__expect(heft__pass *p, const char *list, const heft__routes *routes, size_t experts)
{
    const size_t mark = heft__mark(p);
    size_t *units = heft__pass_take(p, experts, sizeof *units), count = 0;
    for (size_t i = 0; heft__pass_live(p) && i < experts; i++) {
        const size_t unit = routes->count[i] > 0 ? heft__pass_find_expert(p, list, i) : HEFT__NONE;
        if (unit != HEFT__NONE) {
            units[count++] = unit;
        }
    }
    if (heft__pass_live(p)) {
        heft__residency_expect(p->residency, units, count);
    }
    heft__release(p, mark);
}
