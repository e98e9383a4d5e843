/* power.c - see power.h. */
#include "power.h"

#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct name {
    char *text;
    size_t node;
} name;

typedef struct listing {
    name *names;
    size_t count;
} listing;

/* One version of a file or folder. */
typedef struct version {
    bool known;
    char *bytes;
    size_t length;
    listing list;
    struct stat facts;
} version;

typedef struct node {
    uint64_t inode;
    bool is_folder, is_there; /* at the cut */
    version kept, now;        /* on the disk, and as processes see it */
    size_t home;              /* the folder that holds it now */
    const char *home_name;
    bool reachable;
    char *written; /* path of the first copy */
    uint64_t new_inode;
} node;

/* A name that the disk holds. */
typedef struct place {
    size_t folder, node;
    const char *text;
    bool dropped;
} place;

struct power {
    char root[256];
    node *nodes;
    size_t count, cap;
    int pending; /* a descriptor whose fsync is under way; -1 */
    place *places;
    size_t place_count, place_cap;
};

/* ---- reading ----------------------------------------------------------------------------------- */
static size_t find(power *p, uint64_t inode)
{
    for (size_t i = 0; i < p->count; i++) {
        if (p->nodes[i].inode == inode) {
            return i;
        }
    }
    if (p->count == p->cap) {
        p->cap = p->cap ? p->cap * 2 : 64;
        p->nodes = realloc(p->nodes, p->cap * sizeof *p->nodes);
        if (!p->nodes) {
            die("no memory", "power");
        }
    }
    p->nodes[p->count] = (node){.inode = inode};
    return p->count++;
}

static void version_free(version *v)
{
    for (size_t i = 0; i < v->list.count; i++) {
        free(v->list.names[i].text);
    }
    free(v->list.names);
    free(v->bytes);
    *v = (version){0};
}

static void read_file(int fd, version *v)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    v->bytes = read_bytes(path, &v->length);
}

static void read_folder(power *p, int fd, version *v)
{
    const int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = again >= 0 ? fdopendir(again) : NULL;
    if (!folder) {
        die("cannot list", p->root);
    }
    for (struct dirent *e = readdir(folder); e; e = readdir(folder)) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            const size_t at = find(p, e->d_ino);
            p->nodes[at].is_folder = e->d_type == DT_DIR;
            v->list.names = realloc(v->list.names, (v->list.count + 1) * sizeof(name));
            v->list.names[v->list.count++] = (name){.text = strdup(e->d_name), .node = at};
        }
    }
    closedir(folder);
}

/* The version that a descriptor shows. */
static size_t read_version(power *p, int fd, bool kept)
{
    version v = {.known = true};
    if (fstat(fd, &v.facts) != 0) {
        die("cannot look at a file below", p->root);
    }
    const size_t at = find(p, v.facts.st_ino);
    if (S_ISDIR(v.facts.st_mode)) {
        read_folder(p, fd, &v);
    } else {
        read_file(fd, &v);
    }
    node *n = &p->nodes[at];
    n->is_folder = S_ISDIR(v.facts.st_mode);
    version_free(kept ? &n->kept : &n->now);
    *(kept ? &n->kept : &n->now) = v;
    return at;
}

static size_t read_all(power *p, int at, const char *path, bool kept)
{
    const int fd = openat(at, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        die("cannot open", path);
    }
    const size_t here = read_version(p, fd, kept);
    p->nodes[here].is_there = true;
    const listing list = kept ? p->nodes[here].kept.list : p->nodes[here].now.list;
    for (size_t i = 0; i < list.count; i++) {
        const size_t inner = read_all(p, fd, list.names[i].text, kept);
        p->nodes[inner].home = here;
        p->nodes[inner].home_name = list.names[i].text;
    }
    close(fd);
    return here;
}

power *power_new(const char *root)
{
    power *p = calloc(1, sizeof *p);
    if (!p) {
        die("no memory", root);
    }
    snprintf(p->root, sizeof p->root, "%s", root);
    p->pending = -1;
    (void)read_all(p, AT_FDCWD, root, true);
    return p;
}

static void finish_sync(power *p)
{
    if (p->pending >= 0) {
        (void)read_version(p, p->pending, true);
        close(p->pending);
        p->pending = -1;
    }
}

void power_watch(void *user, const inject_call *call)
{
    power *p = user;
    finish_sync(p);
    if (strcmp(call->name, "fsync") == 0 || strcmp(call->name, "fdatasync") == 0) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)call->pid, call->fd);
        p->pending = open(path, O_RDONLY | O_CLOEXEC);
    }
}

/* ---- choosing ---------------------------------------------------------------------------------- */
static unsigned chance(const node *n, unsigned variant, unsigned sides)
{
    return (unsigned)(tree_hash(&n->inode, sizeof n->inode, variant) >> 20) % sides;
}

static const version *chosen_folder(const node *n, unsigned variant)
{
    const bool now = n->is_there && (variant == 1 || (variant > 1 && chance(n, variant, 2)));
    return now ? &n->now : &n->kept;
}

static void mark(power *p, size_t at, unsigned variant)
{
    if (p->nodes[at].reachable) {
        return;
    }
    p->nodes[at].reachable = true;
    const listing list = chosen_folder(&p->nodes[at], variant)->list;
    for (size_t i = 0; i < list.count; i++) {
        if (p->place_count == p->place_cap) {
            p->place_cap = p->place_cap ? p->place_cap * 2 : 256;
            p->places = realloc(p->places, p->place_cap * sizeof *p->places);
        }
        p->places[p->place_count++] =
            (place){.folder = at, .node = list.names[i].node, .text = list.names[i].text};
    }
    for (size_t i = 0; i < list.count; i++) {
        if (p->nodes[list.names[i].node].is_folder) {
            mark(p, list.names[i].node, variant);
        }
    }
}

static bool is_home(const node *n, const place *at)
{
    return n->is_there && n->home == at->folder && strcmp(n->home_name, at->text) == 0;
}

static place *at_name(power *p, size_t folder, const char *text)
{
    for (size_t i = 0; i < p->place_count; i++) {
        if (!p->places[i].dropped && p->places[i].folder == folder &&
            strcmp(p->places[i].text, text) == 0) {
            return &p->places[i];
        }
    }
    return NULL;
}

/* What has one name stands at one place: where it is now if the disk knows that, else where it was. */
static void settle(power *p, size_t at)
{
    const node *n = &p->nodes[at];
    place *best = NULL;
    for (size_t i = 0; i < p->place_count; i++) {
        if (!p->places[i].dropped && p->places[i].node == at &&
            (!best || is_home(n, &p->places[i]))) {
            best = &p->places[i];
        }
    }
    /* Other names that it had may be there again, unless the disk knows of the last step. */
    const bool had_more = !n->is_folder && n->kept.known && n->kept.facts.st_nlink > 1;
    if (!best || (had_more && !is_home(n, best))) {
        return;
    }
    for (size_t i = 0; i < p->place_count; i++) {
        if (p->places[i].node == at && &p->places[i] != best) {
            p->places[i].dropped = true;
        }
    }
}

/* What is at no place, as the folder that it left was synced, is where it went. */
static void restore(power *p, size_t at, unsigned variant)
{
    const node *n = &p->nodes[at];
    bool known = !n->kept.known || !n->is_there || !p->nodes[n->home].reachable || n->home == at;
    for (size_t i = 0; !known && i < p->place_count; i++) {
        known = !p->places[i].dropped && p->places[i].node == at;
    }
    if (!known && !at_name(p, n->home, n->home_name)) {
        p->places = realloc(p->places, (p->place_count + 1) * sizeof *p->places);
        p->places[p->place_count++] = (place){.folder = n->home, .node = at, .text = n->home_name};
        p->place_cap = p->place_count;
        if (n->is_folder) { /* with all that it holds */
            mark(p, at, variant);
        }
    }
}

/* ---- writing ----------------------------------------------------------------------------------- */
static void write_file(const node *n, const char *path, unsigned variant)
{
    const unsigned side = variant > 1 ? chance(n, variant + 77, 3) : 0;
    const bool now = n->is_there && side > 0;
    const version *v = now ? &n->now : &n->kept;
    const struct stat *facts = v->known ? &v->facts : &n->now.facts;
    const bool same = n->kept.known && n->now.known && n->kept.length == n->now.length &&
                      memcmp(n->kept.bytes, n->now.bytes, n->now.length) == 0;
    char *bytes = v->known ? malloc(v->length + 1) : NULL;
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (bytes && side == 2 && now && !same) {
        memset(bytes, 0, v->length + 1); /* as long as it was, but nothing in it */
    } else if (bytes) {
        memcpy(bytes, v->bytes, v->length);
    }
    if (fd < 0 || (bytes && write(fd, bytes, v->length) != (ssize_t)v->length)) {
        die("cannot write", path);
    }
    const struct timespec times[] = {facts->st_atim, facts->st_mtim};
    if (v->known || n->now.known) {
        (void)fchmod(fd, facts->st_mode & 07777);
        (void)futimens(fd, times);
    }
    close(fd);
    free(bytes);
}

static void write_out(power *p, size_t at, const char *path, unsigned variant, unsigned depth)
{
    node *n = &p->nodes[at];
    struct stat made;
    if (n->written) {
        if (!n->is_folder && link(n->written, path) != 0) {
            die("cannot link", path);
        }
        return;
    }
    n->written = strdup(path);
    if (!n->is_folder) {
        write_file(n, path, variant);
    } else if (depth > 0 && mkdir(path, 0700) != 0) {
        die("cannot make", path);
    }
    if (stat(path, &made) != 0) {
        die("cannot look at", path);
    }
    n->new_inode = made.st_ino;
    for (size_t i = 0; n->is_folder && i < p->place_count; i++) {
        char inner[600];
        if (p->places[i].folder == at && !p->places[i].dropped) {
            snprintf(inner, sizeof inner, "%s/%s", path, p->places[i].text);
            write_out(p, p->places[i].node, inner, variant, depth + 1);
        }
    }
    n = &p->nodes[at];
    const version *v = n->now.known ? &n->now : &n->kept;
    if (n->is_folder && v->known) {
        const struct timespec times[] = {v->facts.st_atim, v->facts.st_mtim};
        (void)chmod(path, v->facts.st_mode & 07777);
        (void)utimensat(AT_FDCWD, path, times, 0);
    }
}

static uint64_t new_inode(const power *p, uint64_t inode)
{
    for (size_t i = 0; i < p->count; i++) {
        if (p->nodes[i].inode == inode && p->nodes[i].written) {
            return p->nodes[i].new_inode;
        }
    }
    return 1; /* nobody's */
}

/* The record of unfinished work names files by their inodes, which are others here. */
static void translate_record(const power *p, const char *path)
{
    size_t length, used = 0;
    struct stat facts;
    char *text = read_bytes(path, &length);
    char *out = text ? calloc(2, length + 4096) : NULL;
    if (!out || stat(path, &facts) != 0) {
        return;
    }
    for (char *line = text, *end; *line; line = end) {
        uint64_t inode;
        int head = 0, tail = 0;
        end = line + strcspn(line, "\n");
        end += *end == '\n';
        if (strncmp(line, "file ", 5) == 0 || strncmp(line, "staged ", 7) == 0) {
            head = line[0] == 'f' ? 5 : 7;
            if (sscanf(line + head, "%" SCNu64 "%n", &inode, &tail) != 1) {
                tail = 0;
            }
        }
        if (tail) {
            used += (size_t)sprintf(out + used, "%.*s%" PRIu64, head, line, new_inode(p, inode));
            line += head + tail;
        }
        memcpy(out + used, line, (size_t)(end - line));
        used += (size_t)(end - line);
    }
    write_text(path, out, facts.st_mode & 07777);
    free(out);
    free(text);
}

void power_cut(power *p, unsigned variant)
{
    finish_sync(p);
    for (size_t i = 0; i < p->count; i++) {
        p->nodes[i].is_there = false;
    }
    const size_t root = read_all(p, AT_FDCWD, p->root, false);
    p->nodes[root].home = root;
    p->nodes[root].home_name = "";
    mark(p, root, variant);
    for (size_t i = 0; i < p->count; i++) {
        const node *n = &p->nodes[i];
        if (n->is_folder || (n->is_there && n->now.facts.st_nlink == 1)) {
            settle(p, i);
        }
    }
    for (size_t i = 0; i < p->count; i++) {
        restore(p, i, variant);
    }
    const listing list = p->nodes[root].now.list;
    for (size_t i = 0; i < list.count; i++) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", p->root, list.names[i].text);
        tree_remove(path);
    }
    write_out(p, root, p->root, variant, 0);
    for (size_t i = 0; i < p->count; i++) {
        const char *path = p->nodes[i].written;
        const char *base = path ? strrchr(path, '/') : NULL;
        if (base && strcmp(base, "/record") == 0 && !p->nodes[i].is_folder) {
            translate_record(p, path);
        }
    }
}

void power_free(power *p)
{
    for (size_t i = 0; i < p->count; i++) {
        version_free(&p->nodes[i].kept);
        version_free(&p->nodes[i].now);
        free(p->nodes[i].written);
    }
    if (p->pending >= 0) {
        close(p->pending);
    }
    free(p->nodes);
    free(p->places);
    free(p);
}
