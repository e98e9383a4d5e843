/* dir.c - folders below held descriptors: list, link, remove. See dir.h. */
#include "io/dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#define DEPTH_MAX 64 /* of folders in folders */

int heft__open_at(int at, const char *name, int flags, mode_t mode)
{
    int fd;
    do {
        fd = openat(at, name, flags | O_CLOEXEC, mode);
    } while (fd < 0 && errno == EINTR);
    return fd;
}

int heft__dir_open(int at, const char *name)
{
    return heft__open_at(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
}

void heft__dir_close(int *fd)
{
    if (*fd >= 0) {
        const int kept = errno;
        close(*fd);
        errno = kept;
    }
    *fd = -1;
}

bool heft__sync(int fd)
{
    int done;
    do {
        done = fsync(fd);
    } while (done != 0 && errno == EINTR);
    return done == 0;
}

bool heft__write_all(int fd, const void *bytes, size_t length, uint64_t offset, size_t *done)
{
    *done = 0;
    while (*done < length) {
        const ssize_t put =
            pwrite(fd, (const uint8_t *)bytes + *done, length - *done, (off_t)(offset + *done));
        if (put > 0) {
            *done += (size_t)put;
        } else if (put == 0 || errno != EINTR) {
            errno = put == 0 ? EIO : errno;
            return false;
        }
    }
    return true;
}

bool heft__exists_at(int dir, const char *name)
{
    struct stat facts;
    return fstatat(dir, name, &facts, AT_SYMLINK_NOFOLLOW) == 0;
}

bool heft__random_name(char name[HEFT__RANDOM_NAME])
{
    uint64_t bits;
    ssize_t got;
    do {
        got = getrandom(&bits, sizeof bits, 0);
    } while (got < 0 && errno == EINTR);
    if (got != (ssize_t)sizeof bits) {
        return false;
    }
    snprintf(name, HEFT__RANDOM_NAME, "%016llx", (unsigned long long)bits);
    return true;
}

/* ---- renaming -------------------------------------------------------------------------------- */
/* By number: musl does not have renameat2() before 1.2.6. */
bool heft__rename_with(int from, const char *old_name, int to, const char *new_name, unsigned how)
{
    return syscall(SYS_renameat2, from, old_name, to, new_name, how) == 0;
}

bool heft__rename_new(int from, const char *old_name, int to, const char *new_name)
{
    if (heft__rename_with(from, old_name, to, new_name, RENAME_NOREPLACE)) {
        return true;
    }
    if (errno != EINVAL && errno != ENOSYS) {
        return false;
    }
    if (heft__exists_at(to, new_name)) { /* a file system without the flag */
        errno = EEXIST;
        return false;
    }
    return renameat(from, old_name, to, new_name) == 0;
}

/* ---- listing --------------------------------------------------------------------------------- */
bool heft__dir_each(int dir, heft__dir_fn fn, void *user)
{
    const int again = heft__dir_open(dir, "."); /* a position of its own */
    DIR *folder = again >= 0 ? fdopendir(again) : NULL;
    bool good = folder != NULL;
    if (!folder && again >= 0) {
        const int kept = errno;
        close(again);
        errno = kept;
    }
    while (good) {
        errno = 0;
        const struct dirent *entry = readdir(folder);
        if (!entry) {
            good = errno == 0;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            good = fn(user, entry->d_name);
        }
    }
    if (folder) {
        const int kept = errno;
        closedir(folder);
        errno = kept;
    }
    return good;
}

struct listing {
    heft__arena *arena;
    const char **names;
    size_t count, cap;
    bool no_memory;
};

static bool add_name(void *user, const char *name)
{
    struct listing *list = user;
    const char *copy = heft__arena_text(list->arena, name, strlen(name));
    if (!copy || !heft__array_reserve(list->arena->ctx, (void **)&list->names, list->count,
                                      &list->cap, sizeof *list->names)) {
        list->no_memory = true;
        return false;
    }
    list->names[list->count++] = copy;
    return true;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

heft_status heft__dir_list(heft__arena *arena, int dir, const char *const **names, size_t *count,
                           heft_error *err)
{
    struct listing list = {.arena = arena};
    heft_status status = HEFT_OK;
    if (!heft__dir_each(dir, add_name, &list)) {
        status = list.no_memory ? heft__fail_nomem(err, 0)
                                : heft__fail_errno(err, errno, "cannot list the folder");
    }
    const char **kept =
        status == HEFT_OK ? heft__arena_array(arena, list.count, sizeof *kept) : NULL;
    if (status == HEFT_OK && !kept) {
        status = heft__fail_nomem(err, list.count);
    }
    if (status == HEFT_OK) {
        if (list.count) {
            memcpy(kept, list.names, list.count * sizeof *kept);
            qsort(kept, list.count, sizeof *kept, compare_names);
        }
        *names = kept;
        *count = list.count;
    }
    heft__free(arena->ctx, list.names, list.cap * sizeof *list.names);
    return status;
}

/* ---- removing -------------------------------------------------------------------------------- */
struct removing {
    int dir;
    dev_t device;
    unsigned depth;
    size_t removed;
};

static bool remove_folder(int at, const char *name, dev_t device, unsigned depth);

static bool remove_entry(void *user, const char *name)
{
    struct removing *job = user;
    if (unlinkat(job->dir, name, 0) == 0 ||
        ((errno == EISDIR || errno == EPERM) &&
         remove_folder(job->dir, name, job->device, job->depth + 1))) {
        job->removed++;
    }
    return true;
}

/* device: 0 for the first folder, which decides. */
static bool remove_folder(int at, const char *name, dev_t device, unsigned depth)
{
    struct stat facts;
    int dir = depth < DEPTH_MAX ? heft__dir_open(at, name) : -1;
    if (dir < 0 || fstat(dir, &facts) != 0 || (depth > 0 && facts.st_dev != device)) {
        heft__dir_close(&dir);
        return false;
    }
    struct removing job = {.dir = dir, .device = facts.st_dev, .depth = depth};
    do { /* again where a folder that changes is not listed in full */
        job.removed = 0;
    } while (heft__dir_each(dir, remove_entry, &job) && job.removed > 0);
    heft__dir_close(&dir);
    return unlinkat(at, name, AT_REMOVEDIR) == 0;
}

bool heft__dir_remove(int at, const char *name)
{
    bool gone = remove_folder(at, name, 0, 0);
    for (unsigned again = 0; !gone && again < 2 && heft__exists_at(at, name); again++) {
        gone = remove_folder(at, name, 0, 0); /* an interruption, or a disk that failed once */
    }
    return gone;
}

bool heft__unlink_at(int at, const char *name)
{
    return unlinkat(at, name, 0) == 0 || errno == ENOENT || unlinkat(at, name, 0) == 0;
}

/* ---- linking --------------------------------------------------------------------------------- */
struct linking {
    int from, to;
    size_t *links;
    unsigned depth;
};

bool heft__has_attributes(int fd)
{
    char list[512];
    const ssize_t length = flistxattr(fd, list, sizeof list);
    if (length < 0) {
        return errno != ENOTSUP && errno != EOPNOTSUPP && errno != ENOSYS;
    }
    for (const char *name = list; name < list + length; name += strlen(name) + 1) {
        if (strcmp(name, "security.selinux") != 0) { /* given to new files by the policy */
            return true;
        }
    }
    return false;
}

static bool link_entry(void *user, const char *name);

static bool link_folder(const struct linking *job, const char *name, const struct stat *facts)
{
    int from = heft__dir_open(job->from, name), to = -1;
    bool good = from >= 0 && job->depth < DEPTH_MAX && !heft__has_attributes(from) &&
                mkdirat(job->to, name, 0700) == 0;
    if (good) {
        to = heft__dir_open(job->to, name);
        struct linking inner = {
            .from = from, .to = to, .links = job->links, .depth = job->depth + 1};
        struct stat made;
        const struct timespec times[] = {facts->st_atim, facts->st_mtim};
        good = to >= 0 && fstat(to, &made) == 0 && heft__dir_each(from, link_entry, &inner) &&
               ((made.st_uid == facts->st_uid && made.st_gid == facts->st_gid) ||
                fchown(to, facts->st_uid, facts->st_gid) == 0) &&
               fchmod(to, facts->st_mode & 07777) == 0 && heft__sync(to) &&
               futimens(to, times) == 0;
    }
    heft__dir_close(&from);
    heft__dir_close(&to);
    return good;
}

static bool link_entry(void *user, const char *name)
{
    const struct linking *job = user;
    struct stat facts, here;
    if (++*job->links > HEFT__LINKS_MAX ||
        fstatat(job->from, name, &facts, AT_SYMLINK_NOFOLLOW) != 0 ||
        fstat(job->from, &here) != 0) {
        return false;
    }
    if (S_ISDIR(facts.st_mode)) { /* not what is mounted here */
        return facts.st_dev == here.st_dev && link_folder(job, name, &facts);
    }
    return linkat(job->from, name, job->to, name, 0) == 0;
}

bool heft__dir_link(int from, int to, const char *name, size_t *links)
{
    struct linking job = {.from = from, .to = to, .links = links};
    return link_entry(&job, name);
}
