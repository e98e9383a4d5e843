/* tree.c - see tree.h. */
#include "tree.h"

#include <heft/heft.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TEMPORARY "heft-tmp-"

void die(const char *what, const char *path)
{
    fprintf(stderr, "faults: %s '%s': %s\n", what, path, strerror(errno));
    exit(99);
}

uint64_t tree_hash(const void *bytes, size_t length, uint64_t seed)
{
    const unsigned char *p = bytes;
    uint64_t hash = seed ^ 0x9E3779B97F4A7C15u ^ length;
    for (; length >= 8; length -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        hash = (hash ^ word) * 0xD6E8FEB86659FD93u;
        hash ^= hash >> 32;
    }
    for (; length; length--, p++) {
        hash = (hash ^ *p) * 0x100000001B3u;
    }
    return hash ^ hash >> 29;
}

char *read_bytes(const char *path, size_t *length)
{
    struct stat facts;
    char *bytes = NULL;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    *length = 0;
    if (fd >= 0 && fstat(fd, &facts) == 0) {
        bytes = malloc((size_t)facts.st_size + 1);
        ssize_t got = 1;
        while (bytes && got > 0 && *length < (size_t)facts.st_size) {
            got = read(fd, bytes + *length, (size_t)facts.st_size - *length);
            *length += got > 0 ? (size_t)got : 0;
        }
        if (bytes) {
            bytes[*length] = '\0';
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    return bytes;
}

void write_text(const char *path, const char *text, mode_t mode)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || fchmod(fd, mode) != 0) {
        die("cannot write", path);
    }
    close(fd);
}

/* ---- what is there ----------------------------------------------------------------------------- */
static void join(char *to, size_t cap, const char *folder, const char *name)
{
    if (snprintf(to, cap, "%s/%s", folder, name) >= (int)cap) {
        errno = ENAMETOOLONG;
        die("cannot join", name);
    }
}

static void add(const char *path, const char *below, bool times, tree *out)
{
    struct stat facts;
    if (lstat(path, &facts) != 0) {
        return;
    }
    if (out->count == TREE_ENTRIES) {
        errno = EOVERFLOW;
        die("too many files in", path);
    }
    tree_entry *entry = &out->entries[out->count++];
    memset(entry, 0, sizeof *entry);
    snprintf(entry->path, sizeof entry->path, "%s", below);
    entry->mode = facts.st_mode;
    if (times || strncmp(below, "/notes", 6) == 0 || strncmp(below, "/logs", 5) == 0 ||
        strstr(below, "mine")) {
        entry->mtime = (int64_t)facts.st_mtim.tv_sec * 1000000000 + (int64_t)facts.st_mtim.tv_nsec;
    }
    if (S_ISREG(facts.st_mode)) {
        size_t length;
        char *bytes = read_bytes(path, &length);
        entry->bytes = length;
        entry->hash = tree_hash(bytes, length, times ? facts.st_ino : 0);
        free(bytes);
    }
    DIR *folder = S_ISDIR(facts.st_mode) ? opendir(path) : NULL;
    for (struct dirent *e = folder ? readdir(folder) : NULL; e; e = readdir(folder)) {
        char full[512], inner[256];
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
            !strstr(e->d_name, TEMPORARY)) {
            join(full, sizeof full, path, e->d_name);
            join(inner, sizeof inner, below, e->d_name);
            add(full, inner, times, out);
        }
    }
    if (folder) {
        closedir(folder);
    }
}

static int compare(const void *a, const void *b)
{
    return strcmp(((const tree_entry *)a)->path, ((const tree_entry *)b)->path);
}

void tree_read(const char *path, bool times, tree *out)
{
    out->count = 0;
    add(path, "", times, out);
    qsort(out->entries, out->count, sizeof *out->entries, compare);
}

bool tree_same(const tree *a, const tree *b)
{
    return a->count == b->count &&
           memcmp(a->entries, b->entries, a->count * sizeof *a->entries) == 0;
}

void tree_difference(const tree *a, const tree *b, char *text, size_t cap)
{
    size_t i = 0, j = 0, used = 0;
    text[0] = '\0';
    while ((i < a->count || j < b->count) && used + 1 < cap) {
        const int order = i == a->count   ? 1
                          : j == b->count ? -1
                                          : compare(&a->entries[i], &b->entries[j]);
        const tree_entry *x = &a->entries[i], *y = &b->entries[j];
        int put = 0;
        if (order < 0) {
            put = snprintf(text + used, cap - used, " +%s", x->path);
        } else if (order > 0) {
            put = snprintf(text + used, cap - used, " -%s", y->path);
        } else if (memcmp(x, y, sizeof *x) != 0) {
            put = snprintf(text + used, cap - used, " %s(%s%s%s)", x->path,
                           x->hash != y->hash ? "bytes" : "", x->mode != y->mode ? " mode" : "",
                           x->mtime != y->mtime ? " time" : "");
        }
        used += put > 0 ? (size_t)put : 0;
        i += order <= 0;
        j += order >= 0;
    }
}

bool tree_loads(const tree *t)
{
    static const char *const names[] = {"/model.safetensors", "/model.safetensors.index.json",
                                        "/pytorch_model.bin", "/pytorch_model.bin.index.json",
                                        "/index.json"};
    bool config = false, weights = false;
    for (size_t i = 0; i < t->count; i++) {
        config |= strcmp(t->entries[i].path, "/config.json") == 0;
        for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
            if (strcmp(t->entries[i].path, names[k]) == 0) {
                weights = true;
            }
        }
    }
    return weights && config;
}

size_t tree_leftovers(const char *path, char *first, size_t cap)
{
    size_t found = 0;
    DIR *folder = opendir(path);
    for (struct dirent *e = folder ? readdir(folder) : NULL; e; e = readdir(folder)) {
        char full[512];
        if (strstr(e->d_name, TEMPORARY)) {
            if (found++ == 0) {
                snprintf(first, cap, "%s", e->d_name);
            }
        } else if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            join(full, sizeof full, path, e->d_name);
            found += tree_leftovers(full, found ? full : first, found ? sizeof full : cap);
        }
    }
    if (folder) {
        closedir(folder);
    }
    return found;
}

/* ---- copies ------------------------------------------------------------------------------------ */
void tree_remove(const char *path)
{
    if (unlink(path) == 0 || errno == ENOENT) {
        return;
    }
    DIR *folder = opendir(path);
    for (struct dirent *e = folder ? readdir(folder) : NULL; e; e = readdir(folder)) {
        char full[600];
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            join(full, sizeof full, path, e->d_name);
            tree_remove(full);
        }
    }
    if (folder) {
        closedir(folder);
    }
    if (rmdir(path) != 0) {
        die("cannot remove", path);
    }
}

void tree_copy(const char *from, const char *to)
{
    struct stat facts;
    if (lstat(from, &facts) != 0) {
        die("cannot look at", from);
    }
    const struct timespec times[] = {facts.st_atim, facts.st_mtim};
    if (S_ISREG(facts.st_mode)) {
        size_t length;
        char *bytes = read_bytes(from, &length);
        const int fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (!bytes || fd < 0 || write(fd, bytes, length) != (ssize_t)length) {
            die("cannot copy", to);
        }
        close(fd);
        free(bytes);
    } else {
        DIR *folder = opendir(from);
        if (!folder || mkdir(to, 0700) != 0) {
            die("cannot copy", to);
        }
        for (struct dirent *e = readdir(folder); e; e = readdir(folder)) {
            char full[512], copy[512];
            if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
                join(full, sizeof full, from, e->d_name);
                join(copy, sizeof copy, to, e->d_name);
                tree_copy(full, copy);
            }
        }
        closedir(folder);
    }
    if (chmod(to, facts.st_mode & 07777) != 0 || utimensat(AT_FDCWD, to, times, 0) != 0) {
        die("cannot copy", to);
    }
}

/* ---- what it means ----------------------------------------------------------------------------- */
static heft_status add_tensor(const heft_checkpoint *checkpoint, size_t i, meaning *out,
                              heft_error *err)
{
    const heft_tensor_info *info = heft_checkpoint_info(checkpoint, i);
    void *bytes = malloc((size_t)info->size_bytes + 1);
    heft_status status = heft_checkpoint_read(checkpoint, i, bytes, info->size_bytes, err);
    if (status == HEFT_OK) {
        uint64_t hash = tree_hash(bytes, (size_t)info->size_bytes, (uint64_t)info->dtype);
        hash = tree_hash(info->shape, info->rank * sizeof *info->shape, hash);
        out->weights += tree_hash(info->name, strlen(info->name), hash); /* in any order */
    }
    free(bytes);
    return status;
}

void meaning_read(const char *path, meaning *out, char *message, size_t cap)
{
    heft_error err = {0};
    heft_source *source = NULL;
    heft_ctx *ctx = heft_ctx_new(NULL);
    *out = (meaning){0};
    heft_status status = heft_source_open(ctx, path, NULL, &source, &err);
    const heft_checkpoint *checkpoint = status == HEFT_OK ? heft_source_checkpoint(source) : NULL;
    if (status == HEFT_OK && !checkpoint) {
        status = HEFT_NOT_FOUND;
    }
    if (status == HEFT_OK) {
        status = heft_source_check_index(source, &err);
    }
    for (size_t i = 0; status == HEFT_OK && i < heft_checkpoint_count(checkpoint); i++) {
        status = add_tensor(checkpoint, i, out, &err);
    }
    const heft_config *config = source ? heft_source_config(source) : NULL;
    if (config && heft_config_architecture(config)) {
        const char *class_name = heft_config_architecture(config);
        out->config = tree_hash(class_name, strlen(class_name), heft_config_dtype(config));
    }
    out->code = heft_status_exit_code(status);
    snprintf(message, cap, "%s", err.message);
    heft_source_close(source);
    heft_ctx_free(ctx);
}
