/* Leases of units, tensors that outlive them, the ledger that several users share, and threads that wait
 * for each other. */
#include "support_residency.h"

#include <sched.h>
#include <stdlib.h>

#define HIDDEN 160 /* layers of 1.2 MB: they are mapped */
#define LAYER test_layer_bytes(HIDDEN)
#define LAYERS 8

static heft_ctx *ctx;
static char folder[256];
static heft_model *model, *whole;
static size_t first; /* unit of layer 0; the others follow */

static const char *at(const char *name)
{
    return test_path(folder, name);
}

/* A residency with room for so many layers, or on a ledger. All layers are in its schedule, or none, so
 * that nothing is read ahead. */
static heft_residency *make(unsigned room, heft_ledger *ledger, bool ahead)
{
    const size_t none = 0; /* a unit that has memory */
    const heft_residency_options options =
        HEFT_OPTIONS(heft_residency_options, .budget_bytes = room * LAYER, .ledger = ledger,
                     .schedule = ahead ? NULL : &none, .schedule_count = !ahead);
    return test_residency(model, &options);
}

static heft_ledger *make_ledger(unsigned room)
{
    heft_ledger *ledger = NULL;
    heft_error err = {0};
    test_expect_status(heft_ledger_new(ctx, room * LAYER, &ledger, &err), HEFT_OK, &err, "ledger");
    return ledger;
}

static heft_status acquire(heft_residency *r, const size_t *units, size_t count, heft_lease **lease,
                           heft_error *err)
{
    *lease = NULL;
    *err = (heft_error){.status = 77}; /* unchanged on success */
    const heft_status status = heft_residency_acquire(r, units, count, lease, err);
    assert_int_equal(*lease != NULL, status == HEFT_OK);
    assert_int_equal(err->status, status == HEFT_OK ? 77 : (int)status);
    return status;
}

/* ---- several units at once ------------------------------------------------------------------- */
static void several_units_are_held_together(void **state)
{
    (void)state;
    heft_error err;
    heft_lease *lease, *other;
    heft_residency *r = make(3, NULL, false);
    const size_t three[] = {first + 4, first, first + 4, first + 2, first}, one = first + 5;
    test_expect_status(acquire(r, three, 5, &lease, &err), HEFT_OK, &err, "three");
    for (size_t i = 0; i < 5; i++) {
        test_compare_unit(r, lease, three[i], whole);
    }
    const heft_unit *absent = heft_residency_unit(r, first + 1);
    assert_null(heft_lease_view(lease, absent->parameters[0]));
    const size_t resident = heft_model_find(model, "embeddings.word_embeddings.weight");
    test_compare_bytes(heft_lease_view(lease, resident), whole, resident); /* always in memory */
    /* what others have acquired costs nothing; something else has no room */
    test_expect_status(acquire(r, three + 1, 1, &other, &err), HEFT_OK, &err, "again");
    heft_lease_free(other);
    test_expect_status(acquire(r, &one, 1, &other, &err), HEFT_LIMIT, &err, "a fourth");
    test_expect_status(acquire(r, NULL, 0, &other, &err), HEFT_OK, &err, "nothing");
    heft_lease_free(other);
    assert_int_equal(test_counts(r).brought_units, 3);
    heft_lease_free(heft_lease_ref(lease)); /* one reference is left */
    test_compare_unit(r, lease, first + 2, whole);
    heft_lease_free(lease);
    heft_lease_free(test_acquire(r, one));
    heft_residency_free(r);
}

/* All or nothing: if one unit cannot be brought in, the others are not held. */
static void leases_are_used_again(void **state)
{
    (void)state;
    test_heap heap = {.fail_at = -1};
    heft_ctx *with = test_ctx_new(&heap);
    heft_model *own = test_load_on_disk(with, at("model"), "encoder.layer", HEFT_DTYPE_NONE);
    heft_residency *r = test_residency(own, NULL);
    const size_t pair[] = {first, first + 1};
    heft_error err;
    heft_lease *lease;
    test_expect_status(heft_residency_set_schedule(r, pair, 2, 0, &err), HEFT_OK, &err, "pair");
    for (unsigned i = 0; i < 50; i++) {
        const long before = heap.count;
        test_expect_status(acquire(r, pair, 2, &lease, &err), HEFT_OK, &err, "pair");
        assert_non_null(heft_lease_view(lease, heft_residency_unit(r, first)->parameters[0]));
        heft_lease_free(lease);
        heft__residency_settle(r);
        assert_true(i == 0 || heap.count == before); /* no allocation once it is warm */
    }
    heft_residency_free(r);
    heft_model_free(own);
    heft_ctx_free(with);
    assert_int_equal(heap.blocks, 0);
}

/* ---- tensors that are out -------------------------------------------------------------------- */
static void tensors_outlive_lease_residency_and_model(void **state)
{
    (void)state;
    static const heft_dtype dtypes[] = {HEFT_DTYPE_NONE, HEFT_DTYPE_BF16}; /* mapped, and read */
    for (size_t i = 0; i < 2; i++) {
        heft_ctx *with = heft_ctx_new(NULL);
        heft_model *own = test_load_on_disk(with, at("model"), "encoder.layer", dtypes[i]),
                   *expected = test_load_whole(ctx, at("model"), dtypes[i]);
        heft_ledger *ledger = NULL;
        heft_error err = {0};
        test_expect_status(heft_ledger_new(with, 3 * LAYER, &ledger, &err), HEFT_OK, &err,
                           "ledger");
        const heft_residency_options options =
            HEFT_OPTIONS(heft_residency_options, .ledger = ledger);
        heft_residency *r = test_residency(own, &options);
        const heft_unit *unit = heft_residency_unit(r, first + 1);
        const uint64_t bytes = unit->brought_bytes;
        const size_t numbers[] = {unit->parameters[0], unit->parameters[3],
                                  heft_model_find(own, "embeddings.LayerNorm.weight")};
        heft_tensor *tensors[3];
        heft_lease *lease = test_acquire(r, first + 1);
        for (size_t k = 0; k < 3; k++) {
            test_expect_status(heft_lease_tensor(lease, numbers[k], &tensors[k], &err), HEFT_OK,
                               &err, "tensor");
        }
        heft_storage *kept = heft_storage_ref(tensors[1]->storage);
        assert_int_equal(heft_lease_tensor(lease, SIZE_MAX, &tensors[0], &err), HEFT_INVALID_ARG);
        assert_int_equal(heft_lease_tensor(lease, heft_residency_unit(r, first + 2)->parameters[0],
                                           &tensors[0], &err),
                         HEFT_INVALID_ARG);
        heft_lease_free(lease);
        heft_residency_free(r);
        heft_model_free(own);
        assert_int_equal(test_ledger_counts(ledger).held_bytes, bytes); /* of the unit */
        heft_ledger *left = ledger;
        for (size_t k = 0; k < 3; k++) {
            test_compare_bytes(tensors[k], expected, numbers[k]);
            heft_tensor_free(tensors[k]);
        }
        assert_int_equal(test_ledger_counts(left).held_bytes, bytes);
        heft_storage_unref(kept); /* the last reference of any */
        assert_int_equal(test_ledger_counts(left).held_bytes, 0);
        heft_ledger_free(left);
        uint64_t live;
        heft_ctx_memory(with, &live, NULL);
        assert_int_equal(live, 0);
        heft_ctx_free(with);
        heft_model_free(expected);
    }
}

/* A unit with a handed-out tensor stays in memory and counts; it need not be read again. */
static void tensors_count_until_they_are_freed(void **state)
{
    (void)state;
    heft_error err;
    heft_lease *lease;
    heft_tensor *tensor = NULL;
    heft_residency *r = make(3, NULL, true);
    lease = test_acquire(r, first);
    const size_t parameter = heft_residency_unit(r, first)->parameters[2];
    test_expect_status(heft_lease_tensor(lease, parameter, &tensor, &err), HEFT_OK, &err, "tensor");
    heft_lease_free(lease);
    for (size_t i = 1; i < 3 * LAYERS; i++) { /* the others have room for two */
        lease = test_acquire(r, first + i % LAYERS);
        test_compare_unit(r, lease, first + i % LAYERS, whole);
        test_compare_bytes(tensor, whole, parameter);
        assert_true(test_counts(r).held_bytes <= 3 * LAYER);
        heft_lease_free(lease);
    }
    const size_t three[] = {first + 1, first + 2, first + 3};
    test_expect_status(acquire(r, three, 3, &lease, &err), HEFT_LIMIT, &err,
                       "this thread has the tensor");
    heft_tensor_free(tensor);
    test_expect_status(acquire(r, three, 3, &lease, &err), HEFT_OK, &err, "after it");
    heft_lease_free(lease);
    heft_residency_free(r);
}

/* ---- the ledger ------------------------------------------------------------------------------ */
static void reservations_make_units_go(void **state)
{
    (void)state;
    heft_error err;
    heft_lease *lease, *more;
    heft_ledger *ledger = make_ledger(5), *none = NULL;
    heft_residency *r = make(0, ledger, true);
    lease = test_acquire(r, first);
    heft__residency_settle(r);
    assert_int_equal(test_ledger_counts(ledger).held_bytes, 5 * LAYER); /* read ahead */
    assert_true(heft_ledger_try_reserve(ledger, 2 * LAYER));
    test_expect_status(heft_ledger_reserve(ledger, 2 * LAYER, &err), HEFT_OK, &err, "reserve");
    assert_int_equal(test_ledger_counts(ledger).held_bytes, LAYER); /* what is held stays */
    assert_int_equal(test_ledger_counts(ledger).reserved_bytes, 4 * LAYER);
    test_compare_unit(r, lease, first, whole);
    assert_false(heft_ledger_try_reserve(ledger, 1));
    assert_int_equal(heft_ledger_reserve(ledger, 1, &err), HEFT_LIMIT); /* held by this thread */
    assert_int_equal(heft_ledger_reserve(ledger, 6 * LAYER, &err), HEFT_LIMIT);
    const size_t next = first + 1;
    test_expect_status(acquire(r, &next, 1, &more, &err), HEFT_LIMIT, &err, "no room");
    heft_ledger_give_back(ledger, 3 * LAYER);
    test_expect_status(acquire(r, &next, 1, &more, &err), HEFT_OK, &err, "room");
    heft_lease_free(more);
    heft_lease_free(lease);
    heft_ledger_give_back(ledger, UINT64_MAX); /* never more than there is */
    const heft_ledger_counts counts = test_ledger_counts(ledger);
    assert_int_equal(counts.reserved_bytes, 0);
    assert_int_equal(counts.budget_bytes, 5 * LAYER);
    assert_int_equal(counts.peak_bytes, 5 * LAYER);
    assert_int_equal(counts.waiting, 0);
    const heft_residency_options both =
        HEFT_OPTIONS(heft_residency_options, .budget_bytes = LAYER, .ledger = ledger);
    heft_residency *bad = NULL;
    assert_int_equal(heft_residency_new(model, &both, &bad, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_ledger_new(ctx, 0, &none, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_ledger_new(NULL, 1, &none, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_ledger_reserve(NULL, 1, &err), HEFT_INVALID_ARG);
    assert_false(heft_ledger_try_reserve(NULL, 1));
    heft_ledger_free(ledger); /* the residency keeps it */
    heft_lease_free(test_acquire(r, next));
    heft_residency_free(r);
}

static heft_status draw_on_a_ledger(heft_ctx *with, void *user, heft_error *err)
{
    heft_residency *r = NULL;
    heft_lease *lease = NULL;
    heft_ledger *ledger = NULL;
    const size_t *unit = user;
    heft_model *own = NULL;
    const test_how map = {.load = {.mode = HEFT_LOAD_MAP}};
    heft_status status = test_load(with, at("model"), &map, &own, NULL, err);
    if (status == HEFT_OK) {
        status = heft_ledger_new(with, 2 * LAYER, &ledger, err);
    }
    if (status == HEFT_OK) {
        status = heft_ledger_reserve(ledger, LAYER, err);
        assert_int_equal(test_ledger_counts(ledger).reserved_bytes, status == HEFT_OK ? LAYER : 0);
    }
    if (status == HEFT_OK) {
        const heft_residency_options options = HEFT_OPTIONS(
            heft_residency_options, .ledger = ledger, .schedule = unit, .schedule_count = 1);
        status = heft_residency_new(own, &options, &r, err);
    }
    if (status == HEFT_OK) {
        status = heft_residency_acquire(r, unit, 1, &lease, err);
        assert_int_equal(test_ledger_counts(ledger).held_bytes, status == HEFT_OK ? LAYER : 0);
    }
    heft_lease_free(lease);
    heft_residency_free(r);
    heft_ledger_free(ledger);
    heft_model_free(own);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    test_oom_sweep(draw_on_a_ledger, &first);
}

/* Two residencies take turns with one budget: the need of one drops unused units of the other. */
static void residencies_share_a_ledger(void **state)
{
    (void)state;
    heft_ledger *ledger = make_ledger(6);
    heft_residency *a = make(0, ledger, true), *b = make(0, ledger, true);
    for (size_t i = 0; i < 40; i++) {
        heft_residency *r = i % 4 < 2 ? a : b;
        heft_lease *lease = test_acquire(r, first + i / 4 % LAYERS);
        test_compare_unit(r, lease, first + i / 4 % LAYERS, whole);
        heft_lease_free(lease);
        assert_true(test_ledger_counts(ledger).peak_bytes <= 6 * LAYER);
    }
    /* a is not used any more: b's loop over six units gets the whole budget */
    for (size_t i = 0; i < 20 * 6; i++) {
        heft_lease_free(test_acquire(b, first + i % 6));
    }
    heft__residency_settle(a);
    heft__residency_settle(b);
    const uint64_t before = test_counts(b).brought_units;
    const size_t loop[] = {first, first + 1, first + 2, first + 3, first + 4, first + 5};
    heft_error err;
    test_expect_status(heft_residency_set_schedule(b, loop, 6, 0, &err), HEFT_OK, &err, "loop");
    for (size_t i = 0; i < 20 * 6; i++) {
        heft_lease_free(test_acquire(b, first + i % 6));
        heft__residency_settle(b);
    }
    assert_true(test_counts(b).brought_units <= before + 6);
    assert_int_equal(test_counts(b).held_bytes, 6 * LAYER);
    heft_residency_free(a);
    heft_lease_free(test_acquire(b, first));
    heft_residency_free(b);
    assert_int_equal(test_ledger_counts(ledger).held_bytes, 0);
    heft_ledger_free(ledger);
}

/* ---- waiting --------------------------------------------------------------------------------- */
struct waiter {
    heft_residency *r;
    heft_ledger *ledger;
    size_t units[4], count;
    uint64_t bytes; /* to be reserved instead, if not 0 */
    heft_status status;
    heft_lease *lease;
    heft_error err;
};

static void *wait_for(void *user)
{
    struct waiter *w = user;
    w->status = w->bytes ? heft_ledger_reserve(w->ledger, w->bytes, &w->err)
                         : heft_residency_acquire(w->r, w->units, w->count, &w->lease, &w->err);
    return NULL;
}

static void until_waiting(heft_ledger *ledger, uint64_t count)
{
    while (test_ledger_counts(ledger).waiting != count) {
        sched_yield();
    }
}

/* A request for more than is left waits until others release enough. */
static void a_second_thread_waits(void **state)
{
    (void)state;
    for (unsigned reserves = 0; reserves < 2; reserves++) {
        heft_ledger *ledger = make_ledger(3);
        heft_residency *r = make(0, ledger, true);
        pthread_t thread;
        struct waiter w = {.r = r, .ledger = ledger, .count = 2, .bytes = reserves * 2 * LAYER};
        w.units[0] = first + 2;
        w.units[1] = first + 5;
        heft_lease *lease = test_acquire(r, first), *second = test_acquire(r, first + 1);
        assert_int_equal(pthread_create(&thread, NULL, wait_for, &w), 0);
        until_waiting(ledger, 1);
        test_compare_unit(r, lease, first, whole);
        heft_lease_free(test_acquire(r, first)); /* units in memory can be acquired meanwhile */
        assert_int_equal(test_ledger_counts(ledger).waiting, 1);
        heft_lease_free(second);
        pthread_join(thread, NULL);
        test_expect_status(w.status, HEFT_OK, &w.err, "waiter");
        if (!reserves) {
            test_compare_unit(r, w.lease, first + 5, whole);
        }
        heft_lease_free(w.lease);
        heft_ledger_give_back(ledger, w.bytes);
        heft_lease_free(lease);
        heft_residency_free(r);
        heft_ledger_free(ledger);
    }
}

/* A tensor that another thread frees makes room for a waiting thread. */
static void a_tensor_that_is_freed_ends_waiting(void **state)
{
    (void)state;
    heft_error err;
    heft_ledger *ledger = make_ledger(2);
    heft_residency *r = make(0, ledger, false);
    pthread_t thread;
    struct waiter w = {
        .r = r, .count = 2, .units = {first + 2, first + 5}
    };
    heft_tensor *tensor = NULL;
    heft_lease *lease = test_acquire(r, first);
    test_expect_status(
        heft_lease_tensor(lease, heft_residency_unit(r, first)->parameters[0], &tensor, &err),
        HEFT_OK, &err, "tensor");
    heft_lease_free(lease);
    assert_int_equal(pthread_create(&thread, NULL, wait_for, &w), 0);
    until_waiting(ledger, 1);
    heft_tensor_free(tensor);
    pthread_join(thread, NULL);
    test_expect_status(w.status, HEFT_OK, &w.err, "waiter");
    heft_lease_free(w.lease);
    heft_residency_free(r);
    heft_ledger_free(ledger);
}

/* Two threads hold one unit each and request one more: the second request fails, the first waits. */
static void threads_that_wait_for_each_other_are_told(void **state)
{
    (void)state;
    heft_error err;
    heft_ledger *ledger = make_ledger(2);
    heft_residency *r = make(0, ledger, false);
    pthread_t thread;
    struct waiter w = {
        .r = r, .count = 2, .units = {first, first + 1}
    };
    heft_lease *lease = test_acquire(r, first + 3), *more;
    const size_t next = first + 4;
    assert_int_equal(pthread_create(&thread, NULL, wait_for, &w), 0);
    until_waiting(ledger, 1);
    test_expect_status(acquire(r, &next, 1, &more, &err), HEFT_LIMIT, &err, "in a circle");
    assert_non_null(strstr(err.message, "by threads that are waiting too"));
    assert_int_equal(heft_ledger_reserve(ledger, 1, &err), HEFT_LIMIT);
    assert_int_equal(test_ledger_counts(ledger).waiting, 1);
    heft_lease_free(lease);
    pthread_join(thread, NULL);
    test_expect_status(w.status, HEFT_OK, &w.err, "the first");
    heft_lease_free(w.lease);
    heft_residency_free(r);
    heft_ledger_free(ledger);
}

struct hammer {
    heft_residency *r;
    atomic_bool *stop;
    unsigned seed;
};

static void *hammer(void *user)
{
    struct hammer *h = user;
    while (!atomic_load(h->stop)) {
        h->seed = h->seed * 1103515245U + 12345U;
        heft_lease_free(test_acquire(h->r, first + (h->seed >> 16) % LAYERS));
    }
    return NULL;
}

/* A request for the whole budget gets its turn, however many small ones arrive meanwhile. */
static void large_requests_do_not_starve(void **state)
{
    (void)state;
    heft_error err;
    heft_residency *r = make(4, NULL, true);
    pthread_t threads[3];
    struct hammer hammers[3];
    atomic_bool stop = false;
    const size_t four[] = {first, first + 2, first + 4, first + 6};
    for (unsigned i = 0; i < 3; i++) {
        hammers[i] = (struct hammer){r, &stop, i + 1};
        assert_int_equal(pthread_create(&threads[i], NULL, hammer, &hammers[i]), 0);
    }
    for (unsigned i = 0; i < 20; i++) {
        heft_lease *lease;
        test_expect_status(acquire(r, four, 4, &lease, &err), HEFT_OK, &err, "all");
        test_compare_unit(r, lease, first + 6, whole);
        heft_lease_free(lease);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    heft_residency_free(r);
}

/* ---- callbacks ------------------------------------------------------------------------------- */
struct asking {
    heft_residency *r;
    heft_ledger *ledger;
    pthread_t caller;
    unsigned calls, cancel_at;
    bool inside;
};

/* A progress callback that asks the residency for everything. */
static bool ask(void *user, const heft_progress *progress)
{
    struct asking *a = user;
    (void)progress;
    assert_true(pthread_equal(a->caller, pthread_self()));
    if (a->r && !a->inside) {
        a->inside = true;
        a->calls++;
        (void)test_counts(a->r);
        (void)test_ledger_counts(a->ledger);
        heft_lease_free(test_acquire(a->r, first + 1));
        assert_true(heft_ledger_try_reserve(a->ledger, 1));
        heft_ledger_give_back(a->ledger, 1);
        a->inside = false;
    }
    return a->cancel_at == 0 || a->calls < a->cancel_at;
}

static void callbacks_may_ask_anything(void **state)
{
    (void)state;
    struct asking a = {.caller = pthread_self()};
    const heft_ctx_options options =
        HEFT_OPTIONS(heft_ctx_options, .progress = ask, .progress_user = &a);
    heft_ctx *with = heft_ctx_new(&options);
    heft_model *own = test_load_on_disk(with, at("model"), "encoder.layer", HEFT_DTYPE_NONE);
    heft_error err = {0};
    test_expect_status(heft_ledger_new(with, 3 * LAYER, &a.ledger, &err), HEFT_OK, &err, "ledger");
    const heft_residency_options on = HEFT_OPTIONS(heft_residency_options, .ledger = a.ledger);
    heft_residency *r = test_residency(own, &on);
    a.r = r;
    for (size_t i = 0; i < LAYERS; i++) {
        heft_lease *lease = test_acquire(r, first + i);
        test_compare_unit(r, lease, first + i, whole);
        heft_lease_free(lease);
    }
    assert_int_equal(a.calls, LAYERS);
    a.r = NULL;
    heft_residency_free(r);
    heft_ledger_free(a.ledger);
    heft_model_free(own);
    heft_ctx_free(with);
}

struct cancelling {
    atomic_uint waits;
};

static bool cancel_waiting(void *user, const heft_progress *progress)
{
    struct cancelling *c = user;
    return strcmp(progress->what, "waiting for memory") != 0 || atomic_fetch_add(&c->waits, 1) < 1;
}

/* Waiting can be cancelled, and leaves the queue to others. */
static void waiting_can_be_cancelled(void **state)
{
    (void)state;
    struct cancelling c = {0};
    const heft_ctx_options options =
        HEFT_OPTIONS(heft_ctx_options, .progress = cancel_waiting, .progress_user = &c);
    for (unsigned reserves = 0; reserves < 2; reserves++) {
        heft_ctx *with = heft_ctx_new(&options);
        heft_model *own = test_load_on_disk(with, at("model"), "encoder.layer", HEFT_DTYPE_NONE);
        heft_ledger *ledger = NULL;
        heft_error err = {0};
        test_expect_status(heft_ledger_new(with, 2 * LAYER, &ledger, &err), HEFT_OK, &err,
                           "ledger");
        const heft_residency_options on = HEFT_OPTIONS(heft_residency_options, .ledger = ledger);
        heft_residency *r = test_residency(own, &on);
        heft_lease *lease = test_acquire(r, first);
        pthread_t thread;
        struct waiter w = {
            .r = r,
            .ledger = ledger,
            .count = 2,
            .bytes = reserves * 2 * LAYER,
            .units = {first + 2, first + 5}
        };
        assert_int_equal(pthread_create(&thread, NULL, wait_for, &w), 0);
        pthread_join(thread, NULL);
        assert_int_equal(w.status, HEFT_CANCELLED);
        assert_null(w.lease);
        assert_int_equal(test_ledger_counts(ledger).waiting, 0);
        heft_lease_free(test_acquire(r, first + 1));
        heft_lease_free(lease);
        heft_residency_free(r);
        heft_ledger_free(ledger);
        heft_model_free(own);
        heft_ctx_free(with);
        atomic_store(&c.waits, 0);
    }
}

/* ---- many threads at random ------------------------------------------------------------------ */
struct crowd {
    heft_residency *r[2];
    heft_ledger *ledger;
    unsigned seed, limits;
};

static unsigned next_random(unsigned *seed)
{
    *seed = *seed * 1103515245U + 12345U;
    return *seed >> 16;
}

/* A tensor that was handed out earlier is still what it was. */
static void check_tensor(heft_tensor **tensor, size_t *parameter)
{
    if (*tensor) {
        test_compare_bytes(*tensor, whole, *parameter);
        heft_tensor_free(*tensor);
        *tensor = NULL;
    }
}

static void use_lease(struct crowd *c, const heft_residency *r, heft_lease *lease, size_t unit,
                      heft_tensor **tensor, size_t *parameter)
{
    heft_error err;
    const heft_unit *shown = heft_residency_unit(r, unit);
    *parameter = shown->parameters[next_random(&c->seed) % shown->parameter_count];
    test_compare_bytes(heft_lease_view(lease, *parameter), whole, *parameter);
    if (next_random(&c->seed) % 4 == 0) {
        test_expect_status(heft_lease_tensor(lease, *parameter, tensor, &err), HEFT_OK, &err,
                           "tensor");
    }
}

static void *be_one_of_many(void *user)
{
    struct crowd *c = user;
    heft_tensor *tensor = NULL;
    heft_error err;
    size_t parameter = 0;
    for (unsigned i = 0; i < 150; i++) {
        heft_residency *r = c->r[next_random(&c->seed) % 2];
        size_t units[3];
        const size_t count = 1 + next_random(&c->seed) % 3;
        for (size_t k = 0; k < count; k++) {
            units[k] = first + next_random(&c->seed) % LAYERS;
        }
        heft_lease *lease = NULL;
        const heft_status status = heft_residency_acquire(r, units, count, &lease, &err);
        c->limits += status == HEFT_LIMIT; /* tensors that are out may stand in each other's way */
        if (status != HEFT_LIMIT) {
            test_expect_status(status, HEFT_OK, &err, "crowd");
        }
        check_tensor(&tensor, &parameter);
        if (lease) {
            use_lease(c, r, lease, units[0], &tensor, &parameter);
        }
        heft_lease_free(lease);
        if (next_random(&c->seed) % 8 == 0 && heft_ledger_try_reserve(c->ledger, LAYER)) {
            heft_ledger_give_back(c->ledger, LAYER);
        }
    }
    check_tensor(&tensor, &parameter);
    return NULL;
}

static void many_threads_at_random(void **state)
{
    (void)state;
    heft_ledger *ledger = make_ledger(6);
    heft_residency *a = make(0, ledger, true), *b = make(0, ledger, true);
    pthread_t threads[4];
    struct crowd crowds[4];
    for (unsigned i = 0; i < 4; i++) {
        crowds[i] = (struct crowd){
            {a, b},
            ledger, 17 * i + 3, 0
        };
        assert_int_equal(pthread_create(&threads[i], NULL, be_one_of_many, &crowds[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_true(crowds[i].limits < 150);
    }
    const heft_ledger_counts counts = test_ledger_counts(ledger);
    assert_true(counts.peak_bytes <= 6 * LAYER);
    assert_int_equal(counts.reserved_bytes, 0);
    heft_residency_free(a);
    heft_residency_free(b);
    assert_int_equal(test_ledger_counts(ledger).held_bytes, 0);
    heft_ledger_free(ledger);
}

/* ---- writable -------------------------------------------------------------------------------- */
static heft_residency *make_writable(unsigned room, heft_ledger *ledger)
{
    const heft_residency_options options = HEFT_OPTIONS(
        heft_residency_options, .budget_bytes = room * LAYER, .ledger = ledger, .writable = true);
    return test_residency(model, &options);
}

static void scribble(const heft_residency *r, const heft_lease *lease, size_t number)
{
    const heft_unit *unit = heft_residency_unit(r, number);
    for (size_t i = 0; i < unit->parameter_count; i++) {
        const heft_tensor *view = heft_lease_view(lease, unit->parameters[i]);
        assert_int_equal(view->flags, HEFT_TENSOR_WRITABLE); /* nor mapped */
        memset(view->data, 0x5a, view->size_bytes);
    }
}

/* Each lease gets what the file has, whatever earlier ones have written; memory stays within the budget. */
static void writes_go_with_the_unit(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        unsigned room;
        bool warm;
    } rows[] = {
        {"one, warm", 1,      true },
        {"two, cold", 2,      false},
        {"two, warm", 2,      true },
        {"all",       LAYERS, true },
    };
    for (size_t row = 0; row < sizeof rows / sizeof rows[0]; row++) {
        heft_residency *r = make_writable(rows[row].room, NULL);
        test_file_cache(at("model/model.safetensors"), rows[row].warm);
        for (size_t i = 0; i < 3 * LAYERS; i++) {
            const size_t number = first + i % LAYERS;
            heft_lease *lease = test_acquire(r, number);
            test_compare_unit(r, lease, number, whole);
            scribble(r, lease, number);
            heft_lease *same = test_acquire(r, number);
            assert_ptr_equal(heft_lease_view(lease, heft_residency_unit(r, number)->parameters[0]),
                             heft_lease_view(same, heft_residency_unit(r, number)->parameters[0]));
            heft_lease_free(same);
            heft__residency_settle(r);
            heft_lease_free(lease);
            heft__residency_settle(r);
        }
        const heft_residency_counts counts = test_counts(r);
        if (counts.brought_units < 3 * LAYERS || counts.mapped_bytes > 0 ||
            counts.peak_bytes > rows[row].room * LAYER) {
            fail_msg("%s: %u units, %u bytes at most", rows[row].name,
                     (unsigned)counts.brought_units, (unsigned)counts.peak_bytes);
        }
        assert_true(counts.brought_units <= 3 * LAYERS + rows[row].room);
        assert_int_equal(counts.waited,
                         1); /* the first; then the next one comes while one is used */
        heft_residency_free(r);
    }
    test_file_cache(at("model/model.safetensors"), true);
}

/* A tensor that is out keeps what was written into it; the unit's next use has the file's bytes in other memory. */
static void a_written_tensor_is_its_owners(void **state)
{
    (void)state;
    heft_error err;
    heft_tensor *tensor = NULL;
    heft_residency *r = make_writable(3, NULL);
    const size_t parameter = heft_residency_unit(r, first)->parameters[2];
    heft_lease *lease = test_acquire(r, first);
    test_expect_status(heft_lease_tensor(lease, parameter, &tensor, &err), HEFT_OK, &err, "tensor");
    assert_true(tensor->flags & HEFT_TENSOR_WRITABLE);
    memset(tensor->data, 1, tensor->size_bytes);
    heft_lease_free(lease);
    for (size_t i = 0; i < 2 * LAYERS; i++) { /* the first one, too */
        lease = test_acquire(r, first + i % LAYERS);
        test_compare_unit(r, lease, first + i % LAYERS, whole);
        scribble(r, lease, first + i % LAYERS);
        heft_lease_free(lease);
        assert_true(test_counts(r).peak_bytes <= 3 * LAYER);
    }
    for (uint64_t i = 0; i < tensor->size_bytes; i++) {
        assert_int_equal(((const uint8_t *)tensor->data)[i], 1);
    }
    heft_tensor_free(tensor);
    lease = test_acquire(r, first);
    test_compare_unit(r, lease, first, whole);
    heft_residency_free(r); /* before its lease */
    scribble(lease->residency, lease, first);
    heft_lease_free(lease);
}

/* Memory of worn units is kept for the next ones only where nobody else has a claim on the budget. */
static void worn_memory_is_within_the_budget(void **state)
{
    (void)state;
    heft_error err;
    heft_ctx *with = heft_ctx_new(NULL);
    heft_model *own = test_load_on_disk(with, at("model"), "encoder.layer", HEFT_DTYPE_NONE);
    heft_ledger *ledger = NULL;
    uint64_t before, live, peak;
    test_expect_status(heft_ledger_new(with, 2 * LAYER, &ledger, &err), HEFT_OK, &err, "ledger");
    const heft_residency_options options =
        HEFT_OPTIONS(heft_residency_options, .ledger = ledger, .writable = true);
    heft_residency *r = test_residency(own, &options);
    heft_ctx_memory(with, &before, NULL);
    for (size_t i = 0; i < 2 * LAYERS; i++) {
        heft_lease_free(test_acquire(r, first + i * 3 % LAYERS));
        heft__residency_settle(r);
        heft_ctx_memory(with, &live, NULL);
        assert_true(live < before + 3 * LAYER);
    }
    heft_ctx_memory(with, NULL, &peak);
    assert_true(peak < before + 3 * LAYER); /* staging is part of it */
    test_expect_status(heft_ledger_reserve(ledger, 2 * LAYER, &err), HEFT_OK, &err, "reserve");
    heft_ctx_memory(with, &live, NULL);
    assert_true(live < before + LAYER / 2); /* nothing is kept */
    heft_ledger_give_back(ledger, 2 * LAYER);
    heft_lease_free(test_acquire(r, first));
    heft_residency_free(r);
    heft_ledger_free(ledger);
    heft_model_free(own);
    heft_ctx_memory(with, &live, NULL);
    assert_int_equal(live, 0);
    heft_ctx_free(with);
}

struct holder {
    heft_residency *r;
    heft_lease *lease;
};

static void *hold_one(void *user)
{
    struct holder *holder = user;
    holder->lease = test_acquire(holder->r, first);
    return NULL;
}

/* What another thread holds for ever would be waited for. */
static void trying_does_not_wait(void **state)
{
    (void)state;
    heft_error err = {0};
    pthread_t thread;
    struct holder holder = {.r = make(1, NULL, false)};
    const size_t next = first + 1, all[] = {first, next};
    heft_lease *lease = NULL;
    assert_int_equal(pthread_create(&thread, NULL, hold_one, &holder), 0);
    pthread_join(thread, NULL);
    assert_int_equal(heft_residency_try_acquire(holder.r, &next, 1, &lease, &err), HEFT_LIMIT);
    assert_non_null(strstr(err.message, "now"));
    assert_string_equal(err.item, "encoder.layer.1");
    assert_int_equal(heft_residency_try_acquire(holder.r, all, 2, &lease, &err), HEFT_LIMIT);
    assert_null(lease);
    test_expect_status(heft_residency_try_acquire(holder.r, &first, 1, &lease, &err), HEFT_OK, &err,
                       "in memory");
    heft_lease_free(holder.lease);
    heft_lease_free(lease);
    test_expect_status(heft_residency_try_acquire(holder.r, &next, 1, &lease, &err), HEFT_OK, &err,
                       "room");
    test_compare_unit(holder.r, lease, next, whole);
    heft_lease_free(lease);
    heft_residency_free(holder.r);
    assert_int_equal(heft_residency_try_acquire(NULL, &next, 1, &lease, &err), HEFT_INVALID_ARG);
}

static int set_up(void **state)
{
    (void)state;
    test_folder_make(folder);
    ctx = heft_ctx_new(NULL);
    test_save_layers(ctx, at("model"), LAYERS, HIDDEN);
    test_file_cache(at("model/model.safetensors"), true);
    model = test_load_on_disk(ctx, at("model"), "encoder.layer", HEFT_DTYPE_NONE);
    whole = test_load_whole(ctx, at("model"), HEFT_DTYPE_NONE);
    heft_residency *r = test_residency(model, NULL);
    first = test_unit(r, model, "encoder.layer.0.output.dense.weight");
    assert_int_equal(heft_residency_unit(r, 0)->brought_bytes, 0);
    heft_residency_free(r);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    heft_model_free(model);
    heft_model_free(whole);
    test_folder_remove(folder);
    heft_ctx_free(ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(several_units_are_held_together),
        cmocka_unit_test(leases_are_used_again),
        cmocka_unit_test(tensors_outlive_lease_residency_and_model),
        cmocka_unit_test(tensors_count_until_they_are_freed),
        cmocka_unit_test(reservations_make_units_go),
        cmocka_unit_test(memory_can_run_out_anywhere),
        cmocka_unit_test(residencies_share_a_ledger),
        cmocka_unit_test(a_second_thread_waits),
        cmocka_unit_test(a_tensor_that_is_freed_ends_waiting),
        cmocka_unit_test(threads_that_wait_for_each_other_are_told),
        cmocka_unit_test(large_requests_do_not_starve),
        cmocka_unit_test(callbacks_may_ask_anything),
        cmocka_unit_test(waiting_can_be_cancelled),
        cmocka_unit_test(many_threads_at_random),
        cmocka_unit_test(writes_go_with_the_unit),
        cmocka_unit_test(a_written_tensor_is_its_owners),
        cmocka_unit_test(worn_memory_is_within_the_budget),
        cmocka_unit_test(trying_does_not_wait),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
