/* read.c - looking into an open checkpoint: accessors, copying one tensor. */
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
    return heft__checkpoint_has_folder(ckpt) ? ckpt->where.folder : NULL;
}

const char *heft_checkpoint_index(const heft_checkpoint *ckpt)
{
    return ckpt->where.index;
}

const char *heft_checkpoint_metadata(const heft_checkpoint *ckpt, size_t i, const char **value)
{
    if (i >= ckpt->metadata_count) {
        return NULL;
    }
    *value = ckpt->metadata[i].value;
    return ckpt->metadata[i].key;
}

bool heft_checkpoint_value(const heft_checkpoint *ckpt, size_t i, heft_value *value)
{
    heft_value full = HEFT_SIZED(heft_value);
    return ckpt && value && value->struct_size && ckpt->file_count == 1 && ckpt->files[0].file &&
           heft__file_value_at(ckpt->files[0].file, i, &full) &&
           HEFT__GIVE_SIZED(value, &full, NULL) == HEFT_OK;
}

const char *heft_checkpoint_module(const heft_checkpoint *ckpt, size_t i, uint32_t *version)
{
    for (size_t f = 0; f < ckpt->file_count; f++) {
        const heft__file *file = ckpt->files[f].again ? NULL : ckpt->files[f].file;
        const size_t count = file ? file->module_count : 0;
        if (i < count) {
            *version = file->modules[i].version;
            return file->modules[i].path;
        }
        i -= count;
    }
    return NULL;
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

heft_status heft__checkpoint_blame(const heft_checkpoint *ckpt, size_t i, heft_status status,
                                   heft_error *err)
{
    heft__add_item(status, err, ckpt->infos[i].name);
    return heft__add_path(status, err, ckpt->files[ckpt->infos[i].file_index].info.path);
}

heft_status heft_checkpoint_read(const heft_checkpoint *ckpt, size_t i, void *dst, uint64_t cap,
                                 heft_error *err)
{
    if (i >= ckpt->count) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "tensor index %zu is out of range, the checkpoint has %zu", i,
                          ckpt->count);
    }
    uint64_t needed = ckpt->infos[i].size_bytes;
    if (cap < needed) {
        return heft__checkpoint_blame(
            ckpt, i,
            heft__fail(err, HEFT_INVALID_ARG, "the buffer has %llu bytes, %llu are needed",
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
    return heft__checkpoint_blame(ckpt, i, status, err);
}
