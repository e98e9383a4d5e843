/* turned.c - layouts that are stored the other way round than the weight: gptq and awq.
 *
 * The tensors run along the outputs: qweight [in words, out] (gptq: 32-bit words along `in`) or [in, out
 * words] (awq: along `out`), qzeros [groups, out words], scales [groups, out]. W is [out, in].
 *
 * Rows are computed 16 at a time. Where 4-bit values have whole vectors of columns in each group, a row of a group
 * is looked up in a table (turned_lanes.c). Otherwise, for eight columns, vectors over the 16 outputs give 128
 * results; they are rounded to the scale's dtype and turned, so that each row gets eight neighbors.
 * Source: docs/formats/quantized.md. */
#include "quant/turned.h"

enum { VALUES, ZEROS, SCALES, GROUPS };

#define ROWS 16
#define COLUMNS 8
#define GROUPS_HELD 128 /* of 16 zeros and scales, as float32 */

static size_t turned_regions(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                             heft__quant_region regions[HEFT__QUANT_REGIONS])
{
    const struct heft__turned *t = weight->detail;
    const uint64_t out = heft__quant_matrix_rows(weight), columns = heft__quant_columns(weight);
    const uint64_t width = heft_dtype_bits(t->scales) / 8;
    const uint64_t from = first * t->bits / 32 * 4, to = ((first + rows) * t->bits + 31) / 32 * 4,
                   words = out * t->bits / 32 * 4;
    size_t count = 3;
    regions[0] = t->along_in ? (heft__quant_region){.part = VALUES,
                                                    .offset = first * 4,
                                                    .length = rows * 4,
                                                    .stride = out * 4,
                                                    .runs = columns * t->bits / 32}
                             : (heft__quant_region){.part = VALUES,
                                                    .offset = from,
                                                    .length = to - from,
                                                    .stride = words,
                                                    .runs = columns};
    regions[1] = (heft__quant_region){
        .part = ZEROS, .offset = from, .length = to - from, .stride = words, .runs = t->groups};
    regions[2] = (heft__quant_region){.part = SCALES,
                                      .offset = first * width,
                                      .length = rows * width,
                                      .stride = out * width,
                                      .runs = t->groups};
    if (t->indexed) {
        regions[count++] = (heft__quant_region){.part = GROUPS, .length = columns * 4, .runs = 1};
    }
    return count;
}

/* ---- 16 rows ---------------------------------------------------------------------------------- */
struct strip {
    const struct heft__turned *t;
    const struct heft__nibble_lanes *lanes;
    const uint8_t *values, *zeros, *scales;     /* of the tile */
    uint64_t value_line, zero_line, scale_line; /* bytes of one line of each */
    uint64_t row, count;                        /* first row in the tile; rows, at most 16 */
    uint64_t bit; /* of the first row in the first word of a line of zeros */
    bool stream;
};

/* A word of zero points. Those that are stored one less are counted up as they were counted down: all of a
 * word in one sum, so that a carry undoes a borrow; values that cross words each by itself. */
static uint32_t zero_word(const struct heft__turned *t, const uint8_t *at)
{
    static const uint32_t ones[9] = {[2] = 0x55555555, [4] = 0x11111111, [8] = 0x01010101};
    return heft__le32(at) + (t->less_one ? ones[t->bits] : 0);
}

/* Zero points and scales of a group, for 16 outputs; what is beyond the last is 0. */
static void read_group(const struct strip *s, uint64_t group, float zeros[ROWS], float scales[ROWS])
{
    const struct heft__turned *t = s->t;
    const uint8_t *line = s->zeros + group * s->zero_line;
    const size_t width = heft_dtype_bits(t->scales) / 8;
    const uint32_t mask = (UINT32_C(1) << t->bits) - 1, more = t->less_one && t->bits == 3;
    memset(scales, 0, ROWS * sizeof *scales);
    heft__cast(HEFT_DTYPE_F32, scales, t->scales,
               s->scales + group * s->scale_line + s->row * width, (size_t)s->count);
    for (uint64_t o = 0; o < ROWS; o++) {
        const uint64_t k = s->row + o;
        const uint64_t at = s->bit + (t->order ? k / 8 * 8 + t->order[k % 8] : k) * t->bits;
        uint64_t both = 0;
        if (o < s->count) {
            both = zero_word(t, line + at / 32 * 4);
            if (at % 32 + t->bits > 32) {
                both |= (uint64_t)zero_word(t, line + (at / 32 + 1) * 4) << 32;
            }
        }
        zeros[o] = (float)(((both >> at % 32) + more) & mask);
    }
}

/* One column of 16 outputs. */
static void read_column(const struct strip *s, uint64_t column, const float zeros[ROWS],
                        const float scales[ROWS], float dst[ROWS])
{
    const struct heft__turned *t = s->t;
    const uint32_t mask = (UINT32_C(1) << t->bits) - 1;
    uint8_t words[ROWS * 4] = {0}, more[ROWS * 4] = {0};
    if (t->along_in) {
        const uint64_t at = column * t->bits;
        const unsigned shift = (unsigned)(at % 32);
        const bool crosses = shift + t->bits > 32;
        const uint8_t *line = s->values + at / 32 * s->value_line + s->row * 4;
        if (s->count == ROWS) {
            s->lanes->unpack16(dst, line, crosses ? line + s->value_line : NULL, shift, mask, zeros,
                               scales);
            return;
        }
        memcpy(words, line, (size_t)s->count * 4);
        if (crosses) {
            memcpy(more, line + s->value_line, (size_t)s->count * 4);
        }
        s->lanes->unpack16(dst, words, crosses ? more : NULL, shift, mask, zeros, scales);
        return;
    }
    const uint8_t *line = s->values + column * s->value_line + s->row / 2; /* 4 bits */
    for (uint64_t o = 0; o < s->count; o += 8) {
        const uint32_t word = heft__le32(line + o / 2);
        for (unsigned k = 0; k < 8; k++) {
            dst[o + k] = ((float)(word >> 4 * t->order[k] & 15) - zeros[o + k]) * scales[o + k];
        }
    }
}

struct held { /* zeros and scales that need not be read again */
    float zeros[GROUPS_HELD][ROWS], scales[GROUPS_HELD][ROWS];
    bool all; /* of all groups; else slot 0 has the last one */
    uint64_t last;
};

static void hold_groups(const struct strip *s, struct held *held)
{
    held->all = s->t->groups <= GROUPS_HELD;
    held->last = UINT64_MAX;
    for (uint64_t g = 0; held->all && g < s->t->groups; g++) {
        read_group(s, g, held->zeros[g], held->scales[g]);
    }
}

static size_t slot_of(const struct strip *s, struct held *held, uint64_t group)
{
    if (!held->all && held->last != group) {
        read_group(s, group, held->zeros[0], held->scales[0]);
        held->last = group;
    }
    return held->all ? (size_t)group : 0;
}

/* To which results are rounded before any other. */
static heft_dtype first_dtype(const heft__quant_weight *weight)
{
    return weight->through == HEFT_DTYPE_NONE ? weight->dtype : weight->through;
}

/* Round eight columns, and put them into their rows. */
static void place(const heft__quant_weight *weight, const struct strip *s, uint64_t column,
                  uint64_t count, float (*results)[ROWS], uint8_t *dst)
{
    const uint64_t columns = heft__quant_columns(weight);
    const size_t width = heft_dtype_bits(weight->dtype) / 8;
    uint8_t first[COLUMNS * ROWS * 4], rounded[COLUMNS * ROWS * 4];
    heft__cast(first_dtype(weight), first, HEFT_DTYPE_F32, results, COLUMNS * ROWS);
    heft__cast(weight->dtype, rounded, first_dtype(weight), first, COLUMNS * ROWS);
    uint8_t *to = dst + (s->row * columns + column) * width;
    if (width == 2 && count == COLUMNS && s->count == ROWS) {
        s->lanes->turn16((uint16_t *)(void *)to, (size_t)columns,
                         (const uint16_t *)(const void *)rounded);
        return;
    }
    for (uint64_t o = 0; o < s->count; o++) {
        for (uint64_t i = 0; i < count; i++) {
            memcpy(to + (o * columns + i) * width, rounded + (i * ROWS + o) * width, width);
        }
    }
}

/* The group of a column. */
static heft_status find_group(const struct heft__turned *t, const uint8_t *index, uint64_t column,
                              uint64_t *group, heft_error *err)
{
    *group = index ? heft__le32(index + column * 4) : column / t->group;
    return *group < t->groups
               ? HEFT_OK
               : heft__fail(err, HEFT_FORMAT, "g_idx[%llu] is %llu, expected less than %llu",
                            (unsigned long long)column, (unsigned long long)*group,
                            (unsigned long long)t->groups);
}

/* Eight columns of 16 rows that are whole, of 4 bits in float16: all in vectors. */
static void decode_block(const heft__quant_weight *weight, const struct strip *s, uint64_t column,
                         const float *const zeros[COLUMNS], const float *const scales[COLUMNS],
                         uint8_t *dst)
{
    const struct heft__nibble_lanes *lanes = s->lanes;
    const uint64_t columns = heft__quant_columns(weight);
    uint16_t results[COLUMNS * ROWS], cast[COLUMNS * ROWS];
    if (s->t->along_in) {
        lanes->along_in(results, s->values + column / 8 * s->value_line + s->row * 4, zeros,
                        scales);
    } else {
        lanes->along_out(results, s->values + column * s->value_line + s->row / 2,
                         (size_t)s->value_line, s->t->order, zeros, scales);
    }
    heft__cast(weight->dtype, cast, HEFT_DTYPE_F16, results, COLUMNS * ROWS);
    lanes->turn16((uint16_t *)(void *)(dst + (s->row * columns + column) * 2), (size_t)columns,
                  cast);
}

static heft_status decode_strip(const heft__quant_weight *weight, const struct strip *s,
                                const uint8_t *index, struct held *held, uint8_t *dst,
                                heft_error *err)
{
    const struct heft__turned *t = s->t;
    const uint64_t columns = heft__quant_columns(weight);
    const bool quick = t->bits == 4 && first_dtype(weight) == HEFT_DTYPE_F16 &&
                       heft_dtype_bits(weight->dtype) == 16 && s->count == ROWS;
    hold_groups(s, held);
    for (uint64_t c = 0; c < columns; c += COLUMNS) {
        const uint64_t some = columns - c < COLUMNS ? columns - c : COLUMNS;
        const bool block = quick && held->all && some == COLUMNS;
        const float *zeros[COLUMNS], *scales[COLUMNS];
        float results[COLUMNS][ROWS] = {{0}};
        for (uint64_t i = 0; i < some; i++) {
            uint64_t group;
            const heft_status status = find_group(t, index, c + i, &group, err);
            if (status != HEFT_OK) {
                return status;
            }
            const size_t slot = slot_of(s, held, group);
            zeros[i] = held->zeros[slot];
            scales[i] = held->scales[slot];
            if (!block) {
                read_column(s, c + i, zeros[i], scales[i], results[i]);
            }
        }
        if (block) {
            decode_block(weight, s, c, zeros, scales, dst);
        } else {
            place(weight, s, c, some, results, dst);
        }
    }
    return HEFT_OK;
}

/* Whether each group is so many neighboring columns, as without g_idx. */
static bool is_in_order(const struct heft__turned *t, const uint8_t *index, uint64_t columns)
{
    for (uint64_t c = 0; index && c < columns; c += t->group) {
        const uint32_t group = (uint32_t)(c / t->group);
        for (uint64_t k = c; k < columns && k < c + t->group; k++) {
            if (heft__le32(index + k * 4) != group) {
                return false;
            }
        }
    }
    return true;
}

/* Whether the loops of turned_lanes.c can compute the rows of a tile. */
static bool has_whole_groups(const heft__quant_weight *weight, const uint8_t *index)
{
    const struct heft__turned *t = weight->detail;
    const uint64_t columns = heft__quant_columns(weight), step = t->along_in ? 64 : 32;
    return heft__turned_lanes()->rows_along_in && t->bits == 4 &&
           heft_dtype_bits(weight->dtype) == 16 && t->group % step == 0 && columns % step == 0 &&
           is_in_order(t, index, columns);
}

/* Zero points of a group for 16 outputs, of 4 bits and 16 rows: without steps for what is not there. */
static void read_zeros(const struct strip *s, uint64_t group, float zeros[ROWS])
{
    const uint8_t *at = s->zeros + group * s->zero_line + (s->bit + s->row * 4) / 8;
    for (unsigned h = 0; h < ROWS; h += 8) {
        const uint32_t word = zero_word(s->t, at + h / 2);
        for (unsigned k = 0; k < 8; k++) {
            zeros[h + k] = (float)(word >> 4 * (s->t->order ? s->t->order[k] : k) & 15);
        }
    }
}

#define STRIPS 16        /* whose scales are widened at once */
#define COLUMNS_MOST 256 /* of all rows, one after the other: the lines of their values stay near */

/* Some columns of a group, and of strips of 16 rows from s->row on, which is moved behind them. */
static void decode_group(const heft__quant_weight *weight, struct strip *s, uint64_t column,
                         size_t some, uint64_t strips, uint8_t *dst)
{
    const struct heft__turned *t = s->t;
    const struct heft__turned_lanes *lanes = heft__turned_lanes();
    const uint64_t columns = heft__quant_columns(weight), g = column / t->group;
    const size_t line = (size_t)s->value_line, width = heft_dtype_bits(t->scales) / 8;
    const enum heft__turned_result as = weight->dtype == HEFT_DTYPE_F16     ? HEFT__AS_F16
                                        : weight->through == HEFT_DTYPE_F16 ? HEFT__AS_BF16_OF_F16
                                                                            : HEFT__AS_BF16;
    float zeros[ROWS], scales[STRIPS][ROWS];
    heft__cast(HEFT_DTYPE_F32, scales, t->scales, s->scales + g * s->scale_line + s->row * width,
               (size_t)strips * ROWS);
    for (uint64_t k = 0; k < strips; k++, s->row += ROWS) {
        uint16_t *to = (uint16_t *)(void *)dst + s->row * columns + column;
        read_zeros(s, g, zeros);
        if (t->along_in) {
            lanes->rows_along_in(to, (size_t)columns,
                                 s->values + column / 8 * s->value_line + s->row * 4, line, some,
                                 zeros, scales[k], as, s->stream);
        } else {
            lanes->rows_along_out(to, (size_t)columns,
                                  s->values + column * s->value_line + s->row / 2, line, some,
                                  t->order, zeros, scales[k], as, s->stream);
        }
    }
}

/* As many strips as there are; what is left is for decode_strip(). */
static void decode_groups(const heft__quant_weight *weight, struct strip *s, uint64_t rows,
                          uint8_t *dst)
{
    const uint64_t columns = heft__quant_columns(weight), group = s->t->group, all = rows / ROWS;
    for (uint64_t c = 0; c < columns;) {
        const uint64_t left = (c / group + 1) * group - c,
                       end = c + (left < COLUMNS_MOST ? left : COLUMNS_MOST);
        const size_t some = (size_t)((end < columns ? end : columns) - c);
        s->row = 0;
        for (uint64_t done = 0; done < all; done += STRIPS) {
            decode_group(weight, s, c, some, all - done < STRIPS ? all - done : STRIPS, dst);
        }
        c += some;
    }
}

static heft_status turned_decode(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                                 const heft__quant_bytes bytes[HEFT__QUANT_REGIONS], void *dst,
                                 bool stream, heft_error *err)
{
    const struct heft__turned *t = weight->detail;
    struct held held;
    struct strip s = {.t = t,
                      .lanes = heft__nibble_lanes(),
                      .values = bytes[0].at,
                      .zeros = bytes[1].at,
                      .scales = bytes[2].at,
                      .value_line = bytes[0].line,
                      .zero_line = bytes[1].line,
                      .scale_line = bytes[2].line,
                      .count = ROWS,
                      .bit = first * t->bits % 32,
                      .stream = stream};
    const uint8_t *index = t->indexed ? bytes[3].at : NULL;
    heft_status status = HEFT_OK;
    if (has_whole_groups(weight, index)) {
        decode_groups(weight, &s, rows, dst);
    }
    for (; s.row < rows && status == HEFT_OK; s.row += ROWS) {
        s.count = rows - s.row < ROWS ? rows - s.row : ROWS;
        status = decode_strip(weight, &s, index, &held, dst, err);
    }
    return status;
}

const heft__quant_layout heft__turned_layout = {.name = "words along the outputs",
                                                .row_step = 32,
                                                .is_cast = true,
                                                .in_place = true,
                                                .regions = turned_regions,
                                                .decode = turned_decode};

/* ---- finding ---------------------------------------------------------------------------------- */
static heft_status check_scales(const heft__quant_finder *finder, size_t i, heft_error *err)
{
    const heft_tensor_info *info = &finder->table->infos[i];
    if (info->rank != 2 || !info->shape[0] || !info->shape[1]) {
        char found[HEFT__SHAPE_TEXT];
        return heft__quant_fail(finder, i, err, "expected shape [groups, out], found %s",
                                heft__shape_text(info->shape, info->rank, found));
    }
    return info->dtype == HEFT_DTYPE_F16 || info->dtype == HEFT_DTYPE_BF16 ||
                   info->dtype == HEFT_DTYPE_F32
               ? HEFT_OK
               : heft__quant_fail(finder, i, err, "%s cannot be a scale",
                                  heft_dtype_name(info->dtype));
}

/* Groups of the settings' size must be as many as there are scales. */
static heft_status check_groups(const heft__quant_finder *finder, size_t scales, uint64_t columns,
                                int64_t group, struct heft__turned *t, heft_error *err)
{
    t->groups = finder->table->infos[scales].shape[0];
    if (group <= 0) {
        t->group = t->groups == 1 ? columns : columns / t->groups;
    } else {
        t->group = (uint64_t)group < columns ? (uint64_t)group : columns;
    }
    if (!t->along_in && t->group && columns % t->group != 0) { /* awq: only whole groups */
        return heft__quant_fail(finder, scales, err, "groups of %llu columns do not divide %llu",
                                (unsigned long long)t->group, (unsigned long long)columns);
    }
    const uint64_t expected = t->group ? (columns + t->group - 1) / t->group : 0;
    return expected == t->groups
               ? HEFT_OK
               : heft__quant_fail(finder, scales, err,
                                  "expected %llu groups of %llu columns, found %llu",
                                  (unsigned long long)expected, (unsigned long long)t->group,
                                  (unsigned long long)t->groups);
}

/* A layout that is not known: its tensors, unchecked. */
static heft_status add_opaque(heft__quant_finder *finder, heft__quant_weight *weight, size_t i,
                              size_t prefix, const char *why_not, heft_error *err)
{
    static const char *const names[] = {".qweight", ".qzeros", ".scales", ".g_idx", ".bias_zeros"};
    for (size_t p = 0; p < sizeof names / sizeof *names; p++) {
        weight->part[p] = heft__quant_sibling(finder->table, i, prefix, names[p]);
    }
    weight->why = why_not;
    return heft__quant_add(finder, weight, err);
}

/* [lines, words] of values and [groups, words] of zero points; *in is filled. */
static heft_status check_words(const heft__quant_finder *finder, const heft__quant_weight *weight,
                               const struct heft__turned *t, uint64_t *in, heft_error *err)
{
    const heft_tensor_info *infos = finder->table->infos, *info = &infos[weight->part[VALUES]],
                           *scales = &infos[weight->part[SCALES]];
    const uint64_t out = scales->shape[1] < UINT32_MAX ? scales->shape[1] : 0;
    const uint64_t lines = info->rank == 2 && info->shape[0] < UINT32_MAX ? info->shape[0] : 0;
    *in = t->along_in ? lines * 32 / t->bits : lines;
    if (*in == 0 || out == 0 || out * t->bits % 32 != 0 ||
        (t->along_in && *in * t->bits % 32 != 0)) {
        char found[HEFT__SHAPE_TEXT];
        return heft__quant_fail(finder, weight->part[VALUES], err,
                                "shape %s does not hold whole values of %u bits for %llu outputs",
                                heft__shape_text(info->shape, info->rank, found), t->bits,
                                (unsigned long long)scales->shape[1]);
    }
    const uint64_t words[2] = {t->along_in ? *in * t->bits / 32 : *in,
                               t->along_in ? out : out * t->bits / 32};
    const uint64_t zero_words[2] = {scales->shape[0], out * t->bits / 32};
    heft_status status = heft__quant_expect(finder, weight->part[VALUES], HEFT_DTYPE_I32,
                                            HEFT_DTYPE_NONE, words, 2, err);
    if (status == HEFT_OK) {
        status = heft__quant_expect(finder, weight->part[ZEROS], HEFT_DTYPE_I32, HEFT_DTYPE_NONE,
                                    zero_words, 2, err);
    }
    return status == HEFT_OK && t->indexed
               ? heft__quant_expect(finder, weight->part[GROUPS], HEFT_DTYPE_I32, HEFT_DTYPE_NONE,
                                    in, 1, err)
               : status;
}

heft_status heft__turned_find(heft__quant_finder *finder, size_t i, size_t prefix, int64_t bits,
                              int64_t group, struct heft__turned *t, const char *why_not,
                              heft_error *err)
{
    heft__quant_weight weight;
    uint64_t in = 0;
    heft_status status = heft__quant_weight_init(finder, &weight, i, prefix, ".weight", err);
    weight.bits = (uint32_t)bits;
    if (status == HEFT_OK && why_not) {
        return add_opaque(finder, &weight, i, prefix, why_not, err);
    }
    weight.part[VALUES] = i;
    weight.part[GROUPS] = heft__quant_sibling(finder->table, i, prefix, ".g_idx");
    if (status == HEFT_OK) {
        status = heft__quant_need(finder, i, prefix, ".scales", &weight.part[SCALES], err);
    }
    if (status == HEFT_OK) {
        status = heft__quant_need(finder, i, prefix, ".qzeros", &weight.part[ZEROS], err);
    }
    if (status == HEFT_OK) {
        status = check_scales(finder, weight.part[SCALES], err);
    }
    t->bits = (uint32_t)bits;
    t->indexed = weight.part[GROUPS] != HEFT__NO_PART;
    if (status == HEFT_OK) {
        status = check_words(finder, &weight, t, &in, err);
    }
    if (status == HEFT_OK) {
        status = check_groups(finder, weight.part[SCALES], in, group, t, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    t->scales = finder->table->infos[weight.part[SCALES]].dtype;
    weight.layout = &heft__turned_layout;
    weight.detail = t;
    weight.rank = 2;
    weight.shape[0] = finder->table->infos[weight.part[SCALES]].shape[1];
    weight.shape[1] = in;
    weight.dtype = t->scales;
    weight.group = t->groups > 1 || group > 0 ? t->group : 0;
    return heft__quant_add(finder, &weight, err);
}
