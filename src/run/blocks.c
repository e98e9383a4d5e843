/* blocks.c - what of a model comes and goes together.
 *
 * Source: docs/placing.md [6]. */
#include "run/run.h"

struct making {
    heft_residency *r;
    const heft__tree *tree;
    size_t *numbers; /* of all blocks' parameters, one behind the other */
    size_t filled;
};

static bool is_brought(const heft_model *model, size_t root)
{
    return model->parameters[root].state == HEFT_PARAMETER_MAPPED ||
           model->parameters[root].state == HEFT_PARAMETER_DISK;
}

/* The bytes of a buffer that hold a parameter, wherever its file has it. */
static uint64_t room_of(const heft_parameter *parameter)
{
    return (parameter->size_bytes + 63) / 64 * 64 + HEFT__SPARE_BYTES;
}

/* Count a parameter in, once for all names of its tensor. */
static void add_bytes(struct making *m, heft__block *block, size_t number)
{
    const heft_model *model = m->r->model;
    const size_t root = model->parameters[number].tied_to;
    for (size_t k = 0; k + 1 < block->shown.parameter_count; k++) {
        if (model->parameters[block->shown.parameters[k]].tied_to == root) {
            return;
        }
    }
    block->shown.bytes += model->parameters[root].size_bytes;
    if (is_brought(model, root)) {
        block->brought[block->brought_count++] = (heft__brought){root, block->room, NULL};
        block->room += room_of(&model->parameters[root]);
        block->shown.brought_bytes += model->parameters[root].size_bytes;
    }
}

static heft_status add_tensors(struct making *m, heft__block *block, uint32_t first, uint32_t count,
                               heft_error *err)
{
    for (uint32_t i = first; i < first + count; i++) {
        const size_t number = heft_model_find(m->r->model, m->tree->tensors[i].path);
        if (number == SIZE_MAX) {
            return heft__fail(err, HEFT_INVALID_ARG, "'%.100s' is not in the model",
                              m->tree->tensors[i].path);
        }
        m->numbers[m->filled++] = number;
        block->shown.parameter_count++;
        m->r->block_of[number] = (size_t)(block - m->r->blocks);
        add_bytes(m, block, number);
    }
    return HEFT_OK;
}

/* The block of a node of the tree. */
static heft_status add_block(struct making *m, uint32_t node, heft_error *err)
{
    heft_residency *r = m->r;
    heft__arena *arena = &r->arena;
    const heft__tree *tree = m->tree;
    const bool lone = heft__tree_is_tensor(tree, node);
    const char *path = heft__tree_path(tree, node);
    uint32_t first = lone ? node - tree->module_count : 0, count = lone;
    for (uint32_t i = node; !lone && i < tree->modules[node].end; i++) {
        first = count == 0 ? tree->modules[i].first_tensor : first;
        count += tree->modules[i].tensor_count; /* side by side: modules come in pre-order */
    }
    if (count == 0) {
        return HEFT_OK;
    }
    heft__block *block = &r->blocks[r->block_count++];
    *block = (heft__block){.slot = HEFT__NO_BLOCK};
    block->shown.module = heft__arena_text(arena, path, strlen(path));
    block->shown.parameters = m->numbers + m->filled;
    block->brought = heft__arena_array(arena, count, sizeof *block->brought);
    return block->shown.module && block->brought ? add_tensors(m, block, first, count, err)
                                                 : heft__fail_nomem(err, count);
}

static heft_status add_blocks(struct making *m, uint32_t module, heft_error *err)
{
    const heft__tree *tree = m->tree;
    const heft__tree_module *node = &tree->modules[module];
    heft_status status = HEFT_OK;
    if (!heft__tree_splits(tree, module)) {
        return add_block(m, module, err);
    }
    for (uint32_t i = 0; status == HEFT_OK && i < node->tensor_count; i++) {
        status = add_block(m, tree->module_count + node->first_tensor + i, err);
    }
    for (uint32_t child = module + 1; status == HEFT_OK && child < node->end;
         child = tree->modules[child].end) {
        status = add_blocks(m, child, err);
    }
    return status;
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
        };
        if (binding->storage && !is_brought(r->model, i)) {
            r->views[i].data = (uint8_t *)heft_storage_data(binding->storage) + binding->byte_offset;
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
    struct making m = {.r = r, .tree = tree};
    m.numbers = heft__arena_array(&r->arena, count, sizeof *m.numbers);
    r->blocks = heft__arena_array(&r->arena, count, sizeof *r->blocks);
    r->block_of = heft__arena_array(&r->arena, count, sizeof *r->block_of);
    r->views = heft__arena_array(&r->arena, count, sizeof *r->views);
    status = m.numbers && r->blocks && r->block_of && r->views
                 ? make_views(r, err)
                 : heft__fail_nomem(err, count * sizeof *r->views);
    if (status == HEFT_OK && count > 0) {
        status = add_blocks(&m, 0, err);
    }
    heft__tree_free(tree);
    return status;
}
