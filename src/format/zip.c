/* zip.c - the zip container, read strictly, and raw deflate streams.
 *
 *   local header | name | extra | data [| data descriptor]      per entry
 *   central directory: one entry each, with the sizes that count
 *   [zip64 end record | zip64 locator] | end record | comment
 *
 * Only the central directory is believed, and only after it has been checked: its place, size and
 * count agree with the end record, every entry's header and data lie before it, entries do not
 * overlap and have distinct names (upper and lower case alike, as PyTorch looks them up), and
 * each local header has the signature, name, method and, where it gives any, the sizes of its
 * central entry. Entries that are encrypted, on another disk or packed by another method than 0 or
 * 8 are refused, and so are absolute names and names with a ".." component. What is not done:
 * nothing is extracted, and bytes between entries are not looked at. Source:
 * docs/formats/torch_zip.md [2]. */
#include "format/zip.h"

#include <stdlib.h>
#include <zlib.h>

#define END_BYTES 22
#define END64_BYTES 56
#define LOCATOR_BYTES 20
#define CENTRAL_BYTES 46
#define LOCAL_BYTES 30
#define COMMENT_MOST 65535
#define FLAG_ENCRYPTED 0x2041u /* bits 0, 6 and 13 */
#define FLAG_DESCRIPTOR 0x0008u
#define RATIO_MOST 1032 /* deflate gives at most 258 bytes for 2 bits */
#define NAME_SHOWN 200

/* ---- end records ----------------------------------------------------------------------------- */
struct directory {
    uint64_t offset, bytes, count;
    uint64_t end; /* byte of the end record, or of the zip64 one */
};

static heft_status read_end64(heft__zip *zip, const uint8_t *locator, uint64_t locator_at,
                              struct directory *dir, const uint8_t *end, heft_error *err)
{
    uint8_t record[END64_BYTES];
    const uint64_t at = heft__le64(locator + 8);
    if (at > locator_at || locator_at - at < END64_BYTES) {
        return heft__fail_at(
            err, HEFT_FORMAT, locator_at, "zip64 end record at %llu, file has %llu bytes",
            (unsigned long long)at, (unsigned long long)heft__input_size(zip->source));
    }
    heft_status status = heft__input_read(zip->source, at, record, sizeof record, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (memcmp(record, "PK\6\6", 4) != 0) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "no zip64 end record at the offset in its locator");
    }
    if (heft__le32(record + 16) != 0 || heft__le32(record + 20) != 0 ||
        heft__le32(locator + 4) != 0 || heft__le64(record + 24) != heft__le64(record + 32)) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, at, "the zip spans several disks");
    }
    const uint64_t count = heft__le64(record + 32), bytes = heft__le64(record + 40),
                   offset = heft__le64(record + 48);
    if ((dir->count != 0xFFFF && dir->count != count) ||
        (dir->bytes != UINT32_MAX && dir->bytes != bytes) ||
        (dir->offset != UINT32_MAX && dir->offset != offset)) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "zip64 end record and end record disagree: %llu entries, %u entries",
                             (unsigned long long)count, heft__le16(end + 10));
    }
    *dir = (struct directory){.offset = offset, .bytes = bytes, .count = count, .end = at};
    return HEFT_OK;
}

/* The last end record in the tail of the file whose comment fits. */
static const uint8_t *find_end(const uint8_t *tail, size_t length)
{
    for (size_t i = length < END_BYTES ? 0 : length - END_BYTES + 1; i-- > 0;) {
        if (memcmp(tail + i, "PK\5\6", 4) == 0 &&
            heft__le16(tail + i + 20) <= length - i - END_BYTES) {
            return tail + i;
        }
    }
    return NULL;
}

static heft_status read_end(heft__zip *zip, const uint8_t *tail, uint64_t tail_at, size_t length,
                            struct directory *dir, heft_error *err)
{
    const uint64_t size = tail_at + length;
    const uint8_t *end = find_end(tail, length);
    if (!end) {
        return heft__fail_at(err, HEFT_FORMAT, size,
                             "no end-of-central-directory record in the last bytes of the file");
    }
    const uint64_t at = tail_at + (uint64_t)(end - tail);
    zip->trailing_bytes = size - at - END_BYTES - heft__le16(end + 20);
    *dir = (struct directory){.offset = heft__le32(end + 16),
                              .bytes = heft__le32(end + 12),
                              .count = heft__le16(end + 10),
                              .end = at};
    if (end - tail >= LOCATOR_BYTES && memcmp(end - LOCATOR_BYTES, "PK\6\7", 4) == 0) {
        heft_status status =
            read_end64(zip, end - LOCATOR_BYTES, at - LOCATOR_BYTES, dir, end, err);
        if (status != HEFT_OK) {
            return status;
        }
    } else if (heft__le16(end + 4) != 0 || heft__le16(end + 6) != 0 ||
               heft__le16(end + 8) != heft__le16(end + 10)) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, at, "the zip spans several disks");
    }
    if (dir->offset > dir->end || dir->bytes > dir->end - dir->offset) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "central directory at %llu of %llu bytes, file has %llu",
                             (unsigned long long)dir->offset, (unsigned long long)dir->bytes,
                             (unsigned long long)size);
    }
    if (dir->count == 0) {
        return heft__fail_at(err, HEFT_FORMAT, at, "the zip has no entries");
    }
    if (dir->count > dir->bytes / CENTRAL_BYTES) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "central directory of %llu bytes ends early; expected %llu entries",
                             (unsigned long long)dir->bytes, (unsigned long long)dir->count);
    }
    const uint64_t limit = heft__limits(zip->ctx)->header_bytes;
    if (dir->bytes > limit) {
        return heft__fail_at(
            err, HEFT_LIMIT, at,
            "central directory has %llu bytes, the limit is %llu (limit header_bytes)",
            (unsigned long long)dir->bytes, (unsigned long long)limit);
    }
    return HEFT_OK;
}

static heft_status find_directory(heft__zip *zip, struct directory *dir, heft_error *err)
{
    const uint64_t size = heft__input_size(zip->source),
                   most = LOCATOR_BYTES + END_BYTES + COMMENT_MOST;
    const size_t length = (size_t)(size < most ? size : most);
    uint8_t *tail = heft__alloc(zip->ctx, length);
    if (!tail) {
        return heft__fail_nomem(err, length);
    }
    heft_status status = heft__input_read(zip->source, size - length, tail, length, err);
    if (status == HEFT_OK) {
        status = read_end(zip, tail, size - length, length, dir, err);
    }
    heft__free(zip->ctx, tail, length);
    return status;
}

/* ---- the central directory ------------------------------------------------------------------- */
static heft_status blame(heft_status status, heft_error *err, const heft__zip_entry *entry)
{
    return heft__add_item(status, err, entry->name);
}

/* Sizes and offset that do not fit into 32 bits stand in extra field 1, in this order, those that
 * are needed only. */
static heft_status read_zip64(const uint8_t *extra, size_t length, heft__zip_entry *entry,
                              heft_error *err)
{
    uint64_t *wanted[3];
    size_t count = 0;
    if (entry->bytes == UINT32_MAX) {
        wanted[count++] = &entry->bytes;
    }
    if (entry->stored_bytes == UINT32_MAX) {
        wanted[count++] = &entry->stored_bytes;
    }
    if (entry->header == UINT32_MAX) {
        wanted[count++] = &entry->header;
    }
    bool found = false;
    while (length >= 4) {
        const size_t id = heft__le16(extra), bytes = heft__le16(extra + 2);
        if (bytes > length - 4) {
            return heft__fail_at(err, HEFT_FORMAT, entry->central,
                                 "extra field of %zu bytes, %zu left", bytes, length - 4);
        }
        if (id == 1 && !found) {
            found = true;
            if (bytes < count * 8) {
                return heft__fail_at(err, HEFT_FORMAT, entry->central,
                                     "zip64 field of %zu bytes, expected %zu", bytes, count * 8);
            }
            for (size_t i = 0; i < count; i++) {
                *wanted[i] = heft__le64(extra + 4 + i * 8);
            }
        }
        extra += 4 + bytes;
        length -= 4 + bytes;
    }
    if (count && !found) {
        return heft__fail_at(err, HEFT_FORMAT, entry->central,
                             "size or offset 4294967295 and no zip64 field");
    }
    return HEFT_OK;
}

static heft_status check_name(const heft__zip_entry *entry, heft_error *err)
{
    const char *name = entry->name;
    if (entry->name_length == 0 || strlen(name) != entry->name_length) {
        return heft__fail_at(err, HEFT_FORMAT, entry->central,
                             "record name is empty or contains a NUL");
    }
    bool leaves = name[0] == '/' || name[0] == '\\';
    for (const char *part = name; part && !leaves; part = strpbrk(part, "/\\")) {
        part += *part == '/' || *part == '\\';
        leaves =
            part[0] == '.' && part[1] == '.' && (part[2] == 0 || part[2] == '/' || part[2] == '\\');
    }
    if (leaves) {
        return heft__fail_at(err, HEFT_REFUSED, entry->central,
                             "record name '%.*s' must be relative, without '..'", NAME_SHOWN, name);
    }
    return HEFT_OK;
}

static heft_status check_entry(const heft__zip_entry *entry, uint64_t directory, heft_error *err)
{
    uint64_t end;
    const uint64_t at = entry->central;
    if (entry->flags & FLAG_ENCRYPTED) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, at, "encrypted records are not supported");
    }
    if (entry->method != 0 && entry->method != 8) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, at, "compression method %u is not supported",
                             entry->method);
    }
    if (entry->method == 0 && entry->stored_bytes != entry->bytes) {
        return heft__fail_at(err, HEFT_FORMAT, at, "stored, but sizes %llu and %llu disagree",
                             (unsigned long long)entry->stored_bytes,
                             (unsigned long long)entry->bytes);
    }
    if (entry->method == 8 && !heft__inflate_can_give(entry->stored_bytes, entry->bytes)) {
        return heft__fail_at(
            err, HEFT_FORMAT, at, "claims %llu bytes, which %llu deflated bytes cannot hold",
            (unsigned long long)entry->bytes, (unsigned long long)entry->stored_bytes);
    }
    if (!heft__add_u64(entry->header, LOCAL_BYTES + entry->name_length, &end) || end > directory) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "local header at %llu, the central directory begins at %llu",
                             (unsigned long long)entry->header, (unsigned long long)directory);
    }
    if (entry->stored_bytes > directory - end) {
        return heft__fail_at(
            err, HEFT_FORMAT, at, "size %llu extends past the central directory at %llu",
            (unsigned long long)entry->stored_bytes, (unsigned long long)directory);
    }
    return HEFT_OK;
}

/* The name as it is looked up: ASCII letters small. The same pointer where nothing changes. */
static const char *fold(heft__arena *arena, const char *name, size_t length)
{
    size_t i = 0;
    while (i < length && !(name[i] >= 'A' && name[i] <= 'Z')) {
        i++;
    }
    if (i == length) {
        return name;
    }
    char *folded = heft__arena_text(arena, name, length);
    for (; folded && i < length; i++) {
        if (folded[i] >= 'A' && folded[i] <= 'Z') {
            folded[i] = (char)(folded[i] + ('a' - 'A'));
        }
    }
    return folded;
}

static heft_status add_name(heft__zip *zip, size_t index, heft_error *err)
{
    const heft__zip_entry *entry = &zip->entries[index];
    const char *key = fold(&zip->arena, entry->name, entry->name_length);
    size_t found;
    if (!key || !heft__map_put(&zip->names, key, entry->name_length, index, &found)) {
        return heft__fail_nomem(err, entry->name_length);
    }
    if (found != HEFT__MAP_NONE) {
        return heft__fail_at(err, HEFT_FORMAT, entry->central,
                             "duplicate record name, first at byte %llu",
                             (unsigned long long)zip->entries[found].central);
    }
    return HEFT_OK;
}

/* One central entry at `bytes`; *used is what it takes. */
static heft_status read_central(heft__zip *zip, const struct directory *dir, const uint8_t *bytes,
                                size_t left, uint64_t at, size_t index, size_t *used,
                                heft_error *err)
{
    heft__zip_entry *entry = &zip->entries[index];
    if (left < CENTRAL_BYTES) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "central directory ends at entry %zu; expected %llu entries", index,
                             (unsigned long long)dir->count);
    }
    if (memcmp(bytes, "PK\1\2", 4) != 0) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "bad signature of central entry %zu; expected %llu entries", index,
                             (unsigned long long)dir->count);
    }
    const size_t name = heft__le16(bytes + 28), extra = heft__le16(bytes + 30),
                 comment = heft__le16(bytes + 32);
    if (name + extra + comment > left - CENTRAL_BYTES) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "central entry %zu needs %zu bytes, the directory has %zu left", index,
                             CENTRAL_BYTES + name + extra + comment, left);
    }
    *entry = (heft__zip_entry){
        .name = heft__arena_text(&zip->arena, (const char *)bytes + CENTRAL_BYTES, name),
        .name_length = name,
        .central = at,
        .flags = heft__le16(bytes + 8),
        .method = heft__le16(bytes + 10),
        .crc = heft__le32(bytes + 16),
        .stored_bytes = heft__le32(bytes + 20),
        .bytes = heft__le32(bytes + 24),
        .header = heft__le32(bytes + 42),
    };
    if (!entry->name) {
        return heft__fail_nomem(err, name);
    }
    *used = CENTRAL_BYTES + name + extra + comment;
    heft_status status = check_name(entry, err);
    if (status == HEFT_OK && heft__le16(bytes + 34) != 0) {
        status = heft__fail_at(err, HEFT_UNSUPPORTED, at, "is on another disk");
    }
    if (status == HEFT_OK) {
        status = read_zip64(bytes + CENTRAL_BYTES + name, extra, entry, err);
    }
    if (status == HEFT_OK) {
        status = check_entry(entry, dir->offset, err);
    }
    if (status == HEFT_OK) {
        status = add_name(zip, index, err);
    }
    return blame(status, err, entry);
}

static heft_status read_directory(heft__zip *zip, const struct directory *dir, heft_error *err)
{
    const size_t length = (size_t)dir->bytes; /* below the file's size and the limit */
    size_t at = 0, used = 0;
    uint8_t *bytes = heft__alloc(zip->ctx, length);
    zip->entries = heft__arena_array(&zip->arena, dir->count, sizeof *zip->entries);
    if (!bytes || !zip->entries) {
        heft__free(zip->ctx, bytes, length);
        return heft__fail_nomem(err, length);
    }
    heft_status status = heft__input_read(zip->source, dir->offset, bytes, length, err);
    while (status == HEFT_OK && zip->count < dir->count) {
        status = read_central(zip, dir, bytes + at, length - at, dir->offset + at, zip->count,
                              &used, err);
        at += used;
        zip->count += status == HEFT_OK;
    }
    if (status == HEFT_OK && at != length) {
        status = heft__fail_at(err, HEFT_FORMAT, dir->offset + at,
                               "%zu entries use %zu bytes, the central directory has %zu",
                               zip->count, at, length);
    }
    heft__free(zip->ctx, bytes, length);
    return status;
}

/* ---- local headers --------------------------------------------------------------------------- */
/* 0 beside a data descriptor and 0xFFFFFFFF beside a zip64 field say nothing. */
static bool local_size_fits(uint32_t local, uint64_t central, bool descriptor)
{
    return local == central || local == UINT32_MAX || (descriptor && local == 0);
}

static heft_status check_local(const heft__zip_entry *entry, const uint8_t *header, heft_error *err)
{
    const uint64_t at = entry->header;
    const bool descriptor = entry->flags & FLAG_DESCRIPTOR;
    const size_t name = heft__le16(header + 26);
    if (memcmp(header, "PK\3\4", 4) != 0) {
        return heft__fail_at(err, HEFT_FORMAT, at, "bad local header signature");
    }
    if (name != entry->name_length || memcmp(header + LOCAL_BYTES, entry->name, name) != 0) {
        return heft__fail_at(err, HEFT_FORMAT, at, "local name '%.*s' differs",
                             (int)(name < entry->name_length ? name : entry->name_length),
                             header + LOCAL_BYTES);
    }
    if (heft__le16(header + 8) != entry->method || heft__le16(header + 6) & FLAG_ENCRYPTED) {
        return heft__fail_at(err, HEFT_FORMAT, at, "local header has method %u, the directory %u",
                             heft__le16(header + 8), entry->method);
    }
    const uint32_t stored = heft__le32(header + 18), bytes = heft__le32(header + 22);
    if (!local_size_fits(stored, entry->stored_bytes, descriptor) ||
        !local_size_fits(bytes, entry->bytes, descriptor)) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "local header has sizes %u and %u, the directory %llu and %llu",
                             stored, bytes, (unsigned long long)entry->stored_bytes,
                             (unsigned long long)entry->bytes);
    }
    return HEFT_OK;
}

static heft_status read_local(heft__zip *zip, heft__zip_entry *entry,
                              const heft__zip_entry *follower, uint64_t next, heft_error *err)
{
    uint8_t small[LOCAL_BYTES + 256], *header = small;
    const size_t length = LOCAL_BYTES + entry->name_length;
    if (length > sizeof small) {
        header = heft__alloc(zip->ctx, length);
        if (!header) {
            return heft__fail_nomem(err, length);
        }
    }
    heft_status status = heft__input_read(zip->source, entry->header, header, length, err);
    if (status == HEFT_OK) {
        status = check_local(entry, header, err);
    }
    if (status == HEFT_OK) {
        entry->data = entry->header + length + heft__le16(header + 28);
        if (entry->data > next || entry->stored_bytes > next - entry->data) {
            status = heft__fail_at(
                err, HEFT_FORMAT, entry->header, "%llu bytes at %llu overlap '%.*s' at %llu",
                (unsigned long long)entry->stored_bytes, (unsigned long long)entry->data,
                NAME_SHOWN, follower ? follower->name : "the central directory",
                (unsigned long long)next);
        }
    }
    if (header != small) {
        heft__free(zip->ctx, header, length);
    }
    return blame(status, err, entry);
}

static int by_header(const void *left, const void *right)
{
    const heft__zip_entry *const *a = left, *const *b = right;
    if ((*a)->header != (*b)->header) {
        return (*a)->header < (*b)->header ? -1 : 1;
    }
    return (*a)->central < (*b)->central ? -1 : (*a)->central > (*b)->central;
}

static heft_status read_locals(heft__zip *zip, const struct directory *dir, heft_error *err)
{
    heft_status status = HEFT_OK;
    heft__zip_entry **sorted = heft__alloc_zero(zip->ctx, zip->count, sizeof *sorted);
    if (!sorted) {
        return heft__fail_nomem(err, zip->count * sizeof *sorted);
    }
    for (size_t i = 0; i < zip->count; i++) {
        sorted[i] = &zip->entries[i];
    }
    qsort(sorted, zip->count, sizeof *sorted, by_header);
    for (size_t i = 0; i + 1 < zip->count && status == HEFT_OK; i++) {
        if (sorted[i]->header == sorted[i + 1]->header) {
            status = heft__fail_at(err, HEFT_FORMAT, sorted[i + 1]->central,
                                   "has the local header of '%.*s', at %llu", NAME_SHOWN,
                                   sorted[i]->name, (unsigned long long)sorted[i]->header);
            blame(status, err, sorted[i + 1]);
        }
    }
    for (size_t i = 0; i < zip->count && status == HEFT_OK; i++) {
        const heft__zip_entry *follower = i + 1 < zip->count ? sorted[i + 1] : NULL;
        status =
            read_local(zip, sorted[i], follower, follower ? follower->header : dir->offset, err);
    }
    heft__free(zip->ctx, sorted, zip->count * sizeof *sorted);
    return status;
}

/* ---- open, find, read ------------------------------------------------------------------------ */
heft_status heft__zip_open(heft_ctx *ctx, heft__input *source, heft__zip *zip, heft_error *err)
{
    struct directory dir = {0};
    *zip = (heft__zip){.ctx = ctx, .source = source};
    heft__arena_init(&zip->arena, ctx);
    heft__map_init(&zip->names, ctx);
    heft_status status = find_directory(zip, &dir, err);
    if (status == HEFT_OK) {
        status = read_directory(zip, &dir, err);
    }
    return status == HEFT_OK ? read_locals(zip, &dir, err) : status;
}

void heft__zip_fini(heft__zip *zip)
{
    if (zip->ctx) {
        heft__map_fini(&zip->names);
        heft__arena_fini(&zip->arena);
    }
    *zip = (heft__zip){0};
}

heft_status heft__zip_find(heft__zip *zip, const char *name, size_t length,
                           const heft__zip_entry **entry, heft_error *err)
{
    const char *key = fold(&zip->arena, name, length);
    if (!key) {
        return heft__fail_nomem(err, length);
    }
    const size_t index = heft__map_get(&zip->names, key, length);
    *entry = index == HEFT__MAP_NONE ? NULL : &zip->entries[index];
    return HEFT_OK;
}

heft_status heft__zip_read(const heft__zip *zip, const heft__zip_entry *entry, uint64_t limit,
                           uint8_t **bytes, heft_error *err)
{
    if (entry->bytes > limit) {
        heft_status status = heft__fail_at(
            err, HEFT_LIMIT, entry->central, "record has %llu bytes, the limit is %llu",
            (unsigned long long)entry->bytes, (unsigned long long)limit);
        return blame(status, err, entry);
    }
    const size_t length = (size_t)entry->bytes;
    uint8_t *buffer = heft__alloc(zip->ctx, length);
    if (!buffer) {
        return heft__fail_nomem(err, length);
    }
    heft_status status;
    if (entry->method == 8) {
        heft__inflater *inflater = NULL;
        status = heft__inflater_new(zip->ctx, zip->source, entry->data, entry->stored_bytes,
                                    entry->bytes, &inflater, err);
        if (status == HEFT_OK) {
            status = heft__inflater_read(inflater, buffer, length, err);
        }
        heft__inflater_free(inflater);
    } else {
        status = heft__input_read(zip->source, entry->data, buffer, length, err);
    }
    if (status == HEFT_OK && entry->crc != 0) {
        const uint32_t found = heft__crc32(0, buffer, length);
        if (found != entry->crc) {
            status = heft__fail_at(err, HEFT_FORMAT, entry->data,
                                   "CRC-32 is %08x, the directory has %08x", found, entry->crc);
        }
    }
    if (status != HEFT_OK) {
        heft__free(zip->ctx, buffer, length);
        return blame(status, err, entry);
    }
    *bytes = buffer;
    return HEFT_OK;
}

/* ---- deflate --------------------------------------------------------------------------------- */
#define INPUT_BYTES 65536

struct heft__inflater {
    heft_ctx *ctx;
    heft__input *source; /* borrowed */
    uint64_t at, left;   /* stored bytes not read yet */
    uint64_t bytes_left; /* to be given */
    z_stream stream;
    bool ready, ended;
    uint8_t input[INPUT_BYTES];
};

bool heft__inflate_can_give(uint64_t stored_bytes, uint64_t bytes)
{
    return bytes / RATIO_MOST <= stored_bytes;
}

/* zlib frees without a size: it is kept in front, in a block of its own alignment. */
#define ZLIB_HEAD 16

static void *zlib_alloc(void *user, uInt count, uInt size)
{
    const size_t bytes = (size_t)count * size + ZLIB_HEAD;
    uint8_t *block = heft__alloc(user, bytes);
    if (!block) {
        return NULL;
    }
    memcpy(block, &bytes, sizeof bytes);
    return block + ZLIB_HEAD;
}

static void zlib_free(void *user, void *address)
{
    size_t bytes;
    uint8_t *block = (uint8_t *)address - ZLIB_HEAD;
    memcpy(&bytes, block, sizeof bytes);
    heft__free(user, block, bytes);
}

heft_status heft__inflater_new(heft_ctx *ctx, heft__input *source, uint64_t offset,
                               uint64_t stored_bytes, uint64_t bytes, heft__inflater **out,
                               heft_error *err)
{
    heft__inflater *inflater = heft__alloc_zero(ctx, 1, sizeof *inflater);
    if (!inflater) {
        return heft__fail_nomem(err, sizeof *inflater);
    }
    *inflater = (heft__inflater){
        .ctx = ctx,
        .source = source,
        .at = offset,
        .left = stored_bytes,
        .bytes_left = bytes,
        .stream = {.zalloc = zlib_alloc, .zfree = zlib_free, .opaque = ctx}
    };
    if (inflateInit2(&inflater->stream, -MAX_WBITS) != Z_OK) {
        heft__inflater_free(inflater);
        return heft__fail_nomem(err, sizeof *inflater);
    }
    inflater->ready = true;
    *out = inflater;
    return HEFT_OK;
}

/* Give zlib more input if it has none, and let it work. */
static heft_status inflate_some(heft__inflater *inflater, heft_error *err)
{
    z_stream *stream = &inflater->stream;
    if (stream->avail_in == 0 && inflater->left) {
        const size_t piece = inflater->left < INPUT_BYTES ? (size_t)inflater->left : INPUT_BYTES;
        heft_status status =
            heft__input_read(inflater->source, inflater->at, inflater->input, piece, err);
        if (status != HEFT_OK) {
            return status;
        }
        stream->next_in = inflater->input;
        stream->avail_in = (uInt)piece;
        inflater->at += piece;
        inflater->left -= piece;
    }
    const uInt in = stream->avail_in, out = stream->avail_out;
    const int result = inflate(stream, Z_NO_FLUSH);
    const uint64_t at = inflater->at - stream->avail_in;
    if (result == Z_MEM_ERROR) {
        return heft__fail_nomem(err, 1u << MAX_WBITS);
    }
    inflater->ended = result == Z_STREAM_END;
    if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
        return heft__fail_at(err, HEFT_FORMAT, at, "deflated data is damaged: %s",
                             stream->msg ? stream->msg : "unknown reason");
    }
    if (!inflater->ended && stream->avail_in == in && stream->avail_out == out &&
        inflater->left == 0) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "deflated data ends early, or continues past its size");
    }
    return HEFT_OK;
}

/* Behind the last byte the stream must end, with all of its input used. */
static heft_status finish(heft__inflater *inflater, heft_error *err)
{
    uint8_t extra;
    heft_status status = HEFT_OK;
    inflater->stream.next_out = &extra;
    inflater->stream.avail_out = 1;
    while (status == HEFT_OK && !inflater->ended && inflater->stream.avail_out) {
        status = inflate_some(inflater, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    const uint64_t at = inflater->at - inflater->stream.avail_in;
    if (inflater->stream.avail_out == 0) {
        return heft__fail_at(err, HEFT_FORMAT, at, "deflated data continues past its size");
    }
    if (inflater->stream.avail_in || inflater->left) {
        return heft__fail_at(err, HEFT_FORMAT, at, "deflated data ends %llu bytes early",
                             (unsigned long long)(inflater->stream.avail_in + inflater->left));
    }
    return HEFT_OK;
}

heft_status heft__inflater_read(heft__inflater *inflater, void *dst, size_t length, heft_error *err)
{
    const size_t most = 1u << 30; /* zlib counts in 32 bits */
    uint8_t *out = dst;
    heft_status status = HEFT_OK;
    if (length > inflater->bytes_left) {
        return heft__fail_at(err, HEFT_FORMAT, inflater->at, "deflated data ends %llu bytes early",
                             (unsigned long long)(length - inflater->bytes_left));
    }
    inflater->bytes_left -= length;
    while (length && status == HEFT_OK) {
        const size_t piece = length < most ? length : most;
        inflater->stream.next_out = out;
        inflater->stream.avail_out = (uInt)piece;
        while (status == HEFT_OK && inflater->stream.avail_out && !inflater->ended) {
            status = inflate_some(inflater, err);
        }
        if (status == HEFT_OK && inflater->stream.avail_out) {
            status = heft__fail_at(err, HEFT_FORMAT, inflater->at - inflater->stream.avail_in,
                                   "deflated data ends early");
        }
        out += piece;
        length -= piece;
    }
    return status == HEFT_OK && inflater->bytes_left == 0 ? finish(inflater, err) : status;
}

void heft__inflater_free(heft__inflater *inflater)
{
    if (!inflater) {
        return;
    }
    if (inflater->ready) {
        inflateEnd(&inflater->stream);
    }
    heft__free(inflater->ctx, inflater, sizeof *inflater);
}
