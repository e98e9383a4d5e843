/* segment.c - one copy of something on a host, for as long as anybody uses it, without a daemon.
 *
 * The bytes are a memfd, which the kernel frees with its last user, however that ends:
 *
 *     [the bytes][what they are][what they were made of][footer]
 *
 * A register (register.h) lists who has it. A newcomer opens /proc/PID/fd/N of a process that is listed, and
 * uses it only if it proves to be the right one: a regular file of this user with mode 0600, all seals,
 * a footer whose lengths add up to its size, and the description, which is compared whole. Who finds
 * nobody builds, holding the register's lock; if a builder dies, the kernel drops the lock and the
 * next one builds.
 *
 * Not done here: deciding what tells one copy from another (load/fill.c).
 * Source: memfd_create(2), fcntl(2) F_ADD_SEALS, proc(5); docs/sharing.md. */
#include "io/segment.h"

#include "io/dir.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U /* Linux 6.3 */
#endif
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)
#define PATIENCE_MS 60000
#define WHAT_MAX ((size_t)16 << 20)
#define SOURCE_MAX ((size_t)4096)
#define COMPARE_BYTES 4096 /* at a time */

struct footer { /* of this machine's byte order: it never leaves it */
    char magic[8];
    heft__segment_facts facts;
};
static const char magic[8] = {'h', 'e', 'f', 't', 's', 'e', 'g', '2'};

struct heft__segment {
    heft_ctx *ctx;
    heft__register reg; /* locked while we build */
    int fd;
    uint64_t inode;
    uint8_t *base; /* the bytes, written by the builder, else read only */
    size_t bytes;
    bool sealed, private;
};

/* ---- one holder ------------------------------------------------------------------------------ */
static bool read_all(int fd, uint64_t offset, void *dst, size_t length)
{
    ssize_t got;
    do {
        got = pread(fd, dst, length, (off_t)offset);
    } while (got < 0 && errno == EINTR);
    return got == (ssize_t)length;
}

/* What every segment is, its seals apart. */
static bool is_private(const struct stat *facts, uint64_t inode)
{
    return S_ISREG(facts->st_mode) && facts->st_uid == geteuid() &&
           (facts->st_mode & 07777) == 0600 && (uint64_t)facts->st_ino == inode;
}

static bool has_footer(int fd, uint64_t size, heft__segment_facts *facts)
{
    struct footer footer;
    if (size < sizeof footer || !read_all(fd, size - sizeof footer, &footer, sizeof footer) ||
        memcmp(footer.magic, magic, sizeof magic) != 0) {
        return false;
    }
    const heft__segment_facts *f = &footer.facts;
    *facts = *f;
    return f->what_bytes <= WHAT_MAX && f->source_bytes <= SOURCE_MAX &&
           f->bytes <= (uint64_t)INT64_MAX &&
           f->bytes + f->what_bytes + f->source_bytes + sizeof footer == size;
}

/* The link is looked at before it is opened: opening whatever has the number today might do something. */
int heft__segment_look(const heft__holder *holder, heft__segment_facts *facts)
{
    char path[64];
    struct stat link, opened;
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", holder->pid, holder->number);
    if (stat(path, &link) != 0 || !is_private(&link, holder->inode)) {
        return -1;
    }
    int fd = heft__open_at(AT_FDCWD, path, O_RDONLY | O_NONBLOCK, 0);
    if (fd < 0) {
        return -1;
    }
    const int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &opened) != 0 ||
        !is_private(&opened, holder->inode) || opened.st_dev != link.st_dev ||
        !has_footer(fd, (uint64_t)opened.st_size, facts)) {
        heft__dir_close(&fd);
    }
    return fd;
}

bool heft__segment_is_held(void *user, const heft__holder *holder)
{
    heft__segment_facts facts;
    int fd = heft__segment_look(holder, &facts);
    const bool held = fd >= 0;
    (void)user;
    heft__dir_close(&fd);
    return held;
}

/* Whether a sealed segment is the one that is asked for. */
static bool is_asked_for(int fd, const heft__segment_facts *facts,
                         const heft__segment_request *request)
{
    const uint8_t *what = request->what;
    uint8_t piece[COMPARE_BYTES];
    bool equal = facts->bytes == request->bytes && facts->what_bytes == request->what_bytes;
    for (size_t at = 0; equal && at < request->what_bytes; at += sizeof piece) {
        const size_t left = request->what_bytes - at,
                     length = left < sizeof piece ? left : sizeof piece;
        equal =
            read_all(fd, facts->bytes + at, piece, length) && memcmp(piece, what + at, length) == 0;
    }
    return equal;
}

struct search {
    const heft__segment_request *request; /* NULL: none */
    int found;                            /* -1: not yet */
    uint64_t inode;
    const heft__holder *leaves; /* not to be kept; NULL: none */
};

static bool look_for(void *user, const heft__holder *holder)
{
    struct search *search = user;
    heft__segment_facts facts;
    if (search->leaves && holder->pid == search->leaves->pid &&
        holder->number == search->leaves->number) {
        return false;
    }
    int fd = heft__segment_look(holder, &facts);
    const bool held = fd >= 0;
    if (held && search->request && search->found < 0 && is_asked_for(fd, &facts, search->request)) {
        search->found = fd;
        search->inode = holder->inode;
        fd = -1;
    }
    heft__dir_close(&fd);
    return held;
}

/* ---- the segment ----------------------------------------------------------------------------- */
/* New: to be written. Sealed: read only, or copy-on-write; no memory is reserved for that. */
static heft_status map_segment(heft__segment *segment, heft_error *err)
{
    const bool private = segment->sealed && segment->private;
    const int protection = segment->sealed && !private ? PROT_READ : PROT_READ | PROT_WRITE;
    void *base = mmap(NULL, segment->bytes, protection,
                      private ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED, segment->fd, 0);
    if (base == MAP_FAILED) {
        return heft__fail_errno(err, errno, "cannot map a shared copy of %zu bytes",
                                segment->bytes);
    }
    (void)madvise(base, segment->bytes, MADV_HUGEPAGE);
    if (!segment->sealed) { /* a child could not be sealed out */
        (void)madvise(base, segment->bytes, MADV_DONTFORK);
    }
    segment->base = base;
    return HEFT_OK;
}

static void unmap_segment(heft__segment *segment)
{
    if (segment->base) {
        munmap(segment->base, segment->bytes);
        segment->base = NULL;
    }
}

static bool write_all(int fd, uint64_t offset, const void *bytes, size_t length)
{
    size_t done = 0;
    while (done < length) {
        const ssize_t put =
            pwrite(fd, (const uint8_t *)bytes + done, length - done, (off_t)(offset + done));
        if (put <= 0 && errno != EINTR) {
            return false;
        }
        done += put > 0 ? (size_t)put : 0;
    }
    return true;
}

/* What stands after the bytes; it counts only once the whole is sealed. */
static bool write_tail(int fd, const heft__segment_request *request)
{
    const size_t source = request->source ? strnlen(request->source, SOURCE_MAX) : 0;
    struct footer footer = {
        .facts = {.bytes = request->bytes,
                  .what_bytes = request->what_bytes,
                  .source_bytes = source,
                  .created = (int64_t)time(NULL)}
    };
    uint64_t at = request->bytes;
    memcpy(footer.magic, magic, sizeof magic);
    if (!write_all(fd, at, request->what, request->what_bytes)) {
        return false;
    }
    at += request->what_bytes;
    if (source && !write_all(fd, at, request->source, source)) {
        return false;
    }
    return write_all(fd, at + source, &footer, sizeof footer);
}

static int new_memfd(void)
{
    const int fd = memfd_create("heft", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    return fd >= 0 || errno != EINVAL ? fd : memfd_create("heft", MFD_CLOEXEC | MFD_ALLOW_SEALING);
}

static heft_status make_segment(heft__segment *segment, const heft__segment_request *request,
                                heft_error *err)
{
    struct stat facts;
    segment->fd = new_memfd();
    if (segment->fd < 0 || fchmod(segment->fd, 0600) != 0 || fstat(segment->fd, &facts) != 0) {
        return heft__fail_errno(err, errno, "cannot create a shared copy");
    }
    segment->inode = (uint64_t)facts.st_ino;
    if (!write_tail(segment->fd, request)) {
        return heft__fail_errno(err, errno, "cannot create a shared copy of %zu bytes",
                                segment->bytes);
    }
    return map_segment(segment, err);
}

static heft__holder us(const heft__segment *segment)
{
    return (heft__holder){.pid = (long)getpid(), .number = segment->fd, .inode = segment->inode};
}

static heft_status join(heft__segment *segment, const heft__segment_request *request,
                        heft_error *err)
{
    heft__register *reg = &segment->reg;
    struct search search = {.request = request, .found = -1};
    heft_status status = heft__register_lock(
        reg, HEFT__REGISTER_JOIN, request->patience_ms ? request->patience_ms : PATIENCE_MS, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft__register_scan(reg, look_for, &search);
    if (search.found < 0) {
        status = make_segment(segment, request, err);
        return status == HEFT_OK ? heft__register_build(reg, request->bytes, err) : status;
    }
    segment->fd = search.found;
    segment->inode = search.inode;
    segment->sealed = true;
    status = map_segment(segment, err);
    if (status == HEFT_OK) {
        const heft__holder holder = us(segment);
        status = heft__register_write(reg, &holder, err);
    }
    heft__register_unlock(reg);
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

static heft_status find_folder(heft__segment *segment, heft_error *err)
{
    for (size_t i = 0; i < HEFT__REGISTER_PLACES && segment->reg.dir < 0; i++) {
        segment->reg.dir = heft__register_place(segment->ctx, i, true);
    }
    return segment->reg.dir >= 0
               ? HEFT_OK
               : heft__fail(err, HEFT_IO,
                            "no private folder for the register of shared copies: neither in "
                            "XDG_RUNTIME_DIR nor in /dev/shm nor in /tmp");
}

heft_status heft__segment_open(heft_ctx *ctx, const heft__segment_request *request,
                               heft__segment **out, heft_error *err)
{
    heft__segment *segment = heft__alloc_zero(ctx, 1, sizeof *segment);
    if (!segment) {
        return heft__fail_nomem(err, sizeof *segment);
    }
    segment->ctx = heft__ctx_ref(ctx);
    segment->fd = -1;
    segment->private = request->private;
    segment->reg.ctx = ctx;
    segment->reg.dir = segment->reg.fd = -1;
    snprintf(segment->reg.name, sizeof segment->reg.name, "%016llx",
             (unsigned long long)heft__stable_hash(request->what, request->what_bytes));
    heft_status status = HEFT_OK;
    if (!heft__to_size(request->bytes, &segment->bytes) || segment->bytes > SIZE_MAX / 2) {
        status = heft__fail_nomem(err, request->bytes);
    } else if (request->what_bytes > WHAT_MAX) {
        status = heft__fail(err, HEFT_LIMIT, "the description of a shared copy has %zu bytes",
                            request->what_bytes);
    }
    if (status == HEFT_OK) {
        status = find_folder(segment, err);
    }
    if (status == HEFT_OK) {
        heft__register_sweep(ctx, segment->reg.dir, heft__segment_is_held, NULL);
        status = join(segment, request, err);
    }
    status = none_to_be_had(status, err);
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

void heft__segment_beat(heft__segment *segment)
{
    if (!segment->sealed) {
        heft__register_beat(&segment->reg);
    }
}

heft_status heft__segment_seal(heft__segment *segment, heft_error *err)
{
    heft_status status = HEFT_OK;
    unmap_segment(segment); /* nothing that is mapped for writing can be sealed */
    if (fcntl(segment->fd, F_ADD_SEALS, SEALS) != 0) {
        status = heft__fail_errno(err, errno, "cannot seal a shared copy");
    }
    if (status == HEFT_OK) {
        segment->sealed = true;
        status = map_segment(segment, err);
    }
    if (status == HEFT_OK) {
        const heft__holder holder = us(segment);
        status = heft__register_write(&segment->reg, &holder, err);
        heft__register_unlock(&segment->reg);
    }
    return none_to_be_had(status, err);
}

/* Take our line out of the register; the last one takes the register away. Where somebody builds anew,
 * the line is not ours to wait for: it is gone already. */
static void sign_off(heft__segment *segment)
{
    const heft__holder holder = us(segment);
    struct search search = {.found = -1, .leaves = &holder};
    heft__register *reg = &segment->reg;
    if (reg->fd < 0 && heft__register_lock(reg, HEFT__REGISTER_LEAVE, 0, NULL) != HEFT_OK) {
        return;
    }
    if (heft__register_scan(reg, look_for, &search) > 0) {
        (void)heft__register_write(reg, NULL, NULL);
    } else {
        heft__register_remove(reg);
    }
    heft__register_unlock(reg);
}

void heft__segment_close(heft__segment *segment)
{
    if (!segment) {
        return;
    }
    if (segment->reg.dir >= 0 && (segment->sealed || segment->reg.fd >= 0)) {
        sign_off(segment);
    }
    unmap_segment(segment);
    heft__dir_close(&segment->fd);
    heft__dir_close(&segment->reg.dir);
    heft_ctx *ctx = segment->ctx;
    heft__free(ctx, segment, sizeof *segment);
    heft_ctx_free(ctx);
}
