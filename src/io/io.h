/* The internal header of the io layer.
 *
 * What it does: reads files (inputs), writes folders that become visible either complete or not at
 * all, and asks the kernel how much memory this process has. It knows bytes and file names, but not
 * their meaning.
 * May include: base.
 * Rules: only regular files are opened, and opening never blocks. The library itself reads with
 * pread, never through a mapping: a file that shrinks or a failing disk results in a status with an
 * offset, not in a signal. Mappings are only handed to the caller; heft__input_touch reads their
 * pages into memory by a system call that reports faults. */
#ifndef HEFT__IO_IO_H
#define HEFT__IO_IO_H

#include "base/base.h"

#include <sys/types.h>

/* ---- source: a file, bytes in memory or a caller's reader to read from; refcounted ------------ */
typedef struct heft__input heft__input;

/* Errors: NOT_FOUND, IO, UNSUPPORTED for anything that is not a regular file. */
heft_status heft__input_open(heft_ctx *ctx, const char *path, heft__input **out, heft_error *err);
/* Bytes are borrowed until the source is freed; `name` is copied and is the path in errors.
 */
heft_status heft__input_from_bytes(heft_ctx *ctx, const char *name, const void *bytes,
                                   size_t length, heft__input **out, heft_error *err);
/* A caller's own way to its bytes: as heft_reader, which has the words. */
typedef struct heft__reader {
    int64_t (*read_at)(void *user, uint64_t offset, void *dst, size_t length);
    const void *(*map)(void *user); /* may be NULL, or give NULL: it cannot be mapped */
    void *user;
} heft__reader;
heft_status heft__input_from_reader(heft_ctx *ctx, const char *name, const heft__reader *reader,
                                    uint64_t size, heft__input **out, heft_error *err);
/* Call release(user) when the last reference is gone. Of bytes or a reader, before it is shared. */
void heft__input_on_release(heft__input *source, void (*release)(void *user), void *user);
heft__input *heft__input_ref(heft__input *source);
void heft__input_unref(heft__input *source);
uint64_t heft__input_size(const heft__input *source); /* when it was opened */
/* What tells a file, and one version of it, from others: as its descriptor said when it was opened. */
typedef struct heft__identity {
    uint64_t device, inode, bytes;
    int64_t seconds, nanoseconds;               /* of the last change of its bytes */
    int64_t change_seconds, change_nanoseconds; /* of anything about it */
} heft__identity;
struct stat;
heft__identity heft__identity_of(const struct stat *facts);
heft__identity heft__path_identity(const char *path);                  /* zeros if there is none */
const heft__identity *heft__input_identity(const heft__input *source); /* NULL: not a file; lent */
/* IO if the file is not as it was when it was opened. */
heft_status heft__input_unchanged(heft__input *source, heft_error *err);
/* Whether its path still names this file. */
bool heft__input_is_current(const heft__input *source);
const char *heft__input_path(const heft__input *source);

/* Read exactly `length` bytes. Past the end as it was when opened: FORMAT; the file has shrunk
 * since, or the disk fails: IO. offset is the first byte that is missing, the path is filled. Any
 * number of threads at once. */
heft_status heft__input_read(heft__input *source, uint64_t offset, void *dst, size_t length,
                             heft_error *err);
/* The whole file mapped read-only and shared, made at the first call and kept until the source is
 * gone. UNSUPPORTED if a reader does not map. */
heft_status heft__input_map(heft__input *source, const uint8_t **base, heft_error *err);
/* The same as a private copy: pages are the file's until they are written to, and then this
 * process's own. No memory is reserved for them. Of a file only. */
heft_status heft__input_map_private(heft__input *source, uint8_t **base, heft_error *err);
bool heft__input_is_file(const heft__input *source);
/* Whether mapping is worth trying: false for private copies of what is no file, and for readers that do
 * not map, which are asked. */
bool heft__input_can_map(heft__input *source, bool private);
/* Whether a byte stands at a multiple of `alignment`, a power of two of at most a page, when the source is
 * mapped. Of a source that can be mapped. */
bool heft__input_is_aligned(heft__input *source, uint64_t offset, size_t alignment);
/* Bring a range in without touching it from user space: IO with the offset if it cannot be read. */
heft_status heft__input_touch(heft__input *source, uint64_t offset, uint64_t length,
                              heft_error *err);
/* The same through one of its mappings. */
heft_status heft__input_touch_at(heft__input *source, const uint8_t *base, uint64_t offset,
                                 uint64_t length, heft_error *err);
/* Enter mapped memory into this process's page tables, all at once; false if a page cannot be read. True as
 * well if the kernel does not support it: pages are then entered one by one. */
bool heft__touch_memory(const void *memory, size_t length);
/* What this process has in memory, and what it has mapped; zeros and false where that is unknown. */
bool heft__process_memory(uint64_t *resident, uint64_t *mapped);
/* Bytes of a page of memory, as the kernel was built: 4 KiB, 16 or 64 KiB on some aarch64 systems. */
uint64_t heft__page_bytes(void);
/* Of a huge page: what one page of the page tables describes, whose entries have 8 bytes. */
uint64_t heft__huge_page_bytes(uint64_t page);
/* Whether it may not map as much as it wants (ulimit -v), and how much it may. */
bool heft__address_space(uint64_t *limit);
/* Drop whole pages of mapped memory from the page tables. */
void heft__forget_memory(const void *memory, size_t length);
/* Copy out of a mapping whose file may shrink meanwhile: IO instead of SIGBUS. */
heft_status heft__copy_mapped(void *dst, const void *src, size_t length, heft_error *err);
/* Hold no descriptor between reads from now on: a checkpoint may have more files than a process may
 * open. The file is known again by device and inode; another in its place is IO. */
void heft__input_park(heft__input *source);
/* ---- far and cold files (cold.c) ------------------------------------------------------------- */
/* How much of a range is in the page cache, 0 to 1, by samples of it; 1 where that is unknown. */
double heft__input_residency(heft__input *source, uint64_t offset, uint64_t length);
/* "NFS", "FUSE", ... for a file system that is a network's, or may be; NULL for a disk's. */
const char *heft__input_network(heft__input *source);
/* As heft__input_read, but with direct reads where dst has the file's phase: dst and offset are equal
 * modulo the block size. spill: the rest of the first and of the last block may be written over. */
#define HEFT__DIRECT_BLOCK 4096
heft_status heft__input_read_direct(heft__input *source, uint64_t offset, void *dst, size_t length,
                                    bool spill, heft_error *err);
/* Read a small file whole (at most `limit` bytes: LIMIT), NUL-terminated, into the
 * arena. */
heft_status heft__read_file(heft__arena *arena, const char *path, uint64_t limit, char **text,
                            size_t *length, heft_error *err);
/* The same of a file that the folder may have: *text is NULL if it is not there. */
heft_status heft__read_beside(heft__arena *arena, const char *folder, const char *name,
                              uint64_t limit, char **text, size_t *length, heft_error *err);
/* The same of a file that is open. */
heft_status heft__read_input(heft__arena *arena, heft__input *input, uint64_t limit, char **text,
                             size_t *length, heft_error *err);

/* ---- segment: one copy on a host, shared by processes of one user (segment.c) ----------------- */
typedef struct heft__segment heft__segment;

typedef struct heft__segment_request {
    const void *what; /* tells what it holds from anything else; compared whole, at most 16 MiB */
    size_t what_bytes;
    const char *source; /* for those who list the copies: what it is made of; NULL: not told */
    uint64_t bytes;
    unsigned patience_ms; /* of waiting for a builder that shows no sign of work; 0: 60 s */
    bool private;         /* map the sealed bytes copy-on-write: a write stays in this process */
} heft__segment_request;

/* Join the existing segment, or create an empty one to be filled and sealed; others that ask meanwhile
 * wait. Waiting can be cancelled through the progress callback. Nothing of the request is kept.
 * UNSUPPORTED, here and from heft__segment_seal: there can be no segment here (no memfd, no private
 * folder, a register that is full or cannot be written, a builder that shows no sign of work), and the
 * caller may go on without. */
heft_status heft__segment_open(heft_ctx *ctx, const heft__segment_request *request,
                               heft__segment **out, heft_error *err);
bool heft__segment_is_new(const heft__segment *segment); /* to be filled */
/* Its bytes: to be written while it is new, else read only, or copy-on-write if the request said so.
 * Changes when it is sealed. */
uint8_t *heft__segment_base(const heft__segment *segment);
/* While it is filled: tell those who wait that the work goes on. Any thread, any number of times. */
void heft__segment_beat(heft__segment *segment);
heft_status heft__segment_seal(heft__segment *segment, heft_error *err);
/* The kernel frees the bytes when the last process closes or dies. NULL allowed. */
void heft__segment_close(heft__segment *segment);

/* ---- names of files -------------------------------------------------------------------------- */
char *heft__path_join(heft__arena *arena, const char *folder,
                      const char *name);       /* NULL if no memory */
const char *heft__path_base(const char *path); /* after the last slash */
bool heft__path_is_folder(const char *path);
bool heft__path_is_file(const char *path); /* a regular file, or a link to one */
/* A device, pipe or socket. */
bool heft__path_is_special(const char *path);
bool heft__path_exists(const char *path);
/* Whether two paths name one file or folder (device and inode). */
bool heft__path_same(const char *a, const char *b);
/* Whether a was changed over `seconds` after b. */
bool heft__path_is_newer(const char *a, const char *b, unsigned seconds);
/* A folder at one moment: readers of several files compare it to see that nothing was replaced
 * meanwhile. */
typedef struct heft__snapshot {
    heft__identity folder; /* zeros: none */
    bool young;            /* changed so lately that its times tell little */
} heft__snapshot;
void heft__snapshot_take(const char *folder, heft__snapshot *snapshot);
typedef enum heft__since {
    HEFT__UNCHANGED,
    HEFT__CHANGED, /* or it may be: files opened meanwhile have to be compared, heft__input_is_current() */
    HEFT__REPLACED /* by another folder, or a journal is at work in it */
} heft__since;
heft__since heft__snapshot_compare(const char *folder, const heft__snapshot *snapshot);

/* The names in a folder, in byte order, in the arena. An error where it cannot be listed. */
heft_status heft__folder_names(heft__arena *arena, const char *path, const char *const **names,
                               size_t *count, heft_error *err);

/* ---- tree: a folder of a folder, with all that it holds (subtree.c) --------------------------------- */
#define HEFT__SUBTREE_DEPTH 16 /* of folders in folders */

typedef struct heft__subtree_entry {
    const char *path; /* from the top: "1_Pooling", then "1_Pooling/config.json" */
    bool is_folder;
    mode_t mode;
    uint64_t bytes; /* of a file */
} heft__subtree_entry;

typedef struct heft__subtree {
    const char *above, *name;           /* where its top is; lent by who asked */
    const heft__subtree_entry *entries; /* a folder before what it holds; the rest in byte order */
    size_t count;                       /* 0: left out as a whole */
    uint64_t bytes;
} heft__subtree;

/* A path's folder and all above it, as far as they exist. */
typedef struct heft__lineage {
    heft__identity *list;
    size_t count;
} heft__lineage;
heft_status heft__lineage_of(heft__arena *arena, const char *path, heft__lineage *out,
                             heft_error *err);

typedef struct heft__subtree_rules {
    heft__lineage around; /* folders that are left: the one that is written, and what it is in */
    /* Whether a folder is part of the tree, by its path and what it holds; NULL: any is. */
    bool (*wanted)(void *user, const char *path, const char *const *names, size_t count);
    /* Called for what is left: an unwanted folder, a link to a folder or to nothing, a pipe, a device, what
     * is too deep. Not for what is passed over. NULL: nothing is called. */
    heft_status (*left)(void *user, const char *path, bool is_folder, heft_error *err);
    void *user;
} heft__subtree_rules;

/* Whether a name is no part of any tree: hidden, a temporary of ours, what a system or Python puts there. */
bool heft__subtree_is_passed_over(const char *name);
/* List `name` of the folder `above`, in the arena; both are lent. IO where a folder cannot be listed. */
heft_status heft__subtree_list(heft__arena *arena, const char *above, const char *name,
                               const heft__subtree_rules *rules, heft__subtree *out,
                               heft_error *err);

/* ---- folder writer: makes a folder, or one file, appear complete or not at all ------------------
 *
 * begin -> (file_begin, write*, file_end)* -> commit | free.
 * Files are written into a work folder beside the destination. The commit renames it to a new place, or
 * exchanges it with the folder that is there, with links to the files that stay; where folders cannot be
 * exchanged, files are moved one by one under a journal. Until commit nothing that was there is touched.
 * One process at a time: begin takes the destination's lock. Source: docs/transactions.md. */
typedef struct heft__folder_writer heft__folder_writer;

typedef struct heft__folder_options {
    const char *resume; /* key of letters and digits under which finished files are kept if the work
                         * does not end; NULL: no */
    const char *single; /* write this one file of the folder, and nothing else of it; NULL: no */
    bool wait;          /* for another process that writes to the destination, instead of EXISTS */
    bool look;          /* only look at what is there, and never write: a dry run */
    mode_t file_mode, folder_mode; /* permissions that the new ones may have at most; 0: no limit */
} heft__folder_options;

/* Options are copied, NULL is none of them; their texts are lent until the writer is gone. EXISTS if another process writes to
 * the destination; IO if it cannot be listed. */
heft_status heft__folder_begin(heft_ctx *ctx, const char *path, const heft__folder_options *options,
                               heft__folder_writer **out, heft_error *err);
/* Remove what writes to a destination left that did not end; where that cannot be, it stays. */
void heft__folder_tidy(heft_ctx *ctx, const char *path);
/* Refuses a folder that has too little room for what is to come, what is kept aside: IO with both
 * numbers. */
heft_status heft__folder_need(heft__folder_writer *writer, uint64_t bytes, heft_error *err);
/* One file is open at a time. `entry_point`: what a loader looks for; where files are moved one by one,
 * its predecessor goes first and it comes last. */
heft_status heft__folder_file_begin(heft__folder_writer *writer, const char *name, bool entry_point,
                                    heft_error *err);
/* Take over a finished file of an earlier run with the same resume key, if it has this size. */
heft_status heft__folder_file_keep(heft__folder_writer *writer, const char *name, bool entry_point,
                                   uint64_t bytes, bool *kept, heft_error *err);
heft_status heft__folder_write(heft__folder_writer *writer, const void *bytes, size_t length,
                               heft_error *err);
heft_status heft__folder_write_at(heft__folder_writer *writer, uint64_t offset, const void *bytes,
                                  size_t length, heft_error *err);
heft_status heft__folder_file_end(heft__folder_writer *writer, heft_error *err); /* fsync */
/* A tree as one entry of the folder. Its files are written by the callback, with heft__folder_write(). */
typedef struct heft__subtree_copy {
    heft_status (*copy)(void *user, const char *path, heft_error *err);
    void *user;
} heft__subtree_copy;
heft_status heft__folder_subtree(heft__folder_writer *writer, const heft__subtree *tree,
                                 const heft__subtree_copy *copy, heft_error *err);
/* What the destination has in a folder of this name and the tree does not, hidden names aside: *extra is the
 * first of it, NULL if there is none or all of it is to be kept (but for what a file of the tree leaves no
 * place for). link: it gets a second name in the tree that was written, as hidden names do. */
heft_status heft__folder_subtree_extra(heft__folder_writer *writer, const heft__subtree *tree,
                                       bool keep, bool link, const char **extra, heft_error *err);
/* Whether the destination has all of a tree, byte by byte, and nothing else there. */
bool heft__folder_has_subtree(heft__folder_writer *writer, const heft__subtree *tree);
/* A file of the folder that is to be gone after commit. The name is copied. */
heft_status heft__folder_remove(heft__folder_writer *writer, const char *name, bool entry_point,
                                heft_error *err);
/* Names in the folder as it is now, without ours; in byte order, lent until the writer is gone. */
heft_status heft__folder_list(heft__folder_writer *writer, const char *const **names, size_t *count,
                              heft_error *err);
/* Whether a name in the destination is a folder, and no link to one. */
bool heft__folder_has_folder(const heft__folder_writer *writer, const char *name);
/* Whether a name in the destination is this very file, through links. */
bool heft__folder_holds(const heft__folder_writer *writer, const char *name, uint64_t device,
                        uint64_t inode);
/* Whether a name in the destination is the same in another folder: a file with the same bytes, or a folder
 * all of whose entries are. */
bool heft__folder_has_copy(const heft__folder_writer *writer, const char *folder, const char *name);
/* Whether files of an earlier run with the same resume key are there to be taken over. */
bool heft__folder_has_earlier(const heft__folder_writer *writer);
/* Whether a path leads to a file of the destination. */
bool heft__folder_has_path(const heft__folder_writer *writer, const char *path);
heft_status heft__folder_commit(heft__folder_writer *writer,
                                heft_error *err);    /* the writer must still be freed */
void heft__folder_free(heft__folder_writer *writer); /* abort unless committed; NULL allowed */
/* One small file, by a folder writer of its own. */
heft_status heft__write_file(heft_ctx *ctx, const char *path, const void *bytes, size_t length,
                             heft_error *err);
/* For readers: take back an interrupted commit to the folder, if there is one; wait for one at work. */
heft_status heft__folder_recover(heft_ctx *ctx, const char *path, heft_error *err);

#endif
