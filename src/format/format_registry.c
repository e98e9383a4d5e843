/* format_registry.c - which parser reads a file: by its first bytes, never by its name. A format is
 * one line here.
 * Source: docs/formats/README.md. */
#include "format/format.h"

struct head {
    const uint8_t *bytes;
    size_t length;
    uint64_t size; /* of the file */
};

static bool is_zip(const struct head *h)
{
    return h->length >= 4 && memcmp(h->bytes, "PK\3\4", 4) == 0;
}

/* PROTO, a FRAME for protocols 4 and 5, and the magic number as LONG1. */
static bool is_legacy(const struct head *h)
{
    static const uint8_t magic[] = {0x8A, 0x0A, 0x6C, 0xFC, 0x9C, 0x46, 0xF9,
                                    0x20, 0x6A, 0xA8, 0x50, 0x19, '.'};
    size_t at = h->length > 2 && h->bytes[0] == 0x80 && h->bytes[1] >= 4 ? 11 : 2;
    return h->length >= at + sizeof magic && h->bytes[0] == 0x80 &&
           memcmp(h->bytes + at, magic, sizeof magic) == 0;
}

/* A length that the file bears out, and a brace behind it; or a file too short to be anything else.
 */
static bool is_safetensors(const struct head *h)
{
    return h->length < 9 || h->bytes[8] == '{' || h->bytes[8] == ' ' || h->bytes[8] == '\n' ||
           h->bytes[8] == '\t' || h->bytes[8] == '\r';
}

static const struct {
    heft_format format;
    bool (*sniff)(const struct head *head);
    heft__file_parse_fn parse;
} formats[] = {
    {HEFT_FORMAT_TORCH,        is_zip,         heft__torch_zip_parse   },
    {HEFT_FORMAT_TORCH_LEGACY, is_legacy,      heft__torch_legacy_parse},
    {HEFT_FORMAT_SAFETENSORS,  is_safetensors, heft__safetensors_parse },
};

/* Contents that people do put into such files, by name. */
static heft_status unknown(const struct head *h, const char *path, heft_error *err)
{
    static const struct {
        const char *bytes;
        size_t length;
        const char *name;
    } known[] = {
        {"GGUF",                    4,  "a GGUF file"                                          },
        {"version https://git-lfs", 23, "a git-lfs pointer: the file itself was not downloaded"},
        {"\x89HDF",                 4,  "an HDF5 file"                                         },
        {"<!DOCTYPE",               9,  "an HTML page"                                         },
        {"<html",                   5,  "an HTML page"                                         },
        {"\x1f\x8b",                2,  "a gzip file"                                          },
        {"PYTORCH1",                8,  "a preview archive of PyTorch"                         },
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (h->length >= known[i].length &&
            memcmp(h->bytes, known[i].bytes, known[i].length) == 0) {
            return heft__fail_at(err, HEFT_UNSUPPORTED, 0, "%s", known[i].name);
        }
    }
    size_t length = strlen(path);
    if (length > 12 && strcmp(path + length - 12, ".safetensors") == 0) {
        return HEFT_OK; /* its own parser says best what is wrong with it */
    }
    return heft__fail_at(err, HEFT_UNSUPPORTED, 0,
                         "no format that heft knows, the file begins with %02x %02x %02x %02x",
                         h->bytes[0], h->bytes[1], h->bytes[2], h->bytes[3]);
}

static heft_status pick(heft__file *file, heft__file_parse_fn *parse, heft_error *err)
{
    uint8_t bytes[64];
    struct head head = {.bytes = bytes, .size = heft__source_size(file->source)};
    head.length = head.size < sizeof bytes ? (size_t)head.size : sizeof bytes;
    heft_status status = heft__source_read(file->source, 0, bytes, head.length, err);
    for (size_t i = 0; status == HEFT_OK && i < sizeof formats / sizeof formats[0]; i++) {
        if (formats[i].sniff(&head)) {
            *parse = formats[i].parse;
            return HEFT_OK;
        }
    }
    *parse = heft__safetensors_parse;
    return status == HEFT_OK ? unknown(&head, heft__source_path(file->source), err) : status;
}

heft_status heft__file_open(heft_ctx *ctx, heft__source *source, heft__file **out, heft_error *err)
{
    heft__file_parse_fn parse = NULL;
    heft__file *file = heft__alloc_zero(ctx, 1, sizeof *file);
    if (!file) {
        return heft__fail_nomem(err, sizeof *file);
    }
    heft__arena_init(&file->arena, ctx);
    heft__warnings_init(&file->warnings, &file->arena);
    file->source = heft__source_ref(source);
    heft_status status = pick(file, &parse, err);
    if (status == HEFT_OK) {
        status = parse(ctx, file, err);
    }
    if (status == HEFT_OK) {
        *out = file;
    } else {
        heft__file_close(ctx, file);
    }
    return heft__add_path(status, err, heft__source_path(source));
}

void heft__file_close(heft_ctx *ctx, heft__file *file)
{
    if (file) {
        heft__source_unref(file->source);
        heft__arena_fini(&file->arena);
        heft__free(ctx, file, sizeof *file);
    }
}
