/* cache.c - keys and values that sequences keep for the tokens to come.
 *
 *   page   keys [kv heads][tokens of a page][key width], values, positions     of one attention
 *
 * Pages are taken as a sequence grows. A fork shares its origin's pages; whichever first writes into the last one, which
 * is not full, copies it. With a window, pages that have left it are dropped. Token number n lies in page
 * n / HEFT__PAGE_TOKENS.
 *
 * The budget: a sequence has credit for all pages that it will take, so it always reaches its capacity. A page uses one
 * page of the budget, however many sequences share it. There is an exception: a shared page that each sharer will replace
 * before it is full (because it writes into the page, or its window moves on) uses one page for each sharer, and a
 * sharer that leaves takes that one along as credit. */
#include "run/pass_state.h"

#include <assert.h>

#define ALIGNMENT ((size_t)64)

/* ---- sizes ----------------------------------------------------------------------------------------- */
static size_t aligned(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
}

static size_t tokens_of(const heft__slot *slot, const heft__sequence_size *size)
{
    return slot->cross ? size->encoded : size->capacity;
}

static size_t pages_for(size_t tokens, size_t page_tokens)
{
    return tokens / page_tokens + (tokens % page_tokens != 0);
}

/* Pages that one slot has at most at a time: those of a window and of one pass begin and end anywhere. */
static size_t most_pages(const heft__slot *slot, const heft__sequence_size *size)
{
    const size_t tokens = tokens_of(slot, size), all = pages_for(tokens, HEFT__PAGE_TOKENS);
    if (slot->cross || !slot->window || slot->window >= tokens ||
        size->chunk >= tokens - slot->window) {
        return all;
    }
    const size_t most = (slot->window + size->chunk - 2) / HEFT__PAGE_TOKENS + 2;
    return most < all ? most : all;
}

/* Bytes of the keys and values of a page; of all of it. false: too many. */
static bool page_bytes(const heft__slot *slot, heft_dtype dtype, size_t tokens, size_t parts[2],
                       size_t *bytes)
{
    const size_t size = heft_dtype_bits(dtype) / 8;
    uint64_t heads = 0, part[2] = {0};
    if (!heft__mul_u64(slot->kv_heads, tokens * size, &heads) ||
        !heft__mul_u64(heads, slot->key_width, &part[0]) ||
        !heft__mul_u64(heads, slot->value_width, &part[1]) || part[0] > SIZE_MAX / 4 ||
        part[1] > SIZE_MAX / 4) {
        return false;
    }
    parts[0] = aligned((size_t)part[0]);
    parts[1] = aligned((size_t)part[1]);
    *bytes = sizeof(heft__page) + ALIGNMENT + parts[0] + parts[1] + tokens * sizeof(int32_t);
    return true;
}

/* What a new sequence keeps by a slot: nothing, and credit for all pages. */
static bool plan_slot(const heft__slot *slot, heft_dtype dtype, const heft__sequence_size *size,
                      heft__kept *kept)
{
    const size_t tokens = tokens_of(slot, size);
    size_t parts[2];
    *kept = (heft__kept){.capacity = tokens, .credit = most_pages(slot, size)};
    kept->page_tokens = tokens < HEFT__PAGE_TOKENS ? tokens : HEFT__PAGE_TOKENS;
    return page_bytes(slot, dtype, kept->page_tokens, parts, &kept->page_bytes);
}

static bool encoded_bytes(size_t count, size_t width, uint64_t *bytes)
{
    return heft__mul_u64(count, width * sizeof(float) + 2 * sizeof(int32_t), bytes);
}

bool heft__sequence_bytes(const heft__pass *pass, const heft__sequence_size *size, uint64_t *bytes)
{
    uint64_t sum = 0, part = 0;
    heft__kept kept;
    bool good = encoded_bytes(size->encoded, pass->encoded_width, &sum);
    for (size_t i = 0; good && i < pass->slot_count; i++) {
        good = plan_slot(&pass->slots[i], pass->cache_dtype, size, &kept) &&
               heft__mul_u64(kept.credit, kept.page_bytes, &part) &&
               heft__add_u64(sum, part, &sum) && sum < (uint64_t)SIZE_MAX / 2;
    }
    *bytes = sum;
    return good;
}

/* ---- pages ------------------------------------------------------------------------------------------ */
static heft__page *page_new(heft_ctx *ctx, const heft__kept *kept, const heft__slot *slot,
                            heft_dtype dtype)
{
    size_t parts[2] = {0}, bytes = 0;
    (void)page_bytes(slot, dtype, kept->page_tokens, parts, &bytes);
    heft__page *page = heft__alloc(ctx, kept->page_bytes);
    if (page) {
        uint8_t *data = (uint8_t *)aligned((uintptr_t)(page + 1));
        *page = (heft__page){.sharers = 1,
                             .paid = 1,
                             .keys = data,
                             .values = data + parts[0],
                             .at = (int32_t *)(void *)(data + parts[0] + parts[1])};
    }
    return page;
}

/* A sharer leaves. Returns the pages of the budget that it takes along, or that nobody needs any more. */
static size_t page_leave(heft_ctx *ctx, const heft__kept *kept, heft__page *page)
{
    size_t along = 0;
    page->sharers--;
    if (page->sharers == 0) {
        along = page->paid;
        heft__free(ctx, page, kept->page_bytes);
    } else if (page->paid > page->sharers) {
        along = 1;
        page->paid--;
    }
    return along;
}

static void set_page(heft__kept *kept, const heft__slot *slot, size_t i, heft__page *page)
{
    kept->pages[i] = page;
    kept->views[i] =
        (heft__key_page){page->keys, slot->value_width ? page->values : page->keys, page->at};
}

/* Whether there is a place for one more page in the lists. */
static bool has_place(heft_ctx *ctx, heft__kept *kept)
{
    return heft__array_reserve(ctx, (void **)&kept->pages, kept->page_count, &kept->pages_cap,
                               sizeof(heft__page *)) &&
           heft__array_reserve(ctx, (void **)&kept->views, kept->page_count, &kept->views_cap,
                               sizeof *kept->views);
}

/* Whether a sequence leaves page i before it is full: writes into it, or has it behind its window. */
static bool is_left(const heft__kept *kept, const heft__slot *slot, size_t i)
{
    const size_t end = (kept->gone + i + 1) * kept->page_tokens;
    const bool is_written = end > kept->count && kept->count < kept->capacity;
    const bool goes =
        slot->window && slot->window <= kept->capacity && end <= kept->capacity - slot->window;
    return !slot->cross && (is_written || goes);
}

/* Pages of a slot that have tokens. */
static size_t used_pages(const heft__kept *kept)
{
    return pages_for(kept->count, kept->page_tokens ? kept->page_tokens : 1) - kept->gone;
}

/* ---- sequences -------------------------------------------------------------------------------------- */
/* Free all but pages. */
static void free_lists(heft__sequence *sequence)
{
    heft_ctx *ctx = sequence->ctx;
    for (size_t i = 0; sequence->kept && i < sequence->slot_count; i++) {
        heft__kept *kept = &sequence->kept[i];
        heft__free(ctx, kept->pages, kept->pages_cap * sizeof *kept->pages);
        heft__free(ctx, kept->views, kept->views_cap * sizeof *kept->views);
    }
    heft__free(ctx, sequence->kept, sequence->slot_count * sizeof *sequence->kept);
    heft__free(ctx, sequence, sizeof *sequence);
    heft_ctx_free(ctx);
}

/* One without pages and credit; NULL: no memory. */
static heft__sequence *make_empty(heft_ctx *ctx, size_t slot_count)
{
    heft__sequence *sequence = heft__alloc_zero(ctx, 1, sizeof *sequence);
    if (sequence) {
        *sequence = (heft__sequence){.ctx = heft__ctx_ref(ctx), .slot_count = slot_count};
        sequence->kept = heft__alloc_zero(ctx, slot_count, sizeof *sequence->kept);
    }
    if (sequence && !sequence->kept) {
        free_lists(sequence);
        sequence = NULL;
    }
    return sequence;
}

heft_status heft__sequence_new(const heft__pass *pass, const heft__sequence_size *size,
                               heft__sequence **out, heft_error *err)
{
    heft__sequence *sequence = make_empty(pass->ctx, pass->slot_count);
    if (!sequence) {
        return heft__fail_nomem(err, pass->slot_count * sizeof *sequence->kept);
    }
    for (size_t i = 0; i < pass->slot_count; i++) {
        (void)plan_slot(&pass->slots[i], pass->cache_dtype, size, &sequence->kept[i]);
    }
    (void)encoded_bytes(size->encoded, pass->encoded_width, &sequence->encoded_credit);
    sequence->capacity = size->capacity;
    *out = sequence;
    return HEFT_OK;
}

static uint64_t leave_encoded(heft_ctx *ctx, heft__encoded *encoded)
{
    uint64_t bytes = 0;
    if (encoded && --encoded->sharers == 0) {
        bytes = encoded->paid;
        heft__free(ctx, encoded, encoded->bytes);
    }
    return bytes;
}

uint64_t heft__sequence_free(heft__sequence *sequence)
{
    if (!sequence) {
        return 0;
    }
    uint64_t bytes = sequence->encoded_credit + leave_encoded(sequence->ctx, sequence->encoded);
    for (size_t i = 0; i < sequence->slot_count; i++) {
        const heft__kept *kept = &sequence->kept[i];
        size_t pages = kept->credit;
        for (size_t k = 0; k < kept->page_count; k++) {
            pages += page_leave(sequence->ctx, kept, kept->pages[k]);
        }
        bytes += (uint64_t)pages * kept->page_bytes;
    }
    free_lists(sequence);
    return bytes;
}

/* ---- forks ------------------------------------------------------------------------------------------ */
/* Pages that were taken and never written, after a pass that failed, are not shared. */
static size_t fork_credit(const heft__kept *kept)
{
    return kept->credit + kept->page_count - used_pages(kept);
}

uint64_t heft__sequence_fork_bytes(const heft__pass *pass, const heft__sequence *from)
{
    uint64_t bytes = from->encoded_credit;
    for (size_t i = 0; i < from->slot_count; i++) {
        const heft__kept *kept = &from->kept[i];
        size_t pages = fork_credit(kept);
        for (size_t k = 0; k < used_pages(kept); k++) {
            pages += is_left(kept, &pass->slots[i], k);
        }
        bytes += (uint64_t)pages * kept->page_bytes;
    }
    return bytes;
}

/* The same pages in the lists of a fork, which does not share them yet. */
static bool list_pages(heft_ctx *ctx, const heft__slot *slot, const heft__kept *kept,
                       heft__kept *fork)
{
    const size_t pages = used_pages(kept);
    *fork = *kept;
    fork->pages = NULL;
    fork->views = NULL;
    fork->page_count = fork->pages_cap = fork->views_cap = 0;
    fork->credit = fork_credit(kept);
    while (fork->page_count < pages && has_place(ctx, fork)) {
        set_page(fork, slot, fork->page_count, kept->pages[fork->page_count]);
        fork->page_count++;
    }
    return fork->page_count == pages;
}

static void share_pages(const heft__slot *slot, const heft__kept *fork)
{
    for (size_t k = 0; k < fork->page_count; k++) {
        fork->pages[k]->sharers++;
        fork->pages[k]->paid += is_left(fork, slot, k);
    }
}

heft_status heft__sequence_fork(const heft__pass *pass, const heft__sequence *from,
                                heft__sequence **out, heft_error *err)
{
    heft__sequence *fork = make_empty(from->ctx, from->slot_count);
    bool good = fork != NULL;
    for (size_t i = 0; good && i < from->slot_count; i++) {
        good = list_pages(from->ctx, &pass->slots[i], &from->kept[i], &fork->kept[i]);
    }
    if (!good) {
        if (fork) {
            free_lists(fork);
        }
        return heft__fail_nomem(err, from->slot_count * sizeof *from->kept);
    }
    for (size_t i = 0; i < from->slot_count; i++) {
        share_pages(&pass->slots[i], &fork->kept[i]);
    }
    fork->capacity = from->capacity;
    fork->length = from->length;
    fork->reach = from->reach;
    fork->encoded = from->encoded;
    fork->encoded_credit = from->encoded_credit;
    if (fork->encoded) {
        fork->encoded->sharers++;
    }
    *out = fork;
    return HEFT_OK;
}

/* ---- growing ---------------------------------------------------------------------------------------- */
static void drop_pages(heft_ctx *ctx, heft__kept *kept, const heft__slot *slot)
{
    size_t gone = 0;
    while (slot->window && gone < kept->page_count &&
           (kept->gone + gone + 1) * kept->page_tokens + slot->window <= kept->count + 1) {
        kept->credit += page_leave(ctx, kept, kept->pages[gone++]);
    }
    if (gone > 0) {
        kept->page_count -= gone;
        kept->gone += gone;
        memmove(kept->pages, kept->pages + gone, kept->page_count * sizeof *kept->pages);
        memmove(kept->views, kept->views + gone, kept->page_count * sizeof *kept->views);
    }
}

static void copy_heads(uint8_t *to, const uint8_t *from, size_t heads, size_t stride, size_t bytes)
{
    for (size_t g = 0; g < heads; g++) {
        memcpy(to + g * stride, from + g * stride, bytes);
    }
}

/* Have the page that the next token goes into, whose first `tokens` are there, alone. */
static heft_status own_page(heft_ctx *ctx, heft__kept *kept, const heft__slot *slot,
                            heft_dtype dtype, size_t tokens, heft_error *err)
{
    const size_t i = kept->count / kept->page_tokens - kept->gone;
    const size_t size = heft_dtype_bits(dtype) / 8;
    const size_t key = slot->key_width * size, value = slot->value_width * size;
    heft__page *page = kept->pages[i];
    if (page->sharers == 1) {
        return HEFT_OK;
    }
    heft__page *copy = page_new(ctx, kept, slot, dtype);
    if (!copy) {
        return heft__fail_nomem(err, kept->page_bytes);
    }
    copy_heads(copy->keys, page->keys, slot->kv_heads, kept->page_tokens * key, tokens * key);
    copy_heads(copy->values, page->values, slot->kv_heads, kept->page_tokens * value,
               tokens * value);
    memcpy(copy->at, page->at, tokens * sizeof *copy->at);
    copy->paid = page_leave(ctx, kept, page);
    set_page(kept, slot, i, copy);
    return HEFT_OK;
}

/* Pages for `count` more tokens of a slot. */
static heft_status make_room(heft_ctx *ctx, heft__kept *kept, const heft__slot *slot,
                             heft_dtype dtype, size_t count, heft_error *err)
{
    heft_status status = HEFT_OK;
    drop_pages(ctx, kept, slot);
    if (kept->count % kept->page_tokens != 0) {
        status = own_page(ctx, kept, slot, dtype, kept->count % kept->page_tokens, err);
    }
    const size_t pages = pages_for(kept->count + count, kept->page_tokens) - kept->gone;
    while (status == HEFT_OK && kept->page_count < pages) {
        heft__page *page = has_place(ctx, kept) ? page_new(ctx, kept, slot, dtype) : NULL;
        if (!page) {
            status = heft__fail_nomem(err, kept->page_bytes);
        } else {
            assert(kept->credit > 0);
            kept->credit--;
            set_page(kept, slot, kept->page_count++, page);
        }
    }
    return status;
}

heft_status heft__sequence_prepare(const heft__pass *pass, heft__sequence *sequence, size_t count,
                                   heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < sequence->slot_count && status == HEFT_OK; i++) {
        heft__kept *kept = &sequence->kept[i];
        const heft__slot *slot = &pass->slots[i];
        const size_t encoded = sequence->encoded ? sequence->encoded->count : 0;
        const size_t more = !slot->cross ? count : kept->count == 0 ? encoded : 0;
        if (more > 0) {
            assert(more <= kept->capacity - kept->count);
            status = make_room(sequence->ctx, kept, slot, pass->cache_dtype, more, err);
        }
    }
    return status;
}

void heft__kept_append(heft__kept *kept, const heft__slot *slot, heft_dtype dtype,
                       const heft__kernels *kernels, const float *k, const float *v,
                       const int32_t *at, size_t count)
{
    const size_t size = heft_dtype_bits(dtype) / 8, tokens = kept->page_tokens;
    const size_t kw = slot->key_width, vw = slot->value_width, heads = slot->kv_heads;
    for (size_t i = 0; i < count; i++, kept->count++) {
        const heft__page *page = kept->pages[kept->count / tokens - kept->gone];
        const size_t place = kept->count % tokens;
        for (size_t g = 0; g < heads; g++) {
            kernels->narrow(page->keys + (g * tokens + place) * kw * size, dtype,
                            k + (i * heads + g) * kw, kw);
            if (vw) {
                kernels->narrow(page->values + (g * tokens + place) * vw * size, dtype,
                                v + (i * heads + g) * vw, vw);
            }
        }
        page->at[place] = at[i];
    }
}

heft__keys heft__kept_keys(const heft__kept *kept, const heft__slot *slot, heft_dtype dtype)
{
    const size_t vw = slot->value_width ? slot->value_width : slot->key_width;
    return (heft__keys){.pages = kept->views,
                        .page_keys = kept->page_tokens,
                        .dtype = dtype,
                        .key_head = kept->page_tokens * slot->key_width,
                        .value_head = kept->page_tokens * vw,
                        .key_stride = slot->key_width,
                        .value_stride = vw,
                        .count = kept->count - kept->gone * kept->page_tokens};
}

/* ---- going back --------------------------------------------------------------------------------------- */
/* Whether a slot can go on after its first `tokens`: what the next one sees is there, and no other sequence has the
 * pages that would be written. */
static bool can_truncate(const heft__kept *kept, const heft__slot *slot, size_t tokens)
{
    const size_t unseen = slot->window && tokens + 1 > slot->window ? tokens + 1 - slot->window : 0;
    if (slot->cross || kept->page_tokens == 0) {
        return true;
    }
    if (kept->gone * kept->page_tokens > unseen) {
        return false;
    }
    for (size_t i = tokens / kept->page_tokens - kept->gone; i < kept->page_count; i++) {
        if (kept->pages[i]->sharers > 1) {
            return false;
        }
    }
    return true;
}

heft_status heft__sequence_truncate(const heft__pass *pass, heft__sequence *sequence, size_t tokens,
                                    heft_error *err)
{
    bool good = sequence->reach == sequence->length;
    for (size_t i = 0; i < sequence->slot_count && good; i++) {
        good = can_truncate(&sequence->kept[i], &pass->slots[i], tokens);
    }
    if (!good) {
        return heft__fail(
            err, HEFT_UNSUPPORTED,
            "a sequence of %d tokens cannot go back to %zu: its memory is shared, has "
            "left a window, or has other positions",
            (int)sequence->length, tokens);
    }
    for (size_t i = 0; i < sequence->slot_count; i++) {
        heft__kept *kept = &sequence->kept[i];
        if (pass->slots[i].cross || kept->page_tokens == 0) {
            continue;
        }
        kept->count = tokens;
        while (kept->page_count > used_pages(kept)) {
            kept->credit += page_leave(sequence->ctx, kept, kept->pages[--kept->page_count]);
        }
    }
    sequence->length = sequence->reach = (int32_t)tokens;
    return HEFT_OK;
}

/* ---- the encoder's rows ------------------------------------------------------------------------------ */
heft_status heft__sequence_encode(heft__sequence *sequence, heft__rows rows, const int32_t *ids,
                                  const int32_t *at, heft_error *err)
{
    const size_t numbers = rows.count * rows.width;
    const size_t bytes =
        sizeof *sequence->encoded + numbers * sizeof(float) + 2 * rows.count * sizeof(int32_t);
    heft__encoded *encoded = heft__alloc(sequence->ctx, bytes);
    if (!encoded) {
        return heft__fail_nomem(err, bytes);
    }
    *encoded = (heft__encoded){.sharers = 1,
                               .paid = sequence->encoded_credit,
                               .count = rows.count,
                               .width = rows.width,
                               .bytes = bytes,
                               .rows = (float *)(encoded + 1)};
    encoded->at = (int32_t *)(encoded->rows + numbers);
    encoded->ids = encoded->at + rows.count;
    memcpy(encoded->rows, rows.x, numbers * sizeof *rows.x);
    memcpy(encoded->at, at, rows.count * sizeof *at);
    memcpy(encoded->ids, ids, rows.count * sizeof *ids);
    sequence->encoded_credit = 0;
    sequence->encoded = encoded;
    return HEFT_OK;
}
