/* dir.h - private to the layer: work below held directory descriptors.
 *
 * Names are single components, and the last one is never followed if it is a link: another user who may write
 * in the same folder can neither redirect what is written nor what is removed. Functions that return bool
 * leave the reason in errno. */
#ifndef HEFT__IO_DIR_H
#define HEFT__IO_DIR_H

#include "io/io.h"

#include <sys/stat.h>

#define HEFT__RANDOM_NAME 17 /* 16 hexadecimal digits and NUL */

/* Open a folder below `at`; -1 if it is none, or a link. */
int heft__dir_open(int at, const char *name);
void heft__dir_close(int *fd); /* sets it to -1 */
/* openat(2), begun again after an interruption. */
int heft__open_at(int at, const char *name, int flags, mode_t mode);
bool heft__sync(int fd);
/* Write all of it; *done counts what was written, also on failure. */
bool heft__write_all(int fd, const void *bytes, size_t length, uint64_t offset, size_t *done);
/* Call fn for every name but "." and ".."; false where listing fails, or where fn says false. */
typedef bool (*heft__dir_fn)(void *user, const char *name);
bool heft__dir_each(int dir, heft__dir_fn fn, void *user);
/* The names in byte order. NOMEM, or IO if the folder cannot be listed. */
heft_status heft__dir_list(heft__arena *arena, int dir, const char *const **names, size_t *count,
                           heft_error *err);
/* Remove a folder and all that it holds; other file systems mounted below it stay. */
bool heft__dir_remove(int at, const char *name);
/* Remove a file, with a second attempt. */
bool heft__unlink_at(int at, const char *name);
/* Give an entry a second name in another folder: a hard link, or a folder of hard links. At most
 * HEFT__LINKS_MAX entries; false where something cannot be linked, or has attributes that a new folder
 * would lose. */
#define HEFT__LINKS_MAX 10000
bool heft__dir_link(int from, int to, const char *name, size_t *links);
/* Whether a file or folder has extended attributes that chmod and chown do not restore (ACLs, say). */
bool heft__has_attributes(int fd);
/* renameat2(2); EINVAL or ENOSYS where the file system does not know it. */
bool heft__rename_with(int from, const char *old_name, int to, const char *new_name, unsigned how);
#ifndef RENAME_NOREPLACE /* of <stdio.h>, in glibc */
#define RENAME_NOREPLACE 1u
#define RENAME_EXCHANGE 2u
#endif
/* Rename to a name that does not exist: EEXIST if it does. */
bool heft__rename_new(int from, const char *old_name, int to, const char *new_name);
bool heft__exists_at(int dir, const char *name);
/* A name that nobody can foretell; false if the kernel gives no random bytes. */
bool heft__random_name(char name[HEFT__RANDOM_NAME]);

#endif
