/* module.c - the extension module heft._heft. One per process: what heft holds has no interpreter. */
#include "ext.h"

static int64_t interpreter = -1; /* that loaded the module */

static bool add_statuses(PyObject *module)
{
    PyObject *dict = PyDict_New();
    bool ok = dict != NULL;
#define ADD(name, code, text) ok = ok && put(dict, #name, PyLong_FromLong(code));
    HEFT_STATUS_TABLE(ADD)
#undef ADD
    ok = ok && PyModule_AddObjectRef(module, "STATUSES", dict) == 0;
    Py_XDECREF(dict);
    return ok;
}

/* {name: (safetensors' name, bits)} */
static bool add_dtypes(PyObject *module)
{
    PyObject *dict = PyDict_New();
    bool ok = dict != NULL;
#define ADD(name, torch, brief, safetensors, bits)                                                 \
    ok = ok && put(dict, torch, Py_BuildValue("(si)", safetensors, bits));
    HEFT_DTYPE_TABLE(ADD)
#undef ADD
    ok = ok && PyModule_AddObjectRef(module, "DTYPES", dict) == 0;
    Py_XDECREF(dict);
    return ok;
}

static int execute(PyObject *module)
{
    const int64_t id = PyInterpreterState_GetID(PyInterpreterState_Get());
    if (interpreter >= 0 && interpreter != id) {
        PyErr_SetString(PyExc_ImportError, "only one interpreter of a process can import heft");
        return -1;
    }
    if (!call_setup()) {
        return -1;
    }
    interpreter = id;
    if (!checkpoint_type) {
        checkpoint_type = checkpoint_make_type(module);
        tensor_type = tensor_make_type(module);
        writer_type = writer_make_type(module);
        residency_type = residency_make_type(module);
        lease_type = lease_make_type(module);
        model_type = model_make_type(module);
        session_type = session_make_type(module);
        sequence_type = sequence_make_type(module);
        tokenizer_type = tokenizer_make_type(module);
        text_stream_type = text_stream_make_type(module);
    }
    PyTypeObject *const types[] = {checkpoint_type, tensor_type,     writer_type,  residency_type,
                                   lease_type,      model_type,      session_type, sequence_type,
                                   tokenizer_type,  text_stream_type};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (!types[i] || PyModule_AddType(module, types[i]) != 0) {
            return -1;
        }
    }
    const bool ok = PyModule_AddStringConstant(module, "VERSION", heft_version()) == 0 &&
                    PyModule_AddIntConstant(module, "WRITABLE", HEFT_TENSOR_WRITABLE) == 0 &&
                    PyModule_AddIntConstant(module, "MAPPED", HEFT_TENSOR_MAPPED) == 0 &&
                    PyModule_AddIntConstant(module, "SHARED", HEFT_TENSOR_SHARED) == 0 &&
                    add_statuses(module) && add_dtypes(module);
    return ok ? 0 : -1;
}

/* (bytes in use, most bytes in use) of heft's own allocations. */
static PyObject *memory(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    uint64_t live, peak;
    heft_ctx_memory(call_ctx(), &live, &peak);
    return Py_BuildValue("(KK)", (unsigned long long)live, (unsigned long long)peak);
}

static PyObject *parse_size(PyObject *module, PyObject *argument)
{
    (void)module;
    heft_error error = {.offset = HEFT_NO_OFFSET};
    uint64_t bytes;
    const char *text = PyUnicode_Check(argument) ? PyUnicode_AsUTF8AndSize(argument, NULL) : NULL;
    if (!text) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "a size must be a str such as '200MB', or an int");
        }
        return NULL;
    }
    if (heft_size_parse(text, &bytes, &error) != HEFT_OK) {
        raise_error(&error);
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(bytes);
}

static PyObject *dtype_name(PyObject *module, PyObject *argument)
{
    (void)module;
    heft_dtype dtype;
    return parse_dtype(argument, &dtype) ? PyUnicode_FromString(heft_dtype_name(dtype)) : NULL;
}

static PyObject *can_cast(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *first, *second;
    heft_dtype from, to;
    if (!PyArg_ParseTuple(args, "UU:can_cast", &first, &second) || !parse_dtype(first, &from) ||
        !parse_dtype(second, &to)) {
        return NULL;
    }
    return PyBool_FromLong(heft_cast_known(from, to));
}

static PyObject *from_dlpack(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *name, *capsule;
    if (!PyArg_ParseTuple(args, "UO:from_dlpack", &name, &capsule)) {
        return NULL;
    }
    heft_tensor *tensor = tensor_of_capsule(capsule);
    return tensor ? tensor_in_memory(name, tensor) : NULL;
}

PyDoc_STRVAR(open_doc,
             "open(path, variant=None, subfolder=None, trust_shards=False, progress=None, "
             "whole_value=False)\n--\n\n"
             "Open a folder, a file, an index, or a model in the hub's cache.");
PyDoc_STRVAR(open_bytes_doc, "open_bytes(data, name='bytes', whole_value=False)\n--\n\n"
                             "Open a weight file whose bytes are in memory; data is borrowed.");
PyDoc_STRVAR(
    load_doc,
    "load_tensors(checkpoint, dtype=None, mode='map', over_limit=False, progress=None, dtypes={})\n"
    "--\n\nReturn ({name: tensor in memory}, report).");
PyDoc_STRVAR(read_into_doc,
             "read_into(pairs, progress=None)\n--\n\n"
             "Read lazy tensors into memory of DLPack capsules, cast to the capsules' dtypes.");
PyDoc_STRVAR(
    convert_doc,
    "convert(source, target, format='auto', max_shard_bytes=0, dtype=None, variant=None,\n"
    "        force=False, dry_run=False, resume=False, natural_order=False, metadata=None,\n"
    "        wait=False, keep_side_files=False, dequantize=False, source_variant=None,\n"
    "        subfolder=None, progress=None)\n--\n\nRewrite a checkpoint.");
PyDoc_STRVAR(verify_doc,
             "verify(path, deep=False, manifest=..., write_manifest=..., variant=None,\n"
             "       subfolder=None, progress=None)\n--\n\nCheck a checkpoint.");
PyDoc_STRVAR(diff_doc, "diff(a, b, tolerance=0.0, variant=None, subfolder=None, format='auto',\n"
                       "     progress=None)\n--\n\nCompare two checkpoints.");
PyDoc_STRVAR(plan_doc, "plan(path, strategy='best', budgets=None, dtype=None, class_name=None,\n"
                       "     no_split=None, mode='map', fallback=False, dequantize=False,\n"
                       "     variant=None, subfolder=None, progress=None)\n--\n\n"
                       "Make a device map.");
PyDoc_STRVAR(pooling_doc,
             "pooling(folder, /)\n--\n\n"
             "Return how sentence-transformers pools: (mode, normalize, known, most tokens,\n"
             "most width, prompt).");
PyDoc_STRVAR(memory_doc, "memory()\n--\n\nReturn heft's own allocations: (bytes now, most bytes).");
PyDoc_STRVAR(parse_size_doc,
             "parse_size(text, /)\n--\n\nReturn the bytes of '200MB', '1.5GiB', ...");
PyDoc_STRVAR(dtype_name_doc, "dtype_name(text, /)\n--\n\nReturn PyTorch's name of a dtype.");
PyDoc_STRVAR(can_cast_doc, "can_cast(source, target, /)\n--\n\nReturn whether heft casts so.");
PyDoc_STRVAR(from_dlpack_doc,
             "from_dlpack(name, capsule, /)\n--\n\nReturn a tensor on another library's memory.");

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void))(function)
static PyMethodDef methods[] = {
    {"open",         WITH_KEYWORDS(checkpoint_open),       METH_VARARGS | METH_KEYWORDS, open_doc       },
    {"open_bytes",   WITH_KEYWORDS(checkpoint_open_bytes), METH_VARARGS | METH_KEYWORDS,
     open_bytes_doc                                                                                     },
    {"load_tensors", WITH_KEYWORDS(load_tensors),          METH_VARARGS | METH_KEYWORDS, load_doc       },
    {"read_into",    WITH_KEYWORDS(read_into),             METH_VARARGS | METH_KEYWORDS, read_into_doc  },
    {"convert",      WITH_KEYWORDS(convert),               METH_VARARGS | METH_KEYWORDS, convert_doc    },
    {"verify",       WITH_KEYWORDS(verify),                METH_VARARGS | METH_KEYWORDS, verify_doc     },
    {"diff",         WITH_KEYWORDS(diff),                  METH_VARARGS | METH_KEYWORDS, diff_doc       },
    {"plan",         WITH_KEYWORDS(plan),                  METH_VARARGS | METH_KEYWORDS, plan_doc       },
    {"pooling",      pooling,                              METH_VARARGS,                 pooling_doc    },
    {"memory",       memory,                               METH_NOARGS,                  memory_doc     },
    {"parse_size",   parse_size,                           METH_O,                       parse_size_doc },
    {"dtype_name",   dtype_name,                           METH_O,                       dtype_name_doc },
    {"can_cast",     can_cast,                             METH_VARARGS,                 can_cast_doc   },
    {"from_dlpack",  from_dlpack,                          METH_VARARGS,                 from_dlpack_doc},
    {NULL,           NULL,                                 0,                            NULL           }
};
static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)execute},
    {0,           NULL           }
};
static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_heft",
    .m_doc = "The layer over libheft. heft is the package to use.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__heft(void);
PyMODINIT_FUNC PyInit__heft(void)
{
    return PyModuleDef_Init(&definition);
}
