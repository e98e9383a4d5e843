/* jinja_function.c - functions that a chat template can call: those of Jinja and those that Transformers
 * adds. */
#include "text/jinja.h"

#include <time.h>

typedef heft__jinja_value value;
typedef heft__jinja_run run_t;

enum { RANGE, DICT, NAMESPACE, RAISE_EXCEPTION, STRFTIME_NOW };
const char *const heft__jinja_functions[] = {"range",           "dict",         "namespace",
                                             "raise_exception", "strftime_now", NULL};

static bool range(run_t *run, const heft__jinja_arguments *given, value *out)
{
    int64_t bounds[3] = {0, 0, 1};
    for (size_t i = 0; i < given->count && i < 3; i++) {
        if (given->list[i].name.text || !heft__jinja_as_int(given->list[i].value, &bounds[i]) ||
            bounds[i] > INT32_MAX || bounds[i] < INT32_MIN) {
            return heft__jinja_refuse(run, "this range() is not known");
        }
    }
    if (given->count == 0 || given->count > 3 || bounds[2] == 0) {
        return heft__jinja_wrong(run, "the arguments of range()");
    }
    if (given->count == 1) {
        bounds[1] = bounds[0];
        bounds[0] = 0;
    }
    const int64_t step = bounds[2], span = step > 0 ? bounds[1] - bounds[0] : bounds[0] - bounds[1];
    const int64_t stride = step > 0 ? step : -step;
    const int64_t count = span > 0 ? (span + stride - 1) / stride : 0;
    if (count > HEFT__JINJA_RANGE_MAX) {
        return heft__jinja_fail(run, HEFT_LIMIT, "a range of more than %d numbers",
                                HEFT__JINJA_RANGE_MAX);
    }
    if (!heft__jinja_new_list(run, HEFT__JINJA_RANGE, (size_t)count, out)) {
        return false;
    }
    for (int64_t i = 0; i < count; i++) {
        out->list->items[i] = heft__jinja_int(bounds[0] + i * step);
    }
    return true;
}

/* dict(a=1) and namespace(a=1); a dict may be their first argument. */
static bool make_dict(run_t *run, const heft__jinja_arguments *given, heft__jinja_kind kind,
                      value *out)
{
    if (!heft__jinja_new_dict(run, kind, given->count, out)) {
        return false;
    }
    for (size_t i = 0; i < given->count; i++) {
        const heft__string name = given->list[i].name;
        const value of = given->list[i].value;
        if (!name.text && (i > 0 || of.kind != HEFT__JINJA_DICT)) {
            return heft__jinja_refuse(run, "this argument of %s() is not known",
                                      kind == HEFT__JINJA_DICT ? "dict" : "namespace");
        }
        for (size_t k = 0; !name.text && k < of.dict->count; k++) {
            const heft__jinja_pair *pair = &of.dict->pairs[k];
            if (pair->key.kind != HEFT__JINJA_STRING) {
                return heft__jinja_refuse(run, "a key that is no string is not known here");
            }
            if (!heft__jinja_dict_set(run, out->dict, pair->key, pair->value)) {
                return false;
            }
        }
        if (name.text &&
            !heft__jinja_dict_set(run, out->dict, heft__jinja_string(name.text, name.length), of)) {
            return false;
        }
    }
    for (size_t i = 0; kind == HEFT__JINJA_NAMESPACE && i < out->dict->count; i++) {
        const heft__string name = out->dict->pairs[i].key.string;
        if (name.length > 0 && name.text[0] == '_') {
            return heft__jinja_wrong(run, "a namespace has no member that begins with '_'");
        }
    }
    return true;
}

static bool raise(run_t *run, const heft__jinja_arguments *given)
{
    heft__string text;
    value v[1];
    if (!heft__jinja_bind(run, "raise_exception()", given, "message", 1, v) ||
        !heft__jinja_to_text(run, v[0], &text)) {
        return false;
    }
    return heft__jinja_fail(run, HEFT_INVALID_ARG, "the template refuses the messages: %.*s",
                            (int)(text.length < 300 ? text.length : 300), text.text);
}

/* One directive of strftime in English; false if it is not known. */
static bool put_time(run_t *run, const struct tm *now, char directive)
{
    static const char *const months[] = {"January",   "February", "March",    "April",
                                         "May",       "June",     "July",     "August",
                                         "September", "October",  "November", "December"};
    static const char *const days[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                       "Thursday", "Friday", "Saturday"};
    const int hour = now->tm_hour % 12 == 0 ? 12 : now->tm_hour % 12;
    char text[32] = "";
    switch (directive) {
    case 'Y':
        (void)snprintf(text, sizeof text, "%d", now->tm_year + 1900);
        break;
    case 'B':
    case 'b':
        (void)snprintf(text, sizeof text, directive == 'B' ? "%s" : "%.3s", months[now->tm_mon]);
        break;
    case 'A':
    case 'a':
        (void)snprintf(text, sizeof text, directive == 'A' ? "%s" : "%.3s", days[now->tm_wday]);
        break;
    case 'j':
        (void)snprintf(text, sizeof text, "%03d", now->tm_yday + 1);
        break;
    case 'p':
        (void)snprintf(text, sizeof text, "%s", now->tm_hour < 12 ? "AM" : "PM");
        break;
    case '%':
        text[0] = '%';
        break;
    default: {
        const char names[] = "dmHMSIy";
        const int values[] = {now->tm_mday,      now->tm_mon + 1, now->tm_hour,
                              now->tm_min,       now->tm_sec,     hour,
                              now->tm_year % 100};
        const char *found = directive ? strchr(names, directive) : NULL;
        if (!found) {
            return heft__jinja_refuse(run, "'%%%c' of strftime_now() is not known", directive);
        }
        (void)snprintf(text, sizeof text, "%02d", values[found - names]);
    }
    }
    return heft__jinja_put(run, text, strlen(text));
}

static bool strftime_now(run_t *run, const heft__jinja_arguments *given, value *out)
{
    const time_t seconds = (time_t)run->now;
    const size_t mark = heft__jinja_catch(run);
    struct tm now;
    value v[1];
    if (!heft__jinja_bind(run, "strftime_now()", given, "format", 1, v)) {
        return false;
    }
    if (v[0].kind != HEFT__JINJA_STRING || !localtime_r(&seconds, &now)) {
        return heft__jinja_refuse(run, "this strftime_now() is not known");
    }
    const heft__string format = v[0].string;
    for (size_t i = 0; i < format.length; i++) {
        const bool directive = format.text[i] == '%';
        i += directive;
        if (directive ? !put_time(run, &now, i < format.length ? format.text[i] : '\0')
                      : !heft__jinja_put(run, format.text + i, 1)) {
            return false;
        }
    }
    return heft__jinja_caught(run, mark, out);
}

bool heft__jinja_call_function(run_t *run, size_t function, const heft__jinja_arguments *given,
                               value *out)
{
    switch (function) {
    case RANGE:
        return range(run, given, out);
    case DICT:
        return make_dict(run, given, HEFT__JINJA_DICT, out);
    case NAMESPACE:
        return make_dict(run, given, HEFT__JINJA_NAMESPACE, out);
    case RAISE_EXCEPTION:
        return raise(run, given);
    default:
        return strftime_now(run, given, out);
    }
}
