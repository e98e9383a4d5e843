/* commit.c - how what was written becomes what is there.
 *
 *   nothing there      rename(new, NAME)
 *   one file           rename over its predecessor
 *   a folder           files that stay are linked into the new folder, then NAME and new are exchanged
 *   where that fails   journal: old entry points out, other files one by one, new entry points in
 *
 * A reader finds the old checkpoint or the new one; while a journal is at work nothing loads, as what a
 * loader looks for is away. What was there is removed last, after everything new is on the disk. Any step
 * that fails is taken back.
 * Source: docs/transactions.md. */
#include "io/transaction.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

/* Words that follow a failure's own. */
static void add_words(heft_error *err, const char *words)
{
    if (err) {
        const size_t length = strlen(err->message);
        snprintf(err->message + length, sizeof err->message - length, "; %s", words);
    }
}

#define IN_PLACE "the new files are in place and cannot be removed again"

/* ---- nothing there ----------------------------------------------------------------------------- */
static bool set_folder_mode(heft__folder_writer *writer)
{
    struct stat facts;
    const mode_t most = writer->options.folder_mode;
    if (!most) {
        return true;
    }
    if (fstat(writer->staged, &facts) != 0) {
        return false;
    }
    const mode_t mode = facts.st_mode & 07777, kept = mode & (most | 07700);
    return mode == kept || fchmod(writer->staged, kept) == 0;
}

heft_status heft__commit_new(heft__folder_writer *writer, heft_error *err)
{
    if (!set_folder_mode(writer) || !heft__sync(writer->staged)) {
        return heft__fail_io(err, errno, "cannot flush the finished folder to disk");
    }
    if (!heft__rename_new(writer->work, "new", writer->parent, writer->name)) {
        return errno == EEXIST || errno == ENOTEMPTY || errno == ENOTDIR
                   ? heft__fail(err, HEFT_EXISTS, "destination was created by another process")
                   : heft__fail_io(err, errno, "cannot rename the finished folder");
    }
    if (!heft__sync(writer->parent)) {
        const int reason = errno;
        const bool back = heft__rename_new(writer->parent, writer->name, writer->work, "new");
        heft_status status = heft__fail_io(err, reason, "cannot flush the parent folder to disk");
        if (!back) {
            add_words(err, IN_PLACE);
        }
        return status;
    }
    heft__work_remove(writer);
    return HEFT_OK;
}

/* ---- one file ---------------------------------------------------------------------------------- */
/* `before`: a second name of what was there, so that it can be put back. */
static heft_status replace_one(heft__folder_writer *writer, heft_error *err)
{
    const char *name = writer->files[0].name;
    const bool had = linkat(writer->folder, name, writer->work, "before", 0) == 0;
    if (renameat(writer->staged, name, writer->folder, name) != 0) {
        return heft__fail_io(err, errno, "cannot move '%s' into place", name);
    }
    if (!heft__sync(writer->folder)) {
        const int reason = errno;
        const bool back = had ? renameat(writer->work, "before", writer->folder, name) == 0
                              : renameat(writer->folder, name, writer->staged, name) == 0;
        heft_status status = heft__fail_io(err, reason, "cannot flush the folder to disk");
        if (!back) {
            add_words(err, IN_PLACE);
        }
        return status;
    }
    heft__work_remove(writer);
    return HEFT_OK;
}

/* ---- an exchange of folders -------------------------------------------------------------------- */
static heft_status map_names(heft__folder_writer *writer, heft__map *written, heft__map *dropped,
                             heft_error *err)
{
    size_t found;
    for (size_t i = 0; i < writer->file_count; i++) {
        const char *name = writer->files[i].name;
        if (!heft__map_put(written, name, strlen(name), i, &found)) {
            return heft__fail_nomem(err, strlen(name));
        }
    }
    for (size_t i = 0; i < writer->removed_count; i++) {
        const char *name = writer->removed[i].name;
        if (!heft__map_put(dropped, name, strlen(name), i, &found)) {
            return heft__fail_nomem(err, strlen(name));
        }
    }
    return HEFT_OK;
}

/* Whether this process works in the folder or below it: it would find itself in what was there. */
static bool is_work_directory(const struct stat *folder)
{
    struct stat here, above;
    int at = heft__open_at(AT_FDCWD, ".", O_PATH | O_DIRECTORY, 0);
    bool inside = false, more = at >= 0 && fstat(at, &here) == 0;
    while (more && !inside) {
        inside = here.st_dev == folder->st_dev && here.st_ino == folder->st_ino;
        const int up = heft__open_at(at, "..", O_PATH | O_DIRECTORY, 0);
        more = up >= 0 && fstat(up, &above) == 0 &&
               (above.st_dev != here.st_dev || above.st_ino != here.st_ino);
        here = above;
        close(at);
        at = up;
    }
    if (at >= 0) {
        close(at);
    }
    return inside;
}

/* Whether an exchange is worth trying. */
static bool may_exchange(const heft__folder_writer *writer)
{
    return writer->home == writer->parent && writer->parent >= 0 && *writer->name &&
           !heft__has_attributes(writer->folder) && !is_work_directory(&writer->was);
}

struct linking {
    heft__folder_writer *writer;
    const heft__map *written, *dropped;
    size_t links;
};

static bool link_kept(void *user, const char *name)
{
    struct linking *job = user;
    const size_t length = strlen(name);
    return heft__is_temporary(name) ||
           heft__map_get(job->written, name, length) != HEFT__MAP_NONE ||
           heft__map_get(job->dropped, name, length) != HEFT__MAP_NONE ||
           heft__dir_link(job->writer->folder, job->writer->staged, name, &job->links);
}

struct unlinking {
    int staged;
    const heft__map *written;
};

static bool unlink_kept(void *user, const char *name)
{
    const struct unlinking *job = user;
    if (heft__map_get(job->written, name, strlen(name)) == HEFT__MAP_NONE &&
        unlinkat(job->staged, name, 0) != 0) {
        (void)heft__dir_remove(job->staged, name);
    }
    return true;
}

/* Everything that is to be in the new folder, with the old one's owner and mode. */
static bool complete_staged(heft__folder_writer *writer, const heft__map *written,
                            const heft__map *dropped)
{
    struct stat made;
    struct linking job = {.writer = writer, .written = written, .dropped = dropped};
    return fstat(writer->staged, &made) == 0 && heft__dir_each(writer->folder, link_kept, &job) &&
           ((made.st_uid == writer->was.st_uid && made.st_gid == writer->was.st_gid) ||
            fchown(writer->staged, writer->was.st_uid, writer->was.st_gid) == 0) &&
           fchmod(writer->staged, writer->was.st_mode & 07777) == 0 && heft__sync(writer->staged);
}

/* The record that a run after a crash settles the old folder by. */
static heft_status record_exchange(heft__folder_writer *writer, heft_error *err)
{
    struct stat facts;
    heft__buffer text;
    heft__buffer_init(&text, writer->ctx);
    heft__record_head(&text, writer->options.resume);
    for (size_t i = 0; i < writer->file_count; i++) {
        if (fstatat(writer->staged, writer->files[i].name, &facts, AT_SYMLINK_NOFOLLOW) == 0) {
            heft__record_file(&text, writer->files[i].name, &facts);
        }
    }
    for (size_t i = 0; i < writer->removed_count; i++) {
        heft__record_drop(&text, writer->removed[i].name);
    }
    heft_status status = fstat(writer->staged, &facts) == 0
                             ? HEFT_OK
                             : heft__fail_io(err, errno, "cannot access the new folder");
    heft__record_staged(&text, (uint64_t)facts.st_ino);
    if (status == HEFT_OK) {
        status = heft__buffer_check(&text, err);
    }
    if (status == HEFT_OK) {
        status = heft__work_record(writer, &text, err);
    }
    heft__buffer_fini(&text);
    return status;
}

/* What was there goes, except for what is nobody's to remove. */
static void settle_old(heft__folder_writer *writer, const heft__map *written,
                       const heft__map *dropped)
{
    int old = heft__dir_open(writer->work, "new");
    old = old >= 0 ? old : heft__dir_open(writer->work, "new");
    if (old >= 0 && (heft__work_settle(old, writer->staged, written, dropped) ||
                     heft__work_settle(old, writer->staged, written, dropped))) {
        heft__work_remove(writer);
    } else {
        heft__log(writer->ctx, "%s: what was there is kept in '%s'", writer->path,
                  writer->work_name);
        writer->stuck = true;
    }
    heft__dir_close(&old);
}

static bool is_still_there(const heft__folder_writer *writer)
{
    struct stat facts;
    return fstatat(writer->parent, writer->name, &facts, AT_SYMLINK_NOFOLLOW) == 0 &&
           facts.st_dev == writer->was.st_dev && facts.st_ino == writer->was.st_ino;
}

/* *done: exchanged; neither done nor failed: it has to be done file by file. */
static heft_status exchange(heft__folder_writer *writer, const heft__map *written,
                            const heft__map *dropped, bool *done, heft_error *err)
{
    *done = false;
    if (!is_still_there(writer)) {
        return heft__fail(err, HEFT_EXISTS, "destination was replaced by another process");
    }
    heft_status status = HEFT_OK;
    bool exchanged = false;
    if (complete_staged(writer, written, dropped)) {
        status = record_exchange(writer, err);
        exchanged = status == HEFT_OK && heft__rename_with(writer->work, "new", writer->parent,
                                                           writer->name, RENAME_EXCHANGE);
    }
    if (exchanged && !(heft__sync(writer->parent) && heft__sync(writer->work))) {
        status = heft__fail_io(err, errno, "cannot flush the folder to disk");
        if (heft__rename_with(writer->work, "new", writer->parent, writer->name, RENAME_EXCHANGE)) {
            exchanged = false;
        } else {
            writer->stuck = true; /* what was there is kept */
            add_words(err, IN_PLACE);
            return status;
        }
    }
    if (!exchanged) {
        struct unlinking job = {.staged = writer->staged, .written = written};
        (void)heft__dir_each(writer->staged, unlink_kept, &job);
        return status;
    }
    *done = true;
    settle_old(writer, written, dropped);
    return HEFT_OK;
}

/* ---- file by file ------------------------------------------------------------------------------ */
static heft_status list_journal(heft__folder_writer *writer, const heft__map *written,
                                heft__journal *journal, heft_error *err)
{
    heft__journal_file *files = heft__arena_array(
        &writer->arena, (uint64_t)writer->file_count + writer->removed_count + 1, sizeof *files);
    if (!files) {
        return heft__fail_nomem(err, writer->file_count * sizeof *files);
    }
    for (size_t i = 0; i < writer->file_count; i++) {
        const heft__out_entry *file = &writer->files[i];
        files[journal->count++] =
            (heft__journal_file){.name = file->name,
                                 .entry_point = file->entry_point,
                                 .put = true,
                                 .had = heft__exists_at(writer->folder, file->name)};
    }
    for (size_t i = 0; i < writer->removed_count; i++) {
        const heft__out_entry *file = &writer->removed[i];
        if (heft__map_get(written, file->name, strlen(file->name)) == HEFT__MAP_NONE &&
            heft__exists_at(writer->folder, file->name)) {
            files[journal->count++] = (heft__journal_file){
                .name = file->name, .entry_point = file->entry_point, .had = true};
        }
    }
    journal->files = files;
    return HEFT_OK;
}

/* Write the journal, hold it, and make it visible. */
static heft_status publish_journal(heft__folder_writer *writer, const heft__journal *journal,
                                   int *fd, heft_error *err)
{
    heft__buffer text;
    heft__buffer_init(&text, writer->ctx);
    heft__journal_write(&text, writer->work_name, journal);
    heft_status status = heft__buffer_check(&text, err);
    bool good = status == HEFT_OK;
    if (good) {
        *fd = heft__open_at(writer->work, "journal", O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW, 0644);
        good = *fd >= 0 && heft__lock_try(*fd, LOCK_EX) == 1;
        size_t done = 0;
        good = good && heft__write_all(*fd, text.data, text.size, 0, &done);
        good = good && heft__sync(*fd) && heft__sync(writer->staged) && heft__sync(writer->work) &&
               heft__rename_new(writer->work, "journal", writer->folder, HEFT__JOURNAL);
        if (good && !heft__sync(writer->folder)) {
            const int reason = errno;
            good = false;
            /* a journal that stays needs its work folder */
            writer->stuck = renameat(writer->folder, HEFT__JOURNAL, writer->work, "journal") != 0;
            errno = reason;
        }
        status = good ? HEFT_OK : heft__fail_io(err, errno, "cannot write the journal");
    }
    heft__buffer_fini(&text);
    return status;
}

/* After a failure: everything back, or the journal stays for whoever comes next. */
static void take_back(heft__folder_writer *writer, const heft__journal *journal, heft_error *err)
{
    if (heft__journal_back(journal) && unlinkat(writer->folder, HEFT__JOURNAL, 0) == 0 &&
        heft__sync(writer->folder)) {
        return;
    }
    writer->stuck = true;
    add_words(err, heft__journal_is_done(journal)
                       ? "the new files are in place, but the old ones come back when heft next "
                         "opens or writes it"
                       : "nothing loads from here until heft next opens or writes it");
}

static heft_status replace_files(heft__folder_writer *writer, heft__journal *journal,
                                 heft_error *err)
{
    int fd = -1;
    heft_status status = publish_journal(writer, journal, &fd, err);
    if (status == HEFT_OK) {
        const bool moved = heft__journal_forward(journal);
        if (!moved || renameat(writer->folder, HEFT__JOURNAL, writer->work, "journal") != 0) {
            status = heft__fail_io(err, errno, "cannot move the finished files into place");
            take_back(writer, journal, err);
        } else if (!heft__sync(writer->folder)) {
            status = heft__fail_io(err, errno, "cannot flush the folder to disk");
            if (renameat(writer->work, "journal", writer->folder, HEFT__JOURNAL) == 0) {
                take_back(writer, journal, err);
            } else {
                writer->stuck = true; /* the old files are in the work folder */
                add_words(err, IN_PLACE);
            }
        }
    }
    heft__dir_close(&fd);
    return status;
}

static heft_status commit_by_journal(heft__folder_writer *writer, const heft__map *written,
                                     heft_error *err)
{
    heft__journal journal = {.folder = writer->folder, .old = -1, .new = writer->staged};
    if (writer->lock.useless) {
        return heft__fail(
            err, HEFT_UNSUPPORTED,
            "this file system can neither exchange folders nor lock files: write to a "
            "new folder");
    }
    heft_status status = list_journal(writer, written, &journal, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (!heft__work_move_inside(writer) || mkdirat(writer->work, "old", 0700) != 0) {
        return heft__fail_io(err, errno, "cannot write into the folder");
    }
    journal.old = heft__dir_open(writer->work, "old");
    status = journal.old >= 0 ? replace_files(writer, &journal, err)
                              : heft__fail_io(err, errno, "cannot write into the folder");
    heft__dir_close(&journal.old);
    if (status == HEFT_OK) {
        heft__work_remove(writer);
    }
    return status;
}

heft_status heft__commit_replace(heft__folder_writer *writer, heft_error *err)
{
    bool done = false;
    heft__map written, dropped;
    if (writer->options.single) {
        return replace_one(writer, err);
    }
    heft__map_init(&written, writer->ctx);
    heft__map_init(&dropped, writer->ctx);
    heft_status status = map_names(writer, &written, &dropped, err);
    if (status == HEFT_OK && may_exchange(writer)) {
        status = exchange(writer, &written, &dropped, &done, err);
    }
    if (status == HEFT_OK && !done) {
        status = commit_by_journal(writer, &written, err);
    }
    heft__map_fini(&dropped);
    heft__map_fini(&written);
    return status;
}
