/* zip.h - private to the layer: the zip container, read strictly, and raw deflate streams.
 * Source: docs/formats/torch_zip.md [2]. */
#ifndef HEFT__FORMAT_ZIP_H
#define HEFT__FORMAT_ZIP_H

#include "format/format.h"

typedef struct heft__zip_entry {
    const char *name; /* NUL-terminated, holds no NUL */
    size_t name_length;
    uint64_t central; /* byte of its entry in the central directory */
    uint64_t header;  /* byte of its local header */
    uint64_t data;    /* first stored byte */
    uint64_t stored_bytes, bytes;
    uint32_t crc;
    uint16_t flags, method; /* method 0 or 8 */
} heft__zip_entry;

typedef struct heft__zip {
    heft_ctx *ctx;
    heft__input *source;      /* borrowed */
    heft__arena arena;        /* names and entries */
    heft__zip_entry *entries; /* in the directory's order */
    size_t count;
    heft__map names;         /* lower-case name -> entry */
    uint64_t trailing_bytes; /* after the end record and its comment */
} heft__zip;

/* Read the directory and every local header; check that entries are distinct, are inside the file
 * and do not overlap. Always call fini. */
heft_status heft__zip_open(heft_ctx *ctx, heft__input *source, heft__zip *zip, heft_error *err);
void heft__zip_fini(heft__zip *zip);
/* Entry of a name, upper and lower case alike; *entry is NULL if there is none. The only failure is
 * NOMEM. */
heft_status heft__zip_find(heft__zip *zip, const char *name, size_t length,
                           const heft__zip_entry **entry, heft_error *err);
/* Read a whole record of at most `limit` bytes into the heap, inflated, its CRC checked if it has
 * one. The caller frees entry->bytes bytes. */
heft_status heft__zip_read(const heft__zip *zip, const heft__zip_entry *entry, uint64_t limit,
                           uint8_t **bytes, heft_error *err);

/* A deflate stream of stored_bytes at offset that must give exactly `bytes`. */
typedef struct heft__inflater heft__inflater;
heft_status heft__inflater_new(heft_ctx *ctx, heft__input *source, uint64_t offset,
                               uint64_t stored_bytes, uint64_t bytes, heft__inflater **out,
                               heft_error *err);
/* Exactly `length` more bytes; with the last of them the stream must have ended. */
heft_status heft__inflater_read(heft__inflater *inflater, void *dst, size_t length,
                                heft_error *err);
void heft__inflater_free(heft__inflater *inflater); /* NULL allowed */
/* Whether `stored_bytes` of deflate can give `bytes` at all: nothing is allocated by a claim that
 * fails this. */
bool heft__inflate_can_give(uint64_t stored_bytes, uint64_t bytes);

#endif
