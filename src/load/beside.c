/* beside.c - files of the folder that a model was loaded from and that belong to it: how it generates, and
 * how its weights are quantized. A save writes them beside config.json, whatever has become of the folder.
 *
 * Not the tokenizer's, templates' and processors' files: a model is its weights and what they mean.
 * Source: docs/transactions.md [3]. */
#include "load/load.h"

static heft_status keep_file(const heft_source *source, heft_model *model, const char *name,
                             heft__warnings *warnings, heft_error *err)
{
    char *text = NULL;
    size_t length = 0;
    heft_error why = {0};
    const char *path = heft__path_join(&model->arena, source->ckpt->where.folder, name);
    if (!path) {
        return heft__fail_nomem(err, strlen(name));
    }
    if (!heft__path_is_file(path)) {
        return HEFT_OK;
    }
    heft_status status = heft__read_file(
        &model->arena, path, heft__limits(model->ctx)->config_bytes, &text, &length, &why);
    if (status == HEFT_OK) {
        model->kept[model->kept_count++] =
            (heft__kept_file){.name = name, .text = text, .length = length};
        return HEFT_OK;
    }
    return status == HEFT_NOMEM ||
                   !heft__warn(warnings, "a save will not have '%s': %s", name, why.message)
               ? heft__fail_nomem(err, 0)
               : HEFT_OK;
}

/* What files say about the layout of their tensors. */
static heft_status keep_metadata(const heft_checkpoint *ckpt, heft_model *model, heft_error *err)
{
    heft__text_pair *pairs = heft__arena_array(&model->arena, ckpt->metadata_count, sizeof *pairs);
    for (size_t i = 0; pairs && i < ckpt->metadata_count; i++) {
        pairs[i] = ckpt->metadata[i];
        pairs[i].key = heft__arena_text(&model->arena, pairs[i].key, pairs[i].key_length);
        pairs[i].value = heft__arena_text(&model->arena, pairs[i].value, pairs[i].value_length);
        if (!pairs[i].key || !pairs[i].value) {
            return heft__fail_nomem(err, pairs[i].value_length);
        }
    }
    model->kept_pairs = pairs;
    model->kept_pair_count = pairs ? ckpt->metadata_count : 0;
    return pairs ? HEFT_OK : heft__fail_nomem(err, ckpt->metadata_count * sizeof *pairs);
}

heft_status heft__keep_beside(const heft_source *source, heft_model *model,
                              heft__warnings *warnings, heft_error *err)
{
    size_t most = 1;
    const heft__quant_file *file = heft__quant_files;
    heft_status status =
        heft__source_is_packed(source) ? keep_metadata(source->ckpt, model, err) : HEFT_OK;
    if (status != HEFT_OK || !source->config || !source->ckpt ||
        !heft__checkpoint_has_folder(source->ckpt) ||
        !heft__checkpoint_is_current(source->survey)) {
        return status;
    }
    while (heft__quant_files[most - 1].name) {
        most++;
    }
    model->kept = heft__arena_array(&model->arena, most, sizeof *model->kept);
    status = model->kept ? keep_file(source, model, "generation_config.json", warnings, err)
                         : heft__fail_nomem(err, most * sizeof *model->kept);
    for (; status == HEFT_OK && heft__source_is_packed(source) && file->name; file++) {
        status = keep_file(source, model, file->name, warnings, err);
    }
    if (status == HEFT_OK && !heft__checkpoint_is_current(source->survey)) {
        model->kept_count = 0; /* it may be another checkpoint's */
    }
    return status;
}
