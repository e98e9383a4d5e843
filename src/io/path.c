/* path.c - names of files. */
#include "io/io.h"

#include <sys/stat.h>

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

uint64_t heft__path_stamp(const char *path)
{
    struct stat facts;
    if (stat(path, &facts) != 0) {
        return 0;
    }
    const uint64_t parts[] = {(uint64_t)facts.st_size, (uint64_t)facts.st_mtim.tv_sec,
                              (uint64_t)facts.st_mtim.tv_nsec, (uint64_t)facts.st_ino};
    return heft__stable_hash((const char *)parts, sizeof parts);
}
