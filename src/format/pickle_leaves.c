/* pickle_leaves.c - of a pickle's whole value: tensors with what they are besides their values, and calls of
 * the functions in the fixed list that make no tensor, which are recognized and never made. */
#include "format/pickle_value.h"

#define UNWRAP_MOST 8

/* ---- tensors --------------------------------------------------------------------------------- */
struct facts {
    uint8_t flags;
    bool has_grad;              /* whether it needs a gradient is known */
    const heft__pk_cell *state; /* its attributes; NULL: none */
};

static heft_status take_state(const heft__pk_cell *state, uint64_t at, struct facts *facts,
                              heft_error *err)
{
    const bool none = state->kind == HEFT__PK_NONE ||
                      (state->kind == HEFT__PK_DICT && state->as.object->count == 0);
    if (!none && facts->state) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, at, "a tensor has attributes twice");
    }
    facts->state = none ? facts->state : state;
    return HEFT_OK;
}

static heft_status take_grad(const heft__pk_cell *cell, uint64_t at, struct facts *facts,
                             heft_error *err)
{
    if (facts->has_grad) {
        return HEFT_OK; /* the outermost counts */
    }
    if (cell->kind != HEFT__PK_BOOL) {
        return heft__fail_at(err, HEFT_FORMAT, at, "requires_grad must be a bool, found %s",
                             heft__pk_kind_name(cell));
    }
    facts->has_grad = true;
    facts->flags |= cell->as.integer ? HEFT__VALUE_REQUIRES_GRAD : 0;
    return HEFT_OK;
}

/* What a tensor is besides its values. Its arguments are those of heft__pk_build_tensor(), which has
 * looked at their number. */
static heft_status read_facts(const heft__value_walk *walk, const heft__pk_cell *cell,
                              struct facts *facts, heft_error *err)
{
    const heft__pickle *pickle = walk->build->pickle;
    const uint64_t at = heft__value_offset(walk, cell);
    uint8_t function = cell->as.object->items[0].global;
    const heft__pk_object *args = cell->as.object->items[1].as.object;
    heft_status status = HEFT_OK;
    for (int depth = 0; depth < UNWRAP_MOST && status == HEFT_OK; depth++) {
        const heft__pk_cell *arg = args->items;
        if (function == HEFT__PKG_REBUILD_PARAMETER ||
            function == HEFT__PKG_REBUILD_PARAMETER_WITH_STATE) {
            facts->flags |= HEFT__VALUE_PARAMETER;
            status = take_grad(&arg[1], at, facts, err);
            if (status == HEFT_OK && function == HEFT__PKG_REBUILD_PARAMETER_WITH_STATE) {
                status = take_state(&arg[3], at, facts, err);
            }
            function = arg[0].as.object->items[0].global;
            args = arg[0].as.object->items[1].as.object;
        } else if (function == HEFT__PKG_REBUILD_FROM_TYPE_V2) {
            if (arg[1].kind != HEFT__PK_GLOBAL || arg[1].global != HEFT__PKG_TYPE) {
                return heft__fail_at(err, HEFT_FORMAT, at,
                                     "a tensor must be of a tensor class, found %s",
                                     heft__pk_kind_name(&arg[1]));
            }
            facts->flags |=
                heft__pk_is_name(pickle, &arg[1], "Parameter") ? HEFT__VALUE_PARAMETER : 0;
            status = take_state(&arg[3], at, facts, err);
            function = arg[0].global;
            args = arg[2].as.object;
        } else {
            return function == HEFT__PKG_REBUILD_TENSOR ? HEFT_OK
                                                        : take_grad(&arg[4], at, facts, err);
        }
    }
    return status;
}

/* Number a tensor, whose values are known. */
static heft_status add_tensor(heft__value_walk *walk, heft__file_tensor *tensor, uint64_t at,
                              heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const uint64_t most = heft__limits(build->ctx)->tensors;
    heft_status status = HEFT_OK;
    if (build->tensor_count >= most) {
        status = heft__fail_at(err, HEFT_LIMIT, at, "more than %llu tensors (limit tensors)",
                               (unsigned long long)most);
    }
    if (status == HEFT_OK) {
        status = heft__quota_take(build->file->quota, heft__quota_weight(tensor->rank), at, err);
    }
    if (status == HEFT_OK) {
        status = heft__value_name(walk, at, &tensor->name, err);
    }
    if (status == HEFT_OK &&
        !heft__array_reserve(build->ctx, (void **)&build->tensors, build->tensor_count,
                             &build->tensor_cap, sizeof *tensor)) {
        return heft__fail_nomem(err, sizeof *tensor);
    }
    if (status == HEFT_OK) {
        build->tensors[build->tensor_count++] = *tensor;
    }
    return status;
}

/* The part of the tensor that was added last. */
static heft_status emit_tensor(heft__value_walk *walk, heft_value_kind kind,
                               const heft__pk_cell *cell, const struct facts *facts,
                               heft_error *err)
{
    heft__pk_object *object = cell->as.object;
    const heft__file_value part = {
        .kind = (uint8_t)kind,
        .flags = facts->flags | (facts->state ? HEFT__VALUE_ATTRIBUTES : 0),
        .at = cell->at,
        .as.refers = {(uint32_t)(walk->build->tensor_count - 1), facts->state != NULL}
    };
    const heft__value_frame frame = {
        .object = object, .last = facts->state, .part = (uint32_t)walk->build->part_count};
    object->part = frame.part;
    object->walked = !facts->state;
    object->on_path = facts->state;
    heft_status status = heft__value_emit(walk, part, err);
    return status == HEFT_OK && facts->state
               ? heft__value_push(walk, frame, heft__value_offset(walk, cell), err)
               : status;
}

heft_status heft__value_tensor(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const uint64_t at = heft__value_offset(walk, cell);
    heft__file_tensor tensor = {0};
    struct facts facts = {0};
    char maker[128];
    if (heft__pk_other_kind(build->pickle, cell, maker)) {
        return heft__value_object(walk, cell, maker, err);
    }
    heft_status status = heft__pk_build_tensor(build, cell, &tensor, err);
    if (status == HEFT_OK) {
        status = read_facts(walk, cell, &facts, err);
    }
    if (status == HEFT_OK) {
        status = add_tensor(walk, &tensor, at, err);
    }
    return status == HEFT_OK ? emit_tensor(walk, HEFT_VALUE_TENSOR, cell, &facts, err) : status;
}

/* Of tar, where each occurrence of a tensor is an id of its own. */
static heft_status visit_known(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const int64_t key = cell->as.object->items[0].as.integer;
    const heft__file_tensor *known = heft__pk_find_known(build, key);
    const size_t part = heft__map_get(&walk->known, (const char *)&key, sizeof key);
    if (part != HEFT__MAP_NONE) {
        return heft__value_emit_same(walk, cell, (uint32_t)part, err);
    }
    if (!known || known->dtype == HEFT_DTYPE_NONE) {
        return heft__value_object(walk, cell, NULL, err);
    }
    heft__file_tensor tensor = *known;
    const struct facts facts = {0};
    size_t found;
    heft_status status = add_tensor(walk, &tensor, heft__value_offset(walk, cell), err);
    if (status == HEFT_OK &&
        !heft__map_put(&walk->known, (const char *)&cell->as.object->items[0].as.integer,
                       sizeof key, build->part_count, &found)) {
        return heft__fail_nomem(err, sizeof key);
    }
    return status == HEFT_OK ? emit_tensor(walk, HEFT_VALUE_TENSOR, cell, &facts, err) : status;
}

/* A storage by itself is a tensor that is all of it. */
heft_status heft__value_storage(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    const heft__pk_window *window = NULL;
    const struct facts facts = {0};
    if (walk->build->pickle->ids == HEFT__PK_IDS_TAR) {
        return visit_known(walk, cell, err);
    }
    heft_status status = heft__pk_window_of(walk->build, cell->as.object, &window, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft__file_tensor tensor = {.dtype = window->dtype ? window->dtype : HEFT_DTYPE_U8,
                                .storage = window->storage,
                                .item_offset = heft__value_offset(walk, cell)};
    const int64_t size = (int64_t)(window->bytes / heft__pickle_elem_bytes(tensor.dtype)),
                  stride = 1;
    status = heft__pickle_view(&walk->build->file->arena, &size, &stride, 1, 0, window->first_bytes,
                               window->bytes, &tensor, err);
    if (status == HEFT_OK) {
        status = add_tensor(walk, &tensor, heft__value_offset(walk, cell), err);
    }
    return status == HEFT_OK ? emit_tensor(walk, HEFT_VALUE_STORAGE, cell, &facts, err) : status;
}

/* ---- calls of known functions ---------------------------------------------------------------- */
static heft_status wrong_call(const heft__value_walk *walk, const heft__pk_cell *cell,
                              heft_error *err)
{
    char name[128];
    heft__value_class_name(walk->build->pickle, cell, name);
    return heft__fail_at(err, HEFT_FORMAT, heft__value_offset(walk, cell),
                         "arguments of '%s' are of wrong types", name);
}

/* complex(1.0, 2.0) */
static heft_status visit_complex(heft__value_walk *walk, const heft__pk_cell *cell,
                                 const heft__pk_object *args, heft_error *err)
{
    heft_status status;
    if (args->count != 2 || args->items[0].kind != HEFT__PK_FLOAT ||
        args->items[1].kind != HEFT__PK_FLOAT) {
        return wrong_call(walk, cell, err);
    }
    status = heft__pickle_take(walk->build->pickle, 2 * sizeof(double),
                               heft__value_offset(walk, cell), err);
    if (status != HEFT_OK) {
        return status;
    }
    double *parts = heft__arena_words(&walk->build->file->arena, 2 * sizeof *parts);
    if (!parts) {
        return heft__fail_nomem(err, 2 * sizeof *parts);
    }
    parts[0] = args->items[0].as.real;
    parts[1] = args->items[1].as.real;
    heft__value_remember(walk, cell);
    return heft__value_emit(
        walk, (heft__file_value){.kind = HEFT_VALUE_COMPLEX, .at = cell->at, .as.complex = parts},
        err);
}

/* The bytes that a text stands for in Latin-1: those of U+0080 to U+00FF are two in UTF-8. */
static bool from_latin1(const uint8_t *text, size_t length, char *bytes, uint32_t *count)
{
    size_t written = 0;
    for (size_t i = 0; i < length; i++) {
        uint8_t byte = text[i];
        if (byte >= 0x80) {
            if ((byte != 0xC2 && byte != 0xC3) || i + 1 == length || (text[i + 1] & 0xC0) != 0x80) {
                return false;
            }
            byte = (uint8_t)((byte & 3) << 6 | (text[++i] & 0x3F));
        }
        bytes[written++] = (char)byte;
    }
    bytes[written] = '\0';
    *count = (uint32_t)written;
    return true;
}

static bool is_called(const heft__pickle *pickle, const heft__pk_cell *cell, const char *name)
{
    return cell->kind == HEFT__PK_CALL && cell->as.object->items[0].kind == HEFT__PK_GLOBAL &&
           heft__pk_is_name(pickle, &cell->as.object->items[0], name);
}

/* encode('...', 'latin1') and bytearray('...', 'latin-1'). */
static bool is_latin1(const heft__pickle *pickle, const heft__pk_object *args)
{
    return args->count == 2 && args->items[0].kind == HEFT__PK_TEXT &&
           (heft__pk_is_text(pickle, &args->items[1], "latin1") ||
            heft__pk_is_text(pickle, &args->items[1], "latin-1"));
}

/* Bytes as protocol 2 has them: a text in Latin-1. bytearray() is made of such a call, of bytes or of
 * nothing. */
static heft_status visit_bytes(heft__value_walk *walk, const heft__pk_cell *cell,
                               const heft__pk_object *args, heft_value_kind kind, heft_error *err)
{
    const heft__pickle *pickle = walk->build->pickle;
    const heft__pk_object *from = args;
    heft_status status = HEFT_OK;
    if (kind == HEFT_VALUE_BYTE_ARRAY && args->count == 1 &&
        is_called(pickle, &args->items[0], "encode")) {
        from = args->items[0].as.object->items[1].as.object;
    }
    const bool coded = is_latin1(pickle, from);
    const bool whole =
        kind == HEFT_VALUE_BYTE_ARRAY && from == args &&
        (args->count == 0 || (args->count == 1 && args->items[0].kind == HEFT__PK_BYTES));
    if (!coded && !whole) {
        return wrong_call(walk, cell, err);
    }
    const char *bytes = from->count ? heft__pk_text(pickle, &from->items[0]) : "";
    const size_t length = from->count ? from->items[0].as.text.length : 0;
    heft__value_text *text = heft__value_new_text(walk, cell, length, &status, err);
    if (!text) {
        return status;
    }
    if (coded && !from_latin1((const uint8_t *)bytes, length, text->bytes, &text->length)) {
        return heft__fail_at(err, HEFT_FORMAT, heft__value_offset(walk, cell),
                             "a text that stands for bytes is not Latin-1");
    }
    if (!coded && length) {
        memcpy(text->bytes, bytes, length);
    }
    heft__value_remember(walk, cell);
    return heft__value_emit_text(walk, kind, cell, text, err);
}

/* set([...]), set(), frozenset([...]) */
heft_status heft__value_set(heft__value_walk *walk, const heft__pk_cell *cell,
                            const heft__pk_object *args, heft_value_kind kind, heft_error *err)
{
    if (args->count == 0) {
        return heft__value_begin_items(walk, kind, cell, args, err);
    }
    const heft__pk_cell *items = &args->items[0];
    if (args->count != 1 || (items->kind != HEFT__PK_LIST && items->kind != HEFT__PK_TUPLE &&
                             items->kind != HEFT__PK_SET)) {
        return wrong_call(walk, cell, err);
    }
    return heft__value_begin_items(walk, kind, cell, items->as.object, err);
}

/* torch.Size((2, 3)) */
static heft_status visit_size(heft__value_walk *walk, const heft__pk_cell *cell,
                              const heft__pk_object *args, heft_error *err)
{
    const heft__pk_cell *sizes = args->items;
    bool fits = args->count == 1 && (sizes->kind == HEFT__PK_TUPLE || sizes->kind == HEFT__PK_LIST);
    for (uint32_t i = 0; fits && i < sizes->as.object->count; i++) {
        fits = sizes->as.object->items[i].kind == HEFT__PK_INT;
    }
    return fits ? heft__value_begin_items(walk, HEFT_VALUE_SIZE, cell, sizes->as.object, err)
                : wrong_call(walk, cell, err);
}

/* torch.device('cuda', 0), torch.device('cpu') */
static heft_status visit_device(heft__value_walk *walk, const heft__pk_cell *cell,
                                const heft__pk_object *args, heft_error *err)
{
    const heft__pk_cell *arg = args->items;
    char name[64];
    heft_status status = HEFT_OK;
    if (args->count < 1 || args->count > 2 || arg[0].kind != HEFT__PK_TEXT ||
        arg[0].as.text.length > 32 ||
        (args->count == 2 && (arg[1].kind != HEFT__PK_INT || arg[1].as.integer < 0))) {
        return wrong_call(walk, cell, err);
    }
    int length = snprintf(name, sizeof name, "%.*s", (int)arg[0].as.text.length,
                          heft__pk_text(walk->build->pickle, &arg[0]));
    if (args->count == 2) {
        length += snprintf(name + length, sizeof name - (size_t)length, ":%lld",
                           (long long)arg[1].as.integer);
    }
    heft__value_text *text = heft__value_new_text(walk, cell, (size_t)length, &status, err);
    if (!text) {
        return status;
    }
    memcpy(text->bytes, name, (size_t)length);
    heft__value_remember(walk, cell);
    return heft__value_emit_text(walk, HEFT_VALUE_DEVICE, cell, text, err);
}

/* A call of a function in the list that makes no tensor. */
heft_status heft__value_inert(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    const heft__pickle *pickle = walk->build->pickle;
    const heft__pk_object *args = cell->as.object->items[1].as.object;
    if (is_called(pickle, cell, "Size")) {
        return visit_size(walk, cell, args, err);
    }
    if (is_called(pickle, cell, "device")) {
        return visit_device(walk, cell, args, err);
    }
    if (is_called(pickle, cell, "complex")) {
        return visit_complex(walk, cell, args, err);
    }
    if (is_called(pickle, cell, "set")) {
        return heft__value_set(walk, cell, args, HEFT_VALUE_SET, err);
    }
    if (is_called(pickle, cell, "_get_layout")) {
        return args->count == 1 && args->items[0].kind == HEFT__PK_TEXT
                   ? heft__value_emit_span(walk, HEFT_VALUE_LAYOUT, &args->items[0], err)
                   : wrong_call(walk, cell, err);
    }
    return visit_bytes(walk, cell, args,
                       is_called(pickle, cell, "encode") ? HEFT_VALUE_BYTES : HEFT_VALUE_BYTE_ARRAY,
                       err);
}
