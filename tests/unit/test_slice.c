/* test_slice.c - slices, casts and many reads at once, compared with a bit-by-bit copy out of the
 * whole tensor. */
#include "checkpoint/checkpoint.h"
#include "support.h"

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>
#include <zlib.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define RANK 6

static heft_ctx *ctx; /* with several threads */
static char folder[256];

/* ---- the expected slice ------------------------------------------------------------------------ */
/* One bit after another, so that sub-byte elements need no special case. */
static void copy_bits(uint8_t *dst, uint64_t to, const uint8_t *src, uint64_t from, unsigned bits)
{
    for (unsigned b = 0; b < bits; b++, to++, from++) {
        const uint8_t mask = (uint8_t)(1u << to % 8);
        const bool set = src[from / 8] >> from % 8 & 1;
        dst[to / 8] = (uint8_t)(set ? dst[to / 8] | mask : dst[to / 8] & ~mask);
    }
}

/* The slice of a whole tensor, as stored; returns its elements. */
static uint64_t slice_naively(const heft_tensor_info *info, const uint8_t *whole,
                              const uint64_t *start, const uint64_t *stop, uint8_t *dst)
{
    const unsigned bits = heft_dtype_bits(info->dtype);
    uint64_t index[64] = {0}, elems = 1;
    for (uint32_t d = 0; d < info->rank; d++) {
        elems *= stop[d] - start[d];
    }
    for (uint64_t done = 0; done < elems; done++) {
        uint64_t at = 0;
        for (uint32_t d = 0; d < info->rank; d++) {
            at = at * info->shape[d] + start[d] + index[d];
        }
        copy_bits(dst, done * bits, whole, at * bits, bits);
        for (uint32_t d = info->rank; d-- > 0 && ++index[d] == stop[d] - start[d];) {
            index[d] = 0;
        }
    }
    return elems;
}

/* Whether every run of a slice begins and ends on a byte boundary. */
static bool is_cut_between_bytes(const heft_tensor_info *info, const uint64_t *start,
                                 const uint64_t *stop)
{
    const unsigned bits = heft_dtype_bits(info->dtype);
    uint64_t inner = 1;
    uint32_t cut = info->rank;
    while (cut > 0 && start[cut - 1] == 0 && stop[cut - 1] == info->shape[cut - 1]) {
        inner *= info->shape[--cut];
    }
    bool good = true;
    for (uint32_t d = cut; d-- > 0; inner *= info->shape[d]) {
        good = good && start[d] * inner * bits % 8 == 0;
        good = good && (d + 1 == cut ? stop[d] * inner * bits % 8 == 0
                                     : stop[d] - start[d] == 1 || inner * bits % 8 == 0);
    }
    return good;
}

/* ---- comparing -------------------------------------------------------------------------------- */
static uint32_t below(unsigned *seed, uint32_t limit)
{
    return limit ? (uint32_t)rand_r(seed) % limit : 0;
}

static uint8_t *read_whole(const heft_checkpoint *ckpt, size_t i)
{
    heft_error err;
    const heft_tensor_info *info = heft_checkpoint_info(ckpt, i);
    uint8_t *whole = malloc((size_t)info->size_bytes + 1);
    test_expect_status(heft_checkpoint_read(ckpt, i, whole, info->size_bytes, &err), HEFT_OK, &err,
                       info->name);
    return whole;
}

struct wanted { /* a random request, and what it should give */
    heft_read_request request;
    uint64_t start[64], stop[64];
    uint8_t *expected, *memory; /* GUARD bytes before and after the filled part */
    size_t bytes;
    bool good;
};

#define GUARD 32

static void make_range(const heft_tensor_info *info, unsigned *seed, struct wanted *w)
{
    for (uint32_t d = 0; d < info->rank; d++) {
        const uint32_t size = (uint32_t)info->shape[d], kind = below(seed, 8);
        uint32_t a = below(seed, size + 1), b = below(seed, size + 1);
        if (kind < 3) { /* all of it, so that runs become long */
            a = 0;
            b = size;
        }
        if (kind >= 6) { /* even numbers, for what is packed */
            a &= ~3u;
            b &= ~3u;
        }
        w->start[d] = a < b ? a : b;
        w->stop[d] = a < b ? b : a;
    }
}

static void make_wanted(const heft_checkpoint *ckpt, size_t i, unsigned *seed, struct wanted *w)
{
    const heft_tensor_info *info = heft_checkpoint_info(ckpt, i);
    static const heft_dtype casts[] = {HEFT_DTYPE_NONE, HEFT_DTYPE_NONE, HEFT_DTYPE_F32,
                                       HEFT_DTYPE_F64,  HEFT_DTYPE_F16,  HEFT_DTYPE_BF16};
    heft_dtype to = casts[below(seed, COUNT(casts))];
    *w = (struct wanted){0};
    make_range(info, seed, w);
    if (!heft_cast_known(info->dtype, to)) {
        to = below(seed, 2) ? HEFT_DTYPE_NONE : info->dtype;
    }
    const heft_dtype in_memory = to == HEFT_DTYPE_NONE ? info->dtype : to;
    uint8_t *whole = read_whole(ckpt, i), *stored = calloc((size_t)info->size_bytes + 1, 1);
    const uint64_t elems = slice_naively(info, whole, w->start, w->stop, stored);
    w->good = elems == 0 || is_cut_between_bytes(info, w->start, w->stop);
    w->bytes = (size_t)((elems * heft_dtype_bits(in_memory) + 7) / 8);
    w->expected = malloc(w->bytes + 1);
    heft__cast(in_memory, w->expected, info->dtype, stored, (size_t)elems);
    free(whole);
    free(stored);
    w->memory = malloc(w->bytes + 2 * GUARD);
    memset(w->memory, 0xee, w->bytes + 2 * GUARD);
    w->request = (heft_read_request){.tensor = i,
                                     .rank = info->rank,
                                     .dtype = to,
                                     .start = w->start,
                                     .stop = w->stop,
                                     .dst = w->memory + GUARD,
                                     .cap = w->bytes};
}

static void check_filled(const heft_tensor_info *info, const struct wanted *w)
{
    for (size_t k = 0; k < GUARD; k++) {
        if (w->memory[k] != 0xee || w->memory[GUARD + w->bytes + k] != 0xee) {
            fail_msg("%s: bytes beside the destination were written", info->name);
        }
    }
    if (w->good && memcmp(w->memory + GUARD, w->expected, w->bytes) != 0) {
        char shape[HEFT__SHAPE_TEXT], start[HEFT__SHAPE_TEXT], stop[HEFT__SHAPE_TEXT];
        fail_msg("%s: %s%s from %s to %s as %s differs", info->name, heft_dtype_name(info->dtype),
                 heft__shape_text(info->shape, info->rank, shape),
                 heft__shape_text(w->start, info->rank, start),
                 heft__shape_text(w->stop, info->rank, stop), heft_dtype_name(w->request.dtype));
    }
    for (size_t k = 0; k < w->bytes && !w->good; k++) {
        assert_int_equal(w->memory[GUARD + k], 0xee);
    }
}

static void free_wanted(struct wanted *w)
{
    free(w->expected);
    free(w->memory);
}

/* Random slices of every tensor, one by one and then all that are good at once, in random order. */
static void check_checkpoint(const heft_checkpoint *ckpt, size_t rounds, unsigned *seed)
{
    const size_t count = heft_checkpoint_count(ckpt), most = count * rounds;
    struct wanted *all = calloc(most ? most : 1, sizeof *all);
    heft_read_request *requests = calloc(most ? most : 1, sizeof *requests);
    size_t good = 0;
    heft_error err;
    for (size_t k = 0; k < most; k++) {
        const size_t i = k % count;
        make_wanted(ckpt, i, seed, &all[k]);
        const heft_status status = heft_checkpoint_read_slice(ckpt, &all[k].request, &err);
        test_expect_status(status, all[k].good ? HEFT_OK : HEFT_INVALID_ARG, &err,
                           heft_checkpoint_info(ckpt, i)->name);
        check_filled(heft_checkpoint_info(ckpt, i), &all[k]);
        if (all[k].good) {
            memset(all[k].memory, 0xee, all[k].bytes + 2 * GUARD);
            const size_t at = below(seed, (uint32_t)++good);
            requests[good - 1] = requests[at];
            requests[at] = all[k].request;
        }
    }
    test_expect_status(heft_checkpoint_read_many(ckpt, requests, good, &err), HEFT_OK, &err,
                       "many");
    for (size_t k = 0; k < most; k++) {
        check_filled(heft_checkpoint_info(ckpt, k % count), &all[k]);
        free_wanted(&all[k]);
    }
    free(all);
    free(requests);
}

/* ---- made-up files ----------------------------------------------------------------------------- */
#define STORAGE_BYTES 6000
#define FAKES 8

/* One file of two storages in memory, the second one deflated, and random tensors on them. */
struct fake {
    uint8_t bytes[3 * STORAGE_BYTES];
    heft__file_storage storages[2];
    heft__file file;
    heft__file_tensor tensors[FAKES];
    uint64_t shapes[FAKES][RANK];
    int64_t strides[FAKES][RANK];
    const heft__file_tensor *entries[FAKES];
    heft_tensor_info infos[FAKES];
    heft__checkpoint_file slot;
    heft_checkpoint ckpt;
};

static void deflate_storage(struct fake *fake, const uint8_t *raw)
{
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (uint8_t *)(uintptr_t)raw;
    z.avail_in = STORAGE_BYTES;
    z.next_out = fake->bytes + STORAGE_BYTES;
    z.avail_out = 2 * STORAGE_BYTES;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    fake->storages[1] = (heft__file_storage){.offset = STORAGE_BYTES,
                                             .stored_bytes = z.total_out,
                                             .bytes = STORAGE_BYTES,
                                             .deflated = true};
    deflateEnd(&z);
}

/* A shape, and strides for it unless it is row by row; the whole lies in a storage. */
static void make_fake_tensor(struct fake *fake, size_t i, unsigned *seed)
{
    heft__file_tensor *tensor = &fake->tensors[i];
    const heft_dtype dtype = (heft_dtype)(1 + below(seed, HEFT_DTYPE_COUNT - 1));
    const unsigned bits = heft_dtype_bits(dtype);
    const uint64_t most = (uint64_t)(STORAGE_BYTES - 64) * 8 / bits;
    const bool strided = bits % 8 == 0 && below(seed, 2);
    uint64_t reach = 0, elems = 1;
    *tensor = (heft__file_tensor){.name = "t", .dtype = dtype, .storage = below(seed, 2)};
    tensor->rank = bits % 8 ? 1 + below(seed, RANK - 1) : below(seed, RANK);
    for (uint32_t d = tensor->rank; d-- > 0;) {
        uint64_t size = below(seed, 20) == 0 ? 0 : 1 + below(seed, d % 2 ? 12 : 30);
        const uint64_t stride = below(seed, 8) == 0 ? below(seed, 200) : elems + below(seed, 3);
        if (elems * (size ? size : 1) > most / 5 || reach + size * stride > most / 2) {
            size = 1;
        }
        fake->shapes[i][d] = size;
        fake->strides[i][d] = (int64_t)stride;
        reach += (size ? size - 1 : 0) * stride;
        elems *= size ? size : 1;
    }
    if (bits % 8) { /* whole bytes: the first dimension makes up for it */
        fake->shapes[i][0] = (fake->shapes[i][0] + 3) / 4 * 4;
    }
    tensor->shape = fake->shapes[i];
    assert_true(heft__shape_bytes(dtype, tensor->shape, tensor->rank, &tensor->size_bytes));
    tensor->strides = strided && tensor->size_bytes ? fake->strides[i] : NULL;
    tensor->start = bits % 8 ? below(seed, 32) : (uint64_t)below(seed, 4) * bits / 8;
    tensor->conj = heft__dtype_is_complex(dtype) && below(seed, 2);
    tensor->neg = (heft__dtype_is_complex(dtype) || heft_dtype_is_floating(dtype)) &&
                  bits % 8 == 0 && below(seed, 4) == 0;
    assert_true(tensor->start + (tensor->strides ? (reach + 1) * bits / 8 : tensor->size_bytes) <=
                STORAGE_BYTES);
    fake->entries[i] = tensor;
    fake->infos[i] = (heft_tensor_info){.name = tensor->name,
                                        .dtype = dtype,
                                        .rank = tensor->rank,
                                        .shape = tensor->shape,
                                        .size_bytes = tensor->size_bytes,
                                        .storage = tensor->storage};
}

static void make_fake(struct fake *fake, heft_ctx *on, unsigned *seed)
{
    static uint8_t raw[STORAGE_BYTES];
    heft_error err;
    *fake = (struct fake){
        .ckpt = {.ctx = on,
                 .files = &fake->slot,
                 .file_count = 1,
                 .infos = fake->infos,
                 .entries = fake->entries,
                 .count = FAKES},
        .slot = {.info = {.path = "memory"},             .file = &fake->file                              },
        .file = {
                 .storages = fake->storages, .storage_count = 2, .big_endian = below(seed, 3) == 0}
    };
    for (size_t k = 0; k < STORAGE_BYTES; k++) {
        fake->bytes[k] = (uint8_t)(rand_r(seed) >> 7);
        raw[k] = (uint8_t)(rand_r(seed) >> 7);
    }
    fake->storages[0] = (heft__file_storage){.bytes = STORAGE_BYTES, .stored_bytes = STORAGE_BYTES};
    deflate_storage(fake, raw);
    assert_int_equal(heft__input_from_bytes(on, "memory", fake->bytes, sizeof fake->bytes,
                                            &fake->file.source, &err),
                     HEFT_OK);
    for (size_t i = 0; i < FAKES; i++) {
        make_fake_tensor(fake, i, seed);
    }
}

static void random_tensors_of_every_kind(void **state)
{
    static struct fake fake;
    unsigned seed = 11;
    (void)state;
    for (int round = 0; round < 400; round++) {
        make_fake(&fake, ctx, &seed);
        check_checkpoint(&fake.ckpt, 4, &seed);
        heft__input_unref(fake.file.source);
    }
}

/* ---- golden files ------------------------------------------------------------------------------ */
static size_t check_folder(const char *path, unsigned *seed)
{
    size_t files = 0;
    DIR *all = opendir(path);
    assert_non_null(all);
    for (struct dirent *e = readdir(all); e; e = readdir(all)) {
        const char *end = strrchr(e->d_name, '.');
        char name[1024];
        heft_checkpoint *ckpt = NULL;
        heft_error err;
        if (!end || (strcmp(end, ".pt") != 0 && strcmp(end, ".tar") != 0 &&
                     strcmp(end, ".safetensors") != 0)) {
            continue;
        }
        snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        if (heft_checkpoint_open(ctx, name, NULL, &ckpt, &err) == HEFT_OK) {
            check_checkpoint(ckpt, 12, seed);
            heft_checkpoint_close(ckpt);
            files++;
        }
    }
    closedir(all);
    return files;
}

static void golden_files_of_every_format(void **state)
{
    unsigned seed = 5;
    (void)state;
    assert_true(check_folder(HEFT_TEST_DATA "/formats", &seed) > 40);
    assert_true(check_folder(HEFT_TEST_DATA "/safetensors/valid", &seed) > 10);
}

/* ---- a tensor of many boxes -------------------------------------------------------------------- */
#define ROWS 6000
#define COLUMNS 4000

static uint32_t element(uint64_t row, uint64_t column)
{
    const uint32_t at = (uint32_t)(row * COLUMNS + column);
    return at * 2654435761u ^ at >> 9;
}

/* 96 MB of numbers that are a function of their place. */
static void write_large(char path[600])
{
    char header[128] = "";
    snprintf(path, 600, "%s/large.safetensors", folder);
    if (access(path, F_OK) == 0) {
        return;
    }
    uint32_t *row = malloc(COLUMNS * sizeof *row);
    FILE *file = fopen(path, "wb");
    assert_true(row && file);
    const int text =
        snprintf(header + 8, sizeof header - 8,
                 "{\"a\":{\"dtype\":\"U32\",\"shape\":[%d,%d],\"data_offsets\":[0,%d]}}   ", ROWS,
                 COLUMNS, ROWS * COLUMNS * 4);
    heft__put_le64((uint8_t *)header, (uint64_t)text);
    assert_int_equal(fwrite(header, 1, 8 + (size_t)text, file), 8 + (size_t)text);
    for (uint64_t r = 0; r < ROWS; r++) {
        for (uint64_t c = 0; c < COLUMNS; c++) {
            row[c] = element(r, c);
        }
        assert_int_equal(fwrite(row, sizeof *row, COLUMNS, file), COLUMNS);
    }
    assert_int_equal(fclose(file), 0);
    free(row);
}

/* Bytes that this process has read by system calls so far. */
static uint64_t bytes_read(void)
{
    unsigned long long bytes = 0;
    FILE *io = fopen("/proc/self/io", "r");
    assert_non_null(io);
    assert_int_equal(fscanf(io, "rchar: %llu", &bytes), 1);
    fclose(io);
    return bytes;
}

static const struct {
    const char *name;
    uint64_t start[2], stop[2];
    double most; /* bytes that are read, in those of the slice */
} large_rows[] = {
    {"all_of_it",          {0, 0},       {ROWS, COLUMNS},     1.0},
    {"some_rows",          {17, 0},      {5000, COLUMNS},     1.0},
    {"one_row",            {4711, 0},    {4712, COLUMNS},     1.0},
    {"left_half",          {0, 0},       {ROWS, COLUMNS / 2}, 1.0},
    {"all_but_one_column", {0, 1},       {ROWS, COLUMNS},     1.1},
    {"narrow_columns",     {0, 100},     {ROWS, 130},         1.0},
    {"one_column",         {0, 3999},    {ROWS, 4000},        1.0},
    {"middle",             {1000, 1000}, {5000, 3100},        1.0},
    {"gaps_below_a_page",  {0, 0},       {ROWS, 3100},        1.3},
    {"one_element",        {5999, 3999}, {6000, 4000},        1.0},
    {"nothing",            {3, 3},       {3, 10},             0.0},
};

static void large_slices_read_little_more_than_they_need(void **state)
{
    char path[600];
    heft_error err;
    heft_checkpoint *ckpt = NULL;
    (void)state;
    write_large(path);
    assert_int_equal(heft_checkpoint_open(ctx, path, NULL, &ckpt, &err), HEFT_OK);
    for (size_t i = 0; i < COUNT(large_rows); i++) {
        const uint64_t *start = large_rows[i].start, *stop = large_rows[i].stop;
        const uint64_t rows = stop[0] - start[0], columns = stop[1] - start[1];
        const size_t bytes = (size_t)(rows * columns * 4);
        uint32_t *found = malloc(bytes + 4);
        const heft_read_request request = {
            .rank = 2, .start = start, .stop = stop, .dst = found, .cap = bytes};
        const uint64_t before = bytes_read();
        test_expect_status(heft_checkpoint_read_slice(ckpt, &request, &err), HEFT_OK, &err,
                           large_rows[i].name);
        const uint64_t read = bytes_read() - before;
        if ((double)read > large_rows[i].most * (double)bytes + 4096) { /* /proc's text */
            fail_msg("%s: %llu bytes read for %zu", large_rows[i].name, (unsigned long long)read,
                     bytes);
        }
        for (uint64_t k = 0; k < rows * columns; k++) {
            if (found[k] != element(start[0] + k / columns, start[1] + k % columns)) {
                fail_msg("%s: element %llu differs", large_rows[i].name, (unsigned long long)k);
            }
        }
        free(found);
    }
    heft_checkpoint_close(ckpt);
}

/* The staging buffer and little more, whatever is read. */
static void memory_is_bounded(void **state)
{
    char path[600];
    heft_error err;
    heft_checkpoint *ckpt = NULL;
    test_heap heap = {.fail_at = -1};
    heft_ctx *own = test_ctx_new(&heap);
    uint32_t *found = malloc((size_t)ROWS * COLUMNS * 4);
    (void)state;
    write_large(path);
    assert_int_equal(heft_checkpoint_open(own, path, NULL, &ckpt, &err), HEFT_OK);
    for (size_t i = 0; i < COUNT(large_rows); i++) {
        const heft_read_request request = {.rank = 2,
                                           .start = large_rows[i].start,
                                           .stop = large_rows[i].stop,
                                           .dst = found,
                                           .cap = (uint64_t)ROWS * COLUMNS * 4};
        const uint64_t before = heap.bytes;
        heap.peak = heap.bytes;
        assert_int_equal(heft_checkpoint_read_slice(ckpt, &request, &err), HEFT_OK);
        assert_int_equal(heap.bytes, before);
        assert_true(heap.peak - before <= (uint64_t)1 << 20);
    }
    heft_checkpoint_close(ckpt);
    heft_ctx_free(own);
    free(found);
}

/* ---- what is refused --------------------------------------------------------------------------- */
static const char small_header[] =
    "{\"m\":{\"dtype\":\"F32\",\"shape\":[3,4],\"data_offsets\":[0,48]},"
    "\"f4\":{\"dtype\":\"F4\",\"shape\":[3,4],\"data_offsets\":[48,54]},"
    "\"odd\":{\"dtype\":\"F4\",\"shape\":[2,3],\"data_offsets\":[54,57]},"
    "\"f6\":{\"dtype\":\"F6_E2M3\",\"shape\":[8],\"data_offsets\":[57,63]},"
    "\"i\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[63,71]},"
    "\"s\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[71,73]}}";

static heft_checkpoint *open_small(heft_ctx *on, char path[600])
{
    char bytes[8 + sizeof small_header + 73];
    heft_checkpoint *ckpt = NULL;
    heft_error err;
    const size_t text = sizeof small_header - 1;
    heft__put_le64((uint8_t *)bytes, text);
    memcpy(bytes + 8, small_header, text);
    for (size_t i = 0; i < 73; i++) {
        bytes[8 + text + i] = (char)(i * 37 + 1);
    }
    snprintf(path, 600, "%s/small.safetensors", folder);
    test_write_file(folder, "small.safetensors", bytes, 8 + text + 73);
    test_expect_status(heft_checkpoint_open(on, path, NULL, &ckpt, &err), HEFT_OK, &err, "small");
    return ckpt;
}

static void requests_are_checked(void **state)
{
    static const struct {
        const char *name, *tensor;
        uint32_t rank;
        bool has_start, has_stop;
        uint64_t start[2], stop[2];
        heft_dtype dtype;
        uint64_t cap;
        const char *words; /* NULL: it is good */
    } rows[] = {
        {"whole",             "m",   0, false, false, {0, 0}, {0, 0}, HEFT_DTYPE_NONE, 48, NULL},
        {"only_start",        "m",   2, true,  false, {1, 2}, {0, 0}, HEFT_DTYPE_NONE, 16, NULL},
        {"only_stop",         "m",   2, false, true,  {0, 0}, {1, 2}, HEFT_DTYPE_NONE, 8,  NULL},
        {"cast",              "m",   2, false, true,  {0, 0}, {1, 2}, HEFT_DTYPE_BF16, 4,  NULL},
        {"empty",             "m",   2, true,  true,  {3, 0}, {3, 4}, HEFT_DTYPE_NONE, 0,  NULL},
        {"scalar",            "s",   0, true,  true,  {0, 0}, {0, 0}, HEFT_DTYPE_F64,  8,  NULL},
        {"rank_too_low",
         "m",                        1,
         true,                                 true,
         {0, 0},
         {1, 1},
         HEFT_DTYPE_NONE,                                                              48,
         "the slice has rank 1, the tensor has rank 2"                                         },
        {"rank_too_high",
         "s",                        1,
         true,                                 true,
         {0, 0},
         {1, 1},
         HEFT_DTYPE_NONE,                                                              48,
         "the slice has rank 1, the tensor has rank 0"                                         },
        {"stops_behind_end",
         "m",                        2,
         true,                                 true,
         {0, 0},
         {3, 5},
         HEFT_DTYPE_NONE,                                                              99,
         "dimension 1: the slice stops at 5, the tensor has 4"                                 },
        {"stops_far_behind",
         "m",                        2,
         true,                                 true,
         {0, 0},
         {UINT64_MAX, 4},
         HEFT_DTYPE_NONE,                                                              99,
         "dimension 0: the slice stops at 18446744073709551615, the tensor has 3"              },
        {"starts_behind_end",
         "m",                        2,
         true,                                 false,
         {4, 0},
         {0, 0},
         HEFT_DTYPE_NONE,                                                              99,
         "dimension 0: the slice starts at 4 and stops at 3"                                   },
        {"starts_after_stop",
         "m",                        2,
         true,                                 true,
         {0, 3},
         {3, 2},
         HEFT_DTYPE_NONE,                                                              99,
         "dimension 1: the slice starts at 3 and stops at 2"                                   },
        {"cap_too_small",
         "m",                        2,
         true,                                 true,
         {0, 1},
         {3, 4},
         HEFT_DTYPE_NONE,                                                              35,
         "the buffer has 35 bytes, 36 are needed"                                              },
        {"cap_of_a_cast",
         "m",                        2,
         true,                                 true,
         {0, 1},
         {3, 4},
         HEFT_DTYPE_F64,                                                               71,
         "the buffer has 71 bytes, 72 are needed"                                              },
        {"cast_not_known",
         "i",                        0,
         false,                                false,
         {0, 0},
         {0, 0},
         HEFT_DTYPE_F4_E2M1FN_X2,                                                      99,
         "int32 cannot be cast to float4_e2m1fn_x2: the results would share bytes"             },
        {"pairs",             "f4",  2, true,  true,  {1, 2}, {3, 4}, HEFT_DTYPE_NONE, 2,  NULL},
        {"pairs_split",
         "f4",                       2,
         true,                                 true,
         {0, 1},
         {3, 3},
         HEFT_DTYPE_NONE,                                                              99,
         "dimension 1: 1 to 3 of float4_e2m1fn_x2"                                             },
        {"pairs_split_end",
         "f4",                       2,
         true,                                 true,
         {0, 0},
         {2, 3},
         HEFT_DTYPE_NONE,                                                              99,
         "dimension 1: 0 to 3 of float4_e2m1fn_x2"                                             },
        {"odd_rows_whole",    "odd", 2, true,  true,  {0, 0}, {2, 3}, HEFT_DTYPE_NONE, 3,  NULL},
        {"odd_row_split",
         "odd",                      2,
         true,                                 true,
         {1, 0},
         {2, 3},
         HEFT_DTYPE_NONE,                                                              99,
         "does not end on a byte boundary"                                                     },
        {"odd_rows_cut",
         "odd",                      2,
         true,                                 true,
         {0, 0},
         {2, 2},
         HEFT_DTYPE_NONE,                                                              99,
         "dimension 0: 0 to 2 of float4_e2m1fn_x2"                                             },
        {"six_bits",          "f6",  1, true,  true,  {4, 0}, {8, 0}, HEFT_DTYPE_NONE, 3,  NULL},
        {"six_bits_split",
         "f6",                       1,
         true,                                 true,
         {2, 0},
         {6, 0},
         HEFT_DTYPE_NONE,                                                              99,
         "dimension 0: 2 to 6 of float6_e2m3"                                                  },
    };
    char path[600];
    heft_checkpoint *ckpt = open_small(ctx, path);
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint8_t bytes[128];
        heft_error err = {0};
        memset(bytes, 0xee, sizeof bytes);
        const heft_read_request request = {.tensor = heft_checkpoint_find(ckpt, rows[i].tensor),
                                           .rank = rows[i].rank,
                                           .dtype = rows[i].dtype,
                                           .start = rows[i].has_start ? rows[i].start : NULL,
                                           .stop = rows[i].has_stop ? rows[i].stop : NULL,
                                           .dst = bytes,
                                           .cap = rows[i].cap};
        const heft_status status = heft_checkpoint_read_slice(ckpt, &request, &err);
        test_expect_status(status, rows[i].words ? HEFT_INVALID_ARG : HEFT_OK, &err, rows[i].name);
        if (rows[i].words) {
            if (!strstr(err.message, rows[i].words)) {
                fail_msg("%s: %s", rows[i].name, err.message);
            }
            assert_string_equal(err.item, rows[i].tensor);
            assert_string_equal(err.path, path);
        }
        for (size_t k = rows[i].words ? 0 : (size_t)rows[i].cap; k < sizeof bytes; k++) {
            assert_int_equal(bytes[k], 0xee);
        }
    }
    heft_checkpoint_close(ckpt);
}

static void one_bad_request_among_many_writes_nothing(void **state)
{
    char path[600];
    heft_checkpoint *ckpt = open_small(ctx, path);
    uint8_t bytes[48];
    heft_error err = {0};
    (void)state;
    memset(bytes, 0xee, sizeof bytes);
    const heft_read_request requests[] = {
        {.tensor = 0,                           .dst = bytes, .cap = sizeof bytes},
        {.tensor = heft_checkpoint_count(ckpt), .dst = bytes, .cap = sizeof bytes},
    };
    assert_int_equal(heft_checkpoint_read_many(ckpt, requests, 2, &err), HEFT_INVALID_ARG);
    assert_non_null(strstr(err.message, "tensor index 6 is out of range, the checkpoint has 6"));
    for (size_t k = 0; k < sizeof bytes; k++) {
        assert_int_equal(bytes[k], 0xee);
    }
    const heft_read_request nowhere = {.tensor = 0, .cap = 48};
    assert_int_equal(heft_checkpoint_read_slice(ckpt, &nowhere, NULL), HEFT_INVALID_ARG);
    assert_int_equal(heft_checkpoint_read_slice(ckpt, NULL, NULL), HEFT_INVALID_ARG);
    assert_int_equal(heft_checkpoint_read_many(NULL, requests, 1, NULL), HEFT_INVALID_ARG);
    assert_int_equal(heft_checkpoint_read_many(ckpt, NULL, 1, NULL), HEFT_INVALID_ARG);
    assert_int_equal(heft_checkpoint_read_many(ckpt, NULL, 0, NULL), HEFT_OK);
    heft_checkpoint_close(ckpt);
}

/* ---- what ends early --------------------------------------------------------------------------- */
static void a_file_that_shrinks_says_where(void **state)
{
    char path[600];
    heft_checkpoint *ckpt = open_small(ctx, path);
    uint8_t bytes[96];
    heft_error err = {0};
    (void)state;
    const off_t end = (off_t)(8 + sizeof small_header - 1 + 20);
    assert_int_equal(truncate(path, end), 0);
    const heft_read_request request = {
        .tensor = 0, .dtype = HEFT_DTYPE_F64, .dst = bytes, .cap = sizeof bytes};
    assert_int_equal(heft_checkpoint_read_slice(ckpt, &request, &err), HEFT_IO);
    assert_int_equal(err.offset, end);
    assert_string_equal(err.item, "m");
    heft_checkpoint_close(ckpt);
}

static bool stop_at_once(void *user, const heft_progress *progress)
{
    size_t *calls = user;
    assert_string_equal(progress->what, "reading");
    assert_true(progress->done_bytes <= progress->total_bytes);
    return ++*calls < 2;
}

static void progress_can_cancel(void **state)
{
    size_t calls = 0;
    char path[600];
    heft_error err;
    heft_checkpoint *ckpt = NULL;
    uint32_t *found = malloc((size_t)ROWS * COLUMNS * 4);
    heft_ctx *own = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .threads = 1,
                                               .progress = stop_at_once, .progress_user = &calls));
    (void)state;
    write_large(path);
    assert_int_equal(heft_checkpoint_open(own, path, NULL, &ckpt, &err), HEFT_OK);
    calls = 0;
    const heft_read_request request = {.dst = found, .cap = (uint64_t)ROWS * COLUMNS * 4};
    assert_int_equal(heft_checkpoint_read_slice(ckpt, &request, &err), HEFT_CANCELLED);
    assert_int_equal(calls, 2);
    heft_checkpoint_close(ckpt);
    heft_ctx_free(own);
    free(found);
}

static heft_status read_every_kind(heft_ctx *on, void *user, heft_error *err)
{
    static struct fake fake;
    static uint8_t memory[FAKES][STORAGE_BYTES * 8];
    heft_read_request requests[FAKES];
    unsigned seed = *(unsigned *)user;
    heft_status status = HEFT_OK;
    make_fake(&fake, ctx, &seed);
    fake.ckpt.ctx = on; /* only reading is to fail */
    for (size_t i = 0; i < FAKES; i++) {
        const heft_dtype dtype = fake.tensors[i].dtype;
        requests[i] = (heft_read_request){
            .tensor = i,
            .dtype = heft_cast_known(dtype, HEFT_DTYPE_F32) ? HEFT_DTYPE_F32 : HEFT_DTYPE_NONE,
            .dst = memory[i],
            .cap = sizeof memory[i]};
    }
    status = heft_checkpoint_read_many(&fake.ckpt, requests, FAKES, err);
    heft__input_unref(fake.file.source);
    return status;
}

static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed < 12; seed++) {
        test_oom_sweep(read_every_kind, &seed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_tensors_of_every_kind),
        cmocka_unit_test(golden_files_of_every_format),
        cmocka_unit_test(large_slices_read_little_more_than_they_need),
        cmocka_unit_test(memory_is_bounded),
        cmocka_unit_test(requests_are_checked),
        cmocka_unit_test(one_bad_request_among_many_writes_nothing),
        cmocka_unit_test(a_file_that_shrinks_says_where),
        cmocka_unit_test(progress_can_cancel),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    test_folder_make(folder);
    ctx = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .threads = 4));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    test_folder_remove(folder);
    return failed;
}
