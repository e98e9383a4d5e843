/* word_piece.c - WordPiece: the longest token that a word begins with, and so on for its rest, whose tokens
 * have the prefix "##"; a word with a part that is none is unknown as a whole. WordLevel: a word is a token.
 *
 * Source: Schuster & Nakajima 2012; Devlin et al. 2019; the details are `tokenizers`'. */
#include "text/tokenizer.h"

static size_t characters_of(heft__string text)
{
    size_t count = 0;
    for (size_t i = 0; i < text.length; i++) {
        count += ((uint8_t)text.text[i] & 0xC0) != 0x80;
    }
    return count;
}

static heft_status add_unknown(const heft__token_model *model, heft__ids *out, heft_error *err)
{
    if (model->unk_id == HEFT__NO_ID) {
        return heft__fail(err, HEFT_FORMAT,
                          "a word that is not in the vocabulary, which has no unknown token");
    }
    heft__ids_add(out, model->unk_id);
    return HEFT_OK;
}

/* The longest token at a place of the word; its end. */
static uint32_t longest(const heft__token_model *model, heft__buffer *text, heft__string word,
                        size_t start, size_t *end)
{
    const size_t before = start > 0 ? model->prefix.length : 0;
    text->size = 0;
    heft__buffer_append(text, model->prefix.text, before);
    const size_t most = model->vocabulary.longest < before ? 0 : model->vocabulary.longest - before;
    size_t length = word.length - start < most ? word.length - start : most;
    heft__buffer_append(text, word.text + start, length);
    for (; length > 0 && !text->failed; length--) {
        const bool cuts =
            start + length < word.length && ((uint8_t)word.text[start + length] & 0xC0) == 0x80;
        if (!cuts) {
            const uint32_t id =
                heft__vocabulary_id(&model->vocabulary, (const char *)text->data, before + length);
            if (id != HEFT__NO_ID) {
                *end = start + length;
                return id;
            }
        }
    }
    return HEFT__NO_ID;
}

heft_status heft__word_piece_encode(const heft__token_model *model, heft__model_scratch *scratch,
                                    heft__string piece, heft__ids *out, heft_error *err)
{
    if (model->kind == HEFT__MODEL_WORD_LEVEL) {
        const uint32_t id = heft__vocabulary_id(&model->vocabulary, piece.text, piece.length);
        if (id == HEFT__NO_ID) {
            return add_unknown(model, out, err);
        }
        heft__ids_add(out, id);
        return HEFT_OK;
    }
    if (characters_of(piece) > model->word_characters_max) {
        return add_unknown(model, out, err);
    }
    const size_t begun = out->count;
    for (size_t start = 0; start < piece.length;) {
        size_t end = start;
        const uint32_t id = longest(model, &scratch->a, piece, start, &end);
        heft_status status = heft__buffer_check(&scratch->a, err);
        if (status != HEFT_OK) {
            return status;
        }
        if (id == HEFT__NO_ID) {
            out->count = begun;
            return add_unknown(model, out, err);
        }
        heft__ids_add(out, id);
        start = end;
    }
    return HEFT_OK;
}
