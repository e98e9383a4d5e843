/* packed_model.c - the skeleton of a model whose weights stay quantized.
 *
 * The family lists plain weights. Which of them the checkpoint stores quantized is found by the names that
 * these would have, with the rules of every other key (match.c). The skeleton is then built a second time,
 * with the tensors of the file in the place of each such weight, in the file's shapes and dtypes: so
 * nothing of it is missing, nothing is cast, and saving the model gives the same bytes. A parameter that the
 * family ties to one of these, and that the file does not have, stands for the same tensors. State of the
 * quantization that goes with no weight (self_attn.k_scale) is put into the module by whose path it is named.
 * Source: docs/formats/quantized.md. */
#include "load/load.h"

#include <stdlib.h>

struct packer {
    const heft_source *source;
    heft_ctx *ctx;
    heft__arena arena; /* until the model is built */
    heft_model *plain;
    size_t *parameters;    /* [weights] */
    size_t *first;         /* [weights] where the tensors of each begin in `members` */
    size_t *members;       /* numbers of tensors, weight after weight */
    heft__packed *weights; /* [weights], then what is tied to them */
    heft__packing packing;
};

/* Tensors by weight: a counting sort. */
static heft_status list_members(struct packer *p, heft_error *err)
{
    const heft__quant_found *found = &p->source->quant;
    const size_t count = p->source->ckpt->count;
    p->first = heft__arena_array(&p->arena, found->count + 2, sizeof *p->first);
    p->members = heft__arena_array(&p->arena, count, sizeof *p->members);
    if (!p->first || !p->members) {
        return heft__fail_nomem(err, count * sizeof *p->members);
    }
    for (size_t i = 0; i < count; i++) {
        if (found->owner[i] < found->count) {
            p->first[found->owner[i] + 2]++;
        }
    }
    for (size_t w = 2; w < found->count + 2; w++) {
        p->first[w] += p->first[w - 1];
    }
    for (size_t i = 0; i < count; i++) {
        if (found->owner[i] < found->count) {
            p->members[p->first[found->owner[i] + 1]++] = i;
        }
    }
    return HEFT_OK;
}

/* The parameter that each weight would fill if it were plain. */
static heft_status find_parameters(struct packer *p, heft_error *err)
{
    const heft__quant_found *found = &p->source->quant;
    const char **names = heft__arena_array(&p->arena, found->count, sizeof *names);
    p->parameters = heft__arena_array(&p->arena, found->count, sizeof *p->parameters);
    if (!names || !p->parameters) {
        return heft__fail_nomem(err, found->count * sizeof *names);
    }
    for (size_t w = 0; w < found->count; w++) {
        names[w] = found->weights[w].name;
    }
    return heft__match_names(p->plain, names, found->count, p->parameters, err);
}

/* Both are whole names of one thing; how much of the file's name is that of the module. */
static size_t module_length(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot ? (size_t)(dot - name) + 1 : 0;
}

/* The bias of a quantized module that is plain in its family; HEFT__NO_TENSOR: none, or the family has it. */
static size_t find_bias(struct packer *p, const heft__quant_weight *weight,
                        const heft_parameter *parameter, size_t above)
{
    const heft_checkpoint *ckpt = p->source->ckpt;
    const size_t ours = module_length(parameter->name);
    char *name = heft__arena_format(&p->arena, "%.*sbias", (int)above, weight->name),
         *known = heft__arena_format(&p->arena, "%.*sbias", (int)ours, parameter->name);
    if (!name || !known || strcmp(weight->name + above, "weight") != 0 ||
        heft_model_find(p->plain, known) != SIZE_MAX) {
        return HEFT__NO_TENSOR;
    }
    const size_t found = heft_checkpoint_find(ckpt, name);
    return found != SIZE_MAX && p->source->quant.owner[found] == HEFT__NO_PART ? found
                                                                               : HEFT__NO_TENSOR;
}

static heft_parameter_spec spec_of(const struct packer *p, size_t tensor, size_t above)
{
    const heft_tensor_info *info = &p->source->ckpt->infos[tensor];
    return (heft_parameter_spec){
        .name = info->name + above, .dtype = info->dtype, .rank = info->rank, .shape = info->shape};
}

static heft_status pack_weight(struct packer *p, size_t w, heft__packed *out, heft_error *err)
{
    const heft__quant_weight *weight = &p->source->quant.weights[w];
    const heft_parameter *parameter = &p->plain->parameters[p->parameters[w]];
    const size_t begin = p->first[w], count = p->first[w + 1] - begin,
                 above = module_length(weight->name);
    heft_parameter_spec *list = heft__arena_array(&p->arena, count + 1, sizeof *list);
    if (!list) {
        return heft__fail_nomem(err, count * sizeof *list);
    }
    if (!heft__packed_fits(p->plain, p->parameters[w], weight)) {
        char theirs[HEFT__SHAPE_TEXT], ours[HEFT__SHAPE_TEXT];
        heft_status status =
            heft__fail(err, HEFT_FORMAT, "quantized weight of shape %s in file, %s in model",
                       heft__shape_text(weight->shape, weight->rank, theirs),
                       heft__shape_text(parameter->shape, parameter->rank, ours));
        return heft__add_item(status, err, weight->name);
    }
    for (size_t k = 0; k < count; k++) {
        list[k] = spec_of(p, p->members[begin + k], above);
    }
    const size_t bias = find_bias(p, weight, parameter, above);
    if (bias != HEFT__NO_TENSOR) {
        list[count] = spec_of(p, bias, above);
    }
    *out = (heft__packed){.list = list, .count = count + (bias != HEFT__NO_TENSOR)};
    return HEFT_OK;
}

/* A parameter and what stands in its place. */
static heft_status put_packed(struct packer *p, const char *name, size_t number, heft_error *err)
{
    size_t other = HEFT__MAP_NONE;
    if (!heft__map_put(&p->packing.names, name, strlen(name), number, &other)) {
        return heft__fail_nomem(err, strlen(name));
    }
    const heft__quant_weight *weights = p->source->quant.weights;
    return other == HEFT__MAP_NONE
               ? HEFT_OK
               : heft__add_item(heft__fail(err, HEFT_FORMAT,
                                           "'%.100s' is stored for the same weight",
                                           weights[other].name),
                                err, weights[number].name);
}

static heft_status pack(struct packer *p, heft_error *err)
{
    const heft__quant_found *found = &p->source->quant;
    heft__packed *weights =
        heft__arena_array(&p->arena, found->count + p->plain->count, sizeof *weights);
    heft_status status = weights ? HEFT_OK : heft__fail_nomem(err, found->count * sizeof *weights);
    p->packing.weights = p->weights = weights;
    for (size_t w = 0; w < found->count && status == HEFT_OK; w++) {
        if (p->parameters[w] == SIZE_MAX) {
            continue; /* the model has no such weight: its tensors are unexpected */
        }
        status = pack_weight(p, w, &weights[w], err);
        if (status == HEFT_OK) {
            status = put_packed(p, p->plain->parameters[p->parameters[w]].name, w, err);
        }
    }
    return status;
}

/* ---- ties ------------------------------------------------------------------------------------- */
/* Which parameters the checkpoint has as they are: an array of plain->count; NULL without memory. */
static bool *find_plain(struct packer *p, heft_status *status, heft_error *err)
{
    const heft_checkpoint *ckpt = p->source->ckpt;
    const char **names = heft__arena_array(&p->arena, ckpt->count + 1, sizeof *names);
    size_t *numbers = heft__arena_array(&p->arena, ckpt->count + 1, sizeof *numbers), count = 0;
    bool *plain = heft__arena_array(&p->arena, p->plain->count + 1, sizeof *plain);
    if (!names || !numbers || !plain) {
        *status = heft__fail_nomem(err, ckpt->count * sizeof *names);
        return NULL;
    }
    for (size_t i = 0; i < ckpt->count; i++) {
        if (p->source->quant.owner[i] == HEFT__NO_PART) {
            names[count++] = ckpt->infos[i].name;
        }
    }
    *status = heft__match_names(p->plain, names, count, numbers, err);
    for (size_t k = 0; k < count && *status == HEFT_OK; k++) {
        if (numbers[k] != SIZE_MAX) {
            plain[numbers[k]] = true;
        }
    }
    return plain;
}

/* The weights that parameters tied to packed ones stand for: by the first of each tie that is packed. */
static heft_status pack_ties(struct packer *p, heft_error *err)
{
    const heft_model *model = p->plain;
    const size_t count = model->count, weights = p->source->quant.count;
    size_t *first = heft__arena_array(&p->arena, count + 1, sizeof *first), next = weights;
    heft_status status = first ? HEFT_OK : heft__fail_nomem(err, count * sizeof *first);
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        first[i] = SIZE_MAX;
    }
    for (size_t w = weights; w-- > 0 && status == HEFT_OK;) {
        if (p->parameters[w] != SIZE_MAX) {
            first[model->parameters[p->parameters[w]].tied_to] = w;
        }
    }
    const bool *plain = status == HEFT_OK ? find_plain(p, &status, err) : NULL;
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        const char *name = model->parameters[i].name;
        const size_t w = first[model->parameters[i].tied_to];
        if (w == SIZE_MAX || plain[i] ||
            heft__map_get(&p->packing.names, name, strlen(name)) != HEFT__MAP_NONE) {
            continue;
        }
        p->weights[next] =
            (heft__packed){.list = p->weights[w].list, .count = p->first[w + 1] - p->first[w]};
        status = put_packed(p, name, next++, err);
    }
    return status;
}

/* ---- state ------------------------------------------------------------------------------------ */
/* State that goes with no weight, and the module that it is put into. */
struct placed {
    const char *module;
    heft_parameter_spec spec;
};

static size_t module_of(const struct packer *p, const heft__map *modules, const char *path,
                        size_t length)
{
    const char *const prefixes[] = {p->plain->base_prefix, p->plain->family->file_prefix};
    size_t found = HEFT__MAP_NONE;
    for (size_t k = 0; k < 2 && found == HEFT__MAP_NONE; k++) {
        const size_t above = prefixes[k] ? strlen(prefixes[k]) : 0;
        if (above && length > above && path[above] == '.' &&
            memcmp(path, prefixes[k], above) == 0) {
            found = heft__map_get(modules, path + above + 1, length - above - 1);
        }
    }
    if (found == HEFT__MAP_NONE && *p->plain->base_prefix) {
        char longer[1024];
        const int end = snprintf(longer, sizeof longer, "%s.%.*s", p->plain->base_prefix,
                                 (int)(length < sizeof longer ? length : 0), path);
        found = end > 0 && (size_t)end < sizeof longer ? heft__map_get(modules, longer, (size_t)end)
                                                       : HEFT__MAP_NONE;
    }
    return found == HEFT__MAP_NONE ? heft__map_get(modules, path, length) : found;
}

/* The module of which that is the name of a tensor, or the one above. *length: of its path in the name. */
static size_t module_above(const struct packer *p, const heft__map *modules, const char *name,
                           size_t *length)
{
    size_t found = HEFT__MAP_NONE;
    *length = strlen(name);
    for (int level = 0; level < 2 && found == HEFT__MAP_NONE; level++) {
        while (*length > 0 && name[--*length] != '.') {
        }
        found = *length > 0 ? module_of(p, modules, name, *length) : HEFT__MAP_NONE;
    }
    return found;
}

/* The module in which a tensor is, or the one above that; false: the model has neither, or a parameter of its
 * own by that name. */
static bool place_state(struct packer *p, const heft__map *modules, size_t tensor,
                        struct placed *out, heft_status *status)
{
    const char *full = p->source->ckpt->infos[tensor].name, *name = full, *what;
    size_t length = 0, found = module_above(p, modules, name, &length);
    while (found == HEFT__MAP_NONE &&
           (name = heft__match_unwrap(&p->arena, name, &what, status)) != NULL) {
        found = module_above(p, modules, name, &length);
    }
    if (found == HEFT__MAP_NONE) {
        return false;
    }
    const size_t tail = strlen(name) - length - 1; /* no wrapper is within it */
    out->module = p->plain->modules[found].path;
    out->spec = spec_of(p, tensor, strlen(full) - tail);
    return heft_model_module_parameter(p->plain, found, out->spec.name) == SIZE_MAX;
}

static int by_module(const void *left, const void *right)
{
    const struct placed *a = left, *b = right;
    const int order = strcmp(a->module, b->module);
    return order ? order : strcmp(a->spec.name, b->spec.name);
}

/* Lists of one module each, of what is sorted by module. */
static heft_status list_state(struct packer *p, const struct placed *placed, size_t count,
                              heft_error *err)
{
    heft_parameter_spec *specs = heft__arena_array(&p->arena, count, sizeof *specs);
    heft__packed *lists = heft__arena_array(&p->arena, count, sizeof *lists);
    size_t used = 0, old;
    if (!specs || !lists) {
        return heft__fail_nomem(err, count * sizeof *specs);
    }
    for (size_t i = 0; i < count; i++) {
        const char *module = placed[i].module;
        specs[i] = placed[i].spec;
        if (i == 0 || strcmp(placed[i - 1].module, module) != 0) {
            lists[used] = (heft__packed){.list = &specs[i]};
            if (!heft__map_put(&p->packing.modules, module, strlen(module), used++, &old)) {
                return heft__fail_nomem(err, strlen(module));
            }
        }
        lists[used - 1].count++;
    }
    p->packing.state = lists;
    return HEFT_OK;
}

static heft_status pack_state(struct packer *p, heft_error *err)
{
    const heft__quant_found *found = &p->source->quant;
    struct placed *placed =
        found->loose ? heft__arena_array(&p->arena, found->loose, sizeof *placed) : NULL;
    heft_status status = placed || !found->loose ? HEFT_OK : heft__fail_nomem(err, found->loose);
    size_t count = 0, old;
    heft__map modules;
    heft__map_init(&modules, p->ctx);
    for (size_t m = 1; m < p->plain->module_count && found->loose && status == HEFT_OK; m++) {
        const char *path = p->plain->modules[m].path;
        status = heft__map_put(&modules, path, strlen(path), m, &old)
                     ? HEFT_OK
                     : heft__fail_nomem(err, strlen(path));
    }
    for (size_t i = 0; i < p->source->ckpt->count && found->loose && status == HEFT_OK; i++) {
        count += found->owner[i] == HEFT__QUANT_STATE &&
                 place_state(p, &modules, i, &placed[count], &status);
    }
    heft__map_fini(&modules);
    if (status == HEFT_NOMEM) {
        heft__fail_nomem(err, 0);
    }
    if (status != HEFT_OK || count == 0) {
        return status;
    }
    qsort(placed, count, sizeof *placed, by_module);
    return list_state(p, placed, count, err);
}

heft_status heft__packed_model(const heft_source *source, const heft__recipe *recipe,
                               heft_model **out, heft_error *err)
{
    struct packer p = {.source = source, .ctx = source->ctx};
    heft__recipe packed = *recipe;
    heft__arena_init(&p.arena, p.ctx);
    heft__map_init(&p.packing.names, p.ctx);
    heft__map_init(&p.packing.modules, p.ctx);
    heft_status status = heft__model_build(p.ctx, recipe, &p.plain, err);
    if (status == HEFT_OK) {
        status = list_members(&p, err);
    }
    if (status == HEFT_OK) {
        status = find_parameters(&p, err);
    }
    if (status == HEFT_OK) {
        status = pack(&p, err);
    }
    if (status == HEFT_OK && p.plain->has_ties) {
        status = pack_ties(&p, err);
    }
    if (status == HEFT_OK) {
        status = pack_state(&p, err);
    }
    if (status == HEFT_OK) {
        packed.packing = &p.packing;
        status = heft__model_build(p.ctx, &packed, out, err);
    }
    heft_model_free(p.plain);
    heft__map_fini(&p.packing.names);
    heft__map_fini(&p.packing.modules);
    heft__arena_fini(&p.arena);
    return status;
}

heft_status heft__packed_check(const heft_source *source, const heft_model *model,
                               const heft__match *match, heft_error *err)
{
    const heft__quant_found *found = &source->quant;
    const size_t count = source->ckpt->count;
    bool *filled = heft__alloc_zero(source->ctx, count, sizeof *filled);
    bool *wanted = heft__alloc_zero(source->ctx, found->count, sizeof *wanted);
    heft_status status = filled && wanted ? HEFT_OK : heft__fail_nomem(err, count);
    for (size_t i = 0; i < model->count && status == HEFT_OK; i++) {
        const size_t tensor = match->source[i];
        if (tensor != HEFT__NO_TENSOR && found->owner[tensor] < found->count) {
            filled[tensor] = true;
            wanted[found->owner[tensor]] = true;
        }
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        const size_t w = found->owner[i];
        if (w < found->count && wanted[w] && !filled[i]) {
            const bool stacked = found->weights[w].rank > 2;
            status =
                heft__fail(err, stacked ? HEFT_UNSUPPORTED : HEFT_FORMAT,
                           stacked ? "part of a quantized weight that stacks matrices for which "
                                     "the model has parameters of their own: only the "
                                     "dequantized weight (--dequantize) can be divided"
                                   : "part of a quantized weight, but the model has no parameter "
                                     "for it");
            heft__add_item(status, err, source->ckpt->infos[i].name);
        }
    }
    heft__free(source->ctx, filled, count * sizeof *filled);
    heft__free(source->ctx, wanted, found->count * sizeof *wanted);
    return status;
}

heft_status heft__packed_check_exact(const heft_source *source, const heft_model *model,
                                     const heft__match *match, heft_error *err)
{
    const heft__quant_found *found = &source->quant;
    for (size_t i = 0; i < model->count; i++) {
        const size_t tensor = match->source[i];
        if (tensor != HEFT__NO_TENSOR && found->owner && found->owner[tensor] != HEFT__NO_PART &&
            source->ckpt->infos[tensor].dtype != model->parameters[i].dtype) {
            return heft__add_item(
                heft__fail(
                    err, HEFT_UNSUPPORTED,
                    "a part of a quantized weight (%.40s), %s, cannot be cast to %s: make the "
                    "model from this checkpoint, or dequantize the checkpoint",
                    found->method, heft_dtype_name(source->ckpt->infos[tensor].dtype),
                    heft_dtype_name(model->parameters[i].dtype)),
                err, model->parameters[i].name);
        }
    }
    for (size_t w = 0; w < found->count; w++) {
        const size_t i = heft_model_find(model, found->weights[w].name);
        if (i != SIZE_MAX && match->source[i] == HEFT__NO_TENSOR) {
            return heft__add_item(
                heft__fail(
                    err, HEFT_UNSUPPORTED,
                    "is stored quantized (%.40s), and plain in the model: make the model from "
                    "this checkpoint, or dequantize the checkpoint",
                    found->method),
                err, model->parameters[i].name);
        }
    }
    return HEFT_OK;
}
