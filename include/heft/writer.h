/* heft/writer.h - a writer: writes the caller's own tensors to a folder, as a checkpoint, or to one
 * file. */
#ifndef HEFT_WRITER_H
#define HEFT_WRITER_H

#include <heft/checkpoint.h>
#include <heft/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

/** A writer collects tensors, metadata and side files; heft_writer_commit() writes them. Nothing is
 * written before. */
typedef struct heft_writer heft_writer;

/** How tensors that share memory are written. REFUSE and DROP apply to safetensors, in which names
 * cannot share bytes: a `.bin` keeps tied tensors on one storage, and an offload folder has one
 * file per name in any case. */
typedef enum heft_ties {
    /* fail with INVALID_ARG if two tensors overlap, as safetensors' save_file() does */
    HEFT_TIES_REFUSE,
    /* Of identical tensors, write only one and list the others in the report's warnings, as
     * save_pretrained() in Transformers does: the one below a base model, not that of a head,
     * whatever their order (docs/sharding.md [7]). Write tensors that overlap but differ with bytes
     * of their own. */
    HEFT_TIES_DROP,
    HEFT_TIES_COPY /* write separate bytes for each name, even in a `.bin` */
} heft_ties;

typedef struct heft_writer_options {
    size_t struct_size;       /* set by HEFT_OPTIONS */
    heft_format format;       /* AUTO: safetensors; for a single file, by its extension */
    uint64_t max_shard_bytes; /* maximum bytes of tensors in a shard; 0: 50 GB */
    const char *variant;      /* part of the file names; NULL for none */
    bool single_file;         /* dst is a file, not a folder: "x.safetensors", "x.pt" */
    bool force;               /* replace an existing checkpoint or single file */
    /* true: natural order of names (numbers by value); false: the order in which they were added */
    bool natural_order;
    bool dry_run; /* report what would be written, or why it cannot be; write nothing */
    heft_ties ties;
    /* [module_count] Copied. The paths of a model's modules, "" for the root: a `.bin` is then an
     * OrderedDict with `_metadata`, as from a model's state_dict(). NULL: a `.bin` is a plain
     * dict. */
    const char *const *modules;
    size_t module_count;
    uint64_t total_parameters; /* written to the index's metadata; 0: omitted */
    bool wait;                 /* if another process writes to dst, wait until it is done */
    bool keep_side_files;      /* as in heft_convert_options */
    /* [module_count] Copied. The version of each module in `_metadata`; NULL: 1. Modules of PyTorch
     * read it when they load (a BatchNorm has 2). */
    const uint32_t *module_versions;
} heft_writer_options;

/**
 * Create a writer. Writes nothing yet.
 *
 * @param ctx      borrowed; kept alive by the writer
 * @param dst      borrowed; the folder to write, or with single_file the file
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned writer
 * @param err      filled on failure; may be NULL
 *
 * Memory   the names and shapes of the tensors added, and copies of the side files; the bytes of
 *          tensors are not copied.
 * Errors   INVALID_ARG for a format that heft only reads, for a single file whose name does not
 *          determine its format, and for options that conflict (shards or a variant together with
 *          a single file or an offload folder); NOMEM.
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
 * @param name    borrowed; copied
 * @param tensor  borrowed; created by heft_tensor_new(), a checkpoint or a model. May be freed
 *                before the commit: the writer holds a reference to its storage, whose bytes are
 *                read during the commit.
 * @param err     filled on failure; may be NULL
 *
 * Errors   INVALID_ARG for a name that is empty, not UTF-8, or already used; for a name or dtype
 *          that the format cannot hold; for a tensor whose size does not match its shape, or with
 *          elements outside its storage; for strided sub-byte elements; for a device whose memory
 *          cannot be read; and after a commit. LIMIT for a name or rank over heft_limits. On
 *          failure, the writer is unchanged.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_add(heft_writer *writer, const char *name,
                                                     const heft_tensor *tensor, heft_error *err);

/**
 * Produce the next bytes of a tensor: row by row, little-endian.
 *
 * @param user    from heft_writer_add_from()
 * @param offset  position in the tensor of the first byte requested: the number of bytes produced
 *                so far
 * @param dst     fill with the bytes
 * @param length  number of bytes requested
 * @param filled  set to the number of bytes produced, 1 to length, or to 0 if there are no more
 * @param err     may be filled on failure; never NULL
 * @return        HEFT_OK, or the status with which the commit is to fail: CANCELLED, IO, ...
 */
typedef heft_status (*heft_fill_fn)(void *user, uint64_t offset, void *dst, size_t length,
                                    size_t *filled, heft_error *err);

/**
 * Add a tensor whose bytes a callback produces when they are written.
 *
 * heft_writer_commit() calls `fill` on its caller's thread, for one tensor after another in file
 * order. A failed commit may be retried: `fill` then starts again at offset 0.
 *
 * @param writer  borrowed
 * @param name    borrowed; copied
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
 * Set a metadata key that every file gets (`__metadata__` of safetensors). The key "format" is set
 * to "pt" from the start, as Transformers writes it.
 *
 * @param writer  borrowed
 * @param key     borrowed; copied
 * @param value   borrowed; copied. NULL removes the key, even "format".
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
 * @param name    borrowed; copied; a file name without a folder
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
 * written under temporary names, synced, and then renamed, the index last. Afterward the writer can
 * only be freed.
 *
 * @param writer  borrowed
 * @param report  filled with an owned report; may be NULL
 * @param err     filled on failure; may be NULL
 *
 * Memory   one staging buffer, and the headers of the files.
 * Errors   EXISTS if dst holds a checkpoint, or is an existing file, and force is not set, or side
 *          files of another checkpoint (docs/transactions.md [3]) and keep_side_files is not set, and
 *          always if a single file's dst is a folder, device or pipe;
 *          INVALID_ARG for tensors that share memory (HEFT_TIES_REFUSE), a `fill` that produces too
 *          few bytes, and a second commit; the status that `fill` returned; LIMIT for a header over
 *          heft_limits; IO, also for a full disk; CANCELLED. On failure, dst is unchanged and the
 *          writer can be committed again.
 * Source   docs/writing.md, docs/sharding.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_writer_commit(heft_writer *writer,
                                                        heft_write_report **report,
                                                        heft_error *err);

/**
 * Write one file so that its path names either the previous content or all of the new one, even
 * after a crash: the bytes go to a temporary file, which then replaces the path. A path that is a
 * device or a pipe is written to directly.
 *
 * @param ctx   borrowed
 * @param path  borrowed; its folder must exist
 * @param data  borrowed; `size` bytes
 * @param size  in bytes
 * @param err   filled on failure; may be NULL
 *
 * Memory   a few kilobytes.
 * Errors   INVALID_ARG for a path without a file name; EXISTS for a folder; IO, for example for a
 *          full disk; NOMEM; CANCELLED while another process writes the same path. On failure, a
 *          regular file is unchanged.
 * Source   docs/transactions.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_file_write(heft_ctx *ctx, const char *path,
                                                     const void *data, size_t size,
                                                     heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
