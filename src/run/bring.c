/* bring.c - units from their files into memory, several at a time.
 *
 * A unit that the page cache has, and that is used as it lies there, is mapped already: its pages are
 * entered into the page tables by a call that reports faults. Another is read into a buffer, past the
 * page cache where that has little of it, cast and put in order on the way.
 * Source: docs/residency.md [6]. */
#include "run/run.h"

#define WARM 0.9      /* of a unit in the page cache: mapped, from there on */
#define COLD 0.5      /* less than that: read past the page cache */
#define GAP_MOST 4096 /* between neighbors in a file */

struct bringing {
    heft_residency *r;
    heft__pieces pieces;    /* the owner is the parameter */
    heft__brought **mapped; /* [mapped_count] to be touched */
    size_t mapped_count;
    bool cold; /* some are read past the page cache */
};

/* How much of a unit is in the page cache. */
static double share_cached(const heft_residency *r, const heft__unit *unit)
{
    const heft__homes *homes = heft__model_homes(r->model);
    double cached = 0, total = 0;
    for (size_t i = 0; i < unit->brought_count; i++) {
        const size_t parameter = unit->brought[i].parameter, tensor = homes->source[parameter];
        const heft_tensor_info *info = &homes->ckpt->infos[tensor];
        const uint64_t offset = unit->brought[i].offset;
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

/* ---- mapped ---------------------------------------------------------------------------------- */
static uint8_t *mapped_bytes(const heft_residency *r, size_t parameter)
{
    const heft__bound *bound = &r->bound[parameter];
    return (uint8_t *)heft_storage_data(bound->storage) + bound->offset;
}

static heft_status touch(void *user, size_t i, heft_error *err)
{
    const struct bringing *b = user;
    heft__brought *brought = b->mapped[i];
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
void heft__unit_forget(const heft_residency *r, const heft__unit *unit)
{
    for (size_t i = 0, next; i < unit->brought_count; i = next) {
        const uint8_t *start = mapped_bytes(r, unit->brought[i].parameter), *end = start;
        for (next = i; next < unit->brought_count; next++) {
            const size_t parameter = unit->brought[next].parameter;
            const uint8_t *bytes = mapped_bytes(r, parameter);
            if (bytes < end || (uintptr_t)bytes - (uintptr_t)end > GAP_MOST) {
                break;
            }
            end = bytes + r->views[parameter].size_bytes;
        }
        heft__forget_memory(start, (size_t)(end - start));
    }
}

/* ---- read ------------------------------------------------------------------------------------ */
/* Place a parameter in the unit's buffer, and cut it into pieces. */
static heft_status place(struct bringing *b, const heft__unit *unit, size_t i, bool cold,
                         heft_error *err)
{
    const heft__homes *homes = heft__model_homes(b->r->model);
    heft__brought *brought = &unit->brought[i];
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
    uint8_t *room = unit->stay->memory + brought->at;
    /* a beginning by 64 bytes, for whoever computes on it */
    brought->data =
        part.spare ? heft__in_phase(room, offset) : room + (64 - (uintptr_t)room % 64) % 64;
    return heft__pieces_add(&b->pieces, &part, brought->parameter, err);
}

static heft_status read_piece(void *user, size_t i, heft_error *err)
{
    struct bringing *b = user;
    const size_t parameter = b->pieces.list[i].owner;
    const heft__unit *unit = &b->r->units[b->r->unit_of[parameter]];
    return heft__piece_read(&b->pieces, i, unit->brought[b->r->brought_at[parameter]].data, err);
}

static bool is_far(const heft_residency *r, const heft__unit *unit)
{
    const heft__homes *homes = heft__model_homes(r->model);
    const size_t tensor = homes->source[unit->brought[0].parameter];
    return heft__input_network(heft__file_of(homes->ckpt, tensor)->source) != NULL;
}

/* How a unit comes is decided here. */
static heft_status add_unit(struct bringing *b, heft__unit *unit, heft_error *err)
{
    const double cached = share_cached(b->r, unit);
    heft__stay *stay = unit->stay;
    heft_status status = HEFT_OK;
    if (cached >= WARM && unit->mappable) {
        heft__free(b->r->ctx, stay->memory, stay->room);
        stay->memory = NULL;
        for (size_t i = 0; i < unit->brought_count; i++) {
            b->mapped[b->mapped_count++] = &unit->brought[i];
        }
        return HEFT_OK;
    }
    if (!stay->memory) {
        stay->memory = heft__alloc(b->r->ctx, stay->room);
        status = stay->memory ? HEFT_OK : heft__fail_nomem(err, stay->room);
    }
    const bool cold = cached < COLD && !is_far(b->r, unit);
    for (size_t i = 0; i < unit->brought_count && status == HEFT_OK; i++) {
        status = place(b, unit, i, cold, err);
    }
    b->cold = b->cold || cold;
    return status;
}

heft_status heft__units_bring(heft_residency *r, size_t count, heft_error *err)
{
    struct bringing b = {.r = r};
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        total += r->batch[i]->brought_count;
    }
    heft__pieces_init(&b.pieces, heft__model_homes(r->model)->ckpt);
    b.mapped = heft__alloc(r->ctx, total * sizeof *b.mapped);
    heft_status status = b.mapped ? HEFT_OK : heft__fail_nomem(err, total * sizeof *b.mapped);
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        status = add_unit(&b, r->batch[i], err);
    }
    if (status == HEFT_OK && b.mapped_count > 0) {
        status = heft__parallel_on(r->ctx, heft__threads(r->ctx), b.mapped_count, touch, &b, err);
    }
    if (status == HEFT_OK && b.pieces.count > 0) {
        status = heft__parallel_on(r->ctx, heft__reading_threads(r->ctx, b.cold), b.pieces.count,
                                   read_piece, &b, err);
    }
    heft__pieces_fini(&b.pieces);
    heft__free(r->ctx, b.mapped, total * sizeof *b.mapped);
    return status;
}
