/* session.c - the types Session and Sequence: passes of a loaded model, and the tokens they add to.
 *
 * A session is used by one call at a time: a second one is refused, on whatever thread. What the last
 * pass made stays in the session, and output(), sample() and pool() take it from there.
 * A session has a thread of its own, which a fork does not take along: a child leaves it as it is. */
#include "ext.h"

#include <unistd.h>

PyTypeObject *session_type, *sequence_type;

/* ---- use ------------------------------------------------------------------------------------- */
static bool is_here(const Session *self)
{
    if (self->process != getpid()) {
        PyErr_SetString(PyExc_RuntimeError, "the session belongs to the parent process");
        return false;
    }
    return true;
}

heft_session *session_use(Session *self)
{
    if (!is_here(self)) {
        return NULL;
    }
    if (!self->session) {
        PyErr_SetString(PyExc_ValueError, "the session is closed");
        return NULL;
    }
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError,
                        "the session is in use: each thread needs a session of its own");
        return NULL;
    }
    self->busy = true;
    return self->session;
}

void session_leave(Session *self)
{
    self->busy = false;
}

/* ---- sequences ------------------------------------------------------------------------------- */
static void unlink_sequence(Sequence *self)
{
    if (self->previous) {
        self->previous->next = self->next;
    } else {
        self->owner->first = self->next;
    }
    if (self->next) {
        self->next->previous = self->previous;
    }
    self->next = self->previous = NULL;
}

static void free_sequence(Sequence *self)
{
    heft_sequence *sequence = self->sequence;
    if (!sequence) {
        return;
    }
    self->sequence = NULL;
    unlink_sequence(self);
    if (self->owner->process == getpid()) {
        heft_sequence_free(
            sequence); /* with the GIL: no other thread frees the session meanwhile */
    }
}

/* A sequence object for what a call makes. NULL with an exception. */
static Sequence *new_sequence(Session *owner)
{
    Sequence *self = (Sequence *)PyType_GenericAlloc(sequence_type, 0);
    if (self) {
        self->owner = (Session *)Py_NewRef((PyObject *)owner);
    }
    return self;
}

static PyObject *keep_sequence(Sequence *self, struct call *call, heft_status status)
{
    if (!call_end(call, status)) {
        heft_sequence_free(self->sequence);
        self->sequence = NULL;
        session_leave(self->owner);
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    session_leave(self->owner);
    self->next = self->owner->first;
    if (self->next) {
        self->next->previous = self;
    }
    self->owner->first = self;
    return (PyObject *)self;
}

static PyObject *session_sequence(PyObject *object, PyObject *args)
{
    Session *self = (Session *)object;
    unsigned long long capacity, encoded;
    if (!PyArg_ParseTuple(args, "KK:sequence", &capacity, &encoded)) {
        return NULL;
    }
    Sequence *made = new_sequence(self);
    heft_session *session = made ? session_use(self) : NULL;
    if (!session) {
        Py_XDECREF((PyObject *)made);
        return NULL;
    }
    struct call call;
    call_begin(&call, NULL);
    const heft_status status =
        heft_sequence_new(session, capacity, encoded, &made->sequence, &call.error);
    return keep_sequence(made, &call, status);
}

static PyObject *sequence_fork(PyObject *object, PyObject *unused)
{
    (void)unused;
    Sequence *self = (Sequence *)object;
    Sequence *made = new_sequence(self->owner);
    if (!made || !session_use(self->owner)) {
        Py_XDECREF((PyObject *)made);
        return NULL;
    }
    if (!self->sequence) {
        PyErr_SetString(PyExc_ValueError, "the sequence is closed");
        session_leave(self->owner);
        Py_DECREF((PyObject *)made);
        return NULL;
    }
    struct call call;
    call_begin(&call, NULL);
    const heft_status status = heft_sequence_fork(self->sequence, &made->sequence, &call.error);
    return keep_sequence(made, &call, status);
}

static PyObject *sequence_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    Sequence *self = (Sequence *)object;
    if (self->sequence) {
        if (!session_use(self->owner)) {
            return NULL;
        }
        free_sequence(self);
        session_leave(self->owner);
    }
    Py_RETURN_NONE;
}

static Py_ssize_t sequence_length(PyObject *object)
{
    Sequence *self = (Sequence *)object;
    if (!self->sequence) {
        PyErr_SetString(PyExc_ValueError, "the sequence is closed");
        return -1;
    }
    return (Py_ssize_t)heft_sequence_length(self->sequence);
}

static void sequence_dealloc(PyObject *object)
{
    Sequence *self = (Sequence *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    free_sequence(self);
    Py_XDECREF((PyObject *)self->owner);
    PyErr_Restore(kind, value, trace);
    PyObject_Free(object);
    Py_DECREF(type);
}

/* ---- making a session ------------------------------------------------------------------------ */
static PyObject *session_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"model", "memory_bytes", "pass_tokens", "exact", "over_limit", NULL};
    Model *model;
    unsigned long long memory = 0, tokens = 0;
    int exact = 0, over_limit = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|KKpp:Session", keywords, model_type, &model,
                                     &memory, &tokens, &exact, &over_limit)) {
        return NULL;
    }
    Session *self = (Session *)PyType_GenericAlloc(type, 0);
    if (!self) {
        return NULL;
    }
    self->owner = (Model *)Py_NewRef((PyObject *)model);
    self->process = getpid();
    const heft_session_options options =
        HEFT_OPTIONS(heft_session_options, .memory_bytes = memory, .pass_tokens = tokens,
                     .exact = exact != 0, .over_limit = over_limit != 0);
    struct call call;
    call_begin(&call, NULL);
    const heft_status status =
        heft_session_new(model->model, &options, &self->session, &call.error);
    if (!call_end(&call, status)) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

/* Free the session and what its sequences keep. */
static void free_session(Session *self)
{
    heft_session *session = self->session;
    while (self->first) {
        free_sequence(self->first);
    }
    self->session = NULL;
    if (session && self->process == getpid()) {
        Py_BEGIN_ALLOW_THREADS /* joins the reader, and frees the weights that were brought in */
            heft_session_free(session);
        Py_END_ALLOW_THREADS
    }
}

static PyObject *session_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    Session *self = (Session *)object;
    if (self->session) {
        if (!session_use(self)) {
            return NULL;
        }
        free_session(self);
        session_leave(self);
    }
    Py_RETURN_NONE;
}

static void session_dealloc(PyObject *object)
{
    Session *self = (Session *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    free_session(self);
    Py_XDECREF((PyObject *)self->owner);
    PyErr_Restore(kind, value, trace);
    PyObject_Free(object);
    Py_DECREF(type);
}

/* ---- passes ---------------------------------------------------------------------------------- */
static PyObject *session_run(PyObject *object, PyObject *args)
{
    Session *self = (Session *)object;
    PyObject *rows, *names, *progress = NULL, *result = NULL;
    struct inputs inputs = {0};
    struct texts outputs = {0};
    if (!PyArg_ParseTuple(args, "OO|O:run", &rows, &names, &progress)) {
        return NULL;
    }
    heft_session *session = session_use(self);
    if (!session) {
        return NULL;
    }
    if (read_texts(names, &outputs) && inputs_read(rows, self, &inputs)) {
        struct call call;
        call_begin(&call, progress);
        const heft_status status = heft_session_run(session, inputs.list, inputs.count,
                                                    outputs.list, outputs.count, &call.error);
        result = call_end(&call, status) ? Py_NewRef(Py_None) : NULL;
    }
    inputs_fini(&inputs);
    free_texts(&outputs);
    session_leave(self);
    return result;
}

/* Get a result of the last pass. */
static bool get_output(heft_session *session, const char *name, heft_output *output)
{
    heft_error error = {.offset = HEFT_NO_OFFSET};
    *output = HEFT_SIZED(heft_output);
    if (heft_session_output(session, name, output, &error) != HEFT_OK) {
        raise_error(&error);
        return false;
    }
    return true;
}

static PyObject *session_output(PyObject *object, PyObject *args)
{
    static const char *const kinds[] = {[HEFT_OUTPUT_TOKENS] = "tokens",
                                        [HEFT_OUTPUT_SEQUENCES] = "sequences",
                                        [HEFT_OUTPUT_LOGITS] = "logits",
                                        [HEFT_OUTPUT_ENCODED] = "encoded",
                                        [HEFT_OUTPUT_WHOLE] = "whole"};
    Session *self = (Session *)object;
    heft_output output;
    const char *name;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "s:output", &name)) {
        return NULL;
    }
    heft_session *session = session_use(self);
    if (!session) {
        return NULL;
    }
    if (get_output(session, name, &output)) {
        PyObject *data = PyByteArray_FromStringAndSize(
            (const char *)output.data, (Py_ssize_t)(output.rows * output.width * sizeof(float)));
        result = data ? Py_BuildValue("(snnN)", kinds[output.kind], (Py_ssize_t)output.rows,
                                      (Py_ssize_t)output.width, data)
                      : NULL;
    }
    session_leave(self);
    return result;
}

static PyObject *session_sample(PyObject *object, PyObject *args)
{
    Session *self = (Session *)object;
    heft_sampling sampling = HEFT_SIZED(heft_sampling);
    heft_output logits;
    unsigned long long seed, index, prompt, most;
    Py_ssize_t row;
    PyObject *seen, *result = NULL;
    Py_buffer view;
    size_t count;
    unsigned top_k;
    if (!PyArg_ParseTuple(args, "nO(KKK)(fIfffK):sample", &row, &seen, &index, &prompt, &most,
                          &sampling.temperature, &top_k, &sampling.top_p, &sampling.min_p,
                          &sampling.repetition_penalty, &seed) ||
        !int32_buffer(seen, "seen", &view, &count)) {
        return NULL;
    }
    sampling.top_k = top_k;
    sampling.seed = seed;
    sampling.by_config = true;
    sampling.prompt_count = prompt;
    sampling.most_count = most;
    heft_session *session = session_use(self);
    if (session && get_output(session, "logits", &logits)) {
        if (logits.kind != HEFT_OUTPUT_LOGITS || row < 0 || (size_t)row >= logits.rows) {
            PyErr_SetString(PyExc_IndexError, "the last pass has no such row of a token's logits");
        } else {
            struct call call;
            int32_t id = 0;
            call_begin(&call, NULL);
            const heft_status status =
                heft_session_sample(session, &sampling, logits.data + (size_t)row * logits.width,
                                    logits.width, view.buf, count, index, &id, &call.error);
            result = call_end(&call, status) ? PyLong_FromLong(id) : NULL;
        }
    }
    if (session) {
        session_leave(self);
    }
    PyBuffer_Release(&view);
    return result;
}

/* Tokens of each sequence. Returns owned numbers. */
static size_t *read_counts(PyObject *object, size_t *count)
{
    PyObject *tuple = PySequence_Tuple(object);
    const Py_ssize_t length = tuple ? PyTuple_Size(tuple) : 0;
    size_t *counts = tuple ? PyMem_Calloc((size_t)length + 1, sizeof *counts) : NULL;
    if (tuple && !counts) {
        PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; counts && i < length && !PyErr_Occurred(); i++) {
        counts[i] = PyLong_AsSize_t(PyTuple_GetItem(tuple, i));
    }
    if (PyErr_Occurred()) {
        PyMem_Free(counts);
        counts = NULL;
    }
    Py_XDECREF(tuple);
    *count = (size_t)length;
    return counts;
}

static PyObject *session_pool(PyObject *object, PyObject *args)
{
    Session *self = (Session *)object;
    heft_pooling pooling = HEFT_SIZED(heft_pooling);
    heft_output states;
    PyObject *tokens, *data = NULL;
    int mode, normalize;
    unsigned long long most = 0;
    size_t count = 0, width = 0;
    if (!PyArg_ParseTuple(args, "ipKO:pool", &mode, &normalize, &most, &tokens)) {
        return NULL;
    }
    pooling.most_width = most;
    pooling.mode = (heft_pooling_mode)mode;
    pooling.normalize = normalize != 0;
    size_t *counts = read_counts(tokens, &count);
    heft_session *session = counts ? session_use(self) : NULL;
    if (session && get_output(session, "last_hidden_state", &states)) {
        width = most > 0 && most < states.width ? (size_t)most : states.width;
        data =
            PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(count * states.width * sizeof(float)));
        if (data) {
            float *out = (float *)(void *)PyByteArray_AsString(data);
            struct call call;
            call_begin(&call, NULL);
            const heft_status status =
                heft_pooling_apply(&pooling, &states, counts, count, out, &call.error);
            if (!call_end(&call, status) ||
                PyByteArray_Resize(data, (Py_ssize_t)(count * width * sizeof(float))) != 0) {
                Py_CLEAR(data);
            }
        }
    }
    if (session) {
        session_leave(self);
    }
    PyMem_Free(counts);
    return data ? Py_BuildValue("(nN)", (Py_ssize_t)width, data) : NULL;
}

/* ---- facts ----------------------------------------------------------------------------------- */
static PyObject *session_counts(PyObject *object, PyObject *unused)
{
    (void)unused;
    Session *self = (Session *)object;
    heft_session_counts counts = HEFT_SIZED(heft_session_counts);
    heft_error error = {.offset = HEFT_NO_OFFSET};
    heft_session *session = session_use(self);
    if (!session) {
        return NULL;
    }
    const heft_status status = heft_session_facts(session, &counts, &error);
    session_leave(self);
    if (status != HEFT_OK) {
        raise_error(&error);
        return NULL;
    }
    return Py_BuildValue(
        "(KKKKKKK)", (unsigned long long)counts.resident_bytes,
        (unsigned long long)counts.read_bytes, (unsigned long long)counts.peak_bytes,
        (unsigned long long)counts.scratch_bytes, (unsigned long long)counts.passes,
        (unsigned long long)counts.tokens, (unsigned long long)counts.compact_bytes);
}

/* The caller knows that nobody else uses the model. */
static PyObject *session_compact(PyObject *object, PyObject *unused)
{
    (void)unused;
    Session *self = (Session *)object;
    heft_session *session = session_use(self);
    struct call call;
    if (!session) {
        return NULL;
    }
    call_begin(&call, NULL);
    const bool done =
        call_end(&call, heft_session_compact(session, self->owner->model, &call.error));
    session_leave(self);
    return done ? Py_NewRef(Py_None) : NULL;
}

static PyObject *ids_of(const heft_generation_ids *ids)
{
    PyObject *stop = PyList_New(0);
    for (size_t i = 0; stop && i < ids->stop_count; i++) {
        PyObject *id = PyLong_FromLong(ids->stop[i]);
        if (!id || PyList_Append(stop, id) != 0) {
            Py_CLEAR(stop);
        }
        Py_XDECREF(id);
    }
    return stop ? Py_BuildValue("(Niiis)", stop, (int)ids->decoder_start, (int)ids->begin,
                                (int)ids->pad, ids->not_followed)
                : NULL;
}

static const char *next_output(const void *object, size_t i)
{
    return heft_session_output_name(object, i);
}

/* What does not change: names of outputs, ids, whether there is an encoder, the instruction set. */
static PyObject *session_describe(PyObject *object, PyObject *unused)
{
    (void)unused;
    Session *self = (Session *)object;
    heft_generation_ids ids = HEFT_SIZED(heft_generation_ids);
    heft_error error = {.offset = HEFT_NO_OFFSET};
    heft_session *session = session_use(self);
    if (!session) {
        return NULL;
    }
    PyObject *dict = NULL;
    if (heft_session_ids(session, &ids, &error) != HEFT_OK) {
        raise_error(&error);
    } else {
        dict = PyDict_New();
    }
    if (dict &&
        !(put(dict, "outputs", list_of_texts(next_output, session)) &&
          put(dict, "ids", ids_of(&ids)) &&
          put(dict, "has_encoder", PyBool_FromLong(heft_session_has_encoder(session))) &&
          put(dict, "numbers_tokens", PyBool_FromLong(heft_session_numbers_tokens(session))) &&
          put(dict, "isa", PyUnicode_FromString(heft_session_isa(session))))) {
        Py_CLEAR(dict);
    }
    session_leave(self);
    return dict;
}

static PyObject *session_closed(PyObject *object, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((Session *)object)->session == NULL);
}

static PyObject *sequence_closed(PyObject *object, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((Sequence *)object)->sequence == NULL);
}

PyObject *pooling(PyObject *module, PyObject *args)
{
    (void)module;
    heft_pooling found = HEFT_SIZED(heft_pooling);
    PyObject *path;
    if (!PyArg_ParseTuple(args, "O&:pooling", PyUnicode_FSConverter, &path)) {
        return NULL;
    }
    struct call call;
    call_begin(&call, NULL);
    const heft_status status =
        heft_pooling_read(call_ctx(), PyBytes_AsString(path), &found, &call.error);
    const bool ok = call_end(&call, status);
    Py_DECREF(path);
    return ok ? Py_BuildValue("(iNNKKs)", (int)found.mode, PyBool_FromLong(found.normalize),
                              PyBool_FromLong(found.known), (unsigned long long)found.most_tokens,
                              (unsigned long long)found.most_width, found.prompt)
              : NULL;
}

/* ---- types ----------------------------------------------------------------------------------- */
PyDoc_STRVAR(session_doc,
             "Session(model, memory_bytes=0, pass_tokens=0, exact=False, over_limit=False)\n--\n\n"
             "Passes of a model. One call at a time uses it.");
PyDoc_STRVAR(run_doc, "run($self, rows, outputs, progress=None, /)\n--\n\n"
                      "Run one call; rows as in ext/inputs.c.");
PyDoc_STRVAR(output_doc, "output($self, name, /)\n--\n\n"
                         "Copy a result of the last pass: (kind, rows, width, float32 bytes).");
PyDoc_STRVAR(
    sample_doc,
    "sample($self, row, seen, counts, sampling, /)\n--\n\n"
    "Choose a token by a row of the last pass's logits. counts: (its number, tokens of the\n"
    "prompt, tokens of the whole text at most). sampling: (temperature, top_k,\n"
    "top_p, min_p, repetition penalty, seed).");
PyDoc_STRVAR(pool_doc, "pool($self, mode, normalize, most_width, tokens, /)\n--\n\n"
                       "Make embeddings of the last pass's states: (width, float32 bytes).");
PyDoc_STRVAR(counts_doc, "counts($self, /)\n--\n\nReturn the numbers of heft_session_facts().");
PyDoc_STRVAR(compact_doc,
             "compact($self, /)\n--\n\n"
             "Store weights in 12 bits, as heft_session_compact(). Nobody else may use the "
             "model meanwhile.");
PyDoc_STRVAR(describe_doc, "describe($self, /)\n--\n\nReturn what the session takes and makes.");
PyDoc_STRVAR(sequence_of_doc, "sequence($self, capacity, encoded, /)\n--\n\n"
                              "Return an empty sequence.");
PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\nFree it. Nothing can use it then.");
PyDoc_STRVAR(sequence_doc, "Tokens so far, which later passes attend to.");
PyDoc_STRVAR(fork_doc, "fork($self, /)\n--\n\nReturn a sequence with the same tokens.");

static PyMethodDef session_methods[] = {
    {"run",      session_run,      METH_VARARGS, run_doc        },
    {"output",   session_output,   METH_VARARGS, output_doc     },
    {"sample",   session_sample,   METH_VARARGS, sample_doc     },
    {"pool",     session_pool,     METH_VARARGS, pool_doc       },
    {"counts",   session_counts,   METH_NOARGS,  counts_doc     },
    {"compact",  session_compact,  METH_NOARGS,  compact_doc    },
    {"describe", session_describe, METH_NOARGS,  describe_doc   },
    {"sequence", session_sequence, METH_VARARGS, sequence_of_doc},
    {"close",    session_close,    METH_NOARGS,  close_doc      },
    {NULL,       NULL,             0,            NULL           }
};
static PyGetSetDef session_getters[] = {
    {"closed", session_closed, NULL, "Whether close() was called.", NULL},
    {NULL,     NULL,           NULL, NULL,                          NULL}
};
static PyType_Slot session_slots[] = {
    {Py_tp_new,     (void *)session_new    },
    {Py_tp_dealloc, (void *)session_dealloc},
    {Py_tp_methods, session_methods        },
    {Py_tp_getset,  session_getters        },
    {Py_tp_doc,     (void *)session_doc    },
    {0,             NULL                   }
};
static PyType_Spec session_spec = {"heft._heft.Session", sizeof(Session), 0, Py_TPFLAGS_DEFAULT,
                                   session_slots};

static PyMethodDef sequence_methods[] = {
    {"fork",  sequence_fork,  METH_NOARGS, fork_doc },
    {"close", sequence_close, METH_NOARGS, close_doc},
    {NULL,    NULL,           0,           NULL     }
};
static PyGetSetDef sequence_getters[] = {
    {"closed", sequence_closed, NULL, "Whether it or its session was closed.", NULL},
    {NULL,     NULL,            NULL, NULL,                                    NULL}
};
static PyType_Slot sequence_slots[] = {
    {Py_tp_dealloc, (void *)sequence_dealloc},
    {Py_sq_length,  (void *)sequence_length },
    {Py_tp_methods, sequence_methods        },
    {Py_tp_getset,  sequence_getters        },
    {Py_tp_doc,     (void *)sequence_doc    },
    {0,             NULL                    }
};
static PyType_Spec sequence_spec = {"heft._heft.Sequence", sizeof(Sequence), 0,
                                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                    sequence_slots};

PyTypeObject *session_make_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &session_spec, NULL);
}

PyTypeObject *sequence_make_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &sequence_spec, NULL);
}
