/* config.json: what is refused and where, lookups, which class is chosen, and writing it back byte
 * by byte. */
#include "model/model.h"
#include "support.h"

#include <stdlib.h>
#include <sys/stat.h>

static heft_ctx *ctx;

static heft_config *parse(const char *text)
{
    heft_config *config = NULL;
    heft_error err;
    heft_status status = heft__config_parse(ctx, "config.json", text, strlen(text), &config, &err);
    test_expect_status(status, HEFT_OK, &err, text);
    return config;
}

/* ---- refusals -------------------------------------------------------------------------------- */
/* The status of reading a text and making its model. */
static heft_status parse_and_create(const char *text, heft_error *err)
{
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft_status status = heft__config_parse(ctx, "config.json", text, strlen(text), &config, err);
    if (status == HEFT_OK) {
        status = heft_model_new(ctx, config, NULL, HEFT_DTYPE_NONE, &model, err);
    }
    heft_model_free(model);
    heft_config_free(config);
    return status;
}

struct refusal {
    const char *text;
    heft_status status;
    const char *item, *at; /* the offset is where `at` stands last in the text; NULL: no offset */
    const char *says;
};

#define TYPE "{\"model_type\":"
#define BERT TYPE "\"bert\","
#define LABELS "\"architectures\":[\"BertForTokenClassification\"],"

static const struct refusal refusals[] = {
    {"",                            HEFT_FORMAT,      "",           "",       ""       },
    {" [1]",                        HEFT_FORMAT,      "",           "[1]",    "object" },
    {"1",                           HEFT_FORMAT,      "",           "1",      "object" },
    {TYPE "\"bert\"",               HEFT_FORMAT,      "",           "",       ""       },
    {"{\"a\":1,\"a\":2}",           HEFT_FORMAT,      "a",          "\"a\"",  ""       },
    {"{} x",                        HEFT_FORMAT,      "",           "x",      ""       },
    {"{\"hidden_size\":4}",         HEFT_FORMAT,      "model_type", NULL,     "missing"},
    {"{\"architectures\":[\"X\"]}", HEFT_FORMAT,      "model_type", NULL,     "missing"},
    {TYPE "7}",                     HEFT_FORMAT,      "model_type", "7",      "name"   },
    {TYPE "null}",                  HEFT_FORMAT,      "model_type", "null",   "name"   },
    {TYPE "\"bert\\u0000\"}",       HEFT_FORMAT,      "model_type", "\"bert", "name"   },
    {TYPE "\"quux\"}",              HEFT_UNSUPPORTED, "model_type", "\"quux", "'quux'" },
};

/* A key of a bert config with an invalid value; `more` precedes it. */
static const struct {
    const char *key, *value;
    heft_status status;
    const char *says, *more;
} odd_values[] = {
    {"hidden_size",         "0",                    HEFT_FORMAT,      "found 0",              ""    },
    {"hidden_size",         "  -8",                 HEFT_FORMAT,      "2147483647, found -8", ""    },
    {"hidden_size",         "\"8\"",                HEFT_FORMAT,      "the string '8'",       ""    },
    {"hidden_size",         "8.5",                  HEFT_FORMAT,      "found 8.5",            ""    },
    {"hidden_size",         "8.0",                  HEFT_FORMAT,      "found 8.0",            ""    },
    {"hidden_size",         "1e3",                  HEFT_FORMAT,      "found 1e3",            ""    },
    {"hidden_size",         "null",                 HEFT_FORMAT,      "found null",           ""    },
    {"hidden_size",         "true",                 HEFT_FORMAT,      "found true",           ""    },
    {"hidden_size",         "[8,8]",                HEFT_FORMAT,      "found an array of 2",  ""    },
    {"hidden_size",         "{}",                   HEFT_FORMAT,      "found an object of 0", ""    },
    {"hidden_size",         "2147483648",           HEFT_LIMIT,       "found 2147483648",     ""    },
    {"hidden_size",         "1099511627776",        HEFT_LIMIT,       "found 1099511627776",  ""    },
    {"hidden_size",         "99999999999999999999", HEFT_LIMIT,       "found 9999",           ""    },
    {"hidden_size",         "-9999999999999999999", HEFT_FORMAT,      "found -9999",          ""    },
    {"num_hidden_layers",   "0",                    HEFT_FORMAT,      "found 0",              ""    },
    {"num_hidden_layers",   "2147483648",           HEFT_LIMIT,       "found 2147483648",     ""    },
    {"num_hidden_layers",   "2147483647",           HEFT_LIMIT,       "1 to 10000, found",    ""    },
    {"num_hidden_layers",   "10001",                HEFT_LIMIT,       "1 to 10000, found",    ""    },
    {"num_attention_heads", "5",                    HEFT_FORMAT,      "768, found 5",         ""    },
    {"vocab_size",          "-1",                   HEFT_FORMAT,      "found -1",             ""    },
    {"pad_token_id",        "30522",                HEFT_FORMAT,      "rows, found 30522",    ""    },
    {"pad_token_id",        "-30523",               HEFT_FORMAT,      "found -30523",         ""    },
    {"pad_token_id",        "0.5",                  HEFT_FORMAT,      "found 0.5",            ""    },
    {"initializer_range",   "-0.02",                HEFT_FORMAT,      "found -0.02",          ""    },
    {"initializer_range",   "1e300",                HEFT_FORMAT,      "found 1e+300",         ""    },
    {"initializer_range",   "\"small\"",            HEFT_FORMAT,      "the string 'small'",   ""    },
    {"tie_word_embeddings", "\"yes\"",              HEFT_FORMAT,      "the string 'yes'",     ""    },
    {"tie_word_embeddings", "1",                    HEFT_FORMAT,      "or false, found 1",    ""    },
    {"add_cross_attention", "true",                 HEFT_FORMAT,      "is_decoder",           ""    },
    {"id2label",            "{}",                   HEFT_FORMAT,      "an object of 0",       LABELS},
    {"id2label",            "[\"A\"]",              HEFT_FORMAT,      "an array of 1",        LABELS},
    {"num_labels",          "0",                    HEFT_FORMAT,      "found 0",              LABELS},
    {"num_labels",          "2147483648",           HEFT_LIMIT,       "2147483648",           LABELS},
    {"architectures",       "[\"NoSuchModel\"]",    HEFT_UNSUPPORTED, "BertForMaskedLM",      ""    },
};

static const char *last_place(const char *text, const char *part)
{
    const char *found = NULL;
    for (const char *at = strstr(text, part); at; at = *at ? strstr(at + 1, part) : NULL) {
        found = at;
    }
    return found;
}

static void expect_refusal(const struct refusal *row)
{
    heft_error err = {0};
    heft_status status = parse_and_create(row->text, &err);
    test_expect_status(status, row->status, &err, row->text);
    const char *at = row->at ? last_place(row->text, row->at) : NULL;
    uint64_t offset = at ? (uint64_t)(at - row->text) : HEFT_NO_OFFSET;
    if (err.status != status || strcmp(err.item, row->item) != 0 || err.offset != offset ||
        !strstr(err.message, row->says) || strcmp(err.path, "config.json") != 0) {
        char line[1400];
        heft_error_format(&err, line, sizeof line);
        fail_msg("%s: %s; expected item '%s', byte %lld, '%s'", row->text, line, row->item,
                 (long long)offset, row->says);
    }
}

static void odd_configs_are_refused_at_their_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        expect_refusal(&refusals[i]);
    }
}

static void odd_values_are_refused_at_their_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof odd_values / sizeof odd_values[0]; i++) {
        char text[300];
        const char *value = odd_values[i].value;
        snprintf(text, sizeof text, BERT "%s\n  \"%s\": %s}", odd_values[i].more, odd_values[i].key,
                 value);
        struct refusal row = {
            .text = text,
            .status = odd_values[i].status,
            .item = odd_values[i].key,
            .at = value + strspn(value, " "),
            .says = odd_values[i].says,
        };
        expect_refusal(&row);
    }
}

/* The configs of cf_* as they are, of a Llama. */
static void golden_malformed_configs_are_refused(void **state)
{
    (void)state;
    static const struct refusal rows[] = {
        {"heads_not_dividing", HEFT_FORMAT,      "num_attention_heads", "3,\n \"num_key", "found 3"            },
        {"hidden_2p40",        HEFT_LIMIT,       "hidden_size",         "1099511627776",  "found 1099511627776"},
        {"layers_2p31",        HEFT_LIMIT,       "num_hidden_layers",   "2147483648",     "found 2147483648"   },
        {"negative_hidden",    HEFT_FORMAT,      "hidden_size",         "-8",             "found -8"           },
        {"not_json",           HEFT_FORMAT,      "",                    "hidden_size",    ""                   },
        {"not_object",         HEFT_FORMAT,      "",                    "[1,2,3]",        "a JSON object"      },
        {"string_number",      HEFT_FORMAT,      "hidden_size",         "\"8\"",          "the string '8'"     },
        {"truncated",          HEFT_FORMAT,      "",                    "",               ""                   },
        {"unknown_model_type", HEFT_UNSUPPORTED, "model_type",          "\"quuxformer",   "'quuxformer'"       },
        {"zero_layers",        HEFT_FORMAT,      "num_hidden_layers",   "0,\n \"num_att", "found 0"            },
    };
    char path[600];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct refusal row = rows[i];
        snprintf(path, sizeof path, HEFT_TEST_DATA "/config/cf_%s.json", row.text);
        char *text = test_read_file(path, NULL);
        row.text = text;
        expect_refusal(&row);
        free(text);
    }
}

/* ---- reading --------------------------------------------------------------------------------- */
static void configs_are_read_from_a_file_or_a_folder(void **state)
{
    (void)state;
    const heft_ctx_options small =
        HEFT_OPTIONS(heft_ctx_options, .limits = &HEFT_OPTIONS(heft_limits, .config_bytes = 64));
    char folder[256], path[400];
    heft_error err = {0};
    heft_config *config = NULL;
    test_folder_make(folder);
    assert_int_equal(heft_config_read(ctx, folder, &config, &err), HEFT_NOT_FOUND);
    assert_non_null(strstr(err.path, "/config.json"));
    static const char text[] = BERT "\"hidden_size\":8}";
    test_write_file(folder, "config.json", text, sizeof text - 1);
    assert_int_equal(heft_config_read(ctx, folder, &config, &err), HEFT_OK);
    assert_string_equal(heft_config_model_type(config), "bert");
    heft_config_free(config);
    snprintf(path, sizeof path, "%s/config.json", folder);
    assert_int_equal(heft_config_read(ctx, path, &config, &err), HEFT_OK);
    heft_config_free(config);
    config = NULL;
    heft_ctx *other = heft_ctx_new(&small);
    assert_int_equal(
        heft_config_read(other, HEFT_TEST_DATA "/config/cf_ok_extras.json", &config, &err),
        HEFT_LIMIT);
    heft_ctx_free(other);
    snprintf(path, sizeof path, "%s/fifo", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(heft_config_read(ctx, path, &config, &err), HEFT_UNSUPPORTED);
    assert_int_equal(heft_config_read(ctx, NULL, &config, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_config_read(NULL, path, &config, NULL), HEFT_INVALID_ARG);
    assert_null(config);
    heft_config_free(NULL);
    test_folder_remove(folder);
}

static void dtype_wins_over_torch_dtype(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        heft_dtype dtype;
    } rows[] = {
        {"{}",                                                  HEFT_DTYPE_NONE},
        {"{\"torch_dtype\":\"float16\"}",                       HEFT_DTYPE_F16 },
        {"{\"dtype\":\"bfloat16\"}",                            HEFT_DTYPE_BF16},
        {"{\"torch_dtype\":\"float16\",\"dtype\":\"float32\"}", HEFT_DTYPE_F32 },
        {"{\"torch_dtype\":\"float16\",\"dtype\":null}",        HEFT_DTYPE_F16 },
        {"{\"dtype\":\"torch.float64\"}",                       HEFT_DTYPE_F64 },
        {"{\"dtype\":\"int8\"}",                                HEFT_DTYPE_NONE},
        {"{\"dtype\":\"auto\"}",                                HEFT_DTYPE_NONE},
        {"{\"dtype\":16}",                                      HEFT_DTYPE_NONE},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_config *config = parse(rows[i].text);
        if (heft_config_dtype(config) != rows[i].dtype) {
            fail_msg("%s: %s", rows[i].text, heft_dtype_name(heft_config_dtype(config)));
        }
        heft_config_free(config);
    }
}

static void architecture_is_the_first_name(void **state)
{
    (void)state;
    static const struct {
        const char *text, *name;
    } rows[] = {
        {"{}",                                NULL},
        {"{\"architectures\":null}",          NULL},
        {"{\"architectures\":[]}",            NULL},
        {"{\"architectures\":\"BertModel\"}", NULL},
        {"{\"architectures\":[3]}",           NULL},
        {"{\"architectures\":[\"A\",\"B\"]}", "A" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_config *config = parse(rows[i].text);
        const char *found = heft_config_architecture(config);
        assert_true(found == rows[i].name ||
                    (found && rows[i].name && strcmp(found, rows[i].name) == 0));
        heft_config_free(config);
    }
}

/* ---- which class ----------------------------------------------------------------------------- */
static void classes_are_found_by_name_auto_name_and_config(void **state)
{
    (void)state;
    static const char plain[] = BERT "\"architectures\":[\"BertForMaskedLM\"]}";
    static const char bare[] = "{\"model_type\":\"bert\"}";
    static const char untyped[] = "{\"architectures\":[\"BertForPreTraining\"]}";
    static const struct {
        const char *text, *asked, *found; /* found NULL: UNSUPPORTED */
    } rows[] = {
        {plain,   NULL,                                 "BertForMaskedLM"              },
        {bare,    NULL,                                 "BertModel"                    },
        {untyped, NULL,                                 "BertForPreTraining"           },
        {"{}",    "BertForMaskedLM",                    "BertForMaskedLM"              },
        {plain,   "BertModel",                          "BertModel"                    },
        {plain,   "BertForPreTraining",                 "BertForPreTraining"           },
        {plain,   "BertLMHeadModel",                    "BertLMHeadModel"              },
        {plain,   "BertForNextSentencePrediction",      "BertForNextSentencePrediction"},
        {plain,   "BertForSequenceClassification",      "BertForSequenceClassification"},
        {plain,   "BertForTokenClassification",         "BertForTokenClassification"   },
        {plain,   "BertForQuestionAnswering",           "BertForQuestionAnswering"     },
        {plain,   "BertForMultipleChoice",              "BertForMultipleChoice"        },
        {plain,   "AutoModel",                          "BertModel"                    },
        {plain,   "AutoModelForPreTraining",            "BertForPreTraining"           },
        {plain,   "AutoModelForMaskedLM",               "BertForMaskedLM"              },
        {plain,   "AutoModelForCausalLM",               "BertLMHeadModel"              },
        {plain,   "AutoModelForNextSentencePrediction", "BertForNextSentencePrediction"},
        {plain,   "AutoModelForSequenceClassification", "BertForSequenceClassification"},
        {plain,   "AutoModelForTokenClassification",    "BertForTokenClassification"   },
        {plain,   "AutoModelForQuestionAnswering",      "BertForQuestionAnswering"     },
        {plain,   "AutoModelForMultipleChoice",         "BertForMultipleChoice"        },
        {plain,   "AutoModelForSpeechSeq2Seq",          NULL                           },
        {plain,   "BERTForMaskedLM",                    "BertForMaskedLM"              },
        {plain,   "bertmodel",                          NULL                           },
        {plain,   "",                                   NULL                           },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_error err = {0};
        heft_model *model = NULL;
        heft_config *config = parse(rows[i].text);
        heft_status status =
            heft_model_new(ctx, config, rows[i].asked, HEFT_DTYPE_NONE, &model, &err);
        test_expect_status(status, rows[i].found ? HEFT_OK : HEFT_UNSUPPORTED, &err, rows[i].text);
        if (rows[i].found) {
            assert_string_equal(heft_model_class(model), rows[i].found);
            assert_string_equal(heft_model_type(model), "bert");
        } else { /* says what there is */
            assert_non_null(strstr(err.message, "BertForMultipleChoice"));
            assert_non_null(strstr(err.message, rows[i].asked));
            assert_string_equal(err.path, "config.json");
        }
        heft_model_free(model);
        heft_config_free(config);
    }
}

static void a_config_is_made_of_text(void **state)
{
    (void)state;
    static const char text[] = "{\"model_type\": \"bert\"} and more";
    const size_t length = strlen("{\"model_type\": \"bert\"}");
    heft_error err = {0};
    heft_config *config = NULL;
    test_expect_status(heft_config_new(ctx, text, length, &config, &err), HEFT_OK, &err, "text");
    assert_string_equal(heft_config_model_type(config), "bert");
    heft_config_free(config);
    config = NULL;
    assert_int_equal(heft_config_new(ctx, text, length + 4, &config, &err), HEFT_FORMAT);
    assert_int_equal(heft_config_new(ctx, text, 0, &config, &err), HEFT_FORMAT);
    assert_int_equal(heft_config_new(ctx, NULL, 1, &config, &err), HEFT_INVALID_ARG);
    assert_null(config);
    heft_ctx *small = heft_ctx_new(&HEFT_OPTIONS(
        heft_ctx_options, .limits = &HEFT_OPTIONS(heft_limits, .config_bytes = length - 1)));
    assert_int_equal(heft_config_new(small, text, length, &config, &err), HEFT_LIMIT);
    heft_ctx_free(small);
}

static void models_are_made_in_floating_point_only(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_config *config = parse("{\"model_type\":\"bert\",\"num_hidden_layers\":1}");
    for (heft_dtype dtype = HEFT_DTYPE_F32; dtype < HEFT_DTYPE_COUNT; dtype++) {
        heft_model *model = NULL;
        heft_status status = heft_model_new(ctx, config, NULL, dtype, &model, &err);
        bool possible = dtype == HEFT_DTYPE_F32 || dtype == HEFT_DTYPE_F64 ||
                        dtype == HEFT_DTYPE_F16 || dtype == HEFT_DTYPE_BF16;
        test_expect_status(status, possible ? HEFT_OK : HEFT_INVALID_ARG, &err,
                           heft_dtype_name(dtype));
        if (possible) {
            assert_int_equal(heft_model_dtype(model), dtype);
            assert_int_equal(heft_model_parameter(model, 0)->dtype, dtype);
            size_t ids = heft_model_find(model, "embeddings.position_ids");
            assert_int_equal(heft_model_parameter(model, ids)->dtype, HEFT_DTYPE_I64);
        }
        heft_model_free(model);
    }
    heft_model *model = NULL;
    assert_int_equal(heft_model_new(ctx, NULL, NULL, HEFT_DTYPE_NONE, &model, &err),
                     HEFT_INVALID_ARG);
    assert_int_equal(heft_model_new(ctx, config, NULL, HEFT_DTYPE_NONE, NULL, NULL),
                     HEFT_INVALID_ARG);
    heft_config_free(config);
}

/* ---- writing --------------------------------------------------------------------------------- */
static void expect_written(const char *what, const char *text, const char *class_name,
                           heft_dtype dtype, const char *expected)
{
    heft_error err = {0};
    heft__buffer out;
    heft_config *config = parse(text);
    heft__buffer_init(&out, ctx);
    test_expect_status(heft__config_write(config, class_name, dtype, &out, &err), HEFT_OK, &err,
                       what);
    if (out.size != strlen(expected) || memcmp(out.data, expected, out.size) != 0) {
        fail_msg("%s: written as\n%.*s", what, (int)out.size, (const char *)out.data);
    }
    heft__buffer_fini(&out);
    heft_config_free(config);
}

static void golden_configs_are_written_as_the_reference_does(void **state)
{
    (void)state;
    char *v5 = test_read_file(HEFT_TEST_DATA "/config/bert_base_cased.v5.config.json", NULL);
    char *v457 = test_read_file(HEFT_TEST_DATA "/config/bert_base_cased.v4.57.config.json", NULL);
    char *v430 = test_read_file(HEFT_TEST_DATA "/config/bert_base_cased.v4.30.config.json", NULL);
    expect_written("v5", v5, "BertModel", HEFT_DTYPE_F32, v5);
    expect_written("v4.57", v457, "BertModel", HEFT_DTYPE_F32, v457);
    /* 4.57 writes what 4.30 does, but for the name of the dtype and the version, which is kept */
    char *version = strstr(v457, "4.57.6");
    assert_non_null(version);
    memcpy(version, "4.30.2", 6);
    expect_written("v4.30", v430, "BertModel", HEFT_DTYPE_F32, v457);
    free(v5);
    free(v457);
    free(v430);
}

static void unknown_keys_are_kept_and_those_of_a_run_are_not(void **state)
{
    (void)state;
    expect_written(
        "class_and_dtype",
        "{\"torch_dtype\":\"float32\",\"dtype\":\"float16\",\"architectures\":[\"A\",\"B\"],"
        "\"model_type\":\"bert\"}",
        "BertForMaskedLM", HEFT_DTYPE_BF16,
        "{\n  \"architectures\": [\n    \"BertForMaskedLM\"\n  ],\n  \"dtype\": \"bfloat16\",\n"
        "  \"model_type\": \"bert\"\n}\n");
    expect_written(
        "custom",
        "{\"model_type\":\"bert\",\"_name_or_path\":\"/home/x\",\"a\":{\"z\":1E-5,\"b\":[]},"
        "\"\\u00e9\":18446744073709551616}",
        "BertModel", HEFT_DTYPE_F32,
        "{\n  \"a\": {\n    \"b\": [],\n    \"z\": 1e-05\n  },\n  \"architectures\": [\n    "
        "\"BertModel\"\n"
        "  ],\n  \"dtype\": \"float32\",\n  \"model_type\": \"bert\",\n"
        "  \"\\u00e9\": 18446744073709551616\n}\n");
    expect_written("type_is_added", "{}", "BertModel", HEFT_DTYPE_F32,
                   "{\n  \"architectures\": [\n    \"BertModel\"\n  ],\n  \"dtype\": \"float32\",\n"
                   "  \"model_type\": \"bert\"\n}\n");
}

static void a_copy_is_the_same_and_keeps_the_bytes(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_config *copy = NULL;
    char *text = test_read_file(HEFT_TEST_DATA "/config/cf_ok_extras.json", NULL);
    heft_config *config = parse(text);
    assert_int_equal(heft__config_copy(config, &copy, &err), HEFT_OK);
    heft__buffer a, b;
    heft__buffer_init(&a, ctx);
    heft__buffer_init(&b, ctx);
    heft__json_write_compact(&a, config->root);
    uint64_t offset = heft__json_member(config->root, "custom")->offset;
    heft_config_free(config);
    heft__json_write_compact(&b, copy->root);
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.data, b.data, a.size);
    assert_int_equal(heft__json_member(copy->root, "custom")->offset, offset);
    assert_string_equal(copy->path, "config.json");
    heft__buffer_fini(&a);
    heft__buffer_fini(&b);
    heft_config_free(copy);
    free(text);
}

/* ---- memory ---------------------------------------------------------------------------------- */
static heft_status read_copy_write(heft_ctx *with, void *user, heft_error *err)
{
    heft_config *config = NULL, *copy = NULL;
    heft__buffer out;
    (void)user;
    heft__buffer_init(&out, with);
    heft_status status =
        heft_config_read(with, HEFT_TEST_DATA "/config/cf_ok_extras.json", &config, err);
    if (status == HEFT_OK) {
        status = heft__config_copy(config, &copy, err);
    }
    if (status == HEFT_OK) {
        status = heft__config_write(copy, "BertModel", HEFT_DTYPE_F32, &out, err);
    }
    heft__buffer_fini(&out);
    heft_config_free(copy);
    heft_config_free(config);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    test_oom_sweep(read_copy_write, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(odd_configs_are_refused_at_their_byte),
        cmocka_unit_test(odd_values_are_refused_at_their_byte),
        cmocka_unit_test(golden_malformed_configs_are_refused),
        cmocka_unit_test(configs_are_read_from_a_file_or_a_folder),
        cmocka_unit_test(dtype_wins_over_torch_dtype),
        cmocka_unit_test(architecture_is_the_first_name),
        cmocka_unit_test(classes_are_found_by_name_auto_name_and_config),
        cmocka_unit_test(a_config_is_made_of_text),
        cmocka_unit_test(models_are_made_in_floating_point_only),
        cmocka_unit_test(golden_configs_are_written_as_the_reference_does),
        cmocka_unit_test(unknown_keys_are_kept_and_those_of_a_run_are_not),
        cmocka_unit_test(a_copy_is_the_same_and_keeps_the_bytes),
        cmocka_unit_test(memory_can_run_out_anywhere),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
