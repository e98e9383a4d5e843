/* Quantized weights, without files between: every checkpoint of tests/data/quant, made by the libraries of
 * the methods or by hand, is found, and dequantized at every instruction set level and in tiles of every
 * kind, to the bytes that the library has. */
#include "checkpoint/checkpoint.h"
#include "model/model.h"
#include "quant/quant.h"
#include "support.h"
#include "tensor/lanes.h"

#include <stdlib.h>

static heft_ctx *ctx;

static const struct quant_case {
    const char *folder, *method;
    uint32_t bits;
    uint64_t group;
    const char *extra; /* a tensor that is a companion of a weight; NULL: not looked at */
} cases[] = {
    {"bnb_int8", "bitsandbytes", 8, 0, "model.layers.0.self_attn.q_proj.weight_format"},
};

/* ---- a folder opened -------------------------------------------------------------------------- */
struct opened {
    heft_checkpoint *packed, *expected;
    heft_config *config;
    heft__arena arena;
    heft__quant_found found;
};

static heft_status read_some(const void *user, size_t i, void *dst, size_t length, heft_error *err)
{
    const heft_checkpoint *ckpt = user;
    heft__tensor_reader *reader = NULL;
    heft_status status =
        heft__tensor_reader_new(ctx, heft__file_of(ckpt, i), ckpt->entries[i], &reader, err);
    if (status == HEFT_OK) {
        status = heft__tensor_reader_fill(reader, dst, length, err);
    }
    heft__tensor_reader_free(reader);
    return status;
}

static const heft__json_value *quanto_map(heft__arena *arena, const char *folder)
{
    const char *path = test_path(folder, "quanto_qmap.json");
    heft__json_value *map = NULL;
    heft_error err = {0};
    size_t length = 0;
    FILE *there = fopen(path, "r");
    if (!there) {
        return NULL;
    }
    (void)fclose(there);
    char *text = test_read_file(path, &length);
    char *kept = heft__arena_text(arena, text, length);
    free(text);
    test_expect_status(heft__json_parse(arena, kept, length, 64, &map, &err), HEFT_OK, &err, path);
    return map;
}

static heft_dtype dtype_of_config(const heft_config *config)
{
    const heft__json_value *value = heft__json_member(config->root, "dtype");
    heft_dtype dtype = HEFT_DTYPE_F32;
    heft_error err = {0};
    value = value ? value : heft__json_member(config->root, "torch_dtype");
    if (value) {
        test_expect_status(heft_dtype_parse(value->text, &dtype, &err), HEFT_OK, &err, "dtype");
    }
    return dtype;
}

static void open_case(struct opened *o, const char *folder)
{
    heft_error err = {0};
    test_expect_status(
        heft_checkpoint_open(ctx, test_path(folder, "model.safetensors"), NULL, &o->packed, &err),
        HEFT_OK, &err, folder);
    test_expect_status(heft_checkpoint_open(ctx, test_path(folder, "expected.safetensors"), NULL,
                                            &o->expected, &err),
                       HEFT_OK, &err, folder);
    test_expect_status(heft_config_read(ctx, test_path(folder, "config.json"), &o->config, &err),
                       HEFT_OK, &err, folder);
    heft__arena_init(&o->arena, ctx);
    const heft__quant_settings settings = {
        .config = heft__json_member(o->config->root, "quantization_config"),
        .quanto = quanto_map(&o->arena, folder),
        .path = o->config->path,
        .model_dtype = dtype_of_config(o->config)};
    const heft__quant_table table = {.infos = o->packed->infos,
                                     .count = o->packed->count,
                                     .names = &o->packed->names,
                                     .read = read_some,
                                     .user = o->packed};
    test_expect_status(heft__quant_find(&o->arena, &table, &settings, &o->found, &err), HEFT_OK,
                       &err, folder);
}

static void close_case(struct opened *o)
{
    heft_checkpoint_close(o->packed);
    heft_checkpoint_close(o->expected);
    heft_config_free(o->config);
    heft__arena_fini(&o->arena);
}

/* ---- values ----------------------------------------------------------------------------------- */
static uint8_t *whole_tensor(const heft_checkpoint *ckpt, size_t i)
{
    heft_error err = {0};
    const uint64_t bytes = ckpt->infos[i].size_bytes;
    uint8_t *data = malloc(bytes ? bytes : 1);
    assert_non_null(data);
    test_expect_status(heft_checkpoint_read(ckpt, i, data, bytes, &err), HEFT_OK, &err,
                       ckpt->infos[i].name);
    return data;
}

/* The bytes of a region, as a caller hands them over. */
static uint8_t *gather(const struct opened *o, const heft__quant_weight *weight,
                       const heft__quant_region *region)
{
    const size_t part = weight->part[region->part];
    uint8_t *dst = aligned_alloc(64, (region->length * region->runs + 64) / 64 * 64);
    uint8_t *data = whole_tensor(o->packed, part);
    assert_non_null(dst);
    for (uint64_t r = 0; r < region->runs; r++) {
        const uint64_t from = region->offset + r * region->stride;
        assert_true(from + region->length <= o->packed->infos[part].size_bytes);
        memcpy(dst + r * region->length, data + from, region->length);
    }
    free(data);
    return dst;
}

/* Compare rows in tiles of at most so many. */
static void compare_tiles(const struct opened *o, const heft__quant_weight *weight,
                          const uint8_t *expected, uint64_t most)
{
    const uint64_t columns = heft__quant_columns(weight), per = heft__quant_matrix_rows(weight);
    const uint64_t row_bytes = columns * heft_dtype_bits(weight->dtype) / 8;
    uint64_t rows = 1;
    for (uint32_t d = 0; d + 1 < weight->rank; d++) {
        rows *= weight->shape[d];
    }
    for (uint64_t first = 0; first < rows;) {
        const uint64_t left = per - first % per, count = left < most ? left : most;
        heft__quant_region regions[HEFT__QUANT_REGIONS] = {{0}};
        uint8_t *bytes[HEFT__QUANT_REGIONS] = {NULL};
        heft_error err = {0};
        const size_t n = weight->layout->regions(weight, first, count, regions);
        assert_in_range(n, 1, HEFT__QUANT_REGIONS);
        for (size_t k = 0; k < n; k++) {
            bytes[k] = gather(o, weight, &regions[k]);
        }
        uint8_t *out = malloc(count * row_bytes);
        assert_non_null(out);
        test_expect_status(
            weight->layout->decode(weight, first, count, (const uint8_t *const *)bytes, out, &err),
            HEFT_OK, &err, weight->name);
        if (memcmp(out, expected + first * row_bytes, count * row_bytes) != 0) {
            fail_msg("%s: rows %llu to %llu differ", weight->name, (unsigned long long)first,
                     (unsigned long long)(first + count));
        }
        free(out);
        for (size_t k = 0; k < n; k++) {
            free(bytes[k]);
        }
        first += count;
    }
}

static void compare_weight(const struct opened *o, const heft__quant_weight *weight)
{
    const size_t number = heft_checkpoint_find(o->expected, weight->name);
    if (number == SIZE_MAX) {
        fail_msg("\"%s\" is not expected", weight->name);
    }
    const heft_tensor_info *info = &o->expected->infos[number];
    assert_non_null(weight->layout);
    assert_int_equal(weight->rank, info->rank);
    assert_memory_equal(weight->shape, info->shape, info->rank * sizeof *info->shape);
    assert_string_equal(heft_dtype_name(weight->dtype), heft_dtype_name(info->dtype));
    uint8_t *expected = whole_tensor(o->expected, number);
    const uint64_t step = weight->layout->row_step;
    for (int level = 0; level < HEFT__LEVEL_COUNT; level++) {
        if (heft__lanes_force(level)) {
            compare_tiles(o, weight, expected, heft__quant_matrix_rows(weight));
            compare_tiles(o, weight, expected, step);
            compare_tiles(o, weight, expected, 3 * step);
        }
    }
    (void)heft__lanes_force(-1);
    free(expected);
}

/* What is no part of a weight is plain, and as expected. */
static size_t compare_plain(const struct opened *o)
{
    size_t plain = 0;
    for (size_t i = 0; i < o->packed->count; i++) {
        if (o->found.owner[i] != HEFT__NO_PART) {
            continue;
        }
        const size_t number = heft_checkpoint_find(o->expected, o->packed->infos[i].name);
        if (number == SIZE_MAX) {
            fail_msg("\"%s\" is taken for a plain tensor", o->packed->infos[i].name);
        }
        uint8_t *packed = whole_tensor(o->packed, i), *expected = whole_tensor(o->expected, number);
        assert_memory_equal(packed, expected, o->expected->infos[number].size_bytes);
        free(packed);
        free(expected);
        plain++;
    }
    return plain;
}

static void check_case(const struct quant_case *row)
{
    char folder[512];
    struct opened o = {0};
    (void)snprintf(folder, sizeof folder, "%s/quant/%s", HEFT_TEST_DATA, row->folder);
    open_case(&o, folder);
    assert_string_equal(o.found.method, row->method);
    assert_int_equal(o.found.bits, row->bits);
    assert_int_equal(o.found.group, row->group);
    for (size_t i = 0; i < o.found.count; i++) {
        compare_weight(&o, &o.found.weights[i]);
    }
    assert_int_equal(compare_plain(&o) + o.found.count, o.expected->count);
    if (row->extra) {
        const size_t number = heft_checkpoint_find(o.packed, row->extra);
        assert_true(number != SIZE_MAX && o.found.owner[number] != HEFT__NO_PART);
    }
    close_case(&o);
}

static void every_case_is_dequantized(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        print_message("%s\n", cases[i].folder);
        check_case(&cases[i]);
    }
}

/* ---- loops ------------------------------------------------------------------------------------ */
/* Every count up to some vectors, both orders, pointers at odd addresses, and nothing past the end. */
static void lookup_is_the_same_at_every_level(void **state)
{
    enum { MOST = 130, GUARD = 0xa5 };
    uint8_t packed[MOST / 2 + 2], out[2 * MOST + 5];
    uint16_t table[16];
    (void)state;
    for (unsigned e = 0; e < 16; e++) {
        table[e] = (uint16_t)(e * 0x1357U + 0x8001U);
    }
    for (unsigned b = 0; b < sizeof packed; b++) {
        packed[b] = (uint8_t)(b * 167 + 29);
    }
    for (int level = 0; level < HEFT__LEVEL_COUNT; level++) {
        for (size_t n = 0; heft__lanes_force(level) && n < 4 * (MOST + 1); n++) {
            const size_t count = n / 4, shift = n % 2;
            const bool high_first = n % 4 >= 2;
            memset(out, GUARD, sizeof out);
            heft__nibble_lanes()->lookup16((void *)(out + shift), table, packed + shift, count,
                                           high_first);
            for (size_t k = 0; k < count; k++) {
                const bool high = (k % 2 == 0) == high_first;
                const uint16_t want = table[packed[shift + k / 2] >> (high ? 4 : 0) & 15];
                assert_memory_equal(out + shift + 2 * k, &want, sizeof want);
            }
            assert_int_equal(out[shift + 2 * count], GUARD);
        }
    }
    (void)heft__lanes_force(-1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lookup_is_the_same_at_every_level),
        cmocka_unit_test(every_case_is_dequantized),
    };
    ctx = heft_ctx_new(NULL);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
