/* json: what the pull reader takes and refuses, and at which byte; the tree; the writer against
 * Python's text.
 *
 * Every text is handed over in a block of exactly its size, so that a sanitizer sees a read past
 * its end. The Python texts are json.dumps(json.loads(text), indent=2, sort_keys=True) of
 * CPython 3.11. */
#include "support.h"

#include "json/json.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define TEXT(literal) literal, sizeof(literal) - 1
#define COUNT(rows) (sizeof(rows) / sizeof(rows)[0])

static heft_ctx *ctx;

static char *exact_copy(const char *text, size_t length)
{
    char *copy = malloc(length ? length : 1);
    assert_non_null(copy);
    memcpy(copy, text, length);
    return copy;
}

/* Read a whole text token by token. */
static heft_status read_all(const char *text, size_t length, uint32_t depth_limit, heft_error *err)
{
    char *copy = exact_copy(text, length);
    heft__json_reader reader;
    heft__json_token token;
    heft_status status;
    heft__json_init(&reader, copy, length, 0, depth_limit);
    do {
        status = heft__json_next(&reader, &token, err);
    } while (status == HEFT_OK && token.kind != HEFT__JSON_END);
    free(copy);
    return status;
}

/* The tree of a text in an arena that the caller frees. */
static heft_status parse(heft__arena *arena, const char *text, size_t length,
                         heft__json_value **out, heft_error *err)
{
    char *copy = exact_copy(text, length); /* the tree must not point into it */
    heft__arena_init(arena, ctx);
    heft_status status = heft__json_parse(arena, copy, length, 128, out, err);
    free(copy);
    return status;
}

static heft__json_value *parsed(heft__arena *arena, const char *text)
{
    heft_error err;
    heft__json_value *root = NULL;
    test_expect_status(parse(arena, text, strlen(text), &root, &err), HEFT_OK, &err, text);
    assert_non_null(root);
    return root;
}

static void expect_text(heft__buffer *buffer, const char *expected, const char *row)
{
    assert_false(buffer->failed);
    size_t length = strlen(expected);
    if (buffer->size != length || memcmp(buffer->data, expected, length) != 0) {
        fail_msg("%s: expected\n%s\nfound\n%.*s", row, expected, (int)buffer->size,
                 (const char *)buffer->data);
    }
    heft__buffer_fini(buffer);
}

/* ---- reader ---------------------------------------------------------------------------------- */
static void accepts_what_is_json(void **state)
{
    (void)state;
    /* clang-format off */
    static const struct {
        const char *name, *text;
        size_t length;
    } rows[] = {
        {"scalar_string", TEXT("\"a\"")},
        {"scalar_number", TEXT("0")},
        {"scalar_true", TEXT("true")},
        {"white_space_around", TEXT(" \t\r\n{ \"a\" : [ 1 , 2 ] , \"b\" : { } } \n")},
        {"empty_array_and_object", TEXT("[[],{},[ ],{ }]")},
        {"numbers",
         TEXT("[0,-0,1,-1,0.5,-0.5,1e5,1E5,1e+5,1e-5,0e0,0.0e-00,10,18446744073709551616]")},
        {"escapes", TEXT("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\u00e9\\uD83D\\uDe00\"")},
        {"delete_is_no_control", TEXT("\"\x7f\"")},
        {"two_three_four_bytes", TEXT("\"\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0"
         "\x90\x80\x80\xf4\x8f\xbf\xbf\"")},
        {"byte_order_mark_in_a_string", TEXT("\"\xef\xbb\xbf\"")},
        {"keys_twice_are_the_callers", TEXT("{\"a\":1,\"a\":2}")},
        {"empty_key", TEXT("{\"\":\"\"}")},
    };
    /* clang-format on */
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_error err;
        test_expect_status(read_all(rows[i].text, rows[i].length, 128, &err), HEFT_OK, &err,
                           rows[i].name);
    }
}

struct malformed {
    const char *name, *text;
    size_t length;
    uint64_t offset;
    const char *words;
};

/* clang-format off */
static const struct malformed malformed[] = {
    {"nothing", TEXT(""), 0, "the text ends early, expected a value"},
    {"only_white_space", TEXT(" \n"), 2, "the text ends early, expected a value"},
    {"byte_order_mark", TEXT("\xef\xbb\xbf{}"), 0, "byte order mark"},
    {"byte_order_mark_later", TEXT(" \xef\xbb\xbf{}"), 1, "found byte 0xef"},
    {"no_break_space", TEXT("[\xc2\xa0]"), 1, "found byte 0xc2"},
    {"form_feed", TEXT("[\f]"), 1, "found byte 0x0c"},
    {"nul_behind", TEXT("{}\0"), 2, "found byte 0x00"},
    {"second_value", TEXT("{} {}"), 3, "nothing but white space after the value, found '{'"},
    {"comment", TEXT("[1 // x\n]"), 3, "expected ',' or ']', found '/'"},
    {"single_quotes", TEXT("{'a':1}"), 1, "expected a key or '}', found '''"},
    {"bare_key", TEXT("{a:1}"), 1, "expected a key or '}', found 'a'"},
    {"number_as_key", TEXT("{1:1}"), 1, "expected a key or '}'"},
    {"no_colon", TEXT("{\"a\" 1}"), 5, "expected ':', found '1'"},
    {"no_value", TEXT("{\"a\":}"), 5, "expected a value, found '}'"},
    {"no_comma_in_object", TEXT("{\"a\":1 \"b\":2}"), 7, "expected ',' or '}', found '\"'"},
    {"no_comma_in_array", TEXT("[1 2]"), 3, "expected ',' or ']', found '2'"},
    {"comma_at_the_end_of_an_object", TEXT("{\"a\":1,}"), 7, "expected a key, found '}'"},
    {"comma_at_the_end_of_an_array", TEXT("[1,]"), 3, "expected a value, found ']'"},
    {"comma_first", TEXT("[,1]"), 1, "expected a value, found ','"},
    {"two_commas", TEXT("[1,,2]"), 3, "expected a value, found ','"},
    {"closed_by_the_other", TEXT("[1}"), 2, "expected ',' or ']', found '}'"},
    {"object_closed_by_the_other", TEXT("{\"a\":[]]"), 7, "expected ',' or '}', found ']'"},
    {"closed_too_often", TEXT("[]]"), 2, "nothing but white space"},
    {"closed_only", TEXT("]"), 0, "expected a value, found ']'"},
    {"object_cut", TEXT("{\"a\":1"), 6, "the text ends early, expected ',' or '}'"},
    {"leading_zero", TEXT("[01]"), 2, "no digit after a leading zero"},
    {"negative_leading_zero", TEXT("-012"), 2, "no digit after a leading zero"},
    {"two_zeros", TEXT("00"), 1, "no digit after a leading zero"},
    {"plus", TEXT("[+1]"), 1, "expected a value, found '+'"},
    {"no_digit_before_the_point", TEXT("[.5]"), 1, "expected a value, found '.'"},
    {"no_digit_behind_the_point", TEXT("[1.]"), 3, "expected a digit, found ']'"},
    {"exponent_behind_the_point", TEXT("[1.e5]"), 3, "expected a digit, found 'e'"},
    {"no_exponent", TEXT("[1e]"), 3, "expected a digit, found ']'"},
    {"exponent_of_a_sign", TEXT("[1e+]"), 4, "expected a digit, found ']'"},
    {"only_minus", TEXT("-"), 1, "the text ends early, expected a digit"},
    {"minus_and_letter", TEXT("-infinity"), 1, "expected a digit, found 'i'"},
    {"not_a_number", TEXT("[Nan]"), 1, "expected a value, found 'N'"},
    {"infinity", TEXT("[Infinite]"), 1, "expected a value, found 'I'"},
    {"hexadecimal", TEXT("[0x1]"), 2, "expected ',' or ']', found 'x'"},
    {"capital_true", TEXT("True"), 0, "expected a value, found 'T'"},
    {"wrong_word", TEXT("[nul]"), 1, "expected a value, found 'n'"},
    {"cut_word", TEXT("[fals"), 5, "the text ends early, expected false"},
    {"word_runs_on", TEXT("[truex]"), 5, "expected ',' or ']', found 'x'"},
    {"string_cut", TEXT("\"abc"), 4, "the text ends inside a string"},
    {"string_cut_behind_eight", TEXT("\"abcdefghijk"), 12, "the text ends inside a string"},
    {"newline_in_a_string", TEXT("\"a\nb\""), 2, "control character 0x0a"},
    {"nul_in_a_string", TEXT("\"abcdefghij\0\""), 11, "control character 0x00"},
    {"last_control_character", TEXT("\"\x1f\""), 1, "control character 0x1f"},
    {"unknown_escape", TEXT("\"ab\\x41\""), 4, "expected the letter of an escape, found 'x'"},
    {"escape_of_nul", TEXT("\"\\\0\""), 2, "expected the letter of an escape, found byte 0x00"},
    {"capital_u", TEXT("\"\\U0041\""), 2, "expected the letter of an escape, found 'U'"},
    {"escape_cut", TEXT("\"ab\\"), 4, "the text ends early, expected the letter of an escape"},
    {"three_hex_digits", TEXT("\"\\u004\""), 6, "expected a hex digit, found '\"'"},
    {"no_hex_digit", TEXT("\"\\u00g0\""), 5, "expected a hex digit, found 'g'"},
    {"hex_cut", TEXT("\"\\u00"), 5, "the text ends early, expected a hex digit"},
    {"lone_high_surrogate", TEXT("\"a\\ud83d\""), 2, "unpaired surrogate"},
    {"high_and_letter", TEXT("\"\\ud83dx\""), 1, "unpaired surrogate"},
    {"high_and_other_escape", TEXT("\"\\ud83d\\n\""), 1, "unpaired surrogate"},
    {"two_high_surrogates", TEXT("\"\\ud83d\\ud83d\""), 1, "unpaired surrogate"},
    {"high_and_plain_escape", TEXT("\"\\udbff\\u0041\""), 1, "unpaired surrogate"},
    {"lone_low_surrogate", TEXT("\"\\ude00\\ud83d\""), 1, "unpaired surrogate"},
    {"low_half_not_hex", TEXT("\"\\ud83d\\ude0x\""), 12, "expected a hex digit, found 'x'"},
    {"low_half_cut", TEXT("\"\\ud83d\\ude"), 11, "the text ends early, expected a hex digit"},
    {"overlong_two", TEXT("\"a\xc0\x80\""), 2, "invalid UTF-8 byte 0xc0"},
    {"overlong_slash", TEXT("\"\xc1\xaf\""), 1, "invalid UTF-8 byte 0xc1"},
    {"overlong_three", TEXT("\"\xe0\x9f\xbf\""), 1, "invalid UTF-8 byte 0xe0"},
    {"overlong_four", TEXT("\"\xf0\x8f\xbf\xbf\""), 1, "invalid UTF-8 byte 0xf0"},
    {"surrogate_bytes", TEXT("\"abc\xed\xa0\x80\""), 4, "invalid UTF-8 byte 0xed"},
    {"beyond_10ffff", TEXT("\"\xf4\x90\x80\x80\""), 1, "invalid UTF-8 byte 0xf4"},
    {"five_byte_form", TEXT("\"\xf8\x88\x80\x80\x80\""), 1, "invalid UTF-8 byte 0xf8"},
    {"stray_continuation", TEXT("\"abcdefgh\x80\""), 9, "invalid UTF-8 byte 0x80"},
    {"sequence_cut_by_the_quote", TEXT("\"\xc3\xa9\xe2\x82\""), 3, "invalid UTF-8 byte 0xe2"},
    {"the_first_fault_counts", TEXT("\"\xff\n\\x"), 1, "invalid UTF-8 byte 0xff"},
    {"in_a_key", TEXT("{\"\xff\":1}"), 2, "invalid UTF-8 byte 0xff"},
};
/* clang-format on */

static void refuses_what_is_not_json(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(malformed); i++) {
        const struct malformed *row = &malformed[i];
        heft__json_value *untouched = (heft__json_value *)&ctx, *root = untouched;
        heft__arena arena;
        heft_error err;
        for (int tree = 0; tree < 2; tree++) { /* the tree says the same as the reader */
            heft_status status = tree ? parse(&arena, row->text, row->length, &root, &err)
                                      : read_all(row->text, row->length, 128, &err);
            test_expect_status(status, HEFT_FORMAT, &err, row->name);
            if (err.status != HEFT_FORMAT || err.offset != row->offset ||
                !strstr(err.message, row->words)) {
                fail_msg("%s: byte %llu: %s", row->name, (unsigned long long)err.offset,
                         err.message);
            }
        }
        assert_ptr_equal(root, untouched);
        heft__arena_fini(&arena);
        assert_int_equal(read_all(row->text, row->length, 128, NULL),
                         HEFT_FORMAT); /* a NULL error is allowed */
    }
}

/* What Python writes for floats that JSON does not have: in trees only, and written back as it was. */
static void trees_take_what_python_writes(void **state)
{
    (void)state;
    static const char text[] = "{\n  \"a\": Infinity,\n  \"b\": [\n    -Infinity,\n    NaN\n  ]\n}";
    static const char *const wrong[] = {"infinity", "nan",       "-NaN", "+Infinity",
                                        "Infinit",  "Infinityy", "[NaN", "{NaN: 1}"};
    heft__json_value *root = NULL;
    heft__arena arena;
    heft__buffer out;
    heft_error err = {0};
    double value;
    uint64_t whole;
    test_expect_status(parse(&arena, text, sizeof text - 1, &root, &err), HEFT_OK, &err, "python");
    const heft__json_value *a = heft__json_member(root, "a"), *b = heft__json_member(root, "b");
    assert_true(heft__json_as_double(a, &value) && value > 0 && isinf(value));
    assert_true(heft__json_as_double(b->first, &value) && value < 0 && isinf(value));
    assert_true(heft__json_as_double(b->last, &value) && isnan(value));
    assert_false(heft__json_as_u64(a, &whole));
    heft__buffer_init(&out, ctx);
    heft__json_write_python(&out, root);
    assert_int_equal(out.size, sizeof text - 1);
    assert_memory_equal(out.data, text, out.size);
    heft__buffer_fini(&out);
    heft__arena_fini(&arena);
    for (size_t i = 0; i < COUNT(wrong); i++) {
        test_expect_status(parse(&arena, wrong[i], strlen(wrong[i]), &root, &err), HEFT_FORMAT,
                           &err, wrong[i]);
        heft__arena_fini(&arena);
    }
}

static void every_prefix_is_refused_at_its_end(void **state)
{
    (void)state;
    static const char text[] =
        "{\"a\":[1,-2.5e+3,true,false,null,\"x\\n\\u0041\\ud83d\\ude00\"],\"b\":{\"c\":{}}}";
    for (size_t cut = 0; cut < sizeof text - 1; cut++) {
        heft_error err;
        char row[32];
        snprintf(row, sizeof row, "cut at %zu", cut);
        test_expect_status(read_all(text, cut, 128, &err), HEFT_FORMAT, &err, row);
        if (err.offset != cut) {
            fail_msg("%s: byte %llu: %s", row, (unsigned long long)err.offset, err.message);
        }
    }
    static const char utf8[] =
        "[\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"]"; /* a cut character is invalid where it starts
                                                       */
    for (size_t cut = 0; cut < sizeof utf8 - 1; cut++) {
        heft_error err;
        assert_int_equal(read_all(utf8, cut, 128, &err), HEFT_FORMAT);
        assert_true(err.offset <= cut && err.offset + 4 > cut);
    }
}

static void specials_are_seen_at_every_position(void **state)
{
    (void)state;
    static const uint8_t specials[] = {0x00, 0x1f, 0x80, 0xff};
    for (size_t at = 1; at <= 40; at++) { /* the scan takes eight bytes at a time */
        for (size_t i = 0; i < COUNT(specials); i++) {
            char text[48];
            heft_error err;
            memset(text, "!#[]"[i], sizeof text); /* the neighbors of '"' and '\\' */
            text[0] = '"';
            text[i % 2 ? 42 : 47] = '"';
            text[at] = (char)specials[i];
            assert_int_equal(read_all(text, i % 2 ? 43 : 48, 1, &err), HEFT_FORMAT);
            assert_int_equal(err.offset, at);
        }
    }
    for (size_t length = 0; length <= 40; length++) {
        char text[48];
        heft__json_reader reader;
        heft__json_token token;
        heft_error err;
        memset(text, "!#[]"[length % 4], sizeof text);
        text[0] = text[length + 1] = '"';
        heft__json_init(&reader, text, length + 2, 0, 1);
        assert_int_equal(heft__json_next(&reader, &token, &err), HEFT_OK);
        assert_int_equal(token.length, length);
    }
}

static void depth_is_bounded(void **state)
{
    (void)state;
    enum { MOST = 1100 };
    static const struct {
        const char *name;
        uint32_t limit, effective;
    } rows[] = {
        {"none",         0,          0   },
        {"one",          1,          1   },
        {"word_of_bits", 64,         64  },
        {"next_word",    65,         65  },
        {"default",      128,        128 },
        {"largest",      1024,       1024},
        {"beyond",       UINT32_MAX, 1024}
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char text[6 * MOST + 1];
        heft_error err;
        for (uint32_t depth = rows[i].effective; depth <= rows[i].effective + 1; depth++) {
            size_t length = 0, last = 0;
            for (uint32_t level = 0; level < depth; level++) { /* arrays and objects in turn */
                last = length;
                length += (size_t)sprintf(text + length, "%s", level % 2 ? "{\"\":" : "[");
            }
            length += (size_t)sprintf(text + length, "0");
            for (uint32_t level = depth; level-- > 0;) {
                text[length++] = level % 2 ? '}' : ']';
            }
            bool over = depth > rows[i].effective;
            test_expect_status(read_all(text, length, rows[i].limit, &err),
                               over ? HEFT_LIMIT : HEFT_OK, &err, rows[i].name);
            if (over) {
                assert_int_equal(err.offset, last);
            }
        }
    }
    char *deep = malloc(10000000);
    assert_non_null(deep);
    memset(deep, '[', 10000000);
    heft_error err;
    assert_int_equal(read_all(deep, 10000000, 128, &err), HEFT_LIMIT);
    assert_int_equal(err.offset, 128);
    free(deep);
}

static void tokens_carry_offset_and_text(void **state)
{
    (void)state;
    static const char text[] = " {\"k\\n\" : [-1.5, \"v\", true], \"e\": {}}\n";
    static const struct {
        heft__json_kind kind;
        uint64_t offset;
        const char *text;
        bool escaped;
    } rows[] = {
        {HEFT__JSON_OBJECT_BEGIN, 1001, NULL,   false},
        {HEFT__JSON_KEY,          1002, "k\\n", true },
        {HEFT__JSON_ARRAY_BEGIN,  1010, NULL,   false},
        {HEFT__JSON_NUMBER,       1011, "-1.5", false},
        {HEFT__JSON_STRING,       1017, "v",    false},
        {HEFT__JSON_TRUE,         1022, NULL,   false},
        {HEFT__JSON_ARRAY_END,    1026, NULL,   false},
        {HEFT__JSON_KEY,          1029, "e",    false},
        {HEFT__JSON_OBJECT_BEGIN, 1034, NULL,   false},
        {HEFT__JSON_OBJECT_END,   1035, NULL,   false},
        {HEFT__JSON_OBJECT_END,   1036, NULL,   false},
        {HEFT__JSON_END,          1038, NULL,   false},
        {HEFT__JSON_END,          1038, NULL,   false},
    };
    heft__json_reader reader;
    heft__json_token token;
    heft_error err;
    heft__json_init(&reader, text, sizeof text - 1, 1000, 8);
    for (size_t i = 0; i < COUNT(rows); i++) {
        test_expect_status(heft__json_next(&reader, &token, &err), HEFT_OK, &err, "token");
        assert_int_equal(token.kind, rows[i].kind);
        assert_int_equal(token.offset, rows[i].offset);
        assert_int_equal(token.escaped, rows[i].escaped);
        assert_int_equal(token.length, rows[i].text ? strlen(rows[i].text) : 0);
        assert_true(!rows[i].text || memcmp(token.text, rows[i].text, token.length) == 0);
    }
}

static void skip_and_expect(void **state)
{
    (void)state;
    static const char text[] = "[[1,{\"a\":[2]}],\"s\",{\"b\":3},4]";
    static const uint64_t offsets[] = {1, 15, 19, 27};
    heft__json_reader reader;
    heft__json_token token;
    heft_error err;
    heft__json_init(&reader, text, sizeof text - 1, 0, 8);
    assert_int_equal(heft__json_expect(&reader, HEFT__JSON_ARRAY_BEGIN, "an array", &token, &err),
                     HEFT_OK);
    for (size_t i = 0; i < COUNT(offsets); i++) {
        assert_int_equal(heft__json_next(&reader, &token, &err), HEFT_OK);
        assert_int_equal(token.offset, offsets[i]);
        assert_int_equal(heft__json_skip(&reader, &token, &err), HEFT_OK);
    }
    assert_int_equal(heft__json_expect(&reader, HEFT__JSON_NUMBER, "a size", &token, &err),
                     HEFT_FORMAT);
    assert_int_equal(err.offset, 28);
    assert_string_equal(err.message, "expected a size, found the end of an array");
}

/* The first token of a text, which outlives the call. */
static heft__json_token first_token(const char *text, size_t length)
{
    heft__json_reader reader;
    heft__json_token token;
    heft_error err;
    heft__json_init(&reader, text, length, 0, 8);
    test_expect_status(heft__json_next(&reader, &token, &err), HEFT_OK, &err, text);
    return token;
}

static void unsigned_integers_are_exact(void **state)
{
    (void)state;
    /* clang-format off */
    static const struct {
        const char *text;
        uint64_t value;
        const char *words; /* NULL: taken */
    } rows[] = {
        {"0", 0, NULL},
        {"9007199254740993", 9007199254740993u, NULL},
        {"18446744073709551615", UINT64_MAX, NULL},
        {"18446744073709551616", 0,
         "data_offsets 18446744073709551616 does not fit into 64 bits"},
        {"99999999999999999999999", 0, "does not fit into 64 bits"},
        {"-1", 0, "data_offsets must be an unsigned integer, found -1"},
        {"-0", 0, "data_offsets must be an unsigned integer, found -0"},
        {"0.0", 0, "data_offsets must be an unsigned integer, found 0.0"},
        {"1e3", 0, "data_offsets must be an unsigned integer, found 1e3"},
        {"99999999999999999999999.5", 0,
         "data_offsets must be an unsigned integer, found 99999999999999999999999.5"},
        {"\"1\"", 0, "data_offsets must be an unsigned integer, found a string"},
        {"true", 0, "data_offsets must be an unsigned integer, found true"},
        {"null", 0, "data_offsets must be an unsigned integer, found null"},
        {"[1]", 0, "data_offsets must be an unsigned integer, found an array"},
        {"{}", 0, "data_offsets must be an unsigned integer, found an object"},
    };
    /* clang-format on */
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft__json_token token = first_token(rows[i].text, strlen(rows[i].text));
        uint64_t value = 77;
        heft_error err;
        token.offset = 4711;
        heft_status status = heft__json_u64(&token, "data_offsets", &value, &err);
        test_expect_status(status, rows[i].words ? HEFT_FORMAT : HEFT_OK, &err, rows[i].text);
        assert_int_equal(value, rows[i].words ? 77 : rows[i].value);
        if (rows[i].words && (err.offset != 4711 || !strstr(err.message, rows[i].words))) {
            fail_msg("%s: byte %llu: %s", rows[i].text, (unsigned long long)err.offset,
                     err.message);
        }
    }
}

static void strings_are_resolved(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t text_length;
        const char *resolved;
        size_t length;
    } rows[] = {
        {TEXT("\"\""),                                    TEXT("")                                },
        {TEXT("\"plain\""),                               TEXT("plain")                           },
        {TEXT("\"\xc3\xa9\""),                            TEXT("\xc3\xa9")                        },
        {TEXT("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""),          TEXT("\"\\/\b\f\n\r\t")                 },
        {TEXT("\"a\\u0000b\""),                           TEXT("a\0b")                            },
        {TEXT("\"\\u007f\\u0080\\u07FF\\u0800\\uffff\""),
         TEXT("\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf")                                     },
        {TEXT("\"\\ud800\\udc00\\uDBFF\\uDFFF\""),        TEXT("\xf0\x90\x80\x80\xf4\x8f\xbf\xbf")},
    };
    heft__arena arena;
    heft__arena_init(&arena, ctx);
    for (size_t i = 0; i < COUNT(rows); i++) {
        const heft__json_token token = first_token(rows[i].text, rows[i].text_length);
        const char *text = NULL;
        size_t length = 0;
        heft_error err;
        test_expect_status(heft__json_string(&token, &arena, &text, &length, &err), HEFT_OK, &err,
                           rows[i].text);
        assert_int_equal(length, rows[i].length);
        assert_memory_equal(text, rows[i].resolved, length + 1); /* with the NUL */
    }
    heft__arena_fini(&arena);
}

static void keys_are_compared_resolved(void **state)
{
    (void)state;
    static const struct {
        const char *text, *key;
        bool equal;
    } rows[] = {
        {"\"dtype\"",            "dtype", true },
        {"\"dtyp\"",             "dtype", false},
        {"\"dtypes\"",           "dtype", false},
        {"\"\\u0064type\"",      "dtype", true },
        {"\"dtyp\\u0065\"",      "dtype", true },
        {"\"dtyp\\u0065s\"",     "dtype", false},
        {"\"dtyp\\u00e5\"",      "dtype", false},
        {"\"\\u0000\"",          "",      false},
        {"\"\"",                 "",      true },
        {"\"dtype\\u0000\"",     "dtype", false},
        {"\"dt\\ud83d\\ude00\"", "dt",    false},
        {"\"\\/\"",              "/",     true },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        const heft__json_token token = first_token(rows[i].text, strlen(rows[i].text));
        if (heft__json_is(&token, rows[i].key) != rows[i].equal) {
            fail_msg("%s against %s", rows[i].text, rows[i].key);
        }
    }
}

/* ---- tree ------------------------------------------------------------------------------------ */
static void trees_keep_order_and_offsets(void **state)
{
    (void)state;
    heft__arena arena;
    const heft__json_value *root =
        parsed(&arena, "{\"z\": [1, \"x\"], \"a\": null, \"m\\u0000\": false}");
    assert_int_equal(root->type, HEFT__JSON_TYPE_OBJECT);
    assert_int_equal(root->count, 3);
    const heft__json_value *z = root->first, *a = z->next, *m = a->next;
    assert_string_equal(z->key, "z");
    assert_int_equal(z->offset, 6);
    assert_int_equal(z->count, 2);
    assert_null(z->first->key);
    assert_string_equal(z->first->text, "1");
    assert_string_equal(z->last->text, "x");
    assert_int_equal(a->type, HEFT__JSON_TYPE_NULL);
    assert_int_equal(a->offset, 21);
    assert_int_equal(m->key_length, 2);
    assert_int_equal(m->type, HEFT__JSON_TYPE_BOOL);
    assert_false(m->boolean);
    assert_ptr_equal(m, root->last);
    assert_null(m->next);
    assert_ptr_equal(heft__json_member(root, "a"), a);
    assert_null(heft__json_member(root, "m")); /* its key goes on behind the NUL */
    assert_null(heft__json_member(root, "b"));
    assert_null(heft__json_member(z, "a"));
    assert_null(heft__json_member(NULL, "a"));
    heft__arena_fini(&arena);
}

static void keys_that_occur_twice(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text;
        uint64_t offset;
        const char *item;
    } rows[] = {
        {"neighbors",            "{\"a\":1,\"a\":1}",                   7,   "a"},
        {"spelt_in_two_ways",    "{\"a\":1,\"b\":2,\"\\u0061\":3}",     13,  "a"},
        {"empty",                "{\"\":1,\"b\":2,\"\":3}",             12,  "" },
        {"inside",               "[{\"x\":{\"k\":1,\"l\":2,\"l\":3}}]", 19,  "l"},
        {"before_a_later_fault", "{\"a\":1,\"a\":1,,}",                 7,   "a"},
        {"seventeenth",
         "{\"a\":1,\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":1,\"g\":1,\"h\":1,\"i\":1,\"j\":1,\"k\":1,"
         "\"l\":1,\"m\":1,\"n\":1,"
         "\"o\":1,\"p\":1,\"a\":1}",                                    97,  "a"},
        {"eighteenth",
         "{\"a\":1,\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":1,\"g\":1,\"h\":1,\"i\":1,\"j\":1,\"k\":1,"
         "\"l\":1,\"m\":1,\"n\":1,"
         "\"o\":1,\"p\":{},\"q\":[],\"q\":1}",                          105, "q"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft__json_value *root = NULL;
        heft__arena arena;
        heft_error err;
        heft_status status = parse(&arena, rows[i].text, strlen(rows[i].text), &root, &err);
        test_expect_status(status, HEFT_FORMAT, &err, rows[i].name);
        if (err.offset != rows[i].offset || strcmp(err.item, rows[i].item) != 0 ||
            !strstr(err.message, "occurs twice")) {
            fail_msg("%s: byte %llu: %s: %s", rows[i].name, (unsigned long long)err.offset,
                     err.item, err.message);
        }
        assert_null(root);
        heft__arena_fini(&arena);
    }
    heft__arena arena;
    parsed(&arena, "[{\"a\":1},{\"a\":1,\"b\":{\"a\":1}}]"); /* once in each object */
    heft__arena_fini(&arena);
}

static void a_million_members_are_not_quadratic(void **state)
{
    (void)state;
    enum { MEMBERS = 1000000 };
    char *text = malloc((size_t)MEMBERS * 12 + 32), *p = text;
    assert_non_null(text);
    *p++ = '{';
    for (int i = 0; i < MEMBERS; i++) {
        p += sprintf(p, "\"%d\":0,", i);
    }
    uint64_t twin = (uint64_t)(p - text);
    p += sprintf(p, "\"499999\":0}");
    heft__arena arena;
    heft__json_value *root = NULL;
    heft_error err;
    assert_int_equal(parse(&arena, text, (size_t)(p - text), &root, &err), HEFT_LIMIT);
    assert_non_null(strstr(err.message, "(limit value_bytes)"));
    heft__arena_fini(&arena);
    heft_ctx *standard = ctx;
    ctx = heft_ctx_new(&HEFT_OPTIONS(
        heft_ctx_options, .limits = &HEFT_OPTIONS(heft_limits, .value_bytes = UINT64_MAX)));
    assert_non_null(ctx);
    assert_int_equal(parse(&arena, text, (size_t)(p - text), &root, &err), HEFT_FORMAT);
    assert_int_equal(err.offset, twin);
    assert_string_equal(err.item, "499999");
    heft__arena_fini(&arena);
    heft_ctx_free(ctx);
    ctx = standard;
    free(text);
}

static void numbers_are_read_when_asked_for(void **state)
{
    (void)state;
    /* clang-format off */
    static const struct {
        const char *text;
        bool is_u64;
        uint64_t u64;
        bool is_i64;
        int64_t i64;
        double real;
    } rows[] = {
        {"0", true, 0, true, 0, 0.0},
        {"-0", false, 0, true, 0, -0.0},
        {"-1", false, 0, true, -1, -1.0},
        {"9223372036854775807", true, INT64_MAX, true, INT64_MAX, 9223372036854775807.0},
        {"9223372036854775808", true, 9223372036854775808u, false, 0, 9223372036854775808.0},
        {"-9223372036854775808", false, 0, true, INT64_MIN, -9223372036854775808.0},
        {"-9223372036854775809", false, 0, false, 0, -9223372036854775808.0},
        {"18446744073709551615", true, UINT64_MAX, false, 0, 18446744073709551615.0},
        {"18446744073709551616", false, 0, false, 0, 18446744073709551616.0},
        {"1.0", false, 0, false, 0, 1.0},
        {"1e3", false, 0, false, 0, 1000.0},
        {"1e-12", false, 0, false, 0, 1e-12},
        {"1e999", false, 0, false, 0, (double)INFINITY},
    };
    /* clang-format on */
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft__arena arena;
        const heft__json_value *value = parsed(&arena, rows[i].text);
        uint64_t u64 = 0;
        int64_t i64 = 0;
        double real = 0.25;
        assert_int_equal(heft__json_as_u64(value, &u64), rows[i].is_u64);
        assert_int_equal(u64, rows[i].u64);
        assert_int_equal(heft__json_as_i64(value, &i64), rows[i].is_i64);
        assert_int_equal(i64, rows[i].i64);
        assert_true(heft__json_as_double(value, &real));
        assert_memory_equal(&real, &rows[i].real, sizeof real);
        heft__arena_fini(&arena);
    }
    heft__arena arena;
    const heft__json_value *text = parsed(&arena, "\"1\"");
    uint64_t u64;
    int64_t i64;
    double real;
    assert_false(heft__json_as_u64(text, &u64) || heft__json_as_i64(text, &i64) ||
                 heft__json_as_double(text, &real));
    assert_false(heft__json_as_u64(NULL, &u64) || heft__json_as_i64(NULL, &i64) ||
                 heft__json_as_double(NULL, &real));
    heft__arena_fini(&arena);
}

static void expect_compact(const heft__json_value *value, const char *expected)
{
    heft__buffer out;
    heft__buffer_init(&out, ctx);
    heft__json_write_compact(&out, value);
    expect_text(&out, expected, expected);
}

static void members_are_set_in_place(void **state)
{
    (void)state;
    heft__arena arena;
    heft__json_value *root = parsed(&arena, "{\"a\":1,\"b\":2,\"c\":3}");
    assert_true(heft__json_set(&arena, root, "b", heft__json_new_string(&arena, "x")));
    expect_compact(root, "{\"a\":1,\"b\":\"x\",\"c\":3}");
    assert_true(heft__json_set(&arena, root, "c", heft__json_new_null(&arena)));
    assert_true(heft__json_set(&arena, root, "d", heft__json_new_bool(&arena, true)));
    assert_true(heft__json_set(&arena, root, "a", root->first)); /* itself */
    expect_compact(root, "{\"a\":1,\"b\":\"x\",\"c\":null,\"d\":true}");
    assert_int_equal(root->count, 4);
    heft__json_remove(root, "d");
    heft__json_remove(root, "a");
    heft__json_remove(root, "none");
    assert_true(heft__json_set(&arena, root, "e", heft__json_new_number(&arena, "1.50")));
    expect_compact(root, "{\"b\":\"x\",\"c\":null,\"e\":1.5}");
    heft__json_remove(root, "b");
    heft__json_remove(root, "c");
    heft__json_remove(root, "e");
    expect_compact(root, "{}");
    assert_null(root->first);
    assert_null(root->last);
    heft__json_value *list = heft__json_new_array(&arena);
    assert_non_null(list);
    heft__json_append(list, heft__json_new_object(&arena));
    heft__json_append(list, heft__json_new_string(&arena, ""));
    assert_true(heft__json_set(&arena, root, "list", list));
    assert_false(heft__json_set(&arena, root, "list", NULL));
    expect_compact(root, "{\"list\":[{},\"\"]}");
    heft__arena_fini(&arena);
}

static void one_value_of_a_longer_text(void **state)
{
    (void)state;
    static const char text[] = "[0, {\"a\": [1]}, 2]";
    heft__json_reader reader;
    heft__json_token token;
    heft__json_value *value = NULL;
    heft__arena arena;
    heft_error err;
    heft__arena_init(&arena, ctx);
    heft__json_init(&reader, text, sizeof text - 1, 100, 8);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(heft__json_next(&reader, &token, &err), HEFT_OK);
    }
    assert_int_equal(heft__json_read_tree(&reader, &token, &arena, &value, &err), HEFT_OK);
    assert_int_equal(value->offset, 104);
    assert_int_equal(value->first->offset, 110);
    expect_compact(value, "{\"a\":[1]}");
    assert_int_equal(heft__json_next(&reader, &token, &err), HEFT_OK);
    assert_int_equal(token.offset, 116);
    heft__arena_fini(&arena);
}

/* ---- writer ---------------------------------------------------------------------------------- */
static void writes_as_python_does(void **state)
{
    (void)state;
    /* clang-format off */
    static const struct {
        const char *text, *python;
    } rows[] = {
        {"[]", "[]"},
        {"{}", "{}"},
        {"null", "null"},
        {"\"x\"", "\"x\""},
        {"[[],{}]", "[\n  [],\n  {}\n]"},
        {"{\"b\":1,\"a\":2}", "{\n  \"a\": 2,\n  \"b\": 1\n}"},
        {"{\"a\":[1,{\"b\":null,\"a\":[true,false]}],\"A\":\"x\"}",
         "{\n  \"A\": \"x\",\n  \"a\": [\n    1,\n    {\n      \"a\": [\n        true,\n        "
         "false\n      ],\n" "      \"b\": null\n    }\n  ]\n}"},
        {"{\"\\u00e9\":1,\"z\":2,\"\\ud83d\\ude00\":3,\"\\ufffd\":4,\"\":5,\"zz\":6}",
         "{\n  \"\": 5,\n  \"z\": 2,\n  \"zz\": 6,\n  \"\\u00e9\": 1,\n  \"\\ufffd\": 4,\n  "
         "\"\\ud83d\\ude00\": 3\n}"},
        {"[\"\\u0000\\u001f\\u007f\\\"\\\\\\/"
         "\\b\\f\\n\\r\\t\",\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"]",
         "[\n  \"\\u0000\\u001f\\u007f\\\"\\\\/\\b\\f\\n\\r\\t\",\n  "
         "\"\\u00e9\\u20ac\\ud83d\\ude00\"\n]"},
        {"[-0,-0.0,0,1e5,1E5,1e-5,0.0001,123456789012345678901234567890,1e16,1e15,1e22,"
         "9007199254740993.0]",
         "[\n  0,\n  -0.0,\n  0,\n  100000.0,\n  100000.0,\n  1e-05,\n  0.0001,\n  "
         "123456789012345678901234567890,\n"
         "  1e+16,\n  1000000000000000.0,\n  1e+22,\n  9007199254740992.0\n]"},
        {"[1e999,-1e999,1e-400,5e-324,2.5e-14,1.0e+2]",
         "[\n  Infinity,\n  -Infinity,\n  0.0,\n  5e-324,\n  2.5e-14,\n  100.0\n]"},
        {"{\"layer_norm_eps\":1e-12,\"eps\":1e-05,\"theta\":10000.0}",
         "{\n  \"eps\": 1e-05,\n  \"layer_norm_eps\": 1e-12,\n  \"theta\": 10000.0\n}"},
    };
    /* clang-format on */
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft__arena arena;
        heft__buffer out;
        heft__buffer_init(&out, ctx);
        heft__json_write_python(&out, parsed(&arena, rows[i].text));
        expect_text(&out, rows[i].python, rows[i].text);
        heft__arena_fini(&arena);
    }
}

static void writes_in_one_line(void **state)
{
    (void)state;
    static const char *const rows[] = {
        "{\"b\":[1,2,{}],\"a\":{\"x\":[]},\"\xc3\xa9\":\"\x7f\\n\\u0001\"}",
        "[true,false]",
        "0.5",
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft__arena arena;
        expect_compact(parsed(&arena, rows[i]), rows[i]);
        heft__arena_fini(&arena);
    }
}

static void strings_ascii_and_raw(void **state)
{
    (void)state;
    /* clang-format off */
    static const struct {
        const char *text;
        size_t length;
        const char *ascii, *raw;
    } rows[] = {
        {TEXT(""), "\"\"", "\"\""},
        {TEXT("a\0b"), "\"a\\u0000b\"", "\"a\\u0000b\""},
        {TEXT("\x7f"), "\"\\u007f\"", "\"\x7f\""},
        {TEXT("\xc3\xa9"), "\"\\u00e9\"", "\"\xc3\xa9\""},
        {TEXT("\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"),
         "\"\\uffff\\ud800\\udc00\\udbff\\udfff\"",
         "\"\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\""},
        {TEXT("</\"\\\b\f\n\r\t\x1b>"), "\"</\\\"\\\\\\b\\f\\n\\r\\t\\u001b>\"",
         "\"</\\\"\\\\\\b\\f\\n\\r\\t\\u001b>\""},
        {TEXT("\xffx\xe2\x82"), "\"\\ufffdx\\ufffd\\ufffd\"", "\"\xffx\xe2\x82\""},
         /* no UTF-8: not read past the end */
    };
    /* clang-format on */
    for (size_t i = 0; i < COUNT(rows); i++) {
        char *copy = exact_copy(rows[i].text, rows[i].length);
        heft__buffer out;
        heft__buffer_init(&out, ctx);
        heft__json_write_string(&out, copy, rows[i].length, true);
        expect_text(&out, rows[i].ascii, rows[i].ascii);
        heft__buffer_init(&out, ctx);
        heft__json_write_string(&out, copy, rows[i].length, false);
        expect_text(&out, rows[i].raw, rows[i].ascii);
        free(copy);
    }
}

static void doubles_are_shortest(void **state)
{
    (void)state;
    /* clang-format off */
    static const struct {
        double value;
        const char *text;
    } rows[] = {
        {0.0, "0.0"},
        {-0.0, "-0.0"},
        {1.0, "1.0"},
        {-1.5, "-1.5"},
        {0.1, "0.1"},
        {0.3 - 0.1, "0.19999999999999998"},
        {0.02, "0.02"},
        {0.0001, "0.0001"},
        {0.00001, "1e-05"},
        {0.00012345, "0.00012345"},
        {1e-12, "1e-12"},
        {1.5e-7, "1.5e-07"},
        {10000.0, "10000.0"},
        {1e15, "1000000000000000.0"},
        {9999999999999998.0, "9999999999999998.0"},
        {1e16, "1e+16"},
        {1.2345678901234567e+16, "1.2345678901234568e+16"},
        {1e23, "1e+23"},
        {1e100, "1e+100"},
        {5e-324, "5e-324"},
        {2.2250738585072014e-308, "2.2250738585072014e-308"},
        {1.7976931348623157e308, "1.7976931348623157e+308"},
        {0x1p-44, "5.684341886080802e-14"},
         /* the nearest 16 digits end in 1 and do not read back */
        {0x1p976, "6.386688990511104e+293"},
        {(double)INFINITY, "Infinity"},
        {(double)-INFINITY, "-Infinity"},
        {(double)NAN, "NaN"},
    };
    /* clang-format on */
    const char *before = setlocale(LC_ALL, NULL);
    char *kept = before ? strdup(before) : NULL;
    for (int pass = 0; pass < 2;
         pass++) { /* the second where one writes 1,5, if the machine has such a place */
        for (size_t i = 0; i < COUNT(rows); i++) {
            heft__buffer out;
            heft__buffer_init(&out, ctx);
            heft__json_write_double(&out, rows[i].value);
            expect_text(&out, rows[i].text, rows[i].text);
            heft__arena arena;
            double again;
            const char *quoted = isfinite(rows[i].value) ? rows[i].text : "0.5";
            assert_true(heft__json_as_double(parsed(&arena, quoted), &again));
            assert_true(!isfinite(rows[i].value) || again == rows[i].value);
            heft__arena_fini(&arena);
        }
        if (!setlocale(LC_ALL, "de_DE.UTF-8") && !setlocale(LC_ALL, "de_DE.utf8")) {
            break;
        }
    }
    setlocale(LC_ALL, kept ? kept : "C");
    free(kept);
}

static void deep_trees_are_written_without_recursion(void **state)
{
    (void)state;
    enum { DEPTH = 1000000 };
    heft__arena arena;
    heft__buffer out;
    heft__arena_init(&arena, ctx);
    heft__json_value *root = heft__json_new_array(&arena), *at = root;
    for (int i = 1; i < DEPTH; i++) {
        heft__json_value *inner = heft__json_new_array(&arena);
        assert_true(at && inner);
        heft__json_append(at, inner);
        at = inner;
    }
    heft__buffer_init(&out, ctx);
    heft__json_write_compact(&out, root);
    assert_false(out.failed);
    assert_int_equal(out.size, 2 * (size_t)DEPTH);
    assert_true(out.data[DEPTH - 1] == '[' && out.data[DEPTH] == ']');
    heft__buffer_fini(&out);
    heft__arena_fini(&arena);
}

/* ---- no memory ------------------------------------------------------------------------------- */
static heft_status parse_and_write(heft_ctx *failing, void *user, heft_error *err)
{
    const char *text = user;
    heft__json_value *untouched = (heft__json_value *)&ctx, *root = untouched;
    heft__arena arena;
    heft__buffer out;
    heft__arena_init(&arena, failing);
    heft__buffer_init(&out, failing);
    heft_status status = heft__json_parse(&arena, text, strlen(text), 128, &root, err);
    if (status == HEFT_OK) {
        bool made = heft__json_set(&arena, root, "new", heft__json_new_array(&arena)) &&
                    heft__json_set(&arena, root, "a", heft__json_new_number(&arena, "1"));
        status = made ? HEFT_OK : heft__fail_nomem(err, 0);
    } else {
        assert_ptr_equal(root, untouched);
    }
    if (status == HEFT_OK) {
        heft__json_write_python(&out, root);
        heft__json_write_compact(&out, root);
        status = heft__buffer_check(&out, err);
    }
    heft__buffer_fini(&out);
    heft__arena_fini(&arena);
    return status;
}

static void allocations_may_fail(void **state)
{
    (void)state;
    heft__buffer text; /* wide enough for a map, deep enough for the levels to grow, long enough for
                          chunks */
    heft__buffer_init(&text, ctx);
    heft__buffer_text(&text, "{\"a\":\"\\u00e9\",\"deep\":");
    for (int i = 0; i < 40; i++) {
        heft__buffer_text(&text, i % 2 ? "{\"x\":0,\"y\":" : "[");
    }
    heft__buffer_text(&text, "1.5");
    for (int i = 40; i-- > 0;) {
        heft__buffer_byte(&text, i % 2 ? '}' : ']');
    }
    for (int i = 0; i < 120; i++) {
        heft__buffer_format(&text, ",\"member %d\":{\"k\":[%d,\"text\"]}", i, i);
    }
    heft__buffer_append(&text, "}", 2);
    assert_false(text.failed);
    test_oom_sweep(parse_and_write, text.data);
    heft__buffer_fini(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts_what_is_json),
        cmocka_unit_test(refuses_what_is_not_json),
        cmocka_unit_test(trees_take_what_python_writes),
        cmocka_unit_test(every_prefix_is_refused_at_its_end),
        cmocka_unit_test(specials_are_seen_at_every_position),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(tokens_carry_offset_and_text),
        cmocka_unit_test(skip_and_expect),
        cmocka_unit_test(unsigned_integers_are_exact),
        cmocka_unit_test(strings_are_resolved),
        cmocka_unit_test(keys_are_compared_resolved),
        cmocka_unit_test(trees_keep_order_and_offsets),
        cmocka_unit_test(keys_that_occur_twice),
        cmocka_unit_test(a_million_members_are_not_quadratic),
        cmocka_unit_test(numbers_are_read_when_asked_for),
        cmocka_unit_test(members_are_set_in_place),
        cmocka_unit_test(one_value_of_a_longer_text),
        cmocka_unit_test(writes_as_python_does),
        cmocka_unit_test(writes_in_one_line),
        cmocka_unit_test(strings_ascii_and_raw),
        cmocka_unit_test(doubles_are_shortest),
        cmocka_unit_test(deep_trees_are_written_without_recursion),
        cmocka_unit_test(allocations_may_fail),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests_name("json", tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
