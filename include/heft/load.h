/* heft/load.h - where names meet bytes: load a model, load into a model, save a model. */
#ifndef HEFT_LOAD_H
#define HEFT_LOAD_H

#include <heft/model.h>
#include <heft/place.h>
#include <heft/source.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum heft_load_mode {
    HEFT_LOAD_AUTO,  /* mapped where dtype and layout allow it, but copied from a network's file
                       system, where every page would be a round trip */
    HEFT_LOAD_MAP,   /* the same, asked for: what cannot be mapped (casts, strides) is copied and
                       counted in the report */
    HEFT_LOAD_COPY,  /* everything on the heap */
    HEFT_LOAD_SHARED /* as MAP, but what cannot be mapped is made once for all processes of this
                        user on this host, read only; docs/sharing.md */
} heft_load_mode;

typedef struct heft_load_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    heft_load_mode mode;
    heft_dtype dtype; /* NONE: as the config, else the checkpoint says ("auto") */
    bool
        strict; /* any missing, unexpected or mismatched key is MISMATCH (the report is filled all the
                    same), and so an index that disagrees with its shards is FORMAT */
    bool ignore_mismatched_sizes;
    bool touch;    /* bring every byte in */
    uint64_t seed; /* of what the checkpoint lacks */
    /* Where each parameter is to live; NULL: as `mode` says. Made for this source's model
     * (heft_model_skeleton(), heft_plan_new()). What is on HEFT_DEVICE_CPU gets memory of its own. A
     * weight on HEFT_DEVICE_DISK stays in the checkpoint's own files (mapped if its bytes there are
     * the ones that are needed and the file is not on a network), for a residency to bring in
     * (heft/run.h). Another device is UNSUPPORTED. */
    const heft_plan *plan;
    /* With a plan: a folder that becomes Accelerate's offload folder of what is on the disk; NULL for
     * none. Entries point into the checkpoint's safetensors files; what cannot stay in such a file
     * (.bin, casts, strides, tensors that the checkpoint lacks) is written, and lives there. A folder
     * that has an index already is EXISTS if anything in it differs. */
    const char *offload_folder;
    /* How files are mapped where they are. PRIVATE: mapped parameters can be written to, and the
     * files stay as they are. What a device map leaves on the disk, and what is in the copy of
     * HEFT_LOAD_SHARED, stays read only. */
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

/** How loading went. Names are the model's, in its order, or the checkpoint's for unexpected ones.
 */
typedef struct heft_load_report {
    const char *class_name, *model_type;
    heft_dtype dtype;
    const char *mode;     /* "map", "copy" or "shared" */
    const char *strategy; /* one line: what was picked and why */
    uint64_t parameters;  /* elements of the weights */
    uint64_t bytes;
    const char *const *missing;
    size_t missing_count;
    const char *const *unexpected;
    size_t unexpected_count;
    const heft_mismatch *mismatched;
    size_t mismatched_count;
    const char *const *initialized; /* missing or mismatched, and given fresh values */
    size_t initialized_count;
    const heft_name_group *tied;
    size_t tied_count;
    const char *const *warnings;
    size_t warning_count;
    uint64_t mapped_bytes, copied_bytes, shared_bytes, initialized_bytes;
    uint64_t disk_bytes; /* stay in their files, unmapped */
    double seconds;
    size_t offload_entries, offload_files; /* of the offload folder: names, and those with a .dat */
    uint64_t offload_bytes;                /* of these files */
    bool offload_kept;                     /* it was there, and is what would have been written */
} heft_load_report;

/** Free a report. NULL is allowed. */
HEFT_API void heft_load_report_free(heft_load_report *report);

/**
 * Instantiate a model from a source.
 *
 * The source's config and class say what the model is. Keys meet parameters as Transformers does it:
 * per key, the base model's prefix is added or stripped; LayerNorm.gamma and beta are weight and
 * bias; tied parameters are found under either name. What the checkpoint lacks is initialized, and
 * listed.
 *
 * @param source   borrowed; may be closed while the model lives
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned model
 * @param report   filled with an owned report; may be NULL. With MISMATCH it is filled too.
 * @param err      filled on failure; may be NULL
 *
 * Memory   mapped: metadata only, and what must be cast or initialized. copied: the model and one
 *          staging buffer.
 * Errors   NOT_FOUND for a source without weights or config; those of heft_config_read() and
 *          heft_model_new(); INVALID_ARG for a plan that was made for another model; MISMATCH
 *          for shapes that differ (unless ignored) and for strict; CANCELLED.
 * Source   docs/loading.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_load(const heft_source *source,
                                                     const heft_load_options *options,
                                                     heft_model **out, heft_load_report **report,
                                                     heft_error *err);

/**
 * Make the empty model that heft_model_load() would fill: for plans. A source without weights is
 * enough where heft knows the model type; another type needs the checkpoint.
 *
 * @param source   borrowed
 * @param options  borrowed; NULL for defaults: dtype is looked at
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

/** What heft_model_load() will take, told before it begins. */
typedef struct heft_load_needs {
    size_t struct_size;      /* set by HEFT_SIZED */
    uint64_t resident_bytes; /* memory of the model's own, or in the shared copy */
    uint64_t mapped_bytes;   /* of files: the kernel can take their pages back */
    uint64_t disk_bytes;     /* stay in their files, unmapped */
    uint64_t away_bytes;     /* on devices that this build does not have */
    uint64_t beside_bytes;   /* that this memory takes beside the tensors' bytes */
    uint64_t staging_bytes;  /* buffers and stacks of threads, while loading */
    /* The same while a residency brings in what is on the disk; not in the peak, as it comes later. */
    uint64_t stream_staging_bytes;
    /* This process as it is now: its address space, but not more than 8 MiB beyond what is in memory. */
    uint64_t program_bytes;
    uint64_t
        peak_bytes; /* resident, beside, staging and program; with `touch` the mapped bytes too */
    /* Of a pass over what is on the disk, by a residency, whose budget comes on top (heft/run.h). */
    uint64_t stream_peak_bytes;
    /* Of tied parameters with both names in the checkpoint, those of the second name: the load compares
     * the values, and needs these bytes only if they differ. Counted above as if they did. */
    uint64_t doubt_bytes;
} heft_load_needs;

/**
 * Predict what heft_model_load() will take with these options. Names are matched and everything is
 * counted as it would be, but no tensor is read. Given only a config, assumes a checkpoint with every
 * tensor in the model's dtype and layout.
 *
 * @param source   borrowed
 * @param options  borrowed; NULL for defaults. With a plan, devices that this build does not have are
 *                 counted as away.
 * @param out      filled; made with HEFT_SIZED
 * @param err      filled on failure; may be NULL
 *
 * Memory   metadata only.
 * Errors   those of heft_model_skeleton(); UNSUPPORTED for a parameter that cannot be had.
 * Source   docs/placing.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_needs(const heft_source *source,
                                                      const heft_load_options *options,
                                                      heft_load_needs *out, heft_error *err);

/**
 * Load a sharded checkpoint into a model that exists, one shard after another.
 *
 * As the reference's load_sharded_checkpoint: the index is compared with the model before any shard
 * is read; no prefix, no renaming; values are cast to the parameter's dtype. A folder with one
 * weight file works too.
 *
 * @param model   borrowed; parameters that are absent or mapped get memory, owned ones are written
 *                over
 * @param folder  borrowed
 * @param strict  any missing or unexpected key is MISMATCH before anything is written
 * @param report  filled with an owned report; may be NULL. With MISMATCH it is filled too.
 * @param err     filled on failure; may be NULL
 *
 * Memory   the absent parameters' bytes and one staging buffer.
 * Errors   those of heft_checkpoint_open(); MISMATCH for keys (strict) and shapes, before anything
 *          is written. After an IO error in the middle some parameters hold the new values and
 *          some the old.
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
    bool force;               /* write into a folder that holds a checkpoint already */
    bool natural_order; /* as the reference saves a model that it has loaded; false: as the state
                           dict has it */
    bool dry_run;       /* plan only */
    const heft_metadata_pair *metadata; /* set on top of {"format": "pt"}; NULL for none. Only for
                                           safetensors */
    size_t metadata_count;
} heft_save_options;

/**
 * Save a model: config.json, weights in shards, and an index if there is more than one.
 *
 * @param model    borrowed; absent weights are an error
 * @param dst      borrowed; a folder
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report; may be NULL
 * @param err      filled on failure; may be NULL
 *
 * Memory   metadata and one staging buffer.
 * Errors   EXISTS if dst holds a checkpoint and force is not set; NOT_FOUND naming an absent
 *          parameter; IO; CANCELLED. dst stays as it was then.
 * Source   docs/sharding.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_save(const heft_model *model, const char *dst,
                                                     const heft_save_options *options,
                                                     heft_write_report **report, heft_error *err);

/**
 * Create a model with random weights and save it without ever holding it: each tensor is made as it
 * is written.
 *
 * @param model    borrowed; only its names and shapes are looked at
 * @param dst      borrowed; a folder
 * @param init     borrowed; NULL for seed 0
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report; may be NULL
 * @param err      filled on failure; may be NULL
 *
 * Memory   one staging buffer, whatever the model's size. The files are the same as after
 *          heft_model_init() and heft_model_save().
 * Errors   as heft_model_save; UNSUPPORTED as heft_model_init.
 * Source   docs/models.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_model_save_random(
    const heft_model *model, const char *dst, const heft_init_options *init,
    const heft_save_options *options, heft_write_report **report, heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
