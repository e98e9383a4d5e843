/* decoded.c - the elements of a weight that is stored quantized, computed from its parts.
 *
 * Rows are computed in tiles. For each, the layout names the bytes that it needs of every part; they are
 * read into one buffer, and the rows are computed from it: into the caller's memory where the whole tile
 * is wanted, else into a second buffer, which is kept for what is wanted next.
 *
 *   parts that are read row by row    a tile stays in the second-level cache
 *   parts stored the other way round  a tile needs a run of each of their rows: where they are small they
 *                                     are held whole, else tiles are large, so that runs are long
 *
 * A part that does not stand in its file as it is used (deflated, strided, other byte order) is held
 * whole, too. Memory: TILE_BYTES or STRIDED_BYTES for each buffer, and the parts that are held.
 * Source: docs/formats/quantized.md. */
#include "format/format.h"

#define TILE_BYTES ((uint64_t)256 << 10)
#define STRIDED_BYTES ((uint64_t)4 << 20)
#define HELD_BYTES ((uint64_t)8 << 20)   /* of a part that is stored the other way round */
#define PIECE_BYTES ((uint64_t)16 << 20) /* of elements that are read at once by one thread */
#define ALIGNMENT 64

struct heft__decoder {
    heft_ctx *ctx;
    const heft__decoded *decoded;
    uint64_t columns, matrix_rows, row_bytes;
    uint64_t tile_rows;
    uint8_t *parts; /* the regions of a tile, each at a multiple of ALIGNMENT */
    size_t parts_bytes;
    uint8_t
        *rows; /* of the tile that was computed last for a caller who wants a part; NULL: none */
    size_t rows_bytes;
    uint64_t held_first, held_rows;    /* which these are; held_rows 0: none */
    uint8_t *whole[HEFT__QUANT_PARTS]; /* parts that are held */
    size_t whole_bytes[HEFT__QUANT_PARTS];
};

/* ---- tiles ------------------------------------------------------------------------------------ */
static uint64_t part_bytes(const heft__decoded *decoded, uint32_t part)
{
    return decoded->part[part]->size_bytes;
}

/* The bytes of the buffer for regions. */
static uint64_t sum_regions(const heft__quant_region *regions, size_t count)
{
    uint64_t bytes = ALIGNMENT;
    for (size_t k = 0; k < count; k++) {
        bytes += (regions[k].length * regions[k].runs + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    return bytes;
}

/* The same for the first rows of a weight. */
static uint64_t regions_bytes(const heft__quant_weight *weight, uint64_t rows)
{
    heft__quant_region regions[HEFT__QUANT_REGIONS];
    return sum_regions(regions, weight->layout->regions(weight, 0, rows, regions));
}

/* Whether a part is stored the other way round: tiles have runs of it. */
static bool is_turned(const heft__quant_weight *weight, uint32_t part)
{
    heft__quant_region regions[HEFT__QUANT_REGIONS];
    const size_t count = weight->layout->regions(weight, 0, 1, regions);
    for (size_t k = 0; k < count; k++) {
        if (regions[k].part == part && regions[k].runs > 1) {
            return true;
        }
    }
    return false;
}

/* Whether a part is read whole at once. */
static bool is_held(const heft__decoded *decoded, uint32_t part)
{
    uint64_t offset;
    return decoded->part[part] &&
           (!heft__tensor_is_plain(decoded->file[part], decoded->part[part], &offset) ||
            (decoded->part[part]->size_bytes <= HELD_BYTES && is_turned(decoded->weight, part)));
}

/* Whether a part is read in runs. */
static bool has_runs(const heft__decoded *decoded)
{
    for (uint32_t p = 0; p < HEFT__QUANT_PARTS; p++) {
        if (decoded->part[p] && is_turned(decoded->weight, p) && !is_held(decoded, p)) {
            return true;
        }
    }
    return false;
}

/* Rows of a tile: as many as stay within the bounds, a multiple of the layout's step, at least one step. */
static uint64_t rows_of_tile(const heft__decoded *decoded)
{
    const heft__quant_weight *weight = decoded->weight;
    const uint64_t step = weight->layout->row_step, all = heft__quant_matrix_rows(weight);
    const uint64_t row_bytes = heft__quant_columns(weight) * heft_dtype_bits(weight->dtype) / 8;
    const uint64_t most = has_runs(decoded) ? STRIDED_BYTES : TILE_BYTES;
    uint64_t rows = all;
    while (rows > step && (regions_bytes(weight, rows) > most || rows * row_bytes > 2 * most)) {
        rows = (rows / 2 + step - 1) / step * step;
    }
    return rows < all ? rows : all;
}

uint64_t heft__decoded_heap(const heft__decoded *decoded)
{
    const heft__quant_weight *weight = decoded->weight;
    const uint64_t rows = rows_of_tile(decoded);
    uint64_t bytes = 2 * regions_bytes(weight, rows) +
                     rows * heft__quant_columns(weight) * heft_dtype_bits(weight->dtype) / 8;
    for (uint32_t p = 0; p < HEFT__QUANT_PARTS; p++) {
        bytes += is_held(decoded, p) ? part_bytes(decoded, p) : 0;
    }
    return bytes;
}

uint64_t heft__decoded_step(const heft__decoded *decoded)
{
    const heft__quant_weight *weight = decoded->weight;
    const uint64_t tile = rows_of_tile(decoded) * heft__quant_columns(weight);
    const uint64_t bytes = tile * heft_dtype_bits(weight->dtype) / 8;
    for (uint32_t p = 0; p < HEFT__QUANT_PARTS; p++) {
        if (is_held(decoded, p)) {
            return UINT64_MAX; /* it would be read for each piece */
        }
    }
    return bytes && bytes < PIECE_BYTES ? tile * (PIECE_BYTES / bytes) : tile;
}

/* ---- making ----------------------------------------------------------------------------------- */
static heft_status hold_part(heft__decoder *d, uint32_t p, heft_error *err)
{
    const heft__decoded *decoded = d->decoded;
    heft__tensor_reader *reader = NULL;
    if (!heft__to_size(part_bytes(decoded, p), &d->whole_bytes[p])) {
        return heft__fail_nomem(err, part_bytes(decoded, p));
    }
    d->whole[p] = heft__alloc(d->ctx, d->whole_bytes[p]);
    if (!d->whole[p]) {
        return heft__fail_nomem(err, d->whole_bytes[p]);
    }
    heft_status status =
        heft__tensor_reader_new(d->ctx, decoded->file[p], decoded->part[p], &reader, err);
    if (status == HEFT_OK) {
        status = heft__tensor_reader_fill(reader, d->whole[p], d->whole_bytes[p], err);
    }
    heft__tensor_reader_free(reader);
    return status;
}

heft_status heft__decoder_new(heft_ctx *ctx, const heft__decoded *decoded, heft__decoder **out,
                              heft_error *err)
{
    const heft__quant_weight *weight = decoded->weight;
    heft__decoder *d = heft__alloc_zero(ctx, 1, sizeof *d);
    if (!d) {
        return heft__fail_nomem(err, sizeof *d);
    }
    *d = (heft__decoder){.ctx = ctx,
                         .decoded = decoded,
                         .columns = heft__quant_columns(weight),
                         .matrix_rows = heft__quant_matrix_rows(weight),
                         .tile_rows = rows_of_tile(decoded)};
    d->row_bytes = d->columns * heft_dtype_bits(weight->dtype) / 8;
    const uint64_t bytes = regions_bytes(weight, d->tile_rows);
    heft_status status =
        heft__to_size(bytes, &d->parts_bytes) ? HEFT_OK : heft__fail_nomem(err, bytes);
    if (status == HEFT_OK) {
        d->parts = heft__alloc(ctx, d->parts_bytes);
        status = d->parts ? HEFT_OK : heft__fail_nomem(err, bytes);
    }
    for (uint32_t p = 0; p < HEFT__QUANT_PARTS && status == HEFT_OK; p++) {
        if (is_held(decoded, p)) {
            status = hold_part(d, p, err);
        }
    }
    if (status != HEFT_OK) {
        heft__decoder_free(d);
        return status;
    }
    *out = d;
    return HEFT_OK;
}

void heft__decoder_free(heft__decoder *d)
{
    for (uint32_t p = 0; d && p < HEFT__QUANT_PARTS; p++) {
        heft__free(d->ctx, d->whole[p], d->whole_bytes[p]);
    }
    if (d) {
        heft__free(d->ctx, d->parts, d->parts_bytes);
        heft__free(d->ctx, d->rows, d->rows_bytes);
        heft__free(d->ctx, d, sizeof *d);
    }
}

/* ---- reading ---------------------------------------------------------------------------------- */
static heft_status read_region(const heft__decoder *d, const heft__quant_region *region,
                               uint8_t *dst, heft_error *err)
{
    const heft__file *file = d->decoded->file[region->part];
    const heft__file_tensor *tensor = d->decoded->part[region->part];
    const uint8_t *whole = d->whole[region->part];
    uint64_t start = 0;
    heft_status status = HEFT_OK;
    (void)heft__tensor_is_plain(file, tensor, &start);
    for (uint64_t r = 0; r < region->runs && status == HEFT_OK; r++, dst += region->length) {
        const uint64_t from = region->offset + r * region->stride;
        if (whole) {
            memcpy(dst, whole + from, (size_t)region->length);
        } else {
            status = heft__input_read(file->source, start + from, dst, (size_t)region->length, err);
        }
    }
    heft__add_item(status, err, tensor->name);
    return heft__add_path(status, err, heft__input_path(file->source));
}

/* Room for the regions: a tile that begins within a block of scales may need more than the first one. */
static heft_status reserve_parts(heft__decoder *d, const heft__quant_region *regions, size_t count,
                                 heft_error *err)
{
    const uint64_t bytes = sum_regions(regions, count);
    size_t wanted;
    if (bytes <= d->parts_bytes) {
        return HEFT_OK;
    }
    uint8_t *parts = heft__to_size(bytes, &wanted) ? heft__alloc(d->ctx, wanted) : NULL;
    if (!parts) {
        return heft__fail_nomem(err, bytes);
    }
    heft__free(d->ctx, d->parts, d->parts_bytes);
    d->parts = parts;
    d->parts_bytes = wanted;
    return HEFT_OK;
}

/* Rows first .. first + rows - 1, of one tile, into dst. */
static heft_status decode_rows(heft__decoder *d, uint64_t first, uint64_t rows, void *dst,
                               heft_error *err)
{
    const heft__quant_weight *weight = d->decoded->weight;
    heft__quant_region regions[HEFT__QUANT_REGIONS];
    const uint8_t *bytes[HEFT__QUANT_REGIONS] = {NULL};
    const size_t count = weight->layout->regions(weight, first, rows, regions);
    heft_status status = reserve_parts(d, regions, count, err);
    if (status != HEFT_OK) {
        return status;
    }
    const uintptr_t start = (uintptr_t)d->parts,
                    aligned = (start + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    uint8_t *to = d->parts + (aligned - start);
    for (size_t k = 0; k < count && status == HEFT_OK; k++) {
        const uint64_t length = regions[k].length * regions[k].runs;
        bytes[k] = to;
        status = read_region(d, &regions[k], to, err);
        to += (length + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    if (status == HEFT_OK) {
        status = heft__add_item(weight->layout->decode(weight, first, rows, bytes, dst, err), err,
                                weight->name);
    }
    return status;
}

/* The tile that has an element. */
struct tile {
    uint64_t first, rows; /* rows of the weight */
};

static struct tile tile_of(const heft__decoder *d, uint64_t element)
{
    const uint64_t row = element / d->columns, matrix = row / d->matrix_rows;
    const uint64_t begin = row % d->matrix_rows / d->tile_rows * d->tile_rows;
    const uint64_t left = d->matrix_rows - begin;
    return (struct tile){.first = matrix * d->matrix_rows + begin,
                         .rows = left < d->tile_rows ? left : d->tile_rows};
}

heft_status heft__decoder_lend(heft__decoder *d, uint64_t first, const void **rows, uint64_t *count,
                               heft_error *err)
{
    const struct tile tile = tile_of(d, first);
    const size_t width = heft_dtype_bits(d->decoded->weight->dtype) / 8;
    const uint64_t skip = first - tile.first * d->columns;
    if (!d->rows) {
        d->rows_bytes = (size_t)(d->tile_rows * d->row_bytes);
        d->rows = heft__alloc(d->ctx, d->rows_bytes);
        if (!d->rows) {
            return heft__fail_nomem(err, d->rows_bytes);
        }
    }
    if (d->held_rows == 0 || d->held_first != tile.first) {
        d->held_rows = 0;
        const heft_status status = decode_rows(d, tile.first, tile.rows, d->rows, err);
        if (status != HEFT_OK) {
            return status;
        }
        d->held_first = tile.first;
        d->held_rows = tile.rows;
    }
    *rows = d->rows + (size_t)skip * width;
    *count = tile.rows * d->columns - skip;
    return HEFT_OK;
}

heft_status heft__decoder_read(heft__decoder *d, uint64_t first, uint64_t count, void *dst,
                               heft_error *err)
{
    const size_t width = heft_dtype_bits(d->decoded->weight->dtype) / 8;
    heft_status status = HEFT_OK;
    uint8_t *to = dst;
    while (count > 0 && status == HEFT_OK) {
        const struct tile tile = tile_of(d, first);
        uint64_t some = tile.rows * d->columns;
        if (first == tile.first * d->columns && count >= some && (uintptr_t)to % width == 0) {
            status = decode_rows(d, tile.first, tile.rows, to, err);
        } else {
            const void *rows = NULL;
            status = heft__decoder_lend(d, first, &rows, &some, err);
            some = some < count ? some : count;
            if (status == HEFT_OK) {
                memcpy(to, rows, (size_t)some * width);
            }
        }
        first += some;
        count -= some;
        to += some * width;
    }
    return status;
}
