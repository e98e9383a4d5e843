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
    /* Map parameters if dtype and layout allow it. On a network file system copy instead, as each
     * page fault would cost a round trip. */
    HEFT_LOAD_AUTO,
    /* Map also on a network file system. What cannot be mapped (casts, strided tensors) is copied,
     * and counted in the report. */
    HEFT_LOAD_MAP,
    HEFT_LOAD_COPY, /* copy everything to the heap */
    /* As MAP, but what cannot be mapped is converted once, into a read-only copy that all processes
     * of this user on this host share; docs/sharing.md. Where there can be no such copy, as for a
     * checkpoint that was opened from bytes or through a reader, it is private, with a warning. */
    HEFT_LOAD_SHARED
} heft_load_mode;

typedef struct heft_load_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    heft_load_mode mode;
    heft_dtype dtype; /* NONE: as the config says, else as the checkpoint ("auto") */
    /* Any missing, unexpected or mismatched key is a MISMATCH error (the report is filled
     * nevertheless), and an index that disagrees with its shards is a FORMAT error. */
    bool strict;
    bool ignore_mismatched_sizes;
    bool touch;    /* read every byte into memory */
    uint64_t seed; /* for parameters missing from the checkpoint */
    /* The device of each parameter; NULL: as `mode` says. The plan must be made for this source's
     * model (heft_model_skeleton(), heft_plan_new()). Parameters on HEFT_DEVICE_CPU get memory of
     * their own. A weight on HEFT_DEVICE_DISK stays in the checkpoint's own files, for a residency
     * to bring in (heft/run.h); it is mapped if the file stores it in exactly the form needed and
     * is not on a network. Any other device is UNSUPPORTED. */
    const heft_plan *plan;
    /* With a plan: a folder to be made Accelerate's offload folder for the weights on disk; NULL
     * for none. Its index refers to the checkpoint's safetensors files. Weights that cannot stay in
     * such a file (from a .bin, from bytes or a reader, cast, strided, or missing from the
     * checkpoint) are written to the folder and used from there. EXISTS if the folder already has an index and any of its contents
     * differ. */
    const char *offload_folder;
    /* How files are mapped, where they are mapped. With PRIVATE, mapped parameters are writable,
     * and the files do not change. Parameters that a device map leaves on disk, and those in the
     * shared copy of HEFT_LOAD_SHARED, stay read-only. */
    heft_map_mode map;
} heft_load_options;

typedef struct heft_mismatch {
    const char *name;
    uint32_t checkpoint_rank, model_rank;
    const uint64_t *checkpoint_shape, *model_shape;
} heft_mismatch;

typedef struct heft_name_group {
    const char *const *names;
    size_t count;
} heft_name_group;

/** The result of a load. Names are the model's, in its order; unexpected names are the
 * checkpoint's. */
typedef struct heft_load_report {
    const char *class_name, *model_type;
    heft_dtype dtype;
    const char *mode;     /* "map", "copy" or "shared" */
    const char *strategy; /* one line: the strategy chosen and why */
    uint64_t parameters;  /* elements of the weights */
    uint64_t bytes;
    const char *const *missing;
    size_t missing_count;
    const char *const *unexpected;
    size_t unexpected_count;
    const heft_mismatch *mismatched;
    size_t mismatched_count;
    const char *const *initialized; /* missing or mismatched, so initialized */
    size_t initialized_count;
    const heft_name_group *tied;
    size_t tied_count;
    const char *const *warnings;
    size_t warning_count;
    uint64_t mapped_bytes, copied_bytes, shared_bytes, initialized_bytes;
    uint64_t disk_bytes; /* stay in their files, unmapped */
    double seconds;
    /* in the offload folder: tensors, and .dat files among them */
    size_t offload_entries, offload_files;
    uint64_t offload_bytes; /* of the .dat files */
    bool offload_kept;      /* the folder already existed with the right contents */
} heft_load_report;

/** Free a report. NULL is allowed. */
HEFT_API void heft_load_report_free(heft_load_report *report);

/**
 * Instantiate a model from a source.
 *
 * The source's config and class determine the model. Keys are matched with parameters as in
 * Transformers: the base model's prefix is added or removed per key; LayerNorm.gamma and
 * LayerNorm.beta are renamed to weight and bias; tied parameters are found under either name.
 * Parameters missing from the checkpoint are initialized, and listed in the report.
 *
 * @param source   borrowed; may be closed while the model exists
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned model
 * @param report   filled with an owned report, also on MISMATCH; may be NULL
 * @param err      filled on failure; may be NULL
 *
 * Memory   if mapped: the metadata, and the tensors that must be cast or initialized. If copied:
 *          the model and one staging buffer.
 * Errors   NOT_FOUND for a source without weights or config; those of heft_config_read() and
 *          heft_model_new(); INVALID_ARG for a plan that was made for another model; MISMATCH for
 *          shapes that differ (unless ignore_mismatched_sizes is set) and as `strict` says;
 *          CANCELLED.
 * Source   docs/loading.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_load(const heft_source *source,
                                                     const heft_load_options *options,
                                                     heft_model **out, heft_load_report **report,
                                                     heft_error *err);

/**
 * Create the empty model that heft_model_load() would fill, for use in plans. If heft knows the
 * model type, a source without weights is sufficient; any other type needs the checkpoint.
 *
 * @param source   borrowed
 * @param options  borrowed; NULL for defaults; only dtype is used
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

/** The memory that heft_model_load() needs, predicted before loading. */
typedef struct heft_load_needs {
    size_t struct_size;      /* set by HEFT_SIZED */
    uint64_t resident_bytes; /* in the model's own memory, or in the shared copy */
    uint64_t mapped_bytes;   /* of mapped files: the kernel can reclaim these pages */
    uint64_t disk_bytes;     /* stay in their files, unmapped */
    uint64_t away_bytes;     /* on devices that this build does not support */
    uint64_t beside_bytes;   /* overhead of this memory beyond the tensors' bytes */
    uint64_t staging_bytes;  /* buffers and thread stacks during the load */
    /* Buffers and thread stacks while a residency brings in the weights on disk. Not part of the
     * peak, as that happens after the load. */
    uint64_t stream_staging_bytes;
    /* This process as it is now: the size of its address space, but at most 8 MiB more than it has
     * in memory. */
    uint64_t program_bytes;
    /* Sum of the resident, beside, staging and program bytes; with `touch`, also of the mapped
     * bytes. */
    uint64_t peak_bytes;
    /* Peak while a residency passes over the weights on disk, without the residency's budget, which
     * is added to it (heft/run.h). */
    uint64_t stream_peak_bytes;
    /* Bytes counted above that may turn out not to be needed. If the checkpoint has both names of a
     * tied parameter, the load compares the values and needs the bytes of the second name only if
     * they differ. */
    uint64_t doubt_bytes;
} heft_load_needs;

/**
 * Predict the memory that heft_model_load() needs with these options. Matches names and counts
 * bytes as the load would, but reads no tensor. Given only a config, assumes a checkpoint with
 * every tensor in the model's dtype and layout.
 *
 * @param source   borrowed
 * @param options  borrowed; NULL for defaults. If the plan uses devices that this build does not
 *                 support, their bytes are counted in away_bytes.
 * @param out      filled; initialized with HEFT_SIZED by the caller
 * @param err      filled on failure; may be NULL
 *
 * Memory   metadata only.
 * Errors   those of heft_model_skeleton(); UNSUPPORTED for a parameter that cannot be provided.
 * Source   docs/placing.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_needs(const heft_source *source,
                                                      const heft_load_options *options,
                                                      heft_load_needs *out, heft_error *err);

/**
 * Load a sharded checkpoint into an existing model, one shard after another.
 *
 * Works as load_sharded_checkpoint() in Transformers: compares the index with the model before it
 * reads any shard; adds no prefix and renames nothing; casts values to the parameter's dtype. Also
 * accepts a folder with one weight file.
 *
 * @param model   borrowed; absent or mapped parameters get memory of their own, owned ones are
 *                overwritten
 * @param folder  borrowed
 * @param strict  any missing or unexpected key is a MISMATCH error, before anything is written
 * @param report  filled with an owned report, also on MISMATCH; may be NULL
 * @param err     filled on failure; may be NULL
 *
 * Memory   the bytes of the absent parameters and one staging buffer.
 * Errors   those of heft_checkpoint_open(); MISMATCH for keys (strict) and shapes, before anything
 *          is written. After an IO error during the load, some parameters have new values and some
 *          old ones.
 * Source   docs/loading.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_load_sharded(heft_model *model, const char *folder,
                                                             bool strict, heft_load_report **report,
                                                             heft_error *err);

typedef struct heft_save_options {
    size_t struct_size;       /* set by HEFT_OPTIONS */
    uint64_t max_shard_bytes; /* 0: 50 GB */
    heft_format format;       /* AUTO: safetensors */
    const char *variant;      /* NULL for none */
    bool force;               /* write to a folder that already holds a checkpoint */
    /* true: the order in which Transformers saves a loaded model; false: the order of the state
     * dict. */
    bool natural_order;
    bool dry_run; /* plan only */
    /* Added to {"format": "pt"}; NULL for none. Only for safetensors. */
    const heft_metadata_pair *metadata;
    size_t metadata_count;
} heft_save_options;

/**
 * Save a model: config.json, the weights in one or more shards, and an index if there is more than
 * one shard.
 *
 * @param model    borrowed; absent weights are an error
 * @param dst      borrowed; a folder
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report; may be NULL
 * @param err      filled on failure; may be NULL
 *
 * Memory   metadata and one staging buffer.
 * Errors   EXISTS if dst holds a checkpoint and force is not set; NOT_FOUND, naming the parameter,
 *          if one is absent; IO; CANCELLED. On failure, dst is unchanged.
 * Source   docs/sharding.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_save(const heft_model *model, const char *dst,
                                                     const heft_save_options *options,
                                                     heft_write_report **report, heft_error *err);

/**
 * Save a model with random weights without ever holding it in memory: each tensor is generated as
 * it is written.
 *
 * @param model    borrowed; only its names, dtypes and shapes are used
 * @param dst      borrowed; a folder
 * @param init     borrowed; NULL for seed 0
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report; may be NULL
 * @param err      filled on failure; may be NULL
 *
 * Memory   one staging buffer, regardless of the model's size. The files are the same as after
 *          heft_model_init() and heft_model_save().
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
