/* transaction.h - private to the layer: the inside of a folder writer.
 *
 *   folder.c    begin, files, end
 *   subtree.c   folders of files: listed, written, compared
 *   work.c      the work folder: made, found again, cleaned up
 *   commit.c    how what was written becomes what is there */
#ifndef HEFT__IO_TRANSACTION_H
#define HEFT__IO_TRANSACTION_H

#include "io/dir.h"
#include "io/lock.h"
#include "io/record.h"

typedef struct heft__out_entry {
    const char *name;
    bool entry_point;
} heft__out_entry;

struct heft__folder_writer {
    heft_ctx *ctx;
    heft__arena arena;
    heft__folder_options options;
    const char *path; /* as the caller wrote it, without slashes at its end */
    const char *name,
        *stem; /* of the destination in `parent`; the stem is short enough for prefixes */
    const char *made_parent; /* highest parent folder that begin() made, NULL if none */
    int parent;              /* -1: it cannot be opened, or has none */
    int folder;              /* the destination; -1 while there is none */
    struct stat was;         /* of folder */
    mode_t files_were;       /* the widest mode of the files there; 0 if there are none */
    heft__lock lock;
    /* the work folder: `home`/`work_name`/{new/, record, part} */
    int home; /* borrowed: parent or folder */
    char work_name[300];
    int work, staged;
    int record_fd; /* of a write that can be resumed */
    heft__record earlier;
    uint64_t kept_bytes; /* of files that an earlier run finished */
    bool stuck, committed;
    heft__out_entry *files, *removed;
    size_t file_count, file_cap, removed_count, removed_cap;
    int fd; /* the open file, -1 if none */
    const char *open_name;
    uint64_t position;
};

/* ---- folder.c ---------------------------------------------------------------------------------- */
/* An entry of the destination that the commit puts in, no entry point. */
heft_status heft__writer_add(heft__folder_writer *writer, const char *name, heft_error *err);
/* A file that is not in the destination's folder itself. label: for errors, lent until its end. */
heft_status heft__part_begin(heft__folder_writer *writer, const char *label, heft_error *err);
/* Put it into `to`, with the mode that the file of this name in `old` (-1: none) allows. facts: may be NULL. */
heft_status heft__part_end(heft__folder_writer *writer, int to, int old, const char *name,
                           struct stat *facts, heft_error *err);
/* ---- work.c ------------------------------------------------------------------------------------ */
/* Remove what writes to this destination left that did not end; one with the writer's resume key is
 * taken over. Under the lock. */
heft_status heft__work_clean(heft__folder_writer *writer, heft_error *err);
/* Make the work folder unless one was taken over. */
heft_status heft__work_make(heft__folder_writer *writer, heft_error *err);
/* Move it into the destination. */
bool heft__work_move_inside(heft__folder_writer *writer);
/* Remove it, when nothing in it is needed any more. */
void heft__work_remove(heft__folder_writer *writer);
/* Write the record anew. */
heft_status heft__work_record(heft__folder_writer *writer, const heft__buffer *text,
                              heft_error *err);
/* What was the destination, in a work folder after an exchange: files that neither the new checkpoint
 * replaces nor drops, and that are not in `now` yet, move there. false if one could not. */
bool heft__work_settle(int old, int now, const heft__map *written, const heft__map *dropped);
/* ---- commit.c ---------------------------------------------------------------------------------- */
heft_status heft__commit_new(heft__folder_writer *writer, heft_error *err);
heft_status heft__commit_replace(heft__folder_writer *writer, heft_error *err);

static inline bool heft__is_temporary(const char *name)
{
    return strncmp(name, HEFT__TEMPORARY, strlen(HEFT__TEMPORARY)) == 0;
}

#endif
