/* cache.c - keys and values that sequences keep for the tokens to come.
 *
 *   keys   [kv heads][capacity][key width]      of each attention, in the dtype of the model
 *   values [kv heads][capacity][value width]
 *
 * A layer with a window keeps a ring: the tokens of the window and of one pass. Which token is where is
 * told by positions, not by order. The memory is taken at once; the system backs it as it is used. */
#include "run/pass_state.h"

#define ALIGNMENT ((size_t)64)

static size_t capacity_of(const heft__slot *slot, size_t capacity, size_t chunk, size_t encoded)
{
    const size_t all = slot->cross ? encoded : capacity;
    return slot->window && slot->window < all && chunk < all - slot->window ? slot->window + chunk
                                                                            : all;
}

/* Bytes of keys, values and positions of one slot; false if there are too many. */
static bool slot_bytes(const heft__slot *slot, heft_dtype dtype, size_t tokens, uint64_t bytes[3])
{
    const uint64_t size = heft_dtype_bits(dtype) / 8;
    bool good = true;
    for (int i = 0; i < 3; i++) {
        const uint64_t width = i == 0 ? slot->key_width : i == 1 ? slot->value_width : 1;
        good = good && heft__mul_u64(tokens, i < 2 ? slot->kv_heads * width : 1, &bytes[i]) &&
               heft__mul_u64(bytes[i], i < 2 ? size : sizeof(int32_t), &bytes[i]) &&
               bytes[i] < (uint64_t)SIZE_MAX / 4;
        bytes[i] = (bytes[i] + ALIGNMENT - 1) & ~(uint64_t)(ALIGNMENT - 1);
    }
    return good;
}

bool heft__sequence_bytes(const heft__slot *slots, size_t slot_count, heft_dtype dtype,
                          size_t capacity, size_t chunk, size_t encoded, size_t *bytes)
{
    uint64_t sum = ALIGNMENT, parts[3] = {0};
    for (size_t i = 0; i < slot_count; i++) {
        const size_t tokens = capacity_of(&slots[i], capacity, chunk, encoded);
        if (!slot_bytes(&slots[i], dtype, tokens, parts) ||
            !heft__add_u64(sum, parts[0] + parts[1] + parts[2], &sum)) {
            return false;
        }
    }
    return heft__to_size(sum, bytes);
}

heft_status heft__sequence_new(heft_ctx *ctx, const heft__slot *slots, size_t slot_count,
                               heft_dtype dtype, size_t capacity, size_t chunk, size_t encoded,
                               heft__sequence **out, heft_error *err)
{
    size_t bytes = 0;
    if (!heft__sequence_bytes(slots, slot_count, dtype, capacity, chunk, encoded, &bytes)) {
        return heft__fail(err, HEFT_LIMIT, "a cache for %zu tokens is larger than memory can be",
                          capacity);
    }
    heft__sequence *sequence = heft__alloc_zero(ctx, 1, sizeof *sequence);
    if (!sequence) {
        return heft__fail_nomem(err, sizeof *sequence);
    }
    *sequence = (heft__sequence){
        .ctx = heft__ctx_ref(ctx), .slot_count = slot_count, .bytes = bytes, .capacity = capacity};
    sequence->kept = heft__alloc_zero(ctx, slot_count ? slot_count : 1, sizeof *sequence->kept);
    sequence->memory = heft__alloc(ctx, bytes);
    if (!sequence->kept || !sequence->memory) {
        heft__sequence_free(sequence);
        return heft__fail_nomem(err, bytes);
    }
    uint8_t *at = (uint8_t *)(((uintptr_t)sequence->memory + ALIGNMENT - 1) & ~(ALIGNMENT - 1));
    for (size_t i = 0; i < slot_count; i++) {
        heft__kept *kept = &sequence->kept[i];
        uint64_t parts[3] = {0};
        kept->capacity = capacity_of(&slots[i], capacity, chunk, encoded);
        (void)slot_bytes(&slots[i], dtype, kept->capacity, parts);
        kept->keys = at;
        kept->values = at + parts[0];
        kept->at = (int32_t *)(void *)(at + parts[0] + parts[1]);
        kept->page = (heft__key_page){kept->keys, slots[i].value_width ? kept->values : kept->keys,
                                      kept->at};
        at += parts[0] + parts[1] + parts[2];
    }
    *out = sequence;
    return HEFT_OK;
}

void heft__sequence_free(heft__sequence *sequence)
{
    if (!sequence) {
        return;
    }
    heft_ctx *ctx = sequence->ctx;
    heft__free(ctx, sequence->encoded,
               sequence->encoded_count * sequence->encoded_width * sizeof(float));
    heft__free(ctx, sequence->encoded_at, sequence->encoded_count * sizeof(int32_t));
    heft__free(ctx, sequence->encoded_ids, sequence->encoded_count * sizeof(int32_t));
    heft__free(ctx, sequence->kept,
               (sequence->slot_count ? sequence->slot_count : 1) * sizeof *sequence->kept);
    heft__free(ctx, sequence->memory, sequence->bytes);
    heft__free(ctx, sequence, sizeof *sequence);
    heft_ctx_free(ctx);
}

void heft__kept_append(heft__kept *kept, const heft__slot *slot, heft_dtype dtype,
                       const heft__kernels *kernels, const float *k, const float *v,
                       const int32_t *at, size_t count)
{
    const size_t size = heft_dtype_bits(dtype) / 8, capacity = kept->capacity;
    const size_t kw = slot->key_width, vw = slot->value_width, heads = slot->kv_heads;
    for (size_t i = 0; i < count; i++) {
        const size_t place = kept->next;
        for (size_t g = 0; g < heads; g++) {
            kernels->narrow(kept->keys + (g * capacity + place) * kw * size, dtype,
                            k + (i * heads + g) * kw, kw);
            if (vw) {
                kernels->narrow(kept->values + (g * capacity + place) * vw * size, dtype,
                                v + (i * heads + g) * vw, vw);
            }
        }
        kept->at[place] = at[i];
        kept->next = place + 1 == capacity ? 0 : place + 1;
        kept->count += kept->count < capacity;
    }
}

heft__keys heft__kept_keys(const heft__kept *kept, const heft__slot *slot, heft_dtype dtype)
{
    const size_t vw = slot->value_width;
    return (heft__keys){.pages = &kept->page,
                        .page_keys = kept->capacity,
                        .dtype = dtype,
                        .key_head = kept->capacity * slot->key_width,
                        .value_head = kept->capacity * (vw ? vw : slot->key_width),
                        .key_stride = slot->key_width,
                        .value_stride = vw ? vw : slot->key_width,
                        .count = kept->count};
}

/* ---- a sequence that continues another ------------------------------------------------------------ */
/* Keys of the tokens that are there: what was never written is not copied. */
static void copy_heads(uint8_t *to, const uint8_t *from, size_t heads, size_t stride, size_t bytes)
{
    for (size_t g = 0; g < heads; g++) {
        memcpy(to + g * stride, from + g * stride, bytes);
    }
}

heft_status heft__sequence_copy(heft__sequence *to, const heft__sequence *from,
                                const heft__pass *pass, heft_error *err)
{
    const size_t size = heft_dtype_bits(pass->cache_dtype) / 8;
    for (size_t i = 0; i < from->slot_count; i++) {
        const heft__slot *slot = &pass->slots[i];
        const heft__kept *kept = &from->kept[i];
        heft__kept *copy = &to->kept[i];
        const size_t key = slot->key_width * size, value = slot->value_width * size;
        copy_heads(copy->keys, kept->keys, slot->kv_heads, kept->capacity * key, kept->count * key);
        copy_heads(copy->values, kept->values, slot->kv_heads, kept->capacity * value,
                   kept->count * value);
        memcpy(copy->at, kept->at, kept->count * sizeof *copy->at);
        copy->count = kept->count;
        copy->next = kept->next;
    }
    to->length = from->length;
    to->reach = from->reach;
    if (from->encoded) {
        const size_t bytes = from->encoded_count * from->encoded_width * sizeof(float);
        to->encoded = heft__alloc(to->ctx, bytes);
        to->encoded_at = heft__alloc(to->ctx, from->encoded_count * sizeof(int32_t));
        to->encoded_ids = heft__alloc(to->ctx, from->encoded_count * sizeof(int32_t));
        to->encoded_count = from->encoded_count;
        to->encoded_width = from->encoded_width;
        if (!to->encoded || !to->encoded_at || !to->encoded_ids) {
            return heft__fail_nomem(err, bytes);
        }
        memcpy(to->encoded, from->encoded, bytes);
        memcpy(to->encoded_at, from->encoded_at, from->encoded_count * sizeof(int32_t));
        memcpy(to->encoded_ids, from->encoded_ids, from->encoded_count * sizeof(int32_t));
    }
    return HEFT_OK;
}
