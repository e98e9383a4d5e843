/* run_inputs.c - the inputs of `heft run`, from words, lines and files; and its outputs as a file. */
#include "cli/running.h"

#include <stdlib.h>
#include <string.h>

#define LIMIT_IDS ((size_t)1 << 26)

static bool no_memory(heft_error *err)
{
    return cli_refuse(err, "", "not enough memory for the inputs");
}

/* ---- ids as text ------------------------------------------------------------------------------------ */
static bool is_separator(char c)
{
    return c == ' ' || c == ',' || c == '\t' || c == '\r' || c == '[' || c == ']';
}

/* The ids of one line, into ids[tokens]; *end: where the line ends. NULL: only count. */
static bool parse_line(const char *text, int32_t *ids, size_t *tokens, const char **end,
                       const char *what, heft_error *err)
{
    size_t count = 0;
    while (*text && *text != '\n') {
        if (is_separator(*text)) {
            text++;
            continue;
        }
        char *after;
        const unsigned long long id = strtoull(text, &after, 10);
        if (*text < '0' || *text > '9' || after - text > 10 || id > INT32_MAX ||
            (*after && *after != '\n' && !is_separator(*after))) {
            return cli_refuse(err, what, "'%.20s' is not a list of ids", text);
        }
        if (ids) {
            ids[count] = (int32_t)id;
        }
        count++;
        text = after;
    }
    *tokens = count;
    *end = *text ? text + 1 : text;
    return true;
}

bool cli_inputs_make(cli_inputs *inputs, size_t count)
{
    inputs->count = count;
    inputs->inputs = calloc(count, sizeof *inputs->inputs);
    inputs->ids = calloc(count, sizeof *inputs->ids);
    inputs->tokens = calloc(count, sizeof *inputs->tokens);
    return inputs->inputs && inputs->ids && inputs->tokens;
}

bool cli_inputs_parse(cli_inputs *inputs, const char *text, const char *what, heft_error *err)
{
    size_t count = 0, tokens = 0;
    const char *end;
    for (const char *at = text; *at; at = end) {
        if (!parse_line(at, NULL, &tokens, &end, what, err)) {
            return false;
        }
        count += tokens > 0;
    }
    if (count == 0) {
        return cli_refuse(err, what, "has no ids");
    }
    if (!cli_inputs_make(inputs, count)) {
        return no_memory(err);
    }
    count = 0;
    for (const char *at = text; *at; at = end) {
        (void)parse_line(at, NULL, &tokens, &end, what, err);
        if (tokens == 0) {
            continue;
        }
        inputs->ids[count] = malloc(tokens * sizeof **inputs->ids);
        if (!inputs->ids[count]) {
            return no_memory(err);
        }
        (void)parse_line(at, inputs->ids[count], &tokens, &end, what, err);
        inputs->tokens[count] = tokens;
        inputs->width = tokens > inputs->width ? tokens : inputs->width;
        inputs->inputs[count] =
            HEFT_OPTIONS(heft_input, .ids = inputs->ids[count], .count = tokens);
        count++;
    }
    return true;
}

/* ---- a file of tensors -------------------------------------------------------------------------------- */
/* Read a whole tensor in another dtype into new memory; NULL and OK if there is none of the name. */
static heft_status read_tensor(const heft_checkpoint *file, const char *name, heft_dtype dtype,
                               void **out, const heft_tensor_info **info, heft_error *err)
{
    const size_t i = heft_checkpoint_find(file, name);
    *out = NULL;
    if (i == SIZE_MAX) {
        return HEFT_OK;
    }
    *info = heft_checkpoint_info(file, i);
    const uint64_t elems = cli_elements((*info)->shape, (*info)->rank);
    if (elems == 0 || elems > LIMIT_IDS) {
        cli_refuse(err, name, "has %llu elements: too few or too many", (unsigned long long)elems);
        return HEFT_INVALID_ARG;
    }
    const uint64_t bytes = elems * (heft_dtype_bits(dtype) / 8);
    *out = malloc((size_t)bytes);
    if (!*out) {
        no_memory(err);
        return HEFT_NOMEM;
    }
    const heft_read_request request = {.tensor = i, .dtype = dtype, .dst = *out, .cap = bytes};
    return heft_checkpoint_read_slice(file, &request, err);
}

/* Numbers of a file's integers, each at most `most`, as int32_t, or (1) as bytes: in the memory in which they were
 * read. */
static heft_status narrow(const heft_tensor_info *info, int64_t most, void *numbers,
                          heft_error *err)
{
    const uint64_t count = cli_elements(info->shape, info->rank);
    for (uint64_t i = 0; i < count; i++) {
        int64_t number;
        memcpy(&number, (const uint8_t *)numbers + i * sizeof number, sizeof number);
        if (number < 0 || number > most) {
            cli_refuse(err, info->name, "element %llu is %lld, expected 0 to %lld",
                       (unsigned long long)i, (long long)number, (long long)most);
            return HEFT_INVALID_ARG;
        }
        if (most == 1) {
            ((uint8_t *)numbers)[i] = (uint8_t)number;
        } else {
            ((int32_t *)numbers)[i] = (int32_t)number;
        }
    }
    return HEFT_OK;
}

/* Read a tensor of integers from 0 to `most` [count][width], whose shape must be that of the others. */
static heft_status read_matrix(const heft_checkpoint *file, const char *name, int64_t most,
                               void **out, size_t *count, size_t *width, heft_error *err)
{
    const heft_tensor_info *info = NULL;
    const size_t at = heft_checkpoint_find(file, name);
    if (at != SIZE_MAX && heft_dtype_is_floating(heft_checkpoint_info(file, at)->dtype)) {
        cli_refuse(err, name, "has dtype %s, expected integers",
                   heft_dtype_name(heft_checkpoint_info(file, at)->dtype));
        return HEFT_INVALID_ARG;
    }
    heft_status status = read_tensor(file, name, HEFT_DTYPE_I64, out, &info, err);
    if (status == HEFT_OK && *out) {
        status = narrow(info, most, *out, err);
    }
    if (status != HEFT_OK || !*out) {
        return status;
    }
    if (info->rank != 2 || (*count && info->shape[0] != *count) ||
        (*width && info->shape[1] != *width)) {
        char expected[64], found[256];
        snprintf(expected, sizeof expected,
                 *width   ? "[%zu, %zu]"
                 : *count ? "[%zu, tokens]"
                          : "[rows, tokens]",
                 *count, *width);
        cli_refuse(err, name, "shape %s in the file, expected %s",
                   cli_shape(info->shape, info->rank, found), expected);
        return HEFT_INVALID_ARG;
    }
    *count = (size_t)info->shape[0];
    *width = (size_t)info->shape[1];
    return HEFT_OK;
}

/* Images or sound, whichever there is of `names`, which ends with NULL. */
static heft_status read_features(cli_inputs *inputs, const heft_checkpoint *file,
                                 const char *const *names, size_t *count, uint64_t shape[3],
                                 heft_error *err)
{
    const heft_tensor_info *info = NULL;
    heft_status status = HEFT_OK;
    void *data = NULL;
    for (; *names && status == HEFT_OK && !data; names++) {
        status = read_tensor(file, *names, HEFT_DTYPE_F32, &data, &info, err);
    }
    inputs->features = data;
    if (status == HEFT_OK && data) {
        if (info->rank < 3 || info->rank > 4 || (*count && info->shape[0] != *count)) {
            char rows[24] = "rows", found[256];
            if (*count) {
                snprintf(rows, sizeof rows, "%zu", *count);
            }
            cli_refuse(err, info->name, "shape %s in the file, expected [%s, %s]",
                       cli_shape(info->shape, info->rank, found), rows,
                       info->name[0] == 'p' ? "channels, height, width" : "mels, frames");
            return HEFT_INVALID_ARG;
        }
        *count = (size_t)info->shape[0];
        shape[2] = 1;
        for (uint32_t d = 1; d < info->rank; d++) {
            shape[d - 1] = info->shape[d];
        }
    }
    return status;
}

struct shapes { /* of the tensors in a file */
    size_t texts, width, decoder_width;
    size_t features;
    uint64_t feature[3];
};

/* Point each input at its rows: texts, then images if they are inputs of their own. */
static heft_status split(cli_inputs *inputs, int32_t *ids, const struct shapes *shapes,
                         heft_error *err)
{
    const bool apart = ids && inputs->features;
    const size_t count = apart ? shapes->texts + shapes->features
                         : ids ? shapes->texts
                               : shapes->features;
    const size_t of_feature =
        (size_t)(shapes->feature[0] * shapes->feature[1] * shapes->feature[2]);
    const size_t width = shapes->width, decoder_width = shapes->decoder_width;
    if (!cli_inputs_make(inputs, count)) {
        free(ids);
        no_memory(err);
        return HEFT_NOMEM;
    }
    inputs->ids[0] = ids; /* one block */
    inputs->width = decoder_width ? decoder_width : width;
    for (size_t i = 0; i < count; i++) {
        const bool text = ids && i < shapes->texts;
        heft_input *input = &inputs->inputs[i];
        *input = HEFT_SIZED(heft_input);
        if (text) {
            input->ids = ids + i * width;
            input->count = width;
            input->mask = inputs->mask ? inputs->mask + i * width : NULL;
            input->positions = inputs->positions ? inputs->positions + i * width : NULL;
            input->types = inputs->types ? inputs->types + i * width : NULL;
        } else {
            input->features = inputs->features + (apart ? i - shapes->texts : i) * of_feature;
            memcpy(input->feature_shape, shapes->feature, sizeof shapes->feature);
        }
        if (inputs->decoder_ids) {
            input->decoder_ids = inputs->decoder_ids + i * decoder_width;
            input->decoder_count = decoder_width;
        }
        inputs->tokens[i] = text || decoder_width ? inputs->width : 0;
    }
    return HEFT_OK;
}

/* A tensor that is no input would be missed in the result. */
static heft_status check_names(const heft_checkpoint *file, heft_error *err)
{
    static const char *const known[] = {"input_ids",        "attention_mask", "token_type_ids",
                                        "position_ids",     "pixel_values",   "input_features",
                                        "decoder_input_ids"};
    const size_t count = sizeof known / sizeof *known;
    for (size_t i = 0; i < heft_checkpoint_count(file); i++) {
        const char *name = heft_checkpoint_info(file, i)->name;
        size_t k = 0;
        while (k < count && strcmp(known[k], name) != 0) {
            k++;
        }
        if (k == count) {
            cli_refuse(err, "--ids-file", "tensor '%.80s' is no input that heft takes", name);
            return HEFT_INVALID_ARG;
        }
    }
    if (heft_checkpoint_find(file, "pixel_values") != SIZE_MAX &&
        heft_checkpoint_find(file, "input_features") != SIZE_MAX) {
        cli_refuse(err, "--ids-file", "has both pixel_values and input_features");
        return HEFT_INVALID_ARG;
    }
    return HEFT_OK;
}

static heft_status read_all(cli_inputs *inputs, const heft_checkpoint *file, heft_error *err)
{
    struct shapes shapes = {0};
    void *ids = NULL, *mask = NULL, *types = NULL, *positions = NULL, *decoder = NULL;
    struct {
        const char *name;
        int64_t most;
        void **out;
    } const matrices[] = {
        {"input_ids",      INT32_MAX, &ids      },
        {"attention_mask", 1,         &mask     },
        {"token_type_ids", INT32_MAX, &types    },
        {"position_ids",   INT32_MAX, &positions},
    };
    heft_status status = check_names(file, err);
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices && status == HEFT_OK; i++) {
        status = read_matrix(file, matrices[i].name, matrices[i].most, matrices[i].out,
                             &shapes.texts, &shapes.width, err);
    }
    inputs->mask = mask;
    inputs->types = types;
    inputs->positions = positions;
    if (status == HEFT_OK) {
        static const char *const names[] = {"pixel_values", "input_features", NULL};
        status = read_features(inputs, file, names, &shapes.features, shapes.feature, err);
    }
    size_t rows = ids ? shapes.texts : shapes.features;
    if (status == HEFT_OK) {
        status = read_matrix(file, "decoder_input_ids", INT32_MAX, &decoder, &rows,
                             &shapes.decoder_width, err);
    }
    inputs->decoder_ids = decoder;
    if (status == HEFT_OK && !ids && !inputs->features) {
        cli_refuse(err, "--ids-file", "has no tensor input_ids, pixel_values or input_features");
        status = HEFT_INVALID_ARG;
    }
    if (status != HEFT_OK) {
        free(ids);
        return status;
    }
    return split(inputs, ids, &shapes, err);
}

heft_status cli_inputs_read(cli_inputs *inputs, heft_ctx *ctx, const char *path, heft_error *err)
{
    heft_checkpoint *file = NULL;
    heft_status status = heft_checkpoint_open(ctx, path, NULL, &file, err);
    if (status == HEFT_OK) {
        status = read_all(inputs, file, err);
    }
    heft_checkpoint_close(file);
    return status;
}

/* Room for `more` inputs behind those that there are. */
static bool make_more(cli_inputs *inputs, size_t more)
{
    cli_inputs made = {0};
    if (!cli_inputs_make(&made, inputs->count + more)) {
        free(made.inputs);
        free(made.ids);
        free(made.tokens);
        return false;
    }
    for (size_t i = 0; i < inputs->count; i++) {
        made.inputs[i] = inputs->inputs[i];
        made.ids[i] = inputs->ids[i];
        made.tokens[i] = inputs->tokens[i];
    }
    free(inputs->inputs);
    free(inputs->ids);
    free(inputs->tokens);
    inputs->inputs = made.inputs;
    inputs->ids = made.ids;
    inputs->tokens = made.tokens;
    inputs->count = made.count;
    return true;
}

/* Behind the texts, if there are any; or, of sound, beside them: a text is what the decoder begins with. */
static heft_status place_features(cli_inputs *inputs, const struct shapes *shapes, bool beside,
                                  heft_error *err)
{
    const size_t each = (size_t)(shapes->feature[0] * shapes->feature[1] * shapes->feature[2]);
    const size_t first = beside ? 0 : inputs->count;
    if (beside && inputs->count != shapes->features) {
        cli_refuse(err, "--audio", "has %zu rows, for %zu texts", shapes->features, inputs->count);
        return HEFT_INVALID_ARG;
    }
    if (!beside && !make_more(inputs, shapes->features)) {
        no_memory(err);
        return HEFT_NOMEM;
    }
    for (size_t i = 0; i < shapes->features; i++) {
        heft_input *input = &inputs->inputs[first + i];
        if (beside) {
            input->decoder_ids = input->ids;
            input->decoder_count = input->count;
            input->ids = NULL;
            input->count = 0;
        } else {
            *input = HEFT_SIZED(heft_input);
        }
        input->features = inputs->features + i * each;
        memcpy(input->feature_shape, shapes->feature, sizeof shapes->feature);
    }
    return HEFT_OK;
}

heft_status cli_inputs_add_features(cli_inputs *inputs, heft_ctx *ctx, const char *path, bool audio,
                                    heft_error *err)
{
    const char *const names[] = {audio ? "input_features" : "pixel_values", NULL};
    heft_checkpoint *file = NULL;
    struct shapes shapes = {0};
    heft_status status = heft_checkpoint_open(ctx, path, NULL, &file, err);
    if (status == HEFT_OK) {
        status = read_features(inputs, file, names, &shapes.features, shapes.feature, err);
    }
    heft_checkpoint_close(file);
    if (status == HEFT_OK && !inputs->features) {
        cli_refuse(err, audio ? "--audio" : "--image", "%s has no tensor %s", path, names[0]);
        return HEFT_INVALID_ARG;
    }
    return status == HEFT_OK ? place_features(inputs, &shapes, audio && inputs->count > 0, err)
                             : status;
}

void cli_inputs_fini(cli_inputs *inputs)
{
    for (size_t i = 0; inputs->ids && i < inputs->count; i++) {
        free(inputs->ids[i]);
    }
    free(inputs->ids);
    free(inputs->tokens);
    free(inputs->inputs);
    free(inputs->positions);
    free(inputs->types);
    free(inputs->decoder_ids);
    free(inputs->mask);
    free(inputs->features);
}

/* ---- results as a file ---------------------------------------------------------------------------------- */
/* Whether a decoder has computed a row for a token: `skips` padding. */
static bool has_row(const heft_input *input, size_t i, bool skips)
{
    return !skips || !input->mask || input->decoder_ids || input->mask[i];
}

/* Tokens of a sequence, as an output has rows for them. */
static size_t tokens_of(const cli_inputs *inputs, const heft_output *output, size_t s)
{
    return output->kind == HEFT_OUTPUT_ENCODED ? inputs->inputs[s].count : inputs->tokens[s];
}

/* [count][width][columns], zeros where there is no row. */
static float *unpack(const cli_inputs *inputs, const heft_output *output, size_t width)
{
    float *all = calloc(inputs->count * width * output->width, sizeof *all);
    size_t rows = 0, row = 0;
    for (size_t s = 0; s < inputs->count; s++) {
        rows += tokens_of(inputs, output, s);
    }
    for (size_t s = 0; all && s < inputs->count; s++) {
        for (size_t i = 0; i < tokens_of(inputs, output, s) && row < output->rows; i++) {
            if (has_row(&inputs->inputs[s], i, output->rows < rows)) {
                memcpy(all + (s * width + i) * output->width, output->data + row++ * output->width,
                       output->width * sizeof *all);
            }
        }
    }
    return all;
}

static void release(void *user)
{
    free(user);
}

static heft_status add_output(heft_writer *writer, const cli_inputs *inputs,
                              const heft_session *session, heft_ctx *ctx, const char *name,
                              heft_error *err)
{
    heft_output output = HEFT_SIZED(heft_output);
    heft_tensor *tensor = NULL;
    heft_storage *storage = NULL;
    heft_status status = heft_session_output(session, name, &output, err);
    if (status != HEFT_OK) {
        return status;
    }
    const bool by_token = output.kind == HEFT_OUTPUT_TOKENS || output.kind == HEFT_OUTPUT_LOGITS ||
                          output.kind == HEFT_OUTPUT_ENCODED;
    size_t width = output.kind == HEFT_OUTPUT_ENCODED ? 0 : inputs->width;
    for (size_t s = 0; by_token && s < inputs->count; s++) {
        const size_t tokens = tokens_of(inputs, &output, s);
        width = tokens > width ? tokens : width;
    }
    const bool packed =
        by_token && width > 0; /* else rows of features: as many for each sequence */
    width = packed ? width : by_token ? output.rows / inputs->count : output.width;
    const uint64_t shape[3] = {by_token ? inputs->count : output.rows, width, output.width};
    const heft_tensor_spec spec = HEFT_OPTIONS(
        heft_tensor_spec, .dtype = HEFT_DTYPE_F32, .shape = shape,
        .rank = by_token && output.width > 1 ? 3 : 2); /* [rows, tokens]: start_logits */
    float *copy = packed ? unpack(inputs, &output, width) : NULL;
    if (packed && !copy) {
        no_memory(err);
        return HEFT_NOMEM;
    }
    const uint64_t bytes = cli_elements(shape, spec.rank) * sizeof(float);
    status = heft_storage_wrap_const(ctx, copy ? copy : output.data, bytes, copy ? release : NULL,
                                     copy, &storage, err);
    if (status == HEFT_OK) {
        status = heft_tensor_new(storage, &spec, &tensor, err);
    } else {
        free(copy);
    }
    if (status == HEFT_OK) {
        status = heft_writer_add(writer, name, tensor, err);
    }
    heft_tensor_free(tensor);
    heft_storage_unref(storage);
    return status;
}

heft_status cli_outputs_save(const cli_inputs *inputs, const heft_session *session, heft_ctx *ctx,
                             const char *const *names, size_t count, const char *path,
                             heft_error *err)
{
    const heft_writer_options options =
        HEFT_OPTIONS(heft_writer_options, .single_file = true, .force = true);
    heft_writer *writer = NULL;
    heft_status status = heft_writer_new(ctx, path, &options, &writer, err);
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        status = add_output(writer, inputs, session, ctx, names[i], err);
    }
    if (status == HEFT_OK) {
        status = heft_writer_commit(writer, NULL, err);
    }
    heft_writer_free(writer);
    return status;
}
