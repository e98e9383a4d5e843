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
    "multiple_choice_head",
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

/* Whether it is filled with a tensor of a quantized weight that is not the first one, or with state. */
static bool is_more_of_one(const heft__loading *l, size_t i)
{
    const size_t tensor = l->match.source[i];
    const heft__quant_found *found = l->source ? &l->source->quant : NULL;
    const size_t owner =
        tensor != HEFT__NO_TENSOR && found && found->owner ? found->owner[tensor] : HEFT__NO_PART;
    return owner == HEFT__QUANT_STATE || (owner != HEFT__NO_PART && owner < found->count &&
                                          l->source->quant_first[owner] != tensor);
}

/* How many weights of the body the checkpoint lacks, of how many, and the first names of these. */
static size_t count_lacking(const heft__loading *l, size_t *total, char *names, size_t cap)
{
    const heft_model *model = l->model;
    const bool has_prefix = has_prefixed(model);
    const char *first[SHOWN_MOST];
    size_t lacking = 0, all = 0;
    for (size_t i = 0; i < model->count; i++) {
        const heft_parameter *parameter = &model->parameters[i];
        if (parameter->tied_to != i || parameter->kind != HEFT_PARAMETER_WEIGHT ||
            !is_body(model, has_prefix, parameter->name) || is_more_of_one(l, i)) {
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
    *total = all;
    show_names(names, cap, first, lacking);
    return lacking;
}

static heft_status warn_of_body(heft__loading *l, heft_error *err)
{
    char names[256];
    size_t all;
    const size_t lacking = count_lacking(l, &all, names, sizeof names);
    if (lacking == 0) {
        return HEFT_OK;
    }
    return heft__warn(
               &l->memory->warnings,
               "%zu of %zu weights of the base model are missing from the checkpoint and were "
               "initialized randomly: %s",
               lacking, all, names)
               ? HEFT_OK
               : heft__fail_nomem(err, 0);
}

/* ---- quantized weights without a place --------------------------------------------------------- */
/* Whether one is the weight of that name, with more in front of it. */
static bool is_longer(const char *full, const char *name)
{
    const size_t more = strlen(full), length = strlen(name);
    return more >= length && strcmp(full + more - length, name) == 0 &&
           (more == length || full[more - length - 1] == '.');
}

/* A missing weight that the quantized one may be; NULL: none. */
static const char *find_lacking(const heft__loading *l, const char *quantized)
{
    const heft_model *model = l->model;
    const bool has_prefix = has_prefixed(model);
    for (size_t i = 0; i < model->count; i++) {
        const char *name = model->parameters[i].name;
        if (model->parameters[i].tied_to == i && l->match.lack[i] == HEFT__LACKS_KEY &&
            (is_longer(quantized, name) || (model->parameters[i].kind == HEFT_PARAMETER_WEIGHT &&
                                            is_body(model, has_prefix, name)))) {
            return name;
        }
    }
    return NULL;
}

heft_status heft__fit_judge_packed(const heft__loading *l, const heft__quant_found *found,
                                   heft_error *err)
{
    if (found->count == 0 || !l->model->known_family || l->options->allow_missing ||
        l->match.missing_count == 0) {
        return HEFT_OK;
    }
    bool *placed = heft__alloc_zero(l->ctx, found->count, sizeof *placed);
    heft_status status = placed ? HEFT_OK : heft__fail_nomem(err, found->count);
    for (size_t i = 0; i < l->model->count && status == HEFT_OK; i++) {
        const size_t tensor = l->match.source[i];
        const size_t w = tensor == HEFT__NO_TENSOR ? HEFT__NO_PART : found->owner[tensor];
        if (w < found->count) {
            placed[w] = true;
        }
    }
    for (size_t w = 0; w < found->count && status == HEFT_OK; w++) {
        const char *name = found->weights[w].name, *lacking = NULL;
        if (!placed[w] && !heft__match_ignores(l->model, name)) {
            lacking = find_lacking(l, name);
        }
        if (lacking) {
            status = heft__fail(err, HEFT_MISMATCH,
                                "a quantized weight (%.40s) that has no place in %.100s, which "
                                "lacks %zu weights: '%.100s' is the first",
                                found->method, heft_model_class(l->model), l->match.missing_count,
                                lacking);
            heft__add_item(status, err, name);
        }
    }
    heft__free(l->ctx, placed, found->count * sizeof *placed);
    return status;
}

/* Whether a layer has no weight at all in the checkpoint. Modules are in pre-order: a subtree is a run. */
static bool lacks_layer(const heft__loading *l)
{
    const heft_model *model = l->model;
    for (size_t m = 0; m < model->module_count; m++) {
        bool any = false, found = false;
        for (size_t k = m; model->modules[m].kind == HEFT_MODULE_LAYER && k < model->module_count &&
                           (k == m || model->modules[k].parent >= m);
             k++) {
            for (size_t i = 0; i < model->modules[k].parameter_count; i++) {
                any = true;
                found =
                    found || l->match.source[model->modules[k].parameters[i]] != HEFT__NO_TENSOR;
            }
        }
        if (any && !found) {
            return true;
        }
    }
    return false;
}

/* For a checkpoint that is only looked at: what of the config's model it lacks. */
static heft_status match_only(heft__loading *l, heft_error *lacks, heft__findings *findings,
                              heft_error *err)
{
    char names[256];
    size_t all;
    heft_status status = heft__report_new(l->ctx, &l->memory, err);
    if (status == HEFT_OK) {
        l->match = (heft__match){
            .arena = &l->memory->arena, .warnings = &l->memory->warnings, .count = true};
        status = heft__match_keys(l->model, l->ckpt, &l->match, err);
    }
    if (status == HEFT_OK && l->ckpt->count > 0 && count_filled(l) > 0) {
        const size_t lacking = count_lacking(l, &all, names, sizeof names);
        if (lacking > 0) {
            (void)heft__fail(lacks, lacks_layer(l) ? HEFT_MISMATCH : HEFT_NOT_FOUND,
                             "%zu of %zu weights of the body of %s are missing: %s", lacking, all,
                             heft_model_class(l->model), names);
        }
        status = heft__contradict_plain(l->model, &l->match, findings, err);
    }
    if (status == HEFT_OK) {
        status = heft__unread_tell(l, findings, err);
    }
    return status;
}

heft_status heft__fit_lacks(const heft_source *source, heft_error *lacks, heft__findings *findings,
                            heft_error *err)
{
    const heft_load_options options = HEFT_SIZED(heft_load_options);
    heft__loading l = {
        .ctx = source->ctx, .source = source, .ckpt = source->ckpt, .options = &options};
    heft_error failure = {0};
    const heft__resolved *where = source->ckpt ? &source->survey->where : NULL;
    /* an offload folder has only what is on the disk, an adapter only what is added */
    const bool whole = where && source->config && !where->lone && !where->stem &&
                       !(where->index_format && where->index_format->index_name);
    const size_t before = findings->count;
    heft_status status = whole ? heft__contradict_packed(source, findings, &failure) : HEFT_OK;
    if (status == HEFT_OK && whole && findings->count == before) { /* else there is no such model */
        status = heft__loading_make_model(&l, &failure);
    }
    if (status == HEFT_OK && l.model && l.model->known_family) {
        status = match_only(&l, lacks, findings, &failure);
    }
    heft__loading_fini(&l);
    const bool stops = status == HEFT_NOMEM || status == HEFT_CANCELLED;
    if (stops && err) {
        *err = failure;
    }
    return stops ? status : HEFT_OK; /* a model that cannot be made says nothing of its weights */
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

/* ---- integers ---------------------------------------------------------------------------------- */
/* The cast is what copy_() does, but integers in the place of weights may be codes that mean something only
 * with a scale. */
heft_status heft__fit_warn_of_integers(heft__loading *l, heft_error *err)
{
    const heft_model *model = l->model;
    const char *first[SHOWN_MOST];
    size_t count = 0;
    char names[256];
    for (size_t i = 0; i < model->count; i++) {
        const size_t source = l->match.source[i];
        if (source != HEFT__NO_TENSOR && heft_dtype_is_floating(model->parameters[i].dtype) &&
            heft__dtype_is_integer(l->ckpt->infos[source].dtype)) {
            if (count < SHOWN_MOST) {
                first[count] = model->parameters[i].name;
            }
            count++;
        }
    }
    if (count == 0) {
        return HEFT_OK;
    }
    show_names(names, sizeof names, first, count);
    return heft__warn(&l->memory->warnings,
                      "%zu floating-point parameter%s stored as integers, and cast: %s", count,
                      count == 1 ? " is" : "s are", names)
               ? HEFT_OK
               : heft__fail_nomem(err, 0);
}

heft_status heft__fit_warn(heft__loading *l, heft_error *err)
{
    const heft__match *match = &l->match;
    heft_status status = heft__fit_warn_of_integers(l, err);
    if (status != HEFT_OK || !l->model->known_family) {
        return status == HEFT_OK ? warn_of_placeholders(l, err) : status;
    }
    if (match->unwrapped_count > 0 &&
        !heft__warn(&l->memory->warnings,
                    "%zu tensor name%s matched without the prefix '%s', which a wrapper around the "
                    "model adds",
                    match->unwrapped_count, match->unwrapped_count > 1 ? "s were" : " was",
                    match->unwrapped)) {
        return heft__fail_nomem(err, 0);
    }
    return warn_of_body(l, err);
}
