/* plan.c - a device map for a checkpoint, and the memory that loading with it takes. */
#include "ext.h"

#include <string.h>

static bool take_strategy(const char *name, heft_strategy *strategy)
{
    static const char *const names[] = {"auto", "balanced", "balanced_low_0", "sequential", "best"};
    for (size_t i = 0; i < 5; i++) {
        if (strcmp(names[i], name) == 0) {
            *strategy = (heft_strategy)i;
            return true;
        }
    }
    PyErr_Format(PyExc_ValueError, "strategy '%s' is not known", name);
    return false;
}

/* [(device, bytes)]: the devices have heft's numbers. */
static heft_budget *read_budgets(PyObject *object, size_t *count)
{
    PyObject *pairs = PySequence_Tuple(object);
    const Py_ssize_t length = pairs ? PyTuple_Size(pairs) : 0;
    heft_budget *budgets = pairs ? PyMem_Calloc((size_t)length + 1, sizeof *budgets) : NULL;
    if (pairs && !budgets) {
        PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; budgets && i < length; i++) {
        PyObject *pair = PyTuple_GetItem(pairs, i);
        int device;
        if (!PyTuple_Check(pair) || !PyArg_ParseTuple(pair, "id", &device, &budgets[i].bytes)) {
            if (!PyErr_Occurred()) {
                PyErr_SetString(PyExc_TypeError, "a budget must be a pair of device and bytes");
            }
            PyMem_Free(budgets);
            budgets = NULL;
        } else {
            budgets[i].device = device;
        }
    }
    Py_XDECREF(pairs);
    *count = (size_t)length;
    return budgets;
}

struct request {
    PyObject *path, *progress;
    heft_source_options source;
    heft_checkpoint_options checkpoint;
    heft_load_options load;
    heft_plan_options plan;
    heft_budget *budgets;
    struct texts no_split;
};

static bool read_request(struct request *r, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"path",      "strategy", "budgets",  "dtype",      "class_name",
                               "no_split",  "mode",     "fallback", "dequantize", "variant",
                               "subfolder", "progress", NULL};
    const char *strategy = "best", *mode = "map";
    PyObject *budgets = Py_None, *dtype = NULL, *no_split = NULL;
    int fallback = 0, dequantize = 0;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O&|sOOzOsppzzO:plan", keywords, PyUnicode_FSConverter, &r->path,
            &strategy, &budgets, &dtype, &r->source.class_name, &no_split, &mode, &fallback,
            &dequantize, &r->checkpoint.variant, &r->checkpoint.subfolder, &r->progress) ||
        !take_strategy(strategy, &r->plan.strategy) || !parse_dtype(dtype, &r->load.dtype) ||
        !read_texts(no_split, &r->no_split)) {
        return false;
    }
    if (budgets != Py_None) {
        r->budgets = read_budgets(budgets, &r->plan.budget_count);
        if (!r->budgets) {
            return false;
        }
    }
    r->plan.budgets = r->budgets;
    r->plan.dtype = r->load.dtype;
    r->plan.fallback_allocation = fallback != 0;
    r->plan.no_split = no_split && no_split != Py_None ? r->no_split.list : NULL;
    r->plan.no_split_count = r->no_split.count;
    r->load.mode = strcmp(mode, "copy") == 0 ? HEFT_LOAD_COPY : HEFT_LOAD_MAP;
    r->source.checkpoint = &r->checkpoint;
    r->source.dequantize = dequantize != 0;
    r->source.dtype = r->load.dtype;
    return true;
}

static heft_status make(struct request *r, heft_plan **plan, heft_load_needs *needs,
                        heft_machine *machine, heft_error *error)
{
    heft_source *source = NULL;
    heft_model *skeleton = NULL;
    heft_status status =
        heft_source_open(call_ctx(), PyBytes_AsString(r->path), &r->source, &source, error);
    if (status == HEFT_OK) {
        status = heft_model_skeleton(source, &r->load, &skeleton, error);
    }
    if (status == HEFT_OK) {
        status = heft_plan_new(skeleton, &r->plan, plan, error);
    }
    heft_model_free(skeleton);
    if (status == HEFT_OK) {
        r->load.plan = *plan;
        status = heft_model_needs(source, &r->load, needs, error);
    }
    if (status == HEFT_OK) {
        status = heft_machine_memory(machine, error);
    }
    heft_source_close(source);
    return status;
}

static PyObject *entries_of(const heft_plan *plan)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < heft_plan_count(plan); i++) {
        int32_t device;
        double bytes;
        const char *name = heft_plan_entry(plan, i, &device, &bytes);
        PyObject *entry = Py_BuildValue("(Nid)", text_of(name), (int)device, bytes);
        if (!entry || PyList_Append(list, entry) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(entry);
    }
    return list;
}

static PyObject *devices_of(const heft_plan *plan)
{
    PyObject *list = PyList_New(0);
    heft_budget budget;
    double placed;
    for (size_t i = 0; list && heft_plan_device(plan, i, &budget, &placed); i++) {
        PyObject *entry = Py_BuildValue("(idd)", (int)budget.device, budget.bytes, placed);
        if (!entry || PyList_Append(list, entry) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(entry);
    }
    return list;
}

static const char *next_warning(const void *plan, size_t i)
{
    return heft_plan_warning(plan, i);
}

static PyObject *facts_of(const heft_plan *plan, const heft_load_needs *needs,
                          const heft_machine *machine)
{
    const struct {
        const char *name;
        uint64_t value;
    } sizes[] = {
        {"peak_bytes",        needs->peak_bytes       },
        {"least_bytes",       needs->least_bytes      },
        {"stream_peak_bytes", needs->stream_peak_bytes},
        {"resident_bytes",    needs->resident_bytes   },
        {"mapped_bytes",      needs->mapped_bytes     },
        {"disk_bytes",        needs->disk_bytes       },
        {"away_bytes",        needs->away_bytes       },
        {"program_bytes",     needs->program_bytes    },
        {"machine_bytes",     machine->bytes          },
    };
    PyObject *dict = PyDict_New();
    bool ok = dict && put(dict, "entries", entries_of(plan)) &&
              put(dict, "devices", devices_of(plan)) &&
              put(dict, "warnings", list_of_texts(next_warning, plan)) &&
              put(dict, "reason", text_of(heft_plan_reason(plan)));
    for (size_t i = 0; ok && i < sizeof sizes / sizeof *sizes; i++) {
        ok = put(dict, sizes[i].name, PyLong_FromUnsignedLongLong(sizes[i].value));
    }
    if (!ok) {
        Py_CLEAR(dict);
    }
    return dict;
}

PyObject *plan(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    struct request r = {.source = HEFT_SIZED(heft_source_options),
                        .checkpoint = HEFT_SIZED(heft_checkpoint_options),
                        .load = HEFT_SIZED(heft_load_options),
                        .plan = HEFT_SIZED(heft_plan_options)};
    PyObject *result = NULL;
    if (read_request(&r, args, kwargs)) {
        heft_plan *made = NULL;
        heft_load_needs needs = HEFT_SIZED(heft_load_needs);
        heft_machine machine = HEFT_SIZED(heft_machine);
        struct call call;
        call_begin(&call, r.progress);
        const heft_status status = make(&r, &made, &needs, &machine, &call.error);
        result = call_end(&call, status) ? facts_of(made, &needs, &machine) : NULL;
        heft_plan_free(made);
    }
    Py_XDECREF(r.path);
    PyMem_Free(r.budgets);
    free_texts(&r.no_split);
    return result;
}
