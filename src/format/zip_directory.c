/* zip_directory.c - a zip's directory, read strictly.
 *
 *   [local header | name | extra | data | descriptor]*  [directory entry]*  [zip64 end | locator]
 * end | comment
 *
 * Sizes come from the directory alone: PyTorch leaves them 0 in local headers. Nothing is trusted:
 * every range against the file, every local header against its entry, all runs against each other.
 * A record is inflated only after its claimed size was found possible. Not done here: encryption,
 * other methods, several disks.
 * Source: docs/formats/torch_zip.md [2]; APPNOTE.TXT 6.3. */
#include "format/torch.h"

#include <ctype.h>
#include <stdlib.h>
#include <zlib.h>

enum {
    END_BYTES = 22,
    LOCATOR_BYTES = 20,
    END64_BYTES = 56,
    ENTRY_BYTES = 46,
    LOCAL_BYTES = 30,
    COMMENT_MOST = 65535,
    METHOD_STORED = 0,
    METHOD_DEFLATED = 8,
    FLAG_ENCRYPTED = 1,
    FLAG_DESCRIPTOR = 8
};

struct directory {
    uint64_t offset, bytes, count;
    uint64_t limit; /* where it must end */
};

static bool has_signature(const uint8_t *p, uint8_t a, uint8_t b)
{
    return p[0] == 'P' && p[1] == 'K' && p[2] == a && p[3] == b;
}

/* ---- the end records
 * ------------------------------------------------------------------------------------ */
static heft_status read_end64(heft__source *source, uint64_t end_at, struct directory *dir,
                              heft_error *err)
{
    uint8_t locator[LOCATOR_BYTES], end64[END64_BYTES];
    if (end_at < LOCATOR_BYTES) {
        return HEFT_OK;
    }
    heft_status status =
        heft__source_read(source, end_at - LOCATOR_BYTES, locator, sizeof locator, err);
    if (status != HEFT_OK || !has_signature(locator, 6, 7)) {
        return status;
    }
    uint64_t at = heft__le64(locator + 8);
    if (at > end_at - LOCATOR_BYTES || end_at - LOCATOR_BYTES - at < END64_BYTES) {
        return heft__fail_at(err, HEFT_FORMAT, end_at - LOCATOR_BYTES,
                             "zip64 end record at offset %llu, file has %llu bytes",
                             (unsigned long long)at, (unsigned long long)heft__source_size(source));
    }
    status = heft__source_read(source, at, end64, sizeof end64, err);
    if (status == HEFT_OK && !has_signature(end64, 6, 6)) {
        status = heft__fail_at(err, HEFT_FORMAT, at,
                               "no zip64 end record here, where the locator has it");
    }
    if (status != HEFT_OK) {
        return status;
    }
    struct directory wide = {heft__le64(end64 + 48), heft__le64(end64 + 40), heft__le64(end64 + 32),
                             at};
    if ((dir->count != 0xFFFF && dir->count != wide.count) ||
        (dir->bytes != 0xFFFFFFFF && dir->bytes != wide.bytes) ||
        (dir->offset != 0xFFFFFFFF && dir->offset != wide.offset)) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "the two end records disagree: %llu and %llu entries",
                             (unsigned long long)wide.count, (unsigned long long)dir->count);
    }
    *dir = wide;
    return HEFT_OK;
}

/* The end record is the last one in the file's last bytes whose comment fits. */
static heft_status find_end(heft_ctx *ctx, heft__source *source, struct directory *dir,
                            heft_error *err)
{
    const uint64_t size = heft__source_size(source);
    size_t tail = size < END_BYTES + COMMENT_MOST ? (size_t)size : END_BYTES + COMMENT_MOST;
    uint8_t *bytes = heft__alloc(ctx, tail);
    heft_status status = bytes ? heft__source_read(source, size - tail, bytes, tail, err)
                               : heft__fail_nomem(err, tail);
    bool found = false;
    for (size_t at = tail; status == HEFT_OK && !found && at >= END_BYTES; at--) {
        const uint8_t *p = bytes + at - END_BYTES;
        if (has_signature(p, 5, 6) && heft__le16(p + 20) <= tail - at) {
            uint64_t end_at = size - tail + at - END_BYTES;
            *dir = (struct directory){heft__le32(p + 16), heft__le32(p + 12), heft__le16(p + 10),
                                      end_at};
            found = true;
            if (heft__le16(p + 4) != 0 || heft__le16(p + 8) != heft__le16(p + 10)) {
                status = heft__fail_at(err, HEFT_UNSUPPORTED, end_at, "a zip in several pieces");
            } else {
                status = read_end64(source, end_at, dir, err);
            }
        }
    }
    heft__free(ctx, bytes, tail);
    if (status == HEFT_OK && !found) {
        status = heft__fail_at(err, HEFT_FORMAT, size,
                               "no end-of-central-directory record in the file's %llu bytes",
                               (unsigned long long)size);
    }
    if (status == HEFT_OK && (dir->bytes > dir->limit || dir->offset > dir->limit - dir->bytes)) {
        status =
            heft__fail_at(err, HEFT_FORMAT, dir->limit,
                          "central directory of %llu bytes at offset %llu, file has %llu bytes",
                          (unsigned long long)dir->bytes, (unsigned long long)dir->offset,
                          (unsigned long long)size);
    }
    return status;
}

/* ---- entries
 * -----------------------------------------------------------------------------------------------
 */
/* Replace what does not fit into 32 bits by the zip64 extra field's values, in its fixed order. */
static bool read_zip64(const uint8_t *extra, size_t length, heft__zip_entry *entry)
{
    bool wanted = entry->bytes == 0xFFFFFFFF || entry->stored_bytes == 0xFFFFFFFF ||
                  entry->header == 0xFFFFFFFF;
    uint64_t *fields[] = {&entry->bytes, &entry->stored_bytes, &entry->header};
    while (length >= 4) {
        size_t block = heft__le16(extra + 2);
        if (block > length - 4) {
            return false;
        }
        if (heft__le16(extra) == 1) {
            const uint8_t *p = extra + 4, *end = p + block;
            for (size_t i = 0; i < 3; i++) {
                if (*fields[i] == 0xFFFFFFFF) {
                    if (end - p < 8) {
                        return false;
                    }
                    *fields[i] = heft__le64(p);
                    p += 8;
                }
            }
            return true;
        }
        extra += 4 + block;
        length -= 4 + block;
    }
    return !wanted;
}

static heft_status check_name(const heft__zip_entry *entry, heft_error *err)
{
    bool leaves =
        entry->name[0] == '/' || strncmp(entry->name, "../", 3) == 0 || strstr(entry->name, "/../");
    if (memchr(entry->name, 0, entry->length) ||
        heft__utf8_invalid_at((const uint8_t *)entry->name, entry->length) < entry->length) {
        return heft__fail_at(err, HEFT_FORMAT, entry->central, "record name is not a text");
    }
    if (leaves) {
        return heft__fail_at(err, HEFT_REFUSED, entry->central,
                             "record name must be relative, without '..'");
    }
    return HEFT_OK;
}

static heft_status read_entry(heft__zip *zip, const uint8_t *p, size_t left, uint64_t at,
                              size_t *used, heft__zip_entry *entry, heft_error *err)
{
    if (left < ENTRY_BYTES || !has_signature(p, 1, 2)) {
        return heft__fail_at(err, HEFT_FORMAT, at,
                             "no directory entry here, but the end record counts more");
    }
    size_t name = heft__le16(p + 28), extra = heft__le16(p + 30), comment = heft__le16(p + 32);
    *used = ENTRY_BYTES + name + extra + comment;
    if (*used > left) {
        return heft__fail_at(err, HEFT_FORMAT, at, "directory entry of %zu bytes, %zu are left",
                             *used, left);
    }
    *entry = (heft__zip_entry){
        .name = heft__arena_text(zip->arena, (const char *)p + ENTRY_BYTES, name),
        .length = name,
        .central = at,
        .header = heft__le32(p + 42),
        .stored_bytes = heft__le32(p + 20),
        .bytes = heft__le32(p + 24),
        .crc = heft__le32(p + 16),
        .flags = heft__le16(p + 8),
        .method = heft__le16(p + 10),
    };
    if (!entry->name) {
        return heft__fail_nomem(err, name);
    }
    if (!read_zip64(p + ENTRY_BYTES + name, extra, entry)) {
        return heft__fail_at(err, HEFT_FORMAT, at, "zip64 field is missing or broken, size %llu",
                             (unsigned long long)entry->bytes);
    }
    if (entry->flags & FLAG_ENCRYPTED) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, at, "encrypted records are not supported");
    }
    if (entry->method != METHOD_STORED && entry->method != METHOD_DEFLATED) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, at, "compression method %u is not supported",
                             entry->method);
    }
    if (entry->method == METHOD_STORED && entry->bytes != entry->stored_bytes) {
        return heft__fail_at(
            err, HEFT_FORMAT, at, "stored record of %llu bytes has %llu in the file",
            (unsigned long long)entry->bytes, (unsigned long long)entry->stored_bytes);
    }
    return check_name(entry, err);
}

/* The local header must be that of the same record; it says where the data begin. */
static heft_status read_local(heft__zip *zip, heft__zip_entry *entry, uint64_t limit,
                              heft_error *err)
{
    uint8_t p[LOCAL_BYTES + 512];
    size_t wanted = LOCAL_BYTES + (entry->length < 512 ? entry->length : 512);
    if (entry->header > limit || limit - entry->header < wanted) {
        return heft__fail_at(
            err, HEFT_FORMAT, entry->central, "local header at %llu, file has %llu bytes",
            (unsigned long long)entry->header, (unsigned long long)heft__source_size(zip->source));
    }
    heft_status status = heft__source_read(zip->source, entry->header, p, wanted, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (!has_signature(p, 3, 4)) {
        return heft__fail_at(err, HEFT_FORMAT, entry->header,
                             "bad local header signature at offset %llu",
                             (unsigned long long)entry->header);
    }
    if (heft__le16(p + 26) != entry->length ||
        memcmp(p + LOCAL_BYTES, entry->name, wanted - LOCAL_BYTES) != 0) {
        return heft__fail_at(err, HEFT_FORMAT, entry->header, "local name '%.*s' differs",
                             (int)(wanted - LOCAL_BYTES), (const char *)p + LOCAL_BYTES);
    }
    uint32_t stored = heft__le32(p + 18), bytes = heft__le32(p + 22);
    bool given = (stored != 0 || bytes != 0) && stored != 0xFFFFFFFF && bytes != 0xFFFFFFFF;
    if (given && (stored != entry->stored_bytes || bytes != entry->bytes)) {
        return heft__fail_at(err, HEFT_FORMAT, entry->header, "sizes %u and %llu disagree", bytes,
                             (unsigned long long)entry->bytes);
    }
    if (heft__le16(p + 8) != entry->method) {
        return heft__fail_at(err, HEFT_FORMAT, entry->header, "methods %u and %u disagree",
                             heft__le16(p + 8), entry->method);
    }
    entry->data = entry->header + LOCAL_BYTES + entry->length + heft__le16(p + 28);
    if (entry->data > limit || entry->stored_bytes > limit - entry->data) {
        return heft__fail_at(err, HEFT_FORMAT, entry->central,
                             "record of %llu bytes at %llu passes the directory at %llu",
                             (unsigned long long)entry->stored_bytes,
                             (unsigned long long)entry->data, (unsigned long long)limit);
    }
    return HEFT_OK;
}

static heft_status add_name(heft__zip *zip, size_t i, heft_error *err)
{
    heft__zip_entry *entry = &zip->entries[i];
    char *lower = heft__arena_text(zip->arena, entry->name, entry->length);
    size_t found;
    for (char *p = lower; p && *p; p++) {
        *p = (char)tolower((unsigned char)*p);
    }
    if (!lower || !heft__map_put(&zip->names, lower, entry->length, i, &found)) {
        return heft__fail_nomem(err, entry->length);
    }
    if (found != HEFT__MAP_NONE) {
        return heft__fail_at(err, HEFT_FORMAT, entry->central,
                             "duplicate record, first at byte %llu",
                             (unsigned long long)zip->entries[found].central);
    }
    return HEFT_OK;
}

/* ---- all together
 * --------------------------------------------------------------------------------------------- */
static int by_header(const void *left, const void *right)
{
    const heft__zip_entry *a = *(const heft__zip_entry *const *)left,
                          *b = *(const heft__zip_entry *const *)right;
    return a->header < b->header ? -1 : a->header > b->header;
}

static heft_status check_overlap(heft__zip *zip, heft_error *err)
{
    const heft__zip_entry **order = heft__alloc_zero(zip->ctx, zip->count, sizeof *order);
    heft_status status = order ? HEFT_OK : heft__fail_nomem(err, zip->count * sizeof *order);
    for (size_t i = 0; order && i < zip->count; i++) {
        order[i] = &zip->entries[i];
    }
    if (order) {
        qsort(order, zip->count, sizeof *order, by_header);
    }
    for (size_t i = 1; i < zip->count && status == HEFT_OK; i++) {
        const heft__zip_entry *a = order[i - 1], *b = order[i];
        if (b->header < a->data + a->stored_bytes || b->header == a->header) {
            status = heft__fail_at(err, HEFT_FORMAT, b->header, "overlaps record '%.100s' (%s)",
                                   a->name, b->name);
            heft__add_item(status, err, b->name);
        }
    }
    heft__free(zip->ctx, order, zip->count * sizeof *order);
    return status;
}

static heft_status read_directory(heft__zip *zip, const struct directory *dir, const uint8_t *bytes,
                                  heft_error *err)
{
    size_t at = 0, size = (size_t)dir->bytes;
    zip->entries = heft__arena_array(zip->arena, dir->count, sizeof *zip->entries);
    if (!zip->entries) {
        return heft__fail_nomem(err, dir->count * sizeof *zip->entries);
    }
    for (; zip->count < dir->count; zip->count++) {
        heft__zip_entry *entry = &zip->entries[zip->count];
        size_t used = 0;
        heft_status status =
            read_entry(zip, bytes + at, size - at, dir->offset + at, &used, entry, err);
        if (status == HEFT_FORMAT && !entry->name && err) {
            heft__fail_at(err, HEFT_FORMAT, dir->offset + at,
                          "entry %zu: central directory ends; expected %llu entries", zip->count,
                          (unsigned long long)dir->count);
        }
        if (status == HEFT_OK) {
            status = read_local(zip, entry, dir->offset, err);
        }
        if (status == HEFT_OK) {
            status = add_name(zip, zip->count, err);
        }
        if (status != HEFT_OK) {
            return heft__add_item(status, err, entry->name);
        }
        at += used;
    }
    if (at != size) {
        return heft__fail_at(err, HEFT_FORMAT, dir->offset + at,
                             "%llu entries use %zu bytes, the directory has %zu",
                             (unsigned long long)dir->count, at, size);
    }
    return check_overlap(zip, err);
}

heft_status heft__zip_open(heft_ctx *ctx, heft__source *source, heft__arena *arena, heft__zip *zip,
                           heft_error *err)
{
    struct directory dir = {0};
    uint8_t *bytes = NULL;
    *zip = (heft__zip){.ctx = ctx, .source = source, .arena = arena};
    heft__map_init(&zip->names, ctx);
    heft_status status = find_end(ctx, source, &dir, err);
    if (status == HEFT_OK && dir.bytes > heft__limits(ctx)->header_bytes) {
        status = heft__fail_at(
            err, HEFT_LIMIT, dir.offset, "central directory of %llu bytes, the limit is %llu",
            (unsigned long long)dir.bytes, (unsigned long long)heft__limits(ctx)->header_bytes);
    }
    if (status == HEFT_OK && dir.count > dir.bytes / ENTRY_BYTES) {
        status = heft__fail_at(err, HEFT_FORMAT, dir.offset,
                               "central directory of %llu bytes ends; expected %llu entries",
                               (unsigned long long)dir.bytes, (unsigned long long)dir.count);
    }
    if (status == HEFT_OK) {
        bytes = heft__alloc(ctx, (size_t)dir.bytes);
        status = bytes ? heft__source_read(source, dir.offset, bytes, (size_t)dir.bytes, err)
                       : heft__fail_nomem(err, dir.bytes);
    }
    if (status == HEFT_OK) {
        status = read_directory(zip, &dir, bytes, err);
    }
    heft__free(ctx, bytes, (size_t)dir.bytes);
    return status;
}

void heft__zip_fini(heft__zip *zip)
{
    if (zip->ctx) {
        heft__map_fini(&zip->names);
    }
}

const heft__zip_entry *heft__zip_find(const heft__zip *zip, const char *name)
{
    char lower[512];
    size_t length = strlen(name);
    if (length >= sizeof lower) {
        return NULL;
    }
    for (size_t i = 0; i <= length; i++) {
        lower[i] = (char)tolower((unsigned char)name[i]);
    }
    size_t i = heft__map_get(&zip->names, lower, length);
    return i == HEFT__MAP_NONE ? NULL : &zip->entries[i];
}

/* ---- records
 * ------------------------------------------------------------------------------------------------------
 */
#define DEFLATE_RATIO_MOST 1032 /* no deflate stream gives more per byte */
#define INFLATE_PIECE ((size_t)64 << 10)

/* Feed the stream piece by piece into out, which has room for exactly `bytes`. */
static heft_status inflate_into(z_stream *stream, heft__source *source, uint64_t offset,
                                uint64_t stored_bytes, uint8_t *out, uint64_t bytes, uint8_t *piece,
                                heft_error *err)
{
    uint64_t fed = 0, given = 0;
    int result = Z_OK;
    while (result == Z_OK && (fed < stored_bytes || stream->avail_in > 0)) {
        if (stream->avail_in == 0) {
            size_t length =
                stored_bytes - fed < INFLATE_PIECE ? (size_t)(stored_bytes - fed) : INFLATE_PIECE;
            heft_status status = heft__source_read(source, offset + fed, piece, length, err);
            if (status != HEFT_OK) {
                return status;
            }
            stream->next_in = piece;
            stream->avail_in = (uInt)length;
            fed += length;
        }
        uint8_t beyond;
        bool full = given == bytes;
        uint64_t room = full ? 1 : bytes - given;
        stream->next_out = full ? &beyond : out + given;
        stream->avail_out = room > INFLATE_PIECE ? (uInt)INFLATE_PIECE : (uInt)room;
        uInt before = stream->avail_out;
        result = inflate(stream, Z_NO_FLUSH);
        given += before - stream->avail_out;
        if (given > bytes) {
            break;
        }
    }
    if (result != Z_STREAM_END || given != bytes) {
        return heft__fail_at(
            err, HEFT_FORMAT, offset, "deflated record gives %llu bytes%s, expected %llu",
            (unsigned long long)given, given > bytes ? " or more" : "", (unsigned long long)bytes);
    }
    return HEFT_OK;
}

heft_status heft__inflate(heft_ctx *ctx, heft__source *source, uint64_t offset,
                          uint64_t stored_bytes, uint64_t bytes, uint8_t **out, heft_error *err)
{
    z_stream stream = {0};
    size_t size;
    if (bytes / DEFLATE_RATIO_MOST > stored_bytes || !heft__to_size(bytes, &size)) {
        return heft__fail_at(err, HEFT_FORMAT, offset, "%llu deflated bytes cannot give %llu",
                             (unsigned long long)stored_bytes, (unsigned long long)bytes);
    }
    uint8_t *data = heft__alloc(ctx, size), *piece = heft__alloc(ctx, INFLATE_PIECE);
    heft_status status = data && piece && inflateInit2(&stream, -MAX_WBITS) == Z_OK
                             ? HEFT_OK
                             : heft__fail_nomem(err, bytes);
    if (status == HEFT_OK) {
        status = inflate_into(&stream, source, offset, stored_bytes, data, bytes, piece, err);
        inflateEnd(&stream);
    }
    heft__free(ctx, piece, INFLATE_PIECE);
    if (status == HEFT_OK) {
        *out = data;
    } else {
        heft__free(ctx, data, size);
    }
    return status;
}

heft_status heft__zip_read(const heft__zip *zip, const heft__zip_entry *entry, uint64_t limit,
                           uint8_t **bytes, heft_error *err)
{
    uint8_t *data = NULL;
    heft_status status = HEFT_OK;
    if (entry->bytes > limit) {
        status = heft__fail_at(err, HEFT_LIMIT, entry->central,
                               "record has %llu bytes, the limit is %llu",
                               (unsigned long long)entry->bytes, (unsigned long long)limit);
    } else if (entry->method == METHOD_DEFLATED) {
        status = heft__inflate(zip->ctx, zip->source, entry->data, entry->stored_bytes,
                               entry->bytes, &data, err);
    } else {
        data = heft__alloc(zip->ctx, (size_t)entry->bytes);
        status = data ? heft__source_read(zip->source, entry->data, data, (size_t)entry->bytes, err)
                      : heft__fail_nomem(err, entry->bytes);
    }
    if (status == HEFT_OK && entry->crc != 0) {
        uint32_t found = heft__crc32(0, data, (size_t)entry->bytes);
        if (found != entry->crc) {
            status = heft__fail_at(err, HEFT_FORMAT, entry->data,
                                   "crc32 expected 0x%08x, found 0x%08x", entry->crc, found);
        }
    }
    if (status == HEFT_OK) {
        *bytes = data;
    } else {
        heft__free(zip->ctx, data, (size_t)entry->bytes);
    }
    return heft__add_item(status, err, entry->name);
}
