/* residency.c - blocks in memory while they are used, and the next ones ahead of time.
 *
 * A block is away, coming or here. Whoever acquires one that is away brings it in itself; a thread of
 * the residency's own brings in those behind the one that was acquired last, as long as there is
 * room and nobody waits. One comes at a time, by all threads that read. Memory of blocks that nobody
 * uses is taken for others, from the block whose turn is farthest.
 * Source: docs/placing.md [6]. */
#include "run/run.h"

#define SLOTS_MOST 4096 /* blocks in memory at once */

/* ---- memory; the lock is held ----------------------------------------------------------------- */
/* How many blocks there are until this one's turn. */
static size_t distance(const heft_residency *r, size_t block)
{
    return (block + r->block_count - r->cursor) % r->block_count;
}

static void set_views(heft_residency *r, const heft__block *block, bool here)
{
    for (size_t k = 0; k < block->shown.parameter_count; k++) {
        const size_t number = block->shown.parameters[k], at = r->brought_at[number];
        if (at != SIZE_MAX) {
            r->views[number].data = here ? block->brought[at].data : NULL;
            r->views[number].flags =
                here && !r->slots[block->slot].storage ? HEFT_TENSOR_MAPPED : 0;
        }
    }
}

static void drop_slot(heft_residency *r, heft__slot *slot)
{
    heft_storage_unref(slot->storage);
    r->held -= slot->bytes;
    *slot = (heft__slot){.block = HEFT__NO_BLOCK};
}

/* Send a block away. Its buffer stays, to be used again. */
static void send_away(heft_residency *r, size_t number)
{
    heft__block *block = &r->blocks[number];
    heft__slot *slot = &r->slots[block->slot];
    set_views(r, block, false);
    if (slot->storage) {
        slot->block = HEFT__NO_BLOCK;
    } else {
        heft__block_forget(r, block);
        drop_slot(r, slot);
    }
    block->state = HEFT__BLOCK_AWAY;
    block->slot = HEFT__NO_SLOT;
}

/* The block that can go: nobody uses it, and its turn is farther than that of `than`. */
static size_t find_farthest(const heft_residency *r, size_t than)
{
    size_t found = HEFT__NO_BLOCK, most = distance(r, than);
    for (size_t i = 0; i < r->slot_count; i++) {
        const size_t number = r->slots[i].block;
        if (number != HEFT__NO_BLOCK && r->blocks[number].state == HEFT__BLOCK_HERE &&
            r->blocks[number].users == 0 && distance(r, number) > most) {
            most = distance(r, number);
            found = number;
        }
    }
    return found;
}

/* A slot for a block: a buffer that is free and not much too large, or fresh if there is room. */
static heft__slot *find_slot(heft_residency *r, uint64_t room)
{
    heft__slot *fresh = NULL, *fits = NULL;
    for (size_t i = 0; i < r->slot_count; i++) {
        heft__slot *slot = &r->slots[i];
        if (slot->bytes == 0) {
            fresh = slot;
        } else if (slot->block == HEFT__NO_BLOCK && slot->bytes >= room &&
                   slot->bytes - room <= room / 4 && (!fits || slot->bytes < fits->bytes)) {
            fits = slot;
        }
    }
    if (fits) {
        return fits;
    }
    return fresh && room <= r->budget && r->held <= r->budget - room ? fresh : NULL;
}

static bool drop_free(heft_residency *r)
{
    for (size_t i = 0; i < r->slot_count; i++) {
        if (r->slots[i].bytes > 0 && r->slots[i].block == HEFT__NO_BLOCK) {
            drop_slot(r, &r->slots[i]);
            return true;
        }
    }
    return false;
}

/* Give the system memory back: of a block that nobody uses, or a buffer that is free. */
static bool give_back(heft_residency *r)
{
    if (drop_free(r)) {
        return true;
    }
    const size_t victim = find_farthest(r, r->cursor);
    if (victim != HEFT__NO_BLOCK) {
        send_away(r, victim);
        (void)drop_free(r);
    }
    return victim != HEFT__NO_BLOCK;
}

/* Find memory for a block; false if what is used, coming, or sooner needed leaves none. */
static bool take_slot(heft_residency *r, size_t number)
{
    heft__block *block = &r->blocks[number];
    heft__slot *slot = find_slot(r, block->room);
    while (!slot) {
        if (!drop_free(r)) {
            const size_t victim = find_farthest(r, number);
            if (victim == HEFT__NO_BLOCK) {
                return false;
            }
            send_away(r, victim);
        }
        slot = find_slot(r, block->room);
    }
    if (slot->bytes == 0) {
        slot->bytes = block->room;
        r->held += slot->bytes;
        r->facts.peak_bytes = r->held > r->facts.peak_bytes ? r->held : r->facts.peak_bytes;
    }
    slot->block = number;
    block->slot = (size_t)(slot - r->slots);
    block->state = HEFT__BLOCK_COMING;
    return true;
}

/* ---- bringing in ------------------------------------------------------------------------------ */
/* A block that is coming: the lock is given up meanwhile. */
static heft_status bring(heft_residency *r, size_t number, heft_error *err)
{
    heft__block *block = &r->blocks[number];
    heft__slot *slot = &r->slots[block->slot]; /* nobody else's until the block is here */
    r->coming = true;
    pthread_mutex_unlock(&r->lock);
    const heft_status status = heft__block_bring(r, block, &slot->storage, err);
    pthread_mutex_lock(&r->lock);
    r->coming = false;
    if (status == HEFT_OK) {
        block->state = HEFT__BLOCK_HERE;
        set_views(r, block, true);
        *(slot->storage ? &r->facts.read_bytes : &r->facts.mapped_bytes) +=
            block->shown.brought_bytes;
    } else {
        drop_slot(r, slot);
        block->state = HEFT__BLOCK_AWAY;
        block->slot = HEFT__NO_SLOT;
    }
    pthread_cond_broadcast(&r->changed);
    return status;
}

/* The next block that is away and has room, NO_BLOCK if there is none. */
static size_t take_next(heft_residency *r)
{
    for (size_t step = 1; step < r->block_count; step++) {
        const size_t number = (r->cursor + step) % r->block_count;
        heft__block *block = &r->blocks[number];
        if (block->shown.brought_bytes > 0 && block->state == HEFT__BLOCK_AWAY) {
            return take_slot(r, number) ? number : HEFT__NO_BLOCK;
        }
    }
    return HEFT__NO_BLOCK;
}

/* Read ahead until it is told to go. A block that cannot be read stays away: who acquires it will
 * hear why. */
static void *read_ahead(void *user)
{
    heft_residency *r = user;
    pthread_mutex_lock(&r->lock);
    while (!r->quit) {
        const bool idle = !r->failed && !r->coming && r->wanting == 0;
        const size_t number = idle ? take_next(r) : HEFT__NO_BLOCK;
        if (number == HEFT__NO_BLOCK) {
            pthread_cond_wait(&r->changed, &r->lock);
        } else {
            r->failed = bring(r, number, NULL) != HEFT_OK;
        }
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* Bring a block in that is away; the lock is held, and nothing else is coming. */
static heft_status bring_now(heft_residency *r, size_t number, heft_error *err)
{
    heft__block *block = &r->blocks[number];
    heft_status status = HEFT_NOMEM;
    do { /* what nobody uses makes room where the system has none */
        if (!take_slot(r, number)) {
            return heft__add_item(
                heft__fail(err, HEFT_LIMIT,
                           "no room for %llu bytes: of a budget of %llu, acquired blocks hold %llu",
                           (unsigned long long)block->shown.brought_bytes,
                           (unsigned long long)r->budget, (unsigned long long)r->held),
                err, block->shown.module);
        }
        status = bring(r, number, err);
    } while (status == HEFT_NOMEM && give_back(r));
    r->facts.waited += status == HEFT_OK;
    return status;
}

/* Have a block here; the lock is held. */
static heft_status have(heft_residency *r, size_t number, heft_error *err)
{
    const heft__block *block = &r->blocks[number];
    heft_status status = HEFT_OK;
    const bool begun = block->state != HEFT__BLOCK_AWAY;
    r->wanting++;
    while (status == HEFT_OK && block->state != HEFT__BLOCK_HERE) {
        if (r->coming) {
            pthread_cond_wait(&r->changed, &r->lock);
        } else {
            status = bring_now(r, number, err);
        }
    }
    r->wanting--;
    r->facts.ahead += status == HEFT_OK && begun;
    return status;
}

/* ---- the interface ---------------------------------------------------------------------------- */
heft_status heft_residency_acquire(heft_residency *r, size_t number, heft_error *err)
{
    if (!r || number >= r->block_count) {
        return heft__fail(err, HEFT_INVALID_ARG, "there is no block %zu", number);
    }
    pthread_mutex_lock(&r->lock);
    heft__block *block = &r->blocks[number];
    heft_status status = heft__tell_progress(r->ctx, "bringing in",
                                             r->facts.read_bytes + r->facts.mapped_bytes, 0, err);
    if (status == HEFT_OK && block->shown.brought_bytes > 0) {
        r->cursor = number;
        r->failed = false;
        status = have(r, number, err);
    }
    if (status == HEFT_OK) {
        block->users++;
        if (!r->reading && r->facts.budget_bytes > 0) {
            r->reading = heft__thread_begin(&r->reader, read_ahead, r);
        }
    }
    pthread_cond_broadcast(&r->changed); /* the reader has a new place to go on from */
    pthread_mutex_unlock(&r->lock);
    return status;
}

void heft_residency_release(heft_residency *r, size_t number)
{
    if (r && number < r->block_count) {
        pthread_mutex_lock(&r->lock);
        if (r->blocks[number].users > 0) {
            r->blocks[number].users--;
            pthread_cond_broadcast(&r->changed);
        }
        pthread_mutex_unlock(&r->lock);
    }
}

const heft_tensor *heft_residency_tensor(heft_residency *r, size_t parameter)
{
    if (!r || parameter >= r->model->count) {
        return NULL;
    }
    pthread_mutex_lock(&r->lock);
    const bool own = r->brought_at[parameter] == SIZE_MAX;
    const bool there =
        r->views[parameter].data != NULL && (own || r->blocks[r->block_of[parameter]].users > 0);
    pthread_mutex_unlock(&r->lock);
    return there ? &r->views[parameter] : NULL;
}

heft_status heft_residency_tell(heft_residency *r, heft_residency_facts *facts, heft_error *err)
{
    pthread_mutex_lock(&r->lock);
    const heft_residency_facts now = r->facts;
    pthread_mutex_unlock(&r->lock);
    return HEFT__GIVE_SIZED(facts, &now, err);
}

size_t heft_residency_count(const heft_residency *r)
{
    return r->block_count;
}

const heft_block *heft_residency_block(const heft_residency *r, size_t i)
{
    return i < r->block_count ? &r->blocks[i].shown : NULL;
}

size_t heft_residency_find(const heft_residency *r, const char *name)
{
    const size_t length = strlen(name);
    for (size_t i = 0; i < r->block_count; i++) {
        const char *module = r->blocks[i].shown.module;
        const size_t own = strlen(module);
        if (own <= length && strncmp(name, module, own) == 0 &&
            (own == 0 || name[own] == '.' || !name[own])) {
            return i;
        }
    }
    return SIZE_MAX;
}

/* ---- making ----------------------------------------------------------------------------------- */
/* As asked for, with what two blocks' tensors take beside their bytes; else what two neighbors among the
 * blocks that are brought in need. */
static heft_status choose_budget(heft_residency *r, uint64_t asked, heft_error *err)
{
    uint64_t first = 0, before = 0, most = 0, pair = 0, spare = 0;
    for (size_t i = 0; i < r->block_count; i++) {
        const heft__block *block = &r->blocks[i];
        if (block->shown.brought_bytes == 0) {
            continue;
        }
        if (asked > 0 && block->shown.brought_bytes > asked) {
            return heft__add_item(heft__fail(err, HEFT_LIMIT,
                                             "needs %llu bytes, the budget is %llu",
                                             (unsigned long long)block->shown.brought_bytes,
                                             (unsigned long long)asked),
                                  err, block->shown.module);
        }
        const uint64_t beside = block->room - block->shown.brought_bytes;
        spare = beside > spare ? beside : spare;
        first = first ? first : block->room;
        most = block->room > most ? block->room : most;
        pair = before && before + block->room > pair ? before + block->room : pair;
        before = block->room;
        r->slot_count++;
    }
    if (r->slot_count > 2 && before + first > pair) {
        pair = before + first; /* the first comes behind the last */
    }
    r->budget = asked > 0 ? asked + 2 * spare : pair > most ? pair : most;
    r->facts.budget_bytes = r->budget;
    r->slot_count = r->slot_count < SLOTS_MOST ? r->slot_count : SLOTS_MOST;
    return HEFT_OK;
}

heft_status heft_residency_new(const heft_model *model, const heft_residency_options *options,
                               heft_residency **out, heft_error *err)
{
    if (!model || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "model or result is NULL");
    }
    heft_residency_options taken;
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft_residency *r = heft__alloc_zero(model->ctx, 1, sizeof *r);
    if (!r) {
        return heft__fail_nomem(err, sizeof *r);
    }
    r->ctx = heft__ctx_ref(model->ctx);
    r->model = model;
    heft__arena_init(&r->arena, r->ctx);
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    status = heft__blocks_make(r, err);
    if (status == HEFT_OK) {
        status = choose_budget(r, taken.budget_bytes, err);
    }
    if (status == HEFT_OK) {
        r->slots = heft__arena_array(&r->arena, r->slot_count, sizeof *r->slots);
        status = r->slots ? HEFT_OK : heft__fail_nomem(err, r->slot_count * sizeof *r->slots);
    }
    if (status != HEFT_OK) {
        r->slot_count = 0;
        heft_residency_free(r);
        return status;
    }
    for (size_t i = 0; i < r->slot_count; i++) {
        r->slots[i] = (heft__slot){.block = HEFT__NO_BLOCK};
    }
    *out = r;
    return HEFT_OK;
}

void heft_residency_free(heft_residency *r)
{
    if (!r) {
        return;
    }
    heft_ctx *ctx = r->ctx;
    pthread_mutex_lock(&r->lock);
    r->quit = true;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    if (r->reading) {
        pthread_join(r->reader, NULL);
    }
    for (size_t i = 0; i < r->slot_count; i++) {
        const size_t block = r->slots[i].block;
        if (block != HEFT__NO_BLOCK && !r->slots[i].storage) {
            heft__block_forget(r, &r->blocks[block]);
        }
        heft_storage_unref(r->slots[i].storage);
    }
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    heft__arena_fini(&r->arena);
    heft__free(ctx, r, sizeof *r);
    heft_ctx_free(ctx);
}
