/* heft/place.h - plans: which device each module of a model goes to, within budgets of bytes. */
#ifndef HEFT_PLACE_H
#define HEFT_PLACE_H

#include <heft/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The bytes of weights that a device may hold. */
typedef struct heft_budget {
    int32_t device; /* an accelerator's number, HEFT_DEVICE_CPU, HEFT_DEVICE_DISK, ... */
    double bytes;   /* integral, except after balancing; infinite for a disk without a limit */
} heft_budget;

/** How modules are assigned to devices: docs/placing.md. All but BEST are Accelerate's. */
typedef enum heft_strategy {
    HEFT_STRATEGY_AUTO,           /* same as BALANCED */
    HEFT_STRATEGY_BALANCED,       /* an even share for each accelerator */
    HEFT_STRATEGY_BALANCED_LOW_0, /* as little as possible on accelerator 0 */
    HEFT_STRATEGY_SEQUENTIAL,     /* fills one device after the other */
    /* heft's own: as many bytes as possible on accelerators, each filled in proportion to its
     * budget */
    HEFT_STRATEGY_BEST
} heft_strategy;

/** The memory that a model may take on this machine now. */
typedef struct heft_machine {
    size_t struct_size; /* set by HEFT_SIZED */
    uint64_t bytes;
    /* what limits it: "available memory", "the container's limit (cgroup v2)", ...; static */
    const char *reason;
} heft_machine;

/**
 * Determine how much memory a model may take now: the smallest of MemAvailable and what the limits
 * of containers (cgroups) and RLIMIT_AS leave.
 *
 * @param machine  filled; initialized with HEFT_SIZED by the caller
 * @param err      filled on failure; may be NULL
 *
 * Errors   INVALID_ARG for a NULL pointer or a struct_size of 0.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_machine_memory(heft_machine *machine, heft_error *err);

/** The dtype to assume when computing the sizes of the modules and tensors that a name matches. */
typedef struct heft_module_dtype {
    /* A module's path or class, the end of a module's path, a path with '*' for a number, a
     * tensor's name, or a sub-model's key in the config ("text_config", "vision_config",
     * "audio_config"); "" is the whole model. */
    const char *name;
    heft_dtype dtype;
} heft_module_dtype;

/** The device for a module with everything below it, or for a tensor. */
typedef struct heft_device_entry {
    const char *name; /* module path or tensor name; "" is the whole model */
    int32_t device;
} heft_device_entry;

/** What a plan may assume that weights are quantized to: the matrices in the layers, with their
 * scales; embeddings, norms, routers, biases and heads stay as they are. */
typedef enum heft_plan_quantization {
    HEFT_PLAN_AS_STORED,
    HEFT_PLAN_INT8, /* 8 bits, a 16-bit scale for each row */
    HEFT_PLAN_INT4, /* 4 bits, a 16-bit scale for each group of 128 in a row */
    HEFT_PLAN_FP8   /* 8 bits, a float32 scale for each block of 128 x 128 */
} heft_plan_quantization;

typedef struct heft_plan_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    heft_strategy strategy;
    /* [budget_count] NULL: the CPU with heft_machine_memory(), less a reserve for buffers and page
     * tables, then the disk. */
    const heft_budget *budgets;
    size_t budget_count;
    /* The dtype to assume when computing sizes; NONE: the model's own. Never increases the size of
     * a tensor. */
    heft_dtype dtype;
    /* [no_split_count] The modules that must stay on one device: classes, ends of module paths, or
     * paths with '*' for a number. NULL: heft_model_no_split(); an empty list that is not NULL: none.
     */
    const char *const *no_split;
    size_t no_split_count;
    /* path of a JSON file {module: device}, used instead of a strategy; NULL for none */
    const char *device_map_file;
    /* [dtype_count] Exceptions to `dtype`, which may also increase sizes. The innermost matching
     * name wins; if several match equally, the last one. An integer tensor is affected only by its
     * own name. */
    const heft_module_dtype *dtypes;
    size_t dtype_count;
    /* do not warn if the buffers of modules on CPU and disk do not fit on any accelerator */
    bool offload_buffers;
    /* with Accelerate's strategies: if a device would stay empty, place a later module that fits
     * there before its turn */
    bool fallback_allocation;
    /* [device_map_count] A device map, used instead of a strategy; the innermost matching name
     * wins. NULL for none. */
    const heft_device_entry *device_map;
    size_t device_map_count;
    /* a device map as JSON text, such as {"": 0}; used instead of a strategy. NULL for none */
    const char *device_map_json;
    heft_plan_quantization quantize;
    /* Room for the key/value cache of `batch` sequences (0: one) of `context` tokens each, and for the
     * activations of reading them: docs/placing.md [9]. 0: no room. A cache is on the device of its
     * layer, activations on each accelerator, or on the CPU if there is none. */
    uint64_t context, batch;
    /* Bytes that stay free on each accelerator, or on the CPU if there is none; and a share, from 0 to
     * 1, of each accelerator's budget that stays free. */
    double reserve_bytes, reserve_share;
} heft_plan_options;

/** What a device holds besides weights. */
typedef struct heft_plan_room {
    size_t struct_size; /* set by HEFT_SIZED */
    double cache_bytes, activation_bytes, reserve_bytes;
    double given_bytes; /* its budget, before anything was taken from it */
} heft_plan_room;

/** Whether a model fits, by heft_plan_fits(). */
typedef enum heft_plan_verdict {
    HEFT_PLAN_FITS,    /* all weights and all room are in memory */
    HEFT_PLAN_ON_DISK, /* some weights are on the disk */
    HEFT_PLAN_OVER,    /* a device would hold more than its budget */
    HEFT_PLAN_UNKNOWN  /* the device map names a device without a budget */
} heft_plan_verdict;

/** A device map with its sizes, for heft_model_load() and heft_model_needs() (heft/load.h). */
typedef struct heft_plan heft_plan;

/**
 * Compute a device map for a model. Loads nothing.
 *
 * All strategies except BEST produce the map of Accelerate 1.15, except in cases where Accelerate
 * fails or leaves a tensor without a device: there, they produce a complete map. BEST places every
 * tensor, exceeds no budget except the disk's, keeps blocks and tied tensors together, gives each
 * accelerator one contiguous run of modules, and leaves as few bytes for CPU and disk as such runs
 * allow.
 *
 * @param model    borrowed; may be empty
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned plan; free it with heft_plan_free()
 * @param err      filled on failure; may be NULL
 *
 * Memory   lists of modules and tensors; for BEST, in addition 20 bytes for each combination of a
 *          unit and a set of accelerators.
 * Errors   INVALID_ARG for two budgets for one device, a negative budget, an invalid dtype, a reserve
 *          that is negative or a share above 1, or a room of 2^53 tokens and more;
 *          MISMATCH for a `dtypes` name that matches no module or tensor. For a device map:
 *          INVALID_ARG for an invalid device or a duplicate name, and if more than one of array, file
 *          and text is given; MISMATCH for a tensor without a device, or a tensor that is tied to one
 *          on another device; for a file or a text, also FORMAT; for a file, NOT_FOUND, LIMIT and IO.
 *          The item is the name. A name that the model does not have is a warning.
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
/** Return the name of entry i, a module ("" is the whole model) or a tensor, and set its device and
 * bytes; lent. NULL past the end. */
HEFT_API const char *heft_plan_entry(const heft_plan *plan, size_t i, int32_t *device,
                                     double *bytes);
/** Return the device of a parameter or module by name, or HEFT_DEVICE_NONE if it has none in the
 * map. */
HEFT_API int32_t heft_plan_device_of(const heft_plan *plan, const char *name);
/** Return the device of a module by its number in the model (heft_model_module()), or
 * HEFT_DEVICE_NONE if its parts are on several devices. */
HEFT_API int32_t heft_plan_module_device(const heft_plan *plan, size_t module);
/** Return the device of a parameter by its number in the model, or HEFT_DEVICE_NONE past the
 * end. */
HEFT_API int32_t heft_plan_parameter_device(const heft_plan *plan, size_t parameter);
/** Get the budget of the plan's i-th device after balancing, and the bytes placed on it. Returns
 * false past the end. */
HEFT_API bool heft_plan_device(const heft_plan *plan, size_t i, heft_budget *budget,
                               double *placed);
/** Return the path of the largest module that must not be split, and set its bytes; lent. */
HEFT_API const char *heft_plan_largest(const heft_plan *plan, double *bytes);
/** Return the recommended budget in bytes for streaming what is on disk unit by unit: the largest
 * pair of adjacent units in the model's order (the first unit follows the last) if it fits in what
 * is left of the CPU budget, otherwise the largest unit. If not even that fits, returns what is
 * left; streaming will fail. Units are those of heft_residency: a layer and each of its experts are
 * separate units. Sets `one` to the bytes of the largest unit, the smallest budget that a residency
 * accepts, and `two` to those of the largest pair; both are 0 if nothing is on disk. To acquire
 * several units at once, such as a layer with some of its experts, their sum is needed. */
HEFT_API double heft_plan_stream(const heft_plan *plan, double *one, double *two);
/** Return what determines the CPU budget: heft_machine.reason, or "given" if the caller set it;
 * lent. */
HEFT_API const char *heft_plan_reason(const heft_plan *plan);
/**
 * Return warning i, or NULL past the end; lent. The warnings are those of Accelerate 1.15, with its
 * text: weights that are not tied although the config asks for it; buffers of offloaded modules
 * that fit on no accelerator; devices on which nothing could be placed, with the bytes that would
 * be needed (several lines); tied tensors on different devices. A plan made from a device map has
 * at most one: the names that the model does not have.
 */
HEFT_API const char *heft_plan_warning(const heft_plan *plan, size_t i);
/** Get what the plan's i-th device holds besides weights, in the order of heft_plan_device().
 * `room` is initialized with HEFT_SIZED by the caller. Returns false past the end. */
HEFT_API bool heft_plan_get_room(const heft_plan *plan, size_t i, heft_plan_room *room);
/** Return whether the plan knows what the model's attention keeps of each token. False for a model
 * type that heft does not know: its cache and activations count as 0 bytes. */
HEFT_API bool heft_plan_cache_known(const heft_plan *plan);
/** Return whether weights, caches, activations and reserve are all in memory. Sets `device` to the
 * device that the verdict is about, or HEFT_DEVICE_NONE, and `bytes` to the bytes on the disk, or to
 * those over the budget; both may be NULL. */
HEFT_API heft_plan_verdict heft_plan_fits(const heft_plan *plan, int32_t *device, double *bytes);
/** Compute the bytes of the model and of its largest block if each floating-point element had
 * `bytes_each` bytes. */
HEFT_API void heft_plan_sizes(const heft_plan *plan, double bytes_each, double *total,
                              double *largest);

#ifdef __cplusplus
}
#endif
#endif
