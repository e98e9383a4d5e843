/* load.c - all tensors of a checkpoint in memory: mapped, cast once, or in the host's shared copy.
 *
 * heft_model_load() does the work: with a config that names no model, the model is the checkpoint's own
 * list of names. So huge pages, limits of memory, ties and sharing are as in every load. */
#include "ext.h"

#include <string.h>

static bool take_mode(const char *name, heft_load_mode *mode)
{
    static const char *const names[] = {"auto", "map", "copy", "shared"};
    for (size_t i = 0; i < 4; i++) {
        if (strcmp(names[i], name) == 0) {
            *mode = (heft_load_mode)i;
            return true;
        }
    }
    PyErr_Format(PyExc_ValueError, "mode '%s' is not 'auto', 'map', 'copy' or 'shared'", name);
    return false;
}

static bool put_tensor(PyObject *dict, const heft_model *model, const char *name)
{
    heft_error error = {.offset = HEFT_NO_OFFSET};
    heft_tensor *tensor = NULL;
    const size_t i = heft_model_find(model, name);
    const heft_status status = heft_model_tensor(model, i, &tensor, &error);
    if (status != HEFT_OK) {
        raise_error(&error);
        return false;
    }
    PyObject *text = text_of(name);
    PyObject *value = NULL;
    if (text) {
        value = tensor_in_memory(text, tensor);
    } else {
        heft_tensor_free(tensor);
    }
    const bool ok = value && PyDict_SetItem(dict, text, value) == 0;
    Py_XDECREF(text);
    Py_XDECREF(value);
    return ok;
}

static const char *next_warning(const void *object, size_t i)
{
    const heft_load_report *report = object;
    return i < report->warning_count ? report->warnings[i] : NULL;
}

static PyObject *report_of(const heft_load_report *report)
{
    PyObject *dict = PyDict_New();
    if (dict && (!put(dict, "mode", text_of(report->mode)) ||
                 !put(dict, "strategy", text_of(report->strategy)) ||
                 !put(dict, "warnings", list_of_texts(next_warning, report)) ||
                 !put(dict, "mapped_bytes", PyLong_FromUnsignedLongLong(report->mapped_bytes)) ||
                 !put(dict, "copied_bytes", PyLong_FromUnsignedLongLong(report->copied_bytes)) ||
                 !put(dict, "shared_bytes", PyLong_FromUnsignedLongLong(report->shared_bytes)) ||
                 !put(dict, "seconds", PyFloat_FromDouble(report->seconds)))) {
        Py_CLEAR(dict);
    }
    return dict;
}

/* The dtype of each tensor, from {number: name}; NULL with an exception. */
static heft_dtype *take_dtypes(PyObject *dict, size_t count)
{
    heft_dtype *dtypes = PyMem_Calloc(count + 1, sizeof *dtypes);
    Py_ssize_t at = 0;
    PyObject *key, *value;
    if (!dtypes) {
        PyErr_NoMemory();
        return NULL;
    }
    while (PyDict_Next(dict, &at, &key, &value)) {
        const size_t number = PyLong_AsSize_t(key);
        if (!PyErr_Occurred() && number >= count) {
            PyErr_Format(PyExc_IndexError, "there is no tensor %zu", number);
        }
        if (PyErr_Occurred() || !parse_dtype(value, &dtypes[number])) {
            PyMem_Free(dtypes);
            return NULL;
        }
    }
    return dtypes;
}

static heft_status load(heft_checkpoint *checkpoint, const heft_load_options *options,
                        heft_model **model, heft_load_report **report, heft_error *error)
{
    static const char nameless[] = "{}";
    heft_config *config = NULL;
    heft_source *source = NULL;
    heft_status status = heft_config_new(call_ctx(), nameless, sizeof nameless - 1, &config, error);
    if (status == HEFT_OK) {
        status = heft_source_new(checkpoint, config, NULL, &source, error);
    }
    if (status == HEFT_OK) {
        status = heft_model_load(source, options, model, report, error);
    }
    heft_source_close(source);
    heft_config_free(config);
    return status;
}

/* {name: tensor} of the model's tensors that are wanted, all without a dict. */
static PyObject *tensors_of(const heft_checkpoint *checkpoint, const heft_model *model,
                            PyObject *wanted)
{
    PyObject *tensors = PyDict_New();
    const size_t count = heft_checkpoint_count(checkpoint);
    for (size_t i = 0; tensors && i < count; i++) {
        PyObject *number = wanted ? PyLong_FromSize_t(i) : NULL;
        const int is_wanted = wanted ? number ? PyDict_Contains(wanted, number) : -1 : 1;
        Py_XDECREF(number);
        if (is_wanted < 0 ||
            (is_wanted > 0 &&
             !put_tensor(tensors, model, heft_checkpoint_info(checkpoint, i)->name))) {
            Py_CLEAR(tensors);
        }
    }
    return tensors;
}

PyObject *load_tensors(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *keywords[] = {"checkpoint", "dtype",  "mode", "over_limit",
                               "progress",   "dtypes", NULL};
    Checkpoint *owner;
    PyObject *text = NULL, *progress = NULL, *dtypes = NULL, *result = NULL;
    const char *mode = "map";
    int over_limit = 0;
    heft_load_options options = HEFT_OPTIONS(heft_load_options, .map = HEFT_MAP_PRIVATE);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|OspOO!:load_tensors", keywords,
                                     checkpoint_type, &owner, &text, &mode, &over_limit, &progress,
                                     &PyDict_Type, &dtypes) ||
        !parse_dtype(text, &options.dtype) || !take_mode(mode, &options.mode)) {
        return NULL;
    }
    options.over_limit = over_limit != 0;
    heft_checkpoint *checkpoint = checkpoint_use(owner);
    if (!checkpoint) {
        return NULL;
    }
    options.tensor_dtype_count = heft_checkpoint_count(checkpoint);
    heft_dtype *each = dtypes ? take_dtypes(dtypes, options.tensor_dtype_count) : NULL;
    options.tensor_dtypes = each;
    heft_model *model = NULL;
    heft_load_report *report = NULL;
    if (!dtypes || each) {
        struct call call;
        call_begin(&call, progress);
        const heft_status status = load(checkpoint, &options, &model, &report, &call.error);
        PyObject *tensors = call_end(&call, status) ? tensors_of(checkpoint, model, dtypes) : NULL;
        PyObject *facts = tensors ? report_of(report) : NULL;
        if (facts) {
            result = PyTuple_Pack(2, tensors, facts);
        }
        Py_XDECREF(tensors);
        Py_XDECREF(facts);
    }
    heft_load_report_free(report);
    heft_model_free(model);
    PyMem_Free(each);
    checkpoint_leave(owner);
    return result;
}
