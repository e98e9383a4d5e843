/* shard.c - the greedy rule that splits tensors into shards, as in Transformers since 4.42.
 *
 * In order, for each tensor: a storage seen before waits; one larger than the limit is a finished
 * shard at once, while the current shard stays open (so it gets a lower number than tensors before
 * it); one that would pass the limit begins a new shard; what fits exactly stays. At the end each
 * waiting alias joins the shard of its storage.
 * Source: docs/sharding.md [2]. */
#include "checkpoint/checkpoint.h"

struct cutter {
    heft__shard_plan *plan;
    size_t finished;  /* shards with a number */
    uint64_t current; /* bytes in the open shard */
    size_t open_from; /* tensors in the open shard have this number until it is finished */
    bool open;
};

#define WAITING SIZE_MAX     /* in the open shard, which has no number yet */
#define ALIAS (SIZE_MAX - 1) /* its storage was seen before */

/* Give the open shard its number. */
static void finish(struct cutter *cut, size_t upto)
{
    if (cut->open) {
        for (size_t i = cut->open_from; i < upto; i++) {
            if (cut->plan->shard[i] == WAITING) {
                cut->plan->shard[i] = cut->finished;
            }
        }
        cut->finished++;
    }
    cut->open = false;
    cut->current = 0;
    cut->open_from = upto;
}

static heft_status cut_one(struct cutter *cut, const heft__out_tensor *tensor, size_t i,
                           uint64_t max_bytes, heft_error *err)
{
    const uint64_t bytes = tensor->size_bytes;
    if (!heft__add_u64(cut->plan->total_size, bytes, &cut->plan->total_size)) {
        return heft__fail(err, HEFT_LIMIT, "the tensors exceed 2^64 bytes");
    }
    if (bytes > max_bytes) {
        cut->plan->shard[i] = cut->finished++;
        return HEFT_OK;
    }
    if (cut->current + bytes > max_bytes) {
        finish(cut, i);
    }
    cut->plan->shard[i] = WAITING;
    cut->open = true;
    cut->current += bytes;
    return HEFT_OK;
}

heft_status heft__shard_plan_make(heft_ctx *ctx, const heft__out_tensor *tensors, size_t count,
                                  uint64_t max_bytes, heft__shard_plan *out, heft_error *err)
{
    heft__map seen; /* storage number as bytes -> first tensor */
    heft__shard_plan plan = {.shard = heft__alloc_zero(ctx, count, sizeof *plan.shard)};
    struct cutter cut = {.plan = &plan};
    heft_status status = plan.shard ? HEFT_OK : heft__fail_nomem(err, count * sizeof *plan.shard);
    heft__map_init(&seen, ctx);
    max_bytes = max_bytes > INT64_MAX ? INT64_MAX : max_bytes; /* sums of two stay below 2^64 */
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        size_t first;
        if (!heft__map_put(&seen, (const char *)&tensors[i].storage, sizeof tensors[i].storage, i,
                           &first)) {
            status = heft__fail_nomem(err, 0);
        } else if (first != HEFT__MAP_NONE) {
            plan.shard[i] = ALIAS;
        } else {
            status = cut_one(&cut, &tensors[i], i, max_bytes, err);
        }
    }
    if (status == HEFT_OK) {
        finish(&cut, count);
        for (size_t i = 0; i < count; i++) {
            if (plan.shard[i] == ALIAS) {
                plan.shard[i] = plan.shard[heft__map_get(&seen, (const char *)&tensors[i].storage,
                                                         sizeof tensors[i].storage)];
            }
        }
        plan.shard_count = cut.finished;
        *out = plan;
    } else {
        heft__shard_plan_fini(ctx, &plan, count);
    }
    heft__map_fini(&seen);
    return status;
}

heft_status heft__shard_plan_each(heft_ctx *ctx, const heft__out_tensor *tensors, size_t count,
                                  heft__shard_plan *out, heft_error *err)
{
    heft__shard_plan plan = {.shard = heft__alloc_zero(ctx, count, sizeof *plan.shard),
                             .shard_count = count};
    heft_status status = plan.shard ? HEFT_OK : heft__fail_nomem(err, count * sizeof *plan.shard);
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        plan.shard[i] = i;
        if (!heft__add_u64(plan.total_size, tensors[i].size_bytes, &plan.total_size)) {
            status = heft__fail(err, HEFT_LIMIT, "the tensors exceed 2^64 bytes");
        }
    }
    if (status != HEFT_OK) {
        heft__shard_plan_fini(ctx, &plan, count);
        return status;
    }
    *out = plan;
    return HEFT_OK;
}

void heft__shard_plan_fini(heft_ctx *ctx, heft__shard_plan *plan, size_t count)
{
    heft__free(ctx, plan->shard, count * sizeof *plan->shard);
    plan->shard = NULL;
}
