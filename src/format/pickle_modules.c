/* pickle_modules.c - the versions of modules that a state dict notes.
 *
 * torch's state dicts are OrderedDicts with the attribute `_metadata`: {path of a module: {'version': n, ...}},
 * by which modules know how to read what older ones saved. What is of another form is passed over.
 * Source: docs/formats/pickle.md [5]. */
#include "format/pickle.h"

const heft__pk_cell *heft__pk_find_item(const heft__pickle *pickle, const heft__pk_object *dict,
                                        const char *name)
{
    for (uint32_t i = 0; i + 1 < dict->count; i += 2) {
        if (heft__pk_is_text(pickle, &dict->items[i], name)) {
            return &dict->items[i + 1];
        }
    }
    return NULL;
}

/* The dict under `_metadata` in the attributes of a dict; NULL if there is none. */
static const heft__pk_object *find_metadata(const heft__pickle *pickle, const heft__pk_object *dict)
{
    const heft__pk_attributes *attributes = pickle->attributes;
    while (attributes && (attributes->of != dict || attributes->factory)) {
        attributes = attributes->next;
    }
    const heft__pk_cell *found =
        attributes ? heft__pk_find_item(pickle, attributes->state.as.object, "_metadata") : NULL;
    return found && found->kind == HEFT__PK_DICT ? found->as.object : NULL;
}

/* Fill a module from a path and its facts; false if they are of another form. */
static bool read_module(const heft__pickle *pickle, const heft__pk_cell *path,
                        const heft__pk_cell *facts, heft__arena *arena, heft__file_module *module,
                        bool *no_memory)
{
    const bool fits = path->kind == HEFT__PK_TEXT && facts->kind == HEFT__PK_DICT;
    const heft__pk_cell *version =
        fits ? heft__pk_find_item(pickle, facts->as.object, "version") : NULL;
    const size_t length = fits ? path->as.text.length : 0;
    if (!version || version->kind != HEFT__PK_INT || version->as.integer < 0 ||
        version->as.integer > UINT32_MAX) {
        return false;
    }
    const char *text = heft__pk_text(pickle, path);
    if ((length && memchr(text, 0, length)) ||
        heft__utf8_invalid_at((const uint8_t *)text, length) != length) {
        return false;
    }
    module->path = heft__arena_text(arena, text, length);
    module->version = (uint32_t)version->as.integer;
    *no_memory = !module->path;
    return true;
}

heft_status heft__pickle_modules(heft__pickle *pickle, const heft__pk_object *dict,
                                 heft__file *file, heft_error *err)
{
    const heft__pk_object *metadata = find_metadata(pickle, dict);
    const size_t most = metadata ? metadata->count / 2 : 0;
    bool no_memory = false;
    if (most == 0) {
        return HEFT_OK;
    }
    heft_status status =
        heft__pickle_take(pickle, most * sizeof *file->modules, pickle->origin + metadata->at, err);
    if (status != HEFT_OK) {
        return status;
    }
    file->modules = heft__arena_array(&file->arena, most, sizeof *file->modules);
    for (size_t i = 0; file->modules && i < most && !no_memory; i++) {
        const heft__pk_cell *path = &metadata->items[2 * i];
        file->module_count += read_module(pickle, path, path + 1, &file->arena,
                                          &file->modules[file->module_count], &no_memory);
    }
    return file->modules && !no_memory ? HEFT_OK : heft__fail_nomem(err, most);
}
