/* decode.c - decoders: steps from the texts of tokens to one text.
 *
 * The texts are pieces of the work, each step makes them anew; at the end they are joined.
 * Source: the types of `tokenizers`' decoders; tests/interop/test_text.py compares with them. */
#include "text/tokenizer.h"

static const char *const kinds[] = {
    [HEFT__DECODE_BYTE_LEVEL] = "ByteLevel",
    [HEFT__DECODE_WORD_PIECE] = "WordPiece",
    [HEFT__DECODE_METASPACE] = "Metaspace",
    [HEFT__DECODE_BPE] = "BPEDecoder",
    [HEFT__DECODE_BYTE_FALLBACK] = "ByteFallback",
    [HEFT__DECODE_FUSE] = "Fuse",
    [HEFT__DECODE_STRIP] = "Strip",
    [HEFT__DECODE_REPLACE] = "Replace",
    NULL,
};
static const char *const members[] = {
    [HEFT__DECODE_BYTE_LEVEL] = "type add_prefix_space trim_offsets use_regex",
    [HEFT__DECODE_WORD_PIECE] = "type prefix cleanup",
    [HEFT__DECODE_METASPACE] = "type replacement str_rep add_prefix_space prepend_scheme split",
    [HEFT__DECODE_BPE] = "type suffix",
    [HEFT__DECODE_BYTE_FALLBACK] = "type",
    [HEFT__DECODE_FUSE] = "type",
    [HEFT__DECODE_STRIP] = "type content start stop",
    [HEFT__DECODE_REPLACE] = "type pattern content",
};

/* ---- reading ------------------------------------------------------------------------------------------ */
static heft_status read_strip(const heft__json_value *step, heft__decoder *out, heft_error *err)
{
    size_t size = 0;
    heft_status status = heft__field_needed(step, "content", &out->content, err);
    if (status == HEFT_OK && out->content.length > 0) {
        (void)heft__utf8_get(out->content.text, &size);
    }
    if (status == HEFT_OK && (size == 0 || size != out->content.length)) {
        return heft__fail_at(err, HEFT_FORMAT, step->offset, "'content' is not one character");
    }
    if (status == HEFT_OK) {
        status = heft__field_u64(step, "start", 0, &out->start, err);
    }
    return status == HEFT_OK ? heft__field_u64(step, "stop", 0, &out->stop, err) : status;
}

static heft_status read_members(const heft__json_value *step, heft__decoder *out, heft_error *err)
{
    heft_status status;
    switch (out->kind) {
    case HEFT__DECODE_WORD_PIECE:
        status = heft__field_needed(step, "prefix", &out->content, err);
        return status == HEFT_OK ? heft__field_bool(step, "cleanup", true, &out->cleanup, err)
                                 : status;
    case HEFT__DECODE_METASPACE:
        return heft__metaspace_read(step, &out->replacement, &out->prepend, err);
    case HEFT__DECODE_BPE:
        return heft__field_needed(step, "suffix", &out->content, err);
    case HEFT__DECODE_STRIP:
        return read_strip(step, out, err);
    case HEFT__DECODE_REPLACE:
        status = heft__field_needed(step, "content", &out->replacement, err);
        return status == HEFT_OK
                   ? heft__pattern_read(heft__json_member(step, "pattern"), &out->pattern, err)
                   : status;
    case HEFT__DECODE_BYTE_LEVEL:
    case HEFT__DECODE_BYTE_FALLBACK:
    case HEFT__DECODE_FUSE:
        break;
    }
    return HEFT_OK;
}

static heft_status read_step(void *user, heft__string type, const heft__json_value *step,
                             heft_error *err)
{
    heft__decoders *out = user;
    size_t kind;
    heft_status status = heft__field_choice(type, kinds, step->offset, &kind, err);
    if (status == HEFT_OK) {
        status = heft__fields_known(step, members[kind], err);
    }
    if (status == HEFT_OK) {
        heft__decoder *d = &out->list[out->count];
        d->kind = (heft__decoder_kind)kind;
        status = read_members(step, d, err);
        out->count += status == HEFT_OK;
    }
    return status;
}

heft_status heft__decoders_read(heft__arena *arena, const heft__json_value *part,
                                heft__decoders *out, heft_error *err)
{
    out->list = heft__arena_array(arena, HEFT__STEPS_MAX, sizeof *out->list);
    if (!out->list) {
        return heft__fail_nomem(err, HEFT__STEPS_MAX * sizeof *out->list);
    }
    out->none = !part || part->type == HEFT__JSON_TYPE_NULL;
    return heft__add_item(heft__each_step(part, "decoders", read_step, out, err), err, "decoder");
}

void heft__decoders_fini(heft__decoders *decoders)
{
    for (size_t i = 0; i < decoders->count; i++) {
        heft__pattern_fini(&decoders->list[i].pattern);
    }
}

/* ---- steps that make each token anew --------------------------------------------------------------------- */
static void add_made(heft__text_work *work, size_t start)
{
    /* the id keeps it where it is empty */
    heft__add_piece(work, &work->next, (heft__piece){start, work->other.size, 0, false});
}

static heft__string text_of(const heft__text_work *work, size_t i)
{
    const heft__piece *piece = &work->pieces.list[i];
    const size_t length = piece->end - piece->start;
    return (heft__string){length ? (const char *)work->text.data + piece->start : "", length};
}

static bool begins_with(heft__string text, heft__string prefix)
{
    return text.length >= prefix.length && memcmp(text.text, prefix.text, prefix.length) == 0;
}

/* Replace a literal text wherever it is, from `start` of the buffer on, with one that is no longer. */
static void replace_in(heft__buffer *buffer, size_t start, const char *from, const char *to)
{
    const size_t from_length = strlen(from), to_length = strlen(to);
    size_t kept = start;
    for (size_t i = start; i < buffer->size;) {
        if (buffer->size - i >= from_length && memcmp(buffer->data + i, from, from_length) == 0) {
            memcpy(buffer->data + kept, to, to_length);
            kept += to_length;
            i += from_length;
        } else {
            buffer->data[kept++] = buffer->data[i++];
        }
    }
    buffer->size = kept;
}

static void clean_up(heft__buffer *buffer, size_t start)
{
    static const char *const pairs[][2] = {
        {" .",      "."     },
        {" ?",      "?"     },
        {" !",      "!"     },
        {" ,",      ","     },
        {" ' ",     "'"     },
        {" n't",    "n't"   },
        {" 'm",     "'m"    },
        {" do not", " don't"},
        {" 's",     "'s"    },
        {" 've",    "'ve"   },
        {" 're",    "'re"   },
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs && !buffer->failed; i++) {
        replace_in(buffer, start, pairs[i][0], pairs[i][1]);
    }
}

static void word_piece(const heft__decoder *d, heft__string token, size_t i, heft__buffer *out)
{
    const size_t start = out->size;
    if (i > 0) {
        if (begins_with(token, d->content)) {
            token.text += d->content.length;
            token.length -= d->content.length;
        } else {
            heft__buffer_byte(out, ' ');
        }
    }
    heft__buffer_append(out, token.text, token.length);
    if (d->cleanup) {
        clean_up(out, start);
    }
}

static void metaspace(const heft__decoder *d, heft__string token, size_t i, heft__buffer *out)
{
    const bool drop = i == 0 && d->prepend != HEFT__PREPEND_NEVER;
    for (size_t k = 0, size; k < token.length; k += size) {
        (void)heft__utf8_get(token.text + k, &size);
        if (size == d->replacement.length &&
            memcmp(token.text + k, d->replacement.text, size) == 0) {
            heft__buffer_append(out, " ", drop ? 0 : 1);
        } else {
            heft__buffer_append(out, token.text + k, size);
        }
    }
}

static void bpe(const heft__decoder *d, heft__string token, bool last, heft__buffer *out)
{
    for (size_t k = 0; k < token.length;) {
        const heft__string rest = {token.text + k, token.length - k};
        if (d->content.length > 0 && begins_with(rest, d->content)) {
            heft__buffer_append(out, " ", last ? 0 : 1);
            k += d->content.length;
        } else {
            heft__buffer_byte(out, (uint8_t)token.text[k++]);
        }
    }
}

static void strip(const heft__decoder *d, heft__string token, heft__buffer *out)
{
    const size_t size = d->content.length;
    for (uint64_t k = 0; k < d->start && begins_with(token, d->content); k++) {
        token.text += size;
        token.length -= size;
    }
    for (uint64_t k = 0; k < d->stop && token.length >= size &&
                         memcmp(token.text + token.length - size, d->content.text, size) == 0;
         k++) {
        token.length -= size;
    }
    heft__buffer_append(out, token.text, token.length);
}

static heft_status replace(const heft__decoder *d, heft__string token, heft__text_work *work,
                           heft_error *err)
{
    heft__matches matches = {&d->pattern, &work->searcher, token, 0, SIZE_MAX};
    size_t copied = 0, start = 0, end = 0;
    for (bool found = token.length > 0; found;) {
        heft_status status = heft__next_match(&matches, &found, &start, &end, err);
        if (status == HEFT_OK) {
            status = heft__work_check(work, &work->other, err);
        }
        if (status != HEFT_OK) {
            return status;
        }
        if (found) {
            heft__buffer_append(&work->other, token.text + copied, start - copied);
            heft__buffer_append(&work->other, d->replacement.text, d->replacement.length);
            copied = end;
        }
    }
    heft__buffer_append(&work->other, token.text + copied, token.length - copied);
    return HEFT_OK;
}

static heft_status each_token(const heft__decoder *d, heft__text_work *work, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < work->pieces.count && status == HEFT_OK; i++) {
        const heft__string token = text_of(work, i);
        const size_t start = work->other.size;
        if (d->kind == HEFT__DECODE_WORD_PIECE) {
            word_piece(d, token, i, &work->other);
        } else if (d->kind == HEFT__DECODE_METASPACE) {
            metaspace(d, token, i, &work->other);
        } else if (d->kind == HEFT__DECODE_BPE) {
            bpe(d, token, i + 1 == work->pieces.count, &work->other);
        } else if (d->kind == HEFT__DECODE_STRIP) {
            strip(d, token, &work->other);
        } else {
            status = replace(d, token, work, err);
        }
        add_made(work, start);
        if (status == HEFT_OK) {
            status = heft__work_check(work, &work->other, err);
        }
    }
    return status;
}

/* ---- bytes ------------------------------------------------------------------------------------------------- */
#define REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

/* Bytes of the longest beginning of a character at p that could be one; `*whole` if it is. */
static size_t sequence(const uint8_t *p, size_t left, bool *whole)
{
    const uint8_t b = p[0];
    const size_t size = b < 0x80   ? 1
                        : b < 0xC2 ? 0
                        : b < 0xE0 ? 2
                        : b < 0xF0 ? 3
                        : b < 0xF5 ? 4
                                   : 0;
    const uint8_t low = b == 0xE0 ? 0xA0 : b == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = b == 0xED ? 0x9F : b == 0xF4 ? 0x8F : 0xBF;
    size_t i = 1;
    while (i < size && i < left && p[i] >= (i == 1 ? low : 0x80) &&
           p[i] <= (i == 1 ? high : 0xBF)) {
        i++;
    }
    *whole = size > 0 && i == size;
    return i;
}

/* Bytes as UTF-8: what is none becomes U+FFFD, one for each beginning of a character. */
static void append_lossy(const uint8_t *bytes, size_t length, heft__buffer *out)
{
    for (size_t i = 0; i < length;) {
        bool whole;
        const size_t size = sequence(bytes + i, length - i, &whole);
        if (whole) {
            heft__buffer_append(out, bytes + i, size);
        } else {
            heft__buffer_append(out, REPLACEMENT, 3);
        }
        i += size;
    }
}

/* The byte that a character stands for, -1 if it stands for none. */
static int byte_of(uint32_t code)
{
    if (code >= 0x100 && code <= 0x120) {
        return (int)(code - 0x100);
    }
    if (code >= 0x121 && code <= 0x142) {
        return (int)(code - 0x121 + 0x7F);
    }
    if (code == 0x143) {
        return 0xAD;
    }
    const bool itself =
        (code > 0x20 && code < 0x7F) || (code > 0xA0 && code < 0x100 && code != 0xAD);
    return itself ? (int)code : -1;
}

static void append_bytes(heft__string token, heft__buffer *bytes)
{
    const size_t begun = bytes->size;
    for (size_t k = 0, size; k < token.length; k += size) {
        const int byte = byte_of(heft__utf8_get(token.text + k, &size));
        if (byte < 0) { /* then the token is what it says */
            bytes->size = begun;
            heft__buffer_append(bytes, token.text, token.length);
            return;
        }
        heft__buffer_byte(bytes, (uint8_t)byte);
    }
}

static heft_status byte_level(heft__text_work *work, heft_error *err)
{
    work->codes.size = 0;
    for (size_t i = 0; i < work->pieces.count; i++) {
        append_bytes(text_of(work, i), &work->codes);
    }
    append_lossy(work->codes.data, work->codes.size, &work->other);
    add_made(work, 0);
    return heft__buffer_check(&work->codes, err);
}

static int digit_of(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* The byte of a token <0x00> to <0xFF>, -1 for another. */
static int fallback_byte(heft__string token)
{
    if (token.length != 6 || memcmp(token.text, "<0x", 3) != 0 || token.text[5] != '>') {
        return -1;
    }
    const int high = digit_of(token.text[3]), low = digit_of(token.text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* A run of bytes that is UTF-8 as a whole is a text, else each byte is U+FFFD. */
static void end_run(heft__text_work *work)
{
    heft__buffer *bytes = &work->codes;
    if (bytes->size == 0) {
        return;
    }
    const size_t start = work->other.size;
    if (heft__utf8_invalid_at(bytes->data, bytes->size) == bytes->size) {
        heft__buffer_append(&work->other, bytes->data, bytes->size);
    } else {
        for (size_t i = 0; i < bytes->size; i++) {
            heft__buffer_append(&work->other, REPLACEMENT, 3);
        }
    }
    add_made(work, start);
    bytes->size = 0;
}

static heft_status byte_fallback(heft__text_work *work, heft_error *err)
{
    work->codes.size = 0;
    for (size_t i = 0; i < work->pieces.count; i++) {
        const heft__string token = text_of(work, i);
        const int byte = fallback_byte(token);
        if (byte >= 0) {
            heft__buffer_byte(&work->codes, (uint8_t)byte);
            continue;
        }
        end_run(work);
        const size_t start = work->other.size;
        heft__buffer_append(&work->other, token.text, token.length);
        add_made(work, start);
    }
    end_run(work);
    return heft__buffer_check(&work->codes, err);
}

/* ---- all of it ------------------------------------------------------------------------------------------------ */
static void join(heft__text_work *work, const char *between)
{
    for (size_t i = 0; i < work->pieces.count; i++) {
        const heft__string token = text_of(work, i);
        heft__buffer_append(&work->other, between, i > 0 ? strlen(between) : 0);
        heft__buffer_append(&work->other, token.text, token.length);
    }
    add_made(work, 0);
}

heft_status heft__decode(const heft__decoders *decoders, heft__text_work *work, heft_error *err)
{
    for (size_t i = 0; i <= decoders->count; i++) {
        heft_status status = HEFT_OK;
        if (i == decoders->count) {
            join(work, decoders->none ? " " : "");
        } else if (decoders->list[i].kind == HEFT__DECODE_BYTE_LEVEL) {
            status = byte_level(work, err);
        } else if (decoders->list[i].kind == HEFT__DECODE_BYTE_FALLBACK) {
            status = byte_fallback(work, err);
        } else if (decoders->list[i].kind == HEFT__DECODE_FUSE) {
            join(work, "");
        } else {
            status = each_token(&decoders->list[i], work, err);
        }
        heft__work_turn_text(work);
        heft__work_turn_pieces(work);
        if (status == HEFT_OK) {
            status = heft__work_check(work, &work->text, err);
        }
        if (status != HEFT_OK) {
            return status;
        }
    }
    return HEFT_OK;
}
