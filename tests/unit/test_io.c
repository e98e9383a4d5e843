/* io: inputs, and folders that become visible complete or not at all. */
#include "io/io.h"
#include "scratch.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static size_t masks_set; /* calls of umask(), which belongs to the whole process */

mode_t umask(mode_t mask)
{
    masks_set++;
    return (mode_t)syscall(SYS_umask, mask);
}

static const char *in_folder(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void only_regular_files_are_opened(void **state)
{
    (void)state;
    heft__input *source = NULL;
    heft_error err;
    assert_int_equal(heft__input_open(ctx, in_folder("none"), &source, &err), HEFT_NOT_FOUND);
    assert_int_equal(heft__input_open(ctx, folder, &source, &err), HEFT_UNSUPPORTED);
    assert_string_equal(err.message, "not a regular file but a folder");
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    assert_int_equal(heft__input_open(ctx, in_folder("fifo"), &source, &err), HEFT_UNSUPPORTED);
    assert_int_equal(heft__input_open(ctx, "/dev/zero", &source, &err), HEFT_UNSUPPORTED);
    assert_null(source);
}

static void reading_past_the_end_says_where(void **state)
{
    (void)state;
    heft__input *source = NULL;
    heft_error err;
    char bytes[16];
    test_write_file(folder, "f", "0123456789", 10);
    assert_int_equal(heft__input_open(ctx, in_folder("f"), &source, &err), HEFT_OK);
    assert_int_equal(heft__input_read(source, 8, bytes, 2, &err), HEFT_OK);
    assert_memory_equal(bytes, "89", 2);
    assert_int_equal(heft__input_read(source, 8, bytes, 3, &err), HEFT_FORMAT);
    assert_int_equal(err.offset, 10);
    assert_int_equal(heft__input_read(source, UINT64_MAX, bytes, 2, &err), HEFT_FORMAT);
    heft__input_unref(source);
}

static void a_huge_page_is_what_a_page_of_the_tables_describes(void **state)
{
    (void)state;
    assert_int_equal(heft__page_bytes(), sysconf(_SC_PAGESIZE));
    assert_int_equal(heft__huge_page_bytes(4096), (uint64_t)2 << 20);
    assert_int_equal(heft__huge_page_bytes(16384), (uint64_t)32 << 20);
    assert_int_equal(heft__huge_page_bytes(65536), (uint64_t)512 << 20);
}

static void a_file_that_shrinks_is_an_error_and_no_signal(void **state)
{
    (void)state;
    if (test_emulated()) {
        skip();
    }
    heft__input *source = NULL;
    heft_error err;
    const size_t size = 1 << 20;
    const uint8_t *base;
    char *bytes = calloc(1, size);
    test_write_file(folder, "f", bytes, size);
    assert_int_equal(heft__input_open(ctx, in_folder("f"), &source, &err), HEFT_OK);
    assert_int_equal(heft__input_map(source, &base, &err), HEFT_OK);
    assert_int_equal(heft__input_touch(source, 0, size, &err), HEFT_OK);
    assert_int_equal(truncate(in_folder("f"), 5000), 0);
    assert_int_equal(heft__input_read(source, 4000, bytes, 2000, &err), HEFT_IO);
    assert_int_equal(err.offset, 5000);
    assert_int_equal(heft__input_touch(source, 0, size, &err), HEFT_IO);
    assert_int_equal(err.offset, 5000);
    assert_int_equal(heft__copy_mapped(bytes, base, size, &err), HEFT_IO);
    heft__input_unref(source);
    free(bytes);
}

static void a_parked_source_knows_its_file_again(void **state)
{
    (void)state;
    heft__input *source = NULL;
    heft_error err;
    char bytes[4];
    test_write_file(folder, "f", "abcd", 4);
    assert_int_equal(heft__input_open(ctx, in_folder("f"), &source, &err), HEFT_OK);
    heft__input_park(source);
    assert_int_equal(heft__input_read(source, 0, bytes, 4, &err), HEFT_OK);
    test_write_file(folder, "g", "efgh", 4);
    char other[512];
    snprintf(other, sizeof other, "%s", in_folder("g"));
    assert_int_equal(rename(other, in_folder("f")), 0);
    assert_int_equal(heft__input_read(source, 0, bytes, 4, &err), HEFT_IO);
    heft__input_unref(source);
}

static void a_changed_file_is_noticed(void **state)
{
    (void)state;
    static const struct {
        const char *name, *change;
        bool changed, current;
    } rows[] = {
        {"untouched",   "true",                            false, true },
        {"grown",       "printf x >> $f",                  true,  true },
        {"overwritten", "printf efgh > $f",                true,  true },
        {"times_reset", "printf efgh > $f; touch -r . $f", true,  true },
        {"replaced",    "printf abcd > n; mv n $f",        true,  false},
        {"removed",     "rm $f",                           true,  false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft__input *source = NULL;
        heft_error err;
        char line[900];
        test_write_file(folder, rows[i].name, "abcd", 4);
        assert_int_equal(heft__input_open(ctx, in_folder(rows[i].name), &source, &err), HEFT_OK);
        usleep(20000); /* the clock of a file system is coarse */
        snprintf(line, sizeof line, "cd %s && f=%s && %s", folder, rows[i].name, rows[i].change);
        assert_int_equal(system(line), 0);
        test_expect_status(heft__input_unchanged(source, &err), rows[i].changed ? HEFT_IO : HEFT_OK,
                           &err, rows[i].name);
        assert_int_equal(heft__input_is_current(source), rows[i].current);
        heft__input_unref(source);
    }
}

static void put(heft__folder_writer *writer, const char *name, bool entry_point, const char *text)
{
    heft_error err;
    assert_int_equal(heft__folder_file_begin(writer, name, entry_point, &err), HEFT_OK);
    assert_int_equal(heft__folder_write(writer, text, strlen(text), &err), HEFT_OK);
    assert_int_equal(heft__folder_file_end(writer, &err), HEFT_OK);
}

static void expect_text(const char *name, const char *text)
{
    char *found = test_read_file(in_folder(name), NULL);
    assert_string_equal(found, text);
    free(found);
}

static void a_new_folder_appears_whole(void **state)
{
    (void)state;
    heft__folder_writer *writer = NULL;
    heft_error err;
    char path[512];
    snprintf(path, sizeof path, "%s", in_folder("a/b/out/"));
    assert_int_equal(heft__folder_begin(ctx, path, &(heft__folder_options){0}, &writer, &err),
                     HEFT_OK);
    put(writer, "x", false, "1");
    assert_false(heft__path_exists(in_folder("a/b/out")));
    assert_int_equal(heft__folder_commit(writer, &err), HEFT_OK);
    heft__folder_free(writer);
    expect_text("a/b/out/x", "1");
    assert_int_equal(test_count_entries(in_folder("a/b")), 1);
}

static void an_abandoned_folder_leaves_nothing(void **state)
{
    (void)state;
    heft__folder_writer *writer = NULL;
    heft_error err;
    char path[512];
    snprintf(path, sizeof path, "%s", in_folder("a/b/out"));
    assert_int_equal(heft__folder_begin(ctx, path, &(heft__folder_options){0}, &writer, &err),
                     HEFT_OK);
    put(writer, "x", false, "1");
    heft__folder_free(writer);
    assert_int_equal(test_count_entries(folder), 0);
}

static void files_in_place_are_swapped_at_commit(void **state)
{
    (void)state;
    heft__folder_writer *writer = NULL;
    heft_error err;
    test_write_file(folder, "shard", "old", 3);
    test_write_file(folder, "index", "old index", 9);
    test_write_file(folder, "stale", "s", 1);
    test_write_file(folder, "mine", "m", 1);
    assert_int_equal(heft__folder_begin(ctx, folder, &(heft__folder_options){0}, &writer, &err),
                     HEFT_OK);
    put(writer, "index", true, "new index");
    put(writer, "shard", false, "new");
    put(writer, "shard2", false, "new2");
    assert_int_equal(heft__folder_remove(writer, "stale", false, &err), HEFT_OK);
    assert_int_equal(heft__folder_remove(writer, "was never there", false, &err), HEFT_OK);
    expect_text("shard", "old");
    assert_int_equal(heft__folder_commit(writer, &err), HEFT_OK);
    heft__folder_free(writer);
    expect_text("shard", "new");
    expect_text("index", "new index");
    expect_text("mine", "m");
    assert_int_equal(test_count_entries(folder), 4);
}

static void modes_are_those_of_the_process(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        mode_t mask, parent, folder, file;
    } rows[] = {
        {"usual",        022,  0755,  0755,  0644},
        {"open",         0,    0755,  0777,  0666},
        {"group_only",   027,  0755,  0750,  0640},
        {"mine_alone",   0077, 0755,  0700,  0600},
        {"set_group_id", 022,  02755, 02755, 0644},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (size_t resumed = 0; resumed < 2; resumed++) {
            heft__folder_writer *writer = NULL;
            heft_error err = {0};
            struct stat facts;
            char parent[512], made[640];
            snprintf(parent, sizeof parent, "%s/%s-%zu", folder, rows[i].name, resumed);
            snprintf(made, sizeof made, "%s/made", parent);
            assert_int_equal(mkdir(parent, 0700), 0);
            assert_int_equal(chmod(parent, rows[i].parent), 0);
            const mode_t before = umask(rows[i].mask);
            masks_set = 0;
            test_expect_status(
                heft__folder_begin(ctx, made,
                                   &(heft__folder_options){.resume = resumed ? "key" : NULL},
                                   &writer, &err),
                HEFT_OK, &err, rows[i].name);
            put(writer, "f", false, "text");
            test_expect_status(heft__folder_commit(writer, &err), HEFT_OK, &err, rows[i].name);
            heft__folder_free(writer);
            assert_int_equal(masks_set, 0);
            umask(before);
            assert_int_equal(stat(made, &facts), 0);
            assert_int_equal(facts.st_mode & 07777, rows[i].folder);
            assert_int_equal(test_count_entries(made), 1);
            assert_int_equal(stat(test_path(made, "f"), &facts), 0);
            assert_int_equal(facts.st_mode & 07777, rows[i].file);
        }
    }
}

static void too_little_room_is_said_before_writing(void **state)
{
    (void)state;
    heft__folder_writer *writer = NULL;
    heft_error err;
    assert_int_equal(
        heft__folder_begin(ctx, in_folder("out"), &(heft__folder_options){0}, &writer, &err),
        HEFT_OK);
    assert_int_equal(heft__folder_need(writer, 1, &err), HEFT_OK);
    assert_int_equal(heft__folder_need(writer, UINT64_MAX / 2, &err), HEFT_IO);
    assert_non_null(strstr(err.message, "no space left"));
    heft__folder_free(writer);
}

static void a_resumed_folder_takes_over_what_was_finished(void **state)
{
    (void)state;
    heft__folder_writer *writer = NULL;
    heft_error err;
    bool kept = true;
    char path[512];
    snprintf(path, sizeof path, "%s", in_folder("out"));
    assert_int_equal(
        heft__folder_begin(ctx, path, &(heft__folder_options){.resume = "k1"}, &writer, &err),
        HEFT_OK);
    put(writer, "a", false, "finished");
    assert_int_equal(heft__folder_file_begin(writer, "b", false, &err), HEFT_OK);
    assert_int_equal(heft__folder_write(writer, "ha", 2, &err), HEFT_OK);
    heft__folder_free(writer); /* interrupted inside of b */
    assert_false(heft__path_exists(path));
    assert_int_equal(
        heft__folder_begin(ctx, path, &(heft__folder_options){.resume = "k1"}, &writer, &err),
        HEFT_OK);
    assert_int_equal(heft__folder_file_keep(writer, "a", false, 7, &kept, &err), HEFT_OK);
    assert_false(kept); /* another size */
    assert_int_equal(heft__folder_file_keep(writer, "a", false, 8, &kept, &err), HEFT_OK);
    assert_true(kept);
    assert_int_equal(heft__folder_file_keep(writer, "b", false, 2, &kept, &err), HEFT_OK);
    assert_false(kept); /* a part is no file */
    put(writer, "b", false, "half no more");
    assert_int_equal(heft__folder_commit(writer, &err), HEFT_OK);
    heft__folder_free(writer);
    expect_text("out/a", "finished");
    expect_text("out/b", "half no more");
    assert_int_equal(test_count_entries(path), 2);
    assert_int_equal(test_count_entries(folder), 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(only_regular_files_are_opened),
        TEST(reading_past_the_end_says_where),
        TEST(a_huge_page_is_what_a_page_of_the_tables_describes),
        TEST(a_file_that_shrinks_is_an_error_and_no_signal),
        TEST(a_parked_source_knows_its_file_again),
        TEST(a_changed_file_is_noticed),
        TEST(a_new_folder_appears_whole),
        TEST(an_abandoned_folder_leaves_nothing),
        TEST(files_in_place_are_swapped_at_commit),
        TEST(modes_are_those_of_the_process),
        TEST(too_little_room_is_said_before_writing),
        TEST(a_resumed_folder_takes_over_what_was_finished),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
