/* unigram.c - Unigram: of all ways to write a piece as tokens, the one with the highest sum of scores.
 *
 * One pass over the piece keeps, for each place, the best way to get there: its sum and its last token. A
 * character that is no token counts as unknown, with a score below all others. Sums are doubles, added in
 * the order of the text, and a later way wins only if it is better: ties fall as in `tokenizers`.
 * Source: Kudo 2018, https://arxiv.org/abs/1804.10959; sentencepiece, src/unigram_model.cc. */
#include "text/tokenizer.h"

#define UNKNOWN_PENALTY 10.0

heft_status heft__unigram_build(heft__arena *arena, heft__token_model *model, heft_error *err)
{
    const heft__vocabulary *v = &model->vocabulary;
    heft__trie_word *words = heft__alloc_zero(arena->ctx, v->id_count + 1, sizeof *words);
    if (!words) {
        return heft__fail_nomem(err, v->id_count * sizeof *words);
    }
    size_t count = 0;
    double least = 0;
    for (size_t id = 0; id < v->id_count; id++) {
        const heft__string token = v->tokens[id];
        least = id == 0 || model->scores[id] < least ? model->scores[id] : least;
        if (token.length > 0 && heft__vocabulary_id(v, token.text, token.length) == id) {
            words[count++] = (heft__trie_word){token, (uint32_t)id};
        }
    }
    model->unk_score = least - UNKNOWN_PENALTY;
    heft_status status = heft__trie_build(arena, words, count, &model->trie, err);
    heft__free(arena->ctx, words, (v->id_count + 1) * sizeof *words);
    return status;
}

struct node {
    double score;   /* of the best way here */
    uint32_t start; /* of its last token; UINT32_MAX: no way */
    uint32_t id;
};

static void reach(struct node *node, double score, size_t start, uint32_t id)
{
    if (node->start == UINT32_MAX || score > node->score) {
        *node = (struct node){score, (uint32_t)start, id};
    }
}

static heft_status find_best(const heft__token_model *model, heft__string piece, struct node *nodes,
                             heft_error *err)
{
    for (size_t i = 0; i <= piece.length; i++) {
        nodes[i] = (struct node){0, UINT32_MAX, 0};
    }
    for (size_t start = 0, size; start < piece.length; start += size) {
        (void)heft__utf8_get(piece.text + start, &size);
        const double here = nodes[start].score;
        bool single = false;
        uint32_t at = 0;
        for (size_t i = start; i < piece.length; i++) {
            at = heft__trie_step(&model->trie, at, (uint8_t)piece.text[i]);
            if (at == 0) {
                break;
            }
            const uint32_t id = model->trie.value[at];
            if (id != HEFT__NO_ID) {
                reach(&nodes[i + 1], model->scores[id] + here, start, id);
                single = single || i + 1 - start == size;
            }
        }
        if (!single) {
            if (model->unk_id == HEFT__NO_ID) {
                return heft__fail(err, HEFT_FORMAT,
                                  "a character that is not in the vocabulary, which has no unknown "
                                  "token");
            }
            reach(&nodes[start + size], model->unk_score + here, start, model->unk_id);
        }
    }
    return HEFT_OK;
}

/* The id of a part of the text, which may be several unknown characters. */
static void add_part(const heft__token_model *model, heft__string part, heft__ids *out)
{
    const uint32_t id = heft__vocabulary_id(&model->vocabulary, part.text, part.length);
    if (id != HEFT__NO_ID) {
        heft__ids_add(out, id);
        return;
    }
    bool bytes = model->byte_fallback;
    for (size_t i = 0; i < part.length && bytes; i++) {
        bytes = model->byte_ids[(uint8_t)part.text[i]] != HEFT__NO_ID;
    }
    if (!bytes) {
        heft__ids_add(out, model->unk_id);
        return;
    }
    for (size_t i = 0; i < part.length; i++) {
        heft__ids_add(out, model->byte_ids[(uint8_t)part.text[i]]);
    }
}

/* Turn the chain of nodes, which leads back from the end, round: nodes[i].start becomes the end of the token
 * at i. */
static void turn_chain(struct node *nodes, size_t length)
{
    uint32_t end = (uint32_t)length;
    uint32_t start = nodes[end].start, id = nodes[end].id;
    for (;;) {
        const uint32_t previous = nodes[start].start, previous_id = nodes[start].id;
        nodes[start].start = end;
        nodes[start].id = id;
        if (start == 0) {
            return;
        }
        end = start;
        start = previous;
        id = previous_id;
    }
}

heft_status heft__unigram_encode(const heft__token_model *model, heft__model_scratch *scratch,
                                 heft__string piece, heft__ids *out, heft_error *err)
{
    if (piece.length == 0) {
        return HEFT_OK;
    }
    if (piece.length >= UINT32_MAX - 1) {
        return heft__fail(err, HEFT_LIMIT, "a piece of %zu bytes", piece.length);
    }
    const size_t need = (piece.length + 1) * sizeof(struct node);
    if (scratch->a.cap < need) { /* contents need not be kept */
        heft__buffer_fini(&scratch->a);
        heft__buffer_init(&scratch->a, scratch->ctx);
        scratch->a.data = heft__alloc(scratch->ctx, need);
        scratch->a.cap = scratch->a.data ? need : 0;
        if (!scratch->a.data) {
            return heft__fail_nomem(err, need);
        }
    }
    struct node *nodes = (struct node *)(void *)scratch->a.data;
    heft_status status = find_best(model, piece, nodes, err);
    if (status != HEFT_OK) {
        return status;
    }
    turn_chain(nodes, piece.length);
    for (uint32_t start = 0; start < piece.length;) {
        uint32_t end = nodes[start].start;
        /* unknown neighbors are one part */
        while (model->fuse_unk && nodes[start].id == model->unk_id && end < piece.length &&
               nodes[end].id == model->unk_id) {
            end = nodes[end].start;
        }
        add_part(model, (heft__string){piece.text + start, end - start}, out);
        start = end;
    }
    return HEFT_OK;
}
