/* jinja_method.c - methods of Python's strings, dicts and lists, as chat templates call them.
 *
 * A name that Python's type has and that is not here is refused; one that it has not is an item, or undefined. */
#include "text/jinja.h"

typedef heft__jinja_value value;
typedef heft__jinja_run run_t;

#define PLACES 3

/* What Python's types have: to tell a method that is not known from a member that does not exist. */
static const char of_string[] = "capitalize casefold center count encode endswith expandtabs find "
                                "format format_map index isalnum "
                                "isalpha isascii isdecimal isdigit isidentifier islower isnumeric "
                                "isprintable isspace istitle isupper "
                                "join ljust lower lstrip maketrans partition removeprefix "
                                "removesuffix replace rfind rindex rjust "
                                "rpartition rsplit rstrip split splitlines startswith strip "
                                "swapcase title translate upper zfill";
static const char of_list[] = "append clear copy count extend index insert pop remove reverse sort";
static const char of_tuple[] = "count index";
static const char of_dict[] =
    "clear copy fromkeys get items keys pop popitem setdefault update values";
static const char of_number[] =
    "as_integer_ratio bit_count bit_length conjugate denominator from_bytes fromhex hex imag "
    "is_integer numerator real to_bytes";

bool heft__jinja_has_method(value of, heft__string name)
{
    const char *names =
        of.kind == HEFT__JINJA_STRING  ? of_string
        : of.kind == HEFT__JINJA_LIST  ? of_list
        : of.kind == HEFT__JINJA_TUPLE ? of_tuple
        : of.kind == HEFT__JINJA_DICT  ? of_dict
        : of.kind == HEFT__JINJA_BOOL || of.kind == HEFT__JINJA_INT || of.kind == HEFT__JINJA_FLOAT
            ? of_number
            : "";
    return heft__place_in(names, name) != SIZE_MAX;
}

static bool given(value v)
{
    return v.kind != HEFT__JINJA_ABSENT;
}

static bool not_string(run_t *run, value v)
{
    return heft__jinja_refuse(run, "%s as the argument of a string's method is not known",
                              heft__jinja_kind_name(v));
}

/* ---- stripping -------------------------------------------------------------------------------------------- */
/* Whether the character that `one` is, is in a set. */
static bool in_set(heft__string set, heft__string one)
{
    return heft__jinja_search(set, 0, one) != SIZE_MAX;
}

static heft__string strip_set(heft__string text, heft__string set, bool left, bool right)
{
    size_t size;
    while (left && text.length > 0) {
        (void)heft__utf8_get(text.text, &size);
        if (!in_set(set, (heft__string){text.text, size})) {
            break;
        }
        text.text += size;
        text.length -= size;
    }
    while (right && text.length > 0) {
        size_t at = text.length - 1;
        while (at > 0 && ((unsigned char)text.text[at] & 0xC0) == 0x80) {
            at--;
        }
        if (!in_set(set, (heft__string){text.text + at, text.length - at})) {
            break;
        }
        text.length = at;
    }
    return text;
}

static bool strip(run_t *run, heft__string text, const value *v, bool left, bool right, value *out)
{
    if (given(v[0]) && v[0].kind != HEFT__JINJA_NONE) {
        if (v[0].kind != HEFT__JINJA_STRING) {
            return not_string(run, v[0]);
        }
        if (!heft__jinja_work(run, (text.length / 8 + 1) * (v[0].string.length / 8 + 1))) {
            return false;
        }
        text = strip_set(text, v[0].string, left, right);
    } else {
        text = heft__jinja_strip(text, left, right);
    }
    *out = heft__jinja_string(text.text, text.length);
    return heft__jinja_work(run, 1);
}

static bool do_strip(run_t *run, heft__string text, const value *v, value *out)
{
    return strip(run, text, v, true, true, out);
}
static bool do_lstrip(run_t *run, heft__string text, const value *v, value *out)
{
    return strip(run, text, v, true, false, out);
}
static bool do_rstrip(run_t *run, heft__string text, const value *v, value *out)
{
    return strip(run, text, v, false, true, out);
}

/* ---- splitting -------------------------------------------------------------------------------------------- */
/* How often to split at most, -1: no limit. */
static bool most_of(run_t *run, value v, int64_t *out)
{
    *out = -1;
    if (given(v) && !heft__jinja_as_int(v, out)) {
        return heft__jinja_refuse(run, "the number of splits is not known");
    }
    return true;
}

/* The parts between separators; more than `most` separators stay, the first ones or, from the right, the
 * last ones. */
static bool split_at(run_t *run, heft__string text, heft__string by, int64_t most, bool right,
                     value *out)
{
    size_t found = 0, at = 0, skip = 0, part = 0, first = 0;
    while ((at = heft__jinja_search(text, at, by)) != SIZE_MAX) {
        found++;
        at += by.length;
        if (!heft__jinja_work(run, 1)) {
            return false;
        }
    }
    const size_t splits = most >= 0 && (uint64_t)most < found ? (size_t)most : found;
    skip = right ? found - splits : 0;
    if (right && skip > 0 &&
        by.length > 1) { /* separators may overlap: they count from the right */
        return heft__jinja_refuse(run, "rsplit with this separator is not known");
    }
    if (!heft__jinja_new_list(run, HEFT__JINJA_LIST, splits + 1, out)) {
        return false;
    }
    at = 0;
    while (part < splits) {
        at = heft__jinja_search(text, at, by);
        if (skip > 0) {
            skip--;
        } else {
            out->list->items[part++] = heft__jinja_string(text.text + first, at - first);
            first = at + by.length;
        }
        at += by.length;
    }
    out->list->items[part] = heft__jinja_string(text.text + first, text.length - first);
    return heft__jinja_work(run, text.length / 32);
}

/* Words between white space. */
static bool split_words(run_t *run, heft__string text, int64_t most, value *out)
{
    size_t count = 0, size;
    bool word = false;
    for (size_t i = 0; i < text.length; i += size) {
        const bool space = heft__jinja_is_space(heft__utf8_get(text.text + i, &size));
        count += !space && !word;
        word = !space;
    }
    const size_t whole = most >= 0 && (uint64_t)most < count ? (size_t)most : count;
    if (!heft__jinja_work(run, text.length / 8) ||
        !heft__jinja_new_list(run, HEFT__JINJA_LIST, whole + (whole < count), out)) {
        return false;
    }
    for (size_t part = 0; part < whole; part++) {
        text = heft__jinja_strip(text, true, false);
        size_t end = 0;
        while (end < text.length && !heft__jinja_is_space(heft__utf8_get(text.text + end, &size))) {
            end += size;
        }
        out->list->items[part] = heft__jinja_string(text.text, end);
        text.text += end;
        text.length -= end;
    }
    if (whole < count) { /* the rest, with the white space at its end */
        text = heft__jinja_strip(text, true, false);
        out->list->items[whole] = heft__jinja_string(text.text, text.length);
    }
    return true;
}

static bool split(run_t *run, heft__string text, const value *v, bool right, value *out)
{
    int64_t most;
    if (!most_of(run, v[1], &most)) {
        return false;
    }
    if (!given(v[0]) || v[0].kind == HEFT__JINJA_NONE) {
        return right && most >= 0 ? heft__jinja_refuse(run, "rsplit of words is not known")
                                  : split_words(run, text, most, out);
    }
    if (v[0].kind != HEFT__JINJA_STRING) {
        return not_string(run, v[0]);
    }
    return v[0].string.length == 0 ? heft__jinja_wrong(run, "an empty separator")
                                   : split_at(run, text, v[0].string, most, right, out);
}

static bool do_split(run_t *run, heft__string text, const value *v, value *out)
{
    return split(run, text, v, false, out);
}
static bool do_rsplit(run_t *run, heft__string text, const value *v, value *out)
{
    return split(run, text, v, true, out);
}

static bool do_splitlines(run_t *run, heft__string text, const value *v, value *out)
{
    bool keep = false;
    return (!given(v[0]) || heft__jinja_truth(run, v[0], &keep)) &&
           heft__jinja_lines(run, text, keep, out);
}

/* ---- looking ---------------------------------------------------------------------------------------------- */
static bool has_end(heft__string text, heft__string end, bool at_start)
{
    return end.length <= text.length &&
           memcmp(text.text + (at_start ? 0 : text.length - end.length), end.text, end.length) == 0;
}

static bool ends(run_t *run, heft__string text, const value *v, bool at_start, value *out)
{
    heft__jinja_list one = {.items = (value[]){v[0]}, .count = 1};
    bool holds = false;
    if (v[0].kind == HEFT__JINJA_TUPLE) {
        one = *v[0].list;
    }
    for (size_t i = 0; i < one.count; i++) {
        if (one.items[i].kind != HEFT__JINJA_STRING) {
            return not_string(run, one.items[i]);
        }
        holds = holds || has_end(text, one.items[i].string, at_start);
    }
    *out = heft__jinja_bool(holds);
    return heft__jinja_work(run, one.count);
}

static bool do_startswith(run_t *run, heft__string text, const value *v, value *out)
{
    return ends(run, text, v, true, out);
}
static bool do_endswith(run_t *run, heft__string text, const value *v, value *out)
{
    return ends(run, text, v, false, out);
}

static bool remove_end(run_t *run, heft__string text, const value *v, bool at_start, value *out)
{
    if (v[0].kind != HEFT__JINJA_STRING) {
        return not_string(run, v[0]);
    }
    const size_t cut = has_end(text, v[0].string, at_start) ? v[0].string.length : 0;
    *out = heft__jinja_string(text.text + (at_start ? cut : 0), text.length - cut);
    return true;
}

static bool do_removeprefix(run_t *run, heft__string text, const value *v, value *out)
{
    return remove_end(run, text, v, true, out);
}
static bool do_removesuffix(run_t *run, heft__string text, const value *v, value *out)
{
    return remove_end(run, text, v, false, out);
}

/* The place of the first occurrence, or of the last one, in characters; -1: none. */
static bool find(run_t *run, heft__string text, const value *v, bool last, value *out)
{
    if (v[0].kind != HEFT__JINJA_STRING) {
        return not_string(run, v[0]);
    }
    size_t at = heft__jinja_search(text, 0, v[0].string), next = at;
    while (last && next != SIZE_MAX) {
        at = next;
        next = heft__jinja_search(text, at + 1, v[0].string);
        if (!heft__jinja_work(run, 1)) {
            return false;
        }
    }
    *out = heft__jinja_int(
        at == SIZE_MAX ? -1 : (int64_t)heft__jinja_characters((heft__string){text.text, at}));
    return heft__jinja_work(run, text.length / 32);
}

static bool do_find(run_t *run, heft__string text, const value *v, value *out)
{
    return find(run, text, v, false, out);
}
static bool do_rfind(run_t *run, heft__string text, const value *v, value *out)
{
    return find(run, text, v, true, out);
}

static bool do_count(run_t *run, heft__string text, const value *v, value *out)
{
    int64_t count = 0;
    size_t at = 0;
    if (v[0].kind != HEFT__JINJA_STRING || v[0].string.length == 0) {
        return not_string(run, v[0]);
    }
    while ((at = heft__jinja_search(text, at, v[0].string)) != SIZE_MAX) {
        count++;
        at += v[0].string.length;
        if (!heft__jinja_work(run, 1)) {
            return false;
        }
    }
    *out = heft__jinja_int(count);
    return heft__jinja_work(run, text.length / 32);
}

/* Of ASCII; what else there is, is refused, apart from an empty text. */
static bool of_ascii(run_t *run, heft__string text, const char *first, const char *last, value *out)
{
    bool holds = text.length > 0;
    for (size_t i = 0; i < text.length; i++) {
        const char c = text.text[i];
        bool in = false;
        if ((unsigned char)c >= 0x80) {
            return heft__jinja_refuse(run, "this method of a text that is not ASCII is not known");
        }
        for (size_t r = 0; first[r]; r++) {
            in = in || (c >= first[r] && c <= last[r]);
        }
        holds = holds && in;
    }
    *out = heft__jinja_bool(holds);
    return heft__jinja_work(run, text.length / 16);
}

static bool do_isdigit(run_t *run, heft__string text, const value *v, value *out)
{
    (void)v;
    return of_ascii(run, text, "0", "9", out);
}
static bool do_isalpha(run_t *run, heft__string text, const value *v, value *out)
{
    (void)v;
    return of_ascii(run, text, "aA", "zZ", out);
}
static bool do_isalnum(run_t *run, heft__string text, const value *v, value *out)
{
    (void)v;
    return of_ascii(run, text, "aA0", "zZ9", out);
}
static bool do_isspace(run_t *run, heft__string text, const value *v, value *out)
{
    (void)v;
    *out = heft__jinja_bool(text.length > 0 && heft__jinja_strip(text, true, false).length == 0);
    return heft__jinja_work(run, text.length / 16);
}

/* ---- changing --------------------------------------------------------------------------------------------- */
static bool filtered(run_t *run, const char *name, heft__string text, value *out)
{
    const heft__jinja_arguments none = {0};
    return heft__jinja_filter(run, (heft__string){name, strlen(name)},
                              heft__jinja_string(text.text, text.length), &none, out);
}

static bool do_upper(run_t *run, heft__string text, const value *v, value *out)
{
    (void)v;
    return filtered(run, "upper", text, out);
}
static bool do_lower(run_t *run, heft__string text, const value *v, value *out)
{
    (void)v;
    return filtered(run, "lower", text, out);
}
static bool do_capitalize(run_t *run, heft__string text, const value *v, value *out)
{
    (void)v;
    return filtered(run, "capitalize", text, out);
}

/* Each run of letters begins with an upper case one. */
static bool do_title(run_t *run, heft__string text, const value *v, value *out)
{
    const size_t mark = heft__jinja_catch(run);
    bool letter = false;
    (void)v;
    for (size_t i = 0; i < text.length; i++) {
        const heft__string one = {text.text + i, 1};
        const char c = (char)(text.text[i] | 32);
        if ((unsigned char)text.text[i] >= 0x80) {
            return heft__jinja_refuse(run, "title() of a text that is not ASCII is not known");
        }
        if (!heft__jinja_put_case(run, letter ? HEFT__CASE_LOWER : HEFT__CASE_UPPER, one)) {
            return false;
        }
        letter = c >= 'a' && c <= 'z';
    }
    return heft__jinja_caught(run, mark, out);
}

static bool do_replace(run_t *run, heft__string text, const value *v, value *out)
{
    int64_t most;
    if (v[0].kind != HEFT__JINJA_STRING || v[1].kind != HEFT__JINJA_STRING) {
        return not_string(run, v[v[0].kind == HEFT__JINJA_STRING]);
    }
    const size_t mark = heft__jinja_catch(run);
    return most_of(run, v[2], &most) &&
           heft__jinja_put_replaced(run, text, v[0].string, v[1].string, most) &&
           heft__jinja_caught(run, mark, out);
}

static bool do_join(run_t *run, heft__string text, const value *v, value *out)
{
    heft__jinja_list items;
    if (v[0].kind == HEFT__JINJA_UNDEFINED || !heft__jinja_iterate(run, v[0], &items)) {
        return run->status == HEFT_OK ? not_string(run, v[0]) : false;
    }
    const size_t mark = heft__jinja_catch(run);
    for (size_t i = 0; i < items.count; i++) {
        if (items.items[i].kind != HEFT__JINJA_STRING) {
            return not_string(run, items.items[i]);
        }
        if (!heft__jinja_put(run, text.text, i ? text.length : 0) ||
            !heft__jinja_put_value(run, items.items[i])) {
            return false;
        }
    }
    return heft__jinja_caught(run, mark, out);
}

static const struct method {
    const char *name, *parameters;
    size_t needed;
    bool (*call)(run_t *run, heft__string text, const value *v, value *out);
} methods[] = {
    {"strip",        "chars",         0, do_strip       },
    {"lstrip",       "chars",         0, do_lstrip      },
    {"rstrip",       "chars",         0, do_rstrip      },
    {"split",        "sep maxsplit",  0, do_split       },
    {"rsplit",       "sep maxsplit",  0, do_rsplit      },
    {"splitlines",   "keepends",      0, do_splitlines  },
    {"startswith",   "prefix",        1, do_startswith  },
    {"endswith",     "suffix",        1, do_endswith    },
    {"removeprefix", "prefix",        1, do_removeprefix},
    {"removesuffix", "suffix",        1, do_removesuffix},
    {"find",         "sub",           1, do_find        },
    {"rfind",        "sub",           1, do_rfind       },
    {"count",        "sub",           1, do_count       },
    {"isdigit",      "",              0, do_isdigit     },
    {"isalpha",      "",              0, do_isalpha     },
    {"isalnum",      "",              0, do_isalnum     },
    {"isspace",      "",              0, do_isspace     },
    {"upper",        "",              0, do_upper       },
    {"lower",        "",              0, do_lower       },
    {"capitalize",   "",              0, do_capitalize  },
    {"title",        "",              0, do_title       },
    {"replace",      "old new count", 2, do_replace     },
    {"join",         "iterable",      1, do_join        }
};

/* ---- dicts, lists, the loop ------------------------------------------------------------------------------- */
static bool call_dict(run_t *run, const heft__jinja_method *method,
                      const heft__jinja_arguments *arguments, value *out)
{
    const heft__jinja_dict *dict = method->self.dict;
    const bool keys = heft__string_is(method->name, "keys");
    value v[2], key;
    if (heft__string_is(method->name, "get")) {
        heft__jinja_pair *pair;
        if (!heft__jinja_bind(run, "get()", arguments, "key default", 1, v) ||
            !heft__jinja_find(run, dict, v[0], &pair)) {
            return false;
        }
        *out = pair ? pair->value : given(v[1]) ? v[1] : (value){.kind = HEFT__JINJA_NONE};
        return true;
    }
    if (!heft__jinja_bind(run, "the method", arguments, "", 0, v)) {
        return false;
    }
    if (heft__string_is(method->name, "items")) {
        if (!heft__jinja_filter(run, method->name, method->self, arguments, out)) {
            return false;
        }
        out->kind = HEFT__JINJA_VIEW;
        return true;
    }
    if (!heft__jinja_new_list(run, HEFT__JINJA_VIEW, dict->count, out)) {
        return false;
    }
    for (size_t i = 0; i < dict->count; i++) {
        key = dict->pairs[i].key;
        out->list->items[i] = keys ? key : dict->pairs[i].value;
    }
    return true;
}

static bool call_list(run_t *run, const heft__jinja_method *method,
                      const heft__jinja_arguments *arguments, value *out)
{
    const bool index = heft__string_is(method->name, "index");
    const heft__jinja_list *list = method->self.list;
    int64_t count = 0;
    value v[1];
    if (!heft__jinja_bind(run, "the method", arguments, "value", 1, v)) {
        return false;
    }
    for (size_t i = 0; i < list->count; i++) {
        bool same;
        if (!heft__jinja_equal(run, list->items[i], v[0], &same)) {
            return false;
        }
        if (same && index) {
            *out = heft__jinja_int((int64_t)i);
            return true;
        }
        count += same;
    }
    *out = heft__jinja_int(count);
    return !index || heft__jinja_wrong(run, "index() of what is not in the list");
}

static bool call_cycle(run_t *run, const heft__jinja_loop *loop,
                       const heft__jinja_arguments *arguments, value *out)
{
    if (arguments->count == 0) {
        return heft__jinja_wrong(run, "loop.cycle() lacks an argument");
    }
    const heft__jinja_argument *chosen = &arguments->list[loop->index % arguments->count];
    *out = chosen->value;
    return !chosen->name.text || heft__jinja_refuse(run, "this loop.cycle() is not known");
}

bool heft__jinja_call_method(run_t *run, const heft__jinja_method *method,
                             const heft__jinja_arguments *arguments, value *out)
{
    const heft__string name = method->name;
    const heft__jinja_kind kind = method->self.kind;
    value v[PLACES];
    if (kind == HEFT__JINJA_LOOP) {
        return call_cycle(run, method->self.loop, arguments, out);
    }
    if (kind == HEFT__JINJA_DICT && heft__place_in("get items keys values", name) != SIZE_MAX) {
        return call_dict(run, method, arguments, out);
    }
    if ((kind == HEFT__JINJA_LIST || kind == HEFT__JINJA_TUPLE) &&
        heft__place_in("count index", name) != SIZE_MAX) {
        return call_list(run, method, arguments, out);
    }
    for (size_t i = 0; kind == HEFT__JINJA_STRING && i < sizeof methods / sizeof *methods; i++) {
        if (heft__string_is(name, methods[i].name)) {
            return heft__jinja_bind(run, methods[i].name, arguments, methods[i].parameters,
                                    methods[i].needed, v) &&
                   methods[i].call(run, method->self.string, v, out);
        }
    }
    return heft__jinja_refuse(run, "the method '%.*s' of %s is not known", (int)name.length,
                              name.text, heft__jinja_kind_name(method->self));
}
