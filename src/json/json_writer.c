/* json_writer.c - JSON text, as Python's json.dumps(indent=2, sort_keys=True) and in one line.
 *
 *   {                       keys by code point, ASCII only, two spaces a level,
 *     "a": [                floats as repr: the shortest digits that read back
 *       1e-05
 *     ]
 *   }
 *
 * A loop with an explicit stack: a tree made by hand may be deeper than any limit of the reader.
 * Texts should be UTF-8; a byte that is none comes out as U+FFFD where only ASCII is written, and
 * is never read past.
 * Source: CPython's Lib/json/encoder.py; float_repr_style 'short' in the
 * library reference, sys.float_repr_style. */
#include "json/json.h"

#include <locale.h>
#include <math.h>
#include <stdlib.h>

/* ---- strings --------------------------------------------------------------------------------- */
/* The code point at p and its length in bytes, U+FFFD for a byte that is no UTF-8. */
static uint32_t next_code(const uint8_t *p, const uint8_t *end, size_t *length)
{
    *length = 1;
    if (p[0] < 0x80) {
        return p[0];
    }
    size_t bytes = p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    if ((size_t)(end - p) < bytes || heft__utf8_invalid_at(p, bytes) < bytes) {
        return 0xFFFD;
    }
    uint32_t code = p[0] & (0xFFu >> (bytes + 1));
    for (size_t i = 1; i < bytes; i++) {
        code = code << 6 | (p[i] & 0x3F);
    }
    *length = bytes;
    return code;
}

static void put_escape(heft__buffer *out, uint32_t code)
{
    if (code >= 0x10000) {
        heft__buffer_format(out, "\\u%04x\\u%04x", 0xD800 + ((code - 0x10000) >> 10),
                            0xDC00 + ((code - 0x10000) & 0x3FF));
    } else {
        heft__buffer_format(out, "\\u%04x", code);
    }
}

void heft__json_write_string(heft__buffer *out, const char *text, size_t length, bool ascii)
{
    static const char specials[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    const uint8_t *p = (const uint8_t *)text, *end = p + length, *plain = p;
    heft__buffer_byte(out, '"');
    while (p < end) {
        if (*p >= 0x20 && *p != '"' && *p != '\\' && (!ascii || *p < 0x7F)) {
            p++;
            continue;
        }
        const char *special = *p ? memchr(specials, *p, sizeof specials - 1) : NULL;
        size_t step = 1;
        heft__buffer_append(out, plain, (size_t)(p - plain));
        if (special) {
            heft__buffer_byte(out, '\\');
            heft__buffer_byte(out, (uint8_t)letters[special - specials]);
        } else {
            put_escape(out, next_code(p, end, &step));
        }
        p += step;
        plain = p;
    }
    heft__buffer_append(out, plain, (size_t)(end - plain));
    heft__buffer_byte(out, '"');
}

/* ---- numbers --------------------------------------------------------------------------------- */
/* The digits before the 'e' one unit up; false where that would need another digit. */
static bool step_up(char *text)
{
    for (char *p = strchr(text, 'e'); p && p-- > text;) {
        if (*p >= '0' && *p < '9') {
            ++*p;
            return true;
        }
        *p = *p == '9' ? '0' : *p;
    }
    return false;
}

/* Shortest digits of a value >= 0 that read back, as "d.ddde-5". At a power of two the gap below is
 * half the gap above: there the nearest digits may miss while the next ones above hit (2^-44). */
static void shortest(double value, char text[40])
{
    for (int digits = 0; digits < 17; digits++) {
        snprintf(text, 40, "%.*e", digits, value);
        if (strtod(text, NULL) == value ||
            (digits < 16 && step_up(text) && strtod(text, NULL) == value)) {
            return;
        }
    }
}

/* Python's repr: plain where the exponent is -4 to 15, else with an exponent of two digits at
 * least. */
static void put_repr(heft__buffer *out, double value)
{
    char text[40] = "", digits[40];
    size_t count = 0;
    shortest(fabs(value), text);
    char *e = strchr(text, 'e');
    int exponent = e ? atoi(e + 1) : 0;
    for (const char *p = text; e && p < e; p++) {
        if (*p >= '0' && *p <= '9') {
            digits[count++] = *p;
        }
    }
    while (count > 1 && digits[count - 1] == '0') {
        count--;
    }
    if (signbit(value)) {
        heft__buffer_byte(out, '-');
    }
    if (exponent < -4 || exponent >= 16) {
        heft__buffer_byte(out, (uint8_t)digits[0]);
        if (count > 1) {
            heft__buffer_byte(out, '.');
            heft__buffer_append(out, digits + 1, count - 1);
        }
        heft__buffer_format(out, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
        return;
    }
    for (int i = exponent < 0 ? exponent : 0; i < (int)count || i <= exponent + 1; i++) {
        heft__buffer_byte(out, (uint8_t)(i >= 0 && i < (int)count ? digits[i] : '0'));
        if (i == exponent) {
            heft__buffer_byte(out, '.');
        }
    }
}

void heft__json_write_double(heft__buffer *out, double value)
{
    if (isnan(value)) {
        heft__buffer_text(out, "NaN");
    } else if (isinf(value)) {
        heft__buffer_text(out, value < 0 ? "-Infinity" : "Infinity");
    } else {
        locale_t c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
        locale_t before = c_locale ? uselocale(c_locale) : (locale_t)0;
        put_repr(out, value);
        if (c_locale) {
            uselocale(before);
            freelocale(c_locale);
        }
    }
}

/* An integer keeps its digits, whatever their number; anything else becomes a double, as Python
 * reads it. */
static void put_number(heft__buffer *out, const heft__json_value *value)
{
    double number;
    if (!strpbrk(value->text, ".eE")) {
        heft__buffer_text(out, strcmp(value->text, "-0") == 0 ? "0" : value->text);
    } else if (heft__json_as_double(value, &number)) {
        heft__json_write_double(out, number);
    } else {
        out->failed = true;
    }
}

/* ---- trees ----------------------------------------------------------------------------------- */
static int by_key(const void *left, const void *right)
{
    const heft__json_value *a = *(const heft__json_value *const *)left;
    const heft__json_value *b = *(const heft__json_value *const *)right;
    size_t shorter = a->key_length < b->key_length ? a->key_length : b->key_length;
    int order = memcmp(a->key, b->key, shorter); /* UTF-8 sorts by code point */
    return order ? order : a->key_length < b->key_length ? -1 : a->key_length > b->key_length;
}

struct level { /* an array or object that is being written */
    const heft__json_value *parent, *next;
    const heft__json_value **order; /* [parent->count] members by key, NULL: as they stand */
    size_t done;
};

struct writer {
    heft__buffer *out;
    struct level *levels;
    size_t depth, cap;
    bool python;
};

static void put_line(const struct writer *w)
{
    if (w->python) {
        heft__buffer_byte(w->out, '\n');
        for (size_t i = 0; i < w->depth; i++) {
            heft__buffer_text(w->out, "  ");
        }
    }
}

static const heft__json_value **sorted(heft_ctx *ctx, const heft__json_value *object)
{
    const heft__json_value **order = heft__alloc_zero(ctx, object->count, sizeof *order);
    size_t count = 0;
    for (const heft__json_value *member = object->first; member && order; member = member->next) {
        order[count++] = member;
    }
    if (order) {
        qsort(order, count, sizeof *order, by_key);
    }
    return order;
}

static void open_level(struct writer *w, const heft__json_value *parent)
{
    struct level level = {.parent = parent, .next = parent->first};
    bool object = parent->type == HEFT__JSON_TYPE_OBJECT;
    if (parent->count == 0) {
        heft__buffer_text(w->out, object ? "{}" : "[]");
        return;
    }
    if (!heft__array_reserve(w->out->ctx, (void **)&w->levels, w->depth, &w->cap, sizeof level)) {
        w->out->failed = true;
        return;
    }
    if (object && w->python) {
        level.order = sorted(w->out->ctx, parent);
        w->out->failed = w->out->failed || !level.order;
    }
    w->levels[w->depth++] = level;
    heft__buffer_byte(w->out, object ? '{' : '[');
}

static void close_level(struct writer *w)
{
    const struct level *level = &w->levels[--w->depth];
    put_line(w);
    heft__buffer_byte(w->out, level->parent->type == HEFT__JSON_TYPE_OBJECT ? '}' : ']');
    heft__free(w->out->ctx, level->order,
               level->order ? level->parent->count * sizeof *level->order : 0);
}

/* The next member of the innermost level with what stands before its value; NULL if there is none.
 */
static const heft__json_value *next_member(struct writer *w)
{
    struct level *level = &w->levels[w->depth - 1];
    if (level->done == level->parent->count) {
        return NULL;
    }
    const heft__json_value *member = level->order ? level->order[level->done] : level->next;
    if (level->done) {
        heft__buffer_byte(w->out, ',');
    }
    level->done++;
    level->next = member->next;
    put_line(w);
    if (level->parent->type == HEFT__JSON_TYPE_OBJECT) {
        heft__json_write_string(w->out, member->key, member->key_length, w->python);
        heft__buffer_text(w->out, w->python ? ": " : ":");
    }
    return member;
}

static void put_value(struct writer *w, const heft__json_value *value)
{
    switch (value->type) {
    case HEFT__JSON_TYPE_NULL:
        heft__buffer_text(w->out, "null");
        break;
    case HEFT__JSON_TYPE_BOOL:
        heft__buffer_text(w->out, value->boolean ? "true" : "false");
        break;
    case HEFT__JSON_TYPE_NUMBER:
        put_number(w->out, value);
        break;
    case HEFT__JSON_TYPE_STRING:
        heft__json_write_string(w->out, value->text, value->length, w->python);
        break;
    case HEFT__JSON_TYPE_ARRAY:
    case HEFT__JSON_TYPE_OBJECT:
        open_level(w, value);
        break;
    }
}

static void put_tree(heft__buffer *out, const heft__json_value *value, bool python)
{
    struct writer w = {.out = out, .python = python};
    put_value(&w, value);
    while (w.depth > 0) {
        const heft__json_value *member = out->failed ? NULL : next_member(&w);
        if (member) {
            put_value(&w, member);
        } else {
            close_level(&w);
        }
    }
    heft__free(out->ctx, w.levels, w.cap * sizeof *w.levels);
}

void heft__json_write_python(heft__buffer *out, const heft__json_value *value)
{
    put_tree(out, value, true);
}

void heft__json_write_compact(heft__buffer *out, const heft__json_value *value)
{
    put_tree(out, value, false);
}
