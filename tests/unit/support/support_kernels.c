/* support_kernels.c - see support_kernels.h. */
#include "support_kernels.h"

#include <sys/mman.h>
#include <unistd.h>

test_guarded test_guarded_new(size_t bytes, size_t align)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t room = (bytes + align - 1) / align * align;
    const size_t pages = (room + page - 1) / page + 1;
    test_guarded guarded = {.map_bytes = pages * page};
    guarded.map =
        mmap(NULL, guarded.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(guarded.map != MAP_FAILED);
    char *end = (char *)guarded.map + (pages - 1) * page;
    assert_int_equal(mprotect(end, page, PROT_NONE), 0);
    guarded.data = end - room;
    memset(guarded.map, 0xff, (pages - 1) * page);
    return guarded;
}

void test_guarded_free(test_guarded *guarded)
{
    munmap(guarded->map, guarded->map_bytes);
    memset(guarded, 0, sizeof *guarded);
}

float test_uniform(uint64_t *state)
{
    *state = *state * 6364136223846793005U + 1442695040888963407U;
    return (float)(int32_t)(uint32_t)(*state >> 32) * 0x1p-31F;
}

size_t test_dtype_bytes(heft_dtype dtype)
{
    return heft_dtype_bits(dtype) / 8;
}

void test_put(void *data, heft_dtype dtype, size_t i, float value)
{
    heft__kernels_reference.narrow((char *)data + i * test_dtype_bytes(dtype), dtype, &value, 1);
}

void test_each_isa(void (*check)(const heft__kernels *k))
{
    for (size_t i = 0; heft__kernels_at(i); i++) {
        print_message("           %s\n", heft__kernels_at(i)->isa);
        check(heft__kernels_at(i));
    }
}
