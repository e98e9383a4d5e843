/* The internal header of the json layer.
 *
 * What it does: provides a strict pull reader (for headers and indexes with 100,000 keys), a small
 * tree built on it (for config.json, where order and unknown keys matter), and a writer in the
 * style of Transformers.
 * May include: base.
 * Rules: strict RFC 8259, except that a tree may hold NaN, Infinity and -Infinity, which Python
 * writes; the tree rejects duplicate keys, the reader leaves them to its caller;
 * integers up to 2^64-1 are exact; every error has its byte offset; neither reading nor writing
 * recurses. */
#ifndef HEFT__JSON_JSON_H
#define HEFT__JSON_JSON_H

#include "base/base.h"

/* ---- reader ---------------------------------------------------------------------------------- */
typedef enum heft__json_kind {
    HEFT__JSON_OBJECT_BEGIN,
    HEFT__JSON_OBJECT_END,
    HEFT__JSON_ARRAY_BEGIN,
    HEFT__JSON_ARRAY_END,
    HEFT__JSON_KEY, /* the value follows as the next token */
    HEFT__JSON_STRING,
    HEFT__JSON_NUMBER,
    HEFT__JSON_TRUE,
    HEFT__JSON_FALSE,
    HEFT__JSON_NULL,
    HEFT__JSON_END /* after the one value; only white space was left */
} heft__json_kind;

typedef struct heft__json_token {
    heft__json_kind kind;
    const char *text; /* KEY, STRING: the raw bytes between the quotes; NUMBER: its text. Lent by
                         the input. */
    size_t length;
    bool escaped;    /* the raw bytes hold a backslash */
    uint64_t offset; /* of the token's first byte, from the start of the file */
} heft__json_token;

#define HEFT__JSON_DEPTH_MAX 1024
typedef struct heft__json_reader {
    const uint8_t *start, *p, *end;
    uint64_t origin; /* file offset of `start` */
    uint32_t depth, depth_limit;
    uint8_t state;
    bool python; /* NaN, Infinity and -Infinity are numbers, as Python writes and reads them */
    uint64_t in_object[HEFT__JSON_DEPTH_MAX / 64]; /* one bit a level: object or array */
} heft__json_reader;

/* `bytes` is borrowed until the reading is done. depth_limit is clamped to HEFT__JSON_DEPTH_MAX.
 * Input is checked to be UTF-8 as it is read. */
void heft__json_init(heft__json_reader *reader, const void *bytes, size_t length, uint64_t origin,
                     uint32_t depth_limit);
/* Next token. FORMAT with offset for anything malformed; LIMIT for too deep. After a failure the
 * token holds nothing and the reader must not be asked again. */
heft_status heft__json_next(heft__json_reader *reader, heft__json_token *token, heft_error *err);
/* Next token, which must be of this kind; `what` names what was expected in the message ("an
 * object"). */
heft_status heft__json_expect(heft__json_reader *reader, heft__json_kind kind, const char *what,
                              heft__json_token *token, heft_error *err);
/* Pass over the rest of the value whose first token was just read. */
heft_status heft__json_skip(heft__json_reader *reader, const heft__json_token *first,
                            heft_error *err);
/* The text of a KEY or STRING with escapes resolved, NUL-terminated in the arena (it may hold NULs:
 * mind the length). Lone surrogates are refused. */
heft_status heft__json_string(const heft__json_token *token, heft__arena *arena, const char **text,
                              size_t *length, heft_error *err);
/* Whether a KEY or STRING, escapes resolved, equals a plain ASCII text. */
bool heft__json_is(const heft__json_token *token, const char *text);
/* A NUMBER that must be an unsigned 64-bit integer in plain digits. `what` goes into the message.
 */
heft_status heft__json_u64(const heft__json_token *token, const char *what, uint64_t *value,
                           heft_error *err);
const char *heft__json_kind_name(heft__json_kind kind); /* "an object", "a string" ... */

/* ---- tree ------------------------------------------------------------------------------------ */
typedef enum heft__json_type {
    HEFT__JSON_TYPE_NULL,
    HEFT__JSON_TYPE_BOOL,
    HEFT__JSON_TYPE_NUMBER,
    HEFT__JSON_TYPE_STRING,
    HEFT__JSON_TYPE_ARRAY,
    HEFT__JSON_TYPE_OBJECT
} heft__json_type;

typedef struct heft__json_value heft__json_value;
struct heft__json_value {
    heft__json_type type;
    bool boolean;
    const char *key;  /* in an object, else NULL */
    const char *text; /* STRING: resolved; NUMBER: as it stood in the file */
    size_t key_length, length;
    uint64_t offset;                       /* of the value's first byte */
    heft__json_value *first, *last, *next; /* members in order; next sibling */
    size_t count;
};

/* Read one document. FORMAT for malformed text and for a key that occurs twice in an object; LIMIT for
 * values that take more memory than heft_limits.value_bytes and the length of the text. */
heft_status heft__json_parse(heft__arena *arena, const void *bytes, size_t length,
                             uint32_t depth_limit, heft__json_value **out, heft_error *err);
/* The same for one value in a longer text, whose first token was just read. Offsets stay those of
 * the file. */
heft_status heft__json_read_tree(heft__json_reader *reader, const heft__json_token *first,
                                 heft__arena *arena, heft__json_value **out, heft_error *err);
/* NULL if absent or no object. */
const heft__json_value *heft__json_member(const heft__json_value *object, const char *key);
/* False if not such a number. */
bool heft__json_as_u64(const heft__json_value *value, uint64_t *out);
bool heft__json_as_i64(const heft__json_value *value, int64_t *out);
bool heft__json_as_double(const heft__json_value *value,
                          double *out); /* any number: it may be infinite or NaN */
/* Made in the arena; NULL if there is no memory. */
heft__json_value *heft__json_new_string(heft__arena *arena, const char *text);
heft__json_value *heft__json_new_number(heft__arena *arena, const char *text);
heft__json_value *heft__json_new_bool(heft__arena *arena, bool value);
heft__json_value *heft__json_new_null(heft__arena *arena);
heft__json_value *heft__json_new_array(heft__arena *arena);
heft__json_value *heft__json_new_object(heft__arena *arena);
void heft__json_append(heft__json_value *array, heft__json_value *item);
/* Set a member, or replace it in its place; the key is copied. false if there is no memory or value
 * is NULL, so calls can be nested. */
bool heft__json_set(heft__arena *arena, heft__json_value *object, const char *key,
                    heft__json_value *value);
void heft__json_remove(heft__json_value *object, const char *key); /* nothing if it is absent */

/* ---- writer ---------------------------------------------------------------------------------- */
/* As Python's json.dumps(indent=2, sort_keys=True) writes it, without the final newline: keys by
 * code point, ASCII only with \uXXXX, floats as Python's repr. */
void heft__json_write_python(heft__buffer *out, const heft__json_value *value);
/* One string with quotes. ascii: everything from 0x7F on as \uXXXX (Python); else raw UTF-8
 * (safetensors' header). */
void heft__json_write_string(heft__buffer *out, const char *text, size_t length, bool ascii);
/* A double as Python's repr: shortest text that reads back, "1e-05", "10000.0". */
void heft__json_write_double(heft__buffer *out, double value);
/* One line, keys in order. */
void heft__json_write_compact(heft__buffer *out, const heft__json_value *value);

#endif
