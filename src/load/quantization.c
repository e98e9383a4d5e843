/* quantization.c - what of a source is quantized, and the source in which it is not.
 *
 * Settings are looked for in the config, then in the files that methods have beside the weights. What they say, or that the
 * tensors contradict it, is kept for those who need it.
 * Source: docs/formats/quantized.md. */
#include "load/load.h"

/* A JSON file of the checkpoint's folder; *out stays NULL if it is not there. */
static heft_status read_beside(heft_source *source, const char *name, heft_config **out,
                               heft_error *err)
{
    const heft_checkpoint *ckpt = source->ckpt;
    if (!heft__checkpoint_has_folder(ckpt) || ckpt->where.lone) {
        return HEFT_OK;
    }
    const char *path = heft__path_join(&source->arena, ckpt->where.folder, name);
    heft_error why = {0};
    if (!path) {
        return heft__fail_nomem(err, strlen(name));
    }
    const heft_status status = heft_config_read(source->ctx, path, out, &why);
    if (status == HEFT_OK || status == HEFT_NOT_FOUND) {
        return HEFT_OK;
    }
    if (err) {
        *err = why;
    }
    return status;
}

static const heft__json_value *object_of(const heft__json_value *value)
{
    return value && value->type == HEFT__JSON_TYPE_OBJECT ? value : NULL;
}

static heft_status find_settings(heft_source *source, heft_error *err)
{
    heft__quant_settings *settings = &source->quant_settings;
    const heft__quant_file *file = heft__quant_files;
    heft_status status = HEFT_OK;
    if (source->config) {
        settings->config = heft__quant_settings_in(source->config->root);
        settings->path = source->config->path;
    }
    if (!settings->config) {
        status = read_beside(source, file->name, &source->quanto, err);
    }
    if (source->quanto) {
        settings->quanto = source->quanto->root;
        settings->path = source->quanto->path;
    }
    while ((++file)->name && !settings->config && !settings->quanto && status == HEFT_OK) {
        status = read_beside(source, file->name, &source->quant_file, err);
        if (source->quant_file) {
            const heft__json_value *root = source->quant_file->root;
            const heft__json_value *inner =
                file->key ? object_of(heft__json_member(root, file->key)) : NULL;
            settings->config = inner ? inner : root;
            settings->path = source->quant_file->path;
        }
    }
    return status;
}

/* ---- shapes that only the model has ------------------------------------------------------------ */
struct shapes {
    const heft_source *source;
    heft_model *model; /* made when it is first asked; NULL: not made yet, or it cannot be */
    bool tried;
};

/* Without memory it is an error; any other failure means that no model has it. */
static heft_status give_up(heft_status status, const heft_error *why, heft_error *err)
{
    if (status == HEFT_NOMEM && err) {
        *err = *why;
    }
    return status == HEFT_NOMEM ? status : HEFT_OK;
}

/* The parameter of a name; SIZE_MAX: there is no model, or it has none. */
static heft_status find_parameter(struct shapes *s, const char *name, size_t *i, heft_error *err)
{
    const heft_config *config = s->source->config;
    heft_error why = {0};
    heft_status status = HEFT_OK;
    *i = SIZE_MAX;
    if (!s->tried && config) {
        status = heft_model_new(s->source->ctx, config, s->source->asked_class, HEFT_DTYPE_NONE,
                                &s->model, &why);
    }
    s->tried = true;
    if (status != HEFT_OK || !s->model) {
        return give_up(status, &why, err);
    }
    *i = heft_model_find(s->model, name);
    if (*i == SIZE_MAX) {
        status = heft__match_names(s->model, &name, 1, i, &why);
    }
    *i = status == HEFT_OK ? *i : SIZE_MAX;
    return give_up(status, &why, err);
}

static heft_status shape_of(void *user, const char *name, uint64_t shape[2], bool *known,
                            heft_error *err)
{
    struct shapes *s = user;
    size_t i;
    const heft_status status = find_parameter(s, name, &i, err);
    *known = i != SIZE_MAX && s->model->parameters[i].rank == 2;
    if (*known) {
        const uint64_t *plain = s->model->parameters[i].shape;
        const bool turned = heft__conv1d_has(s->source->config, name);
        shape[0] = plain[turned];
        shape[1] = plain[!turned];
    }
    return status;
}

static bool is_turned(void *user, const char *name)
{
    const struct shapes *s = user;
    return heft__conv1d_has(s->source->config, name);
}

static heft_status inner_name(void *user, const char *name, const char **out, heft_error *err)
{
    struct shapes *s = user;
    size_t i;
    const heft_status status = find_parameter(s, name, &i, err);
    const heft__inner *inner = i == SIZE_MAX ? NULL : heft__model_place(s->model, i).inner;
    *out = inner && inner->parts == 1 ? inner->name : NULL;
    return status;
}

/* Settings for as long as `shapes` is there. */
static heft__quant_settings with_shapes(const heft_source *source, struct shapes *shapes)
{
    heft__quant_settings settings = source->quant_settings;
    *shapes = (struct shapes){.source = source};
    settings.shape_of = shape_of;
    settings.inner_name = inner_name;
    settings.is_turned = is_turned;
    settings.user = shapes;
    return settings;
}

/* ---- what is told ------------------------------------------------------------------------------ */
/* What does not go together, though nothing contradicts: one line in the source's arena, or NULL. */
static heft_status doubt(heft_source *source, const heft__quant_found *found, const char **out,
                         heft_error *err)
{
    const char *path = source->quant_settings.path;
    *out = NULL;
    if (found->known && found->declared && found->count == 0 && found->state_count == 0) {
        *out =
            heft__arena_format(&source->arena,
                               "%.100s declares that weights are quantized (%s), but none of them "
                               "is: they are taken as they are",
                               path ? heft__path_base(path) : "the config", found->method);
    } else if (found->known && !found->declared) {
        *out =
            heft__arena_format(&source->arena,
                               "no config declares that weights are quantized: the method (%s) is "
                               "recognized by the names of the tensors",
                               found->method);
    } else if (!found->known && found->bar_item) {
        *out = heft__arena_format(&source->arena,
                                  "'%.200s' has integers with a scale beside them: no config and "
                                  "no name of a tensor tells by which method it is quantized",
                                  found->bar_item);
    } else if (found->bar) {
        *out = heft__arena_format(&source->arena, "%.200s: the weights cannot be dequantized: %s",
                                  found->bar_item, found->bar);
    } else if (found->doubt) {
        *out = heft__arena_text(&source->arena, found->doubt, strlen(found->doubt));
    } else {
        return HEFT_OK;
    }
    return *out ? HEFT_OK : heft__fail_nomem(err, 0);
}

/* What heft_source_quantization() says. */
static heft_status tell_about(heft_source *source, const heft__quant_found *found, bool plain,
                              heft_error *err)
{
    source->told = (heft_quantization){.method = found->method,
                                       .known = found->known,
                                       .declared = found->declared,
                                       .dequantized = plain,
                                       .bits = found->bits,
                                       .group_size = found->group,
                                       .block_rows = found->lines,
                                       .weights = found->count,
                                       .state = found->state,
                                       .state_count = found->state_count};
    return doubt(source, found, &source->told.warning, err);
}

/* The same where it could not be found out: the method as far as it is known, and the fault. */
static heft_status tell_fault(heft_source *source, const heft__quant_found *found,
                              heft_error *fault)
{
    char line[sizeof fault->message + 512];
    const char *file = heft__path_base(fault->path);
    (void)snprintf(line, sizeof line, "%.200s%s%.200s%s%s", file, *file ? ": " : "", fault->item,
                   *fault->item ? ": " : "", fault->message);
    source->told = (heft_quantization){.method = found->method ? found->method : "unknown",
                                       .known = true,
                                       .declared = source->quant_settings.config != NULL,
                                       .bits = found->bits,
                                       .group_size = found->group};
    source->told.warning = heft__arena_text(&source->arena, line, strlen(line));
    return source->told.warning ? fault->status : heft__fail_nomem(fault, strlen(line));
}

/* The names as one line, as many as fit. */
static void list_state(const heft_quantization *told, char line[300])
{
    size_t at = 0, i = 0;
    for (; i < told->state_count; i++) {
        const int length = snprintf(line + at, 300 - at, "%s%.120s", i ? ", " : "", told->state[i]);
        if (length < 0 || (size_t)length >= 280 - at) {
            break;
        }
        at += (size_t)length;
    }
    line[at] = '\0';
    if (i < told->state_count) {
        (void)snprintf(line + at, 300 - at, " and %zu more", told->state_count - i);
    }
}

heft_status heft__source_warn_quantized(const heft_source *source, heft__warnings *warnings,
                                        heft_error *err)
{
    const heft_quantization *told = &source->told;
    char line[300];
    bool good = !told->warning || heft__warn(warnings, "%s", told->warning);
    if (told->dequantized && told->state_count) {
        list_state(told, line);
        good = good && heft__warn(warnings, "state of the quantization is left out: %s", line);
    }
    return good ? HEFT_OK : heft__fail_nomem(err, sizeof line);
}

/* ---- finding, and making plain ------------------------------------------------------------------ */
/* With `plain`, source->ckpt becomes the view, where there is something to dequantize. */
static heft_status find_quantized(heft_source *source, bool plain, heft_error *err)
{
    heft__quant_found found = {0};
    heft_checkpoint *view = NULL;
    struct shapes shapes;
    const heft__quant_settings settings = with_shapes(source, &shapes);
    heft_status status =
        plain
            ? heft__checkpoint_dequantized(source->ckpt, &settings, &found, &view, err)
            : heft__checkpoint_find_quantized(source->ckpt, &source->arena, &settings, &found, err);
    heft_model_free(shapes.model);
    if (status == HEFT_OK && plain) {
        status = heft__conv1d_check(&found, err);
    }
    if (status == HEFT_OK) {
        status = tell_about(source, &found, view != NULL, err);
    }
    if (status != HEFT_OK && status != HEFT_NOMEM && !plain) {
        status = tell_fault(source, &found, err);
    }
    if (status != HEFT_OK || !plain) {
        source->quant = status == HEFT_OK ? found : (heft__quant_found){0};
        heft_checkpoint_close(view);
        return status == HEFT_OK ? heft__source_note_first(source, err) : status;
    }
    if (view) {
        source->view = view;
        source->ckpt = view;
    }
    if (view && source->config) {
        heft__quant_drop_settings(source->config->root);
    }
    return HEFT_OK;
}

heft_status heft__source_find_quantized(heft_source *source, heft_dtype dtype, bool plain,
                                        heft_error *err)
{
    heft_error why = {0};
    if (!source->ckpt) {
        return HEFT_OK;
    }
    heft_status status = find_settings(source, &why);
    source->quant_settings.model_dtype = heft__choose_dtype(source->ckpt, source->config, dtype);
    if (status == HEFT_OK) {
        status = find_quantized(source, plain, &why);
    } else if (status != HEFT_NOMEM) {
        status = tell_fault(source, &(heft__quant_found){0}, &why);
    }
    if (status != HEFT_OK) {
        source->no_quant = why;
    }
    if (status != HEFT_OK && err && (plain || status == HEFT_NOMEM)) {
        *err = why;
    }
    return plain || status == HEFT_NOMEM ? status : HEFT_OK;
}

const heft_quantization *heft_source_quantization(const heft_source *source)
{
    return source->told.method ? &source->told : NULL;
}

bool heft__source_is_packed(const heft_source *source)
{
    return source->quant.count > 0;
}

bool heft__source_has_state(const heft_source *source)
{
    return source->quant.loose > 0;
}

heft_status heft__source_check_quantized(const heft_source *source, heft_error *err)
{
    if (source->no_quant.status != HEFT_OK) {
        if (err) {
            *err = source->no_quant;
        }
        return source->no_quant.status;
    }
    return heft__quant_check_known(&source->quant, err);
}
