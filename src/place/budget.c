/* budget.c - how much memory there is for a model on this machine, and why no more.
 *
 * The least of: what the kernel calls available; what a container's limit leaves (cgroup v2 and v1,
 * its own and those above it); what the process may still map (RLIMIT_AS). Pages of files count as
 * available in all of them, those of shared memory do not: they are in the page cache, but cannot go.
 * Swap is no place for weights, and is counted apart: it only tells when a process is killed.
 * Source: proc(5), cgroups(7), the kernel's cgroup-v2.rst and cgroup-v1/memory.rst. */
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

/* What is looked at, and what was found. */
struct look {
    const char *root; /* before the paths below; "" for this machine */
    heft_machine *machine;
    heft__most_memory *most;
    uint64_t swap; /* free on this machine */
};

static uint64_t add(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static uint64_t subtract(uint64_t from, uint64_t what)
{
    return from > what ? from - what : 0;
}

static void lower(heft_machine *machine, uint64_t bytes, const char *reason)
{
    if (bytes < machine->bytes) {
        machine->bytes = bytes;
        machine->reason = reason;
    }
}

static void lower_most(heft__most_memory *most, uint64_t bytes, uint64_t limit, const char *reason)
{
    if (bytes < most->bytes) {
        *most = (heft__most_memory){.bytes = bytes, .limit = limit, .reason = reason};
    }
}

/* The number in a file below the root. */
static uint64_t read_below(const struct look *look, const char *folder, const char *group,
                           const char *name, const char *key, uint64_t unit, uint64_t none)
{
    char *path = NULL;
    if (asprintf(&path, "%s%s%s/%s", look->root, folder, group, name) < 0) {
        return none;
    }
    const uint64_t value = read_number(path, key, unit, none);
    free(path);
    return value;
}

/* A hierarchy of cgroups: where it is, what its files and the keys in memory.stat are called. */
struct hierarchy {
    const char *folder, *limit, *use, *swap_limit, *swap_use;
    const char *cache[3]; /* pages of files, and what else can go; not of shared memory */
    bool both;            /* the limit of swap is one of memory and swap */
    const char *reason, *short_reason;
};

static const struct hierarchy newer_groups = {
    .folder = "/sys/fs/cgroup",
    .limit = "memory.max",
    .use = "memory.current",
    .swap_limit = "memory.swap.max",
    .swap_use = "memory.swap.current",
    .cache = {"inactive_file ", "active_file ", "slab_reclaimable "},
    .reason = "the container's limit (cgroup v2)",
    .short_reason = "cgroup v2 limit"
};

static const struct hierarchy older_groups = {
    .folder = "/sys/fs/cgroup/memory",
    .limit = "memory.limit_in_bytes",
    .use = "memory.usage_in_bytes",
    .swap_limit = "memory.memsw.limit_in_bytes",
    .swap_use = "memory.memsw.usage_in_bytes",
    .cache = {"total_inactive_file ", "total_active_file "},
    .both = true,
    .reason = "the container's limit (cgroup v1)",
    .short_reason = "cgroup v1 limit"
};

/* What a group's limit leaves; the cache that is charged to it can go. */
static void look_at_group(const struct look *look, const char *group, const struct hierarchy *of)
{
#define READ(name, key, none) read_below(look, of->folder, group, name, key, 1, none)
    const uint64_t limit = READ(of->limit, "", UINT64_MAX), use = READ(of->use, "", 0),
                   swap_limit = READ(of->swap_limit, "", UINT64_MAX),
                   swap_use = READ(of->swap_use, "", 0);
    uint64_t cache = 0;
    for (size_t i = 0; i < sizeof of->cache / sizeof of->cache[0] && of->cache[i]; i++) {
        cache = add(cache, READ("memory.stat", of->cache[i], 0));
    }
#undef READ
    if (limit < (UINT64_MAX >> 2)) {
        const uint64_t left = subtract(limit, subtract(use, cache)),
                       swap = of->both ? UINT64_MAX : subtract(swap_limit, swap_use);
        lower(look->machine, left, of->reason);
        lower_most(look->most, add(left, swap < look->swap ? swap : look->swap), limit,
                   of->short_reason);
    }
    if (of->both && swap_limit < (UINT64_MAX >> 2)) {
        lower_most(look->most, subtract(swap_limit, subtract(swap_use, cache)), swap_limit,
                   of->short_reason);
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
static char *find_group(const struct look *look, bool newer)
{
    char *line = NULL, *list = NULL;
    const char *path = NULL;
    size_t cap = 0;
    if (asprintf(&list, "%s/proc/self/cgroup", look->root) < 0) {
        return NULL;
    }
    FILE *file = fopen(list, "re");
    while (file && !path && getline(&line, &cap, file) >= 0) {
        path = group_in(line, newer);
    }
    char *found = strdup(path ? path : "");
    if (file) {
        fclose(file);
    }
    free(line);
    free(list);
    return found;
}

/* The group and all above it. */
static void look_at_groups(const struct look *look, const struct hierarchy *of)
{
    char *group = find_group(look, of == &newer_groups), *end = group;
    while (end) {
        look_at_group(look, group, of);
        end = strrchr(group, '/');
        if (end) {
            *end = '\0';
        }
    }
    free(group);
}

void heft__machine_look_below(const char *root, heft_machine *machine, heft__most_memory *most)
{
    struct look look = {.root = root ? root : "", .machine = machine, .most = most};
#define READ(key, none) read_below(&look, "/proc", "", "meminfo", key, 1024, none)
    machine->bytes = READ("MemAvailable:", UINT64_MAX);
    machine->reason = machine->bytes == UINT64_MAX ? "unknown" : "available memory";
    look.swap = READ("SwapFree:", 0);
    *most = (heft__most_memory){.bytes = add(machine->bytes, look.swap),
                                .limit = add(READ("MemTotal:", 0), READ("SwapTotal:", 0)),
                                .reason = look.swap > 0 ? "memory and swap" : "memory"};
#undef READ
    look_at_groups(&look, &newer_groups);
    look_at_groups(&look, &older_groups);
}

bool heft__machine_look_at_space(uint64_t *left, uint64_t *limit)
{
    uint64_t resident, used;
    *left = UINT64_MAX;
    if (!heft__address_space(limit)) {
        return false;
    }
    (void)heft__process_memory(&resident, &used);
    *left = subtract(*limit, used);
    return true;
}

void heft__machine_look(heft_machine *machine)
{
    heft__most_memory most;
    uint64_t left, limit;
    heft__machine_look_below(NULL, machine, &most);
    if (heft__machine_look_at_space(&left, &limit)) {
        lower(machine, left, "the address space limit (ulimit -v)");
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
