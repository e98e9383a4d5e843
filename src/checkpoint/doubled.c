/* doubled.c - one name in several files of a checkpoint: which tensor counts.
 *
 * The index's file wins, and copies elsewhere are stale: whoever split the checkpoint again listed the current ones. Where
 * no index lists the name in a file that has it, copies of equal values are one tensor, and others are refused: nothing
 * tells which of them is current. Bytes are read only for that.
 * Source: docs/formats/shard_index.md [3]. */
#include "checkpoint/checkpoint.h"

#define SCRATCH_BYTES ((size_t)256 << 10)

heft_status heft__file_tensors_equal(heft_ctx *ctx, const heft__file *const files[2],
                                     const heft__file_tensor *const tensors[2], bool *equal,
                                     heft_error *err)
{
    const uint64_t size = tensors[0]->size_bytes;
    heft__tensor_reader *readers[2] = {NULL, NULL};
    heft_status status = HEFT_OK;
    uint8_t *scratch = heft__alloc(ctx, 2 * SCRATCH_BYTES);
    if (!scratch) {
        return heft__fail_nomem(err, 2 * SCRATCH_BYTES);
    }
    *equal = tensors[0]->dtype == tensors[1]->dtype && size == tensors[1]->size_bytes;
    for (size_t k = 0; k < 2 && *equal && status == HEFT_OK; k++) {
        status = heft__tensor_reader_new(ctx, files[k], tensors[k], &readers[k], err);
    }
    for (uint64_t done = 0; done < size && *equal && status == HEFT_OK;) {
        const size_t wanted = size - done < SCRATCH_BYTES ? (size_t)(size - done) : SCRATCH_BYTES;
        for (size_t k = 0; k < 2 && status == HEFT_OK; k++) {
            status = heft__tensor_reader_fill(readers[k], scratch + k * SCRATCH_BYTES, wanted, err);
        }
        *equal = status == HEFT_OK && memcmp(scratch, scratch + SCRATCH_BYTES, wanted) == 0;
        done += wanted;
    }
    heft__tensor_reader_free(readers[0]);
    heft__tensor_reader_free(readers[1]);
    heft__free(ctx, scratch, 2 * SCRATCH_BYTES);
    return status;
}

/* Calls `each` for every tensor whose name is in several files. */
typedef heft_status (*visit)(heft_checkpoint *ckpt, size_t at, size_t f,
                             const heft__file_tensor *tensor, void *user, heft_error *err);

static heft_status visit_doubled(heft_checkpoint *ckpt, visit each, void *user, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t f = 0; f < ckpt->file_count && status == HEFT_OK; f++) {
        const heft__file *file = ckpt->files[f].file;
        for (size_t i = 0; file && i < file->tensor_count && status == HEFT_OK; i++) {
            const heft__file_tensor *tensor = &file->tensors[i];
            const size_t at = heft__map_get(&ckpt->names, tensor->name, strlen(tensor->name));
            if (ckpt->doubled[at]) {
                status = each(ckpt, at, f, tensor, user, err);
            }
        }
    }
    return status;
}

/* ---- what the index says ---------------------------------------------------------------------- */
static heft_status take_listed(heft_checkpoint *ckpt, size_t at, size_t f,
                               const heft__file_tensor *tensor, void *user, heft_error *err)
{
    const size_t *listed = user;
    (void)err;
    if (listed[at] == f) {
        heft__checkpoint_place(ckpt, at, f, tensor);
    }
    return HEFT_OK;
}

/* The other copies, where the listed one was there. */
static heft_status find_stale(heft_checkpoint *ckpt, size_t at, size_t f,
                              const heft__file_tensor *tensor, void *user, heft_error *err)
{
    const size_t *listed = user, used = ckpt->infos[at].file_index;
    const heft__finding finding = {.kind = "duplicate_tensor",
                                   .severity = HEFT__DOUBT,
                                   .file = ckpt->files[f].info.name,
                                   .tensor = tensor->name,
                                   .path = ckpt->files[f].info.path,
                                   .offset = tensor->item_offset};
    return listed[at] != used || used == f
               ? HEFT_OK
               : heft__find(&ckpt->findings, &finding, err,
                            "a stale copy: the index lists it in '%.100s', which is used",
                            ckpt->infos[at].file);
}

heft_status heft__settle_doubled(heft_checkpoint *ckpt, heft_error *err)
{
    const heft__index *index = &ckpt->index;
    if (!ckpt->doubled || index->entry_count == 0) {
        return HEFT_OK;
    }
    size_t *listed = heft__alloc(ckpt->ctx, ckpt->count * sizeof *listed);
    heft_status status = listed ? HEFT_OK : heft__fail_nomem(err, ckpt->count * sizeof *listed);
    for (size_t i = 0; i < ckpt->count && listed; i++) {
        listed[i] = SIZE_MAX;
    }
    for (size_t i = 0; i < index->entry_count && listed; i++) {
        const char *name = index->entries[i].name;
        const size_t at = heft__map_get(&ckpt->names, name, strlen(name));
        if (at != HEFT__MAP_NONE) {
            listed[at] = index->entries[i].file;
        }
    }
    if (status == HEFT_OK) {
        status = visit_doubled(ckpt, take_listed, listed, err);
    }
    if (status == HEFT_OK) {
        status = visit_doubled(ckpt, find_stale, listed, err);
    }
    for (size_t i = 0; i < ckpt->count && listed; i++) {
        ckpt->doubled[i] = ckpt->doubled[i] && listed[i] != ckpt->infos[i].file_index;
    }
    heft__free(ckpt->ctx, listed, ckpt->count * sizeof *listed);
    return status;
}

/* ---- what the bytes say ----------------------------------------------------------------------- */
/* One copy against the one that is used. *user: bytes that may still be read. */
static heft_status compare_copy(heft_checkpoint *ckpt, size_t at, size_t f,
                                const heft__file_tensor *tensor, void *user, heft_error *err)
{
    const size_t used = ckpt->infos[at].file_index;
    const heft__file_tensor *const tensors[2] = {ckpt->entries[at], tensor};
    const heft__file *const files[2] = {ckpt->files[used].file, ckpt->files[f].file};
    uint64_t *left = user;
    heft_error why = {0};
    heft__finding finding = {.kind = "duplicate_tensor",
                             .severity = HEFT__FAULT,
                             .status = HEFT_FORMAT,
                             .file = ckpt->files[f].info.name,
                             .tensor = tensor->name,
                             .path = ckpt->files[f].info.path,
                             .offset = tensor->item_offset};
    bool equal = false;
    if (used == f) {
        return HEFT_OK;
    }
    if (tensor->dtype != tensors[0]->dtype ||
        !heft__shape_equal(tensor->shape, tensor->rank, tensors[0]->shape, tensors[0]->rank)) {
        return heft__find(&ckpt->findings, &finding, err,
                          "is also in '%.100s' with another shape or dtype, and no index says "
                          "which one is current",
                          ckpt->infos[at].file);
    }
    if (tensor->size_bytes > *left) {
        finding.status = HEFT_LIMIT;
        return heft__find(&ckpt->findings, &finding, err,
                          "is also in '%.100s', and the copies are too many to be compared",
                          ckpt->infos[at].file);
    }
    *left -= tensor->size_bytes;
    if (heft__file_tensors_equal(ckpt->ctx, files, tensors, &equal, &why) != HEFT_OK) {
        heft__add_item(why.status, &why, tensor->name);
        return heft__find_failure(&ckpt->findings, "unreadable", finding.file, &why, err);
    }
    finding.severity = equal ? HEFT__NOTE : HEFT__FAULT;
    return equal ? heft__find(&ckpt->findings, &finding, err,
                              "is also in '%.100s', with equal values", ckpt->infos[at].file)
                 : heft__find(&ckpt->findings, &finding, err,
                              "is also in '%.100s' with other values, and no index says which one "
                              "is current",
                              ckpt->infos[at].file);
}

heft_status heft__compare_doubled(heft_checkpoint *ckpt, heft_error *err)
{
    uint64_t left = heft__checkpoint_allowance(ckpt, heft__limits(ckpt->ctx)->expanded_bytes);
    return ckpt->doubled && !ckpt->expanded ? visit_doubled(ckpt, compare_copy, &left, err)
                                            : HEFT_OK;
}
