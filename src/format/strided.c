/* strided.c - gathering a strided view into rows without one read per element.
 *
 * The output is made in boxes: as many whole rows (or planes, or elements) as fit into the caller's
 * buffer. A box is read in windows of the input of at most 256 KiB: beginning with the dimension of
 * smallest stride, dimensions join the window as long as it stays that small and the gaps that are
 * read for nothing are at most a page. From a window elements are scattered to the output along the
 * dimension that is densest there; a run that lies together in the output too is read in place.
 *
 *   transposed [R, C]: box = k rows; in the file C runs of k elements, several runs to a window
 *
 * Trusted: the extent, which was checked against the storage when the file was opened, so no sum
 * here can wrap. */
#include "format/strided.h"

#define RANK_MOST 64
#define WINDOW_BYTES ((size_t)256 << 10)
#define GAP_BYTES 4096 /* reading this much more costs no more than another call */

struct dim {
    uint64_t size;
    uint64_t in, out; /* steps in elements */
};

struct heft__strided {
    heft_ctx *ctx;
    heft__input *source;
    uint64_t offset;      /* of element 0 in the source */
    const uint8_t *whole; /* element 0 in memory, or NULL */
    size_t elem_bytes;
    uint32_t rank;
    struct dim dims[RANK_MOST]; /* in PyTorch's order; `out` is the row-by-row stride */
    uint64_t done;              /* elements */
    uint8_t *window;
};

/* ---- opening --------------------------------------------------------------------------------- */
/* Dimensions of one element go; those that are one run with the next are joined with it. */
static void simplify(heft__strided *strided, const heft__file_tensor *tensor)
{
    struct dim *dims = strided->dims;
    uint32_t rank = 0;
    for (uint32_t i = 0; i < tensor->rank; i++) {
        const struct dim dim = {.size = tensor->shape[i], .in = (uint64_t)tensor->strides[i]};
        if (dim.size == 1) {
            continue;
        }
        if (rank && dims[rank - 1].in == dim.in * dim.size) {
            dims[rank - 1].size *= dim.size;
            dims[rank - 1].in = dim.in;
        } else {
            dims[rank++] = dim;
        }
    }
    if (rank == 0) {
        dims[rank++] = (struct dim){.size = 1, .in = 1};
    }
    uint64_t out = 1;
    for (uint32_t i = rank; i-- > 0;) {
        dims[i].out = out;
        out *= dims[i].size;
    }
    strided->rank = rank;
}

heft_status heft__strided_new(heft_ctx *ctx, heft__input *source, uint64_t offset,
                              const uint8_t *whole, const heft__file_tensor *tensor,
                              size_t elem_bytes, heft__strided **out, heft_error *err)
{
    if (tensor->rank > RANK_MOST) {
        return heft__fail(err, HEFT_LIMIT, "a strided view of %u dimensions, the limit is %d",
                          tensor->rank, RANK_MOST);
    }
    heft__strided *strided = heft__alloc_zero(ctx, 1, sizeof *strided);
    if (!strided) {
        return heft__fail_nomem(err, sizeof *strided);
    }
    *strided = (heft__strided){.ctx = ctx,
                               .source = source,
                               .offset = offset + tensor->start,
                               .whole = whole ? whole + tensor->start : NULL,
                               .elem_bytes = elem_bytes};
    simplify(strided, tensor);
    if (!whole) {
        strided->window = heft__alloc(ctx, WINDOW_BYTES);
        if (!strided->window) {
            heft__strided_free(strided);
            return heft__fail_nomem(err, WINDOW_BYTES);
        }
    }
    *out = strided;
    return HEFT_OK;
}

void heft__strided_free(heft__strided *strided)
{
    if (strided) {
        heft__free(strided->ctx, strided->window, WINDOW_BYTES);
        heft__free(strided->ctx, strided, sizeof *strided);
    }
}

/* ---- scattering ------------------------------------------------------------------------------ */
#define COPY_RUN(bytes)                                                                            \
    for (uint64_t i = 0; i < count; i++) {                                                         \
        memcpy(dst + i * out, src + i * in, bytes);                                                \
    }

/* Steps are in bytes here. */
static void copy_run(uint8_t *dst, uint64_t out, const uint8_t *src, uint64_t in, uint64_t count,
                     size_t elem)
{
    if (in == elem && out == elem) {
        memcpy(dst, src, (size_t)count * elem); /* of a window */
        return;
    }
    switch (elem) {
    case 1:
        COPY_RUN(1)
        break;
    case 2:
        COPY_RUN(2)
        break;
    case 4:
        COPY_RUN(4)
        break;
    case 8:
        COPY_RUN(8)
        break;
    default:
        COPY_RUN(elem)
        break;
    }
}

static void sort_dims(struct dim *dims, uint32_t count, bool by_out)
{
    for (uint32_t i = 1; i < count; i++) {
        const struct dim dim = dims[i];
        const uint64_t key = by_out ? dim.out : dim.in;
        uint32_t at = i;
        while (at > 0 && (by_out ? dims[at - 1].out : dims[at - 1].in) > key) {
            dims[at] = dims[at - 1];
            at--;
        }
        dims[at] = dim;
    }
}

/* Step an odometer over dims[first .. count): false when it has gone round. */
static bool advance(const struct dim *dims, uint32_t first, uint32_t count, uint64_t *index,
                    uint64_t *in, uint64_t *out)
{
    for (uint32_t d = first; d < count; d++) {
        *in += dims[d].in;
        *out += dims[d].out;
        if (++index[d] < dims[d].size) {
            return true;
        }
        *in -= dims[d].in * dims[d].size;
        *out -= dims[d].out * dims[d].size;
        index[d] = 0;
    }
    return false;
}

/* All elements of `dims` from src to dst. Sorts dims by their steps in the output. */
static void scatter(struct dim *dims, uint32_t count, const uint8_t *src, uint8_t *dst, size_t elem)
{
    uint64_t index[RANK_MOST] = {0}, in = 0, out = 0;
    sort_dims(dims, count, true);
    do {
        copy_run(dst + out * elem, dims[0].out * elem, src + in * elem, dims[0].in * elem,
                 dims[0].size, elem);
    } while (advance(dims, 1, count, index, &in, &out));
}

/* ---- windows --------------------------------------------------------------------------------- */
static heft_status read_window(heft__strided *strided, uint64_t in, uint64_t span,
                               const uint8_t **src, heft_error *err)
{
    if (strided->whole) {
        *src = strided->whole + in * strided->elem_bytes;
        return HEFT_OK;
    }
    *src = strided->window;
    return heft__input_read(strided->source, strided->offset + in * strided->elem_bytes,
                            strided->window, (size_t)span * strided->elem_bytes, err);
}

static heft_status read_run(heft__strided *strided, uint64_t in, uint64_t span, uint8_t *dst,
                            heft_error *err)
{
    return heft__input_read(strided->source, strided->offset + in * strided->elem_bytes, dst,
                            (size_t)span * strided->elem_bytes, err);
}

/* How many steps of a dimension, given what is in the window already, may join it; 1: none. */
static uint64_t may_join(const heft__strided *strided, const struct dim *dim, uint64_t span)
{
    const uint64_t elem = strided->elem_bytes, room = WINDOW_BYTES / elem;
    if (strided->whole || dim->in == 0) {
        return dim->size;
    }
    const uint64_t gap = dim->in > span ? dim->in - span : 0;
    if (gap * elem > GAP_BYTES || dim->in > room - span) {
        return 1;
    }
    const uint64_t steps = (room - span) / dim->in + 1;
    return steps < dim->size ? steps : dim->size;
}

/* Whether a window is one run that also lies together in the output: it needs no window. */
static bool is_run(const heft__strided *strided, const struct dim *dims, uint32_t joined,
                   uint64_t steps)
{
    return !strided->whole && dims[0].in == 1 && dims[0].out == 1 &&
           (joined == 0 || (joined == 1 && steps == 1));
}

/* Read a box: dims sorted by input step; the first `joined` and `steps` of the next make a window.
 */
static heft_status read_box(heft__strided *strided, struct dim *dims, uint32_t count, uint64_t in,
                            uint8_t *dst, heft_error *err)
{
    uint64_t span = 1, steps = 1, index[RANK_MOST] = {0}, out = 0;
    uint32_t joined = 0;
    heft_status status = HEFT_OK;
    sort_dims(dims, count, false);
    for (; joined < count; joined++) {
        steps = may_join(strided, &dims[joined], span);
        if (steps < dims[joined].size) {
            break;
        }
        span += (steps - 1) * dims[joined].in;
    }
    const bool run = is_run(strided, dims, joined, joined < count ? steps : 1);
    if (run && joined == 0) {
        steps = dims[0].size;
    }
    do {
        uint64_t done = 0, total = joined < count ? dims[joined].size : 1;
        while (done < total && status == HEFT_OK) {
            struct dim window[RANK_MOST + 1];
            const uint64_t now = joined < count && steps < total - done ? steps : total - done;
            const uint64_t step_in = joined < count ? dims[joined].in : 0,
                           step_out = joined < count ? dims[joined].out : 0;
            uint8_t *to = dst + (out + done * step_out) * strided->elem_bytes;
            const uint8_t *src = NULL;
            memcpy(window, dims, joined * sizeof *dims);
            window[joined] = (struct dim){.size = now, .in = step_in, .out = step_out};
            const uint64_t at = in + done * step_in, length = span + (now - 1) * step_in;
            status = run ? read_run(strided, at, length, to, err)
                         : read_window(strided, at, length, &src, err);
            if (status == HEFT_OK && !run) {
                scatter(window, joined + (joined < count ? 1 : 0), src, to, strided->elem_bytes);
            }
            done += now;
        }
    } while (status == HEFT_OK && joined < count &&
             advance(dims, joined + 1, count, index, &in, &out));
    return status;
}

/* ---- boxes ----------------------------------------------------------------------------------- */
heft_status heft__strided_next(heft__strided *strided, void *dst, size_t cap, size_t *length,
                               heft_error *err)
{
    const uint64_t room = cap / strided->elem_bytes;
    struct dim box[RANK_MOST];
    uint64_t index[RANK_MOST], rest = strided->done, in = 0;
    uint32_t outer = strided->rank - 1;
    for (uint32_t d = 0; d < strided->rank; d++) {
        index[d] = rest / strided->dims[d].out;
        rest %= strided->dims[d].out;
        in += index[d] * strided->dims[d].in;
    }
    while (outer > 0 && index[outer] == 0 && strided->dims[outer - 1].out <= room) {
        outer--;
    }
    const uint32_t count = strided->rank - outer;
    memcpy(box, strided->dims + outer, count * sizeof *box);
    const uint64_t fit = room / box[0].out, left = box[0].size - index[outer];
    box[0].size = fit < left ? fit : left;
    const uint64_t elems = box[0].size * box[0].out;
    heft_status status = read_box(strided, box, count, in, dst, err);
    if (status == HEFT_OK) {
        strided->done += elems;
        *length = (size_t)elems * strided->elem_bytes;
    }
    return status;
}
