/* offload_files.c - the files of an offload folder: NAME.dat, which is nothing but elements, and the
 * tensors of a safetensors file that an index names.
 *
 *   NAME.dat   product(shape) elements, row by row, little-endian; one byte where there are none
 *
 * A .dat says nothing of itself, so its size is all that can be compared; one byte more or less is
 * another tensor. A safetensors file says what it holds, and must say what the index says: reading
 * never casts. Source: docs/formats/offload.md [1], [3]. */
#include "format/format.h"

uint64_t heft__offload_dat_bytes(uint64_t size_bytes)
{
    return size_bytes ? size_bytes : 1; /* NumPy maps no empty file */
}

heft_status heft__offload_check_writable(const char *name, heft_dtype dtype, heft_error *err)
{
    const size_t length = strlen(name),
                 most = 246; /* of 255: ".dat", and ".part" until it is whole */
    heft_status status = HEFT_OK;
    if (strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        status = heft__fail(err, HEFT_INVALID_ARG, "'%.100s.dat' cannot be a file's name", name);
    } else if (length > most) {
        status = heft__fail(err, HEFT_INVALID_ARG,
                            "the name has %zu bytes, for a file's it may have %zu", length, most);
    } else if (!heft__offload_holds(dtype)) {
        status = heft__fail(err, HEFT_INVALID_ARG, "an offload folder cannot hold %s",
                            heft_dtype_name(dtype));
    }
    return heft__add_item(status, err, name);
}

/* ---- NAME.dat -------------------------------------------------------------------------------- */
static heft__file *new_file(heft_ctx *ctx, heft__input *source)
{
    heft__file *file = heft__alloc_zero(ctx, 1, sizeof *file);
    if (file) {
        file->source = heft__input_ref(source);
        file->format = HEFT_FORMAT_OFFLOAD;
        heft__arena_init(&file->arena, ctx);
        heft__warnings_init(&file->warnings, &file->arena);
    }
    return file;
}

heft_status heft__offload_dat_open(heft_ctx *ctx, heft__input *source,
                                   const heft__offload_entry *entry, heft__offload_dat *place,
                                   heft__file **out, heft_error *err)
{
    const uint64_t found = heft__input_size(source);
    const uint64_t needed = heft__offload_dat_bytes(entry->size_bytes);
    char shape[HEFT__SHAPE_TEXT];
    if (found != needed) {
        heft_status status = heft__fail_at(err, HEFT_FORMAT, found < needed ? found : needed,
                                           "file has %llu bytes, %s %s needs %llu",
                                           (unsigned long long)found, heft_dtype_name(entry->dtype),
                                           heft__shape_text(entry->shape, entry->rank, shape),
                                           (unsigned long long)needed);
        heft__add_item(status, err, entry->name);
        return heft__add_path(status, err, heft__input_path(source));
    }
    heft__file *file = new_file(ctx, source);
    if (!file) {
        return heft__fail_nomem(err, sizeof *file);
    }
    place->storage = (heft__file_storage){.stored_bytes = found, .bytes = entry->size_bytes};
    place->tensor = (heft__file_tensor){
        .name = entry->name,
        .dtype = entry->dtype,
        .rank = entry->rank,
        .shape = entry->shape,
        .size_bytes = entry->size_bytes,
    };
    file->storages = &place->storage;
    file->tensors = &place->tensor;
    file->storage_count = file->tensor_count = 1;
    *out = file;
    return HEFT_OK;
}

/* ---- tensors of a safetensors file ----------------------------------------------------------- */
/* What the index says of one tensor against what its file says. */
static heft_status compare(const heft__offload_entry *entry, const heft__file_tensor *tensor,
                           heft_error *err)
{
    char ours[HEFT__SHAPE_TEXT], theirs[HEFT__SHAPE_TEXT];
    if (!tensor) {
        return heft__fail_at(err, HEFT_FORMAT, entry->offset, "'%.100s' is not in '%.200s'",
                             entry->weight, entry->file);
    }
    if (entry->dtype != HEFT_DTYPE_NONE && entry->dtype != tensor->dtype) {
        return heft__fail_at(err, HEFT_FORMAT, entry->offset,
                             "dtype %s in the index, %s in '%.200s'", heft_dtype_name(entry->dtype),
                             heft_dtype_name(tensor->dtype), entry->file);
    }
    if (entry->shape &&
        !heft__shape_equal(entry->shape, entry->rank, tensor->shape, tensor->rank)) {
        return heft__fail_at(err, HEFT_FORMAT, entry->offset,
                             "shape %s in the index, %s in '%.200s'",
                             heft__shape_text(entry->shape, entry->rank, ours),
                             heft__shape_text(tensor->shape, tensor->rank, theirs), entry->file);
    }
    return HEFT_OK;
}

static heft_status select_tensors(heft__file *file, heft__map *map,
                                  const heft__offload_entry *const *entries, size_t count,
                                  heft_error *err)
{
    heft__file_tensor *chosen = heft__arena_array(&file->arena, count, sizeof *chosen);
    size_t found;
    if (!chosen) {
        return heft__fail_nomem(err, count * sizeof *chosen);
    }
    for (size_t i = 0; i < file->tensor_count; i++) {
        const char *name = file->tensors[i].name;
        if (!heft__map_put(map, name, strlen(name), i, &found)) {
            return heft__fail_nomem(err, strlen(name));
        }
    }
    for (size_t i = 0; i < count; i++) {
        const size_t at = heft__map_get(map, entries[i]->weight, strlen(entries[i]->weight));
        const heft__file_tensor *tensor = at == HEFT__MAP_NONE ? NULL : &file->tensors[at];
        heft_status status = compare(entries[i], tensor, err);
        if (status != HEFT_OK) {
            return heft__add_item(status, err, entries[i]->name);
        }
        chosen[i] = *tensor;
        chosen[i].name = entries[i]->name;
        file->storages[tensor->storage].record = tensor->name;
    }
    file->tensors = chosen;
    file->tensor_count = count;
    return HEFT_OK;
}

heft_status heft__offload_select(heft_ctx *ctx, heft__file *file, const char *index_path,
                                 const heft__offload_entry *const *entries, size_t count,
                                 heft_error *err)
{
    heft__map map;
    if (file->format != HEFT_FORMAT_SAFETENSORS) {
        heft_status status = heft__fail_at(err, HEFT_FORMAT, 0, "is '%s', expected safetensors",
                                           heft_format_name(file->format));
        heft__add_item(status, err, entries[0]->name);
        return heft__add_path(status, err, heft__input_path(file->source));
    }
    heft__map_init(&map, ctx);
    heft_status status = select_tensors(file, &map, entries, count, err);
    heft__map_fini(&map);
    return heft__add_path(status, err, index_path);
}

/* ---- writing --------------------------------------------------------------------------------- */
heft_status heft__offload_dat_write(heft__folder_writer *folder, const heft__out_tensor *tensor,
                                    heft__out_read_fn read, void *user, void *scratch,
                                    size_t scratch_bytes, heft_error *err)
{
    const unsigned width = heft_dtype_bits(tensor->dtype) / 8; /* pieces are whole elements */
    const size_t most = scratch_bytes - scratch_bytes % width;
    heft_status status = HEFT_OK;
    for (uint64_t done = 0; done < tensor->size_bytes && status == HEFT_OK;) {
        const uint64_t left = tensor->size_bytes - done;
        const size_t piece = left < most ? (size_t)left : most;
        status = read(user, tensor, done, scratch, piece, err);
        if (status == HEFT_OK) {
            status = heft__folder_write(folder, scratch, piece, err);
        }
        done += piece;
    }
    if (status == HEFT_OK && tensor->size_bytes == 0) {
        status = heft__folder_write(folder, "", 1, err);
    }
    return status;
}
