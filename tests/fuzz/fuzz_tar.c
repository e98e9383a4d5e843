/* fuzz_tar.c - the tar of the first PyTorch versions. */
#include "repair.h"

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t cap, unsigned int seed)
{
    size = LLVMFuzzerMutate(data, size, cap);
    if (seed % 4) {
        repair_tar(data, size);
    }
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_file(data, size, HEFT_FORMAT_TORCH_TAR);
    return 0;
}
