/* index.c - slices of tensors: t[2:5, :, -1], t.slice(dim, rank, size). */
#include "ext.h"

struct selection {
    struct dim dims[64];
    uint32_t rank, kept;
};

static bool select_all(const Tensor *self, struct selection *to)
{
    if (self->rank > 64) {
        PyErr_SetString(PyExc_IndexError, "the tensor has more than 64 dimensions");
        return false;
    }
    to->rank = to->kept = self->rank;
    for (uint32_t i = 0; i < self->rank; i++) {
        to->dims[i] = (struct dim){0, self->shape[i], true};
    }
    return true;
}

static bool select_one(const Tensor *self, struct selection *to, uint32_t dim, PyObject *key)
{
    const Py_ssize_t length = (Py_ssize_t)self->shape[dim];
    if (self->shape[dim] > PY_SSIZE_T_MAX) {
        PyErr_SetString(PyExc_OverflowError, "the dimension is too large to be indexed");
        return false;
    }
    if (PySlice_Check(key)) {
        Py_ssize_t start, stop, step;
        if (PySlice_Unpack(key, &start, &stop, &step) != 0) {
            return false;
        }
        if (step != 1) {
            PyErr_SetString(
                PyExc_ValueError,
                "a lazy tensor has no slices with a step: use torch() or numpy() first");
            return false;
        }
        (void)PySlice_AdjustIndices(length, &start, &stop, step);
        to->dims[dim].start = (uint64_t)start;
        to->dims[dim].stop = (uint64_t)(stop > start ? stop : start);
        return true;
    }
    Py_ssize_t at = PyNumber_AsSsize_t(key, PyExc_IndexError);
    if (at == -1 && PyErr_Occurred()) {
        return false;
    }
    at += at < 0 ? length : 0;
    if (at < 0 || at >= length) {
        PyErr_Format(PyExc_IndexError, "index out of range for dimension %u of length %zd",
                     (unsigned)dim, length);
        return false;
    }
    to->dims[dim] = (struct dim){(uint64_t)at, (uint64_t)at + 1, false};
    to->kept--;
    return true;
}

static bool is_index(PyObject *key)
{
    return !PyBool_Check(key) && (PySlice_Check(key) || PyIndex_Check(key));
}

static bool select_key(const Tensor *self, struct selection *to, PyObject *key)
{
    if (!select_all(self, to)) {
        return false;
    }
    PyObject *keys = PyTuple_Check(key) ? Py_NewRef(key) : PyTuple_Pack(1, key);
    if (!keys) {
        return false;
    }
    const Py_ssize_t count = PyTuple_Size(keys);
    Py_ssize_t dots = 0;
    bool ok = true;
    for (Py_ssize_t i = 0; ok && i < count; i++) {
        PyObject *item = PyTuple_GetItem(keys, i);
        dots += item == Py_Ellipsis;
        if (item != Py_Ellipsis && !is_index(item)) {
            PyErr_Format(PyExc_TypeError,
                         "a lazy tensor is indexed with integers, slices and '...', not %R", item);
            ok = false;
        }
    }
    if (ok && (dots > 1 || count - dots > (Py_ssize_t)self->rank)) {
        PyErr_Format(PyExc_IndexError, "too many indices for a tensor of %u dimensions",
                     (unsigned)self->rank);
        ok = false;
    }
    uint32_t dim = 0;
    for (Py_ssize_t i = 0; ok && i < count; i++) {
        PyObject *item = PyTuple_GetItem(keys, i);
        if (item == Py_Ellipsis) {
            dim += self->rank - (uint32_t)(count - 1);
        } else {
            ok = select_one(self, to, dim++, item);
        }
    }
    Py_DECREF(keys);
    return ok;
}

/* The selection refers to the dimensions of self; a lazy tensor keeps those of the stored one. */
static PyObject *lazy_view(Tensor *self, const struct selection *selection)
{
    Tensor *view = tensor_view(self, selection->kept);
    if (!view) {
        return NULL;
    }
    uint32_t dim = 0, kept = 0;
    for (uint32_t i = 0; i < self->stored_rank; i++) {
        const bool had = !self->dims || self->dims[i].kept;
        const uint64_t from = self->dims ? self->dims[i].start : 0;
        if (!had) {
            view->dims[i] = self->dims[i];
            continue;
        }
        const struct dim *chosen = &selection->dims[dim++];
        view->dims[i] = (struct dim){from + chosen->start, from + chosen->stop, chosen->kept};
        if (chosen->kept) {
            view->shape[kept++] = chosen->stop - chosen->start;
        }
    }
    return (PyObject *)view;
}

static PyObject *memory_view(Tensor *self, const struct selection *selection)
{
    const heft_tensor *memory = self->memory;
    const unsigned bits = heft_dtype_bits(memory->dtype);
    heft_error error = {.offset = HEFT_NO_OFFSET};
    uint64_t shape[64], at = 0;
    int64_t strides[64];
    bool empty = false;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < memory->rank; i++) {
        const struct dim *chosen = &selection->dims[i];
        empty = empty || chosen->start == chosen->stop;
        at += chosen->start * (uint64_t)memory->strides[i];
        if (chosen->kept) {
            shape[kept] = chosen->stop - chosen->start;
            strides[kept++] = memory->strides[i];
        }
    }
    at = empty ? 0 : at;
    if (at * bits % 8 != 0) {
        return raise_status(HEFT_INVALID_ARG, "a slice of %s must begin on a whole byte",
                            heft_dtype_name(memory->dtype));
    }
    heft_tensor *view = NULL;
    if (heft_tensor_new(memory->storage,
                        &HEFT_OPTIONS(heft_tensor_spec, .dtype = memory->dtype, .rank = kept,
                                      .shape = shape, .strides = strides,
                                      .offset_bytes = memory->offset_bytes + at * bits / 8),
                        &view, &error) != HEFT_OK) {
        raise_error(&error);
        return NULL;
    }
    return tensor_in_memory(self->name, view);
}

static PyObject *view_of(Tensor *self, const struct selection *selection)
{
    return self->memory ? memory_view(self, selection) : lazy_view(self, selection);
}

PyObject *tensor_subscript(Tensor *self, PyObject *key)
{
    struct selection selection;
    return select_key(self, &selection, key) ? view_of(self, &selection) : NULL;
}

PyObject *tensor_slice(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"dim", "rank", "size", NULL};
    Tensor *self = (Tensor *)object;
    Py_ssize_t dim, rank, size;
    struct selection selection;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "nnn:slice", keywords, &dim, &rank, &size) ||
        !select_all(self, &selection)) {
        return NULL;
    }
    if (size <= 0 || rank < 0 || rank >= size) {
        PyErr_Format(PyExc_ValueError, "rank %zd is not one of %zd ranks", rank, size);
        return NULL;
    }
    dim += dim < 0 ? (Py_ssize_t)self->rank : 0;
    if (dim < 0 || dim >= (Py_ssize_t)self->rank) {
        PyErr_Format(PyExc_IndexError, "the tensor has %u dimensions", (unsigned)self->rank);
        return NULL;
    }
    const uint64_t length = self->shape[dim];
    const uint64_t each = length / (uint64_t)size + (length % (uint64_t)size != 0);
    const uint64_t before =
        each == 0 || (uint64_t)rank > length / each ? length : each * (uint64_t)rank;
    selection.dims[dim].start = before;
    selection.dims[dim].stop = length - before > each ? before + each : length;
    return view_of(self, &selection);
}
