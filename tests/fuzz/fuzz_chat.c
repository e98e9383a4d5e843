/* fuzz_chat.c - a chat template, and messages through it. What is behind a first NUL is the messages. */
#include "fuzz.h"

#include "text/text.h"

#include <heft/chat.h>

static void use(const heft_chat *chat, const char *messages, size_t length)
{
    const heft_chat_options options = HEFT_OPTIONS(
        heft_chat_options, .now = 1700000000,
        .variables_json = "{\"tools\": [{\"name\": \"f\", \"parameters\": {\"x\": 1.5}}]}");
    char *text = NULL;
    size_t size = 0;
    heft_error err;
    if (heft_chat_render(chat, messages, length, &options, &text, &size, &err) == HEFT_OK) {
        fuzz_expect(heft__utf8_invalid_at((const uint8_t *)text, size) == size);
        heft_chat_free_text(chat, text, size);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char config[] = "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}}";
    static const char messages[] =
        "[{\"role\": \"system\", \"content\": \" S\\u00e9 \\n\"}, {\"role\": \"user\", "
        "\"content\": "
        "[{\"type\": \"text\", \"text\": \"x\"}]}, {\"role\": \"assistant\", \"content\": null, "
        "\"thinking\": \"<think>a</think>\", \"tool_calls\": [{\"name\": \"f\", \"arguments\": "
        "{\"a\": "
        "[1, 2.5, true, null]}}]}, {\"role\": \"user\", \"content\": \"Hi, it's 12\"}]";
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    const size_t length = end ? (size_t)(end - data) : size;
    heft_chat *chat = NULL;
    heft_error err;
    if (heft_chat_open_bytes(fuzz_ctx(), "template", (const char *)data, length, config,
                             sizeof config - 1, &chat, &err) == HEFT_OK) {
        use(chat, messages, sizeof messages - 1);
        if (end) {
            use(chat, (const char *)end + 1, size - length - 1);
        }
        heft_chat_close(chat);
    }
    fuzz_expect_nothing_live();
    return 0;
}
