/* named.c - a model that is listed by names, dtypes and shapes, where no family lists it: a caller's
 * specs, or what a checkpoint of unknown type holds (load/unknown.c).
 *
 * A class is built like any other, but its list of parameters is given. The builder walks through modules,
 * parents first, so it gets the names in natural order; the parameters keep the numbers of the list where
 * that is wanted. What must not be split is found by structure (lists.c).
 *
 * Source: docs/models.md, docs/loading.md [8]. */
#include "model/skeleton.h"

#include <stdlib.h>

struct listing {
    const heft__named *named;
    size_t *order; /* [named->count] numbers of specs, by natural name */
};

/* ---- order ----------------------------------------------------------------------------------- */
struct numbered { /* for qsort, which takes no context */
    const char *name;
    size_t number;
};

/* In natural order; of parts that are equal in it ("01", "1") all names with one stand before those
 * with the other, so that a module's parameters stand together. 0 for equal names only. */
static int by_name(const void *left, const void *right)
{
    const char *a = ((const struct numbered *)left)->name,
               *b = ((const struct numbered *)right)->name;
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

static heft_status sort_names(heft_ctx *ctx, struct listing *l, heft_error *err)
{
    const size_t count = l->named->count;
    heft_status status = HEFT_OK;
    struct numbered *names = heft__alloc(ctx, count * sizeof *names);
    if (!names) {
        return heft__fail_nomem(err, count * sizeof *names);
    }
    for (size_t i = 0; i < count; i++) {
        names[i] = (struct numbered){l->named->list[i].name, i};
    }
    if (count) {
        qsort(names, count, sizeof *names, by_name);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        l->order[i] = names[i].number;
        if (i > 0 && strcmp(names[i - 1].name, names[i].name) == 0) {
            const size_t a = names[i - 1].number, b = names[i].number;
            status = heft__fail(err, HEFT_INVALID_ARG, "parameters %zu and %zu have this name",
                                a < b ? a : b, a < b ? b : a);
            heft__add_item(status, err, names[i].name);
        }
    }
    heft__free(ctx, names, count * sizeof *names);
    return status;
}

/* ---- the class ------------------------------------------------------------------------------- */
static void build(heft__skeleton *s)
{
    const struct listing *l = heft__sk_user(s);
    const heft_parameter_spec *list = l->named->list;
    const size_t count = l->named->count, *first = l->named->first;
    for (size_t i = 0; i < count && heft__sk_going(s); i++) {
        const heft_parameter_spec *spec = &list[l->order[i]];
        heft__sk_named(s, spec->name, spec->dtype, spec->shape, spec->rank);
    }
    for (size_t i = 0; first && i < count && heft__sk_going(s); i++) {
        const heft_parameter_spec *spec = &list[i], *source = &list[first[i]];
        /* the same bytes in another shape are no tie, but two parameters */
        if (source != spec &&
            heft__shape_equal(spec->shape, spec->rank, source->shape, source->rank)) {
            heft__sk_tie(s, spec->name, source->name);
        }
    }
}

static const heft__class no_classes[] = {
    {NULL, NULL, NULL, NULL}
};
static const heft__family no_family = {.model_type = "", .base_prefix = "", .classes = no_classes};

heft_status heft__named_model(heft_ctx *ctx, const heft__named *named, heft_model **out,
                              heft_error *err)
{
    const size_t bytes = named->count * sizeof(size_t);
    const char *name = heft_config_architecture(named->config);
    struct listing l = {.named = named, .order = heft__alloc(ctx, bytes)};
    heft_status status = l.order ? sort_names(ctx, &l, err) : heft__fail_nomem(err, bytes);
    if (status == HEFT_OK) {
        const heft__class class = {.name = name ? name : HEFT__UNKNOWN_CLASS, .build = build};
        const heft__recipe recipe = {.config = named->config,
                                     .family = &no_family,
                                     .class = &class,
                                     .dtype = named->dtype,
                                     .user = &l,
                                     .numbers = named->keep_numbers ? l.order : NULL};
        status = heft__model_build(ctx, &recipe, out, err);
    }
    heft__free(ctx, l.order, bytes);
    return status;
}

/* ---- a caller's specs ------------------------------------------------------------------------ */
static heft_status check_name(const char *name, size_t i, heft_error *err)
{
    if (!name || !*name) {
        return heft__fail(err, HEFT_INVALID_ARG, "the name of parameter %zu is %s", i,
                          name ? "empty" : "NULL");
    }
    const size_t length = strlen(name);
    return heft__utf8_invalid_at((const uint8_t *)name, length) == length
               ? HEFT_OK
               : heft__fail(err, HEFT_INVALID_ARG, "the name is not valid UTF-8");
}

/* *total: bytes of all so far. */
static heft_status check_spec(heft_ctx *ctx, const heft_parameter_spec *spec, uint64_t *total,
                              heft_error *err)
{
    const uint32_t most = heft__limits(ctx)->rank;
    char text[HEFT__SHAPE_TEXT];
    uint64_t bytes = 0, elems = 0;
    if (spec->dtype <= HEFT_DTYPE_NONE || spec->dtype >= HEFT_DTYPE_COUNT) {
        return heft__fail(err, HEFT_INVALID_ARG, "there is no dtype %d", (int)spec->dtype);
    }
    if (spec->rank > most) {
        return heft__fail(err, HEFT_INVALID_ARG, "a parameter of rank %u, the limit is %u",
                          spec->rank, most);
    }
    if (spec->rank > 0 && !spec->shape) {
        return heft__fail(err, HEFT_INVALID_ARG, "a parameter of rank %u has no shape", spec->rank);
    }
    if (!heft__shape_bytes(spec->dtype, spec->shape, spec->rank, &bytes)) {
        return heft__fail(err, HEFT_INVALID_ARG, "shape %s of %s has no size in bytes",
                          heft__shape_text(spec->shape, spec->rank, text),
                          heft_dtype_name(spec->dtype));
    }
    (void)heft__shape_elems(spec->shape, spec->rank, &elems);
    if (elems > HEFT__MODEL_BYTES || bytes > HEFT__MODEL_BYTES - *total) {
        return heft__fail(err, HEFT_INVALID_ARG, "shape %s makes the model over %llu bytes large",
                          heft__shape_text(spec->shape, spec->rank, text),
                          (unsigned long long)HEFT__MODEL_BYTES);
    }
    *total += bytes;
    return HEFT_OK;
}

static heft_status check_specs(heft_ctx *ctx, const heft_parameter_spec *specs, size_t count,
                               heft_error *err)
{
    const uint64_t most = heft__limits(ctx)->tensors;
    uint64_t total = 0;
    heft_status status = HEFT_OK;
    if (count > most) {
        return heft__fail(err, HEFT_LIMIT,
                          "the model has %zu tensors, the limit is %llu (limit tensors)", count,
                          (unsigned long long)most);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        status = check_name(specs[i].name, i, err);
        if (status == HEFT_OK) {
            status = check_spec(ctx, &specs[i], &total, err);
        }
        heft__add_item(status, err, specs[i].name);
    }
    return status;
}

/* The config's, else that of the first floating-point parameter of 16 bits or more, else float32. */
static heft_dtype find_dtype(const heft__named *named)
{
    const heft_dtype own = heft_config_dtype(named->config);
    for (size_t i = 0; own == HEFT_DTYPE_NONE && i < named->count; i++) {
        const heft_dtype dtype = named->list[i].dtype;
        if (heft_dtype_is_floating(dtype) && heft_dtype_bits(dtype) >= 16) {
            return dtype;
        }
    }
    return own == HEFT_DTYPE_NONE ? HEFT_DTYPE_F32 : own;
}

heft_status heft_model_new_from(heft_ctx *ctx, const heft_parameter_spec *specs, size_t count,
                                const heft_config *config, heft_model **out, heft_error *err)
{
    static const char standard[] = "{\"model_type\": \"unknown\"}";
    heft_config *made = NULL;
    if (!ctx || (!specs && count > 0) || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, specs or result is NULL");
    }
    heft_status status = check_specs(ctx, specs, count, err);
    if (status == HEFT_OK && !config) {
        status = heft__config_parse(ctx, "", standard, sizeof standard - 1, &made, err);
    }
    if (status == HEFT_OK) {
        heft__named named = {
            .list = specs, .count = count, .keep_numbers = true, .config = made ? made : config};
        named.dtype = find_dtype(&named);
        status = heft__dtype_is_wide_float(named.dtype)
                     ? heft__named_model(ctx, &named, out, err)
                     : heft__fail(err, HEFT_INVALID_ARG, "a model cannot be made in %s",
                                  heft_dtype_name(named.dtype));
    }
    heft_config_free(made);
    return status;
}
