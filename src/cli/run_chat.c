/* run_chat.c - `heft run --chat`: messages as the text that the folder's chat template makes of them. */
#include "cli/running.h"

#include <stdlib.h>
#include <string.h>

heft_status cli_chat_open(heft_ctx *ctx, const heft_source *source, heft_chat **out,
                          heft_error *err)
{
    char *folder = cli_source_folder(source);
    if (!folder) {
        cli_refuse(err, "", "not enough memory");
        return HEFT_NOMEM;
    }
    const heft_status status = heft_chat_open(ctx, folder, NULL, out, err);
    free(folder);
    return status;
}

static void put_message(FILE *out, const char *role, const char *text, size_t length)
{
    fprintf(out, "{\"role\": \"%s\", \"content\": \"", role);
    for (size_t i = 0; i < length; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') {
            putc('\\', out);
        }
        if (c < 0x20) {
            fprintf(out, "\\u%04x", c);
        } else {
            putc(c, out);
        }
    }
    fputs("\"}", out);
}

/* One user message behind the system message as JSON, owned; NULL without memory. */
static char *messages_of(const char *system, const char *text, size_t length, size_t *bytes)
{
    char *json = NULL;
    FILE *out = open_memstream(&json, bytes);
    if (!out) {
        return NULL;
    }
    putc('[', out);
    if (system) {
        put_message(out, "system", system, strlen(system));
        fputs(", ", out);
    }
    put_message(out, "user", text, length);
    putc(']', out);
    const bool good = !ferror(out);
    if (fclose(out) != 0 || !good) {
        free(json);
        return NULL;
    }
    return json;
}

heft_status cli_chat_render(const cli_prompts *prompts, size_t number, const char *text,
                            size_t length, char **rendered, size_t *rendered_length,
                            heft_error *err)
{
    const bool list = prompts->lists && length > 0 && *text == '[';
    size_t bytes = length;
    char *json = list ? NULL : messages_of(prompts->system, text, length, &bytes);
    if (list && prompts->system) {
        cli_refuse(err, "--system", "prompt %zu is a list of messages, which has its own", number);
        return HEFT_INVALID_ARG;
    }
    if (!list && !json) {
        cli_refuse(err, "", "not enough memory for the messages");
        return HEFT_NOMEM;
    }
    heft_status status = heft_chat_render(prompts->chat, list ? text : json, bytes, NULL, rendered,
                                          rendered_length, err);
    free(json);
    if (status == HEFT_INVALID_ARG && strcmp(err->item, "messages") == 0) {
        snprintf(err->item, sizeof err->item, "prompt %zu", number);
        if (!list) { /* the byte is one of the JSON above */
            err->offset = HEFT_NO_OFFSET;
            snprintf(err->message, sizeof err->message, "the text is not UTF-8");
        }
    }
    return status;
}

int32_t cli_chat_stop(const heft_chat *chat, const heft_tokenizer *tokenizer)
{
    size_t length;
    uint32_t id;
    const char *text = chat ? heft_chat_token(chat, "eos_token", &length) : NULL;
    return text && heft_tokenizer_id(tokenizer, text, length, &id) ? (int32_t)id : -1;
}
