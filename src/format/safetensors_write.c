/* safetensors_write.c - writing a .safetensors file, byte for byte as the safetensors library does.
 *
 * Tensors lie in the order of their dtype's rank, highest first, then of their names as bytes; the
 * header lists them in that order without white space, metadata first, and is padded with spaces to
 * a multiple of 8. Metadata goes out sorted by key; that library's order of two or more pairs
 * is random.
 * Source: docs/formats/safetensors.md [4]. */
#include "format/safetensors.h"

#include <stdlib.h>

struct plan {
    heft__layout layout;            /* first */
    const heft__out_tensor **order; /* [count] as they lie in the file */
    size_t count;
    heft__buffer header; /* with its length in front and its padding */
    uint64_t data_bytes;
};

static int by_rank_then_name(const void *left, const void *right)
{
    const heft__out_tensor *a = *(const heft__out_tensor *const *)left;
    const heft__out_tensor *b = *(const heft__out_tensor *const *)right;
    int a_rank = heft__dtype_safetensors_rank(a->dtype),
        b_rank = heft__dtype_safetensors_rank(b->dtype);
    return a_rank != b_rank ? b_rank - a_rank : strcmp(a->name, b->name);
}

static int by_storage(const void *left, const void *right)
{
    const heft__out_tensor *a = *(const heft__out_tensor *const *)left;
    const heft__out_tensor *b = *(const heft__out_tensor *const *)right;
    return a->storage < b->storage ? -1 : a->storage > b->storage;
}

heft_status heft__safetensors_check(const heft__out_tensor *tensor, heft_error *err)
{
    heft_status status = HEFT_OK;
    uint64_t bytes;
    if (strcmp(tensor->name, "__metadata__") == 0) {
        status = heft__fail(err, HEFT_INVALID_ARG,
                            "a safetensors file cannot hold a tensor with this name");
    } else if (heft__dtype_safetensors_rank(tensor->dtype) < 0) {
        status = heft__fail(err, HEFT_INVALID_ARG, "a safetensors file cannot hold %s",
                            heft_dtype_name(tensor->dtype));
    } else if (!heft__shape_bytes(tensor->dtype, tensor->shape, tensor->rank, &bytes) ||
               bytes != tensor->size_bytes) {
        status = heft__fail(err, HEFT_INVALID_ARG, "size in bytes does not match the shape");
    } else {
        const size_t length = strlen(tensor->name);
        if (heft__utf8_invalid_at((const uint8_t *)tensor->name, length) != length) {
            status = heft__fail(err, HEFT_INVALID_ARG, "the name is not valid UTF-8");
        }
    }
    return heft__add_item(status, err, tensor->name);
}

/* Two names on one storage would be written as two tensors; the caller is to drop one. */
static heft_status check_sharing(const heft__out_tensor **order, size_t count, heft_error *err)
{
    if (count) {
        qsort(order, count, sizeof *order, by_storage);
    }
    for (size_t i = 1; i < count; i++) {
        if (order[i]->storage == order[i - 1]->storage) {
            heft_status status = heft__fail(err, HEFT_INVALID_ARG, "shares its bytes with '%.100s'",
                                            order[i - 1]->name);
            return heft__add_item(status, err, order[i]->name);
        }
    }
    return HEFT_OK;
}

static int by_key(const void *left, const void *right)
{
    const heft__text_pair *a = left, *b = right;
    const size_t least = a->key_length < b->key_length ? a->key_length : b->key_length;
    const int order = memcmp(a->key, b->key, least);
    return order ? order : (a->key_length > b->key_length) - (a->key_length < b->key_length);
}

static heft_status put_metadata(heft__buffer *out, const heft__text_pair *metadata, size_t count,
                                heft_error *err)
{
    heft__text_pair *sorted = heft__alloc_zero(out->ctx, count, sizeof *sorted);
    if (!sorted) {
        return heft__fail_nomem(err, count * sizeof *sorted);
    }
    memcpy(sorted, metadata, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_key);
    heft__buffer_text(out, "\"__metadata__\":{");
    for (size_t i = 0; i < count; i++) {
        heft__buffer_text(out, i ? "," : "");
        heft__json_write_string(out, sorted[i].key, sorted[i].key_length, false);
        heft__buffer_byte(out, ':');
        heft__json_write_string(out, sorted[i].value, sorted[i].value_length, false);
    }
    heft__buffer_byte(out, '}');
    heft__free(out->ctx, sorted, count * sizeof *sorted);
    return HEFT_OK;
}

static void put_entry(heft__buffer *out, const heft__out_tensor *tensor, uint64_t begin)
{
    heft__json_write_string(out, tensor->name, strlen(tensor->name), false);
    heft__buffer_format(out, ":{\"dtype\":\"%s\",\"shape\":[",
                        heft_dtype_safetensors_name(tensor->dtype));
    for (uint32_t d = 0; d < tensor->rank; d++) {
        heft__buffer_format(out, "%s%llu", d ? "," : "", (unsigned long long)tensor->shape[d]);
    }
    heft__buffer_format(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
                        (unsigned long long)(begin + tensor->size_bytes));
}

static heft_status put_header(struct plan *plan, const heft__out_file *file, heft_error *err)
{
    heft__buffer *out = &plan->header;
    heft_status status = HEFT_OK;
    heft__buffer_append(out, (const uint8_t[8]){0}, 8); /* the length, filled in below */
    heft__buffer_byte(out, '{');
    if (file->metadata_count) {
        status = put_metadata(out, file->metadata, file->metadata_count, err);
    }
    for (size_t i = 0; i < plan->count && status == HEFT_OK; i++) {
        if (i > 0 || file->metadata_count) {
            heft__buffer_byte(out, ',');
        }
        put_entry(out, plan->order[i], plan->data_bytes);
        if (!heft__add_u64(plan->data_bytes, plan->order[i]->size_bytes, &plan->data_bytes)) {
            status = heft__fail(err, HEFT_LIMIT, "the tensors exceed 2^64 bytes");
        }
    }
    heft__buffer_byte(out, '}');
    while (out->size % 8 && !out->failed) {
        heft__buffer_byte(out, ' ');
    }
    if (status == HEFT_OK) {
        status = heft__buffer_check(out, err);
    }
    if (status == HEFT_OK) {
        uint64_t length = out->size - 8, limit = heft__limits(out->ctx)->header_bytes;
        if (length > limit) {
            return heft__fail(err, HEFT_LIMIT,
                              "header has %llu bytes, the limit is %llu (limit header_bytes)",
                              (unsigned long long)length, (unsigned long long)limit);
        }
        heft__put_le64(out->data, length);
    }
    return status;
}

static heft_status order_tensors(struct plan *plan, const heft__out_file *file, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < plan->count && status == HEFT_OK; i++) {
        plan->order[i] = &file->tensors[i];
        status = heft__safetensors_check(&file->tensors[i], err);
    }
    if (status == HEFT_OK) {
        status = check_sharing(plan->order, plan->count, err);
    }
    if (status != HEFT_OK || plan->count == 0) {
        return status;
    }
    qsort(plan->order, plan->count, sizeof *plan->order, by_rank_then_name);
    for (size_t i = 1; i < plan->count && status == HEFT_OK; i++) {
        if (strcmp(plan->order[i]->name, plan->order[i - 1]->name) == 0) {
            status = heft__fail(err, HEFT_INVALID_ARG, "duplicate name");
            heft__add_item(status, err, plan->order[i]->name);
        }
    }
    return status;
}

void heft__safetensors_layout_free(heft__layout *layout)
{
    struct plan *plan = (struct plan *)layout;
    if (plan) {
        heft_ctx *ctx = plan->layout.ctx;
        heft__free(ctx, plan->order, plan->count * sizeof *plan->order);
        heft__buffer_fini(&plan->header);
        heft__free(ctx, plan, sizeof *plan);
    }
}

heft_status heft__safetensors_lay_out(heft_ctx *ctx, const heft__out_file *file, heft__layout **out,
                                      heft_error *err)
{
    struct plan *plan = heft__alloc_zero(ctx, 1, sizeof *plan);
    if (!plan) {
        return heft__fail_nomem(err, sizeof *plan);
    }
    plan->layout.ctx = ctx;
    plan->count = file->count;
    heft__buffer_init(&plan->header, ctx);
    plan->order = heft__alloc_zero(ctx, file->count, sizeof *plan->order);
    heft_status status = plan->order ? order_tensors(plan, file, err)
                                     : heft__fail_nomem(err, file->count * sizeof *plan->order);
    if (status == HEFT_OK) {
        status = put_header(plan, file, err);
    }
    if (status == HEFT_OK &&
        !heft__add_u64(plan->data_bytes, plan->header.size, &plan->layout.bytes)) {
        status = heft__fail(err, HEFT_LIMIT, "the file exceeds 2^64 bytes");
    }
    if (status != HEFT_OK) {
        heft__safetensors_layout_free(&plan->layout);
        return status;
    }
    *out = &plan->layout;
    return HEFT_OK;
}

heft_status heft__safetensors_write(heft__layout *layout, const heft__out_io *io, heft_error *err)
{
    const struct plan *plan = (const struct plan *)layout;
    heft_status status = heft__folder_write(io->folder, plan->header.data, plan->header.size, err);
    for (size_t i = 0; i < plan->count && status == HEFT_OK; i++) {
        status = heft__out_copy(io, plan->order[i], NULL, err);
    }
    return status;
}
