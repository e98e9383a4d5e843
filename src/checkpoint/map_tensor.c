/* map_tensor.c - handing tensors out without copying them.
 *
 *   tensor --> storage --> mapping of the whole file, one for each map mode --> input
 *
 * A storage of the file becomes one heft_storage for each mode, however often and under how many
 * names it is asked for: tensors that share bytes in the file share them in memory. The checkpoint
 * keeps a reference on each until it is closed; tensors keep theirs. What does not stand in the file
 * as it is used, or has no file, is copied to the heap.
 * Source: docs/mapping.md. */
#include "checkpoint/checkpoint.h"

#include <stdatomic.h>

#define MODES 2

/* Made at the first use: many checkpoints are opened and never mapped. Threads race for each slot, and
 * the first one wins. */
typedef _Atomic(heft_storage *) slot;

struct heft__maps {
    size_t count; /* storages of all files */
    _Atomic(slot *) slots[MODES];
};

heft_status heft__maps_make(heft_checkpoint *ckpt, heft_error *err)
{
    ckpt->maps = heft__arena_array(&ckpt->arena, 1, sizeof *ckpt->maps);
    if (!ckpt->maps) {
        return heft__fail_nomem(err, sizeof *ckpt->maps);
    }
    ckpt->maps->count = ckpt->storage_count;
    return HEFT_OK;
}

void heft__maps_free(heft_checkpoint *ckpt)
{
    for (size_t mode = 0; ckpt->maps && mode < MODES; mode++) {
        slot *slots = atomic_load(&ckpt->maps->slots[mode]);
        for (size_t i = 0; slots && i < ckpt->maps->count; i++) {
            heft_storage_unref(atomic_load(&slots[i]));
        }
        heft__free(ckpt->ctx, slots, ckpt->maps->count * sizeof *slots);
    }
}

/* The slots of a mode; NULL without memory. */
static slot *slots_of(const heft_checkpoint *ckpt, heft_map_mode mode)
{
    _Atomic(slot *) *place = &ckpt->maps->slots[mode];
    slot *slots = atomic_load(place), *expected = NULL;
    if (slots) {
        return slots;
    }
    slots = heft__alloc_zero(ckpt->ctx, ckpt->maps->count, sizeof *slots);
    if (slots && !atomic_compare_exchange_strong(place, &expected, slots)) {
        heft__free(ckpt->ctx, slots, ckpt->maps->count * sizeof *slots);
        slots = expected;
    }
    return slots;
}

static void release_input(void *user)
{
    heft__input_unref(user);
}

static heft_status make_storage(const heft_checkpoint *ckpt, size_t i, heft_map_mode mode,
                                heft_storage **out, heft_error *err)
{
    const heft__file *file = heft__file_of(ckpt, i);
    const heft__file_storage *run = &file->storages[ckpt->entries[i]->storage];
    const bool writable = mode == HEFT_MAP_PRIVATE;
    uint32_t flags = writable ? HEFT_TENSOR_WRITABLE : 0;
    uint8_t *private = NULL;
    const uint8_t *base = NULL;
    heft_status status = writable ? heft__input_map_private(file->source, &private, err)
                                  : heft__input_map(file->source, &base, err);
    if (status != HEFT_OK) {
        return status;
    }
    base = writable ? private : base;
    flags |= heft__input_is_file(file->source) ? HEFT_TENSOR_MAPPED : 0;
    heft__input *source = heft__input_ref(file->source);
    const heft__memory memory = {.data = (void *)(uintptr_t)(base + run->offset),
                                 .bytes = run->bytes,
                                 .flags = flags,
                                 .release = release_input,
                                 .user = source};
    status = heft__storage_make(ckpt->ctx, &memory, out, err);
    if (status != HEFT_OK) {
        heft__input_unref(source);
    }
    return status;
}

/* The one storage of tensor i in this mode: a reference. */
static heft_status take_storage(const heft_checkpoint *ckpt, size_t i, heft_map_mode mode,
                                heft_storage **out, heft_error *err)
{
    slot *slots = slots_of(ckpt, mode);
    if (!slots) {
        return heft__fail_nomem(err, ckpt->maps->count * sizeof *slots);
    }
    slot *mine = &slots[ckpt->infos[i].storage];
    heft_storage *found = atomic_load(mine), *fresh = NULL;
    if (!found) {
        heft_status status = make_storage(ckpt, i, mode, &fresh, err);
        if (status != HEFT_OK) {
            return status;
        }
        if (atomic_compare_exchange_strong(mine, &found, fresh)) {
            found = fresh; /* the slot has the reference now */
        } else {
            heft_storage_unref(fresh);
        }
    }
    *out = heft_storage_ref(found);
    return HEFT_OK;
}

static heft_status map_plain(const heft_checkpoint *ckpt, size_t i, heft_map_mode mode,
                             heft_tensor **out, heft_error *err)
{
    const heft__file_tensor *entry = ckpt->entries[i];
    const heft_tensor_spec spec = HEFT_OPTIONS(
        heft_tensor_spec, .dtype = entry->dtype, .rank = entry->rank, .shape = entry->shape,
        .strides = entry->strides, .offset_bytes = entry->start);
    heft_storage *storage = NULL;
    heft_status status = take_storage(ckpt, i, mode, &storage, err);
    if (status == HEFT_OK) {
        status = heft_tensor_new(storage, &spec, out, err);
    }
    heft_storage_unref(storage);
    return status;
}

static heft_status copy_to_heap(const heft_checkpoint *ckpt, size_t i, heft_tensor **out,
                                heft_error *err)
{
    const heft_tensor_info *info = &ckpt->infos[i];
    const heft_tensor_spec spec = HEFT_OPTIONS(heft_tensor_spec, .dtype = info->dtype,
                                               .rank = info->rank, .shape = info->shape);
    heft_storage *storage = NULL;
    heft_status status = heft__storage_new(ckpt->ctx, info->size_bytes, &storage, err);
    if (status == HEFT_OK) {
        status = heft_checkpoint_read(ckpt, i, heft_storage_data(storage), info->size_bytes, err);
    }
    if (status == HEFT_OK) {
        status = heft_tensor_new(storage, &spec, out, err);
    }
    heft_storage_unref(storage);
    return status;
}

/* Whether the tensor stands in its file as it is used, and the file can be mapped. A reader may say so
 * only when it is asked for its bytes. */
static bool is_mappable(const heft_checkpoint *ckpt, size_t i, heft_map_mode mode)
{
    const heft__file *file = heft__file_of(ckpt, i);
    return heft__tensor_is_mappable(file, ckpt->entries[i]) &&
           heft__input_can_map(file->source, mode == HEFT_MAP_PRIVATE);
}

heft_status heft_checkpoint_map(const heft_checkpoint *ckpt, size_t i, heft_map_mode mode,
                                heft_tensor **out, heft_error *err)
{
    if (i >= ckpt->count) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "tensor index %zu is out of range, the checkpoint has %zu", i,
                          ckpt->count);
    }
    if (mode != HEFT_MAP_READ_ONLY && mode != HEFT_MAP_PRIVATE) {
        return heft__fail(err, HEFT_INVALID_ARG, "unknown map mode %d", (int)mode);
    }
    heft_status status = is_mappable(ckpt, i, mode) ? map_plain(ckpt, i, mode, out, err)
                                                    : copy_to_heap(ckpt, i, out, err);
    return heft__checkpoint_blame(ckpt, i, status, err);
}
