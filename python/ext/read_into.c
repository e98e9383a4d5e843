/* read_into.c - read many tensors into memory of the caller's, cast, in one call. */
#include "ext.h"

struct reading {
    heft_read_request *requests; /* [count] */
    uint64_t *bounds;            /* start and stop of all slices */
    heft_tensor **targets;       /* [count] */
    Checkpoint *owner;
    size_t count;
};

static size_t rank_of(PyObject *pair)
{
    PyObject *tensor =
        PyTuple_Check(pair) && PyTuple_Size(pair) == 2 ? PyTuple_GetItem(pair, 0) : NULL;
    return tensor && Py_TYPE(tensor) == tensor_type ? ((Tensor *)tensor)->stored_rank : 0;
}

static bool same_shape(const Tensor *tensor, const heft_tensor *target)
{
    bool same = tensor->rank == target->rank;
    for (uint32_t i = 0; same && i < tensor->rank; i++) {
        same = tensor->shape[i] == target->shape[i];
    }
    return same;
}

static bool add(struct reading *reading, size_t i, PyObject *pair, uint64_t **bounds)
{
    if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2 ||
        Py_TYPE(PyTuple_GetItem(pair, 0)) != tensor_type) {
        PyErr_SetString(PyExc_TypeError, "expected pairs of a heft.Tensor and a DLPack capsule");
        return false;
    }
    Tensor *tensor = (Tensor *)PyTuple_GetItem(pair, 0);
    if (!tensor->owner || (reading->owner && reading->owner != tensor->owner)) {
        PyErr_SetString(PyExc_ValueError, "expected lazy tensors of one checkpoint");
        return false;
    }
    reading->owner = tensor->owner;
    heft_tensor *target = tensor_of_capsule(PyTuple_GetItem(pair, 1));
    reading->targets[i] = target;
    if (!target) {
        return false;
    }
    if (!same_shape(tensor, target) || !tensor_is_contiguous(target) ||
        !(target->flags & HEFT_TENSOR_WRITABLE)) {
        PyErr_Format(PyExc_ValueError,
                     "%U: the memory to read into has another shape, is not contiguous, or is "
                     "read-only",
                     tensor->name);
        return false;
    }
    reading->requests[i] = (heft_read_request){
        .tensor = tensor->number,
        .rank = tensor->stored_rank,
        .dtype = target->dtype == tensor->dtype ? HEFT_DTYPE_NONE : target->dtype,
        .dst = target->data,
        .cap = target->size_bytes};
    if (tensor->dims) {
        reading->requests[i].start = *bounds;
        reading->requests[i].stop = *bounds + tensor->stored_rank;
        for (uint32_t k = 0; k < tensor->stored_rank; k++) {
            (*bounds)[k] = tensor->dims[k].start;
            (*bounds)[tensor->stored_rank + k] = tensor->dims[k].stop;
        }
        *bounds += 2 * (size_t)tensor->stored_rank;
    }
    return true;
}

static bool prepare(struct reading *reading, PyObject *pairs)
{
    size_t ranks = 0;
    reading->count = (size_t)PyTuple_Size(pairs);
    for (size_t i = 0; i < reading->count; i++) {
        ranks += rank_of(PyTuple_GetItem(pairs, (Py_ssize_t)i));
    }
    reading->requests = PyMem_Calloc(reading->count + 1, sizeof *reading->requests);
    reading->targets = PyMem_Calloc(reading->count + 1, sizeof *reading->targets);
    reading->bounds = PyMem_Calloc(2 * ranks + 1, sizeof *reading->bounds);
    if (!reading->requests || !reading->targets || !reading->bounds) {
        PyErr_NoMemory();
        return false;
    }
    uint64_t *bounds = reading->bounds;
    for (size_t i = 0; i < reading->count; i++) {
        if (!add(reading, i, PyTuple_GetItem(pairs, (Py_ssize_t)i), &bounds)) {
            return false;
        }
    }
    return true;
}

PyObject *read_into(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *keywords[] = {"pairs", "progress", NULL};
    PyObject *object, *progress = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:read_into", keywords, &object, &progress)) {
        return NULL;
    }
    PyObject *pairs = PySequence_Tuple(object);
    struct reading reading = {0};
    bool ok = pairs && prepare(&reading, pairs);
    heft_checkpoint *checkpoint = ok && reading.owner ? checkpoint_use(reading.owner) : NULL;
    if (checkpoint) {
        struct call call;
        call_begin(&call, progress);
        ok = call_end(&call, heft_checkpoint_read_many(checkpoint, reading.requests, reading.count,
                                                       &call.error));
        checkpoint_leave(reading.owner);
    } else {
        ok = ok && !reading.owner;
    }
    for (size_t i = 0; reading.targets && i < reading.count; i++) {
        heft_tensor_free(reading.targets[i]);
    }
    PyMem_Free(reading.requests);
    PyMem_Free(reading.targets);
    PyMem_Free(reading.bounds);
    Py_XDECREF(pairs);
    if (!ok) {
        return NULL;
    }
    Py_RETURN_NONE;
}
