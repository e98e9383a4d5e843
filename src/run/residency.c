/* residency.c - units in memory while they are held, and the next ones ahead of time.
 *
 *   away -> promised -> coming -> here -> away
 *
 * A thread that acquires units that are away is granted all of them at once, as soon as the budget has room
 * for them, and brings them in itself. The residency's own thread brings in the next units of the schedule
 * while no other thread waits. One set of units comes at a time, read by all reading threads. The ledger's
 * lock guards all of it; it is released while bytes are read and while a callback runs.
 *
 * Not done here: choosing what is dropped (evict.c), the queue (ledger.c), reading (bring.c).
 * Source: docs/residency.md. */
#include "run/run.h"

#define BATCH_BYTES HEFT__READ_BYTES /* of small units that come together */
#define USES_MOST 256                /* of a unit, before they are halved */
#define STALE                                                                                      \
    16 /* acquires of others on the ledger, after which a residency reads no further ahead */

/* ---- bringing in ------------------------------------------------------------------------------ */
/* Bring in the first `count` units of the batch, which are promised; the lock is released meanwhile. On
 * failure those that are held stay promised: threads that wait for them try again and get the error. */
static heft_status bring(heft_residency *r, size_t count, heft_error *err)
{
    r->coming = true;
    for (size_t i = 0; i < count; i++) {
        r->batch[i]->state = HEFT__UNIT_COMING;
    }
    pthread_mutex_unlock(&r->ledger->lock);
    const heft_status status = heft__units_bring(r, count, err);
    pthread_mutex_lock(&r->ledger->lock);
    r->coming = false;
    for (size_t i = 0; i < count; i++) {
        heft__unit *unit = r->batch[i];
        unit->state = status == HEFT_OK ? HEFT__UNIT_HERE : HEFT__UNIT_PROMISED;
        unit->used = r->ledger->tick;
        if (status == HEFT_OK) {
            heft__views_set(r, unit, true);
            if (!unit->stay->memory) {
                heft__unit_forget(r, unit, true);
            }
            *(unit->stay->memory ? &r->counts.read_bytes : &r->counts.mapped_bytes) +=
                unit->shown.brought_bytes;
            r->counts.brought_units++;
        }
        heft__unit_settle(r, unit);
    }
    heft__ledger_changed(r->ledger);
    return status;
}

/* ---- reading ahead ----------------------------------------------------------------------------- */
struct ahead {               /* what has been promised on the way through what comes next */
    uint64_t between, total; /* bytes passed, and promised */
    heft__stay *dropped;
    size_t places, taken;
};

/* Promise the unit in the next place if it is away; false: there is no room. */
static bool take_next(heft_residency *r, struct ahead *a, heft__unit *unit)
{
    const uint64_t bytes = unit->shown.brought_bytes;
    if (bytes > 0 && unit->state == HEFT__UNIT_AWAY) {
        /* as far as it is itself, and as the residency is behind others */
        const uint64_t reach = a->places + (r->ledger->tick - r->tick);
        if (!heft__make_room(r->ledger, bytes,
                             heft__is_near(r->ledger->budget, bytes, a->between) ? reach
                                                                                 : HEFT__NEVER - 1,
                             &a->dropped) ||
            heft__unit_promise(r, unit, &a->dropped, NULL) != HEFT_OK) {
            return false;
        }
        r->batch[a->taken++] = unit;
        a->total += bytes;
    }
    a->between += bytes;
    a->places++;
    return true;
}

/* Promise the next units that are away and have room: one, or several small ones. Returns how many. */
static size_t take_ahead(heft_residency *r)
{
    const heft__schedule *s = &r->schedule;
    const size_t most =
        s->count - s->next + (s->repeat == HEFT__NO_PLACE ? 0 : s->count - s->repeat);
    struct ahead a = {0};
    bool room = true;
    for (size_t i = 0; i < r->expected_count && room && a.total < BATCH_BYTES; i++) {
        heft__unit *unit = &r->units[r->expected[i]];
        room = unit->expected == 0 || take_next(r, &a, unit);
    }
    for (size_t i = 0; i < most && room && a.total < BATCH_BYTES; i++) {
        room = take_next(r, &a, &r->units[heft__schedule_ahead(s, i)]);
    }
    heft__stays_free(a.dropped);
    return a.taken;
}

/* Read ahead until told to stop. A unit that cannot be read stays away: acquiring it will return
 * the error. */
static void read_ahead(heft_residency *r)
{
    pthread_mutex_lock(&r->ledger->lock);
    while (!r->quit) {
        const bool fresh = r->ledger->tick - r->tick < STALE,
                   free = !r->failed && !r->coming && r->wanting == 0 && !r->ledger->first;
        const size_t count = free && fresh ? take_ahead(r) : 0;
        if (count > 0) {
            r->failed = bring(r, count, NULL) != HEFT_OK;
        } else {
            r->resting = true;
            pthread_cond_broadcast(&r->ledger->changed); /* for heft__residency_settle() */
            pthread_cond_wait(&r->look, &r->ledger->lock);
        }
    }
    pthread_mutex_unlock(&r->ledger->lock);
}

static void *run_reader(void *user)
{
    read_ahead(user);
    return NULL;
}

static void begin_reader(heft_residency *r)
{
    if (!r->reading && !r->closed && (r->away > 0 || r->expected_count > 0)) {
        r->reading = heft__thread_begin(&r->reader, run_reader, r);
    }
}

static void expect_nothing(heft_residency *r)
{
    for (size_t i = 0; i < r->expected_count; i++) {
        r->units[r->expected[i]].expected = 0;
    }
    r->expected_count = 0;
}

void heft__residency_expect(heft_residency *r, const size_t *units, size_t count)
{
    pthread_mutex_lock(&r->ledger->lock);
    expect_nothing(r);
    for (size_t i = 0; i < count; i++) {
        heft__unit *unit = &r->units[units[i]];
        if (unit->expected == 0 && unit->shown.brought_bytes > 0) {
            r->expected[r->expected_count] = (uint32_t)units[i];
            unit->expected = (uint32_t)++r->expected_count;
        }
    }
    begin_reader(r);
    heft__reader_wake(r);
    pthread_mutex_unlock(&r->ledger->lock);
}

void heft__residency_settle(heft_residency *r)
{
    pthread_mutex_lock(&r->ledger->lock);
    while (r->reading && !r->resting) {
        pthread_cond_wait(&r->ledger->changed, &r->ledger->lock);
    }
    pthread_mutex_unlock(&r->ledger->lock);
}

/* ---- granting ---------------------------------------------------------------------------------- */
/* What a lease's units have, each once: all, and those that are away. */
static void measure(heft_residency *r, heft__request *request)
{
    const uint64_t mark = ++r->ledger->mark;
    request->bytes = request->needed = 0;
    for (size_t i = 0; i < request->lease->count; i++) {
        heft__unit *unit = &r->units[request->lease->units[i]];
        if (unit->mark != mark) {
            unit->mark = mark;
            request->bytes += unit->shown.brought_bytes;
            request->needed += unit->state == HEFT__UNIT_AWAY ? unit->shown.brought_bytes : 0;
        }
    }
}

static void use_all(heft_residency *r, const heft_lease *lease)
{
    for (size_t i = 0; i < lease->count; i++) {
        heft__unit_use(r, &r->units[lease->units[i]]);
    }
}

static void let_go(heft_residency *r, const heft_lease *lease)
{
    for (size_t i = 0; i < lease->count; i++) {
        heft__unit *unit = &r->units[lease->units[i]];
        unit->users--;
        heft__unit_settle(r, unit);
    }
}

/* Hold all units, and promise those that are away, if there is room: *granted says so. */
static heft_status try_grant(heft_residency *r, const heft__request *request, bool *granted,
                             heft_error *err)
{
    const heft_lease *lease = request->lease;
    heft__stay *dropped = NULL;
    heft_status status = HEFT_OK;
    use_all(r, lease); /* what it has already does not make room for the rest */
    *granted = heft__make_room(r->ledger, request->needed, 0, &dropped);
    for (size_t i = 0; i < lease->count && *granted && status == HEFT_OK; i++) {
        heft__unit *unit = &r->units[lease->units[i]];
        if (unit->state == HEFT__UNIT_AWAY && unit->shown.brought_bytes > 0) {
            status = heft__unit_promise(r, unit, &dropped, err);
        }
    }
    if (!*granted || status != HEFT_OK) {
        let_go(r, lease);
    }
    heft__stays_free(dropped);
    return status;
}

static heft_status too_large(const heft_residency *r, const heft__request *request, heft_error *err)
{
    const heft__unit *largest = &r->units[request->lease->units[0]];
    for (size_t i = 1; i < request->lease->count; i++) {
        const heft__unit *unit = &r->units[request->lease->units[i]];
        largest = unit->shown.brought_bytes > largest->shown.brought_bytes ? unit : largest;
    }
    return heft__add_item(heft__fail(err, HEFT_LIMIT, "needs %llu bytes, the budget is %llu",
                                     (unsigned long long)request->bytes,
                                     (unsigned long long)r->ledger->budget),
                          err, largest->shown.name);
}

static heft_status no_room_now(const heft_ledger *ledger, const heft__request *request,
                               heft_error *err)
{
    return heft__fail(
        err, HEFT_LIMIT, "no room for %llu bytes now: %llu of a budget of %llu are in use",
        (unsigned long long)request->needed, (unsigned long long)(ledger->held + ledger->reserved),
        (unsigned long long)ledger->budget);
}

/* Wait for a grant. Requests that need no more bytes need not wait for those that do, but let them go
 * first if this thread holds nothing that they may wait for. */
static heft_status grant(heft_residency *r, heft__request *request, heft_error *err)
{
    heft_ledger *ledger = r->ledger;
    struct timespec due = {0};
    bool granted = false, patient = true;
    heft_status status = HEFT_OK;
    measure(r, request);
    if (request->bytes > ledger->budget) {
        return too_large(r, request, err);
    }
    while (status == HEFT_OK && !granted) {
        measure(r, request);
        const bool queued = ledger->first && ledger->first != request;
        if (queued && request->needed == 0 && patient) {
            patient = false;
            if (!heft__ledger_is_holder(ledger, request->thread)) {
                heft__ledger_yield(ledger);
                continue;
            }
        }
        if (!queued || request->needed == 0) {
            status = try_grant(r, request, &granted, err);
        }
        if (status == HEFT_OK && !granted) {
            status = request->hasty ? no_room_now(ledger, request, err)
                                    : heft__ledger_join(ledger, request, err);
        }
        if (status == HEFT_OK && !granted) {
            status = heft__ledger_wait(ledger, r->ctx, &due, err);
        }
    }
    heft__ledger_leave(ledger, request);
    if (status == HEFT_LIMIT && request->lease->count > 0) {
        (void)heft__add_item(status, err, r->units[request->lease->units[0]].shown.name);
    }
    return status;
}

/* ---- having them here -------------------------------------------------------------------------- */
/* The promised units of a lease into the batch; *coming says whether another thread brings some. */
static size_t batch_of(heft_residency *r, const heft_lease *lease, bool *coming)
{
    const uint64_t mark = ++r->ledger->mark;
    size_t count = 0;
    *coming = false;
    for (size_t i = 0; i < lease->count; i++) {
        heft__unit *unit = &r->units[lease->units[i]];
        *coming = *coming || unit->state == HEFT__UNIT_COMING;
        if (unit->state == HEFT__UNIT_PROMISED && unit->mark != mark && !r->coming) {
            unit->mark = mark;
            r->batch[count++] = unit;
        }
        *coming = *coming || (unit->state == HEFT__UNIT_PROMISED && r->coming);
    }
    return count;
}

/* Bring in promised units that no thread brings in yet, and wait for those of other threads. */
static heft_status have(heft_residency *r, const heft_lease *lease, heft_error *err)
{
    struct timespec due = {0};
    heft_status status = HEFT_OK;
    bool coming = true;
    r->wanting++;
    while (status == HEFT_OK && coming) {
        const size_t count = batch_of(r, lease, &coming);
        if (count > 0) {
            coming = true; /* look again after it */
            do {           /* free unused units where the system has no memory */
                status = bring(r, count, err);
            } while (status == HEFT_NOMEM && heft__drop_one(r->ledger) &&
                     batch_of(r, lease, &coming) == count);
        } else if (coming) {
            status = heft__ledger_wait(r->ledger, r->ctx, &due, err);
        }
    }
    r->wanting--;
    return status;
}

/* How many of a lease's units are not even on their way, and how many are brought in at all. */
static size_t count_away(const heft_residency *r, const heft_lease *lease, size_t *brought)
{
    size_t away = 0;
    *brought = 0;
    for (size_t i = 0; i < lease->count; i++) {
        const heft__unit *unit = &r->units[lease->units[i]];
        *brought += unit->shown.brought_bytes > 0;
        away += unit->shown.brought_bytes > 0 && unit->state == HEFT__UNIT_AWAY;
    }
    return away;
}

/* Count an acquire. What was long ago counts less: all of the layer's counts are halved in time. */
static void count_use(heft_residency *r, heft__unit *unit)
{
    const bool halve = unit->uses >= USES_MOST;
    for (size_t i = 0; halve && i < r->unit_count; i++) {
        r->units[i].uses /= r->units[i].group == unit->group ? 2 : 1;
    }
    unit->uses++;
    unit->expected = 0;
}

/* Move the position along, and have the reader look again. */
static void move_on(heft_residency *r, const heft_lease *lease)
{
    r->tick = ++r->ledger->tick;
    r->failed = false;
    for (size_t i = 0; i < lease->count; i++) {
        count_use(r, &r->units[lease->units[i]]);
        heft__schedule_advance(&r->schedule, lease->units[i]);
    }
}

static void note_lease(heft_ledger *ledger, heft_lease *lease)
{
    lease->before = NULL;
    lease->next = ledger->leases;
    if (lease->next) {
        lease->next->before = lease;
    }
    ledger->leases = lease;
}

/* Hold a lease's units; the lock is held. */
static heft_status hold(heft_residency *r, heft_lease *lease, bool hasty, heft_error *err)
{
    heft__request request = {
        .thread = lease->owner, .residency = r, .lease = lease, .hasty = hasty};
    size_t brought;
    for (size_t i = 0; i < lease->count; i++) {
        heft__unit_renew(r, &r->units[lease->units[i]]);
    }
    const size_t away = count_away(r, lease, &brought);
    move_on(r, lease);
    heft_status status = grant(r, &request, err);
    if (status == HEFT_OK) {
        status = have(r, lease, err);
        if (status != HEFT_OK) {
            let_go(r, lease);
        }
    }
    if (status == HEFT_OK) {
        note_lease(r->ledger, lease);
        for (size_t i = 0; i < lease->count; i++) {
            r->units[lease->units[i]].worn = r->writable;
        }
        r->counts.waited += away;
        r->counts.ahead += brought - away;
        begin_reader(r);
    }
    heft__reader_wake(r); /* it has a new place to go on from */
    if (status != HEFT_OK) {
        heft__ledger_changed(r->ledger);
    }
    return status;
}

static heft_status acquire(heft_residency *r, const size_t *units, size_t count, bool hasty,
                           heft_lease **out, heft_error *err)
{
    heft_lease *lease = NULL;
    heft_error failure = {0};
    if (!r || !out || (!units && count > 0)) {
        return heft__fail(err, HEFT_INVALID_ARG, "residency, units or result is NULL");
    }
    for (size_t i = 0; i < count; i++) {
        if (units[i] >= r->unit_count) {
            return heft__fail(err, HEFT_INVALID_ARG, "unit index %zu is out of range", units[i]);
        }
    }
    pthread_mutex_lock(&r->ledger->lock);
    const uint64_t done = r->counts.read_bytes + r->counts.mapped_bytes;
    pthread_mutex_unlock(&r->ledger->lock);
    heft_status status = heft__tell_progress(r->ctx, "loading units", done, 0, err);
    if (status == HEFT_OK) {
        status = heft__lease_take(r, units, count, &lease, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    pthread_mutex_lock(&r->ledger->lock);
    status = hold(r, lease, hasty, &failure);
    if (status != HEFT_OK) {
        heft__lease_put(lease);
    }
    pthread_mutex_unlock(&r->ledger->lock);
    if (status == HEFT_OK) {
        *out = lease;
    } else {
        heft__residency_unref(r); /* the lease's */
        if (err) {                /* an attempt may have failed and another one not */
            *err = failure;
        }
    }
    return status;
}

heft_status heft_residency_acquire(heft_residency *r, const size_t *units, size_t count,
                                   heft_lease **out, heft_error *err)
{
    return acquire(r, units, count, false, out, err);
}

heft_status heft_residency_try_acquire(heft_residency *r, const size_t *units, size_t count,
                                       heft_lease **out, heft_error *err)
{
    return acquire(r, units, count, true, out, err);
}

heft_status heft_residency_facts(heft_residency *r, heft_residency_counts *counts, heft_error *err)
{
    if (!r) {
        return heft__fail(err, HEFT_INVALID_ARG, "residency is NULL");
    }
    pthread_mutex_lock(&r->ledger->lock);
    const heft_residency_counts now = r->counts;
    pthread_mutex_unlock(&r->ledger->lock);
    return HEFT__GIVE_SIZED(counts, &now, err);
}

/* ---- schedules --------------------------------------------------------------------------------- */
/* What was asked for, or the model's own order; LIMIT if one of its units has no room. */
static heft_status make_schedule(const heft_residency *r, const size_t *units, size_t count,
                                 size_t repeat_from, heft__schedule *out, heft_error *err)
{
    if (!units && count > 0) {
        return heft__fail(err, HEFT_INVALID_ARG, "the schedule is NULL, but its count is %zu",
                          count);
    }
    return heft__schedule_make(r->ctx, units ? units : r->order, units ? count : r->order_count,
                               repeat_from, r->unit_count, out, err);
}

static heft_status check_room(const heft_residency *r, const heft__schedule *schedule,
                              uint64_t budget, heft_error *err)
{
    for (size_t i = 0; i < schedule->count; i++) {
        const heft_unit *unit = &r->units[schedule->units[i]].shown;
        if (unit->brought_bytes > budget) {
            return heft__add_item(
                heft__fail(err, HEFT_LIMIT, "needs %llu bytes, the budget is %llu",
                           (unsigned long long)unit->brought_bytes, (unsigned long long)budget),
                err, unit->name);
        }
    }
    return HEFT_OK;
}

/* Count the units of the schedule that are away, and find one of each layer. */
static void count_scheduled(heft_residency *r)
{
    r->away = 0;
    memset(r->host, 0xff, r->module_count * sizeof *r->host); /* HEFT__NO_HOST */
    for (size_t i = 0; i < r->unit_count; i++) {
        const heft__unit *unit = &r->units[i];
        if (heft__schedule_has(&r->schedule, i)) {
            r->away += unit->state == HEFT__UNIT_AWAY && unit->shown.brought_bytes > 0;
            uint32_t *host = &r->host[unit->group];
            *host = *host == HEFT__NO_HOST ? (uint32_t)i : *host;
        }
    }
}

heft_status heft_residency_set_schedule(heft_residency *r, const size_t *schedule, size_t count,
                                        size_t repeat_from, heft_error *err)
{
    heft__schedule made = {0};
    if (!r) {
        return heft__fail(err, HEFT_INVALID_ARG, "residency is NULL");
    }
    heft_status status = make_schedule(r, schedule, count, repeat_from, &made, err);
    if (status == HEFT_OK) {
        status = check_room(r, &made, r->ledger->budget, err);
    }
    if (status == HEFT_OK) {
        pthread_mutex_lock(&r->ledger->lock);
        const heft__schedule old = r->schedule;
        r->schedule = made;
        made = old;
        count_scheduled(r);
        expect_nothing(r);
        heft__reader_wake(r);
        pthread_mutex_unlock(&r->ledger->lock);
    }
    heft__schedule_fini(&made);
    return status;
}

/* ---- the object -------------------------------------------------------------------------------- */
static heft_status choose_ledger(heft_residency *r, const heft_residency_options *options,
                                 heft_error *err)
{
    uint64_t budget = options->budget_bytes;
    if (options->ledger) {
        if (budget > 0) {
            return heft__fail(err, HEFT_INVALID_ARG,
                              "budget_bytes is %llu: with a ledger, the budget is the ledger's",
                              (unsigned long long)budget);
        }
        r->ledger = heft__ledger_ref(options->ledger);
        budget = r->ledger->budget;
    } else if (budget == 0) {
        budget = heft__units_two_neighbors(r, &r->schedule);
        budget = budget > 0 ? budget : 1; /* nothing is brought in */
    }
    heft_status status = check_room(r, &r->schedule, budget, err);
    if (status == HEFT_OK && !r->ledger) {
        status = heft_ledger_new(r->ctx, budget, &r->ledger, err);
    }
    r->counts = (heft_residency_counts){.struct_size = sizeof r->counts, .budget_bytes = budget};
    return status;
}

static heft_status make(heft_residency *r, const heft_residency_options *options, heft_error *err)
{
    heft_status status = heft__units_make(r, err);
    if (status == HEFT_OK) {
        status = make_schedule(r, options->schedule, options->schedule_count, options->repeat_from,
                               &r->schedule, err);
    }
    if (status == HEFT_OK) {
        status = choose_ledger(r, options, err);
    }
    if (status == HEFT_OK) {
        status = heft__residency_check_limit(r, !options->ledger, options->over_limit, err);
    }
    if (status == HEFT_OK) {
        r->idle = heft__arena_array(&r->arena, r->unit_count, sizeof *r->idle);
        r->batch = heft__arena_array(&r->arena, r->unit_count, sizeof *r->batch);
        r->expected = heft__arena_array(&r->arena, r->unit_count, sizeof *r->expected);
        r->host = heft__arena_array(&r->arena, r->module_count, sizeof *r->host);
        status = r->idle && r->batch && r->expected && r->host
                     ? HEFT_OK
                     : heft__fail_nomem(err, r->unit_count * sizeof *r->idle);
    }
    if (status == HEFT_OK) {
        count_scheduled(r);
        status = heft__ledger_attach(r->ledger, r, err);
    }
    return status;
}

heft_status heft_residency_new(const heft_model *model, const heft_residency_options *options,
                               heft_residency **out, heft_error *err)
{
    return heft__residency_make(model, options, false, out, err);
}

heft_status heft__residency_make(const heft_model *model, const heft_residency_options *options,
                                 bool by_expert, heft_residency **out, heft_error *err)
{
    if (!model || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "model or result is NULL");
    }
    heft_residency_options taken;
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft_residency *r = heft__alloc_zero(model->ctx, 1, sizeof *r);
    if (!r) {
        return heft__fail_nomem(err, sizeof *r);
    }
    atomic_init(&r->refs, 1);
    r->ctx = heft__ctx_ref(model->ctx);
    r->model = model;
    r->writable = taken.writable;
    r->by_expert = by_expert;
    heft__arena_init(&r->arena, r->ctx);
    pthread_cond_init(&r->look, NULL);
    status = make(r, &taken, err);
    if (status == HEFT_OK) {
        *out = r;
    } else {
        heft__residency_unref(r);
    }
    return status;
}

void heft__residency_unref(heft_residency *r)
{
    if (atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    heft_ctx *ctx = r->ctx;
    heft__leases_free(r);
    for (size_t i = 0; r->bound && i < r->all; i++) {
        heft_storage_unref(r->bound[i].storage);
    }
    heft__schedule_fini(&r->schedule);
    pthread_cond_destroy(&r->look);
    heft__ledger_unref(r->ledger);
    heft__free(ctx, r->units, r->unit_cap * sizeof *r->units);
    heft__arena_fini(&r->arena);
    heft__free(ctx, r, sizeof *r);
    heft_ctx_free(ctx);
}

/* End reading ahead, drop what no lease holds, and leave the ledger. */
static void close_residency(heft_residency *r)
{
    heft_ledger *ledger = r->ledger;
    pthread_mutex_lock(&ledger->lock);
    r->quit = true;
    pthread_cond_signal(&r->look);
    pthread_mutex_unlock(&ledger->lock);
    if (r->reading) {
        pthread_join(r->reader, NULL);
    }
    pthread_mutex_lock(&ledger->lock);
    r->reading = false;
    r->closed = true;
    for (size_t i = 0; i < r->unit_count; i++) {
        heft__unit_settle(r, &r->units[i]);
    }
    heft__spares_free(ledger); /* they hold the ledger */
    heft_residency **at = &ledger->residencies;
    while (*at && *at != r) {
        at = &(*at)->next;
    }
    if (*at) {
        *at = r->next;
    }
    heft__ledger_changed(ledger);
    pthread_mutex_unlock(&ledger->lock);
}

void heft_residency_free(heft_residency *r)
{
    if (r) {
        close_residency(r);
        heft__residency_unref(r);
    }
}
