/* offload_store.c - what a device map leaves on the disk, as Accelerate's offload folder.
 *
 * A tensor that lies in a safetensors file as the model wants it is an entry that points there; a
 * .dat is written only for the rest: .bin files, casts, strides, parts of stacked tensors, what the
 * checkpoint lacks. A .dat holds what the model's parameter is, and a weight lives there from then on;
 * buffers are in memory all the same. Tied names have an entry each: Accelerate asks for both.
 *
 * An index that is in the folder already is compared with the one that would be written, name by
 * name, and each .dat byte by byte; nothing of it is trusted, and nothing is merged into it.
 * Source: docs/placing.md [8], docs/formats/offload.md. */
#include "load/load.h"

#include <stdlib.h>

#define INDEX_NAME HEFT__OFFLOAD_INDEX

/* ---- which parameters, and how --------------------------------------------------------------- */
static bool is_on_disk(const heft__store *s, size_t i)
{
    const heft_parameter *parameter = &s->model->parameters[i];
    return parameter->kind != HEFT_PARAMETER_BUFFER_TRANSIENT && s->devices[i] == HEFT_DEVICE_DISK;
}

/* Whether a parameter is its whole tensor. */
static bool is_whole(const heft_parameter *parameter, const heft_tensor_info *info)
{
    return heft__shape_equal(parameter->shape, parameter->rank, info->shape, info->rank);
}

/* A file's path from the root, through whatever its name is a link to; owned by the arena. */
static heft_status absolute_path(heft__store *s, const char *path, const char **out,
                                 heft_error *err)
{
    const char *base = heft__path_base(path);
    const size_t length = (size_t)(base - path);
    char *folder = heft__arena_text(&s->arena, length ? path : ".", length ? length : 1);
    char *real = folder ? realpath(folder, NULL) : NULL;
    heft_status status = HEFT_OK;
    if (!real) {
        status = folder ? heft__fail(err, HEFT_IO, "cannot resolve the path of its folder")
                        : heft__fail_nomem(err, length);
    } else if (heft__utf8_invalid_at((const uint8_t *)real, strlen(real)) < strlen(real) ||
               heft__utf8_invalid_at((const uint8_t *)base, strlen(base)) < strlen(base)) {
        status = heft__fail(err, HEFT_INVALID_ARG,
                            "an index cannot contain a path that is not valid UTF-8");
    } else {
        *out = heft__path_join(&s->arena, real, base);
        status = *out ? HEFT_OK : heft__fail_nomem(err, strlen(real));
    }
    free(real);
    return heft__add_path(status, err, path);
}

/* The entry of a tensor that can stay in its safetensors file. */
static heft_status point_to(heft__store *s, heft__offload_entry *entry, size_t tensor,
                            heft_error *err)
{
    const size_t number = s->ckpt->infos[tensor].file_index;
    const heft__checkpoint_file *file = &s->ckpt->files[number];
    const char *record = file->file->storages[s->ckpt->entries[tensor]->storage].record;
    heft_status status = HEFT_OK;
    if (!s->paths[number]) {
        status = absolute_path(s, file->info.path, &s->paths[number], err);
    }
    entry->file = s->paths[number];
    entry->weight =
        record ? record : s->ckpt->infos[tensor].name; /* an index may call it otherwise */
    return status;
}

/* Parameter i, whose bytes are those of `root`. */
static heft_status add_entry(heft__store *s, size_t i, size_t root, heft_error *err)
{
    const heft_parameter *parameter = &s->model->parameters[i];
    const size_t tensor = s->source[root];
    const heft_tensor_info *info = tensor == HEFT__NO_TENSOR ? NULL : &s->ckpt->infos[tensor];
    heft__offload_entry *entry = &s->entries[s->count];
    *entry = (heft__offload_entry){.name = parameter->name,
                                   .dtype = parameter->dtype,
                                   .rank = parameter->rank,
                                   .shape = parameter->shape,
                                   .size_bytes = parameter->size_bytes};
    s->root[s->count++] = root;
    const bool same = info && info->dtype == parameter->dtype && info->offset != HEFT_NO_OFFSET &&
                      heft__checkpoint_has_folder(s->ckpt);
    if (same && is_whole(parameter, info) && heft__offload_holds(info->dtype) &&
        s->ckpt->files[info->file_index].file->format == HEFT_FORMAT_SAFETENSORS) {
        return point_to(s, entry, tensor, err);
    }
    if (info && !is_whole(parameter, info) && info->offset == HEFT_NO_OFFSET) {
        return heft__add_item(heft__fail(err, HEFT_UNSUPPORTED,
                                         "is part of '%.100s', which is strided or packed",
                                         info->name),
                              err, parameter->name);
    }
    if (info && !heft__cast_known(info->dtype, parameter->dtype)) {
        return heft__add_item(
            heft__cast_check(info->dtype, parameter->dtype, HEFT_UNSUPPORTED, err), err,
            parameter->name);
    }
    s->dat_count++;
    s->dat_bytes += heft__offload_dat_bytes(entry->size_bytes); /* both fit: the model does */
    s->taken[root] |= i == root && parameter->kind == HEFT_PARAMETER_WEIGHT;
    return heft__offload_check_writable(parameter->name, parameter->dtype, err);
}

heft_status heft__store_plan(heft__store *s, heft_model *model, heft_checkpoint *ckpt,
                             heft__match *match, const heft_load_options *options,
                             const int32_t *devices, heft_error *err)
{
    const size_t count = model->count;
    *s = (heft__store){
        .model = model, .ckpt = ckpt, .match = match, .options = options, .devices = devices};
    heft__arena_init(&s->arena, model->ctx);
    if (!devices) {
        return heft__fail(err, HEFT_INVALID_ARG, "an offload folder requires a plan");
    }
    s->entries = heft__arena_array(&s->arena, count, sizeof *s->entries);
    s->root = heft__arena_array(&s->arena, count, sizeof *s->root);
    s->source = heft__arena_array(&s->arena, count, sizeof *s->source);
    s->taken = heft__arena_array(&s->arena, count, sizeof *s->taken);
    s->paths = heft__arena_array(&s->arena, ckpt->file_count, sizeof *s->paths);
    if (!s->entries || !s->root || !s->source || !s->taken || !s->paths) {
        return heft__fail_nomem(err, count * sizeof *s->entries);
    }
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < count; i++) {
        s->source[i] = match->source[i];
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        if (is_on_disk(s, i)) {
            status = add_entry(s, i, model->parameters[i].tied_to, err);
        }
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        if (s->taken[i]) { /* not to be filled, but mapped when its .dat is there */
            match->source[i] = HEFT__NO_TENSOR;
        }
    }
    return status;
}

void heft__store_fini(heft__store *s)
{
    if (s->model) {
        heft__tensor_reader_free(s->reader);
        heft_checkpoint_close(s->folder);
        heft__free(s->model->ctx, s->scratch, s->scratch_bytes);
        heft__free(s->model->ctx, s->raw, s->raw_bytes);
        heft__arena_fini(&s->arena);
    }
    *s = (heft__store){0};
}

/* ---- the bytes of a .dat --------------------------------------------------------------------- */
/* The next `length` bytes of the source, in its own dtype. */
static heft_status read_source(heft__store *s, size_t root, uint64_t element, void *dst,
                               size_t length, heft_error *err)
{
    const size_t tensor = s->source[root];
    const heft_tensor_info *info = &s->ckpt->infos[tensor];
    const heft__file *file = heft__file_of(s->ckpt, tensor);
    heft_status status = HEFT_OK;
    if (!is_whole(&s->model->parameters[root], info)) { /* a part: it lies in one plain run */
        const uint64_t at = (s->match->first[root] + element) * (heft_dtype_bits(info->dtype) / 8);
        return heft__input_read(file->source, info->offset + at, dst, length, err);
    }
    if (element == 0) {
        heft__tensor_reader_free(s->reader);
        s->reader = NULL;
        status =
            heft__tensor_reader_new(s->model->ctx, file, s->ckpt->entries[tensor], &s->reader, err);
    }
    return status == HEFT_OK ? heft__tensor_reader_fill(s->reader, dst, length, err) : status;
}

/* Fill dst with `length` bytes of the parameter from byte `first` on; called in rising order. */
static heft_status read_piece(void *user, const heft__out_tensor *out, uint64_t first, void *dst,
                              size_t length, heft_error *err)
{
    heft__store *s = user;
    const size_t root = (size_t)(uintptr_t)out->source, tensor = s->source[root];
    const heft_parameter *parameter = &s->model->parameters[root];
    const size_t to_bytes = heft_dtype_bits(parameter->dtype) / 8, elems = length / to_bytes;
    const heft_dtype from =
        tensor == HEFT__NO_TENSOR ? HEFT_DTYPE_F32 : s->ckpt->infos[tensor].dtype;
    const size_t most = s->raw_bytes * 8 / heft_dtype_bits(from);
    heft_status status =
        heft__tell_progress(s->model->ctx, "offloading", s->done_bytes, s->dat_bytes, err);
    for (size_t done = 0, count; done < elems && status == HEFT_OK; done += count) {
        const uint64_t element = first / to_bytes + done;
        uint8_t *to = (uint8_t *)dst + done * to_bytes;
        count = elems - done < most ? elems - done : most;
        if (tensor == HEFT__NO_TENSOR) {
            status = heft__init_fill(parameter, s->model->rules[root], s->options->seed, element,
                                     count, s->raw, to, err);
        } else if (from == parameter->dtype) {
            status = read_source(s, root, element, to, count * to_bytes, err);
        } else {
            status = read_source(s, root, element, s->raw, count * heft_dtype_bits(from) / 8, err);
            if (status == HEFT_OK) {
                heft__cast(parameter->dtype, to, from, s->raw, count);
            }
        }
    }
    s->done_bytes += length;
    return heft__add_item(status, err, out->name);
}

static heft__out_tensor out_tensor(const heft__store *s, size_t i)
{
    const heft__offload_entry *entry = &s->entries[i];
    return (heft__out_tensor){.name = entry->name,
                              .dtype = entry->dtype,
                              .rank = entry->rank,
                              .shape = entry->shape,
                              .size_bytes = entry->size_bytes,
                              .source = (void *)(uintptr_t)s->root[i]};
}

static const char *dat_name(heft__store *s, size_t i)
{
    return heft__arena_format(&s->arena, "%s.dat", s->entries[i].name);
}

/* ---- a folder that is there ------------------------------------------------------------------ */
static heft_status is_gone(const heft__store *s, const char *name, heft_error *err)
{
    return heft__add_path(heft__fail(err, HEFT_IO, "'%.100s' has disappeared", name), err,
                          s->options->offload_folder);
}

/* The folder as a checkpoint. What the source has open is not opened again: its safetensors files, or
 * all of it, if the folder is the source. */
static heft_status open_folder(heft__store *s, heft_error *err)
{
    const heft_checkpoint_options options = HEFT_SIZED(heft_checkpoint_options);
    if (s->ckpt->index.claims && heft__path_same(s->ckpt->index.path, s->index)) {
        s->folder = heft__checkpoint_ref(s->ckpt);
        return HEFT_OK;
    }
    return heft__checkpoint_survey_beside(s->model->ctx, s->index, &options, s->ckpt, s->paths,
                                          &s->folder, err);
}

/* `old` is NULL where the index that is there does not have the name. */
static heft_status differs(const heft__offload_entry *old, const char *name, const char *what,
                           const char *ours, const char *theirs, heft_error *err)
{
    (void)heft__fail_at(err, HEFT_EXISTS, old ? old->offset : HEFT_NO_OFFSET,
                        "expected %s %.150s, the existing index has %.150s", what, ours, theirs);
    return heft__add_item(HEFT_EXISTS, err, name);
}

static const char *place_of(const heft__offload_entry *entry)
{
    return entry->file ? entry->file : "a .dat file";
}

/* One entry against the one that would be written. */
static heft_status compare_entry(const heft__offload_entry *ours, const heft__offload_entry *old,
                                 heft_error *err)
{
    char here[HEFT__SHAPE_TEXT], there[HEFT__SHAPE_TEXT];
    if (!old) {
        return differs(NULL, ours->name, "tensor", ours->name, "no tensor of this name", err);
    }
    if (old->dtype != HEFT_DTYPE_NONE && old->dtype != ours->dtype) {
        return differs(old, ours->name, "dtype", heft_dtype_name(ours->dtype),
                       heft_dtype_name(old->dtype), err);
    }
    if (old->shape && !heft__shape_equal(old->shape, old->rank, ours->shape, ours->rank)) {
        return differs(old, ours->name, "shape", heft__shape_text(ours->shape, ours->rank, here),
                       heft__shape_text(old->shape, old->rank, there), err);
    }
    if (!old->file != !ours->file || (ours->file && strcmp(old->file, ours->file) != 0)) {
        return differs(old, ours->name, "data in", place_of(ours), place_of(old), err);
    }
    if (ours->file && strcmp(old->weight, ours->weight) != 0) {
        return differs(old, ours->name, "weight_name", ours->weight, old->weight, err);
    }
    return HEFT_OK;
}

/* What the index that is there says of its entry i. */
static heft__offload_entry entry_there(const heft__index *index, size_t i)
{
    const heft__claim *claim = &index->claims[i];
    return (heft__offload_entry){.name = index->entries[i].name,
                                 .file = claim->alone ? NULL
                                                      : index->files[index->entries[i].file].path,
                                 .weight = claim->weight,
                                 .dtype = claim->dtype,
                                 .rank = claim->rank,
                                 .shape = claim->shape,
                                 .offset = index->entries[i].offset};
}

static heft_status put_name(heft__map *map, const char *name, size_t i, heft_error *err)
{
    size_t found;
    return heft__map_put(map, name, strlen(name), i, &found) ? HEFT_OK
                                                             : heft__fail_nomem(err, strlen(name));
}

/* The first of the index that is there that is not to be. */
static heft_status find_extra(const heft__store *s, const heft__index *there, heft_error *err)
{
    heft__map names;
    heft_status status = HEFT_OK;
    heft__map_init(&names, s->model->ctx);
    for (size_t i = 0; i < s->count && status == HEFT_OK; i++) {
        status = put_name(&names, s->entries[i].name, i, err);
    }
    for (size_t i = 0; i < there->entry_count && status == HEFT_OK; i++) {
        const heft__offload_entry old = entry_there(there, i);
        if (heft__map_get(&names, old.name, strlen(old.name)) == HEFT__MAP_NONE) {
            status = differs(&old, old.name, "no tensor", old.name, "one", err);
        }
    }
    heft__map_fini(&names);
    return status;
}

static heft_status compare_indexes(const heft__store *s, const heft__index *there, heft_error *err)
{
    heft__map names;
    heft_status status = HEFT_OK;
    heft__map_init(&names, s->model->ctx);
    for (size_t i = 0; i < there->entry_count && status == HEFT_OK; i++) {
        status = put_name(&names, there->entries[i].name, i, err);
    }
    for (size_t i = 0; i < s->count && status == HEFT_OK; i++) {
        const heft__offload_entry *ours = &s->entries[i];
        const size_t at = heft__map_get(&names, ours->name, strlen(ours->name));
        const heft__offload_entry old =
            at == HEFT__MAP_NONE ? (heft__offload_entry){0} : entry_there(there, at);
        status = compare_entry(ours, at == HEFT__MAP_NONE ? NULL : &old, err);
    }
    heft__map_fini(&names);
    return status == HEFT_OK ? find_extra(s, there, err) : status;
}

/* Hold a .dat that is there against what would be written, byte by byte. */
static heft_status compare_dat(heft__store *s, size_t i, heft_error *err)
{
    const heft__offload_entry *entry = &s->entries[i];
    const heft__out_tensor out = out_tensor(s, i);
    const size_t width = heft_dtype_bits(entry->dtype) / 8, half = s->scratch_bytes / 2;
    const size_t most = half - half % width;
    const size_t tensor = heft_checkpoint_find(s->folder, entry->name);
    uint8_t *ours = s->scratch, *theirs = ours + half;
    heft_status status = HEFT_OK;
    if (tensor == SIZE_MAX) {
        return is_gone(s, entry->name, err);
    }
    heft__input *source = heft__file_of(s->folder, tensor)->source;
    for (uint64_t done = 0; done < entry->size_bytes && status == HEFT_OK;) {
        const uint64_t left = entry->size_bytes - done;
        const size_t piece = left < most ? (size_t)left : most;
        status = read_piece(s, &out, done, ours, piece, err);
        if (status == HEFT_OK) {
            status = heft__input_read(source, done, theirs, piece, err);
        }
        if (status == HEFT_OK && memcmp(ours, theirs, piece) != 0) {
            size_t at = 0;
            while (ours[at] == theirs[at]) {
                at++;
            }
            status = heft__fail_at(err, HEFT_EXISTS, done + at,
                                   "has other values: found 0x%02x, expected 0x%02x", theirs[at],
                                   ours[at]);
        }
        done += piece;
    }
    heft__add_item(status, err, entry->name);
    return heft__add_path(status, err, heft__input_path(source));
}

static heft_status accept(heft__store *s, heft_error *err)
{
    heft_status status = heft__path_is_file(s->index) ? open_folder(s, err) : HEFT_OK;
    const heft__format *format = s->folder ? s->folder->where.index_format : NULL;
    if (status == HEFT_OK && (!format || format->id != HEFT_FORMAT_OFFLOAD)) {
        status = heft__fail(err, HEFT_EXISTS,
                            "already exists, and is not the index of an offload folder");
    }
    if (status == HEFT_OK && s->folder->index.claims) { /* it can be read */
        status = compare_indexes(s, &s->folder->index, err);
    }
    if (status == HEFT_OK) {
        status = heft__checkpoint_judge(s->folder, false, err);
    }
    for (size_t i = 0; i < s->count && status == HEFT_OK; i++) {
        if (!s->entries[i].file) {
            status = compare_dat(s, i, err);
        }
    }
    s->kept = status == HEFT_OK;
    if (s->kept) {
        heft__folder_tidy(s->model->ctx, s->options->offload_folder);
    }
    return heft__add_path(status, err, s->index);
}

/* ---- a new folder ---------------------------------------------------------------------------- */
/* A file that no index names belongs to somebody else. */
static heft_status refuse_files(heft__store *s, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < s->count && status == HEFT_OK; i++) {
        const char *name = s->entries[i].file ? NULL : dat_name(s, i);
        const char *path =
            name ? heft__path_join(&s->arena, s->options->offload_folder, name) : NULL;
        if (!s->entries[i].file && !path) {
            status = heft__fail_nomem(err, strlen(s->entries[i].name));
        } else if (path && heft__path_exists(path)) {
            status = heft__add_path(
                heft__fail(err, HEFT_EXISTS, "already exists, without an index"), err, path);
        }
    }
    return status;
}

static heft_status write_dat(heft__store *s, heft__folder_writer *folder, size_t i, heft_error *err)
{
    const heft__out_tensor out = out_tensor(s, i);
    const heft__out_io io = {.folder = folder,
                             .read = read_piece,
                             .user = s,
                             .scratch = s->scratch,
                             .scratch_bytes = s->scratch_bytes};
    const char *name = dat_name(s, i);
    heft_status status = name ? heft__folder_file_begin(folder, name, false, err)
                              : heft__fail_nomem(err, strlen(out.name));
    if (status == HEFT_OK) {
        status = heft__offload_dat_write(&io, &out, err);
    }
    return status == HEFT_OK ? heft__folder_file_end(folder, err) : status;
}

static heft_status write_index(heft__store *s, heft__folder_writer *folder, heft_error *err)
{
    heft__buffer text;
    heft__buffer_init(&text, s->model->ctx);
    heft__offload_index_write(&text, s->entries, s->count);
    heft_status status = heft__buffer_check(&text, err);
    if (status == HEFT_OK) {
        status = heft__folder_file_begin(folder, INDEX_NAME, true, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_write(folder, text.data, text.size, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_file_end(folder, err);
    }
    heft__buffer_fini(&text);
    return status;
}

/* The checkpoint's own config and tokenizer may be there as well. */
static const char *source_folder(void *user)
{
    const heft__store *s = user;
    return heft__checkpoint_has_folder(s->ckpt) ? s->ckpt->where.folder : NULL;
}

static heft_status write_folder(heft__store *s, heft_error *err)
{
    heft__folder_writer *folder = NULL;
    heft_status status = refuse_files(s, err);
    if (status == HEFT_OK) {
        const heft__folder_options options = {0};
        status =
            heft__folder_begin(s->model->ctx, s->options->offload_folder, &options, &folder, err);
    }
    if (status == HEFT_OK) {
        status = heft__side_files_check(folder, NULL, source_folder, s, false, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_need(folder, s->dat_bytes, err);
    }
    for (size_t i = 0; i < s->count && status == HEFT_OK; i++) {
        if (!s->entries[i].file) {
            status = write_dat(s, folder, i, err);
        }
    }
    if (status == HEFT_OK) {
        status = write_index(s, folder, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_commit(folder, err);
    }
    heft__folder_free(folder);
    return heft__add_path(status, err, s->options->offload_folder);
}

/* ---- parameters that live in a .dat now ------------------------------------------------------ */
/* Bind parameter `root` and those tied to it to its tensor in the folder. */
static heft_status bind_root(heft__store *s, size_t root, size_t tensor, heft__fill_counts *counts,
                             heft_error *err)
{
    heft_model *model = s->model;
    const uint64_t bytes = model->parameters[root].size_bytes;
    heft_tensor *mapped = NULL;
    heft_status status = heft__map_or_stay(s->folder, tensor, HEFT_MAP_READ_ONLY, &mapped, err);
    if (mapped && s->options->touch) {
        status = heft__input_touch(heft__file_of(s->folder, tensor)->source,
                                   s->folder->infos[tensor].offset, bytes, err);
    }
    if (status != HEFT_OK) {
        heft_tensor_free(mapped);
        return heft__add_item(status, err, model->parameters[root].name);
    }
    const uint64_t start = mapped ? mapped->offset_bytes : 0;
    for (size_t k = 0; k < model->count; k++) {
        if (model->parameters[k].tied_to == root) {
            heft__model_bind(model, k, mapped ? heft_storage_ref(mapped->storage) : NULL, start,
                             mapped ? HEFT_PARAMETER_MAPPED : HEFT_PARAMETER_DISK);
        }
    }
    *(mapped ? &counts->mapped_bytes : &counts->disk_bytes) += bytes;
    heft_tensor_free(mapped);
    return HEFT_OK;
}

/* The folder is opened as any other one: what was written is held against its index. */
static heft_status bind_taken(heft__store *s, heft__fill_counts *counts, heft_error *err)
{
    heft_error why = {0};
    heft_status status = s->folder ? HEFT_OK : open_folder(s, &why);
    if (status == HEFT_OK) {
        status = heft__checkpoint_judge(s->folder, false, &why);
    }
    if (status == HEFT_NOT_FOUND || status == HEFT_FORMAT) { /* it was written just now */
        status = heft__add_path(
            heft__fail(err, HEFT_IO, "cannot read back what was written: %.300s", why.message), err,
            why.path);
    } else if (status != HEFT_OK && err) {
        *err = why;
    }
    for (size_t i = 0; i < s->model->count && status == HEFT_OK; i++) {
        if (s->taken[i]) {
            const size_t tensor = heft_checkpoint_find(s->folder, s->model->parameters[i].name);
            status = tensor == SIZE_MAX ? is_gone(s, s->model->parameters[i].name, err)
                                        : bind_root(s, i, tensor, counts, err);
        }
    }
    return status;
}

heft_checkpoint *heft__store_move_home(heft__store *s, heft_checkpoint *ckpt, heft__match *match)
{
    if (!s->folder) {
        return ckpt;
    }
    for (size_t i = 0; i < s->model->count; i++) {
        const size_t tensor = heft_checkpoint_find(s->folder, s->model->parameters[i].name);
        match->source[i] = tensor == SIZE_MAX ? HEFT__NO_TENSOR : tensor;
        match->first[i] = 0;
    }
    return s->folder;
}

size_t heft__store_piece(heft_ctx *ctx)
{
    const size_t piece = heft__staging_bytes(ctx) / 4;
    return piece < HEFT__PIECE_BYTES ? piece : HEFT__PIECE_BYTES;
}

heft_status heft__store_finish(heft__store *s, heft__fill_counts *counts, heft_error *err)
{
    s->index = heft__path_join(&s->arena, s->options->offload_folder, INDEX_NAME);
    s->scratch_bytes = heft__store_piece(s->model->ctx);
    s->raw_bytes = s->scratch_bytes;
    s->scratch = heft__alloc(s->model->ctx, s->scratch_bytes);
    s->raw = heft__alloc(s->model->ctx, s->raw_bytes);
    heft_status status = s->index && s->scratch && s->raw
                             ? HEFT_OK
                             : heft__fail_nomem(err, s->scratch_bytes + s->raw_bytes);
    if (status == HEFT_OK && heft__path_exists(s->index)) {
        status = accept(s, err);
    } else if (status == HEFT_OK && s->count > 0) { /* no entries: no index, as in Accelerate */
        status = write_folder(s, err);
    }
    return status == HEFT_OK && s->count > 0 ? bind_taken(s, counts, err) : status;
}
