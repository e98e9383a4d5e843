/* map.c - name -> number, open addressing, linear probing, at most 7/10 full.
 *
 * The hash is XXH3 with a seed drawn once per map, so that a file cannot choose names that collide.
 * Source: xxHash, https://github.com/Cyan4973/xxHash (header only). */
#include "base/base.h"

#include <sys/random.h>
#include <time.h>

#define XXH_INLINE_ALL
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wswitch-enum"
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wundef"
#endif
#include <xxhash.h>
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

struct heft__map_slot {
    const char *key; /* NULL: free */
    size_t value;
    uint32_t length, hash; /* the hash's upper half; its lower one is the place */
};

uint64_t heft__stable_hash(const char *bytes, size_t length)
{
    return XXH3_64bits(bytes, length);
}

void heft__digest_add(heft__digest *digest, const void *bytes, size_t length)
{
    const XXH128_hash_t added = XXH3_128bits(bytes, length);
    const uint64_t chain[] = {digest->low, digest->high, added.low64, added.high64, length};
    const XXH128_hash_t both = XXH3_128bits(chain, sizeof chain);
    *digest = (heft__digest){.low = both.low64, .high = both.high64};
}

void heft__map_init(heft__map *map, heft_ctx *ctx)
{
    *map = (heft__map){.ctx = ctx};
}

/* Drawn with the first slots: many maps stay empty. */
static void draw_seed(heft__map *map)
{
    if (getrandom(&map->seed, sizeof map->seed, GRND_NONBLOCK) != (ssize_t)sizeof map->seed) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        map->seed = (uint64_t)now.tv_nsec ^ (uint64_t)(uintptr_t)map;
    }
}

void heft__map_fini(heft__map *map)
{
    heft__free(map->ctx, map->slots, map->cap * sizeof *map->slots);
    map->slots = NULL;
    map->cap = map->count = 0;
}

/* The slot of a key, or the free slot where it belongs. cap > count, so the search ends. */
static struct heft__map_slot *find(const heft__map *map, const char *key, size_t length,
                                   uint64_t hash)
{
    size_t at = (size_t)hash & (map->cap - 1);
    while (map->slots[at].key) {
        struct heft__map_slot *slot = &map->slots[at];
        if (slot->hash == (uint32_t)(hash >> 32) && slot->length == length &&
            memcmp(slot->key, key, length) == 0) {
            return slot;
        }
        at = (at + 1) & (map->cap - 1);
    }
    return &map->slots[at];
}

static bool resize(heft__map *map, size_t cap)
{
    if (map->cap == 0) {
        draw_seed(map);
    }
    heft__map bigger = *map;
    bigger.cap = cap;
    bigger.slots = heft__alloc_zero(map->ctx, bigger.cap, sizeof *bigger.slots);
    if (!bigger.slots) {
        return false;
    }
    for (size_t i = 0; i < map->cap; i++) {
        const struct heft__map_slot *slot = &map->slots[i];
        if (slot->key) {
            uint64_t hash = XXH3_64bits_withSeed(slot->key, slot->length, map->seed);
            *find(&bigger, slot->key, slot->length, hash) = *slot;
        }
    }
    heft__free(map->ctx, map->slots, map->cap * sizeof *map->slots);
    *map = bigger;
    return true;
}

bool heft__map_reserve(heft__map *map, size_t count)
{
    size_t cap = 64;
    while (cap / 10 * 7 <= count) {
        if (cap > SIZE_MAX / 2) {
            return false;
        }
        cap *= 2;
    }
    return cap <= map->cap || resize(map, cap);
}

bool heft__map_put(heft__map *map, const char *key, size_t length, size_t value, size_t *found)
{
    if (length > UINT32_MAX) { /* no limit lets one this long come here */
        return false;
    }
    if (map->count >= map->cap / 10 * 7 && !resize(map, map->cap ? map->cap * 2 : 64)) {
        return false;
    }
    uint64_t hash = XXH3_64bits_withSeed(key, length, map->seed);
    struct heft__map_slot *slot = find(map, key, length, hash);
    *found = slot->key ? slot->value : HEFT__MAP_NONE;
    if (!slot->key) {
        *slot = (struct heft__map_slot){key, value, (uint32_t)length, (uint32_t)(hash >> 32)};
        map->count++;
    }
    return true;
}

size_t heft__map_get(const heft__map *map, const char *key, size_t length)
{
    if (map->cap == 0) {
        return HEFT__MAP_NONE;
    }
    const struct heft__map_slot *slot =
        find(map, key, length, XXH3_64bits_withSeed(key, length, map->seed));
    return slot->key ? slot->value : HEFT__MAP_NONE;
}
