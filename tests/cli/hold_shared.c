/* hold_shared - load PATH, print a sum over all bytes and how they were loaded, and hold them as long as
 * FILE exists. For tests/cli/test_shared.sh. */
#include <heft/heft.h>

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

static heft_status sum_up(const heft_model *model, uint64_t *sum, heft_error *err)
{
    heft_status status = HEFT_OK;
    *sum = 1469598103934665603u;
    for (size_t i = 0; i < heft_model_count(model) && status == HEFT_OK; i++) {
        heft_tensor *tensor = NULL;
        status = heft_model_tensor(model, i, &tensor, err);
        for (uint64_t k = 0; status == HEFT_OK && k < tensor->size_bytes; k++) {
            *sum = (*sum ^ ((const uint8_t *)tensor->data)[k]) * 1099511628211u;
        }
        heft_tensor_free(tensor);
    }
    return status;
}

int main(int argc, char **argv)
{
    heft_error err = {0};
    heft_source *source = NULL;
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    uint64_t sum = 0;
    if (argc != 5) {
        fputs("usage: hold_shared PATH shared|copy f32|bf16 FILE\n", stderr);
        return 2;
    }
    heft_ctx *ctx = heft_ctx_new(NULL);
    const heft_load_options options =
        HEFT_OPTIONS(heft_load_options,
                     .mode = strcmp(argv[2], "shared") == 0 ? HEFT_LOAD_SHARED : HEFT_LOAD_COPY,
                     .dtype = strcmp(argv[3], "bf16") == 0 ? HEFT_DTYPE_BF16 : HEFT_DTYPE_F32);
    heft_status status = heft_source_open(ctx, argv[1], NULL, &source, &err);
    if (status == HEFT_OK) {
        status = heft_model_load(source, &options, &model, &report, &err);
    }
    if (status == HEFT_OK) {
        status = sum_up(model, &sum, &err);
    }
    if (status == HEFT_OK) {
        printf("%016" PRIx64 " %s\n", sum,
               report->shared_bytes == 0                     ? "private"
               : strstr(report->strategy, "already existed") ? "joined"
                                                             : "built");
        fflush(stdout);
        for (int i = 0; i < 12000 && access(argv[4], F_OK) == 0; i++) { /* at most a minute */
            usleep(5000);
        }
    } else {
        fprintf(stderr, "%s: %s\n", heft_status_name(status), err.message);
    }
    heft_load_report_free(report);
    heft_model_free(model);
    heft_source_close(source);
    heft_ctx_free(ctx);
    return heft_status_exit_code(status);
}
