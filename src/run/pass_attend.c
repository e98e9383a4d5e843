/* pass_attend.c - attention: of tokens to their own sequence, and to what an encoder made of it.
 *
 * A causal attention has the next slot of each sequence's cache: the tokens of this pass are appended, then
 * all that is kept is attended to. Without that, keys are the rows of this pass. Sequences, heads and blocks
 * of queries are split among threads. */
#include "run/pass_state.h"

#include <math.h>

#define QUERIES_OF_ITEM ((size_t)64)

struct attention {
    heft__pass *p;
    const heft__attention *a;
    heft__rows q, k, v, y;
    const heft__slot *slot;
    size_t slot_number;
    size_t *items; /* [sequences + 1] where the items of each begin */
};

static size_t blocks_of(size_t queries)
{
    return (queries + QUERIES_OF_ITEM - 1) / QUERIES_OF_ITEM;
}

/* Keys of a sequence: kept, or rows of this pass, which are one page. */
static heft__keys keys_of(const struct attention *work, const heft__span *span,
                          heft__key_page *page)
{
    const heft__attention *a = work->a;
    if (work->slot) {
        return heft__kept_keys(&span->sequence->kept[work->slot_number], work->slot,
                               work->p->cache_dtype);
    }
    const heft__rows v = work->v.x ? work->v : work->k;
    *page = (heft__key_page){.keys = work->k.x + span->first * work->k.width,
                             .values = v.x + span->first * v.width,
                             .at = work->p->seen_at + span->first};
    return (heft__keys){.pages = page,
                        .page_keys = span->count + 1,
                        .dtype = HEFT_DTYPE_F32,
                        .key_head = a->key_width,
                        .value_head = work->v.x ? a->value_width : a->key_width,
                        .key_stride = work->k.width,
                        .value_stride = v.width,
                        .count = span->count};
}

static heft_status attend_item(void *user, size_t item, heft_error *err)
{
    const struct attention *work = user;
    heft__pass *p = work->p;
    size_t s = 0;
    (void)err;
    while (item >= work->items[s + 1]) {
        s++;
    }
    const heft__span *span = &p->spans[s];
    const size_t local = item - work->items[s], blocks = blocks_of(span->count);
    const size_t head = local / blocks, first = local % blocks * QUERIES_OF_ITEM;
    const size_t left = span->count - first;
    heft__key_page page;
    const heft__keys keys = keys_of(work, span, &page);
    const heft__queries queries = {.q = work->q.x + span->first * work->q.width,
                                   .out = work->y.x + span->first * work->y.width,
                                   .q_stride = work->q.width,
                                   .out_stride = work->y.width,
                                   .count = span->count,
                                   .at = p->places + span->first};
    void *lane = heft__pass_lane_take(p);
    p->kernels->attend(work->a, &queries, &keys, head, first,
                       first + (left < QUERIES_OF_ITEM ? left : QUERIES_OF_ITEM), lane);
    heft__pass_lane_give(p, lane);
    return HEFT_OK;
}

/* Attend to the keys of every sequence: all are where keys_of() finds them. */
static void attend_all(struct attention *work)
{
    heft__pass *p = work->p;
    const size_t sequences = p->in.sequences, mark = heft__mark(p);
    work->items = heft__pass_take(p, sequences + 1, sizeof *work->items);
    if (!heft__pass_live(p)) {
        heft__tally_split(p, sequences * work->a->kv_heads); /* or more */
        (void)heft__pass_need_lanes(p, p->kernels->attend_scratch(work->a, p->most_keys));
        heft__release(p, mark);
        return;
    }
    size_t most = 0;
    work->items[0] = 0;
    for (size_t s = 0; s < sequences; s++) {
        const heft__span *span = &p->spans[s];
        heft__key_page page;
        const size_t keys = keys_of(work, span, &page).count;
        work->items[s + 1] = work->items[s] + work->a->kv_heads * blocks_of(span->count);
        most = keys > most ? keys : most;
    }
    if (heft__pass_need_lanes(p, p->kernels->attend_scratch(work->a, most))) {
        heft__pass_parallel(p, work->items[sequences], attend_item, work);
    }
    heft__release(p, mark);
}

static bool good_shapes(heft__pass *p, const heft__attention *a, heft__rows q)
{
    if (a->kv_heads == 0 || a->heads % a->kv_heads != 0 || q.width != a->heads * a->key_width) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "%zu heads of %zu numbers, %zu of them with keys, do not fit rows of %zu",
                        a->heads, a->key_width, a->kv_heads, q.width);
    }
    return p->status == HEFT_OK;
}

/* The next slot; a dry run notes what is kept there. */
static const heft__slot *next_slot(heft__pass *p, const heft__slot *wanted, size_t *number)
{
    *number = p->slot_at++;
    if (p->dry && *number == p->slot_count) {
        if (!heft__array_reserve(p->ctx, (void **)&p->slots, p->slot_count, &p->slot_cap,
                                 sizeof *p->slots)) {
            heft__pass_fail(p, HEFT_NOMEM, "no memory for the cache of an attention");
            return NULL;
        }
        p->slots[p->slot_count++] = *wanted;
    }
    if (*number >= p->slot_count) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "the pass has another attention than was planned");
        return NULL;
    }
    return &p->slots[*number];
}

static void append_all(struct attention *work)
{
    heft__pass *p = work->p;
    for (size_t s = 0; heft__pass_live(p) && s < p->in.sequences; s++) {
        const heft__span *span = &p->spans[s];
        heft__kept_append(&span->sequence->kept[work->slot_number], work->slot, p->cache_dtype,
                          p->kernels, work->k.x + span->first * work->k.width,
                          work->v.x ? work->v.x + span->first * work->v.width : NULL,
                          p->seen_at + span->first, span->count);
    }
}

/* A config with is_causal false makes every self-attention look both ways; a window is then as wide on either side, its
 * last token included. */
static heft__attention as_configured(heft__pass *p, const heft__attention *a)
{
    heft__attention own = *a;
    if (!a->causal || !p->config || heft__sk_flag_or(p->config, "is_causal", true, false)) {
        return own;
    }
    if (heft__sk_flag(p->config, "is_causal", true)) { /* the reference's attentions do not agree */
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "config.json: is_causal is null: only true and false are computed");
    }
    if (p->encoded_width > 0) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "config.json: is_causal is false: a decoder behind an encoder is computed "
                        "causally only");
    }
    own.causal = false;
    own.window = a->window > 0 ? a->window + 1 : 0;
    return own;
}

heft__rows heft__attend(heft__pass *p, heft__rows q, heft__rows k, heft__rows v,
                        const heft__attention *given)
{
    const heft__attention own = as_configured(p, given), *a = &own;
    struct attention work = {.p = p, .a = a, .q = q, .k = k, .v = v};
    if (!good_shapes(p, a, q)) {
        return (heft__rows){0};
    }
    if (k.width != a->kv_heads * a->key_width ||
        (v.width != a->kv_heads * a->value_width && v.width != 0)) {
        heft__pass_fail(p, HEFT_UNSUPPORTED,
                        "keys of %zu and values of %zu numbers do not fit %zu heads", k.width,
                        v.width, a->kv_heads);
        return (heft__rows){0};
    }
    work.y = heft__pass_rows(p, q.count, a->heads * a->value_width);
    if (a->causal) {
        const heft__slot wanted = {.kv_heads = a->kv_heads,
                                   .key_width = a->key_width,
                                   .value_width = v.width ? a->value_width : 0,
                                   .window = a->window > 0 ? (size_t)a->window : 0};
        work.slot = next_slot(p, &wanted, &work.slot_number);
        if (work.slot) {
            append_all(&work);
        }
    }
    heft__tally_attention(p, a, q.count, p->most_keys, work.slot);
    attend_all(&work);
    return work.y;
}

/* ---- to the encoder's rows ---------------------------------------------------------------------------- */
/* What the encoder made of a sequence, where an attention has no keys of it yet; NULL: it has. */
static const heft__encoded *missing(const heft__span *span, const struct attention *work)
{
    const heft__sequence *sequence = span->sequence;
    return sequence->kept[work->slot_number].count == 0 ? sequence->encoded : NULL;
}

/* Keys and values of sequences that have none yet: one product for all of them. */
static void fill_cross(heft__pass *p, const struct attention *work, const char *key,
                       const char *value)
{
    size_t rows = p->dry ? p->encoded_tokens : 0;
    for (size_t s = 0; !p->dry && s < p->in.sequences; s++) {
        const heft__encoded *encoded = missing(&p->spans[s], work);
        rows += encoded ? encoded->count : 0;
    }
    const size_t mark = heft__mark(p);
    const heft__tally before = p->tally;
    heft__rows x = heft__pass_rows(p, rows, p->encoded_width);
    float *to = x.x;
    for (size_t s = 0; heft__pass_live(p) && s < p->in.sequences; s++) {
        const heft__encoded *encoded = missing(&p->spans[s], work);
        if (encoded) {
            memcpy(to, encoded->rows, encoded->count * encoded->width * sizeof *to);
            to += encoded->count * encoded->width;
        }
    }
    if (rows > 0) {
        const heft__rows k = heft__linear(p, key, x), v = heft__linear(p, value, x);
        size_t first = 0;
        for (size_t s = 0; heft__pass_live(p) && s < p->in.sequences; s++) {
            const heft__encoded *encoded = missing(&p->spans[s], work);
            if (encoded) {
                heft__kept_append(&p->spans[s].sequence->kept[work->slot_number], work->slot,
                                  p->cache_dtype, p->kernels, k.x + first * k.width,
                                  v.x + first * v.width, encoded->at, encoded->count);
                first += encoded->count;
            }
        }
    }
    p->tally = p->cross_kept ? before : p->tally; /* they are not computed again */
    heft__release(p, mark);
}

heft__rows heft__attend_cross(heft__pass *p, heft__rows q, const char *key, const char *value,
                              const heft__attention *a)
{
    struct attention work = {.p = p, .a = a, .q = q};
    const heft__slot wanted = {.kv_heads = a->kv_heads,
                               .key_width = a->key_width,
                               .value_width = a->value_width,
                               .cross = true};
    if (!good_shapes(p, a, q)) {
        return (heft__rows){0};
    }
    work.y = heft__pass_rows(p, q.count, a->heads * a->value_width);
    work.slot = next_slot(p, &wanted, &work.slot_number);
    if (work.slot) {
        fill_cross(p, &work, key, value);
        heft__tally_attention(p, a, q.count, p->encoded_tokens, work.slot);
        attend_all(&work);
    }
    return work.y;
}

void heft__keep_encoded(heft__pass *p, heft__rows x)
{
    if (heft__pass_going(p)) {
        p->encoded_width = x.width;
    }
    for (size_t s = 0; heft__pass_live(p) && s < p->in.sequences; s++) {
        const heft__span *span = &p->spans[s];
        const heft__rows rows = {x.x + span->first * x.width, span->count, x.width};
        if (heft__sequence_encode(span->sequence, rows, p->in.ids + span->first,
                                  p->seen_at + span->first, NULL) != HEFT_OK) {
            heft__pass_fail(p, HEFT_NOMEM, "no memory for an encoder's output");
        }
    }
}

/* ---- ALiBi --------------------------------------------------------------------------------------------- */
float *heft__alibi_slopes(heft__pass *p, size_t heads)
{
    float *slopes = heft__pass_take(p, heads, sizeof *slopes);
    size_t whole = 1; /* the largest power of two that is not more than heads */
    while (2 * whole <= heads) {
        whole *= 2;
    }
    for (size_t h = 0; slopes && h < heads; h++) {
        const double step = 8.0 / (double)whole;
        slopes[h] = (float)(h < whole ? exp2(-step * (double)(h + 1))
                                      : exp2(-step / 2 * (double)(2 * (h - whole) + 1)));
    }
    return slopes;
}

heft__attention heft__attention_of(size_t heads, size_t width, bool causal)
{
    return (heft__attention){.heads = heads,
                             .kv_heads = heads,
                             .key_width = width,
                             .value_width = width,
                             .scale = (float)(1 / sqrt((double)width)),
                             .causal = causal};
}
