/* Which defects a survey finds in folders, and their effect on opening, on opening with trust in the
 * shards, and on verifying. The test writes the files itself. */
#include "checkpoint/checkpoint.h"
#include "support.h"
#include "support_model.h"

#include <ctype.h>
#include <stdlib.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utime.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define ONE "model-00001-of-00002.safetensors"
#define TWO "model-00002-of-00002.safetensors"
#define INDEX "model.safetensors.index.json"

static heft_ctx *ctx;
static char folder[256];

static int make_folder(void **state)
{
    (void)state;
    test_folder_make(folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    test_folder_remove(folder);
    return 0;
}

/* ---- files ----------------------------------------------------------------------------------- */
/* A safetensors file with two bytes for each letter of `names`; a capital one is the same name with other bytes. */
static void write_file(const char *file, const char *names)
{
    uint8_t bytes[1024];
    char header[800] = "{";
    size_t length = 1;
    for (size_t i = 0; names[i]; i++) {
        length +=
            (size_t)snprintf(header + length, sizeof header - length,
                             "%s\"%c\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[%zu,%zu]}",
                             i ? "," : "", tolower((unsigned char)names[i]), 2 * i, 2 * i + 2);
    }
    length += (size_t)snprintf(header + length, sizeof header - length, "}");
    heft__put_le64(bytes, length);
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; names[i]; i++) {
        memset(bytes + 8 + length + 2 * i, isupper((unsigned char)names[i]) ? 8 : 7, 2);
    }
    test_write_file(folder, file, bytes, 8 + length + 2 * strlen(names));
}

/* An index: "a1 b1 c2" is a and b in the first shard and c in the second. */
static void write_index(const char *places, const char *total)
{
    char text[1024];
    size_t length = (size_t)snprintf(text, sizeof text, "{\"weight_map\":{");
    for (const char *p = places; *p; p += p[2] ? 3 : 2) {
        length += (size_t)snprintf(text + length, sizeof text - length, "%s\"%c\":\"%s\"",
                                   p == places ? "" : ",", p[0], p[1] == '1' ? ONE : TWO);
    }
    length += (size_t)snprintf(text + length, sizeof text - length,
                               "},\"metadata\":{\"total_size\":%s}}", total);
    test_write_file(folder, INDEX, text, length);
}

/* ---- what is found --------------------------------------------------------------------------- */
struct expected {
    const char *kind, *file, *tensor, *words;
    bool note; /* does not make it unsound */
};

struct row {
    const char *name;
    const char *one, *two;     /* names in the shards; NULL: no file; "!": a malformed one */
    const char *index, *total; /* NULL: six bytes */
    const char *extra;         /* a file that lies beside them */
    struct expected found[4];
    heft_status open, trusted; /* what opening says */
    size_t warnings, trusted_warnings;
};

static const struct row rows[] = {
    {.name = "sound",                                                            .one = "ab", .two = "c", .index = "a1 b1 c2"},
    { .name = "listed_and_missing",
     .one = "ab",
     .two = "c",
     .index = "a1 b1 c2 d2",
     .found = {{"index_wrong", INDEX, "d", "not found in '" TWO "', where the index lists it",
                false}},
     .open = HEFT_FORMAT,
     .trusted_warnings = 1},
    {                                                                                                      .name = "in_another_shard",
     .one = "ab",
     .two = "c",
     .index = "a1 b2 c2",
     .found = {{"index_wrong", INDEX, "b", "', where the index lists it, but in '" ONE "'", false}},
     .open = HEFT_FORMAT,
     .trusted_warnings = 1},
    {                                                                                                        .name = "in_two_shards",
     .one = "ab",
     .two = "cb",
     .index = "a1 b1 c2",
     .found = {{"duplicate_tensor", TWO, "b",
                "a stale copy: the index lists it in '" ONE "', which is used", false}},
     .warnings = 1,
     .trusted_warnings = 1},
    {                                         .name = "in_two_shards_and_listed_in_neither",
     .one = "ab",
     .two = "cB",
     .index = "a1 c2",
     .found = {{"duplicate_tensor", ONE, "b", "is also in '" TWO "' with other values", false},
               {"not_in_index", TWO, "b", "not listed in the index", false}},
     .open = HEFT_FORMAT,
     .trusted = HEFT_FORMAT},
    {                                                                                                           .name = "not_listed",
     .one = "ab",
     .two = "c",
     .index = "a1 c2",
     .found = {{"not_in_index", ONE, "b", "not listed in the index", false}},
     .warnings = 1,
     .trusted_warnings = 1},
    {                                                                                                                 .name = "total_size",
     .one = "ab",
     .two = "c",
     .index = "a1 b1 c2",
     .total = "7",
     .found = {{"total_size", INDEX, "",
                "total_size is 7 in the index, but the tensors have 6 bytes", false}},
     .warnings = 1,
     .trusted_warnings = 1},
    {                                                                                                                .name = "total_size_as_a_float",
     .one = "ab",
     .two = "c",
     .index = "a1 b1 c2",
     .total = "7.5e9",
     .found = {{"total_size", INDEX, "", "total_size is 7.5e9 in the index", true}}},
    {                                                                                                    .name = "total_size_that_is_right_as_a_float",
     .one = "ab",
     .two = "c",
     .index = "a1 b1 c2",
     .total = "0.6e1"},
    {                                           .name = "missing_shard",
     .one = "ab",
     .index = "a1 b1 c2",
     .found = {{"missing_file", TWO, "c", "shard '" TWO "' is missing", false}},
     .open = HEFT_NOT_FOUND,
     .trusted = HEFT_NOT_FOUND},
    {                                      .name = "malformed_shard",
     .one = "!",
     .two = "c",
     .index = "a1 b1 c2",
     .found = {{"malformed_file", ONE, "", "file has 1 bytes", false}},
     .open = HEFT_FORMAT,
     .trusted = HEFT_FORMAT},
    {                                .name = "malformed_index",
     .one = "ab",
     .two = "c",
     .index = "!",
     .found = {{"index", INDEX, "", "", false}},
     .open = HEFT_FORMAT,
     .trusted = HEFT_FORMAT},
    {                                                                                                   .name = "everything_at_once",
     .one = "!",
     .two = "cx",
     .index = "a1 c2 d2",
     .total = "99", /* is not compared while a file cannot be read */
     .found = {{"malformed_file", ONE, "", "file has 1 bytes", false},
               {"index_wrong", INDEX, "d", "not found in '" TWO "'", false},
               {"not_in_index", TWO, "x", "", false}},
     .open = HEFT_FORMAT,
     .trusted = HEFT_FORMAT},
    {                                                                                                     .name = "a_shard_too_many",
     .one = "ab",
     .two = "c",
     .index = "a1 b1 c2",
     .extra = "model-00001-of-00009.safetensors",
     .found = {{"stale_file", "model-00001-of-00009.safetensors", "", "does not use", true}}},
    {                                                        .name = "rest_of_a_save",
     .one = "ab",
     .two = "c",
     .index = "a1 b1 c2",
     .extra = ".heft-tmp-abc",
     .found = {{"stale_file", ".heft-tmp-abc", "", "left by an interrupted save", true}}},
    {                                                                                                        .name = "a_dat_means_nothing_here",
     .one = "ab",
     .two = "c",
     .index = "a1 b1 c2",
     .extra = "notes.dat"},
    {                                                                                                        .name = "config_that_is_none",
     .one = "ab",
     .two = "c",
     .index = "a1 b1 c2",
     .extra = "config.json",
     .found = {{"config", "config.json", "", "expected a value", false}}},
};

static void write_shard(const char *file, const char *names)
{
    if (names && *names == '!') {
        test_write_file(folder, file, "x", 1);
    } else if (names) {
        write_file(file, names);
    }
}

static void write_row(const struct row *row)
{
    write_shard(ONE, row->one);
    write_shard(TWO, row->two);
    if (*row->index == '!') {
        test_write_file(folder, INDEX, "{\"weight_map\":", 14);
    } else {
        write_index(row->index, row->total ? row->total : "6");
    }
    if (row->extra) {
        test_write_file(folder, row->extra, "x", 1);
    }
}

static void expect_opening(const struct row *row, bool trust)
{
    const heft_checkpoint_options options =
        HEFT_OPTIONS(heft_checkpoint_options, .trust_shards = trust);
    const heft_status expected = trust ? row->trusted : row->open;
    heft_checkpoint *ckpt = NULL;
    heft_error err = {0};
    size_t warnings = 0;
    heft_status status = heft_checkpoint_open(ctx, folder, &options, &ckpt, &err);
    test_expect_status(status, expected, &err, row->name);
    if (status == HEFT_OK) {
        while (heft_checkpoint_warning(ckpt, warnings)) {
            warnings++;
        }
        assert_int_equal(warnings, trust ? row->trusted_warnings : row->warnings);
        assert_int_equal(err.status, HEFT_OK);
    } else if (!strstr(err.message, row->found[0].words) || !*err.path ||
               strcmp(err.item, row->found[0].tensor) != 0) {
        fail_msg("%s: %s: '%s': %s", row->name, err.path, err.item, err.message);
    }
    heft_checkpoint_close(ckpt);
}

static void expect_report(const char *name, const struct expected *found, size_t most)
{
    heft_verify_report *report = NULL;
    heft_error err = {0};
    size_t count = 0;
    bool ok = true;
    test_expect_status(test_verify(ctx, folder, NULL, &report, &err), HEFT_OK, &err, name);
    for (; count < most && found[count].kind; count++) {
        const struct expected *expected = &found[count];
        if (count >= report->problem_count) {
            fail_msg("%s: '%s' is not reported", name, expected->kind);
        }
        const heft_problem *problem = &report->problems[count];
        ok = ok && expected->note;
        if (strcmp(problem->kind, expected->kind) != 0 ||
            strcmp(problem->file, expected->file) != 0 ||
            strcmp(problem->tensor, expected->tensor) != 0 ||
            !strstr(problem->message, expected->words) || problem->fatal == expected->note) {
            fail_msg("%s: %s: %s: '%s': %s", name, problem->kind, problem->file, problem->tensor,
                     problem->message);
        }
    }
    if (report->problem_count != count) {
        fail_msg("%s: %zu problems, the last is %s", name, report->problem_count,
                 report->problems[report->problem_count - 1].message);
    }
    assert_int_equal(report->ok, ok);
    heft_verify_report_free(report);
}

static void what_is_found_is_judged(void **state)
{
    for (size_t i = 0; i < COUNT(rows); i++) {
        make_folder(state);
        write_row(&rows[i]);
        expect_opening(&rows[i], false);
        expect_opening(&rows[i], true);
        expect_report(rows[i].name, rows[i].found, COUNT(rows[i].found));
        remove_folder(state);
    }
}

/* Of a name in both shards the tensor that the index lists is used, in the position of the first. */
static void of_two_the_listed_one_counts(void **state)
{
    static const struct {
        const char *index, *file;
    } cases[] = {
        {"a1 b1 c2", ONE},
        {"a2 b1 c2", TWO},
    };
    (void)state;
    write_file(ONE, "ab");
    write_file(TWO, "cA");
    for (size_t i = 0; i < 2 * COUNT(cases); i++) {
        const heft_checkpoint_options options =
            HEFT_OPTIONS(heft_checkpoint_options, .trust_shards = i % 2 != 0);
        heft_checkpoint *ckpt = NULL;
        heft_error err;
        write_index(cases[i / 2].index, "6");
        test_expect_status(heft_checkpoint_open(ctx, folder, &options, &ckpt, &err), HEFT_OK, &err,
                           cases[i / 2].index);
        assert_int_equal(heft_checkpoint_count(ckpt), 3);
        assert_string_equal(heft_checkpoint_info(ckpt, 0)->name, "a");
        assert_string_equal(heft_checkpoint_info(ckpt, 0)->file, cases[i / 2].file);
        assert_int_equal(heft_checkpoint_total_bytes(ckpt), 6);
        assert_non_null(strstr(heft_checkpoint_warning(ckpt, 0), "a stale copy"));
        heft_checkpoint_close(ckpt);
    }
}

/* Without an index copies of equal values are one tensor; others are refused, whatever is trusted. */
static void copies_without_an_index(void **state)
{
    static const struct expected equal[] = {
        {"duplicate_tensor", ONE, "a", "is also in '" TWO "', with equal values", true}
    };
    static const struct expected other[] = {
        {"duplicate_tensor", ONE, "a", "is also in '" TWO "' with other values", false}
    };
    const heft_checkpoint_options trusting =
        HEFT_OPTIONS(heft_checkpoint_options, .trust_shards = true);
    heft_checkpoint *ckpt = NULL;
    heft_error err = {0};
    (void)state;
    write_file(ONE, "ab");
    write_file(TWO, "ca");
    test_expect_status(heft_checkpoint_open(ctx, folder, NULL, &ckpt, &err), HEFT_OK, &err,
                       "equal");
    assert_int_equal(heft_checkpoint_count(ckpt), 3);
    heft_checkpoint_close(ckpt);
    expect_report("equal", equal, COUNT(equal));
    write_file(TWO, "cA");
    test_expect_status(heft_checkpoint_open(ctx, folder, &trusting, &ckpt, &err), HEFT_FORMAT, &err,
                       "other");
    assert_string_equal(err.item, "a");
    assert_non_null(strstr(err.path, ONE));
    expect_report("other", other, COUNT(other));
}

/* A link into a cache whose file is gone: the link exists, so its target is reported. */
static void a_dangling_link_is_no_missing_shard(void **state)
{
    char path[400];
    heft_checkpoint *ckpt = NULL;
    heft_error err;
    (void)state;
    write_file(ONE, "ab");
    write_index("a1 b1 c2", "6");
    snprintf(path, sizeof path, "%s/" TWO, folder);
    assert_int_equal(symlink("../blobs/none", path), 0);
    test_expect_status(heft_checkpoint_open(ctx, folder, NULL, &ckpt, &err), HEFT_NOT_FOUND, &err,
                       "link");
    assert_string_equal(err.path, path);
    assert_non_null(strstr(err.message, "cannot open"));
}

static void single_file_and_index(void **state)
{
    static const struct expected older[] = {
        {"stale_file", "model.safetensors", "", "is older than", false}
    };
    char path[400];
    (void)state;
    write_file(ONE, "ab");
    write_file(TWO, "c");
    write_index("a1 b1 c2", "6");
    write_file("model.safetensors", "abc");
    heft_verify_report *report = NULL;
    heft_error err;
    test_expect_status(test_verify(ctx, folder, NULL, &report, &err), HEFT_OK, &err, "single");
    assert_int_equal(report->problem_count, 3); /* and two unused shards, in any order */
    assert_string_equal(report->problems[0].kind, "shadowed_index");
    assert_non_null(strstr(report->problems[0].message, "is used instead of"));
    assert_int_equal(report->total_bytes, 6);
    heft_verify_report_free(report);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_int_equal(utime(path, &(struct utimbuf){1000, 1000}), 0);
    expect_report("index", older, COUNT(older));
}

/* ---- an index that describes its tensors ----------------------------------------------------- */
static void write_offload(const char *format)
{
    char text[2048];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(text, sizeof text, format, folder, folder, folder);
#pragma GCC diagnostic pop
    test_write_file(folder, "index.json", text, strlen(text));
}

static void claims_are_compared_one_by_one(void **state)
{
    static const char index[] =
        "{\"fits\": {\"safetensors_file\": \"%s/m.safetensors\", \"weight_name\": \"a\"},"
        " \"other\": {\"safetensors_file\": \"%s/m.safetensors\", \"weight_name\": \"b\","
        " \"dtype\": \"int8\"}, \"none\": {\"safetensors_file\": \"%s/m.safetensors\"},"
        " \"d\": {\"dtype\": \"uint8\", \"shape\": [3]}}";
    static const struct expected found[] = {
        {"malformed_file", "d.dat",      "d",     "file has 2 bytes, uint8 [3] needs 3", false},
        {"index_wrong",    "index.json", "other", "dtype int8 in the index, uint8 in",   false},
        {"index_wrong",    "index.json", "none",  "'none' is not in '",                  false},
        {"stale_file",     "x.dat",      "",      "the index does not list",             true }
    };
    heft_checkpoint *ckpt = NULL;
    heft_error err;
    (void)state;
    write_file("m.safetensors", "ab");
    test_write_file(folder, "d.dat", "12", 2);
    test_write_file(folder, "x.dat", "12", 2);
    write_offload(index);
    expect_report("offload", found, COUNT(found));
    assert_int_equal(heft_checkpoint_open(ctx, folder, NULL, &ckpt, &err), HEFT_FORMAT);
    assert_string_equal(err.item, "d");
    const heft_checkpoint_options options = HEFT_SIZED(heft_checkpoint_options);
    test_expect_status(heft__checkpoint_survey(ctx, folder, &options, &ckpt, &err), HEFT_OK, &err,
                       "survey");
    assert_int_equal(heft_checkpoint_count(ckpt), 1); /* what fits can be read all the same */
    assert_string_equal(heft_checkpoint_info(ckpt, 0)->name, "fits");
    assert_true(heft__file_is_local(ckpt, 0));
    heft_checkpoint_close(ckpt);
}

/* ---- opened once ----------------------------------------------------------------------------- */
/* How often each of the names was opened since the watch began. */
static void count_opens(int watch, const char *const *names, size_t *counts, size_t count)
{
    _Alignas(struct inotify_event) char buffer[65536];
    ssize_t length;
    memset(counts, 0, count * sizeof *counts);
    while ((length = read(watch, buffer, sizeof buffer)) > 0) {
        for (char *at = buffer; at < buffer + length;) {
            const struct inotify_event *event = (const struct inotify_event *)(void *)at;
            for (size_t i = 0; i < count; i++) {
                counts[i] += event->len && strcmp(event->name, names[i]) == 0;
            }
            at += sizeof *event + event->len;
        }
    }
}

static void every_file_is_opened_once(void **state)
{
    static const char *const names[] = {ONE, TWO, INDEX};
    const heft_verify_options deep = HEFT_OPTIONS(heft_verify_options, .deep = true);
    heft_verify_report *report = NULL;
    heft_checkpoint *ckpt = NULL;
    heft_error err;
    size_t counts[COUNT(names)];
    char path[400];
    (void)state;
    write_file(ONE, "ab");
    write_file(TWO, "c");
    write_index("a1 b1 c2", "6");
    int watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (watch < 0 || inotify_add_watch(watch, folder, IN_OPEN) < 0) {
        print_message("no inotify here: opens are not counted\n");
        return;
    }
    for (size_t round = 0; round < 3; round++) {
        snprintf(path, sizeof path, "%s/out", folder);
        heft_status status = round == 0   ? heft_checkpoint_open(ctx, folder, NULL, &ckpt, &err)
                             : round == 1 ? test_verify(ctx, folder, &deep, &report, &err)
                                          : test_convert(ctx, folder, path, NULL, NULL, &err);
        test_expect_status(status, HEFT_OK, &err, "round");
        count_opens(watch, names, counts, COUNT(names));
        for (size_t i = 0; i < COUNT(names); i++) {
            if (counts[i] != 1) {
                fail_msg("round %zu: %s was opened %zu times", round, names[i], counts[i]);
            }
        }
    }
    assert_true(report->ok);
    heft_verify_report_free(report);
    heft_checkpoint_close(ckpt);
    close(watch);
}

/* ---- failing allocations --------------------------------------------------------------------- */
static heft_status survey_all(heft_ctx *with, void *user, heft_error *err)
{
    const heft_checkpoint_options options =
        HEFT_OPTIONS(heft_checkpoint_options, .trust_shards = true);
    heft_verify_report *report = NULL;
    heft_checkpoint *ckpt = NULL;
    (void)user;
    heft_status status = heft_checkpoint_open(with, folder, &options, &ckpt, err);
    heft_checkpoint_close(ckpt);
    if (status != HEFT_NOMEM) { /* what is malformed stays so */
        status = test_verify(with, folder, NULL, &report, err);
    }
    heft_verify_report_free(report);
    return status;
}

static void every_allocation_may_fail(void **state)
{
    for (size_t i = 0; i < COUNT(rows); i++) {
        make_folder(state);
        write_row(&rows[i]);
        test_oom_sweep(survey_all, NULL);
        remove_folder(state);
    }
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_found_is_judged), IN_FOLDER(of_two_the_listed_one_counts),
        IN_FOLDER(copies_without_an_index),        IN_FOLDER(a_dangling_link_is_no_missing_shard),
        IN_FOLDER(single_file_and_index),          IN_FOLDER(claims_are_compared_one_by_one),
        IN_FOLDER(every_file_is_opened_once),      cmocka_unit_test(every_allocation_may_fail),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
