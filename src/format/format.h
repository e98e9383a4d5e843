/* format - the door of the room.
 *
 * What it does: one file format per file. Reading turns a source into a heft__file: named tensors
 * that lie on storages that lie in the file. Writing lays given tensors out and asks for their
 * bytes piece by piece. It knows one file at a time and nothing of folders, models or what a
 * parameter is for.
 * May open the door of: base, io, json, tensor.
 * Rules: every byte is hostile. Opening reads metadata only; nothing is allocated by a claim that
 * the file's own size does not bear out. A pickle is interpreted over a fixed list of names and
 * never calls anything. Errors carry path, item and offset. A format is one file here and one line
 * in format_registry.c. */
#ifndef HEFT__FORMAT_FORMAT_H
#define HEFT__FORMAT_FORMAT_H

#include <heft/checkpoint.h>

#include "io/io.h"
#include "tensor/tensor.h"
#include "json/json.h"

/* ---- what a file holds ----------------------------------------------------------------------- */
/* A run of bytes in the file on which tensors lie. Safetensors: one per tensor. */
typedef struct heft__file_storage {
    uint64_t offset;       /* first stored byte in the file */
    uint64_t stored_bytes; /* in the file; differs from `bytes` where deflated */
    uint64_t bytes;        /* as used */
    const char *record;    /* its name in the file ("data/0"), NULL where it has none */
    bool deflated;
    bool has_crc; /* crc is of the `bytes`; a CRC of 0 counts as none */
    uint32_t crc;
} heft__file_storage;

typedef struct heft__file_tensor {
    const char *name; /* UTF-8, NUL-terminated, holds no NUL */
    heft_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;  /* [rank] elements; F4 counts values as safetensors does */
    const int64_t *strides; /* [rank] elements, >= 0; NULL: row by row without gaps */
    size_t storage;         /* index into storages */
    uint64_t start;         /* byte in the storage at which element 0 lies */
    uint64_t size_bytes;    /* laid out row by row */
    uint64_t
        item_offset; /* byte in the file (in data.pkl for pickles) that describes it, for errors */
    bool conj, neg;  /* the bytes are unconjugated, unnegated: reading applies it */
} heft__file_tensor;

typedef struct heft__text_pair {
    const char *key, *value;
} heft__text_pair;

typedef struct heft__file {
    heft__input *source;
    heft_format format;
    heft__arena arena; /* all below lives in it */
    heft__file_storage *storages;
    size_t storage_count;
    heft__file_tensor
        *tensors; /* in the file's own order: safetensors by offset, pickles by first occurrence */
    size_t tensor_count;
    heft__text_pair *metadata; /* safetensors' __metadata__ */
    size_t metadata_count;
    const char **skipped; /* paths of values that are no tensors ("optimizer.param_groups.0.lr") */
    size_t skipped_count;
    bool big_endian; /* elements are stored the other way round */
    heft__warnings warnings;
} heft__file;

/* Sniff the content and read the metadata. Takes a reference of its own on the source. Path, item
 * and offset of an error are filled. An unknown content is UNSUPPORTED and says what the first
 * bytes look like. */
heft_status heft__file_open(heft_ctx *ctx, heft__input *source, heft__file **out, heft_error *err);
void heft__file_close(heft_ctx *ctx, heft__file *file); /* NULL allowed */

/* One parser per format; fills a zeroed heft__file whose arena and source are set. */
typedef heft_status (*heft__file_parse_fn)(heft_ctx *ctx, heft__file *file, heft_error *err);
heft_status heft__safetensors_parse(heft_ctx *ctx, heft__file *file, heft_error *err);
heft_status heft__torch_zip_parse(heft_ctx *ctx, heft__file *file, heft_error *err);
heft_status heft__torch_legacy_parse(heft_ctx *ctx, heft__file *file, heft_error *err);
heft_status heft__torch_tar_parse(heft_ctx *ctx, heft__file *file, heft_error *err);

/* ---- reading a tensor's bytes: row by row, little-endian, conj and neg applied, in pieces ---- */
typedef struct heft__tensor_reader heft__tensor_reader;
/* Borrows file and tensor. Deflated and oddly strided storages may take heap up to the storage's
 * size. */
heft_status heft__tensor_reader_new(heft_ctx *ctx, const heft__file *file,
                                    const heft__file_tensor *tensor, heft__tensor_reader **out,
                                    heft_error *err);
/* Read the next piece: *length <= cap bytes, whole elements, 0 only at the end. cap holds at least
 * one element. */
heft_status heft__tensor_reader_next(heft__tensor_reader *reader, void *dst, size_t cap,
                                     size_t *length, heft_error *err);
/* Read exactly the next `length` bytes, a number of whole elements. FORMAT if the tensor has fewer
 * left. */
heft_status heft__tensor_reader_fill(heft__tensor_reader *reader, void *dst, size_t length,
                                     heft_error *err);
void heft__tensor_reader_free(heft__tensor_reader *reader);
/* Whether the tensor's bytes stand in the file just as they are used (and so can be mapped);
 * *offset is where. */
bool heft__tensor_is_plain(const heft__file *file, const heft__file_tensor *tensor,
                           uint64_t *offset);
/* The same but with strides: the storage can be mapped and the strides used as they are. */
bool heft__tensor_is_mappable(const heft__file *file, const heft__file_tensor *tensor);
/* Read a storage whole in pieces through `scratch` and compare its CRC; *checked is false where the
 * file has none. */
heft_status heft__storage_check_crc(heft_ctx *ctx, const heft__file *file, size_t storage,
                                    void *scratch, size_t scratch_bytes, bool *checked, bool *equal,
                                    uint32_t *found, heft_error *err);

/* ---- writing --------------------------------------------------------------------------------- */
/* What a file is to hold, in state-dict order. Tensors with the same `storage` share one run of
 * bytes (torch only; safetensors takes one name per storage). */
typedef struct heft__out_tensor {
    const char *name;
    heft_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
    uint64_t size_bytes;
    size_t storage; /* any number; equal numbers are one storage */
    void *source;   /* handed to the read callback */
} heft__out_tensor;

/* Fill dst with `length` bytes of the tensor from byte `first` on; called in rising order of bytes,
 * tensor after tensor. */
typedef heft_status (*heft__out_read_fn)(void *user, const heft__out_tensor *tensor, uint64_t first,
                                         void *dst, size_t length, heft_error *err);

/* Size of the file that would be written. */
heft_status heft__safetensors_measure(heft_ctx *ctx, const heft__out_tensor *tensors, size_t count,
                                      const heft__text_pair *metadata, size_t metadata_count,
                                      uint64_t *bytes, heft_error *err);
/* Write one file through the open file of a folder writer. `scratch` is the staging buffer.
 * Byte-identical to the reference's writer for the same tensors. INVALID_ARG for dtypes that it
 * cannot hold, a tensor called __metadata__, a name twice, two names on one storage. */
heft_status heft__safetensors_write(heft_ctx *ctx, heft__folder_writer *folder,
                                    const heft__out_tensor *tensors, size_t count,
                                    const heft__text_pair *metadata, size_t metadata_count,
                                    heft__out_read_fn read, void *user, void *scratch,
                                    size_t scratch_bytes, heft_error *err);
/* A PyTorch zip: records data.pkl, .format_version, .storage_alignment, byteorder, data/N, version;
 * 64-byte alignment, data descriptors, zip64 where needed; pickle protocol 2 of an OrderedDict with
 * `_metadata` (module path -> version 1) when modules are given, else of a plain dict. `stem` is
 * the prefix of the record names. Data records in the order of first use. */
typedef struct heft__torch_module {
    const char *path; /* "" for the root */
} heft__torch_module;
heft_status heft__torch_zip_measure(heft_ctx *ctx, const char *stem,
                                    const heft__out_tensor *tensors, size_t count,
                                    const heft__torch_module *modules, size_t module_count,
                                    uint64_t *bytes, heft_error *err);
heft_status heft__torch_zip_write(heft_ctx *ctx, heft__folder_writer *folder, const char *stem,
                                  const heft__out_tensor *tensors, size_t count,
                                  const heft__torch_module *modules, size_t module_count,
                                  heft__out_read_fn read, void *user, void *scratch,
                                  size_t scratch_bytes, heft_error *err);

/* ---- Accelerate's offload folder: index.json, NAME.dat, tensors of safetensors files ---------- */
typedef struct heft__offload_entry {
    const char *name;
    const char *file;   /* absolute path of a safetensors file; NULL: NAME.dat beside the index */
    const char *weight; /* the tensor's name in that file; NULL for a .dat */
    heft_dtype dtype;   /* NONE: not said, which only an entry with a file may do */
    uint32_t rank;
    const uint64_t *shape; /* NULL: not said, likewise */
    uint64_t size_bytes;   /* of both; 0 where one is not said */
    uint64_t offset;       /* of the key in the index */
} heft__offload_entry;

typedef struct heft__offload_index {
    heft__arena arena;
    heft__offload_entry *entries; /* in the index's order: that of the state dict */
    size_t count;
} heft__offload_index;

/* FORMAT with offset for malformed JSON, a key or field twice, a field that is missing or of another
 * kind, an unknown dtype, a shape over 2^64 bytes, no entry at all; REFUSED for a name that leads out
 * of the folder and for a path that is not absolute. */
heft_status heft__offload_index_parse(heft_ctx *ctx, const void *bytes, size_t length,
                                      heft__offload_index *out, heft_error *err);
heft_status heft__offload_index_read(heft_ctx *ctx, const char *path, heft__offload_index *out,
                                     heft_error *err);
void heft__offload_index_fini(heft__offload_index *index);
/* Whether a text that begins like this is such an index: by the fields of its first entry. */
bool heft__offload_index_sniff(const void *head, size_t length);
/* As json.dump(index, f, indent=2) writes it: in this order, ASCII only, no final newline. */
void heft__offload_index_write(heft__buffer *out, const heft__offload_entry *entries, size_t count);

bool heft__offload_holds(heft_dtype dtype);            /* whether a .dat can have it */
uint64_t heft__offload_dat_bytes(uint64_t size_bytes); /* of the file */
/* INVALID_ARG for a name that cannot be a file's and a dtype that a .dat cannot have. */
heft_status heft__offload_check_writable(const char *name, heft_dtype dtype, heft_error *err);

typedef struct heft__offload_dat { /* what a .dat's heft__file points to: the caller's, as it has no
                                      metadata to keep */
    heft__file_storage storage;
    heft__file_tensor tensor;
} heft__offload_dat;

/* Borrows the entry and *place, which must outlive the file. FORMAT if the size is another. */
heft_status heft__offload_dat_open(heft_ctx *ctx, heft__input *source,
                                   const heft__offload_entry *entry, heft__offload_dat *place,
                                   heft__file **out, heft_error *err);
/* Leave only these tensors in an open safetensors file, in this order, under the index's names, which
 * are borrowed; a storage's `record` is the name in the file. FORMAT, blamed on the index, for what is
 * not there or has another dtype or shape. */
heft_status heft__offload_select(heft_ctx *ctx, heft__file *file, const char *index_path,
                                 const heft__offload_entry *const *entries, size_t count,
                                 heft_error *err);
/* The bytes of NAME.dat, through the open file of a folder writer. */
heft_status heft__offload_dat_write(heft__folder_writer *folder, const heft__out_tensor *tensor,
                                    heft__out_read_fn read, void *user, void *scratch,
                                    size_t scratch_bytes, heft_error *err);

/* CRC-32 as zip uses it, continued from `crc` (0 at first); as fast as the machine can. */
uint32_t heft__crc32(uint32_t crc, const void *bytes, size_t length);

/* ---- shard index: *.index.json --------------------------------------------------------------- */
typedef struct heft__shard_entry {
    const char *name; /* tensor */
    size_t file;      /* index into files */
    uint64_t offset;  /* of the key in the index */
} heft__shard_entry;

typedef struct heft__shard_index {
    heft__arena arena;
    const char **files; /* distinct, in byte order */
    size_t file_count;
    heft__shard_entry *entries; /* in the index's order */
    size_t entry_count;
    const heft__json_value *metadata; /* object or NULL */
} heft__shard_index;

/* FORMAT with offset for malformed JSON, a missing or empty weight_map, keys twice, a value that is
 * no string; REFUSED for a file name that leaves the folder (absolute, "..", a slash, a NUL). */
heft_status heft__shard_index_parse(heft_ctx *ctx, const void *bytes, size_t length,
                                    heft__shard_index *out, heft_error *err);
heft_status heft__shard_index_read(heft_ctx *ctx, const char *path, heft__shard_index *out,
                                   heft_error *err);
void heft__shard_index_fini(heft__shard_index *index);
/* Text of an index as the reference writes it: sorted keys, two spaces, one final newline. metadata
 * is an object. */
void heft__shard_index_write(heft__buffer *out, const heft__json_value *metadata,
                             const char *const *names, const char *const *files, size_t count);

#endif
