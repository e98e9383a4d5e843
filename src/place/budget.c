/* budget.c - how much memory there is for a model on this machine, and why no more.
 *
 * The least of: what the kernel calls available; what a container's limit leaves (cgroup v2 and v1,
 * its own and those above it); what the process may still map (RLIMIT_AS). Page cache counts as
 * available in all of them.
 * Source: proc(5), cgroups(7). */
#include "place/place.h"

#include <stdlib.h>

/* The number after a key at the start of a line, times `unit`; `none` without it. */
static uint64_t read_number(const char *path, const char *key, uint64_t unit, uint64_t none)
{
    char line[512];
    uint64_t value = none;
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file)) {
        const size_t length = strlen(key);
        char *end;
        if (strncmp(line, key, length) == 0) {
            uint64_t number = strtoull(line + length, &end, 10);
            value = end == line + length ? none : number * unit; /* "max" is no number */
            break;
        }
    }
    if (file) {
        fclose(file);
    }
    return value;
}

static void lower(heft_machine *machine, uint64_t bytes, const char *reason)
{
    if (bytes < machine->bytes) {
        machine->bytes = bytes;
        machine->reason = reason;
    }
}

/* What a group's limit leaves; the cache that is charged to it can go. */
static void look_at_group(heft_machine *machine, const char *limit_path, const char *use_path,
                          const char *stat_path, const char *cache_key, const char *reason)
{
    const uint64_t limit = read_number(limit_path, "", 1, UINT64_MAX),
                   use = read_number(use_path, "", 1, 0),
                   cache = read_number(stat_path, cache_key, 1, 0);
    if (limit < (UINT64_MAX >> 2)) {
        const uint64_t held = use > cache ? use - cache : 0;
        lower(machine, limit > held ? limit - held : 0, reason);
    }
}

/* This process's group below a hierarchy: v2 has the line "0::/path", v1 "5:memory:/path". */
static void find_group(const char *tag, char path[512])
{
    char line[600];
    FILE *file = fopen("/proc/self/cgroup", "re");
    path[0] = '\0';
    while (file && fgets(line, sizeof line, file)) {
        char *found = strstr(line, tag);
        if (found) {
            found += strlen(tag);
            found[strcspn(found, "\n")] = '\0';
            snprintf(path, 512, "%.500s", found);
            break;
        }
    }
    if (file) {
        fclose(file);
    }
}

/* The group and all above it. */
static void look_at_groups(heft_machine *machine, bool newer)
{
    const char *root = newer ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    char group[512], limit[700], use[700], stat[700];
    find_group(newer ? "0::" : ":memory:", group);
    for (;;) {
        snprintf(limit, sizeof limit, "%s%s/%s", root, group,
                 newer ? "memory.max" : "memory.limit_in_bytes");
        snprintf(use, sizeof use, "%s%s/%s", root, group,
                 newer ? "memory.current" : "memory.usage_in_bytes");
        snprintf(stat, sizeof stat, "%s%s/memory.stat", root, group);
        look_at_group(machine, limit, use, stat, newer ? "file " : "total_cache ",
                      newer ? "the container's limit (cgroup v2)"
                            : "the container's limit (cgroup v1)");
        char *slash = strrchr(group, '/');
        if (!slash) {
            return;
        }
        *slash = '\0';
    }
}

void heft__machine_look(heft_machine *machine)
{
    machine->bytes = read_number("/proc/meminfo", "MemAvailable:", 1024, UINT64_MAX);
    machine->reason = machine->bytes == UINT64_MAX ? "unknown" : "available memory";
    look_at_groups(machine, true);
    look_at_groups(machine, false);
    uint64_t limit, resident, used;
    if (heft__address_space(&limit)) {
        (void)heft__process_memory(&resident, &used);
        lower(machine, limit > used ? limit - used : 0, "the address space limit (ulimit -v)");
    }
}

/* Buffers of the threads and lists; page tables, which containers count. */
#define BESIDE ((uint64_t)16 << 20)
#define PAGE_TABLES 256 /* one byte of them for so many, twice what they are */

heft_status heft_machine_memory(heft_machine *machine, heft_error *err)
{
    heft_machine found = HEFT_SIZED(heft_machine);
    heft__machine_look(&found);
    return HEFT__GIVE_SIZED(machine, &found, err);
}

uint64_t heft__machine_for_weights(const heft_machine *machine)
{
    const uint64_t beside = BESIDE + machine->bytes / PAGE_TABLES;
    return machine->bytes > beside ? machine->bytes - beside : 0;
}
