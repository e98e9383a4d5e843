/* text_work.c - what a text is held in on its way: two texts and two lists of pieces, one of each that is there
 * and one that the step at work makes. */
#include "text/tokenizer.h"

void heft__work_init(heft__text_work *work, heft_ctx *ctx, size_t text_bytes)
{
    *work = (heft__text_work){.ctx = ctx};
    heft__buffer *const buffers[] = {&work->text, &work->other, &work->normal[0], &work->normal[1],
                                     &work->codes};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        heft__buffer_init(buffers[i], ctx);
    }
    heft__searcher_init(&work->searcher, ctx, text_bytes);
    const uint64_t limit = heft__add_most(
        (uint64_t)16 << 20, text_bytes < SIZE_MAX / 64 ? (uint64_t)text_bytes * 64 : UINT64_MAX);
    work->text_limit = limit < SIZE_MAX / 2 ? (size_t)limit : SIZE_MAX / 2;
}

void heft__work_fini(heft__text_work *work)
{
    heft__buffer_fini(&work->text);
    heft__buffer_fini(&work->other);
    heft__buffer_fini(&work->normal[0]);
    heft__buffer_fini(&work->normal[1]);
    heft__buffer_fini(&work->codes);
    heft__searcher_fini(&work->searcher);
    heft__free(work->ctx, work->pieces.list, work->pieces.cap * sizeof *work->pieces.list);
    heft__free(work->ctx, work->next.list, work->next.cap * sizeof *work->next.list);
}

void heft__add_piece(heft__text_work *work, heft__pieces *pieces, heft__piece piece)
{
    if (piece.start == piece.end && piece.id == HEFT__NO_ID) {
        return; /* an empty piece is dropped wherever it comes up */
    }
    if (!heft__array_reserve(work->ctx, (void **)&pieces->list, pieces->count, &pieces->cap,
                             sizeof *pieces->list)) {
        work->failed = true;
        return;
    }
    pieces->list[pieces->count++] = piece;
}

void heft__work_turn_pieces(heft__text_work *work)
{
    const heft__pieces there = work->pieces;
    work->pieces = work->next;
    work->next = there;
    work->next.count = 0;
}

void heft__work_turn_text(heft__text_work *work)
{
    const heft__buffer there = work->text;
    work->text = work->other;
    work->other = there;
    work->other.size = 0;
}

heft_status heft__work_check(const heft__text_work *work, const heft__buffer *text, heft_error *err)
{
    if (work->failed) {
        return heft__fail_nomem(err, work->next.count * sizeof *work->next.list);
    }
    heft_status status = heft__buffer_check(text, err);
    if (status == HEFT_OK && text->size > work->text_limit) {
        return heft__fail(err, HEFT_LIMIT, "the tokenizer makes the text longer than %zu bytes",
                          work->text_limit);
    }
    return status;
}

void heft__ids_add(heft__ids *ids, uint32_t id)
{
    if (!heft__array_reserve(ids->ctx, (void **)&ids->list, ids->count, &ids->cap,
                             sizeof *ids->list)) {
        ids->failed = true;
        return;
    }
    ids->list[ids->count++] = id;
}

void heft__ids_fini(heft__ids *ids)
{
    heft__free(ids->ctx, ids->list, ids->cap * sizeof *ids->list);
    ids->list = NULL;
    ids->count = ids->cap = 0;
}
