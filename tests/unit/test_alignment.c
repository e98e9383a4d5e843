/* Tensors whose elements are not aligned in their file: headers of any length, the legacy format, bytes at
 * an odd address. Mapped tensors can be read as what they are, or are copied and counted; only who takes
 * unaligned ones gets them. -fsanitize=alignment watches the reads. */
#include "checkpoint/checkpoint.h"
#include "load/load.h"
#include "scratch.h"
#include "support_model.h"

#include <dirent.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- every file ------------------------------------------------------------------------------ */
/* The first element, read as a caller would. */
static uint64_t read_typed(const heft_tensor *tensor)
{
    double value;
    switch (heft__dtype_alignment(tensor->dtype)) {
    case 2:
        return *(const uint16_t *)tensor->data;
    case 4:
        return *(const uint32_t *)tensor->data;
    case 8:
        return *(const uint64_t *)tensor->data;
    case 16:
        value = *(const double *)tensor->data;
        return value > 0;
    default:
        return *(const uint8_t *)tensor->data;
    }
}

static void check_bytes(const heft_checkpoint *ckpt, size_t i, const heft_tensor *tensor)
{
    const heft_tensor_info *info = heft_checkpoint_info(ckpt, i);
    heft_error err = {0};
    if (info->offset == HEFT_NO_OFFSET || info->size_bytes == 0) { /* strides, or turned around */
        return;
    }
    uint8_t *wanted = malloc((size_t)info->size_bytes);
    test_expect_status(heft_checkpoint_read(ckpt, i, wanted, info->size_bytes, &err), HEFT_OK, &err,
                       info->name);
    assert_memory_equal(tensor->data, wanted, (size_t)info->size_bytes);
    free(wanted);
}

/* Returns how many tensors are not aligned in the file. */
static size_t check_tensors(const heft_checkpoint *ckpt, const char *what)
{
    size_t unaligned = 0;
    uint64_t sum = 0;
    for (size_t i = 0; i < heft_checkpoint_count(ckpt); i++) {
        for (int mode = HEFT_MAP_READ_ONLY; mode <= HEFT_MAP_PRIVATE_UNALIGNED; mode++) {
            heft_tensor *tensor = NULL;
            heft_error err = {0};
            const bool any = heft__map_takes_unaligned((heft_map_mode)mode);
            test_expect_status(heft_checkpoint_map(ckpt, i, (heft_map_mode)mode, &tensor, &err),
                               HEFT_OK, &err, what);
            const bool aligned =
                tensor->size_bytes == 0 ||
                (uintptr_t)tensor->data % heft__dtype_alignment(tensor->dtype) == 0;
            if (!any && !aligned) {
                fail_msg("%s: '%s' is at %p", what, heft_checkpoint_info(ckpt, i)->name,
                         tensor->data);
            }
            sum += aligned && tensor->size_bytes ? read_typed(tensor) : 0;
            unaligned += mode == HEFT_MAP_READ_ONLY_UNALIGNED && !aligned;
            check_bytes(ckpt, i, tensor);
            heft_tensor_free(tensor);
        }
    }
    return unaligned + (sum == UINT64_MAX);
}

/* As a file, and as bytes at each of four addresses. */
static size_t check_file(const char *path, const char *name)
{
    size_t length = 0, unaligned = 0;
    char *text = test_read_file(path, &length);
    uint8_t *bytes = malloc(length + 64);
    heft_checkpoint *ckpt = NULL;
    heft_error err = {0};
    if (heft_checkpoint_open(ctx, path, NULL, &ckpt, &err) == HEFT_OK) {
        unaligned += check_tensors(ckpt, name);
        heft_checkpoint_close(ckpt);
        for (size_t shift = 1; shift < 16; shift += 4) {
            heft_storage *storage = NULL;
            memcpy(bytes + shift, text, length);
            test_expect_status(
                heft_storage_wrap(ctx, bytes + shift, length, NULL, NULL, &storage, &err), HEFT_OK,
                &err, name);
            test_expect_status(heft_checkpoint_open_bytes(ctx, name, storage, NULL, &ckpt, &err),
                               HEFT_OK, &err, name);
            (void)check_tensors(ckpt, name);
            heft_checkpoint_close(ckpt);
            heft_storage_unref(storage);
        }
    }
    free(bytes);
    free(text);
    return unaligned;
}

static void every_file_can_be_read_typed(void **state)
{
    (void)state;
    static const char *const folders[] = {HEFT_TEST_DATA "/formats",
                                          HEFT_TEST_DATA "/safetensors/valid"};
    size_t files = 0, unaligned = 0;
    for (size_t k = 0; k < COUNT(folders); k++) {
        const struct dirent *entry;
        DIR *all = opendir(folders[k]);
        assert_non_null(all);
        while ((entry = readdir(all)) != NULL) {
            const char *dot = strrchr(entry->d_name, '.');
            if (dot && (strcmp(dot, ".pt") == 0 || strcmp(dot, ".tar") == 0 ||
                        strcmp(dot, ".safetensors") == 0)) {
                char path[600];
                snprintf(path, sizeof path, "%s/%s", folders[k], entry->d_name);
                unaligned += check_file(path, entry->d_name) > 0;
                files++;
            }
        }
        closedir(all);
    }
    assert_true(files > 30);
    assert_true(unaligned > 5); /* most of the legacy format */
}

/* ---- ties ------------------------------------------------------------------------------------ */
/* Returns how many pairs of unaligned tensors are on one storage. */
static size_t check_pairs(const heft_checkpoint *ckpt)
{
    size_t pairs = 0;
    for (size_t i = 0; i < heft_checkpoint_count(ckpt); i++) {
        for (size_t k = i + 1; k < heft_checkpoint_count(ckpt); k++) {
            if (ckpt->infos[i].storage != ckpt->infos[k].storage ||
                heft__checkpoint_is_aligned(ckpt, i) || heft__checkpoint_is_aligned(ckpt, k)) {
                continue;
            }
            for (int mode = HEFT_MAP_READ_ONLY; mode <= HEFT_MAP_PRIVATE; mode++) {
                heft_error err = {0};
                heft_tensor *one = NULL, *two = NULL;
                test_expect_status(heft_checkpoint_map(ckpt, i, (heft_map_mode)mode, &one, &err),
                                   HEFT_OK, &err, "one");
                test_expect_status(heft_checkpoint_map(ckpt, k, (heft_map_mode)mode, &two, &err),
                                   HEFT_OK, &err, "two");
                assert_ptr_equal(one->storage, two->storage);
                assert_int_equal(one->flags, mode == HEFT_MAP_PRIVATE ? HEFT_TENSOR_WRITABLE : 0);
                heft_tensor_free(one);
                heft_tensor_free(two);
            }
            pairs++;
        }
    }
    return pairs;
}

/* Views of a .bin share a storage, and share its copy. */
static void tensors_on_one_storage_share_its_copy(void **state)
{
    (void)state;
    static const char *const names[] = {"legacy_basic.pt", "real_torch_1.10.2_legacy.pt",
                                        "real_torch_1.13.1_legacy.pt", "real_torch_2.1.2_legacy.pt",
                                        "tar_basic.tar"};
    size_t pairs = 0;
    for (size_t k = 0; k < COUNT(names); k++) {
        char path[600];
        heft_checkpoint *ckpt = NULL;
        heft_error err = {0};
        snprintf(path, sizeof path, HEFT_TEST_DATA "/formats/%s", names[k]);
        test_expect_status(heft_checkpoint_open(ctx, path, NULL, &ckpt, &err), HEFT_OK, &err,
                           names[k]);
        pairs += check_pairs(ckpt);
        heft_checkpoint_close(ckpt);
    }
    assert_true(pairs > 0);
}

/* ---- models ---------------------------------------------------------------------------------- */
static const char tiny[] =
    "{\"model_type\":\"bert\",\"architectures\":[\"BertForMaskedLM\"],\"hidden_size\":32,"
    "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"intermediate_size\":64,"
    "\"vocab_size\":300,\"max_position_embeddings\":40,\"dtype\":\"float32\"}";

/* The header of a file becomes `more` bytes longer. */
static void make_checkpoint(const char *name, size_t more)
{
    const heft_init_options init = HEFT_OPTIONS(heft_init_options, .seed = 3);
    const heft_save_options save = HEFT_OPTIONS(heft_save_options, .force = true);
    heft_error err = {0};
    size_t length;
    heft_model *model = test_model_from_text(ctx, tiny, "BertForMaskedLM");
    test_expect_status(heft_model_save_random(model, at(name), &init, &save, NULL, &err), HEFT_OK,
                       &err, name);
    heft_model_free(model);
    char path[600];
    snprintf(path, sizeof path, "%s/model.safetensors", at(name));
    uint8_t *bytes = (uint8_t *)test_read_file(path, &length);
    const size_t header = (size_t)heft__le64(bytes);
    uint8_t *longer = malloc(length + more);
    memcpy(longer, bytes, 8 + header);
    heft__put_le64(longer, header + more);
    memset(longer + 8 + header, ' ', more);
    memcpy(longer + 8 + header + more, bytes + 8 + header, length - 8 - header);
    test_write_file(at(name), "model.safetensors", longer, length + more);
    free(longer);
    free(bytes);
}

static void check_values(const heft_model *a, const heft_model *b, bool aligned)
{
    heft_error err = {0};
    for (size_t i = 0; i < heft_model_count(a); i++) {
        heft_tensor *left = NULL, *right = NULL;
        test_expect_status(heft_model_tensor(a, i, &left, &err), HEFT_OK, &err, "a");
        test_expect_status(heft_model_tensor(b, i, &right, &err), HEFT_OK, &err, "b");
        assert_memory_equal(left->data, right->data, (size_t)left->size_bytes);
        assert_true(!aligned || right->alignment >= heft__dtype_alignment(right->dtype));
        heft_tensor_free(left);
        heft_tensor_free(right);
    }
}

static void a_load_copies_and_counts(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t more;
        heft_map_mode map;
        heft_load_mode mode;
        bool copied, told;
    } rows[] = {
        {"plain",             0, HEFT_MAP_READ_ONLY,           HEFT_LOAD_MAP,  false, false},
        {"half_an_element",   2, HEFT_MAP_READ_ONLY,           HEFT_LOAD_MAP,  true,  true },
        {"odd",               1, HEFT_MAP_READ_ONLY,           HEFT_LOAD_AUTO, true,  true },
        {"one_element",       4, HEFT_MAP_READ_ONLY,           HEFT_LOAD_MAP,  false, false},
        {"odd_private",       3, HEFT_MAP_PRIVATE,             HEFT_LOAD_MAP,  true,  true },
        {"odd_copied",        3, HEFT_MAP_READ_ONLY,           HEFT_LOAD_COPY, true,  false},
        {"odd_taken",         5, HEFT_MAP_READ_ONLY_UNALIGNED, HEFT_LOAD_MAP,  false, false},
        {"odd_private_taken", 7, HEFT_MAP_PRIVATE_UNALIGNED,   HEFT_LOAD_MAP,  false, false},
    };
    heft_error err = {0};
    uint64_t buffers = 0;
    heft_model *plain = NULL;
    make_checkpoint("wanted", 0);
    test_expect_status(test_load(ctx, at("wanted"), NULL, &plain, NULL, &err), HEFT_OK, &err, "");
    for (size_t k = 0; k < COUNT(rows); k++) {
        const test_how how = {
            .load = {.map = rows[k].map, .mode = rows[k].mode, .touch = k % 2 == 0}
        };
        heft_model *model = NULL;
        heft_load_report *report = NULL;
        heft_load_needs needs = HEFT_SIZED(heft_load_needs);
        make_checkpoint(rows[k].name, rows[k].more);
        test_expect_status(test_needs(ctx, at(rows[k].name), &how, &needs, &err), HEFT_OK, &err,
                           rows[k].name);
        test_expect_status(test_load(ctx, at(rows[k].name), &how, &model, &report, &err), HEFT_OK,
                           &err, rows[k].name);
        check_values(plain, model, !heft__map_takes_unaligned(rows[k].map));
        if ((report->copied_bytes > 0) != rows[k].copied ||
            (report->mapped_bytes > 0) == rows[k].copied ||
            (report->unaligned_count > 0) != rows[k].told) {
            fail_msg("%s: %s", rows[k].name, report->strategy);
        }
        assert_int_equal(report->unaligned_bytes, rows[k].told ? report->copied_bytes : 0);
        assert_int_equal(strstr(report->strategy, "not aligned in the file") != NULL, rows[k].told);
        /* what was predicted */
        assert_int_equal(needs.mapped_bytes, report->mapped_bytes);
        buffers = k == 0 ? needs.resident_bytes : buffers; /* that no checkpoint has */
        assert_int_equal(needs.resident_bytes, buffers + report->copied_bytes);
        assert_int_equal(needs.unaligned_bytes, report->unaligned_bytes);
        heft_load_report_free(report);
        heft_model_free(model);
    }
    heft_model_free(plain);
}

/* By a device map they stay in the file, unmapped, and take no memory. */
static void a_device_map_leaves_them_in_the_file(void **state)
{
    (void)state;
    heft_error err = {0};
    for (size_t more = 0; more < 2; more++) {
        for (int taken = 0; taken < 2; taken++) {
            const test_how how = {
                .module = "",
                .device = HEFT_DEVICE_DISK,
                .load = {.map = taken ? HEFT_MAP_READ_ONLY_UNALIGNED : HEFT_MAP_READ_ONLY}};
            heft_model *model = NULL;
            heft_load_report *report = NULL;
            make_checkpoint("disk", more);
            test_expect_status(test_load(ctx, at("disk"), &how, &model, &report, &err), HEFT_OK,
                               &err, "disk");
            const bool stays = more && !taken;
            assert_int_equal(report->disk_bytes > 0, stays);
            assert_int_equal(report->mapped_bytes > 0, !stays);
            assert_int_equal(report->unaligned_count, 0);
            heft_load_report_free(report);
            heft_model_free(model);
        }
    }
}

/* ---- no memory ------------------------------------------------------------------------------- */
static heft_status map_all(heft_ctx *with, void *user, heft_error *err)
{
    heft_checkpoint *ckpt = NULL;
    heft_tensor *tensor = NULL;
    heft_status status = heft_checkpoint_open(with, user, NULL, &ckpt, err);
    for (size_t i = 0; status == HEFT_OK && i < heft_checkpoint_count(ckpt); i++) {
        status = heft_checkpoint_map(ckpt, i, (heft_map_mode)(i % 2), &tensor, err);
        if (status == HEFT_OK) {
            heft_tensor_free(tensor);
        }
    }
    heft_checkpoint_close(ckpt);
    return status;
}

static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    char path[] = HEFT_TEST_DATA "/formats/legacy_basic.pt";
    test_oom_sweep(map_all, path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_file_can_be_read_typed),
        cmocka_unit_test(tensors_on_one_storage_share_its_copy),
        cmocka_unit_test(a_load_copies_and_counts),
        cmocka_unit_test(a_device_map_leaves_them_in_the_file),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
