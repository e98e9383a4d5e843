/* shard index: what is accepted and refused, and at which byte and for which key; the text that is
 * written; limits.
 *
 * tests/data/index/ has texts that Transformers wrote, which must be reproduced byte for byte, and
 * one small text per defect. Whether the files exist and hold what the index says is tested with
 * the checkpoint. */
#include "support.h"

#include "format/format.h"

#include <stdio.h>
#include <stdlib.h>

#define COUNT(rows) (sizeof(rows) / sizeof(rows)[0])

static heft_ctx *ctx;

/* Parse a text in a block of exactly its size, so that a sanitizer sees a read past its end. */
static heft_status parse_in(heft_ctx *where, const char *text, size_t length,
                            heft__shard_index *out, heft_error *err)
{
    char *copy = malloc(length ? length : 1);
    assert_non_null(copy);
    memcpy(copy, text, length);
    heft_status status = heft__shard_index_parse(where, copy, length, out, err);
    memset(copy, 0xA5, length); /* the index must not point into it */
    free(copy);
    return status;
}

static void write_index(heft__buffer *out, const heft__shard_index *index)
{
    const char **names = calloc(index->entry_count, sizeof *names),
               **files = calloc(index->entry_count, sizeof *files);
    assert_true(names && files);
    for (size_t i = 0; i < index->entry_count; i++) {
        names[i] = index->entries[i].name;
        files[i] = index->files[index->entries[i].file];
    }
    heft__shard_index_write(out, index->metadata, names, files, index->entry_count);
    free(names);
    free(files);
}

static char *read_data(const char *name, size_t *length)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/index/%s", HEFT_TEST_DATA, name);
    return test_read_file(path, length);
}

/* ---- what is fine ---------------------------------------------------------------------------- */
static void golden_texts_come_back_byte_for_byte(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t entries, files;
    } rows[] = {
        {"bert_base_cased_200MB.v4.30.pytorch_model.bin.index.json",                  200, 3},
        {"bert_base_cased_200MB.v5_reloaded_then_saved.model.safetensors.index.json", 199, 3},
        {"bert_base_cased_200MB.v5_v4.model.safetensors.index.json",                  199, 3},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft__shard_index index;
        heft__buffer out;
        heft_error err;
        size_t length;
        char *text = read_data(rows[i].name, &length);
        test_expect_status(parse_in(ctx, text, length, &index, &err), HEFT_OK, &err, rows[i].name);
        assert_int_equal(index.entry_count, rows[i].entries);
        assert_int_equal(index.file_count, rows[i].files);
        heft__buffer_init(&out, ctx);
        write_index(&out, &index);
        assert_false(out.failed);
        assert_int_equal(out.size, length);
        assert_memory_equal(out.data, text, length);
        heft__buffer_fini(&out);
        heft__shard_index_fini(&index);
        free(text);
    }
}

static void files_in_byte_order_entries_as_they_stand(void **state)
{
    (void)state;
    static const char text[] = "{\"weight_map\": {\"z\": \"b.bin\", \"a\": \"a.bin\", "
                               "\"m\\u00e9\": \"b\\u002ebin\", \"b\": \"\\u0043.bin\"},"
                               " \"other\": [{}], \"metadata\": {\"total_size\": 8}}";
    static const struct {
        const char *name, *file;
        uint64_t offset;
    } rows[] = {
        {"z",         "b.bin", 16},
        {"a",         "a.bin", 30},
        {"m\xc3\xa9", "b.bin", 44},
        {"b",         "C.bin", 69}
    };
    heft__shard_index index;
    heft_error err;
    test_expect_status(parse_in(ctx, text, sizeof text - 1, &index, &err), HEFT_OK, &err, "order");
    assert_int_equal(index.entry_count, COUNT(rows));
    assert_int_equal(index.file_count, 3);
    assert_string_equal(index.files[0], "C.bin");
    assert_string_equal(index.files[1], "a.bin");
    assert_string_equal(index.files[2], "b.bin");
    for (size_t i = 0; i < COUNT(rows); i++) {
        assert_string_equal(index.entries[i].name, rows[i].name);
        assert_string_equal(index.files[index.entries[i].file], rows[i].file);
        assert_int_equal(index.entries[i].offset, rows[i].offset);
    }
    const heft__json_value *size = heft__json_member(index.metadata, "total_size");
    assert_non_null(size);
    assert_string_equal(size->text, "8");
    assert_int_equal(text[size->offset], '8'); /* offsets are those of the file */
    heft__shard_index_fini(&index);
    heft__shard_index_fini(&index); /* once more, and none at all */
    heft__shard_index_fini(NULL);
}

static void odd_but_fine(void **state)
{
    (void)state;
    /* clang-format off */
    static const struct {
        const char *name, *text;
        bool metadata;
    } rows[] = {
        {"no_metadata", "{\"weight_map\":{\"a\":\"f\"}}", false},
        {"null_metadata", "{\"metadata\":null,\"weight_map\":{\"a\":\"f\"}}", false},
        {"empty_metadata", "{\"metadata\":{},\"weight_map\":{\"a\":\"f\"}}", true},
        {"nested_metadata",
         "{\"metadata\":{\"x\":{\"y\":[1,\"z\",null]}},\"weight_map\":{\"a\":\"f\"}}", true},
        {"fields_spelt_with_escapes", "{\"\\u006detadata\":{},\"weight\\u005fmap\":{\"a\":\"f\"}}",
         true},
        {"floats_as_python_writes_them",
         "{\"metadata\":{\"total_size\":NaN,\"x\":[-Infinity]},\"y\":Infinity,\"weight_map\":{\"a\":\"f\"}}",
         true},
        {"empty_tensor_name", "{\"weight_map\":{\"\":\"f\"}}", false},
        {"dots_in_file_names",
         "{\"weight_map\":{\"a\":\"...\",\"b\":\"..a\",\"c\":\".f\",\"d\":\"f..\"}}", false},
        {"colon_and_space_in_a_file_name", "{\"weight_map\":{\"a\":\"c: f\"}}", false},
    };
    /* clang-format on */
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft__shard_index index;
        heft_error err;
        test_expect_status(parse_in(ctx, rows[i].text, strlen(rows[i].text), &index, &err), HEFT_OK,
                           &err, rows[i].name);
        assert_true((index.metadata != NULL) == rows[i].metadata);
        heft__shard_index_fini(&index);
    }
}

/* ---- what is refused ------------------------------------------------------------------------- */
static void expect_refused(const char *row, const char *text, size_t length, heft_status expected,
                           uint64_t offset, const char *item, const char *words)
{
    heft__shard_index index, before;
    heft_error err;
    memset(&index, 0x5A, sizeof index);
    before = index;
    test_expect_status(parse_in(ctx, text, length, &index, &err), expected, &err, row);
    if (err.offset != offset || strcmp(err.item, item) != 0 || !strstr(err.message, words)) {
        char line[1400];
        heft_error_format(&err, line, sizeof line);
        fail_msg("%s: %s", row, line);
    }
    assert_memory_equal(&index, &before, sizeof index);
    assert_int_equal(parse_in(ctx, text, length, &index, NULL),
                     expected); /* a NULL error is allowed */
}

static void texts_with_one_defect(void **state)
{
    (void)state;
    /* clang-format off */
    static const struct {
        const char *name;
        heft_status status;
        uint64_t offset;
        const char *item, *words;
    } rows[] = {
        {"ix_absolute", HEFT_REFUSED, 47, "a",
         "'@ABSDIR@/model-00001-of-00002.safetensors' leaves the index's folder"},
        {"ix_bom", HEFT_FORMAT, 0, "", "byte order mark"},
        {"ix_dup_keys", HEFT_FORMAT, 121, "a", "key occurs twice, first at byte 43"},
        {"ix_empty_map", HEFT_FORMAT, 42, "", "weight_map contains no tensor"},
        {"ix_map_is_list", HEFT_FORMAT, 28, "", "weight_map must be an object, found an array"},
        {"ix_map_missing", HEFT_FORMAT, 0, "", "field 'weight_map' is missing"},
        {"ix_not_json", HEFT_FORMAT, 0, "", "expected a value, found 'w'"},
        {"ix_not_object", HEFT_FORMAT, 0, "", "expected an object, found an array"},
        {"ix_nul_in_file_name", HEFT_REFUSED, 86, "b",
         "file name 'model-00002-of-00002.safetensors' contains a NUL"},
        {"ix_parent", HEFT_REFUSED, 47, "a",
         "file name '../outside.safetensors' leaves the index's folder"},
        {"ix_value_null", HEFT_FORMAT, 86, "b", "file name must be a string, found null"},
        {"ix_value_number", HEFT_FORMAT, 86, "b", "file name must be a string, found a number"},
        {"ix_ok_metadata_missing", HEFT_OK, 0, "", ""},
        {"ix_ok_total_size_float", HEFT_OK, 0, "", ""},
        {"ix_ok_total_size_wrong", HEFT_OK, 0, "", ""},
    };
    /* clang-format on */
    for (size_t i = 0; i < COUNT(rows); i++) {
        char file[64];
        size_t length;
        snprintf(file, sizeof file, "%s.index.json", rows[i].name);
        char *text = read_data(file, &length);
        if (rows[i].status == HEFT_OK) {
            heft__shard_index index;
            heft_error err;
            test_expect_status(parse_in(ctx, text, length, &index, &err), HEFT_OK, &err,
                               rows[i].name);
            assert_int_equal(index.entry_count, 2);
            assert_int_equal(index.file_count, 2);
            heft__shard_index_fini(&index);
        } else {
            expect_refused(rows[i].name, text, length, rows[i].status, rows[i].offset, rows[i].item,
                           rows[i].words);
        }
        free(text);
    }
}

/* clang-format off */
static const struct {
    const char *name, *text;
    heft_status status;
    uint64_t offset;
    const char *item, *words;
} refused[] = {
    {"empty_text", "", HEFT_FORMAT, 0, "", "the text ends"},
    {"a_scalar", "3", HEFT_FORMAT, 0, "", "expected an object, found a number"},
    {"empty_object", "{}", HEFT_FORMAT, 0, "", "field 'weight_map' is missing"},
    {"garbage_behind", "{\"weight_map\":{\"a\":\"f\"}} x", HEFT_FORMAT, 25, "",
     "nothing but white space"},
    {"map_is_null", "{\"weight_map\":null}", HEFT_FORMAT, 14, "",
     "weight_map must be an object, found null"},
    {"map_twice", "{\"weight_map\":{\"a\":\"f\"},\"weight_map\":{}}", HEFT_FORMAT, 24, "",
     "'weight_map' occurs twice"},
    {"metadata_twice", "{\"metadata\":{},\"metadata\":null}", HEFT_FORMAT, 15, "",
     "'metadata' occurs twice"},
    {"metadata_is_a_list", "{\"metadata\":[]}", HEFT_FORMAT, 12, "",
     "metadata must be an object, found an array"},
    {"metadata_is_a_string", "{\"metadata\":\"x\"}", HEFT_FORMAT, 12, "",
     "metadata must be an object, found a string"},
    {"metadata_key_twice", "{\"metadata\":{\"x\":1,\"x\":2}}", HEFT_FORMAT, 19, "x",
     "key 'x' occurs twice"},
    {"value_is_an_object", "{\"weight_map\":{\"a\":{}}}", HEFT_FORMAT, 19, "a",
     "must be a string, found an object"},
    {"value_is_true", "{\"weight_map\":{\"a\":true}}", HEFT_FORMAT, 19, "a",
     "must be a string, found true"},
    {"value_is_malformed", "{\"weight_map\":{\"a\":\"\xff\"}}", HEFT_FORMAT, 20, "a",
     "invalid UTF-8 byte 0xff"},
    {"twice_in_order", "{\"weight_map\":{\"a\":\"f\",\"a\":\"f\"}}", HEFT_FORMAT, 23, "a",
     "first at byte 15"},
    {"twice_out_of_order", "{\"weight_map\":{\"b\":\"f\",\"a\":\"f\",\"b\":\"f\"}}", HEFT_FORMAT,
     31, "b", "first at byte 15"},
    {"twice_behind_a_rise", "{\"weight_map\":{\"b\":\"f\",\"a\":\"f\",\"c\":\"f\",\"c\":\"f\"}}",
     HEFT_FORMAT, 39, "c", "first at byte 31"},
    {"twice_with_escapes", "{\"weight_map\":{\"a\":\"f\",\"b\":\"f\",\"\\u0061\":\"g\"}}",
     HEFT_FORMAT, 31, "a", "first at byte 15"},
    {"nul_in_a_tensor_name", "{\"weight_map\":{\"a\\u0000b\":\"f\"}}", HEFT_FORMAT, 15, "a",
     "tensor name contains a NUL"},
    {"file_name_empty", "{\"weight_map\":{\"a\":\"\"}}", HEFT_REFUSED, 19, "a",
     "file name '' is empty"},
    {"file_name_absolute", "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", HEFT_REFUSED, 19, "a",
     "file name '/etc/passwd' is absolute"},
    {"file_name_dot", "{\"weight_map\":{\"a\":\".\"}}", HEFT_REFUSED, 19, "a",
     "file name '.' leaves"},
    {"file_name_dot_dot", "{\"weight_map\":{\"a\":\"..\"}}", HEFT_REFUSED, 19, "a",
     "file name '..' leaves"},
    {"file_name_in_a_folder", "{\"weight_map\":{\"a\":\"d/f\"}}", HEFT_REFUSED, 19, "a",
     "file name 'd/f' leaves"},
    {"slash_spelt_with_an_escape", "{\"weight_map\":{\"a\":\"..\\u002ff\"}}", HEFT_REFUSED, 19, "a",
     "'../f' leaves"},
    {"escaped_slash", "{\"weight_map\":{\"a\":\"..\\/f\"}}", HEFT_REFUSED, 19, "a",
     "'../f' leaves"},
    {"backslash", "{\"weight_map\":{\"a\":\"..\\\\f\"}}", HEFT_REFUSED, 19, "a", "'..\\f' leaves"},
    {"drive", "{\"weight_map\":{\"a\":\"C:\\\\f\"}}", HEFT_REFUSED, 19, "a", "'C:\\f' leaves"},
    {"nul_and_more", "{\"weight_map\":{\"a\":\"f\\u0000\"}}", HEFT_REFUSED, 19, "a",
     "file name 'f' contains a NUL"},
    {"second_name_leaves", "{\"weight_map\":{\"a\":\"f\",\"b\":\"../f\"}}", HEFT_REFUSED, 27, "b",
     "'../f' leaves"},
};
/* clang-format on */

static void refused_at_the_byte_and_the_key(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(refused); i++) {
        expect_refused(refused[i].name, refused[i].text, strlen(refused[i].text), refused[i].status,
                       refused[i].offset, refused[i].item, refused[i].words);
    }
}

static void every_prefix_is_refused(void **state)
{
    (void)state;
    static const char text[] = "{\"metadata\": {\"total_size\": 8}, \"weight_map\": {\"a\": "
                               "\"f.bin\", \"b\\u00e9\": \"g.bin\"}}";
    for (size_t cut = 0; cut < sizeof text - 1; cut++) {
        heft__shard_index index;
        heft_error err;
        test_expect_status(parse_in(ctx, text, cut, &index, &err), HEFT_FORMAT, &err, "prefix");
        assert_int_equal(err.offset, cut);
    }
}

static void limits_are_kept(void **state)
{
    (void)state;
    static const char text[] =
        "{\"weight_map\":{\"a\":\"f\",\"bcd\":\"g\",\"e\":\"f\"}}"; /* 42 bytes */
    /* clang-format off */
    static const struct {
        const char *name;
        heft_limits limits;
        heft_status status;
        uint64_t offset;
        const char *item, *words;
    } rows[] = {
        {"all_just_enough", {.index_bytes = 42, .tensors = 3, .name_bytes = 3, .shards = 2,
         .json_depth = 2}, HEFT_OK, 0, "", ""},
        {"bytes", {.index_bytes = 41}, HEFT_LIMIT, HEFT_NO_OFFSET, "",
         "index has 42 bytes, the limit is 41"},
        {"tensors", {.tensors = 2}, HEFT_LIMIT, 33, "e", "more than 2 tensors"},
        {"name_bytes", {.name_bytes = 2}, HEFT_LIMIT, 23, "bcd",
         "tensor name has 3 bytes, the limit is 2"},
        {"shards", {.shards = 1}, HEFT_LIMIT, 29, "bcd", "more than 1 files"},
        {"depth", {.json_depth = 1}, HEFT_LIMIT, 14, "", "nested more than 1 levels deep"},
    };
    /* clang-format on */
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_limits limits = rows[i].limits;
        limits.struct_size = sizeof limits;
        const heft_ctx_options options = HEFT_OPTIONS(heft_ctx_options, .limits = &limits);
        heft_ctx *limited = heft_ctx_new(&options);
        heft__shard_index index;
        heft_error err;
        assert_non_null(limited);
        test_expect_status(parse_in(limited, text, sizeof text - 1, &index, &err), rows[i].status,
                           &err, rows[i].name);
        if (rows[i].status == HEFT_OK) {
            heft__shard_index_fini(&index);
        } else if (err.offset != rows[i].offset || strcmp(err.item, rows[i].item) != 0 ||
                   !strstr(err.message, rows[i].words)) {
            fail_msg("%s: byte %llu: %s: %s", rows[i].name, (unsigned long long)err.offset,
                     err.item, err.message);
        }
        heft_ctx_free(limited);
    }
}

static void long_names_are_cut_in_messages(void **state)
{
    (void)state;
    char text[2048], name[1001];
    heft__shard_index index;
    heft_error err;
    memset(name, 'n', 1000);
    name[1000] = '\0';
    snprintf(text, sizeof text, "{\"weight_map\":{\"%s\":\"/%s\"}}", name, name);
    assert_int_equal(parse_in(ctx, text, strlen(text), &index, &err), HEFT_REFUSED);
    assert_true(strlen(err.message) < 200 && strstr(err.message, "is absolute"));
    assert_true(strlen(err.item) < sizeof err.item && strncmp(err.item, "nnn", 3) == 0);
}

/* ---- many keys ------------------------------------------------------------------------------- */
/* A text with 100,000 keys over 1,000 files; `step` prime to 100,000 shuffles them. */
static void many_keys_text(heft__buffer *out, unsigned step, const char *last)
{
    heft__buffer_text(out, "{\"weight_map\":{");
    for (unsigned i = 0; i < 100000; i++) {
        unsigned key = (unsigned)((uint64_t)i * step % 100000);
        heft__buffer_format(out, "\"layers.%05u.weight\":\"model-%05u-of-01000.bin\",", key,
                            key / 100 + 1);
    }
    heft__buffer_format(out, "\"%s\":\"model-00001-of-01000.bin\"}}", last);
    assert_false(out->failed);
}

static void a_hundred_thousand_keys(void **state)
{
    (void)state;
    static const unsigned steps[] = {1, 99999, 31337}; /* sorted, falling, mixed */
    for (size_t i = 0; i < COUNT(steps); i++) {
        heft__buffer text;
        heft__shard_index index;
        heft_error err;
        heft__buffer_init(&text, ctx);
        many_keys_text(&text, steps[i], "z");
        test_expect_status(parse_in(ctx, (char *)text.data, text.size, &index, &err), HEFT_OK, &err,
                           "many");
        assert_int_equal(index.entry_count, 100001);
        assert_int_equal(index.file_count, 1000);
        for (size_t k = 0; k < 100000; k += 997) {
            unsigned key = (unsigned)((uint64_t)k * steps[i] % 100000);
            char name[64];
            snprintf(name, sizeof name, "layers.%05u.weight", key);
            assert_string_equal(index.entries[k].name, name);
            assert_int_equal(index.entries[k].file, key / 100);
        }
        heft__shard_index_fini(&index);
        text.size = 0;
        many_keys_text(&text, steps[i], "layers.54321.weight");
        assert_int_equal(parse_in(ctx, (char *)text.data, text.size, &index, &err), HEFT_FORMAT);
        assert_string_equal(err.item, "layers.54321.weight");
        assert_int_equal(memcmp(text.data + err.offset, "\"layers.54321.weight\"", 21), 0);
        heft__buffer_fini(&text);
    }
}

/* ---- writing --------------------------------------------------------------------------------- */
static void written_as_python_does(void **state)
{
    (void)state;
    static const char *const names[] = {"b",    "a.2", "a.10", "\xf0\x9f\x98\x80", "\xef\xbf\xbd",
                                        "q\"\n"};
    static const char *const files[] = {"f", "g", "f", "\xc3\xa9.bin", "f", "f"};
    static const char expected[] = "{\n  \"metadata\": {\n    \"total_parameters\": 2,\n    "
                                   "\"total_size\": 8.0\n  },\n  \"weight_map\": {\n"
                                   "    \"a.10\": \"f\",\n    \"a.2\": \"g\",\n    \"b\": \"f\",\n "
                                   "   \"q\\\"\\n\": \"f\",\n    \"\\ufffd\": \"f\",\n"
                                   "    \"\\ud83d\\ude00\": \"\\u00e9.bin\"\n  }\n}\n";
    heft__arena arena;
    heft__buffer out;
    heft__arena_init(&arena, ctx);
    heft__json_value *metadata = heft__json_new_object(&arena);
    assert_non_null(metadata);
    assert_true(
        heft__json_set(&arena, metadata, "total_size", heft__json_new_number(&arena, "8.00")));
    assert_true(
        heft__json_set(&arena, metadata, "total_parameters", heft__json_new_number(&arena, "2")));
    heft__buffer_init(&out, ctx);
    heft__shard_index_write(&out, metadata, names, files, COUNT(names));
    assert_false(out.failed);
    assert_int_equal(out.size, sizeof expected - 1);
    assert_memory_equal(out.data, expected, out.size);
    assert_null(metadata->key); /* borrowed: as it was */
    out.size = 0;
    heft__shard_index_write(&out, heft__json_new_object(&arena), names, files, 0);
    heft__buffer_byte(&out, 0);
    assert_string_equal((char *)out.data, "{\n  \"metadata\": {},\n  \"weight_map\": {}\n}\n");
    heft__buffer_fini(&out);
    heft__arena_fini(&arena);
}

/* ---- a file, no memory ----------------------------------------------------------------------- */
static void read_from_a_file(void **state)
{
    (void)state;
    char folder[256], path[512];
    heft__shard_index index;
    heft_error err;
    test_folder_make(folder);
    snprintf(path, sizeof path, "%s/x.index.json", folder);
    test_write_file(folder, "x.index.json", "{\"weight_map\":{\"a\":\"f\"}}", 24);
    test_expect_status(heft__shard_index_read(ctx, path, &index, &err), HEFT_OK, &err, "file");
    assert_int_equal(index.entry_count, 1);
    heft__shard_index_fini(&index);
    test_write_file(folder, "x.index.json", "{\"weight_map\":{\"a\":7}}", 22);
    assert_int_equal(heft__shard_index_read(ctx, path, &index, &err), HEFT_FORMAT);
    assert_int_equal(err.offset, 19);
    assert_string_equal(err.item, "a");
    assert_string_equal(err.path, path);
    snprintf(path, sizeof path, "%s/none.index.json", folder);
    assert_int_equal(heft__shard_index_read(ctx, path, &index, &err), HEFT_NOT_FOUND);
    test_folder_remove(folder);
}

static heft_status parse_and_write(heft_ctx *failing, void *user, heft_error *err)
{
    const heft__buffer *text = user;
    heft__shard_index index, before;
    heft__buffer out;
    memset(&index, 0x5A, sizeof index);
    before = index;
    heft_status status = heft__shard_index_parse(failing, text->data, text->size, &index, err);
    if (status != HEFT_OK) {
        assert_memory_equal(&index, &before, sizeof index);
        return status;
    }
    heft__buffer_init(&out, failing);
    write_index(&out, &index);
    status = heft__buffer_check(&out, err);
    heft__buffer_fini(&out);
    heft__shard_index_fini(&index);
    return status;
}

static void allocations_may_fail(void **state)
{
    (void)state;
    for (unsigned falling = 0; falling < 2; falling++) { /* falling keys need the map */
        heft__buffer text;
        heft__buffer_init(&text, ctx);
        heft__buffer_text(
            &text, "{\"metadata\":{\"total_size\":8,\"more\":[[{\"x\":\"y\"}]]},\"weight_map\":{");
        for (unsigned i = 0; i < 200; i++) {
            unsigned key = falling ? 199 - i : i;
            heft__buffer_format(&text, "%s\"layer %03u\":\"f\\u002e%02u\"", i ? "," : "", key,
                                key / 5);
        }
        heft__buffer_text(&text, "}}");
        assert_false(text.failed);
        test_oom_sweep(parse_and_write, &text);
        heft__buffer_fini(&text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_texts_come_back_byte_for_byte),
        cmocka_unit_test(files_in_byte_order_entries_as_they_stand),
        cmocka_unit_test(odd_but_fine),
        cmocka_unit_test(texts_with_one_defect),
        cmocka_unit_test(refused_at_the_byte_and_the_key),
        cmocka_unit_test(every_prefix_is_refused),
        cmocka_unit_test(limits_are_kept),
        cmocka_unit_test(long_names_are_cut_in_messages),
        cmocka_unit_test(a_hundred_thousand_keys),
        cmocka_unit_test(written_as_python_does),
        cmocka_unit_test(read_from_a_file),
        cmocka_unit_test(allocations_may_fail),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests_name("shard_index", tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
