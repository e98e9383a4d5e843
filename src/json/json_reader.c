/* json_reader.c - a pull reader: one token per call, nothing allocated, nothing recursive.
 *
 * Strict RFC 8259 over UTF-8. Every byte may be hostile: depth is a counter with one bit per level,
 * numbers stay text until they are asked for, and each error has the byte at which the text stopped
 * being JSON.
 * Source: RFC 8259; docs/formats/safetensors.md [2]. */
#include "json/json.h"

/* What may come next. */
enum state {
    WANT_VALUE,
    WANT_FIRST_ITEM, /* a value or ']' */
    WANT_FIRST_KEY,  /* a key or '}' */
    WANT_KEY,
    WANT_COMMA, /* or the end of the array or object */
    WANT_END
};

void heft__json_init(heft__json_reader *reader, const void *bytes, size_t length, uint64_t origin,
                     uint32_t depth_limit)
{
    const uint8_t *start = length ? bytes : (const uint8_t *)"";
    *reader = (heft__json_reader){
        .start = start,
        .p = start,
        .end = start + length,
        .origin = origin,
        .depth_limit = depth_limit < HEFT__JSON_DEPTH_MAX ? depth_limit : HEFT__JSON_DEPTH_MAX,
        .state = WANT_VALUE,
    };
}

const char *heft__json_kind_name(heft__json_kind kind)
{
    static const char *const names[] = {
        "an object",
        "the end of an object",
        "an array",
        "the end of an array",
        "a key",
        "a string",
        "a number",
        "true",
        "false",
        "null",
        "the end of the text",
    };
    return names[kind];
}

/* ---- errors ---------------------------------------------------------------------------------- */
static uint64_t offset_of(const heft__json_reader *r, const uint8_t *p)
{
    return r->origin + (uint64_t)(p - r->start);
}

static heft_status bad(const heft__json_reader *r, const uint8_t *p, const char *expected,
                       heft_error *err)
{
    uint64_t offset = offset_of(r, p);
    if (p >= r->end) {
        return heft__fail_at(err, HEFT_FORMAT, offset, "the text ends early, expected %s",
                             expected);
    }
    if (p == r->start && r->end - p >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0) {
        return heft__fail_at(err, HEFT_FORMAT, offset, "expected %s, found a byte order mark",
                             expected);
    }
    if (*p < 0x20 || *p >= 0x7f) {
        return heft__fail_at(err, HEFT_FORMAT, offset, "expected %s, found byte 0x%02x", expected,
                             *p);
    }
    return heft__fail_at(err, HEFT_FORMAT, offset, "expected %s, found '%c'", expected, *p);
}

/* ---- scanning -------------------------------------------------------------------------------- */
static void skip_space(heft__json_reader *r)
{
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\t' || *r->p == '\r')) {
        r->p++;
    }
}

/* The first byte of a string that is not plain: a quote, a backslash, a control character, anything
 * beyond ASCII. Eight bytes at a time: a borrow only runs upwards, so the lowest mark found is
 * exact. */
static const uint8_t *skip_plain(const uint8_t *p, const uint8_t *end)
{
    const uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
    while (end - p >= 8) {
        uint64_t eight = heft__le64(p);
        uint64_t quote = eight ^ ones * '"', slash = eight ^ ones * '\\';
        uint64_t found = ((quote - ones) & ~quote) | ((slash - ones) & ~slash) |
                         ((eight - ones * 0x20) & ~eight) | eight;
        if (found & high) {
            return p + __builtin_ctzll(found & high) / 8;
        }
        p += 8;
    }
    while (p < end && *p >= 0x20 && *p < 0x80 && *p != '"' && *p != '\\') {
        p++;
    }
    return p;
}

static int hex_digit(uint8_t c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* Four hex digits at p as a number, -1 if they are not; *stop is after them, or at the first that
 * is none. */
static int32_t hex4(const uint8_t *p, const uint8_t *end, const uint8_t **stop)
{
    int32_t code = 0;
    for (int i = 0; i < 4; i++, p++) {
        int digit = p < end ? hex_digit(*p) : -1;
        if (digit < 0) {
            *stop = p;
            return -1;
        }
        code = code * 16 + digit;
    }
    *stop = p;
    return code;
}

/* The second half of a surrogate pair, whose first half is the escape at p. */
static heft_status read_low_half(const heft__json_reader *r, const uint8_t *p, uint32_t *low,
                                 heft_error *err)
{
    const uint8_t *q = p + 6, *stop;
    if (q >= r->end || (*q == '\\' && q + 1 >= r->end)) {
        return bad(r, r->end, "the second half of a surrogate pair", err);
    }
    bool escape = q[0] == '\\' && q[1] == 'u';
    int32_t code = escape ? hex4(q + 2, r->end, &stop) : 0;
    if (code < 0) {
        return bad(r, stop, "a hex digit", err);
    }
    if (code < 0xDC00 || code > 0xDFFF) {
        return heft__fail_at(err, HEFT_FORMAT, offset_of(r, p), "unpaired surrogate in a string");
    }
    *low = (uint32_t)code;
    return HEFT_OK;
}

/* The escape at p (a backslash): its code point and length. Surrogates come in pairs only. */
static heft_status read_escape(const heft__json_reader *r, const uint8_t *p, uint32_t *code,
                               size_t *length, heft_error *err)
{
    static const char letters[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const uint8_t *end = r->end, *stop;
    const char *found = p + 1 < end && p[1] ? strchr(letters, p[1]) : NULL;
    if (found) {
        *code = (uint8_t)values[found - letters];
        *length = 2;
        return HEFT_OK;
    }
    if (p + 1 >= end || p[1] != 'u') {
        return bad(r, p + 1, "the letter of an escape", err);
    }
    int32_t first = hex4(p + 2, end, &stop);
    if (first < 0) {
        return bad(r, stop, "a hex digit", err);
    }
    *code = (uint32_t)first;
    *length = 6;
    if (first >= 0xDC00 && first <= 0xDFFF) {
        return heft__fail_at(err, HEFT_FORMAT, offset_of(r, p), "unpaired surrogate in a string");
    }
    if (first >= 0xD800 && first < 0xDC00) {
        uint32_t low = 0;
        heft_status status = read_low_half(r, p, &low, err);
        if (status != HEFT_OK) {
            return status;
        }
        *code = 0x10000 + ((uint32_t)first - 0xD800) * 0x400 + (low - 0xDC00);
        *length = 12;
    }
    return HEFT_OK;
}

/* Pass over the bytes beyond ASCII at *p. */
static heft_status skip_utf8(const heft__json_reader *r, const uint8_t **p, heft_error *err)
{
    const uint8_t *stop = *p;
    while (stop < r->end && *stop >= 0x80) {
        stop++;
    }
    size_t length = (size_t)(stop - *p), invalid = heft__utf8_invalid_at(*p, length);
    if (invalid < length) {
        return heft__fail_at(err, HEFT_FORMAT, offset_of(r, *p + invalid),
                             "invalid UTF-8 byte 0x%02x", (*p)[invalid]);
    }
    *p = stop;
    return HEFT_OK;
}

/* A string whose opening quote is at r->p. */
static heft_status scan_string(heft__json_reader *r, heft__json_token *token, heft_error *err)
{
    const uint8_t *start = r->p + 1, *p = skip_plain(start, r->end);
    while (p < r->end && *p != '"') {
        heft_status status = HEFT_OK;
        uint32_t code = 0;
        size_t length = 0;
        if (*p >= 0x80) {
            status = skip_utf8(r, &p, err);
        } else if (*p == '\\') {
            status = read_escape(r, p, &code, &length, err);
            token->escaped = true;
            p += status == HEFT_OK ? length : 0;
        } else {
            status = heft__fail_at(err, HEFT_FORMAT, offset_of(r, p),
                                   "control character 0x%02x in a string", *p);
        }
        if (status != HEFT_OK) {
            return status;
        }
        p = skip_plain(p, r->end);
    }
    if (p >= r->end) {
        return heft__fail_at(err, HEFT_FORMAT, offset_of(r, r->end),
                             "the text ends inside a string");
    }
    token->text = (const char *)start;
    token->length = (size_t)(p - start);
    r->p = p + 1;
    return HEFT_OK;
}

static const uint8_t *skip_digits(const uint8_t *p, const uint8_t *end)
{
    while (p < end && *p >= '0' && *p <= '9') {
        p++;
    }
    return p;
}

static heft_status scan_number(heft__json_reader *r, heft__json_token *token, heft_error *err)
{
    const uint8_t *p = r->p, *end = r->end, *digits;
    p += *p == '-';
    digits = p;
    p = skip_digits(p, end);
    if (p == digits || (p - digits > 1 && *digits == '0')) {
        return bad(r, p == digits ? p : digits + 1,
                   p == digits ? "a digit" : "no digit after a leading zero", err);
    }
    if (p < end && *p == '.') {
        digits = ++p;
        p = skip_digits(p, end);
        if (p == digits) {
            return bad(r, p, "a digit", err);
        }
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        p += p < end && (*p == '+' || *p == '-');
        digits = p;
        p = skip_digits(p, end);
        if (p == digits) {
            return bad(r, p, "a digit", err);
        }
    }
    token->kind = HEFT__JSON_NUMBER;
    token->text = (const char *)r->p;
    token->length = (size_t)(p - r->p);
    r->p = p;
    return HEFT_OK;
}

/* What Python writes for floats that JSON cannot hold. */
static bool scan_special(heft__json_reader *r, heft__json_token *token)
{
    static const char *const words[] = {"NaN", "Infinity", "-Infinity"};
    const size_t left = (size_t)(r->end - r->p);
    for (size_t i = 0; r->python && i < sizeof words / sizeof words[0]; i++) {
        const size_t length = strlen(words[i]);
        if (left >= length && memcmp(r->p, words[i], length) == 0) {
            token->kind = HEFT__JSON_NUMBER;
            token->text = (const char *)r->p;
            token->length = length;
            r->p += length;
            return true;
        }
    }
    return false;
}

static heft_status scan_word(heft__json_reader *r, heft__json_token *token, heft_error *err)
{
    static const struct {
        const char *word;
        heft__json_kind kind;
    } words[] = {
        {"true",  HEFT__JSON_TRUE },
        {"false", HEFT__JSON_FALSE},
        {"null",  HEFT__JSON_NULL }
    };
    const size_t left = (size_t)(r->end - r->p);
    for (size_t i = 0; left && i < sizeof words / sizeof words[0]; i++) {
        size_t length = strlen(words[i].word);
        if (memcmp(r->p, words[i].word, left < length ? left : length) != 0) {
            continue;
        }
        if (left < length) { /* what there is of the word is right */
            return bad(r, r->end, words[i].word, err);
        }
        token->kind = words[i].kind;
        r->p += length;
        return HEFT_OK;
    }
    return bad(r, r->p, "a value", err);
}

/* ---- structure ------------------------------------------------------------------------------- */
static bool in_object(const heft__json_reader *r)
{
    uint32_t level = r->depth - 1;
    return r->in_object[level / 64] >> (level % 64) & 1;
}

static heft_status open_level(heft__json_reader *r, heft__json_token *token, bool object,
                              heft_error *err)
{
    if (r->depth >= r->depth_limit) {
        return heft__fail_at(err, HEFT_LIMIT, offset_of(r, r->p),
                             "nested more than %u levels deep (limit json_depth)", r->depth_limit);
    }
    uint64_t bit = (uint64_t)1 << (r->depth % 64);
    r->in_object[r->depth / 64] =
        object ? r->in_object[r->depth / 64] | bit : r->in_object[r->depth / 64] & ~bit;
    r->depth++;
    r->p++;
    r->state = object ? WANT_FIRST_KEY : WANT_FIRST_ITEM;
    token->kind = object ? HEFT__JSON_OBJECT_BEGIN : HEFT__JSON_ARRAY_BEGIN;
    return HEFT_OK;
}

static void after_value(heft__json_reader *r)
{
    r->state = r->depth ? WANT_COMMA : WANT_END;
}

static heft_status close_level(heft__json_reader *r, heft__json_token *token)
{
    token->kind = in_object(r) ? HEFT__JSON_OBJECT_END : HEFT__JSON_ARRAY_END;
    r->depth--;
    r->p++;
    after_value(r);
    return HEFT_OK;
}

static heft_status read_value(heft__json_reader *r, heft__json_token *token, heft_error *err)
{
    heft_status status;
    uint8_t c = r->p < r->end ? *r->p : 0;
    if (c == '{' || c == '[') {
        return open_level(r, token, c == '{', err);
    }
    if (c == '"') {
        token->kind = HEFT__JSON_STRING;
        status = scan_string(r, token, err);
    } else if (scan_special(r, token)) {
        status = HEFT_OK;
    } else if (c == '-' || (c >= '0' && c <= '9')) {
        status = scan_number(r, token, err);
    } else {
        status = scan_word(r, token, err);
    }
    after_value(r);
    return status;
}

static heft_status read_key(heft__json_reader *r, heft__json_token *token, heft_error *err)
{
    if (r->p >= r->end || *r->p != '"') {
        return bad(r, r->p, r->state == WANT_FIRST_KEY ? "a key or '}'" : "a key", err);
    }
    token->kind = HEFT__JSON_KEY;
    heft_status status = scan_string(r, token, err);
    if (status != HEFT_OK) {
        return status;
    }
    skip_space(r);
    if (r->p >= r->end || *r->p != ':') {
        return bad(r, r->p, "':'", err);
    }
    r->p++;
    r->state = WANT_VALUE;
    return HEFT_OK;
}

heft_status heft__json_next(heft__json_reader *r, heft__json_token *token, heft_error *err)
{
    *token = (heft__json_token){.kind = HEFT__JSON_END};
    skip_space(r);
    token->offset = offset_of(r, r->p);
    if (r->state == WANT_COMMA) {
        uint8_t close = in_object(r) ? '}' : ']';
        if (r->p < r->end && *r->p == close) {
            return close_level(r, token);
        }
        if (r->p >= r->end || *r->p != ',') {
            return bad(r, r->p, in_object(r) ? "',' or '}'" : "',' or ']'", err);
        }
        r->p++;
        skip_space(r);
        r->state = in_object(r) ? WANT_KEY : WANT_VALUE;
        token->offset = offset_of(r, r->p);
    }
    switch ((enum state)r->state) {
    case WANT_FIRST_ITEM:
        return r->p < r->end && *r->p == ']' ? close_level(r, token) : read_value(r, token, err);
    case WANT_FIRST_KEY:
        if (r->p < r->end && *r->p == '}') {
            return close_level(r, token);
        }
        return read_key(r, token, err);
    case WANT_KEY:
        return read_key(r, token, err);
    case WANT_END:
        if (r->p < r->end) {
            return bad(r, r->p, "nothing but white space after the value", err);
        }
        return HEFT_OK;
    case WANT_VALUE:
    case WANT_COMMA:
    default:
        return read_value(r, token, err);
    }
}

heft_status heft__json_expect(heft__json_reader *reader, heft__json_kind kind, const char *what,
                              heft__json_token *token, heft_error *err)
{
    heft_status status = heft__json_next(reader, token, err);
    if (status == HEFT_OK && token->kind != kind) {
        status = heft__fail_at(err, HEFT_FORMAT, token->offset, "expected %s, found %s", what,
                               heft__json_kind_name(token->kind));
    }
    return status;
}

heft_status heft__json_skip(heft__json_reader *reader, const heft__json_token *first,
                            heft_error *err)
{
    if (first->kind != HEFT__JSON_OBJECT_BEGIN && first->kind != HEFT__JSON_ARRAY_BEGIN) {
        return HEFT_OK;
    }
    const uint32_t outside = reader->depth - 1;
    heft__json_token token;
    heft_status status = HEFT_OK;
    while (status == HEFT_OK && reader->depth > outside) {
        status = heft__json_next(reader, &token, err);
    }
    return status;
}

/* ---- tokens ---------------------------------------------------------------------------------- */
heft_status heft__json_string(const heft__json_token *token, heft__arena *arena, const char **text,
                              size_t *length, heft_error *err)
{
    char *copy = heft__arena_text(arena, token->text, token->length);
    if (!copy) {
        return heft__fail_nomem(err, token->length);
    }
    if (!token->escaped) {
        *text = copy;
        *length = token->length;
        return HEFT_OK;
    }
    /* An escape is never shorter than what it stands for, so the copy is resolved in place. */
    const uint8_t *p = (const uint8_t *)token->text, *end = p + token->length;
    const heft__json_reader raw = {.start = p, .end = end, .origin = token->offset + 1};
    uint8_t *out = (uint8_t *)copy;
    while (p < end) {
        uint32_t code = 0;
        size_t step = 1;
        if (*p != '\\') {
            *out++ = *p++;
            continue;
        }
        heft_status status = read_escape(&raw, p, &code, &step, err);
        if (status != HEFT_OK) {
            return status;
        }
        uint8_t utf8[4];
        size_t put = heft__utf8_put(code, utf8);
        memcpy(out, utf8, put);
        out += put;
        p += step;
    }
    *out = '\0';
    *text = copy;
    *length = (size_t)(out - (uint8_t *)copy);
    return HEFT_OK;
}

bool heft__json_is(const heft__json_token *token, const char *text)
{
    size_t length = strlen(text);
    if (!token->escaped) {
        return token->length == length && memcmp(token->text, text, length) == 0;
    }
    const uint8_t *p = (const uint8_t *)token->text, *end = p + token->length;
    const heft__json_reader raw = {.start = p, .end = end};
    for (size_t i = 0; i < length; i++) {
        uint32_t code = p < end ? *p : 0;
        size_t step = 1;
        if (p >= end || (*p == '\\' && read_escape(&raw, p, &code, &step, NULL) != HEFT_OK) ||
            code != (uint8_t)text[i]) {
            return false;
        }
        p += step;
    }
    return p == end;
}

heft_status heft__json_u64(const heft__json_token *token, const char *what, uint64_t *value,
                           heft_error *err)
{
    if (token->kind != HEFT__JSON_NUMBER) {
        return heft__fail_at(err, HEFT_FORMAT, token->offset,
                             "%s must be an unsigned integer, found %s", what,
                             heft__json_kind_name(token->kind));
    }
    uint64_t sum = 0;
    bool plain = true, fits = true;
    for (size_t i = 0; i < token->length && plain; i++) {
        unsigned digit = (unsigned)(uint8_t)token->text[i] - '0';
        plain = digit < 10; /* neither sign nor fraction nor exponent */
        fits = fits && heft__mul_u64(sum, 10, &sum) && heft__add_u64(sum, digit, &sum);
    }
    int shown = token->length > 40 ? 40 : (int)token->length;
    if (!plain) {
        return heft__fail_at(err, HEFT_FORMAT, token->offset,
                             "%s must be an unsigned integer, found %.*s", what, shown,
                             token->text);
    }
    if (!fits) {
        return heft__fail_at(err, HEFT_FORMAT, token->offset, "%s %.*s does not fit into 64 bits",
                             what, shown, token->text);
    }
    *value = sum;
    return HEFT_OK;
}
