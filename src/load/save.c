/* save.c - saving a model: its config, its weights in shards, an index.
 *
 * Bytes come from the model's storages, from the files in which parameters stay, or are made as they are written (heft_model_save_random),
 * so that a model with random weights can be larger than the memory. Tied names are one storage in
 * a .bin; in safetensors the saved one is kept.
 * Source: docs/sharding.md. */
#include "load/load.h"

#define INIT_ELEMS ((size_t)256 << 10) /* per piece of parallel work: 1 MiB of floats */

struct saving {
    const heft_model *model;
    heft__arena arena;
    heft__out_tensor *tensors;
    size_t count;
    const char **modules; /* paths */
    heft__buffer config;
    heft__side_file *sides; /* config.json, and what the model was loaded with */
    heft__metadata metadata;
    heft__warnings warnings;
    uint64_t seed; /* of a random save */
    heft__disk_reader disk;
    bool from_disk; /* some are read from their files */
};

static size_t number_of(const heft__out_tensor *tensor)
{
    return (size_t)(uintptr_t)tensor->source;
}

/* ---- where the bytes come from --------------------------------------------------------------- */
static heft_status read_stored(void *user, const heft__out_tensor *tensor, uint64_t first,
                               void *dst, size_t length, heft_error *err)
{
    struct saving *s = user;
    size_t i = number_of(tensor);
    const heft__binding *binding = &s->model->bindings[i];
    if (s->model->parameters[i].state == HEFT_PARAMETER_DISK) {
        return heft__disk_read(&s->disk, i, first, dst, length, err);
    }
    const uint8_t *src =
        (const uint8_t *)heft_storage_data(binding->storage) + binding->byte_offset + first;
    heft_status status = HEFT_OK;
    if (s->model->parameters[i].state == HEFT_PARAMETER_MAPPED) {
        status = heft__copy_mapped(dst, src, length, err);
    } else {
        memcpy(dst, src, length);
    }
    return heft__add_item(status, err, tensor->name);
}

static heft_status check_files(void *user, heft_error *err)
{
    const struct saving *s = user;
    return s->from_disk ? heft__disk_unchanged(s->model, err) : HEFT_OK;
}

struct making { /* one piece of a random tensor, made by several threads */
    struct saving *saving;
    size_t parameter;
    uint64_t first, count; /* elements */
    uint8_t *dst;
};

static heft_status make_part(void *user, size_t part, heft_error *err)
{
    struct making *m = user;
    const heft_model *model = m->saving->model;
    const heft_parameter *parameter = &model->parameters[m->parameter];
    uint64_t at = (uint64_t)part * INIT_ELEMS;
    size_t count = m->count - at < INIT_ELEMS ? (size_t)(m->count - at) : INIT_ELEMS;
    float *scratch = heft__alloc(model->ctx, INIT_ELEMS * sizeof *scratch);
    if (!scratch) {
        return heft__fail_nomem(err, INIT_ELEMS * sizeof *scratch);
    }
    heft_status status =
        heft__init_fill(parameter, model->rules[m->parameter], m->saving->seed, m->first + at,
                        count, scratch, m->dst + at * (heft_dtype_bits(parameter->dtype) / 8), err);
    heft__free(model->ctx, scratch, INIT_ELEMS * sizeof *scratch);
    return status;
}

static heft_status read_random(void *user, const heft__out_tensor *tensor, uint64_t first,
                               void *dst, size_t length, heft_error *err)
{
    struct saving *s = user;
    size_t i = number_of(tensor), element = heft_dtype_bits(s->model->parameters[i].dtype) / 8;
    struct making m = {.saving = s,
                       .parameter = i,
                       .first = first / element,
                       .count = length / element,
                       .dst = dst};
    size_t parts = (size_t)((m.count + INIT_ELEMS - 1) / INIT_ELEMS);
    return heft__add_item(heft__parallel(s->model->ctx, parts, make_part, &m, err), err,
                          tensor->name);
}

/* ---- what is written ------------------------------------------------------------------------- */
/* `order`: numbers of parameters, or NULL for their own order. */
static heft_status add_tensors(struct saving *s, const heft__format *format, bool stored,
                               const size_t *order, heft_error *err)
{
    const heft_model *model = s->model;
    for (size_t k = 0; k < model->count; k++) {
        const size_t i = order ? order[k] : k;
        const heft_parameter *parameter = &model->parameters[i];
        bool tied = parameter->tied_to != i;
        if (parameter->kind == HEFT_PARAMETER_BUFFER_TRANSIENT ||
            (tied && format->ties == HEFT__TIES_DROP)) {
            continue;
        }
        s->from_disk |= stored && parameter->state == HEFT_PARAMETER_DISK;
        if (stored && parameter->state == HEFT_PARAMETER_ABSENT) {
            return heft__add_item(
                heft__fail(err, HEFT_NOT_FOUND, "%s", heft__why_absent(parameter->state)), err,
                parameter->name);
        }
        if (stored && heft__model_compact(model, i)) {
            return heft__add_item(heft__fail(err, HEFT_UNSUPPORTED, "%s", HEFT__IS_COMPACT), err,
                                  parameter->name);
        }
        s->tensors[s->count++] = (heft__out_tensor){
            .name = parameter->name,
            .dtype = parameter->dtype,
            .rank = parameter->rank,
            .shape = parameter->shape,
            .size_bytes = parameter->size_bytes,
            .storage = parameter->tied_to,
            .source = (void *)(uintptr_t)parameter->tied_to,
        };
    }
    return HEFT_OK;
}

static heft_status list_tensors(struct saving *s, const heft__format *format, bool stored,
                                bool natural, heft_error *err)
{
    const heft_model *model = s->model;
    size_t *order = NULL;
    heft_status status = HEFT_OK;
    s->tensors = heft__arena_array(&s->arena, model->count, sizeof *s->tensors);
    if (!s->tensors) {
        return heft__fail_nomem(err, model->count * sizeof *s->tensors);
    }
    if (natural) {
        order = heft__alloc(model->ctx, model->count * sizeof *order);
        status = order ? heft_model_natural_order(model, order, err)
                       : heft__fail_nomem(err, model->count * sizeof *order);
    }
    if (status == HEFT_OK) {
        status = add_tensors(s, format, stored, order, err);
    }
    heft__free(model->ctx, order, model->count * sizeof *order);
    return status;
}

static heft_status list_modules(struct saving *s, heft_error *err)
{
    const heft_model *model = s->model;
    s->modules = heft__arena_array(&s->arena, model->module_count, sizeof *s->modules);
    if (!s->modules) {
        return heft__fail_nomem(err, model->module_count * sizeof *s->modules);
    }
    for (size_t i = 0; i < model->module_count; i++) {
        s->modules[i] = model->modules[i].path;
    }
    return HEFT_OK;
}

static heft_status take_metadata(struct saving *s, const heft__format *format,
                                 const heft_save_options *options, heft_error *err)
{
    if (options->metadata_count && !format->metadata) {
        return heft__fail(err, HEFT_INVALID_ARG, "%s cannot hold metadata", format->noun);
    }
    const heft_model *model = s->model;
    heft_status status = heft__metadata_standard(&s->metadata, err);
    if (status == HEFT_OK) {
        status = heft__metadata_add(&s->metadata, model->kept_pairs, model->kept_pair_count, err);
    }
    if (status == HEFT_OK && !format->metadata && !heft__metadata_is_standard(&s->metadata) &&
        !heft__warn(&s->warnings, "metadata is omitted, because %s cannot hold it", format->noun)) {
        status = heft__fail_nomem(err, 0);
    }
    return status == HEFT_OK
               ? heft__metadata_set(&s->metadata, options->metadata, options->metadata_count, err)
               : status;
}

static heft_status list_sides(struct saving *s, heft_error *err)
{
    const heft_model *model = s->model;
    s->sides = heft__arena_array(&s->arena, model->kept_count + 1, sizeof *s->sides);
    if (!s->sides) {
        return heft__fail_nomem(err, model->kept_count * sizeof *s->sides);
    }
    s->sides[0] =
        (heft__side_file){.name = "config.json", .bytes = s->config.data, .length = s->config.size};
    for (size_t i = 0; i < model->kept_count; i++) {
        const heft__kept_file *file = &model->kept[i];
        s->sides[i + 1] =
            (heft__side_file){.name = file->name, .bytes = file->text, .length = file->length};
    }
    return HEFT_OK;
}

/* Whether its config declares quantized weights, and all of them are plain. */
static bool declares_in_vain(const heft_model *model, const heft_config *config)
{
    return model->known_family && !model->packed && heft__quant_settings_in(config->root) != NULL;
}

/* The text of a config that is saved with the model. */
static heft_status write_config(struct saving *s, const heft_config *config, heft__buffer *out,
                                heft_error *err)
{
    const heft_model *model = s->model;
    heft__json_value *root = NULL;
    heft_status status = heft__config_write(config, model->class_name, model->dtype, out, err);
    if (status != HEFT_OK || !declares_in_vain(model, config)) {
        return status;
    }
    status = heft__json_parse(&s->arena, out->data, out->size, heft__limits(model->ctx)->json_depth,
                              &root, err);
    if (status == HEFT_OK) {
        heft__quant_drop_settings(root);
        out->size = 0;
        heft__json_write_python(out, root);
        heft__buffer_byte(out, '\n');
        status = heft__buffer_check(out, err);
    }
    return status;
}

/* Everything that is written but the bytes of the tensors. */
static heft_status prepare(struct saving *s, const heft__format *format, bool stored,
                           const heft_save_options *options, heft_error *err)
{
    const heft_model *model = s->model;
    heft_status status = list_tensors(s, format, stored, options->natural_order, err);
    if (status == HEFT_OK) {
        status = list_modules(s, err);
    }
    if (status == HEFT_OK) {
        status = take_metadata(s, format, options, err);
    }
    if (status == HEFT_OK) {
        status = write_config(s, model->config, &s->config, err);
    }
    if (status == HEFT_OK && declares_in_vain(model, model->config) &&
        !heft__warn(&s->warnings, "config.json is written without its quantization settings, "
                                  "because the weights are not quantized")) {
        status = heft__fail_nomem(err, 0);
    }
    return status == HEFT_OK ? list_sides(s, err) : status;
}

/* The folder of the model's config, if its config.json is still the one that the model was made from. */
static const char *config_folder(void *user)
{
    struct saving *s = user;
    const heft_model *model = s->model;
    const char *path = model->config->path, *base = heft__path_base(path);
    heft_config *now = NULL;
    heft__buffer text;
    bool same = false;
    heft_error ignored;
    if (!model->config->is_file || strcmp(base, "config.json") != 0 ||
        heft_config_read(model->ctx, path, &now, &ignored) != HEFT_OK) {
        return NULL;
    }
    heft__buffer_init(&text, model->ctx);
    if (write_config(s, now, &text, &ignored) == HEFT_OK) {
        same = text.size == s->config.size && memcmp(text.data, s->config.data, text.size) == 0;
    }
    heft__buffer_fini(&text);
    heft_config_free(now);
    return !same          ? NULL
           : base == path ? "."
                          : heft__arena_text(&s->arena, path, (size_t)(base - path));
}

static heft_status save(const heft_model *model, const char *dst, const heft_init_options *init,
                        const heft_save_options *options, bool random, heft_write_report **report,
                        heft_error *err)
{
    const heft__format *format = options->format == HEFT_FORMAT_AUTO
                                     ? heft__format_in_folder(NULL, 0)
                                     : heft__format_find(options->format);
    if (!format || !format->lay_out || format->file_each) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "a model can be saved as safetensors or bin, not '%s'",
                          heft_format_name(options->format));
    }
    if (random && !model->known_family) {
        return heft__fail(err, HEFT_UNSUPPORTED, "no initializer is known for model type '%s'",
                          model->model_type);
    }
    struct saving s = {.model = model, .seed = init->seed, .disk = {.model = model}};
    heft__arena_init(&s.arena, model->ctx);
    heft__buffer_init(&s.config, model->ctx);
    heft__metadata_init(&s.metadata, &s.arena);
    heft__warnings_init(&s.warnings, &s.arena);
    heft_status status = prepare(&s, format, !random, options, err);
    if (status == HEFT_OK) {
        heft__write_job job = {
            .dst = dst,
            .format = format,
            .variant = options->variant,
            .max_shard_bytes = options->max_shard_bytes,
            .force = options->force,
            .wait = options->wait,
            .dry_run = options->dry_run,
            .tensors = s.tensors,
            .count = s.count,
            .total_parameters = heft_model_elements(model),
            .modules = s.modules,
            .module_count = model->module_count,
            .sides = s.sides,
            .side_count = model->kept_count + 1,
            .keep_side_files = options->keep_side_files,
            .beside = config_folder,
            .read = random ? read_random : read_stored,
            .check = random ? NULL : check_files,
            .user = &s,
            .warnings = s.warnings.lines,
            .warning_count = s.warnings.count,
        };
        job.metadata = heft__metadata_list(&s.metadata, &job.metadata_count);
        status = job.metadata ? heft__write_checkpoint(model->ctx, &job, report, err)
                              : heft__fail_nomem(err, 0);
    }
    heft__disk_reader_fini(&s.disk);
    heft__buffer_fini(&s.config);
    heft__metadata_fini(&s.metadata);
    heft__arena_fini(&s.arena);
    return heft__add_path(status, err, dst);
}

static heft_status check_and_save(const heft_model *model, const char *dst,
                                  const heft_init_options *init, const heft_save_options *options,
                                  bool random, heft_write_report **report, heft_error *err)
{
    heft_init_options seed;
    heft_save_options taken;
    if (!model || !dst) {
        return heft__fail(err, HEFT_INVALID_ARG, "model or destination is NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&seed, init, err);
    if (status == HEFT_OK) {
        status = HEFT__TAKE_OPTIONS(&taken, options, err);
    }
    return status == HEFT_OK ? save(model, dst, &seed, &taken, random, report, err) : status;
}

heft_status heft_model_save(const heft_model *model, const char *dst,
                            const heft_save_options *options, heft_write_report **report,
                            heft_error *err)
{
    return check_and_save(model, dst, NULL, options, false, report, err);
}

heft_status heft_model_save_random(const heft_model *model, const char *dst,
                                   const heft_init_options *init, const heft_save_options *options,
                                   heft_write_report **report, heft_error *err)
{
    return check_and_save(model, dst, init, options, true, report, err);
}
