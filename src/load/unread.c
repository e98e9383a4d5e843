/* unread.c - parameters of a model for which a checkpoint has something that is not read.
 *
 * A pickle may hold a tensor of a kind that heft does not have (a subclass of another library, a sharded or sparse
 * one) or another object under the name of a parameter. The names of such things are known. Where nothing else fills
 * the parameter, it would be random although its values are there.
 * Source: docs/formats/pickle.md [5]. */
#include "load/load.h"

/* The parameter's name: torch's quantized modules have their weight in P._packed_params._packed_params.0. NULL without
 * memory. */
static const char *plain_name(heft__arena *arena, const char *name)
{
    const size_t module = heft__quant_prefix(name, "._packed_params._packed_params.0");
    return module == SIZE_MAX ? name : heft__arena_format(arena, "%.*s.weight", (int)module, name);
}

/* The first parameter that lacks a value, of those that one file's names stand for; *count: how many there are. */
static heft_status look_at_file(const heft_model *model, const heft__file *file,
                                const heft__match *match, heft__unread *out, heft_error *err)
{
    const size_t count = file->skipped_count;
    size_t *parameters = heft__alloc(model->ctx, count * sizeof *parameters);
    const char **names = heft__alloc(model->ctx, count * sizeof *names);
    bool good = parameters && names;
    for (size_t k = 0; k < count && good; k++) {
        names[k] = plain_name(match->arena, file->skipped[k]);
        good = names[k] != NULL;
    }
    heft_status status = good ? heft__match_names(model, names, count, parameters, err)
                              : heft__fail_nomem(err, count * sizeof *parameters);
    for (size_t k = 0; k < count && status == HEFT_OK; k++) {
        const size_t i = parameters[k];
        if (i != SIZE_MAX && match->lack[i] == HEFT__LACKS_KEY &&
            match->source[i] == HEFT__NO_TENSOR) {
            out->name = out->count++ ? out->name : file->skipped[k];
        }
    }
    heft__free(model->ctx, names, count * sizeof *names);
    heft__free(model->ctx, parameters, count * sizeof *parameters);
    return status;
}

heft_status heft__unread_find(const heft_model *model, const heft_checkpoint *ckpt,
                              const heft__match *match, heft__unread *out, heft_error *err)
{
    heft_status status = HEFT_OK;
    *out = (heft__unread){0};
    for (size_t f = 0; f < ckpt->file_count && match->missing_count && status == HEFT_OK; f++) {
        const heft__file *file = ckpt->files[f].file;
        const size_t before = out->count;
        if (file && file->skipped_count) {
            status = look_at_file(model, file, match, out, err);
        }
        out->file = before == 0 && out->count ? f : out->file;
    }
    return status;
}

heft_status heft__unread_refuse(const heft__loading *l, heft_error *err)
{
    heft__unread unread;
    if (l->options->allow_missing || !l->model->known_family) {
        return HEFT_OK;
    }
    heft_status status = heft__unread_find(l->model, l->ckpt, &l->match, &unread, err);
    if (status == HEFT_OK && unread.count) {
        status = heft__fail(err, HEFT_UNSUPPORTED, HEFT__UNREAD_TEXT, unread.count,
                            unread.count > 1 ? "s" : "");
        heft__add_item(status, err, unread.name);
        heft__add_path(status, err, l->ckpt->files[unread.file].info.path);
    }
    return status;
}

heft_status heft__unread_tell(const heft__loading *l, heft__findings *findings, heft_error *err)
{
    heft__unread unread;
    const heft_status status = heft__unread_find(l->model, l->ckpt, &l->match, &unread, err);
    if (status != HEFT_OK || !unread.count) {
        return status;
    }
    const heft__finding finding = {.kind = "left_out",
                                   .severity = HEFT__FAULT,
                                   .file = l->ckpt->files[unread.file].info.name,
                                   .tensor = unread.name,
                                   .offset = HEFT_NO_OFFSET};
    return heft__find(findings, &finding, err, HEFT__UNREAD_TEXT, unread.count,
                      unread.count > 1 ? "s" : "");
}
