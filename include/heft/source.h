/* heft/source.h - a source: an open checkpoint, its config.json and the class to instantiate.
 * Functions that load, plan, convert, verify or compare take a source, so that each file is opened once. */
#ifndef HEFT_SOURCE_H
#define HEFT_SOURCE_H

#include <heft/checkpoint.h>
#include <heft/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/** An open checkpoint, its config and the class to instantiate. Any number of threads may use a
 * source at once. */
typedef struct heft_source heft_source;

typedef enum heft_source_kind {
    HEFT_SOURCE_CONFIG,  /* no weights: a config.json alone */
    HEFT_SOURCE_FILE,    /* one weight file: on disk, in memory, or read through a reader */
    HEFT_SOURCE_SHARDED, /* an index and its shards */
    HEFT_SOURCE_OFFLOAD  /* Accelerate's offload folder */
} heft_source_kind;

typedef struct heft_source_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    /* "BertForMaskedLM", "AutoModel", ...; NULL: the first entry of `architectures` in the
     * config */
    const char *class_name;
    /* How to open the checkpoint; NULL: defaults. `trust_shards` is ignored: each function that
     * takes the source decides what an index that disagrees with its shards means. */
    const heft_checkpoint_options *checkpoint;
    /* Also open a checkpoint that has missing or malformed files, for heft_source_verify(). All
     * other functions treat it as a source without weights. */
    bool damaged;
    /* Dequantize: to all functions that take the source, quantized weights are plain tensors, whose
     * values are computed when they are read. No effect if no weight is quantized. */
    bool dequantize;
    /* With `dequantize`: the model's dtype, for methods that compute weights in it; NONE: the
     * config's. */
    heft_dtype dtype;
} heft_source_options;

/** How the weights of a source are quantized. */
typedef struct heft_quantization {
    const char *method;  /* "gptq", "fp8", ...: as the config calls it */
    bool known;          /* heft knows the method */
    bool declared;       /* a config declares it; false: recognized by the tensors alone */
    bool dequantized;    /* the source was opened with `dequantize` */
    uint32_t bits;       /* of a stored value, of most weights; 0 if there are no such weights */
    uint64_t group_size; /* of most weights: elements that share a scale; 0: a row or more */
    size_t weights;      /* how many weights are stored quantized */
    /* Names of the tensors of its state: scales of inputs, outputs and the key/value cache. They are
     * loaded and saved as they are, and left out where the source is dequantized. */
    const char *const *state; /* [state_count] */
    size_t state_count;
    /* Why config and tensors do not go together, or the quantized weights cannot be read (a part is
     * missing; `weights` is 0 then), one line; NULL: nothing is wrong. */
    const char *warning;
    /* Rows that share a scale, where most weights have one for each block of `block_rows` rows and
     * `group_size` columns; 0: they have none for blocks. */
    uint64_t block_rows;
} heft_quantization;

/**
 * Open a source by path: a folder, a weight file, an index file, a config.json, or the name of a
 * model in the hub cache (`org/name[@revision]`). Reads metadata only, and each file once.
 *
 * Also reads the config.json in the folder of the weights if there is one. For a config.json, or a
 * folder with a config.json and no weights, the source has no checkpoint.
 *
 * @param ctx      borrowed; kept alive by the source
 * @param path     borrowed
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned source; free it with heft_source_close()
 * @param err      filled on failure; may be NULL
 *
 * Memory   the names and shapes of all tensors, the config, and one file descriptor per file.
 * Errors   those of heft_checkpoint_open(), except that an index that disagrees with its shards is
 *          not an error here: heft_source_check_index() reports it. With `class_name`, also those
 *          of heft_config_read(), and UNSUPPORTED for a class that heft does not know. Without
 *          `class_name`, a config.json that is missing, malformed or of an unknown class causes an
 *          error only in the functions that need it. With `dequantize`: FORMAT, with the tensor as
 *          the item, if the tensors of a quantized weight contradict each other or the config;
 *          UNSUPPORTED if heft does not support the method or this layout of it. Without
 *          `dequantize`, both are errors only in the functions that load weights.
 * Source   docs/loading.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_open(heft_ctx *ctx, const char *path,
                                                      const heft_source_options *options,
                                                      heft_source **out, heft_error *err);
/**
 * Create a source from an open checkpoint, a config, or both.
 *
 * @param checkpoint  borrowed; kept alive by the source; NULL for none
 * @param config      borrowed; copied; NULL for none
 * @param options     borrowed; NULL for defaults; only class_name, dequantize and dtype are used
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

/** Return the kind of the source. */
HEFT_API heft_source_kind heft_source_what(const heft_source *source);
/** Return the path from which the source was opened, or "" if it was created from objects; lent. */
HEFT_API const char *heft_source_path(const heft_source *source);
/** Return the folder in which the source's files are: of a model's name, in the hub's cache, and with the
 * subfolder that was asked for; "" if it was created from objects. Lent. */
HEFT_API const char *heft_source_folder(const heft_source *source);
/** Return the checkpoint, or NULL if there are no weights; lent. */
HEFT_API const heft_checkpoint *heft_source_checkpoint(const heft_source *source);
/** Return the config, or NULL if there is none; lent. */
HEFT_API const heft_config *heft_source_config(const heft_source *source);
/** Return the class to instantiate; lent. If heft does not know the model type, that is the class
 * that the config names. NULL without a config, or if heft knows the model type but not the
 * class. */
HEFT_API const char *heft_source_class(const heft_source *source);
/** Return how the weights are quantized, or NULL if none are and no config declares it; lent. */
HEFT_API const heft_quantization *heft_source_quantization(const heft_source *source);
/**
 * Return how many parameters of the model a tensor stands for.
 *
 * A weight that is stored quantized counts as the plain weight in its first tensor; its other
 * tensors (scales, zero points) and state count 0, and so do integers that belong to no weight where
 * there is a config, as they are buffers (position_ids). Tensors that share their bytes count each.
 *
 * @param source  borrowed
 * @param i       number of the tensor in heft_source_checkpoint(); 0 is returned for others
 */
HEFT_API uint64_t heft_source_parameters(const heft_source *source, size_t i);
/**
 * Check that the index and the shards agree. Succeeds for a source without an index.
 *
 * @param source  borrowed
 * @param err     filled with the first disagreement; may be NULL
 *
 * Memory   no heap.
 * Errors   FORMAT, with the tensor as the item and its offset in the index.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_check_index(const heft_source *source,
                                                             heft_error *err);

/**
 * Rewrite a checkpoint: reshard, merge, cast, or change the format. With HEFT_FORMAT_OFFLOAD the
 * destination becomes Accelerate's offload folder, which has one file per tensor and thus neither
 * shards nor variants.
 *
 * Splits tensors into shards by the rule of Transformers. Tensors keep the order of a pickle or of
 * an offload folder's index. Those of safetensors files are in the order of the model's state dict
 * if the config names a model that heft knows, otherwise in the natural order of names. Copies
 * the other files and subfolders in the source folder, if there is one (config.json, tokenizer files,
 * 1_Pooling, ...). A warning names what is not copied: the same model in other forms, training
 * states, links to folders (docs/formats/folders.md). Hidden files are not copied. The destination
 * becomes visible either complete or not at all.
 *
 * Keeps the metadata of safetensors files: each file written has the pairs of all source files. If
 * two source files disagree about a key, the first file's value is kept, with a warning. If the
 * source has no metadata, {"format": "pt"} is written, as by Transformers. If the destination's
 * format cannot hold metadata, it is dropped, with a warning.
 *
 * @param source   borrowed
 * @param dst      borrowed; the folder to write
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report; may be NULL
 * @param err      filled on failure; may be NULL
 *
 * Memory   the metadata and one staging buffer, regardless of the checkpoint's size.
 * Errors   NOT_FOUND for a source without weights; those of heft_source_check_index() and
 *          heft_checkpoint_read(); EXISTS if dst holds a checkpoint and force is not set, or
 *          side files of another checkpoint (docs/transactions.md [3]) and keep_side_files is not set,
 *          or weights and the source has no tensors; INVALID_ARG if dst is the source, if the format cannot hold a dtype or a name, if
 *          metadata is given for a format that cannot hold it, or if `resume` is set for a
 *          checkpoint that was opened from bytes or through a reader; IO, also for a full disk;
 *          CANCELLED. On failure, the source and dst are unchanged; with `resume`, finished shards
 *          are kept in a hidden folder.
 * Source   docs/sharding.md, docs/formats/offload.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_convert(const heft_source *source, const char *dst,
                                                         const heft_convert_options *options,
                                                         heft_write_report **report,
                                                         heft_error *err);

/**
 * Check that a checkpoint is complete and valid: every file opens, index and shards agree in both
 * directions, sizes add up, and there are no stale files. Optionally reads every byte, and compares
 * with or writes a manifest.
 *
 * @param source   borrowed; opened with `damaged`, because opening otherwise fails with many of the
 *                 problems that this function reports
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report, which lists the problems; a problem does not make
 *                 the call fail
 * @param err      filled on failure; may be NULL
 *
 * Memory   the metadata; with `deep` or a manifest, also one buffer of 8 MiB, and with `deep` what
 *          heft_checkpoint_read() needs for one tensor. A manifest to compare with is held in
 *          memory.
 * Errors   NOT_FOUND for a source without weights; for a manifest, NOT_FOUND, FORMAT, LIMIT, IO,
 *          UNSUPPORTED without OpenSSL (docs/building.md), and INVALID_ARG if the checkpoint was
 *          opened from bytes or through a reader; NOMEM; CANCELLED.
 * Source   docs/commands/verify.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_verify(const heft_source *source,
                                                        const heft_verify_options *options,
                                                        heft_verify_report **report,
                                                        heft_error *err);

/**
 * Compare the tensors of two checkpoints by name: which are in one only, and which differ in dtype,
 * shape or values. Formats and shards may differ. Metadata, config.json and other files are not
 * compared. The tensors of quantized weights are compared as stored, unless a source was opened with
 * `dequantize`.
 *
 * Values are compared as float64, complex numbers as complex128, and two integers exactly. NaN equals
 * NaN, infinity equals infinity of the same sign, and -0 equals 0. Values of dtypes that cannot be
 * converted (float4, the 6-bit floats, quantized and bits dtypes) are compared byte by byte.
 *
 * @param a        borrowed; may be equal to b
 * @param b        borrowed; may belong to another context
 * @param options  borrowed; NULL for defaults
 * @param report   filled with an owned report; a difference does not make the call fail
 * @param err      filled on failure; may be NULL
 *
 * Memory   300 bytes per tensor, the names of what differs, 64 bytes per 2^20 elements that are compared
 *          as numbers, and at most 1 MiB per thread; for a strided tensor in a deflated storage, the size
 *          of that storage.
 * Errors   NOT_FOUND for a source without weights; those of heft_source_check_index() and
 *          heft_checkpoint_read(), with the file and the tensor; INVALID_ARG for a tolerance that is
 *          negative or not finite; NOMEM; CANCELLED.
 * Source   docs/commands/diff.md.
 * Threads  reads and compares on the threads of the context of `a`; calls the progress callback of that
 *          context on the caller's.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_source_diff(const heft_source *a, const heft_source *b,
                                                      const heft_diff_options *options,
                                                      heft_diff_report **report, heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
