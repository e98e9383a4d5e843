/* quantization.c - what of a source is quantized, and the source in which it is not.
 *
 * Settings are looked for in the config (`quantization_config`, `compression_config`, also in its
 * `text_config`), then in the files that methods have beside the weights. What they say, or that the
 * tensors contradict it, is kept for those who need it.
 * Source: docs/formats/quantized.md. */
#include "load/load.h"

static const char *const keys[] = {"quantization_config", "compression_config"};
/* Files that hold the same object, or hold it under a key. */
static const struct {
    const char *name, *key;
} files[] = {
    {"quantize_config.json", NULL          },
    {"hf_quant_config.json", "quantization"}
};

bool heft__is_quantization_file(const char *name)
{
    return strcmp(name, "quanto_qmap.json") == 0 || strcmp(name, files[0].name) == 0 ||
           strcmp(name, files[1].name) == 0;
}

static const heft__json_value *object_of(const heft__json_value *value)
{
    return value && value->type == HEFT__JSON_TYPE_OBJECT ? value : NULL;
}

static const heft__json_value *settings_in(const heft__json_value *root)
{
    const heft__json_value *found = NULL;
    for (size_t k = 0; k < sizeof keys / sizeof *keys && !found; k++) {
        found = object_of(heft__json_member(root, keys[k]));
    }
    const heft__json_value *text = object_of(heft__json_member(root, "text_config"));
    return found || !text ? found : settings_in(text);
}

void heft__config_drop_quantization(heft__json_value *root)
{
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        heft__json_remove(root, keys[k]);
    }
    for (heft__json_value *child = root->first; child; child = child->next) {
        if (strcmp(child->key, "text_config") == 0 && child->type == HEFT__JSON_TYPE_OBJECT) {
            for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
                heft__json_remove(child, keys[k]);
            }
        }
    }
}

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

static heft_status find_settings(heft_source *source, heft_error *err)
{
    heft__quant_settings *settings = &source->quant_settings;
    heft_status status = read_beside(source, "quanto_qmap.json", &source->quanto, err);
    if (source->config) {
        settings->config = settings_in(source->config->root);
        settings->path = source->config->path;
    }
    if (source->quanto) {
        settings->quanto = source->quanto->root;
        settings->path = source->quanto->path;
    }
    for (size_t k = 0; k < 2 && !settings->config && !settings->quanto && status == HEFT_OK; k++) {
        status = read_beside(source, files[k].name, &source->quant_file, err);
        if (source->quant_file) {
            const heft__json_value *root = source->quant_file->root;
            const heft__json_value *inner = object_of(heft__json_member(root, files[k].key));
            settings->config = inner ? inner : root;
            settings->path = source->quant_file->path;
        }
    }
    return status;
}

/* What heft_source_quantization() says. */
static void tell_about(heft_source *source)
{
    const heft__quant_found *found = &source->quant;
    source->told = (heft_quantization){.method = found->method,
                                       .known = found->known,
                                       .declared = found->declared,
                                       .bits = found->bits,
                                       .group_size = found->group,
                                       .weights = found->count};
}

heft_status heft__source_find_quantized(heft_source *source, heft_dtype dtype, heft_error *err)
{
    heft_error why = {0};
    if (!source->ckpt) {
        return HEFT_OK;
    }
    heft_status status = find_settings(source, &why);
    source->quant_settings.model_dtype = heft__choose_dtype(source->ckpt, source->config, dtype);
    if (status == HEFT_OK) {
        status = heft__checkpoint_find_quantized(source->ckpt, &source->arena,
                                                 &source->quant_settings, &source->quant, &why);
    }
    if (status != HEFT_OK) {
        source->no_quant = why;
        if (err && status == HEFT_NOMEM) {
            *err = why;
        }
    }
    tell_about(source);
    return status == HEFT_NOMEM ? status : HEFT_OK;
}

heft_status heft__source_dequantize(heft_source *source, heft_error *err)
{
    heft_checkpoint *view = NULL;
    if (!source->ckpt || (source->no_quant.status == HEFT_OK && !source->quant.method)) {
        return HEFT_OK; /* nothing is quantized */
    }
    heft_status status =
        heft__checkpoint_dequantized(source->ckpt, &source->quant_settings, &view, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft_checkpoint_close(source->view);
    source->view = view;
    source->ckpt = view;
    if (source->config) {
        heft__config_drop_quantization(source->config->root);
    }
    source->told.dequantized = true;
    source->quant = (heft__quant_found){0};
    return HEFT_OK;
}

const heft_quantization *heft_source_quantization(const heft_source *source)
{
    return source->told.method ? &source->told : NULL;
}

bool heft__source_is_packed(const heft_source *source)
{
    return source->quant.count > 0;
}

heft_status heft__source_check_quantized(const heft_source *source, heft_error *err)
{
    const heft__quant_found *found = &source->quant;
    if (source->no_quant.status != HEFT_OK) {
        if (err) {
            *err = source->no_quant;
        }
        return source->no_quant.status;
    }
    return found->method && !found->known
               ? heft__fail(
                     err, HEFT_UNSUPPORTED,
                     "the weights are quantized with \"%.100s\", a method that heft does not "
                     "know",
                     found->method)
               : HEFT_OK;
}
