/* added_tokens.c - tokens beside the model's: found in the text before anything else is done with it, those
 * marked "normalized" after the normalizers.
 *
 * At each place the longest one counts. One that must be a single word and is not is passed over, and the
 * search goes on behind it.
 * Source: `tokenizers`, AddedVocabulary. */
#include "text/tokenizer.h"

#include <stdlib.h>

/* ---- reading ------------------------------------------------------------------------------------------ */
#define MEMBERS "id content single_word lstrip rstrip normalized special"

static heft_status read_one(const heft__json_value *value, heft__added_token *out, uint64_t *id,
                            heft_error *err)
{
    heft_status status = heft__fields_known(value, MEMBERS, err);
    if (status == HEFT_OK) {
        status = heft__field_needed(value, "content", &out->content, err);
    }
    if (status == HEFT_OK) {
        status = heft__field_u64(value, "id", UINT64_MAX, id, err);
    }
    struct {
        const char *name;
        bool *flag;
    } flags[] = {
        {"special",     &out->special    },
        {"single_word", &out->single_word},
        {"lstrip",      &out->lstrip     },
        {"rstrip",      &out->rstrip     }
    };
    for (size_t i = 0; i < sizeof flags / sizeof *flags && status == HEFT_OK; i++) {
        status = heft__field_bool(value, flags[i].name, false, flags[i].flag, err);
    }
    if (status == HEFT_OK) {
        status = heft__field_bool(value, "normalized", !out->special, &out->normalized, err);
    }
    if (status == HEFT_OK &&
        (out->content.length == 0 || out->content.length > HEFT__TOKEN_BYTES_MAX)) {
        return heft__fail_at(err, out->content.length ? HEFT_LIMIT : HEFT_FORMAT, value->offset,
                             "an added token of %zu bytes", out->content.length);
    }
    if (status == HEFT_OK && out->single_word && !heft__has_regex()) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, value->offset,
                             "a token that is a single word needs libonig, without which heft was "
                             "built");
    }
    return status;
}

/* The id that `tokenizers` gives a token: the model's, else the next one. The file's has to be the same. */
static heft_status give_id(const heft__vocabulary *vocabulary, uint64_t *next,
                           heft__added_token *token, uint64_t claimed, uint64_t offset,
                           heft_error *err)
{
    uint32_t id = heft__vocabulary_id(vocabulary, token->content.text, token->content.length);
    if (id == HEFT__NO_ID) {
        id = (uint32_t)*next;
    }
    if (claimed != id) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, offset,
                             "added token '%.64s' has id %lld, where the vocabulary makes it %u",
                             token->content.text, (long long)claimed, id);
    }
    token->id = id;
    *next = id >= *next ? (uint64_t)id + 1 : *next;
    return HEFT_OK;
}

static heft_status build_trie(heft__arena *arena, heft__added_tokens *added,
                              const heft__normalizers *normalizers, bool normalized,
                              heft__trie *out, heft_error *err)
{
    heft_ctx *ctx = arena->ctx;
    heft__trie_word *words = heft__alloc_zero(ctx, added->count + 1, sizeof *words);
    if (!words) {
        return heft__fail_nomem(err, added->count * sizeof *words);
    }
    size_t count = 0;
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < added->count && status == HEFT_OK; i++) {
        heft__added_token *token = &added->list[i];
        if (token->normalized != normalized) {
            continue;
        }
        heft__string word = token->content;
        heft__text_work work;
        heft__work_init(&work, ctx, word.length);
        if (normalized) {
            status = heft__normalize(normalizers, &work, word, &word, err);
        }
        if (status == HEFT_OK && word.length == 0) {
            status =
                heft__fail(err, HEFT_UNSUPPORTED, "added token '%.64s' is normalized to nothing",
                           token->content.text);
        }
        if (status == HEFT_OK) {
            const char *copy = heft__arena_text(arena, word.text, word.length);
            /* of equal ones, the first special one counts, then the first */
            const uint32_t value = (uint32_t)(token->special ? i : i + added->count);
            words[count++] = (heft__trie_word){
                {copy, word.length},
                value
            };
            token->shown = (heft__string){copy, word.length};
            status = copy ? HEFT_OK : heft__fail_nomem(err, word.length);
        }
        heft__work_fini(&work);
    }
    if (status == HEFT_OK) {
        status = heft__trie_build(arena, words, count, out, err);
    }
    heft__free(ctx, words, (added->count + 1) * sizeof *words);
    return status;
}

struct place {
    uint32_t id;
    uint32_t at;
};
static int compare_places(const void *a, const void *b)
{
    const struct place *p = a, *q = b;
    return p->id < q->id ? -1 : p->id > q->id;
}

static heft_status index_ids(heft__arena *arena, heft__added_tokens *added, heft_error *err)
{
    struct place *places = heft__arena_array(arena, added->count + 1, sizeof *places);
    added->by_id = heft__arena_array(arena, added->count + 1, sizeof *added->by_id);
    added->special_ids = heft__arena_array(arena, added->count + 1, sizeof *added->special_ids);
    if (!places || !added->by_id || !added->special_ids) {
        return heft__fail_nomem(err, added->count * sizeof *places);
    }
    for (size_t i = 0; i < added->count; i++) {
        places[i] = (struct place){added->list[i].id, (uint32_t)i};
    }
    if (added->count > 1) {
        qsort(places, added->count, sizeof *places, compare_places);
    }
    for (size_t i = 0; i < added->count; i++) {
        added->by_id[i] = places[i].at;
        if (added->list[places[i].at].special) {
            added->special_ids[added->special_count++] = places[i].id;
        }
    }
    return HEFT_OK;
}

static heft_status read_list(const heft__json_value *list, const heft__vocabulary *vocabulary,
                             heft__added_tokens *out, heft_error *err)
{
    uint64_t next = vocabulary->count;
    for (const heft__json_value *value = list->first; value; value = value->next) {
        heft__added_token *token = &out->list[out->count];
        uint64_t claimed = 0;
        size_t found = HEFT__MAP_NONE;
        heft_status status = read_one(value, token, &claimed, err);
        if (status == HEFT_OK) {
            status = give_id(vocabulary, &next, token, claimed, value->offset, err);
        }
        if (status != HEFT_OK) {
            return status;
        }
        if (!heft__map_put(&out->by_text, token->content.text, token->content.length, out->count,
                           &found)) {
            return heft__fail_nomem(err, 0);
        }
        if (found != HEFT__MAP_NONE) {
            return heft__fail_at(err, HEFT_UNSUPPORTED, value->offset,
                                 "added token '%.64s' occurs twice", token->content.text);
        }
        out->count++;
    }
    return HEFT_OK;
}

heft_status heft__added_tokens_read(heft_ctx *ctx, heft__arena *arena, const heft__json_value *list,
                                    const heft__vocabulary *vocabulary,
                                    const heft__normalizers *normalizers, heft__added_tokens *out,
                                    heft_error *err)
{
    heft__map_init(&out->by_text, ctx);
    static const heft__json_value none = {.type = HEFT__JSON_TYPE_ARRAY};
    if (!list || list->type == HEFT__JSON_TYPE_NULL) {
        list = &none;
    }
    if (list->type != HEFT__JSON_TYPE_ARRAY) {
        return heft__fail_at(err, HEFT_FORMAT, list->offset, "expected an array");
    }
    out->list = heft__arena_array(arena, list->count + 1, sizeof *out->list);
    if (!out->list) {
        return heft__fail_nomem(err, list->count * sizeof *out->list);
    }
    heft_status status = read_list(list, vocabulary, out, err);
    if (status == HEFT_OK) {
        status = index_ids(arena, out, err);
    }
    if (status == HEFT_OK) {
        status = build_trie(arena, out, normalizers, false, &out->written, err);
    }
    return status == HEFT_OK ? build_trie(arena, out, normalizers, true, &out->normalized, err)
                             : status;
}

void heft__added_tokens_fini(heft__added_tokens *added)
{
    heft__map_fini(&added->by_text);
}

const heft__added_token *heft__added_token_of(const heft__added_tokens *added, uint32_t id)
{
    size_t low = 0, high = added->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const heft__added_token *token = &added->list[added->by_id[middle]];
        if (token->id == id) {
            return token;
        }
        if (token->id < id) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

/* ---- finding -------------------------------------------------------------------------------------------- */
static uint32_t code_before(heft__string text, size_t at)
{
    size_t size;
    do {
        at--;
    } while (at > 0 && ((uint8_t)text.text[at] & 0xC0) == 0x80);
    return heft__utf8_get(text.text + at, &size);
}

static bool is_single_word(heft__string text, size_t start, size_t end)
{
    size_t size;
    return (start == 0 || !heft__is_word(code_before(text, start))) &&
           (end == text.length || !heft__is_word(heft__utf8_get(text.text + end, &size)));
}

/* The longest token at a place, NULL if there is none. */
static const heft__added_token *longest_at(const heft__added_tokens *added, const heft__trie *trie,
                                           heft__string text, size_t at, size_t *end)
{
    const heft__added_token *token = NULL;
    uint32_t node = 0;
    for (size_t i = at; i < text.length; i++) {
        node = heft__trie_step(trie, node, (uint8_t)text.text[i]);
        if (node == 0) {
            break;
        }
        const uint32_t value = trie->value[node];
        if (value != HEFT__NO_ID) {
            token = &added->list[value < added->count ? value : value - added->count];
            *end = i + 1;
        }
    }
    return token;
}

/* The white space around a token is part of it where the token says so, but not what `from` is behind. */
static void widen(const heft__added_token *token, heft__string text, size_t from, size_t *start,
                  size_t *end)
{
    size_t size;
    while (token->lstrip && *start > from) {
        const uint32_t code = code_before(text, *start);
        if (!heft__is_white_space(code)) {
            break;
        }
        uint8_t utf8[4];
        *start -= heft__utf8_put(code, utf8);
    }
    if (token->rstrip && *end < from) {
        *end = from; /* the last token took this space, too */
    }
    while (token->rstrip && *end < text.length &&
           heft__is_white_space(heft__utf8_get(text.text + *end, &size))) {
        *end += size;
    }
}

/* Finds tokens one by one; what is between them and them in turn. */
struct finding {
    heft__string text;
    size_t searched; /* behind the last match */
    size_t from;     /* behind the last token and the space that it took */
};

static const heft__added_token *find_next(const heft__added_tokens *added, const heft__trie *trie,
                                          struct finding *f, size_t *start, size_t *end)
{
    for (size_t at = f->searched; at < f->text.length; at++) {
        if (trie->root[(uint8_t)f->text.text[at]] == 0) {
            continue;
        }
        const heft__added_token *token = longest_at(added, trie, f->text, at, end);
        if (!token) {
            continue;
        }
        f->searched = *end;
        if (token->single_word && !is_single_word(f->text, at, *end)) {
            at = *end - 1;
            continue;
        }
        *start = at;
        widen(token, f->text, f->from, start, end);
        return token;
    }
    f->searched = f->text.length;
    return NULL;
}

static void add_text(heft__text_work *work, heft__string text, size_t start, size_t end, bool first)
{
    const size_t at = work->text.size;
    heft__buffer_append(&work->text, text.text + start, end - start);
    heft__add_piece(work, &work->pieces, (heft__piece){at, work->text.size, HEFT__NO_ID, first});
}

/* What is between tokens as written: normalized, and split at the tokens that are normalized. */
static heft_status add_section(const heft__added_tokens *added,
                               const heft__normalizers *normalizers, heft__text_work *work,
                               heft__string section, bool first, heft_error *err)
{
    struct finding f = {0};
    heft_status status = heft__normalize(normalizers, work, section, &f.text, err);
    if (status != HEFT_OK) {
        return status;
    }
    first = first && !work->beginning_gone;
    size_t start, end;
    const heft__added_token *token;
    while ((token = find_next(added, &added->normalized, &f, &start, &end)) != NULL) {
        if (f.from < start) {
            add_text(work, f.text, f.from, start, first && f.from == 0);
        }
        heft__add_piece(work, &work->pieces, (heft__piece){0, 0, token->id, false});
        f.from = end;
    }
    if (f.from < f.text.length) {
        add_text(work, f.text, f.from, f.text.length, first && f.from == 0);
    }
    return heft__work_check(work, &work->text, err);
}

heft_status heft__added_tokens_split(const heft__added_tokens *added,
                                     const heft__normalizers *normalizers, heft__text_work *work,
                                     heft__string text, heft_error *err)
{
    struct finding f = {.text = text};
    size_t start, end;
    const heft__added_token *token;
    heft_status status = HEFT_OK;
    while (status == HEFT_OK &&
           (token = find_next(added, &added->written, &f, &start, &end)) != NULL) {
        if (f.from < start) {
            const heft__string section = {text.text + f.from, start - f.from};
            status = add_section(added, normalizers, work, section, f.from == 0, err);
        }
        heft__add_piece(work, &work->pieces, (heft__piece){0, 0, token->id, false});
        f.from = end;
    }
    if (status == HEFT_OK && f.from < text.length) {
        const heft__string section = {text.text + f.from, text.length - f.from};
        status = add_section(added, normalizers, work, section, f.from == 0, err);
    }
    return status;
}
