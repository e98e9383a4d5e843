/* note_opens.c - a library to be preloaded: appends the path of every file that the process opens to the
 * file that $NOTE_OPENS names, one a line. Files opened for direct reads are left out: those are second
 * descriptors of files that are open already. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void note(const char *path, int flags)
{
    const char *to = getenv("NOTE_OPENS");
    if (!to || (flags & O_DIRECT) || (flags & O_ACCMODE) != O_RDONLY || (flags & O_DIRECTORY)) {
        return;
    }
    const long fd = syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (fd >= 0) {
        char line[4200];
        const size_t length = strlen(path) < sizeof line - 1 ? strlen(path) : sizeof line - 1;
        memcpy(line, path, length);
        line[length] = '\n';
        (void)!write((int)fd, line, length + 1);
        close((int)fd);
    }
}

#define REST(flags, mode)                                                                          \
    mode_t mode = 0;                                                                               \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                                                       \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode = va_arg(rest, mode_t);                                                               \
        va_end(rest);                                                                              \
    }

#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...)                                                     \
    {                                                                                              \
        REST(flags, mode)                                                                          \
        note(path, flags);                                                                         \
        return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);                              \
    }
#define OPENAT(name)                                                                               \
    int name(int folder, const char *path, int flags, ...)                                         \
    {                                                                                              \
        REST(flags, mode)                                                                          \
        note(path, flags);                                                                         \
        return (int)syscall(SYS_openat, folder, path, flags, mode);                                \
    }

#undef open
#undef openat
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
