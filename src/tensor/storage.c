/* storage.c - refcounted bytes, and tensors on them.
 *
 *   heft_tensor [ struct | shape u64[rank] | strides i64[rank] ] --> heft_storage --> bytes (heap,
 * mapping, caller's)
 *                                                                         `--> heft_ctx
 *
 * A storage knows how to free its bytes and keeps its context alive; a tensor is one block and
 * holds one reference. Both are freed by whichever thread drops the last reference. This file
 * does not interpret the bytes. */
#include "tensor/tensor.h"

#include <stdatomic.h>

#define ALIGNMENT_MOST 4096u /* more than a page says nothing to anybody */

struct heft_storage {
    atomic_size_t refs;
    heft_ctx *ctx; /* a reference of its own */
    heft__memory memory;
};

/* ---- storage ------------------------------------------------------------------------------ */
heft_status heft__storage_make(heft_ctx *ctx, const heft__memory *memory, heft_storage **out,
                               heft_error *err)
{
    heft_storage *storage = heft__alloc_zero(ctx, 1, sizeof *storage);
    if (storage == NULL) {
        return heft__fail_nomem(err, sizeof *storage);
    }
    atomic_init(&storage->refs, 1);
    storage->ctx = heft__ctx_ref(ctx);
    storage->memory = *memory;
    *out = storage;
    return HEFT_OK;
}

static heft_status wrap(heft_ctx *ctx, const heft__memory *memory, heft_storage **out,
                        heft_error *err)
{
    if (ctx == NULL || out == NULL) {
        return heft__fail(err, HEFT_INVALID_ARG, "context or destination of a storage is NULL");
    }
    if (memory->data == NULL && memory->bytes > 0) {
        return heft__fail(err, HEFT_INVALID_ARG, "storage of %llu bytes has NULL data",
                          (unsigned long long)memory->bytes);
    }
    return heft__storage_make(ctx, memory, out, err);
}

heft_status heft_storage_wrap(heft_ctx *ctx, void *data, uint64_t bytes,
                              void (*release)(void *user), void *user, heft_storage **out,
                              heft_error *err)
{
    const heft__memory memory = {.data = data,
                                 .bytes = bytes,
                                 .flags = HEFT_TENSOR_WRITABLE,
                                 .release = release,
                                 .user = user};
    return wrap(ctx, &memory, out, err);
}

heft_status heft_storage_wrap_const(heft_ctx *ctx, const void *data, uint64_t bytes,
                                    void (*release)(void *user), void *user, heft_storage **out,
                                    heft_error *err)
{
    const heft__memory memory = {
        .data = (void *)(uintptr_t)data, .bytes = bytes, .release = release, .user = user};
    return wrap(ctx, &memory, out, err);
}

heft_status heft__storage_new(heft_ctx *ctx, uint64_t bytes, heft_storage **out, heft_error *err)
{
    size_t size = 0;
    void *data = heft__to_size(bytes, &size) ? heft__alloc(ctx, size) : NULL;
    if (data == NULL) {
        return heft__fail_nomem(err, bytes);
    }
    const heft__memory memory = {
        .data = data, .bytes = bytes, .flags = HEFT_TENSOR_WRITABLE, .heap = true};
    heft_status status = heft__storage_make(ctx, &memory, out, err);
    if (status != HEFT_OK) {
        heft__free(ctx, data, size);
    }
    return status;
}

heft_storage *heft_storage_ref(heft_storage *storage)
{
    if (storage != NULL) {
        atomic_fetch_add_explicit(&storage->refs, 1, memory_order_relaxed);
    }
    return storage;
}

void heft_storage_unref(heft_storage *storage)
{
    /* Release: what this thread wrote is visible to the one that frees; acquire: the one that frees
     * sees it. */
    if (storage == NULL ||
        atomic_fetch_sub_explicit(&storage->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    heft_ctx *ctx = storage->ctx;
    const heft__memory *memory = &storage->memory;
    if (memory->heap) {
        heft__free(ctx, memory->data, (size_t)memory->bytes);
    }
    if (memory->release != NULL) {
        memory->release(memory->user);
    }
    heft__free(ctx, storage, sizeof *storage);
    heft_ctx_free(ctx);
}

void *heft_storage_data(const heft_storage *storage)
{
    return storage->memory.data;
}

uint64_t heft_storage_bytes(const heft_storage *storage)
{
    return storage->memory.bytes;
}

heft_ctx *heft__storage_ctx(const heft_storage *storage)
{
    return storage->ctx;
}

bool heft__storage_is_own(const heft_storage *storage, size_t refs)
{
    return storage->memory.heap && (storage->memory.flags & HEFT_TENSOR_WRITABLE) &&
           atomic_load_explicit(&storage->refs, memory_order_acquire) == refs;
}

uint32_t heft_storage_flags(const heft_storage *storage)
{
    return storage->memory.flags;
}

/* ---- tensor ------------------------------------------------------------------------------- */
static size_t tensor_block_bytes(uint32_t rank)
{
    return sizeof(heft_tensor) + (size_t)rank * (sizeof(uint64_t) + sizeof(int64_t));
}

/* Elements from the first to the last one that the strides reach, both included; 0 for an empty
 * tensor. */
static bool strided_extent(const uint64_t *shape, const int64_t *strides, uint32_t rank,
                           uint64_t *extent)
{
    uint64_t last = 0;
    bool empty = false;
    for (uint32_t i = 0; i < rank; i++) {
        if (shape[i] == 0) {
            empty = true;
            continue;
        }
        uint64_t step = 0;
        if (strides[i] < 0 || !heft__mul_u64(shape[i] - 1, (uint64_t)strides[i], &step) ||
            !heft__add_u64(last, step, &last)) {
            return false;
        }
    }
    *extent = 0;
    return empty || heft__add_u64(last, 1, extent);
}

/* Check that every element lies inside the storage; size_bytes is filled. */
static heft_status tensor_check(const heft_tensor_spec *spec, const heft_storage *storage,
                                uint64_t *size_bytes, heft_error *err)
{
    char text[HEFT__SHAPE_TEXT];
    uint64_t extent = 0;
    uint64_t reach = 0;
    uint64_t end = 0;
    if (!heft__shape_bytes(spec->dtype, spec->shape, spec->rank, size_bytes)) {
        return heft__fail(err, HEFT_INVALID_ARG, "shape %s of %s has no valid size in bytes",
                          heft__shape_text(spec->shape, spec->rank, text),
                          heft_dtype_name(spec->dtype));
    }
    reach = *size_bytes;
    if (spec->strides != NULL &&
        (!strided_extent(spec->shape, spec->strides, spec->rank, &extent) ||
         !heft__dtype_bytes(spec->dtype, extent, &reach))) {
        return heft__fail(err, HEFT_INVALID_ARG, "strides of shape %s overflow 64 bits",
                          heft__shape_text(spec->shape, spec->rank, text));
    }
    if (!heft__add_u64(spec->offset_bytes, reach, &end) || end > storage->memory.bytes) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "tensor of %llu bytes at byte %llu exceeds its storage of %llu bytes",
                          (unsigned long long)reach, (unsigned long long)spec->offset_bytes,
                          (unsigned long long)storage->memory.bytes);
    }
    return HEFT_OK;
}

/* The largest power of two that divides an address. */
static uint32_t alignment_of(const void *data)
{
    const uintptr_t address = (uintptr_t)data | ALIGNMENT_MOST;
    return (uint32_t)(address & (0 - address));
}

heft_status heft_tensor_new(heft_storage *storage, const heft_tensor_spec *given, heft_tensor **out,
                            heft_error *err)
{
    heft_tensor_spec spec;
    uint64_t size_bytes = 0;
    if (storage == NULL || given == NULL || out == NULL) {
        return heft__fail(err, HEFT_INVALID_ARG, "storage, spec or destination is NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&spec, given, err);
    if (status == HEFT_OK && spec.rank > 0 && spec.shape == NULL) {
        status = heft__fail(err, HEFT_INVALID_ARG, "the tensor has rank %u, but its shape is NULL",
                            spec.rank);
    }
    const uint32_t most = heft__limits(storage->ctx)->rank;
    if (status == HEFT_OK && spec.rank > most) {
        status = heft__fail(err, HEFT_LIMIT, "the tensor has rank %u, the limit is %u (limit rank)",
                            spec.rank, most);
    }
    if (status == HEFT_OK) {
        status = tensor_check(&spec, storage, &size_bytes, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    /* From the storage's context, which lives as long as the tensor. */
    heft_tensor *tensor = heft__alloc(storage->ctx, tensor_block_bytes(spec.rank));
    if (tensor == NULL) {
        return heft__fail_nomem(err, tensor_block_bytes(spec.rank));
    }
    uint64_t *own_shape = (uint64_t *)(tensor + 1);
    int64_t *own_strides = (int64_t *)(own_shape + spec.rank);
    if (spec.rank > 0) {
        memcpy(own_shape, spec.shape, spec.rank * sizeof *own_shape);
    }
    if (spec.strides == NULL) {
        heft__shape_strides(spec.shape, spec.rank, own_strides);
    } else if (spec.rank > 0) {
        memcpy(own_strides, spec.strides, spec.rank * sizeof *own_strides);
    }
    uint8_t *bytes = storage->memory.data;
    *tensor = (heft_tensor){
        .dtype = spec.dtype,
        .rank = spec.rank,
        .shape = own_shape,
        .strides = own_strides,
        .data = bytes == NULL ? NULL : bytes + spec.offset_bytes,
        .size_bytes = size_bytes,
        .offset_bytes = spec.offset_bytes,
        .flags = storage->memory.flags,
        .device = HEFT_DEVICE_CPU,
        .storage = heft_storage_ref(storage),
    };
    tensor->alignment = alignment_of(tensor->data);
    *out = tensor;
    return HEFT_OK;
}

void heft_tensor_free(heft_tensor *tensor)
{
    if (tensor == NULL) {
        return;
    }
    heft_storage *storage = tensor->storage;
    heft__free(storage->ctx, tensor, tensor_block_bytes(tensor->rank));
    heft_storage_unref(storage);
}
