/* model_encode.c - all pieces of a text through the model.
 *
 * A text repeats its words, so the ids of the last pieces are remembered for the length of the call: a slot
 * for each hash says where the piece was and where its ids are among those already made. */
#include "text/tokenizer.h"

#define SLOTS 16384u       /* a power of two */
#define PIECES_FEW 64u     /* nothing is remembered for so few */
#define PIECE_LONG_MAX 256 /* longer pieces are not remembered */

struct slot {
    size_t start;    /* of the piece */
    uint32_t length; /* 0: free */
    uint32_t hash;   /* the half that is not the place */
    size_t ids;      /* where its ids begin */
    uint32_t ids_count;
};

void heft__model_scratch_fini(heft__model_scratch *scratch)
{
    heft__buffer_fini(&scratch->a);
    heft__buffer_fini(&scratch->b);
    heft__buffer_fini(&scratch->c);
}

static heft_status encode_piece(const heft__token_model *model, heft__model_scratch *scratch,
                                heft__string piece, heft__ids *out, heft_error *err)
{
    switch (model->kind) {
    case HEFT__MODEL_BPE:
        return heft__bpe_encode(model, scratch, piece, out, err);
    case HEFT__MODEL_WORD_PIECE:
    case HEFT__MODEL_WORD_LEVEL:
        return heft__word_piece_encode(model, scratch, piece, out, err);
    case HEFT__MODEL_UNIGRAM:
        return heft__unigram_encode(model, scratch, piece, out, err);
    }
    return HEFT_OK;
}

static heft_status encode_known(const heft__token_model *model, heft__model_scratch *scratch,
                                const heft__text_work *work, const heft__piece *piece,
                                struct slot *slots, heft__ids *out, heft_error *err)
{
    const char *base = (const char *)work->text.data;
    const heft__string text = {base + piece->start, piece->end - piece->start};
    if (!slots || text.length > PIECE_LONG_MAX) {
        return encode_piece(model, scratch, text, out, err);
    }
    const uint64_t hash = heft__stable_hash(text.text, text.length);
    struct slot *slot = &slots[hash & (SLOTS - 1)];
    if (slot->length == text.length && slot->hash == (uint32_t)(hash >> 32) &&
        memcmp(base + slot->start, text.text, text.length) == 0) {
        for (size_t i = 0; i < slot->ids_count; i++) {
            heft__ids_add(out, out->list[slot->ids + i]);
        }
        return HEFT_OK;
    }
    const size_t begun = out->count;
    heft_status status = encode_piece(model, scratch, text, out, err);
    if (status == HEFT_OK && !out->failed) {
        *slot = (struct slot){piece->start, (uint32_t)text.length, (uint32_t)(hash >> 32), begun,
                              (uint32_t)(out->count - begun)};
    }
    return status;
}

heft_status heft__token_model_encode(const heft__token_model *model, heft__text_work *work,
                                     heft__ids *out, heft_error *err)
{
    heft__model_scratch scratch = {.ctx = work->ctx};
    heft__buffer_init(&scratch.a, work->ctx);
    heft__buffer_init(&scratch.b, work->ctx);
    heft__buffer_init(&scratch.c, work->ctx);
    struct slot *slots = NULL; /* without memory for them it is only slower */
    if (work->pieces.count > PIECES_FEW) {
        slots = heft__alloc_zero(work->ctx, SLOTS, sizeof *slots);
    }
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < work->pieces.count && status == HEFT_OK; i++) {
        const heft__piece *piece = &work->pieces.list[i];
        if (piece->id != HEFT__NO_ID) {
            heft__ids_add(out, piece->id);
        } else {
            status = encode_known(model, &scratch, work, piece, slots, out, err);
        }
        if (out->failed) {
            status = heft__fail_nomem(err, out->count * sizeof *out->list);
        }
    }
    heft__free(work->ctx, slots, SLOTS * sizeof *slots);
    heft__model_scratch_fini(&scratch);
    return status;
}
