/* heft/chat.h - chat templates: messages to the text that a model was trained to continue. */
#ifndef HEFT_CHAT_H
#define HEFT_CHAT_H

#include <heft/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * A chat template with the special tokens of its tokenizer. It does not change after it is opened:
 * any number of threads may use it at once.
 */
typedef struct heft_chat heft_chat;

/**
 * Open the chat template of a checkpoint folder. As in Transformers, it is the first of these:
 * `chat_template.jinja` and the files of `additional_chat_templates`; `chat_template` of
 * `tokenizer_config.json`, one template or a list of named ones; `chat_template.json`.
 *
 * @param ctx   borrowed; kept alive by the template
 * @param path  borrowed; the folder
 * @param name  borrowed; which of several templates, such as "tool_use"; NULL: "default"
 * @param out   filled with an owned template; free it with heft_chat_close()
 * @param err   filled on failure; may be NULL
 *
 * Memory   about 110 bytes for each name, constant and operator of the template, and its text.
 * Errors   NOT_FOUND if the folder has no template, or none of the name; IO; FORMAT; UNSUPPORTED,
 *          naming it and its line, for a statement that is not known; LIMIT (`chat_bytes`,
 *          `tokenizer_bytes`).
 * Source   docs/text.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_chat_open(heft_ctx *ctx, const char *path,
                                                    const char *name, heft_chat **out,
                                                    heft_error *err);
/**
 * Open a chat template from its text.
 *
 * @param ctx            borrowed; kept alive by the template
 * @param name           borrowed; used as the path in errors
 * @param text           borrowed; UTF-8
 * @param length         bytes of the text
 * @param config         borrowed; the text of a `tokenizer_config.json`, which has the special
 *                       tokens; NULL: there are none
 * @param config_length  bytes of the config
 * @param out            filled with an owned template; free it with heft_chat_close()
 * @param err            filled on failure; may be NULL
 *
 * Errors   as heft_chat_open().
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_chat_open_bytes(heft_ctx *ctx, const char *name,
                                                          const char *text, size_t length,
                                                          const char *config, size_t config_length,
                                                          heft_chat **out, heft_error *err);
/** Free a template. NULL is allowed. */
HEFT_API void heft_chat_close(heft_chat *chat);
/** Return the text of a special token by its key in tokenizer_config.json, such as "eos_token", and
 * fill its length; lent by the template, NUL-terminated. NULL if there is none. */
HEFT_API const char *heft_chat_token(const heft_chat *chat, const char *key, size_t *length);

typedef struct heft_chat_options {
    size_t struct_size;         /* set by HEFT_OPTIONS */
    bool no_generation_prompt;  /* do not begin the model's answer behind the messages */
    const char *variables_json; /* an object whose members are variables of the template, such as
                                 * {"enable_thinking": false, "tools": [...]}; NULL: none */
    int64_t
        now; /* the time that strftime_now() tells, in seconds since 1970; 0: that of the clock */
} heft_chat_options;

/**
 * Render messages. The result is the text that Transformers' apply_chat_template() makes of them,
 * or the rendering fails. It has the special tokens that the template writes: encode it with
 * heft_tokenizer_encode() and add_special false.
 *
 * @param chat      borrowed
 * @param messages  borrowed; a JSON list of messages, such as
 *                  [{"role": "user", "content": "Hello"}]
 * @param length    bytes of the messages
 * @param options   borrowed; NULL: defaults
 * @param text      filled with an owned text, NUL-terminated; free it with heft_chat_free_text()
 * @param text_length filled with the bytes of the text
 * @param err       filled on failure; may be NULL; `item` is the line of the template
 *
 * Errors   INVALID_ARG for messages that are not such a list, and for those that the template
 *          itself refuses; UNSUPPORTED, naming it, for a filter, test, function or method that is
 *          not known, or a value whose text is not; FORMAT for what Jinja fails with as well, such
 *          as a member of what is undefined; LIMIT for a rendering that takes too many steps, or
 *          too much memory (`chat_bytes`).
 * Threads  may be called by any number of threads at once.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_chat_render(const heft_chat *chat, const char *messages,
                                                      size_t length,
                                                      const heft_chat_options *options, char **text,
                                                      size_t *text_length, heft_error *err);
/** Free the text of heft_chat_render(). NULL is allowed. */
HEFT_API void heft_chat_free_text(const heft_chat *chat, char *text, size_t length);

#ifdef __cplusplus
}
#endif
#endif
