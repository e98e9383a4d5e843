/* fuzz_text.c - a tokenizer.json, and a text through the tokenizer that it makes: ids, the text of the ids, and
 * the ids one by one. What is behind a first NUL is the text. */
#include "fuzz.h"

#include "text/text.h"

static void use(const heft_tokenizer *tokenizer, const char *text, size_t length)
{
    uint32_t *ids = NULL;
    size_t count = 0, decoded_length = 0;
    char *decoded = NULL;
    heft_text_stream *stream = NULL;
    heft_error err;
    if (heft_tokenizer_encode(tokenizer, text, length, true, &ids, &count, &err) != HEFT_OK) {
        return;
    }
    if (heft_tokenizer_decode(tokenizer, ids, count, false, &decoded, &decoded_length, &err) ==
        HEFT_OK) {
        fuzz_expect(heft__utf8_invalid_at((const uint8_t *)decoded, decoded_length) ==
                    decoded_length);
        heft_tokenizer_free_text(tokenizer, decoded, decoded_length);
    }
    if (heft_text_stream_new(tokenizer, true, &stream, &err) == HEFT_OK) {
        for (size_t i = 0; i < count && i < 100; i++) {
            const char *part;
            if (heft_text_stream_add(stream, ids[i], &part, &decoded_length, &err) == HEFT_OK) {
                fuzz_expect(heft__utf8_invalid_at((const uint8_t *)part, decoded_length) ==
                            decoded_length);
            }
        }
        heft_text_stream_free(stream);
    }
    heft_tokenizer_free_ids(tokenizer, ids, count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char sample[] =
        "Hello  world, it's 1234 <s> \xC3\xA9 e\xCC\x81 \xE4\xBD\xA0\xE5\xA5\xBD\r\n\tx";
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    const size_t length = end ? (size_t)(end - data) : size;
    heft_tokenizer *tokenizer = NULL;
    heft_error err;
    if (heft_tokenizer_open_bytes(fuzz_ctx(), "tokenizer.json", data, length, &tokenizer, &err) ==
        HEFT_OK) {
        use(tokenizer, sample, sizeof sample - 1);
        if (end) {
            use(tokenizer, (const char *)end + 1, size - length - 1);
        }
        heft_tokenizer_close(tokenizer);
    }
    fuzz_expect_nothing_live();
    return 0;
}
