/* trie.c - words by their bytes, level by level: the children of a node lie side by side.
 *
 * The words are sorted, so that all words below a node are neighbors; a node is such a range and a depth.
 * Time and memory are in proportion to the bytes of all words. */
#include "text/tokenizer.h"

#include <stdlib.h>

static int compare_words(const void *left, const void *right)
{
    const heft__trie_word *a = left, *b = right;
    const size_t least = a->word.length < b->word.length ? a->word.length : b->word.length;
    const int order = least ? memcmp(a->word.text, b->word.text, least) : 0;
    if (order != 0) {
        return order;
    }
    if (a->word.length != b->word.length) {
        return a->word.length < b->word.length ? -1 : 1;
    }
    return a->value < b->value ? -1 : a->value > b->value;
}

/* Nodes of sorted words: each byte that a word does not share with the one before it. */
static uint64_t count_nodes(const heft__trie_word *words, size_t count)
{
    uint64_t nodes = 1;
    for (size_t i = 0; i < count; i++) {
        size_t same = 0;
        while (i > 0 && same < words[i].word.length && same < words[i - 1].word.length &&
               words[i].word.text[same] == words[i - 1].word.text[same]) {
            same++;
        }
        nodes += words[i].word.length - same;
    }
    return nodes;
}

struct range {
    uint32_t begin, end; /* of the words below a node */
};

/* Give a node its value and its children. Returns the number of nodes with them. */
static uint32_t expand(heft__trie *trie, const heft__trie_word *words, struct range *ranges,
                       uint32_t node, uint32_t depth, uint32_t made)
{
    uint32_t i = ranges[node].begin;
    const uint32_t end = ranges[node].end;
    trie->value[node] = HEFT__NO_ID;
    for (; i < end && words[i].word.length == depth; i++) {
        if (trie->value[node] == HEFT__NO_ID) {
            trie->value[node] = words[i].value;
        }
    }
    trie->first[node] = made;
    while (i < end) {
        const uint8_t byte = (uint8_t)words[i].word.text[depth];
        const uint32_t begin = i;
        while (i < end && (uint8_t)words[i].word.text[depth] == byte) {
            i++;
        }
        trie->label[made] = byte;
        ranges[made++] = (struct range){begin, i};
    }
    return made;
}

heft_status heft__trie_build(heft__arena *arena, heft__trie_word *words, size_t count,
                             heft__trie *out, heft_error *err)
{
    if (count > 1) {
        qsort(words, count, sizeof *words, compare_words);
    }
    const uint64_t nodes = count_nodes(words, count);
    if (nodes >= UINT32_MAX || count >= UINT32_MAX) {
        return heft__fail(err, HEFT_LIMIT, "tokens with more than 4 GiB of text");
    }
    heft__trie trie = {
        .first = heft__arena_array(arena, nodes + 1, sizeof *trie.first),
        .label = heft__arena_array(arena, nodes, 1),
        .value = heft__arena_array(arena, nodes, sizeof *trie.value),
        .nodes = (size_t)nodes,
    };
    struct range *ranges = heft__alloc_zero(arena->ctx, (size_t)nodes, sizeof *ranges);
    if (!trie.first || !trie.label || !trie.value || !ranges) {
        heft__free(arena->ctx, ranges, (size_t)nodes * sizeof *ranges);
        return heft__fail_nomem(err, nodes * sizeof *ranges);
    }
    ranges[0] = (struct range){0, (uint32_t)count};
    uint32_t made = 1, depth = 0;
    for (uint32_t node = 0, level_end = 1; node < nodes; node++) {
        if (node == level_end) { /* the first node of the next level */
            depth++;
            level_end = made;
        }
        made = expand(&trie, words, ranges, node, depth, made);
    }
    trie.first[nodes] = made;
    for (uint32_t child = trie.first[0]; nodes > 1 && child < trie.first[1]; child++) {
        trie.root[trie.label[child]] = child;
    }
    heft__free(arena->ctx, ranges, (size_t)nodes * sizeof *ranges);
    *out = trie;
    return HEFT_OK;
}
