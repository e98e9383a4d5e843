/* ledger.c - a budget shared by several users, and the queue of requests that wait for a part of it.
 *
 *   budget = held by units + reserved by callers + left
 *
 * One lock guards the ledger and all residencies that draw on it: a request may require that another
 * residency drops units. Requests that need bytes are granted in their order. A request must not wait
 * for ever: leases, tensors and reservations of threads that are waiting too are never released, so a
 * request that does not fit beside them fails.
 * Source: docs/residency.md [4]. */
#include "run/run.h"

#include <time.h>

#define WAIT_MS 50 /* between two calls of the progress callback while waiting */

/* ---- the object ------------------------------------------------------------------------------ */
heft_status heft_ledger_new(heft_ctx *ctx, uint64_t budget_bytes, heft_ledger **out,
                            heft_error *err)
{
    if (!ctx || !out || budget_bytes == 0) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "context or result is NULL, or the budget is 0 bytes");
    }
    heft_ledger *ledger = heft__alloc_zero(ctx, 1, sizeof *ledger);
    if (!ledger) {
        return heft__fail_nomem(err, sizeof *ledger);
    }
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&ledger->lock, NULL);
    pthread_cond_init(&ledger->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    atomic_init(&ledger->refs, 1);
    ledger->ctx = heft__ctx_ref(ctx);
    ledger->budget = budget_bytes;
    *out = ledger;
    return HEFT_OK;
}

heft_ledger *heft__ledger_ref(heft_ledger *ledger)
{
    atomic_fetch_add_explicit(&ledger->refs, 1, memory_order_relaxed);
    return ledger;
}

void heft__ledger_unref(heft_ledger *ledger)
{
    if (!ledger || atomic_fetch_sub_explicit(&ledger->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    heft_ctx *ctx = ledger->ctx;
    pthread_cond_destroy(&ledger->changed);
    pthread_mutex_destroy(&ledger->lock);
    heft__free(ctx, ledger->shares, ledger->share_cap * sizeof *ledger->shares);
    heft__free(ctx, ledger->victims, ledger->victim_cap * sizeof *ledger->victims);
    heft__free(ctx, ledger, sizeof *ledger);
    heft_ctx_free(ctx);
}

void heft_ledger_free(heft_ledger *ledger)
{
    heft__ledger_unref(ledger);
}

heft_status heft__ledger_attach(heft_ledger *ledger, heft_residency *r, heft_error *err)
{
    pthread_mutex_lock(&ledger->lock);
    size_t units = r->unit_count;
    for (const heft_residency *other = ledger->residencies; other; other = other->next) {
        units += other->unit_count;
    }
    bool good = units <= ledger->victim_cap;
    if (!good) {
        heft__victim *victims =
            heft__resize(ledger->ctx, ledger->victims, ledger->victim_cap * sizeof *victims,
                         units * sizeof *victims);
        good = victims != NULL;
        ledger->victims = good ? victims : ledger->victims;
        ledger->victim_cap = good ? units : ledger->victim_cap;
    }
    if (good) {
        r->next = ledger->residencies;
        ledger->residencies = r;
        r->tick = ledger->tick;
    }
    pthread_mutex_unlock(&ledger->lock);
    return good ? HEFT_OK : heft__fail_nomem(err, units * sizeof *ledger->victims);
}

/* ---- waiting --------------------------------------------------------------------------------- */
void heft__ledger_changed(heft_ledger *ledger)
{
    pthread_cond_broadcast(&ledger->changed);
    for (heft_residency *r = ledger->residencies; r; r = r->next) {
        heft__reader_wake(r);
    }
}

static struct timespec soon(void)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += WAIT_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    return until;
}

heft_status heft__ledger_wait(heft_ledger *ledger, const heft_ctx *ctx, struct timespec *due,
                              heft_error *err)
{
    struct timespec now;
    if (due->tv_sec == 0) {
        *due = soon();
    }
    (void)pthread_cond_timedwait(&ledger->changed, &ledger->lock, due);
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec < due->tv_sec || (now.tv_sec == due->tv_sec && now.tv_nsec < due->tv_nsec)) {
        return HEFT_OK;
    }
    pthread_mutex_unlock(&ledger->lock);
    const heft_status status = heft__tell_progress(ctx, "waiting for memory", 0, 0, err);
    pthread_mutex_lock(&ledger->lock);
    *due = soon();
    return status;
}

void heft__ledger_yield(heft_ledger *ledger)
{
    const struct timespec until = soon();
    while (ledger->first && pthread_cond_timedwait(&ledger->changed, &ledger->lock, &until) == 0) {
    }
}

bool heft__ledger_is_holder(const heft_ledger *ledger, pthread_t thread)
{
    for (const heft_lease *lease = ledger->leases; lease; lease = lease->next) {
        if (lease->count > 0 && pthread_equal(lease->owner, thread)) {
            return true;
        }
    }
    for (const heft__hold *hold = ledger->holds; hold; hold = hold->next) {
        if (pthread_equal(hold->owner, thread)) {
            return true;
        }
    }
    for (size_t i = 0; i < ledger->share_count; i++) {
        if (pthread_equal(ledger->shares[i].thread, thread)) {
            return true;
        }
    }
    return false;
}

/* ---- requests that would wait for ever --------------------------------------------------------- */
/* Whether a thread is that of the request, or of another in the queue, of which `alone` sees none. */
static bool waits(const heft_ledger *ledger, const heft__request *request, bool alone,
                  pthread_t thread)
{
    bool found = pthread_equal(request->thread, thread);
    for (const heft__request *r = ledger->first; r && !alone && !found; r = r->next) {
        found = pthread_equal(r->thread, thread);
    }
    return found;
}

/* The bytes of units that no other count with this mark has seen. */
static uint64_t count_units(const heft_residency *r, const size_t *units, size_t count,
                            uint64_t mark)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        heft__stay *stay = r->units[units[i]].stay;
        if (stay && stay->mark != mark) {
            stay->mark = mark;
            bytes += stay->bytes;
        }
    }
    return bytes;
}

/* Whether there is no room for a request beside what threads that wait hold. */
static bool is_stuck(heft_ledger *ledger, const heft__request *request, bool alone)
{
    const uint64_t mark = ++ledger->mark;
    uint64_t bytes = request->bytes;
    if (request->lease) { /* these are in the request's bytes already */
        (void)count_units(request->residency, request->lease->units, request->lease->count, mark);
    }
    for (const heft_lease *lease = ledger->leases; lease; lease = lease->next) {
        if (waits(ledger, request, alone, lease->owner)) {
            bytes += count_units(lease->residency, lease->units, lease->count, mark);
        }
    }
    for (const heft__hold *hold = ledger->holds; hold; hold = hold->next) {
        if (hold->stay->mark != mark && waits(ledger, request, alone, hold->owner)) {
            hold->stay->mark = mark;
            bytes += hold->stay->bytes;
        }
    }
    for (size_t i = 0; i < ledger->share_count; i++) {
        if (waits(ledger, request, alone, ledger->shares[i].thread)) {
            bytes += ledger->shares[i].bytes;
        }
    }
    return bytes > ledger->budget;
}

static heft_status fail_stuck(const heft_ledger *ledger, const heft__request *request,
                              heft_error *err)
{
    return heft__fail(err, HEFT_LIMIT,
                      "no room for %llu bytes: of a budget of %llu, units hold %llu and %llu are "
                      "reserved, by threads that are waiting too",
                      (unsigned long long)request->needed, (unsigned long long)ledger->budget,
                      (unsigned long long)ledger->held, (unsigned long long)ledger->reserved);
}

/* ---- the queue ------------------------------------------------------------------------------- */
static bool is_queued(const heft_ledger *ledger, const heft__request *request)
{
    const heft__request *r = ledger->first;
    while (r && r != request) {
        r = r->next;
    }
    return r != NULL;
}

void heft__ledger_leave(heft_ledger *ledger, heft__request *request)
{
    heft__request **at = &ledger->first;
    while (*at && *at != request) {
        at = &(*at)->next;
    }
    if (*at) {
        *at = request->next;
        heft__ledger_changed(ledger); /* the next one is the first now */
    }
}

heft_status heft__ledger_join(heft_ledger *ledger, heft__request *request, heft_error *err)
{
    if (!is_queued(ledger, request)) {
        if (is_stuck(ledger, request, true)) {
            return fail_stuck(ledger, request, err);
        }
        const heft__request *first = ledger->first;
        const bool was_stuck = first && is_stuck(ledger, first, false);
        heft__request **at = &ledger->first;
        while (*at) {
            at = &(*at)->next;
        }
        request->next = NULL;
        *at = request;
        if (first && !was_stuck && is_stuck(ledger, first, false)) {
            heft__ledger_leave(ledger, request); /* with this one all would wait for each other */
            return fail_stuck(ledger, request, err);
        }
    }
    if (ledger->first == request) {
        if (is_stuck(ledger, request, false)) {
            return fail_stuck(ledger, request, err);
        }
        heft__drop_idle(ledger); /* others could use it again and again meanwhile */
    }
    return HEFT_OK;
}

/* ---- reservations ------------------------------------------------------------------------------ */
/* Take the bytes, for which there is room. */
static heft_status take_share(heft_ledger *ledger, pthread_t thread, uint64_t bytes,
                              heft_error *err)
{
    size_t i = 0;
    while (i < ledger->share_count && !pthread_equal(ledger->shares[i].thread, thread)) {
        i++;
    }
    if (i == ledger->share_count) {
        if (!heft__array_reserve(ledger->ctx, (void **)&ledger->shares, i, &ledger->share_cap,
                                 sizeof *ledger->shares)) {
            return heft__fail_nomem(err, sizeof *ledger->shares);
        }
        ledger->shares[ledger->share_count++] = (heft__share){thread, 0};
    }
    ledger->shares[i].bytes += bytes;
    ledger->reserved += bytes;
    const uint64_t held = ledger->held + ledger->reserved;
    ledger->peak = held > ledger->peak ? held : ledger->peak;
    heft__spares_trim(ledger);
    return HEFT_OK;
}

/* What can be granted now is; *granted says so. */
static heft_status try_share(heft_ledger *ledger, const heft__request *request, bool *granted,
                             heft_error *err)
{
    heft__stay *dropped = NULL;
    heft_status status = HEFT_OK;
    *granted = heft__make_room(ledger, request->bytes, 0, &dropped);
    if (*granted) {
        status = take_share(ledger, request->thread, request->bytes, err);
    }
    heft__stays_free(dropped);
    return status;
}

heft_status heft_ledger_reserve(heft_ledger *ledger, uint64_t bytes, heft_error *err)
{
    if (!ledger) {
        return heft__fail(err, HEFT_INVALID_ARG, "ledger is NULL");
    }
    heft__request request = {.thread = pthread_self(), .bytes = bytes, .needed = bytes};
    heft_status status = HEFT_OK;
    struct timespec due = {0};
    bool granted = bytes == 0;
    pthread_mutex_lock(&ledger->lock);
    if (bytes > ledger->budget) {
        status = heft__fail(err, HEFT_LIMIT, "no room for %llu bytes in a budget of %llu",
                            (unsigned long long)bytes, (unsigned long long)ledger->budget);
    }
    while (status == HEFT_OK && !granted) {
        if (!ledger->first || ledger->first == &request) {
            status = try_share(ledger, &request, &granted, err);
        }
        if (status == HEFT_OK && !granted) {
            status = heft__ledger_join(ledger, &request, err);
        }
        if (status == HEFT_OK && !granted) {
            status = heft__ledger_wait(ledger, ledger->ctx, &due, err);
        }
    }
    heft__ledger_leave(ledger, &request);
    pthread_mutex_unlock(&ledger->lock);
    return status;
}

bool heft_ledger_try_reserve(heft_ledger *ledger, uint64_t bytes)
{
    const heft__request request = {.thread = pthread_self(), .bytes = bytes};
    heft__stay *dropped = NULL;
    if (!ledger || bytes == 0) {
        return ledger != NULL;
    }
    pthread_mutex_lock(&ledger->lock);
    const bool good = !ledger->first && bytes <= ledger->budget &&
                      heft__make_room(ledger, bytes, 0, &dropped) &&
                      take_share(ledger, request.thread, bytes, NULL) == HEFT_OK;
    heft__stays_free(dropped);
    pthread_mutex_unlock(&ledger->lock);
    return good;
}

void heft_ledger_give_back(heft_ledger *ledger, uint64_t bytes)
{
    if (!ledger) {
        return;
    }
    const pthread_t self = pthread_self();
    pthread_mutex_lock(&ledger->lock);
    for (unsigned pass = 0; pass < 2; pass++) { /* this thread's first */
        for (size_t i = 0; i < ledger->share_count && bytes > 0; i++) {
            heft__share *share = &ledger->shares[i];
            if (pass == 1 || pthread_equal(share->thread, self)) {
                const uint64_t part = share->bytes < bytes ? share->bytes : bytes;
                share->bytes -= part;
                ledger->reserved -= part;
                bytes -= part;
            }
        }
    }
    for (size_t i = ledger->share_count; i-- > 0;) {
        if (ledger->shares[i].bytes == 0) {
            ledger->shares[i] = ledger->shares[--ledger->share_count];
        }
    }
    heft__ledger_changed(ledger);
    pthread_mutex_unlock(&ledger->lock);
}

heft_status heft_ledger_facts(heft_ledger *ledger, heft_ledger_counts *counts, heft_error *err)
{
    if (!ledger) {
        return heft__fail(err, HEFT_INVALID_ARG, "ledger is NULL");
    }
    heft_ledger_counts now = {.struct_size = sizeof now};
    pthread_mutex_lock(&ledger->lock);
    now.budget_bytes = ledger->budget;
    now.held_bytes = ledger->held;
    now.reserved_bytes = ledger->reserved;
    now.peak_bytes = ledger->peak;
    for (const heft__request *r = ledger->first; r; r = r->next) {
        now.waiting++;
    }
    pthread_mutex_unlock(&ledger->lock);
    return HEFT__GIVE_SIZED(counts, &now, err);
}
