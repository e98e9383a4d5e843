/* Models placed by a device map: weights on cpu are in memory, weights on disk stay in their files and are
 * brought in unit by unit within a budget and dropped; what cannot be placed is refused. */
#include "support_residency.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#define HIDDEN 256
#define LAYER_BYTES test_layer_bytes(HIDDEN) /* 3 MB */
#define LAYERS 8

static heft_ctx *ctx;
static char folder[256];

static const char *at(const char *name)
{
    return test_path(folder, name);
}

static heft_status load_into(heft_ctx *with, int32_t device, heft_dtype dtype, const char *offload,
                             heft_model **model, heft_error *err)
{
    const test_how options = {
        .module = "encoder.layer",
        .device = device,
        .load = {.strict = true, .dtype = dtype, .offload_folder = offload}
    };
    return test_load(with, at("model"), &options, model, NULL, err);
}

static heft_status load_with(int32_t device, heft_dtype dtype, heft_model **model, heft_error *err)
{
    return load_into(ctx, device, dtype, NULL, model, err);
}

static heft_residency *make_residency(const heft_model *model, uint64_t budget)
{
    const heft_residency_options options =
        HEFT_OPTIONS(heft_residency_options, .budget_bytes = budget);
    return test_residency(model, &options);
}

static size_t first_layer(const heft_residency *r, const heft_model *model)
{
    return test_unit(r, model, "encoder.layer.0.output.dense.weight");
}

/* Whole blocks that are read beyond both ends of a range stay within its memory, wherever that begins. */
static void blocks_stay_in_their_memory(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 2, 63, 64, 4095, 4096, 4097, 8191, 100000};
    const uintptr_t block = HEFT__DIRECT_BLOCK;
    for (uintptr_t base = block; base < 2 * block; base += 16) {
        for (uint64_t offset = 0; offset < block; offset += 7) {
            const uintptr_t at = (uintptr_t)heft__in_phase((uint8_t *)base, offset);
            assert_int_equal(at % block, offset % block);
            assert_true(at - at % block >= base);
            for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
                const uintptr_t end = (at + sizes[i] + block - 1) / block * block;
                assert_true(end <= base + sizes[i] + HEFT__SPARE_BYTES);
            }
        }
    }
}

/* Two passes over all units, from a warm and a cold page cache, as stored and cast. The test waits for
 * the read-ahead, so that the number of reads is known. */
static void units_come_and_go(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        heft_dtype dtype;
        bool warm, maps;
        unsigned room; /* layers that the budget has room for; 0: the standard one, which is two */
        unsigned reads;
        const char *offload; /* a folder for what is cast */
    } rows[] = {
        {"warm",                    HEFT_DTYPE_NONE, true,  true,  0, 17, NULL },
        {"cold",                    HEFT_DTYPE_NONE, false, false, 0, 17, NULL },
        {"cast",                    HEFT_DTYPE_BF16, true,  false, 0, 17, NULL },
        {"cast, cold",              HEFT_DTYPE_F64,  false, false, 0, 17, NULL },
        {"room for one",            HEFT_DTYPE_NONE, false, false, 1, 17, NULL },
        {"cast, for one",           HEFT_DTYPE_BF16, true,  false, 1, 17, NULL },
        {"room for all",            HEFT_DTYPE_NONE, false, false, 9, 8,  NULL },
        {"a cast that was written", HEFT_DTYPE_BF16, true,  true,  0, 17, "off"},
        {"a cast that is there",    HEFT_DTYPE_BF16, true,  true,  1, 17, "off"},
    };
    for (size_t row = 0; row < sizeof rows / sizeof rows[0]; row++) {
        heft_error err = {0};
        heft_model *model = NULL, *whole = test_load_whole(ctx, at("model"), rows[row].dtype);
        const char *offload = rows[row].offload ? at(rows[row].offload) : NULL;
        const unsigned bits = rows[row].dtype ? heft_dtype_bits(rows[row].dtype) : 32;
        const uint64_t layer = LAYER_BYTES * bits / 32;
        test_expect_status(load_into(ctx, HEFT_DEVICE_DISK, rows[row].dtype, offload, &model, &err),
                           HEFT_OK, &err, rows[row].name);
        test_file_cache(at("model/model.safetensors"), rows[row].warm);
        heft_residency *r = make_residency(model, rows[row].room * layer);
        for (size_t i = 0; i < 2 * heft_residency_count(r); i++) {
            const size_t number = i % heft_residency_count(r);
            heft_lease *lease = test_acquire(r, number);
            test_compare_unit(r, lease, number, whole);
            heft__residency_settle(r);
            heft_lease_free(lease);
            heft__residency_settle(r);
        }
        const heft_residency_counts counts = test_counts(r);
        assert_int_equal(counts.budget_bytes, (rows[row].room ? rows[row].room : 2) * layer);
        assert_int_equal(counts.ahead + counts.waited, 16);
        assert_int_equal(counts.waited, 0); /* while one is used the next one comes */
        assert_true(counts.peak_bytes <= counts.budget_bytes);
        if (counts.brought_units != rows[row].reads) { /* one has come for the third pass */
            fail_msg("%s: %u reads", rows[row].name, (unsigned)counts.brought_units);
        }
        assert_int_equal(counts.read_bytes + counts.mapped_bytes, rows[row].reads * layer);
        if (rows[row].warm) { /* a cold file may have come back */
            assert_int_equal(counts.read_bytes > 0, !rows[row].maps);
        }
        heft_residency_free(r);
        heft_model_free(model);
        heft_model_free(whole);
    }
}

/* The bytes of a file's mappings that are in this process's page tables. */
static uint64_t mapped_rss(const char *name)
{
    char line[512];
    uint64_t kib = 0, sum = 0;
    bool own = false;
    FILE *file = fopen("/proc/self/smaps", "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file)) {
        if (strcspn(line, "-") < strcspn(line, " ")) { /* the line with which a mapping begins */
            own = strstr(line, name) != NULL;
        } else if (own && sscanf(line, "Rss: %" SCNu64, &kib) == 1) {
            sum += kib * 1024;
        }
    }
    fclose(file);
    return sum;
}

/* Dropped pages leave the page tables, with the neighboring pages that a fault has entered. */
static void dropped_units_leave_the_page_tables(void **state)
{
    (void)state;
    heft_model *model = test_load_on_disk(ctx, at("model"), "encoder.layer", HEFT_DTYPE_NONE);
    test_file_cache(at("model/model.safetensors"), true);
    heft_residency *r = make_residency(model, 2 * LAYER_BYTES);
    const size_t first = first_layer(r, model);
    for (size_t i = 0; i < 5 * LAYERS; i++) {
        heft_lease_free(test_acquire(r, first + i * 3 % LAYERS));
        heft__residency_settle(r);
        const uint64_t rss = mapped_rss("/model.safetensors");
        if (rss > 2 * (LAYER_BYTES + (32 << 10))) {
            fail_msg("%" PRIu64 " bytes are mapped, of layers of %" PRIu64, rss, LAYER_BYTES);
        }
    }
    assert_int_equal(test_counts(r).read_bytes, 0);
    heft_residency_free(r);
    assert_true(mapped_rss("/model.safetensors") <= 32 << 10);
    heft_model_free(model);
}

/* Units in any order, several at once. */
static void any_order(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *model = NULL, *whole = test_load_whole(ctx, at("model"), HEFT_DTYPE_NONE);
    test_expect_status(load_with(HEFT_DEVICE_DISK, HEFT_DTYPE_NONE, &model, &err), HEFT_OK, &err,
                       "placed");
    test_file_cache(at("model/model.safetensors"), false);
    heft_residency *r = make_residency(model, 3 * LAYER_BYTES + (LAYER_BYTES >> 1));
    const size_t first = first_layer(r, model);
    unsigned random = 1;
    heft_lease *held[2] = {test_acquire(r, first), test_acquire(r, first)};
    size_t numbers[2] = {first, first};
    for (int i = 0; i < 60; i++) {
        random = random * 1103515245U + 12345U;
        const size_t next = first + (random >> 16) % 8;
        heft_lease *lease = test_acquire(r, next);
        test_compare_unit(r, lease, next, whole);
        test_compare_unit(r, held[0], numbers[0], whole);
        heft_lease_free(held[i % 2]);
        held[i % 2] = lease;
        numbers[i % 2] = next;
    }
    heft_residency_free(r); /* with two leases, which stay valid */
    test_compare_unit(held[0]->residency, held[0], numbers[0], whole);
    heft_lease_free(held[0]);
    heft_lease_free(held[1]);
    heft_model_free(model);
    heft_model_free(whole);
}

static void what_has_no_room_is_refused(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *model = NULL;
    heft_residency *r = NULL;
    heft_lease *lease = NULL, *none = NULL;
    const heft_residency_options small =
        HEFT_OPTIONS(heft_residency_options, .budget_bytes = LAYER_BYTES / 2);
    test_expect_status(load_with(HEFT_DEVICE_DISK, HEFT_DTYPE_NONE, &model, &err), HEFT_OK, &err,
                       "placed");
    assert_int_equal(heft_residency_new(model, &small, &r, &err), HEFT_LIMIT);
    assert_string_equal(err.item, "encoder.layer.0");
    assert_non_null(strstr(err.message, "needs 3159040 bytes, the budget is 1579520"));
    assert_null(r);
    r = make_residency(model, LAYER_BYTES);
    const size_t first = first_layer(r, model), both[] = {first, first + 1, first},
                 gone[] = {first, 1000};
    lease = test_acquire(r, first);
    assert_int_equal(heft_residency_acquire(r, both + 1, 1, &none, &err), HEFT_LIMIT);
    assert_string_equal(err.item, "encoder.layer.1");
    heft_lease_free(lease);
    lease = test_acquire(r, first + 1);
    heft_lease_free(lease);
    assert_int_equal(heft_residency_acquire(r, both, 3, &none, &err), HEFT_LIMIT);
    assert_non_null(strstr(err.message, "needs 6318080 bytes, the budget is 3159040"));
    assert_int_equal(heft_residency_acquire(r, gone, 2, &none, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_residency_acquire(r, NULL, 1, &none, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_residency_acquire(NULL, both, 1, &none, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_residency_acquire(r, both, 1, NULL, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_residency_new(NULL, NULL, &r, &err), HEFT_INVALID_ARG);
    assert_null(none);
    assert_null(heft_residency_unit(r, 1000));
    assert_null(heft_lease_view(NULL, 0));
    assert_int_equal(heft_residency_find_parameter(r, SIZE_MAX), SIZE_MAX);
    assert_int_equal(heft_residency_find_module(r, SIZE_MAX), SIZE_MAX);
    assert_int_equal(heft_residency_find_units(r, SIZE_MAX, NULL, 0), 0);
    heft_residency_free(r);
    heft_residency_free(NULL);
    heft_lease_free(NULL);
    heft_ledger_free(NULL);
    heft_model_free(model);
}

/* A parameter that is cast when brought in is not in memory, and the error says so. */
static void a_cast_stays_on_disk(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *model = NULL;
    heft_tensor *tensor = NULL;
    test_expect_status(load_with(HEFT_DEVICE_DISK, HEFT_DTYPE_BF16, &model, &err), HEFT_OK, &err,
                       "placed");
    const size_t i = heft_model_find(model, "encoder.layer.3.output.dense.weight");
    assert_int_equal(heft_model_parameter(model, i)->state, HEFT_PARAMETER_DISK);
    assert_int_equal(heft_model_tensor(model, i, &tensor, &err), HEFT_NOT_FOUND);
    assert_non_null(strstr(err.message, "stays in its file"));
    heft_model_free(model);
}

static void what_cannot_be_placed_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int32_t device;
        heft_status status;
        const char *says, *item;
    } rows[] = {
        {"an_accelerator", 3,                HEFT_UNSUPPORTED, "device 3",       "encoder.layer.0."},
        {"no_device",      HEFT_DEVICE_NONE, HEFT_INVALID_ARG, "unknown device", "encoder.layer"   },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_model *model = NULL;
        heft_error err = {0};
        test_expect_status(load_with(rows[i].device, HEFT_DTYPE_NONE, &model, &err), rows[i].status,
                           &err, rows[i].name);
        assert_non_null(strstr(err.message, rows[i].says));
        assert_non_null(strstr(err.item, rows[i].item));
        assert_null(model);
    }
}

/* ---- every family ---------------------------------------------------------------------------- */
/* However a file's tensors are transformed (stacked, split, cast), a unit has the model's values; each
 * parameter is in one unit. */
static void compare_family(const char *what, heft_model *model, heft_format format,
                           heft_dtype dtype)
{
    heft_error err = {0};
    const heft_save_options save =
        HEFT_OPTIONS(heft_save_options, .format = format, .max_shard_bytes = 50000);
    test_expect_status(heft_model_save_random(model, at("family"), NULL, &save, NULL, &err),
                       HEFT_OK, &err, what);
    heft_model *whole = test_load_whole(ctx, at("family"), dtype),
               *placed = test_load_on_disk(ctx, at("family"), "", dtype);
    heft_residency *r = make_residency(placed, 0);
    size_t seen = 0, *units = calloc(heft_residency_count(r), sizeof *units);
    for (size_t i = 0; i < heft_residency_count(r); i++) {
        const heft_unit *unit = heft_residency_unit(r, i);
        heft_lease *lease = test_acquire(r, i);
        test_compare_unit(r, lease, i, whole);
        heft_lease_free(lease);
        seen += unit->parameter_count;
        for (size_t k = 0; k < unit->parameter_count; k++) {
            assert_int_equal(heft_residency_find_parameter(r, unit->parameters[k]), i);
        }
    }
    assert_int_equal(seen, heft_model_count(placed));
    assert_int_equal(heft_residency_find_units(r, 0, units, heft_residency_count(r)),
                     heft_residency_count(r));
    for (size_t i = 0; i < heft_residency_count(r); i++) {
        assert_int_equal(units[i], i);
    }
    free(units);
    heft_residency_free(r);
    heft_model_free(placed);
    heft_model_free(whole);
    test_folder_remove(at("family"));
}

static size_t families_seen;

static void compare_small(const char *what, heft_model *model)
{
    if (heft_model_bytes(model) < 4000000) {
        compare_family(what, model, HEFT_FORMAT_SAFETENSORS, HEFT_DTYPE_NONE);
        compare_family(what, model, HEFT_FORMAT_TORCH, HEFT_DTYPE_BF16);
        families_seen++;
    }
}

static void every_family_comes_in_as_it_is(void **state)
{
    (void)state;
    (void)test_each_skeleton(ctx, compare_small);
    assert_true(families_seen >= 60);
}

/* ---- nothing half done ----------------------------------------------------------------------- */
/* The only two units of a schedule, so that nothing is read ahead meanwhile, and a tensor of one of
 * them. */
static heft_status bring_two(heft_ctx *with, void *user, heft_error *err)
{
    heft_model *model = NULL;
    heft_residency *r = NULL;
    heft_lease *lease = NULL;
    heft_tensor *tensor = NULL;
    size_t units[2] = {0};
    heft_status status =
        load_into(with, HEFT_DEVICE_DISK, *(const heft_dtype *)user, NULL, &model, err);
    if (status == HEFT_OK) {
        status = heft_residency_new(model, NULL, &r, err);
    }
    if (status == HEFT_OK) {
        units[0] = first_layer(r, model);
        units[1] = units[0] + 3;
        status = heft_residency_set_schedule(r, units, 2, 0, err);
    }
    if (status == HEFT_OK) {
        status = heft_residency_acquire(r, units, 2, &lease, err);
        assert_int_equal(lease != NULL, status == HEFT_OK);
        assert_int_equal(test_counts(r).held_bytes > 0, status == HEFT_OK);
    }
    if (status == HEFT_OK) {
        const size_t parameter = heft_residency_unit(r, units[1])->parameters[0];
        assert_non_null(heft_lease_view(lease, parameter));
        status = heft_lease_tensor(lease, parameter, &tensor, err);
        assert_int_equal(tensor != NULL, status == HEFT_OK);
    }
    heft_residency_free(r);
    heft_lease_free(lease);
    heft_model_free(model);
    heft_tensor_free(tensor);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    heft_dtype dtypes[] = {HEFT_DTYPE_NONE, HEFT_DTYPE_BF16};
    for (size_t i = 0; i < 2 * sizeof dtypes / sizeof dtypes[0]; i++) {
        test_file_cache(at("model/model.safetensors"), i % 2);
        test_oom_sweep(bring_two, &dtypes[i / 2]);
    }
}

static bool stop_bringing(void *user, const heft_progress *progress)
{
    int *left = user;
    return strcmp(progress->what, "loading units") != 0 || --*left > 0;
}

static void cancelled_in_the_middle(void **state)
{
    (void)state;
    int left = 4;
    const heft_ctx_options options =
        HEFT_OPTIONS(heft_ctx_options, .progress = stop_bringing, .progress_user = &left);
    heft_ctx *with = heft_ctx_new(&options);
    heft_model *model = NULL;
    heft_error err = {0};
    test_expect_status(load_into(with, HEFT_DEVICE_DISK, HEFT_DTYPE_NONE, NULL, &model, &err),
                       HEFT_OK, &err, "placed");
    heft_residency *r = make_residency(model, 0);
    heft_lease *lease = NULL;
    size_t done = 0;
    while (heft_residency_acquire(r, &done, 1, &lease, &err) == HEFT_OK) {
        heft_lease_free(lease);
        done++;
    }
    assert_int_equal(err.status, HEFT_CANCELLED);
    assert_int_equal(done, 3);
    heft_residency_free(r);
    heft_model_free(model);
    heft_ctx_free(with);
}

/* A file that is truncated after the load: a status, and no signal; also if the missing part is read ahead,
 * and if one of several units is in memory. */
static void a_cut_file_is_told(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_model *model = NULL;
    test_expect_status(load_with(HEFT_DEVICE_DISK, HEFT_DTYPE_NONE, &model, &err), HEFT_OK, &err,
                       "placed");
    heft_residency *r = make_residency(model, 3 * LAYER_BYTES);
    const size_t first = first_layer(r, model);
    heft_lease *there = test_acquire(r, first), *lease = NULL;
    heft__residency_settle(r);
    assert_int_equal(truncate(at("model/model.safetensors"), 100000), 0);
    for (size_t i = 0; i < 16; i++) {
        const size_t both[] = {first, first + 3 + i % 5};
        err = (heft_error){0};
        assert_int_equal(heft_residency_acquire(r, both, 2, &lease, &err), HEFT_IO);
        assert_non_null(strstr(err.item, heft_residency_unit(r, both[1])->name));
        assert_null(lease);
    }
    heft_lease_free(there);
    heft__residency_settle(r);
    heft_residency_free(r);
    heft_model_free(model);
}

static void *cut(void *user)
{
    (void)user;
    return truncate(at("cut/model.safetensors"), 5000000) == 0 ? NULL : (void *)folder;
}

/* A file that is truncated while units are brought in and dropped. */
static void a_file_is_cut_meanwhile(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 6; round++) {
        test_save_layers(ctx, at("cut"), LAYERS, HIDDEN);
        test_file_cache(at("cut/model.safetensors"), round % 2);
        heft_model *model = test_load_on_disk(ctx, at("cut"), "encoder.layer", HEFT_DTYPE_NONE);
        heft_residency *r = make_residency(model, 3 * LAYER_BYTES);
        const size_t first = first_layer(r, model);
        heft_error err = {0};
        pthread_t thread;
        void *failed;
        size_t refused = 0;
        for (size_t i = 0; i < 5 * LAYERS; i++) {
            heft_lease *lease = NULL;
            const size_t units[] = {first + i % LAYERS, first + (i + 1) % LAYERS};
            if (i == LAYERS + round) {
                assert_int_equal(pthread_create(&thread, NULL, cut, NULL), 0);
            }
            if (i == 3 * LAYERS) { /* truncated from here on */
                pthread_join(thread, &failed);
                assert_null(failed);
            }
            const heft_status status = heft_residency_acquire(r, units, 2, &lease, &err);
            assert_true(status == HEFT_OK || (status == HEFT_IO && i >= LAYERS + round));
            refused += status == HEFT_IO;
            heft_lease_free(lease);
        }
        assert_true(refused > LAYERS);
        heft_residency_free(r);
        heft_model_free(model);
        test_folder_remove(at("cut"));
    }
}

static int set_up(void **state)
{
    (void)state;
    test_folder_make(folder);
    ctx = heft_ctx_new(NULL);
    test_save_layers(ctx, at("model"), LAYERS, HIDDEN);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    test_folder_remove(folder);
    heft_ctx_free(ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_stay_in_their_memory),
        cmocka_unit_test(units_come_and_go),
        cmocka_unit_test(dropped_units_leave_the_page_tables),
        cmocka_unit_test(any_order),
        cmocka_unit_test(what_has_no_room_is_refused),
        cmocka_unit_test(a_cast_stays_on_disk),
        cmocka_unit_test(what_cannot_be_placed_is_refused),
        cmocka_unit_test(every_family_comes_in_as_it_is),
        cmocka_unit_test(memory_can_run_out_anywhere),
        cmocka_unit_test(cancelled_in_the_middle),
        cmocka_unit_test(a_file_is_cut_meanwhile),
        cmocka_unit_test(a_cut_file_is_told), /* last: the file is gone then */
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
