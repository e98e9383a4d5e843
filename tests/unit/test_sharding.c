/* The greedy rule, names of files, and what a save does to a folder that holds a checkpoint. */
#include "checkpoint/checkpoint.h"
#include "support.h"
#include "support_model.h"

#include <stdlib.h>
#include <sys/stat.h>

static heft_ctx *ctx;

/* One letter per tensor: its size; a second letter names a shared storage. */
static void the_rule_cuts_as_the_reference_does(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t limit;
        size_t count;
        uint64_t bytes[8];
        size_t storage[8]; /* 0: its own */
        size_t shard[8];
        size_t shards;
        uint64_t total;
    } rows[] = {
        {"exactly_full_stays",      10, 6, {6, 6, 2, 6, 2, 2}, {0},          {0, 1, 1, 2, 2, 2}, 3, 24},
        {"oversized_goes_first",    10, 4, {3, 20, 3, 3},      {0},          {1, 0, 1, 1},       2, 29},
        {"full_and_tiny_in_turn",   10, 4, {10, 1, 10, 1},     {0},          {0, 1, 2, 3},       4, 22},
        {"alias_joins_its_storage", 10, 4, {4, 6, 4, 6},       {9, 0, 9, 0}, {0, 0, 0, 1},       2, 16},
        {"oversized_alone",         10, 1, {11},               {0},          {0},                1, 11},
        {"only_oversized",          1,  3, {2, 3, 4},          {0},          {0, 1, 2},          3, 9 },
        {"limit_zero",              0,  3, {1, 0, 1},          {0},          {0, 2, 1},          3, 2 },
        {"nothing",                 10, 0, {0},                {0},          {0},                0, 0 },
    };
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        heft__out_tensor tensors[8] = {0};
        heft__shard_plan plan;
        heft_error err;
        for (size_t i = 0; i < rows[r].count; i++) {
            tensors[i].size_bytes = rows[r].bytes[i];
            tensors[i].storage = rows[r].storage[i] ? rows[r].storage[i] : 100 + i;
        }
        test_expect_status(
            heft__shard_plan_make(ctx, tensors, rows[r].count, rows[r].limit, &plan, &err), HEFT_OK,
            &err, rows[r].name);
        for (size_t i = 0; i < rows[r].count; i++) {
            if (plan.shard[i] != rows[r].shard[i]) {
                fail_msg("%s: tensor %zu in shard %zu, expected %zu", rows[r].name, i,
                         plan.shard[i], rows[r].shard[i]);
            }
        }
        assert_int_equal(plan.shard_count, rows[r].shards);
        assert_int_equal(plan.total_size, rows[r].total);
        heft__shard_plan_fini(ctx, &plan, rows[r].count);
    }
}

static void shard_names_are_told_apart(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        heft_format format;
        const char *variant;
        bool is;
    } rows[] = {
        {"model-00001-of-00003.safetensors",      HEFT_FORMAT_SAFETENSORS, NULL,   true },
        {"model-00001-of-00003.bin",              HEFT_FORMAT_SAFETENSORS, NULL,   false},
        {"model.fp16-00001-of-00003.safetensors", HEFT_FORMAT_SAFETENSORS, NULL,   false},
        {"model.fp16-00001-of-00003.safetensors", HEFT_FORMAT_SAFETENSORS, "fp16", true },
        {"model_foo-00001-of-00002.safetensors",  HEFT_FORMAT_SAFETENSORS, NULL,   false},
        {"model-1-of-3.safetensors",              HEFT_FORMAT_SAFETENSORS, NULL,   false},
        {"model-100000-of-100001.safetensors",    HEFT_FORMAT_SAFETENSORS, NULL,   true },
        {"model.safetensors",                     HEFT_FORMAT_SAFETENSORS, NULL,   false},
        {"pytorch_model-00001-of-00003.bin",      HEFT_FORMAT_TORCH,       NULL,   true },
        {"pytorch_model-00001-of-00003.bin.bak",  HEFT_FORMAT_TORCH,       NULL,   false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (heft__is_shard_name(rows[i].name, heft__format_find(rows[i].format), rows[i].variant) !=
            rows[i].is) {
            fail_msg("%s", rows[i].name);
        }
    }
}

/* ---- saves into folders ---------------------------------------------------------------------- */
static heft_status read_zeros(void *user, const heft__out_tensor *tensor, uint64_t first, void *dst,
                              size_t length, heft_error *err)
{
    const char *broken = user;
    (void)first;
    memset(dst, 7, length);
    return broken && strcmp(tensor->name, broken) == 0
               ? heft__fail(err, HEFT_IO, "broken on purpose")
               : HEFT_OK;
}

static const uint64_t shape[1] = {1000};

static heft_status save(const char *folder, heft_format format, uint64_t limit, bool force,
                        const char *broken, heft_error *err)
{
    static const char *const names[] = {"a", "b", "c"};
    heft__out_tensor tensors[3];
    for (size_t i = 0; i < 3; i++) {
        tensors[i] = (heft__out_tensor){.name = names[i],
                                        .dtype = HEFT_DTYPE_U8,
                                        .rank = 1,
                                        .shape = shape,
                                        .size_bytes = 1000,
                                        .storage = i};
    }
    heft__write_job job = {.dst = folder,
                           .format = heft__format_find(format),
                           .max_shard_bytes = limit,
                           .force = force,
                           .keep_side_files = true,
                           .tensors = tensors,
                           .count = 3,
                           .read = read_zeros,
                           .user = (void *)(uintptr_t)broken};
    return heft__write_checkpoint(ctx, &job, NULL, err);
}

static bool has(const char *folder, const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return heft__path_exists(path);
}

static void a_save_takes_away_what_would_win_and_nothing_else(void **state)
{
    (void)state;
    char folder[256];
    heft_error err;
    heft_checkpoint *ckpt = NULL;
    test_folder_make(folder);
    test_write_file(folder, "model_foo-00001-of-00002.safetensors", "x", 1);
    test_write_file(folder, "tokenizer.json", "{}", 2);
    test_expect_status(save(folder, HEFT_FORMAT_SAFETENSORS, 5000, false, NULL, &err), HEFT_OK,
                       &err, "single");
    assert_true(has(folder, "model.safetensors"));
    test_expect_status(save(folder, HEFT_FORMAT_SAFETENSORS, 1000, false, NULL, &err), HEFT_EXISTS,
                       &err, "no force");
    test_expect_status(save(folder, HEFT_FORMAT_SAFETENSORS, 1000, true, NULL, &err), HEFT_OK, &err,
                       "three");
    assert_false(has(folder, "model.safetensors"));
    assert_true(has(folder, "model-00003-of-00003.safetensors"));
    test_expect_status(save(folder, HEFT_FORMAT_SAFETENSORS, 2000, true, NULL, &err), HEFT_OK, &err,
                       "two");
    assert_false(has(folder, "model-00003-of-00003.safetensors"));
    assert_true(has(folder, "model-00002-of-00002.safetensors"));
    test_expect_status(heft_checkpoint_open(ctx, folder, NULL, &ckpt, &err), HEFT_OK, &err, "open");
    assert_int_equal(heft_checkpoint_count(ckpt), 3);
    assert_null(heft_checkpoint_warning(ckpt, 0));
    heft_checkpoint_close(ckpt);
    assert_true(has(folder, "model_foo-00001-of-00002.safetensors"));
    assert_true(has(folder, "tokenizer.json"));
    assert_int_equal(test_count_entries(folder), 5);
    test_folder_remove(folder);
}

static void a_failing_save_changes_nothing(void **state)
{
    (void)state;
    char folder[256], path[300];
    heft_error err;
    test_folder_make(folder);
    test_expect_status(save(folder, HEFT_FORMAT_SAFETENSORS, 1000, false, NULL, &err), HEFT_OK,
                       &err, "first");
    test_expect_status(save(folder, HEFT_FORMAT_SAFETENSORS, 2000, true, "c", &err), HEFT_IO, &err,
                       "broken");
    assert_int_equal(test_count_entries(folder), 4);
    assert_true(has(folder, "model-00003-of-00003.safetensors"));
    snprintf(path, sizeof path, "%s/new", folder);
    test_expect_status(save(path, HEFT_FORMAT_SAFETENSORS, 2000, false, "b", &err), HEFT_IO, &err,
                       "broken new");
    assert_int_equal(test_count_entries(folder), 4);
    test_folder_remove(folder);
}

static void a_single_beside_an_index_is_said(void **state)
{
    (void)state;
    char folder[256], path[300];
    heft_error err;
    heft_checkpoint *ckpt = NULL;
    heft_verify_report *report = NULL;
    test_folder_make(folder);
    test_expect_status(save(folder, HEFT_FORMAT_SAFETENSORS, 1000, false, NULL, &err), HEFT_OK,
                       &err, "shards");
    snprintf(path, sizeof path, "%s/other", folder);
    test_expect_status(save(path, HEFT_FORMAT_SAFETENSORS, 9000, false, NULL, &err), HEFT_OK, &err,
                       "single");
    char single[400], target[400];
    snprintf(single, sizeof single, "%s/model.safetensors", path);
    snprintf(target, sizeof target, "%s/model.safetensors", folder);
    assert_int_equal(rename(single, target), 0);
    test_expect_status(heft_checkpoint_open(ctx, folder, NULL, &ckpt, &err), HEFT_OK, &err, "open");
    assert_non_null(heft_checkpoint_warning(ckpt, 0));
    assert_non_null(strstr(heft_checkpoint_warning(ckpt, 0), "stale"));
    heft_checkpoint_close(ckpt);
    test_expect_status(test_verify(ctx, folder, NULL, &report, &err), HEFT_OK, &err, "verify");
    assert_false(report->ok);
    heft_verify_report_free(report);
    test_folder_remove(folder);
}

static heft_status save_and_open(heft_ctx *with, void *user, heft_error *err)
{
    char path[300];
    heft_ctx *before = ctx;
    heft_checkpoint *ckpt = NULL;
    snprintf(path, sizeof path, "%s/out", (const char *)user);
    ctx = with;
    heft_status status = save(path, HEFT_FORMAT_SAFETENSORS, 1000, true, NULL, err);
    if (status == HEFT_OK) {
        status = heft_checkpoint_open(with, path, NULL, &ckpt, err);
    }
    heft_checkpoint_close(ckpt);
    ctx = before;
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    char folder[256];
    test_folder_make(folder);
    test_oom_sweep(save_and_open, folder);
    test_folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_rule_cuts_as_the_reference_does),
        cmocka_unit_test(shard_names_are_told_apart),
        cmocka_unit_test(a_save_takes_away_what_would_win_and_nothing_else),
        cmocka_unit_test(a_failing_save_changes_nothing),
        cmocka_unit_test(a_single_beside_an_index_is_said),
        cmocka_unit_test(memory_can_run_out_anywhere),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
