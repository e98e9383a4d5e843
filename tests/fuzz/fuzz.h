/* fuzz.h - what the fuzz targets share: a context with small limits, and reading all of a file. */
#ifndef HEFT_FUZZ_H
#define HEFT_FUZZ_H

#include "checkpoint/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void fuzz_expect(bool holds)
{
    if (!holds) {
        abort();
    }
}

static inline heft_ctx *fuzz_ctx(void)
{
    static heft_ctx *ctx;
    if (!ctx) {
        const heft_ctx_options options = HEFT_OPTIONS(heft_ctx_options, .threads = 1);
        ctx = heft_ctx_new(&options);
    }
    return ctx;
}

static inline heft__input *fuzz_source(const uint8_t *data, size_t size)
{
    heft__input *source = NULL;
    heft_error err;
    return heft__input_from_bytes(fuzz_ctx(), "fuzz", data, size, &source, &err) == HEFT_OK ? source
                                                                                            : NULL;
}

/* Everything was given back. */
static inline void fuzz_expect_nothing_live(void)
{
    uint64_t live;
    heft_ctx_memory(fuzz_ctx(), &live, NULL);
    fuzz_expect(live == 0);
}

/* Read every tensor through a small buffer, so that lengths are odd. */
static inline void fuzz_read_tensors(const heft__file *file)
{
    uint64_t budget = (uint64_t)8 << 20; /* an expanded view may claim very much */
    heft_error err;
    for (size_t i = 0; i < file->tensor_count; i++) {
        heft__tensor_reader *reader = NULL;
        uint8_t piece[208];
        size_t length = 1;
        heft_status status =
            heft__tensor_reader_new(fuzz_ctx(), file, &file->tensors[i], &reader, &err);
        while (status == HEFT_OK && length > 0 && budget > sizeof piece) {
            status = heft__tensor_reader_next(reader, piece, sizeof piece, &length, &err);
            budget -= sizeof piece;
        }
        heft__tensor_reader_free(reader);
    }
}

/* The first element, read as its type: what is mapped is aligned. */
static inline void fuzz_read_typed(const heft_tensor *tensor)
{
    if (tensor->size_bytes == 0) {
        return;
    }
    switch (heft__dtype_alignment(tensor->dtype)) {
    case 2:
        (void)*(const volatile uint16_t *)tensor->data;
        break;
    case 4:
        (void)*(const volatile uint32_t *)tensor->data;
        break;
    case 8:
    case 16:
        (void)*(const volatile uint64_t *)tensor->data;
        break;
    default:
        (void)*(const volatile uint8_t *)tensor->data;
        break;
    }
}

/* The bytes, which may have any address, as a checkpoint whose tensors are mapped. */
static inline void fuzz_map_tensors(const uint8_t *data, size_t size)
{
    heft_storage *storage = NULL;
    heft_checkpoint *ckpt = NULL;
    heft_error err;
    if (heft_storage_wrap_const(fuzz_ctx(), data, size, NULL, NULL, &storage, &err) == HEFT_OK &&
        heft_checkpoint_open_bytes(fuzz_ctx(), "fuzz", storage, NULL, &ckpt, &err) == HEFT_OK) {
        for (size_t i = 0; i < heft_checkpoint_count(ckpt) && i < 64; i++) {
            heft_tensor *tensor = NULL;
            if (heft_checkpoint_info(ckpt, i)->size_bytes <= (uint64_t)1 << 20 &&
                heft_checkpoint_map(ckpt, i, HEFT_MAP_READ_ONLY, &tensor, &err) == HEFT_OK) {
                fuzz_read_typed(tensor);
                heft_tensor_free(tensor);
            }
        }
        heft_checkpoint_close(ckpt);
    }
    heft_storage_unref(storage);
}

/* The parts of the whole value: they nest, and refer to what is there and has ended. */
static inline void fuzz_read_value(const heft__file *file)
{
    heft_value value = {0};
    uint64_t depth = 0, text = 0;
    uint8_t *ended = calloc(file->value_count + 1, 1);
    size_t *begun = calloc(file->value_count + 1, sizeof *begun);
    for (size_t i = 0; ended && begun && heft__file_value_at(file, i, &value); i++) {
        const bool begins =
            value.kind >= HEFT_VALUE_LIST || (value.kind == HEFT_VALUE_TENSOR && value.attributes);
        if (value.kind == HEFT_VALUE_END) {
            fuzz_expect(depth > 0);
            ended[begun[--depth]] = 1;
        } else if (begins) {
            begun[depth++] = i;
        } else {
            ended[i] = 1;
        }
        fuzz_expect(value.kind != HEFT_VALUE_SAME || (value.number < i && ended[value.number]));
        fuzz_expect((value.kind != HEFT_VALUE_TENSOR && value.kind != HEFT_VALUE_STORAGE) ||
                    value.number < file->tensor_count);
        for (size_t j = 0; j < value.length && j < 64; j++) {
            text += (uint8_t)value.text[j] + (uint8_t)value.text[value.length - 1 - j];
        }
        value = (heft_value){0};
    }
    fuzz_expect(depth == 0 && text < UINT64_MAX && file->value_count > 0);
    free(ended);
    free(begun);
}

/* Bytes through the parser of one format, whatever they begin with. */
static inline void fuzz_parse(const uint8_t *data, size_t size, heft_format format,
                              bool whole_value)
{
    heft_ctx *ctx = fuzz_ctx();
    heft__input *source = fuzz_source(data, size);
    heft__file *file = source ? heft__alloc_zero(ctx, 1, sizeof *file) : NULL;
    heft_error err;
    if (file) {
        file->source = heft__input_ref(source);
        file->whole_value = whole_value;
        heft__arena_init(&file->arena, ctx);
        heft__warnings_init(&file->warnings, &file->arena);
        if (heft__format_find(format)->parse(ctx, file, &err) == HEFT_OK) {
            fuzz_read_tensors(file);
            if (whole_value) {
                fuzz_read_value(file);
            } else {
                fuzz_map_tensors(data, size);
            }
        }
        heft__file_close(ctx, file);
    }
    heft__input_unref(source);
    fuzz_expect_nothing_live();
}

static inline void fuzz_file(const uint8_t *data, size_t size, heft_format format)
{
    fuzz_parse(data, size, format, false);
    if (format == HEFT_FORMAT_TORCH || format == HEFT_FORMAT_TORCH_LEGACY ||
        format == HEFT_FORMAT_TORCH_TAR) {
        fuzz_parse(data, size, format, true);
    }
}

#endif
