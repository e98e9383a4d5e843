/* Metadata of safetensors files: what conversions keep, what callers set, what cannot be kept. */
#include "checkpoint/checkpoint.h"
#include "load/load.h"
#include "support.h"
#include "support_model.h"

#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define ONE "model-00001-of-00002.safetensors"
#define TWO "model-00002-of-00002.safetensors"

static heft_ctx *ctx;
static char folder[256], other[300];

static int make_folder(void **state)
{
    (void)state;
    test_folder_make(folder);
    snprintf(other, sizeof other, "%s/out", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    test_folder_remove(folder);
    return 0;
}

/* A file with one tensor of two bytes; metadata is the text of an object, NULL for none. */
static void write_file(const char *file, const char *tensor, const char *metadata)
{
    uint8_t bytes[2048];
    char header[2000];
    const int length = snprintf(
        header, sizeof header,
        "{%s%s%s\"%s\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
        metadata ? "\"__metadata__\":" : "", metadata ? metadata : "", metadata ? "," : "", tensor);
    heft__put_le64(bytes, (uint64_t)length);
    memcpy(bytes + 8, header, (size_t)length);
    memset(bytes + 8 + length, 7, 2);
    test_write_file(folder, file, bytes, (size_t)length + 10);
}

/* What stands in the header of a written file before its first tensor. */
static void expect_header(const char *row, const char *path, const char *expected)
{
    size_t length = 0;
    char start[600];
    char *bytes = test_read_file(path, &length);
    snprintf(start, sizeof start, expected ? "{\"__metadata__\":%s," : "{\"", expected);
    const size_t least = strlen(start);
    if (length < 8 + least || memcmp(bytes + 8, start, least) != 0 ||
        (!expected && strncmp(bytes + 8, "{\"__metadata__", 14) == 0)) {
        fail_msg("%s: the header begins with %.200s", row, bytes + 8);
    }
    free(bytes);
}

struct row {
    const char *name;
    const char *one, *two; /* objects in the source's files; two "": there is one file */
    heft_metadata_pair set[3];
    size_t set_count;
    heft_format format;
    const char *expected; /* in each file; NULL: no metadata */
    const char *warning;  /* words of the one there is; NULL: none */
    heft_status status;
};

/* clang-format off */
static const struct row rows[] = {
    {.name = "nothing_becomes_the_standard", .two = "", .expected = "{\"format\":\"pt\"}"},
    {.name = "kept",
     .one = "{\"lora_alpha\": \"8\", \"format\": \"pt\"}",
     .two = "",
     .expected = "{\"format\":\"pt\",\"lora_alpha\":\"8\"}"},
    {.name = "kept_without_a_format",
     .one = "{\"config\": \"{\\\"layers\\\": 1}\"}",
     .two = "",
     .expected = "{\"config\":\"{\\\"layers\\\": 1}\"}"},
    {.name = "an_empty_object_is_nothing",
     .one = "{}",
     .two = "",
     .expected = "{\"format\":\"pt\"}"},
    {.name = "union",
     .one = "{\"a\": \"1\", \"c\": \"3\"}",
     .two = "{\"b\": \"2\", \"c\": \"3\"}",
     .expected = "{\"a\":\"1\",\"b\":\"2\",\"c\":\"3\"}"},
    {.name = "one_of_two", .two = "{\"b\": \"2\"}", .expected = "{\"b\":\"2\"}"},
    {.name = "conflict",
     .one = "{\"a\": \"1\"}",
     .two = "{\"a\": \"2\", \"b\": \"3\"}",
     .expected = "{\"a\":\"1\",\"b\":\"3\"}",
     .warning = "metadata 'a' differs between " ONE " and " TWO},
    {.name = "last_of_two_in_one_file",
     .one = "{\"a\": \"1\", \"b\": \"0\", \"a\": \"2\"}",
     .two = "{\"a\": \"2\"}",
     .expected = "{\"a\":\"2\",\"b\":\"0\"}"},
    {.name = "nuls_and_odd_letters",
     .one = "{\"a\\u0000b\": \"c\\u0000d\", \"\": \"\", \"\xc3\xa9\": \"\\n\\ud83e\\udd17\"}",
     .two = "",
     .expected = "{\"\":\"\",\"a\\u0000b\":\"c\\u0000d\",\"\xc3\xa9\":\"\\n\xf0\x9f\xa4\x97\"}"},
    {.name = "set",
     .one = "{\"a\": \"1\", \"b\": \"2\"}",
     .two = "",
     .set = {{"c", "3"}, {"a", "0"}, {"b", NULL}},
     .set_count = 3,
     .expected = "{\"a\":\"0\",\"c\":\"3\"}"},
    {.name = "set_beside_the_standard",
     .two = "",
     .set = {{"step", "100"}},
     .set_count = 1,
     .expected = "{\"format\":\"pt\",\"step\":\"100\"}"},
    {.name = "taken_out", .two = "", .set = {{"format", NULL}}, .set_count = 1},
    {.name = "taken_out_and_set_again",
     .two = "",
     .set = {{"format", NULL}, {"none", NULL}, {"format", "np"}},
     .set_count = 3,
     .expected = "{\"format\":\"np\"}"},
    {.name = "no_utf8",
     .two = "",
     .set = {{"a", "\xff"}},
     .set_count = 1,
     .status = HEFT_INVALID_ARG},
    {.name = "no_key",
     .two = "",
     .set = {{NULL, "a"}},
     .set_count = 1,
     .status = HEFT_INVALID_ARG},
    {.name = "a_pickle_holds_none",
     .one = "{\"format\": \"pt\", \"rank\": \"8\"}",
     .two = "",
     .format = HEFT_FORMAT_TORCH,
     .warning = "a PyTorch file cannot hold it: 2 keys, 'format' and others"},
    {.name = "and_needs_no_standard",
     .one = "{\"format\": \"pt\"}",
     .two = "",
     .format = HEFT_FORMAT_TORCH},
    {.name = "and_takes_none",
     .two = "",
     .set = {{"a", "b"}},
     .set_count = 1,
     .format = HEFT_FORMAT_TORCH,
     .status = HEFT_INVALID_ARG},
    {.name = "an_offload_folder_holds_none",
     .one = "{\"rank\": \"8\"}",
     .two = "",
     .format = HEFT_FORMAT_OFFLOAD,
     .warning = "an offload folder cannot hold it: 1 keys, 'rank'"},
};
/* clang-format on */

static void write_source(const struct row *row)
{
    static const char index[] = "{\"weight_map\":{\"x\":\"" ONE "\",\"y\":\"" TWO "\"}}";
    const bool single = row->two && !*row->two;
    write_file(single ? "model.safetensors" : ONE, "x", row->one);
    if (!single) {
        write_file(TWO, "y", row->two);
        test_write_file(folder, "model.safetensors.index.json", index, sizeof index - 1);
    }
}

static heft_status convert(heft_ctx *with, const struct row *row, uint64_t shard,
                           heft_write_report **report, heft_error *err)
{
    const heft_convert_options options =
        HEFT_OPTIONS(heft_convert_options, .format = row->format, .metadata = row->set,
                     .metadata_count = row->set_count, .force = true,
                     .max_shard_bytes = row->format == HEFT_FORMAT_OFFLOAD ? 0 : shard);
    return test_convert(with, folder, other, &options, report, err);
}

static void expect_row(const struct row *row, uint64_t shard)
{
    heft_write_report *report = NULL;
    heft_error err = {0};
    test_expect_status(convert(ctx, row, shard, &report, &err), row->status, &err, row->name);
    if (row->status != HEFT_OK) {
        assert_null(report);
        assert_false(heft__path_exists(other));
        return;
    }
    if (report->warning_count != (row->warning != NULL) ||
        (row->warning && !strstr(report->warnings[0], row->warning))) {
        fail_msg("%s: %zu warnings: %s", row->name, report->warning_count,
                 report->warning_count ? report->warnings[0] : "");
    }
    const bool holds = row->format == HEFT_FORMAT_AUTO;
    for (size_t i = 0; i < report->file_count && holds; i++) {
        expect_header(row->name, test_path(other, report->files[i].name), row->expected);
    }
    heft_write_report_free(report);
}

static void conversions_keep_metadata(void **state)
{
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (uint64_t shard = 0; shard < 2; shard++) { /* one file; a file for each tensor */
            make_folder(state);
            write_source(&rows[i]);
            expect_row(&rows[i], shard * 2);
            remove_folder(state);
        }
    }
}

/* What an open checkpoint lists: as conversions, without the standard, in the order of the files. */
static void a_checkpoint_lists_the_pairs_of_all_files(void **state)
{
    static const struct {
        const char *name, *one, *two;
        const char *expected; /* KEY=VALUE; for each pair */
        bool lost;            /* the first file is not there */
    } listed[] = {
        {.name = "none",                  .two = "",      .expected = ""},
        { "one_file",           "{\"b\": \"1\", \"a\": \"2\"}",                                 "",          "b=1;a=2;", false},
        { "union",              "{\"a\": \"1\", \"c\": \"3\"}", "{\"b\": \"2\", \"c\": \"3\"}",                                                           "a=1;c=3;b=2;",
         false},
        {                                                           "the_second_only",    NULL,                       "{\"b\": \"2\"}",          "b=2;", false},
        { "the_first_wins",     "{\"a\": \"1\"}",     "{\"a\": \"2\", \"b\": \"3\"}",          "a=1;b=3;", false},
        { "the_last_in_a_file", "{\"a\": \"1\", \"b\": \"0\", \"a\": \"2\"}",                                      "{\"a\": \"3\"}",
         "a=2;b=0;", false},
        {                                               "a_lost_file",        "{\"a\": \"1\"}",                       "{\"b\": \"2\"}",           "b=2;", true},
    };
    for (size_t i = 0; i < COUNT(listed); i++) {
        const heft_checkpoint_options how = HEFT_SIZED(heft_checkpoint_options);
        heft_checkpoint *ckpt = NULL;
        heft_error err = {0};
        const char *key, *value = NULL;
        char found[200] = "";
        make_folder(state);
        write_source(&(struct row){.one = listed[i].one, .two = listed[i].two});
        if (listed[i].lost) {
            assert_int_equal(remove(test_path(folder, ONE)), 0);
        }
        test_expect_status(heft__checkpoint_survey(ctx, folder, &how, &ckpt, &err), HEFT_OK, &err,
                           listed[i].name);
        for (size_t k = 0; (key = heft_checkpoint_metadata(ckpt, k, &value)) != NULL; k++) {
            const size_t length = strlen(found);
            snprintf(found + length, sizeof found - length, "%s=%s;", key, value);
        }
        assert_int_equal(heft_checkpoint_warning(ckpt, 0) != NULL, 0);
        if (strcmp(found, listed[i].expected) != 0) {
            fail_msg("%s: %s", listed[i].name, found);
        }
        heft_checkpoint_close(ckpt);
        remove_folder(state);
    }
}

/* The union may be larger than a header may be: refused before anything is written. */
static void a_header_that_gets_too_long(void **state)
{
    const heft_limits limits = HEFT_OPTIONS(heft_limits, .header_bytes = 500);
    const heft_ctx_options options = HEFT_OPTIONS(heft_ctx_options, .limits = &limits);
    heft_ctx *limited = heft_ctx_new(&options);
    const struct row row = {.name = "long"};
    char one[400], two[400];
    heft_error err;
    (void)state;
    snprintf(one, sizeof one, "{\"a\":\"%0300d\"}", 1);
    snprintf(two, sizeof two, "{\"b\":\"%0300d\"}", 1);
    write_source(&(struct row){.one = one, .two = two});
    assert_int_equal(convert(limited, &row, 0, NULL, &err), HEFT_LIMIT);
    assert_non_null(strstr(err.message, "the limit is 500"));
    assert_false(heft__path_exists(other));
    heft_ctx_free(limited);
}

/* Finished shards of a run with other metadata are not taken over. */
static void resuming_minds_the_metadata(void **state)
{
    heft_convert_options options = HEFT_OPTIONS(heft_convert_options, .resume = true);
    const heft_metadata_pair pair = {"step", "1"};
    heft_error err;
    (void)state;
    write_file("model.safetensors", "x", NULL);
    test_expect_status(test_convert(ctx, folder, other, &options, NULL, &err), HEFT_OK, &err,
                       "first");
    options.metadata = &pair;
    options.metadata_count = 1;
    options.force = true;
    test_expect_status(test_convert(ctx, folder, other, &options, NULL, &err), HEFT_OK, &err,
                       "again");
    expect_header("again", test_path(other, "model.safetensors"),
                  "{\"format\":\"pt\",\"step\":\"1\"}");
}

/* ---- saves ----------------------------------------------------------------------------------- */
static const char tiny[] =
    "{\"model_type\": \"bert\", \"architectures\": [\"BertModel\"], \"vocab_size\": 8, "
    "\"hidden_size\": 4, \"num_hidden_layers\": 1, \"num_attention_heads\": 1, "
    "\"intermediate_size\": 4, \"max_position_embeddings\": 4, \"type_vocab_size\": 2}";

static void a_save_has_the_standard_and_what_is_set(void **state)
{
    heft_model *model = test_model_from_text(ctx, tiny, NULL);
    const heft_metadata_pair pairs[] = {
        {"step", "1"}
    };
    heft_save_options options =
        HEFT_OPTIONS(heft_save_options, .metadata = pairs, .metadata_count = 1);
    heft_error err;
    (void)state;
    test_expect_status(heft_model_save_random(model, other, NULL, &options, NULL, &err), HEFT_OK,
                       &err, "save");
    expect_header("save", test_path(other, "model.safetensors"),
                  "{\"format\":\"pt\",\"step\":\"1\"}");
    options.format = HEFT_FORMAT_TORCH;
    options.force = true;
    assert_int_equal(heft_model_save_random(model, other, NULL, &options, NULL, &err),
                     HEFT_INVALID_ARG);
    assert_non_null(strstr(err.message, "a PyTorch file cannot hold metadata"));
    heft_model_free(model);
}

static heft_status convert_row(heft_ctx *with, void *user, heft_error *err)
{
    return convert(with, user, 2, NULL, err);
}

static void every_allocation_may_fail(void **state)
{
    struct row row = rows[6]; /* conflict */
    (void)state;
    write_source(&row);
    row.set[0] = (heft_metadata_pair){"c", "4"};
    row.set_count = 1;
    test_oom_sweep(convert_row, &row);
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conversions_keep_metadata),
        cmocka_unit_test(a_checkpoint_lists_the_pairs_of_all_files),
        IN_FOLDER(a_header_that_gets_too_long),
        IN_FOLDER(resuming_minds_the_metadata),
        IN_FOLDER(a_save_has_the_standard_and_what_is_set),
        IN_FOLDER(every_allocation_may_fail),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
