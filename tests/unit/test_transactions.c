/* io: what is in a destination at every moment: locks, exchanges, journals, repairs. docs/transactions.md.
 * Failing and killed calls are tried in tests/faults. */
#include "io/dir.h"
#include "io/lock.h"
#include "io/record.h"
#include "scratch.h"

#include <heft/writer.h>

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void make(const char *path, const char *text)
{
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    fputs(text, out);
    assert_int_equal(fclose(out), 0);
}

static void expect_text(const char *path, const char *text)
{
    char *found = test_read_file(path, NULL);
    assert_string_equal(found, text);
    free(found);
}

static ino_t inode_of(const char *path)
{
    struct stat facts;
    assert_int_equal(lstat(path, &facts), 0);
    return facts.st_ino;
}

static mode_t mode_of(const char *path)
{
    struct stat facts;
    assert_int_equal(stat(path, &facts), 0);
    return facts.st_mode & 07777;
}

static void put(heft__folder_writer *writer, const char *name, bool entry_point, const char *text)
{
    heft_error err;
    test_expect_status(heft__folder_file_begin(writer, name, entry_point, &err), HEFT_OK, &err,
                       name);
    test_expect_status(heft__folder_write(writer, text, strlen(text), &err), HEFT_OK, &err, name);
    test_expect_status(heft__folder_file_end(writer, &err), HEFT_OK, &err, name);
}

static heft__folder_writer *begin(const char *path, const heft__folder_options *options)
{
    heft__folder_writer *writer = NULL;
    heft_error err;
    test_expect_status(heft__folder_begin(ctx, path, options, &writer, &err), HEFT_OK, &err, path);
    return writer;
}

static void commit(heft__folder_writer *writer)
{
    heft_error err;
    test_expect_status(heft__folder_commit(writer, &err), HEFT_OK, &err, "commit");
    heft__folder_free(writer);
}

/* The name of the one entry of the test's folder that begins so; NULL if there is none. */
static const char *find(const char *prefix)
{
    static char name[256];
    const char *found = NULL;
    const int dir = heft__dir_open(AT_FDCWD, folder);
    heft__arena arena;
    const char *const *names;
    size_t count;
    heft_error err;
    heft__arena_init(&arena, ctx);
    assert_int_equal(heft__dir_list(&arena, dir, &names, &count, &err), HEFT_OK);
    for (size_t i = 0; i < count; i++) {
        if (strncmp(names[i], prefix, strlen(prefix)) == 0 && !strstr(names[i], "lock")) {
            snprintf(name, sizeof name, "%s", names[i]);
            found = name;
        }
    }
    heft__arena_fini(&arena);
    close(dir);
    return found;
}

/* ---- locks --------------------------------------------------------------------------------------- */
static void a_second_writer_is_told_who_holds_the_destination(void **state)
{
    (void)state;
    heft__folder_writer *first = begin(at("out"), NULL), *second = NULL;
    heft_error err;
    char process[64];
    assert_int_equal(heft__folder_begin(ctx, at("out"), NULL, &second, &err), HEFT_EXISTS);
    snprintf(process, sizeof process, "is being written by process %ld on ", (long)getpid());
    assert_non_null(strstr(err.message, process));
    assert_non_null(strstr(err.message, ", since 2"));
    assert_null(second);
    put(first, "a", false, "1");
    commit(first);
    commit(begin(at("out"), NULL)); /* nothing to change: everything stays */
    expect_text(at("out/a"), "1");
    assert_int_equal(test_count_entries(folder), 1);
}

static void a_folder_is_locked_by_every_path(void **state)
{
    (void)state;
    heft__folder_writer *first, *second = NULL;
    heft_error err;
    assert_int_equal(mkdir(at("out"), 0700), 0);
    assert_int_equal(symlink("out", at("link")), 0);
    first = begin(at("link"), NULL);
    assert_int_equal(heft__folder_begin(ctx, at("out/"), NULL, &second, &err), HEFT_EXISTS);
    put(first, "a", false, "1");
    commit(first);
    expect_text(at("out/a"), "1");
    struct stat facts;
    assert_int_equal(lstat(at("link"), &facts), 0);
    assert_true(S_ISLNK(facts.st_mode)); /* the link stays one */
}

static void a_lock_dies_with_its_owner(void **state)
{
    (void)state;
    const pid_t child = fork();
    if (child == 0) {
        heft__folder_writer *writer = NULL;
        heft_error err;
        _exit(heft__folder_begin(ctx, at("out"), NULL, &writer, &err) == HEFT_OK ? 0 : 1);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_non_null(find(".out.heft-tmp-"));
    heft__folder_writer *writer = begin(at("out"), NULL);
    put(writer, "a", false, "1");
    commit(writer);
    assert_int_equal(test_count_entries(folder),
                     1); /* lock and work folder of the child are gone */
}

static void planted_locks_are_refused(void **state)
{
    (void)state;
    heft__folder_writer *writer = NULL;
    heft_error err;
    make(at("precious"), "text");
    assert_int_equal(link(at("precious"), at(".out.heft-tmp-lock")), 0);
    assert_int_equal(heft__folder_begin(ctx, at("out"), NULL, &writer, &err), HEFT_REFUSED);
    assert_int_equal(unlink(at(".out.heft-tmp-lock")), 0);
    assert_int_equal(symlink("precious", at(".out.heft-tmp-lock")), 0);
    assert_int_equal(heft__folder_begin(ctx, at("out"), NULL, &writer, &err), HEFT_IO);
    expect_text(at("precious"), "text");
}

/* ---- exchanges ----------------------------------------------------------------------------------- */
static void what_is_not_replaced_stays_the_same_file(void **state)
{
    (void)state;
    assert_int_equal(mkdir(at("out"), 0750), 0);
    assert_int_equal(mkdir(at("out/sub"), 0711), 0);
    make(at("out/notes"), "mine");
    make(at("out/sub/deep"), "too");
    assert_int_equal(symlink("notes", at("out/link")), 0);
    make(at("out/shard"), "old");
    make(at("out/stale"), "old");
    const ino_t notes = inode_of(at("out/notes")), deep = inode_of(at("out/sub/deep"));
    const ino_t before = inode_of(at("out"));
    heft__folder_writer *writer = begin(at("out"), NULL);
    heft_error err;
    put(writer, "shard", false, "new");
    assert_int_equal(heft__folder_remove(writer, "stale", false, &err), HEFT_OK);
    commit(writer);
    assert_int_not_equal(inode_of(at("out")), before); /* one exchange */
    assert_int_equal(inode_of(at("out/notes")), notes);
    assert_int_equal(inode_of(at("out/sub/deep")), deep);
    assert_int_equal(mode_of(at("out")), 0750);
    assert_int_equal(mode_of(at("out/sub")), 0711);
    expect_text(at("out/link"), "mine");
    expect_text(at("out/shard"), "new");
    assert_int_equal(test_count_entries(at("out")), 4);
    assert_int_equal(test_count_entries(folder), 1);
}

/* A process that dies between the exchange and the end: what others put into the folder meanwhile is in
 * the old one. */
static void what_came_meanwhile_is_kept(void **state)
{
    (void)state;
    assert_int_equal(mkdir(at("out"), 0700), 0);
    make(at("out/shard"), "new");
    make(at("out/linked"), "same");
    assert_int_equal(mkdir(at(".out.heft-tmp-0123456789abcdef"), 0700), 0);
    assert_int_equal(mkdir(at(".out.heft-tmp-0123456789abcdef/new"), 0700), 0);
    make(at(".out.heft-tmp-0123456789abcdef/new/shard"), "old");
    make(at(".out.heft-tmp-0123456789abcdef/new/stale"), "old");
    make(at(".out.heft-tmp-0123456789abcdef/new/log"), "came later");
    assert_int_equal(link(at("out/linked"), at(".out.heft-tmp-0123456789abcdef/new/linked")), 0);
    char record[256];
    snprintf(record, sizeof record, "heft-work 1\nfile 1 3 0 0 shard\ndrop stale\nstaged %llu\n",
             (unsigned long long)inode_of(at("out")));
    make(at(".out.heft-tmp-0123456789abcdef/record"), record);
    heft__folder_free(begin(at("out"), NULL));
    assert_int_equal(test_count_entries(folder), 1);
    expect_text(at("out/shard"), "new");
    expect_text(at("out/linked"), "same");
    expect_text(at("out/log"), "came later");
    assert_int_equal(test_count_entries(at("out")), 3);
}

static void files_are_no_wider_than_they_were(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        mode_t old, limit, expected; /* old: 0 for a new folder */
    } rows[] = {
        {"new",              0,    0,    0644},
        {"private_source",   0,    0600, 0600},
        {"replaced_private", 0600, 0,    0600},
        {"replaced_group",   0640, 0666, 0640},
        {"both",             0640, 0604, 0600},
        {"wide",             0666, 0,    0644},
    };
    const mode_t before = umask(022);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char path[300];
        snprintf(path, sizeof path, "%s/%s", folder, rows[i].name);
        if (rows[i].old) {
            assert_int_equal(mkdir(path, 0755), 0);
            make(test_path(path, "f"), "old");
            assert_int_equal(chmod(test_path(path, "f"), rows[i].old), 0);
        }
        heft__folder_writer *writer =
            begin(path, &(heft__folder_options){.file_mode = rows[i].limit});
        put(writer, "f", false, "new");
        put(writer, "g", false, "new");
        commit(writer);
        if (mode_of(test_path(path, "f")) != rows[i].expected ||
            mode_of(test_path(path, "g")) != rows[i].expected) {
            fail_msg("%s: %o and %o, expected %o", rows[i].name, mode_of(test_path(path, "f")),
                     mode_of(test_path(path, "g")), rows[i].expected);
        }
    }
    umask(before);
}

/* ---- journals ------------------------------------------------------------------------------------ */
/* A folder in which a replacement of shard (there is an old one), index (an entry point) and extra (a new
 * file), and the removal of stale, was stopped after `moves` moves. */
static void stop_after(const char *path, size_t moves)
{
    static const char *const steps[][2] = {
        {"index",       "W/old/index"},
        {"shard",       "W/old/shard"},
        {"W/new/shard", "shard"      },
        {"W/new/extra", "extra"      },
        {"stale",       "W/old/stale"},
        {"W/new/index", "index"      },
    };
    char from[600], to[600], work[400];
    snprintf(work, sizeof work, "%s/.heft-tmp-00000000deadbeef", path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(mkdir(work, 0700), 0);
    assert_int_equal(mkdir(test_path(work, "old"), 0700), 0);
    assert_int_equal(mkdir(test_path(work, "new"), 0700), 0);
    make(test_path(path, "index"), "old");
    make(test_path(path, "shard"), "old");
    make(test_path(path, "stale"), "old");
    make(test_path(work, "new/index"), "new");
    make(test_path(work, "new/shard"), "new");
    make(test_path(work, "new/extra"), "new");
    make(test_path(path, HEFT__JOURNAL),
         "heft-journal 1\nwork .heft-tmp-00000000deadbeef\nput 0 1 shard\nput 0 0 extra\n"
         "put 1 1 index\ndrop 0 1 stale\nend\n");
    for (size_t i = 0; i < moves && i < sizeof steps / sizeof steps[0]; i++) {
        for (size_t k = 0; k < 2; k++) {
            const bool inside = steps[i][k][0] == 'W';
            snprintf(k == 0 ? from : to, sizeof from, "%s/%s", inside ? work : path,
                     steps[i][k] + (inside ? 2 : 0));
        }
        assert_int_equal(rename(from, to), 0);
    }
}

static void an_interrupted_replacement_is_taken_back(void **state)
{
    (void)state;
    for (size_t moves = 0; moves <= 6; moves++) {
        for (size_t writer = 0; writer < 2; writer++) {
            char name[32], path[300];
            heft_error err;
            snprintf(name, sizeof name, "d%zu-%zu", moves, writer);
            snprintf(path, sizeof path, "%s/%s", folder, name);
            stop_after(path, moves);
            if (writer) {
                heft__folder_free(begin(path, NULL));
            } else {
                test_expect_status(heft__folder_recover(ctx, path, &err), HEFT_OK, &err, name);
            }
            expect_text(test_path(path, "index"), "old");
            expect_text(test_path(path, "shard"), "old");
            expect_text(test_path(path, "stale"), "old");
            assert_int_equal(test_count_entries(path), 3);
        }
    }
}

/* The old shard has both names: it was moved by a link and a removal that did not happen. */
static void a_file_with_both_names_is_taken_back(void **state)
{
    (void)state;
    char path[300], from[400], to[400];
    heft_error err;
    snprintf(path, sizeof path, "%s/both-names", folder);
    stop_after(path, 2);
    snprintf(from, sizeof from, "%s/.heft-tmp-00000000deadbeef/old/shard", path);
    snprintf(to, sizeof to, "%s/shard", path);
    assert_int_equal(link(from, to), 0);
    test_expect_status(heft__folder_recover(ctx, path, &err), HEFT_OK, &err, "both");
    expect_text(test_path(path, "index"), "old");
    expect_text(test_path(path, "shard"), "old");
    assert_int_equal(test_count_entries(path), 3);
    /* another file of the name is nobody's to remove */
    snprintf(path, sizeof path, "%s/other-file", folder);
    stop_after(path, 2);
    make(test_path(path, "shard"), "another's");
    assert_int_not_equal(heft__folder_recover(ctx, path, &err), HEFT_OK);
    expect_text(test_path(path, "shard"), "another's");
    snprintf(from, sizeof from, "%s/.heft-tmp-00000000deadbeef/old/shard", path);
    expect_text(from, "old");
}

static void a_repair_waits_for_a_living_owner(void **state)
{
    (void)state;
    char path[300];
    heft_error err;
    int ready[2];
    snprintf(path, sizeof path, "%s/d", folder);
    stop_after(path, 3);
    assert_int_equal(pipe(ready), 0);
    const pid_t child = fork();
    if (child == 0) { /* holds the journal, then puts the rest in place and removes it */
        const int fd = open(test_path(path, HEFT__JOURNAL), O_RDWR);
        char byte = flock(fd, LOCK_EX) == 0 ? '1' : '0';
        if (write(ready[1], &byte, 1) != 1) {
            _exit(1);
        }
        usleep(100000);
        _exit(unlink(test_path(path, HEFT__JOURNAL)) == 0 ? 0 : 1);
    }
    char byte = 0;
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_int_equal(byte, '1');
    test_expect_status(heft__folder_recover(ctx, path, &err), HEFT_OK, &err, "recover");
    expect_text(test_path(path, "shard"), "new"); /* its owner finished: nothing was taken back */
    assert_false(heft__path_exists(test_path(path, HEFT__JOURNAL)));
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    close(ready[0]);
    close(ready[1]);
}

static void malformed_journals_move_nothing(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text;
    } rows[] = {
        {"empty",          ""                                                                 },
        {"other_version",  "heft-journal 2\nwork .heft-tmp-a\nend\n"                          },
        {"no_end",         "heft-journal 1\nwork .heft-tmp-a\nput 0 1 shard\n"                },
        {"cut_line",       "heft-journal 1\nwork .heft-tmp-a\nput 0 1 sha"                    },
        {"work_elsewhere", "heft-journal 1\nwork ..\nput 0 1 shard\nend\n"                    },
        {"work_of_others", "heft-journal 1\nwork other\nput 0 1 shard\nend\n"                 },
        {"path",           "heft-journal 1\nwork .heft-tmp-a\nput 0 1 ../x\nend\n"            },
        {"escaped_path",   "heft-journal 1\nwork .heft-tmp-a\nput 0 1 %2e%2e%2fx\nend\n"      },
        {"no_name",        "heft-journal 1\nwork .heft-tmp-a\nput 0 1 \nend\n"                },
        {"escaped_nul",    "heft-journal 1\nwork .heft-tmp-a\nput 0 1 a%00b\nend\n"           },
        {"word",           "heft-journal 1\nwork .heft-tmp-a\nkeep 0 1 shard\nend\n"          },
        {"no_work",        "heft-journal 1\nwork .heft-tmp-a\nput 0 1 shard\nput 0 0 x\nend\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char path[300];
        heft_error err = {0};
        snprintf(path, sizeof path, "%s/%s", folder, rows[i].name);
        assert_int_equal(mkdir(path, 0700), 0);
        make(test_path(path, "shard"), "old");
        make(test_path(path, HEFT__JOURNAL), rows[i].text);
        const heft_status status = heft__folder_recover(ctx, path, &err);
        const heft_status expected = strcmp(rows[i].name, "no_work") == 0 ? HEFT_IO : HEFT_FORMAT;
        test_expect_status(status, expected, &err, rows[i].name);
        expect_text(test_path(path, "shard"), "old");
        assert_int_equal(test_count_entries(path), 2);
    }
}

/* ---- resuming ------------------------------------------------------------------------------------ */
static void only_files_that_the_record_knows_are_kept(void **state)
{
    (void)state;
    const heft__folder_options options = {.resume = "key"};
    heft__folder_writer *writer = begin(at("out"), &options);
    bool kept = true;
    heft_error err;
    put(writer, "a", false, "finished");
    put(writer, "b", false, "finished");
    heft__folder_free(writer);
    char planted[300];
    snprintf(planted, sizeof planted, "%s/new/b", find(".out.heft-tmp-"));
    assert_int_equal(unlink(at(planted)), 0);
    make(at(planted), "poisoned"); /* of the same size */
    snprintf(planted, sizeof planted, "%s/new/c", find(".out.heft-tmp-"));
    make(at(planted), "poisoned");
    writer = begin(at("out"), &options);
    assert_int_equal(heft__folder_file_keep(writer, "a", false, 8, &kept, &err), HEFT_OK);
    assert_true(kept);
    assert_int_equal(heft__folder_file_keep(writer, "b", false, 8, &kept, &err), HEFT_OK);
    assert_false(kept);
    assert_int_equal(heft__folder_file_keep(writer, "c", false, 8, &kept, &err), HEFT_OK);
    assert_false(kept);
    put(writer, "b", false, "finished");
    commit(writer);
    expect_text(at("out/b"), "finished");
    assert_int_equal(test_count_entries(at("out")), 2);
    assert_int_equal(test_count_entries(folder), 1);
}

static void another_key_starts_anew(void **state)
{
    (void)state;
    bool kept = true;
    heft_error err;
    heft__folder_writer *writer = begin(at("out"), &(heft__folder_options){.resume = "one"});
    put(writer, "a", false, "finished");
    heft__folder_free(writer);
    writer = begin(at("out"), &(heft__folder_options){.resume = "two"});
    assert_int_equal(heft__folder_file_keep(writer, "a", false, 8, &kept, &err), HEFT_OK);
    assert_false(kept);
    heft__folder_free(writer);
    assert_int_equal(test_count_entries(folder), 0);
}

/* ---- memory -------------------------------------------------------------------------------------- */
static heft_status replace_all(heft_ctx *small, void *user, heft_error *err)
{
    (void)user;
    heft__folder_writer *writer = NULL;
    heft_status status = heft__folder_begin(small, at("out"),
                                            &(heft__folder_options){.resume = "key"}, &writer, err);
    if (status == HEFT_OK) {
        status = heft__folder_remove(writer, "stale", false, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_file_begin(writer, "shard", false, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_file_end(writer, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_commit(writer, err);
    }
    heft__folder_free(writer);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    stop_after(at("out"), 3); /* to be taken back first */
    test_oom_sweep(replace_all, NULL);
    assert_int_equal(test_count_entries(folder), 1);
    assert_int_equal(test_count_entries(at("out")), 2);
    expect_text(at("out/shard"), "");
}

/* ---- one file ------------------------------------------------------------------------------------ */
static void one_file_is_replaced_and_links_stay(void **state)
{
    (void)state;
    heft_error err;
    make(at("page"), "old");
    assert_int_equal(symlink("page", at("link")), 0);
    test_expect_status(heft_file_write(ctx, at("link"), "new", 3, &err), HEFT_OK, &err, "link");
    expect_text(at("page"), "new");
    test_expect_status(heft_file_write(ctx, at("fresh"), NULL, 0, &err), HEFT_OK, &err, "fresh");
    expect_text(at("fresh"), "");
    test_expect_status(heft_file_write(ctx, "/dev/null", "new", 3, &err), HEFT_OK, &err, "device");
    struct stat facts;
    assert_int_equal(stat("/dev/null", &facts), 0);
    assert_true(S_ISCHR(facts.st_mode));
    assert_int_equal(heft_file_write(ctx, folder, "new", 3, &err), HEFT_EXISTS);
    assert_int_equal(heft_file_write(ctx, at("none/page"), "new", 3, &err), HEFT_IO);
    assert_int_equal(heft_file_write(ctx, at("none/page"), NULL, 3, &err), HEFT_INVALID_ARG);
    assert_false(heft__path_exists(at("none")));
    assert_int_equal(test_count_entries(folder), 3);
}

static void a_change_of_nothing_but_the_change_time_is_told(void **state)
{
    (void)state;
    heft_error err = {0};
    heft__input *input = NULL;
    struct stat before, after;
    make(at("source"), "bytes");
    assert_int_equal(stat(at("source"), &before), 0);
    test_expect_status(heft__input_open(ctx, at("source"), &input, &err), HEFT_OK, &err, "open");
    test_expect_status(heft__input_unchanged(input, &err), HEFT_OK, &err, "as it was");
    for (mode_t mode = 0600; after = before, true; mode ^= 0040) { /* until the clock has ticked */
        assert_int_equal(chmod(at("source"), mode), 0);
        assert_int_equal(stat(at("source"), &after), 0);
        if (after.st_ctim.tv_sec != before.st_ctim.tv_sec ||
            after.st_ctim.tv_nsec != before.st_ctim.tv_nsec) {
            break;
        }
    }
    assert_int_equal(heft__input_unchanged(input, &err), HEFT_IO);
    assert_non_null(strstr(err.message, "only its change time differs"));
    make(at("source"), "other bytes");
    assert_int_equal(heft__input_unchanged(input, &err), HEFT_IO);
    assert_null(strstr(err.message, "only its change time differs"));
    heft__input_unref(input);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_second_writer_is_told_who_holds_the_destination),
        TEST(a_folder_is_locked_by_every_path),
        TEST(a_lock_dies_with_its_owner),
        TEST(planted_locks_are_refused),
        TEST(what_is_not_replaced_stays_the_same_file),
        TEST(what_came_meanwhile_is_kept),
        TEST(files_are_no_wider_than_they_were),
        TEST(an_interrupted_replacement_is_taken_back),
        TEST(a_file_with_both_names_is_taken_back),
        TEST(a_repair_waits_for_a_living_owner),
        TEST(malformed_journals_move_nothing),
        TEST(only_files_that_the_record_knows_are_kept),
        TEST(another_key_starts_anew),
        TEST(a_change_of_nothing_but_the_change_time_is_told),
        TEST(memory_can_run_out_anywhere),
        TEST(one_file_is_replaced_and_links_stay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
