/* fuzz_safetensors.c - a safetensors file: header length, JSON header, offsets. */
#include "repair.h"

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t cap, unsigned int seed)
{
    size = LLVMFuzzerMutate(data, size, cap);
    if (seed % 4) {
        repair_header(data, size);
    }
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_file(data, size, HEFT_FORMAT_SAFETENSORS);
    return 0;
}
