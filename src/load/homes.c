/* homes.c - where the parameters of a loaded model that stay in their files come from.
 *
 * The checkpoint lives on with the model, as long as there is one such parameter, so that it can be
 * read again and again. */
#include "load/load.h"

static void free_homes(void *user)
{
    heft__homes *homes = user;
    heft_ctx *ctx = homes->ckpt->ctx;
    heft__free(ctx, homes->source, homes->count * sizeof *homes->source);
    heft__free(ctx, homes->first, homes->count * sizeof *homes->first);
    heft_checkpoint_close(homes->ckpt);
    heft__free(ctx, homes, sizeof *homes);
}

heft_status heft__map_or_stay(const heft_checkpoint *ckpt, size_t tensor, heft_map_mode mode,
                              heft_tensor **out, heft_error *err)
{
    const uint8_t *base;
    uint64_t limit;
    *out = NULL;
    if (heft__address_space(&limit)) {
        return HEFT_OK;
    }
    heft_status status = heft__input_map(heft__file_of(ckpt, tensor)->source, &base, err);
    if (status == HEFT_NOMEM) { /* no address space for a file of this size */
        return HEFT_OK;
    }
    if (status == HEFT_OK && !heft__map_takes_unaligned(mode) &&
        !heft__checkpoint_is_aligned(ckpt, tensor)) {
        return HEFT_OK;
    }
    return status == HEFT_OK ? heft_checkpoint_map(ckpt, tensor, mode, out, err) : status;
}

/* Pages of a private mapping must not go, as writes are nowhere else; nor those of a checkpoint in the
 * caller's memory, which no file would bring back. */
heft_status heft__homes_keep(heft_model *model, heft_checkpoint *ckpt, heft__match *match,
                             heft_error *err)
{
    bool any = false;
    for (size_t i = 0; i < model->count; i++) {
        if (model->parameters[i].state == HEFT_PARAMETER_MAPPED &&
            (heft_storage_flags(model->bindings[i].storage) &
             (HEFT_TENSOR_WRITABLE | HEFT_TENSOR_MAPPED)) != HEFT_TENSOR_MAPPED) {
            match->source[i] = HEFT__NO_TENSOR;
            continue;
        }
        any = any || model->parameters[i].state == HEFT_PARAMETER_MAPPED ||
              model->parameters[i].state == HEFT_PARAMETER_DISK;
    }
    if (!any) {
        return HEFT_OK;
    }
    heft__homes *homes = heft__alloc_zero(model->ctx, 1, sizeof *homes);
    if (!homes) {
        return heft__fail_nomem(err, sizeof *homes);
    }
    *homes = (heft__homes){heft__checkpoint_ref(ckpt), match->source, match->first, model->count};
    match->source = NULL;
    match->first = NULL;
    model->homes = homes;
    model->free_homes = free_homes;
    return HEFT_OK;
}

const heft__homes *heft__model_homes(const heft_model *model)
{
    return model->homes;
}

bool heft__home_is_plain(const heft_model *model, size_t i)
{
    const heft__homes *homes = heft__model_homes(model);
    const size_t tensor = homes && i < homes->count ? homes->source[i] : HEFT__NO_TENSOR;
    return tensor != HEFT__NO_TENSOR &&
           heft__part_offset(homes->ckpt, tensor, homes->first[i]) != HEFT_NO_OFFSET &&
           homes->ckpt->entries[tensor]->decoded == NULL;
}

heft_status heft__home_read(const heft_model *model, size_t i, uint64_t first, uint64_t elems,
                            void *dst, heft_error *err)
{
    const heft__homes *homes = heft__model_homes(model);
    const heft__part part = {.tensor = homes->source[i],
                             .first = homes->first[i] + first,
                             .elems = elems,
                             .to = model->parameters[i].dtype};
    heft__pieces pieces;
    heft__pieces_init(&pieces, homes->ckpt);
    heft_status status = heft__pieces_add(&pieces, &part, 0, err);
    for (size_t piece = 0; piece < pieces.count && status == HEFT_OK; piece++) {
        status = heft__piece_read(&pieces, piece, dst, err);
    }
    heft__pieces_fini(&pieces);
    heft__add_item(status, err, model->parameters[i].name);
    return status;
}
