/* quanto.c - the method "quanto", which quanto_qmap.json declares: {module: {"weights": "qint4", ...}}.
 *
 *   qint8, qfloat8*  P.weight._data I8 or float8 [out, in]; P.weight._scale [out, 1]: value * scale, scaled.c,
 *                    in the scale's dtype
 *   qint4, qint2     W is viewed as [G, gs]: gs is `in` where that is at most 128, else 128, or the first of
 *                    96, 64 and 32 that divides `in`, or `in`. P.weight._data._data U8 [ceil(G / n), gs], n = 2
 *                    or 4: with R rows of data, line R * k + r of W is in bits k * 8 / n of row r.
 *                    P.weight._scale and _shift [G, 1].
 *
 *   W = round(round(scale * q) - shift), both to the scale's dtype; q unsigned. An integer shift is a zero
 *   point: scale * (q - shift)
 *
 * P.input_scale and P.output_scale are not needed.
 * Source: docs/formats/quantized.md. */
#include "quant/quant.h"

enum { VALUES, SCALES, SHIFTS };

#define LINES 32 /* whose results are computed at once */

struct lines {
    uint32_t bits, per;      /* of a value; lines in a byte */
    uint64_t size, rows;     /* of a line; rows of data */
    uint64_t count;          /* lines */
    heft_dtype dtype, shift; /* of scales and of shifts */
};

/* ---- computing -------------------------------------------------------------------------------- */
/* The lines of a tile lie in up to `per` runs of rows, each in other bits. */
static uint64_t next_run(const struct lines *l, uint64_t line, uint64_t end)
{
    const uint64_t top = (line / l->rows + 1) * l->rows;
    return top < end ? top : end;
}

static void line_range(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                       uint64_t *from, uint64_t *to)
{
    const struct lines *l = weight->detail;
    const uint64_t columns = heft__quant_columns(weight);
    *from = first * columns / l->size;
    *to = ((first + rows) * columns + l->size - 1) / l->size;
}

static size_t lines_regions(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                            heft__quant_region regions[HEFT__QUANT_REGIONS])
{
    const struct lines *l = weight->detail;
    uint64_t from, to;
    size_t count = 2;
    line_range(weight, first, rows, &from, &to);
    const uint64_t scale = heft_dtype_bits(l->dtype) / 8, shift = heft_dtype_bits(l->shift) / 8;
    regions[0] = (heft__quant_region){
        .part = SCALES, .offset = from * scale, .length = (to - from) * scale, .runs = 1};
    regions[1] = (heft__quant_region){
        .part = SHIFTS, .offset = from * shift, .length = (to - from) * shift, .runs = 1};
    while (from < to) {
        const uint64_t end = next_run(l, from, to);
        regions[count++] = (heft__quant_region){.part = VALUES,
                                                .offset = from % l->rows * l->size,
                                                .length = (end - from) * l->size,
                                                .runs = 1};
        from = end;
    }
    return count;
}

/* Lines have at most 16 results each: those of `count` lines into table[count][16], of l->dtype, packed. */
static void results_of(const struct lines *l, const uint8_t *scale_bytes,
                       const uint8_t *shift_bytes, size_t count, void *table)
{
    const size_t all = count * 16;
    float results[LINES][16], scales[LINES], shifts[LINES];
    const bool whole = !heft_dtype_is_floating(l->shift);
    heft__cast(HEFT_DTYPE_F32, scales, l->dtype, scale_bytes, count);
    if (whole) {
        for (size_t k = 0; k < count; k++) {
            shifts[k] =
                l->shift == HEFT_DTYPE_U8 ? (float)shift_bytes[k] : (float)(int8_t)shift_bytes[k];
        }
    } else {
        heft__cast(HEFT_DTYPE_F32, shifts, l->shift, shift_bytes, count);
    }
    for (size_t k = 0; k < count; k++) {
        for (size_t q = 0; q < 16; q++) {
            results[k][q] = whole ? scales[k] * ((float)q - shifts[k]) : scales[k] * (float)q;
        }
    }
    heft__cast(l->dtype, table, HEFT_DTYPE_F32, results, all);
    if (whole) {
        return;
    }
    heft__cast(HEFT_DTYPE_F32, results, l->dtype, table, all);
    for (size_t k = 0; k < count; k++) {
        for (size_t q = 0; q < 16; q++) {
            results[k][q] -= shifts[k];
        }
    }
    heft__cast(l->dtype, table, HEFT_DTYPE_F32, results, all);
}

/* One line by its 16 results. */
static void decode_line(const struct lines *l, const uint8_t *row, unsigned low, const void *table,
                        void *dst)
{
    const uint8_t mask = (uint8_t)((1U << l->bits) - 1);
    if (l->dtype != HEFT_DTYPE_F32) {
        heft__nibble_lanes()->lookup_bits(dst, table, row, (size_t)l->size, low, mask);
        return;
    }
    const float *results = table;
    float *to = dst;
    for (uint64_t c = 0; c < l->size; c++) {
        to[c] = results[row[c] >> low & mask];
    }
}

static heft_status lines_decode(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                                const heft__quant_bytes bytes[HEFT__QUANT_REGIONS], void *dst,
                                bool stream, heft_error *err)
{
    const struct lines *l = weight->detail;
    const size_t width = heft_dtype_bits(l->dtype) / 8, shift_width = heft_dtype_bits(l->shift) / 8;
    float table[LINES][16]; /* of l->dtype */
    uint64_t from, to;
    size_t region = 2;
    (void)stream;
    (void)err;
    line_range(weight, first, rows, &from, &to);
    for (uint64_t line = from; line < to; region++) {
        const uint64_t start = line, end = next_run(l, line, to);
        const unsigned low = (unsigned)(line / l->rows) * l->bits;
        while (line < end) {
            const size_t some = end - line < LINES ? (size_t)(end - line) : LINES;
            results_of(l, bytes[0].at + (line - from) * width,
                       bytes[1].at + (line - from) * shift_width, some, table);
            for (size_t k = 0; k < some; k++, line++) {
                decode_line(l, bytes[region].at + (line - start) * l->size, low,
                            (const uint8_t *)table + k * 16 * width,
                            (uint8_t *)dst + (line - from) * l->size * width);
            }
        }
    }
    return HEFT_OK;
}

static const heft__quant_layout lines_layout = {.name = "lines of half-bytes or pairs of bits",
                                                .row_step = 1,
                                                .regions = lines_regions,
                                                .decode = lines_decode};

/* ---- finding ---------------------------------------------------------------------------------- */
/* Whether a path is the end of another one, from a dot on. */
static bool ends_path(const char *whole, size_t length, const char *end, size_t end_length)
{
    return end_length < length && whole[length - end_length - 1] == '.' &&
           memcmp(whole + length - end_length, end, end_length) == 0;
}

/* What the modules whose paths end in this one say, or (length 0) all; NULL if they differ, or there are none. */
static const heft__json_value *agreed(const heft__json_value *map, const char *path, size_t length)
{
    const heft__json_value *found = NULL;
    for (const heft__json_value *m = map ? map->first : NULL; m; m = m->next) {
        const heft__json_value *own = heft__json_member(m, "weights"),
                               *other = found ? heft__json_member(found, "weights") : own;
        if (length && !ends_path(m->key, m->key_length, path, length)) {
            continue;
        }
        if (!own || !own->text || !other->text || own->length != other->length ||
            memcmp(own->text, other->text, own->length) != 0) {
            return NULL;
        }
        found = m;
    }
    return found;
}

/* Of the module itself, or by the longest name that it ends in: a wrapper adds its own parts in front. Else of the modules
 * that end in its name, as names may lack the base model's prefix; else of all, where all are alike. */
static const heft__json_value *settings_of(const heft__quant_finder *finder, size_t i,
                                           size_t prefix)
{
    const heft__json_value *map = finder->settings->quanto, *found = NULL;
    const char *name = finder->table->infos[i].name;
    for (const heft__json_value *m = map ? map->first : NULL; m; m = m->next) {
        const size_t length = m->key_length;
        const bool same = length == prefix && memcmp(m->key, name, length) == 0;
        if ((same || ends_path(name, prefix, m->key, length)) &&
            (!found || length > found->key_length)) {
            found = m;
        }
    }
    found = found ? found : agreed(map, name, prefix);
    return found ? found : agreed(map, name, 0);
}

static uint64_t line_size(uint64_t in)
{
    static const uint64_t sizes[] = {128, 96, 64, 32};
    for (size_t k = 0; k < 4 && in > 128; k++) {
        if (in % sizes[k] == 0) {
            return sizes[k];
        }
    }
    return in;
}

/* The tensors do not say what the shape of the weight is where several lines may make a row: the model
 * does. Without it the weight stays as it is. */
static heft_status find_shape(const heft__quant_finder *finder, size_t i,
                              heft__quant_weight *weight, const struct lines *l, heft_error *err)
{
    const heft__quant_settings *settings = finder->settings;
    const bool sure = line_size(l->size) == l->size && l->size != 128 && l->size != 96 &&
                      l->size != 64 && l->size != 32;
    uint64_t *shape = weight->shape;
    weight->rank = 2;
    shape[0] = l->count;
    shape[1] = l->size;
    if (sure) {
        return HEFT_OK;
    }
    bool known = false;
    if (settings->shape_of) {
        const heft_status status =
            settings->shape_of(settings->user, weight->name, shape, &known, err);
        if (status != HEFT_OK) {
            return status;
        }
    }
    if (!known) {
        weight->rank = 0;
        weight->layout = NULL;
        weight->why = "its shape is not in the file, and there is no config of a model type that "
                      "heft knows";
        return HEFT_OK;
    }
    return shape[1] && line_size(shape[1]) == l->size && shape[1] % l->size == 0 &&
                   l->count % (shape[1] / l->size) == 0 &&
                   l->count / (shape[1] / l->size) == shape[0]
               ? HEFT_OK
               : heft__quant_fail(
                     finder, i, err,
                     "%llu lines of %llu values do not match the model's shape [%llu, %llu]",
                     (unsigned long long)l->count, (unsigned long long)l->size,
                     (unsigned long long)shape[0], (unsigned long long)shape[1]);
}

static heft_status find_lines(heft__quant_finder *finder, size_t i, size_t prefix, uint32_t bits,
                              heft_error *err)
{
    const heft__quant_table *table = finder->table;
    const heft_tensor_info *info = &table->infos[i];
    heft__quant_weight weight;
    size_t scales = HEFT__NO_PART, shifts = HEFT__NO_PART;
    struct lines *l = heft__arena_array(finder->arena, 1, sizeof *l);
    heft_status status = l ? heft__quant_weight_init(finder, &weight, i, prefix, "", err)
                           : heft__fail_nomem(err, sizeof *l);
    if (status == HEFT_OK) {
        status = heft__quant_need(finder, i, prefix, "._scale", &scales, err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_need(finder, i, prefix, "._shift", &shifts, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (info->rank != 2 || info->dtype != HEFT_DTYPE_U8 || !info->shape[0] || !info->shape[1] ||
        info->shape[0] > UINT32_MAX || info->shape[1] > UINT32_MAX) {
        return heft__quant_fail(finder, i, err, "expected a matrix of uint8");
    }
    const heft_tensor_info *scale = &table->infos[scales], *shift = &table->infos[shifts];
    *l = (struct lines){.bits = bits,
                        .per = 8 / bits,
                        .size = info->shape[1],
                        .rows = info->shape[0],
                        .count = scale->rank ? scale->shape[0] : 0,
                        .dtype = scale->dtype,
                        .shift = shift->dtype};
    const uint64_t shape[2] = {l->count, 1};
    if (l->count == 0 || (l->count + l->per - 1) / l->per != l->rows) {
        return heft__quant_fail(finder, scales, err, "%llu scales do not match %llu rows of data",
                                (unsigned long long)l->count, (unsigned long long)l->rows);
    }
    if ((l->dtype != HEFT_DTYPE_F16 && l->dtype != HEFT_DTYPE_BF16 && l->dtype != HEFT_DTYPE_F32) ||
        (l->shift != l->dtype && l->shift != HEFT_DTYPE_I8 && l->shift != HEFT_DTYPE_U8)) {
        return heft__quant_fail(finder, shifts, err,
                                "%s and %s are not dtypes of a scale and a shift",
                                heft_dtype_name(l->dtype), heft_dtype_name(l->shift));
    }
    status = heft__quant_expect(finder, scales, l->dtype, HEFT_DTYPE_NONE, shape, 2, err);
    if (status == HEFT_OK) {
        status = heft__quant_expect(finder, shifts, l->shift, HEFT_DTYPE_NONE, shape, 2, err);
    }
    weight.layout = &lines_layout;
    weight.detail = l;
    weight.dtype = l->dtype;
    weight.bits = bits;
    weight.group = l->size;
    weight.part[VALUES] = i;
    weight.part[SCALES] = scales;
    weight.part[SHIFTS] = shifts;
    if (status == HEFT_OK) {
        status = find_shape(finder, i, &weight, l, err);
    }
    return status == HEFT_OK ? heft__quant_add(finder, &weight, err) : status;
}

static heft_status find_bytes(heft__quant_finder *finder, size_t i, size_t prefix, heft_error *err)
{
    heft__quant_weight weight;
    size_t scales = HEFT__NO_PART;
    heft_status status = heft__quant_weight_init(finder, &weight, i, prefix, "", err);
    if (status == HEFT_OK) {
        status = heft__quant_need(finder, i, prefix, "._scale", &scales, err);
    }
    if (status == HEFT_OK) {
        const heft_tensor_info *grid = &finder->table->infos[scales];
        const bool rows = grid->rank > 0 && grid->shape[0] > 1;
        weight.dtype = grid->dtype;
        status = heft__quant_scaled(finder, &weight, i, scales, HEFT__NO_PART, rows, 0, err);
    }
    weight.group = 0;
    return status == HEFT_OK ? heft__quant_add(finder, &weight, err) : status;
}

static bool is_marked(const heft__quant_table *table, size_t i)
{
    return heft__quant_prefix(table->infos[i].name, ".weight._data") != SIZE_MAX ||
           heft__quant_prefix(table->infos[i].name, ".weight._data._data") != SIZE_MAX;
}

/* A scale or a shift that no values have is a fault. */
static heft_status check_orphan(const heft__quant_finder *finder, size_t i, heft_error *err)
{
    const char *name = finder->table->infos[i].name;
    const size_t scale = heft__quant_prefix(name, ".weight._scale"),
                 shift = heft__quant_prefix(name, ".weight._shift"),
                 module = scale != SIZE_MAX ? scale : shift;
    size_t values = HEFT__NO_PART;
    if (module == SIZE_MAX ||
        heft__quant_sibling(finder->table, i, module, ".weight._data") != HEFT__NO_PART) {
        return HEFT_OK;
    }
    return heft__quant_need(finder, i, module, ".weight._data._data", &values, err);
}

static heft_status find(heft__quant_finder *finder, size_t i, heft_error *err)
{
    const char *name = finder->table->infos[i].name, *weights = NULL;
    const size_t packed = heft__quant_prefix(name, "._data._data"),
                 bytes = heft__quant_prefix(name, "._data");
    heft_status status = HEFT_OK;
    if (packed == SIZE_MAX && bytes == SIZE_MAX) {
        return check_orphan(finder, i, err);
    }
    const size_t whole = packed != SIZE_MAX ? packed : bytes; /* P.weight */
    const size_t module =
        whole > 7 && memcmp(name + whole - 7, ".weight", 7) == 0 ? whole - 7 : whole;
    if (packed != SIZE_MAX) {
        status =
            heft__quant_text(finder, settings_of(finder, i, module), "weights", "", &weights, err);
        if (status == HEFT_OK && strcmp(weights, "qint4") != 0 && strcmp(weights, "qint2") != 0) {
            status = heft__quant_fail(finder, i, err,
                                      "quanto_qmap.json does not say that it is qint4 or qint2");
        }
    }
    if (status == HEFT_OK) {
        status = packed != SIZE_MAX
                     ? find_lines(finder, i, whole, strcmp(weights, "qint2") == 0 ? 2 : 4, err)
                     : find_bytes(finder, i, whole, err);
    }
    if (status == HEFT_OK) {
        heft__quant_companion(finder,
                              heft__quant_sibling(finder->table, i, module, ".input_scale"));
        heft__quant_companion(finder,
                              heft__quant_sibling(finder->table, i, module, ".output_scale"));
    }
    return status;
}

const heft__quant_method heft__quant_quanto = {
    .name = "quanto",
    .names = (const char *const[]){"quanto", NULL},
    .is_marked = is_marked,
    .find = find,
};
