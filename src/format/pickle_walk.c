/* pickle_walk.c - finding the tensors in a pickle's value, and naming them.
 *
 * The value is walked through dicts, lists and tuples. A tensor's name is its path
 * ("encoder.layer.0.weight", list items by number); what is no tensor is listed as skipped.
 *
 *   {'epoch': 3, 'state_dict': {'w': T}, 'optimizer': {...}}   ->   tensor w; skipped: epoch,
 * optimizer. ...
 *
 * Where the top level is a dict with an item state_dict, model_state_dict, model, module ... that is
 * a dict of tensors, names begin there. A pickled module has the names of its state dict. Any other
 * object of an unknown class is skipped; tensors in it have no name, and are counted. Values may be
 * shared: each path is followed, but what holds no tensor only once, and within a bound; a value
 * that contains itself is an error. No recursion. Source: docs/formats/pickle.md [5]. */
#include "format/pickle.h"

#define SKIPPED_MOST 10000
#define STEPS_BASE ((uint64_t)1 << 20)
#define STEPS_PER_BYTE 2
#define KEY_BYTES 104 /* what a key takes in a hash table that is being enlarged */

/* ---- names ----------------------------------------------------------------------------------- */
static heft_status check_name(heft__pickle_tensors *build, const heft__buffer *path, uint64_t at,
                              heft_error *err)
{
    const heft_limits *limits = heft__limits(build->ctx);
    const char *text = (const char *)path->data;
    if (path->size > limits->name_bytes) {
        return heft__fail_at(err, HEFT_LIMIT, at,
                             "tensor name has %zu bytes, the limit is %llu (limit name_bytes)",
                             path->size, (unsigned long long)limits->name_bytes);
    }
    if (path->size && memchr(text, 0, path->size)) {
        return heft__fail_at(err, HEFT_FORMAT, at, "tensor name '%.60s\\0...' contains a NUL",
                             text);
    }
    if (path->size && heft__utf8_invalid_at(path->data, path->size) != path->size) {
        return heft__fail_at(err, HEFT_FORMAT, at, "tensor name is not valid UTF-8");
    }
    if (build->tensor_count >= limits->tensors) {
        return heft__fail_at(err, HEFT_LIMIT, at, "more than %llu tensors (limit tensors)",
                             (unsigned long long)limits->tensors);
    }
    return heft__pickle_take(build->pickle, path->size + 1, at, err);
}

#define SHOWN_MOST 3

heft_status heft__pk_leave_out(heft__pickle_tensors *build, struct heft__pk_left *left,
                               const heft__buffer *path, const char *what, heft_error *err)
{
    if (left->count++ >= SHOWN_MOST) {
        return HEFT_OK;
    }
    const int length = path->size < 100 ? (int)path->size : 100;
    left->shown = heft__arena_format(&build->file->arena, "%s%s'%.*s'%s%s%s",
                                     left->shown ? left->shown : "", left->shown ? ", " : "",
                                     length, path->size ? (const char *)path->data : "",
                                     *what ? " (" : "", what, *what ? ")" : "");
    return left->shown ? HEFT_OK : heft__fail_nomem(err, path->size);
}

static heft_status add_tensor(heft__pickle_tensors *build, const heft__pk_cell *cell,
                              const heft__buffer *path, heft_error *err)
{
    const uint64_t at = build->pickle->origin + cell->at;
    heft__file_tensor tensor = {0};
    size_t found;
    heft_status status = check_name(build, path, at, err);
    if (status != HEFT_OK) {
        return status;
    }
    const char *name = heft__arena_text(&build->file->arena,
                                        path->size ? (const char *)path->data : "", path->size);
    if (!name) {
        return heft__fail_nomem(err, path->size);
    }
    if (cell->kind == HEFT__PK_PERSID) {
        tensor = *heft__pk_find_known(build, cell->as.object->items[0].as.integer);
    } else {
        status = heft__pk_build_tensor(build, cell, &tensor, err);
    }
    tensor.name = name;
    if (status == HEFT_OK) {
        status = heft__quota_take(build->file->quota, heft__quota_weight(tensor.rank), at, err);
    }
    if (status == HEFT_OK &&
        !heft__map_put(&build->names, name, path->size, build->tensor_count, &found)) {
        return heft__fail_nomem(err, path->size);
    }
    if (status == HEFT_OK && found != HEFT__MAP_NONE) {
        status = heft__fail_at(err, HEFT_FORMAT, at, "duplicate tensor name, first at byte %llu",
                               (unsigned long long)build->tensors[found].item_offset);
    }
    if (status == HEFT_OK &&
        !heft__array_reserve(build->ctx, (void **)&build->tensors, build->tensor_count,
                             &build->tensor_cap, sizeof tensor)) {
        return heft__fail_nomem(err, sizeof tensor);
    }
    if (status == HEFT_OK) {
        build->tensors[build->tensor_count++] = tensor;
        cell->as.object->peeked = true; /* it is not hidden */
    }
    return heft__add_item(status, err, name);
}

static heft_status add_skipped(heft__pickle_tensors *build, const heft__buffer *path, uint64_t at,
                               heft_error *err)
{
    if (build->skipped_count == SKIPPED_MOST) {
        build->skipped_more = true;
        return HEFT_OK;
    }
    heft_status status =
        heft__pickle_take(build->pickle, path->size + 1 + 2 * sizeof(char *), at, err);
    if (status != HEFT_OK) {
        return status;
    }
    const char *text = heft__arena_text(&build->file->arena,
                                        path->size ? (const char *)path->data : "", path->size);
    if (!text || !heft__array_reserve(build->ctx, (void **)&build->skipped, build->skipped_count,
                                      &build->skipped_cap, sizeof *build->skipped)) {
        return heft__fail_nomem(err, path->size);
    }
    build->skipped[build->skipped_count++] = text;
    return HEFT_OK;
}

/* A tensor of a kind that is not read. */
static heft_status add_other(heft__pickle_tensors *build, const heft__pk_cell *cell,
                             const heft__buffer *path, const char *maker, heft_error *err)
{
    const uint64_t at = build->pickle->origin + cell->at;
    heft_status status = check_name(build, path, at, err);
    if (status == HEFT_OK && build->other.count == 0) {
        build->first_other_at = at;
        build->first_other = heft__arena_text(
            &build->file->arena, path->size ? (const char *)path->data : "", path->size);
        status = build->first_other ? HEFT_OK : heft__fail_nomem(err, path->size);
    }
    if (status == HEFT_OK) {
        status = heft__pk_leave_out(build, &build->other, path, maker, err);
    }
    return status == HEFT_OK ? add_skipped(build, path, at, err) : status;
}

/* ---- dicts ----------------------------------------------------------------------------------- */
/* A key that occurs twice stays at its first place and has its last value, as in Python. */
static heft_status make_distinct(heft__pickle_tensors *build, heft__pk_object *dict,
                                 heft_error *err)
{
    heft__map texts, integers;
    uint32_t kept = 0;
    heft_status status = HEFT_OK;
    if (dict->distinct || dict->count <= 2) {
        return HEFT_OK;
    }
    const uint64_t bytes = (uint64_t)dict->count / 2 * KEY_BYTES;
    status = heft__pickle_take(build->pickle, bytes, build->pickle->origin + dict->at, err);
    if (status != HEFT_OK) {
        return status;
    }
    build->pickle->used_bytes -= bytes; /* it is given back at the end */
    heft__map_init(&texts, build->ctx);
    heft__map_init(&integers, build->ctx);
    for (uint32_t i = 0; i < dict->count && status == HEFT_OK; i += 2) {
        size_t found = HEFT__MAP_NONE;
        dict->items[kept] = dict->items[i];
        dict->items[kept + 1] = dict->items[i + 1];
        const heft__pk_cell *key = &dict->items[kept]; /* stays where it is: the map borrows it */
        bool put = true;
        if (key->kind == HEFT__PK_TEXT) {
            put = heft__map_put(&texts, heft__pk_text(build->pickle, key), key->as.text.length,
                                kept, &found);
        } else if (key->kind == HEFT__PK_INT) {
            put = heft__map_put(&integers, (const char *)&key->as.integer, sizeof key->as.integer,
                                kept, &found);
        }
        if (!put) {
            status = heft__fail_nomem(err, sizeof *key);
        } else if (found != HEFT__MAP_NONE) {
            dict->items[found + 1] = dict->items[i + 1];
        } else {
            kept += 2;
        }
    }
    heft__map_fini(&texts);
    heft__map_fini(&integers);
    if (status == HEFT_OK) {
        dict->count = kept;
        dict->distinct = true;
    }
    return status;
}

/* ---- the walk -------------------------------------------------------------------------------- */
struct frame {
    heft__pk_object *object;
    bool is_dict;
    bool dotted;                    /* has a path of its own, which its items' begin with */
    bool hidden;                    /* its items have no names: tensors are only counted */
    const heft__pk_object *without; /* a dict's keys that are passed over; NULL: none */
    uint32_t next;
    size_t path_bytes; /* of the container's own path */
};

struct walk {
    heft__pickle_tensors *build;
    struct frame *frames;
    size_t depth, cap;
    heft__buffer path;
    bool unnamed; /* the key of the value being visited is no name */
    bool listing; /* what lies beside the state dict: nothing is built, all is listed as skipped */
};

static bool is_container(const heft__pk_cell *cell)
{
    return cell->kind == HEFT__PK_DICT || cell->kind == HEFT__PK_LIST ||
           cell->kind == HEFT__PK_TUPLE;
}

bool heft__pk_is_tensor_here(const heft__pickle_tensors *build, const heft__pk_cell *cell)
{
    if (build->pickle->ids == HEFT__PK_IDS_TAR && cell->kind == HEFT__PK_PERSID) {
        const heft__file_tensor *known =
            heft__pk_find_known(build, cell->as.object->items[0].as.integer);
        return known && known->dtype != HEFT_DTYPE_NONE;
    }
    return heft__pk_is_tensor(cell);
}

bool heft__pk_add_key(const heft__pickle *pickle, heft__buffer *path, const heft__pk_cell *key,
                      uint32_t number)
{
    if (!key) {
        heft__buffer_format(path, "%u", number);
    } else if (key->kind == HEFT__PK_TEXT) {
        heft__buffer_append(path, heft__pk_text(pickle, key), key->as.text.length);
    } else if (key->kind == HEFT__PK_INT) {
        heft__buffer_format(path, "%lld", (long long)key->as.integer);
    } else {
        heft__buffer_format(path, "<%s>", heft__pk_kind_name(key));
        return false;
    }
    return true;
}

/* Add ".key" or ".number" to the path of the container. */
static heft_status extend_path(struct walk *walk, const struct frame *frame,
                               const heft__pk_cell *key, heft_error *err)
{
    const heft__pickle *pickle = walk->build->pickle;
    walk->path.size = frame->path_bytes;
    if (frame->dotted) {
        heft__buffer_byte(&walk->path, '.');
    }
    walk->unnamed = !heft__pk_add_key(pickle, &walk->path, key, frame->next) && !walk->listing;
    return heft__buffer_check(&walk->path, err);
}

static heft_status push_frame(struct walk *walk, const heft__pk_cell *cell, bool hidden,
                              heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    heft__pk_object *object = cell->as.object;
    const bool is_dict = cell->kind == HEFT__PK_DICT;
    if (walk->depth >= heft__limits(build->ctx)->pickle_depth) {
        return heft__fail_at(err, HEFT_LIMIT, build->pickle->origin + cell->at,
                             "more than %u nested containers (limit pickle_depth)",
                             heft__limits(build->ctx)->pickle_depth);
    }
    heft_status status = is_dict && !hidden ? make_distinct(build, object, err) : HEFT_OK;
    if (status == HEFT_OK && !heft__array_reserve(build->ctx, (void **)&walk->frames, walk->depth,
                                                  &walk->cap, sizeof *walk->frames)) {
        status = heft__fail_nomem(err, sizeof *walk->frames);
    }
    if (status == HEFT_OK) {
        object->on_path = !hidden;
        walk->frames[walk->depth] = (struct frame){.object = object,
                                                   .is_dict = is_dict && !hidden,
                                                   .dotted = walk->depth > 0 || walk->listing,
                                                   .hidden = hidden,
                                                   .path_bytes = walk->path.size};
        walk->depth++;
    }
    return status;
}

static heft_status enter(struct walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const uint64_t at = build->pickle->origin + cell->at;
    heft__pk_object *object = cell->as.object;
    if (object->on_path && !walk->listing) {
        return heft__fail_at(err, HEFT_FORMAT, at, "%s contains itself", heft__pk_kind_name(cell));
    }
    if (object->on_path || (object->walked && !object->has_tensor && object->count)) {
        return add_skipped(build, &walk->path, at, err); /* nothing new in it */
    }
    return push_frame(walk, cell, false, err);
}

static void leave(struct walk *walk)
{
    heft__pk_object *object = walk->frames[--walk->depth].object;
    if (walk->frames[walk->depth].hidden) {
        return;
    }
    object->on_path = false;
    object->walked = true;
    if (object->has_tensor && walk->depth) {
        walk->frames[walk->depth - 1].object->has_tensor = true;
    }
}

/* ---- what no name leads to ------------------------------------------------------------------- */
heft_status heft__pk_step(heft__pickle_tensors *build, uint64_t at, heft_error *err)
{
    if (++build->steps > STEPS_BASE + STEPS_PER_BYTE * (uint64_t)build->pickle->length) {
        return heft__fail_at(err, HEFT_LIMIT, at, "shared values expand to more than %llu",
                             (unsigned long long)build->steps);
    }
    return HEFT_OK;
}

/* A value without a name: tensors in it are counted, each once. */
static heft_status visit_hidden(struct walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const bool tensor = heft__pk_is_tensor_here(build, cell);
    heft_status status = heft__pk_step(build, build->pickle->origin + cell->at, err);
    if (status != HEFT_OK || (!tensor && !is_container(cell) && cell->kind != HEFT__PK_SET &&
                              cell->kind != HEFT__PK_CALL)) {
        return status;
    }
    if (cell->as.object->peeked) {
        return HEFT_OK;
    }
    cell->as.object->peeked = true;
    build->hidden_tensors += tensor;
    return tensor ? HEFT_OK : push_frame(walk, cell, true, err);
}

const char *const heft__pk_module_parts[] = {"_parameters", "_buffers", "_modules"};

bool heft__pk_is_module(heft__pickle_tensors *build, const heft__pk_cell *cell)
{
    if (!heft__pk_is_opaque(cell) || !cell->as.object->built) {
        return false;
    }
    build->steps += cell->as.object->items[2].as.object->count;
    for (size_t i = 0; i < HEFT__PK_MODULE_PARTS; i++) {
        const heft__pk_cell *part = heft__pk_find_item(
            build->pickle, cell->as.object->items[2].as.object, heft__pk_module_parts[i]);
        if (!part || part->kind != HEFT__PK_DICT) {
            return false;
        }
    }
    return true;
}

/* A set, or a call of `set` with a list. */
const heft__pk_object *heft__pk_transient_buffers(const heft__pickle_tensors *build,
                                                  const heft__pk_object *attributes)
{
    const heft__pk_cell *found =
        heft__pk_find_item(build->pickle, attributes, "_non_persistent_buffers_set");
    if (found && found->kind == HEFT__PK_CALL &&
        found->as.object->items[1].kind == HEFT__PK_TUPLE &&
        found->as.object->items[1].as.object->count == 1) {
        found = &found->as.object->items[1].as.object->items[0];
    }
    return found && (found->kind == HEFT__PK_SET || found->kind == HEFT__PK_LIST) ? found->as.object
                                                                                  : NULL;
}

/* Names of a module: its parameters, its buffers, those of its modules; the last pushed is walked
 * first. */
static heft_status enter_module(struct walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const heft__pk_object *attributes = cell->as.object->items[2].as.object;
    const bool dotted = walk->depth > 0 || walk->listing;
    heft_status status = HEFT_OK;
    if (!build->module_class && !walk->listing) {
        char class[128];
        heft__pk_class_name(build->pickle, cell, class);
        build->module_class = heft__arena_text(&build->file->arena, class, strlen(class));
        status = build->module_class ? HEFT_OK : heft__fail_nomem(err, strlen(class));
    }
    for (size_t i = HEFT__PK_MODULE_PARTS; i-- > 0 && status == HEFT_OK;) {
        const heft__pk_cell *part =
            heft__pk_find_item(build->pickle, attributes, heft__pk_module_parts[i]);
        const size_t depth = walk->depth;
        status = enter(walk, part, err);
        if (status == HEFT_OK && walk->depth > depth) {
            walk->frames[depth].dotted = dotted;
            walk->frames[depth].without =
                i == 1 ? heft__pk_transient_buffers(build, attributes) : NULL;
        }
    }
    return status;
}

/* An object of a class that heft does not know. */
static heft_status visit_opaque(struct walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    char class[128] = "";
    if (build->opaque.count < SHOWN_MOST) {
        heft__pk_class_name(build->pickle, cell, class);
    }
    heft_status status = heft__pk_leave_out(build, &build->opaque, &walk->path, class, err);
    if (status == HEFT_OK) {
        status = add_skipped(build, &walk->path, build->pickle->origin + cell->at, err);
    }
    return status == HEFT_OK && !walk->listing ? visit_hidden(walk, cell, err) : status;
}

/* ---- the walk -------------------------------------------------------------------------------- */
/* One value at the path that was just built. */
static heft_status visit(struct walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const uint64_t at = build->pickle->origin + cell->at;
    char maker[128];
    heft_status status = heft__pk_step(build, at, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (walk->unnamed) {
        status = add_skipped(build, &walk->path, at, err);
        return status == HEFT_OK ? visit_hidden(walk, cell, err) : status;
    }
    if (heft__pk_is_tensor_here(build, cell)) {
        if (walk->depth) {
            walk->frames[walk->depth - 1].object->has_tensor = true;
        }
        return walk->listing ? add_skipped(build, &walk->path, at, err)
               : heft__pk_other_kind(build->pickle, cell, maker)
                   ? add_other(build, cell, &walk->path, maker, err)
                   : add_tensor(build, cell, &walk->path, err);
    }
    if (is_container(cell)) {
        return enter(walk, cell, err);
    }
    return heft__pk_is_module(build, cell) ? enter_module(walk, cell, err)
           : heft__pk_is_opaque(cell)      ? visit_opaque(walk, cell, err)
                                           : add_skipped(build, &walk->path, at, err);
}

bool heft__pk_is_passed_over(heft__pickle_tensors *build, const heft__pk_object *without,
                             const heft__pk_cell *key)
{
    const heft__pickle *pickle = build->pickle;
    bool found = false;
    build->steps += without ? without->count : 0;
    for (uint32_t i = 0; without && i < without->count && !found; i++) {
        const heft__pk_cell *name = &without->items[i];
        found = key->kind == HEFT__PK_TEXT && name->kind == HEFT__PK_TEXT &&
                key->as.text.length == name->as.text.length &&
                memcmp(heft__pk_text(pickle, key), heft__pk_text(pickle, name),
                       key->as.text.length) == 0;
    }
    return found;
}

/* Walk from the top frame down to its end. */
static heft_status walk_frames(struct walk *walk, heft_error *err)
{
    heft_status status = HEFT_OK;
    while (walk->depth && status == HEFT_OK) {
        struct frame *frame = &walk->frames[walk->depth - 1];
        if (frame->next >= frame->object->count) {
            leave(walk);
            continue;
        }
        const heft__pk_cell *value = &frame->object->items[frame->next + (frame->is_dict ? 1 : 0)];
        if (frame->hidden) {
            frame->next++;
            status = visit_hidden(walk, value, err);
            continue;
        }
        status = extend_path(walk, frame, frame->is_dict ? value - 1 : NULL, err);
        frame->next += frame->is_dict ? 2 : 1;
        if (status == HEFT_OK) {
            status =
                frame->is_dict && heft__pk_is_passed_over(walk->build, frame->without, value - 1)
                    ? heft__pk_step(walk->build, walk->build->pickle->origin + value->at, err)
                    : visit(walk, value, err);
        }
    }
    return status;
}

/* Tensors that a dict holds itself; *dotted: one of their keys has a dot, as a state dict's have. */
static size_t count_tensors(heft__pickle_tensors *build, const heft__pk_object *dict, bool *dotted)
{
    size_t count = 0;
    build->steps += dict->count;
    *dotted = false;
    for (uint32_t i = 0; i + 1 < dict->count; i += 2) {
        const heft__pk_cell *key = &dict->items[i];
        if (heft__pk_is_tensor_here(build, &dict->items[i + 1])) {
            count++;
            *dotted =
                *dotted || (key->kind == HEFT__PK_TEXT &&
                            memchr(heft__pk_text(build->pickle, key), '.', key->as.text.length));
        }
    }
    return count;
}

/* Whether names are to begin below this item of a dict that has `beside` tensors itself: a scalar or
 * a random state beside a state dict does not make it one. */
static bool is_state_dict(heft__pickle_tensors *build, const heft__pk_cell *value, size_t beside)
{
    bool dotted = false;
    const size_t count =
        value->kind == HEFT__PK_DICT ? count_tensors(build, value->as.object, &dotted) : 0;
    return (count > 0 && beside == 0) || (dotted && count > beside) ||
           (beside == 0 && heft__pk_is_module(build, value));
}

/* The state dict of a training checkpoint, or NULL: then the names begin at the top. */
static const heft__pk_cell *find_state_dict(heft__pickle_tensors *build,
                                            const heft__pk_object *dict)
{
    static const char *const keys[] = {"state_dict", "model_state_dict", "model",
                                       "module",     "model_state",      "net",
                                       "network",    "weights",          "params"};
    bool dotted = false;
    const size_t beside = count_tensors(build, dict, &dotted);
    for (size_t k = 0; k < sizeof keys / sizeof keys[0] && !dotted; k++) {
        for (uint32_t i = 0; i + 1 < dict->count; i += 2) {
            const heft__pk_cell *value = &dict->items[i + 1];
            if (heft__pk_is_text(build->pickle, &dict->items[i], keys[k]) &&
                is_state_dict(build, value, beside)) {
                return value;
            }
        }
    }
    return NULL;
}

/* Tensors beside the state dict are not an optimizer's, which lie deeper: they might be wanted. */
static heft_status note_beside(struct walk *walk, const heft__pk_cell *value, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    bool dotted = false;
    const bool wanted =
        heft__pk_is_tensor_here(build, value) || heft__pk_is_module(build, value) ||
        (value->kind == HEFT__PK_DICT && count_tensors(build, value->as.object, &dotted) > 0);
    return wanted ? heft__pk_leave_out(build, &build->beside, &walk->path, "", err) : HEFT_OK;
}

/* List what stands beside the state dict. */
static heft_status list_others(struct walk *walk, const heft__pk_object *dict,
                               const heft__pk_cell *state_dict, heft_error *err)
{
    const struct frame root = {0};
    heft_status status = HEFT_OK;
    walk->listing = true;
    for (uint32_t i = 0; i + 1 < dict->count && status == HEFT_OK; i += 2) {
        if (&dict->items[i + 1] == state_dict) {
            continue;
        }
        status = extend_path(walk, &root, &dict->items[i], err);
        if (status == HEFT_OK) {
            status = note_beside(walk, &dict->items[i + 1], err);
        }
        if (status == HEFT_OK) {
            status = visit(walk, &dict->items[i + 1], err);
        }
        if (status == HEFT_OK) {
            status = walk_frames(walk, err);
        }
    }
    return status;
}

/* Nothing was found that can be read, but there is something. */
static heft_status judge_nothing(heft__pickle_tensors *build, const heft__pk_cell *top,
                                 heft_error *err)
{
    const uint64_t at = build->pickle->origin + top->at;
    char class[128];
    if (heft__pk_is_opaque(top) && !heft__pk_is_module(build, top)) {
        heft__pk_class_name(build->pickle, top, class);
        return heft__fail_at(err, HEFT_UNSUPPORTED, at,
                             "the file is a pickled object of class '%s', expected a dict of "
                             "tensors",
                             class);
    }
    if (build->other.count) {
        heft__fail_at(err, HEFT_UNSUPPORTED, build->first_other_at,
                      "no tensor can be read: %llu are of unsupported kinds: %s",
                      (unsigned long long)build->other.count, build->other.shown);
        return heft__add_item(HEFT_UNSUPPORTED, err, build->first_other);
    }
    if (build->hidden_tensors) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, at,
                             "no tensor can be read: %llu are inside objects of unknown classes or "
                             "have no name: %s",
                             (unsigned long long)build->hidden_tensors,
                             build->opaque.shown ? build->opaque.shown
                                                 : "dict keys that cannot be names");
    }
    return top->kind == HEFT__PK_LIST || top->kind == HEFT__PK_TUPLE
               ? heft__fail_at(err, HEFT_UNSUPPORTED, at, "top-level value is %s without tensors",
                               heft__pk_kind_name(top))
               : HEFT_OK;
}

static heft_status walk_top(struct walk *walk, const heft__pk_cell *top, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const heft__pk_cell *state_dict = NULL;
    heft_status status = HEFT_OK;
    if (!is_container(top) && !heft__pk_is_tensor_here(build, top) && !heft__pk_is_opaque(top)) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, build->pickle->origin + top->at,
                             "top-level value is %s, expected a dict of tensors",
                             heft__pk_kind_name(top));
    }
    if (top->kind == HEFT__PK_DICT) {
        status = make_distinct(build, top->as.object, err);
        state_dict = status == HEFT_OK ? find_state_dict(build, top->as.object) : NULL;
    }
    if (status == HEFT_OK) {
        status = visit(walk, state_dict ? state_dict : top, err);
    }
    if (status == HEFT_OK) {
        status = walk_frames(walk, err);
    }
    if (status == HEFT_OK && top->kind == HEFT__PK_DICT) {
        const heft__pk_cell *root = state_dict ? state_dict : top;
        status = heft__pickle_modules(build->pickle, root->as.object, build->file, err);
    }
    if (status == HEFT_OK && state_dict) {
        status = list_others(walk, top->as.object, state_dict, err);
    }
    return status == HEFT_OK && build->tensor_count == 0 ? judge_nothing(build, top, err) : status;
}

heft_status heft__pickle_tensors_walk(heft__pickle_tensors *build, heft_error *err)
{
    struct walk walk = {.build = build};
    if (build->file->whole_value) {
        return heft__pickle_value_walk(build, err);
    }
    heft__buffer_init(&walk.path, build->ctx);
    heft_status status = walk_top(&walk, &build->pickle->top, err);
    if (status == HEFT_OK) {
        status = heft__pickle_tensors_storages(build, err);
    }
    heft__buffer_fini(&walk.path);
    heft__free(build->ctx, walk.frames, walk.cap * sizeof *walk.frames);
    return status;
}

/* ---- begin and end --------------------------------------------------------------------------- */
void heft__pickle_tensors_init(heft__pickle_tensors *build, heft_ctx *ctx, heft__file *file,
                               heft__pickle *pickle, heft__pk_place_fn place, void *place_user)
{
    *build = (heft__pickle_tensors){
        .ctx = ctx, .file = file, .pickle = pickle, .place = place, .place_user = place_user};
    heft__map_init(&build->keys, ctx);
    heft__map_init(&build->names, ctx);
}

void heft__pickle_tensors_fini(heft__pickle_tensors *build)
{
    if (!build->ctx) {
        return;
    }
    heft__map_fini(&build->keys);
    heft__map_fini(&build->names);
    heft__free(build->ctx, build->roots, build->root_cap * sizeof *build->roots);
    heft__free(build->ctx, build->storages, build->storage_cap * sizeof *build->storages);
    heft__free(build->ctx, build->tensors, build->tensor_cap * sizeof *build->tensors);
    heft__free(build->ctx, build->skipped, build->skipped_cap * sizeof *build->skipped);
    heft__free(build->ctx, build->parts, build->part_cap * sizeof *build->parts);
    *build = (heft__pickle_tensors){0};
}

static bool hand_over(heft__arena *arena, void **to, const void *from, size_t count, size_t size)
{
    *to = heft__arena_array(arena, count, size);
    if (*to && count) {
        memcpy(*to, from, count * size);
    }
    return *to != NULL;
}

/* One line for each way in which something of the file is not read. */
static bool warn_of_left(const heft__pickle_tensors *build)
{
    heft__warnings *warnings = &build->file->warnings;
    const struct heft__pk_left *opaque = &build->opaque, *other = &build->other,
                               *beside = &build->beside;
    return (!build->module_class || heft__warn(warnings,
                                               "the file is a pickled module of class '%s': "
                                               "tensors have the names of its state dict",
                                               build->module_class)) &&
           (!other->count ||
            heft__warn(warnings, "%llu tensor%s of unsupported kinds %s skipped: %s%s",
                       (unsigned long long)other->count, other->count > 1 ? "s" : "",
                       other->count > 1 ? "are" : "is", other->shown,
                       other->count > SHOWN_MOST ? ", ..." : "")) &&
           (!build->hidden_tensors ||
            heft__warn(warnings, "%llu tensors inside objects of unknown classes are skipped",
                       (unsigned long long)build->hidden_tensors)) &&
           (!beside->count ||
            heft__warn(warnings, "tensors outside the state dict are skipped: %s%s", beside->shown,
                       beside->count > SHOWN_MOST ? ", ..." : "")) &&
           (!opaque->count ||
            heft__warn(warnings,
                       "%llu object%s of unknown class%s skipped, and no code is run: %s%s",
                       (unsigned long long)opaque->count, opaque->count > 1 ? "s" : "",
                       opaque->count > 1 ? "es are" : " is", opaque->shown,
                       opaque->count > SHOWN_MOST ? ", ..." : ""));
}

heft_status heft__pickle_tensors_publish(heft__pickle_tensors *build, heft_error *err)
{
    heft__file *file = build->file;
    heft__arena *arena = &file->arena;
    if (!hand_over(arena, (void **)&file->tensors, build->tensors, build->tensor_count,
                   sizeof *file->tensors) ||
        !hand_over(arena, (void **)&file->storages, build->storages, build->storage_count,
                   sizeof *file->storages) ||
        !hand_over(arena, (void **)&file->values, build->parts, build->part_count,
                   sizeof *file->values) ||
        !hand_over(arena, (void **)&file->skipped, build->skipped, build->skipped_count,
                   sizeof *file->skipped)) {
        return heft__fail_nomem(err, build->tensor_count * sizeof *file->tensors);
    }
    file->tensor_count = build->tensor_count;
    file->storage_count = build->storage_count;
    file->value_count = build->part_count;
    file->skipped_count = build->skipped_count;
    if (!warn_of_left(build)) {
        return heft__fail_nomem(err, 0);
    }
    if (build->skipped_more &&
        !heft__warn(&file->warnings,
                    "more than %d values are not tensors; only the first %d are listed",
                    SKIPPED_MOST, SKIPPED_MOST)) {
        return heft__fail_nomem(err, 0);
    }
    return HEFT_OK;
}
