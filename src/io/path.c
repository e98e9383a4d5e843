/* path.c - names of files. */
#include "io/record.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define YOUNG_SECONDS 2 /* coarser than any file system's clock */

char *heft__path_join(heft__arena *arena, const char *folder, const char *name)
{
    size_t length = strlen(folder);
    bool slash = length > 0 && folder[length - 1] != '/';
    return heft__arena_format(arena, "%s%s%s", folder, slash ? "/" : "", name);
}

const char *heft__path_base(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

bool heft__path_is_folder(const char *path)
{
    struct stat facts;
    return stat(path, &facts) == 0 && S_ISDIR(facts.st_mode);
}

bool heft__path_is_file(const char *path)
{
    struct stat facts;
    return stat(path, &facts) == 0 && S_ISREG(facts.st_mode);
}

bool heft__path_is_special(const char *path)
{
    struct stat facts;
    return stat(path, &facts) == 0 && !S_ISREG(facts.st_mode) && !S_ISDIR(facts.st_mode);
}

bool heft__path_exists(const char *path)
{
    struct stat facts;
    return lstat(path, &facts) == 0;
}

bool heft__path_same(const char *a, const char *b)
{
    struct stat first, second;
    return stat(a, &first) == 0 && stat(b, &second) == 0 && first.st_dev == second.st_dev &&
           first.st_ino == second.st_ino;
}

bool heft__path_is_newer(const char *a, const char *b, unsigned seconds)
{
    struct stat first, second;
    return stat(a, &first) == 0 && stat(b, &second) == 0 &&
           first.st_mtim.tv_sec > second.st_mtim.tv_sec + (time_t)seconds;
}

heft__identity heft__identity_of(const struct stat *facts)
{
    return (heft__identity){.device = (uint64_t)facts->st_dev,
                            .inode = (uint64_t)facts->st_ino,
                            .bytes = (uint64_t)facts->st_size,
                            .seconds = (int64_t)facts->st_mtim.tv_sec,
                            .nanoseconds = (int64_t)facts->st_mtim.tv_nsec,
                            .change_seconds = (int64_t)facts->st_ctim.tv_sec,
                            .change_nanoseconds = (int64_t)facts->st_ctim.tv_nsec};
}

heft__identity heft__path_identity(const char *path)
{
    struct stat facts;
    return stat(path, &facts) == 0 ? heft__identity_of(&facts) : (heft__identity){0};
}

void heft__snapshot_take(const char *folder, heft__snapshot *snapshot)
{
    struct stat facts;
    struct timespec now;
    *snapshot = (heft__snapshot){0};
    if (stat(folder, &facts) == 0 && clock_gettime(CLOCK_REALTIME, &now) == 0) {
        snapshot->folder = (heft__identity){.device = (uint64_t)facts.st_dev,
                                            .inode = (uint64_t)facts.st_ino,
                                            .seconds = (int64_t)facts.st_mtim.tv_sec,
                                            .nanoseconds = (int64_t)facts.st_mtim.tv_nsec};
        snapshot->young = facts.st_mtim.tv_sec + YOUNG_SECONDS >= now.tv_sec;
    }
}

heft__since heft__snapshot_compare(const char *folder, const heft__snapshot *snapshot)
{
    heft__snapshot now;
    struct stat facts;
    heft__snapshot_take(folder, &now);
    const int at = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    const bool journal = at >= 0 && fstatat(at, HEFT__JOURNAL, &facts, AT_SYMLINK_NOFOLLOW) == 0;
    if (at >= 0) {
        close(at);
    }
    return journal || now.folder.device != snapshot->folder.device ||
                   now.folder.inode != snapshot->folder.inode
               ? HEFT__REPLACED
           : now.young || snapshot->young ||
                   memcmp(&now.folder, &snapshot->folder, sizeof now.folder) != 0
               ? HEFT__CHANGED
               : HEFT__UNCHANGED;
}
