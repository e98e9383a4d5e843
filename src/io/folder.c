/* folder.c - writing a folder, or one file, that becomes visible complete or not at all.
 *
 * Everything is written into a work folder first (work.c), each file synced. The commit then makes it what
 * the destination is: one rename where there was nothing, one exchange of folders where there was something,
 * and a journal where folders cannot be exchanged (commit.c). One process at a time writes to a destination
 * (lock.c). Not done here: deciding what is stale.
 * Source: docs/transactions.md. */
#include "io/transaction.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define COMPARED_BYTES 4096
#define COMPARED_DEPTH (HEFT__SUBTREE_DEPTH + 1)
#define STEM_BYTES 180 /* of a name in the names of its work folder and lock */

/* ---- begin ------------------------------------------------------------------------------------- */
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
                return heft__add_path(heft__fail_io(err, errno, "cannot create the folder"), err,
                                      copy);
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

/* Split a path without slashes at its end. */
static heft_status split(heft__folder_writer *writer, const char *path, const char **parent,
                         heft_error *err)
{
    const char *slash = strrchr(path, '/');
    *parent = !slash          ? "."
              : slash == path ? "/"
                              : heft__arena_text(&writer->arena, path, (size_t)(slash - path));
    writer->name = heft__arena_text(&writer->arena, slash ? slash + 1 : path,
                                    strlen(slash ? slash + 1 : path));
    return *parent && writer->name ? HEFT_OK : heft__fail_nomem(err, strlen(path));
}

/* A name of at most STEM_BYTES bytes that stands for `name`. */
static const char *make_stem(heft__arena *arena, const char *name)
{
    const size_t length = strlen(name);
    return length <= STEM_BYTES
               ? name
               : heft__arena_format(arena, "%.*s~%016llx", STEM_BYTES - 20, name,
                                    (unsigned long long)heft__stable_hash(name, length));
}

/* Where the destination is: its parent folder and its name there, through links. */
static heft_status locate(heft__folder_writer *writer, heft_error *err)
{
    struct stat facts;
    const char *parent = NULL;
    const bool there = stat(writer->path, &facts) == 0;
    heft_status status = HEFT_OK;
    if (there && !S_ISDIR(facts.st_mode)) {
        return heft__fail(err, HEFT_EXISTS, "destination is a file, expected a folder");
    }
    if (!there && (errno != ENOENT || heft__path_exists(writer->path))) {
        return errno == ENOENT
                   ? heft__fail(err, HEFT_EXISTS, "destination is a dangling symbolic link")
                   : heft__fail_io(err, errno, "cannot access the destination");
    }
    if (there) {
        char *real = realpath(writer->path, NULL);
        const char *kept = real ? heft__arena_text(&writer->arena, real, strlen(real)) : NULL;
        status = !real  ? heft__fail_io(err, errno, "cannot resolve the destination")
                 : kept ? split(writer, kept, &parent, err)
                        : heft__fail_nomem(err, 0);
        free(real);
    } else {
        status = split(writer, writer->path, &parent, err);
        if (status == HEFT_OK) {
            status = make_parents(&writer->arena, parent, &writer->made_parent, err);
        }
    }
    if (status != HEFT_OK) {
        return status;
    }
    writer->stem = make_stem(&writer->arena, writer->name);
    writer->parent =
        *writer->name ? heft__open_at(AT_FDCWD, parent, O_RDONLY | O_DIRECTORY, 0) : -1;
    if (writer->parent < 0 && !there) {
        return heft__fail_io(err, errno, "cannot open the parent folder");
    }
    return writer->stem ? HEFT_OK : heft__fail_nomem(err, 0);
}

/* Open the destination if there is one: again under the lock, as another process may have exchanged it. */
static heft_status open_folder(heft__folder_writer *writer, heft_error *err)
{
    heft__dir_close(&writer->folder);
    writer->folder = writer->parent >= 0
                         ? heft__dir_open(writer->parent, writer->name)
                         : heft__open_at(AT_FDCWD, writer->path, O_RDONLY | O_DIRECTORY, 0);
    if (writer->folder < 0) {
        return errno == ENOENT ? HEFT_OK
               : errno == ENOTDIR
                   ? heft__fail(err, HEFT_EXISTS, "destination is a file, expected a folder")
                   : heft__fail_io(err, errno, "cannot open the destination");
    }
    return fstat(writer->folder, &writer->was) == 0
               ? HEFT_OK
               : heft__fail_io(err, errno, "cannot access the destination");
}

static bool can_write(int dir)
{
    return dir >= 0 && faccessat(dir, ".", W_OK | X_OK, AT_EACCESS) == 0;
}

/* The folder in which the lock and the work folder are: the parent where that can be, so that folders can
 * be exchanged. */
static heft_status take_lock(heft__folder_writer *writer, heft_error *err)
{
    heft_status status = open_folder(writer, err);
    if (status != HEFT_OK) {
        return status;
    }
    struct stat parent;
    const bool beside =
        can_write(writer->parent) && (writer->folder < 0 || (fstat(writer->parent, &parent) == 0 &&
                                                             parent.st_dev == writer->was.st_dev));
    const char *name =
        writer->folder >= 0 && !beside
            ? heft__arena_format(&writer->arena, "%slock", HEFT__TEMPORARY)
            : heft__arena_format(&writer->arena, ".%s%slock", writer->stem, HEFT__TEMPORARY);
    if (!name) {
        return heft__fail_nomem(err, 0);
    }
    writer->home = writer->folder >= 0 && !beside ? writer->folder : writer->parent;
    status =
        heft__lock_take(writer->ctx, &writer->lock, writer->home, name, writer->options.wait, err);
    if (status != HEFT_OK || !beside) {
        return status;
    }
    status = open_folder(writer, err);
    if (status == HEFT_OK && writer->folder >= 0 &&
        heft__lock_try(writer->folder, LOCK_EX) == 0) { /* by another path, or in the folder */
        status = heft__fail(err, HEFT_EXISTS, "is being written by another process");
    }
    return status;
}

/* One file: its folder is made, and is the home. */
static heft_status begin_single(heft__folder_writer *writer, heft_error *err)
{
    heft_status status = make_parents(&writer->arena, writer->path, &writer->made_parent, err);
    if (status != HEFT_OK) {
        return status;
    }
    writer->name = writer->options.single;
    writer->stem = make_stem(&writer->arena, writer->name);
    writer->folder = heft__open_at(AT_FDCWD, writer->path, O_RDONLY | O_DIRECTORY, 0);
    if (writer->folder < 0 || fstat(writer->folder, &writer->was) != 0) {
        return heft__fail_io(err, errno, "cannot open the folder");
    }
    writer->home = writer->folder;
    const char *name = writer->stem ? heft__arena_format(&writer->arena, "%s%s-lock",
                                                         HEFT__TEMPORARY, writer->stem)
                                    : NULL;
    return name ? heft__lock_take(writer->ctx, &writer->lock, writer->home, name,
                                  writer->options.wait, err)
                : heft__fail_nomem(err, 0);
}

/* Open the nearest folder above the destination that is there: the parent, where nothing is made. */
static heft_status open_above(heft__folder_writer *writer, heft_error *err)
{
    char *path = heft__arena_text(&writer->arena, writer->path, strlen(writer->path));
    while (path && writer->parent < 0) {
        char *slash = strrchr(path, '/');
        const char *above = !slash ? "." : slash == path ? "/" : path;
        *(slash ? slash : path) = '\0';
        writer->parent = heft__open_at(AT_FDCWD, above, O_RDONLY | O_DIRECTORY, 0);
        if (writer->parent < 0 && (errno != ENOENT || above != path)) {
            return heft__fail_io(err, errno, "cannot open the parent folder");
        }
    }
    return path ? HEFT_OK : heft__fail_nomem(err, strlen(writer->path));
}

/* Open what is there, and the folder in which a writer would work; make nothing, and take no lock. */
static heft_status begin_looking(heft__folder_writer *writer, heft_error *err)
{
    struct stat facts;
    heft_status status = HEFT_OK;
    if (lstat(writer->path, &facts) != 0 && errno == ENOENT) {
        status = open_above(writer, err);
    } else {
        status = writer->options.single ? HEFT_OK : locate(writer, err);
        status = status == HEFT_OK ? open_folder(writer, err) : status;
    }
    writer->home = can_write(writer->parent) ? writer->parent : writer->folder;
    return status == HEFT_OK && !can_write(writer->home)
               ? heft__fail_io(err, errno, "cannot write to the destination")
               : status;
}

struct widest {
    int dir;
    mode_t mode;
};

static bool note_mode(void *user, const char *name)
{
    struct widest *job = user;
    struct stat facts;
    if (!heft__is_temporary(name) && fstatat(job->dir, name, &facts, AT_SYMLINK_NOFOLLOW) == 0 &&
        S_ISREG(facts.st_mode)) {
        job->mode |= facts.st_mode & 0777;
    }
    return true;
}

static heft_status begin(heft__folder_writer *writer, heft_error *err)
{
    heft_status status;
    if (writer->options.look) {
        return begin_looking(writer, err);
    }
    if (writer->options.single) {
        status = begin_single(writer, err);
    } else {
        status = locate(writer, err);
        if (status == HEFT_OK) {
            status = take_lock(writer, err);
        }
    }
    if (status == HEFT_OK && writer->folder >= 0) {
        status = heft__journal_recover(writer->ctx, writer->folder, err);
    }
    if (status == HEFT_OK && writer->folder >= 0) {
        struct widest widest = {.dir = writer->folder};
        if (!heft__dir_each(writer->folder, note_mode, &widest)) {
            status = heft__fail_io(err, errno, "cannot list the destination");
        }
        writer->files_were = writer->options.single ? 0 : widest.mode;
    }
    if (status == HEFT_OK) {
        status = heft__work_clean(writer, err);
    }
    return status == HEFT_OK ? heft__work_make(writer, err) : status;
}

heft_status heft__folder_begin(heft_ctx *ctx, const char *path, const heft__folder_options *options,
                               heft__folder_writer **out, heft_error *err)
{
    heft__folder_writer *writer = heft__alloc_zero(ctx, 1, sizeof *writer);
    if (!writer) {
        return heft__fail_nomem(err, sizeof *writer);
    }
    writer->ctx = heft__ctx_ref(ctx);
    if (options) {
        writer->options = *options;
    }
    writer->fd = writer->parent = writer->folder = writer->home = -1;
    writer->work = writer->staged = writer->record_fd = -1;
    writer->lock = HEFT__LOCK_NONE;
    heft__arena_init(&writer->arena, ctx);
    heft__map_init(&writer->earlier.finished, ctx);
    heft__map_init(&writer->earlier.dropped, ctx);
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') {
        length--;
    }
    writer->path = heft__arena_text(&writer->arena, path, length);
    heft_status status = !writer->path ? heft__fail_nomem(err, length)
                         : !*path ? heft__fail(err, HEFT_INVALID_ARG, "destination has no name")
                                  : begin(writer, err);
    if (status != HEFT_OK) {
        heft__add_path(status, err, path);
        heft__folder_free(writer);
        return status;
    }
    *out = writer;
    return HEFT_OK;
}

void heft__folder_tidy(heft_ctx *ctx, const char *path)
{
    heft__folder_writer *writer = NULL;
    heft_error ignored;
    if (heft__folder_begin(ctx, path, NULL, &writer, &ignored) == HEFT_OK) {
        heft__folder_free(writer);
    }
}

heft_status heft__folder_need(heft__folder_writer *writer, uint64_t bytes, heft_error *err)
{
    struct statvfs facts;
    if (writer->options.look && writer->options.resume) {
        return HEFT_OK; /* what is kept is not known without the lock */
    }
    bytes -= bytes < writer->kept_bytes ? bytes : writer->kept_bytes;
    if (fstatvfs(writer->options.look ? writer->home : writer->work, &facts) == 0) {
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

/* ---- files ------------------------------------------------------------------------------------- */
static heft_status add_entry(heft__folder_writer *writer, heft__out_entry **list, size_t *count,
                             size_t *cap, const char *name, bool entry_point, heft_error *err)
{
    char *copy = heft__arena_text(&writer->arena, name, strlen(name));
    if (!copy || !heft__array_reserve(writer->ctx, (void **)list, *count, cap, sizeof **list)) {
        return heft__fail_nomem(err, strlen(name));
    }
    (*list)[(*count)++] = (heft__out_entry){.name = copy, .entry_point = entry_point};
    return HEFT_OK;
}

static heft_status add_file(heft__folder_writer *writer, const char *name, bool entry_point,
                            heft_error *err)
{
    return add_entry(writer, &writer->files, &writer->file_count, &writer->file_cap, name,
                     entry_point, err);
}

heft_status heft__writer_add(heft__folder_writer *writer, const char *name, heft_error *err)
{
    return add_file(writer, name, false, err);
}

/* An open file is called "part" until its end, outside of the new folder: what is there is finished. */
heft_status heft__part_begin(heft__folder_writer *writer, const char *label, heft_error *err)
{
    writer->fd = heft__open_at(writer->work, "part", O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0666);
    if (writer->fd < 0) {
        return heft__add_path(heft__fail_errno(err, errno, "cannot create '%s'", label), err,
                              writer->path);
    }
    writer->position = 0;
    writer->open_name = label;
    return HEFT_OK;
}

heft_status heft__folder_file_begin(heft__folder_writer *writer, const char *name, bool entry_point,
                                    heft_error *err)
{
    heft_status status = heft__part_begin(writer, name, err);
    if (status == HEFT_OK) {
        status = add_file(writer, name, entry_point, err);
    }
    if (status == HEFT_OK) {
        writer->open_name = writer->files[writer->file_count - 1].name;
    }
    return status;
}

heft_status heft__folder_file_keep(heft__folder_writer *writer, const char *name, bool entry_point,
                                   uint64_t bytes, bool *kept, heft_error *err)
{
    struct stat facts;
    const size_t at = heft__map_get(&writer->earlier.finished, name, strlen(name));
    *kept = writer->options.resume && at != HEFT__MAP_NONE &&
            writer->earlier.files[at].bytes == bytes &&
            fstatat(writer->staged, name, &facts, AT_SYMLINK_NOFOLLOW) == 0 &&
            heft__record_matches(&writer->earlier.files[at], &facts);
    return *kept ? add_file(writer, name, entry_point, err) : HEFT_OK;
}

heft_status heft__folder_write_at(heft__folder_writer *writer, uint64_t offset, const void *bytes,
                                  size_t length, heft_error *err)
{
    size_t done = 0;
    if (heft__write_all(writer->fd, bytes, length, offset, &done)) {
        return HEFT_OK;
    }
    heft_status status = heft__fail_errno(err, errno, "cannot write '%s'", writer->open_name);
    if (err) {
        err->offset = offset + done;
    }
    return heft__add_path(status, err, writer->path);
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

/* Give a finished file an owner and a mode: never wider than the caller allows, than the file that it
 * replaces, and than the files of the destination were. */
static bool set_mode(heft__folder_writer *writer, int folder, const char *name)
{
    struct stat made, old;
    if (fstat(writer->fd, &made) != 0) {
        return false;
    }
    mode_t mode = made.st_mode & 0777;
    const bool replaces = folder >= 0 && fstatat(folder, name, &old, AT_SYMLINK_NOFOLLOW) == 0 &&
                          S_ISREG(old.st_mode);
    const struct stat *like = replaces ? &old : writer->folder >= 0 ? &writer->was : &made;
    mode &= writer->options.file_mode ? writer->options.file_mode | 0600 : 0777;
    mode &= replaces             ? (old.st_mode & 0777) | 0600
            : writer->files_were ? writer->files_were | 0600
                                 : 0777;
    if (writer->folder >= 0 && !writer->options.single && like->st_uid != made.st_uid) {
        (void)!fchown(writer->fd, like->st_uid, (gid_t)-1); /* by the superuser */
    }
    if (replaces && like->st_gid != made.st_gid &&
        fchown(writer->fd, (uid_t)-1, like->st_gid) != 0) {
        mode &= ~(mode_t)070; /* another group's than it was */
    }
    return mode == (made.st_mode & 0777) || fchmod(writer->fd, mode) == 0;
}

/* A line in the record, so that a later run can take the file over. */
static heft_status note_finished(heft__folder_writer *writer, const char *name,
                                 const struct stat *facts, heft_error *err)
{
    heft__buffer line;
    if (writer->record_fd < 0) {
        return HEFT_OK;
    }
    heft__buffer_init(&line, writer->ctx);
    heft__record_file(&line, name, facts);
    heft_status status = heft__buffer_check(&line, err);
    if (status == HEFT_OK && write(writer->record_fd, line.data, line.size) != (ssize_t)line.size) {
        status = heft__fail_io(err, errno, "cannot write the record of the work");
    }
    heft__buffer_fini(&line);
    return status;
}

heft_status heft__part_end(heft__folder_writer *writer, int to, int old, const char *name,
                           struct stat *facts, heft_error *err)
{
    heft_status status = HEFT_OK;
    struct stat own;
    if (!set_mode(writer, old, name) || !heft__sync(writer->fd) ||
        fstat(writer->fd, facts ? facts : &own) != 0 ||
        renameat(writer->work, "part", to, name) != 0) {
        status = heft__fail_errno(err, errno, "cannot flush '%s' to disk", writer->open_name);
    }
    close(writer->fd);
    writer->fd = -1;
    return heft__add_path(status, err, writer->path);
}

heft_status heft__folder_file_end(heft__folder_writer *writer, heft_error *err)
{
    const char *name = writer->files[writer->file_count - 1].name;
    struct stat facts;
    heft_status status = heft__part_end(writer, writer->staged, writer->folder, name, &facts, err);
    if (status == HEFT_OK) {
        status = note_finished(writer, name, &facts, err);
    }
    return heft__add_path(status, err, writer->path);
}

heft_status heft__folder_remove(heft__folder_writer *writer, const char *name, bool entry_point,
                                heft_error *err)
{
    return add_entry(writer, &writer->removed, &writer->removed_count, &writer->removed_cap, name,
                     entry_point, err);
}

heft_status heft__folder_names(heft__arena *arena, const char *path, const char *const **names,
                               size_t *count, heft_error *err)
{
    int folder = heft__open_at(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
    heft_status status = folder >= 0 ? heft__dir_list(arena, folder, names, count, err)
                                     : heft__fail_io(err, errno, "cannot list the folder");
    heft__dir_close(&folder);
    return heft__add_path(status, err, path);
}

heft_status heft__folder_list(heft__folder_writer *writer, const char *const **names, size_t *count,
                              heft_error *err)
{
    const char *const *all = NULL;
    size_t listed = 0, used = 0;
    *names = NULL;
    *count = 0;
    if (writer->folder < 0) {
        return HEFT_OK;
    }
    heft_status status = heft__dir_list(&writer->arena, writer->folder, &all, &listed, err);
    const char **kept =
        status == HEFT_OK ? heft__arena_array(&writer->arena, listed, sizeof *kept) : NULL;
    if (status != HEFT_OK || !kept) {
        return heft__add_path(status == HEFT_OK ? heft__fail_nomem(err, listed) : status, err,
                              writer->path);
    }
    for (size_t i = 0; i < listed; i++) {
        if (!heft__is_temporary(all[i])) {
            kept[used++] = all[i];
        }
    }
    *names = kept;
    *count = used;
    return HEFT_OK;
}

bool heft__folder_has_folder(const heft__folder_writer *writer, const char *name)
{
    struct stat facts;
    return writer->folder >= 0 && fstatat(writer->folder, name, &facts, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISDIR(facts.st_mode);
}

bool heft__folder_holds(const heft__folder_writer *writer, const char *name, uint64_t device,
                        uint64_t inode)
{
    struct stat facts;
    return writer->folder >= 0 && fstatat(writer->folder, name, &facts, 0) == 0 &&
           (uint64_t)facts.st_dev == device && (uint64_t)facts.st_ino == inode;
}

bool heft__folder_has_earlier(const heft__folder_writer *writer)
{
    return writer->options.resume && writer->kept_bytes > 0;
}

/* ---- comparing --------------------------------------------------------------------------------- */
static size_t read_piece(int fd, char *bytes, size_t length, off_t at)
{
    size_t done = 0;
    for (ssize_t got = 1; done < length && got != 0;) {
        got = pread(fd, bytes + done, length - done, at + (off_t)done);
        if (got > 0) {
            done += (size_t)got;
        } else if (got < 0 && errno != EINTR) {
            return SIZE_MAX;
        }
    }
    return done;
}

static bool same_bytes(int a, int b)
{
    char ours[COMPARED_BYTES], theirs[COMPARED_BYTES];
    off_t at = 0;
    for (size_t got = COMPARED_BYTES; got == COMPARED_BYTES; at += COMPARED_BYTES) {
        got = read_piece(a, ours, sizeof ours, at);
        if (got == SIZE_MAX || read_piece(b, theirs, sizeof theirs, at) != got ||
            memcmp(ours, theirs, got) != 0) {
            return false;
        }
    }
    return true;
}

struct comparing {
    int ours, theirs;
    unsigned depth;
};

static bool same_entry(void *user, const char *name)
{
    const struct comparing *job = user;
    struct stat ours, theirs;
    const int how = O_RDONLY | O_NONBLOCK;
    int a = heft__open_at(job->ours, name, how, 0), b = heft__open_at(job->theirs, name, how, 0);
    bool same = a >= 0 && b >= 0 && fstat(a, &ours) == 0 && fstat(b, &theirs) == 0 &&
                (ours.st_mode & S_IFMT) == (theirs.st_mode & S_IFMT);
    if (same && S_ISDIR(ours.st_mode)) {
        struct comparing inner = {.ours = a, .theirs = b, .depth = job->depth + 1};
        same = inner.depth < COMPARED_DEPTH && heft__dir_each(a, same_entry, &inner);
    } else {
        same = same && S_ISREG(ours.st_mode) && ours.st_size == theirs.st_size && same_bytes(a, b);
    }
    heft__dir_close(&a);
    heft__dir_close(&b);
    return same;
}

bool heft__folder_has_copy(const heft__folder_writer *writer, const char *folder, const char *name)
{
    struct comparing job = {.ours = writer->folder,
                            .theirs = heft__open_at(AT_FDCWD, folder, O_RDONLY | O_DIRECTORY, 0)};
    const bool same = job.ours >= 0 && job.theirs >= 0 && same_entry(&job, name);
    heft__dir_close(&job.theirs);
    return same;
}

static bool has_entry(const heft__folder_writer *writer, int above,
                      const heft__subtree_entry *entry)
{
    struct stat ours, theirs;
    const int how = O_RDONLY | O_NONBLOCK;
    int a = heft__open_at(writer->folder, entry->path, how, 0),
        b = heft__open_at(above, entry->path, how, 0);
    const bool same = a >= 0 && b >= 0 && fstat(a, &ours) == 0 && fstat(b, &theirs) == 0 &&
                      (entry->is_folder ? S_ISDIR(ours.st_mode)
                                        : S_ISREG(ours.st_mode) && S_ISREG(theirs.st_mode) &&
                                              ours.st_size == theirs.st_size && same_bytes(a, b));
    heft__dir_close(&a);
    heft__dir_close(&b);
    return same;
}

bool heft__folder_has_subtree(heft__folder_writer *writer, const heft__subtree *tree)
{
    const char *extra = NULL;
    int above = heft__open_at(AT_FDCWD, tree->above, O_RDONLY | O_DIRECTORY, 0);
    bool same = above >= 0 && writer->folder >= 0 &&
                heft__folder_subtree_extra(writer, tree, false, false, &extra, NULL) == HEFT_OK &&
                !extra;
    for (size_t i = 0; i < tree->count && same; i++) {
        same = has_entry(writer, above, &tree->entries[i]);
    }
    heft__dir_close(&above);
    return same;
}

bool heft__folder_has_path(const heft__folder_writer *writer, const char *path)
{
    struct stat facts;
    char *real = realpath(path, NULL);
    char *slash = real ? strrchr(real, '/') : NULL;
    bool inside = false;
    if (slash) {
        slash[slash == real] = '\0'; /* the folder; "/" stays */
        inside = stat(real, &facts) == 0 && writer->folder >= 0 &&
                 facts.st_dev == writer->was.st_dev && facts.st_ino == writer->was.st_ino;
    }
    free(real);
    return inside;
}

/* ---- end --------------------------------------------------------------------------------------- */
/* The names of the parents that begin() made: without them, nothing below them is found. */
static heft_status sync_parents(heft__folder_writer *writer, heft_error *err)
{
    char *path = heft__arena_text(&writer->arena, writer->path, strlen(writer->path));
    char *slash = path && !writer->options.single ? strrchr(path, '/') : NULL;
    if (!path) {
        return heft__fail_nomem(err, strlen(writer->path));
    }
    if (slash) {
        *slash = '\0';
    }
    while (*path && strlen(path) >= strlen(writer->made_parent)) {
        slash = strrchr(path, '/');
        const char *above = !slash ? "." : slash == path ? "/" : path;
        *(slash ? slash : path) = '\0';
        int folder = heft__open_at(AT_FDCWD, above, O_RDONLY | O_DIRECTORY, 0);
        const bool synced = folder >= 0 && heft__sync(folder);
        heft__dir_close(&folder);
        if (!synced) {
            return heft__fail_io(err, errno, "cannot flush the parent folder to disk");
        }
    }
    return HEFT_OK;
}

heft_status heft__folder_commit(heft__folder_writer *writer, heft_error *err)
{
    const bool is_new = writer->folder < 0;
    heft_status status = writer->made_parent ? sync_parents(writer, err) : HEFT_OK;
    if (status == HEFT_OK) {
        status = is_new ? heft__commit_new(writer, err) : heft__commit_replace(writer, err);
    }
    writer->committed = status == HEFT_OK;
    return heft__add_path(status, err, writer->path);
}

/* Remove the parents that begin() made, as far as they are empty. */
static void remove_parents(heft__folder_writer *writer)
{
    char *path = heft__arena_text(&writer->arena, writer->path, strlen(writer->path));
    char *slash = path && !writer->options.single ? strrchr(path, '/') : NULL;
    if (slash) {
        *slash = '\0';
    }
    while (path && strlen(path) >= strlen(writer->made_parent) &&
           (rmdir(path) == 0 || errno == ENOENT)) {
        slash = strrchr(path, '/');
        if (!slash) {
            break;
        }
        *slash = '\0';
    }
}

void heft__folder_free(heft__folder_writer *writer)
{
    if (!writer) {
        return;
    }
    if (writer->fd >= 0) {
        close(writer->fd);
    }
    if (writer->record_fd >= 0) {
        close(writer->record_fd);
    }
    const bool resumable = writer->options.resume && !writer->committed &&
                           (writer->file_count > 0 || writer->kept_bytes > 0);
    if (!writer->stuck && !resumable) {
        heft__work_remove(writer);
    }
    heft__dir_close(&writer->staged);
    heft__dir_close(&writer->work);
    heft__lock_release(&writer->lock);
    heft__dir_close(&writer->folder);
    heft__dir_close(&writer->parent);
    if (writer->made_parent && !writer->committed) {
        remove_parents(writer);
    }
    heft__free(writer->ctx, writer->files, writer->file_cap * sizeof *writer->files);
    heft__free(writer->ctx, writer->removed, writer->removed_cap * sizeof *writer->removed);
    heft__record_fini(&writer->arena, &writer->earlier);
    heft_ctx *ctx = writer->ctx;
    heft__arena_fini(&writer->arena);
    heft__free(ctx, writer, sizeof *writer);
    heft_ctx_free(ctx);
}

/* A device, a pipe: there is nothing to replace. */
static heft_status write_through(const char *path, const void *bytes, size_t length,
                                 heft_error *err)
{
    const int fd = heft__open_at(AT_FDCWD, path, O_WRONLY | O_NOCTTY, 0);
    bool good = fd >= 0;
    for (size_t done = 0; good && done < length;) {
        const ssize_t put = write(fd, (const uint8_t *)bytes + done, length - done);
        good = put > 0 || (put < 0 && errno == EINTR);
        done += put > 0 ? (size_t)put : 0;
    }
    const int reason = errno;
    if (fd >= 0) {
        good = close(fd) == 0 && good;
    }
    return good ? HEFT_OK : heft__fail_io(err, reason, "cannot write");
}

static heft_status replace_file(heft_ctx *ctx, const char *path, const void *bytes, size_t length,
                                heft_error *err)
{
    heft__arena arena;
    heft__folder_writer *writer = NULL;
    heft__arena_init(&arena, ctx);
    const char *base = heft__path_base(path);
    const size_t above = (size_t)(base - path);
    const char *folder = above == 0 ? "." : heft__arena_text(&arena, path, above);
    const heft__folder_options options = {.single = base, .wait = true};
    heft_status status = !*base    ? heft__fail(err, HEFT_INVALID_ARG, "the path names no file")
                         : !folder ? heft__fail_nomem(err, above)
                         : !heft__path_is_folder(folder)
                             ? heft__fail_io(err, ENOENT, "cannot open the folder")
                             : heft__folder_begin(ctx, folder, &options, &writer, err);
    if (status == HEFT_OK) {
        status = heft__folder_file_begin(writer, base, true, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_write(writer, bytes, length, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_file_end(writer, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_commit(writer, err);
    }
    heft__folder_free(writer);
    heft__arena_fini(&arena);
    return status;
}

heft_status heft__write_file(heft_ctx *ctx, const char *path, const void *bytes, size_t length,
                             heft_error *err)
{
    struct stat facts;
    char *real = NULL; /* a link to a file stays one */
    heft_status status = HEFT_OK;
    const bool there = stat(path, &facts) == 0;
    if (there && S_ISDIR(facts.st_mode)) {
        status = heft__fail(err, HEFT_EXISTS, "is a folder, expected a file");
    } else if (there && !S_ISREG(facts.st_mode)) {
        status = write_through(path, bytes, length, err);
    } else {
        real = there ? realpath(path, NULL) : NULL;
        status = replace_file(ctx, real ? real : path, bytes, length, err);
        if (status != HEFT_OK && err) {
            err->path[0] = '\0'; /* the folder's */
        }
    }
    free(real);
    return heft__add_path(status, err, path);
}
