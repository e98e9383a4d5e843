/* strided.h - private to the layer: gathering a strided view into rows.
 * Source: docs/formats/torch_zip.md [5]. */
#ifndef HEFT__FORMAT_STRIDED_H
#define HEFT__FORMAT_STRIDED_H

#include "format/format.h"

typedef struct heft__strided heft__strided;

/* The view of `tensor`, which has strides and at least one element, on the storage that begins at
 * `offset` in the source, or at `whole` in memory if that is not NULL. All are borrowed. */
heft_status heft__strided_new(heft_ctx *ctx, heft__input *source, uint64_t offset,
                              const uint8_t *whole, const heft__file_tensor *tensor,
                              size_t elem_bytes, heft__strided **out, heft_error *err);
/* Fill the next *length <= cap bytes, whole elements, at least one. cap is at most what is left. */
heft_status heft__strided_next(heft__strided *strided, void *dst, size_t cap, size_t *length,
                               heft_error *err);
void heft__strided_free(heft__strided *strided); /* NULL allowed */

#endif
