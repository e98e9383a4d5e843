/* jinja_lex.c - a chat template as tokens.
 *
 *     text {%- name "string" 12 + %} text {{ name }} text {# comment #}
 *
 * White space goes as Jinja takes it away with trim_blocks and lstrip_blocks: the newline behind a block or a
 * comment, the blanks before them from the beginning of a line, and all of it beside a minus. */
#include "text/jinja.h"

#include <stdlib.h>

heft_status heft__jinja_fail_line(heft_error *err, heft_status status, uint32_t line,
                                  const char *format, ...)
{
    char text[sizeof err->message], item[32];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    (void)snprintf(item, sizeof item, "line %u", line);
    return heft__add_item(heft__fail(err, status, "%s", text), err, item);
}

void *heft__jinja_tree_alloc(heft__jinja_tree *tree, size_t bytes, heft_error *err)
{
    void *block = NULL;
    if (bytes > tree->limit || tree->bytes > tree->limit - bytes) {
        heft_status status = heft__fail(err, HEFT_LIMIT, "takes more than %llu bytes of memory",
                                        (unsigned long long)tree->limit);
        (void)heft__add_limit(status, err, "chat_bytes");
    } else if (!(block = heft__arena_array(&tree->arena, 1, bytes))) {
        (void)heft__fail_nomem(err, bytes);
    } else {
        tree->bytes += bytes;
    }
    return block;
}

void heft__jinja_lex(heft__jinja_lexer *lexer, heft__jinja_tree *tree, heft__string text)
{
    *lexer = (heft__jinja_lexer){.tree = tree,
                                 .p = text.text,
                                 .end = text.text + text.length,
                                 .line = 1,
                                 .state = HEFT__TOKEN_DATA,
                                 .line_starting = true};
}

static bool at(const heft__jinja_lexer *lexer, const char *text)
{
    const size_t length = strlen(text);
    return (size_t)(lexer->end - lexer->p) >= length && memcmp(lexer->p, text, length) == 0;
}

static void pass(heft__jinja_lexer *lexer, size_t bytes)
{
    for (; bytes > 0; bytes--) {
        lexer->line += *lexer->p++ == '\n';
    }
}

static void pass_space(heft__jinja_lexer *lexer)
{
    const heft__string rest = {lexer->p, (size_t)(lexer->end - lexer->p)};
    pass(lexer, rest.length - heft__jinja_strip(rest, true, false).length);
}

/* ---- between tags --------------------------------------------------------------------------------------- */
/* Where the next tag begins, or the end. */
static const char *find_tag(const heft__jinja_lexer *lexer)
{
    for (const char *p = lexer->p; p + 1 < lexer->end; p++) {
        if (*p == '{' && (p[1] == '%' || p[1] == '{' || p[1] == '#')) {
            return p;
        }
    }
    return lexer->end;
}

/* The text before a tag, without what the tag takes from it. */
static heft__string before_tag(const heft__jinja_lexer *lexer, const char *tag)
{
    heft__string text = {lexer->p, (size_t)(tag - lexer->p)};
    const char sign = tag + 2 < lexer->end ? tag[2] : '\0';
    if (sign == '-') {
        return heft__jinja_strip(text, false, true);
    }
    if (sign == '+' || tag[1] == '{') {
        return text;
    }
    size_t line = text.length;
    while (line > 0 && text.text[line - 1] != '\n') {
        line--;
    }
    const heft__string blanks = {text.text + line, text.length - line};
    if ((line > 0 || lexer->line_starting) && heft__jinja_strip(blanks, true, true).length == 0) {
        text.length = line;
    }
    return text;
}

/* The end of a tag was read, which begins at `from`. */
static void after_end(heft__jinja_lexer *lexer, bool minus, bool trim)
{
    if (minus) {
        pass_space(lexer);
    } else if (trim && at(lexer, "\n")) {
        pass(lexer, 1);
    }
    lexer->line_starting = lexer->p[-1] == '\n';
    lexer->state = HEFT__TOKEN_DATA;
}

static heft_status pass_comment(heft__jinja_lexer *lexer, heft_error *err)
{
    const uint32_t line = lexer->line;
    const char *first = lexer->p;
    while (lexer->p < lexer->end && !at(lexer, "#}")) {
        pass(lexer, 1);
    }
    if (lexer->p == lexer->end) {
        return heft__jinja_fail_line(err, HEFT_FORMAT, line, "the comment has no end");
    }
    const char sign = lexer->p > first ? lexer->p[-1] : '\0';
    pass(lexer, 2);
    after_end(lexer, sign == '-', sign != '+');
    return HEFT_OK;
}

/* Text, or a tag that begins, whose token then waits behind its text. */
static heft_status next_data(heft__jinja_lexer *lexer, heft__jinja_token *token, heft_error *err)
{
    for (;;) {
        const char *tag = find_tag(lexer);
        heft__string text = {lexer->p, (size_t)(tag - lexer->p)};
        *token = (heft__jinja_token){.kind = HEFT__TOKEN_END, .line = lexer->line};
        if (tag == lexer->end) {
            pass(lexer, text.length);
        } else {
            const bool block = tag[1] == '%', print = tag[1] == '{';
            const size_t sign = tag + 2 < lexer->end && (tag[2] == '-' || tag[2] == '+');
            text = before_tag(lexer, tag);
            pass(lexer, (size_t)(tag - lexer->p) + 2 + sign);
            if (block || print) {
                lexer->state = block ? HEFT__TOKEN_BLOCK_BEGIN : HEFT__TOKEN_PRINT_BEGIN;
                lexer->begin = (heft__jinja_token){
                    .kind = lexer->state, .line = lexer->line, .text = {tag, 2}
                };
            } else {
                heft_status status = pass_comment(lexer, err);
                if (status != HEFT_OK) {
                    return status;
                }
            }
        }
        if (text.length > 0) {
            token->kind = HEFT__TOKEN_DATA;
            token->text = text;
            return HEFT_OK;
        }
        if (lexer->begin.kind) {
            *token = lexer->begin;
            lexer->begin.kind = HEFT__TOKEN_END;
            return HEFT_OK;
        }
        if (lexer->p == lexer->end) {
            return HEFT_OK;
        }
    }
}

/* ---- in tags -------------------------------------------------------------------------------------------- */
static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_name(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/* The end of this tag: whether it is here. */
static bool tag_end(heft__jinja_lexer *lexer, heft__jinja_token *token)
{
    const bool block = lexer->state == HEFT__TOKEN_BLOCK_BEGIN;
    const bool minus = at(lexer, block ? "-%}" : "-}}"), plus = block && at(lexer, "+%}");
    if (lexer->open_count > 0 || (!minus && !plus && !at(lexer, block ? "%}" : "}}"))) {
        return false;
    }
    token->kind = block ? HEFT__TOKEN_BLOCK_END : HEFT__TOKEN_PRINT_END;
    token->text = (heft__string){lexer->p, 2};
    pass(lexer, minus || plus ? 3 : 2);
    after_end(lexer, minus, block && !plus);
    return true;
}

static size_t digits(const char *p, const char *end)
{
    size_t count = 0;
    while (p + count < end && is_digit(p[count])) {
        count++;
    }
    return count;
}

/* 12, 1.5, 1e3, 1.5e-3. */
static heft_status read_number(heft__jinja_lexer *lexer, heft__jinja_token *token, heft_error *err)
{
    const char *p = lexer->p;
    char copy[64];
    p += digits(p, lexer->end);
    token->kind = HEFT__TOKEN_INTEGER;
    if (!lexer->after_dot) {
        if (p < lexer->end && *p == '.' && digits(p + 1, lexer->end) > 0) {
            p += 1 + digits(p + 1, lexer->end);
            token->kind = HEFT__TOKEN_FLOAT;
        }
        const size_t sign = p + 1 < lexer->end && (p[1] == '-' || p[1] == '+');
        if (p < lexer->end && (*p == 'e' || *p == 'E') && digits(p + 1 + sign, lexer->end) > 0) {
            p += 1 + sign + digits(p + 1 + sign, lexer->end);
            token->kind = HEFT__TOKEN_FLOAT;
        }
    }
    const size_t length = (size_t)(p - lexer->p);
    if (length >= sizeof copy || (token->kind == HEFT__TOKEN_INTEGER && length > 18) ||
        (p < lexer->end && is_name(*p)) ||
        (token->kind == HEFT__TOKEN_INTEGER && *lexer->p == '0' && length > 1)) {
        return heft__jinja_fail_line(err, HEFT_UNSUPPORTED, lexer->line,
                                     "the number '%.*s' is not known",
                                     (int)(length < 20 ? length + (p < lexer->end) : 20), lexer->p);
    }
    memcpy(copy, lexer->p, length);
    copy[length] = '\0';
    if (token->kind == HEFT__TOKEN_INTEGER) {
        token->integer = strtoll(copy, NULL, 10);
    } else {
        const heft__json_value number = {
            .type = HEFT__JSON_TYPE_NUMBER, .text = copy, .length = length};
        if (!heft__json_as_double(&number, &token->real)) {
            return heft__jinja_fail_line(err, HEFT_UNSUPPORTED, lexer->line,
                                         "the number '%s' is not known", copy);
        }
    }
    token->text = (heft__string){lexer->p, length};
    pass(lexer, length);
    return HEFT_OK;
}

/* The code point of \xHH, \uHHHH and \UHHHHHHHH, whose digits begin at p; false if it is none. */
static bool read_hex(const char *p, const char *end, size_t count, uint32_t *code)
{
    *code = 0;
    if ((size_t)(end - p) < count) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        const char c = p[i];
        const int digit = is_digit(c)            ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0 || *code > 0x10FFFF) {
            return false;
        }
        *code = *code << 4 | (uint32_t)digit;
    }
    return *code <= 0x10FFFF && (*code < 0xD800 || *code > 0xDFFF);
}

/* One escape, whose backslash is at *p, as Python's unicode-escape reads it. False for what is not known. */
static bool unescape(const char **p, const char *end, char *dst, size_t *length)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    const char c = (*p)[1];
    const char *simple = strchr(from, c);
    const size_t digit_count = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    uint32_t code = 0;
    if (c == '\n') { /* the line goes on */
        *p += 2;
        return true;
    }
    if (digit_count > 0) {
        if (!read_hex(*p + 2, end, digit_count, &code)) {
            return false;
        }
        *p += 2 + digit_count;
        *length += heft__utf8_put(code, (uint8_t *)dst + *length);
        return true;
    }
    if (is_digit(c) || c == 'N' || c == '\0' || (unsigned char)c >= 0x80) {
        return false;
    }
    if (simple) {
        dst[(*length)++] = to[simple - from];
    } else {
        dst[(*length)++] = '\\';
        dst[(*length)++] = c;
    }
    *p += 2;
    return true;
}

static heft_status read_string(heft__jinja_lexer *lexer, heft__jinja_token *token, heft_error *err)
{
    const char quote = *lexer->p;
    const char *end = lexer->p + 1;
    while (end < lexer->end && *end != quote) {
        end += *end == '\\' && end + 1 < lexer->end ? 2 : 1;
    }
    if (end >= lexer->end) {
        return heft__jinja_fail_line(err, HEFT_FORMAT, lexer->line, "the string has no end");
    }
    const size_t most = (size_t)(end - lexer->p);
    char *text = heft__jinja_tree_alloc(lexer->tree, most + 4, err);
    size_t length = 0;
    if (!text) {
        return err->status;
    }
    for (const char *p = lexer->p + 1; p < end;) {
        if (*p != '\\') {
            text[length++] = *p++;
        } else if (!unescape(&p, end, text, &length)) {
            return heft__jinja_fail_line(err, HEFT_UNSUPPORTED, lexer->line,
                                         "the escape '%.2s' in a string is not known", p);
        }
    }
    *token = (heft__jinja_token){
        .kind = HEFT__TOKEN_STRING, .line = lexer->line, .text = {text, length}
    };
    pass(lexer, most + 1);
    return HEFT_OK;
}

static heft_status read_operator(heft__jinja_lexer *lexer, heft__jinja_token *token,
                                 heft_error *err)
{
    static const char *const pairs[] = {"==", "!=", "<=", ">=", "//", "**", NULL};
    const char c = *lexer->p;
    size_t length = 1;
    token->kind = HEFT__TOKEN_OPERATOR;
    token->op = (unsigned char)c;
    token->text = (heft__string){lexer->p, 1};
    for (size_t i = 0; pairs[i]; i++) {
        if (at(lexer, pairs[i])) {
            token->op = HEFT__OP(pairs[i][0], pairs[i][1]);
            token->text.length = length = 2;
        }
    }
    if (!c || (length == 1 && !strchr("+-/*%~[](){}><=.:|,;", c))) {
        return heft__jinja_fail_line(err, HEFT_FORMAT, lexer->line,
                                     "the character U+%04X is not expected",
                                     (unsigned)heft__utf8_get(lexer->p, &length));
    }
    if (strchr("([{", c) && length == 1) {
        if (lexer->open_count == sizeof lexer->open) {
            return heft__jinja_fail_line(err, HEFT_LIMIT, lexer->line, "more than %d brackets",
                                         HEFT__JINJA_DEPTH);
        }
        lexer->open[lexer->open_count++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (strchr(")]}", c) && length == 1) {
        if (lexer->open_count == 0 || lexer->open[lexer->open_count - 1] != c) {
            return heft__jinja_fail_line(err, HEFT_FORMAT, lexer->line, "'%c' is not expected", c);
        }
        lexer->open_count--;
    }
    pass(lexer, length);
    return HEFT_OK;
}

static heft_status next_in_tag(heft__jinja_lexer *lexer, heft__jinja_token *token, heft_error *err)
{
    pass_space(lexer);
    *token = (heft__jinja_token){.kind = HEFT__TOKEN_END, .line = lexer->line};
    if (lexer->p == lexer->end) {
        return heft__jinja_fail_line(err, HEFT_FORMAT, lexer->line, "the last tag has no end");
    }
    if (tag_end(lexer, token)) {
        return HEFT_OK;
    }
    const char c = *lexer->p;
    heft_status status = HEFT_OK;
    if (is_digit(c)) {
        status = read_number(lexer, token, err);
    } else if (is_name(c)) {
        size_t length = 1;
        while (lexer->p + length < lexer->end && is_name(lexer->p[length])) {
            length++;
        }
        token->kind = HEFT__TOKEN_NAME;
        token->text = (heft__string){lexer->p, length};
        pass(lexer, length);
    } else if (c == '\'' || c == '"') {
        status = read_string(lexer, token, err);
    } else {
        status = read_operator(lexer, token, err);
    }
    lexer->after_dot = token->kind == HEFT__TOKEN_OPERATOR && token->op == '.';
    return status;
}

heft_status heft__jinja_next(heft__jinja_lexer *lexer, heft__jinja_token *token, heft_error *err)
{
    if (lexer->begin.kind) { /* behind the text before it */
        *token = lexer->begin;
        lexer->begin.kind = HEFT__TOKEN_END;
        return HEFT_OK;
    }
    return lexer->state == HEFT__TOKEN_DATA ? next_data(lexer, token, err)
                                            : next_in_tag(lexer, token, err);
}
