/* run_forecast.c - how `heft run` runs a model within --memory, and how long that would take. */
#include "cli/running.h"

#include <stdio.h>
#include <string.h>

/* Of what is computed instead of read. More than this are weights that would be made up. */
#define RESIDENT_MOST ((uint64_t)16 << 20)
#define COMPACT_TOKENS 32
#define COMPACT_SEQUENCES 8

/* What the process may use: --memory, or what the machine or a container has left, less an eighth for
 * others. 0: not known. */
static uint64_t memory_of(uint64_t memory_bytes)
{
    heft_machine machine = HEFT_SIZED(heft_machine);
    if (memory_bytes || heft_machine_memory(&machine, NULL) != HEFT_OK) {
        return memory_bytes;
    }
    return machine.bytes - machine.bytes / 8;
}

cli_run_mode cli_run_choose(uint64_t memory_bytes, uint64_t model_bytes)
{
    const uint64_t memory = memory_of(memory_bytes);
    const uint64_t room = memory > CLI_RUN_BESIDE ? memory - CLI_RUN_BESIDE : 0;
    if (memory > 0 && model_bytes > room - room / 8) { /* the rest: caches and results */
        return (cli_run_mode){true, room};
    }
    return (cli_run_mode){false, memory_bytes ? room - model_bytes : 0};
}

bool cli_run_compacts(uint64_t new_tokens, size_t sequences)
{
    return new_tokens >= COMPACT_TOKENS && sequences <= COMPACT_SEQUENCES;
}

/* A plan in which everything stays in its files. */
static heft_status plan_disk(const heft_model *skeleton, heft_plan **plan, heft_error *err)
{
    const heft_plan_options wanted =
        HEFT_OPTIONS(heft_plan_options, .device_map_json = "{\"\": \"disk\"}");
    return heft_plan_new(skeleton, &wanted, plan, err);
}

bool cli_run_read_memory(const char *text, uint64_t bytes, heft_error *err)
{
    return !text || bytes > CLI_RUN_BESIDE ||
           cli_refuse(err, "--memory", "is not more than the %u MiB that heft itself takes",
                      (unsigned)(CLI_RUN_BESIDE >> 20));
}

void cli_run_explain(heft_error *err)
{
    const size_t length = strlen(err->message);
    if (err->status == HEFT_LIMIT && strcmp(err->item, "memory_bytes") == 0) {
        snprintf(err->item, sizeof err->item, "--memory");
        snprintf(err->message + length, sizeof err->message - length,
                 "; heft itself takes %u MiB beside it", (unsigned)(CLI_RUN_BESIDE >> 20));
    }
}

bool cli_run_read_compute(const char *text, heft_session_options *session, heft_error *err)
{
    session->exact = text && strcmp(text, "f32") == 0;
    return !text || session->exact || strcmp(text, "auto") == 0 ||
           cli_refuse(err, "--compute", "'%.20s' is not auto or f32", text);
}

/* Complete the options of a load: weights are copied into memory, or stay in their files by *plan. memory_bytes:
 * what decides that, as for cli_run_choose(), and *session_bytes is filled; NULL: they stay. */
static heft_status plan_load(const heft_source *source, const uint64_t *memory_bytes,
                             heft_load_options *load, heft_plan **plan, uint64_t *session_bytes,
                             heft_error *err)
{
    heft_model *skeleton = NULL;
    bool disk = true;
    load->mode = HEFT_LOAD_COPY;
    load->plan = NULL;
    heft_status status = heft_model_skeleton(source, load, &skeleton, err);
    if (status == HEFT_OK && memory_bytes) {
        const cli_run_mode mode = cli_run_choose(*memory_bytes, heft_model_bytes(skeleton));
        *session_bytes = mode.session_bytes;
        disk = mode.disk;
    }
    if (status == HEFT_OK && disk) {
        status = plan_disk(skeleton, plan, err);
        load->plan = *plan;
    }
    heft_model_free(skeleton);
    return status;
}

heft_status cli_run_load(const heft_source *source, uint64_t memory_bytes, cli_run_weights *out,
                         heft_error *err)
{
    heft_status status = cli_check_plain(source, err);
    if (status == HEFT_OK) {
        status = cli_check_adapter(source, err);
    }
    if (status == HEFT_OK) {
        status = plan_load(source, &memory_bytes, &out->load, &out->plan,
                           &out->session.memory_bytes, err);
    }
    return status == HEFT_OK ? heft_model_load(source, &out->load, &out->model, &out->report, err)
                             : status;
}

void cli_run_weights_fini(cli_run_weights *weights)
{
    heft_model_free(weights->model);
    heft_load_report_free(weights->report);
    heft_plan_free(weights->plan);
}

const char *cli_bound_name(heft_bound bound)
{
    return bound == HEFT_BOUND_DISK ? "disk" : bound == HEFT_BOUND_MEMORY ? "memory" : "compute";
}

/* Open the model with all weights in their files. *lacks: weights that the files do not have. */
static heft_status open_model(heft_source *source, const heft_load_options *load,
                              heft_model **model, bool *lacks, heft_error *err)
{
    heft_plan *plan = NULL;
    heft_load_report *report = NULL;
    heft_load_needs needs = HEFT_SIZED(heft_load_needs);
    heft_load_options how = *load;
    heft_status status = plan_load(source, NULL, &how, &plan, NULL, err);
    if (status == HEFT_OK) {
        status = heft_model_needs(source, &how, &needs, err);
    }
    *lacks = status == HEFT_OK && needs.resident_bytes > RESIDENT_MOST;
    if (status == HEFT_OK && !*lacks) {
        status = heft_model_load(source, &how, model, &report, err);
        *lacks = status == HEFT_OK && report->initialized_count > 0;
    }
    heft_load_report_free(report);
    heft_plan_free(plan);
    return status;
}

/* An input, and a token after it. */
static heft_status predict(heft_session *session, cli_forecast *out, heft_error *err)
{
    const bool encodes = heft_session_has_encoder(session);
    heft_pass_shape input = HEFT_OPTIONS(heft_pass_shape, .tokens = encodes ? 1 : out->context,
                                         .encoded = out->context);
    heft_pass_shape step = HEFT_OPTIONS(heft_pass_shape, .kept = encodes ? 1 : out->context - 1,
                                        .encoded = out->context);
    out->input = out->step = HEFT_SIZED(heft_prediction);
    heft_status status = heft_session_predict(session, &input, &out->input, err);
    out->has_input = status == HEFT_OK;
    if (status == HEFT_INVALID_ARG) { /* more than it has positions */
        step.kept = 0;
        status = HEFT_OK;
    }
    if (status == HEFT_OK) {
        status = heft_session_predict(session, &step, &out->step, err);
    }
    return status;
}

/* Everything has been copied into memory, rows of embeddings too: nothing is read any more. */
static void settle(heft_prediction *p, uint64_t model_bytes)
{
    if (model_bytes > p->ready_bytes) { /* embeddings that would be read by row */
        p->peak_bytes += model_bytes - p->ready_bytes;
    }
    p->ready_bytes = model_bytes;
    p->ready_seconds = p->disk_rate > 0 ? (double)model_bytes / p->disk_rate : 0;
    p->seconds = p->compute_seconds;
    p->read_seconds = 0;
    p->read_bytes = 0;
    p->bound = p->bound == HEFT_BOUND_DISK ? HEFT_BOUND_MEMORY : p->bound;
}

heft_status cli_run_forecast(heft_source *source, const heft_load_options *load,
                             uint64_t model_bytes, uint64_t memory_bytes, uint64_t context,
                             cli_forecast *out, heft_error *err)
{
    heft_model *model = NULL;
    heft_session *session = NULL;
    heft_error why = {0};
    bool lacks = false;
    const cli_run_mode mode = cli_run_choose(memory_bytes, model_bytes);
    const uint64_t budget =
        mode.disk || memory_bytes == 0 ? mode.session_bytes : mode.session_bytes + model_bytes;
    *out = (cli_forecast){.context = context, .weights = mode.disk ? "disk" : "memory"};
    const heft_session_options options =
        HEFT_OPTIONS(heft_session_options, .memory_bytes = budget, .over_limit = true,
                     .expect_compact = !mode.disk);
    heft_status status = open_model(source, load, &model, &lacks, &why);
    if (status == HEFT_OK && !lacks) {
        status = heft_session_new(model, &options, &session, &why);
    }
    if (status == HEFT_OK && !lacks) {
        status = predict(session, out, &why);
    }
    out->known = status == HEFT_OK && !lacks;
    snprintf(out->why, sizeof out->why, "%s",
             lacks ? "the files lack weights of the model" : why.message);
    if (strcmp(out->weights, "memory") == 0) {
        settle(&out->step, model_bytes);
        settle(&out->input, model_bytes);
    }
    const uint64_t peak = out->has_input && out->input.peak_bytes > out->step.peak_bytes
                              ? out->input.peak_bytes
                              : out->step.peak_bytes;
    out->peak_bytes = out->known ? CLI_RUN_BESIDE + peak : 0;
    heft_session_free(session);
    heft_model_free(model);
    if (status == HEFT_NOMEM || status == HEFT_CANCELLED) {
        *err = why;
        return status;
    }
    return HEFT_OK;
}
