/* piece.c - parameters' bytes from their files into memory, in pieces that threads can share.
 *
 * A plain tensor is read piece by piece straight from the file, past the page cache where that is
 * asked for; one that is stored quantized is computed in pieces of whole rows; the rest (strided,
 * deflated, other byte order) is one piece. A cast goes through one
 * small buffer per piece. Not done here: deciding what is read, and whose memory it is. */
#include "load/load.h"

#define SCRATCH_BYTES ((size_t)256 << 10) /* of one cast: stays in the second-level cache */
/* Of one cast of a direct read: with the spare bytes one huge page, which the kernel gives to what has just
 * its size. Half of the time of 1 MB in small pages, and less than that of 4 MB. */
#define DIRECT_BYTES (((size_t)2 << 20) - HEFT__SPARE_BYTES)

uint8_t *heft__in_phase(uint8_t *base, uint64_t offset)
{
    const uintptr_t block = HEFT__DIRECT_BLOCK,
                    start = ((uintptr_t)base + block - 1) / block * block;
    return base + (start - (uintptr_t)base) + offset % block;
}

void heft__pieces_init(heft__pieces *pieces, const heft_checkpoint *ckpt)
{
    *pieces = (heft__pieces){.ckpt = ckpt};
}

void heft__pieces_fini(heft__pieces *pieces)
{
    heft_ctx *ctx = pieces->ckpt->ctx;
    if (pieces->memory) {
        heft__decoder_memory_fini(pieces->memory);
        heft__free(ctx, pieces->memory, sizeof *pieces->memory);
    }
    heft__free(ctx, pieces->list, pieces->cap * sizeof *pieces->list);
    heft__pieces_init(pieces, pieces->ckpt);
}

uint64_t heft__part_offset(const heft_checkpoint *ckpt, size_t tensor, uint64_t first)
{
    const heft_tensor_info *info = &ckpt->infos[tensor];
    const uint64_t bits = heft_dtype_bits(info->dtype);
    return info->offset == HEFT_NO_OFFSET || bits < 8 ? HEFT_NO_OFFSET
                                                      : info->offset + first * bits / 8;
}

/* How many elements a piece has. */
static uint64_t piece_step(const heft__pieces *pieces, const heft__part *part, uint64_t offset)
{
    const heft__decoded *decoded = pieces->ckpt->entries[part->tensor]->decoded;
    const uint64_t bits = heft_dtype_bits(pieces->ckpt->infos[part->tensor].dtype);
    return decoded                    ? heft__decoded_step(decoded)
           : offset == HEFT_NO_OFFSET ? part->elems
                                      : HEFT__READ_BYTES * 8 / bits;
}

static heft_status need_memory(heft__pieces *pieces, heft_error *err)
{
    if (!pieces->memory) {
        pieces->memory = heft__alloc(pieces->ckpt->ctx, sizeof *pieces->memory);
        if (!pieces->memory) {
            return heft__fail_nomem(err, sizeof *pieces->memory);
        }
        heft__decoder_memory_init(pieces->memory, pieces->ckpt->ctx);
    }
    return HEFT_OK;
}

heft_status heft__pieces_add(heft__pieces *pieces, const heft__part *part, size_t owner,
                             heft_error *err)
{
    const uint64_t offset = heft__part_offset(pieces->ckpt, part->tensor, part->first);
    const uint64_t bits = heft_dtype_bits(pieces->ckpt->infos[part->tensor].dtype);
    const bool decoded = pieces->ckpt->entries[part->tensor]->decoded != NULL;
    const bool whole = offset == HEFT_NO_OFFSET && !decoded;
    const uint64_t step = piece_step(pieces, part, offset);
    /* Pieces of a direct read end where blocks do, so that none writes into another's. */
    const bool direct = part->direct && part->spare && !whole && !decoded;
    const uint64_t before = direct ? offset % HEFT__DIRECT_BLOCK : 0;
    const bool spill = direct && (before * 8) % bits == 0;
    uint64_t count;
    if (decoded) {
        const heft_status status = need_memory(pieces, err);
        if (status != HEFT_OK) {
            return status;
        }
    }
    for (uint64_t first = 0; first < part->elems; first += count) {
        count = first == 0 && spill ? step - before * 8 / bits : step;
        count = part->elems - first < count ? part->elems - first : count;
        if (!heft__array_reserve(pieces->ckpt->ctx, (void **)&pieces->list, pieces->count,
                                 &pieces->cap, sizeof *pieces->list)) {
            return heft__fail_nomem(err, sizeof *pieces->list);
        }
        pieces->list[pieces->count++] = (heft__piece){
            .owner = owner,
            .tensor = part->tensor,
            .first = first,
            .count = count,
            .offset = whole     ? 0
                      : decoded ? part->first + first
                                : offset + first * bits / 8,
            .to = part->to,
            .whole = whole,
            .decoded = decoded,
            .direct = part->direct,
            .spill = spill,
        };
    }
    pieces->bytes += part->elems * bits / 8;
    return HEFT_OK;
}

uint64_t heft__piece_bytes(const heft__pieces *pieces, size_t i)
{
    const heft__piece *piece = &pieces->list[i];
    return piece->count * heft_dtype_bits(pieces->ckpt->infos[piece->tensor].dtype) / 8;
}

uint64_t heft__part_scratch(const heft_checkpoint *ckpt, const heft__part *part)
{
    const heft__file_tensor *tensor = ckpt->entries[part->tensor];
    const heft__file_storage *storage =
        &heft__file_of(ckpt, part->tensor)->storages[tensor->storage];
    const bool plain = heft__part_offset(ckpt, part->tensor, part->first) != HEFT_NO_OFFSET;
    uint64_t bytes = 0;
    if (ckpt->infos[part->tensor].dtype != part->to) {
        bytes = part->direct && plain ? DIRECT_BYTES + HEFT__SPARE_BYTES : SCRATCH_BYTES;
    }
    if (tensor->strides && storage->deflated) {
        bytes += storage->bytes; /* unpacked before it is put in order */
    }
    if (tensor->decoded) {
        bytes += heft__decoded_heap(tensor->decoded);
    }
    return bytes;
}

uint64_t heft__pieces_staging(const heft__pieces *pieces, size_t threads)
{
    const heft_checkpoint *ckpt = pieces->ckpt;
    const size_t openers = heft__threads(ckpt->ctx);
    const size_t opened = ckpt->file_count < openers ? ckpt->file_count : openers;
    uint64_t most = 0, count = 0;
    threads = pieces->count < threads ? pieces->count : threads;
    for (size_t i = 0; i < pieces->count; i++) {
        const heft__piece *piece = &pieces->list[i];
        const heft__part part = {.tensor = piece->tensor, .to = piece->to, .direct = piece->direct};
        const uint64_t bytes = heft__part_scratch(ckpt, &part);
        most = bytes > most ? bytes : most;
        count += bytes > 0;
    }
    /* the pool keeps the threads that opened the files */
    const size_t stacks = opened > 1 && opened > threads ? opened : threads;
    return most * (count < threads ? count : threads) + stacks * HEFT__THREAD_BYTES;
}

/* ---- reading --------------------------------------------------------------------------------- */
static heft_status read_bytes(const heft_checkpoint *ckpt, const heft__piece *piece,
                              uint64_t offset, void *dst, size_t length, bool spill,
                              heft_error *err)
{
    heft__input *source = heft__file_of(ckpt, piece->tensor)->source;
    return piece->direct ? heft__input_read_direct(source, offset, dst, length, spill, err)
                         : heft__input_read(source, offset, dst, length, err);
}

/* Through a buffer, which for direct reads has the file's phase. */
static heft_status read_cast(const heft_checkpoint *ckpt, const heft__piece *piece, uint8_t *dst,
                             heft_error *err)
{
    const heft_dtype from = ckpt->infos[piece->tensor].dtype;
    const size_t bytes = piece->direct ? DIRECT_BYTES : SCRATCH_BYTES;
    const size_t from_bytes = heft_dtype_bits(from) / 8;
    const size_t to_bytes = heft_dtype_bits(piece->to) / 8, most = bytes / from_bytes;
    const size_t room = bytes + HEFT__SPARE_BYTES;
    uint8_t *scratch = heft__alloc(ckpt->ctx, room);
    heft_status status = scratch ? HEFT_OK : heft__fail_nomem(err, room);
    for (uint64_t done = 0; done < piece->count && status == HEFT_OK;) {
        const uint64_t left = piece->count - done, offset = piece->offset + done * from_bytes;
        const size_t elems = left < most ? (size_t)left : most;
        uint8_t *read_to = heft__in_phase(scratch, offset);
        status = read_bytes(ckpt, piece, offset, read_to, elems * from_bytes, true, err);
        if (status == HEFT_OK) {
            heft__cast(piece->to, dst + done * to_bytes, from, read_to, elems);
        }
        done += elems;
    }
    heft__free(ckpt->ctx, scratch, room);
    return status;
}

/* Computed; where it is cast, by the decoder if it can, else tile by tile from its memory. */
static heft_status read_decoded(const heft__pieces *pieces, const heft__piece *piece, uint8_t *dst,
                                heft_error *err)
{
    const heft_checkpoint *ckpt = pieces->ckpt;
    const heft_dtype from = ckpt->infos[piece->tensor].dtype;
    const size_t to_bytes = heft_dtype_bits(piece->to) / 8;
    heft__decoder *decoder = NULL;
    heft_status status = heft__decoder_new(ckpt->ctx, ckpt->entries[piece->tensor]->decoded,
                                           pieces->memory, &decoder, err);
    const bool cast = status == HEFT_OK && !heft__decoder_cast(decoder, piece->to);
    if (status == HEFT_OK && !cast) {
        status = heft__decoder_read(decoder, piece->offset, piece->count, dst, true, err);
    }
    for (uint64_t done = 0; done < piece->count && cast && status == HEFT_OK;) {
        const void *elements = NULL;
        uint64_t some = 0;
        status = heft__decoder_lend(decoder, piece->offset + done, &elements, &some, err);
        some = piece->count - done < some ? piece->count - done : some;
        if (status == HEFT_OK) {
            heft__cast(piece->to, dst + done * to_bytes, from, elements, (size_t)some);
        }
        done += some;
    }
    heft__decoder_free(decoder);
    return status;
}

static heft_status read_whole(const heft_checkpoint *ckpt, const heft__piece *piece, uint8_t *dst,
                              heft_error *err)
{
    const heft_tensor_info *info = &ckpt->infos[piece->tensor];
    if (info->dtype == piece->to) {
        return heft_checkpoint_read(ckpt, piece->tensor, dst, info->size_bytes, err);
    }
    heft__tensor_reader *reader = NULL;
    uint8_t *scratch = heft__alloc(ckpt->ctx, SCRATCH_BYTES);
    heft_status status =
        scratch ? heft__tensor_reader_new(ckpt->ctx, heft__file_of(ckpt, piece->tensor),
                                          ckpt->entries[piece->tensor], &reader, err)
                : heft__fail_nomem(err, SCRATCH_BYTES);
    size_t got = 1;
    while (status == HEFT_OK && got > 0) {
        status = heft__tensor_reader_next(reader, scratch, SCRATCH_BYTES, &got, err);
        if (status == HEFT_OK) {
            size_t elems = got / (heft_dtype_bits(info->dtype) / 8);
            heft__cast(piece->to, dst, info->dtype, scratch, elems);
            dst += elems * (heft_dtype_bits(piece->to) / 8);
        }
    }
    heft__tensor_reader_free(reader);
    heft__free(ckpt->ctx, scratch, SCRATCH_BYTES);
    return status;
}

heft_status heft__piece_read(const heft__pieces *pieces, size_t i, uint8_t *memory, heft_error *err)
{
    const heft_checkpoint *ckpt = pieces->ckpt;
    const heft__piece *piece = &pieces->list[i];
    const heft_tensor_info *info = &ckpt->infos[piece->tensor];
    uint8_t *dst = memory + piece->first * (heft_dtype_bits(piece->to) / 8);
    heft_status status;
    if (piece->whole) {
        status = read_whole(ckpt, piece, memory, err);
    } else if (piece->decoded) {
        status = read_decoded(pieces, piece, dst, err);
    } else if (info->dtype != piece->to) {
        status = read_cast(ckpt, piece, dst, err);
    } else {
        status = read_bytes(ckpt, piece, piece->offset, dst, (size_t)heft__piece_bytes(pieces, i),
                            piece->spill, err);
    }
    heft__add_item(status, err, info->name);
    return heft__add_path(status, err, ckpt->files[info->file_index].info.path);
}

size_t heft__reading_threads(heft_ctx *ctx, bool disk)
{
    const size_t threads = heft__threads(ctx);
    return disk && threads > 1 && threads < HEFT__DISK_THREADS ? HEFT__DISK_THREADS : threads;
}

bool heft__file_is_cold(const heft_checkpoint *ckpt, size_t file)
{
    heft__input *source = ckpt->files[file].file->source;
    const uint64_t size = heft__input_size(source);
    return size >= HEFT__DIRECT_LEAST && !heft__input_network(source) &&
           heft__input_residency(source, 0, size) < HEFT__COLD;
}

heft_status heft__tensors_equal(const heft_checkpoint *ckpt, size_t a, size_t b, bool *equal,
                                heft_error *err)
{
    const heft__file *const files[2] = {heft__file_of(ckpt, a), heft__file_of(ckpt, b)};
    const heft__file_tensor *const tensors[2] = {ckpt->entries[a], ckpt->entries[b]};
    return heft__file_tensors_equal(ckpt->ctx, files, tensors, equal, err);
}
