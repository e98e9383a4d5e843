/* aliases.c - names that are one tensor: the same bytes of the same storage, seen in the same way. */
#include "checkpoint/checkpoint.h"

bool heft__same_view(const heft__file_tensor *left, const heft__file_tensor *right)
{
    if (left->dtype != right->dtype || left->start != right->start ||
        left->size_bytes != right->size_bytes || left->conj != right->conj ||
        left->neg != right->neg || !left->strides != !right->strides) {
        return false;
    }
    return !left->strides ||
           (heft__shape_equal(left->shape, left->rank, right->shape, right->rank) &&
            memcmp(left->strides, right->strides, left->rank * sizeof *left->strides) == 0);
}

heft__view_key heft__view_key_of(const heft__file_tensor *tensor, size_t storage)
{
    const size_t bytes = tensor->rank * sizeof *tensor->shape;
    return (heft__view_key){
        .storage = storage,
        .start = tensor->start,
        .bytes = tensor->size_bytes,
        .shape = tensor->strides ? heft__stable_hash((const char *)tensor->shape, bytes) : 0,
        .strides = tensor->strides ? heft__stable_hash((const char *)tensor->strides, bytes) : 0,
    };
}

/* How many tensors lie on each storage, and how many of them do not have one to themselves; owned,
 * NULL without memory. */
static uint32_t *count_users(const heft_checkpoint *ckpt, size_t *storages, size_t *sharing)
{
    *storages = ckpt->storage_count;
    *sharing = 0;
    uint32_t *users = heft__alloc_zero(ckpt->ctx, *storages, sizeof *users);
    for (size_t i = 0; users && i < ckpt->count; i++) {
        uint32_t before = users[ckpt->infos[i].storage]++;
        *sharing += before == 0 ? 0 : before == 1 ? 2 : 1;
    }
    return users;
}

/* Fill `result` for the tensors that share a storage; `keys` has room for them. */
static heft_status find_aliases(const heft_checkpoint *ckpt, const uint32_t *users,
                                heft__view_key *keys, size_t *result, heft_error *err)
{
    heft__map seen;
    heft_status status = HEFT_OK;
    heft__map_init(&seen, ckpt->ctx);
    for (size_t i = 0; i < ckpt->count && status == HEFT_OK; i++) {
        size_t found;
        if (users[ckpt->infos[i].storage] == 1) {
            continue;
        }
        *keys = heft__view_key_of(ckpt->entries[i], ckpt->infos[i].storage);
        if (!heft__map_put(&seen, (const char *)keys, sizeof *keys, i, &found)) {
            status = heft__fail_nomem(err, sizeof *keys);
        } else if (found != HEFT__MAP_NONE &&
                   heft__same_view(ckpt->entries[found], ckpt->entries[i])) {
            result[i] = found;
        }
        keys++;
    }
    heft__map_fini(&seen);
    return status;
}

heft_status heft__checkpoint_aliases(const heft_checkpoint *ckpt, size_t **first, heft_error *err)
{
    size_t storages = 0, sharing = 0; /* none shares in safetensors files */
    uint32_t *users = count_users(ckpt, &storages, &sharing);
    size_t *result = heft__alloc(ckpt->ctx, ckpt->count * sizeof *result);
    heft__view_key *keys = heft__alloc_zero(ckpt->ctx, sharing, sizeof *keys);
    heft_status status =
        users && result && keys ? HEFT_OK : heft__fail_nomem(err, ckpt->count * sizeof *result);
    for (size_t i = 0; i < ckpt->count && status == HEFT_OK; i++) {
        result[i] = i;
    }
    if (status == HEFT_OK && sharing > 0) {
        status = find_aliases(ckpt, users, keys, result, err);
    }
    heft__free(ckpt->ctx, users, storages * sizeof *users);
    heft__free(ckpt->ctx, keys, sharing * sizeof *keys);
    if (status == HEFT_OK) {
        *first = result;
    } else {
        heft__free(ckpt->ctx, result, ckpt->count * sizeof *result);
    }
    return status;
}
