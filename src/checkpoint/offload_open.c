/* offload_open.c - Accelerate's offload folder as a set of files: one for each .dat, one for each
 * safetensors file that the index names, in the order in which it names them first.
 *
 * The index says what a .dat is, since a .dat does not; what both say must agree. Not done here:
 * opening several files at once, and the table of names (open.c).
 * Source: docs/formats/offload.md [3]. */
#include "checkpoint/checkpoint.h"

#define HEAD_BYTES ((size_t)64 << 10) /* looked at to know an index */

heft_status heft__offload_is_index(heft_ctx *ctx, const char *path, bool *known, heft_error *err)
{
    heft__input *source = NULL;
    heft_error reason = {0}; /* what cannot be read is no index, and somebody else's to blame */
    uint8_t *head = NULL;
    size_t length = 0;
    heft_status status = heft__input_open(ctx, path, &source, &reason);
    if (status == HEFT_OK) {
        const uint64_t size = heft__input_size(source);
        length = size < HEAD_BYTES ? (size_t)size : HEAD_BYTES;
        head = heft__alloc(ctx, length);
        status = head ? heft__input_read(source, 0, head, length, &reason)
                      : heft__fail_nomem(&reason, length);
    }
    *known = status == HEFT_OK && heft__offload_index_sniff(head, length);
    heft__free(ctx, head, length);
    heft__input_unref(source);
    if (status == HEFT_NOMEM && err) {
        *err = reason;
    }
    return status == HEFT_NOMEM ? status : HEFT_OK;
}

/* ---- which files ----------------------------------------------------------------------------- */
/* A new file for an entry. */
static heft_status add_slot(heft__offload *offload, heft__arena *arena, const char *folder,
                            const heft__offload_entry *entry, heft_error *err)
{
    heft__offload_slot *slot = &offload->slots[offload->slot_count];
    if (entry->file) {
        slot->path = entry->file;
        slot->name = heft__path_base(entry->file);
    } else {
        slot->name = heft__arena_format(arena, "%s.dat", entry->name);
        slot->path = slot->name ? heft__path_join(arena, folder, slot->name) : NULL;
    }
    if (!slot->path) {
        return heft__fail_nomem(err, strlen(entry->name));
    }
    offload->slot_count++;
    return HEFT_OK;
}

/* The file of each entry, by number. */
static heft_status find_slots(heft__offload *offload, heft__arena *arena, const char *folder,
                              size_t *slot_of, heft_error *err)
{
    heft__map files; /* paths of safetensors files -> slot */
    heft_status status = HEFT_OK;
    heft__map_init(&files, arena->ctx);
    for (size_t i = 0; i < offload->index.count && status == HEFT_OK; i++) {
        const heft__offload_entry *entry = &offload->index.entries[i];
        size_t found = HEFT__MAP_NONE;
        if (entry->file &&
            !heft__map_put(&files, entry->file, strlen(entry->file), offload->slot_count, &found)) {
            status = heft__fail_nomem(err, strlen(entry->file));
        } else if (found == HEFT__MAP_NONE) {
            found = offload->slot_count;
            status = add_slot(offload, arena, folder, entry, err);
        }
        slot_of[i] = found;
    }
    heft__map_fini(&files);
    return status;
}

/* Entries slot after slot, each slot's in the order of the index. */
static heft_status sort_entries(heft__offload *offload, heft__arena *arena, const size_t *slot_of,
                                heft_error *err)
{
    const size_t count = offload->index.count;
    const heft__offload_entry **sorted = heft__arena_array(arena, count, sizeof *sorted);
    offload->dats = heft__arena_array(arena, offload->slot_count, sizeof *offload->dats);
    if (!sorted || !offload->dats) {
        return heft__fail_nomem(err, count * sizeof *sorted);
    }
    for (size_t i = 0; i < count; i++) {
        offload->slots[slot_of[i]].count++;
    }
    for (size_t s = 0; s < offload->slot_count; s++) {
        offload->slots[s].entries = sorted;
        sorted += offload->slots[s].count;
        offload->slots[s].count = 0;
    }
    for (size_t i = 0; i < count; i++) {
        heft__offload_slot *slot = &offload->slots[slot_of[i]];
        slot->entries[slot->count++] = &offload->index.entries[i];
    }
    return HEFT_OK;
}

heft_status heft__offload_read(heft__arena *arena, const char *folder, const char *index,
                               heft__offload *out, heft_error *err)
{
    heft__offload offload = {0};
    size_t *slot_of = NULL;
    offload.path = heft__path_join(arena, folder, index);
    heft_status status =
        offload.path ? heft__offload_index_read(arena->ctx, offload.path, &offload.index, err)
                     : heft__fail_nomem(err, strlen(folder));
    const size_t count = offload.index.count;
    if (status == HEFT_OK) {
        slot_of = heft__alloc_zero(arena->ctx, count, sizeof *slot_of);
        offload.slots = heft__arena_array(arena, count, sizeof *offload.slots);
        status = slot_of && offload.slots ? find_slots(&offload, arena, folder, slot_of, err)
                                          : heft__fail_nomem(err, count * sizeof *slot_of);
    }
    if (status == HEFT_OK) {
        status = sort_entries(&offload, arena, slot_of, err);
    }
    heft__free(arena->ctx, slot_of, count * sizeof *slot_of);
    if (status == HEFT_OK) {
        *out = offload;
    } else {
        heft__offload_index_fini(&offload.index);
    }
    return status;
}

/* ---- opening one ----------------------------------------------------------------------------- */
heft_status heft__offload_open(heft_ctx *ctx, const heft__offload *offload, size_t number,
                               heft__input **source, heft__file **out, heft_error *err)
{
    const heft__offload_slot *slot = &offload->slots[number];
    const heft__offload_entry *first = slot->entries[0];
    heft__file *file = NULL;
    heft_status status = heft__input_open(ctx, slot->path, source, err);
    if (status == HEFT_OK && !first->file) {
        status = heft__offload_dat_open(ctx, *source, first, &offload->dats[number], &file, err);
    } else if (status == HEFT_OK) {
        status = heft__file_open(ctx, *source, &file, err);
        if (status == HEFT_OK) {
            status =
                heft__offload_select(ctx, file, offload->path, slot->entries, slot->count, err);
        }
    }
    if (status != HEFT_OK) {
        heft__file_close(ctx, file);
        heft__add_item(status, err, first->name);
        return heft__add_path(status, err, slot->path);
    }
    *out = file;
    return HEFT_OK;
}
