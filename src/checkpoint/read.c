/* read.c - looking into an open checkpoint: accessors, copying one tensor, mapping one tensor. */
#include "checkpoint/checkpoint.h"

size_t heft_checkpoint_count(const heft_checkpoint *ckpt)
{
    return ckpt->count;
}

const heft_tensor_info *heft_checkpoint_info(const heft_checkpoint *ckpt, size_t i)
{
    return i < ckpt->count ? &ckpt->infos[i] : NULL;
}

size_t heft_checkpoint_find(const heft_checkpoint *ckpt, const char *name)
{
    return heft__map_get(&ckpt->names, name, strlen(name));
}

size_t heft_checkpoint_file_count(const heft_checkpoint *ckpt)
{
    return ckpt->file_count;
}

const heft_file_info *heft_checkpoint_file(const heft_checkpoint *ckpt, size_t i)
{
    return i < ckpt->file_count ? &ckpt->files[i].info : NULL;
}

const char *heft_checkpoint_folder(const heft_checkpoint *ckpt)
{
    return ckpt->where.folder;
}

const char *heft_checkpoint_index(const heft_checkpoint *ckpt)
{
    return ckpt->where.index;
}

const char *heft_checkpoint_metadata(const heft_checkpoint *ckpt, size_t i, const char **value)
{
    const heft__file *file = ckpt->file_count ? ckpt->files[0].file : NULL;
    if (!file || i >= file->metadata_count) {
        return NULL;
    }
    *value = file->metadata[i].value;
    return file->metadata[i].key;
}

uint64_t heft_checkpoint_total_bytes(const heft_checkpoint *ckpt)
{
    return ckpt->total_bytes;
}

const char *heft_checkpoint_skipped(const heft_checkpoint *ckpt, size_t i)
{
    for (size_t f = 0; f < ckpt->file_count; f++) {
        const heft__file *file = ckpt->files[f].file;
        if (i < file->skipped_count) {
            return file->skipped[i];
        }
        i -= file->skipped_count;
    }
    return NULL;
}

const char *heft_checkpoint_warning(const heft_checkpoint *ckpt, size_t i)
{
    return i < ckpt->warnings.count ? ckpt->warnings.lines[i] : NULL;
}

/* The item and the path of an error in tensor i. */
static heft_status blame(const heft_checkpoint *ckpt, size_t i, heft_status status, heft_error *err)
{
    heft__add_item(status, err, ckpt->infos[i].name);
    return heft__add_path(status, err, ckpt->files[ckpt->infos[i].file_index].info.path);
}

heft_status heft_checkpoint_read(const heft_checkpoint *ckpt, size_t i, void *dst, uint64_t cap,
                                 heft_error *err)
{
    if (i >= ckpt->count) {
        return heft__fail(err, HEFT_INVALID_ARG, "there is no tensor %zu, the checkpoint has %zu",
                          i, ckpt->count);
    }
    uint64_t needed = ckpt->infos[i].size_bytes;
    if (cap < needed) {
        return blame(ckpt, i,
                     heft__fail(err, HEFT_INVALID_ARG, "%llu bytes are given, %llu are needed",
                                (unsigned long long)cap, (unsigned long long)needed),
                     err);
    }
    heft__tensor_reader *reader = NULL;
    heft_status status =
        heft__tensor_reader_new(ckpt->ctx, heft__file_of(ckpt, i), ckpt->entries[i], &reader, err);
    if (status == HEFT_OK) {
        status = heft__tensor_reader_fill(reader, dst, (size_t)needed, err);
    }
    heft__tensor_reader_free(reader);
    return blame(ckpt, i, status, err);
}

/* ---- mapping --------------------------------------------------------------------------------- */
static void release_source(void *user)
{
    heft__input_unref(user);
}

static heft_status map_plain(const heft_checkpoint *ckpt, size_t i, heft_tensor **out,
                             heft_error *err)
{
    const heft__file *file = heft__file_of(ckpt, i);
    const heft__file_tensor *entry = ckpt->entries[i];
    const heft__file_storage *run = &file->storages[entry->storage];
    const uint8_t *base;
    heft_storage *storage = NULL;
    heft_status status = heft__input_map(file->source, &base, err);
    if (status == HEFT_OK) {
        heft__input *source = heft__input_ref(file->source);
        const heft__memory memory = {.data = (void *)(uintptr_t)(base + run->offset),
                                     .bytes = run->bytes,
                                     .flags = HEFT_TENSOR_MAPPED,
                                     .release = release_source,
                                     .user = source};
        status = heft__storage_make(ckpt->ctx, &memory, &storage, err);
        if (status != HEFT_OK) {
            heft__input_unref(source);
        }
    }
    if (status == HEFT_OK) {
        const heft_tensor_spec spec = HEFT_OPTIONS(
            heft_tensor_spec, .dtype = entry->dtype, .rank = entry->rank, .shape = entry->shape,
            .strides = entry->strides, .offset_bytes = entry->start);
        status = heft_tensor_new(storage, &spec, out, err);
    }
    heft_storage_unref(storage);
    return status;
}

static heft_status copy_to_heap(const heft_checkpoint *ckpt, size_t i, heft_tensor **out,
                                heft_error *err)
{
    const heft_tensor_info *info = &ckpt->infos[i];
    heft_storage *storage = NULL;
    heft_status status = heft__storage_new(ckpt->ctx, info->size_bytes, &storage, err);
    if (status == HEFT_OK) {
        status = heft_checkpoint_read(ckpt, i, heft_storage_data(storage), info->size_bytes, err);
    }
    if (status == HEFT_OK) {
        const heft_tensor_spec spec = HEFT_OPTIONS(heft_tensor_spec, .dtype = info->dtype,
                                                   .rank = info->rank, .shape = info->shape);
        status = heft_tensor_new(storage, &spec, out, err);
    }
    heft_storage_unref(storage);
    return status;
}

heft_status heft_checkpoint_map(const heft_checkpoint *ckpt, size_t i, heft_tensor **out,
                                heft_error *err)
{
    if (i >= ckpt->count) {
        return heft__fail(err, HEFT_INVALID_ARG, "there is no tensor %zu, the checkpoint has %zu",
                          i, ckpt->count);
    }
    bool mappable = heft__tensor_is_mappable(heft__file_of(ckpt, i), ckpt->entries[i]);
    heft_status status = mappable ? map_plain(ckpt, i, out, err) : copy_to_heap(ckpt, i, out, err);
    return blame(ckpt, i, status, err);
}
