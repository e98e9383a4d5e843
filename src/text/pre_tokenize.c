/* pre_tokenize.c - pre-tokenizers: steps that split a text into the pieces that the model sees one by one.
 *
 * Source: the types of `tokenizers`' pre-tokenizers; tests/interop/test_text.py compares with them. */
#include "text/tokenizer.h"

static const char *const kinds[] = {
    [HEFT__PRE_BYTE_LEVEL] = "ByteLevel",
    [HEFT__PRE_METASPACE] = "Metaspace",
    [HEFT__PRE_WHITESPACE] = "Whitespace",
    [HEFT__PRE_WHITESPACE_SPLIT] = "WhitespaceSplit",
    [HEFT__PRE_BERT] = "BertPreTokenizer",
    [HEFT__PRE_PUNCTUATION] = "Punctuation",
    [HEFT__PRE_DIGITS] = "Digits",
    [HEFT__PRE_SPLIT] = "Split",
    [HEFT__PRE_DELIMITER] = "CharDelimiterSplit",
    [HEFT__PRE_FIXED_LENGTH] = "FixedLength",
    NULL,
};
static const char *const members[] = {
    [HEFT__PRE_BYTE_LEVEL] = "type add_prefix_space trim_offsets use_regex",
    [HEFT__PRE_METASPACE] = "type replacement str_rep add_prefix_space prepend_scheme split",
    [HEFT__PRE_WHITESPACE] = "type",
    [HEFT__PRE_WHITESPACE_SPLIT] = "type",
    [HEFT__PRE_BERT] = "type",
    [HEFT__PRE_PUNCTUATION] = "type behavior",
    [HEFT__PRE_DIGITS] = "type individual_digits",
    [HEFT__PRE_SPLIT] = "type pattern behavior invert",
    [HEFT__PRE_DELIMITER] = "type delimiter",
    [HEFT__PRE_FIXED_LENGTH] = "type length",
};

#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
/* Joiners are letters of words for `tokenizers`, not for libonig. */
#define WHITESPACE_PATTERN "[\\w\\x{200C}\\x{200D}]+|[^\\w\\s\\x{200C}\\x{200D}]+"

/* ---- reading ---------------------------------------------------------------------------------------- */
static heft_status read_character(const heft__json_value *step, const char *key, heft__string *out,
                                  heft_error *err)
{
    size_t size = 0;
    if (out->length > 0) {
        (void)heft__utf8_get(out->text, &size);
    }
    if (size == 0 || size != out->length) {
        return heft__fail_at(err, HEFT_FORMAT, step->offset, "'%s' is not one character", key);
    }
    return HEFT_OK;
}

heft_status heft__metaspace_read(const heft__json_value *step, heft__string *replacement,
                                 heft__prepend *prepend, heft_error *err)
{
    static const char *const schemes[] = {"always", "first", "never", NULL};
    heft__string scheme;
    bool add = true;
    size_t choice = HEFT__PREPEND_ALWAYS;
    heft_status status = heft__field_needed(step, "replacement", replacement, err);
    if (status == HEFT_OK) {
        status = read_character(step, "replacement", replacement, err);
    }
    if (status == HEFT_OK) {
        status = heft__field_text(step, "prepend_scheme", &scheme, err);
    }
    if (status == HEFT_OK) {
        status = heft__field_bool(step, "add_prefix_space", true, &add, err);
    }
    if (status == HEFT_OK && scheme.text) {
        status = heft__field_choice(scheme, schemes, step->offset, &choice, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (!add && scheme.text && choice != HEFT__PREPEND_NEVER) {
        return heft__fail_at(err, HEFT_FORMAT, step->offset,
                             "'add_prefix_space' and 'prepend_scheme' contradict each other");
    }
    *prepend = add ? (heft__prepend)choice : HEFT__PREPEND_NEVER;
    return HEFT_OK;
}

static heft_status read_behavior(const heft__json_value *step, heft__pre_tokenizer *out,
                                 heft_error *err)
{
    static const char *const names[] = {"Removed",        "Isolated",   "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous", NULL};
    heft__string name;
    size_t choice = HEFT__SPLIT_ISOLATED;
    heft_status status = heft__field_text(step, "behavior", &name, err);
    if (status == HEFT_OK && !name.text && out->kind == HEFT__PRE_SPLIT) {
        return heft__fail_at(err, HEFT_FORMAT, step->offset, "'behavior' is missing");
    }
    if (status == HEFT_OK && name.text) {
        status = heft__field_choice(name, names, step->offset, &choice, err);
    }
    out->behavior = (heft__split_behavior)choice;
    return status;
}

static heft_status read_regex(const char *source, heft__pre_tokenizer *out, heft_error *err)
{
    return heft__pattern_compile((heft__string){source, strlen(source)}, &out->pattern, err);
}

static heft_status read_byte_level(const heft__json_value *step, heft__pre_tokenizer *out,
                                   heft_error *err)
{
    heft_status status =
        heft__field_bool(step, "add_prefix_space", true, &out->add_prefix_space, err);
    if (status == HEFT_OK) {
        status = heft__field_bool(step, "use_regex", true, &out->use_regex, err);
    }
    return status == HEFT_OK && out->use_regex ? read_regex(GPT2_PATTERN, out, err) : status;
}

static heft_status read_metaspace(const heft__json_value *step, heft__pre_tokenizer *out,
                                  heft_error *err)
{
    size_t size;
    heft_status status = heft__metaspace_read(step, &out->replacement, &out->prepend, err);
    if (status == HEFT_OK) {
        out->code = heft__utf8_get(out->replacement.text, &size);
        status = heft__field_bool(step, "split", true, &out->split, err);
    }
    return status;
}

static heft_status read_delimiter(const heft__json_value *step, heft__pre_tokenizer *out,
                                  heft_error *err)
{
    heft__string text;
    size_t size;
    heft_status status = heft__field_needed(step, "delimiter", &text, err);
    if (status == HEFT_OK) {
        status = read_character(step, "delimiter", &text, err);
    }
    if (status == HEFT_OK) {
        out->code = heft__utf8_get(text.text, &size);
    }
    return status;
}

static heft_status read_split(const heft__json_value *step, heft__pre_tokenizer *out,
                              heft_error *err)
{
    heft_status status = heft__field_bool(step, "invert", false, &out->invert, err);
    if (status == HEFT_OK) {
        status = read_behavior(step, out, err);
    }
    return status == HEFT_OK
               ? heft__pattern_read(heft__json_member(step, "pattern"), &out->pattern, err)
               : status;
}

static heft_status read_members(const heft__json_value *step, heft__pre_tokenizer *out,
                                heft_error *err)
{
    heft_status status = HEFT_OK;
    switch (out->kind) {
    case HEFT__PRE_BYTE_LEVEL:
        return read_byte_level(step, out, err);
    case HEFT__PRE_METASPACE:
        return read_metaspace(step, out, err);
    case HEFT__PRE_WHITESPACE:
        return read_regex(WHITESPACE_PATTERN, out, err);
    case HEFT__PRE_WHITESPACE_SPLIT:
        return HEFT_OK;
    case HEFT__PRE_BERT:
        return heft__need_unicode_data(kinds[out->kind], err);
    case HEFT__PRE_PUNCTUATION:
        status = heft__need_unicode_data(kinds[out->kind], err);
        return status == HEFT_OK ? read_behavior(step, out, err) : status;
    case HEFT__PRE_DIGITS:
        status = heft__need_unicode_data(kinds[out->kind], err);
        return status == HEFT_OK
                   ? heft__field_bool(step, "individual_digits", false, &out->individual, err)
                   : status;
    case HEFT__PRE_SPLIT:
        return read_split(step, out, err);
    case HEFT__PRE_DELIMITER:
        return read_delimiter(step, out, err);
    case HEFT__PRE_FIXED_LENGTH:
        status = heft__field_u64(step, "length", 5, &out->length, err);
        return status == HEFT_OK && out->length == 0
                   ? heft__fail_at(err, HEFT_FORMAT, step->offset, "a 'length' of 0")
                   : status;
    }
    return status;
}

struct reading {
    heft__pre_tokenizers *out;
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
    if (status == HEFT_OK) {
        heft__pre_tokenizer *p = &reading->out->list[reading->out->count];
        p->kind = (heft__pre_kind)kind;
        status = read_members(step, p, err);
        reading->out->count += status == HEFT_OK;
    }
    return status;
}

heft_status heft__pre_tokenizers_read(heft__arena *arena, const heft__json_value *part,
                                      heft__pre_tokenizers *out, heft_error *err)
{
    out->list = heft__arena_array(arena, HEFT__STEPS_MAX, sizeof *out->list);
    if (!out->list) {
        return heft__fail_nomem(err, HEFT__STEPS_MAX * sizeof *out->list);
    }
    struct reading reading = {out};
    return heft__add_item(heft__each_step(part, "pretokenizers", read_step, &reading, err), err,
                          "pre_tokenizer");
}

void heft__pre_tokenizers_fini(heft__pre_tokenizers *pre)
{
    for (size_t i = 0; i < pre->count; i++) {
        heft__pattern_fini(&pre->list[i].pattern);
    }
}

/* ---- the steps --------------------------------------------------------------------------------------- */
static bool is_space(uint32_t code, uint32_t argument)
{
    (void)argument;
    return heft__is_white_space(code);
}
static bool is_punctuation(uint32_t code, uint32_t argument)
{
    (void)argument;
    return heft__is_punctuation(code);
}
static bool is_numeric(uint32_t code, uint32_t argument)
{
    (void)argument;
    return heft__is_numeric(code);
}
static bool is_code(uint32_t code, uint32_t argument)
{
    return code == argument;
}

/* Make each text piece anew: the text that `put` appends for it. */
typedef void (*put_fn)(const heft__pre_tokenizer *p, const heft__piece *piece, heft__string text,
                       heft__buffer *out);

static heft_status rewrite(const heft__pre_tokenizer *p, heft__text_work *work, put_fn put,
                           heft_error *err)
{
    for (size_t i = 0; i < work->pieces.count && work->other.size <= work->text_limit; i++) {
        heft__piece piece = work->pieces.list[i];
        if (piece.id == HEFT__NO_ID) {
            const heft__string text = {(const char *)work->text.data + piece.start,
                                       piece.end - piece.start};
            const size_t start = work->other.size;
            put(p, &piece, text, &work->other);
            piece.start = start;
            piece.end = work->other.size;
        }
        heft__add_piece(work, &work->next, piece);
    }
    heft__work_turn_text(work);
    heft__work_turn_pieces(work);
    return heft__work_check(work, &work->text, err);
}

static void put_prefix_space(const heft__pre_tokenizer *p, const heft__piece *piece,
                             heft__string text, heft__buffer *out)
{
    (void)p;
    (void)piece;
    if (text.length > 0 && text.text[0] != ' ') {
        heft__buffer_byte(out, ' ');
    }
    heft__buffer_append(out, text.text, text.length);
}

static void put_byte_characters(const heft__pre_tokenizer *p, const heft__piece *piece,
                                heft__string text, heft__buffer *out)
{
    (void)p;
    (void)piece;
    char run[256]; /* characters of up to 128 bytes */
    size_t used = 0;
    for (size_t i = 0; i < text.length; i++) {
        used += heft__byte_character((uint8_t)text.text[i], run + used);
        if (used > sizeof run - 2) {
            heft__buffer_append(out, run, used);
            used = 0;
        }
    }
    heft__buffer_append(out, run, used);
}

static void put_metaspace(const heft__pre_tokenizer *p, const heft__piece *piece, heft__string text,
                          heft__buffer *out)
{
    const heft__string r = p->replacement;
    const bool begins =
        text.length > 0 && (text.text[0] == ' ' ||
                            (text.length >= r.length && memcmp(text.text, r.text, r.length) == 0));
    if (!begins && (p->prepend == HEFT__PREPEND_ALWAYS ||
                    (p->prepend == HEFT__PREPEND_FIRST && piece->first))) {
        heft__buffer_append(out, r.text, r.length);
    }
    for (size_t i = 0; i < text.length;) {
        const char *space = memchr(text.text + i, ' ', text.length - i);
        const size_t end = space ? (size_t)(space - text.text) : text.length;
        heft__buffer_append(out, text.text + i, end - i);
        if (space) {
            heft__buffer_append(out, r.text, r.length);
        }
        i = end + 1;
    }
}

static heft_status byte_level(const heft__pre_tokenizer *p, heft__text_work *work, heft_error *err)
{
    heft_status status = HEFT_OK;
    if (p->add_prefix_space) {
        status = rewrite(p, work, put_prefix_space, err);
    }
    if (status == HEFT_OK && p->use_regex) {
        status = heft__split_pattern(work, &p->pattern, HEFT__SPLIT_ISOLATED, false, err);
    }
    return status == HEFT_OK ? rewrite(p, work, put_byte_characters, err) : status;
}

static heft_status fixed_length(const heft__pre_tokenizer *p, heft__text_work *work,
                                heft_error *err)
{
    for (size_t i = 0; i < work->pieces.count; i++) {
        const heft__piece piece = work->pieces.list[i];
        const char *text = (const char *)work->text.data;
        size_t start = piece.start;
        if (piece.id != HEFT__NO_ID) {
            heft__add_piece(work, &work->next, piece);
            continue;
        }
        while (start < piece.end) {
            size_t end = start, size;
            for (uint64_t k = 0; k < p->length && end < piece.end; k++) {
                (void)heft__utf8_get(text + end, &size);
                end += size;
            }
            heft__add_piece(
                work, &work->next,
                (heft__piece){start, end, HEFT__NO_ID, piece.first && start == piece.start});
            start = end;
        }
    }
    heft__work_turn_pieces(work);
    return heft__work_check(work, &work->text, err);
}

static heft_status apply(const heft__pre_tokenizer *p, heft__text_work *work, heft_error *err)
{
    heft_status status = HEFT_OK;
    switch (p->kind) {
    case HEFT__PRE_BYTE_LEVEL:
        return byte_level(p, work, err);
    case HEFT__PRE_METASPACE:
        status = rewrite(p, work, put_metaspace, err);
        return status == HEFT_OK && p->split
                   ? heft__split_codes(work, is_code, p->code, HEFT__SPLIT_MERGED_WITH_NEXT, err)
                   : status;
    case HEFT__PRE_WHITESPACE:
        return heft__split_pattern(work, &p->pattern, HEFT__SPLIT_REMOVED, true, err);
    case HEFT__PRE_WHITESPACE_SPLIT:
        return heft__split_codes(work, is_space, 0, HEFT__SPLIT_REMOVED, err);
    case HEFT__PRE_BERT:
        status = heft__split_codes(work, is_space, 0, HEFT__SPLIT_REMOVED, err);
        return status == HEFT_OK
                   ? heft__split_codes(work, is_punctuation, 0, HEFT__SPLIT_ISOLATED, err)
                   : status;
    case HEFT__PRE_PUNCTUATION:
        return heft__split_codes(work, is_punctuation, 0, p->behavior, err);
    case HEFT__PRE_DIGITS:
        return heft__split_codes(work, is_numeric, 0,
                                 p->individual ? HEFT__SPLIT_ISOLATED : HEFT__SPLIT_CONTIGUOUS,
                                 err);
    case HEFT__PRE_SPLIT:
        return heft__split_pattern(work, &p->pattern, p->behavior, p->invert, err);
    case HEFT__PRE_DELIMITER:
        return heft__split_codes(work, is_code, p->code, HEFT__SPLIT_REMOVED, err);
    case HEFT__PRE_FIXED_LENGTH:
        return fixed_length(p, work, err);
    }
    return status;
}

heft_status heft__pre_tokenize(const heft__pre_tokenizers *pre, heft__text_work *work,
                               heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < pre->count && status == HEFT_OK; i++) {
        status = apply(&pre->list[i], work, err);
    }
    return status;
}
