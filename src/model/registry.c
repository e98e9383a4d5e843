/* registry.c - the families and their classes. A family is one file in arch/ and one line here.
 *
 * Source: docs/models.md. */
#include "model/model.h"

#include <strings.h>

extern const heft__family heft__family_albert;
extern const heft__family heft__family_bart;
extern const heft__family heft__family_bert;
extern const heft__family heft__family_bloom;
extern const heft__family heft__family_clip;
extern const heft__family heft__family_clip_text_model;
extern const heft__family heft__family_clip_vision_model;
extern const heft__family heft__family_cohere;
extern const heft__family heft__family_deepseek_v3;
extern const heft__family heft__family_distilbert;
extern const heft__family heft__family_electra;
extern const heft__family heft__family_falcon;
extern const heft__family heft__family_gemma;
extern const heft__family heft__family_gemma2;
extern const heft__family heft__family_gemma3_text;
extern const heft__family heft__family_gpt2;
extern const heft__family heft__family_gpt_neox;
extern const heft__family heft__family_gpt_oss;
extern const heft__family heft__family_granite;
extern const heft__family heft__family_llama;
extern const heft__family heft__family_mistral;
extern const heft__family heft__family_mixtral;
extern const heft__family heft__family_olmo2;
extern const heft__family heft__family_opt;
extern const heft__family heft__family_phi;
extern const heft__family heft__family_phi3;
extern const heft__family heft__family_qwen2;
extern const heft__family heft__family_qwen2_moe;
extern const heft__family heft__family_qwen3;
extern const heft__family heft__family_qwen3_moe;
extern const heft__family heft__family_roberta;
extern const heft__family heft__family_stablelm;
extern const heft__family heft__family_starcoder2;
extern const heft__family heft__family_t5;
extern const heft__family heft__family_vit;
extern const heft__family heft__family_whisper;

/* One a line: tools/new_architecture adds to it. */
/* clang-format off */
static const heft__family *const families[] = {
    &heft__family_albert,
    &heft__family_bart,
    &heft__family_bert,
    &heft__family_bloom,
    &heft__family_clip,
    &heft__family_clip_text_model,
    &heft__family_clip_vision_model,
    &heft__family_cohere,
    &heft__family_deepseek_v3,
    &heft__family_distilbert,
    &heft__family_electra,
    &heft__family_falcon,
    &heft__family_gemma,
    &heft__family_gemma2,
    &heft__family_gemma3_text,
    &heft__family_gpt2,
    &heft__family_gpt_neox,
    &heft__family_gpt_oss,
    &heft__family_granite,
    &heft__family_llama,
    &heft__family_mistral,
    &heft__family_mixtral,
    &heft__family_olmo2,
    &heft__family_opt,
    &heft__family_phi,
    &heft__family_phi3,
    &heft__family_qwen2,
    &heft__family_qwen2_moe,
    &heft__family_qwen3,
    &heft__family_qwen3_moe,
    &heft__family_roberta,
    &heft__family_stablelm,
    &heft__family_starcoder2,
    &heft__family_t5,
    &heft__family_vit,
    &heft__family_whisper,
};
/* clang-format on */

#define FAMILIES (sizeof families / sizeof families[0])

const heft__family *heft__family_find(const char *model_type)
{
    for (size_t i = 0; i < FAMILIES; i++) {
        if (strcmp(families[i]->model_type, model_type) == 0) {
            return families[i];
        }
    }
    return NULL;
}

/* A class by its own name, or by the name of an Auto class. */
static const heft__class *find_class(const heft__family *family, const char *name,
                                     bool by_auto_name)
{
    for (const heft__class *one = family->classes; one->name; one++) {
        bool is_auto = by_auto_name && one->auto_name && strcmp(one->auto_name, name) == 0;
        if (is_auto || strcmp(one->name, name) == 0) {
            return one;
        }
    }
    return NULL;
}

/* Old configs spell a class in another case of letters, LLaMAForCausalLM, but all begin with a capital. */
static const heft__class *find_old_spelling(const heft__family *family, const char *name)
{
    const heft__class *one = family->classes;
    while (one->name && (*one->name != *name || strcasecmp(one->name, name) != 0)) {
        one++;
    }
    return one->name ? one : NULL;
}

const heft__family *heft__family_of_class(const char *class_name)
{
    for (size_t i = 0; i < FAMILIES; i++) {
        if (find_class(families[i], class_name, false)) {
            return families[i];
        }
    }
    return NULL;
}

/* `value` is where the config asks for the class; NULL if the caller does. */
static heft_status unknown_class(const heft_config *config, const heft__family *family,
                                 const char *name, const heft__json_value *value, heft_error *err)
{
    const heft__family *other = heft__family_of_class(name);
    uint64_t offset = value ? value->offset : HEFT_NO_OFFSET;
    char known[400] = "";
    size_t at = 0;
    if (other) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, offset,
                             "class '%.60s' belongs to model type '%s', but '%.200s' has '%s'",
                             name, other->model_type, config->path, family->model_type);
    }
    for (const heft__class *one = family->classes; one->name && at < sizeof known; one++) {
        at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", at ? ", " : "", one->name);
    }
    return heft__fail_at(err, HEFT_UNSUPPORTED, offset,
                         "unknown class '%.60s' for model type '%s', expected one of %s", name,
                         family->model_type, known);
}

/* By model_type; in a config without one, by the class. */
static heft_status find_family(const heft_config *config, const char *asked,
                               const heft__family **family, heft_error *err)
{
    const heft__json_value *value = heft__json_member(config->root, "model_type");
    const char *model_type = heft_config_model_type(config);
    if (*model_type) {
        *family = heft__family_find(model_type);
    } else {
        *family = !value && asked ? heft__family_of_class(asked) : NULL;
    }
    if (*family) {
        return HEFT_OK;
    }
    uint64_t offset = value ? value->offset : HEFT_NO_OFFSET;
    heft_status status = HEFT_OK;
    if (*model_type) {
        status =
            heft__fail_at(err, HEFT_UNSUPPORTED, offset, "unknown model type '%.60s'", model_type);
    } else if (value) {
        status = heft__fail_at(err, HEFT_FORMAT, offset, "expected the name of a model type");
    } else {
        status = heft__fail(err, HEFT_FORMAT, "is missing, and no class determines the model type");
    }
    return heft__add_item(status, err, "model_type");
}

heft_status heft__class_find(const heft_config *config, const char *class_name,
                             const heft__family **family, const heft__class **class,
                             heft_error *err)
{
    const char *asked = class_name ? class_name : heft_config_architecture(config);
    const heft__family *found = NULL;
    heft_status status = find_family(config, asked, &found, err);
    const heft__class *chosen = NULL;
    if (status == HEFT_OK) {
        chosen = asked ? find_class(found, asked, true) : found->classes;
        chosen = chosen ? chosen : find_old_spelling(found, asked);
    }
    if (status == HEFT_OK && !chosen) {
        const heft__json_value *value =
            class_name ? NULL : heft__json_member(config->root, "architectures");
        status = unknown_class(config, found, asked, value, err);
        heft__add_item(status, err, value ? "architectures" : NULL);
    }
    if (status == HEFT_OK) {
        *family = found;
        *class = chosen;
    }
    return heft__add_path(status, err, config->path);
}
