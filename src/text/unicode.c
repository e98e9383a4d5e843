/* unicode.c - what code points are, and their normal forms, by utf8proc.
 *
 * White space needs no library: it is a short list that does not change. Normal forms are made of
 * utf8proc's decompositions of single code points: its own ordering of marks takes time with the square of
 * their number.
 * Source: The Unicode Standard, chapter 3.11; UAX #15, UAX #29. */
#include "text/tokenizer.h"

#ifdef HEFT_HAVE_UTF8PROC
#include <utf8proc.h>
#endif

uint32_t heft__utf8_get(const char *text, size_t *size)
{
    const uint8_t *p = (const uint8_t *)text;
    if (p[0] < 0x80) {
        *size = 1;
        return p[0];
    }
    if (p[0] < 0xE0) {
        *size = 2;
        return (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu);
    }
    if (p[0] < 0xF0) {
        *size = 3;
        return (p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
    }
    *size = 4;
    return (p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
}

bool heft__is_white_space(uint32_t code)
{
    return (code >= 9 && code <= 13) || code == ' ' || code == 0x85 || code == 0xA0 ||
           code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
           code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

static bool is_ascii_punctuation(uint32_t code)
{
    return (code >= 33 && code <= 47) || (code >= 58 && code <= 64) || (code >= 91 && code <= 96) ||
           (code >= 123 && code <= 126);
}

#ifdef HEFT_HAVE_UTF8PROC
bool heft__has_unicode_data(void)
{
    return true;
}

heft_status heft__need_unicode_data(const char *what, heft_error *err)
{
    (void)what;
    (void)err;
    return HEFT_OK;
}

static utf8proc_category_t category(uint32_t code)
{
    return utf8proc_category((utf8proc_int32_t)code);
}

bool heft__is_numeric(uint32_t code)
{
    if (code < 0x80) {
        return code >= '0' && code <= '9';
    }
    const utf8proc_category_t c = category(code);
    return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

/* Code points whose category has changed since the versions of heft__is_newer(). */
bool heft__is_punctuation(uint32_t code)
{
    if (code < 0x80) {
        return is_ascii_punctuation(code);
    }
    const utf8proc_category_t c = category(code);
    return (c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO && !heft__is_newer(code, 8)) ||
           code == 0x166D || code == 0x111C9;
}

bool heft__is_mark(uint32_t code)
{
    const utf8proc_category_t c = category(code);
    const bool mark =
        c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC || c == UTF8PROC_CATEGORY_ME;
    return (mark && !heft__is_newer(code, 9) && code != 0x111C9) || code == 0x1CF2 ||
           code == 0x1CF3;
}

bool heft__is_nonspacing_mark(uint32_t code)
{
    return (category(code) == UTF8PROC_CATEGORY_MN && !heft__is_newer(code, 8) && code != 0x1885 &&
            code != 0x1886 && code != 0xA9BD && code != 0x111C9) ||
           code == 0x1734;
}

bool heft__is_other(uint32_t code)
{
    const utf8proc_category_t c = category(code);
    return c == UTF8PROC_CATEGORY_CC || c == UTF8PROC_CATEGORY_CO || c == UTF8PROC_CATEGORY_CS ||
           (c == UTF8PROC_CATEGORY_CF && !heft__is_newer(code, 8));
}

size_t heft__lowercase(uint32_t code, uint32_t out[2])
{
    if (code == 0x130) { /* the one code point that becomes two */
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    out[0] = (uint32_t)utf8proc_tolower((utf8proc_int32_t)code);
    return 1;
}

bool heft__grapheme_ends(uint32_t before, uint32_t after, int32_t *state)
{
    return utf8proc_grapheme_break_stateful((utf8proc_int32_t)before, (utf8proc_int32_t)after,
                                            state);
}

static int combining_class(int32_t code)
{
    const int class = (int)utf8proc_get_property(code)->combining_class;
    return class && heft__is_newer((uint32_t)code, 9) ? 0 : class;
}

/* Compose in place; returns what is left. A code point that is newer than the normal forms stands alone: what
 * is behind it does not compose with what is before it. */
static size_t compose(int32_t *codes, size_t count)
{
    const utf8proc_option_t options = (utf8proc_option_t)(UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    size_t made = 0;
    for (size_t i = 0; i < count;) {
        size_t end = i;
        while (end < count && !heft__is_newer((uint32_t)codes[end], 9)) {
            end++;
        }
        const size_t left =
            end > i
                ? (size_t)utf8proc_normalize_utf32(codes + i, (utf8proc_ssize_t)(end - i), options)
                : 0;
        memmove(codes + made, codes + i, left * sizeof *codes);
        made += left;
        if (end < count) {
            codes[made++] = codes[end++];
        }
        i = end;
    }
    return made;
}

/* Sort a run of marks by their class, equal ones as they stand: by counting, a class is below 256. */
static void order_run(int32_t *run, size_t count, int32_t *other)
{
    size_t at[257] = {0};
    for (size_t i = 0; i < count; i++) {
        at[combining_class(run[i]) + 1]++;
    }
    for (size_t c = 1; c < 257; c++) {
        at[c] += at[c - 1];
    }
    for (size_t i = 0; i < count; i++) {
        other[at[combining_class(run[i])]++] = run[i];
    }
    memcpy(run, other, count * sizeof *run);
}

static void order_short_run(int32_t *run, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        const int32_t code = run[i];
        size_t j = i;
        for (; j > 0 && combining_class(run[j - 1]) > combining_class(code); j--) {
            run[j] = run[j - 1];
        }
        run[j] = code;
    }
}

/* Put marks after each starter in the order of their classes. */
static bool order_marks(heft_ctx *ctx, int32_t *codes, size_t count)
{
    for (size_t i = 0; i < count;) {
        size_t end = i;
        while (end < count && combining_class(codes[end]) != 0) {
            end++;
        }
        if (end - i > 32) {
            int32_t *other = heft__alloc(ctx, (end - i) * sizeof *other);
            if (!other) {
                return false;
            }
            order_run(codes + i, end - i, other);
            heft__free(ctx, other, (end - i) * sizeof *other);
        } else if (end - i > 1) {
            order_short_run(codes + i, end - i);
        }
        i = end + 1;
    }
    return true;
}

static size_t ascii_prefix(heft__string text)
{
    size_t i = 0;
    while (i < text.length && (uint8_t)text.text[i] < 0x80) {
        i++;
    }
    return i;
}

heft_status heft__to_normal_form(heft__normal_form form, heft__string text, heft__buffer *out,
                                 heft_error *err)
{
    if (ascii_prefix(text) == text.length) {
        heft__buffer_append(out, text.text, text.length);
        return heft__buffer_check(out, err);
    }
    heft__buffer codes; /* of int32_t */
    heft__buffer_init(&codes, out->ctx);
    const bool compatible = form == HEFT__NFKC || form == HEFT__NFKD;
    const int options = UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0);
    for (size_t i = 0, size; i < text.length; i += size) {
        utf8proc_int32_t parts[32]; /* none has more than 18 */
        int last = UTF8PROC_BOUNDCLASS_START;
        const uint32_t code = heft__utf8_get(text.text + i, &size);
        utf8proc_ssize_t count = 1;
        parts[0] = (utf8proc_int32_t)code;
        if (!heft__is_newer(code, 9)) {
            count = utf8proc_decompose_char(parts[0], parts, 32, (utf8proc_option_t)options, &last);
        }
        heft__buffer_append(&codes, parts, (size_t)count * sizeof *parts);
    }
    heft_status status = heft__buffer_check(&codes, err);
    size_t count = codes.size / sizeof(int32_t);
    int32_t *list = (int32_t *)(void *)codes.data;
    if (status == HEFT_OK && !order_marks(out->ctx, list, count)) {
        status = heft__fail_nomem(err, codes.size);
    }
    if (status == HEFT_OK && (form == HEFT__NFC || form == HEFT__NFKC)) {
        count = compose(list, count);
    }
    for (size_t i = 0; status == HEFT_OK && i < count; i++) {
        uint8_t utf8[4];
        heft__buffer_append(out, utf8, heft__utf8_put((uint32_t)list[i], utf8));
    }
    heft__buffer_fini(&codes);
    return status == HEFT_OK ? heft__buffer_check(out, err) : status;
}

#else
bool heft__has_unicode_data(void)
{
    return false;
}

heft_status heft__need_unicode_data(const char *what, heft_error *err)
{
    return heft__fail(err, HEFT_UNSUPPORTED,
                      "'%s' needs utf8proc, without which heft was built (install libutf8proc-dev "
                      "and build it again)",
                      what);
}

/* What follows is never asked: each step that would has asked for the data. */
bool heft__is_numeric(uint32_t code)
{
    return code >= '0' && code <= '9';
}
bool heft__is_punctuation(uint32_t code)
{
    return is_ascii_punctuation(code);
}
bool heft__is_mark(uint32_t code)
{
    (void)code;
    return false;
}
bool heft__is_nonspacing_mark(uint32_t code)
{
    (void)code;
    return false;
}
bool heft__is_other(uint32_t code)
{
    return code < 32 || code == 127;
}
size_t heft__lowercase(uint32_t code, uint32_t out[2])
{
    out[0] = code;
    return 1;
}
bool heft__grapheme_ends(uint32_t before, uint32_t after, int32_t *state)
{
    (void)before;
    (void)after;
    (void)state;
    return true;
}
heft_status heft__to_normal_form(heft__normal_form form, heft__string text, heft__buffer *out,
                                 heft_error *err)
{
    (void)form;
    (void)text;
    (void)out;
    return heft__need_unicode_data("a normal form", err);
}
#endif

bool heft__text_has_unicode(void)
{
    return heft__has_unicode_data();
}
