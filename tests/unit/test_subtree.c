/* io: folders below a folder: what is listed, how it is written, and what of the destination is kept.
 * Source: docs/transactions.md. Failing and killed calls are tried in tests/faults. */
#include "io/dir.h"
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static heft_ctx *ctx;
static char folder[256];
static heft__arena arena;

static const char *at(const char *name)
{
    return test_path(folder, name);
}

/* A file below the test's folder, with the folders that it needs; a name that ends with a slash is a
 * folder. */
static void make(const char *name, const char *text)
{
    char path[900];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    for (char *p = path + strlen(folder) + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = '\0';
        assert_true(mkdir(path, 0755) == 0 || errno == EEXIST);
        *p = '/';
    }
    if (path[strlen(path) - 1] == '/') {
        return;
    }
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    fputs(text, out);
    assert_int_equal(fclose(out), 0);
}

static void expect_text(const char *name, const char *text)
{
    char *found = test_read_file(at(name), NULL);
    assert_string_equal(found, text);
    free(found);
}

static int set_up(void **state)
{
    (void)state;
    ctx = heft_ctx_new(NULL);
    test_folder_make(folder);
    heft__arena_init(&arena, ctx);
    make("source/top/config.json", "{}");
    make("source/top/empty/", "");
    make("source/top/inner/weights.bin", "0123456789");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    heft__arena_fini(&arena);
    test_folder_remove(folder);
    heft_ctx_free(ctx);
    return 0;
}

/* ---- listing ------------------------------------------------------------------------------------- */
static char left[2000];

static heft_status note(void *user, const char *path, bool is_folder, heft_error *err)
{
    (void)user, (void)err;
    snprintf(left + strlen(left), sizeof left - strlen(left), "%s%s ", path, is_folder ? "/" : "");
    return HEFT_OK;
}

static heft__subtree list(const char *name, const heft__subtree_rules *rules)
{
    heft__subtree tree = {0};
    heft_error err;
    left[0] = '\0';
    test_expect_status(heft__subtree_list(&arena, at("source"), name, rules, &tree, &err), HEFT_OK,
                       &err, name);
    return tree;
}

static const char *paths_of(const heft__subtree *tree)
{
    static char text[4000];
    text[0] = '\0';
    for (size_t i = 0; i < tree->count; i++) {
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s ", tree->entries[i].path,
                 tree->entries[i].is_folder ? "/" : "");
    }
    return text;
}

static void a_tree_is_listed_in_order(void **state)
{
    (void)state;
    const heft__subtree tree = list("top", &(heft__subtree_rules){.left = note});
    assert_string_equal(paths_of(&tree),
                        "top/ top/config.json top/empty/ top/inner/ top/inner/weights.bin ");
    assert_int_equal(tree.bytes, 12);
    assert_string_equal(left, "");
}

static void only_plain_files_are_listed(void **state)
{
    (void)state;
    make("elsewhere/secret", "secret");
    make("source/odd/.hidden", "");
    make("source/odd/.git/config", "");
    make("source/odd/__pycache__/a.pyc", "");
    make("source/odd/x.heft-tmp-1", "");
    make("source/odd/lost+found/", "");
    make("source/odd/file", "a");
    assert_int_equal(mkfifo(at("source/odd/pipe"), 0666), 0);
    assert_int_equal(symlink("../../elsewhere/secret", at("source/odd/blob")), 0);
    assert_int_equal(symlink("../../elsewhere", at("source/odd/away")), 0);
    assert_int_equal(symlink(".", at("source/odd/self")), 0);
    assert_int_equal(symlink("nothing", at("source/odd/gone")), 0);
    assert_int_equal(symlink("loop", at("source/odd/loop")), 0);
    assert_int_equal(symlink("pipe", at("source/odd/pipe_too")), 0);
    assert_int_equal(symlink("/dev/zero", at("source/odd/zero")), 0);
    const heft__subtree tree = list("odd", &(heft__subtree_rules){.left = note});
    assert_string_equal(paths_of(&tree), "odd/ odd/blob odd/file ");
    assert_int_equal(tree.bytes, 7); /* of the file that the link leads to */
    assert_string_equal(left,
                        "odd/away/ odd/gone odd/loop odd/pipe odd/pipe_too odd/self/ odd/zero ");
}

/* The top itself may be what is left. */
static void a_top_that_is_none_is_left(void **state)
{
    (void)state;
    assert_int_equal(symlink("top", at("source/link")), 0);
    assert_int_equal(mkfifo(at("source/pipe"), 0666), 0);
    const heft__subtree_rules rules = {.left = note};
    assert_int_equal(list("link", &rules).count, 0);
    assert_string_equal(left, "link/ ");
    assert_int_equal(list("pipe", &rules).count, 0);
    assert_string_equal(left, "pipe ");
}

static void depth_is_limited(void **state)
{
    (void)state;
    char path[200] = "source/deep/";
    for (unsigned i = 1; i < HEFT__SUBTREE_DEPTH + 3; i++) {
        snprintf(path + strlen(path), sizeof path - strlen(path), "%u/", i % 10);
    }
    make(path, "");
    const heft__subtree tree = list("deep", &(heft__subtree_rules){.left = note});
    assert_int_equal(tree.count, HEFT__SUBTREE_DEPTH);
    assert_string_equal(left, "deep/1/2/3/4/5/6/7/8/9/0/1/2/3/4/5/6/ ");
}

static void what_holds_the_destination_is_left(void **state)
{
    (void)state;
    static const struct {
        const char *dst, *left;
    } rows[] = {
        {"source/top/inner",       "top/ "},
        {"source/top/not/yet/out", "top/ "},
        {"source/top",             "top/ "},
        {"source/out",             ""     },
        {"elsewhere/out",          ""     },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_error err;
        heft__subtree_rules rules = {.left = note};
        assert_int_equal(heft__lineage_of(&arena, at(rows[i].dst), &rules.around, &err), HEFT_OK);
        const heft__subtree tree = list("top", &rules);
        assert_string_equal(left, rows[i].left);
        assert_int_equal(tree.count == 0, *rows[i].left != '\0');
    }
}

static bool not_inner(void *user, const char *path, const char *const *names, size_t count)
{
    (void)user;
    return strcmp(path, "top/inner") != 0 || count != 1 || strcmp(names[0], "weights.bin") != 0;
}

static void unwanted_folders_are_left(void **state)
{
    (void)state;
    const heft__subtree tree =
        list("top", &(heft__subtree_rules){.wanted = not_inner, .left = note});
    assert_string_equal(paths_of(&tree), "top/ top/config.json top/empty/ ");
    assert_string_equal(left, "top/inner/ ");
}

/* ---- writing ------------------------------------------------------------------------------------- */
static heft_status copy(void *user, const char *path, heft_error *err)
{
    heft__folder_writer *writer = user;
    size_t length = 0;
    char *text = test_read_file(path, &length);
    const heft_status status = heft__folder_write(writer, text, length, err);
    free(text);
    return status;
}

/* Write the tree "top" to out: what stands in the way, or NULL. */
static const char *write_top(bool keep)
{
    heft__folder_writer *writer = NULL;
    heft_error err;
    static char extra[200];
    const char *found = NULL;
    const heft__subtree tree = list("top", &(heft__subtree_rules){.left = note});
    test_expect_status(heft__folder_begin(ctx, at("out"), NULL, &writer, &err), HEFT_OK, &err,
                       "begin");
    test_expect_status(
        heft__folder_subtree(writer, &tree, &(heft__subtree_copy){copy, writer}, &err), HEFT_OK,
        &err, "write");
    test_expect_status(heft__folder_subtree_extra(writer, &tree, keep, true, &found, &err), HEFT_OK,
                       &err, "extra");
    if (found) {
        snprintf(extra, sizeof extra, "%s", found);
    } else {
        test_expect_status(heft__folder_commit(writer, &err), HEFT_OK, &err, "commit");
    }
    heft__folder_free(writer);
    return found ? extra : NULL;
}

static void expect_top(void)
{
    expect_text("out/top/config.json", "{}");
    expect_text("out/top/inner/weights.bin", "0123456789");
    assert_true(heft__path_is_folder(at("out/top/empty")));
    assert_int_equal(test_count_entries(folder), 2);
}

static mode_t mode_of(const char *name)
{
    struct stat facts;
    assert_int_equal(stat(at(name), &facts), 0);
    return facts.st_mode & 0777;
}

static void a_tree_is_written_to_a_new_folder(void **state)
{
    (void)state;
    assert_int_equal(chmod(at("source/top/inner"), 0500), 0);
    assert_null(write_top(false));
    expect_top();
    assert_int_equal(mode_of("out/top/inner"), 0700); /* no wider, but it can be written */
    assert_int_equal(chmod(at("source/top/inner"), 0755), 0);
}

/* Once by an exchange of folders, once file by file: a working directory is not exchanged. */
static void a_folder_is_replaced(void **state)
{
    (void)state;
    char here[900];
    assert_non_null(getcwd(here, sizeof here));
    for (unsigned journal = 0; journal < 2; journal++) {
        make("out/top/config.json", "old");
        make("out/top/empty", "a file");
        make("out/notes", "mine");
        assert_int_equal(chmod(at("out/top"), 0710), 0);
        assert_int_equal(chmod(at("out/top/config.json"), 0600), 0);
        assert_int_equal(journal ? chdir(at("out")) : 0, 0);
        const char *extra = write_top(false);
        assert_int_equal(chdir(here), 0);
        assert_null(extra);
        expect_top();
        expect_text("out/notes", "mine");
        assert_int_equal(mode_of("out/top"), 0710);
        assert_int_equal(mode_of("out/top/config.json"), 0600);
        assert_int_equal(test_count_entries(at("out")), 2);
        test_folder_remove(at("out"));
    }
}

static void what_only_the_destination_has_is_not_lost(void **state)
{
    (void)state;
    static const struct {
        const char *name, *extra;
        bool can_keep;
    } rows[] = {
        {"out/top/mine",               "top/mine",        true },
        {"out/top/inner/mine",         "top/inner/mine",  true },
        {"out/top/own/deep/mine",      "top/own",         true },
        {"out/top/.mine",              NULL,              true },
        {"out/top/inner/.mine/deep",   NULL,              true },
        {"out/top/config.json/inside", "top/config.json", false},
        {"out/mine",                   NULL,              true },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        make(rows[i].name, "mine");
        const char *extra = write_top(false);
        if (rows[i].extra) {
            assert_non_null(extra);
            assert_string_equal(extra, rows[i].extra);
            expect_text(rows[i].name, "mine");
            assert_false(heft__path_exists(at("out/top/empty")));
            extra = write_top(true);
        }
        assert_int_equal(extra == NULL, rows[i].can_keep);
        expect_text(rows[i].name, "mine");
        if (rows[i].can_keep) {
            expect_top();
        }
        test_folder_remove(at("out"));
    }
}

static void a_link_is_replaced_and_not_followed(void **state)
{
    (void)state;
    make("source/other", "here");
    make("out/", "");
    assert_int_equal(symlink("../source", at("out/top")), 0);
    assert_null(write_top(false));
    expect_top();
    expect_text("source/other", "here");
    assert_int_equal(test_count_entries(at("source")), 2);
}

static void the_same_tree_is_known(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text;
        bool same;
    } rows[] = {
        {NULL,                        NULL,         true },
        {"out/other",                 "",           true },
        {"out/top/.hidden",           "",           true },
        {"out/top/more",              "",           false},
        {"out/top/inner/weights.bin", "0123456780", false},
        {"out/top/inner/weights.bin", "012345678",  false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft__folder_writer *writer = NULL;
        heft_error err;
        assert_null(write_top(false));
        if (rows[i].name) {
            make(rows[i].name, rows[i].text);
        }
        const heft__subtree tree = list("top", &(heft__subtree_rules){.left = note});
        test_expect_status(heft__folder_begin(ctx, at("out"), NULL, &writer, &err), HEFT_OK, &err,
                           "begin");
        if (heft__folder_has_subtree(writer, &tree) != rows[i].same) {
            fail_msg("row %zu", i);
        }
        assert_int_equal(unlink(at("out/top/config.json")), 0);
        assert_false(heft__folder_has_subtree(writer, &tree));
        heft__folder_free(writer);
        test_folder_remove(at("out"));
    }
}

/* A process that dies between the exchange and the end: what others put into a folder that was replaced is
 * in the old one. */
static void what_came_meanwhile_is_kept(void **state)
{
    (void)state;
    struct stat facts;
    char record[256];
    make("out/top/config.json", "new");
    make("out/top/inner/", "");
    make(".out.heft-tmp-0123456789abcdef/new/top/config.json", "old");
    make(".out.heft-tmp-0123456789abcdef/new/top/inner/late", "came later");
    make(".out.heft-tmp-0123456789abcdef/new/top/late", "this too");
    assert_int_equal(chmod(at(".out.heft-tmp-0123456789abcdef"), 0700), 0);
    assert_int_equal(stat(at("out"), &facts), 0);
    snprintf(record, sizeof record, "heft-work 1\nfile 1 3 0 0 top\nstaged %llu\n",
             (unsigned long long)facts.st_ino);
    make(".out.heft-tmp-0123456789abcdef/record", record);
    heft__folder_tidy(ctx, at("out"));
    assert_int_equal(test_count_entries(folder), 2);
    expect_text("out/top/config.json", "new");
    expect_text("out/top/inner/late", "came later");
    expect_text("out/top/late", "this too");
}

/* ---- memory -------------------------------------------------------------------------------------- */
static heft_status write_all(heft_ctx *small, void *user, heft_error *err)
{
    (void)user;
    heft__arena own;
    heft__subtree tree = {0};
    heft__subtree_rules rules = {0};
    heft__folder_writer *writer = NULL;
    const char *extra = NULL;
    heft__arena_init(&own, small);
    heft_status status = heft__lineage_of(&own, at("out"), &rules.around, err);
    if (status == HEFT_OK) {
        status = heft__subtree_list(&own, at("source"), "top", &rules, &tree, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_begin(small, at("out"), NULL, &writer, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_subtree(writer, &tree, &(heft__subtree_copy){copy, writer}, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_subtree_extra(writer, &tree, true, true, &extra, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_commit(writer, err);
    }
    heft__folder_free(writer);
    heft__arena_fini(&own);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    make("out/top/mine", "mine");
    test_oom_sweep(write_all, NULL);
    expect_top();
    expect_text("out/top/mine", "mine");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_tree_is_listed_in_order),
        TEST(only_plain_files_are_listed),
        TEST(a_top_that_is_none_is_left),
        TEST(depth_is_limited),
        TEST(what_holds_the_destination_is_left),
        TEST(unwanted_folders_are_left),
        TEST(a_tree_is_written_to_a_new_folder),
        TEST(a_folder_is_replaced),
        TEST(what_only_the_destination_has_is_not_lost),
        TEST(a_link_is_replaced_and_not_followed),
        TEST(the_same_tree_is_known),
        TEST(what_came_meanwhile_is_kept),
        TEST(memory_can_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
