/* cmd_init.c - heft init CONFIG DST: a model with random weights, saved without ever being held. */
#include "cli/cli.h"

#define OPTIONS(X)                                                                                 \
    X(CLASS, "class", "NAME",                                                                      \
      "model class: BertForMaskedLM, AutoModel, ... (default: from the config)")                   \
    X(SEED, "seed", "N", "random seed (default: 0)")                                               \
    X(DTYPE, "dtype", "D", "dtype of the weights (default: from the config, else float32)")        \
    X(DTYPE_OF, "dtype-of", "A=D,B=D",                                                             \
      "dtype of sub-models, modules, classes or tensors: vision_config=float32")                   \
    X(KEEP_F32, "keep-f32", "A,B", "modules, classes or tensors that are float32: lm_head,norm")   \
    X(MAX_SHARD_SIZE, "max-shard-size", "S",                                                       \
      "maximum shard size: 200MB, 5GiB, ... (default: 50GB)")                                      \
    X(FORMAT, "format", "F", "output format: safetensors or bin (default: safetensors)")           \
    X(VARIANT, "variant", "V", "write model.V.safetensors, ...")                                   \
    X(ORDER, "order", "O",                                                                         \
      "tensor order: state_dict, or natural, as Transformers saves a loaded model (default: "      \
      "state_dict)")                                                                               \
    X(DRY_RUN, "dry-run", NULL, "show what would be written, write nothing")                       \
    X(FORCE, "force", NULL, "replace an existing checkpoint in DST")                               \
    X(KEEP_SIDE_FILES, "keep-side-files", NULL,                                                    \
      "keep DST's config.json, tokenizer files, ... that are not replaced")                        \
    X(WAIT, "wait", NULL, "wait for another process that writes to DST")

enum { OPTIONS(CLI_OPTION_ID) OPTION_COUNT };

static const cli_option options[] = {OPTIONS(CLI_OPTION_ROW)};

struct request {
    heft_init_options init;
    heft_save_options save;
    heft_dtype dtype;
    cli_dtypes dtypes;
};

static bool read_options(const cli_run *run, struct request *request, heft_error *err)
{
    request->init = HEFT_SIZED(heft_init_options);
    request->save = HEFT_SIZED(heft_save_options);
    request->save.variant = run->values[OPTION_VARIANT];
    request->save.force = run->values[OPTION_FORCE] != NULL;
    request->save.keep_side_files = run->values[OPTION_KEEP_SIDE_FILES] != NULL;
    request->save.wait = run->values[OPTION_WAIT] != NULL;
    request->save.dry_run = run->values[OPTION_DRY_RUN] != NULL;
    return cli_value_seed(run, OPTION_SEED, &request->init.seed, err) &&
           cli_value_dtype(run, OPTION_DTYPE, false, &request->dtype, err) &&
           cli_value_dtypes(run, OPTION_DTYPE_OF, OPTION_KEEP_F32, &request->dtypes, err) &&
           cli_value_size(run, OPTION_MAX_SHARD_SIZE, &request->save.max_shard_bytes, err) &&
           cli_value_order(run, OPTION_ORDER, &request->save.natural_order, err) &&
           cli_value_format(run, OPTION_FORMAT, &request->save.format, err);
}

static int run_init(cli_run *run)
{
    struct request request = {0};
    heft_error err = {0};
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft_write_report *report = NULL;
    if (!read_options(run, &request, &err)) {
        cli_dtypes_fini(&request.dtypes);
        return cli_fail(run, &err);
    }
    cli_warn_of_folder(run, run->arguments[1]);
    heft_status status = heft_config_read(run->ctx, run->arguments[0], &config, &err);
    if (status == HEFT_OK) {
        heft_dtype dtype = request.dtype ? request.dtype : heft_config_dtype(config);
        status = heft_model_new(run->ctx, config, run->values[OPTION_CLASS], dtype, &model, &err);
    }
    if (status == HEFT_OK) {
        status = heft_model_keep_float32(model, &err);
    }
    if (status == HEFT_OK) {
        status = heft_model_retype(model, request.dtypes.list, request.dtypes.count, &err);
    }
    if (status == HEFT_OK) {
        status = heft_model_save_random(model, run->arguments[1], &request.init, &request.save,
                                        &report, &err);
    }
    int code = status == HEFT_OK ? cli_print_written(run, report, request.save.dry_run)
                                 : cli_fail(run, &err);
    heft_write_report_free(report);
    heft_model_free(model);
    heft_config_free(config);
    cli_dtypes_fini(&request.dtypes);
    return code;
}

const cli_command cli_cmd_init = {
    .name = "init",
    .arguments = "CONFIG DST",
    .argument_count = 2,
    .summary = "Create a model with random weights and save it",
    .about = "CONFIG is a config.json or a folder that contains one. DST is the folder to "
             "write.\nSizes: KB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB are powers of "
             "1024; a plain number is bytes.\n",
    .options = options,
    .option_count = OPTION_COUNT,
    .run = run_init,
};
