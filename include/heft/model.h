/* heft/model.h - config.json, empty models, random initialization. */
#ifndef HEFT_MODEL_H
#define HEFT_MODEL_H

#include <heft/checkpoint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The content of a config.json, with the key names of Transformers 4.x or 5.x. */
typedef struct heft_config heft_config;

/**
 * Read a config.json.
 *
 * @param ctx   borrowed; kept alive by the config
 * @param path  borrowed; the file, or a folder that contains a config.json
 * @param out   filled with an owned config
 * @param err   filled on failure; may be NULL
 *
 * Memory   a small multiple of the file's size.
 * Errors   NOT_FOUND; FORMAT with the offset for text that is not a JSON object or has a duplicate
 *          key; LIMIT; IO; NOMEM.
 * Source   docs/config.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_config_read(heft_ctx *ctx, const char *path,
                                                      heft_config **out, heft_error *err);
/**
 * Create a config from the text of a config.json.
 *
 * @param ctx     borrowed; kept alive by the config
 * @param text    borrowed; UTF-8
 * @param length  bytes of text
 * @param out     filled with an owned config
 * @param err     filled on failure; may be NULL. Its path is "config.json".
 *
 * Memory   a small multiple of the text's length.
 * Errors   FORMAT with the offset for text that is not a JSON object or has a duplicate key; LIMIT;
 *          NOMEM.
 * Source   docs/config.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_config_new(heft_ctx *ctx, const char *text, size_t length,
                                                     heft_config **out, heft_error *err);
/** Free a config. NULL is allowed. */
HEFT_API void heft_config_free(heft_config *config);
/** Return `model_type`, such as "bert", or "" if the config has none; lent. */
HEFT_API const char *heft_config_model_type(const heft_config *config);
/** Return the first entry of `architectures`, or NULL if there is none; lent. */
HEFT_API const char *heft_config_architecture(const heft_config *config);
/** Return the dtype under the key `dtype` or `torch_dtype`, or HEFT_DTYPE_NONE if there is none. */
HEFT_API heft_dtype heft_config_dtype(const heft_config *config);

/** A model: its modules, and its parameters with their names, dtypes, shapes and values. Many
 * threads may read a model at once, or one thread may change it. */
typedef struct heft_model heft_model;

typedef enum heft_parameter_state {
    HEFT_PARAMETER_ABSENT, /* nowhere: name, dtype and shape only, as on PyTorch's "meta" device */
    /* in a mapping of its file, or in read-only memory of the caller's: of a checkpoint opened from
     * bytes or through a reader, or passed to heft_model_set(); not on the heap */
    HEFT_PARAMETER_MAPPED,
    HEFT_PARAMETER_OWNED,  /* on the heap, or in writable memory passed to heft_model_set() */
    HEFT_PARAMETER_SHARED, /* in the read-only copy that the processes of this host share */
    HEFT_PARAMETER_DISK    /* in its file, not mapped: a residency brings it in (heft/run.h) */
} heft_parameter_state;

typedef enum heft_parameter_kind {
    HEFT_PARAMETER_WEIGHT,
    HEFT_PARAMETER_BUFFER,          /* persistent: part of the state dict */
    HEFT_PARAMETER_BUFFER_TRANSIENT /* not persistent: computed from the config, never saved */
} heft_parameter_kind;

/** One parameter or buffer; pointers are lent by the model. */
typedef struct heft_parameter {
    const char *name;
    heft_dtype dtype;
    uint32_t rank;
    const uint64_t *shape; /* [rank], PyTorch's order */
    uint64_t size_bytes;
    heft_parameter_kind kind;
    heft_parameter_state state;
    /* If tied: the number of the parameter whose storage it shares and under whose name both are
     * saved. Otherwise its own number. */
    size_t tied_to;
    size_t module;    /* number of the module that it belongs to */
    const char *role; /* its name relative to that module: "weight" */
} heft_parameter;

typedef enum heft_module_kind {
    HEFT_MODULE_CONTAINER, /* a list or dictionary of modules, without computation of its own */
    HEFT_MODULE_EMBEDDING, /* one lookup table, or a module with several */
    HEFT_MODULE_LINEAR,    /* one matrix, anywhere in the model: "q_proj", "lm_head" */
    HEFT_MODULE_NORM,
    HEFT_MODULE_CONVOLUTION,
    HEFT_MODULE_ATTENTION,
    HEFT_MODULE_MLP, /* dense, or a router with its experts */
    HEFT_MODULE_ROUTER,
    HEFT_MODULE_EXPERTS, /* all experts of a layer */
    HEFT_MODULE_EXPERT,
    HEFT_MODULE_ROTARY, /* frequencies of rotary position embeddings */
    HEFT_MODULE_LAYER,  /* a layer of an encoder or decoder */
    /* the whole model, the base model below a head, or a whole encoder or decoder */
    HEFT_MODULE_MODEL,
    HEFT_MODULE_HEAD, /* a head of several modules */
    HEFT_MODULE_OTHER
} heft_module_kind;

/**
 * One module. Modules are numbered in pre-order: module 0 is the root, and the subtree of module i
 * is [i, end). The first child of i is i + 1 if that is less than `end`; the sibling after child c
 * is the `end` of c if that is less than the parent's `end`. Only modules that hold parameters or
 * buffers, and their ancestors, are listed. Pointers are lent by the model; later versions may add
 * members at the end of the structure.
 */
typedef struct heft_module {
    const char *path; /* "model.layers.0.self_attn"; "" for the root */
    const char *name; /* last component of the path: "self_attn" */
    /* The class in Transformers: "LlamaAttention", "Linear", "ModuleList"; "" if there is none or
     * it is unknown. */
    const char *class_name;
    heft_module_kind kind;
    bool no_split; /* must stay on one device */
    /* Its parameters are brought into memory and dropped together. Units may be nested: an expert's
     * parameters do not belong to its layer's unit. */
    bool unit;
    size_t parent; /* SIZE_MAX for the root */
    size_t end;    /* the first module after its subtree */
    /* [parameter_count] Numbers of its own parameters, not those of its children: weights first,
     * then buffers. */
    const size_t *parameters;
    size_t parameter_count;
    uint64_t bytes; /* size of the subtree when saved; tied parameters count once */
} heft_module;

/**
 * Create an empty model: names, shapes, ties and buffers, but no weights.
 *
 * @param ctx         borrowed; kept alive by the model
 * @param config      borrowed; copied
 * @param class_name  borrowed; "BertForMaskedLM", "AutoModel", ...; NULL: the first entry of
 *                    `architectures`, else the base model
 * @param dtype       dtype of the floating-point parameters; NONE: float32
 * @param out         filled with an owned model
 * @param err         filled on failure; may be NULL
 *
 * Memory   metadata only: less than 1 MB for BERT-base.
 * Errors   UNSUPPORTED for a model_type or class that heft does not know (the message lists the
 *          known ones); FORMAT for an invalid value in the config, and LIMIT for one that is too
 *          large (docs/config.md), before it determines any allocation (item is the key); NOMEM.
 * Source   docs/models.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_new(heft_ctx *ctx, const heft_config *config,
                                                    const char *class_name, heft_dtype dtype,
                                                    heft_model **out, heft_error *err);

/** One parameter of heft_model_new_from(). Never grows, because callers make arrays of it. */
typedef struct heft_parameter_spec {
    const char *name; /* "layers.0.mlp.up.weight": the parts before dots become modules */
    heft_dtype dtype;
    uint32_t rank;         /* 0: one element */
    const uint64_t *shape; /* [rank], PyTorch's order; may be NULL with rank 0 */
} heft_parameter_spec;

/**
 * Create an empty model from a list of names, dtypes and shapes, for an architecture that heft does
 * not know.
 *
 * Parameter i of the model is specs[i]; all are weights, and none are tied. Modules are created from
 * the names, and layers are found by structure, as for a checkpoint of unknown type.
 * heft_model_set(), heft_model_load_sharded(), heft_plan_new() and heft_model_save() accept the
 * result like any other model. heft_model_init() and heft_model_save_random() fail with UNSUPPORTED,
 * because there are no rules for its initial values.
 *
 * @param ctx     borrowed; kept alive by the model
 * @param specs   borrowed; [count], names and shapes are copied; NULL if count is 0
 * @param count   number of parameters
 * @param config  borrowed; copied. The model takes its model_type, class (the first entry of
 *                `architectures`) and dtype from it, and heft_model_save() writes it as config.json.
 *                It need not name a type that heft knows. NULL: a config with the model_type
 *                "unknown"
 * @param out     filled with an owned model
 * @param err     filled on failure; may be NULL
 *
 * Without `architectures`, the class is "PreTrainedModel". heft_model_dtype() returns the config's
 * dtype, otherwise that of the first parameter with a floating-point dtype of 16 bits or more,
 * otherwise float32.
 *
 * Memory   metadata only.
 * Errors   INVALID_ARG, with the name as the item, for a name that is not valid UTF-8 or occurs
 *          twice, an invalid dtype, a rank over heft_limits.rank, a shape that is NULL or has no
 *          size in bytes, and for more than 2^63 / 16 bytes in total; INVALID_ARG, with the number,
 *          for a name that is NULL or empty; INVALID_ARG for a config whose dtype no model can have;
 *          LIMIT for more parameters than heft_limits.tensors, names of more than 65536 bytes, and
 *          too many modules; NOMEM.
 * Source   docs/models.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_new_from(heft_ctx *ctx,
                                                         const heft_parameter_spec *specs,
                                                         size_t count, const heft_config *config,
                                                         heft_model **out, heft_error *err);
/** Free a model. Tensors created from it stay valid. NULL is allowed. */
HEFT_API void heft_model_free(heft_model *model);

/** Return the class, such as "BertForMaskedLM"; lent. */
HEFT_API const char *heft_model_class(const heft_model *model);
/** Return the config's model_type; lent. */
HEFT_API const char *heft_model_type(const heft_model *model);
/** Return the dtype of the floating-point parameters. */
HEFT_API heft_dtype heft_model_dtype(const heft_model *model);
/** Return the number of parameters and buffers. They are numbered in the order of the state dict;
 * transient buffers come last. Those of heft_model_new_from() are in the order of its list. */
HEFT_API size_t heft_model_count(const heft_model *model);
/** Return parameter i, or NULL past the end; lent, valid until the model changes. */
HEFT_API const heft_parameter *heft_model_parameter(const heft_model *model, size_t i);
/** Find a parameter by name. Returns its number, or SIZE_MAX if there is none. */
HEFT_API size_t heft_model_find(const heft_model *model, const char *name);
/** Return the number of modules; at least 1. */
HEFT_API size_t heft_model_module_count(const heft_model *model);
/** Return module i, or NULL past the end; lent, valid until the model changes. Module 0 is the
 * root. */
HEFT_API const heft_module *heft_model_module(const heft_model *model, size_t i);
/**
 * Find a module by its path relative to another module.
 *
 * @param model     borrowed
 * @param parent    number of the module below which to search; with 0, `relative` is the whole path
 * @param relative  borrowed; such as "self_attn.q_proj"; "" is the parent itself
 * @return          its number, or SIZE_MAX if there is none
 *
 * This compares names at each level: call it while setting up, and keep the number.
 */
HEFT_API size_t heft_model_find_module(const heft_model *model, size_t parent,
                                       const char *relative);
/** Find a module's own parameter or buffer by its role, such as "weight". Returns its number, or
 * SIZE_MAX if there is none. */
HEFT_API size_t heft_model_module_parameter(const heft_model *model, size_t module,
                                            const char *role);
/** Return the name of a module kind, such as "attention"; static; NULL for an invalid kind. */
HEFT_API const char *heft_module_kind_name(heft_module_kind kind);
/** Return the number of elements of all weights. Tied weights count once; buffers do not count. */
HEFT_API uint64_t heft_model_elements(const heft_model *model);
/** Return the number of tensor bytes that a save would write: weights and persistent buffers, tied
 * ones once. */
HEFT_API uint64_t heft_model_bytes(const heft_model *model);
/**
 * Sort the numbers of a model's parameters by the natural order of their names: the parts between
 * dots are compared one by one, and integers by value. Transformers saves a loaded model in this
 * order.
 *
 * @param model  borrowed
 * @param order  filled with heft_model_count() numbers; transient buffers come last
 * @param err    filled on failure; may be NULL
 *
 * Memory   16 bytes of scratch memory for each parameter.
 * Errors   INVALID_ARG, NOMEM.
 * Source   docs/sharding.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_natural_order(const heft_model *model,
                                                              size_t *order, heft_error *err);
/** Return the name of class i of the modules that must stay on one device, or NULL past the end;
 * lent. For a model of unknown type, returns paths of such modules, with '*' for a number. */
HEFT_API const char *heft_model_no_split(const heft_model *model, size_t i);

/**
 * Create a tensor for a parameter.
 *
 * @param model  borrowed
 * @param i      number of the parameter
 * @param out    filled with an owned tensor, which may outlive the model
 * @param err    filled on failure; may be NULL
 *
 * Memory   no heap for the bytes: the tensor shares the model's storage. Only the tensor of an
 *          owned or privately mapped parameter has HEFT_TENSOR_WRITABLE; a write to any other
 *          raises SIGSEGV.
 * Errors   INVALID_ARG if there is no such parameter; NOT_FOUND if it is absent or on disk; NOMEM.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_tensor(const heft_model *model, size_t i,
                                                       heft_tensor **out, heft_error *err);

/**
 * Set the value of a parameter or buffer to a tensor, without copying it. heft_tensor_new() makes a
 * tensor on any storage.
 *
 * All names that are tied to this one get the new value. The model drops its reference to the old
 * value; tensors created from it stay valid. Other parameters do not change: in an empty model they
 * stay absent. heft_model_init() and heft_model_load_sharded() treat the new value like any other.
 *
 * The state becomes OWNED for writable memory, MAPPED for a file mapping or for memory that must not
 * be written, and SHARED for a shared copy. heft_model_load_sharded() overwrites OWNED memory,
 * including the caller's, and replaces memory in the other states with new memory. A residency that
 * is created afterward keeps the new value in memory and never reads it from a file.
 *
 * @param model   borrowed; must have no residency
 * @param name    borrowed
 * @param tensor  borrowed; the model takes a reference of its own to the storage. The tensor must be
 *                contiguous (row by row) and in CPU memory.
 * @param err     filled on failure, with the name as the item; may be NULL
 *
 * Memory   no heap.
 * Errors   NOT_FOUND for a name that the model does not have; MISMATCH, with both, if the dtype or
 *          shape differs from the parameter's; UNSUPPORTED for a tensor on another device;
 *          INVALID_ARG for a strided tensor. On failure, the model is unchanged.
 * Source   docs/models.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_set(heft_model *model, const char *name,
                                                    const heft_tensor *tensor, heft_error *err);

typedef struct heft_init_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    uint64_t seed;
} heft_init_options;

/**
 * Allocate every absent parameter and initialize it as its architecture does: with random values or
 * constants.
 *
 * Each value is a function of seed, parameter name and element number; threads and order do not
 * affect it.
 *
 * @param model    borrowed
 * @param options  borrowed; NULL for seed 0
 * @param err      filled on failure; may be NULL
 *
 * Memory   the bytes of the absent parameters.
 * Errors   UNSUPPORTED for a model of a type that heft does not know; NOMEM; CANCELLED. On failure,
 *          the parameters stay absent.
 * Threads  works on all of the context's threads.
 * Source   docs/models.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_init(heft_model *model,
                                                     const heft_init_options *options,
                                                     heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
