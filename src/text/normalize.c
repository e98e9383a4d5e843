/* normalize.c - normalizers: steps that change a text before it is split.
 *
 * Source: the types of `tokenizers`' normalizers; tests/interop/test_text.py compares with them. */
#include "text/tokenizer.h"

static const char *const kinds[] = {
    [HEFT__NORM_NFC] = "NFC",
    [HEFT__NORM_NFD] = "NFD",
    [HEFT__NORM_NFKC] = "NFKC",
    [HEFT__NORM_NFKD] = "NFKD",
    [HEFT__NORM_LOWERCASE] = "Lowercase",
    [HEFT__NORM_STRIP] = "Strip",
    [HEFT__NORM_STRIP_ACCENTS] = "StripAccents",
    [HEFT__NORM_REPLACE] = "Replace",
    [HEFT__NORM_PREPEND] = "Prepend",
    [HEFT__NORM_BERT] = "BertNormalizer",
    [HEFT__NORM_NMT] = "Nmt",
    [HEFT__NORM_PRECOMPILED] = "Precompiled",
    [HEFT__NORM_BYTE_LEVEL] = "ByteLevel",
    NULL,
};
static const char *const members[] = {
    [HEFT__NORM_NFC] = "type",
    [HEFT__NORM_NFD] = "type",
    [HEFT__NORM_NFKC] = "type",
    [HEFT__NORM_NFKD] = "type",
    [HEFT__NORM_LOWERCASE] = "type",
    [HEFT__NORM_STRIP] = "type strip_left strip_right",
    [HEFT__NORM_STRIP_ACCENTS] = "type",
    [HEFT__NORM_REPLACE] = "type pattern content",
    [HEFT__NORM_PREPEND] = "type prepend",
    [HEFT__NORM_BERT] = "type clean_text handle_chinese_chars strip_accents lowercase",
    [HEFT__NORM_NMT] = "type",
    [HEFT__NORM_PRECOMPILED] = "type precompiled_charsmap",
    [HEFT__NORM_BYTE_LEVEL] = "type",
};
static bool needs_data(heft__normalizer_kind kind)
{
    return kind != HEFT__NORM_STRIP && kind != HEFT__NORM_REPLACE && kind != HEFT__NORM_PREPEND &&
           kind != HEFT__NORM_NMT && kind != HEFT__NORM_BYTE_LEVEL;
}

/* ---- reading ---------------------------------------------------------------------------------- */
static heft_status read_bert(const heft__json_value *step, heft__normalizer *out, heft_error *err)
{
    heft_status status = heft__field_bool(step, "clean_text", true, &out->clean, err);
    if (status == HEFT_OK) {
        status = heft__field_bool(step, "handle_chinese_chars", true, &out->chinese, err);
    }
    if (status == HEFT_OK) {
        status = heft__field_bool(step, "lowercase", true, &out->lowercase, err);
    }
    return status == HEFT_OK
               ? heft__field_bool(step, "strip_accents", out->lowercase, &out->strip_accents, err)
               : status;
}

static heft_status read_members(heft__arena *arena, const heft__json_value *step,
                                heft__normalizer *out, heft_error *err)
{
    heft_status status = HEFT_OK;
    if (out->kind == HEFT__NORM_STRIP) {
        status = heft__field_bool(step, "strip_left", true, &out->left, err);
        return status == HEFT_OK ? heft__field_bool(step, "strip_right", true, &out->right, err)
                                 : status;
    }
    if (out->kind == HEFT__NORM_REPLACE) {
        status = heft__field_needed(step, "content", &out->content, err);
        return status == HEFT_OK
                   ? heft__pattern_read(heft__json_member(step, "pattern"), &out->pattern, err)
                   : status;
    }
    if (out->kind == HEFT__NORM_PREPEND) {
        return heft__field_needed(step, "prepend", &out->content, err);
    }
    if (out->kind == HEFT__NORM_BERT) {
        return read_bert(step, out, err);
    }
    if (out->kind == HEFT__NORM_PRECOMPILED) {
        heft__string base64;
        status = heft__field_needed(step, "precompiled_charsmap", &base64, err);
        return status == HEFT_OK
                   ? heft__charsmap_read(arena, base64, step->offset, &out->charsmap, err)
                   : status;
    }
    return HEFT_OK;
}

struct reading {
    heft__arena *arena;
    heft__normalizers *out;
};

static heft_status read_step(void *user, heft__string type, const heft__json_value *step,
                             heft_error *err)
{
    const struct reading *reading = user;
    size_t kind;
    heft_status status = heft__field_choice(type, kinds, step->offset, &kind, err);
    if (status == HEFT_OK) {
        status = heft__fields_known(step, members[kind], err);
    }
    if (status == HEFT_OK && needs_data((heft__normalizer_kind)kind)) {
        status = heft__need_unicode_data(kinds[kind], err);
    }
    if (status == HEFT_OK) {
        heft__normalizer *n = &reading->out->list[reading->out->count];
        n->kind = (heft__normalizer_kind)kind;
        status = read_members(reading->arena, step, n, err);
        reading->out->count += status == HEFT_OK;
    }
    return status;
}

heft_status heft__normalizers_read(heft__arena *arena, const heft__json_value *part,
                                   heft__normalizers *out, heft_error *err)
{
    out->list = heft__arena_array(arena, HEFT__STEPS_MAX, sizeof *out->list);
    if (!out->list) {
        return heft__fail_nomem(err, HEFT__STEPS_MAX * sizeof *out->list);
    }
    struct reading reading = {arena, out};
    return heft__add_item(heft__each_step(part, "normalizers", read_step, &reading, err), err,
                          "normalizer");
}

void heft__normalizers_fini(heft__normalizers *normalizers)
{
    for (size_t i = 0; i < normalizers->count; i++) {
        heft__pattern_fini(&normalizers->list[i].pattern);
    }
}

/* ---- code point by code point ------------------------------------------------------------------- */
/* What becomes of a code point: its number in out[]. */
typedef size_t (*map_fn)(uint32_t code, uint32_t out[3]);

/* Whether the first one has gone. */
static bool map_codes(heft__string text, map_fn map, heft__buffer *out)
{
    bool gone = false;
    for (size_t i = 0, size; i < text.length; i += size) {
        uint32_t codes[3];
        const uint32_t code = heft__utf8_get(text.text + i, &size);
        const size_t count = map(code, codes);
        for (size_t k = 0; k < count; k++) {
            uint8_t utf8[4];
            heft__buffer_append(out, utf8, heft__utf8_put(codes[k], utf8));
        }
        gone = gone || (i == 0 && count == 0);
    }
    return gone;
}

static size_t keep_unless(uint32_t code, bool dropped, uint32_t out[3])
{
    out[0] = code;
    return dropped ? 0 : 1;
}

static size_t lowercase(uint32_t code, uint32_t out[3])
{
    if (code < 0x80) {
        out[0] = code >= 'A' && code <= 'Z' ? code + 32 : code;
        return 1;
    }
    return heft__lowercase(code, out);
}

static size_t without_marks(uint32_t code, uint32_t out[3])
{
    return keep_unless(code, code >= 0x80 && heft__is_mark(code), out);
}

static size_t without_nonspacing_marks(uint32_t code, uint32_t out[3])
{
    return keep_unless(code, code >= 0x80 && heft__is_nonspacing_mark(code), out);
}

static size_t clean(uint32_t code, uint32_t out[3])
{
    if (code == '\t' || code == '\n' || code == '\r' || heft__is_white_space(code)) {
        /* 0x85 is both a control and white space: it goes */
        return keep_unless(
            ' ', heft__is_other(code) && code != '\t' && code != '\n' && code != '\r', out);
    }
    return keep_unless(code, code == 0 || code == 0xFFFD || heft__is_other(code), out);
}

static bool is_chinese(uint32_t c)
{
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
           (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
           (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
           (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

static size_t space_chinese(uint32_t code, uint32_t out[3])
{
    const bool chinese = is_chinese(code);
    out[0] = chinese ? ' ' : code;
    out[1] = code;
    out[2] = ' ';
    return chinese ? 3 : 1;
}

static size_t nmt(uint32_t c, uint32_t out[3])
{
    const bool dropped = (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F ||
                         c == 0x8F || c == 0x9F;
    const bool space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 ||
                       (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                       c == 0xFEFF || c == 0xFFFD;
    return keep_unless(space ? ' ' : c, dropped, out);
}

/* ---- the steps -------------------------------------------------------------------------------------- */
size_t heft__byte_character(uint8_t byte, char out[2])
{
    /* GPT-2's printable bytes stand for themselves, the others for U+0100 and on in their order */
    uint32_t code = byte;
    if (byte <= 0x20) {
        code = 0x100u + byte;
    } else if (byte >= 0x7F && byte <= 0xA0) {
        code = 0x121u + (byte - 0x7Fu);
    } else if (byte == 0xAD) {
        code = 0x143;
    }
    uint8_t utf8[4];
    const size_t size = heft__utf8_put(code, utf8);
    memcpy(out, utf8, size <= 2 ? size : 2);
    return size;
}

static bool strip(const heft__normalizer *n, heft__string text, heft__buffer *out)
{
    size_t begin = 0, end = text.length, size;
    while (n->left && begin < end &&
           heft__is_white_space(heft__utf8_get(text.text + begin, &size))) {
        begin += size;
    }
    while (n->right && end > begin) {
        size_t at = end - 1;
        while (at > begin && ((uint8_t)text.text[at] & 0xC0) == 0x80) {
            at--;
        }
        if (!heft__is_white_space(heft__utf8_get(text.text + at, &size))) {
            break;
        }
        end = at;
    }
    heft__buffer_append(out, text.text + begin, end - begin);
    return begin > 0;
}

static heft_status replace(const heft__normalizer *n, heft__string text, heft__text_work *work,
                           heft__buffer *out, heft_error *err)
{
    heft__matches matches = {&n->pattern, &work->searcher, text, 0, SIZE_MAX};
    size_t copied = 0, start = 0, end = 0;
    for (bool found = text.length > 0; found;) {
        heft_status status = heft__next_match(&matches, &found, &start, &end, err);
        if (status == HEFT_OK) {
            status = heft__work_check(work, out, err);
        }
        if (status != HEFT_OK) {
            return status;
        }
        if (found) {
            work->beginning_gone =
                work->beginning_gone || (start == 0 && end > 0 && n->content.length == 0);
            heft__buffer_append(out, text.text + copied, start - copied);
            heft__buffer_append(out, n->content.text, n->content.length);
            copied = end;
        }
    }
    heft__buffer_append(out, text.text + copied, text.length - copied);
    return HEFT_OK;
}

/* Bert's normalizer is up to four steps; `text` may be in either of the two buffers that they use. */
static heft_status bert(const heft__normalizer *n, heft__string text, heft__text_work *work,
                        heft__buffer *out, heft_error *err)
{
    static const map_fn maps[] = {clean, space_chinese, NULL, without_nonspacing_marks, lowercase};
    const bool wanted[] = {n->clean, n->chinese, n->strip_accents, n->strip_accents, n->lowercase};
    heft__buffer one, two; /* by turns */
    heft__buffer_init(&one, work->ctx);
    heft__buffer_init(&two, work->ctx);
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < sizeof maps / sizeof *maps && status == HEFT_OK; i++) {
        if (!wanted[i]) {
            continue;
        }
        one.size = 0;
        if (maps[i]) {
            work->beginning_gone = map_codes(text, maps[i], &one) || work->beginning_gone;
            status = heft__buffer_check(&one, err);
        } else {
            status = heft__to_normal_form(HEFT__NFD, text, &one, err);
        }
        text = (heft__string){(const char *)one.data, one.size};
        const heft__buffer turned = one;
        one = two;
        two = turned;
    }
    if (status == HEFT_OK) {
        heft__buffer_append(out, text.text, text.length);
    }
    heft__buffer_fini(&one);
    heft__buffer_fini(&two);
    return status;
}

static void byte_level(heft__string text, heft__buffer *out)
{
    for (size_t i = 0; i < text.length; i++) {
        char character[2];
        heft__buffer_append(out, character, heft__byte_character((uint8_t)text.text[i], character));
    }
}

static heft_status apply(const heft__normalizer *n, heft__string text, heft__text_work *work,
                         heft__buffer *out, heft_error *err)
{
    switch (n->kind) {
    case HEFT__NORM_NFC:
        return heft__to_normal_form(HEFT__NFC, text, out, err);
    case HEFT__NORM_NFD:
        return heft__to_normal_form(HEFT__NFD, text, out, err);
    case HEFT__NORM_NFKC:
        return heft__to_normal_form(HEFT__NFKC, text, out, err);
    case HEFT__NORM_NFKD:
        return heft__to_normal_form(HEFT__NFKD, text, out, err);
    case HEFT__NORM_LOWERCASE:
        work->beginning_gone = map_codes(text, lowercase, out) || work->beginning_gone;
        break;
    case HEFT__NORM_STRIP:
        work->beginning_gone = strip(n, text, out) || work->beginning_gone;
        break;
    case HEFT__NORM_STRIP_ACCENTS:
        work->beginning_gone = map_codes(text, without_marks, out) || work->beginning_gone;
        break;
    case HEFT__NORM_REPLACE:
        return replace(n, text, work, out, err);
    case HEFT__NORM_PREPEND:
        if (text.length > 0) {
            heft__buffer_append(out, n->content.text, n->content.length);
        }
        heft__buffer_append(out, text.text, text.length);
        break;
    case HEFT__NORM_BERT:
        return bert(n, text, work, out, err);
    case HEFT__NORM_NMT:
        work->beginning_gone = map_codes(text, nmt, out) || work->beginning_gone;
        break;
    case HEFT__NORM_PRECOMPILED:
        return heft__charsmap_apply(&n->charsmap, text, work, out, err);
    case HEFT__NORM_BYTE_LEVEL:
        byte_level(text, out);
        break;
    }
    return HEFT_OK;
}

heft_status heft__normalize(const heft__normalizers *normalizers, heft__text_work *work,
                            heft__string text, heft__string *out, heft_error *err)
{
    work->beginning_gone = false;
    for (size_t i = 0; i < normalizers->count; i++) {
        heft__buffer *made = &work->normal[i % 2];
        made->size = 0;
        heft_status status = apply(&normalizers->list[i], text, work, made, err);
        if (status == HEFT_OK) {
            status = heft__work_check(work, made, err);
        }
        if (status != HEFT_OK) {
            return status;
        }
        text = (heft__string){(const char *)made->data, made->size};
    }
    *out = text;
    return HEFT_OK;
}
