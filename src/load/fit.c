/* fit.c - whether what was matched is this model at all.
 *
 * A checkpoint that shares no name with the model is another one's, or holds no weights (an optimizer, a
 * scheduler, an adapter): a model that is then random as a whole is refused. Where only a part of the body
 * is missing, and not just a new head, that is said aloud.
 * Source: docs/loading.md [3]. */
#include "load/load.h"

#define SHOWN_MOST 3

/* ---- nothing fits ---------------------------------------------------------------------------- */
/* The first names of a list, " 'a', 'b', ..."; cut to fit. */
static void show_names(char *text, size_t cap, const char *const *names, size_t count)
{
    size_t at = 0;
    text[0] = '\0';
    for (size_t i = 0; i < count && i < SHOWN_MOST && at < cap; i++) {
        const int more = snprintf(text + at, cap - at, "%s'%.60s'", i ? ", " : "", names[i]);
        at += more > 0 ? (size_t)more : 0;
    }
    if (count > SHOWN_MOST && at < cap) {
        snprintf(text + at, cap - at, ", ...");
    }
}

static size_t count_filled(const heft__loading *l)
{
    size_t filled = 0;
    for (size_t i = 0; i < l->model->count; i++) {
        filled += l->match.source[i] != HEFT__NO_TENSOR;
    }
    return filled;
}

heft_status heft__fit_judge(const heft__loading *l, heft_error *err)
{
    const heft_model *model = l->model;
    const heft__match *match = &l->match;
    char theirs[256], ours[256];
    if (l->options->allow_missing || count_filled(l) > 0 || match->mismatched_count > 0) {
        return HEFT_OK;
    }
    if (l->ckpt->count == 0) {
        return heft__fail(err, HEFT_MISMATCH, "the checkpoint has no tensors");
    }
    if (match->missing_count == 0) {
        return HEFT_OK;
    }
    show_names(theirs, sizeof theirs, match->unexpected, match->unexpected_count);
    show_names(ours, sizeof ours, match->missing, match->missing_count);
    return heft__fail(err, HEFT_MISMATCH,
                      "no tensor matches the model: the checkpoint has %zu (%s), %s needs %zu (%s)",
                      l->ckpt->count, theirs, heft_model_class(model), match->missing_count, ours);
}

/* ---- the body -------------------------------------------------------------------------------- */
/* Modules that a task puts on top of a model, by the names that families use. */
static const char *const heads[] = {
    "lm_head",
    "classifier",
    "score",
    "qa_outputs",
    "pooler",
    "cls",
    "predictions",
    "embed_out",
    "pre_classifier",
    "classification_head",
    "vocab_transform",
    "vocab_layer_norm",
    "vocab_projector",
    "generator_predictions",
    "generator_lm_head",
    "discriminator_predictions",
    "sop_classifier",
    "proj_out",
    "final_logits_bias",
    "dropout",
};

static bool is_head(const char *name)
{
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        const size_t length = strlen(heads[i]);
        if (strncmp(name, heads[i], length) == 0 && (name[length] == '.' || !name[length])) {
            return true;
        }
    }
    return false;
}

/* What is below the base model's prefix, where the model has such names; what no task adds. */
static bool is_body(const heft_model *model, bool has_prefix, const char *name)
{
    const size_t length = strlen(model->base_prefix);
    const bool below =
        length > 0 && strncmp(name, model->base_prefix, length) == 0 && name[length] == '.';
    return below ? !is_head(name + length + 1) : !has_prefix && !is_head(name);
}

static bool has_prefixed(const heft_model *model)
{
    const size_t length = strlen(model->base_prefix);
    for (size_t i = 0; length > 0 && i < model->count; i++) {
        const char *name = model->parameters[i].name;
        if (strncmp(name, model->base_prefix, length) == 0 && name[length] == '.') {
            return true;
        }
    }
    return false;
}

static heft_status warn_of_body(heft__loading *l, heft_error *err)
{
    const heft_model *model = l->model;
    const bool has_prefix = has_prefixed(model);
    const char *first[SHOWN_MOST];
    size_t lacking = 0, all = 0;
    char names[256];
    for (size_t i = 0; i < model->count; i++) {
        const heft_parameter *parameter = &model->parameters[i];
        if (parameter->tied_to != i || parameter->kind != HEFT_PARAMETER_WEIGHT ||
            !is_body(model, has_prefix, parameter->name)) {
            continue;
        }
        all++;
        if (l->match.source[i] == HEFT__NO_TENSOR &&
            (l->match.lack[i] == HEFT__LACKS_KEY || l->match.lack[i] == HEFT__LACKS_SHAPE)) {
            if (lacking < SHOWN_MOST) {
                first[lacking] = parameter->name;
            }
            lacking++;
        }
    }
    if (lacking == 0) {
        return HEFT_OK;
    }
    show_names(names, sizeof names, first, lacking);
    return heft__warn(
               &l->memory->warnings,
               "%zu of %zu weights of the base model are missing from the checkpoint and were "
               "initialized randomly: %s",
               lacking, all, names)
               ? HEFT_OK
               : heft__fail_nomem(err, 0);
}

/* ---- placeholders ---------------------------------------------------------------------------- */
/* In a model that is made of the checkpoint they would go unnoticed. */
static heft_status warn_of_placeholders(heft__loading *l, heft_error *err)
{
    const heft_checkpoint *ckpt = l->ckpt;
    const char *first[SHOWN_MOST];
    size_t count = 0;
    char names[256];
    for (size_t i = 0; i < ckpt->count; i++) {
        if (heft__is_placeholder(ckpt->infos[i].shape, ckpt->infos[i].rank)) {
            if (count < SHOWN_MOST) {
                first[count] = ckpt->infos[i].name;
            }
            count++;
        }
    }
    if (count == 0) {
        return HEFT_OK;
    }
    show_names(names, sizeof names, first, count);
    return heft__warn(
               &l->memory->warnings,
               "found %zu tensor%s of shape [0], which DeepSpeed ZeRO-3 saves in place of weights "
               "that were not gathered: %s",
               count, count > 1 ? "s" : "", names)
               ? HEFT_OK
               : heft__fail_nomem(err, 0);
}

heft_status heft__fit_warn(heft__loading *l, heft_error *err)
{
    const heft__match *match = &l->match;
    if (!l->model->known_family) {
        return warn_of_placeholders(l, err);
    }
    if (match->unwrapped_count > 0 &&
        !heft__warn(&l->memory->warnings,
                    "%zu tensor name%s matched without '%s', which a wrapper around the model adds",
                    match->unwrapped_count, match->unwrapped_count > 1 ? "s were" : " was",
                    match->unwrapped)) {
        return heft__fail_nomem(err, 0);
    }
    return warn_of_body(l, err);
}
