/* pattern.c - what a text is searched for: a literal text, or a regular expression by libonig, the engine
 * that `tokenizers` uses, so that the patterns of a file mean here what they mean there.
 *
 * A pattern may be hostile. libonig goes back to try other ways, which may take any time: searches have a
 * limit of such steps, small at first, larger when it was too small, and all that are not short share a
 * budget in proportion to the text. What takes time without such steps is refused when it is compiled:
 * repeats of repeats, calls of groups, callouts, absent operators.
 * libonig's own memory is malloc's. */
#include "text/tokenizer.h"

#include <limits.h>

#ifdef HEFT_HAVE_ONIG
#include <oniguruma.h>
#endif

#define PATTERN_BYTES_MAX 16384u
#define REPEATS_MAX 100000u /* the product of all counts in braces */

heft_status heft__pattern_read(const heft__json_value *value, heft__pattern *out, heft_error *err)
{
    if (!value || value->type != HEFT__JSON_TYPE_OBJECT) {
        return heft__fail_at(err, HEFT_FORMAT, value ? value->offset : HEFT_NO_OFFSET,
                             "a pattern is an object with 'String' or 'Regex'");
    }
    heft__string literal = {0}, source = {0};
    heft_status status = heft__fields_known(value, "String Regex", err);
    if (status == HEFT_OK) {
        status = heft__field_text(value, "String", &literal, err);
    }
    if (status == HEFT_OK) {
        status = heft__field_text(value, "Regex", &source, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (!literal.text == !source.text) {
        return heft__fail_at(err, HEFT_FORMAT, value->offset,
                             "a pattern has one of 'String' and 'Regex'");
    }
    if (literal.text) {
        if (literal.length == 0) {
            return heft__fail_at(err, HEFT_UNSUPPORTED, value->offset, "an empty pattern");
        }
        *out = (heft__pattern){.literal = literal};
        return HEFT_OK;
    }
    status = heft__pattern_compile(source, out, err);
    if (status != HEFT_OK && err && err->offset == HEFT_NO_OFFSET) {
        err->offset = value->offset;
    }
    return status;
}

#ifdef HEFT_HAVE_ONIG
bool heft__has_regex(void)
{
    return true;
}

static pthread_once_t onig_once = PTHREAD_ONCE_INIT;
static void start_onig(void)
{
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
    (void)onig_initialize(encodings, 1);
}

/* A construct whose time cannot be bounded, NULL if there is none. */
static const char *forbidden(heft__string source)
{
    static const char *const texts[] = {"(?{", "(*", "(?~", "\\g", "(?@"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (memmem(source.text, source.length, texts[i], strlen(texts[i]))) {
            return texts[i];
        }
    }
    return NULL;
}

/* The largest number of a count "{2,5}" that begins at a brace; its end. */
static uint64_t read_count(heft__string source, size_t *at)
{
    uint64_t most = 0, number = 0;
    for (++*at; *at < source.length && most <= REPEATS_MAX; ++*at) {
        const char c = source.text[*at];
        if (c != ',' && (c < '0' || c > '9')) {
            break;
        }
        number = c == ',' ? 0 : number * 10 + (uint64_t)(c - '0');
        most = number > most ? number : most;
    }
    return most;
}

/* Whether the counts in braces, all nested in each other at the worst, are few repeats. */
static bool repeats_are_few(heft__string source)
{
    uint64_t product = 1;
    for (size_t i = 0; i < source.length && product <= REPEATS_MAX; i++) {
        if (source.text[i] ==
            '\\') { /* "\\{" is a brace, "\\p{...}" and "\\x{...}" are characters */
            i++;
            if (i + 1 < source.length && strchr("pPxou", source.text[i]) &&
                source.text[i + 1] == '{') {
                i++;
            }
        } else if (source.text[i] == '{') {
            const uint64_t most = read_count(source, &i);
            product *= most > 0 ? most : 1;
            i--;
        }
    }
    return product <= REPEATS_MAX;
}

heft_status heft__pattern_compile(heft__string source, heft__pattern *out, heft_error *err)
{
    const char *construct = forbidden(source);
    if (construct) {
        return heft__fail(err, HEFT_UNSUPPORTED, "'%s' in a regular expression is not supported",
                          construct);
    }
    if (source.length > PATTERN_BYTES_MAX || !repeats_are_few(source)) {
        return heft__fail(err, HEFT_LIMIT, "a regular expression with too much in it");
    }
    (void)pthread_once(&onig_once, start_onig);
    regex_t *regex = NULL;
    OnigErrorInfo info;
    const UChar *text = (const UChar *)source.text;
    int code = onig_new(&regex, text, text + source.length, ONIG_OPTION_NONE, ONIG_ENCODING_UTF8,
                        ONIG_SYNTAX_DEFAULT, &info);
    if (code != ONIG_NORMAL) {
        UChar message[ONIG_MAX_ERROR_MESSAGE_LEN];
        (void)onig_error_code_to_str(message, code, &info);
        return heft__fail(err, code == ONIGERR_MEMORY ? HEFT_NOMEM : HEFT_FORMAT,
                          "regular expression: %s", (const char *)message);
    }
    *out = (heft__pattern){.regex = regex};
    return HEFT_OK;
}

void heft__pattern_fini(heft__pattern *pattern)
{
    if (pattern->regex) {
        onig_free(pattern->regex);
        pattern->regex = NULL;
    }
}

bool heft__is_word(uint32_t code)
{
    return ONIGENC_IS_CODE_WORD(ONIG_ENCODING_UTF8, code) || code == 0x200C || code == 0x200D;
}

void heft__searcher_init(heft__searcher *searcher, heft_ctx *ctx, size_t text_bytes)
{
    *searcher = (heft__searcher){
        .ctx = ctx, .budget = heft__add_most((uint64_t)text_bytes * 256, (uint64_t)64 << 20)};
}

void heft__searcher_fini(heft__searcher *searcher)
{
    if (searcher->region) {
        onig_region_free(searcher->region, 1);
    }
    if (searcher->param) {
        onig_free_match_param(searcher->param);
    }
    searcher->region = searcher->param = NULL;
}

static heft_status prepare(heft__searcher *searcher, heft_error *err)
{
    if (!searcher->region) {
        searcher->region = onig_region_new();
    }
    if (!searcher->param) {
        searcher->param = onig_new_match_param();
        if (searcher->param) {
            (void)onig_initialize_match_param(searcher->param);
        }
    }
    return searcher->region && searcher->param ? HEFT_OK : heft__fail_nomem(err, 64);
}

static heft_status failed_search(int code, heft_error *err)
{
    if (code == ONIGERR_MEMORY) {
        return heft__fail_nomem(err, 0);
    }
    UChar message[ONIG_MAX_ERROR_MESSAGE_LEN];
    (void)onig_error_code_to_str(message, code);
    return heft__fail(err, HEFT_LIMIT, "regular expression: %s", (const char *)message);
}

/* One search from `from`. `*start` is SIZE_MAX if nothing is found. */
static heft_status search(heft__matches *m, size_t from, size_t *start, size_t *end,
                          heft_error *err)
{
    heft__searcher *s = m->searcher;
    const UChar *text = (const UChar *)m->text.text, *stop = text + m->text.length;
    const uint64_t stack = (uint64_t)m->text.length * 16 + 65536;
    (void)onig_set_match_stack_limit_size_of_match_param(
        s->param, stack > INT32_MAX ? INT32_MAX : (unsigned)stack);
    for (unsigned long steps = 512;; steps *= 16) {
        (void)onig_set_retry_limit_in_match_of_match_param(s->param, steps);
        (void)onig_set_retry_limit_in_search_of_match_param(s->param, steps);
        onig_region_clear(s->region);
        const int at = onig_search_with_param(m->pattern->regex, text, stop, text + from, stop,
                                              s->region, ONIG_OPTION_NONE, s->param);
        if (at >= 0) {
            const OnigRegion *region = s->region;
            *start = (size_t)region->beg[0];
            *end = (size_t)region->end[0];
            return HEFT_OK;
        }
        if (at == ONIG_MISMATCH) {
            *start = SIZE_MAX;
            return HEFT_OK;
        }
        const uint64_t next = (uint64_t)steps * 16;
        if ((at != ONIGERR_RETRY_LIMIT_IN_MATCH_OVER && at != ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER) ||
            next > s->budget || next > ULONG_MAX / 16) {
            return failed_search(at, err);
        }
        s->budget -= next;
    }
}

static heft_status next_regex_match(heft__matches *m, bool *found, size_t *start, size_t *end,
                                    heft_error *err)
{
    heft_status status = prepare(m->searcher, err);
    *found = false;
    while (status == HEFT_OK && m->at <= m->text.length) {
        status = search(m, m->at, start, end, err);
        if (status != HEFT_OK || *start == SIZE_MAX) {
            break;
        }
        if (*start != *end || *end != m->last_match) {
            m->at = m->last_match = *end;
            *found = true;
            break;
        }
        /* an empty match where the last one ended: the search goes on behind the next character */
        size_t size = 1;
        if (m->at < m->text.length) {
            (void)heft__utf8_get(m->text.text + m->at, &size);
        }
        m->at += size;
    }
    return status;
}

#else
bool heft__has_regex(void)
{
    return false;
}
heft_status heft__pattern_compile(heft__string source, heft__pattern *out, heft_error *err)
{
    (void)source;
    (void)out;
    return heft__fail(err, HEFT_UNSUPPORTED,
                      "a regular expression needs libonig, without which heft was built "
                      "(install libonig-dev and build it again)");
}
void heft__pattern_fini(heft__pattern *pattern)
{
    (void)pattern;
}
/* Asked only where heft__has_regex(). */
bool heft__is_word(uint32_t code)
{
    return code == '_' || (code >= '0' && code <= '9') || (code >= 'A' && code <= 'Z') ||
           (code >= 'a' && code <= 'z');
}
void heft__searcher_init(heft__searcher *searcher, heft_ctx *ctx, size_t text_bytes)
{
    *searcher = (heft__searcher){.ctx = ctx, .budget = text_bytes};
}
void heft__searcher_fini(heft__searcher *searcher)
{
    (void)searcher;
}
static heft_status next_regex_match(heft__matches *m, bool *found, size_t *start, size_t *end,
                                    heft_error *err)
{
    (void)m;
    (void)found;
    (void)start;
    (void)end;
    return heft__fail(err, HEFT_UNSUPPORTED, "no regular expressions");
}
#endif

/* The first place of a literal from `at` on; NULL: none. In windows, because sanitizers check all that a
 * call could read: a text with many matches would take the square of its length. */
static const char *find(heft__string text, size_t at, heft__string literal)
{
    const size_t window = 4096;
    const char *found = NULL;
    for (; !found && at < text.length; at += window) {
        const size_t left = text.length - at, most = window + literal.length - 1;
        found = memmem(text.text + at, left < most ? left : most, literal.text, literal.length);
    }
    return found;
}

heft_status heft__next_match(heft__matches *m, bool *found, size_t *start, size_t *end,
                             heft_error *err)
{
    if (!m->pattern->literal.text) {
        return next_regex_match(m, found, start, end, err);
    }
    const heft__string literal = m->pattern->literal;
    const char *at = find(m->text, m->at, literal);
    *found = at != NULL;
    if (at) {
        *start = (size_t)(at - m->text.text);
        *end = m->at = *start + literal.length;
    }
    return HEFT_OK;
}

bool heft__text_has_regex(void)
{
    return heft__has_regex();
}
