/* operations.c - convert, verify and diff: the work of the commands, and their reports as dicts. */
#include "ext.h"

#include <string.h>

static const char *next_write_warning(const void *object, size_t i)
{
    const heft_write_report *report = object;
    return i < report->warning_count ? report->warnings[i] : NULL;
}

static PyObject *written_files(const heft_write_report *report)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < report->file_count; i++) {
        PyObject *file =
            Py_BuildValue("{s:N,s:K,s:K}", "name", text_of_path(report->files[i].name),
                          "size_bytes", (unsigned long long)report->files[i].size_bytes, "tensors",
                          (unsigned long long)report->files[i].tensors);
        if (!file || PyList_Append(list, file) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(file);
    }
    return list;
}

PyObject *write_report(const heft_write_report *report)
{
    PyObject *dict = PyDict_New();
    if (dict &&
        (!put(dict, "files", written_files(report)) ||
         !put(dict, "index", report->index ? text_of_path(report->index) : Py_NewRef(Py_None)) ||
         !put(dict, "total_size", PyLong_FromUnsignedLongLong(report->total_size)) ||
         !put(dict, "warnings", list_of_texts(next_write_warning, report)))) {
        Py_CLEAR(dict);
    }
    return dict;
}

static bool take_format(const char *name, heft_format *format)
{
    for (heft_format i = HEFT_FORMAT_AUTO; i <= HEFT_FORMAT_OFFLOAD; i++) {
        if (strcmp(heft_format_name(i), name) == 0) {
            *format = i;
            return true;
        }
    }
    PyErr_Format(PyExc_ValueError, "format '%s' is not known", name);
    return false;
}

/* Pairs of a dict of str, for one call. */
struct pairs {
    heft_metadata_pair *list;
    size_t count;
};

static bool read_pairs(PyObject *dict, struct pairs *pairs)
{
    PyObject *key, *value;
    Py_ssize_t at = 0;
    *pairs = (struct pairs){0};
    if (!dict || dict == Py_None) {
        return true;
    }
    if (!PyDict_Check(dict)) {
        PyErr_SetString(PyExc_TypeError, "metadata must map str to str");
        return false;
    }
    pairs->list = PyMem_Calloc((size_t)PyDict_Size(dict) + 1, sizeof *pairs->list);
    if (!pairs->list) {
        PyErr_NoMemory();
        return false;
    }
    while (PyDict_Next(dict, &at, &key, &value)) {
        heft_metadata_pair *pair = &pairs->list[pairs->count++];
        if (!PyUnicode_Check(key) || (value != Py_None && !PyUnicode_Check(value))) {
            PyErr_SetString(PyExc_TypeError, "metadata must map str to str");
            return false;
        }
        pair->key = PyUnicode_AsUTF8AndSize(key, NULL);
        pair->value = value == Py_None ? NULL : PyUnicode_AsUTF8AndSize(value, NULL);
        if (!pair->key || (value != Py_None && !pair->value)) {
            return false;
        }
    }
    return true;
}

struct conversion {
    PyObject *source, *target; /* owned bytes */
    heft_convert_options options;
    heft_source_options from;
    heft_checkpoint_options checkpoint;
    struct pairs pairs;
    PyObject *progress;
};

static bool read_conversion(struct conversion *c, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {
        "source",          "target",     "format",         "max_shard_bytes", "dtype",    "variant",
        "force",           "dry_run",    "resume",         "natural_order",   "metadata", "wait",
        "keep_side_files", "dequantize", "source_variant", "subfolder",       "progress", NULL};
    const char *format = "auto";
    unsigned long long shard = 0;
    PyObject *dtype = NULL, *metadata = NULL;
    int force = 0, dry = 0, resume = 0, natural = 0, wait = 0, keep = 0, dequantize = 0;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O&O&|sKOzppppOpppzzO:convert", keywords, PyUnicode_FSConverter,
            &c->source, PyUnicode_FSConverter, &c->target, &format, &shard, &dtype,
            &c->options.variant, &force, &dry, &resume, &natural, &metadata, &wait, &keep,
            &dequantize, &c->checkpoint.variant, &c->checkpoint.subfolder, &c->progress) ||
        !parse_dtype(dtype, &c->options.dtype) || !take_format(format, &c->options.format) ||
        !read_pairs(metadata, &c->pairs)) {
        return false;
    }
    c->options.max_shard_bytes = shard;
    c->options.force = force != 0;
    c->options.dry_run = dry != 0;
    c->options.resume = resume != 0;
    c->options.natural_order = natural != 0;
    c->options.wait = wait != 0;
    c->options.keep_side_files = keep != 0;
    c->options.metadata = c->pairs.list;
    c->options.metadata_count = c->pairs.count;
    c->from.checkpoint = &c->checkpoint;
    c->from.dequantize = dequantize != 0;
    c->from.dtype = dequantize ? c->options.dtype : HEFT_DTYPE_NONE;
    return true;
}

PyObject *convert(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    struct conversion c = {.options = HEFT_SIZED(heft_convert_options),
                           .from = HEFT_SIZED(heft_source_options),
                           .checkpoint = HEFT_SIZED(heft_checkpoint_options)};
    PyObject *result = NULL;
    if (read_conversion(&c, args, kwargs)) {
        const char *from = PyBytes_AsString(c.source), *to = PyBytes_AsString(c.target);
        heft_source *source = NULL;
        heft_write_report *report = NULL;
        struct call call;
        call_begin(&call, c.progress);
        heft_status status = heft_source_open(call_ctx(), from, &c.from, &source, &call.error);
        if (status == HEFT_OK) {
            status = heft_source_convert(source, to, &c.options, &report, &call.error);
        }
        heft_source_close(source);
        result = call_end(&call, status) ? write_report(report) : NULL;
        heft_write_report_free(report);
    }
    Py_XDECREF(c.source);
    Py_XDECREF(c.target);
    PyMem_Free(c.pairs.list);
    return result;
}

/* ---- verify ---------------------------------------------------------------------------------- */
static PyObject *problems_of(const heft_verify_report *report)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < report->problem_count; i++) {
        const heft_problem *problem = &report->problems[i];
        PyObject *offset = problem->offset == HEFT_NO_OFFSET
                               ? Py_NewRef(Py_None)
                               : PyLong_FromUnsignedLongLong(problem->offset);
        PyObject *item = Py_BuildValue(
            "{s:s,s:N,s:N,s:N,s:N,s:N}", "kind", problem->kind, "file", text_of_path(problem->file),
            "tensor", text_of(problem->tensor), "offset", offset, "message",
            text_of(problem->message), "fatal", PyBool_FromLong(problem->fatal));
        if (!item || PyList_Append(list, item) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *verify_report(const heft_verify_report *report)
{
    PyObject *dict = PyDict_New();
    if (dict && (!put(dict, "ok", PyBool_FromLong(report->ok)) ||
                 !put(dict, "problems", problems_of(report)) ||
                 !put(dict, "files", PyLong_FromSize_t(report->file_count)) ||
                 !put(dict, "tensors", PyLong_FromSize_t(report->tensor_count)) ||
                 !put(dict, "bytes_read", PyLong_FromUnsignedLongLong(report->bytes_read)) ||
                 !put(dict, "total_bytes", PyLong_FromUnsignedLongLong(report->total_bytes)))) {
        Py_CLEAR(dict);
    }
    return dict;
}

PyObject *verify(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *keywords[] = {"path",    "deep",      "manifest", "write_manifest",
                               "variant", "subfolder", "progress", NULL};
    PyObject *path = NULL, *progress = NULL, *result = NULL, *manifest = NULL, *writes = NULL;
    int deep = 0;
    heft_checkpoint_options checkpoint = HEFT_SIZED(heft_checkpoint_options);
    if (PyArg_ParseTupleAndKeywords(args, kwargs, "O&|pO&O&zzO:verify", keywords,
                                    PyUnicode_FSConverter, &path, &deep, PyUnicode_FSConverter,
                                    &manifest, PyUnicode_FSConverter, &writes, &checkpoint.variant,
                                    &checkpoint.subfolder, &progress)) {
        const heft_verify_options options =
            HEFT_OPTIONS(heft_verify_options, .deep = deep != 0,
                         .manifest = manifest ? PyBytes_AsString(manifest) : NULL,
                         .write_manifest = writes ? PyBytes_AsString(writes) : NULL);
        const heft_source_options from =
            HEFT_OPTIONS(heft_source_options, .checkpoint = &checkpoint, .damaged = true);
        const char *name = PyBytes_AsString(path);
        heft_source *source = NULL;
        heft_verify_report *report = NULL;
        struct call call;
        call_begin(&call, progress);
        heft_status status = heft_source_open(call_ctx(), name, &from, &source, &call.error);
        if (status == HEFT_OK) {
            status = heft_source_verify(source, &options, &report, &call.error);
        }
        heft_source_close(source);
        result = call_end(&call, status) ? verify_report(report) : NULL;
        heft_verify_report_free(report);
    }
    Py_XDECREF(path);
    Py_XDECREF(manifest);
    Py_XDECREF(writes);
    return result;
}

/* ---- diff ------------------------------------------------------------------------------------ */
/* None where values were not compared as numbers. */
static PyObject *number_of(const heft_change *change, double value)
{
    return change->measured ? PyFloat_FromDouble(value) : Py_NewRef(Py_None);
}

static PyObject *changes_of(const heft_diff_report *report)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < report->changed_count; i++) {
        const heft_change *change = &report->changed[i];
        PyObject *item = Py_BuildValue(
            "{s:N,s:N,s:N,s:N,s:N}", "name", text_of(change->name), "what", text_of(change->what),
            "max_abs", number_of(change, change->max_abs), "max_rel",
            number_of(change, change->max_rel), "cosine", number_of(change, change->cosine));
        if (!item || PyList_Append(list, item) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

static const char *next_added(const void *object, size_t i)
{
    const heft_diff_report *report = object;
    return i < report->added_count ? report->added[i] : NULL;
}

static const char *next_removed(const void *object, size_t i)
{
    const heft_diff_report *report = object;
    return i < report->removed_count ? report->removed[i] : NULL;
}

static PyObject *diff_report(const heft_diff_report *report)
{
    PyObject *dict = PyDict_New();
    if (dict && (!put(dict, "equal", PyBool_FromLong(report->equal)) ||
                 !put(dict, "added", list_of_texts(next_added, report)) ||
                 !put(dict, "removed", list_of_texts(next_removed, report)) ||
                 !put(dict, "changed", changes_of(report)) ||
                 !put(dict, "common", PyLong_FromSize_t(report->common)) ||
                 !put(dict, "bytes_read", PyLong_FromUnsignedLongLong(report->bytes_read)))) {
        Py_CLEAR(dict);
    }
    return dict;
}

PyObject *diff(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *keywords[] = {"a",         "b",      "tolerance", "variant",
                               "subfolder", "format", "progress",  NULL};
    PyObject *paths[2] = {NULL, NULL}, *progress = NULL, *result = NULL;
    const char *format = "auto";
    heft_checkpoint_options checkpoint = HEFT_SIZED(heft_checkpoint_options);
    heft_diff_options options = HEFT_SIZED(heft_diff_options);
    if (PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&|dzzsO:diff", keywords,
                                    PyUnicode_FSConverter, &paths[0], PyUnicode_FSConverter,
                                    &paths[1], &options.tolerance, &checkpoint.variant,
                                    &checkpoint.subfolder, &format, &progress) &&
        take_format(format, &checkpoint.prefer)) {
        const heft_source_options from =
            HEFT_OPTIONS(heft_source_options, .checkpoint = &checkpoint);
        const char *names[2] = {PyBytes_AsString(paths[0]), PyBytes_AsString(paths[1])};
        heft_source *sources[2] = {NULL, NULL};
        heft_diff_report *report = NULL;
        heft_status status = HEFT_OK;
        struct call call;
        call_begin(&call, progress);
        for (size_t i = 0; i < 2 && status == HEFT_OK; i++) {
            status = heft_source_open(call_ctx(), names[i], &from, &sources[i], &call.error);
        }
        if (status == HEFT_OK) {
            status = heft_source_diff(sources[0], sources[1], &options, &report, &call.error);
        }
        heft_source_close(sources[1]);
        heft_source_close(sources[0]);
        result = call_end(&call, status) ? diff_report(report) : NULL;
        heft_diff_report_free(report);
    }
    Py_XDECREF(paths[0]);
    Py_XDECREF(paths[1]);
    return result;
}
