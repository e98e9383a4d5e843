/* run_chat.c - `heft run --chat`: messages as the text that the folder's chat template makes of them. */
#include "cli/running.h"

#include <stdlib.h>
#include <string.h>

struct opening {
    heft_ctx *ctx;
    heft_chat **out;
};

static heft_status open_chat(void *user, const char *folder, heft_error *err)
{
    const struct opening *opening = user;
    return heft_chat_open(opening->ctx, folder, NULL, opening->out, err);
}

heft_status cli_chat_open(heft_ctx *ctx, const heft_source *source, const char *subfolder,
                          heft_chat **out, heft_error *err)
{
    struct opening opening = {ctx, out};
    return cli_open_beside(source, subfolder, open_chat, &opening, err);
}

bool cli_is_utf8(const char *text)
{
    uint32_t code;
    size_t length = 1;
    for (; *text && length > 0; text += length) {
        length = cli_utf8(text, &code);
    }
    return length > 0;
}

char *cli_chat_messages(const cli_message *messages, size_t count, size_t *bytes)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, bytes);
    cli_json json = {.out = out};
    if (!out) {
        return NULL;
    }
    cli_json_open(&json, NULL, '[');
    for (size_t i = 0; i < count; i++) {
        cli_json_open(&json, NULL, '{');
        cli_json_string(&json, "role", messages[i].role);
        cli_json_string(&json, "content", messages[i].text);
        cli_json_close(&json, '}');
    }
    cli_json_close(&json, ']');
    const bool good = !ferror(out);
    if (fclose(out) != 0 || !good) {
        free(text);
        return NULL;
    }
    return text;
}

/* One user message behind the system message as JSON, owned. INVALID_ARG for what is not UTF-8: as JSON, it would be
 * another text. */
static heft_status messages_of(const char *system, const char *text, size_t length, char **json,
                               size_t *bytes, heft_error *err)
{
    char *own = strndup(text, length);
    const cli_message messages[] = {
        {"system", system},
        {"user",   own   }
    };
    if (own && (!cli_is_utf8(own) || (system && !cli_is_utf8(system)))) {
        free(own);
        cli_refuse(err, "messages", "the text is not UTF-8");
        return HEFT_INVALID_ARG;
    }
    *json = own ? cli_chat_messages(system ? messages : messages + 1, system ? 2 : 1, bytes) : NULL;
    free(own);
    if (!*json) {
        cli_refuse(err, "", "not enough memory for the messages");
        return HEFT_NOMEM;
    }
    return HEFT_OK;
}

heft_status cli_chat_render(const cli_prompts *prompts, size_t number, const char *text,
                            size_t length, char **rendered, size_t *rendered_length,
                            heft_error *err)
{
    const bool list = prompts->lists && length > 0 && *text == '[';
    size_t bytes = length;
    char *json = NULL;
    heft_status status = HEFT_OK;
    if (list && prompts->system) {
        cli_refuse(err, "--system", "prompt %zu is a list of messages, which has its own", number);
        return HEFT_INVALID_ARG;
    }
    if (!list) {
        status = messages_of(prompts->system, text, length, &json, &bytes, err);
    }
    if (status == HEFT_OK) {
        status = heft_chat_render(prompts->chat, list ? text : json, bytes, NULL, rendered,
                                  rendered_length, err);
    }
    free(json);
    if (status == HEFT_INVALID_ARG && strcmp(err->item, "messages") == 0) {
        snprintf(err->item, sizeof err->item, "prompt %zu", number);
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
