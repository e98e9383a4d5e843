/* PyTorch files: what PyTorch wrote reads with equal dtypes, shapes, bytes and sharing; malformed
 * files are refused with the status and byte of the table; what heft writes reads back.
 * Files and sidecars: tests/data/README.md. */
#include "format/format.h"
#include "support.h"

#include <dirent.h>
#include <stdlib.h>
#include <time.h>
#include <zlib.h>

static heft_ctx *ctx;

/* ---- files and sidecars ---------------------------------------------------------------------- */
/* A file as it is, or unpacked if there is only NAME.gz. Malloced. */
static uint8_t *load(const char *folder, const char *name, size_t *length)
{
    char path[1024];
    size_t cap = 1 << 16;
    snprintf(path, sizeof path, "%s/%s/%s", HEFT_TEST_DATA, folder, name);
    gzFile file = gzopen(path, "rb"); /* reads plain files too */
    if (!file) {
        strncat(path, ".gz", sizeof path - strlen(path) - 1);
        file = gzopen(path, "rb");
    }
    assert_non_null(file);
    uint8_t *bytes = malloc(cap);
    *length = 0;
    for (int got; (got = gzread(file, bytes + *length, (unsigned)(cap - *length))) > 0;) {
        *length += (size_t)got;
        if (*length == cap) {
            cap *= 2;
            bytes = realloc(bytes, cap);
        }
    }
    gzclose(file);
    uint8_t *exact = malloc(*length ? *length : 1); /* a sanitizer sees a read behind it */
    memcpy(exact, bytes, *length);
    free(bytes);
    return exact;
}

static heft__json_value *load_sidecar(heft__arena *arena, const char *folder, const char *name)
{
    size_t length;
    heft_error err;
    heft__json_value *value = NULL;
    uint8_t *text = load(folder, name, &length);
    test_expect_status(heft__json_parse(arena, text, length, 64, &value, &err), HEFT_OK, &err,
                       name);
    free(text);
    return value;
}

static heft_status open_bytes(heft_ctx *on, const uint8_t *bytes, size_t length, heft__file **file,
                              heft_error *err)
{
    heft__input *source = NULL;
    heft_status status = heft__input_from_bytes(on, "memory", bytes, length, &source, err);
    if (status == HEFT_OK) {
        status = heft__file_open(on, source, file, err);
    }
    heft__input_unref(source);
    return status;
}

/* All bytes of a tensor, read in pieces of at most `cap`. Malloced. */
static heft_status read_tensor(heft_ctx *on, const heft__file *file,
                               const heft__file_tensor *tensor, size_t cap, uint8_t **bytes,
                               heft_error *err)
{
    heft__tensor_reader *reader = NULL;
    uint64_t done = 0;
    *bytes = malloc((size_t)tensor->size_bytes + 1);
    heft_status status = heft__tensor_reader_new(on, file, tensor, &reader, err);
    while (status == HEFT_OK) {
        size_t piece = 0, room = (size_t)(tensor->size_bytes - done);
        status =
            heft__tensor_reader_next(reader, *bytes + done, room < cap ? room : cap, &piece, err);
        if (status == HEFT_OK && piece == 0) {
            assert_int_equal(done, tensor->size_bytes);
            break;
        }
        assert_true(status != HEFT_OK || piece <= cap);
        done += piece;
    }
    heft__tensor_reader_free(reader);
    return status;
}

static const heft__file_tensor *find(const heft__file *file, const char *name)
{
    for (size_t i = 0; i < file->tensor_count; i++) {
        if (strcmp(file->tensors[i].name, name) == 0) {
            return &file->tensors[i];
        }
    }
    return NULL;
}

/* ---- files of PyTorch ------------------------------------------------------------------------ */
static heft_dtype dtype_of(const char *text)
{
    heft_dtype dtype = HEFT_DTYPE_NONE;
    heft_error err;
    assert_int_equal(heft_dtype_parse(text, &dtype, &err), HEFT_OK);
    return dtype;
}

static void compare(const char *name, const heft__file *file, const heft__file_tensor *tensor,
                    const heft__json_value *expected)
{
    static const size_t caps[] = {16, 40, 1 << 20};
    const heft__json_value *shape = heft__json_member(expected, "shape"), *dim = shape->first;
    const bool halves = tensor->dtype == HEFT_DTYPE_F4_E2M1FN_X2;
    assert_int_equal(tensor->dtype, dtype_of(heft__json_member(expected, "dtype")->text));
    assert_int_equal(tensor->rank, shape->count);
    for (uint32_t d = 0; d < tensor->rank; d++, dim = dim->next) {
        uint64_t value;
        assert_true(heft__json_as_u64(dim, &value));
        assert_int_equal(tensor->shape[d], halves && d == tensor->rank - 1 ? value * 2 : value);
    }
    for (size_t c = 0; c < sizeof caps / sizeof caps[0]; c++) {
        uint8_t *bytes = NULL;
        heft_error err;
        char hex[65];
        test_expect_status(read_tensor(ctx, file, tensor, caps[c], &bytes, &err), HEFT_OK, &err,
                           name);
        test_sha256(bytes, (size_t)tensor->size_bytes, hex);
        if (strcmp(hex, heft__json_member(expected, "sha256")->text) != 0) {
            fail_msg("%s: '%s' has other bytes in pieces of %zu", name, tensor->name, caps[c]);
        }
        free(bytes);
    }
}

/* Names below state_dict or model are relative to it; other values are skipped. */
static const char *relative_name(const char *name, const char *file)
{
    const char *prefix = strcmp(file, "zip_training_checkpoint.pt") == 0 ? "state_dict."
                         : strcmp(file, "zip_key_model.pt") == 0         ? "model."
                                                                         : "";
    return strncmp(name, prefix, strlen(prefix)) == 0 ? name + strlen(prefix) : NULL;
}

static bool is_skipped(const heft__file *file, const char *name)
{
    for (size_t i = 0; i < file->skipped_count; i++) {
        if (strcmp(file->skipped[i], name) == 0) {
            return true;
        }
    }
    return false;
}

/* The storage of a tensor that must be there. */
static size_t storage_of(const heft__file *file, const char *name)
{
    const heft__file_tensor *tensor = find(file, name);
    if (!tensor) {
        fail_msg("'%s' is not there", name);
        return SIZE_MAX;
    }
    return tensor->storage;
}

static void compare_groups(const char *name, const heft__file *file, const heft__json_value *groups)
{
    for (const heft__json_value *group = groups->first; group; group = group->next) {
        for (const heft__json_value *member = group->first; member; member = member->next) {
            if (storage_of(file, member->text) != storage_of(file, group->first->text)) {
                fail_msg("%s: '%s' and '%s' do not share", name, member->text, group->first->text);
            }
        }
    }
}

static void compare_file(const char *name, const heft__file *file, const heft__json_value *sidecar)
{
    size_t count = 0;
    const heft__json_value *tensors = heft__json_member(sidecar, "tensors");
    for (const heft__json_value *t = tensors->first; t; t = t->next) {
        const char *full = heft__json_member(t, "name")->text,
                   *relative = relative_name(full, name);
        if (!relative) {
            assert_true(is_skipped(file, full));
            continue;
        }
        const heft__file_tensor *tensor = find(file, relative);
        if (!tensor) {
            fail_msg("%s: '%s' is not there", name, relative);
        }
        compare(name, file, tensor, t);
        count++;
    }
    assert_int_equal(file->tensor_count, count);
    compare_groups(name, file, heft__json_member(sidecar, "groups"));
}

static const test_refusal refusals[] = {
#include "torch_refusals.inc"
};

static const test_refusal *find_refusal(const char *name)
{
    return test_find_refusal(refusals, sizeof refusals / sizeof refusals[0], name);
}

/* Open and read all of it: the first failure. */
static heft_status open_and_read(heft_ctx *on, const uint8_t *bytes, size_t length, heft_error *err)
{
    heft__file *file = NULL;
    heft_status status = open_bytes(on, bytes, length, &file, err);
    for (size_t i = 0; status == HEFT_OK && i < file->tensor_count; i++) {
        uint8_t *tensor = NULL;
        status = read_tensor(on, file, &file->tensors[i], 1 << 16, &tensor, err);
        free(tensor);
    }
    heft__file_close(on, file);
    return status;
}

/* Refused at the byte, within a second and 64 MiB, with nothing left behind. */
static void check_refused(const test_refusal *row, const uint8_t *bytes, size_t length)
{
    heft_error err = {0};
    char line[1500];
    test_heap heap = {.fail_at = -1};
    heft_ctx *counted = test_ctx_new(&heap);
    const clock_t start = clock();
    heft_status status = open_and_read(counted, bytes, length, &err);
    if (status == HEFT_OK) {
        fail_msg("%s: accepted, expected %s", row->name, heft_status_name(row->status));
    }
    heft_error_format(&err, line, sizeof line);
    if (status != row->status || err.offset != row->offset || !strstr(line, row->words) ||
        !err.path[0]) {
        fail_msg("%s: %s at %lld, expected %s at %lld with '%s': %s", row->name,
                 heft_status_name(status), (long long)err.offset, heft_status_name(row->status),
                 (long long)row->offset, row->words, line);
    }
    assert_true(clock() - start < CLOCKS_PER_SEC);
    assert_true(heap.peak < 64 << 20);
    heft_ctx_free(counted);
    assert_int_equal(heap.blocks, 0);
}

/* Run every sidecar of a folder; returns how many there were. */
static size_t run_folder(const char *folder, const char *ending)
{
    char path[1024], name[300];
    size_t cases = 0;
    snprintf(path, sizeof path, "%s/%s", HEFT_TEST_DATA, folder);
    DIR *entries = opendir(path);
    assert_non_null(entries);
    for (struct dirent *e = readdir(entries); e; e = readdir(entries)) {
        size_t length = strlen(e->d_name), tail = strlen(ending), size;
        if (length <= tail || strcmp(e->d_name + length - tail, ending) != 0) {
            continue;
        }
        snprintf(name, sizeof name, "%.*s", (int)(length - tail), e->d_name);
        heft__arena arena;
        heft__arena_init(&arena, ctx);
        const heft__json_value *sidecar = load_sidecar(&arena, folder, e->d_name);
        const heft__json_value *expect = heft__json_member(sidecar, "expect");
        const test_refusal *refusal = find_refusal(name);
        uint8_t *bytes = load(folder, name, &size);
        if (refusal) {
            check_refused(refusal, bytes, size);
        } else {
            heft__file *file = NULL;
            heft_error err;
            test_expect_status(open_bytes(ctx, bytes, size, &file, &err), HEFT_OK, &err, name);
            if (heft__json_member(sidecar, "groups")) {
                compare_file(name, file, sidecar);
            } else if (expect) {
                const heft__json_value *tensors = heft__json_member(expect, "tensors");
                assert_int_equal(file->tensor_count, tensors->count);
                for (const heft__json_value *t = tensors->first; t; t = t->next) {
                    compare(name, file, find(file, t->key), t);
                }
            }
            heft__file_close(ctx, file);
        }
        free(bytes);
        heft__arena_fini(&arena);
        cases++;
    }
    closedir(entries);
    return cases;
}

static void files_of_the_real_library(void **state)
{
    (void)state;
    assert_int_equal(run_folder("formats", ".json"), 54);
}

static void files_that_lie(void **state)
{
    (void)state;
    assert_int_equal(run_folder("malformed", ".sidecar.json"), 97);
}

/* ---- failing allocations, prefixes, flipped bytes -------------------------------------------- */
struct span {
    const uint8_t *bytes;
    size_t length;
};

static heft_status attempt_open(heft_ctx *on, void *user, heft_error *err)
{
    const struct span *span = user;
    return open_and_read(on, span->bytes, span->length, err);
}

static void failing_allocations_leave_nothing(void **state)
{
    static const char *const names[] = {
        "zip_training_checkpoint.pt", "zip_deflated.pt",  "zip_views.pt",
        "legacy_view_metadata.pt",    "legacy_proto4.pt", "tar_basic.tar"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct span span;
        uint8_t *bytes = load("formats", names[i], &span.length);
        span.bytes = bytes;
        test_oom_sweep(attempt_open, &span);
        free(bytes);
    }
}

static void every_prefix_is_refused(void **state)
{
    static const char *const names[] = {"zip_minimal.pt", "zip_deflated.pt",
                                        "legacy_view_metadata.pt", "tar_basic.tar"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        size_t length;
        uint8_t *bytes = load("formats", names[i], &length);
        /* a tar ends with blocks of zeros that nobody needs */
        const size_t last = strcmp(names[i], "tar_basic.tar") == 0 ? 2600 : length;
        for (size_t cut = 0; cut < last; cut++) {
            heft_error err = {0};
            uint8_t *exact = malloc(cut ? cut : 1);
            memcpy(exact, bytes, cut);
            heft_status status = open_and_read(ctx, exact, cut, &err);
            if (status != HEFT_FORMAT && status != HEFT_UNSUPPORTED) {
                fail_msg("%s cut to %zu: %s", names[i], cut, heft_status_name(status));
            }
            free(exact);
        }
        free(bytes);
    }
}

/* No crash, whatever a byte is changed to; the sanitizers watch. */
static void flipped_bytes_do_no_harm(void **state)
{
    static const char *const names[] = {"zip_deflated.pt", "zip_proto4.pt",
                                        "legacy_view_metadata.pt", "tar_basic.tar"};
    static const uint8_t flips[] = {0x01, 0x80, 0xFF};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        size_t length;
        uint8_t *bytes = load("formats", names[i], &length);
        for (size_t at = 0; at < length; at += 1 + length / 2000) {
            for (size_t f = 0; f < sizeof flips; f++) {
                heft_error err = {0};
                bytes[at] ^= flips[f];
                if (open_and_read(ctx, bytes, length, &err) != HEFT_OK) {
                    assert_true(err.message[0] && err.path[0]);
                }
                bytes[at] ^= flips[f];
            }
        }
        free(bytes);
    }
}

/* ---- strided reading ------------------------------------------------------------------------- */
/* A file of one storage of counted bytes, in memory. */
static void fake_file(heft__file *file, heft__file_storage *storage, const uint8_t *bytes,
                      size_t length)
{
    heft_error err;
    *storage = (heft__file_storage){.offset = 3, .bytes = length - 3, .stored_bytes = length - 3};
    *file = (heft__file){.storages = storage, .storage_count = 1};
    assert_int_equal(heft__input_from_bytes(ctx, "memory", bytes, length, &file->source, &err),
                     HEFT_OK);
}

static void gather_naively(const uint8_t *base, const heft__file_tensor *tensor, size_t elem,
                           uint8_t *dst)
{
    uint64_t index[8] = {0};
    for (uint64_t done = 0; done < tensor->size_bytes; done += elem) {
        uint64_t at = tensor->start;
        for (uint32_t d = 0; d < tensor->rank; d++) {
            at += index[d] * (uint64_t)tensor->strides[d] * elem;
        }
        memcpy(dst + done, base + at, elem);
        for (uint32_t d = tensor->rank; d-- > 0 && ++index[d] == tensor->shape[d];) {
            index[d] = 0;
        }
    }
}

static void strided_views_read_as_they_are_defined(void **state)
{
    static const heft_dtype dtypes[] = {HEFT_DTYPE_U8, HEFT_DTYPE_F16, HEFT_DTYPE_F32,
                                        HEFT_DTYPE_F64, HEFT_DTYPE_C128};
    enum { BYTES = 3 << 20 };
    uint8_t *bytes = malloc(BYTES);
    heft__file file;
    heft__file_storage storage;
    unsigned seed = 7;
    (void)state;
    for (size_t i = 0; i < BYTES; i++) {
        bytes[i] = (uint8_t)(i * 2654435761u >> 13);
    }
    fake_file(&file, &storage, bytes, BYTES);
    for (int round = 0; round < 300; round++) {
        uint64_t shape[8];
        int64_t strides[8];
        heft__file_tensor tensor = {
            .name = "t", .dtype = dtypes[round % 5], .shape = shape, .strides = strides};
        const size_t elem = heft_dtype_bits(tensor.dtype) / 8;
        uint64_t reach = 0, elems = 1, most = (BYTES - 4096) / elem;
        tensor.rank = 1 + (uint32_t)rand_r(&seed) % 5;
        for (uint32_t d = 0; d < tensor.rank; d++) {
            shape[d] = 1 + (uint64_t)rand_r(&seed) % (round % 3 ? 9 : 40);
            strides[d] = rand_r(&seed) % (round % 7 == 0 ? 20000 : 300);
            if ((shape[d] - 1) * (uint64_t)strides[d] > most - reach || elems * shape[d] > 60000) {
                shape[d] = 1;
            }
            reach += (shape[d] - 1) * (uint64_t)strides[d];
            elems *= shape[d];
        }
        tensor.start = (uint64_t)rand_r(&seed) % 64 * elem;
        tensor.size_bytes = elems * elem;
        uint8_t *expected = malloc((size_t)tensor.size_bytes), *found = NULL;
        gather_naively(bytes + 3, &tensor, elem, expected);
        heft_error err;
        size_t cap = elem * (1 + (size_t)rand_r(&seed) % 5000);
        test_expect_status(read_tensor(ctx, &file, &tensor, cap, &found, &err), HEFT_OK, &err,
                           "strided");
        assert_memory_equal(found, expected, (size_t)tensor.size_bytes);
        free(found);
        free(expected);
    }
    heft__input_unref(file.source);
    free(bytes);
}

/* A transposed matrix that is larger than a window. */
static void transposed_matrix(void **state)
{
    const uint64_t rows = 1500, columns = 700, shape[] = {rows, columns};
    const int64_t strides[] = {1, (int64_t)rows};
    const size_t length = 3 + rows * columns * 4;
    const heft__file_tensor tensor = {.name = "t",
                                      .dtype = HEFT_DTYPE_F32,
                                      .rank = 2,
                                      .shape = shape,
                                      .strides = strides,
                                      .size_bytes = rows * columns * 4};
    static const size_t caps[] = {4, 2800, 100000, 1 << 30};
    uint8_t *bytes = malloc(length), *expected = malloc((size_t)tensor.size_bytes);
    heft__file file;
    heft__file_storage storage;
    (void)state;
    for (size_t i = 0; i < length; i++) {
        bytes[i] = (uint8_t)(i * 2654435761u >> 11);
    }
    fake_file(&file, &storage, bytes, length);
    gather_naively(bytes + 3, &tensor, 4, expected);
    for (size_t c = 1; c < sizeof caps / sizeof caps[0]; c++) {
        uint8_t *found = NULL;
        heft_error err;
        test_expect_status(read_tensor(ctx, &file, &tensor, caps[c], &found, &err), HEFT_OK, &err,
                           "transposed");
        assert_memory_equal(found, expected, (size_t)tensor.size_bytes);
        free(found);
    }
    heft__input_unref(file.source);
    free(bytes);
    free(expected);
}

/* ---- CRC ------------------------------------------------------------------------------------- */
static void crcs_are_checked_when_asked(void **state)
{
    static const struct {
        const char *folder, *name;
        bool checked, equal;
    } rows[] = {
        {"formats",   "zip_minimal.pt",  true,  true },
        {"formats",   "zip_deflated.pt", true,  true },
        {"formats",   "zip_crc_off.pt",  false, true },
        {"formats",   "legacy_basic.pt", false, true },
        {"malformed", "tz_bad_crc.bin",  true,  false},
    };
    (void)state;
    assert_int_equal(heft__crc32(0, "123456789", 9), 0xCBF43926);
    assert_int_equal(heft__crc32(heft__crc32(0, "1234", 4), "56789", 5), 0xCBF43926);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t length;
        uint8_t scratch[7];
        bool checked, equal;
        uint32_t found;
        heft_error err;
        heft__file *file = NULL;
        uint8_t *bytes = load(rows[i].folder, rows[i].name, &length);
        test_expect_status(open_bytes(ctx, bytes, length, &file, &err), HEFT_OK, &err,
                           rows[i].name);
        test_expect_status(heft__storage_check_crc(ctx, file, 0, scratch, sizeof scratch, &checked,
                                                   &equal, &found, &err),
                           HEFT_OK, &err, rows[i].name);
        assert_int_equal(checked, rows[i].checked);
        assert_int_equal(equal, rows[i].equal);
        heft__file_close(ctx, file);
        free(bytes);
    }
}

/* ---- the writer ------------------------------------------------------------------------------ */
/* Byte i of storage s is a function of both. */
static heft_status give_bytes(void *user, const heft__out_tensor *tensor, uint64_t first, void *dst,
                              size_t length, heft_error *err)
{
    (void)user, (void)err;
    for (size_t i = 0; i < length; i++) {
        ((uint8_t *)dst)[i] = (uint8_t)(tensor->storage * 37 + (first + i) * 11);
    }
    return HEFT_OK;
}

static const heft__format *torch(void)
{
    return heft__format_find(HEFT_FORMAT_TORCH);
}

static heft_status lay_out(heft_ctx *on, const char *name, const heft__out_tensor *tensors,
                           size_t count, const char *const *modules, size_t module_count,
                           heft__layout **out, heft_error *err)
{
    const heft__out_file file = {.name = name,
                                 .tensors = tensors,
                                 .count = count,
                                 .modules = modules,
                                 .module_count = module_count};
    return torch()->lay_out(on, &file, out, err);
}

static heft_status measure(heft_ctx *on, const heft__out_tensor *tensors, size_t count,
                           uint64_t *bytes, heft_error *err)
{
    static const char *const modules[] = {""};
    heft__layout *layout = NULL;
    heft_status status = lay_out(on, "x.bin", tensors, count, modules, 1, &layout, err);
    if (status == HEFT_OK) {
        *bytes = layout->bytes;
    }
    torch()->layout_free(layout);
    return status;
}

/* Write and load the file again; malloced. */
static uint8_t *write_file(const char *name, const heft__out_tensor *tensors, size_t count,
                           const char *const *modules, size_t module_count, size_t *length)
{
    char folder[256], path[512];
    uint8_t scratch[100];
    heft_error err;
    uint64_t measured = 0;
    heft__folder_writer *writer = NULL;
    test_folder_make(folder);
    snprintf(path, sizeof path, "%s/out", folder);
    assert_int_equal(heft__folder_begin(ctx, path, NULL, &writer, &err), HEFT_OK);
    assert_int_equal(heft__folder_file_begin(writer, "x.bin", false, &err), HEFT_OK);
    const heft__out_io io = {
        .folder = writer, .read = give_bytes, .scratch = scratch, .scratch_bytes = sizeof scratch};
    heft__layout *layout = NULL;
    test_expect_status(lay_out(ctx, name, tensors, count, modules, module_count, &layout, &err),
                       HEFT_OK, &err, "lay out");
    measured = layout->bytes;
    test_expect_status(torch()->write(layout, &io, &err), HEFT_OK, &err, "write");
    torch()->layout_free(layout);
    assert_int_equal(heft__folder_file_end(writer, &err), HEFT_OK);
    assert_int_equal(heft__folder_commit(writer, &err), HEFT_OK);
    heft__folder_free(writer);
    strncat(path, "/x.bin", sizeof path - strlen(path) - 1);
    uint8_t *bytes = (uint8_t *)test_read_file(path, length);
    const char *keep = getenv("HEFT_KEEP");
    if (keep) {
        test_write_file(keep, module_count ? "with_modules.bin" : "plain.bin", bytes, *length);
    }
    test_folder_remove(folder);
    assert_int_equal(measured, *length);
    return bytes;
}

static void check_written(const heft__file *file, const heft__out_tensor *tensors, size_t count)
{
    assert_int_equal(file->tensor_count, count);
    for (size_t i = 0; i < count; i++) {
        const heft__file_tensor *found = &file->tensors[i];
        const heft__file_storage *storage = &file->storages[found->storage];
        heft_error err;
        uint8_t *bytes = NULL, scratch[64];
        bool checked, equal;
        uint32_t crc;
        assert_string_equal(found->name, tensors[i].name);
        assert_int_equal(found->dtype, tensors[i].dtype);
        assert_true(
            heft__shape_equal(found->shape, found->rank, tensors[i].shape, tensors[i].rank));
        assert_null(found->strides);
        assert_int_equal(storage->offset % 64, 0);
        test_expect_status(read_tensor(ctx, file, found, 256, &bytes, &err), HEFT_OK, &err,
                           found->name);
        for (uint64_t b = 0; b < found->size_bytes; b++) {
            assert_int_equal(bytes[b], (uint8_t)(tensors[i].storage * 37 + b * 11));
        }
        free(bytes);
        assert_int_equal(heft__storage_check_crc(ctx, file, found->storage, scratch, sizeof scratch,
                                                 &checked, &equal, &crc, &err),
                         HEFT_OK);
        assert_true(equal && (checked || found->size_bytes == 0));
    }
}

static void written_files_read_back(void **state)
{
    static const uint64_t shape[] = {3, 4}, empty[] = {2, 0, 3}, deep[] = {1, 2, 1, 2, 3};
    static const char *const modules[] = {"", "encoder", "encoder.layer"};
    heft__out_tensor tensors[64];
    char names[64][40];
    size_t count = 0, length;
    (void)state;
    for (int dtype = HEFT_DTYPE_NONE + 1; dtype < HEFT_DTYPE_COUNT; dtype++) {
        if (dtype == HEFT_DTYPE_F6_E2M3 || dtype == HEFT_DTYPE_F6_E3M2 ||
            (dtype >= HEFT_DTYPE_QINT8 && dtype <= HEFT_DTYPE_QUINT2X4)) {
            continue;
        }
        snprintf(names[count], sizeof names[0], "%s", heft_dtype_name((heft_dtype)dtype));
        tensors[count] =
            (heft__out_tensor){names[count], (heft_dtype)dtype, 2, shape, 0, count, NULL};
        assert_true(heft__shape_bytes((heft_dtype)dtype, shape, 2, &tensors[count].size_bytes));
        count++;
    }
    tensors[count] = (heft__out_tensor){"scalar", HEFT_DTYPE_F32, 0, NULL, 4, count, NULL};
    count++;
    tensors[count] = (heft__out_tensor){"empty", HEFT_DTYPE_F32, 3, empty, 0, count, NULL};
    count++;
    tensors[count] = (heft__out_tensor){"deep.\xc3\xa9", HEFT_DTYPE_I16, 5, deep, 24, count, NULL};
    count++;
    tensors[count] = (heft__out_tensor){"tied", HEFT_DTYPE_F32, 2, shape, 48, 0, NULL};
    count++;
    for (size_t with = 0; with < 2; with++) {
        heft__file *file = NULL;
        heft_error err;
        uint8_t *bytes =
            write_file("pytorch_model.bin", tensors, count, modules, with * 3, &length);
        test_expect_status(open_bytes(ctx, bytes, length, &file, &err), HEFT_OK, &err, "written");
        check_written(file, tensors, count);
        assert_int_equal(storage_of(file, "tied"), storage_of(file, "float32"));
        assert_int_equal(file->storage_count, count - 1);
        heft__file_close(ctx, file);
        free(bytes);
    }
}

static void many_tensors_read_back(void **state)
{
    enum { COUNT = 2001 };
    static const uint64_t shape[] = {2};
    heft__out_tensor *tensors = calloc(COUNT, sizeof *tensors);
    char(*names)[24] = calloc(COUNT, sizeof *names);
    size_t length;
    heft__file *file = NULL;
    heft_error err;
    (void)state;
    for (size_t i = 0; i < COUNT; i++) {
        snprintf(names[i], sizeof names[0], "layer.%zu.weight", i);
        tensors[i] = (heft__out_tensor){names[i], HEFT_DTYPE_U8, 1, shape, 2, i, NULL};
    }
    uint8_t *bytes = write_file("m\xc3\xb6"
                                "del.bin",
                                tensors, COUNT, NULL, 0, &length);
    assert_memory_equal(bytes + 30, "archive/data.pkl", 16); /* the stem is not ASCII */
    test_expect_status(open_bytes(ctx, bytes, length, &file, &err), HEFT_OK, &err, "many");
    check_written(file, tensors, COUNT);
    heft__file_close(ctx, file);
    free(bytes);
    free(tensors);
    free(names);
}

#define TENSOR_U8(name, storage, shape, bytes)                                                     \
    {                                                                                              \
        name, HEFT_DTYPE_U8, 1, shape, bytes, storage, NULL                                        \
    }

static void bad_tensors_are_not_written(void **state)
{
    static const uint64_t shape[] = {3}, pair[] = {2};
    static const struct {
        const char *name;
        heft__out_tensor tensors[2];
        size_t count;
        const char *words;
    } rows[] = {
  /* clang-format off */
        {"name_twice", {TENSOR_U8("a", 0, shape, 3), TENSOR_U8("a", 1, shape, 3)}, 2, "duplicate name"},
        {"quantised", {{"a", HEFT_DTYPE_QINT8, 1, shape, 3, 0, NULL}}, 1, "cannot hold qint8"},
        {"six_bits", {{"a", HEFT_DTYPE_F6_E2M3, 1, pair, 2, 0, NULL}}, 1, "cannot hold"},
        {"wrong_size", {{"a", HEFT_DTYPE_F32, 1, shape, 3, 0, NULL}}, 1, "do not match the shape"},
        {"no_utf8", {TENSOR_U8("\xff", 0, shape, 3)}, 1, "not UTF-8"},
        {"other_size", {TENSOR_U8("a", 0, shape, 3), TENSOR_U8("b", 0, pair, 2)}, 2,
         "shares its storage with 'a'"},
  /* clang-format on */
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint64_t bytes;
        heft_error err = {0};
        heft_status status = measure(ctx, rows[i].tensors, rows[i].count, &bytes, &err);
        test_expect_status(status, HEFT_INVALID_ARG, &err, rows[i].name);
        assert_non_null(strstr(err.message, rows[i].words));
    }
}

/* Beyond 4 GiB: sizes and offsets go into zip64 fields, the numbers in the pickle into LONG1. */
static void huge_files_are_measured(void **state)
{
    static const uint64_t shape[] = {UINT64_C(5) << 30}, small[] = {1};
    const heft__out_tensor tensors[] = {
        {"huge",   HEFT_DTYPE_U8, 1, shape, UINT64_C(5) << 30, 0, NULL},
        {"behind", HEFT_DTYPE_U8, 1, small, 1,                 1, NULL},
    };
    uint64_t both = 0, first = 0;
    heft_error err;
    (void)state;
    assert_int_equal(measure(ctx, tensors, 1, &first, &err), HEFT_OK);
    assert_int_equal(measure(ctx, tensors, 2, &both, &err), HEFT_OK);
    assert_true(first > UINT64_C(5) << 30 && both > first && both - first < 1024);
}

static heft_status attempt_measure(heft_ctx *on, void *user, heft_error *err)
{
    static const uint64_t shape[] = {3};
    const heft__out_tensor tensors[] = {
        {"a", HEFT_DTYPE_U8, 1, shape, 3, 0, NULL}
    };
    uint64_t bytes;
    (void)user;
    return measure(on, tensors, 1, &bytes, err);
}

static void failing_allocations_of_the_writer(void **state)
{
    (void)state;
    test_oom_sweep(attempt_measure, NULL);
}

/* ---- sniffing -------------------------------------------------------------------------------- */
static void strangers_are_called_by_name(void **state)
{
    static const struct {
        const char *bytes;
        size_t length;
        heft_status status;
        const char *words;
    } rows[] = {
  /* clang-format off */
        {"", 0, HEFT_FORMAT, "0 bytes"},
        {"GGUF\3\0\0\0\x20\0\0\0\0\0\0\0", 16, HEFT_UNSUPPORTED, "a GGUF file"},
        {"version https://git-lfs.github.com/spec/v1\n", 43, HEFT_UNSUPPORTED, "Git LFS pointer"},
        {"<!DOCTYPE html>", 15, HEFT_UNSUPPORTED, "a web page"},
        {"\r\n\t <html><head>", 16, HEFT_UNSUPPORTED, "a web page"},
        {"\xef\xbb\xbf<?xml version=\"1.0\"?>", 24, HEFT_UNSUPPORTED, "an XML document"},
        {" \n {\"error\": 1}", 15, HEFT_UNSUPPORTED, "a JSON file"},
        {"\x80\x02}q\0.", 6, HEFT_UNSUPPORTED, "not written by torch.save"},
        {"L119547037146038801333356L\n.", 28, HEFT_UNSUPPORTED, "protocol 0 or 1"},
        {"hello", 5, HEFT_UNSUPPORTED, "the file begins with 68 65 6c 6c 6f"},
        {"PK\5\6\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 22, HEFT_FORMAT, "no entries"},
  /* clang-format on */
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft__file *file = NULL;
        heft_error err = {0};
        heft_status status =
            open_bytes(ctx, (const uint8_t *)rows[i].bytes, rows[i].length, &file, &err);
        test_expect_status(status, rows[i].status, &err, rows[i].words);
        if (!strstr(err.message, rows[i].words)) {
            fail_msg("expected '%s': %s", rows[i].words, err.message);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_of_the_real_library),
        cmocka_unit_test(files_that_lie),
        cmocka_unit_test(failing_allocations_leave_nothing),
        cmocka_unit_test(every_prefix_is_refused),
        cmocka_unit_test(flipped_bytes_do_no_harm),
        cmocka_unit_test(strided_views_read_as_they_are_defined),
        cmocka_unit_test(transposed_matrix),
        cmocka_unit_test(crcs_are_checked_when_asked),
        cmocka_unit_test(written_files_read_back),
        cmocka_unit_test(many_tensors_read_back),
        cmocka_unit_test(bad_tensors_are_not_written),
        cmocka_unit_test(huge_files_are_measured),
        cmocka_unit_test(failing_allocations_of_the_writer),
        cmocka_unit_test(strangers_are_called_by_name),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
