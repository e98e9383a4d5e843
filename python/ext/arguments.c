/* arguments.c - from Python's values to heft's, and back. */
#include "ext.h"

#include <string.h>

bool parse_dtype(PyObject *object, heft_dtype *dtype)
{
    heft_error error = {.offset = HEFT_NO_OFFSET};
    *dtype = HEFT_DTYPE_NONE;
    if (!object || object == Py_None) {
        return true;
    }
    if (!PyUnicode_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "a dtype must be given by its name, a str");
        return false;
    }
    const char *text = PyUnicode_AsUTF8AndSize(object, NULL);
    if (!text) {
        return false;
    }
    if (heft_dtype_parse(text, dtype, &error) != HEFT_OK) {
        raise_error(&error);
        return false;
    }
    return true;
}

PyObject *text_of_path(const char *path)
{
    return PyUnicode_DecodeFSDefault(path);
}

PyObject *text_of(const char *text)
{
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "backslashreplace");
}

PyObject *list_of_texts(const char *(*next)(const void *object, size_t i), const void *object)
{
    PyObject *list = PyList_New(0);
    const char *text;
    for (size_t i = 0; list && (text = next(object, i)) != NULL; i++) {
        PyObject *item = text_of(text);
        if (!item || PyList_Append(list, item) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

PyObject *tuple_of_sizes(const uint64_t *sizes, size_t count)
{
    PyObject *tuple = PyTuple_New((Py_ssize_t)count);
    for (size_t i = 0; tuple && i < count; i++) {
        PyObject *size = PyLong_FromUnsignedLongLong(sizes[i]);
        if (!size || PyTuple_SetItem(tuple, (Py_ssize_t)i, size) != 0) {
            Py_CLEAR(tuple);
        }
    }
    return tuple;
}

bool put(PyObject *dict, const char *key, PyObject *value)
{
    const bool ok = value && PyDict_SetItemString(dict, key, value) == 0;
    Py_XDECREF(value);
    return ok;
}

bool read_texts(PyObject *object, struct texts *texts)
{
    *texts = (struct texts){0};
    if (!object || object == Py_None) {
        return true;
    }
    if (PyUnicode_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "expected a sequence of str, not one str");
        return false;
    }
    texts->sequence = PySequence_Tuple(object);
    if (!texts->sequence) {
        return false;
    }
    const Py_ssize_t count = PyTuple_Size(texts->sequence);
    texts->list = PyMem_Calloc((size_t)count + 1, sizeof *texts->list);
    if (!texts->list) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GetItem(texts->sequence, i);
        texts->list[i] = PyUnicode_Check(item) ? PyUnicode_AsUTF8AndSize(item, NULL) : NULL;
        if (!texts->list[i]) {
            if (!PyErr_Occurred()) {
                PyErr_SetString(PyExc_TypeError, "expected a sequence of str");
            }
            return false;
        }
    }
    texts->count = (size_t)count;
    return true;
}

void free_texts(struct texts *texts)
{
    Py_CLEAR(texts->sequence);
    PyMem_Free(texts->list);
    texts->list = NULL;
}
