/* residency.c - the types Residency and Lease: tensors of a checkpoint in memory while they are used.
 *
 * The model is the checkpoint's own list of names, all of it on the disk, and the residency is a writable
 * one: each unit is read anew for each use, cast on the way, the next ones ahead (docs/residency.md).
 * A residency has a thread of its own, which a fork does not take along: a child leaves it as it is. */
#include "ext.h"

#include <string.h>
#include <unistd.h>

PyTypeObject *residency_type, *lease_type;

typedef struct {
    PyObject ob_base;
    heft_model *model;
    heft_residency *residency;
    PyObject *numbers; /* dict: {name: (parameter, unit)} of those that are brought in */
    pid_t process;     /* that made it */
} Residency;

typedef struct {
    PyObject ob_base;
    Residency *owner;
    heft_lease *lease; /* NULL: released */
} Lease;

/* ---- making ---------------------------------------------------------------------------------- */
struct making {
    heft_load_options load;
    heft_residency_options options;
    heft_module_dtype *dtypes; /* [load.dtype_count] */
    struct texts names;        /* in the order of use */
    size_t *schedule;          /* [names.count] */
};

/* {name: dtype}: the exceptions to the dtype of all. */
static bool read_dtypes(PyObject *object, struct making *m)
{
    PyObject *name, *value;
    Py_ssize_t at = 0;
    if (!PyDict_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "dtypes is a dict of names and dtypes");
        return false;
    }
    m->dtypes = PyMem_Calloc((size_t)PyDict_Size(object) + 1, sizeof *m->dtypes);
    if (!m->dtypes) {
        PyErr_NoMemory();
        return false;
    }
    while (PyDict_Next(object, &at, &name, &value)) {
        heft_module_dtype *entry = &m->dtypes[m->load.dtype_count++];
        entry->name = PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, NULL) : NULL;
        if (!entry->name) {
            if (!PyErr_Occurred()) {
                PyErr_SetString(PyExc_TypeError, "dtypes is a dict of names and dtypes");
            }
            return false;
        }
        if (!parse_dtype(value, &entry->dtype)) {
            return false;
        }
    }
    m->load.dtypes = m->dtypes;
    return true;
}

/* A model of the checkpoint's names, which stays in the files. */
static heft_status load(heft_checkpoint *checkpoint, struct making *m, heft_model **model,
                        heft_error *error)
{
    static const char nameless[] = "{}";
    static const heft_device_entry all = {"", HEFT_DEVICE_DISK};
    heft_config *config = NULL;
    heft_source *source = NULL;
    heft_model *skeleton = NULL;
    heft_plan *plan = NULL;
    heft_status status = heft_config_new(call_ctx(), nameless, sizeof nameless - 1, &config, error);
    if (status == HEFT_OK) {
        status = heft_source_new(checkpoint, config, NULL, &source, error);
    }
    if (status == HEFT_OK) {
        status = heft_model_skeleton(source, &m->load, &skeleton, error);
    }
    if (status == HEFT_OK) {
        status = heft_plan_new(
            skeleton, &HEFT_OPTIONS(heft_plan_options, .device_map = &all, .device_map_count = 1),
            &plan, error);
    }
    if (status == HEFT_OK) {
        m->load.plan = plan;
        status = heft_model_load(source, &m->load, model, NULL, error);
    }
    heft_plan_free(plan);
    heft_model_free(skeleton);
    heft_source_close(source);
    heft_config_free(config);
    return status;
}

/* The units of the names, in their order; one after itself counts once. */
static void take_schedule(struct making *m, const heft_model *model,
                          const heft_residency *residency)
{
    size_t count = 0;
    for (size_t i = 0; i < m->names.count; i++) {
        const size_t parameter = heft_model_find(model, m->names.list[i]);
        const size_t unit = heft_residency_find_parameter(residency, parameter);
        const heft_unit *shown = heft_residency_unit(residency, unit);
        if (shown && shown->brought_bytes > 0 && (count == 0 || m->schedule[count - 1] != unit)) {
            m->schedule[count++] = unit;
        }
    }
    m->options.schedule = count > 0 ? m->schedule : NULL;
    m->options.schedule_count = count;
}

/* What units there are says a residency: that makes the schedule, and it the standard budget. */
static heft_status open(struct making *m, const heft_model *model, heft_residency **out,
                        heft_error *error)
{
    const uint64_t wanted = m->options.budget_bytes;
    heft_residency *residency = NULL;
    heft_residency_counts counts = HEFT_SIZED(heft_residency_counts);
    heft_status status = heft_residency_new(
        model, &HEFT_OPTIONS(heft_residency_options, .over_limit = true), &residency, error);
    if (status == HEFT_OK) {
        take_schedule(m, model, residency);
    }
    for (int pass = 0; pass < 2 && status == HEFT_OK; pass++) {
        heft_residency_free(residency);
        residency = NULL;
        m->options.budget_bytes = pass == 0 ? 0 : wanted;
        status = heft_residency_new(model, &m->options, &residency, error);
        if (status == HEFT_OK) {
            status = heft_residency_facts(residency, &counts, error);
        }
        if (wanted <= counts.budget_bytes) {
            break; /* the least that reading ahead needs */
        }
    }
    if (status == HEFT_OK) {
        *out = residency;
    } else {
        heft_residency_free(residency);
    }
    return status;
}

static PyObject *numbers_of(const heft_model *model, const heft_residency *residency)
{
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && i < heft_model_count(model); i++) {
        const size_t unit = heft_residency_find_parameter(residency, i);
        const heft_unit *shown = heft_residency_unit(residency, unit);
        if (!shown || shown->brought_bytes == 0) {
            continue;
        }
        PyObject *name = text_of(heft_model_parameter(model, i)->name);
        PyObject *pair = Py_BuildValue("(KK)", (unsigned long long)i, (unsigned long long)unit);
        if (!name || !pair || PyDict_SetItem(dict, name, pair) != 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(name);
        Py_XDECREF(pair);
    }
    return dict;
}

static PyObject *make(PyTypeObject *type, Checkpoint *owner, struct making *m)
{
    heft_checkpoint *checkpoint = checkpoint_use(owner);
    Residency *self = checkpoint ? (Residency *)PyType_GenericAlloc(type, 0) : NULL;
    if (self) {
        struct call call;
        self->process = getpid();
        call_begin(&call, NULL);
        heft_status status = load(checkpoint, m, &self->model, &call.error);
        if (status == HEFT_OK) {
            status = open(m, self->model, &self->residency, &call.error);
        }
        self->numbers = call_end(&call, status) ? numbers_of(self->model, self->residency) : NULL;
        if (!self->numbers) {
            Py_CLEAR(self);
        }
    }
    if (checkpoint) {
        checkpoint_leave(owner);
    }
    return (PyObject *)self;
}

static PyObject *residency_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"checkpoint", "names", "dtypes", "budget_bytes", NULL};
    Checkpoint *owner;
    PyObject *names, *dtypes, *result = NULL;
    unsigned long long budget = 0;
    struct making m = {.load = HEFT_SIZED(heft_load_options),
                       .options = HEFT_OPTIONS(heft_residency_options, .writable = true)};
    if (PyArg_ParseTupleAndKeywords(args, kwargs, "O!OO|K:Residency", keywords, checkpoint_type,
                                    &owner, &names, &dtypes, &budget) &&
        read_texts(names, &m.names) && read_dtypes(dtypes, &m)) {
        m.options.budget_bytes = budget;
        m.schedule = PyMem_Calloc(m.names.count + 1, sizeof *m.schedule);
        result = m.schedule ? make(type, owner, &m) : PyErr_NoMemory();
    }
    free_texts(&m.names);
    PyMem_Free(m.dtypes);
    PyMem_Free(m.schedule);
    return result;
}

static void residency_dealloc(PyObject *object)
{
    Residency *self = (Residency *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    if (self->process == getpid()) {
        Py_BEGIN_ALLOW_THREADS /* joins the reader, and frees the units */
            heft_residency_free(self->residency);
        heft_model_free(self->model);
        Py_END_ALLOW_THREADS
    }
    Py_XDECREF(self->numbers);
    PyErr_Restore(kind, value, trace);
    PyObject_Free(object);
    Py_DECREF(type);
}

/* ---- using ----------------------------------------------------------------------------------- */
static bool is_here(const Residency *self)
{
    if (self->process != getpid()) {
        PyErr_SetString(PyExc_RuntimeError, "the residency belongs to the parent process");
        return false;
    }
    return true;
}

/* A lease of one unit; None if there is no room for it now. */
static PyObject *residency_acquire(PyObject *object, PyObject *argument)
{
    Residency *self = (Residency *)object;
    const size_t unit = PyLong_AsSize_t(argument);
    if (PyErr_Occurred() || !is_here(self)) {
        return NULL;
    }
    Lease *lease = (Lease *)PyType_GenericAlloc(lease_type, 0);
    if (!lease) {
        return NULL;
    }
    lease->owner = (Residency *)Py_NewRef(object);
    struct call call;
    call_begin(&call, NULL);
    const heft_status status =
        heft_residency_try_acquire(self->residency, &unit, 1, &lease->lease, &call.error);
    if (!call_end(&call, status == HEFT_LIMIT ? HEFT_OK : status) || status == HEFT_LIMIT) {
        Py_DECREF(lease);
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    }
    return (PyObject *)lease;
}

static PyObject *residency_set_schedule(PyObject *object, PyObject *args)
{
    Residency *self = (Residency *)object;
    PyObject *units;
    Py_ssize_t repeat;
    if (!PyArg_ParseTuple(args, "On:set_schedule", &units, &repeat) || !is_here(self)) {
        return NULL;
    }
    units = PySequence_Tuple(units);
    const Py_ssize_t count = units ? PyTuple_Size(units) : 0;
    size_t *schedule = units ? PyMem_Calloc((size_t)count + 1, sizeof *schedule) : NULL;
    for (Py_ssize_t i = 0; schedule && i < count && !PyErr_Occurred(); i++) {
        schedule[i] = PyLong_AsSize_t(PyTuple_GetItem(units, i));
    }
    bool ok = schedule && !PyErr_Occurred();
    if (ok) {
        struct call call;
        call_begin(&call, NULL);
        ok = call_end(&call, heft_residency_set_schedule(self->residency, schedule, (size_t)count,
                                                         repeat < 0 ? SIZE_MAX : (size_t)repeat,
                                                         &call.error));
    } else if (units && !schedule) {
        PyErr_NoMemory();
    }
    PyMem_Free(schedule);
    Py_XDECREF(units);
    return ok ? Py_NewRef(Py_None) : NULL;
}

static PyObject *residency_counts(PyObject *object, PyObject *unused)
{
    (void)unused;
    Residency *self = (Residency *)object;
    heft_residency_counts counts = HEFT_SIZED(heft_residency_counts);
    heft_error error = {.offset = HEFT_NO_OFFSET};
    if (!is_here(self)) {
        return NULL;
    }
    if (heft_residency_facts(self->residency, &counts, &error) != HEFT_OK) {
        raise_error(&error);
        return NULL;
    }
    return Py_BuildValue(
        "{s:K,s:K,s:K,s:K,s:K,s:K,s:K}", "budget_bytes", (unsigned long long)counts.budget_bytes,
        "held_bytes", (unsigned long long)counts.held_bytes, "peak_bytes",
        (unsigned long long)counts.peak_bytes, "read_bytes", (unsigned long long)counts.read_bytes,
        "brought_units", (unsigned long long)counts.brought_units, "ahead",
        (unsigned long long)counts.ahead, "waited", (unsigned long long)counts.waited);
}

static PyObject *residency_numbers(PyObject *object, void *unused)
{
    (void)unused;
    return Py_NewRef(((Residency *)object)->numbers);
}

/* ---- leases ---------------------------------------------------------------------------------- */
static void let_go(Lease *self)
{
    heft_lease *lease = self->lease;
    self->lease = NULL;
    if (lease && self->owner->process == getpid()) {
        Py_BEGIN_ALLOW_THREADS /* waits for the ledger's lock, and may free a unit */
            heft_lease_free(lease);
        Py_END_ALLOW_THREADS
    }
}

static void lease_dealloc(PyObject *object)
{
    Lease *self = (Lease *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    let_go(self);
    Py_XDECREF((PyObject *)self->owner);
    PyErr_Restore(kind, value, trace);
    PyObject_Free(object);
    Py_DECREF(type);
}

static PyObject *lease_release(PyObject *object, PyObject *unused)
{
    (void)unused;
    let_go((Lease *)object);
    Py_RETURN_NONE;
}

static PyObject *lease_tensor(PyObject *object, PyObject *name)
{
    Lease *self = (Lease *)object;
    size_t parameter, unit;
    if (!self->lease || !is_here(self->owner)) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "the lease is released");
        }
        return NULL;
    }
    PyObject *pair = PyDict_GetItemWithError(self->owner->numbers, name);
    if (!pair || !PyArg_ParseTuple(pair, "nn", (Py_ssize_t *)&parameter, (Py_ssize_t *)&unit)) {
        if (!PyErr_Occurred()) {
            PyErr_SetObject(PyExc_KeyError, name);
        }
        return NULL;
    }
    heft_tensor *tensor = NULL;
    struct call call;
    call_begin(&call, NULL);
    const heft_status status = heft_lease_tensor(self->lease, parameter, &tensor, &call.error);
    if (!call_end(&call, status)) {
        heft_tensor_free(tensor);
        return NULL;
    }
    return tensor_in_memory(name, tensor);
}

/* ---- types ----------------------------------------------------------------------------------- */
PyDoc_STRVAR(
    residency_doc,
    "Residency(checkpoint, names, dtypes, budget_bytes=0)\n--\n\n"
    "Tensors of a checkpoint in memory while they are used, cast to the dtypes of {name: dtype}.\n"
    "names: in the order of their use. budget_bytes: at least what reading ahead needs.");
PyDoc_STRVAR(acquire_doc,
             "acquire($self, unit, /)\n--\n\n"
             "Return a lease of a unit, or None if the budget has no room for it now.");
PyDoc_STRVAR(schedule_doc, "set_schedule($self, units, repeat_from, /)\n--\n\n"
                           "Say in which order units will be acquired; -1: it does not repeat.");
PyDoc_STRVAR(counts_doc, "counts($self, /)\n--\n\nReturn what was read, and memory, in bytes.");
PyDoc_STRVAR(lease_doc, "A unit that is in memory. Residency.acquire() makes it.");
PyDoc_STRVAR(tensor_doc, "tensor($self, name, /)\n--\n\n"
                         "Return a tensor of the unit, which keeps the unit in memory.");
PyDoc_STRVAR(release_doc, "release($self, /)\n--\n\nLet the unit go. Its tensors stay valid.");

static PyMethodDef residency_methods[] = {
    {"acquire",      residency_acquire,      METH_O,       acquire_doc },
    {"set_schedule", residency_set_schedule, METH_VARARGS, schedule_doc},
    {"counts",       residency_counts,       METH_NOARGS,  counts_doc  },
    {NULL,           NULL,                   0,            NULL        }
};
static PyGetSetDef residency_getters[] = {
    {"numbers", residency_numbers, NULL, "{name: (parameter, unit)}", NULL},
    {NULL,      NULL,              NULL, NULL,                        NULL}
};
static PyType_Slot residency_slots[] = {
    {Py_tp_new,     (void *)residency_new    },
    {Py_tp_dealloc, (void *)residency_dealloc},
    {Py_tp_methods, residency_methods        },
    {Py_tp_getset,  residency_getters        },
    {Py_tp_doc,     (void *)residency_doc    },
    {0,             NULL                     }
};
static PyType_Spec residency_spec = {"heft._heft.Residency", sizeof(Residency), 0,
                                     Py_TPFLAGS_DEFAULT, residency_slots};

static PyMethodDef lease_methods[] = {
    {"tensor",  lease_tensor,  METH_O,      tensor_doc },
    {"release", lease_release, METH_NOARGS, release_doc},
    {NULL,      NULL,          0,           NULL       }
};
static PyType_Slot lease_slots[] = {
    {Py_tp_dealloc, (void *)lease_dealloc},
    {Py_tp_methods, lease_methods        },
    {Py_tp_doc,     (void *)lease_doc    },
    {0,             NULL                 }
};
static PyType_Spec lease_spec = {"heft._heft.Lease", sizeof(Lease), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                 lease_slots};

PyTypeObject *residency_make_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &residency_spec, NULL);
}

PyTypeObject *lease_make_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &lease_spec, NULL);
}
