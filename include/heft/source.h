/* heft/source.h - a source: an opened checkpoint, its config.json and the class to instantiate.
 * Loads, plans, conversions and checks take a source, so that each file is opened once. */
#ifndef HEFT_SOURCE_H
#define HEFT_SOURCE_H

#include <heft/checkpoint.h>
#include <heft/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/** An opened checkpoint, its config and the class to instantiate. Many threads may read a source at
 * once. */
typedef struct heft_source heft_source;

typedef enum heft_source_kind {
    HEFT_SOURCE_CONFIG,  /* a config.json without weights */
    HEFT_SOURCE_FILE,    /* one weight file, also one in memory or behind a reader */
    HEFT_SOURCE_SHARDED, /* an index and its shards */
    HEFT_SOURCE_OFFLOAD  /* Accelerate's offload folder */
} heft_source_kind;

typedef struct heft_source_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    /* "BertForMaskedLM", "AutoModel", ...; NULL: the first entry of `architectures` in the
     * config */
    const char *class_name;
    /* How to open the checkpoint; NULL: defaults. `trust_shards` is ignored here: each operation
     * decides. */
    const heft_checkpoint_options *checkpoint;
    /* Also open a checkpoint with missing or malformed files. heft_source_verify() then reports
     * what is wrong; all other functions treat the source as one without weights. */
    bool damaged;
} heft_source_options;

/**
 * Open a source by path: a folder, a weight file, an index file, a config.json, or the name of a
 * model in the hub cache (`org/name[@revision]`). Reads metadata only, and each file once.
 *
 * Reads the config.json beside the weights if there is one. For a folder without weights, or a
 * config.json, the source has no checkpoint.
 *
 * @param ctx      borrowed; kept alive by the source
 * @param path     borrowed
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned source; free it with heft_source_close()
 * @param err      filled on failure; may be NULL
 *
 * Memory   the names and shapes of all tensors, the config, and one file descriptor per file.
 * Errors   those of heft_checkpoint_open(). An index that disagrees with its shards is not an error
 *          here: see heft_source_check_index(). With `class_name`, also those of
 *          heft_config_read(), and UNSUPPORTED for a class that heft does not know. Without
 *          `class_name`, a config.json that is missing, malformed or of an unknown class causes an
 *          error only in the functions that need it.
 * Source   docs/loading.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_open(heft_ctx *ctx, const char *path,
                                                      const heft_source_options *options,
                                                      heft_source **out, heft_error *err);
/**
 * Create a source from an open checkpoint and a config, for example from objects in memory.
 *
 * @param checkpoint  borrowed; kept open by the source; NULL for none
 * @param config      borrowed; copied; NULL for none
 * @param options     borrowed; NULL for defaults; only class_name is used
 * @param out         filled with an owned source
 * @param err         filled on failure; may be NULL
 *
 * Memory   a small multiple of the config's size.
 * Errors   INVALID_ARG if both checkpoint and config are NULL; UNSUPPORTED as for
 *          heft_source_open(); NOMEM.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_new(heft_checkpoint *checkpoint,
                                                     const heft_config *config,
                                                     const heft_source_options *options,
                                                     heft_source **out, heft_error *err);
/** Close a source. Models and tensors created from it stay valid. NULL is allowed. */
HEFT_API void heft_source_close(heft_source *source);

/** Return the kind of source that was found. */
HEFT_API heft_source_kind heft_source_what(const heft_source *source);
/** Return the path from which the source was opened, or "" if it was created from objects; lent. */
HEFT_API const char *heft_source_path(const heft_source *source);
/** Return the checkpoint, or NULL if there are no weights; lent. */
HEFT_API const heft_checkpoint *heft_source_checkpoint(const heft_source *source);
/** Return the config, or NULL if there is none; lent. */
HEFT_API const heft_config *heft_source_config(const heft_source *source);
/** Return the class to instantiate; lent. NULL without a config, or if heft knows the model type
 * but not the class that the config names. For an unknown model type, returns the class that the
 * config names. */
HEFT_API const char *heft_source_class(const heft_source *source);
/**
 * Check that the index and the shards agree.
 *
 * @param source  borrowed
 * @param err     filled with the first disagreement; may be NULL
 *
 * Memory   no heap.
 * Errors   FORMAT with the tensor and its position in the index.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_check_index(const heft_source *source,
                                                             heft_error *err);

/**
 * Rewrite a checkpoint: reshard, merge, cast, or change the format. Streams the data through the
 * staging buffer. With HEFT_FORMAT_OFFLOAD the destination becomes Accelerate's offload folder,
 * which has one file per tensor and thus neither shards nor variants.
 *
 * Splits tensors into shards by the rule of Transformers. Tensors are in the order of the model's
 * state dict if the config names a model that heft knows; otherwise in the order of the pickle, or
 * in the natural order of names. Copies everything else in the source folder, if there is one
 * (config.json, tokenizer files, ...). The destination becomes visible either complete or not at all.
 *
 * Keeps the metadata of safetensors files: each file written has all pairs of the source's files.
 * If two source files disagree about a key, the first file's value is kept, with a warning. If the
 * source has no metadata, {"format": "pt"} is written, as Transformers does. A format that cannot
 * hold metadata drops it, with a warning.
 *
 * @param source   borrowed
 * @param dst      borrowed; a folder
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report; may be NULL
 * @param err      filled on failure; may be NULL
 *
 * Memory   the metadata and one staging buffer, regardless of the checkpoint's size.
 * Errors   NOT_FOUND without weights; those of heft_source_check_index() and of reading; EXISTS if
 *          dst holds a checkpoint and force is not set; INVALID_ARG if dst is the source, if a
 *          dtype or name cannot be written, if metadata is given for a format that cannot hold it,
 *          or if `resume` is set for a checkpoint that was opened from bytes or through a reader;
 *          IO for a full disk; CANCELLED. On failure, the source and dst are unchanged.
 * Source   docs/sharding.md, docs/formats/offload.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_convert(const heft_source *source, const char *dst,
                                                         const heft_convert_options *options,
                                                         heft_write_report **report,
                                                         heft_error *err);

/**
 * Check that a checkpoint is complete and valid: every file opens, index and shards agree in both
 * directions, sizes add up, and there are no stale files.
 *
 * @param source   borrowed; open it with `damaged`, otherwise opening already fails on many of the
 *                 defects that this function reports
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report; problems are listed there and do not make the call
 *                 fail
 * @param err      filled on failure; may be NULL
 *
 * Memory   the metadata; with `deep`, one staging buffer.
 * Errors   NOT_FOUND for a source without weights; INVALID_ARG, also for a manifest if the
 *          checkpoint was opened from bytes or through a reader; NOMEM; CANCELLED.
 * Source   docs/commands/verify.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_verify(const heft_source *source,
                                                        const heft_verify_options *options,
                                                        heft_verify_report **report,
                                                        heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
