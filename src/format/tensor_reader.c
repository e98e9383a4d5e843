/* tensor_reader.c - a tensor's bytes in pieces: row by row, little-endian, conj and neg applied.
 *
 * A plain tensor is read straight into the caller's buffer. A view with strides is read as boxes of
 * whole rows: within a box each run along the dimension of the smallest stride is one read, and its
 * elements are spread out in memory; so a transposed matrix costs a read per column piece and not
 * one per element. A deflated storage is inflated whole. Trusted: the views, which were checked
 * against their storages when the file was opened.
 * Source: docs/formats/torch_zip.md [5]. */
#include "format/torch.h"

#define RUN_BYTES ((size_t)1 << 20) /* of one read with gaps */

struct heft__tensor_reader {
    heft_ctx *ctx;
    const heft__file *file;
    const heft__file_tensor *tensor;
    uint8_t *inflated;    /* the whole storage, where it is deflated */
    uint8_t *run;         /* RUN_BYTES, where a run has gaps */
    uint64_t elems, done; /* elements */
    size_t elem_bytes;
};

static const heft__file_storage *storage_of(const heft__file *file, const heft__file_tensor *tensor)
{
    return &file->storages[tensor->storage];
}

static bool swapped(const heft__file *file, const heft__file_tensor *tensor)
{
    return file->big_endian && heft__dtype_swap_bytes(tensor->dtype) > 1;
}

bool heft__tensor_is_mappable(const heft__file *file, const heft__file_tensor *tensor)
{
    return !storage_of(file, tensor)->deflated && !swapped(file, tensor) && !tensor->conj &&
           !tensor->neg;
}

bool heft__tensor_is_plain(const heft__file *file, const heft__file_tensor *tensor,
                           uint64_t *offset)
{
    *offset = storage_of(file, tensor)->offset + tensor->start;
    return heft__tensor_is_mappable(file, tensor) && !tensor->strides;
}

heft_status heft__tensor_reader_new(heft_ctx *ctx, const heft__file *file,
                                    const heft__file_tensor *tensor, heft__tensor_reader **out,
                                    heft_error *err)
{
    const heft__file_storage *storage = storage_of(file, tensor);
    heft__tensor_reader *reader = heft__alloc_zero(ctx, 1, sizeof *reader);
    heft_status status = HEFT_OK;
    if (!reader) {
        return heft__fail_nomem(err, sizeof *reader);
    }
    unsigned bits = heft_dtype_bits(tensor->dtype);
    *reader = (heft__tensor_reader){.ctx = ctx, .file = file, .tensor = tensor};
    reader->elem_bytes = bits < 8 ? 1 : bits / 8;
    reader->elems =
        tensor->size_bytes / reader->elem_bytes; /* below 8 bits: bytes, and no strides */
    if (storage->deflated) {
        status = heft__inflate(ctx, file->source, storage->offset, storage->stored_bytes,
                               storage->bytes, &reader->inflated, err);
    }
    if (status == HEFT_OK && tensor->strides) {
        reader->run = heft__alloc(ctx, RUN_BYTES);
        status = reader->run ? HEFT_OK : heft__fail_nomem(err, RUN_BYTES);
    }
    if (status == HEFT_OK) {
        *out = reader;
    } else {
        heft__tensor_reader_free(reader);
    }
    return status;
}

void heft__tensor_reader_free(heft__tensor_reader *reader)
{
    if (reader) {
        heft_ctx *ctx = reader->ctx;
        heft__free(ctx, reader->inflated, (size_t)storage_of(reader->file, reader->tensor)->bytes);
        heft__free(ctx, reader->run, RUN_BYTES);
        heft__free(ctx, reader, sizeof *reader);
    }
}

/* Bytes of the storage as used, from the tensor's first element on. */
static heft_status read_storage(heft__tensor_reader *reader, uint64_t at, void *dst, size_t length,
                                heft_error *err)
{
    uint64_t from = reader->tensor->start + at;
    if (reader->inflated) {
        memcpy(dst, reader->inflated + from, length);
        return HEFT_OK;
    }
    return heft__source_read(reader->file->source,
                             storage_of(reader->file, reader->tensor)->offset + from, dst, length,
                             err);
}

/* ---- strides
 * --------------------------------------------------------------------------------------------------
 */
struct box { /* a part of the tensor: first index and extent of each dimension */
    uint64_t first[64], extent[64];
    uint64_t elems;
};

/* The largest box that begins at element `done`, is contiguous row by row, and has at most `room`
 * elements. */
static void next_box(const heft__tensor_reader *reader, uint64_t room, struct box *box)
{
    const heft__file_tensor *t = reader->tensor;
    uint64_t rest = reader->done;
    for (uint32_t d = t->rank; d-- > 0;) {
        box->first[d] = rest % t->shape[d];
        rest /= t->shape[d];
        box->extent[d] = 1;
    }
    box->elems = 1;
    for (uint32_t d = t->rank; d-- > 0;) {
        uint64_t fits = room / box->elems, left = t->shape[d] - box->first[d];
        box->extent[d] = left < fits ? left : fits;
        box->elems *= box->extent[d];
        if (box->extent[d] < t->shape[d]) { /* a part of this dimension: nothing further out */
            return;
        }
    }
}

/* The dimension of the box along which the storage is walked in the smallest steps. */
static uint32_t inner_dim(const heft__file_tensor *t, const struct box *box)
{
    uint32_t best = t->rank - 1;
    uint64_t smallest = UINT64_MAX;
    for (uint32_t d = 0; d < t->rank; d++) {
        uint64_t stride = (uint64_t)t->strides[d];
        if (box->extent[d] > 1 && stride > 0 && stride < smallest) {
            best = d;
            smallest = stride;
        }
    }
    return best;
}

/* `count` elements, `stride` apart in the storage from element `from` on, to every `step`-th
 * element of dst. */
static heft_status read_run(heft__tensor_reader *reader, uint64_t from, uint64_t stride,
                            uint64_t count, uint8_t *dst, uint64_t step, heft_error *err)
{
    const size_t size = reader->elem_bytes;
    if (stride == 1 && step == 1) {
        return read_storage(reader, from * size, dst, (size_t)(count * size), err);
    }
    uint64_t per_read = stride == 0 ? count : RUN_BYTES / size / stride;
    per_read = per_read == 0 ? 1 : per_read;
    for (uint64_t done = 0; done < count; done += per_read) {
        uint64_t some = count - done < per_read ? count - done : per_read;
        uint64_t span = stride == 0 ? 1 : (some - 1) * stride + 1;
        heft_status status = read_storage(reader, (from + done * stride) * size, reader->run,
                                          (size_t)(span * size), err);
        if (status != HEFT_OK) {
            return status;
        }
        for (uint64_t i = 0; i < some; i++) {
            memcpy(dst + (done + i) * step * size, reader->run + i * stride * size, size);
        }
    }
    return HEFT_OK;
}

static heft_status read_box(heft__tensor_reader *reader, const struct box *box, uint8_t *dst,
                            heft_error *err)
{
    const heft__file_tensor *t = reader->tensor;
    uint32_t inner = inner_dim(t, box);
    uint64_t step[64], index[64] = {0};
    uint64_t runs = box->elems / box->extent[inner];
    for (uint32_t d = t->rank, width = 0; d-- > 0; width = 1) {
        step[d] = width ? step[d + 1] * box->extent[d + 1] : 1;
    }
    for (uint64_t k = 0; k < runs; k++) {
        uint64_t from = 0, to = 0;
        for (uint32_t d = 0; d < t->rank; d++) {
            from += (box->first[d] + index[d]) * (uint64_t)t->strides[d];
            to += index[d] * step[d];
        }
        heft_status status = read_run(reader, from, (uint64_t)t->strides[inner], box->extent[inner],
                                      dst + to * reader->elem_bytes, step[inner], err);
        if (status != HEFT_OK) {
            return status;
        }
        for (uint32_t d = t->rank;
             d-- > 0;) { /* the next run: count up all dimensions but the inner one */
            if (d != inner && ++index[d] < box->extent[d]) {
                break;
            }
            index[d] = 0;
        }
    }
    return HEFT_OK;
}

/* ---- what is done to the bytes
 * ------------------------------------------------------------------------------------ */
static void swap_bytes(uint8_t *bytes, size_t length, size_t width)
{
    for (size_t i = 0; i + width <= length; i += width) {
        for (size_t k = 0; k < width / 2; k++) {
            uint8_t kept = bytes[i + k];
            bytes[i + k] = bytes[i + width - 1 - k];
            bytes[i + width - 1 - k] = kept;
        }
    }
}

/* Flip the sign bit of every `step`-th number of `width` bytes from `first` on: floats only have
 * one. */
static void flip_signs(uint8_t *bytes, size_t length, size_t width, size_t first, size_t step)
{
    for (size_t i = first * width; i + width <= length; i += step * width) {
        bytes[i + width - 1] ^= 0x80;
    }
}

static heft_status finish_piece(const heft__tensor_reader *reader, uint8_t *bytes, size_t length,
                                heft_error *err)
{
    const heft__file_tensor *t = reader->tensor;
    size_t width = heft__dtype_swap_bytes(t->dtype);
    bool complex_numbers = heft__dtype_is_complex(t->dtype);
    if (swapped(reader->file, t)) {
        swap_bytes(bytes, length, width);
    }
    if ((t->neg && !complex_numbers && !heft_dtype_is_floating(t->dtype)) ||
        (t->conj && !complex_numbers)) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, t->item_offset,
                             "a negated or conjugated view of %s", heft_dtype_name(t->dtype));
    }
    if (t->neg) {
        flip_signs(bytes, length, width, 0, 1);
    }
    if (t->conj) {
        flip_signs(bytes, length, width, 1, 2); /* the imaginary part */
    }
    return HEFT_OK;
}

heft_status heft__tensor_reader_next(heft__tensor_reader *reader, void *dst, size_t cap,
                                     size_t *length, heft_error *err)
{
    uint64_t left = reader->elems - reader->done, room = cap / reader->elem_bytes,
             elems = left < room ? left : room;
    heft_status status = HEFT_OK;
    if (elems == 0) {
        *length = 0;
        return left ? heft__fail(err, HEFT_INVALID_ARG, "a buffer of %zu bytes holds no element",
                                 cap)
                    : HEFT_OK;
    }
    if (reader->tensor->strides) {
        struct box box;
        next_box(reader, elems, &box);
        elems = box.elems;
        status = read_box(reader, &box, dst, err);
    } else {
        status = read_storage(reader, reader->done * reader->elem_bytes, dst,
                              (size_t)(elems * reader->elem_bytes), err);
    }
    size_t bytes = (size_t)(elems * reader->elem_bytes);
    if (status == HEFT_OK) {
        status = finish_piece(reader, dst, bytes, err);
    }
    if (status == HEFT_OK) {
        reader->done += elems;
        *length = bytes;
    }
    return status;
}

/* ---- CRC
 * -----------------------------------------------------------------------------------------------------------
 */
heft_status heft__storage_check_crc(heft_ctx *ctx, const heft__file *file, size_t storage,
                                    void *scratch, size_t scratch_bytes, bool *checked, bool *equal,
                                    uint32_t *found, heft_error *err)
{
    const heft__file_storage *run = &file->storages[storage];
    uint32_t crc = 0;
    heft_status status = HEFT_OK;
    *checked = run->has_crc;
    *equal = true;
    if (!run->has_crc) {
        return HEFT_OK;
    }
    if (run->deflated) {
        uint8_t *bytes = NULL;
        status = heft__inflate(ctx, file->source, run->offset, run->stored_bytes, run->bytes,
                               &bytes, err);
        if (status == HEFT_OK) {
            crc = heft__crc32(0, bytes, (size_t)run->bytes);
            heft__free(ctx, bytes, (size_t)run->bytes);
        }
    }
    for (uint64_t done = 0; !run->deflated && done < run->bytes && status == HEFT_OK;) {
        size_t piece =
            run->bytes - done < scratch_bytes ? (size_t)(run->bytes - done) : scratch_bytes;
        status = heft__source_read(file->source, run->offset + done, scratch, piece, err);
        if (status == HEFT_OK) {
            crc = heft__crc32(crc, scratch, piece);
        }
        done += piece;
    }
    *found = crc;
    *equal = crc == run->crc;
    return status;
}
