/* rest.c - what no accelerator takes: a run for the processor, the others for the disk.
 *
 * The processor keeps, beside its run, room to bring the others in: two neighbours at a time, one that
 * is used and one that comes, the first behind the last. Where two have no room, one at a time.
 * The room depends on the run, and the run on the room: begun with the room that all would take, it
 * is made smaller as long as that gives a run that saves more.
 * Source: docs/placing.md [4], [6]. */
#include "place/place.h"

#define ROUNDS 8

struct run {
    size_t first, end;
    double bytes, saves;
};

static bool is_in(const struct run *run, size_t i)
{
    return i >= run->first && i < run->end;
}

/* Of two units at once: a tensor that both have counts once. */
static double both(const heft__rest_unit *a, const heft__rest_unit *b)
{
    const bool tied = a->leader == b->leader;
    const double less = a->tied < b->tied ? a->tied : b->tied, more = a->tied + b->tied - less;
    return a->stream + b->stream - (!tied ? 0 : less > 0 ? less : more);
}

/* The most bytes that are brought in at once, if a run has memory; what is tied is where the unit is that
 * it is tied to. */
static double room_beside(const heft__rest_unit *units, size_t count, const struct run *run,
                          bool lone)
{
    const heft__rest_unit *start = NULL, *last = NULL;
    double room = 0;
    for (size_t i = 0; i < count; i++) {
        const heft__rest_unit *unit = &units[i];
        if (unit->stream > 0 && !is_in(run, unit->leader)) {
            const double own = last && !lone ? both(last, unit) : unit->stream;
            room = own > room ? own : room;
            start = start ? start : unit;
            last = unit;
        }
    }
    const double around = start != last && !lone ? both(last, start) : 0;
    return around > room ? around : room;
}

double heft__rest_room(const heft__rest_unit *units, size_t count, bool lone)
{
    const struct run none = {0};
    return room_beside(units, count, &none, lone);
}

/* The run that saves the most, up to a limit of bytes; the first of equals. */
static struct run longest_run(const heft__rest_unit *units, size_t count, double most)
{
    struct run best = {0}, run = {0};
    while (run.end < count) {
        run.saves += units[run.end].saves;
        run.bytes += units[run.end++].bytes;
        while (run.bytes > most && run.first < run.end) {
            run.saves -= units[run.first].saves;
            run.bytes -= units[run.first++].bytes;
        }
        if (run.saves > best.saves) {
            best = run;
        }
    }
    return best;
}

/* False if there is not even room to bring everything in. */
static bool choose(const heft__rest_unit *units, size_t count, double budget, bool lone,
                   struct run *out)
{
    double room = heft__rest_room(units, count, lone);
    if (room > budget) {
        return false;
    }
    *out = (struct run){0};
    for (int i = 0; i < ROUNDS; i++) {
        const struct run run = longest_run(units, count, budget - room);
        const double taken = room_beside(units, count, &run, lone);
        if (run.bytes + taken > budget || run.saves <= out->saves) {
            break;
        }
        *out = run;
        room = taken;
    }
    return true;
}

void heft__rest_choose(const heft__rest_unit *units, size_t count, double budget, size_t *first,
                       size_t *end)
{
    struct run run = longest_run(units, count, budget);
    if (run.end - run.first < count && !choose(units, count, budget, false, &run)) {
        (void)choose(units, count, budget, true, &run); /* no room at all: then none is kept */
    }
    *first = run.first;
    *end = run.end;
}
