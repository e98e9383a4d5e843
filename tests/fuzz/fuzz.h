/* fuzz.h - what the fuzz targets share: a context with small limits, and reading all of a file. */
#ifndef HEFT_FUZZ_H
#define HEFT_FUZZ_H

#include "format/format.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline heft_ctx *fuzz_ctx(void)
{
    static heft_ctx *ctx;
    if (!ctx) {
        const heft_ctx_options options = {.threads = 1};
        ctx = heft_ctx_new(&options);
    }
    return ctx;
}

/* Open bytes as a file of any format, and read every tensor through a small buffer, so that lengths
 * are odd. */
static inline void fuzz_file(const uint8_t *data, size_t size)
{
    heft_ctx *ctx = fuzz_ctx();
    heft__source *source = NULL;
    heft__file *file = NULL;
    heft_error err;
    if (heft__source_from_bytes(ctx, "fuzz", data, size, &source, &err) != HEFT_OK) {
        return;
    }
    if (heft__file_open(ctx, source, &file, &err) == HEFT_OK) {
        uint64_t budget = (uint64_t)8 << 20; /* an expanded view may claim very much */
        for (size_t i = 0; i < file->tensor_count; i++) {
            heft__tensor_reader *reader = NULL;
            uint8_t piece[208];
            size_t length = 1;
            heft_status status =
                heft__tensor_reader_new(ctx, file, &file->tensors[i], &reader, &err);
            while (status == HEFT_OK && length > 0 && budget > sizeof piece) {
                status = heft__tensor_reader_next(reader, piece, sizeof piece, &length, &err);
                budget -= sizeof piece;
            }
            heft__tensor_reader_free(reader);
        }
    }
    heft__file_close(ctx, file);
    heft__source_unref(source);
    uint64_t live;
    heft_ctx_memory(ctx, &live, NULL);
    if (live != 0) {
        abort(); /* something was not given back */
    }
}

#endif
