/* compat_ties.c - which items must go where an item goes, since they hold what is tied to it.
 *
 * Source: docs/placing.md [3]. */
#include "place/compat.h"

#include <stdlib.h>

/* ---- making the index ------------------------------------------------------------------------ */
/* From the last letter on; what is the end of the other comes first. */
static int by_ending(const void *left, const void *right)
{
    const heft__tie_end *a = left, *b = right;
    const size_t shorter = a->length < b->length ? a->length : b->length;
    for (size_t i = 1; i <= shorter; i++) {
        const unsigned char one = (unsigned char)a->text[a->length - i],
                            two = (unsigned char)b->text[b->length - i];
        if (one != two) {
            return one < two ? -1 : 1;
        }
    }
    return a->length < b->length ? -1 : a->length > b->length;
}

static bool list_ends(heft__tie_index *index, heft__arena *arena)
{
    const heft__tree *tree = index->tree;
    uint64_t count = 0;
    for (size_t i = 0; i < tree->tie_count; i++) {
        count++;
        for (const char *at = tree->tensors[tree->ties[i][1]].path; *at; at++) {
            count += *at == '.';
        }
    }
    index->ends = heft__arena_array(arena, count, sizeof *index->ends);
    if (!index->ends) {
        return false;
    }
    for (size_t i = 0; i < tree->tie_count; i++) {
        const char *path = tree->tensors[tree->ties[i][1]].path;
        for (size_t length = 0;; length++) {
            length += strcspn(path + length, ".");
            index->ends[index->end_count++] = (heft__tie_end){path, length, (uint32_t)i};
            if (!path[length]) {
                break;
            }
        }
    }
    qsort(index->ends, index->end_count, sizeof *index->ends, by_ending);
    return true;
}

bool heft__tie_index_init(heft__tie_index *index, const heft__tree *tree, heft__arena *arena)
{
    const size_t ties = tree->tie_count;
    *index = (heft__tie_index){.tree = tree};
    if (ties == 0) {
        return true;
    }
    index->groups = heft__arena_array(arena, ties, sizeof *index->groups);
    index->group_of = heft__arena_array(arena, ties, sizeof *index->group_of);
    index->live = heft__arena_array(arena, ties, sizeof *index->live);
    index->claimed_in = heft__arena_array(arena, ties, sizeof *index->claimed_in);
    index->touched = heft__arena_array(arena, ties, sizeof *index->touched);
    index->owners = heft__arena_array(arena, ties, sizeof *index->owners);
    index->tied = heft__arena_array(arena, ties, sizeof *index->tied);
    index->owner_at = heft__arena_array(arena, tree->tensor_count, sizeof *index->owner_at);
    index->owner_round = heft__arena_array(arena, tree->tensor_count, sizeof *index->owner_round);
    if (!index->groups || !index->group_of || !index->live || !index->claimed_in ||
        !index->touched || !index->owners || !index->tied || !index->owner_at ||
        !index->owner_round) {
        return false;
    }
    for (uint32_t i = 0; i < ties; i++) {
        if (i == 0 || tree->ties[i][0] != tree->ties[i - 1][0]) {
            index->groups[index->group_count++].begin = i;
        }
        heft__tie_group *group = &index->groups[index->group_count - 1];
        group->live_end = group->end = i + 1;
        index->group_of[i] = (uint32_t)index->group_count - 1;
        index->live[i] = i;
    }
    return list_ends(index, arena);
}

/* ---- looking --------------------------------------------------------------------------------- */
static bool ends_with(const heft__tie_end *end, const char *name, size_t length)
{
    return end->length >= length && memcmp(end->text + end->length - length, name, length) == 0;
}

static int by_number(const void *left, const void *right)
{
    const uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return a < b ? -1 : a > b;
}

/* Note which members the item claims; returns the number of groups that have any, in their order. */
static uint32_t claim(heft__tie_index *index, const char *name)
{
    const heft__tie_end wanted = {.text = name, .length = strlen(name)};
    size_t low = 0, high = index->end_count;
    uint32_t touched = 0;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (by_ending(&index->ends[middle], &wanted) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    for (; low < index->end_count && ends_with(&index->ends[low], name, wanted.length); low++) {
        const uint32_t tie = index->ends[low].tie;
        heft__tie_group *group = &index->groups[index->group_of[tie]];
        if (group->round != index->round) {
            group->round = index->round;
            group->claimed = 0;
            index->touched[touched++] = index->group_of[tie];
        }
        group->claimed += index->claimed_in[tie] != index->round;
        index->claimed_in[tie] = index->round;
    }
    if (touched > 1) {
        qsort(index->touched, touched, sizeof *index->touched, by_number);
    }
    return touched;
}

/* What an owner shares with the item counts once; an owner of two tied tensors counts twice, as it
 * does there. */
static double bytes_of(const heft__tie_index *index, uint32_t owner, uint32_t tensor)
{
    const double shared =
        heft__tree_is_tensor(index->tree, owner) ? 0 : index->tree->tensors[tensor].bytes;
    return heft__tree_bytes(index->tree, owner) - shared;
}

/* The members outside of the item; those that are placed are not asked for again. */
static void list_owners(heft__tie_index *index, const heft__queue *queue, heft__tie_group *group,
                        uint32_t held)
{
    const heft__tree *tree = index->tree;
    uint32_t kept = group->begin;
    for (uint32_t i = group->begin; i < group->live_end; i++) {
        const uint32_t tie = index->live[i], tensor = tree->ties[tie][1];
        const uint32_t node = tree->module_count + tensor;
        if (index->claimed_in[tie] == index->round) {
            index->live[kept++] = tie;
            continue;
        }
        const uint32_t owner = heft__queue_holder(queue, node);
        if (owner != HEFT__NO_NODE) {
            index->owner_at[tensor] = index->owner_count;
            index->owner_round[tensor] = index->round;
            index->tied[index->owner_count] = tensor;
            index->owners[index->owner_count++] = owner;
            index->owner_bytes += bytes_of(index, owner, tensor);
        }
        if (owner != HEFT__NO_NODE ||
            (held != HEFT__NO_NODE && heft__tree_is_inside(tree, node, held))) {
            index->live[kept++] = tie;
        }
    }
    group->live_end = kept;
}

void heft__tie_index_find(heft__tie_index *index, const heft__queue *queue, uint32_t item,
                          uint32_t held)
{
    index->owner_count = index->split_from = 0;
    index->owner_bytes = 0;
    index->round++;
    if (index->end_count == 0) {
        return;
    }
    const uint32_t touched = claim(index, heft__tree_path(index->tree, item));
    for (uint32_t i = 0; i < touched; i++) {
        heft__tie_group *group = &index->groups[index->touched[i]];
        if (group->claimed < group->end - group->begin) {
            list_owners(index, queue, group, held);
        }
    }
}

uint32_t heft__tie_index_splits(heft__tie_index *index)
{
    while (index->split_from < index->owner_count) {
        if (heft__tree_splits(index->tree, index->owners[index->split_from])) {
            return index->owners[index->split_from];
        }
        index->split_from++;
    }
    return HEFT__NO_NODE;
}

void heft__tie_index_resettle(heft__tie_index *index, const heft__queue *queue, uint32_t owner)
{
    const heft__tree *tree = index->tree;
    for (uint32_t m = owner; m < tree->modules[owner].end; m++) {
        const uint32_t first = tree->modules[m].first_tensor;
        for (uint32_t tensor = first; tensor < first + tree->modules[m].tensor_count; tensor++) {
            if (index->owner_round[tensor] == index->round) {
                uint32_t *now = &index->owners[index->owner_at[tensor]];
                index->owner_bytes -= bytes_of(index, *now, tensor);
                *now = heft__queue_holder(queue, tree->module_count + tensor);
                index->owner_bytes += bytes_of(index, *now, tensor);
            }
        }
    }
}
