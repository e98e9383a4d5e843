/* checkpoint.c - the type Checkpoint: an open checkpoint, its names and facts.
 *
 * heft allows any number of threads to use a checkpoint at once, but not to close it meanwhile. The
 * counter `busy` changes only under the GIL: the last call that leaves a closed checkpoint closes it. */
#include "ext.h"

PyTypeObject *checkpoint_type;

heft_checkpoint *checkpoint_use(Checkpoint *self)
{
    if (self->closed) {
        PyErr_SetString(PyExc_ValueError, "the checkpoint is closed");
        return NULL;
    }
    self->busy++;
    return self->checkpoint;
}

static void close_now(Checkpoint *self)
{
    heft_checkpoint *checkpoint = self->checkpoint;
    self->checkpoint = NULL;
    if (self->cache) {
        PyDict_Clear(self->cache);
    }
    if (checkpoint) {
        Py_BEGIN_ALLOW_THREADS /* unmaps files */
            heft_checkpoint_close(checkpoint);
        Py_END_ALLOW_THREADS drain_buffers();
    }
}

void checkpoint_leave(Checkpoint *self)
{
    if (--self->busy == 0 && self->closed) {
        close_now(self);
    }
}

static PyObject *wrap(heft_checkpoint *checkpoint)
{
    Checkpoint *self = PyObject_New(Checkpoint, checkpoint_type);
    if (!self) {
        heft_checkpoint_close(checkpoint);
        return NULL;
    }
    self->checkpoint = checkpoint;
    self->busy = 0;
    self->closed = false;
    self->cache = PyDict_New();
    if (!self->cache) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void checkpoint_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    Py_CLEAR(((Checkpoint *)object)->cache);
    close_now((Checkpoint *)object);
    PyErr_Restore(kind, value, trace);
    PyObject_Free(object);
    Py_DECREF(type);
}

PyObject *checkpoint_open(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *keywords[] = {"path",     "variant",     "subfolder", "trust_shards",
                               "progress", "whole_value", NULL};
    PyObject *path = NULL, *progress = NULL;
    heft_checkpoint_options options = HEFT_SIZED(heft_checkpoint_options);
    int trust = 0, whole = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|zzpOp:open", keywords, PyUnicode_FSConverter,
                                     &path, &options.variant, &options.subfolder, &trust, &progress,
                                     &whole)) {
        return NULL;
    }
    options.trust_shards = trust != 0;
    options.whole_value = whole != 0;
    heft_checkpoint *checkpoint = NULL;
    const char *name = PyBytes_AsString(path);
    struct call call;
    call_begin(&call, progress);
    const heft_status status =
        heft_checkpoint_open(call_ctx(), name, &options, &checkpoint, &call.error);
    const bool ok = call_end(&call, status);
    Py_DECREF(path);
    if (!ok) {
        heft_checkpoint_close(checkpoint);
        return NULL;
    }
    return wrap(checkpoint);
}

PyObject *checkpoint_open_bytes(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *keywords[] = {"data", "name", "whole_value", NULL};
    PyObject *data = NULL;
    const char *name = "bytes";
    heft_checkpoint_options options = HEFT_SIZED(heft_checkpoint_options);
    int whole = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|sp:open_bytes", keywords, &data, &name,
                                     &whole)) {
        return NULL;
    }
    options.whole_value = whole != 0;
    heft_storage *storage = storage_of_buffer(data);
    if (!storage) {
        return NULL;
    }
    heft_checkpoint *checkpoint = NULL;
    struct call call;
    call_begin(&call, NULL);
    const heft_status status =
        heft_checkpoint_open_bytes(call_ctx(), name, storage, &options, &checkpoint, &call.error);
    heft_storage_unref(storage);
    if (!call_end(&call, status)) {
        heft_checkpoint_close(checkpoint);
        drain_buffers();
        return NULL;
    }
    return wrap(checkpoint);
}

static PyObject *checkpoint_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    Checkpoint *self = (Checkpoint *)object;
    self->closed = true;
    if (self->busy == 0) {
        close_now(self);
    }
    Py_RETURN_NONE;
}

static Py_ssize_t checkpoint_length(PyObject *object)
{
    Checkpoint *self = (Checkpoint *)object;
    heft_checkpoint *checkpoint = checkpoint_use(self);
    if (!checkpoint) {
        return -1;
    }
    const Py_ssize_t count = (Py_ssize_t)heft_checkpoint_count(checkpoint);
    checkpoint_leave(self);
    return count;
}

/* {name: number}, in file order. */
static PyObject *checkpoint_names(PyObject *object, PyObject *unused)
{
    (void)unused;
    Checkpoint *self = (Checkpoint *)object;
    heft_checkpoint *checkpoint = checkpoint_use(self);
    if (!checkpoint) {
        return NULL;
    }
    const size_t count = heft_checkpoint_count(checkpoint);
    PyObject *names = PyDict_New();
    for (size_t i = 0; names && i < count; i++) {
        PyObject *name = text_of(heft_checkpoint_info(checkpoint, i)->name);
        PyObject *number = PyLong_FromSize_t(i);
        if (!name || !number || PyDict_SetItem(names, name, number) != 0) {
            Py_CLEAR(names);
        }
        Py_XDECREF(name);
        Py_XDECREF(number);
    }
    checkpoint_leave(self);
    return names;
}

static PyObject *checkpoint_tensor(PyObject *object, PyObject *argument)
{
    Checkpoint *self = (Checkpoint *)object;
    const size_t number = PyLong_AsSize_t(argument);
    if (number == (size_t)-1 && PyErr_Occurred()) {
        return NULL;
    }
    heft_checkpoint *checkpoint = checkpoint_use(self);
    if (!checkpoint) {
        return NULL;
    }
    PyObject *tensor = NULL;
    if (number >= heft_checkpoint_count(checkpoint)) {
        PyErr_SetString(PyExc_IndexError, "there is no such tensor");
    } else {
        tensor = tensor_of_checkpoint(self, checkpoint, number);
    }
    checkpoint_leave(self);
    return tensor;
}

static PyObject *metadata_of(const heft_checkpoint *checkpoint)
{
    PyObject *dict = PyDict_New();
    const char *key, *value = NULL;
    for (size_t i = 0; dict && (key = heft_checkpoint_metadata(checkpoint, i, &value)); i++) {
        PyObject *name = text_of(key), *text = text_of(value);
        if (!name || !text || PyDict_SetItem(dict, name, text) != 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(name);
        Py_XDECREF(text);
    }
    return dict;
}

/* {path: version}; the last file's counts. Paths are valid UTF-8. */
static PyObject *modules_of(const heft_checkpoint *checkpoint)
{
    PyObject *dict = PyDict_New();
    const char *path;
    uint32_t version = 0;
    for (size_t i = 0; dict && (path = heft_checkpoint_module(checkpoint, i, &version)); i++) {
        if (!put(dict, path, PyLong_FromUnsignedLong(version))) {
            Py_CLEAR(dict);
        }
    }
    return dict;
}

static PyObject *files_of(const heft_checkpoint *checkpoint)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < heft_checkpoint_file_count(checkpoint); i++) {
        const heft_file_info *info = heft_checkpoint_file(checkpoint, i);
        PyObject *file = Py_BuildValue(
            "{s:N,s:N,s:s,s:K,s:K}", "name", text_of_path(info->name), "path",
            text_of_path(info->path), "format", heft_format_name(info->format), "size_bytes",
            (unsigned long long)info->size_bytes, "tensors", (unsigned long long)info->tensors);
        if (!file || PyList_Append(list, file) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(file);
    }
    return list;
}

static const char *next_warning(const void *checkpoint, size_t i)
{
    return heft_checkpoint_warning(checkpoint, i);
}
static const char *next_skipped(const void *checkpoint, size_t i)
{
    return heft_checkpoint_skipped(checkpoint, i);
}

/* Everything about the checkpoint that is not a tensor. */
static PyObject *checkpoint_facts(PyObject *object, PyObject *unused)
{
    (void)unused;
    Checkpoint *self = (Checkpoint *)object;
    heft_checkpoint *checkpoint = checkpoint_use(self);
    PyObject *facts = checkpoint ? PyDict_New() : NULL;
    if (facts) {
        const char *folder = heft_checkpoint_folder(checkpoint),
                   *index = heft_checkpoint_index(checkpoint);
        const unsigned long long bytes = heft_checkpoint_total_bytes(checkpoint);
        if (!put(facts, "metadata", metadata_of(checkpoint)) ||
            !put(facts, "modules", modules_of(checkpoint)) ||
            !put(facts, "files", files_of(checkpoint)) ||
            !put(facts, "warnings", list_of_texts(next_warning, checkpoint)) ||
            !put(facts, "skipped", list_of_texts(next_skipped, checkpoint)) ||
            !put(facts, "folder", folder ? text_of_path(folder) : Py_NewRef(Py_None)) ||
            !put(facts, "index", index ? text_of_path(index) : Py_NewRef(Py_None)) ||
            !put(facts, "total_bytes", PyLong_FromUnsignedLongLong(bytes))) {
            Py_CLEAR(facts);
        }
    }
    if (checkpoint) {
        checkpoint_leave(self);
    }
    return facts;
}

static PyObject *checkpoint_closed(PyObject *object, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((Checkpoint *)object)->closed);
}

static PyObject *checkpoint_has_value(PyObject *object, void *unused)
{
    (void)unused;
    Checkpoint *self = (Checkpoint *)object;
    heft_checkpoint *checkpoint = checkpoint_use(self);
    if (!checkpoint) {
        return NULL;
    }
    heft_value value = HEFT_SIZED(heft_value);
    const bool has = heft_checkpoint_value(checkpoint, 0, &value);
    checkpoint_leave(self);
    return PyBool_FromLong(has);
}

static PyObject *checkpoint_cache(PyObject *object, void *unused)
{
    (void)unused;
    return Py_NewRef(((Checkpoint *)object)->cache);
}

/* {number: storage} of the tensors that share their storage with another one. */
static PyObject *checkpoint_ties(PyObject *object, PyObject *unused)
{
    (void)unused;
    Checkpoint *self = (Checkpoint *)object;
    heft_checkpoint *checkpoint = checkpoint_use(self);
    if (!checkpoint) {
        return NULL;
    }
    const size_t count = heft_checkpoint_count(checkpoint);
    size_t most = 0;
    for (size_t i = 0; i < count; i++) {
        const size_t storage = heft_checkpoint_info(checkpoint, i)->storage;
        most = storage > most ? storage : most;
    }
    unsigned char *seen = PyMem_Calloc(most + 1, 1);
    PyObject *ties = seen ? PyDict_New() : PyErr_NoMemory();
    for (size_t i = 0; ties && i < count; i++) {
        unsigned char *times = &seen[heft_checkpoint_info(checkpoint, i)->storage];
        *times = *times < 2 ? (unsigned char)(*times + 1) : 2;
    }
    for (size_t i = 0; ties && i < count; i++) {
        const size_t storage = heft_checkpoint_info(checkpoint, i)->storage;
        if (seen[storage] < 2) {
            continue;
        }
        PyObject *number = PyLong_FromSize_t(i), *value = PyLong_FromSize_t(storage);
        if (!number || !value || PyDict_SetItem(ties, number, value) != 0) {
            Py_CLEAR(ties);
        }
        Py_XDECREF(number);
        Py_XDECREF(value);
    }
    PyMem_Free(seen);
    checkpoint_leave(self);
    return ties;
}

PyDoc_STRVAR(ties_doc,
             "ties($self)\n--\n\nReturn {number: storage} of tensors that share storages.");
PyDoc_STRVAR(value_doc,
             "value($self, make, encoding, /)\n--\n\nReturn the whole value of a pickle. "
             "make(kind, ...) returns what only torch and Python's libraries have.");
PyDoc_STRVAR(type_doc, "An open checkpoint. heft.Checkpoint is the class to use.");
PyDoc_STRVAR(names_doc, "names($self)\n--\n\nReturn {name: number} of all tensors, in file order.");
PyDoc_STRVAR(tensor_doc, "tensor($self, number, /)\n--\n\nReturn a lazy tensor.");
PyDoc_STRVAR(facts_doc, "facts($self)\n--\n\nReturn metadata, files, warnings and sizes.");
PyDoc_STRVAR(close_doc,
             "close($self)\n--\n\nClose the checkpoint. Its tensors that are in use stay valid.");

static PyMethodDef methods[] = {
    {"names",  checkpoint_names,  METH_NOARGS,  names_doc },
    {"tensor", checkpoint_tensor, METH_O,       tensor_doc},
    {"facts",  checkpoint_facts,  METH_NOARGS,  facts_doc },
    {"ties",   checkpoint_ties,   METH_NOARGS,  ties_doc  },
    {"value",  checkpoint_value,  METH_VARARGS, value_doc },
    {"close",  checkpoint_close,  METH_NOARGS,  close_doc },
    {NULL,     NULL,              0,            NULL      }
};
static PyGetSetDef getters[] = {
    {"closed",    checkpoint_closed,    NULL, "Whether close() was called.",                        NULL},
    {"has_value", checkpoint_has_value, NULL, "Whether it is a pickle whose whole value is there.",
     NULL                                                                                               },
    {"_cache",    checkpoint_cache,     NULL, "What lives as long as the checkpoint.",              NULL},
    {NULL,        NULL,                 NULL, NULL,                                                 NULL}
};
static PyType_Slot slots[] = {
    {Py_tp_dealloc, (void *)checkpoint_dealloc},
    {Py_tp_methods, methods                   },
    {Py_tp_getset,  getters                   },
    {Py_sq_length,  (void *)checkpoint_length },
    {Py_tp_doc,     (void *)type_doc          },
    {0,             NULL                      }
};
static PyType_Spec spec = {"heft._heft.Checkpoint", sizeof(Checkpoint), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

PyTypeObject *checkpoint_make_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
