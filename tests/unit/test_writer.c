/* The writer for the caller's own tensors: the same bytes as a save, one file, callbacks, tensors that
 * share memory, and everything that is refused. */
#include "checkpoint/checkpoint.h"
#include "load/load.h"
#include "support.h"
#include "support_model.h"

#include <heft/dlpack.h>
#include <heft/writer.h>

#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static heft_ctx *ctx;
static char folder[256];

static int make_folder(void **state)
{
    (void)state;
    test_folder_make(folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    test_folder_remove(folder);
    return 0;
}

static const char *at(const char *name)
{
    return test_path(folder, name);
}

/* ---- tensors --------------------------------------------------------------------------------- */
static float numbers[24]; /* 0, 1, 2, ... */

static void fill_numbers(void)
{
    for (size_t i = 0; i < COUNT(numbers); i++) {
        numbers[i] = (float)i;
    }
}

/* A tensor on bytes of the test's; strides NULL: row by row. */
static heft_tensor *tensor_on(heft_ctx *with, void *bytes, uint64_t length, heft_dtype dtype,
                              const uint64_t *shape, uint32_t rank, const int64_t *strides)
{
    heft_storage *storage = NULL;
    heft_tensor *tensor = NULL;
    heft_error err;
    if (heft_storage_wrap(with, bytes, length, NULL, NULL, &storage, &err) != HEFT_OK) {
        return NULL;
    }
    const heft_tensor_spec spec = HEFT_OPTIONS(heft_tensor_spec, .dtype = dtype, .rank = rank,
                                               .shape = shape, .strides = strides);
    if (heft_tensor_new(storage, &spec, &tensor, &err) != HEFT_OK) {
        tensor = NULL;
    }
    heft_storage_unref(storage);
    return tensor;
}

static void add(heft_writer *w, const char *name, void *bytes, heft_dtype dtype, uint64_t rows,
                uint64_t columns, const int64_t *strides)
{
    const uint64_t shape[] = {rows, columns};
    heft_error err;
    heft_tensor *tensor = tensor_on(ctx, bytes, sizeof numbers, dtype, shape, 2, strides);
    assert_non_null(tensor);
    test_expect_status(heft_writer_add(w, name, tensor, &err), HEFT_OK, &err, name);
    heft_tensor_free(tensor); /* the writer has a reference of its own */
}

static heft_writer *writer_at(const char *dst, const heft_writer_options *options)
{
    heft_writer *w = NULL;
    heft_error err;
    test_expect_status(heft_writer_new(ctx, dst, options, &w, &err), HEFT_OK, &err, dst);
    return w;
}

static void commit(heft_writer *w)
{
    heft_error err;
    test_expect_status(heft_writer_commit(w, NULL, &err), HEFT_OK, &err, "commit");
    heft_writer_free(w);
}

/* The values of a tensor in a checkpoint. */
static void expect_values(const char *path, const char *name, const float *values, size_t count)
{
    heft_checkpoint *ckpt = NULL;
    heft_error err;
    float found[24];
    test_expect_status(heft_checkpoint_open(ctx, path, NULL, &ckpt, &err), HEFT_OK, &err, path);
    const size_t i = heft_checkpoint_find(ckpt, name);
    assert_int_not_equal(i, SIZE_MAX);
    assert_int_equal(heft_checkpoint_info(ckpt, i)->size_bytes, count * sizeof *found);
    test_expect_status(heft_checkpoint_read(ckpt, i, found, sizeof found, &err), HEFT_OK, &err,
                       name);
    assert_memory_equal(found, values, count * sizeof *found);
    heft_checkpoint_close(ckpt);
}

/* ---- the same as a save ---------------------------------------------------------------------- */
static const char tiny[] =
    "{\"model_type\": \"bert\", \"architectures\": [\"BertForMaskedLM\"], \"vocab_size\": 40, "
    "\"hidden_size\": 8, \"num_hidden_layers\": 11, \"num_attention_heads\": 2, "
    "\"intermediate_size\": 12, \"max_position_embeddings\": 6, \"type_vocab_size\": 2}";

/* Save a model, and write the same through a writer. */
static void write_like(const heft_model *model, const heft_save_options *how)
{
    heft_error err;
    const size_t modules = model->module_count;
    const char **paths = malloc(modules * sizeof *paths);
    size_t *order = malloc(model->count * sizeof *order), length;
    assert_non_null(paths);
    for (size_t i = 0; i < modules; i++) {
        paths[i] = model->modules[i].path;
    }
    heft_writer_options options = HEFT_OPTIONS(
        heft_writer_options, .format = how->format, .max_shard_bytes = how->max_shard_bytes,
        .variant = how->variant, .ties = HEFT_TIES_DROP, .modules = paths, .module_count = modules,
        .natural_order = how->natural_order, .total_parameters = heft_model_elements(model));
    heft_writer *w = writer_at(at("written"), &options);
    free(paths);
    for (size_t i = 0; i < model->count; i++) {
        heft_tensor *tensor = NULL;
        if (model->parameters[i].kind == HEFT_PARAMETER_BUFFER_TRANSIENT) {
            continue;
        }
        test_expect_status(heft_model_tensor(model, i, &tensor, &err), HEFT_OK, &err, "tensor");
        test_expect_status(heft_writer_add(w, model->parameters[i].name, tensor, &err), HEFT_OK,
                           &err, model->parameters[i].name);
        heft_tensor_free(tensor);
    }
    char *config = test_read_file(at("saved/config.json"), &length);
    test_expect_status(heft_writer_side_file(w, "config.json", config, length, &err), HEFT_OK, &err,
                       "config");
    free(config);
    free(order);
    commit(w);
}

static void the_files_are_those_of_a_save(void **state)
{
    static const struct {
        heft_format format;
        uint64_t shard;
        bool natural;
        const char *variant;
    } rows[] = {
        {HEFT_FORMAT_SAFETENSORS, 0,    false, NULL  },
        {HEFT_FORMAT_SAFETENSORS, 8000, false, NULL  },
        {HEFT_FORMAT_SAFETENSORS, 8000, true,  "fp16"},
        {HEFT_FORMAT_TORCH,       0,    false, NULL  },
        {HEFT_FORMAT_TORCH,       8000, false, NULL  },
        {HEFT_FORMAT_TORCH,       8000, true,  NULL  },
    };
    heft_model *model = test_model_from_text(ctx, tiny, NULL);
    const heft_init_options seed = HEFT_OPTIONS(heft_init_options, .seed = 3);
    heft_error err;
    (void)state;
    test_expect_status(heft_model_init(model, &seed, &err), HEFT_OK, &err, "init");
    for (size_t i = 0; i < COUNT(rows); i++) {
        char command[800];
        const heft_save_options how = HEFT_OPTIONS(
            heft_save_options, .format = rows[i].format, .max_shard_bytes = rows[i].shard,
            .natural_order = rows[i].natural, .variant = rows[i].variant);
        test_expect_status(heft_model_save(model, at("saved"), &how, NULL, &err), HEFT_OK, &err,
                           "save");
        write_like(model, &how);
        snprintf(command, sizeof command, "diff -r '%s' '%s'", at("saved"), at("written"));
        assert_int_equal(system(command), 0);
        assert_true(test_count_entries(at("saved")) > (rows[i].shard ? 4 : 1));
        test_folder_remove(at("saved"));
        test_folder_remove(at("written"));
    }
    heft_model_free(model);
}

/* ---- one file -------------------------------------------------------------------------------- */
static void a_single_file(void **state)
{
    static const char *const names[] = {"x.safetensors", "x.pt", "x.bin", "x.pth"};
    (void)state;
    test_write_file(folder, "model.safetensors", "not ours", 8);
    for (size_t i = 0; i < COUNT(names); i++) {
        heft_writer_options options = HEFT_OPTIONS(heft_writer_options, .single_file = true);
        heft_error err;
        heft_writer *w = writer_at(at(names[i]), &options);
        add(w, "a", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
        commit(w);
        expect_values(at(names[i]), "a", numbers, 6);
        /* there already */
        w = writer_at(at(names[i]), &options);
        add(w, "a", numbers + 1, HEFT_DTYPE_F32, 2, 3, NULL);
        assert_int_equal(heft_writer_commit(w, NULL, &err), HEFT_EXISTS);
        heft_writer_free(w);
        expect_values(at(names[i]), "a", numbers, 6);
        options.force = true;
        w = writer_at(at(names[i]), &options);
        add(w, "a", numbers + 1, HEFT_DTYPE_F32, 2, 3, NULL);
        commit(w);
        expect_values(at(names[i]), "a", numbers + 1, 6);
    }
    assert_int_equal(test_count_entries(folder), COUNT(names) + 1); /* and nothing else is left */
    size_t length;
    char *bytes = test_read_file(at("x.pt"), &length);
    assert_memory_equal(bytes + 30, "x/data.pkl", 10); /* records begin with the file's stem */
    free(bytes);
    /* in a folder that is not there yet */
    const heft_writer_options options =
        HEFT_OPTIONS(heft_writer_options, .single_file = true, .format = HEFT_FORMAT_SAFETENSORS);
    heft_writer *w = writer_at(at("new/any.name"), &options);
    add(w, "a", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
    commit(w);
    expect_values(at("new/any.name"), "a", numbers, 6);
}

static void a_single_file_where_a_folder_is(void **state)
{
    const heft_writer_options options = HEFT_OPTIONS(heft_writer_options, .single_file = true,
                                                     .force = true, .format = HEFT_FORMAT_TORCH);
    heft_error err;
    (void)state;
    assert_int_equal(mkdir(at("sub"), 0777), 0);
    heft_writer *w = writer_at(at("sub"), &options);
    add(w, "a", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
    assert_int_equal(heft_writer_commit(w, NULL, &err), HEFT_EXISTS);
    heft_writer_free(w);
    assert_int_equal(test_count_entries(folder), 1);
}

static void nothing_happens_without_a_commit(void **state)
{
    (void)state;
    heft_writer *w = writer_at(at("out"), NULL);
    add(w, "a", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
    heft_writer_free(w);
    heft_writer_free(NULL);
    const heft_writer_options options = HEFT_OPTIONS(heft_writer_options, .dry_run = true);
    heft_write_report *report = NULL;
    heft_error err;
    w = writer_at(at("out"), &options);
    add(w, "a", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
    test_expect_status(heft_writer_commit(w, &report, &err), HEFT_OK, &err, "dry");
    assert_int_equal(report->file_count, 1);
    assert_string_equal(report->files[0].name, "model.safetensors");
    assert_int_equal(report->total_size, 24);
    heft_write_report_free(report);
    heft_writer_free(w);
    assert_int_equal(test_count_entries(folder), 0);
}

static void no_tensors_at_all(void **state)
{
    heft_checkpoint *ckpt = NULL;
    heft_error err;
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        const heft_writer_options options =
            HEFT_OPTIONS(heft_writer_options, .single_file = true,
                         .format = i ? HEFT_FORMAT_TORCH : HEFT_FORMAT_SAFETENSORS);
        commit(writer_at(at(i ? "e.pt" : "e.safetensors"), &options));
        test_expect_status(
            heft_checkpoint_open(ctx, at(i ? "e.pt" : "e.safetensors"), NULL, &ckpt, &err), HEFT_OK,
            &err, "open");
        assert_int_equal(heft_checkpoint_count(ckpt), 0);
        heft_checkpoint_close(ckpt);
    }
    const heft_writer_options options =
        HEFT_OPTIONS(heft_writer_options, .format = HEFT_FORMAT_OFFLOAD);
    heft_writer *w = writer_at(at("off"), &options);
    assert_int_equal(heft_writer_commit(w, NULL, &err), HEFT_INVALID_ARG);
    heft_writer_free(w);
}

/* ---- strides, odd dtypes --------------------------------------------------------------------- */
static void strided_tensors_are_gathered(void **state)
{
    static const int64_t transposed[] = {1, 4}, every_second[] = {8, 2}, broadcast[] = {0, 1},
                         one_row[] = {77, 1};
    static const float a[] = {0, 4, 8, 1, 5, 9}, b[] = {0, 2, 8, 10}, c[] = {0, 1, 2, 0, 1, 2},
                       d[] = {0, 1, 2};
    static const heft_format formats[] = {HEFT_FORMAT_SAFETENSORS, HEFT_FORMAT_TORCH,
                                          HEFT_FORMAT_OFFLOAD};
    (void)state;
    for (size_t i = 0; i < COUNT(formats); i++) {
        const heft_writer_options options =
            HEFT_OPTIONS(heft_writer_options, .format = formats[i], .ties = HEFT_TIES_COPY);
        heft_writer *w = writer_at(at("out"), &options);
        add(w, "transposed", numbers, HEFT_DTYPE_F32, 2, 3, transposed);
        add(w, "every_second", numbers, HEFT_DTYPE_F32, 2, 2, every_second);
        add(w, "broadcast", numbers, HEFT_DTYPE_F32, 2, 3, broadcast);
        add(w, "one_row", numbers, HEFT_DTYPE_F32, 1, 3, one_row);
        commit(w);
        expect_values(at("out"), "transposed", a, COUNT(a));
        expect_values(at("out"), "every_second", b, COUNT(b));
        expect_values(at("out"), "broadcast", c, COUNT(c));
        expect_values(at("out"), "one_row", d, COUNT(d));
        test_folder_remove(at("out"));
    }
}

/* A strided view of a mapped .bin goes into another file. */
static void mapped_tensors(void **state)
{
    heft_writer_options options = HEFT_OPTIONS(heft_writer_options, .single_file = true);
    heft_checkpoint *ckpt = NULL;
    heft_tensor *mapped = NULL, *view = NULL;
    heft_error err;
    static const uint64_t shape[] = {3, 2};
    static const int64_t strides[] = {1, 3};
    static const float turned[] = {0, 3, 1, 4, 2, 5};
    (void)state;
    heft_writer *w = writer_at(at("a.safetensors"), &options);
    add(w, "a", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
    commit(w);
    test_expect_status(heft_checkpoint_open(ctx, at("a.safetensors"), NULL, &ckpt, &err), HEFT_OK,
                       &err, "open");
    test_expect_status(heft_checkpoint_map(ckpt, 0, HEFT_MAP_READ_ONLY, &mapped, &err), HEFT_OK,
                       &err, "map");
    heft_checkpoint_close(ckpt);
    const heft_tensor_spec spec =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_F32, .rank = 2, .shape = shape,
                     .strides = strides, .offset_bytes = mapped->offset_bytes);
    test_expect_status(heft_tensor_new(mapped->storage, &spec, &view, &err), HEFT_OK, &err, "view");
    options.ties = HEFT_TIES_COPY;
    w = writer_at(at("b.safetensors"), &options);
    assert_int_equal(heft_writer_add(w, "plain", mapped, &err), HEFT_OK);
    assert_int_equal(heft_writer_add(w, "turned", view, &err), HEFT_OK);
    heft_tensor_free(mapped);
    heft_tensor_free(view);
    commit(w);
    expect_values(at("b.safetensors"), "plain", numbers, 6);
    expect_values(at("b.safetensors"), "turned", turned, 6);
}

static void every_dtype_that_the_format_holds(void **state)
{
    static const heft_format formats[] = {HEFT_FORMAT_SAFETENSORS, HEFT_FORMAT_TORCH,
                                          HEFT_FORMAT_OFFLOAD};
    uint8_t bytes[256];
    (void)state;
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (uint8_t)(i * 7);
    }
    for (size_t f = 0; f < COUNT(formats); f++) {
        const heft_writer_options options =
            HEFT_OPTIONS(heft_writer_options, .format = formats[f], .ties = HEFT_TIES_COPY);
        heft_writer *w = writer_at(at("out"), &options);
        heft_checkpoint *ckpt = NULL;
        heft_error err;
        size_t added = 0;
        for (int dtype = HEFT_DTYPE_NONE + 1; dtype < HEFT_DTYPE_COUNT; dtype++) {
            const uint64_t shape[] = {2, 4};
            heft_tensor *tensor =
                tensor_on(ctx, bytes, sizeof bytes, (heft_dtype)dtype, shape, 2, NULL);
            heft_status status =
                heft_writer_add(w, heft_dtype_name((heft_dtype)dtype), tensor, &err);
            assert_true(status == HEFT_OK || status == HEFT_INVALID_ARG);
            if (status != HEFT_OK && !strstr(err.message, "cannot hold")) {
                fail_msg("%s: %s", err.item, err.message);
            }
            added += status == HEFT_OK;
            heft_tensor_free(tensor);
        }
        commit(w);
        test_expect_status(heft_checkpoint_open(ctx, at("out"), NULL, &ckpt, &err), HEFT_OK, &err,
                           "open");
        assert_int_equal(heft_checkpoint_count(ckpt), added);
        for (size_t i = 0; i < added; i++) {
            const heft_tensor_info *info = heft_checkpoint_info(ckpt, i);
            uint8_t found[256];
            assert_string_equal(info->name, heft_dtype_name(info->dtype));
            assert_int_equal(heft_checkpoint_read(ckpt, i, found, sizeof found, &err), HEFT_OK);
            assert_memory_equal(found, bytes, (size_t)info->size_bytes);
        }
        heft_checkpoint_close(ckpt);
        test_folder_remove(at("out"));
    }
}

/* ---- tensors that share memory ---------------------------------------------------------------- */
static void expect_ties(heft_format format, heft_ties ties, heft_status status, size_t count,
                        size_t storages, size_t warnings)
{
    const heft_writer_options options =
        HEFT_OPTIONS(heft_writer_options, .format = format, .ties = ties, .force = true);
    heft_writer *w = writer_at(at("out"), &options);
    heft_write_report *report = NULL;
    heft_checkpoint *ckpt = NULL;
    heft_error err = {0};
    add(w, "a", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
    add(w, "same", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
    add(w, "reshaped", numbers, HEFT_DTYPE_F32, 3, 2, NULL);
    add(w, "overlaps", numbers + 2, HEFT_DTYPE_F32, 2, 3, NULL);
    add(w, "beside", numbers + 8, HEFT_DTYPE_F32, 1, 3, NULL);
    add(w, "as_integers", numbers, HEFT_DTYPE_I32, 2, 3, NULL);
    test_expect_status(heft_writer_commit(w, &report, &err), status, &err, "ties");
    heft_writer_free(w);
    if (status != HEFT_OK) {
        assert_non_null(strstr(err.message, "shares memory with"));
        return;
    }
    assert_int_equal(report->warning_count, warnings);
    heft_write_report_free(report);
    test_expect_status(heft_checkpoint_open(ctx, at("out"), NULL, &ckpt, &err), HEFT_OK, &err,
                       "open");
    assert_int_equal(heft_checkpoint_count(ckpt), count);
    assert_int_equal(ckpt->storage_count, storages);
    heft_checkpoint_close(ckpt);
    expect_values(at("out"), "a", numbers, 6);
    expect_values(at("out"), "reshaped", numbers, 6);
    expect_values(at("out"), "overlaps", numbers + 2, 6);
    test_folder_remove(at("out"));
}

static void ties_are_treated_as_asked(void **state)
{
    (void)state;
    expect_ties(HEFT_FORMAT_SAFETENSORS, HEFT_TIES_REFUSE, HEFT_INVALID_ARG, 0, 0, 0);
    expect_ties(HEFT_FORMAT_SAFETENSORS, HEFT_TIES_DROP, HEFT_OK, 5, 5, 1);
    expect_ties(HEFT_FORMAT_SAFETENSORS, HEFT_TIES_COPY, HEFT_OK, 6, 6, 0);
    expect_ties(HEFT_FORMAT_TORCH, HEFT_TIES_REFUSE, HEFT_OK, 6, 4, 0);
    expect_ties(HEFT_FORMAT_TORCH, HEFT_TIES_DROP, HEFT_OK, 6, 4, 0);
    expect_ties(HEFT_FORMAT_TORCH, HEFT_TIES_COPY, HEFT_OK, 6, 6, 0);
    expect_ties(HEFT_FORMAT_OFFLOAD, HEFT_TIES_REFUSE, HEFT_OK, 6, 6, 0);
}

/* Whatever the order, the name below the base model stays, and not that of a head. */
static void a_tie_keeps_the_name_below_the_base_model(void **state)
{
    static const struct {
        const char *kept, *dropped;
    } rows[] = {
        {"model.embed_tokens.weight",    "lm_head.weight"               },
        {"transformer.wte.weight",       "lm_head.weight"               },
        {"shared.weight",                "encoder.embed_tokens.weight"  },
        {"cls.predictions.bias",         "cls.predictions.decoder.bias" },
        {"model.a.weight",               "narrow.weight"                },
        {"decoder.0.class_embed.weight", "decoder.10.class_embed.weight"},
    };
    (void)state;
    for (size_t k = 0; k < 2 * sizeof rows / sizeof rows[0]; k++) {
        const char *kept = rows[k / 2].kept, *dropped = rows[k / 2].dropped;
        const heft_writer_options options =
            HEFT_OPTIONS(heft_writer_options, .ties = HEFT_TIES_DROP, .force = true);
        heft_writer *w = writer_at(at("out"), &options);
        heft_checkpoint *ckpt = NULL;
        heft_error err = {0};
        add(w, k % 2 ? kept : dropped, numbers, HEFT_DTYPE_F32, 2, 3, NULL);
        add(w, "model.b.weight", numbers + 12, HEFT_DTYPE_F32, 1, 3, NULL);
        add(w, k % 2 ? dropped : kept, numbers, HEFT_DTYPE_F32, 2, 3, NULL);
        commit(w);
        test_expect_status(heft_checkpoint_open(ctx, at("out"), NULL, &ckpt, &err), HEFT_OK, &err,
                           kept);
        assert_int_equal(heft_checkpoint_count(ckpt), 2);
        heft_checkpoint_close(ckpt);
        expect_values(at("out"), kept, numbers, 6);
        test_folder_remove(at("out"));
    }
}

/* Neighbors that touch are no overlap, and nor are tensors without elements. */
static void neighbors_share_nothing(void **state)
{
    heft_writer *w = writer_at(at("out"), NULL);
    (void)state;
    add(w, "left", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
    add(w, "right", numbers + 6, HEFT_DTYPE_F32, 2, 3, NULL);
    add(w, "none", numbers + 2, HEFT_DTYPE_F32, 0, 3, NULL);
    add(w, "none_either", numbers + 2, HEFT_DTYPE_F32, 0, 3, NULL);
    commit(w);
    expect_values(at("out"), "right", numbers + 6, 6);
}

/* ---- callbacks ------------------------------------------------------------------------------- */
struct giving {
    size_t most;        /* of one call */
    uint64_t fail_at;   /* UINT64_MAX: never */
    heft_status status; /* what it fails with; OK: it yields nothing */
    bool says_why, lies;
    uint64_t next; /* offset that is expected */
    size_t calls;
};

/* Byte i is i modulo 251. */
static heft_status give(void *user, uint64_t offset, void *dst, size_t length, size_t *filled,
                        heft_error *err)
{
    struct giving *giving = user;
    const size_t count = length < giving->most ? length : giving->most;
    giving->calls++;
    if (offset == 0) {
        giving->next = 0;
    }
    assert_int_equal(offset, giving->next);
    assert_true(length > 0);
    if (offset >= giving->fail_at) {
        if (giving->says_why) {
            (void)heft__fail_at(err, giving->status, 4711, "the tape is torn");
        }
        *filled = 0;
        return giving->status;
    }
    for (size_t i = 0; i < count; i++) {
        ((uint8_t *)dst)[i] = (uint8_t)((offset + i) % 251);
    }
    giving->next += count;
    *filled = giving->lies ? length + 1 : count;
    return HEFT_OK;
}

static heft_status add_given(heft_writer *w, const char *name, struct giving *giving,
                             heft_error *err)
{
    static const uint64_t shape[] = {1000};
    const heft_tensor_spec spec =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_U8, .rank = 1, .shape = shape);
    return heft_writer_add_from(w, name, &spec, give, giving, err);
}

static void bytes_that_are_made(void **state)
{
    static const heft_format formats[] = {HEFT_FORMAT_SAFETENSORS, HEFT_FORMAT_TORCH,
                                          HEFT_FORMAT_OFFLOAD};
    static const size_t most[] = {1, 7, 100000};
    (void)state;
    for (size_t i = 0; i < COUNT(formats) * COUNT(most); i++) {
        struct giving giving = {.most = most[i % COUNT(most)], .fail_at = UINT64_MAX};
        const heft_writer_options options =
            HEFT_OPTIONS(heft_writer_options, .format = formats[i / COUNT(most)]);
        heft_writer *w = writer_at(at("out"), &options);
        heft_checkpoint *ckpt = NULL;
        uint8_t found[1000];
        heft_error err;
        assert_int_equal(add_given(w, "b", &giving, &err), HEFT_OK);
        assert_int_equal(add_given(w, "a", &giving, &err), HEFT_OK);
        assert_int_equal(giving.calls, 0);
        commit(w);
        assert_int_equal(heft_checkpoint_open(ctx, at("out"), NULL, &ckpt, &err), HEFT_OK);
        for (size_t t = 0; t < 2; t++) {
            assert_int_equal(heft_checkpoint_read(ckpt, t, found, sizeof found, &err), HEFT_OK);
            for (size_t k = 0; k < sizeof found; k++) {
                assert_int_equal(found[k], k % 251);
            }
        }
        heft_checkpoint_close(ckpt);
        test_folder_remove(at("out"));
    }
}

static void callbacks_that_fail(void **state)
{
    static const struct {
        const char *name;
        struct giving giving;
        heft_status status;
        uint64_t offset;
        const char *words;
    } rows[] = {
  /* clang-format off */
        {"ends_early", {10, 990, HEFT_OK, false, false, 0, 0}, HEFT_INVALID_ARG, HEFT_NO_OFFSET,
         "its callback ended after 990 bytes, its shape needs 1000"},
        {"has_none", {10, 0, HEFT_OK, false, false, 0, 0}, HEFT_INVALID_ARG, HEFT_NO_OFFSET,
         "ended after 0 bytes"},
        {"gives_too_many", {10, UINT64_MAX, HEFT_OK, false, true, 0, 0}, HEFT_INVALID_ARG,
         HEFT_NO_OFFSET, "were requested"},
        {"says_why", {10, 500, HEFT_IO, true, false, 0, 0}, HEFT_IO, 4711, "the tape is torn"},
        {"does_not_say", {10, 500, HEFT_NOT_FOUND, false, false, 0, 0}, HEFT_NOT_FOUND,
         HEFT_NO_OFFSET, "failed at byte 500: not found"},
        {"cancels", {10, 500, HEFT_CANCELLED, false, false, 0, 0}, HEFT_CANCELLED, HEFT_NO_OFFSET,
         "cancelled"},
        {"no_status", {10, 0, (heft_status)77, false, false, 0, 0}, HEFT_IO, HEFT_NO_OFFSET,
         "failed at byte 0"},
  /* clang-format on */
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct giving giving = rows[i].giving;
        heft_writer *w = writer_at(at("out"), NULL);
        heft_write_report *report = NULL;
        heft_error err = {0};
        add(w, "first", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
        assert_int_equal(add_given(w, "made", &giving, &err), HEFT_OK);
        test_expect_status(heft_writer_commit(w, &report, &err), rows[i].status, &err,
                           rows[i].name);
        if (!strstr(err.message, rows[i].words) || err.offset != rows[i].offset ||
            strcmp(err.item, "made") != 0 || err.status != rows[i].status) {
            fail_msg("%s: %s: %s", rows[i].name, err.item, err.message);
        }
        assert_null(report);
        assert_int_equal(test_count_entries(folder), 0);
        assert_int_not_equal(heft_writer_commit(w, NULL, NULL), HEFT_OK);
        giving = (struct giving){.most = 100, .fail_at = UINT64_MAX};
        commit(w); /* once more, and now it works */
        expect_values(at("out"), "first", numbers, 6);
        test_folder_remove(at("out"));
    }
}

static bool stop_writing(void *user, const heft_progress *progress)
{
    (void)user;
    return progress->done_bytes == 0;
}

static void progress_can_cancel(void **state)
{
    const heft_ctx_options options = HEFT_OPTIONS(heft_ctx_options, .progress = stop_writing);
    heft_ctx *before = ctx;
    heft_error err;
    (void)state;
    ctx = heft_ctx_new(&options);
    heft_writer *w = writer_at(at("out"), NULL);
    add(w, "a", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
    add(w, "b", numbers + 12, HEFT_DTYPE_F32, 2, 3, NULL);
    assert_int_equal(heft_writer_commit(w, NULL, &err), HEFT_CANCELLED);
    heft_writer_free(w);
    assert_int_equal(test_count_entries(folder), 0);
    heft_ctx_free(ctx);
    ctx = before;
}

/* ---- what is refused ------------------------------------------------------------------------- */
static void options_that_do_not_go_together(void **state)
{
    static const struct {
        const char *name, *dst;
        heft_writer_options options;
        const char *words;
    } rows[] = {
  /* clang-format off */
        {"read_only", "out", {.format = HEFT_FORMAT_TORCH_TAR}, "'tar' is read-only"},
        {"unknown", "out", {.format = (heft_format)99}, "is read-only"},
        {"no_format_in_the_name", "x.data", {.single_file = true}, "does not determine the format"},
        {"one_file_in_shards", "x.pt", {.single_file = true, .max_shard_bytes = 5}, "no shards"},
        {"one_file_as_a_variant", "x.pt", {.single_file = true, .variant = "v"}, "no variants"},
        {"one_file_offload", "x.pt", {.single_file = true, .format = HEFT_FORMAT_OFFLOAD},
         "is not a single file"},
        {"offload_in_shards", "out", {.format = HEFT_FORMAT_OFFLOAD, .max_shard_bytes = 5},
         "an offload folder has no shards"},
        {"offload_variant", "out", {.format = HEFT_FORMAT_OFFLOAD, .variant = "v"}, "no variants"},
        {"no_name", "", {.single_file = true}, "destination is empty"},
        {"a_folder", "sub/", {.single_file = true, .format = HEFT_FORMAT_TORCH}, "no file name"},
        {"dots", "sub/..", {.single_file = true, .format = HEFT_FORMAT_TORCH}, "no file name"},
        {"ties", "out", {.ties = (heft_ties)3}, "ties: 3"},
        {"modules", "out", {.module_count = 1}, "module list is NULL"},
  /* clang-format on */
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_writer_options options = rows[i].options;
        heft_writer *w = NULL;
        heft_error err = {0};
        options.struct_size = sizeof options;
        test_expect_status(heft_writer_new(ctx, rows[i].dst, &options, &w, &err), HEFT_INVALID_ARG,
                           &err, rows[i].name);
        if (!strstr(err.message, rows[i].words)) {
            fail_msg("%s: %s", rows[i].name, err.message);
        }
        assert_null(w);
    }
    heft_writer *w = NULL;
    heft_error err;
    heft_writer_options bare = {0};
    assert_int_equal(heft_writer_new(ctx, "out", &bare, &w, &err), HEFT_INVALID_ARG);
    struct {
        heft_writer_options options;
        uint64_t newer;
    } newer = {{.struct_size = sizeof newer}, 1};
    assert_int_equal(heft_writer_new(ctx, "out", &newer.options, &w, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_writer_new(NULL, "out", NULL, &w, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_writer_new(ctx, NULL, NULL, &w, &err), HEFT_INVALID_ARG);
    assert_null(w);
}

static void expect_refused(heft_format format, const char *name, const heft_tensor *tensor,
                           heft_status status, const char *words)
{
    const heft_writer_options options = HEFT_OPTIONS(heft_writer_options, .format = format);
    heft_writer *w = writer_at(at("out"), &options);
    heft_error err = {0};
    add(w, "there", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
    test_expect_status(heft_writer_add(w, name, tensor, &err), status, &err, words);
    if (!strstr(err.message, words) || !*err.item != !*name) {
        fail_msg("%s: %s", err.item, err.message);
    }
    commit(w); /* it is as it was */
    expect_values(at("out"), "there", numbers, 6);
    test_folder_remove(at("out"));
}

static void tensors_that_are_refused(void **state)
{
    static const uint64_t shape[] = {2, 3}, odd[] = {3, 2};
    static const int64_t turned[] = {1, 2};
    char name[300], *huge = malloc(70000);
    (void)state;
    memset(huge, 'n', 69999);
    huge[69999] = '\0';
    memset(name, 'n', sizeof name);
    name[250] = '\0';
    heft_tensor *tensor = tensor_on(ctx, numbers, sizeof numbers, HEFT_DTYPE_F32, shape, 2, NULL);
    const heft_format st = HEFT_FORMAT_SAFETENSORS, pt = HEFT_FORMAT_TORCH,
                      off = HEFT_FORMAT_OFFLOAD;
    expect_refused(st, "there", tensor, HEFT_INVALID_ARG, "was already added");
    expect_refused(st, "", tensor, HEFT_INVALID_ARG, "name is empty");
    expect_refused(st, "\xff", tensor, HEFT_INVALID_ARG, "not valid UTF-8");
    expect_refused(st, "__metadata__", tensor, HEFT_INVALID_ARG, "tensor with this name");
    expect_refused(st, huge, tensor, HEFT_LIMIT, "the limit is 65536");
    expect_refused(off, "a/b", tensor, HEFT_INVALID_ARG, "is not a valid file name");
    expect_refused(off, name, tensor, HEFT_INVALID_ARG, "the name has 250 bytes");
    const heft_tensor original = tensor ? *tensor : (heft_tensor){0};
    heft_tensor changed = original;
    changed.size_bytes = 20;
    expect_refused(st, "a", &changed, HEFT_INVALID_ARG, "has 20 bytes, its shape needs 24");
    changed = original;
    changed.offset_bytes = 4;
    expect_refused(st, "a", &changed, HEFT_INVALID_ARG, "does not match its offset");
    changed.offset_bytes = sizeof numbers;
    expect_refused(st, "a", &changed, HEFT_INVALID_ARG, "exceeds its storage");
    changed = original;
    changed.rank = 65;
    expect_refused(st, "a", &changed, HEFT_LIMIT, "rank 65, the limit is 64");
    changed = original;
    changed.storage = NULL;
    expect_refused(st, "a", &changed, HEFT_INVALID_ARG, "no storage");
    changed = original;
    changed.device = 0;
    expect_refused(st, "a", &changed, HEFT_INVALID_ARG, "device 0 cannot be read");
    heft_tensor_free(tensor);
    tensor = tensor_on(ctx, numbers, sizeof numbers, HEFT_DTYPE_C128, shape, 2, NULL);
    expect_refused(st, "a", tensor, HEFT_INVALID_ARG, "cannot hold complex128");
    heft_tensor_free(tensor);
    tensor = tensor_on(ctx, numbers, sizeof numbers, HEFT_DTYPE_QINT8, shape, 2, NULL);
    expect_refused(pt, "a", tensor, HEFT_INVALID_ARG, "cannot hold qint8");
    heft_tensor_free(tensor);
    tensor = tensor_on(ctx, numbers, sizeof numbers, HEFT_DTYPE_F4_E2M1FN_X2, shape, 2, NULL);
    expect_refused(off, "a", tensor, HEFT_INVALID_ARG, "cannot hold float4");
    expect_refused(pt, "a", tensor, HEFT_INVALID_ARG,
                   "along the last dimension, which has odd size");
    heft_tensor_free(tensor);
    tensor = tensor_on(ctx, numbers, sizeof numbers, HEFT_DTYPE_F4_E2M1FN_X2, odd, 2, turned);
    if (tensor) { /* else a tensor cannot even be made like this */
        expect_refused(st, "a", tensor, HEFT_INVALID_ARG, "cannot be strided");
    }
    heft_tensor_free(tensor);
    free(huge);
}

static void made_tensors_that_are_refused(void **state)
{
    static const uint64_t huge[] = {UINT64_MAX, 2}, three[] = {3}, many[65] = {1};
    static const int64_t stride[] = {1};
    static const struct {
        const char *name;
        heft_tensor_spec spec;
        heft_status status;
        const char *words;
    } rows[] = {
  /* clang-format off */
        {"too_large", {.dtype = HEFT_DTYPE_F32, .rank = 2, .shape = huge}, HEFT_INVALID_ARG,
         "has no valid size in bytes"},
        {"half_a_byte", {.dtype = HEFT_DTYPE_F4_E2M1FN_X2, .rank = 1, .shape = three},
         HEFT_INVALID_ARG, "has no valid size in bytes"},
        {"no_dtype", {.rank = 1, .shape = three}, HEFT_INVALID_ARG, ""},
        {"no_shape", {.dtype = HEFT_DTYPE_F32, .rank = 1}, HEFT_INVALID_ARG, "its shape is NULL"},
        {"rank", {.dtype = HEFT_DTYPE_F32, .rank = 65, .shape = many}, HEFT_LIMIT,
         "the limit is 64"},
        {"strides", {.dtype = HEFT_DTYPE_F32, .rank = 1, .shape = three, .strides = stride},
         HEFT_INVALID_ARG, "cannot have strides"},
  /* clang-format on */
    };
    (void)state;
    heft_writer *w = writer_at(at("out"), NULL);
    heft_error err = {0};
    for (size_t i = 0; i < COUNT(rows); i++) {
        heft_tensor_spec spec = rows[i].spec;
        spec.struct_size = sizeof spec;
        test_expect_status(heft_writer_add_from(w, rows[i].name, &spec, give, NULL, &err),
                           rows[i].status, &err, rows[i].name);
        if (!strstr(err.message, rows[i].words) || strcmp(err.item, rows[i].name) != 0) {
            fail_msg("%s: %s: %s", rows[i].name, err.item, err.message);
        }
    }
    const heft_tensor_spec good = HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_F32);
    assert_int_equal(heft_writer_add_from(w, "a", &good, NULL, NULL, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_writer_add_from(w, "a", NULL, give, NULL, &err), HEFT_INVALID_ARG);
    heft_writer_free(w);
}

static void side_files_and_metadata(void **state)
{
    static const struct {
        const char *name, *words;
    } rows[] = {
        {"",                                 "not a plain file name"     },
        {"a/b",                              "not a plain file name"     },
        {"..",                               "not a plain file name"     },
        {"config.json",                      "was already added"         },
        {"model.safetensors",                "mistaken for a weight file"},
        {"pytorch_model.bin.index.json",     "mistaken for a weight file"},
        {"model-00001-of-00002.safetensors", "mistaken for a weight file"},
    };
    heft_writer *w = writer_at(at("out"), NULL);
    heft_error err;
    (void)state;
    assert_int_equal(heft_writer_side_file(w, "config.json", "{}", 2, &err), HEFT_OK);
    assert_int_equal(heft_writer_side_file(w, "empty", NULL, 0, &err), HEFT_OK);
    for (size_t i = 0; i < COUNT(rows); i++) {
        assert_int_equal(heft_writer_side_file(w, rows[i].name, "x", 1, &err), HEFT_INVALID_ARG);
        if (!strstr(err.message, rows[i].words)) {
            fail_msg("%s: %s", rows[i].name, err.message);
        }
    }
    assert_int_equal(heft_writer_metadata(w, "\xff", "a", &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_writer_metadata(w, "a", "\xff", &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_writer_metadata(w, "format", NULL, &err), HEFT_OK);
    assert_int_equal(heft_writer_metadata(w, "rank", "8", &err), HEFT_OK);
    assert_int_equal(heft_writer_metadata(w, "rank", "16", &err), HEFT_OK);
    add(w, "a", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
    commit(w);
    assert_int_equal(test_count_entries(at("out")), 3);
    heft_checkpoint *ckpt = NULL;
    const char *value = NULL;
    assert_int_equal(heft_checkpoint_open(ctx, at("out"), NULL, &ckpt, &err), HEFT_OK);
    assert_string_equal(heft_checkpoint_metadata(ckpt, 0, &value), "rank");
    assert_string_equal(value, "16");
    assert_null(heft_checkpoint_metadata(ckpt, 1, &value));
    heft_checkpoint_close(ckpt);
    const heft_writer_options bin = HEFT_OPTIONS(heft_writer_options, .format = HEFT_FORMAT_TORCH);
    w = writer_at(at("bin"), &bin);
    assert_int_equal(heft_writer_metadata(w, "a", "b", &err), HEFT_INVALID_ARG);
    assert_non_null(strstr(err.message, "a PyTorch file cannot hold metadata"));
    heft_writer_free(w);
    const heft_writer_options single = HEFT_OPTIONS(heft_writer_options, .single_file = true);
    w = writer_at(at("x.pt"), &single);
    assert_int_equal(heft_writer_side_file(w, "config.json", "{}", 2, &err), HEFT_INVALID_ARG);
    heft_writer_free(w);
}

/* A side file with the name of a tensor's file is refused once both are known. */
static void a_side_file_in_the_place_of_weights(void **state)
{
    const heft_writer_options options =
        HEFT_OPTIONS(heft_writer_options, .format = HEFT_FORMAT_OFFLOAD);
    static const char *const names[] = {"a.dat", "index.json"};
    heft_error err;
    (void)state;
    for (size_t i = 0; i < COUNT(names); i++) {
        heft_writer *w = writer_at(at("out"), &options);
        add(w, "a", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
        assert_int_equal(heft_writer_side_file(w, names[i], "{}", 2, &err), HEFT_OK);
        assert_int_equal(heft_writer_commit(w, NULL, &err), HEFT_INVALID_ARG);
        assert_non_null(strstr(err.message, "two files would have the name"));
        heft_writer_free(w);
        assert_int_equal(test_count_entries(folder), 0);
    }
}

static void after_the_commit(void **state)
{
    heft_writer *w = writer_at(at("out"), NULL);
    const uint64_t shape[] = {2, 3};
    struct giving giving = {.most = 1, .fail_at = UINT64_MAX};
    heft_tensor *tensor = tensor_on(ctx, numbers, sizeof numbers, HEFT_DTYPE_F32, shape, 2, NULL);
    heft_error err;
    (void)state;
    add(w, "a", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
    test_expect_status(heft_writer_commit(w, NULL, &err), HEFT_OK, &err, "commit");
    assert_int_equal(heft_writer_commit(w, NULL, &err), HEFT_INVALID_ARG);
    assert_non_null(strstr(err.message, "already been committed"));
    assert_int_equal(heft_writer_add(w, "b", tensor, &err), HEFT_INVALID_ARG);
    assert_int_equal(add_given(w, "b", &giving, &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_writer_metadata(w, "a", "b", &err), HEFT_INVALID_ARG);
    assert_int_equal(heft_writer_side_file(w, "a", "b", 1, &err), HEFT_INVALID_ARG);
    heft_tensor_free(tensor);
    heft_writer_free(w);
}

static void a_folder_that_is_there(void **state)
{
    heft_writer_options options = HEFT_SIZED(heft_writer_options);
    heft_error err;
    (void)state;
    heft_writer *w = writer_at(at("out"), &options);
    add(w, "a", numbers, HEFT_DTYPE_F32, 2, 3, NULL);
    commit(w);
    w = writer_at(at("out"), &options);
    add(w, "a", numbers + 1, HEFT_DTYPE_F32, 2, 3, NULL);
    assert_int_equal(heft_writer_commit(w, NULL, &err), HEFT_EXISTS);
    assert_non_null(strstr(err.message, "already contains 'model.safetensors'"));
    heft_writer_free(w);
    expect_values(at("out"), "a", numbers, 6);
    options.force = true;
    options.format = HEFT_FORMAT_TORCH; /* and the safetensors would win */
    w = writer_at(at("out"), &options);
    add(w, "a", numbers + 1, HEFT_DTYPE_F32, 2, 3, NULL);
    commit(w);
    expect_values(at("out"), "a", numbers + 1, 6);
    assert_int_equal(test_count_entries(at("out")), 1);
}

/* ---- failing allocations --------------------------------------------------------------------- */
static heft_status fill_writer(heft_ctx *with, heft_writer *w, struct giving *giving,
                               heft_error *err)
{
    static const uint64_t shape[] = {2, 3};
    static const int64_t strides[] = {1, 2};
    heft_tensor *plain = tensor_on(with, numbers, sizeof numbers, HEFT_DTYPE_F32, shape, 2, NULL);
    heft_tensor *turned =
        tensor_on(with, numbers, sizeof numbers, HEFT_DTYPE_F32, shape, 2, strides);
    heft_status status = plain && turned ? HEFT_OK : heft__fail_nomem(err, sizeof *plain);
    if (status == HEFT_OK) {
        status = heft_writer_add(w, "plain", plain, err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_add(w, "again", plain, err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_add(w, "turned", turned, err);
    }
    if (status == HEFT_OK) {
        status = add_given(w, "made", giving, err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_side_file(w, "config.json", "{}", 2, err);
    }
    heft_tensor_free(plain);
    heft_tensor_free(turned);
    return status;
}

static heft_status write_all(heft_ctx *with, void *user, heft_error *err)
{
    static const char *const modules[] = {"", "a"};
    const heft_format format = *(const heft_format *)user;
    struct giving giving = {.most = 300, .fail_at = UINT64_MAX};
    heft_writer *w = NULL;
    heft_write_report *report = NULL;
    const heft_writer_options options = HEFT_OPTIONS(
        heft_writer_options, .format = format,
        .max_shard_bytes = format == HEFT_FORMAT_OFFLOAD ? 0 : 30, .ties = HEFT_TIES_DROP,
        .modules = modules, .module_count = 2, .natural_order = true, .force = true);
    heft_status status = heft_writer_new(with, at("out"), &options, &w, err);
    if (status == HEFT_OK) {
        status = fill_writer(with, w, &giving, err);
    }
    if (status == HEFT_OK && format == HEFT_FORMAT_SAFETENSORS) {
        status = heft_writer_metadata(w, "a", "b", err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_commit(w, &report, err);
    }
    heft_write_report_free(report);
    heft_writer_free(w);
    if (status != HEFT_OK && heft__path_exists(at("out"))) {
        fail_msg("a failed commit left something");
    }
    return status;
}

static void every_allocation_may_fail(void **state)
{
    heft_format formats[] = {HEFT_FORMAT_SAFETENSORS, HEFT_FORMAT_TORCH, HEFT_FORMAT_OFFLOAD};
    (void)state;
    for (size_t i = 0; i < COUNT(formats); i++) {
        test_oom_sweep(write_all, &formats[i]);
        test_folder_remove(at("out"));
    }
}

/* ---- the last reference ------------------------------------------------------------------------ */
struct letting_go {
    pthread_t caller;
    size_t count, strange;
};

static void let_go(void *user)
{
    struct letting_go *seen = user;
    seen->count++;
    seen->strange += !pthread_equal(pthread_self(), seen->caller);
}

/* The writer and a DLPack tensor hold the last references; a context with threads does the work. */
static void memory_is_released_on_the_callers_thread(void **state)
{
    (void)state;
    static const heft_format formats[] = {HEFT_FORMAT_SAFETENSORS, HEFT_FORMAT_TORCH,
                                          HEFT_FORMAT_OFFLOAD};
    const uint64_t shape[] = {4, 6};
    const heft_tensor_spec spec =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_F32, .rank = 2, .shape = shape);
    struct letting_go seen = {.caller = pthread_self()};
    heft_ctx *before = ctx;
    size_t made = 0;
    ctx = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .threads = 8));
    for (size_t f = 0; f < COUNT(formats); f++) {
        heft_writer *w =
            writer_at(at("out"), &HEFT_OPTIONS(heft_writer_options, .format = formats[f],
                                               .ties = HEFT_TIES_COPY));
        for (size_t i = 0; i < 50; i++, made++) {
            heft_storage *storage = NULL;
            heft_tensor *tensor = NULL;
            DLManagedTensorVersioned *managed = NULL;
            heft_error err;
            char name[16];
            snprintf(name, sizeof name, "t%zu", i);
            test_expect_status(heft_storage_wrap_const(ctx, numbers, sizeof numbers, let_go, &seen,
                                                       &storage, &err),
                               HEFT_OK, &err, name);
            test_expect_status(heft_tensor_new(storage, &spec, &tensor, &err), HEFT_OK, &err, name);
            heft_storage_unref(storage);
            if (i % 2 == 0) {
                test_expect_status(heft_writer_add(w, name, tensor, &err), HEFT_OK, &err, name);
                heft_tensor_free(tensor);
            } else {
                test_expect_status(heft_tensor_to_dlpack(tensor, &managed, &err), HEFT_OK, &err,
                                   name);
                heft_tensor_free(tensor);
                managed->deleter(managed);
            }
        }
        commit(w);
        assert_int_equal(seen.count, made);
        test_folder_remove(at("out"));
    }
    assert_int_equal(seen.strange, 0);
    heft_ctx_free(ctx);
    ctx = before;
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_FOLDER(the_files_are_those_of_a_save),
        IN_FOLDER(a_single_file),
        IN_FOLDER(a_single_file_where_a_folder_is),
        IN_FOLDER(nothing_happens_without_a_commit),
        IN_FOLDER(no_tensors_at_all),
        IN_FOLDER(strided_tensors_are_gathered),
        IN_FOLDER(mapped_tensors),
        IN_FOLDER(every_dtype_that_the_format_holds),
        IN_FOLDER(ties_are_treated_as_asked),
        IN_FOLDER(a_tie_keeps_the_name_below_the_base_model),
        IN_FOLDER(neighbors_share_nothing),
        IN_FOLDER(bytes_that_are_made),
        IN_FOLDER(callbacks_that_fail),
        IN_FOLDER(progress_can_cancel),
        cmocka_unit_test(options_that_do_not_go_together),
        IN_FOLDER(tensors_that_are_refused),
        IN_FOLDER(made_tensors_that_are_refused),
        IN_FOLDER(side_files_and_metadata),
        IN_FOLDER(a_side_file_in_the_place_of_weights),
        IN_FOLDER(after_the_commit),
        IN_FOLDER(a_folder_that_is_there),
        IN_FOLDER(memory_is_released_on_the_callers_thread),
        IN_FOLDER(every_allocation_may_fail),
    };
    fill_numbers();
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    uint64_t live = 0;
    heft_ctx_memory(ctx, &live, NULL);
    heft_ctx_free(ctx);
    return failed || live != 0;
}
