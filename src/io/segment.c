/* segment.c - one copy of something on a host, for as long as any process uses it, without a daemon.
 *
 * The bytes are a sealed memfd, which the kernel frees with its last user, however that ends. What
 * has a name is only a small register below the user's own runtime folder, one file a key: the
 * processes that hold the segment, each as "pid descriptor". A newcomer opens /proc/PID/fd/N of one
 * that still exists, and checks by seals, size and the key at the end of the segment that it is
 * the right one. A process that finds none builds it, holding the register's lock; if a builder dies, the kernel
 * drops the lock and the next one builds.
 *
 * Source: memfd_create(2), fcntl(2) F_ADD_SEALS, flock(2), proc(5); docs/sharing.md. */
#include "io/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define TRAILER_BYTES 4096 /* after the bytes: the key, zeroes */
#define REGISTER_BYTES 65536
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)
#define WAIT_NANOSECONDS 2000000

struct heft__segment {
    heft_ctx *ctx;
    char key[HEFT__SEGMENT_KEY];
    char path[512];  /* of the register */
    int register_fd; /* locked while we build; -1: none */
    int fd;
    uint8_t *base; /* the whole segment, written by the builder, else read only */
    size_t bytes;  /* without the trailer */
    bool sealed;
};

/* ---- the register ---------------------------------------------------------------------------- */
/* A private folder; false if there is none. */
static bool own_folder(const char *path)
{
    struct stat facts;
    (void)mkdir(path, 0700);
    return lstat(path, &facts) == 0 && S_ISDIR(facts.st_mode) && facts.st_uid == geteuid() &&
           (facts.st_mode & 077) == 0;
}

static heft_status name_register(heft__segment *segment, heft_error *err)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    char folder[400];
    const char *const places[] = {runtime && runtime[0] == '/' ? runtime : NULL, "/dev/shm",
                                  "/tmp"};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        if (!places[i] || strlen(places[i]) > 300) {
            continue;
        }
        snprintf(folder, sizeof folder, "%s/heft-%lu", places[i], (unsigned long)geteuid());
        if (own_folder(folder)) {
            snprintf(segment->path, sizeof segment->path, "%s/%s", folder, segment->key);
            return HEFT_OK;
        }
    }
    return heft__fail(err, HEFT_IO,
                      "no private folder for the register of shared copies: neither in "
                      "XDG_RUNTIME_DIR nor in /dev/shm nor in /tmp");
}

/* Whether a descriptor is still what its path names. */
static bool is_current(int fd, const char *path)
{
    struct stat ours, named;
    return fstat(fd, &ours) == 0 && stat(path, &named) == 0 && ours.st_ino == named.st_ino &&
           ours.st_dev == named.st_dev;
}

/* Open and lock the register; waits for a builder, and can be cancelled meanwhile. */
static heft_status lock_register(heft__segment *segment, heft_error *err)
{
    const struct timespec pause = {.tv_nsec = WAIT_NANOSECONDS};
    for (;;) {
        int fd = open(segment->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0) {
            return heft__fail_errno(err, errno, "cannot open the register of shared copies");
        }
        heft_status status = HEFT_OK;
        while (status == HEFT_OK && flock(fd, LOCK_EX | LOCK_NB) != 0) {
            if (errno != EWOULDBLOCK && errno != EINTR) {
                status = heft__fail_errno(err, errno, "cannot lock the register of shared copies");
            } else {
                nanosleep(&pause, NULL);
                status = heft__tell_progress(segment->ctx, "waiting", 0, 0, err);
            }
        }
        if (status == HEFT_OK && is_current(fd, segment->path)) {
            segment->register_fd = fd;
            return HEFT_OK;
        }
        close(fd); /* the last user has removed it meanwhile: once more */
        if (status != HEFT_OK) {
            return status;
        }
    }
}

static void unlock_register(heft__segment *segment)
{
    if (segment->register_fd >= 0) {
        close(segment->register_fd);
        segment->register_fd = -1;
    }
}

/* The register's text, NUL-terminated; "" if it cannot be read. */
static void read_register(const heft__segment *segment, char *text)
{
    ssize_t got = pread(segment->register_fd, text, REGISTER_BYTES - 1, 0);
    text[got > 0 ? got : 0] = '\0';
}

/* ---- one holder ------------------------------------------------------------------------------ */
static bool has_key(int fd, const heft__segment *segment)
{
    char trailer[HEFT__SEGMENT_KEY];
    return pread(fd, trailer, sizeof trailer, (off_t)segment->bytes) == (ssize_t)sizeof trailer &&
           memcmp(trailer, segment->key, sizeof trailer) == 0;
}

/* The segment that a holder has, or -1. */
static int open_holder(const heft__segment *segment, long pid, long number)
{
    char path[64];
    struct stat facts;
    snprintf(path, sizeof path, "/proc/%ld/fd/%ld", pid, number);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return -1;
    }
    int seals = fcntl(fd, F_GET_SEALS);
    bool good = seals >= 0 && (seals & SEALS) == SEALS && fstat(fd, &facts) == 0 &&
                (uint64_t)facts.st_size == (uint64_t)segment->bytes + TRAILER_BYTES &&
                facts.st_uid == geteuid() && has_key(fd, segment);
    if (!good) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Walk through the register: open the first holder's segment (out != NULL), keep in `kept` the lines
 * of those that still hold it, but for one of our own with this descriptor. */
static void scan_register(const heft__segment *segment, char *text, char *kept, int skip, int *out)
{
    size_t length = 0;
    kept[0] = '\0';
    for (char *line = text, *end; *line; line = end) {
        char *rest;
        long pid = strtol(line, &rest, 10), number = strtol(rest, &rest, 10);
        end = line + strcspn(line, "\n");
        end += *end == '\n';
        int fd = pid > 0 && number >= 0 && !(pid == (long)getpid() && number == skip)
                     ? open_holder(segment, pid, number)
                     : -1;
        if (fd < 0) {
            continue;
        }
        memmove(kept + length, line, (size_t)(end - line));
        length += (size_t)(end - line);
        kept[length] = '\0';
        if (out && *out < 0) {
            *out = fd;
        } else {
            close(fd);
        }
    }
}

/* Write the register anew: `kept`, and ourselves if we hold the segment. */
static heft_status write_register(heft__segment *segment, const char *kept, bool with_us,
                                  heft_error *err)
{
    char line[64] = "";
    size_t length = strlen(kept);
    if (with_us) {
        snprintf(line, sizeof line, "%ld %d\n", (long)getpid(), segment->fd);
    }
    if (length + strlen(line) >= REGISTER_BYTES) {
        return heft__fail(err, HEFT_LIMIT, "the register of shared copies is full");
    }
    bool good =
        ftruncate(segment->register_fd, 0) == 0 &&
        pwrite(segment->register_fd, kept, length, 0) == (ssize_t)length &&
        pwrite(segment->register_fd, line, strlen(line), (off_t)length) == (ssize_t)strlen(line);
    return good ? HEFT_OK
                : heft__fail_errno(err, errno, "cannot write the register of shared copies");
}

/* ---- the segment ----------------------------------------------------------------------------- */
static heft_status map_segment(heft__segment *segment, int protection, heft_error *err)
{
    void *base = mmap(NULL, segment->bytes + TRAILER_BYTES, protection, MAP_SHARED, segment->fd, 0);
    if (base == MAP_FAILED) {
        return heft__fail_errno(err, errno, "cannot map a shared copy of %zu bytes",
                                segment->bytes);
    }
    (void)madvise(base, segment->bytes + TRAILER_BYTES, MADV_HUGEPAGE);
    segment->base = base;
    return HEFT_OK;
}

static void unmap_segment(heft__segment *segment)
{
    if (segment->base) {
        munmap(segment->base, segment->bytes + TRAILER_BYTES);
        segment->base = NULL;
    }
}

static heft_status make_segment(heft__segment *segment, heft_error *err)
{
    segment->fd = memfd_create("heft", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (segment->fd < 0) {
        return heft__fail_errno(err, errno, "cannot create a shared copy");
    }
    if (ftruncate(segment->fd, (off_t)(segment->bytes + TRAILER_BYTES)) != 0) {
        return heft__fail_errno(err, errno, "cannot create a shared copy of %zu bytes",
                                segment->bytes);
    }
    return map_segment(segment, PROT_READ | PROT_WRITE, err);
}

static heft_status join(heft__segment *segment, heft_error *err)
{
    char *texts = heft__alloc(segment->ctx, 2 * REGISTER_BYTES);
    if (!texts) {
        return heft__fail_nomem(err, 2 * REGISTER_BYTES);
    }
    char *text = texts, *kept = texts + REGISTER_BYTES;
    heft_status status = lock_register(segment, err);
    if (status == HEFT_OK) {
        read_register(segment, text);
        scan_register(segment, text, kept, -1, &segment->fd);
        if (segment->fd >= 0) {
            segment->sealed = true;
            status = map_segment(segment, PROT_READ, err);
            if (status == HEFT_OK) {
                status = write_register(segment, kept, true, err);
            }
            unlock_register(segment);
        } else {
            status = make_segment(segment, err);
        }
    }
    heft__free(segment->ctx, texts, 2 * REGISTER_BYTES);
    return status;
}

/* Nothing is wrong with what the caller wants, and it can go on without the segment: only memory that
 * is lacking and cancellation are failures. */
static heft_status none_to_be_had(heft_status status, heft_error *err)
{
    if (status == HEFT_IO || status == HEFT_NOT_FOUND || status == HEFT_LIMIT) {
        status = HEFT_UNSUPPORTED;
        if (err) {
            err->status = status;
        }
    }
    return status;
}

heft_status heft__segment_open(heft_ctx *ctx, const char *key, uint64_t bytes, heft__segment **out,
                               heft_error *err)
{
    heft__segment *segment = heft__alloc_zero(ctx, 1, sizeof *segment);
    if (!segment) {
        return heft__fail_nomem(err, sizeof *segment);
    }
    segment->ctx = heft__ctx_ref(ctx);
    segment->register_fd = segment->fd = -1;
    snprintf(segment->key, sizeof segment->key, "%s", key);
    heft_status status = HEFT_OK;
    if (!heft__to_size(bytes, &segment->bytes) || segment->bytes > SIZE_MAX / 2) {
        status = heft__fail_nomem(err, bytes);
    }
    if (status == HEFT_OK) {
        status = name_register(segment, err);
    }
    if (status == HEFT_OK) {
        status = join(segment, err);
    }
    status = none_to_be_had(heft__add_path(status, err, segment->path), err);
    if (status == HEFT_OK) {
        *out = segment;
    } else {
        heft__segment_close(segment);
    }
    return status;
}

bool heft__segment_is_new(const heft__segment *segment)
{
    return !segment->sealed;
}

uint8_t *heft__segment_base(const heft__segment *segment)
{
    return segment->base;
}

heft_status heft__segment_seal(heft__segment *segment, heft_error *err)
{
    heft_status status = HEFT_OK;
    memcpy(segment->base + segment->bytes, segment->key, sizeof segment->key);
    unmap_segment(segment); /* nothing that is mapped for writing can be sealed */
    if (fcntl(segment->fd, F_ADD_SEALS, SEALS) != 0) {
        status = heft__fail_errno(err, errno, "cannot seal a shared copy");
    }
    if (status == HEFT_OK) {
        segment->sealed = true;
        status = map_segment(segment, PROT_READ, err);
    }
    if (status == HEFT_OK) {
        status = write_register(segment, "", true, err);
        unlock_register(segment);
    }
    return none_to_be_had(heft__add_path(status, err, segment->path), err);
}

/* Take our line out of the register; the last one takes the register away. */
static void sign_off(heft__segment *segment)
{
    char *texts = heft__alloc(segment->ctx, 2 * REGISTER_BYTES);
    bool locked = segment->register_fd >= 0; /* a build that did not end */
    if (texts && (locked || lock_register(segment, NULL) == HEFT_OK)) {
        read_register(segment, texts);
        scan_register(segment, texts, texts + REGISTER_BYTES, segment->fd, NULL);
        if (texts[REGISTER_BYTES]) {
            (void)write_register(segment, texts + REGISTER_BYTES, false, NULL);
        } else {
            (void)unlink(segment->path);
        }
    }
    heft__free(segment->ctx, texts, 2 * REGISTER_BYTES);
    unlock_register(segment);
}

void heft__segment_close(heft__segment *segment)
{
    if (!segment) {
        return;
    }
    if (segment->path[0] && (segment->sealed || segment->register_fd >= 0)) {
        sign_off(segment);
    }
    unmap_segment(segment);
    if (segment->fd >= 0) {
        close(segment->fd);
    }
    heft_ctx *ctx = segment->ctx;
    heft__free(ctx, segment, sizeof *segment);
    heft_ctx_free(ctx);
}
