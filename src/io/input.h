/* input.h - a source's inside, for input.c and cold.c. */
#ifndef HEFT__IO_SOURCE_H
#define HEFT__IO_SOURCE_H

#include "io/io.h"

#include <pthread.h>
#include <stdatomic.h>

struct heft__input {
    atomic_size_t refs;
    heft_ctx *ctx;
    char *path;
    size_t path_bytes;
    int fd; /* -1: no file, or parked */
    uint64_t size;
    uint64_t device, inode;      /* of the file, to know it again */
    const uint8_t *bytes;        /* of a source in memory, else NULL */
    heft__reader reader;         /* of a caller's source, else zeros */
    void (*release)(void *user); /* the caller's; may be NULL */
    void *release_user;
    pthread_mutex_t lock;  /* guards the descriptors, users, parked, no_direct and the
                               making of the mapping */
    size_t users;          /* reads under way */
    bool parked;           /* no descriptor is held between reads */
    const uint8_t *mapped; /* NULL until asked for */
    uint8_t *private;      /* the same, copy-on-write */
    int direct_fd;         /* past the page cache; -1: not opened */
    bool no_direct;        /* the file system does not do it */
};

static inline bool heft__input_has_file(const heft__input *source)
{
    return !source->bytes && !source->reader.read_at;
}

/* The descriptor for a read, opened again if the source is parked. Every take is followed by a
 * drop. */
heft_status heft__input_take_fd(heft__input *source, int *fd, heft_error *err);
void heft__input_drop_fd(heft__input *source);

#endif
