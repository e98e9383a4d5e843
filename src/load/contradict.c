/* contradict.c - where config.json's model and the tensors of its files contradict each other, for a checkpoint that is
 * only looked at: shapes, of plain and of quantized weights, and layers beyond those of the model.
 *
 * A load refuses the shapes, and leaves the layers out.
 * Source: docs/commands/verify.md. */
#include "load/load.h"

#include <stdlib.h>

#define CONFIG "config.json"

/* ---- shapes ----------------------------------------------------------------------------------- */
static heft_status find_shape(heft__findings *findings, const char *name, const char *what,
                              const char *theirs, const char *ours, heft_error *err)
{
    const heft__finding finding = {.kind = "shape",
                                   .severity = HEFT__FAULT,
                                   .file = CONFIG,
                                   .tensor = name,
                                   .offset = HEFT_NO_OFFSET};
    return heft__find(findings, &finding, err, "%s%s in file, %s in the config's model", what,
                      theirs, ours);
}

static heft_status compare_weights(const heft__quant_found *found, const heft_model *plain,
                                   const size_t *parameters, heft__findings *findings,
                                   heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t w = 0; w < found->count && status == HEFT_OK; w++) {
        const heft__quant_weight *weight = &found->weights[w];
        const heft_parameter *parameter =
            parameters[w] == SIZE_MAX ? NULL : &plain->parameters[parameters[w]];
        char theirs[HEFT__SHAPE_TEXT], ours[HEFT__SHAPE_TEXT];
        if (parameter && !heft__packed_fits(plain, parameters[w], weight)) {
            status = find_shape(findings, weight->name, "quantized weight of shape ",
                                heft__shape_text(weight->shape, weight->rank, theirs),
                                heft__shape_text(parameter->shape, parameter->rank, ours), err);
        }
    }
    return status;
}

heft_status heft__contradict_packed(const heft_source *source, heft__findings *findings,
                                    heft_error *err)
{
    const heft__quant_found *found = &source->quant;
    heft_model *plain = NULL;
    heft_error failure = {0};
    if (found->count == 0) {
        return HEFT_OK;
    }
    const char **names = heft__alloc(source->ctx, found->count * sizeof *names);
    size_t *parameters = heft__alloc(source->ctx, found->count * sizeof *parameters);
    heft_status status = names && parameters
                             ? heft_model_new(source->ctx, source->config, source->asked_class,
                                              HEFT_DTYPE_NONE, &plain, &failure)
                             : heft__fail_nomem(&failure, found->count * sizeof *names);
    for (size_t w = 0; w < found->count && status == HEFT_OK; w++) {
        names[w] = found->weights[w].name;
    }
    if (status == HEFT_OK) {
        status = heft__match_names(plain, names, found->count, parameters, &failure);
    }
    if (status == HEFT_OK) {
        status = compare_weights(found, plain, parameters, findings, err);
    } else if (status != HEFT_NOMEM && status != HEFT_CANCELLED) {
        status = HEFT_OK; /* a model that cannot be made says nothing of its weights */
    } else if (err) {
        *err = failure;
    }
    heft_model_free(plain);
    heft__free(source->ctx, names, found->count * sizeof *names);
    heft__free(source->ctx, parameters, found->count * sizeof *parameters);
    return status;
}

static heft_status compare_plain(const heft__match *match, heft__findings *findings,
                                 heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < match->mismatched_count && status == HEFT_OK; i++) {
        const heft_mismatch *m = &match->mismatched[i];
        char theirs[HEFT__SHAPE_TEXT], ours[HEFT__SHAPE_TEXT];
        if (heft__is_placeholder(m->checkpoint_shape, m->checkpoint_rank)) {
            continue; /* told as what it is */
        }
        status = find_shape(findings, m->name, "shape ",
                            heft__shape_text(m->checkpoint_shape, m->checkpoint_rank, theirs),
                            heft__shape_text(m->model_shape, m->model_rank, ours), err);
    }
    return status;
}

/* ---- layers ----------------------------------------------------------------------------------- */
#define STACKS_MOST 8

/* Layers that are numbered below one path. */
struct stack {
    const char *path; /* [length] */
    size_t length, layers;
    unsigned long last; /* the largest number in the files */
    const char *beyond; /* the first tensor of a layer that the model does not have; NULL: none */
};

static size_t list_stacks(const heft_model *model, struct stack stacks[STACKS_MOST])
{
    size_t count = 0;
    for (size_t m = 0; m < model->module_count; m++) {
        const char *path = model->modules[m].path, *dot = strrchr(path, '.');
        size_t k = 0;
        if (model->modules[m].kind != HEFT_MODULE_LAYER || !dot) {
            continue;
        }
        const size_t length = (size_t)(dot - path);
        while (k < count &&
               (stacks[k].length != length || memcmp(stacks[k].path, path, length) != 0)) {
            k++;
        }
        if (k == count && count < STACKS_MOST) {
            stacks[count++] = (struct stack){.path = path, .length = length};
        }
        if (k < count) {
            stacks[k].layers++;
        }
    }
    return count;
}

/* A file may leave out the prefix of the base model. */
static bool is_below(const struct stack *stack, const char *name, size_t length)
{
    const size_t more = stack->length - length;
    return length > 0 && length <= stack->length && memcmp(stack->path + more, name, length) == 0 &&
           (more == 0 || stack->path[more - 1] == '.');
}

static void look_for_layer(struct stack *stacks, size_t count, const char *name)
{
    for (const char *dot = strchr(name, '.'); dot; dot = strchr(dot + 1, '.')) {
        const size_t digits = strspn(dot + 1, "0123456789");
        if (digits == 0 || digits > 9 || dot[1 + digits] != '.') {
            continue;
        }
        const unsigned long number = strtoul(dot + 1, NULL, 10);
        for (size_t k = 0; k < count; k++) {
            if (number >= stacks[k].layers && is_below(&stacks[k], name, (size_t)(dot - name))) {
                stacks[k].beyond = stacks[k].beyond ? stacks[k].beyond : name;
                stacks[k].last = number > stacks[k].last ? number : stacks[k].last;
                return;
            }
        }
    }
}

/* Layers behind the others that predict further tokens: the config counts them apart, and no model of Transformers
 * has them. */
static uint64_t predicting_layers(const heft_config *config)
{
    static const char *const key = "num_nextn_predict_layers";
    uint64_t count = 0;
    const heft__json_value *text = heft__json_member(config->root, "text_config");
    const heft__json_value *value = heft__json_member(config->root, key);
    if (!value && text && text->type == HEFT__JSON_TYPE_OBJECT) {
        value = heft__json_member(text, key);
    }
    return value && heft__json_as_u64(value, &count) ? count : 0;
}

static heft_status find_layers(const heft_model *model, const heft__match *match,
                               heft__findings *findings, heft_error *err)
{
    struct stack stacks[STACKS_MOST];
    const size_t count = list_stacks(model, stacks);
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < match->unexpected_count; i++) {
        look_for_layer(stacks, count, match->unexpected[i]);
    }
    for (size_t k = 0; k < count && status == HEFT_OK; k++) {
        const heft__finding finding = {.kind = "layers",
                                       .severity = HEFT__FAULT,
                                       .file = CONFIG,
                                       .tensor = stacks[k].beyond,
                                       .offset = HEFT_NO_OFFSET};
        if (stacks[k].beyond &&
            stacks[k].last >= stacks[k].layers + predicting_layers(model->config)) {
            status =
                heft__find(findings, &finding, err,
                           "layers up to number %lu of '%.*s' in the files, %zu layers in the "
                           "config's model: a load leaves the others out",
                           stacks[k].last, (int)stacks[k].length, stacks[k].path, stacks[k].layers);
        }
    }
    return status;
}

heft_status heft__contradict_plain(const heft_model *model, const heft__match *match,
                                   heft__findings *findings, heft_error *err)
{
    const heft_status status = compare_plain(match, findings, err);
    return status == HEFT_OK ? find_layers(model, match, findings, err) : status;
}
