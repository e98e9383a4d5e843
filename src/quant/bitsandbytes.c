/* bitsandbytes.c - the method "bitsandbytes"; its 4-bit layouts are in bitsandbytes4.c.
 *
 * 8 bits: P.weight I8 [out, in]; P.SCB F32 [out], the largest magnitude of each row; P.weight_format, a
 * U8 scalar: 0 is row by row, anything else one of the tiled layouts of old GPU kernels.
 *
 *   W[o][i] = (q * SCB[o]) * (1 / 127) in float32, each product rounded
 *
 * Source: docs/formats/quantized.md. */
#include "quant/bitsandbytes.h"

/* ---- 8 bits ----------------------------------------------------------------------------------- */
enum { INT8_VALUES, INT8_SCALES };

static size_t int8_regions(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                           heft__quant_region regions[HEFT__QUANT_REGIONS])
{
    const uint64_t columns = heft__quant_columns(weight);
    regions[0] = (heft__quant_region){
        .part = INT8_VALUES, .offset = first * columns, .length = rows * columns, .runs = 1};
    regions[1] = (heft__quant_region){
        .part = INT8_SCALES, .offset = first * 4, .length = rows * 4, .runs = 1};
    return 2;
}

static heft_status int8_decode(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                               const heft__quant_bytes bytes[HEFT__QUANT_REGIONS], void *dst,
                               bool stream, heft_error *err)
{
    const uint64_t columns = heft__quant_columns(weight);
    float *to = dst;
    (void)first;
    (void)stream;
    (void)err;
    for (uint64_t r = 0; r < rows; r++) {
        const uint8_t *q = bytes[0].at + r * columns;
        const uint32_t bits = heft__le32(bytes[1].at + r * 4);
        float scale;
        memcpy(&scale, &bits, sizeof scale);
        for (uint64_t c = 0; c < columns; c++) {
            to[r * columns + c] = (float)(int8_t)q[c] * scale * (1.0F / 127.0F);
        }
    }
    return HEFT_OK;
}

static const heft__quant_layout int8_layout = {
    .name = "int8 rows", .row_step = 1, .regions = int8_regions, .decode = int8_decode};

static heft_status find_int8(heft__quant_finder *finder, size_t i, size_t prefix, heft_error *err)
{
    const heft_tensor_info *infos = finder->table->infos;
    heft__quant_weight weight;
    size_t values = HEFT__NO_PART;
    heft_status status = heft__quant_need(finder, i, prefix, ".weight", &values, err);
    if (status == HEFT_OK) {
        status = heft__quant_weight_init(finder, &weight, i, prefix, ".weight", err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    const heft_tensor_info *info = &infos[values];
    if (info->rank != 2 || info->dtype != HEFT_DTYPE_I8) {
        return heft__quant_fail(finder, values, err, "expected int8 of rank 2, found %s of rank %u",
                                heft_dtype_name(info->dtype), info->rank);
    }
    status = heft__quant_expect(finder, i, HEFT_DTYPE_F32, HEFT_DTYPE_NONE, info->shape, 1, err);
    weight.layout = &int8_layout;
    weight.rank = 2;
    memcpy(weight.shape, info->shape, 2 * sizeof *info->shape);
    weight.bits = 8;
    weight.dtype = HEFT_DTYPE_F32;
    weight.part[INT8_VALUES] = values;
    weight.part[INT8_SCALES] = i;
    const size_t form = heft__quant_sibling(finder->table, i, prefix, ".weight_format");
    uint8_t number = 0;
    if (status == HEFT_OK && form != HEFT__NO_PART && infos[form].size_bytes == 1) {
        status = finder->table->read(finder->table->user, form, &number, 1, err);
    }
    if (number != 0) {
        weight.layout = NULL;
        weight.why = "it is in a tiled layout of older GPU kernels (weight_format is not 0)";
    }
    if (status == HEFT_OK) {
        status = heft__quant_add(finder, &weight, err);
    }
    if (status == HEFT_OK) {
        heft__quant_companion(finder, form);
    }
    return status;
}

/* ---- the method ------------------------------------------------------------------------------- */
static bool is_marked(const heft__quant_table *table, size_t i)
{
    return heft__quant_prefix(table->infos[i].name, ".SCB") != SIZE_MAX ||
           heft__bitsandbytes4_marked(table, i);
}

static heft_status find(heft__quant_finder *finder, size_t i, heft_error *err)
{
    const size_t prefix = heft__quant_prefix(finder->table->infos[i].name, ".SCB");
    return prefix == SIZE_MAX ? heft__bitsandbytes4_find(finder, i, err)
                              : find_int8(finder, i, prefix, err);
}

const heft__quant_method heft__quant_bitsandbytes = {
    .name = "bitsandbytes",
    .names = (const char *const[]){"bitsandbytes", NULL},
    .is_marked = is_marked,
    .find = find,
};
