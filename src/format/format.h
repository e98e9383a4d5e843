/* The internal header of the format layer.
 *
 * What it does: reads and writes file formats. A format is a table of functions and facts,
 * heft__format: how its files are recognized, parsed, laid out and written, what their names are in
 * a folder, and what they can hold. Reading turns an input into a heft__file: named tensors on
 * storages that are parts of the file. Writing determines the layout of the given tensors once and
 * then requests their bytes piece by piece. The layer knows files and what an index says about
 * them, but not models or the purpose of a parameter.
 * May include: base, io, json, tensor, quant.
 * Rules: every byte may be hostile. Opening reads metadata only; no allocation is based on a claim
 * that the file's own size does not support. A pickle is interpreted over a fixed list of names and
 * never calls anything. Errors carry path, item and offset. To add a format: docs/howto/format.md.
 */
#ifndef HEFT__FORMAT_FORMAT_H
#define HEFT__FORMAT_FORMAT_H

#include <heft/value.h>

#include "io/io.h"
#include "quant/quant.h"
#include "tensor/tensor.h"
#include "json/json.h"

#include <stdatomic.h>

/* ---- what a file holds ----------------------------------------------------------------------- */
/* A run of bytes in the file that holds tensors. Safetensors: one per tensor. */
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
    uint64_t start;         /* byte of element 0 in the storage */
    uint64_t size_bytes;    /* laid out row by row */
    uint64_t
        item_offset; /* byte in the file (in data.pkl for pickles) that describes it, for errors */
    bool conj, neg;  /* the bytes are unconjugated, unnegated: reading applies it */
    const struct heft__decoded *decoded; /* it is computed from other tensors; NULL: it is stored */
} heft__file_tensor;

/* Texts may hold NULs, since files may: the lengths count. */
typedef struct heft__text_pair {
    const char *key, *value;
    size_t key_length, value_length;
} heft__text_pair;

typedef struct heft__format heft__format;

/* What the files of a checkpoint may hold together. Their parsers count what they are about to keep, in
 * any order and on any thread: whether it is too much depends on the files alone. */
typedef struct heft__quota {
    uint64_t most;         /* tensors: heft_limits.small_tensors and one for each 1,024 bytes */
    atomic_ullong tensors; /* so far */
    pthread_mutex_t
        turn; /* of pickles, whose values take memory while they are read: one at a time */
} heft__quota;
#define HEFT__QUOTA_BYTES 1024 /* of a file, for each tensor beyond the limit */

/* file_bytes: of all files. fini always. */
void heft__quota_init(heft__quota *quota, const heft_ctx *ctx, uint64_t file_bytes);
void heft__quota_fini(heft__quota *quota);
/* What a tensor counts: itself, and one more for each 8 dimensions beyond the first 8. */
static inline uint64_t heft__quota_weight(uint64_t rank)
{
    return rank <= 8 ? 1 : (rank + 7) / 8;
}
/* LIMIT if there are more than may be. A NULL quota has no end. */
heft_status heft__quota_take(heft__quota *quota, uint64_t tensors, uint64_t at, heft_error *err);
bool heft__quota_is_exceeded(heft__quota *quota);

/* A module by its path, "" for the root, and the version of its class that saved it. */
typedef struct heft__file_module {
    const char *path;
    uint32_t version;
} heft__file_module;

/* A part of the whole value of a pickle: heft_value, in less memory. */
typedef struct heft__value_text {
    uint32_t length;
    char bytes[]; /* and a NUL */
} heft__value_text;

typedef struct heft__file_value {
    uint8_t kind;  /* heft_value_kind */
    uint8_t flags; /* HEFT__VALUE_... */
    uint32_t at;   /* byte of the span */
    union {
        int64_t integer;
        double real;
        const double *complex; /* [2] */
        struct {
            uint32_t start, length; /* bytes of the span */
        } span;
        const heft__value_text *text;
        struct {
            uint32_t number, count;
        } refers;
    } as;
} heft__file_value;
#define HEFT__VALUE_ATTRIBUTES 1
#define HEFT__VALUE_PARAMETER 2
#define HEFT__VALUE_REQUIRES_GRAD 4
#define HEFT__VALUE_OWN_TEXT 8 /* as.text, not as.span */

typedef struct heft__file {
    heft__input *source;
    heft__quota *quota; /* lent while it is parsed */
    bool whole_value;   /* of a pickle is wanted: set before it is parsed */
    heft_format format;
    heft__arena arena; /* all below lives in it */
    heft__file_storage *storages;
    size_t storage_count;
    heft__file_tensor
        *tensors; /* in the file's own order: safetensors by offset, pickles by first occurrence */
    size_t tensor_count;
    heft__text_pair *metadata; /* safetensors' __metadata__ */
    size_t metadata_count;
    heft__file_module *modules; /* of a pickled state dict */
    size_t module_count;
    heft__file_value *values; /* of a pickle, if the whole value is wanted */
    size_t value_count;
    const uint8_t *value_span; /* the pickle's bytes */
    uint64_t value_origin;     /* of value_span[0], for offsets */
    const char **skipped; /* paths of values that are no tensors ("optimizer.param_groups.0.lr") */
    size_t skipped_count;
    bool big_endian; /* elements are stored the other way round */
    heft__warnings warnings;
    struct heft__file *lender; /* whose lists and texts these are; NULL: its own */
    atomic_size_t borrowers;   /* of this one's: it outlives its owner until they are closed */
} heft__file;

/* Sniff the content and read the metadata. Takes its own reference on the source. Path, item
 * and offset of an error are filled. Unknown content is UNSUPPORTED, and the message has the first
 * bytes look like. */
heft_status heft__file_open(heft_ctx *ctx, heft__input *source, heft__file **out, heft_error *err);
/* The same, and of a pickle its whole value. */
heft_status heft__file_open_whole(heft_ctx *ctx, heft__input *source, heft__file **out,
                                  heft_error *err);
/* The same of a file that is one of several. */
heft_status heft__file_open_within(heft_ctx *ctx, heft__input *source, heft__quota *quota,
                                   bool whole_value, heft__file **out, heft_error *err);
/* Part i of the whole value; false past the end. (pickle_parts.c) */
bool heft__file_value_at(const heft__file *file, size_t i, heft_value *value);
/* A second heft__file of a file that is open, without reading anything again: its storages are its own,
 * the rest is lent. Any number of threads; both are closed, in any order. */
heft_status heft__file_share(heft_ctx *ctx, heft__file *file, heft__file **out, heft_error *err);
/* One without tensors yet; takes a reference of its own on the source. NULL without memory. */
heft__file *heft__file_new(heft_ctx *ctx, heft__input *source, heft_format format);
void heft__file_close(heft_ctx *ctx, heft__file *file); /* NULL allowed */

/* A format's parser fills a zeroed heft__file whose arena and source are set. */
typedef heft_status (*heft__file_parse_fn)(heft_ctx *ctx, heft__file *file, heft_error *err);

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
/* Whether the tensor is stored in the file in the form needed (and so can be mapped);
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

/* ---- tensors that are computed: weights that are stored quantized (decoded.c) ------------------- */
typedef struct heft__decoded {
    const heft__quant_weight *weight;
    /* Where each part is stored; NULL where the weight has no such part. Lent. */
    const heft__file *file[HEFT__QUANT_PARTS];
    const heft__file_tensor *part[HEFT__QUANT_PARTS];
} heft__decoded;

/* Blocks that decoders leave to later ones: at most as many as there were decoders at once. Any number of threads
 * may use it. */
typedef struct heft__spare_block {
    uint8_t *start;
    size_t bytes;
} heft__spare_block;
typedef struct heft__decoder_memory {
    heft_ctx *ctx;
    pthread_mutex_t lock;
    heft__spare_block spare[64]; /* those beyond are freed */
    size_t count;
} heft__decoder_memory;
void heft__decoder_memory_init(heft__decoder_memory *memory, heft_ctx *ctx);
void heft__decoder_memory_fini(heft__decoder_memory *memory);

typedef struct heft__decoder heft__decoder;
/* Borrows decoded, and memory, which may be NULL. One thread at a time. */
heft_status heft__decoder_new(heft_ctx *ctx, const heft__decoded *decoded,
                              heft__decoder_memory *memory, heft__decoder **out, heft_error *err);
void heft__decoder_free(heft__decoder *decoder); /* NULL allowed */
/* Compute elements of another dtype from now on, rounded to the weight's and then cast. False: it cannot. */
bool heft__decoder_cast(heft__decoder *decoder, heft_dtype to);
/* Compute elements first .. first + count - 1, row by row. stay: they are not read again soon. Path and item
 * of an error are filled. */
heft_status heft__decoder_read(heft__decoder *decoder, uint64_t first, uint64_t count, void *dst,
                               bool stay, heft_error *err);
/* Lend elements from `first` on to the end of their tile, at least one: until the next call. */
heft_status heft__decoder_lend(heft__decoder *decoder, uint64_t first, const void **elements,
                               uint64_t *count, heft_error *err);
/* The most heap that a decoder takes, besides itself. */
uint64_t heft__decoded_heap(const heft__decoded *decoded);
/* How many elements one thread should compute at once: threads that begin at multiples of it do nothing
 * twice. UINT64_MAX: all of them. */
uint64_t heft__decoded_step(const heft__decoded *decoded);

/* ---- writing --------------------------------------------------------------------------------- */
/* Tensors with the same `storage` share one run of bytes, where the format can. */
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
 * tensor after tensor, for whole elements. */
typedef heft_status (*heft__out_read_fn)(void *user, const heft__out_tensor *tensor, uint64_t first,
                                         void *dst, size_t length, heft_error *err);

/* One file to be written. All is borrowed; `tensors` until the layout is freed, as is `name`. */
typedef struct heft__out_file {
    const char *name;                /* of the file: the records of a zip begin with its stem */
    const heft__out_tensor *tensors; /* [count] in state-dict order */
    size_t count;
    const heft__text_pair *metadata; /* for formats that hold metadata */
    size_t metadata_count;
    const char *const *modules; /* paths, "" for the root: a pickle is then an OrderedDict with
                                   `_metadata`, else a plain dict */
    size_t module_count;
    const uint32_t *module_versions; /* NULL: 1 for each */
} heft__out_file;

/* How a file will look, made before anything is written. Formats embed it as their first member. */
typedef struct heft__layout {
    heft_ctx *ctx;
    uint64_t bytes; /* of the file */
} heft__layout;

typedef struct heft__out_io {
    heft__folder_writer *folder; /* with an open file */
    heft__out_read_fn read;
    void *user;
    void *scratch; /* the staging buffer */
    size_t
        scratch_bytes; /* a multiple of HEFT__OUT_GRAIN: a piece holds whole elements of any dtype */
} heft__out_io;
#define HEFT__OUT_GRAIN 16

/* Write the bytes of a tensor through the staging buffer. `crc` is continued; it may be NULL. */
heft_status heft__out_copy(const heft__out_io *io, const heft__out_tensor *tensor, uint32_t *crc,
                           heft_error *err);

/* ---- an index: what it says about files and tensors --------------------------------------------- */
typedef struct heft__shard_entry {
    const char *name; /* tensor */
    size_t file;      /* index into files */
    uint64_t offset;  /* of the key in the index */
} heft__shard_entry;

typedef struct heft__claim { /* what an index says about a tensor besides its location */
    const char *weight;      /* its name in the file */
    bool alone;              /* the file has no names: it is this tensor */
    heft_dtype dtype;        /* NONE: not said */
    uint32_t rank;
    const uint64_t *shape; /* NULL: not given */
} heft__claim;

typedef struct heft__index_file {
    const char *name, *path; /* base name; whole path */
} heft__index_file;

typedef struct heft__index {
    heft__arena arena;
    const heft__format *format;
    const char *path;
    const heft__index_file *files;
    size_t file_count;
    const heft__shard_entry *entries; /* in the order of the index */
    size_t entry_count;
    /* [entry_count], or NULL. With claims the checkpoint is what the index names and nothing else, and
     * its tensors lend from the index. */
    const heft__claim *claims;
    const heft__json_value *metadata; /* an object or NULL */
    void *own;                        /* the format's */
} heft__index;

void heft__index_fini(heft__index *index);

/* What is to be written into an index. */
typedef struct heft__out_index {
    const heft__out_tensor *tensors;
    size_t count;
    const size_t *file_of;    /* [count] */
    const char *const *files; /* base names */
    uint64_t total_size;
    uint64_t total_parameters; /* 0: left out */
} heft__out_index;

/* ---- the table ------------------------------------------------------------------------------- */
/* What becomes of several names on one storage. */
typedef enum heft__ties {
    HEFT__TIES_DROP,  /* one name a storage: the first is written */
    HEFT__TIES_SHARE, /* they share it in the file */
    HEFT__TIES_COPY   /* each has its bytes */
} heft__ties;

/* A member that a format does not need is NULL or 0. */
struct heft__format {
    heft_format id;
    const char *name;       /* heft_format_name() */
    const char *noun;       /* in messages: "a safetensors file" */
    heft_format convert_as; /* what a conversion without a format makes of it */
    bool has_order;         /* its files hold the order of the state dict */

    /* Reading one file. */
    bool (*sniff)(const uint8_t *head, size_t length); /* by at most HEFT__HEAD_BYTES */
    heft__file_parse_fn parse;
    const char *const *endings; /* of its files' names as a rule, NULL-terminated */
    bool one_at_a_time; /* parsing takes memory that the bytes of the file do not account for */
    bool insist; /* a file with the first ending that looks like nothing else is parsed as this, so
                    that its error says what is wrong with it */

    /* In a folder: `STEM[.V].EXT`, `STEM[.V]-00001-of-00003.EXT`, `STEM.EXT.index[.V].json`; with
     * file_each TENSOR.EXT for each tensor, and no variants. */
    unsigned precedence; /* of several in one folder the lowest is taken; 0: not found in folders */
    const char *stem, *extension;
    bool file_each;         /* every tensor is a separate file, and there is always an index */
    const char *index_name; /* the fixed name of the index; its content is examined */
    /* Open such a file if it is an index; otherwise *opened stays NULL. */
    heft_status (*open_index)(heft_ctx *ctx, const char *path, heft__input **opened,
                              heft_error *err);
    /* The index's own faults are those of the file at `folder`/`name`, which is open already if
     * `opened` is not NULL. */
    heft_status (*read_index)(heft_ctx *ctx, const char *folder, const char *name,
                              heft__input *opened, heft__index *out, heft_error *err);
    /* One of the index's files; NULL: heft__file_open(). */
    heft_status (*open_file)(heft_ctx *ctx, const heft__index *index, size_t file,
                             heft__input *input, heft__quota *quota, heft__file **out,
                             heft_error *err);
    /* Put the names of all files of a checkpoint that is in the folder into the map; the texts live in
     * the arena. NULL: names tell by themselves, see heft__is_weights(). */
    heft_status (*list_files)(heft__arena *arena, const char *folder, heft__map *names,
                              heft_error *err);

    /* Writing. */
    heft__ties ties;
    bool metadata; /* holds pairs of text */
    /* INVALID_ARG, with the item, for a name or dtype that it cannot hold and for a size that is not
     * the shape's. */
    heft_status (*check)(const heft__out_tensor *tensor, heft_error *err);
    /* INVALID_ARG as `check`, and for a name twice or names on one storage that cannot be. */
    heft_status (*lay_out)(heft_ctx *ctx, const heft__out_file *file, heft__layout **out,
                           heft_error *err);
    heft_status (*write)(heft__layout *layout, const heft__out_io *io, heft_error *err);
    void (*layout_free)(heft__layout *layout); /* NULL allowed */
    heft_status (*write_index)(heft__arena *arena, const heft__out_index *index, heft__buffer *text,
                               heft_error *err);
};

#define HEFT__HEAD_BYTES 512
/* NULL for AUTO and for what is no format. */
const heft__format *heft__format_find(heft_format id);
/* The formats that are found in folders, by precedence but for `first` (NULL: none), which is the
 * first if it is one of them; NULL past the end. */
const heft__format *heft__format_in_folder(const heft__format *first, size_t i);
/* The format whose files have such a name as a rule, if it is one that is written; else NULL. */
const heft__format *heft__format_by_name(const char *name);
/* Whether a file with this name holds weights of any kind, including those of other libraries. */
bool heft__is_weights_ending(const char *name);
/* Whether loaders find weights under a name, alone or as one of several: "pytorch_model.fp16.bin",
 * "model-00001-of-00002.safetensors". */
bool heft__is_weights_name(const char *name);
/* The same, or that of a whole model or adapter in another library's files: "tf_model.h5",
 * "consolidated.00.pth", "adapter_model.bin", "pytorch_lora_weights.bin". */
bool heft__is_model_name(const char *name);

/* ---- files that are no weights for heft (strangers.c) ------------------------------------------ */
/* What a file is by its first bytes: "a Git LFS pointer, ..."; NULL: unknown. */
const char *heft__stranger_by_head(const uint8_t *head, size_t length);
/* The same by its base name. whatever: only where the content is not to be asked. */
const char *heft__stranger_by_name(const char *name, bool whatever);
/* "model (1).safetensors", as browsers name a further download of a file. */
bool heft__is_browser_copy(const char *name);
/* Whether a name is that of an optimizer's, a scheduler's or another state of a training run. */
bool heft__is_training_state(const char *name);

/* ---- names of files (file_names.c); NULL if there is no memory --------------------------------- */
/* "model.safetensors", "model.safetensors.index.fp16.json", "model-00001-of-00003.safetensors". */
const char *heft__weights_single(heft__arena *arena, const heft__format *format,
                                 const char *variant);
const char *heft__weights_index(heft__arena *arena, const heft__format *format,
                                const char *variant);
const char *heft__weights_shard(heft__arena *arena, const heft__format *format, const char *variant,
                                size_t number, size_t count);
/* Of one tensor's file, where each has its own. */
const char *heft__weights_of_tensor(heft__arena *arena, const heft__format *format,
                                    const char *tensor);
/* Whether a name is that of a shard of this format and variant, with any numbers, or of a tensor's
 * own file. */
bool heft__is_shard_name(const char *name, const heft__format *format, const char *variant);
bool heft__ends_with(const char *text, const char *end);

/* ---- Accelerate's offload folder: index.json, NAME.dat, tensors of safetensors files ---------- */
typedef struct heft__offload_entry {
    const char *name;
    const char *file;   /* absolute path of a safetensors file; NULL: NAME.dat next to the index */
    const char *weight; /* the tensor's name in that file; NULL for a .dat */
    heft_dtype dtype;   /* NONE: not given, allowed only for an entry with a file */
    uint32_t rank;
    const uint64_t *shape; /* NULL: not given, likewise */
    uint64_t size_bytes;   /* of both; 0 if one is not given */
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
void heft__offload_index_fini(heft__offload_index *index);
/* Whether a text that begins like this is such an index: by the fields of its first entry. */
bool heft__offload_index_sniff(const void *head, size_t length);
/* As json.dump(index, f, indent=2) writes it: in this order, ASCII only, no final newline. */
void heft__offload_index_write(heft__buffer *out, const heft__offload_entry *entries, size_t count);

#define HEFT__OFFLOAD_INDEX "index.json"
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
/* The bytes of NAME.dat. */
heft_status heft__offload_dat_write(const heft__out_io *io, const heft__out_tensor *tensor,
                                    heft_error *err);

/* CRC-32 as zip uses it, continued from `crc` (0 at first); as fast as the machine can. */
uint32_t heft__crc32(uint32_t crc, const void *bytes, size_t length);

/* ---- shard index: *.index.json --------------------------------------------------------------- */
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
/* Text of an index as Transformers writes it: sorted keys, two spaces, one final newline. metadata
 * is an object. */
void heft__shard_index_write(heft__buffer *out, const heft__json_value *metadata,
                             const char *const *names, const char *const *files, size_t count);
/* The members read_index and write_index of formats that have this index. */
heft_status heft__shard_index_open(heft_ctx *ctx, const char *folder, const char *name,
                                   heft__input *opened, heft__index *out, heft_error *err);
heft_status heft__shard_index_text(heft__arena *arena, const heft__out_index *index,
                                   heft__buffer *text, heft_error *err);

#endif
