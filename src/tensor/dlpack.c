/* dlpack.c - a tensor in DLPack's words, for another library.
 *
 *   struct export [ DLManagedTensorVersioned | storage | bytes ] shape i64[ndim] strides i64[ndim]
 *
 * One block, which holds a reference of its own on the storage: neither the tensor nor what it came
 * from is needed any more. The deleter may run on any thread. `data` points to the first element and
 * byte_offset is 0, as every producer does it.
 *
 * Bits below a byte: float4 goes out as PyTorch takes it, in pairs (lanes 2, the last dimension
 * halved); the 6-bit floats as DLPack has them, one by one and packed, which PyTorch refuses.
 * Source: include/heft/dlpack.h (DLPack 1.3); PyTorch 2.13 aten/src/ATen/DLConvertor.cpp. */
#include "tensor/tensor.h"

#include <heft/dlpack.h>

struct export
{
    DLManagedTensorVersioned managed; /* first: what the consumer has is this */
    heft_storage *storage;
    size_t bytes; /* of the block */
};

/* Rows without a name have bits 0: DLPack has no such type. */
static const DLDataType dlpack_types[HEFT_DTYPE_COUNT] = {
    [HEFT_DTYPE_F32] = {kDLFloat,           32,  1},
    [HEFT_DTYPE_F64] = {kDLFloat,           64,  1},
    [HEFT_DTYPE_F16] = {kDLFloat,           16,  1},
    [HEFT_DTYPE_BF16] = {kDLBfloat,          16,  1},
    [HEFT_DTYPE_I64] = {kDLInt,             64,  1},
    [HEFT_DTYPE_I32] = {kDLInt,             32,  1},
    [HEFT_DTYPE_I16] = {kDLInt,             16,  1},
    [HEFT_DTYPE_I8] = {kDLInt,             8,   1},
    [HEFT_DTYPE_U8] = {kDLUInt,            8,   1},
    [HEFT_DTYPE_U16] = {kDLUInt,            16,  1},
    [HEFT_DTYPE_U32] = {kDLUInt,            32,  1},
    [HEFT_DTYPE_U64] = {kDLUInt,            64,  1},
    [HEFT_DTYPE_BOOL] = {kDLBool,            8,   1},
    [HEFT_DTYPE_C32] = {kDLComplex,         32,  1},
    [HEFT_DTYPE_C64] = {kDLComplex,         64,  1},
    [HEFT_DTYPE_C128] = {kDLComplex,         128, 1},
    [HEFT_DTYPE_F8_E4M3FN] = {kDLFloat8_e4m3fn,   8,   1},
    [HEFT_DTYPE_F8_E5M2] = {kDLFloat8_e5m2,     8,   1},
    [HEFT_DTYPE_F8_E4M3FNUZ] = {kDLFloat8_e4m3fnuz, 8,   1},
    [HEFT_DTYPE_F8_E5M2FNUZ] = {kDLFloat8_e5m2fnuz, 8,   1},
    [HEFT_DTYPE_F8_E8M0FNU] = {kDLFloat8_e8m0fnu,  8,   1},
    [HEFT_DTYPE_F4_E2M1FN_X2] = {kDLFloat4_e2m1fn,   4,   2},
    [HEFT_DTYPE_F6_E2M3] = {kDLFloat6_e2m3fn,   6,   1},
    [HEFT_DTYPE_F6_E3M2] = {kDLFloat6_e3m2fn,   6,   1},
};

static void delete_export(DLManagedTensorVersioned *managed)
{
    struct export *export = managed != NULL ? managed->manager_ctx : NULL;
    if (export != NULL) {
        heft_storage *storage = export->storage;
        heft__free(heft__storage_ctx(storage), export, export->bytes);
        heft_storage_unref(storage);
    }
}

/* Whether the elements lie row by row without gaps. */
static bool is_compact(const heft_tensor *tensor)
{
    uint64_t step = 1;
    for (uint32_t i = tensor->rank; i-- > 0;) {
        if (tensor->shape[i] > 1 && (uint64_t)tensor->strides[i] != step) {
            return false;
        }
        step *= tensor->shape[i]; /* of a tensor whose size was checked */
    }
    return true;
}

/* DLPack's type, shape and strides; both arrays have room for the rank. */
static heft_status describe(const heft_tensor *tensor, DLTensor *out, heft_error *err)
{
    const char *name = heft_dtype_name(tensor->dtype);
    const size_t row = (size_t)tensor->dtype < HEFT_DTYPE_COUNT ? (size_t)tensor->dtype : 0;
    out->dtype = dlpack_types[row];
    const uint64_t lanes = out->dtype.lanes;
    if (out->dtype.bits == 0) {
        return heft__fail(err, HEFT_UNSUPPORTED, "DLPack has no dtype %s", name);
    }
    if (tensor->device != HEFT_DEVICE_CPU) {
        return heft__fail(err, HEFT_UNSUPPORTED, "only CPU memory can be exported");
    }
    if (out->dtype.bits % 8 != 0 && tensor->size_bytes > 0 && !is_compact(tensor)) {
        return heft__fail(err, HEFT_UNSUPPORTED, "DLPack cannot represent a strided tensor of %s",
                          name);
    }
    for (uint32_t i = 0; i < tensor->rank; i++) {
        const bool packed = lanes > 1 && i == tensor->rank - 1;
        const uint64_t size = packed ? tensor->shape[i] / lanes : tensor->shape[i];
        if (size > INT64_MAX || (packed && tensor->shape[i] % lanes != 0)) {
            return heft__fail(err, HEFT_UNSUPPORTED,
                              "dimension %u of %llu elements of %s cannot be represented in DLPack",
                              i, (unsigned long long)tensor->shape[i], name);
        }
        out->shape[i] = (int64_t)size;
        out->strides[i] = tensor->strides[i];
    }
    if (lanes > 1) { /* compact: the strides follow from the shape */
        heft__shape_strides((const uint64_t *)out->shape, tensor->rank, out->strides);
    }
    return HEFT_OK;
}

heft_status heft_tensor_to_dlpack(const heft_tensor *tensor, DLManagedTensorVersioned **out,
                                  heft_error *err)
{
    if (tensor == NULL || out == NULL || tensor->storage == NULL) {
        return heft__fail(err, HEFT_INVALID_ARG, "tensor, its storage or destination is NULL");
    }
    heft_ctx *ctx = heft__storage_ctx(tensor->storage);
    const size_t bytes = sizeof(struct export) + (size_t)tensor->rank * 2 * sizeof(int64_t);
    struct export *export = heft__alloc(ctx, bytes);
    if (export == NULL) {
        return heft__fail_nomem(err, bytes);
    }
    int64_t *shape = (int64_t *)(export + 1);
    const bool writable = (tensor->flags & HEFT_TENSOR_WRITABLE) != 0;
    *export = (struct export){
        .managed = {.version = {DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION},
                    .manager_ctx = export,
                    .deleter = delete_export,
                    .flags = writable ? 0 : DLPACK_FLAG_BITMASK_READ_ONLY,
                    .dl_tensor = {.data = tensor->size_bytes > 0 ? tensor->data : NULL,
                                  .device = {kDLCPU, 0},
                                  .ndim = (int32_t)tensor->rank,
                                  .shape = shape,
                                  .strides = shape + tensor->rank}},
        .bytes = bytes,
    };
    heft_status status = describe(tensor, &export->managed.dl_tensor, err);
    if (status != HEFT_OK) {
        heft__free(ctx, export, bytes);
        return status;
    }
    export->storage = heft_storage_ref(tensor->storage);
    *out = &export->managed;
    return HEFT_OK;
}
