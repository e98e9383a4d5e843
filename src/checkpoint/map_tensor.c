/* map_tensor.c - handing tensors out without copying them.
 *
 *   tensor --> storage --> mapping of the whole file, one for each map mode --> input
 *
 * A storage of the file becomes one heft_storage for each mode, however often and under how many
 * names it is asked for: tensors that share bytes in the file share them in memory. The checkpoint
 * keeps a reference on each until it is closed; tensors keep theirs. What does not stand in the file
 * as it is used is copied to the heap, and so is what is not aligned there, and private tensors of what
 * is no file: of the latter two a storage of several tensors as a whole, once for each mode, so that
 * they share it as they share the mapping.
 * Source: docs/mapping.md. */
#include "checkpoint/checkpoint.h"

#include <stdatomic.h>

/* What a storage of the file can be in memory. */
enum form { FORM_MAPPED, FORM_MAPPED_PRIVATE, FORM_COPY, FORM_COPY_PRIVATE, FORMS };

/* Made at the first use: many checkpoints are opened and never mapped. Threads race for each slot, and
 * the first one wins. */
typedef _Atomic(heft_storage *) slot;

struct heft__maps {
    size_t count; /* storages of all files */
    _Atomic(slot *) slots[FORMS];
    _Atomic(uint8_t *)
        shared; /* [count] whether several tensors are on it; made when it is asked for */
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
    if (ckpt->maps) {
        heft__free(ckpt->ctx, atomic_load(&ckpt->maps->shared), ckpt->maps->count);
    }
    for (size_t form = 0; ckpt->maps && form < FORMS; form++) {
        slot *slots = atomic_load(&ckpt->maps->slots[form]);
        for (size_t i = 0; slots && i < ckpt->maps->count; i++) {
            heft_storage_unref(atomic_load(&slots[i]));
        }
        heft__free(ckpt->ctx, slots, ckpt->maps->count * sizeof *slots);
    }
}

/* The slots of a form; NULL without memory. */
static slot *slots_of(const heft_checkpoint *ckpt, enum form form)
{
    _Atomic(slot *) *place = &ckpt->maps->slots[form];
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

static heft_status map_storage(const heft_checkpoint *ckpt, size_t i, bool writable,
                               heft_storage **out, heft_error *err)
{
    const heft__file *file = heft__file_of(ckpt, i);
    const heft__file_storage *run = &file->storages[ckpt->entries[i]->storage];
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

/* Its bytes on the heap. Not writable where the mapping would not be: other tensors are on them too. */
static heft_status copy_storage(const heft_checkpoint *ckpt, size_t i, bool writable,
                                heft_storage **out, heft_error *err)
{
    const heft__file *file = heft__file_of(ckpt, i);
    const heft__file_storage *run = &file->storages[ckpt->entries[i]->storage];
    size_t bytes = 0;
    void *data = heft__to_size(run->bytes, &bytes) ? heft__alloc(ckpt->ctx, bytes) : NULL;
    if (!data) {
        return heft__fail_nomem(err, run->bytes);
    }
    const heft__memory memory = {
        .data = data, .bytes = bytes, .flags = writable ? HEFT_TENSOR_WRITABLE : 0, .heap = true};
    heft_status status = heft__input_read(file->source, run->offset, data, bytes, err);
    if (status == HEFT_OK) {
        status = heft__storage_make(ckpt->ctx, &memory, out, err);
    }
    if (status != HEFT_OK) {
        heft__free(ckpt->ctx, data, bytes);
    }
    return status;
}

static heft_status make_storage(const heft_checkpoint *ckpt, size_t i, enum form form,
                                heft_storage **out, heft_error *err)
{
    const bool writable = form == FORM_MAPPED_PRIVATE || form == FORM_COPY_PRIVATE;
    return form == FORM_COPY || form == FORM_COPY_PRIVATE
               ? copy_storage(ckpt, i, writable, out, err)
               : map_storage(ckpt, i, writable, out, err);
}

/* The one storage of tensor i in this form: a reference. */
static heft_status take_storage(const heft_checkpoint *ckpt, size_t i, enum form form,
                                heft_storage **out, heft_error *err)
{
    slot *slots = slots_of(ckpt, form);
    if (!slots) {
        return heft__fail_nomem(err, ckpt->maps->count * sizeof *slots);
    }
    slot *mine = &slots[ckpt->infos[i].storage];
    heft_storage *found = atomic_load(mine), *fresh = NULL;
    if (!found) {
        heft_status status = make_storage(ckpt, i, form, &fresh, err);
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

/* Tensor i on its storage, with the strides that it has there. */
static heft_status view_storage(const heft_checkpoint *ckpt, size_t i, enum form form,
                                heft_tensor **out, heft_error *err)
{
    const heft__file_tensor *entry = ckpt->entries[i];
    const heft_tensor_spec spec = HEFT_OPTIONS(
        heft_tensor_spec, .dtype = entry->dtype, .rank = entry->rank, .shape = entry->shape,
        .strides = entry->strides, .offset_bytes = entry->start);
    heft_storage *storage = NULL;
    heft_status status = take_storage(ckpt, i, form, &storage, err);
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

/* ---- alignment ------------------------------------------------------------------------------- */
bool heft__checkpoint_is_aligned(const heft_checkpoint *ckpt, size_t i)
{
    const heft__file *file = heft__file_of(ckpt, i);
    const heft__file_tensor *entry = ckpt->entries[i];
    const size_t alignment = heft__dtype_alignment(entry->dtype);
    /* strides are whole elements */
    return ckpt->infos[i].size_bytes == 0 || alignment == 1 ||
           heft__input_is_aligned(file->source,
                                  file->storages[entry->storage].offset + entry->start, alignment);
}

/* Which storages have several tensors; NULL without memory. */
static const uint8_t *shared_of(const heft_checkpoint *ckpt)
{
    enum { SEEN = 1, SHARED = 2 };
    uint8_t *shared = atomic_load(&ckpt->maps->shared), *expected = NULL;
    if (shared) {
        return shared;
    }
    shared = heft__alloc_zero(ckpt->ctx, ckpt->maps->count, 1);
    for (size_t i = 0; shared && i < ckpt->count; i++) {
        uint8_t *mark = &shared[ckpt->infos[i].storage];
        *mark = *mark ? SHARED : SEEN;
    }
    for (size_t i = 0; shared && i < ckpt->maps->count; i++) {
        shared[i] = shared[i] == SHARED;
    }
    if (shared && !atomic_compare_exchange_strong(&ckpt->maps->shared, &expected, shared)) {
        heft__free(ckpt->ctx, shared, ckpt->maps->count);
        shared = expected;
    }
    return shared;
}

/* A storage of several tensors as a whole, for all of them. */
static heft_status copy_in_memory(const heft_checkpoint *ckpt, size_t i, heft_map_mode mode,
                                  heft_tensor **out, heft_error *err)
{
    const uint8_t *shared = shared_of(ckpt);
    if (!shared) {
        return heft__fail_nomem(err, ckpt->maps->count);
    }
    const heft__file_tensor *entry = ckpt->entries[i];
    /* Elements of a storage that is itself aligned are so, but for views of a type of another size. A view
     * with strides may be larger than its storage. */
    const bool whole = (shared[ckpt->infos[i].storage] || entry->strides) &&
                       entry->start % heft__dtype_alignment(entry->dtype) == 0;
    return whole ? view_storage(ckpt, i, heft__map_is_private(mode) ? FORM_COPY_PRIVATE : FORM_COPY,
                                out, err)
                 : copy_to_heap(ckpt, i, out, err);
}

heft_status heft_checkpoint_map(const heft_checkpoint *ckpt, size_t i, heft_map_mode mode,
                                heft_tensor **out, heft_error *err)
{
    if (i >= ckpt->count) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "tensor index %zu is out of range, the checkpoint has %zu", i,
                          ckpt->count);
    }
    if ((unsigned)mode > HEFT_MAP_PRIVATE_UNALIGNED) {
        return heft__fail(err, HEFT_INVALID_ARG, "unknown map mode %d", (int)mode);
    }
    heft_status status;
    const heft__file *file = heft__file_of(ckpt, i);
    const bool private = heft__map_is_private(mode),
               maps = heft__input_can_map(file->source, private);
    if (!heft__tensor_is_mappable(file, ckpt->entries[i]) || (!maps && !private)) {
        status = copy_to_heap(ckpt, i, out, err); /* it is not in the file as it is used */
    } else if (!maps ||
               (!heft__map_takes_unaligned(mode) && !heft__checkpoint_is_aligned(ckpt, i))) {
        status = copy_in_memory(ckpt, i, mode, out, err);
    } else {
        status = view_storage(ckpt, i, private ? FORM_MAPPED_PRIVATE : FORM_MAPPED, out, err);
    }
    return heft__checkpoint_blame(ckpt, i, status, err);
}
