/* cmd_convert.c - heft convert SRC DST: reshard, merge, cast, change the format. */
#include "cli/cli.h"

#define OPTIONS(X)                                                                                 \
    X(MAX_SHARD_SIZE, "max-shard-size", "S",                                                       \
      "maximum shard size: 200MB, 5GiB, ... (default: 50GB)")                                      \
    X(FORMAT, "format", "F",                                                                       \
      "output format: safetensors, bin or offload (default: same as the source)")                  \
    X(DTYPE, "dtype", "D", "cast floating-point tensors (default: no cast)")                       \
    X(DTYPE_OF, "dtype-of", "A=D,B=D",                                                             \
      "dtype of sub-models, modules, classes or tensors: vision_config=float32")                   \
    X(KEEP_F32, "keep-f32", "A,B", "modules, classes or tensors that are float32: lm_head,norm")   \
    X(DEQUANTIZE, "dequantize", NULL, "dequantize quantized weights")                              \
    X(VARIANT, "variant", "V", "write model.V.safetensors, ...")                                   \
    X(SUBFOLDER, "subfolder", "DIR", "read the checkpoint in SRC/DIR")                             \
    X(ORDER, "order", "O",                                                                         \
      "tensor order: state_dict, or natural, as Transformers saves a loaded model (default: "      \
      "state_dict)")                                                                               \
    X(FORCE, "force", NULL, "replace an existing checkpoint in DST")                               \
    X(DRY_RUN, "dry-run", NULL, "show what would be written, write nothing")                       \
    X(RESUME, "resume", NULL, "keep finished shards if interrupted, and continue from them")       \
    X(KEEP_SIDE_FILES, "keep-side-files", NULL,                                                    \
      "keep DST's config.json, tokenizer files, ... that are not replaced")                        \
    X(WAIT, "wait", NULL, "wait for another process that writes to DST")

enum { OPTIONS(CLI_OPTION_ID) OPTION_COUNT };

static const cli_option options[] = {OPTIONS(CLI_OPTION_ROW)};

static bool read_options(const cli_run *run, heft_convert_options *request, cli_dtypes *dtypes,
                         heft_error *err)
{
    const bool good = cli_value_dtypes(run, OPTION_DTYPE_OF, OPTION_KEEP_F32, dtypes, err);
    request->dtypes = dtypes->list;
    request->dtype_count = dtypes->count;
    request->variant = run->values[OPTION_VARIANT];
    request->force = run->values[OPTION_FORCE] != NULL;
    request->dry_run = run->values[OPTION_DRY_RUN] != NULL;
    request->resume = run->values[OPTION_RESUME] != NULL;
    request->keep_side_files = run->values[OPTION_KEEP_SIDE_FILES] != NULL;
    request->wait = run->values[OPTION_WAIT] != NULL;
    return good && cli_value_size(run, OPTION_MAX_SHARD_SIZE, &request->max_shard_bytes, err) &&
           cli_value_format(run, OPTION_FORMAT, &request->format, err) &&
           cli_value_order(run, OPTION_ORDER, &request->natural_order, err) &&
           cli_value_dtype(run, OPTION_DTYPE, false, &request->dtype, err);
}

static int run_convert(cli_run *run)
{
    const heft_checkpoint_options where =
        HEFT_OPTIONS(heft_checkpoint_options, .subfolder = run->values[OPTION_SUBFOLDER]);
    heft_convert_options request = HEFT_SIZED(heft_convert_options);
    heft_error err = {0};
    heft_source *source = NULL;
    heft_write_report *report = NULL;
    cli_dtypes dtypes = {0};
    if (!read_options(run, &request, &dtypes, &err)) {
        cli_dtypes_fini(&dtypes);
        return cli_fail(run, &err);
    }
    cli_warn_of_folder(run, run->arguments[1]);
    const heft_source_options how =
        HEFT_OPTIONS(heft_source_options, .checkpoint = &where,
                     .dequantize = run->values[OPTION_DEQUANTIZE] != NULL, .dtype = request.dtype);
    heft_status status = heft_source_open(run->ctx, run->arguments[0], &how, &source, &err);
    if (status == HEFT_OK) {
        status = heft_source_convert(source, run->arguments[1], &request, &report, &err);
    }
    run->kept = request.resume ? "finished shards are kept in a hidden folder beside the "
                                 "destination, and the same command continues from them"
                               : NULL;
    int code =
        status == HEFT_OK ? cli_print_written(run, report, request.dry_run) : cli_fail(run, &err);
    heft_write_report_free(report);
    heft_source_close(source);
    cli_dtypes_fini(&dtypes);
    return code;
}

const cli_command cli_cmd_convert = {
    .name = "convert",
    .arguments = "SRC DST",
    .argument_count = 2,
    .summary = "Reshard, merge, cast or change the format of a checkpoint",
    .about = "SRC is a checkpoint folder, a weight file or an index file. DST is the folder to "
             "write.\nSizes: KB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB are powers of "
             "1024; a plain number is bytes.\n",
    .options = options,
    .option_count = OPTION_COUNT,
    .run = run_convert,
};
