/* load.c - heft_model_load: from a checkpoint's path to a model with its weights.
 *
 * Lists first, bytes second: config, empty model, match, report; only when nothing is in the way, and
 * what has to be in memory fits there, is anything read. What the checkpoint lacks is initialized last.
 * Source: docs/loading.md. */
#include "load/load.h"

#include <time.h>

double heft__loading_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* ---- dtype "auto" ---------------------------------------------------------------------------- */
static bool counts_for_dtype(heft_dtype dtype)
{
    return heft_dtype_is_floating(dtype) && heft_dtype_bits(dtype) >= 16;
}

heft_dtype heft__choose_dtype(const heft_checkpoint *ckpt, const heft_config *config,
                              heft_dtype asked)
{
    if (asked != HEFT_DTYPE_NONE) {
        return asked;
    }
    if (config && heft_config_dtype(config) != HEFT_DTYPE_NONE) {
        return heft_config_dtype(config);
    }
    const heft_tensor_info *first = NULL;
    /* where a file has but one tensor */
    const bool all = ckpt && ckpt->where.index_format && ckpt->where.index_format->file_each;
    for (size_t i = 0; ckpt && i < ckpt->count && (all || ckpt->infos[i].file_index == 0); i++) {
        const heft_tensor_info *info = &ckpt->infos[i];
        if (counts_for_dtype(info->dtype) && (!first || strcmp(info->name, first->name) < 0)) {
            first = info;
        }
    }
    return first ? first->dtype : HEFT_DTYPE_F32;
}

/* ---- quantized weights ------------------------------------------------------------------------ */
/* They stay as they are: with a dtype, it must be what the other weights have anyway. */
static heft_status check_quantized(const heft__loading *l, heft_error *err)
{
    const heft_source *source = l->source;
    const heft_dtype asked = l->options->dtype,
                     own = heft__choose_dtype(l->ckpt, source->config, HEFT_DTYPE_NONE);
    heft_status status = heft__source_check_quantized(source, err);
    if (status == HEFT_OK && heft__source_is_packed(source) && asked != HEFT_DTYPE_NONE &&
        asked != own) {
        status =
            heft__fail(err, HEFT_UNSUPPORTED,
                       "the weights are quantized (%.40s, %u bits) and cannot be cast to %s: "
                       "omit the dtype to load them as stored, or dequantize them (--dequantize)",
                       source->quant.method, source->quant.bits, heft_dtype_name(asked));
    }
    return status;
}

/* ---- one load -------------------------------------------------------------------------------- */
static heft_status make_plain_model(heft__loading *l, heft_error *err)
{
    const heft_source *source = l->source;
    heft__recipe recipe = {.config = source->config, .keep_f32 = true};
    heft_status status = heft__source_need_config(source, err);
    if (status == HEFT_OK) {
        status = check_quantized(l, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    recipe.dtype = heft__choose_dtype(l->ckpt, source->config, l->options->dtype);
    if (!heft__dtype_is_wide_float(recipe.dtype)) {
        return heft__fail(err, HEFT_INVALID_ARG, "a model cannot have dtype %s",
                          heft_dtype_name(recipe.dtype));
    }
    if (heft__source_is_unknown(source)) {
        char reason[200];
        heft__source_unknown_text(source, reason);
        status = heft__unknown_model(l->ckpt, source->config, l->options, &l->model, err);
        if (status == HEFT_OK && l->memory &&
            !heft__warn(&l->memory->warnings,
                        "%s: names, shapes and blocks are taken from the checkpoint, and missing "
                        "tensors cannot be detected",
                        reason)) {
            status = heft__fail_nomem(err, 0);
        }
        return status;
    }
    if (l->options->tensor_dtypes) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "tensor_dtypes is for models that the checkpoint's own names make");
    }
    status =
        heft__class_find(source->config, source->asked_class, &recipe.family, &recipe.class, err);
    if (status != HEFT_OK) {
        return status;
    }
    return heft__source_is_packed(source) || heft__source_has_state(source)
               ? heft__packed_model(source, &recipe, &l->model, err)
               : heft__model_build(l->ctx, &recipe, &l->model, err);
}

heft_status heft__loading_make_model(heft__loading *l, heft_error *err)
{
    const heft_status status = make_plain_model(l, err);
    return status == HEFT_OK
               ? heft__model_retype(l->model, l->options->dtypes, l->options->dtype_count, err)
               : status;
}

heft_status heft__loading_take_plan(heft__loading *l, heft_error *err)
{
    return l->options->plan ? heft__plan_devices(l->options->plan, l->model, &l->devices, err)
                            : HEFT_OK;
}

static heft_status prepare(heft__loading *l, heft_error *err)
{
    heft_status status = heft__source_need_weights(l->source, err);
    if (status == HEFT_OK && l->options->strict) {
        status = heft_source_check_index(l->source, err);
    }
    if (status == HEFT_OK) {
        status = heft__report_new(l->ctx, &l->memory, err);
    }
    if (status == HEFT_OK) {
        status = heft__loading_make_model(l, err);
    }
    if (status == HEFT_OK) {
        status = heft__loading_take_plan(l, err);
    }
    if (status == HEFT_OK) {
        status = heft__source_warn_quantized(l->source, &l->memory->warnings, err);
    }
    for (size_t i = 0; status == HEFT_OK && i < l->ckpt->warnings.count; i++) {
        if (!heft__warn(&l->memory->warnings, "%s", l->ckpt->warnings.lines[i])) {
            status = heft__fail_nomem(err, 0);
        }
    }
    return status;
}

/* The refusal for lists that should be empty; the first offender is the item. */
heft_status heft__loading_judge(const heft__loading *l, heft_error *err)
{
    const heft__match *match = &l->match;
    char theirs[HEFT__SHAPE_TEXT], ours[HEFT__SHAPE_TEXT];
    if (match->mismatched_count && (!l->options->ignore_mismatched_sizes || l->options->strict)) {
        const heft_mismatch *first = &match->mismatched[0];
        heft__shape_text(first->checkpoint_shape, first->checkpoint_rank, theirs);
        heft__shape_text(first->model_shape, first->model_rank, ours);
        heft__fail(err, HEFT_MISMATCH,
                   "shape %s in file, %s in model (%zu tensors differ in shape)%s", theirs, ours,
                   match->mismatched_count,
                   heft__is_placeholder(first->checkpoint_shape, first->checkpoint_rank)
                       ? ": the file has placeholders, as DeepSpeed ZeRO-3 saves weights that were "
                         "not gathered"
                       : "");
        return heft__add_item(HEFT_MISMATCH, err, first->name);
    }
    if (l->options->strict && match->missing_count + match->unexpected_count > 0) {
        heft__fail(err, HEFT_MISMATCH, "strict: %zu keys are missing, %zu are unexpected",
                   match->missing_count, match->unexpected_count);
        return heft__add_item(HEFT_MISMATCH, err,
                              match->missing_count ? match->missing[0] : match->unexpected[0]);
    }
    return HEFT_OK;
}

/* Bytes of the parameters for which the checkpoint has a value, or of those for which it has none; what is
 * tied counts once. */
static uint64_t count_bytes(const heft__loading *l, bool have_value)
{
    uint64_t bytes = 0; /* a model has at most 2^59 */
    for (size_t i = 0; i < l->model->count; i++) {
        const heft_parameter *parameter = &l->model->parameters[i];
        const bool has = l->match.source[i] != HEFT__NO_TENSOR;
        bytes += parameter->tied_to == i && has == have_value ? parameter->size_bytes : 0;
    }
    return bytes;
}

/* A small file beside a large config: what is missing is bounded before it gets memory. */
static heft_status check_missing(const heft__loading *l, heft_error *err)
{
    const uint64_t limit = heft__limits(l->ctx)->missing_bytes,
                   most = heft__checkpoint_allowance(l->ckpt, limit),
                   bytes = l->model->known_family ? count_bytes(l, false) : 0;
    return bytes > most ? heft__fail(err, HEFT_LIMIT,
                                     "%llu bytes are missing, expected at most %llu: twice the "
                                     "files and the limit missing_bytes, %llu",
                                     (unsigned long long)bytes, (unsigned long long)most,
                                     (unsigned long long)limit)
                        : HEFT_OK;
}

/* A config may ask for a dtype of many times the stored one. What the caller asks for is not bounded. */
static heft_status check_casts(const heft__loading *l, heft_error *err)
{
    const bool by_config = l->options->dtype == HEFT_DTYPE_NONE && l->options->dtype_count == 0 &&
                           !l->options->tensor_dtypes;
    const uint64_t limit = heft__limits(l->ctx)->expanded_bytes,
                   most = heft__checkpoint_allowance(l->ckpt, limit),
                   bytes = by_config && !l->source->view ? count_bytes(l, true) : 0;
    return bytes > most
               ? heft__fail(err, HEFT_LIMIT,
                            "%llu bytes in the config's dtype, expected at most %llu: twice "
                            "the files and the limit expanded_bytes, %llu (a dtype that is "
                            "asked for is not limited)",
                            (unsigned long long)bytes, (unsigned long long)most,
                            (unsigned long long)limit)
               : HEFT_OK;
}

/* Fill the model. Where there can be no shared copy it gets a private one, and a warning. */
static heft_status fill(heft__loading *l, heft_error *err)
{
    heft_error reason = {0};
    heft_status status = heft__fill(l->model, l->ckpt, &l->match, &l->fill, &l->counts, &reason);
    if (status != HEFT_OK && l->counts.unshared) {
        l->fill.share = false;
        l->counts = (heft__fill_counts){0};
        if (!heft__warn(&l->memory->warnings, "no shared copy: %s", reason.message)) {
            return heft__fail_nomem(err, 0);
        }
        status = heft__loading_check_limit(l, err);
        return status == HEFT_OK
                   ? heft__fill(l->model, l->ckpt, &l->match, &l->fill, &l->counts, err)
                   : status;
    }
    if (status != HEFT_OK && err) {
        *err = reason;
    }
    const bool alone = l->options->mode == HEFT_LOAD_SHARED && !l->fill.share;
    if (status == HEFT_OK && alone && l->counts.copied_bytes > 0 &&
        !heft__warn(&l->memory->warnings,
                    "no shared copy: the checkpoint was not opened from a path, by which other "
                    "processes would find the copy")) {
        return heft__fail_nomem(err, 0);
    }
    return status;
}

static heft_status bring_in(heft__loading *l, heft_error *err)
{
    heft_init_options init = HEFT_OPTIONS(heft_init_options, .seed = l->options->seed);
    const bool offload = l->options->offload_folder != NULL;
    heft_status status = offload ? heft__store_plan(&l->store, l->model, l->ckpt, &l->match,
                                                    l->options, l->devices, err)
                                 : HEFT_OK;
    if (status == HEFT_OK) {
        status = heft__loading_check_limit(l, err);
    }
    if (status == HEFT_OK) {
        status = fill(l, err);
    }
    if (status == HEFT_OK && offload) {
        status = heft__store_finish(&l->store, &l->counts, err);
    }
    if (status == HEFT_OK && l->model->known_family) { /* of an unknown one nothing is missing */
        status = heft_model_init(l->model, &init, err);
    }
    if (status == HEFT_OK && l->options->touch) {
        status = heft__fill_touch(l->model, l->ckpt, &l->match, err);
    }
    return status;
}

/* auto: mapped, unless a file lies on a network's file system, where each page that is touched would
 * be a round trip of its own, while a copy asks for megabytes at once, many times in parallel. */
void heft__loading_choose_strategy(heft__loading *l)
{
    const heft_load_mode mode = l->options->mode;
    const char *network = NULL;
    for (size_t i = 0; i < l->ckpt->file_count && mode == HEFT_LOAD_AUTO && !network; i++) {
        network = heft__input_network(l->ckpt->files[i].file->source);
    }
    l->fill.map = mode != HEFT_LOAD_COPY && !network;
    l->fill.map_mode = l->options->map;
    l->fill.share = mode == HEFT_LOAD_SHARED && heft__checkpoint_has_folder(l->ckpt);
    l->fill.devices = l->devices;
    l->fill.network = network;
    l->fill.reason = network                  ? HEFT__FILL_NETWORK
                     : mode == HEFT_LOAD_AUTO ? HEFT__FILL_AUTO
                                              : HEFT__FILL_ASKED;
}

/* What is refused whatever the lists of the report say. */
static heft_status check_matched(const heft__loading *l, heft_error *err)
{
    heft_status status = heft__source_is_packed(l->source)
                             ? heft__packed_check(l->source, l->model, &l->match, err)
                             : HEFT_OK;
    if (status == HEFT_OK) {
        status = heft__packed_refuse_casts(l->source, l->model, &l->match, err);
    }
    return status == HEFT_OK ? heft__unread_refuse(l, err) : status;
}

static heft_status load(heft__loading *l, heft_error *err)
{
    heft_status status = prepare(l, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft__loading_choose_strategy(l);
    l->match = (heft__match){.arena = &l->memory->arena, .warnings = &l->memory->warnings};
    status = heft__match_keys(l->model, l->ckpt, &l->match, err);
    if (status == HEFT_OK) {
        status = check_matched(l, err);
    }
    heft_status verdict = status == HEFT_OK ? heft__loading_judge(l, err) : status;
    if (verdict == HEFT_OK) {
        verdict = check_missing(l, err);
    }
    if (verdict == HEFT_OK) {
        verdict = check_casts(l, err);
    }
    if (verdict == HEFT_OK) {
        verdict = heft__fit_judge(l, err);
    }
    if (verdict == HEFT_OK) {
        verdict = heft__fit_judge_packed(l, &l->source->quant, err);
    }
    if (verdict == HEFT_OK) {
        verdict = heft__fit_warn(l, err);
    }
    if (verdict == HEFT_OK) {
        verdict = bring_in(l, err);
        l->memory->report.offload_entries = l->store.count;
        l->memory->report.offload_files = l->store.dat_count;
        l->memory->report.offload_bytes = l->store.dat_bytes;
        l->memory->report.offload_kept = l->store.kept;
    }
    if (verdict == HEFT_OK) {
        verdict = heft__keep_beside(l->source, l->model, &l->memory->warnings, err);
    }
    /* the report has the lists even when they are the reason for the refusal */
    if (verdict == HEFT_OK || verdict == HEFT_MISMATCH) {
        heft_error *where = verdict == HEFT_OK ? err : NULL;
        status = heft__report_fill(l->memory, l->model, &l->match, &l->counts, &l->fill, where);
        l->memory->report.parameters = heft__loading_elems(l);
        l->model->packed_elems = l->model->packed ? l->memory->report.parameters : 0;
        if (status == HEFT_OK && verdict == HEFT_OK) {
            status = heft__report_initialized(l->memory, l->model, &l->match, err);
        }
        if (status == HEFT_OK && verdict == HEFT_OK) {
            heft_checkpoint *home = heft__store_move_home(&l->store, l->ckpt, &l->match);
            status = heft__homes_keep(l->model, home, &l->match, err);
        }
        verdict = verdict == HEFT_OK ? status : verdict;
    }
    return heft__add_path(verdict, err, l->source->path);
}

/* Hand a filled report to who asked for it, also where its lists are the reason to refuse; else
 * free it. memory and report may be NULL. */
void heft__loading_report(heft__report_memory *memory, heft_status status, double started,
                          heft_load_report **report)
{
    bool told =
        memory && memory->report.class_name && (status == HEFT_OK || status == HEFT_MISMATCH);
    if (report && told) {
        memory->report.seconds = heft__loading_clock() - started;
        *report = &memory->report;
    } else {
        heft_load_report_free(memory ? &memory->report : NULL);
    }
}

heft_status heft_model_load(const heft_source *source, const heft_load_options *options,
                            heft_model **out, heft_load_report **report, heft_error *err)
{
    heft_load_options taken;
    if (!source || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "source or result is NULL");
    }
    double started = heft__loading_clock();
    heft__loading l = {
        .ctx = source->ctx, .source = source, .ckpt = source->ckpt, .options = &taken};
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status == HEFT_OK) {
        status = load(&l, err);
    }
    if (status == HEFT_OK) {
        *out = heft__loading_take_model(&l);
    }
    heft__loading_report(l.memory, status, started, report);
    l.memory = NULL;
    heft__loading_fini(&l);
    return status;
}

heft_model *heft__loading_take_model(heft__loading *l)
{
    heft_model *model = l->model;
    model->machine = l->source->machine;
    heft__store_fini(&l->store);
    heft__match_fini(model, &l->match);
    l->model = NULL;
    return model;
}

void heft__loading_fini(heft__loading *l)
{
    heft__store_fini(&l->store);
    if (l->model) {
        heft__match_fini(l->model, &l->match);
    }
    heft_load_report_free(l->memory ? &l->memory->report : NULL);
    heft_model_free(l->model);
}
