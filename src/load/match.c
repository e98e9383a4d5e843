/* match.c - from a checkpoint's keys to a model's parameters.
 *
 * Per key, as Transformers does it: old names are made new (LayerNorm.gamma, LayerNorm.beta,
 * weight_g, weight_v); the base model's prefix is stripped where what is left is a parameter, or
 * added where that makes one. A key that is a parameter as it stands is used as it stands. What
 * then fits nothing is tried without the parts that wrappers add to names. A name
 * of Transformers' memory is found too; where it stands for several parameters, each takes its
 * slice. Source: docs/loading.md [2]. */
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
/* What a key stands for: `count` parameters from `first` on, the parts of `inner`; or one, whole,
 * and inner is NULL. */
struct target {
    size_t first, count; /* count 0: nothing */
    const heft__inner *inner;
};

struct lookup {
    const heft_model *model;
    heft__arena scratch;
    heft__map inner; /* name in Transformers' memory -> its first parameter */
    size_t *taken;   /* [model->count] the tensor that fills it, or HEFT__NO_TENSOR */
    bool *left;      /* [left_count] keys of the checkpoint that fit nothing as they are */
    size_t left_count;
};

static bool in_state_dict(const heft_model *model, size_t i)
{
    return i != SIZE_MAX && model->parameters[i].kind != HEFT_PARAMETER_BUFFER_TRANSIENT;
}

static size_t find(const heft_model *model, const char *name)
{
    size_t i = heft_model_find(model, name);
    return in_state_dict(model, i) ? i : SIZE_MAX;
}

static heft_status start_lookup(struct lookup *lookup, const heft_model *model, heft_error *err)
{
    lookup->model = model;
    lookup->left = NULL;
    lookup->left_count = 0;
    heft__arena_init(&lookup->scratch, model->ctx);
    heft__map_init(&lookup->inner, model->ctx);
    lookup->taken = heft__alloc(model->ctx, model->count * sizeof *lookup->taken);
    heft_status status = lookup->taken ? HEFT_OK : heft__fail_nomem(err, model->count);
    for (size_t i = 0; i < model->count && status == HEFT_OK; i++) {
        const heft__inner *inner = heft__model_place(model, i).inner;
        size_t found;
        lookup->taken[i] = HEFT__NO_TENSOR;
        if (inner && (i == 0 || heft__model_place(model, i - 1).inner != inner) &&
            !heft__map_put(&lookup->inner, inner->name, strlen(inner->name), i, &found)) {
            status = heft__fail_nomem(err, 0);
        }
    }
    return status;
}

static void stop_lookup(struct lookup *lookup)
{
    heft_ctx *ctx = lookup->model->ctx;
    heft__free(ctx, lookup->taken, lookup->model->count * sizeof *lookup->taken);
    heft__free(ctx, lookup->left, lookup->left_count * sizeof *lookup->left);
    heft__map_fini(&lookup->inner);
    heft__arena_fini(&lookup->scratch);
}

/* By a file's name, otherwise by a name in Transformers' memory, whose parts are adjacent. */
static struct target find_target(const struct lookup *lookup, const char *name)
{
    const heft_model *model = lookup->model;
    size_t i = find(model, name), end;
    if (i != SIZE_MAX) {
        return (struct target){i, 1, NULL};
    }
    i = heft__map_get(&lookup->inner, name, strlen(name));
    if (i == HEFT__MAP_NONE) {
        return (struct target){0};
    }
    for (end = i + 1; end < model->count &&
                      heft__model_place(model, end).inner == heft__model_place(model, i).inner;) {
        end++;
    }
    return (struct target){i, end - i, heft__model_place(model, i).inner};
}

static const char *without_prefix(const char *key, const char *prefix)
{
    size_t length = prefix ? strlen(prefix) : 0;
    return length && strncmp(key, prefix, length) == 0 && key[length] == '.' ? key + length + 1
                                                                             : NULL;
}

/* What a key (already renamed) fills. */
static heft_status find_key(struct lookup *lookup, const char *key, struct target *target,
                            heft_error *err)
{
    const char *prefix = lookup->model->base_prefix, *shorter = without_prefix(key, prefix);
    if (!shorter) {
        shorter = without_prefix(key, lookup->model->family->file_prefix);
    }
    *target = shorter ? find_target(lookup, shorter) : (struct target){0};
    if (target->count == 0 && *prefix) {
        char near[512]; /* for names of a usual length */
        const size_t before = strlen(prefix), bytes = before + strlen(key) + 2;
        char *longer = bytes <= sizeof near ? near : heft__alloc(lookup->model->ctx, bytes);
        if (!longer) {
            return heft__fail_nomem(err, bytes);
        }
        memcpy(longer, prefix, before);
        longer[before] = '.';
        memcpy(longer + before + 1, key, bytes - before - 1);
        *target = find_target(lookup, longer);
        if (longer != near) {
            heft__free(lookup->model->ctx, longer, bytes);
        }
    }
    if (target->count == 0) {
        *target = find_target(lookup, key);
    }
    return HEFT_OK;
}

/* Whether a name ends as one of the list says; an end followed by a dot may be anywhere. */
static bool ends_with_any(const char *name, const char *const *ends)
{
    size_t length = strlen(name);
    for (; ends && *ends; ends++) {
        size_t tail = strlen(*ends);
        if ((*ends)[tail - 1] == '.' && strstr(name, *ends)) {
            return true;
        }
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
    match->first = heft__alloc_zero(model->ctx, model->count, sizeof *match->first);
    match->lack = heft__alloc_zero(model->ctx, model->count, sizeof *match->lack);
    match->missing = heft__arena_array(match->arena, model->count, sizeof *match->missing);
    match->mismatched = heft__arena_array(match->arena, model->count, sizeof *match->mismatched);
    match->unexpected = heft__arena_array(match->arena, ckpt->count, sizeof *match->unexpected);
    if (!match->source || !match->first || !match->lack || !match->missing || !match->mismatched ||
        !match->unexpected) {
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
        heft__free(match->ctx, match->first, model->count * sizeof *match->first);
        heft__free(match->ctx, match->lack, model->count * sizeof *match->lack);
        match->source = NULL;
        match->first = NULL;
        match->lack = NULL;
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

/* A parameter, or a tensor of Transformers' memory, has another shape. */
static heft_status add_mismatch(heft__match *match, const heft_tensor_info *info, const char *name,
                                const uint64_t *shape, uint32_t rank, heft_error *err)
{
    heft_mismatch mismatch = {.checkpoint_rank = info->rank, .model_rank = rank};
    uint64_t *theirs = heft__arena_array(match->arena, info->rank, sizeof *theirs);
    uint64_t *ours = heft__arena_array(match->arena, rank, sizeof *ours);
    mismatch.name = heft__arena_text(match->arena, name, strlen(name));
    if (!theirs || !ours || !mismatch.name) {
        return heft__fail_nomem(err, 0);
    }
    if (info->rank > 0) {
        memcpy(theirs, info->shape, info->rank * sizeof *theirs);
    }
    if (rank > 0) {
        memcpy(ours, shape, rank * sizeof *ours);
    }
    mismatch.checkpoint_shape = theirs;
    mismatch.model_shape = ours;
    match->mismatched[match->mismatched_count++] = mismatch;
    return HEFT_OK;
}

/* Give what a key stands for its source, unless the shapes differ. */
static heft_status assign(const heft_model *model, const heft_checkpoint *ckpt,
                          const struct target *target, size_t tensor, heft__match *match,
                          heft_error *err)
{
    const heft_tensor_info *info = &ckpt->infos[tensor];
    const heft_parameter *first = &model->parameters[target->first];
    const heft__inner *inner = target->inner;
    const uint64_t *shape = inner ? inner->shape : first->shape;
    const uint32_t rank = inner ? inner->rank : first->rank;
    const bool fits = heft__shape_equal(info->shape, info->rank, shape, rank);
    for (size_t i = target->first; i < target->first + target->count; i++) {
        if (fits) {
            match->source[i] = tensor;
            match->first[i] = inner ? heft__model_place_first(model, i) : 0;
        } else {
            match->lack[i] = HEFT__LACKS_SHAPE;
        }
    }
    return fits ? HEFT_OK
                : add_mismatch(match, info, inner && target->count > 1 ? inner->name : first->name,
                               shape, rank, err);
}

/* ---- ties ------------------------------------------------------------------------------------ */
/* A tie with both names in the checkpoint holds if their bytes are equal; else both are kept, as
 * Transformers does. */
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
    if (match->count) {
        match->doubt_bytes += model->parameters[target].size_bytes;
        model->parameters[target].tied_to = target;
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
                      "'%s' and '%s' should be tied, but the checkpoint has different values for "
                      "them: both are kept",
                      model->parameters[source].name, model->parameters[target].name)
               ? HEFT_OK
               : heft__fail_nomem(err, 0);
}

heft_status heft__match_settle(heft_model *model, const heft_checkpoint *ckpt, heft__match *match,
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
    return status == HEFT_OK ? heft__modules_measure(model, err) : status; /* some are untied now */
}

/* ---- missing --------------------------------------------------------------------------------- */
/* What the checkpoint has for the parameter that i is, under any name. */
enum present { HAS_NOTHING, HAS_OTHER_SHAPE, HAS_VALUE };

static void list_present(const heft_model *model, const heft__match *match, uint8_t *has)
{
    for (size_t i = 0; i < model->count; i++) {
        uint8_t *root = &has[model->parameters[i].tied_to];
        if (match->source[i] != HEFT__NO_TENSOR) {
            *root = HAS_VALUE;
        } else if (match->lack[i] != HEFT__LACKS_NOTHING && *root == HAS_NOTHING) {
            *root = HAS_OTHER_SHAPE;
        }
    }
}

static heft_status add_missing(const heft_model *model, size_t i, bool ignore, heft__match *match,
                               heft_error *err)
{
    const char *name = model->parameters[i].name;
    if (ignore && ends_with_any(name, model->family->ignore_missing)) {
        match->lack[i] = HEFT__LACKS_SILENTLY;
        return HEFT_OK;
    }
    match->lack[i] = HEFT__LACKS_KEY;
    match->missing[match->missing_count] = heft__arena_text(match->arena, name, strlen(name));
    return match->missing[match->missing_count++] ? HEFT_OK : heft__fail_nomem(err, strlen(name));
}

static heft_status list_missing(const heft_model *model, heft__match *match, bool ignore,
                                heft_error *err)
{
    uint8_t *has = heft__alloc_zero(model->ctx, model->count, sizeof *has);
    heft_status status = has ? HEFT_OK : heft__fail_nomem(err, model->count);
    if (status == HEFT_OK) {
        list_present(model, match, has);
    }
    for (size_t i = 0; i < model->count && status == HEFT_OK; i++) {
        const size_t root = model->parameters[i].tied_to;
        if (!in_state_dict(model, i) || match->source[i] != HEFT__NO_TENSOR ||
            match->lack[i] != HEFT__LACKS_NOTHING) {
            continue;
        }
        if (has[root] == HAS_NOTHING) {
            status = add_missing(model, i, ignore, match, err);
        } else if (has[root] == HAS_OTHER_SHAPE && root == i) {
            match->lack[i] = HEFT__LACKS_SHAPE; /* its value is random, too */
        }
    }
    heft__free(model->ctx, has, model->count);
    return status;
}

/* ---- the two ways ---------------------------------------------------------------------------- */
static heft_status take(struct lookup *lookup, const heft_checkpoint *ckpt,
                        const struct target *target, size_t tensor, heft_error *err)
{
    for (size_t i = target->first; i < target->first + target->count; i++) {
        if (lookup->taken[i] != HEFT__NO_TENSOR) {
            return heft__fail_at(err, HEFT_FORMAT, ckpt->entries[tensor]->item_offset,
                                 "'%.100s' and '%.100s' both map to '%.100s'",
                                 ckpt->infos[lookup->taken[i]].name, ckpt->infos[tensor].name,
                                 lookup->model->parameters[i].name);
        }
        lookup->taken[i] = tensor;
    }
    return HEFT_OK;
}

/* What a name in a file stands for; *key is its new name, in the scratch arena. */
static heft_status find_name(struct lookup *lookup, const char *name, const char **key,
                             struct target *target, heft_error *err)
{
    *key = rename_key(&lookup->scratch, name);
    if (!*key) {
        return heft__fail_nomem(err, 0);
    }
    heft_status status = find_key(lookup, *key, target, err);
    if (status == HEFT_OK && target->count == 0 && *key != name) {
        *target = find_target(lookup, name);
    }
    return status;
}

static heft_status match_key(struct lookup *lookup, const heft_checkpoint *ckpt, size_t tensor,
                             heft__match *match, heft_error *err)
{
    const heft_model *model = lookup->model;
    struct target target = {0};
    const char *key;
    heft_status status = find_name(lookup, ckpt->infos[tensor].name, &key, &target, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (target.count == 0) {
        lookup->left[tensor] = !ends_with_any(key, model->family->ignore_unexpected);
        return HEFT_OK;
    }
    status = take(lookup, ckpt, &target, tensor, err);
    return status == HEFT_OK ? assign(model, ckpt, &target, tensor, match, err) : status;
}

/* ---- names that a wrapper has made longer ------------------------------------------------------ */
/* Prefixes of a model inside another module: DataParallel and DeepSpeed, torch.compile, PEFT, Fabric,
 * and what Lightning modules and training scripts call their model. */
static const char *const outer[] = {"module.", "base_model.model.", "_forward_module.", "model.",
                                    "net.",    "network.",          "state_dict."};
/* Parts that wrappers of inner modules add anywhere. */
static const char *const inner[] = {"_orig_mod.", "_fsdp_wrapped_module.",
                                    "_checkpoint_wrapped_module.", "_forward_module."};

const char *heft__match_unwrap(heft__arena *arena, const char *name, const char **what,
                               heft_status *status)
{
    for (size_t i = 0; i < sizeof inner / sizeof inner[0]; i++) {
        const char *found = strstr(name, inner[i]);
        if (found && (found == name || found[-1] == '.')) {
            const char *made = heft__arena_format(arena, "%.*s%s", (int)(found - name), name,
                                                  found + strlen(inner[i]));
            *what = inner[i];
            *status = made ? HEFT_OK : HEFT_NOMEM;
            return made;
        }
    }
    for (size_t i = 0; i < sizeof outer / sizeof outer[0]; i++) {
        if (strncmp(name, outer[i], strlen(outer[i])) == 0) {
            *what = outer[i];
            return name + strlen(outer[i]);
        }
    }
    return NULL;
}

#define WRAPPERS_MOST 8

/* What a name that fits nothing stands for without the wrappers' parts, if no other name fills that. */
static heft_status find_unwrapped(struct lookup *lookup, const char *full, const char **what,
                                  struct target *target, heft_error *err)
{
    const char *name = full;
    heft_status status = HEFT_OK;
    *target = (struct target){0};
    for (int i = 0; i < WRAPPERS_MOST && target->count == 0 && status == HEFT_OK; i++) {
        name = heft__match_unwrap(&lookup->scratch, name, what, &status);
        const char *key = name ? rename_key(&lookup->scratch, name) : NULL;
        if (!key) {
            status = name || status != HEFT_OK ? heft__fail_nomem(err, strlen(full)) : HEFT_OK;
            break;
        }
        status = find_key(lookup, key, target, err);
    }
    for (size_t i = target->first; i < target->first + target->count; i++) {
        target->count = lookup->taken[i] == HEFT__NO_TENSOR ? target->count : 0;
    }
    return status;
}

/* A key that fits nothing, without the wrappers' parts: used if that is a parameter which no other key
 * fills; else the key is unexpected. */
static heft_status match_unwrapped(struct lookup *lookup, const heft_checkpoint *ckpt,
                                   size_t tensor, heft__match *match, heft_error *err)
{
    const char *full = ckpt->infos[tensor].name, *what = NULL;
    struct target target;
    heft_status status = find_unwrapped(lookup, full, &what, &target, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (target.count == 0) {
        const char *key = rename_key(&lookup->scratch, full);
        return key ? add_unexpected(match, key, err) : heft__fail_nomem(err, strlen(full));
    }
    match->unwrapped = match->unwrapped_count++ ? match->unwrapped : what;
    status = take(lookup, ckpt, &target, tensor, err);
    return status == HEFT_OK ? assign(lookup->model, ckpt, &target, tensor, match, err) : status;
}

/* ---- names alone ------------------------------------------------------------------------------- */
/* Take what the name of this number stands for. Returns the parameter if it fills that by itself. */
static size_t take_name(struct lookup *lookup, const struct target *target, size_t number)
{
    for (size_t i = target->first; i < target->first + target->count; i++) {
        lookup->taken[i] = number;
    }
    return target->count == 1 ? target->first : SIZE_MAX;
}

static heft_status look_up_names(struct lookup *lookup, const char *const *names, size_t count,
                                 size_t *parameters, heft_error *err)
{
    const char *key, *what;
    struct target target = {0};
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        status = find_name(lookup, names[i], &key, &target, err);
        lookup->left[i] = status == HEFT_OK && target.count == 0 &&
                          !ends_with_any(key, lookup->model->family->ignore_unexpected);
        parameters[i] = take_name(lookup, &target, i);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        if (lookup->left[i]) {
            status = find_unwrapped(lookup, names[i], &what, &target, err);
            parameters[i] = take_name(lookup, &target, i);
        }
    }
    return status;
}

static heft_status make_left(struct lookup *lookup, size_t count, heft_error *err)
{
    lookup->left = heft__alloc_zero(lookup->model->ctx, count, sizeof *lookup->left);
    lookup->left_count = lookup->left ? count : 0;
    return lookup->left ? HEFT_OK : heft__fail_nomem(err, count);
}

heft_status heft__match_names(const heft_model *model, const char *const *names, size_t count,
                              size_t *parameters, heft_error *err)
{
    struct lookup lookup;
    heft_status status = start_lookup(&lookup, model, err);
    if (status == HEFT_OK) {
        status = make_left(&lookup, count, err);
    }
    if (status == HEFT_OK) {
        status = look_up_names(&lookup, names, count, parameters, err);
    }
    stop_lookup(&lookup);
    return status;
}

bool heft__match_ignores(const heft_model *model, const char *name)
{
    return ends_with_any(name, model->family->ignore_unexpected);
}

/* ---- the keys of a checkpoint ------------------------------------------------------------------ */
heft_status heft__match_keys(heft_model *model, const heft_checkpoint *ckpt, heft__match *match,
                             heft_error *err)
{
    struct lookup lookup;
    heft_status status = start_lookup(&lookup, model, err);
    if (status == HEFT_OK) {
        status = make_lists(model, ckpt, match, err);
    }
    if (status == HEFT_OK) {
        status = make_left(&lookup, ckpt->count, err);
    }
    for (size_t i = 0; i < ckpt->count && status == HEFT_OK; i++) {
        status = match_key(&lookup, ckpt, i, match, err);
    }
    for (size_t i = 0; i < ckpt->count && status == HEFT_OK; i++) {
        status = lookup.left[i] ? match_unwrapped(&lookup, ckpt, i, match, err) : HEFT_OK;
    }
    if (status == HEFT_OK) {
        status = heft__match_settle(model, ckpt, match, err);
    }
    if (status == HEFT_OK) {
        status = list_missing(model, match, true, err);
    }
    stop_lookup(&lookup);
    return status;
}

heft_status heft__match_exactly(const heft_model *model, const heft_checkpoint *ckpt,
                                heft__match *match, heft_error *err)
{
    heft_status status = make_lists(model, ckpt, match, err);
    for (size_t i = 0; i < ckpt->count && status == HEFT_OK; i++) {
        const struct target target = {find(model, ckpt->infos[i].name), 1, NULL};
        status = target.first == SIZE_MAX ? add_unexpected(match, ckpt->infos[i].name, err)
                                          : assign(model, ckpt, &target, i, match, err);
    }
    return status == HEFT_OK ? list_missing(model, match, false, err) : status;
}
