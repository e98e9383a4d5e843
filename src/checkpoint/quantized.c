/* quantized.c - quantized weights of a checkpoint: finding them, and a view of the checkpoint in which
 * they are plain.
 *
 * The view has the files of the checkpoint open a second time, without reading anything again. In each of
 * its files a weight stands where the first of its parts stood, under its plain name; the parts and what
 * goes with them are not in it. Its elements are computed when they are read (format/decoded.c), so
 * whatever reads a checkpoint reads a view.
 * Source: docs/formats/quantized.md. */
#include "checkpoint/checkpoint.h"

/* ---- finding ---------------------------------------------------------------------------------- */
struct looked_at {
    const heft_checkpoint *ckpt;
    heft__map keys; /* of the metadata -> number */
};

static const char *metadata_of(const void *user, const char *key)
{
    const struct looked_at *at = user;
    const size_t found = heft__map_get(&at->keys, key, strlen(key));
    return found == HEFT__MAP_NONE ? NULL : at->ckpt->metadata[found].value;
}

static heft_status read_first(const void *user, size_t i, void *dst, size_t length, heft_error *err)
{
    const heft_checkpoint *ckpt = ((const struct looked_at *)user)->ckpt;
    heft__tensor_reader *reader = NULL;
    heft_status status =
        heft__tensor_reader_new(ckpt->ctx, heft__file_of(ckpt, i), ckpt->entries[i], &reader, err);
    if (status == HEFT_OK) {
        status = heft__tensor_reader_fill(reader, dst, length, err);
    }
    heft__tensor_reader_free(reader);
    return heft__checkpoint_blame(ckpt, i, status, err);
}

heft_status heft__checkpoint_find_quantized(const heft_checkpoint *ckpt, heft__arena *arena,
                                            const heft__quant_settings *settings,
                                            heft__quant_found *out, heft_error *err)
{
    struct looked_at at = {.ckpt = ckpt};
    const heft__quant_table table = {.infos = ckpt->infos,
                                     .count = ckpt->count,
                                     .names = &ckpt->names,
                                     .read = read_first,
                                     .metadata = metadata_of,
                                     .user = &at};
    heft_error why = {0};
    size_t old;
    heft_status status = HEFT_OK;
    heft__map_init(&at.keys, ckpt->ctx);
    for (size_t k = 0; k < ckpt->metadata_count && status == HEFT_OK; k++) {
        const char *key = ckpt->metadata[k].key;
        if (!heft__map_put(&at.keys, key, strlen(key), k, &old)) {
            status = heft__fail_nomem(&why, ckpt->metadata_count);
        }
    }
    if (status == HEFT_OK) {
        status = heft__quant_find(arena, &table, settings, out, &why);
    }
    heft__map_fini(&at.keys);
    if (status == HEFT_OK) {
        return HEFT_OK;
    }
    const size_t wrong = heft_checkpoint_find(ckpt, why.item);
    if (wrong != SIZE_MAX) {
        heft__add_path(status, &why, ckpt->files[ckpt->infos[wrong].file_index].info.path);
    }
    if (err) {
        *err = why;
    }
    return status;
}

/* ---- the view --------------------------------------------------------------------------------- */
struct view {
    const heft_checkpoint *base;
    heft__arena *arena; /* of the view */
    const heft__quant_found *found;
    bool *placed;       /* [found->count] */
    heft__file **files; /* [base->file_count] */
};

static heft_status make_decoded(const struct view *v, size_t w, heft__file_tensor *tensor,
                                heft_error *err)
{
    const heft__quant_weight *weight = &v->found->weights[w];
    heft__decoded *decoded = heft__arena_array(v->arena, 1, sizeof *decoded);
    uint64_t elems = 0, bytes = 0;
    if (!decoded) {
        return heft__fail_nomem(err, sizeof *decoded);
    }
    decoded->weight = weight;
    for (uint32_t p = 0; p < HEFT__QUANT_PARTS; p++) {
        const size_t part = weight->part[p];
        if (part != HEFT__NO_PART) {
            decoded->file[p] = heft__file_of(v->base, part);
            decoded->part[p] = v->base->entries[part];
        }
    }
    if (!weight->layout) {
        heft_status status =
            heft__fail(err, HEFT_UNSUPPORTED, "cannot be dequantized: %s", weight->why);
        return heft__add_item(status, err, weight->name);
    }
    if (!heft__shape_elems(weight->shape, weight->rank, &elems) ||
        !heft__dtype_bytes(weight->dtype, elems, &bytes)) {
        return heft__add_item(heft__fail(err, HEFT_FORMAT, "its size exceeds 2^64 bytes"), err,
                              weight->name);
    }
    const uint64_t *shape = weight->shape;
    if (weight->turned) {
        uint64_t *turned = heft__arena_array(v->arena, 2, sizeof *turned);
        if (!turned) {
            return heft__fail_nomem(err, 2 * sizeof *turned);
        }
        turned[0] = weight->shape[1];
        turned[1] = weight->shape[0];
        shape = turned;
    }
    *tensor = (heft__file_tensor){.name = weight->name,
                                  .dtype = weight->dtype,
                                  .rank = weight->rank,
                                  .shape = shape,
                                  .size_bytes = bytes,
                                  .item_offset = tensor->item_offset,
                                  .decoded = decoded};
    return HEFT_OK;
}

/* A weight in the place of one of its parts, on a storage of its own. */
static heft_status place_weight(const struct view *v, heft__file *file, size_t w, size_t part,
                                heft_error *err)
{
    const heft__file_tensor *from = v->base->entries[part];
    heft__file_tensor tensor = {.item_offset = from->item_offset};
    heft_status status = make_decoded(v, w, &tensor, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft__file_storage *run = &file->storages[file->storage_count];
    *run =
        (heft__file_storage){.offset = heft__file_of(v->base, part)->storages[from->storage].offset,
                             .bytes = tensor.size_bytes};
    tensor.storage = file->storage_count++;
    file->tensors[file->tensor_count++] = tensor;
    v->placed[w] = true;
    return HEFT_OK;
}

/* Open a file a second time, with room for its own tensors and those that are computed. */
static heft_status open_again(const struct view *v, size_t f, size_t weights, heft_error *err)
{
    heft__file *base = v->base->files[f].file, *file = NULL;
    heft_status status = heft__file_share(v->base->ctx, base, &file, err);
    if (status != HEFT_OK) {
        return status;
    }
    v->files[f] = file;
    const uint64_t runs = (uint64_t)base->storage_count + weights,
                   tensors = (uint64_t)base->tensor_count + weights;
    file->storages = heft__arena_array(&file->arena, runs ? runs : 1, sizeof *file->storages);
    file->tensors = heft__arena_array(&file->arena, tensors ? tensors : 1, sizeof *file->tensors);
    file->tensor_count = 0;
    if (!file->storages || !file->tensors) {
        return heft__fail_nomem(err, tensors * sizeof *file->tensors);
    }
    if (base->storage_count) {
        memcpy(file->storages, base->storages, base->storage_count * sizeof *file->storages);
    }
    return HEFT_OK;
}

static bool is_weight(const struct view *v, const heft__map *weights, const char *name)
{
    return heft_checkpoint_find(v->base, name) != SIZE_MAX ||
           heft__map_get(weights, name, strlen(name)) != HEFT__MAP_NONE;
}

/* Without the pairs that say how weights are stored. */
static heft_status drop_metadata(const struct view *v, const heft__map *weights, heft__file *file,
                                 heft_error *err)
{
    heft__text_pair *kept = heft__arena_array(&file->arena, file->metadata_count + 1, sizeof *kept);
    size_t count = 0;
    for (size_t k = 0; kept && k < file->metadata_count; k++) {
        const heft__text_pair *pair = &file->metadata[k];
        if (!heft__quant_owns_metadata(v->found, pair->key, is_weight(v, weights, pair->key))) {
            kept[count++] = *pair;
        }
    }
    file->metadata = kept;
    file->metadata_count = count;
    return kept ? HEFT_OK : heft__fail_nomem(err, count * sizeof *kept);
}

static heft_status drop_all_metadata(const struct view *v, heft_error *err)
{
    heft_status status = HEFT_OK;
    heft__map weights; /* their names */
    size_t old;
    if (!heft__quant_has_metadata(v->found)) {
        return HEFT_OK;
    }
    heft__map_init(&weights, v->base->ctx);
    for (size_t w = 0; w < v->found->count && status == HEFT_OK; w++) {
        const char *name = v->found->weights[w].name;
        status = heft__map_put(&weights, name, strlen(name), w, &old)
                     ? HEFT_OK
                     : heft__fail_nomem(err, strlen(name));
    }
    for (size_t f = 0; f < v->base->file_count && status == HEFT_OK; f++) {
        status = drop_metadata(v, &weights, v->files[f], err);
    }
    heft__map_fini(&weights);
    return status;
}

/* The weight that a tensor goes with, HEFT__QUANT_STATE for state that goes with none. */
static size_t owner_of(const heft__quant_found *found, size_t i)
{
    return found->owner ? found->owner[i] : HEFT__NO_PART;
}

/* How many weights begin in each file: an array of file_count, owned; NULL without memory. */
static size_t *count_by_file(const heft_checkpoint *base, const heft__quant_found *found,
                             bool *seen)
{
    size_t *counts = heft__alloc_zero(base->ctx, base->file_count, sizeof *counts);
    for (size_t i = 0; counts && i < base->count; i++) {
        const size_t w = owner_of(found, i);
        if (w < found->count && !seen[w]) {
            seen[w] = true;
            counts[base->infos[i].file_index]++;
        }
    }
    return counts;
}

static heft_status fill_files(const struct view *v, heft_error *err)
{
    const heft_checkpoint *base = v->base;
    size_t *counts = count_by_file(base, v->found, v->placed);
    heft_status status = counts ? HEFT_OK : heft__fail_nomem(err, base->file_count);
    for (size_t f = 0; f < base->file_count && status == HEFT_OK; f++) {
        status = open_again(v, f, counts[f], err);
    }
    heft__free(base->ctx, counts, base->file_count * sizeof *counts);
    if (status == HEFT_OK) {
        status = drop_all_metadata(v, err);
    }
    memset(v->placed, 0, v->found->count * sizeof *v->placed);
    for (size_t i = 0; i < base->count && status == HEFT_OK; i++) {
        heft__file *file = v->files[base->infos[i].file_index];
        const size_t w = owner_of(v->found, i);
        if (w == HEFT__NO_PART) {
            file->tensors[file->tensor_count++] = *base->entries[i];
        } else if (w < v->found->count && !v->placed[w]) {
            status = place_weight(v, file, w, i, err);
        }
    }
    return status;
}

/* What else than the tensors decides the values: the settings and the model's dtype. */
static heft_status digest_settings(heft_checkpoint *view, const heft__quant_settings *settings,
                                   heft_error *err)
{
    heft__buffer text;
    heft__buffer_init(&text, view->ctx);
    heft__buffer_format(&text, "%s\n", heft_dtype_name(settings->model_dtype));
    if (settings->config) {
        heft__json_write_compact(&text, settings->config);
    }
    if (settings->quanto) {
        heft__json_write_compact(&text, settings->quanto);
    }
    const heft_status status = heft__buffer_check(&text, err);
    if (status == HEFT_OK) {
        heft__digest_add(&view->computed, text.data, text.size);
    }
    heft__buffer_fini(&text);
    return status;
}

/* A second table of names and the weights that are computed take memory that opening did not. */
static heft_status check_count(const heft_checkpoint *base, heft_error *err)
{
    const uint64_t limit = heft__limits(base->ctx)->small_tensors,
                   bytes = heft__checkpoint_allowance(base, 0) / 2,
                   most = heft__add_most(limit - limit / 3, bytes / HEFT__QUOTA_BYTES);
    return base->count <= most
               ? HEFT_OK
               : heft__fail(
                     err, HEFT_LIMIT,
                     "%zu tensors, at most %llu can be dequantized: one for each %d bytes of "
                     "the files, and two thirds of the limit small_tensors",
                     base->count, (unsigned long long)most, HEFT__QUOTA_BYTES);
}

heft_status heft__checkpoint_check_unread(const heft_checkpoint *ckpt, heft_error *err)
{
    for (size_t f = 0; f < ckpt->file_count; f++) {
        const heft__file *file = ckpt->files[f].file;
        for (size_t k = 0; file && k < file->skipped_count; k++) {
            const char *name = file->skipped[k];
            if (heft__quant_is_plain_name(name) && heft_checkpoint_find(ckpt, name) == SIZE_MAX) {
                heft_status status =
                    heft__fail(err, HEFT_UNSUPPORTED,
                               "is stored as an object that heft does not read, and the weights "
                               "are quantized: they would be incomplete");
                heft__add_item(status, err, name);
                return heft__add_path(status, err, ckpt->files[f].info.path);
            }
        }
    }
    return HEFT_OK;
}

heft_status heft__checkpoint_dequantized(heft_checkpoint *base,
                                         const heft__quant_settings *settings,
                                         heft__quant_found *found, heft_checkpoint **out,
                                         heft_error *err)
{
    heft_checkpoint *view = NULL;
    heft_status status = check_count(base, err);
    if (status == HEFT_OK) {
        status = heft__checkpoint_begin_view(base, &view, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    status = heft__checkpoint_find_quantized(base, &view->arena, settings, found, err);
    if (status == HEFT_OK) {
        status = heft__quant_check_plain(found, err);
    }
    if (status == HEFT_OK && found->method) {
        status = heft__checkpoint_check_unread(base, err);
    }
    if (status == HEFT_OK && !found->method) {
        heft_checkpoint_close(view);
        return HEFT_OK;
    }
    if (status == HEFT_OK) {
        status = digest_settings(view, settings, err);
    }
    struct view v = {.base = base, .arena = &view->arena, .found = found};
    v.placed = heft__arena_array(&view->arena, found->count ? found->count : 1, sizeof *v.placed);
    v.files =
        heft__arena_array(&view->arena, base->file_count ? base->file_count : 1, sizeof *v.files);
    if (status == HEFT_OK) {
        status = v.placed && v.files ? fill_files(&v, err) : heft__fail_nomem(err, found->count);
    }
    return heft__checkpoint_finish_view(view, v.files, status, out, err);
}
