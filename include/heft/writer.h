/* heft/writer.h - write the caller's own tensors: to a folder as a checkpoint, or to one file. */
#ifndef HEFT_WRITER_H
#define HEFT_WRITER_H

#include <heft/checkpoint.h>
#include <heft/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Tensors to be written, with options. Nothing is written before heft_writer_commit(). */
typedef struct heft_writer heft_writer;

/** How to write tensors that share memory to a format in which names cannot share bytes
 * (safetensors). A `.bin` keeps tied tensors on one storage, and an offload folder has one file per
 * name; in these formats only COPY has an effect. */
typedef enum heft_ties {
    /* INVALID_ARG if two tensors overlap in memory, as safetensors' save_file() */
    HEFT_TIES_REFUSE,
    /* Of identical tensors, only the first is written, and the others are listed in the report's
     * warnings, as by save_pretrained() in Transformers. Tensors that overlap but differ are
     * written with bytes of their own. */
    HEFT_TIES_DROP,
    HEFT_TIES_COPY /* write separate bytes for each name */
} heft_ties;

typedef struct heft_writer_options {
    size_t struct_size;       /* set by HEFT_OPTIONS */
    heft_format format;       /* AUTO: safetensors; for a single file, as its name ends */
    uint64_t max_shard_bytes; /* 0: 50 GB */
    const char *variant;      /* in the file names; NULL for none */
    bool single_file;         /* dst is a file, not a folder: "x.safetensors", "x.pt" */
    bool force;               /* replace an existing checkpoint or single file */
    /* true: natural order of names (numbers by value); false: in the order added */
    bool natural_order;
    bool dry_run; /* plan only */
    heft_ties ties;
    /* The paths of a model's modules, "" for the root. A `.bin` is then an OrderedDict with
     * `_metadata`, as from a model's state_dict(); NULL: a plain dict. Copied. */
    const char *const *modules;
    size_t module_count;
    uint64_t total_parameters; /* for the index's metadata; 0: omitted */
} heft_writer_options;

/**
 * Create a writer, which collects tensors for a checkpoint.
 *
 * @param ctx      borrowed; kept alive by the writer
 * @param dst      borrowed; a folder, or with single_file a file
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned writer
 * @param err      filled on failure; may be NULL
 *
 * Memory   names and shapes; the bytes of tensors are not copied.
 * Errors   INVALID_ARG for a read-only format, for a single file whose name does not determine its
 *          format, and for options that conflict (shards or a variant, with a single file or an
 *          offload folder); NOMEM.
 * Source   docs/writing.md.
 * Threads  one at a time.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_new(heft_ctx *ctx, const char *dst,
                                                     const heft_writer_options *options,
                                                     heft_writer **out, heft_error *err);
/** Free a writer. Without a commit, nothing has been written. NULL is allowed. */
HEFT_API void heft_writer_free(heft_writer *writer);

/**
 * Add a tensor. Strided tensors are written row by row.
 *
 * @param writer  borrowed
 * @param name    borrowed
 * @param tensor  borrowed; created by heft_tensor_new(), a checkpoint or a model. The writer takes
 *                a reference to its storage, and reads the bytes during the commit.
 * @param err     filled on failure; may be NULL
 *
 * Errors   INVALID_ARG for a name that is empty, not UTF-8, or already used; for a name or dtype
 *          that the format cannot hold; for a size that differs from the shape's, or elements
 *          outside the storage; for strided sub-byte elements; for a device whose memory cannot be
 *          read; and after a commit. LIMIT for a name or rank over heft_limits. On failure, the
 *          writer is unchanged.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_add(heft_writer *writer, const char *name,
                                                     const heft_tensor *tensor, heft_error *err);

/**
 * Produce the next bytes of a tensor: row by row, little-endian.
 *
 * @param user    from heft_writer_add_from()
 * @param offset  of the first byte in the tensor; increases from call to call
 * @param dst     to be filled
 * @param length  number of bytes requested
 * @param filled  to be set to the number of bytes produced: 1 to length; 0 means that there are no
 *                more
 * @param err     may be filled on failure; never NULL
 * @return        HEFT_OK, or the status with which the commit fails: CANCELLED, IO, ...
 */
typedef heft_status (*heft_fill_fn)(void *user, uint64_t offset, void *dst, size_t length,
                                    size_t *filled, heft_error *err);

/**
 * Add a tensor whose bytes are generated when it is written.
 *
 * heft_writer_commit() calls `fill` on its caller's thread, for one tensor after another in file
 * order. A failed commit may be retried: `fill` then starts again at offset 0.
 *
 * @param writer  borrowed
 * @param name    borrowed
 * @param spec    borrowed; only dtype, rank and shape are used
 * @param fill    called with `user`; both must stay valid until the writer is freed
 * @param user    passed to fill
 * @param err     filled on failure; may be NULL
 *
 * Errors   as for heft_writer_add().
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_add_from(heft_writer *writer, const char *name,
                                                          const heft_tensor_spec *spec,
                                                          heft_fill_fn fill, void *user,
                                                          heft_error *err);
/**
 * Set a metadata key in every file (`__metadata__` of safetensors). If none is set, each file has
 * {"format": "pt"}, as Transformers writes it.
 *
 * @param writer  borrowed
 * @param key     borrowed
 * @param value   borrowed; NULL removes the key, even "format"
 * @param err     filled on failure; may be NULL
 *
 * Errors   INVALID_ARG for text that is not UTF-8, for a format that cannot hold metadata, and
 *          after a commit.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_metadata(heft_writer *writer, const char *key,
                                                          const char *value, heft_error *err);
/**
 * Add a file to be written beside the weights, such as config.json.
 *
 * @param writer  borrowed
 * @param name    borrowed; a file name without a folder
 * @param bytes   borrowed; copied
 * @param length  size of bytes
 * @param err     filled on failure; may be NULL
 *
 * Errors   INVALID_ARG for a name that is not a valid file name, is already used, or is the name of
 *          a weight file; for a writer of a single file; and after a commit.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_side_file(heft_writer *writer, const char *name,
                                                           const void *bytes, size_t length,
                                                           heft_error *err);
/**
 * Write everything. The destination becomes visible either complete or not at all: files are
 * written under temporary names in their final folder, synced, and then renamed, the index last.
 *
 * @param writer  borrowed
 * @param report  filled with an owned report; may be NULL
 * @param err     filled on failure; may be NULL
 *
 * Memory   one staging buffer, and the headers of the files.
 * Errors   EXISTS if dst exists and force is not set; INVALID_ARG for tensors that share memory
 *          (heft_ties), a `fill` that produces too few bytes, and a second commit; the status that
 *          `fill` returned; LIMIT for a header over heft_limits; IO for a full disk; CANCELLED. On
 *          failure, dst is unchanged and the writer can be committed again.
 * Source   docs/writing.md, docs/sharding.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_commit(heft_writer *writer,
                                                        heft_write_report **report,
                                                        heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
