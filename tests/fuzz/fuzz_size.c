/* fuzz_size.c - size strings. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[128];
    uint64_t bytes;
    heft_error err;
    size = size < sizeof text - 1 ? size : sizeof text - 1;
    memcpy(text, data, size);
    text[size] = '\0';
    if (heft_size_parse(text, &bytes, &err) == HEFT_OK && bytes > INT64_MAX) {
        abort();
    }
    return 0;
}
