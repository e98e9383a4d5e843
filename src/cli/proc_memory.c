/* proc_memory.c - how much memory this process uses, as the kernel counts it.
 *
 * Anonymous memory (heap, stacks) is what a model costs; its peak is not kept by the kernel, so it
 * is sampled while the library works. The peak of RSS counts pages of mapped files too. PSS shares
 * out what several processes map; it is read once, at the end, because the kernel walks every page
 * for it.
 * Source: proc(5), /proc/self/status and /proc/self/smaps_rollup. */
#include "cli/cli.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SAMPLE_SECONDS 0.02

static void read_text(const char *path, char *dst, size_t cap)
{
    size_t length = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && length + 1 < cap) {
        ssize_t got = read(fd, dst + length, cap - 1 - length);
        if (got <= 0) {
            break;
        }
        length += (size_t)got;
    }
    dst[length] = '\0';
    if (fd >= 0) {
        close(fd);
    }
}

/* The number behind "\nKey:" in lines of "Key:   123 kB", as bytes. */
static bool find_bytes(const char *text, const char *key, uint64_t *bytes)
{
    const char *found = strstr(text, key);
    if (found) {
        *bytes = strtoull(found + strlen(key), NULL, 10) * 1024;
    }
    return found != NULL;
}

static void note_anon(cli_memory *memory, const char *text, const char *key)
{
    uint64_t anon;
    if (find_bytes(text, key, &anon)) {
        memory->known = true;
        memory->peak_anon_bytes = anon > memory->peak_anon_bytes ? anon : memory->peak_anon_bytes;
    }
}

void cli_memory_sample(cli_memory *memory)
{
    char text[4096];
    double now = cli_now();
    if (now - memory->sampled < SAMPLE_SECONDS) {
        return;
    }
    memory->sampled = now;
    read_text("/proc/self/status", text, sizeof text);
    note_anon(memory, text, "\nRssAnon:");
}

void cli_memory_finish(cli_memory *memory)
{
    char text[4096];
    read_text("/proc/self/status", text, sizeof text);
    note_anon(memory, text, "\nRssAnon:");
    find_bytes(text, "\nVmHWM:", &memory->peak_rss_bytes);
    read_text("/proc/self/smaps_rollup", text, sizeof text);
    note_anon(memory, text, "\nAnonymous:"); /* exact, where status may be some pages behind */
    find_bytes(text, "\nPss:", &memory->pss_bytes);
}

const char *cli_memory_text(const cli_memory *memory, char buf[128])
{
    char anon[32], rss[32];
    if (!memory->known) {
        snprintf(buf, 128, "unknown: not available from /proc");
    } else {
        snprintf(buf, 128, "peak %s, %s including file pages",
                 cli_bytes(memory->peak_anon_bytes, anon), cli_bytes(memory->peak_rss_bytes, rss));
    }
    return buf;
}
