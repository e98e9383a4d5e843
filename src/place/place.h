/* The internal header of the place layer.
 *
 * What it does: computes which module goes to which device. It contains a tree of modules and their
 * tensors with sizes; device budgets, from the caller or from what the machine allows; device maps
 * by Accelerate's strategies, with its warnings, and by a better one; and the sizes that each dtype
 * would need.
 * May include: base, io, json, tensor, model.
 * Rules: no weights are read, and only lists are allocated. Sizes are those of the requested dtype;
 * a tied tensor counts once. A map covers every parameter and buffer. */
#ifndef HEFT__PLACE_PLACE_H
#define HEFT__PLACE_PLACE_H

#include <heft/place.h>

#include "io/io.h"
#include "model/model.h"
#include "json/json.h"

/* ---- tree: modules and tensors as nodes
 *
 * Nodes are numbered: modules first, in pre-order (0 is the root), then tensors, module by module. A
 * tensor that is reached by several names is a node under each; only the first has a size. Sizes are
 * doubles, because Accelerate counts fractions of bytes; all of them are exact. */
#define HEFT__NO_NODE UINT32_MAX

typedef struct heft__tree_module {
    const char *path, *class_name;       /* "" for the root */
    uint32_t parent, end;                /* end: the first module after its subtree */
    uint32_t first_tensor, tensor_count; /* parameters first, then buffers */
    uint32_t child_count;
    double bytes;
    bool block; /* must not be split */
    bool unit;  /* as heft_module.unit; whatever a caller says of blocks */
} heft__tree_module;

typedef struct heft__tree_tensor {
    const char *path; /* the whole name */
    uint32_t module;
    uint32_t parameter; /* its number in the model; 0 in a tree without one */
    uint32_t
        first; /* tensor (not node) number of the same tensor's first name, its own number else */
    heft_dtype dtype;
    uint64_t elems;
    bool buffer, transient;
    double bytes;     /* 0 but for the first name */
    double quantized; /* bytes if it were quantized as asked; 0: it stays as it is */
    double room;      /* bytes of the cache that goes where it goes */
} heft__tree_tensor;

typedef struct heft__tree {
    heft_ctx *ctx;
    heft__arena arena;
    heft__tree_module *modules;
    heft__tree_tensor *tensors;
    uint32_t module_count, tensor_count;
    uint32_t (*ties)[2]; /* pairs: group number, tensor number; by group, then by name */
    size_t tie_count;
} heft__tree;

/* Modules must come in pre-order, tensors module by module. Of a model, module i is its module i. */
heft_status heft__tree_new(heft_ctx *ctx, uint32_t modules, uint32_t tensors, heft__tree **out,
                           heft_error *err);
/* After modules (path, class, parent) and tensors (path, module, first, ...) are filled in: ends,
 * counts, ties. */
heft_status heft__tree_finish(heft__tree *tree, heft_error *err);
/* The tree of an empty model, blocks marked. */
heft_status heft__tree_of_model(const heft_model *model, heft__tree **out, heft_error *err);
void heft__tree_free(heft__tree *tree);
/* Sizes by a dtype that has `unit` bytes an element (NONE: each its own): integers are never cast,
 * nothing gets larger. `special`: dtypes of tensors by number, NONE where there is none; or NULL. */
void heft__tree_size(heft__tree *tree, heft_dtype dtype, double unit, const heft_dtype *special);
/* Bytes of the tensors in a node as if all floating-point ones had `unit` bytes an element. */
double heft__tree_bytes_as(const heft__tree *tree, uint32_t node, double unit);
/* Whether a name is a path, its end, or it with a '*' for a number. */
bool heft__names_path(const char *path, const char *name);
/* Sizes by dtype, dtypes and quantize of the options; unchanged without these. MISMATCH for a name that matches nothing. */
heft_status heft__tree_size_by(heft__tree *tree, const heft_plan_options *options, heft_error *err);
/* Whether a name is a module's class, its path, an end of that, or its path with a '*' for a number. */
bool heft__tree_names(const heft__tree_module *module, const char *name);
/* Make the modules of these names blocks, and no others; NULL: leave them unchanged. */
void heft__tree_keep_whole(heft__tree *tree, const char *const *names, size_t count);
/* A warning for each name that no module has. false: without memory. */
bool heft__warn_names(heft__warnings *list, const heft__tree *tree, const char *const *names,
                      size_t count);

/* ---- room.c: what is in memory besides weights
 *
 * Note what each tensor would take if quantized. */
void heft__tree_quantize(heft__tree *tree, const heft_model *model, heft_plan_quantization how);
/* Note the room that caches take, at the first tensor of each attention. */
void heft__tree_cache(heft__tree *tree, const heft_model *model, uint64_t context, uint64_t batch);
/* Add that room to the sizes (sign 1), or take it away again (-1). */
void heft__tree_add_room(heft__tree *tree, double sign);
double heft__activation_bytes(const heft_model *model, uint64_t context, uint64_t batch);
bool heft__cache_known(const heft_model *model);

static inline bool heft__tree_is_tensor(const heft__tree *tree, uint32_t node)
{
    return node >= tree->module_count;
}
static inline double heft__tree_bytes(const heft__tree *tree, uint32_t node)
{
    return heft__tree_is_tensor(tree, node) ? tree->tensors[node - tree->module_count].bytes
                                            : tree->modules[node].bytes;
}
static inline const char *heft__tree_path(const heft__tree *tree, uint32_t node)
{
    return heft__tree_is_tensor(tree, node) ? tree->tensors[node - tree->module_count].path
                                            : tree->modules[node].path;
}
/* The module in which a node is; NO_NODE for the root. */
static inline uint32_t heft__tree_parent(const heft__tree *tree, uint32_t node)
{
    return heft__tree_is_tensor(tree, node) ? tree->tensors[node - tree->module_count].module
                                            : tree->modules[node].parent;
}
/* Whether a node is another one or below it. */
bool heft__tree_is_inside(const heft__tree *tree, uint32_t node, uint32_t ancestor);
/* Bytes of the buffers in a node. */
double heft__tree_buffers(const heft__tree *tree, uint32_t node);
/* The tensors in a node, from the first to the one after the last. */
void heft__tree_tensors(const heft__tree *tree, uint32_t node, uint32_t *first, uint32_t *end);
/* Whether tensor i is its tensor's first name in a node whose tensors begin at `first`. */
static inline bool heft__tree_is_first(const heft__tree *tree, uint32_t i, uint32_t first)
{
    return tree->tensors[i].first == i || tree->tensors[i].first < first;
}
/* Fill the site of each module: the layer or the expert that it lies in, else itself. What has one site
 * is brought in together (docs/residency.md [1]). */
void heft__tree_sites(const heft__tree *tree, uint32_t *sites);
/* A module with children that may be split. */
bool heft__tree_splits(const heft__tree *tree, uint32_t node);
/* Visit what is placed as a whole, in the order of the modules: the tensors of each module that splits,
 * the others as they are. The root always splits. Returns false as soon as a visit does. */
bool heft__tree_each_unit(const heft__tree *tree, bool (*visit)(void *user, uint32_t node),
                          void *user);

/* ---- budgets: what of the machine's memory weights may take ----------------------------------- */
void heft__machine_look(heft_machine *machine); /* as heft_machine_memory() */
/* The most that can be taken, swap included: a process that takes more is killed. */
typedef struct heft__most_memory {
    uint64_t bytes;
    uint64_t limit;     /* the limit that leaves so much */
    const char *reason; /* what it is: "cgroup v2 limit"; static */
} heft__most_memory;
/* Without the address space. root: the folder in which /proc and /sys are; NULL for this machine's. */
void heft__machine_look_below(const char *root, heft_machine *machine, heft__most_memory *most);
/* Whether the address space is limited; what of it is left, and the limit. */
bool heft__machine_look_at_space(uint64_t *left, uint64_t *limit);
uint64_t heft__machine_for_weights(const heft_machine *machine);

/* ---- maps ------------------------------------------------------------------------------------ */
typedef struct heft__placement {
    uint32_t node;
    int32_t device;
} heft__placement;

typedef struct heft__map_of_devices {
    heft_ctx *ctx;
    heft__placement *entries; /* in the order of placing */
    size_t count, cap;
} heft__map_of_devices;

void heft__devices_fini(heft__map_of_devices *map);
/* false if no memory. */
bool heft__devices_put(heft__map_of_devices *map, uint32_t node, int32_t device);

/* Facts about a map for its warnings. */
typedef struct heft__map_facts {
    double *used;   /* [budgets] by what was placed, with the room that was kept */
    double *needed; /* [budgets] to place anything there; 0: something was, or not tried */
    double offloaded_buffers; /* bytes of buffers on cpu and disk */
} heft__map_facts;

/* Balance the budgets as Accelerate does, in place; `names` of blocks; none: the flagged modules. */
heft_status heft__balance(const heft__tree *tree, heft_strategy strategy, heft_budget *budgets,
                          size_t count, const char *const *names, size_t name_count,
                          heft_error *err);
/* Accelerate's map: docs/placing.md [3]. fallback: pull a later module forward where a device would
 * stay empty. facts: zeroed. */
heft_status heft__compat_map(const heft__tree *tree, const heft_budget *budgets, size_t count,
                             bool fallback, heft__map_facts *facts, heft__map_of_devices *map,
                             heft_error *err);
/* rest.c: a unit that no accelerator takes. */
typedef struct heft__rest_unit {
    size_t leader; /* the unit that it is tied to, otherwise its own number */
    double bytes;  /* that having it in memory takes, with all that is tied to it */
    double saves;  /* what need not be brought in then: of it, and of each that is tied to it */
    double stream; /* of its weights, tied ones too: that bringing it in takes */
    double tied;   /* of these, of tensors that have their first name in another unit */
    bool apart;    /* it comes in parts, such as a layer and its experts: */
    double first, last; /* bytes of the first and of the last part */
    double one, two;    /* of the largest, and of the largest two neighbors */
} heft__rest_unit;

/* The run of units that stays on the CPU, besides room for streaming the others. */
void heft__rest_choose(const heft__rest_unit *units, size_t count, double budget, size_t *first,
                       size_t *end);
/* The most bytes that streaming a row takes at once: two neighbors, wrapping around; or one. */
double heft__rest_room(const heft__rest_unit *units, size_t count, bool lone);
/* heft's own map. */
heft_status heft__best_map(const heft__tree *tree, const heft_budget *budgets, size_t count,
                           heft__map_of_devices *map, heft_error *err);
/* A map from a JSON file: MISMATCH naming what has no device, or what is tied across devices. A warning
 * lists what the model does not have. */
heft_status heft__device_map_read(const heft__tree *tree, const char *path,
                                  heft__map_of_devices *map, heft__warnings *warnings,
                                  heft_error *err);
/* The same from JSON text, and from entries. */
heft_status heft__device_map_parse(const heft__tree *tree, const char *text,
                                   heft__map_of_devices *map, heft__warnings *warnings,
                                   heft_error *err);
heft_status heft__device_map_take(const heft__tree *tree, const heft_device_entry *entries,
                                  size_t count, heft__map_of_devices *map, heft__warnings *warnings,
                                  heft_error *err);
/* Join modules all of whose parts are on one device, as Accelerate does; in the order of nodes.
 * false if no memory. */
bool heft__devices_clean(const heft__tree *tree, heft__map_of_devices *map);
#define HEFT__NO_DEVICE INT32_MIN
/* Fill the devices of all modules and tensors, by node: that of the entry that is it or above it;
 * NO_DEVICE where there is none. */
void heft__devices_spread(const heft__tree *tree, const heft__map_of_devices *map,
                          int32_t *devices);

/* ---- warnings: false if no memory ------------------------------------------------------------ */
/* The config wants ties, there is an output layer, and nothing is tied. */
bool heft__warn_untied(heft__warnings *list, const heft__tree *tree, bool ties_wanted);
/* Buffers on cpu and disk that fit on no accelerator. */
bool heft__warn_buffers(heft__warnings *list, const heft_budget *budgets, size_t count,
                        const heft__map_facts *facts);
/* Devices on which nothing could be placed. */
bool heft__warn_empty(heft__warnings *list, const heft_budget *budgets, size_t count,
                      const heft__map_facts *facts);
/* Tied tensors are on different devices. */
bool heft__warn_ties(heft__warnings *list, const heft__tree *tree, const heft__map_of_devices *map);

/* ---- plans: heft_plan_new() after the tree was made -------------------------------------------- */
/* Takes the tree, on failure too. ties_wanted: by the config. */
heft_status heft__plan_of_tree(heft__tree *tree, bool ties_wanted, const heft_plan_options *options,
                               heft_plan **out, heft_error *err);

/* The devices of a model's parameters, [model->count], lent. INVALID_ARG if the plan was made for a
 * model with other parameters. */
heft_status heft__plan_devices(const heft_plan *plan, const heft_model *model,
                               const int32_t **devices, heft_error *err);

#endif
