/* tokenizer.c - the types Tokenizer and TextStream: text to ids, and back. */
#include "ext.h"

#include <string.h>

PyTypeObject *tokenizer_type, *text_stream_type;

typedef struct {
    PyObject ob_base;
    heft_tokenizer *tokenizer;
} Tokenizer;

typedef struct {
    PyObject ob_base;
    Tokenizer *owner;
    heft_text_stream *stream;
    bool busy; /* a call uses it now */
} TextStream;

/* ---- making ---------------------------------------------------------------------------------- */
static PyObject *tokenizer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"path", NULL};
    PyObject *path;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&:Tokenizer", keywords, PyUnicode_FSConverter,
                                     &path)) {
        return NULL;
    }
    Tokenizer *self = (Tokenizer *)PyType_GenericAlloc(type, 0);
    if (self) {
        struct call call;
        call_begin(&call, NULL);
        const heft_status status =
            heft_tokenizer_open(call_ctx(), PyBytes_AsString(path), &self->tokenizer, &call.error);
        if (!call_end(&call, status)) {
            Py_CLEAR(self);
        }
    }
    Py_DECREF(path);
    return (PyObject *)self;
}

static void tokenizer_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    Py_BEGIN_ALLOW_THREADS heft_tokenizer_close(((Tokenizer *)object)->tokenizer);
    Py_END_ALLOW_THREADS PyErr_Restore(kind, value, trace);
    PyObject_Free(object);
    Py_DECREF(type);
}

/* ---- text and ids ---------------------------------------------------------------------------- */
static PyObject *list_of_ids(const uint32_t *ids, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        PyObject *id = PyLong_FromUnsignedLong(ids[i]);
        if (!id || PyList_SetItem(list, (Py_ssize_t)i, id) != 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

static PyObject *tokenizer_encode(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"text", "add_special_tokens", NULL};
    const heft_tokenizer *tokenizer = ((Tokenizer *)object)->tokenizer;
    PyObject *text;
    Py_ssize_t length;
    int special = 1;
    uint32_t *ids = NULL;
    size_t count = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "U|p:encode", keywords, &text, &special)) {
        return NULL;
    }
    const char *bytes = PyUnicode_AsUTF8AndSize(text, &length);
    if (!bytes) {
        return NULL;
    }
    struct call call;
    call_begin(&call, NULL);
    const heft_status status = heft_tokenizer_encode(tokenizer, bytes, (size_t)length, special != 0,
                                                     &ids, &count, &call.error);
    PyObject *list = call_end(&call, status) ? list_of_ids(ids, count) : NULL;
    heft_tokenizer_free_ids(tokenizer, ids, count);
    return list;
}

/* The ids of any sequence of numbers. Returns owned ids; NULL with an exception. */
static uint32_t *read_ids(PyObject *object, size_t *count)
{
    PyObject *tuple = PySequence_Tuple(object);
    const Py_ssize_t length = tuple ? PyTuple_Size(tuple) : 0;
    uint32_t *ids = tuple ? PyMem_Calloc((size_t)length + 1, sizeof *ids) : NULL;
    if (tuple && !ids) {
        PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; ids && i < length && !PyErr_Occurred(); i++) {
        PyObject *number = PyNumber_Index(PyTuple_GetItem(tuple, i));
        const unsigned long long id = number ? PyLong_AsUnsignedLongLong(number) : 0;
        Py_XDECREF(number);
        if (id > UINT32_MAX || PyErr_ExceptionMatches(PyExc_OverflowError)) {
            PyErr_Clear();
            PyErr_SetString(PyExc_ValueError, "an id is from 0 to 4294967295");
        }
        ids[i] = (uint32_t)id;
    }
    if (PyErr_Occurred()) {
        PyMem_Free(ids);
        ids = NULL;
    }
    Py_XDECREF(tuple);
    *count = (size_t)length;
    return ids;
}

static PyObject *tokenizer_decode(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"ids", "skip_special_tokens", NULL};
    const heft_tokenizer *tokenizer = ((Tokenizer *)object)->tokenizer;
    PyObject *numbers, *text = NULL;
    int skip = 1;
    size_t count = 0, length = 0;
    char *bytes = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|p:decode", keywords, &numbers, &skip)) {
        return NULL;
    }
    uint32_t *ids = read_ids(numbers, &count);
    if (!ids) {
        return NULL;
    }
    struct call call;
    call_begin(&call, NULL);
    const heft_status status =
        heft_tokenizer_decode(tokenizer, ids, count, skip != 0, &bytes, &length, &call.error);
    if (call_end(&call, status)) {
        text = PyUnicode_DecodeUTF8(bytes, (Py_ssize_t)length, "replace");
    }
    heft_tokenizer_free_text(tokenizer, bytes, length);
    PyMem_Free(ids);
    return text;
}

static PyObject *tokenizer_token(PyObject *object, PyObject *argument)
{
    const unsigned long id = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    size_t length = 0;
    const char *token = id <= UINT32_MAX ? heft_tokenizer_token(((Tokenizer *)object)->tokenizer,
                                                                (uint32_t)id, &length)
                                         : NULL;
    return token ? PyUnicode_DecodeUTF8(token, (Py_ssize_t)length, "replace") : Py_NewRef(Py_None);
}

static PyObject *tokenizer_id(PyObject *object, PyObject *argument)
{
    Py_ssize_t length;
    uint32_t id;
    if (!PyUnicode_Check(argument)) {
        PyErr_SetString(PyExc_TypeError, "a token is a str");
        return NULL;
    }
    const char *token = PyUnicode_AsUTF8AndSize(argument, &length);
    if (!token) {
        return NULL;
    }
    return heft_tokenizer_id(((Tokenizer *)object)->tokenizer, token, (size_t)length, &id)
               ? PyLong_FromUnsignedLong(id)
               : Py_NewRef(Py_None);
}

static PyObject *tokenizer_check_config(PyObject *object, PyObject *args)
{
    const heft_tokenizer *tokenizer = ((Tokenizer *)object)->tokenizer;
    PyObject *folder, *result = NULL;
    if (!PyArg_ParseTuple(args, "O&:_check_config", PyUnicode_FSConverter, &folder)) {
        return NULL;
    }
    struct call call;
    call_begin(&call, NULL);
    char *text = NULL;
    size_t length = 0;
    const heft_status status = heft_tokenizer_check_config(tokenizer, PyBytes_AsString(folder),
                                                           &text, &length, &call.error);
    if (call_end(&call, status)) {
        result = PyUnicode_DecodeUTF8(text, (Py_ssize_t)length, "replace");
        heft_tokenizer_free_text(tokenizer, text, length);
    }
    Py_DECREF(folder);
    return result;
}

static PyObject *tokenizer_special_ids(PyObject *object, void *unused)
{
    (void)unused;
    size_t count = 0;
    const uint32_t *ids = heft_tokenizer_special_ids(((Tokenizer *)object)->tokenizer, &count);
    return list_of_ids(ids, count);
}

static PyObject *tokenizer_truncation(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(heft_tokenizer_truncation(((Tokenizer *)object)->tokenizer));
}

static Py_ssize_t tokenizer_size(PyObject *object)
{
    return (Py_ssize_t)heft_tokenizer_size(((Tokenizer *)object)->tokenizer);
}

/* ---- streams --------------------------------------------------------------------------------- */
static PyObject *tokenizer_stream(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"skip_special_tokens", NULL};
    int skip = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|p:stream", keywords, &skip)) {
        return NULL;
    }
    TextStream *self = (TextStream *)PyType_GenericAlloc(text_stream_type, 0);
    if (!self) {
        return NULL;
    }
    self->owner = (Tokenizer *)Py_NewRef(object);
    heft_error error = {.offset = HEFT_NO_OFFSET};
    if (heft_text_stream_new(self->owner->tokenizer, skip != 0, &self->stream, &error) != HEFT_OK) {
        raise_error(&error);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void stream_dealloc(PyObject *object)
{
    TextStream *self = (TextStream *)object;
    PyTypeObject *type = Py_TYPE(object);
    heft_text_stream_free(self->stream);
    Py_XDECREF((PyObject *)self->owner);
    PyObject_Free(object);
    Py_DECREF(type);
}

static bool stream_use(TextStream *self)
{
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "the stream is in use by another thread");
        return false;
    }
    return self->busy = true;
}

static PyObject *stream_end(TextStream *self, struct call *call, heft_status status,
                            const char *text, size_t length)
{
    PyObject *result =
        call_end(call, status) ? PyUnicode_DecodeUTF8(text, (Py_ssize_t)length, "replace") : NULL;
    self->busy = false;
    return result;
}

static PyObject *stream_add(PyObject *object, PyObject *argument)
{
    TextStream *self = (TextStream *)object;
    const unsigned long id = PyLong_AsUnsignedLong(argument);
    const char *text = "";
    size_t length = 0;
    struct call call;
    if (!PyErr_Occurred() && id > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "an id is from 0 to 4294967295");
    }
    if (PyErr_Occurred() || !stream_use(self)) {
        return NULL;
    }
    call_begin(&call, NULL);
    const heft_status status =
        heft_text_stream_add(self->stream, (uint32_t)id, &text, &length, &call.error);
    return stream_end(self, &call, status, text, length);
}

static PyObject *stream_finish(PyObject *object, PyObject *unused)
{
    (void)unused;
    TextStream *self = (TextStream *)object;
    const char *text = "";
    size_t length = 0;
    struct call call;
    if (!stream_use(self)) {
        return NULL;
    }
    call_begin(&call, NULL);
    const heft_status status = heft_text_stream_finish(self->stream, &text, &length, &call.error);
    return stream_end(self, &call, status, text, length);
}

/* ---- types ----------------------------------------------------------------------------------- */
PyDoc_STRVAR(
    tokenizer_doc,
    "Tokenizer(path)\n--\n\n"
    "Text to ids and back, by a `tokenizer.json`: docs/text.md.\n\n"
    "Any number of threads may use it at once.\n\n"
    "Args:\n    path: the file, or a folder that contains one.\n\n"
    "Raises:\n    NotFoundError, FormatError (with the byte), LimitError, IoError.\n"
    "    UnsupportedError: the file has a step that heft does not know, or that this build "
    "lacks a library for.");
PyDoc_STRVAR(encode_doc,
             "encode($self, /, text, add_special_tokens=True)\n--\n\n"
             "Return the ids of a text, a list of int. Nothing is cut or padded.\n\n"
             "add_special_tokens: whether ids go around the text, such as those of [CLS] and "
             "[SEP].");
PyDoc_STRVAR(decode_doc, "decode($self, /, ids, skip_special_tokens=True)\n--\n\n"
                         "Return the text of ids. Ids that are no tokens are skipped.");
PyDoc_STRVAR(token_doc, "token($self, id, /)\n--\n\n"
                        "Return a token as the vocabulary has it, None if the id is no token.");
PyDoc_STRVAR(id_doc, "id($self, token, /)\n--\n\n"
                     "Return the id of a token of the vocabulary, None if there is none.");
PyDoc_STRVAR(check_config_doc, "_check_config($self, folder, /)\n--\n\n"
                               "Name what tokenizer_config.json says otherwise.");
PyDoc_STRVAR(stream_of_doc, "stream($self, /, skip_special_tokens=True)\n--\n\n"
                            "Return a TextStream: text id by id.");
PyDoc_STRVAR(stream_doc,
             "Text of ids one by one. Tokenizer.stream() makes it. One thread at a time uses it.");
PyDoc_STRVAR(add_doc, "add($self, id, /)\n--\n\n"
                      "Return the text that is complete with this id; \"\" if none is.");
PyDoc_STRVAR(finish_doc, "finish($self, /)\n--\n\nReturn the text that is left, and begin again.");

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void))(function)
static PyMethodDef tokenizer_methods[] = {
    {"encode",        WITH_KEYWORDS(tokenizer_encode), METH_VARARGS | METH_KEYWORDS, encode_doc      },
    {"decode",        WITH_KEYWORDS(tokenizer_decode), METH_VARARGS | METH_KEYWORDS, decode_doc      },
    {"token",         tokenizer_token,                 METH_O,                       token_doc       },
    {"id",            tokenizer_id,                    METH_O,                       id_doc          },
    {"stream",        WITH_KEYWORDS(tokenizer_stream), METH_VARARGS | METH_KEYWORDS, stream_of_doc   },
    {"_check_config", tokenizer_check_config,          METH_VARARGS,                 check_config_doc},
    {NULL,            NULL,                            0,                            NULL            }
};
static PyGetSetDef tokenizer_getters[] = {
    {"special_ids", tokenizer_special_ids, NULL, "The ids of special tokens, ascending.",       NULL},
    {"truncation",  tokenizer_truncation,  NULL, "Ids to which the file cuts a text; 0: none.", NULL},
    {NULL,          NULL,                  NULL, NULL,                                          NULL}
};
static PyType_Slot tokenizer_slots[] = {
    {Py_tp_new,     (void *)tokenizer_new    },
    {Py_tp_dealloc, (void *)tokenizer_dealloc},
    {Py_sq_length,  (void *)tokenizer_size   },
    {Py_tp_methods, tokenizer_methods        },
    {Py_tp_getset,  tokenizer_getters        },
    {Py_tp_doc,     (void *)tokenizer_doc    },
    {0,             NULL                     }
};
static PyType_Spec tokenizer_spec = {"heft._heft.Tokenizer", sizeof(Tokenizer), 0,
                                     Py_TPFLAGS_DEFAULT, tokenizer_slots};

static PyMethodDef stream_methods[] = {
    {"add",    stream_add,    METH_O,      add_doc   },
    {"finish", stream_finish, METH_NOARGS, finish_doc},
    {NULL,     NULL,          0,           NULL      }
};
static PyType_Slot stream_slots[] = {
    {Py_tp_dealloc, (void *)stream_dealloc},
    {Py_tp_methods, stream_methods        },
    {Py_tp_doc,     (void *)stream_doc    },
    {0,             NULL                  }
};
static PyType_Spec stream_spec = {"heft._heft.TextStream", sizeof(TextStream), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                  stream_slots};

PyTypeObject *tokenizer_make_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &tokenizer_spec, NULL);
}

PyTypeObject *text_stream_make_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &stream_spec, NULL);
}
