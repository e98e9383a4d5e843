/* lease.c - units that are held, and tensors that outlive them.
 *
 *   heft_tensor -> heft_storage -> hold -> stay -> ledger
 *                                     `--> the file's mapping, where the bytes are there
 *
 * A tensor that is out keeps its unit's stay: the bytes, and their part of the budget. Its storage lets go
 * of them on whichever thread drops the last reference.
 * Source: docs/residency.md [5]. */
#include "run/run.h"

/* ---- leases ---------------------------------------------------------------------------------- */
static void free_lease(heft_ctx *ctx, heft_lease *lease)
{
    heft__free(ctx, lease->units, lease->cap * sizeof *lease->units);
    heft__free(ctx, lease, sizeof *lease);
}

/* One of those to be used again, or NULL. */
static heft_lease *take_spare(heft_residency *r)
{
    pthread_mutex_lock(&r->ledger->lock);
    heft_lease *lease = r->spare;
    r->spare = lease ? lease->next : NULL;
    pthread_mutex_unlock(&r->ledger->lock);
    return lease;
}

heft_status heft__lease_take(heft_residency *r, const size_t *units, size_t count, heft_lease **out,
                             heft_error *err)
{
    heft_lease *lease = take_spare(r);
    if (!lease) {
        lease = heft__alloc_zero(r->ctx, 1, sizeof *lease);
    }
    if (!lease) {
        return heft__fail_nomem(err, sizeof *lease);
    }
    if (lease->cap < count) {
        size_t *list = heft__alloc_zero(r->ctx, count, sizeof *list);
        if (!list) {
            free_lease(r->ctx, lease);
            return heft__fail_nomem(err, count * sizeof *list);
        }
        heft__free(r->ctx, lease->units, lease->cap * sizeof *lease->units);
        lease->units = list;
        lease->cap = count;
    }
    if (count > 0) {
        memcpy(lease->units, units, count * sizeof *units);
    }
    atomic_store(&lease->refs, 1);
    atomic_fetch_add_explicit(&r->refs, 1, memory_order_relaxed);
    lease->residency = r;
    lease->owner = pthread_self();
    lease->count = count;
    lease->next = lease->before = NULL;
    *out = lease;
    return HEFT_OK;
}

void heft__lease_put(heft_lease *lease)
{
    heft_residency *r = lease->residency;
    lease->residency = NULL;
    lease->count = 0;
    lease->next = r->spare;
    r->spare = lease;
}

void heft__leases_free(heft_residency *r)
{
    while (r->spare) {
        heft_lease *lease = r->spare;
        r->spare = lease->next;
        free_lease(r->ctx, lease);
    }
}

heft_lease *heft_lease_ref(heft_lease *lease)
{
    if (lease) {
        atomic_fetch_add_explicit(&lease->refs, 1, memory_order_relaxed);
    }
    return lease;
}

void heft_lease_free(heft_lease *lease)
{
    if (!lease || atomic_fetch_sub_explicit(&lease->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    heft_residency *r = lease->residency;
    heft_ledger *ledger = r->ledger;
    pthread_mutex_lock(&ledger->lock);
    *(lease->before ? &lease->before->next : &ledger->leases) = lease->next;
    if (lease->next) {
        lease->next->before = lease->before;
    }
    for (size_t i = 0; i < lease->count; i++) {
        heft__unit *unit = &r->units[lease->units[i]];
        unit->users--;
        unit->used = ledger->tick;
        heft__unit_settle(r, unit);
    }
    heft__lease_put(lease);
    heft__ledger_changed(ledger);
    pthread_mutex_unlock(&ledger->lock);
    heft__residency_unref(r);
}

/* ---- tensors --------------------------------------------------------------------------------- */
/* Whether a lease has a parameter: in one of its units, or in memory of its own. */
static bool has_parameter(const heft_lease *lease, size_t parameter)
{
    const heft_residency *r = lease->residency;
    if (parameter >= r->all) {
        return false;
    }
    bool found = r->brought_at[parameter] == SIZE_MAX;
    for (size_t i = 0; i < lease->count && !found; i++) {
        found = lease->units[i] == r->unit_of[parameter];
    }
    return found;
}

const heft_tensor *heft_lease_view(const heft_lease *lease, size_t parameter)
{
    if (!lease || !has_parameter(lease, parameter)) {
        return NULL;
    }
    const heft_residency *r = lease->residency;
    const heft_tensor *view = &r->views[parameter];
    const bool compact = heft__model_compact(r->model, heft__whole_of(r, parameter));
    return view->data && !compact ? view : NULL;
}

/* Called when a tensor's storage has no reference any more. */
static void release_hold(void *user)
{
    heft__hold *hold = user;
    heft_ledger *ledger = hold->ledger;
    heft_ctx *ctx = ledger->ctx;
    heft__stay *stay = hold->stay, *gone = NULL;
    pthread_mutex_lock(&ledger->lock);
    *(hold->before ? &hold->before->next : &ledger->holds) = hold->next;
    if (hold->next) {
        hold->next->before = hold->before;
    }
    stay->refs--;
    if (stay->unit) {
        heft__unit_settle(stay->residency, stay->unit);
    } else if (stay->refs == 0) {
        ledger->held -= stay->bytes;
        stay->next = NULL;
        gone = stay;
    }
    heft__stays_free(gone); /* before others may use the bytes */
    heft__ledger_changed(ledger);
    pthread_mutex_unlock(&ledger->lock);
    heft_storage_unref(hold->mapping);
    heft__free(ctx, hold, sizeof *hold);
    heft__ledger_unref(ledger);
}

/* A storage of one parameter's bytes in its unit's stay. */
static heft_status wrap(const heft_lease *lease, size_t parameter, heft_storage **out,
                        heft_error *err)
{
    heft_residency *r = lease->residency;
    heft_ledger *ledger = r->ledger;
    const heft_tensor *view = &r->views[parameter];
    const heft__unit *unit = &r->units[r->unit_of[parameter]];
    heft__hold *hold = heft__alloc_zero(ledger->ctx, 1, sizeof *hold);
    if (!hold) {
        return heft__fail_nomem(err, sizeof *hold);
    }
    const heft__memory memory = {.data = view->data,
                                 .bytes = view->size_bytes,
                                 .flags = view->flags, /* read-only: others use it too */
                                 .release = release_hold,
                                 .user = hold};
    const heft_status status = heft__storage_make(r->ctx, &memory, out, err);
    if (status != HEFT_OK) {
        heft__free(ledger->ctx, hold, sizeof *hold);
        return status;
    }
    hold->ledger = heft__ledger_ref(ledger);
    hold->owner = pthread_self();
    hold->stay = unit->stay;
    if (!hold->stay->memory) {
        const size_t root = unit->brought[r->brought_at[parameter]].parameter;
        hold->mapping = heft_storage_ref(r->bound[root].storage);
    }
    pthread_mutex_lock(&ledger->lock);
    hold->stay->refs++;
    hold->next = ledger->holds;
    if (hold->next) {
        hold->next->before = hold;
    }
    ledger->holds = hold;
    pthread_mutex_unlock(&ledger->lock);
    return HEFT_OK;
}

heft_status heft_lease_tensor(const heft_lease *lease, size_t parameter, heft_tensor **out,
                              heft_error *err)
{
    if (!lease || !out || !has_parameter(lease, parameter)) {
        return heft__fail(err, HEFT_INVALID_ARG, "the lease does not hold parameter %zu",
                          parameter);
    }
    const heft_residency *r = lease->residency;
    const heft_tensor *view = &r->views[parameter];
    const heft__bound *bound = &r->bound[parameter];
    const bool brought = r->brought_at[parameter] != SIZE_MAX;
    heft_storage *storage = NULL;
    heft_status status = HEFT_OK;
    if (heft__model_compact(r->model, heft__whole_of(r, parameter))) {
        status = heft__fail(err, HEFT_UNSUPPORTED, "parameter %zu %s", parameter, HEFT__IS_COMPACT);
    } else if (brought) {
        status = wrap(lease, parameter, &storage, err);
    } else if (bound->storage) {
        storage = heft_storage_ref(bound->storage);
    } else if (view->data) { /* it has no elements */
        status = heft__storage_new(r->ctx, 0, &storage, err);
    } else {
        status = heft__fail(err, HEFT_NOT_FOUND, "parameter %zu has no value", parameter);
    }
    if (status == HEFT_OK) {
        const heft_tensor_spec spec =
            HEFT_OPTIONS(heft_tensor_spec, .dtype = view->dtype, .rank = view->rank,
                         .shape = view->shape, .offset_bytes = brought ? 0 : bound->offset);
        status = heft_tensor_new(storage, &spec, out, err);
    }
    heft_storage_unref(storage);
    return status;
}
