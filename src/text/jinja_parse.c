/* jinja_parse.c - the tokens of a chat template as a tree, by the grammar of Jinja 3.1.
 *
 * An expression, loosest first: a if b else c; or; and; not; comparisons; + -; ~; * / // %; unary minus; names,
 * constants and what is behind them: .name [item] (arguments) |filter is test. Statements that Transformers'
 * templates do not use (block, include, call, raw ...) are refused by name.
 * The tree is at most HEFT__JINJA_DEPTH deep, so that those who walk it can recurse. */
#include "text/jinja.h"

typedef heft__jinja_node node;

struct parser {
    heft__jinja_tree *tree;
    heft__jinja_lexer lexer;
    heft__jinja_token token, ahead; /* the current token, and the one behind it */
    heft_error *err;
    heft_status status;
    unsigned depth; /* of the functions below in each other */
    unsigned loops; /* around the current statement, of the same macro */
};

static node *fail(struct parser *p, heft_status status, const char *what)
{
    if (p->status == HEFT_OK) {
        const heft__string text = p->token.text;
        const bool named = text.length > 0 && p->token.kind != HEFT__TOKEN_DATA;
        p->status = heft__jinja_fail_line(
            p->err, status, p->token.line, named ? "%s at '%.*s'" : "%s", what,
            (int)(text.length < 64 ? text.length : 64), named ? text.text : "");
    }
    return NULL;
}

static bool advance(struct parser *p)
{
    p->token = p->ahead;
    if (p->status == HEFT_OK && p->ahead.kind != HEFT__TOKEN_END) {
        p->status = heft__jinja_next(&p->lexer, &p->ahead, p->err);
    }
    if (p->status != HEFT_OK) { /* nothing follows a failure */
        p->ahead = (heft__jinja_token){.kind = HEFT__TOKEN_END, .line = p->token.line};
    }
    return p->status == HEFT_OK;
}

static bool is_op(const heft__jinja_token *token, unsigned op)
{
    return token->kind == HEFT__TOKEN_OPERATOR && token->op == op;
}

static bool is_word(const heft__jinja_token *token, const char *word)
{
    return token->kind == HEFT__TOKEN_NAME && heft__string_is(token->text, word);
}

static bool skip_op(struct parser *p, unsigned op)
{
    return is_op(&p->token, op) && advance(p);
}

static bool skip_word(struct parser *p, const char *word)
{
    return is_word(&p->token, word) && advance(p);
}

static bool expect_op(struct parser *p, unsigned op, const char *what)
{
    if (!skip_op(p, op)) {
        fail(p, HEFT_FORMAT, what);
    }
    return p->status == HEFT_OK;
}

static node *new_node(struct parser *p, heft__jinja_node_kind kind, uint32_t line)
{
    if (p->status != HEFT_OK) {
        return NULL;
    }
    node *made = heft__jinja_tree_alloc(p->tree, sizeof *made, p->err);
    if (!made) {
        p->status = p->err->status;
        return NULL;
    }
    made->kind = kind;
    made->line = line;
    made->depth = 1;
    return made;
}

/* Set a child, or a list of them, of a node that may be NULL after a failure. */
static void adopt(struct parser *p, node *parent, const node **place, const node *child)
{
    for (const node *c = child; parent && c; c = c->next) {
        if (c->depth + 1 > parent->depth) {
            parent->depth = c->depth + 1;
        }
    }
    if (parent && parent->depth > HEFT__JINJA_DEPTH) {
        (void)fail(p, HEFT_LIMIT, "nested too deeply");
    } else if (parent) {
        *place = child;
    }
}

static node *unary(struct parser *p, heft__jinja_node_kind kind, uint32_t line, const node *a)
{
    node *made = new_node(p, kind, line);
    if (made) {
        adopt(p, made, &made->a, a);
    }
    return made;
}

static node *binary(struct parser *p, heft__jinja_node_kind kind, uint32_t line, const node *a,
                    const node *b)
{
    node *made = unary(p, kind, line, a);
    if (made) {
        adopt(p, made, &made->b, b);
    }
    return made;
}

struct list {
    node *first, *last;
};

static bool add(struct list *list, node *item)
{
    if (!item) {
        return false;
    }
    if (list->last) {
        list->last->next = item;
    } else {
        list->first = item;
    }
    list->last = item;
    return true;
}

static bool name_number(struct parser *p, heft__string text, uint32_t *out)
{
    heft__map *names = &p->tree->names;
    size_t found = heft__map_get(names, text.text, text.length);
    if (found == HEFT__MAP_NONE && p->status == HEFT_OK) {
        size_t other;
        char *copy = heft__jinja_tree_alloc(p->tree, text.length + 64, p->err); /* with its slot */
        if (copy) {
            memcpy(copy, text.text, text.length);
        }
        found = names->count;
        if (!copy) {
            p->status = p->err->status;
        } else if (!heft__map_put(names, copy, text.length, found, &other)) {
            p->status = heft__fail_nomem(p->err, text.length);
        }
    }
    *out = (uint32_t)found;
    return p->status == HEFT_OK;
}

/* A node of the name at hand. */
static node *name_node(struct parser *p, heft__jinja_node_kind kind)
{
    node *made = new_node(p, kind, p->token.line);
    if (made && p->token.kind != HEFT__TOKEN_NAME) {
        return fail(p, HEFT_FORMAT, "expected a name");
    }
    if (!made || !name_number(p, p->token.text, &made->name)) {
        return NULL;
    }
    made->text = p->token.text;
    advance(p);
    return made;
}

/* ---- expressions ------------------------------------------------------------------------------------------ */
static node *expression(struct parser *p);
static node *any_of(struct parser *p);
static node *unary_expression(struct parser *p, bool with_filter);

static node *constant(struct parser *p, heft__jinja_value value)
{
    node *made = new_node(p, HEFT__NODE_CONST, p->token.line);
    if (made) {
        made->value = value;
        advance(p);
    }
    return made;
}

/* One string, or several one after the other. */
static node *strings(struct parser *p)
{
    heft__buffer joined;
    heft__buffer_init(&joined, p->tree->ctx);
    node *made = new_node(p, HEFT__NODE_CONST, p->token.line);
    while (made && p->token.kind == HEFT__TOKEN_STRING) {
        heft__buffer_append(&joined, p->token.text.text, p->token.text.length);
        made->value = heft__jinja_string(p->token.text.text, p->token.text.length);
        advance(p);
    }
    if (made && joined.size != made->value.string.length) { /* several */
        char *copy = heft__jinja_tree_alloc(p->tree, joined.size, p->err);
        if (!copy) {
            p->status = p->err->status;
        } else {
            memcpy(copy, joined.data, joined.size);
            made->value = heft__jinja_string(copy, joined.size);
        }
    }
    if (made && joined.failed) {
        p->status = heft__fail_nomem(p->err, 0);
    }
    heft__buffer_fini(&joined);
    return made;
}

/* [a, b], {a: b}: the items up to the bracket that closes them. */
static node *items(struct parser *p, heft__jinja_node_kind kind, unsigned close)
{
    struct list list = {0};
    node *made = new_node(p, kind, p->token.line);
    advance(p);
    while (p->status == HEFT_OK && !is_op(&p->token, close)) {
        if (list.first && !expect_op(p, ',', "expected a comma")) {
            return NULL;
        }
        if (is_op(&p->token, close)) {
            break;
        }
        if (!add(&list, expression(p)) ||
            (kind == HEFT__NODE_DICT &&
             (!expect_op(p, ':', "expected a colon") || !add(&list, expression(p))))) {
            return NULL;
        }
    }
    if (made) {
        adopt(p, made, &made->a, list.first);
    }
    advance(p);
    return made;
}

/* Whether a list of expressions without brackets ends here. */
static bool tuple_ends(const struct parser *p)
{
    return p->token.kind == HEFT__TOKEN_BLOCK_END || p->token.kind == HEFT__TOKEN_PRINT_END ||
           is_op(&p->token, ')') || is_word(&p->token, "in");
}

static node *primary(struct parser *p);
static node *assignable(struct parser *p)
{
    node *made = primary(p);
    if (made && made->kind == HEFT__NODE_NAME && skip_op(p, '.')) {
        made->kind = HEFT__NODE_NSREF;
        made->text = p->token.text;
        if (p->token.kind != HEFT__TOKEN_NAME) {
            return fail(p, HEFT_FORMAT, "expected a name");
        }
        advance(p);
    }
    return made;
}

/* a, or a, b: a tuple. */
static node *tuple_of(struct parser *p, node *(*item)(struct parser *), bool may_be_empty)
{
    struct list list = {0};
    const uint32_t line = p->token.line;
    bool comma = false;
    while (p->status == HEFT_OK && !tuple_ends(p)) {
        if (!add(&list, item(p))) {
            return NULL;
        }
        if (!skip_op(p, ',')) {
            break;
        }
        comma = true;
    }
    if (!comma && list.first) {
        return list.first;
    }
    if (!list.first && !may_be_empty) {
        return fail(p, HEFT_FORMAT, "expected an expression");
    }
    return unary(p, HEFT__NODE_TUPLE, line, list.first);
}

static node *primary(struct parser *p)
{
    const heft__jinja_token *t = &p->token;
    if (t->kind == HEFT__TOKEN_STRING) {
        return strings(p);
    }
    if (t->kind == HEFT__TOKEN_INTEGER) {
        return constant(p, heft__jinja_int(t->integer));
    }
    if (t->kind == HEFT__TOKEN_FLOAT) {
        return constant(p, (heft__jinja_value){.kind = HEFT__JINJA_FLOAT, .real = t->real});
    }
    if (t->kind == HEFT__TOKEN_NAME) {
        if (is_word(t, "true") || is_word(t, "True") || is_word(t, "false") ||
            is_word(t, "False")) {
            return constant(p, heft__jinja_bool(t->text.text[0] == 't' || t->text.text[0] == 'T'));
        }
        return is_word(t, "none") || is_word(t, "None")
                   ? constant(p, (heft__jinja_value){.kind = HEFT__JINJA_NONE})
                   : name_node(p, HEFT__NODE_NAME);
    }
    if (is_op(t, '[')) {
        return items(p, HEFT__NODE_LIST, ']');
    }
    if (is_op(t, '{')) {
        return items(p, HEFT__NODE_DICT, '}');
    }
    if (skip_op(p, '(')) {
        node *made = tuple_of(p, expression, true);
        return expect_op(p, ')', "expected ')'") ? made : NULL;
    }
    return fail(p, HEFT_FORMAT, "expected an expression");
}

/* (a, name=b) */
static const node *arguments(struct parser *p)
{
    struct list list = {0};
    bool named = false;
    advance(p);
    while (p->status == HEFT_OK && !is_op(&p->token, ')')) {
        if (list.first && !expect_op(p, ',', "expected a comma")) {
            return NULL;
        }
        if (is_op(&p->token, ')')) {
            break;
        }
        if (is_op(&p->token, '*') || is_op(&p->token, HEFT__OP('*', '*'))) {
            return fail(p, HEFT_UNSUPPORTED, "lists of arguments are not known:");
        }
        if (p->token.kind == HEFT__TOKEN_NAME && is_op(&p->ahead, '=')) {
            node *keyword = new_node(p, HEFT__NODE_KEYWORD, p->token.line);
            const heft__string name = p->token.text;
            advance(p);
            advance(p);
            const node *value = expression(p);
            if (!keyword || !value || !add(&list, keyword)) {
                return NULL;
            }
            keyword->text = name;
            adopt(p, keyword, &keyword->a, value);
            named = true;
        } else if (named) {
            return fail(p, HEFT_FORMAT, "an argument without a name behind one with a name");
        } else if (!add(&list, expression(p))) {
            return NULL;
        }
    }
    advance(p);
    return list.first;
}

/* [a] or [a:b:c] */
static node *subscript(struct parser *p, const node *of)
{
    const node *parts[3] = {NULL};
    const uint32_t line = p->token.line;
    size_t part = 0;
    bool slice = false;
    advance(p);
    while (p->status == HEFT_OK && !is_op(&p->token, ']')) {
        if (is_op(&p->token, ',')) {
            return fail(p, HEFT_UNSUPPORTED, "an index of several parts is not known:");
        }
        if (is_op(&p->token, ':') && part < 2) {
            advance(p);
            slice = true;
            part++;
        } else if (parts[part]) {
            return fail(p, HEFT_FORMAT, "expected ']'");
        } else if (!(parts[part] = expression(p))) {
            return NULL;
        }
    }
    advance(p);
    if (!slice && !parts[0]) {
        return fail(p, HEFT_FORMAT, "expected an index");
    }
    node *made = binary(p, slice ? HEFT__NODE_SLICE : HEFT__NODE_ITEM, line, of, parts[0]);
    if (made && slice) {
        adopt(p, made, &made->c, parts[1]);
        adopt(p, made, &made->d, parts[2]);
    }
    return made;
}

/* .name or .0 */
static node *member(struct parser *p, const node *of)
{
    const uint32_t line = p->token.line;
    advance(p);
    if (p->token.kind == HEFT__TOKEN_INTEGER) {
        return binary(p, HEFT__NODE_ITEM, line, of, constant(p, heft__jinja_int(p->token.integer)));
    }
    if (p->token.kind != HEFT__TOKEN_NAME) {
        return fail(p, HEFT_FORMAT, "expected a name");
    }
    node *made = unary(p, HEFT__NODE_ATTR, line, of);
    if (made) {
        made->text = p->token.text;
        advance(p);
    }
    return made;
}

static node *postfix(struct parser *p, node *of)
{
    while (of && p->status == HEFT_OK) {
        const uint32_t line = p->token.line;
        if (is_op(&p->token, '.')) {
            of = member(p, of);
        } else if (is_op(&p->token, '[')) {
            of = subscript(p, of);
        } else if (is_op(&p->token, '(')) {
            const node *given = arguments(p);
            of = binary(p, HEFT__NODE_CALL, line, of, given);
        } else {
            break;
        }
    }
    return of;
}

/* name.name of a filter or test, and its arguments. */
static node *named(struct parser *p, heft__jinja_node_kind kind, const node *of)
{
    node *made = unary(p, kind, p->token.line, of);
    if (made && p->token.kind != HEFT__TOKEN_NAME) {
        return fail(p, HEFT_FORMAT, "expected the name of a filter or test");
    }
    if (made) {
        made->text = p->token.text;
        advance(p);
        if (is_op(&p->token, '(')) {
            adopt(p, made, &made->b, arguments(p));
        }
    }
    return made;
}

static node *filters(struct parser *p, node *of)
{
    while (of && skip_op(p, '|')) {
        of = named(p, HEFT__NODE_FILTER, of);
    }
    return of;
}

/* is [not] name [argument] */
static node *test(struct parser *p, const node *of)
{
    advance(p);
    const uint32_t line = p->token.line;
    const bool negated = skip_word(p, "not");
    node *made = named(p, HEFT__NODE_TEST, of);
    const heft__jinja_token *t = &p->token;
    const bool argument = t->kind == HEFT__TOKEN_NAME || t->kind == HEFT__TOKEN_STRING ||
                          t->kind == HEFT__TOKEN_INTEGER || t->kind == HEFT__TOKEN_FLOAT ||
                          is_op(t, '[') || is_op(t, '{');
    if (made && !made->b && argument && !is_word(t, "else") && !is_word(t, "or") &&
        !is_word(t, "and")) {
        if (is_word(t, "is")) {
            return fail(p, HEFT_FORMAT, "tests cannot follow each other:");
        }
        adopt(p, made, &made->b, postfix(p, primary(p)));
    }
    return negated ? unary(p, HEFT__NODE_NOT, line, made) : made;
}

static node *unary_expression(struct parser *p, bool with_filter)
{
    if (++p->depth > HEFT__JINJA_DEPTH) {
        return fail(p, HEFT_LIMIT, "nested too deeply");
    }
    const uint32_t line = p->token.line;
    node *made;
    if (is_op(&p->token, '-') || is_op(&p->token, '+')) {
        const bool minus = is_op(&p->token, '-');
        advance(p);
        made = unary(p, minus ? HEFT__NODE_NEG : HEFT__NODE_POS, line, unary_expression(p, false));
    } else {
        made = primary(p);
    }
    made = postfix(p, made);
    while (with_filter && made && p->status == HEFT_OK) {
        if (is_op(&p->token, '|')) {
            made = filters(p, made);
        } else if (is_word(&p->token, "is")) {
            made = test(p, made);
        } else if (is_op(&p->token, '(')) {
            return fail(p, HEFT_UNSUPPORTED, "a call behind a filter is not known:");
        } else {
            break;
        }
    }
    p->depth--;
    return p->status == HEFT_OK ? made : NULL;
}

static node *product(struct parser *p)
{
    node *left = unary_expression(p, true);
    while (left && p->token.kind == HEFT__TOKEN_OPERATOR) {
        const unsigned op = p->token.op;
        const uint32_t line = p->token.line;
        if (op == HEFT__OP('*', '*')) {
            return fail(p, HEFT_UNSUPPORTED, "the operator is not known:");
        }
        if (op != '*' && op != '/' && op != '%' && op != HEFT__OP('/', '/')) {
            break;
        }
        advance(p);
        left = binary(p, HEFT__NODE_BINARY, line, left, unary_expression(p, true));
        if (left) {
            left->op = op;
        }
    }
    return left;
}

static node *concatenation(struct parser *p)
{
    struct list list = {0};
    const uint32_t line = p->token.line;
    if (!add(&list, product(p))) {
        return NULL;
    }
    while (skip_op(p, '~')) {
        if (!add(&list, product(p))) {
            return NULL;
        }
    }
    return list.first == list.last ? list.first : unary(p, HEFT__NODE_CONCAT, line, list.first);
}

static node *sum(struct parser *p)
{
    node *left = concatenation(p);
    while (left && (is_op(&p->token, '+') || is_op(&p->token, '-'))) {
        const unsigned op = p->token.op;
        const uint32_t line = p->token.line;
        advance(p);
        left = binary(p, HEFT__NODE_BINARY, line, left, concatenation(p));
        if (left) {
            left->op = op;
        }
    }
    return left;
}

/* The comparison at hand, read; 0 if there is none. */
static unsigned comparison(struct parser *p)
{
    const heft__jinja_token *t = &p->token;
    unsigned op = 0;
    if (t->kind == HEFT__TOKEN_OPERATOR &&
        (t->op == '<' || t->op == '>' || t->op == HEFT__OP('=', '=') ||
         t->op == HEFT__OP('!', '=') || t->op == HEFT__OP('<', '=') ||
         t->op == HEFT__OP('>', '='))) {
        op = t->op;
    } else if (is_word(t, "in")) {
        op = HEFT__OP_IN;
    } else if (is_word(t, "not") && is_word(&p->ahead, "in")) {
        op = HEFT__OP_NOT_IN;
        advance(p);
    }
    if (op) {
        advance(p);
    }
    return op;
}

static node *compare(struct parser *p)
{
    struct list list = {0};
    const uint32_t line = p->token.line;
    node *left = sum(p);
    unsigned op;
    while (left && (op = comparison(p)) != 0) {
        node *operand = unary(p, HEFT__NODE_OPERAND, line, sum(p));
        if (!add(&list, operand)) {
            return NULL;
        }
        operand->op = op;
    }
    return list.first ? binary(p, HEFT__NODE_COMPARE, line, left, list.first) : left;
}

static node *negation(struct parser *p)
{
    if (!is_word(&p->token, "not")) {
        return compare(p);
    }
    if (++p->depth > HEFT__JINJA_DEPTH) {
        return fail(p, HEFT_LIMIT, "nested too deeply");
    }
    const uint32_t line = p->token.line;
    advance(p);
    node *made = unary(p, HEFT__NODE_NOT, line, negation(p));
    p->depth--;
    return made;
}

static node *all_of(struct parser *p)
{
    node *left = negation(p);
    while (left && is_word(&p->token, "and")) {
        const uint32_t line = p->token.line;
        advance(p);
        left = binary(p, HEFT__NODE_AND, line, left, negation(p));
    }
    return left;
}

static node *any_of(struct parser *p)
{
    node *left = all_of(p);
    while (left && is_word(&p->token, "or")) {
        const uint32_t line = p->token.line;
        advance(p);
        left = binary(p, HEFT__NODE_OR, line, left, all_of(p));
    }
    return left;
}

static node *expression(struct parser *p)
{
    if (++p->depth > HEFT__JINJA_DEPTH) {
        return fail(p, HEFT_LIMIT, "nested too deeply");
    }
    node *made = any_of(p);
    while (made && is_word(&p->token, "if")) {
        const uint32_t line = p->token.line;
        advance(p);
        const node *then = made;
        made = unary(p, HEFT__NODE_COND, line, any_of(p));
        const node *other = made && skip_word(p, "else") ? expression(p) : NULL;
        if (made) {
            adopt(p, made, &made->b, then);
            adopt(p, made, &made->c, other);
        }
    }
    p->depth--;
    return p->status == HEFT_OK ? made : NULL;
}

/* ---- statements ------------------------------------------------------------------------------------------- */
static const node *body(struct parser *p, const char *ends);

/* The end of the tag at hand, and the statements up to one of the tags in `ends`, at whose name it stops. */
static const node *block(struct parser *p, const char *ends)
{
    (void)skip_op(p, ':');
    if (p->token.kind != HEFT__TOKEN_BLOCK_END) {
        return fail(p, HEFT_FORMAT, "expected the end of the tag");
    }
    advance(p);
    return body(p, ends);
}

static node *target(struct parser *p)
{
    node *made = tuple_of(p, assignable, false);
    bool good = made != NULL;
    for (const node *n = made && made->kind == HEFT__NODE_TUPLE ? made->a : made; n && good;
         n = made->kind == HEFT__NODE_TUPLE ? n->next : NULL) {
        good = n->kind == HEFT__NODE_NAME || n->kind == HEFT__NODE_NSREF;
    }
    return good ? made : fail(p, HEFT_UNSUPPORTED, "this cannot be assigned to, before or");
}

static node *parse_if(struct parser *p, uint32_t line)
{
    node *first = NULL, *last = NULL;
    for (bool more = true; more && p->status == HEFT_OK;) {
        node *made = unary(p, HEFT__NODE_IF, line, tuple_of(p, any_of, false));
        if (made) {
            adopt(p, made, &made->b, block(p, "elif else endif"));
        }
        if (last) {
            last->c = made;
        }
        first = first ? first : made;
        last = made;
        line = p->token.line;
        more = skip_word(p, "elif");
    }
    if (last && skip_word(p, "else")) {
        node *made = new_node(p, HEFT__NODE_IF, line);
        if (made) {
            adopt(p, made, &made->b, block(p, "endif"));
        }
        last->c = made;
    }
    advance(p);
    for (const node *n = first; n; n = n->c) { /* the branches are no deeper than each other */
        first->depth = n->depth > first->depth ? n->depth : first->depth;
    }
    return first;
}

static node *parse_for(struct parser *p, uint32_t line)
{
    node *made = unary(p, HEFT__NODE_FOR, line, target(p));
    if (!made || !skip_word(p, "in")) {
        return fail(p, HEFT_FORMAT, "expected 'in'");
    }
    adopt(p, made, &made->b, tuple_of(p, any_of, false));
    if (skip_word(p, "if")) {
        adopt(p, made, &made->c, expression(p));
    }
    if (is_word(&p->token, "recursive")) {
        return fail(p, HEFT_UNSUPPORTED, "the loop is not known");
    }
    p->loops++;
    adopt(p, made, &made->d, block(p, "else endfor"));
    p->loops--;
    if (skip_word(p, "else")) {
        adopt(p, made, &made->e, block(p, "endfor"));
    }
    advance(p);
    return made;
}

static node *parse_set(struct parser *p, uint32_t line)
{
    node *made = unary(p, HEFT__NODE_SET, line, target(p));
    if (!made) {
        return NULL;
    }
    if (skip_op(p, '=')) {
        adopt(p, made, &made->b, tuple_of(p, expression, false));
        return made;
    }
    made->kind = HEFT__NODE_SET_BLOCK;
    if (is_op(&p->token, '|')) {
        adopt(p, made, &made->b, filters(p, new_node(p, HEFT__NODE_BODY, line)));
    }
    const unsigned loops = p->loops;
    p->loops = 0;
    adopt(p, made, &made->d, block(p, "endset"));
    p->loops = loops;
    advance(p);
    return made;
}

/* name=value, name=value as a list of HEFT__NODE_SET. */
static node *parse_with(struct parser *p, uint32_t line)
{
    struct list list = {0};
    node *made = new_node(p, HEFT__NODE_WITH, line);
    while (p->status == HEFT_OK && p->token.kind == HEFT__TOKEN_NAME) {
        node *set = unary(p, HEFT__NODE_SET, line, name_node(p, HEFT__NODE_NAME));
        if (!expect_op(p, '=', "expected '='") || !set) {
            return NULL;
        }
        adopt(p, set, &set->b, expression(p));
        if (!add(&list, set) || !skip_op(p, ',')) {
            break;
        }
    }
    if (made) {
        adopt(p, made, &made->a, list.first);
        adopt(p, made, &made->d, block(p, "endwith"));
        advance(p);
    }
    return made;
}

static node *parse_macro(struct parser *p, uint32_t line)
{
    struct list list = {0};
    node *made = name_node(p, HEFT__NODE_MACRO);
    if (!made || !expect_op(p, '(', "expected '('")) {
        return NULL;
    }
    made->line = line;
    while (p->status == HEFT_OK && !is_op(&p->token, ')')) {
        if (list.first && !expect_op(p, ',', "expected a comma")) {
            return NULL;
        }
        node *parameter = name_node(p, HEFT__NODE_NAME);
        if (!add(&list, parameter)) {
            return NULL;
        }
        if (skip_op(p, '=')) {
            adopt(p, parameter, &parameter->a, expression(p));
        }
    }
    advance(p);
    const unsigned loops = p->loops;
    p->loops = 0;
    adopt(p, made, &made->a, list.first);
    adopt(p, made, &made->d, block(p, "endmacro"));
    p->loops = loops;
    advance(p);
    return made;
}

static node *parse_generation(struct parser *p, uint32_t line)
{
    node *made = new_node(p, HEFT__NODE_GENERATION, line);
    const unsigned loops = p->loops;
    p->loops = 0;
    if (made) {
        adopt(p, made, &made->d, block(p, "endgeneration"));
    }
    p->loops = loops;
    advance(p);
    return made;
}

static node *statement(struct parser *p)
{
    static const struct {
        const char *name;
        node *(*parse)(struct parser *, uint32_t line);
    } known[] = {
        {"if",         parse_if        },
        {"for",        parse_for       },
        {"set",        parse_set       },
        {"with",       parse_with      },
        {"macro",      parse_macro     },
        {"generation", parse_generation}
    };
    const uint32_t line = p->token.line;
    if (p->token.kind != HEFT__TOKEN_NAME) {
        return fail(p, HEFT_FORMAT, "expected the name of a statement");
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (skip_word(p, known[i].name)) {
            return known[i].parse(p, line);
        }
    }
    const bool leave = is_word(&p->token, "break");
    if (leave || is_word(&p->token, "continue")) {
        if (p->loops == 0) {
            return fail(p, HEFT_FORMAT, "outside a loop:");
        }
        advance(p);
        return new_node(p, leave ? HEFT__NODE_BREAK : HEFT__NODE_CONTINUE, line);
    }
    return fail(p, HEFT_UNSUPPORTED, "the statement is not known:");
}

/* Whether the name of the tag at hand is one of those in `ends`. */
static bool ends_here(const struct parser *p, const char *ends)
{
    const heft__string text = p->token.text;
    while (p->token.kind == HEFT__TOKEN_NAME && *ends) {
        const size_t span = strcspn(ends, " ");
        if (span == text.length && memcmp(ends, text.text, span) == 0) {
            return true;
        }
        ends += span;
        ends += strspn(ends, " ");
    }
    return false;
}

/* Statements up to a tag in `ends`, or with "" up to the end of the template. */
static const node *body(struct parser *p, const char *ends)
{
    struct list list = {0};
    if (++p->depth > HEFT__JINJA_DEPTH) {
        return fail(p, HEFT_LIMIT, "nested too deeply");
    }
    while (p->status == HEFT_OK) {
        const heft__jinja_token_kind kind = p->token.kind;
        const uint32_t line = p->token.line;
        node *made = NULL;
        if (kind == HEFT__TOKEN_END) {
            if (*ends) {
                (void)fail(p, HEFT_FORMAT, "a block has no end");
            }
            break;
        }
        if (kind == HEFT__TOKEN_DATA) {
            made = new_node(p, HEFT__NODE_DATA, line);
            if (made) {
                made->text = p->token.text;
            }
            advance(p);
        } else if (kind == HEFT__TOKEN_PRINT_BEGIN) {
            advance(p);
            made = unary(p, HEFT__NODE_OUTPUT, line, tuple_of(p, expression, false));
            if (p->token.kind != HEFT__TOKEN_PRINT_END) {
                (void)fail(p, HEFT_FORMAT, "expected the end of the expression");
            }
            advance(p);
        } else {
            advance(p);
            if (ends_here(p, ends)) {
                break;
            }
            made = statement(p);
            if (p->token.kind != HEFT__TOKEN_BLOCK_END) {
                (void)fail(p, HEFT_FORMAT, "expected the end of the tag");
            }
            advance(p);
        }
        (void)add(&list, made);
    }
    p->depth--;
    return p->status == HEFT_OK ? list.first : NULL;
}

/* ---- the template ----------------------------------------------------------------------------------------- */
/* A copy with '\n' for all newlines, and without the last one. */
static heft_status copy_text(heft__jinja_tree *tree, heft__string text, heft__string *out,
                             heft_error *err)
{
    char *copy = heft__jinja_tree_alloc(tree, text.length + 1, err);
    size_t length = 0;
    if (!copy) {
        return err->status;
    }
    for (size_t i = 0; i < text.length; i++) {
        const bool pair = text.text[i] == '\r' && i + 1 < text.length && text.text[i + 1] == '\n';
        copy[length++] = text.text[i] == '\r' ? '\n' : text.text[i];
        i += pair;
    }
    length -= length > 0 && copy[length - 1] == '\n';
    *out = (heft__string){copy, length};
    return HEFT_OK;
}

heft_status heft__jinja_parse(heft_ctx *ctx, const char *text, size_t length, heft__jinja_tree *out,
                              heft_error *err)
{
    heft_error own = {0};
    struct parser *p = heft__alloc_zero(ctx, 1, sizeof *p);
    heft__string copy = {0};
    *out = (heft__jinja_tree){.ctx = ctx, .limit = heft__limits(ctx)->chat_bytes};
    heft__arena_init(&out->arena, ctx);
    heft__map_init(&out->names, ctx);
    if (!p) {
        return heft__fail_nomem(err, sizeof *p);
    }
    p->tree = out;
    p->err = err ? err : &own;
    const size_t invalid = heft__utf8_invalid_at((const uint8_t *)text, length);
    p->status = invalid < length
                    ? heft__fail_at(p->err, HEFT_FORMAT, invalid, "the template is not UTF-8")
                    : copy_text(out, (heft__string){text, length}, &copy, p->err);
    if (p->status == HEFT_OK) {
        heft__jinja_lex(&p->lexer, out, copy);
        p->ahead.kind = HEFT__TOKEN_DATA;
        if (advance(p) && advance(p)) {
            out->body = body(p, "");
        }
    }
    heft_status status = p->status;
    heft__free(ctx, p, sizeof *p);
    return status;
}

void heft__jinja_tree_fini(heft__jinja_tree *tree)
{
    heft__map_fini(&tree->names);
    heft__arena_fini(&tree->arena);
    tree->body = NULL;
}
