/* jinja_filter.c - filters of a chat template: value|name(arguments).
 *
 * Those that are not here are refused by name, also safe and escape, whose results are no plain strings. */
#include "text/jinja.h"

#include <stdlib.h>

typedef heft__jinja_value value;
typedef heft__jinja_run run_t;

#define PLACES 5 /* parameters of a filter at most */

static bool given(value v)
{
    return v.kind != HEFT__JINJA_ABSENT;
}

static bool text_or(run_t *run, value v, const char *fallback, heft__string *out)
{
    *out = (heft__string){fallback, strlen(fallback)};
    return !given(v) || heft__jinja_to_text(run, v, out);
}

static bool truth_or(run_t *run, value v, bool fallback, bool *out)
{
    *out = fallback;
    return !given(v) || heft__jinja_truth(run, v, out);
}

/* ---- text ------------------------------------------------------------------------------------------------- */
static bool filter_trim(run_t *run, value in, const value *v, value *out)
{
    heft__string text;
    if (given(v[0]) && v[0].kind != HEFT__JINJA_NONE) {
        return heft__jinja_refuse(run, "the argument of trim is not known");
    }
    if (!heft__jinja_to_text(run, in, &text)) {
        return false;
    }
    text = heft__jinja_strip(text, true, true);
    *out = heft__jinja_string(text.text, text.length);
    return true;
}

static bool change_case(run_t *run, value in, heft__jinja_case to, value *out)
{
    heft__string text;
    if (!heft__jinja_to_text(run, in, &text)) {
        return false;
    }
    const size_t mark = heft__jinja_catch(run);
    return heft__jinja_put_case(run, to, text) && heft__jinja_caught(run, mark, out);
}

static bool filter_upper(run_t *run, value in, const value *v, value *out)
{
    (void)v;
    return change_case(run, in, HEFT__CASE_UPPER, out);
}

static bool filter_lower(run_t *run, value in, const value *v, value *out)
{
    (void)v;
    return change_case(run, in, HEFT__CASE_LOWER, out);
}

/* The first character of each word, or of the text, as upper case, and the others as lower case. */
static bool put_capitalized(run_t *run, heft__string text, bool words)
{
    bool first = true;
    size_t size;
    for (size_t i = 0; i < text.length; i += size) {
        const uint32_t code = heft__utf8_get(text.text + i, &size);
        const heft__string one = {text.text + i, size};
        if (!heft__jinja_put_case(run, first ? HEFT__CASE_UPPER : HEFT__CASE_LOWER, one)) {
            return false;
        }
        first =
            words && (heft__jinja_is_space(code) || (code < 0x80 && strchr("-({[<", (int)code)));
    }
    return true;
}

static bool filter_capitalize(run_t *run, value in, const value *v, value *out)
{
    heft__string text;
    (void)v;
    if (!heft__jinja_to_text(run, in, &text)) {
        return false;
    }
    const size_t mark = heft__jinja_catch(run);
    return put_capitalized(run, text, false) && heft__jinja_caught(run, mark, out);
}

static bool filter_title(run_t *run, value in, const value *v, value *out)
{
    heft__string text;
    (void)v;
    if (!heft__jinja_to_text(run, in, &text)) {
        return false;
    }
    const size_t mark = heft__jinja_catch(run);
    return put_capitalized(run, text, true) && heft__jinja_caught(run, mark, out);
}

static bool filter_replace(run_t *run, value in, const value *v, value *out)
{
    heft__string text, old, new;
    int64_t most = -1;
    if (given(v[2]) && v[2].kind != HEFT__JINJA_NONE && !heft__jinja_as_int(v[2], &most)) {
        return heft__jinja_refuse(run, "the count of replace is not known");
    }
    if (!heft__jinja_to_text(run, in, &text) || !heft__jinja_to_text(run, v[0], &old) ||
        !heft__jinja_to_text(run, v[1], &new)) {
        return false;
    }
    const size_t mark = heft__jinja_catch(run);
    return heft__jinja_put_replaced(run, text, old, new, most) &&
           heft__jinja_caught(run, mark, out);
}

static bool filter_string(run_t *run, value in, const value *v, value *out)
{
    heft__string text;
    (void)v;
    if (!heft__jinja_to_text(run, in, &text)) {
        return false;
    }
    *out = heft__jinja_string(text.text, text.length);
    return true;
}

/* A string, or a number of spaces. */
static bool indentation(run_t *run, value v, heft__string *out)
{
    static const char spaces[] = "                                                                ";
    int64_t width;
    if (v.kind == HEFT__JINJA_STRING) {
        *out = v.string;
        return true;
    }
    if (!heft__jinja_as_int(v, &width) || width < 0 || width >= (int64_t)sizeof spaces) {
        return heft__jinja_refuse(run, "this indentation is not known");
    }
    *out = (heft__string){spaces, (size_t)width};
    return true;
}

static bool filter_indent(run_t *run, value in, const value *v, value *out)
{
    heft__string indent = {"", 0};
    value lines, copy;
    bool first, blank;
    if (!indentation(run, given(v[0]) ? v[0] : heft__jinja_int(4), &indent) ||
        !truth_or(run, v[1], false, &first) || !truth_or(run, v[2], false, &blank)) {
        return false;
    }
    if (in.kind != HEFT__JINJA_STRING) {
        return heft__jinja_wrong(run, "'indent' of %s", heft__jinja_kind_name(in));
    }
    const heft__string text = in.string;
    size_t mark = heft__jinja_catch(run); /* with a newline, as Jinja splits it */
    if (!heft__jinja_put(run, text.text, text.length) || !heft__jinja_put(run, "\n", 1) ||
        !heft__jinja_caught(run, mark, &copy) ||
        !heft__jinja_lines(run, copy.string, false, &lines)) {
        return false;
    }
    mark = heft__jinja_catch(run);
    for (size_t i = 0; i < lines.list->count; i++) {
        const heft__string line = lines.list->items[i].string;
        const bool indented = i == 0 ? first : blank || line.length > 0;
        if (!heft__jinja_put(run, "\n", i > 0) ||
            !heft__jinja_put(run, indent.text, indented ? indent.length : 0) ||
            !heft__jinja_put(run, line.text, line.length)) {
            return false;
        }
    }
    return heft__jinja_caught(run, mark, out);
}

/* ---- JSON ------------------------------------------------------------------------------------------------- */
/* [", ", ": "] */
static bool separators(run_t *run, value v, heft__jinja_json_style *style)
{
    if (!given(v) || v.kind == HEFT__JINJA_NONE) {
        return true;
    }
    if ((v.kind != HEFT__JINJA_LIST && v.kind != HEFT__JINJA_TUPLE) || v.list->count != 2 ||
        v.list->items[0].kind != HEFT__JINJA_STRING ||
        v.list->items[1].kind != HEFT__JINJA_STRING) {
        return heft__jinja_refuse(run, "the separators of tojson are not known");
    }
    style->item_separator = v.list->items[0].string;
    style->key_separator = v.list->items[1].string;
    return true;
}

static bool filter_tojson(run_t *run, value in, const value *v, value *out)
{
    heft__jinja_json_style style = {
        .item_separator = {", ", 2},
          .key_separator = {": ", 2}
    };
    style.lines = given(v[1]) && v[1].kind != HEFT__JINJA_NONE;
    if (style.lines) {
        style.item_separator.length = 1;
        if (!indentation(run, v[1], &style.indent)) {
            return false;
        }
    }
    if (!truth_or(run, v[0], false, &style.ascii) || !separators(run, v[2], &style) ||
        !truth_or(run, v[3], false, &style.sorted)) {
        return false;
    }
    const size_t mark = heft__jinja_catch(run);
    return heft__jinja_put_json(run, &style, in, 0) && heft__jinja_caught(run, mark, out);
}

/* ---- lists ------------------------------------------------------------------------------------------------ */
static bool filter_length(run_t *run, value in, const value *v, value *out)
{
    size_t length;
    (void)v;
    if (!heft__jinja_length(run, in, &length)) {
        return false;
    }
    *out = heft__jinja_int((int64_t)length);
    return true;
}

static bool end_of(run_t *run, value in, bool last, value *out)
{
    heft__jinja_list items;
    if (last && in.kind == HEFT__JINJA_ITERATOR) {
        return heft__jinja_wrong(run, "'last' of %s", heft__jinja_kind_name(in));
    }
    if (in.kind == HEFT__JINJA_ITERATOR) { /* the others can still be read */
        heft__jinja_list *list = in.list;
        *out = list->read < list->count
                   ? list->items[list->read++]
                   : heft__jinja_undefined((heft__string){"the first item", 14});
        return true;
    }
    if (!heft__jinja_iterate(run, in, &items)) {
        return false;
    }
    *out = items.count == 0 ? heft__jinja_undefined((heft__string){"the item", 8})
                            : items.items[last ? items.count - 1 : 0];
    return true;
}

static bool filter_first(run_t *run, value in, const value *v, value *out)
{
    (void)v;
    return end_of(run, in, false, out);
}

static bool filter_last(run_t *run, value in, const value *v, value *out)
{
    (void)v;
    return end_of(run, in, true, out);
}

static bool new_items(run_t *run, heft__jinja_list items, heft__jinja_kind kind, value *out)
{
    if (!heft__jinja_new_list(run, kind, items.count, out)) {
        return false;
    }
    if (items.count > 0) {
        memcpy(out->list->items, items.items, items.count * sizeof *items.items);
    }
    return true;
}

static bool filter_list(run_t *run, value in, const value *v, value *out)
{
    heft__jinja_list items;
    (void)v;
    return heft__jinja_iterate(run, in, &items) && new_items(run, items, HEFT__JINJA_LIST, out);
}

static bool filter_reverse(run_t *run, value in, const value *v, value *out)
{
    heft__jinja_list items;
    value list;
    (void)v;
    if (in.kind == HEFT__JINJA_UNDEFINED) {
        return heft__jinja_refuse(run, "'reverse' of what is undefined is not known");
    }
    if (!heft__jinja_iterate(run, in, &items) ||
        !new_items(run, items, HEFT__JINJA_ITERATOR, &list)) {
        return false;
    }
    for (size_t i = 0; i < items.count; i++) {
        list.list->items[i] = items.items[items.count - 1 - i];
    }
    *out = list;
    if (in.kind != HEFT__JINJA_STRING) {
        return true;
    }
    const size_t mark = heft__jinja_catch(run);
    for (size_t i = 0; i < items.count; i++) {
        if (!heft__jinja_put_value(run, list.list->items[i])) {
            return false;
        }
    }
    return heft__jinja_caught(run, mark, out);
}

/* obj["a"]["b"] for "a.b"; numbers are indexes. */
static bool get_path(run_t *run, value of, value path, value *out)
{
    int64_t index;
    *out = of;
    if (heft__jinja_as_int(path, &index)) {
        return heft__jinja_item(run, of, path, out);
    }
    if (path.kind != HEFT__JINJA_STRING) {
        return heft__jinja_refuse(run, "this attribute is not known");
    }
    const char *p = path.string.text, *end = p + path.string.length;
    for (bool more = true; more;) {
        const char *dot = memchr(p, '.', (size_t)(end - p));
        const heft__string part = {p, (size_t)((dot ? dot : end) - p)};
        value key = heft__jinja_string(part.text, part.length);
        if (part.length > 0 && part.length < 10 && strspn(part.text, "0123456789") >= part.length) {
            key = heft__jinja_int(strtoll(part.text, NULL, 10));
        }
        if (!heft__jinja_item(run, *out, key, out)) {
            return false;
        }
        more = dot != NULL;
        p = more ? dot + 1 : p;
    }
    return true;
}

static bool filter_join(run_t *run, value in, const value *v, value *out)
{
    heft__string between;
    heft__jinja_list items;
    if (!text_or(run, v[0], "", &between) || !heft__jinja_iterate(run, in, &items)) {
        return false;
    }
    const size_t mark = heft__jinja_catch(run);
    for (size_t i = 0; i < items.count; i++) {
        value item = items.items[i];
        if ((given(v[1]) && v[1].kind != HEFT__JINJA_NONE && !get_path(run, item, v[1], &item)) ||
            !heft__jinja_put(run, between.text, i ? between.length : 0) ||
            !heft__jinja_put_value(run, item)) {
            return false;
        }
    }
    return heft__jinja_caught(run, mark, out);
}

static bool filter_items(run_t *run, value in, const value *v, value *out)
{
    (void)v;
    if (in.kind != HEFT__JINJA_UNDEFINED && in.kind != HEFT__JINJA_DICT) {
        return heft__jinja_wrong(run, "'items' of %s", heft__jinja_kind_name(in));
    }
    const size_t count = in.kind == HEFT__JINJA_DICT ? in.dict->count : 0;
    if (!heft__jinja_new_list(run, HEFT__JINJA_ITERATOR, count, out)) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        value pair;
        if (!heft__jinja_new_list(run, HEFT__JINJA_TUPLE, 2, &pair)) {
            return false;
        }
        pair.list->items[0] = in.dict->pairs[i].key;
        pair.list->items[1] = in.dict->pairs[i].value;
        out->list->items[i] = pair;
    }
    return true;
}

/* Insert each item behind those that are not greater; steps are counted. */
static bool sort_items(run_t *run, value *items, value *keys, size_t count, bool reverse)
{
    for (size_t i = 1; i < count; i++) {
        const value item = items[i], key = keys[i];
        size_t to = i;
        for (bool before = true; to > 0; to--) {
            if (!heft__jinja_ordered(run, '<', reverse ? keys[to - 1] : key,
                                     reverse ? key : keys[to - 1], &before)) {
                return false;
            }
            if (!before) {
                break;
            }
            items[to] = items[to - 1];
            keys[to] = keys[to - 1];
        }
        items[to] = item;
        keys[to] = key;
    }
    return true;
}

static bool lower_key(run_t *run, bool keep, value *key)
{
    return keep || key->kind != HEFT__JINJA_STRING || change_case(run, *key, HEFT__CASE_LOWER, key);
}

static bool filter_sort(run_t *run, value in, const value *v, value *out)
{
    heft__jinja_list items;
    value keys;
    bool reverse, keep;
    if (!truth_or(run, v[0], false, &reverse) || !truth_or(run, v[1], false, &keep) ||
        !heft__jinja_iterate(run, in, &items) || !new_items(run, items, HEFT__JINJA_LIST, out) ||
        !new_items(run, items, HEFT__JINJA_LIST, &keys)) {
        return false;
    }
    for (size_t i = 0; i < items.count; i++) {
        value *key = &keys.list->items[i];
        if ((given(v[2]) && v[2].kind != HEFT__JINJA_NONE && !get_path(run, *key, v[2], key)) ||
            !lower_key(run, keep, key)) {
            return false;
        }
    }
    return sort_items(run, out->list->items, keys.list->items, items.count, reverse);
}

static bool filter_dictsort(run_t *run, value in, const value *v, value *out)
{
    value pairs, keys;
    bool keep, reverse;
    if (in.kind != HEFT__JINJA_DICT || (given(v[1]) && !(v[1].kind == HEFT__JINJA_STRING &&
                                                         heft__string_is(v[1].string, "key")))) {
        return heft__jinja_refuse(run, "this dictsort of %s is not known",
                                  heft__jinja_kind_name(in));
    }
    if (!truth_or(run, v[0], false, &keep) || !truth_or(run, v[2], false, &reverse) ||
        !filter_items(run, in, v, &pairs) ||
        !heft__jinja_new_list(run, HEFT__JINJA_LIST, in.dict->count, &keys)) {
        return false;
    }
    for (size_t i = 0; i < in.dict->count; i++) {
        keys.list->items[i] = in.dict->pairs[i].key;
        if (!lower_key(run, keep, &keys.list->items[i])) {
            return false;
        }
    }
    pairs.kind = HEFT__JINJA_LIST;
    *out = pairs;
    return sort_items(run, pairs.list->items, keys.list->items, in.dict->count, reverse);
}

/* ---- others ----------------------------------------------------------------------------------------------- */
static bool filter_default(run_t *run, value in, const value *v, value *out)
{
    bool also_false, truth = true;
    if (!truth_or(run, v[1], false, &also_false) ||
        (also_false && !heft__jinja_truth(run, in, &truth))) {
        return false;
    }
    *out = in;
    if (in.kind == HEFT__JINJA_UNDEFINED || !truth) {
        *out = given(v[0]) ? v[0] : heft__jinja_string("", 0);
    }
    return true;
}

static bool filter_int(run_t *run, value in, const value *v, value *out)
{
    int64_t integer;
    (void)v;
    if (in.kind == HEFT__JINJA_STRING) {
        const heft__string text = heft__jinja_strip(in.string, true, true);
        const size_t sign = text.length > 0 && (text.text[0] == '-' || text.text[0] == '+');
        char copy[24];
        if (text.length == sign || text.length > 18 ||
            strspn(text.text + sign, "0123456789") < text.length - sign) {
            return heft__jinja_refuse(run, "'int' of this string is not known");
        }
        memcpy(copy, text.text, text.length);
        copy[text.length] = '\0';
        *out = heft__jinja_int(strtoll(copy, NULL, 10));
        return true;
    }
    if (in.kind == HEFT__JINJA_FLOAT && in.real > -0x1p62 && in.real < 0x1p62) {
        *out = heft__jinja_int((int64_t)in.real);
        return true;
    }
    if (!heft__jinja_as_int(in, &integer)) {
        return heft__jinja_refuse(run, "'int' of %s is not known", heft__jinja_kind_name(in));
    }
    *out = heft__jinja_int(integer);
    return true;
}

static bool filter_abs(run_t *run, value in, const value *v, value *out)
{
    int64_t integer;
    (void)v;
    *out = in;
    if (in.kind == HEFT__JINJA_FLOAT) {
        out->real = in.real < 0 ? -in.real : in.real;
        return true;
    }
    if (!heft__jinja_as_int(in, &integer) || integer == INT64_MIN) {
        return heft__jinja_refuse(run, "'abs' of %s is not known", heft__jinja_kind_name(in));
    }
    *out = heft__jinja_int(integer < 0 ? -integer : integer);
    return true;
}

/* ---- map, select, reject ---------------------------------------------------------------------------------- */
/* The arguments behind the first `count`. */
static heft__jinja_arguments behind(const heft__jinja_arguments *all, size_t count)
{
    return (heft__jinja_arguments){all->list + count, all->count - count};
}

static bool map_item(run_t *run, const heft__jinja_arguments *all, value item, value *out)
{
    const heft__jinja_argument *first = &all->list[0];
    if (!first->name.text && first->value.kind == HEFT__JINJA_STRING) {
        const heft__jinja_arguments rest = behind(all, 1);
        return heft__jinja_filter(run, first->value.string, item, &rest, out);
    }
    value v[2];
    if (!heft__jinja_bind(run, "map", all, "attribute default", 1, v) || !first->name.text) {
        return run->status == HEFT_OK ? heft__jinja_refuse(run, "this map is not known") : false;
    }
    if (!get_path(run, item, v[0], out)) {
        return false;
    }
    if (out->kind == HEFT__JINJA_UNDEFINED && given(v[1])) {
        *out = v[1];
    }
    return true;
}

/* The items of what is true; none of anything else, also of what cannot be iterated over. */
static bool iterate_true(run_t *run, value in, bool *truth, heft__jinja_list *out)
{
    *out = (heft__jinja_list){0};
    return heft__jinja_truth(run, in, truth) && (!*truth || heft__jinja_iterate(run, in, out));
}

static bool map(run_t *run, value in, const heft__jinja_arguments *all, value *out)
{
    heft__jinja_list items;
    bool truth;
    if (!iterate_true(run, in, &truth, &items)) {
        return false;
    }
    if (truth && all->count == 0) {
        return heft__jinja_wrong(run, "map lacks an argument");
    }
    if (!heft__jinja_new_list(run, HEFT__JINJA_ITERATOR, items.count, out)) {
        return false;
    }
    for (size_t i = 0; i < items.count; i++) {
        if (!map_item(run, all, items.items[i], &out->list->items[i])) {
            return false;
        }
    }
    return true;
}

/* Whether an item is kept by select, or with an attribute by selectattr. */
static bool selects(run_t *run, const heft__jinja_arguments *all, bool attribute, value item,
                    bool *out)
{
    const heft__jinja_arguments own = behind(all, attribute);
    if (attribute && !get_path(run, item, all->list[0].value, &item)) {
        return false;
    }
    if (own.count == 0) {
        return heft__jinja_truth(run, item, out);
    }
    if (own.list[0].name.text || own.list[0].value.kind != HEFT__JINJA_STRING) {
        return heft__jinja_refuse(run, "this test of items is not known");
    }
    const heft__jinja_arguments rest = behind(&own, 1);
    return heft__jinja_test(run, own.list[0].value.string, item, &rest, out);
}

static bool select_items(run_t *run, value in, const heft__jinja_arguments *all, bool attribute,
                         bool keep, value *out)
{
    heft__jinja_list items;
    size_t count = 0;
    bool truth;
    if (!iterate_true(run, in, &truth, &items)) {
        return false;
    }
    if (truth && attribute && (all->count == 0 || all->list[0].name.text)) {
        return heft__jinja_wrong(run, "selectattr or rejectattr lacks an argument");
    }
    if (!heft__jinja_new_list(run, HEFT__JINJA_ITERATOR, items.count, out)) {
        return false;
    }
    for (size_t i = 0; i < items.count; i++) {
        bool selected;
        if (!selects(run, all, attribute, items.items[i], &selected)) {
            return false;
        }
        if (selected == keep) {
            out->list->items[count++] = items.items[i];
        }
    }
    out->list->count = count;
    return true;
}

/* ---- all of them ------------------------------------------------------------------------------------------ */
static const struct filter {
    const char *name, *parameters;
    size_t needed;
    bool (*apply)(run_t *run, value in, const value *v, value *out);
} filters[] = {
    {"trim",       "chars",                                    0, filter_trim      },
    {"upper",      "",                                         0, filter_upper     },
    {"lower",      "",                                         0, filter_lower     },
    {"capitalize", "",                                         0, filter_capitalize},
    {"title",      "",                                         0, filter_title     },
    {"replace",    "old new count",                            2, filter_replace   },
    {"string",     "",                                         0, filter_string    },
    {"indent",     "width first blank",                        0, filter_indent    },
    {"tojson",     "ensure_ascii indent separators sort_keys", 0, filter_tojson    },
    {"length",     "",                                         0, filter_length    },
    {"count",      "",                                         0, filter_length    },
    {"first",      "",                                         0, filter_first     },
    {"last",       "",                                         0, filter_last      },
    {"list",       "",                                         0, filter_list      },
    {"reverse",    "",                                         0, filter_reverse   },
    {"join",       "d attribute",                              0, filter_join      },
    {"items",      "",                                         0, filter_items     },
    {"sort",       "reverse case_sensitive attribute",         0, filter_sort      },
    {"dictsort",   "case_sensitive by reverse",                0, filter_dictsort  },
    {"default",    "default_value boolean",                    0, filter_default   },
    {"d",          "default_value boolean",                    0, filter_default   },
    {"int",        "",                                         0, filter_int       },
    {"abs",        "",                                         0, filter_abs       }
};

bool heft__jinja_filter(run_t *run, heft__string name, value in, const heft__jinja_arguments *all,
                        value *out)
{
    if (heft__string_is(name, "map")) {
        return map(run, in, all, out);
    }
    const bool select = heft__string_is(name, "select"), reject = heft__string_is(name, "reject");
    const bool with = heft__string_is(name, "selectattr");
    if (select || reject || with || heft__string_is(name, "rejectattr")) {
        return select_items(run, in, all, !select && !reject, select || with, out);
    }
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++) {
        if (heft__string_is(name, filters[i].name)) {
            value v[PLACES];
            return heft__jinja_bind(run, filters[i].name, all, filters[i].parameters,
                                    filters[i].needed, v) &&
                   filters[i].apply(run, in, v, out);
        }
    }
    return heft__jinja_refuse(run, "the filter '%.*s' is not known",
                              (int)(name.length < 64 ? name.length : 64), name.text);
}
