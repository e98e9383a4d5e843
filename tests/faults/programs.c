/* programs.c - what the tests run besides the command: a model saved, tensors written, a checkpoint read. */
#include "programs.h"

#include "tree.h"

#include <heft/heft.h>

#include <stdio.h>
#include <string.h>

static int end(heft_ctx *ctx, heft_status status, const heft_error *err)
{
    if (status != HEFT_OK) {
        heft_error_print(err, stderr);
    }
    heft_ctx_free(ctx);
    return heft_status_exit_code(status);
}

static int save(const char *source, const char *folder, bool force)
{
    heft_error err = {0};
    heft_source *opened = NULL;
    heft_model *model = NULL;
    heft_ctx *ctx = heft_ctx_new(NULL);
    heft_status status = heft_source_open(ctx, source, NULL, &opened, &err);
    if (status == HEFT_OK) {
        status = heft_model_load(opened, &HEFT_OPTIONS(heft_load_options, .mode = HEFT_LOAD_MAP),
                                 &model, NULL, &err);
    }
    if (status == HEFT_OK) {
        const heft_save_options options = HEFT_OPTIONS(heft_save_options, .max_shard_bytes = 20000,
                                                       .force = force, .keep_side_files = force);
        status = heft_model_save(model, folder, &options, NULL, &err);
    }
    heft_model_free(model);
    heft_source_close(opened);
    return end(ctx, status, &err);
}

static heft_status fill(void *user, uint64_t offset, void *dst, size_t length, size_t *filled,
                        heft_error *err)
{
    unsigned char *bytes = dst;
    (void)err;
    for (size_t i = 0; i < length; i++) {
        bytes[i] = (unsigned char)((offset + i) * 7 + *(const unsigned char *)user);
    }
    *filled = length;
    return HEFT_OK;
}

static int write_tensors(const char *path, bool force)
{
    static const uint64_t shape[] = {40, 100};
    static char names[][2] = {"a", "b", "c", "d"};
    static const char config[] = "{\"architectures\": [\"Mine\"], \"model_type\": \"mine\"}\n";
    heft_error err = {0};
    heft_writer *writer = NULL;
    heft_ctx *ctx = heft_ctx_new(NULL);
    const bool single = strstr(path, ".safetensors") != NULL;
    const heft_writer_options options =
        HEFT_OPTIONS(heft_writer_options, .max_shard_bytes = single ? 0 : 20000,
                     .single_file = single, .force = force, .keep_side_files = force);
    const heft_tensor_spec spec =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_F32, .rank = 2, .shape = shape);
    heft_status status = heft_writer_new(ctx, path, &options, &writer, &err);
    for (size_t i = 0; status == HEFT_OK && i < 4; i++) {
        status = heft_writer_add_from(writer, names[i], &spec, fill, names[i], &err);
    }
    if (status == HEFT_OK && !single) {
        status = heft_writer_side_file(writer, "config.json", config, sizeof config - 1, &err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_commit(writer, NULL, &err);
    }
    heft_writer_free(writer);
    return end(ctx, status, &err);
}

static int read_folder(const char *folder)
{
    char message[600];
    meaning got;
    meaning_read(folder, &got, message, sizeof message);
    fprintf(stderr, "%d %llx %llx %s\n", got.code, (unsigned long long)got.weights,
            (unsigned long long)got.config, message);
    return got.code;
}

int programs_run(int argc, char **argv)
{
    const bool force = argc > 2 && strcmp(argv[argc - 1], "force") == 0;
    return argc >= 4 && strcmp(argv[1], "save") == 0     ? save(argv[2], argv[3], force)
           : argc >= 3 && strcmp(argv[1], "writer") == 0 ? write_tensors(argv[2], force)
           : argc == 3 && strcmp(argv[1], "read") == 0   ? read_folder(argv[2])
                                                         : -1;
}
