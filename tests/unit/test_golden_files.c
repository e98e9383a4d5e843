/* Golden files: what PyTorch and safetensors wrote must read with equal names, dtypes, shapes and bytes; malformed
 * files must be refused, with the status and the byte in the table. Files and sidecars are
 * those of tests/data; see its README. */
#include "support.h"
#include "json/json.h"

#include <heft/checkpoint.h>

#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- what is refused, and where -------------------------------------------------------------- */
static const test_refusal refusals[] = {
#include "golden_refusals.inc"
};

static const test_refusal *find_refusal(const char *name)
{
    return test_find_refusal(refusals, sizeof refusals / sizeof refusals[0], name);
}

/* ---- reading all of a checkpoint ------------------------------------------------------------- */
static heft_status read_all(const heft_checkpoint *ckpt, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < heft_checkpoint_count(ckpt) && status == HEFT_OK; i++) {
        const heft_tensor_info *info = heft_checkpoint_info(ckpt, i);
        void *bytes = malloc((size_t)info->size_bytes + 1);
        assert_non_null(bytes);
        status = heft_checkpoint_read(ckpt, i, bytes, info->size_bytes, err);
        free(bytes);
    }
    return status;
}

static void compare_tensor(const char *file, const heft_checkpoint *ckpt, const char *name,
                           const heft__json_value *expected)
{
    char hex[65];
    heft_error err;
    size_t i = heft_checkpoint_find(ckpt, name);
    if (i == SIZE_MAX) {
        fail_msg("%s: '%s' is not there", file, name);
    }
    const heft_tensor_info *info = heft_checkpoint_info(ckpt, i);
    const heft__json_value *header =
        heft__json_member(expected, "header_dtype"); /* safetensors' name */
    const heft__json_value *dtype = header ? header : heft__json_member(expected, "dtype");
    heft_dtype wanted;
    assert_int_equal(heft_dtype_parse(dtype->text, &wanted, &err), HEFT_OK);
    if (info->dtype != wanted) {
        fail_msg("%s: '%s' is %s, expected %s", file, name, heft_dtype_name(info->dtype),
                 dtype->text);
    }
    /* torch counts bytes of float4, safetensors counts values: the bytes decide */
    const heft__json_value *shape = heft__json_member(expected, "shape"), *dim = shape->first;
    if (wanted != HEFT_DTYPE_F4_E2M1FN_X2) {
        assert_int_equal(info->rank, shape->count);
        for (uint32_t d = 0; d < info->rank; d++, dim = dim->next) {
            uint64_t value;
            assert_true(heft__json_as_u64(dim, &value));
            assert_int_equal(info->shape[d], value);
        }
    }
    uint8_t *bytes = malloc((size_t)info->size_bytes + 1);
    test_expect_status(heft_checkpoint_read(ckpt, i, bytes, info->size_bytes, &err), HEFT_OK, &err,
                       file);
    test_sha256(bytes, (size_t)info->size_bytes, hex);
    if (strcmp(hex, heft__json_member(expected, "sha256")->text) != 0) {
        fail_msg("%s: '%s' has other bytes", file, name);
    }
    heft_tensor *tensor = NULL;
    test_expect_status(heft_checkpoint_map(ckpt, i, HEFT_MAP_READ_ONLY, &tensor, &err), HEFT_OK,
                       &err, file);
    if (!(tensor->flags & HEFT_TENSOR_MAPPED) || tensor->size_bytes == 0 ||
        info->offset != HEFT_NO_OFFSET) {
        assert_memory_equal(tensor->data, bytes, (size_t)info->size_bytes);
    }
    heft_tensor_free(tensor);
    free(bytes);
}

/* ---- one case -------------------------------------------------------------------------------- */
static heft_ctx *ctx;

static void check_accepted(const char *file, const char *path, const heft__json_value *tensors,
                           bool keyed)
{
    heft_error err;
    heft_checkpoint *ckpt = NULL;
    test_expect_status(heft_checkpoint_open(ctx, path, NULL, &ckpt, &err), HEFT_OK, &err, file);
    test_expect_status(read_all(ckpt, &err), HEFT_OK, &err, file);
    for (const heft__json_value *t = tensors ? tensors->first : NULL; t; t = t->next) {
        compare_tensor(file, ckpt, keyed ? t->key : heft__json_member(t, "name")->text, t);
    }
    if (!keyed && tensors) {
        assert_int_equal(heft_checkpoint_count(ckpt), tensors->count);
    }
    heft_checkpoint_close(ckpt);
}

static void check_refused(const char *file, const char *path, const test_refusal *expected)
{
    heft_error err = {0};
    heft_checkpoint *ckpt = NULL;
    char line[1500];
    heft_status status = heft_checkpoint_open(ctx, path, NULL, &ckpt, &err);
    if (status == HEFT_OK) {
        status = read_all(ckpt, &err);
        heft_checkpoint_close(ckpt);
    }
    if (status == HEFT_OK) {
        fail_msg("%s: accepted, expected %s", file, heft_status_name(expected->status));
    }
    heft_error_format(&err, line, sizeof line);
    if (status != expected->status || err.offset != expected->offset ||
        !strstr(line, expected->words)) {
        fail_msg("%s: %s at %lld, expected %s at %lld with '%s': %s", file,
                 heft_status_name(status), (long long)err.offset,
                 heft_status_name(expected->status), (long long)expected->offset, expected->words,
                 line);
    }
    if (!err.path[0]) {
        fail_msg("%s: the error has no path", file);
    }
}

static const char *prepare(const char *folder, const char *name, const heft__json_value *sidecar,
                           char path[1024])
{
    const heft__json_value *entry = heft__json_member(sidecar, "entry"),
                           *recipe = heft__json_member(sidecar, "recipe");
    snprintf(path, 1024, "%s/%s", folder, name);
    for (const heft__json_value *step = recipe ? recipe->first : NULL; step; step = step->next) {
        char target[2048], command[4400];
        const char *op = heft__json_member(step, "op")->text;
        const char *at =
            heft__json_member(step, "path") ? heft__json_member(step, "path")->text : "";
        snprintf(target, sizeof target, "%s/%s", path, at);
        if (strcmp(op, "mkfifo") == 0) {
            assert_int_equal(mkfifo(target, 0600), 0);
        } else if (strcmp(op, "gunzip") == 0) {
            snprintf(command, sizeof command, "gzip -dc '%s.gz' > '%s'", target, target);
            assert_int_equal(system(command), 0);
        } else if (strcmp(op, "replace_text") == 0) {
            snprintf(command, sizeof command, "sed -i 's|%s|%s|' '%s'",
                     heft__json_member(step, "from")->text, path, target);
            assert_int_equal(system(command), 0);
        } else {
            fail_msg("%s: unknown step %s", name, op);
        }
    }
    if (entry) {
        strncat(path, "/", 1023 - strlen(path));
        strncat(path, entry->text, 1023 - strlen(path));
    }
    return path;
}

/* Run every case of a folder: whatever has a sidecar. Returns how many there were. */
static size_t run_folder(const char *data, const char *ending)
{
    char copy[256], command[1200], path[1024];
    size_t cases = 0;
    test_folder_make(copy);
    snprintf(command, sizeof command, "cp -r '%s/.' '%s' && chmod -R u+w '%s'", data, copy, copy);
    assert_int_equal(system(command), 0);
    DIR *folder = opendir(data);
    assert_non_null(folder);
    for (struct dirent *e = readdir(folder); e; e = readdir(folder)) {
        size_t length = strlen(e->d_name), tail = strlen(ending);
        if (length <= tail || strcmp(e->d_name + length - tail, ending) != 0) {
            continue;
        }
        heft__arena arena;
        heft__json_value *sidecar = NULL;
        heft_error err;
        char name[300];
        snprintf(name, sizeof name, "%.*s", (int)(length - tail), e->d_name);
        snprintf(path, sizeof path, "%s/%s", copy, e->d_name);
        size_t text_length;
        char *text = test_read_file(path, &text_length);
        heft__arena_init(&arena, ctx);
        test_expect_status(heft__json_parse(&arena, text, text_length, 64, &sidecar, &err), HEFT_OK,
                           &err, path);
        const test_refusal *refusal = find_refusal(name);
        const heft__json_value *class = heft__json_member(sidecar, "class");
        const heft__json_value *also = heft__json_member(sidecar, "also_ok");
        prepare(copy, name, sidecar, path);
        if (class && strcmp(class->text, "refuse") == 0 && !refusal && !also) {
            refusal = &(test_refusal){name, HEFT_FORMAT, 0, "(no row in golden_refusals.inc)"};
        }
        if (refusal) {
            assert_true(!class || strcmp(class->text, "refuse") == 0 || also);
            check_refused(name, path, refusal);
        } else if (class) {
            const heft__json_value *expect = heft__json_member(sidecar, "expect");
            check_accepted(name, path, expect ? heft__json_member(expect, "tensors") : NULL, true);
        } else {
            check_accepted(name, path, heft__json_member(sidecar, "tensors"), false);
        }
        heft__arena_fini(&arena);
        free(text);
        cases++;
    }
    closedir(folder);
    test_folder_remove(copy);
    return cases;
}

static void safetensors_files_that_are_valid(void **state)
{
    (void)state;
    assert_int_equal(run_folder(HEFT_TEST_DATA "/safetensors/valid", ".json"), 13);
}

static void safetensors_files_that_lie(void **state)
{
    (void)state;
    assert_int_equal(run_folder(HEFT_TEST_DATA "/safetensors/malformed", ".sidecar.json"), 41);
}

static void indexes_that_lie(void **state)
{
    (void)state;
    assert_int_equal(run_folder(HEFT_TEST_DATA "/index_folders", ".sidecar.json"), 24);
}

/* ---- failing allocations --------------------------------------------------------------------- */
static heft_status open_and_read(heft_ctx *on, void *user, heft_error *err)
{
    heft_checkpoint *ckpt = NULL;
    heft_status status = heft_checkpoint_open(on, user, NULL, &ckpt, err);
    if (status == HEFT_OK) {
        status = read_all(ckpt, err);
    }
    heft_checkpoint_close(ckpt);
    return status;
}

static void failing_allocations_leave_nothing(void **state)
{
    static const char *const names[] = {"st_all_dtypes.safetensors", "st_metadata.safetensors",
                                        "st_order.safetensors", "st_names.safetensors"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/safetensors/valid/%s", HEFT_TEST_DATA, names[i]);
        test_oom_sweep(open_and_read, path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(safetensors_files_that_are_valid),
        cmocka_unit_test(safetensors_files_that_lie),
        cmocka_unit_test(indexes_that_lie),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
