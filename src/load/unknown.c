/* unknown.c - the skeleton of a model whose type heft does not know: the checkpoint's own.
 *
 * A class is built like any other, but its list of parameters is the checkpoint's, in natural
 * order. What must not be split is guessed from the names: a list of numbered modules, two of which
 * hold the same parameters, is a list of blocks ("model.layers.*"). The outermost such list counts.
 *
 * Source: docs/loading.md [8]. */
#include "load/load.h"

#include <stdlib.h>

#define DEPTH_MOST 32       /* of nested modules that are looked at */
#define BLOCK_LISTS_MOST 64 /* of one model */

struct listing {
    const heft_checkpoint *ckpt;
    heft_ctx *ctx;
    size_t *order;    /* [ckpt->count] numbers of tensors, by natural name */
    size_t *aliases;  /* [ckpt->count] */
    heft_dtype dtype; /* NONE: each as it is */
    heft__arena arena;
    const char *blocks[BLOCK_LISTS_MOST];
    size_t block_count;
};

static const char *name_of(const struct listing *l, size_t place)
{
    return l->ckpt->infos[l->order[place]].name;
}

/* ---- order ----------------------------------------------------------------------------------- */
struct named { /* for qsort, which takes no context */
    const char *name;
    size_t number;
};

static int by_name(const void *left, const void *right)
{
    const struct named *a = left, *b = right;
    int order = heft__compare_natural(a->name, b->name);
    return order ? order : strcmp(a->name, b->name);
}

static heft_status sort_names(struct listing *l, heft_error *err)
{
    const size_t count = l->ckpt->count;
    struct named *names = heft__alloc(l->ctx, count * sizeof *names);
    if (!names) {
        return heft__fail_nomem(err, count * sizeof *names);
    }
    for (size_t i = 0; i < count; i++) {
        names[i] = (struct named){l->ckpt->infos[i].name, i};
    }
    qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++) {
        l->order[i] = names[i].number;
    }
    heft__free(l->ctx, names, count * sizeof *names);
    return HEFT_OK;
}

/* ---- blocks ---------------------------------------------------------------------------------- */
struct child {         /* a module, or a parameter, below a prefix */
    size_t first, end; /* places in the order */
    size_t length;     /* of its own part of the name */
    bool numbered;
    uint64_t hash; /* of the names below it */
};

static bool is_number(const char *text, size_t length)
{
    return length > 0 && strspn(text, "0123456789") >= length;
}

/* The child that begins at a place, with names that begin with `prefix` bytes of it. */
static struct child next_child(const struct listing *l, size_t first, size_t end, size_t prefix)
{
    const char *own = name_of(l, first) + prefix;
    struct child child = {.first = first, .length = strcspn(own, ".")};
    child.numbered = is_number(own, child.length) && own[child.length] == '.';
    for (child.end = first; child.end < end; child.end++) {
        const char *name = name_of(l, child.end) + prefix;
        if (strcspn(name, ".") != child.length || memcmp(name, own, child.length) != 0) {
            break;
        }
        name += child.length;
        child.hash = child.hash * 1099511628211U + heft__stable_hash(name, strlen(name));
    }
    return child;
}

static int by_hash(const void *left, const void *right)
{
    const uint64_t *a = left, *b = right;
    return *a < *b ? -1 : *a > *b;
}

/* Whether two of the numbered children below a prefix hold the same names. */
static heft_status repeats(const struct listing *l, size_t first, size_t end, size_t prefix,
                           bool *answer, heft_error *err)
{
    size_t count = 0, cap = 0;
    uint64_t *hashes = NULL;
    heft_status status = HEFT_OK;
    *answer = false;
    while (first < end && status == HEFT_OK) {
        struct child child = next_child(l, first, end, prefix);
        if (child.numbered) {
            if (heft__array_reserve(l->ctx, (void **)&hashes, count, &cap, sizeof *hashes)) {
                hashes[count++] = child.hash;
            } else {
                status = heft__fail_nomem(err, sizeof *hashes);
            }
        }
        first = child.end;
    }
    if (count > 1) {
        qsort(hashes, count, sizeof *hashes, by_hash);
    }
    for (size_t i = 1; i < count; i++) {
        *answer = *answer || hashes[i] == hashes[i - 1];
    }
    heft__free(l->ctx, hashes, cap * sizeof *hashes);
    return status;
}

static heft_status find_blocks(struct listing *l, size_t first, size_t end, size_t prefix,
                               unsigned depth, heft_error *err)
{
    bool is_list = false;
    heft_status status = repeats(l, first, end, prefix, &is_list, err);
    if (status == HEFT_OK && is_list && l->block_count < BLOCK_LISTS_MOST) {
        const char *pattern =
            heft__arena_format(&l->arena, "%.*s*", (int)prefix, name_of(l, first));
        l->blocks[l->block_count++] = pattern;
        return pattern ? HEFT_OK : heft__fail_nomem(err, prefix);
    }
    while (first < end && status == HEFT_OK) {
        struct child child = next_child(l, first, end, prefix);
        const bool module =
            name_of(l, first)[prefix + child.length] == '.' || child.end - child.first > 1;
        if (module && depth < DEPTH_MOST) {
            size_t begin = child.first;
            while (begin < child.end && name_of(l, begin)[prefix + child.length] != '.') {
                begin++; /* a parameter of the module's name */
            }
            status = begin < child.end ? find_blocks(l, begin, child.end, prefix + child.length + 1,
                                                     depth + 1, err)
                                       : HEFT_OK;
        }
        first = child.end;
    }
    return status;
}

/* ---- the class ------------------------------------------------------------------------------- */
static heft_dtype dtype_of(const struct listing *l, const heft_tensor_info *info)
{
    const bool cast = l->dtype != HEFT_DTYPE_NONE && heft_dtype_is_floating(info->dtype) &&
                      heft__cast_known(info->dtype, l->dtype);
    return cast ? l->dtype : info->dtype;
}

static void build(heft__skeleton *s)
{
    const struct listing *l = heft__sk_user(s);
    for (size_t i = 0; i < l->ckpt->count && heft__sk_going(s); i++) {
        const heft_tensor_info *info = &l->ckpt->infos[l->order[i]];
        heft__sk_named(s, info->name, dtype_of(l, info), info->shape, info->rank);
    }
    for (size_t i = 0; i < l->ckpt->count && heft__sk_going(s); i++) {
        const heft_tensor_info *info = &l->ckpt->infos[i], *first = &l->ckpt->infos[l->aliases[i]];
        /* the same bytes in another shape are no tie, but two parameters */
        if (first != info &&
            heft__shape_equal(info->shape, info->rank, first->shape, first->rank)) {
            heft__sk_tie(s, info->name, first->name);
        }
    }
    heft__sk_no_split(s, l->blocks, l->block_count);
}

static const heft__class no_classes[] = {
    {NULL, NULL, NULL}
};
static const heft__family unknown_family = {
    .model_type = "", .base_prefix = "", .classes = no_classes};

static heft_status build_model(struct listing *l, const heft_config *config, heft_model **out,
                               heft_error *err)
{
    const char *name = heft_config_architecture(config);
    const heft_dtype own = heft_config_dtype(config);
    const heft__class class = {.name = name ? name : HEFT__UNKNOWN_CLASS, .build = build};
    const heft__recipe recipe = {
        .config = config,
        .family = &unknown_family,
        .class = &class,
        .dtype = l->dtype != HEFT_DTYPE_NONE ? l->dtype : own,
        .user = l,
    };
    return heft__model_build(l->ctx, &recipe, out, err);
}

heft_status heft__unknown_model(const heft_checkpoint *ckpt, const heft_config *config,
                                heft_dtype dtype, heft_model **out, heft_error *err)
{
    const size_t count = ckpt->count;
    struct listing l = {.ckpt = ckpt, .ctx = ckpt->ctx, .dtype = dtype};
    heft__arena_init(&l.arena, l.ctx);
    l.order = heft__alloc(l.ctx, count * sizeof *l.order);
    heft_status status = l.order ? heft__checkpoint_aliases(ckpt, &l.aliases, err)
                                 : heft__fail_nomem(err, count * sizeof *l.order);
    if (status == HEFT_OK) {
        status = sort_names(&l, err);
    }
    if (status == HEFT_OK) {
        status = find_blocks(&l, 0, count, 0, 0, err);
    }
    if (status == HEFT_OK) {
        status = build_model(&l, config, out, err);
    }
    heft__free(l.ctx, l.order, count * sizeof *l.order);
    heft__free(l.ctx, l.aliases, count * sizeof *l.aliases);
    heft__arena_fini(&l.arena);
    return status;
}
