/* run_text.c - prompts of `heft run` and `heft embed`: text to ids. */
#include "cli/running.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MOST_BYTES ((size_t)1 << 28)

char *cli_source_folder(const heft_source *source, const char *subfolder, size_t up)
{
    char *folder = strdup(heft_source_folder(source));
    const char *rest = subfolder ? subfolder : "";
    for (size_t end = folder ? strlen(folder) : 0; end > 1 && folder[end - 1] == '/'; end--) {
        folder[end - 1] = '\0';
    }
    for (size_t i = 0; folder && i < up; i++) {
        while (*rest == '/') {
            rest++;
        }
        char *slash = strrchr(folder, '/');
        if (!*rest || !slash || slash == folder) { /* there is none above that was named */
            free(folder);
            return NULL;
        }
        *slash = '\0';
        rest += strcspn(rest, "/");
    }
    return folder;
}

heft_status cli_open_beside(const heft_source *source, const char *subfolder,
                            heft_status (*open)(void *user, const char *folder, heft_error *err),
                            void *user, heft_error *err)
{
    char *folder = cli_source_folder(source, subfolder, 0);
    heft_status status = HEFT_NOT_FOUND;
    if (!folder) {
        cli_refuse(err, "", "not enough memory");
        return HEFT_NOMEM;
    }
    for (size_t up = 1; folder && status == HEFT_NOT_FOUND; up++) {
        heft_error other = {0};
        status = open(user, folder, up == 1 ? err : &other);
        if (status != HEFT_OK && status != HEFT_NOT_FOUND && up > 1 && err) {
            *err = other;
        }
        free(folder);
        folder = cli_source_folder(source, subfolder, up);
    }
    free(folder);
    return status;
}

struct opening {
    cli_run *run;
    heft_tokenizer **out;
};

/* A config that cannot be read concerns nobody here. */
static void warn_of_config(cli_run *run, const heft_tokenizer *tokenizer, const char *folder)
{
    char *names = NULL, line[512];
    size_t length = 0;
    if (heft_tokenizer_check_config(tokenizer, folder, &names, &length, NULL) != HEFT_OK) {
        return;
    }
    if (length > 0) {
        snprintf(line, sizeof line, "tokenizer_config.json: not followed: %.400s", names);
        cli_warn(run, line);
    }
    heft_tokenizer_free_text(tokenizer, names, length);
}

static heft_status open_tokenizer(void *user, const char *folder, heft_error *err)
{
    const struct opening *opening = user;
    const heft_status status = heft_tokenizer_open(opening->run->ctx, folder, opening->out, err);
    if (status == HEFT_OK) {
        warn_of_config(opening->run, *opening->out, folder);
    }
    return status;
}

heft_status cli_tokenizer_open(cli_run *run, const heft_source *source, const char *subfolder,
                               heft_tokenizer **out, heft_error *err)
{
    struct opening opening = {run, out};
    return cli_open_beside(source, subfolder, open_tokenizer, &opening, err);
}

char *cli_text_read(const char *path, const char *option, heft_error *err)
{
    FILE *in = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    size_t used = 0, cap = (size_t)1 << 16;
    char *text = in ? malloc(cap) : NULL;
    if (!in) {
        cli_refuse(err, option, "cannot open '%.200s': %s", path, strerror(errno));
        err->status = errno == ENOENT || errno == ENOTDIR ? HEFT_NOT_FOUND : HEFT_IO;
        return NULL;
    }
    bool good = text != NULL;
    while (good && !feof(in) && !ferror(in)) {
        used += fread(text + used, 1, cap - used - 1, in);
        if (used + 1 == cap) {
            char *more = cap < MOST_BYTES ? realloc(text, 2 * cap) : NULL;
            good = more != NULL;
            text = more ? more : text;
            cap *= 2;
        }
    }
    good = good && !ferror(in);
    if (in != stdin) {
        fclose(in);
    }
    if (good) {
        text[used] = '\0';
        good = strlen(text) == used;
    }
    if (!good) {
        free(text);
        cli_refuse(err, option, "'%.200s' cannot be read as text", path);
        return NULL;
    }
    return text;
}

static heft_status tokenize_behind(const cli_prompts *prompts, const char *text, size_t length,
                                   uint32_t **ids, size_t *count, heft_error *err)
{
    const size_t before = strlen(prompts->before);
    char *whole = malloc(before + length + 1);
    if (!whole) {
        cli_refuse(err, "", "not enough memory for the prompts");
        return HEFT_NOMEM;
    }
    memcpy(whole, prompts->before, before);
    memcpy(whole + before, text, length);
    const heft_status status =
        heft_tokenizer_encode(prompts->tokenizer, whole, before + length, true, ids, count, err);
    free(whole);
    return status;
}

/* A chat template writes its special tokens itself. */
static heft_status tokenize(const cli_prompts *prompts, size_t i, const char *text, size_t length,
                            uint32_t **ids, size_t *count, heft_error *err)
{
    char *rendered = NULL;
    size_t bytes = 0;
    heft_status status = HEFT_OK;
    if (!prompts->chat && prompts->before) {
        return tokenize_behind(prompts, text, length, ids, count, err);
    }
    if (!prompts->chat) {
        return heft_tokenizer_encode(prompts->tokenizer, text, length, true, ids, count, err);
    }
    status = cli_chat_render(prompts, i + 1, text, length, &rendered, &bytes, err);
    if (status == HEFT_OK) {
        status = heft_tokenizer_encode(prompts->tokenizer, rendered, bytes, false, ids, count, err);
    }
    heft_chat_free_text(prompts->chat, rendered, bytes);
    return status;
}

/* Ids of one prompt into place i. */
static heft_status encode(cli_inputs *inputs, size_t i, cli_prompts *prompts, const char *text,
                          size_t length, heft_error *err)
{
    const heft_tokenizer *tokenizer = prompts->tokenizer;
    uint32_t *ids = NULL;
    size_t count = 0;
    heft_status status = tokenize(prompts, i, text, length, &ids, &count, err);
    if (status != HEFT_OK) {
        if (!err->item[0]) {
            snprintf(err->item, sizeof err->item, "prompt %zu", i + 1);
        }
        return status;
    }
    const size_t all = count;
    if (prompts->most > 0 && count > prompts->most) {
        count = (size_t)prompts->most;
        ids[count - 1] =
            heft_tokenizer_is_special(tokenizer, ids[all - 1]) ? ids[all - 1] : ids[count - 1];
        prompts->cut++;
    }
    inputs->ids[i] = malloc((count ? count : 1) * sizeof **inputs->ids);
    for (size_t t = 0; inputs->ids[i] && t < count; t++) {
        inputs->ids[i][t] = (int32_t)ids[t];
    }
    heft_tokenizer_free_ids(tokenizer, ids, all);
    if (!inputs->ids[i] || count == 0) {
        cli_refuse(err, "",
                   count ? "not enough memory for the prompts" : "prompt %zu has no tokens", i + 1);
        return count ? HEFT_NOMEM : HEFT_INVALID_ARG;
    }
    inputs->tokens[i] = count;
    inputs->width = count > inputs->width ? count : inputs->width;
    inputs->inputs[i] = HEFT_OPTIONS(heft_input, .ids = inputs->ids[i], .count = count);
    return HEFT_OK;
}

/* Lines, without the empty one behind the last newline. */
static size_t count_lines(const char *text)
{
    size_t lines = 0;
    for (const char *at = text; *at; lines++) {
        const char *end = strchr(at, '\n');
        at = end ? end + 1 : at + strlen(at);
    }
    return lines;
}

heft_status cli_prompts_encode(cli_inputs *inputs, cli_prompts *prompts, const char *text,
                               bool by_line, heft_error *err)
{
    const size_t count = by_line ? count_lines(text) : 1;
    heft_status status = HEFT_OK;
    const char *at = text;
    prompts->cut = 0;
    if (count == 0) {
        cli_refuse(err, "--batch", "has no prompts");
        return HEFT_INVALID_ARG;
    }
    if (!cli_inputs_make(inputs, count)) {
        cli_refuse(err, "", "not enough memory for the prompts");
        return HEFT_NOMEM;
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        const char *newline = by_line ? strchr(at, '\n') : NULL;
        const size_t length = newline ? (size_t)(newline - at) : strlen(at);
        const bool carriage = by_line && length > 0 && at[length - 1] == '\r';
        status = encode(inputs, i, prompts, at, length - carriage, err);
        at = newline ? newline + 1 : at + length;
    }
    return status;
}
