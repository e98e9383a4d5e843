/* jinja_parser.h - what the two halves of the parser share: jinja_expression.c and jinja_parse.c. Its functions
 * return NULL or false after a failure, which is in the parser. */
#ifndef HEFT__TEXT_JINJA_PARSER_H
#define HEFT__TEXT_JINJA_PARSER_H

#include "text/jinja.h"

typedef heft__jinja_node node;

typedef struct heft__jinja_parser {
    heft__jinja_tree *tree;
    heft__jinja_lexer lexer;
    heft__jinja_token token, ahead; /* the current token, and the one behind it */
    heft_error *err;
    heft_status status;
    unsigned depth; /* of the functions below in each other */
    unsigned loops; /* around the current statement, of the same macro */
} heft__jinja_parser;

typedef struct heft__jinja_nodes {
    node *first, *last;
} heft__jinja_nodes;

node *heft__parse_fail(heft__jinja_parser *p, heft_status status, const char *what);
bool heft__parse_advance(heft__jinja_parser *p);
bool heft__parse_is_op(const heft__jinja_token *token, unsigned op);
bool heft__parse_is_word(const heft__jinja_token *token, const char *word);
/* Whether this is the token at hand, which is passed over then. */
bool heft__parse_skip_op(heft__jinja_parser *p, unsigned op);
bool heft__parse_skip_word(heft__jinja_parser *p, const char *word);
bool heft__parse_expect_op(heft__jinja_parser *p, unsigned op, const char *what);
node *heft__parse_node(heft__jinja_parser *p, heft__jinja_node_kind kind, uint32_t line);
/* Set a child, or a list of them, of a node. */
void heft__parse_adopt(heft__jinja_parser *p, node *parent, const node **place, const node *child);
/* A node with the child a. */
node *heft__parse_unary(heft__jinja_parser *p, heft__jinja_node_kind kind, uint32_t line,
                        const node *a);
bool heft__parse_add(heft__jinja_nodes *list, node *item);
/* A node of the name at hand. */
node *heft__parse_name(heft__jinja_parser *p, heft__jinja_node_kind kind);

node *heft__parse_expression(heft__jinja_parser *p);
node *heft__parse_or(heft__jinja_parser *p); /* an expression without if */
/* a, or a, b: a tuple. */
node *heft__parse_tuple(heft__jinja_parser *p, node *(*item)(heft__jinja_parser *),
                        bool may_be_empty);
/* What can be assigned to: a name, or a member of a namespace. */
node *heft__parse_assignable(heft__jinja_parser *p);
/* |name|name behind a node. */
node *heft__parse_filters(heft__jinja_parser *p, node *of);

#endif
