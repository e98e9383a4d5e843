/* settings.c - where a config says how weights are quantized, and what else of a folder does.
 * Source: docs/formats/quantized.md. */
#include "quant/quant.h"

static const char *const keys[] = {"quantization_config", "compression_config"};
#define KEYS (sizeof keys / sizeof *keys)

/* A sub-model's config that may hold the object instead. */
static const char *const inner[] = {"text_config", "llm_config", "language_config"};
#define INNER (sizeof inner / sizeof *inner)

static const heft__json_value *object_in(const heft__json_value *root, const char *key)
{
    const heft__json_value *value = heft__json_member(root, key);
    return value && value->type == HEFT__JSON_TYPE_OBJECT ? value : NULL;
}

static const heft__json_value *settings_of(const heft__json_value *root)
{
    const heft__json_value *found = NULL;
    for (size_t k = 0; k < KEYS && !found; k++) {
        found = object_in(root, keys[k]);
    }
    return found;
}

const heft__json_value *heft__quant_settings_in(const heft__json_value *config)
{
    const heft__json_value *found = settings_of(config);
    for (size_t i = 0; i < INNER && !found; i++) {
        found = settings_of(object_in(config, inner[i]));
    }
    return found;
}

static void drop(heft__json_value *root)
{
    for (size_t k = 0; k < KEYS; k++) {
        heft__json_remove(root, keys[k]);
    }
}

void heft__quant_drop_settings(heft__json_value *config)
{
    drop(config);
    for (heft__json_value *child = config->first; child; child = child->next) {
        for (size_t i = 0; i < INNER; i++) {
            if (strcmp(child->key, inner[i]) == 0 && child->type == HEFT__JSON_TYPE_OBJECT) {
                drop(child);
            }
        }
    }
}

const heft__quant_file heft__quant_files[] = {
    {"quanto_qmap.json",     NULL          },
    {"quantize_config.json", NULL          },
    {"quant_config.json",    NULL          },
    {"hf_quant_config.json", "quantization"},
    {NULL,                   NULL          }
};

bool heft__quant_is_settings_file(const char *name)
{
    for (const heft__quant_file *file = heft__quant_files; file->name; file++) {
        if (strcmp(name, file->name) == 0) {
            return true;
        }
    }
    return false;
}
