/* tensor_reader.c - the bytes of one tensor, row by row and little-endian, however they are stored,
 * in pieces.
 *
 *   plain      storage bytes as they are: read straight into the caller's memory
 *   deflated   inflated from the storage's start on; what lies before the tensor is passed over
 *   strided    strided.c gathers boxes of the output
 *   decoded    decoded.c computes what is stored quantized
 *
 * Behind all of them: bytes are swapped where the file is big-endian, and a conj or neg view is
 * resolved by turning signs. Memory: none for plain tensors, 64 KiB and zlib's window for deflated
 * ones, a window of 256 KiB for strided ones; a strided view of a deflated storage holds that
 * storage whole. Source: docs/formats/torch_zip.md [5]. */
#include "format/strided.h"
#include "format/zip.h"

struct heft__tensor_reader {
    heft_ctx *ctx;
    const heft__file *file; /* borrowed, as the next two */
    const heft__file_tensor *tensor;
    const heft__file_storage *storage;
    size_t elem_bytes;
    uint64_t done;            /* bytes handed out */
    heft__inflater *inflater; /* deflated */
    heft__strided *strided;
    heft__decoder *decoder;
    uint8_t *whole; /* deflated and strided: the storage */
    size_t whole_bytes;
};

/* ---- what stands as it is used --------------------------------------------------------------- */
bool heft__tensor_is_mappable(const heft__file *file, const heft__file_tensor *tensor)
{
    const bool swapped = file->big_endian && heft__dtype_swap_bytes(tensor->dtype) > 1;
    return !file->storages[tensor->storage].deflated && !swapped && !tensor->conj && !tensor->neg &&
           !tensor->decoded;
}

bool heft__tensor_is_plain(const heft__file *file, const heft__file_tensor *tensor,
                           uint64_t *offset)
{
    if (tensor->strides || !heft__tensor_is_mappable(file, tensor)) {
        return false;
    }
    *offset = file->storages[tensor->storage].offset + tensor->start;
    return true;
}

/* ---- opening --------------------------------------------------------------------------------- */
static heft_status inflate_whole(heft__tensor_reader *reader, heft_error *err)
{
    const heft__file_storage *storage = reader->storage;
    heft__inflater *inflater = NULL;
    if (!heft__to_size(storage->bytes, &reader->whole_bytes)) {
        return heft__fail_nomem(err, storage->bytes);
    }
    reader->whole = heft__alloc(
        reader->ctx, reader->whole_bytes); /* its ratio was checked when the file was opened */
    if (!reader->whole) {
        return heft__fail_nomem(err, storage->bytes);
    }
    heft_status status = heft__inflater_new(reader->ctx, reader->file->source, storage->offset,
                                            storage->stored_bytes, storage->bytes, &inflater, err);
    if (status == HEFT_OK) {
        status = heft__inflater_read(inflater, reader->whole, reader->whole_bytes, err);
    }
    heft__inflater_free(inflater);
    return status;
}

static heft_status skip(heft__tensor_reader *reader, heft_error *err)
{
    uint8_t scratch[4096];
    heft_status status = HEFT_OK;
    for (uint64_t left = reader->tensor->start; left && status == HEFT_OK;) {
        const size_t piece = left < sizeof scratch ? (size_t)left : sizeof scratch;
        status = heft__inflater_read(reader->inflater, scratch, piece, err);
        left -= piece;
    }
    return status;
}

static heft_status open_parts(heft__tensor_reader *reader, heft_error *err)
{
    const heft__file_storage *storage = reader->storage;
    heft_status status = HEFT_OK;
    if (reader->tensor->size_bytes == 0) {
        return HEFT_OK;
    }
    if (reader->tensor->decoded) {
        return heft__decoder_new(reader->ctx, reader->tensor->decoded, NULL, &reader->decoder, err);
    }
    if (storage->deflated && !reader->tensor->strides) {
        status = heft__inflater_new(reader->ctx, reader->file->source, storage->offset,
                                    storage->stored_bytes, storage->bytes, &reader->inflater, err);
        return status == HEFT_OK ? skip(reader, err) : status;
    }
    if (storage->deflated) {
        status = inflate_whole(reader, err);
    }
    if (status == HEFT_OK && reader->tensor->strides) {
        status =
            heft__strided_new(reader->ctx, reader->file->source, storage->offset, reader->whole,
                              reader->tensor, reader->elem_bytes, &reader->strided, err);
    }
    return status;
}

heft_status heft__tensor_reader_new(heft_ctx *ctx, const heft__file *file,
                                    const heft__file_tensor *tensor, heft__tensor_reader **out,
                                    heft_error *err)
{
    heft__tensor_reader *reader = heft__alloc_zero(ctx, 1, sizeof *reader);
    if (!reader) {
        return heft__fail_nomem(err, sizeof *reader);
    }
    const unsigned bits = heft_dtype_bits(tensor->dtype);
    *reader = (heft__tensor_reader){
        .ctx = ctx, .file = file, .tensor = tensor, .storage = &file->storages[tensor->storage]};
    reader->elem_bytes = bits % 8 ? 1 : bits / 8; /* types below a byte are read by bytes */
    heft_status status = heft__add_item(open_parts(reader, err), err, tensor->name);
    if (status != HEFT_OK) {
        heft__tensor_reader_free(reader);
        return heft__add_path(status, err, heft__input_path(file->source));
    }
    *out = reader;
    return HEFT_OK;
}

void heft__tensor_reader_free(heft__tensor_reader *reader)
{
    if (reader) {
        heft__inflater_free(reader->inflater);
        heft__strided_free(reader->strided);
        heft__decoder_free(reader->decoder);
        heft__free(reader->ctx, reader->whole, reader->whole_bytes);
        heft__free(reader->ctx, reader, sizeof *reader);
    }
}

/* ---- what is done to the bytes --------------------------------------------------------------- */
static void swap_bytes(uint8_t *bytes, size_t length, size_t width)
{
    for (size_t i = 0; i + width <= length; i += width) {
        for (size_t a = 0, b = width - 1; a < b; a++, b--) {
            const uint8_t byte = bytes[i + a];
            bytes[i + a] = bytes[i + b];
            bytes[i + b] = byte;
        }
    }
}

/* Turn the sign bit of every number whose place in its element is wanted; floats are negated just
 * so. */
static void flip_signs(uint8_t *bytes, size_t length, size_t width, size_t first, size_t step)
{
    for (size_t i = first * width; i + width <= length; i += step * width) {
        bytes[i + width - 1] ^= 0x80;
    }
}

static void resolve(const heft__tensor_reader *reader, uint8_t *bytes, size_t length)
{
    const heft__file_tensor *tensor = reader->tensor;
    const size_t width = heft__dtype_swap_bytes(tensor->dtype);
    if (reader->file->big_endian && width > 1 && !tensor->decoded) {
        swap_bytes(bytes, length, width);
    }
    if (tensor->conj) {
        flip_signs(bytes, length, width, 1, 2);
    }
    if (tensor->neg) {
        flip_signs(bytes, length, width, 0, 1);
    }
}

/* ---- reading --------------------------------------------------------------------------------- */
heft_status heft__tensor_reader_next(heft__tensor_reader *reader, void *dst, size_t cap,
                                     size_t *length, heft_error *err)
{
    const heft__file_tensor *tensor = reader->tensor;
    const uint64_t left = tensor->size_bytes - reader->done;
    size_t piece = cap - cap % reader->elem_bytes;
    heft_status status = HEFT_OK;
    if (piece > left) {
        piece = (size_t)left;
    }
    if (piece && reader->strided) {
        status = heft__strided_next(reader->strided, dst, piece, &piece, err);
    } else if (piece && reader->decoder) {
        status = heft__decoder_read(reader->decoder, reader->done / reader->elem_bytes,
                                    piece / reader->elem_bytes, dst, false, err);
    } else if (piece && reader->inflater) {
        status = heft__inflater_read(reader->inflater, dst, piece, err);
    } else if (piece) {
        status = heft__input_read(reader->file->source,
                                  reader->storage->offset + tensor->start + reader->done, dst,
                                  piece, err);
    }
    if (status != HEFT_OK) {
        heft__add_item(status, err, tensor->name);
        return heft__add_path(status, err, heft__input_path(reader->file->source));
    }
    resolve(reader, dst, piece);
    reader->done += piece;
    *length = piece;
    return HEFT_OK;
}

/* ---- CRC ------------------------------------------------------------------------------------- */
static heft_status crc_of(heft_ctx *ctx, const heft__file *file, const heft__file_storage *storage,
                          void *scratch, size_t scratch_bytes, uint32_t *crc, heft_error *err)
{
    heft__inflater *inflater = NULL;
    heft_status status = HEFT_OK;
    uint32_t sum = 0;
    if (storage->deflated) {
        status = heft__inflater_new(ctx, file->source, storage->offset, storage->stored_bytes,
                                    storage->bytes, &inflater, err);
    }
    for (uint64_t done = 0; done < storage->bytes && status == HEFT_OK;) {
        const uint64_t left = storage->bytes - done;
        const size_t piece = left < scratch_bytes ? (size_t)left : scratch_bytes;
        status = inflater
                     ? heft__inflater_read(inflater, scratch, piece, err)
                     : heft__input_read(file->source, storage->offset + done, scratch, piece, err);
        if (status == HEFT_OK) {
            sum = heft__crc32(sum, scratch, piece);
        }
        done += piece;
    }
    heft__inflater_free(inflater);
    *crc = sum;
    return status;
}

heft_status heft__storage_check_crc(heft_ctx *ctx, const heft__file *file, size_t storage,
                                    void *scratch, size_t scratch_bytes, bool *checked, bool *equal,
                                    uint32_t *found, heft_error *err)
{
    const heft__file_storage *run = &file->storages[storage];
    uint32_t crc = 0;
    if (run->has_crc) {
        heft_status status = crc_of(ctx, file, run, scratch, scratch_bytes, &crc, err);
        if (status != HEFT_OK) {
            heft__add_item(status, err, run->record);
            return heft__add_path(status, err, heft__input_path(file->source));
        }
    }
    *checked = run->has_crc;
    *equal = !run->has_crc || crc == run->crc;
    *found = crc;
    return HEFT_OK;
}
