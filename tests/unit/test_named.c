/* test_named.c - models of a list of names, and values that a caller gives to parameters: who owns what,
 * what is refused, and that such models plan, load, save and stream like others. */
#include "load/load.h"
#include "scratch.h"
#include "support_model.h"
#include "support_residency.h"

#include <stdlib.h>

static const heft_load_sharded_options strict = {.struct_size = sizeof strict, .strict = true};

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define SHAPE(...)                                                                                 \
    (const uint64_t[])                                                                             \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

/* In an order that is neither that of names nor that of modules. */
static const heft_parameter_spec small[] = {
    {"head.weight",        HEFT_DTYPE_BF16, 2, (const uint64_t[]){5, 4}},
    {"layers.10.b.weight", HEFT_DTYPE_BF16, 2, (const uint64_t[]){4, 4}},
    {"layers.2.a.weight",  HEFT_DTYPE_BF16, 2, (const uint64_t[]){4, 4}},
    {"layers.10.a.weight", HEFT_DTYPE_BF16, 2, (const uint64_t[]){4, 4}},
    {"scale",              HEFT_DTYPE_F32,  0, NULL                    },
    {"layers.2.b.weight",  HEFT_DTYPE_BF16, 2, (const uint64_t[]){4, 4}},
    {"layers.2.a.bias",    HEFT_DTYPE_F32,  1, (const uint64_t[]){4}   },
    {"head.steps",         HEFT_DTYPE_I64,  1, (const uint64_t[]){0}   },
    {"layers.10.a.bias",   HEFT_DTYPE_F32,  1, (const uint64_t[]){4}   },
};

static heft_model *make(const heft_parameter_spec *specs, size_t count, const heft_config *config)
{
    heft_error err = {0};
    heft_model *model = NULL;
    test_expect_status(heft_model_new_from(ctx, specs, count, config, &model, &err), HEFT_OK, &err,
                       "new_from");
    return model;
}

/* ---- memory that says when it is released ----------------------------------------------------- */
struct block {
    uint8_t bytes[512];
    int released;
};

static void count_release(void *user)
{
    ((struct block *)user)->released++;
}

static void fill_block(struct block *block, unsigned seed)
{
    for (size_t i = 0; i < sizeof block->bytes; i++) {
        block->bytes[i] = (uint8_t)(i * 7 + seed * 31);
    }
}

/* A tensor on a block, like parameter i, from byte `offset` on. */
static heft_tensor *tensor_like(heft_ctx *with, const heft_parameter *parameter,
                                struct block *block, uint64_t offset, bool writable)
{
    heft_error err = {0};
    heft_storage *storage = NULL;
    heft_tensor *tensor = NULL;
    assert_true(offset + parameter->size_bytes <= sizeof block->bytes);
    test_expect_status(writable ? heft_storage_wrap(with, block->bytes, sizeof block->bytes,
                                                    count_release, block, &storage, &err)
                                : heft_storage_wrap_const(with, block->bytes, sizeof block->bytes,
                                                          count_release, block, &storage, &err),
                       HEFT_OK, &err, parameter->name);
    const heft_tensor_spec spec =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = parameter->dtype, .rank = parameter->rank,
                     .shape = parameter->shape, .offset_bytes = offset);
    test_expect_status(heft_tensor_new(storage, &spec, &tensor, &err), HEFT_OK, &err,
                       parameter->name);
    heft_storage_unref(storage);
    return tensor;
}

/* Give parameter i the bytes of a block; what was made for that is the model's alone. */
static void give(heft_model *model, size_t i, struct block *block, bool writable)
{
    heft_error err = {0};
    const heft_parameter *parameter = heft_model_parameter(model, i);
    heft_tensor *tensor = tensor_like(ctx, parameter, block, 8, writable);
    test_expect_status(heft_model_set(model, parameter->name, tensor, &err), HEFT_OK, &err,
                       parameter->name);
    heft_tensor_free(tensor);
}

static void expect_bytes(const heft_model *model, size_t i, const void *bytes)
{
    heft_error err = {0};
    heft_tensor *tensor = NULL;
    const char *name = heft_model_parameter(model, i)->name;
    test_expect_status(heft_model_tensor(model, i, &tensor, &err), HEFT_OK, &err, name);
    if (memcmp(tensor->data, bytes, (size_t)tensor->size_bytes) != 0) {
        fail_msg("%s has other values", name);
    }
    heft_tensor_free(tensor);
}

/* ---- lists ------------------------------------------------------------------------------------ */
static void parameters_are_numbered_as_listed(void **state)
{
    (void)state;
    heft_model *model = make(small, COUNT(small), NULL);
    assert_int_equal(heft_model_count(model), COUNT(small));
    for (size_t i = 0; i < COUNT(small); i++) {
        const heft_parameter *parameter = heft_model_parameter(model, i);
        assert_string_equal(parameter->name, small[i].name);
        assert_int_equal(parameter->dtype, small[i].dtype);
        assert_true(
            heft__shape_equal(parameter->shape, parameter->rank, small[i].shape, small[i].rank));
        assert_int_equal(parameter->state, HEFT_PARAMETER_ABSENT);
        assert_int_equal(parameter->kind, HEFT_PARAMETER_WEIGHT);
        assert_int_equal(parameter->tied_to, i);
        assert_int_equal(heft_model_find(model, small[i].name), i);
        assert_int_equal(heft_model_module_parameter(model, parameter->module, parameter->role), i);
    }
    assert_string_equal(heft_model_type(model), "unknown");
    assert_string_equal(heft_model_class(model), "PreTrainedModel");
    assert_int_equal(heft_model_dtype(model), HEFT_DTYPE_BF16);
    assert_int_equal(heft_model_bytes(model), (5 * 4 + 4 * 16) * 2 + 4 + 2 * 16);
    /* the tree is that of the names */
    static const char *const paths[] = {"",          "head",        "layers",
                                        "layers.2",  "layers.2.a",  "layers.2.b",
                                        "layers.10", "layers.10.a", "layers.10.b"};
    assert_int_equal(heft_model_module_count(model), COUNT(paths));
    for (size_t i = 0; i < COUNT(paths); i++) {
        const heft_module *module = heft_model_module(model, i);
        assert_string_equal(module->path, paths[i]);
        assert_int_equal(module->no_split, i == 3 || i == 6);
        assert_int_equal(heft_model_find_module(model, 0, paths[i]), i);
    }
    assert_string_equal(heft_model_no_split(model, 0), "layers.*");
    heft_model_free(model);
}

static void a_config_says_what_the_model_is(void **state)
{
    static const struct {
        const char *name, *config, *type, *class_name;
        heft_dtype dtype;
        heft_status status;
    } rows[] = {
        {"all",                  "{\"model_type\": \"quux\", \"architectures\": [\"Quux\"], \"dtype\": \"float16\"}",
         "quux",                                                                                                              "Quux",            HEFT_DTYPE_F16,  HEFT_OK         },
        {"nothing",              "{}",                                                                                "",     "PreTrainedModel", HEFT_DTYPE_BF16, HEFT_OK         },
        {"a_type_that_is_known", "{\"model_type\": \"bert\", \"hidden_size\": -1}",                                   "bert",
         "PreTrainedModel",                                                                                                                      HEFT_DTYPE_BF16, HEFT_OK         },
        {"a_dtype_of_no_model",  "{\"dtype\": \"float8_e4m3fn\"}",                                                    NULL,   NULL,              0,               HEFT_INVALID_ARG},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_error err = {0};
        heft_config *config = NULL;
        heft_model *model = NULL;
        assert_int_equal(
            heft_config_new(ctx, rows[i].config, strlen(rows[i].config), &config, &err), HEFT_OK);
        test_expect_status(heft_model_new_from(ctx, small, COUNT(small), config, &model, &err),
                           rows[i].status, &err, rows[i].name);
        heft_config_free(config);
        if (model) {
            assert_string_equal(heft_model_type(model), rows[i].type);
            assert_string_equal(heft_model_class(model), rows[i].class_name);
            assert_int_equal(heft_model_dtype(model), rows[i].dtype);
            assert_int_equal(heft_model_count(model), COUNT(small));
        }
        heft_model_free(model);
    }
    heft_model *model = make(NULL, 0, NULL); /* a list may be empty */
    assert_int_equal(heft_model_count(model), 0);
    assert_int_equal(heft_model_module_count(model), 1);
    assert_int_equal(heft_model_find(model, "a"), SIZE_MAX);
    heft_model_free(model);
}

static void lists_that_cannot_be_are_refused(void **state)
{
    static const uint64_t one[65] = {1}, huge[] = {UINT64_MAX / 2, 3}, large[] = {UINT64_MAX / 64};
    static char longest[(64 << 10) + 2];
    static const struct {
        const char *what;
        heft_parameter_spec specs[3];
        size_t count;
        heft_status status;
        const char *item, *words;
    } rows[] = {
        {"null_name",
         {{"a", HEFT_DTYPE_F32, 1, one}, {NULL, HEFT_DTYPE_F32, 1, one}},
         2, HEFT_INVALID_ARG,
         "",       "the name of parameter 1 is NULL"  },
        {"empty_name",
         {{"", HEFT_DTYPE_F32, 1, one}},
         1, HEFT_INVALID_ARG,
         "",       "the name of parameter 0 is empty" },
        {"no_utf8",
         {{"a\xff", HEFT_DTYPE_F32, 1, one}},
         1, HEFT_INVALID_ARG,
         "a\\xff", "is not valid UTF-8"               },
        {"twice",
         {{"b.w", HEFT_DTYPE_F32, 1, one},
          {"a", HEFT_DTYPE_F32, 1, one},
          {"b.w", HEFT_DTYPE_F16, 1, one}},
         3, HEFT_INVALID_ARG,
         "b.w",    "parameters 0 and 2 have this name"},
        {"no_dtype",
         {{"a", HEFT_DTYPE_NONE, 1, one}},
         1, HEFT_INVALID_ARG,
         "a",      "there is no dtype 0"              },
        {"odd_dtype",
         {{"a", HEFT_DTYPE_COUNT, 1, one}},
         1, HEFT_INVALID_ARG,
         "a",      "there is no dtype "               },
        {"negative_dtype",
         {{"a", (heft_dtype)-1, 1, one}},
         1, HEFT_INVALID_ARG,
         "a",      "there is no dtype -1"             },
        {"rank",
         {{"a", HEFT_DTYPE_F32, 65, one}},
         1, HEFT_INVALID_ARG,
         "a",      "rank 65, the limit is 64"         },
        {"endless_rank",
         {{"a", HEFT_DTYPE_F32, UINT32_MAX, one}},
         1, HEFT_INVALID_ARG,
         "a",      "the limit is 64"                  },
        {"no_shape",
         {{"a", HEFT_DTYPE_F32, 1, NULL}},
         1, HEFT_INVALID_ARG,
         "a",      "rank 1 has no shape"              },
        {"elements",
         {{"a", HEFT_DTYPE_F32, 2, huge}},
         1, HEFT_INVALID_ARG,
         "a",      "has no size in bytes"             },
        {"bytes",
         {{"a", HEFT_DTYPE_C128, 1, huge}},
         1, HEFT_INVALID_ARG,
         "a",      "has no size in bytes"             },
        {"half_a_byte",
         {{"a", HEFT_DTYPE_F4_E2M1FN_X2, 1, one}},
         1, HEFT_INVALID_ARG,
         "a",      "has no size in bytes"             },
        {"one_too_large",
         {{"a", HEFT_DTYPE_F32, 1, large}},
         1, HEFT_INVALID_ARG,
         "a",      "makes the model over "            },
        {"all_too_large",
         {{"a", HEFT_DTYPE_U8, 1, large},
          {"b", HEFT_DTYPE_U8, 1, large},
          {"c", HEFT_DTYPE_U8, 1, large}},
         3, HEFT_INVALID_ARG,
         "c",      "makes the model over "            },
        {"long_name",
         {{longest, HEFT_DTYPE_F32, 1, one}},
         1, HEFT_LIMIT,
         NULL,     "is longer than 65536 bytes"       },
    };
    (void)state;
    memset(longest, 'a', sizeof longest - 1);
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_error err = {0};
        heft_model *model = NULL;
        test_expect_status(
            heft_model_new_from(ctx, rows[i].specs, rows[i].count, NULL, &model, &err),
            rows[i].status, &err, rows[i].what);
        assert_null(model);
        if (!strstr(err.message, rows[i].words) ||
            (rows[i].item && strcmp(err.item, rows[i].item) != 0)) {
            fail_msg("%s: '%s': %s", rows[i].what, err.item, err.message);
        }
    }
    heft_error err;
    heft_model *model = NULL;
    assert_int_equal(heft_model_new_from(NULL, small, 1, NULL, &model, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_model_new_from(ctx, NULL, 1, NULL, &model, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_model_new_from(ctx, small, 1, NULL, NULL, NULL), HEFT_INVALID_ARG);
    const heft_limits limits = HEFT_OPTIONS(heft_limits, .tensors = 3, .rank = 1);
    heft_ctx *limited = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .limits = &limits));
    assert_int_equal(heft_model_new_from(limited, small, 4, NULL, &model, &err), HEFT_LIMIT);
    assert_int_equal(heft_model_new_from(limited, small, 1, NULL, &model, &err), HEFT_INVALID_ARG);
    assert_string_equal(err.item, "head.weight");
    heft_ctx_free(limited);
}

/* Whatever the list is: an error, or a model whose tree has each parameter once. */
static void any_list_is_a_model_or_an_error(void **state)
{
    enum { MOST = 30 };
    static const char letters[] = "..01ab_\xc3\xa9";
    static char names[MOST][12];
    uint64_t shapes[MOST][4];
    heft_parameter_spec specs[MOST];
    size_t made = 0, refused = 0;
    (void)state;
    srand(11);
    for (int round = 0; round < 3000; round++) {
        const size_t count = (size_t)(rand() % MOST);
        const bool wild = rand() % 2;
        for (size_t i = 0; i < count; i++) {
            const int length = rand() % (wild ? 5 : 9) + !wild;
            for (int k = 0; k < length; k++) {
                names[i][k] = letters[rand() % (int)(wild ? sizeof letters - 1 : 7)];
            }
            names[i][length] = '\0';
            for (size_t d = 0; d < 4; d++) {
                shapes[i][d] = rand() % 200 ? (uint64_t)(rand() % 5) : (uint64_t)rand() << 32;
            }
            specs[i] = (heft_parameter_spec){
                names[i], (heft_dtype)(wild ? rand() % 40 - 1 : 1 + rand() % 8),
                (uint32_t)(rand() % 5), rand() % 100 ? shapes[i] : NULL};
        }
        heft_error err = {0};
        heft_model *model = NULL;
        const heft_status status = heft_model_new_from(ctx, specs, count, NULL, &model, &err);
        assert_int_equal(model != NULL, status == HEFT_OK);
        if (status != HEFT_OK) {
            assert_int_equal(status, HEFT_INVALID_ARG);
            assert_int_equal(err.status, status);
            assert_true(*err.message != '\0');
            refused++;
            continue;
        }
        size_t seen = 0;
        for (size_t m = 0; m < heft_model_module_count(model); m++) {
            seen += heft_model_module(model, m)->parameter_count;
        }
        assert_int_equal(seen, count);
        for (size_t i = 0; i < count; i++) {
            assert_int_equal(heft_model_find(model, names[i]), i);
        }
        made++;
        heft_model_free(model);
    }
    assert_true(made > 300 && refused > 300);
}

/* ---- as others --------------------------------------------------------------------------------- */
static void give_all(heft_model *model, struct block *blocks)
{
    for (size_t i = 0; i < COUNT(small); i++) {
        fill_block(&blocks[i], (unsigned)i);
        blocks[i].released = 0;
        give(model, i, &blocks[i], i % 2);
    }
}

static void they_are_saved_and_loaded(void **state)
{
    static struct block blocks[COUNT(small)];
    static const struct {
        const char *name;
        heft_format format;
        uint64_t shard_bytes;
    } rows[] = {
        {"one",   HEFT_FORMAT_SAFETENSORS, 0 },
        {"parts", HEFT_FORMAT_SAFETENSORS, 64},
        {"bin",   HEFT_FORMAT_TORCH,       64},
    };
    heft_error err = {0};
    (void)state;
    heft_model *model = make(small, COUNT(small), NULL);
    test_expect_status(heft_model_save(model, at("absent"), NULL, NULL, &err), HEFT_NOT_FOUND, &err,
                       "absent");
    assert_string_equal(err.item, "head.weight");
    assert_int_equal(heft_model_init(model, NULL, &err), HEFT_UNSUPPORTED);
    assert_int_equal(heft_model_save_random(model, at("absent"), NULL, NULL, NULL, &err),
                     HEFT_UNSUPPORTED);
    give_all(model, blocks);
    for (size_t k = 0; k < COUNT(rows); k++) {
        heft_load_report *report = NULL;
        heft_model *other = make(small, COUNT(small), NULL), *loaded = NULL;
        const heft_save_options options = HEFT_OPTIONS(heft_save_options, .format = rows[k].format,
                                                       .max_shard_bytes = rows[k].shard_bytes);
        test_expect_status(heft_model_save(model, at(rows[k].name), &options, NULL, &err), HEFT_OK,
                           &err, rows[k].name);
        /* into a model of the same list */
        test_expect_status(heft_model_load_sharded(other, at(rows[k].name), &strict, &report, &err),
                           HEFT_OK, &err, rows[k].name);
        assert_string_equal(report->class_name, "PreTrainedModel");
        heft_load_report_free(report);
        /* and as a model of its own: its config says that the type is not known */
        const test_how how = {.load = {.strict = true}};
        test_expect_status(test_load(ctx, at(rows[k].name), &how, &loaded, NULL, &err), HEFT_OK,
                           &err, rows[k].name);
        assert_int_equal(heft_model_count(loaded), COUNT(small));
        assert_int_equal(heft_model_dtype(loaded), HEFT_DTYPE_BF16);
        for (size_t i = 0; i < COUNT(small); i++) {
            assert_int_equal(heft_model_parameter(other, i)->state, HEFT_PARAMETER_OWNED);
            expect_bytes(other, i, blocks[i].bytes + 8);
            const size_t number = heft_model_find(loaded, small[i].name);
            assert_true(number != SIZE_MAX);
            if (heft_model_parameter(loaded, number)->size_bytes) {
                expect_bytes(loaded, number, blocks[i].bytes + 8);
            }
        }
        heft_model_free(loaded);
        heft_model_free(other);
    }
    heft_model_free(model);
    for (size_t i = 0; i < COUNT(small); i++) {
        assert_int_equal(blocks[i].released, 1);
    }
}

static void they_are_planned(void **state)
{
    const heft_device_entry map[] = {
        {"",          HEFT_DEVICE_CPU },
        {"layers.10", HEFT_DEVICE_DISK}
    };
    heft_error err = {0};
    heft_plan *plan = NULL;
    size_t order[COUNT(small)];
    const int32_t *devices = NULL;
    (void)state;
    heft_model *model = make(small, COUNT(small), NULL);
    const heft_plan_options options =
        HEFT_OPTIONS(heft_plan_options, .device_map = map, .device_map_count = COUNT(map));
    test_expect_status(heft_plan_new(model, &options, &plan, &err), HEFT_OK, &err, "plan");
    test_expect_status(heft__plan_devices(plan, model, &devices, &err), HEFT_OK, &err, "devices");
    for (size_t i = 0; i < COUNT(small); i++) { /* by the parameter's number, not by the tree's */
        assert_int_equal(devices[i], strncmp(small[i].name, "layers.10", 9) == 0 ? HEFT_DEVICE_DISK
                                                                                 : HEFT_DEVICE_CPU);
    }
    heft_plan_free(plan);
    plan = NULL;
    test_expect_status(heft_plan_new(model, NULL, &plan, &err), HEFT_OK, &err, "strategy");
    heft_plan_free(plan);
    test_expect_status(heft_model_natural_order(model, order, &err), HEFT_OK, &err, "order");
    assert_int_equal(order[0], 7); /* head.steps */
    assert_int_equal(order[1], 0);
    heft_model_free(model);
}

/* ---- setting ----------------------------------------------------------------------------------- */
static void values_that_do_not_fit_are_refused(void **state)
{
    static struct block block;
    static const int64_t turned[] = {1, 4}, wide[] = {4, 1};
    static const struct {
        const char *what, *name;
        heft_dtype dtype;
        uint32_t rank;
        uint64_t shape[3];
        const int64_t *strides;
        int32_t device;
        heft_status status;
        const char *words;
    } rows[] = {
        {"fits",
         "layers.2.a.weight",          HEFT_DTYPE_BF16,
         2,                                                {4, 4},
         NULL,                                                              HEFT_DEVICE_CPU,
         HEFT_OK,                                                                                     ""                                            },
        {"same_strides",
         "layers.2.a.weight",          HEFT_DTYPE_BF16,
         2,                                                {4, 4},
         wide,                                                              HEFT_DEVICE_CPU,
         HEFT_OK,                                                                                     ""                                            },
        {"turned",
         "layers.2.a.weight",          HEFT_DTYPE_BF16,
         2,                                                {4, 4},
         turned,                                                            HEFT_DEVICE_CPU,
         HEFT_INVALID_ARG,                                                                            "the tensor of shape [4, 4] is not contiguous"},
        {"dtype",
         "layers.2.a.weight",          HEFT_DTYPE_F16,
         2,                                                {4, 4},
         NULL,                                                              HEFT_DEVICE_CPU,
         HEFT_MISMATCH,                                                                               "dtype float16 in tensor, bfloat16 in model"  },
        {"shape",
         "head.weight",                HEFT_DTYPE_BF16,
         2,                                                {4, 5},
         NULL,                                                              HEFT_DEVICE_CPU,
         HEFT_MISMATCH,                                                                               "shape [4, 5] in tensor, [5, 4] in model"     },
        {"rank",
         "head.weight",                HEFT_DTYPE_BF16,
         3,                                                {5, 4, 1},
         NULL,                                                              HEFT_DEVICE_CPU,
         HEFT_MISMATCH,                                                                               "shape [5, 4, 1] in tensor, [5, 4] in model"  },
        {"a_scalar",     "scale",      HEFT_DTYPE_F32,  0, {0},       NULL, HEFT_DEVICE_CPU, HEFT_OK, ""                                            },
        {"no_elements",  "head.steps", HEFT_DTYPE_I64,  1, {0},       NULL, HEFT_DEVICE_CPU, HEFT_OK, ""                                            },
        {"a_vector",
         "scale",                      HEFT_DTYPE_F32,
         1,                                                {1},
         NULL,                                                              HEFT_DEVICE_CPU,
         HEFT_MISMATCH,                                                                               "shape [1] in tensor, [] in model"            },
        {"no_such_name",
         "layers.2.a",                 HEFT_DTYPE_BF16,
         2,                                                {4, 4},
         NULL,                                                              HEFT_DEVICE_CPU,
         HEFT_NOT_FOUND,                                                                              "no such parameter"                           },
        {"empty_name",
         "",                           HEFT_DTYPE_BF16,
         2,                                                {4, 4},
         NULL,                                                              HEFT_DEVICE_CPU,
         HEFT_NOT_FOUND,                                                                              "no such parameter"                           },
        {"elsewhere",
         "layers.2.a.weight",          HEFT_DTYPE_BF16,
         2,                                                {4, 4},
         NULL,                                                              0,
         HEFT_UNSUPPORTED,                                                                            "the tensor is on device 0"                   },
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_error err = {0};
        heft_storage *storage = NULL;
        heft_tensor *tensor = NULL;
        heft_model *model = make(small, COUNT(small), NULL);
        block.released = 0;
        const heft_tensor_spec spec =
            HEFT_OPTIONS(heft_tensor_spec, .dtype = rows[i].dtype, .rank = rows[i].rank,
                         .shape = rows[i].shape, .strides = rows[i].strides);
        assert_int_equal(heft_storage_wrap(ctx, block.bytes, sizeof block.bytes, count_release,
                                           &block, &storage, &err),
                         HEFT_OK);
        assert_int_equal(heft_tensor_new(storage, &spec, &tensor, &err), HEFT_OK);
        heft_storage_unref(storage);
        tensor->device = rows[i].device;
        test_expect_status(heft_model_set(model, rows[i].name, tensor, &err), rows[i].status, &err,
                           rows[i].what);
        if (rows[i].status != HEFT_OK) {
            assert_string_equal(err.item, rows[i].name);
            if (!strstr(err.message, rows[i].words)) {
                fail_msg("%s: %s", rows[i].what, err.message);
            }
        }
        for (size_t k = 0; k < COUNT(small);
             k++) { /* nothing else, and nothing at all on failure */
            const bool set = rows[i].status == HEFT_OK && strcmp(small[k].name, rows[i].name) == 0;
            assert_int_equal(heft_model_parameter(model, k)->state,
                             set ? HEFT_PARAMETER_OWNED : HEFT_PARAMETER_ABSENT);
        }
        heft_tensor_free(tensor);
        assert_int_equal(block.released, rows[i].status != HEFT_OK);
        heft_model_free(model);
        assert_int_equal(block.released, 1);
    }
    heft_error err;
    heft_model *model = make(small, COUNT(small), NULL);
    heft_tensor *tensor = tensor_like(ctx, heft_model_parameter(model, 4), &block, 0, true);
    assert_int_equal(heft_model_set(NULL, "scale", tensor, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_model_set(model, NULL, tensor, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_model_set(model, "scale", NULL, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_model_set(model, "scale", NULL, NULL), HEFT_INVALID_ARG);
    heft_tensor_free(tensor);
    heft_model_free(model);
}

static const char tied_text[] =
    "{\"model_type\":\"bert\",\"hidden_size\":4,\"num_hidden_layers\":1,\"num_attention_heads\":1,"
    "\"intermediate_size\":6,\"vocab_size\":10,\"max_position_embeddings\":5,"
    "\"dtype\":\"float32\",\"architectures\":[\"BertForMaskedLM\"]}";
#define TIED_ONE "bert.embeddings.word_embeddings.weight"
#define TIED_TWO "cls.predictions.decoder.weight"

static void ties_follow_and_old_values_go(void **state)
{
    static struct block blocks[3];
    static const char *const names[] = {TIED_ONE, TIED_TWO};
    (void)state;
    for (size_t k = 0; k < 2; k++) { /* whichever of the two is named */
        heft_error err = {0};
        heft_model *model = test_model_from_text(ctx, tied_text, NULL);
        heft_tensor *tensor = NULL, *kept = NULL, *one = NULL, *two = NULL;
        const size_t number = heft_model_find(model, names[k]);
        const heft_parameter *parameter = heft_model_parameter(model, number);
        memset(blocks, 0, sizeof blocks);
        for (size_t b = 0; b < 3; b++) {
            fill_block(&blocks[b], (unsigned)b);
        }
        give(model, number, &blocks[0], true);
        assert_int_equal(blocks[0].released, 0);
        assert_int_equal(heft_model_tensor(model, number, &kept, &err), HEFT_OK);
        give(model, number, &blocks[1], false);
        assert_int_equal(blocks[0].released, 0); /* a tensor that is out holds it */
        assert_memory_equal(kept->data, blocks[0].bytes + 8, (size_t)kept->size_bytes);
        assert_true(kept->flags & HEFT_TENSOR_WRITABLE);
        heft_tensor_free(kept);
        assert_int_equal(blocks[0].released, 1);
        for (size_t n = 0; n < 2; n++) {
            assert_int_equal(
                heft_model_tensor(model, heft_model_find(model, names[n]), &tensor, &err), HEFT_OK);
            assert_ptr_equal(tensor->data, blocks[1].bytes + 8);
            assert_false(tensor->flags & HEFT_TENSOR_WRITABLE); /* read-only stays so */
            *(n ? &two : &one) = tensor;
        }
        assert_ptr_equal(one->storage, two->storage);
        assert_int_equal(parameter->state, HEFT_PARAMETER_MAPPED);
        /* its own value, of which the model has the only reference */
        heft_tensor_free(two);
        assert_int_equal(heft_model_set(model, TIED_TWO, one, &err), HEFT_OK);
        heft_tensor_free(one);
        assert_int_equal(blocks[1].released, 0);
        expect_bytes(model, number, blocks[1].bytes + 8);
        /* what is absent is initialized, what is set stays */
        test_expect_status(heft_model_init(model, NULL, &err), HEFT_OK, &err, "init");
        expect_bytes(model, heft_model_find(model, TIED_ONE), blocks[1].bytes + 8);
        expect_bytes(model, heft_model_find(model, TIED_TWO), blocks[1].bytes + 8);
        give(model, number, &blocks[2], true);
        assert_int_equal(blocks[1].released, 1);
        assert_int_equal(parameter->state, HEFT_PARAMETER_OWNED);
        heft_model_free(model);
        for (size_t b = 0; b < 3; b++) {
            assert_int_equal(blocks[b].released, 1);
        }
    }
}

/* Writable memory is written by a load into the model; other memory is replaced. */
static void loading_into_a_model_with_given_values(void **state)
{
    static struct block blocks[COUNT(small)], others[COUNT(small)];
    heft_error err = {0};
    (void)state;
    heft_model *model = make(small, COUNT(small), NULL);
    give_all(model, blocks);
    test_expect_status(heft_model_save(model, at("into"), NULL, NULL, &err), HEFT_OK, &err, "save");
    heft_model_free(model);
    model = make(small, COUNT(small), NULL);
    for (size_t i = 0; i < COUNT(small); i++) {
        memset(&others[i], 0x77, sizeof others[i].bytes);
        others[i].released = 0;
        give(model, i, &others[i], i % 2);
    }
    test_expect_status(heft_model_load_sharded(model, at("into"), &strict, NULL, &err), HEFT_OK,
                       &err, "load");
    for (size_t i = 0; i < COUNT(small); i++) {
        const size_t bytes = (size_t)heft_model_parameter(model, i)->size_bytes;
        expect_bytes(model, i, blocks[i].bytes + 8);
        assert_int_equal(others[i].released, i % 2 == 0);
        assert_int_equal(others[i].bytes[7], 0x77);
        assert_int_equal(others[i].bytes[8 + bytes], 0x77);
        if (bytes > 0) {
            assert_int_equal(memcmp(others[i].bytes + 8, blocks[i].bytes + 8, bytes) == 0, i % 2);
        }
    }
    heft_model_free(model);
}

/* A value that was given is not in the file: a residency must neither drop it nor read over it. */
static void a_residency_keeps_given_values(void **state)
{
    enum { HIDDEN = 256 };
    static const char name[] = "encoder.layer.1.intermediate.dense.weight";
    static const char *const places[] = {"encoder", ""};
    const size_t bytes = (size_t)HIDDEN * 4 * HIDDEN * 4;
    heft_error err = {0};
    (void)state;
    test_save_layers(ctx, at("layers"), 3, HIDDEN);
    for (size_t k = 0; k < 3; k++) { /* placed twice, and mapped */
        const test_how mapped = {.load = {.mode = HEFT_LOAD_MAP}};
        heft_model *model = NULL;
        heft_storage *storage = NULL;
        heft_tensor *tensor = NULL;
        if (k < 2) {
            model = test_load_on_disk(ctx, at("layers"), places[k], HEFT_DTYPE_NONE);
        } else {
            test_expect_status(test_load(ctx, at("layers"), &mapped, &model, NULL, &err), HEFT_OK,
                               &err, "map");
        }
        uint8_t *own = malloc(bytes);
        memset(own, 0x3c, bytes);
        const heft_tensor_spec spec = HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_F32,
                                                   .rank = 2, .shape = SHAPE(4 * HIDDEN, HIDDEN));
        assert_int_equal(heft_storage_wrap_const(ctx, own, bytes, free, own, &storage, &err),
                         HEFT_OK);
        assert_int_equal(heft_tensor_new(storage, &spec, &tensor, &err), HEFT_OK);
        heft_storage_unref(storage);
        test_expect_status(heft_model_set(model, name, tensor, &err), HEFT_OK, &err, name);
        heft_tensor_free(tensor);
        heft_residency *r = test_residency(model, NULL);
        const size_t number = heft_model_find(model, name), unit = test_unit(r, model, name);
        const heft_unit *shown = heft_residency_unit(r, unit);
        assert_int_equal(shown->bytes - shown->brought_bytes, bytes);
        for (size_t round = 0; round < 2; round++) {
            for (size_t u = 0; u < heft_residency_count(r); u++) {
                heft_lease *lease = test_acquire(r, u);
                const heft_tensor *view = u == unit ? heft_lease_view(lease, number) : NULL;
                if (u == unit) {
                    assert_ptr_equal(view->data, own);
                    assert_false(view->flags & HEFT_TENSOR_MAPPED);
                }
                heft_lease_free(lease);
            }
        }
        for (size_t i = 0; i < bytes; i++) {
            assert_int_equal(own[i], 0x3c);
        }
        heft_residency_free(r);
        heft_model_free(model);
    }
}

/* ---- failing allocations ----------------------------------------------------------------------- */
static heft_status attempt(heft_ctx *with, void *user, heft_error *err)
{
    static struct block block;
    heft_model *model = NULL;
    heft_storage *storage = NULL;
    heft_tensor *tensor = NULL;
    const heft_tensor_spec spec = HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_F32);
    (void)user;
    block.released = 0;
    heft_status status = heft_model_new_from(with, small, COUNT(small), NULL, &model, err);
    assert_int_equal(model != NULL, status == HEFT_OK);
    if (status == HEFT_OK) {
        status = heft_storage_wrap(with, block.bytes, sizeof block.bytes, count_release, &block,
                                   &storage, err);
    }
    const bool wrapped = status == HEFT_OK;
    if (status == HEFT_OK) {
        status = heft_tensor_new(storage, &spec, &tensor, err);
    }
    heft_storage_unref(storage);
    if (status == HEFT_OK) {
        status = heft_model_set(model, "scale", tensor, err);
        assert_int_equal(status, HEFT_OK); /* takes no memory */
    }
    heft_tensor_free(tensor);
    heft_model_free(model);
    assert_int_equal(block.released, wrapped);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    test_oom_sweep(attempt, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parameters_are_numbered_as_listed),
        cmocka_unit_test(a_config_says_what_the_model_is),
        cmocka_unit_test(lists_that_cannot_be_are_refused),
        cmocka_unit_test(any_list_is_a_model_or_an_error),
        cmocka_unit_test(they_are_saved_and_loaded),
        cmocka_unit_test(they_are_planned),
        cmocka_unit_test(values_that_do_not_fit_are_refused),
        cmocka_unit_test(ties_follow_and_old_values_go),
        cmocka_unit_test(loading_into_a_model_with_given_values),
        cmocka_unit_test(a_residency_keeps_given_values),
        cmocka_unit_test(memory_can_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
