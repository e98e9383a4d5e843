/* cold.c - files that are not in the page cache, or far away: how much of one is there, whether its
 * file system is a network's, and reading past the cache into aligned memory.
 *
 * A direct read takes whole blocks: place in the file and place in memory must both be aligned. So
 * memory is given the same phase as the file. Where there is room around it whole blocks are read
 * over both ends; else the middle is read directly, and the ends, which share their block with
 * something else, as ever.
 * Source: open(2) O_DIRECT, cachestat(2), mincore(2), statfs(2). */
#include "io/input.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* the same on all of the kernel's newer tables */
#endif

/* ---- residency ------------------------------------------------------------------------------- */
struct cache_range {
    uint64_t offset, length;
};
struct cache_facts {
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
};

#define WINDOWS 32                       /* of the file that are looked at */
#define WINDOW_BYTES ((uint64_t)1 << 20) /* walking all of a big file's pages takes too long */

/* Pages of a window in the cache; false where the kernel (before 6.5) cannot say. */
static bool ask_kernel(int fd, uint64_t offset, uint64_t length, uint64_t *pages)
{
    struct cache_range range = {offset, length};
    struct cache_facts facts = {0};
    if (syscall(SYS_cachestat, fd, &range, &facts, 0) != 0) {
        return false;
    }
    *pages += facts.cached;
    return true;
}

/* The same of a mapping. */
static bool ask_mapping(const uint8_t *base, uint64_t offset, uint64_t length, uint64_t page,
                        uint64_t *pages)
{
    unsigned char in_core[WINDOW_BYTES / 4096];
    const uint64_t count = (length + page - 1) / page;
    if (!base || count > sizeof in_core ||
        mincore((void *)(uintptr_t)(base + offset), (size_t)length, in_core) != 0) {
        return false;
    }
    for (uint64_t k = 0; k < count; k++) {
        *pages += in_core[k] & 1;
    }
    return true;
}

double heft__input_residency(heft__input *source, uint64_t offset, uint64_t length)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), begin = offset / page * page;
    const uint8_t *base = NULL;
    uint64_t there = 0, seen = 0, end = 0;
    int fd = -1;
    if (!heft__input_has_file(source) || length == 0 || !heft__add_u64(offset, length, &end) ||
        end > source->size || heft__input_take_fd(source, &fd, NULL) != HEFT_OK) {
        return 1;
    }
    const uint64_t share = (end - begin) / WINDOWS / WINDOW_BYTES * WINDOW_BYTES,
                   step = share > WINDOW_BYTES ? share : WINDOW_BYTES;
    for (uint64_t at = begin; at < end && seen < WINDOWS * (WINDOW_BYTES / page); at += step) {
        const uint64_t window = end - at < WINDOW_BYTES ? end - at : WINDOW_BYTES;
        if (base || !ask_kernel(fd, at, window, &there)) {
            bool mapped = base || heft__input_map(source, &base, NULL) == HEFT_OK;
            if (!mapped || !ask_mapping(base, at, window, page, &there)) {
                break;
            }
        }
        seen += (window + page - 1) / page;
    }
    heft__input_drop_fd(source);
    return seen ? (double)there / (double)seen : 1;
}

/* ---- file systems ---------------------------------------------------------------------------- */
const char *heft__input_network(heft__input *source)
{
    static const struct {
        uint32_t magic;
        const char *name;
    } kinds[] = {
        {0x00006969, "NFS"       },
        {0xff534d42, "CIFS"      },
        {0xfe534d42, "SMB"       },
        {0x0000517b, "SMB"       },
        {0x65735546, "FUSE"      },
        {0x01021997, "9p"        },
        {0x00c36400, "Ceph"      },
        {0x5346414f, "AFS"       },
        {0x6b414653, "AFS"       },
        {0x0bd00bd0, "Lustre"    },
        {0x47504653, "GPFS"      },
        {0x19830326, "BeeGFS"    },
        {0x20030528, "OrangeFS"  },
        {0x73757245, "Coda"      },
        {0x786f4256, "VirtualBox"},
    };
    struct statfs facts;
    int fd = -1;
    const char *name = NULL;
    if (!heft__input_has_file(source) || heft__input_take_fd(source, &fd, NULL) != HEFT_OK) {
        return NULL;
    }
    if (fstatfs(fd, &facts) == 0) {
        for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
            name = (uint32_t)facts.f_type == kinds[i].magic ? kinds[i].name : name;
        }
    }
    heft__input_drop_fd(source);
    return name;
}

/* ---- direct reads ---------------------------------------------------------------------------- */
/* The descriptor for direct reads, or -1. Kept until the source is gone: another thread may be reading
 * from it when the file system refuses. */
static int direct_fd(heft__input *source)
{
    struct stat facts;
    pthread_mutex_lock(&source->lock);
    if (source->direct_fd < 0 && !source->no_direct && !source->parked) {
        int fd = open(source->path, O_RDONLY | O_CLOEXEC | O_DIRECT | O_NOCTTY | O_NONBLOCK);
        bool same = fd >= 0 && fstat(fd, &facts) == 0 && (uint64_t)facts.st_dev == source->device &&
                    (uint64_t)facts.st_ino == source->inode;
        if (fd >= 0 && !same) {
            close(fd);
            fd = -1;
        }
        source->direct_fd = fd;
        source->no_direct = fd < 0;
    }
    int fd = source->no_direct ? -1 : source->direct_fd;
    pthread_mutex_unlock(&source->lock);
    return fd;
}

/* Some file systems open a file for direct reads, and refuse each of them. */
static void note_refusal(heft__input *source)
{
    pthread_mutex_lock(&source->lock);
    source->no_direct = true;
    pthread_mutex_unlock(&source->lock);
}

/* Read as much as possible directly; the rest, including an error, is left to an ordinary read, which
 * has the words for it. */
static size_t read_blocks(heft__input *source, uint64_t offset, uint8_t *dst, size_t length)
{
    int fd = direct_fd(source);
    size_t done = 0;
    while (fd >= 0 && done < length) {
        ssize_t got = pread(fd, dst + done, length - done, (off_t)(offset + done));
        if (got > 0) {
            done += (size_t)got;
            if ((size_t)got % HEFT__DIRECT_BLOCK) {
                break; /* the end of the file */
            }
        } else if (got == 0 || errno != EINTR) {
            if (got < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) {
                note_refusal(source);
            }
            break;
        }
    }
    return done;
}

heft_status heft__input_read_direct(heft__input *source, uint64_t offset, void *dst, size_t length,
                                    bool spill, heft_error *err)
{
    const uint64_t block = HEFT__DIRECT_BLOCK, before = offset % block;
    const uint64_t head = spill ? 0 : (block - before) % block;
    uint8_t *to = dst;
    uint64_t end;
    bool phased = (uintptr_t)to % block == before;
    if (!heft__input_has_file(source) || !phased || length < head + block ||
        !heft__add_u64(offset, length, &end) || end > source->size) {
        return heft__input_read(source, offset, dst, length, err);
    }
    if (spill) { /* whole blocks, over both ends; what is short at the end of the file is enough */
        size_t wanted = (size_t)((before + length + block - 1) / block * block);
        size_t got = read_blocks(source, offset - before, to - before, wanted);
        size_t done = got > before ? got - (size_t)before : 0;
        return done >= length
                   ? HEFT_OK
                   : heft__input_read(source, offset + done, to + done, length - done, err);
    }
    heft_status status = heft__input_read(source, offset, to, (size_t)head, err);
    if (status == HEFT_OK) {
        size_t middle = (size_t)((length - head) / block * block);
        size_t done = (size_t)head + read_blocks(source, offset + head, to + head, middle);
        status = heft__input_read(source, offset + done, to + done, length - done, err);
    }
    return status;
}
