/* pickle.c - a pickle machine that makes inert values and nothing else.
 *
 * A pickle is a program for a stack machine. This one knows the opcodes of protocols 2 to 5 that
 * write plain data; what would import, call or build becomes a value that says so (GLOBAL, CALL),
 * and a name outside the fixed list is refused where it stands, used or not. Every byte may be
 * hostile: operands are checked against the span before anything is taken by them, the memo against
 * the number of puts, the number of values against a limit. Nothing recurses. Source:
 * docs/formats/pickle.md [1], [2]; Python's pickletools. */
#include "format/torch.h"

#define VALUES_MOST ((uint32_t)8 << 20)

typedef heft__pickle_value value;

struct machine {
    heft_ctx *ctx;
    heft__pickle *pickle;
    const uint8_t *bytes;
    size_t length, p;
    size_t op; /* byte of the opcode at work */
    uint64_t origin;
    uint32_t id_items;
    value **stack;
    size_t depth, stack_cap;
    size_t *marks;
    size_t mark_count, mark_cap;
    value **memo;
    size_t memo_cap, puts;
    uint32_t values;
    heft_error *err;
};

/* ---- the fixed list of names
 * ------------------------------------------------------------------------------ */
static const struct {
    const char *module, *name;
    heft__pickle_role role;
    heft_dtype dtype;
} globals[] = {
    {"collections",         "OrderedDict",                      HEFT__ROLE_ORDERED_DICT, 0                  },
    {"torch._utils",        "_rebuild_tensor_v2",               HEFT__ROLE_TENSOR_V2,    0                  },
    {"torch._utils",        "_rebuild_tensor",                  HEFT__ROLE_TENSOR_V2,    0                  },
    {"torch._utils",        "_rebuild_tensor_v3",               HEFT__ROLE_TENSOR_V3,    0                  },
    {"torch._utils",        "_rebuild_parameter",               HEFT__ROLE_PARAMETER,    0                  },
    {"torch._utils",        "_rebuild_parameter_with_state",    HEFT__ROLE_PARAMETER,    0                  },
    {"torch._tensor",       "_rebuild_from_type_v2",            HEFT__ROLE_FROM_TYPE,    0                  },
    {"torch._utils",        "_rebuild_qtensor",                 HEFT__ROLE_OTHER_TENSOR, 0                  },
    {"torch._utils",        "_rebuild_sparse_tensor",           HEFT__ROLE_OTHER_TENSOR, 0                  },
    {"torch._utils",        "_rebuild_sparse_csr_tensor",       HEFT__ROLE_OTHER_TENSOR, 0                  },
    {"torch._utils",        "_rebuild_meta_tensor_no_storage",  HEFT__ROLE_OTHER_TENSOR, 0                  },
    {"torch._utils",        "_rebuild_nested_tensor",           HEFT__ROLE_OTHER_TENSOR, 0                  },
    {"torch._utils",        "_rebuild_wrapper_subclass",        HEFT__ROLE_OTHER_TENSOR, 0                  },
    {"torch.storage",       "UntypedStorage",                   HEFT__ROLE_STORAGE,      HEFT_DTYPE_NONE    },
    {"torch",               "DoubleStorage",                    HEFT__ROLE_STORAGE,      HEFT_DTYPE_F64     },
    {"torch",               "FloatStorage",                     HEFT__ROLE_STORAGE,      HEFT_DTYPE_F32     },
    {"torch",               "HalfStorage",                      HEFT__ROLE_STORAGE,      HEFT_DTYPE_F16     },
    {"torch",               "BFloat16Storage",                  HEFT__ROLE_STORAGE,      HEFT_DTYPE_BF16    },
    {"torch",               "LongStorage",                      HEFT__ROLE_STORAGE,      HEFT_DTYPE_I64     },
    {"torch",               "IntStorage",                       HEFT__ROLE_STORAGE,      HEFT_DTYPE_I32     },
    {"torch",               "ShortStorage",                     HEFT__ROLE_STORAGE,      HEFT_DTYPE_I16     },
    {"torch",               "CharStorage",                      HEFT__ROLE_STORAGE,      HEFT_DTYPE_I8      },
    {"torch",               "ByteStorage",                      HEFT__ROLE_STORAGE,      HEFT_DTYPE_U8      },
    {"torch",               "BoolStorage",                      HEFT__ROLE_STORAGE,      HEFT_DTYPE_BOOL    },
    {"torch",               "ComplexFloatStorage",              HEFT__ROLE_STORAGE,      HEFT_DTYPE_C64     },
    {"torch",               "ComplexDoubleStorage",             HEFT__ROLE_STORAGE,      HEFT_DTYPE_C128    },
    {"torch",               "QInt8Storage",                     HEFT__ROLE_STORAGE,      HEFT_DTYPE_QINT8   },
    {"torch",               "QUInt8Storage",                    HEFT__ROLE_STORAGE,      HEFT_DTYPE_QUINT8  },
    {"torch",               "QInt32Storage",                    HEFT__ROLE_STORAGE,      HEFT_DTYPE_QINT32  },
    {"torch",               "QUInt4x2Storage",                  HEFT__ROLE_STORAGE,      HEFT_DTYPE_QUINT4X2},
    {"torch",               "QUInt2x4Storage",                  HEFT__ROLE_STORAGE,      HEFT_DTYPE_QUINT2X4},
    {"collections",         "Counter",                          HEFT__ROLE_INERT,        0                  },
    {"torch",               "Size",                             HEFT__ROLE_INERT,        0                  },
    {"torch",               "device",                           HEFT__ROLE_INERT,        0                  },
    {"torch",               "Tensor",                           HEFT__ROLE_INERT,        0                  },
    {"torch",               "per_tensor_affine",                HEFT__ROLE_INERT,        0                  },
    {"torch",               "per_channel_affine",               HEFT__ROLE_INERT,        0                  },
    {"torch",               "per_tensor_symmetric",             HEFT__ROLE_INERT,        0                  },
    {"torch",               "per_channel_symmetric",            HEFT__ROLE_INERT,        0                  },
    {"torch",               "per_channel_affine_float_qparams", HEFT__ROLE_INERT,        0                  },
    {"torch.nn.parameter",  "Parameter",                        HEFT__ROLE_INERT,        0                  },
    {"torch.serialization", "_get_layout",                      HEFT__ROLE_INERT,        0                  },
    {"_codecs",             "encode",                           HEFT__ROLE_INERT,        0                  },
    {"__builtin__",         "set",                              HEFT__ROLE_INERT,        0                  },
    {"__builtin__",         "bytearray",                        HEFT__ROLE_INERT,        0                  },
    {"__builtin__",         "complex",                          HEFT__ROLE_INERT,        0                  },
    {"builtins",            "set",                              HEFT__ROLE_INERT,        0                  },
    {"builtins",            "bytearray",                        HEFT__ROLE_INERT,        0                  },
    {"builtins",            "complex",                          HEFT__ROLE_INERT,        0                  },
};

static bool same(const char *text, const char *bytes, size_t length)
{
    return strlen(text) == length && memcmp(text, bytes, length) == 0;
}

/* torch.float32 and the other dtypes, by the dtype table. */
static heft_dtype dtype_name(const char *name, size_t length)
{
    for (int dtype = HEFT_DTYPE_NONE + 1; dtype < HEFT_DTYPE_COUNT; dtype++) {
        if (same(heft_dtype_name((heft_dtype)dtype), name, length)) {
            return (heft_dtype)dtype;
        }
    }
    return HEFT_DTYPE_NONE;
}

static bool find_global(const char *module, size_t module_length, const char *name,
                        size_t name_length, value *out)
{
    /* storages of the GPU are those of the CPU */
    bool cuda = same("torch.cuda", module, module_length);
    for (size_t i = 0; i < sizeof globals / sizeof globals[0]; i++) {
        bool module_fits =
            same(globals[i].module, module, module_length) ||
            (cuda && globals[i].role == HEFT__ROLE_STORAGE && same("torch", globals[i].module, 5));
        if (module_fits && same(globals[i].name, name, name_length)) {
            out->role = (uint8_t)globals[i].role;
            out->dtype = (uint8_t)globals[i].dtype;
            return true;
        }
    }
    heft_dtype dtype =
        same("torch", module, module_length) ? dtype_name(name, name_length) : HEFT_DTYPE_NONE;
    out->role = HEFT__ROLE_DTYPE;
    out->dtype = (uint8_t)dtype;
    return dtype != HEFT_DTYPE_NONE;
}

/* ---- errors and operands
 * ------------------------------------------------------------------------------------ */
#define FAIL(m, status, ...) heft__fail_at((m)->err, status, (m)->origin + (m)->op, __VA_ARGS__)

static heft_status no_memory(struct machine *m)
{
    return heft__fail_nomem(m->err, 0);
}

static heft_status operand(struct machine *m, const char *what, uint64_t length,
                           const uint8_t **bytes)
{
    if (length > m->length - m->p) {
        return FAIL(m, HEFT_FORMAT, "%s of %llu bytes, %zu left", what, (unsigned long long)length,
                    m->length - m->p);
    }
    *bytes = m->bytes + m->p;
    m->p += (size_t)length;
    return HEFT_OK;
}

/* A little-endian number of 1, 2, 4 or 8 bytes. */
static heft_status operand_number(struct machine *m, size_t width, uint64_t *number)
{
    const uint8_t *p = NULL;
    heft_status status = operand(m, "operand", width, &p);
    *number = 0;
    for (size_t i = 0; status == HEFT_OK && i < width; i++) {
        *number |= (uint64_t)p[i] << (8 * i);
    }
    return status;
}

/* Bytes with their length before them. */
static heft_status operand_counted(struct machine *m, const char *what, size_t width,
                                   const uint8_t **bytes, uint64_t *length)
{
    heft_status status = operand_number(m, width, length);
    return status == HEFT_OK ? operand(m, what, *length, bytes) : status;
}

/* ---- values
 * ------------------------------------------------------------------------------------------------------
 */
static value *new_value(struct machine *m, heft__pickle_kind kind)
{
    value *v = m->values < VALUES_MOST ? heft__arena_alloc(&m->pickle->arena, sizeof *v) : NULL;
    if (v) {
        *v = (value){.kind = (uint8_t)kind, .at = (uint32_t)m->op};
        m->values++;
    }
    return v;
}

static heft_status push(struct machine *m, value *v)
{
    if (!v) {
        return m->values >= VALUES_MOST ? FAIL(m, HEFT_LIMIT, "over %u values", VALUES_MOST)
                                        : no_memory(m);
    }
    if (!heft__array_reserve(m->ctx, (void **)&m->stack, m->depth, &m->stack_cap,
                             sizeof *m->stack)) {
        return no_memory(m);
    }
    m->stack[m->depth++] = v;
    return HEFT_OK;
}

static heft_status push_int(struct machine *m, heft__pickle_kind kind, int64_t number)
{
    value *v = new_value(m, kind);
    if (v) {
        v->integer = number;
    }
    return push(m, v);
}

static heft_status push_text(struct machine *m, heft__pickle_kind kind, size_t width, bool latin)
{
    const uint8_t *bytes = NULL;
    uint64_t length;
    heft_status status =
        operand_counted(m, kind == HEFT__PICKLE_TEXT ? "string" : "bytes", width, &bytes, &length);
    if (status != HEFT_OK) {
        return status;
    }
    if (kind == HEFT__PICKLE_TEXT && !latin) {
        size_t invalid = heft__utf8_invalid_at(bytes, (size_t)length);
        if (invalid < length &&
            bytes[invalid] != 0xED) { /* lone surrogates are Python's, and no names of tensors */
            return FAIL(m, HEFT_FORMAT, "string holds invalid UTF-8");
        }
    }
    value *v = new_value(m, kind);
    if (v) {
        v->as.text = (const char *)bytes;
        v->integer = (int64_t)length;
    }
    return push(m, v);
}

static heft_status add_items(struct machine *m, value *container, value **items, size_t count)
{
    if (count == 0) {
        return HEFT_OK;
    }
    if (container->cap - container->count < count) {
        uint64_t cap = container->cap ? (uint64_t)container->cap * 2 : 4;
        cap = cap < container->count + count ? container->count + count : cap;
        value **grown =
            cap <= UINT32_MAX ? heft__arena_array(&m->pickle->arena, cap, sizeof *grown) : NULL;
        if (!grown) {
            return no_memory(m);
        }
        if (container->count) {
            memcpy(grown, container->as.items, container->count * sizeof *grown);
        }
        container->as.items = grown;
        container->cap = (uint32_t)cap;
    }
    memcpy(container->as.items + container->count, items, count * sizeof *items);
    container->count += (uint32_t)count;
    return HEFT_OK;
}

/* Where the stack may be popped to: values under the newest mark belong to somebody else. */
static size_t stack_floor(const struct machine *m)
{
    return m->mark_count ? m->marks[m->mark_count - 1] : 0;
}

static heft_status need(struct machine *m, const char *opcode, size_t count)
{
    size_t have = m->depth - stack_floor(m);
    return have < count
               ? FAIL(m, HEFT_FORMAT, "%s needs %zu items, stack has %zu", opcode, count, have)
               : HEFT_OK;
}

static heft_status pop_mark(struct machine *m, const char *opcode, size_t *from)
{
    if (!m->mark_count) {
        return FAIL(m, HEFT_FORMAT, "%s without MARK", opcode);
    }
    *from = m->marks[--m->mark_count];
    return HEFT_OK;
}

/* A container of the stack's values from `from` on. */
static heft_status make(struct machine *m, heft__pickle_kind kind, size_t from)
{
    value *v = new_value(m, kind);
    heft_status status = v ? add_items(m, v, m->stack + from, m->depth - from) : HEFT_OK;
    m->depth = from;
    return status == HEFT_OK ? push(m, v) : status;
}

/* Values above `from` go into the container just below. */
static heft_status extend(struct machine *m, const char *opcode, size_t from, bool dict)
{
    if (from < 1 || from - 1 < stack_floor(m)) {
        return FAIL(m, HEFT_FORMAT, "%s needs a container below the mark", opcode);
    }
    value *container = m->stack[from - 1];
    size_t count = m->depth - from;
    bool ordered =
        container->kind == HEFT__PICKLE_CALL && container->role == HEFT__ROLE_ORDERED_DICT;
    bool fits = dict ? container->kind == HEFT__PICKLE_DICT || ordered
                     : container->kind == HEFT__PICKLE_LIST || container->kind == HEFT__PICKLE_SET;
    if (!fits || (dict && count % 2)) {
        return FAIL(m, HEFT_FORMAT,
                    dict
                        ? (fits ? "%s has a key without a value" : "%s needs a dict below the mark")
                        : "%s needs a list below the mark",
                    opcode);
    }
    heft_status status = add_items(m, container, m->stack + from, count);
    m->depth = from;
    return status;
}

/* ---- names and calls
 * -----------------------------------------------------------------------------------------------
 */
static heft_status push_global(struct machine *m, const char *module, size_t module_length,
                               const char *name, size_t name_length)
{
    value *v = new_value(m, HEFT__PICKLE_GLOBAL);
    if (v) {
        if (!find_global(module, module_length, name, name_length, v)) {
            return FAIL(m, HEFT_REFUSED, "pickle global '%.*s.%.*s' is refused",
                        module_length > 100 ? 100 : (int)module_length, module,
                        name_length > 100 ? 100 : (int)name_length, name);
        }
        v->as.text = heft__arena_format(&m->pickle->arena, "%.*s.%.*s", (int)module_length, module,
                                        (int)name_length, name);
        v->integer = v->as.text ? (int64_t)strlen(v->as.text) : 0;
        v = v->as.text ? v : NULL;
    }
    return push(m, v);
}

static heft_status read_line(struct machine *m, const char **text, size_t *length)
{
    const uint8_t *start = m->bytes + m->p, *end = memchr(start, '\n', m->length - m->p);
    if (!end) {
        return FAIL(m, HEFT_FORMAT, "a line without its end, %zu left", m->length - m->p);
    }
    *text = (const char *)start;
    *length = (size_t)(end - start);
    m->p += *length + 1;
    return HEFT_OK;
}

static heft_status global(struct machine *m)
{
    const char *module = "", *name = "";
    size_t module_length = 0, name_length = 0;
    heft_status status = read_line(m, &module, &module_length);
    if (status == HEFT_OK) {
        status = read_line(m, &name, &name_length);
    }
    return status == HEFT_OK ? push_global(m, module, module_length, name, name_length) : status;
}

static heft_status stack_global(struct machine *m)
{
    heft_status status = need(m, "STACK_GLOBAL", 2);
    if (status != HEFT_OK) {
        return status;
    }
    const value *module = m->stack[m->depth - 2], *name = m->stack[m->depth - 1];
    if (module->kind != HEFT__PICKLE_TEXT || name->kind != HEFT__PICKLE_TEXT) {
        return FAIL(m, HEFT_FORMAT, "STACK_GLOBAL needs two strings");
    }
    m->depth -= 2;
    return push_global(m, module->as.text, (size_t)module->integer, name->as.text,
                       (size_t)name->integer);
}

/* REDUCE, NEWOBJ, NEWOBJ_EX: a name and its arguments become a value that says so. An OrderedDict
 * is a dict to come. */
static heft_status call(struct machine *m, const char *opcode, size_t items)
{
    heft_status status = need(m, opcode, items);
    if (status != HEFT_OK) {
        return status;
    }
    value **at = m->stack + m->depth - items;
    if (at[0]->kind != HEFT__PICKLE_GLOBAL) {
        return FAIL(m, HEFT_FORMAT, "%s on something that is no global", opcode);
    }
    if (at[1]->kind != HEFT__PICKLE_TUPLE) {
        return FAIL(m, HEFT_FORMAT, "%s needs a tuple of arguments", opcode);
    }
    bool ordered = at[0]->role == HEFT__ROLE_ORDERED_DICT;
    if (opcode[0] == 'N' && !ordered) { /* NEWOBJ: as the reference, which makes nothing else so */
        return FAIL(m, HEFT_REFUSED, "pickle global '%s' is refused (%s)", at[0]->as.text, opcode);
    }
    if (ordered && at[1]->count) {
        return FAIL(m, HEFT_UNSUPPORTED, "OrderedDict made from arguments, as Python 2 wrote it");
    }
    value *v = new_value(m, HEFT__PICKLE_CALL);
    if (v) {
        v->role = at[0]->role;
        if (!ordered) { /* an OrderedDict's items are keys and values to come */
            status = add_items(m, v, at, 2);
        }
    }
    m->depth -= items;
    return status == HEFT_OK ? push(m, v) : status;
}

/* BUILD sets attributes of what lies below: dropped, since no tensor of a state dict hides there.
 */
static heft_status build(struct machine *m)
{
    heft_status status = need(m, "BUILD", 2);
    if (status != HEFT_OK) {
        return status;
    }
    const value *below = m->stack[m->depth - 2];
    if (below->kind != HEFT__PICKLE_CALL) {
        return FAIL(m, HEFT_FORMAT, "BUILD on something that was not made by a call");
    }
    m->depth--;
    return HEFT_OK;
}

static heft_status persistent_id(struct machine *m)
{
    heft_status status = need(m, "BINPERSID", 1);
    if (status != HEFT_OK) {
        return status;
    }
    const value *id = m->stack[m->depth - 1];
    if (id->kind != HEFT__PICKLE_TUPLE) {
        return FAIL(m, HEFT_FORMAT, "persistent id must be a tuple of %u", m->id_items);
    }
    if (id->count >= 1 && id->as.items[0]->kind == HEFT__PICKLE_TEXT &&
        !heft__pickle_is_text(id->as.items[0], "storage")) {
        return FAIL(m, HEFT_FORMAT, "persistent id tag '%.*s', expected 'storage'",
                    id->as.items[0]->integer > 60 ? 60 : (int)id->as.items[0]->integer,
                    id->as.items[0]->as.text);
    }
    if (id->count != m->id_items) {
        return FAIL(m, HEFT_FORMAT, "persistent id has %u items, expected %u", id->count,
                    m->id_items);
    }
    return make(m, HEFT__PICKLE_STORAGE, m->depth - 1);
}

/* ---- memo
 * ---------------------------------------------------------------------------------------------------------------
 */
/* Writers number their puts from 0 on; an index far beyond them would only size a table. */
static heft_status put(struct machine *m, uint64_t index)
{
    heft_status status = need(m, "PUT", 1);
    if (status != HEFT_OK) {
        return status;
    }
    if (index > (uint64_t)m->puts * 4 + 1024) {
        return FAIL(m, HEFT_FORMAT, "memo index %llu after %zu puts", (unsigned long long)index,
                    m->puts);
    }
    if (index >= m->memo_cap) {
        size_t cap = m->memo_cap ? m->memo_cap : 256;
        while (cap <= index) {
            cap *= 2;
        }
        value **grown =
            heft__resize(m->ctx, m->memo, m->memo_cap * sizeof *grown, cap * sizeof *grown);
        if (!grown) {
            return no_memory(m);
        }
        memset(grown + m->memo_cap, 0, (cap - m->memo_cap) * sizeof *grown);
        m->memo = grown;
        m->memo_cap = cap;
    }
    m->memo[index] = m->stack[m->depth - 1];
    m->puts++;
    return HEFT_OK;
}

static heft_status get(struct machine *m, uint64_t index)
{
    if (index >= m->memo_cap || !m->memo[index]) {
        return FAIL(m, HEFT_FORMAT, "memo %llu is not set", (unsigned long long)index);
    }
    return push(m, m->memo[index]);
}

/* ---- integers
 * -------------------------------------------------------------------------------------------------------------
 */
static heft_status push_long(struct machine *m, size_t width)
{
    const uint8_t *bytes = NULL;
    uint64_t length;
    heft_status status = operand_counted(m, "integer", width, &bytes, &length);
    if (status != HEFT_OK) {
        return status;
    }
    if (length > 1024) {
        return FAIL(m, HEFT_FORMAT, "integer too large (%llu bytes)", (unsigned long long)length);
    }
    if (length > 8) {
        return push_int(m, HEFT__PICKLE_LARGE_INT, 0);
    }
    uint64_t number = length && bytes[length - 1] & 0x80 ? UINT64_MAX : 0;
    for (uint64_t i = 0; i < length; i++) {
        number = (number & ~((uint64_t)0xFF << (8 * i))) | (uint64_t)bytes[i] << (8 * i);
    }
    return push_int(m, HEFT__PICKLE_INT, (int64_t)number);
}

static heft_status push_number(struct machine *m, size_t width)
{
    uint64_t number;
    heft_status status = operand_number(m, width, &number);
    int64_t signed_number = width == 4 ? (int32_t)(uint32_t)number : (int64_t)number;
    return status == HEFT_OK ? push_int(m, HEFT__PICKLE_INT, signed_number) : status;
}

static heft_status frame(struct machine *m)
{
    uint64_t length;
    heft_status status = operand_number(m, 8, &length);
    if (status == HEFT_OK && length > m->length - m->p) {
        status = FAIL(m, HEFT_FORMAT, "frame of %llu bytes, %zu left", (unsigned long long)length,
                      m->length - m->p);
    }
    return status;
}

/* ---- the loop
 * -----------------------------------------------------------------------------------------------------------
 */
static const char *refused_name(uint8_t op)
{
    static const struct {
        uint8_t op;
        const char *name;
    } names[] = {
        {'i',  "INST"           },
        {'o',  "OBJ"            },
        {'P',  "PERSID"         },
        {0x82, "EXT1"           },
        {0x83, "EXT2"           },
        {0x84, "EXT4"           },
        {'I',  "INT"            },
        {'L',  "LONG"           },
        {'F',  "FLOAT"          },
        {'S',  "STRING"         },
        {'V',  "UNICODE"        },
        {'p',  "PUT"            },
        {'g',  "GET"            },
        {'d',  "DICT"           },
        {'l',  "LIST"           },
        {0x97, "NEXT_BUFFER"    },
        {0x98, "READONLY_BUFFER"}
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (names[i].op == op) {
            return names[i].name;
        }
    }
    return NULL;
}

static heft_status refuse(struct machine *m, uint8_t op)
{
    const char *name = refused_name(op);
    if (op == 'i') { /* INST names a class: say which */
        const char *module = "", *class = "";
        size_t module_length = 0, class_length = 0;
        if (read_line(m, &module, &module_length) == HEFT_OK &&
            read_line(m, &class, &class_length) == HEFT_OK) {
            return FAIL(m, HEFT_REFUSED, "pickle global '%.*s.%.*s' is refused (INST)",
                        (int)(module_length & 0x7f), module, (int)(class_length & 0x7f), class);
        }
    }
    if (op == 'I') {
        const char *text = "";
        size_t length = 0;
        if (read_line(m, &text, &length) == HEFT_OK) {
            return FAIL(m, HEFT_REFUSED, "opcode INT (operand '%.*s') is not allowed",
                        (int)(length & 0x3f), text);
        }
    }
    return name ? FAIL(m, HEFT_REFUSED, "opcode %s is not allowed", name)
                : FAIL(m, HEFT_FORMAT, "unknown opcode 0x%02x", op);
}

static heft_status mark(struct machine *m)
{
    if (!heft__array_reserve(m->ctx, (void **)&m->marks, m->mark_count, &m->mark_cap,
                             sizeof *m->marks)) {
        return no_memory(m);
    }
    m->marks[m->mark_count++] = m->depth;
    return HEFT_OK;
}

/* Opcodes on what lies above the newest mark. */
static heft_status step_marked(struct machine *m, uint8_t op)
{
    size_t from = 0;
    const char *name = op == 't'    ? "TUPLE"
                       : op == 'u'  ? "SETITEMS"
                       : op == 'e'  ? "APPENDS"
                       : op == 0x90 ? "ADDITEMS"
                       : op == 0x91 ? "FROZENSET"
                                    : "POP_MARK";
    heft_status status = pop_mark(m, name, &from);
    if (status != HEFT_OK) {
        return status;
    }
    switch (op) {
    case 't':
        return make(m, HEFT__PICKLE_TUPLE, from);
    case 0x91:
        return make(m, HEFT__PICKLE_SET, from);
    case 'u':
        return extend(m, name, from, true);
    case 'e':
    case 0x90:
        return extend(m, name, from, false);
    default:
        m->depth = from;
        return HEFT_OK;
    }
}

/* Opcodes on the top of the stack. */
static heft_status step_stack(struct machine *m, uint8_t op)
{
    heft_status status;
    switch (op) {
    case 0x85:
    case 0x86:
    case 0x87: {
        static const char *const names[] = {"TUPLE1", "TUPLE2", "TUPLE3"};
        size_t count = (size_t)(op - 0x84);
        status = need(m, names[count - 1], count);
        return status == HEFT_OK ? make(m, HEFT__PICKLE_TUPLE, m->depth - count) : status;
    }
    case 's':
        status = need(m, "SETITEM", 3);
        return status == HEFT_OK ? extend(m, "SETITEM", m->depth - 2, true) : status;
    case 'a':
        status = need(m, "APPEND", 2);
        return status == HEFT_OK ? extend(m, "APPEND", m->depth - 1, false) : status;
    case 'R':
        return call(m, "REDUCE", 2);
    case 0x81:
        return call(m, "NEWOBJ", 2);
    case 0x92:
        return call(m, "NEWOBJ_EX", 3);
    case 'b':
        return build(m);
    case 'Q':
        return persistent_id(m);
    case 0x93:
        return stack_global(m);
    case 0x94:
        return put(m, m->puts);
    case '0':
        status = need(m, "POP", 1);
        m->depth -= status == HEFT_OK;
        return status;
    case '2':
        status = need(m, "DUP", 1);
        return status == HEFT_OK ? push(m, m->stack[m->depth - 1]) : status;
    default:
        return refuse(m, op);
    }
}

static heft_status step_memo(struct machine *m, uint8_t op)
{
    uint64_t index;
    heft_status status = operand_number(m, op == 'q' || op == 'h' ? 1 : 4, &index);
    if (status != HEFT_OK) {
        return status;
    }
    return op == 'q' || op == 'r' ? put(m, index) : get(m, index);
}

/* Texts and bytes with their length before them. */
static heft_status step_text(struct machine *m, uint8_t op)
{
    switch (op) {
    case 'X':
        return push_text(m, HEFT__PICKLE_TEXT, 4, false);
    case 0x8C:
        return push_text(m, HEFT__PICKLE_TEXT, 1, false);
    case 0x8D:
        return push_text(m, HEFT__PICKLE_TEXT, 8, false);
    case 'U': /* texts of Python 2 */
        return push_text(m, HEFT__PICKLE_TEXT, 1, true);
    case 'T':
        return push_text(m, HEFT__PICKLE_TEXT, 4, true);
    case 'C':
        return push_text(m, HEFT__PICKLE_BYTES, 1, false);
    case 'B':
        return push_text(m, HEFT__PICKLE_BYTES, 4, false);
    default: /* BINBYTES8, BYTEARRAY8 */
        return push_text(m, HEFT__PICKLE_BYTES, 8, false);
    }
}

static heft_status step_number(struct machine *m, uint8_t op)
{
    const uint8_t *bytes;
    switch (op) {
    case 'K':
        return push_number(m, 1);
    case 'M':
        return push_number(m, 2);
    case 'J':
        return push_number(m, 4);
    case 0x8A:
        return push_long(m, 1);
    case 0x8B:
        return push_long(m, 4);
    default: { /* BINFLOAT */
        heft_status status = operand(m, "operand", 8, &bytes);
        return status == HEFT_OK ? push(m, new_value(m, HEFT__PICKLE_FLOAT)) : status;
    }
    }
}

/* Each opcode by what it works on. */
static heft_status step(struct machine *m, uint8_t op)
{
    const uint8_t *bytes;
    switch (op) {
    case 0x80:
        return operand(m, "operand", 1, &bytes);
    case 0x95:
        return frame(m);
    case '}':
        return push(m, new_value(m, HEFT__PICKLE_DICT));
    case ']':
        return push(m, new_value(m, HEFT__PICKLE_LIST));
    case ')':
        return push(m, new_value(m, HEFT__PICKLE_TUPLE));
    case 0x8F:
        return push(m, new_value(m, HEFT__PICKLE_SET));
    case 'N':
        return push(m, new_value(m, HEFT__PICKLE_NONE));
    case 0x88:
    case 0x89:
        return push_int(m, HEFT__PICKLE_BOOL, op == 0x88);
    case '(':
        return mark(m);
    case 'c':
        return global(m);
    default:
        break;
    }
    if (memchr("KMJ\x8A\x8B"
               "G",
               op, 6)) {
        return step_number(m, op);
    }
    if (memchr("X\x8C\x8D"
               "UTCB\x8E\x96",
               op, 9)) {
        return step_text(m, op);
    }
    if (memchr("qrhj", op, 4)) {
        return step_memo(m, op);
    }
    return memchr("tue1\x90\x91", op, 6) ? step_marked(m, op) : step_stack(m, op);
}

static heft_status run(struct machine *m)
{
    for (;;) {
        m->op = m->p;
        if (m->p >= m->length) {
            return FAIL(m, HEFT_FORMAT, "the pickle ends, STOP expected");
        }
        uint8_t op = m->bytes[m->p++];
        if (op == '.') {
            if (m->mark_count) {
                return FAIL(m, HEFT_FORMAT, "STOP with %zu open marks", m->mark_count);
            }
            if (m->depth != 1) {
                return FAIL(m, HEFT_FORMAT, "STOP with %zu values on the stack, expected 1",
                            m->depth);
            }
            m->pickle->top = m->stack[0];
            m->pickle->end = m->p;
            return HEFT_OK;
        }
        heft_status status = step(m, op);
        if (status != HEFT_OK) {
            return status;
        }
    }
}

heft_status heft__pickle_run(heft_ctx *ctx, const uint8_t *bytes, size_t length, uint64_t origin,
                             uint32_t id_items, heft__pickle *pickle, heft_error *err)
{
    *pickle = (heft__pickle){0};
    heft__arena_init(&pickle->arena, ctx);
    struct machine m = {
        .ctx = ctx,
        .pickle = pickle,
        .bytes = bytes,
        .length = length,
        .origin = origin,
        .id_items = id_items,
        .err = err,
    };
    heft_status status =
        length > UINT32_MAX || length > heft__limits(ctx)->pickle_bytes
            ? heft__fail(err, HEFT_LIMIT, "pickle of %zu bytes, the limit is %llu", length,
                         (unsigned long long)heft__limits(ctx)->pickle_bytes)
            : run(&m);
    heft__free(ctx, m.stack, m.stack_cap * sizeof *m.stack);
    heft__free(ctx, m.marks, m.mark_cap * sizeof *m.marks);
    heft__free(ctx, m.memo, m.memo_cap * sizeof *m.memo);
    return status;
}

void heft__pickle_fini(heft__pickle *pickle)
{
    if (pickle->arena.ctx) {
        heft__arena_fini(&pickle->arena);
    }
}

bool heft__pickle_is_text(const heft__pickle_value *v, const char *text)
{
    return v->kind == HEFT__PICKLE_TEXT && same(text, v->as.text, (size_t)v->integer);
}
