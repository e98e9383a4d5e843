/* record.h - private to the layer: what a write leaves behind for those who come after a crash.
 *
 *   record    in a work folder: which files are finished, what replaces what
 *   journal   in a destination whose files are being replaced one by one: what is old, what is new
 *
 * Both are lines of text, a word and its values, the name last, with %XX for bytes that a line cannot hold.
 * Nothing in them is trusted: a name is one component, and a file is known again by inode, size and time.
 * Source: docs/transactions.md. */
#ifndef HEFT__IO_RECORD_H
#define HEFT__IO_RECORD_H

#include "io/io.h"

#include <sys/stat.h>

#define HEFT__TEMPORARY ".heft-tmp-"
#define HEFT__JOURNAL HEFT__TEMPORARY "journal"
#define HEFT__RECORD "record"
#define HEFT__RECORD_BYTES ((uint64_t)64 << 20)

/* ---- record ------------------------------------------------------------------------------------ */
typedef struct heft__record {
    const char *key; /* of a write that can be resumed, or NULL */
    uint64_t
        staged_inode;   /* of the folder that was to be exchanged with the destination; 0: none */
    heft__map finished; /* name -> number in `files` */
    heft__map dropped;  /* names that the new checkpoint does without */
    struct heft__record_file {
        const char *name;
        uint64_t inode, bytes;
        int64_t seconds, nanoseconds; /* of the last change of its bytes */
    } * files;                        /* of the context's memory */
    size_t count, cap;
} heft__record;

/* Read the record of an open work folder into the arena; one that is missing or malformed is empty. */
heft_status heft__record_read(heft__arena *arena, int work, heft__record *record, heft_error *err);
void heft__record_fini(heft__arena *arena, heft__record *record);
/* Whether `facts` are those of the finished file. */
bool heft__record_matches(const struct heft__record_file *file, const struct stat *facts);
/* One line each. */
void heft__record_head(heft__buffer *text, const char *key);
void heft__record_file(heft__buffer *text, const char *name, const struct stat *facts);
void heft__record_staged(heft__buffer *text, uint64_t inode);
void heft__record_drop(heft__buffer *text, const char *name);

/* ---- journal ----------------------------------------------------------------------------------- */
typedef struct heft__journal_file {
    const char *name;
    bool entry_point; /* a loader finds the checkpoint by it: out first, in last */
    bool put;         /* there is a new one; else the old one only goes */
    bool had;         /* there is an old one */
} heft__journal_file;

typedef struct heft__journal {
    int folder, old, new; /* the destination; in the work folder, what was there and what comes */
    const heft__journal_file *files;
    size_t count;
} heft__journal;

void heft__journal_write(heft__buffer *text, const char *work, const heft__journal *journal);
/* Replace the old files by the new ones; can be called again wherever it stopped. */
bool heft__journal_forward(const heft__journal *journal);
/* Put everything back, wherever the above stopped, and wherever this one did. */
bool heft__journal_back(const heft__journal *journal);
/* Whether every file is as the new checkpoint has it. */
bool heft__journal_is_done(const heft__journal *journal);
/* Take back what a journal in `folder` names, if there is one. Another process that is at work is waited
 * for. Only for the owner of the destination's lock, or from heft__folder_recover(). */
heft_status heft__journal_recover(heft_ctx *ctx, int folder, heft_error *err);

#endif
