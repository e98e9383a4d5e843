/* jinja_eval.c - expressions of a chat template. */
#include "text/jinja.h"

#include <math.h>

typedef heft__jinja_value value;
typedef heft__jinja_node node;
typedef heft__jinja_run run_t;

/* ---- names and members ------------------------------------------------------------------------------------ */
static bool eval_name(run_t *run, const node *n, value *out)
{
    uint64_t passed = 0;
    for (const heft__jinja_scope *scope = run->scope; scope; scope = scope->parent) {
        for (const heft__jinja_cell *cell = scope->cells; cell; cell = cell->next, passed++) {
            if (cell->name == n->name) {
                *out = cell->value;
                return cell->value.kind != HEFT__JINJA_REFUSED
                           ? heft__jinja_work(run, passed / 8)
                           : heft__jinja_refuse(run, "'%.*s' %s", (int)n->text.length, n->text.text,
                                                cell->value.string.text);
            }
        }
    }
    *out = heft__jinja_undefined(n->text);
    return heft__jinja_work(run, passed / 8);
}

static int shown(heft__string text) /* of its bytes in a message */
{
    return (int)(text.length < 64 ? text.length : 64);
}

/* What is done with a value that is undefined, apart from what Jinja allows. */
static bool is_undefined(run_t *run, value of)
{
    return heft__jinja_wrong(run, "'%.*s' is undefined", shown(of.string), of.string.text);
}

static bool loop_attribute(run_t *run, const heft__jinja_loop *loop, heft__string name, value *out)
{
    const size_t index = loop->index, left = loop->count - index;
    const struct {
        const char *name;
        value value;
    } known[] = {
        {"index",     heft__jinja_int((int64_t)index + 1)                             },
        {"index0",    heft__jinja_int((int64_t)index)                                 },
        {"revindex",  heft__jinja_int((int64_t)left)                                  },
        {"revindex0", heft__jinja_int((int64_t)left - 1)                              },
        {"first",     heft__jinja_bool(index == 0)                                    },
        {"last",      heft__jinja_bool(left == 1)                                     },
        {"length",    heft__jinja_int((int64_t)loop->count)                           },
        {"depth",     heft__jinja_int(1)                                              },
        {"depth0",    heft__jinja_int(0)                                              },
        {"previtem",  index > 0 ? loop->items[index - 1] : heft__jinja_undefined(name)},
        {"nextitem",  left > 1 ? loop->items[index + 1] : heft__jinja_undefined(name) }
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (heft__string_is(name, known[i].name)) {
            *out = known[i].value;
            return true;
        }
    }
    return heft__jinja_refuse(run, "'loop.%.*s' is not known", shown(name), name.text);
}

static bool method_of(run_t *run, value of, heft__string name, value *out)
{
    heft__jinja_method *method = heft__jinja_alloc(run, sizeof *method);
    if (!method) {
        return false;
    }
    *method = (heft__jinja_method){of, name};
    *out = (value){.kind = HEFT__JINJA_METHOD, .method = method};
    return true;
}

/* Members of what is no dict and has no items: of the loop and of namespaces. */
static bool own_member(run_t *run, value of, heft__string name, value *out)
{
    if (of.kind == HEFT__JINJA_LOOP) {
        return heft__string_is(name, "cycle") ? method_of(run, of, name, out)
                                              : loop_attribute(run, of.loop, name, out);
    }
    heft__jinja_pair *pair = NULL;
    if (!heft__jinja_find(run, of.dict, heft__jinja_string(name.text, name.length), &pair)) {
        return false;
    }
    *out = pair ? pair->value : heft__jinja_undefined(name);
    return true;
}

static bool check_member(run_t *run, value of, heft__string name)
{
    if (of.kind == HEFT__JINJA_UNDEFINED) {
        return is_undefined(run, of);
    }
    if (of.kind == HEFT__JINJA_ITERATOR || of.kind > HEFT__JINJA_LOOP ||
        (of.kind >= HEFT__JINJA_RANGE && of.kind <= HEFT__JINJA_VIEW) ||
        (name.length > 1 && name.text[0] == '_' && name.text[1] == '_')) {
        return heft__jinja_refuse(run, "the member '%.*s' of %s is not known", shown(name),
                                  name.text, heft__jinja_kind_name(of));
    }
    return true;
}

bool heft__jinja_attribute(run_t *run, value of, heft__string name, value *out)
{
    if (!check_member(run, of, name)) {
        return false;
    }
    if (of.kind == HEFT__JINJA_LOOP || of.kind == HEFT__JINJA_NAMESPACE) {
        return own_member(run, of, name, out);
    }
    if (heft__jinja_has_method(of, name)) { /* before the items of a dict */
        return method_of(run, of, name, out);
    }
    return heft__jinja_item(run, of, heft__jinja_string(name.text, name.length), out);
}

/* An index as Python takes it, from the end if it is negative; false if there is no such item. */
static bool resolve_index(int64_t index, size_t count, size_t *out)
{
    if (index < 0) {
        index += (int64_t)count;
    }
    *out = (size_t)index;
    return index >= 0 && (uint64_t)index < count;
}

static bool indexed(run_t *run, value of, int64_t index, value *out)
{
    size_t count, at, size;
    if (!heft__jinja_length(run, of, &count)) {
        return false;
    }
    if (!resolve_index(index, count, &at)) {
        return true; /* undefined */
    }
    if (of.kind == HEFT__JINJA_STRING) {
        const size_t byte = heft__jinja_byte_of(of.string, at);
        (void)heft__utf8_get(of.string.text + byte, &size);
        *out = heft__jinja_string(of.string.text + byte, size);
    } else {
        *out = of.list->items[at];
    }
    return true;
}

bool heft__jinja_item(run_t *run, value of, value key, value *out)
{
    const heft__string name =
        key.kind == HEFT__JINJA_STRING ? key.string : (heft__string){"item", 4};
    int64_t index;
    *out = heft__jinja_undefined(name);
    if (of.kind == HEFT__JINJA_RANGE && heft__jinja_as_int(key, &index)) {
        return indexed(run, of, index, out);
    }
    if (!check_member(run, of, name)) {
        return false;
    }
    if (of.kind == HEFT__JINJA_LOOP || of.kind == HEFT__JINJA_NAMESPACE) {
        return key.kind != HEFT__JINJA_STRING || own_member(run, of, name, out);
    }
    if (of.kind == HEFT__JINJA_DICT) {
        heft__jinja_pair *pair = NULL;
        if (key.kind >= HEFT__JINJA_NONE && key.kind <= HEFT__JINJA_STRING &&
            !heft__jinja_find(run, of.dict, key, &pair)) {
            return false;
        }
        if (pair) {
            *out = pair->value;
            return true;
        }
    } else if (of.kind >= HEFT__JINJA_STRING && heft__jinja_as_int(key, &index)) {
        return indexed(run, of, index, out);
    }
    return key.kind == HEFT__JINJA_STRING && heft__jinja_has_method(of, name)
               ? method_of(run, of, name, out)
               : true;
}

/* ---- slices ----------------------------------------------------------------------------------------------- */
/* A bound of a slice, between the ends that its direction has. */
static bool bound(run_t *run, const node *n, int64_t count, int64_t fallback, bool backward,
                  int64_t *out)
{
    value at = {.kind = HEFT__JINJA_NONE};
    *out = fallback;
    if (n && !heft__jinja_eval(run, n, &at)) {
        return false;
    }
    if (at.kind == HEFT__JINJA_NONE) {
        return true;
    }
    if (!heft__jinja_as_int(at, out)) {
        return heft__jinja_refuse(run, "%s in a slice is not known", heft__jinja_kind_name(at));
    }
    const int64_t low = backward ? -1 : 0, high = backward ? count - 1 : count;
    *out += *out < 0 ? count : 0;
    *out = *out < low ? low : *out > high ? high : *out;
    return true;
}

static bool sliced_items(run_t *run, value of, int64_t start, int64_t stop, int64_t step,
                         value *out)
{
    const bool text = of.kind == HEFT__JINJA_STRING;
    heft__jinja_list items;
    size_t count = 0;
    if (!heft__jinja_iterate(run, of, &items)) {
        return false;
    }
    for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) {
        count++;
    }
    if (!heft__jinja_new_list(run, text ? HEFT__JINJA_LIST : of.kind, count, out)) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        out->list->items[i] = items.items[start + (int64_t)i * step];
    }
    if (!text) {
        return true;
    }
    const size_t mark = heft__jinja_catch(run);
    for (size_t i = 0; i < count; i++) {
        if (!heft__jinja_put_value(run, out->list->items[i])) {
            return false;
        }
    }
    return heft__jinja_caught(run, mark, out);
}

static bool eval_slice(run_t *run, const node *n, value *out)
{
    value of, step_value = {.kind = HEFT__JINJA_NONE};
    int64_t step = 1, start, stop;
    size_t count;
    if (!heft__jinja_eval(run, n->a, &of) || (n->d && !heft__jinja_eval(run, n->d, &step_value))) {
        return false;
    }
    if (of.kind == HEFT__JINJA_UNDEFINED) {
        return is_undefined(run, of);
    }
    if (of.kind != HEFT__JINJA_STRING && of.kind != HEFT__JINJA_LIST &&
        of.kind != HEFT__JINJA_TUPLE && of.kind != HEFT__JINJA_RANGE) {
        return heft__jinja_refuse(run, "a slice of %s is not known", heft__jinja_kind_name(of));
    }
    if (step_value.kind != HEFT__JINJA_NONE && (!heft__jinja_as_int(step_value, &step) ||
                                                step == 0 || step < -1000000 || step > 1000000)) {
        return heft__jinja_refuse(run, "the step of the slice is not known");
    }
    if (!heft__jinja_length(run, of, &count)) {
        return false;
    }
    const int64_t most = (int64_t)count;
    if (!bound(run, n->b, most, step > 0 ? 0 : most - 1, step < 0, &start) ||
        !bound(run, n->c, most, step > 0 ? most : -1, step < 0, &stop)) {
        return false;
    }
    if (of.kind == HEFT__JINJA_STRING && step == 1) { /* the text itself */
        const size_t first = heft__jinja_byte_of(of.string, (size_t)start);
        const size_t last = stop > start ? heft__jinja_byte_of(of.string, (size_t)stop) : first;
        *out = heft__jinja_string(of.string.text + first, last - first);
        return heft__jinja_work(run, of.string.length / 64);
    }
    return sliced_items(run, of, start, stop, step, out);
}

/* ---- arithmetic ------------------------------------------------------------------------------------------- */
static bool wrong_operands(run_t *run, unsigned op, value a, value b)
{
    if (a.kind == HEFT__JINJA_UNDEFINED) {
        return is_undefined(run, a);
    }
    if (b.kind == HEFT__JINJA_UNDEFINED) {
        return is_undefined(run, b);
    }
    const char text[3] = {op > 255 ? (char)(op >> 8) : (char)op, op > 255 ? (char)op : '\0', '\0'};
    return heft__jinja_refuse(run, "'%s' of %s and %s is not known", text, heft__jinja_kind_name(a),
                              heft__jinja_kind_name(b));
}

static bool integers(run_t *run, unsigned op, int64_t a, int64_t b, value *out)
{
    int64_t result = 0;
    bool over = false;
    if ((op == '%' || op == HEFT__OP('/', '/')) && b == 0) {
        return heft__jinja_wrong(run, "division by zero");
    }
    if (op == '+') {
        over = __builtin_add_overflow(a, b, &result);
    } else if (op == '-') {
        over = __builtin_sub_overflow(a, b, &result);
    } else if (op == '*') {
        over = __builtin_mul_overflow(a, b, &result);
    } else if (b == -1) { /* the smallest number has no opposite */
        over = op != '%' && __builtin_sub_overflow((int64_t)0, a, &result);
    } else { /* rounded down, as the sign of the rest is that of b */
        const int64_t rest = a % b, moved = rest != 0 && (rest < 0) != (b < 0);
        result = op == '%' ? rest + (moved ? b : 0) : a / b - moved;
    }
    *out = heft__jinja_int(result);
    return !over || heft__jinja_refuse(run, "an integer of more than 64 bits");
}

static bool reals(run_t *run, unsigned op, double a, double b, value *out)
{
    if (op != '+' && op != '-' && op != '*' && op != '/') {
        return heft__jinja_refuse(run, "'%s' of numbers that are not integers is not known",
                                  op == '%' ? "%" : "//");
    }
    if (op == '/' && b == 0) {
        return heft__jinja_wrong(run, "division by zero");
    }
    const double result = op == '+' ? a + b : op == '-' ? a - b : op == '*' ? a * b : a / b;
    *out = (value){.kind = HEFT__JINJA_FLOAT, .real = result};
    return true;
}

static bool add_lists(run_t *run, value a, value b, value *out)
{
    if (!heft__jinja_new_list(run, a.kind, a.list->count + b.list->count, out)) {
        return false;
    }
    memcpy(out->list->items, a.list->items, a.list->count * sizeof(value));
    memcpy(out->list->items + a.list->count, b.list->items, b.list->count * sizeof(value));
    return true;
}

static bool join(run_t *run, heft__string a, heft__string b, value *out)
{
    if (a.length > SIZE_MAX / 2 || b.length > SIZE_MAX / 2) {
        return heft__jinja_fail(run, HEFT_LIMIT, "a text is too long");
    }
    char *text = heft__jinja_alloc(run, a.length + b.length + 1);
    if (!text) {
        return false;
    }
    memcpy(text, a.text, a.length);
    memcpy(text + a.length, b.text, b.length);
    text[a.length + b.length] = '\0';
    *out = heft__jinja_string(text, a.length + b.length);
    return heft__jinja_work(run, (a.length + b.length) / 64);
}

/* "ab" * 3 */
static bool repeat(run_t *run, heft__string text, int64_t times, value *out)
{
    const size_t mark = heft__jinja_catch(run);
    for (int64_t i = 0; i < times && text.length > 0; i++) {
        if (!heft__jinja_put(run, text.text, text.length) || !heft__jinja_work(run, 1)) {
            return false;
        }
    }
    return heft__jinja_caught(run, mark, out);
}

static bool arithmetic(run_t *run, unsigned op, value a, value b, value *out)
{
    int64_t x, y;
    double real, other;
    if (op != '/' && heft__jinja_as_int(a, &x) && heft__jinja_as_int(b, &y)) {
        return integers(run, op, x, y, out);
    }
    if (heft__jinja_as_double(a, &real) && heft__jinja_as_double(b, &other)) {
        if (op == '/' && (fabs(real) > 0x1p53 || fabs(other) > 0x1p53)) {
            return heft__jinja_refuse(run, "a division of numbers this large is not known");
        }
        return reals(run, op, real, other, out);
    }
    if (op == '+' && a.kind == HEFT__JINJA_STRING && b.kind == HEFT__JINJA_STRING) {
        return join(run, a.string, b.string, out);
    }
    if (op == '+' && a.kind == b.kind &&
        (a.kind == HEFT__JINJA_LIST || a.kind == HEFT__JINJA_TUPLE)) {
        return add_lists(run, a, b, out);
    }
    if (op == '*' && a.kind == HEFT__JINJA_STRING && heft__jinja_as_int(b, &y)) {
        return repeat(run, a.string, y, out);
    }
    if (op == '*' && heft__jinja_as_int(a, &x) && b.kind == HEFT__JINJA_STRING) {
        return repeat(run, b.string, x, out);
    }
    return wrong_operands(run, op, a, b);
}

static bool eval_concat(run_t *run, const node *n, value *out)
{
    heft__string text;
    value part;
    *out = heft__jinja_string("", 0);
    for (const node *item = n->a; item; item = item->next) {
        if (!heft__jinja_eval(run, item, &part) || !heft__jinja_to_text(run, part, &text) ||
            !join(run, out->string, text, out)) {
            return false;
        }
    }
    return true;
}

static bool eval_sign(run_t *run, const node *n, value *out)
{
    int64_t integer;
    if (!heft__jinja_eval(run, n->a, out)) {
        return false;
    }
    const bool minus = n->kind == HEFT__NODE_NEG;
    if (heft__jinja_as_int(*out, &integer)) {
        *out = heft__jinja_int(integer);
        return !minus || integers(run, '-', 0, integer, out);
    }
    if (out->kind != HEFT__JINJA_FLOAT) {
        return wrong_operands(run, '-', *out, heft__jinja_int(0));
    }
    out->real = minus ? -out->real : out->real;
    return true;
}

/* ---- comparisons ------------------------------------------------------------------------------------------ */
bool heft__jinja_ordered(run_t *run, unsigned op, value a, value b, bool *out)
{
    double x = 0, y = 0;
    int64_t i = 0, j = 0;
    int order;
    if (heft__jinja_as_int(a, &i) && heft__jinja_as_int(b, &j)) {
        order = i < j ? -1 : i > j;
    } else if (heft__jinja_as_double(a, &x) && heft__jinja_as_double(b, &y)) {
        if (isnan(x) || isnan(y) || fabs(x) > 0x1p53 || fabs(y) > 0x1p53) {
            return heft__jinja_refuse(run, "the order of such numbers is not known");
        }
        order = x < y ? -1 : x > y;
    } else if (a.kind == HEFT__JINJA_STRING && b.kind == HEFT__JINJA_STRING) {
        const size_t shorter =
            a.string.length < b.string.length ? a.string.length : b.string.length;
        order = memcmp(a.string.text, b.string.text,
                       shorter); /* UTF-8 is in the order of code points */
        order = order                               ? order
                : a.string.length < b.string.length ? -1
                                                    : a.string.length > b.string.length;
    } else {
        return wrong_operands(run, op, a, b);
    }
    const bool less = (op >> 8 ? op >> 8 : op) == '<', or_equal = op > 255;
    *out = order == 0 ? or_equal : (order < 0) == less;
    return heft__jinja_work(run, 1);
}

bool heft__jinja_contains(run_t *run, value in, value what, bool *out)
{
    heft__jinja_list items;
    *out = false;
    if (in.kind == HEFT__JINJA_STRING) {
        if (what.kind != HEFT__JINJA_STRING) {
            return wrong_operands(run, HEFT__OP_IN, what, in);
        }
        *out = heft__jinja_search(in.string, 0, what.string) != SIZE_MAX;
        return heft__jinja_work(run, in.string.length / 16);
    }
    if (in.kind == HEFT__JINJA_DICT) {
        heft__jinja_pair *pair;
        if (what.kind == HEFT__JINJA_UNDEFINED) { /* which can be a key, but is none */
            return true;
        }
        if (!heft__jinja_find(run, in.dict, what, &pair)) {
            return false;
        }
        *out = pair != NULL;
        return true;
    }
    if (in.kind == HEFT__JINJA_ITERATOR) {
        return heft__jinja_refuse(run, "'in' of %s is not known", heft__jinja_kind_name(in));
    }
    if (!heft__jinja_iterate(run, in, &items)) {
        return false;
    }
    for (size_t i = 0; i < items.count && !*out; i++) {
        if (!heft__jinja_equal(run, items.items[i], what, out)) {
            return false;
        }
    }
    return true;
}

static bool compare(run_t *run, unsigned op, value a, value b, bool *out)
{
    bool good;
    if (op == HEFT__OP('=', '=') || op == HEFT__OP('!', '=')) {
        good = heft__jinja_equal(run, a, b, out);
    } else if (op == HEFT__OP_IN || op == HEFT__OP_NOT_IN) {
        good = heft__jinja_contains(run, b, a, out);
    } else {
        return heft__jinja_ordered(run, op, a, b, out);
    }
    *out = *out != (op == HEFT__OP('!', '=') || op == HEFT__OP_NOT_IN);
    return good;
}

/* a < b < c: all of them, up to the first that does not hold. */
static bool eval_compare(run_t *run, const node *n, value *out)
{
    value left, right;
    bool holds = true;
    if (!heft__jinja_eval(run, n->a, &left)) {
        return false;
    }
    for (const node *operand = n->b; operand && holds; operand = operand->next) {
        if (!heft__jinja_eval(run, operand->a, &right) ||
            !compare(run, operand->op, left, right, &holds)) {
            return false;
        }
        left = right;
    }
    *out = heft__jinja_bool(holds);
    return true;
}

/* ---- calls ------------------------------------------------------------------------------------------------ */
static bool eval_arguments(run_t *run, const node *list, heft__jinja_arguments *out)
{
    size_t count = 0;
    for (const node *n = list; n; n = n->next) {
        count++;
    }
    out->count = count;
    out->list = heft__jinja_alloc(run, (count + 1) * sizeof *out->list);
    if (!out->list) {
        return false;
    }
    count = 0;
    for (const node *n = list; n; n = n->next) {
        const bool keyword = n->kind == HEFT__NODE_KEYWORD;
        heft__jinja_argument *argument = &out->list[count++];
        argument->name = keyword ? n->text : (heft__string){NULL, 0};
        if (!heft__jinja_eval(run, keyword ? n->a : n, &argument->value)) {
            return false;
        }
    }
    return true;
}

bool heft__jinja_bind(run_t *run, const char *what, const heft__jinja_arguments *given,
                      const char *names, size_t needed, value *values)
{
    size_t count = *names != '\0';
    for (const char *p = names; *p; p++) {
        count += *p == ' ';
    }
    for (size_t i = 0; i < count; i++) {
        values[i].kind = HEFT__JINJA_ABSENT;
    }
    for (size_t i = 0; i < given->count; i++) {
        const heft__string name = given->list[i].name;
        const size_t place = name.text ? heft__place_in(names, name) : i;
        if (place >= count && name.text) {
            return heft__jinja_refuse(run, "the argument '%.*s' of %s is not known", shown(name),
                                      name.text, what);
        }
        if (place >= count || values[place].kind != HEFT__JINJA_ABSENT) {
            return heft__jinja_refuse(run, "%zu arguments of %s are not known", given->count, what);
        }
        values[place] = given->list[i].value;
    }
    for (size_t i = 0; i < needed; i++) {
        if (values[i].kind == HEFT__JINJA_ABSENT) {
            return heft__jinja_wrong(run, "%s lacks an argument", what);
        }
    }
    return true;
}

static bool eval_call(run_t *run, const node *n, value *out)
{
    value called;
    heft__jinja_arguments given;
    if (!heft__jinja_eval(run, n->a, &called) || !eval_arguments(run, n->b, &given)) {
        return false;
    }
    run->line = n->line;
    if (called.kind == HEFT__JINJA_MACRO) {
        return heft__jinja_call_macro(run, called.macro, &given, out);
    }
    if (called.kind == HEFT__JINJA_FUNCTION) {
        return heft__jinja_call_function(run, called.function, &given, out);
    }
    if (called.kind == HEFT__JINJA_METHOD) {
        return heft__jinja_call_method(run, called.method, &given, out);
    }
    return called.kind == HEFT__JINJA_UNDEFINED
               ? is_undefined(run, called)
               : heft__jinja_wrong(run, "%s cannot be called", heft__jinja_kind_name(called));
}

static bool eval_filter_or_test(run_t *run, const node *n, value *out)
{
    value in;
    heft__jinja_arguments given;
    bool holds;
    if (!heft__jinja_eval(run, n->a, &in) || !eval_arguments(run, n->b, &given)) {
        return false;
    }
    run->line = n->line;
    if (n->kind == HEFT__NODE_FILTER) {
        return heft__jinja_filter(run, n->text, in, &given, out);
    }
    if (!heft__jinja_test(run, n->text, in, &given, &holds)) {
        return false;
    }
    *out = heft__jinja_bool(holds);
    return true;
}

/* ---- all of them ------------------------------------------------------------------------------------------ */
static bool eval_items(run_t *run, const node *n, value *out)
{
    size_t count = 0;
    for (const node *item = n->a; item; item = item->next) {
        count++;
    }
    if (n->kind != HEFT__NODE_DICT) {
        const heft__jinja_kind kind =
            n->kind == HEFT__NODE_TUPLE ? HEFT__JINJA_TUPLE : HEFT__JINJA_LIST;
        if (!heft__jinja_new_list(run, kind, count, out)) {
            return false;
        }
        count = 0;
        for (const node *item = n->a; item; item = item->next) {
            if (!heft__jinja_eval(run, item, &out->list->items[count++])) {
                return false;
            }
        }
        return true;
    }
    if (!heft__jinja_new_dict(run, HEFT__JINJA_DICT, count / 2, out)) {
        return false;
    }
    for (const node *item = n->a; item; item = item->next->next) {
        value key, of;
        if (!heft__jinja_eval(run, item, &key) || !heft__jinja_eval(run, item->next, &of) ||
            !heft__jinja_dict_set(run, out->dict, key, of)) {
            return false;
        }
    }
    return true;
}

/* and, or: the value that decides. */
static bool eval_both(run_t *run, const node *n, value *out)
{
    bool truth;
    if (!heft__jinja_eval(run, n->a, out) || !heft__jinja_truth(run, *out, &truth)) {
        return false;
    }
    return truth == (n->kind == HEFT__NODE_OR) || heft__jinja_eval(run, n->b, out);
}

static bool eval_condition(run_t *run, const node *n, value *out)
{
    bool truth;
    if (!heft__jinja_eval(run, n->a, out) || !heft__jinja_truth(run, *out, &truth)) {
        return false;
    }
    const node *chosen = truth ? n->b : n->c;
    *out = heft__jinja_undefined((heft__string){"the expression without else", 27});
    return !chosen || heft__jinja_eval(run, chosen, out);
}

static bool eval_two(run_t *run, const node *n, value *out)
{
    value a, b;
    if (!heft__jinja_eval(run, n->a, &a) || !heft__jinja_eval(run, n->b, &b)) {
        return false;
    }
    run->line = n->line;
    return n->kind == HEFT__NODE_ITEM ? heft__jinja_item(run, a, b, out)
                                      : arithmetic(run, n->op, a, b, out);
}

static bool eval_one(run_t *run, const node *n, value *out)
{
    value of;
    bool truth;
    if (!heft__jinja_eval(run, n->a, &of)) {
        return false;
    }
    run->line = n->line;
    if (n->kind == HEFT__NODE_ATTR) {
        return heft__jinja_attribute(run, of, n->text, out);
    }
    if (!heft__jinja_truth(run, of, &truth)) {
        return false;
    }
    *out = heft__jinja_bool(!truth);
    return true;
}

static bool dispatch(run_t *run, const node *n, value *out)
{
    if (n->kind == HEFT__NODE_CONST || n->kind == HEFT__NODE_BODY) {
        *out = n->kind == HEFT__NODE_CONST ? n->value : *run->body;
        return true;
    }
    if (n->kind == HEFT__NODE_NAME) {
        return eval_name(run, n, out);
    }
    if (n->kind == HEFT__NODE_ATTR || n->kind == HEFT__NODE_NOT) {
        return eval_one(run, n, out);
    }
    if (n->kind == HEFT__NODE_ITEM || n->kind == HEFT__NODE_BINARY) {
        return eval_two(run, n, out);
    }
    if (n->kind == HEFT__NODE_COMPARE) {
        return eval_compare(run, n, out);
    }
    if (n->kind == HEFT__NODE_AND || n->kind == HEFT__NODE_OR) {
        return eval_both(run, n, out);
    }
    if (n->kind == HEFT__NODE_CALL) {
        return eval_call(run, n, out);
    }
    if (n->kind == HEFT__NODE_FILTER || n->kind == HEFT__NODE_TEST) {
        return eval_filter_or_test(run, n, out);
    }
    if (n->kind == HEFT__NODE_CONCAT) {
        return eval_concat(run, n, out);
    }
    if (n->kind == HEFT__NODE_COND) {
        return eval_condition(run, n, out);
    }
    if (n->kind == HEFT__NODE_SLICE) {
        return eval_slice(run, n, out);
    }
    if (n->kind == HEFT__NODE_LIST || n->kind == HEFT__NODE_TUPLE || n->kind == HEFT__NODE_DICT) {
        return eval_items(run, n, out);
    }
    return eval_sign(run, n, out);
}

bool heft__jinja_eval(run_t *run, const node *n, value *out)
{
    value result;
    run->line = n->line;
    if (run->calls >= HEFT__JINJA_CALLS) {
        return heft__jinja_fail(run, HEFT_LIMIT, "more than %d calls and expressions in each other",
                                HEFT__JINJA_CALLS);
    }
    run->calls++;
    const bool good = heft__jinja_work(run, 1) && dispatch(run, n, &result);
    run->calls--;
    if (good) {
        *out = result;
    }
    return good;
}
