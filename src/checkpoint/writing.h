/* writing.h - private to the layer: what a heft_writer has collected. */
#ifndef HEFT__CHECKPOINT_WRITING_H
#define HEFT__CHECKPOINT_WRITING_H

#include <heft/writer.h>

#include "checkpoint/checkpoint.h"

/* A tensor to be written: in memory, or made by a callback. */
typedef struct heft__addition {
    const char *name;
    heft_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
    uint64_t size_bytes;
    heft_tensor *tensor;   /* owned, on the caller's storage; NULL where there is a callback */
    bool plain;            /* row by row without gaps */
    uint64_t extent_bytes; /* of memory, from the first to the last element */
    heft_fill_fn fill;
    void *user;
} heft__addition;

struct heft_writer {
    heft_ctx *ctx;
    heft__arena arena;                 /* texts, shapes, side files */
    const char *dst, *folder, *single; /* single: base name of the one file, or NULL */
    const heft__format *format;
    heft_writer_options options; /* of this version, its pointers in the arena */
    heft__addition *list;
    size_t count, cap;
    heft__map names;
    heft__side_file *sides;
    size_t side_count, side_cap;
    heft__map side_names;
    heft__metadata metadata;
    bool committed;
};

#endif
