/* torch_zip.c - reading the zip that torch.save writes since 1.6.
 *
 *   <prefix>/data.pkl     the pickle; tensors name their storages by key
 *   <prefix>/data/KEY     the bytes of one storage
 *   <prefix>/version      a decimal number, 1 to 10
 *   <prefix>/byteorder    "little" or "big"; little if it is not there
 *
 * The prefix is what stands before the first slash of the directory's first entry, and all entries
 * must have it. Trusted: nothing; zip.c checks the container, pickle.c and pickle_tensors.c the
 * pickle, and here each storage's size must be just that of its record. What is not done:
 * `.format_version` and `.storage_alignment`, which describe where records are, are ignored: the
 * directory has their offsets; a data record's CRC is not looked at before heft__storage_check_crc;
 * TorchScript (constants.pkl) is refused. Source: docs/formats/torch_zip.md [1]. */
#include "format/torch_zip.h"
#include "format/pickle.h"
#include "format/zip.h"

#define SMALL_RECORD 64
#define VERSION_MOST 10

struct parse {
    heft_ctx *ctx;
    heft__file *file;
    heft__zip zip;
    const char *prefix; /* not terminated */
    size_t prefix_length;
};

/* ---- records --------------------------------------------------------------------------------- */
static heft_status find_prefix(struct parse *p, heft_error *err)
{
    const heft__zip_entry *first = &p->zip.entries[0];
    const char *slash = strchr(first->name, '/');
    if (!slash) {
        heft_status status =
            heft__fail_at(err, HEFT_FORMAT, first->central, "record name has no folder");
        return heft__add_item(status, err, first->name);
    }
    p->prefix = first->name;
    p->prefix_length = (size_t)(slash - first->name) + 1;
    for (size_t i = 0; i < p->zip.count; i++) {
        const heft__zip_entry *entry = &p->zip.entries[i];
        if (strncmp(entry->name, p->prefix, p->prefix_length) != 0) {
            heft_status status =
                heft__fail_at(err, HEFT_FORMAT, entry->central, "record is not in folder '%.*s'",
                              (int)(p->prefix_length < 200 ? p->prefix_length : 200), p->prefix);
            return heft__add_item(status, err, entry->name);
        }
    }
    return HEFT_OK;
}

/* The entry of prefix + folder + name; NULL if there is none. */
static heft_status find_record(struct parse *p, const char *folder, const char *name, size_t length,
                               const heft__zip_entry **entry, heft_error *err)
{
    heft__buffer full;
    heft__buffer_init(&full, p->ctx);
    heft__buffer_append(&full, p->prefix, p->prefix_length);
    heft__buffer_text(&full, folder);
    heft__buffer_append(&full, name, length);
    heft_status status = heft__buffer_check(&full, err);
    if (status == HEFT_OK) {
        status = heft__zip_find(&p->zip, (const char *)full.data, full.size, entry, err);
    }
    heft__buffer_fini(&full);
    return status;
}

/* A small record as text; *length is SIZE_MAX if it is not there. */
static heft_status read_small(struct parse *p, const char *name, char text[SMALL_RECORD + 1],
                              size_t *length, const heft__zip_entry **entry, heft_error *err)
{
    uint8_t *bytes = NULL;
    heft_status status = find_record(p, "", name, strlen(name), entry, err);
    *length = SIZE_MAX;
    if (status != HEFT_OK || !*entry) {
        return status;
    }
    status = heft__zip_read(&p->zip, *entry, SMALL_RECORD, &bytes, err);
    if (status == HEFT_OK) {
        *length = (size_t)(*entry)->bytes;
        memcpy(text, bytes, *length);
        text[*length] = '\0';
        heft__free(p->ctx, bytes, *length);
    }
    return status;
}

static heft_status check_version(struct parse *p, heft_error *err)
{
    char text[SMALL_RECORD + 1];
    size_t length, digits = 0;
    unsigned value = 0;
    const heft__zip_entry *entry = NULL;
    heft_status status = read_small(p, ".data/version", text, &length, &entry, err);
    if (status == HEFT_OK && !entry) {
        status = read_small(p, "version", text, &length, &entry, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (!entry) {
        return heft__add_item(heft__fail(err, HEFT_FORMAT, "record 'version' not found"), err,
                              "version");
    }
    while (digits < length && digits < 9 && text[digits] >= '0' && text[digits] <= '9') {
        value = value * 10 + (unsigned)(text[digits++] - '0');
    }
    const char *rest = text + digits;
    const bool ends = strcmp(rest, "") == 0 || strcmp(rest, "\n") == 0 || strcmp(rest, "\r\n") == 0;
    if (digits == 0 || !ends || strlen(text) != length || value == 0) {
        status = heft__fail_at(err, HEFT_FORMAT, entry->data,
                               "expected a version from 1 to %d, found '%s'", VERSION_MOST, text);
    } else if (value > VERSION_MOST) {
        status = heft__fail_at(err, HEFT_UNSUPPORTED, entry->data, "version %u is newer than %d",
                               value, VERSION_MOST);
    }
    return heft__add_item(status, err, "version");
}

static heft_status check_byteorder(struct parse *p, heft_error *err)
{
    char text[SMALL_RECORD + 1];
    size_t length;
    const heft__zip_entry *entry = NULL;
    heft_status status = read_small(p, "byteorder", text, &length, &entry, err);
    if (status != HEFT_OK || !entry) {
        return status;
    }
    if (length == 3 && memcmp(text, "big", 3) == 0) {
        p->file->big_endian = true;
    } else if (length != 6 || memcmp(text, "little", 6) != 0) {
        status = heft__fail_at(err, HEFT_FORMAT, entry->data,
                               "expected 'little' or 'big', found '%s'", text);
    }
    return heft__add_item(status, err, "byteorder");
}

static heft_status refuse_script(struct parse *p, heft_error *err)
{
    const heft__zip_entry *entry = NULL;
    heft_status status = find_record(p, "", "constants.pkl", strlen("constants.pkl"), &entry, err);
    if (status == HEFT_OK && entry) {
        status = heft__fail_at(err, HEFT_UNSUPPORTED, entry->central,
                               "a TorchScript archive, not a checkpoint");
        heft__add_item(status, err, entry->name);
    }
    return status;
}

/* ---- storages -------------------------------------------------------------------------------- */
static heft_status place(void *user, const char *key, size_t key_length,
                         heft__file_storage *storage, heft_error *err)
{
    struct parse *p = user;
    const heft__zip_entry *entry = NULL;
    const int shown = (int)(key_length < 100 ? key_length : 100);
    heft_status status = find_record(p, "data/", key, key_length, &entry, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (!entry) {
        return heft__fail(err, HEFT_FORMAT, "record 'data/%.*s' not found", shown, key);
    }
    if (entry->bytes != storage->bytes) {
        return heft__fail_at(err, HEFT_FORMAT, entry->central,
                             "record 'data/%.*s' has %llu bytes, its storage needs %llu", shown,
                             key, (unsigned long long)entry->bytes,
                             (unsigned long long)storage->bytes);
    }
    const char *record = entry->name + p->prefix_length;
    storage->record = heft__arena_text(&p->file->arena, record, strlen(record));
    if (!storage->record) {
        return heft__fail_nomem(err, strlen(record));
    }
    storage->offset = entry->data;
    storage->stored_bytes = entry->stored_bytes;
    storage->deflated = entry->method == 8;
    storage->has_crc = entry->crc != 0;
    storage->crc = entry->crc;
    return HEFT_OK;
}

/* ---- the file -------------------------------------------------------------------------------- */
/* A deflated pickle may be larger than its file, but not by any factor. */
static heft_status check_pickle_size(const struct parse *p, const heft__zip_entry *entry,
                                     heft_error *err)
{
    const uint64_t limit = heft__limits(p->ctx)->pickle_bytes,
                   room = heft__pickle_most(p->ctx, heft__input_size(p->file->source));
    if (entry->bytes <= limit && entry->bytes <= room) {
        return HEFT_OK;
    }
    return heft__fail_at(
        err, HEFT_LIMIT, entry->central, "record has %llu bytes, the limit is %llu (limit %s)",
        (unsigned long long)entry->bytes, (unsigned long long)(limit < room ? limit : room),
        limit < room ? "pickle_bytes" : "value_bytes");
}

static heft_status read_pickle(struct parse *p, heft_error *err)
{
    uint8_t *bytes = NULL;
    const heft__zip_entry *entry = NULL;
    heft__pickle pickle = {0};
    heft__pickle_tensors build = {0};
    heft_status status = find_record(p, "", "data.pkl", strlen("data.pkl"), &entry, err);
    if (status == HEFT_OK && !entry) {
        status = heft__fail(err, HEFT_FORMAT, "record 'data.pkl' not found");
        heft__add_item(status, err, "data.pkl");
    }
    if (status == HEFT_OK) {
        status = heft__add_item(check_pickle_size(p, entry, err), err, entry->name);
    }
    if (status == HEFT_OK) {
        status = heft__zip_read(&p->zip, entry, UINT64_MAX, &bytes, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    status = heft__pickle_run(p->ctx, bytes, (size_t)entry->bytes, 0,
                              heft__input_size(p->file->source), HEFT__PK_IDS_ZIP, &pickle, err);
    if (status == HEFT_OK) {
        heft__pickle_tensors_init(&build, p->ctx, p->file, &pickle, place, p);
        status = heft__pickle_tensors_walk(&build, err);
    }
    heft__pickle_fini(&pickle); /* before what was made of it is copied */
    heft__free(p->ctx, bytes, (size_t)entry->bytes);
    if (status == HEFT_OK) {
        status = heft__pickle_tensors_publish(&build, err);
    }
    heft__pickle_tensors_fini(&build);
    return heft__add_item(status, err, "data.pkl");
}

static heft_status parse_file(heft_ctx *ctx, heft__file *file, heft_error *err)
{
    struct parse p = {.ctx = ctx, .file = file};
    file->format = HEFT_FORMAT_TORCH;
    heft_status status = heft__zip_open(ctx, file->source, &p.zip, err);
    if (status == HEFT_OK) {
        status = find_prefix(&p, err);
    }
    if (status == HEFT_OK) {
        status = refuse_script(&p, err);
    }
    if (status == HEFT_OK) {
        status = check_version(&p, err);
    }
    if (status == HEFT_OK) {
        status = check_byteorder(&p, err);
    }
    if (status == HEFT_OK) {
        status = read_pickle(&p, err);
    }
    if (status == HEFT_OK && p.zip.trailing_bytes &&
        !heft__warn(&file->warnings, "%llu bytes after the end of the zip are ignored",
                    (unsigned long long)p.zip.trailing_bytes)) {
        status = heft__fail_nomem(err, 0);
    }
    heft__zip_fini(&p.zip);
    return status;
}

/* ---- the format ------------------------------------------------------------------------------ */
static bool sniff(const uint8_t *head, size_t length)
{
    return length >= 4 && (memcmp(head, "PK\3\4", 4) == 0 || memcmp(head, "PK\5\6", 4) == 0);
}

static const char *const endings[] = {".bin", ".pt", ".pth", ".ckpt", NULL};

const heft__format heft__format_torch = {
    .id = HEFT_FORMAT_TORCH,
    .name = "bin",
    .noun = "a PyTorch file",
    .convert_as = HEFT_FORMAT_TORCH,
    .has_order = true,
    .sniff = sniff,
    .parse = parse_file,
    .one_at_a_time = true,
    .endings = endings,
    .precedence = 2,
    .stem = "pytorch_model",
    .extension = "bin",
    .read_index = heft__shard_index_open,
    .ties = HEFT__TIES_SHARE,
    .check = heft__torch_zip_check,
    .lay_out = heft__torch_zip_lay_out,
    .write = heft__torch_zip_write,
    .layout_free = heft__torch_zip_layout_free,
    .write_index = heft__shard_index_text,
};
