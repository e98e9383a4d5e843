/* heft/checkpoint.h - a checkpoint: a weight file, or a folder of weight files, as one set of named
 * tensors. Open it, list and read its tensors; options and reports for converting, verifying and
 * comparing. */
#ifndef HEFT_CHECKPOINT_H
#define HEFT_CHECKPOINT_H

#include <heft/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum heft_format {
    HEFT_FORMAT_AUTO, /* in options: the default that is documented there */
    HEFT_FORMAT_SAFETENSORS,
    HEFT_FORMAT_TORCH,        /* PyTorch's zip file: `.bin`, `.pt`, `.pth` */
    HEFT_FORMAT_TORCH_LEGACY, /* PyTorch before 1.6; read-only */
    HEFT_FORMAT_TORCH_TAR,    /* PyTorch 0.1; read-only */
    HEFT_FORMAT_OFFLOAD       /* Accelerate's offload folder: index.json and one file per tensor */
} heft_format;

/** Return "safetensors", "bin", "legacy", "tar", "offload" or "auto". Never NULL. */
HEFT_API const char *heft_format_name(heft_format format);

/** How a file is mapped. A tensor whose address would not be a multiple of the size of its elements is
 * copied to the heap instead, because C does not allow its elements to be read there, and some
 * machines and libraries do not either. The modes with UNALIGNED are for callers that copy the bytes,
 * or read elements at any address: they map such tensors as well. */
typedef enum heft_map_mode {
    HEFT_MAP_READ_ONLY, /* a write raises SIGSEGV */
    HEFT_MAP_PRIVATE,   /* copy-on-write: writes stay in this process, the file does not change */
    HEFT_MAP_READ_ONLY_UNALIGNED,
    HEFT_MAP_PRIVATE_UNALIGNED
} heft_map_mode;

/** An open checkpoint: the names, dtypes and shapes of its tensors, and where their bytes are. Any
 * number of threads may use it at once. */
typedef struct heft_checkpoint heft_checkpoint;

typedef struct heft_checkpoint_options {
    size_t struct_size;    /* set by HEFT_OPTIONS */
    const char *variant;   /* "fp16" selects model.fp16.safetensors; NULL for none */
    const char *subfolder; /* relative to the path; NULL for none */
    /* The only format to read, as use_safetensors in Transformers: NOT_FOUND if there is no checkpoint
     * of it; TORCH stands for all of PyTorch's. AUTO: any, safetensors first. */
    heft_format prefer;
    /* Report an index that disagrees with its shards as a warning, not as an error. The shards
     * then take precedence: a listed tensor that no shard contains does not exist, and a tensor
     * that is in another shard than the index says is read from there. */
    bool trust_shards;
    /* Of one file of PyTorch's, keep the whole value for heft_checkpoint_value(), and have every tensor
     * of it, not only those of the state dict. A tensor's name is then its path from the top
     * ("optimizer.state.0.exp_avg"), or its number ("#3") where that is no name or taken. No effect on
     * other formats, on checkpoints of several files and on heft_source_open(). */
    bool whole_value;
} heft_checkpoint_options;

/** One tensor of a checkpoint. All pointers are lent by the checkpoint. */
typedef struct heft_tensor_info {
    const char *name;
    heft_dtype dtype;
    uint32_t rank;
    const uint64_t *shape; /* [rank], PyTorch's order */
    const char *file;      /* base name of the file that holds it */
    size_t file_index;     /* that file's number: heft_checkpoint_file() */
    /* Position of its first byte in that file; HEFT_NO_OFFSET if it is not stored contiguously. */
    uint64_t offset;
    uint64_t size_bytes; /* of its elements, laid out row by row */
    size_t storage;      /* number of its storage; tensors on the same storage share bytes */
} heft_tensor_info;

typedef struct heft_file_info {
    const char *name; /* base name */
    const char *path;
    heft_format format; /* OFFLOAD for every file that an offload folder's index names */
    uint64_t size_bytes;
    size_t tensors; /* number of tensors in the file */
} heft_file_info;

/**
 * Open a checkpoint: a folder, one weight file, an index file, or, if there is no such path, the
 * name of a model in the hub cache (`org/name[@revision]`). Reads metadata only, and downloads
 * nothing.
 *
 * In a folder, the first of these that exists is opened (V is the variant): model[.V].safetensors,
 * model.safetensors.index[.V].json, pytorch_model[.V].bin, pytorch_model.bin.index[.V].json,
 * Accelerate's index.json. With `prefer`, only those of one format are. An index that is more than 2
 * seconds newer than the single file of its format is opened instead of that file, which is then
 * stale. If there is none of them: the file that config.json's transformers_weights names; the same
 * names for diffusers and PEFT (diffusion_pytorch_model, adapter_model); one index of another name;
 * shards without an index, if they are complete; one other weight file; each of the last three with
 * a warning (docs/formats/folders.md).
 *
 * An index must agree with its shards: a listed tensor that its shard does not contain is an error. Of
 * a name in several shards, the tensor that the index lists is used, with a warning; where it lists none
 * of them, or there is no index, copies with other values are an error. A tensor that is in a shard but
 * not in the index is used, with a warning. The index of an offload folder must give the actual dtype, shape and size of each
 * tensor.
 *
 * @param ctx      borrowed; kept alive by the checkpoint
 * @param path     borrowed
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned checkpoint
 * @param err      filled on failure; may be NULL
 *
 * Memory   the names and shapes of all tensors. One file descriptor per file; none between reads
 *          for a checkpoint of more than 64 files.
 * Errors   NOT_FOUND for a missing path, a folder without weights, and a missing shard; FORMAT for
 *          malformed content, with offset and item, and for an index that disagrees with its shards
 *          (unless trust_shards is set); REFUSED for an index that names a file outside its folder,
 *          and for a pickle with a forbidden opcode, or a name that occurs only in attacks;
 *          UNSUPPORTED for a format or content that heft cannot read; LIMIT; IO; NOMEM.
 * Source   docs/formats/.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_checkpoint_open(heft_ctx *ctx, const char *path,
                                                          const heft_checkpoint_options *options,
                                                          heft_checkpoint **out, heft_error *err);
/**
 * Open one weight file whose bytes are in memory: safetensors or any of PyTorch's formats. Reads
 * metadata only.
 *
 * @param ctx      borrowed; kept alive by the checkpoint
 * @param name     borrowed; used as the file's path in infos and errors; NULL: "bytes"
 * @param storage  borrowed; the checkpoint and every tensor that points into the storage hold
 *                 references of their own. The bytes must not change before the last reference is
 *                 dropped. heft_storage_wrap_const() makes a storage from the caller's memory and
 *                 calls a callback when that happens.
 * @param options  borrowed; NULL for defaults. Options that select among files have no effect.
 * @param out      filled with an owned checkpoint
 * @param err      filled on failure; may be NULL
 *
 * Memory   the names and shapes of all tensors; no file descriptor. Tensors returned by
 *          heft_checkpoint_map() point into the storage and lack HEFT_TENSOR_WRITABLE, or with
 *          HEFT_MAP_PRIVATE are copies on the heap.
 * Errors   as for heft_checkpoint_open() of one file.
 * Source   docs/formats/.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_checkpoint_open_bytes(
    heft_ctx *ctx, const char *name, heft_storage *storage, const heft_checkpoint_options *options,
    heft_checkpoint **out, heft_error *err);

/** A weight file that is read through the caller's functions: in an archive, in a cache, on a
 * network, ... */
typedef struct heft_reader {
    size_t struct_size; /* set by HEFT_OPTIONS */
    const char *name;   /* used as the path in infos and errors; copied; NULL: "reader" */
    uint64_t size;      /* bytes; must not change */
    /* Read up to `length` bytes, starting at byte `offset`, into dst. Returns the number of bytes
     * read, which may be less than `length` but is 0 only at the end of the file; on failure, a
     * negative errno value. heft never requests bytes beyond `size`. Called from many threads at
     * once, and never while heft holds a lock. */
    int64_t (*read_at)(void *user, uint64_t offset, void *dst, size_t length);
    /* Return the address of the file's bytes in memory: the same address in every call. The bytes
     * must stay there unchanged until release is called. If `map` is NULL or returns NULL, tensors
     * are copied to the heap. Called from many threads at once. */
    const void *(*map)(void *user);
    /* Called once, after the checkpoint and every tensor that points into the bytes of `map` have
     * been freed, on the thread that freed the last of them; may be NULL. Not called if opening
     * fails. */
    void (*release)(void *user);
    void *user; /* passed to the functions */
} heft_reader;

/**
 * Open one weight file through the caller's reader. Reads metadata only.
 *
 * @param ctx      borrowed; kept alive by the checkpoint
 * @param reader   borrowed; the structure is copied. On success, heft owns `user` until it calls
 *                 `release`; on failure, `user` stays the caller's.
 * @param options  borrowed; NULL for defaults. Options that select among files have no effect.
 * @param out      filled with an owned checkpoint
 * @param err      filled on failure; may be NULL
 *
 * Memory   the names and shapes of all tensors; no file descriptor.
 * Errors   as for heft_checkpoint_open() of one file; INVALID_ARG if read_at is NULL. If read_at
 *          fails, returns 0 before `size`, or returns more than was requested, this call or the
 *          later read fails with IO, with the offset and errno.
 * Source   docs/formats/.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_checkpoint_open_reader(
    heft_ctx *ctx, const heft_reader *reader, const heft_checkpoint_options *options,
    heft_checkpoint **out, heft_error *err);
/** Close a checkpoint. Tensors created from it stay valid. NULL is allowed. */
HEFT_API void heft_checkpoint_close(heft_checkpoint *ckpt);

/** Return the number of tensors. */
HEFT_API size_t heft_checkpoint_count(const heft_checkpoint *ckpt);
/** Return tensor i, in file order, or NULL past the end; lent. */
HEFT_API const heft_tensor_info *heft_checkpoint_info(const heft_checkpoint *ckpt, size_t i);
/** Find a tensor by name. Returns its number, or SIZE_MAX if there is none. */
HEFT_API size_t heft_checkpoint_find(const heft_checkpoint *ckpt, const char *name);
/** Return the number of weight files. */
HEFT_API size_t heft_checkpoint_file_count(const heft_checkpoint *ckpt);
/** Return file i in the order of file names (for an offload folder, in the order of its index), or
 * NULL past the end; lent. */
HEFT_API const heft_file_info *heft_checkpoint_file(const heft_checkpoint *ckpt, size_t i);
/** Return the folder that contains the checkpoint's files; lent. NULL if the checkpoint was opened
 * from bytes or through a reader. */
HEFT_API const char *heft_checkpoint_folder(const heft_checkpoint *ckpt);
/** Return the base name of the index file, or NULL if there is none; lent. */
HEFT_API const char *heft_checkpoint_index(const heft_checkpoint *ckpt);
/** Return the key of metadata pair i, and set *value; both are lent. NULL past the end. The pairs are
 * those in `__metadata__` of all safetensors files, in the order of the files. If two files
 * disagree about a key, the first file's pair is listed; if one file has a key twice, the last. */
HEFT_API const char *heft_checkpoint_metadata(const heft_checkpoint *ckpt, size_t i,
                                              const char **value);
/** Return the path of module i of those whose version a `.bin` notes ("" is the root), and set *version; lent.
 * NULL past the end. They are in the order of the files: state dicts of torch have them in `_metadata`, and
 * modules read by them what older versions of their class saved. A path may occur in several files. */
HEFT_API const char *heft_checkpoint_module(const heft_checkpoint *ckpt, size_t i,
                                            uint32_t *version);
/** Return the size of all tensors in bytes, counting each shared storage once. */
HEFT_API uint64_t heft_checkpoint_total_bytes(const heft_checkpoint *ckpt);
/** Return the key path of skipped value i, a value in a `.bin` that is not a tensor that heft reads,
 * or NULL past the end; lent. */
HEFT_API const char *heft_checkpoint_skipped(const heft_checkpoint *ckpt, size_t i);
/** Return warning line i, or NULL past the end; lent. */
HEFT_API const char *heft_checkpoint_warning(const heft_checkpoint *ckpt, size_t i);

/**
 * Copy one tensor into the caller's memory: row by row, little-endian.
 *
 * @param ckpt  borrowed
 * @param i     number of the tensor
 * @param dst   filled; any alignment
 * @param cap   bytes at dst, at least heft_tensor_info.size_bytes
 * @param err   filled on failure; may be NULL
 *
 * Shape    row-major in the order of heft_tensor_info.shape; rank 0 is one element.
 * Memory   one small block for a contiguous tensor, at most 512 KiB for any other; for a strided
 *          tensor in a deflated storage, the size of that storage.
 * Errors   INVALID_ARG if there is no such tensor or cap is too small; IO and FORMAT with the byte
 *          offset in the file. After a failure, the content of dst is undefined.
 * Source   docs/formats/.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_checkpoint_read(const heft_checkpoint *ckpt, size_t i,
                                                          void *dst, uint64_t cap, heft_error *err);
/** A request to read a tensor, or a slice of one, into the caller's memory. */
typedef struct heft_read_request {
    size_t tensor;         /* its number */
    uint32_t rank;         /* of start and stop: equal to the tensor's; ignored if both are NULL */
    heft_dtype dtype;      /* cast to this dtype (heft_cast_known()); NONE: as stored */
    const uint64_t *start; /* [rank] first index of each dimension; NULL: 0 */
    const uint64_t *stop;  /* [rank] one past the last index; NULL: the end */
    void *dst;             /* filled with the slice, row by row; any alignment */
    uint64_t cap;          /* bytes at dst, at least the size of the slice in its dtype */
} heft_read_request;

/**
 * Copy a slice of a tensor into the caller's memory: row by row, little-endian, with an optional
 * cast. Reads only the byte ranges that the slice needs, and gaps of at most 4 KiB between them. A
 * deflated tensor is decompressed from its beginning to the end of the slice.
 *
 * @param ckpt     borrowed
 * @param request  borrowed
 * @param err      filled on failure; may be NULL
 *
 * Shape    stop - start in each dimension. Sub-byte elements (float4, the 6-bit floats) are counted
 *          individually, and a slice of them must begin and end on a byte boundary in every row.
 * Memory   at most 1 MiB per thread, regardless of sizes; for a strided tensor in a deflated
 *          storage, the size of that storage.
 * Errors   INVALID_ARG, with the dimension and both numbers, for a slice that has the wrong rank,
 *          is out of range, has start beyond stop, or does not begin and end on byte boundaries;
 *          INVALID_ARG for a cast that heft_cast_known() rejects or a cap that is too small. In
 *          these cases nothing is written. IO and FORMAT with the byte offset in the file;
 *          CANCELLED. After these, the content of dst is undefined.
 * Source   docs/formats/.
 * Threads  reads large slices on the context's threads; calls the progress callback on the
 *          caller's.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_checkpoint_read_slice(const heft_checkpoint *ckpt,
                                                                const heft_read_request *request,
                                                                heft_error *err);
/**
 * Read many tensors or slices in one call, on the context's threads, in the order in which they are
 * stored.
 *
 * @param ckpt      borrowed
 * @param requests  borrowed; in any order. A tensor may occur more than once; destinations must not
 *                  overlap.
 * @param count     number of requests; 0 does nothing
 * @param err       filled on failure, with the tensor as its item; may be NULL
 *
 * Memory   as for heft_checkpoint_read_slice(), plus 300 bytes per request. Strided tensors in
 *          deflated storages are read one at a time.
 * Errors   as for heft_checkpoint_read_slice(). All requests are checked before anything is read.
 *          After a later error, the content of all destinations is undefined.
 * Source   docs/formats/.
 * Threads  as for heft_checkpoint_read_slice().
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_checkpoint_read_many(const heft_checkpoint *ckpt,
                                                               const heft_read_request *requests,
                                                               size_t count, heft_error *err);
/**
 * Create a tensor that points into a mapping of its file, with the strides that it has there. A
 * tensor that cannot be mapped (deflated, big-endian, conjugated), or whose elements would not be
 * aligned, is copied to the heap instead.
 *
 * Each file is mapped as a whole, once per mode. Tensors that share bytes in the file share one
 * storage per mode: a write to a private tensor is visible in every other private tensor of this
 * checkpoint that covers the same bytes, but not in tensors of another mode or checkpoint. Tensors
 * that are not aligned and share bytes in the file, and private ones of a checkpoint in memory, share
 * one copy of that storage per mode, which the checkpoint keeps until it is closed, and which is
 * writable only with HEFT_MAP_PRIVATE.
 *
 * @param ckpt  borrowed
 * @param i     number of the tensor
 * @param mode  whether the mapping is writable, and whether elements may have any address; a copy on
 *              the heap is writable and aligned as by malloc()
 * @param out   filled with an owned tensor, which may outlive the checkpoint
 * @param err   filled on failure; may be NULL
 *
 * Memory   no heap for the bytes of a mapped tensor. Private pages are not reserved: a file larger
 *          than memory can be mapped (unless vm.overcommit_memory is 2), but if a write finds no
 *          free memory, the kernel kills the process. If the file is truncated, an access to the
 *          mapping raises SIGBUS: use heft_checkpoint_read() where that can happen.
 * Errors   as for heft_checkpoint_read(); INVALID_ARG for an unknown mode; NOMEM if the file does
 *          not fit into the address space.
 * Source   docs/formats/.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_checkpoint_map(const heft_checkpoint *ckpt, size_t i,
                                                         heft_map_mode mode, heft_tensor **out,
                                                         heft_error *err);

/** A key and a value in `__metadata__` of a safetensors file. UTF-8. */
typedef struct heft_metadata_pair {
    const char *key;
    const char *value; /* NULL: remove the key */
} heft_metadata_pair;

struct heft_module_dtype; /* heft/place.h */

/* ---- convert: heft_source_convert() (heft/source.h) ------------------------------------------- */
typedef struct heft_convert_options {
    size_t struct_size;       /* set by HEFT_OPTIONS */
    heft_format format;       /* AUTO: the source's; safetensors if that is an offload folder */
    uint64_t max_shard_bytes; /* maximum bytes of tensors in a shard; 0: 50 GB */
    heft_dtype dtype;         /* cast floating-point tensors to this dtype; NONE: no cast */
    const char *variant;      /* in the names of the files written; NULL for none */
    bool force;               /* replace a checkpoint that the destination already holds */
    bool dry_run;             /* report what would be written, or why it cannot be; write nothing */
    bool resume; /* keep finished shards if interrupted, and reuse those kept earlier */
    /* true: natural order of names, in which Transformers saves a loaded model; false: order of the
     * state dict if the model is known, otherwise as heft_source_convert() says. */
    bool natural_order;
    const heft_metadata_pair *metadata; /* added to the source's metadata; NULL for none */
    size_t metadata_count;
    bool wait; /* if another process writes to the destination, wait until it is done */
    /* Write even if the destination contains side files (config.json, tokenizer files, ...) that
     * the new checkpoint does not replace. They stay, as part of the new checkpoint. */
    bool keep_side_files;
    /* [dtype_count] Exceptions to `dtype`, as in heft_load_options: floating-point tensors of these
     * modules are cast to these dtypes, also with dtype NONE. Parts of quantized weights are not. */
    const struct heft_module_dtype *dtypes;
    size_t dtype_count;
} heft_convert_options;

typedef struct heft_written_file {
    const char *name;
    uint64_t size_bytes;
    size_t tensors;
} heft_written_file;

/** What was written or, with dry_run, what would be. Free it with heft_write_report_free(). */
typedef struct heft_write_report {
    const heft_written_file *files; /* the weight files, in order */
    size_t file_count;
    const char *index;   /* base name, or NULL if there is no index */
    uint64_t total_size; /* bytes of tensor data */
    const char *const *warnings;
    size_t warning_count;
    uint64_t total_parameters; /* elements of the model's weights; 0: unknown */
} heft_write_report;

/** Free a report. NULL is allowed. */
HEFT_API void heft_write_report_free(heft_write_report *report);

/* ---- verify: heft_source_verify() (heft/source.h) --------------------------------------------- */
typedef struct heft_problem {
    const char *kind;   /* "missing_file", "crc", "stale_file", ...: docs/commands/verify.md */
    const char *file;   /* "" if none */
    const char *tensor; /* "" if none */
    uint64_t offset;    /* in the file, or HEFT_NO_OFFSET */
    const char *message;
    bool fatal; /* true: the checkpoint is not valid; false: only a note */
} heft_problem;

typedef struct heft_verify_report {
    bool ok; /* no problem is fatal */
    const heft_problem *problems;
    size_t problem_count;
    size_t file_count, tensor_count;
    uint64_t bytes_read;  /* of tensors, with `deep`; names of one view count once */
    uint64_t total_bytes; /* of the tensors in readable files, shared storages once */
} heft_verify_report;

typedef struct heft_verify_options {
    size_t struct_size;         /* set by HEFT_OPTIONS */
    bool deep;                  /* read every byte: check CRCs, find NaN and infinities */
    const char *manifest;       /* path of a manifest to compare with; NULL for none */
    const char *write_manifest; /* path of a manifest to write; NULL for none */
} heft_verify_options;

/** Free a report. NULL is allowed. */
HEFT_API void heft_verify_report_free(heft_verify_report *report);

/* ---- diff: heft_source_diff() (heft/source.h) ------------------------------------------------- */
typedef struct heft_diff_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    double tolerance;   /* values that differ by at most this are equal; finite, not negative */
} heft_diff_options;

/** A tensor that two checkpoints have and that differs in them. */
typedef struct heft_change {
    const char *name;
    /* What differs, joined with "; ": "dtype float32 -> bfloat16", "shape [2, 3] -> [3, 2]",
     * "values" */
    const char *what;
    /* Whether values were compared as numbers: shapes are equal and both dtypes can be converted to
     * float64 or complex128. Otherwise the next three are NAN. */
    bool measured;
    double max_abs; /* largest |a - b|; NAN if NaN meets a number; infinity if infinity does */
    double
        max_rel; /* largest |a - b| / max(|a|, |b|), 0 where both are 0; NAN, infinity: as max_abs */
    double cosine; /* of the angle between the tensors as vectors; NAN if it is undefined */
} heft_change;

/** How two checkpoints differ. Names are in natural order. Free it with heft_diff_report_free(). */
typedef struct heft_diff_report {
    bool equal;               /* nothing is added, removed or changed */
    const char *const *added; /* [added_count] names in B only */
    size_t added_count;
    const char *const *removed; /* [removed_count] names in A only */
    size_t removed_count;
    const heft_change *changed;
    size_t changed_count;
    size_t common;       /* names in both */
    uint64_t bytes_read; /* of tensors of both */
} heft_diff_report;

/** Free a report. NULL is allowed. */
HEFT_API void heft_diff_report_free(heft_diff_report *report);

#ifdef __cplusplus
}
#endif
#endif
