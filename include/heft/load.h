/* heft/load.h - load a model, load into an existing model, save a model. */
#ifndef HEFT_LOAD_H
#define HEFT_LOAD_H

#include <heft/model.h>
#include <heft/place.h>
#include <heft/source.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum heft_load_mode {
    /* MAP, except on a network file system: there COPY, because each page fault would cost a round
     * trip. */
    HEFT_LOAD_AUTO,
    /* Map the parameters that the files store in exactly the dtype and layout needed; copy the
     * others (casts, strided tensors) to the heap. */
    HEFT_LOAD_MAP,
    HEFT_LOAD_COPY, /* copy everything to the heap */
    /* Like MAP, but convert the others only once, into a read-only copy that all processes of this
     * user on this host share: docs/sharing.md. If sharing is not possible, as for a checkpoint
     * that was opened from bytes or through a reader, the copy is private, with a warning. */
    HEFT_LOAD_SHARED
} heft_load_mode;

typedef struct heft_load_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    heft_load_mode mode;
    heft_dtype dtype; /* NONE: the config's, otherwise the checkpoint's */
    /* Fail with MISMATCH for any missing, unexpected or mismatched key (the report is filled
     * nevertheless), and with FORMAT for an index that disagrees with its shards. */
    bool strict;
    bool ignore_mismatched_sizes; /* initialize mismatched parameters, instead of MISMATCH */
    bool touch;                   /* bring every byte into memory now */
    uint64_t seed;                /* for initializing parameters missing from the checkpoint */
    /* Borrowed. The device of each parameter; NULL: the CPU, as `mode` says. The plan must be made
     * for this source's model (heft_model_skeleton(), heft_plan_new()). Parameters on
     * HEFT_DEVICE_CPU get memory of their own. A weight on HEFT_DEVICE_DISK stays in the
     * checkpoint's own files, for a residency to bring in (heft/run.h); it is mapped if the file
     * stores it in exactly the form needed and is not on a network file system. Any other device is
     * UNSUPPORTED. */
    const heft_plan *plan;
    /* With a plan: the folder to become Accelerate's offload folder of the weights on disk; NULL
     * for none. Its index refers to the checkpoint's safetensors files. Weights that cannot stay in
     * such a file (from a `.bin`, from bytes or a reader, cast, strided, or missing from the
     * checkpoint) are written to the folder and used from there. EXISTS if the folder already has
     * an index and differs from what would be written. */
    const char *offload_folder;
    /* How files, and the shared copy of HEFT_LOAD_SHARED, are mapped, and whether parameters whose
     * elements are not aligned in the file are mapped too, or copied (those that a device map leaves
     * on disk are left in their files, unmapped). With PRIVATE, mapped and shared parameters are
     * writable, and neither the files nor other processes change. Parameters that a device map leaves
     * on disk stay read-only. */
    heft_map_mode map;
    /* Load even if the tensors that need memory of their own exceed the available memory, including
     * swap: the kernel may then kill the process. */
    bool over_limit;
    /* Load even if no tensor of the checkpoint matches the model, so that the whole model is
     * initialized randomly; if false, that is a MISMATCH. */
    bool allow_missing;
    /* [dtype_count] Exceptions to `dtype`, with the names of heft_plan_options.dtypes: a dtype for
     * each sub-model ("text_config", "vision_model"), modules that stay float32 ("wo"). Only
     * floating-point parameters change; tied ones have the dtype of the one that is saved. */
    const heft_module_dtype *dtypes;
    size_t dtype_count;
    /* [tensor_dtype_count] For a model that is made by the checkpoint's own names (a config without a
     * model type that heft knows; INVALID_ARG with any other): the dtype of each tensor of the
     * checkpoint, in its order, instead of `dtype`; NONE: as stored. The count must be that of the
     * tensors. Tied tensors have that of the one that is saved. NULL: none. */
    const heft_dtype *tensor_dtypes;
    size_t tensor_dtype_count;
} heft_load_options;

/** A parameter whose shapes in checkpoint and model differ. */
typedef struct heft_mismatch {
    const char *name;
    uint32_t checkpoint_rank, model_rank;
    const uint64_t *checkpoint_shape, *model_shape;
} heft_mismatch;

/** The names of parameters that are tied to each other. */
typedef struct heft_name_group {
    const char *const *names;
    size_t count;
} heft_name_group;

/** The result of a load. Names are the model's, in its order, except that unexpected names are the
 * checkpoint's. Free it with heft_load_report_free(). */
typedef struct heft_load_report {
    const char *class_name, *model_type;
    heft_dtype dtype;
    const char *mode;           /* "map", "copy" or "shared" */
    const char *strategy;       /* one line: how tensors were brought into memory, and why */
    uint64_t parameters;        /* heft_model_elements() */
    uint64_t bytes;             /* heft_model_bytes() */
    const char *const *missing; /* parameters without a key in the checkpoint */
    size_t missing_count;
    const char *const *unexpected; /* keys without a parameter in the model */
    size_t unexpected_count;
    const heft_mismatch *mismatched;
    size_t mismatched_count;
    const char *const *initialized; /* because missing or mismatched */
    size_t initialized_count;
    const heft_name_group *tied;
    size_t tied_count;
    const char *const *warnings;
    size_t warning_count;
    /* bytes of parameters by backing; a cast counts as copied, at its size in memory */
    uint64_t mapped_bytes, copied_bytes, shared_bytes, initialized_bytes;
    uint64_t disk_bytes; /* left in the files, unmapped */
    double seconds;
    /* of the offload folder: entries in its index, and those with a .dat file */
    size_t offload_entries, offload_files;
    uint64_t offload_bytes; /* of the .dat files */
    bool offload_kept;      /* the folder already existed with the same contents */
    /* of copied_bytes and shared_bytes: copied only because the elements are not aligned in the file
     * (heft_map_mode), and how many parameters these are */
    uint64_t unaligned_bytes;
    size_t unaligned_count;
} heft_load_report;

/** Free a report. NULL is allowed. */
HEFT_API void heft_load_report_free(heft_load_report *report);

/**
 * Instantiate a model from a source.
 *
 * The source's config and class determine the model. Keys are matched with parameters as in
 * Transformers: the base model's prefix is added or removed for each key as needed; LayerNorm.gamma
 * and LayerNorm.beta are renamed to weight and bias; a tied parameter is found under either of its
 * names. Keys that match no parameter are tried again without the parts that wrappers add to names
 * ("module.", "_orig_mod.", "base_model.model."), with a warning. Parameters missing from the
 * checkpoint are initialized, and listed in the report; if weights of the base model are among
 * them, and not only those of a head, a warning says so.
 *
 * @param source   borrowed; may be closed while the model exists
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned model
 * @param report   filled with an owned report, also on MISMATCH; may be NULL
 * @param err      filled on failure; may be NULL
 *
 * Memory   if mapped: the metadata, and the tensors that must be cast or initialized. If copied:
 *          the model and one staging buffer. heft_model_needs() predicts it. Before anything is
 *          allocated, the tensors that need memory of their own are compared with what
 *          MemAvailable, the limits of containers (cgroups), both with swap, and RLIMIT_AS leave.
 * Errors   NOT_FOUND for a source without weights or config; those of heft_config_read(),
 *          heft_model_new() and heft_checkpoint_read(); INVALID_ARG for a plan that was made for
 *          another model; UNSUPPORTED for a device that this build does not have, a cast that
 *          heft_cast_known() rejects, and a stack of experts that is strided or deflated; EXISTS
 *          for the offload folder; MISMATCH for shapes that differ (unless ignore_mismatched_sizes
 *          is set), if no tensor of the checkpoint matches the model (unless allow_missing is set),
 *          and as described for `strict`; IO also for a file that was changed or replaced after
 *          it was opened, if tensors of it are copied or cast; LIMIT if these tensors exceed the
 *          available memory (unless over_limit is set), never for mapped tensors or a shared copy
 *          that exists already; CANCELLED.
 * Source   docs/loading.md.
 * Threads  reads on the context's threads.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_load(const heft_source *source,
                                                     const heft_load_options *options,
                                                     heft_model **out, heft_load_report **report,
                                                     heft_error *err);

/**
 * Create the empty model that heft_model_load() would fill, to make a plan for it. A source without
 * weights is sufficient if heft knows the model type; for any other type, the model is made from
 * the checkpoint.
 *
 * @param source   borrowed
 * @param options  borrowed; NULL for defaults; only dtype and dtypes are used
 * @param out      filled with an owned model
 * @param err      filled on failure; may be NULL
 *
 * Memory   metadata only.
 * Errors   those of heft_config_read() and heft_model_new().
 * Source   docs/placing.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_skeleton(const heft_source *source,
                                                         const heft_load_options *options,
                                                         heft_model **out, heft_error *err);

/**
 * Give parts of an empty model other dtypes.
 *
 * Only floating-point parameters and persistent buffers change; tied ones have the dtype of the one
 * that is saved.
 *
 * @param model   changed; unchanged on failure
 * @param dtypes  borrowed; [count] as in heft_load_options
 * @param err     filled on failure; may be NULL
 *
 * Memory   as many dtypes as the model has parameters, during the call.
 * Errors   INVALID_ARG for a NULL pointer, a dtype that holds no weights, or a model that has values;
 *          MISMATCH, with the name as the item, for a name that matches nothing.
 * Source   docs/loading.md [4].
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_retype(heft_model *model,
                                                       const heft_module_dtype *dtypes,
                                                       size_t count, heft_error *err);

/**
 * Give an empty model the dtypes that a load gives it: what its family keeps in float32 is float32.
 *
 * heft_model_new() makes a model of one dtype, as Transformers does for a model without a
 * checkpoint; heft_model_load(), heft_model_skeleton() and conversions keep float32 by themselves.
 *
 * @param model  changed; unchanged on failure
 * @param err    filled on failure; may be NULL
 *
 * Memory   as many dtypes as the model has parameters, during the call.
 * Errors   INVALID_ARG for a NULL pointer, or a model that has values.
 * Source   docs/loading.md [4].
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_keep_float32(heft_model *model, heft_error *err);

/** The memory that heft_model_load() needs, predicted before loading. */
typedef struct heft_load_needs {
    size_t struct_size;      /* set by HEFT_SIZED */
    uint64_t resident_bytes; /* tensors in the model's own memory, or in the shared copy */
    uint64_t mapped_bytes;   /* tensors in mapped files: the kernel can reclaim these pages */
    uint64_t disk_bytes;     /* tensors left in the files, unmapped */
    uint64_t away_bytes;     /* tensors on devices that this build does not support */
    uint64_t beside_bytes;   /* memory that resident tensors take beyond their own bytes */
    uint64_t staging_bytes;  /* buffers and thread stacks during the load */
    /* Buffers and thread stacks while a residency brings in the weights on disk. Not part of
     * peak_bytes, because they are needed only after the load. */
    uint64_t stream_staging_bytes;
    /* This process before the load: the size of its address space, or its resident memory plus 10
     * MiB, whichever is smaller. */
    uint64_t program_bytes;
    /* The sum of resident, beside, staging and program bytes, and with `touch` of the mapped bytes
     * too. */
    uint64_t peak_bytes;
    /* The peak while a residency brings in the weights on disk, not counting the residency's
     * budget: add that (heft/run.h). */
    uint64_t stream_peak_bytes;
    /* Bytes counted above that may not be needed: if the checkpoint has both names of a tied
     * parameter, the load compares the values, and needs memory for the second name only if they
     * differ. */
    uint64_t doubt_bytes;
    /* resident_bytes without doubt_bytes: no load takes less, except where a shared copy exists
     * already. The peak of a load is between least_bytes and peak_bytes. */
    uint64_t least_bytes;
    /* of resident_bytes: tensors that could be mapped, were their elements aligned in the file */
    uint64_t unaligned_bytes;
} heft_load_needs;

/**
 * Predict the memory that heft_model_load() needs with the same source and options. Matches names
 * and counts bytes as the load would, but reads no tensor. For a source without weights, assumes a
 * checkpoint with every tensor in the model's dtype and layout.
 *
 * @param source   borrowed
 * @param options  borrowed; NULL for defaults. If the plan uses devices that this build does not
 *                 support, their bytes are counted in away_bytes.
 * @param out      filled; initialized with HEFT_SIZED by the caller
 * @param err      filled on failure; may be NULL
 *
 * Memory   metadata only.
 * Errors   those of heft_model_skeleton(); UNSUPPORTED for a tensor that heft cannot convert, as in
 *          heft_model_load().
 * Source   docs/placing.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_needs(const heft_source *source,
                                                      const heft_load_options *options,
                                                      heft_load_needs *out, heft_error *err);

typedef struct heft_load_sharded_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    bool strict;        /* MISMATCH for any missing or unexpected key, before the model changes */
    bool over_limit;    /* as in heft_load_options */
    /* How to open the checkpoint: variant, subfolder, format; NULL: defaults. */
    const heft_checkpoint_options *checkpoint;
    /* The dtype that floating-point parameters get with their new values; NONE: values are cast to
     * the dtype that each parameter has. Parameters that get no value stay as they are. */
    heft_dtype dtype;
    bool allow_missing;              /* as in heft_load_options: the model then stays as it is */
    const heft_module_dtype *dtypes; /* [dtype_count] as in heft_load_options */
    size_t dtype_count;
} heft_load_sharded_options;

/**
 * Load a sharded checkpoint into an existing model, one shard after another.
 *
 * Works as load_sharded_checkpoint() in Transformers: compares the names in the index with the
 * model before it reads any tensor; adds no prefix and renames nothing; casts values to the
 * parameter's dtype. Also accepts a folder with a single weight file. If the checkpoint has
 * different values for two names that the model ties, each gets its own, as in heft_model_load().
 *
 * @param model    borrowed; absent, mapped or shared parameters get memory of their own, owned ones
 *                 are overwritten
 * @param folder   borrowed
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report, also on MISMATCH; may be NULL
 * @param err      filled on failure; may be NULL
 *
 * Memory   the bytes of the parameters that get memory, and one staging buffer.
 * Errors   those of heft_checkpoint_open(); MISMATCH for keys (strict) and for shapes, if no tensor
 *          fits the model (unless allow_missing is set), and for a name in `dtypes` that matches
 *          nothing; UNSUPPORTED for a part of a quantized weight that would be cast, and LIMIT if
 *          the parameters that get memory need more than is available and over_limit is not set,
 *          before the model changes; UNSUPPORTED if a weight is stored quantized and is plain in the
 *          model (one made by heft_model_skeleton() from the checkpoint has the same tensors); IO,
 *          FORMAT and CANCELLED while reading, after which some parameters have
 *          new values and some old ones.
 * Source   docs/loading.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_load_sharded(
    heft_model *model, const char *folder, const heft_load_sharded_options *options,
    heft_load_report **report, heft_error *err);

typedef struct heft_save_options {
    size_t struct_size;       /* set by HEFT_OPTIONS */
    uint64_t max_shard_bytes; /* maximum bytes of tensors in a shard; 0: 50 GB */
    heft_format format;       /* SAFETENSORS or TORCH; AUTO: safetensors */
    const char *variant;      /* part of the file names; NULL for none */
    bool force;               /* replace a checkpoint that dst already holds */
    /* true: the natural order of names, in which Transformers saves a loaded model; false: the
     * order of the state dict. */
    bool natural_order;
    bool dry_run; /* report what would be written, or why it cannot be; write nothing */
    /* [metadata_count] Added to {"format": "pt"}; NULL for none. Only for safetensors. */
    const heft_metadata_pair *metadata;
    size_t metadata_count;
    bool wait;            /* if another process writes to dst, wait until it is done */
    bool keep_side_files; /* as in heft_convert_options */
} heft_save_options;

/**
 * Save a model: config.json, the weights in one or more shards, and an index if there is more than
 * one shard. A model that was loaded is saved with the generation_config.json of its folder; if its
 * weights stayed quantized, also with the settings files beside them (quanto_qmap.json,
 * quantize_config.json, quant_config.json, hf_quant_config.json) and the metadata of its files. These
 * are as they were when the model was loaded.
 *
 * @param model    borrowed; absent weights are an error, those on disk are read from their files
 * @param dst      borrowed; a folder
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report; may be NULL
 * @param err      filled on failure; may be NULL
 *
 * Memory   metadata and one staging buffer.
 * Errors   EXISTS if dst holds a checkpoint and force is not set, or side files of another checkpoint
 *          (docs/transactions.md [3]) and keep_side_files is not set; NOT_FOUND if a parameter
 *          is absent (item is its name); INVALID_ARG for any format but safetensors and `.bin`, and
 *          for a dtype or metadata that the format cannot hold; IO; CANCELLED. On failure, dst is
 *          unchanged.
 * Source   docs/sharding.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_save(const heft_model *model, const char *dst,
                                                     const heft_save_options *options,
                                                     heft_write_report **report, heft_error *err);

/**
 * Save a model with random weights without holding it in memory: each tensor is generated while it
 * is written. The files are the same as after heft_model_init() and heft_model_save().
 *
 * @param model    borrowed; only its names, dtypes and shapes are used
 * @param dst      borrowed; a folder
 * @param init     borrowed; NULL for seed 0
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report; may be NULL
 * @param err      filled on failure; may be NULL
 *
 * Memory   one staging buffer, regardless of the model's size.
 * Errors   as for heft_model_save(); UNSUPPORTED as for heft_model_init().
 * Source   docs/models.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_save_random(
    const heft_model *model, const char *dst, const heft_init_options *init,
    const heft_save_options *options, heft_write_report **report, heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
