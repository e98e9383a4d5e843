/* cmd_convert.c - heft convert SRC DST: reshard, merge, cast, change the format.
 *
 * A safetensors file does not say in which order the state dict was. Where the config.json beside
 * it names a model that heft knows, the names are handed to the library in that model's order, and
 * the index gets its number of parameters. */
#include "cli/cli.h"

#include <stdlib.h>

#define OPTIONS(X)                                                                                 \
    X(MAX_SHARD_SIZE, "max-shard-size", "S", "200MB, 5GiB, ... (50GB)")                            \
    X(FORMAT, "format", "F", "safetensors, bin or offload (as the source)")                        \
    X(DTYPE, "dtype", "D", "cast floating-point tensors (as they are)")                            \
    X(VARIANT, "variant", "V", "write model.V.safetensors, ...")                                   \
    X(SUBFOLDER, "subfolder", "DIR", "the checkpoint lies in SRC/DIR")                             \
    X(ORDER, "order", "O",                                                                         \
      "of the names: state_dict, or natural as of a loaded model (state_dict)")                    \
    X(FORCE, "force", NULL, "replace a checkpoint that DST holds already")                         \
    X(DRY_RUN, "dry-run", NULL, "say what would be written, write nothing")                        \
    X(RESUME, "resume", NULL, "keep finished shards if interrupted, and go on from them")

enum { OPTIONS(CLI_OPTION_ID) OPTION_COUNT };

static const cli_option options[] = {OPTIONS(CLI_OPTION_ROW)};

/* What the model beside a checkpoint knows about it. */
struct knowledge {
    heft_config *config;
    heft_model *model;
    const char **names; /* owned; the texts are the model's */
    size_t name_count;
    uint64_t elements; /* 0: not all of the model is in the checkpoint */
};

static void forget(struct knowledge *known)
{
    free(known->names);
    heft_model_free(known->model);
    heft_config_free(known->config);
}

static bool has_own_order(const heft_checkpoint *ckpt)
{
    bool pickles = true;
    for (size_t i = 0; i < heft_checkpoint_file_count(ckpt); i++) {
        pickles = pickles && heft_checkpoint_file(ckpt, i)->format != HEFT_FORMAT_SAFETENSORS;
    }
    return pickles;
}

/* How many of the model's names the checkpoint has. */
static size_t count_found(const heft_model *model, const heft_checkpoint *ckpt)
{
    size_t found = 0;
    for (size_t i = 0; i < heft_model_count(model); i++) {
        found += heft_checkpoint_find(ckpt, heft_model_parameter(model, i)->name) != SIZE_MAX;
    }
    return found;
}

/* Every weight is there, tied ones under one name at least, with its number of elements. */
static bool is_complete(const heft_model *model, const heft_checkpoint *ckpt)
{
    const size_t count = heft_model_count(model);
    bool *found = calloc(count ? count : 1, sizeof *found), complete = found != NULL;
    for (size_t i = 0; complete && i < count; i++) {
        const heft_parameter *parameter = heft_model_parameter(model, i);
        size_t at = heft_checkpoint_find(ckpt, parameter->name);
        const heft_tensor_info *info = at == SIZE_MAX ? NULL : heft_checkpoint_info(ckpt, at);
        found[parameter->tied_to] |= info && cli_elements(info->shape, info->rank) ==
                                                 cli_elements(parameter->shape, parameter->rank);
    }
    for (size_t i = 0; complete && i < count; i++) {
        const heft_parameter *parameter = heft_model_parameter(model, i);
        complete = found[parameter->tied_to] || parameter->kind != HEFT_PARAMETER_WEIGHT;
    }
    free(found);
    return complete;
}

/* The class that the config names, or the family's base model if the names are that one's. */
static void find_model(cli_run *run, const heft_checkpoint *ckpt, struct knowledge *known)
{
    heft_model *base = NULL;
    if (heft_config_read(run->ctx, heft_checkpoint_folder(ckpt), &known->config, NULL) != HEFT_OK ||
        heft_model_create(run->ctx, known->config, NULL, HEFT_DTYPE_NONE, &known->model, NULL) !=
            HEFT_OK) {
        return;
    }
    size_t found = count_found(known->model, ckpt);
    if (found == heft_checkpoint_count(ckpt) ||
        heft_model_create(run->ctx, known->config, "AutoModel", HEFT_DTYPE_NONE, &base, NULL) !=
            HEFT_OK) {
        return;
    }
    if (count_found(base, ckpt) > found) {
        heft_model_free(known->model);
        known->model = base;
    } else {
        heft_model_free(base);
    }
}

/* Whatever fails here is no failure: the conversion works without. */
static void learn(cli_run *run, const heft_checkpoint *ckpt, bool natural, struct knowledge *known)
{
    find_model(run, ckpt, known);
    if (!known->model) {
        return;
    }
    known->elements = is_complete(known->model, ckpt) ? heft_model_elements(known->model) : 0;
    size_t count = heft_model_count(known->model);
    if (has_own_order(ckpt) && !natural) {
        return;
    }
    size_t *order = calloc(count ? count : 1, sizeof *order);
    known->names = calloc(count ? count : 1, sizeof *known->names);
    bool good = order && known->names &&
                (!natural || heft_model_natural_order(known->model, order, NULL) == HEFT_OK);
    for (size_t i = 0; good && i < count; i++) {
        known->names[known->name_count++] =
            heft_model_parameter(known->model, natural ? order[i] : i)->name;
    }
    free(order);
}

static bool read_options(const cli_run *run, heft_convert_options *request,
                         heft_checkpoint_options *source, heft_error *err)
{
    request->variant = run->values[OPTION_VARIANT];
    source->subfolder = run->values[OPTION_SUBFOLDER];
    request->force = run->values[OPTION_FORCE] != NULL;
    request->dry_run = run->values[OPTION_DRY_RUN] != NULL;
    request->resume = run->values[OPTION_RESUME] != NULL;
    return cli_value_size(run, OPTION_MAX_SHARD_SIZE, &request->max_shard_bytes, err) &&
           cli_value_format(run, OPTION_FORMAT, &request->format, err) &&
           cli_value_order(run, OPTION_ORDER, &request->natural_order, err) &&
           cli_value_dtype(run, OPTION_DTYPE, false, &request->dtype, err);
}

static int run_convert(cli_run *run)
{
    const char *src = run->arguments[0], *dst = run->arguments[1];
    heft_convert_options request = HEFT_SIZED(heft_convert_options);
    heft_checkpoint_options source = HEFT_SIZED(heft_checkpoint_options);
    struct knowledge known = {0};
    heft_error err = {0};
    heft_checkpoint *ckpt = NULL;
    heft_write_report *report = NULL;
    request.source = &source;
    if (!read_options(run, &request, &source, &err)) {
        return cli_fail(run, &err);
    }
    heft_status status = heft_checkpoint_open(run->ctx, src, request.source, &ckpt, &err);
    if (status == HEFT_OK) {
        learn(run, ckpt, request.natural_order, &known);
        heft_checkpoint_close(ckpt);
        request.order = known.names;
        request.order_count = known.name_count;
        request.total_parameters = known.elements;
        status = heft_checkpoint_convert(run->ctx, src, dst, &request, &report, &err);
    }
    int code = status == HEFT_OK ? cli_print_written(run, report, known.elements, request.dry_run)
                                 : cli_fail(run, &err);
    heft_write_report_free(report);
    forget(&known);
    return code;
}

const cli_command cli_cmd_convert = {
    .name = "convert",
    .arguments = "SRC DST",
    .argument_count = 2,
    .summary = "Reshard, merge, cast, change the format, as a stream",
    .about =
        "SRC is a checkpoint folder, one weight file or an index file, DST the folder to write.\n"
        "Sizes: KB MB GB TB are powers of 1000, KiB MiB GiB TiB of 1024, a plain number is "
        "bytes.\n",
    .options = options,
    .option_count = OPTION_COUNT,
    .run = run_convert,
};
