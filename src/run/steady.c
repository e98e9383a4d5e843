/* steady.c - what a residency reads in each pass over the same units, in the long run.
 *
 * Its decisions are made once more, with sizes only: which units are dropped for the next one, and for those that
 * are read ahead (residency.c, evict.c). After a few passes they repeat. Reading ahead is taken to be as fast
 * as it has to be. Experts are in no schedule and go before its units: what they take while they are used the caller
 * takes from the budget (predict.c).
 * Source: docs/residency.md [3]. */
#include "run/predict.h"

#define SETTLE ((size_t)4) /* passes, until what is kept does not change */
#define COUNTED ((size_t)4)

struct steady {
    heft__schedule schedule;
    const uint64_t *bytes; /* [unit_count] */
    bool *here;            /* [unit_count] */
    size_t unit_count, used;
    uint64_t budget, held, read;
};

/* The unit that is here, and not dropped, whose next use is farthest and farther than `reach`; HEFT__NO_UNIT. */
static size_t farthest(const struct steady *s, uint64_t reach, const bool *dropped)
{
    size_t found = HEFT__NO_UNIT;
    uint64_t most = reach;
    for (size_t i = 0; i < s->unit_count; i++) {
        if (s->here[i] && i != s->used && !dropped[i]) {
            const uint64_t distance = heft__schedule_distance(&s->schedule, i);
            found = distance > most || (reach == 0 && found == HEFT__NO_UNIT) ? i : found;
            most = distance > most ? distance : most;
        }
    }
    return found;
}

/* Drop units until there is room for so many bytes; false with nothing dropped. */
static bool make_room(struct steady *s, uint64_t bytes, uint64_t reach, bool *dropped)
{
    uint64_t held = s->held;
    memset(dropped, 0, s->unit_count * sizeof *dropped);
    while (held + bytes > s->budget) {
        const size_t unit = farthest(s, reach, dropped);
        if (unit == HEFT__NO_UNIT) {
            return false;
        }
        dropped[unit] = true;
        held -= s->bytes[unit];
    }
    for (size_t i = 0; i < s->unit_count; i++) {
        s->here[i] = s->here[i] && !dropped[i];
    }
    s->held = held;
    return true;
}

static void bring(struct steady *s, size_t unit)
{
    s->here[unit] = true;
    s->held += s->bytes[unit];
    s->read += s->bytes[unit];
}

/* Read ahead as far as there is room. */
static void read_ahead(struct steady *s, bool *dropped)
{
    const heft__schedule *schedule = &s->schedule;
    const size_t most = schedule->count - schedule->next + schedule->count;
    uint64_t between = 0;
    for (size_t i = 0; i < most; i++) {
        const size_t unit = heft__schedule_ahead(schedule, i);
        const uint64_t bytes = s->bytes[unit];
        if (bytes > 0 && !s->here[unit]) {
            const bool near = heft__is_near(s->budget, bytes, between);
            if (!make_room(s, bytes, near ? i : HEFT__NEVER - 1, dropped)) {
                return;
            }
            bring(s, unit);
        }
        between += bytes;
    }
}

heft_status heft__steady_units(heft_ctx *ctx, const size_t *order, size_t count,
                               const uint64_t *bytes, size_t unit_count, uint64_t budget,
                               uint64_t *read, heft_error *err)
{
    struct steady s = {
        .bytes = bytes, .unit_count = unit_count, .used = HEFT__NO_UNIT, .budget = budget};
    heft_status status = heft__schedule_make(ctx, order, count, 0, unit_count, &s.schedule, err);
    if (status != HEFT_OK) {
        return status;
    }
    s.here = heft__alloc_zero(ctx, unit_count, 2 * sizeof *s.here);
    if (!s.here) {
        heft__schedule_fini(&s.schedule);
        return heft__fail_nomem(err, 2 * unit_count * sizeof *s.here);
    }
    bool *dropped = s.here + unit_count;
    for (size_t pass = 0; pass < SETTLE + COUNTED; pass++) {
        s.read = pass == SETTLE ? 0 : s.read;
        for (size_t i = 0; i < count; i++) {
            const size_t unit = order[i];
            heft__schedule_advance(&s.schedule, unit);
            if (bytes[unit] > 0) {
                s.used = unit;
                if (!s.here[unit] && make_room(&s, bytes[unit], 0, dropped)) {
                    bring(&s, unit);
                }
                read_ahead(&s, dropped);
            }
        }
    }
    *read = s.read / COUNTED;
    heft__free(ctx, s.here, 2 * unit_count * sizeof *s.here);
    heft__schedule_fini(&s.schedule);
    return HEFT_OK;
}
