/* rest.c - what no accelerator takes: a run for the processor, the others for the disk.
 *
 * The processor keeps, beside its run, room to bring the others in: two neighbours at a time, one that
 * is used and one that comes, the first behind the last. Where two have no room, one at a time.
 * The room depends on the run, and the run on the room: begun with the room that all would take, it
 * is made smaller as long as that gives a run with more bytes.
 * Source: docs/placing.md [4], [6]. */
#include "place/place.h"

#define ROUNDS 8

struct run {
    size_t first, end;
    double bytes;
};

static bool is_in(const struct run *run, size_t i)
{
    return i >= run->first && i < run->end;
}

/* The most bytes that are brought in at once, if a run has memory; what is tied is where the unit is that
 * it is tied to. */
static double room_beside(const heft__rest_unit *units, size_t count, const struct run *run,
                          bool lone)
{
    double room = 0, start = 0, last = 0;
    bool several = false;
    for (size_t i = 0; i < count; i++) {
        const double own = is_in(run, units[i].leader) ? 0 : units[i].stream;
        const double pair = lone ? own : own + last;
        if (own > 0) {
            several = last > 0;
            start = several ? start : own;
            last = own;
            room = pair > room ? pair : room;
        }
    }
    const double around = several && !lone ? last + start : 0;
    return around > room ? around : room;
}

double heft__rest_room(const heft__rest_unit *units, size_t count, bool lone)
{
    const struct run none = {0};
    return room_beside(units, count, &none, lone);
}

/* The run with the most bytes, up to a limit; the first of equals. */
static struct run longest_run(const heft__rest_unit *units, size_t count, double most)
{
    struct run best = {0}, run = {0};
    while (run.end < count) {
        run.bytes += units[run.end++].bytes;
        while (run.bytes > most && run.first < run.end) {
            run.bytes -= units[run.first++].bytes;
        }
        if (run.bytes > best.bytes) {
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
        if (run.bytes + taken > budget || run.bytes <= out->bytes) {
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
