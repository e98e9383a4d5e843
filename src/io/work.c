/* work.c - the folder in which a destination is prepared: made, found again, cleaned up.
 *
 *   PARENT/.NAME.heft-tmp-RANDOM/   beside a destination
 *   NAME/.heft-tmp-RANDOM/          in it, where nothing can be written beside it
 *   FOLDER/.heft-tmp-FILE-RANDOM/   for one file
 *
 * Only the owner of the destination's lock makes one, so that any other one is left over. Folders of other
 * users are not touched, whatever their names.
 * Source: docs/transactions.md. */
#include "io/transaction.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#define NAMES_MAX 64       /* leftovers looked at in one run */
#define OTHERS_SECONDS 100 /* after which a run to another destination that holds no lock is over */

/* ---- after an exchange ------------------------------------------------------------------------- */
struct settling {
    int old, now;
    const heft__map *written, *dropped; /* NULL below the first level */
    bool replaced; /* below a folder that was written: what is there is as it is to be */
    unsigned depth;
    bool failed;
};

static bool settle_entry(void *user, const char *name)
{
    struct settling *job = user;
    struct stat old, now;
    if (fstatat(job->old, name, &old, AT_SYMLINK_NOFOLLOW) != 0) {
        return true;
    }
    const bool there = fstatat(job->now, name, &now, AT_SYMLINK_NOFOLLOW) == 0;
    const size_t length = strlen(name);
    bool moved = true;
    if (job->written &&
        (heft__is_temporary(name) || heft__map_get(job->dropped, name, length) != HEFT__MAP_NONE)) {
        return true; /* dropped, or ours */
    }
    const bool both = there && S_ISDIR(old.st_mode) && S_ISDIR(now.st_mode);
    const bool replaced =
        job->replaced ||
        (job->written && heft__map_get(job->written, name, length) != HEFT__MAP_NONE);
    if (replaced && !both && (there || !job->replaced)) {
        return true;
    }
    if (both) {
        struct settling inner = {.old = heft__dir_open(job->old, name),
                                 .now = heft__dir_open(job->now, name),
                                 .replaced = replaced,
                                 .depth = job->depth + 1};
        moved = inner.old >= 0 && inner.now >= 0 && inner.depth < 64 &&
                heft__dir_each(inner.old, settle_entry, &inner) && !inner.failed;
        heft__dir_close(&inner.old);
        heft__dir_close(&inner.now);
    } else if (!there) { /* made after the links were */
        moved = heft__rename_new(job->old, name, job->now, name);
    } else if (old.st_ino != now.st_ino) { /* replaced by somebody after the link was made */
        moved = renameat(job->old, name, job->now, name) == 0;
    }
    job->failed |= !moved;
    return true;
}

bool heft__work_settle(int old, int now, const heft__map *written, const heft__map *dropped)
{
    struct settling job = {.old = old, .now = now, .written = written, .dropped = dropped};
    return heft__dir_each(old, settle_entry, &job) && !job.failed;
}

/* ---- leftovers --------------------------------------------------------------------------------- */
struct leftovers {
    const char *prefix;
    size_t prefix_length;
    char names[NAMES_MAX][256];
    bool others[NAMES_MAX]; /* of another destination */
    size_t count;
};

/* Whether a name is that of a work folder beside a destination. */
static bool is_work_name(const char *name)
{
    const char *mark = name[0] == '.' ? strstr(name + 1, HEFT__TEMPORARY) : NULL;
    const char *random = mark ? mark + strlen(HEFT__TEMPORARY) : "";
    return strlen(random) == HEFT__RANDOM_NAME - 1 &&
           strspn(random, "0123456789abcdef") == HEFT__RANDOM_NAME - 1;
}

static bool note_leftover(void *user, const char *name)
{
    struct leftovers *found = user;
    const bool ours = strncmp(name, found->prefix, found->prefix_length) == 0;
    if ((ours || is_work_name(name)) && found->count < NAMES_MAX &&
        strlen(name) < sizeof found->names[0]) {
        found->others[found->count] = !ours;
        memcpy(found->names[found->count++], name, strlen(name) + 1);
    }
    return true;
}

/* Files of a resumed write that are as the record says stay; anything else goes. */
struct sifting {
    heft__folder_writer *writer;
    int staged;
};

static bool sift(void *user, const char *name)
{
    struct sifting *job = user;
    const heft__record *record = &job->writer->earlier;
    struct stat facts;
    const size_t at = heft__map_get(&record->finished, name, strlen(name));
    if (at != HEFT__MAP_NONE && fstatat(job->staged, name, &facts, AT_SYMLINK_NOFOLLOW) == 0 &&
        heft__record_matches(&record->files[at], &facts)) {
        job->writer->kept_bytes += (uint64_t)facts.st_size;
    } else if (unlinkat(job->staged, name, 0) != 0) {
        (void)heft__dir_remove(job->staged, name);
    }
    return true;
}

/* Whether `new` in a work folder is what the destination was. */
static bool was_exchanged(int work, const heft__record *record)
{
    struct stat facts;
    return record->staged_inode != 0 && fstatat(work, "new", &facts, AT_SYMLINK_NOFOLLOW) == 0 &&
           (uint64_t)facts.st_ino != record->staged_inode;
}

/* Take over the work folder of an earlier run; false where it is of no use. */
static bool take_over(heft__folder_writer *writer, int home, const char *name, int work)
{
    struct stat facts;
    int staged = heft__dir_open(work, "new");
    const int record =
        heft__open_at(work, HEFT__RECORD, O_WRONLY | O_APPEND | O_NOFOLLOW | O_NONBLOCK, 0);
    struct sifting job = {.writer = writer, .staged = staged};
    if (staged < 0 || record < 0 || fstat(staged, &facts) != 0 ||
        !heft__dir_each(staged, sift, &job)) {
        heft__dir_close(&staged);
        if (record >= 0) {
            close(record);
        }
        return false;
    }
    (void)unlinkat(work, "part", 0);
    (void)heft__dir_remove(work, "old");
    writer->home = home;
    writer->work = work;
    writer->staged = staged;
    writer->record_fd = record;
    snprintf(writer->work_name, sizeof writer->work_name, "%s", name);
    return true;
}

/* An old destination that an exchange left in a work folder: whether it can go. */
static bool settle(heft__folder_writer *writer, int work, const heft__record *record)
{
    bool good = writer->folder < 0 || !was_exchanged(work, record);
    if (!good) {
        int old = heft__dir_open(work, "new");
        good =
            old >= 0 && heft__work_settle(old, writer->folder, &record->finished, &record->dropped);
        heft__dir_close(&old);
    }
    return good;
}

/* Open a folder that is this user's alone; -1 if it is not. */
static int open_own(int home, const char *name, struct stat *facts)
{
    int work = heft__dir_open(home, name);
    if (work >= 0 &&
        (fstat(work, facts) != 0 || facts->st_uid != geteuid() || (facts->st_mode & 022) != 0)) {
        heft__dir_close(&work);
    }
    return work;
}

/* A work folder of a run that did not end. */
static heft_status clean_folder(heft__folder_writer *writer, int home, const char *name,
                                heft_error *err)
{
    struct stat facts;
    heft__record record;
    int work = open_own(home, name, &facts);
    if (work < 0 || heft__lock_try(work, LOCK_EX) == 0) {
        heft__dir_close(&work); /* not ours, or at work */
        return HEFT_OK;
    }
    heft_status status = heft__record_read(&writer->arena, work, &record, err);
    const char *wanted = writer->options.resume;
    bool taken = false;
    if (status == HEFT_OK && wanted && writer->work < 0 && record.key &&
        strcmp(record.key, wanted) == 0 && !was_exchanged(work, &record)) {
        writer->earlier = record;
        taken = take_over(writer, home, name, work);
        if (taken) {
            return HEFT_OK;
        }
        writer->earlier = (heft__record){0};
    }
    if (status == HEFT_OK && settle(writer, work, &record)) {
        (void)heft__dir_remove(home, name);
    }
    heft__record_fini(&writer->arena, &record);
    heft__dir_close(&work);
    return status;
}

/* The work folder of a run to another destination: only what nobody can need. Its lock is not held here,
 * so one that is young may be in the making. */
static heft_status clean_other(heft__folder_writer *writer, int home, const char *name,
                               heft_error *err)
{
    struct stat facts;
    heft__record record;
    int work = open_own(home, name, &facts);
    if (work < 0 || facts.st_mtim.tv_sec + OTHERS_SECONDS > time(NULL) ||
        heft__lock_try(work, LOCK_EX) != 1) {
        heft__dir_close(&work);
        return HEFT_OK;
    }
    heft_status status = heft__record_read(&writer->arena, work, &record, err);
    if (status == HEFT_OK && !record.key && record.staged_inode == 0) {
        (void)heft__dir_remove(home, name);
    }
    heft__record_fini(&writer->arena, &record);
    heft__dir_close(&work);
    return status;
}

/* The lock of a run that did not end. */
static void clean_lock(const heft__folder_writer *writer, int home, const char *name)
{
    struct stat opened, named;
    if (home == writer->lock.dir && strcmp(name, writer->lock.name) == 0) {
        return;
    }
    const int fd = heft__open_at(home, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
    if (fd >= 0 && fstat(fd, &opened) == 0 && S_ISREG(opened.st_mode) &&
        opened.st_uid == geteuid() && heft__lock_try(fd, LOCK_EX) == 1 &&
        fstatat(home, name, &named, AT_SYMLINK_NOFOLLOW) == 0 && opened.st_ino == named.st_ino) {
        (void)unlinkat(home, name, 0);
    }
    if (fd >= 0) {
        close(fd);
    }
}

static heft_status clean(heft__folder_writer *writer, int home, const char *prefix, heft_error *err)
{
    struct leftovers *found = heft__alloc_zero(writer->ctx, 1, sizeof *found);
    heft_status status = found ? HEFT_OK : heft__fail_nomem(err, sizeof *found);
    if (found) {
        found->prefix = prefix;
        found->prefix_length = strlen(prefix);
        if (!heft__dir_each(home, note_leftover, found)) {
            found->count = 0; /* where nothing can be listed, nothing is cleaned */
        }
    }
    for (size_t i = 0; status == HEFT_OK && i < found->count; i++) {
        const char *name = found->names[i];
        const size_t length = strlen(name);
        if (found->others[i]) {
            status = clean_other(writer, home, name, err);
        } else if (length >= 4 && strcmp(name + length - 4, "lock") == 0) {
            clean_lock(writer, home, name);
        } else {
            status = clean_folder(writer, home, name, err);
        }
    }
    heft__free(writer->ctx, found, sizeof *found);
    return status;
}

heft_status heft__work_clean(heft__folder_writer *writer, heft_error *err)
{
    heft_status status = HEFT_OK;
    if (writer->options.single) {
        const char *prefix =
            heft__arena_format(&writer->arena, "%s%s-", HEFT__TEMPORARY, writer->stem);
        return prefix ? clean(writer, writer->folder, prefix, err) : heft__fail_nomem(err, 0);
    }
    if (writer->parent >= 0) {
        const char *prefix =
            heft__arena_format(&writer->arena, ".%s%s", writer->stem, HEFT__TEMPORARY);
        status = prefix ? clean(writer, writer->parent, prefix, err) : heft__fail_nomem(err, 0);
    }
    return status == HEFT_OK && writer->folder >= 0
               ? clean(writer, writer->folder, HEFT__TEMPORARY, err)
               : status;
}

/* ---- made, moved, removed ---------------------------------------------------------------------- */
static bool name_work(heft__folder_writer *writer, bool inside)
{
    char random[HEFT__RANDOM_NAME];
    if (!heft__random_name(random)) {
        return false;
    }
    if (writer->options.single) {
        snprintf(writer->work_name, sizeof writer->work_name, "%s%s-%s", HEFT__TEMPORARY,
                 writer->stem, random);
    } else if (inside) {
        snprintf(writer->work_name, sizeof writer->work_name, "%s%s", HEFT__TEMPORARY, random);
    } else {
        snprintf(writer->work_name, sizeof writer->work_name, ".%s%s%s", writer->stem,
                 HEFT__TEMPORARY, random);
    }
    return true;
}

/* The work folder is this user's alone; the new folder in it has the mode that any folder made here
 * has: by the process's umask, by the parent's access list and its group. */
static bool make(heft__folder_writer *writer)
{
    struct stat facts;
    if (mkdirat(writer->home, writer->work_name, 0700) != 0) {
        return false;
    }
    writer->work = heft__dir_open(writer->home, writer->work_name);
    if (writer->work < 0) {
        const int reason = errno;
        (void)unlinkat(writer->home, writer->work_name, AT_REMOVEDIR);
        errno = reason;
        return false;
    }
    if (fstat(writer->work, &facts) != 0) {
        return false;
    }
    if (facts.st_uid != geteuid()) { /* exchanged by somebody between the two calls */
        errno = EPERM;
        return false;
    }
    if (heft__lock_try(writer->work, LOCK_EX) == 0 || mkdirat(writer->work, "new", 0777) != 0) {
        return false;
    }
    writer->staged = heft__dir_open(writer->work, "new");
    if (writer->options.resume) {
        writer->record_fd = heft__open_at(
            writer->work, HEFT__RECORD, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_NOFOLLOW, 0600);
    }
    return writer->staged >= 0 && (!writer->options.resume || writer->record_fd >= 0);
}

heft_status heft__work_make(heft__folder_writer *writer, heft_error *err)
{
    if (writer->work >= 0) {
        return HEFT_OK;
    }
    const bool inside = writer->home == writer->folder;
    if (!name_work(writer, inside)) {
        return heft__fail_io(err, errno, "cannot get random bytes from the kernel");
    }
    if (!make(writer)) {
        return heft__fail_io(err, errno, "cannot write into the folder");
    }
    if (!writer->options.resume) {
        return HEFT_OK;
    }
    heft__buffer text;
    heft__buffer_init(&text, writer->ctx);
    heft__record_head(&text, writer->options.resume);
    heft_status status = heft__buffer_check(&text, err);
    if (status == HEFT_OK && write(writer->record_fd, text.data, text.size) != (ssize_t)text.size) {
        status = heft__fail_io(err, errno, "cannot write the record of the work");
    }
    heft__buffer_fini(&text);
    return status;
}

bool heft__work_move_inside(heft__folder_writer *writer)
{
    char before[sizeof writer->work_name];
    const int home = writer->home;
    if (home == writer->folder) {
        return true;
    }
    memcpy(before, writer->work_name, sizeof before);
    if (!name_work(writer, true) ||
        !heft__rename_new(home, before, writer->folder, writer->work_name)) {
        memcpy(writer->work_name, before, sizeof before);
        return false;
    }
    writer->home = writer->folder;
    return true;
}

void heft__work_remove(heft__folder_writer *writer)
{
    if (writer->work >= 0) {
        (void)heft__dir_remove(writer->home, writer->work_name);
        heft__dir_close(&writer->staged);
        heft__dir_close(&writer->work);
    }
}

heft_status heft__work_record(heft__folder_writer *writer, const heft__buffer *text,
                              heft_error *err)
{
    int fd =
        heft__open_at(writer->work, "record.new", O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600);
    size_t done = 0;
    bool good = fd >= 0;
    good = good && heft__write_all(fd, text->data, text->size, 0, &done);
    good = good && heft__sync(fd) &&
           renameat(writer->work, "record.new", writer->work, HEFT__RECORD) == 0 &&
           heft__sync(writer->work);
    const int reason = errno;
    heft__dir_close(&fd);
    return good ? HEFT_OK : heft__fail_io(err, reason, "cannot write the record of the work");
}
