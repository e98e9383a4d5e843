/* The internal header of the run layer.
 *
 * What it does: keeps units of a loaded model in memory while they are used. It brings them in from
 * the checkpoint's files within a budget, reading ahead along a schedule, and drops them. On top of
 * that, forward passes: pass.h has the operations that families use, session.c what callers do.
 * May include: base, io, json, tensor, format, checkpoint, kernel, model, load, place.
 * Rules: tensors never exceed the budget, and additional memory is bounded per tensor. Where a
 * status can be returned, no access may cause a page fault that raises a signal. Nothing is
 * written. Only the allocator's callbacks are called while the lock is held. After a failure a unit
 * is as before, not in memory. */
#ifndef HEFT__RUN_RUN_H
#define HEFT__RUN_RUN_H

#include <heft/run.h>

#include "load/load.h"
#include "place/place.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define HEFT__NO_UNIT SIZE_MAX
#define HEFT__NO_PLACE SIZE_MAX /* of a schedule, or of a list */

/* ---- schedule.c: the order of use --------------------------------------------------------------- */
#define HEFT__NEVER UINT64_MAX /* distance of a unit that the schedule has no further use for */

typedef struct heft__schedule {
    heft_ctx *ctx;
    uint32_t *units; /* [count] */
    size_t count, unit_count;
    size_t repeat;    /* place that follows the last; HEFT__NO_PLACE: it ends */
    uint32_t *begins; /* [unit_count + 1] where the places of each unit begin in `places` */
    uint32_t *places; /* [count] of each unit, ascending */
    size_t last;      /* place of the unit that was acquired last; HEFT__NO_PLACE: none yet */
    size_t next;      /* the place after it; count: the schedule is over */
} heft__schedule;

/* INVALID_ARG as heft_residency_new(). *out is not touched on failure. */
heft_status heft__schedule_make(heft_ctx *ctx, const size_t *units, size_t count,
                                size_t repeat_from, size_t unit_count, heft__schedule *out,
                                heft_error *err);
void heft__schedule_fini(heft__schedule *schedule);
/* Move to the unit's next place, its current one included; stay if it has none. */
void heft__schedule_advance(heft__schedule *schedule, size_t unit);
/* Places until a unit is used next, 0 for the one that comes next; HEFT__NEVER. */
uint64_t heft__schedule_distance(const heft__schedule *schedule, size_t unit);
bool heft__schedule_has(const heft__schedule *schedule, size_t unit);
/* The unit this number of places after the next one; HEFT__NO_UNIT past the end. */
size_t heft__schedule_ahead(const heft__schedule *schedule, size_t places);

/* ---- units ----------------------------------------------------------------------------------- */
/* A parameter that is brought in with its unit; tied ones under one of their names. In the order of the
 * files. */
typedef struct heft__brought {
    size_t parameter; /* the one that others are tied to; or a slice */
    size_t file;
    uint64_t offset; /* in the file; HEFT_NO_OFFSET after all that have one */
    uint64_t at;     /* of its room in the unit's buffer */
    size_t place;    /* among all that are brought in, by files and offsets */
    uint8_t *data;   /* while it is in memory */
} heft__brought;

typedef enum heft__unit_state {
    HEFT__UNIT_AWAY,
    HEFT__UNIT_PROMISED, /* has its part of the budget, and no thread brings it in yet */
    HEFT__UNIT_COMING,
    HEFT__UNIT_HERE
} heft__unit_state;

/* A unit's part of the budget and its bytes. Lives on without the unit while tensors of it are out. */
typedef struct heft__stay {
    heft_ledger *ledger; /* a reference */
    heft_ctx *ctx;       /* a reference */
    heft_residency *residency;
    struct heft__unit *unit; /* NULL: the residency has dropped it */
    uint64_t bytes;          /* of the budget */
    uint8_t *memory;         /* [room] NULL: used where the page cache has it, or not here yet */
    size_t room;
    size_t refs;   /* of the unit, and of each tensor that is out */
    uint64_t mark; /* of the count that has seen it */
    struct heft__stay *next;
} heft__stay;

typedef struct heft__unit {
    heft_unit shown; /* first: the public pointer is this one */
    heft__brought *brought;
    size_t brought_count;
    uint64_t room;     /* that its buffer needs */
    uint32_t group;    /* the same for a layer and its experts */
    uint32_t uses;     /* acquires, of late */
    uint32_t expected; /* 1 + its place in what is expected; 0: it is not */
    bool mappable;     /* all of it is mapped */
    heft__unit_state state;
    size_t users; /* leases, and requests that have been granted it */
    bool worn;    /* of a writable residency: it was used, and is dropped when nothing holds it */
    heft__stay *stay; /* NULL: away */
    uint64_t used;    /* tick at which it was given back */
    size_t idle_at;   /* in the list of idle units; HEFT__NO_PLACE */
    uint64_t mark;    /* of the request that has counted it */
} heft__unit;

typedef struct heft__module_span { /* of the tree's modules, which are in pre-order */
    uint32_t end, first_tensor;    /* its first tensor in `tensors` */
    uint32_t unit;                 /* UINT32_MAX: none */
} heft__module_span;

typedef struct heft__bound { /* a parameter's storage in the model */
    heft_storage *storage;   /* a reference; NULL: none */
    uint64_t offset;
    bool mapped;
} heft__bound;

typedef struct heft__mapping { /* a file in memory, by whole pages; 0: it is not mapped */
    uintptr_t start, end;
} heft__mapping;

struct heft_residency {
    atomic_size_t refs; /* of its owner and of each lease */
    heft_ctx *ctx;
    heft__arena arena; /* names and lists */
    const heft_model *model;
    heft_ledger *ledger;

    heft__unit *units; /* [unit_count] */
    size_t unit_count, unit_cap;
    size_t count;               /* of parameters */
    size_t all;                 /* of parameters and slices: slices are numbered after parameters */
    size_t *slices;             /* [count] the first of its slices; SIZE_MAX: it has none */
    size_t *sliced;             /* [all - count] the parameter of each slice */
    size_t *unit_of;            /* [all] */
    size_t *brought_at;         /* [all] number in its unit's list; SIZE_MAX: has memory */
    heft_tensor *views;         /* [all] */
    heft__bound *bound;         /* [all] */
    heft__module_span *modules; /* [module_count] */
    uint32_t *tensors;          /* [count] parameters, by module */
    size_t module_count;
    uint32_t *placed; /* [placed_count] what is brought in, by files and offsets */
    size_t placed_count;
    heft__mapping *mappings; /* [files of the checkpoint]; NULL: nothing is brought in */
    size_t *order;           /* [order_count] the standard schedule */
    size_t order_count;

    /* all below is guarded by the ledger's lock */
    heft__schedule schedule;
    size_t *idle; /* [idle_count] units that are here and that no lease holds */
    size_t idle_count;
    heft_lease *spare;  /* leases to be used again */
    uint64_t tick;      /* of the ledger, at which it was used last */
    heft__unit **batch; /* [unit_count] what is coming; owned by the thread that set `coming` */
    bool coming;
    size_t wanting;     /* threads that wait for a unit: the reader lets them go first */
    size_t away;        /* units of the schedule that are: without any the reader need not look */
    uint32_t *host;     /* [module_count] by group: the unit of the schedule; HEFT__NO_HOST: none */
    uint32_t *expected; /* [expected_count] units that come next, before those of the schedule */
    size_t expected_count;

    pthread_t reader;    /* reads ahead */
    pthread_cond_t look; /* the reader may find something to do */
    bool reading, quit;  /* the reader is there; is to go */
    bool resting;        /* the reader has found nothing to do */
    bool failed;         /* what it read last: it waits for the next acquire */
    bool closed;         /* its owner has freed it */
    bool writable;       /* as in the options */
    bool by_expert;      /* experts that are stacked in one parameter are units of their own */
    heft_residency_counts counts;
    const char *warning;  /* that memory may be short; NULL: none */
    heft_residency *next; /* of the ledger */
};

#define HEFT__NO_HOST UINT32_MAX

static inline uint64_t heft__larger_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Whether units can be dropped for one of so many bytes that has `between` bytes of others before it in the
 * schedule. Only if it would else be late: each unit that goes too early has to be read once more. */
static inline bool heft__is_near(uint64_t budget, uint64_t bytes, uint64_t between)
{
    const uint64_t sixteenth = budget / 16,
                   small = sixteenth < HEFT__READ_BYTES ? sixteenth : HEFT__READ_BYTES;
    return between < bytes || between < small;
}

/* A place of [count] that nobody has, for as many threads at most: one is free. */
static inline size_t heft__lane_take(atomic_bool *taken, size_t count)
{
    for (size_t i = 0;; i = (i + 1) % count) {
        bool before = false;
        if (atomic_compare_exchange_strong(&taken[i], &before, true)) {
            return i;
        }
    }
}

/* Experts that a router has chosen: they come next, in this order, though they are in no schedule. What was
 * expected before no longer is. */
void heft__residency_expect(heft_residency *residency, const size_t *units, size_t count);

/* ---- units.c: what is brought in together ---------------------------------------------------- */
heft_status heft__units_make(heft_residency *residency, heft_error *err);
/* The parameter of a slice; a parameter itself. */
static inline size_t heft__whole_of(const heft_residency *r, size_t number)
{
    return number < r->count ? number : r->sliced[number - r->count];
}
/* The slice of a parameter that belongs to an expert; the parameter itself where it is not sliced. */
static inline size_t heft__slice_of(const heft_residency *r, size_t parameter, size_t expert)
{
    return r->slices[parameter] == SIZE_MAX ? parameter : r->slices[parameter] + expert;
}
/* The unit of an expert that a module has in stacked parameters; SIZE_MAX: there is none. */
size_t heft__unit_of_stacked(const heft_residency *residency, size_t module, size_t expert);
/* Elements of a parameter before a slice of it. */
uint64_t heft__slice_first(const heft_residency *residency, size_t number);
/* What the two largest neighbors of a schedule take, at least the largest unit of it. */
uint64_t heft__units_two_neighbors(const heft_residency *residency, const heft__schedule *schedule);

/* ---- room_left.c ----------------------------------------------------------------------------- */
/* Predict what the schedule takes: LIMIT if that is certainly more than is left, a warning if it may be.
 * alone: on its ledger. */
heft_status heft__residency_check_limit(heft_residency *residency, bool alone, bool over_limit,
                                        heft_error *err);

/* ---- bring.c: units from their files into memory --------------------------------------------- */
/* Bring in residency->batch, into the memory of each unit's stay, which is allocated if there is none; or
 * use a unit where the page cache has it: its stay has no memory then. Tensors have data then. The lock is
 * not held. */
heft_status heft__units_bring(heft_residency *residency, size_t count, heft_error *err);
#define HEFT__UNIT_COLD 0.5 /* less than that in the page cache: read past it */
/* How a parameter is read into a buffer. */
heft__part heft__brought_part(const heft_residency *residency, const heft__brought *brought,
                              bool cold);
/* Drop the pages of a unit that is used in the page cache from the page tables, and those around it that
 * no unit in memory has; or these only. */
void heft__unit_forget(const heft_residency *residency, const heft__unit *unit, bool around_only);

/* ---- ledger.c: the budget and its queue ------------------------------------------------------- */
typedef struct heft__share { /* what a thread has reserved */
    pthread_t thread;
    uint64_t bytes;
} heft__share;

typedef struct heft__request { /* that waits; on the stack of its thread */
    pthread_t thread;
    heft_residency *residency; /* NULL: a reservation */
    const heft_lease *lease;
    uint64_t bytes;  /* of all of it */
    uint64_t needed; /* of what is not in memory */
    bool hasty;      /* fails instead of waiting for bytes */
    struct heft__request *next;
} heft__request;

typedef struct heft__hold { /* a tensor that is out */
    heft__stay *stay;
    heft_ledger *ledger;   /* a reference */
    heft_storage *mapping; /* a reference; NULL: the bytes are the stay's */
    pthread_t owner;
    struct heft__hold *next, *before;
} heft__hold;

typedef struct heft__victim {
    uint64_t key, used; /* how far its next use is, and when it was used last */
    heft_residency *residency;
    size_t unit;
} heft__victim;

struct heft_ledger {
    atomic_size_t refs;
    heft_ctx *ctx;
    pthread_mutex_t lock; /* guards the rest, and what changes in residencies */
    pthread_cond_t changed;
    uint64_t budget, held, reserved, peak;
    uint64_t tick;        /* counts acquires */
    uint64_t mark;        /* the last one given to a count */
    heft__request *first; /* of the queue */
    heft__share *shares;
    size_t share_count, share_cap;
    heft_residency *residencies;
    heft_lease *leases;
    heft__hold *holds;
    heft__stay *spares;    /* memory of worn units, for the next ones; not in `held` */
    uint64_t spare_bytes;  /* that these had of the budget: they fit in what is left of it */
    heft__victim *victims; /* [victim_cap] scratch: as many as the residencies have units */
    size_t victim_cap;
};

heft_ledger *heft__ledger_ref(heft_ledger *ledger);
void heft__ledger_unref(heft_ledger *ledger);
/* The lock is held in all that follows, unless noted. */
static inline uint64_t heft__ledger_left(const heft_ledger *ledger)
{
    return ledger->budget - ledger->held - ledger->reserved;
}
/* The reader may have something to do. */
static inline void heft__reader_wake(heft_residency *residency)
{
    if (residency->away > 0 || residency->expected_count > 0) {
        residency->resting = false;
        pthread_cond_signal(&residency->look);
    }
}
/* A waiting thread may continue: bytes have become free, a unit is here. */
void heft__ledger_changed(heft_ledger *ledger);
/* Wait until something may have changed; calls the progress callback, without the lock, every 50 ms. `due`:
 * when it is to be called; zeroed before the first wait. */
heft_status heft__ledger_wait(heft_ledger *ledger, const heft_ctx *ctx, struct timespec *due,
                              heft_error *err);
/* A request that cannot be granted now takes its place in the queue, or is in it already. LIMIT if
 * waiting would never end. Only the first in the queue may take bytes. */
heft_status heft__ledger_join(heft_ledger *ledger, heft__request *request, heft_error *err);
void heft__ledger_leave(heft_ledger *ledger, heft__request *request);
/* Let those in the queue go first, for a short time at most. */
void heft__ledger_yield(heft_ledger *ledger);
/* Whether a thread holds a lease, a tensor or a reservation. */
bool heft__ledger_is_holder(const heft_ledger *ledger, pthread_t thread);
/* Not held: make room for a residency's units among the victims. */
heft_status heft__ledger_attach(heft_ledger *ledger, heft_residency *residency, heft_error *err);

/* ---- evict.c: what is dropped ----------------------------------------------------------------- */
/* Drop units until this many bytes are left, those whose next use is farthest, and only those whose next use
 * is farther than `reach` (0: any). False, with nothing dropped, if that is not enough. What is dropped is in the
 * list then, to be used again or freed. */
bool heft__make_room(heft_ledger *ledger, uint64_t bytes, uint64_t reach, heft__stay **dropped);
/* Drop and free all unused units except those that the first request of the queue needs itself. */
void heft__drop_idle(heft_ledger *ledger);
/* Drop the unit whose next use is farthest, and free it, because the system is out of memory. False without one. */
bool heft__drop_one(heft_ledger *ledger);
void heft__stays_free(heft__stay *list);
/* Free what is kept of worn units: until the rest fits in what is left of the budget; or all of it. */
void heft__spares_trim(heft_ledger *ledger);
void heft__spares_free(heft_ledger *ledger);
/* A unit's users or tensors have become fewer: it may be idle now, or gone. */
void heft__unit_settle(heft_residency *residency, heft__unit *unit);
/* Before it is acquired: part a worn unit that is here still, because tensors of it are out, from its memory. */
void heft__unit_renew(heft_residency *residency, heft__unit *unit);
void heft__unit_use(heft_residency *residency, heft__unit *unit);
/* Give a unit its part of the budget, for which there is room, and the memory of one in the list if it
 * has just the size. */
heft_status heft__unit_promise(heft_residency *residency, heft__unit *unit, heft__stay **dropped,
                               heft_error *err);
void heft__views_set(heft_residency *residency, const heft__unit *unit, bool here);

/* ---- lease.c ---------------------------------------------------------------------------------- */
struct heft_lease {
    atomic_size_t refs;
    heft_residency *residency; /* a reference */
    pthread_t owner;           /* the thread that has acquired it */
    size_t *units;             /* [count] */
    size_t count, cap;
    heft_lease *next, *before; /* of the ledger's, or of those to be used again */
};

/* One that is not counted yet: a reference on the residency, the list filled. */
heft_status heft__lease_take(heft_residency *residency, const size_t *units, size_t count,
                             heft_lease **out, heft_error *err);
/* Put it away to be used again, or free it; the reference on the residency is the caller's then. */
void heft__lease_put(heft_lease *lease);
void heft__leases_free(heft_residency *residency);

/* ---- residency.c ------------------------------------------------------------------------------ */
/* As heft_residency_new(). by_expert: where one parameter stacks the experts of a layer, each expert's slices of
 * such parameters are a unit, whose `parameters` are numbers of slices. No lease has these parameters as a whole. */
heft_status heft__residency_make(const heft_model *model, const heft_residency_options *options,
                                 bool by_expert, heft_residency **out, heft_error *err);
void heft__residency_unref(heft_residency *residency); /* the lock is not held */
/* Not held: wait until the reader has found nothing to do. For tests. */
void heft__residency_settle(heft_residency *residency);

#endif
