/* subtree.c - folders below a folder: listed, and written into a folder that is being made.
 *
 * Only what is plainly part of the tree is in the list: folders and regular files by visible names. A link
 * to a file is that file, as the hub's cache has them; a link to a folder is not followed, so that no tree
 * is endless or leads elsewhere. Pipes, devices and sockets are never opened.
 * What the destination has in a folder of the same name, and the tree does not, is kept or refused: nothing
 * is lost with a folder that is replaced.
 * Source: docs/transactions.md. */
#include "io/transaction.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- the folders that a path is in -------------------------------------------------------------- */
#define LINEAGE_MAX 256

/* The lowest folder of a path that exists, or -1. */
static int open_lowest(heft__arena *arena, const char *path, bool *no_memory)
{
    char *at = heft__arena_text(arena, path, strlen(path));
    *no_memory = !at;
    while (at) {
        int dir = heft__open_at(AT_FDCWD, *at ? at : ".", O_PATH | O_DIRECTORY, 0);
        char *slash = strrchr(at, '/');
        if (dir >= 0 || !*at || slash == at) {
            return dir >= 0 || !slash ? dir : heft__open_at(AT_FDCWD, "/", O_PATH | O_DIRECTORY, 0);
        }
        *(slash ? slash : at) = '\0';
    }
    return -1;
}

heft_status heft__lineage_of(heft__arena *arena, const char *path, heft__lineage *out,
                             heft_error *err)
{
    bool no_memory = false;
    struct stat facts;
    int at = open_lowest(arena, path, &no_memory);
    *out = (heft__lineage){.list = heft__arena_array(arena, LINEAGE_MAX, sizeof *out->list)};
    while (at >= 0 && out->list && out->count < LINEAGE_MAX && fstat(at, &facts) == 0) {
        const heft__identity own = heft__identity_of(&facts);
        const heft__identity *last = out->count ? &out->list[out->count - 1] : NULL;
        if (last && last->device == own.device && last->inode == own.inode) {
            break; /* the root is above itself */
        }
        out->list[out->count++] = own;
        const int up = heft__open_at(at, "..", O_PATH | O_DIRECTORY, 0);
        heft__dir_close(&at);
        at = up;
    }
    heft__dir_close(&at);
    return no_memory || !out->list ? heft__fail_nomem(err, LINEAGE_MAX * sizeof *out->list)
                                   : HEFT_OK;
}

static bool is_in_lineage(const heft__lineage *lineage, const struct stat *facts)
{
    for (size_t i = 0; i < lineage->count; i++) {
        if (lineage->list[i].device == (uint64_t)facts->st_dev &&
            lineage->list[i].inode == (uint64_t)facts->st_ino) {
            return true;
        }
    }
    return false;
}

/* ---- listing ------------------------------------------------------------------------------------ */
struct listing {
    heft__arena *arena;
    const heft__subtree_rules *rules;
    heft__subtree_entry *entries; /* of the context's memory */
    size_t count, cap;
    uint64_t bytes;
};

static heft_status add(struct listing *job, const char *path, const struct stat *facts,
                       heft_error *err)
{
    const bool is_folder = S_ISDIR(facts->st_mode);
    if (!heft__array_reserve(job->arena->ctx, (void **)&job->entries, job->count, &job->cap,
                             sizeof *job->entries)) {
        return heft__fail_nomem(err, sizeof *job->entries);
    }
    job->entries[job->count++] =
        (heft__subtree_entry){.path = path,
                              .is_folder = is_folder,
                              .mode = facts->st_mode & 0777,
                              .bytes = is_folder ? 0 : (uint64_t)facts->st_size};
    job->bytes += is_folder ? 0 : (uint64_t)facts->st_size;
    return HEFT_OK;
}

static heft_status leave(const struct listing *job, const char *path, bool is_folder,
                         heft_error *err)
{
    const heft__subtree_rules *rules = job->rules;
    return rules->left ? rules->left(rules->user, path, is_folder, err) : HEFT_OK;
}

static heft_status list_folder(struct listing *job, int above, const char *name, const char *path,
                               unsigned depth, heft_error *err);

static heft_status list_entry(struct listing *job, int dir, const char *name, const char *path,
                              unsigned depth, heft_error *err)
{
    struct stat facts;
    if (fstatat(dir, name, &facts, AT_SYMLINK_NOFOLLOW) != 0) {
        return errno == ENOENT ? HEFT_OK /* removed meanwhile */
                               : heft__fail_io(err, errno, "cannot look at '%s'", path);
    }
    if (S_ISDIR(facts.st_mode)) {
        return depth >= HEFT__SUBTREE_DEPTH || is_in_lineage(&job->rules->around, &facts)
                   ? leave(job, path, true, err)
                   : list_folder(job, dir, name, path, depth, err);
    }
    if (S_ISLNK(facts.st_mode) && fstatat(dir, name, &facts, 0) != 0) {
        return leave(job, path, false, err); /* a link to nothing */
    }
    return S_ISREG(facts.st_mode) ? add(job, path, &facts, err)
                                  : leave(job, path, S_ISDIR(facts.st_mode), err);
}

static heft_status list_folder(struct listing *job, int above, const char *name, const char *path,
                               unsigned depth, heft_error *err)
{
    const heft__subtree_rules *rules = job->rules;
    const char *const *names = NULL;
    size_t count = 0;
    struct stat facts;
    int dir = heft__dir_open(above, name);
    heft_status status = dir >= 0 && fstat(dir, &facts) == 0
                             ? heft__dir_list(job->arena, dir, &names, &count, err)
                             : heft__fail_io(err, errno, "cannot list the folder '%s'", path);
    if (status == HEFT_OK && rules->wanted && !rules->wanted(rules->user, path, names, count)) {
        status = leave(job, path, true, err);
        count = 0;
    } else if (status == HEFT_OK) {
        status = add(job, path, &facts, err);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        if (heft__subtree_is_passed_over(names[i])) {
            continue;
        }
        const char *inner = heft__arena_format(job->arena, "%s/%s", path, names[i]);
        status = inner ? list_entry(job, dir, names[i], inner, depth + 1, err)
                       : heft__fail_nomem(err, strlen(path));
    }
    heft__dir_close(&dir);
    return status;
}

bool heft__subtree_is_passed_over(const char *name)
{
    static const char *const places[] = {"__pycache__", "lost+found", "@eaDir"};
    bool is = name[0] == '.' || strstr(name, HEFT__TEMPORARY);
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        is = is || strcmp(name, places[i]) == 0;
    }
    return is;
}

heft_status heft__subtree_list(heft__arena *arena, const char *above, const char *name,
                               const heft__subtree_rules *rules, heft__subtree *out,
                               heft_error *err)
{
    struct listing job = {.arena = arena, .rules = rules};
    int dir = heft__open_at(AT_FDCWD, above, O_RDONLY | O_DIRECTORY, 0);
    heft_status status = dir >= 0 ? list_entry(&job, dir, name, name, 0, err)
                                  : heft__fail_io(err, errno, "cannot list the folder");
    heft__dir_close(&dir);
    heft__subtree_entry *kept =
        status == HEFT_OK ? heft__arena_array(arena, job.count, sizeof *kept) : NULL;
    if (kept) {
        if (job.count) {
            memcpy(kept, job.entries, job.count * sizeof *kept);
        }
        *out = (heft__subtree){
            .above = above, .name = name, .entries = kept, .count = job.count, .bytes = job.bytes};
    } else if (status == HEFT_OK) {
        status = heft__fail_nomem(err, job.count * sizeof *kept);
    }
    heft__free(arena->ctx, job.entries, job.cap * sizeof *job.entries);
    return heft__add_path(status, err, above);
}

/* ---- writing ------------------------------------------------------------------------------------ */
struct putting {
    heft__folder_writer *writer;
    const heft__subtree *tree;
    const heft__subtree_copy *copy;
    /* the folders that are open, from the top: what is written, and what the destination has there */
    int made[HEFT__SUBTREE_DEPTH + 1], old[HEFT__SUBTREE_DEPTH + 1];
    unsigned depth;
};

static int above_made(const struct putting *job)
{
    return job->depth ? job->made[job->depth - 1] : job->writer->staged;
}

static int above_old(const struct putting *job)
{
    return job->depth ? job->old[job->depth - 1] : job->writer->folder;
}

/* Finish the folders below `depth`: what is in them is on the disk. */
static heft_status close_below(struct putting *job, unsigned depth, heft_error *err)
{
    heft_status status = HEFT_OK;
    while (job->depth > depth) {
        job->depth--;
        if (status == HEFT_OK && !heft__sync(job->made[job->depth])) {
            status =
                heft__fail_io(err, errno, "cannot flush a folder of '%s' to disk", job->tree->name);
        }
        heft__dir_close(&job->made[job->depth]);
        heft__dir_close(&job->old[job->depth]);
    }
    return status;
}

/* As files: the owner of the destination's, and never a wider mode than the source's or the replaced one's. */
static bool set_mode(const struct putting *job, int made, int old, mode_t mode)
{
    const heft__folder_writer *writer = job->writer;
    struct stat facts, was;
    if (fstat(made, &facts) != 0) {
        return false;
    }
    mode = facts.st_mode & 07777 & (mode | 07700);
    if (old >= 0 && fstat(old, &was) == 0) {
        mode &= was.st_mode | 07700;
    }
    if (writer->folder >= 0 && writer->was.st_uid != facts.st_uid) {
        (void)!fchown(made, writer->was.st_uid, (gid_t)-1); /* by the superuser */
    }
    return mode == (facts.st_mode & 07777) || fchmod(made, mode) == 0;
}

static heft_status make_folder(struct putting *job, const heft__subtree_entry *entry,
                               heft_error *err)
{
    const char *name = heft__path_base(entry->path);
    int made =
        mkdirat(above_made(job), name, 0777) == 0 ? heft__dir_open(above_made(job), name) : -1;
    int old = above_old(job) >= 0 ? heft__dir_open(above_old(job), name) : -1;
    if (made < 0 || !set_mode(job, made, old, entry->mode)) {
        heft_status status = heft__fail_io(err, errno, "cannot create '%s'", entry->path);
        heft__dir_close(&made);
        heft__dir_close(&old);
        return status;
    }
    job->made[job->depth] = made;
    job->old[job->depth++] = old;
    return HEFT_OK;
}

static heft_status copy_file(struct putting *job, const heft__subtree_entry *entry, heft_error *err)
{
    const heft__subtree_copy *copy = job->copy;
    char *path = heft__path_join(&job->writer->arena, job->tree->above, entry->path);
    heft_status status = path ? heft__part_begin(job->writer, entry->path, err)
                              : heft__fail_nomem(err, strlen(entry->path));
    if (status == HEFT_OK) {
        status = copy->copy(copy->user, path, err);
    }
    return status == HEFT_OK ? heft__part_end(job->writer, above_made(job), above_old(job),
                                              heft__path_base(entry->path), NULL, err)
                             : status;
}

static unsigned depth_of(const char *path)
{
    unsigned depth = 0;
    for (; *path; path++) {
        depth += *path == '/';
    }
    return depth;
}

heft_status heft__folder_subtree(heft__folder_writer *writer, const heft__subtree *tree,
                                 const heft__subtree_copy *copy, heft_error *err)
{
    struct putting job = {.writer = writer, .tree = tree, .copy = copy};
    heft_status status = heft__writer_add(writer, tree->name, err);
    for (size_t i = 0; i < tree->count && status == HEFT_OK; i++) {
        status = close_below(&job, depth_of(tree->entries[i].path), err);
        if (status == HEFT_OK) {
            status = tree->entries[i].is_folder ? make_folder(&job, &tree->entries[i], err)
                                                : copy_file(&job, &tree->entries[i], err);
        }
    }
    const heft_status closed = close_below(&job, 0, status == HEFT_OK ? err : NULL);
    return heft__add_path(status == HEFT_OK ? closed : status, err, writer->path);
}

/* ---- what the destination has there -------------------------------------------------------------- */
struct comparing {
    heft__folder_writer *writer;
    const heft__map *paths; /* of the tree: number of the entry */
    const heft__subtree *tree;
    bool keep, link; /* what only the destination has; link: into what is written */
    const char *extra;
    size_t links;
    heft_status status;
    heft_error *err;
};

struct comparing_folder {
    struct comparing *job;
    int old, made; /* made: -1 unless linking */
    const char *path;
    bool changed;
};

static bool stop(struct comparing *job, heft_status status)
{
    job->status = status;
    return false;
}

/* One that only the destination has. What is hidden is nobody's part of a checkpoint. */
static bool take_extra(struct comparing_folder *at, const char *name, const char *path)
{
    struct comparing *job = at->job;
    if (!job->keep && !heft__subtree_is_passed_over(name)) {
        job->extra = path;
        return false;
    }
    errno = EMLINK; /* of too many */
    if (job->link && !heft__dir_link(at->old, at->made, name, &job->links)) {
        return stop(job, heft__fail_io(job->err, errno, "cannot keep '%s'", path));
    }
    at->changed = at->changed || job->link;
    return true;
}

static bool compare_entry(void *user, const char *name);

static bool compare_folder(struct comparing *job, int old, int made, const char *name,
                           const char *path)
{
    struct comparing_folder inner = {.job = job,
                                     .old = heft__dir_open(old, name),
                                     .made = job->link ? heft__dir_open(made, name) : -1,
                                     .path = path};
    bool good = inner.old >= 0 && (inner.made >= 0 || !job->link) &&
                heft__dir_each(inner.old, compare_entry, &inner);
    if (good && inner.changed) {
        good = heft__sync(inner.made);
    }
    if (!good && job->status == HEFT_OK && !job->extra) {
        stop(job, heft__fail_io(job->err, errno, "cannot compare '%s'", path));
    }
    heft__dir_close(&inner.old);
    heft__dir_close(&inner.made);
    return good;
}

static bool compare_entry(void *user, const char *name)
{
    struct comparing_folder *at = user;
    struct comparing *job = at->job;
    struct stat facts;
    const char *path = heft__arena_format(&job->writer->arena, "%s/%s", at->path, name);
    if (!path) {
        return stop(job, heft__fail_nomem(job->err, strlen(at->path)));
    }
    const size_t number = heft__map_get(job->paths, path, strlen(path));
    if (fstatat(at->old, name, &facts, AT_SYMLINK_NOFOLLOW) != 0) {
        return errno == ENOENT;
    }
    if (number == HEFT__MAP_NONE) {
        return take_extra(at, name, path);
    }
    if (!S_ISDIR(facts.st_mode)) {
        return true; /* replaced */
    }
    if (!job->tree->entries[number].is_folder) { /* what it holds has no place beside a file */
        job->extra = path;
        return false;
    }
    return compare_folder(job, at->old, at->made, name, path);
}

heft_status heft__folder_subtree_extra(heft__folder_writer *writer, const heft__subtree *tree,
                                       bool keep, bool link, const char **extra, heft_error *err)
{
    struct stat facts;
    heft__map paths;
    size_t found;
    struct comparing job = {
        .writer = writer, .paths = &paths, .tree = tree, .keep = keep, .link = link, .err = err};
    *extra = NULL;
    if (writer->folder < 0 ||
        fstatat(writer->folder, tree->name, &facts, AT_SYMLINK_NOFOLLOW) != 0 ||
        !S_ISDIR(facts.st_mode)) {
        return HEFT_OK;
    }
    if (facts.st_dev != writer->was.st_dev) {
        return heft__add_path(heft__fail(err, HEFT_EXISTS,
                                         "'%s' is a mount point and cannot be replaced",
                                         tree->name),
                              err, writer->path);
    }
    heft__map_init(&paths, writer->ctx);
    for (size_t i = 0; i < tree->count && job.status == HEFT_OK; i++) {
        const char *path = tree->entries[i].path;
        if (!heft__map_put(&paths, path, strlen(path), i, &found)) {
            job.status = heft__fail_nomem(err, strlen(path));
        }
    }
    if (job.status == HEFT_OK) {
        (void)compare_folder(&job, writer->folder, writer->staged, tree->name, tree->name);
    }
    heft__map_fini(&paths);
    *extra = job.extra;
    return heft__add_path(job.status, err, writer->path);
}
