/* tree.h - what stands in a folder: every name, mode and byte; and what heft reads from it. */
#ifndef HEFT_TESTS_FAULTS_TREE_H
#define HEFT_TESTS_FAULTS_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct tree_entry {
    char path[256]; /* below the folder; "" is the folder or file itself */
    mode_t mode;
    uint64_t bytes, hash;
    int64_t mtime; /* of what is nobody's to replace, in nanoseconds; else 0 */
} tree_entry;

#define TREE_ENTRIES 200
typedef struct tree {
    size_t count; /* 0: there is nothing */
    tree_entry entries[TREE_ENTRIES];
} tree;

/* What a reader got: weights, and the config that goes with them. */
typedef struct meaning {
    int code; /* 0: it loads */
    uint64_t weights, config;
} meaning;

uint64_t tree_hash(const void *bytes, size_t length, uint64_t seed);
/* All times as well: for a source. Names of unfinished work are left out. */
void tree_read(const char *path, bool times, tree *out);
bool tree_same(const tree *a, const tree *b);
/* The first difference as text. */
void tree_difference(const tree *a, const tree *b, char *text, size_t cap);
/* Whether there is a config, and a name of weights that a loader looks for. */
bool tree_loads(const tree *t);
/* Names that hold "heft-tmp-" below a path; the first of them as text. */
size_t tree_leftovers(const char *path, char *first, size_t cap);

void tree_remove(const char *path);
void tree_copy(const char *from, const char *to); /* modes and times too */
void write_text(const char *path, const char *text, mode_t mode);
char *read_bytes(const char *path, size_t *length); /* malloc; NULL if it cannot be read */

/* Read all tensors through heft, in this process. */
void meaning_read(const char *path, meaning *out, char *message, size_t cap);

void die(const char *what, const char *path);

#endif
