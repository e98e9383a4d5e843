/* pickle_parts.c - parts of a pickle's whole value: how they are written, named and read back, and objects of
 * classes that are not known, of which each class is told in one warning. */
#include "format/pickle_value.h"

#define CLASSES_SHOWN 10
#define NAME_BYTES 140  /* that a name takes in the table of names */
#define CLASS_BYTES 800 /* that a class takes in the table of classes and in warnings */

/* ---- parts ----------------------------------------------------------------------------------- */
heft_status heft__value_emit(heft__value_walk *walk, heft__file_value part, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const size_t before = build->part_cap;
    const uint64_t at = build->pickle->origin + part.at;
    if (build->part_count == UINT32_MAX) {
        return heft__fail_at(err, HEFT_LIMIT, at, "the value has more than %u parts", UINT32_MAX);
    }
    if (build->part_count == before) {
        heft_status status = heft__pickle_take(
            build->pickle, (before ? before : 16) * (uint64_t)sizeof part, at, err);
        if (status != HEFT_OK) {
            return status;
        }
        if (!heft__array_reserve(build->ctx, (void **)&build->parts, build->part_count,
                                 &build->part_cap, sizeof part)) {
            return heft__fail_nomem(err, sizeof part);
        }
    }
    build->parts[build->part_count++] = part;
    return HEFT_OK;
}

/* A part that is a run of bytes of the pickle. */
heft_status heft__value_emit_span(heft__value_walk *walk, heft_value_kind kind,
                                  const heft__pk_cell *cell, heft_error *err)
{
    return heft__value_emit(walk,
                            (heft__file_value){
                                .kind = (uint8_t)kind,
                                .at = cell->at,
                                .as.span = {cell->as.text.start, cell->as.text.length}
    },
                            err);
}

/* Text of its own, with room for `length` bytes; NULL: see *status. */
heft__value_text *heft__value_new_text(heft__value_walk *walk, const heft__pk_cell *cell,
                                       size_t length, heft_status *status, heft_error *err)
{
    const size_t bytes = sizeof(heft__value_text) + length + 1;
    *status = heft__pickle_take(walk->build->pickle, bytes, heft__value_offset(walk, cell), err);
    heft__value_text *text =
        *status == HEFT_OK ? heft__arena_words(&walk->build->file->arena, bytes) : NULL;
    if (text) {
        text->length = (uint32_t)length;
        text->bytes[length] = '\0';
    } else if (*status == HEFT_OK) {
        *status = heft__fail_nomem(err, bytes);
    }
    return text;
}

heft_status heft__value_emit_text(heft__value_walk *walk, heft_value_kind kind,
                                  const heft__pk_cell *cell, const heft__value_text *text,
                                  heft_error *err)
{
    return heft__value_emit(
        walk,
        (heft__file_value){
            .kind = (uint8_t)kind, .flags = HEFT__VALUE_OWN_TEXT, .at = cell->at, .as.text = text},
        err);
}

heft_status heft__value_emit_same(heft__value_walk *walk, const heft__pk_cell *cell, uint32_t part,
                                  heft_error *err)
{
    return heft__value_emit(
        walk,
        (heft__file_value){.kind = HEFT_VALUE_SAME, .at = cell->at, .as.refers = {.number = part}},
        err);
}

/* ---- paths ----------------------------------------------------------------------------------- */
/* The path of an item: ".key" or ".number" behind the container's. Names only serve to tell tensors
 * apart in messages: what would make them long is left out. */
heft_status heft__value_path(heft__value_walk *walk, const heft__value_frame *frame,
                             const heft__pk_cell *key, heft_error *err)
{
    const heft__pickle *pickle = walk->build->pickle;
    const uint64_t most = heft__limits(walk->build->ctx)->name_bytes;
    walk->is_nameless = frame->path_bytes == HEFT__VALUE_NO_PATH;
    if (walk->is_nameless) {
        return HEFT_OK;
    }
    walk->path.size = frame->path_bytes;
    if (key && key->kind == HEFT__PK_TEXT && key->as.text.length > most) {
        walk->is_nameless = true;
        return HEFT_OK;
    }
    if (frame->path_bytes) {
        heft__buffer_byte(&walk->path, '.');
    }
    (void)heft__pk_add_key(pickle, &walk->path, key, frame->next);
    walk->is_nameless = walk->path.size > most;
    return heft__buffer_check(&walk->path, err);
}

/* Take a name; *taken: another tensor has it, or there is no memory (NULL). */
static const char *take_name(heft__pickle_tensors *build, const char *name, bool *taken)
{
    size_t found = HEFT__MAP_NONE;
    if (name && !heft__map_put(&build->names, name, strlen(name), build->tensor_count, &found)) {
        name = NULL;
    }
    *taken = found != HEFT__MAP_NONE;
    return name;
}

heft_status heft__value_name(heft__value_walk *walk, uint64_t at, const char **name,
                             heft_error *err)
{
    static const char marks[] = "################"; /* a file may have a key "#3" itself */
    heft__pickle_tensors *build = walk->build;
    heft__arena *arena = &build->file->arena;
    const size_t length = walk->is_nameless ? 0 : walk->path.size;
    const char *path = length ? (const char *)walk->path.data : "";
    bool taken = walk->is_nameless || memchr(path, 0, length) ||
                 heft__utf8_invalid_at((const uint8_t *)path, length) != length;
    heft_status status = heft__pickle_take(build->pickle, length + NAME_BYTES, at, err);
    if (status != HEFT_OK) {
        return status;
    }
    const char *found = "";
    if (!taken) {
        found = take_name(build, heft__arena_text(arena, path, length), &taken);
    }
    for (int count = 1; found && taken && count < (int)sizeof marks; count++) {
        found = take_name(
            build, heft__arena_format(arena, "%.*s%zu", count, marks, build->tensor_count), &taken);
    }
    if (!found) {
        return heft__fail_nomem(err, length);
    }
    *name = found;
    return taken ? heft__fail_at(err, HEFT_FORMAT, at, "the name '%s' is taken", found) : HEFT_OK;
}

/* ---- objects that are not read --------------------------------------------------------------- */
void heft__value_class_name(const heft__pickle *pickle, const heft__pk_cell *cell, char name[128])
{
    const heft__pk_cell *from = cell->kind == HEFT__PK_CALL ? &cell->as.object->items[0] : cell;
    if (from->kind == HEFT__PK_GLOBAL && from->global != HEFT__PKG_UNKNOWN) {
        snprintf(name, 128, "%.*s", (int)(from->as.text.length < 100 ? from->as.text.length : 100),
                 heft__pk_text(pickle, from));
    } else if (from->kind == HEFT__PK_PERSID) {
        snprintf(name, 128, "a storage");
    } else {
        heft__pk_class_name(pickle, cell, name);
    }
}

/* The entry of a class. */
static heft_status find_class(heft__value_walk *walk, const heft__pk_cell *cell, const char *name,
                              heft__value_class **class, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const size_t length = strlen(name);
    size_t found = heft__map_get(&walk->class_names, name, length);
    heft_status status = HEFT_OK;
    if (found == HEFT__MAP_NONE) {
        status = heft__pickle_take(build->pickle, CLASS_BYTES, heft__value_offset(walk, cell), err);
        heft__value_text *text =
            status == HEFT_OK ? heft__value_new_text(walk, cell, length, &status, err) : NULL;
        if (!text) {
            return status;
        }
        memcpy(text->bytes, name, length);
        if (!heft__array_reserve(build->ctx, (void **)&walk->classes, walk->class_count,
                                 &walk->class_cap, sizeof *walk->classes) ||
            !heft__map_put(&walk->class_names, text->bytes, length, walk->class_count, &found)) {
            return heft__fail_nomem(err, sizeof *walk->classes);
        }
        found = walk->class_count++;
        walk->classes[found] = (heft__value_class){.name = text};
    }
    *class = &walk->classes[found];
    return status;
}

/* Note it, with its path if it is one of the first, and describe it by its class. */
heft_status heft__value_object(heft__value_walk *walk, const heft__pk_cell *cell, const char *maker,
                               heft_error *err)
{
    char name[128];
    heft__value_class *class = NULL;
    if (maker) {
        snprintf(name, sizeof name, "%s", maker);
    } else {
        heft__value_class_name(walk->build->pickle, cell, name);
    }
    heft_status status = find_class(walk, cell, name, &class, err);
    if (status == HEFT_OK) {
        status = heft__pk_leave_out(walk->build, &class->left, &walk->path, "", err);
    }
    if (status == HEFT_OK && cell->kind == HEFT__PK_CALL) {
        heft__value_remember(walk, cell);
    }
    return status == HEFT_OK
               ? heft__value_emit_text(walk, HEFT_VALUE_OBJECT, cell, class->name, err)
               : status;
}

/* A line for each class. */
heft_status heft__value_warn(heft__value_walk *walk, heft_error *err)
{
    heft__warnings *warnings = &walk->build->file->warnings;
    bool ok = true;
    for (size_t i = 0; i < walk->class_count && i < CLASSES_SHOWN && ok; i++) {
        const heft__value_class *class = &walk->classes[i];
        ok = heft__warn(warnings, "%llu object%s of '%s' %s not read, and no code is run: %s%s",
                        (unsigned long long)class->left.count, class->left.count > 1 ? "s" : "",
                        class->name->bytes, class->left.count > 1 ? "are" : "is", class->left.shown,
                        class->left.count > 3 ? ", ..." : "");
    }
    ok = ok && (walk->class_count <= CLASSES_SHOWN ||
                heft__warn(warnings, "objects of %zu further classes are not read",
                           walk->class_count - CLASSES_SHOWN));
    return ok ? HEFT_OK : heft__fail_nomem(err, 0);
}

/* ---- reading the parts ----------------------------------------------------------------------- */
static void fill_text(const heft__file *file, const heft__file_value *part, heft_value *value)
{
    if (part->flags & HEFT__VALUE_OWN_TEXT) {
        value->text = part->as.text->bytes;
        value->length = part->as.text->length;
    } else {
        value->text = (const char *)file->value_span + part->as.span.start;
        value->length = part->as.span.length;
    }
}

bool heft__file_value_at(const heft__file *file, size_t i, heft_value *value)
{
    if (i >= file->value_count) {
        return false;
    }
    const heft__file_value *part = &file->values[i];
    value->kind = (heft_value_kind)part->kind;
    value->offset = file->value_origin + part->at;
    value->attributes = part->flags & HEFT__VALUE_ATTRIBUTES;
    value->parameter = part->flags & HEFT__VALUE_PARAMETER;
    value->requires_grad = part->flags & HEFT__VALUE_REQUIRES_GRAD;
    if (value->kind == HEFT_VALUE_BOOL || value->kind == HEFT_VALUE_INTEGER) {
        value->integer = part->as.integer;
    } else if (value->kind == HEFT_VALUE_FLOAT) {
        value->real = part->as.real;
    } else if (value->kind == HEFT_VALUE_COMPLEX) {
        value->real = part->as.complex[0];
        value->imaginary = part->as.complex[1];
    } else if (value->kind == HEFT_VALUE_TENSOR || value->kind == HEFT_VALUE_STORAGE ||
               value->kind == HEFT_VALUE_SAME || value->kind >= HEFT_VALUE_LIST) {
        value->number = part->as.refers.number;
        value->count = part->as.refers.count;
    } else if (value->kind > HEFT_VALUE_NONE) {
        fill_text(file, part, value);
    }
    return true;
}
