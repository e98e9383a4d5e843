/* test_in_memory.c - a checkpoint without a folder, from bytes or through a reader: models load from it as
 * from a file, and nothing takes its name for a path. */
#include "load/load.h"
#include "support.h"
#include "support_model.h"
#include "support_residency.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define LAYERS 3
#define HIDDEN 160 /* a layer has over 1 MiB: a residency would use its pages in place */
#define GUARD ((size_t)2 << 20)

static heft_ctx *ctx;
static char folder[256], home[512];

static const char config_text[] =
    "{\"model_type\":\"bert\",\"hidden_size\":160,\"num_hidden_layers\":3,"
    "\"num_attention_heads\":4,\"intermediate_size\":640,\"vocab_size\":100,"
    "\"max_position_embeddings\":40,\"dtype\":\"float32\",\"architectures\":[\"BertModel\"]}";
/* The same weights, to be loaded by their names. */
static const char unknown_text[] = "{\"model_type\":\"quux\",\"architectures\":[\"QuuxModel\"]}";

/* ---- a file in memory ------------------------------------------------------------------------ */
enum way { BYTES, READER, MAPPED_READER, REFUSING_READER, WAYS };

struct memory {
    uint8_t *block, *bytes; /* the file, with a guard of GUARD bytes before and behind it */
    size_t length;
    enum way way;
    atomic_size_t released;
};

static int64_t read_at(void *user, uint64_t offset, void *dst, size_t length)
{
    struct memory *m = user;
    if (offset > m->length || length > m->length - offset) {
        return -ERANGE;
    }
    memcpy(dst, m->bytes + offset, length);
    return (int64_t)length;
}

static const void *map_all(void *user)
{
    struct memory *m = user;
    return m->way == REFUSING_READER ? NULL : m->bytes;
}

static void count_release(void *user)
{
    struct memory *m = user;
    atomic_fetch_add(&m->released, 1);
}

static struct memory *remember(const char *path, enum way way)
{
    struct memory *m = calloc(1, sizeof *m);
    char *text = test_read_file(path, &m->length);
    m->way = way;
    m->block = malloc(m->length + 2 * GUARD);
    memset(m->block, 0x5a, m->length + 2 * GUARD);
    m->bytes = m->block + GUARD;
    memcpy(m->bytes, text, m->length);
    free(text);
    return m;
}

static void forget(struct memory *m)
{
    assert_int_equal(m->released, 1); /* by everybody, and once */
    free(m->block);
    free(m);
}

static heft_status open_memory(heft_ctx *with, struct memory *m, const char *name,
                               heft_checkpoint **out, heft_error *err)
{
    heft_storage *storage = NULL;
    if (m->way != BYTES) {
        const heft_reader reader = HEFT_OPTIONS(
            heft_reader, .name = name, .size = m->length, .read_at = read_at,
            .map = m->way == READER ? NULL : map_all, .release = count_release, .user = m);
        return heft_checkpoint_open_reader(with, &reader, NULL, out, err);
    }
    heft_status status =
        heft_storage_wrap_const(with, m->bytes, m->length, count_release, m, &storage, err);
    if (status == HEFT_OK) {
        status = heft_checkpoint_open_bytes(with, name, storage, NULL, out, err);
    }
    heft_storage_unref(storage);
    return status;
}

/* A source of a file in memory and of a config's text. */
static heft_status open_source(heft_ctx *with, struct memory *m, const char *name, const char *text,
                               heft_source **out, heft_error *err)
{
    heft_checkpoint *ckpt = NULL;
    heft_config *config = NULL;
    heft_status status = open_memory(with, m, name, &ckpt, err);
    if (status == HEFT_OK) {
        status = heft_config_new(with, text, strlen(text), &config, err);
    }
    if (status == HEFT_OK) {
        status = heft_source_new(ckpt, config, NULL, out, err);
    }
    heft_config_free(config);
    heft_checkpoint_close(ckpt);
    return status;
}

static const char *at(const char *name)
{
    return test_path(folder, name);
}

static const char *file_of(heft_format format)
{
    return format == HEFT_FORMAT_TORCH ? "bin/pytorch_model.bin" : "st/model.safetensors";
}

static void expect_equal(const char *what, const heft_model *model, const heft_model *whole)
{
    heft_error err = {0};
    size_t compared = 0;
    for (size_t i = 0; i < heft_model_count(model); i++) {
        const size_t other = heft_model_find(whole, heft_model_parameter(model, i)->name);
        heft_tensor *tensor = NULL;
        assert_true(other != SIZE_MAX);
        test_expect_status(heft_model_tensor(model, i, &tensor, &err), HEFT_OK, &err, what);
        test_compare_bytes(tensor, whole, other);
        heft_tensor_free(tensor);
        compared++;
    }
    assert_true(compared > 30);
}

/* ---- loading --------------------------------------------------------------------------------- */
static void models_load_as_from_a_file(void **state)
{
    static const struct {
        const char *name;
        heft_load_mode mode;
        heft_map_mode map;
        heft_dtype dtype;
        bool unknown, in_place; /* in_place: where there is an address, and nothing is cast */
    } rows[] = {
        {"auto",     HEFT_LOAD_AUTO,   HEFT_MAP_READ_ONLY, HEFT_DTYPE_NONE, false, true },
        {"mapped",   HEFT_LOAD_MAP,    HEFT_MAP_READ_ONLY, HEFT_DTYPE_NONE, false, true },
        {"private",  HEFT_LOAD_MAP,    HEFT_MAP_PRIVATE,   HEFT_DTYPE_NONE, false, false},
        {"copied",   HEFT_LOAD_COPY,   HEFT_MAP_READ_ONLY, HEFT_DTYPE_NONE, false, false},
        {"cast",     HEFT_LOAD_AUTO,   HEFT_MAP_READ_ONLY, HEFT_DTYPE_BF16, false, false},
        {"by_names", HEFT_LOAD_AUTO,   HEFT_MAP_READ_ONLY, HEFT_DTYPE_NONE, true,  true },
        {"shared",   HEFT_LOAD_SHARED, HEFT_MAP_READ_ONLY, HEFT_DTYPE_NONE, false, true },
    };
    static const heft_format formats[] = {HEFT_FORMAT_SAFETENSORS, HEFT_FORMAT_TORCH};
    (void)state;
    heft_model *const wholes[] = {test_load_whole(ctx, at("st"), HEFT_DTYPE_NONE),
                                  test_load_whole(ctx, at("st"), HEFT_DTYPE_BF16)};
    for (size_t k = 0; k < COUNT(rows) * COUNT(formats) * WAYS; k++) {
        const size_t i = k / WAYS / COUNT(formats);
        struct memory *m = remember(at(file_of(formats[k / WAYS % 2])), (enum way)(k % WAYS));
        const bool in_place = rows[i].in_place && (m->way == BYTES || m->way == MAPPED_READER);
        heft_error err = {0};
        heft_source *source = NULL;
        heft_model *model = NULL;
        heft_load_report *report = NULL;
        const heft_load_options options =
            HEFT_OPTIONS(heft_load_options, .mode = rows[i].mode, .map = rows[i].map,
                         .dtype = rows[i].dtype, .strict = true, .touch = true);
        /* no file has this name, and nothing is to look for one */
        test_expect_status(open_source(ctx, m, "none/of/these.bin",
                                       rows[i].unknown ? unknown_text : config_text, &source, &err),
                           HEFT_OK, &err, rows[i].name);
        test_expect_status(heft_model_load(source, &options, &model, &report, &err), HEFT_OK, &err,
                           rows[i].name);
        heft_source_close(source);
        assert_int_equal(report->missing_count + report->unexpected_count, 0);
        assert_int_equal(report->warning_count > 0,
                         rows[i].unknown || (rows[i].mode == HEFT_LOAD_SHARED && !in_place));
        assert_int_equal(in_place ? report->copied_bytes : report->mapped_bytes, 0);
        for (size_t p = 0; p < heft_model_count(model); p++) {
            if (heft_model_parameter(model, p)->kind == HEFT_PARAMETER_WEIGHT) {
                assert_int_equal(heft_model_parameter(model, p)->state,
                                 in_place ? HEFT_PARAMETER_MAPPED : HEFT_PARAMETER_OWNED);
            }
        }
        expect_equal(rows[i].name, model, wholes[rows[i].dtype == HEFT_DTYPE_BF16]);
        heft_load_report_free(report);
        heft_model_free(model);
        forget(m);
    }
    heft_model_free(wholes[0]);
    heft_model_free(wholes[1]);
}

/* ---- no path --------------------------------------------------------------------------------- */
struct where { /* what a case works on: the current folder has a file of the checkpoint's name */
    const char *name;
    struct memory *memory;
    heft_source *source;
    const heft_model *whole;
};

static void resume_is_refused(const struct where *w)
{
    heft_error err = {0};
    const heft_convert_options options = HEFT_OPTIONS(heft_convert_options, .resume = true);
    test_expect_status(heft_source_convert(w->source, at("resumed"), &options, NULL, &err),
                       HEFT_INVALID_ARG, &err, w->name);
    assert_non_null(strstr(err.message, "'model.safetensors' was not opened from a path"));
    assert_false(heft__path_exists(at("resumed")));
}

static void conversion_copies_nothing_beside_it(const struct where *w)
{
    heft_error err = {0};
    heft_write_report *report = NULL;
    test_expect_status(heft_source_convert(w->source, at("converted"), NULL, &report, &err),
                       HEFT_OK, &err, w->name);
    assert_int_equal(report->file_count, 1);
    assert_int_equal(test_count_entries(at("converted")), 1);
    heft_write_report_free(report);
    size_t length = 0;
    char *text = test_read_file(at("converted/model.safetensors"), &length);
    assert_int_equal(length, w->memory->length);
    assert_memory_equal(text, w->memory->bytes, length);
    free(text);
    test_folder_remove(at("converted"));
}

static void manifest_is_not_written(const struct where *w)
{
    heft_error err = {0};
    heft_verify_report *report = NULL;
    const heft_verify_options options =
        HEFT_OPTIONS(heft_verify_options, .write_manifest = at("manifest.json"));
    test_expect_status(heft_source_verify(w->source, &options, &report, &err), HEFT_INVALID_ARG,
                       &err, w->name);
    assert_non_null(strstr(err.message, "'model.safetensors' was not opened from a path"));
    assert_null(report);
    assert_false(heft__path_exists(at("manifest.json")));
}

static void manifest_is_not_compared(const struct where *w)
{
    static const char text[] = "{\"files\": {}, \"version\": 1}";
    heft_error err = {0};
    heft_verify_report *report = NULL;
    test_write_file(folder, "other.json", text, sizeof text - 1);
    const heft_verify_options options =
        HEFT_OPTIONS(heft_verify_options, .manifest = at("other.json"));
    test_expect_status(heft_source_verify(w->source, &options, &report, &err), HEFT_INVALID_ARG,
                       &err, w->name);
    assert_null(report);
}

static void nothing_is_stale(const struct where *w)
{
    heft_error err = {0};
    heft_verify_report *report = NULL;
    const heft_verify_options options = HEFT_OPTIONS(heft_verify_options, .deep = true);
    test_expect_status(heft_source_verify(w->source, &options, &report, &err), HEFT_OK, &err,
                       w->name);
    assert_true(report->ok);
    assert_int_equal(report->problem_count, 0);
    assert_int_equal(report->bytes_read, report->total_bytes);
    heft_verify_report_free(report);
}

static void source_is_a_file_without_a_path(const struct where *w)
{
    const heft_checkpoint *ckpt = heft_source_checkpoint(w->source);
    assert_int_equal(heft_source_what(w->source), HEFT_SOURCE_FILE);
    assert_string_equal(heft_source_path(w->source), "");
    assert_null(heft_checkpoint_folder(ckpt));
    assert_false(heft__file_is_local(ckpt, 0));
}

static heft_plan *plan_on_disk(const struct where *w)
{
    const heft_device_entry all = {"", HEFT_DEVICE_DISK};
    const heft_plan_options options =
        HEFT_OPTIONS(heft_plan_options, .device_map = &all, .device_map_count = 1);
    heft_error err = {0};
    heft_model *skeleton = NULL;
    heft_plan *plan = NULL;
    test_expect_status(heft_model_skeleton(w->source, NULL, &skeleton, &err), HEFT_OK, &err,
                       w->name);
    test_expect_status(heft_plan_new(skeleton, &options, &plan, &err), HEFT_OK, &err, w->name);
    heft_model_free(skeleton);
    return plan;
}

/* An offload folder has all the bytes itself. */
static void offload_folder_points_into_no_file(const struct where *w)
{
    heft_error err = {0};
    heft_model *model = NULL, *again = NULL;
    heft_load_report *report = NULL;
    heft_plan *plan = plan_on_disk(w);
    heft_load_needs needs = HEFT_SIZED(heft_load_needs);
    const heft_load_options options =
        HEFT_OPTIONS(heft_load_options, .plan = plan, .offload_folder = at("offload"));
    test_expect_status(heft_model_needs(w->source, &options, &needs, &err), HEFT_OK, &err, w->name);
    test_expect_status(heft_model_load(w->source, &options, &model, &report, &err), HEFT_OK, &err,
                       w->name);
    assert_true(report->offload_entries > 30);
    assert_int_equal(report->offload_files, report->offload_entries);
    assert_int_equal(report->offload_bytes, w->memory->length - 8 - heft__le64(w->memory->bytes));
    expect_equal(w->name, model, w->whole);
    test_expect_status(test_load(ctx, at("offload"), NULL, &again, NULL, &err), HEFT_NOT_FOUND,
                       &err, w->name); /* there is no config beside it */
    heft_load_report_free(report);
    heft_model_free(model);
    heft_plan_free(plan);
    test_folder_remove(at("offload"));
}

/* What is cast could be one copy for all, if others could know that it is the same. */
static void shared_mode_makes_a_private_copy(const struct where *w)
{
    heft_error err = {0};
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    heft_load_needs needs = HEFT_SIZED(heft_load_needs);
    const heft_load_options options =
        HEFT_OPTIONS(heft_load_options, .mode = HEFT_LOAD_SHARED, .dtype = HEFT_DTYPE_F16);
    test_expect_status(heft_model_needs(w->source, &options, &needs, &err), HEFT_OK, &err, w->name);
    test_expect_status(heft_model_load(w->source, &options, &model, &report, &err), HEFT_OK, &err,
                       w->name);
    assert_string_equal(report->mode, "map");
    assert_int_equal(report->shared_bytes, 0);
    assert_int_equal(report->copied_bytes, heft_model_bytes(model));
    assert_true(needs.resident_bytes >= report->copied_bytes);
    assert_null(strstr(report->strategy, "all processes"));
    assert_int_equal(report->warning_count, 1);
    assert_non_null(strstr(report->warnings[0], "no shared copy: the checkpoint was not opened"));
    assert_int_equal(heft_model_parameter(model, 0)->state, HEFT_PARAMETER_OWNED);
    heft_load_report_free(report);
    heft_model_free(model);
}

/* Units that lie in the caller's memory are there for good: dropping pages would lose what they hold. */
static void residency_leaves_the_callers_memory(const struct where *w)
{
    heft_plan *plan = plan_on_disk(w);
    for (int placed = 0; placed < 2; placed++) {
        heft_error err = {0};
        heft_model *model = NULL;
        const heft_load_options options =
            HEFT_OPTIONS(heft_load_options, .plan = placed ? plan : NULL);
        const size_t length = w->memory->length + 2 * GUARD;
        uint8_t *before = malloc(length);
        memcpy(before, w->memory->block, length);
        test_expect_status(heft_model_load(w->source, &options, &model, NULL, &err), HEFT_OK, &err,
                           w->name);
        heft_residency *r = test_residency(model, NULL);
        for (size_t round = 0; round < 2; round++) {
            for (size_t u = 0; u < heft_residency_count(r); u++) {
                heft_lease *lease = test_acquire(r, u);
                test_compare_unit(r, lease, u, w->whole);
                heft_lease_free(lease);
            }
        }
        heft_residency_free(r);
        heft_model_free(model);
        if (memcmp(before, w->memory->block, length) != 0) {
            fail_msg("%s: the caller's bytes have changed", w->name);
        }
        free(before);
    }
    heft_plan_free(plan);
}

static void nothing_takes_the_name_for_a_path(void **state)
{
    static const struct {
        const char *name;
        void (*run)(const struct where *w);
    } cases[] = {
        {"resume_is_refused",                   resume_is_refused                  },
        {"conversion_copies_nothing_beside_it", conversion_copies_nothing_beside_it},
        {"manifest_is_not_written",             manifest_is_not_written            },
        {"manifest_is_not_compared",            manifest_is_not_compared           },
        {"nothing_is_stale",                    nothing_is_stale                   },
        {"source_is_a_file_without_a_path",     source_is_a_file_without_a_path    },
        {"offload_folder_points_into_no_file",  offload_folder_points_into_no_file },
        {"shared_mode_makes_a_private_copy",    shared_mode_makes_a_private_copy   },
        {"residency_leaves_the_callers_memory", residency_leaves_the_callers_memory},
    };
    const char *only = getenv("HEFT_TEST_CASE");
    (void)state;
    heft_model *whole = test_load_whole(ctx, at("st"), HEFT_DTYPE_NONE);
    for (size_t k = 0; k < COUNT(cases) * WAYS; k++) {
        heft_error err = {0};
        struct where w = {.name = cases[k / WAYS].name, .whole = whole};
        if (only && strcmp(only, w.name) != 0) {
            continue;
        }
        w.memory = remember(at(file_of(HEFT_FORMAT_SAFETENSORS)), (enum way)(k % WAYS));
        test_expect_status(
            open_source(ctx, w.memory, "model.safetensors", config_text, &w.source, &err), HEFT_OK,
            &err, w.name);
        cases[k / WAYS].run(&w);
        heft_source_close(w.source);
        forget(w.memory);
    }
    heft_model_free(whole);
}

/* ---- failing allocations --------------------------------------------------------------------- */
static heft_status attempt(heft_ctx *with, void *user, heft_error *err)
{
    struct memory *m = user;
    heft_source *source = NULL;
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    heft_status status = open_source(with, m, NULL, config_text, &source, err);
    if (status == HEFT_OK) {
        status = heft_model_load(source, &HEFT_OPTIONS(heft_load_options, .strict = true), &model,
                                 &report, err);
    }
    heft_load_report_free(report);
    heft_model_free(model);
    heft_source_close(source);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    for (int way = 0; way < 2; way++) {
        struct memory *m = remember(at(file_of(HEFT_FORMAT_SAFETENSORS)), (enum way)way);
        test_oom_sweep(attempt, m);
        m->released = 1; /* as often as it was opened */
        forget(m);
    }
}

/* The current folder has what a folder of weights may have: files that are stale, a file of the same name,
 * side files. */
static int set_up(void **state)
{
    static const char text[] = "{}";
    const heft_save_options bin = HEFT_OPTIONS(heft_save_options, .format = HEFT_FORMAT_TORCH);
    (void)state;
    ctx = heft_ctx_new(NULL);
    test_folder_make(folder);
    assert_non_null(getcwd(home, sizeof home));
    test_save_random(ctx, config_text, "BertModel", at("st"), NULL);
    test_save_random(ctx, config_text, "BertModel", at("bin"), &bin);
    static const char *const names[] = {"config.json",
                                        "tokenizer.json",
                                        "model.safetensors",
                                        "model-00001-of-00002.safetensors",
                                        "model.safetensors.heft-tmp-1",
                                        "index.json"};
    for (size_t i = 0; i < COUNT(names); i++) {
        test_write_file(folder, names[i], text, sizeof text - 1);
    }
    return chdir(folder);
}

static int tear_down(void **state)
{
    (void)state;
    assert_int_equal(chdir(home), 0);
    test_folder_remove(folder);
    heft_ctx_free(ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_load_as_from_a_file),
        cmocka_unit_test(nothing_takes_the_name_for_a_path),
        cmocka_unit_test(memory_can_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
