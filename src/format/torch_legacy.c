/* torch_legacy.c - PyTorch's stream before 1.6.
 *
 *   pickle: magic | pickle: 1001 | pickle: system info | pickle: the object | pickle: list of keys
 * | (i64 numel, bytes) per key
 *
 * Storages lie behind the pickles in the order of the list. They are found first, so that an id can
 * be checked against what is there. Nothing is trusted: every count against the file's size. Always
 * little-endian.
 * Source: docs/formats/torch_legacy.md. */
#include "format/torch.h"

struct stream {
    heft_ctx *ctx;
    heft__file *file;
    uint8_t *bytes; /* the head of the file, as far as the pickles may reach */
    size_t length;
    const heft__pickle *keys;
    uint64_t storages_at;
    heft__map offsets; /* key -> number in the list */
};

static heft_status run_next(struct stream *s, size_t *at, heft__pickle *pickle, heft_error *err)
{
    heft_status status =
        heft__pickle_run(s->ctx, s->bytes + *at, s->length - *at, *at, 6, pickle, err);
    if (status == HEFT_OK) {
        *at += pickle->end;
    }
    return status;
}

static heft_status place_storage(void *user, const char *key, heft__file_storage *storage,
                                 heft_error *err)
{
    struct stream *s = user;
    size_t i = heft__map_get(&s->offsets, key, strlen(key));
    if (i == HEFT__MAP_NONE) {
        return heft__fail(err, HEFT_FORMAT, "storage '%.100s' is not in the list of keys", key);
    }
    storage->record = NULL;
    storage->stored_bytes = storage->bytes;
    storage->offset = i; /* its number for now; its byte once all sizes are known */
    return HEFT_OK;
}

static heft_status list_keys(struct stream *s, heft_error *err)
{
    const heft__pickle_value *list = s->keys->top;
    if (list->kind != HEFT__PICKLE_LIST) {
        return heft__fail_at(err, HEFT_FORMAT, s->storages_at,
                             "the list of storage keys is no list");
    }
    for (uint32_t i = 0; i < list->count; i++) {
        size_t found;
        const heft__pickle_value *key = list->as.items[i];
        if (key->kind != HEFT__PICKLE_TEXT) {
            return heft__fail_at(err, HEFT_FORMAT, s->storages_at, "storage key %u is no string",
                                 i);
        }
        if (!heft__map_put(&s->offsets, key->as.text, (size_t)key->integer, i, &found)) {
            return heft__fail_nomem(err, 0);
        }
        if (found != HEFT__MAP_NONE) {
            return heft__fail_at(err, HEFT_FORMAT, s->storages_at, "storage key %u occurs twice",
                                 i);
        }
    }
    return HEFT_OK;
}

static uint64_t elem_bytes_of(const heft__file *file, size_t storage)
{
    for (size_t i = 0; i < file->tensor_count; i++) {
        if (file->tensors[i].storage == storage) {
            return heft_dtype_bits(file->tensors[i].dtype) / 8;
        }
    }
    return 0;
}

/* Walk over the storages in the file's order; each says its numel, which must be what the pickle
 * says. */
static heft_status place_all(struct stream *s, heft_error *err)
{
    heft__file *file = s->file;
    uint32_t count = s->keys->top->count;
    size_t *by_number = heft__alloc(s->ctx, count * sizeof *by_number);
    uint64_t at = s->storages_at, size = heft__source_size(file->source);
    heft_status status = by_number ? HEFT_OK : heft__fail_nomem(err, count * sizeof *by_number);
    for (uint32_t i = 0; by_number && i < count; i++) {
        by_number[i] = SIZE_MAX;
    }
    for (size_t k = 0; by_number && k < file->storage_count; k++) {
        by_number[file->storages[k].offset] = k;
    }
    for (uint32_t i = 0; i < count && status == HEFT_OK; i++) {
        uint8_t raw[8];
        if (by_number[i] == SIZE_MAX) {
            status = heft__fail_at(err, HEFT_UNSUPPORTED, at,
                                   "storage %u belongs to no tensor: its size is not known", i);
            break;
        }
        heft__file_storage *storage = &file->storages[by_number[i]];
        uint64_t elem = elem_bytes_of(file, by_number[i]);
        status = heft__source_read(file->source, at, raw, sizeof raw, err);
        if (status == HEFT_OK && (elem == 0 || heft__le64(raw) != storage->bytes / elem)) {
            status =
                heft__fail_at(err, HEFT_FORMAT, at, "storage has numel %llu, the pickle says %llu",
                              (unsigned long long)heft__le64(raw),
                              (unsigned long long)(elem ? storage->bytes / elem : 0));
        }
        at += sizeof raw;
        if (status == HEFT_OK && (at > size || storage->bytes > size - at)) {
            status = heft__fail_at(err, HEFT_FORMAT, size,
                                   "storage of %llu bytes at %llu, file has %llu bytes",
                                   (unsigned long long)storage->bytes, (unsigned long long)at,
                                   (unsigned long long)size);
        }
        storage->offset = at;
        at += storage->bytes;
    }
    heft__free(s->ctx, by_number, count * sizeof *by_number);
    return status;
}

static heft_status read_stream(struct stream *s, heft_error *err)
{
    heft__pickle pickles[5] = {{.top = NULL}};
    size_t at = 0;
    uint64_t object_at = 0;
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < 5 && status == HEFT_OK; i++) {
        object_at = i == 3 ? at : object_at;
        status = run_next(s, &at, &pickles[i], err);
        if (status == HEFT_OK && i == 1 &&
            (pickles[1].top->kind != HEFT__PICKLE_INT || pickles[1].top->integer != 1001)) {
            status = heft__fail_at(err, HEFT_UNSUPPORTED, 2, "protocol version is not 1001");
        }
    }
    if (status == HEFT_OK) {
        s->keys = &pickles[4];
        s->storages_at = at;
        status = list_keys(s, err);
    }
    if (status == HEFT_OK) {
        status =
            heft__pickle_tensors(s->ctx, &pickles[3], object_at, s->file, place_storage, s, err);
    }
    if (status == HEFT_OK) {
        status = place_all(s, err);
    }
    for (size_t i = 0; i < 5; i++) {
        heft__pickle_fini(&pickles[i]);
    }
    return status;
}

heft_status heft__torch_legacy_parse(heft_ctx *ctx, heft__file *file, heft_error *err)
{
    struct stream s = {.ctx = ctx, .file = file};
    uint64_t size = heft__source_size(file->source), most = heft__limits(ctx)->pickle_bytes;
    file->format = HEFT_FORMAT_TORCH_LEGACY;
    heft__map_init(&s.offsets, ctx);
    /* Where the pickles end is known only by running them: read more and more of the file until
     * they fit. */
    heft_status status = HEFT_FORMAT;
    for (uint64_t wanted = 1 << 20; status == HEFT_FORMAT; wanted *= 8) {
        s.length = (size_t)(size < wanted ? size : wanted);
        s.length = s.length > most ? (size_t)most : s.length;
        heft__map_fini(&s.offsets);
        heft__map_init(&s.offsets, ctx);
        s.bytes = heft__alloc(ctx, s.length);
        status = s.bytes ? heft__source_read(file->source, 0, s.bytes, s.length, err)
                         : heft__fail_nomem(err, s.length);
        if (status == HEFT_OK) {
            status = read_stream(&s, err);
        }
        heft__free(ctx, s.bytes, s.length);
        if (s.length == size || s.length == most) {
            break;
        }
    }
    heft__map_fini(&s.offsets);
    return status;
}
