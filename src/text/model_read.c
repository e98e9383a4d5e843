/* model_read.c - the object "model" of a tokenizer.json.
 *
 * The vocabulary and the merges are most of the file and may come in any order: where they begin is noted at
 * first, and they are read when the other members are known. */
#include "text/tokenizer.h"

struct places {
    heft__json_reader vocabulary, merges; /* in front of the value */
    bool has_vocabulary, has_merges, is_array;
};

static heft_status note_place(heft__json_reader *reader, heft__json_reader *place, bool *has,
                              heft__json_token *token, heft_error *err)
{
    if (*has) {
        return heft__fail_at(err, HEFT_FORMAT, token->offset, "the member occurs twice");
    }
    *place = *reader;
    *has = true;
    heft_status status = heft__json_next(reader, token, err);
    return status == HEFT_OK ? heft__json_skip(reader, token, err) : status;
}

/* A member that is small. */
static heft_status keep_member(heft__arena *arena, heft__json_reader *reader,
                               heft__json_token *token, heft__json_value *object, heft_error *err)
{
    const char *key;
    size_t length;
    heft__json_value *value = NULL;
    const uint64_t offset = token->offset;
    heft_status status = heft__json_string(token, arena, &key, &length, err);
    if (status == HEFT_OK && (strlen(key) != length || heft__json_member(object, key))) {
        return heft__fail_at(err, HEFT_FORMAT, offset, "the member occurs twice");
    }
    if (status == HEFT_OK) {
        status = heft__json_next(reader, token, err);
    }
    if (status == HEFT_OK) {
        status = heft__json_read_tree(reader, token, arena, &value, err);
    }
    if (status == HEFT_OK && !heft__json_set(arena, object, key, value)) {
        return heft__fail_nomem(err, length);
    }
    return status;
}

static heft_status read_object(heft__arena *arena, heft__json_reader *reader,
                               heft__json_value *object, struct places *places, heft_error *err)
{
    heft__json_token token;
    heft_status status =
        heft__json_expect(reader, HEFT__JSON_OBJECT_BEGIN, "an object", &token, err);
    while (status == HEFT_OK) {
        status = heft__json_next(reader, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_OBJECT_END) {
            break;
        }
        if (heft__json_is(&token, "vocab")) {
            heft__json_token first;
            heft__json_reader ahead = *reader;
            status = heft__json_next(&ahead, &first, err);
            places->is_array = status == HEFT_OK && first.kind == HEFT__JSON_ARRAY_BEGIN;
            if (status == HEFT_OK) {
                status =
                    note_place(reader, &places->vocabulary, &places->has_vocabulary, &token, err);
            }
        } else if (heft__json_is(&token, "merges")) {
            status = note_place(reader, &places->merges, &places->has_merges, &token, err);
        } else {
            status = keep_member(arena, reader, &token, object, err);
        }
    }
    return status;
}

/* The kind by its name; old files have none and are told by their members, as `tokenizers` does. */
static heft_status find_kind(const heft__json_value *object, const struct places *places,
                             heft__model_kind *out, heft_error *err)
{
    static const char *const names[] = {[HEFT__MODEL_BPE] = "BPE",
                                        [HEFT__MODEL_WORD_PIECE] = "WordPiece",
                                        [HEFT__MODEL_WORD_LEVEL] = "WordLevel",
                                        [HEFT__MODEL_UNIGRAM] = "Unigram",
                                        NULL};
    heft__string type;
    size_t kind;
    heft_status status = heft__field_text(object, "type", &type, err);
    if (status == HEFT_OK && type.text) {
        status = heft__field_choice(type, names, object->offset, &kind, err);
        *out = status == HEFT_OK ? (heft__model_kind)kind : HEFT__MODEL_BPE;
        return status;
    }
    if (places->has_merges) {
        *out = HEFT__MODEL_BPE;
    } else if (places->is_array) {
        *out = HEFT__MODEL_UNIGRAM;
    } else if (heft__json_member(object, "continuing_subword_prefix")) {
        *out = HEFT__MODEL_WORD_PIECE;
    } else {
        *out = HEFT__MODEL_WORD_LEVEL;
    }
    return status;
}

static heft_status read_unknown(const heft__json_value *object, heft__token_model *model,
                                heft_error *err)
{
    heft__string unk;
    heft_status status = heft__field_text(object, "unk_token", &unk, err);
    if (status == HEFT_OK && unk.text) {
        model->unk_id = heft__vocabulary_id(&model->vocabulary, unk.text, unk.length);
        model->unk_lost = model->unk_id == HEFT__NO_ID;
    }
    return status;
}

static void find_bytes(heft__token_model *model)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[8];
        const int length = snprintf(name, sizeof name, "<0x%02X>", byte);
        model->byte_ids[byte] = heft__vocabulary_id(&model->vocabulary, name, (size_t)length);
    }
}

/* Ids of all characters of up to two bytes, so that most need no hash. */
static heft_status find_characters(heft__arena *arena, heft__token_model *model, heft_error *err)
{
    if (model->prefix.length || model->suffix.length) {
        return HEFT_OK;
    }
    model->character_ids = heft__arena_array(arena, 0x800, sizeof *model->character_ids);
    if (!model->character_ids) {
        return heft__fail_nomem(err, 0x800 * sizeof *model->character_ids);
    }
    for (uint32_t code = 0; code < 0x800; code++) {
        uint8_t utf8[4];
        const size_t size = heft__utf8_put(code, utf8);
        model->character_ids[code] =
            heft__vocabulary_id(&model->vocabulary, (const char *)utf8, size);
    }
    return HEFT_OK;
}

/* Merges are drawn at random: nothing that ids could be compared with. */
static heft_status refuse_dropout(const heft__json_value *object, heft_error *err)
{
    const heft__json_value *dropout = heft__json_member(object, "dropout");
    double value = 0;
    if (dropout && dropout->type != HEFT__JSON_TYPE_NULL &&
        (!heft__json_as_double(dropout, &value) || value != 0)) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, dropout->offset, "'dropout' is not supported");
    }
    return HEFT_OK;
}

static heft_status read_bpe(heft_ctx *ctx, heft__arena *arena, const heft__json_value *object,
                            struct places *places, heft__token_model *model, heft_error *err)
{
    heft_status status = heft__fields_known(
        object,
        "type dropout unk_token continuing_subword_prefix end_of_word_suffix fuse_unk "
        "byte_fallback ignore_merges",
        err);
    if (status == HEFT_OK) {
        status = refuse_dropout(object, err);
    }
    if (status == HEFT_OK) {
        status = heft__field_text(object, "continuing_subword_prefix", &model->prefix, err);
    }
    if (status == HEFT_OK) {
        status = heft__field_text(object, "end_of_word_suffix", &model->suffix, err);
    }
    if (status == HEFT_OK) {
        status = heft__field_bool(object, "fuse_unk", false, &model->fuse_unk, err);
    }
    if (status == HEFT_OK) {
        status = heft__field_bool(object, "byte_fallback", false, &model->byte_fallback, err);
    }
    if (status == HEFT_OK) {
        status = heft__field_bool(object, "ignore_merges", false, &model->ignore_merges, err);
    }
    if (status == HEFT_OK) {
        status = heft__vocabulary_read(ctx, arena, &places->vocabulary, &model->vocabulary, err);
    }
    if (status == HEFT_OK) {
        status = read_unknown(object, model, err);
    }
    if (status == HEFT_OK) {
        status = find_characters(arena, model, err);
    }
    return status == HEFT_OK ? heft__merges_read(ctx, model, &places->merges, err) : status;
}

static heft_status read_words(heft_ctx *ctx, heft__arena *arena, const heft__json_value *object,
                              struct places *places, heft__token_model *model, heft_error *err)
{
    const bool pieces = model->kind == HEFT__MODEL_WORD_PIECE;
    heft_status status = heft__fields_known(
        object,
        pieces ? "type unk_token continuing_subword_prefix max_input_chars_per_word"
               : "type unk_token",
        err);
    if (status == HEFT_OK) {
        status = heft__field_text(object, "continuing_subword_prefix", &model->prefix, err);
    }
    if (status == HEFT_OK && pieces && !model->prefix.text) {
        model->prefix = (heft__string){"##", 2};
    }
    if (status == HEFT_OK) {
        status = heft__field_u64(object, "max_input_chars_per_word", 100,
                                 &model->word_characters_max, err);
    }
    if (status == HEFT_OK) {
        status = heft__vocabulary_read(ctx, arena, &places->vocabulary, &model->vocabulary, err);
    }
    return status == HEFT_OK ? read_unknown(object, model, err) : status;
}

static heft_status read_unigram(heft_ctx *ctx, heft__arena *arena, const heft__json_value *object,
                                struct places *places, heft__token_model *model, heft_error *err)
{
    uint64_t unk = UINT64_MAX;
    heft_status status = heft__fields_known(object, "type unk_id byte_fallback", err);
    if (status == HEFT_OK) {
        status = heft__field_bool(object, "byte_fallback", false, &model->byte_fallback, err);
    }
    if (status == HEFT_OK) {
        status = heft__field_u64(object, "unk_id", UINT64_MAX, &unk, err);
    }
    if (status == HEFT_OK) {
        status = heft__scores_read(ctx, arena, &places->vocabulary, &model->vocabulary,
                                   &model->scores, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    model->fuse_unk = true;
    if (unk != UINT64_MAX) {
        if (unk >= model->vocabulary.id_count) {
            return heft__fail_at(err, HEFT_FORMAT, object->offset, "'unk_id' %llu of %zu tokens",
                                 (unsigned long long)unk, model->vocabulary.id_count);
        }
        model->unk_id = (uint32_t)unk;
    }
    return heft__unigram_build(arena, model, err);
}

static heft_status read_model(heft_ctx *ctx, heft__arena *arena, heft__json_reader *reader,
                              heft__token_model *out, heft_error *err)
{
    struct places places = {0};
    heft__json_value *object = heft__json_new_object(arena);
    if (!object) {
        return heft__fail_nomem(err, sizeof *object);
    }
    object->offset = reader->origin + (uint64_t)(reader->p - reader->start);
    heft_status status = read_object(arena, reader, object, &places, err);
    if (status == HEFT_OK) {
        status = find_kind(object, &places, &out->kind, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (!places.has_vocabulary || (out->kind == HEFT__MODEL_BPE && !places.has_merges)) {
        return heft__fail_at(err, HEFT_FORMAT, object->offset, "'%s' is missing",
                             places.has_vocabulary ? "merges" : "vocab");
    }
    switch (out->kind) {
    case HEFT__MODEL_BPE:
        status = read_bpe(ctx, arena, object, &places, out, err);
        break;
    case HEFT__MODEL_WORD_PIECE:
    case HEFT__MODEL_WORD_LEVEL:
        status = read_words(ctx, arena, object, &places, out, err);
        break;
    case HEFT__MODEL_UNIGRAM:
        status = read_unigram(ctx, arena, object, &places, out, err);
        break;
    }
    if (status == HEFT_OK) {
        find_bytes(out);
    }
    return status;
}

heft_status heft__token_model_read(heft_ctx *ctx, heft__arena *arena, heft__json_reader *reader,
                                   heft__token_model *out, heft_error *err)
{
    heft__map_init(&out->vocabulary.ids, ctx);
    out->unk_id = HEFT__NO_ID;
    return heft__add_item(read_model(ctx, arena, reader, out, err), err, "model");
}

void heft__token_model_fini(heft_ctx *ctx, heft__token_model *model)
{
    heft__merges_fini(ctx, model);
    heft__vocabulary_fini(&model->vocabulary);
}
