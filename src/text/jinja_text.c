/* jinja_text.c - text of values, as Python writes it: str(), json.dumps(), and the methods of strings that
 * look at characters.
 *
 * Upper and lower case are Python's for ASCII and for characters without case; lower case also for others, if
 * utf8proc is there. What would differ is refused. */
#include "text/jinja.h"

#include <inttypes.h>
#include <math.h>

/* ---- white space ------------------------------------------------------------------------------------------ */
bool heft__jinja_is_space(uint32_t code)
{
    return (code >= 9 && code <= 13) || (code >= 28 && code <= 32) || code == 0x85 ||
           code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
           code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

/* Where the character begins that ends before `end`. */
static size_t before(heft__string text, size_t end)
{
    do {
        end--;
    } while (end > 0 && ((unsigned char)text.text[end] & 0xC0) == 0x80);
    return end;
}

heft__string heft__jinja_strip(heft__string text, bool left, bool right)
{
    size_t size;
    while (left && text.length > 0 && heft__jinja_is_space(heft__utf8_get(text.text, &size))) {
        text.text += size;
        text.length -= size;
    }
    while (right && text.length > 0 &&
           heft__jinja_is_space(heft__utf8_get(text.text + before(text, text.length), &size))) {
        text.length -= size;
    }
    return text;
}

/* ---- characters ------------------------------------------------------------------------------------------- */
size_t heft__jinja_characters(heft__string text)
{
    size_t count = 0;
    for (size_t i = 0; i < text.length; i++) {
        count += ((unsigned char)text.text[i] & 0xC0) != 0x80;
    }
    return count;
}

size_t heft__jinja_byte_of(heft__string text, size_t character)
{
    size_t i = 0;
    for (; i < text.length; i++) {
        if (((unsigned char)text.text[i] & 0xC0) != 0x80 && character-- == 0) {
            break;
        }
    }
    return i;
}

size_t heft__jinja_search(heft__string text, size_t from, heft__string what)
{
    if (from > text.length) {
        return SIZE_MAX;
    }
    const char *found = memmem(text.text + from, text.length - from, what.text, what.length);
    return found ? (size_t)(found - text.text) : SIZE_MAX;
}

bool heft__jinja_put_replaced(heft__jinja_run *run, heft__string text, heft__string old,
                              heft__string new, int64_t most)
{
    size_t at = 0;
    while (most != 0 && at <= text.length) {
        size_t found = heft__jinja_search(text, at, old);
        if (found == SIZE_MAX || !heft__jinja_work(run, 1)) {
            break;
        }
        if (!heft__jinja_put(run, text.text + at, found - at) ||
            !heft__jinja_put(run, new.text, new.length)) {
            return false;
        }
        at = found + old.length;
        if (old.length == 0) { /* before each character, and at the end */
            size_t size = 1;
            if (at < text.length) {
                (void)heft__utf8_get(text.text + at, &size);
                if (!heft__jinja_put(run, text.text + at, size)) {
                    return false;
                }
            }
            at += size;
        }
        most -= most > 0;
    }
    return at >= text.length ? run->status == HEFT_OK
                             : heft__jinja_put(run, text.text + at, text.length - at);
}

/* ---- upper and lower case --------------------------------------------------------------------------------- */
/* Blocks in which no character has a case: CJK, Hangul, emoji. */
static bool is_caseless(uint32_t code)
{
    return (code >= 0x2E80 && code < 0xA640) || (code >= 0xAC00 && code < 0xD800) ||
           (code >= 0xF900 && code < 0xFB00) || (code >= 0x3000 && code < 0x3040) ||
           (code >= 0x1F200 && code < 0x1FB00) || (code >= 0x20000 && code < 0x40000);
}

bool heft__jinja_put_case(heft__jinja_run *run, heft__jinja_case to, heft__string text)
{
    size_t size;
    if (!heft__jinja_work(run, text.length)) {
        return false;
    }
    for (size_t i = 0; i < text.length; i += size) {
        uint32_t code = heft__utf8_get(text.text + i, &size), lower[2] = {code, 0};
        size_t count = 1, length = 0;
        uint8_t bytes[8];
        if (code < 0x80) {
            const bool upper = code >= 'A' && code <= 'Z', small = code >= 'a' && code <= 'z';
            lower[0] += upper && to == HEFT__CASE_LOWER ? 32 : 0;
            lower[0] -= small && to == HEFT__CASE_UPPER ? 32 : 0;
        } else if (!is_caseless(code)) {
            /* a sigma depends on what is around it */
            if (to == HEFT__CASE_UPPER || code == 0x3A3 || !heft__has_unicode_data()) {
                return heft__jinja_refuse(run, "the %s case of U+%04X is not known",
                                          to == HEFT__CASE_UPPER ? "upper" : "lower", code);
            }
            count = heft__lowercase(code, lower);
        }
        for (size_t c = 0; c < count; c++) {
            length += heft__utf8_put(lower[c], bytes + length);
        }
        if (!heft__jinja_put(run, (const char *)bytes, length)) {
            return false;
        }
    }
    return true;
}

/* ---- lines ------------------------------------------------------------------------------------------------ */
/* The bytes of a line end that begins here, 0 if none does. */
static size_t line_end(heft__string text, size_t at)
{
    size_t size;
    const uint32_t code = heft__utf8_get(text.text + at, &size);
    if (code == '\r' && at + 1 < text.length && text.text[at + 1] == '\n') {
        return 2;
    }
    return (code >= 10 && code <= 13) || (code >= 28 && code <= 30) || code == 0x85 ||
                   code == 0x2028 || code == 0x2029
               ? size
               : 0;
}

bool heft__jinja_lines(heft__jinja_run *run, heft__string text, bool keep, heft__jinja_value *out)
{
    size_t count = 0, first = 0, size, line = 0;
    if (!heft__jinja_work(run, text.length / 8)) {
        return false;
    }
    for (int pass = 0; pass < 2; pass++) { /* count, then fill */
        if (pass == 1 && !heft__jinja_new_list(run, HEFT__JINJA_LIST, count, out)) {
            return false;
        }
        first = 0;
        for (size_t at = 0; at < text.length; at += size) {
            (void)heft__utf8_get(text.text + at, &size);
            const size_t end = line_end(text, at);
            const bool last = at + size == text.length;
            if (end == 0 && !last) {
                continue;
            }
            size = end ? end : size;
            if (pass == 1) {
                out->list->items[line++] =
                    heft__jinja_string(text.text + first, at - first + (keep || !end ? size : 0));
            } else {
                count++;
            }
            first = at + size;
        }
    }
    return true;
}

/* ---- numbers ---------------------------------------------------------------------------------------------- */
static bool put_double(heft__jinja_run *run, double value, bool json)
{
    if (!json && !isfinite(value)) {
        const char *text = isnan(value) ? "nan" : value < 0 ? "-inf" : "inf";
        return heft__jinja_put(run, text, strlen(text));
    }
    heft__json_write_double(&run->out, value);
    return heft__jinja_put(run, "", 0) && heft__jinja_work(run, 20);
}

static bool put_int(heft__jinja_run *run, int64_t value)
{
    char text[32];
    const int length = snprintf(text, sizeof text, "%" PRId64, value);
    return heft__jinja_put(run, text, (size_t)length);
}

/* ---- str() ------------------------------------------------------------------------------------------------ */
/* Whether Python's repr leaves a character as it is, in every version of Unicode. */
static bool is_printable(heft__jinja_run *run, uint32_t code, bool *out)
{
    *out = code >= 0x20 && code < 0x7F;
    if (code < 0x80) {
        return true;
    }
    if (code < 0xA1 || code == 0xAD || heft__jinja_is_space(code)) {
        return true; /* not printable */
    }
    *out = (code < 0x250) || is_caseless(code);
    if (!*out && heft__has_unicode_data()) {
        *out = heft__is_word(code) || heft__is_punctuation(code);
    }
    return *out ||
           heft__jinja_refuse(run, "the text of a value with U+%04X in it is not known", code);
}

static bool put_repr_string(heft__jinja_run *run, heft__string text)
{
    const bool doubled =
        memchr(text.text, '\'', text.length) && !memchr(text.text, '"', text.length);
    const char quote = doubled ? '"' : '\'';
    size_t size;
    if (!heft__jinja_put(run, &quote, 1)) {
        return false;
    }
    for (size_t i = 0; i < text.length; i += size) {
        const uint32_t code = heft__utf8_get(text.text + i, &size);
        char escape[16];
        bool printable;
        if (!is_printable(run, code, &printable)) {
            return false;
        }
        if (code == (uint32_t)quote || code == '\\') {
            (void)snprintf(escape, sizeof escape, "\\%c", (char)code);
        } else if (code == '\n' || code == '\r' || code == '\t') {
            (void)snprintf(escape, sizeof escape, "\\%c",
                           code == '\n'   ? 'n'
                           : code == '\r' ? 'r'
                                          : 't');
        } else if (printable) {
            (void)snprintf(escape, sizeof escape, "%.*s", (int)size, text.text + i);
        } else {
            (void)snprintf(escape, sizeof escape, code < 0x100 ? "\\x%02x" : "\\u%04x", code);
        }
        if (!heft__jinja_put(run, escape, strlen(escape)) || !heft__jinja_work(run, 1)) {
            return false;
        }
    }
    return heft__jinja_put(run, &quote, 1);
}

static bool put_repr(heft__jinja_run *run, heft__jinja_value value, unsigned depth);

static bool put_repr_items(heft__jinja_run *run, const heft__jinja_list *list, bool tuple,
                           unsigned depth)
{
    bool good = heft__jinja_put(run, tuple ? "(" : "[", 1);
    for (size_t i = 0; good && i < list->count; i++) {
        good = heft__jinja_put(run, ", ", i ? 2 : 0) && put_repr(run, list->items[i], depth + 1);
    }
    good = good && heft__jinja_put(run, ",", tuple && list->count == 1);
    return good && heft__jinja_put(run, tuple ? ")" : "]", 1);
}

static bool put_repr_pairs(heft__jinja_run *run, const heft__jinja_dict *dict, unsigned depth)
{
    bool good = heft__jinja_put(run, "{", 1);
    for (size_t i = 0; good && i < dict->count; i++) {
        good = heft__jinja_put(run, ", ", i ? 2 : 0) &&
               put_repr(run, dict->pairs[i].key, depth + 1) && heft__jinja_put(run, ": ", 2) &&
               put_repr(run, dict->pairs[i].value, depth + 1);
    }
    return good && heft__jinja_put(run, "}", 1);
}

static bool put_repr(heft__jinja_run *run, heft__jinja_value value, unsigned depth)
{
    if (depth > HEFT__JINJA_DEPTH) {
        return heft__jinja_fail(run, HEFT_LIMIT, "values are nested too deeply");
    }
    if (!heft__jinja_work(run, 1)) {
        return false;
    }
    if (value.kind == HEFT__JINJA_NONE) {
        return heft__jinja_put(run, "None", 4);
    }
    if (value.kind == HEFT__JINJA_BOOL) {
        return heft__jinja_put(run, value.boolean ? "True" : "False", value.boolean ? 4 : 5);
    }
    if (value.kind == HEFT__JINJA_INT) {
        return put_int(run, value.integer);
    }
    if (value.kind == HEFT__JINJA_FLOAT) {
        return put_double(run, value.real, false);
    }
    if (value.kind == HEFT__JINJA_STRING) {
        return put_repr_string(run, value.string);
    }
    if (value.kind == HEFT__JINJA_LIST || value.kind == HEFT__JINJA_TUPLE) {
        return put_repr_items(run, value.list, value.kind == HEFT__JINJA_TUPLE, depth);
    }
    if (value.kind == HEFT__JINJA_DICT) {
        return put_repr_pairs(run, value.dict, depth);
    }
    return heft__jinja_refuse(run, "the text of %s is not known", heft__jinja_kind_name(value));
}

bool heft__jinja_put_value(heft__jinja_run *run, heft__jinja_value value)
{
    if (value.kind == HEFT__JINJA_STRING) {
        return heft__jinja_put(run, value.string.text, value.string.length);
    }
    return value.kind == HEFT__JINJA_UNDEFINED || put_repr(run, value, 0);
}

bool heft__jinja_to_text(heft__jinja_run *run, heft__jinja_value value, heft__string *out)
{
    heft__jinja_value text = value;
    if (value.kind != HEFT__JINJA_STRING) {
        const size_t mark = heft__jinja_catch(run);
        if (!heft__jinja_put_value(run, value) || !heft__jinja_caught(run, mark, &text)) {
            return false;
        }
    }
    *out = text.string;
    return true;
}

/* ---- json.dumps() ----------------------------------------------------------------------------------------- */
static bool put_json_string(heft__jinja_run *run, const heft__jinja_json_style *style,
                            heft__string text)
{
    const size_t room = 6 * text.length + 2;
    if (room / 6 < text.length || room > run->limit ||
        run->bytes + run->out.size > run->limit - room) {
        return heft__jinja_fail(run, HEFT_LIMIT, "takes more than %llu bytes of memory",
                                (unsigned long long)run->limit);
    }
    heft__json_write_string(&run->out, text.text, text.length, style->ascii);
    return heft__jinja_put(run, "", 0) && heft__jinja_work(run, text.length / 16);
}

static bool put_break(heft__jinja_run *run, const heft__jinja_json_style *style, unsigned depth)
{
    bool good = !style->lines || heft__jinja_put(run, "\n", 1);
    for (unsigned i = 0; style->lines && good && i < depth; i++) {
        good = heft__jinja_put(run, style->indent.text, style->indent.length);
    }
    return good;
}

/* A key, which becomes a string. */
static bool put_json_key(heft__jinja_run *run, const heft__jinja_json_style *style,
                         heft__jinja_value key)
{
    if (key.kind == HEFT__JINJA_STRING) {
        return put_json_string(run, style, key.string);
    }
    return heft__jinja_put(run, "\"", 1) && heft__jinja_put_json(run, style, key, 0) &&
           heft__jinja_put(run, "\"", 1);
}

/* The next pair in the order of keys, behind `last`; NULL: the first one. */
static const heft__jinja_pair *next_sorted(heft__jinja_run *run, const heft__jinja_dict *dict,
                                           const heft__jinja_pair *last)
{
    const heft__jinja_pair *best = NULL;
    bool less = false;
    for (size_t i = 0; i < dict->count && run->status == HEFT_OK; i++) {
        const heft__jinja_pair *pair = &dict->pairs[i];
        if (last && (!heft__jinja_ordered(run, '<', last->key, pair->key, &less) || !less)) {
            continue;
        }
        if (!best || (heft__jinja_ordered(run, '<', pair->key, best->key, &less) && less)) {
            best = pair;
        }
    }
    return best;
}

static bool put_json_dict(heft__jinja_run *run, const heft__jinja_json_style *style,
                          const heft__jinja_dict *dict, unsigned depth)
{
    const heft__jinja_pair *pair = NULL;
    bool good = heft__jinja_put(run, "{", 1);
    for (size_t i = 0; good && i < dict->count; i++) {
        pair = style->sorted ? next_sorted(run, dict, pair) : &dict->pairs[i];
        good = run->status == HEFT_OK && pair &&
               heft__jinja_put(run, style->item_separator.text,
                               i ? style->item_separator.length : 0) &&
               put_break(run, style, depth + 1) && put_json_key(run, style, pair->key) &&
               heft__jinja_put(run, style->key_separator.text, style->key_separator.length) &&
               heft__jinja_put_json(run, style, pair->value, depth + 1);
    }
    good = good && (dict->count == 0 || put_break(run, style, depth));
    return good && heft__jinja_put(run, "}", 1);
}

static bool put_json_list(heft__jinja_run *run, const heft__jinja_json_style *style,
                          const heft__jinja_list *list, unsigned depth)
{
    bool good = heft__jinja_put(run, "[", 1);
    for (size_t i = 0; good && i < list->count; i++) {
        good = heft__jinja_put(run, style->item_separator.text,
                               i ? style->item_separator.length : 0) &&
               put_break(run, style, depth + 1) &&
               heft__jinja_put_json(run, style, list->items[i], depth + 1);
    }
    good = good && (list->count == 0 || put_break(run, style, depth));
    return good && heft__jinja_put(run, "]", 1);
}

bool heft__jinja_put_json(heft__jinja_run *run, const heft__jinja_json_style *style,
                          heft__jinja_value value, unsigned depth)
{
    if (depth > HEFT__JINJA_DEPTH) {
        return heft__jinja_fail(run, HEFT_LIMIT, "values are nested too deeply");
    }
    if (!heft__jinja_work(run, 1)) {
        return false;
    }
    if (value.kind == HEFT__JINJA_NONE) {
        return heft__jinja_put(run, "null", 4);
    }
    if (value.kind == HEFT__JINJA_BOOL) {
        return heft__jinja_put(run, value.boolean ? "true" : "false", value.boolean ? 4 : 5);
    }
    if (value.kind == HEFT__JINJA_INT) {
        return put_int(run, value.integer);
    }
    if (value.kind == HEFT__JINJA_FLOAT) {
        return put_double(run, value.real, true);
    }
    if (value.kind == HEFT__JINJA_STRING) {
        return put_json_string(run, style, value.string);
    }
    if (value.kind == HEFT__JINJA_LIST || value.kind == HEFT__JINJA_TUPLE) {
        return put_json_list(run, style, value.list, depth);
    }
    if (value.kind == HEFT__JINJA_DICT) {
        return put_json_dict(run, style, value.dict, depth);
    }
    return heft__jinja_wrong(run, "%s cannot be written as JSON", heft__jinja_kind_name(value));
}
