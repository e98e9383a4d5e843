/* pickle_globals.c - the fixed list of names that mean something to heft.
 *
 * Nothing is ever called: the list says only which values heft recognizes later. It is the list of
 * torch.load(weights_only=True), without what heft would have no use for. Any other name makes
 * opaque values, which stand for nothing; a second list has names that only an attack would have,
 * and these are refused where they stand, whether or not anything uses them.
 * Source: docs/formats/pickle.md [3]. */
#include "format/pickle.h"

struct name {
    const char *module, *name;
    heft__pk_global global;
};

/* clang-format off */
static const struct name names[] = {
    {"torch._utils", "_rebuild_tensor_v2", HEFT__PKG_REBUILD_TENSOR_V2},
    {"torch._utils", "_rebuild_tensor_v3", HEFT__PKG_REBUILD_TENSOR_V3},
    {"torch._utils", "_rebuild_tensor", HEFT__PKG_REBUILD_TENSOR},
    {"torch._utils", "_rebuild_parameter", HEFT__PKG_REBUILD_PARAMETER},
    {"torch._utils", "_rebuild_parameter_with_state", HEFT__PKG_REBUILD_PARAMETER_WITH_STATE},
    {"torch._tensor", "_rebuild_from_type_v2", HEFT__PKG_REBUILD_FROM_TYPE_V2},
    {"torch._utils", "_rebuild_qtensor", HEFT__PKG_REBUILD_OTHER},
    {"torch._utils", "_rebuild_sparse_tensor", HEFT__PKG_REBUILD_OTHER},
    {"torch._utils", "_rebuild_sparse_csr_tensor", HEFT__PKG_REBUILD_OTHER},
    {"torch._utils", "_rebuild_meta_tensor_no_storage", HEFT__PKG_REBUILD_OTHER},
    {"torch._utils", "_rebuild_nested_tensor", HEFT__PKG_REBUILD_OTHER},
    {"torch._utils", "_rebuild_wrapper_subclass", HEFT__PKG_REBUILD_OTHER},
    {"torch._utils", "_rebuild_device_tensor_from_numpy", HEFT__PKG_REBUILD_OTHER},
    {"torch._utils", "_rebuild_device_tensor_from_cpu_tensor", HEFT__PKG_REBUILD_OTHER},
    {"collections", "OrderedDict", HEFT__PKG_ORDERED_DICT},
    {"collections", "Counter", HEFT__PKG_COUNTER},
    {"collections", "defaultdict", HEFT__PKG_DEFAULT_DICT},
    {"torch", "Size", HEFT__PKG_INERT},
    {"torch", "device", HEFT__PKG_INERT},
    {"torch.serialization", "_get_layout", HEFT__PKG_INERT},
    {"_codecs", "encode", HEFT__PKG_INERT},
    {"builtins", "bytearray", HEFT__PKG_INERT},
    {"builtins", "set", HEFT__PKG_INERT},
    {"builtins", "complex", HEFT__PKG_INERT},
    {"__builtin__", "bytearray", HEFT__PKG_INERT},
    {"__builtin__", "set", HEFT__PKG_INERT},
    {"__builtin__", "complex", HEFT__PKG_INERT},
    {"torch", "Tensor", HEFT__PKG_TYPE},
    {"torch.nn.parameter", "Parameter", HEFT__PKG_TYPE},
    {"torch.nn.parameter", "Buffer", HEFT__PKG_TYPE},
    {"torch.storage", "UntypedStorage", HEFT__PKG_UNTYPED_STORAGE},
    {"torch", "per_tensor_affine", HEFT__PKG_CONSTANT},
    {"torch", "per_tensor_symmetric", HEFT__PKG_CONSTANT},
    {"torch", "per_channel_affine", HEFT__PKG_CONSTANT},
    {"torch", "per_channel_symmetric", HEFT__PKG_CONSTANT},
    {"torch", "per_channel_affine_float_qparams", HEFT__PKG_CONSTANT},
};
/* clang-format on */

/* X of torch.XStorage and torch.XTensor. */
struct element {
    const char *name;
    heft_dtype dtype;
    bool has_tensor_class;
};

static const struct element elements[] = {
    {"Float",         HEFT_DTYPE_F32,      true },
    {"Half",          HEFT_DTYPE_F16,      true },
    {"BFloat16",      HEFT_DTYPE_BF16,     true },
    {"Long",          HEFT_DTYPE_I64,      true },
    {"Double",        HEFT_DTYPE_F64,      true },
    {"Int",           HEFT_DTYPE_I32,      true },
    {"Short",         HEFT_DTYPE_I16,      true },
    {"Char",          HEFT_DTYPE_I8,       true },
    {"Byte",          HEFT_DTYPE_U8,       true },
    {"Bool",          HEFT_DTYPE_BOOL,     true },
    {"ComplexFloat",  HEFT_DTYPE_C64,      false},
    {"ComplexDouble", HEFT_DTYPE_C128,     false},
    {"QInt8",         HEFT_DTYPE_QINT8,    false},
    {"QUInt8",        HEFT_DTYPE_QUINT8,   false},
    {"QInt32",        HEFT_DTYPE_QINT32,   false},
    {"QUInt4x2",      HEFT_DTYPE_QUINT4X2, false},
    {"QUInt2x4",      HEFT_DTYPE_QUINT2X4, false},
};

static bool equals(const char *bytes, size_t length, const char *text)
{
    return strlen(text) == length && memcmp(bytes, text, length) == 0;
}

/* `name` is element + ending. */
static bool is_element(const char *name, size_t length, const char *element, const char *ending)
{
    size_t head = strlen(element), tail = strlen(ending);
    return length == head + tail && memcmp(name, element, head) == 0 &&
           memcmp(name + head, ending, tail) == 0;
}

static bool find_element(const char *name, size_t length, bool sparse, heft__pk_cell *cell)
{
    for (size_t i = 0; i < sizeof elements / sizeof elements[0]; i++) {
        if (!sparse && is_element(name, length, elements[i].name, "Storage")) {
            cell->global = HEFT__PKG_STORAGE;
        } else if (elements[i].has_tensor_class &&
                   is_element(name, length, elements[i].name, "Tensor")) {
            cell->global = sparse ? HEFT__PKG_REBUILD_OTHER : HEFT__PKG_TENSOR_CLASS;
        } else {
            continue;
        }
        cell->dtype = (uint16_t)elements[i].dtype;
        return true;
    }
    return false;
}

/* torch.float32 and its like, spelled just so. */
static bool find_dtype(const char *name, size_t length, heft__pk_cell *cell)
{
    for (int dtype = HEFT_DTYPE_NONE + 1; dtype < HEFT_DTYPE_COUNT; dtype++) {
        /* safetensors has two types of 6 bits that torch does not */
        bool torch_has_it = dtype != HEFT_DTYPE_F6_E2M3 && dtype != HEFT_DTYPE_F6_E3M2;
        if (torch_has_it && equals(name, length, heft_dtype_name((heft_dtype)dtype))) {
            cell->global = HEFT__PKG_DTYPE;
            cell->dtype = (uint16_t)dtype;
            return true;
        }
    }
    return false;
}

bool heft__pk_find_global(const char *module, size_t module_length, const char *name,
                          size_t name_length, heft__pk_cell *cell)
{
    cell->kind = HEFT__PK_GLOBAL;
    cell->global = HEFT__PKG_UNKNOWN;
    cell->dtype = HEFT_DTYPE_NONE;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (equals(module, module_length, names[i].module) &&
            equals(name, name_length, names[i].name)) {
            cell->global = (uint8_t)names[i].global;
            return true;
        }
    }
    if ((equals(module, module_length, "torch._utils") ||
         equals(module, module_length, "torch._tensor")) &&
        name_length > 9 && memcmp(name, "_rebuild_", 9) == 0) {
        cell->global = HEFT__PKG_REBUILD_OTHER; /* of another version: a tensor all the same */
        return true;
    }
    if (equals(module, module_length, "torch")) {
        return find_element(name, name_length, false, cell) || find_dtype(name, name_length, cell);
    }
    if (equals(module, module_length, "torch.cuda")) {
        return find_element(name, name_length, false, cell);
    }
    if (equals(module, module_length, "torch.sparse") ||
        equals(module, module_length, "torch.cuda.sparse")) {
        return find_element(name, name_length, true, cell);
    }
    return false;
}

/* Modules that run programs, load code or open files and connections, with all below them. */
static const char *const harmful_modules[] = {
    "os",     "posix",   "nt",      "sys",     "subprocess", "pty",       "commands",
    "shutil", "socket",  "ssl",     "ctypes",  "imp",        "importlib", "runpy",
    "pickle", "_pickle", "marshal", "cPickle", "pdb",        "bdb",       "timeit",
    "http",   "urllib",  "urllib2", "popen2",  "requests",   "pydoc",     "webbrowser",
};
static const char *const harmful_builtins[] = {
    "eval",  "exec",    "execfile",  "compile",    "open",    "__import__",
    "apply", "input",   "raw_input", "breakpoint", "globals", "locals",
    "vars",  "setattr", "delattr",   "file",       "reload",
};

bool heft__pk_is_harmful(const char *module, size_t module_length, const char *name,
                         size_t name_length)
{
    const char *dot = memchr(module, '.', module_length);
    const size_t top = dot ? (size_t)(dot - module) : module_length;
    for (size_t i = 0; i < sizeof harmful_modules / sizeof harmful_modules[0]; i++) {
        if (equals(module, top, harmful_modules[i])) {
            return true;
        }
    }
    if (equals(module, module_length, "builtins") || equals(module, module_length, "__builtin__")) {
        for (size_t i = 0; i < sizeof harmful_builtins / sizeof harmful_builtins[0]; i++) {
            if (equals(name, name_length, harmful_builtins[i])) {
                return true;
            }
        }
    }
    return false;
}

#define CALLS_MOST 8

/* ---- opaque values --------------------------------------------------------------------------- */
bool heft__pk_is_opaque(const heft__pk_cell *cell)
{
    if (cell->kind != HEFT__PK_CALL) {
        return false;
    }
    const heft__pk_cell *callee = &cell->as.object->items[0];
    return callee->kind != HEFT__PK_GLOBAL || callee->global == HEFT__PKG_UNKNOWN;
}

void heft__pk_class_name(const heft__pickle *pickle, const heft__pk_cell *cell, char text[128])
{
    size_t at = 0;
    for (int depth = 0; cell->kind == HEFT__PK_CALL && depth < CALLS_MOST; depth++) {
        cell = &cell->as.object->items[0]; /* what a returned value returned */
    }
    for (size_t part = 0; cell->kind == HEFT__PK_GLOBAL && part < 2; part++) {
        const heft__pk_cell *from = &cell->as.object->items[part];
        const char *bytes = heft__pk_text(pickle, from);
        for (size_t i = 0; i < from->as.text.length && at < 126; i++) {
            text[at++] = bytes[i] > ' ' && bytes[i] < 0x7F ? bytes[i] : '?';
        }
        if (part == 0 && at < 126) {
            text[at++] = '.';
        }
    }
    text[at] = '\0';
}

bool heft__pk_storage_class(heft_dtype dtype, char name[32])
{
    for (size_t i = 0; i < sizeof elements / sizeof elements[0]; i++) {
        if (elements[i].dtype == dtype) {
            snprintf(name, 32, "%sStorage", elements[i].name);
            return true;
        }
    }
    return false;
}

/* ---- tensors by their class ------------------------------------------------------------------ */
/* torch.Tensor or torch.FloatTensor, ...: a class whose object has no values before its BUILD. */
bool heft__pk_is_tensor_class(const heft__pickle *pickle, const heft__pk_cell *cell)
{
    return cell->kind == HEFT__PK_GLOBAL &&
           (cell->global == HEFT__PKG_TENSOR_CLASS ||
            (cell->global == HEFT__PKG_TYPE && cell->as.text.length == strlen("Tensor") &&
             memcmp(heft__pk_text(pickle, cell), "Tensor", strlen("Tensor")) == 0));
}

/* What is made by such a class without arguments. */
bool heft__pk_is_bare_tensor(const heft__pickle *pickle, const heft__pk_cell *cell)
{
    return cell->kind == HEFT__PK_CALL && cell->as.object->count == 2 &&
           heft__pk_is_tensor_class(pickle, &cell->as.object->items[0]) &&
           cell->as.object->items[1].kind == HEFT__PK_TUPLE &&
           cell->as.object->items[1].as.object->count == 0;
}

/* Whether a storage of another class is set in a torch.FloatTensor. */
bool heft__pk_is_other_storage(const heft__pk_cell *class, const heft__pk_cell *storage)
{
    const heft__pk_object *id =
        storage->kind == HEFT__PK_PERSID && storage->as.object->items[0].kind == HEFT__PK_TUPLE
            ? storage->as.object->items[0].as.object
            : NULL;
    return class->global == HEFT__PKG_TENSOR_CLASS &&
           (!id || id->count < 2 || id->items[1].kind != HEFT__PK_GLOBAL ||
            id->items[1].global != HEFT__PKG_STORAGE || id->items[1].dtype != class->dtype);
}
