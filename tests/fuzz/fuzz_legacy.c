/* fuzz_legacy.c - the stream of pickles before PyTorch 1.6. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_file(data, size, HEFT_FORMAT_TORCH_LEGACY);
    return 0;
}
