/* blocks.c - what of a model comes and goes together.
 *
 * Source: docs/placing.md [6]. */
#include "run/run.h"

#include <stdlib.h>

#define NONE SIZE_MAX

struct making {
    heft_residency *r;
    const heft__tree *tree;
    size_t *numbers; /* of all blocks' parameters, one behind the other */
    size_t filled;
    size_t *last_block;   /* [model->count] that a root was counted in */
    size_t *last_brought; /* [model->count] its number among what that block brings in, or NONE */
    heft_status status;
    heft_error *err;
};

/* Whether a parameter is to be brought in: it stays in a file that the model knows. */
static bool is_brought(const heft_model *model, size_t root)
{
    const heft__homes *homes = heft__model_homes(model);
    const heft_parameter_state state = model->parameters[root].state;
    return homes && homes->source[root] != HEFT__NO_TENSOR &&
           (state == HEFT_PARAMETER_MAPPED || state == HEFT_PARAMETER_DISK);
}

/* The bytes of a buffer that hold a parameter, wherever its file has it. */
static uint64_t room_of(const heft_parameter *parameter)
{
    const uint64_t spare = parameter->size_bytes < HEFT__DIRECT_TENSOR ? 64 : HEFT__SPARE_BYTES;
    return (parameter->size_bytes + 63) / 64 * 64 + spare;
}

static int by_place(const void *left, const void *right)
{
    const heft__brought *a = left, *b = right;
    return a->file != b->file       ? (a->file < b->file ? -1 : 1)
           : a->offset != b->offset ? (a->offset < b->offset ? -1 : 1)
                                    : (a->parameter > b->parameter) - (a->parameter < b->parameter);
}

/* Count a parameter in, once for all names of its tensor. */
static void add_parameter(struct making *m, heft__block *block, size_t number)
{
    heft_residency *r = m->r;
    const size_t root = r->model->parameters[number].tied_to;
    const size_t own = (size_t)(block - r->blocks);
    m->numbers[m->filled++] = number;
    block->shown.parameter_count++;
    r->block_of[number] = own;
    if (m->last_block[root] != own) {
        m->last_block[root] = own;
        m->last_brought[root] = NONE;
        block->shown.bytes += r->model->parameters[root].size_bytes;
        if (is_brought(r->model, root)) {
            const heft__homes *homes = heft__model_homes(r->model);
            const size_t tensor = homes->source[root];
            block->brought[block->brought_count++] = (heft__brought){
                .parameter = root,
                .file = homes->ckpt->infos[tensor].file_index,
                .offset = heft__part_offset(homes->ckpt, tensor, homes->first[root])};
        }
    }
}

/* Put what is brought in into the order of the files, and give it room. */
static void finish_block(struct making *m, heft__block *block)
{
    const heft_model *model = m->r->model;
    qsort(block->brought, block->brought_count, sizeof *block->brought, by_place);
    for (size_t i = 0; i < block->brought_count; i++) {
        heft__brought *brought = &block->brought[i];
        m->last_brought[brought->parameter] = i;
        brought->at = block->room;
        block->room += room_of(&model->parameters[brought->parameter]);
        block->shown.brought_bytes += model->parameters[brought->parameter].size_bytes;
    }
    for (size_t k = 0; k < block->shown.parameter_count; k++) {
        const size_t number = block->shown.parameters[k];
        m->r->brought_at[number] = m->last_brought[model->parameters[number].tied_to];
    }
}

static bool count_unit(void *user, uint32_t node)
{
    (void)node;
    ++*(size_t *)user;
    return true;
}

/* The block of a node of the tree. */
static bool add_block(void *user, uint32_t node)
{
    struct making *m = user;
    heft_residency *r = m->r;
    const heft__tree *tree = m->tree;
    const char *path = heft__tree_path(tree, node);
    uint32_t first, end;
    heft__tree_tensors(tree, node, &first, &end);
    if (first == end) {
        return true;
    }
    heft__block *block = &r->blocks[r->block_count++];
    *block = (heft__block){.slot = HEFT__NO_SLOT};
    block->shown.module = heft__arena_text(&r->arena, path, strlen(path));
    block->shown.parameters = m->numbers + m->filled;
    block->brought = heft__arena_array(&r->arena, end - first, sizeof *block->brought);
    if (!block->shown.module || !block->brought) {
        m->status = heft__fail_nomem(m->err, (end - first) * sizeof *block->brought);
        return false;
    }
    for (uint32_t i = first; i < end; i++) {
        add_parameter(m, block, heft_model_find(r->model, tree->tensors[i].path));
    }
    finish_block(m, block);
    return true;
}

/* Tensors as they are handed out: row by row, without memory yet. */
static heft_status make_views(heft_residency *r, heft_error *err)
{
    for (size_t i = 0; i < r->model->count; i++) {
        const heft_parameter *parameter = &r->model->parameters[i];
        const heft__binding *binding = &r->model->bindings[i];
        int64_t *strides = heft__arena_array(&r->arena, parameter->rank, sizeof *strides), step = 1;
        if (!strides) {
            return heft__fail_nomem(err, parameter->rank * sizeof *strides);
        }
        for (uint32_t d = parameter->rank; d-- > 0;) {
            strides[d] = step;
            step *= (int64_t)parameter->shape[d];
        }
        r->views[i] = (heft_tensor){
            .dtype = parameter->dtype,
            .rank = parameter->rank,
            .shape = parameter->shape,
            .strides = strides,
            .size_bytes = parameter->size_bytes,
            .alignment = 1,
            .device = HEFT_DEVICE_CPU,
        };
        if (binding->storage && !is_brought(r->model, parameter->tied_to)) {
            r->views[i].data =
                (uint8_t *)heft_storage_data(binding->storage) + binding->byte_offset;
            r->views[i].flags = heft_storage_flags(binding->storage);
        }
    }
    return HEFT_OK;
}

heft_status heft__blocks_make(heft_residency *r, heft_error *err)
{
    const size_t count = r->model->count;
    heft__tree *tree = NULL;
    heft_status status = heft__tree_of_model(r->model, &tree, err);
    if (status != HEFT_OK) {
        return status;
    }
    struct making m = {.r = r, .tree = tree, .status = HEFT_OK, .err = err};
    size_t units = 0;
    (void)heft__tree_each_unit(tree, count_unit, &units);
    m.numbers = heft__arena_array(&r->arena, count, sizeof *m.numbers);
    m.last_block = heft__alloc(r->ctx, count * sizeof *m.last_block);
    m.last_brought = heft__alloc(r->ctx, count * sizeof *m.last_brought);
    r->blocks = heft__arena_array(&r->arena, units, sizeof *r->blocks);
    r->block_of = heft__arena_array(&r->arena, count, sizeof *r->block_of);
    r->brought_at = heft__arena_array(&r->arena, count, sizeof *r->brought_at);
    r->views = heft__arena_array(&r->arena, count, sizeof *r->views);
    status = m.numbers && m.last_block && m.last_brought && r->blocks && r->block_of &&
                     r->brought_at && r->views
                 ? make_views(r, err)
                 : heft__fail_nomem(err, count * sizeof *r->views);
    if (status == HEFT_OK) {
        memset(m.last_block, 0xff, count * sizeof *m.last_block); /* no block's number */
        (void)heft__tree_each_unit(tree, add_block, &m);
        status = m.status;
    }
    heft__free(r->ctx, m.last_block, count * sizeof *m.last_block);
    heft__free(r->ctx, m.last_brought, count * sizeof *m.last_brought);
    heft__tree_free(tree);
    return status;
}
