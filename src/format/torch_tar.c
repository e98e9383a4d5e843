/* torch_tar.c - reading the tar files of PyTorch 0.1.
 *
 *   storages  pickle n; n times: pickle (key, location, class), int64 elements, bytes; pickle
 * [(target, root, offset, elements)] tensors   pickle n; n times: pickle (key, storage key, class),
 * int32 rank, int32 0, sizes, strides, offset (int64 each) pickle    the object; persistent ids are
 * keys of tensors or storages
 *
 * Keys are integers; those of tensors and storages are one set. Each tar header's checksum is
 * checked. Trusted: nothing. What is not done: compressed tars, members in several pieces, links.
 * Source: docs/formats/torch_tar.md. */
#include "format/pickle.h"

#include <stdlib.h>

#define BLOCK 512
#define RANK_MOST 64
#define LEAST_BYTES 8 /* fewer than any entry of either member takes */

struct member {
    uint64_t at, bytes;
};

/* A storage or a view of one. */
struct part {
    int64_t key;
    size_t storage; /* of the file */
    heft_dtype dtype;
    uint64_t first, numel; /* elements of the root */
};

struct parse {
    heft_ctx *ctx;
    heft__file *file;
    struct member storages, tensors, pickle;
    heft__arena arena;
    struct part *parts;
    size_t part_count;
    heft__map part_keys;
    heft__pk_known *known;
    size_t known_count;
    heft__pickle object;
    heft__pickle_tensors build;
};

/* ---- the container --------------------------------------------------------------------------- */
static bool read_octal(const uint8_t *text, size_t length, uint64_t *value)
{
    size_t i = 0;
    uint64_t sum = 0;
    while (i < length && text[i] == ' ') {
        i++;
    }
    for (; i < length && text[i] >= '0' && text[i] <= '7'; i++) {
        if (sum >> 60) {
            return false;
        }
        sum = sum * 8 + (uint64_t)(text[i] - '0');
    }
    *value = sum;
    return i == length || text[i] == 0 || text[i] == ' ';
}

static heft_status check_header(const uint8_t *header, uint64_t at, uint64_t *bytes,
                                heft_error *err)
{
    uint64_t said, sum = 0;
    for (size_t i = 0; i < BLOCK; i++) {
        sum += i >= 148 && i < 156 ? (unsigned)' ' : header[i];
    }
    if (!read_octal(header + 148, 8, &said) || said != sum) {
        return heft__fail_at(err, HEFT_FORMAT, at, "bad checksum in a tar header, expected %llu",
                             (unsigned long long)sum);
    }
    if (!read_octal(header + 124, 12, bytes)) {
        return heft__fail_at(err, HEFT_FORMAT, at, "bad size in a tar header");
    }
    return HEFT_OK;
}

static heft_status take_member(struct parse *p, const uint8_t *header, struct member member,
                               heft_error *err)
{
    static const char *const names[] = {"storages", "tensors", "pickle"};
    struct member *const members[] = {&p->storages, &p->tensors, &p->pickle};
    char name[101];
    memcpy(name, header, 100);
    name[100] = '\0';
    const char *base = strncmp(name, "./", 2) == 0 ? name + 2 : name;
    for (size_t i = 0; i < 3; i++) {
        if (strcmp(base, names[i]) != 0) {
            continue;
        }
        if (header[156] != '0' && header[156] != 0) {
            return heft__add_item(
                heft__fail_at(err, HEFT_FORMAT, member.at - BLOCK, "not a regular file"), err,
                names[i]);
        }
        if (members[i]->at) {
            return heft__add_item(
                heft__fail_at(err, HEFT_FORMAT, member.at - BLOCK, "duplicate member"), err,
                names[i]);
        }
        *members[i] = member;
    }
    return HEFT_OK;
}

static heft_status find_members(struct parse *p, heft_error *err)
{
    static const uint8_t zeros[BLOCK];
    const uint64_t size = heft__input_size(p->file->source);
    uint8_t header[BLOCK];
    heft_status status = HEFT_OK;
    for (uint64_t at = 0; at + BLOCK <= size && status == HEFT_OK;) {
        uint64_t bytes = 0;
        status = heft__input_read(p->file->source, at, header, BLOCK, err);
        if (status == HEFT_OK && memcmp(header, zeros, BLOCK) == 0) {
            break;
        }
        if (status == HEFT_OK) {
            status = check_header(header, at, &bytes, err);
        }
        at += BLOCK;
        if (status == HEFT_OK && bytes > size - at) {
            status = heft__fail_at(
                err, HEFT_FORMAT, size, "member of %llu bytes at %llu, the file has %llu",
                (unsigned long long)bytes, (unsigned long long)at, (unsigned long long)size);
        }
        if (status == HEFT_OK) {
            status = take_member(p, header, (struct member){at, bytes}, err);
        }
        at += (bytes + BLOCK - 1) / BLOCK * BLOCK;
    }
    if (status == HEFT_OK && (!p->storages.at || !p->tensors.at || !p->pickle.at)) {
        status = heft__fail(err, HEFT_UNSUPPORTED,
                            "a tar archive without the members storages, tensors and pickle");
    }
    return status;
}

/* ---- pieces of members ----------------------------------------------------------------------- */
/* Run the pickle at member->at and advance past it. The caller frees it. */
static heft_status next_pickle(struct parse *p, struct member *member, heft__pickle *pickle,
                               heft_error *err)
{
    heft_status status =
        heft__pickle_read(p->ctx, p->file->source, member->at, member->at + member->bytes,
                          HEFT__PK_IDS_NONE, pickle, err);
    if (status == HEFT_OK) {
        member->at += pickle->end;
        member->bytes -= pickle->end;
    }
    return status;
}

static heft_status next_bytes(struct parse *p, struct member *member, void *dst, size_t length,
                              heft_error *err)
{
    if (length > member->bytes) {
        return heft__fail_at(err, HEFT_FORMAT, member->at + member->bytes,
                             "member ends early, %zu bytes are needed", length);
    }
    heft_status status = heft__input_read(p->file->source, member->at, dst, length, err);
    member->at += length;
    member->bytes -= length;
    return status;
}

/* A count that the member's own size bears out. */
static heft_status next_count(struct parse *p, struct member *member, size_t *count,
                              heft_error *err)
{
    heft__pickle pickle = {0};
    const uint64_t at = member->at;
    heft_status status = next_pickle(p, member, &pickle, err);
    if (status == HEFT_OK && (pickle.top.kind != HEFT__PK_INT || pickle.top.as.integer < 0 ||
                              (uint64_t)pickle.top.as.integer > member->bytes / LEAST_BYTES)) {
        status = heft__fail_at(err, HEFT_FORMAT, at, "bad number of entries: %s",
                               heft__pk_kind_name(&pickle.top));
    }
    if (status == HEFT_OK) {
        *count = (size_t)pickle.top.as.integer;
        status = heft__quota_take(p->file->quota, *count, at, err); /* tables are made for them */
    }
    heft__pickle_fini(&pickle);
    return status;
}

/* ---- storages -------------------------------------------------------------------------------- */
static heft_status add_part(struct parse *p, const struct part *part, uint64_t at, heft_error *err)
{
    size_t found;
    struct part *slot = &p->parts[p->part_count];
    *slot = *part;
    if (!heft__map_put(&p->part_keys, (const char *)&slot->key, sizeof slot->key, p->part_count,
                       &found)) {
        return heft__fail_nomem(err, sizeof *slot);
    }
    if (found != HEFT__MAP_NONE) {
        return heft__fail_at(err, HEFT_FORMAT, at, "duplicate storage key %lld",
                             (long long)part->key);
    }
    p->part_count++;
    return HEFT_OK;
}

static heft_status read_storage(struct parse *p, heft_error *err)
{
    heft__pickle pickle = {0};
    struct part part = {.storage = p->build.storage_count};
    uint8_t number[8];
    const uint64_t at = p->storages.at;
    heft_status status = next_pickle(p, &p->storages, &pickle, err);
    if (status == HEFT_OK) {
        const heft__pk_object *tuple = pickle.top.as.object;
        if (pickle.top.kind != HEFT__PK_TUPLE || tuple->count != 3 ||
            tuple->items[0].kind != HEFT__PK_INT || tuple->items[2].kind != HEFT__PK_GLOBAL ||
            tuple->items[2].global != HEFT__PKG_STORAGE) {
            status = heft__fail_at(err, HEFT_FORMAT, at, "expected (key, location, storage class)");
        } else {
            part.key = tuple->items[0].as.integer;
            part.dtype = (heft_dtype)tuple->items[2].dtype;
        }
    }
    heft__pickle_fini(&pickle);
    if (status == HEFT_OK) {
        status = next_bytes(p, &p->storages, number, sizeof number, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    heft__file_storage storage = {.offset = p->storages.at};
    part.numel = heft__le64(number);
    if (part.numel > INT64_MAX ||
        !heft__mul_u64(part.numel, heft__pickle_elem_bytes(part.dtype), &storage.bytes) ||
        storage.bytes > p->storages.bytes) {
        return heft__fail_at(err, HEFT_FORMAT, p->storages.at - 8,
                             "storage of %lld elements, the member has %llu bytes left",
                             (long long)part.numel, (unsigned long long)p->storages.bytes);
    }
    storage.stored_bytes = storage.bytes;
    p->storages.at += storage.bytes;
    p->storages.bytes -= storage.bytes;
    if (!heft__array_reserve(p->ctx, (void **)&p->build.storages, p->build.storage_count,
                             &p->build.storage_cap, sizeof storage)) {
        return heft__fail_nomem(err, sizeof storage);
    }
    p->build.storages[p->build.storage_count++] = storage;
    return add_part(p, &part, at, err);
}

static const struct part *find_part(const struct parse *p, int64_t key)
{
    const size_t index = heft__map_get(&p->part_keys, (const char *)&key, sizeof key);
    return index == HEFT__MAP_NONE ? NULL : &p->parts[index];
}

static heft_status read_view(struct parse *p, const heft__pk_cell *cell, uint64_t at,
                             heft_error *err)
{
    const heft__pk_object *tuple = cell->as.object;
    bool fits = cell->kind == HEFT__PK_TUPLE && tuple->count == 4;
    for (uint32_t i = 0; fits && i < 4; i++) {
        fits = tuple->items[i].kind == HEFT__PK_INT;
    }
    const struct part *root = fits ? find_part(p, tuple->items[1].as.integer) : NULL;
    if (!root) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "expected a view (target key, root key, offset, elements)");
    }
    struct part part = *root;
    const int64_t first = tuple->items[2].as.integer, numel = tuple->items[3].as.integer;
    if (first < 0 || numel < 0 || (uint64_t)first > root->numel ||
        (uint64_t)numel > root->numel - (uint64_t)first) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "view of %lld elements from %lld, the storage has %llu",
                             (long long)numel, (long long)first, (unsigned long long)root->numel);
    }
    part.key = tuple->items[0].as.integer;
    part.first = root->first + (uint64_t)first;
    part.numel = (uint64_t)numel;
    return add_part(p, &part, at, err);
}

/* The pickles of storages are read first, for parts needs to know how many views there are: a view
 * takes at least as many bytes as LEAST_BYTES, too. */
static heft_status read_storages(struct parse *p, heft_error *err)
{
    size_t count = 0;
    const size_t most = (size_t)(p->storages.bytes / LEAST_BYTES) + 1;
    heft__pickle views = {0};
    heft_status status = next_count(p, &p->storages, &count, err);
    if (status == HEFT_OK && count > most) {
        status = heft__fail_at(err, HEFT_FORMAT, p->storages.at,
                               "the member is too small for %zu storages", count);
    }
    p->parts = status == HEFT_OK ? heft__arena_array(&p->arena, count, sizeof *p->parts) : NULL;
    if (status == HEFT_OK && !p->parts) {
        status = heft__fail_nomem(err, count * sizeof *p->parts);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        status = read_storage(p, err);
    }
    const uint64_t at = p->storages.at;
    if (status == HEFT_OK) {
        status = next_pickle(p, &p->storages, &views, err);
    }
    if (status == HEFT_OK && views.top.kind != HEFT__PK_LIST) {
        status = heft__fail_at(err, HEFT_FORMAT, at, "views must be a list, found %s",
                               heft__pk_kind_name(&views.top));
    }
    if (status == HEFT_OK && views.top.as.object->count) {
        const heft__pk_object *list = views.top.as.object;
        struct part *more =
            heft__arena_array(&p->arena, (uint64_t)count + list->count, sizeof *more);
        status = more ? HEFT_OK : heft__fail_nomem(err, list->count * sizeof *more);
        if (more && count) {
            memcpy(more, p->parts,
                   count * sizeof *more); /* the keys in the map stay where they are */
        }
        p->parts = more ? more : p->parts;
        for (uint32_t i = 0; i < list->count && status == HEFT_OK; i++) {
            status = read_view(p, &list->items[i], at, err);
        }
    }
    heft__pickle_fini(&views);
    return status;
}

/* ---- tensors --------------------------------------------------------------------------------- */
struct description {
    int64_t key, sizes[RANK_MOST], strides[RANK_MOST], offset;
    uint32_t rank;
    const struct part *part;
};

static heft_status read_header(struct parse *p, struct description *tensor, heft_error *err)
{
    heft__pickle pickle = {0};
    const uint64_t at = p->tensors.at;
    heft_status status = next_pickle(p, &p->tensors, &pickle, err);
    if (status == HEFT_OK) {
        const heft__pk_object *tuple = pickle.top.as.object;
        if (pickle.top.kind != HEFT__PK_TUPLE || tuple->count != 3 ||
            tuple->items[0].kind != HEFT__PK_INT || tuple->items[1].kind != HEFT__PK_INT ||
            tuple->items[2].kind != HEFT__PK_GLOBAL ||
            tuple->items[2].global != HEFT__PKG_TENSOR_CLASS) {
            status =
                heft__fail_at(err, HEFT_FORMAT, at, "expected (key, storage key, tensor class)");
        } else {
            tensor->key = tuple->items[0].as.integer;
            tensor->part = find_part(p, tuple->items[1].as.integer);
            if (!tensor->part || tensor->part->dtype != (heft_dtype)tuple->items[2].dtype) {
                status =
                    heft__fail_at(err, HEFT_FORMAT, at,
                                  "tensor on storage %lld, which is missing or has another type",
                                  (long long)tuple->items[1].as.integer);
            }
        }
    }
    heft__pickle_fini(&pickle);
    return status;
}

static heft_status read_numbers(struct parse *p, struct description *tensor, heft_error *err)
{
    uint8_t bytes[8 * (2 * RANK_MOST + 1)];
    const uint64_t at = p->tensors.at;
    heft_status status = next_bytes(p, &p->tensors, bytes, 8, err);
    if (status != HEFT_OK) {
        return status;
    }
    tensor->rank = heft__le32(bytes);
    if (tensor->rank > RANK_MOST || tensor->rank > heft__limits(p->ctx)->rank) {
        return heft__fail_at(err, HEFT_LIMIT, at, "%u dimensions, the limit is %d", tensor->rank,
                             RANK_MOST);
    }
    status = next_bytes(p, &p->tensors, bytes, 8 * (2 * (size_t)tensor->rank + 1), err);
    for (uint32_t i = 0; i < tensor->rank && status == HEFT_OK; i++) {
        tensor->sizes[i] = (int64_t)heft__le64(bytes + 8 * (size_t)i);
        tensor->strides[i] = (int64_t)heft__le64(bytes + 8 * ((size_t)tensor->rank + i));
    }
    if (status == HEFT_OK) {
        tensor->offset = (int64_t)heft__le64(bytes + 16 * (size_t)tensor->rank);
    }
    return status;
}

static heft_status read_tensor(struct parse *p, heft_error *err)
{
    struct description tensor = {0};
    const uint64_t at = p->tensors.at;
    heft_status status = read_header(p, &tensor, err);
    if (status == HEFT_OK) {
        status = read_numbers(p, &tensor, err);
    }
    if (status == HEFT_OK) {
        const struct part *part = tensor.part;
        const uint64_t elem = heft__pickle_elem_bytes(part->dtype);
        heft__pk_known *known = &p->known[p->known_count++];
        known->key = tensor.key;
        known->tensor =
            (heft__file_tensor){.dtype = part->dtype, .storage = part->storage, .item_offset = at};
        status = heft__pickle_view(&p->file->arena, tensor.sizes, tensor.strides, tensor.rank,
                                   tensor.offset, part->first * elem, part->numel * elem,
                                   &known->tensor, err);
    }
    return status;
}

static int by_key(const void *left, const void *right)
{
    const heft__pk_known *a = left, *b = right;
    return a->key < b->key ? -1 : a->key > b->key;
}

static heft_status read_tensors(struct parse *p, heft_error *err)
{
    size_t count = 0;
    heft_status status = next_count(p, &p->tensors, &count, err);
    if (status == HEFT_OK) {
        p->known = heft__arena_array(&p->arena, (uint64_t)count + p->part_count, sizeof *p->known);
        status = p->known ? HEFT_OK : heft__fail_nomem(err, count * sizeof *p->known);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        status = read_tensor(p, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    for (size_t i = 0; i < p->part_count; i++) {
        p->known[p->known_count++] =
            (heft__pk_known){.key = p->parts[i].key}; /* no dtype: a bare storage */
    }
    qsort(p->known, p->known_count, sizeof *p->known, by_key);
    for (size_t i = 1; i < p->known_count; i++) {
        if (p->known[i].key == p->known[i - 1].key) {
            return heft__fail_at(err, HEFT_FORMAT, p->tensors.at, "duplicate key %lld",
                                 (long long)p->known[i].key);
        }
    }
    return HEFT_OK;
}

/* ---- the file -------------------------------------------------------------------------------- */
static heft_status no_place(void *user, const char *key, size_t key_length,
                            heft__file_storage *storage, heft_error *err)
{
    (void)user, (void)key, (void)key_length, (void)storage;
    return heft__fail(err, HEFT_FORMAT, "a storage is identified by name, the format uses numbers");
}

static heft_status parse_file(heft_ctx *ctx, heft__file *file, heft_error *err)
{
    struct parse p = {.ctx = ctx, .file = file};
    file->format = HEFT_FORMAT_TORCH_TAR;
    heft__arena_init(&p.arena, ctx);
    heft__map_init(&p.part_keys, ctx);
    heft__pickle_tensors_init(&p.build, ctx, file, &p.object, no_place, &p);
    heft_status status = find_members(&p, err);
    if (status == HEFT_OK) {
        status = heft__add_item(read_storages(&p, err), err, "storages");
    }
    if (status == HEFT_OK) {
        status = heft__add_item(read_tensors(&p, err), err, "tensors");
    }
    if (status == HEFT_OK) {
        status = heft__pickle_read(ctx, file->source, p.pickle.at, p.pickle.at + p.pickle.bytes,
                                   HEFT__PK_IDS_TAR, &p.object, err);
    }
    if (status == HEFT_OK) {
        p.build.known = p.known;
        p.build.known_count = p.known_count;
        status = heft__pickle_tensors_walk(&p.build, err);
    }
    if (status == HEFT_OK) {
        status = heft__pickle_tensors_publish(&p.build, err);
    }
    heft__pickle_tensors_fini(&p.build);
    heft__pickle_fini(&p.object);
    heft__map_fini(&p.part_keys);
    heft__arena_fini(&p.arena);
    return heft__add_item(status, err, status == HEFT_OK ? NULL : "pickle");
}

/* ---- the format ------------------------------------------------------------------------------ */
/* "ustar" at 257, or a right checksum. */
static bool sniff(const uint8_t *head, size_t length)
{
    unsigned sum = 0, said = 0;
    if (length < HEFT__HEAD_BYTES || head[0] == 0) {
        return false;
    }
    for (size_t i = 0; i < HEFT__HEAD_BYTES; i++) {
        sum += i >= 148 && i < 156 ? (unsigned)' ' : head[i];
    }
    size_t at = 148;
    while (at < 156 && head[at] == ' ') {
        at++;
    }
    for (; at < 156 && head[at] >= '0' && head[at] <= '7'; at++) {
        said = said * 8 + (unsigned)(head[at] - '0');
    }
    return memcmp(head + 257, "ustar", 5) == 0 || said == sum;
}

const heft__format heft__format_torch_tar = {
    .id = HEFT_FORMAT_TORCH_TAR,
    .name = "tar",
    .noun = "a PyTorch tar",
    .convert_as = HEFT_FORMAT_TORCH,
    .has_order = true,
    .sniff = sniff,
    .parse = parse_file,
    .one_at_a_time = true,
};
