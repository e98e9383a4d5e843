/* bring.c - one block from its files into memory.
 *
 * A block that the page cache has, and that is used as it lies there, is mapped already: its pages are
 * entered into the page tables by a call that reports faults. Another is read into a buffer, past the
 * page cache where that has little of it, cast and put in order on the way.
 * Source: docs/placing.md [6]. */
#include "run/run.h"

#define WARM 0.9      /* of a block in the page cache: mapped, from there on */
#define COLD 0.5      /* less than that: read past the page cache */
#define GAP_MOST 4096 /* between neighbors in a file */

struct bringing {
    const heft_residency *r;
    heft__block *block;
    heft__pieces pieces; /* the owner is the number in the block's list */
};

/* How much of a block is in the page cache. */
static double share_cached(const heft_residency *r, const heft__block *block)
{
    const heft__homes *homes = heft__model_homes(r->model);
    double cached = 0, total = 0;
    for (size_t i = 0; i < block->brought_count; i++) {
        const size_t parameter = block->brought[i].parameter, tensor = homes->source[parameter];
        const heft_tensor_info *info = &homes->ckpt->infos[tensor];
        const uint64_t offset = block->brought[i].offset;
        if (offset != HEFT_NO_OFFSET) {
            uint64_t elems = 0;
            const heft_parameter *p = &r->model->parameters[parameter];
            (void)heft__shape_elems(p->shape, p->rank, &elems);
            const uint64_t length = elems * heft_dtype_bits(info->dtype) / 8;
            cached +=
                (double)length *
                heft__input_residency(heft__file_of(homes->ckpt, tensor)->source, offset, length);
            total += (double)length;
        }
    }
    return total > 0 ? cached / total : 1;
}

static bool is_mapped(const heft_residency *r, const heft__block *block)
{
    for (size_t i = 0; i < block->brought_count; i++) {
        if (r->model->parameters[block->brought[i].parameter].state != HEFT_PARAMETER_MAPPED) {
            return false;
        }
    }
    return true;
}

/* ---- mapped ---------------------------------------------------------------------------------- */
static uint8_t *mapped_bytes(const heft_residency *r, size_t parameter)
{
    const heft__binding *binding = &r->model->bindings[parameter];
    return (uint8_t *)heft_storage_data(binding->storage) + binding->byte_offset;
}

static heft_status touch(void *user, size_t i, heft_error *err)
{
    const struct bringing *b = user;
    heft__brought *brought = &b->block->brought[i];
    const heft_parameter *parameter = &b->r->model->parameters[brought->parameter];
    uint8_t *bytes = mapped_bytes(b->r, brought->parameter);
    if (parameter->size_bytes > 0 && !heft__touch_memory(bytes, (size_t)parameter->size_bytes)) {
        return heft__add_item(heft__fail(err, HEFT_IO,
                                         "its bytes cannot be read: the file has shrunk, or its "
                                         "disk fails"),
                              err, parameter->name);
    }
    brought->data = bytes;
    return HEFT_OK;
}

/* Only whole pages can be dropped: neighbors in a file go together. */
void heft__block_forget(const heft_residency *r, const heft__block *block)
{
    for (size_t i = 0, next; i < block->brought_count; i = next) {
        const uint8_t *start = mapped_bytes(r, block->brought[i].parameter), *end = start;
        for (next = i; next < block->brought_count; next++) {
            const size_t parameter = block->brought[next].parameter;
            const uint8_t *bytes = mapped_bytes(r, parameter);
            if (bytes < end || (uintptr_t)bytes - (uintptr_t)end > GAP_MOST) {
                break;
            }
            end = bytes + r->model->parameters[parameter].size_bytes;
        }
        heft__forget_memory(start, (size_t)(end - start));
    }
}

/* ---- read ------------------------------------------------------------------------------------ */
/* Place a parameter in the block's buffer, and cut it into pieces. */
static heft_status place(struct bringing *b, size_t i, uint8_t *base, bool cold, heft_error *err)
{
    const heft__homes *homes = heft__model_homes(b->r->model);
    heft__brought *brought = &b->block->brought[i];
    const heft_parameter *parameter = &b->r->model->parameters[brought->parameter];
    const size_t tensor = homes->source[brought->parameter];
    const heft_tensor_info *info = &homes->ckpt->infos[tensor];
    const uint64_t offset = brought->offset;
    heft__part part = {.tensor = tensor,
                       .first = homes->first[brought->parameter],
                       .to = parameter->dtype,
                       .direct = cold && offset != HEFT_NO_OFFSET &&
                                 parameter->size_bytes >= HEFT__DIRECT_TENSOR};
    (void)heft__shape_elems(parameter->shape, parameter->rank, &part.elems);
    part.spare = part.direct && info->dtype == parameter->dtype &&
                 offset % (heft_dtype_bits(info->dtype) / 8) == 0;
    uint8_t *room = base + brought->at;
    /* a beginning by 64 bytes, for whoever computes on it */
    brought->data =
        part.spare ? heft__in_phase(room, offset) : room + (64 - (uintptr_t)room % 64) % 64;
    return heft__pieces_add(&b->pieces, &part, i, err);
}

static heft_status read_piece(void *user, size_t i, heft_error *err)
{
    struct bringing *b = user;
    return heft__piece_read(&b->pieces, i, b->block->brought[b->pieces.list[i].owner].data, err);
}

static bool is_far(const heft_residency *r, const heft__block *block)
{
    const heft__homes *homes = heft__model_homes(r->model);
    const size_t tensor = homes->source[block->brought[0].parameter];
    return heft__input_network(heft__file_of(homes->ckpt, tensor)->source) != NULL;
}

static heft_status read_block(struct bringing *b, uint8_t *base, bool cold, heft_error *err)
{
    heft_status status = HEFT_OK;
    heft__pieces_init(&b->pieces, heft__model_homes(b->r->model)->ckpt);
    for (size_t i = 0; i < b->block->brought_count && status == HEFT_OK; i++) {
        status = place(b, i, base, cold, err);
    }
    if (status == HEFT_OK) {
        status = heft__parallel_on(b->r->ctx, heft__reading_threads(b->r->ctx, cold),
                                   b->pieces.count, read_piece, b, err);
    }
    heft__pieces_fini(&b->pieces);
    return status;
}

heft_status heft__block_bring(heft_residency *r, heft__block *block, heft_storage **storage,
                              heft_error *err)
{
    struct bringing b = {.r = r, .block = block};
    const double cached = share_cached(r, block);
    heft_status status = HEFT_OK;
    if (cached >= WARM && is_mapped(r, block)) {
        heft_storage_unref(*storage);
        *storage = NULL;
        return heft__parallel_on(r->ctx, heft__threads(r->ctx), block->brought_count, touch, &b,
                                 err);
    }
    if (!*storage) {
        status = heft__storage_new(r->ctx, block->room, storage, err);
    }
    return status == HEFT_OK ? read_block(&b, heft_storage_data(*storage),
                                          cached < COLD && !is_far(r, block), err)
                             : status;
}
