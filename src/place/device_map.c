/* device_map.c - the caller's device map, as a list of entries, a JSON file or JSON text:
 * {"model.layers.0": 0, "lm_head": "cpu", "": "disk"}.
 *
 * The longest name that is a tensor or a module above it decides. Every tensor must have a device, and
 * what is tied must have the same one. A warning lists names that are not the model's.
 * Source: docs/placing.md [7]. */
#include "place/place.h"

#include <stdlib.h>

/* ---- one entry ------------------------------------------------------------------------------- */
static bool read_device(const heft__json_value *value, int32_t *device)
{
    static const struct {
        const char *name;
        int32_t device;
    } names[] = {
        {"cpu",  HEFT_DEVICE_CPU },
        {"disk", HEFT_DEVICE_DISK},
        {"mps",  HEFT_DEVICE_MPS }
    };
    uint64_t number = 0;
    if (value->type == HEFT__JSON_TYPE_STRING && strcmp(value->text, "cuda") == 0) {
        *device = 0;
        return true;
    }
    if (value->type == HEFT__JSON_TYPE_STRING &&
        (strncmp(value->text, "cuda:", 5) == 0 ||
         (value->text[0] >= '0' && value->text[0] <= '9'))) {
        const char *digits = value->text + (value->text[0] == 'c' ? 5 : 0);
        const size_t length = strlen(digits);
        if (length == 0 || length > 4 || strspn(digits, "0123456789") != length) {
            return false;
        }
        *device = (int32_t)strtol(digits, NULL, 10);
        return true;
    }
    for (size_t i = 0; value->type == HEFT__JSON_TYPE_STRING && i < 3; i++) {
        if (strcmp(value->text, names[i].name) == 0) {
            *device = names[i].device;
            return true;
        }
    }
    if (value->type != HEFT__JSON_TYPE_NUMBER || !heft__json_as_u64(value, &number) ||
        number > 9999) {
        return false;
    }
    *device = (int32_t)number;
    return true;
}

/* What entries are looked up in and noted in. */
struct noting {
    heft__map nodes;        /* path -> node */
    int32_t *devices;       /* by node */
    heft__buffer strangers; /* names that are no node's, as a list */
};

/* `at`: where the file has it. */
static heft_status put_entry(struct noting *n, const heft_device_entry *entry, uint64_t at,
                             heft_error *err)
{
    const size_t node = heft__map_get(&n->nodes, entry->name, strlen(entry->name));
    int32_t *devices = n->devices;
    heft_status status = HEFT_OK;
    if (node == HEFT__MAP_NONE) {
        heft__buffer_format(&n->strangers, "%s%s", n->strangers.size > 0 ? ", " : "", entry->name);
    } else if (entry->device < HEFT_DEVICE_MPS) {
        status = heft__fail_at(err, HEFT_INVALID_ARG, at, "unknown device %d", (int)entry->device);
    } else if (devices[node] != HEFT__NO_DEVICE) {
        status = heft__fail_at(err, HEFT_INVALID_ARG, at, "has two entries in the device map");
    } else {
        devices[node] = entry->device;
    }
    return heft__add_item(status, err, entry->name);
}

static heft_status read_entry(struct noting *n, const heft__json_value *value, heft_error *err)
{
    heft_device_entry entry = {value->key, HEFT__NO_DEVICE};
    if (!read_device(value, &entry.device)) {
        return heft__add_item(
            heft__fail_at(err, HEFT_FORMAT, value->offset,
                          "expected a number, \"cuda:0\", \"cpu\", \"disk\" or \"mps\""),
            err, value->key);
    }
    return put_entry(n, &entry, value->offset, err);
}

/* ---- the whole ------------------------------------------------------------------------------- */
static heft_status name_nodes(const heft__tree *tree, heft__map *nodes, heft_error *err)
{
    for (uint32_t node = 0; node < tree->module_count + tree->tensor_count; node++) {
        const char *path = heft__tree_path(tree, node);
        size_t found;
        if (!heft__map_put(nodes, path, strlen(path), node, &found)) {
            return heft__fail_nomem(err, strlen(path));
        }
    }
    return HEFT_OK;
}

/* Where Accelerate computes: the first accelerator that the map names, else the processor. */
static int32_t main_device(const heft__tree *tree, const int32_t *devices)
{
    for (uint32_t node = 0; node < tree->module_count + tree->tensor_count; node++) {
        if (devices[node] >= 0) {
            return devices[node];
        }
    }
    return HEFT_DEVICE_CPU;
}

/* From the root downwards: a module without a device has its parent's. Transient buffers are in no file, and
 * maps that are made from files leave them out: they may be without one, and are where is computed. */
static heft_status settle(const heft__tree *tree, int32_t *devices, heft_error *err)
{
    const int32_t computing = main_device(tree, devices);
    for (uint32_t i = 1; i < tree->module_count; i++) {
        if (devices[i] == HEFT__NO_DEVICE) {
            devices[i] = devices[tree->modules[i].parent];
        }
    }
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        int32_t *device = &devices[tree->module_count + i];
        if (*device == HEFT__NO_DEVICE) {
            *device = devices[tree->tensors[i].module];
        }
        if (*device == HEFT__NO_DEVICE && tree->tensors[i].transient) {
            *device = computing;
        }
        if (*device == HEFT__NO_DEVICE) {
            return heft__add_item(heft__fail(err, HEFT_MISMATCH, "has no device in the device map"),
                                  err, tree->tensors[i].path);
        }
    }
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        const uint32_t first = tree->tensors[i].first;
        if (devices[tree->module_count + i] != devices[tree->module_count + first]) {
            return heft__add_item(heft__fail(err, HEFT_MISMATCH,
                                             "is tied to '%.100s', which is on another device",
                                             tree->tensors[first].path),
                                  err, tree->tensors[i].path);
        }
    }
    return HEFT_OK;
}

/* Whether all tensors below a module are on its device; false for one without any. */
static bool is_uniform(const heft__tree *tree, const int32_t *devices, uint32_t module,
                       int32_t *device)
{
    bool any = false, same = true;
    for (uint32_t i = module; i < tree->modules[module].end; i++) {
        for (uint32_t k = 0; k < tree->modules[i].tensor_count; k++) {
            const int32_t one = devices[tree->module_count + tree->modules[i].first_tensor + k];
            *device = any ? *device : one;
            same = same && one == *device;
            any = true;
        }
    }
    return any && same;
}

/* The largest modules that are on one device, and tensors beside them. */
static bool write_entries(const heft__tree *tree, const int32_t *devices, uint32_t module,
                          heft__map_of_devices *map)
{
    const heft__tree_module *m = &tree->modules[module];
    int32_t device = HEFT__NO_DEVICE;
    if (is_uniform(tree, devices, module, &device)) {
        return heft__devices_put(map, module, device);
    }
    bool good = true;
    for (uint32_t k = 0; good && k < m->tensor_count; k++) {
        const uint32_t node = tree->module_count + m->first_tensor + k;
        good = heft__devices_put(map, node, devices[node]);
    }
    for (uint32_t child = module + 1; good && child < m->end; child = tree->modules[child].end) {
        good = write_entries(tree, devices, child, map);
    }
    return good;
}

/* What a device map is read from: entries, or an object of a JSON file. */
struct given {
    const heft_device_entry *entries;
    size_t count;
    const heft__json_value *object; /* NULL: entries */
};

static heft_status put_all(struct noting *n, const struct given *given, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < given->count && status == HEFT_OK; i++) {
        status = given->entries[i].name ? put_entry(n, &given->entries[i], HEFT_NO_OFFSET, err)
                                        : heft__fail(err, HEFT_INVALID_ARG,
                                                     "entry %zu of the device map has no name", i);
    }
    const heft__json_value *value = given->object ? given->object->first : NULL;
    for (; value && status == HEFT_OK; value = value->next) {
        status = read_entry(n, value, err);
    }
    return status;
}

/* In the words of Accelerate. */
static heft_status warn_strangers(struct noting *n, heft__warnings *warnings, heft_error *err)
{
    const heft__buffer *list = &n->strangers;
    const bool good =
        !list->failed &&
        (list->size == 0 ||
         heft__warn(warnings,
                    "The following device_map keys do not match any submodules in the model: %.*s",
                    (int)(list->size < 4000 ? list->size : 4000), (const char *)list->data));
    return good ? HEFT_OK : heft__fail_nomem(err, list->size);
}

static heft_status make_map(const heft__tree *tree, const struct given *given,
                            heft__map_of_devices *map, heft__warnings *warnings, heft_error *err)
{
    const size_t count = (size_t)tree->module_count + tree->tensor_count;
    int32_t *devices = heft__alloc(tree->ctx, count * sizeof *devices);
    struct noting n = {.devices = devices};
    *map = (heft__map_of_devices){.ctx = tree->ctx};
    heft__map_init(&n.nodes, tree->ctx);
    heft__buffer_init(&n.strangers, tree->ctx);
    heft_status status =
        devices ? name_nodes(tree, &n.nodes, err) : heft__fail_nomem(err, count * sizeof *devices);
    for (size_t i = 0; devices && i < count; i++) {
        devices[i] = HEFT__NO_DEVICE;
    }
    if (status == HEFT_OK) {
        status = put_all(&n, given, err);
    }
    if (status == HEFT_OK) {
        status = warn_strangers(&n, warnings, err);
    }
    if (status == HEFT_OK) {
        status = settle(tree, devices, err);
    }
    if (status == HEFT_OK && !write_entries(tree, devices, 0, map)) {
        status = heft__fail_nomem(err, map->count * sizeof *map->entries);
    }
    if (status != HEFT_OK) {
        heft__devices_fini(map);
    }
    heft__map_fini(&n.nodes);
    heft__buffer_fini(&n.strangers);
    heft__free(tree->ctx, devices, count * sizeof *devices);
    return status;
}

heft_status heft__device_map_take(const heft__tree *tree, const heft_device_entry *entries,
                                  size_t count, heft__map_of_devices *map, heft__warnings *warnings,
                                  heft_error *err)
{
    const struct given given = {.entries = entries, .count = count};
    return make_map(tree, &given, map, warnings, err);
}

static heft_status parse(const heft__tree *tree, heft__arena *arena, const char *text,
                         size_t length, heft__map_of_devices *map, heft__warnings *warnings,
                         heft_error *err)
{
    heft__json_value *root = NULL;
    heft_status status =
        heft__json_parse(arena, text, length, heft__limits(tree->ctx)->json_depth, &root, err);
    if (status == HEFT_OK && root->type != HEFT__JSON_TYPE_OBJECT) {
        status = heft__fail_at(err, HEFT_FORMAT, root->offset,
                               "expected an object that maps modules to devices");
    }
    return status == HEFT_OK ? make_map(tree, &(struct given){.object = root}, map, warnings, err)
                             : status;
}

heft_status heft__device_map_parse(const heft__tree *tree, const char *text,
                                   heft__map_of_devices *map, heft__warnings *warnings,
                                   heft_error *err)
{
    heft__arena arena;
    heft__arena_init(&arena, tree->ctx);
    const heft_status status = parse(tree, &arena, text, strlen(text), map, warnings, err);
    heft__arena_fini(&arena);
    return heft__add_path(status, err, "device map");
}

heft_status heft__device_map_read(const heft__tree *tree, const char *path,
                                  heft__map_of_devices *map, heft__warnings *warnings,
                                  heft_error *err)
{
    heft__arena arena;
    char *text = NULL;
    size_t length = 0;
    heft__arena_init(&arena, tree->ctx);
    heft_status status =
        heft__read_file(&arena, path, heft__limits(tree->ctx)->config_bytes, &text, &length, err);
    heft__add_limit(status, err, "config_bytes");
    if (status == HEFT_OK) {
        status = parse(tree, &arena, text, length, map, warnings, err);
    }
    heft__arena_fini(&arena);
    return heft__add_path(status, err, path);
}
