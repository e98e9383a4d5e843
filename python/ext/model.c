/* model.c - the type Model: a loaded model, for sessions (session.c).
 *
 * Weights that do not fit in the memory stay in their files, and sessions bring them in; else they are
 * copied: as `heft run` does. */
#include "ext.h"

#include <string.h>

PyTypeObject *model_type;

struct loading {
    PyObject *path, *progress;
    const char *mode;
    unsigned threads;
    unsigned long long memory_bytes; /* 0: no maximum */
    uint64_t room_bytes; /* what the model leaves of a maximum for a session; 0: no maximum */
    heft_source_options source;
    heft_checkpoint_options checkpoint;
    heft_load_options load;
    heft_plan *plan;
    heft_load_report *report;
};

/* ---- arguments ------------------------------------------------------------------------------- */
static bool read_mode(struct loading *l)
{
    static const struct {
        const char *name;
        heft_load_mode mode;
    } modes[] = {
        {"auto", HEFT_LOAD_COPY},
        {"copy", HEFT_LOAD_COPY},
        {"map",  HEFT_LOAD_MAP }
    };
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (strcmp(l->mode, modes[i].name) == 0) {
            l->load.mode = modes[i].mode;
            return true;
        }
    }
    PyErr_Format(PyExc_ValueError, "mode '%s' is not 'auto', 'copy' or 'map'", l->mode);
    return false;
}

static bool read_arguments(struct loading *l, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"path",    "class_name", "dtype",         "dequantize",
                               "variant", "subfolder",  "mode",          "memory_bytes",
                               "threads", "progress",   "allow_missing", NULL};
    PyObject *dtype = NULL;
    int dequantize = 0, allow_missing = 0;
    l->mode = "auto";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|zOpzzsKIOp:Model", keywords,
                                     PyUnicode_FSConverter, &l->path, &l->source.class_name, &dtype,
                                     &dequantize, &l->checkpoint.variant, &l->checkpoint.subfolder,
                                     &l->mode, &l->memory_bytes, &l->threads, &l->progress,
                                     &allow_missing) ||
        !read_mode(l) || !parse_dtype(dtype, &l->load.dtype)) {
        return false;
    }
    l->load.allow_missing = allow_missing != 0;
    l->source.checkpoint = &l->checkpoint;
    l->source.dequantize = dequantize != 0;
    l->source.dtype = l->load.dtype;
    return true;
}

/* ---- loading --------------------------------------------------------------------------------- */
/* Refuse weights that are stored quantized, before they are loaded. */
static heft_status check_plain(const heft_source *source, heft_error *error)
{
    const heft_quantization *found = heft_source_quantization(source);
    if (!found || found->weights == 0 || found->dequantized) {
        return HEFT_OK;
    }
    *error = (heft_error){.status = HEFT_UNSUPPORTED, .offset = HEFT_NO_OFFSET};
    snprintf(error->path, sizeof error->path, "%s", heft_source_path(source));
    snprintf(error->message, sizeof error->message,
             "%zu weights are stored quantized (%.60s) and heft computes with plain weights: "
             "dequantize=True makes them while loading",
             found->weights, found->method);
    return HEFT_UNSUPPORTED;
}

/* The maximum of memory: what is given, or what the machine or a container has left, less an eighth for
 * others. 0: none, or not known. */
static uint64_t memory_of(const struct loading *l)
{
    heft_machine machine = HEFT_SIZED(heft_machine);
    if (l->memory_bytes || strcmp(l->mode, "auto") != 0 ||
        heft_machine_memory(&machine, NULL) != HEFT_OK) {
        return l->memory_bytes;
    }
    return machine.bytes - machine.bytes / 8;
}

/* Weights that do not fit, with an eighth of the memory for caches and results, stay in their files. */
static heft_status divide_memory(struct loading *l, const heft_source *source, heft_error *error)
{
    static const heft_device_entry all = {"", HEFT_DEVICE_DISK};
    const uint64_t memory = memory_of(l);
    heft_model *skeleton = NULL;
    if (memory == 0) {
        return HEFT_OK;
    }
    heft_status status = heft_model_skeleton(source, &l->load, &skeleton, error);
    const uint64_t bytes = status == HEFT_OK ? heft_model_bytes(skeleton) : 0;
    if (status == HEFT_OK && bytes > memory - memory / 8) {
        l->room_bytes = memory;
        status = heft_plan_new(
            skeleton, &HEFT_OPTIONS(heft_plan_options, .device_map = &all, .device_map_count = 1),
            &l->plan, error);
        l->load.plan = l->plan;
    } else if (status == HEFT_OK && l->memory_bytes) {
        l->room_bytes = memory - bytes;
    }
    heft_model_free(skeleton);
    return status;
}

static const char *next_initialized(const void *object, size_t i)
{
    const heft_load_report *report = object;
    return i < report->initialized_count ? report->initialized[i] : NULL;
}

static const char *next_warning(const void *object, size_t i)
{
    const heft_load_report *report = object;
    return i < report->warning_count ? report->warnings[i] : NULL;
}

static PyObject *facts_of(const struct loading *l, const heft_source *source)
{
    const heft_load_report *report = l->report;
    PyObject *dict = PyDict_New();
    if (dict && put(dict, "path", text_of_path(heft_source_path(source))) &&
        put(dict, "class_name", text_of(report->class_name)) &&
        put(dict, "model_type", text_of(report->model_type ? report->model_type : "")) &&
        put(dict, "dtype", PyUnicode_FromString(heft_dtype_name(report->dtype))) &&
        put(dict, "initialized", list_of_texts(next_initialized, report)) &&
        put(dict, "warnings", list_of_texts(next_warning, report)) &&
        put(dict, "bytes", PyLong_FromUnsignedLongLong(report->bytes)) &&
        put(dict, "disk_bytes", PyLong_FromUnsignedLongLong(report->disk_bytes)) &&
        put(dict, "room_bytes", PyLong_FromUnsignedLongLong(l->room_bytes))) {
        return dict;
    }
    Py_XDECREF(dict);
    return NULL;
}

static bool open(Model *self, struct loading *l)
{
    heft_source *source = NULL;
    struct call call;
    call_begin(&call, l->progress);
    heft_status status =
        heft_source_open(self->ctx ? self->ctx : call_ctx(), PyBytes_AsString(l->path), &l->source,
                         &source, &call.error);
    if (status == HEFT_OK) {
        status = check_plain(source, &call.error);
    }
    if (status == HEFT_OK) {
        status = divide_memory(l, source, &call.error);
    }
    if (status == HEFT_OK) {
        status = heft_model_load(source, &l->load, &self->model, &l->report, &call.error);
    }
    heft_plan_free(l->plan);
    if (call_end(&call, status)) {
        self->facts = facts_of(l, source);
    }
    heft_load_report_free(l->report);
    heft_source_close(source);
    return self->facts != NULL;
}

/* ---- the type -------------------------------------------------------------------------------- */
static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct loading l = {.source = HEFT_SIZED(heft_source_options),
                        .checkpoint = HEFT_SIZED(heft_checkpoint_options),
                        .load = HEFT_SIZED(heft_load_options)};
    Model *self = NULL;
    if (read_arguments(&l, args, kwargs)) {
        self = (Model *)PyType_GenericAlloc(type, 0);
    }
    if (self && l.threads > 0) {
        self->ctx = call_new_ctx(l.threads);
    }
    if (self && ((l.threads > 0 && !self->ctx) || !open(self, &l))) {
        Py_CLEAR(self);
    }
    Py_XDECREF(l.path);
    return (PyObject *)self;
}

static void model_dealloc(PyObject *object)
{
    Model *self = (Model *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    Py_BEGIN_ALLOW_THREADS /* frees or unmaps weights, and may end threads */
        heft_model_free(self->model);
    heft_ctx_free(self->ctx);
    Py_END_ALLOW_THREADS Py_XDECREF(self->facts);
    PyErr_Restore(kind, value, trace);
    PyObject_Free(object);
    Py_DECREF(type);
}

static PyObject *model_facts(PyObject *object, PyObject *unused)
{
    (void)unused;
    return PyDict_Copy(((Model *)object)->facts);
}

PyDoc_STRVAR(model_doc,
             "Model(path, class_name=None, dtype=None, dequantize=False, variant=None,\n"
             "      subfolder=None, mode='auto', memory_bytes=0, threads=0, progress=None,\n"
             "      allow_missing=False)\n--\n\n"
             "A loaded model, for sessions.");
PyDoc_STRVAR(facts_doc, "facts($self, /)\n--\n\nReturn what was loaded, and how.");

static PyMethodDef methods[] = {
    {"facts", model_facts, METH_NOARGS, facts_doc},
    {NULL,    NULL,        0,           NULL     }
};
static PyType_Slot slots[] = {
    {Py_tp_new,     (void *)model_new    },
    {Py_tp_dealloc, (void *)model_dealloc},
    {Py_tp_methods, methods              },
    {Py_tp_doc,     (void *)model_doc    },
    {0,             NULL                 }
};
static PyType_Spec spec = {"heft._heft.Model", sizeof(Model), 0, Py_TPFLAGS_DEFAULT, slots};

PyTypeObject *model_make_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
