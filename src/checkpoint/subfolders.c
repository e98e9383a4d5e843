/* subfolders.c - which folders beside weights go with them.
 *
 * What a folder holds is part of the model unless its name or its files say otherwise: the modules of
 * sentence-transformers (1_Pooling, 2_Dense with weights of its own), chat templates, adapters, voices, a
 * speech tokenizer with weights of its own. Two kinds are not: the same model for another runtime, under
 * the names that the hub's tools give (onnx, openvino, coreml, original, ...), where it holds weights; and
 * states of a training run (checkpoint-500, global_step500, anything with an optimizer's state).
 * Source: docs/formats/folders.md. */
#include "checkpoint/checkpoint.h"

#include <fnmatch.h>
#include <strings.h>

static bool matches(const char *const *patterns, const char *name)
{
    for (; *patterns; patterns++) {
        if (fnmatch(*patterns, name, 0) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_numbered(const char *name, const char *start)
{
    const size_t length = strlen(start);
    return strncmp(name, start, length) == 0 && name[length] &&
           strspn(name + length, "0123456789") == strlen(name + length);
}

static bool is_run_state(const char *name, const char *const *names, size_t count)
{
    static const char *const states[] = {
        "optimizer.pt",      "optimizer.bin", "optimizer_[0-9]*.bin",
        "*_optim_states.pt", "*.distcp",      NULL};
    bool is = is_numbered(name, "checkpoint-") || is_numbered(name, "global_step");
    for (size_t i = 0; i < count && !is; i++) {
        is = matches(states, names[i]);
    }
    return is;
}

/* A folder's name alone says little: it may hold a config, or nothing of the kind. */
static bool is_other_form(const char *name, const char *const *names, size_t count)
{
    static const char *const forms[] = {"onnx",     "openvino", "coreml", "tflite", "gguf",
                                        "original", "metal",    "mlx",    NULL};
    static const char *const more[] = {"*.mlpackage", "*.mlmodelc", "*.mlmodel", "*.onnx_data",
                                       "*.onnx.data", "*.pth",      "*.xml",     NULL};
    bool named = false, holds = false;
    for (const char *const *form = forms; *form && !named; form++) {
        named = strcasecmp(name, *form) == 0;
    }
    for (size_t i = 0; i < count && named && !holds; i++) {
        holds = heft__is_weights_ending(names[i]) || matches(more, names[i]);
    }
    return holds || matches((const char *const[]){"*.mlpackage", "*.mlmodelc", NULL}, name);
}

bool heft__is_model_folder(const char *path, const char *const *names, size_t count)
{
    const char *name = heft__path_base(path);
    return !is_run_state(name, names, count) && !is_other_form(name, names, count);
}
