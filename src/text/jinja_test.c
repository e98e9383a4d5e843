/* jinja_test.c - tests of a chat template: value is name argument. */
#include "text/jinja.h"

typedef heft__jinja_value value;
typedef heft__jinja_run run_t;

/* Of the kind of a value only. False if there is no such test. */
static bool kind_test(heft__string name, value in, bool *out)
{
    const heft__jinja_kind kind = in.kind;
    const bool integer = kind == HEFT__JINJA_INT, boolean = kind == HEFT__JINJA_BOOL;
    const bool number = integer || boolean || kind == HEFT__JINJA_FLOAT;
    const bool sequence = kind == HEFT__JINJA_STRING || kind == HEFT__JINJA_LIST ||
                          kind == HEFT__JINJA_TUPLE || kind == HEFT__JINJA_DICT ||
                          kind == HEFT__JINJA_RANGE || kind == HEFT__JINJA_UNDEFINED;
    const struct {
        const char *name;
        bool holds;
    } known[] = {
        {"defined",   kind != HEFT__JINJA_UNDEFINED                                             },
        {"undefined", kind == HEFT__JINJA_UNDEFINED                                             },
        {"none",      kind == HEFT__JINJA_NONE                                                  },
        {"boolean",   boolean                                                                   },
        {"true",      boolean && in.boolean                                                     },
        {"false",     boolean && !in.boolean                                                    },
        {"integer",   integer                                                                   },
        {"float",     kind == HEFT__JINJA_FLOAT                                                 },
        {"number",    number                                                                    },
        {"string",    kind == HEFT__JINJA_STRING                                                },
        {"mapping",   kind == HEFT__JINJA_DICT                                                  },
        {"sequence",  sequence                                                                  },
        {"iterable",  sequence || heft__jinja_is_list(in)                                       },
        {"callable",
         kind == HEFT__JINJA_MACRO || kind == HEFT__JINJA_FUNCTION || kind == HEFT__JINJA_METHOD}
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (heft__string_is(name, known[i].name)) {
            *out = known[i].holds;
            return true;
        }
    }
    return false;
}

/* By comparing with an argument; 0: no such test. */
static unsigned operator_of(heft__string name)
{
    static const struct {
        const char *name;
        unsigned op;
    } known[] = {
        {"eq",          HEFT__OP('=', '=')},
        {"equalto",             HEFT__OP('=',                 '=')},
        {"==",         HEFT__OP('=',     '=')},
        {"ne",HEFT__OP('!','=')},
        {"!=",          HEFT__OP('!',                  '=')},
        {"lt",             '<'                     },
        {"lessthan",         '<'   },
        {"<",'<'},
        {"gt",  '>'          },
        {"greaterthan",             '>'                                    },
        {">",         '>'          },
        {"le",HEFT__OP('<','=')},
        {"<=",  HEFT__OP('<',    '=')},
        {"ge",    HEFT__OP('>',                                       '=')},
        {">=",          HEFT__OP('>',         '=')},
        {"in",             HEFT__OP_IN                     }
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (heft__string_is(name, known[i].name)) {
            return known[i].op;
        }
    }
    return 0;
}

static bool compare(run_t *run, unsigned op, value in, value with, bool *out)
{
    if (op == HEFT__OP_IN) {
        return heft__jinja_contains(run, with, in, out);
    }
    if (op != HEFT__OP('=', '=') && op != HEFT__OP('!', '=')) {
        return heft__jinja_ordered(run, op, in, with, out);
    }
    const bool good = heft__jinja_equal(run, in, with, out);
    *out = *out != (op == HEFT__OP('!', '='));
    return good;
}

/* odd, even, divisibleby */
static bool number_test(run_t *run, heft__string name, value in, const heft__jinja_arguments *given,
                        bool *out)
{
    const bool odd = heft__string_is(name, "odd");
    value v[1] = {heft__jinja_int(2)};
    int64_t number, by;
    if (!heft__jinja_bind(run, "the test", given, odd || heft__string_is(name, "even") ? "" : "num",
                          odd || heft__string_is(name, "even") ? 0 : 1, v)) {
        return false;
    }
    if (!heft__jinja_as_int(in, &number) || !heft__jinja_as_int(v[0], &by) || by == 0) {
        return heft__jinja_refuse(run, "'is %.*s' of %s is not known", (int)name.length, name.text,
                                  heft__jinja_kind_name(in));
    }
    *out = by == -1 || (number % by == 0) != odd;
    return true;
}

/* Of the three values of which Python has one object each. */
static bool same_as(run_t *run, value in, const heft__jinja_arguments *given, bool *out)
{
    value v[1];
    if (!heft__jinja_bind(run, "sameas", given, "other", 1, v)) {
        return false;
    }
    if (v[0].kind != HEFT__JINJA_BOOL && v[0].kind != HEFT__JINJA_NONE) {
        return heft__jinja_refuse(run, "'is sameas' of %s is not known",
                                  heft__jinja_kind_name(v[0]));
    }
    *out = in.kind == v[0].kind && (in.kind == HEFT__JINJA_NONE || in.boolean == v[0].boolean);
    return true;
}

bool heft__jinja_test(run_t *run, heft__string name, value in, const heft__jinja_arguments *given,
                      bool *out)
{
    const unsigned op = operator_of(name);
    value v[1];
    if (kind_test(name, in, out)) {
        return heft__jinja_bind(run, "the test", given, "", 0, v);
    }
    if (op) {
        return heft__jinja_bind(run, "the test", given, "b", 1, v) &&
               compare(run, op, in, v[0], out);
    }
    if (heft__string_is(name, "odd") || heft__string_is(name, "even") ||
        heft__string_is(name, "divisibleby")) {
        return number_test(run, name, in, given, out);
    }
    if (heft__string_is(name, "sameas")) {
        return same_as(run, in, given, out);
    }
    return heft__jinja_refuse(run, "the test '%.*s' is not known",
                              (int)(name.length < 64 ? name.length : 64), name.text);
}
