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

/* The number in a file of a group, below the root of its hierarchy. */
static uint64_t read_of_group(const char *group, bool newer, const char *name, const char *key,
                              uint64_t none)
{
    const char *root = newer ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    char *path = NULL;
    if (asprintf(&path, "%s%s/%s", root, group, name) < 0) {
        return none;
    }
    const uint64_t value = read_number(path, key, 1, none);
    free(path);
    return value;
}

/* What a group's limit leaves; the cache that is charged to it can go. */
static void look_at_group(heft_machine *machine, const char *group, bool newer)
{
    const char *limit_name = newer ? "memory.max" : "memory.limit_in_bytes",
               *use_name = newer ? "memory.current" : "memory.usage_in_bytes",
               *cache_key = newer ? "file " : "total_cache ";
    const uint64_t limit = read_of_group(group, newer, limit_name, "", UINT64_MAX),
                   use = read_of_group(group, newer, use_name, "", 0),
                   cache = read_of_group(group, newer, "memory.stat", cache_key, 0);
    if (limit < (UINT64_MAX >> 2)) {
        const uint64_t held = use > cache ? use - cache : 0;
        lower(machine, limit > held ? limit - held : 0,
              newer ? "the container's limit (cgroup v2)" : "the container's limit (cgroup v1)");
    }
}

/* The path in a line "NUMBER:CONTROLLERS:PATH", if that group limits memory: v2's has the number 0 and no
 * controllers. NULL if it is another. The line is cut up. */
static const char *group_in(char *line, bool newer)
{
    char *controllers = strchr(line, ':'),
         *path = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!path) {
        return NULL;
    }
    *controllers++ = '\0';
    *path++ = '\0';
    path[strcspn(path, "\n")] = '\0';
    if (newer) {
        return strcmp(line, "0") == 0 && !*controllers ? path : NULL;
    }
    for (char *rest = controllers, *each = strsep(&rest, ","); each; each = strsep(&rest, ",")) {
        if (strcmp(each, "memory") == 0) {
            return path;
        }
    }
    return NULL;
}

/* This process's group below a hierarchy, to be freed; "" if it is in none, NULL without memory. */
static char *find_group(bool newer)
{
    char *line = NULL;
    const char *path = NULL;
    size_t cap = 0;
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file && !path && getline(&line, &cap, file) >= 0) {
        path = group_in(line, newer);
    }
    char *found = strdup(path ? path : "");
    if (file) {
        fclose(file);
    }
    free(line);
    return found;
}

/* The group and all above it. */
static void look_at_groups(heft_machine *machine, bool newer)
{
    char *group = find_group(newer), *end = group;
    while (end) {
        look_at_group(machine, group, newer);
        end = strrchr(group, '/');
        if (end) {
            *end = '\0';
        }
    }
    free(group);
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
