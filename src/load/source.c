/* source.c - heft_source: what a path names, opened once.
 *
 * The checkpoint is surveyed, and its findings are kept: an index that disagrees with its shards is not
 * yet an error, as a conversion refuses it and a load that is not strict warns of it. What cannot be
 * read beside the weights (a config.json) is remembered as well, for those who need it.
 * Source: docs/loading.md. */
#include "load/load.h"

/* Whether a path names a JSON file. */
static bool is_json(const char *path)
{
    return heft__ends_with(path, ".json") && heft__path_is_file(path);
}

/* Where a config alone may be if there is no checkpoint: the folder in which no weights were found, or
 * the file itself; NULL for none. `at`: what the path names, NULL if that is not there. */
static const char *config_instead(const heft_source *source, const char *path, const char *at,
                                  heft_status status)
{
    if (status == HEFT_NOT_FOUND && !source->survey) {
        return at && heft__path_is_folder(at) ? at : NULL;
    }
    return status == HEFT_FORMAT && is_json(path) ? path : NULL;
}

static heft_status tell(const heft_error *kept, heft_error *err)
{
    if (err) {
        *err = *kept;
    }
    return kept->status;
}

/* Keep an error for later; NOMEM is one at once. */
static heft_status keep_error(heft_status status, const heft_error *why, heft_error *kept,
                              heft_error *err)
{
    *kept = *why;
    if (status == HEFT_NOMEM && err) {
        *err = *why;
    }
    return status == HEFT_NOMEM ? status : HEFT_OK;
}

static heft_status read_config(heft_source *source, heft_error *err)
{
    heft_error why = {0};
    const heft_status status =
        heft_config_read(source->ctx, source->survey->where.folder, &source->config, &why);
    source->no_config = (heft_error){0};
    const char *stem = source->survey->where.stem;
    if (status == HEFT_NOT_FOUND && stem && strcmp(stem, "adapter_model") == 0) {
        heft__fail(&why, status,
                   "contains an adapter, not a model: load its base model, which "
                   "adapter_config.json names; inspect, verify and convert accept adapters");
        heft__add_path(status, &why, source->survey->where.folder);
    } else if (status == HEFT_NOT_FOUND && stem && strcmp(stem, "pytorch_lora_weights") == 0) {
        heft__fail(&why, status,
                   "contains a LoRA of diffusers, not a model: load the model that it was made "
                   "for; inspect, verify and convert accept LoRAs");
        heft__add_path(status, &why, source->survey->where.folder);
    } else if (status == HEFT_NOT_FOUND) { /* the path stays */
        (void)snprintf(why.message, sizeof why.message,
                       "does not exist: a model is loaded with the config.json beside its weights");
    }
    return status == HEFT_OK ? HEFT_OK : keep_error(status, &why, &source->no_config, err);
}

/* Forget what was opened, to open it again. */
static void start_over(heft_source *source)
{
    heft_checkpoint_close(source->survey);
    heft_config_free(source->config);
    source->survey = NULL;
    source->ckpt = NULL;
    source->config = NULL;
    source->no_weights = (heft_error){0};
}

/* Survey the checkpoint and judge it; no_weights is filled on failure. *at is what the path names. */
static heft_status open_weights(heft_source *source, const char *path,
                                const heft_checkpoint_options *options, const char **at)
{
    heft_error *why = &source->no_weights;
    heft_checkpoint_options here = *options;
    heft_status status = heft__resolve_path(&source->arena, path, options->subfolder, at, why);
    here.subfolder = NULL; /* it is in *at */
    here.whole_value = false;
    if (status == HEFT_OK) {
        status = heft__checkpoint_survey(source->ctx, *at, &here, &source->survey, why);
    }
    if (status == HEFT_OK) {
        status = heft__checkpoint_judge(source->survey, true, why);
    }
    if (status == HEFT_OK) {
        status = heft__checkpoint_warn(source->survey, why);
    }
    if (status == HEFT_OK) {
        source->ckpt = source->survey;
    }
    return heft__add_path(status, why, path);
}

/* Whether a path is that of a config by its name: "x.json", but not "x.index.json" and not "index.json",
 * which an offload folder has. */
static bool is_config_name(const char *path)
{
    const char *base = heft__path_base(path);
    return !strstr(base, ".index.") && strcmp(base, HEFT__OFFLOAD_INDEX) != 0 && is_json(path);
}

/* Read a config by its name; an index that has such a name is left for the checkpoint. */
static heft_status read_config_alone(heft_source *source, const char *path, heft_error *err)
{
    heft_status status = heft_config_read(source->ctx, path, &source->config, err);
    if (status == HEFT_OK && heft__json_member(source->config->root, "weight_map")) {
        heft_config_free(source->config);
        source->config = NULL;
    } else if (status == HEFT_OK) {
        (void)heft__add_path(
            heft__fail(&source->no_weights, HEFT_NOT_FOUND, "is a config without weights"),
            &source->no_weights, path);
    }
    return status;
}

/* A config where there is no checkpoint. */
static heft_status open_config(heft_source *source, const char *at, heft_status status)
{
    heft_error other = {0};
    const heft_status config = heft_config_read(source->ctx, at, &source->config, &other);
    if (config == HEFT_NOMEM || config == HEFT_LIMIT) {
        source->no_weights = other;
        return config;
    }
    return config == HEFT_OK ? config : status;
}

/* The error is that of the weights, if there is no config either. */
static heft_status open_once(heft_source *source, const char *path,
                             const heft_checkpoint_options *options, bool damaged, heft_error *err)
{
    heft_status status = is_config_name(path) ? read_config_alone(source, path, err) : HEFT_OK;
    if (status != HEFT_OK || source->config) {
        return status;
    }
    const char *named = NULL;
    status = open_weights(source, path, options, &named);
    const char *at = config_instead(source, path, named, status);
    if (at && !source->variant && !heft__folder_has_weights(&source->arena, at)) {
        status = open_config(source, at, status);
    }
    if (source->config) {
        heft_checkpoint_close(source->survey); /* of a file that is none */
        source->survey = NULL;
    } else if (status == HEFT_OK || (damaged && source->survey && status != HEFT_NOMEM)) {
        return read_config(source, err);
    }
    return status == HEFT_OK ? HEFT_OK : tell(&source->no_weights, err);
}

/* A config may name another file than the one that was found by its name: it is right. */
static heft_status follow_config(heft_source *source, const heft_checkpoint_options *options,
                                 bool damaged, heft_error *err)
{
    const char *name = NULL;
    const heft__resolved *where = source->survey ? &source->survey->where : NULL;
    if (!where || !source->config || where->lone || where->by_config || where->stem ||
        !*where->folder) {
        return HEFT_OK;
    }
    heft_status status = heft__weights_by_config(&source->arena, source->config->root, &name, err);
    const char *found = where->index ? where->index : where->file;
    if (status != HEFT_OK || !name || (found && strcmp(found, name) == 0)) {
        return heft__add_path(status, err, source->config->path);
    }
    const char *path = heft__path_join(&source->arena, where->folder, name), *at = NULL;
    if (!path) {
        return heft__fail_nomem(err, strlen(name));
    }
    if (!heft__path_exists(path)) { /* nor is it a name in the hub's cache */
        status =
            heft__fail(err, HEFT_NOT_FOUND,
                       "transformers_weights names '%.200s', which is not in the folder", name);
        return heft__add_path(status, err, source->config->path);
    }
    start_over(source);
    heft_checkpoint_options here = *options;
    here.subfolder = NULL;
    status = open_weights(source, path, &here, &at);
    if (source->survey) {
        source->survey->where.lone = false; /* it belongs to the folder */
        source->survey->where.by_config = true;
    }
    return status == HEFT_OK || (damaged && source->survey && status != HEFT_NOMEM)
               ? read_config(source, err)
               : tell(&source->no_weights, err);
}

/* Weights and config of one moment: again if the folder was replaced between the two. */
static heft_status open_path(heft_source *source, const char *path,
                             const heft_checkpoint_options *options, bool damaged, heft_error *err)
{
    for (unsigned tries = 0;; tries++) {
        heft_status status = open_once(source, path, options, damaged, err);
        if (status == HEFT_OK) {
            status = follow_config(source, options, damaged, err);
        }
        if (status != HEFT_OK || !source->survey || tries == HEFT__OPEN_TRIES ||
            heft__checkpoint_is_current(source->survey)) {
            return status;
        }
        start_over(source);
    }
}

/* A class that the caller asked for must be one, and have a config. */
static heft_status check_class(const heft_source *source, heft_error *err)
{
    const heft__family *family;
    const heft__class *class;
    heft_status status = source->asked_class ? heft__source_need_config(source, err) : HEFT_OK;
    return status == HEFT_OK && source->asked_class
               ? heft__class_find(source->config, source->asked_class, &family, &class, err)
               : status;
}

static bool copy_text(heft_source *source, const char *text, const char **copy)
{
    *copy = text ? heft__arena_text(&source->arena, text, strlen(text)) : NULL;
    return !text || *copy;
}

static heft_status source_new(heft_ctx *ctx, const char *path, const char *class_name,
                              const char *variant, heft_source **out, heft_error *err)
{
    heft_source *source = heft__alloc_zero(ctx, 1, sizeof *source);
    if (!source) {
        return heft__fail_nomem(err, sizeof *source);
    }
    source->ctx = heft__ctx_ref(ctx);
    heft__arena_init(&source->arena, ctx);
    *out = source;
    source->folder = "";
    return copy_text(source, path, &source->path) &&
                   copy_text(source, class_name, &source->asked_class) &&
                   copy_text(source, variant && *variant ? variant : NULL, &source->variant)
               ? HEFT_OK
               : heft__fail_nomem(err, strlen(path));
}

/* The folder of the weights, or of a config without weights. */
static heft_status find_folder(heft_source *source, heft_error *err)
{
    const char *path = source->survey   ? source->survey->where.folder
                       : source->config ? source->config->path
                                        : "";
    const char *base = heft__path_base(path);
    if (source->survey || !*path) {
        return copy_text(source, path, &source->folder) ? HEFT_OK
                                                        : heft__fail_nomem(err, strlen(path));
    }
    const size_t length = (size_t)(base - path); /* with its slash */
    source->folder = length == 0   ? "."
                     : length == 1 ? "/"
                                   : heft__arena_text(&source->arena, path, length - 1);
    return source->folder ? HEFT_OK : heft__fail_nomem(err, length);
}

heft_status heft_source_open(heft_ctx *ctx, const char *path, const heft_source_options *options,
                             heft_source **out, heft_error *err)
{
    heft_source_options taken;
    heft_checkpoint_options how;
    heft_source *source = NULL;
    if (!ctx || !path || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, path or result is NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status == HEFT_OK) {
        status = HEFT__TAKE_OPTIONS(&how, taken.checkpoint, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    status = source_new(ctx, path, taken.class_name, how.variant, &source, err);
    if (status == HEFT_OK) {
        status = open_path(source, path, &how, taken.damaged, err);
    }
    if (status == HEFT_OK) {
        status = find_folder(source, err);
    }
    if (status == HEFT_OK) {
        status = check_class(source, err);
    }
    if (status == HEFT_OK) {
        status = heft__source_find_quantized(source, taken.dtype, taken.dequantize, err);
    }
    if (status == HEFT_OK) {
        *out = source;
    } else {
        heft_source_close(source);
    }
    return heft__add_path(status, err, path);
}

heft_status heft_source_new(heft_checkpoint *checkpoint, const heft_config *config,
                            const heft_source_options *options, heft_source **out, heft_error *err)
{
    heft_source_options taken;
    heft_source *source = NULL;
    if ((!checkpoint && !config) || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "checkpoint and config, or result, are NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status == HEFT_OK) {
        status = source_new(checkpoint ? checkpoint->ctx : config->ctx, "", taken.class_name, NULL,
                            &source, err);
    }
    if (status == HEFT_OK && config) {
        status = heft__config_copy(config, &source->config, err);
    }
    if (status == HEFT_OK) {
        source->survey = checkpoint ? heft__checkpoint_ref(checkpoint) : NULL;
        source->ckpt = source->survey;
        (void)heft__fail(&source->no_weights, HEFT_NOT_FOUND, "the source has no checkpoint");
        (void)heft__fail(&source->no_config, HEFT_NOT_FOUND, "the source has no config");
        status = check_class(source, err);
    }
    if (status == HEFT_OK) {
        status = heft__source_find_quantized(source, taken.dtype, taken.dequantize, err);
    }
    if (status == HEFT_OK) {
        *out = source;
    } else {
        heft_source_close(source);
    }
    return status;
}

void heft_source_close(heft_source *source)
{
    if (source) {
        heft_ctx *ctx = source->ctx;
        heft_checkpoint_close(source->view);
        heft_checkpoint_close(source->survey);
        heft_config_free(source->config);
        heft_config_free(source->quanto);
        heft_config_free(source->quant_file);
        heft__arena_fini(&source->arena);
        heft__free(ctx, source, sizeof *source);
        heft_ctx_free(ctx);
    }
}

/* ---- what it has ----------------------------------------------------------------------------- */
heft_status heft__source_need_weights(const heft_source *source, heft_error *err)
{
    return source->ckpt ? HEFT_OK : tell(&source->no_weights, err);
}

heft_status heft__source_need_config(const heft_source *source, heft_error *err)
{
    return source->config ? HEFT_OK : tell(&source->no_config, err);
}

bool heft__source_is_unknown(const heft_source *source)
{
    const heft__family *family = NULL;
    const heft__class *class = NULL;
    const heft_config *config = source->config;
    if (!config || !source->ckpt || source->asked_class ||
        heft__class_find(config, NULL, &family, &class, NULL) == HEFT_OK) {
        return false;
    }
    const heft__json_value *type = heft__json_member(config->root, "model_type");
    const char *architecture = heft_config_architecture(config);
    if (type && !*heft_config_model_type(config)) {
        return false; /* malformed */
    }
    /* a class of one family and the type of another contradict each other */
    return !heft__family_find(heft_config_model_type(config)) ||
           (architecture && !heft__family_of_class(architecture));
}

void heft__source_unknown_text(const heft_source *source, char text[200])
{
    const char *type = heft_config_model_type(source->config),
               *architecture = heft_config_architecture(source->config);
    if (!*type) {
        snprintf(text, 200, "the config has no model type");
    } else if (heft__family_find(type) && architecture) {
        snprintf(text, 200, "unknown class '%.60s' for model type '%.60s'", architecture, type);
    } else {
        snprintf(text, 200, "unknown model type '%.100s'", type);
    }
}

heft_source_kind heft_source_what(const heft_source *source)
{
    const heft__format *index = source->ckpt ? source->ckpt->where.index_format : NULL;
    const bool is_offload = source->ckpt && source->ckpt->where.index && index && index->file_each;
    return !source->ckpt                                                    ? HEFT_SOURCE_CONFIG
           : is_offload                                                     ? HEFT_SOURCE_OFFLOAD
           : source->ckpt->where.index || source->ckpt->where.set_count > 1 ? HEFT_SOURCE_SHARDED
                                                                            : HEFT_SOURCE_FILE;
}

const char *heft_source_path(const heft_source *source)
{
    return source->path;
}

const char *heft_source_folder(const heft_source *source)
{
    return source->folder;
}

const heft_checkpoint *heft_source_checkpoint(const heft_source *source)
{
    return source->ckpt;
}

const heft_config *heft_source_config(const heft_source *source)
{
    return source->config;
}

const char *heft_source_class(const heft_source *source)
{
    const heft__family *family = NULL;
    const heft__class *class = NULL;
    if (!source->config) {
        return NULL;
    }
    if (heft__source_is_unknown(source)) {
        const char *name = heft_config_architecture(source->config);
        return name ? name : HEFT__UNKNOWN_CLASS;
    }
    return heft__class_find(source->config, source->asked_class, &family, &class, NULL) == HEFT_OK
               ? class->name
               : NULL;
}

heft_status heft_source_check_index(const heft_source *source, heft_error *err)
{
    return source->ckpt ? heft__checkpoint_judge(source->survey, false, err) : HEFT_OK;
}

heft_status heft_source_verify(const heft_source *source, const heft_verify_options *options,
                               heft_verify_report **report, heft_error *err)
{
    heft_verify_options taken;
    heft_error lacks = {0};
    heft__arena arena;
    if (!source || !report) {
        return heft__fail(err, HEFT_INVALID_ARG, "source or report is NULL");
    }
    heft__arena_init(&arena, source->ctx);
    heft__findings findings = {.arena = &arena};
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status == HEFT_OK) {
        status = source->survey ? HEFT_OK : tell(&source->no_weights, err);
    }
    if (status == HEFT_OK) {
        status = heft__fit_lacks(source, &lacks, &findings, err);
    }
    if (status == HEFT_OK) {
        const heft__suspicions beside = {
            .config = &source->no_config,
            .quant = &source->no_quant,
            .doubt = source->no_quant.status == HEFT_OK ? source->told.warning : NULL,
            .doubt_is_wrong = source->quant.doubt != NULL,
            .model = &lacks,
            .contradicts = &findings};
        status =
            heft__checkpoint_verify(source->survey, source->variant, &beside, &taken, report, err);
    }
    heft__arena_fini(&arena);
    return heft__add_path(status, err, source->path);
}

heft_status heft_source_diff(const heft_source *a, const heft_source *b,
                             const heft_diff_options *options, heft_diff_report **report,
                             heft_error *err)
{
    const heft_source *const sides[] = {a, b};
    heft_diff_options taken;
    if (!a || !b || !report) {
        return heft__fail(err, HEFT_INVALID_ARG, "source or report is NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    for (size_t i = 0; i < 2 && status == HEFT_OK; i++) {
        status = sides[i]->ckpt ? heft_source_check_index(sides[i], err)
                                : tell(&sides[i]->no_weights, err);
        status = heft__add_path(status, err, sides[i]->path);
    }
    return status == HEFT_OK ? heft__checkpoint_diff(a->ckpt, b->ckpt, &taken, report, err)
                             : status;
}
