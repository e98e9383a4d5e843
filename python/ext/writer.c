/* writer.c - the type Writer: tensors of any library, written to a folder or a file. */
#include "ext.h"

#include <string.h>

PyTypeObject *writer_type;

typedef struct {
    PyObject ob_base;
    heft_writer *writer;
    bool busy; /* a commit runs, on another thread or below a progress function */
} Writer;

static const char *const tie_names[] = {"refuse", "drop", "copy"};
static const char *const format_names[] = {"auto", "safetensors", "bin", NULL, NULL, "offload"};

static int number_of(const char *const *names, size_t count, const char *name, const char *what)
{
    for (size_t i = 0; i < count; i++) {
        if (names[i] && strcmp(names[i], name) == 0) {
            return (int)i;
        }
    }
    PyErr_Format(PyExc_ValueError, "%s '%s' is not known", what, name);
    return -1;
}

/* The versions of modules; NULL with an exception. */
static uint32_t *read_versions(PyObject *object, size_t count)
{
    PyObject *versions = PySequence_Tuple(object);
    uint32_t *list = versions ? PyMem_Calloc(count + 1, sizeof *list) : NULL;
    if (versions && !list) {
        PyErr_NoMemory();
    } else if (list && (size_t)PyTuple_Size(versions) != count) {
        PyErr_SetString(PyExc_ValueError, "a version for each module is needed");
    }
    for (size_t i = 0; i < count && !PyErr_Occurred(); i++) {
        const unsigned long value = PyLong_AsUnsignedLong(PyTuple_GetItem(versions, (Py_ssize_t)i));
        if (value > UINT32_MAX && !PyErr_Occurred()) {
            PyErr_SetString(PyExc_OverflowError, "a module's version is too large");
        }
        list[i] = (uint32_t)value;
    }
    Py_XDECREF(versions);
    if (PyErr_Occurred()) {
        PyMem_Free(list);
        return NULL;
    }
    return list;
}

static bool read_options(PyObject *args, PyObject *kwargs, PyObject **path,
                         heft_writer_options *options, PyObject **modules, PyObject **versions)
{
    static char *keywords[] = {"path",
                               "format",
                               "max_shard_bytes",
                               "variant",
                               "single_file",
                               "force",
                               "natural_order",
                               "ties",
                               "modules",
                               "total_parameters",
                               "wait",
                               "keep_side_files",
                               "module_versions",
                               NULL};
    const char *format = "auto", *ties = "refuse";
    unsigned long long shard = 0, parameters = 0;
    int single = 0, force = 0, natural = 0, wait = 0, keep = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|sKzpppsOKppO:Writer", keywords,
                                     PyUnicode_FSConverter, path, &format, &shard,
                                     &options->variant, &single, &force, &natural, &ties, modules,
                                     &parameters, &wait, &keep, versions)) {
        return false;
    }
    const int form = number_of(format_names, 6, format, "format");
    const int tie = form < 0 ? -1 : number_of(tie_names, 3, ties, "ties");
    options->format = (heft_format)form;
    options->ties = (heft_ties)tie;
    options->max_shard_bytes = shard;
    options->total_parameters = parameters;
    options->single_file = single != 0;
    options->force = force != 0;
    options->natural_order = natural != 0;
    options->wait = wait != 0;
    options->keep_side_files = keep != 0;
    return tie >= 0;
}

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *path = NULL, *modules = NULL, *versions = NULL;
    uint32_t *numbers = NULL;
    heft_writer_options options = HEFT_SIZED(heft_writer_options);
    struct texts names = {0};
    heft_error error = {.offset = HEFT_NO_OFFSET};
    Writer *self = NULL;
    if (!read_options(args, kwargs, &path, &options, &modules, &versions) ||
        !read_texts(modules, &names)) {
        goto done;
    }
    if (versions && versions != Py_None) {
        options.module_versions = numbers = read_versions(versions, names.count);
        if (!numbers) {
            goto done;
        }
    }
    options.modules = modules && modules != Py_None ? names.list : NULL;
    options.module_count = names.count;
    self = (Writer *)PyType_GenericAlloc(type, 0);
    if (self && heft_writer_new(call_ctx(), PyBytes_AsString(path), &options, &self->writer,
                                &error) != HEFT_OK) {
        raise_error(&error);
        Py_CLEAR(self);
    }
done:
    free_texts(&names);
    PyMem_Free(numbers);
    Py_XDECREF(path);
    return (PyObject *)self;
}

static void writer_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    heft_writer_free(((Writer *)object)->writer);
    drain_buffers();
    PyObject_Free(object);
    Py_DECREF(type);
}

static heft_writer *usable(PyObject *object)
{
    Writer *self = (Writer *)object;
    if (self->busy || !self->writer) {
        PyErr_SetString(PyExc_ValueError,
                        self->busy ? "the writer is being committed" : "the writer is closed");
        return NULL;
    }
    return self->writer;
}

/* The bytes of a contiguous buffer as a tensor of a dtype and shape. */
static heft_tensor *tensor_of_bytes(PyObject *data, heft_dtype dtype, PyObject *shape)
{
    uint64_t dims[64];
    heft_error error = {.offset = HEFT_NO_OFFSET};
    heft_tensor *tensor = NULL;
    PyObject *sizes = PySequence_Tuple(shape);
    const Py_ssize_t rank = sizes ? PyTuple_Size(sizes) : -1;
    if (rank > 64) {
        PyErr_SetString(PyExc_ValueError, "more than 64 dimensions");
    }
    for (Py_ssize_t i = 0; rank <= 64 && i < rank; i++) {
        dims[i] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(sizes, i));
        if (PyErr_Occurred()) {
            break;
        }
    }
    Py_XDECREF(sizes);
    heft_storage *storage = PyErr_Occurred() ? NULL : storage_of_buffer(data);
    if (!storage) {
        return NULL;
    }
    if (heft_tensor_new(
            storage,
            &HEFT_OPTIONS(heft_tensor_spec, .dtype = dtype, .rank = (uint32_t)rank, .shape = dims),
            &tensor, &error) != HEFT_OK) {
        raise_error(&error);
    } else if (tensor->size_bytes != heft_storage_bytes(storage)) {
        PyErr_Format(PyExc_ValueError, "%llu bytes of data, %llu bytes of shape and dtype",
                     (unsigned long long)heft_storage_bytes(storage),
                     (unsigned long long)tensor->size_bytes);
        heft_tensor_free(tensor);
        tensor = NULL;
    }
    heft_storage_unref(storage);
    drain_buffers();
    return tensor;
}

static PyObject *writer_add(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"name", "data", "dtype", "shape", NULL};
    heft_writer *writer = usable(object);
    const char *name;
    PyObject *data, *text = NULL, *shape = NULL;
    heft_dtype dtype;
    if (!writer ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "sO|OO:add", keywords, &name, &data, &text,
                                     &shape) ||
        !parse_dtype(text, &dtype)) {
        return NULL;
    }
    heft_tensor *tensor = NULL;
    if (Py_TYPE(data) == tensor_type) {
        tensor = tensor_bring((Tensor *)data, BRING_CONSTANT, HEFT_DTYPE_NONE, NULL);
    } else if (dtype != HEFT_DTYPE_NONE && shape && shape != Py_None) {
        tensor = tensor_of_bytes(data, dtype, shape);
    } else {
        tensor = tensor_of_capsule(data);
    }
    if (!tensor) {
        return NULL;
    }
    heft_error error = {.offset = HEFT_NO_OFFSET};
    writer = usable(object); /* bringing a tensor in releases the GIL */
    const heft_status status = writer ? heft_writer_add(writer, name, tensor, &error) : HEFT_OK;
    heft_tensor_free(tensor);
    drain_buffers();
    if (status != HEFT_OK) {
        raise_error(&error);
    }
    if (status != HEFT_OK || !writer) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *answer(heft_status status, const heft_error *error)
{
    if (status != HEFT_OK) {
        raise_error(error);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *writer_metadata(PyObject *object, PyObject *args)
{
    heft_writer *writer = usable(object);
    const char *key, *value;
    heft_error error = {.offset = HEFT_NO_OFFSET};
    if (!writer || !PyArg_ParseTuple(args, "sz:metadata", &key, &value)) {
        return NULL;
    }
    return answer(heft_writer_metadata(writer, key, value, &error), &error);
}

static PyObject *writer_side_file(PyObject *object, PyObject *args)
{
    heft_writer *writer = usable(object);
    const char *name, *data;
    Py_ssize_t length;
    heft_error error = {.offset = HEFT_NO_OFFSET};
    if (!writer || !PyArg_ParseTuple(args, "sy#:side_file", &name, &data, &length)) {
        return NULL;
    }
    return answer(heft_writer_side_file(writer, name, data, (size_t)length, &error), &error);
}

static PyObject *writer_commit(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"progress", NULL};
    PyObject *progress = NULL;
    heft_writer *writer = usable(object);
    if (!writer || !PyArg_ParseTupleAndKeywords(args, kwargs, "|O:commit", keywords, &progress)) {
        return NULL;
    }
    heft_write_report *report = NULL;
    ((Writer *)object)->busy = true;
    struct call call;
    call_begin(&call, progress);
    const heft_status status = heft_writer_commit(writer, &report, &call.error);
    const bool ok = call_end(&call, status);
    ((Writer *)object)->busy = false;
    PyObject *result = ok ? write_report(report) : NULL;
    heft_write_report_free(report);
    return result;
}

static PyObject *writer_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    Writer *self = (Writer *)object;
    if (self->busy) {
        PyErr_SetString(PyExc_ValueError, "the writer is being committed");
        return NULL;
    }
    heft_writer *writer = self->writer;
    self->writer = NULL;
    heft_writer_free(writer);
    drain_buffers();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(type_doc,
             "Writer(path, format='auto', max_shard_bytes=0, variant=None, single_file=False,\n"
             "       force=False, natural_order=False, ties='refuse', modules=None,\n"
             "       total_parameters=0, wait=False, keep_side_files=False,\n"
             "       module_versions=None)\n--\n\n"
             "Write tensors to a folder, or with single_file to one file: whole or not at all.\n\n"
             "ties is what happens to tensors that share memory: 'refuse', 'drop' or 'copy'.");
PyDoc_STRVAR(add_doc,
             "add($self, name, data, dtype=None, shape=None)\n--\n\n"
             "Add a tensor: a heft.Tensor, a DLPack capsule, or the bytes of a dtype and shape.\n\n"
             "The memory is borrowed until the writer is closed, and read by commit().");
PyDoc_STRVAR(metadata_doc,
             "metadata($self, key, value, /)\n--\n\n"
             "Set a key of the metadata; None removes it. 'format' is 'pt' at first.");
PyDoc_STRVAR(side_file_doc,
             "side_file($self, name, data, /)\n--\n\nAdd a file, such as config.json.");
PyDoc_STRVAR(commit_doc, "commit($self, progress=None)\n--\n\n"
                         "Write everything, and return a dict of what was written.");
PyDoc_STRVAR(close_doc,
             "close($self)\n--\n\nDrop all tensors. Without a commit, nothing was written.");

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void))(function)
static PyMethodDef methods[] = {
    {"add",       WITH_KEYWORDS(writer_add),    METH_VARARGS | METH_KEYWORDS, add_doc      },
    {"metadata",  writer_metadata,              METH_VARARGS,                 metadata_doc },
    {"side_file", writer_side_file,             METH_VARARGS,                 side_file_doc},
    {"commit",    WITH_KEYWORDS(writer_commit), METH_VARARGS | METH_KEYWORDS, commit_doc   },
    {"close",     writer_close,                 METH_NOARGS,                  close_doc    },
    {NULL,        NULL,                         0,                            NULL         }
};
static PyType_Slot slots[] = {
    {Py_tp_new,     (void *)writer_new    },
    {Py_tp_dealloc, (void *)writer_dealloc},
    {Py_tp_methods, methods               },
    {Py_tp_doc,     (void *)type_doc      },
    {0,             NULL                  }
};
static PyType_Spec spec = {"heft._heft.Writer", sizeof(Writer), 0, Py_TPFLAGS_DEFAULT, slots};

PyTypeObject *writer_make_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
