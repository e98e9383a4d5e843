/* fuzz_offload.c - Accelerate's index.json: what is read is written, and reads back as the same. */
#include "fuzz.h"

static void expect_sound(const heft__offload_entry *entry)
{
    uint64_t bytes = 0;
    if (entry->file) {
        fuzz_expect(entry->file[0] == '/' && entry->weight);
    } else {
        fuzz_expect(entry->shape && heft__offload_holds(entry->dtype) && !entry->weight);
        fuzz_expect(!strchr(entry->name, '/') && strcmp(entry->name, "..") != 0);
        fuzz_expect(heft__shape_bytes(entry->dtype, entry->shape, entry->rank, &bytes));
        fuzz_expect(bytes == entry->size_bytes);
    }
}

static bool same_text(const char *a, const char *b)
{
    return !a || !b ? a == b : strcmp(a, b) == 0;
}

/* Written, and read again. An entry without a dtype cannot be written. */
static void expect_back(const heft__offload_index *index)
{
    heft__offload_index again;
    heft__buffer text;
    heft_error err;
    heft__buffer_init(&text, fuzz_ctx());
    heft__offload_index_write(&text, index->entries, index->count);
    fuzz_expect(!text.failed);
    fuzz_expect(heft__offload_index_parse(fuzz_ctx(), text.data, text.size, &again, &err) ==
                HEFT_OK);
    fuzz_expect(heft__offload_index_sniff(text.data, text.size));
    fuzz_expect(again.count == index->count);
    for (size_t i = 0; i < again.count; i++) {
        const heft__offload_entry *a = &index->entries[i], *b = &again.entries[i];
        fuzz_expect(same_text(a->name, b->name) && same_text(a->file, b->file) &&
                    same_text(a->weight, b->weight) && a->dtype == b->dtype);
        fuzz_expect(a->file || heft__shape_equal(a->shape, a->rank, b->shape, b->rank));
    }
    heft__offload_index_fini(&again);
    heft__buffer_fini(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    heft__offload_index index;
    heft_error err;
    bool whole = true;
    (void)heft__offload_index_sniff(data, size);
    if (heft__offload_index_parse(fuzz_ctx(), data, size, &index, &err) == HEFT_OK) {
        for (size_t i = 0; i < index.count; i++) {
            expect_sound(&index.entries[i]);
            whole = whole && index.entries[i].dtype != HEFT_DTYPE_NONE &&
                    !(i == 0 && (strcmp(index.entries[i].name, "weight_map") == 0 ||
                                 strcmp(index.entries[i].name, "metadata") == 0));
        }
        if (whole) {
            expect_back(&index);
        }
        heft__offload_index_fini(&index);
    }
    fuzz_expect_nothing_live();
    return 0;
}
