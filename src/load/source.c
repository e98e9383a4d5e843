/* source.c - heft_source: what a path names, opened once.
 *
 * The checkpoint is opened so that an index that disagrees with its shards is remembered and not yet
 * an error: a conversion refuses it, a load that is not strict warns of it. What cannot be read beside
 * the weights (a config.json) is remembered as well, for those who need it.
 * Source: docs/loading.md. */
#include "load/load.h"

/* Where a config alone may be if there is no checkpoint: the folder in which no weights were found, or
 * the file itself; NULL for none. A missing shard is not found either, but there the path is a file. */
static const char *config_instead(const char *path, heft_status status, const heft_error *why)
{
    if (status == HEFT_NOT_FOUND) {
        return heft__path_is_folder(why->path) ? why->path : NULL;
    }
    return status == HEFT_FORMAT && heft__path_is_file(path) ? path : NULL;
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
        heft_config_read(source->ctx, source->ckpt->where.folder, &source->config, &why);
    return status == HEFT_OK ? HEFT_OK : keep_error(status, &why, &source->no_config, err);
}

/* Whether a path names a JSON file that is a config by its name: "x.json", but not "x.index.json" and not
 * "index.json", which an offload folder has. */
static bool is_config_name(const char *path)
{
    const char *base = heft__path_base(path);
    const size_t length = strlen(base);
    return length > 5 && strcmp(base + length - 5, ".json") == 0 && !strstr(base, ".index.") &&
           strcmp(base, HEFT__OFFLOAD_INDEX) != 0 && heft__path_is_file(path);
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
            heft__fail(&source->no_weights, HEFT_NOT_FOUND, "is a config: there are no weights"),
            &source->no_weights, path);
    }
    return status;
}

/* What the weights' error is, if it cannot be a config either. */
static heft_status open_path(heft_source *source, const char *path,
                             const heft_checkpoint_options *options, heft_error *err)
{
    heft_error other = {0};
    heft_status status = is_config_name(path) ? read_config_alone(source, path, err) : HEFT_OK;
    if (status != HEFT_OK || source->config) {
        return status;
    }
    status = heft_checkpoint_open(source->ctx, path, options, &source->ckpt, &source->no_weights);
    if (status == HEFT_OK) {
        return read_config(source, err);
    }
    const char *at = config_instead(path, status, &source->no_weights);
    if (at && !(options->variant && *options->variant)) {
        const heft_status config = heft_config_read(source->ctx, at, &source->config, &other);
        if (config == HEFT_OK) {
            return HEFT_OK;
        }
        if (config == HEFT_NOMEM) {
            status = config;
            source->no_weights = other;
        }
    }
    if (err) {
        *err = source->no_weights;
    }
    return status;
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

static heft_status source_new(heft_ctx *ctx, const char *path, const char *class_name,
                              heft_source **out, heft_error *err)
{
    heft_source *source = heft__alloc_zero(ctx, 1, sizeof *source);
    if (!source) {
        return heft__fail_nomem(err, sizeof *source);
    }
    source->ctx = heft__ctx_ref(ctx);
    heft__arena_init(&source->arena, ctx);
    source->path = heft__arena_text(&source->arena, path, strlen(path));
    if (class_name) {
        source->asked_class = heft__arena_text(&source->arena, class_name, strlen(class_name));
    }
    *out = source;
    return source->path && (source->asked_class || !class_name) ? HEFT_OK
                                                                : heft__fail_nomem(err, 0);
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
    how.trust_shards = true;
    status = source_new(ctx, path, taken.class_name, &source, err);
    if (status == HEFT_OK) {
        status = open_path(source, path, &how, err);
    }
    if (status == HEFT_OK) {
        status = check_class(source, err);
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
        status = source_new(checkpoint ? checkpoint->ctx : config->ctx, "", taken.class_name,
                            &source, err);
    }
    if (status == HEFT_OK && config) {
        status = heft__config_copy(config, &source->config, err);
    }
    if (status == HEFT_OK) {
        source->ckpt = checkpoint ? heft__checkpoint_ref(checkpoint) : NULL;
        (void)heft__fail(&source->no_weights, HEFT_NOT_FOUND, "the source has no checkpoint");
        (void)heft__fail(&source->no_config, HEFT_NOT_FOUND, "the source has no config");
        status = check_class(source, err);
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
        heft_checkpoint_close(source->ckpt);
        heft_config_free(source->config);
        heft__arena_fini(&source->arena);
        heft__free(ctx, source, sizeof *source);
        heft_ctx_free(ctx);
    }
}

/* ---- what it has ----------------------------------------------------------------------------- */
static heft_status tell(const heft_error *kept, heft_error *err)
{
    if (err) {
        *err = *kept;
    }
    return kept->status;
}

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
    const char *type = source->config ? heft_config_model_type(source->config) : "";
    return *type && source->ckpt && !source->asked_class && !heft__family_find(type);
}

heft_source_kind heft_source_what(const heft_source *source)
{
    return !source->ckpt                 ? HEFT_SOURCE_CONFIG
           : source->ckpt->where.offload ? HEFT_SOURCE_OFFLOAD
           : source->ckpt->where.index   ? HEFT_SOURCE_SHARDED
                                         : HEFT_SOURCE_FILE;
}

const char *heft_source_path(const heft_source *source)
{
    return source->path;
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
    return source->ckpt ? heft__checkpoint_check_index(source->ckpt, err) : HEFT_OK;
}
