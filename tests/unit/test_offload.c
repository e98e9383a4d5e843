/* Accelerate's offload folder: Accelerate's own files are read and reproduced byte for byte; malformed
 * ones are refused with tensor, byte, and what was expected and found.
 *
 * tests/data/device_maps/offload_golden.json was made by accelerate 1.15.0 and torch 2.13.0. */
#include "support.h"
#include "support_model.h"

#include "checkpoint/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define COUNT(rows) (sizeof(rows) / sizeof(rows)[0])

static heft_ctx *ctx;
static char folder[256], other[256];

static int make_folders(void **state)
{
    (void)state;
    test_folder_make(folder);
    test_folder_make(other);
    return 0;
}

static int remove_folders(void **state)
{
    (void)state;
    test_folder_remove(folder);
    test_folder_remove(other);
    return 0;
}

static void write_text(const char *name, const char *text)
{
    test_write_file(folder, name, text, strlen(text));
}

/* ---- golden files ---------------------------------------------------------------------------- */
static size_t from_hex(const char *hex, uint8_t *bytes)
{
    size_t count = strlen(hex) / 2;
    for (size_t i = 0; i < count; i++) {
        unsigned byte;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
        bytes[i] = (uint8_t)byte;
    }
    return count;
}

static const char *text_of(const heft__json_value *object, const char *key)
{
    return heft__json_member(object, key)->text;
}

/* The golden tensors as a folder. */
static void make_golden(const heft__json_value *tensors, heft__buffer *index)
{
    heft__buffer_byte(index, '{');
    for (const heft__json_value *row = tensors->first; row; row = row->next) {
        uint8_t bytes[256];
        char name[64];
        size_t length = from_hex(text_of(row, "dat_hex"), bytes);
        snprintf(name, sizeof name, "%s.dat", text_of(row, "name"));
        test_write_file(folder, name, bytes, length);
        heft__buffer_format(index, "%s\"%s\": ", row == tensors->first ? "" : ", ",
                            text_of(row, "name"));
        heft__json_write_compact(index, heft__json_member(row, "index_entry"));
    }
    heft__buffer_byte(index, '}');
    assert_false(index->failed);
    test_write_file(folder, "index.json", index->data, index->size);
}

static void expect_row(const heft_checkpoint *ckpt, size_t i, const heft__json_value *row)
{
    const heft_tensor_info *info = heft_checkpoint_info(ckpt, i);
    const heft__json_value *entry = heft__json_member(row, "index_entry");
    uint8_t wanted[256], found[256];
    heft_error err;
    uint32_t rank = 0;
    size_t length = from_hex(text_of(row, "dat_hex"), wanted);
    assert_string_equal(info->name, text_of(row, "name"));
    assert_string_equal(heft_dtype_name(info->dtype), text_of(entry, "dtype"));
    assert_string_equal(text_of(row, "torch_dtype") + strlen("torch."), text_of(entry, "dtype"));
    for (const heft__json_value *size = heft__json_member(row, "shape")->first; size;
         size = size->next) {
        uint64_t number;
        assert_true(heft__json_as_u64(size, &number));
        assert_int_equal(info->shape[rank++], number);
    }
    assert_int_equal(info->rank, rank);
    assert_int_equal(info->offset, 0);
    assert_int_equal(heft_checkpoint_file(ckpt, i)->size_bytes, length);
    test_expect_status(heft_checkpoint_read(ckpt, i, found, sizeof found, &err), HEFT_OK, &err,
                       info->name);
    assert_int_equal(info->size_bytes, strcmp(info->name, "empty") == 0 ? 0 : length);
    assert_memory_equal(found, wanted, (size_t)info->size_bytes);
    heft_tensor *mapped = NULL;
    test_expect_status(heft_checkpoint_map(ckpt, i, HEFT_MAP_READ_ONLY, &mapped, &err), HEFT_OK,
                       &err, info->name);
    assert_int_equal(mapped->flags, HEFT_TENSOR_MAPPED);
    assert_memory_equal(mapped->data, wanted, (size_t)info->size_bytes);
    heft_tensor_free(mapped);
}

static void golden_tensors_come_in_and_go_out(void **state)
{
    (void)state;
    heft__arena arena;
    heft__buffer index;
    heft_checkpoint *ckpt = NULL;
    heft_error err;
    heft__arena_init(&arena, ctx);
    heft__buffer_init(&index, ctx);
    const heft__json_value *root =
        test_read_json(&arena, HEFT_TEST_DATA "/device_maps/offload_golden.json");
    const heft__json_value *tensors = heft__json_member(root, "tensors");
    assert_int_equal(tensors->count, 18);
    make_golden(tensors, &index);
    test_expect_status(heft_checkpoint_open(ctx, folder, NULL, &ckpt, &err), HEFT_OK, &err, folder);
    assert_int_equal(heft_checkpoint_count(ckpt), 18);
    assert_string_equal(heft_checkpoint_index(ckpt), "index.json");
    size_t i = 0;
    for (const heft__json_value *row = tensors->first; row; row = row->next) {
        expect_row(ckpt, i++, row);
    }
    heft_checkpoint_close(ckpt);
    /* and out again, each file byte for byte */
    const heft_convert_options options =
        HEFT_OPTIONS(heft_convert_options, .format = HEFT_FORMAT_OFFLOAD, .force = true);
    test_expect_status(test_convert(ctx, folder, other, &options, NULL, &err), HEFT_OK, &err,
                       other);
    assert_int_equal(test_count_entries(other), 19);
    for (const heft__json_value *row = tensors->first; row; row = row->next) {
        char path[512];
        uint8_t wanted[256];
        size_t length, expected = from_hex(text_of(row, "dat_hex"), wanted);
        snprintf(path, sizeof path, "%s/%s.dat", other, text_of(row, "name"));
        char *bytes = test_read_file(path, &length);
        assert_int_equal(length, expected);
        assert_memory_equal(bytes, wanted, expected);
        free(bytes);
    }
    heft__buffer_fini(&index);
    heft__arena_fini(&arena);
}

static void golden_index_texts_come_back_byte_for_byte(void **state)
{
    (void)state;
    static const char *const keys[] = {"index_json_text_first",
                                       "index_json_text_after_second_call_merged"};
    heft__arena arena;
    heft__arena_init(&arena, ctx);
    const heft__json_value *root =
        test_read_json(&arena, HEFT_TEST_DATA "/device_maps/offload_golden.json");
    for (size_t i = 0; i < COUNT(keys); i++) {
        const heft__json_value *text = heft__json_member(root, keys[i]);
        heft__offload_index index;
        heft__buffer out;
        heft_error err;
        test_expect_status(heft__offload_index_parse(ctx, text->text, text->length, &index, &err),
                           HEFT_OK, &err, keys[i]);
        assert_true(heft__offload_index_sniff(text->text, text->length));
        heft__buffer_init(&out, ctx);
        heft__offload_index_write(&out, index.entries, index.count);
        assert_int_equal(out.size, text->length);
        assert_memory_equal(out.data, text->text, out.size);
        heft__buffer_fini(&out);
        heft__offload_index_fini(&index);
    }
    heft__arena_fini(&arena);
}

static void entries_of_both_kinds_are_written_as_python_does(void **state)
{
    (void)state;
    const uint64_t shape[] = {2};
    const heft__offload_entry entries[] = {
        {.name = "h\xc3\xa9",
         .file = "/m \xc3\xa9.safetensors",
         .weight = "w\"",
         .dtype = HEFT_DTYPE_BF16                                                },
        {.name = "s",         .dtype = HEFT_DTYPE_BOOL, .rank = 1, .shape = shape},
    };
    static const char expected[] =
        "{\n  \"h\\u00e9\": {\n    \"safetensors_file\": \"/m \\u00e9.safetensors\",\n"
        "    \"weight_name\": \"w\\\"\",\n    \"dtype\": \"bfloat16\"\n  },\n"
        "  \"s\": {\n    \"dtype\": \"bool\",\n    \"shape\": [\n      2\n    ]\n  }\n}";
    heft__buffer out;
    heft__buffer_init(&out, ctx);
    heft__offload_index_write(&out, entries, 2);
    assert_int_equal(out.size, sizeof expected - 1);
    assert_memory_equal(out.data, expected, out.size);
    heft__buffer_fini(&out);
}

/* ---- the index: what is refused -------------------------------------------------------------- */
#define ONE(fields) "{\"a\": {" fields "}}"
/* clang-format off */
static const struct {
    const char *name, *text;
    heft_status status;
    uint64_t offset;
    const char *item, *words;
} refused[] = {
    {"empty_text", "", HEFT_FORMAT, 0, "", "the text ends"},
    {"a_list", "[]", HEFT_FORMAT, 0, "", "expected an object, found an array"},
    {"no_entry", "{}", HEFT_FORMAT, 0, "", "contains no tensor"},
    {"garbage_behind", ONE("\"dtype\": \"bool\", \"shape\": []") " x", HEFT_FORMAT, 38, "", "nothing but white space"},
    {"entry_is_a_string", "{\"a\": \"b\"}", HEFT_FORMAT, 6, "a", "an entry must be an object, found a string"},
    {"entry_is_null", "{\"a\": null}", HEFT_FORMAT, 6, "a", "must be an object, found null"},
    {"no_shape", ONE("\"dtype\": \"bool\""), HEFT_FORMAT, 1, "a", "field 'shape' is missing"},
    {"no_dtype", ONE("\"shape\": []"), HEFT_FORMAT, 1, "a", "field 'dtype' is missing"},
    {"nothing", ONE(""), HEFT_FORMAT, 1, "a", "field 'dtype' is missing"},
    {"weight_name_alone", ONE("\"weight_name\": \"b\""), HEFT_FORMAT, 1, "a", "field 'dtype' is missing"},
    {"dtype_unknown", ONE("\"dtype\": \"float7\", \"shape\": []"), HEFT_FORMAT, 16, "a", "unknown dtype 'float7'"},
    {"dtype_of_another_library", ONE("\"dtype\": \"F32\", \"shape\": []"), HEFT_FORMAT, 16, "a", "unknown dtype 'F32'"},
    {"dtype_that_numpy_lacks", ONE("\"dtype\": \"complex32\", \"shape\": []"), HEFT_FORMAT, 16, "a", "unknown dtype 'complex32'"},
    {"dtype_is_a_number", ONE("\"dtype\": 4, \"shape\": []"), HEFT_FORMAT, 16, "a", "expected a string as dtype"},
    {"dtype_twice", ONE("\"dtype\": \"bool\", \"dtype\": \"bool\""), HEFT_FORMAT, 24, "a", "field 'dtype' occurs twice"},
    {"shape_twice", ONE("\"shape\": [], \"\\u0073hape\": []"), HEFT_FORMAT, 20, "a", "occurs twice"},
    {"shape_is_a_number", ONE("\"dtype\": \"bool\", \"shape\": 3"), HEFT_FORMAT, 33, "a", "expected an array as shape"},
    {"dimension_negative", ONE("\"dtype\": \"bool\", \"shape\": [-1]"), HEFT_FORMAT, 34, "a", "dimension"},
    {"dimension_fraction", ONE("\"dtype\": \"bool\", \"shape\": [1.5]"), HEFT_FORMAT, 34, "a", "dimension"},
    {"dimension_2p64", ONE("\"dtype\": \"bool\", \"shape\": [18446744073709551616]"), HEFT_FORMAT, 34, "a", "dimension"},
    {"dimension_is_a_list", ONE("\"dtype\": \"bool\", \"shape\": [[1]]"), HEFT_FORMAT, 34, "a", "a dimension must be a number, found an array"},
    {"shape_overflows", ONE("\"dtype\": \"bool\", \"shape\": [4294967296, 4294967296]"), HEFT_FORMAT, 1, "a",
     "shape [4294967296, 4294967296] exceeds 2^64 bytes as bool"},
    {"bytes_overflow", ONE("\"dtype\": \"float64\", \"shape\": [4294967296, 2147483648]"), HEFT_FORMAT, 1, "a", "exceeds 2^64 bytes as float64"},
    {"key_twice", "{\"a\": {\"dtype\": \"bool\", \"shape\": []}, \"a\": {}}", HEFT_FORMAT, 38, "a", "key occurs twice, first at byte 1"},
    {"name_with_a_slash", "{\"d/a\": {\"dtype\": \"bool\", \"shape\": []}}", HEFT_REFUSED, 1, "d/a", "'d/a.dat' would not be a file in this folder"},
    {"name_that_climbs", "{\"../a\": {\"dtype\": \"bool\", \"shape\": []}}", HEFT_REFUSED, 1, "../a", "would not be a file in this folder"},
    {"slash_by_an_escape", "{\"..\\u002fa\": {\"dtype\": \"bool\", \"shape\": []}}", HEFT_REFUSED, 1, "../a", "would not be a file"},
    {"name_dot_dot", "{\"..\": {\"dtype\": \"bool\", \"shape\": []}}", HEFT_REFUSED, 1, "..", "would not be a file"},
    {"name_absolute", "{\"/etc/a\": {\"dtype\": \"bool\", \"shape\": []}}", HEFT_REFUSED, 1, "/etc/a", "would not be a file"},
    {"nul_in_a_name", "{\"a\\u0000b\": {\"dtype\": \"bool\", \"shape\": []}}", HEFT_FORMAT, 1, "a", "tensor name contains a NUL"},
    {"file_relative", ONE("\"safetensors_file\": \"m.safetensors\""), HEFT_REFUSED, 27, "a", "'m.safetensors' must be absolute"},
    {"file_climbs", ONE("\"safetensors_file\": \"../m.safetensors\""), HEFT_REFUSED, 27, "a", "must be absolute"},
    {"file_empty", ONE("\"safetensors_file\": \"\""), HEFT_REFUSED, 27, "a", "must be absolute"},
    {"file_is_null", ONE("\"safetensors_file\": null"), HEFT_FORMAT, 27, "a", "expected a string as safetensors_file"},
    {"nul_in_a_file", ONE("\"safetensors_file\": \"/m\\u0000\""), HEFT_FORMAT, 27, "a", "contains a NUL"},
    {"weight_is_a_number", ONE("\"weight_name\": 1"), HEFT_FORMAT, 22, "a", "expected a string as weight_name"},
    {"nul_in_a_weight", ONE("\"safetensors_file\": \"/m\", \"weight_name\": \"\\u0000\""), HEFT_FORMAT, 48, "a", "contains a NUL"},
    {"not_utf8", "{\"\xff\": {}}", HEFT_FORMAT, 2, "", "invalid UTF-8"},
};
/* clang-format on */

static void index_refused_at_the_byte_and_the_tensor(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(refused); i++) {
        heft__offload_index index, before;
        heft_error err;
        const size_t length = strlen(refused[i].text);
        char *copy = malloc(length ? length : 1); /* of exactly its size, for sanitizers */
        assert_non_null(copy);
        memcpy(copy, refused[i].text, length);
        memset(&index, 0x5A, sizeof index);
        before = index;
        test_expect_status(heft__offload_index_parse(ctx, copy, length, &index, &err),
                           refused[i].status, &err, refused[i].name);
        if (err.offset != refused[i].offset || strcmp(err.item, refused[i].item) != 0 ||
            !strstr(err.message, refused[i].words)) {
            fail_msg("%s: byte %llu: '%s': %s", refused[i].name, (unsigned long long)err.offset,
                     err.item, err.message);
        }
        assert_memory_equal(&index, &before, sizeof index);
        free(copy);
    }
}

static const char both_kinds[] =
    "{\"a\": {\"dtype\": \"float32\", \"shape\": [2, 3], \"more\": [{}]},"
    " \"b/c\": {\"safetensors_file\": \"/m.safetensors\", \"shape\": []},"
    " \"\": {\"shape\": [], \"weight_name\": \"x\", \"dtype\": \"int64\"}}";

static void odd_but_fine(void **state)
{
    (void)state;
    heft__offload_index index;
    heft_error err;
    test_expect_status(
        heft__offload_index_parse(ctx, both_kinds, sizeof both_kinds - 1, &index, &err), HEFT_OK,
        &err, "both kinds");
    assert_int_equal(index.count, 3);
    assert_int_equal(index.entries[0].size_bytes, 24);
    assert_null(index.entries[0].file);
    assert_string_equal(index.entries[1].weight, "b/c"); /* its own name, where none is said */
    assert_int_equal(index.entries[1].dtype, HEFT_DTYPE_NONE);
    assert_non_null(index.entries[1].shape);
    assert_null(index.entries[2].weight); /* not used for a .dat */
    assert_int_equal(index.entries[2].size_bytes, 8);
    heft__offload_index_fini(&index);
    heft__offload_index_fini(&index); /* once more, and none at all */
    heft__offload_index_fini(NULL);
}

static void every_prefix_is_refused(void **state)
{
    (void)state;
    for (size_t cut = 0; cut < sizeof both_kinds - 1; cut++) {
        heft__offload_index index;
        heft_error err;
        test_expect_status(heft__offload_index_parse(ctx, both_kinds, cut, &index, &err),
                           HEFT_FORMAT, &err, "prefix");
    }
}

static void limits_are_kept(void **state)
{
    (void)state;
    static const char text[] = "{\"a\":{\"dtype\":\"bool\",\"shape\":[1,2]},"
                               "\"bcd\":{\"dtype\":\"bool\",\"shape\":[]}}"; /* 70 bytes */
    /* clang-format off */
    static const struct {
        heft_limits limits;
        heft_status status;
        uint64_t offset;
        const char *words;
    } rows[] = {
        {{.index_bytes = 70, .tensors = 2, .name_bytes = 3, .rank = 2, .json_depth = 3}, HEFT_OK, 0, ""},
        {{.index_bytes = 69}, HEFT_LIMIT, HEFT_NO_OFFSET, "index has 70 bytes, the limit is 69"},
        {{.tensors = 1}, HEFT_LIMIT, 36, "more than 1 tensors"},
        {{.name_bytes = 2}, HEFT_LIMIT, 36, "tensor name has 3 bytes, the limit is 2"},
        {{.rank = 1}, HEFT_LIMIT, 32, "more than 1 dimensions"},
        {{.json_depth = 2}, HEFT_LIMIT, 29, "nested more than 2 levels deep"},
    };
    /* clang-format on */
    assert_int_equal(sizeof text - 1, 70);
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_limits limits = rows[i].limits;
        limits.struct_size = sizeof limits;
        const heft_ctx_options options = HEFT_OPTIONS(heft_ctx_options, .limits = &limits);
        heft_ctx *limited = heft_ctx_new(&options);
        heft__offload_index index;
        heft_error err;
        assert_non_null(limited);
        test_expect_status(heft__offload_index_parse(limited, text, sizeof text - 1, &index, &err),
                           rows[i].status, &err, rows[i].words);
        if (rows[i].status == HEFT_OK) {
            heft__offload_index_fini(&index);
        } else if (err.offset != rows[i].offset || !strstr(err.message, rows[i].words)) {
            fail_msg("%s: byte %llu: %s", rows[i].words, (unsigned long long)err.offset,
                     err.message);
        }
        heft_ctx_free(limited);
    }
}

static void told_from_other_json(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool known;
    } rows[] = {
        {"{\"a\": {\"dtype\": \"float32\"",                             true },
        {"{\"a\": {\"x\": [{}], \"shape\": 3",                          true },
        {"{\"a\": {\"safetensors_file\"",                               false},
        {"{\"a\": {\"safetensors_file\":",                              true },
        {"{\"weight_map\": {\"dtype\": \"model.safetensors\"}}",        false},
        {"{\"metadata\": {\"dtype\": 1}, \"weight_map\": {\"a\": 1}}",  false},
        {"{\"a\": {}}",                                                 false},
        {"{\"a\": \"dtype\"}",                                          false},
        {"{\"model_type\": \"bert\", \"b\": {\"dtype\": \"float32\"}}", false},
        {"[{\"a\": {\"dtype\": 1}}]",                                   false},
        {"{}",                                                          false},
        {"",                                                            false},
        {"dtype",                                                       false},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        if (heft__offload_index_sniff(rows[i].text, strlen(rows[i].text)) != rows[i].known) {
            fail_msg("%s", rows[i].text);
        }
    }
}

/* ---- the folder: what is refused ------------------------------------------------------------- */
/* float32 "w" [2] = 1, 2 and int64 "n" [1] = 7; the header is 8-byte aligned. */
static void write_safetensors(const char *name)
{
    static const char header[] = "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                                 "\"n\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[8,16]}}";
    static const uint8_t data[16] = {0, 0, 0x80, 0x3F, 0, 0, 0, 0x40, 7};
    uint8_t bytes[512];
    const size_t length = sizeof header - 1;
    heft__put_le64(bytes, length);
    memcpy(bytes + 8, header, length);
    memcpy(bytes + 8 + length, data, sizeof data);
    test_write_file(folder, name, bytes, 8 + length + sizeof data);
}

static char text_room[2048];
/* An entry of a file in the folder, with what follows its name. */
static const char *pointing(const char *file, const char *rest)
{
    snprintf(text_room, sizeof text_room, "{\"t\": {\"safetensors_file\": \"%s/%s\"%s}}", folder,
             file, rest);
    return text_room;
}

static void expect_open(const char *row, heft_status expected, const char *path, const char *item,
                        uint64_t offset, const char *words)
{
    heft_checkpoint *ckpt = NULL;
    heft_error err = {0};
    test_expect_status(heft_checkpoint_open(ctx, folder, NULL, &ckpt, &err), expected, &err, row);
    heft_checkpoint_close(ckpt);
    if (expected != HEFT_OK &&
        (!strstr(err.message, words) || strcmp(err.item, item) != 0 || err.offset != offset ||
         strcmp(heft__path_base(err.path), path) != 0)) {
        fail_msg("%s: %s: '%s': byte %llu: %s", row, err.path, err.item,
                 (unsigned long long)err.offset, err.message);
    }
}

static void dat_files_that_are_not_what_the_index_says(void **state)
{
    (void)state;
    write_text("index.json", "{\"a\": {\"dtype\": \"float32\", \"shape\": [2, 3]}}");
    expect_open("missing", HEFT_NOT_FOUND, "a.dat", "a", HEFT_NO_OFFSET, "cannot open");
    test_write_file(folder, "a.dat", "12345678901234567890123", 23);
    expect_open("short", HEFT_FORMAT, "a.dat", "a", 23,
                "file has 23 bytes, float32 [2, 3] needs 24");
    test_write_file(folder, "a.dat", "1234567890123456789012345", 25);
    expect_open("long", HEFT_FORMAT, "a.dat", "a", 24,
                "file has 25 bytes, float32 [2, 3] needs 24");
    test_write_file(folder, "a.dat", "123456789012345678901234", 24);
    expect_open("right", HEFT_OK, "", "", 0, "");
    write_text("index.json",
               "{\"a\": {\"dtype\": \"float32\", \"shape\": [1073741824, 4294967295]}}");
    expect_open("huge_claim", HEFT_FORMAT, "a.dat", "a", 24, "needs 18446744069414584320");
    write_text("index.json", "{\"a\": {\"dtype\": \"float32\", \"shape\": [0, 4]}}");
    expect_open("empty_needs_one_byte", HEFT_FORMAT, "a.dat", "a", 1, "needs 1");
    test_write_file(folder, "a.dat", "", 0);
    expect_open("empty_has_none", HEFT_FORMAT, "a.dat", "a", 0, "file has 0 bytes");
    char path[512];
    snprintf(path, sizeof path, "%s/a.dat", folder);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_open("fifo", HEFT_UNSUPPORTED, "a.dat", "a", HEFT_NO_OFFSET, "a FIFO");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    expect_open("folder", HEFT_UNSUPPORTED, "a.dat", "a", HEFT_NO_OFFSET, "a folder");
}

static void safetensors_entries(void **state)
{
    (void)state;
    heft_checkpoint *ckpt = NULL;
    heft_error err;
    float values[2];
    write_safetensors("m.safetensors");
    write_text("index.json",
               pointing("m.safetensors", ", \"weight_name\": \"w\", \"dtype\": \"float32\""));
    test_expect_status(heft_checkpoint_open(ctx, folder, NULL, &ckpt, &err), HEFT_OK, &err, "good");
    assert_int_equal(heft_checkpoint_count(ckpt),
                     1); /* what the index does not name is not in it */
    assert_string_equal(heft_checkpoint_info(ckpt, 0)->name, "t");
    assert_string_equal(heft_checkpoint_info(ckpt, 0)->file, "m.safetensors");
    assert_int_equal(heft_checkpoint_total_bytes(ckpt), 8);
    test_expect_status(heft_checkpoint_read(ckpt, 0, values, sizeof values, &err), HEFT_OK, &err,
                       "t");
    assert_true(values[0] == 1.0F && values[1] == 2.0F);
    heft_checkpoint_close(ckpt);

    write_text("index.json", pointing("m.safetensors", ""));
    expect_open("not_there", HEFT_FORMAT, "index.json", "t", 1, "'t' is not in '");
    write_text("index.json",
               pointing("m.safetensors", ", \"weight_name\": \"w\", \"dtype\": \"bfloat16\""));
    expect_open("dtype", HEFT_FORMAT, "index.json", "t", 1,
                "dtype bfloat16 in the index, float32 in '");
    write_text("index.json", pointing("m.safetensors", ", \"weight_name\": \"n\", \"shape\": [2]"));
    expect_open("shape", HEFT_FORMAT, "index.json", "t", 1, "shape [2] in the index, [1] in '");
    write_text("index.json", pointing("none.safetensors", ""));
    expect_open("no_file", HEFT_NOT_FOUND, "none.safetensors", "t", HEFT_NO_OFFSET, "cannot open");
    write_text("index.json", pointing("index.json", ""));
    expect_open("json", HEFT_UNSUPPORTED, "index.json", "t", 0,
                "not a checkpoint: this is a JSON file");
    write_text("index.json", pointing("", ""));
    expect_open("folder", HEFT_UNSUPPORTED, "", "t", HEFT_NO_OFFSET, "a folder");
    write_text("index.json", "{\"t\": {\"safetensors_file\": \"/dev/zero\"}}");
    expect_open("device", HEFT_UNSUPPORTED, "zero", "t", HEFT_NO_OFFSET, "a device");
    test_write_file(folder, "m.safetensors", "1234567", 7);
    write_text("index.json", pointing("m.safetensors", ""));
    expect_open("malformed", HEFT_FORMAT, "m.safetensors", "t", 0, "file has 7 bytes");
}

/* Two names of one tensor are one storage; a .bin keeps that, safetensors leaves the second out. */
static void two_names_on_one_tensor(void **state)
{
    (void)state;
    heft_checkpoint *ckpt = NULL;
    heft_error err;
    char text[2048];
    write_safetensors("m.safetensors");
    snprintf(text, sizeof text,
             "{\"y\": {\"safetensors_file\": \"%s/m.safetensors\", \"weight_name\": \"w\"},"
             " \"x\": {\"safetensors_file\": \"%s/m.safetensors\", \"weight_name\": \"w\"}}",
             folder, folder);
    write_text("index.json", text);
    test_expect_status(heft_checkpoint_open(ctx, folder, NULL, &ckpt, &err), HEFT_OK, &err, "tied");
    assert_int_equal(heft_checkpoint_count(ckpt), 2);
    assert_int_equal(heft_checkpoint_file_count(ckpt), 1);
    assert_string_equal(heft_checkpoint_info(ckpt, 0)->name, "y");
    assert_int_equal(heft_checkpoint_info(ckpt, 0)->storage,
                     heft_checkpoint_info(ckpt, 1)->storage);
    assert_int_equal(heft_checkpoint_total_bytes(ckpt), 8);
    heft_checkpoint_close(ckpt);
    /* out: each name has its bytes, in the index's order */
    const heft_convert_options options =
        HEFT_OPTIONS(heft_convert_options, .format = HEFT_FORMAT_OFFLOAD);
    heft_write_report *report = NULL;
    test_expect_status(test_convert(ctx, folder, other, &options, &report, &err), HEFT_OK, &err,
                       "convert");
    assert_int_equal(report->file_count, 2);
    assert_string_equal(report->files[0].name, "y.dat");
    assert_int_equal(report->files[1].size_bytes, 8);
    assert_int_equal(report->total_size, 16);
    assert_string_equal(report->index, "index.json");
    heft_write_report_free(report);
    assert_int_equal(test_count_entries(other), 3);
}

static void what_cannot_be_written_is_refused_before_anything_is(void **state)
{
    (void)state;
    char name[300], words[64];
    heft_error err;
    memset(name, 'n', sizeof name);
    name[246] = '\0';
    assert_int_equal(heft__offload_check_writable(name, HEFT_DTYPE_F32, &err), HEFT_OK);
    name[246] = 'n';
    name[247] = '\0';
    assert_int_equal(heft__offload_check_writable(name, HEFT_DTYPE_F32, &err), HEFT_INVALID_ARG);
    snprintf(words, sizeof words, "the name has 247 bytes");
    assert_non_null(strstr(err.message, words));
    static const char *const names[] = {"a/b", "/", ".", ".."};
    for (size_t i = 0; i < COUNT(names); i++) {
        assert_int_equal(heft__offload_check_writable(names[i], HEFT_DTYPE_F32, &err),
                         HEFT_INVALID_ARG);
        assert_string_equal(err.item, names[i]);
    }
    assert_int_equal(heft__offload_check_writable("a", HEFT_DTYPE_F4_E2M1FN_X2, &err),
                     HEFT_INVALID_ARG);
    assert_non_null(strstr(err.message, "cannot hold float4_e2m1fn_x2"));
    assert_int_equal(heft__offload_check_writable("a", HEFT_DTYPE_C32, NULL), HEFT_INVALID_ARG);
}

/* ---- failing allocations --------------------------------------------------------------------- */
static heft_status open_and_convert(heft_ctx *with, void *user, heft_error *err)
{
    (void)user;
    heft_convert_options options =
        HEFT_OPTIONS(heft_convert_options, .format = HEFT_FORMAT_OFFLOAD, .force = true);
    heft_checkpoint *ckpt = NULL;
    uint8_t byte[8];
    heft_status status = heft_checkpoint_open(with, folder, NULL, &ckpt, err);
    if (status == HEFT_OK) {
        status = heft_checkpoint_read(ckpt, 0, byte, sizeof byte, err);
    }
    heft_checkpoint_close(ckpt);
    if (status == HEFT_OK) {
        char fresh[300];
        snprintf(fresh, sizeof fresh, "%s/new", other);
        status = test_convert(with, folder, fresh, &options, NULL, err);
        if (status == HEFT_OK) {
            test_folder_remove(fresh);
        }
    }
    return status;
}

static heft_status verify_it(heft_ctx *with, void *user, heft_error *err)
{
    (void)user;
    const heft_verify_options options = HEFT_OPTIONS(heft_verify_options, .deep = true);
    heft_verify_report *report = NULL;
    heft_status status = test_verify(with, folder, &options, &report, err);
    if (status == HEFT_OK) {
        assert_true(report->ok);
        assert_int_equal(report->tensor_count, 2);
    }
    heft_verify_report_free(report);
    return status;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    char text[2048];
    write_safetensors("m.safetensors");
    test_write_file(folder, "b.dat", "1234", 4);
    snprintf(text, sizeof text,
             "{\"a\": {\"safetensors_file\": \"%s/m.safetensors\", \"weight_name\": \"w\"},"
             " \"b\": {\"dtype\": \"int32\", \"shape\": [1]}}",
             folder);
    write_text("index.json", text);
    test_oom_sweep(open_and_convert, NULL);
    test_oom_sweep(verify_it, NULL);
}

static int setup(void **state)
{
    (void)state;
    ctx = heft_ctx_new(NULL);
    return ctx ? 0 : 1;
}

static int teardown(void **state)
{
    (void)state;
    uint64_t live;
    heft_ctx_memory(ctx, &live, NULL);
    heft_ctx_free(ctx);
    return live == 0 ? 0 : 1;
}

#define IN_FOLDERS(test) cmocka_unit_test_setup_teardown(test, make_folders, remove_folders)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_FOLDERS(golden_tensors_come_in_and_go_out),
        cmocka_unit_test(golden_index_texts_come_back_byte_for_byte),
        cmocka_unit_test(entries_of_both_kinds_are_written_as_python_does),
        cmocka_unit_test(index_refused_at_the_byte_and_the_tensor),
        cmocka_unit_test(odd_but_fine),
        cmocka_unit_test(every_prefix_is_refused),
        cmocka_unit_test(limits_are_kept),
        cmocka_unit_test(told_from_other_json),
        IN_FOLDERS(dat_files_that_are_not_what_the_index_says),
        IN_FOLDERS(safetensors_entries),
        IN_FOLDERS(two_names_on_one_tensor),
        cmocka_unit_test(what_cannot_be_written_is_refused_before_anything_is),
        IN_FOLDERS(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
