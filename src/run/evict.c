/* evict.c - which unit is dropped for another, and what happens to its memory.
 *
 * A unit that no lease holds is idle: it may be dropped. The one whose next use is farthest goes first: by
 * the places of its residency's schedule until then, and by the acquires that other residencies of the
 * ledger have had since its own had one. Units that a schedule is through with come before all others,
 * then those that are in no schedule, the least recently used first. Among these, experts of a layer in the
 * schedule go last, and their next use can be estimated: when their layer comes again, if they were chosen
 * each time that it came, else as many times later.
 *
 * A unit of a writable residency is not idle after its use but worn: it is dropped at once, and its memory is kept
 * for the next unit of its size as long as the budget has room for it.
 *
 * A unit's bytes are its stay. A tensor that is out keeps the stay, and so its part of the budget, also
 * when the unit is gone. The ledger's lock is held everywhere.
 * Source: docs/residency.md [3]. */
#include "run/run.h"

/* ---- idle units ------------------------------------------------------------------------------ */
static void idle_add(heft_residency *r, heft__unit *unit)
{
    unit->idle_at = r->idle_count;
    r->idle[r->idle_count++] = (size_t)(unit - r->units);
}

static void idle_remove(heft_residency *r, heft__unit *unit)
{
    if (unit->idle_at != HEFT__NO_PLACE) {
        const size_t last = r->idle[--r->idle_count];
        r->idle[unit->idle_at] = last;
        r->units[last].idle_at = unit->idle_at;
        unit->idle_at = HEFT__NO_PLACE;
    }
}

void heft__unit_use(heft_residency *r, heft__unit *unit)
{
    idle_remove(r, unit);
    unit->users++;
}

/* ---- stays ----------------------------------------------------------------------------------- */
void heft__stays_free(heft__stay *list)
{
    while (list) {
        heft__stay *stay = list;
        heft_ctx *ctx = stay->ctx;
        list = stay->next;
        heft__free(ctx, stay->memory, stay->room);
        heft__ledger_unref(stay->ledger);
        heft__free(ctx, stay, sizeof *stay);
        heft_ctx_free(ctx);
    }
}

static void free_spare(heft_ledger *ledger)
{
    heft__stay *stay = ledger->spares;
    ledger->spares = stay->next;
    ledger->spare_bytes -= stay->bytes;
    stay->next = NULL;
    heft__stays_free(stay);
}

void heft__spares_trim(heft_ledger *ledger)
{
    while (ledger->spares && ledger->spare_bytes > heft__ledger_left(ledger)) {
        free_spare(ledger);
    }
}

void heft__spares_free(heft_ledger *ledger)
{
    while (ledger->spares) {
        free_spare(ledger);
    }
}

static void keep_spare(heft_ledger *ledger, heft__stay *stay)
{
    stay->next = ledger->spares;
    ledger->spares = stay;
    ledger->spare_bytes += stay->bytes;
    heft__spares_trim(ledger);
}

void heft__views_set(heft_residency *r, const heft__unit *unit, bool here)
{
    for (size_t k = 0; k < unit->shown.parameter_count; k++) {
        const size_t number = unit->shown.parameters[k], at = r->brought_at[number];
        if (at != SIZE_MAX) {
            r->views[number].data = here ? unit->brought[at].data : NULL;
            const uint32_t own = r->writable ? HEFT_TENSOR_WRITABLE : 0;
            r->views[number].flags = !here ? 0 : unit->stay->memory ? own : HEFT_TENSOR_MAPPED;
        }
    }
}

/* Part a unit from its stay, which is returned if no tensor of it is out; otherwise NULL. */
static heft__stay *part(heft_residency *r, heft__unit *unit)
{
    heft__stay *stay = unit->stay;
    idle_remove(r, unit);
    if (unit->state == HEFT__UNIT_HERE) {
        if (!stay->memory && stay->refs == 1) {
            heft__unit_forget(r, unit, false);
        }
        heft__views_set(r, unit, false);
    }
    r->counts.held_bytes -= stay->bytes;
    unit->stay = NULL;
    unit->state = HEFT__UNIT_AWAY;
    r->away += heft__schedule_has(&r->schedule, (size_t)(unit - r->units));
    stay->unit = NULL;
    stay->residency = NULL;
    if (--stay->refs > 0) {
        return NULL;
    }
    stay->ledger->held -= stay->bytes;
    stay->next = NULL;
    return stay;
}

/* Whether the first request of the queue needs a unit. */
static bool is_wanted(const heft_residency *r, const heft__unit *unit)
{
    const heft__request *first = r->ledger->first;
    const size_t number = (size_t)(unit - r->units);
    bool found = false;
    for (size_t i = 0; first && first->residency == r && i < first->lease->count && !found; i++) {
        found = first->lease->units[i] == number;
    }
    return found;
}

void heft__unit_settle(heft_residency *r, heft__unit *unit)
{
    heft_ledger *ledger = r->ledger;
    if (unit->users > 0 || !unit->stay || unit->state == HEFT__UNIT_COMING) {
        return;
    }
    const bool idle = unit->state == HEFT__UNIT_HERE && unit->stay->refs == 1;
    const bool lacking =
        ledger->first && heft__ledger_left(ledger) < ledger->first->needed && !is_wanted(r, unit);
    if (unit->state == HEFT__UNIT_PROMISED || r->closed || (idle && lacking)) {
        heft__stays_free(part(r, unit)); /* threads that wait for room have it at once */
    } else if (idle && unit->worn) {
        keep_spare(ledger, part(r, unit));
        heft__reader_wake(r); /* it is away now */
    } else if (idle && unit->idle_at == HEFT__NO_PLACE) {
        idle_add(r, unit);
    }
}

void heft__unit_renew(heft_residency *r, heft__unit *unit)
{
    if (unit->worn && unit->users == 0 && unit->state == HEFT__UNIT_HERE) {
        heft__stay *stay = part(r, unit);
        if (stay) {
            keep_spare(r->ledger, stay);
        }
    }
}

/* The stay in a list whose buffer has just this size, or NULL. */
static heft__stay *find_stay(const heft_residency *r, size_t room, heft__stay **list)
{
    for (heft__stay **at = list; *at; at = &(*at)->next) {
        heft__stay *stay = *at;
        if (stay->memory && stay->room == room && stay->ctx == r->ctx) {
            *at = stay->next;
            return stay;
        }
    }
    return NULL;
}

/* The stay of a dropped or worn unit whose buffer has just this size, else a new one without memory. */
static heft__stay *take_stay(heft_residency *r, size_t room, heft__stay **dropped, heft_error *err)
{
    heft__stay *stay = find_stay(r, room, dropped);
    if (!stay && (stay = find_stay(r, room, &r->ledger->spares))) {
        r->ledger->spare_bytes -= stay->bytes;
    }
    if (stay) {
        return stay;
    }
    stay = heft__alloc_zero(r->ctx, 1, sizeof *stay);
    if (!stay) {
        (void)heft__fail_nomem(err, sizeof *stay);
        return NULL;
    }
    stay->ctx = heft__ctx_ref(r->ctx);
    stay->ledger = heft__ledger_ref(r->ledger);
    stay->room = room;
    return stay;
}

heft_status heft__unit_promise(heft_residency *r, heft__unit *unit, heft__stay **dropped,
                               heft_error *err)
{
    heft_ledger *ledger = r->ledger;
    size_t room;
    heft__stay *stay = NULL;
    if (!heft__to_size(unit->room, &room)) {
        return heft__fail_nomem(err, unit->room);
    }
    stay = take_stay(r, room, dropped, err);
    if (!stay) {
        return HEFT_NOMEM;
    }
    stay->residency = r;
    stay->unit = unit;
    stay->bytes = unit->shown.brought_bytes;
    stay->refs = 1;
    unit->stay = stay;
    unit->state = HEFT__UNIT_PROMISED;
    unit->worn = false;
    r->away -= heft__schedule_has(&r->schedule, (size_t)(unit - r->units));
    ledger->held += stay->bytes;
    r->counts.held_bytes += stay->bytes;
    const uint64_t held = ledger->held + ledger->reserved;
    ledger->peak = held > ledger->peak ? held : ledger->peak;
    heft__spares_trim(ledger);
    if (r->counts.held_bytes > r->counts.peak_bytes) {
        r->counts.peak_bytes = r->counts.held_bytes;
    }
    return HEFT_OK;
}

/* ---- victims --------------------------------------------------------------------------------- */
/* The nearer `a` is to going, the larger. */
static bool goes_first(const heft__victim *a, const heft__victim *b)
{
    return a->key != b->key ? a->key > b->key : a->used < b->used;
}

/* How far the next use of an expert is: the way to its layer, and as many rounds more as the layer has been
 * used oftener than itself; CHOICE more, as it may not be chosen at all. NEVER - 1: nothing is known. */
#define CHOICE (HEFT__NEVER / 2)
static uint64_t distance_of_choice(const heft_residency *r, const heft__unit *unit)
{
    const heft__schedule *s = &r->schedule;
    const uint32_t host = r->host[unit->group];
    const uint64_t way =
        host == HEFT__NO_HOST ? HEFT__NEVER : heft__schedule_distance(s, (size_t)host);
    if (unit->expected) {
        return unit->expected;
    }
    if (way == HEFT__NEVER || s->repeat == HEFT__NO_PLACE) {
        return HEFT__NEVER - 1;
    }
    const uint64_t visits = (uint64_t)r->units[host].uses + 1, uses = (uint64_t)unit->uses + 1;
    return CHOICE + way + (visits > uses ? (visits - uses) * (s->count - s->repeat) / uses : 0);
}

/* How far a unit's next use is; NEVER: there is none. */
static uint64_t key_of(const heft_residency *r, size_t unit)
{
    const uint64_t distance = heft__schedule_has(&r->schedule, unit)
                                  ? heft__schedule_distance(&r->schedule, unit)
                                  : distance_of_choice(r, &r->units[unit]);
    return distance >= HEFT__NEVER - 1 ? distance : distance + (r->ledger->tick - r->tick);
}

static void sink(heft__victim *heap, size_t count, size_t at)
{
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        child += child + 1 < count && goes_first(&heap[child + 1], &heap[child]);
        if (!goes_first(&heap[child], &heap[at])) {
            return;
        }
        const heft__victim swapped = heap[at];
        heap[at] = heap[child];
        heap[child] = swapped;
    }
}

/* A heap of all idle units whose next use is farther than `reach` (0: of all); *bytes: that they hold. */
static size_t gather(heft_ledger *ledger, uint64_t reach, uint64_t *bytes)
{
    heft__victim *heap = ledger->victims;
    size_t count = 0;
    *bytes = 0;
    for (heft_residency *r = ledger->residencies; r; r = r->next) {
        for (size_t i = 0; i < r->idle_count; i++) {
            const heft__unit *unit = &r->units[r->idle[i]];
            const uint64_t key = key_of(r, r->idle[i]);
            if ((key > reach || reach == 0) && !is_wanted(r, unit)) {
                heap[count++] = (heft__victim){key, unit->used, r, r->idle[i]};
                *bytes += unit->stay->bytes;
            }
        }
    }
    for (size_t i = count / 2; i-- > 0;) {
        sink(heap, count, i);
    }
    return count;
}

static void drop_first(heft__victim *heap, size_t *count, heft__stay **dropped)
{
    const heft__victim victim = heap[0];
    heft__stay *stay = part(victim.residency, &victim.residency->units[victim.unit]);
    heap[0] = heap[--*count];
    sink(heap, *count, 0);
    if (stay) { /* no tensor of an idle unit is out */
        stay->next = *dropped;
        *dropped = stay;
    }
}

bool heft__make_room(heft_ledger *ledger, uint64_t bytes, uint64_t reach, heft__stay **dropped)
{
    uint64_t idle = 0;
    if (bytes <= heft__ledger_left(ledger)) {
        return true;
    }
    size_t count = gather(ledger, reach, &idle);
    if (idle + heft__ledger_left(ledger) < bytes) {
        return false;
    }
    while (bytes > heft__ledger_left(ledger)) {
        drop_first(ledger->victims, &count, dropped);
    }
    return true;
}

void heft__drop_idle(heft_ledger *ledger)
{
    uint64_t idle = 0;
    heft__stay *dropped = NULL;
    size_t count = gather(ledger, 0, &idle);
    while (count > 0) {
        drop_first(ledger->victims, &count, &dropped);
    }
    heft__stays_free(dropped);
}

bool heft__drop_one(heft_ledger *ledger)
{
    uint64_t idle = 0;
    heft__stay *dropped = NULL;
    size_t count = gather(ledger, 0, &idle);
    const bool any = count > 0 || ledger->spares;
    if (ledger->spares) {
        heft__spares_free(ledger);
    } else if (any) {
        drop_first(ledger->victims, &count, &dropped);
    }
    heft__stays_free(dropped);
    return any;
}
