/* write.c - write a program's own tensors: one from memory, one generated while it is written.
 *
 *   cc write.c $(pkg-config --cflags --libs heft) -o write
 *   ./write FOLDER          model.safetensors and config.json in a folder
 *   ./write FILE.safetensors, or FILE.pt
 */
#include <heft/heft.h>

#include <stdio.h>
#include <string.h>

/* Generates the requested bytes. A callback may also produce fewer bytes than requested. */
static heft_status fill_with_ones(void *user, uint64_t offset, void *dst, size_t length,
                                  size_t *filled, heft_error *err)
{
    static const unsigned char one[2] = {0x80, 0x3F}; /* 1.0 as bfloat16, little-endian */
    unsigned char *bytes = dst;
    (void)user, (void)err;
    for (size_t i = 0; i < length; i++) {
        bytes[i] = one[(offset + i) % 2];
    }
    *filled = length;
    return HEFT_OK;
}

static heft_status add_weight(heft_ctx *ctx, heft_writer *writer, heft_error *err)
{
    static float values[2][3] = {
        {1, 2, 3},
        {4, 5, 6}
    };
    static const uint64_t shape[] = {2, 3};
    const heft_tensor_spec spec =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_F32, .rank = 2, .shape = shape);
    heft_storage *storage = NULL;
    heft_tensor *tensor = NULL;
    heft_status status = heft_storage_wrap(ctx, values, sizeof values, NULL, NULL, &storage, err);
    if (status == HEFT_OK) {
        status = heft_tensor_new(storage, &spec, &tensor, err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_add(writer, "weight", tensor, err); /* references the storage */
    }
    heft_tensor_free(tensor);
    heft_storage_unref(storage);
    return status;
}

static heft_status add_bias(heft_writer *writer, heft_error *err)
{
    static const uint64_t shape[] = {1000000};
    const heft_tensor_spec spec =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_BF16, .rank = 1, .shape = shape);
    return heft_writer_add_from(writer, "bias", &spec, fill_with_ones, NULL, err);
}

static heft_status write_all(heft_ctx *ctx, const char *dst, heft_error *err)
{
    static const char config[] = "{\"model_type\": \"mine\"}\n";
    const char *slash = strrchr(dst, '/');
    const bool single = strchr(slash ? slash : dst, '.') != NULL;
    const heft_writer_options options = HEFT_OPTIONS(heft_writer_options, .single_file = single);
    heft_writer *writer = NULL;
    heft_write_report *report = NULL;
    heft_status status = heft_writer_new(ctx, dst, &options, &writer, err);
    if (status == HEFT_OK) {
        status = add_weight(ctx, writer, err);
    }
    if (status == HEFT_OK) {
        status = add_bias(writer, err);
    }
    if (status == HEFT_OK && !single) {
        status = heft_writer_side_file(writer, "config.json", config, sizeof config - 1, err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_commit(writer, &report, err); /* all becomes visible, or nothing */
    }
    for (size_t i = 0; status == HEFT_OK && i < report->file_count; i++) {
        printf("%s: %zu tensors\n", report->files[i].name, report->files[i].tensors);
    }
    heft_write_report_free(report);
    heft_writer_free(writer);
    return status;
}

int main(int argc, char **argv)
{
    heft_error err = {0};
    if (argc < 2) {
        fprintf(stderr, "usage: %s FOLDER or FILE\n", argv[0]);
        return 2;
    }
    heft_ctx *ctx = heft_ctx_new(NULL);
    heft_status status = write_all(ctx, argv[1], &err);
    if (status != HEFT_OK) {
        heft_error_print(&err, stderr);
    }
    heft_ctx_free(ctx);
    return heft_status_exit_code(status);
}
