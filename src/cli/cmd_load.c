/* cmd_load.c - heft load PATH: instantiate a model and say how it went. */
#include "cli/cli.h"

#include <stdlib.h>

#define OPTIONS(X)                                                                                 \
    X(CLASS, "class", "NAME",                                                                      \
      "model class: BertForMaskedLM, AutoModel, ... (default: from the config)")                   \
    X(DTYPE, "dtype", "D",                                                                         \
      "dtype of the weights; auto: from the config, else from the files (default: auto)")          \
    X(DTYPE_OF, "dtype-of", "A=D,B=D",                                                             \
      "dtype of sub-models, modules, classes or tensors: vision_config=float32")                   \
    X(KEEP_F32, "keep-f32", "A,B", "modules, classes or tensors that are float32: lm_head,norm")   \
    X(DEQUANTIZE, "dequantize", NULL, "dequantize quantized weights")                              \
    X(MODE, "mode", "M", "map, copy, shared (one copy per host) or auto (default: auto)")          \
    X(DEVICE_MAP, "device-map", "M",                                                               \
      "auto, balanced, balanced_low_0, sequential, best, a device (cpu, 0, cuda:0), or a device "  \
      "map file")                                                                                  \
    X(MAX_MEMORY, "max-memory", "M",                                                               \
      "memory per device: cpu=2GB,disk (default for cpu: available memory)")                       \
    X(OFFLOAD_FOLDER, "offload-folder", "DIR",                                                     \
      "write tensors placed on disk to DIR as an Accelerate offload folder")                       \
    X(STRICT, "strict", NULL, "fail if any tensor is missing, unexpected or mismatched")           \
    X(IGNORE_MISMATCHED_SIZES, "ignore-mismatched-sizes", NULL,                                    \
      "initialize tensors whose shapes do not match")                                              \
    X(ALLOW_MISSING, "allow-missing", NULL,                                                        \
      "load even if no tensor of the checkpoint matches the model")                                \
    X(VARIANT, "variant", "V", "read model.V.safetensors, ...")                                    \
    X(SUBFOLDER, "subfolder", "DIR", "read the checkpoint in PATH/DIR")                            \
    X(FORMAT, "format", "F",                                                                       \
      "read only this format: safetensors, bin or offload (default: any, safetensors first)")      \
    X(TOUCH, "touch", NULL, "read every byte into memory; with a device map, block by block")      \
    X(OVER_LIMIT, "over-limit", NULL,                                                              \
      "load even if the model is larger than the available memory")                                \
    X(SEED, "seed", "N", "random seed for missing tensors (default: 0)")

enum { OPTIONS(CLI_OPTION_ID) OPTION_COUNT };

static const cli_option options[] = {OPTIONS(CLI_OPTION_ROW)};

/* What is asked, and what came of it. */
struct loaded {
    heft_load_options request;
    heft_checkpoint_options where;
    cli_dtypes dtypes;
    heft_source *source;
    heft_plan *plan; /* NULL: none */
    heft_model *model;
    heft_load_report *report;
    heft_residency_counts pass; /* over all units, with a plan and --touch */
    size_t pass_blocks;         /* 0: none */
    char pass_warning[256];     /* "": none */
    double pass_seconds;
    double open_seconds;
};

/* ---- JSON ------------------------------------------------------------------------------------ */
static void put_mismatches(cli_json *json, const heft_load_report *report)
{
    cli_json_open(json, "mismatched", '[');
    for (size_t i = 0; i < report->mismatched_count; i++) {
        const heft_mismatch *mismatch = &report->mismatched[i];
        cli_json_open(json, NULL, '{');
        cli_json_string(json, "name", mismatch->name);
        cli_json_shape(json, "checkpoint", mismatch->checkpoint_shape, mismatch->checkpoint_rank);
        cli_json_shape(json, "model", mismatch->model_shape, mismatch->model_rank);
        cli_json_close(json, '}');
    }
    cli_json_close(json, ']');
}

/* {"": "cpu"} without a plan. */
static void put_device_map(cli_json *json, const heft_plan *plan)
{
    char name[CLI_DEVICE_TEXT];
    cli_json_open(json, "device_map", '{');
    for (size_t i = 0; plan && i < heft_plan_count(plan); i++) {
        int32_t device;
        double bytes;
        const char *module = heft_plan_entry(plan, i, &device, &bytes);
        cli_json_string(json, module, cli_device(device, name));
    }
    if (!plan) {
        cli_json_string(json, "", "cpu");
    }
    cli_json_close(json, '}');
}

/* null without --offload-folder. */
static void put_offload(cli_json *json, const cli_run *run, const heft_load_report *report)
{
    const char *folder = run->values[OPTION_OFFLOAD_FOLDER];
    if (!folder) {
        cli_json_string(json, "offload", NULL);
        return;
    }
    cli_json_open(json, "offload", '{');
    cli_json_string(json, "folder", folder);
    cli_json_u64(json, "entries", report->offload_entries);
    cli_json_u64(json, "files", report->offload_files);
    cli_json_u64(json, "bytes", report->offload_bytes);
    cli_json_bool(json, "kept", report->offload_kept);
    cli_json_close(json, '}');
}

/* null without a pass. */
static void put_pass(cli_json *json, const struct loaded *l)
{
    if (l->pass_blocks == 0) {
        cli_json_null(json, "pass");
        return;
    }
    cli_json_open(json, "pass", '{');
    cli_json_u64(json, "blocks", l->pass_blocks);
    cli_json_u64(json, "read_bytes", l->pass.read_bytes);
    cli_json_u64(json, "mapped_bytes", l->pass.mapped_bytes);
    cli_json_u64(json, "budget_bytes", l->pass.budget_bytes);
    cli_json_u64(json, "peak_bytes", l->pass.peak_bytes);
    cli_json_u64(json, "least_bytes", l->pass.least_bytes);
    cli_json_u64(json, "most_bytes", l->pass.most_bytes);
    cli_json_double(json, "seconds", l->pass_seconds);
    cli_json_close(json, '}');
}

/* `err` is NULL, or goes into the same document: a refused load has a report too. */
static void print_json(const cli_run *run, const struct loaded *l, const heft_error *err)
{
    const heft_load_report *report = l->report;
    cli_json json = {.out = stdout};
    cli_json_open(&json, NULL, '{');
    if (err) {
        cli_json_error(&json, err);
    }
    cli_json_string(&json, "class", report->class_name);
    cli_json_string(&json, "model_type", report->model_type);
    cli_json_u64(&json, "parameters", report->parameters);
    cli_json_u64(&json, "bytes", report->bytes);
    cli_json_string(&json, "dtype", heft_dtype_name(report->dtype));
    cli_put_quantization(&json, heft_source_quantization(l->source));
    cli_json_string(&json, "mode", report->mode);
    cli_json_string(&json, "strategy", report->strategy);
    cli_json_strings(&json, "missing", report->missing, report->missing_count);
    cli_json_strings(&json, "unexpected", report->unexpected, report->unexpected_count);
    put_mismatches(&json, report);
    cli_json_strings(&json, "initialized", report->initialized, report->initialized_count);
    cli_json_open(&json, "tied", '[');
    for (size_t i = 0; i < report->tied_count; i++) {
        cli_json_strings(&json, NULL, report->tied[i].names, report->tied[i].count);
    }
    cli_json_close(&json, ']');
    put_device_map(&json, l->plan);
    put_offload(&json, run, report);
    cli_json_u64(&json, "mapped_bytes", report->mapped_bytes);
    cli_json_u64(&json, "copied_bytes", report->copied_bytes);
    cli_json_u64(&json, "shared_bytes", report->shared_bytes);
    cli_json_u64(&json, "disk_bytes", report->disk_bytes);
    cli_json_u64(&json, "initialized_bytes", report->initialized_bytes);
    cli_json_u64(&json, "unaligned_bytes", report->unaligned_bytes);
    cli_json_u64(&json, "unaligned_tensors", report->unaligned_count);
    cli_json_open(&json, "warnings", '[');
    for (size_t i = 0; i < report->warning_count; i++) {
        cli_json_string(&json, NULL, report->warnings[i]);
    }
    cli_plan_put_warnings(&json, l->plan);
    if (*l->pass_warning) {
        cli_json_string(&json, NULL, l->pass_warning);
    }
    cli_json_close(&json, ']');
    put_pass(&json, l);
    cli_json_double(&json, "seconds", l->open_seconds + report->seconds);
    cli_json_memory(&json, "memory", &run->memory);
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

/* ---- text ------------------------------------------------------------------------------------ */
static bool add_rows(cli_table *table, const char *what, const char *const *names,
                     const char *const *notes, size_t count)
{
    size_t folded = 0;
    cli_folded *rows = cli_names_fold(names, notes, count, &folded, NULL);
    for (size_t i = 0; rows && i < folded; i++) {
        cli_table_add(table, what);
        cli_table_add(table, rows[i].name);
        free(rows[i].name); /* names of a hostile file take as much as the file */
        rows[i].name = NULL;
        cli_table_add(table, rows[i].note ? rows[i].note : "");
    }
    cli_names_free(rows, folded);
    return rows != NULL;
}

static bool add_mismatches(cli_table *table, const heft_load_report *report)
{
    const size_t count = report->mismatched_count;
    const char **names = calloc(count + 1, sizeof *names);
    char **notes = calloc(count + 1, sizeof *notes);
    bool good = names && notes;
    for (size_t i = 0; good && i < count; i++) {
        const heft_mismatch *mismatch = &report->mismatched[i];
        char theirs[256], ours[256];
        cli_shape(mismatch->checkpoint_shape, mismatch->checkpoint_rank, theirs);
        cli_shape(mismatch->model_shape, mismatch->model_rank, ours);
        names[i] = mismatch->name;
        good = asprintf(&notes[i], "%s in the checkpoint, %s in the model", theirs, ours) >= 0;
    }
    good = good && add_rows(table, "MISMATCH   ", names, (const char *const *)notes, count);
    for (size_t i = 0; notes && i < count; i++) {
        free(notes[i]);
    }
    free(notes);
    free(names);
    return good;
}

static bool print_names(const heft_load_report *report)
{
    static const char *const titles[] = {"", "", ""};
    cli_table table = {.titles = titles, .columns = 3};
    bool good =
        add_rows(&table, "UNEXPECTED ", report->unexpected, NULL, report->unexpected_count) &&
        add_rows(&table, "MISSING    ", report->missing, NULL, report->missing_count) &&
        add_mismatches(&table, report);
    return cli_table_print(&table, 0, stdout) && good;
}

static void print_ties(const heft_load_report *report)
{
    for (size_t i = 0; i < report->tied_count; i++) {
        printf("tied         ");
        for (size_t k = 0; k < report->tied[i].count; k++) {
            fputs(k ? " = " : "", stdout);
            cli_put(stdout, report->tied[i].names[k]);
        }
        putchar('\n');
    }
}

static bool print_text(const cli_run *run, const struct loaded *l)
{
    const heft_load_report *report = l->report;
    char number[32], bytes[32], memory[128];
    printf("class        ");
    cli_put(stdout, report->class_name);
    printf(" (");
    cli_put(stdout, report->model_type);
    printf(")\nparameters   %s\n", cli_grouped(report->parameters, number));
    printf("size         %s (%s bytes)\n", cli_bytes(report->bytes, bytes),
           cli_grouped(report->bytes, number));
    printf("dtype        %s\n", heft_dtype_name(report->dtype));
    cli_print_quantization("quantized    ", heft_source_quantization(l->source));
    printf("mode         %s\nstrategy     ", report->mode);
    cli_put(stdout, report->strategy);
    putchar('\n');
    if (!print_names(report)) {
        return false;
    }
    printf("initialized  %zu tensor%s\n", report->initialized_count,
           report->initialized_count == 1 ? "" : "s");
    print_ties(report);
    if (run->values[OPTION_OFFLOAD_FOLDER]) {
        printf("offloaded    %zu tensors, %zu of them to .dat files (%s bytes)%s\n",
               report->offload_entries, report->offload_files,
               cli_grouped(report->offload_bytes, number),
               report->offload_kept ? ", which already existed" : "");
    }
    printf("time         %.3f s\n", l->open_seconds + report->seconds);
    if (l->pass_blocks > 0) {
        printf("pass         %.3f s over %zu blocks, %s bytes read\n", l->pass_seconds,
               l->pass_blocks, cli_grouped(l->pass.read_bytes, number));
    }
    printf("memory       %s\n", cli_memory_text(&run->memory, memory));
    return true;
}

/* ---- the command ----------------------------------------------------------------------------- */
static bool read_options(const cli_run *run, struct loaded *l, heft_error *err)
{
    heft_load_options *request = &l->request;
    l->where = HEFT_SIZED(heft_checkpoint_options);
    *request = HEFT_SIZED(heft_load_options);
    request->strict = run->values[OPTION_STRICT] != NULL;
    request->ignore_mismatched_sizes = run->values[OPTION_IGNORE_MISMATCHED_SIZES] != NULL;
    request->allow_missing = run->values[OPTION_ALLOW_MISSING] != NULL;
    request->touch = run->values[OPTION_TOUCH] != NULL;
    request->over_limit = run->values[OPTION_OVER_LIMIT] != NULL;
    request->offload_folder = run->values[OPTION_OFFLOAD_FOLDER];
    if (request->offload_folder && !run->values[OPTION_DEVICE_MAP] &&
        !run->values[OPTION_MAX_MEMORY]) {
        return cli_refuse(err, "--offload-folder",
                          "requires a device map: --device-map or --max-memory");
    }
    l->where.variant = run->values[OPTION_VARIANT];
    l->where.subfolder = run->values[OPTION_SUBFOLDER];
    const bool good = cli_value_dtypes(run, OPTION_DTYPE_OF, OPTION_KEEP_F32, &l->dtypes, err);
    request->dtypes = l->dtypes.list;
    request->dtype_count = l->dtypes.count;
    return good && cli_value_dtype(run, OPTION_DTYPE, true, &request->dtype, err) &&
           cli_value_mode(run, OPTION_MODE, &request->mode, err) &&
           cli_value_format(run, OPTION_FORMAT, &l->where.prefer, err) &&
           cli_value_seed(run, OPTION_SEED, &request->seed, err);
}

/* The report of a load that went well (err is NULL) or was refused for what the report says. */
static int print_report(cli_run *run, const struct loaded *l, const heft_error *err)
{
    for (size_t i = 0; i < l->report->warning_count; i++) {
        cli_warn(run, l->report->warnings[i]);
    }
    if (l->plan && !cli_plan_warn(run, l->plan)) {
        return cli_fail_nomem(run);
    }
    if (*l->pass_warning) {
        cli_warn(run, l->pass_warning);
    }
    if (run->json) {
        print_json(run, l, err);
        return err ? heft_status_exit_code(err->status) : 0;
    }
    if ((!run->quiet || err) && !print_text(run, l)) {
        return cli_fail_nomem(run);
    }
    return err ? cli_fail(run, err) : 0;
}

/* ---- device maps ----------------------------------------------------------------------------- */
/* The plan that --device-map or --max-memory ask for; NULL without them. */
static heft_status make_plan(const cli_run *run, struct loaded *l, heft_error *err)
{
    heft_plan_options wanted = HEFT_OPTIONS(heft_plan_options, .strategy = HEFT_STRATEGY_AUTO);
    heft_budget *budgets = NULL;
    heft_model *skeleton = NULL;
    if (!run->values[OPTION_DEVICE_MAP] && !run->values[OPTION_MAX_MEMORY]) {
        return HEFT_OK;
    }
    heft_status status = HEFT_INVALID_ARG;
    if (cli_value_map(run, OPTION_DEVICE_MAP, &wanted, err) &&
        cli_value_budgets(run, OPTION_MAX_MEMORY, &budgets, &wanted.budget_count, err)) {
        wanted.budgets = budgets;
        status = heft_model_skeleton(l->source, &l->request, &skeleton, err);
    }
    if (status == HEFT_OK) {
        status = heft_plan_new(skeleton, &wanted, &l->plan, err);
    }
    if (status == HEFT_OK) {
        l->request.plan = l->plan;
        l->request.touch = false; /* blocks on the disk come in one after the other */
    }
    heft_model_free(skeleton);
    free(budgets);
    return status;
}

/* Every unit once, in what the processor's budget leaves. */
static heft_status pass_over(struct loaded *l, heft_error *err)
{
    double one, two;
    const double budget = heft_plan_stream(l->plan, &one, &two);
    const heft_residency_options wanted =
        HEFT_OPTIONS(heft_residency_options, .budget_bytes = budget > 1 ? (uint64_t)budget : 1,
                     .over_limit = l->request.over_limit);
    heft_residency *residency = NULL;
    const double started = cli_now();
    heft_status status = heft_residency_new(l->model, &wanted, &residency, err);
    if (status == HEFT_OK && heft_residency_warning(residency)) {
        snprintf(l->pass_warning, sizeof l->pass_warning, "%s", heft_residency_warning(residency));
    }
    for (size_t i = 0; status == HEFT_OK && i < heft_residency_count(residency); i++) {
        heft_lease *lease = NULL;
        status = heft_residency_acquire(residency, &i, 1, &lease, err);
        heft_lease_free(lease);
        l->pass_blocks += status == HEFT_OK;
    }
    if (status == HEFT_OK) {
        l->pass = HEFT_SIZED(heft_residency_counts);
        status = heft_residency_facts(residency, &l->pass, err);
    }
    l->pass_seconds = cli_now() - started;
    heft_residency_free(residency);
    return status;
}

static heft_status load(cli_run *run, struct loaded *l, heft_error *err)
{
    const heft_source_options how = HEFT_OPTIONS(
        heft_source_options, .class_name = run->values[OPTION_CLASS], .checkpoint = &l->where,
        .dequantize = run->values[OPTION_DEQUANTIZE] != NULL, .dtype = l->request.dtype);
    const double started = cli_now();
    heft_status status = heft_source_open(run->ctx, run->arguments[0], &how, &l->source, err);
    l->open_seconds = cli_now() - started;
    if (status == HEFT_OK) {
        status = make_plan(run, l, err);
    }
    if (status == HEFT_OK) {
        status = heft_model_load(l->source, &l->request, &l->model, &l->report, err);
    }
    if (status == HEFT_OK && l->plan && run->values[OPTION_TOUCH]) {
        status = pass_over(l, err);
    }
    cli_memory_finish(&run->memory); /* while the model is there */
    cli_progress_clear(run);
    return status;
}

static int run_load(cli_run *run)
{
    struct loaded l = {0};
    heft_error err = {0};
    if (!read_options(run, &l, &err)) {
        cli_dtypes_fini(&l.dtypes);
        return cli_fail(run, &err);
    }
    const heft_status status = load(run, &l, &err);
    int code;
    if (status == HEFT_OK) {
        code = print_report(run, &l, NULL);
    } else if (status == HEFT_MISMATCH && l.report) {
        code = print_report(run, &l, &err);
    } else {
        code = cli_fail(run, &err);
    }
    heft_load_report_free(l.report);
    heft_model_free(l.model);
    heft_plan_free(l.plan);
    heft_source_close(l.source);
    cli_dtypes_fini(&l.dtypes);
    return code;
}

const cli_command cli_cmd_load = {
    .name = "load",
    .arguments = "PATH",
    .argument_count = 1,
    .summary = "Load a model and report the result",
    .about = "PATH is a checkpoint folder, a weight file or an index file, with a config.json in "
             "the same folder.\n",
    .options = options,
    .option_count = OPTION_COUNT,
    .run = run_load,
};
