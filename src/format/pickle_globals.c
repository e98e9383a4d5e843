/* pickle_globals.c - the fixed list of names that a pickle may mention.
 *
 * A name that is not here is refused where it stands, whether or not anything uses it. Nothing is
 * ever called: the list says only which values heft recognizes later. It is the list of
 * torch.load(weights_only=True), without what heft would have no use for. Source:
 * docs/formats/pickle.md [3]. */
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
    cell->dtype = HEFT_DTYPE_NONE;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (equals(module, module_length, names[i].module) &&
            equals(name, name_length, names[i].name)) {
            cell->global = (uint8_t)names[i].global;
            return true;
        }
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
