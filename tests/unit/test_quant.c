/* Quantized weights, without files between: every checkpoint of tests/data/quant, made by the libraries of
 * the methods or by hand, is found, and dequantized at every instruction set level and in tiles of every
 * kind, to the bytes that the library has. */
#include "load/load.h"
#include "quant/quant.h"
#include "support.h"
#include "tensor/lanes.h"

#include <math.h>
#include <stdlib.h>

static heft_ctx *ctx;

static const struct quant_case {
    const char *folder, *method;
    uint32_t bits;
    uint64_t group;
    const char *extra; /* a tensor that is a companion of a weight; NULL: not looked at */
} cases[] = {
    {"awq_4bit",             "awq",                4, 32,  NULL                                           },
    {"bnb_fp4",              "bitsandbytes",       4, 64,  NULL                                           },
    {"bnb_int8",             "bitsandbytes",       8, 0,   "model.layers.0.self_attn.q_proj.weight_format"},
    {"bnb_nf4",              "bitsandbytes",       4, 64,  NULL                                           },
    {"bnb_nf4_nested",       "bitsandbytes",       4, 64,  NULL                                           },
    {"ct_int3_pack",         "compressed-tensors", 3, 16,  NULL                                           },
    {"ct_int4_pack",         "compressed-tensors", 4, 32,  NULL                                           },
    {"ct_int4_pack_asym",    "compressed-tensors", 4, 32,  NULL                                           },
    {"ct_int4_pack_channel", "compressed-tensors", 4, 0,   NULL                                           },
    {"ct_int8",              "compressed-tensors", 8, 0,   NULL                                           },
    {"ct_int8_pack",         "compressed-tensors", 8, 16,  NULL                                           },
    {"ct_mxfp4",             "compressed-tensors", 4, 32,  NULL                                           },
    {"ct_nvfp4",             "compressed-tensors", 4, 16,  NULL                                           },
    {"fp8_block",            "fp8",                8, 128, NULL                                           },
    {"fp8_block_ragged",     "fp8",                8, 128, NULL                                           },
    {"fp8_block_ue8m0",      "fp8",                8, 64,  NULL                                           },
    {"fp8_channel",          "compressed-tensors", 8, 0,   NULL                                           },
    {"fp8_ct_block",         "compressed-tensors", 8, 128, NULL                                           },
    {"fp8_tensor",           "compressed-tensors", 8, 0,   NULL                                           },
    {"gptq_2bit",            "gptq",               2, 16,  NULL                                           },
    {"gptq_3bit",            "gptq",               3, 32,  NULL                                           },
    {"gptq_4bit",            "gptq",               4, 32,  NULL                                           },
    {"gptq_4bit_v2",         "gptq",               4, 64,  NULL                                           },
    {"gptq_8bit",            "gptq",               8, 32,  NULL                                           },
    {"modelopt_mxfp8",       "modelopt",           8, 32,  NULL                                           },
    {"modelopt_nvfp4",       "modelopt",           4, 16,  "model.layers.0.mlp.up_proj.input_scale"       },
    {"mxfp4",                "mxfp4",              4, 32,  NULL                                           },
    {"quanto_int4",          "quanto",             4, 128, NULL                                           },
    {"quanto_int8",          "quanto",             8, 0,   NULL                                           },
    {"torchao_fp8",          "torchao",            8, 0,   NULL                                           },
    {"torchao_int8",         "torchao",            8, 0,   NULL                                           },
    {"torchao_intx",         "torchao",            8, 32,  NULL                                           },
    {"torchao_mxfp4",        "torchao",            4, 32,  NULL                                           },
    {"torchao_mxfp8",        "torchao",            8, 32,  NULL                                           },
    {"torchao_nvfp4",        "torchao",            4, 16,  NULL                                           },
};

/* `bytes` bytes from the start of a cache line on, to be freed. */
static void *line_start(size_t bytes)
{
    void *found = NULL;
    assert_int_equal(posix_memalign(&found, HEFT__STREAM_LINE, bytes), 0);
    return found;
}

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

static const char *metadata_of(const void *user, const char *key)
{
    const char *value = NULL, *found;
    for (size_t i = 0; (found = heft_checkpoint_metadata(user, i, &value)) != NULL; i++) {
        if (strcmp(found, key) == 0) {
            return value;
        }
    }
    return NULL;
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

/* As a model would know it. */
static heft_status shape_of(void *user, const char *name, uint64_t shape[2], bool *known,
                            heft_error *err)
{
    const heft_checkpoint *expected = user;
    const size_t i = heft_checkpoint_find(expected, name);
    (void)err;
    *known = i != SIZE_MAX && expected->infos[i].rank == 2;
    if (*known) {
        memcpy(shape, expected->infos[i].shape, 2 * sizeof *shape);
    }
    return HEFT_OK;
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
        .model_dtype = dtype_of_config(o->config),
        .shape_of = shape_of,
        .user = o->expected};
    const heft__quant_table table = {.infos = o->packed->infos,
                                     .count = o->packed->count,
                                     .names = &o->packed->names,
                                     .read = read_some,
                                     .metadata = metadata_of,
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
        uint8_t *runs[HEFT__QUANT_REGIONS] = {NULL};
        heft__quant_bytes bytes[HEFT__QUANT_REGIONS] = {{0}};
        heft_error err = {0};
        const size_t n = weight->layout->regions(weight, first, count, regions);
        assert_in_range(n, 1, HEFT__QUANT_REGIONS);
        for (size_t k = 0; k < n; k++) {
            runs[k] = gather(o, weight, &regions[k]);
            bytes[k] = (heft__quant_bytes){runs[k], regions[k].length};
        }
        for (int stream = 0; stream < 2; stream++) {
            uint8_t *out = line_start(count * row_bytes);
            test_expect_status(
                weight->layout->decode(weight, first, count, bytes, out, stream, &err), HEFT_OK,
                &err, weight->name);
            heft__nibble_lanes()->settle();
            if (memcmp(out, expected + first * row_bytes, count * row_bytes) != 0) {
                fail_msg("%s: rows %llu to %llu differ", weight->name, (unsigned long long)first,
                         (unsigned long long)(first + count));
            }
            free(out);
        }
        for (size_t k = 0; k < n; k++) {
            free(runs[k]);
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
/* Every count up to some vectors, both orders, pointers at odd addresses and at the start of a cache line, around
 * the caches or not, and nothing past the end. */
static void lookup_is_the_same_at_every_level(void **state)
{
    enum { MOST = 130, GUARD = 0xa5 };
    uint8_t packed[MOST / 2 + 2], out[2 * MOST + 5] __attribute__((aligned(HEFT__STREAM_LINE)));
    uint16_t table[16];
    (void)state;
    for (unsigned e = 0; e < 16; e++) {
        table[e] = (uint16_t)(e * 0x1357U + 0x8001U);
    }
    for (unsigned b = 0; b < sizeof packed; b++) {
        packed[b] = (uint8_t)(b * 167 + 29);
    }
    for (int level = 0; level < HEFT__LEVEL_COUNT; level++) {
        for (size_t n = 0; heft__lanes_force(level) && n < 8 * (MOST + 1); n++) {
            const size_t count = n / 8, shift = n % 2;
            const bool high_first = n % 4 >= 2, stream = n % 8 >= 4;
            memset(out, GUARD, sizeof out);
            heft__nibble_lanes()->lookup16((void *)(out + shift), table, packed + shift, count,
                                           high_first, stream);
            heft__nibble_lanes()->settle();
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

/* ---- levels ------------------------------------------------------------------------------------- */
/* Weights of any bytes: every level gives what the base level does, whose results every_case_is_dequantized
 * compares with the libraries. Where there is one level only, the hashes stand for the others. */
struct made_tensor {
    const char *name, *dtype, *shape;
    size_t bytes;
    const char *text; /* instead of any bytes */
};

#define NF4_STATE(dtype, shape)                                                                    \
    "{\"quant_type\":\"nf4\",\"blocksize\":64,\"dtype\":\"" dtype "\",\"shape\":" shape "}"
#define NF4(dtype, shape, values, blocks)                                                          \
    {"w", "U8", "[" #values ",1]", values, NULL},                                                  \
        {"w.absmax", "F32", "[" #blocks "]", 4 * (blocks), NULL},                                  \
        {"w.quant_map", "F32", "[16]", 64, NULL},                                                  \
    {                                                                                              \
        "w.quant_state.bitsandbytes__nf4", "U8", NULL, sizeof NF4_STATE(dtype, shape) - 1,         \
            NF4_STATE(dtype, shape)                                                                \
    }

static const struct made_case {
    const char *name;
    uint64_t hash; /* of the results, on every machine */
    const char *config;
    struct made_tensor tensors[4];
} made_cases[] = {
    {"nf4_rows_end_within_blocks",
     UINT64_C(0x53e255b2e47b23d6),
     "{\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true}",                        {NF4("bfloat16", "[33,100]", 1650, 52)}                                                     },
    {"nf4_half",
     UINT64_C(0x2f31f6d50e03ef02),
     "{\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true}",                        {NF4("float16", "[5,192]", 480, 15)}                                                        },
    {"gptq_last_group_short",
     UINT64_C(0xf050517b56f622bb),
     "{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 128}",                      {{"w.qweight", "I32", "[24,72]", 6912, NULL},
      {"w.qzeros", "I32", "[2,9]", 72, NULL},
      {"w.scales", "F16", "[2,72]", 288, NULL}}                                                                   },
    {"gptq_bfloat16",
     UINT64_C(0xe34c363c4d67132b),
     "{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 64}",                       {{"w.qweight", "I32", "[32,32]", 4096, NULL},
      {"w.qzeros", "I32", "[4,4]", 64, NULL},
      {"w.scales", "BF16", "[4,32]", 256, NULL}}                                                                   },
    {"gptq_groups_of_other_sizes",
     UINT64_C(0x44e7381eb4642330),
     "{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 40}",                       {{"w.qweight", "I32", "[25,32]", 3200, NULL},
      {"w.qzeros", "I32", "[5,4]", 80, NULL},
      {"w.scales", "F16", "[5,32]", 320, NULL}}                                                                    },
    {"awq_rows_left_over",
     UINT64_C(0x2cc648a123f4867d),
     "{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 64, \"version\": \"gemm\"}", {{"w.qweight", "I32", "[192,5]", 3840, NULL},
      {"w.qzeros", "I32", "[3,5]", 60, NULL},
      {"w.scales", "F16", "[3,40]", 240, NULL}}                                              },
    {"gptq_large",
     UINT64_C(0x3bc2f2d20aea3c83),
     "{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 512}",                      {{"w.qweight", "I32", "[120,600]", 288000, NULL},
      {"w.qzeros", "I32", "[2,75]", 600, NULL},
      {"w.scales", "F16", "[2,600]", 2400, NULL}}                                                                 },
    {"awq_large",
     UINT64_C(0xaa91448a4c2dc8d1),
     "{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 96, \"version\": \"gemm\"}", {{"w.qweight", "I32", "[960,75]", 288000, NULL},
      {"w.qzeros", "I32", "[10,75]", 3000, NULL},
      {"w.scales", "F16", "[10,600]", 12000, NULL}}                                          },
    {"nf4_large",
     UINT64_C(0x9bdf2f359dd1d378),
     "{\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true}",                        {NF4("bfloat16", "[701,1000]", 350500, 10954)}                                              },
    {"fp8_large",
     UINT64_C(0x3a6d681331e9e341),
     "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 96]}",                       {{"w.weight", "F8_E4M3", "[600,1000]", 600000, NULL},
      {"w.weight_scale_inv", "F32", "[5,11]", 220, NULL}}                                                          },
    {"packed_large",
     UINT64_C(0x1e744ddb7eee2291),
     "{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", "
     "\"config_groups\": {\"a\": {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 4, "
     "\"strategy\": \"group\", \"group_size\": 32}}}}",                                     {{"w.weight_packed", "I32", "[600,120]", 288000, NULL},
      {"w.weight_scale", "BF16", "[600,30]", 36000, NULL},
      {"w.weight_shape", "I64", "[2]", 16, "\x58\2\0\0\0\0\0\0\xc0\3\0\0\0\0\0"}}                                                },
    {"mxfp4_large",
     UINT64_C(0xbb97d68a4abd7388),
     "{\"quant_method\": \"mxfp4\"}",                                                       {{"w_blocks", "U8", "[1,1080,20,16]", 345600, NULL},
      {"w_scales", "U8", "[1,1080,20]", 21600, NULL}}                                                                                              },
    {"mxfp4_large_in_lines",
     UINT64_C(0xcde5bd43a3dcc9a3),
     "{\"quant_method\": \"mxfp4\"}",                                                       {{"w_blocks", "U8", "[1,1088,20,16]", 348160, NULL},
      {"w_scales", "U8", "[1,1088,20]", 21760, NULL}}                                                                                              },
    {"mxfp4_extreme_scales",
     UINT64_C(0x8f014589c9a0f196),
     "{\"quant_method\": \"mxfp4\"}",                                                       {{"w_blocks", "U8", "[3,76,5,16]", 18240, NULL}, {"w_scales", "U8", "[3,76,5]", 1140, NULL}}},
};

static void write_made(const struct made_case *row, const char *folder)
{
    char header[1024], config[512];
    size_t length = 1, end = 0;
    header[0] = '{';
    for (size_t i = 0; i < 4 && row->tensors[i].name; i++) {
        const struct made_tensor *t = &row->tensors[i];
        char shape[32];
        (void)snprintf(shape, sizeof shape, "[%zu]", t->bytes);
        length += (size_t)snprintf(
            header + length, sizeof header - length,
            "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}", i ? "," : "",
            t->name, t->dtype, t->shape ? t->shape : shape, end, end + t->bytes);
        end += t->bytes;
    }
    header[length++] = '}';
    uint8_t *file = malloc(8 + length + end), *at = file + 8 + length;
    uint32_t random = 12345;
    assert_non_null(file);
    heft__put_le64(file, length);
    memcpy(file + 8, header, length);
    for (size_t i = 0; i < 4 && row->tensors[i].name; i++) {
        const struct made_tensor *t = &row->tensors[i];
        for (size_t k = 0; k < t->bytes; k++) {
            random = random * 1664525U + 1013904223U;
            at[k] = t->text ? (uint8_t)t->text[k] : (uint8_t)(random >> 24);
        }
        at += t->bytes;
    }
    test_write_file(folder, "model.safetensors", file, 8 + length + end);
    free(file);
    const int text = snprintf(config, sizeof config,
                              "{\"model_type\": \"none\", \"dtype\": \"bfloat16\", "
                              "\"quantization_config\": %s}",
                              row->config);
    test_write_file(folder, "config.json", config, (size_t)text);
}

/* Into memory in which results stay: if there is enough of them, they are stored around the caches. */
static void check_streamed(const heft_checkpoint *view, const uint8_t *expected)
{
    const heft_tensor_info *info = &view->infos[0];
    heft__decoder *decoder = NULL;
    heft_error err = {0};
    uint8_t *out = line_start((size_t)info->size_bytes);
    test_expect_status(heft__decoder_new(ctx, view->entries[0]->decoded, NULL, &decoder, &err),
                       HEFT_OK, &err, "decoder");
    test_expect_status(heft__decoder_read(decoder, 0,
                                          info->size_bytes / (heft_dtype_bits(info->dtype) / 8),
                                          out, true, &err),
                       HEFT_OK, &err, "streamed");
    assert_memory_equal(out, expected, info->size_bytes);
    heft__decoder_free(decoder);
    free(out);
}

/* Half-precision results as bfloat16, by the decoder itself or not: as a cast makes them. */
static void check_cast(const heft_checkpoint *view, const uint8_t *expected)
{
    const heft_tensor_info *info = &view->infos[0];
    const size_t count = (size_t)info->size_bytes / 2;
    heft__decoder *decoder = NULL;
    heft_error err = {0};
    if (info->dtype != HEFT_DTYPE_F16) {
        return;
    }
    uint16_t *out = line_start(count * 2), *cast = line_start(count * 2);
    test_expect_status(heft__decoder_new(ctx, view->entries[0]->decoded, NULL, &decoder, &err),
                       HEFT_OK, &err, "decoder");
    if (heft__decoder_cast(decoder, HEFT_DTYPE_BF16)) {
        test_expect_status(heft__decoder_read(decoder, 0, count, out, true, &err), HEFT_OK, &err,
                           "cast");
        heft__cast(HEFT_DTYPE_BF16, cast, HEFT_DTYPE_F16, expected, count);
        assert_memory_equal(out, cast, count * 2);
    }
    assert_true(heft__decoder_cast(decoder, HEFT_DTYPE_F16));
    test_expect_status(heft__decoder_read(decoder, 0, count, out, false, &err), HEFT_OK, &err,
                       "as it is");
    assert_memory_equal(out, expected, count * 2);
    assert_false(heft__decoder_cast(decoder, HEFT_DTYPE_F64));
    heft__decoder_free(decoder);
    free(out);
    free(cast);
}

/* FNV-1a of the results, any NaN as one: its sign depends on the processor. */
static uint64_t hash_of(const heft_checkpoint *view, const uint8_t *results)
{
    const heft_tensor_info *info = &view->infos[0];
    const size_t width = (size_t)heft_dtype_bits(info->dtype) / 8;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (uint64_t i = 0; i < info->size_bytes; i += width) {
        float number;
        heft__cast(HEFT_DTYPE_F32, &number, info->dtype, results + i, 1);
        for (size_t k = 0; k < width; k++) {
            hash = (hash ^ (isnan(number) ? 0xff : results[i + k])) * UINT64_C(0x100000001b3);
        }
    }
    return hash;
}

static void levels_agree(void **state)
{
    const heft_source_options how = HEFT_OPTIONS(heft_source_options, .dequantize = true);
    (void)state;
    for (size_t i = 0; i < sizeof made_cases / sizeof *made_cases; i++) {
        heft_source *source = NULL;
        heft_error err = {0};
        char folder[256];
        uint8_t *expected = NULL;
        print_message("%s\n", made_cases[i].name);
        test_folder_make(folder);
        write_made(&made_cases[i], folder);
        test_expect_status(heft_source_open(ctx, folder, &how, &source, &err), HEFT_OK, &err,
                           folder);
        const heft_checkpoint *view = heft_source_checkpoint(source);
        assert_int_equal(heft_checkpoint_count(view), 1);
        for (int level = 0; level < HEFT__LEVEL_COUNT; level++) {
            if (!heft__lanes_force(level)) {
                continue;
            }
            uint8_t *got = whole_tensor(view, 0);
            check_streamed(view, got);
            check_cast(view, got);
            if (hash_of(view, got) != made_cases[i].hash) {
                fail_msg("level %d: the results have the hash %llx", level,
                         (unsigned long long)hash_of(view, got));
            }
            if (expected) {
                assert_memory_equal(got, expected, view->infos[0].size_bytes);
                free(got);
            } else {
                expected = got;
            }
        }
        (void)heft__lanes_force(-1);
        free(expected);
        heft_source_close(source);
        test_folder_remove(folder);
    }
}

/* ---- views ------------------------------------------------------------------------------------ */
/* A float8 weight of many tiles, whose tiles begin within blocks of scales. */
#define ROWS 1500
#define COLUMNS 700

static void write_large(const char *folder)
{
    const uint64_t grid_rows = (ROWS + 127) / 128, grid_columns = (COLUMNS + 127) / 128;
    const uint64_t scales = grid_rows * grid_columns * 4, values = (uint64_t)ROWS * COLUMNS;
    char header[512];
    int length = snprintf(
        header, sizeof header,
        "{\"a.weight_scale_inv\":{\"dtype\":\"F32\",\"shape\":[%llu,%llu],"
        "\"data_offsets\":[0,%llu]},\"a.weight\":{\"dtype\":\"F8_E4M3\",\"shape\":[%d,%d],"
        "\"data_offsets\":[%llu,%llu]}}",
        (unsigned long long)grid_rows, (unsigned long long)grid_columns, (unsigned long long)scales,
        ROWS, COLUMNS, (unsigned long long)scales, (unsigned long long)(scales + values));
    const size_t bytes = 8 + (size_t)length + (size_t)(scales + values);
    uint8_t *file = malloc(bytes), *at = file + 8 + length;
    assert_non_null(file);
    heft__put_le64(file, (uint64_t)length);
    memcpy(file + 8, header, (size_t)length);
    for (uint64_t k = 0; k < scales / 4; k++) {
        const float scale = 0.25F + (float)k;
        uint32_t bits;
        memcpy(&bits, &scale, sizeof bits);
        heft__put_le32(at + 4 * k, bits);
    }
    for (uint64_t k = 0; k < values; k++) {
        at[scales + k] = (uint8_t)(k * 7 % 120);
    }
    test_write_file(folder, "model.safetensors", file, bytes);
    static const char config[] = "{\"model_type\": \"none\", \"dtype\": \"float32\", "
                                 "\"quantization_config\": {\"quant_method\": \"fp8\", "
                                 "\"weight_block_size\": [128, 128]}}";
    test_write_file(folder, "config.json", config, sizeof config - 1);
    free(file);
}

static float expected_at(uint64_t row, uint64_t column)
{
    const uint64_t k = row * COLUMNS + column, grid_columns = (COLUMNS + 127) / 128;
    const uint8_t byte = (uint8_t)(k * 7 % 120);
    float value;
    heft__cast(HEFT_DTYPE_F32, &value, HEFT_DTYPE_F8_E4M3FN, &byte, 1);
    return value * (0.25F + (float)(row / 128 * grid_columns + column / 128));
}

static void a_view_is_read_from_anywhere(void **state)
{
    static const uint64_t firsts[] =
        {0, 1, 699, 700, 127 * COLUMNS, 128 * COLUMNS - 3, 91001, (uint64_t)ROWS * COLUMNS - 5},
                          counts[] = {5, 1, 700, 1401, 262144, (uint64_t)300 * COLUMNS + 17};
    const heft_source_options how = HEFT_OPTIONS(heft_source_options, .dequantize = true);
    heft_source *source = NULL;
    heft_error err = {0};
    char folder[256];
    (void)state;
    test_folder_make(folder);
    write_large(folder);
    test_expect_status(heft_source_open(ctx, folder, &how, &source, &err), HEFT_OK, &err, folder);
    const heft_checkpoint *view = heft_source_checkpoint(source);
    assert_int_equal(heft_checkpoint_count(view), 1);
    float *all = malloc(sizeof(float) * ROWS * COLUMNS),
          *some = malloc(sizeof(float) * ROWS * COLUMNS);
    assert_true(all && some);
    test_expect_status(heft_checkpoint_read(view, 0, all, sizeof(float) * ROWS * COLUMNS, &err),
                       HEFT_OK, &err, "whole");
    for (uint64_t k = 0; k < (uint64_t)ROWS * COLUMNS; k++) {
        if (all[k] != expected_at(k / COLUMNS, k % COLUMNS)) {
            fail_msg("element %llu", (unsigned long long)k);
        }
    }
    heft__decoder *decoder = NULL;
    test_expect_status(heft__decoder_new(ctx, view->entries[0]->decoded, NULL, &decoder, &err),
                       HEFT_OK, &err, "decoder");
    for (size_t f = 0; f < sizeof firsts / sizeof *firsts; f++) {
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            const uint64_t left = (uint64_t)ROWS * COLUMNS - firsts[f],
                           count = counts[c] < left ? counts[c] : left;
            test_expect_status(heft__decoder_read(decoder, firsts[f], count, some, f % 2, &err),
                               HEFT_OK, &err, "some");
            assert_memory_equal(some, all + firsts[f], count * sizeof *some);
        }
    }
    heft__decoder_free(decoder);
    free(all);
    free(some);
    heft_source_close(source);
    test_folder_remove(folder);
}

static heft_status open_and_read(heft_ctx *heap, void *user, heft_error *err)
{
    const heft_source_options how = HEFT_OPTIONS(heft_source_options, .dequantize = true);
    heft_source *source = NULL;
    heft_model *model = NULL;
    heft_status status = heft_source_open(heap, user, &how, &source, err);
    if (status == HEFT_OK) {
        status = heft_model_load(source, NULL, &model, NULL, err);
    }
    heft_model_free(model);
    heft_source_close(source);
    return status;
}

static heft_status open_packed(heft_ctx *heap, void *user, heft_error *err)
{
    heft_source *source = NULL;
    heft_model *model = NULL;
    heft_status status = heft_source_open(heap, user, NULL, &source, err);
    if (status == HEFT_OK) {
        status = heft_model_load(source, NULL, &model, NULL, err);
    }
    heft_model_free(model);
    heft_source_close(source);
    return status;
}

static void without_memory(void **state)
{
    static const char *const some[] = {"gptq_3bit", "bnb_nf4_nested", "ct_int4_pack_asym",
                                       "fp8_block", "quanto_int4"};
    (void)state;
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        char folder[512];
        (void)snprintf(folder, sizeof folder, "%s/quant/%s", HEFT_TEST_DATA, some[i]);
        test_oom_sweep(open_and_read, folder);
        test_oom_sweep(open_packed, folder);
    }
}

/* A model whose weights stayed packed is saved as it was. */
static void a_packed_model_is_saved_as_it_was(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char folder[512], saved[256];
        heft_source *source = NULL;
        heft_model *model = NULL;
        heft_checkpoint *before = NULL, *after = NULL;
        heft_error err = {0};
        test_folder_make(saved);
        (void)snprintf(folder, sizeof folder, "%s/quant/%s", HEFT_TEST_DATA, cases[i].folder);
        test_expect_status(heft_source_open(ctx, folder, NULL, &source, &err), HEFT_OK, &err,
                           folder);
        test_expect_status(heft_model_load(source, NULL, &model, NULL, &err), HEFT_OK, &err,
                           folder);
        test_expect_status(heft_model_save(model, test_path(saved, "new"), NULL, NULL, &err),
                           HEFT_OK, &err, folder);
        test_expect_status(heft_checkpoint_open(ctx, folder, NULL, &before, &err), HEFT_OK, &err,
                           folder);
        test_expect_status(heft_checkpoint_open(ctx, test_path(saved, "new"), NULL, &after, &err),
                           HEFT_OK, &err, folder);
        assert_int_equal(before->count, after->count);
        for (size_t k = 0; k < before->count; k++) {
            const heft_tensor_info *info = &before->infos[k];
            const size_t at = heft_checkpoint_find(after, info->name);
            assert_true(at != SIZE_MAX);
            assert_int_equal(info->dtype, after->infos[at].dtype);
            assert_int_equal(info->size_bytes, after->infos[at].size_bytes);
            uint8_t *left = whole_tensor(before, k), *right = whole_tensor(after, at);
            assert_memory_equal(left, right, info->size_bytes);
            free(left);
            free(right);
        }
        heft_checkpoint_close(before);
        heft_checkpoint_close(after);
        heft_model_free(model);
        heft_source_close(source);
        const heft_source_options plain = HEFT_OPTIONS(heft_source_options, .dequantize = true);
        test_expect_status(heft_source_open(ctx, test_path(saved, "new"), &plain, &source, &err),
                           HEFT_OK, &err, folder);
        assert_non_null(source->view); /* so it can be made plain again */
        heft_source_close(source);
        test_folder_remove(saved);
    }
}

static void expect_plain_config(const char *folder, const heft_model *model, bool told)
{
    heft_write_report *report = NULL;
    heft_error err = {0};
    size_t length;
    test_expect_status(heft_model_save(model, test_path(folder, "new"), NULL, &report, &err),
                       HEFT_OK, &err, folder);
    char *text = test_read_file(test_path(test_path(folder, "new"), "config.json"), &length);
    assert_null(strstr(text, "quantization_config"));
    assert_int_equal(report->warning_count, told ? 1 : 0);
    free(text);
    heft_write_report_free(report);
}

/* A model without quantized weights is not saved with a config that declares them. */
static void a_plain_model_declares_nothing(void **state)
{
    static const char folder[] = HEFT_TEST_DATA "/quant/awq_4bit";
    char saved[256];
    heft_source *source = NULL;
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft_error err = {0};
    (void)state;
    test_folder_make(saved);
    const heft_source_options plain = HEFT_OPTIONS(heft_source_options, .dequantize = true);
    test_expect_status(heft_source_open(ctx, folder, &plain, &source, &err), HEFT_OK, &err, folder);
    test_expect_status(heft_model_load(source, NULL, &model, NULL, &err), HEFT_OK, &err, folder);
    expect_plain_config(saved, model, false); /* dropped when it was opened */
    heft_model_free(model);
    heft_source_close(source);
    test_folder_remove(saved);

    test_folder_make(saved);
    test_expect_status(heft_config_read(ctx, folder, &config, &err), HEFT_OK, &err, folder);
    test_expect_status(heft_model_new(ctx, config, NULL, HEFT_DTYPE_NONE, &model, &err), HEFT_OK,
                       &err, folder);
    test_expect_status(heft_model_init(model, NULL, &err), HEFT_OK, &err, folder);
    expect_plain_config(saved, model, true);
    heft_model_free(model);
    heft_config_free(config);
    test_folder_remove(saved);
}

/* ---- wrappers --------------------------------------------------------------------------------- */
/* A copy of a case, with `prefix` in front of the names that begin with `begin`. */
static void write_some_wrapped(const char *from, const char *to, const char *begin,
                               const char *prefix)
{
    size_t length = 0, config_length = 0;
    char *file = test_read_file(test_path(from, "model.safetensors"), &length);
    char *config = test_read_file(test_path(from, "config.json"), &config_length);
    const size_t header = (size_t)heft__le64((const uint8_t *)file), more = strlen(prefix);
    char *made = malloc(length + header * (more + 1));
    size_t at = 8;
    assert_non_null(made);
    for (size_t k = 0; k < header; k++) {
        const char *here = file + 8 + k;
        made[at++] = *here;
        if (*here == '"' && ((*begin && strncmp(here + 1, begin, strlen(begin)) == 0) ||
                             (!*begin && (strncmp(here + 1, "model.", 6) == 0 ||
                                          strncmp(here + 1, "lm_head.", 8) == 0)))) {
            memcpy(made + at, prefix, more);
            at += more;
        }
    }
    heft__put_le64((uint8_t *)made, at - 8);
    memcpy(made + at, file + 8 + header, length - 8 - header);
    test_write_file(to, "model.safetensors", made, at + length - 8 - header);
    test_write_file(to, "config.json", config, config_length);
    free(config);
    free(made);
    free(file);
    if (strstr(from, "quanto")) {
        char *map = test_read_file(test_path(from, "quanto_qmap.json"), &length);
        test_write_file(to, "quanto_qmap.json", map, length);
        free(map);
    }
}

static void write_wrapped(const char *from, const char *to, const char *prefix)
{
    write_some_wrapped(from, to, "", prefix);
}

static heft_model *load_whole(const char *folder)
{
    heft_source *source = NULL;
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    heft_error err = {0};
    const heft_load_options options = HEFT_OPTIONS(heft_load_options, .strict = true);
    test_expect_status(heft_source_open(ctx, folder, NULL, &source, &err), HEFT_OK, &err, folder);
    test_expect_status(heft_model_load(source, &options, &model, &report, &err), HEFT_OK, &err,
                       folder);
    assert_int_equal(report->initialized_count, 0);
    heft_load_report_free(report);
    heft_source_close(source);
    return model;
}

static void compare_models(const heft_model *left, const heft_model *right)
{
    assert_int_equal(left->count, right->count);
    for (size_t i = 0; i < left->count; i++) {
        const heft_parameter *a = &left->parameters[i], *b = &right->parameters[i];
        assert_string_equal(a->name, b->name);
        assert_int_equal(a->dtype, b->dtype);
        assert_int_equal(a->size_bytes, b->size_bytes);
        assert_int_equal(a->tied_to, b->tied_to);
        if (a->tied_to == i && a->kind != HEFT_PARAMETER_BUFFER_TRANSIENT && a->size_bytes) {
            heft_tensor *x = NULL, *y = NULL;
            heft_error err = {0};
            test_expect_status(heft_model_tensor(left, i, &x, &err), HEFT_OK, &err, a->name);
            test_expect_status(heft_model_tensor(right, i, &y, &err), HEFT_OK, &err, a->name);
            assert_memory_equal(x->data, y->data, a->size_bytes);
            heft_tensor_free(x);
            heft_tensor_free(y);
        }
    }
}

/* Names are used as they are in an existing model: what then has no place is not passed over. */
static void wrapped_names_do_not_go_into_a_model(void **state)
{
    static const char from[] = HEFT_TEST_DATA "/quant/awq_4bit";
    heft_error err = {0};
    char made[256];
    (void)state;
    heft_model *model = load_whole(from);
    test_expect_status(heft_model_load_sharded(model, from, NULL, NULL, &err), HEFT_OK, &err, from);
    test_folder_make(made);
    write_wrapped(from, made, "module.");
    test_expect_status(heft_model_load_sharded(model, made, NULL, NULL, &err), HEFT_MISMATCH, &err,
                       made);
    test_folder_remove(made);
    test_folder_make(made);
    write_some_wrapped(from, made, "model.layers.0.self_attn.q_proj.", "module.");
    test_expect_status(heft_model_load_sharded(model, made, NULL, NULL, &err), HEFT_MISMATCH, &err,
                       made);
    assert_string_equal(err.item, "module.model.layers.0.self_attn.q_proj.weight");
    test_folder_remove(made);
    heft_model_free(model);
}

static void wrapped_names_change_nothing(void **state)
{
    static const char *const prefixes[] = {"module.", "_orig_mod.", "base_model.model."};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char folder[512];
        (void)snprintf(folder, sizeof folder, "%s/quant/%s", HEFT_TEST_DATA, cases[i].folder);
        heft_model *plain = load_whole(folder);
        for (size_t k = 0; k < sizeof prefixes / sizeof *prefixes; k++) {
            char made[256];
            test_folder_make(made);
            write_wrapped(folder, made, prefixes[k]);
            heft_model *model = load_whole(made);
            compare_models(plain, model);
            heft_model_free(model);
            test_folder_remove(made);
        }
        heft_model_free(plain);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lookup_is_the_same_at_every_level),
        cmocka_unit_test(levels_agree),
        cmocka_unit_test(every_case_is_dequantized),
        cmocka_unit_test(a_view_is_read_from_anywhere),
        cmocka_unit_test(a_packed_model_is_saved_as_it_was),
        cmocka_unit_test(a_plain_model_declares_nothing),
        cmocka_unit_test(wrapped_names_change_nothing),
        cmocka_unit_test(wrapped_names_do_not_go_into_a_model),
        cmocka_unit_test(without_memory),
    };
    ctx = heft_ctx_new(NULL);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
