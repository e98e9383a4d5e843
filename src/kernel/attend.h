/* attend.h - what both forms of attention share: blocks of keys, and who sees them. */
#ifndef HEFT__KERNEL_ATTEND_H
#define HEFT__KERNEL_ATTEND_H

#include "kernel/act.h"
#include "kernel/level.h"

#define BLOCK_KEYS HEFT__BLOCK_KEYS
/* Up to this many rows (queries times heads of a group), a row's keys are dot products: lanes of a panel would be
 * empty. */
#define FEW_ROWS ((size_t)LANES / 2)

/* The next block of keys: of one page. */
struct block {
    heft__key_page page;
    size_t first, count; /* keys of the page */
};

/* Where key `at` is the first one; at < keys->count. */
INLINE struct block block_of(const heft__keys *keys, size_t at)
{
    const size_t first = at % keys->page_keys, in_page = keys->page_keys - first;
    const size_t left = keys->count - at, most = left < in_page ? left : in_page;
    return (struct block){.page = keys->pages[at / keys->page_keys],
                          .first = first,
                          .count = most < BLOCK_KEYS ? most : BLOCK_KEYS};
}

struct sight {
    bool some, all; /* seen by some row; every key by every row */
};

/* Of `count` keys at `at`, by queries at positions nearest .. farthest. */
INLINE struct sight look(const heft__attention *a, const int32_t *at, size_t count, int32_t nearest,
                         int32_t farthest)
{
    const int64_t window = a->window ? a->window : INT64_MAX;
    const int64_t ahead = a->causal ? 1 : window; /* key - query is below this */
    int32_t low = INT32_MAX, high = -1, least = INT32_MAX;
    for (size_t j = 0; j < count; j++) {
        least = at[j] < least ? at[j] : least;
        low = at[j] >= 0 && at[j] < low ? at[j] : low;
        high = at[j] > high ? at[j] : high;
    }
    return (struct sight){
        .some = high >= 0 && (int64_t)low - farthest < ahead && (int64_t)nearest - high < window,
        .all = least >= 0 && (int64_t)high - nearest < ahead && (int64_t)farthest - low < window};
}

/* The bias at a distance, of a head. */
INLINE float bias_at(const heft__attention *a, size_t head, int32_t ahead)
{
    const int32_t reach = a->bias_reach;
    const int32_t far = ahead < -reach ? -reach : ahead;
    const int32_t near = far > reach ? reach : far;
    return a->bias[head * (2 * (size_t)reach + 1) + (size_t)(near + reach)];
}

INLINE ints load_ints(const int32_t *p)
{
    ints v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Scores with what the slopes add. */
INLINE floats sloped(const heft__attention *a, floats slopes, ints ahead, ints key, floats s)
{
    if (a->coarse == 0) {
        return multiply_add(slopes, __builtin_convertvector(ahead, floats), s);
    }
    const floats place = round_bf16(__builtin_convertvector(key, floats));
    return multiply_add(splat(a->coarse), round_bf16(slopes * place), s);
}

/* Scores of keys that are not seen become -infinity. */
INLINE floats masked(const heft__attention *a, floats s, ints ahead, ints key)
{
    const int32_t window = a->window ? a->window : INT32_MAX;
    ints unseen = -ahead >= window;
    unseen |= key < 0;
    unseen |= a->causal ? ahead > 0 : ahead >= window;
    return choose(unseen, splat(-__builtin_inff()), s);
}

/* attend_few_kernels.c: rows first .. last - 1, which are query * group + head of the group. */
void HEFT__KERNEL(attend_few)(const heft__attention *a, const heft__queries *queries,
                              const heft__keys *keys, size_t head, size_t first, size_t last);

#endif
