/* plan_sizes.c - what a caller says about modules by name: which stay whole, which have another dtype.
 *
 * Source: docs/placing.md [1]. */
#include "place/place.h"

/* The module of a sub-model by its key in the config, as Transformers takes dtypes: "text_config". */
static const struct part {
    const char *key, *modules[5];
} parts[] = {
    {"text_config",   {"text_model", "language_model", "text_encoder"}},
    {"vision_config", {"vision_model", "vision_tower", "visual"}      },
    {"audio_config",  {"audio_model", "audio_tower", "audio_encoder"} },
};

/* At the top, or below the body. */
static bool names_part(const char *path, const char *key)
{
    const char *last = strrchr(path, '.');
    last = last ? last + 1 : path;
    if (strchr(path, '.') && strchr(path, '.') + 1 != last) {
        return false;
    }
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
        for (const char *const *name = parts[k].modules; *name; name++) {
            if (strcmp(key, parts[k].key) == 0 && strcmp(last, *name) == 0) {
                return true;
            }
        }
    }
    return false;
}

/* A whole path, the end of one, one with a '*' for a number, or a sub-model's key. */
bool heft__names_path(const char *path, const char *name)
{
    const char *star = strchr(name, '*');
    if (strcmp(path, name) == 0 || names_part(path, name)) {
        return true;
    }
    if (!star) {
        const size_t length = strlen(path), tail = strlen(name);
        return length > tail && path[length - tail - 1] == '.' &&
               strcmp(path + length - tail, name) == 0;
    }
    const size_t before = (size_t)(star - name);
    if (strncmp(path, name, before) != 0) {
        return false;
    }
    const size_t digits = strspn(path + before, "0123456789");
    return digits > 0 && strcmp(path + before + digits, star + 1) == 0;
}

bool heft__tree_names(const heft__tree_module *module, const char *name)
{
    return (*name && strcmp(module->class_name, name) == 0) || heft__names_path(module->path, name);
}

void heft__tree_keep_whole(heft__tree *tree, const char *const *names, size_t count)
{
    for (uint32_t i = 1; names && i < tree->module_count; i++) {
        heft__tree_module *module = &tree->modules[i];
        module->block = tree->modules[module->parent].block; /* blocks do not nest */
        for (size_t k = 0; k < count; k++) {
            module->block = module->block || heft__tree_names(module, names[k]);
        }
    }
}

bool heft__warn_names(heft__warnings *list, const heft__tree *tree, const char *const *names,
                      size_t count)
{
    for (size_t k = 0; names && k < count; k++) {
        bool found = false;
        for (uint32_t i = 0; i < tree->module_count && !found; i++) {
            found = heft__tree_names(&tree->modules[i], names[k]);
        }
        if (!found && !heft__warn(list,
                                  "no module of the model has the class or the name '%.100s', "
                                  "which was to stay on one device",
                                  names[k])) {
            return false;
        }
    }
    return true;
}

/* ---- dtypes ---------------------------------------------------------------------------------- */
struct overrides {
    const heft_module_dtype *list; /* [count] the caller's */
    size_t count;
    bool *found;         /* [count] it names something */
    heft_dtype *modules; /* [modules] of what is in each; NONE: none */
    heft_dtype *tensors; /* [tensors] */
};

/* The innermost name decides, of several for one thing the last. */
static void apply(const heft__tree *tree, struct overrides *o)
{
    for (uint32_t i = 0; i < tree->module_count; i++) {
        const heft__tree_module *module = &tree->modules[i];
        o->modules[i] = i > 0 ? o->modules[module->parent] : HEFT_DTYPE_NONE;
        for (size_t k = 0; k < o->count; k++) {
            if (heft__tree_names(module, o->list[k].name)) {
                o->modules[i] = o->list[k].dtype;
                o->found[k] = true;
            }
        }
    }
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        const heft__tree_tensor *tensor = &tree->tensors[i];
        const bool casts = heft_dtype_is_floating(tensor->dtype);
        o->tensors[i] = casts ? o->modules[tensor->module] : HEFT_DTYPE_NONE;
        for (size_t k = 0; k < o->count; k++) {
            if (heft__names_path(tensor->path, o->list[k].name)) {
                o->tensors[i] = o->list[k].dtype;
                o->found[k] = true;
            }
        }
    }
}

static heft_status check(const struct overrides *o, heft_error *err)
{
    for (size_t i = 0; i < o->count; i++) {
        if (!o->found[i]) {
            return heft__add_item(
                heft__fail(err, HEFT_MISMATCH, "is not a module or tensor of the model"), err,
                o->list[i].name);
        }
    }
    return HEFT_OK;
}

heft_status heft__tree_size_by(heft__tree *tree, const heft_plan_options *options, heft_error *err)
{
    heft__arena arena;
    struct overrides o = {.list = options->dtypes, .count = options->dtype_count};
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < o.count; i++) {
        if (!o.list[i].name || heft_dtype_bits(o.list[i].dtype) == 0) {
            return heft__fail(err, HEFT_INVALID_ARG, "entry %zu of dtypes has no name or no dtype",
                              i);
        }
    }
    if (options->dtype == HEFT_DTYPE_NONE && o.count == 0 &&
        options->quantize == HEFT_PLAN_AS_STORED) {
        return HEFT_OK;
    }
    heft__arena_init(&arena, tree->ctx);
    o.found = heft__arena_array(&arena, o.count, sizeof *o.found);
    o.modules = heft__arena_array(&arena, tree->module_count, sizeof *o.modules);
    o.tensors = heft__arena_array(&arena, tree->tensor_count, sizeof *o.tensors);
    if (o.found && o.modules && o.tensors) {
        apply(tree, &o);
        status = check(&o, err);
    } else {
        status = heft__fail_nomem(err, tree->tensor_count * sizeof *o.tensors);
    }
    if (status == HEFT_OK) {
        heft__tree_size(tree, options->dtype, (double)heft_dtype_bits(options->dtype) / 8,
                        o.tensors);
    }
    heft__arena_fini(&arena);
    return status;
}
