/* tensor_fill.c - reading on until a buffer is full: for callers that want a fixed number of bytes.
 */
#include "format/format.h"

heft_status heft__tensor_reader_fill(heft__tensor_reader *reader, void *dst, size_t length,
                                     heft_error *err)
{
    size_t done = 0;
    while (done < length) {
        size_t piece = 0;
        heft_status status =
            heft__tensor_reader_next(reader, (uint8_t *)dst + done, length - done, &piece, err);
        if (status != HEFT_OK) {
            return status;
        }
        if (piece == 0) {
            return heft__fail(err, HEFT_FORMAT, "the tensor ends %zu bytes early", length - done);
        }
        done += piece;
    }
    return HEFT_OK;
}
