/* The predicted memory of a load equals that of its report, for every way of loading. */
#include "load/load.h"
#include "support.h"
#include "support_model.h"

#include <stdlib.h>
#include <unistd.h>

static heft_ctx *ctx;
static char folder[256];

static const char *at(const char *name)
{
    return test_path(folder, name);
}

static const char config_text[] =
    "{\"model_type\":\"bert\",\"hidden_size\":64,\"num_hidden_layers\":3,\"num_attention_heads\":2,"
    "\"intermediate_size\":256,\"vocab_size\":300,\"max_position_embeddings\":20,"
    "\"dtype\":\"float32\",\"architectures\":[\"BertModel\"]}";

static void make_checkpoint(const char *name, heft_format format)
{
    heft_error err = {0};
    const heft_save_options options =
        HEFT_OPTIONS(heft_save_options, .format = format, .max_shard_bytes = 200000);
    heft_model *model = test_model_from_text(ctx, config_text, "BertModel");
    test_expect_status(heft_model_save_random(model, at(name), NULL, &options, NULL, &err), HEFT_OK,
                       &err, name);
    heft_model_free(model);
}

enum { CPU = HEFT_DEVICE_CPU, DISK = HEFT_DEVICE_DISK, GPU = 1 };
#define MIDDLE "encoder.layer.1"

static const struct {
    const char *name, *from, *class_name;
    heft_load_mode mode;
    heft_dtype dtype;
    const char *module; /* on that device */
    int32_t device;
    const char *offload;
} rows[] = {
    {"auto",              "st",   NULL,              HEFT_LOAD_AUTO,   HEFT_DTYPE_NONE, NULL,           CPU,  NULL},
    {"mapped",            "bins", NULL,              HEFT_LOAD_MAP,    HEFT_DTYPE_NONE, NULL,           CPU,  NULL},
    {"copied",            "st",   NULL,              HEFT_LOAD_COPY,   HEFT_DTYPE_NONE, NULL,           CPU,  NULL},
    {"cast",              "st",   NULL,              HEFT_LOAD_AUTO,   HEFT_DTYPE_BF16, NULL,           CPU,  NULL},
    {"shared",            "bins", NULL,              HEFT_LOAD_SHARED, HEFT_DTYPE_F16,  NULL,           CPU,  NULL},
    {"a new head",        "st",   "BertForMaskedLM", HEFT_LOAD_AUTO,   HEFT_DTYPE_NONE, NULL,           CPU,  NULL},
    {"cpu",               "st",   NULL,              HEFT_LOAD_AUTO,   HEFT_DTYPE_NONE, "",             CPU,  NULL},
    {"disk",              "st",   NULL,              HEFT_LOAD_AUTO,   HEFT_DTYPE_NONE, "",             DISK, NULL},
    {"both",              "bins", NULL,              HEFT_LOAD_AUTO,   HEFT_DTYPE_NONE, MIDDLE,         DISK, NULL},
    {"both, cast",        "bins", "BertForMaskedLM", HEFT_LOAD_AUTO,   HEFT_DTYPE_F64,  "bert." MIDDLE, DISK,
     NULL                                                                                                         },
    {"an offload folder", "st",   "BertForMaskedLM", HEFT_LOAD_AUTO,   HEFT_DTYPE_BF16, "",             DISK,
     "off"                                                                                                        },
};
#define ROWS (sizeof rows / sizeof rows[0])

static test_how options_of(size_t row)
{
    return (test_how){
        .class_name = rows[row].class_name,
        .module = rows[row].module,
        .device = rows[row].device,
        .load = {.mode = rows[row].mode,
                 .dtype = rows[row].dtype,
                 .offload_folder = rows[row].offload ? at(rows[row].offload) : NULL}
    };
}

/* Bytes of parameters with memory of the model's own, or in the shared copy. */
static uint64_t resident_bytes(const heft_model *model)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < heft_model_count(model); i++) {
        const heft_parameter *parameter = heft_model_parameter(model, i);
        const bool own =
            parameter->state == HEFT_PARAMETER_OWNED || parameter->state == HEFT_PARAMETER_SHARED;
        bytes += own && parameter->tied_to == i ? parameter->size_bytes : 0;
    }
    return bytes;
}

static void what_is_told_is_what_is_taken(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i++) {
        const test_how options = options_of(i);
        heft_load_needs needs = HEFT_SIZED(heft_load_needs);
        heft_model *model = NULL;
        heft_load_report *report = NULL;
        heft_error err = {0};
        const size_t before = test_count_entries(folder);
        test_expect_status(test_needs(ctx, at(rows[i].from), &options, &needs, &err), HEFT_OK, &err,
                           rows[i].name);
        assert_int_equal(test_count_entries(folder), before); /* nothing was written */
        test_expect_status(test_load(ctx, at(rows[i].from), &options, &model, &report, &err),
                           HEFT_OK, &err, rows[i].name);
        if (needs.resident_bytes != resident_bytes(model) ||
            needs.mapped_bytes != report->mapped_bytes || needs.disk_bytes != report->disk_bytes) {
            fail_msg(
                "%s: %llu, %llu and %llu are told; %llu, %llu and %llu are taken", rows[i].name,
                (unsigned long long)needs.resident_bytes, (unsigned long long)needs.mapped_bytes,
                (unsigned long long)needs.disk_bytes, (unsigned long long)resident_bytes(model),
                (unsigned long long)report->mapped_bytes, (unsigned long long)report->disk_bytes);
        }
        assert_int_equal(needs.away_bytes, 0);
        assert_true(needs.program_bytes > 0);
        assert_int_equal(needs.peak_bytes, needs.resident_bytes + needs.beside_bytes +
                                               needs.staging_bytes + needs.program_bytes);
        heft_load_report_free(report);
        heft_model_free(model);
    }
}

static void a_config_alone_is_enough(void **state)
{
    (void)state;
    heft_load_needs alone = HEFT_SIZED(heft_load_needs), with = alone;
    heft_error err = {0};
    for (size_t i = 0; i < ROWS; i++) {
        const test_how options = options_of(i);
        if (rows[i].dtype != HEFT_DTYPE_NONE || rows[i].class_name) {
            continue; /* the checkpoint has it otherwise */
        }
        test_expect_status(test_needs(ctx, at("st/config.json"), &options, &alone, &err), HEFT_OK,
                           &err, rows[i].name);
        test_expect_status(test_needs(ctx, at(rows[i].from), &options, &with, &err), HEFT_OK, &err,
                           rows[i].name);
        assert_int_equal(alone.resident_bytes, with.resident_bytes);
        assert_int_equal(alone.mapped_bytes, with.mapped_bytes);
        assert_int_equal(alone.disk_bytes, with.disk_bytes);
    }
}

/* What a copy of a small model takes beside its bytes. */
static uint64_t beside_of(const char *name, unsigned vocabulary)
{
    heft_load_needs needs = HEFT_SIZED(heft_load_needs);
    heft_error err = {0};
    const test_how options = {.load = {.mode = HEFT_LOAD_COPY}};
    char text[512];
    snprintf(text, sizeof text,
             "{\"model_type\":\"bert\",\"hidden_size\":64,\"num_hidden_layers\":1,"
             "\"num_attention_heads\":2,\"intermediate_size\":64,\"vocab_size\":%u,"
             "\"dtype\":\"float32\",\"architectures\":[\"BertModel\"]}",
             vocabulary);
    heft_model *model = test_model_from_text(ctx, text, "BertModel");
    test_expect_status(heft_model_save_random(model, at(name), NULL, NULL, NULL, &err), HEFT_OK,
                       &err, name);
    heft_model_free(model);
    test_expect_status(test_needs(ctx, at(name), &options, &needs, &err), HEFT_OK, &err, name);
    return needs.beside_bytes;
}

/* A block with pages of its own ends within one; a smaller one has a header. */
static void a_large_tensor_takes_up_to_a_page_more(void **state)
{
    (void)state;
    const uint64_t small = beside_of("words_500", 500); /* 128,000 bytes of embeddings */
    const uint64_t large = beside_of("words_513", 513); /* 131,328 */
    assert_int_equal(large - small, sysconf(_SC_PAGESIZE) - 128);
}

static void other_devices_are_away(void **state)
{
    (void)state;
    heft_load_needs needs = HEFT_SIZED(heft_load_needs), all = needs;
    heft_error err = {0};
    test_how options = {.module = MIDDLE, .device = GPU};
    static const char *const paths[] = {"st", "st/config.json"};
    for (size_t i = 0; i < 2; i++) {
        heft_error untouched;
        memset(&err, 0x5a, sizeof err);
        memset(&untouched, 0x5a, sizeof untouched);
        assert_int_equal(test_needs(ctx, at(paths[i]), &options, &needs, &err), HEFT_OK);
        assert_memory_equal(&err, &untouched, sizeof err);
        test_expect_status(test_needs(ctx, at(paths[i]), &options, &needs, &err), HEFT_OK, &err,
                           paths[i]);
        options.device = CPU;
        test_expect_status(test_needs(ctx, at(paths[i]), &options, &all, &err), HEFT_OK, &err,
                           paths[i]);
        options.device = GPU;
        assert_true(needs.away_bytes > 100000);
        assert_int_equal(needs.away_bytes + needs.resident_bytes, all.resident_bytes);
    }
}

/* Both names of a tie are in the file, with different values. */
static void save_untied(const char *name)
{
    static const char untied[] =
        "{\"model_type\":\"bert\",\"hidden_size\":64,\"num_hidden_layers\":1,"
        "\"num_attention_heads\":2,\"intermediate_size\":64,\"vocab_size\":3000,"
        "\"max_position_embeddings\":10,\"dtype\":\"float32\",\"tie_word_embeddings\":false,"
        "\"architectures\":[\"BertForMaskedLM\"]}";
    heft_error err = {0};
    heft_model *model = test_model_from_text(ctx, untied, "BertForMaskedLM");
    test_expect_status(heft_model_save_random(model, at(name), NULL, NULL, NULL, &err), HEFT_OK,
                       &err, name);
    heft_model_free(model);
    char path[300];
    snprintf(path, sizeof path, "%s/config.json", at(name));
    char *text = test_read_file(path, NULL), *found = strstr(text, "embeddings\": false");
    assert_non_null(found);
    memcpy(found, "embeddings\": true ", 18);
    test_write_file(at(name), "config.json", text, strlen(text));
    free(text);
}

static void no_tensor_is_read_for_a_tie(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_source *source = NULL;
    heft_model *model = NULL;
    heft_load_needs needs = HEFT_SIZED(heft_load_needs);
    const heft_load_options copy = HEFT_OPTIONS(heft_load_options, .mode = HEFT_LOAD_COPY);
    save_untied("untied");
    test_expect_status(heft_source_open(ctx, at("untied"), NULL, &source, &err), HEFT_OK, &err,
                       "open");
    test_expect_status(heft_model_load(source, &copy, &model, NULL, &err), HEFT_OK, &err, "load");
    char path[300];
    snprintf(path, sizeof path, "%s/model.safetensors", at("untied"));
    assert_int_equal(truncate(path, 20000), 0); /* its header is left */
    test_expect_status(heft_model_needs(source, &copy, &needs, &err), HEFT_OK, &err, "needs");
    assert_int_equal(needs.doubt_bytes, 64 * 3000 * 4 + 3000 * 4);
    /* both biases are zeros, so that their tie holds */
    assert_int_equal(needs.resident_bytes, resident_bytes(model) + 3000 * 4);
    heft_model_free(model);
    heft_source_close(source);
}

static heft_status tell_once(heft_ctx *with, void *user, heft_error *err)
{
    const size_t row = *(const size_t *)user;
    const test_how options = options_of(row);
    heft_load_needs needs = HEFT_SIZED(heft_load_needs);
    const heft_status status = test_needs(with, at(rows[row].from), &options, &needs, err);
    return status == HEFT_OK && !rows[row].class_name && rows[row].dtype == HEFT_DTYPE_NONE
               ? test_needs(with, at("st/config.json"), &options, &needs, err)
               : status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    for (size_t i = 1; i < ROWS; i += 3) {
        test_oom_sweep(tell_once, &i);
    }
}

static void what_cannot_be_is_refused(void **state)
{
    (void)state;
    heft_load_needs needs = HEFT_SIZED(heft_load_needs);
    heft_error err = {0};
    const test_how nowhere = {.module = MIDDLE, .device = HEFT_DEVICE_NONE};
    assert_int_equal(heft_model_needs(NULL, NULL, &needs, &err), HEFT_INVALID_ARG);
    assert_int_equal(test_needs(ctx, at("st"), NULL, NULL, &err), HEFT_INVALID_ARG);
    assert_int_equal(test_needs(ctx, at("none"), NULL, &needs, &err), HEFT_NOT_FOUND);
    assert_int_equal(test_needs(ctx, at("st"), &nowhere, &needs, &err), HEFT_INVALID_ARG);
    assert_non_null(strstr(err.item, "encoder.layer.1"));
}

static int set_up(void **state)
{
    (void)state;
    test_folder_make(folder);
    ctx = heft_ctx_new(NULL);
    make_checkpoint("st", HEFT_FORMAT_SAFETENSORS);
    make_checkpoint("bins", HEFT_FORMAT_TORCH);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    uint64_t live;
    test_folder_remove(folder);
    heft_ctx_memory(ctx, &live, NULL);
    heft_ctx_free(ctx);
    return live == 0 ? 0 : 1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_told_is_what_is_taken),
        cmocka_unit_test(a_config_alone_is_enough),
        cmocka_unit_test(a_large_tensor_takes_up_to_a_page_more),
        cmocka_unit_test(other_devices_are_away),
        cmocka_unit_test(no_tensor_is_read_for_a_tie),
        cmocka_unit_test(memory_can_run_out_anywhere),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
