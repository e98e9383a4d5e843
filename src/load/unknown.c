/* unknown.c - the skeleton of a model whose type heft does not know: the checkpoint's own.
 *
 * Its list of parameters is the checkpoint's, in natural order; tensors on the same bytes are tied. The
 * model is made of that list (model/named.c).
 *
 * Source: docs/loading.md [8]. */
#include "load/load.h"

/* dtype: NONE: each as it is. */
static heft_dtype dtype_of(const heft_tensor_info *info, const heft__float32_list *kept,
                           heft_dtype dtype)
{
    const bool cast = dtype != HEFT_DTYPE_NONE && heft_dtype_is_floating(info->dtype) &&
                      heft__cast_known(info->dtype, dtype);
    if (cast && heft__stays_float32(kept, dtype, info->name)) {
        return HEFT_DTYPE_F32;
    }
    return cast ? dtype : info->dtype;
}

/* What the options ask for, of tensor i. */
static heft_dtype asked_dtype(const heft_checkpoint *ckpt, const heft__float32_list *kept,
                              const heft_load_options *options, size_t i)
{
    if (!options->tensor_dtypes) {
        return dtype_of(&ckpt->infos[i], kept, options->dtype);
    }
    const heft_dtype dtype = options->tensor_dtypes[i];
    return dtype == HEFT_DTYPE_NONE ? ckpt->infos[i].dtype : dtype;
}

static heft_status check_dtypes(const heft_checkpoint *ckpt, const heft_load_options *options,
                                heft_error *err)
{
    const size_t count = options->tensor_dtype_count;
    if (options->tensor_dtypes && count != ckpt->count) {
        return heft__fail(err, HEFT_INVALID_ARG, "%zu tensor_dtypes for %zu tensors", count,
                          ckpt->count);
    }
    for (size_t i = 0; options->tensor_dtypes && i < count; i++) {
        const heft_dtype dtype = options->tensor_dtypes[i];
        if (dtype < HEFT_DTYPE_NONE || dtype >= HEFT_DTYPE_COUNT) {
            return heft__add_item(
                heft__fail(err, HEFT_INVALID_ARG, "there is no dtype %d", (int)dtype), err,
                ckpt->infos[i].name);
        }
    }
    return HEFT_OK;
}

/* Of names that are one tensor, the one under which it is saved: not that of a head. */
static heft_status choose_roots(const heft_checkpoint *ckpt, const heft_parameter_spec *list,
                                size_t *aliases, heft_error *err)
{
    const char **names = heft__alloc(ckpt->ctx, ckpt->count * sizeof *names);
    if (!names) {
        return heft__fail_nomem(err, ckpt->count * sizeof *names);
    }
    for (size_t i = 0; i < ckpt->count; i++) {
        const heft_parameter_spec *other = &list[aliases[i]];
        names[i] = list[i].name;
        /* the same bytes in another shape are no tie, but two parameters */
        aliases[i] = heft__shape_equal(list[i].shape, list[i].rank, other->shape, other->rank)
                         ? aliases[i]
                         : i;
    }
    const heft_status status = heft__aliases_choose(ckpt->ctx, names, ckpt->count, aliases, err);
    heft__free(ckpt->ctx, names, ckpt->count * sizeof *names);
    return status;
}

heft_status heft__unknown_model(const heft_checkpoint *ckpt, const heft_config *config,
                                const heft_load_options *options, heft_model **out, heft_error *err)
{
    heft_ctx *ctx = ckpt->ctx;
    const size_t count = ckpt->count, bytes = count * sizeof(heft_parameter_spec);
    const heft_dtype dtype = options->dtype;
    const heft__float32_list *kept = NULL;
    heft__arena arena;
    heft__arena_init(&arena, ctx);
    size_t *aliases = NULL;
    heft_parameter_spec *list = heft__alloc(ctx, bytes);
    heft_status status = check_dtypes(ckpt, options, err);
    if (status == HEFT_OK) {
        status = heft__config_float32(config, &arena, &kept, err);
    }
    if (status == HEFT_OK) {
        status =
            list ? heft__checkpoint_aliases(ckpt, &aliases, err) : heft__fail_nomem(err, bytes);
    }
    for (size_t i = 0; status == HEFT_OK && i < count; i++) {
        const heft_tensor_info *info = &ckpt->infos[i];
        list[i] = (heft_parameter_spec){.name = info->name,
                                        .dtype = asked_dtype(ckpt, kept, options, i),
                                        .rank = info->rank,
                                        .shape = info->shape};
    }
    if (status == HEFT_OK) {
        status = choose_roots(ckpt, list, aliases, err);
    }
    for (size_t i = 0; status == HEFT_OK && i < count; i++) {
        list[i].dtype = list[aliases[i]].dtype;
    }
    if (status == HEFT_OK) {
        const heft__named named = {.list = list,
                                   .count = count,
                                   .first = aliases,
                                   .config = config,
                                   .dtype = dtype != HEFT_DTYPE_NONE ? dtype
                                                                     : heft_config_dtype(config)};
        status = heft__named_model(ctx, &named, out, err);
    }
    heft__arena_fini(&arena);
    heft__free(ctx, list, bytes);
    heft__free(ctx, aliases, count * sizeof *aliases);
    return status;
}
