/* torch_legacy.c - reading what torch.save wrote before 1.6.
 *
 *   pickle  0x1950A86A20F9469CFC6C
 *   pickle  1001
 *   pickle  {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {...}}
 *   pickle  the object; persistent ids have a sixth item
 *   pickle  [key, ...]
 *   then for each key in that order: int64 elements, elements * size bytes; no padding
 *
 * The storages' sizes are known twice, from the ids and from the numbers in front of the data; they
 * must agree, and every storage of the object must be in the list. Elements are little-endian
 * whatever the third pickle says, as torch reads them. Trusted: nothing. What is not done: the text
 * pickles of Python 2's protocols 0 and 1; pickled modules; bytes after the last storage are
 * ignored. Source: docs/formats/torch_legacy.md. */
#include "format/pickle.h"

#define PROTOCOL 1001

struct parse {
    heft_ctx *ctx;
    heft__file *file;
    uint64_t at, size;
    heft__pickle object, keys;
    heft__pickle_tensors build;
    bool *placed; /* by storage */
};

/* One of the small pickles in front; `pickle` must be freed. */
static heft_status read_next(struct parse *p, heft__pk_ids ids, heft__pickle *pickle,
                             heft_error *err)
{
    heft_status status =
        heft__pickle_read(p->ctx, p->file->source, p->at, p->size, ids, pickle, err);
    if (status == HEFT_OK) {
        p->at += pickle->end;
    }
    return status;
}

static heft_status read_magic(struct parse *p, heft_error *err)
{
    static const uint8_t magic[] = {0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19};
    heft__pickle pickle = {0};
    heft_status status = read_next(p, HEFT__PK_IDS_NONE, &pickle, err);
    if (status == HEFT_OK &&
        (pickle.top.kind != HEFT__PK_BIGINT || pickle.top.as.text.length != sizeof magic ||
         memcmp(heft__pk_text(&pickle, &pickle.top), magic, sizeof magic) != 0)) {
        status = heft__fail_at(err, HEFT_FORMAT, 0, "bad magic number");
    }
    heft__pickle_fini(&pickle);
    return status;
}

static heft_status read_protocol(struct parse *p, heft_error *err)
{
    heft__pickle pickle = {0};
    const uint64_t at = p->at;
    heft_status status = read_next(p, HEFT__PK_IDS_NONE, &pickle, err);
    if (status == HEFT_OK &&
        (pickle.top.kind != HEFT__PK_INT || pickle.top.as.integer != PROTOCOL)) {
        status =
            pickle.top.kind == HEFT__PK_INT
                ? heft__fail_at(err, HEFT_UNSUPPORTED, at, "protocol version %lld, expected %d",
                                (long long)pickle.top.as.integer, PROTOCOL)
                : heft__fail_at(err, HEFT_FORMAT, at, "protocol version is %s",
                                heft__pk_kind_name(&pickle.top));
    }
    heft__pickle_fini(&pickle);
    return status;
}

static heft_status read_system(struct parse *p, heft_error *err)
{
    heft__pickle pickle = {0};
    const uint64_t at = p->at;
    heft_status status = read_next(p, HEFT__PK_IDS_NONE, &pickle, err);
    if (status == HEFT_OK && pickle.top.kind != HEFT__PK_DICT) {
        status = heft__fail_at(err, HEFT_FORMAT, at, "system information must be a dict, found %s",
                               heft__pk_kind_name(&pickle.top));
    }
    heft__pickle_fini(&pickle);
    return status;
}

/* Storage offsets are known only after the pickles. */
static heft_status place(void *user, const char *key, size_t key_length,
                         heft__file_storage *storage, heft_error *err)
{
    struct parse *p = user;
    char *record = heft__arena_text(&p->file->arena, key, key_length);
    storage->record = record;
    return record ? HEFT_OK : heft__fail_nomem(err, key_length);
}

/* The number and the bytes of one storage. */
static heft_status place_next(struct parse *p, size_t index, heft_error *err)
{
    uint8_t number[8];
    heft__file_storage *storage = &p->build.storages[index];
    const struct heft__pk_root *root = &p->build.roots[index];
    heft_status status = heft__input_read(p->file->source, p->at, number, sizeof number, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (heft__le64(number) != root->numel) {
        return heft__fail_at(err, HEFT_FORMAT, p->at,
                             "storage has %lld elements here, %llu in the pickle",
                             (long long)heft__le64(number), (unsigned long long)root->numel);
    }
    p->at += sizeof number;
    if (storage->bytes > p->size - p->at) {
        return heft__fail_at(err, HEFT_FORMAT, p->size,
                             "storage of %llu bytes at %llu, the file has %llu",
                             (unsigned long long)storage->bytes, (unsigned long long)p->at,
                             (unsigned long long)p->size);
    }
    storage->offset = p->at;
    p->at += storage->bytes;
    p->placed[index] = true;
    return HEFT_OK;
}

static heft_status place_all(struct parse *p, heft_error *err)
{
    const heft__pk_cell *top = &p->keys.top;
    const uint64_t keys_at = p->keys.origin;
    heft_status status = HEFT_OK;
    if (top->kind != HEFT__PK_LIST) {
        return heft__fail_at(err, HEFT_FORMAT, keys_at, "storage keys must be a list, found %s",
                             heft__pk_kind_name(top));
    }
    p->placed = heft__alloc_zero(p->ctx, p->build.storage_count, sizeof *p->placed);
    if (!p->placed) {
        return heft__fail_nomem(err, p->build.storage_count);
    }
    for (uint32_t i = 0; i < top->as.object->count && status == HEFT_OK; i++) {
        const heft__pk_cell *key = &top->as.object->items[i];
        if (key->kind != HEFT__PK_TEXT) {
            return heft__fail_at(err, HEFT_FORMAT, keys_at + key->at,
                                 "storage key must be a string, found %s", heft__pk_kind_name(key));
        }
        const char *text = heft__pk_text(&p->keys, key);
        const size_t index = heft__map_get(&p->build.keys, text, key->as.text.length);
        if (index == HEFT__MAP_NONE || p->placed[index]) {
            return heft__fail_at(err, HEFT_FORMAT, keys_at + key->at, "storage key '%.*s' %s",
                                 (int)(key->as.text.length < 100 ? key->as.text.length : 100), text,
                                 index == HEFT__MAP_NONE ? "is not in the pickle"
                                                         : "is listed twice");
        }
        status = heft__add_item(place_next(p, index, err), err, p->build.storages[index].record);
    }
    for (size_t i = 0; i < p->build.storage_count && status == HEFT_OK; i++) {
        if (!p->placed[i]) {
            status = heft__fail_at(err, HEFT_FORMAT, keys_at, "storage is not in the list of keys");
            heft__add_item(status, err, p->build.storages[i].record);
        }
    }
    return status;
}

static heft_status read_object(struct parse *p, heft_error *err)
{
    heft_status status = read_next(p, HEFT__PK_IDS_LEGACY, &p->object, err);
    if (status == HEFT_OK) {
        status = read_next(p, HEFT__PK_IDS_NONE, &p->keys, err);
    }
    if (status == HEFT_OK) {
        heft__pickle_tensors_init(&p->build, p->ctx, p->file, &p->object, place, p);
        status = heft__pickle_tensors_storages(&p->build, err);
    }
    if (status == HEFT_OK) {
        status = place_all(p, err);
    }
    if (status == HEFT_OK) {
        status = heft__pickle_tensors_walk(&p->build, err);
    }
    return status == HEFT_OK ? heft__pickle_tensors_publish(&p->build, err) : status;
}

static heft_status parse_file(heft_ctx *ctx, heft__file *file, heft_error *err)
{
    struct parse p = {.ctx = ctx, .file = file, .size = heft__input_size(file->source)};
    file->format = HEFT_FORMAT_TORCH_LEGACY;
    heft_status status = read_magic(&p, err);
    if (status == HEFT_OK) {
        status = read_protocol(&p, err);
    }
    if (status == HEFT_OK) {
        status = read_system(&p, err);
    }
    if (status == HEFT_OK) {
        status = read_object(&p, err);
    }
    heft__free(ctx, p.placed, p.build.storage_count * sizeof *p.placed);
    heft__pickle_tensors_fini(&p.build);
    heft__pickle_fini(&p.object);
    heft__pickle_fini(&p.keys);
    return status;
}

/* ---- the format ------------------------------------------------------------------------------ */
static bool sniff(const uint8_t *head, size_t length)
{
    static const uint8_t magic[] = {0x8A, 0x0A, 0x6C, 0xFC, 0x9C, 0x46, 0xF9,
                                    0x20, 0x6A, 0xA8, 0x50, 0x19, '.'};
    if (length < 2 || head[0] != 0x80) {
        return false;
    }
    size_t at = length > 2 && head[2] == 0x95 ? 11 : 2; /* after a frame's opcode and length */
    return length >= at + sizeof magic && memcmp(head + at, magic, sizeof magic) == 0;
}

const heft__format heft__format_torch_legacy = {
    .id = HEFT_FORMAT_TORCH_LEGACY,
    .name = "legacy",
    .noun = "a PyTorch stream",
    .convert_as = HEFT_FORMAT_TORCH,
    .has_order = true,
    .sniff = sniff,
    .parse = parse_file,
    .one_at_a_time = true,
};
