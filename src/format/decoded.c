/* decoded.c - the elements of a weight that is stored quantized, computed from its parts.
 *
 * Rows are computed in tiles. For each, the layout names the bytes that it needs of every part; they are
 * read into one buffer, and the rows are computed from it: into the caller's memory where the whole tile
 * is wanted, else into a second buffer, which is kept for what is wanted next.
 *
 *   parts that are read row by row    a tile stays in the second-level cache
 *   parts stored the other way round  a tile needs a run of each of their rows: where they are small, those of
 *                                     a matrix are held, else tiles are large, so that runs are long
 *
 * A weight that is the transpose of what its parts give is computed whole, and turned, before the first element is
 * lent: memory for all of it.
 *
 * A part that does not stand in its file as it is used (deflated, strided, other byte order) is held
 * whole. Memory: TILE_BYTES or STRIDED_BYTES for each buffer, and the parts that are held; decoders may leave
 * it to each other, so that the kernel does not clear fresh pages for each.
 * Large results that stay where they are put are stored around the caches: they would push out what is read, and
 * memory would be read before it is written.
 * Source: docs/formats/quantized.md. */
#include "format/format.h"

#define TILE_BYTES ((uint64_t)256 << 10)
#define STRIDED_BYTES ((uint64_t)4 << 20)
#define HELD_BYTES                                                                                 \
    ((uint64_t)8 << 20) /* of a matrix of a part that is stored the other way round */
#define LENT_TILE_BYTES                                                                            \
    ((uint64_t)1 << 20)                  /* of rows that are computed from where parts are held */
#define PIECE_BYTES ((uint64_t)16 << 20) /* of elements that are read at once by one thread */
#define STREAM_BYTES ((uint64_t)1 << 20) /* of elements that are stored around the caches */
#define ALIGNMENT 64

struct held {
    uint8_t *data;
    uint64_t bytes;  /* of one matrix; of a part that does not stand as it is used, all */
    uint64_t matrix; /* which; UINT64_MAX: none yet */
};

struct heft__decoder {
    heft_ctx *ctx;
    const heft__decoded *decoded;
    heft__quant_weight weight;    /* as it is computed: perhaps of another dtype */
    heft__decoder_memory *memory; /* NULL: none */
    uint64_t columns, matrix_rows, row_bytes;
    uint64_t tile_rows;
    uint8_t *block; /* what is held, then the regions of a tile; each at a multiple of ALIGNMENT */
    size_t block_bytes;
    uint8_t *parts; /* the regions of a tile: in the block, or `more` */
    size_t parts_bytes;
    uint8_t *more;
    size_t more_bytes;
    uint8_t
        *rows; /* of the tile that was computed last for a caller who wants a part; NULL: none */
    size_t rows_bytes;
    uint64_t held_first, held_rows; /* which these are; held_rows 0: none */
    struct held held[HEFT__QUANT_PARTS];
};

/* ---- memory ------------------------------------------------------------------------------------- */
void heft__decoder_memory_init(heft__decoder_memory *memory, heft_ctx *ctx)
{
    *memory = (heft__decoder_memory){.ctx = ctx};
    pthread_mutex_init(&memory->lock, NULL);
}

void heft__decoder_memory_fini(heft__decoder_memory *memory)
{
    for (size_t i = 0; i < memory->count; i++) {
        heft__free(memory->ctx, memory->spare[i].start, memory->spare[i].bytes);
    }
    pthread_mutex_destroy(&memory->lock);
}

/* A block of at least *bytes, which is set to its size: one that is spare, or instead of one, so that there are
 * never more blocks than decoders at once. */
static uint8_t *take_block(heft_ctx *ctx, heft__decoder_memory *memory, size_t *bytes)
{
    heft__spare_block found = {0};
    if (memory) {
        pthread_mutex_lock(&memory->lock);
        for (size_t i = 0; i < memory->count; i++) {
            if (memory->spare[i].bytes >= *bytes || i + 1 == memory->count) {
                found = memory->spare[i];
                memory->spare[i] = memory->spare[--memory->count];
                break;
            }
        }
        pthread_mutex_unlock(&memory->lock);
    }
    if (found.start && found.bytes < *bytes) {
        heft__free(ctx, found.start, found.bytes);
        found.start = NULL;
    }
    if (!found.start) {
        found = (heft__spare_block){heft__alloc(ctx, *bytes), *bytes};
    }
    *bytes = found.bytes;
    return found.start;
}

static void leave_block(heft_ctx *ctx, heft__decoder_memory *memory, uint8_t *block, size_t bytes)
{
    if (block && memory) {
        pthread_mutex_lock(&memory->lock);
        if (memory->count < sizeof memory->spare / sizeof *memory->spare) {
            memory->spare[memory->count++] = (heft__spare_block){block, bytes};
            block = NULL;
        }
        pthread_mutex_unlock(&memory->lock);
    }
    heft__free(ctx, block, bytes);
}

/* ---- tiles ------------------------------------------------------------------------------------ */
static uint64_t aligned(uint64_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
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

static bool is_plain(const heft__decoded *decoded, uint32_t part)
{
    uint64_t offset;
    return heft__tensor_is_plain(decoded->file[part], decoded->part[part], &offset);
}

/* What of a part is held at once: all of it, or that of a matrix. */
static uint64_t slice_bytes(const heft__decoded *decoded, uint32_t part)
{
    const heft__quant_weight *weight = decoded->weight;
    const heft__file_tensor *tensor = decoded->part[part];
    const bool by_matrix = is_plain(decoded, part) && weight->rank == 3 && tensor->rank > 1 &&
                           tensor->shape[0] == weight->shape[0];
    return by_matrix ? tensor->size_bytes / tensor->shape[0] : tensor->size_bytes;
}

static bool is_held(const heft__decoded *decoded, uint32_t part)
{
    return decoded->part[part] &&
           (!is_plain(decoded, part) ||
            (slice_bytes(decoded, part) <= HELD_BYTES && is_turned(decoded->weight, part)));
}

/* Whether rows are computed from where a part is held; else a tile's runs are copied, as they are read where it is
 * not held. */
static bool is_lent(const heft__decoded *decoded, uint32_t part)
{
    return decoded->weight->layout->in_place && is_held(decoded, part);
}

/* The bytes of the buffer for regions that are not lent. */
static uint64_t sum_regions(const heft__decoded *decoded, const heft__quant_region *regions,
                            size_t count)
{
    uint64_t bytes = ALIGNMENT;
    for (size_t k = 0; k < count; k++) {
        bytes +=
            is_lent(decoded, regions[k].part) ? 0 : aligned(regions[k].length * regions[k].runs);
    }
    return bytes;
}

/* The same for the first rows of a weight. */
static uint64_t regions_bytes(const heft__decoded *decoded, uint64_t rows)
{
    heft__quant_region regions[HEFT__QUANT_REGIONS];
    const size_t count = decoded->weight->layout->regions(decoded->weight, 0, rows, regions);
    return sum_regions(decoded, regions, count);
}

static uint64_t all_held_bytes(const heft__decoded *decoded)
{
    uint64_t bytes = 0;
    for (uint32_t p = 0; p < HEFT__QUANT_PARTS; p++) {
        bytes += is_held(decoded, p) ? aligned(slice_bytes(decoded, p)) : 0;
    }
    return bytes;
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
    const bool strided = has_runs(decoded);
    const uint64_t most = strided ? STRIDED_BYTES : TILE_BYTES,
                   results = !strided && weight->layout->in_place ? LENT_TILE_BYTES : 2 * most;
    uint64_t rows = all;
    while (rows > step && (regions_bytes(decoded, rows) > most || rows * row_bytes > results)) {
        rows = (rows / 2 + step - 1) / step * step;
    }
    return rows < all ? rows : all;
}

uint64_t heft__decoded_heap(const heft__decoded *decoded)
{
    const heft__quant_weight *weight = decoded->weight;
    const uint64_t rows = rows_of_tile(decoded);
    const uint64_t row_bytes = heft__quant_columns(weight) * heft_dtype_bits(weight->dtype) / 8;
    return 2 * regions_bytes(decoded, rows) + all_held_bytes(decoded) + rows * row_bytes +
           (weight->turned ? heft__quant_matrix_rows(weight) * row_bytes : 0);
}

uint64_t heft__decoded_step(const heft__decoded *decoded)
{
    const heft__quant_weight *weight = decoded->weight;
    uint64_t elems = rows_of_tile(decoded) * heft__quant_columns(weight);
    if (weight->turned) {
        return UINT64_MAX; /* it would be turned for each piece */
    }
    for (uint32_t p = 0; p < HEFT__QUANT_PARTS; p++) {
        if (decoded->part[p] && !is_plain(decoded, p)) {
            return UINT64_MAX; /* it would be read for each piece */
        }
        if (is_held(decoded, p)) {
            elems = heft__quant_matrix_rows(weight) * heft__quant_columns(weight);
        }
    }
    const uint64_t bytes = elems * heft_dtype_bits(weight->dtype) / 8;
    return bytes && bytes < PIECE_BYTES ? elems * (PIECE_BYTES / bytes) : elems;
}

/* ---- making ----------------------------------------------------------------------------------- */
heft_status heft__decoder_new(heft_ctx *ctx, const heft__decoded *decoded,
                              heft__decoder_memory *memory, heft__decoder **out, heft_error *err)
{
    const heft__quant_weight *weight = decoded->weight;
    heft__decoder *d = heft__alloc_zero(ctx, 1, sizeof *d);
    if (!d) {
        return heft__fail_nomem(err, sizeof *d);
    }
    *d = (heft__decoder){.ctx = ctx,
                         .decoded = decoded,
                         .weight = *weight,
                         .memory = memory,
                         .columns = heft__quant_columns(weight),
                         .matrix_rows = heft__quant_matrix_rows(weight),
                         .tile_rows = rows_of_tile(decoded)};
    d->row_bytes = d->columns * heft_dtype_bits(weight->dtype) / 8;
    const uint64_t held = all_held_bytes(decoded), parts = regions_bytes(decoded, d->tile_rows),
                   bytes = held + parts + ALIGNMENT;
    if (heft__to_size(bytes, &d->block_bytes)) {
        d->block = take_block(ctx, memory, &d->block_bytes);
    }
    if (!d->block) {
        heft__free(ctx, d, sizeof *d);
        return heft__fail_nomem(err, bytes);
    }
    uint8_t *at = d->block + (ALIGNMENT - (uintptr_t)d->block % ALIGNMENT) % ALIGNMENT;
    for (uint32_t p = 0; p < HEFT__QUANT_PARTS; p++) {
        d->held[p].matrix = UINT64_MAX;
        if (is_held(decoded, p)) {
            d->held[p].data = at;
            d->held[p].bytes = slice_bytes(decoded, p);
            at += aligned(d->held[p].bytes);
        }
    }
    d->parts = at;
    d->parts_bytes = (size_t)parts;
    *out = d;
    return HEFT_OK;
}

bool heft__decoder_cast(heft__decoder *d, heft_dtype to)
{
    const heft__quant_weight *weight = d->decoded->weight;
    const bool can = to == weight->dtype || (weight->layout->is_cast && to == HEFT_DTYPE_BF16 &&
                                             weight->dtype == HEFT_DTYPE_F16);
    if (can && to != d->weight.dtype) {
        d->weight.through = to == weight->dtype ? HEFT_DTYPE_NONE : weight->dtype;
        d->weight.dtype = to;
        d->held_rows = 0;
    }
    return can;
}

void heft__decoder_free(heft__decoder *d)
{
    if (d) {
        leave_block(d->ctx, d->memory, d->block, d->block_bytes);
        heft__free(d->ctx, d->more, d->more_bytes);
        heft__free(d->ctx, d->rows, d->rows_bytes);
        heft__free(d->ctx, d, sizeof *d);
    }
}

/* ---- reading ---------------------------------------------------------------------------------- */
/* Read what is held of a part for a matrix, if it is not there yet. */
static heft_status hold(heft__decoder *d, uint32_t p, uint64_t matrix, heft_error *err)
{
    const heft__decoded *decoded = d->decoded;
    struct held *held = &d->held[p];
    uint64_t start = 0;
    const bool plain = heft__tensor_is_plain(decoded->file[p], decoded->part[p], &start);
    if (held->matrix == matrix) {
        return HEFT_OK;
    }
    held->matrix = UINT64_MAX;
    heft_status status = HEFT_OK;
    if (plain) {
        status = heft__input_read(decoded->file[p]->source, start + matrix * held->bytes,
                                  held->data, (size_t)held->bytes, err);
    } else {
        heft__tensor_reader *reader = NULL;
        status = heft__tensor_reader_new(d->ctx, decoded->file[p], decoded->part[p], &reader, err);
        if (status == HEFT_OK) {
            status = heft__tensor_reader_fill(reader, held->data, (size_t)held->bytes, err);
        }
        heft__tensor_reader_free(reader);
    }
    held->matrix = status == HEFT_OK ? matrix : UINT64_MAX;
    return status;
}

/* held: the first run; NULL: they are read. */
static heft_status read_runs(const heft__decoder *d, const heft__quant_region *region,
                             const uint8_t *held, uint8_t *dst, heft_error *err)
{
    const heft__file *file = d->decoded->file[region->part];
    uint64_t start = 0;
    heft_status status = HEFT_OK;
    (void)heft__tensor_is_plain(file, d->decoded->part[region->part], &start);
    for (uint64_t r = 0; r < region->runs && status == HEFT_OK; r++, dst += region->length) {
        const uint64_t from = region->offset + r * region->stride;
        if (held) {
            memcpy(dst, held + r * region->stride, (size_t)region->length);
        } else {
            status = heft__input_read(file->source, start + from, dst, (size_t)region->length, err);
        }
    }
    return status;
}

/* Bring a region of a matrix in: where it is held, or to dst. */
static heft_status read_region(heft__decoder *d, const heft__quant_region *region, uint64_t matrix,
                               uint8_t *dst, heft__quant_bytes *out, heft_error *err)
{
    const struct held *held = &d->held[region->part];
    const heft__file *file = d->decoded->file[region->part];
    const heft__file_tensor *tensor = d->decoded->part[region->part];
    const uint64_t slice = held->data && held->bytes < tensor->size_bytes ? matrix : 0;
    const uint8_t *first = held->data ? held->data + (region->offset - slice * held->bytes) : NULL;
    heft_status status = first ? hold(d, region->part, slice, err) : HEFT_OK;
    if (first && d->decoded->weight->layout->in_place) {
        *out = (heft__quant_bytes){first, region->stride};
    } else {
        status = status == HEFT_OK ? read_runs(d, region, first, dst, err) : status;
        *out = (heft__quant_bytes){dst, region->length};
    }
    heft__add_item(status, err, tensor->name);
    return heft__add_path(status, err, heft__input_path(file->source));
}

/* Room for the regions: a tile that begins within a block of scales may need more than the first one. */
static heft_status reserve_parts(heft__decoder *d, const heft__quant_region *regions, size_t count,
                                 heft_error *err)
{
    const uint64_t bytes = sum_regions(d->decoded, regions, count);
    size_t wanted;
    if (bytes <= d->parts_bytes) {
        return HEFT_OK;
    }
    uint8_t *more = heft__to_size(bytes, &wanted) ? heft__alloc(d->ctx, wanted) : NULL;
    if (!more) {
        return heft__fail_nomem(err, bytes);
    }
    heft__free(d->ctx, d->more, d->more_bytes);
    d->more = more;
    d->more_bytes = wanted;
    d->parts = more;
    d->parts_bytes = wanted;
    return HEFT_OK;
}

/* Rows first .. first + rows - 1, of one tile, into dst. */
static heft_status decode_rows(heft__decoder *d, uint64_t first, uint64_t rows, void *dst,
                               bool stream, heft_error *err)
{
    const heft__quant_weight *weight = &d->weight;
    heft__quant_region regions[HEFT__QUANT_REGIONS];
    heft__quant_bytes bytes[HEFT__QUANT_REGIONS] = {{0}};
    const size_t count = weight->layout->regions(weight, first, rows, regions);
    heft_status status = reserve_parts(d, regions, count, err);
    if (status != HEFT_OK) {
        return status;
    }
    uint8_t *to = d->parts + (ALIGNMENT - (uintptr_t)d->parts % ALIGNMENT) % ALIGNMENT;
    for (size_t k = 0; k < count && status == HEFT_OK; k++) {
        status = read_region(d, &regions[k], first / d->matrix_rows, to, &bytes[k], err);
        to +=
            is_lent(d->decoded, regions[k].part) ? 0 : aligned(regions[k].length * regions[k].runs);
    }
    if (status == HEFT_OK) {
        status =
            heft__add_item(weight->layout->decode(weight, first, rows, bytes, dst, stream, err),
                           err, weight->name);
    }
    if (stream) {
        heft__nibble_lanes()->settle();
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

/* ---- the transpose ----------------------------------------------------------------------------- */
/* Put rows first .. first + count - 1 of a matrix of `rows` rows into its transpose. */
static void turn(void *to, const void *from, uint64_t first, uint64_t count, uint64_t rows,
                 uint64_t columns, size_t width)
{
    for (uint64_t c = 0; c < columns; c++) {
        uint8_t *line = (uint8_t *)to + (size_t)((c * rows + first) * width);
        const uint8_t *column = (const uint8_t *)from + (size_t)c * width;
        for (uint64_t r = 0; r < count; r++) {
            memcpy(line + (size_t)r * width, column + (size_t)(r * columns) * width, width);
        }
    }
}

/* Compute all of a turned weight, if it is not there yet. */
static heft_status hold_turned(heft__decoder *d, heft_error *err)
{
    const size_t width = heft_dtype_bits(d->weight.dtype) / 8;
    const uint64_t bytes = d->matrix_rows * d->row_bytes, tile_bytes = d->tile_rows * d->row_bytes;
    size_t wanted = 0, tile = 0;
    if (d->held_rows > 0) {
        return HEFT_OK;
    }
    const bool fits = heft__to_size(bytes, &wanted) && heft__to_size(tile_bytes, &tile);
    if (fits && !d->rows) {
        d->rows = heft__alloc(d->ctx, wanted);
        d->rows_bytes = d->rows ? wanted : 0;
    }
    uint8_t *rows = fits && d->rows ? heft__alloc(d->ctx, tile) : NULL;
    if (!rows) {
        return heft__fail_nomem(err, bytes);
    }
    heft_status status = HEFT_OK;
    for (uint64_t first = 0; first < d->matrix_rows && status == HEFT_OK; first += d->tile_rows) {
        const uint64_t left = d->matrix_rows - first,
                       count = left < d->tile_rows ? left : d->tile_rows;
        status = decode_rows(d, first, count, rows, false, err);
        if (status == HEFT_OK) {
            turn(d->rows, rows, first, count, d->matrix_rows, d->columns, width);
        }
    }
    heft__free(d->ctx, rows, tile);
    d->held_rows = status == HEFT_OK ? d->matrix_rows : 0;
    return status;
}

static heft_status lend_turned(heft__decoder *d, uint64_t first, const void **rows, uint64_t *count,
                               heft_error *err)
{
    const heft_status status = hold_turned(d, err);
    if (status == HEFT_OK) {
        *rows = d->rows + (size_t)first * (heft_dtype_bits(d->weight.dtype) / 8);
        *count = d->matrix_rows * d->columns - first;
    }
    return status;
}

/* ---- elements ----------------------------------------------------------------------------------- */
heft_status heft__decoder_lend(heft__decoder *d, uint64_t first, const void **rows, uint64_t *count,
                               heft_error *err)
{
    if (d->weight.turned) {
        return lend_turned(d, first, rows, count, err);
    }
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
        const heft_status status = decode_rows(d, tile.first, tile.rows, d->rows, false, err);
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
                               bool stay, heft_error *err)
{
    const size_t width = heft_dtype_bits(d->decoded->weight->dtype) / 8;
    heft_status status = HEFT_OK;
    const bool stream = stay && count * width >= STREAM_BYTES;
    uint8_t *to = dst;
    while (count > 0 && status == HEFT_OK) {
        const struct tile tile = tile_of(d, first);
        uint64_t some = tile.rows * d->columns;
        const bool whole = !d->weight.turned && first == tile.first * d->columns && count >= some;
        if (whole && (uintptr_t)to % width == 0) {
            status = decode_rows(d, tile.first, tile.rows, to, stream, err);
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
