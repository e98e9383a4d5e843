/* value.c - the whole value of a pickle as Python objects, made of the parts that heft describes it in.
 *
 * What Python has itself is made here; what needs torch or a library, the caller's function makes. What lies in
 * a value gathers in a list until the value ends. No recursion: a stack holds what has begun. */
#include "ext.h"

#include <string.h>

#define PARTS_PER_SIGNAL 4096
#define TEXT_KEPT 64 /* longer ones are made once, for a file may repeat one very often */
/* What hashing all keys and members of sets may cost, in values: a tuple that holds one tuple twice, which holds
 * one twice ... has few bytes in a file and is hashed for ever. Of honest files, it is the number of their keys. */
#define HASHED_MOST ((uint64_t)1 << 26)

struct begun {
    heft_value value;
    size_t part;
    PyObject *items; /* list: keys and values alike */
    uint64_t cost;   /* of hashing its items */
};

/* What a part has made. */
struct made {
    PyObject *object; /* NULL: not ended, or nothing that occurs again */
    uint64_t cost;    /* of hashing it */
};

struct build {
    const heft_checkpoint *checkpoint;
    PyObject *make; /* borrowed: callable(kind, ...) */
    const char *encoding;
    PyObject *texts;   /* dict: address -> object */
    struct made *made; /* [made_cap] by part */
    size_t made_cap;
    uint64_t hashed; /* of all that is hashed */
    struct begun *stack;
    size_t depth, cap;
    PyObject *result;
};

/* Raise FormatError at the part, for the reason of the exception that is raised. Returns NULL. */
static PyObject *malformed(const struct build *build, const heft_value *value)
{
    heft_error error = {.status = HEFT_FORMAT, .offset = value->offset};
    PyObject *kind, *reason, *trace;
    PyErr_Fetch(&kind, &reason, &trace);
    PyObject *text = reason ? PyObject_Str(reason) : NULL;
    const char *words = text ? PyUnicode_AsUTF8AndSize(text, NULL) : NULL;
    PyErr_Clear();
    snprintf(error.message, sizeof error.message, "%.200s", words ? words : "malformed value");
    snprintf(error.path, sizeof error.path, "%s", heft_checkpoint_file(build->checkpoint, 0)->path);
    Py_XDECREF(text);
    Py_XDECREF(kind);
    Py_XDECREF(reason);
    Py_XDECREF(trace);
    raise_error(&error);
    return NULL;
}

/* The same for exceptions that a file is the reason of; any other stays. */
static PyObject *judge(const struct build *build, const heft_value *value, PyObject *object)
{
    if (!object && PyErr_Occurred() &&
        (PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_UnicodeError))) {
        return malformed(build, value);
    }
    return object;
}

/* ---- values without others inside ------------------------------------------------------------ */
static PyObject *decode(const struct build *build, const heft_value *value)
{
    const Py_ssize_t length = (Py_ssize_t)value->length;
    switch ((int)value->kind) {
    case HEFT_VALUE_TEXT:
        return PyUnicode_DecodeUTF8(value->text, length, "surrogatepass");
    case HEFT_VALUE_STRING:
        return strcmp(build->encoding, "bytes") == 0
                   ? PyBytes_FromStringAndSize(value->text, length)
                   : PyUnicode_Decode(value->text, length, build->encoding, "strict");
    case HEFT_VALUE_BYTE_ARRAY:
        return PyByteArray_FromStringAndSize(value->text, length);
    case HEFT_VALUE_BIG_INTEGER:
        return PyObject_CallFunction(build->make, "sy#", "integer", value->text, length);
    default:
        return PyBytes_FromStringAndSize(value->text, length);
    }
}

/* Text and bytes: those at one address are one object, as in a pickle. */
static PyObject *make_text(const struct build *build, const heft_value *value)
{
    if (value->length <= TEXT_KEPT) {
        return decode(build, value);
    }
    PyObject *address = PyLong_FromVoidPtr((void *)(uintptr_t)value->text);
    PyObject *object = address ? PyDict_GetItemWithError(build->texts, address) : NULL;
    if (object) {
        Py_INCREF(object);
    } else if (address && !PyErr_Occurred()) {
        object = decode(build, value);
        if (object && PyDict_SetItem(build->texts, address, object) != 0) {
            Py_CLEAR(object);
        }
    }
    Py_XDECREF(address);
    return object;
}

/* What the caller's function makes of a text. */
static PyObject *make_by_text(const struct build *build, const heft_value *value, const char *kind)
{
    return PyObject_CallFunction(build->make, "ss#", kind, value->text, (Py_ssize_t)value->length);
}

static PyObject *make_tensor(const struct build *build, const heft_value *value, PyObject *state)
{
    return PyObject_CallFunction(build->make, "sKOOO", "tensor", (unsigned long long)value->number,
                                 value->parameter ? Py_True : Py_False,
                                 value->requires_grad ? Py_True : Py_False, state);
}

static PyObject *make_leaf(const struct build *build, const heft_value *value)
{
    switch ((int)value->kind) {
    case HEFT_VALUE_NONE:
        return Py_NewRef(Py_None);
    case HEFT_VALUE_BOOL:
        return PyBool_FromLong(value->integer != 0);
    case HEFT_VALUE_INTEGER:
        return PyLong_FromLongLong(value->integer);
    case HEFT_VALUE_FLOAT:
        return PyFloat_FromDouble(value->real);
    case HEFT_VALUE_COMPLEX:
        return PyComplex_FromDoubles(value->real, value->imaginary);
    case HEFT_VALUE_DTYPE:
        return make_by_text(build, value, "dtype");
    case HEFT_VALUE_SCHEME:
        return make_by_text(build, value, "scheme");
    case HEFT_VALUE_LAYOUT:
        return make_by_text(build, value, "layout");
    case HEFT_VALUE_DEVICE:
        return make_by_text(build, value, "device");
    case HEFT_VALUE_TYPE:
        return make_by_text(build, value, "type");
    case HEFT_VALUE_OBJECT:
        return make_by_text(build, value, "object");
    case HEFT_VALUE_TENSOR:
        return make_tensor(build, value, Py_None);
    case HEFT_VALUE_STORAGE:
        return PyObject_CallFunction(build->make, "sK", "storage",
                                     (unsigned long long)value->number);
    case HEFT_VALUE_SAME:
        return Py_XNewRef(build->made[value->number].object);
    default:
        return make_text(build, value);
    }
}

/* ---- values with others inside --------------------------------------------------------------- */
/* {key: value} of a list of both. */
static PyObject *make_dict(PyObject *items)
{
    PyObject *dict = PyDict_New();
    for (Py_ssize_t i = 0; dict && i + 1 < PyList_Size(items); i += 2) {
        if ((i % PARTS_PER_SIGNAL == 0 && PyErr_CheckSignals() != 0) ||
            PyDict_SetItem(dict, PyList_GetItem(items, i), PyList_GetItem(items, i + 1)) != 0) {
            Py_CLEAR(dict);
        }
    }
    return dict;
}

/* Dicts of Python's library: (kind, dict of the items, what makes missing ones, attributes). */
static PyObject *make_dict_class(const struct build *build, const struct begun *begun,
                                 const char *kind)
{
    const bool has_factory = begun->value.kind == HEFT_VALUE_DEFAULT_DICT;
    const Py_ssize_t count = PyList_Size(begun->items), first = has_factory ? 1 : 0;
    PyObject *result = NULL;
    PyObject *factory = Py_NewRef(has_factory ? PyList_GetItem(begun->items, 0) : Py_None);
    PyObject *state =
        Py_NewRef(begun->value.attributes ? PyList_GetItem(begun->items, count - 1) : Py_None);
    PyObject *items =
        PyList_GetSlice(begun->items, first, begun->value.attributes ? count - 1 : count);
    PyObject *dict = items ? make_dict(items) : NULL;
    if (dict) {
        result = PyObject_CallFunction(build->make, "sOOO", kind, dict, factory, state);
    }
    Py_XDECREF(dict);
    Py_XDECREF(items);
    Py_DECREF(factory);
    Py_DECREF(state);
    return result;
}

static PyObject *make_ended(const struct build *build, const struct begun *begun)
{
    switch ((int)begun->value.kind) {
    case HEFT_VALUE_TENSOR:
        return make_tensor(build, &begun->value, PyList_GetItem(begun->items, 0));
    case HEFT_VALUE_LIST:
        return Py_NewRef(begun->items);
    case HEFT_VALUE_TUPLE:
        return PyList_AsTuple(begun->items);
    case HEFT_VALUE_SET:
        return PySet_New(begun->items);
    case HEFT_VALUE_FROZEN_SET:
        return PyFrozenSet_New(begun->items);
    case HEFT_VALUE_SIZE:
        return PyObject_CallFunction(build->make, "sO", "size", begun->items);
    case HEFT_VALUE_ORDERED_DICT:
        return make_dict_class(build, begun, "OrderedDict");
    case HEFT_VALUE_COUNTER:
        return make_dict_class(build, begun, "Counter");
    case HEFT_VALUE_DEFAULT_DICT:
        return make_dict_class(build, begun, "defaultdict");
    default:
        return make_dict(begun->items);
    }
}

static bool begin(struct build *build, const heft_value *value, size_t part)
{
    if (build->depth == build->cap) {
        const size_t cap = build->cap ? build->cap * 2 : 16;
        struct begun *grown = PyMem_Realloc(build->stack, cap * sizeof *grown);
        if (!grown) {
            PyErr_NoMemory();
            return false;
        }
        build->stack = grown;
        build->cap = cap;
    }
    PyObject *items = PyList_New(0);
    if (items) {
        build->stack[build->depth++] = (struct begun){*value, part, items, 0};
    }
    return items != NULL;
}

/* Whether the next item of a value is hashed. */
static bool is_hashed(const struct begun *begun)
{
    const Py_ssize_t at = PyList_Size(begun->items);
    switch ((int)begun->value.kind) {
    case HEFT_VALUE_SET:
    case HEFT_VALUE_FROZEN_SET:
        return true;
    case HEFT_VALUE_DICT:
    case HEFT_VALUE_ORDERED_DICT:
    case HEFT_VALUE_COUNTER:
        return at % 2 == 0;
    case HEFT_VALUE_DEFAULT_DICT:
        return at % 2 == 1;
    default:
        return false;
    }
}

/* What hashing a value costs that has ended: what is mutable is refused at once. */
static uint64_t ended_cost(const struct begun *begun)
{
    const heft_value_kind kind = begun->value.kind;
    return kind == HEFT_VALUE_TUPLE || kind == HEFT_VALUE_SIZE || kind == HEFT_VALUE_FROZEN_SET
               ? 1 + begun->cost
               : 1;
}

static bool count_hashed(struct build *build, const heft_value *value, uint64_t cost)
{
    struct begun *into = &build->stack[build->depth - 1];
    into->cost += cost < HASHED_MOST ? cost : HASHED_MOST;
    build->hashed += is_hashed(into) ? cost : 0;
    if (build->hashed > HASHED_MOST) {
        heft_error error = {.status = HEFT_LIMIT, .offset = value->offset};
        snprintf(error.message, sizeof error.message,
                 "the keys of dicts and sets repeat values of one another too often");
        snprintf(error.path, sizeof error.path, "%s",
                 heft_checkpoint_file(build->checkpoint, 0)->path);
        raise_error(&error);
        return false;
    }
    return true;
}

/* Note what a part has made, which is taken, and put it where it belongs. NULL is a failure. */
static bool place(struct build *build, const heft_value *value, size_t part, uint64_t cost,
                  PyObject *object)
{
    if (!object) {
        if (!PyErr_Occurred()) {
            raise_status(HEFT_FORMAT, "a part refers to one that has not ended");
        }
        return false;
    }
    if (build->depth && (!count_hashed(build, value, cost) ||
                         PyList_Append(build->stack[build->depth - 1].items, object) != 0)) {
        Py_DECREF(object);
        return false;
    }
    if (build->depth == 0) {
        build->result = Py_NewRef(object);
    }
    build->made[part] = (struct made){object, cost};
    return true;
}

static bool end(struct build *build)
{
    const struct begun begun = build->stack[--build->depth];
    PyObject *object = judge(build, &begun.value, make_ended(build, &begun));
    Py_DECREF(begun.items);
    return place(build, &begun.value, begun.part, ended_cost(&begun), object);
}

/* ---- all parts ------------------------------------------------------------------------------- */
static bool reserve(struct build *build, size_t part)
{
    if (part < build->made_cap) {
        return true;
    }
    const size_t cap = build->made_cap ? build->made_cap * 2 : 256;
    struct made *grown = PyMem_Realloc(build->made, cap * sizeof *grown);
    if (!grown) {
        PyErr_NoMemory();
        return false;
    }
    memset(grown + build->made_cap, 0, (cap - build->made_cap) * sizeof *grown);
    build->made = grown;
    build->made_cap = cap;
    return true;
}

static bool take_part(struct build *build, size_t part, const heft_value *value)
{
    if (part % PARTS_PER_SIGNAL == 0 && PyErr_CheckSignals() != 0) {
        return false;
    }
    if (!reserve(build, part)) {
        return false;
    }
    if (value->kind == HEFT_VALUE_END) {
        return end(build);
    }
    if (value->kind >= HEFT_VALUE_LIST || (value->kind == HEFT_VALUE_TENSOR && value->attributes)) {
        return begin(build, value, part);
    }
    const uint64_t cost = value->kind == HEFT_VALUE_SAME ? build->made[value->number].cost : 1;
    return place(build, value, part, cost, judge(build, value, make_leaf(build, value)));
}

static PyObject *finish(struct build *build, bool ok)
{
    for (size_t i = 0; i < build->made_cap; i++) {
        Py_XDECREF(build->made[i].object);
    }
    while (build->depth) {
        Py_DECREF(build->stack[--build->depth].items);
    }
    PyMem_Free(build->made);
    PyMem_Free(build->stack);
    Py_XDECREF(build->texts);
    if (!ok) {
        Py_CLEAR(build->result);
    }
    return build->result;
}

PyObject *checkpoint_value(PyObject *object, PyObject *args)
{
    Checkpoint *self = (Checkpoint *)object;
    struct build build = {0};
    if (!PyArg_ParseTuple(args, "Os:value", &build.make, &build.encoding)) {
        return NULL;
    }
    build.checkpoint = checkpoint_use(self);
    if (!build.checkpoint) {
        return NULL;
    }
    build.texts = PyDict_New();
    bool ok = build.texts != NULL;
    heft_value value = HEFT_SIZED(heft_value);
    for (size_t i = 0; ok && heft_checkpoint_value(build.checkpoint, i, &value); i++) {
        ok = take_part(&build, i, &value);
    }
    if (ok && !build.result) {
        PyErr_SetString(PyExc_LookupError, "the checkpoint has no value beside its tensors");
        ok = false;
    }
    PyObject *result = finish(&build, ok);
    checkpoint_leave(self);
    return result;
}
