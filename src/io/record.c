/* record.c - the lines of a record and of a journal. See record.h. */
#include "io/record.h"

#include "io/dir.h"
#include "io/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#define WAIT_TRIES 3000 /* of 10 ms: for a process that replaces files */

/* ---- names in lines ---------------------------------------------------------------------------- */
static void put_name(heft__buffer *text, const char *name)
{
    for (const char *p = name; *p; p++) {
        const unsigned char byte = (unsigned char)*p;
        if (byte <= ' ' || byte == '%' || byte == 127) {
            heft__buffer_format(text, "%%%02x", byte);
        } else {
            heft__buffer_byte(text, byte);
        }
    }
    heft__buffer_byte(text, '\n');
}

/* Decode a name where it lies; false if it is not one component. */
static bool take_name(char *name)
{
    char *to = name;
    for (const char *p = name; *p; p++) {
        unsigned byte = (unsigned char)*p;
        if (byte == '%') {
            if (sscanf(p + 1, "%2x", &byte) != 1 || byte == 0 || !p[1] || !p[2]) {
                return false;
            }
            p += 2;
        }
        *to++ = (char)byte;
    }
    *to = '\0';
    return *name && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* The next line of a text that ends with NUL; NULL at its end, and for a last line without an end. */
static char *next_line(char **rest)
{
    char *line = *rest, *end = line ? strchr(line, '\n') : NULL;
    if (!end) {
        return NULL;
    }
    *end = '\0';
    *rest = end + 1;
    return line;
}

/* ---- record ------------------------------------------------------------------------------------ */
void heft__record_head(heft__buffer *text, const char *key)
{
    heft__buffer_text(text, "heft-work 1\n");
    if (key) {
        heft__buffer_text(text, "key ");
        put_name(text, key);
    }
}

void heft__record_file(heft__buffer *text, const char *name, const struct stat *facts)
{
    heft__buffer_format(text, "file %" PRIu64 " %" PRIu64 " %" PRId64 " %" PRId64 " ",
                        (uint64_t)facts->st_ino, (uint64_t)facts->st_size,
                        (int64_t)facts->st_mtim.tv_sec, (int64_t)facts->st_mtim.tv_nsec);
    put_name(text, name);
}

void heft__record_staged(heft__buffer *text, uint64_t inode)
{
    heft__buffer_format(text, "staged %" PRIu64 "\n", inode);
}

void heft__record_drop(heft__buffer *text, const char *name)
{
    heft__buffer_text(text, "drop ");
    put_name(text, name);
}

bool heft__record_matches(const struct heft__record_file *file, const struct stat *facts)
{
    return S_ISREG(facts->st_mode) && (uint64_t)facts->st_ino == file->inode &&
           (uint64_t)facts->st_size == file->bytes &&
           (int64_t)facts->st_mtim.tv_sec == file->seconds &&
           (int64_t)facts->st_mtim.tv_nsec == file->nanoseconds;
}

/* false: no memory. A later line of a name replaces an earlier one. */
static bool take_file(heft__arena *arena, heft__record *record, char *values)
{
    struct heft__record_file file = {0};
    int used = 0;
    size_t found;
    if (sscanf(values, "%" SCNu64 " %" SCNu64 " %" SCNd64 " %" SCNd64 " %n", &file.inode,
               &file.bytes, &file.seconds, &file.nanoseconds, &used) != 4 ||
        used == 0 || !take_name(values + used)) {
        return true;
    }
    file.name = values + used;
    if (!heft__array_reserve(arena->ctx, (void **)&record->files, record->count, &record->cap,
                             sizeof file) ||
        !heft__map_put(&record->finished, file.name, strlen(file.name), record->count, &found)) {
        return false;
    }
    if (found != HEFT__MAP_NONE) {
        record->files[found] = file;
    } else {
        record->files[record->count++] = file;
    }
    return true;
}

static bool take_line(heft__arena *arena, heft__record *record, char *line)
{
    size_t found;
    if (strncmp(line, "key ", 4) == 0 && take_name(line + 4)) {
        record->key = line + 4;
    } else if (strncmp(line, "file ", 5) == 0) {
        return take_file(arena, record, line + 5);
    } else if (strncmp(line, "staged ", 7) == 0) {
        (void)sscanf(line + 7, "%" SCNu64, &record->staged_inode);
    } else if (strncmp(line, "drop ", 5) == 0 && take_name(line + 5)) {
        return heft__map_put(&record->dropped, line + 5, strlen(line + 5), 0, &found);
    }
    return true;
}

/* A small file below `folder`, NUL-terminated; NULL without an error if there is none. */
static heft_status read_text(heft__arena *arena, int fd, char **out, heft_error *err)
{
    struct stat facts;
    *out = NULL;
    if (fstat(fd, &facts) != 0) {
        return heft__fail_errno(err, errno, "cannot access the record");
    }
    if (!S_ISREG(facts.st_mode) || (uint64_t)facts.st_size > HEFT__RECORD_BYTES) {
        return HEFT_OK;
    }
    const size_t size = (size_t)facts.st_size;
    char *text = heft__arena_array(arena, size + 1, 1);
    if (!text) {
        return heft__fail_nomem(err, size);
    }
    for (size_t done = 0; done < size;) {
        const ssize_t got = pread(fd, text + done, size - done, (off_t)done);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return got == 0 ? HEFT_OK : heft__fail_errno(err, errno, "cannot read the record");
        }
        done += (size_t)got;
    }
    text[size] = '\0';
    *out = text;
    return HEFT_OK;
}

heft_status heft__record_read(heft__arena *arena, int work, heft__record *record, heft_error *err)
{
    char *rest = NULL;
    *record = (heft__record){0};
    heft__map_init(&record->finished, arena->ctx);
    heft__map_init(&record->dropped, arena->ctx);
    const int fd = heft__open_at(work, HEFT__RECORD, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    heft_status status = HEFT_OK;
    if (fd >= 0) {
        status = read_text(arena, fd, &rest, err);
        close(fd);
    } else if (errno != ENOENT && errno != ELOOP) {
        status = heft__fail_errno(err, errno, "cannot open the record");
    }
    char *line = status == HEFT_OK ? next_line(&rest) : NULL;
    if (line && strcmp(line, "heft-work 1") == 0) {
        while (status == HEFT_OK && (line = next_line(&rest)) != NULL) {
            status = take_line(arena, record, line) ? HEFT_OK : heft__fail_nomem(err, 0);
        }
    }
    return status;
}

void heft__record_fini(heft__arena *arena, heft__record *record)
{
    heft__map_fini(&record->finished);
    heft__map_fini(&record->dropped);
    heft__free(arena->ctx, record->files, record->cap * sizeof *record->files);
    record->files = NULL;
    record->cap = record->count = 0;
}

/* ---- journal ----------------------------------------------------------------------------------- */
void heft__journal_write(heft__buffer *text, const char *work, const heft__journal *journal)
{
    heft__buffer_text(text, "heft-journal 1\nwork ");
    put_name(text, work);
    for (size_t i = 0; i < journal->count; i++) {
        const heft__journal_file *file = &journal->files[i];
        heft__buffer_format(text, "%s %d %d ", file->put ? "put" : "drop", file->entry_point,
                            file->had);
        put_name(text, file->name);
    }
    heft__buffer_text(text, "end\n");
}

static bool take_away(const heft__journal *journal, const heft__journal_file *file)
{
    return !file->had || renameat(journal->folder, file->name, journal->old, file->name) == 0;
}

static bool put_in(const heft__journal *journal, const heft__journal_file *file)
{
    return !file->put || heft__rename_new(journal->new, file->name, journal->folder, file->name);
}

static bool sync_all(const heft__journal *journal)
{
    return heft__sync(journal->old) && heft__sync(journal->new) && heft__sync(journal->folder);
}

/* The first entry point, config.json, goes first and comes last: weights that stay, in another format,
 * do not load beside a config that is not theirs. */
bool heft__journal_forward(const heft__journal *journal)
{
    bool good = true;
    for (size_t i = 0; i < journal->count && good; i++) {
        good = !journal->files[i].entry_point || take_away(journal, &journal->files[i]);
    }
    good = good && sync_all(journal); /* from here on nothing loads */
    for (size_t i = 0; i < journal->count && good; i++) {
        const heft__journal_file *file = &journal->files[i];
        good = file->entry_point || (take_away(journal, file) && put_in(journal, file));
    }
    good = good && sync_all(journal);
    for (size_t i = journal->count; i-- > 0 && good;) {
        good = !journal->files[i].entry_point || put_in(journal, &journal->files[i]);
    }
    return good && sync_all(journal);
}

/* Whether the new file stands in the destination: it left the work folder, and what it replaced is there. */
static bool is_in(const heft__journal *journal, const heft__journal_file *file)
{
    return file->put && !heft__exists_at(journal->new, file->name) &&
           (!file->had || heft__exists_at(journal->old, file->name)) &&
           heft__exists_at(journal->folder, file->name);
}

static bool take_out(const heft__journal *journal, const heft__journal_file *file)
{
    return !is_in(journal, file) ||
           heft__rename_new(journal->folder, file->name, journal->new, file->name);
}

/* A file that has its old name as well, by a hard link, is back: only the other name goes. */
static bool put_back(const heft__journal *journal, const heft__journal_file *file)
{
    struct stat there, kept;
    if (!file->had || !heft__exists_at(journal->old, file->name) ||
        heft__rename_new(journal->old, file->name, journal->folder, file->name)) {
        return true;
    }
    if (errno != EEXIST || fstatat(journal->folder, file->name, &there, AT_SYMLINK_NOFOLLOW) != 0 ||
        fstatat(journal->old, file->name, &kept, AT_SYMLINK_NOFOLLOW) != 0 ||
        there.st_dev != kept.st_dev || there.st_ino != kept.st_ino) {
        errno = EEXIST;
        return false;
    }
    return heft__unlink_at(journal->old, file->name);
}

bool heft__journal_is_done(const heft__journal *journal)
{
    bool done = true;
    for (size_t i = 0; i < journal->count && done; i++) {
        const heft__journal_file *file = &journal->files[i];
        done = file->put ? is_in(journal, file) : !heft__exists_at(journal->folder, file->name);
    }
    return done;
}

bool heft__journal_back(const heft__journal *journal)
{
    bool good = true;
    for (size_t i = 0; i < journal->count && good; i++) {
        good = !journal->files[i].entry_point || take_out(journal, &journal->files[i]);
    }
    good = good && sync_all(journal);
    for (size_t i = 0; i < journal->count && good; i++) {
        const heft__journal_file *file = &journal->files[i];
        good = file->entry_point || (take_out(journal, file) && put_back(journal, file));
    }
    good = good && sync_all(journal);
    for (size_t i = journal->count; i-- > 0 && good;) {
        good = !journal->files[i].entry_point || put_back(journal, &journal->files[i]);
    }
    return good && sync_all(journal);
}

/* ---- recovery ---------------------------------------------------------------------------------- */
/* The files of a journal's text into the arena; false if it is malformed. */
static heft_status parse(heft__arena *arena, char *rest, char **work, heft__journal *journal,
                         heft_error *err)
{
    size_t lines = 0;
    for (const char *p = rest; *p; p++) {
        lines += *p == '\n';
    }
    heft__journal_file *files = heft__arena_array(arena, lines + 1, sizeof *files);
    if (!files) {
        return heft__fail_nomem(err, lines * sizeof *files);
    }
    char *line = next_line(&rest);
    bool good = line && strcmp(line, "heft-journal 1") == 0;
    line = good ? next_line(&rest) : NULL;
    good = line && strncmp(line, "work " HEFT__TEMPORARY, 5 + strlen(HEFT__TEMPORARY)) == 0 &&
           take_name(line + 5);
    *work = good ? line + 5 : NULL;
    bool ended = false;
    while (good && !ended && (line = next_line(&rest)) != NULL) {
        int entry_point = 0, had = 0, used = 0;
        const bool put = strncmp(line, "put ", 4) == 0;
        ended = strcmp(line, "end") == 0;
        if (!ended) {
            good = (put || strncmp(line, "drop ", 5) == 0) &&
                   sscanf(line + (put ? 4 : 5), "%d %d %n", &entry_point, &had, &used) == 2 &&
                   take_name(line + (put ? 4 : 5) + used);
            files[journal->count++] = (heft__journal_file){.name = line + (put ? 4 : 5) + used,
                                                           .entry_point = entry_point != 0,
                                                           .put = put,
                                                           .had = had != 0};
        }
    }
    journal->files = files;
    return good && ended ? HEFT_OK
                         : heft__fail(err, HEFT_FORMAT, "journal '%s' is malformed", HEFT__JOURNAL);
}

static heft_status take_back(heft__arena *arena, int folder, int fd, const char **rest_of_work,
                             heft_error *err)
{
    heft__journal journal = {.folder = folder, .old = -1, .new = -1};
    char *text = NULL, *work = NULL;
    heft_status status = read_text(arena, fd, &text, err);
    if (status == HEFT_OK) {
        status = text ? parse(arena, text, &work, &journal, err)
                      : heft__fail(err, HEFT_FORMAT, "journal '%s' is malformed", HEFT__JOURNAL);
    }
    int at = status == HEFT_OK ? heft__dir_open(folder, work) : -1;
    journal.old = at >= 0 ? heft__dir_open(at, "old") : -1;
    journal.new = at >= 0 ? heft__dir_open(at, "new") : -1;
    if (status == HEFT_OK && (journal.old < 0 || journal.new < 0 || !heft__journal_back(&journal) ||
                              unlinkat(folder, HEFT__JOURNAL, 0) != 0 || !heft__sync(folder))) {
        status = heft__fail_io(err, errno,
                               "an interrupted write left this folder between two checkpoints; "
                               "heft cannot undo it");
    }
    *rest_of_work = status == HEFT_OK ? work : NULL;
    heft__dir_close(&journal.old);
    heft__dir_close(&journal.new);
    heft__dir_close(&at);
    return status;
}

/* One look: *busy if another process holds the journal. */
static heft_status recover_once(heft_ctx *ctx, int folder, bool *busy, heft_error *err)
{
    *busy = false;
    int fd = heft__open_at(folder, HEFT__JOURNAL, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
    if (fd < 0 && (errno == EACCES || errno == EPERM || errno == EROFS)) {
        fd = heft__open_at(folder, HEFT__JOURNAL, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    }
    if (fd < 0) {
        return errno == ENOENT
                   ? HEFT_OK
                   : heft__fail_io(err, errno, "cannot open the journal '%s'", HEFT__JOURNAL);
    }
    heft__arena arena;
    heft__arena_init(&arena, ctx);
    const char *work = NULL;
    heft_status status = HEFT_OK;
    struct stat opened, named;
    *busy = heft__lock_try(fd, LOCK_EX) != 1 && heft__lock_try(fd, LOCK_SH) != 1;
    if (!*busy && fstat(fd, &opened) == 0 &&
        fstatat(folder, HEFT__JOURNAL, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
        opened.st_ino == named.st_ino) { /* else its owner has finished meanwhile */
        status = take_back(&arena, folder, fd, &work, err);
    }
    if (work) {
        heft__record record;
        int at = heft__dir_open(folder, work);
        heft_error ignored;
        const bool again = at >= 0 && heft__record_read(&arena, at, &record, &ignored) == HEFT_OK &&
                           record.key != NULL;
        if (at >= 0) {
            heft__record_fini(&arena, &record);
        }
        heft__dir_close(&at);
        if (!again) {
            (void)heft__dir_remove(folder, work);
        }
    }
    heft__arena_fini(&arena);
    heft__dir_close(&fd);
    return status;
}

heft_status heft__journal_recover(heft_ctx *ctx, int folder, heft_error *err)
{
    const struct timespec pause = {.tv_nsec = 10000000};
    bool busy = true;
    for (unsigned tries = 0; busy && tries < WAIT_TRIES; tries++) {
        heft_status status = tries == 0 ? HEFT_OK : heft__tell_progress(ctx, "waiting", 0, 0, err);
        if (status == HEFT_OK) {
            status = recover_once(ctx, folder, &busy, err);
        }
        if (status != HEFT_OK) {
            return status;
        }
        if (busy) {
            (void)nanosleep(&pause, NULL);
        }
    }
    return busy ? heft__fail(err, HEFT_IO, "another process is replacing the checkpoint") : HEFT_OK;
}

heft_status heft__folder_recover(heft_ctx *ctx, const char *path, heft_error *err)
{
    int folder = heft__open_at(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
    if (folder < 0) { /* one that may be entered but not listed has a journal all the same */
        folder = heft__open_at(AT_FDCWD, path, O_PATH | O_DIRECTORY, 0);
    }
    if (folder < 0) {
        return HEFT_OK; /* whoever opens the files says why */
    }
    heft_status status = heft__journal_recover(ctx, folder, err);
    heft__dir_close(&folder);
    return heft__add_path(status, err, path);
}
