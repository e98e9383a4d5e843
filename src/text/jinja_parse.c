/* jinja_parse.c - the tokens of a chat template as a tree, by the grammar of Jinja 3.1.
 *
 * An heft__parse_expression, loosest first: a if b else c; or; and; not; comparisons; + -; ~; * / // %; unary minus; names,
 * constants and what is behind them: .name [item] (arguments) |filter is test. Statements that Transformers'
 * templates do not use (block, include, call, raw ...) are refused by name.
 * The tree is at most HEFT__JINJA_DEPTH deep, so that those who walk it can recurse. */
#include "text/jinja_parser.h"

node *heft__parse_fail(heft__jinja_parser *p, heft_status status, const char *what)
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

bool heft__parse_advance(heft__jinja_parser *p)
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

bool heft__parse_is_op(const heft__jinja_token *token, unsigned op)
{
    return token->kind == HEFT__TOKEN_OPERATOR && token->op == op;
}

bool heft__parse_is_word(const heft__jinja_token *token, const char *word)
{
    return token->kind == HEFT__TOKEN_NAME && heft__string_is(token->text, word);
}

bool heft__parse_skip_op(heft__jinja_parser *p, unsigned op)
{
    return heft__parse_is_op(&p->token, op) && heft__parse_advance(p);
}

bool heft__parse_skip_word(heft__jinja_parser *p, const char *word)
{
    return heft__parse_is_word(&p->token, word) && heft__parse_advance(p);
}

bool heft__parse_expect_op(heft__jinja_parser *p, unsigned op, const char *what)
{
    if (!heft__parse_skip_op(p, op)) {
        heft__parse_fail(p, HEFT_FORMAT, what);
    }
    return p->status == HEFT_OK;
}

node *heft__parse_node(heft__jinja_parser *p, heft__jinja_node_kind kind, uint32_t line)
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
void heft__parse_adopt(heft__jinja_parser *p, node *parent, const node **place, const node *child)
{
    for (const node *c = child; parent && c; c = c->next) {
        if (c->depth + 1 > parent->depth) {
            parent->depth = c->depth + 1;
        }
    }
    if (parent && parent->depth > HEFT__JINJA_DEPTH) {
        (void)heft__parse_fail(p, HEFT_LIMIT, "nested too deeply");
    } else if (parent) {
        *place = child;
    }
}

node *heft__parse_unary(heft__jinja_parser *p, heft__jinja_node_kind kind, uint32_t line,
                        const node *a)
{
    node *made = heft__parse_node(p, kind, line);
    if (made) {
        heft__parse_adopt(p, made, &made->a, a);
    }
    return made;
}

bool heft__parse_add(heft__jinja_nodes *list, node *item)
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

static bool name_number(heft__jinja_parser *p, heft__string text, uint32_t *out)
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
node *heft__parse_name(heft__jinja_parser *p, heft__jinja_node_kind kind)
{
    node *made = heft__parse_node(p, kind, p->token.line);
    if (made && p->token.kind != HEFT__TOKEN_NAME) {
        return heft__parse_fail(p, HEFT_FORMAT, "expected a name");
    }
    if (!made || !name_number(p, p->token.text, &made->name)) {
        return NULL;
    }
    made->text = p->token.text;
    heft__parse_advance(p);
    return made;
}

/* ---- statements ------------------------------------------------------------------------------------------- */
static const node *body(heft__jinja_parser *p, const char *ends);

/* The end of the tag at hand, and the statements up to one of the tags in `ends`, at whose name it stops. */
static const node *block(heft__jinja_parser *p, const char *ends)
{
    (void)heft__parse_skip_op(p, ':');
    if (p->token.kind != HEFT__TOKEN_BLOCK_END) {
        return heft__parse_fail(p, HEFT_FORMAT, "expected the end of the tag");
    }
    heft__parse_advance(p);
    return body(p, ends);
}

static node *target(heft__jinja_parser *p)
{
    node *made = heft__parse_tuple(p, heft__parse_assignable, false);
    bool good = made != NULL;
    for (const node *n = made && made->kind == HEFT__NODE_TUPLE ? made->a : made; n && good;
         n = made->kind == HEFT__NODE_TUPLE ? n->next : NULL) {
        good = n->kind == HEFT__NODE_NAME || n->kind == HEFT__NODE_NSREF;
    }
    return good ? made
                : heft__parse_fail(p, HEFT_UNSUPPORTED, "this cannot be assigned to, before or");
}

static node *parse_if(heft__jinja_parser *p, uint32_t line)
{
    node *first = NULL, *last = NULL;
    for (bool more = true; more && p->status == HEFT_OK;) {
        node *made =
            heft__parse_unary(p, HEFT__NODE_IF, line, heft__parse_tuple(p, heft__parse_or, false));
        if (made) {
            heft__parse_adopt(p, made, &made->b, block(p, "elif else endif"));
        }
        if (last) {
            last->c = made;
        }
        first = first ? first : made;
        last = made;
        line = p->token.line;
        more = heft__parse_skip_word(p, "elif");
    }
    if (last && heft__parse_skip_word(p, "else")) {
        node *made = heft__parse_node(p, HEFT__NODE_IF, line);
        if (made) {
            heft__parse_adopt(p, made, &made->b, block(p, "endif"));
        }
        last->c = made;
    }
    heft__parse_advance(p);
    for (const node *n = first; n; n = n->c) { /* the branches are no deeper than each other */
        first->depth = n->depth > first->depth ? n->depth : first->depth;
    }
    return first;
}

static node *parse_for(heft__jinja_parser *p, uint32_t line)
{
    node *made = heft__parse_unary(p, HEFT__NODE_FOR, line, target(p));
    if (!made || !heft__parse_skip_word(p, "in")) {
        return heft__parse_fail(p, HEFT_FORMAT, "expected 'in'");
    }
    heft__parse_adopt(p, made, &made->b, heft__parse_tuple(p, heft__parse_or, false));
    if (heft__parse_skip_word(p, "if")) {
        heft__parse_adopt(p, made, &made->c, heft__parse_expression(p));
    }
    if (heft__parse_is_word(&p->token, "recursive")) {
        return heft__parse_fail(p, HEFT_UNSUPPORTED, "the loop is not known");
    }
    p->loops++;
    heft__parse_adopt(p, made, &made->d, block(p, "else endfor"));
    p->loops--;
    if (heft__parse_skip_word(p, "else")) {
        heft__parse_adopt(p, made, &made->e, block(p, "endfor"));
    }
    heft__parse_advance(p);
    return made;
}

static node *parse_set(heft__jinja_parser *p, uint32_t line)
{
    node *made = heft__parse_unary(p, HEFT__NODE_SET, line, target(p));
    if (!made) {
        return NULL;
    }
    if (heft__parse_skip_op(p, '=')) {
        heft__parse_adopt(p, made, &made->b, heft__parse_tuple(p, heft__parse_expression, false));
        return made;
    }
    made->kind = HEFT__NODE_SET_BLOCK;
    if (heft__parse_is_op(&p->token, '|')) {
        heft__parse_adopt(p, made, &made->b,
                          heft__parse_filters(p, heft__parse_node(p, HEFT__NODE_BODY, line)));
    }
    const unsigned loops = p->loops;
    p->loops = 0;
    heft__parse_adopt(p, made, &made->d, block(p, "endset"));
    p->loops = loops;
    heft__parse_advance(p);
    return made;
}

/* name=value, name=value as a list of HEFT__NODE_SET. */
static node *parse_with(heft__jinja_parser *p, uint32_t line)
{
    heft__jinja_nodes list = {0};
    node *made = heft__parse_node(p, HEFT__NODE_WITH, line);
    while (p->status == HEFT_OK && p->token.kind == HEFT__TOKEN_NAME) {
        node *set =
            heft__parse_unary(p, HEFT__NODE_SET, line, heft__parse_name(p, HEFT__NODE_NAME));
        if (!heft__parse_expect_op(p, '=', "expected '='") || !set) {
            return NULL;
        }
        heft__parse_adopt(p, set, &set->b, heft__parse_expression(p));
        if (!heft__parse_add(&list, set) || !heft__parse_skip_op(p, ',')) {
            break;
        }
    }
    if (made) {
        heft__parse_adopt(p, made, &made->a, list.first);
        heft__parse_adopt(p, made, &made->d, block(p, "endwith"));
        heft__parse_advance(p);
    }
    return made;
}

static node *parse_macro(heft__jinja_parser *p, uint32_t line)
{
    heft__jinja_nodes list = {0};
    node *made = heft__parse_name(p, HEFT__NODE_MACRO);
    if (!made || !heft__parse_expect_op(p, '(', "expected '('")) {
        return NULL;
    }
    made->line = line;
    while (p->status == HEFT_OK && !heft__parse_is_op(&p->token, ')')) {
        if (list.first && !heft__parse_expect_op(p, ',', "expected a comma")) {
            return NULL;
        }
        node *parameter = heft__parse_name(p, HEFT__NODE_NAME);
        if (!heft__parse_add(&list, parameter)) {
            return NULL;
        }
        if (heft__parse_skip_op(p, '=')) {
            heft__parse_adopt(p, parameter, &parameter->a, heft__parse_expression(p));
        }
    }
    heft__parse_advance(p);
    const unsigned loops = p->loops;
    p->loops = 0;
    heft__parse_adopt(p, made, &made->a, list.first);
    heft__parse_adopt(p, made, &made->d, block(p, "endmacro"));
    p->loops = loops;
    heft__parse_advance(p);
    return made;
}

static node *parse_generation(heft__jinja_parser *p, uint32_t line)
{
    node *made = heft__parse_node(p, HEFT__NODE_GENERATION, line);
    const unsigned loops = p->loops;
    p->loops = 0;
    if (made) {
        heft__parse_adopt(p, made, &made->d, block(p, "endgeneration"));
    }
    p->loops = loops;
    heft__parse_advance(p);
    return made;
}

static node *statement(heft__jinja_parser *p)
{
    static const struct {
        const char *name;
        node *(*parse)(heft__jinja_parser *, uint32_t line);
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
        return heft__parse_fail(p, HEFT_FORMAT, "expected the name of a statement");
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (heft__parse_skip_word(p, known[i].name)) {
            return known[i].parse(p, line);
        }
    }
    const bool leave = heft__parse_is_word(&p->token, "break");
    if (leave || heft__parse_is_word(&p->token, "continue")) {
        if (p->loops == 0) {
            return heft__parse_fail(p, HEFT_FORMAT, "outside a loop:");
        }
        heft__parse_advance(p);
        return heft__parse_node(p, leave ? HEFT__NODE_BREAK : HEFT__NODE_CONTINUE, line);
    }
    return heft__parse_fail(p, HEFT_UNSUPPORTED, "the statement is not known:");
}

/* Whether the name of the tag at hand is one of those in `ends`. */
static bool ends_here(const heft__jinja_parser *p, const char *ends)
{
    return p->token.kind == HEFT__TOKEN_NAME && heft__place_in(ends, p->token.text) != SIZE_MAX;
}

/* Statements up to a tag in `ends`, or with "" up to the end of the template. */
static const node *body(heft__jinja_parser *p, const char *ends)
{
    heft__jinja_nodes list = {0};
    if (++p->depth > HEFT__JINJA_DEPTH) {
        return heft__parse_fail(p, HEFT_LIMIT, "nested too deeply");
    }
    while (p->status == HEFT_OK) {
        const heft__jinja_token_kind kind = p->token.kind;
        const uint32_t line = p->token.line;
        node *made = NULL;
        if (kind == HEFT__TOKEN_END) {
            if (*ends) {
                (void)heft__parse_fail(p, HEFT_FORMAT, "a block has no end");
            }
            break;
        }
        if (kind == HEFT__TOKEN_DATA) {
            made = heft__parse_node(p, HEFT__NODE_DATA, line);
            if (made) {
                made->text = p->token.text;
            }
            heft__parse_advance(p);
        } else if (kind == HEFT__TOKEN_PRINT_BEGIN) {
            heft__parse_advance(p);
            made = heft__parse_unary(p, HEFT__NODE_OUTPUT, line,
                                     heft__parse_tuple(p, heft__parse_expression, false));
            if (p->token.kind != HEFT__TOKEN_PRINT_END) {
                (void)heft__parse_fail(p, HEFT_FORMAT, "expected the end of the expression");
            }
            heft__parse_advance(p);
        } else {
            heft__parse_advance(p);
            if (ends_here(p, ends)) {
                break;
            }
            made = statement(p);
            if (p->token.kind != HEFT__TOKEN_BLOCK_END) {
                (void)heft__parse_fail(p, HEFT_FORMAT, "expected the end of the tag");
            }
            heft__parse_advance(p);
        }
        (void)heft__parse_add(&list, made);
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
    heft__jinja_parser *p = heft__alloc_zero(ctx, 1, sizeof *p);
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
        if (heft__parse_advance(p) && heft__parse_advance(p)) {
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
