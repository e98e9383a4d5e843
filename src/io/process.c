/* process.c - how much memory this process has, and in which pages.
 *
 * Source: proc(5), /proc/self/statm; getrlimit(2). */
#include "io/io.h"

#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

uint64_t heft__page_bytes(void)
{
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

uint64_t heft__huge_page_bytes(uint64_t page)
{
    return page / 8 * page;
}

bool heft__process_memory(uint64_t *resident, uint64_t *mapped)
{
    const uint64_t page = heft__page_bytes();
    unsigned long long all = 0, there = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    const bool good = file && fscanf(file, "%llu %llu", &all, &there) == 2;
    if (file) {
        fclose(file);
    }
    *mapped = all * page;
    *resident = there * page;
    return good;
}

bool heft__address_space(uint64_t *limit)
{
    struct rlimit set;
    *limit = UINT64_MAX;
    if (getrlimit(RLIMIT_AS, &set) == 0 && set.rlim_cur != RLIM_INFINITY) {
        *limit = (uint64_t)set.rlim_cur;
    }
    return *limit != UINT64_MAX;
}
