/* pickle_walk.c - finding the tensors in a pickle's value, and naming them.
 *
 * The value is walked through dicts, lists and tuples. A tensor's name is its path
 * ("encoder.layer.0.weight", list items by number); what is no tensor is listed as skipped.
 *
 *   {'epoch': 3, 'state_dict': {'w': T}, 'optimizer': {...}}   ->   tensor w; skipped: epoch,
 * optimizer. ...
 *
 * Where the top level is a dict that holds no tensors itself but one of state_dict,
 * model_state_dict, model or module that does, names begin there. Values may be shared: each path
 * is followed, but what holds no tensor only once, and within a bound; a value that contains itself
 * is an error. No recursion. Source: docs/formats/pickle.md [5]. */
#include "format/pickle.h"

#define SKIPPED_MOST 10000
#define RESULT_BASE                                                                                \
    ((uint64_t)16 << 20)   /* bytes of names and shapes that any file may have ...                 \
                            */
#define RESULT_PER_BYTE 64 /* ... and more for each byte of its pickle */
#define STEPS_BASE ((uint64_t)1 << 20)
#define STEPS_PER_BYTE 8

/* ---- names ----------------------------------------------------------------------------------- */
static heft_status account(heft__pickle_tensors *build, uint64_t bytes, uint64_t at,
                           heft_error *err)
{
    build->used_bytes += bytes;
    if (build->used_bytes > RESULT_BASE + RESULT_PER_BYTE * (uint64_t)build->pickle->length) {
        return heft__fail_at(err, HEFT_LIMIT, at,
                             "names and shapes take more than %llu bytes, the pickle has %zu",
                             (unsigned long long)build->used_bytes, build->pickle->length);
    }
    return HEFT_OK;
}

static heft_status check_name(heft__pickle_tensors *build, const heft__buffer *path, uint64_t at,
                              heft_error *err)
{
    const heft_limits *limits = heft__limits(build->ctx);
    const char *text = (const char *)path->data;
    if (path->size > limits->name_bytes) {
        return heft__fail_at(err, HEFT_LIMIT, at, "tensor name has %zu bytes, the limit is %llu",
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
        return heft__fail_at(err, HEFT_LIMIT, at, "more than %llu tensors",
                             (unsigned long long)limits->tensors);
    }
    return account(build, path->size + 1 + sizeof(heft__file_tensor) + 64, at, err);
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
    heft_status status = account(build, path->size + 1 + sizeof(char *), at, err);
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
    bool dotted; /* has a path of its own, which its items' begin with */
    uint32_t next;
    size_t path_bytes; /* of the container's own path */
};

struct walk {
    heft__pickle_tensors *build;
    struct frame *frames;
    size_t depth, cap;
    heft__buffer path;
    bool listing; /* what lies beside the state dict: nothing is built, all is listed as skipped */
};

static bool is_container(const heft__pk_cell *cell)
{
    return cell->kind == HEFT__PK_DICT || cell->kind == HEFT__PK_LIST ||
           cell->kind == HEFT__PK_TUPLE;
}

static bool is_tensor_here(const heft__pickle_tensors *build, const heft__pk_cell *cell)
{
    if (build->pickle->ids == HEFT__PK_IDS_TAR && cell->kind == HEFT__PK_PERSID) {
        const heft__file_tensor *known =
            heft__pk_find_known(build, cell->as.object->items[0].as.integer);
        return known && known->dtype != HEFT_DTYPE_NONE;
    }
    return heft__pk_is_tensor(cell);
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
    if (!key) {
        heft__buffer_format(&walk->path, "%u", frame->next);
    } else if (key->kind == HEFT__PK_TEXT) {
        heft__buffer_append(&walk->path, heft__pk_text(pickle, key), key->as.text.length);
    } else if (key->kind == HEFT__PK_INT) {
        heft__buffer_format(&walk->path, "%lld", (long long)key->as.integer);
    } else if (walk->listing) {
        heft__buffer_format(&walk->path, "<%s>", heft__pk_kind_name(key));
    } else {
        return heft__fail_at(err, HEFT_FORMAT, pickle->origin + key->at,
                             "dict key must be a string, found %s", heft__pk_kind_name(key));
    }
    return heft__buffer_check(&walk->path, err);
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
    if (walk->depth >= heft__limits(build->ctx)->pickle_depth) {
        return heft__fail_at(err, HEFT_LIMIT, at, "more than %u nested containers",
                             heft__limits(build->ctx)->pickle_depth);
    }
    heft_status status = cell->kind == HEFT__PK_DICT ? make_distinct(build, object, err) : HEFT_OK;
    if (status == HEFT_OK && !heft__array_reserve(build->ctx, (void **)&walk->frames, walk->depth,
                                                  &walk->cap, sizeof *walk->frames)) {
        status = heft__fail_nomem(err, sizeof *walk->frames);
    }
    if (status == HEFT_OK) {
        object->on_path = true;
        walk->frames[walk->depth] = (struct frame){.object = object,
                                                   .is_dict = cell->kind == HEFT__PK_DICT,
                                                   .dotted = walk->depth > 0 || walk->listing,
                                                   .path_bytes = walk->path.size};
        walk->depth++;
    }
    return status;
}

static void leave(struct walk *walk)
{
    heft__pk_object *object = walk->frames[--walk->depth].object;
    object->on_path = false;
    object->walked = true;
    if (object->has_tensor && walk->depth) {
        walk->frames[walk->depth - 1].object->has_tensor = true;
    }
}

/* One value at the path that was just built. */
static heft_status visit(struct walk *walk, const heft__pk_cell *cell, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const uint64_t at = build->pickle->origin + cell->at;
    if (++build->steps > STEPS_BASE + STEPS_PER_BYTE * (uint64_t)build->pickle->length) {
        return heft__fail_at(err, HEFT_LIMIT, at, "shared values expand to more than %llu",
                             (unsigned long long)build->steps);
    }
    if (is_tensor_here(build, cell)) {
        if (walk->depth) {
            walk->frames[walk->depth - 1].object->has_tensor = true;
        }
        return walk->listing ? add_skipped(build, &walk->path, at, err)
                             : add_tensor(build, cell, &walk->path, err);
    }
    return is_container(cell) ? enter(walk, cell, err) : add_skipped(build, &walk->path, at, err);
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
        status = extend_path(walk, frame, frame->is_dict ? value - 1 : NULL, err);
        frame->next += frame->is_dict ? 2 : 1;
        if (status == HEFT_OK) {
            status = visit(walk, value, err);
        }
    }
    return status;
}

static bool holds_tensors(const heft__pickle_tensors *build, const heft__pk_object *dict)
{
    for (uint32_t i = 0; i + 1 < dict->count; i += 2) {
        if (is_tensor_here(build, &dict->items[i + 1])) {
            return true;
        }
    }
    return false;
}

/* The state dict of a training checkpoint, or NULL: then the names begin at the top. */
static const heft__pk_cell *find_state_dict(const heft__pickle_tensors *build,
                                            const heft__pk_object *dict)
{
    static const char *const keys[] = {"state_dict", "model_state_dict", "model", "module"};
    if (holds_tensors(build, dict)) {
        return NULL;
    }
    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
        for (uint32_t i = 0; i + 1 < dict->count; i += 2) {
            const heft__pk_cell *value = &dict->items[i + 1];
            if (heft__pk_is_text(build->pickle, &dict->items[i], keys[k]) &&
                value->kind == HEFT__PK_DICT && holds_tensors(build, value->as.object)) {
                return value;
            }
        }
    }
    return NULL;
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
            status = visit(walk, &dict->items[i + 1], err);
        }
        if (status == HEFT_OK) {
            status = walk_frames(walk, err);
        }
    }
    return status;
}

static heft_status walk_top(struct walk *walk, const heft__pk_cell *top, heft_error *err)
{
    heft__pickle_tensors *build = walk->build;
    const heft__pk_cell *state_dict = NULL;
    heft_status status = HEFT_OK;
    if (!is_container(top) && !is_tensor_here(build, top)) {
        return heft__fail_at(err, HEFT_FORMAT, build->pickle->origin + top->at,
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
    if (status == HEFT_OK && state_dict) {
        status = list_others(walk, top->as.object, state_dict, err);
    }
    if (status == HEFT_OK && build->tensor_count == 0 &&
        (top->kind == HEFT__PK_LIST || top->kind == HEFT__PK_TUPLE)) {
        status = heft__fail_at(err, HEFT_FORMAT, build->pickle->origin + top->at,
                               "top-level value is %s without tensors", heft__pk_kind_name(top));
    }
    return status;
}

heft_status heft__pickle_tensors_walk(heft__pickle_tensors *build, heft_error *err)
{
    struct walk walk = {.build = build};
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

heft_status heft__pickle_tensors_publish(heft__pickle_tensors *build, heft_error *err)
{
    heft__file *file = build->file;
    heft__arena *arena = &file->arena;
    if (!hand_over(arena, (void **)&file->tensors, build->tensors, build->tensor_count,
                   sizeof *file->tensors) ||
        !hand_over(arena, (void **)&file->storages, build->storages, build->storage_count,
                   sizeof *file->storages) ||
        !hand_over(arena, (void **)&file->skipped, build->skipped, build->skipped_count,
                   sizeof *file->skipped)) {
        return heft__fail_nomem(err, build->tensor_count * sizeof *file->tensors);
    }
    file->tensor_count = build->tensor_count;
    file->storage_count = build->storage_count;
    file->skipped_count = build->skipped_count;
    if (build->skipped_more &&
        !heft__warn(&file->warnings,
                    "more than %d values are not tensors; only the first %d are listed",
                    SKIPPED_MOST, SKIPPED_MOST)) {
        return heft__fail_nomem(err, 0);
    }
    return HEFT_OK;
}
