/* plan_warnings.c - what Accelerate 1.15 would say about a map, in its words.
 *
 * It says these in different ways (a log line, a Python warning) and one of them only when loading;
 * here they are a list on the plan.
 * Source: docs/placing.md [3]. */
#include "place/place.h"

/* ---- weights that are not tied --------------------------------------------------------------- */
static bool has_head(const heft__tree *tree)
{
    static const char *const names[] = {"lm_head.weight", "embed_out.weight"};
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        const char *path = tree->tensors[i].path;
        for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
            const size_t length = strlen(path), tail = strlen(names[k]);
            if (length >= tail && strcmp(path + length - tail, names[k]) == 0 &&
                (length == tail || path[length - tail - 1] == '.')) {
                return true;
            }
        }
    }
    return false;
}

bool heft__warn_untied(heft__warnings *list, const heft__tree *tree, bool ties_wanted)
{
    return !ties_wanted || tree->tie_count > 0 || !has_head(tree) ||
           heft__warn(list, "The model weights are not tied. Please use the `tie_weights` method "
                            "before using the `infer_auto_device` function.");
}

/* ---- buffers --------------------------------------------------------------------------------- */
bool heft__warn_buffers(heft__warnings *list, const heft_budget *budgets, size_t count,
                        const heft__map_facts *facts)
{
    bool any = false, fit = false;
    for (size_t i = 0; i < count; i++) {
        if (budgets[i].device >= 0 || budgets[i].device == HEFT_DEVICE_MPS) {
            any = true;
            fit = fit || budgets[i].bytes >= facts->offloaded_buffers + facts->used[i];
        }
    }
    if (facts->offloaded_buffers == 0 || !any || fit) {
        return true;
    }
    return heft__warn(list,
                      "Current model requires %.15g bytes of buffer for offloaded layers, which "
                      "seems does not fit any GPU's remaining memory. If you are experiencing a "
                      "OOM later, please consider using offload_buffers=True.",
                      facts->offloaded_buffers);
}

/* ---- devices --------------------------------------------------------------------------------- */
static void put_device(heft__buffer *text, int32_t device, const char *quote)
{
    if (device >= 0) {
        heft__buffer_format(text, "%d", device);
    } else {
        heft__buffer_format(text, "%s%s%s", quote,
                            device == HEFT_DEVICE_CPU   ? "cpu"
                            : device == HEFT_DEVICE_MPS ? "mps"
                                                        : "disk",
                            quote);
    }
}

bool heft__warn_empty(heft__warnings *list, const heft_budget *budgets, size_t count,
                      const heft__map_facts *facts)
{
    heft__buffer text;
    bool good = true;
    heft__buffer_init(&text, list->arena->ctx);
    for (size_t i = 0; i < count; i++) {
        if (facts->needed[i] > 0) {
            heft__buffer_text(&text, "\n  - ");
            put_device(&text, budgets[i].device, "");
            heft__buffer_format(&text, ": %.15g bytes required", facts->needed[i]);
        }
    }
    if (text.size > 0 || text.failed) {
        good = !text.failed &&
               heft__warn(list,
                          "Based on the current allocation process, no modules could be assigned "
                          "to the following devices due to insufficient memory:%.*s\nThese minimum "
                          "requirements are specific to this allocation attempt and may vary. "
                          "Consider increasing the available memory for these devices to at least "
                          "the specified minimum, or adjusting the model config.",
                          (int)text.size, (const char *)text.data);
    }
    heft__buffer_fini(&text);
    return good;
}

/* ---- ties ------------------------------------------------------------------------------------ */
static bool warn_group(heft__warnings *list, const heft__tree *tree, const int32_t *devices,
                       size_t begin, size_t end)
{
    heft__buffer text;
    heft__buffer_init(&text, list->arena->ctx);
    for (size_t i = begin; i < end; i++) {
        const uint32_t tensor = tree->ties[i][1];
        heft__buffer_format(&text, "%s'%s': ", i > begin ? ", " : "", tree->tensors[tensor].path);
        put_device(&text, devices[tree->module_count + tensor], "'");
    }
    const bool good =
        !text.failed && heft__warn(list,
                                   "Tied parameters are on different devices: {%.*s}. Please "
                                   "modify your custom device map or set `device_map='auto'`. ",
                                   (int)text.size, (const char *)text.data);
    heft__buffer_fini(&text);
    return good;
}

bool heft__warn_ties(heft__warnings *list, const heft__tree *tree, const heft__map_of_devices *map)
{
    const size_t nodes = (size_t)tree->module_count + tree->tensor_count;
    int32_t *devices = heft__alloc(tree->ctx, nodes * sizeof *devices);
    bool good = devices != NULL;
    if (good) {
        heft__devices_spread(tree, map, devices);
    }
    for (size_t i = 0, end; good && i < tree->tie_count; i = end) {
        bool apart = false;
        for (end = i; end < tree->tie_count && tree->ties[end][0] == tree->ties[i][0]; end++) {
            apart = apart || devices[tree->module_count + tree->ties[end][1]] !=
                                 devices[tree->module_count + tree->ties[i][1]];
        }
        good = !apart || warn_group(list, tree, devices, i, end);
    }
    heft__free(tree->ctx, devices, nodes * sizeof *devices);
    return good;
}
