/* source_convert.c - rewriting a source: which order its names are written in.
 *
 * A safetensors file does not say in which order the state dict was. Where the config beside it names
 * a model that heft knows, the names are written in that model's order, and the index gets its number
 * of parameters. Where it does not, the conversion works without.
 * Source: docs/sharding.md [5]. */
#include "load/load.h"

struct order {
    const heft_checkpoint *ckpt;
    heft_model *model;
    const char **names; /* [model->count]; the texts are the model's */
    heft__names known;
    heft_dtype *dtypes; /* [ckpt->count] owned; NULL: all get what is asked for */
    size_t *parameter,
        *tied_to; /* [ckpt->count] as in heft__names; NULL: no names are one tensor */
};

static bool has_own_order(const heft_checkpoint *ckpt)
{
    bool pickles = true;
    for (size_t i = 0; i < ckpt->file_count; i++) {
        pickles = pickles && heft__format_find(ckpt->files[i].info.format)->has_order;
    }
    return pickles;
}

/* How many of the model's names the checkpoint has. */
static size_t count_found(const heft_model *model, const heft_checkpoint *ckpt)
{
    size_t found = 0;
    for (size_t i = 0; i < model->count; i++) {
        found += heft_checkpoint_find(ckpt, model->parameters[i].name) != SIZE_MAX;
    }
    return found;
}

static bool has_elements(const heft_checkpoint *ckpt, const heft_parameter *parameter)
{
    const size_t at = heft_checkpoint_find(ckpt, parameter->name);
    uint64_t ours, theirs;
    return at != SIZE_MAX && heft__shape_elems(parameter->shape, parameter->rank, &ours) &&
           heft__shape_elems(ckpt->infos[at].shape, ckpt->infos[at].rank, &theirs) &&
           ours == theirs;
}

/* Whether every weight is there, tied ones under one name at least. */
static heft_status is_complete(const heft_model *model, const heft_checkpoint *ckpt, bool *complete,
                               heft_error *err)
{
    bool *found = heft__alloc_zero(model->ctx, model->count, sizeof *found);
    if (!found) {
        return heft__fail_nomem(err, model->count);
    }
    *complete = true;
    for (size_t i = 0; i < model->count; i++) {
        found[model->parameters[i].tied_to] |= has_elements(ckpt, &model->parameters[i]);
    }
    for (size_t i = 0; i < model->count; i++) {
        const heft_parameter *parameter = &model->parameters[i];
        *complete =
            *complete && (found[parameter->tied_to] || parameter->kind != HEFT_PARAMETER_WEIGHT);
    }
    heft__free(model->ctx, found, model->count);
    return HEFT_OK;
}

/* A model that cannot be made is none; without memory that is an error. */
static heft_status try_model(const heft_source *source, const char *class_name, heft_model **out,
                             heft_error *err)
{
    heft_error why = {0};
    const heft_status status =
        heft_model_new(source->ctx, source->config, class_name, HEFT_DTYPE_NONE, out, &why);
    if (status == HEFT_NOMEM && err) {
        *err = why;
    }
    return status == HEFT_NOMEM ? status : HEFT_OK;
}

/* The source's class, or the family's base model if more of the names are that one's. */
static heft_status find_model(const heft_source *source, struct order *o, heft_error *err)
{
    heft_model *base = NULL;
    heft_status status =
        source->config ? try_model(source, source->asked_class, &o->model, err) : HEFT_OK;
    if (status != HEFT_OK || !o->model) {
        return status;
    }
    const size_t found = count_found(o->model, o->ckpt);
    if (found < o->ckpt->count) {
        status = try_model(source, "AutoModel", &base, err);
    }
    if (base && count_found(base, o->ckpt) > found) {
        heft_model *other = o->model;
        o->model = base;
        base = other;
    }
    heft_model_free(base);
    return status;
}

static heft_status list_names(struct order *o, bool natural, heft_error *err)
{
    const heft_model *model = o->model;
    size_t *numbers = heft__alloc(model->ctx, model->count * sizeof *numbers);
    o->names = heft__alloc(model->ctx, model->count * sizeof *o->names);
    heft_status status =
        numbers && o->names ? HEFT_OK : heft__fail_nomem(err, model->count * sizeof *o->names);
    if (status == HEFT_OK && natural) {
        status = heft_model_natural_order(model, numbers, err);
    }
    for (size_t i = 0; i < model->count && status == HEFT_OK; i++) {
        o->names[i] = model->parameters[natural ? numbers[i] : i].name;
    }
    if (status == HEFT_OK) {
        o->known.list = o->names;
        o->known.count = model->count;
    }
    heft__free(model->ctx, numbers, model->count * sizeof *numbers);
    return status;
}

/* What the family keeps in float32 is kept so by a cast too: which tensors these are. */
static heft_status find_float32(const heft_source *source, heft_dtype dtype, struct order *o,
                                heft_error *err)
{
    const size_t count = o->ckpt->count;
    heft__recipe recipe = {.config = source->config, .dtype = dtype, .keep_f32 = true};
    heft_model *cast = NULL;
    const char **names = heft__alloc(source->ctx, count * sizeof *names);
    size_t *parameters = heft__alloc(source->ctx, count * sizeof *parameters);
    heft_status status = names && parameters
                             ? heft__class_find(source->config, heft_model_class(o->model),
                                                &recipe.family, &recipe.class, err)
                             : heft__fail_nomem(err, count * sizeof *names);
    if (status == HEFT_OK) {
        status = heft__model_build(source->ctx, &recipe, &cast, err);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        names[i] = o->ckpt->infos[i].name;
    }
    if (status == HEFT_OK) {
        status = heft__match_names(cast, names, count, parameters, err);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        const bool kept =
            parameters[i] != SIZE_MAX && cast->parameters[parameters[i]].dtype == HEFT_DTYPE_F32;
        o->dtypes[i] = kept ? HEFT_DTYPE_F32 : HEFT_DTYPE_NONE;
    }
    heft_model_free(cast);
    heft__free(source->ctx, names, count * sizeof *names);
    heft__free(source->ctx, parameters, count * sizeof *parameters);
    return status;
}

static const heft__family *family_of(const heft_source *source, const struct order *o)
{
    return o->model         ? o->model->family
           : source->config ? heft__family_find(heft_config_model_type(source->config))
                            : NULL;
}

/* The same for a class or a model type that is not known: by the names of the tensors. */
static heft_status find_float32_by_name(const heft_source *source, heft_dtype dtype,
                                        struct order *o, heft_error *err)
{
    const heft__float32_list *kept = NULL;
    heft__arena arena;
    heft__arena_init(&arena, source->ctx);
    const heft_status status = heft__config_float32(source->config, &arena, &kept, err);
    for (size_t i = 0; status == HEFT_OK && kept && i < o->ckpt->count; i++) {
        if (heft_dtype_is_floating(o->ckpt->infos[i].dtype) &&
            heft__stays_float32(kept, dtype, o->ckpt->infos[i].name)) {
            o->dtypes[i] = HEFT_DTYPE_F32;
        }
    }
    heft__arena_fini(&arena);
    return status;
}

/* A model whose modules are those that the names make. */
static heft_status model_by_names(const heft_source *source, heft_model **out, heft_error *err)
{
    const heft_load_options plain = HEFT_SIZED(heft_load_options);
    heft_config *none = NULL;
    heft_status status =
        source->config ? HEFT_OK : heft_config_new(source->ctx, "{}", 2, &none, err);
    if (status == HEFT_OK) {
        status = heft__unknown_model(source->ckpt, none ? none : source->config, &plain, out, err);
    }
    heft_config_free(none);
    return status;
}

/* What the caller asks for of parts: by the modules of the model, where that is known, else by those that the names
 * make. */
static heft_status find_asked(const heft_source *source, const heft_convert_options *options,
                              struct order *o, heft_error *err)
{
    const size_t count = o->ckpt->count;
    heft_model *named = NULL;
    heft_status status = o->model ? HEFT_OK : model_by_names(source, &named, err);
    const heft_model *model = o->model ? o->model : named;
    heft__arena arena;
    heft__arena_init(&arena, source->ctx);
    const char **names = heft__arena_array(&arena, count + 1, sizeof *names);
    size_t *parameters = heft__arena_array(&arena, count + 1, sizeof *parameters);
    heft_dtype *dtypes =
        status == HEFT_OK ? heft__arena_array(&arena, model->count + 1, sizeof *dtypes) : NULL;
    if (status == HEFT_OK && (!names || !parameters || !dtypes)) {
        status = heft__fail_nomem(err, count * sizeof *names);
    }
    if (status == HEFT_OK) {
        status = heft__model_dtypes(model, options->dtypes, options->dtype_count, dtypes, err);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        names[i] = o->ckpt->infos[i].name;
    }
    if (status == HEFT_OK) {
        status = heft__match_names(model, names, count, parameters, err);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        if (parameters[i] != SIZE_MAX && dtypes[parameters[i]] != HEFT_DTYPE_NONE) {
            o->dtypes[i] = dtypes[parameters[i]];
        }
    }
    heft__arena_fini(&arena);
    heft_model_free(named);
    return status;
}

/* Which dtypes tensors get that are not that of all. */
static heft_status find_dtypes(const heft_source *source, const heft_convert_options *options,
                               struct order *o, heft_error *err)
{
    const size_t count = o->ckpt->count;
    const bool halves = options->dtype != HEFT_DTYPE_NONE && options->dtype != HEFT_DTYPE_F32;
    heft_status status = HEFT_OK;
    if (!halves && !options->dtype_count) {
        return HEFT_OK;
    }
    o->dtypes = heft__alloc_zero(source->ctx, count, sizeof *o->dtypes);
    o->known.dtypes = o->dtypes;
    if (!o->dtypes) {
        return heft__fail_nomem(err, count * sizeof *o->dtypes);
    }
    if (halves && o->model) {
        status = find_float32(source, options->dtype, o, err);
    } else if (halves) {
        status = find_float32_by_name(source, options->dtype, o, err);
    }
    return status == HEFT_OK && options->dtype_count ? find_asked(source, options, o, err) : status;
}

/* They are converted as they are, into a checkpoint that lacks these weights as the source does. */
static heft_status warn_of_placeholders(const heft_source *source, heft__warnings *notes,
                                        heft_error *err)
{
    const heft_checkpoint *ckpt = source->ckpt;
    const char *first = NULL;
    size_t count = 0;
    for (size_t i = 0; ckpt && i < ckpt->count; i++) {
        const heft_tensor_info *info = &ckpt->infos[i];
        if (heft__is_placeholder(info->shape, info->rank) && count++ == 0) {
            first = info->name;
        }
    }
    return count == 0 || heft__warn(notes,
                                    "found %zu tensor%s of shape [0], which DeepSpeed ZeRO-3 saves "
                                    "in place of weights that were not gathered: '%.200s'%s",
                                    count, count > 1 ? "s" : "", first, count > 1 ? ", ..." : "")
               ? HEFT_OK
               : heft__fail_nomem(err, 0);
}

/* ---- ties ------------------------------------------------------------------------------------ */
static heft_status list_texts(const heft_checkpoint *ckpt, const char ***out, heft_error *err)
{
    const char **names = heft__alloc(ckpt->ctx, ckpt->count * sizeof *names);
    for (size_t i = 0; names && i < ckpt->count; i++) {
        names[i] = ckpt->infos[i].name;
    }
    *out = names;
    return names ? HEFT_OK : heft__fail_nomem(err, ckpt->count * sizeof *names);
}

/* What the names stand for in a model. Returns how many of those that are one tensor are its own. */
static heft_status look_up(const heft_model *model, const char *const *names, const bool *shared,
                           struct order *o, size_t *known, heft_error *err)
{
    const size_t count = o->ckpt->count;
    const heft_status status = heft__match_names(model, names, count, o->parameter, err);
    *known = 0;
    for (size_t i = 0; status == HEFT_OK && i < count; i++) {
        const size_t parameter = o->parameter[i];
        o->tied_to[i] =
            parameter == HEFT__NO_PARAMETER ? parameter : model->parameters[parameter].tied_to;
        *known += shared[i] && parameter != HEFT__NO_PARAMETER;
    }
    return status;
}

/* The same, of a model that is made for it; a class that cannot be one knows nothing. */
static heft_status look_up_class(const heft_source *source, const char *class_name,
                                 const char *const *names, const bool *shared, struct order *o,
                                 size_t *known, heft_error *err)
{
    heft_model *model = NULL;
    *known = 0;
    heft_status status = try_model(source, class_name, &model, err);
    if (status == HEFT_OK && model) {
        status = look_up(model, names, shared, o, known, err);
    }
    heft_model_free(model);
    return status;
}

/* Which of the names that are one tensor the family saves, by the class that has most of them: a head that
 * the source's class lacks may be that of another class. */
static heft_status find_ties(const heft_source *source, const heft__family *family,
                             const bool *shared, struct order *o, heft_error *err)
{
    const size_t count = o->ckpt->count;
    const char *best = o->model ? heft_model_class(o->model) : NULL, *latest = best;
    const char **names = NULL;
    size_t most = 0, known = 0, wanted = 0;
    heft_status status = list_texts(o->ckpt, &names, err);
    for (size_t i = 0; i < count; i++) {
        wanted += shared[i];
    }
    if (status == HEFT_OK && best) {
        status = look_up(o->model, names, shared, o, &most, err);
    }
    const heft__class *class = family->classes;
    for (; status == HEFT_OK && most < wanted && class->name; class ++) {
        status = look_up_class(source, class->name, names, shared, o, &known, err);
        latest = class->name;
        best = known > most ? latest : best;
        most = known > most ? known : most;
    }
    if (status == HEFT_OK && best && latest != best) { /* a class after the best one was tried */
        status = look_up_class(source, best, names, shared, o, &known, err);
    }
    if (status == HEFT_OK && most > 0) {
        o->known.parameter = o->parameter;
        o->known.tied_to = o->tied_to;
    }
    heft__free(source->ctx, names, count * sizeof *names);
    return status;
}

/* Where names are one tensor, what the family says of them. */
static heft_status look_at_ties(const heft_source *source, struct order *o, heft_error *err)
{
    const heft__family *family = family_of(source, o);
    if (!family) {
        return HEFT_OK;
    }
    const size_t count = o->ckpt->count;
    size_t *first = NULL, aliases = 0;
    bool *shared = heft__alloc_zero(source->ctx, count, sizeof *shared);
    heft_status status =
        shared ? heft__checkpoint_aliases(o->ckpt, &first, err) : heft__fail_nomem(err, count);
    for (size_t i = 0; status == HEFT_OK && i < count; i++) {
        shared[i] = shared[i] || first[i] != i;
        shared[first[i]] = shared[first[i]] || first[i] != i;
        aliases += first[i] != i;
    }
    if (status == HEFT_OK && aliases > 0) {
        o->parameter = heft__alloc(source->ctx, count * sizeof *o->parameter);
        o->tied_to = heft__alloc(source->ctx, count * sizeof *o->tied_to);
        status = o->parameter && o->tied_to ? find_ties(source, family, shared, o, err)
                                            : heft__fail_nomem(err, count * sizeof *o->tied_to);
    }
    heft__free(source->ctx, shared, count * sizeof *shared);
    heft__free(source->ctx, first, first ? count * sizeof *first : 0);
    return status;
}

static heft_status find_order(const heft_source *source, bool natural, struct order *o,
                              heft_error *err)
{
    bool complete = false;
    heft_status status = find_model(source, o, err);
    if (status != HEFT_OK || !o->model) {
        return status;
    }
    status = is_complete(o->model, o->ckpt, &complete, err);
    o->known.total_parameters = complete ? heft_model_elements(o->model) : 0;
    return status == HEFT_OK && (natural || !has_own_order(o->ckpt)) ? list_names(o, natural, err)
                                                                     : status;
}

heft_status heft_source_convert(const heft_source *source, const char *dst,
                                const heft_convert_options *options, heft_write_report **report,
                                heft_error *err)
{
    heft_convert_options taken;
    if (!source || !dst) {
        return heft__fail(err, HEFT_INVALID_ARG, "source or destination is NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status == HEFT_OK) {
        status = heft__source_need_weights(source, err);
    }
    if (status == HEFT_OK) {
        status = heft_source_check_index(source, err);
    }
    if (status == HEFT_OK && (taken.dtype != HEFT_DTYPE_NONE || taken.dtype_count)) {
        status = heft__source_check_quantized(source, err); /* what must not be cast */
    }
    if (status == HEFT_OK && source->quant.method) { /* it would say that they are there */
        status = heft__checkpoint_check_unread(source->ckpt, err);
    }
    struct order o = {.ckpt = source->ckpt, .known = {.packed = source->quant.owner}};
    if (status == HEFT_OK && !source->config && source->no_config.status == HEFT_IO) {
        status = heft__source_need_config(source, err); /* it decides the order of the tensors */
    }
    if (status == HEFT_OK) {
        status = find_order(source, taken.natural_order, &o, err);
    }
    if (status == HEFT_OK) {
        status = find_dtypes(source, &taken, &o, err);
    }
    heft__arena lines;
    heft__warnings notes;
    heft__arena_init(&lines, source->ctx);
    heft__warnings_init(&notes, &lines);
    if (status == HEFT_OK) {
        status = look_at_ties(source, &o, err);
    }
    if (status == HEFT_OK) {
        status = heft__source_warn_quantized(source, &notes, err);
    }
    if (status == HEFT_OK) {
        status = warn_of_placeholders(source, &notes, err);
    }
    if (status == HEFT_OK) {
        o.known.notes = notes.lines;
        o.known.note_count = notes.count;
        status = heft__checkpoint_convert(source->ckpt, dst, &o.known, &taken, report, err);
    }
    heft__arena_fini(&lines);
    if (o.model) {
        heft__free(source->ctx, o.names, o.model->count * sizeof *o.names);
    }
    const size_t count = source->ckpt ? source->ckpt->count : 0;
    heft__free(source->ctx, o.dtypes, count * sizeof *o.dtypes);
    heft__free(source->ctx, o.parameter, count * sizeof *o.parameter);
    heft__free(source->ctx, o.tied_to, count * sizeof *o.tied_to);
    heft_model_free(o.model);
    return status;
}
