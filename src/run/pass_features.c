/* pass_features.c - operations on images and sound, and on what one pass leaves for another. */
#include "run/pass_state.h"

/* Rows of each sequence; 0 after an error. */
static size_t rows_each(heft__pass *p, heft__rows x)
{
    const size_t sequences = p->in.sequences;
    if (sequences == 0 || x.count % sequences != 0) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "%zu rows are not as many for each of %zu sequences",
                        x.count, sequences);
        return 0;
    }
    return x.count / sequences;
}

static bool has_features(heft__pass *p)
{
    if (heft__pass_live(p) && !p->in.features) {
        heft__pass_fail(p, HEFT_INVALID_ARG, "%s needs pixel_values or input_features",
                        p->model->class_name);
    }
    return p->status == HEFT_OK;
}

heft__rows heft__frames(heft__pass *p)
{
    const size_t channels = p->in.feature_shape[0], frames = p->in.feature_shape[1];
    heft__rows y = heft__pass_rows(p, p->in.sequences * frames, channels);
    for (size_t s = 0; has_features(p) && heft__pass_live(p) && s < p->in.sequences; s++) {
        const float *x = p->in.features + s * channels * frames;
        for (size_t t = 0; t < frames; t++) {
            for (size_t c = 0; c < channels; c++) {
                y.x[(s * frames + t) * channels + c] = x[c * frames + t];
            }
        }
    }
    return y;
}

heft__rows heft__patches(heft__pass *p, size_t high, size_t wide)
{
    const size_t channels = p->in.feature_shape[0], height = p->in.feature_shape[1],
                 width = p->in.feature_shape[2];
    const size_t down = high ? height / high : 0, across = wide ? width / wide : 0;
    heft__rows y = heft__pass_rows(p, p->in.sequences * down * across, channels * high * wide);
    for (size_t i = 0; has_features(p) && heft__pass_live(p) && i < y.count; i++) {
        const size_t s = i / (down * across), top = i % (down * across) / across * high,
                     left = i % across * wide;
        const float *image = p->in.features + s * channels * height * width;
        float *row = y.x + i * y.width;
        for (size_t c = 0; c < channels; c++) {
            for (size_t h = 0; h < high; h++, row += wide) {
                memcpy(row, image + (c * height + top + h) * width + left, wide * sizeof *row);
            }
        }
    }
    return y;
}

heft__rows heft__pixels(heft__pass *p, heft__rows x, size_t skipped, size_t stride)
{
    const size_t each = rows_each(p, x), patches = each > skipped ? each - skipped : 0;
    const size_t square = stride * stride, channels = square ? x.width / square : 0;
    size_t side = 0;
    while ((side + 1) * (side + 1) <= patches) {
        side++;
    }
    heft__rows y = heft__pass_rows(p, p->in.sequences, patches * channels * square);
    if (patches == 0 || side * side != patches || square == 0 || x.width % square != 0) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "%zu patches of %zu numbers do not make a square image", patches, x.width);
    }
    for (size_t i = 0; heft__pass_live(p) && i < x.count; i++) {
        const size_t patch = i % each - skipped, top = patch / side * stride,
                     left = patch % side * stride;
        float *image = y.x + i / each * y.width;
        for (size_t n = 0; i % each >= skipped && n < channels * stride; n++) {
            const size_t row = (n / stride * side * stride) + top + n % stride;
            memcpy(image + row * side * stride + left, x.x + i * x.width + n * stride,
                   stride * sizeof *image);
        }
    }
    return y;
}

heft__rows heft__windows(heft__pass *p, heft__rows x, size_t count, size_t span, size_t stride)
{
    const size_t made = (count + stride - 1) / stride, half = span / 2;
    heft__rows y = heft__zeros(p, count ? x.count / count * made : 0, x.width * span);
    for (size_t i = 0; heft__pass_live(p) && i < y.count; i++) {
        const size_t first = i / made * count, center = i % made * stride;
        for (size_t k = 0; k < span; k++) {
            if (center + k < half || center + k - half >= count) {
                continue;
            }
            const float *row = x.x + (first + center + k - half) * x.width;
            for (size_t c = 0; c < x.width; c++) {
                y.x[i * y.width + c * span + k] = row[c];
            }
        }
    }
    return y;
}

heft__rows heft__prepend(heft__pass *p, heft__rows first, heft__rows x)
{
    const size_t each = rows_each(p, x);
    heft__rows y = heft__pass_rows(p, x.count + p->in.sequences, x.width);
    if (first.width != x.width || first.count != 1) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "a row of %zu numbers does not fit before rows of %zu",
                        first.width, x.width);
    }
    for (size_t s = 0; heft__pass_live(p) && s < p->in.sequences; s++) {
        float *row = y.x + s * (each + 1) * x.width;
        memcpy(row, first.x, x.width * sizeof *row);
        memcpy(row + x.width, x.x + s * each * x.width, each * x.width * sizeof *row);
    }
    return y;
}

void heft__add_tiled(heft__pass *p, heft__rows x, heft__rows y)
{
    if (y.width != x.width || y.count == 0 || x.count % y.count != 0) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "rows do not fit: [%zu, %zu] and, repeated, [%zu, %zu]", x.count, x.width,
                        y.count, y.width);
    }
    for (size_t i = 0; heft__pass_live(p) && i < x.count; i++) {
        p->kernels->add(x.x + i * x.width, y.x + i % y.count * y.width, x.width);
    }
}

heft__rows heft__mean_rows(heft__pass *p, heft__rows x, size_t skipped)
{
    const size_t each = rows_each(p, x);
    heft__rows y = heft__zeros(p, p->in.sequences, x.width);
    for (size_t s = 0; heft__pass_live(p) && each > skipped && s < p->in.sequences; s++) {
        float *row = y.x + s * x.width;
        for (size_t i = skipped; i < each; i++) {
            p->kernels->add(row, x.x + (s * each + i) * x.width, x.width);
        }
        p->kernels->scale(row, 1 / (float)(each - skipped), x.width);
    }
    return y;
}

heft__rows heft__inner_products(heft__pass *p, heft__rows x, heft__rows y)
{
    heft__rows z = heft__zeros(p, x.count, y.count);
    if (x.width != y.width && y.count > 0) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "rows of %zu and %zu numbers have no inner product",
                        x.width, y.width);
    }
    for (size_t i = 0; heft__pass_live(p) && i < x.count; i++) {
        for (size_t k = 0; k < y.count; k++) {
            double sum = 0;
            for (size_t c = 0; c < x.width; c++) {
                sum += (double)x.x[i * x.width + c] * (double)y.x[k * y.width + c];
            }
            z.x[i * z.width + k] = (float)sum;
        }
    }
    return z;
}

/* ---- from the encoder's pass to the other one -------------------------------------------------- */
static size_t stash_bytes(const heft__pass *p)
{
    return p->stash_count * p->stash_width * sizeof *p->stash;
}

void heft__pass_drop_stash(heft__pass *p)
{
    heft__free(p->ctx, p->stash, stash_bytes(p));
    p->stash = NULL;
    p->stash_count = 0;
}

void heft__stash(heft__pass *p, heft__rows x)
{
    const size_t before = stash_bytes(p), bytes = x.count * x.width * sizeof *x.x;
    if (p->dry) {
        p->stash_planned = x.count;
        p->stash_width = x.width;
    } else if (heft__pass_live(p)) {
        float *data = heft__resize(p->ctx, p->stash, before, before + bytes);
        if (!data) {
            heft__pass_fail(p, HEFT_NOMEM, "no memory for an encoder's output");
            return;
        }
        memcpy((uint8_t *)data + before, x.x, bytes);
        p->stash = data;
        p->stash_count += x.count;
        p->stash_width = x.width;
    }
}

heft__rows heft__stashed(heft__pass *p)
{
    if (!p->dry && !p->stash && heft__pass_live(p)) {
        heft__pass_fail(p, HEFT_INVALID_ARG, "%s needs pixel_values beside the ids",
                        p->model->class_name);
        return (heft__rows){0};
    }
    const size_t planned = p->dry && p->stash_count == 0 ? p->stash_planned : p->stash_count;
    return (heft__rows){p->dry ? NULL : p->stash, planned, p->stash_width};
}

const int32_t *heft__rows_of_encoded(heft__pass *p, int32_t id)
{
    int32_t *rows = heft__pass_take(p, p->in.sequences, sizeof *rows);
    heft__keep_whole(p);
    for (size_t s = 0; heft__pass_live(p) && s < p->in.sequences; s++) {
        const heft__span *span = &p->spans[s];
        const heft__encoded *encoded = span->sequence->encoded;
        size_t at = encoded ? encoded->count : 0;
        while (at > 0 && encoded->ids[at - 1] != id) {
            at--;
        }
        if (at == 0 || at > span->count) {
            heft__pass_fail(p, HEFT_INVALID_ARG, "sequence %zu has no end-of-text id %d", s,
                            (int)id);
            return NULL;
        }
        rows[s] = (int32_t)(span->first + at - 1);
    }
    return rows;
}
