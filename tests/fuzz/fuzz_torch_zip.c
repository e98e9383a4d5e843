/* fuzz_torch_zip.c - a whole PyTorch zip, its tensors read. */
#include "repair.h"

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
    fuzz_file(data, size, HEFT_FORMAT_TORCH);
    return 0;
}
