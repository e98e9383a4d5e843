/* bpe.c - byte pair encoding: a piece is its characters, and the pair with the lowest rank becomes one token
 * until no pair has a rank; of equal ranks the leftmost goes first.
 *
 * Merges are a hash table (id, id) -> (rank, id), whose seed is drawn when the file is read, so that a file
 * cannot choose pairs that collide. Short pieces look for the lowest rank in a row; long ones keep a heap of
 * pairs, so that a piece of n characters takes n log n steps.
 * Source: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; the details are `tokenizers`'. */
#include "text/tokenizer.h"

struct heft__merge_slot {
    uint32_t left, right, rank, made; /* made HEFT__NO_ID: free */
};

#define SHORT_PIECE 48

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ x >> 33;
}

static struct heft__merge_slot *find_slot(const heft__token_model *model, uint32_t left,
                                          uint32_t right)
{
    const uint64_t key = (uint64_t)left << 32 | right;
    size_t at = (size_t)mix(mix(key + model->seed) ^ model->seed) & (model->merge_cap - 1);
    for (;;) {
        struct heft__merge_slot *slot = &model->merges[at];
        if (slot->made == HEFT__NO_ID || (slot->left == left && slot->right == right)) {
            return slot;
        }
        at = (at + 1) & (model->merge_cap - 1);
    }
}

/* ---- reading -------------------------------------------------------------------------------------------- */
struct merge_list {
    heft_ctx *ctx;
    struct heft__merge_slot *list;
    size_t count, cap;
};

static heft_status table_of(heft_ctx *ctx, heft__token_model *model,
                            const struct merge_list *merges, heft_error *err)
{
    size_t cap = 16;
    while (cap / 2 < merges->count) {
        cap *= 2;
    }
    model->merges = heft__alloc(ctx, cap * sizeof *model->merges);
    if (!model->merges) {
        return heft__fail_nomem(err, cap * sizeof *model->merges);
    }
    model->merge_cap = cap;
    model->seed = model->vocabulary.ids.seed;
    memset(model->merges, 0xFF, cap * sizeof *model->merges);
    for (size_t i = 0; i < merges->count; i++) { /* of equal pairs the last counts */
        const struct heft__merge_slot *m = &merges->list[i];
        *find_slot(model, m->left, m->right) = *m;
    }
    return HEFT_OK;
}

static heft_status add_merge(const heft__token_model *model, heft__buffer *text, heft__string left,
                             heft__string right, uint64_t offset, struct merge_list *merges,
                             heft_error *err)
{
    const heft__vocabulary *v = &model->vocabulary;
    struct heft__merge_slot merge = {
        .left = heft__vocabulary_id(v, left.text, left.length),
        .right = heft__vocabulary_id(v, right.text, right.length),
        .rank = (uint32_t)merges->count,
    };
    const size_t cut = model->prefix.length;
    text->size = 0;
    heft__buffer_append(text, left.text, left.length);
    if (right.length >= cut) {
        heft__buffer_append(text, right.text + cut, right.length - cut);
    }
    heft_status status = heft__buffer_check(text, err);
    if (status != HEFT_OK) {
        return status;
    }
    merge.made =
        text->size ? heft__vocabulary_id(v, (const char *)text->data, text->size) : HEFT__NO_ID;
    if (right.length < cut || merge.left == HEFT__NO_ID || merge.right == HEFT__NO_ID ||
        merge.made == HEFT__NO_ID) {
        return heft__fail_at(err, HEFT_FORMAT, offset,
                             "merge %zu: a token that is not in the vocabulary", merges->count);
    }
    if (!heft__array_reserve(merges->ctx, (void **)&merges->list, merges->count, &merges->cap,
                             sizeof *merges->list)) {
        return heft__fail_nomem(err, merges->count * sizeof *merges->list);
    }
    merges->list[merges->count++] = merge;
    return HEFT_OK;
}

/* A string that is only looked at: raw if nothing is escaped, else resolved in an arena that is emptied. */
static heft_status lent_text(const heft__json_token *token, heft__arena *scratch, heft__string *out,
                             heft_error *err)
{
    if (token->escaped) {
        return heft__json_string(token, scratch, &out->text, &out->length, err);
    }
    *out = (heft__string){token->text, token->length};
    return HEFT_OK;
}

/* "a b" or ["a", "b"], whose first token was read. */
static heft_status read_pair(heft__json_reader *reader, const heft__json_token *first,
                             heft__arena *scratch, heft__string *left, heft__string *right,
                             heft_error *err)
{
    heft__json_token token;
    heft_status status;
    if (first->kind == HEFT__JSON_STRING) {
        heft__string both;
        status = lent_text(first, scratch, &both, err);
        const char *space =
            status == HEFT_OK && both.length ? memchr(both.text, ' ', both.length) : NULL;
        if (status != HEFT_OK) {
            return status;
        }
        const size_t at = space ? (size_t)(space - both.text) : 0;
        if (!space || memchr(space + 1, ' ', both.length - at - 1)) {
            return heft__fail_at(err, HEFT_FORMAT, first->offset,
                                 "a merge that is not two tokens with a space between them");
        }
        *left = (heft__string){both.text, at};
        *right = (heft__string){space + 1, both.length - at - 1};
        return HEFT_OK;
    }
    if (first->kind != HEFT__JSON_ARRAY_BEGIN) {
        return heft__fail_at(err, HEFT_FORMAT, first->offset, "a merge is a string or a pair");
    }
    heft__string *const sides[] = {left, right};
    for (size_t i = 0; i < 2; i++) {
        status = heft__json_expect(reader, HEFT__JSON_STRING, "a token", &token, err);
        if (status == HEFT_OK) {
            status = lent_text(&token, scratch, sides[i], err);
        }
        if (status != HEFT_OK) {
            return status;
        }
    }
    return heft__json_expect(reader, HEFT__JSON_ARRAY_END, "the pair's end", &token, err);
}

static bool is_version_line(const heft__json_token *token)
{
    return token->kind == HEFT__JSON_STRING && token->length >= 8 &&
           memcmp(token->text, "#version", 8) == 0;
}

static heft_status read_merges(const heft__token_model *model, heft__json_reader *reader,
                               heft__buffer *text, struct merge_list *merges, heft_error *err)
{
    heft__json_token token;
    heft_status status = heft__json_expect(reader, HEFT__JSON_ARRAY_BEGIN, "an array", &token, err);
    while (status == HEFT_OK) {
        status = heft__json_next(reader, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_ARRAY_END) {
            break;
        }
        if (is_version_line(&token)) {
            continue;
        }
        heft__arena scratch;
        heft__arena_init(&scratch, merges->ctx);
        heft__string left, right;
        status = read_pair(reader, &token, &scratch, &left, &right, err);
        if (status == HEFT_OK) {
            status = add_merge(model, text, left, right, token.offset, merges, err);
        }
        heft__arena_fini(&scratch);
    }
    return status;
}

heft_status heft__merges_read(heft_ctx *ctx, heft__token_model *model, heft__json_reader *reader,
                              heft_error *err)
{
    struct merge_list merges = {.ctx = ctx};
    heft__buffer text;
    heft__buffer_init(&text, ctx);
    heft_status status = read_merges(model, reader, &text, &merges, err);
    if (status == HEFT_OK) {
        status = table_of(ctx, model, &merges, err);
    }
    heft__buffer_fini(&text);
    heft__free(ctx, merges.list, merges.cap * sizeof *merges.list);
    return status;
}

void heft__merges_fini(heft_ctx *ctx, heft__token_model *model)
{
    heft__free(ctx, model->merges, model->merge_cap * sizeof *model->merges);
    model->merges = NULL;
}

/* ---- characters ------------------------------------------------------------------------------------------ */
static void add_symbol(heft__buffer *symbols, uint32_t id)
{
    heft__buffer_append(symbols, &id, sizeof id);
}

/* The id of a character with what the model puts before and behind it. */
static uint32_t character_id(const heft__token_model *model, heft__string piece, size_t at,
                             size_t size, heft__buffer *text, heft__string *looked_up)
{
    const bool first = at == 0, last = at + size == piece.length;
    *looked_up = (heft__string){piece.text + at, size};
    if (model->character_ids && size <= 2) {
        size_t unused;
        return model->character_ids[heft__utf8_get(piece.text + at, &unused)];
    }
    if ((!first && model->prefix.length) || (last && model->suffix.length)) {
        text->size = 0;
        if (!first) {
            heft__buffer_append(text, model->prefix.text, model->prefix.length);
        }
        heft__buffer_append(text, piece.text + at, size);
        if (last) {
            heft__buffer_append(text, model->suffix.text, model->suffix.length);
        }
        if (text->failed) {
            return HEFT__NO_ID;
        }
        *looked_up = (heft__string){(const char *)text->data, text->size};
    }
    return heft__vocabulary_id(&model->vocabulary, looked_up->text, looked_up->length);
}

/* The bytes of a character that is no token; false if not all of them are. */
static bool add_bytes(const heft__token_model *model, heft__string text, heft__buffer *symbols)
{
    for (size_t i = 0; i < text.length; i++) {
        if (model->byte_ids[(uint8_t)text.text[i]] == HEFT__NO_ID) {
            return false;
        }
    }
    for (size_t i = 0; i < text.length; i++) {
        add_symbol(symbols, model->byte_ids[(uint8_t)text.text[i]]);
    }
    return true;
}

/* An unknown token waits, since the next one may be fused with it: until a character is a token. That bytes
 * do not end the wait is `tokenizers`' way. */
static heft_status add_characters(const heft__token_model *model, heft__string piece,
                                  heft__buffer *text, heft__buffer *symbols, heft_error *err)
{
    bool unknown = false;
    for (size_t i = 0, size; i < piece.length; i += size) {
        heft__string looked_up;
        (void)heft__utf8_get(piece.text + i, &size);
        const uint32_t id = character_id(model, piece, i, size, text, &looked_up);
        if (id != HEFT__NO_ID) {
            if (unknown) {
                add_symbol(symbols, model->unk_id);
                unknown = false;
            }
            add_symbol(symbols, id);
        } else if (model->byte_fallback && add_bytes(model, looked_up, symbols)) {
            continue;
        } else if (model->unk_lost) {
            return heft__fail(err, HEFT_FORMAT,
                              "an unknown character, and the vocabulary lacks the unknown token");
        } else if (model->unk_id != HEFT__NO_ID) {
            if (unknown && !model->fuse_unk) {
                add_symbol(symbols, model->unk_id);
            }
            unknown = true;
        }
    }
    if (unknown) {
        add_symbol(symbols, model->unk_id);
    }
    heft_status status = heft__buffer_check(symbols, err);
    return status == HEFT_OK ? heft__buffer_check(text, err) : status;
}

/* ---- merging a short piece --------------------------------------------------------------------------------- */
static size_t merge_short(const heft__token_model *model, uint32_t *ids, size_t count)
{
    uint32_t ranks[SHORT_PIECE], made[SHORT_PIECE]; /* of each pair (i, i + 1) */
    for (size_t i = 0; i + 1 < count; i++) {
        const struct heft__merge_slot *slot = find_slot(model, ids[i], ids[i + 1]);
        made[i] = slot->made;
        ranks[i] = slot->made == HEFT__NO_ID ? UINT32_MAX : slot->rank;
    }
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++) {
            best = ranks[i] < ranks[best] ? i : best;
        }
        if (ranks[best] == UINT32_MAX) {
            break;
        }
        ids[best] = made[best];
        count--;
        memmove(ids + best + 1, ids + best + 2, (count - best - 1) * sizeof *ids);
        if (best + 1 < count) {
            memmove(ranks + best, ranks + best + 1, (count - best - 1) * sizeof *ranks);
            memmove(made + best, made + best + 1, (count - best - 1) * sizeof *made);
        }
        for (size_t i = best > 0 ? best - 1 : 0; i <= best && i + 1 < count; i++) {
            const struct heft__merge_slot *slot = find_slot(model, ids[i], ids[i + 1]);
            made[i] = slot->made;
            ranks[i] = slot->made == HEFT__NO_ID ? UINT32_MAX : slot->rank;
        }
    }
    return count;
}

/* ---- merging a long piece ----------------------------------------------------------------------------------- */
#define NONE UINT32_MAX
struct symbol {
    uint32_t id; /* HEFT__NO_ID: was merged into the one before */
    uint32_t previous, next;
};
struct pair {
    uint32_t rank, at, made;
};

static bool is_before(struct pair a, struct pair b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

static void push_pair(heft__buffer *heap, struct pair pair)
{
    heft__buffer_append(heap, &pair, sizeof pair);
    if (heap->failed) {
        return;
    }
    struct pair *list = (struct pair *)(void *)heap->data;
    size_t at = heap->size / sizeof pair - 1;
    while (at > 0 && is_before(pair, list[(at - 1) / 2])) {
        list[at] = list[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    list[at] = pair;
}

static struct pair pop_pair(heft__buffer *heap)
{
    struct pair *list = (struct pair *)(void *)heap->data;
    const struct pair top = list[0];
    heap->size -= sizeof top;
    const size_t count = heap->size / sizeof top;
    const struct pair moved = list[count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count) {
            break;
        }
        if (child + 1 < count && is_before(list[child + 1], list[child])) {
            child++;
        }
        if (!is_before(list[child], moved)) {
            break;
        }
        list[at] = list[child];
        at = child;
    }
    list[at] = moved;
    return top;
}

static void consider(const heft__token_model *model, const struct symbol *symbols, uint32_t left,
                     heft__buffer *heap)
{
    if (left == NONE || symbols[left].next == NONE) {
        return;
    }
    const struct heft__merge_slot *slot =
        find_slot(model, symbols[left].id, symbols[symbols[left].next].id);
    if (slot->made != HEFT__NO_ID) {
        push_pair(heap, (struct pair){slot->rank, left, slot->made});
    }
}

/* Whether a pair is still what it was when it was put into the heap. */
static bool is_current(const heft__token_model *model, const struct symbol *symbols,
                       struct pair pair)
{
    const struct symbol *left = &symbols[pair.at];
    return left->id != HEFT__NO_ID && left->next != NONE &&
           find_slot(model, left->id, symbols[left->next].id)->made == pair.made;
}

static void merge_long(const heft__token_model *model, struct symbol *symbols, size_t count,
                       heft__buffer *heap)
{
    heap->size = 0;
    for (size_t i = 0; i < count; i++) {
        consider(model, symbols, (uint32_t)i, heap);
    }
    while (heap->size > 0 && !heap->failed) {
        const struct pair pair = pop_pair(heap);
        if (!is_current(model, symbols, pair)) {
            continue;
        }
        struct symbol *left = &symbols[pair.at], *right = &symbols[left->next];
        left->id = pair.made;
        left->next = right->next;
        right->id = HEFT__NO_ID;
        if (left->next != NONE) {
            symbols[left->next].previous = pair.at;
        }
        consider(model, symbols, left->previous, heap);
        consider(model, symbols, pair.at, heap);
    }
}

static heft_status encode_long(const heft__token_model *model, heft__model_scratch *scratch,
                               heft__ids *out, heft_error *err)
{
    const size_t count = scratch->a.size / sizeof(uint32_t);
    if (count >= NONE) {
        return heft__fail(err, HEFT_LIMIT, "a piece of %zu characters", count);
    }
    const uint32_t *ids = (const uint32_t *)(void *)scratch->a.data;
    struct symbol *symbols = heft__alloc_zero(scratch->ctx, count, sizeof *symbols);
    if (!symbols) {
        return heft__fail_nomem(err, count * sizeof *symbols);
    }
    for (size_t i = 0; i < count; i++) {
        symbols[i] = (struct symbol){ids[i], i ? (uint32_t)i - 1 : NONE,
                                     i + 1 < count ? (uint32_t)i + 1 : NONE};
    }
    merge_long(model, symbols, count, &scratch->b);
    for (uint32_t at = 0; at != NONE; at = symbols[at].next) {
        heft__ids_add(out, symbols[at].id);
    }
    heft__free(scratch->ctx, symbols, count * sizeof *symbols);
    return heft__buffer_check(&scratch->b, err);
}

heft_status heft__bpe_encode(const heft__token_model *model, heft__model_scratch *scratch,
                             heft__string piece, heft__ids *out, heft_error *err)
{
    if (model->ignore_merges) {
        const uint32_t id = heft__vocabulary_id(&model->vocabulary, piece.text, piece.length);
        if (id != HEFT__NO_ID) {
            heft__ids_add(out, id);
            return HEFT_OK;
        }
    }
    scratch->a.size = 0;
    heft_status status = add_characters(model, piece, &scratch->c, &scratch->a, err);
    const size_t count = scratch->a.size / sizeof(uint32_t);
    if (status != HEFT_OK || count == 0) {
        return status;
    }
    if (count > SHORT_PIECE) {
        return encode_long(model, scratch, out, err);
    }
    uint32_t *ids = (uint32_t *)(void *)scratch->a.data;
    const size_t left = merge_short(model, ids, count);
    for (size_t i = 0; i < left; i++) {
        heft__ids_add(out, ids[i]);
    }
    return HEFT_OK;
}
