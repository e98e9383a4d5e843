/* room_left.c - whether what a residency will hold fits in the memory that is left, asked before any is taken.
 *
 *   certain   of units that have to be read into buffers: all, where the budget holds the whole schedule;
 *             else the largest, or what a full budget holds if there are no others
 *   at most   the budget, or all units if that is less; what buffers take beside their bytes; staging
 *
 * A unit that is mapped may be used in the page cache, whose pages can go: it is not certain.
 * Source: docs/residency.md [4], docs/loading.md [9]. */
#include "run/run.h"

struct sums {
    uint64_t all, own; /* bytes of the schedule's units, and of those that need a buffer */
    uint64_t largest, largest_own;
    uint64_t beside; /* that buffers have beside these bytes */
    uint64_t scratch;
};

static uint64_t scratch_of(const heft_residency *r, const heft__unit *unit)
{
    const heft__homes *homes = heft__model_homes(r->model);
    uint64_t most = 0;
    for (size_t i = 0; i < unit->brought_count; i++) {
        const size_t number = unit->brought[i].parameter;
        const heft__part part = {.tensor = homes->source[heft__whole_of(r, number)],
                                 .to = r->views[number].dtype,
                                 .direct = r->views[number].size_bytes >= HEFT__DIRECT_TENSOR};
        most = heft__larger_u64(most, heft__part_scratch(homes->ckpt, &part));
    }
    return most;
}

static struct sums sum_up(const heft_residency *r)
{
    struct sums sums = {0};
    for (size_t i = 0; i < r->unit_count; i++) {
        const heft__unit *unit = &r->units[i];
        const uint64_t bytes = unit->shown.brought_bytes,
                       own = unit->mappable && !r->writable ? 0 : bytes;
        if (bytes > 0 && heft__schedule_has(&r->schedule, i)) {
            sums.all += bytes;
            sums.own += own;
            sums.largest = heft__larger_u64(sums.largest, bytes);
            sums.largest_own = heft__larger_u64(sums.largest_own, own);
            sums.beside += unit->room - bytes;
            sums.scratch = heft__larger_u64(sums.scratch, scratch_of(r, unit));
        }
    }
    return sums;
}

/* With others on the ledger nothing is known of what they leave. */
static uint64_t certain_bytes(const struct sums *sums, uint64_t budget, bool alone)
{
    if (alone && sums->all <= budget) {
        return sums->own;
    }
    /* the next unit did not fit, and is at most the largest */
    const bool full = alone && sums->own == sums->all;
    return heft__larger_u64(sums->largest_own, full ? budget - sums->largest : 0);
}

heft_status heft__residency_check_limit(heft_residency *r, bool alone, bool over_limit,
                                        heft_error *err)
{
    const struct sums sums = sum_up(r);
    const uint64_t budget = r->counts.budget_bytes;
    heft__memory_need need = {.certain = certain_bytes(&sums, budget, alone),
                              .most = (sums.all < budget ? sums.all : budget) + sums.beside,
                              .during = "units are brought in",
                              .instead = "a smaller budget keeps fewer units, "};
    char warning[HEFT__LIMIT_WARNING] = "";
    if (sums.all > 0) {
        need.most += (sums.scratch + HEFT__THREAD_BYTES) * heft__reading_threads(r->ctx, true);
    }
    r->counts.least_bytes = need.certain;
    r->counts.most_bytes = need.most;
    if (over_limit || sums.all == 0) {
        return HEFT_OK;
    }
    heft_status status = heft__limit_memory(r->model->machine, &need, warning, err);
    if (status == HEFT_OK) { /* without space, units are dropped until there is some for one */
        need.certain = sums.largest_own;
        status = heft__limit_space(&need, warning, err);
    }
    if (status == HEFT_OK && *warning) {
        r->warning = heft__arena_text(&r->arena, warning, strlen(warning));
        status = r->warning ? HEFT_OK : heft__fail_nomem(err, strlen(warning));
    }
    return status;
}

const char *heft_residency_warning(const heft_residency *r)
{
    return r ? r->warning : NULL;
}
