/* torch_zip_write.c - writing the zip that torch.save writes since 2.7, record by record.
 *
 *   STEM/data.pkl  STEM/.format_version  STEM/.storage_alignment  STEM/byteorder  STEM/data/0 ...
 * STEM/version each: local header | name | [zip64 field] | FB field of Z up to a multiple of 64 |
 * data | [data descriptor] central directory | zip64 end record | zip64 locator | end record
 *
 * Sizes are known before anything is written, CRCs are not: they go into the descriptor after the
 * data and into the directory, so the file is written front to back in one pass. The layout keeps
 * what `.format_version` guarantees. The pickle is of protocol 2 and has no memo: names and globals
 * are written out each time, every reader since torch 1.6 takes that. What is not done:
 * `.data/serialization_id`, which nothing checks, is left out; nothing is deflated. Source:
 * docs/formats/torch_zip.md [3], [4]. */
#include "format/pickle.h"
#include "format/torch_zip.h"

#define ALIGNMENT 64
#define LOCAL_BYTES 30
#define CENTRAL_BYTES 46
#define BATCH 1000 /* items of a dict between MARK and SETITEMS, as picklers do */
#define MAX32 UINT64_C(0xFFFFFFFF)
#define FLAG_UTF8 0x0800u
#define FLAG_DESCRIPTOR 0x0008u
#define NAME_MOST 4096 /* of a record: the stem and a little more */

enum { RECORD_PICKLE, RECORD_FORMAT, RECORD_ALIGNMENT, RECORD_BYTEORDER, RECORD_DATA };
static const char *const small_records[] = {
    [RECORD_FORMAT] = "1", [RECORD_ALIGNMENT] = "64", [RECORD_BYTEORDER] = "little"};
static const char version_text[] = "3\n";

struct record {
    uint64_t header, size;
    uint32_t crc;
};

struct writer {
    heft__layout layout; /* first */
    heft_ctx *ctx;
    const char *stem; /* not terminated */
    size_t stem_length;
    const heft__out_tensor *tensors;
    size_t count;
    heft__map storages;              /* the tensors' storage number -> key */
    const heft__out_tensor **firsts; /* by key: the tensor that gives the bytes */
    size_t storage_count;
    heft__buffer pickle;
    struct record *records; /* storage_count + 5 */
    size_t record_count;
    uint64_t directory, directory_bytes;
    heft__buffer head; /* what is to be written before the next bytes of a tensor */
};

/* ---- the pickle ------------------------------------------------------------------------------ */
static void put_text(heft__buffer *out, const char *text)
{
    uint8_t length[4];
    heft__put_le32(length, (uint32_t)strlen(text));
    heft__buffer_byte(out, 'X');
    heft__buffer_append(out, length, sizeof length);
    heft__buffer_text(out, text);
}

static void put_integer(heft__buffer *out, uint64_t value)
{
    uint8_t bytes[10] = {0};
    if (value <= UINT8_MAX) {
        bytes[0] = 'K';
        bytes[1] = (uint8_t)value;
        heft__buffer_append(out, bytes, 2);
    } else if (value <= UINT16_MAX) {
        bytes[0] = 'M';
        heft__put_le16(bytes + 1, (uint16_t)value);
        heft__buffer_append(out, bytes, 3);
    } else if (value <= INT32_MAX) {
        bytes[0] = 'J';
        heft__put_le32(bytes + 1, (uint32_t)value);
        heft__buffer_append(out, bytes, 5);
    } else {
        uint8_t length = 8;
        heft__put_le64(bytes, value); /* bytes[8] is 0: the sign */
        while (length > 1 && bytes[length - 1] == 0 && !(bytes[length - 2] & 0x80)) {
            length--;
        }
        length = (uint8_t)(length + (bytes[length - 1] >= 0x80));
        heft__buffer_byte(out, 0x8A);
        heft__buffer_byte(out, length);
        heft__buffer_append(out, bytes, length);
    }
}

static void put_integers(heft__buffer *out, const uint64_t *values, uint32_t count)
{
    static const uint8_t tuples[] = {')', 0x85, 0x86, 0x87};
    if (count > 3) {
        heft__buffer_byte(out, '(');
    }
    for (uint32_t i = 0; i < count; i++) {
        put_integer(out, values[i]);
    }
    heft__buffer_byte(out, count > 3 ? 't' : tuples[count]);
}

static void put_ordered_dict(heft__buffer *out)
{
    heft__buffer_text(out, "ccollections\nOrderedDict\n)R");
}

/* torch's shape and strides: float4 counts bytes, and a dimension of 0 steps like one of 1. */
static void torch_shape(const heft__out_tensor *tensor, uint64_t *shape, uint64_t *strides)
{
    uint64_t step = 1;
    for (uint32_t i = tensor->rank; i-- > 0;) {
        const bool halved = tensor->dtype == HEFT_DTYPE_F4_E2M1FN_X2 && i == tensor->rank - 1;
        shape[i] = halved ? tensor->shape[i] / 2 : tensor->shape[i];
        strides[i] = step;
        step *= shape[i] ? shape[i] : 1;
    }
}

static void put_tensor(struct writer *w, const heft__out_tensor *tensor, uint64_t *scratch)
{
    heft__buffer *out = &w->pickle;
    uint64_t *shape = scratch, *strides = scratch + tensor->rank;
    char class[32], key[32];
    const bool typed = heft__pk_storage_class(tensor->dtype, class);
    const size_t index =
        heft__map_get(&w->storages, (const char *)&tensor->storage, sizeof tensor->storage);
    snprintf(key, sizeof key, "%zu", index);
    torch_shape(tensor, shape, strides);
    heft__buffer_text(out, typed ? "ctorch._utils\n_rebuild_tensor_v2\n(("
                                 : "ctorch._utils\n_rebuild_tensor_v3\n((");
    put_text(out, "storage");
    if (typed) {
        heft__buffer_format(out, "ctorch\n%s\n", class);
    } else {
        heft__buffer_text(out, "ctorch.storage\nUntypedStorage\n");
    }
    put_text(out, key);
    put_text(out, "cpu");
    put_integer(out, typed ? tensor->size_bytes / heft__pickle_elem_bytes(tensor->dtype)
                           : tensor->size_bytes);
    heft__buffer_text(out, "tQ");
    put_integer(out, 0);
    put_integers(out, shape, tensor->rank);
    put_integers(out, strides, tensor->rank);
    heft__buffer_byte(out, 0x89);
    put_ordered_dict(out);
    if (!typed) {
        heft__buffer_format(out, "ctorch\n%s\n", heft_dtype_name(tensor->dtype));
    }
    heft__buffer_text(out, "tR");
}

/* Begin a batch before item i, or end the one before. */
static void batch(heft__buffer *out, size_t i, size_t count)
{
    if (i > 0 && (i % BATCH == 0 || i == count)) {
        heft__buffer_byte(out, 'u');
    }
    if (i % BATCH == 0 && i < count) {
        heft__buffer_byte(out, '(');
    }
}

static void put_metadata(heft__buffer *out, const heft__out_file *file)
{
    const size_t count = file->module_count;
    heft__buffer_byte(out, '}');
    put_text(out, "_metadata");
    put_ordered_dict(out);
    for (size_t i = 0; i <= count; i++) {
        batch(out, i, count);
        if (i < count) {
            put_text(out, file->modules[i]);
            heft__buffer_byte(out, '}');
            put_text(out, "version");
            put_integer(out, file->module_versions ? file->module_versions[i] : 1);
            heft__buffer_byte(out, 's');
        }
    }
    heft__buffer_text(out, "sb");
}

static heft_status build_pickle(struct writer *w, const heft__out_file *file, heft_error *err)
{
    heft__buffer *out = &w->pickle;
    uint32_t rank = 0;
    for (size_t i = 0; i < w->count; i++) {
        rank = w->tensors[i].rank > rank ? w->tensors[i].rank : rank;
    }
    uint64_t *scratch = heft__alloc_zero(w->ctx, (size_t)rank * 2, sizeof *scratch);
    if (!scratch) {
        return heft__fail_nomem(err, (uint64_t)rank * 2 * sizeof *scratch);
    }
    heft__buffer_text(out, "\x80\x02");
    if (file->module_count) {
        put_ordered_dict(out);
    } else {
        heft__buffer_byte(out, '}');
    }
    for (size_t i = 0; i <= w->count; i++) {
        batch(out, i, w->count);
        if (i < w->count) {
            put_text(out, w->tensors[i].name);
            put_tensor(w, &w->tensors[i], scratch);
        }
    }
    if (file->module_count) {
        put_metadata(out, file);
    }
    heft__buffer_byte(out, '.');
    heft__free(w->ctx, scratch, (size_t)rank * 2 * sizeof *scratch);
    return heft__buffer_check(out, err);
}

/* ---- what may be written --------------------------------------------------------------------- */
static bool torch_saves(heft_dtype dtype)
{
    switch ((int)dtype) {
    case HEFT_DTYPE_NONE:
    case HEFT_DTYPE_F6_E2M3: /* torch has none */
    case HEFT_DTYPE_F6_E3M2:
    case HEFT_DTYPE_QINT8: /* these are nothing without a scale */
    case HEFT_DTYPE_QUINT8:
    case HEFT_DTYPE_QINT32:
    case HEFT_DTYPE_QUINT4X2:
    case HEFT_DTYPE_QUINT2X4:
        return false;
    default:
        return true;
    }
}

static heft_status check(const heft__out_tensor *tensor, heft_error *err)
{
    uint64_t bytes;
    const size_t length = strlen(tensor->name);
    if (!torch_saves(tensor->dtype)) {
        return heft__fail(err, HEFT_INVALID_ARG, "a PyTorch file cannot hold %s",
                          heft_dtype_name(tensor->dtype));
    }
    if (length > INT32_MAX ||
        heft__utf8_invalid_at((const uint8_t *)tensor->name, length) != length) {
        return heft__fail(err, HEFT_INVALID_ARG, "the name is not UTF-8, or is too long");
    }
    if (!heft__shape_bytes(tensor->dtype, tensor->shape, tensor->rank, &bytes) ||
        bytes != tensor->size_bytes || bytes > INT64_MAX) {
        return heft__fail(err, HEFT_INVALID_ARG, "%llu bytes do not match the shape",
                          (unsigned long long)tensor->size_bytes);
    }
    if (tensor->dtype == HEFT_DTYPE_F4_E2M1FN_X2 &&
        (tensor->rank == 0 || tensor->shape[tensor->rank - 1] % 2)) {
        return heft__fail(
            err, HEFT_INVALID_ARG,
            "PyTorch packs two values of %s along the last dimension, which has odd size",
            heft_dtype_name(tensor->dtype));
    }
    return HEFT_OK;
}

heft_status heft__torch_zip_check(const heft__out_tensor *tensor, heft_error *err)
{
    return heft__add_item(check(tensor, err), err, tensor->name);
}

static heft_status add_storage(struct writer *w, const heft__out_tensor *tensor, heft_error *err)
{
    size_t found;
    if (!heft__map_put(&w->storages, (const char *)&tensor->storage, sizeof tensor->storage,
                       w->storage_count, &found)) {
        return heft__fail_nomem(err, sizeof tensor->storage);
    }
    if (found == HEFT__MAP_NONE) {
        w->firsts[w->storage_count++] = tensor;
        return HEFT_OK;
    }
    const heft__out_tensor *first = w->firsts[found];
    if (first->dtype != tensor->dtype || first->size_bytes != tensor->size_bytes) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "shares its storage with '%.100s' and has another dtype or size",
                          first->name);
    }
    return HEFT_OK;
}

static heft_status collect(struct writer *w, heft_error *err)
{
    heft__map names;
    heft_status status = HEFT_OK;
    heft__map_init(&names, w->ctx);
    for (size_t i = 0; i < w->count && status == HEFT_OK; i++) {
        const heft__out_tensor *tensor = &w->tensors[i];
        size_t found = HEFT__MAP_NONE;
        status = check(tensor, err);
        if (status == HEFT_OK &&
            !heft__map_put(&names, tensor->name, strlen(tensor->name), i, &found)) {
            status = heft__fail_nomem(err, strlen(tensor->name));
        } else if (status == HEFT_OK && found != HEFT__MAP_NONE) {
            status = heft__fail(err, HEFT_INVALID_ARG, "duplicate name");
        }
        if (status == HEFT_OK) {
            status = add_storage(w, tensor, err);
        }
        heft__add_item(status, err, tensor->name);
    }
    heft__map_fini(&names);
    return status;
}

/* ---- layout ---------------------------------------------------------------------------------- */
/* The name of record i without the stem. */
static void record_name(const struct writer *w, size_t i, char name[48])
{
    static const char *const names[] = {
        [RECORD_PICKLE] = "data.pkl",
        [RECORD_FORMAT] = ".format_version",
        [RECORD_ALIGNMENT] = ".storage_alignment",
        [RECORD_BYTEORDER] = "byteorder",
    };
    if (i < RECORD_DATA) {
        snprintf(name, 48, "%s", names[i]);
    } else if (i == w->record_count - 1) {
        snprintf(name, 48, "version");
    } else {
        snprintf(name, 48, "data/%zu", i - RECORD_DATA);
    }
}

static size_t full_name_bytes(const struct writer *w, size_t i)
{
    char name[48];
    record_name(w, i, name);
    return w->stem_length + 1 + strlen(name);
}

static size_t local_zip64_bytes(const struct record *record)
{
    const size_t fields = (record->size >= MAX32 ? 16u : 0u) + (record->header >= MAX32 ? 8u : 0u);
    return fields ? 4 + fields : 0;
}

static size_t padding_bytes(const struct writer *w, size_t i)
{
    const struct record *record = &w->records[i];
    const uint64_t end =
        record->header + LOCAL_BYTES + full_name_bytes(w, i) + local_zip64_bytes(record) + 4;
    return (size_t)((ALIGNMENT - end % ALIGNMENT) % ALIGNMENT);
}

static size_t descriptor_bytes(const struct record *record)
{
    if (record->size == 0) {
        return 0;
    }
    return record->size >= MAX32 || record->header >= MAX32 ? 24 : 16;
}

static size_t central_zip64_bytes(const struct record *record)
{
    return local_zip64_bytes(record); /* the same fields under the same conditions */
}

static uint64_t size_of(const struct writer *w, size_t i)
{
    if (i == RECORD_PICKLE) {
        return w->pickle.size;
    }
    if (i < RECORD_DATA) {
        return strlen(small_records[i]);
    }
    return i == w->record_count - 1 ? sizeof version_text - 1
                                    : w->firsts[i - RECORD_DATA]->size_bytes;
}

static heft_status lay_out(struct writer *w, heft_error *err)
{
    uint64_t at = 0;
    w->record_count = w->storage_count + RECORD_DATA + 1;
    w->records = heft__alloc_zero(w->ctx, w->record_count, sizeof *w->records);
    if (!w->records) {
        return heft__fail_nomem(err, w->record_count * sizeof *w->records);
    }
    for (size_t i = 0; i < w->record_count; i++) {
        struct record *record = &w->records[i];
        record->header = at;
        record->size = size_of(w, i);
        at += LOCAL_BYTES + full_name_bytes(w, i) + local_zip64_bytes(record) + 4 +
              padding_bytes(w, i);
        if (record->size > INT64_MAX - at) {
            return heft__fail(err, HEFT_INVALID_ARG, "the file would exceed 2^63 bytes");
        }
        at += record->size + descriptor_bytes(record);
        w->directory_bytes += CENTRAL_BYTES + full_name_bytes(w, i) + central_zip64_bytes(record);
    }
    w->directory = at;
    w->layout.bytes = at + w->directory_bytes + 56 + 20 + 22;
    return HEFT_OK;
}

void heft__torch_zip_layout_free(heft__layout *layout)
{
    struct writer *w = (struct writer *)layout;
    if (w) {
        heft_ctx *ctx = w->ctx;
        heft__map_fini(&w->storages);
        heft__buffer_fini(&w->pickle);
        heft__buffer_fini(&w->head);
        heft__free(ctx, w->records, w->record_count * sizeof *w->records);
        heft__free(ctx, w->firsts, w->count * sizeof *w->firsts);
        heft__free(ctx, w, sizeof *w);
    }
}

/* A file name's part before its extension, if it can be the prefix of records. */
static void set_stem(struct writer *w, const char *name)
{
    const char *dot = strrchr(name, '.');
    const size_t length = dot ? (size_t)(dot - name) : strlen(name);
    bool usable = length > 0 && length < NAME_MOST && !(length == 2 && memcmp(name, "..", 2) == 0);
    for (size_t i = 0; i < length; i++) {
        usable = usable && name[i] >= ' ' && name[i] <= '~' && name[i] != '/' && name[i] != '\\';
    }
    w->stem = usable ? name : "archive";
    w->stem_length = usable ? length : strlen("archive");
}

heft_status heft__torch_zip_lay_out(heft_ctx *ctx, const heft__out_file *file, heft__layout **out,
                                    heft_error *err)
{
    struct writer *w = heft__alloc_zero(ctx, 1, sizeof *w);
    if (!w) {
        return heft__fail_nomem(err, sizeof *w);
    }
    *w = (struct writer){
        .layout = {.ctx = ctx}, .ctx = ctx, .tensors = file->tensors, .count = file->count};
    set_stem(w, file->name);
    heft__map_init(&w->storages, ctx);
    heft__buffer_init(&w->pickle, ctx);
    heft__buffer_init(&w->head, ctx);
    w->firsts = heft__alloc_zero(ctx, w->count, sizeof *w->firsts);
    heft_status status =
        w->firsts ? collect(w, err) : heft__fail_nomem(err, w->count * sizeof *w->firsts);
    if (status == HEFT_OK) {
        status = build_pickle(w, file, err);
    }
    if (status == HEFT_OK) {
        status = lay_out(w, err);
    }
    if (status != HEFT_OK) {
        heft__torch_zip_layout_free(&w->layout);
        return status;
    }
    *out = &w->layout;
    return HEFT_OK;
}

/* ---- records --------------------------------------------------------------------------------- */
static void put16(heft__buffer *out, uint16_t value)
{
    uint8_t bytes[2];
    heft__put_le16(bytes, value);
    heft__buffer_append(out, bytes, sizeof bytes);
}

static void put32(heft__buffer *out, uint32_t value)
{
    uint8_t bytes[4];
    heft__put_le32(bytes, value);
    heft__buffer_append(out, bytes, sizeof bytes);
}

static void put64(heft__buffer *out, uint64_t value)
{
    uint8_t bytes[8];
    heft__put_le64(bytes, value);
    heft__buffer_append(out, bytes, sizeof bytes);
}

static void put_name(const struct writer *w, size_t i, heft__buffer *out)
{
    char name[48];
    record_name(w, i, name);
    heft__buffer_append(out, w->stem, w->stem_length);
    heft__buffer_byte(out, '/');
    heft__buffer_text(out, name);
}

static uint16_t flags_of(const struct record *record)
{
    return (uint16_t)(FLAG_UTF8 | (record->size ? FLAG_DESCRIPTOR : 0u));
}

/* The zip64 field: sizes, then offset, each only where 32 bits do not hold it. The local one does
 * not know the stored size yet, as far as its makers were concerned: it is 0 there. */
static void put_zip64(const struct record *record, bool local, heft__buffer *out)
{
    const size_t bytes = local_zip64_bytes(record);
    if (bytes == 0) {
        return;
    }
    put16(out, 1);
    put16(out, (uint16_t)(bytes - 4));
    if (record->size >= MAX32) {
        put64(out, record->size);
        put64(out, local ? 0 : record->size);
    }
    if (record->header >= MAX32) {
        put64(out, record->header);
    }
}

static void put_local(const struct writer *w, size_t i, heft__buffer *out)
{
    const struct record *record = &w->records[i];
    const size_t padding = padding_bytes(w, i);
    heft__buffer_append(out, "PK\3\4", 4);
    put16(out, 0);
    put16(out, flags_of(record));
    for (int zeros = 0; zeros < 18; zeros++) {
        heft__buffer_byte(out, 0); /* method, time, date, crc, sizes */
    }
    put16(out, (uint16_t)full_name_bytes(w, i));
    put16(out, (uint16_t)(local_zip64_bytes(record) + 4 + padding));
    put_name(w, i, out);
    put_zip64(record, true, out);
    heft__buffer_append(out, "FB", 2);
    put16(out, (uint16_t)padding);
    for (size_t z = 0; z < padding; z++) {
        heft__buffer_byte(out, 'Z');
    }
}

static void put_descriptor(const struct record *record, heft__buffer *out)
{
    if (record->size == 0) {
        return;
    }
    heft__buffer_append(out, "PK\7\10", 4);
    put32(out, record->crc);
    if (descriptor_bytes(record) == 24) {
        put64(out, record->size);
        put64(out, record->size);
    } else {
        put32(out, (uint32_t)record->size);
        put32(out, (uint32_t)record->size);
    }
}

static uint32_t capped(uint64_t value)
{
    return (uint32_t)(value < MAX32 ? value : MAX32);
}

static void put_central(const struct writer *w, size_t i, heft__buffer *out)
{
    const struct record *record = &w->records[i];
    heft__buffer_append(out, "PK\1\2", 4);
    put32(out, 0); /* versions */
    put16(out, flags_of(record));
    put16(out, 0); /* method */
    put32(out, 0); /* time, date */
    put32(out, record->crc);
    put32(out, capped(record->size));
    put32(out, capped(record->size));
    put16(out, (uint16_t)full_name_bytes(w, i));
    put16(out, (uint16_t)central_zip64_bytes(record));
    for (int zeros = 0; zeros < 10; zeros++) {
        heft__buffer_byte(out, 0); /* comment, disk, attributes */
    }
    put32(out, capped(record->header));
    put_name(w, i, out);
    put_zip64(record, false, out);
}

static void put_end(const struct writer *w, heft__buffer *out)
{
    const uint16_t entries = (uint16_t)(w->record_count < 0xFFFF ? w->record_count : 0xFFFF);
    heft__buffer_append(out, "PK\6\6", 4);
    put64(out, 44);
    put16(out, 0x031E);
    put16(out, 0x002D);
    put64(out, 0); /* disks */
    put64(out, w->record_count);
    put64(out, w->record_count);
    put64(out, w->directory_bytes);
    put64(out, w->directory);
    heft__buffer_append(out, "PK\6\7", 4);
    put32(out, 0);
    put64(out, w->directory + w->directory_bytes);
    put32(out, 1);
    heft__buffer_append(out, "PK\5\6", 4);
    put32(out, 0); /* disks */
    put16(out, entries);
    put16(out, entries);
    put32(out, capped(w->directory_bytes));
    put32(out, capped(w->directory));
    put16(out, 0);
}

/* ---- writing --------------------------------------------------------------------------------- */
static heft_status flush(struct writer *w, const heft__out_io *io, heft_error *err)
{
    heft_status status = heft__buffer_check(&w->head, err);
    if (status == HEFT_OK) {
        status = heft__folder_write(io->folder, w->head.data, w->head.size, err);
        w->head.size = 0;
    }
    return status;
}

static heft_status write_record(struct writer *w, const heft__out_io *io, size_t i, heft_error *err)
{
    struct record *record = &w->records[i];
    put_local(w, i, &w->head);
    record->crc = 0;
    heft_status status = flush(w, io, err);
    if (status == HEFT_OK && i >= RECORD_DATA && i < w->record_count - 1) {
        status = heft__out_copy(io, w->firsts[i - RECORD_DATA], &record->crc, err);
    } else if (status == HEFT_OK) {
        const void *bytes = i == RECORD_PICKLE ? (const void *)w->pickle.data
                            : i < RECORD_DATA  ? (const void *)small_records[i]
                                               : (const void *)version_text;
        record->crc = heft__crc32(0, bytes, (size_t)record->size);
        status = heft__folder_write(io->folder, bytes, (size_t)record->size, err);
    }
    put_descriptor(record, &w->head);
    return status == HEFT_OK ? flush(w, io, err) : status;
}

heft_status heft__torch_zip_write(heft__layout *layout, const heft__out_io *io, heft_error *err)
{
    struct writer *w = (struct writer *)layout;
    heft_status status = HEFT_OK;
    w->head.size = 0;
    for (size_t i = 0; i < w->record_count && status == HEFT_OK; i++) {
        status = write_record(w, io, i, err);
    }
    for (size_t i = 0; i < w->record_count && status == HEFT_OK; i++) {
        put_central(w, i, &w->head);
        status = w->head.size >= 65536 ? flush(w, io, err) : HEFT_OK;
    }
    if (status == HEFT_OK) {
        put_end(w, &w->head);
        status = flush(w, io, err);
    }
    return status;
}
