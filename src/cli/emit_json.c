/* emit_json.c - one JSON document in one line.
 *
 * Numbers are exact: 64-bit integers are written with all their digits. Strings are UTF-8; control
 * characters are escaped and what is no UTF-8 (a file name may hold any byte) becomes U+FFFD, so
 * that the document is always valid.
 * Source: RFC 8259. */
#include "cli/cli.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

static void put_string(FILE *out, const char *text)
{
    putc('"', out);
    while (*text) {
        uint32_t code;
        size_t length = cli_utf8(text, &code);
        if (length == 0) {
            fputs("\\ufffd", out);
            length = 1;
        } else if (code == '"' || code == '\\') {
            fprintf(out, "\\%c", (char)code);
        } else if (code == '\n') {
            fputs("\\n", out);
        } else if (code == '\t') {
            fputs("\\t", out);
        } else if (code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x2028 ||
                   code == 0x2029) {
            fprintf(out, "\\u%04" PRIx32, code);
        } else {
            fwrite(text, 1, length, out);
        }
        text += length;
    }
    putc('"', out);
}

static void begin(cli_json *json, const char *key)
{
    if (json->comma) {
        fputs(", ", json->out);
    }
    if (key) {
        put_string(json->out, key);
        fputs(": ", json->out);
    }
    json->comma = true;
}

void cli_json_open(cli_json *json, const char *key, char bracket)
{
    begin(json, key);
    putc(bracket, json->out);
    json->comma = false;
}

void cli_json_close(cli_json *json, char bracket)
{
    putc(bracket, json->out);
    json->comma = true;
}

void cli_json_end(cli_json *json)
{
    putc('\n', json->out);
    json->comma = false;
}

void cli_json_string(cli_json *json, const char *key, const char *text)
{
    if (!text) {
        cli_json_null(json, key);
        return;
    }
    begin(json, key);
    put_string(json->out, text);
}

void cli_json_u64(cli_json *json, const char *key, uint64_t value)
{
    begin(json, key);
    fprintf(json->out, "%" PRIu64, value);
}

void cli_json_double(cli_json *json, const char *key, double value)
{
    begin(json, key);
    fprintf(json->out, "%.6f", value);
}

void cli_json_real(cli_json *json, const char *key, double value)
{
    char text[32];
    if (!isfinite(value)) {
        cli_json_null(json, key);
        return;
    }
    for (int digits = 15; digits <= 17; digits++) { /* the shortest that is this number */
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) {
            break;
        }
    }
    begin(json, key);
    fputs(text, json->out);
}

void cli_json_bool(cli_json *json, const char *key, bool value)
{
    begin(json, key);
    fputs(value ? "true" : "false", json->out);
}

void cli_json_null(cli_json *json, const char *key)
{
    begin(json, key);
    fputs("null", json->out);
}

void cli_json_strings(cli_json *json, const char *key, const char *const *texts, size_t count)
{
    cli_json_open(json, key, '[');
    for (size_t i = 0; i < count; i++) {
        cli_json_string(json, NULL, texts[i]);
    }
    cli_json_close(json, ']');
}

void cli_json_shape(cli_json *json, const char *key, const uint64_t *shape, uint32_t rank)
{
    cli_json_open(json, key, '[');
    for (uint32_t d = 0; d < rank; d++) {
        cli_json_u64(json, NULL, shape[d]);
    }
    cli_json_close(json, ']');
}

void cli_json_memory(cli_json *json, const char *key, const cli_memory *memory)
{
    const struct {
        const char *key;
        uint64_t bytes;
    } facts[] = {
        {"peak_rss_bytes",  memory->peak_rss_bytes },
        {"peak_anon_bytes", memory->peak_anon_bytes},
        {"pss_bytes",       memory->pss_bytes      },
    };
    cli_json_open(json, key, '{');
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++) {
        if (memory->known) {
            cli_json_u64(json, facts[i].key, facts[i].bytes);
        } else {
            cli_json_null(json, facts[i].key);
        }
    }
    cli_json_close(json, '}');
}

void cli_json_error(cli_json *json, const heft_error *err)
{
    cli_json_open(json, "error", '{');
    cli_json_string(json, "status", heft_status_name(err->status));
    cli_json_string(json, "message", err->message);
    cli_json_string(json, "path", err->path);
    cli_json_string(json, "item", err->item);
    if (err->offset == HEFT_NO_OFFSET) {
        cli_json_null(json, "offset");
    } else {
        cli_json_u64(json, "offset", err->offset);
    }
    cli_json_close(json, '}');
}
