/* heft/tensor.h - data types, storages and tensors. */
#ifndef HEFT_TENSOR_H
#define HEFT_TENSOR_H

#include <heft/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Columns: name, PyTorch's name (or a similar one where PyTorch has none), short name, safetensors'
 * name ("" if it has none), bits per element. For F4 and the F6 types an element is one value, as
 * in safetensors headers. */
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
    HEFT_DTYPE_NONE, /* none or unknown; in options: the default that is documented there */
#define HEFT_DTYPE_ENUM(name, torch, brief, safetensors, bits) HEFT_DTYPE_##name,
    HEFT_DTYPE_TABLE(HEFT_DTYPE_ENUM)
#undef HEFT_DTYPE_ENUM
        HEFT_DTYPE_COUNT
} heft_dtype;

/** Return PyTorch's name of a dtype, such as "float32"; "none" for HEFT_DTYPE_NONE. Never NULL. */
HEFT_API const char *heft_dtype_name(heft_dtype dtype);
/** Return safetensors' name of a dtype, such as "F32"; "" if the format does not have it. Never
 * NULL. */
HEFT_API const char *heft_dtype_safetensors_name(heft_dtype dtype);
/** Return the number of bits per element, 0 for HEFT_DTYPE_NONE. */
HEFT_API unsigned heft_dtype_bits(heft_dtype dtype);
/** Return whether a dtype holds real floating-point numbers (float64 to float4). */
HEFT_API bool heft_dtype_is_floating(heft_dtype dtype);
/**
 * Find a dtype by PyTorch's name ("bfloat16", "torch.bfloat16"), its short name ("bf16") or
 * safetensors' name ("BF16").
 *
 * @param text   borrowed
 * @param dtype  filled
 * @param err    filled on failure; may be NULL
 *
 * Errors   INVALID_ARG for any other text.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_dtype_parse(const char *text, heft_dtype *dtype,
                                                      heft_error *err);

/** Return whether heft_cast() supports a pair of dtypes. It converts integers, bool, float64 to
 * float16, bfloat16 and the 8-bit floats to one another and to complex numbers, complex numbers to one
 * another, and copies every dtype to itself. It does not convert complex numbers to real ones, nor
 * the dtypes of less than 8 bits, the quantized and the bits dtypes to any other. */
HEFT_API bool heft_cast_known(heft_dtype from, heft_dtype to);
/**
 * Convert an array of elements to another dtype, with the results of copy_() in PyTorch 2.13 on
 * x86-64, on every machine.
 *
 * To a floating-point dtype, values are rounded to nearest even, overflow becomes infinity, NaN stays
 * NaN. To float16, bfloat16 and 8-bit floats, the way leads through float32. float8_e4m3fn has no
 * infinity: overflow becomes its largest number; in the fnuz types, NaN; float8_e8m0fnu has no sign
 * either: only the exponent is kept, rounded. An integer keeps its low bits in a smaller dtype. A
 * float loses its fraction; if the rest does not fit, and for NaN, the result is defined in
 * docs/casts.md. A bool is true for all but 0; NaN is true; any byte of a bool but 0 counts as 1. A
 * real number becomes a complex one with an imaginary part of 0.
 *
 * @param to     dtype of dst
 * @param dst    filled with elems elements; any alignment
 * @param from   dtype of src
 * @param src    borrowed; any alignment. Must not overlap dst, but may be equal to dst if the
 *               elements of both dtypes have the same size.
 * @param elems  number of elements
 * @param err    filled on failure; may be NULL
 *
 * Memory   no heap.
 * Errors   INVALID_ARG for a pair that heft_cast_known() rejects, for src and dst that overlap, and
 *          for sub-byte elements that do not fill whole bytes; nothing is written.
 * Threads  may be called by any number of threads at once; the work is done on the caller's thread.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_cast(heft_dtype to, void *dst, heft_dtype from,
                                               const void *src, size_t elems, heft_error *err);

/* Where a tensor's bytes are. Accelerators have the numbers 0, 1, ... */
#define HEFT_DEVICE_CPU (-1)
#define HEFT_DEVICE_DISK (-2)
#define HEFT_DEVICE_MPS (-3)
#define HEFT_DEVICE_NONE INT32_MIN

/* Flags of a storage and its tensors. Without WRITABLE, the bytes must not be written: in mapped or
 * shared memory, a write raises SIGSEGV. */
#define HEFT_TENSOR_WRITABLE (UINT32_C(1) << 0)
#define HEFT_TENSOR_MAPPED (UINT32_C(1) << 1) /* in a file mapping; with WRITABLE, a private one */
#define HEFT_TENSOR_SHARED (UINT32_C(1) << 2) /* in the copy that the processes of a host share */

/** Reference-counted bytes: a file mapping, heap memory, or the caller's own memory. Tied weights
 * are two names for one storage. */
typedef struct heft_storage heft_storage;

/**
 * Create a writable storage from the caller's own memory.
 *
 * @param ctx      borrowed; kept alive by the storage
 * @param data     taken; must stay valid until release is called. May be NULL if bytes is 0.
 * @param bytes    size of data
 * @param release  called once with `user` when the last reference is dropped; may be NULL
 * @param user     passed to release
 * @param out      filled with an owned reference
 * @param err      filled on failure; may be NULL. On failure, release is not called.
 *
 * Memory   one small block.
 * Errors   INVALID_ARG for NULL data with bytes > 0; NOMEM.
 * Threads  any thread may add and drop references. release is called on the thread that drops the
 *          last reference, during the call that drops it: heft_storage_unref(), heft_tensor_free(),
 *          the deleter of a DLPack tensor, or the function that frees the object holding it. It
 *          must therefore work on every thread on which the program makes such a call. heft's own
 *          threads never call it. heft holds no lock during the call; release may call heft.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_storage_wrap(heft_ctx *ctx, void *data, uint64_t bytes,
                                                       void (*release)(void *user), void *user,
                                                       heft_storage **out, heft_error *err);
/** As heft_storage_wrap(), for memory that must not be written: its tensors lack
 * HEFT_TENSOR_WRITABLE. */
HEFT_API HEFT_MUST_CHECK heft_status heft_storage_wrap_const(heft_ctx *ctx, const void *data,
                                                             uint64_t bytes,
                                                             void (*release)(void *user),
                                                             void *user, heft_storage **out,
                                                             heft_error *err);
/** Add a reference. Returns its argument. */
HEFT_API heft_storage *heft_storage_ref(heft_storage *storage);
/** Drop a reference. NULL is allowed. */
HEFT_API void heft_storage_unref(heft_storage *storage);
/** Return the address of the bytes, lent while a reference is held. heft_storage_flags() says
 * whether they are writable. */
HEFT_API void *heft_storage_data(const heft_storage *storage);
/** Return the size in bytes. */
HEFT_API uint64_t heft_storage_bytes(const heft_storage *storage);
/** Return the HEFT_TENSOR_ flags of the storage. Every tensor on it has the same flags. */
HEFT_API uint32_t heft_storage_flags(const heft_storage *storage);

/** A dense tensor. It holds a reference to its storage and may outlive the checkpoint or model from
 * which it was created. Only heft creates this structure; later versions may add members at the
 * end. */
typedef struct heft_tensor {
    heft_dtype dtype;
    uint32_t rank;          /* 0: one element */
    const uint64_t *shape;  /* [rank], PyTorch's order */
    const int64_t *strides; /* [rank], in elements */
    void *data;             /* first element; flags say whether it is writable */
    uint64_t size_bytes;    /* of the elements, laid out row by row */
    uint64_t offset_bytes;  /* offset of data in the storage */
    uint32_t alignment;     /* power of two that divides the address of data; at most 4096 */
    uint32_t flags;         /* HEFT_TENSOR_WRITABLE, _MAPPED, _SHARED */
    int32_t device;         /* HEFT_DEVICE_CPU: data can be dereferenced */
    heft_storage *storage;
} heft_tensor;

/** The layout of a tensor in a storage. */
typedef struct heft_tensor_spec {
    size_t struct_size; /* set by HEFT_OPTIONS */
    heft_dtype dtype;
    uint32_t rank;          /* 0: one element */
    const uint64_t *shape;  /* [rank], PyTorch's order; may be NULL with rank 0 */
    const int64_t *strides; /* [rank], in elements, not negative; NULL: row-major, no gaps */
    uint64_t offset_bytes;  /* of the first element in the storage */
} heft_tensor_spec;

/**
 * Create a tensor that refers to bytes of a storage. Tensors on the same storage may overlap.
 *
 * @param storage  borrowed; the tensor takes a reference of its own
 * @param spec     borrowed; shape and strides are copied
 * @param out      filled with an owned tensor
 * @param err      filled on failure; may be NULL
 *
 * Memory   one small block from the storage's context.
 * Errors   INVALID_ARG if an element is outside the storage, if the dtype is NONE, for a negative
 *          stride, and for sub-byte elements that do not fill whole bytes; LIMIT for more
 *          dimensions than heft_limits allows; NOMEM.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_tensor_new(heft_storage *storage,
                                                     const heft_tensor_spec *spec,
                                                     heft_tensor **out, heft_error *err);
/** Free a tensor, and drop its reference to the storage. NULL is allowed. */
HEFT_API void heft_tensor_free(heft_tensor *tensor);

struct DLManagedTensorVersioned; /* <heft/dlpack.h>, or any dlpack.h of version 1 */

/**
 * Export a tensor to another library as a DLPack 1.x structure, without copying.
 *
 * dtypes are encoded as in PyTorch: bfloat16, bool, complex and each 8-bit float have codes of
 * their own. float4_e2m1fn_x2 is exported in pairs (bits 4, lanes 2, the last dimension halved), as
 * PyTorch expects. The 6-bit floats are exported packed, as single values, which PyTorch 2.13
 * rejects. NumPy rejects bfloat16, complex32 and all floats of less than 16 bits. If the tensor has
 * no elements, `data` is NULL.
 *
 * @param tensor  borrowed; may be freed before the result
 * @param out     filled with an owned structure. Its final owner calls its `deleter` once.
 *                DLPACK_FLAG_BITMASK_READ_ONLY is set if the tensor lacks HEFT_TENSOR_WRITABLE.
 *                PyTorch 2.13 ignores this flag, and a write to the memory then raises SIGSEGV.
 * @param err     filled on failure; may be NULL
 *
 * Memory   one small block from the storage's context, which the result keeps alive.
 * Errors   UNSUPPORTED for the quantized and bits dtypes, for a sub-byte tensor that is strided or
 *          in which a pair would cross rows, and for a dimension of 2^63 or more; NOMEM.
 * Source   include/heft/dlpack.h, docs/dlpack.md.
 * Threads  any thread may call the deleter; the context's `free` is then called on that thread.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_tensor_to_dlpack(const heft_tensor *tensor,
                                                           struct DLManagedTensorVersioned **out,
                                                           heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
