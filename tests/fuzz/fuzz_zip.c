/* fuzz_zip.c - the zip container alone: directory, local headers, records, deflate. */
#include "repair.h"

#include "format/zip.h"

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t cap, unsigned int seed)
{
    size = LLVMFuzzerMutate(data, size, cap);
    if (seed % 4) {
        repair_zip(data, size);
    }
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    heft_ctx *ctx = fuzz_ctx();
    heft__input *source = fuzz_source(data, size);
    heft__zip zip;
    heft_error err;
    if (source && heft__zip_open(ctx, source, &zip, &err) == HEFT_OK) {
        for (size_t i = 0; i < zip.count; i++) {
            const heft__zip_entry *entry = &zip.entries[i], *found = NULL;
            uint8_t *bytes = NULL;
            fuzz_expect(entry->data <= size && entry->stored_bytes <= size - entry->data);
            fuzz_expect(heft__zip_find(&zip, entry->name, entry->name_length, &found, &err) ==
                            HEFT_OK &&
                        found == entry);
            if (heft__zip_read(&zip, entry, 1 << 20, &bytes, &err) == HEFT_OK) {
                heft__free(ctx, bytes, (size_t)entry->bytes);
            }
        }
    }
    if (source) {
        heft__zip_fini(&zip);
    }
    heft__input_unref(source);
    fuzz_expect_nothing_live();
    return 0;
}
