/* fuzz_shard_index.c - *.index.json. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    heft__shard_index index;
    heft_error err;
    if (heft__shard_index_parse(fuzz_ctx(), data, size, &index, &err) == HEFT_OK) {
        for (size_t i = 0; i < index.entry_count; i++) {
            if (index.entries[i].file >= index.file_count ||
                strchr(index.files[index.entries[i].file], '/')) {
                abort();
            }
        }
        heft__shard_index_fini(&index);
    }
    return 0;
}
