/* inputs.c - the inputs of a pass, from buffers of Python objects.
 *
 * A row is a tuple:
 *   (sequence, ids, mask, positions, types, features, feature shape, decoder ids, logits)
 * Buffers have int32, but the mask has bytes and features are float32. None: not given. */
#include "ext.h"

#include <string.h>

enum { ROW_ITEMS = 9, ROW_BUFFERS = 6, LOGITS_KINDS = 3 };

/* A contiguous buffer of whole, aligned items. */
static bool take_view(PyObject *object, const char *what, size_t item_bytes, Py_buffer *view)
{
    if (PyObject_GetBuffer(object, view, PyBUF_SIMPLE) != 0) {
        return false;
    }
    if ((size_t)view->len % item_bytes == 0 && (uintptr_t)view->buf % item_bytes == 0) {
        return true;
    }
    PyErr_Format(PyExc_ValueError, "%s: not a buffer of items of %zu bytes", what, item_bytes);
    PyBuffer_Release(view);
    return false;
}

bool int32_buffer(PyObject *object, const char *what, Py_buffer *view, size_t *count)
{
    if (!take_view(object, what, sizeof(int32_t), view)) {
        return false;
    }
    *count = (size_t)view->len / sizeof(int32_t);
    return true;
}

/* NULL and true for None. */
static bool take(struct inputs *inputs, PyObject *object, const char *what, size_t item_bytes,
                 const void **data, size_t *count)
{
    *data = NULL;
    *count = 0;
    if (object == Py_None) {
        return true;
    }
    Py_buffer *view = &inputs->buffers[inputs->buffer_count];
    if (!take_view(object, what, item_bytes, view)) {
        return false;
    }
    inputs->buffer_count++;
    *data = view->buf;
    *count = (size_t)view->len / item_bytes;
    return true;
}

/* As many as there are ids. */
static bool take_beside(struct inputs *inputs, PyObject *object, const char *what,
                        size_t item_bytes, size_t expected, const void **data)
{
    size_t count;
    if (!take(inputs, object, what, item_bytes, data, &count)) {
        return false;
    }
    if (*data && count != expected) {
        PyErr_Format(PyExc_ValueError, "%s has %zu values, input_ids has %zu", what, count,
                     expected);
        return false;
    }
    return true;
}

static bool take_features(struct inputs *inputs, heft_input *input, PyObject *data, PyObject *shape)
{
    unsigned long long sizes[3] = {0};
    const void *numbers;
    size_t count;
    if (data == Py_None) {
        return true;
    }
    if (!PyTuple_Check(shape) || !PyArg_ParseTuple(shape, "KKK", &sizes[0], &sizes[1], &sizes[2]) ||
        !take(inputs, data, "features", sizeof(float), &numbers, &count)) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "the shape of features is a tuple of three sizes");
        }
        return false;
    }
    unsigned long long product = 1;
    for (int d = 0; d < 3; d++) {
        if (__builtin_mul_overflow(product, sizes[d], &product)) {
            product = 0;
        }
        input->feature_shape[d] = sizes[d];
    }
    if (product != count || count == 0) {
        PyErr_SetString(PyExc_ValueError, "features do not have as many numbers as their shape");
        return false;
    }
    input->features = numbers;
    return true;
}

static bool take_sequence(const Session *session, PyObject *object, heft_input *input)
{
    if (object == Py_None) {
        return true;
    }
    if (!PyObject_TypeCheck(object, sequence_type)) {
        PyErr_SetString(PyExc_TypeError, "a sequence must be a Sequence of the session");
        return false;
    }
    const Sequence *sequence = (const Sequence *)object;
    if (sequence->owner != session || !sequence->sequence) {
        PyErr_SetString(PyExc_ValueError, sequence->sequence
                                              ? "the sequence belongs to another session"
                                              : "the sequence is closed");
        return false;
    }
    input->sequence = sequence->sequence;
    return true;
}

static bool read_row(struct inputs *inputs, const Session *session, PyObject *row,
                     heft_input *input)
{
    PyObject *items[ROW_ITEMS];
    const void *ids, *mask, *positions, *types, *decoder_ids;
    *input = HEFT_SIZED(heft_input);
    if (!PyTuple_Check(row) || PyTuple_Size(row) != ROW_ITEMS) {
        PyErr_SetString(PyExc_TypeError, "a row of inputs is a tuple of nine");
        return false;
    }
    for (Py_ssize_t i = 0; i < ROW_ITEMS; i++) {
        items[i] = PyTuple_GetItem(row, i);
    }
    if (!take_sequence(session, items[0], input) ||
        !take(inputs, items[1], "input_ids", sizeof(int32_t), &ids, &input->count) ||
        !take_beside(inputs, items[2], "attention_mask", 1, input->count, &mask) ||
        !take_beside(inputs, items[3], "position_ids", sizeof(int32_t), input->count, &positions) ||
        !take_beside(inputs, items[4], "token_type_ids", sizeof(int32_t), input->count, &types) ||
        !take_features(inputs, input, items[5], items[6]) ||
        !take(inputs, items[7], "decoder_input_ids", sizeof(int32_t), &decoder_ids,
              &input->decoder_count)) {
        return false;
    }
    const long logits = PyLong_AsLong(items[8]);
    if (logits < 0 || logits >= LOGITS_KINDS) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "logits is 0, 1 or 2");
        }
        return false;
    }
    input->ids = ids;
    input->mask = mask;
    input->positions = positions;
    input->types = types;
    input->decoder_ids = decoder_ids;
    input->logits = (heft_logits)logits;
    return true;
}

/* One sequence cannot take two rows of a pass. */
static bool sequences_differ(const struct inputs *inputs)
{
    for (size_t i = 0; i < inputs->count; i++) {
        for (size_t k = 0; inputs->list[i].sequence && k < i; k++) {
            if (inputs->list[i].sequence == inputs->list[k].sequence) {
                PyErr_SetString(PyExc_ValueError, "a sequence is given for two rows of a batch");
                return false;
            }
        }
    }
    return true;
}

bool inputs_read(PyObject *object, const Session *session, struct inputs *inputs)
{
    *inputs = (struct inputs){.rows = PySequence_Tuple(object)};
    const Py_ssize_t count = inputs->rows ? PyTuple_Size(inputs->rows) : -1;
    if (count <= 0) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "a batch of no rows");
        }
        return false;
    }
    inputs->list = PyMem_Calloc((size_t)count, sizeof *inputs->list);
    inputs->buffers = PyMem_Calloc((size_t)count, ROW_BUFFERS * sizeof *inputs->buffers);
    if (!inputs->list || !inputs->buffers) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!read_row(inputs, session, PyTuple_GetItem(inputs->rows, i), &inputs->list[i])) {
            return false;
        }
        inputs->count++;
    }
    return sequences_differ(inputs);
}

void inputs_fini(struct inputs *inputs)
{
    for (size_t i = 0; i < inputs->buffer_count; i++) {
        PyBuffer_Release(&inputs->buffers[i]);
    }
    PyMem_Free(inputs->buffers);
    PyMem_Free(inputs->list);
    Py_CLEAR(inputs->rows);
    *inputs = (struct inputs){0};
}
