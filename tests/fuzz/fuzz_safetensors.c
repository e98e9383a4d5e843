/* fuzz_safetensors.c - the header of a .safetensors file, with a length that fits so that inputs
 * get deep. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_file(data, size);
    uint8_t *file = malloc(size + 8 + 64);
    if (file) { /* the bytes as a header, with data behind it */
        heft__put_le64(file, size);
        memcpy(file + 8, data, size);
        memset(file + 8 + size, 0, 64);
        fuzz_file(file, size + 8 + (size ? data[size - 1] % 65u : 0));
        free(file);
    }
    return 0;
}
