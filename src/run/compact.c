/* compact.c - weights in memory that only products read, in 12 bits instead of 16.
 *
 * A token is bound by reading weights from memory, so a quarter less to read is a quarter less time. Nothing is
 * lost: products have the same bits. A dry run has noted how each parameter is read. A parameter is rewritten in
 * its own memory: its rows take three quarters of it, and the list of exceptions goes behind them.
 * Source: docs/running.md [7]. */
#include "run/session_state.h"

#include <stdlib.h>

enum { READ_BY_PRODUCTS = 1, READ_BY_ROWS = 2, READ_OTHERWISE = 4 };

#define ALIGNED 8 /* of what goes behind the rows */

/* ---- what reads a parameter ------------------------------------------------------------------------- */
static size_t root_of(const heft__pass *p, size_t parameter)
{
    return p->model->parameters[heft__whole_of(p->residency, parameter)].tied_to;
}

static void note(heft__pass *p, size_t parameter, size_t columns, uint8_t use)
{
    if (p->dry) {
        heft__use *seen = &p->uses[root_of(p, parameter)];
        const bool differs = seen->ways != 0 && seen->columns != columns;
        seen->columns = columns;
        seen->ways |= differs ? READ_OTHERWISE : use;
    }
}

void heft__compact_note_product(heft__pass *p, size_t parameter, uint64_t first,
                                const heft__matrix *w)
{
    const bool plain = w->dtype == HEFT_DTYPE_BF16 && !w->turned && w->stride == w->columns &&
                       w->columns > 0 && first % w->columns == 0;
    note(p, parameter, w->columns, plain ? READ_BY_PRODUCTS : READ_OTHERWISE);
}

void heft__compact_note_rows(heft__pass *p, size_t parameter, size_t columns)
{
    note(p, parameter, columns, READ_BY_ROWS);
}

void heft__compact_note_other(heft__pass *p, size_t parameter)
{
    note(p, parameter, 0, READ_OTHERWISE);
}

static bool is_wanted(const heft__pass *p, size_t root)
{
    const heft__use *use = &p->uses[root];
    return (use->ways & READ_BY_PRODUCTS) && !(use->ways & READ_OTHERWISE) &&
           use->columns % HEFT__COMPACT_BLOCK == 0 && use->columns <= UINT16_MAX &&
           p->model->parameters[root].size_bytes / sizeof(uint16_t) % use->columns == 0 &&
           p->model->parameters[root].dtype == HEFT_DTYPE_BF16 && p->kernels->compacts;
}

const heft__compact *heft__compact_of(const heft__pass *p, size_t parameter)
{
    return heft__model_compact(p->model, heft__whole_of(p->residency, parameter));
}

bool heft__compact_expected(const heft__pass *p, size_t parameter)
{
    return heft__compact_of(p, parameter) ||
           (p->expects_compact && is_wanted(p, root_of(p, parameter)));
}

/* ---- rewriting -------------------------------------------------------------------------------------- */
struct rewriting {
    const heft__pass *p;
    heft_model *model;
    size_t *roots; /* [count] parameters to be rewritten */
    size_t count;
    uint64_t total;
    _Atomic uint64_t done; /* bytes */
};

static int by_address(const void *a, const void *b)
{
    const heft_storage *x = *(heft_storage *const *)a, *y = *(heft_storage *const *)b;
    return ((uintptr_t)x > (uintptr_t)y) - ((uintptr_t)x < (uintptr_t)y);
}

/* All references of the model and of this session, by the storages' addresses. */
static void list_refs(const heft__pass *p, heft_storage **refs)
{
    const size_t count = p->model->count, all = p->residency->all;
    for (size_t i = 0; i < count; i++) { /* without what was given, which may overlap others */
        refs[i] = p->model->bindings[i].given ? NULL : p->model->bindings[i].storage;
    }
    for (size_t i = 0; i < all; i++) {
        refs[count + i] = p->residency->bound[i].storage;
    }
    qsort(refs, count + all, sizeof *refs, by_address);
}

/* The storage is a block of the model's own that nothing else refers to: neither a tensor that somebody has, nor
 * another session. */
static bool is_own(heft_storage *const *refs, size_t count, const heft_storage *storage)
{
    heft_storage *const *found =
        storage ? bsearch(&storage, refs, count, sizeof *refs, by_address) : NULL;
    if (!found) {
        return false;
    }
    size_t first = (size_t)(found - refs), end = first;
    while (first > 0 && refs[first - 1] == storage) {
        first--;
    }
    while (end < count && refs[end] == storage) {
        end++;
    }
    return heft__storage_is_own(storage, end - first);
}

/* Put what belongs to the rows behind them; NULL: there is no room. */
static heft__compact *place(uint8_t *data, uint64_t bytes, size_t rows, size_t columns,
                            size_t exceptions)
{
    const uint64_t used = (uint64_t)rows * columns / 2 * 3;
    const uintptr_t start =
        ((uintptr_t)(data + used) + ALIGNED - 1) / ALIGNED * ALIGNED - (uintptr_t)data;
    const uint64_t needed =
        sizeof(heft__compact) + ((uint64_t)rows + 1 + exceptions) * sizeof(uint32_t);
    return start <= bytes && needed <= bytes - start ? (heft__compact *)(void *)(data + start)
                                                     : NULL;
}

/* Rewrite w[rows][columns]; `first` has room for rows + 1 numbers, `room` for a row. */
static heft_status rewrite(struct rewriting *work, size_t root, size_t rows, size_t columns,
                           uint32_t *first, uint16_t *room, heft_error *err)
{
    const heft__kernels *k = work->p->kernels;
    const heft__binding *binding = &work->model->bindings[root];
    const uint64_t bytes = work->model->parameters[root].size_bytes;
    uint8_t *data = (uint8_t *)heft_storage_data(binding->storage) + binding->byte_offset;
    heft_ctx *ctx = work->p->ctx;
    struct heft__compact_codes codes = {0};
    if ((uintptr_t)data % sizeof(uint16_t) != 0 ||
        !k->compact_survey((const uint16_t *)(const void *)data, rows, columns, &codes, first)) {
        return HEFT_OK;
    }
    const size_t count = first[rows];
    heft__compact *compact = place(data, bytes, rows, columns, count);
    uint32_t *exceptions = heft__alloc(ctx, (count + 1) * sizeof *exceptions);
    if (!exceptions) {
        return heft__fail_nomem(err, (count + 1) * sizeof *exceptions);
    }
    if (compact) {
        k->compact_rows(data, rows, columns, &codes, first, exceptions, room);
        uint32_t *numbers = (uint32_t *)(void *)(compact + 1);
        memcpy(numbers, first, (rows + 1) * sizeof *numbers);
        if (count > 0) {
            memcpy(numbers + rows + 1, exceptions, count * sizeof *numbers);
        }
        *compact = (heft__compact){.rows = data,
                                   .first = numbers,
                                   .exceptions = numbers + rows + 1,
                                   .row_count = rows,
                                   .columns = columns};
        k->compact_table(&codes, compact->high);
        work->model->compact[root] = compact;
    }
    heft__free(ctx, exceptions, (count + 1) * sizeof *exceptions);
    return HEFT_OK;
}

static heft_status rewrite_item(void *user, size_t item, heft_error *err)
{
    struct rewriting *work = user;
    const size_t root = work->roots[item], columns = work->p->uses[root].columns;
    const uint64_t elems = work->model->parameters[root].size_bytes / sizeof(uint16_t);
    const size_t rows = (size_t)(elems / columns);
    heft_ctx *ctx = work->p->ctx;
    heft_status status =
        heft__tell_progress(ctx, "compacting", atomic_load(&work->done), work->total, err);
    if (status != HEFT_OK) {
        return status;
    }
    uint32_t *first = heft__alloc(ctx, (rows + 1) * sizeof *first);
    uint16_t *room = heft__alloc(ctx, columns * sizeof *room);
    status = first && room ? rewrite(work, root, rows, columns, first, room, err)
                           : heft__fail_nomem(err, (rows + 1) * sizeof *first);
    heft__free(ctx, first, (rows + 1) * sizeof *first);
    heft__free(ctx, room, columns * sizeof *room);
    atomic_fetch_add(&work->done, work->model->parameters[root].size_bytes);
    return heft__add_item(status, err, work->model->parameters[root].name);
}

static heft_status list_roots(struct rewriting *work, heft_error *err)
{
    const heft_model *model = work->model;
    const size_t count = model->count + work->p->residency->all;
    heft_storage **refs = heft__alloc(model->ctx, (count + 1) * sizeof *refs);
    const heft_storage *last = NULL; /* a file's parameters may share one */
    bool own = false;
    if (!refs) {
        return heft__fail_nomem(err, (count + 1) * sizeof *refs);
    }
    list_refs(work->p, refs);
    for (size_t i = 0; i < model->count; i++) {
        const heft_storage *storage = model->bindings[i].storage;
        if (model->bindings[i].given || model->parameters[i].tied_to != i ||
            !is_wanted(work->p, i) || heft__model_compact(model, i)) {
            continue;
        }
        own = storage == last ? own : is_own(refs, count, storage);
        last = storage;
        if (own) {
            work->roots[work->count++] = i;
            work->total += model->parameters[i].size_bytes;
        }
    }
    heft__free(model->ctx, refs, (count + 1) * sizeof *refs);
    return HEFT_OK;
}

uint64_t heft__compact_bytes(const heft_model *model)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < model->count; i++) {
        const bool counts = model->parameters[i].tied_to == i && heft__model_compact(model, i);
        bytes += counts ? model->parameters[i].size_bytes : 0;
    }
    return bytes;
}

heft_status heft_session_compact(heft_session *session, heft_model *model, heft_error *err)
{
    if (!session || !model || session->model != model) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "session or model is NULL, or the session is another model's");
    }
    struct rewriting work = {.p = session->pass, .model = model};
    work.roots = heft__alloc(session->ctx, (model->count + 1) * sizeof *work.roots);
    if (!work.roots) {
        return heft__fail_nomem(err, (model->count + 1) * sizeof *work.roots);
    }
    heft_status status = list_roots(&work, err);
    if (status == HEFT_OK && work.count > 0 && !model->compact) {
        model->compact = heft__alloc_zero(model->ctx, model->count, sizeof *model->compact);
        status = model->compact ? HEFT_OK : heft__fail_nomem(err, model->count * sizeof(void *));
    }
    if (status == HEFT_OK) {
        status = heft__parallel(session->ctx, work.count, rewrite_item, &work, err);
    }
    for (size_t i = 0; model->compact && i < model->count; i++) {
        model->compact[i] = model->compact[model->parameters[i].tied_to];
    }
    heft__free(session->ctx, work.roots, (model->count + 1) * sizeof *work.roots);
    session->rates.known = false; /* predictions measure again */
    return status;
}
