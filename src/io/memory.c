/* memory.c - how much memory this process uses, as the kernel counts it.
 *
 * Peak RSS counts file pages too; anonymous memory is what a model costs on the heap; PSS shares
 * out what several processes map.
 * Source: proc(5), /proc/self/status and /proc/self/smaps_rollup.
 */
#include "io/io.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

/* The number of kB behind `key` in a text of lines "Key:   123 kB", as bytes; 0 if absent. */
static uint64_t field(const char *text, const char *key)
{
    const char *found = strstr(text, key);
    return found ? strtoull(found + strlen(key), NULL, 10) * 1024 : 0;
}

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

heft__memory_facts heft__memory_now(void)
{
    char text[4096];
    heft__memory_facts facts = {0};
    read_text("/proc/self/status", text, sizeof text);
    facts.peak_rss_bytes = field(text, "VmHWM:");
    facts.anon_bytes = field(text, "RssAnon:");
    read_text("/proc/self/smaps_rollup", text, sizeof text);
    facts.pss_bytes = field(text, "\nPss:");
    return facts;
}
