/* export.c - tensors for other libraries, and theirs for heft: DLPack and Python's buffers.
 *
 * What is exported holds a heft_tensor and no Python object: its deleter runs on any thread and needs
 * no GIL. Of other libraries' memory only tensors on the CPU are taken, and every number of a capsule
 * is checked before it is used. */
#include "ext.h"

#include <stdatomic.h>
#include <stdlib.h>

/* ---- DLPack, out ----------------------------------------------------------------------------- */
/* The structure of DLPack before 1.0, which consumers get that do not name a version. */
struct unversioned {
    DLManagedTensor managed;
    DLManagedTensorVersioned *inner;
};

static void delete_unversioned(DLManagedTensor *managed)
{
    struct unversioned *self = managed->manager_ctx;
    self->inner->deleter(self->inner);
    free(self);
}

static void drop_versioned(PyObject *capsule)
{
    DLManagedTensorVersioned *managed = PyCapsule_IsValid(capsule, "dltensor_versioned")
                                            ? PyCapsule_GetPointer(capsule, "dltensor_versioned")
                                            : NULL;
    if (managed && managed->deleter) { /* nobody took it */
        managed->deleter(managed);
    }
}

static void drop_unversioned(PyObject *capsule)
{
    DLManagedTensor *managed =
        PyCapsule_IsValid(capsule, "dltensor") ? PyCapsule_GetPointer(capsule, "dltensor") : NULL;
    if (managed && managed->deleter) {
        managed->deleter(managed);
    }
}

static PyObject *capsule_of(DLManagedTensorVersioned *inner, bool versioned)
{
    PyObject *capsule = NULL;
    if (versioned) {
        capsule = PyCapsule_New(inner, "dltensor_versioned", drop_versioned);
    } else if (inner->flags & DLPACK_FLAG_BITMASK_READ_ONLY) {
        PyErr_SetString(PyExc_BufferError,
                        "the tensor is read-only, which DLPack before version 1.0 cannot say");
    } else {
        struct unversioned *self = calloc(1, sizeof *self);
        if (self) {
            self->inner = inner;
            self->managed = (DLManagedTensor){inner->dl_tensor, self, delete_unversioned};
            capsule = PyCapsule_New(&self->managed, "dltensor", drop_unversioned);
        } else {
            PyErr_NoMemory();
        }
        if (!capsule) {
            free(self);
        }
    }
    if (!capsule) {
        inner->deleter(inner);
    }
    return capsule;
}

static bool pair_of(PyObject *object, const char *name, long *first, long *second)
{
    if (!PyTuple_Check(object) || PyTuple_Size(object) != 2) {
        PyErr_Format(PyExc_TypeError, "%s is a tuple of two integers, or None", name);
        return false;
    }
    *first = PyLong_AsLong(PyTuple_GetItem(object, 0));
    *second = PyErr_Occurred() ? 0 : PyLong_AsLong(PyTuple_GetItem(object, 1));
    return !PyErr_Occurred();
}

/* torch reads complex128 with instructions that fault at other addresses. Smaller elements may be
 * anywhere: safetensors puts them there, too. */
static bool is_aligned(const heft_tensor *tensor)
{
    return tensor->dtype != HEFT_DTYPE_C128 || tensor->size_bytes == 0 ||
           (uintptr_t)tensor->data % 16 == 0;
}

/* Raise BufferError if the tensor can only be had as a copy. */
static bool refuse_copy(Tensor *self)
{
    const bool may = self->memory || tensor_may_map(self);
    if (!may) {
        PyErr_SetString(PyExc_BufferError,
                        "the slice is not one run of bytes: it has to be copied");
    }
    return may;
}

PyObject *tensor_dlpack(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"stream", "max_version", "dl_device", "copy", NULL};
    Tensor *self = (Tensor *)object;
    PyObject *stream = Py_None, *version = Py_None, *device = Py_None, *copy = Py_None;
    long major = 0, minor = 0, kind = kDLCPU, id = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOO:__dlpack__", keywords, &stream, &version,
                                     &device, &copy) ||
        (version != Py_None && !pair_of(version, "max_version", &major, &minor)) ||
        (device != Py_None && !pair_of(device, "dl_device", &kind, &id))) {
        return NULL;
    }
    if (stream != Py_None || kind != kDLCPU || id != 0) {
        PyErr_SetString(PyExc_BufferError, "the tensor is on the CPU: no stream, no other device");
        return NULL;
    }
    int must = copy == Py_None ? 0 : PyObject_IsTrue(copy);
    const bool never = copy != Py_None && must == 0;
    if (must < 0 || (never && !refuse_copy(self))) {
        return NULL;
    }
    heft_tensor *memory =
        tensor_bring(self, must ? BRING_READ : BRING_AS_IS, HEFT_DTYPE_NONE, NULL);
    if (memory && !is_aligned(memory)) {
        heft_tensor_free(memory);
        if (never) {
            PyErr_SetString(PyExc_BufferError,
                            "complex128 is not aligned in the file: it has to be copied");
            return NULL;
        }
        must = 1;
        memory = tensor_bring(self, BRING_READ, HEFT_DTYPE_NONE, NULL);
    }
    if (!memory) {
        return NULL;
    }
    DLManagedTensorVersioned *out = NULL;
    heft_error error = {.offset = HEFT_NO_OFFSET};
    const heft_status status = heft_tensor_to_dlpack(memory, &out, &error);
    heft_tensor_free(memory);
    if (status == HEFT_UNSUPPORTED) {
        PyErr_Format(PyExc_BufferError, "%s", error.message);
        return NULL;
    }
    if (status != HEFT_OK) {
        raise_error(&error);
        return NULL;
    }
    if (must) {
        out->flags |= DLPACK_FLAG_BITMASK_IS_COPIED;
    }
    return capsule_of(out, major >= 1);
}

PyObject *tensor_dlpack_device(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return Py_BuildValue("(ii)", (int)kDLCPU, 0);
}

/* ---- buffers, out ---------------------------------------------------------------------------- */
/* The code of the struct module. What it has no code for is that many bytes of padding, which numpy takes
 * as void: no number is made of it by mistake. Elements of less than a byte are such bytes in a row. */
static const char *code_of(heft_dtype dtype)
{
    static const char *const codes[HEFT_DTYPE_COUNT] = {
        [HEFT_DTYPE_F64] = "d",  [HEFT_DTYPE_F32] = "f",   [HEFT_DTYPE_F16] = "e",
        [HEFT_DTYPE_I64] = "q",  [HEFT_DTYPE_I32] = "i",   [HEFT_DTYPE_I16] = "h",
        [HEFT_DTYPE_I8] = "b",   [HEFT_DTYPE_U64] = "Q",   [HEFT_DTYPE_U32] = "I",
        [HEFT_DTYPE_U16] = "H",  [HEFT_DTYPE_U8] = "B",    [HEFT_DTYPE_BOOL] = "?",
        [HEFT_DTYPE_C64] = "Zf", [HEFT_DTYPE_C128] = "Zd",
    };
    const unsigned bits = heft_dtype_bits(dtype);
    return codes[dtype] ? codes[dtype] : bits == 32 ? "4x" : bits == 16 ? "2x" : "x";
}

struct exported {
    heft_tensor *tensor;
    Py_ssize_t numbers[]; /* [2 * rank] shape, then strides in bytes */
};

static const char *refuse(const heft_tensor *tensor, int flags)
{
    const bool writable = (tensor->flags & HEFT_TENSOR_WRITABLE) != 0;
    if ((flags & PyBUF_WRITABLE) && !writable) {
        return "the tensor is read-only";
    }
    if ((flags & PyBUF_STRIDES) != PyBUF_STRIDES && !tensor_is_contiguous(tensor)) {
        return "the tensor is not stored row by row";
    }
    if ((flags & (PyBUF_C_CONTIGUOUS | PyBUF_ANY_CONTIGUOUS) & ~PyBUF_STRIDES) &&
        !tensor_is_contiguous(tensor)) {
        return "the tensor is not stored row by row";
    }
    if ((flags & PyBUF_F_CONTIGUOUS & ~PyBUF_STRIDES) && tensor->rank > 1) {
        return "the tensor is stored row by row";
    }
    return tensor->size_bytes > PY_SSIZE_T_MAX ? "the tensor is too large" : NULL;
}

int tensor_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    Tensor *self = (Tensor *)object;
    view->obj = NULL;
    heft_tensor *tensor = tensor_bring(self, BRING_AS_IS, HEFT_DTYPE_NONE, NULL);
    if (!tensor) {
        return -1;
    }
    const char *reason = refuse(tensor, flags);
    struct exported *exported =
        reason ? NULL
               : PyMem_Calloc(1, sizeof *exported +
                                     2 * ((size_t)tensor->rank + 1) * sizeof *exported->numbers);
    if (!exported) {
        if (reason) {
            PyErr_Format(PyExc_BufferError, "%U: %s", self->name, reason);
        } else {
            PyErr_NoMemory();
        }
        heft_tensor_free(tensor);
        return -1;
    }
    const bool packed = heft_dtype_bits(tensor->dtype) % 8 != 0;
    const Py_ssize_t each = packed ? 1 : (Py_ssize_t)heft_dtype_bits(tensor->dtype) / 8;
    const uint32_t rank = packed ? 1 : tensor->rank;
    for (uint32_t i = 0; i < rank; i++) {
        exported->numbers[i] = (Py_ssize_t)(packed ? tensor->size_bytes : tensor->shape[i]);
        exported->numbers[rank + i] = packed ? 1 : (Py_ssize_t)tensor->strides[i] * each;
    }
    exported->tensor = tensor;
    const bool shaped = (flags & PyBUF_ND) != 0;
    static char nothing;
    *view = (Py_buffer){
        .buf = tensor->size_bytes > 0 ? tensor->data : &nothing,
        .obj = Py_NewRef(object),
        .len = (Py_ssize_t)tensor->size_bytes,
        .itemsize = each,
        .readonly = (tensor->flags & HEFT_TENSOR_WRITABLE) == 0,
        .ndim = shaped ? (int)rank : 1,
        .format = (flags & PyBUF_FORMAT) ? (char *)(uintptr_t)code_of(tensor->dtype) : NULL,
        .shape = shaped ? exported->numbers : NULL,
        .strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? exported->numbers + rank : NULL,
        .internal = exported};
    return 0;
}

void tensor_releasebuffer(PyObject *self, Py_buffer *view)
{
    (void)self;
    struct exported *exported = view->internal;
    heft_tensor_free(exported->tensor);
    PyMem_Free(exported);
}

/* ---- buffers, in ----------------------------------------------------------------------------- */
struct held {
    Py_buffer view;
    struct held *next;
};
static _Atomic(struct held *) dropped; /* by heft, perhaps without the GIL */

static void drop(void *user)
{
    struct held *held = user;
    held->next = atomic_load(&dropped);
    while (!atomic_compare_exchange_weak(&dropped, &held->next, held)) {
    }
}

void drain_buffers(void)
{
    struct held *held = atomic_exchange(&dropped, NULL);
    while (held) {
        struct held *next = held->next;
        PyBuffer_Release(&held->view);
        free(held);
        held = next;
    }
}

heft_storage *storage_of_buffer(PyObject *object)
{
    struct held *held = calloc(1, sizeof *held);
    heft_storage *storage = NULL;
    heft_error error = {.offset = HEFT_NO_OFFSET};
    if (!held) {
        PyErr_NoMemory();
        return NULL;
    }
    if (PyObject_GetBuffer(object, &held->view, PyBUF_SIMPLE) != 0) {
        free(held);
        return NULL;
    }
    if (heft_storage_wrap_const(call_ctx(), held->view.buf, (uint64_t)held->view.len, drop, held,
                                &storage, &error) != HEFT_OK) {
        PyBuffer_Release(&held->view);
        free(held);
        raise_error(&error);
        return NULL;
    }
    return storage;
}

/* ---- DLPack, in ------------------------------------------------------------------------------ */
static heft_dtype dtype_of(DLDataType type)
{
    static const struct {
        DLDataType type;
        heft_dtype dtype;
    } table[] = {
        {{kDLFloat, 64, 1},          HEFT_DTYPE_F64         },
        {{kDLFloat, 32, 1},          HEFT_DTYPE_F32         },
        {{kDLFloat, 16, 1},          HEFT_DTYPE_F16         },
        {{kDLBfloat, 16, 1},         HEFT_DTYPE_BF16        },
        {{kDLInt, 64, 1},            HEFT_DTYPE_I64         },
        {{kDLInt, 32, 1},            HEFT_DTYPE_I32         },
        {{kDLInt, 16, 1},            HEFT_DTYPE_I16         },
        {{kDLInt, 8, 1},             HEFT_DTYPE_I8          },
        {{kDLUInt, 64, 1},           HEFT_DTYPE_U64         },
        {{kDLUInt, 32, 1},           HEFT_DTYPE_U32         },
        {{kDLUInt, 16, 1},           HEFT_DTYPE_U16         },
        {{kDLUInt, 8, 1},            HEFT_DTYPE_U8          },
        {{kDLBool, 8, 1},            HEFT_DTYPE_BOOL        },
        {{kDLComplex, 32, 1},        HEFT_DTYPE_C32         },
        {{kDLComplex, 64, 1},        HEFT_DTYPE_C64         },
        {{kDLComplex, 128, 1},       HEFT_DTYPE_C128        },
        {{kDLFloat8_e4m3fn, 8, 1},   HEFT_DTYPE_F8_E4M3FN   },
        {{kDLFloat8_e5m2, 8, 1},     HEFT_DTYPE_F8_E5M2     },
        {{kDLFloat8_e4m3fnuz, 8, 1}, HEFT_DTYPE_F8_E4M3FNUZ },
        {{kDLFloat8_e5m2fnuz, 8, 1}, HEFT_DTYPE_F8_E5M2FNUZ },
        {{kDLFloat8_e8m0fnu, 8, 1},  HEFT_DTYPE_F8_E8M0FNU  },
        {{kDLFloat4_e2m1fn, 4, 2},   HEFT_DTYPE_F4_E2M1FN_X2},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (table[i].type.code == type.code && table[i].type.bits == type.bits &&
            table[i].type.lanes == type.lanes) {
            return table[i].dtype;
        }
    }
    return HEFT_DTYPE_NONE;
}

/* A capsule's structure, of either version. */
struct taken {
    DLManagedTensorVersioned *versioned;
    DLManagedTensor *plain;
};

static void delete_taken(void *user)
{
    struct taken *taken = user;
    if (taken->versioned && taken->versioned->deleter) {
        taken->versioned->deleter(taken->versioned);
    }
    if (taken->plain && taken->plain->deleter) {
        taken->plain->deleter(taken->plain);
    }
    free(taken);
}

/* Check the layout, and give its extent in bytes. float4 is counted in pairs by DLPack. */
static bool read_layout(const DLTensor *tensor, uint64_t *shape, int64_t *strides, uint64_t *bytes)
{
    const heft_dtype dtype = dtype_of(tensor->dtype);
    const bool pairs = dtype == HEFT_DTYPE_F4_E2M1FN_X2;
    const uint64_t each = pairs ? 1 : heft_dtype_bits(dtype) / 8;
    uint64_t last = 0, step = 1;
    bool empty = false, over = false;
    for (int32_t i = tensor->ndim; i-- > 0;) {
        uint64_t reach;
        if (tensor->shape[i] < 0 || (tensor->strides && tensor->strides[i] < 0)) {
            PyErr_SetString(PyExc_BufferError, "negative shape or strides");
            return false;
        }
        shape[i] = (uint64_t)tensor->shape[i];
        strides[i] = tensor->strides ? tensor->strides[i] : (int64_t)step;
        empty = empty || shape[i] == 0;
        over =
            over ||
            __builtin_mul_overflow(shape[i] > 0 ? shape[i] - 1 : 0, (uint64_t)strides[i], &reach) ||
            __builtin_add_overflow(last, reach, &last) ||
            (!tensor->strides && __builtin_mul_overflow(step, shape[i] > 0 ? shape[i] : 1, &step));
    }
    over = over || last > (uint64_t)(PY_SSIZE_T_MAX - 1) / each;
    if (over && !empty) {
        PyErr_SetString(PyExc_BufferError, "the tensor is larger than memory");
        return false;
    }
    *bytes = empty ? 0 : (last + 1) * each;
    if (pairs) {
        if (tensor->ndim == 0 || strides[tensor->ndim - 1] != 1) {
            PyErr_SetString(PyExc_BufferError, "float4 values must be stored row by row");
            return false;
        }
        shape[tensor->ndim - 1] *= 2;
        for (int32_t i = 0; i < tensor->ndim - 1; i++) {
            strides[i] *= 2;
        }
    }
    return true;
}

/* On success *slot is NULL: the storage has it. */
static heft_tensor *tensor_on(const DLTensor *tensor, bool writable, struct taken **slot)
{
    uint64_t shape[64], bytes;
    int64_t strides[64];
    heft_error error = {.offset = HEFT_NO_OFFSET};
    heft_storage *storage = NULL;
    heft_tensor *out = NULL;
    const heft_dtype dtype = dtype_of(tensor->dtype);
    if (tensor->device.device_type != kDLCPU || dtype == HEFT_DTYPE_NONE || tensor->ndim < 0 ||
        tensor->ndim > 64) {
        PyErr_Format(PyExc_BufferError,
                     "device %d, dtype (%d, %d, %d), rank %d: only tensors on the CPU of a dtype "
                     "that files have can be taken",
                     (int)tensor->device.device_type, (int)tensor->dtype.code,
                     (int)tensor->dtype.bits, (int)tensor->dtype.lanes, (int)tensor->ndim);
        return NULL;
    }
    if (!read_layout(tensor, shape, strides, &bytes)) {
        return NULL;
    }
    uint8_t *data = bytes > 0 ? (uint8_t *)tensor->data + tensor->byte_offset : NULL;
    heft_status status =
        writable ? heft_storage_wrap(call_ctx(), data, bytes, delete_taken, *slot, &storage, &error)
                 : heft_storage_wrap_const(call_ctx(), data, bytes, delete_taken, *slot, &storage,
                                           &error);
    if (status == HEFT_OK) {
        status = heft_tensor_new(storage,
                                 &HEFT_OPTIONS(heft_tensor_spec, .dtype = dtype,
                                               .rank = (uint32_t)tensor->ndim, .shape = shape,
                                               .strides = bytes > 0 ? strides : NULL),
                                 &out, &error);
        if (status != HEFT_OK) { /* the capsule stays as it is */
            **slot = (struct taken){0};
        }
        *slot = NULL;
        heft_storage_unref(storage);
    }
    if (status != HEFT_OK) {
        raise_error(&error);
    }
    return out;
}

heft_tensor *tensor_of_capsule(PyObject *capsule)
{
    struct taken *taken = calloc(1, sizeof *taken);
    heft_tensor *out = NULL;
    if (!taken) {
        PyErr_NoMemory();
        return NULL;
    }
    const bool versioned = PyCapsule_IsValid(capsule, "dltensor_versioned");
    if (!versioned && !PyCapsule_IsValid(capsule, "dltensor")) {
        PyErr_SetString(PyExc_TypeError, "not a DLPack capsule, or one that was used already");
        free(taken);
        return NULL;
    }
    if (versioned) {
        DLManagedTensorVersioned *managed = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        taken->versioned = managed;
        if (managed->version.major != 1) {
            PyErr_SetString(PyExc_BufferError, "an unknown version of DLPack");
        } else {
            out = tensor_on(&managed->dl_tensor, !(managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY),
                            &taken);
        }
    } else {
        taken->plain = PyCapsule_GetPointer(capsule, "dltensor");
        out = tensor_on(&taken->plain->dl_tensor, true, &taken);
    }
    if (out) {
        (void)PyCapsule_SetName(capsule, versioned ? "used_dltensor_versioned" : "used_dltensor");
    }
    free(taken);
    return out;
}
