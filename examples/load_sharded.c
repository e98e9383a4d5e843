/* load_sharded.c - load a sharded checkpoint into an existing model.
 *
 *   ./load_sharded CONFIG FOLDER [lax]
 *
 * Creates the model of a config.json with random weights, then overwrites them with the
 * checkpoint's weights, one shard after another. With `lax`, missing and unexpected keys are not
 * errors. Prints one line of JSON. Peak memory: the model and one staging buffer.
 */
#include <heft/heft.h>

#include <inttypes.h>
#include <stdio.h>
#include <sys/resource.h>

/* A value of the first float32 matrix, to see that it changes. */
static float some_value(const heft_model *model)
{
    float value = 0;
    heft_tensor *tensor = NULL;
    for (size_t i = 0; i < heft_model_count(model) && tensor == NULL; i++) {
        const heft_parameter *p = heft_model_parameter(model, i);
        if (p->dtype == HEFT_DTYPE_F32 && p->rank == 2 && p->shape[0] > 1 && p->shape[1] > 0 &&
            heft_model_tensor(model, i, &tensor, NULL) == HEFT_OK) {
            /* from the second row: the first may be that of the padding token, which is 0 */
            value = ((const float *)tensor->data)[tensor->strides[0]];
        }
    }
    heft_tensor_free(tensor);
    return value;
}

static void print_report(heft_ctx *ctx, const heft_model *model, const heft_load_report *report)
{
    struct rusage usage;
    uint64_t peak_heap = 0;
    getrusage(RUSAGE_SELF, &usage);
    heft_ctx_memory(ctx, NULL, &peak_heap);
    printf("{\"class\": \"%s\", \"parameters\": %" PRIu64 ", \"bytes\": %" PRIu64,
           heft_model_class(model), heft_model_elements(model), heft_model_bytes(model));
    printf(", \"missing\": %zu, \"unexpected\": %zu, \"seconds\": %.3f", report->missing_count,
           report->unexpected_count, report->seconds);
    printf(", \"memory\": {\"peak_rss_bytes\": %" PRIu64 ", \"peak_anon_bytes\": %" PRIu64 "}}\n",
           (uint64_t)usage.ru_maxrss * 1024, peak_heap);
}

int main(int argc, char **argv)
{
    heft_error err = {0};
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    if (argc != 3 && argc != 4) {
        fprintf(stderr, "usage: %s CONFIG FOLDER [lax]\n", argv[0]);
        return 2;
    }
    heft_ctx *ctx = heft_ctx_new(NULL);
    heft_status status = heft_config_read(ctx, argv[1], &config, &err);
    if (status == HEFT_OK) { /* names and shapes */
        status = heft_model_new(ctx, config, NULL, HEFT_DTYPE_NONE, &model, &err);
    }
    heft_config_free(config);
    if (status == HEFT_OK) {
        status = heft_model_init(model, &HEFT_OPTIONS(heft_init_options, .seed = 99),
                                 &err); /* random weights */
    }
    if (status == HEFT_OK) {
        float before = some_value(model);
        status = heft_model_load_sharded(
            model, argv[2], &HEFT_OPTIONS(heft_load_sharded_options, .strict = argc == 3), &report,
            &err);
        if (status == HEFT_OK) {
            fprintf(stderr, "one weight: %.6f before, %.6f after\n", (double)before,
                    (double)some_value(model));
            print_report(ctx, model, report);
        }
    }
    if (status != HEFT_OK) {
        heft_error_print(&err, stderr);
    }
    heft_load_report_free(report);
    heft_model_free(model);
    heft_ctx_free(ctx);
    return heft_status_exit_code(status);
}
