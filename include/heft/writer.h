/* heft/writer.h - write tensors of the caller's own: a checkpoint in a folder, or one file. */
#ifndef HEFT_WRITER_H
#define HEFT_WRITER_H

#include <heft/checkpoint.h>
#include <heft/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Tensors that are to be written, and how. Nothing is written before heft_writer_commit(). */
typedef struct heft_writer heft_writer;

/** What becomes of tensors that share memory, in a format that cannot share bytes between names
 * (safetensors). A `.bin` keeps what is tied on one storage, and an offload folder has a file for each
 * name; both look at COPY only. */
typedef enum heft_ties {
    HEFT_TIES_REFUSE, /* INVALID_ARG if two tensors overlap in memory, as safetensors' save_file() */
    HEFT_TIES_DROP, /* of tensors that are the same the first is written, and the others are named in
                         the report's warnings, as Transformers' save_pretrained(); tensors that overlap
                         and differ are written with bytes of their own */
    HEFT_TIES_COPY  /* each name has bytes of its own */
} heft_ties;

typedef struct heft_writer_options {
    size_t struct_size;       /* set by HEFT_OPTIONS */
    heft_format format;       /* AUTO: safetensors; of a single file as its name ends */
    uint64_t max_shard_bytes; /* 0: 50 GB */
    const char *variant;      /* of the names of files; NULL for none */
    bool single_file;         /* dst is a file and not a folder: "x.safetensors", "x.pt" */
    bool force;               /* replace what is there: the checkpoint, or the single file */
    bool natural_order;       /* of names, numbers in them by value; false: in the order added */
    bool dry_run;             /* plan only */
    heft_ties ties;
    const char *const *modules; /* paths of a model's modules, "" for the root: a `.bin` is then an
                                   OrderedDict with `_metadata`, as a model's state_dict(); NULL: a
                                   plain dict. Copied */
    size_t module_count;
    uint64_t total_parameters; /* for the index's metadata; 0: left out */
} heft_writer_options;

/**
 * Begin to collect tensors for a checkpoint.
 *
 * @param ctx      borrowed; kept alive by the writer
 * @param dst      borrowed; a folder, or with single_file a file
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned writer
 * @param err      filled on failure; may be NULL
 *
 * Memory   names and shapes; the bytes of tensors are not copied.
 * Errors   INVALID_ARG for a format that is only read, a single file whose name does not tell its
 *          format, and for options that do not go together: shards or a variant of a single file or an
 *          offload folder; NOMEM.
 * Source   docs/writing.md.
 * Threads  one at a time.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_new(heft_ctx *ctx, const char *dst,
                                                     const heft_writer_options *options,
                                                     heft_writer **out, heft_error *err);
/** Free a writer. If it was not committed, nothing has happened. NULL is allowed. */
HEFT_API void heft_writer_free(heft_writer *writer);

/**
 * Add a tensor. Strided tensors are written row by row.
 *
 * @param writer  borrowed
 * @param name    borrowed
 * @param tensor  borrowed, as heft_tensor_new() or a checkpoint or model made it. The writer takes a
 *                reference on its storage, and reads the bytes when it is committed.
 * @param err     filled on failure; may be NULL
 *
 * Errors   INVALID_ARG for a name that is empty, not UTF-8, or there already; a name or dtype that the
 *          format cannot hold; a size that is not the shape's, elements outside of the storage; strided
 *          elements below a byte; a device whose memory cannot be read; and after a commit. LIMIT for a
 *          name or rank over heft_limits. The writer stays as it was.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_add(heft_writer *writer, const char *name,
                                                     const heft_tensor *tensor, heft_error *err);

/**
 * Yield the next bytes of a tensor: row by row, little-endian.
 *
 * @param user    of heft_writer_add_from()
 * @param offset  of the first byte in the tensor; rises from call to call
 * @param dst     to be filled
 * @param length  bytes that are wanted
 * @param filled  to be filled with how many there are: 1 to length; 0 means that there are no more
 * @param err     may be filled on failure; never NULL
 * @return        HEFT_OK, or a status with which the commit fails: CANCELLED, IO, ...
 */
typedef heft_status (*heft_fill_fn)(void *user, uint64_t offset, void *dst, size_t length,
                                    size_t *filled, heft_error *err);

/**
 * Add a tensor whose bytes are made when it is written.
 *
 * `fill` is called by heft_writer_commit(), from the thread that calls it, for one tensor after the
 * other in the order of the file. A commit that fails may be tried again: then `fill` begins at 0.
 *
 * @param writer  borrowed
 * @param name    borrowed
 * @param spec    borrowed; dtype, rank and shape are looked at
 * @param fill    called with `user`, which must stay until the writer is freed
 * @param user    handed to fill
 * @param err     filled on failure; may be NULL
 *
 * Errors   as heft_writer_add().
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_add_from(heft_writer *writer, const char *name,
                                                          const heft_tensor_spec *spec,
                                                          heft_fill_fn fill, void *user,
                                                          heft_error *err);
/**
 * Set a pair of metadata in every file (safetensors' `__metadata__`). Without any, a file has
 * {"format": "pt"}, as Transformers writes it.
 *
 * @param writer  borrowed
 * @param key     borrowed
 * @param value   borrowed; NULL takes the key out, "format" too
 * @param err     filled on failure; may be NULL
 *
 * Errors   INVALID_ARG for what is not UTF-8, for a format that holds no metadata, and after a commit.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_metadata(heft_writer *writer, const char *key,
                                                          const char *value, heft_error *err);
/**
 * Add a file that is written beside the weights, such as config.json.
 *
 * @param writer  borrowed
 * @param name    borrowed; a file's name without a folder
 * @param bytes   borrowed; copied
 * @param length  of bytes
 * @param err     filled on failure; may be NULL
 *
 * Errors   INVALID_ARG for a name that is no file's, is there already, or is that of weights; for a
 *          single file; and after a commit.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_side_file(heft_writer *writer, const char *name,
                                                           const void *bytes, size_t length,
                                                           heft_error *err);
/**
 * Write everything. The destination becomes visible complete or not at all: files have temporary names
 * in the folder where they will be, are synced, and are renamed, the index last.
 *
 * @param writer  borrowed
 * @param report  filled with an owned report; may be NULL
 * @param err     filled on failure; may be NULL
 *
 * Memory   one staging buffer, and the headers of the files.
 * Errors   EXISTS if dst is there and force is not set; INVALID_ARG for tensors that share memory
 *          (heft_ties), a `fill` that yields too few bytes, and a second commit; what `fill` returned;
 *          LIMIT for a header over heft_limits; IO for a full disk; CANCELLED. dst stays as it was
 *          then, and the writer can be committed again.
 * Source   docs/writing.md, docs/sharding.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_commit(heft_writer *writer,
                                                        heft_write_report **report,
                                                        heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
