/* torch_zip_write.c - writing PyTorch's zip.
 *
 *   data.pkl  .format_version  .storage_alignment  byteorder  data/0 .. data/N-1  version  |
 * directory | zip64 end | end
 *
 * Every record's data begin at a multiple of 64 bytes (padding field "FB" in the local header);
 * sizes and CRC stand behind the data, so that nothing is read twice. The pickle is protocol 2
 * without a memo: an OrderedDict with `_metadata`, or a dict. Measuring is the same walk without a
 * file.
 * Source: docs/formats/torch_zip.md [4]. */
#include "format/format.h"

#define ALIGNMENT 64
#define WIDE UINT64_C(0xFFFFFFFF) /* what needs zip64 */

struct record {
    const char *name;
    uint64_t header, bytes;
    uint32_t crc;
};

struct archive {
    heft_ctx *ctx;
    heft__folder_writer *folder; /* NULL: measuring */
    const char *stem;
    uint64_t position;
    heft__arena arena;
    struct record *records;
    size_t count, cap;
    heft__out_read_fn read;
    void *user;
    uint8_t *scratch;
    size_t scratch_bytes;
};

/* ---- the pickle
 * --------------------------------------------------------------------------------------------- */
static const struct {
    heft_dtype dtype;
    const char *storage; /* class in module torch */
} typed[] = {
    {HEFT_DTYPE_F64,  "DoubleStorage"       },
    {HEFT_DTYPE_F32,  "FloatStorage"        },
    {HEFT_DTYPE_F16,  "HalfStorage"         },
    {HEFT_DTYPE_BF16, "BFloat16Storage"     },
    {HEFT_DTYPE_I64,  "LongStorage"         },
    {HEFT_DTYPE_I32,  "IntStorage"          },
    {HEFT_DTYPE_I16,  "ShortStorage"        },
    {HEFT_DTYPE_I8,   "CharStorage"         },
    {HEFT_DTYPE_U8,   "ByteStorage"         },
    {HEFT_DTYPE_BOOL, "BoolStorage"         },
    {HEFT_DTYPE_C64,  "ComplexFloatStorage" },
    {HEFT_DTYPE_C128, "ComplexDoubleStorage"},
};

static const char *storage_class(heft_dtype dtype)
{
    for (size_t i = 0; i < sizeof typed / sizeof typed[0]; i++) {
        if (typed[i].dtype == dtype) {
            return typed[i].storage;
        }
    }
    return NULL;
}

/* Not the 6-bit floats, which torch does not have, and not the quantised types, which need a scale.
 */
static bool can_be_written(heft_dtype dtype)
{
    static const heft_dtype never[] = {HEFT_DTYPE_NONE,     HEFT_DTYPE_F6_E2M3, HEFT_DTYPE_F6_E3M2,
                                       HEFT_DTYPE_QINT8,    HEFT_DTYPE_QUINT8,  HEFT_DTYPE_QINT32,
                                       HEFT_DTYPE_QUINT4X2, HEFT_DTYPE_QUINT2X4};
    for (size_t i = 0; i < sizeof never / sizeof never[0]; i++) {
        if (never[i] == dtype) {
            return false;
        }
    }
    return true;
}

static void put_global(heft__buffer *out, const char *module, const char *name)
{
    heft__buffer_format(out, "c%s\n%s\n", module, name);
}

static void put_text(heft__buffer *out, const char *text)
{
    uint8_t head[5] = {'X'};
    heft__put_le32(head + 1, (uint32_t)strlen(text));
    heft__buffer_append(out, head, sizeof head);
    heft__buffer_text(out, text);
}

/* BININT1, BININT2, BININT, or LONG1 with a sign byte. */
static void put_int(heft__buffer *out, uint64_t value)
{
    uint8_t bytes[11];
    heft__put_le64(bytes + 2, value);
    bytes[10] = 0;
    if (value < 0x100) {
        heft__buffer_append(out, (const uint8_t[]){'K', (uint8_t)value}, 2);
    } else if (value < 0x10000) {
        bytes[1] = 'M';
        heft__buffer_append(out, bytes + 1, 3);
    } else if (value < 0x80000000) {
        bytes[1] = 'J';
        heft__buffer_append(out, bytes + 1, 5);
    } else {
        bytes[0] = 0x8A;
        bytes[1] = 9;
        heft__buffer_append(out, bytes, 11);
    }
}

/* The shape as torch counts it: float4 in bytes of two values. */
static uint64_t torch_dim(const heft__out_tensor *tensor, uint32_t d)
{
    bool halved = tensor->dtype == HEFT_DTYPE_F4_E2M1FN_X2 && d + 1 == tensor->rank;
    return halved ? tensor->shape[d] / 2 : tensor->shape[d];
}

static void put_shape(heft__buffer *out, const heft__out_tensor *tensor)
{
    heft__buffer_byte(out, '(');
    for (uint32_t d = 0; d < tensor->rank; d++) {
        put_int(out, torch_dim(tensor, d));
    }
    heft__buffer_byte(out, 't');
}

/* Strides as torch gives a contiguous tensor: a dimension of 0 counts as 1. */
static void put_strides(heft__buffer *out, const heft__out_tensor *tensor)
{
    heft__buffer_byte(out, '(');
    for (uint32_t d = 0; d < tensor->rank; d++) {
        uint64_t stride = 1;
        for (uint32_t k = d + 1; k < tensor->rank; k++) {
            uint64_t dim = torch_dim(tensor, k);
            stride = dim && stride > INT64_MAX / dim ? INT64_MAX : stride * (dim ? dim : 1);
        }
        put_int(out, stride);
    }
    heft__buffer_byte(out, 't');
}

static void put_tensor(heft__buffer *out, const heft__out_tensor *tensor, size_t key)
{
    const char *class = storage_class(tensor->dtype);
    uint64_t elem_bytes =
        heft_dtype_bits(tensor->dtype) < 8 ? 1 : heft_dtype_bits(tensor->dtype) / 8;
    char text[24];
    snprintf(text, sizeof text, "%zu", key);
    put_global(out, "torch._utils", class ? "_rebuild_tensor_v2" : "_rebuild_tensor_v3");
    heft__buffer_text(out, "((");
    put_text(out, "storage");
    put_global(out, class ? "torch" : "torch.storage", class ? class : "UntypedStorage");
    put_text(out, text);
    put_text(out, "cpu");
    put_int(out, class ? tensor->size_bytes / elem_bytes : tensor->size_bytes);
    heft__buffer_text(out, "tQ");
    put_int(out, 0);
    put_shape(out, tensor);
    put_strides(out, tensor);
    heft__buffer_byte(out, 0x89);
    put_global(out, "collections", "OrderedDict");
    heft__buffer_text(out, ")R");
    if (!class) {
        put_global(out, "torch", heft_dtype_name(tensor->dtype));
    }
    heft__buffer_text(out, "tR");
}

/* `_metadata`: module path -> {'version': 1}, put into the OrderedDict's attributes. */
static void put_metadata(heft__buffer *out, const heft__torch_module *modules, size_t count)
{
    heft__buffer_byte(out, '}');
    put_text(out, "_metadata");
    put_global(out, "collections", "OrderedDict");
    heft__buffer_text(out, ")R(");
    for (size_t i = 0; i < count; i++) {
        put_text(out, modules[i].path);
        heft__buffer_byte(out, '}');
        put_text(out, "version");
        put_int(out, 1);
        heft__buffer_byte(out, 's');
    }
    heft__buffer_text(out, "usb");
}

/* ---- records
 * --------------------------------------------------------------------------------------------------
 */
static heft_status emit(struct archive *a, const void *bytes, size_t length, heft_error *err)
{
    a->position += length;
    return a->folder ? heft__folder_write(a->folder, bytes, length, err) : HEFT_OK;
}

/* Local header, zip64 block where it needs one, and padding up to the next multiple of 64. */
static heft_status begin_record(struct archive *a, const char *record, uint64_t bytes,
                                heft_error *err)
{
    uint8_t head[30 + 28 + 4] = {'P', 'K', 3, 4}, padding[ALIGNMENT];
    if (!heft__array_reserve(a->ctx, (void **)&a->records, a->count, &a->cap, sizeof *a->records)) {
        return heft__fail_nomem(err, 0);
    }
    const char *name = heft__arena_format(&a->arena, "%s/%s", a->stem, record);
    if (!name) {
        return heft__fail_nomem(err, 0);
    }
    size_t length = strlen(name), wide = 0;
    uint8_t *extra = head + 30;
    if (bytes >= WIDE) {
        heft__put_le64(extra + 4, bytes);
        heft__put_le64(extra + 12, 0);
        wide += 16;
    }
    if (a->position >= WIDE) {
        heft__put_le64(extra + 4 + wide, a->position);
        wide += 8;
    }
    if (wide) {
        heft__put_le16(extra, 1);
        heft__put_le16(extra + 2, (uint16_t)wide);
        wide += 4;
    }
    uint64_t unpadded = a->position + 30 + length + wide + 4;
    size_t pad = (size_t)((ALIGNMENT - unpadded % ALIGNMENT) % ALIGNMENT);
    heft__put_le16(head + 6, bytes ? 0x0808 : 0x0800);
    heft__put_le16(head + 26, (uint16_t)length);
    heft__put_le16(head + 28, (uint16_t)(wide + 4 + pad));
    memcpy(extra + wide, "FB", 2);
    heft__put_le16(extra + wide + 2, (uint16_t)pad);
    memset(padding, 'Z', sizeof padding);
    a->records[a->count++] = (struct record){.name = name, .header = a->position, .bytes = bytes};
    heft_status status = emit(a, head, 30, err);
    if (status == HEFT_OK) {
        status = emit(a, name, length, err);
    }
    if (status == HEFT_OK) {
        status = emit(a, extra, wide + 4, err);
    }
    return status == HEFT_OK ? emit(a, padding, pad, err) : status;
}

/* The descriptor, which empty records do not have. */
static heft_status end_record(struct archive *a, uint32_t crc, heft_error *err)
{
    struct record *record = &a->records[a->count - 1];
    uint8_t tail[24] = {'P', 'K', 7, 8};
    bool wide = record->bytes >= WIDE || record->header >= WIDE;
    record->crc = crc;
    if (record->bytes == 0) {
        return HEFT_OK;
    }
    heft__put_le32(tail + 4, crc);
    if (wide) {
        heft__put_le64(tail + 8, record->bytes);
        heft__put_le64(tail + 16, record->bytes);
    } else {
        heft__put_le32(tail + 8, (uint32_t)record->bytes);
        heft__put_le32(tail + 12, (uint32_t)record->bytes);
    }
    return emit(a, tail, wide ? 24 : 16, err);
}

static heft_status put_record(struct archive *a, const char *record, const void *bytes,
                              size_t length, heft_error *err)
{
    heft_status status = begin_record(a, record, length, err);
    if (status == HEFT_OK) {
        status = emit(a, bytes, length, err);
    }
    return status == HEFT_OK ? end_record(a, heft__crc32(0, bytes, length), err) : status;
}

static heft_status put_storage(struct archive *a, const heft__out_tensor *tensor, size_t key,
                               heft_error *err)
{
    char record[40];
    uint32_t crc = 0;
    snprintf(record, sizeof record, "data/%zu", key);
    heft_status status = begin_record(a, record, tensor->size_bytes, err);
    if (!a->folder) {
        a->position += tensor->size_bytes;
    }
    for (uint64_t done = 0; a->folder && done < tensor->size_bytes && status == HEFT_OK;) {
        uint64_t left = tensor->size_bytes - done;
        size_t piece = left < a->scratch_bytes ? (size_t)left : a->scratch_bytes;
        status = a->read(a->user, tensor, done, a->scratch, piece, err);
        if (status == HEFT_OK) {
            crc = heft__crc32(crc, a->scratch, piece);
            status = emit(a, a->scratch, piece, err);
        }
        done += piece;
    }
    return status == HEFT_OK ? end_record(a, crc, err) : status;
}

/* ---- the directory
 * -----------------------------------------------------------------------------------------------
 */
static void put_entry(heft__buffer *out, const struct record *record)
{
    uint8_t entry[46 + 28] = {'P', 'K', 1, 2};
    size_t length = strlen(record->name), wide = 0;
    uint8_t *extra = entry + 46;
    bool wide_size = record->bytes >= WIDE, wide_header = record->header >= WIDE;
    heft__put_le16(entry + 8, record->bytes ? 0x0808 : 0x0800);
    heft__put_le32(entry + 16, record->crc);
    heft__put_le32(entry + 20, wide_size ? (uint32_t)WIDE : (uint32_t)record->bytes);
    heft__put_le32(entry + 24, wide_size ? (uint32_t)WIDE : (uint32_t)record->bytes);
    heft__put_le16(entry + 28, (uint16_t)length);
    heft__put_le32(entry + 42, wide_header ? (uint32_t)WIDE : (uint32_t)record->header);
    if (wide_size) {
        heft__put_le64(extra + 4, record->bytes);
        heft__put_le64(extra + 12, record->bytes);
        wide += 16;
    }
    if (wide_header) {
        heft__put_le64(extra + 4 + wide, record->header);
        wide += 8;
    }
    if (wide) {
        heft__put_le16(extra, 1);
        heft__put_le16(extra + 2, (uint16_t)wide);
        wide += 4;
    }
    heft__put_le16(entry + 30, (uint16_t)wide);
    heft__buffer_append(out, entry, 46);
    heft__buffer_append(out, record->name, length);
    heft__buffer_append(out, extra, wide);
}

/* A zip64 end record always, as torch has it, and the plain one with the true values where they
 * fit. */
static void put_end(heft__buffer *out, uint64_t offset, uint64_t bytes, uint64_t count)
{
    uint8_t end64[56] = {'P', 'K', 6, 6, 44}, locator[20] = {'P', 'K', 6, 7},
            end[22] = {'P', 'K', 5, 6};
    heft__put_le16(end64 + 12, 0x031E);
    heft__put_le16(end64 + 14, 0x002D);
    heft__put_le64(end64 + 24, count);
    heft__put_le64(end64 + 32, count);
    heft__put_le64(end64 + 40, bytes);
    heft__put_le64(end64 + 48, offset);
    heft__put_le64(locator + 8, offset + bytes);
    heft__put_le32(locator + 16, 1);
    uint16_t few = count > 0xFFFF ? 0xFFFF : (uint16_t)count;
    heft__put_le16(end + 8, few);
    heft__put_le16(end + 10, few);
    heft__put_le32(end + 12, bytes > WIDE ? (uint32_t)WIDE : (uint32_t)bytes);
    heft__put_le32(end + 16, offset > WIDE ? (uint32_t)WIDE : (uint32_t)offset);
    heft__buffer_append(out, end64, sizeof end64);
    heft__buffer_append(out, locator, sizeof locator);
    heft__buffer_append(out, end, sizeof end);
}

static heft_status put_directory(struct archive *a, heft_error *err)
{
    heft__buffer out;
    heft__buffer_init(&out, a->ctx);
    for (size_t i = 0; i < a->count; i++) {
        put_entry(&out, &a->records[i]);
    }
    put_end(&out, a->position, out.size, a->count);
    heft_status status = heft__buffer_check(&out, err);
    if (status == HEFT_OK) {
        status = emit(a, out.data, out.size, err);
    }
    heft__buffer_fini(&out);
    return status;
}

/* ---- all of it
 * ------------------------------------------------------------------------------------------------------
 */
/* Number storages by first use: keys[i] is tensor i's, firsts[k] the first tensor of storage k. */
static heft_status number_storages(heft_ctx *ctx, const heft__out_tensor *tensors, size_t count,
                                   size_t *keys, size_t *firsts, size_t *storages, heft_error *err)
{
    heft__map seen;
    heft_status status = HEFT_OK;
    heft__map_init(&seen, ctx);
    *storages = 0;
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        size_t found;
        uint64_t bytes;
        if (!can_be_written(tensors[i].dtype) ||
            !heft__shape_bytes(tensors[i].dtype, tensors[i].shape, tensors[i].rank, &bytes) ||
            bytes != tensors[i].size_bytes) {
            status = heft__fail(err, HEFT_INVALID_ARG, "a .bin file cannot hold %s of this shape",
                                heft_dtype_name(tensors[i].dtype));
        } else if (!heft__map_put(&seen, (const char *)&tensors[i].storage,
                                  sizeof tensors[i].storage, *storages, &found)) {
            status = heft__fail_nomem(err, 0);
        } else if (found == HEFT__MAP_NONE) {
            keys[i] = *storages;
            firsts[(*storages)++] = i;
        } else {
            keys[i] = found;
            if (tensors[firsts[found]].dtype != tensors[i].dtype ||
                tensors[firsts[found]].size_bytes != bytes) {
                status = heft__fail(err, HEFT_INVALID_ARG,
                                    "shares bytes with '%.100s', but not size and dtype",
                                    tensors[firsts[found]].name);
            }
        }
        heft__add_item(status, err, tensors[i].name);
    }
    heft__map_fini(&seen);
    return status;
}

static void put_pickle(heft__buffer *out, const heft__out_tensor *tensors, size_t count,
                       const size_t *keys, const heft__torch_module *modules, size_t module_count)
{
    heft__buffer_append(out, "\x80\x02", 2);
    if (module_count) {
        put_global(out, "collections", "OrderedDict");
        heft__buffer_text(out, ")R(");
    } else {
        heft__buffer_text(out, "}(");
    }
    for (size_t i = 0; i < count; i++) {
        put_text(out, tensors[i].name);
        put_tensor(out, &tensors[i], keys[i]);
    }
    heft__buffer_byte(out, 'u');
    if (module_count) {
        put_metadata(out, modules, module_count);
    }
    heft__buffer_byte(out, '.');
}

static bool is_ascii(const char *text)
{
    for (; *text; text++) {
        if ((unsigned char)*text >= 0x80) {
            return false;
        }
    }
    return true;
}

static heft_status write_archive(struct archive *a, const char *stem,
                                 const heft__out_tensor *tensors, size_t count,
                                 const heft__torch_module *modules, size_t module_count,
                                 heft_error *err)
{
    heft__buffer pickle;
    size_t *keys = heft__alloc_zero(a->ctx, count, sizeof *keys),
           *firsts = heft__alloc_zero(a->ctx, count, sizeof *firsts);
    size_t storages = 0;
    a->stem = *stem && is_ascii(stem) && strlen(stem) < 200 ? stem : "archive";
    heft__arena_init(&a->arena, a->ctx);
    heft__buffer_init(&pickle, a->ctx);
    heft_status status = keys && firsts
                             ? number_storages(a->ctx, tensors, count, keys, firsts, &storages, err)
                             : heft__fail_nomem(err, count * sizeof *keys);
    if (status == HEFT_OK) {
        put_pickle(&pickle, tensors, count, keys, modules, module_count);
        status = heft__buffer_check(&pickle, err);
    }
    if (status == HEFT_OK) {
        status = put_record(a, "data.pkl", pickle.data, pickle.size, err);
    }
    static const char *const texts[][2] = {
        {".format_version",    "1"     },
        {".storage_alignment", "64"    },
        {"byteorder",          "little"}
    };
    for (size_t i = 0; i < 3 && status == HEFT_OK; i++) {
        status = put_record(a, texts[i][0], texts[i][1], strlen(texts[i][1]), err);
    }
    for (size_t k = 0; k < storages && status == HEFT_OK; k++) {
        status = put_storage(a, &tensors[firsts[k]], k, err);
    }
    if (status == HEFT_OK) {
        status = put_record(a, "version", "3\n", 2, err);
    }
    if (status == HEFT_OK) {
        status = put_directory(a, err);
    }
    heft__buffer_fini(&pickle);
    heft__arena_fini(&a->arena);
    heft__free(a->ctx, a->records, a->cap * sizeof *a->records);
    heft__free(a->ctx, keys, count * sizeof *keys);
    heft__free(a->ctx, firsts, count * sizeof *firsts);
    return status;
}

heft_status heft__torch_zip_measure(heft_ctx *ctx, const char *stem,
                                    const heft__out_tensor *tensors, size_t count,
                                    const heft__torch_module *modules, size_t module_count,
                                    uint64_t *bytes, heft_error *err)
{
    struct archive a = {.ctx = ctx};
    heft_status status = write_archive(&a, stem, tensors, count, modules, module_count, err);
    if (status == HEFT_OK) {
        *bytes = a.position;
    }
    return status;
}

heft_status heft__torch_zip_write(heft_ctx *ctx, heft__folder_writer *folder, const char *stem,
                                  const heft__out_tensor *tensors, size_t count,
                                  const heft__torch_module *modules, size_t module_count,
                                  heft__out_read_fn read, void *user, void *scratch,
                                  size_t scratch_bytes, heft_error *err)
{
    struct archive a = {.ctx = ctx,
                        .folder = folder,
                        .read = read,
                        .user = user,
                        .scratch = scratch,
                        .scratch_bytes = scratch_bytes};
    return write_archive(&a, stem, tensors, count, modules, module_count, err);
}
