/* heft/place.h - placing a model's modules on devices: budgets, device maps and their sizes. */
#ifndef HEFT_PLACE_H
#define HEFT_PLACE_H

#include <heft/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct heft_budget {
    int32_t device;
    double bytes; /* integral, except after balancing; infinite for a disk without a limit */
} heft_budget;

typedef enum heft_strategy {
    HEFT_STRATEGY_AUTO, /* balanced */
    HEFT_STRATEGY_BALANCED,
    HEFT_STRATEGY_BALANCED_LOW_0, /* leaves room on accelerator 0 */
    HEFT_STRATEGY_SEQUENTIAL,     /* fills one device after the other */
    /* heft's own: as many bytes as possible on accelerators, in proportion */
    HEFT_STRATEGY_BEST
} heft_strategy;

/** The memory that this machine has for a model now, and what limits it. */
typedef struct heft_machine {
    size_t struct_size; /* set by HEFT_SIZED */
    uint64_t bytes;
    const char *reason; /* "available memory", "the container's limit (cgroup v2)", ...; static */
} heft_machine;

/**
 * Determine how much memory a model may take now: the minimum of MemAvailable, the limits of
 * containers, and RLIMIT_AS.
 *
 * @param machine  filled; initialized with HEFT_SIZED by the caller
 * @param err      filled on failure; may be NULL
 *
 * Errors   INVALID_ARG for a NULL pointer or a struct_size of 0.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_machine_memory(heft_machine *machine, heft_error *err);

/** The dtype with which sizes are computed for the modules and tensors that a name matches. */
typedef struct heft_module_dtype {
    /* A module's path or class, or a tensor's name. Also matches as the end of a path, or as a path
     * with '*' for a number; "" is the whole model. */
    const char *name;
    heft_dtype dtype;
} heft_module_dtype;

/** The device for a module with everything below it, or for a tensor. */
typedef struct heft_device_entry {
    const char *name; /* module path or tensor name; "" is the whole model */
    int32_t device;
} heft_device_entry;

typedef struct heft_plan_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    heft_strategy strategy;
    /* [budget_count]; none: the CPU with this machine's memory, then the disk */
    const heft_budget *budgets;
    size_t budget_count;
    /* For computing sizes; NONE: the model's own. Never increases a tensor's size. */
    heft_dtype dtype;
    /* [no_split_count] Modules that must stay on one device, instead of those of the model:
     * classes, ends of module paths, or paths with '*' for a number. */
    const char *const *no_split;
    size_t no_split_count;
    /* a JSON file {module: device}, used instead of a strategy; NULL: none */
    const char *device_map_file;
    /* [dtype_count] Exceptions to `dtype`, which may also increase sizes. The innermost matching
     * name wins; if several match equally, the last one wins. An integer tensor is affected only if
     * a name matches the tensor itself. */
    const heft_module_dtype *dtypes;
    size_t dtype_count;
    /* buffers are placed with their modules, without a warning if they fit on no accelerator */
    bool offload_buffers;
    /* In Accelerate's strategies: if a device would stay empty, place a later module that
     * fits there before its turn. */
    bool fallback_allocation;
    /* [device_map_count] A device map, used instead of a strategy: the innermost matching name
     * wins; NULL: none. */
    const heft_device_entry *device_map;
    size_t device_map_count;
} heft_plan_options;

/** A device map with its sizes, for heft_model_load() and heft_model_needs() (heft/load.h). */
typedef struct heft_plan heft_plan;

/**
 * Compute a device map for a model. Loads nothing.
 *
 * All strategies except BEST give the same map as Accelerate 1.15; where Accelerate loses a tensor
 * or fails, they give a map that does not. BEST places every tensor, exceeds no budget except the
 * disk's, keeps blocks and tied tensors together, gives each accelerator one contiguous run of
 * modules, and leaves as few bytes for CPU and disk as such runs allow.
 *
 * @param model    borrowed; may be empty
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned plan; free it with heft_plan_free()
 * @param err      filled on failure; may be NULL
 *
 * Memory   lists of modules and tensors; for BEST, 20 bytes per unit and set of accelerators.
 * Errors   INVALID_ARG for two budgets for one device, a negative budget, or an invalid dtype;
 *          MISMATCH for a `dtypes` name that matches no module or tensor. For a device map:
 *          INVALID_ARG for an invalid device or a duplicate name; the errors of reading a JSON
 *          file; MISMATCH for a module that the model does not have, a tensor without a device, or
 *          a tensor that is tied to one on another device. MISMATCH errors give the name.
 *          CANCELLED; NOMEM.
 * Source   docs/placing.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_plan_new(const heft_model *model,
                                                   const heft_plan_options *options,
                                                   heft_plan **out, heft_error *err);
/** Free a plan. NULL is allowed. */
HEFT_API void heft_plan_free(heft_plan *plan);

/** Return the number of entries in the device map. */
HEFT_API size_t heft_plan_count(const heft_plan *plan);
/** Return the module ("" is the whole model) or tensor of entry i, with its device and bytes; NULL
 * past the end; lent by the plan. */
HEFT_API const char *heft_plan_entry(const heft_plan *plan, size_t i, int32_t *device,
                                     double *bytes);
/** Return the device of a parameter or module by name, or HEFT_DEVICE_NONE if the map has none for
 * it. */
HEFT_API int32_t heft_plan_device_of(const heft_plan *plan, const char *name);
/** Return the device of a module by its number in the model (heft_model_module()), or
 * HEFT_DEVICE_NONE if its parts are on several devices. */
HEFT_API int32_t heft_plan_module_device(const heft_plan *plan, size_t module);
/** Return the device of a parameter by its number in the model, or HEFT_DEVICE_NONE past the
 * end. */
HEFT_API int32_t heft_plan_parameter_device(const heft_plan *plan, size_t parameter);
/** Get the budget of device i after balancing, and the bytes placed on it. Returns false past the
 * end. */
HEFT_API bool heft_plan_device(const heft_plan *plan, size_t i, heft_budget *budget,
                               double *placed);
/** Return the largest module that must not be split, and its bytes; lent. */
HEFT_API const char *heft_plan_largest(const heft_plan *plan, double *bytes);
/** Get the sizes needed to stream what is on disk unit by unit, as heft_residency has units (a layer
 * and each of its experts are units of their own): `one` is the largest unit, the smallest budget
 * that a residency accepts; `two` the largest pair of adjacent units in the model's order (for
 * read-ahead; the first unit follows the last). Both are 0 if nothing is on disk. Returns the
 * recommended streaming budget: two adjacent units if they fit in what is left of the CPU budget,
 * otherwise one. If even one does not fit, returns what is left; streaming will fail. A caller that
 * acquires several units at once, such as a layer with some of its experts, needs their sum. */
HEFT_API double heft_plan_stream(const heft_plan *plan, double *one, double *two);
/** Return the reason for the size of the CPU budget; "given" if the caller set it. */
HEFT_API const char *heft_plan_reason(const heft_plan *plan);
/**
 * Return warning i, or NULL past the end; lent. The warnings are those of Accelerate 1.15, in its
 * words: weights that are not tied; buffers of offloaded modules that fit on no accelerator;
 * devices on which nothing could be placed, with the bytes that it would take (several lines); tied
 * tensors on different devices. A device map from a file has no warnings.
 */
HEFT_API const char *heft_plan_warning(const heft_plan *plan, size_t i);
/** Compute the bytes of the model and of its largest block with `bytes_each` bytes per
 * floating-point number. */
HEFT_API void heft_plan_sizes(const heft_plan *plan, double bytes_each, double *total,
                              double *largest);

#ifdef __cplusplus
}
#endif
#endif
