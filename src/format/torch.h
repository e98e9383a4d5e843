/* torch.h - private to the room: what the readers of PyTorch's files share. A strict zip directory,
 * a pickle machine that makes inert values, and the step from values to tensors. */
#ifndef HEFT__FORMAT_TORCH_H
#define HEFT__FORMAT_TORCH_H

#include "format/format.h"

/* ---- zip
 * ------------------------------------------------------------------------------------------------
 */
typedef struct heft__zip_entry {
    const char *name; /* NUL-terminated, UTF-8 */
    size_t length;
    uint64_t central, header,
        data; /* bytes of its directory entry, its local header, its first stored byte */
    uint64_t stored_bytes, bytes;
    uint32_t crc;
    uint16_t flags, method; /* 0 or 8 */
} heft__zip_entry;

typedef struct heft__zip {
    heft_ctx *ctx;
    heft__source *source; /* borrowed */
    heft__arena *arena;   /* borrowed: names and entries live in it */
    heft__zip_entry *entries;
    size_t count;
    heft__map names; /* lower case -> entry */
} heft__zip;

/* Directory and local headers: distinct names, inside the file, not overlapping. Always call fini.
 */
heft_status heft__zip_open(heft_ctx *ctx, heft__source *source, heft__arena *arena, heft__zip *zip,
                           heft_error *err);
void heft__zip_fini(heft__zip *zip);
/* By name, upper and lower case alike, as the reference looks records up. NULL if absent. */
const heft__zip_entry *heft__zip_find(const heft__zip *zip, const char *name);
/* A record of at most `limit` bytes whole on the heap, inflated, its CRC checked. */
heft_status heft__zip_read(const heft__zip *zip, const heft__zip_entry *entry, uint64_t limit,
                           uint8_t **bytes, heft_error *err);
/* Inflate a raw deflate stream that must give exactly `bytes`. FORMAT otherwise, and before
 * anything is allocated if so few stored bytes cannot give so many. The caller frees *out with
 * `bytes`. */
heft_status heft__inflate(heft_ctx *ctx, heft__source *source, uint64_t offset,
                          uint64_t stored_bytes, uint64_t bytes, uint8_t **out, heft_error *err);

/* ---- pickle
 * ------------------------------------------------------------------------------------------------
 */
typedef enum heft__pickle_kind {
    HEFT__PICKLE_NONE,
    HEFT__PICKLE_BOOL,
    HEFT__PICKLE_INT,
    HEFT__PICKLE_LARGE_INT, /* over 64 bits: only that it is there */
    HEFT__PICKLE_FLOAT,
    HEFT__PICKLE_TEXT,
    HEFT__PICKLE_BYTES,
    HEFT__PICKLE_TUPLE,
    HEFT__PICKLE_LIST,
    HEFT__PICKLE_DICT, /* items: key, value, key, value */
    HEFT__PICKLE_SET,
    HEFT__PICKLE_GLOBAL, /* a name of the fixed list */
    HEFT__PICKLE_CALL,   /* items: callable, arguments; never made */
    HEFT__PICKLE_STORAGE /* persistent id; items: the id */
} heft__pickle_kind;

typedef enum heft__pickle_role {                   /* what a name of the fixed list stands for */
                                 HEFT__ROLE_INERT, /* something without tensors */
                                 HEFT__ROLE_ORDERED_DICT,
                                 HEFT__ROLE_STORAGE, /* with a dtype; NONE: untyped, counted in
                                                        bytes */
                                 HEFT__ROLE_DTYPE,
                                 HEFT__ROLE_TENSOR_V2,
                                 HEFT__ROLE_TENSOR_V3,
                                 HEFT__ROLE_PARAMETER,
                                 HEFT__ROLE_FROM_TYPE,
                                 HEFT__ROLE_OTHER_TENSOR /* sparse, quantised ...: refused where a
                                                            tensor is wanted */
} heft__pickle_role;

typedef struct heft__pickle_value heft__pickle_value;
struct heft__pickle_value {
    uint8_t kind, role;
    uint8_t visit; /* walking: 1 on the way, 2 done */
    uint8_t dtype; /* of a STORAGE or DTYPE name */
    uint32_t at;   /* byte of its opcode */
    uint32_t count, cap;
    int64_t integer; /* INT, BOOL; length of TEXT and BYTES */
    union {
        const char *text;           /* TEXT, BYTES: in the span; GLOBAL: "module.name" */
        heft__pickle_value **items; /* containers */
    } as;
};

typedef struct heft__pickle {
    heft__arena arena; /* of the values */
    heft__pickle_value *top;
    size_t end; /* behind STOP */
} heft__pickle;

/* Run one pickle at the start of the span, which is borrowed as long as its values are used.
 * `id_items`: how many items a persistent id has (5 in zips, 6 in streams). Always call fini.
 * FORMAT, REFUSED (names, opcodes), LIMIT with the offset counted from the span's start plus
 * `origin`. */
heft_status heft__pickle_run(heft_ctx *ctx, const uint8_t *bytes, size_t length, uint64_t origin,
                             uint32_t id_items, heft__pickle *pickle, heft_error *err);
void heft__pickle_fini(heft__pickle *pickle);
bool heft__pickle_is_text(const heft__pickle_value *value, const char *text);

/* Where a storage's bytes lie: fills offset, stored_bytes, deflated, crc, record. `bytes` is what
 * the pickle says. */
typedef heft_status (*heft__place_fn)(void *user, const char *key, heft__file_storage *storage,
                                      heft_error *err);
/* Find the tensors of a value: fills the file's tensors, storages and skipped. */
heft_status heft__pickle_tensors(heft_ctx *ctx, const heft__pickle *pickle, uint64_t origin,
                                 heft__file *file, heft__place_fn place, void *user,
                                 heft_error *err);

#endif
