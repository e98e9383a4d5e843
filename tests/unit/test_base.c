/* base: sizes, errors, arenas, buffers, maps, threads. */
#include "support.h"

#include "model/model.h"
#include "place/place.h"

#include <stdatomic.h>
#include <stdlib.h>

static void sizes_are_parsed(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes; /* UINT64_MAX: refused */
    } rows[] = {
        {"200MB",                   200000000    },
        {"1GB",                     1000000000   },
        {"5gb",                     5000000000   },
        {"5Gb",                     5000000000   },
        {" 5 GB ",                  5000000000   },
        {"1.5GB",                   1500000000   },
        {"0.1MB",                   100000       },
        {"0.29GB",                  290000000    },
        {"2.5 kb",                  2500         },
        {"1TB",                     1000000000000},
        {"1KiB",                    1024         },
        {"200MiB",                  209715200    },
        {"1.5 GiB",                 1610612736   },
        {"1TiB",                    1099511627776},
        {"0.0009KB",                0            },
        {"5000000",                 5000000      },
        {"0",                       0            },
        {".5MB",                    500000       },
        {"9223372036854775807",     INT64_MAX    },
        {"9223372036854775808",     UINT64_MAX   },
        {"99999999999999999999999", UINT64_MAX   },
        {"9999999999TB",            UINT64_MAX   },
        {"",                        UINT64_MAX   },
        {"GB",                      UINT64_MAX   },
        {".MB",                     UINT64_MAX   },
        {"-1GB",                    UINT64_MAX   },
        {"+1GB",                    UINT64_MAX   },
        {"5G",                      UINT64_MAX   },
        {"100B",                    UINT64_MAX   },
        {"1,5GB",                   UINT64_MAX   },
        {"5 G B",                   UINT64_MAX   },
        {"1e3MB",                   UINT64_MAX   },
        {"1.5",                     UINT64_MAX   },
        {"5PB",                     UINT64_MAX   },
        {"5MBx",                    UINT64_MAX   },
        {"0x10MB",                  UINT64_MAX   },
        {"\xc2\xa0"
         "5GB",            UINT64_MAX   },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_error err;
        uint64_t bytes = 77;
        heft_status status = heft_size_parse(rows[i].text, &bytes, &err);
        bool refused = rows[i].bytes == UINT64_MAX;
        test_expect_status(status, refused ? HEFT_INVALID_ARG : HEFT_OK, &err, rows[i].text);
        assert_int_equal(bytes,
                         refused ? 77 : rows[i].bytes); /* outputs are untouched on failure */
    }
}

static void errors_are_one_escaped_line(void **state)
{
    (void)state;
    heft_error err;
    char line[1400];
    assert_int_equal(heft__fail_at(&err, HEFT_FORMAT, 4711, "name '%s' is odd", "a\n\x1b[31m\xff"),
                     HEFT_FORMAT);
    heft__add_item(HEFT_FORMAT, &err, "w");
    heft__add_item(HEFT_FORMAT, &err, "second");
    heft__add_path(HEFT_FORMAT, &err, "x.bin");
    heft_error_format(&err, line, sizeof line);
    assert_string_equal(line, "x.bin: w: byte 4711: name 'a\\x0a\\x1b[31m\\xff' is odd");
    assert_int_equal(heft_status_exit_code(HEFT_MISMATCH), 6);
    assert_int_equal(heft_status_exit_code(HEFT_INVALID_ARG), 2);
    assert_string_equal(heft_status_name(HEFT_NOMEM), "NOMEM");
}

static void long_texts_are_cut(void **state)
{
    (void)state;
    heft_error err;
    char *name = malloc(100001);
    assert_non_null(name);
    memset(name, 'n', 100000);
    name[100000] = '\0';
    heft__fail(&err, HEFT_FORMAT, "bad");
    heft__add_item(HEFT_FORMAT, &err, name);
    heft__add_path(HEFT_FORMAT, &err, name);
    assert_true(strlen(err.item) < sizeof err.item);
    assert_string_equal(err.item + strlen(err.item) - 3, "...");
    assert_true(strncmp(err.path, "...n", 4) == 0);
    assert_int_equal(heft__fail(NULL, HEFT_IO, "a NULL error is allowed"), HEFT_IO);
    free(name);
}

static void utf8_is_strict(void **state)
{
    (void)state;
    static const struct {
        const char *name, *bytes;
        size_t length, invalid_at;
    } rows[] = {
        {"ascii",              "abcdefghij",                           10, 10},
        {"two_three_four",     "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 9,  9 },
        {"overlong_two",       "\xc0\x80",                             2,  0 },
        {"overlong_three",     "a\xe0\x80\x80",                        4,  1 },
        {"surrogate",          "ab\xed\xa0\x80",                       5,  2 },
        {"above_10ffff",       "\xf4\x90\x80\x80",                     4,  0 },
        {"cut",                "abc\xe2\x82",                          5,  3 },
        {"stray_continuation", "abcdefgh\x80",                         9,  8 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (heft__utf8_invalid_at((const uint8_t *)rows[i].bytes, rows[i].length) !=
            rows[i].invalid_at) {
            fail_msg("%s", rows[i].name);
        }
    }
}

static heft_status use_everything(heft_ctx *ctx, void *user, heft_error *err)
{
    (void)user;
    heft__arena arena;
    heft__buffer buffer;
    heft__map map;
    size_t found;
    static char keys[500][8];
    heft__arena_init(&arena, ctx);
    heft__buffer_init(&buffer, ctx);
    heft__map_init(&map, ctx);
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < 500 && status == HEFT_OK; i++) {
        size_t length = (size_t)snprintf(keys[i], sizeof keys[i], "%zu", i * 7919);
        if (!heft__map_put(&map, keys[i], length, i, &found) ||
            !heft__arena_text(&arena, keys[i], length)) {
            status = heft__fail_nomem(err, 0);
        }
        heft__buffer_format(&buffer, "%s ", keys[i]);
    }
    if (status == HEFT_OK) {
        status = heft__buffer_check(&buffer, err);
    }
    for (size_t i = 0; i < 500 && status == HEFT_OK; i++) {
        assert_int_equal(heft__map_get(&map, keys[i], strlen(keys[i])), i);
    }
    heft__map_fini(&map);
    heft__buffer_fini(&buffer);
    heft__arena_fini(&arena);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    test_oom_sweep(use_everything, NULL);
}

static heft_status count_item(void *user, size_t item, heft_error *err)
{
    atomic_size_t *sums = user;
    atomic_fetch_add(&sums[0], item);
    atomic_fetch_add(&sums[1], 1);
    return item == 5000 ? heft__fail(err, HEFT_IO, "item 5000") : HEFT_OK;
}

static void work_is_done_once_by_all_threads(void **state)
{
    (void)state;
    const heft_ctx_options options = HEFT_OPTIONS(heft_ctx_options, .threads = 7);
    heft_ctx *ctx = heft_ctx_new(&options);
    atomic_size_t sums[2] = {0, 0};
    heft_error err;
    assert_int_equal(heft__parallel(ctx, 5000, count_item, sums, &err), HEFT_OK);
    assert_int_equal(sums[0], 5000 * 4999 / 2);
    assert_int_equal(sums[1], 5000);
    assert_int_equal(heft__parallel(ctx, 100000, count_item, sums, &err), HEFT_IO);
    assert_string_equal(err.message, "item 5000");
    assert_int_equal(heft__parallel(ctx, 0, count_item, sums, &err), HEFT_OK);
    heft_ctx_free(ctx);
}

static void memory_is_counted(void **state)
{
    (void)state;
    heft_ctx *ctx = heft_ctx_new(NULL);
    uint64_t live, peak;
    uint8_t *block = heft__alloc(ctx, 1000);
    block = heft__resize(ctx, block, 1000, (size_t)10 << 20); /* malloc to mmap */
    block[(10 << 20) - 1] = 1;
    block = heft__resize(ctx, block, (size_t)10 << 20, (size_t)20 << 20);
    block = heft__resize(ctx, block, (size_t)20 << 20, 500); /* and back */
    heft_ctx_memory(ctx, &live, &peak);
    assert_int_equal(live, 500);
    assert_true(peak >= (uint64_t)20 << 20);
    heft__free(ctx, block, 500);
    heft_ctx_memory(ctx, &live, NULL);
    assert_int_equal(live, 0);
    heft_ctx_free(ctx);
}

/* ---- structures that carry their size ---------------------------------------------------------- */
struct newer { /* heft_init_options of a later version */
    heft_init_options known;
    uint64_t added;
};

static void options_of_other_versions_are_taken_or_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t struct_size;
        uint64_t added;
        bool good;
    } rows[] = {
        {"same",                         sizeof(heft_init_options), 0, true },
        {"same_what_lies_behind_is_not", sizeof(heft_init_options), 1, true },
        {"older_without_seed",           sizeof(size_t),            0, true },
        {"newer_at_its_default",         sizeof(struct newer),      0, true },
        {"newer_and_set",                sizeof(struct newer),      1, false},
        {"never_set",                    0,                         0, false},
        {"too_short",                    sizeof(size_t) - 1,        0, false},
        {"never_a_size",                 SIZE_MAX,                  0, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_error err = {0};
        heft_init_options taken = {0};
        struct newer given = {
            .known = {.struct_size = rows[i].struct_size, .seed = 7},
              .added = rows[i].added
        };
        test_expect_status(HEFT__TAKE_OPTIONS(&taken, &given.known, &err),
                           rows[i].good ? HEFT_OK : HEFT_INVALID_ARG, &err, rows[i].name);
        const bool has_seed = rows[i].good && rows[i].struct_size > sizeof(size_t);
        assert_int_equal(taken.seed, has_seed ? 7 : 0);
        assert_int_equal(taken.struct_size, rows[i].good ? sizeof taken : 0);
    }
}

static void structures_are_filled_as_far_as_they_go(void **state)
{
    (void)state;
    heft_error err = {0};
    const heft_machine found = HEFT_OPTIONS(heft_machine, .bytes = 5, .reason = "because");
    struct {
        heft_machine known;
        uint64_t added;
    } newer = {.known = {.struct_size = sizeof newer}, .added = 9};
    heft_machine older = {.struct_size = offsetof(heft_machine, reason), .reason = "mine"};
    heft_machine none = {0};
    assert_int_equal(HEFT__GIVE_SIZED(&newer, &found, &err), HEFT_OK);
    assert_int_equal(newer.known.bytes, 5);
    assert_int_equal(newer.known.struct_size, sizeof newer);
    assert_int_equal(newer.added, 0); /* not what it was: it is not known */
    assert_int_equal(HEFT__GIVE_SIZED(&older, &found, &err), HEFT_OK);
    assert_int_equal(older.bytes, 5);
    assert_string_equal(older.reason, "mine");
    assert_int_equal(HEFT__GIVE_SIZED(&none, &found, &err), HEFT_INVALID_ARG);
    assert_int_equal(none.bytes, 0);
    assert_int_equal(heft_machine_memory(&none, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_machine_memory(NULL, &err), HEFT_INVALID_ARG);
}

/* Every public function that takes options asks for their size. */
static void contexts_ask_for_sizes(void **state)
{
    (void)state;
    const heft_ctx_options unsized = {.threads = 1};
    assert_null(heft_ctx_new(&unsized));
    const heft_limits bare = {.rank = 3};
    assert_null(heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .limits = &bare)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_of_other_versions_are_taken_or_refused),
        cmocka_unit_test(structures_are_filled_as_far_as_they_go),
        cmocka_unit_test(contexts_ask_for_sizes),
        cmocka_unit_test(sizes_are_parsed),
        cmocka_unit_test(errors_are_one_escaped_line),
        cmocka_unit_test(long_texts_are_cut),
        cmocka_unit_test(utf8_is_strict),
        cmocka_unit_test(memory_can_run_out_anywhere),
        cmocka_unit_test(work_is_done_once_by_all_threads),
        cmocka_unit_test(memory_is_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
