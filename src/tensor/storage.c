/* storage.c - refcounted bytes, and tensors on them.
 *
 *   heft_tensor [ struct | shape u64[rank] | strides i64[rank] ] --> heft_storage --> bytes (heap,
 * mapping, caller's)
 *                                                                         `--> heft_ctx
 *
 * A storage knows how to give its bytes back and keeps its context alive; a tensor is one block and
 * holds one reference. Both are freed by whichever thread drops the last reference. What the bytes
 * mean is nobody's business here. */
#include "tensor/tensor.h"

#include <stdatomic.h>

struct heft_storage {
    atomic_size_t refs;
    heft_ctx *ctx; /* a reference of its own */
    void *data;
    uint64_t bytes;
    void (*release)(void *user); /* NULL: nobody to tell */
    void *user;
    bool heap; /* data is from heft__alloc */
};

/* ---- storage ------------------------------------------------------------------------------ */
static heft_storage *storage_make(heft_ctx *ctx, void *data, uint64_t bytes)
{
    heft_storage *storage = heft__alloc_zero(ctx, 1, sizeof *storage);
    if (storage == NULL) {
        return NULL;
    }
    atomic_init(&storage->refs, 1);
    storage->ctx = heft__ctx_ref(ctx);
    storage->data = data;
    storage->bytes = bytes;
    return storage;
}

heft_status heft_storage_wrap(heft_ctx *ctx, void *data, uint64_t bytes,
                              void (*release)(void *user), void *user, heft_storage **out,
                              heft_error *err)
{
    if (ctx == NULL || out == NULL) {
        return heft__fail(err, HEFT_INVALID_ARG, "context or destination of a storage is NULL");
    }
    if (data == NULL && bytes > 0) {
        return heft__fail(err, HEFT_INVALID_ARG, "storage of %llu bytes has NULL data",
                          (unsigned long long)bytes);
    }
    heft_storage *storage = storage_make(ctx, data, bytes);
    if (storage == NULL) {
        return heft__fail_nomem(err, sizeof *storage);
    }
    storage->release = release;
    storage->user = user;
    *out = storage;
    return HEFT_OK;
}

heft_status heft__storage_new(heft_ctx *ctx, uint64_t bytes, heft_storage **out, heft_error *err)
{
    size_t size = 0;
    void *data = heft__to_size(bytes, &size) ? heft__alloc(ctx, size) : NULL;
    if (data == NULL) {
        return heft__fail_nomem(err, bytes);
    }
    heft_storage *storage = storage_make(ctx, data, bytes);
    if (storage == NULL) {
        heft__free(ctx, data, size);
        return heft__fail_nomem(err, sizeof *storage);
    }
    storage->heap = true;
    *out = storage;
    return HEFT_OK;
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
    if (storage->heap) {
        heft__free(ctx, storage->data, (size_t)storage->bytes);
    }
    if (storage->release != NULL) {
        storage->release(storage->user);
    }
    heft__free(ctx, storage, sizeof *storage);
    heft_ctx_free(ctx);
}

void *heft_storage_data(const heft_storage *storage)
{
    return storage->data;
}

uint64_t heft_storage_bytes(const heft_storage *storage)
{
    return storage->bytes;
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
static heft_status tensor_check(heft_dtype dtype, const uint64_t *shape, uint32_t rank,
                                const int64_t *strides, const heft_storage *storage,
                                uint64_t byte_offset, uint64_t *size_bytes, heft_error *err)
{
    char text[HEFT__SHAPE_TEXT];
    uint64_t extent = 0;
    uint64_t reach = 0;
    uint64_t end = 0;
    if (!heft__shape_bytes(dtype, shape, rank, size_bytes)) {
        return heft__fail(err, HEFT_INVALID_ARG, "shape %s of %s has no size in bytes",
                          heft__shape_text(shape, rank, text), heft_dtype_name(dtype));
    }
    reach = *size_bytes;
    if (strides != NULL && (!strided_extent(shape, strides, rank, &extent) ||
                            !heft__dtype_bytes(dtype, extent, &reach))) {
        return heft__fail(err, HEFT_INVALID_ARG, "strides of shape %s leave 64 bits",
                          heft__shape_text(shape, rank, text));
    }
    if (!heft__add_u64(byte_offset, reach, &end) || end > storage->bytes) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "tensor of %llu bytes at byte %llu leaves its storage of %llu bytes",
                          (unsigned long long)reach, (unsigned long long)byte_offset,
                          (unsigned long long)storage->bytes);
    }
    return HEFT_OK;
}

heft_status heft__tensor_new(heft_ctx *ctx, heft_dtype dtype, const uint64_t *shape, uint32_t rank,
                             const int64_t *strides, heft_storage *storage, uint64_t byte_offset,
                             bool mapped, heft_tensor **out, heft_error *err)
{
    uint64_t size_bytes = 0;
    heft_status status =
        tensor_check(dtype, shape, rank, strides, storage, byte_offset, &size_bytes, err);
    if (status != HEFT_OK) {
        return status;
    }
    /* From the storage's context, which lives as long as the tensor: it also gets the block back.
     */
    (void)ctx;
    heft_tensor *tensor = heft__alloc(storage->ctx, tensor_block_bytes(rank));
    if (tensor == NULL) {
        return heft__fail_nomem(err, tensor_block_bytes(rank));
    }
    uint64_t *own_shape = (uint64_t *)(tensor + 1);
    int64_t *own_strides = (int64_t *)(own_shape + rank);
    if (rank > 0) {
        memcpy(own_shape, shape, rank * sizeof *own_shape);
    }
    if (strides == NULL) {
        heft__shape_strides(shape, rank, own_strides);
    } else if (rank > 0) {
        memcpy(own_strides, strides, rank * sizeof *own_strides);
    }
    *tensor = (heft_tensor){
        .dtype = dtype,
        .rank = rank,
        .shape = own_shape,
        .strides = own_strides,
        .data = storage->data == NULL ? NULL : (uint8_t *)storage->data + byte_offset,
        .size_bytes = size_bytes,
        .mapped = mapped,
        .storage = heft_storage_ref(storage),
    };
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
