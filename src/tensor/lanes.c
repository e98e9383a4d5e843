/* lanes.c - which instruction set level this CPU supports. */
#include "tensor/lanes.h"

#include <stdatomic.h>

#ifdef HEFT_LANES_X86
#include <cpuid.h>
#endif

/* -1: not asked yet. Two threads that ask at once find the same. */
static atomic_int level_in_use = -1;

bool heft__lanes_have(int level)
{
    bool have = level == HEFT__LEVEL_BASE;
#ifdef HEFT_LANES_X86
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    __builtin_cpu_init();
    /* The compiler's own question also asks whether the operating system keeps the wide registers;
     * F16C came before AVX2 but is a bit of its own. */
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
                __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    have = have || (level == HEFT__LEVEL_AVX2 && avx2) || (level == HEFT__LEVEL_AVX512 && avx512);
#endif
    return have;
}

static int level_best(void)
{
    int level = HEFT__LEVEL_COUNT - 1;
    while (!heft__lanes_have(level)) {
        level--;
    }
    return level;
}

int heft__lanes_level(void)
{
    int level = atomic_load_explicit(&level_in_use, memory_order_relaxed);
    if (level < 0) {
        level = level_best();
        atomic_store_explicit(&level_in_use, level, memory_order_relaxed);
    }
    return level;
}

bool heft__lanes_force(int level)
{
    if (level >= 0 && !heft__lanes_have(level)) {
        return false;
    }
    atomic_store_explicit(&level_in_use, level < 0 ? level_best() : level, memory_order_relaxed);
    return true;
}
