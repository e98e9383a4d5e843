/* Quantized weights that contradict themselves or their settings, those that are not computed, and 8-bit
 * values with every kind of scale. Tensors are written as "name dtype shape; name dtype shape". */
#include "quant/quant.h"
#include "support.h"
#include "tensor/lanes.h"

#include <math.h>
#include <stdlib.h>

#define TENSORS 8

static heft_ctx *ctx;
static heft_dtype model_dtype = HEFT_DTYPE_BF16;

/* ---- a table of tensors from a line of text ---------------------------------------------------- */
struct tensors {
    heft__arena arena;
    heft__map names;
    heft_tensor_info infos[TENSORS];
    const char *metadata; /* of every weight; NULL: there is none */
    size_t count;
};

static heft_status read_ones(const void *user, size_t i, void *dst, size_t length, heft_error *err)
{
    (void)user;
    (void)i;
    (void)err;
    memset(dst, 1, length);
    return HEFT_OK;
}

static const char *metadata_of(const void *user, const char *key)
{
    (void)key;
    return ((const struct tensors *)user)->metadata;
}

/* "1,2" or "-" for no dimensions. */
static void set_shape(struct tensors *t, heft_tensor_info *info, const char *text)
{
    uint64_t *shape = heft__arena_array(&t->arena, 8, sizeof *shape), elems = 1;
    assert_non_null(shape);
    while (*text && *text != '-') {
        char *end = NULL;
        shape[info->rank] = strtoull(text, &end, 10);
        elems *= shape[info->rank++];
        text = *end == ',' ? end + 1 : end;
    }
    info->shape = shape;
    info->size_bytes = elems * heft_dtype_bits(info->dtype) / 8;
}

static void set_tensors(struct tensors *t, const char *line)
{
    char *text = heft__arena_text(&t->arena, line, strlen(line)), *rest = NULL;
    assert_non_null(text);
    for (char *one = strtok_r(text, ";", &rest); one; one = strtok_r(NULL, ";", &rest)) {
        char *fields = NULL, *name = strtok_r(one, " ", &fields),
             *dtype = strtok_r(NULL, " ", &fields), *shape = strtok_r(NULL, " ", &fields);
        assert_true(name && dtype && shape && t->count < TENSORS);
        heft_tensor_info *info = &t->infos[t->count];
        size_t old;
        info->name = name;
        info->dtype = heft__dtype_from_safetensors(dtype, strlen(dtype));
        assert_int_not_equal(info->dtype, HEFT_DTYPE_NONE);
        set_shape(t, info, shape);
        assert_true(heft__map_put(&t->names, name, strlen(name), t->count++, &old));
    }
}

static heft__json_value *parsed(struct tensors *t, const char *text)
{
    heft__json_value *root = NULL;
    heft_error err = {0};
    if (text) {
        test_expect_status(heft__json_parse(&t->arena, text, strlen(text), 64, &root, &err),
                           HEFT_OK, &err, text);
    }
    return root;
}

/* ---- refusals --------------------------------------------------------------------------------- */
#define FP8 "{\"quant_method\":\"fp8\",\"weight_block_size\":[2,2]}"
#define MODELOPT "{\"quant_method\":\"modelopt\"}"
#define COMPRESSED "{\"quant_method\":\"compressed-tensors\"}"
#define GROUP(weights)                                                                             \
    "{\"quant_method\":\"compressed-tensors\",\"config_groups\":{\"g\":{" weights "}}}"
#define MXFP4 "{\"quant_method\":\"mxfp4\"}"
#define TORCHAO "{\"quant_method\":\"torchao\"}"
#define INTEGER_CLASS                                                                              \
    "{\"_type\":\"Int8Tensor\",\"_data\":{\"dtype\":{\"_type\":\"torch.dtype\",\"_data\":"         \
    "\"int8\"}}}"
#define QINT8 "{\"a\":{\"weights\":\"qint8\"}}"
#define INT8_PARTS                                                                                 \
    "{\"_type\":\"Int8Tensor\",\"_data\":{\"block_size\":[1,4]},\"_tensor_data_names\":["          \
    "\"qdata\",\"scale\",\"zero_point\"]}"
#define INT8_CLASS "{\"_type\":\"Int8Tensor\",\"_data\":{\"block_size\":[1,4]}}"

static const struct bad {
    const char *name, *tensors, *config, *quanto, *metadata;
    const char *item, *message; /* of the error; a part of its text */
} bad[] = {
    {"float8 without a scale",                  "a.weight F8_E4M3 4,4",                                              FP8,        NULL,                              NULL,                                                        "a.weight",
     "\"a.weight_scale_inv\" is missing"                                                                                                                                                                                                                                                                         },
    {"a scale without a weight",                "a.weight_scale_inv F32 2,2",                                        FP8,        NULL,                              NULL,
     "a.weight_scale_inv",                                                                                                                                                                                                                               "\"a.weight\" is missing"                               },
    {"a scale of a plain weight",               "a.weight BF16 4,4;a.weight_scale_inv F32 2,2",                      FP8,        NULL,                              NULL,
     "a.weight",                                                                                                                                                                                                                                         "expected float8, found bfloat16"                       },
    {"too few scales",                          "a.weight F8_E4M3 4,6;a.weight_scale_inv F32 2,2",                   FP8,        NULL,                              NULL,
     "a.weight_scale_inv",                                                                                                                                                                                                                               "expected shape [2, 3], found [2, 2]"                   },
    {"a short last block has a scale",          "a.weight F8_E4M3 5,5;a.weight_scale_inv F32 2,2",                   FP8,        NULL,
     NULL,                                                                                                                                                                                                                       "a.weight_scale_inv",   "expected shape [3, 3], found [2, 2]"                   },
    {"scales of a wrong dtype",                 "a.weight F8_E4M3 4,4;a.weight_scale_inv F64 2,2",                   FP8,        NULL,                              NULL,
     "a.weight_scale_inv",                                                                                                                                                                                                                               "float64 cannot be a scale"                             },
    {"a float8 vector",                         "a.weight F8_E4M3 4;a.weight_scale_inv F32 2",                       FP8,        NULL,                              NULL,                                                        "a.weight",
     "expected a matrix of float8 or int8 values, found float8_e4m3fn [4]"                                                                                                                                                                                                                                       },
    {"an empty matrix",                         "a.weight F8_E4M3 0,4;a.weight_scale_inv F32 0,2",                   FP8,        NULL,                              NULL,
     "a.weight",                                                                                                                                                                                                                                         "found float8_e4m3fn [0, 4]"                            },
    {"one count of a block",                    "a.weight F8_E4M3 4,4;a.weight_scale_inv F32 2,2",
     "{\"quant_method\":\"fp8\",\"weight_block_size\":[2]}",                                                                     NULL,                              NULL,                                                        "weight_block_size",
     "expected a list of two counts"                                                                                                                                                                                                                                                                             },
    {"a block of nothing",                      "a.weight F8_E4M3 4,4;a.weight_scale_inv F32 2,2",
     "{\"quant_method\":\"fp8\",\"weight_block_size\":[0,2]}",                                                                   NULL,                              NULL,                                                        "weight_block_size",
     "expected a list of two counts"                                                                                                                                                                                                                                                                             },
    {"scales of blocks that nothing declares",  "a.weight F8_E4M3 4,4;a.weight_scale_inv F32 2,2",
     "{\"quant_method\":\"fp8\"}",                                                                                               NULL,                              NULL,                                                        "a.weight_scale_inv",   "expected shape [1, 1]"                                 },

    {"modelopt float8 without a scale",         "a.weight F8_E4M3 4,4",                                              MODELOPT,   NULL,                              NULL,                                                        "a.weight",
     "\"a.weight_scale\" is missing"                                                                                                                                                                                                                                                                             },
    {"nvfp4 without its second scale",          "a.weight U8 2,8;a.weight_scale F8_E4M3 2,1",                        MODELOPT,   NULL,
     NULL,                                                                                                                                                                                                                       "a.weight",             "\"a.weight_scale_2\" is missing"                       },
    {"a second scale of two",                   "a.weight U8 2,8;a.weight_scale F8_E4M3 2,1;a.weight_scale_2 F32 2",
     MODELOPT,                                                                                                                   NULL,                              NULL,                                                        "a.weight_scale_2",     "expected one float32 value, found float32 [2]"         },
    {"nvfp4 with a part of a group",
     "a.weight U8 2,7;a.weight_scale F8_E4M3 2,1;a.weight_scale_2 F32 -",                                            MODELOPT,   NULL,                              NULL,
     "a.weight",                                                                                                                                                                                                                                         "rows of whole groups of 16, found uint8 [2, 7]"        },
    {"nvfp4 with too few scales",
     "a.weight U8 2,16;a.weight_scale F8_E4M3 2,1;a.weight_scale_2 F32 -",                                           MODELOPT,   NULL,                              NULL,
     "a.weight_scale",                                                                                                                                                                                                                                   "expected shape [2, 2], found [2, 1]"                   },
    {"modelopt scales that do not divide",      "a.weight F8_E4M3 4,5;a.weight_scale F32 4,2",                       MODELOPT,
     NULL,                                                                                                                                                          NULL,                                                        "a.weight_scale",       "2 scales do not divide 5 values"                       },
    {"a modelopt scale without a weight",       "a.weight_scale_2 F32 -",                                            MODELOPT,   NULL,                              NULL,
     "a.weight_scale_2",                                                                                                                                                                                                                                 "\"a.weight\" is missing"                               },

    {"torchao: a scale without its values",     "a._weight_scale F32 4,1",                                           TORCHAO,    NULL,                              INT8_CLASS,
     "a._weight_scale",                                                                                                                                                                                                                                  "\"a._weight_qdata\" is missing"                        },
    {"torchao: a listed part is missing",       "a._weight_qdata I8 4,4;a._weight_scale F32 4,1",                    TORCHAO,
     NULL,                                                                                                                                                          INT8_PARTS,                                                  "a._weight_qdata",      "\"a._weight_zero_point\" is missing"                   },
    {"torchao: exponents for integers",         "a._weight_qdata I8 4,4;a._weight_scale U8 4,1",                     TORCHAO,
     NULL,                                                                                                                                                          INT8_CLASS,                                                  "a._weight_scale",      "uint8 cannot be a scale of Int8Tensor"                 },
    {"torchao: nvfp4 with exponents",           "a._weight_qdata U8 2,8;a._weight_scale U8 2,1",                     TORCHAO,
     NULL,                                                                                                                                                          "{\"_type\":\"NVFP4Tensor\",\"_data\":{}}",                  "a._weight_scale",
     "expected float8_e4m3fn, found uint8"                                                                                                                                                                                                                                                                       },
    {"torchao: mx without exponents",           "a._weight_qdata U8 2,16;a._weight_scale F8_E4M3 2,1",
     TORCHAO,                                                                                                                    NULL,                              "{\"_type\":\"MXTensor\",\"_data\":{}}",                     "a._weight_scale",
     "expected exponents, found float8_e4m3fn"                                                                                                                                                                                                                                                                   },
    {"int8 without a scale",                    "a.weight I8 4,4",                                                   COMPRESSED, NULL,                              NULL,                                                        "a.weight",
     "\"a.weight_scale\" is missing"                                                                                                                                                                                                                                                                             },
    {"a compressed scale without a weight",     "a.weight_scale F32 4,1",                                            COMPRESSED, NULL,                              NULL,
     "a.weight_scale",                                                                                                                                                                                                                                   "\"a.weight\" is missing"                               },
    {"a compressed scale of a plain weight",    "a.weight F16 4,4;a.weight_scale F16 4,1",                           COMPRESSED,
     NULL,                                                                                                                                                          NULL,                                                        "a.weight",             "expected int8 or float8, found float16"                },
    {"scales of blocks without settings",       "a.weight I8 4,6;a.weight_scale F32 2,4",                            COMPRESSED,
     NULL,                                                                                                                                                          NULL,                                                        "a.weight_scale",       "the block size for scales of shape [2, 4] is not given"},
    {"scales that contradict the group",        "a.weight I8 4,8;a.weight_scale F32 4,4",
     GROUP("\"weights\":{\"group_size\":4}"),                                                                                    NULL,                              NULL,                                                        "a.weight_scale",
     "expected shape [4, 2], found [4, 4]"                                                                                                                                                                                                                                                                       },
    {"asymmetric without zero points",          "a.weight I8 4,4;a.weight_scale F32 4,1",
     GROUP("\"weights\":{\"symmetric\":false,\"strategy\":\"channel\"}"),                                                        NULL,                              NULL,                                                        "a.weight",
     "\"a.weight_zero_point\" is missing"                                                                                                                                                                                                                                                                        },
    {"zero points of a wrong dtype",
     "a.weight I8 4,4;a.weight_scale F32 4,1;a.weight_zero_point F32 4,1",                                           COMPRESSED, NULL,                              NULL,
     "a.weight_zero_point",                                                                                                                                                                                                                              "expected dtype int8, found float32"                    },
    {"zero points of a wrong shape",
     "a.weight I8 4,4;a.weight_scale F32 4,1;a.weight_zero_point I8 3,1",                                            COMPRESSED, NULL,                              NULL,
     "a.weight_zero_point",                                                                                                                                                                                                                              "expected shape [4, 1], found [3, 1]"                   },
    {"compressed nvfp4 without a global scale", "a.weight_packed U8 2,8;a.weight_scale F8_E4M3 2,1",
     COMPRESSED,                                                                                                                 NULL,                              NULL,                                                        "a.weight_packed",      "\"a.weight_global_scale\" is missing"                  },
    {"half-bytes without scales",               "a.weight_packed U8 2,8",                                            COMPRESSED, NULL,                              NULL,
     "a.weight_packed",                                                                                                                                                                                                                                  "\"a.weight_scale\" is missing"                         },

    {"blocks without scales",                   "e_blocks U8 2,4,1,16",                                              MXFP4,      NULL,                              NULL,                                                        "e_blocks",
     "\"e_scales\" is missing"                                                                                                                                                                                                                                                                                   },
    {"scales without blocks",                   "e_scales U8 2,4,1",                                                 MXFP4,      NULL,                              NULL,                                                        "e_scales",
     "\"e_blocks\" is missing"                                                                                                                                                                                                                                                                                   },
    {"blocks of 8 bytes",                       "e_blocks U8 2,4,1,8;e_scales U8 2,4,1",                             MXFP4,      NULL,                              NULL,                                                        "e_blocks",
     "expected uint8 [experts, rows, groups, 16], found uint8 [2, 4, 1, 8]"                                                                                                                                                                                                                                      },
    {"scales of other blocks",                  "e_blocks U8 2,4,1,16;e_scales U8 2,3,1",                            MXFP4,      NULL,                              NULL,
     "e_scales",                                                                                                                                                                                                                                         "expected shape [2, 4, 1], found [2, 3, 1]"             },

    {"qint8 without a scale",                   "a.weight._data I8 4,4",                                             NULL,       "{\"a\":{\"weights\":\"qint8\"}}",
     NULL,                                                                                                                                                                                                                       "a.weight._data",       "\"a.weight._scale\" is missing"                        },
    {"qint8 scales of other rows",              "a.weight._data I8 4,4;a.weight._scale F32 3,1",                     NULL,
     "{\"a\":{\"weights\":\"qint8\"}}",                                                                                                                             NULL,                                                        "a.weight._scale",
     "expected shape [4, 1], found [3, 1]"                                                                                                                                                                                                                                                                       },
    {"qint4 that the map does not list",        "a.weight._data._data U8 2,4",                                       NULL,       "{}",                              NULL,
     "a.weight._data._data",                                                                                                                                                                                                                             "does not say that it is qint4 or qint2"                },
    {"qint4 without a shift",                   "a.weight._data._data U8 2,4;a.weight._scale F32 4,1",               NULL,
     "{\"a\":{\"weights\":\"qint4\"}}",                                                                                                                             NULL,                                                        "a.weight._data._data",
     "\"a.weight._shift\" is missing"                                                                                                                                                                                                                                                                            },
    {"qint4 with more scales than lines",
     "a.weight._data._data U8 2,4;a.weight._scale F32 5,1;a.weight._shift F32 5,1",                                  NULL,
     "{\"a\":{\"weights\":\"qint4\"}}",                                                                                                                             NULL,                                                        "a.weight._scale",
     "5 scales do not match 2 rows of data"                                                                                                                                                                                                                                                                      },
    {"a quanto scale without data",             "a.weight._scale F32 4,1",                                           NULL,
     "{\"a\":{\"weights\":\"qint4\"}}",                                                                                                                             NULL,                                                        "a.weight._scale",
     "\"a.weight._data._data\" is missing"                                                                                                                                                                                                                                                                       },
    {"a scale that no result can be like",      "a.weight._data I8 4,4;a.weight._scale U8 4,1",                      NULL,
     QINT8,                                                                                                                                                         NULL,                                                        "a.weight._scale",      "uint8 cannot be a scale"                               },
    {"torchao results that are integers",       "a._weight_qdata I8 4,4;a._weight_scale F32 4,1",                    TORCHAO,
     NULL,                                                                                                                                                          INTEGER_CLASS,                                               "a._weight_qdata",      "\"dtype\" in the metadata"                             },
    {"torchao without a scale",                 "a._weight_qdata I8 4,4",                                            TORCHAO,    NULL,                              INT8_CLASS,
     "a._weight_qdata",                                                                                                                                                                                                                                  "\"a._weight_scale\" is missing"                        },
    {"torchao metadata that are no JSON",       "a._weight_qdata I8 4,4;a._weight_scale F32 4,1",                    TORCHAO,
     NULL,                                                                                                                                                          "{",                                                         "a._weight_qdata",      "\"_type\" in the metadata of \"a.weight\" is malformed"},
    {"torchao scales of other blocks",          "a._weight_qdata I8 4,4;a._weight_scale F32 4,2",                    TORCHAO,
     NULL,                                                                                                                                                          INT8_CLASS,                                                  "a._weight_scale",      "expected shape [4, 1], found [4, 2]"                   },
    {"a torchao block of one count",            "a._weight_qdata I8 4,4;a._weight_scale F32 4,1",                    TORCHAO,
     NULL,                                                                                                                                                          "{\"_type\":\"Int8Tensor\",\"_data\":{\"block_size\":[4]}}", "a._weight_qdata",
     "\"block_size\" in the metadata"                                                                                                                                                                                                                                                                            },
};

static const struct kept {
    const char *name, *tensors, *config, *metadata;
    const char *why; /* a part of it; NULL: the weight is computed */
} kept[] = {
    {"experts in one tensor",                    "e.w F8_E4M3 2,4,4;e.w_scale_inv F32 2,2,2",                          FP8,                          NULL, NULL                },
    {"experts in one tensor with another grid",  "e.w F8_E4M3 2,4,4;e.w_scale_inv F32 2,2",                            FP8,
     NULL,                                                                                                                                                 "several matrices"  },
    {"float8 without a config",                  "a.weight F8_E4M3 4,4;a.weight_scale_inv F32 2,2",                    NULL,                         NULL,
     "no config gives"                                                                                                                                                         },
    {"a scale under Mistral's name",
     "a.weight F8_E4M3 4,4;a.qscale_weight F32 -;a.qscale_act F32 -",                                                  "{\"quant_method\":\"fp8\"}",
     NULL,                                                                                                                                                 NULL                },
    {"fbgemm_fp8",                               "a.weight F8_E4M3 4,6;a.weight_scale F32 4,1;a.input_scale_ub F32 1",
     "{\"quant_method\":\"fbgemm_fp8\"}",                                                                                                            NULL, NULL                },
    {"inputs that are scaled",                   "a.weight F8_E4M3 4,4;a.weight_scale F32 -;a.pre_quant_scale F32 4",
     MODELOPT,                                                                                                                                       NULL, "pre_quant_scale"   },
    {"int4 of modelopt",                         "a.weight U8 2,4;a.weight_scale F32 4,1",                             MODELOPT,                     NULL, "int4"              },
    {"modelopt int8",                            "a.weight I8 4,4;a.weight_scale F32 4",                               MODELOPT,                     NULL, NULL                },
    {"modelopt blocks of rank 4",                "a.weight F8_E4M3 200,130;a.weight_scale F32 2,1,2,1",                MODELOPT,
     NULL,                                                                                                                                                 NULL                },
    {"modelopt mxfp4",                           "a.weight U8 2,16;a.weight_scale U8 2,1",                             MODELOPT,                     NULL, NULL                },
    {"marlin-24",                                "a.weight_packed I32 2,8;a.scale_packed F16 1,8;a.meta I16 2,2",      COMPRESSED,                   NULL,
     "marlin-24"                                                                                                                                                               },
    {"mxfp6",                                    "a.weight_packed U8 2,24;a.weight_scale U8 2,1",                      COMPRESSED,                   NULL, "mxfp6"             },
    {"sparse",                                   "a.compressed F16 8;a.bitmask U8 4,1;a.shape I64 2",                  COMPRESSED,                   NULL, "sparse-24"         },
    {"groups of which one goes with the scales", "a.weight I8 4,8;a.weight_scale F32 4,2",
     GROUP("\"weights\":{\"group_size\":8}},\"h\":{\"weights\":{\"group_size\":4}"),                                                                 NULL, NULL                },
    {"groups of which two go with the scales",   "a.weight I8 4,5;a.weight_scale F32 4,2",
     GROUP("\"weights\":{\"group_size\":3}},\"h\":{\"weights\":{\"group_size\":4}"),                                                                 NULL,
     "several config_groups match"                                                                                                                                             },
    {"the group that names the module",          "b.a.weight I8 4,5;b.a.weight_scale F32 4,2",
     GROUP("\"weights\":{\"group_size\":3}},\"h\":{\"targets\":[\"a\"],"
           "\"weights\":{\"group_size\":4}"),
     NULL,                                                                                                                                                 NULL                },
    {"torchao without metadata",                 "a._weight_qdata I8 4,4;a._weight_scale F32 4,1",                     TORCHAO,                      NULL,
     "the metadata of its file does not"                                                                                                                                       },
    {"a kernel's layout",                        "a._weight_qdata I32 1,1,2,4;a._weight_scale_and_zero F32 1,4,2",     TORCHAO,
     "{\"_type\":\"Int4TilePackedTo4dTensor\",\"_data\":{}}",                                                                                              "GPU kernel layout" },
    {"swizzled scales",                          "a._weight_qdata U8 2,8;a._weight_scale F8_E4M3 128,4",               TORCHAO,
     "{\"_type\":\"NVFP4Tensor\",\"_data\":{\"is_swizzled_scales\":true}}",                                                                                "is_swizzled_scales"},
    {"MXTensor in float16",                      "a._weight_qdata F8_E4M3 2,32;a._weight_scale F8_E8M0 2,1",           TORCHAO,
     "{\"_type\":\"MXTensor\",\"_data\":{\"orig_dtype\":{\"_type\":\"torch.dtype\","
     "\"_data\":\"float16\"}}}",                                                                                                                           "float16"           },
};

static heft_status look(struct tensors *t, const char *line, const char *config, const char *quanto,
                        const char *metadata, heft__quant_found *found, heft_error *err)
{
    memset(t, 0, sizeof *t);
    heft__arena_init(&t->arena, ctx);
    heft__map_init(&t->names, ctx);
    set_tensors(t, line);
    t->metadata = metadata;
    const heft__quant_settings settings = {.config = parsed(t, config),
                                           .quanto = parsed(t, quanto),
                                           .path = "config.json",
                                           .model_dtype = model_dtype};
    const heft__quant_table table = {.infos = t->infos,
                                     .count = t->count,
                                     .names = &t->names,
                                     .read = read_ones,
                                     .metadata = metadata_of,
                                     .user = t};
    return heft__quant_find(&t->arena, &table, &settings, found, err);
}

static void forget(struct tensors *t)
{
    heft__map_fini(&t->names);
    heft__arena_fini(&t->arena);
}

static void contradictions_are_told(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        struct tensors t;
        heft__quant_found found;
        heft_error err = {0};
        const heft_status status =
            look(&t, bad[k].tensors, bad[k].config, bad[k].quanto, bad[k].metadata, &found, &err);
        test_expect_status(status, HEFT_FORMAT, &err, bad[k].name);
        if (strcmp(err.item, bad[k].item) != 0 || !strstr(err.message, bad[k].message)) {
            fail_msg("%s: \"%s\" at \"%s\"", bad[k].name, err.message, err.item);
        }
        forget(&t);
    }
}

static void what_is_not_computed_says_why(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof kept / sizeof *kept; k++) {
        struct tensors t;
        heft__quant_found found;
        heft_error err = {0};
        test_expect_status(
            look(&t, kept[k].tensors, kept[k].config, NULL, kept[k].metadata, &found, &err),
            HEFT_OK, &err, kept[k].name);
        print_message("%s\n", kept[k].name);
        assert_int_equal(found.count, 1);
        for (size_t i = 0; i < t.count; i++) {
            assert_int_equal(found.owner[i], 0); /* all tensors go with it */
        }
        assert_int_equal(found.weights[0].layout == NULL, kept[k].why != NULL);
        if (kept[k].why && !strstr(found.weights[0].why, kept[k].why)) {
            fail_msg("%s: %s", kept[k].name, found.weights[0].why);
        }
        forget(&t);
    }
}

/* Results have 32 bits at most: what a load makes of them is its own. */
static void results_for_a_float64_model_are_float32(void **state)
{
    static const char *const lines[] = {"a.weight F8_E4M3 4,4;a.weight_scale_inv F32 2,2",
                                        ("a.weight U8 2,8;a.weight_scale F8_E4M3 2,1;"
                                         "a.weight_scale_2 F32 -"),
                                        "a.weight F8_E4M3 4,32;a.weight_scale U8 4,1"};
    static const char *const configs[] = {FP8, MODELOPT, COMPRESSED};
    (void)state;
    for (size_t k = 0; k < sizeof lines / sizeof *lines; k++) {
        struct tensors t;
        heft__quant_found found;
        heft_error err = {0};
        model_dtype = HEFT_DTYPE_F64;
        test_expect_status(look(&t, lines[k], configs[k], NULL, NULL, &found, &err), HEFT_OK, &err,
                           lines[k]);
        model_dtype = HEFT_DTYPE_BF16;
        assert_int_equal(found.count, 1);
        assert_int_equal(found.weights[0].dtype, HEFT_DTYPE_F32);
        forget(&t);
    }
}

/* ---- values ----------------------------------------------------------------------------------- */
/* All 256 bytes, in rows whose ends fill no vector, with scales of every kind. */
#define COLUMNS 301

static const float factors[] = {1.0F,  -0.3F,    0.0F,      1e-38F, 1e-42F, 3e38F,
                                1e10F, INFINITY, -INFINITY, NAN,    0.007F, 0x1.018p0F};
#define FACTORS (sizeof factors / sizeof *factors)

static float value_of(heft_dtype dtype, uint8_t byte)
{
    float value = (float)(int8_t)byte;
    if (dtype != HEFT_DTYPE_I8) {
        heft__cast(HEFT_DTYPE_F32, &value, dtype, &byte, 1);
    }
    return value;
}

static void check_rows(const char *line, heft_dtype dtype, heft_dtype results, int level,
                       bool stream)
{
    static uint8_t values[FACTORS * COLUMNS + 64] __attribute__((aligned(64)));
    static float out[FACTORS * COLUMNS] __attribute__((aligned(HEFT__STREAM_LINE)));
    uint8_t scales[sizeof factors], expected[4];
    struct tensors t;
    heft__quant_found found;
    heft_error err = {0};
    test_expect_status(look(&t, line, COMPRESSED, NULL, NULL, &found, &err), HEFT_OK, &err, line);
    heft__quant_weight weight = found.weights[0];
    weight.dtype = results;
    for (size_t k = 0; k < FACTORS; k++) {
        uint32_t bits;
        memcpy(&bits, &factors[k], sizeof bits);
        heft__put_le32(scales + 4 * k, bits);
    }
    for (size_t k = 0; k < FACTORS * COLUMNS; k++) {
        values[k] = (uint8_t)(k * 5 + k / 256);
    }
    const heft__quant_bytes bytes[HEFT__QUANT_REGIONS] = {{.at = values}, {.at = scales}};
    test_expect_status(weight.layout->decode(&weight, 0, FACTORS, bytes, out, stream, &err),
                       HEFT_OK, &err, line);
    heft__nibble_lanes()->settle();
    const size_t width = heft_dtype_bits(results) / 8;
    for (size_t k = 0; k < FACTORS * COLUMNS; k++) {
        const float factor = factors[k / COLUMNS], value = value_of(dtype, values[k]);
        const float product = factor != factor ? factor : value * factor;
        heft__cast(results, expected, HEFT_DTYPE_F32, &product, 1);
        if (memcmp((const uint8_t *)out + k * width, expected, width) != 0) {
            fail_msg("level %d, %s: byte %u times %g", level, heft_dtype_name(results), values[k],
                     (double)factor);
        }
    }
    forget(&t);
}

static void every_byte_times_every_scale(void **state)
{
    static const heft_dtype results[] = {HEFT_DTYPE_BF16, HEFT_DTYPE_F16, HEFT_DTYPE_F32};
    char line[128];
    (void)state;
    for (int level = 0; level < HEFT__LEVEL_COUNT; level++) {
        for (size_t d = 0; d < 3 && heft__lanes_force(level); d++) {
            for (int n = 0; n < 4; n++) {
                const bool whole = n % 2;
                (void)snprintf(line, sizeof line, "a.weight %s %zu,%d;a.weight_scale F32 %zu,1",
                               whole ? "I8" : "F8_E4M3", FACTORS, COLUMNS, FACTORS);
                check_rows(line, whole ? HEFT_DTYPE_I8 : HEFT_DTYPE_F8_E4M3FN, results[d], level,
                           n >= 2);
            }
        }
    }
    (void)heft__lanes_force(-1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(contradictions_are_told),
        cmocka_unit_test(what_is_not_computed_says_why),
        cmocka_unit_test(results_for_a_float64_model_are_float32),
        cmocka_unit_test(every_byte_times_every_scale),
    };
    ctx = heft_ctx_new(NULL);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
