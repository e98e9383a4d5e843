/* jinja.h - what the files of chat templates share: a template as a tree, and values while it is rendered.
 *
 *     template ─► tokens (jinja_lex.c) ─► tree (jinja_parse.c) ─► text (jinja_run.c: statements,
 *     jinja_eval.c: expressions, jinja_filter.c, jinja_test.c, jinja_method.c, jinja_function.c)
 *
 * A rendering does what Jinja 3.1 does as Transformers sets it up, or fails, naming the line and what is not
 * known: text is never different in silence. Trusted: nothing. The tree is at most HEFT__JINJA_DEPTH deep;
 * steps and bytes of a rendering are counted. All memory is that of two arenas, of the tree and of the
 * rendering. */
#ifndef HEFT__TEXT_JINJA_H
#define HEFT__TEXT_JINJA_H

#include "text/tokenizer.h"

#define HEFT__JINJA_DEPTH 200                      /* of the tree, and of values in values */
#define HEFT__JINJA_CALLS 600                      /* nodes that are evaluated inside each other */
#define HEFT__JINJA_STEPS ((uint64_t)20 * 1000000) /* of one rendering */
#define HEFT__JINJA_RANGE_MAX 100000               /* as Jinja's sandbox */

/* ---- values ------------------------------------------------------------------------------------------- */
typedef enum heft__jinja_kind {
    HEFT__JINJA_UNDEFINED, /* string: what is undefined */
    HEFT__JINJA_NONE,
    HEFT__JINJA_BOOL,
    HEFT__JINJA_INT,
    HEFT__JINJA_FLOAT,
    HEFT__JINJA_STRING,
    HEFT__JINJA_LIST,
    HEFT__JINJA_TUPLE,
    HEFT__JINJA_DICT,
    HEFT__JINJA_RANGE,    /* a list, for what can be done with it */
    HEFT__JINJA_VIEW,     /* the same: items(), keys(), values() of a dict */
    HEFT__JINJA_ITERATOR, /* the same, but it can be read once only */
    HEFT__JINJA_NAMESPACE,
    HEFT__JINJA_LOOP,
    HEFT__JINJA_MACRO,
    HEFT__JINJA_FUNCTION,
    HEFT__JINJA_METHOD,
    HEFT__JINJA_REFUSED, /* string: why it must not be read */
    HEFT__JINJA_ABSENT   /* an argument that was not given */
} heft__jinja_kind;

typedef struct heft__jinja_value {
    heft__jinja_kind kind;
    union {
        bool boolean;
        int64_t integer;
        double real;
        heft__string string; /* UTF-8 */
        struct heft__jinja_list *list;
        struct heft__jinja_dict *dict; /* of a namespace too */
        struct heft__jinja_loop *loop;
        struct heft__jinja_macro *macro;
        struct heft__jinja_method *method;
        size_t function;
    };
} heft__jinja_value;

typedef struct heft__jinja_list { /* does not change, apart from what an iterator has read */
    heft__jinja_value *items;
    size_t count, read;
} heft__jinja_list;

typedef struct heft__jinja_pair {
    heft__jinja_value key, value;
} heft__jinja_pair;

typedef struct heft__jinja_dict {
    heft__jinja_pair *pairs;
    size_t count, cap;
} heft__jinja_dict;

typedef struct heft__jinja_method {
    heft__jinja_value self;
    heft__string name;
} heft__jinja_method;

typedef struct heft__jinja_loop {
    const heft__jinja_value *items;
    size_t count, index;
} heft__jinja_loop;

/* ---- the tree ----------------------------------------------------------------------------------------- */
typedef enum heft__jinja_node_kind {
    /* statements */
    HEFT__NODE_DATA,       /* text */
    HEFT__NODE_OUTPUT,     /* a */
    HEFT__NODE_IF,         /* a: test, NULL for else; b: body; c: the next branch */
    HEFT__NODE_FOR,        /* a: target, b: list, c: test, d: body, e: else */
    HEFT__NODE_SET,        /* a: target, b: value */
    HEFT__NODE_SET_BLOCK,  /* a: target, b: filters around a HEFT__NODE_BODY or NULL, d: body */
    HEFT__NODE_WITH,       /* a: sets, d: body */
    HEFT__NODE_MACRO,      /* name; a: parameters, names with a default in a; d: body */
    HEFT__NODE_GENERATION, /* d: body */
    HEFT__NODE_BREAK,
    HEFT__NODE_CONTINUE,
    /* expressions */
    HEFT__NODE_BODY,  /* the text of a block, for its filters */
    HEFT__NODE_CONST, /* value */
    HEFT__NODE_NAME,  /* name, text */
    HEFT__NODE_NSREF, /* name, text: the attribute */
    HEFT__NODE_LIST,  /* a: items */
    HEFT__NODE_TUPLE,
    HEFT__NODE_DICT,    /* a: key, value, key, value */
    HEFT__NODE_ATTR,    /* a, text */
    HEFT__NODE_ITEM,    /* a, b */
    HEFT__NODE_SLICE,   /* a; b, c, d: start, stop, step, NULL where absent */
    HEFT__NODE_CALL,    /* a; b: arguments */
    HEFT__NODE_KEYWORD, /* text: the name of an argument; a */
    HEFT__NODE_FILTER,  /* a, text; b: arguments */
    HEFT__NODE_TEST,
    HEFT__NODE_NOT,
    HEFT__NODE_NEG,
    HEFT__NODE_POS,
    HEFT__NODE_AND,
    HEFT__NODE_OR,
    HEFT__NODE_COMPARE, /* a; b: HEFT__NODE_OPERAND */
    HEFT__NODE_OPERAND, /* op, a */
    HEFT__NODE_BINARY,  /* op, a, b */
    HEFT__NODE_CONCAT,  /* a: items */
    HEFT__NODE_COND     /* a: test, b: then, c: else or NULL */
} heft__jinja_node_kind;

/* Operators and punctuation; two characters are one number. */
#define HEFT__OP(a, b) ((unsigned)(a) << 8 | (unsigned)(b))
#define HEFT__OP_IN HEFT__OP('i', 'n')
#define HEFT__OP_NOT_IN HEFT__OP('n', 'i')

typedef struct heft__jinja_node {
    heft__jinja_node_kind kind;
    unsigned op, depth;
    uint32_t line, name;
    const struct heft__jinja_node *a, *b, *c, *d, *e;
    struct heft__jinja_node *next; /* in a list */
    heft__string text;
    heft__jinja_value value;
} heft__jinja_node;

typedef struct heft__jinja_tree {
    heft_ctx *ctx;
    heft__arena arena;
    heft__map names; /* name -> its number */
    const heft__jinja_node *body;
    uint64_t bytes, limit; /* used, and allowed */
} heft__jinja_tree;

/* Read a template. FORMAT and UNSUPPORTED with item "line N"; LIMIT (`chat_bytes`). The text is copied. The
 * tree is freed with heft__jinja_tree_fini() in any case. */
heft_status heft__jinja_parse(heft_ctx *ctx, const char *text, size_t length, heft__jinja_tree *out,
                              heft_error *err);
void heft__jinja_tree_fini(heft__jinja_tree *tree);

/* ---- tokens (jinja_lex.c) ----------------------------------------------------------------------------- */
typedef enum heft__jinja_token_kind {
    HEFT__TOKEN_END,
    HEFT__TOKEN_DATA,
    HEFT__TOKEN_BLOCK_BEGIN,
    HEFT__TOKEN_BLOCK_END,
    HEFT__TOKEN_PRINT_BEGIN,
    HEFT__TOKEN_PRINT_END,
    HEFT__TOKEN_NAME,
    HEFT__TOKEN_STRING, /* text: resolved */
    HEFT__TOKEN_INTEGER,
    HEFT__TOKEN_FLOAT,
    HEFT__TOKEN_OPERATOR
} heft__jinja_token_kind;

typedef struct heft__jinja_token {
    heft__jinja_token_kind kind;
    unsigned op;
    uint32_t line;
    heft__string text;
    int64_t integer;
    double real;
} heft__jinja_token;

typedef struct heft__jinja_lexer {
    heft__jinja_tree *tree;
    const char *p, *end;
    uint32_t line;
    heft__jinja_token_kind state; /* DATA, or the kind that began the tag */
    heft__jinja_token begin;      /* of a tag, behind the data before it; END: none */
    bool line_starting, after_dot;
    char open[HEFT__JINJA_DEPTH]; /* brackets */
    size_t open_count;
} heft__jinja_lexer;

/* Lines end with '\n' only, and the last newline is gone, in `text`. `err` is not NULL in these functions. */
void heft__jinja_lex(heft__jinja_lexer *lexer, heft__jinja_tree *tree, heft__string text);
heft_status heft__jinja_next(heft__jinja_lexer *lexer, heft__jinja_token *token, heft_error *err);
/* Memory of the tree; NULL beyond its limit, with err filled. */
void *heft__jinja_tree_alloc(heft__jinja_tree *tree, size_t bytes, heft_error *err);
/* Fill err with the line as its item. */
heft_status heft__jinja_fail_line(heft_error *err, heft_status status, uint32_t line,
                                  const char *format, ...) __attribute__((format(printf, 4, 5)));

/* ---- a rendering -------------------------------------------------------------------------------------- */
typedef struct heft__jinja_cell {
    uint32_t name;
    heft__jinja_value value;
    struct heft__jinja_cell *next;
} heft__jinja_cell;

typedef struct heft__jinja_scope {
    struct heft__jinja_scope *parent;
    heft__jinja_cell *cells;
} heft__jinja_scope;

typedef struct heft__jinja_macro {
    const heft__jinja_node *node;
    heft__jinja_scope *scope;
} heft__jinja_macro;

typedef struct heft__jinja_argument {
    heft__string name; /* text NULL: by its place */
    heft__jinja_value value;
} heft__jinja_argument;
typedef struct heft__jinja_arguments {
    heft__jinja_argument *list;
    size_t count;
} heft__jinja_arguments;

typedef enum heft__jinja_flow {
    HEFT__FLOW_ON,
    HEFT__FLOW_BREAK,
    HEFT__FLOW_CONTINUE
} heft__jinja_flow;

typedef struct heft__jinja_run {
    heft_ctx *ctx;
    heft__jinja_tree *tree;
    heft__arena arena;
    heft__buffer out; /* the text so far; what is caught by a block is at its end meanwhile */
    uint64_t steps, bytes, limit;
    unsigned calls;
    uint32_t line; /* of what is evaluated */
    heft__jinja_scope *scope;
    heft__jinja_flow flow;
    const heft__jinja_value *body; /* what HEFT__NODE_BODY is */
    int64_t now;                   /* seconds since 1970 */
    heft_status status;            /* of the failure */
    heft_error *err;
} heft__jinja_run;

/* All functions of a rendering return false if they fail, with run->status and run->err filled. */
bool heft__jinja_fail(heft__jinja_run *run, heft_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* UNSUPPORTED: what heft does not know, or what Jinja gives a text that depends on more than the template. */
#define heft__jinja_refuse(run, ...) heft__jinja_fail((run), HEFT_UNSUPPORTED, __VA_ARGS__)
/* FORMAT: what Jinja fails with as well. */
#define heft__jinja_wrong(run, ...) heft__jinja_fail((run), HEFT_FORMAT, __VA_ARGS__)
void *heft__jinja_alloc(heft__jinja_run *run, size_t bytes);
bool heft__jinja_work(heft__jinja_run *run, uint64_t steps); /* LIMIT beyond HEFT__JINJA_STEPS */
bool heft__jinja_put(heft__jinja_run *run, const char *text, size_t length); /* to the text */
/* Begin to catch what is put; the text that was put since, taken away from there. */
size_t heft__jinja_catch(heft__jinja_run *run);
bool heft__jinja_caught(heft__jinja_run *run, size_t mark, heft__jinja_value *out);

bool heft__jinja_statements(heft__jinja_run *run, const heft__jinja_node *list); /* jinja_run.c */
bool heft__jinja_call_macro(heft__jinja_run *run, const heft__jinja_macro *macro,
                            const heft__jinja_arguments *given, heft__jinja_value *out);
bool heft__jinja_assign(heft__jinja_run *run, const heft__jinja_node *target,
                        heft__jinja_value value);
bool heft__jinja_store(heft__jinja_run *run, uint32_t name, heft__jinja_value value);
bool heft__jinja_scope_push(heft__jinja_run *run, heft__jinja_scope *parent);
/* Give a name of the template a value, if it occurs there. */
bool heft__jinja_define(heft__jinja_run *run, const char *name, heft__jinja_value value);

/* ---- expressions (jinja_eval.c) ----------------------------------------------------------------------- */
bool heft__jinja_eval(heft__jinja_run *run, const heft__jinja_node *node, heft__jinja_value *out);

/* Sort arguments into the places of parameters, whose names are separated by spaces; ABSENT where there is
 * none. The first `needed` must be there. */
bool heft__jinja_bind(heft__jinja_run *run, const char *what, const heft__jinja_arguments *given,
                      const char *names, size_t needed, heft__jinja_value *values);

/* obj.name, obj[key]: UNDEFINED where there is none. */
bool heft__jinja_attribute(heft__jinja_run *run, heft__jinja_value of, heft__string name,
                           heft__jinja_value *out);
bool heft__jinja_item(heft__jinja_run *run, heft__jinja_value of, heft__jinja_value key,
                      heft__jinja_value *out);
bool heft__jinja_contains(heft__jinja_run *run, heft__jinja_value in, heft__jinja_value what,
                          bool *out);
/* op: "<", "<=", ">", ">=" */
bool heft__jinja_ordered(heft__jinja_run *run, unsigned op, heft__jinja_value a,
                         heft__jinja_value b, bool *out);
bool heft__jinja_filter(heft__jinja_run *run, heft__string name, heft__jinja_value in,
                        const heft__jinja_arguments *given, heft__jinja_value *out);
bool heft__jinja_test(heft__jinja_run *run, heft__string name, heft__jinja_value in,
                      const heft__jinja_arguments *given, bool *out);
bool heft__jinja_call_method(heft__jinja_run *run, const heft__jinja_method *method,
                             const heft__jinja_arguments *given, heft__jinja_value *out);
/* Whether Python's type of a value has an attribute of this name. */
bool heft__jinja_has_method(heft__jinja_value of, heft__string name);
/* Of the name, SIZE_MAX if there is none. */
size_t heft__jinja_function(const char *name);
extern const char *const heft__jinja_functions[]; /* ends with NULL */
bool heft__jinja_call_function(heft__jinja_run *run, size_t function,
                               const heft__jinja_arguments *given, heft__jinja_value *out);

/* ---- values (jinja_value.c) --------------------------------------------------------------------------- */
const char *heft__jinja_kind_name(heft__jinja_value value);
heft__jinja_value heft__jinja_bool(bool value);
heft__jinja_value heft__jinja_int(int64_t value);
heft__jinja_value heft__jinja_string(const char *text, size_t length);
heft__jinja_value heft__jinja_undefined(heft__string name);
bool heft__jinja_is_list(heft__jinja_value value); /* whether .list is its member */
/* Whether it counts as a number, as a bool does; its value as an integer. */
bool heft__jinja_as_int(heft__jinja_value value, int64_t *out);
bool heft__jinja_as_double(heft__jinja_value value, double *out);
bool heft__jinja_truth(heft__jinja_run *run, heft__jinja_value value, bool *out);
bool heft__jinja_equal(heft__jinja_run *run, heft__jinja_value a, heft__jinja_value b, bool *out);
/* Room for `count` items, which the caller fills. */
bool heft__jinja_new_list(heft__jinja_run *run, heft__jinja_kind kind, size_t count,
                          heft__jinja_value *out);
bool heft__jinja_new_dict(heft__jinja_run *run, heft__jinja_kind kind, size_t cap,
                          heft__jinja_value *out);
/* The pair of a key, NULL if there is none. FORMAT for what cannot be a key. */
bool heft__jinja_find(heft__jinja_run *run, const heft__jinja_dict *dict, heft__jinja_value key,
                      heft__jinja_pair **out);
bool heft__jinja_dict_set(heft__jinja_run *run, heft__jinja_dict *dict, heft__jinja_value key,
                          heft__jinja_value value);
heft__jinja_pair *heft__jinja_find_text(const heft__jinja_dict *dict, const char *key);
/* What Python iterates over, as an array: characters of strings, keys of dicts. An iterator has been read
 * then. FORMAT for what cannot be iterated over. */
bool heft__jinja_iterate(heft__jinja_run *run, heft__jinja_value value, heft__jinja_list *out);
bool heft__jinja_length(heft__jinja_run *run, heft__jinja_value value, size_t *out);
/* A value of JSON, which is borrowed until the rendering is done. */
bool heft__jinja_from_json(heft__jinja_run *run, const heft__json_value *json,
                           heft__jinja_value *out);

/* ---- text (jinja_text.c) ------------------------------------------------------------------------------ */
bool heft__jinja_is_space(uint32_t code); /* as str.isspace() */
heft__string heft__jinja_strip(heft__string text, bool left, bool right);
/* As Python's str(). */
bool heft__jinja_to_text(heft__jinja_run *run, heft__jinja_value value, heft__string *out);
/* Put str(value). */
bool heft__jinja_put_value(heft__jinja_run *run, heft__jinja_value value);
/* Put as Python's json.dumps does with these arguments. */
typedef struct heft__jinja_json_style {
    bool ascii, sorted, lines;
    heft__string indent, item_separator, key_separator;
} heft__jinja_json_style;
bool heft__jinja_put_json(heft__jinja_run *run, const heft__jinja_json_style *style,
                          heft__jinja_value value, unsigned depth);
typedef enum heft__jinja_case { HEFT__CASE_UPPER, HEFT__CASE_LOWER } heft__jinja_case;
bool heft__jinja_put_case(heft__jinja_run *run, heft__jinja_case to, heft__string text);
/* Lines as Python's splitlines(), with their ends if `keep`. */
bool heft__jinja_lines(heft__jinja_run *run, heft__string text, bool keep, heft__jinja_value *out);
/* The first place of `what` at or behind `from`, SIZE_MAX if there is none. */
size_t heft__jinja_search(heft__string text, size_t from, heft__string what);
size_t heft__jinja_characters(heft__string text);
/* The byte at which a character begins; the length if there is none. */
size_t heft__jinja_byte_of(heft__string text, size_t character);
/* text.replace(old, new, most); most < 0: all. */
bool heft__jinja_put_replaced(heft__jinja_run *run, heft__string text, heft__string old,
                              heft__string new, int64_t most);

#endif
