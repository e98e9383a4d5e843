/* fuzz_torch.c - any file by its content: torch zip, legacy stream, tar. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_file(data, size);
    return 0;
}
