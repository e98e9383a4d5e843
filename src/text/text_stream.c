/* text_stream.c - ids to text, one by one.
 *
 * What a token's text is depends on those before it: a first one may lose a space, a character may be the
 * bytes of several. So the ids of the last text that was given are kept, and decoded with and without the new
 * ones: what the new ones add is the text. It waits while it ends with U+FFFD, which may be a character that
 * is not complete, but not for more ids than a character has bytes. */
#include "text/tokenizer.h"

#define WAIT_MAX 8 /* ids; a character has 4 bytes, and special tokens between them give nothing */
#define GIVEN_MAX 16
#define KEPT_MAX 64

struct heft_text_stream {
    const heft_tokenizer *tokenizer;
    bool skip_special;
    uint32_t ids[KEPT_MAX]; /* [given] whose text was given, then those that wait */
    size_t given, count;
    heft__text_work work;
    heft__buffer before, text;
};

heft_status heft_text_stream_new(const heft_tokenizer *tokenizer, bool skip_special,
                                 heft_text_stream **out, heft_error *err)
{
    if (!tokenizer || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "an argument is NULL");
    }
    heft_text_stream *s = heft__alloc_zero(tokenizer->ctx, 1, sizeof *s);
    if (!s) {
        return heft__fail_nomem(err, sizeof *s);
    }
    s->tokenizer = tokenizer;
    s->skip_special = skip_special;
    heft__work_init(&s->work, tokenizer->ctx, 0);
    heft__buffer_init(&s->before, tokenizer->ctx);
    heft__buffer_init(&s->text, tokenizer->ctx);
    *out = s;
    return HEFT_OK;
}

void heft_text_stream_free(heft_text_stream *s)
{
    if (s) {
        heft__work_fini(&s->work);
        heft__buffer_fini(&s->before);
        heft__buffer_fini(&s->text);
        heft__free(s->tokenizer->ctx, s, sizeof *s);
    }
}

static heft_status decode(heft_text_stream *s, size_t from, size_t to, heft_error *err)
{
    return heft__decode_ids(s->tokenizer, s->ids + from, to - from, s->skip_special, &s->work, err);
}

static bool ends_open(const heft__buffer *text)
{
    return text->size >= 3 && memcmp(text->data + text->size - 3, "\xEF\xBF\xBD", 3) == 0;
}

/* What the ids that wait add to the text, in s->text. Empty if it may change with further ids. */
static heft_status added_text(heft_text_stream *s, bool wait, heft_error *err)
{
    s->text.size = 0;
    heft_status status = decode(s, 0, s->given, err);
    if (status != HEFT_OK) {
        return status;
    }
    s->before.size = 0;
    heft__buffer_append(&s->before, s->work.text.data, s->work.text.size);
    status = decode(s, 0, s->count, err);
    if (status != HEFT_OK) {
        return status;
    }
    const heft__buffer *whole = &s->work.text;
    if (wait && ends_open(whole)) {
        return HEFT_OK;
    }
    size_t from = s->before.size;
    if (whole->size < from || (from && memcmp(whole->data, s->before.data, from) != 0)) {
        /* the new ids have changed what was given, which cannot be taken back */
        status = decode(s, s->given, s->count, err);
        from = 0;
    }
    if (status == HEFT_OK && whole->size > from) {
        heft__buffer_append(&s->text, whole->data + from, whole->size - from);
    }
    return status;
}

/* Ids whose text is given now are kept for the next ones; those before them go. */
static void keep_given(heft_text_stream *s)
{
    memmove(s->ids, s->ids + s->given, (s->count - s->given) * sizeof *s->ids);
    s->count -= s->given;
    if (s->count > GIVEN_MAX) {
        memmove(s->ids, s->ids + s->count - GIVEN_MAX, GIVEN_MAX * sizeof *s->ids);
        s->count = GIVEN_MAX;
    }
    s->given = s->count;
}

static heft_status give(heft_text_stream *s, const char **text, size_t *length, heft_error *err)
{
    heft__buffer_byte(&s->text, 0);
    heft_status status = heft__buffer_check(&s->text, err);
    if (status == HEFT_OK) {
        status = heft__buffer_check(&s->before, err);
    }
    if (status == HEFT_OK) {
        *text = (const char *)s->text.data;
        *length = s->text.size - 1;
    }
    return status;
}

heft_status heft_text_stream_add(heft_text_stream *s, uint32_t id, const char **text,
                                 size_t *length, heft_error *err)
{
    if (!s || !text || !length) {
        return heft__fail(err, HEFT_INVALID_ARG, "an argument is NULL");
    }
    if (s->count == KEPT_MAX) { /* ids without any text */
        s->count--;
        memmove(s->ids + s->given, s->ids + s->given + 1, (s->count - s->given) * sizeof *s->ids);
    }
    s->ids[s->count++] = id;
    heft_status status = added_text(s, s->count - s->given <= WAIT_MAX, err);
    if (status != HEFT_OK) {
        s->count--;
        return status;
    }
    if (s->text.size > 0) {
        keep_given(s);
    }
    return give(s, text, length, err);
}

heft_status heft_text_stream_finish(heft_text_stream *s, const char **text, size_t *length,
                                    heft_error *err)
{
    if (!s || !text || !length) {
        return heft__fail(err, HEFT_INVALID_ARG, "an argument is NULL");
    }
    heft_status status = added_text(s, false, err);
    if (status == HEFT_OK) {
        s->given = s->count = 0;
        status = give(s, text, length, err);
    }
    return status;
}
