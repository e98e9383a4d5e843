/* into.c - heft_model_load_sharded: a checkpoint's values into a model that exists.
 *
 * Names are used as they are, and nothing is read before all of them were compared. Two names that the model
 * ties, and for which the checkpoint has different values, are two parameters from then on, as for a load.
 * Where a cast is asked for, what gets a value gets the dtype too. Until everything has been read, the model
 * can go back to what it was, but for memory of its own that was written over.
 * Source: docs/loading.md [6]. */
#include "load/load.h"

/* What may change of a parameter before it has its value. */
struct before {
    heft_dtype dtype;
    uint64_t size_bytes;
    size_t tied_to;
};

struct into {
    heft__loading l;
    const heft_load_sharded_options *asked;
    heft_source *source;
    struct before *before; /* [model->count] NULL: nothing has changed */
    bool *anew;            /* [model->count] does not fit into the memory it has */
};

static heft_status open_source(struct into *o, const char *folder, heft_error *err)
{
    const heft_source_options options =
        HEFT_OPTIONS(heft_source_options, .checkpoint = o->asked->checkpoint);
    heft_status status = heft_source_open(o->l.ctx, folder, &options, &o->source, err);
    if (status == HEFT_OK) {
        status = heft__source_need_weights(o->source, err);
    }
    if (status == HEFT_OK && !(o->asked->checkpoint && o->asked->checkpoint->trust_shards)) {
        status = heft_source_check_index(o->source, err);
    }
    if (status == HEFT_OK) {
        o->l.ckpt = o->source->ckpt;
    }
    return status;
}

/* ---- going back ------------------------------------------------------------------------------ */
static heft_status remember(struct into *o, heft_error *err)
{
    const heft_model *model = o->l.model;
    o->before = heft__alloc(model->ctx, model->count * sizeof *o->before);
    o->anew = heft__alloc_zero(model->ctx, model->count, sizeof *o->anew);
    if (!o->before || !o->anew) {
        return heft__fail_nomem(err, model->count * sizeof *o->before);
    }
    for (size_t i = 0; i < model->count; i++) {
        const heft_parameter *parameter = &model->parameters[i];
        o->before[i] = (struct before){parameter->dtype, parameter->size_bytes, parameter->tied_to};
    }
    return HEFT_OK;
}

static void go_back(struct into *o)
{
    heft_model *model = o->l.model;
    for (size_t i = 0; o->before && i < model->count; i++) {
        model->parameters[i].dtype = o->before[i].dtype;
        model->parameters[i].size_bytes = o->before[i].size_bytes;
        model->parameters[i].tied_to = o->before[i].tied_to;
    }
    (void)heft__modules_measure(model, NULL);
}

/* ---- dtypes ---------------------------------------------------------------------------------- */
/* What gets no value keeps its dtype, and with it the value that it has. */
static heft_status cast_filled(struct into *o, heft_error *err)
{
    heft_model *model = o->l.model;
    const heft_load_sharded_options *asked = o->asked;
    const heft_module_dtype whole = {"", asked->dtype};
    heft_status status =
        asked->dtype != HEFT_DTYPE_NONE ? heft__model_retype(model, &whole, 1, err) : HEFT_OK;
    if (status == HEFT_OK) {
        status = heft__model_retype(model, asked->dtypes, asked->dtype_count, err);
    }
    for (size_t i = 0; i < model->count && status == HEFT_OK; i++) {
        heft_parameter *parameter = &model->parameters[i];
        if (o->l.match.source[parameter->tied_to] == HEFT__NO_TENSOR) {
            parameter->dtype = o->before[i].dtype;
            parameter->size_bytes = o->before[i].size_bytes;
        }
        o->anew[i] =
            parameter->dtype != o->before[i].dtype || parameter->tied_to != o->before[i].tied_to;
    }
    return status == HEFT_OK ? heft__modules_measure(model, err) : status;
}

/* ---- all of it ------------------------------------------------------------------------------- */
static heft_status settle(struct into *o, heft_error *err)
{
    heft__loading *l = &o->l;
    heft_status status = remember(o, err);
    if (status == HEFT_OK) {
        status = heft__match_settle(l->model, l->ckpt, &l->match, err);
    }
    if (status == HEFT_OK) {
        status = cast_filled(o, err);
    }
    if (status == HEFT_OK) {
        status = heft__packed_refuse_casts(o->source, l->model, &l->match, err);
    }
    if (status == HEFT_OK) {
        l->fill.reuse = true;
        l->fill.anew = o->anew;
        l->fill.reason = HEFT__FILL_EXISTING;
        status = heft__loading_check_limit(l, err);
    }
    return status;
}

/* What is stored quantized must be so in the model, too. */
static heft_status check_quantized(struct into *o, heft_error *err)
{
    const heft_source *source = o->source;
    if (source->quant.count + source->quant.loose > 0) {
        return heft__packed_check_exact(source, o->l.model, &o->l.match, err);
    }
    return source->no_quant.status == HEFT_OK ? HEFT_OK : heft__source_check_quantized(source, err);
}

static heft_status load_into(struct into *o, const char *folder, heft_error *err)
{
    heft__loading *l = &o->l;
    heft_status status = open_source(o, folder, err);
    if (status == HEFT_OK) {
        status = heft__report_new(l->ctx, &l->memory, err);
    }
    if (status == HEFT_OK) {
        l->match = (heft__match){.arena = &l->memory->arena, .warnings = &l->memory->warnings};
        status = heft__match_exactly(l->model, l->ckpt, &l->match, err);
    }
    if (status == HEFT_OK) {
        status = check_quantized(o, err);
    }
    heft_status verdict = status == HEFT_OK ? heft__loading_judge(l, err) : status;
    if (verdict == HEFT_OK) {
        verdict = heft__fit_judge(l, err);
    }
    if (verdict == HEFT_OK) {
        verdict = heft__fit_judge_packed(l, &o->source->quant, err);
    }
    if (verdict == HEFT_OK) {
        verdict = heft__fit_warn_of_integers(l, err);
    }
    if (verdict == HEFT_OK) {
        verdict = settle(o, err);
    }
    if (verdict == HEFT_OK) {
        verdict = heft__fill(l->model, l->ckpt, &l->match, &l->fill, &l->counts, err);
    }
    if (verdict != HEFT_OK) {
        go_back(o);
    } else if (o->asked->dtype != HEFT_DTYPE_NONE) {
        l->model->dtype = o->asked->dtype;
    }
    if (status == HEFT_OK && (verdict == HEFT_OK || verdict == HEFT_MISMATCH)) {
        status = heft__report_fill(l->memory, l->model, &l->match, &l->counts, &l->fill,
                                   verdict == HEFT_OK ? err : NULL);
        l->memory->report.parameters = heft_model_elements(l->model);
        verdict = verdict == HEFT_OK ? status : verdict;
    }
    return verdict;
}

heft_status heft_model_load_sharded(heft_model *model, const char *folder,
                                    const heft_load_sharded_options *asked,
                                    heft_load_report **report, heft_error *err)
{
    heft_load_sharded_options taken;
    if (!model || !folder) {
        return heft__fail(err, HEFT_INVALID_ARG, "model or folder is NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&taken, asked, err);
    if (status != HEFT_OK) {
        return status;
    }
    const double started = heft__loading_clock();
    const heft_load_options options =
        HEFT_OPTIONS(heft_load_options, .strict = taken.strict, .over_limit = taken.over_limit,
                     .allow_missing = taken.allow_missing);
    struct into o = {
        .l = {.ctx = model->ctx, .options = &options, .model = model},
          .asked = &taken
    };
    status = load_into(&o, folder, err);
    heft__match_fini(model, &o.l.match);
    heft__loading_report(o.l.memory, status, started, report);
    heft__free(model->ctx, o.before, model->count * sizeof *o.before);
    heft__free(model->ctx, o.anew, model->count * sizeof *o.anew);
    heft_source_close(o.source);
    return heft__add_path(status, err, folder);
}
