/* heft/checkpoint.h - a file, an index or a folder as one set of named tensors: open, look, read,
 * convert, verify. */
#ifndef HEFT_CHECKPOINT_H
#define HEFT_CHECKPOINT_H

#include <heft/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum heft_format {
    HEFT_FORMAT_AUTO, /* as the source; safetensors where there is no source */
    HEFT_FORMAT_SAFETENSORS,
    HEFT_FORMAT_TORCH,        /* PyTorch's zip, `.bin` */
    HEFT_FORMAT_TORCH_LEGACY, /* PyTorch before 1.6; read only */
    HEFT_FORMAT_TORCH_TAR,    /* PyTorch 0.1; read only */
    HEFT_FORMAT_OFFLOAD       /* Accelerate's offload folder: index.json, a file for each tensor */
} heft_format;

/** Return "safetensors", "bin", "legacy", "tar", "offload" or "auto". Never NULL. */
HEFT_API const char *heft_format_name(heft_format format);

typedef enum heft_map_mode {
    HEFT_MAP_READ_ONLY, /* a write raises SIGSEGV */
    HEFT_MAP_PRIVATE /* copy-on-write: a page that is written to becomes this process's own memory,
                           and the file stays as it is */
} heft_map_mode;

/** A checkpoint's metadata. May be read by many threads at once. */
typedef struct heft_checkpoint heft_checkpoint;

typedef struct heft_checkpoint_options {
    size_t struct_size;    /* set by HEFT_OPTIONS */
    const char *variant;   /* "fp16": model.fp16.safetensors; NULL for none */
    const char *subfolder; /* below the path; NULL for none */
    heft_format prefer;    /* which to take where a folder holds several; AUTO: safetensors first */
    bool trust_shards; /* an index that disagrees with its shards is a warning, not an error: what
                          it promises and they lack is not there, what it has in another shard is
                          taken from where it is, and of two tensors of one name the later file's
                          counts */
} heft_checkpoint_options;

/** One tensor as the checkpoint describes it. All pointers are lent by the checkpoint. */
typedef struct heft_tensor_info {
    const char *name;
    heft_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
    const char *file;  /* base name of the file that holds it */
    size_t file_index; /* into heft_checkpoint_file() */
    uint64_t offset; /* of its first byte in that file; HEFT_NO_OFFSET where it is not stored in one
                        plain run */
    uint64_t size_bytes; /* laid out row by row */
    size_t storage;      /* tensors with the same number share bytes */
} heft_tensor_info;

typedef struct heft_file_info {
    const char *name; /* base name */
    const char *path;
    heft_format format; /* OFFLOAD for every file that an offload folder's index names */
    uint64_t size_bytes;
    size_t tensors;
} heft_file_info;

/**
 * Open a checkpoint: a folder, one weight file or an index file. Reads metadata only.
 *
 * In a folder the first of these is taken: model[.V].safetensors, model.safetensors.index[.V].json,
 * pytorch_model[.V].bin, pytorch_model.bin.index[.V].json, Accelerate's index.json. An index and its
 * shards must agree both ways: a listed tensor that is not in its shard, or in two, is an error; one
 * that is in a shard but not listed is taken, with a warning. An offload folder's index must name
 * every file's dtype, shape and size as they are.
 *
 * @param ctx      borrowed; kept alive by the checkpoint
 * @param path     borrowed
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned checkpoint
 * @param err      filled on failure; may be NULL
 *
 * Memory   the names and shapes of all tensors, and one file descriptor a file.
 * Errors   NOT_FOUND for a missing path, a folder without weights and a missing shard; FORMAT for
 *          anything malformed (offset and item say where); REFUSED for an index that names a file
 *          outside its folder; UNSUPPORTED for contents that heft does not know; LIMIT; IO; NOMEM.
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
 * @param name     borrowed; stands for the file's path in infos and errors; NULL: "bytes"
 * @param storage  borrowed; the checkpoint takes a reference of its own, and so does every tensor that
 *                 points into it: the bytes must not change until all are gone.
 *                 heft_storage_wrap_const() makes one of the caller's memory, with a callback for that
 *                 moment.
 * @param options  borrowed; NULL for defaults. What chooses among files has no effect.
 * @param out      filled with an owned checkpoint
 * @param err      filled on failure; may be NULL
 *
 * Memory   the names and shapes of all tensors; no descriptor. heft_checkpoint_map() points into the
 *          storage without HEFT_TENSOR_WRITABLE; HEFT_MAP_PRIVATE copies to the heap.
 * Errors   as heft_checkpoint_open() for one file.
 * Source   docs/formats/.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_checkpoint_open_bytes(
    heft_ctx *ctx, const char *name, heft_storage *storage, const heft_checkpoint_options *options,
    heft_checkpoint **out, heft_error *err);

/** A file that only the caller knows how to read: in an archive, in a cache, behind a network. */
typedef struct heft_reader {
    size_t struct_size; /* set by HEFT_OPTIONS */
    const char *name;   /* stands for the path in infos and errors; copied; NULL: "reader" */
    uint64_t size;      /* bytes; must not change */
    /* Read at most `length` bytes from byte `offset` on into dst. Returns how many: at least 1 if
     * there are any, 0 if there are none, a negative errno if it failed. heft never asks for bytes
     * behind `size`. Called by many threads at once, and never while heft holds a lock. */
    int64_t (*read_at)(void *user, uint64_t offset, void *dst, size_t length);
    /* Return the address of all bytes, which stay there unchanged until release is called; the same
     * one whenever it is asked. NULL, or returning NULL: tensors are copied to the heap. Called by
     * many threads at once. */
    const void *(*map)(void *user);
    /* Called once when the checkpoint and every tensor that points into `map`'s bytes are gone, from
     * whichever thread drops the last; may be NULL. Not called if opening fails: the reader is the
     * caller's then, as before. */
    void (*release)(void *user);
    void *user;
} heft_reader;

/**
 * Open one weight file through a reader of the caller's. Reads metadata only.
 *
 * @param ctx      borrowed; kept alive by the checkpoint
 * @param reader   borrowed, copied; made with HEFT_OPTIONS. What it points to is taken if opening
 *                 succeeds.
 * @param options  borrowed; NULL for defaults. What chooses among files has no effect.
 * @param out      filled with an owned checkpoint
 * @param err      filled on failure; may be NULL
 *
 * Memory   the names and shapes of all tensors; no descriptor.
 * Errors   as heft_checkpoint_open() for one file; INVALID_ARG without read_at; IO with the offset
 *          and the errno if read_at fails, ends early or returns more than it was asked for, here
 *          and in every later read.
 * Source   docs/formats/.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_checkpoint_open_reader(
    heft_ctx *ctx, const heft_reader *reader, const heft_checkpoint_options *options,
    heft_checkpoint **out, heft_error *err);
/** Close a checkpoint; tensors that came from it stay. NULL is allowed. */
HEFT_API void heft_checkpoint_close(heft_checkpoint *ckpt);

/** Return the number of tensors. */
HEFT_API size_t heft_checkpoint_count(const heft_checkpoint *ckpt);
/** Return tensor i, in file order, or NULL if there is none; lent. */
HEFT_API const heft_tensor_info *heft_checkpoint_info(const heft_checkpoint *ckpt, size_t i);
/** Find a tensor by name: its number, or SIZE_MAX. */
HEFT_API size_t heft_checkpoint_find(const heft_checkpoint *ckpt, const char *name);
/** Return the number of weight files. */
HEFT_API size_t heft_checkpoint_file_count(const heft_checkpoint *ckpt);
/** Return file i in the order of names (of an offload folder: of its index), or NULL; lent. */
HEFT_API const heft_file_info *heft_checkpoint_file(const heft_checkpoint *ckpt, size_t i);
/** Return the folder that the checkpoint's files lie in; lent. NULL if it was opened from bytes or by
 * a reader. */
HEFT_API const char *heft_checkpoint_folder(const heft_checkpoint *ckpt);
/** Return the base name of the index file, or NULL if there is none; lent. */
HEFT_API const char *heft_checkpoint_index(const heft_checkpoint *ckpt);
/** Return metadata pair i (safetensors' __metadata__ of the first file): its key, and *value; NULL
 * past the end. */
HEFT_API const char *heft_checkpoint_metadata(const heft_checkpoint *ckpt, size_t i,
                                              const char **value);
/** Return the bytes of all tensors, each shared storage counted once. */
HEFT_API uint64_t heft_checkpoint_total_bytes(const heft_checkpoint *ckpt);
/** Return the path of skipped value i (something in a .bin that is no tensor), or NULL past the
 * end; lent. */
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
 * Memory   no heap for plain tensors; up to the storage's size for deflated ones.
 * Errors   INVALID_ARG if there is no such tensor or cap is too small; IO and FORMAT with the byte
 *          in the file. What is at dst is undefined after a failure.
 * Source   docs/formats/.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_checkpoint_read(const heft_checkpoint *ckpt, size_t i,
                                                          void *dst, uint64_t cap, heft_error *err);
/** A tensor, or a part of one, that is read into the caller's memory. */
typedef struct heft_read_request {
    size_t tensor;         /* its number */
    uint32_t rank;         /* of start and stop: the tensor's; not looked at if both are NULL */
    heft_dtype dtype;      /* cast to this one (heft_cast_known()); NONE: as stored */
    const uint64_t *start; /* [rank] first index of each dimension; NULL: 0 */
    const uint64_t *stop;  /* [rank] index behind the last; NULL: the end */
    void *dst;             /* filled with the slice, row by row; any alignment */
    uint64_t cap;          /* bytes at dst, at least those of the slice in its dtype */
} heft_read_request;

/**
 * Copy a part of a tensor into the caller's memory: row by row, little-endian, cast if asked for. Reads
 * only the runs of bytes that the slice needs, and gaps of at most 4 KiB between them. A deflated tensor is unpacked from its beginning up to the slice's end.
 *
 * @param ckpt     borrowed
 * @param request  borrowed
 * @param err      filled on failure; may be NULL
 *
 * Shape    [stop - start] of each dimension. Elements below a byte (float4, the 6-bit floats) count one by
 *          one, and a slice of them must begin and end between bytes in every row.
 * Memory   1 MiB for each thread at most, whatever the sizes; for a strided tensor in a deflated storage,
 *          that storage.
 * Errors   INVALID_ARG, with the dimension and both numbers, for a slice of another rank, one that
 *          leaves the tensor or starts behind its stop, one that splits a byte; for a cast that is not
 *          known and a cap that is too small: nothing is written. IO and FORMAT with the byte in the
 *          file, CANCELLED: what is at dst is undefined.
 * Source   docs/formats/.
 * Threads  reads large slices on the context's threads; progress is told on the caller's.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_checkpoint_read_slice(const heft_checkpoint *ckpt,
                                                                const heft_read_request *request,
                                                                heft_error *err);
/**
 * Read many tensors or parts of them at once: in the order of their files, on the context's threads.
 *
 * @param ckpt      borrowed
 * @param requests  borrowed; in any order. The same tensor may come more than once; memory that is filled
 *                  must not overlap.
 * @param count     of requests; 0 does nothing
 * @param err       filled on failure, its item names the tensor; may be NULL
 *
 * Memory   that of heft_checkpoint_read_slice(), and 300 bytes for each request. Strided tensors in
 *          deflated storages are read one by one.
 * Errors   as heft_checkpoint_read_slice(). Every request is checked before anything is read.
 * Source   docs/formats/.
 * Threads  as heft_checkpoint_read_slice().
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_checkpoint_read_many(const heft_checkpoint *ckpt,
                                                               const heft_read_request *requests,
                                                               size_t count, heft_error *err);
/**
 * Hand out one tensor without copying it where the file allows that: it points into a mapping of
 * the file, strides as they are. Else (deflated, big-endian, conjugated) it is copied to the heap.
 *
 * A file is mapped once for each mode, whole. Tensors that share bytes in the file get one storage in
 * each mode, so that a write to a private tensor is seen through every other private tensor of this
 * checkpoint that shows the same bytes, and through none in another mode or of another checkpoint.
 *
 * @param ckpt  borrowed
 * @param i     number of the tensor
 * @param mode  whether the mapping may be written; what is copied to the heap always may
 * @param out   filled with an owned tensor, which outlives the checkpoint
 * @param err   filled on failure; may be NULL
 *
 * Memory   no heap for the bytes of a mapped tensor. Private pages are not reserved: a file larger
 *          than the memory can be mapped (unless vm.overcommit_memory is 2), but a write that finds
 *          no memory gets the process killed. If somebody truncates the file, touching a mapping
 *          raises SIGBUS: use heft_checkpoint_read() where that can happen.
 * Errors   as heft_checkpoint_read; INVALID_ARG for an unknown mode; NOMEM if the file does not fit
 *          into the address space.
 * Source   docs/formats/.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_checkpoint_map(const heft_checkpoint *ckpt, size_t i,
                                                         heft_map_mode mode, heft_tensor **out,
                                                         heft_error *err);

/** A pair of text in the header of a safetensors file (`__metadata__`). UTF-8. */
typedef struct heft_metadata_pair {
    const char *key;
    const char *value; /* NULL: the key is taken out */
} heft_metadata_pair;

/* ---- convert: heft_source_convert() (heft/source.h) ------------------------------------------- */
typedef struct heft_convert_options {
    size_t struct_size;       /* set by HEFT_OPTIONS */
    heft_format format;       /* AUTO: as the source; safetensors if that is an offload folder */
    uint64_t max_shard_bytes; /* 0: 50 GB */
    heft_dtype dtype;         /* cast floating-point tensors while copying; NONE: as they are */
    const char *variant;      /* of the names written; NULL for none */
    bool force;               /* write into a folder that holds a checkpoint already */
    bool dry_run;             /* plan only */
    bool resume; /* keep finished shards if the work does not end, and take over those kept */
    bool natural_order; /* of names, as Transformers saves a model that it has loaded; false: of the
                           state dict, where it is known */
    const heft_metadata_pair *metadata; /* set on top of the source's; NULL for none */
    size_t metadata_count;
} heft_convert_options;

typedef struct heft_written_file {
    const char *name;
    uint64_t size_bytes;
    size_t tensors;
} heft_written_file;

/** What was written (or would be). Freed with heft_write_report_free(). */
typedef struct heft_write_report {
    const heft_written_file *files; /* weight files in order */
    size_t file_count;
    const char *index;   /* base name, NULL if there is no index */
    uint64_t total_size; /* bytes of tensor data */
    const char *const *warnings;
    size_t warning_count;
    uint64_t total_parameters; /* elements of the model's weights; 0: not known */
} heft_write_report;

/** Free a report. NULL is allowed. */
HEFT_API void heft_write_report_free(heft_write_report *report);

/* ---- verify: heft_source_verify() (heft/source.h) --------------------------------------------- */
typedef struct heft_problem {
    const char *kind;   /* "missing_file", "crc", "stale_file", ...: docs/commands/verify.md */
    const char *file;   /* "" if none */
    const char *tensor; /* "" if none */
    uint64_t offset;    /* or HEFT_NO_OFFSET */
    const char *message;
    bool fatal; /* a checkpoint with a fatal problem is not sound */
} heft_problem;

typedef struct heft_verify_report {
    bool ok;
    const heft_problem *problems;
    size_t problem_count;
    size_t file_count, tensor_count;
    uint64_t bytes_read;
    uint64_t total_bytes; /* of the tensors in the files that can be read, shared storages once */
} heft_verify_report;

typedef struct heft_verify_options {
    size_t struct_size;         /* set by HEFT_OPTIONS */
    bool deep;                  /* read every byte: CRC, NaN and infinities */
    const char *manifest;       /* compare with this file; NULL for none */
    const char *write_manifest; /* write one; NULL for none */
} heft_verify_options;

/** Free a report. NULL is allowed. */
HEFT_API void heft_verify_report_free(heft_verify_report *report);

#ifdef __cplusplus
}
#endif
#endif
