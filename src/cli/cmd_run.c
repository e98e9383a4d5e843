/* cmd_run.c - heft run PATH: a forward pass, or generation of text. */
#include "cli/running.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OPTIONS(X)                                                                                 \
    X(PROMPT, "prompt", "TEXT", "the text to continue, by the tokenizer.json in the folder")       \
    X(BATCH, "batch", "FILE", "a file with a prompt per line; - for stdin")                        \
    X(CHAT, "chat", NULL,                                                                          \
      "prompts are messages of a user, for the folder's chat template; without a prompt, on a "    \
      "terminal: a conversation")                                                                  \
    X(SYSTEM, "system", "TEXT", "with --chat: the system message before each prompt")              \
    X(IDS, "ids", "LIST",                                                                          \
      "input ids, such as 1,2,3; - reads them from stdin, a sequence per line")                    \
    X(IDS_FILE, "ids-file", "FILE",                                                                \
      "safetensors file of inputs: input_ids, attention_mask, token_type_ids, position_ids, "      \
      "decoder_input_ids, pixel_values, input_features")                                           \
    X(IMAGE, "image", "FILE",                                                                      \
      "safetensors file with pixel_values [rows, channels, height, width]")                        \
    X(AUDIO, "audio", "FILE", "safetensors file with input_features [rows, mels, frames]")         \
    X(NEW_TOKENS, "new-tokens", "N",                                                               \
      "tokens to generate; 0: one forward pass (default: 0; 256 with --chat)")                     \
    X(IGNORE_EOS, "ignore-eos", NULL, "do not stop at the ids that end a text")                    \
    X(MEMORY, "memory", "SIZE",                                                                    \
      "memory that the process may use; weights that do not fit are read from the files as "       \
      "needed (default: 7/8 of what is available)")                                                \
    X(COMPUTE, "compute", "C",                                                                     \
      "auto, or f32: do not round activations of a bfloat16 model (default: auto)")                \
    X(THREADS, "threads", "N", "maximum number of threads that compute (default: all CPUs)")       \
    X(TEMPERATURE, "temperature", "T", "0: always the most likely token (default: 0)")             \
    X(TOP_K, "top-k", "K", "choose among the K most likely tokens")                                \
    X(TOP_P, "top-p", "P", "choose among the most likely tokens with probability P together")      \
    X(MIN_P, "min-p", "P", "choose among tokens with at least P times the largest probability")    \
    X(REPETITION_PENALTY, "repetition-penalty", "F",                                               \
      "divide the logits of earlier tokens by F (default: as generation_config.json, else 1)")     \
    X(SEED, "seed", "N", "random seed (default: 0)")                                               \
    X(SAVE, "save", "FILE", "write the outputs of the pass to a safetensors file")                 \
    X(OUTPUTS, "outputs", "LIST",                                                                  \
      "outputs to save, such as logits,hidden_states.3 (default: all but hidden states)")          \
    X(CLASS, "class", "NAME",                                                                      \
      "model class: BertForMaskedLM, AutoModel, ... (default: from the config)")                   \
    X(DTYPE, "dtype", "D",                                                                         \
      "dtype of the weights; auto: from the config, else from the files (default: auto)")          \
    X(DEQUANTIZE, "dequantize", NULL, "dequantize quantized weights")                              \
    X(ALLOW_MISSING, "allow-missing", NULL,                                                        \
      "run even if the checkpoint lacks weights, which are random then")                           \
    X(VARIANT, "variant", "V", "read model.V.safetensors, ...")                                    \
    X(SUBFOLDER, "subfolder", "DIR", "read the checkpoint in PATH/DIR")

enum { OPTIONS(CLI_OPTION_ID) OPTION_COUNT };

static const cli_option options[] = {OPTIONS(CLI_OPTION_ROW)};

#define CHAT_TOKENS 256 /* of an answer, unless --new-tokens says otherwise */
#define OUTPUTS_MOST 64

struct running {
    cli_inputs inputs;
    cli_run_weights weights;
    heft_checkpoint_options where;
    heft_sampling sampling;
    uint64_t new_tokens, memory_bytes;
    heft_source *source;
    heft_tokenizer *tokenizer; /* NULL: inputs are ids */
    heft_chat *chat;           /* NULL: prompts are texts */
    int32_t turn_end;          /* ends a text as well; -1: none */
    heft_text_stream *stream;  /* of the only prompt, which is printed as it grows; NULL: none */
    heft_session *session;
    heft_generation_ids ids;
    heft_sequence **sequences; /* [inputs.count] */
    int32_t **text;            /* [inputs.count][length] all ids so far, those of the input too */
    size_t *length, *first;    /* [inputs.count]; first: of the generated ones */
    bool *ended;               /* [inputs.count] */
    int32_t *at;               /* [inputs.count] positions of the tokens that go in next */
    const char *names[OUTPUTS_MOST];
    size_t name_count;
    char *name_text; /* owned: what `names` point into */
    size_t logits_shape[3];
    double prefill_seconds, compact_seconds, step_seconds;
    heft_prediction input, step; /* of the first pass, and of a further one */
    bool predicted[2];           /* they are known */
    uint64_t steps;
    bool talks; /* a conversation on a terminal: there are no inputs */
};

/* ---- options -------------------------------------------------------------------------------------- */
static bool real_value(const cli_run *run, size_t option, double most, float *value,
                       heft_error *err)
{
    const char *text = run->values[option];
    char *end, name[48];
    if (!text) {
        return true;
    }
    const double number = strtod(text, &end);
    if (!*text || *end || !(number >= 0 && number <= most)) {
        snprintf(name, sizeof name, "--%s", options[option].name);
        return cli_refuse(err, name, "'%.40s' is not a number from 0 to %g", text, most);
    }
    *value = (float)number;
    return true;
}

/* "0" too. */
static bool tokens_value(const cli_run *run, struct running *r, heft_error *err)
{
    const char *text = run->values[OPTION_NEW_TOKENS];
    r->new_tokens = run->values[OPTION_CHAT] ? CHAT_TOKENS : 0;
    if (text && strcmp(text, "0") == 0) {
        r->new_tokens = 0;
        return true;
    }
    return cli_value_count(run, OPTION_NEW_TOKENS, &r->new_tokens, err);
}

static bool read_options(const cli_run *run, struct running *r, heft_error *err)
{
    uint64_t top_k = 0;
    r->where = HEFT_SIZED(heft_checkpoint_options);
    r->weights.load = HEFT_SIZED(heft_load_options);
    r->weights.session = HEFT_SIZED(heft_session_options);
    r->sampling = HEFT_OPTIONS(heft_sampling, .by_config = true);
    r->weights.load.allow_missing = run->values[OPTION_ALLOW_MISSING] != NULL;
    r->where.variant = run->values[OPTION_VARIANT];
    r->where.subfolder = run->values[OPTION_SUBFOLDER];
    const int sources = (run->values[OPTION_IDS] != NULL) + (run->values[OPTION_IDS_FILE] != NULL) +
                        (run->values[OPTION_PROMPT] != NULL) + (run->values[OPTION_BATCH] != NULL);
    const int features = (run->values[OPTION_IMAGE] != NULL) + (run->values[OPTION_AUDIO] != NULL);
    r->talks = run->values[OPTION_CHAT] && sources + features == 0;
    if (sources > 1 || (sources + features == 0 && !r->talks)) {
        return cli_refuse(err, "--prompt", "give one of --prompt, --batch, --ids and --ids-file");
    }
    if (features && (features == 2 || run->values[OPTION_IDS_FILE] || run->values[OPTION_CHAT])) {
        return cli_refuse(err, run->values[OPTION_IMAGE] ? "--image" : "--audio",
                          "goes with none of --ids-file, --chat, --image and --audio");
    }
    const bool prompts = run->values[OPTION_PROMPT] || run->values[OPTION_BATCH];
    if (run->values[OPTION_CHAT] && !prompts &&
        (!r->talks || run->json || run->values[OPTION_SAVE] || !isatty(STDIN_FILENO))) {
        return cli_refuse(err, "--chat",
                          "takes --prompt or --batch, or a terminal, without --json and --save");
    }
    if (run->values[OPTION_SYSTEM] && !run->values[OPTION_CHAT]) {
        return cli_refuse(err, "--system", "takes --chat");
    }
    const bool good =
        tokens_value(run, r, err) &&
        cli_run_read_compute(run->values[OPTION_COMPUTE], &r->weights.session, err) &&
        cli_value_size(run, OPTION_MEMORY, &r->memory_bytes, err) &&
        cli_value_dtype(run, OPTION_DTYPE, true, &r->weights.load.dtype, err) &&
        cli_value_seed(run, OPTION_SEED, &r->sampling.seed, err) &&
        real_value(run, OPTION_TEMPERATURE, 1000, &r->sampling.temperature, err) &&
        real_value(run, OPTION_TOP_P, 1, &r->sampling.top_p, err) &&
        real_value(run, OPTION_MIN_P, 1, &r->sampling.min_p, err) &&
        real_value(run, OPTION_REPETITION_PENALTY, 1000, &r->sampling.repetition_penalty, err) &&
        cli_value_count(run, OPTION_TOP_K, &top_k, err) &&
        (!r->talks || r->new_tokens > 0 ||
         cli_refuse(err, "--new-tokens", "is 0, but a conversation has answers"));
    r->sampling.top_k = (uint32_t)top_k;
    const char *single = run->values[OPTION_SAVE]      ? "--save"
                         : run->values[OPTION_OUTPUTS] ? "--outputs"
                                                       : NULL;
    if (good && single && r->new_tokens > 0) {
        return cli_refuse(err, single, "is for one forward pass, without --new-tokens");
    }
    if (run->values[OPTION_REPETITION_PENALTY] && r->sampling.repetition_penalty == 0) {
        r->sampling.repetition_penalty = 1; /* none, whatever the config says */
    }
    return good && cli_run_read_memory(run->values[OPTION_MEMORY], r->memory_bytes, err);
}

static heft_status open_texts(cli_run *run, struct running *r, heft_error *err)
{
    const char *subfolder = r->where.subfolder;
    heft_status status = cli_tokenizer_open(run, r->source, subfolder, &r->tokenizer, err);
    if (status == HEFT_OK && run->values[OPTION_CHAT]) {
        status = cli_chat_open(run->ctx, r->source, subfolder, &r->chat, err);
    }
    if (status == HEFT_OK) {
        r->turn_end = cli_chat_stop(r->chat, r->tokenizer);
    }
    return status;
}

/* Ids, or the text of a prompt or of a file of prompts. */
static heft_status read_texts(cli_run *run, struct running *r, heft_error *err)
{
    const char *ids = run->values[OPTION_IDS], *file = run->values[OPTION_IDS_FILE],
               *prompt = run->values[OPTION_PROMPT], *batch = run->values[OPTION_BATCH];
    const char *from = ids ? ids : batch;
    char *text = NULL;
    if (file) {
        return cli_inputs_read(&r->inputs, run->ctx, file, err);
    }
    if (!ids && !prompt && !batch) {
        return HEFT_OK;
    }
    if (batch || (ids && strcmp(ids, "-") == 0)) {
        text = cli_text_read(from, ids ? "--ids" : "--batch", err);
        if (!text) {
            return err->status;
        }
    }
    heft_status status = HEFT_OK;
    if (ids) {
        status = cli_inputs_parse(&r->inputs, text ? text : ids, "--ids", err) ? HEFT_OK
                                                                               : HEFT_INVALID_ARG;
    } else {
        status = open_texts(run, r, err);
        if (status == HEFT_OK) {
            cli_prompts prompts = {.tokenizer = r->tokenizer,
                                   .chat = r->chat,
                                   .system = run->values[OPTION_SYSTEM],
                                   .lists = batch != NULL};
            status =
                cli_prompts_encode(&r->inputs, &prompts, text ? text : prompt, batch != NULL, err);
        }
    }
    free(text);
    return status;
}

static heft_status read_inputs(cli_run *run, struct running *r, heft_error *err)
{
    const char *image = run->values[OPTION_IMAGE], *audio = run->values[OPTION_AUDIO];
    heft_status status = r->talks ? open_texts(run, r, err) : read_texts(run, r, err);
    if (status == HEFT_OK && (image || audio)) {
        status = cli_inputs_add_features(&r->inputs, run->ctx, image ? image : audio, !image, err);
    }
    return status;
}

/* ---- loading ---------------------------------------------------------------------------------------- */
static heft_status open_source(const cli_run *run, struct running *r, heft_error *err)
{
    const heft_source_options how = HEFT_OPTIONS(
        heft_source_options, .class_name = run->values[OPTION_CLASS], .checkpoint = &r->where,
        .dequantize = run->values[OPTION_DEQUANTIZE] != NULL, .dtype = r->weights.load.dtype);
    return heft_source_open(run->ctx, run->arguments[0], &how, &r->source, err);
}

static heft_status load(struct running *r, heft_error *err)
{
    heft_status status = cli_run_load(r->source, r->memory_bytes, &r->weights, err);
    r->weights.session.expect_compact =
        !r->weights.plan && (r->talks || cli_run_compacts(r->new_tokens, r->inputs.count));
    if (status == HEFT_OK && r->weights.report->initialized_count > 0 &&
        !r->weights.load.allow_missing) {
        cli_refuse(
            err, r->weights.report->initialized[0],
            "the checkpoint lacks %zu tensor%s of %s, which would be random; --allow-missing "
            "runs it nevertheless",
            r->weights.report->initialized_count,
            r->weights.report->initialized_count == 1 ? "" : "s", r->weights.report->class_name);
        err->status = status = HEFT_MISMATCH;
    }
    if (status == HEFT_OK) {
        status = heft_session_new(r->weights.model, &r->weights.session, &r->session, err);
    }
    if (status == HEFT_OK) {
        r->ids = HEFT_SIZED(heft_generation_ids);
        status = heft_session_ids(r->session, &r->ids, err);
    }
    return status;
}

/* Before many tokens: make each of them faster. */
static heft_status compact(struct running *r, heft_error *err)
{
    const double started = cli_now();
    heft_status status = HEFT_OK;
    if (r->weights.session.expect_compact) {
        status = heft_session_compact(r->session, r->weights.model, err);
        r->compact_seconds = cli_now() - started;
    }
    return status;
}

/* How long it will take, before it begins: for those who read it, or who wait for the disk. */
static void predict(const cli_run *run, struct running *r)
{
    const bool encodes = heft_session_has_encoder(r->session);
    const heft_input *first = &r->inputs.inputs[0];
    heft_pass_shape shape = HEFT_OPTIONS(
        heft_pass_shape, .sequences = r->inputs.count, .tokens = r->inputs.width,
        .encoded = first->count, .logits = r->new_tokens ? HEFT_LOGITS_LAST : HEFT_LOGITS_ALL);
    if (!run->json && (run->quiet || !r->weights.plan)) {
        return;
    }
    if (encodes && !first->decoder_ids && r->new_tokens) {
        shape.tokens = 1; /* it starts with the id that the config gives */
    }
    r->input = r->step = HEFT_SIZED(heft_prediction);
    r->predicted[0] = heft_session_predict(r->session, &shape, &r->input, NULL) == HEFT_OK;
    shape.kept = shape.tokens + r->new_tokens / 2; /* of the step in the middle */
    shape.tokens = 1;
    r->predicted[1] =
        r->new_tokens > 1 && heft_session_predict(r->session, &shape, &r->step, NULL) == HEFT_OK;
}

/* ---- outputs ------------------------------------------------------------------------------------------ */
/* What is saved: the names of --outputs, or all that the class has. */
static heft_status choose_outputs(const cli_run *run, struct running *r, heft_error *err)
{
    const char *list = run->values[OPTION_OUTPUTS];
    if (!list) {
        const char *name;
        while (r->name_count < OUTPUTS_MOST &&
               (name = heft_session_output_name(r->session, r->name_count)) != NULL) {
            r->names[r->name_count++] = name;
        }
        return HEFT_OK;
    }
    r->name_text = strdup(list);
    if (!r->name_text) {
        cli_refuse(err, "--outputs", "not enough memory for the names");
        return HEFT_NOMEM;
    }
    for (char *at = r->name_text; at && *at;) {
        char *comma = strchr(at, ',');
        if (r->name_count == OUTPUTS_MOST) {
            cli_refuse(err, "--outputs", "names more than %d outputs", OUTPUTS_MOST);
            return HEFT_INVALID_ARG;
        }
        r->names[r->name_count++] = at;
        if (comma) {
            *comma = '\0';
        }
        at = comma ? comma + 1 : NULL;
    }
    if (r->name_count == 0) {
        cli_refuse(err, "--outputs", "names no output");
        return HEFT_INVALID_ARG;
    }
    return HEFT_OK;
}

static heft_status run_once(const cli_run *run, struct running *r, heft_error *err)
{
    heft_output logits = HEFT_SIZED(heft_output);
    heft_status status = choose_outputs(run, r, err);
    for (size_t i = 0; i < r->inputs.count; i++) {
        r->inputs.inputs[i].logits = HEFT_LOGITS_ALL;
    }
    const double started = cli_now();
    if (status == HEFT_OK) {
        status = heft_session_run(r->session, r->inputs.inputs, r->inputs.count, r->names,
                                  r->name_count, err);
    }
    r->prefill_seconds = cli_now() - started;
    if (status == HEFT_OK && heft_session_output(r->session, "logits", &logits, NULL) == HEFT_OK) {
        const bool by_token =
            logits.kind != HEFT_OUTPUT_SEQUENCES && logits.kind != HEFT_OUTPUT_WHOLE;
        r->logits_shape[0] = by_token ? r->inputs.count : logits.rows;
        r->logits_shape[1] = by_token ? r->inputs.width : logits.width;
        r->logits_shape[2] = by_token ? logits.width : 0;
    }
    if (status == HEFT_OK && run->values[OPTION_SAVE]) {
        status = cli_outputs_save(&r->inputs, r->session, run->ctx, r->names, r->name_count,
                                  run->values[OPTION_SAVE], err);
    }
    return status;
}

/* ---- generation ------------------------------------------------------------------------------------------ */
static bool is_stop(const struct running *r, int32_t id)
{
    if (id == r->turn_end) {
        return true;
    }
    for (size_t i = 0; i < r->ids.stop_count; i++) {
        if (r->ids.stop[i] == id) {
            return true;
        }
    }
    return false;
}

/* Positions without padding, for texts that are continued: 0 at the first token of a text. */
static bool number_tokens(struct running *r)
{
    const size_t width = r->inputs.width;
    int32_t *positions = malloc(r->inputs.count * width * sizeof *positions);
    if (!positions) {
        return false;
    }
    for (size_t i = 0; i < r->inputs.count; i++) {
        heft_input *input = &r->inputs.inputs[i];
        int32_t seen = 0;
        for (size_t t = 0; t < input->count; t++) {
            seen += input->mask[t] != 0;
            positions[i * width + t] = seen > 0 ? seen - 1 : 0;
        }
        input->positions = positions + i * width;
    }
    r->inputs.positions = positions;
    return true;
}

/* The position of the token that sequence i goes on with, in its place. */
static const int32_t *next_position(struct running *r, size_t i)
{
    const heft_input *input = &r->inputs.inputs[i];
    if (!input->positions || heft_session_has_encoder(r->session)) {
        return NULL; /* they are counted */
    }
    r->at[i] = input->positions[input->count - 1] + (int32_t)(r->length[i] - r->first[i]);
    return &r->at[i];
}

/* The type of the token that sequence i goes on with: that of the last one of its input. */
static const int32_t *next_type(const struct running *r, size_t i)
{
    const heft_input *input = &r->inputs.inputs[i];
    return input->types && !heft_session_has_encoder(r->session) ? &input->types[input->count - 1]
                                                                 : NULL;
}

/* Ids of sequence i before its first one that is no padding: they are not part of the text. */
static size_t padding_of(const struct running *r, size_t i)
{
    const heft_input *input = &r->inputs.inputs[i];
    size_t count = 0;
    while (!input->decoder_ids && input->mask && count < input->count && !input->mask[count]) {
        count++;
    }
    return count;
}

/* The text of sequence i so far: its input, or what its decoder begins with. */
static bool begin_text(struct running *r, size_t i)
{
    heft_input *input = &r->inputs.inputs[i];
    const int32_t *ids = input->decoder_ids ? input->decoder_ids : input->ids;
    const size_t count = input->decoder_ids ? input->decoder_count : input->count;
    r->text[i] = malloc((count + r->new_tokens) * sizeof **r->text);
    if (!r->text[i]) {
        return false;
    }
    memcpy(r->text[i], ids, count * sizeof *ids);
    r->length[i] = r->first[i] = count;
    return true;
}

static heft_status begin(struct running *r, heft_error *err)
{
    const size_t count = r->inputs.count;
    heft_status status = HEFT_OK;
    r->sequences = calloc(count, sizeof *r->sequences);
    r->text = calloc(count, sizeof *r->text);
    r->length = calloc(count, sizeof *r->length);
    r->first = calloc(count, sizeof *r->first);
    r->ended = calloc(count, sizeof *r->ended);
    r->at = calloc(count, sizeof *r->at);
    bool good = r->sequences && r->text && r->length && r->first && r->ended && r->at;
    if (good && r->inputs.mask && !r->inputs.positions && !heft_session_has_encoder(r->session) &&
        !heft_session_numbers_tokens(r->session)) {
        good = number_tokens(r);
    }
    for (size_t i = 0; good && i < count && status == HEFT_OK; i++) {
        heft_input *input = &r->inputs.inputs[i];
        const bool encodes = heft_session_has_encoder(r->session);
        if (encodes && !input->decoder_ids) {
            if (r->ids.decoder_start < 0) {
                cli_refuse(err, "decoder_start_token_id",
                           "is in neither config: give decoder_input_ids with --ids-file");
                return HEFT_INVALID_ARG;
            }
            input->decoder_ids = &r->ids.decoder_start;
            input->decoder_count = 1;
        }
        good = begin_text(r, i);
        status = good ? heft_sequence_new(r->session, r->length[i] + r->new_tokens,
                                          encodes ? input->count : 0, &r->sequences[i], err)
                      : HEFT_OK;
        input->sequence = r->sequences[i];
        input->logits = HEFT_LOGITS_LAST;
    }
    if (!good) {
        cli_refuse(err, "", "not enough memory for the texts");
        return HEFT_NOMEM;
    }
    return status;
}

/* Print what an id adds to the only text. */
static heft_status tell(struct running *r, int32_t id, bool last, heft_error *err)
{
    const char *text;
    size_t length;
    heft_status status = heft_text_stream_add(r->stream, (uint32_t)id, &text, &length, err);
    if (status == HEFT_OK) {
        fwrite(text, 1, length, stdout);
    }
    if (status == HEFT_OK && last) {
        status = heft_text_stream_finish(r->stream, &text, &length, err);
        fwrite(text, 1, status == HEFT_OK ? length : 0, stdout);
        putchar('\n');
    }
    fflush(stdout);
    return status;
}

/* One token for each sequence that has logits, in their order. Returns how many texts go on. */
static heft_status choose(const cli_run *run, struct running *r, size_t *going, heft_error *err)
{
    heft_output logits = HEFT_SIZED(heft_output);
    heft_status status = heft_session_output(r->session, "logits", &logits, err);
    size_t row = 0;
    if (status == HEFT_OK && logits.kind != HEFT_OUTPUT_LOGITS) {
        cli_refuse(err, "--new-tokens", "%s is not a language model",
                   r->weights.report->class_name);
        return HEFT_INVALID_ARG;
    }
    *going = 0;
    for (size_t i = 0; i < r->inputs.count && status == HEFT_OK; i++) {
        int32_t id = 0;
        if (r->ended[i]) {
            continue;
        }
        heft_sampling sampling = r->sampling;
        sampling.seed += i;
        const size_t padding = padding_of(r, i), length = r->length[i] - padding;
        sampling.prompt_count = r->first[i] - padding;
        sampling.most_count = sampling.prompt_count + r->new_tokens;
        status =
            heft_session_sample(r->session, &sampling, logits.data + row++ * logits.width,
                                logits.width, r->text[i] + padding, length, r->length[i], &id, err);
        r->text[i][r->length[i]++] = id;
        r->ended[i] = r->length[i] - r->first[i] == r->new_tokens ||
                      (is_stop(r, id) && !run->values[OPTION_IGNORE_EOS]);
        *going += !r->ended[i];
        if (status == HEFT_OK && r->stream) {
            status = tell(r, id, r->ended[i], err);
        }
    }
    return status;
}

static heft_status generate(const cli_run *run, struct running *r, heft_error *err)
{
    static const char *const wanted[] = {"logits"};
    const size_t count = r->inputs.count;
    size_t going = 0;
    heft_input *next = calloc(count, sizeof *next);
    heft_status status = next ? begin(r, err) : HEFT_NOMEM;
    if (status == HEFT_OK && r->tokenizer && count == 1 && !run->json) {
        status = heft_text_stream_new(r->tokenizer, true, &r->stream, err);
    }
    const double started = cli_now();
    if (status == HEFT_OK) {
        status = heft_session_run(r->session, r->inputs.inputs, count, wanted, 1, err);
    }
    if (status == HEFT_OK) {
        status = choose(run, r, &going, err);
    }
    r->prefill_seconds = cli_now() - started;
    if (status == HEFT_OK && going > 0) { /* the first token need not wait for it */
        status = compact(r, err);
    }
    const double stepping = cli_now();
    while (status == HEFT_OK && going > 0) {
        size_t n = 0;
        for (size_t i = 0; i < count; i++) {
            if (!r->ended[i]) {
                next[n++] = HEFT_OPTIONS(
                    heft_input, .sequence = r->sequences[i], .ids = r->text[i] + r->length[i] - 1,
                    .count = 1, .positions = next_position(r, i), .types = next_type(r, i));
            }
        }
        status = heft_session_run(r->session, next, n, wanted, 1, err);
        if (status == HEFT_OK) {
            status = choose(run, r, &going, err);
        }
        r->steps++;
    }
    r->step_seconds = cli_now() - stepping;
    free(next);
    return status;
}

static void warn(cli_run *run, const struct running *r)
{
    char line[512];
    for (size_t i = 0; i < r->weights.report->warning_count; i++) {
        cli_warn(run, r->weights.report->warnings[i]);
    }
    if (r->new_tokens > 0 && r->sampling.temperature == 0 &&
        (run->values[OPTION_TOP_K] || run->values[OPTION_TOP_P] || run->values[OPTION_MIN_P])) {
        cli_warn(run, "--top-k, --top-p and --min-p change nothing without --temperature");
    }
    if (r->new_tokens > 0 && *r->ids.not_followed) {
        snprintf(line, sizeof line, "generation_config.json: not followed: %s",
                 r->ids.not_followed);
        cli_warn(run, line);
    }
}

/* A conversation. */
static heft_status talk(cli_run *run, struct running *r, heft_error *err)
{
    cli_talk how = {.session = r->session,
                    .tokenizer = r->tokenizer,
                    .chat = r->chat,
                    .system = run->values[OPTION_SYSTEM],
                    .sampling = &r->sampling,
                    .new_tokens = r->new_tokens,
                    .stops = r->ids.stop,
                    .stop_count = r->ids.stop_count,
                    .turn_end = r->turn_end,
                    .ignore_eos = run->values[OPTION_IGNORE_EOS] != NULL,
                    .has_budget = r->weights.session.memory_bytes > 0};
    if (heft_session_has_encoder(r->session)) {
        cli_refuse(err, "--chat", "takes --prompt or --batch for a model with an encoder");
        return HEFT_INVALID_ARG;
    }
    warn(run, r);
    heft_status status = compact(r, err);
    if (status == HEFT_OK) {
        status = cli_talk_run(run, &how, err);
    }
    r->steps = how.steps;
    r->step_seconds = how.step_seconds;
    return status;
}

/* ---- what is printed: of each sequence the new text, or the new ids ------------------------------------------------------------------------------------ */
/* The new text of sequence i, owned by the tokenizer; NULL and OK without one. */
static heft_status new_text(const struct running *r, size_t i, char **text, size_t *length,
                            heft_error *err)
{
    const size_t count = r->length[i] - r->first[i];
    uint32_t *ids = malloc((count ? count : 1) * sizeof *ids);
    heft_status status = ids ? HEFT_OK : HEFT_NOMEM;
    for (size_t t = 0; ids && t < count; t++) {
        ids[t] = (uint32_t)r->text[i][r->first[i] + t];
    }
    if (status == HEFT_OK) {
        status = heft_tokenizer_decode(r->tokenizer, ids, count, true, text, length, err);
    }
    free(ids);
    return status;
}

static heft_status put_texts(cli_json *json, const struct running *r, heft_error *err)
{
    heft_status status = HEFT_OK;
    cli_json_open(json, "texts", '[');
    for (size_t i = 0; i < r->inputs.count && status == HEFT_OK; i++) {
        char *text = NULL;
        size_t length = 0;
        status = new_text(r, i, &text, &length, err);
        cli_json_string(json, NULL, status == HEFT_OK ? text : NULL);
        heft_tokenizer_free_text(r->tokenizer, text, length);
    }
    cli_json_close(json, ']');
    return status;
}

static void put_predicted(cli_json *json, const char *key, bool known, double seconds)
{
    if (known) {
        cli_json_double(json, key, seconds);
    } else {
        cli_json_null(json, key);
    }
}

static heft_status print_json(const cli_run *run, const struct running *r,
                              const heft_session_counts *facts, heft_error *err)
{
    heft_status status = HEFT_OK;
    cli_json json = {.out = stdout};
    cli_json_open(&json, NULL, '{');
    cli_json_string(&json, "class", r->weights.report->class_name);
    if (r->text) {
        cli_json_open(&json, "ids", '[');
        for (size_t i = 0; i < r->inputs.count; i++) {
            cli_json_open(&json, NULL, '[');
            for (size_t t = r->first[i]; t < r->length[i]; t++) {
                cli_json_u64(&json, NULL, (uint64_t)r->text[i][t]);
            }
            cli_json_close(&json, ']');
        }
        cli_json_close(&json, ']');
        status = r->tokenizer ? put_texts(&json, r, err) : HEFT_OK;
        cli_json_string(&json, "not_followed", r->ids.not_followed);
    }
    if (r->logits_shape[0]) {
        cli_json_open(&json, "logits_shape", '[');
        for (size_t d = 0; d < 3 && r->logits_shape[d]; d++) {
            cli_json_u64(&json, NULL, r->logits_shape[d]);
        }
        cli_json_close(&json, ']');
    }
    cli_json_double(&json, "prefill_seconds", r->prefill_seconds);
    if (r->steps) {
        cli_json_double(&json, "seconds_per_token", r->step_seconds / (double)r->steps);
    } else {
        cli_json_null(&json, "seconds_per_token");
    }
    cli_json_u64(&json, "bytes_read", facts->read_bytes);
    cli_json_u64(&json, "resident_bytes", facts->resident_bytes);
    cli_json_u64(&json, "compact_bytes", facts->compact_bytes);
    cli_json_double(&json, "compact_seconds", r->compact_seconds);
    cli_json_u64(&json, "peak_bytes", facts->peak_bytes);
    cli_json_string(&json, "isa", heft_session_isa(r->session));
    cli_json_memory(&json, "memory", &run->memory);
    put_predicted(&json, "predicted_prefill_seconds", r->predicted[0], r->input.first_seconds);
    put_predicted(&json, "predicted_seconds_per_token", r->predicted[1], r->step.seconds);
    cli_json_close(&json, '}');
    cli_json_end(&json);
    return status;
}

/* One line for each sequence. */
static heft_status print_results(const struct running *r, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; r->text && !r->stream && i < r->inputs.count && status == HEFT_OK; i++) {
        char *text = NULL;
        size_t length = 0;
        if (r->tokenizer) {
            status = new_text(r, i, &text, &length, err);
            fwrite(text, 1, status == HEFT_OK ? length : 0, stdout);
            heft_tokenizer_free_text(r->tokenizer, text, length);
        }
        for (size_t t = r->first[i]; !r->tokenizer && t < r->length[i]; t++) {
            printf("%s%d", t == r->first[i] ? "" : ",", (int)r->text[i][t]);
        }
        putchar('\n');
    }
    return status;
}

/* Tokens of the steps behind the first pass: texts that end take part in no more of them. */
static size_t step_tokens(const struct running *r)
{
    size_t count = 0;
    for (size_t i = 0; r->text && i < r->inputs.count; i++) {
        count += r->length[i] - r->first[i] - 1;
    }
    return count;
}

/* Where reading takes longer than computing: what that was expected to be, and which batch would use it. */
static void print_waiting(const struct running *r)
{
    const heft_prediction *step = &r->step;
    if (!r->steps || !r->predicted[1] || step->bound != HEFT_BOUND_DISK) {
        return;
    }
    fprintf(stderr, "predicted   %.2g s a step: reading takes %.2g s, computing %.2g s",
            step->seconds, step->read_seconds, step->compute_seconds);
    if (step->best_batch > r->inputs.count) {
        fprintf(stderr, "; a batch of %llu takes about the same time",
                (unsigned long long)step->best_batch);
    }
    fprintf(stderr, "\n");
}

static void print_summary(const cli_run *run, const struct running *r,
                          const heft_session_counts *facts)
{
    char memory[128], bytes[32];
    if (run->quiet) {
        return;
    }
    if (!r->talks) {
        fprintf(stderr, "first pass  %.3f s over %zu sequence%s\n", r->prefill_seconds,
                r->inputs.count, r->inputs.count == 1 ? "" : "s");
    }
    if (facts->compact_bytes) {
        fprintf(stderr, "compact     %s of weights in 12 bits each, in %.2f s\n",
                cli_bytes(facts->compact_bytes, bytes), r->compact_seconds);
    }
    if (r->steps) {
        fprintf(stderr, "generation  %.4f s a step, %.1f tokens/s\n",
                r->step_seconds / (double)r->steps,
                (double)(r->talks ? r->steps : step_tokens(r)) / r->step_seconds);
    }
    print_waiting(r);
    fprintf(stderr, "read        %s of weights\n", cli_bytes(facts->read_bytes, bytes));
    fprintf(stderr, "memory      %s\n", cli_memory_text(&run->memory, memory));
}

static int report(cli_run *run, const struct running *r)
{
    heft_session_counts facts = HEFT_SIZED(heft_session_counts);
    heft_error err = {0};
    if (!r->talks) {
        warn(run, r);
    }
    if (heft_session_facts(r->session, &facts, &err) != HEFT_OK) {
        return cli_fail(run, &err);
    }
    cli_memory_finish(&run->memory);
    heft_status status = run->json ? print_json(run, r, &facts, &err) : print_results(r, &err);
    if (!run->json) {
        print_summary(run, r, &facts);
    }
    return status == HEFT_OK ? 0 : cli_fail(run, &err);
}

static void free_all(struct running *r)
{
    for (size_t i = 0; i < r->inputs.count; i++) {
        heft_sequence_free(r->sequences ? r->sequences[i] : NULL);
        free(r->text ? r->text[i] : NULL);
    }
    free(r->sequences);
    free(r->text);
    free(r->length);
    free(r->first);
    free(r->ended);
    free(r->at);
    free(r->name_text);
    heft_text_stream_free(r->stream);
    heft_chat_close(r->chat);
    heft_tokenizer_close(r->tokenizer);
    heft_session_free(r->session);
    cli_run_weights_fini(&r->weights);
    heft_source_close(r->source);
    cli_inputs_fini(&r->inputs);
}

static int run_run(cli_run *run)
{
    struct running r = {.turn_end = -1};
    heft_error err = {0};
    if (!read_options(run, &r, &err)) {
        return cli_fail(run, &err);
    }
    heft_status status = open_source(run, &r, &err);
    if (status == HEFT_OK) {
        status = read_inputs(run, &r, &err);
    }
    if (status == HEFT_OK) {
        status = load(&r, &err);
    }
    if (status == HEFT_OK && r.talks) {
        status = talk(run, &r, &err);
    } else if (status == HEFT_OK) {
        predict(run, &r);
        status = r.new_tokens ? generate(run, &r, &err) : run_once(run, &r, &err);
    }
    cli_progress_clear(run);
    cli_run_explain(&err);
    const int code = status == HEFT_OK ? report(run, &r) : cli_fail(run, &err);
    free_all(&r);
    return code;
}

const cli_command cli_cmd_run = {
    .name = "run",
    .arguments = "PATH",
    .argument_count = 1,
    .summary = "Run a model: one forward pass, or generation",
    .about =
        "PATH is a checkpoint folder, a weight file or an index file, with a config.json in "
        "the same folder.\n"
        "With --new-tokens, the new text is printed (for --ids: the new ids), one line for each "
        "sequence.\n",
    .options = options,
    .option_count = OPTION_COUNT,
    .run = run_run,
};
