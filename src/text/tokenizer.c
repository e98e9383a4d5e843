/* tokenizer.c - a tokenizer from its file, and the way of a text through it.
 *
 *     {"version", "truncation", "padding", "added_tokens": [...], "normalizer": {...},
 *      "pre_tokenizer": {...}, "post_processor": {...}, "decoder": {...}, "model": {...}}
 *
 * Trusted: nothing. Any member that is not known is refused, so that no tokenizer is half understood.
 * Source: the file that `tokenizers` 0.23 writes; docs/text.md. */
#include "text/tokenizer.h"

#include "io/io.h"

/* ---- reading --------------------------------------------------------------------------------------------- */
/* Members other than the model, which is read where it is found. */
struct parts {
    const heft__json_value *truncation, *added_tokens, *normalizer, *pre_tokenizer, *post_processor,
        *decoder;
    bool has_model, has_other[8];
};

static heft_status read_part(heft_tokenizer *t, heft__json_reader *reader, heft__json_token *token,
                             struct parts *parts, heft_error *err)
{
    const heft__json_value *other = NULL;
    const struct {
        const char *name;
        const heft__json_value **place;
    } names[] = {
        {"version",        &other                },
        {"padding",        &other                },
        {"truncation",     &parts->truncation    },
        {"added_tokens",   &parts->added_tokens  },
        {"normalizer",     &parts->normalizer    },
        {"pre_tokenizer",  &parts->pre_tokenizer },
        {"post_processor", &parts->post_processor},
        {"decoder",        &parts->decoder       }
    };
    size_t i = 0;
    while (i < sizeof names / sizeof *names && !heft__json_is(token, names[i].name)) {
        i++;
    }
    if (i == sizeof names / sizeof *names) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, token->offset, "member '%.*s' is not known",
                             token->length < 64 ? (int)token->length : 64, token->text);
    }
    if (parts->has_other[i]) {
        return heft__fail_at(err, HEFT_FORMAT, token->offset, "'%s' occurs twice", names[i].name);
    }
    parts->has_other[i] = true;
    heft__json_value *value = NULL;
    heft_status status = heft__json_next(reader, token, err);
    if (status == HEFT_OK) {
        status = heft__json_read_tree(reader, token, &t->arena, &value, err);
    }
    if (status == HEFT_OK) {
        *names[i].place = value;
    }
    return status;
}

static heft_status read_file(heft_tokenizer *t, heft__json_reader *reader, struct parts *parts,
                             heft_error *err)
{
    heft__json_token token;
    heft_status status =
        heft__json_expect(reader, HEFT__JSON_OBJECT_BEGIN, "an object", &token, err);
    while (status == HEFT_OK) {
        status = heft__json_next(reader, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_OBJECT_END) {
            break;
        }
        if (!heft__json_is(&token, "model")) {
            status = read_part(t, reader, &token, parts, err);
        } else if (parts->has_model) {
            status = heft__fail_at(err, HEFT_FORMAT, token.offset, "'model' occurs twice");
        } else {
            parts->has_model = true;
            status = heft__token_model_read(t->ctx, &t->arena, reader, &t->model, err);
        }
    }
    return status == HEFT_OK
               ? heft__json_expect(reader, HEFT__JSON_END, "the end of the file", &token, err)
               : status;
}

static heft_status read_truncation(const heft__json_value *value, uint64_t *out, heft_error *err)
{
    if (!value || value->type == HEFT__JSON_TYPE_NULL) {
        return HEFT_OK;
    }
    if (value->type != HEFT__JSON_TYPE_OBJECT) {
        return heft__fail_at(err, HEFT_FORMAT, value->offset, "'truncation' is not an object");
    }
    return heft__field_u64(value, "max_length", 0, out, err);
}

static heft_status read_tokenizer(heft_tokenizer *t, const void *bytes, size_t length,
                                  heft_error *err)
{
    struct parts parts = {0};
    heft__json_reader reader;
    heft__json_init(&reader, bytes, length, 0, heft__limits(t->ctx)->json_depth);
    heft_status status = read_file(t, &reader, &parts, err);
    if (status == HEFT_OK && !parts.has_model) {
        status = heft__fail(err, HEFT_FORMAT, "'model' is missing");
    }
    if (status == HEFT_OK) {
        status = heft__normalizers_read(&t->arena, parts.normalizer, &t->normalizers, err);
    }
    if (status == HEFT_OK) {
        status = heft__pre_tokenizers_read(&t->arena, parts.pre_tokenizer, &t->pre_tokenizers, err);
    }
    if (status == HEFT_OK) {
        status = heft__template_read(&t->arena, parts.post_processor, &t->template, err);
    }
    if (status == HEFT_OK) {
        status = heft__decoders_read(&t->arena, parts.decoder, &t->decoders, err);
    }
    if (status == HEFT_OK) {
        status = read_truncation(parts.truncation, &t->truncation, err);
    }
    return status == HEFT_OK
               ? heft__add_item(heft__added_tokens_read(t->ctx, &t->arena, parts.added_tokens,
                                                        &t->model.vocabulary, &t->normalizers,
                                                        &t->added, err),
                                err, "added_tokens")
               : status;
}

/* ---- opening ---------------------------------------------------------------------------------------------- */
heft_status heft_tokenizer_open_bytes(heft_ctx *ctx, const char *name, const void *bytes,
                                      size_t length, heft_tokenizer **out, heft_error *err)
{
    if (!ctx || !name || (!bytes && length) || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "an argument is NULL");
    }
    const uint64_t limit = heft__limits(ctx)->tokenizer_bytes;
    if (length > limit) {
        heft_status status = heft__fail(err, HEFT_LIMIT, "%zu bytes, at most %llu are read", length,
                                        (unsigned long long)limit);
        return heft__add_path(heft__add_limit(status, err, "tokenizer_bytes"), err, name);
    }
    heft_tokenizer *t = heft__alloc_zero(ctx, 1, sizeof *t);
    if (!t) {
        return heft__fail_nomem(err, sizeof *t);
    }
    t->ctx = heft__ctx_ref(ctx);
    heft__arena_init(&t->arena, ctx);
    heft_status status = read_tokenizer(t, bytes, length, err);
    if (status != HEFT_OK) {
        heft_tokenizer_close(t);
        return heft__add_path(status, err, name);
    }
    *out = t;
    return HEFT_OK;
}

heft_status heft_tokenizer_open(heft_ctx *ctx, const char *path, heft_tokenizer **out,
                                heft_error *err)
{
    if (!ctx || !path || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "an argument is NULL");
    }
    heft__arena arena;
    heft__arena_init(&arena, ctx);
    char *text = NULL;
    size_t length = 0;
    if (heft__path_is_folder(path)) {
        path = heft__path_join(&arena, path, "tokenizer.json");
    }
    heft_status status = path ? HEFT_OK : heft__fail_nomem(err, 0);
    if (status == HEFT_OK) {
        status =
            heft__read_file(&arena, path, heft__limits(ctx)->tokenizer_bytes, &text, &length, err);
        status = heft__add_limit(status, err, "tokenizer_bytes");
    }
    if (status == HEFT_OK) {
        status = heft_tokenizer_open_bytes(ctx, path, text, length, out, err);
    }
    heft__arena_fini(&arena);
    return status;
}

void heft_tokenizer_close(heft_tokenizer *t)
{
    if (!t) {
        return;
    }
    heft_ctx *ctx = t->ctx;
    heft__normalizers_fini(&t->normalizers);
    heft__pre_tokenizers_fini(&t->pre_tokenizers);
    heft__decoders_fini(&t->decoders);
    heft__added_tokens_fini(&t->added);
    heft__token_model_fini(ctx, &t->model);
    heft__arena_fini(&t->arena);
    heft__free(ctx, t, sizeof *t);
    heft_ctx_free(ctx);
}

/* ---- text to ids ------------------------------------------------------------------------------------------- */
static heft_status run(const heft_tokenizer *t, heft__string text, heft__ids *ids, heft_error *err)
{
    heft__text_work work;
    heft__work_init(&work, t->ctx, text.length);
    heft_status status = heft__added_tokens_split(&t->added, &t->normalizers, &work, text, err);
    if (status == HEFT_OK) {
        status = heft__pre_tokenize(&t->pre_tokenizers, &work, err);
    }
    if (status == HEFT_OK) {
        status = heft__work_check(&work, &work.text, err);
    }
    if (status == HEFT_OK) {
        status = heft__token_model_encode(&t->model, &work, ids, err);
    }
    heft__work_fini(&work);
    return status;
}

heft_status heft_tokenizer_encode(const heft_tokenizer *t, const char *text, size_t length,
                                  bool add_special, uint32_t **out, size_t *count, heft_error *err)
{
    if (!t || (!text && length) || !out || !count) {
        return heft__fail(err, HEFT_INVALID_ARG, "an argument is NULL");
    }
    const size_t invalid = heft__utf8_invalid_at((const uint8_t *)text, length);
    if (invalid < length) {
        return heft__fail_at(err, HEFT_INVALID_ARG, invalid, "the text is not UTF-8");
    }
    heft__ids ids = {.ctx = t->ctx};
    for (size_t i = 0; add_special && i < t->template.before_count; i++) {
        heft__ids_add(&ids, t->template.before[i]);
    }
    heft_status status = run(t, (heft__string){text ? text : "", length}, &ids, err);
    for (size_t i = 0; add_special && i < t->template.after_count; i++) {
        heft__ids_add(&ids, t->template.after[i]);
    }
    uint32_t *exact = NULL;
    if (status == HEFT_OK && !ids.failed) {
        exact = heft__alloc(t->ctx, ids.count * sizeof *exact);
    }
    if (status == HEFT_OK && !exact) {
        status = heft__fail_nomem(err, ids.count * sizeof *exact);
    }
    if (status == HEFT_OK) {
        if (ids.count) {
            memcpy(exact, ids.list, ids.count * sizeof *exact);
        }
        *out = exact;
        *count = ids.count;
    }
    heft__ids_fini(&ids);
    return status;
}

void heft_tokenizer_free_ids(const heft_tokenizer *t, uint32_t *ids, size_t count)
{
    if (ids) {
        heft__free(t->ctx, ids, count * sizeof *ids);
    }
}

/* ---- ids to text ----------------------------------------------------------------------------------------------- */
heft__string heft__token_text(const heft_tokenizer *t, uint32_t id)
{
    const heft__added_token *added = heft__added_token_of(&t->added, id);
    if (added) {
        return added->shown;
    }
    return id < t->model.vocabulary.id_count ? t->model.vocabulary.tokens[id] : (heft__string){0};
}

/* By its text: as `tokenizers`, where a special token's text is special whatever its id, and is not once it is
 * normalized to another one. */
static bool is_special(const heft_tokenizer *t, heft__string token)
{
    const size_t at = heft__map_get(&t->added.by_text, token.text, token.length);
    return at != HEFT__MAP_NONE && t->added.list[at].special;
}

heft_status heft__decode_ids(const heft_tokenizer *t, const uint32_t *ids, size_t count,
                             bool skip_special, heft__text_work *work, heft_error *err)
{
    work->text.size = work->other.size = 0;
    work->pieces.count = work->next.count = 0;
    for (size_t i = 0; i < count; i++) {
        const heft__string token = heft__token_text(t, ids[i]);
        if (!token.text || (skip_special && is_special(t, token))) {
            continue;
        }
        const size_t start = work->text.size;
        heft__buffer_append(&work->text, token.text, token.length);
        heft__add_piece(work, &work->pieces, (heft__piece){start, work->text.size, 0, false});
    }
    heft_status status = heft__work_check(work, &work->text, err);
    return status == HEFT_OK ? heft__decode(&t->decoders, work, err) : status;
}

/* The bytes that decoding may begin with: what bounds its work. */
static size_t decoded_bound(const heft_tokenizer *t, const uint32_t *ids, size_t count)
{
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        bytes += heft__token_text(t, ids[i]).length;
    }
    return bytes;
}

heft_status heft_tokenizer_decode(const heft_tokenizer *t, const uint32_t *ids, size_t count,
                                  bool skip_special, char **text, size_t *length, heft_error *err)
{
    if (!t || (!ids && count) || !text || !length) {
        return heft__fail(err, HEFT_INVALID_ARG, "an argument is NULL");
    }
    heft__text_work work;
    heft__work_init(&work, t->ctx, decoded_bound(t, ids, count));
    heft_status status = heft__decode_ids(t, ids, count, skip_special, &work, err);
    if (status == HEFT_OK) {
        char *copy = heft__alloc(t->ctx, work.text.size + 1);
        if (copy) {
            if (work.text.size) {
                memcpy(copy, work.text.data, work.text.size);
            }
            copy[work.text.size] = '\0';
            *text = copy;
            *length = work.text.size;
        } else {
            status = heft__fail_nomem(err, work.text.size + 1);
        }
    }
    heft__work_fini(&work);
    return status;
}

void heft_tokenizer_free_text(const heft_tokenizer *t, char *text, size_t length)
{
    if (text) {
        heft__free(t->ctx, text, length + 1);
    }
}

/* ---- tokens ---------------------------------------------------------------------------------------------------- */
size_t heft_tokenizer_size(const heft_tokenizer *t)
{
    size_t size = t->model.vocabulary.id_count;
    if (t->added.count > 0) {
        const size_t last = t->added.list[t->added.by_id[t->added.count - 1]].id;
        size = last >= size ? last + 1 : size;
    }
    return size;
}

const char *heft_tokenizer_token(const heft_tokenizer *t, uint32_t id, size_t *length)
{
    const heft__string token = heft__token_text(t, id);
    if (token.text) {
        *length = token.length;
    }
    return token.text;
}

bool heft_tokenizer_id(const heft_tokenizer *t, const char *token, size_t length, uint32_t *id)
{
    const size_t at = heft__map_get(&t->added.by_text, token, length);
    const uint32_t found = at != HEFT__MAP_NONE
                               ? t->added.list[at].id
                               : heft__vocabulary_id(&t->model.vocabulary, token, length);
    if (found != HEFT__NO_ID) {
        *id = found;
    }
    return found != HEFT__NO_ID;
}

const uint32_t *heft_tokenizer_special_ids(const heft_tokenizer *t, size_t *count)
{
    *count = t->added.special_count;
    return t->added.special_ids;
}

bool heft_tokenizer_is_special(const heft_tokenizer *t, uint32_t id)
{
    const heft__added_token *added = heft__added_token_of(&t->added, id);
    return added && added->special;
}

uint64_t heft_tokenizer_truncation(const heft_tokenizer *t)
{
    return t->truncation;
}
