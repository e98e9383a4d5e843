/* fuzz_json.c - a document as a tree; what is written reads back as the same text. */
#include "fuzz.h"

static heft_status reprint(const uint8_t *data, size_t size, heft__buffer *out)
{
    heft__arena arena;
    heft__json_value *root = NULL;
    heft_error err;
    heft__arena_init(&arena, fuzz_ctx());
    heft_status status = heft__json_parse(&arena, data, size, 64, &root, &err);
    if (status == HEFT_OK) {
        heft__json_write_python(out, root);
    }
    heft__arena_fini(&arena);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    heft__buffer first, second;
    heft__buffer_init(&first, fuzz_ctx());
    heft__buffer_init(&second, fuzz_ctx());
    if (reprint(data, size, &first) == HEFT_OK) {
        heft_status again = reprint(first.data, first.size, &second);
        bool special = memmem(first.data, first.size, "Infinity", 8) !=
                       NULL; /* 1e999: Python's text is no JSON */
        if (!special && (again != HEFT_OK || first.size != second.size ||
                         memcmp(first.data, second.data, first.size))) {
            abort();
        }
    }
    heft__buffer_fini(&first);
    heft__buffer_fini(&second);
    return 0;
}
