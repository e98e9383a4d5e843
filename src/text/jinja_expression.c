/* jinja_expression.c - the expressions of a chat template as trees.
 *
 * Loosest first: a if b else c; or; and; not; comparisons; + -; ~; * / // %; unary minus; names, constants and
 * what is behind them: .name [item] (arguments) |filter is test. */
#include "text/jinja_parser.h"

static node *binary(heft__jinja_parser *p, heft__jinja_node_kind kind, uint32_t line, const node *a,
                    const node *b)
{
    node *made = heft__parse_unary(p, kind, line, a);
    if (made) {
        heft__parse_adopt(p, made, &made->b, b);
    }
    return made;
}

static node *unary_expression(heft__jinja_parser *p, bool with_filter);

static node *constant(heft__jinja_parser *p, heft__jinja_value value)
{
    node *made = heft__parse_node(p, HEFT__NODE_CONST, p->token.line);
    if (made) {
        made->value = value;
        heft__parse_advance(p);
    }
    return made;
}

/* One string, or several one after the other. */
static node *strings(heft__jinja_parser *p)
{
    heft__buffer joined;
    heft__buffer_init(&joined, p->tree->ctx);
    node *made = heft__parse_node(p, HEFT__NODE_CONST, p->token.line);
    while (made && p->token.kind == HEFT__TOKEN_STRING) {
        heft__buffer_append(&joined, p->token.text.text, p->token.text.length);
        made->value = heft__jinja_string(p->token.text.text, p->token.text.length);
        heft__parse_advance(p);
    }
    if (made && joined.failed) {
        p->status = heft__fail_nomem(p->err, made->value.string.length);
    } else if (made && joined.size != made->value.string.length) { /* several */
        char *copy = heft__jinja_tree_alloc(p->tree, joined.size, p->err);
        if (copy) {
            memcpy(copy, joined.data, joined.size);
            made->value = heft__jinja_string(copy, joined.size);
        } else {
            p->status = p->err->status;
        }
    }
    heft__buffer_fini(&joined);
    return made;
}

/* [a, b], {a: b}: the items up to the bracket that closes them. */
static node *items(heft__jinja_parser *p, heft__jinja_node_kind kind, unsigned close)
{
    heft__jinja_nodes list = {0};
    node *made = heft__parse_node(p, kind, p->token.line);
    heft__parse_advance(p);
    while (p->status == HEFT_OK && !heft__parse_is_op(&p->token, close)) {
        if (list.first && !heft__parse_expect_op(p, ',', "expected a comma")) {
            return NULL;
        }
        if (heft__parse_is_op(&p->token, close)) {
            break;
        }
        if (!heft__parse_add(&list, heft__parse_expression(p)) ||
            (kind == HEFT__NODE_DICT && (!heft__parse_expect_op(p, ':', "expected a colon") ||
                                         !heft__parse_add(&list, heft__parse_expression(p))))) {
            return NULL;
        }
    }
    if (made) {
        heft__parse_adopt(p, made, &made->a, list.first);
    }
    heft__parse_advance(p);
    return made;
}

/* Whether a list of expressions without brackets ends here. */
static bool tuple_ends(const heft__jinja_parser *p)
{
    return p->token.kind == HEFT__TOKEN_BLOCK_END || p->token.kind == HEFT__TOKEN_PRINT_END ||
           heft__parse_is_op(&p->token, ')') || heft__parse_is_word(&p->token, "in");
}

static node *primary(heft__jinja_parser *p);
node *heft__parse_assignable(heft__jinja_parser *p)
{
    node *made = primary(p);
    if (made && made->kind == HEFT__NODE_NAME && heft__parse_skip_op(p, '.')) {
        made->kind = HEFT__NODE_NSREF;
        made->text = p->token.text;
        if (p->token.kind != HEFT__TOKEN_NAME) {
            return heft__parse_fail(p, HEFT_FORMAT, "expected a name");
        }
        heft__parse_advance(p);
    }
    return made;
}

/* a, or a, b: a tuple. */
node *heft__parse_tuple(heft__jinja_parser *p, node *(*item)(heft__jinja_parser *),
                        bool may_be_empty)
{
    heft__jinja_nodes list = {0};
    const uint32_t line = p->token.line;
    bool comma = false;
    while (p->status == HEFT_OK && !tuple_ends(p)) {
        if (!heft__parse_add(&list, item(p))) {
            return NULL;
        }
        if (!heft__parse_skip_op(p, ',')) {
            break;
        }
        comma = true;
    }
    if (!comma && list.first) {
        return list.first;
    }
    if (!list.first && !may_be_empty) {
        return heft__parse_fail(p, HEFT_FORMAT, "expected an expression");
    }
    return heft__parse_unary(p, HEFT__NODE_TUPLE, line, list.first);
}

static node *primary(heft__jinja_parser *p)
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
        if (heft__parse_is_word(t, "true") || heft__parse_is_word(t, "True") ||
            heft__parse_is_word(t, "false") || heft__parse_is_word(t, "False")) {
            return constant(p, heft__jinja_bool(t->text.text[0] == 't' || t->text.text[0] == 'T'));
        }
        return heft__parse_is_word(t, "none") || heft__parse_is_word(t, "None")
                   ? constant(p, (heft__jinja_value){.kind = HEFT__JINJA_NONE})
                   : heft__parse_name(p, HEFT__NODE_NAME);
    }
    if (heft__parse_is_op(t, '[')) {
        return items(p, HEFT__NODE_LIST, ']');
    }
    if (heft__parse_is_op(t, '{')) {
        return items(p, HEFT__NODE_DICT, '}');
    }
    if (heft__parse_skip_op(p, '(')) {
        node *made = heft__parse_tuple(p, heft__parse_expression, true);
        return heft__parse_expect_op(p, ')', "expected ')'") ? made : NULL;
    }
    return heft__parse_fail(p, HEFT_FORMAT, "expected an expression");
}

/* (a, name=b) */
static const node *arguments(heft__jinja_parser *p)
{
    heft__jinja_nodes list = {0};
    bool named = false;
    heft__parse_advance(p);
    while (p->status == HEFT_OK && !heft__parse_is_op(&p->token, ')')) {
        if (list.first && !heft__parse_expect_op(p, ',', "expected a comma")) {
            return NULL;
        }
        if (heft__parse_is_op(&p->token, ')')) {
            break;
        }
        if (heft__parse_is_op(&p->token, '*') || heft__parse_is_op(&p->token, HEFT__OP('*', '*'))) {
            return heft__parse_fail(p, HEFT_UNSUPPORTED, "lists of arguments are not known:");
        }
        if (p->token.kind == HEFT__TOKEN_NAME && heft__parse_is_op(&p->ahead, '=')) {
            node *keyword = heft__parse_node(p, HEFT__NODE_KEYWORD, p->token.line);
            const heft__string name = p->token.text;
            heft__parse_advance(p);
            heft__parse_advance(p);
            const node *value = heft__parse_expression(p);
            if (!keyword || !value || !heft__parse_add(&list, keyword)) {
                return NULL;
            }
            keyword->text = name;
            heft__parse_adopt(p, keyword, &keyword->a, value);
            named = true;
        } else if (named) {
            return heft__parse_fail(p, HEFT_FORMAT,
                                    "an argument without a name behind one with a name");
        } else if (!heft__parse_add(&list, heft__parse_expression(p))) {
            return NULL;
        }
    }
    heft__parse_advance(p);
    return list.first;
}

/* [a] or [a:b:c] */
static node *subscript(heft__jinja_parser *p, const node *of)
{
    const node *parts[3] = {NULL};
    const uint32_t line = p->token.line;
    size_t part = 0;
    bool slice = false;
    heft__parse_advance(p);
    while (p->status == HEFT_OK && !heft__parse_is_op(&p->token, ']')) {
        if (heft__parse_is_op(&p->token, ',')) {
            return heft__parse_fail(p, HEFT_UNSUPPORTED, "an index of several parts is not known:");
        }
        if (heft__parse_is_op(&p->token, ':') && part < 2) {
            heft__parse_advance(p);
            slice = true;
            part++;
        } else if (parts[part]) {
            return heft__parse_fail(p, HEFT_FORMAT, "expected ']'");
        } else if (!(parts[part] = heft__parse_expression(p))) {
            return NULL;
        }
    }
    heft__parse_advance(p);
    if (!slice && !parts[0]) {
        return heft__parse_fail(p, HEFT_FORMAT, "expected an index");
    }
    node *made = binary(p, slice ? HEFT__NODE_SLICE : HEFT__NODE_ITEM, line, of, parts[0]);
    if (made && slice) {
        heft__parse_adopt(p, made, &made->c, parts[1]);
        heft__parse_adopt(p, made, &made->d, parts[2]);
    }
    return made;
}

/* .name or .0 */
static node *member(heft__jinja_parser *p, const node *of)
{
    const uint32_t line = p->token.line;
    heft__parse_advance(p);
    if (p->token.kind == HEFT__TOKEN_INTEGER) {
        return binary(p, HEFT__NODE_ITEM, line, of, constant(p, heft__jinja_int(p->token.integer)));
    }
    if (p->token.kind != HEFT__TOKEN_NAME) {
        return heft__parse_fail(p, HEFT_FORMAT, "expected a name");
    }
    node *made = heft__parse_unary(p, HEFT__NODE_ATTR, line, of);
    if (made) {
        made->text = p->token.text;
        heft__parse_advance(p);
    }
    return made;
}

static node *postfix(heft__jinja_parser *p, node *of)
{
    while (of && p->status == HEFT_OK) {
        const uint32_t line = p->token.line;
        if (heft__parse_is_op(&p->token, '.')) {
            of = member(p, of);
        } else if (heft__parse_is_op(&p->token, '[')) {
            of = subscript(p, of);
        } else if (heft__parse_is_op(&p->token, '(')) {
            const node *given = arguments(p);
            of = binary(p, HEFT__NODE_CALL, line, of, given);
        } else {
            break;
        }
    }
    return of;
}

/* name.name of a filter or test, and its arguments. */
static node *named(heft__jinja_parser *p, heft__jinja_node_kind kind, const node *of)
{
    node *made = heft__parse_unary(p, kind, p->token.line, of);
    if (made && p->token.kind != HEFT__TOKEN_NAME) {
        return heft__parse_fail(p, HEFT_FORMAT, "expected the name of a filter or test");
    }
    if (made) {
        made->text = p->token.text;
        heft__parse_advance(p);
        if (heft__parse_is_op(&p->token, '(')) {
            heft__parse_adopt(p, made, &made->b, arguments(p));
        }
    }
    return made;
}

node *heft__parse_filters(heft__jinja_parser *p, node *of)
{
    while (of && heft__parse_skip_op(p, '|')) {
        of = named(p, HEFT__NODE_FILTER, of);
    }
    return of;
}

/* is [not] name [argument] */
static node *test(heft__jinja_parser *p, const node *of)
{
    heft__parse_advance(p);
    const uint32_t line = p->token.line;
    const bool negated = heft__parse_skip_word(p, "not");
    node *made = named(p, HEFT__NODE_TEST, of);
    const heft__jinja_token *t = &p->token;
    const bool argument = t->kind == HEFT__TOKEN_NAME || t->kind == HEFT__TOKEN_STRING ||
                          t->kind == HEFT__TOKEN_INTEGER || t->kind == HEFT__TOKEN_FLOAT ||
                          heft__parse_is_op(t, '[') || heft__parse_is_op(t, '{');
    if (made && !made->b && argument && !heft__parse_is_word(t, "else") &&
        !heft__parse_is_word(t, "or") && !heft__parse_is_word(t, "and")) {
        if (heft__parse_is_word(t, "is")) {
            return heft__parse_fail(p, HEFT_FORMAT, "tests cannot follow each other:");
        }
        heft__parse_adopt(p, made, &made->b, postfix(p, primary(p)));
    }
    return negated ? heft__parse_unary(p, HEFT__NODE_NOT, line, made) : made;
}

static node *unary_expression(heft__jinja_parser *p, bool with_filter)
{
    if (++p->depth > HEFT__JINJA_DEPTH) {
        return heft__parse_fail(p, HEFT_LIMIT, "nested too deeply");
    }
    const uint32_t line = p->token.line;
    node *made;
    if (heft__parse_is_op(&p->token, '-') || heft__parse_is_op(&p->token, '+')) {
        const bool minus = heft__parse_is_op(&p->token, '-');
        heft__parse_advance(p);
        made = heft__parse_unary(p, minus ? HEFT__NODE_NEG : HEFT__NODE_POS, line,
                                 unary_expression(p, false));
    } else {
        made = primary(p);
    }
    made = postfix(p, made);
    while (with_filter && made && p->status == HEFT_OK) {
        if (heft__parse_is_op(&p->token, '|')) {
            made = heft__parse_filters(p, made);
        } else if (heft__parse_is_word(&p->token, "is")) {
            made = test(p, made);
        } else if (heft__parse_is_op(&p->token, '(')) {
            return heft__parse_fail(p, HEFT_UNSUPPORTED, "a call behind a filter is not known:");
        } else {
            break;
        }
    }
    p->depth--;
    return p->status == HEFT_OK ? made : NULL;
}

static node *product(heft__jinja_parser *p)
{
    node *left = unary_expression(p, true);
    while (left && p->token.kind == HEFT__TOKEN_OPERATOR) {
        const unsigned op = p->token.op;
        const uint32_t line = p->token.line;
        if (op == HEFT__OP('*', '*')) {
            return heft__parse_fail(p, HEFT_UNSUPPORTED, "the operator is not known:");
        }
        if (op != '*' && op != '/' && op != '%' && op != HEFT__OP('/', '/')) {
            break;
        }
        heft__parse_advance(p);
        left = binary(p, HEFT__NODE_BINARY, line, left, unary_expression(p, true));
        if (left) {
            left->op = op;
        }
    }
    return left;
}

static node *concatenation(heft__jinja_parser *p)
{
    heft__jinja_nodes list = {0};
    const uint32_t line = p->token.line;
    if (!heft__parse_add(&list, product(p))) {
        return NULL;
    }
    while (heft__parse_skip_op(p, '~')) {
        if (!heft__parse_add(&list, product(p))) {
            return NULL;
        }
    }
    return list.first == list.last ? list.first
                                   : heft__parse_unary(p, HEFT__NODE_CONCAT, line, list.first);
}

static node *sum(heft__jinja_parser *p)
{
    node *left = concatenation(p);
    while (left && (heft__parse_is_op(&p->token, '+') || heft__parse_is_op(&p->token, '-'))) {
        const unsigned op = p->token.op;
        const uint32_t line = p->token.line;
        heft__parse_advance(p);
        left = binary(p, HEFT__NODE_BINARY, line, left, concatenation(p));
        if (left) {
            left->op = op;
        }
    }
    return left;
}

/* The comparison at hand, read; 0 if there is none. */
static unsigned comparison(heft__jinja_parser *p)
{
    const heft__jinja_token *t = &p->token;
    unsigned op = 0;
    if (t->kind == HEFT__TOKEN_OPERATOR &&
        (t->op == '<' || t->op == '>' || t->op == HEFT__OP('=', '=') ||
         t->op == HEFT__OP('!', '=') || t->op == HEFT__OP('<', '=') ||
         t->op == HEFT__OP('>', '='))) {
        op = t->op;
    } else if (heft__parse_is_word(t, "in")) {
        op = HEFT__OP_IN;
    } else if (heft__parse_is_word(t, "not") && heft__parse_is_word(&p->ahead, "in")) {
        op = HEFT__OP_NOT_IN;
        heft__parse_advance(p);
    }
    if (op) {
        heft__parse_advance(p);
    }
    return op;
}

static node *compare(heft__jinja_parser *p)
{
    heft__jinja_nodes list = {0};
    const uint32_t line = p->token.line;
    node *left = sum(p);
    unsigned op;
    while (left && (op = comparison(p)) != 0) {
        node *operand = heft__parse_unary(p, HEFT__NODE_OPERAND, line, sum(p));
        if (!heft__parse_add(&list, operand)) {
            return NULL;
        }
        operand->op = op;
    }
    return list.first ? binary(p, HEFT__NODE_COMPARE, line, left, list.first) : left;
}

static node *negation(heft__jinja_parser *p)
{
    if (!heft__parse_is_word(&p->token, "not")) {
        return compare(p);
    }
    if (++p->depth > HEFT__JINJA_DEPTH) {
        return heft__parse_fail(p, HEFT_LIMIT, "nested too deeply");
    }
    const uint32_t line = p->token.line;
    heft__parse_advance(p);
    node *made = heft__parse_unary(p, HEFT__NODE_NOT, line, negation(p));
    p->depth--;
    return made;
}

static node *all_of(heft__jinja_parser *p)
{
    node *left = negation(p);
    while (left && heft__parse_is_word(&p->token, "and")) {
        const uint32_t line = p->token.line;
        heft__parse_advance(p);
        left = binary(p, HEFT__NODE_AND, line, left, negation(p));
    }
    return left;
}

node *heft__parse_or(heft__jinja_parser *p)
{
    node *left = all_of(p);
    while (left && heft__parse_is_word(&p->token, "or")) {
        const uint32_t line = p->token.line;
        heft__parse_advance(p);
        left = binary(p, HEFT__NODE_OR, line, left, all_of(p));
    }
    return left;
}

node *heft__parse_expression(heft__jinja_parser *p)
{
    if (++p->depth > HEFT__JINJA_DEPTH) {
        return heft__parse_fail(p, HEFT_LIMIT, "nested too deeply");
    }
    node *made = heft__parse_or(p);
    while (made && heft__parse_is_word(&p->token, "if")) {
        const uint32_t line = p->token.line;
        heft__parse_advance(p);
        const node *then = made;
        made = heft__parse_unary(p, HEFT__NODE_COND, line, heft__parse_or(p));
        const node *other =
            made && heft__parse_skip_word(p, "else") ? heft__parse_expression(p) : NULL;
        if (made) {
            heft__parse_adopt(p, made, &made->b, then);
            heft__parse_adopt(p, made, &made->c, other);
        }
    }
    p->depth--;
    return p->status == HEFT_OK ? made : NULL;
}
