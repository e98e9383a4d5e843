/* pickle_value.c - the whole value of a pickle, described in parts.
 *
 *   {'epoch': 3, 'w': [T, T]}   ->   DICT 4, TEXT 'epoch', INTEGER 3, TEXT 'w', LIST 2, TENSOR 0, SAME 5, END, END
 *
 * The value is walked from the top, keys and values, and every tensor gets a number. What is met again is
 * a reference to the part that began it, so shared values cost nothing; a value that contains itself is
 * an error. An object of an unknown class is one part, which says its class, whatever the pickle gave it;
 * a pickled module is the dict that its state dict would be. Nothing is called, and there is no recursion.
 * Memory: 16 bytes a part and a copy of the pickle, counted as the pickle's own values are.
 * Source: docs/formats/pickle.md [6]. */
#include "format/pickle_value.h"

#define NOTE_BYTES 120 /* that what a dict has besides its items takes in a hash table */

/* ---- values that hold others ----------------------------------------------------------------- */
heft_status heft__value_push(heft__value_walk *walk, heft__value_frame frame, uint64_t at,
                             heft_error *err)
{
    const uint32_t most = heft__limits(walk->build->ctx)->pickle_depth;
    if (walk->depth >= most) {
        return heft__fail_at(err, HEFT_LIMIT, at,
                             "more than %u nested containers (limit pickle_depth)", most);
    }
    if (!heft__array_reserve(walk->build->ctx, (void **)&walk->frames, walk->depth, &walk->cap,
                             sizeof frame)) {
        return heft__fail_nomem(err, sizeof frame);
    }
    frame.path_bytes = walk->is_nameless ? HEFT__VALUE_NO_PATH : walk->path.size;
    walk->frames[walk->depth++] = frame;
    return HEFT_OK;
}

/* Begin a value; the frame says what is in it. */
static heft_status begin(heft__value_walk *walk, heft_value_kind kind, const heft__pk_cell *cell,
                         heft__value_frame frame, heft_error *err)
{
    const heft__file_value part = {
        .kind = (uint8_t)kind,
        .flags = frame.last ? HEFT__VALUE_ATTRIBUTES : 0,
        .at = cell->at,
        .as.refers = {.count = frame.count + (frame.first != NULL) + (frame.last != NULL)}};
    frame.part = (uint32_t)walk->build->part_count;
    if (frame.object) {
        frame.object->on_path = true;
        frame.object->part = frame.part;
    }
    heft_status status = heft__value_emit(walk, part, err);
    return status == HEFT_OK ? heft__value_push(walk, frame, heft__value_offset(walk, cell), err)
                             : status;
}

heft_status heft__value_begin_items(heft__value_walk *walk, heft_value_kind kind,
                                    const heft__pk_cell *cell, const heft__pk_object *items,
                                    heft_error *err)
{
    const heft__value_frame frame = {.object = cell->as.object,
                                     .items = items->items,
                                     .count = items->count,
                                     .kind = HEFT__FRAME_ITEMS};
    return begin(walk, kind, cell, frame, err);
}

static heft_status leave(heft__value_walk *walk, heft_error *err)
{
    const heft__value_frame frame = walk->frames[--walk->depth];
    if (frame.object) {
        frame.object->on_path = false;
        frame.object->walked = frame.object->walked || frame.kind != HEFT__FRAME_MEMBERS;
    }
    return frame.kind == HEFT__FRAME_MEMBERS
               ? HEFT_OK
               : heft__value_emit(walk,
                                  (heft__file_value){.kind = HEFT_VALUE_END,
                                                     .at = walk->build->parts[frame.part].at},
                                  err);
}

static heft_status visit_dict(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    static const heft__pk_cell nothing = {.kind = HEFT__PK_NONE};
    heft__pk_object *dict = cell->as.object;
    const size_t at = heft__map_get(&walk->notes, (const char *)&dict, sizeof dict);
    const heft__value_note *noted = at == HEFT__MAP_NONE ? NULL : &walk->noted[at];
    const bool has_default = dict->class == HEFT__PKG_DEFAULT_DICT;
    const heft__value_frame frame = {.object = dict,
                                     .first = !has_default              ? NULL
                                              : noted && noted->factory ? noted->factory
                                                                        : &nothing,
                                     .items = dict->items,
                                     .count = dict->count,
                                     .last = noted ? noted->state : NULL,
                                     .kind = HEFT__FRAME_PAIRS};
    const heft_value_kind kind = has_default                             ? HEFT_VALUE_DEFAULT_DICT
                                 : dict->class == HEFT__PKG_COUNTER      ? HEFT_VALUE_COUNTER
                                 : dict->class == HEFT__PKG_ORDERED_DICT ? HEFT_VALUE_ORDERED_DICT
                                                                         : HEFT_VALUE_DICT;
    return begin(walk, kind, cell, frame, err);
}

/* What dicts have besides their items, found by the dict. */
static heft_status list_notes(heft__value_walk *walk, heft_error *err)
{
    heft__pickle *pickle = walk->build->pickle;
    size_t count = 0, found;
    for (const heft__pk_attributes *note = pickle->attributes; note; note = note->next) {
        count++;
    }
    heft_status status = heft__pickle_take(pickle, count * NOTE_BYTES, pickle->origin, err);
    if (status != HEFT_OK || count == 0) {
        return status;
    }
    walk->noted = heft__alloc_zero(walk->build->ctx, count, sizeof *walk->noted);
    walk->noted_cap = walk->noted ? count : 0;
    for (const heft__pk_attributes *note = pickle->attributes; walk->noted && note;
         note = note->next) {
        if (!heft__map_put(&walk->notes, (const char *)&note->of, sizeof note->of,
                           walk->noted_count, &found)) {
            return heft__fail_nomem(err, sizeof *note);
        }
        heft__value_note *noted =
            &walk->noted[found == HEFT__MAP_NONE ? walk->noted_count++ : found];
        if (!note->factory && noted->state) {
            return heft__fail_at(err, HEFT_UNSUPPORTED, pickle->origin + note->of->at,
                                 "a dict is given its attributes twice");
        }
        noted->state = note->factory ? noted->state : &note->state;
        noted->factory = note->factory ? note->factory : noted->factory;
    }
    return walk->noted ? HEFT_OK : heft__fail_nomem(err, count * sizeof *walk->noted);
}

/* ---- modules --------------------------------------------------------------------------------- */
/* The names of a module: its parameters, its buffers, those of its modules; the last pushed is walked
 * first. owner: the module that it is part of, to whose dict they belong; NULL: its own, which has
 * just begun. */
static heft_status push_members(heft__value_walk *walk, const heft__pk_cell *cell,
                                const heft__value_frame *owner, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    heft__pk_object *module = cell->as.object;
    const heft__pk_object *attributes = module->items[2].as.object;
    heft_status status = HEFT_OK;
    for (size_t i = HEFT__PK_MODULE_PARTS; i-- > 0 && status == HEFT_OK;) {
        const heft__pk_object *members =
            heft__pk_find_item(build->pickle, attributes, heft__pk_module_parts[i])->as.object;
        const heft__value_frame frame = {
            .object = owner && i + 1 == HEFT__PK_MODULE_PARTS ? module : NULL, /* ends the last */
            .items = members->items,
            .count = members->count,
            .without = i == 1 ? heft__pk_transient_buffers(build, attributes) : NULL,
            .part = owner ? owner->part : module->part,
            .kind = HEFT__FRAME_MEMBERS,
            .name_first = owner ? owner->name_first : walk->names.size,
            .name_bytes = walk->names.size};
        status = heft__value_push(walk, frame, heft__value_offset(walk, cell), err);
    }
    return status;
}

static heft_status visit_module(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const heft__value_frame frame = {.object = cell->as.object, .kind = HEFT__FRAME_ITEMS};
    heft_status status = HEFT_OK;
    if (!build->module_class) {
        char class[128];
        heft__pk_class_name(build->pickle, cell, class);
        build->module_class = heft__arena_text(&build->file->arena, class, strlen(class));
        status = build->module_class ? HEFT_OK : heft__fail_nomem(err, strlen(class));
    }
    if (status == HEFT_OK) {
        status = begin(walk, HEFT_VALUE_ORDERED_DICT, cell, frame, err);
    }
    return status == HEFT_OK ? push_members(walk, cell, NULL, err) : status;
}

static heft_status visit(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err);

/* "layer.weight" of a module's dict, then the tensor. */
static heft_status visit_entry(heft__value_walk *walk, const heft__value_frame *frame,
                               const heft__pk_cell *key, heft_error *err)
{
    const size_t length = walk->names.size - frame->name_first;
    heft_status status = HEFT_OK;
    heft__value_text *text = heft__value_new_text(walk, key, length, &status, err);
    if (!text) {
        return status;
    }
    if (length) {
        memcpy(text->bytes, walk->names.data + frame->name_first, length);
    }
    walk->build->parts[frame->part].as.refers.count += 2;
    status = heft__value_emit_text(walk, HEFT_VALUE_TEXT, key, text, err);
    return status == HEFT_OK ? visit(walk, key + 1, err) : status;
}

static heft_status extend_names(heft__value_walk *walk, const heft__value_frame *frame,
                                const heft__pk_cell *key, heft_error *err)
{
    const uint64_t most = heft__limits(walk->build->ctx)->name_bytes;
    if (frame->name_bytes - frame->name_first + key->as.text.length > most) {
        return heft__fail_at(err, HEFT_LIMIT, heft__value_offset(walk, key),
                             "a name of more than %llu bytes (limit name_bytes)",
                             (unsigned long long)most);
    }
    walk->names.size = frame->name_bytes;
    heft__buffer_append(&walk->names, heft__pk_text(walk->build->pickle, key), key->as.text.length);
    return heft__buffer_check(&walk->names, err);
}

/* One of a module's parameters, buffers or modules. What is none of them is no part of a state dict. */
static heft_status visit_member(heft__value_walk *walk, const heft__value_frame *frame,
                                const heft__pk_cell *key, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const heft__pk_cell *value = key + 1;
    heft_status status = heft__pk_step(build, heft__value_offset(walk, value), err);
    if (status != HEFT_OK || key->kind != HEFT__PK_TEXT ||
        heft__pk_is_passed_over(build, frame->without, key)) {
        return status;
    }
    status = heft__value_path(walk, frame, key, err);
    if (status == HEFT_OK) {
        status = extend_names(walk, frame, key, err);
    }
    if (status != HEFT_OK || !heft__pk_is_module(build, value)) {
        return status == HEFT_OK &&
                       (heft__pk_is_tensor_here(build, value) || heft__pk_is_opaque(value))
                   ? visit_entry(walk, frame, key, err)
                   : status;
    }
    if (value->as.object->on_path) {
        return heft__fail_at(err, HEFT_FORMAT, heft__value_offset(walk, value),
                             "%s contains itself", heft__pk_kind_name(value));
    }
    value->as.object->on_path = true;
    heft__buffer_byte(&walk->names, '.');
    status = heft__buffer_check(&walk->names, err);
    return status == HEFT_OK ? push_members(walk, value, frame, err) : status;
}

/* ---- the walk -------------------------------------------------------------------------------- */
static bool is_builtin(const heft__pickle *pickle, const heft__pk_cell *global, const char *name)
{
    const heft__pk_cell *names =
        global->global == HEFT__PKG_UNKNOWN ? global->as.object->items : NULL;
    return names && heft__pk_is_text(pickle, &names[1], name) &&
           (heft__pk_is_text(pickle, &names[0], "builtins") ||
            heft__pk_is_text(pickle, &names[0], "__builtin__"));
}

/* A name by itself: a dtype, a kind of quantization, or what makes the missing values of a dict. */
static heft_status visit_global(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    static const char *const types[] = {"list", "dict", "int", "float", "str", "bool", "tuple"};
    const heft__pickle *pickle = walk->build->pickle;
    if (cell->global == HEFT__PKG_DTYPE || cell->global == HEFT__PKG_CONSTANT) {
        return heft__value_emit_span(
            walk, cell->global == HEFT__PKG_DTYPE ? HEFT_VALUE_DTYPE : HEFT_VALUE_SCHEME, cell,
            err);
    }
    if (cell->global == HEFT__PKG_ORDERED_DICT || cell->global == HEFT__PKG_COUNTER ||
        heft__pk_is_name(pickle, cell, "set")) {
        return heft__value_emit_span(walk, HEFT_VALUE_TYPE, cell, err);
    }
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (is_builtin(pickle, cell, types[i])) {
            return heft__value_emit_span(walk, HEFT_VALUE_TYPE, &cell->as.object->items[1], err);
        }
    }
    return heft__value_object(walk, cell, NULL, err);
}

static heft_status visit_call(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    const heft__pk_cell *callee = &cell->as.object->items[0];
    if (heft__pk_is_module(walk->build, cell)) {
        return visit_module(walk, cell, err);
    }
    if (callee->kind == HEFT__PK_GLOBAL && callee->global == HEFT__PKG_INERT) {
        return heft__value_inert(walk, cell, err);
    }
    if (callee->kind == HEFT__PK_GLOBAL && is_builtin(walk->build->pickle, callee, "frozenset") &&
        cell->as.object->count == 2 && cell->as.object->items[1].kind == HEFT__PK_TUPLE) {
        return heft__value_set(walk, cell, cell->as.object->items[1].as.object,
                               HEFT_VALUE_FROZEN_SET, err);
    }
    return heft__value_object(walk, cell, NULL, err);
}

static heft_status visit_plain(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    const bool marked = cell->global == HEFT__PKG_INERT;
    heft__file_value part = {.kind = HEFT_VALUE_NONE, .at = cell->at};
    switch (cell->kind) {
    case HEFT__PK_BOOL:
    case HEFT__PK_INT:
        part.kind = cell->kind == HEFT__PK_BOOL ? HEFT_VALUE_BOOL : HEFT_VALUE_INTEGER;
        part.as.integer = cell->as.integer;
        break;
    case HEFT__PK_FLOAT:
        part.kind = HEFT_VALUE_FLOAT;
        part.as.real = cell->as.real;
        break;
    case HEFT__PK_BIGINT:
        return heft__value_emit_span(walk, HEFT_VALUE_BIG_INTEGER, cell, err);
    case HEFT__PK_TEXT:
        return heft__value_emit_span(walk, marked ? HEFT_VALUE_STRING : HEFT_VALUE_TEXT, cell, err);
    case HEFT__PK_BYTES:
        return heft__value_emit_span(walk, marked ? HEFT_VALUE_BYTE_ARRAY : HEFT_VALUE_BYTES, cell,
                                     err);
    default:
        break;
    }
    return heft__value_emit(walk, part, err);
}

static bool is_plain(const heft__pk_cell *cell)
{
    return cell->kind <= HEFT__PK_BYTES;
}

static heft_status visit(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    if (is_plain(cell)) {
        return visit_plain(walk, cell, err);
    }
    if (cell->kind == HEFT__PK_GLOBAL) {
        return visit_global(walk, cell, err);
    }
    heft__pk_object *object = cell->as.object;
    if (object->on_path) {
        return heft__fail_at(err, HEFT_FORMAT, heft__value_offset(walk, cell), "%s contains itself",
                             heft__pk_kind_name(cell));
    }
    if (object->walked) {
        return heft__value_emit_same(walk, cell, object->part, err);
    }
    if (heft__pk_is_tensor(cell)) {
        return heft__value_tensor(walk, cell, err);
    }
    switch (cell->kind) {
    case HEFT__PK_LIST:
        return heft__value_begin_items(walk, HEFT_VALUE_LIST, cell, object, err);
    case HEFT__PK_TUPLE:
        return heft__value_begin_items(walk, HEFT_VALUE_TUPLE, cell, object, err);
    case HEFT__PK_SET:
        return heft__value_begin_items(walk, object->class ? HEFT_VALUE_FROZEN_SET : HEFT_VALUE_SET,
                                       cell, object, err);
    case HEFT__PK_DICT:
        return visit_dict(walk, cell, err);
    case HEFT__PK_CALL:
        return visit_call(walk, cell, err);
    default:
        return heft__value_storage(walk, cell, err);
    }
}

/* The next of the values in the innermost frame. */
static heft_status step(heft__value_walk *walk, heft_error *err)
{
    heft__value_frame *frame = &walk->frames[walk->depth - 1];
    if (frame->first) {
        const heft__pk_cell *first = frame->first;
        frame->first = NULL;
        return visit(walk, first, err);
    }
    if (frame->next >= frame->count) {
        const heft__pk_cell *last = frame->last;
        frame->last = NULL;
        return last ? visit(walk, last, err) : leave(walk, err);
    }
    const heft__value_frame now = *frame; /* which visiting may move */
    const heft__pk_cell *cell = &now.items[now.next];
    if (now.kind == HEFT__FRAME_MEMBERS) {
        frame->next += 2;
        return visit_member(walk, &now, cell, err);
    }
    frame->next++;
    heft_status status = heft__value_path(
        walk, &now, now.kind == HEFT__FRAME_PAIRS ? &now.items[now.next & ~(uint32_t)1] : NULL,
        err);
    return status == HEFT_OK ? visit(walk, cell, err) : status;
}

static heft_status walk_all(heft__value_walk *walk, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const heft__pk_cell *top = &build->pickle->top;
    char class[128];
    if (heft__pk_is_opaque(top) && !heft__pk_is_module(build, top)) {
        heft__pk_class_name(build->pickle, top, class);
        return heft__fail_at(err, HEFT_UNSUPPORTED, heft__value_offset(walk, top),
                             "the file is a pickled object of class '%s'", class);
    }
    heft_status status = list_notes(walk, err);
    if (status == HEFT_OK) {
        status = visit(walk, top, err);
    }
    while (walk->depth && status == HEFT_OK) {
        status = step(walk, err);
    }
    return status == HEFT_OK ? heft__value_warn(walk, err) : status;
}

/* The parts refer to the pickle's bytes, which go away with it. */
static heft_status keep_span(heft__pickle_tensors *build, heft_error *err)
{
    heft__pickle *pickle = build->pickle;
    heft_status status = heft__pickle_take(pickle, pickle->end, pickle->origin, err);
    if (status == HEFT_OK) {
        build->file->value_span = (const uint8_t *)heft__arena_text(
            &build->file->arena, (const char *)pickle->bytes, pickle->end);
        build->file->value_origin = pickle->origin;
        status = build->file->value_span ? HEFT_OK : heft__fail_nomem(err, pickle->end);
    }
    return status;
}

heft_status heft__pickle_value_walk(heft__pickle_tensors *build, heft_error *err)
{
    heft__value_walk walk = {.build = build};
    heft__buffer_init(&walk.path, build->ctx);
    heft__buffer_init(&walk.names, build->ctx);
    heft__map_init(&walk.notes, build->ctx);
    heft__map_init(&walk.known, build->ctx);
    heft__map_init(&walk.class_names, build->ctx);
    heft_status status = walk_all(&walk, err);
    if (status == HEFT_OK) {
        status = keep_span(build, err);
    }
    if (status == HEFT_OK) {
        status = heft__pickle_tensors_storages(build, err);
    }
    heft__map_fini(&walk.class_names);
    heft__map_fini(&walk.known);
    heft__map_fini(&walk.notes);
    heft__buffer_fini(&walk.names);
    heft__buffer_fini(&walk.path);
    heft__free(build->ctx, walk.classes, walk.class_cap * sizeof *walk.classes);
    heft__free(build->ctx, walk.noted, walk.noted_cap * sizeof *walk.noted);
    heft__free(build->ctx, walk.frames, walk.cap * sizeof *walk.frames);
    return status;
}
