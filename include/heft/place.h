/* heft/place.h - which module lives where: budgets, device maps, and what they need. */
#ifndef HEFT_PLACE_H
#define HEFT_PLACE_H

#include <heft/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct heft_budget {
    int32_t device;
    double bytes; /* a whole number but after balancing; infinite for a disk without a limit */
} heft_budget;

typedef enum heft_strategy {
    HEFT_STRATEGY_AUTO, /* balanced */
    HEFT_STRATEGY_BALANCED,
    HEFT_STRATEGY_BALANCED_LOW_0, /* leaves room on accelerator 0 */
    HEFT_STRATEGY_SEQUENTIAL,     /* fills one device after the other */
    HEFT_STRATEGY_BEST            /* heft's own: the most bytes on accelerators, in proportion */
} heft_strategy;

/** How much memory this machine has for a model now, and what sets it. */
typedef struct heft_machine {
    size_t struct_size; /* set by HEFT_SIZED */
    uint64_t bytes;
    const char *reason; /* "available memory", "the container's limit (cgroup v2)", ...; static */
} heft_machine;

/**
 * Look up how much memory a model may take now: the least of MemAvailable, the limits of containers and
 * RLIMIT_AS.
 *
 * @param machine  filled; made with HEFT_SIZED
 * @param err      filled on failure; may be NULL
 *
 * Errors   INVALID_ARG for a NULL pointer or a struct_size of 0.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_machine_memory(heft_machine *machine, heft_error *err);

/** A dtype for the sizes of what a name stands for. */
typedef struct heft_module_dtype {
    const char *name; /* of a module, its class, or of a tensor: the path, an end of it, or the path
                         with a '*' for a number; "" is the whole model */
    heft_dtype dtype;
} heft_module_dtype;

/** Where a module, and all that is below it, or a tensor is to live. */
typedef struct heft_device_entry {
    const char *name; /* path of a module, or name of a tensor; "" is the whole model */
    int32_t device;
} heft_device_entry;

typedef struct heft_plan_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    heft_strategy strategy;
    const heft_budget *budgets; /* [budget_count]; none: cpu with what the machine has, then disk */
    size_t budget_count;
    heft_dtype dtype; /* of the sizes; NONE: the model's own; nothing gets larger by it */
    const char *const *no_split; /* [no_split_count] instead of the model's: classes, ends of
                                    modules' paths, or paths with a '*' for a number */
    size_t no_split_count;
    const char
        *device_map_file; /* a JSON file {module: device} instead of a strategy; NULL: none */
    const heft_module_dtype *dtypes; /* [dtype_count] that differ from `dtype`, larger ones too: the
                                        innermost name decides, of equals the last; integers have
                                        one only if the tensor itself is named */
    size_t dtype_count;
    bool offload_buffers; /* buffers go where their modules go: no warning if they fit nowhere */
    bool fallback_allocation; /* Accelerate's strategies: where a device would stay empty, bring a
                                 later module forward that fits */
    const heft_device_entry *device_map; /* [device_map_count] instead of a strategy: the innermost
                                            name decides; NULL: none */
    size_t device_map_count;
} heft_plan_options;

/** A device map with its sums; heft_model_load() and heft_model_needs() take it (heft/load.h). */
typedef struct heft_plan heft_plan;

/**
 * Say which module would live where. Nothing is loaded.
 *
 * Every strategy but BEST gives the map of Accelerate 1.15; where that loses a tensor or fails, one
 * that does not. BEST covers everything, passes no budget but the disk's, keeps blocks and ties
 * together, gives each accelerator one run of modules and leaves as few bytes for cpu and disk as
 * such runs can.
 *
 * @param model    borrowed; an empty one will do
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned plan; free it with heft_plan_free()
 * @param err      filled on failure; may be NULL
 *
 * Memory   lists of modules and tensors; BEST 20 bytes for each unit and set of accelerators.
 * Errors   INVALID_ARG for two budgets of a device or a negative one, or a dtype that is none;
 *          MISMATCH naming a name of `dtypes` that matches no module or tensor; of a device map:
 *          INVALID_ARG for an invalid device or a name given twice, those of reading a JSON file, and
 *          MISMATCH naming a module that the model does not have, a tensor without a device, or one
 *          that is tied to a tensor on another device; CANCELLED; NOMEM.
 * Source   docs/placing.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_plan_new(const heft_model *model,
                                                   const heft_plan_options *options,
                                                   heft_plan **out, heft_error *err);
/** Free a plan. NULL is allowed. */
HEFT_API void heft_plan_free(heft_plan *plan);

/** Return the number of entries of the map. */
HEFT_API size_t heft_plan_count(const heft_plan *plan);
/** Return entry i's module ("" is the whole model) or tensor, its device and bytes; NULL past the end;
 * lent by the plan. */
HEFT_API const char *heft_plan_entry(const heft_plan *plan, size_t i, int32_t *device,
                                     double *bytes);
/** Return the device of a parameter or module by its name; HEFT_DEVICE_NONE if the map has none. */
HEFT_API int32_t heft_plan_device_of(const heft_plan *plan, const char *name);
/** Return the device of a module by its number in the model (heft_model_module()); HEFT_DEVICE_NONE if
 * its parts are on several. */
HEFT_API int32_t heft_plan_module_device(const heft_plan *plan, size_t module);
/** Return the device of a parameter by its number in the model; HEFT_DEVICE_NONE past the end. */
HEFT_API int32_t heft_plan_parameter_device(const heft_plan *plan, size_t parameter);
/** Tell device i's budget after balancing and the bytes that are placed on it; false past the end. */
HEFT_API bool heft_plan_device(const heft_plan *plan, size_t i, heft_budget *budget,
                               double *placed);
/** Return the largest module that is not split, and its bytes; lent. */
HEFT_API const char *heft_plan_largest(const heft_plan *plan, double *bytes);
/** Tell what bringing in the blocks on the disk takes at once, one after the other: the largest of them,
 * and the largest two neighbors (the first behind the last), for reading ahead; 0 if none is there.
 * Return what to use for it: that of two; that of one if the processor's budget leaves no more; what it
 * leaves if that is still less, which will not do. */
HEFT_API double heft_plan_stream(const heft_plan *plan, double *one, double *two);
/** Return why the budget of the processor is what it is; "given" where the caller gave it. */
HEFT_API const char *heft_plan_reason(const heft_plan *plan);
/**
 * Return warning i, NULL past the end; lent. What Accelerate 1.15 would say, in its words: weights that
 * are not tied, buffers of offloaded modules that fit on no accelerator, devices that nothing could be
 * placed on with the bytes it would take (several lines), ties across devices. A map from a file has
 * none.
 */
HEFT_API const char *heft_plan_warning(const heft_plan *plan, size_t i);
/** Compute the bytes of the model and of its largest block if each floating-point number had
 * `bytes_each` bytes. */
HEFT_API void heft_plan_sizes(const heft_plan *plan, double bytes_each, double *total,
                              double *largest);

#ifdef __cplusplus
}
#endif
#endif
