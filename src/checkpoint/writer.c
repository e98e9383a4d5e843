/* writer.c - collecting tensors of the caller's own for a checkpoint.
 *
 * Everything that is wrong with one tensor, name or option is an error where it is given; what takes
 * all of them together is looked at by the commit (writer_commit.c). Tensors keep a reference on their
 * storage; names, shapes and side files are copied.
 * Source: docs/writing.md. */
#include "checkpoint/writing.h"

/* ---- beginning ------------------------------------------------------------------------------- */
static const char *copy_text(heft__arena *arena, const char *text)
{
    return text ? heft__arena_text(arena, text, strlen(text)) : NULL;
}

/* A destination that is one file: its folder and its name. */
static heft_status split_destination(heft_writer *w, heft_error *err)
{
    const char *base = heft__path_base(w->dst);
    const size_t length = (size_t)(base - w->dst);
    w->folder = length == 0   ? "."
                : length == 1 ? "/"
                              : heft__arena_text(&w->arena, w->dst, length - 1);
    w->single = base;
    if (!w->folder) {
        return heft__fail_nomem(err, length);
    }
    return *base && strcmp(base, ".") != 0 && strcmp(base, "..") != 0
               ? HEFT_OK
               : heft__fail(err, HEFT_INVALID_ARG, "destination has no file name");
}

static heft_status find_format(heft_writer *w, heft_error *err)
{
    const heft_format asked = w->options.format;
    if (asked == HEFT_FORMAT_AUTO && w->single) {
        w->format = heft__format_by_name(w->single);
        return w->format
                   ? HEFT_OK
                   : heft__fail(err, HEFT_INVALID_ARG,
                                "the file name does not determine the format: '%.200s'", w->single);
    }
    w->format =
        asked == HEFT_FORMAT_AUTO ? heft__format_in_folder(NULL, 0) : heft__format_find(asked);
    return w->format && w->format->lay_out
               ? HEFT_OK
               : heft__fail(err, HEFT_INVALID_ARG, "format '%s' is read-only",
                            heft_format_name(asked));
}

static heft_status check_options(const heft_writer *w, heft_error *err)
{
    const heft_writer_options *options = &w->options;
    const bool cut = options->max_shard_bytes || (options->variant && *options->variant);
    if (w->single && w->format->file_each) {
        return heft__fail(err, HEFT_INVALID_ARG, "%s is not a single file", w->format->noun);
    }
    if (cut && (w->single || w->format->file_each)) {
        return heft__fail(err, HEFT_INVALID_ARG, "%s has no %s",
                          w->single ? "a single file" : w->format->noun,
                          options->max_shard_bytes ? "shards" : "variants");
    }
    if ((unsigned)options->ties > HEFT_TIES_COPY) {
        return heft__fail(err, HEFT_INVALID_ARG, "unknown mode for ties: %d", (int)options->ties);
    }
    if (options->module_count && !options->modules) {
        return heft__fail(err, HEFT_INVALID_ARG, "the module list is NULL");
    }
    return HEFT_OK;
}

/* What the options point to is copied. */
static heft_status keep_options(heft_writer *w, heft_error *err)
{
    heft_writer_options *options = &w->options;
    const size_t count = options->module_count;
    const char **modules = heft__arena_array(&w->arena, count, sizeof *modules);
    const char *variant = copy_text(&w->arena, options->variant);
    uint32_t *versions = heft__arena_array(&w->arena, count, sizeof *versions);
    bool good = modules && versions && (variant || !options->variant);
    for (size_t i = 0; i < count && good; i++) {
        const char *path = options->modules[i];
        if (!path || heft__utf8_invalid_at((const uint8_t *)path, strlen(path)) != strlen(path)) {
            return heft__fail(err, HEFT_INVALID_ARG, "module path %zu is not valid UTF-8", i);
        }
        modules[i] = copy_text(&w->arena, path);
        versions[i] = options->module_versions ? options->module_versions[i] : 1;
        good = modules[i] != NULL;
    }
    options->modules = modules;
    options->module_versions = versions;
    options->variant = variant;
    return good ? HEFT_OK : heft__fail_nomem(err, count * sizeof *modules);
}

static heft_status begin(heft_writer *w, const char *dst, heft_error *err)
{
    w->dst = copy_text(&w->arena, dst);
    if (!w->dst) {
        return heft__fail_nomem(err, strlen(dst));
    }
    w->folder = w->dst;
    heft_status status = *dst ? HEFT_OK : heft__fail(err, HEFT_INVALID_ARG, "destination is empty");
    if (status == HEFT_OK && w->options.single_file) {
        status = split_destination(w, err);
    }
    if (status == HEFT_OK) {
        status = find_format(w, err);
    }
    if (status == HEFT_OK) {
        status = check_options(w, err);
    }
    if (status == HEFT_OK) {
        status = keep_options(w, err);
    }
    return status == HEFT_OK && w->format->metadata ? heft__metadata_standard(&w->metadata, err)
                                                    : status;
}

heft_status heft_writer_new(heft_ctx *ctx, const char *dst, const heft_writer_options *options,
                            heft_writer **out, heft_error *err)
{
    heft_writer_options taken;
    if (!ctx || !dst || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, destination or result is NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft_writer *w = heft__alloc_zero(ctx, 1, sizeof *w);
    if (!w) {
        return heft__fail_nomem(err, sizeof *w);
    }
    w->ctx = heft__ctx_ref(ctx);
    w->options = taken;
    heft__arena_init(&w->arena, ctx);
    heft__map_init(&w->names, ctx);
    heft__map_init(&w->side_names, ctx);
    heft__metadata_init(&w->metadata, &w->arena);
    status = begin(w, dst, err);
    if (status != HEFT_OK) {
        heft_writer_free(w);
        return heft__add_path(status, err, dst);
    }
    *out = w;
    return HEFT_OK;
}

void heft_writer_free(heft_writer *writer)
{
    if (!writer) {
        return;
    }
    for (size_t i = 0; i < writer->count; i++) {
        heft_tensor_free(writer->list[i].tensor);
    }
    heft_ctx *ctx = writer->ctx;
    heft__free(ctx, writer->list, writer->cap * sizeof *writer->list);
    heft__free(ctx, writer->sides, writer->side_cap * sizeof *writer->sides);
    heft__map_fini(&writer->names);
    heft__map_fini(&writer->side_names);
    heft__metadata_fini(&writer->metadata);
    heft__arena_fini(&writer->arena);
    heft__free(ctx, writer, sizeof *writer);
    heft_ctx_free(ctx);
}

static heft_status check_open(const heft_writer *w, heft_error *err)
{
    return w->committed ? heft__fail(err, HEFT_INVALID_ARG, "the writer has already been committed")
                        : HEFT_OK;
}

/* ---- adding ---------------------------------------------------------------------------------- */
static heft_status check_name(const heft_writer *w, const char *name, heft_error *err)
{
    const size_t length = strlen(name);
    const uint64_t most = heft__limits(w->ctx)->name_bytes;
    if (length == 0) {
        return heft__fail(err, HEFT_INVALID_ARG, "the tensor name is empty");
    }
    if (heft__utf8_invalid_at((const uint8_t *)name, length) != length) {
        return heft__fail(err, HEFT_INVALID_ARG, "the name is not valid UTF-8");
    }
    if (length > most) {
        return heft__fail(err, HEFT_LIMIT,
                          "tensor name has %zu bytes, the limit is %llu (limit name_bytes)", length,
                          (unsigned long long)most);
    }
    return heft__map_get(&w->names, name, length) == HEFT__MAP_NONE
               ? HEFT_OK
               : heft__fail(err, HEFT_INVALID_ARG, "a tensor with this name was already added");
}

static heft_status check_format(const heft_writer *w, const heft__addition *addition,
                                heft_error *err)
{
    const uint32_t most = heft__limits(w->ctx)->rank;
    const heft__out_tensor out = {.name = addition->name,
                                  .dtype = addition->dtype,
                                  .rank = addition->rank,
                                  .shape = addition->shape,
                                  .size_bytes = addition->size_bytes};
    return out.rank <= most
               ? w->format->check(&out, err)
               : heft__fail(err, HEFT_LIMIT, "the tensor has rank %u, the limit is %u (limit rank)",
                            out.rank, most);
}

/* Take over an addition whose name is the caller's, and whose shape is in the arena or its tensor's. */
static heft_status take(heft_writer *w, heft__addition *addition, heft_error *err)
{
    size_t found;
    heft_status status = check_format(w, addition, err);
    const char *name = status == HEFT_OK ? copy_text(&w->arena, addition->name) : NULL;
    if (status == HEFT_OK &&
        (!name ||
         !heft__array_reserve(w->ctx, (void **)&w->list, w->count, &w->cap, sizeof *w->list) ||
         !heft__map_put(&w->names, name, strlen(name), w->count, &found))) {
        status = heft__fail_nomem(err, strlen(addition->name));
    }
    if (status == HEFT_OK) {
        addition->name = name;
        w->list[w->count++] = *addition;
    }
    return status;
}

/* Whether elements lie row by row; a dimension of one element may have any stride. */
static bool is_plain(const heft_tensor *tensor)
{
    uint64_t step = 1;
    for (uint32_t d = tensor->rank; d-- > 0;) {
        if (tensor->shape[d] != 1 && (uint64_t)tensor->strides[d] != step) {
            return tensor->size_bytes == 0;
        }
        step *= tensor->shape[d]; /* the product is known to fit */
    }
    return true;
}

/* Bytes from the first to the last element, which are known to lie in the storage. */
static uint64_t extent_of(const heft_tensor *tensor)
{
    uint64_t last = 0;
    for (uint32_t d = 0; d < tensor->rank; d++) {
        last += (tensor->shape[d] - 1) * (uint64_t)tensor->strides[d];
    }
    return (last + 1) * (heft_dtype_bits(tensor->dtype) / 8);
}

/* A tensor of the writer's own on the caller's storage, which checks what the caller's says. */
static heft_status copy_tensor(const heft_tensor *tensor, heft_tensor **out, heft_error *err)
{
    heft_tensor *own = NULL;
    if (!tensor->storage) {
        return heft__fail(err, HEFT_INVALID_ARG, "the tensor has no storage");
    }
    if (tensor->device != HEFT_DEVICE_CPU) {
        return heft__fail(err, HEFT_INVALID_ARG, "memory of device %d cannot be read by the CPU",
                          tensor->device);
    }
    const heft_tensor_spec spec = HEFT_OPTIONS(
        heft_tensor_spec, .dtype = tensor->dtype, .rank = tensor->rank, .shape = tensor->shape,
        .strides = tensor->strides, .offset_bytes = tensor->offset_bytes);
    heft_status status = heft_tensor_new(tensor->storage, &spec, &own, err);
    if (!own) {
        return status;
    }
    if (own->size_bytes != tensor->size_bytes) {
        status =
            heft__fail(err, HEFT_INVALID_ARG, "the tensor has %llu bytes, its shape needs %llu",
                       (unsigned long long)tensor->size_bytes, (unsigned long long)own->size_bytes);
    } else if (own->data != tensor->data) {
        status = heft__fail(err, HEFT_INVALID_ARG,
                            "the tensor's data pointer does not match its offset in the storage");
    } else if (heft_dtype_bits(own->dtype) % 8 && !is_plain(own)) {
        status = heft__fail(err, HEFT_INVALID_ARG, "a tensor of %s cannot be strided",
                            heft_dtype_name(own->dtype));
    }
    if (status != HEFT_OK) {
        heft_tensor_free(own);
        return status;
    }
    *out = own;
    return HEFT_OK;
}

heft_status heft_writer_add(heft_writer *writer, const char *name, const heft_tensor *tensor,
                            heft_error *err)
{
    heft_tensor *own = NULL;
    if (!writer || !name || !tensor) {
        return heft__fail(err, HEFT_INVALID_ARG, "writer, name or tensor is NULL");
    }
    heft_status status = check_open(writer, err);
    if (status == HEFT_OK) {
        status = check_name(writer, name, err);
    }
    if (status == HEFT_OK) {
        status = copy_tensor(tensor, &own, err);
    }
    if (status == HEFT_OK && own) {
        const bool plain = is_plain(own);
        heft__addition addition = {.name = name,
                                   .dtype = own->dtype,
                                   .rank = own->rank,
                                   .shape = own->shape,
                                   .size_bytes = own->size_bytes,
                                   .tensor = own,
                                   .plain = plain,
                                   .extent_bytes = plain ? own->size_bytes : extent_of(own)};
        status = take(writer, &addition, err);
    }
    if (status != HEFT_OK) {
        heft_tensor_free(own);
    }
    return heft__add_item(status, err, name);
}

static heft_status check_spec(const heft_writer *w, const heft_tensor_spec *spec, uint64_t *bytes,
                              heft_error *err)
{
    const uint32_t most = heft__limits(w->ctx)->rank;
    char shape[HEFT__SHAPE_TEXT];
    if (spec->rank > most) { /* before that many dimensions are copied */
        return heft__fail(err, HEFT_LIMIT, "the tensor has rank %u, the limit is %u (limit rank)",
                          spec->rank, most);
    }
    if (spec->rank > 0 && !spec->shape) {
        return heft__fail(err, HEFT_INVALID_ARG, "the tensor has rank %u, but its shape is NULL",
                          spec->rank);
    }
    if (spec->strides || spec->offset_bytes) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "bytes from a callback cannot have strides or an offset");
    }
    return heft__shape_bytes(spec->dtype, spec->shape, spec->rank, bytes)
               ? HEFT_OK
               : heft__fail(err, HEFT_INVALID_ARG, "shape %s of %s has no valid size in bytes",
                            heft__shape_text(spec->shape, spec->rank, shape),
                            heft_dtype_name(spec->dtype));
}

heft_status heft_writer_add_from(heft_writer *writer, const char *name,
                                 const heft_tensor_spec *spec, heft_fill_fn fill, void *user,
                                 heft_error *err)
{
    heft_tensor_spec taken;
    uint64_t bytes = 0;
    if (!writer || !name || !spec || !fill) {
        return heft__fail(err, HEFT_INVALID_ARG, "writer, name, spec or callback is NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&taken, spec, err);
    if (status == HEFT_OK) {
        status = check_open(writer, err);
    }
    if (status == HEFT_OK) {
        status = check_name(writer, name, err);
    }
    if (status == HEFT_OK) {
        status = check_spec(writer, &taken, &bytes, err);
    }
    if (status == HEFT_OK) {
        uint64_t *shape = heft__arena_array(&writer->arena, taken.rank, sizeof *shape);
        heft__addition addition = {.name = name,
                                   .dtype = taken.dtype,
                                   .rank = taken.rank,
                                   .shape = shape,
                                   .size_bytes = bytes,
                                   .fill = fill,
                                   .user = user};
        if (shape && taken.rank > 0) {
            memcpy(shape, taken.shape, taken.rank * sizeof *shape);
        }
        status = shape ? take(writer, &addition, err)
                       : heft__fail_nomem(err, taken.rank * sizeof *shape);
    }
    return heft__add_item(status, err, name);
}

/* ---- what is not a tensor --------------------------------------------------------------------- */
heft_status heft_writer_metadata(heft_writer *writer, const char *key, const char *value,
                                 heft_error *err)
{
    if (!writer || !key) {
        return heft__fail(err, HEFT_INVALID_ARG, "writer or key is NULL");
    }
    heft_status status = check_open(writer, err);
    if (status == HEFT_OK && !writer->format->metadata) {
        status = heft__fail(err, HEFT_INVALID_ARG, "%s cannot hold metadata", writer->format->noun);
    }
    if (status == HEFT_OK) {
        status = heft__metadata_check(key, value, err);
    }
    if (status == HEFT_OK) {
        const heft_metadata_pair pair = {copy_text(&writer->arena, key),
                                         copy_text(&writer->arena, value)};
        status = pair.key && (pair.value || !value)
                     ? heft__metadata_set(&writer->metadata, &pair, 1, err)
                     : heft__fail_nomem(err, strlen(key));
    }
    return heft__add_item(status, err, key);
}

/* Whether a loader would take a file of this name for weights or an index of weights. */
static heft_status is_entry_point(const heft_writer *w, heft__arena *arena, const char *name,
                                  bool *is, heft_error *err)
{
    const char *variant = w->options.variant;
    const heft__format *format;
    *is = false;
    for (size_t i = 0; (format = heft__format_in_folder(NULL, i)) != NULL; i++) {
        if (format->file_each) {
            continue; /* its names are those that are written */
        }
        const char *single = heft__weights_single(arena, format, variant);
        const char *index = heft__weights_index(arena, format, variant);
        if (!single || !index) {
            return heft__fail_nomem(err, strlen(name));
        }
        *is = *is || strcmp(name, single) == 0 || strcmp(name, index) == 0 ||
              heft__is_shard_name(name, format, variant);
    }
    return HEFT_OK;
}

static heft_status check_side_name(const heft_writer *w, const char *name, heft_error *err)
{
    heft__arena arena;
    bool weights = false;
    if (w->single) {
        return heft__fail(err, HEFT_INVALID_ARG, "a single file cannot have side files");
    }
    if (!*name || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        return heft__fail(err, HEFT_INVALID_ARG, "is not a plain file name");
    }
    if (heft__map_get(&w->side_names, name, strlen(name)) != HEFT__MAP_NONE) {
        return heft__fail(err, HEFT_INVALID_ARG, "a file with this name was already added");
    }
    heft__arena_init(&arena, w->ctx);
    heft_status status = is_entry_point(w, &arena, name, &weights, err);
    heft__arena_fini(&arena);
    return status == HEFT_OK && weights
               ? heft__fail(err, HEFT_INVALID_ARG, "would be mistaken for a weight file")
               : status;
}

heft_status heft_writer_side_file(heft_writer *writer, const char *name, const void *bytes,
                                  size_t length, heft_error *err)
{
    if (!writer || !name || (!bytes && length > 0)) {
        return heft__fail(err, HEFT_INVALID_ARG, "writer, name or bytes are NULL");
    }
    heft_status status = check_open(writer, err);
    if (status == HEFT_OK) {
        status = check_side_name(writer, name, err);
    }
    if (status != HEFT_OK) {
        return heft__add_item(status, err, name);
    }
    size_t found;
    const heft__side_file side = {.name = copy_text(&writer->arena, name),
                                  .bytes =
                                      heft__arena_text(&writer->arena, bytes ? bytes : "", length),
                                  .length = length};
    if (!side.name || !side.bytes ||
        !heft__array_reserve(writer->ctx, (void **)&writer->sides, writer->side_count,
                             &writer->side_cap, sizeof side) ||
        !heft__map_put(&writer->side_names, side.name, strlen(side.name), writer->side_count,
                       &found)) {
        return heft__add_item(heft__fail_nomem(err, length), err, name);
    }
    writer->sides[writer->side_count++] = side;
    return HEFT_OK;
}

heft_status heft_file_write(heft_ctx *ctx, const char *path, const void *data, size_t size,
                            heft_error *err)
{
    if (!ctx || !path || (!data && size > 0)) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, path or data is NULL");
    }
    return heft__write_file(ctx, path, data, size, err);
}
