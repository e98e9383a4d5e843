/* bring.c - units from their files into memory, several at a time.
 *
 * A large unit that the page cache has, and that is used as it lies there, is mapped already: its pages
 * are entered into the page tables by a call that reports faults. Another is read into a buffer, past the
 * page cache where that has little of it, cast and put in order on the way.
 * Source: docs/residency.md [6]. */
#include "run/run.h"

#include <unistd.h>

#define WARM 0.9      /* of a unit in the page cache: mapped, from there on */
#define GAP_MOST 4096 /* between neighbors in a file */
#define MAPPED_LEAST                                                                               \
    ((uint64_t)1 << 20) /* of a unit: copying less takes no longer than mapping it */

struct stretch { /* neighbors in a file that are mapped, to be touched by one call */
    heft__brought *first;
    size_t count;
};

struct bringing {
    heft_residency *r;
    heft__pieces pieces;    /* the owner is the parameter */
    struct stretch *mapped; /* [mapped_count] */
    size_t mapped_count;
    bool cold; /* some are read past the page cache */
};

/* ---- the page cache ---------------------------------------------------------------------------- */
/* The bytes that a parameter has in its file. */
static uint64_t file_bytes(const heft_residency *r, const heft__brought *brought)
{
    const heft__homes *homes = heft__model_homes(r->model);
    const heft_tensor *view = &r->views[brought->parameter];
    const size_t tensor = homes->source[heft__whole_of(r, brought->parameter)];
    uint64_t elems = 0;
    (void)heft__shape_elems(view->shape, view->rank, &elems);
    return elems * heft_dtype_bits(homes->ckpt->infos[tensor].dtype) / 8;
}

/* How much of a unit is in the page cache. Neighbors in a file are asked about together. */
static double share_cached(const heft_residency *r, const heft__unit *unit)
{
    const heft__homes *homes = heft__model_homes(r->model);
    double cached = 0, total = 0;
    for (size_t i = 0, next; i < unit->brought_count; i = next) {
        const heft__brought *first = &unit->brought[i];
        uint64_t length = file_bytes(r, first);
        next = i + 1;
        if (first->offset == HEFT_NO_OFFSET) {
            continue;
        }
        for (; next < unit->brought_count && length < HEFT__READ_BYTES; next++) {
            const heft__brought *after = &unit->brought[next];
            if (after->file != first->file || after->offset < first->offset + length ||
                after->offset - first->offset - length > GAP_MOST) {
                break;
            }
            length = after->offset - first->offset + file_bytes(r, after);
        }
        const size_t tensor = homes->source[heft__whole_of(r, first->parameter)];
        heft__input *input = heft__file_of(homes->ckpt, tensor)->source;
        cached += (double)length * heft__input_residency(input, first->offset, length);
        total += (double)length;
    }
    return total > 0 ? cached / total : 1;
}

/* ---- mapped ---------------------------------------------------------------------------------- */
static uint8_t *mapped_bytes(const heft_residency *r, size_t parameter)
{
    const heft__bound *bound = &r->bound[parameter];
    return (uint8_t *)heft_storage_data(bound->storage) + bound->offset;
}

/* The number after the last of a unit's parameters that lie side by side from number i on, and where these
 * end; `most` bytes or one parameter. */
static size_t end_of_stretch(const heft_residency *r, const heft__unit *unit, size_t i,
                             uint64_t most, const uint8_t **end)
{
    const uint8_t *start = mapped_bytes(r, unit->brought[i].parameter);
    *end = start;
    for (; i < unit->brought_count; i++) {
        const size_t parameter = unit->brought[i].parameter;
        const uint8_t *bytes = mapped_bytes(r, parameter);
        if (bytes < *end || (uintptr_t)bytes - (uintptr_t)*end > GAP_MOST ||
            (*end > start && (uintptr_t)bytes - (uintptr_t)start >= most)) {
            break;
        }
        *end = bytes + r->views[parameter].size_bytes;
    }
    return i;
}

static void add_mapped(struct bringing *b, heft__unit *unit)
{
    const uint8_t *end;
    for (size_t i = 0, next; i < unit->brought_count; i = next) {
        next = end_of_stretch(b->r, unit, i, HEFT__READ_BYTES, &end);
        b->mapped[b->mapped_count++] = (struct stretch){&unit->brought[i], next - i};
    }
}

static heft_status touch_one(const heft_residency *r, const heft__brought *brought, heft_error *err)
{
    const size_t bytes = (size_t)r->views[brought->parameter].size_bytes;
    return heft__touch_memory(brought->data, bytes)
               ? HEFT_OK
               : heft__add_item(
                     heft__fail(err, HEFT_IO,
                                "its bytes cannot be read: the file has shrunk or the disk fails"),
                     err, r->model->parameters[heft__whole_of(r, brought->parameter)].name);
}

static heft_status touch(void *user, size_t i, heft_error *err)
{
    const struct bringing *b = user;
    const struct stretch *stretch = &b->mapped[i];
    const heft__brought *first = stretch->first, *last = first + stretch->count - 1;
    heft_status status = HEFT_OK;
    for (size_t k = 0; k < stretch->count; k++) {
        stretch->first[k].data = mapped_bytes(b->r, first[k].parameter);
    }
    const uint8_t *end = last->data + b->r->views[last->parameter].size_bytes;
    if (!heft__touch_memory(first->data, (size_t)(end - first->data))) {
        for (size_t k = 0; k < stretch->count && status == HEFT_OK; k++) {
            status = touch_one(b->r, &first[k], err); /* the one that cannot be read is named */
        }
    }
    return status;
}

/* Where the memory ends that can be dropped beyond one end of a parameter: at the next byte that is in
 * memory for another unit. A fault enters the neighborhood of its page too, up to a whole huge page of the
 * cache, which would never be dropped. step: 1, or -1 for what lies before it. */
static uintptr_t end_of_free(const heft_residency *r, const heft__brought *brought, ptrdiff_t step,
                             uintptr_t at)
{
    const heft__mapping *file = &r->mappings[brought->file];
    const bool up = step > 0;
    const uintptr_t around = (uintptr_t)heft__huge_page_bytes(heft__page_bytes());
    const uintptr_t most = up ? (file->end - at > around ? at + around : file->end)
                              : (at - file->start > around ? at - around : file->start);
    for (size_t place = brought->place + (size_t)step; place < r->placed_count;
         place += (size_t)step) {
        const size_t parameter = r->placed[place];
        const heft__unit *unit = &r->units[r->unit_of[parameter]];
        if (unit->brought[r->brought_at[parameter]].file != brought->file) {
            break;
        }
        if (unit->mappable) { /* others are never mapped */
            const uintptr_t start = (uintptr_t)mapped_bytes(r, parameter),
                            end = start + (uintptr_t)r->views[parameter].size_bytes;
            if (up ? start >= most : end <= most) {
                break;
            }
            if (unit->state != HEFT__UNIT_AWAY) {
                return up ? start : end;
            }
        }
    }
    return most;
}

/* Whole pages only. */
static void forget(uintptr_t start, uintptr_t end)
{
    if (end > start) {
        heft__forget_memory((const void *)start, end - start);
    }
}

void heft__unit_forget(const heft_residency *r, const heft__unit *unit, bool around_only)
{
    const uint8_t *end;
    for (size_t i = 0, next; i < unit->brought_count; i = next) {
        const heft__brought *first = &unit->brought[i];
        const uintptr_t start = (uintptr_t)mapped_bytes(r, first->parameter);
        next = end_of_stretch(r, unit, i, UINT64_MAX, &end);
        const uintptr_t low = end_of_free(r, first, -1, start),
                        high = end_of_free(r, &unit->brought[next - 1], 1, (uintptr_t)end);
        const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
        if (around_only) { /* not what the unit has a part of */
            forget(low, start / page * page);
            forget(((uintptr_t)end + page - 1) / page * page, high);
        } else {
            forget(low, high);
        }
    }
}

/* ---- read ------------------------------------------------------------------------------------ */
heft__part heft__brought_part(const heft_residency *r, const heft__brought *brought, bool cold)
{
    const heft__homes *homes = heft__model_homes(r->model);
    const heft_tensor *view = &r->views[brought->parameter];
    const size_t whole = heft__whole_of(r, brought->parameter), tensor = homes->source[whole];
    const heft_tensor_info *info = &homes->ckpt->infos[tensor];
    const uint64_t offset = brought->offset;
    heft__part part = {.tensor = tensor,
                       .first = homes->first[whole] + heft__slice_first(r, brought->parameter),
                       .to = view->dtype,
                       .direct = cold && offset != HEFT_NO_OFFSET &&
                                 view->size_bytes >= HEFT__DIRECT_TENSOR};
    (void)heft__shape_elems(view->shape, view->rank, &part.elems);
    part.spare = part.direct && info->dtype == view->dtype &&
                 offset % (heft_dtype_bits(info->dtype) / 8) == 0;
    return part;
}

/* Place a parameter in the unit's buffer, and split it into pieces. */
static heft_status place(struct bringing *b, const heft__unit *unit, size_t i, bool cold,
                         heft_error *err)
{
    heft__brought *brought = &unit->brought[i];
    const heft__part part = heft__brought_part(b->r, brought, cold);
    uint8_t *room = unit->stay->memory + brought->at;
    /* aligned to 64 bytes, for computations */
    brought->data = part.spare ? heft__in_phase(room, brought->offset)
                               : room + (64 - (uintptr_t)room % 64) % 64;
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
    const size_t tensor = homes->source[heft__whole_of(r, unit->brought[0].parameter)];
    return heft__input_network(heft__file_of(homes->ckpt, tensor)->source) != NULL;
}

/* How a unit comes is decided here. */
static heft_status add_unit(struct bringing *b, heft__unit *unit, heft_error *err)
{
    const double cached = share_cached(b->r, unit);
    heft__stay *stay = unit->stay;
    heft_status status = HEFT_OK;
    if (cached >= WARM && unit->mappable && !b->r->writable &&
        unit->shown.brought_bytes >= MAPPED_LEAST) {
        heft__free(b->r->ctx, stay->memory, stay->room);
        stay->memory = NULL;
        add_mapped(b, unit);
        return HEFT_OK;
    }
    if (!stay->memory) {
        stay->memory = heft__alloc(b->r->ctx, stay->room);
        status = stay->memory ? HEFT_OK : heft__fail_nomem(err, stay->room);
    }
    const bool cold = cached < HEFT__UNIT_COLD && !is_far(b->r, unit);
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
