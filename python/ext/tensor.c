/* tensor.c - the type Tensor: a tensor of a checkpoint that is not read yet, or one in memory.
 *
 * A lazy tensor holds its Checkpoint and a slice; bringing it in makes a heft_tensor, which holds the
 * bytes. Bytes that are stored in one run are mapped copy-on-write and not copied; others are read. */
#include "ext.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

PyTypeObject *tensor_type;

enum { HUGE = 2 << 20, ASK_BYTES = 64 << 20 };

/* ---- memory ---------------------------------------------------------------------------------- */
struct block {
    void *data;
    size_t mapped; /* bytes of the mapping; 0: from malloc() */
};

static void release_block(void *user)
{
    struct block *block = user;
    if (block->mapped > 0) {
        munmap(block->data, block->mapped);
    } else {
        free(block->data);
    }
    free(block);
}

static bool allocate(struct block *block, uint64_t bytes)
{
    if (bytes < HUGE) {
        block->data = malloc(bytes > 0 ? (size_t)bytes : 1);
        return block->data != NULL;
    }
    const uint64_t rounded = (bytes + HUGE - 1) / HUGE * HUGE;
    if (bytes > SIZE_MAX - 2 * (uint64_t)HUGE) {
        return false;
    }
    /* one huge page more, and the ends cut off: then it begins on one */
    uint8_t *base = mmap(NULL, (size_t)rounded + HUGE, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        return false;
    }
    const size_t before = (HUGE - (uintptr_t)base % HUGE) % HUGE;
    if (before > 0) {
        munmap(base, before);
    }
    if (before < HUGE) {
        munmap(base + before + rounded, HUGE - before);
    }
    (void)madvise(base + before, (size_t)rounded, MADV_HUGEPAGE);
    block->data = base + before;
    block->mapped = (size_t)rounded;
    return true;
}

heft_storage *storage_new(uint64_t bytes)
{
    heft_error error = {.offset = HEFT_NO_OFFSET};
    heft_machine machine = HEFT_SIZED(heft_machine);
    if (bytes >= ASK_BYTES && heft_machine_memory(&machine, &error) == HEFT_OK &&
        bytes > machine.bytes) {
        return raise_status(HEFT_LIMIT, "%llu bytes are needed, %llu are there (%s)",
                            (unsigned long long)bytes, (unsigned long long)machine.bytes,
                            machine.reason);
    }
    struct block *block = calloc(1, sizeof *block);
    heft_storage *storage = NULL;
    if (!block || !allocate(block, bytes)) {
        free(block);
        return raise_status(HEFT_NOMEM, "%llu bytes of memory are not to be had",
                            (unsigned long long)bytes);
    }
    if (heft_storage_wrap(call_ctx(), block->data, bytes, release_block, block, &storage, &error) !=
        HEFT_OK) {
        release_block(block);
        raise_error(&error);
    }
    return storage;
}

/* ---- making ---------------------------------------------------------------------------------- */
static Tensor *new_tensor(PyObject *name, heft_dtype dtype, uint32_t rank, size_t dims)
{
    Tensor *self = PyObject_New(Tensor, tensor_type);
    if (!self) {
        return NULL;
    }
    self->name = Py_NewRef(name);
    self->owner = NULL;
    self->memory = NULL;
    self->number = 0;
    self->dtype = dtype;
    self->rank = self->stored_rank = rank;
    self->shape = PyMem_Calloc(1, rank * sizeof *self->shape + dims * sizeof *self->dims + 1);
    self->dims = NULL;
    if (!self->shape) {
        Py_DECREF(self);
        PyErr_NoMemory();
        return NULL;
    }
    if (dims > 0) {
        self->dims = (struct dim *)(void *)(self->shape + rank);
    }
    return self;
}

PyObject *tensor_of_checkpoint(Checkpoint *owner, const heft_checkpoint *ckpt, size_t number)
{
    const heft_tensor_info *info = heft_checkpoint_info(ckpt, number);
    PyObject *name = text_of(info->name);
    Tensor *self = name ? new_tensor(name, info->dtype, info->rank, 0) : NULL;
    Py_XDECREF(name);
    if (self) {
        if (info->rank > 0) {
            memcpy(self->shape, info->shape, info->rank * sizeof *info->shape);
        }
        self->owner = (Checkpoint *)Py_NewRef((PyObject *)owner);
        self->number = number;
    }
    return (PyObject *)self;
}

PyObject *tensor_in_memory(PyObject *name, heft_tensor *memory)
{
    Tensor *self = new_tensor(name, memory->dtype, memory->rank, 0);
    if (!self) {
        heft_tensor_free(memory);
        return NULL;
    }
    if (memory->rank > 0) {
        memcpy(self->shape, memory->shape, memory->rank * sizeof *memory->shape);
    }
    self->memory = memory;
    return (PyObject *)self;
}

Tensor *tensor_view(Tensor *self, uint32_t rank)
{
    Tensor *view = new_tensor(self->name, self->dtype, rank, self->stored_rank);
    if (view && self->owner) {
        view->owner = (Checkpoint *)Py_NewRef((PyObject *)self->owner);
        view->number = self->number;
        view->stored_rank = self->stored_rank;
    }
    return view;
}

static void tensor_dealloc(PyObject *object)
{
    Tensor *self = (Tensor *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    heft_tensor *memory = self->memory;
    if (memory && memory->size_bytes >= HUGE) {
        Py_BEGIN_ALLOW_THREADS heft_tensor_free(memory);
        Py_END_ALLOW_THREADS
    } else {
        heft_tensor_free(memory);
    }
    Py_XDECREF((PyObject *)self->owner);
    Py_XDECREF(self->name);
    PyMem_Free(self->shape);
    PyErr_Restore(kind, value, trace);
    PyObject_Free(object);
    Py_DECREF(type);
}

/* ---- bringing in ----------------------------------------------------------------------------- */
bool tensor_is_contiguous(const heft_tensor *tensor)
{
    int64_t step = 1;
    for (uint32_t i = tensor->rank; i-- > 0;) {
        if (tensor->shape[i] == 0) {
            return true;
        }
        if (tensor->shape[i] != 1 && tensor->strides[i] != step) {
            return false;
        }
        if (__builtin_mul_overflow(step, (int64_t)tensor->shape[i], &step)) {
            return false;
        }
    }
    return true;
}

/* Copy a strided tensor of whole bytes row by row. */
static uint8_t *copy_rows(const heft_tensor *tensor, uint32_t dim, const uint8_t *from, uint8_t *to)
{
    const size_t each = heft_dtype_bits(tensor->dtype) / 8;
    if (dim == tensor->rank) {
        memcpy(to, from, each);
        return to + each;
    }
    const int64_t step = tensor->strides[dim] * (int64_t)each;
    if (dim + 1 == tensor->rank && tensor->strides[dim] == 1) {
        memcpy(to, from, (size_t)tensor->shape[dim] * each);
        return to + tensor->shape[dim] * each;
    }
    for (uint64_t i = 0; i < tensor->shape[dim]; i++) {
        to = copy_rows(tensor, dim + 1, from + (int64_t)i * step, to);
    }
    return to;
}

/* The size of a tensor of these dimensions. Returns false with an exception. */
static bool size_of(heft_dtype dtype, const uint64_t *shape, uint32_t rank, uint64_t *bytes)
{
    uint64_t elems = 1, bits = 0;
    bool over = false;
    for (uint32_t i = 0; i < rank; i++) {
        if (shape[i] == 0) {
            *bytes = 0;
            return true;
        }
        over = over || __builtin_mul_overflow(elems, shape[i], &elems);
    }
    over = over || __builtin_mul_overflow(elems, (uint64_t)heft_dtype_bits(dtype), &bits);
    if (over || bits > UINT64_MAX - 7) {
        PyErr_SetString(PyExc_OverflowError, "the tensor has too many elements");
        return false;
    }
    *bytes = (bits + 7) / 8;
    return true;
}

/* Empty memory in the shape of self. NULL with an exception. */
static heft_tensor *empty_like(Tensor *self, heft_dtype dtype)
{
    heft_error error = {.offset = HEFT_NO_OFFSET};
    heft_tensor *tensor = NULL;
    uint64_t bytes;
    if (!size_of(dtype, self->shape, self->rank, &bytes)) {
        return NULL;
    }
    heft_storage *storage = storage_new(bytes);
    if (!storage) {
        return NULL;
    }
    if (heft_tensor_new(storage,
                        &HEFT_OPTIONS(heft_tensor_spec, .dtype = dtype, .rank = self->rank,
                                      .shape = self->shape),
                        &tensor, &error) != HEFT_OK) {
        raise_error(&error);
    }
    heft_storage_unref(storage);
    return tensor;
}

/* Cast and copy a tensor that is in memory. */
static heft_status copy_memory(const heft_tensor *from, heft_tensor *to, heft_error *error)
{
    uint64_t elems = 1;
    for (uint32_t i = 0; i < from->rank; i++) {
        elems *= from->shape[i];
    }
    if (elems == 0) {
        return HEFT_OK;
    }
    if (tensor_is_contiguous(from)) {
        return heft_cast(to->dtype, to->data, from->dtype, from->data, (size_t)elems, error);
    }
    if (to->dtype == from->dtype) {
        copy_rows(from, 0, from->data, to->data);
        return HEFT_OK;
    }
    void *rows = malloc((size_t)from->size_bytes);
    if (!rows) {
        return HEFT_NOMEM;
    }
    copy_rows(from, 0, from->data, rows);
    const heft_status status =
        heft_cast(to->dtype, to->data, from->dtype, rows, (size_t)elems, error);
    free(rows);
    return status;
}

/* start and stop of a lazy tensor, for a request. NULL for the whole tensor or with an exception. */
static uint64_t *bounds_of(const Tensor *self)
{
    const size_t rank = self->stored_rank;
    uint64_t *bounds = PyMem_Malloc((2 * rank + 1) * sizeof *bounds);
    for (size_t i = 0; bounds && i < rank; i++) {
        bounds[i] = self->dims[i].start;
        bounds[rank + i] = self->dims[i].stop;
    }
    if (!bounds) {
        PyErr_NoMemory();
    }
    return bounds;
}

static heft_tensor *read_lazy(Tensor *self, heft_dtype dtype, PyObject *progress)
{
    heft_checkpoint *checkpoint = checkpoint_use(self->owner);
    if (!checkpoint) {
        return NULL;
    }
    uint64_t *bounds = self->dims ? bounds_of(self) : NULL;
    heft_tensor *out = self->dims && !bounds ? NULL : empty_like(self, dtype);
    if (out) {
        const heft_read_request request = {.tensor = self->number,
                                           .rank = self->stored_rank,
                                           .dtype = dtype == self->dtype ? HEFT_DTYPE_NONE : dtype,
                                           .start = bounds,
                                           .stop = bounds ? bounds + self->stored_rank : NULL,
                                           .dst = out->data,
                                           .cap = out->size_bytes};
        struct call call;
        call_begin(&call, progress);
        if (!call_end(&call, heft_checkpoint_read_slice(checkpoint, &request, &call.error))) {
            heft_tensor_free(out);
            out = NULL;
        }
    }
    PyMem_Free(bounds);
    checkpoint_leave(self->owner);
    return out;
}

/* Whether the slice is one run of bytes in a tensor that is stored row by row. */
static bool is_one_run(const Tensor *self, const heft_tensor_info *info)
{
    bool whole = true; /* all inner dimensions */
    for (uint32_t i = info->rank; i-- > 0;) {
        const uint64_t length = self->dims[i].stop - self->dims[i].start;
        if (length == 0) {
            return true;
        }
        if (!whole && length != 1) {
            return false;
        }
        whole = whole && length == info->shape[i];
    }
    return true;
}

/* A slice of a row-major tensor that is one run. */
static heft_status cut(const Tensor *self, const heft_tensor *base, heft_tensor **out,
                       heft_error *error)
{
    const unsigned bits = heft_dtype_bits(base->dtype);
    uint64_t first = 0, bytes = 0; /* element */
    for (uint32_t i = 0; i < base->rank; i++) {
        first = first * base->shape[i] + self->dims[i].start;
        bytes |= self->dims[i].stop == self->dims[i].start;
    }
    const bool empty = bytes != 0;
    if (!empty && first * bits % 8 != 0) {
        return HEFT_UNSUPPORTED;
    }
    return heft_tensor_new(
        base->storage,
        &HEFT_OPTIONS(heft_tensor_spec, .dtype = base->dtype, .rank = self->rank,
                      .shape = self->shape,
                      .offset_bytes = base->offset_bytes + (empty ? 0 : first * bits / 8)),
        out, error);
}

static heft_tensor *map_lazy(Tensor *self, heft_map_mode mode)
{
    heft_checkpoint *checkpoint = checkpoint_use(self->owner);
    if (!checkpoint) {
        return NULL;
    }
    heft_tensor *base = NULL, *out = NULL;
    struct call call;
    call_begin(&call, NULL);
    heft_status status = heft_checkpoint_map(checkpoint, self->number, mode, &base, &call.error);
    if (status == HEFT_OK && self->dims) {
        status = cut(self, base, &out, &call.error);
        heft_tensor_free(base);
        base = out;
    }
    if (!call_end(&call, status)) {
        heft_tensor_free(base);
        base = NULL;
    }
    checkpoint_leave(self->owner);
    return base;
}

static heft_tensor *read_memory(Tensor *self, heft_dtype dtype)
{
    heft_tensor *out = empty_like(self, dtype);
    if (out) {
        struct call call;
        call_begin(&call, NULL);
        if (!call_end(&call, copy_memory(self->memory, out, &call.error))) {
            heft_tensor_free(out);
            out = NULL;
        }
    }
    return out;
}

static heft_tensor *another(const heft_tensor *tensor)
{
    heft_error error = {.offset = HEFT_NO_OFFSET};
    heft_tensor *out = NULL;
    if (heft_tensor_new(tensor->storage,
                        &HEFT_OPTIONS(heft_tensor_spec, .dtype = tensor->dtype,
                                      .rank = tensor->rank, .shape = tensor->shape,
                                      .strides = tensor->strides,
                                      .offset_bytes = tensor->offset_bytes),
                        &out, &error) != HEFT_OK) {
        raise_error(&error);
    }
    return out;
}

bool tensor_may_map(Tensor *self)
{
    heft_checkpoint *checkpoint = self->dims ? checkpoint_use(self->owner) : NULL;
    if (!checkpoint) { /* whole, or closed: then mapping says so */
        PyErr_Clear();
        return true;
    }
    const heft_tensor_info *info = heft_checkpoint_info(checkpoint, self->number);
    const bool may = info->offset != HEFT_NO_OFFSET && is_one_run(self, info) &&
                     heft_dtype_bits(info->dtype) % 8 == 0;
    checkpoint_leave(self->owner);
    return may;
}

heft_tensor *tensor_bring(Tensor *self, enum bring how, heft_dtype dtype, PyObject *progress)
{
    const bool cast = dtype != HEFT_DTYPE_NONE && dtype != self->dtype;
    const heft_dtype target = dtype == HEFT_DTYPE_NONE ? self->dtype : dtype;
    if (cast && !heft_cast_known(self->dtype, dtype)) {
        return raise_status(HEFT_INVALID_ARG, "a cast from %s to %s is not possible",
                            heft_dtype_name(self->dtype), heft_dtype_name(dtype));
    }
    if (self->memory) {
        return cast || how == BRING_READ ? read_memory(self, target) : another(self->memory);
    }
    if (cast || how == BRING_READ || !tensor_may_map(self)) {
        return read_lazy(self, target, progress);
    }
    return map_lazy(self, how == BRING_CONSTANT ? HEFT_MAP_READ_ONLY : HEFT_MAP_PRIVATE);
}

/* ---- methods --------------------------------------------------------------------------------- */
static PyObject *tensor_read(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"dtype", "progress", NULL};
    Tensor *self = (Tensor *)object;
    PyObject *name = NULL, *progress = NULL;
    heft_dtype dtype;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:read", keywords, &name, &progress) ||
        !parse_dtype(name, &dtype)) {
        return NULL;
    }
    heft_tensor *memory = tensor_bring(self, BRING_READ, dtype, progress);
    return memory ? tensor_in_memory(self->name, memory) : NULL;
}

static PyObject *tensor_map(PyObject *object, PyObject *unused)
{
    (void)unused;
    Tensor *self = (Tensor *)object;
    heft_tensor *memory = tensor_bring(self, BRING_AS_IS, HEFT_DTYPE_NONE, NULL);
    return memory ? tensor_in_memory(self->name, memory) : NULL;
}

/* The bytes of the whole storage that a tensor in memory is on. */
static PyObject *tensor_storage(PyObject *object, PyObject *unused)
{
    (void)unused;
    Tensor *self = (Tensor *)object;
    heft_error error = {.offset = HEFT_NO_OFFSET};
    heft_tensor *whole = NULL;
    if (!self->memory) {
        PyErr_SetString(PyExc_ValueError, "the tensor is not in memory");
        return NULL;
    }
    const uint64_t bytes = heft_storage_bytes(self->memory->storage);
    if (heft_tensor_new(
            self->memory->storage,
            &HEFT_OPTIONS(heft_tensor_spec, .dtype = HEFT_DTYPE_U8, .rank = 1, .shape = &bytes),
            &whole, &error) != HEFT_OK) {
        raise_error(&error);
        return NULL;
    }
    return tensor_in_memory(self->name, whole);
}

/* Methods that other libraries are needed for are in Python: heft._convert. */
static PyObject *in_python(PyObject *self, const char *name, PyObject *args, PyObject *kwargs)
{
    PyObject *module = PyImport_ImportModule("heft._convert"), *result = NULL;
    PyObject *function = module ? PyObject_GetAttrString(module, name) : NULL;
    PyObject *first = PyTuple_New(1), *all = NULL;
    if (function && first && PyTuple_SetItem(first, 0, Py_NewRef(self)) == 0) {
        all = PySequence_Concat(first, args);
    }
    if (all) {
        result = PyObject_Call(function, all, kwargs);
    }
    Py_XDECREF(module);
    Py_XDECREF(function);
    Py_XDECREF(first);
    Py_XDECREF(all);
    return result;
}
static PyObject *tensor_torch(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return in_python(self, "to_torch", args, kwargs);
}
static PyObject *tensor_numpy(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return in_python(self, "to_numpy", args, kwargs);
}
static PyObject *tensor_array(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return in_python(self, "to_array", args, kwargs);
}

static PyObject *tensor_tobytes(PyObject *object, PyObject *unused)
{
    (void)unused;
    heft_tensor *memory = tensor_bring((Tensor *)object, BRING_READ, HEFT_DTYPE_NONE, NULL);
    PyObject *bytes = NULL;
    if (memory && memory->size_bytes <= PY_SSIZE_T_MAX) {
        bytes = PyBytes_FromStringAndSize(memory->size_bytes > 0 ? memory->data : "",
                                          (Py_ssize_t)memory->size_bytes);
    }
    heft_tensor_free(memory);
    return bytes;
}

static PyObject *tensor_repr(PyObject *object)
{
    Tensor *self = (Tensor *)object;
    PyObject *shape = tuple_of_sizes(self->shape, self->rank);
    PyObject *list = shape ? PySequence_List(shape) : NULL;
    PyObject *text = list ? PyUnicode_FromFormat("heft.Tensor(%R, %s, %R)", self->name,
                                                 heft_dtype_name(self->dtype), list)
                          : NULL;
    Py_XDECREF(shape);
    Py_XDECREF(list);
    return text;
}

static Py_ssize_t tensor_length(PyObject *object)
{
    Tensor *self = (Tensor *)object;
    if (self->rank == 0 || self->shape[0] > PY_SSIZE_T_MAX) {
        PyErr_SetString(PyExc_TypeError, "len() of a 0-d tensor");
        return -1;
    }
    return (Py_ssize_t)self->shape[0];
}

/* ---- attributes ------------------------------------------------------------------------------ */
static PyObject *get_name(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef(((Tensor *)self)->name);
}
static PyObject *get_dtype(PyObject *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(heft_dtype_name(((Tensor *)self)->dtype));
}
static PyObject *get_shape(PyObject *self, void *unused)
{
    (void)unused;
    return tuple_of_sizes(((Tensor *)self)->shape, ((Tensor *)self)->rank);
}
static PyObject *get_ndim(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(((Tensor *)self)->rank);
}
static PyObject *get_nbytes(PyObject *object, void *unused)
{
    (void)unused;
    Tensor *self = (Tensor *)object;
    uint64_t bytes;
    return size_of(self->dtype, self->shape, self->rank, &bytes)
               ? PyLong_FromUnsignedLongLong(bytes)
               : NULL;
}
static PyObject *get_lazy(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((Tensor *)self)->owner != NULL);
}

static PyObject *get_owner(PyObject *self, void *unused)
{
    (void)unused;
    Checkpoint *owner = ((Tensor *)self)->owner;
    return Py_NewRef(owner ? (PyObject *)owner : Py_None);
}
static PyObject *get_number(PyObject *object, void *unused)
{
    (void)unused;
    Tensor *self = (Tensor *)object;
    if (!self->owner || self->dims) { /* in memory, or a slice */
        Py_RETURN_NONE;
    }
    return PyLong_FromSize_t(self->number);
}

/* Whether the bytes are one run: in memory, or in the file. */
static PyObject *get_is_run(PyObject *object, void *unused)
{
    (void)unused;
    Tensor *self = (Tensor *)object;
    return PyBool_FromLong(self->memory ? tensor_is_contiguous(self->memory)
                                        : tensor_may_map(self));
}

/* (number of the storage, file, offset of the first byte or None), of a lazy tensor. */
static PyObject *get_stored(PyObject *object, void *unused)
{
    (void)unused;
    Tensor *self = (Tensor *)object;
    heft_checkpoint *checkpoint = self->owner ? checkpoint_use(self->owner) : NULL;
    if (!checkpoint) {
        if (PyErr_Occurred()) {
            return NULL;
        }
        Py_RETURN_NONE;
    }
    const heft_tensor_info *info = heft_checkpoint_info(checkpoint, self->number);
    PyObject *offset = info->offset == HEFT_NO_OFFSET ? Py_NewRef(Py_None)
                                                      : PyLong_FromUnsignedLongLong(info->offset);
    PyObject *result =
        Py_BuildValue("(KNN)", (unsigned long long)info->storage, text_of_path(info->file), offset);
    checkpoint_leave(self->owner);
    return result;
}

/* (address of the storage, offset in it in bytes, strides in elements, flags, address), in memory. */
static PyObject *get_layout(PyObject *object, void *unused)
{
    (void)unused;
    const heft_tensor *memory = ((Tensor *)object)->memory;
    if (!memory) {
        Py_RETURN_NONE;
    }
    PyObject *strides = PyTuple_New((Py_ssize_t)memory->rank);
    for (uint32_t i = 0; strides && i < memory->rank; i++) {
        PyObject *stride = PyLong_FromLongLong(memory->strides[i]);
        if (!stride || PyTuple_SetItem(strides, (Py_ssize_t)i, stride) != 0) {
            Py_CLEAR(strides);
        }
    }
    return strides ? Py_BuildValue("(KKNIK)", (unsigned long long)(uintptr_t)memory->storage,
                                   (unsigned long long)memory->offset_bytes, strides,
                                   (unsigned int)memory->flags,
                                   (unsigned long long)(uintptr_t)memory->data)
                   : NULL;
}

PyDoc_STRVAR(
    type_doc,
    "A tensor of a checkpoint, or one in memory.\n\n"
    "A tensor of a checkpoint is lazy: nothing is read until torch(), numpy(), read(),\n"
    "tobytes(), DLPack or the buffer protocol asks for its bytes. Indexing with integers and\n"
    "slices of step 1 gives another lazy tensor, of which only the bytes needed are read.");
PyDoc_STRVAR(
    read_doc,
    "read($self, dtype=None, progress=None)\n--\n\n"
    "Return the tensor in memory of its own, cast to dtype.\n\n"
    "Casts are those of torch.Tensor.copy_(). Raises HeftError (IO, FORMAT) if the file cannot\n"
    "be read, LimitError if the memory is not there, ValueError for an impossible cast.");
PyDoc_STRVAR(map_doc,
             "map($self)\n--\n\n"
             "Return the tensor in memory, without a copy if it is stored as one run of bytes.\n\n"
             "Writes to it go to private pages: neither the file nor other processes see them.");
PyDoc_STRVAR(
    slice_doc,
    "slice($self, dim, rank, size)\n--\n\n"
    "Return the part of one rank of `size`: rows or columns as torch.chunk() divides them.\n\n"
    "Each part has ceil(shape[dim] / size) entries, the last ones fewer or none.");
PyDoc_STRVAR(torch_doc,
             "torch($self, dtype=None, device=None, copy=None)\n--\n\n"
             "Return a torch.Tensor; copy-on-write on the file where nothing needs to be copied.");
PyDoc_STRVAR(numpy_doc, "numpy($self, dtype=None, copy=None)\n--\n\n"
                        "Return a numpy.ndarray. bfloat16 and 8-bit floats need ml_dtypes.");
PyDoc_STRVAR(tobytes_doc, "tobytes($self)\n--\n\nReturn the elements, row by row, little-endian.");
PyDoc_STRVAR(
    dlpack_doc,
    "__dlpack__($self, *, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\n"
    "Export the tensor as a DLPack capsule.");
PyDoc_STRVAR(storage_doc,
             "_storage($self)\n--\n\nReturn the bytes of the whole storage, in memory.");

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void))(function)
static PyMethodDef methods[] = {
    {"read",              WITH_KEYWORDS(tensor_read),   METH_VARARGS | METH_KEYWORDS, read_doc   },
    {"map",               tensor_map,                   METH_NOARGS,                  map_doc    },
    {"slice",             WITH_KEYWORDS(tensor_slice),  METH_VARARGS | METH_KEYWORDS, slice_doc  },
    {"torch",             WITH_KEYWORDS(tensor_torch),  METH_VARARGS | METH_KEYWORDS, torch_doc  },
    {"numpy",             WITH_KEYWORDS(tensor_numpy),  METH_VARARGS | METH_KEYWORDS, numpy_doc  },
    {"tobytes",           tensor_tobytes,               METH_NOARGS,                  tobytes_doc},
    {"__bytes__",         tensor_tobytes,               METH_NOARGS,                  tobytes_doc},
    {"__array__",         WITH_KEYWORDS(tensor_array),  METH_VARARGS | METH_KEYWORDS, NULL       },
    {"__dlpack__",        WITH_KEYWORDS(tensor_dlpack), METH_VARARGS | METH_KEYWORDS, dlpack_doc },
    {"__dlpack_device__", tensor_dlpack_device,         METH_NOARGS,                  NULL       },
    {"_storage",          tensor_storage,               METH_NOARGS,                  storage_doc},
    {NULL,                NULL,                         0,                            NULL       }
};
static PyGetSetDef getters[] = {
    {"name",    get_name,   NULL, "The name in the checkpoint.",                               NULL},
    {"dtype",   get_dtype,  NULL, "PyTorch's name of the dtype, such as \"bfloat16\".",        NULL},
    {"shape",   get_shape,  NULL,
     "The dimensions, in PyTorch's order. float4 counts values, as in safetensors' headers: "
     "torch's "
     "last dimension is half of it.",                                                          NULL},
    {"ndim",    get_ndim,   NULL, "The number of dimensions.",                                 NULL},
    {"nbytes",  get_nbytes, NULL, "Bytes of the elements, row by row.",                        NULL},
    {"lazy",    get_lazy,   NULL, "Whether the tensor is not in memory yet.",                  NULL},
    {"_owner",  get_owner,  NULL, "The checkpoint of a lazy tensor.",                          NULL},
    {"_number", get_number, NULL, "The number of a whole lazy tensor.",                        NULL},
    {"_is_run", get_is_run, NULL, "Whether the bytes are one run.",                            NULL},
    {"_stored", get_stored, NULL, "(storage, file, offset) of a lazy tensor.",                 NULL},
    {"_layout", get_layout, NULL, "(storage, offset, strides, flags, address), if in memory.",
     NULL                                                                                          },
    {NULL,      NULL,       NULL, NULL,                                                        NULL}
};
static PyType_Slot slots[] = {
    {Py_tp_dealloc,       (void *)tensor_dealloc      },
    {Py_tp_methods,       methods                     },
    {Py_tp_getset,        getters                     },
    {Py_tp_repr,          (void *)tensor_repr         },
    {Py_tp_doc,           (void *)type_doc            },
    {Py_mp_length,        (void *)tensor_length       },
    {Py_mp_subscript,     (void *)tensor_subscript    },
    {Py_bf_getbuffer,     (void *)tensor_getbuffer    },
    {Py_bf_releasebuffer, (void *)tensor_releasebuffer},
    {0,                   NULL                        }
};
static PyType_Spec spec = {"heft.Tensor", sizeof(Tensor), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

PyTypeObject *tensor_make_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
