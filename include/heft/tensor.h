/* heft/tensor.h - data types, storages and tensors. */
#ifndef HEFT_TENSOR_H
#define HEFT_TENSOR_H

#include <heft/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* name, PyTorch's name, short name, safetensors' name ("" if it has none), bits of one element.
 * F4 and the sub-byte F6 types count values, as safetensors' headers do. */
#define HEFT_DTYPE_TABLE(X)                                                                        \
    X(F32, "float32", "f32", "F32", 32)                                                            \
    X(F64, "float64", "f64", "F64", 64)                                                            \
    X(F16, "float16", "f16", "F16", 16)                                                            \
    X(BF16, "bfloat16", "bf16", "BF16", 16)                                                        \
    X(I64, "int64", "i64", "I64", 64)                                                              \
    X(I32, "int32", "i32", "I32", 32)                                                              \
    X(I16, "int16", "i16", "I16", 16)                                                              \
    X(I8, "int8", "i8", "I8", 8)                                                                   \
    X(U8, "uint8", "u8", "U8", 8)                                                                  \
    X(U16, "uint16", "u16", "U16", 16)                                                             \
    X(U32, "uint32", "u32", "U32", 32)                                                             \
    X(U64, "uint64", "u64", "U64", 64)                                                             \
    X(BOOL, "bool", "bool", "BOOL", 8)                                                             \
    X(C32, "complex32", "c32", "", 32)                                                             \
    X(C64, "complex64", "c64", "C64", 64)                                                          \
    X(C128, "complex128", "c128", "", 128)                                                         \
    X(F8_E4M3FN, "float8_e4m3fn", "f8_e4m3", "F8_E4M3", 8)                                         \
    X(F8_E5M2, "float8_e5m2", "f8_e5m2", "F8_E5M2", 8)                                             \
    X(F8_E4M3FNUZ, "float8_e4m3fnuz", "f8_e4m3fnuz", "F8_E4M3FNUZ", 8)                             \
    X(F8_E5M2FNUZ, "float8_e5m2fnuz", "f8_e5m2fnuz", "F8_E5M2FNUZ", 8)                             \
    X(F8_E8M0FNU, "float8_e8m0fnu", "f8_e8m0", "F8_E8M0", 8)                                       \
    X(F4_E2M1FN_X2, "float4_e2m1fn_x2", "f4", "F4", 4)                                             \
    X(F6_E2M3, "float6_e2m3", "f6_e2m3", "F6_E2M3", 6)                                             \
    X(F6_E3M2, "float6_e3m2", "f6_e3m2", "F6_E3M2", 6)                                             \
    X(QINT8, "qint8", "qint8", "", 8)                                                              \
    X(QUINT8, "quint8", "quint8", "", 8)                                                           \
    X(QINT32, "qint32", "qint32", "", 32)                                                          \
    X(QUINT4X2, "quint4x2", "quint4x2", "", 8)                                                     \
    X(QUINT2X4, "quint2x4", "quint2x4", "", 8)                                                     \
    X(BITS8, "bits8", "bits8", "", 8)                                                              \
    X(BITS16, "bits16", "bits16", "", 16)                                                          \
    X(BITS1X8, "bits1x8", "bits1x8", "", 8)                                                        \
    X(BITS2X4, "bits2x4", "bits2x4", "", 8)                                                        \
    X(BITS4X2, "bits4x2", "bits4x2", "", 8)

typedef enum heft_dtype {
    HEFT_DTYPE_NONE, /* not known, or "as it is" in options */
#define HEFT_DTYPE_ENUM(name, torch, brief, safetensors, bits) HEFT_DTYPE_##name,
    HEFT_DTYPE_TABLE(HEFT_DTYPE_ENUM)
#undef HEFT_DTYPE_ENUM
        HEFT_DTYPE_COUNT
} heft_dtype;

/** Return PyTorch's name of a dtype, "float32"; "none" for HEFT_DTYPE_NONE. Never NULL. */
HEFT_API const char *heft_dtype_name(heft_dtype dtype);
/** Return safetensors' name of a dtype, "F32"; "" for those it cannot hold. Never NULL. */
HEFT_API const char *heft_dtype_safetensors_name(heft_dtype dtype);
/** Return the bits of one element, 0 for HEFT_DTYPE_NONE. */
HEFT_API unsigned heft_dtype_bits(heft_dtype dtype);
/** Tell whether a dtype holds real floating-point numbers (float64 to float4). */
HEFT_API bool heft_dtype_is_floating(heft_dtype dtype);
/**
 * Find a dtype by PyTorch's name ("bfloat16", "torch.bfloat16"), its short name ("bf16") or
 * safetensors' ("BF16").
 *
 * @param text   borrowed
 * @param dtype  filled
 * @param err    filled on failure; may be NULL
 *
 * Errors   INVALID_ARG for any other text.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_dtype_parse(const char *text, heft_dtype *dtype,
                                                      heft_error *err);

/** Tell whether heft_cast() converts a pair: float64, float32, float16, bfloat16 and the 8-bit
 * floats to float64, float32, float16 and bfloat16, and every dtype to itself. */
HEFT_API bool heft_cast_known(heft_dtype from, heft_dtype to);
/**
 * Convert an array of elements to another dtype, as PyTorch does: rounds to nearest even, overflow
 * becomes infinity, NaN stays NaN. float64 goes to a half type through float32.
 *
 * @param to     dtype of dst
 * @param dst    filled with elems elements; any alignment
 * @param from   dtype of src
 * @param src    borrowed; any alignment. Must not overlap dst, but may be dst if elements of both
 *               dtypes have one size.
 * @param elems  number of elements
 * @param err    filled on failure; may be NULL
 *
 * Memory   no heap.
 * Errors   INVALID_ARG for a pair that heft_cast_known() does not know, for src and dst that
 *          overlap, and for elements below a byte that do not fill whole bytes; nothing is written.
 * Threads  any number at once; the caller's thread does the work.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_cast(heft_dtype to, void *dst, heft_dtype from,
                                               const void *src, size_t elems, heft_error *err);

/* Where bytes are. Accelerators are numbered from 0. */
#define HEFT_DEVICE_CPU (-1)
#define HEFT_DEVICE_DISK (-2)
#define HEFT_DEVICE_MPS (-3)
#define HEFT_DEVICE_NONE INT32_MIN

/* What may be done with a storage and its tensors, and where their bytes come from. */
#define HEFT_TENSOR_WRITABLE                                                                       \
    (UINT32_C(1) << 0)                        /* without it: a write to mapped or shared memory
                                                   raises SIGSEGV, the caller's own must not change */
#define HEFT_TENSOR_MAPPED (UINT32_C(1) << 1) /* a mapping of a file; with WRITABLE, private */
#define HEFT_TENSOR_SHARED (UINT32_C(1) << 2) /* the copy that processes of this host share */

/** Refcounted bytes: a file mapping, heap, or the caller's own memory. Tied weights are two names
 * on one storage. */
typedef struct heft_storage heft_storage;

/**
 * Make a storage of the caller's own memory, which may be written.
 *
 * @param ctx      borrowed; kept alive by the storage
 * @param data     taken: stays valid until release is called
 * @param bytes    size of data
 * @param release  called once with `user` when the last reference is dropped; may be NULL
 * @param out      filled with an owned reference
 * @param err      filled on failure; may be NULL. release is not called on failure.
 *
 * Errors   INVALID_ARG for NULL data with bytes > 0; NOMEM.
 * Threads  any thread may take and drop references. release is called on the thread that drops the
 *          last one, inside the call that drops it: heft_storage_unref(), heft_tensor_free(), the
 *          deleter of a DLPack tensor, or the function that frees the object which holds it. So it
 *          must be ready for any thread that the program lets do one of these. A thread of heft's own
 *          is never one of them. No lock of heft's is held; release may call heft.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_storage_wrap(heft_ctx *ctx, void *data, uint64_t bytes,
                                                       void (*release)(void *user), void *user,
                                                       heft_storage **out, heft_error *err);
/** As heft_storage_wrap(), of memory that must not be written: its tensors lack
 * HEFT_TENSOR_WRITABLE. */
HEFT_API HEFT_MUST_CHECK heft_status heft_storage_wrap_const(heft_ctx *ctx, const void *data,
                                                             uint64_t bytes,
                                                             void (*release)(void *user),
                                                             void *user, heft_storage **out,
                                                             heft_error *err);
/** Take one more reference; returns its argument. */
HEFT_API heft_storage *heft_storage_ref(heft_storage *storage);
/** Drop a reference. NULL is allowed. */
HEFT_API void heft_storage_unref(heft_storage *storage);
/** Return the bytes, lent for as long as a reference is held. heft_storage_flags() says whether
 * they may be written. */
HEFT_API void *heft_storage_data(const heft_storage *storage);
/** Return the size in bytes. */
HEFT_API uint64_t heft_storage_bytes(const heft_storage *storage);
/** Return the HEFT_TENSOR_ flags that every tensor on this storage has. */
HEFT_API uint32_t heft_storage_flags(const heft_storage *storage);

/** A dense tensor. It holds a reference on its storage and outlives the checkpoint or model that it
 * came from. Made by heft, which may add members at the end. */
typedef struct heft_tensor {
    heft_dtype dtype;
    uint32_t rank;          /* 0: one element */
    const uint64_t *shape;  /* [rank], PyTorch's order */
    const int64_t *strides; /* [rank], in elements */
    void *data;             /* first element; flags say whether it may be written */
    uint64_t size_bytes;    /* of the elements laid out row by row */
    uint64_t offset_bytes;  /* of data in its storage */
    uint32_t alignment;     /* of data: a power of two that divides its address, 4096 at most */
    uint32_t flags;         /* HEFT_TENSOR_WRITABLE, _MAPPED, _SHARED */
    int32_t device;         /* HEFT_DEVICE_CPU: data can be dereferenced */
    heft_storage *storage;
} heft_tensor;

/** What a tensor on a storage looks like. */
typedef struct heft_tensor_spec {
    size_t struct_size; /* set by HEFT_OPTIONS */
    heft_dtype dtype;
    uint32_t rank;          /* 0: one element */
    const uint64_t *shape;  /* [rank], PyTorch's order; may be NULL with rank 0 */
    const int64_t *strides; /* [rank], in elements, not negative; NULL: row by row without gaps */
    uint64_t offset_bytes;  /* of the first element in the storage */
} heft_tensor_spec;

/**
 * Make a tensor on a storage. Several tensors may lie on one storage and overlap.
 *
 * @param storage  borrowed; the tensor takes a reference of its own
 * @param spec     borrowed; shape and strides are copied
 * @param out      filled with an owned tensor
 * @param err      filled on failure; may be NULL
 *
 * Memory   one small block from the storage's context.
 * Errors   INVALID_ARG if an element lies outside of the storage, if the dtype is NONE, for a
 *          negative stride, and for elements below a byte that do not fill whole bytes; LIMIT for
 *          more dimensions than heft_limits allows; NOMEM.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_tensor_new(heft_storage *storage,
                                                     const heft_tensor_spec *spec,
                                                     heft_tensor **out, heft_error *err);
/** Free a tensor and drop its reference. NULL is allowed. */
HEFT_API void heft_tensor_free(heft_tensor *tensor);

struct DLManagedTensorVersioned; /* <heft/dlpack.h>, or any dlpack.h of version 1 */

/**
 * Describe a tensor for another library as DLPack 1.x does, without copying.
 *
 * dtypes are those of PyTorch: bfloat16, bool and complex have codes of their own, and so has each
 * 8-bit float. float4_e2m1fn_x2 goes out in pairs (bits 4, lanes 2, the last dimension halved), as
 * PyTorch takes it; the 6-bit floats one by one and packed, which PyTorch 2.13 refuses. NumPy refuses
 * bfloat16, the floats below 16 bits and float4. `data` of a tensor without elements is NULL.
 *
 * @param tensor  borrowed; may be freed before the result
 * @param out     filled with an owned structure. Whoever ends up with it calls its `deleter` once.
 *                DLPACK_FLAG_BITMASK_READ_ONLY is set where HEFT_TENSOR_WRITABLE is not. PyTorch 2.13
 *                ignores it, and a write to the memory raises SIGSEGV.
 * @param err     filled on failure; may be NULL
 *
 * Memory   one small block from the storage's context, which the result keeps alive.
 * Errors   UNSUPPORTED for the quantized and bits dtypes, for elements below a byte that are strided
 *          or whose pairs cross rows, and for a dimension of 2^63 elements or more; NOMEM.
 * Source   include/heft/dlpack.h, docs/dlpack.md.
 * Threads  any thread may call the deleter; the context's `free` then runs there.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_tensor_to_dlpack(const heft_tensor *tensor,
                                                           struct DLManagedTensorVersioned **out,
                                                           heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
