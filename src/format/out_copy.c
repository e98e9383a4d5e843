/* out_copy.c - the bytes of a tensor, from who has them through the staging buffer into the open file. */
#include "format/format.h"

heft_status heft__out_copy(const heft__out_io *io, const heft__out_tensor *tensor, uint32_t *crc,
                           heft_error *err)
{
    const size_t most = io->scratch_bytes - io->scratch_bytes % HEFT__OUT_GRAIN;
    heft_status status = HEFT_OK;
    if (most == 0) {
        return heft__fail(err, HEFT_INVALID_ARG, "the staging buffer has %zu bytes, %d are needed",
                          io->scratch_bytes, HEFT__OUT_GRAIN);
    }
    for (uint64_t done = 0; done < tensor->size_bytes && status == HEFT_OK;) {
        const uint64_t left = tensor->size_bytes - done;
        const size_t piece = left < most ? (size_t)left : most;
        status = io->read(io->user, tensor, done, io->scratch, piece, err);
        if (status == HEFT_OK) {
            status = heft__folder_write(io->folder, io->scratch, piece, err);
        }
        if (status == HEFT_OK && crc) {
            *crc = heft__crc32(*crc, io->scratch, piece);
        }
        done += piece;
    }
    return heft__add_item(status, err, tensor->name);
}
