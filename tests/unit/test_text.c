/* Tokenizers: ids and texts as `tokenizers` makes them, what is refused and where, ids one by one, hostile
 * patterns and texts, memory that runs out. */
#include "io/io.h"
#include "text/text.h"
#include "json/json.h"

#include "scratch.h"

#include <stdlib.h>

#define DATA HEFT_TEST_DATA "/text/"

static heft_tokenizer *open_file(const char *name)
{
    heft_tokenizer *tokenizer = NULL;
    heft_error err;
    char path[512];
    (void)snprintf(path, sizeof path, DATA "%s", name);
    heft_status status = heft_tokenizer_open(ctx, path, &tokenizer, &err);
    test_expect_status(status, HEFT_OK, &err, name);
    return tokenizer;
}

/* Whether this build has the libraries that a file of the data needs. */
static bool can_open(const char *name)
{
    const bool plain =
        strcmp(name, "plain_bpe.json") == 0 || strcmp(name, "byte_fallback.json") == 0;
    return plain || (heft__text_has_regex() && heft__text_has_unicode());
}

/* ---- golden ids ------------------------------------------------------------------------------------ */
static void expect_ids(const heft_tokenizer *t, const heft__json_value *text, bool special,
                       const heft__json_value *expected)
{
    uint32_t *ids = NULL;
    size_t count = 0;
    heft_error err;
    heft_status status =
        heft_tokenizer_encode(t, text->text, text->length, special, &ids, &count, &err);
    test_expect_status(status, HEFT_OK, &err, text->text);
    assert_int_equal(count, expected->count);
    size_t i = 0;
    for (const heft__json_value *v = expected->first; v; v = v->next, i++) {
        uint64_t id = 0;
        assert_true(heft__json_as_u64(v, &id));
        if (ids[i] != id) {
            fail_msg("'%s': id %zu is %u, not %llu", text->text, i, ids[i], (unsigned long long)id);
        }
    }
    heft_tokenizer_free_ids(t, ids, count);
}

static size_t read_ids(const heft__json_value *list, uint32_t *ids, size_t cap)
{
    size_t count = 0;
    for (const heft__json_value *v = list->first; v; v = v->next) {
        uint64_t id = 0;
        assert_true(heft__json_as_u64(v, &id) && count < cap);
        ids[count++] = (uint32_t)id;
    }
    return count;
}

static void expect_text(const heft_tokenizer *t, const heft__json_value *list, bool skip,
                        const heft__json_value *expected)
{
    uint32_t ids[1024];
    const size_t count = read_ids(list, ids, 1024);
    char *text = NULL;
    size_t length = 0;
    heft_error err;
    heft_status status = heft_tokenizer_decode(t, ids, count, skip, &text, &length, &err);
    test_expect_status(status, HEFT_OK, &err, expected->text);
    assert_int_equal(length, expected->length);
    assert_memory_equal(text, expected->text, length + 1);
    heft_tokenizer_free_text(t, text, length);
}

/* The texts of a stream are whole characters, and together the text that decoding makes. */
static void expect_stream(const heft_tokenizer *t, const heft__json_value *list,
                          const heft__json_value *expected)
{
    uint32_t ids[1024];
    const size_t count = read_ids(list, ids, 1024);
    if (memmem(expected->text, expected->length, "\xEF\xBF\xBD", 3)) {
        return;
    }
    heft_text_stream *stream = NULL;
    heft_error err;
    assert_int_equal(heft_text_stream_new(t, true, &stream, &err), HEFT_OK);
    size_t at = 0;
    for (size_t i = 0; i <= count; i++) {
        const char *text = NULL;
        size_t length = 0;
        heft_status status = i < count ? heft_text_stream_add(stream, ids[i], &text, &length, &err)
                                       : heft_text_stream_finish(stream, &text, &length, &err);
        test_expect_status(status, HEFT_OK, &err, expected->text);
        assert_int_equal(heft__utf8_invalid_at((const uint8_t *)text, length), length);
        assert_true(length <= expected->length - at);
        assert_memory_equal(text, expected->text + at, length);
        at += length;
    }
    assert_int_equal(at, expected->length);
    heft_text_stream_free(stream);
}

static void ids_and_texts_are_those_of_tokenizers(void **state)
{
    (void)state;
    heft__arena arena;
    heft__arena_init(&arena, ctx);
    char *text = NULL;
    size_t length = 0;
    heft_error err;
    heft_status status = heft__read_file(&arena, DATA "cases.json", 1 << 24, &text, &length, &err);
    test_expect_status(status, HEFT_OK, &err, "cases.json");
    heft__json_value *cases = NULL;
    assert_int_equal(heft__json_parse(&arena, text, length, 16, &cases, &err), HEFT_OK);
    heft_tokenizer *t = NULL;
    const char *opened = "";
    size_t compared = 0;
    for (const heft__json_value *c = cases->first; c; c = c->next) {
        const char *name = heft__json_member(c, "tokenizer")->text;
        if (!can_open(name)) {
            continue;
        }
        if (strcmp(name, opened) != 0) {
            heft_tokenizer_close(t);
            t = open_file(name);
            opened = name;
        }
        expect_ids(t, heft__json_member(c, "text"), true, heft__json_member(c, "ids"));
        expect_ids(t, heft__json_member(c, "text"), false, heft__json_member(c, "bare"));
        expect_text(t, heft__json_member(c, "ids"), true, heft__json_member(c, "decoded"));
        expect_text(t, heft__json_member(c, "ids"), false, heft__json_member(c, "whole"));
        expect_stream(t, heft__json_member(c, "ids"), heft__json_member(c, "decoded"));
        compared++;
    }
    assert_true(compared >= 70);
    heft_tokenizer_close(t);
    heft__arena_fini(&arena);
}

/* ---- tokens ----------------------------------------------------------------------------------------- */
static void tokens_and_ids_are_looked_up(void **state)
{
    (void)state;
    heft_tokenizer *t = open_file("byte_fallback.json");
    size_t length = 0, count = 0;
    uint32_t id = 0;
    assert_int_equal(heft_tokenizer_size(t), 450);
    assert_string_equal(heft_tokenizer_token(t, 2, &length), "</s>");
    assert_int_equal(length, 4);
    assert_null(heft_tokenizer_token(t, 450, &length));
    assert_true(heft_tokenizer_id(t, "<0x0A>", 6, &id));
    assert_int_equal(id, 3 + 10);
    assert_false(heft_tokenizer_id(t, "<0x0a>", 6, &id));
    const uint32_t *special = heft_tokenizer_special_ids(t, &count);
    assert_int_equal(count, 3);
    assert_int_equal(special[2], 2);
    assert_true(heft_tokenizer_is_special(t, 1));
    assert_false(heft_tokenizer_is_special(t, 3));
    assert_int_equal(heft_tokenizer_truncation(t), 0);
    heft_tokenizer_close(t);
    if (can_open("word_piece.json")) {
        t = open_file("word_piece.json");
        assert_int_equal(heft_tokenizer_truncation(t), 8);
        heft_tokenizer_close(t);
    }
}

static void a_folder_is_opened_by_its_file(void **state)
{
    (void)state;
    size_t length;
    char *text = test_read_file(DATA "plain_bpe.json", &length);
    test_write_file(folder, "tokenizer.json", text, length);
    heft_tokenizer *t = NULL;
    heft_error err;
    test_expect_status(heft_tokenizer_open(ctx, folder, &t, &err), HEFT_OK, &err, "folder");
    heft_tokenizer_close(t);
    test_expect_status(heft_tokenizer_open(ctx, "/none/such", &t, &err), HEFT_NOT_FOUND, &err,
                       "none");
    free(text);
}

/* ---- refusals ------------------------------------------------------------------------------------------ */
/* A file around a part: its members beside the model, and the model's. */
#define FILE_OF(part, model) "{" part "\"model\":{" model "}}"
#define WORDS "\"type\":\"WordLevel\",\"unk_token\":\"u\",\"vocab\":{\"u\":0,\"a\":1}"
#define PART(name, step) FILE_OF("\"" name "\":" step ",", WORDS)
#define BPE(members) FILE_OF("", "\"type\":\"BPE\"," members)
#define ADDED(members) FILE_OF("\"added_tokens\":[{" members "}],", WORDS)

static const struct refusal {
    const char *text;
    heft_status status;
    const char *item,
        *at; /* the offset is where `at` stands first in the text; NULL: not compared */
    const char *says;
} refusals[] = {
  /* clang-format off */
    {"", HEFT_FORMAT, "", NULL, ""},
    {"[]", HEFT_FORMAT, "", "[", "an object"},
    {"{}", HEFT_FORMAT, "", NULL, "'model' is missing"},
    {"{\"quux\":1}", HEFT_UNSUPPORTED, "", "\"quux", "'quux'"},
    {"{\"version\":1,\"version\":1}", HEFT_FORMAT, "", NULL, "twice"},
    {FILE_OF("", WORDS) "x", HEFT_FORMAT, "", "x", ""},
    {FILE_OF("", "\"type\":\"Markov\",\"vocab\":{}"),
     HEFT_UNSUPPORTED, "model", NULL, "'Markov'"},
    {FILE_OF("", "\"type\":\"BPE\",\"vocab\":{}"),
     HEFT_FORMAT, "model", NULL, "'merges' is missing"},
    {FILE_OF("", "\"type\":\"WordLevel\""), HEFT_FORMAT, "model", NULL, "'vocab' is missing"},
    {FILE_OF("", "\"vocab\":{\"a\":0},\"vocab\":{}"), HEFT_FORMAT, "model", NULL, "twice"},
    {FILE_OF("", "\"vocab\":{\"a\":0,\"a\":1}"),
     HEFT_FORMAT, "model", NULL, "'a' occurs twice"},
    {FILE_OF("", "\"vocab\":{\"a\":0,\"b\":0}"), HEFT_FORMAT, "model", NULL, "same id 0"},
    {FILE_OF("", "\"vocab\":{\"a\":99999}"), HEFT_LIMIT, "model", NULL, "99999 for 1 tokens"},
    {FILE_OF("", "\"vocab\":{\"a\":4294967295}"), HEFT_FORMAT, "model", "4294", "too large"},
    {FILE_OF("", "\"vocab\":{\"a\":-1}"), HEFT_FORMAT, "model", "-1", ""},
    {FILE_OF("", "\"vocab\":[[\"a\",1e999]]"), HEFT_FORMAT, "model", "1e999", "score"},
    {FILE_OF("", "\"vocab\":[[\"a\",0]],\"unk_id\":1"),
     HEFT_FORMAT, "model", NULL, "'unk_id' 1 of 1"},
    {BPE("\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1"),
     HEFT_UNSUPPORTED, "model", "0.1", "dropout"},
    {BPE("\"vocab\":{\"a\":0},\"merges\":[],\"quux\":1"),
     HEFT_UNSUPPORTED, "model", NULL, "'quux'"},
    {BPE("\"vocab\":{\"a\":0},\"merges\":[\"a b\"]"), HEFT_FORMAT, "model", "\"a b", "merge 0"},
    {BPE("\"vocab\":{\"a\":0},\"merges\":[\"a  a\"]"), HEFT_FORMAT, "model", "\"a  a", "space"},
    {BPE("\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]"), HEFT_FORMAT, "model", NULL, ""},
    {BPE("\"vocab\":{\"a\":0},\"merges\":[7]"), HEFT_FORMAT, "model", "7", "a merge is"},
    {PART("normalizer", "{\"type\":\"Quux\"}"),
     HEFT_UNSUPPORTED, "normalizer", "{\"type\":\"Q", "'Quux'"},
    {PART("normalizer", "{\"type\":\"Strip\",\"quux\":1}"),
     HEFT_UNSUPPORTED, "normalizer", "1}", "'quux'"},
    {PART("normalizer", "{\"type\":\"Strip\",\"strip_left\":1}"),
     HEFT_FORMAT, "normalizer", "1}", "strip_left"},
    {PART("normalizer", "{}"), HEFT_FORMAT, "normalizer", "{}", "'type' is missing"},
    {PART("normalizer", "7"), HEFT_FORMAT, "normalizer", "7", "an object"},
    {PART("normalizer", "{\"type\":\"Sequence\"}"),
     HEFT_FORMAT, "normalizer", NULL, "'normalizers'"},
    {PART("normalizer", "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}"),
     HEFT_UNSUPPORTED, "normalizer", NULL, "an empty pattern"},
    {PART("normalizer", "{\"type\":\"Replace\",\"pattern\":{},\"content\":\"\"}"),
     HEFT_FORMAT, "normalizer", NULL, "one of"},
    {PART("normalizer", "{\"type\":\"Replace\",\"pattern\":\"a\",\"content\":\"\"}"),
     HEFT_FORMAT, "normalizer", NULL, "an object"},
    {PART("pre_tokenizer", "{\"type\":\"UnicodeScripts\"}"),
     HEFT_UNSUPPORTED, "pre_tokenizer", NULL, "'UnicodeScripts'"},
    {PART("pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"ab\"}"),
     HEFT_FORMAT, "pre_tokenizer", NULL, "one character"},
    {PART("pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"add_prefix_space\":" "false,\"prepend_scheme\":\"first\"}"),
     HEFT_FORMAT, "pre_tokenizer", NULL, "contradict"},
    {PART("pre_tokenizer", "{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Quux\"}"),
     HEFT_UNSUPPORTED, "pre_tokenizer", NULL, "'Quux'"},
    {PART("pre_tokenizer", "{\"type\":\"FixedLength\",\"length\":0}"),
     HEFT_FORMAT, "pre_tokenizer", NULL, "'length' of 0"},
    {PART("decoder", "{\"type\":\"CTC\"}"), HEFT_UNSUPPORTED, "decoder", NULL, "'CTC'"},
    {PART("decoder", "{\"type\":\"Strip\",\"content\":\"\"}"),
     HEFT_FORMAT, "decoder", NULL, "one character"},
    {PART("post_processor", "{\"type\":\"Quux\"}"),
     HEFT_UNSUPPORTED, "post_processor", NULL, "'Quux'"},
    {PART("post_processor", "{\"type\":\"BertProcessing\",\"sep\":[\"a\"],\"cls\":[\"a\",1]}"),
     HEFT_FORMAT, "post_processor", NULL, "'cls'|'sep'"},
    {PART("post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[],\"special_tokens\":{}}"),
     HEFT_UNSUPPORTED, "post_processor", NULL, "without the text"},
    {PART("post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{" "\"id\":\"a\"}}],\"special_tokens\":{}}"),
     HEFT_FORMAT, "post_processor", NULL, "not among"},
    {ADDED("\"id\":7,\"content\":\"z\""), HEFT_UNSUPPORTED, "added_tokens", NULL, "makes it 2"},
    {ADDED("\"id\":2,\"content\":\"\""), HEFT_FORMAT, "added_tokens", NULL, "0 bytes"},
    {ADDED("\"id\":2,\"content\":\"z\",\"quux\":1"),
     HEFT_UNSUPPORTED, "added_tokens", NULL, "'quux'"},
    {ADDED("\"id\":2,\"content\":\"z\"},{\"id\":3,\"content\":\"z\""),
     HEFT_UNSUPPORTED, "added_tokens", NULL, ""},
  /* clang-format on */
};
/* Only where there are regular expressions. */
#define REGEX(source)                                                                              \
    PART("pre_tokenizer",                                                                          \
         "{\"type\":\"Split\",\"behavior\":\"Removed\",\"pattern\":{\"Regex\":\"" source "\"}}")
static const struct refusal regex_refusals[] = {
  /* clang-format off */
    {REGEX("("), HEFT_FORMAT, "pre_tokenizer", NULL, "parenthesis"},
    {REGEX("(?<a>b)\\\\g<a>"), HEFT_UNSUPPORTED, "pre_tokenizer", NULL, "\\g"},
    {REGEX("(*FAIL)"), HEFT_UNSUPPORTED, "pre_tokenizer", NULL, "(*"},
    {REGEX("(?{x})"), HEFT_UNSUPPORTED, "pre_tokenizer", NULL, "(?{"},
    {REGEX("(?:(?:a{1000}){1000}){1000}"), HEFT_LIMIT, "pre_tokenizer", NULL, "too much"},
    {REGEX("a{99999999999999999999}"), HEFT_LIMIT, "pre_tokenizer", NULL, "too much"},
  /* clang-format on */
};

static bool says_one_of(const char *message, const char *words)
{
    char copy[128], *rest = copy;
    (void)snprintf(copy, sizeof copy, "%s", words);
    for (char *word; (word = strsep(&rest, "|")) != NULL;) {
        if (strstr(message, word)) {
            return true;
        }
    }
    return false;
}

static void expect_refusal(const struct refusal *row)
{
    heft_tokenizer *t = NULL;
    heft_error err;
    heft_status status =
        heft_tokenizer_open_bytes(ctx, "t.json", row->text, strlen(row->text), &t, &err);
    test_expect_status(status, row->status, &err, row->text);
    assert_null(t);
    assert_string_equal(err.path, "t.json");
    assert_string_equal(err.item, row->item);
    if (!says_one_of(err.message, row->says)) {
        fail_msg("%s: '%s' does not say '%s'", row->text, err.message, row->says);
    }
    if (row->at) {
        assert_int_equal(err.offset, strstr(row->text, row->at) - row->text);
    }
}

static void what_is_not_known_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        expect_refusal(&refusals[i]);
    }
    for (size_t i = 0; heft__text_has_regex() && i < sizeof regex_refusals / sizeof *regex_refusals;
         i++) {
        expect_refusal(&regex_refusals[i]);
    }
    if (!heft__text_has_regex()) {
        const struct refusal row = {REGEX("a"), HEFT_UNSUPPORTED, "pre_tokenizer", NULL, "libonig"};
        expect_refusal(&row);
    }
    if (!heft__text_has_unicode()) {
        const struct refusal row = {PART("normalizer", "{\"type\":\"NFC\"}"), HEFT_UNSUPPORTED,
                                    "normalizer", NULL, "utf8proc"};
        expect_refusal(&row);
    }
}

static void a_file_over_the_limit_is_refused(void **state)
{
    (void)state;
    const heft_limits limits = HEFT_OPTIONS(heft_limits, .tokenizer_bytes = 100);
    const heft_ctx_options options = HEFT_OPTIONS(heft_ctx_options, .limits = &limits);
    heft_ctx *small = heft_ctx_new(&options);
    heft_tokenizer *t = NULL;
    heft_error err;
    char path[512];
    (void)snprintf(path, sizeof path, DATA "%s", "plain_bpe.json");
    test_expect_status(heft_tokenizer_open(small, path, &t, &err), HEFT_LIMIT, &err, "limit");
    assert_non_null(strstr(err.message, "tokenizer_bytes"));
    heft_ctx_free(small);
}

/* ---- hostile texts ---------------------------------------------------------------------------------------- */
static heft_tokenizer *open_text(const char *text)
{
    heft_tokenizer *t = NULL;
    heft_error err;
    heft_status status = heft_tokenizer_open_bytes(ctx, "t.json", text, strlen(text), &t, &err);
    test_expect_status(status, HEFT_OK, &err, text);
    return t;
}

static heft_status encode_status(const heft_tokenizer *t, const char *text, size_t length,
                                 size_t *count, heft_error *err)
{
    uint32_t *ids = NULL;
    heft_status status = heft_tokenizer_encode(t, text, length, true, &ids, count, err);
    if (status == HEFT_OK) {
        heft_tokenizer_free_ids(t, ids, *count);
    }
    return status;
}

/* An added token is shown as it is found, and what the normalizers drop is not the beginning of a text. */
static void normalized_tokens_and_beginnings(void **state)
{
    (void)state;
    heft_tokenizer *t = open_text(
        "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"x\"},\"content\":\"\"},"
        "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":"
        "\"first\","
        "\"split\":false},\"added_tokens\":[{\"id\":4,\"content\":\"axb\",\"special\":true,"
        "\"normalized\":true}],\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"u\","
        "\"vocab\":{\"u\":0,\"hi\":1,\"_hi\":2,\"a\":3}}}");
    static const struct {
        const char *text;
        uint32_t id;
    } rows[] = {
        {"hi",  2},
        {"xhi", 1},
        {"hxi", 2},
        {"abx", 4}
    };
    heft_error err;
    size_t length = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint32_t *ids = NULL;
        size_t count = 0;
        test_expect_status(
            heft_tokenizer_encode(t, rows[i].text, strlen(rows[i].text), false, &ids, &count, &err),
            HEFT_OK, &err, rows[i].text);
        assert_true(count == 1 && ids[0] == rows[i].id);
        heft_tokenizer_free_ids(t, ids, count);
    }
    char *text = NULL;
    assert_string_equal(heft_tokenizer_token(t, 4, &length), "ab");
    test_expect_status(heft_tokenizer_decode(t, &rows[3].id, 1, true, &text, &length, &err),
                       HEFT_OK, &err, "decode"); /* special as "axb" only */
    assert_string_equal(text, "ab");
    heft_tokenizer_free_text(t, text, length);
    heft_tokenizer_close(t);
}

/* What tokenizer_config.json says otherwise is named. */
static void configs_are_compared(void **state)
{
    (void)state;
    static const struct {
        const char *config, *names;
    } rows[] = {
        {"{}",                                                                           ""                                                      },
        {"{\"eos_token\":\"axb\",\"unk_token\":null}",                                   ""                                                      },
        {"{\"eos_token\":{\"content\":\"</s>\"}}",                                       "token </s>"                                            },
        {"{\"eos_token\":\"u\"}",                                                        "token u"                                               },
        {"{\"additional_special_tokens\":[\"p\",\"axb\",\"q\"]}",                        "token p, token q"                                      },
        {"{\"extra_special_tokens\":{\"image_token\":\"<i>\"}}",                         "token <i>"                                             },
        {"{\"added_tokens_decoder\":{\"4\":{\"content\":\"axb\",\"lstrip\":false,\"special\":true}}"
         "}",                                                                   ""                                                      },
        {"{\"added_tokens_decoder\":{\"4\":{\"content\":\"axb\",\"lstrip\":true}}}",
         "flags of token axb"                                                                                                                    },
        {"{\"pad_token\":\"1\",\"additional_special_tokens\":[\"2\",\"3\",\"4\",\"5\",\"6\",\"7\"]"
         "}",                                                                   "token 1, token 2, token 3, token 4, token 5 and 2 more"},
        {"{\"tokenizer_class\":\"LlamaTokenizer\",\"add_prefix_space\":false}",          "add_prefix_space"                                      },
        {"{\"tokenizer_class\":\"PreTrainedTokenizerFast\",\"add_prefix_space\":false}", ""                                                      },
        {"[1]",                                                                          ""                                                      },
    };
    heft_tokenizer *t =
        open_text("{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_"
                  "scheme\":\"first\"},"
                  "\"added_tokens\":[{\"id\":4,\"content\":\"axb\",\"special\":true}],\"model\":{"
                  "\"type\":\"WordLevel\",\"unk_token\":\"u\",\"vocab\":{\"u\":0,\"hi\":1,\"_hi\":"
                  "2,\"a\":3}}}");
    heft_error err;
    char *text = NULL;
    size_t length = 0;
    test_expect_status(heft_tokenizer_check_config(t, "/none/such", &text, &length, &err), HEFT_OK,
                       &err, "no file");
    assert_string_equal(text, "");
    heft_tokenizer_free_text(t, text, length);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        test_write_file(folder, "tokenizer_config.json", rows[i].config, strlen(rows[i].config));
        test_expect_status(heft_tokenizer_check_config(t, folder, &text, &length, &err), HEFT_OK,
                           &err, rows[i].config);
        assert_string_equal(text, rows[i].names);
        assert_int_equal(length, strlen(rows[i].names));
        heft_tokenizer_free_text(t, text, length);
    }
    test_write_file(folder, "tokenizer_config.json", "{", 1);
    test_expect_status(heft_tokenizer_check_config(t, folder, &text, &length, &err), HEFT_FORMAT,
                       &err, "not JSON");
    heft_tokenizer_close(t);
}

static void text_that_is_not_utf8_is_refused_at_its_byte(void **state)
{
    (void)state;
    heft_tokenizer *t = open_text(FILE_OF("", WORDS));
    static const struct {
        const char *text;
        size_t at;
    } rows[] = {
        {"\xff",             0},
        {"ab\xc3",           2},
        {"a\xed\xa0\x80",    1},
        {"\xf4\x90\x80\x80", 0}
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t count = 77;
        heft_error err;
        heft_status status = encode_status(t, rows[i].text, strlen(rows[i].text), &count, &err);
        test_expect_status(status, HEFT_INVALID_ARG, &err, rows[i].text);
        assert_int_equal(err.offset, rows[i].at);
        assert_int_equal(count, 77);
    }
    heft_tokenizer_close(t);
}

/* A megabyte in one piece takes no time with the square of its length. */
static void long_pieces_are_encoded(void **state)
{
    (void)state;
    heft_tokenizer *t = open_text(BPE("\"vocab\":{\"a\":0,\"aa\":1,\"aaaa\":2,\"b\":3,\"ab\":4},"
                                      "\"merges\":[\"a b\",\"a a\",\"aa aa\"]"));
    const size_t length = 1 << 20;
    char *text = malloc(length);
    assert_non_null(text);
    memset(text, 'a', length);
    text[length - 1] = 'b';
    size_t count = 0;
    heft_error err;
    assert_int_equal(encode_status(t, text, length, &count, &err), HEFT_OK);
    /* "ab" first, then pairs and fours from the left: 2^20 - 2 letters are 262,143 fours and one pair */
    assert_int_equal(count, 262143 + 1 + 1);
    heft_tokenizer_close(t);
    free(text);
}

static void a_normalizer_that_grows_a_text_without_end_is_stopped(void **state)
{
    (void)state;
    char file[4096] = "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[";
    for (int i = 0; i < 40; i++) {
        strcat(file, i ? "," : "");
        strcat(file, "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aa\"}");
    }
    strcat(file, "]},\"model\":{" WORDS "}}");
    heft_tokenizer *t = open_text(file);
    size_t count = 0;
    heft_error err;
    test_expect_status(encode_status(t, "a", 1, &count, &err), HEFT_LIMIT, &err, "2^40");
    heft_tokenizer_close(t);
}

static void a_pattern_that_takes_too_many_steps_is_stopped(void **state)
{
    (void)state;
    if (!heft__text_has_regex()) {
        skip();
    }
    heft_tokenizer *t = open_text(REGEX("(?:a|a|aa)*c"));
    char text[64];
    memset(text, 'a', sizeof text);
    memcpy(text + sizeof text - 2, "bc", 2);
    size_t count = 0;
    heft_error err;
    test_expect_status(encode_status(t, text, sizeof text, &count, &err), HEFT_LIMIT, &err,
                       "steps");
    heft_tokenizer_close(t);
}

/* ---- memory ------------------------------------------------------------------------------------------------- */
struct file_text {
    char *text;
    size_t length;
};

static heft_status open_and_use(heft_ctx *small, void *user, heft_error *err)
{
    heft_tokenizer *t = NULL;
    const struct file_text *file = user;
    heft_status status =
        heft_tokenizer_open_bytes(small, "t.json", file->text, file->length, &t, err);
    uint32_t *ids = NULL;
    size_t count = 0, length = 0;
    char *text = NULL;
    static const char sample[] =
        "a <think> b \xC3\xA9t\xC3\xA9 e\xCC\x81 hello, world 123 \xE4\xBD\xA0";
    if (status == HEFT_OK) {
        status = heft_tokenizer_encode(t, sample, sizeof sample - 1, true, &ids, &count, err);
    }
    if (status == HEFT_OK) {
        status = heft_tokenizer_decode(t, ids, count, false, &text, &length, err);
        heft_tokenizer_free_text(t, text, length);
    }
    heft_text_stream *stream = NULL;
    if (status == HEFT_OK) {
        status = heft_text_stream_new(t, false, &stream, err);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        const char *part;
        status = heft_text_stream_add(stream, ids[i], &part, &length, err);
    }
    heft_text_stream_free(stream);
    heft_tokenizer_free_ids(t, ids, count);
    heft_tokenizer_close(t);
    return status;
}

static void memory_that_runs_out_is_an_error(void **state)
{
    (void)state;
    static const char *const names[] = {"plain_bpe.json", "byte_fallback.json", "byte_level.json",
                                        "word_piece.json", "unigram.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!can_open(names[i])) {
            continue;
        }
        char path[512];
        (void)snprintf(path, sizeof path, DATA "%s", names[i]);
        struct file_text file = {NULL, 0};
        file.text = test_read_file(path, &file.length);
        test_oom_sweep(open_and_use, &file);
        free(file.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_and_texts_are_those_of_tokenizers),
        cmocka_unit_test(tokens_and_ids_are_looked_up),
        cmocka_unit_test(a_folder_is_opened_by_its_file),
        cmocka_unit_test(what_is_not_known_is_refused),
        cmocka_unit_test(a_file_over_the_limit_is_refused),
        cmocka_unit_test(normalized_tokens_and_beginnings),
        cmocka_unit_test(configs_are_compared),
        cmocka_unit_test(text_that_is_not_utf8_is_refused_at_its_byte),
        cmocka_unit_test(long_pieces_are_encoded),
        cmocka_unit_test(a_normalizer_that_grows_a_text_without_end_is_stopped),
        cmocka_unit_test(a_pattern_that_takes_too_many_steps_is_stopped),
        cmocka_unit_test(memory_that_runs_out_is_an_error),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
