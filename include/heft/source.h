/* heft/source.h - what a model is made from, opened once: a checkpoint, its config.json and the class
 * that they make. Loads, plans, conversions and checks take it. */
#ifndef HEFT_SOURCE_H
#define HEFT_SOURCE_H

#include <heft/checkpoint.h>
#include <heft/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/** An opened checkpoint, its config and its class. May be read by many threads at once. */
typedef struct heft_source heft_source;

typedef enum heft_source_kind {
    HEFT_SOURCE_CONFIG,  /* a config.json, without weights */
    HEFT_SOURCE_FILE,    /* one weight file */
    HEFT_SOURCE_SHARDED, /* an index and its shards */
    HEFT_SOURCE_OFFLOAD  /* an offload folder of Accelerate */
} heft_source_kind;

typedef struct heft_source_options {
    size_t struct_size;     /* set by HEFT_OPTIONS */
    const char *class_name; /* "BertForMaskedLM", "AutoModel", ...; NULL: the first of the config's
                               `architectures` */
    const heft_checkpoint_options *checkpoint; /* how to open it; NULL: defaults. `trust_shards` is
                                                  not looked at: each operation decides */
    bool
        damaged; /* open a checkpoint too of which files are missing or malformed: heft_source_verify()
                     says what is wrong with it, and to everything else it has no weights */
} heft_source_options;

/**
 * Open what a path names: a folder, a weight file, an index file, a config.json, or a name of the
 * hub's cache (`org/name[@revision]`). Reads metadata only, and each file once.
 *
 * The config.json beside the weights is read if there is one. A folder without weights, or a file
 * that is a config.json, gives a source without a checkpoint.
 *
 * @param ctx      borrowed; kept alive by the source
 * @param path     borrowed
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned source; free it with heft_source_close()
 * @param err      filled on failure; may be NULL
 *
 * Memory   the names and shapes of all tensors, the config, and one file descriptor a file.
 * Errors   those of heft_checkpoint_open(). An index that disagrees with its shards is no error yet,
 *          see heft_source_check_index(). With `class_name`, those of heft_config_read() and
 *          UNSUPPORTED for a class that heft does not know; without it, a config.json that is
 *          missing, malformed or of an unknown class is an error of what needs it.
 * Source   docs/loading.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_open(heft_ctx *ctx, const char *path,
                                                      const heft_source_options *options,
                                                      heft_source **out, heft_error *err);
/**
 * Make a source from a checkpoint and a config that are open already, for instance in memory.
 *
 * @param checkpoint  borrowed; kept open by the source; NULL for none
 * @param config      borrowed; copied; NULL for none
 * @param options     borrowed; NULL for defaults: class_name is looked at
 * @param out         filled with an owned source
 * @param err         filled on failure; may be NULL
 *
 * Memory   some times the config's size.
 * Errors   INVALID_ARG if both are NULL; UNSUPPORTED as heft_source_open(); NOMEM.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_new(heft_checkpoint *checkpoint,
                                                     const heft_config *config,
                                                     const heft_source_options *options,
                                                     heft_source **out, heft_error *err);
/** Close a source; models and tensors that came from it stay. NULL is allowed. */
HEFT_API void heft_source_close(heft_source *source);

/** Return what was found. */
HEFT_API heft_source_kind heft_source_what(const heft_source *source);
/** Return the path with which the source was opened, "" if it was made from objects; lent. */
HEFT_API const char *heft_source_path(const heft_source *source);
/** Return the checkpoint, NULL if there are no weights; lent. */
HEFT_API const heft_checkpoint *heft_source_checkpoint(const heft_source *source);
/** Return the config, NULL if there is none; lent. */
HEFT_API const heft_config *heft_source_config(const heft_source *source);
/** Return the class that will be made, NULL if there is none: without a config, or where the config
 * names a class that heft does not know in a family that it knows; lent. A model type that heft does
 * not know has the class that its config names. */
HEFT_API const char *heft_source_class(const heft_source *source);
/**
 * Check that the index and the shards agree.
 *
 * @param source  borrowed
 * @param err     filled with the first disagreement; may be NULL
 *
 * Memory   no heap.
 * Errors   FORMAT with the tensor and its place in the index.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_check_index(const heft_source *source,
                                                             heft_error *err);

/**
 * Rewrite a checkpoint: reshard, merge, cast, change the format. Streams through the staging buffer.
 * With OFFLOAD the destination becomes Accelerate's offload folder: a file for each name, so neither
 * shards nor variants.
 *
 * Names are cut into shards by the rule of Transformers, in the order of the model's state dict where
 * the config says which model it is; else in the order of a pickle, or the natural order of names.
 * Everything else in the source folder (config.json, tokenizer, ...) is copied. The destination becomes
 * visible complete or not at all.
 *
 * Metadata of safetensors files is kept: each file that is written has all pairs of the source's files.
 * If two of them disagree about a key, the first file's value is kept, with a warning. A source without
 * metadata gets {"format": "pt"}, as Transformers writes it. A format that holds no metadata drops it,
 * with a warning.
 *
 * @param source   borrowed
 * @param dst      borrowed; a folder
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report; may be NULL
 * @param err      filled on failure; may be NULL
 *
 * Memory   the metadata and one staging buffer, whatever the checkpoint's size.
 * Errors   NOT_FOUND without weights; those of heft_source_check_index() and of reading; EXISTS if dst
 *          holds a checkpoint and force is not set; INVALID_ARG if dst is the source, a dtype or name
 *          cannot be written, or metadata is given for a format that holds none; IO for a full disk; CANCELLED. src and dst stay as they were.
 * Source   docs/sharding.md, docs/formats/offload.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_convert(const heft_source *source, const char *dst,
                                                         const heft_convert_options *options,
                                                         heft_write_report **report,
                                                         heft_error *err);

/**
 * Check that a checkpoint is whole and sound: every file opens, index and shards agree both ways, sizes
 * add up, nothing stale lies beside it.
 *
 * @param source   borrowed; opened with `damaged`, or else nothing that opening refuses is left to find
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report; problems are in it and not an error of the call
 * @param err      filled on failure; may be NULL
 *
 * Memory   the metadata, one staging buffer with deep.
 * Errors   NOT_FOUND for a source without weights; INVALID_ARG; NOMEM; CANCELLED.
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
