/* select.c - which tables of kernels this CPU supports.
 *
 *   plain        128-bit vectors: SSE2, or NEON under its own name; without either, scalar code
 *   avx2         AVX2, FMA, F16C
 *   avx512       AVX-512 F, BW, DQ, VL
 *   avx512_bf16  the same with products of bfloat16 pairs */
#include "kernel/level.h"

#include <stdatomic.h>

#ifdef HEFT_KERNELS_X86
#include <cpuid.h>
#endif

/* Ascending: the last one that is supported is the best. */
static const heft__kernels *const tables[] = {
    &heft__kernels_plain,
#ifdef HEFT_KERNELS_X86
    &heft__kernels_avx2,
    &heft__kernels_avx512,
    &heft__kernels_avx512_bf16,
#endif
};
#define TABLE_COUNT (sizeof tables / sizeof *tables)

#ifdef HEFT_KERNELS_X86
/* Tables that this CPU supports. The compiler's own question also asks whether the operating system
 * keeps the wide registers; the bit of bfloat16 means nothing without AVX-512 F. */
static size_t find_supported(void)
{
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & bit_F16C) == 0) {
        return 1;
    }
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
        return 2;
    }
    if (!__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) || (eax & 1U << 5) == 0) {
        return 3;
    }
    return 4;
}
#else
static size_t find_supported(void)
{
    return 1;
}
#endif

/* Asked once: a hypervisor may take 10 microseconds for each answer. */
static size_t supported(void)
{
    static atomic_size_t known;
    size_t count = atomic_load_explicit(&known, memory_order_relaxed);
    if (count == 0) {
        count = find_supported();
        atomic_store_explicit(&known, count, memory_order_relaxed);
    }
    return count;
}

const heft__kernels *heft__kernels_at(size_t i)
{
    return i < supported() ? tables[i] : NULL;
}

const heft__kernels *heft__kernels_best(void)
{
    return tables[supported() - 1];
}

const heft__kernels *heft__kernels_named(const char *isa)
{
    for (size_t i = 0; i < supported(); i++) {
        if (strcmp(tables[i]->isa, isa) == 0) {
            return tables[i];
        }
    }
    return NULL;
}
