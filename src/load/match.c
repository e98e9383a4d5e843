/* match.c - from a checkpoint's keys to a model's parameters.
 *
 * Per key, as the reference does it: old names are made new (LayerNorm.gamma, LayerNorm.beta,
 * weight_g, weight_v); the base model's prefix is stripped where what is left is a parameter, or
 * added where that makes one. A key that is a parameter as it stands is used as it stands. Source:
 * docs/loading.md [2]. */
#include "load/load.h"

#include <stdlib.h>

/* ---- renames --------------------------------------------------------------------------------- */
static const struct {
    const char *old_name, *new_name;
    bool at_end; /* only as the key's end */
} renames[] = {
    {"LayerNorm.gamma", "LayerNorm.weight",                   false},
    {"LayerNorm.beta",  "LayerNorm.bias",                     false},
    {".weight_g",       ".parametrizations.weight.original0", true },
    {".weight_v",       ".parametrizations.weight.original1", true },
};

/* The key under its new name; the key itself if no rename applies; NULL if there is no memory. */
static const char *rename_key(heft__arena *arena, const char *key)
{
    for (size_t i = 0; i < sizeof renames / sizeof renames[0]; i++) {
        const char *found = strstr(key, renames[i].old_name);
        size_t old_length = strlen(renames[i].old_name);
        if (found && (!renames[i].at_end || !found[old_length])) {
            return heft__arena_format(arena, "%.*s%s%s", (int)(found - key), key,
                                      renames[i].new_name, found + old_length);
        }
    }
    return key;
}

/* ---- one key --------------------------------------------------------------------------------- */
static bool in_state_dict(const heft_model *model, size_t i)
{
    return i != SIZE_MAX && model->parameters[i].kind != HEFT_PARAMETER_BUFFER_TRANSIENT;
}

static size_t find(const heft_model *model, const char *name)
{
    size_t i = heft_model_find(model, name);
    return in_state_dict(model, i) ? i : SIZE_MAX;
}

/* The parameter that a key (already renamed) fills, or SIZE_MAX. */
static heft_status find_parameter(const heft_model *model, heft__arena *arena, const char *key,
                                  size_t *found, heft_error *err)
{
    const char *prefix = model->base_prefix;
    size_t length = strlen(prefix);
    *found = SIZE_MAX;
    if (length && strncmp(key, prefix, length) == 0 && key[length] == '.') {
        *found = find(model, key + length + 1);
    }
    if (*found == SIZE_MAX && length) {
        const char *longer = heft__arena_format(arena, "%s.%s", prefix, key);
        if (!longer) {
            return heft__fail_nomem(err, strlen(key));
        }
        *found = find(model, longer);
    }
    if (*found == SIZE_MAX) {
        *found = find(model, key);
    }
    return HEFT_OK;
}

static bool ends_with_any(const char *name, const char *const *ends)
{
    size_t length = strlen(name);
    for (; ends && *ends; ends++) {
        size_t tail = strlen(*ends);
        if (length >= tail && strcmp(name + length - tail, *ends) == 0 &&
            (length == tail || name[length - tail - 1] == '.' || **ends == '.')) {
            return true;
        }
    }
    return false;
}

/* ---- lists ----------------------------------------------------------------------------------- */
static heft_status make_lists(const heft_model *model, const heft_checkpoint *ckpt,
                              heft__match *match, heft_error *err)
{
    match->ctx = model->ctx;
    match->source = heft__alloc(model->ctx, model->count * sizeof *match->source);
    match->missing = heft__arena_array(match->arena, model->count, sizeof *match->missing);
    match->mismatched = heft__arena_array(match->arena, model->count, sizeof *match->mismatched);
    match->unexpected = heft__arena_array(match->arena, ckpt->count, sizeof *match->unexpected);
    if (!match->source || !match->missing || !match->mismatched || !match->unexpected) {
        return heft__fail_nomem(err, model->count * sizeof *match->source);
    }
    for (size_t i = 0; i < model->count; i++) {
        match->source[i] = HEFT__NO_TENSOR;
    }
    return HEFT_OK;
}

void heft__match_fini(const heft_model *model, heft__match *match)
{
    if (match->ctx) {
        heft__free(match->ctx, match->source, model->count * sizeof *match->source);
        match->source = NULL;
    }
}

static heft_status add_unexpected(heft__match *match, const char *key, heft_error *err)
{
    const char *copy = heft__arena_text(match->arena, key, strlen(key));
    if (!copy) {
        return heft__fail_nomem(err, strlen(key));
    }
    match->unexpected[match->unexpected_count++] = copy;
    return HEFT_OK;
}

static heft_status add_mismatch(heft__match *match, const heft_tensor_info *info,
                                const heft_parameter *parameter, heft_error *err)
{
    heft_mismatch mismatch = {.checkpoint_rank = info->rank, .model_rank = parameter->rank};
    uint64_t *theirs = heft__arena_array(match->arena, info->rank, sizeof *theirs);
    uint64_t *ours = heft__arena_array(match->arena, parameter->rank, sizeof *ours);
    mismatch.name = heft__arena_text(match->arena, parameter->name, strlen(parameter->name));
    if (!theirs || !ours || !mismatch.name) {
        return heft__fail_nomem(err, 0);
    }
    memcpy(theirs, info->shape, info->rank * sizeof *theirs);
    memcpy(ours, parameter->shape, parameter->rank * sizeof *ours);
    mismatch.checkpoint_shape = theirs;
    mismatch.model_shape = ours;
    match->mismatched[match->mismatched_count++] = mismatch;
    return HEFT_OK;
}

/* Give a parameter its source, unless the shapes differ. */
static heft_status assign(const heft_model *model, const heft_checkpoint *ckpt, size_t parameter,
                          size_t tensor, heft__match *match, heft_error *err)
{
    const heft_parameter *wanted = &model->parameters[parameter];
    const heft_tensor_info *info = &ckpt->infos[tensor];
    if (!heft__shape_equal(info->shape, info->rank, wanted->shape, wanted->rank)) {
        return add_mismatch(match, info, wanted, err);
    }
    match->source[parameter] = tensor;
    return HEFT_OK;
}

/* ---- ties ------------------------------------------------------------------------------------ */
/* A tie with both names in the checkpoint holds if their bytes are equal; else both are kept, as
 * the reference does. */
static heft_status settle_tie(heft_model *model, const heft_checkpoint *ckpt, const size_t *aliases,
                              size_t target, heft__match *match, heft_error *err)
{
    size_t source = model->parameters[target].tied_to;
    size_t a = match->source[source], b = match->source[target];
    bool equal = a != HEFT__NO_TENSOR && b != HEFT__NO_TENSOR && aliases[a] == aliases[b];
    if (a == HEFT__NO_TENSOR) {
        match->source[source] = b; /* target only: the source takes its values */
        match->source[target] = HEFT__NO_TENSOR;
        return HEFT_OK;
    }
    if (b == HEFT__NO_TENSOR || equal) {
        match->source[target] = HEFT__NO_TENSOR;
        return HEFT_OK;
    }
    heft_status status = heft__tensors_equal(ckpt, a, b, &equal, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (equal) {
        match->source[target] = HEFT__NO_TENSOR;
        return HEFT_OK;
    }
    model->parameters[target].tied_to = target;
    return heft__warn(match->warnings,
                      "'%s' and '%s' should be tied, but the checkpoint has different values: both "
                      "are kept",
                      model->parameters[source].name, model->parameters[target].name)
               ? HEFT_OK
               : heft__fail_nomem(err, 0);
}

static heft_status settle_ties(heft_model *model, const heft_checkpoint *ckpt, heft__match *match,
                               heft_error *err)
{
    size_t *aliases = NULL;
    heft_status status = heft__checkpoint_aliases(ckpt, &aliases, err);
    for (size_t i = 0; i < model->count && status == HEFT_OK; i++) {
        if (model->parameters[i].tied_to != i) {
            status = settle_tie(model, ckpt, aliases, i, match, err);
        }
    }
    heft__free(match->ctx, aliases, ckpt->count * sizeof *aliases);
    return status;
}

/* ---- missing --------------------------------------------------------------------------------- */
static bool is_mismatched(const heft__match *match, const char *name)
{
    for (size_t i = 0; i < match->mismatched_count; i++) {
        if (strcmp(match->mismatched[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

static heft_status list_missing(const heft_model *model, heft__match *match, bool ignore,
                                heft_error *err)
{
    for (size_t i = 0; i < model->count; i++) {
        const heft_parameter *parameter = &model->parameters[i];
        if (!in_state_dict(model, i) || match->source[i] != HEFT__NO_TENSOR ||
            match->source[parameter->tied_to] != HEFT__NO_TENSOR ||
            is_mismatched(match, parameter->name) ||
            (ignore && ends_with_any(parameter->name, model->family->ignore_missing))) {
            continue;
        }
        match->missing[match->missing_count] =
            heft__arena_text(match->arena, parameter->name, strlen(parameter->name));
        if (!match->missing[match->missing_count++]) {
            return heft__fail_nomem(err, 0);
        }
    }
    return HEFT_OK;
}

/* ---- the two ways ---------------------------------------------------------------------------- */
static heft_status match_key(const heft_model *model, const heft_checkpoint *ckpt, size_t tensor,
                             heft__arena *scratch, size_t *taken, heft__match *match,
                             heft_error *err)
{
    size_t parameter;
    const char *key = rename_key(scratch, ckpt->infos[tensor].name);
    if (!key) {
        return heft__fail_nomem(err, 0);
    }
    heft_status status = find_parameter(model, scratch, key, &parameter, err);
    if (status == HEFT_OK && parameter == SIZE_MAX && key != ckpt->infos[tensor].name) {
        parameter = find(model, ckpt->infos[tensor].name);
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (parameter == SIZE_MAX) {
        bool ignored = ends_with_any(key, model->family->ignore_unexpected);
        return ignored ? HEFT_OK : add_unexpected(match, key, err);
    }
    if (taken[parameter] != HEFT__NO_TENSOR) {
        return heft__fail_at(err, HEFT_FORMAT, ckpt->entries[tensor]->item_offset,
                             "'%.100s' and '%.100s' both are '%.100s'",
                             ckpt->infos[taken[parameter]].name, ckpt->infos[tensor].name,
                             model->parameters[parameter].name);
    }
    taken[parameter] = tensor;
    return assign(model, ckpt, parameter, tensor, match, err);
}

heft_status heft__match_keys(heft_model *model, const heft_checkpoint *ckpt, heft__match *match,
                             heft_error *err)
{
    heft__arena scratch;
    heft__arena_init(&scratch, model->ctx);
    size_t *taken = heft__alloc(model->ctx, model->count * sizeof *taken);
    heft_status status = taken ? make_lists(model, ckpt, match, err) : heft__fail_nomem(err, 0);
    for (size_t i = 0; status == HEFT_OK && i < model->count; i++) {
        taken[i] = HEFT__NO_TENSOR;
    }
    for (size_t i = 0; i < ckpt->count && status == HEFT_OK; i++) {
        status = match_key(model, ckpt, i, &scratch, taken, match, err);
    }
    if (status == HEFT_OK) {
        status = settle_ties(model, ckpt, match, err);
    }
    if (status == HEFT_OK) {
        status = list_missing(model, match, true, err);
    }
    heft__free(model->ctx, taken, model->count * sizeof *taken);
    heft__arena_fini(&scratch);
    return status;
}

heft_status heft__match_exactly(const heft_model *model, const heft_checkpoint *ckpt,
                                heft__match *match, heft_error *err)
{
    heft_status status = make_lists(model, ckpt, match, err);
    for (size_t i = 0; i < ckpt->count && status == HEFT_OK; i++) {
        size_t parameter = find(model, ckpt->infos[i].name);
        status = parameter == SIZE_MAX ? add_unexpected(match, ckpt->infos[i].name, err)
                                       : assign(model, ckpt, parameter, i, match, err);
    }
    for (size_t i = 0; i < model->count && status == HEFT_OK; i++) {
        size_t source = model->parameters[i].tied_to;
        if (source != i && match->source[source] == HEFT__NO_TENSOR) {
            match->source[source] = match->source[i];
        }
        if (source != i) {
            match->source[i] = HEFT__NO_TENSOR; /* one storage is filled once */
        }
    }
    return status == HEFT_OK ? list_missing(model, match, false, err) : status;
}
