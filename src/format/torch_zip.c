/* torch_zip.c - PyTorch's zip: PREFIX/data.pkl says what there is, PREFIX/data/KEY holds a storage
 * each.
 *
 * The prefix is that of the archive's first entry, whatever the file is called. `version` must be
 * there and known, `byteorder` may say big. TorchScript archives are refused. Source:
 * docs/formats/torch_zip.md [1], [3]. */
#include "format/torch.h"

#include <stdlib.h>

struct archive {
    heft_ctx *ctx;
    heft__file *file;
    heft__zip zip;
    const char *prefix; /* without a slash */
};

static const heft__zip_entry *find_record(struct archive *a, const char *record)
{
    char name[600];
    int length = snprintf(name, sizeof name, "%s/%s", a->prefix, record);
    return length > 0 && (size_t)length < sizeof name ? heft__zip_find(&a->zip, name) : NULL;
}

static heft_status find_prefix(struct archive *a, heft_error *err)
{
    const char *first = a->zip.count ? a->zip.entries[0].name : "", *slash = strchr(first, '/');
    if (!slash) {
        heft_status status =
            heft__fail(err, HEFT_FORMAT,
                       a->zip.count ? "first record is in no folder" : "the archive is empty");
        return heft__add_item(status, err, first);
    }
    a->prefix = heft__arena_text(&a->file->arena, first, (size_t)(slash - first));
    return a->prefix ? HEFT_OK : heft__fail_nomem(err, 0);
}

/* A small text record into text[cap], NUL-terminated. Absent: *found is false. */
static heft_status read_text(struct archive *a, const char *record, char *text, size_t cap,
                             bool *found, heft_error *err)
{
    const heft__zip_entry *entry = find_record(a, record);
    uint8_t *bytes = NULL;
    *found = entry != NULL;
    if (!entry) {
        return HEFT_OK;
    }
    heft_status status = heft__zip_read(&a->zip, entry, cap - 1, &bytes, err);
    if (status == HEFT_OK) {
        memcpy(text, bytes, (size_t)entry->bytes);
        text[entry->bytes] = '\0';
        heft__free(a->ctx, bytes, (size_t)entry->bytes);
    }
    return status;
}

static heft_status check_version(struct archive *a, heft_error *err)
{
    char text[64];
    bool found = false;
    heft_status status = read_text(a, "version", text, sizeof text, &found, err);
    if (status == HEFT_OK && !found) {
        status = read_text(a, ".data/version", text, sizeof text, &found, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (!found) {
        return heft__add_item(heft__fail(err, HEFT_FORMAT, "record not found"), err, "version");
    }
    char *end = text;
    unsigned long version = strtoul(text, &end, 10);
    bool number = end != text && text[0] >= '0' && text[0] <= '9' &&
                  (*end == '\0' || *end == '\n' || *end == '\r');
    if (!number || version < 1) {
        status = heft__fail(err, HEFT_FORMAT, "'%.20s' is not a version number", text);
    } else if (version > 10) {
        status =
            heft__fail(err, HEFT_UNSUPPORTED, "version %lu is newer than supported (10)", version);
    }
    return heft__add_item(status, err, "version");
}

static heft_status check_byteorder(struct archive *a, heft_error *err)
{
    char text[64];
    bool found = false;
    heft_status status = read_text(a, "byteorder", text, sizeof text, &found, err);
    if (status != HEFT_OK || !found) {
        return status;
    }
    a->file->big_endian = strcmp(text, "big") == 0;
    if (!a->file->big_endian && strcmp(text, "little") != 0) {
        status = heft__fail(err, HEFT_FORMAT, "expected 'little' or 'big', found '%.40s'", text);
        heft__add_item(status, err, "byteorder");
    }
    return status;
}

static heft_status place_storage(void *user, const char *key, heft__file_storage *storage,
                                 heft_error *err)
{
    struct archive *a = user;
    char name[512];
    snprintf(name, sizeof name, "data/%s", key);
    const heft__zip_entry *entry = find_record(a, name);
    if (!entry) {
        return heft__fail(err, HEFT_FORMAT, "record %s not found", name);
    }
    if (entry->bytes != storage->bytes) {
        return heft__fail_at(err, HEFT_FORMAT, entry->central,
                             "record %s: %llu bytes, its storage needs %llu", name,
                             (unsigned long long)entry->bytes, (unsigned long long)storage->bytes);
    }
    storage->offset = entry->data;
    storage->stored_bytes = entry->stored_bytes;
    storage->deflated = entry->method != 0;
    storage->crc = entry->crc;
    storage->has_crc = entry->crc != 0;
    storage->record = strchr(entry->name, '/') + 1;
    return HEFT_OK;
}

static heft_status read_pickle(struct archive *a, heft_error *err)
{
    const heft__zip_entry *entry = find_record(a, "data.pkl");
    uint8_t *bytes = NULL;
    heft__pickle pickle = {0};
    if (!entry) {
        return heft__add_item(heft__fail(err, HEFT_FORMAT, "record not found"), err, "data.pkl");
    }
    heft_status status =
        heft__zip_read(&a->zip, entry, heft__limits(a->ctx)->pickle_bytes, &bytes, err);
    if (status != HEFT_OK) {
        return status;
    }
    status = heft__pickle_run(a->ctx, bytes, (size_t)entry->bytes, 0, 5, &pickle, err);
    if (status == HEFT_OK) {
        status = heft__pickle_tensors(a->ctx, &pickle, 0, a->file, place_storage, a, err);
    }
    heft__pickle_fini(&pickle);
    heft__free(a->ctx, bytes, (size_t)entry->bytes);
    return heft__add_item(status, err, "data.pkl");
}

heft_status heft__torch_zip_parse(heft_ctx *ctx, heft__file *file, heft_error *err)
{
    struct archive a = {.ctx = ctx, .file = file};
    file->format = HEFT_FORMAT_TORCH;
    heft_status status = heft__zip_open(ctx, file->source, &file->arena, &a.zip, err);
    if (status == HEFT_OK) {
        status = find_prefix(&a, err);
    }
    if (status == HEFT_OK && find_record(&a, "constants.pkl")) {
        status =
            heft__fail(err, HEFT_UNSUPPORTED, "a TorchScript archive: a program, not a checkpoint");
    }
    if (status == HEFT_OK) {
        status = check_version(&a, err);
    }
    if (status == HEFT_OK) {
        status = check_byteorder(&a, err);
    }
    if (status == HEFT_OK) {
        status = read_pickle(&a, err);
    }
    heft__zip_fini(&a.zip);
    return status;
}
