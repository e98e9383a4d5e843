/* cmd_embed.c - heft embed PATH: one embedding for each text, as sentence-transformers makes them. */
#include "cli/running.h"

#include <stdlib.h>
#include <string.h>

#define OPTIONS(X)                                                                                 \
    X(BATCH, "batch", "FILE", "a file with a text per line; - for stdin")                          \
    X(IDS, "ids", "LIST", "input ids instead of texts; - reads them from stdin, a text per line")  \
    X(POOLING, "pooling", "P",                                                                     \
      "mean, cls, last, or auto: as modules.json says, else last for a ...ForCausalLM, mean for "  \
      "others (default: auto)")                                                                    \
    X(SAVE, "save", "FILE", "the safetensors file to write: embeddings [texts, width]")            \
    X(MEMORY, "memory", "SIZE",                                                                    \
      "memory that the process may use; weights that do not fit are read from the files as "       \
      "needed (default: 7/8 of what is available)")                                                \
    X(COMPUTE, "compute", "C",                                                                     \
      "auto, or f32: do not round activations of a bfloat16 model (default: auto)")                \
    X(THREADS, "threads", "N", "maximum number of threads that compute (default: all CPUs)")       \
    X(DTYPE, "dtype", "D",                                                                         \
      "dtype of the weights; auto: from the config, else from the files (default: auto)")          \
    X(DEQUANTIZE, "dequantize", NULL, "dequantize quantized weights")                              \
    X(SUBFOLDER, "subfolder", "DIR", "read the checkpoint in PATH/DIR")

enum { OPTIONS(CLI_OPTION_ID) OPTION_COUNT };

static const cli_option options[] = {OPTIONS(CLI_OPTION_ROW)};

struct embedding {
    cli_inputs inputs;
    heft_checkpoint_options where;
    cli_run_weights weights;
    uint64_t memory_bytes;
    heft_pooling pooling;
    heft_source *source;
    heft_tokenizer *tokenizer;
    heft_session *session;
    float *vectors; /* [inputs.count][width] */
    size_t width, cut;
    double seconds;
};

static bool read_options(const cli_run *run, struct embedding *e, heft_error *err)
{
    e->where = HEFT_SIZED(heft_checkpoint_options);
    e->weights.load = HEFT_SIZED(heft_load_options);
    e->weights.session = HEFT_SIZED(heft_session_options);
    e->pooling = HEFT_SIZED(heft_pooling);
    e->where.subfolder = run->values[OPTION_SUBFOLDER];
    if (!run->values[OPTION_BATCH] == !run->values[OPTION_IDS]) {
        return cli_refuse(err, "--batch", "give either --batch or --ids");
    }
    return (run->values[OPTION_SAVE] || cli_refuse(err, "--save", "is required")) &&
           cli_run_read_compute(run->values[OPTION_COMPUTE], &e->weights.session, err) &&
           cli_value_size(run, OPTION_MEMORY, &e->memory_bytes, err) &&
           cli_run_read_memory(run->values[OPTION_MEMORY], e->memory_bytes, err) &&
           cli_value_dtype(run, OPTION_DTYPE, true, &e->weights.load.dtype, err);
}

/* Of the whole model's folder, above the one of the weights. */
static heft_status read_pooling(const cli_run *run, struct embedding *e, heft_error *err)
{
    char *folder = cli_source_folder(e->source, e->where.subfolder, 0), *above = NULL;
    for (size_t up = 1; folder && (above = cli_source_folder(e->source, e->where.subfolder, up));
         up++) {
        free(folder);
        folder = above;
    }
    if (!folder) {
        cli_refuse(err, "", "not enough memory");
        return HEFT_NOMEM;
    }
    const heft_status status = heft_pooling_read(run->ctx, folder, &e->pooling, err);
    free(folder);
    return status;
}

/* By the folder, and what --pooling says instead. */
static heft_status choose_pooling(const cli_run *run, struct embedding *e, heft_error *err)
{
    static const struct {
        const char *name;
        heft_pooling_mode mode;
    } modes[] = {
        {"mean", HEFT_POOLING_MEAN},
        {"cls",  HEFT_POOLING_CLS },
        {"last", HEFT_POOLING_LAST}
    };
    const char *name = run->values[OPTION_POOLING];
    heft_status status = read_pooling(run, e, err);
    if (!name || strcmp(name, "auto") == 0 || (status != HEFT_OK && status != HEFT_UNSUPPORTED)) {
        return status;
    }
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (strcmp(name, modes[i].name) == 0) {
            e->pooling.mode = modes[i].mode;
            return HEFT_OK;
        }
    }
    cli_refuse(err, "--pooling", "'%.20s' is not mean, cls, last or auto", name);
    return HEFT_INVALID_ARG;
}

static heft_status read_inputs(cli_run *run, struct embedding *e, heft_error *err)
{
    const char *ids = run->values[OPTION_IDS];
    const char *from = ids ? ids : run->values[OPTION_BATCH];
    const bool read = !ids || strcmp(ids, "-") == 0;
    char *text = read ? cli_text_read(from, ids ? "--ids" : "--batch", err) : NULL;
    heft_status status = HEFT_OK;
    if (read && !text) {
        return err->status;
    }
    if (ids) {
        status = cli_inputs_parse(&e->inputs, text ? text : ids, "--ids", err) ? HEFT_OK
                                                                               : HEFT_INVALID_ARG;
    } else {
        status = cli_tokenizer_open(run, e->source, e->where.subfolder, &e->tokenizer, err);
        if (status == HEFT_OK) {
            cli_prompts prompts = {.tokenizer = e->tokenizer,
                                   .most = e->pooling.most_tokens,
                                   .before = e->pooling.prompt};
            status = cli_prompts_encode(&e->inputs, &prompts, text, true, err);
            e->cut = prompts.cut;
        }
    }
    free(text);
    return status;
}

static heft_status load(struct embedding *e, heft_error *err)
{
    heft_status status = cli_run_load(e->source, e->memory_bytes, &e->weights, err);
    for (size_t i = 0; status == HEFT_OK && i < e->weights.report->initialized_count; i++) {
        if (!strstr(e->weights.report->initialized[i],
                    "pooler.")) { /* which embeddings do not use */
            cli_refuse(err, e->weights.report->initialized[i],
                       "the checkpoint lacks this tensor, which would be random");
            err->status = status = HEFT_MISMATCH;
        }
    }
    return status == HEFT_OK
               ? heft_session_new(e->weights.model, &e->weights.session, &e->session, err)
               : status;
}

static heft_status embed(struct embedding *e, heft_error *err)
{
    static const char *const wanted[] = {"last_hidden_state"};
    heft_output states = HEFT_SIZED(heft_output);
    const double started = cli_now();
    for (size_t i = 0; i < e->inputs.count; i++) {
        e->inputs.inputs[i].logits = HEFT_LOGITS_NONE;
    }
    heft_status status =
        heft_session_run(e->session, e->inputs.inputs, e->inputs.count, wanted, 1, err);
    if (status == HEFT_OK) {
        status = heft_session_output(e->session, wanted[0], &states, err);
    }
    if (status == HEFT_OK) {
        const uint64_t most = e->pooling.most_width;
        e->width = most > 0 && most < states.width ? (size_t)most : states.width;
        e->vectors = malloc(e->inputs.count * states.width * sizeof *e->vectors);
        status = e->vectors ? heft_pooling_apply(&e->pooling, &states, e->inputs.tokens,
                                                 e->inputs.count, e->vectors, err)
                            : HEFT_NOMEM;
    }
    e->seconds = cli_now() - started;
    return status;
}

static heft_status save(const cli_run *run, const struct embedding *e, heft_error *err)
{
    const uint64_t shape[2] = {e->inputs.count, e->width};
    const heft_tensor_spec spec =
        HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_F32, .rank = 2, .shape = shape);
    const heft_writer_options wanted =
        HEFT_OPTIONS(heft_writer_options, .single_file = true, .force = true);
    heft_writer *writer = NULL;
    heft_storage *storage = NULL;
    heft_tensor *tensor = NULL;
    heft_status status =
        heft_storage_wrap_const(run->ctx, e->vectors, cli_elements(shape, 2) * sizeof *e->vectors,
                                NULL, NULL, &storage, err);
    if (status == HEFT_OK) {
        status = heft_tensor_new(storage, &spec, &tensor, err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_new(run->ctx, run->values[OPTION_SAVE], &wanted, &writer, err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_add(writer, "embeddings", tensor, err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_commit(writer, NULL, err);
    }
    heft_writer_free(writer);
    heft_tensor_free(tensor);
    heft_storage_unref(storage);
    return status;
}

static const char *mode_name(heft_pooling_mode mode)
{
    return mode == HEFT_POOLING_CLS ? "cls" : mode == HEFT_POOLING_LAST ? "last" : "mean";
}

static void report(cli_run *run, const struct embedding *e)
{
    char memory[128], line[160];
    cli_json json = {.out = stdout};
    if (e->cut > 0) {
        snprintf(line, sizeof line, "%zu text%s cut to %llu tokens (max_seq_length)", e->cut,
                 e->cut == 1 ? " was" : "s were", (unsigned long long)e->pooling.most_tokens);
        cli_warn(run, line);
    }
    cli_memory_finish(&run->memory);
    if (run->json) {
        cli_json_open(&json, NULL, '{');
        cli_json_string(&json, "class", e->weights.report->class_name);
        cli_json_u64(&json, "texts", e->inputs.count);
        cli_json_u64(&json, "width", e->width);
        cli_json_string(&json, "pooling", mode_name(e->pooling.mode));
        cli_json_bool(&json, "normalized", e->pooling.normalize);
        cli_json_u64(&json, "cut", e->cut);
        cli_json_double(&json, "seconds", e->seconds);
        cli_json_memory(&json, "memory", &run->memory);
        cli_json_close(&json, '}');
        cli_json_end(&json);
    } else if (!run->quiet) {
        printf("embeddings   %zu of %zu numbers, %s%s\n", e->inputs.count, e->width,
               mode_name(e->pooling.mode), e->pooling.normalize ? ", normalized" : "");
        printf("time         %.3f s\n", e->seconds);
        printf("memory       %s\n", cli_memory_text(&run->memory, memory));
    }
}

/* T5 embeds with its encoder alone, as there; other models with the whole one. */
static heft_status open_source(const cli_run *run, struct embedding *e, heft_error *err)
{
    heft_source_options how = HEFT_OPTIONS(heft_source_options, .class_name = "AutoModel",
                                           .checkpoint = &e->where, .dtype = e->weights.load.dtype,
                                           .dequantize = run->values[OPTION_DEQUANTIZE] != NULL);
    heft_status status = heft_source_open(run->ctx, run->arguments[0], &how, &e->source, err);
    const heft_config *config = status == HEFT_OK ? heft_source_config(e->source) : NULL;
    if (config && strcmp(heft_config_model_type(config), "t5") == 0) {
        heft_source_close(e->source);
        e->source = NULL;
        how.class_name = "AutoModelForTextEncoding";
        status = heft_source_open(run->ctx, run->arguments[0], &how, &e->source, err);
    }
    return status;
}

static int run_embed(cli_run *run)
{
    struct embedding e = {0};
    heft_error err = {0};
    if (!read_options(run, &e, &err)) {
        return cli_fail(run, &err);
    }
    heft_status status = open_source(run, &e, &err);
    if (status == HEFT_OK) {
        status = choose_pooling(run, &e, &err);
    }
    if (status == HEFT_OK) {
        status = read_inputs(run, &e, &err);
    }
    if (status == HEFT_OK) {
        status = load(&e, &err);
    }
    if (status == HEFT_OK) {
        status = embed(&e, &err);
    }
    if (status == HEFT_OK) {
        status = save(run, &e, &err);
    }
    cli_progress_clear(run);
    cli_run_explain(&err);
    int code = 0;
    if (status == HEFT_OK) {
        report(run, &e);
    } else {
        code = status == HEFT_NOMEM && !err.message[0] ? cli_fail_nomem(run) : cli_fail(run, &err);
    }
    free(e.vectors);
    heft_session_free(e.session);
    cli_run_weights_fini(&e.weights);
    heft_tokenizer_close(e.tokenizer);
    heft_source_close(e.source);
    cli_inputs_fini(&e.inputs);
    return code;
}

const cli_command cli_cmd_embed = {
    .name = "embed",
    .arguments = "PATH",
    .argument_count = 1,
    .summary = "Compute sentence embeddings of texts",
    .about = "PATH is the folder of an encoder, with a tokenizer.json for texts. Pooling and "
             "normalization are those\nof sentence-transformers' modules.json if it is there.\n",
    .options = options,
    .option_count = OPTION_COUNT,
    .run = run_embed,
};
