/* rest.c - units that no accelerator takes: one run stays on the CPU, the others go to the disk.
 *
 * Besides its run, the CPU keeps room for streaming the others: two neighbors at a time, one in use and
 * one being read, wrapping around to the first. Where two do not fit, one at a time. A layer and each of
 * its experts are streamed separately. With very many units, only the first runs are considered.
 * Source: docs/placing.md [4], [6]. */
#include "place/place.h"

#define WORK_MOST ((size_t)1 << 26) /* units looked at, in all runs */

struct run {
    size_t first, end;
    double bytes, saves;
};

static bool is_in(const struct run *run, size_t i)
{
    return i >= run->first && i < run->end;
}

/* Of a unit and the next at once: a tensor that both have counts once. */
static double both(const heft__rest_unit *a, const heft__rest_unit *b)
{
    const bool tied = a->leader == b->leader && !a->apart && !b->apart;
    const double less = a->tied < b->tied ? a->tied : b->tied, more = a->tied + b->tied - less;
    return (a->apart ? a->last : a->stream) + (b->apart ? b->first : b->stream) -
           (!tied      ? 0
            : less > 0 ? less
                       : more);
}

/* Of a unit alone. */
static double alone(const heft__rest_unit *unit, bool lone)
{
    return !unit->apart ? unit->stream : lone ? unit->one : unit->two;
}

/* The most bytes that are brought in at once if a run stays in memory; a tied unit is where its leader
 * is. */
static double room_beside(const heft__rest_unit *units, size_t count, const struct run *run,
                          bool lone)
{
    const heft__rest_unit *start = NULL, *last = NULL;
    double room = 0;
    for (size_t i = 0; i < count; i++) {
        const heft__rest_unit *unit = &units[i];
        if (unit->stream > 0 && !is_in(run, unit->leader)) {
            const double own = alone(unit, lone), pair = last && !lone ? both(last, unit) : 0;
            room = own > room ? own : room;
            room = pair > room ? pair : room;
            start = start ? start : unit;
            last = unit;
        }
    }
    const bool goes_around = !lone && start && (start != last || start->apart);
    const double around = goes_around ? both(last, start) : 0;
    return around > room ? around : room;
}

double heft__rest_room(const heft__rest_unit *units, size_t count, bool lone)
{
    const struct run none = {0};
    return room_beside(units, count, &none, lone);
}

/* Add a unit at the end, or remove one at either side. */
static void grow(struct run *run, const heft__rest_unit *units)
{
    run->bytes += units[run->end].bytes;
    run->saves += units[run->end++].saves;
}

static void cut_first(struct run *run, const heft__rest_unit *units)
{
    run->bytes -= units[run->first].bytes;
    run->saves -= units[run->first++].saves;
}

static void cut_last(struct run *run, const heft__rest_unit *units)
{
    run->bytes -= units[--run->end].bytes;
    run->saves -= units[run->end].saves;
}

/* No room for streaming: none is kept. The run that saves the most. */
static void choose_without(const heft__rest_unit *units, size_t count, double budget,
                           struct run *out)
{
    struct run run = {0};
    *out = run;
    while (run.end < count) {
        grow(&run, units);
        while (run.bytes > budget) {
            cut_first(&run, units);
        }
        *out = run.saves > out->saves ? run : *out;
    }
}

/* The run that saves the most among those that leave room for streaming; the first of equal ones. From each
 * unit on, the longest run that fits is shortened until the others fit too. False if streaming everything
 * does not even fit. */
static bool choose(const heft__rest_unit *units, size_t count, double budget, bool lone,
                   struct run *out)
{
    struct run best = {0}, run = {0};
    size_t looks = WORK_MOST / (count + 1);
    if (heft__rest_room(units, count, lone) > budget) {
        return false;
    }
    for (size_t first = 0; first < count && looks > 0; first++) {
        while (run.end < count && run.bytes + units[run.end].bytes <= budget) {
            grow(&run, units);
        }
        for (struct run it = run; it.saves > best.saves && looks > 0; looks--) {
            if (it.bytes + room_beside(units, count, &it, lone) <= budget) {
                best = it;
            } else {
                cut_last(&it, units);
            }
        }
        if (run.end > first) {
            cut_first(&run, units);
        } else { /* the unit alone is too large */
            run = (struct run){.first = first + 1, .end = first + 1};
        }
    }
    *out = best;
    return true;
}

void heft__rest_choose(const heft__rest_unit *units, size_t count, double budget, size_t *first,
                       size_t *end)
{
    struct run run = {0};
    for (size_t i = 0; i < count; i++) {
        grow(&run, units);
    }
    if (run.bytes > budget && !choose(units, count, budget, false, &run) &&
        !choose(units, count, budget, true, &run)) {
        choose_without(units, count, budget, &run);
    }
    *first = run.first;
    *end = run.end;
}
