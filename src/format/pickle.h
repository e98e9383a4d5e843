/* pickle.h - private to the layer: the pickle machine and the step from its values to tensors.
 *
 * The machine turns a span of bytes into inert values: numbers, texts, containers, names out of a
 * fixed list, and "calls", which say what a pickle wants to call and with what, and are never made.
 * Values live in an arena; nothing here recurses, neither while building nor while walking nor
 * while freeing. Source: docs/formats/pickle.md. */
#ifndef HEFT__FORMAT_PICKLE_H
#define HEFT__FORMAT_PICKLE_H

#include "format/format.h"

/* ---- values ---------------------------------------------------------------------------------- */
typedef enum heft__pk_kind {
    HEFT__PK_NONE,
    HEFT__PK_BOOL,
    HEFT__PK_INT,
    HEFT__PK_BIGINT, /* over 64 bits; only its place in the span is kept */
    HEFT__PK_FLOAT,
    HEFT__PK_TEXT,
    HEFT__PK_BYTES,
    HEFT__PK_GLOBAL, /* a name */
    HEFT__PK_TUPLE,
    HEFT__PK_LIST,
    HEFT__PK_SET,
    HEFT__PK_DICT,  /* items: key, value, key, value; OrderedDict and Counter too */
    HEFT__PK_CALL,  /* items: the callee, the tuple of arguments; of an opaque one also what it
                       was given afterwards, in any order */
    HEFT__PK_PERSID /* items: the id */
} heft__pk_kind;

/* The meaning of a name in the fixed list. */
typedef enum heft__pk_global {
    HEFT__PKG_NONE,    /* of a cell that names nothing */
    HEFT__PKG_UNKNOWN, /* not in the list; the cell's object has its module and its name */
    HEFT__PKG_ORDERED_DICT,
    HEFT__PKG_COUNTER,
    HEFT__PKG_DEFAULT_DICT,
    HEFT__PKG_INERT,    /* a value without tensors: torch.Size, torch.device, bytes, set ... */
    HEFT__PKG_CONSTANT, /* a value by itself: a quantisation scheme */
    HEFT__PKG_DTYPE,
    HEFT__PKG_TYPE, /* torch.Tensor, torch.nn.parameter.Parameter */
    HEFT__PKG_STORAGE,
    HEFT__PKG_UNTYPED_STORAGE,
    HEFT__PKG_TENSOR_CLASS, /* torch.FloatTensor, in tar files */
    HEFT__PKG_REBUILD_TENSOR,
    HEFT__PKG_REBUILD_TENSOR_V2,
    HEFT__PKG_REBUILD_TENSOR_V3,
    HEFT__PKG_REBUILD_PARAMETER,
    HEFT__PKG_REBUILD_PARAMETER_WITH_STATE,
    HEFT__PKG_REBUILD_FROM_TYPE_V2,
    HEFT__PKG_REBUILD_OTHER /* a tensor that heft does not read: sparse, quantised, nested, meta ...
                             */
} heft__pk_global;

typedef struct heft__pk_object heft__pk_object;

typedef struct heft__pk_cell {
    uint8_t kind;   /* heft__pk_kind */
    uint8_t global; /* heft__pk_global of a GLOBAL; INERT of a TEXT that is a str of Python 2 and of
                       BYTES that are a bytearray */
    uint16_t dtype; /* heft_dtype of a GLOBAL that names one */
    uint32_t at;    /* byte of the opcode in the span */
    union {
        int64_t integer; /* INT, BOOL */
        double real;
        struct {
            uint32_t start,
                length; /* TEXT, BYTES, BIGINT, the name of a GLOBAL: bytes of the span */
        } text;
        heft__pk_object *object;
    } as;
} heft__pk_cell;

struct heft__pk_object { /* 24 bytes: pickles have very many */
    heft__pk_cell *items;
    uint32_t count;
    union {
        uint32_t cap;  /* of items, while the machine runs */
        uint32_t part; /* then, of a value that was described: the part that begins it */
    };
    uint32_t at;
    uint8_t class; /* heft__pk_global of a DICT that is no plain one, and of a frozen SET INERT */
    bool ordered : 1;    /* an OrderedDict: BUILD may set its attributes */
    bool built : 1;      /* an opaque CALL: item 2 is its state, a dict of attributes */
    bool distinct : 1;   /* keys that occur twice have been dealt with */
    bool on_path : 1;    /* is being walked: met again, it contains itself */
    bool walked : 1;     /* has been walked to its end ... */
    bool has_tensor : 1; /* ... and held a tensor */
    bool peeked : 1; /* its tensors were counted as hidden ones, or it is a tensor with a name */
    bool placed : 1; /* a PERSID whose window is known */
};

/* A storage as a persistent id names it. */
typedef struct heft__pk_window {
    size_t storage;       /* index into the file's storages */
    heft_dtype dtype;     /* NONE: untyped, counted in bytes */
    uint64_t first_bytes; /* where the window begins in the storage; 0 but for legacy views */
    uint64_t bytes;
} heft__pk_window;

/* The object of a PERSID. */
typedef struct heft__pk_persid heft__pk_persid;
struct heft__pk_persid {
    heft__pk_object object; /* first */
    heft__pk_cell id;       /* its item */
    heft__pk_persid *next;
    heft__pk_window window;
};

/* What BUILD gave an OrderedDict, and REDUCE a defaultdict. */
typedef struct heft__pk_attributes heft__pk_attributes;
struct heft__pk_attributes {
    const heft__pk_object *of;
    heft__pk_cell state; /* the dict of its attributes; NONE: this is of a factory */
    const heft__pk_cell
        *factory; /* what makes values of missing keys; NULL: this is of attributes */
    const heft__pk_attributes *next;
};

/* ---- the machine ----------------------------------------------------------------------------- */
typedef enum heft__pk_ids {
    HEFT__PK_IDS_NONE,   /* no persistent ids at all */
    HEFT__PK_IDS_ZIP,    /* a tuple of 5 */
    HEFT__PK_IDS_LEGACY, /* a tuple of 6 */
    HEFT__PK_IDS_TAR     /* an integer */
} heft__pk_ids;

typedef struct heft__pickle {
    heft_ctx *ctx;
    heft__arena arena;    /* all objects */
    const uint8_t *bytes; /* borrowed as long as the values are used */
    size_t length;
    uint64_t origin; /* of bytes[0], for the offsets in errors */
    heft__pk_ids ids;
    heft__pk_cell top;                           /* the value */
    size_t end;                                  /* after STOP */
    heft__pk_persid *first_persid, *last_persid; /* in the order of the stream */
    const heft__pk_attributes *attributes;       /* of all dicts, the last one first */
    uint64_t used_bytes, most_bytes; /* of memory, the span included: taken, and allowed */
    bool truncated;                  /* it failed because the span ended: more bytes may help */
    uint8_t *owned;                  /* the span, if heft__pickle_read made it */
    size_t owned_bytes;
} heft__pickle;

/* Run one pickle from the start of the span. Always call fini. FORMAT for anything malformed,
 * REFUSED for names that only an attack has and for opcodes that name or call something by another
 * way, LIMIT. file_bytes: of the file that it is in, by which memory is bounded. */
heft_status heft__pickle_run(heft_ctx *ctx, const uint8_t *bytes, size_t length, uint64_t origin,
                             uint64_t file_bytes, heft__pk_ids ids, heft__pickle *pickle,
                             heft_error *err);
/* The memory that a pickle and what is made of it may take: heft_limits.value_bytes and half as much
 * again as its file. */
uint64_t heft__pickle_most(const heft_ctx *ctx, uint64_t file_bytes);
/* Count memory that is about to be taken for a pickle; LIMIT. `at` is a byte of the file. */
heft_status heft__pickle_take(heft__pickle *pickle, uint64_t bytes, uint64_t at, heft_error *err);
/* The same, and the memory from the pickle's arena, for the opcode at a byte of the stream. NULL: see
 * `status`. */
void *heft__pk_take(heft__pickle *pickle, uint32_t op_at, size_t bytes, heft_status *status,
                    heft_error *err);
/* A value with room for `count` items. */
heft_status heft__pk_new(heft__pickle *pickle, uint32_t op_at, uint32_t count,
                         heft__pk_object **out, heft_error *err);
heft_status heft__pk_append(heft__pickle *pickle, uint32_t op_at, heft__pk_object *object,
                            const heft__pk_cell *cells, size_t count, heft_error *err);
/* Run the pickle that begins at `offset` of a file and must end before `end`; only as much is read
 * as it takes. At most heft_limits.pickle_bytes. Always call fini. */
heft_status heft__pickle_read(heft_ctx *ctx, heft__input *source, uint64_t offset, uint64_t end,
                              heft__pk_ids ids, heft__pickle *pickle, heft_error *err);
void heft__pickle_fini(heft__pickle *pickle);

/* Look a name up in the fixed list: fills kind, global and dtype of the cell; UNKNOWN and false if
 * it is not there. */
bool heft__pk_find_global(const char *module, size_t module_length, const char *name,
                          size_t name_length, heft__pk_cell *cell);
/* Whether a name that is not in the list has no business in any checkpoint: os.system, eval. */
bool heft__pk_is_harmful(const char *module, size_t module_length, const char *name,
                         size_t name_length);
/* Tensors by their class, torch.Tensor or torch.FloatTensor, ...: whether a name is one; whether a value is what
 * such a one makes without arguments, which BUILD gives its values; whether a storage is of another class. */
bool heft__pk_is_tensor_class(const heft__pickle *pickle, const heft__pk_cell *cell);
bool heft__pk_is_bare_tensor(const heft__pickle *pickle, const heft__pk_cell *cell);
bool heft__pk_is_other_storage(const heft__pk_cell *class, const heft__pk_cell *storage);
/* Whether a value is an object of a class that is not in the list, or what such a one returned: it
 * is kept with all that it was given, and stands for nothing. */
bool heft__pk_is_opaque(const heft__pk_cell *cell);
/* "argparse.Namespace" of an opaque value or an unknown global; cut to fit, "?" instead of what is
 * not printable. */
void heft__pk_class_name(const heft__pickle *pickle, const heft__pk_cell *cell, char text[128]);
/* Name of the storage class with elements of a dtype, "FloatStorage"; false for dtypes that have
 * none. */
bool heft__pk_storage_class(heft_dtype dtype, char name[32]);
/* "a string", "a tuple" ... */
const char *heft__pk_kind_name(const heft__pk_cell *cell);
/* The value under a key of a dict; NULL if it has none. */
const heft__pk_cell *heft__pk_find_item(const heft__pickle *pickle, const heft__pk_object *dict,
                                        const char *name);
/* Bytes of a TEXT, BYTES or BIGINT. */
static inline const char *heft__pk_text(const heft__pickle *pickle, const heft__pk_cell *cell)
{
    return (const char *)pickle->bytes + cell->as.text.start;
}
bool heft__pk_is_text(const heft__pickle *pickle, const heft__pk_cell *cell, const char *text);
/* Whether a GLOBAL of the list has this name, in whatever module. */
bool heft__pk_is_name(const heft__pickle *pickle, const heft__pk_cell *cell, const char *name);

/* Whether a persistent id is of the form that the format has. */
heft_status heft__pk_check_id(const heft__pickle *pickle, const heft__pk_cell *id, uint64_t at,
                              heft_error *err);
/* Legacy files name the class of a pickled module with its source: ('module', class, file, text). */
bool heft__pk_is_module_id(const heft__pickle *pickle, const heft__pk_cell *id);

/* ---- from values to tensors ------------------------------------------------------------------ */
/* Locate a storage: fills `storage` (offset, stored_bytes, deflated, crc, record); `bytes`
 * is set already. */
typedef heft_status (*heft__pk_place_fn)(void *user, const char *key, size_t key_length,
                                         heft__file_storage *storage, heft_error *err);

/* Fill the file's modules from the attributes of a state dict; none is no error. (pickle_modules.c) */
heft_status heft__pickle_modules(heft__pickle *pickle, const heft__pk_object *dict,
                                 heft__file *file, heft_error *err);

struct heft__pk_root {
    const char *key; /* lent by the span */
    size_t key_length;
    heft_dtype dtype;
    uint64_t numel;
};

/* A tensor identified by an integer persistent id (tar). The arrays live in the file's arena. */
typedef struct heft__pk_known {
    int64_t key;
    heft__file_tensor tensor;
} heft__pk_known;

struct heft__pk_left {
    uint64_t count;
    const char *shown; /* in the file's arena; NULL: none */
};

typedef struct heft__pickle_tensors {
    heft_ctx *ctx;
    heft__file *file;
    heft__pickle *pickle;
    heft__pk_place_fn place;
    void *place_user;
    const heft__pk_known *known; /* sorted by key; tar only */
    size_t known_count;
    heft__map keys; /* storage key -> index */
    struct heft__pk_root *roots;
    size_t root_cap;
    heft__file_storage *storages;
    size_t storage_count, storage_cap;
    heft__file_tensor *tensors;
    size_t tensor_count, tensor_cap;
    heft__map names;
    const char **skipped;
    size_t skipped_count, skipped_cap;
    bool skipped_more; /* there were more than are kept */
    /* what is left out, and the first few of it in words, for warnings */
    struct heft__pk_left opaque, /* objects of unknown classes */
        other,                   /* tensors of kinds that are not read */
        beside;                  /* tensors, and dicts of tensors, beside the state dict */
    uint64_t hidden_tensors;     /* in values that no name leads to */
    const char *module_class;    /* names are those of a pickled module's parameters; NULL: not */
    const char *first_other;     /* name of the first tensor of another kind */
    uint64_t first_other_at;
    uint64_t steps;          /* what sharing may blow up, and is bounded */
    heft__file_value *parts; /* of the whole value, if that is wanted */
    size_t part_count, part_cap;
} heft__pickle_tensors;

void heft__pickle_tensors_init(heft__pickle_tensors *build, heft_ctx *ctx, heft__file *file,
                               heft__pickle *pickle, heft__pk_place_fn place, void *place_user);
void heft__pickle_tensors_fini(heft__pickle_tensors *build);
/* Resolve every persistent id of the stream, whether a tensor needs it or not. */
heft_status heft__pickle_tensors_storages(heft__pickle_tensors *build, heft_error *err);
/* Walk the value and build the tensors; then resolve what is left. */
heft_status heft__pickle_tensors_walk(heft__pickle_tensors *build, heft_error *err);
/* The same of the whole value, which is described in parts. (pickle_value.c) */
heft_status heft__pickle_value_walk(heft__pickle_tensors *build, heft_error *err);
/* Hand over to the file: storages, tensors, skipped. */
heft_status heft__pickle_tensors_publish(heft__pickle_tensors *build, heft_error *err);

/* Between the two files of this step: whether a value is a tensor, how one is built, which one an
 * integer id stands for. */
bool heft__pk_is_tensor(const heft__pk_cell *cell);
/* Whether a tensor is of a kind that is not read, and by which function or class it is made. */
bool heft__pk_other_kind(const heft__pickle *pickle, const heft__pk_cell *cell, char maker[128]);
heft_status heft__pk_build_tensor(heft__pickle_tensors *build, const heft__pk_cell *cell,
                                  heft__file_tensor *tensor, heft_error *err);
/* Where a storage is. The persistent id is one of a key. */
heft_status heft__pk_window_of(heft__pickle_tensors *build, heft__pk_object *persid,
                               const heft__pk_window **out, heft_error *err);
/* NULL if none. */
const heft__file_tensor *heft__pk_find_known(const heft__pickle_tensors *build, int64_t key);

/* Between the two walks (pickle_walk.c): whether a value is a tensor of the format of its file. */
bool heft__pk_is_tensor_here(const heft__pickle_tensors *build, const heft__pk_cell *cell);
/* Count a step that sharing may repeat; LIMIT. */
heft_status heft__pk_step(heft__pickle_tensors *build, uint64_t at, heft_error *err);
/* Whether an opaque value is a pickled torch.nn.Module: by its attributes, which its state dict is
 * made of: _parameters, _buffers and _modules, in that order. */
#define HEFT__PK_MODULE_PARTS 3
extern const char *const heft__pk_module_parts[HEFT__PK_MODULE_PARTS];
bool heft__pk_is_module(heft__pickle_tensors *build, const heft__pk_cell *cell);
/* Add a dict's key, or the number of an item (key NULL), to a path; false: the key is no name, and its kind stands there. */
bool heft__pk_add_key(const heft__pickle *pickle, heft__buffer *path, const heft__pk_cell *key,
                      uint32_t number);
/* Buffers that are not in the state dict; NULL: none; and whether a key is among them. */
const heft__pk_object *heft__pk_transient_buffers(const heft__pickle_tensors *build,
                                                  const heft__pk_object *attributes);
bool heft__pk_is_passed_over(heft__pickle_tensors *build, const heft__pk_object *without,
                             const heft__pk_cell *key);
/* Count what is left out; the first few are named. */
heft_status heft__pk_leave_out(heft__pickle_tensors *build, struct heft__pk_left *left,
                               const heft__buffer *path, const char *what, heft_error *err);

/* Check one view and fill shape, strides, start and size_bytes of a tensor whose dtype is set. The
 * storage's window has `window_bytes` bytes from `first_bytes` on; sizes, strides and offset count
 * elements as torch counts them. */
heft_status heft__pickle_view(heft__arena *arena, const int64_t *sizes, const int64_t *strides,
                              size_t rank, int64_t offset, uint64_t first_bytes,
                              uint64_t window_bytes, heft__file_tensor *tensor, heft_error *err);
/* Bytes of one element as torch counts them: float4_e2m1fn_x2 is one byte with two values. */
uint64_t heft__pickle_elem_bytes(heft_dtype dtype);

#endif
