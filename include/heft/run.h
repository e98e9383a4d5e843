/* heft/run.h - residency: keeps units of a loaded model in memory while they are used, within a
 * budget. */
#ifndef HEFT_RUN_H
#define HEFT_RUN_H

#include <heft/load.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- ledger ---------------------------------------------------------------------------------- */

/**
 * A ledger: a budget of bytes that residencies share with each other and with the caller's own
 * memory, such as a KV cache or activations. When one of them needs bytes, residencies drop units
 * that no lease or tensor holds.
 */
typedef struct heft_ledger heft_ledger;

/**
 * Create a ledger.
 *
 * @param ctx           borrowed; kept alive by the ledger
 * @param budget_bytes  the bytes that all users together may hold; at least 1
 * @param out           filled with an owned ledger; free it with heft_ledger_free()
 * @param err           filled on failure; may be NULL
 *
 * Memory   one small block; the budget is only counted, not allocated.
 * Errors   INVALID_ARG for a budget of 0; NOMEM.
 * Source   docs/residency.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_ledger_new(heft_ctx *ctx, uint64_t budget_bytes,
                                                     heft_ledger **out, heft_error *err);
/** Free a ledger. It stays alive while residencies, or tensors from their leases, use it. NULL is
 * allowed. */
HEFT_API void heft_ledger_free(heft_ledger *ledger);

/**
 * Reserve bytes of the ledger for the caller's own memory. If needed, drops units that nothing
 * holds; if that is not enough, waits until other users give back bytes. Requests are served in
 * order of arrival.
 *
 * @param ledger  borrowed
 * @param bytes   number of bytes; give them back with heft_ledger_give_back()
 * @param err     filled on failure; may be NULL
 *
 * Memory   a few bytes for each thread that has a reservation.
 * Errors   LIMIT if waiting cannot help, as for heft_residency_acquire(); NOMEM; CANCELLED by the
 *          progress callback of the ledger's context, which is called during the wait.
 * Threads  may be called by any number of threads at once.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_ledger_reserve(heft_ledger *ledger, uint64_t bytes,
                                                         heft_error *err);
/** As heft_ledger_reserve(), but does not wait. Returns true if the bytes are reserved, false if
 * they are not available now or if out of memory. */
HEFT_API HEFT_MUST_CHECK bool heft_ledger_try_reserve(heft_ledger *ledger, uint64_t bytes);
/** Give back reserved bytes, at most as many as are reserved. May be called by any thread. */
HEFT_API void heft_ledger_give_back(heft_ledger *ledger, uint64_t bytes);

/** The state of a ledger. */
typedef struct heft_ledger_counts {
    size_t struct_size;      /* set by HEFT_SIZED */
    uint64_t budget_bytes;   /* as given */
    uint64_t held_bytes;     /* by units in memory, being read, or kept by tensors */
    uint64_t reserved_bytes; /* by heft_ledger_reserve() */
    uint64_t peak_bytes;     /* maximum of held plus reserved bytes so far */
    uint64_t waiting;        /* requests that are waiting for bytes now */
} heft_ledger_counts;

/** Fill `counts` with the state of a ledger. The caller initializes `counts` with HEFT_SIZED;
 * INVALID_ARG for a struct_size of 0. */
HEFT_API HEFT_MUST_CHECK heft_status heft_ledger_facts(heft_ledger *ledger,
                                                       heft_ledger_counts *counts, heft_error *err);

/* ---- residency ------------------------------------------------------------------------------- */

/**
 * A residency: brings units of a model from the checkpoint's files into memory while they are used,
 * within a budget, and reads the next ones ahead. Any number of threads may acquire units at once;
 * no other thread may use a residency while it is being freed.
 */
typedef struct heft_residency heft_residency;

/**
 * Parameters that are brought into memory and dropped together: those of a layer that must not be
 * split (without its experts), of an expert, or of a module outside the layers. Parameters that are
 * tied across such boundaries form a unit of their own, which belongs to all modules that hold
 * them. Lent by the residency; later versions may add members at the end.
 */
typedef struct heft_unit {
    const char *name; /* path of its first module */
    /* [module_count] numbers in the model, ascending; more than one if parameters are tied */
    const size_t *modules;
    size_t module_count;
    const size_t *parameters; /* [parameter_count] numbers in the model */
    size_t parameter_count;
    uint64_t bytes; /* of all its parameters, tied ones once */
    /* Bytes of the parameters that acquiring the unit brings into memory; only these count against
     * the budget. 0: the unit is always in memory. */
    uint64_t brought_bytes;
} heft_unit;

typedef struct heft_residency_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    /* Maximum bytes of tensors brought into memory. 0: the bytes of the largest pair of adjacent
     * entries of the schedule, where a layer with its experts counts as one entry. Must be 0 with a
     * ledger. */
    uint64_t budget_bytes;
    /* [schedule_count] Copied. Units in the order in which they will be acquired; a unit may occur
     * several times. NULL: the model's order, with a tied unit at each of its modules. */
    const size_t *schedule;
    size_t schedule_count;
    /* The position from which the schedule repeats after its end; 0: all of it; SIZE_MAX: it does
     * not repeat. */
    size_t repeat_from;
    heft_ledger *ledger; /* borrowed; kept alive; NULL: a new one with budget_bytes */
    /* Create it even if units of the schedule need more memory than is available, including
     * swap. */
    bool over_limit;
    /* Read each unit anew for each use, always into memory of its own, and drop it as soon as no lease
     * or tensor holds it. Tensors from its leases are then writable, and no later use sees what is
     * written into them; leases that exist at the same time share it. Units that have been read ahead stay until their first use. */
    bool writable;
} heft_residency_options;

/** Reads and memory of a residency since it was created. */
typedef struct heft_residency_counts {
    size_t struct_size;     /* set by HEFT_SIZED */
    uint64_t budget_bytes;  /* of its ledger */
    uint64_t held_bytes;    /* held by this residency now */
    uint64_t peak_bytes;    /* maximum held at once */
    uint64_t read_bytes;    /* read from files into buffers */
    uint64_t mapped_bytes;  /* used in place, in the page cache */
    uint64_t brought_units; /* units brought in, by reading or in place; repeats count */
    uint64_t ahead;         /* units that were in memory or being read when they were acquired */
    uint64_t waited;        /* units whose reading had not begun when they were acquired */
    /* Bounds, predicted when the residency was created, of the memory that units and the buffers for
     * reading them take if the whole schedule is used. Mapped units that are used in place take no
     * memory of their own; which ones are depends on the page cache when they are acquired. They
     * count as 0 in least_bytes, and in full in most_bytes. */
    uint64_t least_bytes, most_bytes;
} heft_residency_counts;

/**
 * Create a residency for a loaded model. Reads nothing yet.
 *
 * @param model    borrowed; must outlive the residency, but not its leases, and must not change
 *                 while the residency exists
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned residency; free it with heft_residency_free()
 * @param err      filled on failure; may be NULL
 *
 * Memory   lists of units and tensors. While units are in memory: at most the budget, plus up to 12
 *          KB for each tensor of 1 MiB or more and 128 bytes for each smaller one; during reads,
 *          also heft_load_needs.stream_staging_bytes.
 * Errors   INVALID_ARG for a schedule that is empty, contains a unit that the model does not have,
 *          or repeats from beyond its end; LIMIT for a budget that is too small for a scheduled
 *          unit, with the unit's name and both sizes, and if the units need more memory than is
 *          available (least_bytes of heft_residency_counts) and over_limit is not set; NOMEM.
 * Source   docs/residency.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_residency_new(const heft_model *model,
                                                        const heft_residency_options *options,
                                                        heft_residency **out, heft_error *err);
/** Free a residency. Its leases, and tensors created from them, stay valid until they are freed.
 * NULL is allowed. */
HEFT_API void heft_residency_free(heft_residency *residency);

/** Return one line that says that the units may need more memory than was available when the
 * residency was created, with both numbers; NULL if they do not. Lent by the residency. */
HEFT_API const char *heft_residency_warning(const heft_residency *residency);
/** Return the number of units. */
HEFT_API size_t heft_residency_count(const heft_residency *residency);
/** Return unit i, or NULL past the end; lent by the residency. */
HEFT_API const heft_unit *heft_residency_unit(const heft_residency *residency, size_t i);
/** Find the unit of a parameter. Returns its number, or SIZE_MAX if there is none. */
HEFT_API size_t heft_residency_find_parameter(const heft_residency *residency, size_t parameter);
/** Find the unit of a module: that of the layer or expert that the module is or belongs to,
 * otherwise that of the module's own parameters. Returns its number, or SIZE_MAX if the module has
 * no parameters of its own and contains several units. */
HEFT_API size_t heft_residency_find_module(const heft_residency *residency, size_t module);
/**
 * Find all units that hold parameters of a module or of its submodules.
 *
 * @param residency  borrowed
 * @param module     its number in the model
 * @param units      filled with up to `cap` unit numbers, ascending; may be NULL if cap is 0
 * @param cap        capacity of `units`
 * @return           the total number of such units, which may exceed `cap`; 0 if there is no such
 *                   module
 */
HEFT_API size_t heft_residency_find_units(const heft_residency *residency, size_t module,
                                          size_t *units, size_t cap);

/**
 * Replace the schedule, and set the position to its beginning. Units in memory stay there.
 *
 * @param residency    borrowed
 * @param schedule     borrowed; copied; as in heft_residency_options
 * @param count        number of units in the schedule
 * @param repeat_from  as in heft_residency_options
 * @param err          filled on failure; may be NULL. On failure, the schedule is unchanged.
 *
 * Memory   12 bytes for each unit in the schedule.
 * Errors   INVALID_ARG, LIMIT and NOMEM as for heft_residency_new().
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_residency_set_schedule(heft_residency *residency,
                                                                 const size_t *schedule,
                                                                 size_t count, size_t repeat_from,
                                                                 heft_error *err);

/** A lease: holds units in memory until it is freed. Reference-counted; any thread may use and free
 * it. */
typedef struct heft_lease heft_lease;

/**
 * Hold units in memory: all of them or none. Waits until they have been read and, if other threads
 * hold too much of the budget, until those release enough. Requests that need memory are served in
 * order of arrival.
 *
 * Moves the position in the schedule to the next occurrence of each unit, and reads the units after
 * it ahead. If memory is needed, drops first the units that the schedule does not use again, then
 * those whose next use is farthest away. A unit that is not in the schedule, or does not occur in
 * it again, is brought in when it is acquired.
 *
 * @param residency  borrowed
 * @param units      borrowed; unit numbers in any order; repeats are allowed
 * @param count      number of entries in `units`; 0 gives an empty lease
 * @param out        filled with an owned lease; free it with heft_lease_free()
 * @param err        filled on failure; may be NULL
 *
 * Memory   within the budget. Units that are not in the page cache are read into buffers, bypassing
 *          the page cache, and are cast and rearranged during the read; mapped units of 1 MiB or
 *          more that are in the page cache are used in place. A lease of units that are already in
 *          memory allocates nothing once a lease of the same size has been freed.
 * Errors   INVALID_ARG for a unit that does not exist. LIMIT for units that together exceed the
 *          budget, and if waiting cannot help because everything in the way is held by this thread
 *          or by threads that are waiting themselves. (A lease or reservation counts as held by the
 *          thread that made it, a tensor by the thread that created it.) IO or FORMAT with file and
 *          tensor; NOMEM; CANCELLED by the context's progress callback, which is called at the
 *          beginning and during the wait.
 * Threads  may be called by any number of threads at once. No lock is held while a callback runs.
 * Source   docs/residency.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_residency_acquire(heft_residency *residency,
                                                            const size_t *units, size_t count,
                                                            heft_lease **out, heft_error *err);
/** As heft_residency_acquire(), but does not wait for bytes of the budget that are not available now:
 * fails with LIMIT instead. Waits for units that are being read. */
HEFT_API HEFT_MUST_CHECK heft_status heft_residency_try_acquire(heft_residency *residency,
                                                                const size_t *units, size_t count,
                                                                heft_lease **out, heft_error *err);
/** Add a reference. Returns its argument. */
HEFT_API heft_lease *heft_lease_ref(heft_lease *lease);
/** Drop a reference. After the last one, the units stay in memory until others need it. NULL is
 * allowed. */
HEFT_API void heft_lease_free(heft_lease *lease);

/**
 * Return a parameter as a tensor, read-only unless the residency is writable, without allocating; lent until the lease is freed. Its
 * `storage` is NULL: only the lease keeps the bytes alive. Returns NULL if the parameter is neither
 * in the lease's units nor always in memory, and for a weight that heft_session_compact() has rewritten.
 */
HEFT_API const heft_tensor *heft_lease_view(const heft_lease *lease, size_t parameter);
/**
 * Create a tensor that keeps a parameter's bytes alive until it is freed, even after the lease, the
 * residency and the model are freed. The parameter's unit counts against the budget until then.
 *
 * @param lease      borrowed
 * @param parameter  its number in the model; must be in the lease's units, or always in memory
 * @param out        filled with an owned tensor, read-only unless the residency is writable
 * @param err        filled on failure; may be NULL
 *
 * Memory   three small blocks; the bytes are not copied.
 * Errors   INVALID_ARG for a parameter that is not in the lease's units; NOT_FOUND if it has no
 *          value; NOMEM.
 * Threads  may be called by any thread.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_lease_tensor(const heft_lease *lease, size_t parameter,
                                                       heft_tensor **out, heft_error *err);

/** Fill `counts` with the reads and memory of a residency so far. The caller initializes `counts`
 * with HEFT_SIZED; INVALID_ARG for a struct_size of 0. */
HEFT_API HEFT_MUST_CHECK heft_status heft_residency_facts(heft_residency *residency,
                                                          heft_residency_counts *counts,
                                                          heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
