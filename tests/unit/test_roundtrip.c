/* Random valid checkpoints: the same tensors come out, whatever the format and the shards in between.
 *
 * The test writes the files without the library. Everything is derived from the number of the round,
 * which a failure prints. */
#include "support.h"
#include "support_model.h"

#include <heft/checkpoint.h>

#include <stdlib.h>
#include <sys/stat.h>

#define ROUNDS 60 /* a round takes a tenth of a second where files are flushed to a disk */
#define TENSORS_MOST 40
#define SHARDS_MOST 4
#define TEXT_MOST (128 << 10)

static heft_ctx *ctx;
static char folder[256];
static unsigned round_number;

/* ---- chance ---------------------------------------------------------------------------------- */
static uint64_t state;

static uint64_t draw(uint64_t below)
{
    state += 0x9E3779B97F4A7C15U; /* splitmix64 */
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return (z ^ (z >> 31)) % below;
}

/* ---- what is generated ----------------------------------------------------------------------- */
struct made {
    char name[400];
    heft_dtype dtype;
    uint32_t rank;
    uint64_t shape[5];
    size_t size;
    uint8_t *bytes; /* [size], malloced */
    size_t shard;
};

static struct made tensors[TENSORS_MOST];
static size_t tensor_count, shard_count;

/* Every dtype that both formats hold. */
static const struct {
    heft_dtype dtype;
    const char *safetensors;
} dtypes[] = {
    {HEFT_DTYPE_F64,         "F64"        },
    {HEFT_DTYPE_F32,         "F32"        },
    {HEFT_DTYPE_F16,         "F16"        },
    {HEFT_DTYPE_BF16,        "BF16"       },
    {HEFT_DTYPE_I64,         "I64"        },
    {HEFT_DTYPE_I32,         "I32"        },
    {HEFT_DTYPE_I16,         "I16"        },
    {HEFT_DTYPE_I8,          "I8"         },
    {HEFT_DTYPE_U8,          "U8"         },
    {HEFT_DTYPE_U16,         "U16"        },
    {HEFT_DTYPE_U32,         "U32"        },
    {HEFT_DTYPE_U64,         "U64"        },
    {HEFT_DTYPE_BOOL,        "BOOL"       },
    {HEFT_DTYPE_C64,         "C64"        },
    {HEFT_DTYPE_F8_E4M3FN,   "F8_E4M3"    },
    {HEFT_DTYPE_F8_E5M2,     "F8_E5M2"    },
    {HEFT_DTYPE_F8_E4M3FNUZ, "F8_E4M3FNUZ"},
    {HEFT_DTYPE_F8_E5M2FNUZ, "F8_E5M2FNUZ"},
    {HEFT_DTYPE_F8_E8M0FNU,  "F8_E8M0"    },
};
#define DTYPES (sizeof dtypes / sizeof dtypes[0])

static const char *const odd_names[] = {
    "layers.%zu.weight",
    "a name with spaces %zu",
    "caf\xc3\xa9.\xe5\xb1\x82.%zu",
    "quo\"ted\\%zu",
    "%zu",
    "..%zu..",
    "data/%zu/../x",
    "\xf0\x9f\xa4\x97.%zu",
    "tab\tand\nline.%zu",
};
#define ODD_NAMES (sizeof odd_names / sizeof odd_names[0])

static void make_name(struct made *tensor, size_t number)
{
    if (draw(12) == 0) { /* long: needs other opcodes in a pickle */
        memset(tensor->name, 'n', 300);
        snprintf(tensor->name + 300, sizeof tensor->name - 300, ".%zu", number);
        return;
    }
    /* formats of the table above, each with one %zu */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(tensor->name, sizeof tensor->name, odd_names[draw(ODD_NAMES)], number);
#pragma GCC diagnostic pop
}

static void make_tensor(struct made *tensor, size_t number)
{
    uint64_t elems = 1, bytes = 0;
    *tensor = (struct made){.dtype = dtypes[draw(DTYPES)].dtype, .rank = (uint32_t)draw(6)};
    make_name(tensor, number);
    for (uint32_t d = 0; d < tensor->rank; d++) {
        tensor->shape[d] = draw(20) == 0 ? 0 : 1 + draw(6);
        elems *= tensor->shape[d];
    }
    bytes = elems * heft_dtype_bits(tensor->dtype) / 8;
    tensor->size = (size_t)bytes;
    tensor->bytes = malloc(tensor->size + 1);
    assert_non_null(tensor->bytes);
    for (size_t i = 0; i < tensor->size; i++) {
        tensor->bytes[i] = (uint8_t)draw(tensor->dtype == HEFT_DTYPE_BOOL ? 2 : 256);
    }
    tensor->shard = (size_t)draw(shard_count);
}

static void make_checkpoint(void)
{
    state = round_number * 1000003U;
    shard_count = 1 + (size_t)draw(SHARDS_MOST);
    tensor_count = shard_count + (size_t)draw(TENSORS_MOST - SHARDS_MOST);
    for (size_t i = 0; i < tensor_count; i++) {
        make_tensor(&tensors[i], i);
        if (i < shard_count) { /* none stays empty */
            tensors[i].shard = i;
        }
    }
}

static void free_checkpoint(void)
{
    for (size_t i = 0; i < tensor_count; i++) {
        free(tensors[i].bytes);
    }
}

/* ---- writing it, by hand --------------------------------------------------------------------- */
static char text[TEXT_MOST];
static size_t text_length;

static void put(const char *part)
{
    size_t length = strlen(part);
    assert_true(text_length + length < sizeof text);
    memcpy(text + text_length, part, length + 1);
    text_length += length;
}

static void put_number(uint64_t number)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)number);
    put(digits);
}

/* A JSON string; now and then a letter is escaped that need not be. */
static void put_string(const char *value)
{
    put("\"");
    for (; *value; value++) {
        char piece[16] = {*value};
        if (*value == '"' || *value == '\\') {
            snprintf(piece, sizeof piece, "\\%c", *value);
        } else if ((unsigned char)*value < 0x20 || (*value == 'a' && draw(2))) {
            snprintf(piece, sizeof piece, "\\u%04x", (unsigned char)*value);
        }
        put(piece);
    }
    put("\"");
}

static void put_space(void)
{
    static const char *const spaces[] = {"", " ", "\n  ", "\t"};
    put(spaces[draw(4)]);
}

static const char *safetensors_name(heft_dtype dtype)
{
    size_t i = 0;
    while (dtypes[i].dtype != dtype) {
        i++;
    }
    return dtypes[i].safetensors;
}

static void put_entry(const struct made *tensor, size_t at)
{
    put_string(tensor->name);
    put_space();
    put(":{\"dtype\":\"");
    put(safetensors_name(tensor->dtype));
    put("\",\"shape\":[");
    for (uint32_t d = 0; d < tensor->rank; d++) {
        put(d ? "," : "");
        put_number(tensor->shape[d]);
    }
    put("],\"data_offsets\":[");
    put_number(at);
    put(",");
    put_number(at + tensor->size);
    put("]}");
}

static void shard_name(size_t shard, char name[64])
{
    if (shard_count == 1) {
        snprintf(name, 64, "model.safetensors");
    } else {
        snprintf(name, 64, "model-%05zu-of-%05zu.safetensors", shard + 1, shard_count);
    }
}

static void write_shard(const char *path, size_t shard)
{
    uint8_t head[8] = {0};
    size_t at = 0, entries = 0;
    char name[64], full[400];
    text_length = 0;
    put("{");
    if (draw(2)) {
        put("\"__metadata__\":{\"format\":\"pt\",\"note\":\"r\\u00e9sum\\u00e9\"}");
        entries++;
    }
    for (size_t i = 0; i < tensor_count; i++) {
        if (tensors[i].shard == shard) {
            put(entries++ ? "," : "");
            put_space();
            put_entry(&tensors[i], at);
            at += tensors[i].size;
        }
    }
    put("}");
    while (text_length % 8) {
        put(" ");
    }
    shard_name(shard, name);
    snprintf(full, sizeof full, "%s/%s", path, name);
    FILE *file = fopen(full, "wb");
    assert_non_null(file);
    heft__put_le64(head, text_length);
    bool whole = fwrite(head, 8, 1, file) == 1 && fwrite(text, text_length, 1, file) == 1;
    for (size_t i = 0; i < tensor_count; i++) {
        if (tensors[i].shard == shard && tensors[i].size > 0) {
            whole = whole && fwrite(tensors[i].bytes, tensors[i].size, 1, file) == 1;
        }
    }
    assert_int_equal(fclose(file), 0);
    assert_true(whole);
}

static void write_index(const char *path)
{
    uint64_t total = 0;
    char name[64];
    text_length = 0;
    put("{\"weight_map\":{");
    for (size_t i = 0; i < tensor_count; i++) {
        total += tensors[i].size;
        put(i ? "," : "");
        put_string(tensors[i].name);
        put(":");
        shard_name(tensors[i].shard, name);
        put_string(name);
    }
    put("},\"metadata\":{\"total_size\":");
    put_number(total);
    put("}}");
    test_write_file(path, "model.safetensors.index.json", text, text_length);
}

static void write_checkpoint(const char *path)
{
    for (size_t shard = 0; shard < shard_count; shard++) {
        write_shard(path, shard);
    }
    if (shard_count > 1) {
        write_index(path);
    }
}

/* ---- properties ------------------------------------------------------------------------------ */
#define EXPECT(holds, ...)                                                                         \
    do {                                                                                           \
        if (!(holds)) {                                                                            \
            fprintf(stderr, "round %u: ", round_number);                                           \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fail();                                                                                \
        }                                                                                          \
    } while (0)

static void expect_tensor(const heft_checkpoint *ckpt, const struct made *tensor, const char *path)
{
    uint8_t *bytes = malloc(tensor->size + 1);
    heft_error err;
    size_t at = heft_checkpoint_find(ckpt, tensor->name);
    const heft_tensor_info *info = heft_checkpoint_info(ckpt, at);
    assert_non_null(bytes);
    EXPECT(info, "%s: '%s' is not there", path, tensor->name);
    EXPECT(info->dtype == tensor->dtype && info->rank == tensor->rank &&
               info->size_bytes == tensor->size,
           "%s: '%s' has dtype %s, rank %u, %llu bytes", path, tensor->name,
           heft_dtype_name(info->dtype), info->rank, (unsigned long long)info->size_bytes);
    for (uint32_t d = 0; d < tensor->rank; d++) {
        EXPECT(info->shape[d] == tensor->shape[d], "%s: '%s': dimension %u", path, tensor->name, d);
    }
    EXPECT(heft_checkpoint_read(ckpt, at, bytes, tensor->size, &err) == HEFT_OK,
           "%s: '%s' cannot be read", path, tensor->name);
    EXPECT(memcmp(bytes, tensor->bytes, tensor->size) == 0, "%s: '%s' has other bytes", path,
           tensor->name);
    free(bytes);
}

/* No file has more than the limit, but for one tensor alone (empty ones do not count). */
static void expect_shards(const heft_checkpoint *ckpt, uint64_t limit, const char *path)
{
    for (size_t f = 0; heft_checkpoint_file(ckpt, f); f++) {
        uint64_t bytes = 0;
        size_t tensors_in_it = 0;
        for (size_t i = 0; i < heft_checkpoint_count(ckpt); i++) {
            const heft_tensor_info *info = heft_checkpoint_info(ckpt, i);
            if (info->file_index == f) {
                bytes += info->size_bytes;
                tensors_in_it += info->size_bytes > 0;
            }
        }
        EXPECT(bytes <= limit || tensors_in_it == 1, "%s: file %zu has %llu bytes, limit %llu",
               path, f, (unsigned long long)bytes, (unsigned long long)limit);
    }
}

static void expect_checkpoint(const char *path, uint64_t limit)
{
    heft_checkpoint *ckpt = NULL;
    heft_verify_report *report = NULL;
    heft_error err = {0};
    test_expect_status(heft_checkpoint_open(ctx, path, NULL, &ckpt, &err), HEFT_OK, &err, path);
    EXPECT(heft_checkpoint_count(ckpt) == tensor_count, "%s: %zu tensors, expected %zu", path,
           heft_checkpoint_count(ckpt), tensor_count);
    EXPECT(!heft_checkpoint_warning(ckpt, 0), "%s: %s", path, heft_checkpoint_warning(ckpt, 0));
    for (size_t i = 0; i < tensor_count; i++) {
        expect_tensor(ckpt, &tensors[i], path);
    }
    expect_shards(ckpt, limit, path);
    heft_checkpoint_close(ckpt);
    test_expect_status(test_verify(ctx, path, NULL, &report, &err), HEFT_OK, &err, path);
    for (size_t i = 0; i < report->problem_count; i++) { /* some tensors have no elements */
        EXPECT(strcmp(report->problems[i].kind, "empty_tensor") == 0, "%s: verify says %s", path,
               report->problems[i].message);
    }
    heft_verify_report_free(report);
}

static void convert(const char *src, const char *dst, heft_format format, uint64_t limit)
{
    const heft_convert_options options =
        HEFT_OPTIONS(heft_convert_options, .format = format, .max_shard_bytes = limit);
    heft_error err = {0};
    heft_status status = test_convert(ctx, src, dst, &options, NULL, &err);
    if (status != HEFT_OK) {
        fprintf(stderr, "round %u\n", round_number);
    }
    test_expect_status(status, HEFT_OK, &err, dst);
}

/* Two folders hold the same files. */
static void expect_same(const char *left, const char *right)
{
    char command[700];
    snprintf(command, sizeof command, "diff -r '%s' '%s' >/dev/null", left, right);
    EXPECT(system(command) == 0, "%s and %s differ", left, right);
}

static void one_round(void)
{
    static const uint64_t limits[] = {1, 64, 500, 4096, 1000000000};
    const uint64_t first = limits[draw(5)], second = limits[draw(5)];
    char source[300], bin[300], again[300], back[300];
    snprintf(source, sizeof source, "%s/source", folder);
    snprintf(bin, sizeof bin, "%s/bin", folder);
    snprintf(again, sizeof again, "%s/again", folder);
    snprintf(back, sizeof back, "%s/back", folder);
    assert_int_equal(mkdir(source, 0777), 0);
    write_checkpoint(source);
    expect_checkpoint(source, UINT64_MAX);
    convert(source, bin, HEFT_FORMAT_TORCH, first);
    expect_checkpoint(bin, first);
    convert(bin, back, HEFT_FORMAT_SAFETENSORS, second);
    expect_checkpoint(back, second);
    if (round_number % 8 == 0) {
        convert(source, again, HEFT_FORMAT_TORCH, first);
        expect_same(bin, again);
        test_folder_remove(again);
    }
    test_folder_remove(source);
    test_folder_remove(bin);
    test_folder_remove(back);
}

static void random_checkpoints_come_through(void **unused)
{
    (void)unused;
    for (round_number = 0; round_number < ROUNDS; round_number++) {
        make_checkpoint();
        one_round();
        free_checkpoint();
    }
    uint64_t live;
    heft_ctx_memory(ctx, &live, NULL);
    assert_int_equal(live, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_checkpoints_come_through),
    };
    const heft_ctx_options options =
        HEFT_OPTIONS(heft_ctx_options, .threads = 2, .staging_bytes = 4096);
    ctx = heft_ctx_new(&options);
    test_folder_make(folder);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    test_folder_remove(folder);
    heft_ctx_free(ctx);
    return failed;
}
