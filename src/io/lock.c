/* lock.c - who writes to a destination. See lock.h. */
#include "io/lock.h"

#include "io/dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#define HOLDER_BYTES 200 /* of the text in a lock file */

int heft__lock_try(int fd, int how)
{
    int done;
    do {
        done = flock(fd, how | LOCK_NB);
    } while (done != 0 && errno == EINTR);
    return done == 0 ? 1 : errno == EWOULDBLOCK ? 0 : -1;
}

/* Whether the errno of a failed flock() says that there are no locks here: none on the file system, or, on
 * NFS, none for a descriptor that is not open for writing. */
static bool is_unsupported(int reason)
{
    return reason == ENOSYS || reason == EOPNOTSUPP || reason == ENOLCK || reason == EINVAL ||
           reason == EBADF;
}

static void write_holder(int fd)
{
    char host[65] = "", since[32] = "", text[HOLDER_BYTES];
    const time_t now = time(NULL);
    struct tm utc;
    (void)gethostname(host, sizeof host - 1);
    if (!gmtime_r(&now, &utc) || strftime(since, sizeof since, "%Y-%m-%dT%H:%M:%SZ", &utc) == 0) {
        since[0] = '\0';
    }
    const int length =
        snprintf(text, sizeof text, "process %ld on %s, since %s", (long)getpid(), host, since);
    /* Only for those who read it: the lock holds without it. */
    if (length > 0 && ftruncate(fd, 0) == 0 && pwrite(fd, text, (size_t)length, 0) < 0) {
        (void)ftruncate(fd, 0);
    }
}

static heft_status busy(int fd, heft_error *err)
{
    char text[HOLDER_BYTES];
    const ssize_t length = pread(fd, text, sizeof text - 1, 0);
    text[length > 0 ? length : 0] = '\0';
    for (char *p = text; *p; p++) {
        *p = *p < ' ' || *p > '~' ? '?' : *p; /* a line of ours has nothing else */
    }
    return heft__fail(err, HEFT_EXISTS, "is being written by %s", *text ? text : "another process");
}

/* A file of this user's that has one name: nothing that somebody planted. */
static heft_status check_owner(int fd, const char *name, bool *foreign, heft_error *err)
{
    struct stat facts;
    *foreign = false;
    if (fstat(fd, &facts) != 0) {
        return heft__fail_errno(err, errno, "cannot access the lock '%s'", name);
    }
    if (!S_ISREG(facts.st_mode) || facts.st_nlink > 1) {
        return heft__fail(err, HEFT_REFUSED, "lock '%s' is not a regular file with a single name",
                          name);
    }
    *foreign = facts.st_uid != geteuid();
    return HEFT_OK;
}

/* Whether the name is still that of the open file: its last owner may have removed it. */
static bool is_current(int dir, const char *name, int fd)
{
    struct stat open_file, named;
    return fstat(fd, &open_file) == 0 && fstatat(dir, name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           open_file.st_dev == named.st_dev && open_file.st_ino == named.st_ino;
}

/* Whether nobody has written into it who holds it. One who was about to finds that its name is gone, or
 * meets the lock on the folder, or a folder that is there already. */
static bool is_unused(int dir, const char *name, int fd)
{
    struct stat facts;
    return is_current(dir, name, fd) && fstat(fd, &facts) == 0 && facts.st_size == 0;
}

/* One attempt: *held, or not because the file was removed or busy meanwhile. */
static heft_status attempt(heft__lock *lock, bool *held, bool *is_busy, heft_error *err)
{
    bool foreign = false;
    *held = *is_busy = false;
    const int how = O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK;
    int fd = heft__open_at(lock->dir, lock->name, how | O_EXCL, 0600);
    const bool made = fd >= 0;
    if (!made && errno == EEXIST) {
        fd = heft__open_at(lock->dir, lock->name, how, 0600);
    }
    if (fd < 0) {
        const int reason = errno;
        return heft__fail_io(err, reason, "cannot create the lock file '%s'", lock->name);
    }
    heft_status status = check_owner(fd, lock->name, &foreign, err);
    const int locked = status == HEFT_OK ? heft__lock_try(fd, LOCK_EX) : 0;
    if (status == HEFT_OK && locked < 0 && !is_unsupported(errno)) {
        status = heft__fail_io(err, errno, "cannot lock '%s'", lock->name);
        if (made && is_unused(lock->dir, lock->name, fd)) {
            (void)heft__unlink_at(lock->dir, lock->name);
        }
    } else if (status == HEFT_OK && locked == 0) {
        *is_busy = true;
        status = busy(fd, err);
    } else if (status == HEFT_OK && foreign) { /* left by a crash of another user */
        status =
            unlinkat(lock->dir, lock->name, 0) == 0
                ? HEFT_OK
                : heft__fail(err, HEFT_REFUSED, "lock '%s' belongs to another user", lock->name);
    } else if (status == HEFT_OK && is_current(lock->dir, lock->name, fd)) {
        lock->fd = fd;
        lock->useless = locked < 0;
        *held = true;
        write_holder(fd);
        return HEFT_OK;
    }
    close(fd);
    return status;
}

heft_status heft__lock_take(heft_ctx *ctx, heft__lock *lock, int dir, const char *name, bool wait,
                            heft_error *err)
{
    bool held = false, is_busy = false;
    *lock = (heft__lock){.dir = dir, .fd = -1};
    if (strlen(name) >= sizeof lock->name) {
        return heft__fail(err, HEFT_INVALID_ARG, "the destination's name is too long");
    }
    memcpy(lock->name, name, strlen(name) + 1);
    for (;;) {
        heft_error why = {0};
        heft_status status = attempt(lock, &held, &is_busy, &why);
        if (held) {
            return HEFT_OK;
        }
        if (status != HEFT_OK && !(is_busy && wait)) {
            if (err) {
                *err = why;
            }
            return status;
        }
        if (is_busy) {
            const struct timespec pause = {.tv_nsec = 100000000};
            status = heft__tell_progress(ctx, "waiting", 0, 0, err);
            if (status != HEFT_OK) {
                return status;
            }
            (void)nanosleep(&pause, NULL);
        }
    }
}

void heft__lock_release(heft__lock *lock)
{
    if (lock->fd >= 0) {
        if (is_current(lock->dir, lock->name, lock->fd)) {
            (void)heft__unlink_at(lock->dir, lock->name);
        }
        close(lock->fd);
    }
    *lock = HEFT__LOCK_NONE;
}
