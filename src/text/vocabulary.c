/* vocabulary.c - the tokens of a model: id by text, text by id.
 *
 * Read token by token, since a vocabulary is most of its file: no tree is made of it. */
#include "text/tokenizer.h"

#include <stdlib.h>

struct entry {
    heft__string token;
    uint32_t id;
};
struct entries {
    heft_ctx *ctx;
    struct entry *list;
    size_t count, cap;
};

static heft_status add_entry(struct entries *entries, struct entry entry, heft_error *err)
{
    if (!heft__array_reserve(entries->ctx, (void **)&entries->list, entries->count, &entries->cap,
                             sizeof *entries->list)) {
        return heft__fail_nomem(err, entries->count * sizeof *entries->list);
    }
    entries->list[entries->count++] = entry;
    return HEFT_OK;
}

/* A token's text, in the arena. */
static heft_status read_text(const heft__json_token *token, heft__arena *arena, heft__string *out,
                             heft_error *err)
{
    if (token->length > (size_t)HEFT__TOKEN_BYTES_MAX * 6) {
        return heft__fail_at(err, HEFT_LIMIT, token->offset, "a token of more than %d bytes",
                             HEFT__TOKEN_BYTES_MAX);
    }
    heft_status status = heft__json_string(token, arena, &out->text, &out->length, err);
    if (status == HEFT_OK && out->length > HEFT__TOKEN_BYTES_MAX) {
        return heft__fail_at(err, HEFT_LIMIT, token->offset, "a token of more than %d bytes",
                             HEFT__TOKEN_BYTES_MAX);
    }
    return status;
}

uint32_t heft__vocabulary_id(const heft__vocabulary *vocabulary, const char *text, size_t length)
{
    const size_t id = heft__map_get(&vocabulary->ids, text, length);
    return id == HEFT__MAP_NONE ? HEFT__NO_ID : (uint32_t)id;
}

void heft__vocabulary_fini(heft__vocabulary *vocabulary)
{
    heft__map_fini(&vocabulary->ids);
}

/* Texts and ids of the entries, both ways. `repeated`: a later token of the same text wins, else it is
 * refused. */
static heft_status fill(heft__arena *arena, const struct entries *entries, bool repeated,
                        heft__vocabulary *out, heft_error *err)
{
    uint64_t id_count = 0;
    for (size_t i = 0; i < entries->count; i++) {
        id_count = entries->list[i].id >= id_count ? (uint64_t)entries->list[i].id + 1 : id_count;
    }
    if (id_count > (uint64_t)entries->count * 4 + 1024) {
        return heft__fail(err, HEFT_LIMIT, "ids up to %llu for %zu tokens",
                          (unsigned long long)id_count - 1, entries->count);
    }
    heft__map_init(&out->ids, arena->ctx);
    out->tokens = heft__arena_array(arena, id_count, sizeof *out->tokens);
    if (!out->tokens || !heft__map_reserve(&out->ids, entries->count)) {
        return heft__fail_nomem(err, id_count * sizeof *out->tokens);
    }
    out->id_count = (size_t)id_count;
    out->count = entries->count;
    for (size_t i = entries->count; i-- > 0;) { /* from the last, which is the one that counts */
        const struct entry *e = &entries->list[i];
        size_t found;
        if (!heft__map_put(&out->ids, e->token.text, e->token.length, e->id, &found)) {
            return heft__fail_nomem(err, 0);
        }
        if (found != HEFT__MAP_NONE && !repeated) {
            return heft__fail(err, HEFT_FORMAT, "token '%.64s' occurs twice", e->token.text);
        }
        if (out->tokens[e->id].text) {
            return heft__fail(err, HEFT_FORMAT, "tokens '%.64s' and '%.64s' have the same id %u",
                              e->token.text, out->tokens[e->id].text, e->id);
        }
        out->tokens[e->id] = e->token;
        out->longest = e->token.length > out->longest ? e->token.length : out->longest;
    }
    return HEFT_OK;
}

static heft_status read_entries(heft__arena *arena, heft__json_reader *reader,
                                struct entries *entries, heft_error *err)
{
    heft__json_token token;
    heft_status status =
        heft__json_expect(reader, HEFT__JSON_OBJECT_BEGIN, "an object", &token, err);
    while (status == HEFT_OK) {
        status = heft__json_next(reader, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_OBJECT_END) {
            break;
        }
        struct entry entry = {0};
        status = read_text(&token, arena, &entry.token, err);
        uint64_t id = 0;
        if (status == HEFT_OK) {
            status = heft__json_expect(reader, HEFT__JSON_NUMBER, "an id", &token, err);
        }
        if (status == HEFT_OK) {
            status = heft__json_u64(&token, "id", &id, err);
        }
        if (status == HEFT_OK && id >= INT32_MAX) {
            status = heft__fail_at(err, HEFT_FORMAT, token.offset, "id %llu is too large",
                                   (unsigned long long)id);
        }
        if (status == HEFT_OK) {
            entry.id = (uint32_t)id;
            status = add_entry(entries, entry, err);
        }
    }
    return status;
}

heft_status heft__vocabulary_read(heft_ctx *ctx, heft__arena *arena, heft__json_reader *reader,
                                  heft__vocabulary *out, heft_error *err)
{
    struct entries entries = {.ctx = ctx};
    heft_status status = read_entries(arena, reader, &entries, err);
    if (status == HEFT_OK) {
        status = fill(arena, &entries, false, out, err);
    }
    heft__free(ctx, entries.list, entries.cap * sizeof *entries.list);
    return status;
}

static double power_of_10(int32_t exponent)
{
    char text[16];
    (void)snprintf(text, sizeof text, "1e%d", (int)exponent);
    return strtod(text, NULL);
}

/* A number of JSON as `tokenizers` reads it, which is not always the double that is nearest: the digits as a
 * whole number of 64 bits, rounded, by a power of ten, rounded. Of digits beyond 64 bits nothing is left. Sums
 * of scores that are equal but for their last bit decide which tokens a text has. */
static double read_score(const char *text, size_t length)
{
    uint64_t digits = 0;
    int32_t exponent = 0, written = 0;
    size_t i = text[0] == '-' ? 1 : 0;
    bool fraction = false, full = false;
    for (; i < length && text[i] != 'e' && text[i] != 'E'; i++) {
        if (text[i] == '.') {
            fraction = true;
            continue;
        }
        const unsigned digit = (unsigned)(text[i] - '0');
        full = full || digits > (UINT64_MAX - digit) / 10;
        digits = full ? digits : digits * 10 + digit;
        exponent += full ? !fraction : -(int32_t)fraction;
    }
    if (i < length) {
        const bool negative = text[++i] == '-';
        for (i += negative || text[i] == '+'; i < length; i++) {
            written = written < 100000 ? written * 10 + (text[i] - '0') : written;
        }
        exponent += negative ? -written : written;
    }
    double value = (double)digits;
    for (; exponent < -308 && value != 0; exponent += 308) {
        value /= 1e308;
    }
    if (value != 0) {
        value = exponent < 0 ? value / power_of_10(-exponent) : value * power_of_10(exponent);
    }
    return text[0] == '-' ? -value : value;
}

/* ["token", score], behind its bracket */
static heft_status read_scored(heft__arena *arena, heft__json_reader *reader, heft__string *text,
                               double *score, heft_error *err)
{
    heft__json_token token;
    heft_status status = heft__json_expect(reader, HEFT__JSON_STRING, "a token", &token, err);
    if (status == HEFT_OK) {
        status = read_text(&token, arena, text, err);
    }
    if (status == HEFT_OK) {
        status = heft__json_expect(reader, HEFT__JSON_NUMBER, "a score", &token, err);
    }
    if (status == HEFT_OK) {
        *score = read_score(token.text, token.length);
        if (!(*score > -1e30 && *score < 1e30)) {
            return heft__fail_at(err, HEFT_FORMAT, token.offset, "a score that is out of range");
        }
        status = heft__json_expect(reader, HEFT__JSON_ARRAY_END, "the pair's end", &token, err);
    }
    return status;
}

static heft_status read_scores(heft__arena *arena, heft__json_reader *reader,
                               struct entries *entries, heft__buffer *scores, heft_error *err)
{
    heft__json_token token;
    heft_status status = heft__json_expect(reader, HEFT__JSON_ARRAY_BEGIN, "an array", &token, err);
    while (status == HEFT_OK) {
        status = heft__json_next(reader, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_ARRAY_END) {
            break;
        }
        if (token.kind != HEFT__JSON_ARRAY_BEGIN) {
            return heft__fail_at(err, HEFT_FORMAT, token.offset,
                                 "expected a pair of token and score");
        }
        if (entries->count >= INT32_MAX) {
            return heft__fail_at(err, HEFT_LIMIT, token.offset, "too many tokens");
        }
        struct entry entry = {.id = (uint32_t)entries->count};
        double score = 0;
        status = read_scored(arena, reader, &entry.token, &score, err);
        if (status == HEFT_OK) {
            heft__buffer_append(scores, &score, sizeof score);
            status = add_entry(entries, entry, err);
        }
    }
    return status == HEFT_OK ? heft__buffer_check(scores, err) : status;
}

heft_status heft__scores_read(heft_ctx *ctx, heft__arena *arena, heft__json_reader *reader,
                              heft__vocabulary *out, double **scores, heft_error *err)
{
    struct entries entries = {.ctx = ctx};
    heft__buffer list;
    heft__buffer_init(&list, ctx);
    heft_status status = read_scores(arena, reader, &entries, &list, err);
    if (status == HEFT_OK) {
        status = fill(arena, &entries, true, out, err);
    }
    if (status == HEFT_OK) {
        *scores = heft__arena_array(arena, entries.count, sizeof **scores);
        if (!*scores) {
            status = heft__fail_nomem(err, list.size);
        } else if (list.size) {
            memcpy(*scores, list.data, list.size);
        }
    }
    heft__buffer_fini(&list);
    heft__free(ctx, entries.list, entries.cap * sizeof *entries.list);
    return status;
}
