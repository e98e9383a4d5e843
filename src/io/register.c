/* register.c - which processes hold a shared copy: folders, locks, lines. See register.h.
 *
 * Folders lie where others may write too. One is used only if this user owns it and nobody else may even
 * look into it, and everything below it goes through its descriptor. Who takes the foreseeable name first
 * gains nothing: a folder with a random suffix is made and found instead.
 * Source: flock(2), openat(2); docs/sharing.md. */
#include "io/register.h"

#include "io/dir.h"
#include "io/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#define PAUSE_NANOSECONDS 2000000
#define LEAVE_MILLISECONDS 250 /* of waiting for others who leave */
#define DEAD_POLLS 100         /* that find a lock whose owner is gone: a child of it has it */

/* ---- folders --------------------------------------------------------------------------------- */
/* A folder of our own that nobody else can look into. */
static int open_own(int parent, const char *name)
{
    struct stat facts;
    int dir = heft__dir_open(parent, name);
    if (dir >= 0 &&
        (fstat(dir, &facts) != 0 || facts.st_uid != geteuid() || (facts.st_mode & 077) != 0)) {
        heft__dir_close(&dir);
    }
    return dir;
}

/* Where others may write, they must not be able to rename what is ours. */
static int open_parent(const char *path)
{
    struct stat facts;
    int parent = heft__open_at(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
    if (parent >= 0 &&
        (fstat(parent, &facts) != 0 || (facts.st_uid != geteuid() && facts.st_uid != 0) ||
         ((facts.st_mode & 022) != 0 && (facts.st_mode & S_ISVTX) == 0))) {
        heft__dir_close(&parent);
    }
    return parent;
}

/* The first folder PREFIX-xxxxxxxxxxxxxxxx of our own; of several the least, so that all agree. */
static int find_suffixed(heft_ctx *ctx, int parent, const char *prefix)
{
    heft__arena arena;
    const char *const *names = NULL;
    size_t count = 0;
    int dir = -1;
    const size_t length = strlen(prefix);
    heft__arena_init(&arena, ctx);
    if (heft__dir_list(&arena, parent, &names, &count, NULL) == HEFT_OK) {
        for (size_t i = 0; i < count && dir < 0; i++) {
            if (strncmp(names[i], prefix, length) == 0 && names[i][length] == '-' &&
                heft__register_is_name(names[i] + length + 1)) {
                dir = open_own(parent, names[i]);
            }
        }
    }
    heft__arena_fini(&arena);
    return dir;
}

static int open_folder(heft_ctx *ctx, int parent, bool make)
{
    char prefix[32], name[64], suffix[HEFT__RANDOM_NAME];
    snprintf(prefix, sizeof prefix, "heft-%lu", (unsigned long)geteuid());
    if (make) {
        (void)mkdirat(parent, prefix, 0700);
    }
    int dir = open_own(parent, prefix);
    if (dir < 0 && heft__exists_at(parent, prefix)) { /* somebody else's */
        dir = find_suffixed(ctx, parent, prefix);
        if (dir < 0 && make && heft__random_name(suffix)) {
            snprintf(name, sizeof name, "%s-%s", prefix, suffix);
            if (mkdirat(parent, name, 0700) == 0) {
                dir = find_suffixed(ctx, parent, prefix);
            }
        }
    }
    return dir;
}

int heft__register_place(heft_ctx *ctx, size_t i, bool make)
{
    const char *const places[HEFT__REGISTER_PLACES] = {getenv("XDG_RUNTIME_DIR"), "/dev/shm",
                                                       "/tmp"};
    if (!places[i] || places[i][0] != '/') {
        return -1;
    }
    int parent = open_parent(places[i]);
    const int dir = parent >= 0 ? open_folder(ctx, parent, make) : -1;
    heft__dir_close(&parent);
    return dir;
}

/* ---- files ----------------------------------------------------------------------------------- */
bool heft__register_is_name(const char *name)
{
    return strspn(name, "0123456789abcdef") == HEFT__REGISTER_NAME - 1 &&
           name[HEFT__REGISTER_NAME - 1] == '\0';
}

/* A plain file of our own with at most one name. */
static bool is_own_file(int fd)
{
    struct stat facts;
    return fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode) && facts.st_uid == geteuid() &&
           (facts.st_mode & 077) == 0 && facts.st_nlink <= 1;
}

int heft__register_open(int dir, const char *name)
{
    int fd = heft__open_at(dir, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
    if (fd >= 0 && !is_own_file(fd)) {
        heft__dir_close(&fd);
    }
    return fd;
}

static bool is_current(int dir, const char *name, int fd)
{
    struct stat ours, named;
    return fstat(fd, &ours) == 0 && fstatat(dir, name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           ours.st_ino == named.st_ino && ours.st_dev == named.st_dev;
}

bool heft__register_is_current(const heft__register *reg)
{
    return is_current(reg->dir, reg->name, reg->fd);
}

void heft__register_read(int fd, char *text)
{
    const ssize_t got = pread(fd, text, HEFT__REGISTER_BYTES - 1, 0);
    text[got > 0 ? got : 0] = '\0';
}

/* ---- the lock -------------------------------------------------------------------------------- */
struct waiting {
    enum heft__register_how how;
    int64_t since; /* milliseconds: when the owner last showed that it works */
    struct timespec sign;
    unsigned patience_ms, dead_polls;
};

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Whoever builds says so from time to time by the file's time. */
static bool is_patient(struct waiting *w, int fd)
{
    struct stat facts;
    if (fstat(fd, &facts) == 0 &&
        (facts.st_mtim.tv_sec != w->sign.tv_sec || facts.st_mtim.tv_nsec != w->sign.tv_nsec)) {
        w->sign = facts.st_mtim;
        w->since = now_ms();
    }
    return now_ms() - w->since < (int64_t)w->patience_ms;
}

/* Whether the process that builds has ended, although its lock is held: by a child that it made
 * meanwhile. Asked many times, because who has just taken the lock has not written yet. */
static bool is_orphan(struct waiting *w, int fd)
{
    char text[64];
    uint64_t bytes;
    const ssize_t got = pread(fd, text, sizeof text - 1, 0);
    text[got > 0 ? got : 0] = '\0';
    const long pid = heft__register_builder(text, &bytes);
    w->dead_polls = pid > 0 && kill((pid_t)pid, 0) != 0 && errno == ESRCH ? w->dead_polls + 1 : 0;
    return w->dead_polls > DEAD_POLLS;
}

/* The register is locked: wait a little. */
static heft_status wait_for(heft__register *reg, int fd, struct waiting *w, heft_error *err)
{
    const struct timespec pause = {.tv_nsec = PAUSE_NANOSECONDS};
    char text[64] = "";
    uint64_t bytes;
    if (w->how == HEFT__REGISTER_JOIN && is_orphan(w, fd) && is_current(reg->dir, reg->name, fd)) {
        (void)heft__unlink_at(reg->dir, reg->name);
        return HEFT_OK;
    }
    if (w->how == HEFT__REGISTER_LEAVE) {
        const ssize_t got = pread(fd, text, sizeof text - 1, 0);
        text[got > 0 ? got : 0] = '\0';
    }
    if (w->how == HEFT__REGISTER_TRY || heft__register_builder(text, &bytes) > 0) {
        return heft__fail(err, HEFT_EXISTS, "the register of the shared copy is locked");
    }
    if (!is_patient(w, fd)) {
        return heft__fail(err, w->how == HEFT__REGISTER_JOIN ? HEFT_IO : HEFT_EXISTS,
                          "the process that builds the shared copy has shown no sign of work for "
                          "%u ms",
                          w->patience_ms);
    }
    nanosleep(&pause, NULL);
    return w->how == HEFT__REGISTER_JOIN ? heft__tell_progress(reg->ctx, "waiting", 0, 0, err)
                                         : HEFT_OK;
}

/* Until the open file is locked (*locked), or is no longer the one of this name. */
static heft_status lock_file(heft__register *reg, int fd, struct waiting *w, bool *locked,
                             heft_error *err)
{
    heft_status status = HEFT_OK;
    *locked = false;
    if (!is_own_file(fd)) {
        return heft__fail(err, HEFT_IO,
                          "the register of shared copies is not a private file of this user's");
    }
    while (status == HEFT_OK && !*locked && is_current(reg->dir, reg->name, fd)) {
        const int got = heft__lock_try(fd, LOCK_EX);
        if (got < 0) {
            status = heft__fail_io(err, errno, "cannot lock the register of shared copies");
        } else if (got == 0) {
            status = wait_for(reg, fd, w, err);
        } else {
            *locked = is_current(reg->dir, reg->name, fd);
            if (!*locked) {
                break;
            }
        }
    }
    return status;
}

heft_status heft__register_lock(heft__register *reg, enum heft__register_how how,
                                unsigned patience_ms, heft_error *err)
{
    const int create = how == HEFT__REGISTER_JOIN ? O_CREAT : 0;
    struct waiting w = {.how = how, .since = now_ms(), .patience_ms = patience_ms};
    w.patience_ms = how == HEFT__REGISTER_LEAVE ? LEAVE_MILLISECONDS : patience_ms;
    reg->text = heft__alloc(reg->ctx, 2 * HEFT__REGISTER_BYTES);
    if (!reg->text) {
        return heft__fail_nomem(err, 2 * HEFT__REGISTER_BYTES);
    }
    heft_status status = HEFT_OK;
    while (status == HEFT_OK && reg->fd < 0) {
        bool locked = false;
        int fd =
            heft__open_at(reg->dir, reg->name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | create, 0600);
        if (fd < 0) {
            status = !create && errno == ENOENT
                         ? heft__fail_errno(err, errno, "no register of the shared copy")
                         : heft__fail_io(err, errno, "cannot open the register of shared copies");
            break;
        }
        status = lock_file(reg, fd, &w, &locked, err);
        if (locked) {
            reg->fd = fd;
            heft__register_read(fd, reg->text);
            reg->text[HEFT__REGISTER_BYTES] = '\0';
        } else {
            close(fd);
        }
    }
    if (status != HEFT_OK) {
        heft__register_unlock(reg);
    }
    return status;
}

static void free_text(heft__register *reg)
{
    heft__free(reg->ctx, reg->text, 2 * HEFT__REGISTER_BYTES);
    reg->text = NULL;
}

void heft__register_unlock(heft__register *reg)
{
    heft__dir_close(&reg->fd);
    free_text(reg);
}

/* ---- lines ----------------------------------------------------------------------------------- */
long heft__register_builder(const char *text, uint64_t *bytes)
{
    static const char word[] = "building ";
    char *rest;
    *bytes = 0;
    if (strncmp(text, word, sizeof word - 1) != 0) {
        return 0;
    }
    const long pid = strtol(text + sizeof word - 1, &rest, 10);
    *bytes = strtoull(rest, NULL, 10);
    return pid > 0 ? pid : 0;
}

static bool read_line(const char *line, heft__holder *holder)
{
    char *rest;
    holder->pid = strtol(line, &rest, 10);
    const long number = strtol(rest, &rest, 10);
    holder->inode = strtoull(rest, &rest, 10);
    holder->number = (int)number;
    return *rest == '\n' && holder->pid > 0 && holder->pid <= INT32_MAX && number >= 0 &&
           number <= INT32_MAX;
}

bool heft__register_next(const char **text, heft__holder *holder)
{
    while (**text) {
        const char *line = *text;
        *text += strcspn(line, "\n");
        *text += **text == '\n';
        if (line[0] >= '0' && line[0] <= '9' && read_line(line, holder)) {
            return true;
        }
    }
    return false;
}

static int print_line(char *dst, size_t cap, const heft__holder *holder)
{
    return snprintf(dst, cap, "%ld %d %llu\n", holder->pid, holder->number,
                    (unsigned long long)holder->inode);
}

size_t heft__register_scan(heft__register *reg, heft__register_keep keep, void *user)
{
    const char *text = reg->text;
    size_t length = 0, count = 0;
    heft__holder holder;
    if (!text) {
        return 0;
    }
    char *kept = reg->text + HEFT__REGISTER_BYTES;
    while (heft__register_next(&text, &holder)) {
        char line[64];
        const size_t more = (size_t)print_line(line, sizeof line, &holder);
        if (length + more < HEFT__REGISTER_BYTES && keep(user, &holder)) {
            memcpy(kept + length, line, more);
            length += more;
            count++;
        }
    }
    kept[length] = '\0';
    return count;
}

/* The new text first, then the length: whoever is killed in between leaves lines that are checked. */
static heft_status write_text(heft__register *reg, const char *text, heft_error *err)
{
    const size_t length = strlen(text);
    return pwrite(reg->fd, text, length, 0) == (ssize_t)length &&
                   ftruncate(reg->fd, (off_t)length) == 0
               ? HEFT_OK
               : heft__fail_io(err, errno, "cannot write the register of shared copies");
}

heft_status heft__register_write(heft__register *reg, const heft__holder *more, heft_error *err)
{
    char line[64] = "";
    if (more) {
        print_line(line, sizeof line, more);
    }
    if (!reg->text) {
        return write_text(reg, line, err);
    }
    char *kept = reg->text + HEFT__REGISTER_BYTES;
    const size_t length = strlen(kept);
    if (length + strlen(line) >= HEFT__REGISTER_BYTES) {
        return heft__fail(err, HEFT_LIMIT, "the register of shared copies is full");
    }
    memcpy(kept + length, line, strlen(line) + 1);
    return write_text(reg, kept, err);
}

heft_status heft__register_build(heft__register *reg, uint64_t bytes, heft_error *err)
{
    char line[64];
    snprintf(line, sizeof line, "building %ld %llu\n", (long)getpid(), (unsigned long long)bytes);
    free_text(reg);
    return write_text(reg, line, err);
}

void heft__register_beat(heft__register *reg)
{
    const long long now = now_ms() / 1000;
    if (atomic_exchange(&reg->beat, now) != now && reg->fd >= 0) {
        (void)futimens(reg->fd, NULL);
    }
}

void heft__register_remove(heft__register *reg)
{
    if (heft__register_is_current(reg)) {
        (void)heft__unlink_at(reg->dir, reg->name);
    }
}

/* ---- all of a folder ------------------------------------------------------------------------- */
void heft__register_sweep(heft_ctx *ctx, int dir, heft__register_keep keep, void *user)
{
    heft__arena arena;
    const char *const *names = NULL;
    size_t count = 0;
    heft__arena_init(&arena, ctx);
    if (heft__dir_list(&arena, dir, &names, &count, NULL) != HEFT_OK) {
        count = 0;
    }
    for (size_t i = 0; i < count; i++) {
        heft__register reg = {.ctx = ctx, .dir = dir, .fd = -1};
        if (!heft__register_is_name(names[i])) {
            continue;
        }
        memcpy(reg.name, names[i], sizeof reg.name);
        if (heft__register_lock(&reg, HEFT__REGISTER_TRY, 0, NULL) == HEFT_OK) {
            if (heft__register_scan(&reg, keep, user) == 0) {
                heft__register_remove(&reg);
            }
            heft__register_unlock(&reg);
        }
    }
    heft__arena_fini(&arena);
}
