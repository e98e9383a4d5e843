/* unknown.c - the skeleton of a model whose type heft does not know: the checkpoint's own.
 *
 * A class is built like any other, but its list of parameters is the checkpoint's, in natural order:
 * its modules are the parts of the names. What must not be split is found by their structure
 * (model/lists.c).
 *
 * Source: docs/loading.md [8]. */
#include "load/load.h"

#include <stdlib.h>

struct listing {
    const heft_checkpoint *ckpt;
    heft_ctx *ctx;
    size_t *order;    /* [ckpt->count] numbers of tensors, by natural name */
    size_t *aliases;  /* [ckpt->count] */
    heft_dtype dtype; /* NONE: each as it is */
};

/* ---- order ----------------------------------------------------------------------------------- */
struct named { /* for qsort, which takes no context */
    const char *name;
    size_t number;
};

/* In natural order; of parts that are equal in it ("01", "1") all names with one stand before those
 * with the other, so that a module's parameters stand together. */
static int by_name(const void *left, const void *right)
{
    const char *a = ((const struct named *)left)->name, *b = ((const struct named *)right)->name;
    for (;;) {
        const size_t a_length = strcspn(a, "."), b_length = strcspn(b, ".");
        int order = heft__compare_natural_part(a, a_length, b, b_length);
        if (order == 0 && a_length != b_length) {
            order = a_length < b_length ? -1 : 1;
        }
        if (order != 0 || !a[a_length] || !b[b_length]) {
            return order ? order : (a[a_length] != '\0') - (b[b_length] != '\0');
        }
        a += a_length + 1;
        b += b_length + 1;
    }
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
    l.order = heft__alloc(l.ctx, count * sizeof *l.order);
    heft_status status = l.order ? heft__checkpoint_aliases(ckpt, &l.aliases, err)
                                 : heft__fail_nomem(err, count * sizeof *l.order);
    if (status == HEFT_OK) {
        status = sort_names(&l, err);
    }
    if (status == HEFT_OK) {
        status = build_model(&l, config, out, err);
    }
    heft__free(l.ctx, l.order, count * sizeof *l.order);
    heft__free(l.ctx, l.aliases, count * sizeof *l.aliases);
    return status;
}
