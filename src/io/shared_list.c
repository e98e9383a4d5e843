/* shared_list.c - the shared copies of this user: list them, remove them.
 *
 * A copy is listed if a process proves to hold it, or if one builds it, which the lock on its register
 * shows. Removing takes away the register only: whoever has the memory keeps it. */
#include <heft/shared.h>

#include "io/dir.h"
#include "io/lock.h"
#include "io/segment.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

struct memory {
    heft_shared_list list; /* first: the public pointer is this one */
    heft__arena arena;     /* holds a reference on its context */
};

struct listing {
    struct memory *memory;
    heft_shared_copy *copies;
    int64_t *pids; /* of the copy at hand */
    size_t count, cap, pid_count, pid_cap;
    char *text; /* [HEFT__REGISTER_BYTES] */
};

/* ---- one copy -------------------------------------------------------------------------------- */
static bool add_pid(struct listing *l, long pid)
{
    for (size_t i = 0; i < l->pid_count; i++) {
        if (l->pids[i] == pid) {
            return true;
        }
    }
    if (!heft__array_reserve(l->memory->arena.ctx, (void **)&l->pids, l->pid_count, &l->pid_cap,
                             sizeof *l->pids)) {
        return false;
    }
    l->pids[l->pid_count++] = pid;
    return true;
}

static bool add_copy(struct listing *l, heft_shared_copy copy, const char *name)
{
    heft__arena *arena = &l->memory->arena;
    int64_t *pids = heft__arena_array(arena, l->pid_count, sizeof *pids);
    copy.id = heft__arena_text(arena, name, strlen(name));
    if (!pids || !copy.id ||
        !heft__array_reserve(l->memory->arena.ctx, (void **)&l->copies, l->count, &l->cap,
                             sizeof *l->copies)) {
        return false;
    }
    memcpy(pids, l->pids, l->pid_count * sizeof *pids);
    copy.pids = pids;
    copy.pid_count = l->pid_count;
    l->copies[l->count++] = copy;
    return true;
}

/* What the segment at `fd` says of itself. */
static bool describe(struct listing *l, int fd, const heft__segment_facts *facts,
                     heft_shared_copy *copy)
{
    copy->bytes = facts->bytes;
    copy->created = facts->created;
    if (facts->source_bytes == 0) {
        return true;
    }
    char *source = heft__arena_alloc(&l->memory->arena, (size_t)facts->source_bytes + 1);
    if (!source) {
        return false;
    }
    const ssize_t got =
        pread(fd, source, (size_t)facts->source_bytes, (off_t)(facts->bytes + facts->what_bytes));
    source[got > 0 ? got : 0] = '\0';
    copy->source = source;
    return true;
}

/* The copy of an open register, if there is one. */
static bool look_into(struct listing *l, int reg, const char *name)
{
    heft_shared_copy copy = {0};
    const char *text = l->text;
    uint64_t inode = 0;
    heft__holder holder;
    bool good = true;
    heft__register_read(reg, l->text);
    l->pid_count = 0;
    while (good && heft__register_next(&text, &holder)) {
        heft__segment_facts facts;
        int fd = heft__segment_look(&holder, &facts);
        if (fd >= 0 && l->pid_count == 0) {
            inode = holder.inode;
            good = describe(l, fd, &facts, &copy);
        }
        if (good && fd >= 0 && holder.inode == inode) {
            good = add_pid(l, holder.pid);
        }
        heft__dir_close(&fd);
    }
    if (good && l->pid_count == 0) {
        const long builder = heft__register_builder(l->text, &copy.bytes);
        copy.building = builder > 0 && heft__lock_try(reg, LOCK_SH) == 0;
        good = !copy.building || add_pid(l, builder);
    }
    return good && (l->pid_count == 0 || add_copy(l, copy, name));
}

/* ---- all of them ----------------------------------------------------------------------------- */
/* Call fn for each register in this user's folders. */
typedef bool (*register_fn)(void *user, int dir, const char *name);
static bool each_register(heft_ctx *ctx, register_fn fn, void *user)
{
    bool good = true;
    for (size_t i = 0; i < HEFT__REGISTER_PLACES && good; i++) {
        heft__arena arena;
        const char *const *names = NULL;
        size_t count = 0;
        int dir = heft__register_place(ctx, i, false);
        if (dir < 0) {
            continue;
        }
        heft__register_sweep(ctx, dir, heft__segment_is_held, NULL);
        heft__arena_init(&arena, ctx);
        good = heft__dir_list(&arena, dir, &names, &count, NULL) != HEFT_NOMEM;
        for (size_t k = 0; k < count && good; k++) {
            good = !heft__register_is_name(names[k]) || fn(user, dir, names[k]);
        }
        heft__arena_fini(&arena);
        heft__dir_close(&dir);
    }
    return good;
}

static bool list_one(void *user, int dir, const char *name)
{
    int reg = heft__register_open(dir, name);
    const bool good = reg < 0 || look_into(user, reg, name);
    heft__dir_close(&reg);
    return good;
}

static int compare_copies(const void *a, const void *b)
{
    return strcmp(((const heft_shared_copy *)a)->id, ((const heft_shared_copy *)b)->id);
}

void heft_shared_list_free(heft_shared_list *list)
{
    struct memory *memory = (struct memory *)list;
    if (memory) {
        heft__free_with_arena(&memory->arena, memory, sizeof *memory);
    }
}

heft_status heft_shared_list_read(heft_ctx *ctx, heft_shared_list **out, heft_error *err)
{
    if (!ctx || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context or result is NULL");
    }
    struct listing l = {.memory = heft__alloc_zero(ctx, 1, sizeof *l.memory)};
    if (!l.memory) {
        return heft__fail_nomem(err, sizeof *l.memory);
    }
    heft__arena_init(&l.memory->arena, heft__ctx_ref(ctx));
    l.text = heft__alloc(ctx, HEFT__REGISTER_BYTES);
    bool good = l.text && each_register(ctx, list_one, &l);
    heft_shared_copy *copies =
        good ? heft__arena_array(&l.memory->arena, l.count, sizeof *copies) : NULL;
    if (copies && l.count > 0) {
        qsort(l.copies, l.count, sizeof *l.copies, compare_copies);
        memcpy(copies, l.copies, l.count * sizeof *copies);
    }
    heft__free(ctx, l.text, HEFT__REGISTER_BYTES);
    heft__free(ctx, l.copies, l.cap * sizeof *l.copies);
    heft__free(ctx, l.pids, l.pid_cap * sizeof *l.pids);
    if (!copies) {
        heft_shared_list_free(&l.memory->list);
        return heft__fail_nomem(err, 0);
    }
    l.memory->list = (heft_shared_list){.copies = copies, .count = l.count};
    *out = &l.memory->list;
    return HEFT_OK;
}

/* ---- removing -------------------------------------------------------------------------------- */
struct removing {
    const char *id; /* NULL: all */
    size_t removed;
    int sys_errno; /* of the first that could not be removed */
};

/* Without the lock: whoever waits for it or builds finds that the name is no longer that of its file. */
static bool remove_one(void *user, int dir, const char *name)
{
    struct removing *r = user;
    if (r->id && strcmp(r->id, name) != 0) {
        return true;
    }
    if (unlinkat(dir, name, 0) == 0) {
        r->removed++;
    } else if (errno != ENOENT && !r->sys_errno) {
        r->sys_errno = errno;
    }
    return true;
}

heft_status heft_shared_remove(heft_ctx *ctx, const char *id, size_t *removed, heft_error *err)
{
    struct removing r = {.id = id};
    if (!ctx) {
        return heft__fail(err, HEFT_INVALID_ARG, "context is NULL");
    }
    if (id && !heft__register_is_name(id)) {
        return heft__add_item(
            heft__fail(err, HEFT_INVALID_ARG,
                       "the id of a shared copy has 16 digits of 0123456789abcdef"),
            err, id);
    }
    if (!each_register(ctx, remove_one, &r)) {
        return heft__fail_nomem(err, 0);
    }
    if (r.sys_errno) {
        return heft__add_item(heft__fail_io(err, r.sys_errno, "cannot remove a shared copy"), err,
                              id ? id : "");
    }
    if (id && r.removed == 0) {
        return heft__add_item(heft__fail(err, HEFT_NOT_FOUND, "no such shared copy"), err, id);
    }
    if (removed) {
        *removed = r.removed;
    }
    return HEFT_OK;
}
