/* cmd_plan.c - heft plan PATH: which module would live where, whether all fits, and what each dtype would
 * need. */
#include "cli/running.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define OPTIONS(X)                                                                                 \
    X(STRATEGY, "strategy", "S",                                                                   \
      "auto, balanced, balanced_low_0, sequential, best, a device (cpu, 0, cuda:0), a device map " \
      "({\"\": 0}), or a file with one (default: auto)")                                           \
    X(MAX_MEMORY, "max-memory", "M",                                                               \
      "memory per device: 0=20GB,1=20GB,cpu=30GB (default for cpu: available memory)")             \
    X(CONTEXT, "context", "N",                                                                     \
      "keep room for the key/value cache and the activations of N tokens")                         \
    X(BATCH, "batch", "B", "of B sequences (default: 1)")                                          \
    X(RESERVE, "reserve", "S",                                                                     \
      "memory that stays free on each accelerator (default: a tenth of it; 0 with --context)")     \
    X(MEMORY, "memory", "SIZE",                                                                    \
      "how long heft run --memory SIZE would take (default: with what the machine has left)")      \
    X(CHECK, "check", NULL, "exit with 1 if the model does not fit in memory")                     \
    X(DTYPE, "dtype", "D",                                                                         \
      "dtype of the weights; int4, int8 or fp8: as if they were quantized (default: from the "     \
      "config, else from the files)")                                                              \
    X(DEQUANTIZE, "dequantize", NULL, "plan as if quantized weights were dequantized")             \
    X(DTYPE_OF, "dtype-of", "A=D,B=D", "dtype of modules, classes or tensors by name: wo=float32") \
    X(KEEP_F32, "keep-f32", "A,B", "the same as --dtype-of A=float32,B=float32")                   \
    X(CLASS, "class", "NAME",                                                                      \
      "model class: LlamaForCausalLM, AutoModel, ... (default: from the config)")                  \
    X(NO_SPLIT, "no-split", "A,B",                                                                 \
      "classes or modules that are never split; '': none (default: the family's blocks)")          \
    X(OFFLOAD_BUFFERS, "offload-buffers", NULL, "do not warn about buffers on cpu and disk")       \
    X(FALLBACK_ALLOCATION, "fallback-allocation", NULL,                                            \
      "move a later module forward if a device would stay empty")                                  \
    X(SVG, "svg", "FILE", "write an SVG image of the devices and their modules")                   \
    X(VARIANT, "variant", "V", "read model.V.safetensors, ...")                                    \
    X(SUBFOLDER, "subfolder", "DIR", "read the checkpoint in PATH/DIR")

enum { OPTIONS(CLI_OPTION_ID) OPTION_COUNT };

static const cli_option options[] = {OPTIONS(CLI_OPTION_ROW)};

struct request {
    heft_load_options load;
    heft_checkpoint_options where;
    heft_source_options source;
    heft_plan_options plan;
    heft_budget *budgets;  /* owned */
    const char **no_split; /* owned; texts lie in `words` */
    char *words;           /* owned */
    uint64_t memory_bytes; /* of a run; 0: no maximum */
    cli_dtypes dtypes;
};

/* What is told. */
struct answer {
    heft_plan *plan;         /* owned */
    char *class_name, *type; /* owned */
    char *adapter;           /* owned; the warning of one; NULL: none */
    heft_dtype dtype;        /* of what stays plain */
    uint64_t bytes;
    heft_load_needs needs;
    cli_forecast forecast;
};

#define CONTEXT_TOKENS 512 /* of a run's input without --context */

/* ---- what is asked --------------------------------------------------------------------------- */
/* "no-split" names, cut at commas. */
static bool read_no_split(const cli_run *run, struct request *request, heft_error *err)
{
    const char *text = run->values[OPTION_NO_SPLIT];
    if (!text) {
        return true;
    }
    request->words = strdup(text);
    request->no_split = calloc(strlen(text) + 1, sizeof *request->no_split);
    if (!request->words || !request->no_split) {
        return cli_refuse(err, "--no-split", "cannot allocate memory for the names");
    }
    for (char *rest = NULL, *word = strtok_r(request->words, ",", &rest); word;
         word = strtok_r(NULL, ",", &rest)) {
        request->no_split[request->plan.no_split_count++] = word;
    }
    request->plan.no_split = request->no_split;
    return true;
}

static const struct quantized {
    const char *name, *scales;
    heft_plan_quantization how;
} quantized[] = {
    {"int4", "one 16-bit scale for each 128 weights of a row", HEFT_PLAN_INT4},
    {"int8", "one 16-bit scale for each row",                  HEFT_PLAN_INT8},
    {"fp8",  "one float32 scale for each block of 128 x 128",  HEFT_PLAN_FP8 },
};

/* The row of `--dtype`; NULL if it is a plain dtype. */
static const struct quantized *find_quantized(const cli_run *run)
{
    const char *text = run->values[OPTION_DTYPE];
    for (size_t i = 0; text && i < sizeof quantized / sizeof quantized[0]; i++) {
        if (strcmp(text, quantized[i].name) == 0) {
            return &quantized[i];
        }
    }
    return NULL;
}

/* Without --context and --reserve, a tenth of each accelerator. */
static bool read_room(const cli_run *run, struct request *request, heft_error *err)
{
    uint64_t reserve = 0;
    heft_plan_options *plan = &request->plan;
    if (!cli_value_count(run, OPTION_CONTEXT, &plan->context, err) ||
        !cli_value_count(run, OPTION_BATCH, &plan->batch, err) ||
        !cli_value_size_or_none(run, OPTION_RESERVE, &reserve, err)) {
        return false;
    }
    if (!cli_value_size(run, OPTION_MEMORY, &request->memory_bytes, err)) {
        return false;
    }
    if (request->memory_bytes && request->memory_bytes <= CLI_RUN_BESIDE) {
        return cli_refuse(err, "--memory", "is not more than the %u MiB that heft itself takes",
                          (unsigned)(CLI_RUN_BESIDE >> 20));
    }
    if (run->values[OPTION_BATCH] && !run->values[OPTION_CONTEXT]) {
        return cli_refuse(err, "--batch", "requires --context");
    }
    plan->reserve_bytes = (double)reserve;
    plan->reserve_share = run->values[OPTION_RESERVE] || run->values[OPTION_CONTEXT] ? 0 : 0.1;
    return true;
}

static bool read_dtype(const cli_run *run, struct request *request, heft_error *err)
{
    const struct quantized *asked = find_quantized(run);
    if (!asked) {
        return cli_value_dtype(run, OPTION_DTYPE, true, &request->load.dtype, err);
    }
    request->plan.quantize = asked->how;
    request->source.dequantize =
        true; /* weights that are quantized otherwise count as plain ones */
    return true;
}

static bool read_options(const cli_run *run, struct request *request, heft_error *err)
{
    request->plan = HEFT_SIZED(heft_plan_options);
    request->where = HEFT_SIZED(heft_checkpoint_options);
    request->load = HEFT_SIZED(heft_load_options);
    request->source = HEFT_OPTIONS(heft_source_options, .checkpoint = &request->where,
                                   .class_name = run->values[OPTION_CLASS],
                                   .dequantize = run->values[OPTION_DEQUANTIZE] != NULL);
    request->where.variant = run->values[OPTION_VARIANT];
    request->where.subfolder = run->values[OPTION_SUBFOLDER];
    bool good = read_dtype(run, request, err) && read_room(run, request, err) &&
                cli_value_map(run, OPTION_STRATEGY, &request->plan, err) &&
                cli_value_budgets(run, OPTION_MAX_MEMORY, &request->budgets,
                                  &request->plan.budget_count, err) &&
                read_no_split(run, request, err) &&
                cli_value_dtypes(run, OPTION_DTYPE_OF, OPTION_KEEP_F32, &request->dtypes, err);
    request->plan.dtypes = request->dtypes.list;
    request->plan.dtype_count = request->dtypes.count;
    bool casts = true; /* a load can cast to these, too */
    for (size_t i = 0; i < request->dtypes.count; i++) {
        casts = casts && heft_dtype_is_floating(request->dtypes.list[i].dtype);
    }
    request->load.dtypes = casts ? request->dtypes.list : NULL;
    request->load.dtype_count = casts ? request->dtypes.count : 0;
    request->plan.budgets = request->budgets;
    request->source.dtype = request->load.dtype;
    request->plan.offload_buffers = run->values[OPTION_OFFLOAD_BUFFERS] != NULL;
    request->plan.fallback_allocation = run->values[OPTION_FALLBACK_ALLOCATION] != NULL;
    return good;
}

/* ---- JSON ------------------------------------------------------------------------------------ */
static void put_bytes(cli_json *json, const char *key, double bytes)
{
    if (isfinite(bytes)) {
        cli_json_u64(json, key, (uint64_t)bytes);
    } else {
        cli_json_null(json, key);
    }
}

static void put_known(cli_json *json, const char *key, bool known, double seconds)
{
    if (known) {
        cli_json_double(json, key, seconds);
    } else {
        cli_json_null(json, key);
    }
}

static void put_device(cli_json *json, const char *key, int32_t device)
{
    char name[CLI_DEVICE_TEXT];
    if (device >= 0) {
        cli_json_u64(json, key, (uint64_t)device);
    } else {
        cli_json_string(json, key, cli_device(device, name));
    }
}

struct dtype_row {
    const char *name;
    double bytes_each, total, largest, training; /* training < 0: none */
};

#define DTYPES 5

/* As accelerate's estimate has it: Adam keeps four times the float32 weights; of half precision twice
 * as much, since optimizer and gradients stay in float32. */
static void measure_dtypes(heft_plan *plan, struct dtype_row rows[DTYPES])
{
    static const struct dtype_row start[DTYPES] = {
        {"float32",  4,   0, 0, 4 },
        {"bfloat16", 2,   0, 0, 4 },
        {"float16",  2,   0, 0, 4 },
        {"int8",     1,   0, 0, -1},
        {"int4",     0.5, 0, 0, -1},
    };
    for (size_t i = 0; i < DTYPES; i++) {
        rows[i] = start[i];
        heft_plan_sizes(plan, rows[i].bytes_each, &rows[i].total, &rows[i].largest);
        rows[i].training = rows[i].training < 0 ? -1 : rows[i].training * rows[i].total;
    }
}

static void put_devices(cli_json *json, const heft_plan *plan)
{
    char name[CLI_DEVICE_TEXT];
    heft_budget budget;
    double placed;
    cli_json_open(json, "max_memory", '{');
    for (size_t i = 0; heft_plan_device(plan, i, &budget, &placed); i++) {
        put_bytes(json, cli_device(budget.device, name), budget.bytes);
    }
    cli_json_close(json, '}');
    cli_json_open(json, "placed_bytes", '{');
    for (size_t i = 0; heft_plan_device(plan, i, &budget, &placed); i++) {
        put_bytes(json, cli_device(budget.device, name), placed);
    }
    cli_json_close(json, '}');
}

/* What `heft load` with this map will take, and a pass over the blocks on the disk beside it. */
static void put_needs(cli_json *json, const struct answer *answer)
{
    const heft_load_needs *needs = &answer->needs;
    double one, two;
    const double budget = heft_plan_stream(answer->plan, &one, &two);
    cli_json_u64(json, "peak_bytes", needs->peak_bytes);
    cli_json_u64(json, "least_bytes", needs->least_bytes);
    cli_json_open(json, "peak", '{');
    cli_json_u64(json, "resident_bytes", needs->resident_bytes);
    cli_json_u64(json, "beside_bytes", needs->beside_bytes);
    cli_json_u64(json, "staging_bytes", needs->staging_bytes);
    cli_json_u64(json, "program_bytes", needs->program_bytes);
    cli_json_u64(json, "mapped_bytes", needs->mapped_bytes);
    cli_json_u64(json, "disk_bytes", needs->disk_bytes);
    cli_json_u64(json, "away_bytes", needs->away_bytes);
    cli_json_u64(json, "unaligned_bytes", needs->unaligned_bytes);
    cli_json_close(json, '}');
    cli_json_open(json, "stream", '{');
    put_bytes(json, "one_bytes", one);
    put_bytes(json, "two_bytes", two);
    put_bytes(json, "budget_bytes", budget);
    cli_json_u64(json, "staging_bytes", needs->stream_staging_bytes);
    put_bytes(json, "peak_bytes", (double)needs->stream_peak_bytes + budget);
    put_bytes(json, "least_bytes",
              one > budget ? (double)INFINITY : (double)needs->least_bytes + one);
    cli_json_close(json, '}');
}

static void put_rooms(cli_json *json, const heft_plan *plan)
{
    char name[CLI_DEVICE_TEXT];
    heft_budget budget;
    heft_plan_room room = HEFT_SIZED(heft_plan_room);
    double placed, sum = 0;
    cli_json_open(json, "reserve", '{');
    for (size_t i = 0;
         heft_plan_device(plan, i, &budget, &placed) && heft_plan_get_room(plan, i, &room); i++) {
        cli_json_open(json, cli_device(budget.device, name), '{');
        put_bytes(json, "cache_bytes", room.cache_bytes);
        put_bytes(json, "activation_bytes", room.activation_bytes);
        put_bytes(json, "free_bytes", room.reserve_bytes);
        put_bytes(json, "given_bytes", room.given_bytes);
        cli_json_close(json, '}');
        sum += room.cache_bytes + room.activation_bytes + room.reserve_bytes;
    }
    cli_json_close(json, '}');
    put_bytes(json, "reserve_bytes", sum);
}

/* What does not fit, and what is assumed. */
static void put_verdict(cli_json *json, const cli_run *run, const struct answer *answer)
{
    const struct quantized *how = find_quantized(run);
    double bytes = 0;
    int32_t device;
    const heft_plan_verdict verdict = heft_plan_fits(answer->plan, &device, &bytes);
    if (verdict == HEFT_PLAN_UNKNOWN) {
        cli_json_null(json, "fits");
    } else {
        cli_json_bool(json, "fits", verdict == HEFT_PLAN_FITS);
    }
    put_bytes(json, "missing_bytes", bytes);
    put_rooms(json, answer->plan);
    if (how) {
        cli_json_open(json, "quantize", '{');
        cli_json_string(json, "dtype", how->name);
        cli_json_string(json, "scales", how->scales);
        cli_json_string(json, "quantized", "matrices in the layers");
        cli_json_string(json, "plain", "embeddings, norms, routers, biases and heads");
        cli_json_string(json, "plain_dtype", heft_dtype_name(answer->dtype));
        cli_json_close(json, '}');
    } else {
        cli_json_null(json, "quantize");
    }
}

static void put_dtypes(cli_json *json, heft_plan *plan)
{
    struct dtype_row rows[DTYPES];
    measure_dtypes(plan, rows);
    cli_json_open(json, "dtypes", '[');
    for (size_t i = 0; i < DTYPES; i++) {
        cli_json_open(json, NULL, '{');
        cli_json_string(json, "dtype", rows[i].name);
        put_bytes(json, "total_bytes", rows[i].total);
        put_bytes(json, "largest_block_bytes", rows[i].largest);
        put_bytes(json, "training_bytes",
                  rows[i].training < 0 ? (double)INFINITY : rows[i].training);
        cli_json_close(json, '}');
    }
    cli_json_close(json, ']');
}

/* How long `heft run` takes, and what it is made of. */
static void put_seconds(cli_json *json, const cli_forecast *f)
{
    const heft_prediction *step = &f->step, *input = &f->input;
    if (!f->known) {
        cli_json_null(json, "seconds");
        cli_json_string(json, "seconds_unknown", f->why);
        cli_json_null(json, "run");
        return;
    }
    const bool goes_on = step->continues;
    cli_json_open(json, "seconds", '{');
    cli_json_double(json, "ready", step->ready_seconds);
    put_known(json, "per_token", goes_on, step->seconds);
    if (goes_on) {
        cli_json_u64(json, "best_batch", step->best_batch);
    } else {
        cli_json_null(json, "best_batch");
    }
    put_known(json, "per_token_at_best_batch", goes_on,
              step->best_batch_seconds / (double)step->best_batch);
    put_known(json, "prefill", f->has_input, input->seconds);
    cli_json_u64(json, "prefill_tokens", f->context);
    cli_json_close(json, '}');
    cli_json_null(json, "seconds_unknown");
    cli_json_open(json, "run", '{');
    cli_json_string(json, "weights", f->weights);
    cli_json_string(json, "bound", cli_bound_name(step->bound));
    cli_json_u64(json, "peak_bytes", f->peak_bytes);
    cli_json_u64(json, "read_bytes_per_token", step->read_bytes);
    cli_json_double(json, "read_seconds", step->read_seconds);
    cli_json_double(json, "compute_seconds", step->compute_seconds);
    cli_json_double(json, "disk_rate", step->disk_rate);
    cli_json_double(json, "cached", step->cached);
    cli_json_double(json, "memory_rate", step->memory_rate);
    cli_json_double(json, "compute_rate", step->compute_rate);
    cli_json_close(json, '}');
}

static void print_json(const cli_run *run, const struct answer *answer)
{
    heft_plan *plan = answer->plan;
    cli_json json = {.out = stdout};
    double bytes;
    int32_t device;
    cli_json_open(&json, NULL, '{');
    cli_json_string(&json, "class", answer->class_name);
    cli_json_string(&json, "model_type", answer->type);
    cli_json_open(&json, "device_map", '{');
    for (size_t i = 0; i < heft_plan_count(plan); i++) {
        const char *module = heft_plan_entry(plan, i, &device, &bytes);
        put_device(&json, module, device);
    }
    cli_json_close(&json, '}');
    put_devices(&json, plan);
    cli_json_open(&json, "largest_block", '{');
    cli_json_string(&json, "name", heft_plan_largest(plan, &bytes));
    put_bytes(&json, "bytes", bytes);
    cli_json_close(&json, '}');
    cli_json_string(&json, "budget", heft_plan_reason(plan));
    put_verdict(&json, run, answer);
    if (find_quantized(run)) { /* there is nothing to load */
        cli_json_null(&json, "peak_bytes");
        cli_json_null(&json, "least_bytes");
        cli_json_null(&json, "peak");
        cli_json_null(&json, "stream");
    } else {
        put_needs(&json, answer);
    }
    put_dtypes(&json, plan);
    cli_json_open(&json, "warnings", '[');
    cli_plan_put_warnings(&json, plan);
    if (answer->adapter) {
        cli_json_string(&json, NULL, answer->adapter);
    }
    if (run->values[OPTION_CONTEXT] && !heft_plan_cache_known(plan)) {
        cli_json_string(&json, NULL,
                        "the cache of this model type is unknown: no room is kept for it");
    }
    cli_json_close(&json, ']');
    put_seconds(&json, &answer->forecast);
    cli_json_double(&json, "plan_seconds", cli_now() - run->started);
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

/* ---- text ------------------------------------------------------------------------------------ */
/* One device's modules, numbers folded. */
static bool print_device(const heft_plan *plan, int32_t device)
{
    const size_t count = heft_plan_count(plan);
    const char **names = calloc(count + 1, sizeof *names);
    char text[CLI_DEVICE_TEXT];
    size_t own = 0, folded = 0;
    for (size_t i = 0; names && i < count; i++) {
        int32_t on;
        double bytes;
        const char *name = heft_plan_entry(plan, i, &on, &bytes);
        if (on == device) {
            names[own++] = *name ? name : "(the whole model)";
        }
    }
    cli_folded *rows = names ? cli_names_fold(names, NULL, own, &folded, NULL) : NULL;
    for (size_t i = 0; rows && i < folded; i++) {
        printf("  ");
        cli_put(stdout, rows[i].name);
        printf(" → %s\n", cli_device(device, text));
    }
    bool good = rows != NULL;
    cli_names_free(rows, folded);
    free(names);
    return good;
}

/* "fits" or why not. */
static void print_verdict(const struct answer *answer)
{
    char size[32], name[CLI_DEVICE_TEXT];
    int32_t device;
    double bytes;
    const heft_plan_verdict verdict = heft_plan_fits(answer->plan, &device, &bytes);
    cli_bytes((uint64_t)bytes, size);
    switch (verdict) {
    case HEFT_PLAN_FITS:
        printf("fits         yes\n");
        break;
    case HEFT_PLAN_ON_DISK:
        printf("fits         no: %s would be on disk\n", size);
        break;
    case HEFT_PLAN_OVER:
        printf("fits         no: %s more is needed on %s\n", size, cli_device(device, name));
        break;
    case HEFT_PLAN_UNKNOWN:
        printf("fits         unknown: %s would be on %s, for which --max-memory gives no budget\n",
               size, cli_device(device, name));
        break;
    }
}

/* " 1.2 GB for the cache", after a comma unless it is the first; nothing for 0 bytes. */
static void print_part(double bytes, const char *what, bool *any)
{
    char size[32];
    if (bytes > 0) {
        printf("%s %s %s", *any ? "," : "", cli_bytes((uint64_t)bytes, size), what);
        *any = true;
    }
}

/* What is kept besides weights, and on which devices. */
static void print_rooms(const cli_run *run, const heft_plan *plan)
{
    char name[CLI_DEVICE_TEXT];
    const char *title = "reserve     ";
    heft_budget budget;
    heft_plan_room room = HEFT_SIZED(heft_plan_room);
    double placed;
    for (size_t i = 0;
         heft_plan_device(plan, i, &budget, &placed) && heft_plan_get_room(plan, i, &room); i++) {
        if (room.cache_bytes + room.activation_bytes + room.reserve_bytes > 0) {
            bool any = false;
            printf("%s %s:", title, cli_device(budget.device, name));
            print_part(room.cache_bytes, "for the key/value cache", &any);
            print_part(room.activation_bytes, "for activations", &any);
            print_part(room.reserve_bytes, "stay free", &any);
            putchar('\n');
            title = "            ";
        }
    }
    if (*title == 'r') {
        printf("reserve      none%s\n",
               run->values[OPTION_CONTEXT] ? "" : "; --context N keeps room for N tokens");
    }
}

static void print_quantized(const cli_run *run, const struct answer *answer)
{
    const struct quantized *how = find_quantized(run);
    if (how) {
        printf("quantized    matrices in the layers to %s, %s;\n             embeddings, norms, "
               "routers, biases and heads stay %s\n",
               how->name, how->scales, heft_dtype_name(answer->dtype));
    }
}

static bool print_devices(const heft_plan *plan)
{
    char name[CLI_DEVICE_TEXT], used[32], limit[32];
    heft_budget budget;
    double placed;
    bool good = true;
    for (size_t i = 0; good && heft_plan_device(plan, i, &budget, &placed); i++) {
        if (placed == 0 && budget.device == HEFT_DEVICE_DISK) {
            continue;
        }
        printf("%-12s %s%s%s\n", cli_device(budget.device, name), cli_bytes((uint64_t)placed, used),
               isfinite(budget.bytes) ? " of " : ", no limit",
               isfinite(budget.bytes) ? cli_bytes((uint64_t)budget.bytes, limit) : "");
        good = print_device(plan, budget.device);
    }
    return good;
}

static void print_needs(const heft_plan *plan, const heft_load_needs *needs)
{
    char peak[32], least[32], resident[32], staging[32], program[32];
    double one, two;
    const double budget = heft_plan_stream(plan, &one, &two);
    printf("loading      %s at most, %s at least: %s for the model, %s for staging, %s for the "
           "program\n",
           cli_bytes(needs->peak_bytes, peak), cli_bytes(needs->least_bytes, least),
           cli_bytes(needs->resident_bytes, resident),
           cli_bytes(needs->beside_bytes + needs->staging_bytes, staging),
           cli_bytes(needs->program_bytes, program));
    if (one > budget) {
        printf("streaming    needs %s for one unit, but the CPU budget leaves %s\n",
               cli_bytes((uint64_t)one, peak), cli_bytes((uint64_t)budget, resident));
    } else if (one > 0) {
        printf("streaming    %s more at most, for %s at a time\n",
               cli_bytes((uint64_t)budget, peak), budget < two ? "one unit" : "two units");
    }
}

/* "850 ms", "1.2 s", "3.4 min" */
static const char *seconds_text(double seconds, char text[32])
{
    if (seconds < 1) {
        snprintf(text, 32, "%.3g ms", seconds * 1000);
    } else if (seconds < 120) {
        snprintf(text, 32, "%.3g s", seconds);
    } else {
        snprintf(text, 32, "%.3g min", seconds / 60);
    }
    return text;
}

static const char *wait_text(const heft_prediction *p)
{
    return p->bound == HEFT_BOUND_COMPUTE  ? "computing"
           : p->bound == HEFT_BOUND_MEMORY ? "reading from memory"
           : p->cached >= 0.5              ? "reading from the page cache"
                                           : "reading from the disk";
}

static void print_forecast(const cli_forecast *f)
{
    const heft_prediction *step = &f->step;
    char a[32], b[32], bytes[32];
    if (!f->known) {
        printf("running      unknown: ");
        cli_put(stdout, f->why);
        putchar('\n');
        return;
    }
    printf("running      ready in %s%s", seconds_text(step->ready_seconds, a),
           step->cached >= 0.5 ? " (the files are in the page cache)" : "");
    if (f->has_input) {
        printf(", %llu tokens of input in %s", (unsigned long long)f->context,
               seconds_text(f->input.seconds, b));
    }
    if (step->continues) {
        printf(", then %s a token (%s)", seconds_text(step->seconds, a), wait_text(step));
    }
    putchar('\n');
    if (step->continues && step->best_batch > 1) {
        printf("             a batch of %llu takes %s a step, %s for each of its tokens\n",
               (unsigned long long)step->best_batch, seconds_text(step->best_batch_seconds, a),
               seconds_text(step->best_batch_seconds / (double)step->best_batch, b));
    }
    printf("             %s of memory at most, weights %s\n", cli_bytes(f->peak_bytes, bytes),
           strcmp(f->weights, "disk") == 0 ? "stay in their files" : "in memory");
}

static bool print_text(const cli_run *run, const struct answer *answer)
{
    heft_plan *plan = answer->plan;
    char bytes[32], largest[32], training[32];
    double size;
    struct dtype_row rows[DTYPES];
    printf("class        ");
    cli_put(stdout, answer->class_name);
    printf(" (");
    cli_put(stdout, answer->type);
    printf(")\n");
    print_verdict(answer);
    print_quantized(run, answer);
    printf("budget       %s\n", heft_plan_reason(plan));
    print_rooms(run, plan);
    if (!print_devices(plan)) {
        return false;
    }
    const char *name = heft_plan_largest(plan, &size);
    printf("largest      ");
    cli_put(stdout, name);
    printf(", %s\n", cli_bytes((uint64_t)size, bytes));
    if (!find_quantized(run)) { /* there is nothing to load */
        print_needs(plan, &answer->needs);
    }
    print_forecast(&answer->forecast);
    measure_dtypes(plan, rows);
    printf("\n%-9s %10s %14s %19s\n", "dtype", "total", "largest block", "training with Adam");
    for (size_t i = 0; i < DTYPES; i++) {
        printf("%-9s %10s %14s %19s\n", rows[i].name, cli_bytes((uint64_t)rows[i].total, bytes),
               cli_bytes((uint64_t)rows[i].largest, largest),
               rows[i].training < 0 ? "-" : cli_bytes((uint64_t)rows[i].training, training));
    }
    return true;
}

/* ---- the command ----------------------------------------------------------------------------- */
static int print_plan(cli_run *run, const struct answer *answer)
{
    const heft_plan *plan = answer->plan;
    heft_error err = {0};
    if (run->values[OPTION_SVG] && !cli_plan_svg(run, plan, run->values[OPTION_SVG], &err)) {
        return cli_fail(run, &err);
    }
    if (!cli_plan_warn(run, plan)) {
        return cli_fail_nomem(run);
    }
    if (answer->adapter) {
        cli_warn(run, answer->adapter);
    }
    if (run->values[OPTION_CONTEXT] && !heft_plan_cache_known(plan)) {
        cli_warn(run, "the cache of this model type is unknown: no room is kept for it");
    }
    if (run->json) {
        print_json(run, answer);
    } else if (!run->quiet && !print_text(run, answer)) {
        return cli_fail_nomem(run);
    }
    const bool fits = heft_plan_fits(plan, NULL, NULL) == HEFT_PLAN_FITS;
    return run->values[OPTION_CHECK] && !fits ? CLI_EXIT_NO : 0;
}

static heft_status forecast(const cli_run *run, heft_source *source, const struct request *request,
                            struct answer *answer, heft_error *err)
{
    if (find_quantized(run)) {
        snprintf(answer->forecast.why, sizeof answer->forecast.why,
                 "weights that are quantized cannot be computed with");
        return HEFT_OK;
    }
    if (!heft_source_checkpoint(source)) {
        snprintf(answer->forecast.why, sizeof answer->forecast.why,
                 "without weights, it cannot be known how fast they are read");
        return HEFT_OK;
    }
    return cli_run_forecast(source, &request->load, answer->bytes, request->memory_bytes,
                            request->plan.context ? request->plan.context : CONTEXT_TOKENS,
                            &answer->forecast, err);
}

/* The skeleton is gone before the needs are computed, as it is when a load begins. */
static heft_status make_plan(const cli_run *run, struct request *request, struct answer *answer,
                             heft_error *err)
{
    heft_source *source = NULL;
    heft_model *skeleton = NULL;
    heft_status status =
        heft_source_open(run->ctx, run->arguments[0], &request->source, &source, err);
    const char *adapter = status == HEFT_OK ? cli_adapter_warning(source) : NULL;
    answer->adapter = adapter ? strdup(adapter) : NULL;
    if (adapter && !answer->adapter) {
        cli_refuse(err, "", "out of memory");
        status = err->status = HEFT_NOMEM;
    }
    if (status == HEFT_OK) {
        status = heft_model_skeleton(source, &request->load, &skeleton, err);
    }
    if (status == HEFT_OK) {
        status = heft_plan_new(skeleton, &request->plan, &answer->plan, err);
    }
    if (status == HEFT_OK) {
        answer->class_name = strdup(heft_model_class(skeleton));
        answer->type = strdup(heft_model_type(skeleton));
        answer->dtype = heft_model_dtype(skeleton);
        answer->bytes = heft_model_bytes(skeleton);
    }
    heft_model_free(skeleton);
    if (status == HEFT_OK) {
        request->load.plan = answer->plan;
        answer->needs = HEFT_SIZED(heft_load_needs);
        status = heft_model_needs(source, &request->load, &answer->needs, err);
    }
    if (status == HEFT_OK && (run->json || !run->quiet)) {
        status = forecast(run, source, request, answer, err);
    }
    heft_source_close(source);
    return status;
}

static int run_plan(cli_run *run)
{
    struct request request = {0};
    struct answer answer = {0};
    heft_error err = {0};
    int code;
    if (!read_options(run, &request, &err) || make_plan(run, &request, &answer, &err) != HEFT_OK) {
        code = cli_fail(run, &err);
    } else {
        code = answer.class_name && answer.type ? print_plan(run, &answer) : cli_fail_nomem(run);
    }
    heft_plan_free(answer.plan);
    free(answer.class_name);
    free(answer.type);
    free(answer.adapter);
    free(request.budgets);
    free(request.no_split);
    free(request.words);
    cli_dtypes_fini(&request.dtypes);
    return code;
}

const cli_command cli_cmd_plan = {
    .name = "plan",
    .arguments = "PATH",
    .argument_count = 1,
    .summary = "Show where each module would be placed, and the memory required",
    .about = "PATH is a checkpoint folder, a weight file, an index file or a config.json.\nSizes: "
             "KB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB are powers of 1024; a plain "
             "number is bytes.\nNames: classes, modules, suffixes of module paths, or paths with * "
             "in place of a number.\n",
    .options = options,
    .option_count = OPTION_COUNT,
    .dies_at_once = true,
    .run = run_plan,
};
