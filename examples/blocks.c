/* blocks.c - pass over a model that is larger than its memory, unit by unit, as an engine would.
 *
 *   cc blocks.c $(pkg-config --cflags --libs heft) -o blocks
 *   ./blocks FOLDER BYTES
 *
 * BYTES is the budget for weights: those that stay in memory, and those that are streamed. */
#include <heft/heft.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* Decide which parameters stay in memory. The skeleton has names and shapes only. */
static heft_status make_plan(const heft_source *source, double bytes, heft_plan **plan,
                             heft_error *err)
{
    const heft_budget budget = {HEFT_DEVICE_CPU, bytes};
    const heft_plan_options options = HEFT_OPTIONS(
        heft_plan_options, .strategy = HEFT_STRATEGY_BEST, .budgets = &budget, .budget_count = 1);
    heft_model *skeleton = NULL;
    heft_status status = heft_model_skeleton(source, NULL, &skeleton, err);
    if (status == HEFT_OK) {
        status = heft_plan_new(skeleton, &options, plan, err);
    }
    heft_model_free(skeleton);
    return status;
}

/* A unit's tensors stay in memory until the lease is freed; meanwhile the next units are read. */
static heft_status use_unit(heft_residency *residency, size_t number, heft_error *err)
{
    const heft_unit *unit = heft_residency_unit(residency, number);
    heft_lease *lease = NULL;
    heft_status status = heft_residency_acquire(residency, &number, 1, &lease, err);
    if (status == HEFT_OK) {
        const heft_tensor *first = heft_lease_view(lease, unit->parameters[0]);
        printf("%s: %zu tensors, %" PRIu64 " bytes, %" PRIu64 " brought in, first byte 0x%02x\n",
               unit->name, unit->parameter_count, unit->bytes, unit->brought_bytes,
               first && first->size_bytes > 0 ? *(const unsigned char *)first->data : 0U);
    }
    heft_lease_free(lease);
    return status;
}

static heft_status run(heft_ctx *ctx, const char *path, double bytes, heft_error *err)
{
    heft_source *source = NULL;
    heft_plan *plan = NULL;
    heft_model *model = NULL;
    heft_residency *residency = NULL;
    double one, two;
    heft_status status = heft_source_open(ctx, path, NULL, &source, err);
    if (status == HEFT_OK) {
        status = make_plan(source, bytes, &plan, err);
    }
    if (status == HEFT_OK) {
        const heft_load_options options = HEFT_OPTIONS(heft_load_options, .plan = plan);
        status = heft_model_load(source, &options, &model, NULL, err);
    }
    heft_source_close(source); /* the model keeps what it needs */
    if (status == HEFT_OK) {
        const heft_residency_options options = HEFT_OPTIONS(
            heft_residency_options, .budget_bytes = (uint64_t)heft_plan_stream(plan, &one, &two));
        status = heft_residency_new(model, &options, &residency, err);
    }
    for (size_t i = 0; status == HEFT_OK && i < heft_residency_count(residency); i++) {
        status = use_unit(residency, i, err);
    }
    heft_residency_free(residency);
    heft_model_free(model);
    heft_plan_free(plan);
    return status;
}

int main(int argc, char **argv)
{
    heft_error err = {0};
    if (argc < 3) {
        fprintf(stderr, "usage: %s FOLDER BYTES\n", argv[0]);
        return 2;
    }
    heft_ctx *ctx = heft_ctx_new(NULL);
    heft_status status = run(ctx, argv[1], strtod(argv[2], NULL), &err);
    if (status != HEFT_OK) {
        heft_error_print(&err, stderr);
    }
    heft_ctx_free(ctx);
    return heft_status_exit_code(status);
}
