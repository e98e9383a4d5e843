/* schedule.c - the order in which units will be acquired, and where in it the caller is.
 *
 *   units   0 1 2 | 3 4 5 3 4 5 ...     repeat = 3: after the last place comes place 3 again
 *                     ^last ^next
 *
 * The distance of a unit is the number of places from `next` to its next one. Places of a unit are found
 * by binary search in its own list.
 * Source: docs/residency.md [2]. */
#include "run/run.h"

static heft_status check(const size_t *units, size_t count, size_t repeat_from, size_t unit_count,
                         heft_error *err)
{
    if (!units || count == 0) {
        return heft__fail(err, HEFT_INVALID_ARG, "the schedule is empty");
    }
    if (count > UINT32_MAX - 1) {
        return heft__fail(err, HEFT_INVALID_ARG, "the schedule has %zu entries, more than 2^32 - 2",
                          count);
    }
    if (repeat_from != SIZE_MAX && repeat_from >= count) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "the schedule repeats from entry %zu, but has %zu entries", repeat_from,
                          count);
    }
    for (size_t i = 0; i < count; i++) {
        if (units[i] >= unit_count) {
            return heft__fail(err, HEFT_INVALID_ARG,
                              "entry %zu of the schedule is unit %zu, but there are %zu units", i,
                              units[i], unit_count);
        }
    }
    return HEFT_OK;
}

/* Sort places by unit: a counting sort, in which `begins` is first the end of each unit's places. */
static void index_places(heft__schedule *s)
{
    for (size_t i = 0; i < s->count; i++) {
        s->begins[s->units[i]]++;
    }
    for (size_t u = 1; u <= s->unit_count; u++) {
        s->begins[u] += s->begins[u - 1];
    }
    for (size_t i = s->count; i-- > 0;) {
        s->places[--s->begins[s->units[i]]] = (uint32_t)i;
    }
}

heft_status heft__schedule_make(heft_ctx *ctx, const size_t *units, size_t count,
                                size_t repeat_from, size_t unit_count, heft__schedule *out,
                                heft_error *err)
{
    heft_status status = check(units, count, repeat_from, unit_count, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft__schedule s = {.ctx = ctx,
                        .count = count,
                        .unit_count = unit_count,
                        .repeat = repeat_from,
                        .last = HEFT__NO_PLACE};
    s.units = heft__alloc(ctx, count * sizeof *s.units);
    s.places = heft__alloc(ctx, count * sizeof *s.places);
    s.begins = heft__alloc_zero(ctx, unit_count + 1, sizeof *s.begins);
    if (!s.units || !s.places || !s.begins) {
        heft__schedule_fini(&s);
        return heft__fail_nomem(err, count * sizeof *s.units);
    }
    for (size_t i = 0; i < count; i++) {
        s.units[i] = (uint32_t)units[i];
    }
    index_places(&s);
    *out = s;
    return HEFT_OK;
}

void heft__schedule_fini(heft__schedule *s)
{
    if (s->ctx) {
        heft__free(s->ctx, s->units, s->count * sizeof *s->units);
        heft__free(s->ctx, s->places, s->count * sizeof *s->places);
        heft__free(s->ctx, s->begins, (s->unit_count + 1) * sizeof *s->begins);
    }
    *s = (heft__schedule){0};
}

/* A unit's first place at `from` or after it; HEFT__NO_PLACE. */
static size_t place_from(const heft__schedule *s, size_t unit, size_t from)
{
    uint32_t low = s->begins[unit];
    const uint32_t end = s->begins[unit + 1];
    for (uint32_t high = end; low < high;) {
        const uint32_t middle = low + (high - low) / 2;
        if (s->places[middle] < from) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < end ? s->places[low] : HEFT__NO_PLACE;
}

/* Its next place, through the repeated part if need be. */
static size_t next_place(const heft__schedule *s, size_t unit)
{
    const size_t place = place_from(s, unit, s->next);
    return place == HEFT__NO_PLACE && s->repeat != HEFT__NO_PLACE ? place_from(s, unit, s->repeat)
                                                                  : place;
}

void heft__schedule_advance(heft__schedule *s, size_t unit)
{
    if (s->last != HEFT__NO_PLACE && s->units[s->last] == unit) {
        return;
    }
    const size_t place = next_place(s, unit);
    if (place != HEFT__NO_PLACE) {
        s->last = place;
        s->next = place + 1 == s->count && s->repeat != HEFT__NO_PLACE ? s->repeat : place + 1;
    }
}

uint64_t heft__schedule_distance(const heft__schedule *s, size_t unit)
{
    const size_t place = next_place(s, unit);
    return place == HEFT__NO_PLACE ? HEFT__NEVER
           : place >= s->next      ? place - s->next
                                   : s->count - s->next + (place - s->repeat);
}

bool heft__schedule_has(const heft__schedule *s, size_t unit)
{
    return s->begins[unit] < s->begins[unit + 1];
}

size_t heft__schedule_ahead(const heft__schedule *s, size_t places)
{
    const size_t left = s->count - s->next;
    if (places < left) {
        return s->units[s->next + places];
    }
    return s->repeat == HEFT__NO_PLACE
               ? HEFT__NO_UNIT
               : s->units[s->repeat + (places - left) % (s->count - s->repeat)];
}
