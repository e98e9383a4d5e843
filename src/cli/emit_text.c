/* emit_text.c - text for people: escaped, grouped, in aligned columns.
 *
 * Names of tensors and files come from others: what is no printable character is shown as \xNN. */
#include "cli/cli.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

#define GAP 2 /* spaces between two columns */

/* ---- characters ------------------------------------------------------------------------------ */
size_t cli_utf8(const char *p, uint32_t *code)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const uint8_t *bytes = (const uint8_t *)p;
    size_t length = bytes[0] < 0x80   ? 1
                    : bytes[0] < 0xC2 ? 0
                    : bytes[0] < 0xE0 ? 2
                    : bytes[0] < 0xF0 ? 3
                                      : 4;
    if (length == 0 || bytes[0] > 0xF4) {
        return 0;
    }
    uint32_t value = length == 1 ? bytes[0] : bytes[0] & (0xFFu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xC0) != 0x80) { /* the NUL at the end too */
            return 0;
        }
        value = value << 6 | (bytes[i] & 0x3F);
    }
    if (value < least[length] || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
        return 0;
    }
    *code = value;
    return length;
}

/* Characters that move the cursor or turn the line around: C0, DEL, C1, and the marks
 * of direction. */
static bool is_harmless(uint32_t code)
{
    return code >= 0x20 && (code < 0x7F || code >= 0xA0) && code != 0x2028 && code != 0x2029 &&
           !(code >= 0x202A && code <= 0x202E) && !(code >= 0x2066 && code <= 0x2069);
}

void cli_put(FILE *out, const char *text)
{
    while (*text) {
        uint32_t code;
        size_t length = cli_utf8(text, &code);
        if (length > 0 && is_harmless(code)) {
            fwrite(text, 1, length, out);
        } else {
            length = length ? length : 1;
            for (size_t i = 0; i < length; i++) {
                fprintf(out, "\\x%02x", (unsigned)(uint8_t)text[i]);
            }
        }
        text += length;
    }
}

/* Write the text with harmful bytes as \xNN; NULL: only count. Returns the bytes without the NUL. */
static size_t escape(const char *text, char *at)
{
    size_t bytes = 0;
    while (*text) {
        uint32_t code;
        size_t length = cli_utf8(text, &code);
        const bool harmless = length > 0 && is_harmless(code);
        length = length ? length : 1;
        for (size_t i = 0; i < length && at && !harmless; i++) {
            snprintf(at + bytes + 4 * i, 5, "\\x%02x", (unsigned)(uint8_t)text[i]);
        }
        if (at && harmless) {
            memcpy(at + bytes, text, length);
        }
        bytes += harmless ? length : 4 * length;
        text += length;
    }
    return bytes;
}

char *cli_escaped(const char *text)
{
    if (strlen(text) > (SIZE_MAX - 1) / 4) {
        return NULL;
    }
    const size_t bytes = escape(text, NULL);
    char *copy = malloc(bytes + 1);
    if (copy) {
        escape(text, copy);
        copy[bytes] = '\0';
    }
    return copy;
}

size_t cli_width(const char *text)
{
    size_t width = 0;
    while (*text) {
        uint32_t code;
        size_t length = cli_utf8(text, &code);
        int columns = length ? wcwidth((wchar_t)code) : 1;
        width += columns < 0 ? 1 : (size_t)columns;
        text += length ? length : 1;
    }
    return width;
}

/* ---- numbers --------------------------------------------------------------------------------- */
const char *cli_grouped(uint64_t value, char buf[32])
{
    char digits[24];
    size_t count = (size_t)snprintf(digits, sizeof digits, "%" PRIu64, value), at = 0;
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && (count - i) % 3 == 0) {
            buf[at++] = ',';
        }
        buf[at++] = digits[i];
    }
    buf[at] = '\0';
    return buf;
}

static bool binary_units;

void cli_units_like(const char *sizes)
{
    const char *i = strpbrk(sizes, "iI");
    binary_units = binary_units || (i && (i[1] == 'b' || i[1] == 'B'));
}

const char *cli_bytes(uint64_t bytes, char buf[32])
{
    static const char *const units[2][4] = {
        {"KB",  "MB",  "GB",  "TB" },
        {"KiB", "MiB", "GiB", "TiB"}
    };
    const unsigned step = binary_units ? 1024 : 1000;
    if (bytes < step) {
        snprintf(buf, 32, "%" PRIu64 " B", bytes);
        return buf;
    }
    double value = (double)bytes / step;
    size_t unit = 0;
    while (value >= step - 0.05 && unit < 3) { /* 999.95 would be printed as 1000.0 */
        value /= step;
        unit++;
    }
    snprintf(buf, 32, "%.1f %s", value, units[binary_units][unit]);
    return buf;
}

const char *cli_shape(const uint64_t *shape, uint32_t rank, char buf[256])
{
    size_t at = 0;
    buf[at++] = '[';
    for (uint32_t d = 0; d < rank; d++) {
        if (at > 220) {
            at += (size_t)snprintf(buf + at, 256 - at, ", ...");
            break;
        }
        at += (size_t)snprintf(buf + at, 256 - at, "%s%" PRIu64, d ? ", " : "", shape[d]);
    }
    snprintf(buf + at, 256 - at, "]");
    return buf;
}

/* ---- tables ---------------------------------------------------------------------------------- */
void cli_table_add(cli_table *table, const char *text)
{
    if (table->failed) {
        return;
    }
    if (table->count == table->cap) {
        size_t cap = table->cap ? table->cap * 2 : 64;
        char **cells = reallocarray(table->cells, cap, sizeof *cells);
        if (!cells) {
            table->failed = true;
            return;
        }
        table->cells = cells;
        table->cap = cap;
    }
    char *cell = cli_escaped(text);
    if (!cell) {
        table->failed = true;
        return;
    }
    table->cells[table->count++] = cell;
}

#define LEAST_WIDTH 12 /* of a column whose texts are cut */

/* Columns of the terminal that it is printed on; 0: it is none. */
static size_t room_of(FILE *out)
{
    struct winsize size = {0};
    const int file = fileno(out);
    return isatty(file) && ioctl(file, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

/* Make widths fit into the room, if they can; returns how many columns are printed. */
static size_t fit_widths(const cli_table *table, size_t *widths, size_t indent, size_t room)
{
    size_t columns = table->columns, sum = indent + (columns - 1) * GAP;
    for (size_t i = 0; i < columns; i++) {
        sum += widths[i];
    }
    while (room && sum > room && columns > table->columns - table->optional) {
        sum -= widths[--columns] + GAP;
    }
    while (room && sum > room) {
        size_t widest = 0;
        for (size_t i = 1; i < columns; i++) {
            const bool right = table->titles[i][0] == '>';
            widest = !right && widths[i] > widths[widest] ? i : widest;
        }
        if (table->titles[widest][0] == '>' || widths[widest] <= LEAST_WIDTH) {
            return columns;
        }
        widths[widest]--;
        sum--;
    }
    return columns;
}

/* The first bytes of a text that take `width` columns. */
static size_t bytes_of(const char *text, size_t width)
{
    size_t at = 0;
    while (text[at]) {
        uint32_t code;
        const size_t length = cli_utf8(text + at, &code);
        const int columns = length ? wcwidth((wchar_t)code) : 1;
        const size_t taken = columns < 0 ? 1 : (size_t)columns;
        if (taken > width) {
            break;
        }
        width -= taken;
        at += length ? length : 1;
    }
    return at;
}

/* A text in so many columns, with "…" in the place of what is too much of its middle. */
static void put_cut(const char *text, size_t width, FILE *out)
{
    const size_t whole = cli_width(text), head = (width - 1) / 2, tail = width - 1 - head;
    const size_t from = bytes_of(text, whole - tail);
    fprintf(out, "%.*s…%s", (int)bytes_of(text, head), text, text + from);
}

/* Blanks are kept back until something follows them: no line ends with any. */
static void print_row(const cli_table *table, char *const *cells, const size_t *widths,
                      size_t columns, size_t indent, FILE *out)
{
    size_t pending = indent;
    for (size_t i = 0; i < columns; i++) {
        const bool right = table->titles[i][0] == '>';
        const char *text = cells ? cells[i] : table->titles[i] + right;
        const size_t width = cli_width(text), blank = widths[i] > width ? widths[i] - width : 0;
        pending += right ? blank : 0;
        if (*text) {
            fprintf(out, "%*s", (int)pending, "");
            pending = 0;
        }
        if (width > widths[i] && !right) {
            put_cut(text, widths[i], out);
        } else {
            fputs(text, out);
        }
        pending += (right ? 0 : blank) + GAP;
    }
    putc('\n', out);
}

static void print_rows(const cli_table *table, size_t *widths, size_t indent, FILE *out)
{
    const size_t columns = fit_widths(table, widths, indent, room_of(out));
    if (table->has_head) {
        print_row(table, NULL, widths, columns, indent, out);
    }
    for (size_t i = 0; i < table->count; i += table->columns) {
        print_row(table, table->cells + i, widths, columns, indent, out);
    }
}

bool cli_table_print(cli_table *table, size_t indent, FILE *out)
{
    size_t *widths = calloc(table->columns, sizeof *widths);
    bool good = widths && !table->failed;
    for (size_t i = 0; good && table->has_head && i < table->columns; i++) {
        widths[i] = cli_width(table->titles[i] + (table->titles[i][0] == '>'));
    }
    for (size_t i = 0; good && i < table->count; i++) {
        size_t width = cli_width(table->cells[i]), *most = &widths[i % table->columns];
        *most = width > *most ? width : *most;
    }
    if (good) {
        print_rows(table, widths, indent, out);
    }
    for (size_t i = 0; i < table->count; i++) {
        free(table->cells[i]);
    }
    free(table->cells);
    free(widths);
    table->cells = NULL;
    table->count = table->cap = 0;
    return good;
}
