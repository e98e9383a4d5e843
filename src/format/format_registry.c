/* format_registry.c - which format a file has, told by its first bytes; opening and closing.
 *
 *   50 4B 03 04 | 50 4B 05 06             zip: torch
 *   80 pp [95 + 8 bytes] 8A 0A + magic    torch before 1.6
 *   "ustar" at 257, or a right checksum   tar: torch 0.1
 *   u64 N | '{' or white space            safetensors; any content of a file so called
 *
 * Names of files decide nothing but that a file called .safetensors which looks like nothing else
 * is read as one, so that its error says what is wrong with it. Source: docs/formats/. */
#include "format/format.h"

#define HEAD_BYTES 512
#define TAR_BLOCK 512

static bool is_zip(const uint8_t *head, size_t length)
{
    return length >= 4 && (memcmp(head, "PK\3\4", 4) == 0 || memcmp(head, "PK\5\6", 4) == 0);
}

static bool is_legacy(const uint8_t *head, size_t length)
{
    static const uint8_t magic[] = {0x8A, 0x0A, 0x6C, 0xFC, 0x9C, 0x46, 0xF9,
                                    0x20, 0x6A, 0xA8, 0x50, 0x19, '.'};
    if (length < 2 || head[0] != 0x80) {
        return false;
    }
    size_t at = length > 2 && head[2] == 0x95 ? 11 : 2; /* behind a frame's opcode and length */
    return length >= at + sizeof magic && memcmp(head + at, magic, sizeof magic) == 0;
}

static bool is_tar(const uint8_t *head, size_t length)
{
    unsigned sum = 0, said = 0;
    if (length < TAR_BLOCK || head[0] == 0) {
        return false;
    }
    for (size_t i = 0; i < TAR_BLOCK; i++) {
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

static bool is_safetensors(const uint8_t *head, size_t length)
{
    return length > 8 && memchr("{ \t\n\r", head[8], 5) && heft__le64(head) < UINT64_C(1) << 48 &&
           memcmp(head, "GGUF", 4) != 0;
}

static const struct format {
    bool (*sniff)(const uint8_t *head, size_t length);
    heft__file_parse_fn parse;
    heft_format format;
} formats[] = {
    {is_zip,         heft__torch_zip_parse,    HEFT_FORMAT_TORCH       },
    {is_legacy,      heft__torch_legacy_parse, HEFT_FORMAT_TORCH_LEGACY},
    {is_tar,         heft__torch_tar_parse,    HEFT_FORMAT_TORCH_TAR   },
    {is_safetensors, heft__safetensors_parse,  HEFT_FORMAT_SAFETENSORS },
};

/* What people have in place of a checkpoint. */
static const struct stranger {
    const char *start, *what;
} strangers[] = {
    {"GGUF",                         "a GGUF file"                                    },
    {"version https://git-lfs",      "a Git LFS pointer, not the file it stands for"  },
    {"PYTORCH1",                     "a preview of PyTorch's container"               },
    {"L119547037146038801333356L\n", "a PyTorch file with a pickle of protocol 0 or 1"},
    {"<!DOCTYPE",                    "a web page"                                     },
    {"<html",                        "a web page"                                     },
    {"\x89HDF",                      "an HDF5 file"                                   },
    {"\x93NUMPY",                    "a NumPy file"                                   },
    {"\x1f\x8b",                     "compressed by gzip"                             },
    {"{",                            "JSON"                                           },
    {"\x80",                         "a pickle that torch.save did not write"         },
};

static heft_status unknown(const uint8_t *head, size_t length, heft_error *err)
{
    if (length == 0) {
        return heft__fail_at(err, HEFT_FORMAT, 0, "the file is empty: 0 bytes");
    }
    for (size_t i = 0; i < sizeof strangers / sizeof strangers[0]; i++) {
        const size_t start = strlen(strangers[i].start);
        if (length >= start && memcmp(head, strangers[i].start, start) == 0) {
            return heft__fail_at(err, HEFT_UNSUPPORTED, 0, "no checkpoint but %s",
                                 strangers[i].what);
        }
    }
    char shown[3 * 8 + 1] = "";
    for (size_t i = 0; i < length && i < 8; i++) {
        snprintf(shown + 3 * i - (i > 0), 4, "%s%02x", i ? " " : "", head[i]);
    }
    return heft__fail_at(err, HEFT_UNSUPPORTED, 0, "unknown content, it begins with %s", shown);
}

static bool is_called_safetensors(const char *path)
{
    static const char ending[] = ".safetensors";
    const size_t length = strlen(path), tail = sizeof ending - 1;
    return length > tail && strcmp(path + length - tail, ending) == 0;
}

static heft_status parse_any(heft_ctx *ctx, heft__file *file, heft_error *err)
{
    uint8_t head[HEAD_BYTES];
    const uint64_t size = heft__input_size(file->source);
    const size_t length = size < sizeof head ? (size_t)size : sizeof head;
    heft_status status = heft__input_read(file->source, 0, head, length, err);
    if (status != HEFT_OK) {
        return status;
    }
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        if (formats[i].sniff(head, length)) {
            file->format = formats[i].format;
            return formats[i].parse(ctx, file, err);
        }
    }
    if (is_called_safetensors(heft__input_path(file->source))) {
        file->format = HEFT_FORMAT_SAFETENSORS;
        return heft__safetensors_parse(ctx, file, err);
    }
    return unknown(head, length, err);
}

heft_status heft__file_open(heft_ctx *ctx, heft__input *source, heft__file **out, heft_error *err)
{
    heft__file *file = heft__alloc_zero(ctx, 1, sizeof *file);
    if (!file) {
        return heft__add_path(heft__fail_nomem(err, sizeof *file), err, heft__input_path(source));
    }
    file->source = heft__input_ref(source);
    heft__arena_init(&file->arena, ctx);
    heft__warnings_init(&file->warnings, &file->arena);
    heft_status status = parse_any(ctx, file, err);
    if (status != HEFT_OK) {
        heft__file_close(ctx, file);
        return heft__add_path(status, err, heft__input_path(source));
    }
    *out = file;
    return HEFT_OK;
}

void heft__file_close(heft_ctx *ctx, heft__file *file)
{
    if (file) {
        heft__arena_fini(&file->arena);
        heft__input_unref(file->source);
        heft__free(ctx, file, sizeof *file);
    }
}
