/* heft/run.h - units of a loaded model in memory while they are used, within a budget. */
#ifndef HEFT_RUN_H
#define HEFT_RUN_H

#include <heft/load.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- ledger ---------------------------------------------------------------------------------- */

/**
 * A budget of bytes that several users share: residencies, and a caller's own memory such as a KV
 * cache or activations. Residencies drop units that nobody uses when another user needs the bytes.
 */
typedef struct heft_ledger heft_ledger;

/**
 * Create a ledger.
 *
 * @param ctx           borrowed; kept alive by the ledger
 * @param budget_bytes  that all users together may hold; at least 1
 * @param out           filled with an owned ledger; free it with heft_ledger_free()
 * @param err           filled on failure; may be NULL
 *
 * Errors   INVALID_ARG for a budget of 0; NOMEM.
 * Source   docs/residency.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_ledger_new(heft_ctx *ctx, uint64_t budget_bytes,
                                                     heft_ledger **out, heft_error *err);
/** Free a ledger. Residencies and tensors that draw on it keep it alive. NULL is allowed. */
HEFT_API void heft_ledger_free(heft_ledger *ledger);

/**
 * Reserve bytes for memory of the caller's own. Waits until other users give back enough, first come,
 * first served; units that nobody uses are dropped at once.
 *
 * @param ledger  borrowed
 * @param bytes   to be returned with heft_ledger_give_back()
 * @param err     filled on failure; may be NULL
 *
 * Memory   a few bytes for each thread that has reserved something.
 * Errors   LIMIT if the bytes can never fit, as for heft_residency_acquire(); NOMEM; CANCELLED by the
 *          progress callback of the ledger's context, which is called while it waits.
 * Threads  any number at once.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_ledger_reserve(heft_ledger *ledger, uint64_t bytes,
                                                         heft_error *err);
/** As heft_ledger_reserve(), but returns false instead of waiting, and if there is no memory. */
HEFT_API HEFT_MUST_CHECK bool heft_ledger_try_reserve(heft_ledger *ledger, uint64_t bytes);
/** Give reserved bytes back, from any thread; never more than are reserved. */
HEFT_API void heft_ledger_give_back(heft_ledger *ledger, uint64_t bytes);

typedef struct heft_ledger_counts {
    size_t struct_size;      /* set by HEFT_SIZED */
    uint64_t budget_bytes;   /* as given */
    uint64_t held_bytes;     /* by units in memory, on their way, or kept by tensors */
    uint64_t reserved_bytes; /* with heft_ledger_reserve() */
    uint64_t peak_bytes;     /* the most of both together so far */
    uint64_t waiting;        /* requests that wait for bytes now */
} heft_ledger_counts;

/** Fill `counts`, made with HEFT_SIZED, with the state of a ledger. INVALID_ARG for a struct_size
 * of 0. */
HEFT_API HEFT_MUST_CHECK heft_status heft_ledger_facts(heft_ledger *ledger,
                                                       heft_ledger_counts *counts, heft_error *err);

/* ---- residency ------------------------------------------------------------------------------- */

/**
 * Brings units of a model in from the checkpoint's files, within a budget, and reads the next ones
 * ahead while the current one is used. Any number of threads may acquire units; one thread creates
 * and frees the residency.
 */
typedef struct heft_residency heft_residency;

/**
 * Parameters that are brought in and dropped together: those of a layer that must not be split
 * (without its experts), of an expert, or of a module outside layers. Parameters that are tied across
 * such boundaries are a unit of their own, under all the modules that hold them. Lent by the
 * residency; may grow at the end.
 */
typedef struct heft_unit {
    const char *name;      /* path of its first module */
    const size_t *modules; /* [module_count] numbers in the model, ascending; more than one where
                                 parameters are tied */
    size_t module_count;
    const size_t *parameters; /* [parameter_count] numbers in the model */
    size_t parameter_count;
    uint64_t bytes;         /* of all its parameters, tied ones once */
    uint64_t brought_bytes; /* of those that acquiring it brings in, which count against the budget;
                               0: it is always in memory */
} heft_unit;

typedef struct heft_residency_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    /* For the bytes of tensors that are brought in. 0: the two largest neighbors of the schedule, a
     * layer with its experts counted as one. Must be 0 with a ledger. */
    uint64_t budget_bytes;
    /* Units in the order in which they will be acquired; a unit may occur several times. NULL: the
     * model's order, a tied unit at each of its modules. */
    const size_t *schedule;
    size_t schedule_count;
    size_t repeat_from; /* the place in the schedule at which it goes on after its end; SIZE_MAX: it
                           ends there */
    heft_ledger *ledger; /* borrowed, kept alive; NULL: one of its own with budget_bytes */
} heft_residency_options;

typedef struct heft_residency_counts {
    size_t struct_size;     /* set by HEFT_SIZED */
    uint64_t budget_bytes;  /* of the ledger */
    uint64_t held_bytes;    /* that this residency holds now */
    uint64_t peak_bytes;    /* the most that it held at once */
    uint64_t read_bytes;    /* read from files into buffers */
    uint64_t mapped_bytes;  /* used where the page cache has them */
    uint64_t brought_units; /* how often a unit was brought in, in either way */
    uint64_t ahead;         /* acquired units that were in memory, or on their way */
    uint64_t waited;        /* acquired units that had to be begun then */
} heft_residency_counts;

/**
 * Create a residency of a loaded model. Nothing is read yet.
 *
 * @param model    borrowed; must outlive the residency (not its leases) and not change meanwhile
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned residency; free it with heft_residency_free()
 * @param err      filled on failure; may be NULL
 *
 * Memory   lists of units and tensors; later the budget, and beside it up to 12 KB for each tensor of
 *          1 MiB and more, 128 bytes for each smaller one.
 * Errors   INVALID_ARG for a schedule that is empty, names a unit that the model does not have, or
 *          repeats from beyond its end; LIMIT for a budget that has no room for a scheduled unit,
 *          naming it with both sizes; NOMEM.
 * Source   docs/residency.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_residency_new(const heft_model *model,
                                                        const heft_residency_options *options,
                                                        heft_residency **out, heft_error *err);
/** Free a residency. Leases and tensors that it handed out stay valid until they are freed. NULL is
 * allowed. */
HEFT_API void heft_residency_free(heft_residency *residency);

/** Return the number of units. */
HEFT_API size_t heft_residency_count(const heft_residency *residency);
/** Return unit i, NULL past the end; lent by the residency. */
HEFT_API const heft_unit *heft_residency_unit(const heft_residency *residency, size_t i);
/** Find the unit of a parameter: its number, or SIZE_MAX. */
HEFT_API size_t heft_residency_find_parameter(const heft_residency *residency, size_t parameter);
/** Find the unit of a module: that of the layer or expert which it is or lies in, or that of its own
 * parameters. SIZE_MAX for a module that only contains modules of several units. */
HEFT_API size_t heft_residency_find_module(const heft_residency *residency, size_t module);
/**
 * Find all units that hold parameters of a module or of the modules in it.
 *
 * @param residency  borrowed
 * @param module     its number in the model
 * @param units      filled with up to `cap` numbers, ascending; may be NULL if cap is 0
 * @param cap        room in `units`
 * @return           how many there are; 0 if there is no such module
 */
HEFT_API size_t heft_residency_find_units(const heft_residency *residency, size_t module,
                                          size_t *units, size_t cap);

/**
 * Replace the schedule. The position is its beginning then; what is in memory stays.
 *
 * @param residency    borrowed
 * @param schedule     borrowed; as in heft_residency_options
 * @param count        units in it
 * @param repeat_from  as in heft_residency_options
 * @param err          filled on failure; may be NULL. The schedule stays as it was then.
 *
 * Memory   12 bytes for each unit of the schedule.
 * Errors   INVALID_ARG, LIMIT and NOMEM as heft_residency_new().
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_residency_set_schedule(heft_residency *residency,
                                                                 const size_t *schedule,
                                                                 size_t count, size_t repeat_from,
                                                                 heft_error *err);

/** Units that are held in memory. Refcounted; any thread may use and free it. */
typedef struct heft_lease heft_lease;

/**
 * Hold units in memory: all of them or none. Waits until they are read, and, where other threads hold
 * too much of the budget, until those release it; requests that need memory are served in their
 * order.
 *
 * The position in the schedule moves to the next place of each unit, and units after it are read
 * ahead. Where room is needed, the unit whose next use is farthest is dropped, those without a
 * further use first. A unit that the schedule does not have, or not any more, is brought in on demand.
 *
 * @param residency  borrowed
 * @param units      borrowed; numbers of units, in any order, also repeated
 * @param count      how many; 0 gives a lease of nothing
 * @param out        filled with an owned lease; free it with heft_lease_free()
 * @param err        filled on failure; may be NULL
 *
 * Memory   within the budget. Units that are not in the page cache are read past it into buffers, cast
 *          and put in order on the way; units that are in it are used there. No allocation if the
 *          units are in memory, but for the first leases of a size.
 * Errors   INVALID_ARG; LIMIT for units that together exceed the budget, and where waiting would be
 *          of no use: all that stands in the way is held by this thread, or by threads that wait
 *          themselves. A lease and a reservation count as held by the thread that made them, a tensor
 *          by the one that asked for it. IO or FORMAT with file and tensor; NOMEM; CANCELLED by the
 *          context's progress callback, which is called at the beginning and while it waits.
 * Threads  any number at once. No lock is held while a callback runs.
 * Source   docs/residency.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_residency_acquire(heft_residency *residency,
                                                            const size_t *units, size_t count,
                                                            heft_lease **out, heft_error *err);
/** Take one more reference; returns its argument. */
HEFT_API heft_lease *heft_lease_ref(heft_lease *lease);
/** Drop a reference. With the last one the units may be dropped from memory when others need it.
 * NULL is allowed. */
HEFT_API void heft_lease_free(heft_lease *lease);

/**
 * Return a parameter as a tensor, lent until the lease is freed, without an allocation. Its `storage`
 * is NULL: nothing keeps the bytes but the lease. Read only.
 *
 * NULL if the parameter is neither in the lease's units nor in memory of its own.
 */
HEFT_API const heft_tensor *heft_lease_view(const heft_lease *lease, size_t parameter);
/**
 * Hand out a parameter as a tensor that keeps its bytes until it is freed, also after the lease, the
 * residency and the model. Its unit counts against the budget for as long.
 *
 * @param lease      borrowed
 * @param parameter  its number in the model; in the lease's units, or in memory of its own
 * @param out        filled with an owned tensor, read only
 * @param err        filled on failure; may be NULL
 *
 * Memory   three small blocks, no copy of the bytes.
 * Errors   INVALID_ARG for a parameter that is not in the lease's units; NOT_FOUND if it has no value;
 *          NOMEM.
 * Threads  any.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_lease_tensor(const heft_lease *lease, size_t parameter,
                                                       heft_tensor **out, heft_error *err);

/** Fill `counts`, made with HEFT_SIZED, with what was read so far and what it took. INVALID_ARG for a
 * struct_size of 0. */
HEFT_API HEFT_MUST_CHECK heft_status heft_residency_facts(heft_residency *residency,
                                                          heft_residency_counts *counts,
                                                          heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
