/* pickle_tensors.c - from a pickle's calls and persistent ids to tensors on storages.
 *
 * A tensor is a CALL of one of the rebuild functions: (storage, offset, size, stride, ...). A
 * storage is a persistent id:
 * ('storage', class, key, location, numel). A view's extent is checked against its storage, a
 * storage's size against its record, both in 64 bits without wrapping. What is not done: locations
 * are ignored, gradients and hooks are dropped, and sparse, quantised, nested and meta tensors, and
 * those of an unknown class, are of a kind that is not read. Source: docs/formats/pickle.md [4]. */
#include "format/pickle.h"

#define RANK_MOST 64
#define KEY_MOST 512
#define UNWRAP_MOST 8
#define STORAGE_BYTES 160 /* that a storage takes in the tables of storages and of keys */
#define EXPANDED_FREE ((uint64_t)1 << 30) /* an expanded view below this is fine */
#define EXPANDED_MOST 1024                /* above, it may be this many times its storage */

/* ---- views ----------------------------------------------------------------------------------- */
uint64_t heft__pickle_elem_bytes(heft_dtype dtype)
{
    return (heft_dtype_bits(dtype) + 7) / 8;
}

static heft_status check_sign(const int64_t *values, size_t rank, const char *what, uint64_t at,
                              heft_error *err)
{
    for (size_t i = 0; i < rank; i++) {
        if (values[i] < 0) {
            return heft__fail_at(err, HEFT_FORMAT, at, "%s[%zu] is %lld", what, i,
                                 (long long)values[i]);
        }
    }
    return HEFT_OK;
}

/* Elements from the storage's first to the last one that the view shows; false on overflow. */
static bool view_extent(const int64_t *sizes, const int64_t *strides, size_t rank, int64_t offset,
                        uint64_t *extent)
{
    uint64_t last = (uint64_t)offset;
    for (size_t i = 0; i < rank; i++) {
        uint64_t reach;
        if (!heft__mul_u64((uint64_t)sizes[i] - 1, (uint64_t)strides[i], &reach) ||
            !heft__add_u64(last, reach, &last)) {
            return false;
        }
    }
    return heft__add_u64(last, 1, extent);
}

static bool is_row_by_row(const int64_t *sizes, const int64_t *strides, size_t rank)
{
    uint64_t expected = 1;
    for (size_t i = rank; i-- > 0;) {
        if (sizes[i] != 1 && (uint64_t)strides[i] != expected) {
            return false;
        }
        expected *= (uint64_t)sizes[i]; /* the product is known to fit */
    }
    return true;
}

static heft_status check_extent(const int64_t *sizes, const int64_t *strides, size_t rank,
                                int64_t offset, uint64_t window_bytes, uint64_t elems,
                                const heft__file_tensor *tensor, heft_error *err)
{
    const uint64_t at = tensor->item_offset, elem = heft__pickle_elem_bytes(tensor->dtype);
    uint64_t extent;
    if (elems == 0) {
        return HEFT_OK;
    }
    if (!view_extent(sizes, strides, rank, offset, &extent) || extent > INT64_MAX) {
        return heft__fail_at(err, HEFT_FORMAT, at, "extent of the view overflows 64 bits");
    }
    if (extent > window_bytes / elem) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "needs %llu elements of %s, the storage has %llu",
                             (unsigned long long)extent, heft_dtype_name(tensor->dtype),
                             (unsigned long long)(window_bytes / elem));
    }
    if (tensor->size_bytes > EXPANDED_FREE && tensor->size_bytes / EXPANDED_MOST > window_bytes) {
        return heft__fail_at(
            err, HEFT_LIMIT, at, "an expanded view of %llu bytes on a storage of %llu",
            (unsigned long long)tensor->size_bytes, (unsigned long long)window_bytes);
    }
    return HEFT_OK;
}

/* torch counts a float4 tensor in bytes, heft in values: the last dimension doubles. */
static heft_status store_shape(heft__arena *arena, const int64_t *sizes, size_t rank,
                               heft__file_tensor *tensor, heft_error *err)
{
    const bool halves = tensor->dtype == HEFT_DTYPE_F4_E2M1FN_X2;
    const size_t stored_rank = halves && rank == 0 ? 1 : rank;
    uint64_t *shape = heft__arena_array(arena, stored_rank, sizeof *shape);
    if (!shape) {
        return heft__fail_nomem(err, stored_rank * sizeof *shape);
    }
    for (size_t i = 0; i < rank; i++) {
        shape[i] = (uint64_t)sizes[i];
    }
    if (halves) {
        shape[stored_rank - 1] = rank ? shape[rank - 1] * 2 : 2; /* sizes are below 2^63 */
    }
    tensor->shape = shape;
    tensor->rank = (uint32_t)stored_rank;
    return HEFT_OK;
}

static heft_status store_strides(heft__arena *arena, const int64_t *strides, size_t rank,
                                 heft__file_tensor *tensor, heft_error *err)
{
    if (tensor->dtype == HEFT_DTYPE_F4_E2M1FN_X2) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, tensor->item_offset,
                             "a strided view of %s is not supported",
                             heft_dtype_name(tensor->dtype));
    }
    int64_t *copy = heft__arena_array(arena, rank, sizeof *copy);
    if (!copy) {
        return heft__fail_nomem(err, rank * sizeof *copy);
    }
    memcpy(copy, strides, rank * sizeof *copy);
    tensor->strides = copy;
    return HEFT_OK;
}

heft_status heft__pickle_view(heft__arena *arena, const int64_t *sizes, const int64_t *strides,
                              size_t rank, int64_t offset, uint64_t first_bytes,
                              uint64_t window_bytes, heft__file_tensor *tensor, heft_error *err)
{
    const uint64_t at = tensor->item_offset, elem = heft__pickle_elem_bytes(tensor->dtype);
    uint64_t elems = 1;

    heft_status status = check_sign(sizes, rank, "size", at, err);
    if (status == HEFT_OK) {
        status = check_sign(strides, rank, "stride", at, err);
    }
    if (status == HEFT_OK && offset < 0) {
        status = heft__fail_at(err, HEFT_FORMAT, at, "storage offset is %lld", (long long)offset);
    }
    for (size_t i = 0; i < rank && status == HEFT_OK; i++) {
        if (!heft__mul_u64(elems, (uint64_t)sizes[i], &elems)) {
            status = heft__fail_at(err, HEFT_FORMAT, at, "element count overflows 64 bits");
        }
    }
    if (status == HEFT_OK && !heft__mul_u64(elems, elem, &tensor->size_bytes)) {
        status =
            heft__fail_at(err, HEFT_FORMAT, at, "byte count of %llu elements overflows 64 bits",
                          (unsigned long long)elems);
    }
    if (status == HEFT_OK) {
        status = check_extent(sizes, strides, rank, offset, window_bytes, elems, tensor, err);
    }
    if (status == HEFT_OK) {
        status = store_shape(arena, sizes, rank, tensor, err);
    }
    if (status == HEFT_OK && elems && !is_row_by_row(sizes, strides, rank)) {
        status = store_strides(arena, strides, rank, tensor, err);
    }
    tensor->start = first_bytes +
                    (elems ? (uint64_t)offset * elem : 0); /* within the window: the extent fits */
    return status;
}

/* ---- storages -------------------------------------------------------------------------------- */
static int text_width(const heft__pk_cell *cell)
{
    return (int)(cell->as.text.length < 100 ? cell->as.text.length : 100);
}

static heft_status check_key(const heft__pickle *pickle, const heft__pk_cell *key, uint64_t at,
                             heft_error *err)
{
    if (key->kind != HEFT__PK_TEXT) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "persistent id item 2 must be a string, found %s",
                             heft__pk_kind_name(key));
    }
    const char *text = heft__pk_text(pickle, key);
    const size_t length = key->as.text.length;
    if (length == 0 || length > KEY_MOST ||
        heft__utf8_invalid_at((const uint8_t *)text, length) != length) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "storage key of %zu bytes is empty, too long or not UTF-8", length);
    }
    if (memchr(text, '/', length) || memchr(text, '\\', length) || memchr(text, 0, length) ||
        heft__pk_is_text(pickle, key, ".") || heft__pk_is_text(pickle, key, "..")) {
        return heft__fail_at(err, HEFT_REFUSED, at, "storage key '%.*s' contains path characters",
                             text_width(key), text);
    }
    return HEFT_OK;
}

struct id_parts {
    const heft__pk_cell *key;
    heft_dtype dtype;
    uint64_t elem_bytes, numel, bytes;
};

static heft_status read_id(const heft__pickle *pickle, const heft__pk_object *persid,
                           struct id_parts *parts, heft_error *err)
{
    const uint64_t at = pickle->origin + persid->at;
    const heft__pk_cell *items = persid->items[0].as.object->items, *numel = &items[4];
    if (items[1].kind != HEFT__PK_GLOBAL ||
        (items[1].global != HEFT__PKG_STORAGE && items[1].global != HEFT__PKG_UNTYPED_STORAGE)) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "persistent id item 1 must be a storage class, found %s",
                             heft__pk_kind_name(&items[1]));
    }
    heft_status status = check_key(pickle, &items[2], at, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (items[3].kind != HEFT__PK_TEXT) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "persistent id item 3 must be a string, found %s",
                             heft__pk_kind_name(&items[3]));
    }
    if (numel->kind != HEFT__PK_INT) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "persistent id item 4 must be an integer, found %s",
                             heft__pk_kind_name(numel));
    }
    *parts =
        (struct id_parts){.key = &items[2], .dtype = (heft_dtype)items[1].dtype, .elem_bytes = 1};
    if (numel->as.integer < 0) {
        return heft__fail_at(err, HEFT_FORMAT, at, "storage '%.*s' has numel %lld",
                             text_width(parts->key), heft__pk_text(pickle, parts->key),
                             (long long)numel->as.integer);
    }
    if (parts->dtype != HEFT_DTYPE_NONE) {
        parts->elem_bytes = heft__pickle_elem_bytes(parts->dtype);
    }
    parts->numel = (uint64_t)numel->as.integer;
    if (!heft__mul_u64(parts->numel, parts->elem_bytes, &parts->bytes)) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "storage '%.*s': byte count of %llu elements overflows 64 bits",
                             text_width(parts->key), heft__pk_text(pickle, parts->key),
                             (unsigned long long)parts->numel);
    }
    return HEFT_OK;
}

/* Files of torch before 0.4: the storage meant is a window (key, first element, elements) of the
 * one named. */
static heft_status read_window(const heft__pickle *pickle, const heft__pk_object *persid,
                               const struct id_parts *parts, heft__pk_window *window,
                               heft_error *err)
{
    const uint64_t at = pickle->origin + persid->at;
    const heft__pk_object *id = persid->items[0].as.object;
    window->bytes = parts->bytes;
    if (id->count < 6 || id->items[5].kind == HEFT__PK_NONE) {
        return HEFT_OK;
    }
    const heft__pk_object *view = id->items[5].as.object;
    if (id->items[5].kind != HEFT__PK_TUPLE || view->count != 3 ||
        view->items[1].kind != HEFT__PK_INT || view->items[2].kind != HEFT__PK_INT) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "persistent id item 5 must be None or (key, offset, numel)");
    }
    const int64_t first = view->items[1].as.integer, count = view->items[2].as.integer;
    if (first < 0 || count < 0 || (uint64_t)first > parts->numel ||
        (uint64_t)count > parts->numel - (uint64_t)first) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "window of %lld elements from %lld, storage '%.*s' has %llu",
                             (long long)count, (long long)first, text_width(parts->key),
                             heft__pk_text(pickle, parts->key), (unsigned long long)parts->numel);
    }
    window->first_bytes = (uint64_t)first * parts->elem_bytes;
    window->bytes = (uint64_t)count * parts->elem_bytes;
    return HEFT_OK;
}

static heft_status same_root(const heft__pickle *pickle, const struct heft__pk_root *root,
                             const struct id_parts *parts, uint64_t at, heft_error *err)
{
    if (root->dtype == parts->dtype && root->numel == parts->numel) {
        return HEFT_OK;
    }
    return heft__fail_at(
        err, HEFT_FORMAT, at, "storage '%.*s' has %llu elements of %s here, %llu of %s before",
        text_width(parts->key), heft__pk_text(pickle, parts->key), (unsigned long long)parts->numel,
        parts->dtype ? heft_dtype_name(parts->dtype) : "bytes", (unsigned long long)root->numel,
        root->dtype ? heft_dtype_name(root->dtype) : "bytes");
}

/* Find or make the storage that a key names. */
static heft_status root_of(heft__pickle_tensors *build, const struct id_parts *parts, uint64_t at,
                           size_t *index, heft_error *err)
{
    const heft__pickle *pickle = build->pickle;
    const char *key = heft__pk_text(pickle, parts->key);
    const size_t length = parts->key->as.text.length;
    size_t found = heft__map_get(&build->keys, key, length);
    if (found != HEFT__MAP_NONE) {
        *index = found;
        return same_root(pickle, &build->roots[found], parts, at, err);
    }
    heft_status status = heft__pickle_take(build->pickle, STORAGE_BYTES + length, at, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft__file_storage storage = {.bytes = parts->bytes, .stored_bytes = parts->bytes};
    status = build->place(build->place_user, key, length, &storage, err);
    if (status != HEFT_OK) {
        if (err && err->offset == HEFT_NO_OFFSET && status != HEFT_NOMEM) {
            err->offset = at;
        }
        return status;
    }
    if (!heft__array_reserve(build->ctx, (void **)&build->roots, build->storage_count,
                             &build->root_cap, sizeof *build->roots) ||
        !heft__array_reserve(build->ctx, (void **)&build->storages, build->storage_count,
                             &build->storage_cap, sizeof *build->storages) ||
        !heft__map_put(&build->keys, key, length, build->storage_count, &found)) {
        return heft__fail_nomem(err, sizeof storage);
    }
    build->roots[build->storage_count] = (struct heft__pk_root){
        .key = key, .key_length = length, .dtype = parts->dtype, .numel = parts->numel};
    build->storages[build->storage_count] = storage;
    *index = build->storage_count++;
    return HEFT_OK;
}

heft_status heft__pk_window_of(heft__pickle_tensors *build, heft__pk_object *object,
                               const heft__pk_window **out, heft_error *err)
{
    heft__pk_persid *persid = (heft__pk_persid *)object; /* of which it is the first member */
    struct id_parts parts = {0};
    if (!object->placed) {
        heft__pk_window window = {0};
        heft_status status = read_id(build->pickle, object, &parts, err);
        if (status == HEFT_OK) {
            status = read_window(build->pickle, object, &parts, &window, err);
        }
        if (status == HEFT_OK) {
            window.dtype = parts.dtype;
            status =
                root_of(build, &parts, build->pickle->origin + object->at, &window.storage, err);
        }
        if (status != HEFT_OK) {
            return status;
        }
        persid->window = window;
        object->placed = true;
    }
    *out = &persid->window;
    return HEFT_OK;
}

const heft__file_tensor *heft__pk_find_known(const heft__pickle_tensors *build, int64_t key)
{
    size_t low = 0, high = build->known_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (build->known[middle].key < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < build->known_count && build->known[low].key == key ? &build->known[low].tensor
                                                                    : NULL;
}

heft_status heft__pickle_tensors_storages(heft__pickle_tensors *build, heft_error *err)
{
    heft_status status = HEFT_OK;
    const heft__pk_window *window;
    for (heft__pk_persid *persid = build->pickle->first_persid; persid && status == HEFT_OK;
         persid = persid->next) {
        if (build->pickle->ids != HEFT__PK_IDS_TAR) {
            status = heft__pk_window_of(build, &persid->object, &window, err);
        } else if (!heft__pk_find_known(build, persid->id.as.integer)) {
            status = heft__fail_at(err, HEFT_FORMAT, build->pickle->origin + persid->object.at,
                                   "unknown persistent id %lld", (long long)persid->id.as.integer);
        }
    }
    return status;
}

/* ---- tensors --------------------------------------------------------------------------------- */
struct tensor_call {
    uint8_t function; /* heft__pk_global */
    const heft__pk_object *args;
    const heft__pk_cell *other; /* of REBUILD_OTHER: the function or class that makes it so */
    uint64_t at;
};

static bool is_rebuild(const heft__pk_cell *cell)
{
    return cell->kind == HEFT__PK_GLOBAL && cell->global >= HEFT__PKG_REBUILD_TENSOR;
}

bool heft__pk_is_tensor(const heft__pk_cell *cell)
{
    return cell->kind == HEFT__PK_CALL && is_rebuild(&cell->as.object->items[0]);
}

static heft_status wrong_args(const struct tensor_call *call, const char *what, heft_error *err)
{
    return heft__fail_at(err, HEFT_FORMAT, call->at, "%u arguments for %s", call->args->count,
                         what);
}

static heft_status other_kind(struct tensor_call *call, const heft__pk_cell *what)
{
    call->function = HEFT__PKG_REBUILD_OTHER;
    call->other = what;
    return HEFT_OK;
}

static bool is_unknown(const heft__pk_cell *cell)
{
    return (cell->kind == HEFT__PK_GLOBAL && cell->global == HEFT__PKG_UNKNOWN) ||
           heft__pk_is_opaque(cell);
}

/* A parameter wraps a tensor, a subclass its function and arguments: go down to the function that
 * makes the tensor. What is made by, or as, something unknown is of another kind. */
static heft_status unwrap(const heft__pickle *pickle, const heft__pk_cell *cell,
                          struct tensor_call *call, heft_error *err)
{
    const heft__pk_object *object = cell->as.object;
    *call = (struct tensor_call){.function = object->items[0].global,
                                 .args = object->items[1].as.object,
                                 .other = &object->items[0],
                                 .at = pickle->origin + object->at};
    for (int depth = 0; depth < UNWRAP_MOST; depth++) {
        const heft__pk_object *args = call->args;
        if (call->function == HEFT__PKG_REBUILD_PARAMETER ||
            call->function == HEFT__PKG_REBUILD_PARAMETER_WITH_STATE) {
            const uint32_t wanted = call->function == HEFT__PKG_REBUILD_PARAMETER ? 3 : 4;
            if (args->count != wanted) {
                return wrong_args(call, "a parameter", err);
            }
            if (is_unknown(&args->items[0])) {
                return other_kind(call, &args->items[0]);
            }
            if (!heft__pk_is_tensor(&args->items[0])) {
                return heft__fail_at(err, HEFT_FORMAT, call->at,
                                     "a parameter wraps %s, expected a tensor",
                                     heft__pk_kind_name(&args->items[0]));
            }
            call->other = &args->items[0].as.object->items[0];
            call->function = call->other->global;
            call->args = args->items[0].as.object->items[1].as.object;
        } else if (call->function == HEFT__PKG_REBUILD_FROM_TYPE_V2) {
            if (args->count == 4 && (is_unknown(&args->items[0]) || is_unknown(&args->items[1]))) {
                return other_kind(call, &args->items[is_unknown(&args->items[0]) ? 0 : 1]);
            }
            if (args->count != 4 || !is_rebuild(&args->items[0]) ||
                args->items[2].kind != HEFT__PK_TUPLE) {
                return wrong_args(call, "a tensor subclass, or arguments of wrong types", err);
            }
            call->other = &args->items[0];
            call->function = args->items[0].global;
            call->args = args->items[2].as.object;
        } else {
            return HEFT_OK;
        }
    }
    return heft__fail_at(err, HEFT_LIMIT, call->at, "a tensor wrapped more than %d times",
                         UNWRAP_MOST);
}

/* A tuple or list of integers, or torch.Size of one. */
static heft_status read_integers(const heft__pickle *pickle, const heft__pk_cell *cell,
                                 const char *what, uint64_t at, int64_t values[RANK_MOST],
                                 size_t *count, heft_error *err)
{
    if (cell->kind == HEFT__PK_CALL && cell->as.object->items[0].kind == HEFT__PK_GLOBAL &&
        cell->as.object->items[0].global == HEFT__PKG_INERT) {
        const heft__pk_object *call = cell->as.object, *args = call->items[1].as.object;
        const heft__pk_cell *name = &call->items[0];
        if (name->as.text.length == 4 && memcmp(heft__pk_text(pickle, name), "Size", 4) == 0 &&
            args->count == 1) {
            cell = &args->items[0];
        }
    }
    if (cell->kind != HEFT__PK_TUPLE && cell->kind != HEFT__PK_LIST) {
        return heft__fail_at(err, HEFT_FORMAT, at, "%s must be a tuple, found %s", what,
                             heft__pk_kind_name(cell));
    }
    const heft__pk_object *items = cell->as.object;
    if (items->count > RANK_MOST) {
        return heft__fail_at(err, HEFT_LIMIT, at, "%s has %u dimensions, the limit is %d", what,
                             items->count, RANK_MOST);
    }
    for (uint32_t i = 0; i < items->count; i++) {
        if (items->items[i].kind != HEFT__PK_INT) {
            return heft__fail_at(err, HEFT_FORMAT, at, "%s[%u] must be an integer, found %s", what,
                                 i, heft__pk_kind_name(&items->items[i]));
        }
        values[i] = items->items[i].as.integer;
    }
    *count = items->count;
    return HEFT_OK;
}

/* {'conj': True}, {'neg': True}: the bytes are those from before. */
static heft_status read_view_bits(const heft__pickle *pickle, const heft__pk_cell *cell,
                                  uint64_t at, heft__file_tensor *tensor, heft_error *err)
{
    if (cell->kind == HEFT__PK_NONE) {
        return HEFT_OK;
    }
    if (cell->kind != HEFT__PK_DICT) {
        return heft__fail_at(err, HEFT_FORMAT, at, "tensor metadata must be a dict, found %s",
                             heft__pk_kind_name(cell));
    }
    const heft__pk_object *dict = cell->as.object;
    for (uint32_t i = 0; i + 1 < dict->count; i += 2) {
        bool conj = heft__pk_is_text(pickle, &dict->items[i], "conj");
        if ((!conj && !heft__pk_is_text(pickle, &dict->items[i], "neg")) ||
            dict->items[i + 1].kind != HEFT__PK_BOOL) {
            return heft__fail_at(err, HEFT_UNSUPPORTED, at,
                                 "unknown tensor metadata, expected 'conj' and 'neg' only");
        }
        *(conj ? &tensor->conj : &tensor->neg) = dict->items[i + 1].as.integer != 0;
    }
    const bool complex = heft__dtype_is_complex(tensor->dtype);
    const bool wide_float =
        heft_dtype_is_floating(tensor->dtype) && heft_dtype_bits(tensor->dtype) >= 16;
    if ((tensor->conj && !complex) || (tensor->neg && !complex && !wide_float)) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, at, "a %s view of %s is not supported",
                             tensor->conj ? "conj" : "neg", heft_dtype_name(tensor->dtype));
    }
    return HEFT_OK;
}

/* Arguments after (storage, offset, size, stride): requires_grad, hooks, [dtype,] [metadata]. */
static heft_status read_extras(const heft__pickle *pickle, const struct tensor_call *call,
                               heft__file_tensor *tensor, heft_error *err)
{
    const heft__pk_object *args = call->args;
    const bool v3 = call->function == HEFT__PKG_REBUILD_TENSOR_V3;
    const uint32_t least = v3 ? 7 : 6;
    if (call->function == HEFT__PKG_REBUILD_TENSOR) {
        return args->count == 4 ? HEFT_OK : wrong_args(call, "a tensor", err);
    }
    if (args->count != least && args->count != least + 1) {
        return wrong_args(call, "a tensor", err);
    }
    if (args->items[4].kind != HEFT__PK_BOOL) {
        return heft__fail_at(err, HEFT_FORMAT, call->at, "requires_grad must be a bool, found %s",
                             heft__pk_kind_name(&args->items[4]));
    }
    if (args->items[5].kind != HEFT__PK_DICT && args->items[5].kind != HEFT__PK_NONE) {
        return heft__fail_at(err, HEFT_FORMAT, call->at, "hooks must be a dict, found %s",
                             heft__pk_kind_name(&args->items[5]));
    }
    if (v3) {
        if (args->items[6].kind != HEFT__PK_GLOBAL || args->items[6].global != HEFT__PKG_DTYPE) {
            return heft__fail_at(err, HEFT_FORMAT, call->at,
                                 "dtype must be a torch dtype, found %s",
                                 heft__pk_kind_name(&args->items[6]));
        }
        tensor->dtype = (heft_dtype)args->items[6].dtype;
    }
    return args->count > least ? read_view_bits(pickle, &args->items[least], call->at, tensor, err)
                               : HEFT_OK;
}

static heft_status check_storage_class(const struct tensor_call *call,
                                       const heft__pk_window *window, heft__file_tensor *tensor,
                                       heft_error *err)
{
    const bool untyped = window->dtype == HEFT_DTYPE_NONE;
    if (untyped != (call->function == HEFT__PKG_REBUILD_TENSOR_V3)) {
        return heft__fail_at(err, HEFT_FORMAT, call->at,
                             untyped ? "an untyped storage without a dtype"
                                     : "a typed storage and a separate dtype");
    }
    tensor->dtype = window->dtype;
    return HEFT_OK;
}

bool heft__pk_other_kind(const heft__pickle *pickle, const heft__pk_cell *cell, char maker[128])
{
    struct tensor_call call;
    if (cell->kind != HEFT__PK_CALL || unwrap(pickle, cell, &call, NULL) != HEFT_OK ||
        call.function != HEFT__PKG_REBUILD_OTHER) {
        return false;
    }
    if (is_unknown(call.other)) {
        heft__pk_class_name(pickle, call.other, maker);
    } else {
        snprintf(maker, 128, "%.*s", text_width(call.other), heft__pk_text(pickle, call.other));
    }
    return true;
}

heft_status heft__pk_build_tensor(heft__pickle_tensors *build, const heft__pk_cell *cell,
                                  heft__file_tensor *tensor, heft_error *err)
{
    const heft__pickle *pickle = build->pickle;
    int64_t sizes[RANK_MOST], strides[RANK_MOST];
    size_t rank = 0, stride_count = 0;
    const heft__pk_window *window = NULL;
    struct tensor_call call;
    heft_status status = unwrap(pickle, cell, &call, err);
    if (status != HEFT_OK) {
        return status;
    }
    tensor->item_offset = call.at;
    const heft__pk_cell *args = call.args->items;
    if (call.args->count < 4) {
        return wrong_args(&call, "a tensor", err);
    }
    if (args[0].kind != HEFT__PK_PERSID || args[1].kind != HEFT__PK_INT) {
        const bool storage = args[0].kind == HEFT__PK_PERSID;
        return heft__fail_at(err, HEFT_FORMAT, call.at, "%s, found %s",
                             storage ? "storage offset must be an integer"
                                     : "argument 0 of a tensor must be a storage",
                             heft__pk_kind_name(&args[storage ? 1 : 0]));
    }
    status = heft__pk_window_of(build, args[0].as.object, &window, err);
    if (status == HEFT_OK) {
        status = check_storage_class(&call, window, tensor, err);
    }
    if (status == HEFT_OK) {
        status = read_extras(pickle, &call, tensor, err);
    }
    if (status == HEFT_OK) {
        status = read_integers(pickle, &args[2], "size", call.at, sizes, &rank, err);
    }
    if (status == HEFT_OK) {
        status = read_integers(pickle, &args[3], "stride", call.at, strides, &stride_count, err);
    }
    if (status == HEFT_OK && rank != stride_count) {
        status =
            heft__fail_at(err, HEFT_FORMAT, call.at, "%zu sizes, %zu strides", rank, stride_count);
    }
    if (status == HEFT_OK && rank > heft__limits(build->ctx)->rank) {
        status =
            heft__fail_at(err, HEFT_LIMIT, call.at, "%zu dimensions, the limit is %u (limit rank)",
                          rank, heft__limits(build->ctx)->rank);
    }
    if (status == HEFT_OK) {
        tensor->storage = window->storage;
        status = heft__pickle_view(&build->file->arena, sizes, strides, rank, args[1].as.integer,
                                   window->first_bytes, window->bytes, tensor, err);
    }
    return status;
}
