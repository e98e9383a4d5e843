/* jinja_value.c - values of a rendering, and what Python says of them: truth, equality, length, iteration. */
#include "text/jinja.h"

#include <math.h>

/* ---- the rendering's accounts ----------------------------------------------------------------------------- */
bool heft__jinja_fail(heft__jinja_run *run, heft_status status, const char *format, ...)
{
    char text[sizeof run->err->message];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (run->status == HEFT_OK) {
        run->status = heft__jinja_fail_line(run->err, status, run->line, "%s", text);
    }
    return false;
}

static bool too_large(heft__jinja_run *run)
{
    if (run->status == HEFT_OK) {
        (void)heft__jinja_fail(run, HEFT_LIMIT, "takes more than %llu bytes of memory",
                               (unsigned long long)run->limit);
        (void)heft__add_limit(HEFT_LIMIT, run->err, "chat_bytes");
    }
    return false;
}

void *heft__jinja_alloc(heft__jinja_run *run, size_t bytes)
{
    void *block = NULL;
    const uint64_t used = run->bytes + run->out.size;
    if (bytes > run->limit || used > run->limit - bytes) {
        (void)too_large(run);
    } else if (!(block = heft__arena_alloc(&run->arena, bytes))) {
        (void)heft__jinja_fail(run, HEFT_NOMEM, "no memory for %zu bytes", bytes);
    } else {
        run->bytes += bytes;
    }
    return block;
}

bool heft__jinja_work(heft__jinja_run *run, uint64_t steps)
{
    run->steps += steps;
    return run->steps <= HEFT__JINJA_STEPS ||
           heft__jinja_fail(run, HEFT_LIMIT, "takes more than %llu steps",
                            (unsigned long long)HEFT__JINJA_STEPS);
}

bool heft__jinja_put(heft__jinja_run *run, const char *text, size_t length)
{
    if (length > run->limit || run->bytes + run->out.size > run->limit - length) {
        return too_large(run);
    }
    heft__buffer_append(&run->out, text, length);
    if (run->out.failed) {
        return heft__jinja_fail(run, HEFT_NOMEM, "no memory for %zu bytes", length);
    }
    return heft__jinja_work(run, length / 64);
}

size_t heft__jinja_catch(heft__jinja_run *run)
{
    return run->out.size;
}

bool heft__jinja_caught(heft__jinja_run *run, size_t mark, heft__jinja_value *out)
{
    const size_t length = run->out.size - mark;
    char *copy = heft__jinja_alloc(run, length + 1);
    if (!copy) {
        return false;
    }
    if (length > 0) {
        memcpy(copy, run->out.data + mark, length);
    }
    copy[length] = '\0';
    run->out.size = mark;
    *out = heft__jinja_string(copy, length);
    return true;
}

/* ---- making them ------------------------------------------------------------------------------------------ */
const char *heft__jinja_kind_name(heft__jinja_value value)
{
    static const char *const names[] = {
        "undefined",   "none",    "a boolean", "an integer", "a number", "a string",
        "a list",      "a tuple", "a map",     "a range",    "a view",   "a list that is read once",
        "a namespace", "a loop",  "a macro",   "a function", "a method", "a value",
        "nothing"};
    return names[value.kind];
}

heft__jinja_value heft__jinja_bool(bool value)
{
    return (heft__jinja_value){.kind = HEFT__JINJA_BOOL, .boolean = value};
}

heft__jinja_value heft__jinja_int(int64_t value)
{
    return (heft__jinja_value){.kind = HEFT__JINJA_INT, .integer = value};
}

heft__jinja_value heft__jinja_string(const char *text, size_t length)
{
    return (heft__jinja_value){
        .kind = HEFT__JINJA_STRING, .string = {text, length}
    };
}

heft__jinja_value heft__jinja_undefined(heft__string name)
{
    return (heft__jinja_value){.kind = HEFT__JINJA_UNDEFINED, .string = name};
}

bool heft__jinja_new_list(heft__jinja_run *run, heft__jinja_kind kind, size_t count,
                          heft__jinja_value *out)
{
    heft__jinja_list *list = heft__jinja_alloc(run, sizeof *list);
    heft__jinja_value *items =
        count < SIZE_MAX / sizeof *items ? heft__jinja_alloc(run, count * sizeof *items) : NULL;
    if (!list || !items || !heft__jinja_work(run, 1 + count / 4)) {
        return false;
    }
    *list = (heft__jinja_list){.items = items, .count = count};
    *out = (heft__jinja_value){.kind = kind, .list = list};
    return true;
}

bool heft__jinja_new_dict(heft__jinja_run *run, heft__jinja_kind kind, size_t cap,
                          heft__jinja_value *out)
{
    heft__jinja_dict *dict = heft__jinja_alloc(run, sizeof *dict);
    heft__jinja_pair *pairs = heft__jinja_alloc(run, cap * sizeof *pairs);
    if (!dict || !pairs) {
        return false;
    }
    *dict = (heft__jinja_dict){.pairs = pairs, .cap = cap};
    *out = (heft__jinja_value){.kind = kind, .dict = dict};
    return true;
}

/* ---- numbers ---------------------------------------------------------------------------------------------- */
bool heft__jinja_as_int(heft__jinja_value value, int64_t *out)
{
    *out = value.kind == HEFT__JINJA_BOOL ? value.boolean : value.integer;
    return value.kind == HEFT__JINJA_BOOL || value.kind == HEFT__JINJA_INT;
}

bool heft__jinja_as_double(heft__jinja_value value, double *out)
{
    int64_t integer;
    if (value.kind == HEFT__JINJA_FLOAT) {
        *out = value.real;
        return true;
    }
    if (!heft__jinja_as_int(value, &integer)) {
        return false;
    }
    *out = (double)integer;
    return true;
}

/* ---- truth and equality ----------------------------------------------------------------------------------- */
bool heft__jinja_is_list(heft__jinja_value value)
{
    return value.kind == HEFT__JINJA_LIST || value.kind == HEFT__JINJA_TUPLE ||
           value.kind == HEFT__JINJA_RANGE || value.kind == HEFT__JINJA_VIEW ||
           value.kind == HEFT__JINJA_ITERATOR;
}

bool heft__jinja_truth(heft__jinja_run *run, heft__jinja_value value, bool *out)
{
    switch (value.kind) {
    case HEFT__JINJA_UNDEFINED:
    case HEFT__JINJA_NONE:
        *out = false;
        return true;
    case HEFT__JINJA_BOOL:
        *out = value.boolean;
        return true;
    case HEFT__JINJA_INT:
        *out = value.integer != 0;
        return true;
    case HEFT__JINJA_FLOAT:
        *out = value.real != 0;
        return true;
    case HEFT__JINJA_STRING:
        *out = value.string.length > 0;
        return true;
    case HEFT__JINJA_LIST:
    case HEFT__JINJA_TUPLE:
    case HEFT__JINJA_RANGE:
    case HEFT__JINJA_VIEW:
        *out = value.list->count > 0;
        return true;
    case HEFT__JINJA_DICT:
        *out = value.dict->count > 0;
        return true;
    case HEFT__JINJA_ITERATOR:
    case HEFT__JINJA_NAMESPACE:
    case HEFT__JINJA_MACRO:
    case HEFT__JINJA_FUNCTION:
    case HEFT__JINJA_METHOD:
        *out = true;
        return true;
    case HEFT__JINJA_LOOP:
    case HEFT__JINJA_REFUSED:
    case HEFT__JINJA_ABSENT:
        break;
    }
    return heft__jinja_refuse(run, "%s as a condition is not known", heft__jinja_kind_name(value));
}

static bool equal_at(heft__jinja_run *run, heft__jinja_value a, heft__jinja_value b, unsigned depth,
                     bool *out);

static bool equal_lists(heft__jinja_run *run, const heft__jinja_list *a, const heft__jinja_list *b,
                        unsigned depth, bool *out)
{
    *out = a->count == b->count;
    for (size_t i = 0; *out && i < a->count; i++) {
        if (!equal_at(run, a->items[i], b->items[i], depth + 1, out)) {
            return false;
        }
    }
    return true;
}

static bool equal_dicts(heft__jinja_run *run, const heft__jinja_dict *a, const heft__jinja_dict *b,
                        unsigned depth, bool *out)
{
    *out = a->count == b->count;
    for (size_t i = 0; *out && i < a->count; i++) {
        heft__jinja_pair *pair;
        if (!heft__jinja_find(run, b, a->pairs[i].key, &pair)) {
            return false;
        }
        *out = pair != NULL;
        if (pair && !equal_at(run, a->pairs[i].value, pair->value, depth + 1, out)) {
            return false;
        }
    }
    return true;
}

static bool is_plain(heft__jinja_value value) /* what JSON has, and tuples */
{
    return value.kind <= HEFT__JINJA_DICT;
}

/* Exactly, as Python does: an integer may lie between two doubles. */
static bool equal_numbers(heft__jinja_value a, heft__jinja_value b)
{
    int64_t x, y;
    double real = 0;
    if (heft__jinja_as_int(a, &x) && heft__jinja_as_int(b, &y)) {
        return x == y;
    }
    if (a.kind == HEFT__JINJA_FLOAT && b.kind == HEFT__JINJA_FLOAT) {
        return a.real == b.real;
    }
    const bool first = heft__jinja_as_int(a, &x);
    real = first ? b.real : a.real;
    if (!first) {
        (void)heft__jinja_as_int(b, &x);
    }
    return real >= -0x1p63 && real < 0x1p63 && floor(real) == real && (int64_t)real == x;
}

static bool equal_at(heft__jinja_run *run, heft__jinja_value a, heft__jinja_value b, unsigned depth,
                     bool *out)
{
    double x, y;
    if (!heft__jinja_work(run, 1)) {
        return false;
    }
    if (depth > HEFT__JINJA_DEPTH) {
        return heft__jinja_fail(run, HEFT_LIMIT, "values are nested too deeply");
    }
    if (heft__jinja_as_double(a, &x) && heft__jinja_as_double(b, &y)) {
        *out = equal_numbers(a, b);
        return true;
    }
    if (!is_plain(a) && !is_plain(b)) {
        return heft__jinja_refuse(run, "comparing %s with %s is not known",
                                  heft__jinja_kind_name(a), heft__jinja_kind_name(b));
    }
    *out = a.kind == b.kind;
    if (!*out || a.kind == HEFT__JINJA_UNDEFINED || a.kind == HEFT__JINJA_NONE) {
        return true;
    }
    if (a.kind == HEFT__JINJA_STRING) {
        *out = a.string.length == b.string.length &&
               memcmp(a.string.text, b.string.text, a.string.length) == 0;
        return heft__jinja_work(run, *out ? a.string.length / 64 : 0);
    }
    return a.kind == HEFT__JINJA_DICT ? equal_dicts(run, a.dict, b.dict, depth, out)
                                      : equal_lists(run, a.list, b.list, depth, out);
}

bool heft__jinja_equal(heft__jinja_run *run, heft__jinja_value a, heft__jinja_value b, bool *out)
{
    return equal_at(run, a, b, 0, out);
}

/* ---- dicts ------------------------------------------------------------------------------------------------ */
bool heft__jinja_find(heft__jinja_run *run, const heft__jinja_dict *dict, heft__jinja_value key,
                      heft__jinja_pair **out)
{
    *out = NULL;
    if (key.kind < HEFT__JINJA_NONE || key.kind > HEFT__JINJA_STRING) {
        return heft__jinja_wrong(run, "%s cannot be a key", heft__jinja_kind_name(key));
    }
    if (!heft__jinja_work(run, dict->count / 4)) {
        return false;
    }
    for (size_t i = 0; i < dict->count && !*out; i++) {
        const heft__jinja_value other = dict->pairs[i].key;
        bool same = false;
        if (key.kind == HEFT__JINJA_STRING && other.kind == HEFT__JINJA_STRING) {
            same = key.string.length == other.string.length &&
                   memcmp(key.string.text, other.string.text, key.string.length) == 0;
        } else if (!equal_at(run, key, other, 0, &same)) {
            return false;
        }
        *out = same ? &dict->pairs[i] : NULL;
    }
    return true;
}

heft__jinja_pair *heft__jinja_find_text(const heft__jinja_dict *dict, const char *key)
{
    for (size_t i = 0; i < dict->count; i++) {
        if (dict->pairs[i].key.kind == HEFT__JINJA_STRING &&
            heft__string_is(dict->pairs[i].key.string, key)) {
            return &dict->pairs[i];
        }
    }
    return NULL;
}

bool heft__jinja_dict_set(heft__jinja_run *run, heft__jinja_dict *dict, heft__jinja_value key,
                          heft__jinja_value value)
{
    heft__jinja_pair *pair;
    if (!heft__jinja_find(run, dict, key, &pair)) {
        return false;
    }
    if (pair) {
        pair->value = value;
        return true;
    }
    if (dict->count == dict->cap) {
        const size_t cap = dict->cap ? 2 * dict->cap : 4;
        heft__jinja_pair *pairs = heft__jinja_alloc(run, cap * sizeof *pairs);
        if (!pairs) {
            return false;
        }
        memcpy(pairs, dict->pairs, dict->count * sizeof *pairs);
        dict->pairs = pairs;
        dict->cap = cap;
    }
    dict->pairs[dict->count++] = (heft__jinja_pair){key, value};
    return true;
}

/* ---- iteration -------------------------------------------------------------------------------------------- */
bool heft__jinja_length(heft__jinja_run *run, heft__jinja_value value, size_t *out)
{
    if (value.kind == HEFT__JINJA_STRING) {
        *out = heft__jinja_characters(value.string);
        return heft__jinja_work(run, value.string.length / 64);
    }
    if (value.kind == HEFT__JINJA_UNDEFINED) {
        *out = 0;
        return true;
    }
    if (value.kind == HEFT__JINJA_DICT) {
        *out = value.dict->count;
        return true;
    }
    if (!heft__jinja_is_list(value) || value.kind == HEFT__JINJA_ITERATOR) {
        return heft__jinja_wrong(run, "%s has no length", heft__jinja_kind_name(value));
    }
    *out = value.list->count;
    return true;
}

static bool split_characters(heft__jinja_run *run, heft__string text, heft__jinja_list *out)
{
    heft__jinja_value list;
    size_t size, i = 0;
    if (!heft__jinja_new_list(run, HEFT__JINJA_LIST, heft__jinja_characters(text), &list)) {
        return false;
    }
    for (size_t at = 0; at < text.length; at += size) {
        (void)heft__utf8_get(text.text + at, &size);
        list.list->items[i++] = heft__jinja_string(text.text + at, size);
    }
    *out = *list.list;
    return true;
}

bool heft__jinja_iterate(heft__jinja_run *run, heft__jinja_value value, heft__jinja_list *out)
{
    *out = (heft__jinja_list){0};
    if (value.kind == HEFT__JINJA_UNDEFINED) {
        return true;
    }
    if (value.kind == HEFT__JINJA_STRING) {
        return split_characters(run, value.string, out);
    }
    if (value.kind == HEFT__JINJA_DICT) {
        heft__jinja_value keys;
        if (!heft__jinja_new_list(run, HEFT__JINJA_LIST, value.dict->count, &keys)) {
            return false;
        }
        for (size_t i = 0; i < value.dict->count; i++) {
            keys.list->items[i] = value.dict->pairs[i].key;
        }
        *out = *keys.list;
        return true;
    }
    if (!heft__jinja_is_list(value)) {
        return heft__jinja_wrong(run, "%s cannot be iterated over", heft__jinja_kind_name(value));
    }
    *out = *value.list;
    if (value.kind == HEFT__JINJA_ITERATOR) {
        out->items += out->read;
        out->count -= out->read;
        out->read = 0;
        value.list->read = value.list->count;
    }
    return true;
}

/* ---- JSON ------------------------------------------------------------------------------------------------- */
static bool number_from_json(heft__jinja_run *run, const heft__json_value *json,
                             heft__jinja_value *out)
{
    int64_t integer;
    double real;
    if (heft__json_as_i64(json, &integer)) {
        *out = heft__jinja_int(integer);
        return true;
    }
    if ((strpbrk(json->text, ".eE") || strpbrk(json->text, "NI")) &&
        heft__json_as_double(json, &real)) {
        *out = (heft__jinja_value){.kind = HEFT__JINJA_FLOAT, .real = real};
        return true;
    }
    return heft__jinja_refuse(run, "the integer '%.40s' has more than 64 bits", json->text);
}

static bool from_json(heft__jinja_run *run, const heft__json_value *json, unsigned depth,
                      heft__jinja_value *out)
{
    size_t i = 0;
    if (depth > HEFT__JINJA_DEPTH) {
        return heft__jinja_fail(run, HEFT_LIMIT, "values are nested too deeply");
    }
    switch (json->type) {
    case HEFT__JSON_TYPE_NULL:
        *out = (heft__jinja_value){.kind = HEFT__JINJA_NONE};
        return true;
    case HEFT__JSON_TYPE_BOOL:
        *out = heft__jinja_bool(json->boolean);
        return true;
    case HEFT__JSON_TYPE_NUMBER:
        return number_from_json(run, json, out);
    case HEFT__JSON_TYPE_STRING:
        *out = heft__jinja_string(json->text, json->length);
        return true;
    case HEFT__JSON_TYPE_ARRAY:
        if (!heft__jinja_new_list(run, HEFT__JINJA_LIST, json->count, out)) {
            return false;
        }
        for (const heft__json_value *v = json->first; v; v = v->next) {
            if (!from_json(run, v, depth + 1, &out->list->items[i++])) {
                return false;
            }
        }
        return true;
    case HEFT__JSON_TYPE_OBJECT:
        if (!heft__jinja_new_dict(run, HEFT__JINJA_DICT, json->count, out)) {
            return false;
        }
        for (const heft__json_value *v = json->first; v; v = v->next) { /* keys are distinct */
            heft__jinja_pair *pair = &out->dict->pairs[out->dict->count++];
            pair->key = heft__jinja_string(v->key, v->key_length);
            if (!from_json(run, v, depth + 1, &pair->value)) {
                return false;
            }
        }
        return true;
    }
    return false;
}

bool heft__jinja_from_json(heft__jinja_run *run, const heft__json_value *json,
                           heft__jinja_value *out)
{
    return from_json(run, json, 0, out);
}
