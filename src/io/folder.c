/* folder.c - writing a folder that becomes visible complete or not at all.
 *
 *   new folder      PARENT/.NAME.heft-tmp-XXXXXX/ is filled, then renamed to PARENT/NAME
 *   existing one    NAME/.heft-tmp-XXXXXX/ is filled; commit swaps each file with its predecessor,
 * entry points last, and takes every swap back if one of them fails
 *
 * Where an existing file that is no entry point is replaced, the old entry point (the index) goes
 * first: after a power failure between two renames there is the old checkpoint, the new one, or one
 * that no loader accepts, but never a mixture. A temporary folder is locked by its writer; one that is not
 * locked and a minute old was left by a crash and is removed. Not done here: deciding what is
 * stale. */
#include "io/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TEMPORARY ".heft-tmp-"
#ifndef RENAME_EXCHANGE /* of <stdio.h>, in glibc */
#define RENAME_NOREPLACE 1u
#define RENAME_EXCHANGE 2u
#endif

struct out_file {
    const char *name;
    bool entry_point;
    enum { WRITTEN, RENAMED, SWAPPED } state;
};

struct heft__folder_writer {
    heft_ctx *ctx;
    heft__arena arena;
    const char *path; /* without slashes at its end */
    const char *parent;
    const char *temporary;
    const char *made_parent; /* highest parent folder that begin() made, NULL if none */
    int temporary_fd;        /* open and locked */
    mode_t mode;             /* of the finished folder */
    const char *resume; /* keeps finished files under this key if the work does not end; NULL: no */
    bool in_place, committed;
    struct out_file *files;
    size_t file_count, file_cap;
    const char **removed;
    size_t removed_count, removed_cap;
    size_t removed_done;
    const char **listed;
    size_t listed_count;
    int fd; /* the open file, -1 if none */
    uint64_t position;
};

/* ---- temporary folders ----------------------------------------------------------------------- */
/* Remove a folder of plain files. */
static void remove_flat(const char *path)
{
    DIR *folder = opendir(path);
    if (!folder) {
        return;
    }
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            (void)unlinkat(dirfd(folder), entry->d_name, 0);
        }
    }
    closedir(folder);
    (void)rmdir(path);
}

static bool left_by_a_crash(const char *path)
{
    struct stat facts;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    bool old = fstat(fd, &facts) == 0 && facts.st_mtime + 60 < time(NULL);
    bool mine = old && flock(fd, LOCK_EX | LOCK_NB) == 0;
    close(fd);
    return mine;
}

/* Remove abandoned temporary folders in `folder` whose names begin with `prefix`. */
static void remove_abandoned(heft__arena *arena, const char *folder, const char *prefix)
{
    DIR *listing = opendir(folder);
    for (struct dirent *entry = listing ? readdir(listing) : NULL; entry;
         entry = readdir(listing)) {
        if (strncmp(entry->d_name, prefix, strlen(prefix)) == 0) {
            const char *path = heft__path_join(arena, folder, entry->d_name);
            if (path && left_by_a_crash(path)) {
                remove_flat(path);
            }
        }
    }
    if (listing) {
        closedir(listing);
    }
}

/* ---- begin ----------------------------------------------------------------------------------- */
/* A place that cannot be written to is IO, also where the kernel says that something is not there. */
static heft_status cannot_write(heft_error *err, int sys_errno, const char *what, const char *path)
{
    (void)heft__fail_errno(err, sys_errno, "%s", what);
    if (err) {
        err->status = HEFT_IO;
    }
    return heft__add_path(HEFT_IO, err, path);
}

/* Make `path` and what is missing above it; *made is the highest folder that was made. */
static heft_status make_parents(heft__arena *arena, const char *path, const char **made,
                                heft_error *err)
{
    char *copy = heft__arena_text(arena, path, strlen(path));
    if (!copy) {
        return heft__fail_nomem(err, strlen(path));
    }
    for (char *p = copy;; p++) {
        bool last = *p == '\0';
        if (p > copy && (last || *p == '/')) {
            *p = '\0';
            if (mkdir(copy, 0777) == 0) {
                if (!*made) {
                    *made = heft__arena_text(arena, copy, strlen(copy));
                }
            } else if (errno != EEXIST) {
                return cannot_write(err, errno, "cannot create the folder", copy);
            }
            if (!last) {
                *p = '/';
            }
        }
        if (last) {
            return HEFT_OK;
        }
    }
}

static heft_status split_path(heft__folder_writer *writer, const char *path, heft_error *err)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') {
        length--;
    }
    char *clean = heft__arena_text(&writer->arena, path, length);
    const char *slash = clean ? strrchr(clean, '/') : NULL;
    writer->path = clean;
    writer->parent = !slash ? "."
                     : slash == clean
                         ? "/"
                         : heft__arena_text(&writer->arena, clean, (size_t)(slash - clean));
    return writer->path && writer->parent ? HEFT_OK : heft__fail_nomem(err, length);
}

/* The temporary folder: with a name of its own, or with that of the key, where an earlier run may
 * have left files. */
static bool make_folder(heft__folder_writer *writer, char *path)
{
    if (!writer->resume) {
        return mkdtemp(path) != NULL;
    }
    return mkdir(path, 0700) == 0 || (errno == EEXIST && heft__path_is_folder(path));
}

/* The mode that a new folder gets in this place, by the process's umask, default access lists and
 * group inheritance: that of an empty one, which is removed again. umask() would have to be set to be
 * read, for all threads of the process. */
static heft_status find_mode(heft__folder_writer *writer, heft_error *err)
{
    static const char probe[] = ".mode";
    struct stat facts;
    const int folder = writer->temporary_fd;
    (void)unlinkat(folder, probe, AT_REMOVEDIR); /* of a run that did not end */
    if (mkdirat(folder, probe, 0777) != 0 ||
        fstatat(folder, probe, &facts, AT_SYMLINK_NOFOLLOW) != 0) {
        return cannot_write(err, errno, "cannot create a folder", writer->temporary);
    }
    (void)unlinkat(folder, probe, AT_REMOVEDIR);
    writer->mode = facts.st_mode & 07777;
    return HEFT_OK;
}

static heft_status make_temporary(heft__folder_writer *writer, heft_error *err)
{
    const char *home = writer->in_place ? writer->path : writer->parent;
    const char *base = writer->in_place ? "" : heft__path_base(writer->path);
    char *prefix = heft__arena_format(&writer->arena, "%s%s%s", *base ? "." : "", base, TEMPORARY);
    char *name = prefix ? heft__arena_format(&writer->arena, "%s%s", prefix,
                                             writer->resume ? writer->resume : "XXXXXX")
                        : NULL;
    char *path = name ? heft__path_join(&writer->arena, home, name) : NULL;
    if (!path) {
        return heft__fail_nomem(err, 0);
    }
    if (!writer->resume) {
        remove_abandoned(&writer->arena, home, prefix);
    }
    if (!make_folder(writer, path)) {
        return cannot_write(err, errno, "cannot write into the folder", home);
    }
    writer->temporary = path;
    writer->temporary_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (writer->temporary_fd < 0 || flock(writer->temporary_fd, LOCK_EX | LOCK_NB) != 0) {
        return heft__add_path(heft__fail_errno(err, errno, "cannot lock the folder"), err, path);
    }
    return writer->in_place ? HEFT_OK : find_mode(writer, err);
}

heft_status heft__folder_begin(heft_ctx *ctx, const char *path, const char *resume,
                               heft__folder_writer **out, heft_error *err)
{
    heft__folder_writer *writer = heft__alloc_zero(ctx, 1, sizeof *writer);
    if (!writer) {
        return heft__fail_nomem(err, sizeof *writer);
    }
    writer->ctx = heft__ctx_ref(ctx);
    writer->fd = writer->temporary_fd = -1;
    heft__arena_init(&writer->arena, ctx);
    heft_status status = split_path(writer, path, err);
    writer->resume = resume ? heft__arena_text(&writer->arena, resume, strlen(resume)) : NULL;
    if (status == HEFT_OK && resume && !writer->resume) {
        status = heft__fail_nomem(err, strlen(resume));
    }
    if (status == HEFT_OK && !*path) {
        status = heft__fail(err, HEFT_INVALID_ARG, "destination has no name");
    }
    if (status == HEFT_OK && heft__path_exists(writer->path)) {
        writer->in_place = true;
        if (!heft__path_is_folder(writer->path)) {
            status = heft__fail(err, HEFT_EXISTS, "destination is a file, expected a folder");
        }
    } else if (status == HEFT_OK) {
        status = make_parents(&writer->arena, writer->parent, &writer->made_parent, err);
    }
    if (status == HEFT_OK) {
        status = make_temporary(writer, err);
    }
    if (status != HEFT_OK) {
        heft__add_path(status, err, path);
        heft__folder_free(writer);
        return status;
    }
    *out = writer;
    return HEFT_OK;
}

heft_status heft__folder_need(heft__folder_writer *writer, uint64_t bytes, heft_error *err)
{
    struct statvfs facts;
    if (statvfs(writer->temporary, &facts) == 0) {
        uint64_t room = (uint64_t)facts.f_bavail * facts.f_frsize;
        if (room < bytes) {
            heft_status status =
                heft__fail(err, HEFT_IO, "no space left: %llu bytes are free, %llu are needed",
                           (unsigned long long)room, (unsigned long long)bytes);
            if (err) {
                err->sys_errno = ENOSPC;
            }
            return heft__add_path(status, err, writer->path);
        }
    }
    return HEFT_OK;
}

/* ---- files ----------------------------------------------------------------------------------- */
static heft_status add_file(heft__folder_writer *writer, const char *name, bool entry_point,
                            heft_error *err)
{
    char *copy = heft__arena_text(&writer->arena, name, strlen(name));
    if (!copy || !heft__array_reserve(writer->ctx, (void **)&writer->files, writer->file_count,
                                      &writer->file_cap, sizeof *writer->files)) {
        return heft__fail_nomem(err, strlen(name));
    }
    writer->files[writer->file_count++] =
        (struct out_file){.name = copy, .entry_point = entry_point};
    return HEFT_OK;
}

/* The name of a file until it is complete, so that finished files can be distinguished from parts. */
static const char *part_name(heft__folder_writer *writer, const char *name)
{
    return heft__arena_format(&writer->arena, "%s.part", name);
}

heft_status heft__folder_file_begin(heft__folder_writer *writer, const char *name, bool entry_point,
                                    heft_error *err)
{
    const char *part = part_name(writer, name);
    if (!part) {
        return heft__fail_nomem(err, strlen(name));
    }
    if (writer->resume) { /* of the earlier run */
        (void)unlinkat(writer->temporary_fd, part, 0);
        (void)unlinkat(writer->temporary_fd, name, 0);
    }
    writer->fd = openat(writer->temporary_fd, part, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (writer->fd < 0) {
        return heft__add_path(heft__fail_errno(err, errno, "cannot create '%s'", name), err,
                              writer->path);
    }
    writer->position = 0;
    return add_file(writer, name, entry_point, err);
}

heft_status heft__folder_file_keep(heft__folder_writer *writer, const char *name, bool entry_point,
                                   uint64_t bytes, bool *kept, heft_error *err)
{
    struct stat facts;
    *kept = writer->resume && fstatat(writer->temporary_fd, name, &facts, 0) == 0 &&
            S_ISREG(facts.st_mode) && (uint64_t)facts.st_size == bytes;
    return *kept ? add_file(writer, name, entry_point, err) : HEFT_OK;
}

heft_status heft__folder_write_at(heft__folder_writer *writer, uint64_t offset, const void *bytes,
                                  size_t length, heft_error *err)
{
    size_t done = 0;
    while (done < length) {
        ssize_t put = pwrite(writer->fd, (const uint8_t *)bytes + done, length - done,
                             (off_t)(offset + done));
        if (put >= 0) {
            done += (size_t)put;
        } else if (errno != EINTR) {
            const char *name = writer->files[writer->file_count - 1].name;
            heft_status status = heft__fail_errno(err, errno, "cannot write '%s'", name);
            if (err) {
                err->offset = offset + done;
            }
            return heft__add_path(status, err, writer->path);
        }
    }
    return HEFT_OK;
}

heft_status heft__folder_write(heft__folder_writer *writer, const void *bytes, size_t length,
                               heft_error *err)
{
    heft_status status = heft__folder_write_at(writer, writer->position, bytes, length, err);
    if (status == HEFT_OK) {
        writer->position += length;
    }
    return status;
}

heft_status heft__folder_file_end(heft__folder_writer *writer, heft_error *err)
{
    heft_status status = HEFT_OK;
    const char *name = writer->files[writer->file_count - 1].name, *part = part_name(writer, name);
    if (!part) {
        status = heft__fail_nomem(err, strlen(name));
    } else if (fsync(writer->fd) != 0 ||
               renameat(writer->temporary_fd, part, writer->temporary_fd, name) != 0) {
        status = heft__fail_errno(err, errno, "cannot flush '%s' to disk", name);
    }
    close(writer->fd);
    writer->fd = -1;
    return heft__add_path(status, err, writer->path);
}

heft_status heft__folder_remove(heft__folder_writer *writer, const char *name, heft_error *err)
{
    char *copy = heft__arena_text(&writer->arena, name, strlen(name));
    if (!copy || !heft__array_reserve(writer->ctx, (void **)&writer->removed, writer->removed_count,
                                      &writer->removed_cap, sizeof *writer->removed)) {
        return heft__fail_nomem(err, strlen(name));
    }
    writer->removed[writer->removed_count++] = copy;
    return HEFT_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

heft_status heft__folder_list(heft__folder_writer *writer, const char *const **names, size_t *count,
                              heft_error *err)
{
    const char **list = NULL;
    size_t used = 0, cap = 0;
    heft_status status = HEFT_OK;
    DIR *folder = writer->in_place ? opendir(writer->path) : NULL;
    for (struct dirent *entry = folder ? readdir(folder) : NULL; entry && status == HEFT_OK;
         entry = readdir(folder)) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            strncmp(entry->d_name, TEMPORARY, strlen(TEMPORARY)) == 0) {
            continue;
        }
        const char *name = heft__arena_text(&writer->arena, entry->d_name, strlen(entry->d_name));
        if (!name || !heft__array_reserve(writer->ctx, (void **)&list, used, &cap, sizeof *list)) {
            status = heft__fail_nomem(err, 0);
        } else {
            list[used++] = name;
        }
    }
    if (folder) {
        closedir(folder);
    }
    const char **kept =
        status == HEFT_OK ? heft__arena_array(&writer->arena, used, sizeof *kept) : NULL;
    if (status == HEFT_OK && !kept) {
        status = heft__fail_nomem(err, used);
    } else if (kept && used) {
        memcpy(kept, list, used * sizeof *kept);
        qsort(kept, used, sizeof *kept, compare_names);
    }
    heft__free(writer->ctx, list, cap * sizeof *list);
    if (status == HEFT_OK) {
        *names = writer->listed = kept;
        *count = writer->listed_count = used;
    }
    return status;
}

/* ---- commit ---------------------------------------------------------------------------------- */
static bool sync_folder(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool done = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return done;
}

static heft_status publish_new(heft__folder_writer *writer, heft_error *err)
{
    (void)fchmod(writer->temporary_fd, writer->mode);
    if (fsync(writer->temporary_fd) != 0 || rename(writer->temporary, writer->path) != 0) {
        heft_status status =
            errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR
                ? heft__fail(err, HEFT_EXISTS, "destination was created by another process")
                : heft__fail_errno(err, errno, "cannot rename the finished folder");
        return heft__add_path(status, err, writer->path);
    }
    sync_folder(writer->parent);
    return HEFT_OK;
}

/* renameat2(2), which musl does not have before 1.2.6. */
static bool rename_with(int from, const char *old_name, int to, const char *new_name, unsigned how)
{
    return syscall(SYS_renameat2, from, old_name, to, new_name, how) == 0;
}

/* Put one finished file in its place; its predecessor, if any, takes its place in the temporary
 * folder. */
static bool publish_file(heft__folder_writer *writer, int folder, struct out_file *file)
{
    if (rename_with(writer->temporary_fd, file->name, folder, file->name, RENAME_EXCHANGE)) {
        file->state = SWAPPED;
        return true;
    }
    /* No predecessor, or a file system that cannot swap: there a failure later cannot be taken
     * back. */
    if (renameat(writer->temporary_fd, file->name, folder, file->name) == 0) {
        file->state = RENAMED;
        return true;
    }
    return false;
}

static void take_back(heft__folder_writer *writer, int folder)
{
    for (size_t i = writer->removed_done; i-- > 0;) {
        (void)renameat(writer->temporary_fd, writer->removed[i], folder, writer->removed[i]);
    }
    for (size_t i = writer->file_count; i-- > 0;) {
        struct out_file *file = &writer->files[i];
        if (file->state == SWAPPED) {
            (void)rename_with(writer->temporary_fd, file->name, folder, file->name,
                              RENAME_EXCHANGE);
        } else if (file->state == RENAMED) {
            (void)renameat(folder, file->name, writer->temporary_fd, file->name);
        }
    }
}

static bool replaces_a_shard(const heft__folder_writer *writer, int folder)
{
    for (size_t i = 0; i < writer->file_count; i++) {
        if (!writer->files[i].entry_point &&
            faccessat(folder, writer->files[i].name, F_OK, 0) == 0) {
            return true;
        }
    }
    return false;
}

/* The old entry points leave first where their shards are about to be replaced; they wait in the
 * temporary folder under a name of their own. */
static bool hide_entry_points(heft__folder_writer *writer, int folder)
{
    if (!replaces_a_shard(writer, folder)) {
        return true;
    }
    for (size_t i = 0; i < writer->file_count; i++) {
        const char *name = writer->files[i].name;
        if (writer->files[i].entry_point && faccessat(folder, name, F_OK, 0) == 0) {
            char *aside = heft__arena_format(&writer->arena, "%s.old", name);
            if (!aside || renameat(folder, name, writer->temporary_fd, aside) != 0) {
                return false;
            }
        }
    }
    return fsync(folder) == 0;
}

static void restore_entry_points(heft__folder_writer *writer, int folder)
{
    for (size_t i = 0; i < writer->file_count; i++) {
        char *aside = heft__arena_format(&writer->arena, "%s.old", writer->files[i].name);
        if (aside) {
            (void)rename_with(writer->temporary_fd, aside, folder, writer->files[i].name,
                              RENAME_NOREPLACE);
        }
    }
}

static bool swap_all(heft__folder_writer *writer, int folder)
{
    for (int entry_points = 0; entry_points < 2; entry_points++) {
        for (size_t i = 0; i < writer->file_count; i++) {
            struct out_file *file = &writer->files[i];
            if (file->entry_point == (bool)entry_points && !publish_file(writer, folder, file)) {
                return false;
            }
        }
        if (fsync(folder) != 0) {
            return false;
        }
    }
    for (; writer->removed_done < writer->removed_count; writer->removed_done++) {
        const char *name = writer->removed[writer->removed_done];
        if (renameat(folder, name, writer->temporary_fd, name) != 0 && errno != ENOENT) {
            return false;
        }
    }
    return fsync(folder) == 0;
}

static heft_status publish_in_place(heft__folder_writer *writer, heft_error *err)
{
    int folder = open(writer->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) {
        return heft__add_path(heft__fail_errno(err, errno, "cannot open the folder"), err,
                              writer->path);
    }
    heft_status status = HEFT_OK;
    if (!hide_entry_points(writer, folder) || !swap_all(writer, folder)) {
        status = heft__fail_errno(err, errno, "cannot move the finished files into place");
        take_back(writer, folder);
        restore_entry_points(writer, folder);
    }
    close(folder);
    return heft__add_path(status, err, writer->path);
}

heft_status heft__folder_commit(heft__folder_writer *writer, heft_error *err)
{
    heft_status status =
        writer->in_place ? publish_in_place(writer, err) : publish_new(writer, err);
    writer->committed = status == HEFT_OK;
    return status;
}

void heft__folder_free(heft__folder_writer *writer)
{
    if (!writer) {
        return;
    }
    if (writer->fd >= 0) {
        close(writer->fd);
    }
    bool kept = writer->resume && !writer->committed;
    if (writer->temporary && !kept && (writer->in_place || !writer->committed)) {
        remove_flat(writer->temporary);
    }
    if (writer->temporary_fd >= 0) {
        close(writer->temporary_fd);
    }
    if (writer->made_parent && !writer->committed) {
        /* only what begin() made, and only while it is empty */
        char *path = heft__arena_text(&writer->arena, writer->parent, strlen(writer->parent));
        while (path && strlen(path) >= strlen(writer->made_parent) && rmdir(path) == 0) {
            char *slash = strrchr(path, '/');
            if (!slash) {
                break;
            }
            *slash = '\0';
        }
    }
    heft__free(writer->ctx, writer->files, writer->file_cap * sizeof *writer->files);
    heft__free(writer->ctx, writer->removed, writer->removed_cap * sizeof *writer->removed);
    heft_ctx *ctx = writer->ctx;
    heft__arena_fini(&writer->arena);
    heft__free(ctx, writer, sizeof *writer);
    heft_ctx_free(ctx);
}
