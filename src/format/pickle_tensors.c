/* pickle_tensors.c - from a pickle's values to named tensors.
 *
 * The value is walked with an explicit stack: containers that contain themselves are refused,
 * shared ones are not walked again where they hold no tensor, and all steps together are bounded,
 * so that a pickle of a few bytes cannot unfold. A name is the path to the tensor, joined with
 * dots. Every view is checked against its storage, every storage against the record that holds it.
 * Source: docs/formats/pickle.md [3]. */
#include "format/torch.h"

typedef heft__pickle_value value;

struct level { /* one container on the way */
    value *container;
    uint32_t next;      /* item */
    size_t name_length; /* of the path up to the container */
    size_t tensors;     /* found before it */
};

struct walk {
    heft_ctx *ctx;
    heft__file *file;
    uint64_t origin;
    heft__place_fn place;
    void *user;
    heft__buffer path;
    struct level *levels;
    size_t depth, level_cap;
    heft__map keys, names;
    heft__file_storage *storages;
    heft_dtype *storage_dtypes; /* as the first reference says */
    size_t storage_count, storage_cap, dtype_cap;
    heft__file_tensor *tensors;
    size_t tensor_count, tensor_cap;
    const char **skipped;
    size_t skipped_count, skipped_cap;
    uint64_t steps;
    heft_error *err;
};

#define STEPS_MOST ((uint64_t)32 << 20)
#define SKIPPED_MOST 10000
#define FAIL(w, status, v, ...) heft__fail_at((w)->err, status, (w)->origin + (v)->at, __VA_ARGS__)

/* ---- storages
 * -------------------------------------------------------------------------------------------- */
static uint64_t elem_bytes(heft_dtype dtype)
{
    return dtype == HEFT_DTYPE_NONE || heft_dtype_bits(dtype) < 8 ? 1 : heft_dtype_bits(dtype) / 8;
}

static heft_status check_id(struct walk *w, const value *id)
{
    value **items = id->as.items;
    if (!heft__pickle_is_text(items[0], "storage")) {
        return FAIL(w, HEFT_FORMAT, id, "persistent id must begin with 'storage'");
    }
    if (items[1]->kind != HEFT__PICKLE_GLOBAL || items[1]->role != HEFT__ROLE_STORAGE) {
        return FAIL(w, HEFT_FORMAT, id, "persistent id item 1 must be a storage class");
    }
    if (items[2]->kind != HEFT__PICKLE_TEXT) {
        return FAIL(w, HEFT_FORMAT, id, "persistent id item 2 must be a string");
    }
    if (items[4]->kind != HEFT__PICKLE_INT) {
        return FAIL(w, HEFT_FORMAT, id, "persistent id item 4 must be an integer");
    }
    return HEFT_OK;
}

/* A new storage of a key, placed in the file. */
static heft_status add_storage(struct walk *w, const value *id, const char *key, heft_dtype dtype,
                               uint64_t bytes)
{
    if (!heft__array_reserve(w->ctx, (void **)&w->storages, w->storage_count, &w->storage_cap,
                             sizeof *w->storages) ||
        !heft__array_reserve(w->ctx, (void **)&w->storage_dtypes, w->storage_count, &w->dtype_cap,
                             sizeof *w->storage_dtypes)) {
        return heft__fail_nomem(w->err, 0);
    }
    heft__file_storage storage = {.bytes = bytes};
    heft_status status = w->place(w->user, key, &storage, w->err);
    if (status != HEFT_OK) {
        if (w->err && w->err->offset == HEFT_NO_OFFSET) {
            w->err->offset = w->origin + id->at;
        }
        return status;
    }
    w->storages[w->storage_count] = storage;
    w->storage_dtypes[w->storage_count++] = dtype;
    return HEFT_OK;
}

struct window { /* what a persistent id stands for */
    size_t storage;
    heft_dtype dtype;
    uint64_t first_bytes, bytes;
};

/* Old streams: the id means a part of the storage, given in elements. */
static heft_status take_view(struct walk *w, const value *id, struct window *window)
{
    const value *view = id->count == 6 ? id->as.items[5] : NULL;
    if (!view || view->kind == HEFT__PICKLE_NONE) {
        return HEFT_OK;
    }
    if (view->kind != HEFT__PICKLE_TUPLE || view->count != 3 ||
        view->as.items[1]->kind != HEFT__PICKLE_INT ||
        view->as.items[2]->kind != HEFT__PICKLE_INT) {
        return FAIL(w, HEFT_FORMAT, id, "view of a storage must be a key and two integers");
    }
    int64_t offset = view->as.items[1]->integer, numel = view->as.items[2]->integer;
    uint64_t size = elem_bytes(window->dtype), all = window->bytes / size;
    if (offset < 0 || numel < 0 || (uint64_t)offset > all ||
        (uint64_t)numel > all - (uint64_t)offset) {
        return FAIL(w, HEFT_FORMAT, id, "view of %lld elements at %lld, storage has %llu",
                    (long long)numel, (long long)offset, (unsigned long long)all);
    }
    window->first_bytes = (uint64_t)offset * size;
    window->bytes = (uint64_t)numel * size;
    return HEFT_OK;
}

static heft_status find_storage(struct walk *w, const value *persistent, struct window *window)
{
    const value *id = persistent->as.items[0];
    heft_status status = check_id(w, id);
    if (status != HEFT_OK) {
        return status;
    }
    int64_t numel = id->as.items[4]->integer;
    size_t length = (size_t)id->as.items[2]->integer, found;
    heft_dtype dtype = (heft_dtype)id->as.items[1]->dtype;
    char *key = heft__arena_text(&w->file->arena, id->as.items[2]->as.text, length);
    uint64_t bytes;
    if (!key) {
        return heft__fail_nomem(w->err, length);
    }
    if (memchr(key, 0, length) || strpbrk(key, "/\\") || strcmp(key, "..") == 0 || length > 400) {
        return FAIL(w, HEFT_REFUSED, id, "storage key '%.100s' holds path characters", key);
    }
    if (numel < 0) {
        return FAIL(w, HEFT_FORMAT, id, "storage '%.100s' has numel %lld", key, (long long)numel);
    }
    if (!heft__mul_u64((uint64_t)numel, elem_bytes(dtype), &bytes)) {
        return FAIL(w, HEFT_FORMAT, id, "storage '%.100s': byte count overflows", key);
    }
    if (!heft__map_put(&w->keys, key, length, w->storage_count, &found)) {
        return heft__fail_nomem(w->err, length);
    }
    if (found == HEFT__MAP_NONE) {
        found = w->storage_count;
        status = add_storage(w, id, key, dtype, bytes);
    } else if (w->storages[found].bytes != bytes || w->storage_dtypes[found] != dtype) {
        status = FAIL(w, HEFT_FORMAT, id,
                      "storage '%.100s' has %llu bytes, %lld %s need %llu; types disagree", key,
                      (unsigned long long)w->storages[found].bytes, (long long)numel,
                      heft_dtype_name(dtype), (unsigned long long)bytes);
    }
    *window = (struct window){found, dtype, 0, bytes};
    return status == HEFT_OK ? take_view(w, id, window) : status;
}

/* ---- views
 * --------------------------------------------------------------------------------------------------
 */
/* A tuple, a list or a torch.Size of integers, none of them negative. */
static heft_status read_numbers(struct walk *w, const value *from, const char *what,
                                uint64_t **numbers, uint32_t *count)
{
    const value *list = from;
    if (from->kind == HEFT__PICKLE_CALL && from->role == HEFT__ROLE_INERT && from->count == 2 &&
        from->as.items[1]->count == 1) {
        list = from->as.items[1]->as.items[0]; /* torch.Size(tuple) */
    }
    if (list->kind != HEFT__PICKLE_TUPLE && list->kind != HEFT__PICKLE_LIST) {
        return FAIL(w, HEFT_FORMAT, from, "%s must be a tuple", what);
    }
    if (list->count > heft__limits(w->ctx)->rank) {
        return FAIL(w, HEFT_LIMIT, from, "%s has %u dimensions, the limit is %u", what, list->count,
                    heft__limits(w->ctx)->rank);
    }
    *numbers = heft__arena_array(&w->file->arena, list->count, sizeof **numbers);
    *count = list->count;
    if (!*numbers) {
        return heft__fail_nomem(w->err, 0);
    }
    for (uint32_t i = 0; i < list->count; i++) {
        const value *item = list->as.items[i];
        if (item->kind != HEFT__PICKLE_INT) {
            return FAIL(w, HEFT_FORMAT, from, "%s[%u] must be an integer", what, i);
        }
        if (item->integer < 0) {
            return FAIL(w, HEFT_FORMAT, from, "%s[%u] is %lld", what, i, (long long)item->integer);
        }
        (*numbers)[i] = (uint64_t)item->integer;
    }
    return HEFT_OK;
}

static bool row_by_row(const uint64_t *shape, const uint64_t *strides, uint32_t rank)
{
    uint64_t expected = 1;
    for (uint32_t i = rank; i-- > 0;) {
        if (shape[i] != 1 && strides[i] != expected) {
            return false;
        }
        expected *= shape[i]; /* the product is known to fit */
    }
    return true;
}

/* The last element that the view reaches, plus one; false if that overflows. */
static bool view_extent(const uint64_t *shape, const uint64_t *strides, uint32_t rank,
                        uint64_t offset, uint64_t *extent)
{
    *extent = offset;
    for (uint32_t i = 0; i < rank; i++) {
        uint64_t reach;
        if (!heft__mul_u64(shape[i] - 1, strides[i], &reach) ||
            !heft__add_u64(*extent, reach, extent)) {
            return false;
        }
    }
    return heft__add_u64(*extent, 1, extent);
}

static heft_status check_view(struct walk *w, const value *call, const struct window *window,
                              int64_t offset, uint64_t *shape, const uint64_t *strides,
                              heft__file_tensor *tensor)
{
    uint64_t elems, extent = 0, size = elem_bytes(tensor->dtype), all = window->bytes / size;
    if (offset < 0) {
        return FAIL(w, HEFT_FORMAT, call, "storage offset %lld", (long long)offset);
    }
    if (!heft__shape_elems(shape, tensor->rank, &elems) || elems > INT64_MAX / 16) {
        return FAIL(w, HEFT_FORMAT, call, "element count overflows");
    }
    if (elems > 0 && !view_extent(shape, strides, tensor->rank, (uint64_t)offset, &extent)) {
        return FAIL(w, HEFT_FORMAT, call, "extent overflows");
    }
    if (extent > all) {
        return FAIL(w, HEFT_FORMAT, call, "needs elements up to %llu, its storage has %llu",
                    (unsigned long long)extent, (unsigned long long)all);
    }
    tensor->start = elems ? window->first_bytes + (uint64_t)offset * size : 0;
    tensor->size_bytes = elems * size;
    tensor->shape = shape;
    if (elems > 0 && !row_by_row(shape, strides, tensor->rank)) {
        tensor->strides = (const int64_t *)strides; /* below 2^63: they came from signed integers */
    }
    if (heft_dtype_bits(tensor->dtype) ==
        4) { /* torch counts bytes of two values each, heft counts values */
        if (tensor->rank == 0 || tensor->strides) {
            return FAIL(w, HEFT_UNSUPPORTED, call, "a view of %s that is not row by row",
                        heft_dtype_name(tensor->dtype));
        }
        shape[tensor->rank - 1] *= 2;
    }
    return HEFT_OK;
}

/* {'conj': True}, {'neg': True}: the seventh argument of a view. */
static void read_flags(const value *flags, heft__file_tensor *tensor)
{
    for (uint32_t i = 0; flags->kind == HEFT__PICKLE_DICT && i + 1 < flags->count; i += 2) {
        bool set =
            flags->as.items[i + 1]->kind == HEFT__PICKLE_BOOL && flags->as.items[i + 1]->integer;
        tensor->conj |= set && heft__pickle_is_text(flags->as.items[i], "conj");
        tensor->neg |= set && heft__pickle_is_text(flags->as.items[i], "neg");
    }
}

static heft_status read_view(struct walk *w, const value *call, const value *args, bool v3,
                             heft__file_tensor *tensor)
{
    struct window window = {0};
    uint64_t *shape = NULL, *strides = NULL;
    uint32_t stride_count = 0, flags_at = v3 ? 7 : 6;
    if (args->count < (v3 ? 7u : 4u) || args->count > flags_at + 1) {
        return FAIL(w, HEFT_FORMAT, call, "a tensor of %u arguments", args->count);
    }
    value **items = args->as.items;
    if (items[0]->kind != HEFT__PICKLE_STORAGE) {
        return FAIL(w, HEFT_FORMAT, call, "a tensor needs a storage as its first argument");
    }
    if (items[1]->kind != HEFT__PICKLE_INT) {
        return FAIL(w, HEFT_FORMAT, call, "storage offset must be an integer");
    }
    heft_status status = find_storage(w, items[0], &window);
    if (status == HEFT_OK) {
        status = read_numbers(w, items[2], "size", &shape, &tensor->rank);
    }
    if (status == HEFT_OK) {
        status = read_numbers(w, items[3], "stride", &strides, &stride_count);
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (tensor->rank != stride_count) {
        return FAIL(w, HEFT_FORMAT, call, "%u sizes, %u strides", tensor->rank, stride_count);
    }
    tensor->dtype = window.dtype;
    if (v3) {
        if (items[6]->kind != HEFT__PICKLE_GLOBAL || items[6]->role != HEFT__ROLE_DTYPE) {
            return FAIL(w, HEFT_FORMAT, call, "argument 6 must be a dtype");
        }
        tensor->dtype = (heft_dtype)items[6]->dtype;
    }
    if (tensor->dtype == HEFT_DTYPE_NONE) {
        return FAIL(w, HEFT_FORMAT, call, "a tensor on an untyped storage without a dtype");
    }
    tensor->storage = window.storage;
    if (args->count > flags_at) {
        read_flags(items[flags_at], tensor);
    }
    return check_view(w, call, &window, items[1]->integer, shape, strides, tensor);
}

/* Parameters and subclasses wrap the call that makes the view. */
static heft_status read_tensor(struct walk *w, const value *call, heft__file_tensor *tensor)
{
    for (int wraps = 0; wraps < 8; wraps++) {
        const value *args = call->count == 2 ? call->as.items[1] : NULL;
        if (!args || args->kind != HEFT__PICKLE_TUPLE) {
            break;
        }
        if (call->role == HEFT__ROLE_TENSOR_V2 || call->role == HEFT__ROLE_TENSOR_V3) {
            return read_view(w, call, args, call->role == HEFT__ROLE_TENSOR_V3, tensor);
        }
        if (call->role == HEFT__ROLE_PARAMETER && args->count >= 1 &&
            args->as.items[0]->kind == HEFT__PICKLE_CALL) {
            call = args->as.items[0];
            continue;
        }
        const value *fn =
            call->role == HEFT__ROLE_FROM_TYPE && args->count == 4 ? args->as.items[0] : NULL;
        if (fn && fn->kind == HEFT__PICKLE_GLOBAL &&
            args->as.items[2]->kind == HEFT__PICKLE_TUPLE &&
            (fn->role == HEFT__ROLE_TENSOR_V2 || fn->role == HEFT__ROLE_TENSOR_V3)) {
            return read_view(w, call, args->as.items[2], fn->role == HEFT__ROLE_TENSOR_V3, tensor);
        }
        break;
    }
    const char *name = call->count && call->as.items[0]->kind == HEFT__PICKLE_GLOBAL
                           ? call->as.items[0]->as.text
                           : "?";
    return FAIL(w, HEFT_UNSUPPORTED, call, "a tensor made by %s is not read", name);
}

/* ---- the walk
 * ---------------------------------------------------------------------------------------------------
 */
static bool is_tensor(const value *v)
{
    return v->kind == HEFT__PICKLE_CALL && v->role != HEFT__ROLE_INERT &&
           v->role != HEFT__ROLE_ORDERED_DICT;
}

static bool is_dict(const value *v)
{
    return v->kind == HEFT__PICKLE_DICT ||
           (v->kind == HEFT__PICKLE_CALL && v->role == HEFT__ROLE_ORDERED_DICT);
}

static bool is_container(const value *v)
{
    return is_dict(v) || v->kind == HEFT__PICKLE_LIST || v->kind == HEFT__PICKLE_TUPLE;
}

static const char *path_text(struct walk *w)
{
    return heft__arena_text(&w->file->arena, (const char *)w->path.data, w->path.size);
}

static heft_status add_tensor(struct walk *w, const value *v)
{
    const heft_limits *limits = heft__limits(w->ctx);
    heft__file_tensor tensor = {.name = path_text(w), .item_offset = w->origin + v->at};
    size_t found, length = w->path.size;
    if (!tensor.name || !heft__array_reserve(w->ctx, (void **)&w->tensors, w->tensor_count,
                                             &w->tensor_cap, sizeof tensor)) {
        return heft__fail_nomem(w->err, 0);
    }
    heft_status status = HEFT_OK;
    if (length > limits->name_bytes || w->tensor_count >= limits->tensors) {
        status = FAIL(w, HEFT_LIMIT, v,
                      "name of %zu bytes, the limit is %llu; or over %llu tensors", length,
                      (unsigned long long)limits->name_bytes, (unsigned long long)limits->tensors);
    } else if (memchr(tensor.name, 0, length) ||
               heft__utf8_invalid_at((const uint8_t *)tensor.name, length) < length) {
        status = FAIL(w, HEFT_FORMAT, v, "the tensor's name is not a text");
    } else if (!heft__map_put(&w->names, tensor.name, length, w->tensor_count, &found)) {
        status = heft__fail_nomem(w->err, length);
    } else {
        status = read_tensor(w, v, &tensor);
    }
    if (status == HEFT_OK && found != HEFT__MAP_NONE) { /* as Python: the last of two keys wins */
        w->tensors[found] = tensor;
    } else if (status == HEFT_OK) {
        w->tensors[w->tensor_count++] = tensor;
    }
    return heft__add_item(status, w->err, tensor.name);
}

static heft_status add_skipped(struct walk *w)
{
    if (w->skipped_count >= SKIPPED_MOST) {
        return HEFT_OK;
    }
    const char *text = path_text(w);
    if (!text || !heft__array_reserve(w->ctx, (void **)&w->skipped, w->skipped_count,
                                      &w->skipped_cap, sizeof text)) {
        return heft__fail_nomem(w->err, 0);
    }
    w->skipped[w->skipped_count++] = text;
    return HEFT_OK;
}

/* Put the name of item i of a container behind the path. */
static heft_status enter_name(struct walk *w, const struct level *level, uint32_t i)
{
    w->path.size = level->name_length;
    if (w->depth > 1) {
        heft__buffer_byte(&w->path, '.');
    }
    if (!is_dict(level->container)) {
        heft__buffer_format(&w->path, "%u", i);
        return heft__buffer_check(&w->path, w->err);
    }
    const value *key = level->container->as.items[i];
    if (key->kind == HEFT__PICKLE_TEXT) {
        heft__buffer_append(&w->path, key->as.text, (size_t)key->integer);
    } else if (key->kind == HEFT__PICKLE_INT) {
        heft__buffer_format(&w->path, "%lld", (long long)key->integer);
    } else {
        return FAIL(w, HEFT_FORMAT, key, "dict key must be a string");
    }
    return heft__buffer_check(&w->path, w->err);
}

static heft_status push_level(struct walk *w, value *container)
{
    if (container->visit == 1) {
        return FAIL(w, HEFT_FORMAT, container, "a container that contains itself");
    }
    if (w->depth >= heft__limits(w->ctx)->pickle_depth) {
        return FAIL(w, HEFT_LIMIT, container, "containers nested over %u deep",
                    heft__limits(w->ctx)->pickle_depth);
    }
    if (!heft__array_reserve(w->ctx, (void **)&w->levels, w->depth, &w->level_cap,
                             sizeof *w->levels)) {
        return heft__fail_nomem(w->err, 0);
    }
    container->visit = 1;
    w->levels[w->depth++] = (struct level){container, 0, w->path.size, w->tensor_count};
    return HEFT_OK;
}

static heft_status visit(struct walk *w, value *v)
{
    if (++w->steps > STEPS_MOST) {
        return FAIL(w, HEFT_LIMIT, v, "over %llu values to look at",
                    (unsigned long long)STEPS_MOST);
    }
    if (is_tensor(v)) {
        return add_tensor(w, v);
    }
    if (is_container(v)) {
        return v->visit == 2 ? HEFT_OK : push_level(w, v); /* 2: walked, no tensor in it */
    }
    return add_skipped(w);
}

static heft_status walk_all(struct walk *w, value *top)
{
    heft_status status = visit(w, top);
    if (status == HEFT_OK && !is_tensor(top) && !is_container(top)) {
        return FAIL(w, HEFT_FORMAT, top,
                    "the pickle holds neither a tensor nor a container of tensors");
    }
    while (status == HEFT_OK && w->depth > 0) {
        struct level *level = &w->levels[w->depth - 1];
        value *container = level->container;
        uint32_t step = is_dict(container) ? 2 : 1;
        if (level->next + step > container->count) {
            container->visit = w->tensor_count == level->tensors ? 2 : 0;
            w->depth--;
            continue;
        }
        uint32_t i = level->next;
        level->next += step;
        status = enter_name(w, level, i);
        if (status == HEFT_OK) {
            status = visit(w, container->as.items[i + step - 1]);
        }
    }
    return status;
}

static heft_status publish(struct walk *w)
{
    heft__file *file = w->file;
    file->storages = heft__arena_array(&file->arena, w->storage_count, sizeof *file->storages);
    file->tensors = heft__arena_array(&file->arena, w->tensor_count, sizeof *file->tensors);
    file->skipped = heft__arena_array(&file->arena, w->skipped_count, sizeof *file->skipped);
    if (!file->storages || !file->tensors || !file->skipped) {
        return heft__fail_nomem(w->err, w->tensor_count * sizeof *file->tensors);
    }
    if (w->storage_count) {
        memcpy(file->storages, w->storages, w->storage_count * sizeof *file->storages);
    }
    if (w->tensor_count) {
        memcpy(file->tensors, w->tensors, w->tensor_count * sizeof *file->tensors);
    }
    if (w->skipped_count) {
        memcpy(file->skipped, w->skipped, w->skipped_count * sizeof *file->skipped);
    }
    file->storage_count = w->storage_count;
    file->tensor_count = w->tensor_count;
    file->skipped_count = w->skipped_count;
    return HEFT_OK;
}

heft_status heft__pickle_tensors(heft_ctx *ctx, const heft__pickle *pickle, uint64_t origin,
                                 heft__file *file, heft__place_fn place, void *user,
                                 heft_error *err)
{
    heft_error local; /* place() fills it even where the caller wants no error */
    struct walk w = {.ctx = ctx,
                     .file = file,
                     .origin = origin,
                     .place = place,
                     .user = user,
                     .err = err ? err : &local};
    heft__buffer_init(&w.path, ctx);
    heft__map_init(&w.keys, ctx);
    heft__map_init(&w.names, ctx);
    heft_status status = walk_all(&w, pickle->top);
    if (status == HEFT_OK) {
        status = publish(&w);
    }
    heft__map_fini(&w.keys);
    heft__map_fini(&w.names);
    heft__buffer_fini(&w.path);
    heft__free(ctx, w.levels, w.level_cap * sizeof *w.levels);
    heft__free(ctx, w.storages, w.storage_cap * sizeof *w.storages);
    heft__free(ctx, w.storage_dtypes, w.dtype_cap * sizeof *w.storage_dtypes);
    heft__free(ctx, w.tensors, w.tensor_cap * sizeof *w.tensors);
    heft__free(ctx, w.skipped, w.skipped_cap * sizeof *w.skipped);
    return status;
}
