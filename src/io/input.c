/* input.c - a regular file, bytes in memory or a caller's reader, to read from at any offset.
 *
 * The library reads with pread only. A read that comes up short says which byte is missing: FORMAT
 * where the file never had it, IO where it had when it was opened. Touching a mapping goes through
 * MADV_POPULATE_READ, which fails with an errno where touching the memory would raise SIGBUS;
 * kernels before 5.14 lack it, and there the range is read with pread into a small buffer, which
 * brings the same pages into the cache.
 * Source: madvise(2), docs/mapping.md. */
#include "io/input.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

static heft_status source_new(heft_ctx *ctx, const char *path, heft__input **out, heft_error *err)
{
    heft__input *source = heft__alloc_zero(ctx, 1, sizeof *source);
    size_t path_bytes = strlen(path) + 1;
    char *copy = source ? heft__alloc(ctx, path_bytes) : NULL;
    if (!copy) {
        heft__free(ctx, source, sizeof *source);
        return heft__fail_nomem(err, path_bytes);
    }
    memcpy(copy, path, path_bytes);
    *source = (heft__input){.ctx = heft__ctx_ref(ctx),
                            .path = copy,
                            .path_bytes = path_bytes,
                            .fd = -1,
                            .direct_fd = -1};
    atomic_init(&source->refs, 1);
    pthread_mutex_init(&source->lock, NULL);
    *out = source;
    return HEFT_OK;
}

static const char *kind_of_file(mode_t mode)
{
    return S_ISDIR(mode)    ? "a folder"
           : S_ISFIFO(mode) ? "a FIFO"
           : S_ISCHR(mode)  ? "a device"
           : S_ISBLK(mode)  ? "a block device"
           : S_ISSOCK(mode) ? "a socket"
                            : "a special file";
}

/* O_NONBLOCK: opening a FIFO must not wait for its other end. It changes nothing for regular files.
 */
static heft_status open_regular(const char *path, int *fd, struct stat *facts, heft_error *err)
{
    if (stat(path, facts) == 0 &&
        !S_ISREG(facts->st_mode)) { /* opening a device may do something */
        return heft__add_path(heft__fail(err, HEFT_UNSUPPORTED, "not a regular file but %s",
                                         kind_of_file(facts->st_mode)),
                              err, path);
    }
    int opened;
    do {
        opened = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    } while (opened < 0 && errno == EINTR);
    if (opened < 0) {
        return heft__add_path(heft__fail_errno(err, errno, "cannot open"), err, path);
    }
    heft_status status = HEFT_OK;
    if (fstat(opened, facts) != 0) {
        status = heft__fail_errno(err, errno, "cannot get the file's status");
    } else if (!S_ISREG(facts->st_mode)) {
        status = heft__fail(err, HEFT_UNSUPPORTED, "not a regular file but %s",
                            kind_of_file(facts->st_mode));
    }
    if (status != HEFT_OK) {
        close(opened);
        return heft__add_path(status, err, path);
    }
    *fd = opened;
    return HEFT_OK;
}

heft_status heft__input_open(heft_ctx *ctx, const char *path, heft__input **out, heft_error *err)
{
    int fd = -1;
    struct stat facts;
    heft_status status = open_regular(path, &fd, &facts, err);
    if (status != HEFT_OK) {
        return status;
    }
    status = source_new(ctx, path, out, err);
    if (status != HEFT_OK) {
        close(fd);
        return status;
    }
    (*out)->fd = fd;
    (*out)->size = (uint64_t)facts.st_size;
    (*out)->identity = heft__identity_of(&facts);
    return HEFT_OK;
}

const heft__identity *heft__input_identity(const heft__input *source)
{
    return heft__input_has_file(source) ? &source->identity : NULL;
}

heft_status heft__input_unchanged(heft__input *source, heft_error *err)
{
    int fd = -1;
    struct stat facts;
    if (!heft__input_has_file(source)) {
        return HEFT_OK;
    }
    heft_status status = heft__input_take_fd(source, &fd, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (fstat(fd, &facts) != 0) {
        status = heft__fail_io(err, errno, "cannot access the file");
    } else {
        const heft__identity now = heft__identity_of(&facts);
        heft__identity touched = now; /* but for its change time */
        touched.change_seconds = source->identity.change_seconds;
        touched.change_nanoseconds = source->identity.change_nanoseconds;
        const bool only = memcmp(&touched, &source->identity, sizeof touched) == 0;
        status = memcmp(&now, &source->identity, sizeof now) == 0 ? HEFT_OK
                 : only                                           ? heft__fail(err, HEFT_IO,
                                                                               "the file changed while it was read: only its change time "
                                                                                                                         "differs, as after chmod or a new link to it")
                        : heft__fail(err, HEFT_IO, "the file changed while it was read");
    }
    heft__input_drop_fd(source);
    return heft__add_path(status, err, source->path);
}

bool heft__input_is_current(const heft__input *source)
{
    struct stat facts;
    return !heft__input_has_file(source) ||
           (stat(source->path, &facts) == 0 && (uint64_t)facts.st_dev == source->identity.device &&
            (uint64_t)facts.st_ino == source->identity.inode);
}

/* The descriptor for a read, opened again if the source is parked. Every take is followed by a
 * drop. */
heft_status heft__input_take_fd(heft__input *source, int *fd, heft_error *err)
{
    heft_status status = HEFT_OK;
    pthread_mutex_lock(&source->lock);
    if (source->fd < 0) {
        struct stat facts;
        status = open_regular(source->path, &source->fd, &facts, err);
        if (status == HEFT_OK && ((uint64_t)facts.st_dev != source->identity.device ||
                                  (uint64_t)facts.st_ino != source->identity.inode)) {
            close(source->fd);
            source->fd = -1;
            status = heft__fail(err, HEFT_IO, "the file has been replaced since it was opened");
        }
    }
    if (status == HEFT_OK) {
        *fd = source->fd;
        source->users++;
    }
    pthread_mutex_unlock(&source->lock);
    return heft__add_path(status, err, source->path);
}

void heft__input_drop_fd(heft__input *source)
{
    pthread_mutex_lock(&source->lock);
    if (--source->users == 0 && source->parked) {
        close(source->fd);
        source->fd = -1;
    }
    pthread_mutex_unlock(&source->lock);
}

void heft__input_park(heft__input *source)
{
    pthread_mutex_lock(&source->lock);
    if (heft__input_has_file(source) && !source->parked) {
        source->parked = true;
        if (source->users == 0 && source->fd >= 0) {
            close(source->fd);
            source->fd = -1;
        }
    }
    pthread_mutex_unlock(&source->lock);
}

heft_status heft__input_from_bytes(heft_ctx *ctx, const char *name, const void *bytes,
                                   size_t length, heft__input **out, heft_error *err)
{
    heft_status status = source_new(ctx, name, out, err);
    if (status == HEFT_OK) {
        (*out)->bytes = length ? bytes : (const void *)"";
        (*out)->size = length;
    }
    return status;
}

heft_status heft__input_from_reader(heft_ctx *ctx, const char *name, const heft__reader *reader,
                                    uint64_t size, heft__input **out, heft_error *err)
{
    heft_status status = source_new(ctx, name, out, err);
    if (status == HEFT_OK) {
        (*out)->reader = *reader;
        (*out)->size = size;
    }
    return status;
}

void heft__input_on_release(heft__input *source, void (*release)(void *user), void *user)
{
    source->release = release;
    source->release_user = user;
}

heft__input *heft__input_ref(heft__input *source)
{
    atomic_fetch_add_explicit(&source->refs, 1, memory_order_relaxed);
    return source;
}

void heft__input_unref(heft__input *source)
{
    if (!source || atomic_fetch_sub_explicit(&source->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    if (heft__input_has_file(source) && source->mapped && source->size > 0) {
        munmap((void *)(uintptr_t)source->mapped, (size_t)source->size);
    }
    if (source->private && source->size > 0) {
        munmap(source->private, (size_t)source->size);
    }
    if (source->fd >= 0) {
        close(source->fd);
    }
    if (source->direct_fd >= 0) {
        close(source->direct_fd);
    }
    pthread_mutex_destroy(&source->lock);
    if (source->release) {
        source->release(source->release_user);
    }
    heft_ctx *ctx = source->ctx;
    heft__free(ctx, source->path, source->path_bytes);
    heft__free(ctx, source, sizeof *source);
    heft_ctx_free(ctx);
}

uint64_t heft__input_size(const heft__input *source)
{
    return source->size;
}

bool heft__input_is_file(const heft__input *source)
{
    return heft__input_has_file(source);
}

bool heft__input_can_map(heft__input *source, bool private)
{
    const uint8_t *base;
    return heft__input_has_file(source) ||
           (!private && (source->bytes ||
                         (source->reader.map && heft__input_map(source, &base, NULL) == HEFT_OK)));
}

bool heft__input_is_aligned(heft__input *source, uint64_t offset, size_t alignment)
{
    const uint8_t *base = NULL; /* a file is mapped from the beginning of a page on */
    if (!heft__input_has_file(source) && heft__input_map(source, &base, NULL) != HEFT_OK) {
        return false;
    }
    return ((uintptr_t)base + offset) % alignment == 0;
}

const char *heft__input_path(const heft__input *source)
{
    return source->path;
}

static heft_status short_read(const heft__input *source, uint64_t at, heft_error *err)
{
    heft_status status;
    if (at < source->size) {
        status = heft__fail_at(err, HEFT_IO, at,
                               "file now ends here, it had %llu bytes when it was opened",
                               (unsigned long long)source->size);
    } else {
        status = heft__fail_at(err, HEFT_FORMAT, source->size, "file ends early, it has %llu bytes",
                               (unsigned long long)source->size);
    }
    return heft__add_path(status, err, source->path);
}

static heft_status read_fd(const heft__input *source, int fd, uint64_t offset, void *dst,
                           size_t length, heft_error *err)
{
    size_t done = 0;
    while (done < length) {
        size_t piece = length - done > ((size_t)1 << 30) ? (size_t)1 << 30 : length - done;
        ssize_t got = pread(fd, (uint8_t *)dst + done, piece, (off_t)(offset + done));
        if (got > 0) {
            done += (size_t)got;
        } else if (got == 0) {
            return short_read(source, offset + done, err);
        } else if (errno != EINTR) {
            heft_status status = heft__fail_errno(err, errno, "cannot read");
            if (err) {
                err->offset = offset + done;
            }
            return heft__add_path(status, err, source->path);
        }
    }
    return HEFT_OK;
}

/* The caller's callback may give less than it is asked for, but not nothing. */
static heft_status read_reader(const heft__input *source, uint64_t offset, void *dst, size_t length,
                               heft_error *err)
{
    size_t done = 0;
    heft_status status = HEFT_OK;
    while (done < length && status == HEFT_OK) {
        const size_t left = length - done;
        const int64_t got =
            source->reader.read_at(source->reader.user, offset + done, (uint8_t *)dst + done, left);
        if (got > 0 && (uint64_t)got <= left) {
            done += (size_t)got;
        } else if (got == 0) {
            status = heft__fail(err, HEFT_IO, "the reader ended early, its size is %llu bytes",
                                (unsigned long long)source->size);
        } else if (got > 0) {
            status = heft__fail(err, HEFT_IO, "the reader returned %lld bytes, %zu were requested",
                                (long long)got, left);
        } else {
            const int code = got < -INT_MAX ? EIO : (int)-got;
            (void)heft__fail_errno(err, code, "the reader failed");
            status = HEFT_IO; /* whatever it was: the checkpoint is there */
        }
    }
    if (status != HEFT_OK && err) {
        err->status = status;
        err->offset = offset + done;
    }
    return heft__add_path(status, err, source->path);
}

heft_status heft__input_read(heft__input *source, uint64_t offset, void *dst, size_t length,
                             heft_error *err)
{
    uint64_t end;
    if (!heft__add_u64(offset, length, &end) || end > source->size) {
        return short_read(source, source->size, err);
    }
    if (source->bytes) {
        if (length) {
            memcpy(dst, source->bytes + offset, length);
        }
        return HEFT_OK;
    }
    if (source->reader.read_at) {
        return read_reader(source, offset, dst, length, err);
    }
    int fd = -1;
    heft_status status = heft__input_take_fd(source, &fd, err);
    if (status == HEFT_OK) {
        status = read_fd(source, fd, offset, dst, length, err);
        heft__input_drop_fd(source);
    }
    return status;
}

/* Map the whole file; the lock is not held. */
static heft_status map_file(heft__input *source, int protection, int flags, void **mapped,
                            heft_error *err)
{
    size_t bytes = 0;
    int fd = -1;
    if (!heft__to_size(source->size, &bytes)) {
        return heft__fail(err, HEFT_NOMEM, "%llu bytes do not fit into the address space",
                          (unsigned long long)source->size);
    }
    heft_status status = heft__input_take_fd(source, &fd, err);
    if (status != HEFT_OK) {
        return status;
    }
    void *base = mmap(NULL, bytes, protection, flags, fd, 0);
    if (base == MAP_FAILED) {
        status = heft__fail_errno(err, errno, "cannot map the file");
    } else {
        *mapped = base;
    }
    heft__input_drop_fd(source);
    return status;
}

/* What a reader's map gives; no lock is held while it is called. */
static heft_status map_reader(heft__input *source, const uint8_t **base, heft_error *err)
{
    const heft__reader *reader = &source->reader;
    const uint8_t *bytes = reader->map ? reader->map(reader->user) : NULL;
    if (!bytes) {
        return heft__fail(err, HEFT_UNSUPPORTED, "the reader does not support mapping");
    }
    pthread_mutex_lock(&source->lock);
    source->mapped = source->mapped ? source->mapped : bytes;
    *base = source->mapped;
    pthread_mutex_unlock(&source->lock);
    return HEFT_OK;
}

heft_status heft__input_map(heft__input *source, const uint8_t **base, heft_error *err)
{
    pthread_mutex_lock(&source->lock);
    if (!source->mapped && (source->bytes || source->size == 0)) {
        source->mapped = source->bytes ? source->bytes : (const uint8_t *)"";
    }
    *base = source->mapped;
    pthread_mutex_unlock(&source->lock);
    if (*base) {
        return HEFT_OK;
    }
    if (source->reader.read_at) {
        return heft__add_path(map_reader(source, base, err), err, source->path);
    }
    void *mapped = NULL;
    heft_status status = map_file(source, PROT_READ, MAP_SHARED, &mapped, err);
    if (status == HEFT_OK) {
        pthread_mutex_lock(&source->lock);
        if (!source->mapped) {
            source->mapped = mapped;
        } else {
            munmap(mapped, (size_t)source->size); /* another thread was first */
        }
        *base = source->mapped;
        pthread_mutex_unlock(&source->lock);
    }
    return heft__add_path(status, err, source->path);
}

/* NORESERVE: a writable mapping would otherwise count as memory that must be there, and a file
 * larger than the memory could not be mapped. */
heft_status heft__input_map_private(heft__input *source, uint8_t **base, heft_error *err)
{
    static uint8_t nothing;
    assert(heft__input_has_file(source));
    pthread_mutex_lock(&source->lock);
    *base = source->size == 0 ? &nothing : source->private;
    pthread_mutex_unlock(&source->lock);
    if (*base) {
        return HEFT_OK;
    }
    void *mapped = NULL;
    heft_status status =
        map_file(source, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, &mapped, err);
    if (status == HEFT_OK) {
        pthread_mutex_lock(&source->lock);
        if (!source->private) {
            source->private = mapped;
        } else {
            munmap(mapped, (size_t)source->size); /* another thread was first */
        }
        *base = source->private;
        pthread_mutex_unlock(&source->lock);
    }
    return heft__add_path(status, err, source->path);
}

/* Read a range through a small buffer, for its effect on the page cache and for its errors. */
static heft_status touch_by_reading(heft__input *source, uint64_t offset, uint64_t length,
                                    heft_error *err)
{
    uint8_t scratch[16 << 10];
    while (length > 0) {
        size_t piece = length < sizeof scratch ? (size_t)length : sizeof scratch;
        heft_status status = heft__input_read(source, offset, scratch, piece, err);
        if (status != HEFT_OK) {
            return status;
        }
        offset += piece;
        length -= piece;
    }
    return HEFT_OK;
}

heft_status heft__input_touch(heft__input *source, uint64_t offset, uint64_t length,
                              heft_error *err)
{
    const uint8_t *base = NULL;
    heft_status status = heft__input_map(source, &base, err);
    return status == HEFT_OK ? heft__input_touch_at(source, base, offset, length, err) : status;
}

heft_status heft__input_touch_at(heft__input *source, const uint8_t *base, uint64_t offset,
                                 uint64_t length, heft_error *err)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), step = (uint64_t)16 << 20;
    heft_status status = HEFT_OK;
    uint64_t end;
    if (!heft__add_u64(offset, length, &end) || end > source->size) {
        return short_read(source, source->size, err);
    }
    if (!heft__input_has_file(source) || length == 0) {
        return HEFT_OK;
    }
    for (uint64_t at = offset / page * page; at < end; at += step) {
        uint64_t piece = end - at < step ? end - at : step;
        if (madvise((void *)(uintptr_t)(base + at), (size_t)piece, MADV_POPULATE_READ) != 0) {
            /* EINVAL: an old kernel; EFAULT: a fault that pread can put a number on. */
            status = touch_by_reading(source, at, piece, err);
            if (status != HEFT_OK) {
                return status;
            }
        }
    }
    return HEFT_OK;
}

/* The pages that a range touches. */
static void *pages_of(const void *memory, size_t length, size_t *bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t start = (uintptr_t)memory / page * page, end = (uintptr_t)memory + length;
    *bytes = end - start;
    return (void *)start;
}

bool heft__touch_memory(const void *memory, size_t length)
{
    size_t bytes;
    void *start = pages_of(memory, length, &bytes);
    return madvise(start, bytes, MADV_POPULATE_READ) == 0 || errno == EINVAL;
}

void heft__forget_memory(const void *memory, size_t length)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t start = ((uintptr_t)memory + page - 1) / page * page,
                    end = ((uintptr_t)memory + length) / page * page;
    if (end > start) { /* a page at an end may belong to other data as well */
        (void)madvise((void *)start, end - start, MADV_DONTNEED);
    }
}

/* The kernel copies within the process and reports a fault as EFAULT. Where it may not (a strict
 * seccomp filter), a plain copy is all that is left. */
heft_status heft__copy_mapped(void *dst, const void *src, size_t length, heft_error *err)
{
    for (size_t done = 0; done < length;) {
        struct iovec to = {(uint8_t *)dst + done, length - done};
        struct iovec from = {(uint8_t *)(uintptr_t)src + done, length - done};
        ssize_t got = process_vm_readv(getpid(), &to, 1, &from, 1, 0);
        if (got > 0) {
            done += (size_t)got;
        } else if (got < 0 && (errno == ENOSYS || errno == EPERM)) {
            memcpy((uint8_t *)dst + done, (const uint8_t *)src + done, length - done);
            return HEFT_OK;
        } else {
            return heft__fail_errno(err, got < 0 ? errno : EFAULT,
                                    "a mapped file has shrunk or its disk fails, %zu bytes in",
                                    done);
        }
    }
    return HEFT_OK;
}

heft_status heft__read_input(heft__arena *arena, heft__input *input, uint64_t limit, char **text,
                             size_t *length, heft_error *err)
{
    heft_status status = HEFT_OK;
    size_t bytes = 0;
    char *copy = NULL;
    if (input->size > limit) {
        status = heft__fail(err, HEFT_LIMIT, "file has %llu bytes, the limit is %llu",
                            (unsigned long long)input->size, (unsigned long long)limit);
    } else if (!heft__to_size(input->size, &bytes) ||
               !(copy = heft__arena_alloc(arena, bytes + 1))) {
        status = heft__fail_nomem(err, input->size);
    } else {
        status = heft__input_read(input, 0, copy, bytes, err);
    }
    if (status == HEFT_OK) {
        copy[bytes] = '\0';
        *text = copy;
        *length = bytes;
    }
    return heft__add_path(status, err, heft__input_path(input));
}

heft_status heft__read_file(heft__arena *arena, const char *path, uint64_t limit, char **text,
                            size_t *length, heft_error *err)
{
    heft__input *input = NULL;
    heft_status status = heft__input_open(arena->ctx, path, &input, err);
    if (status == HEFT_OK) {
        status = heft__read_input(arena, input, limit, text, length, err);
    }
    heft__input_unref(input);
    return heft__add_path(status, err, path);
}

heft_status heft__read_beside(heft__arena *arena, const char *folder, const char *name,
                              uint64_t limit, char **text, size_t *length, heft_error *err)
{
    const char *path = heft__path_join(arena, folder, name);
    *text = NULL;
    if (!path) {
        return heft__fail_nomem(err, strlen(name));
    }
    return heft__path_is_file(path) ? heft__read_file(arena, path, limit, text, length, err)
                                    : HEFT_OK;
}
