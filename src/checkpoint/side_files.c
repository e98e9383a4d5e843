/* side_files.c - files of a destination that stay, and that a loader would take for the new checkpoint's.
 *
 * config.json, tokenizer files, chat templates and their like describe the weights beside them. A writer
 * that brings no file of such a name leaves the earlier one in place, so that new weights would be read by
 * another model's config or tokenizer. Names that no loader looks for (README.md, notes) are nobody's
 * business here.
 * Not done here: replacing files that the new checkpoint has, removing weights (write.c).
 * Source: docs/transactions.md [3]; the names are those of Transformers and sentence-transformers. */
#include "checkpoint/checkpoint.h"

#include <fnmatch.h>

#define NAMED_MOST 4 /* names in the message */

static const char *const known[] = {
    /* what the model is, how it generates, how an adapter is applied to it */
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "params.json",
    "model_index.json",
    /* tokenizers */
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "vocab-*",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "emoji.json",
    "normalizer.json",
    "tekken.json",
    "spiece.model",
    "spm.model",
    "sentencepiece*.model",
    "*.bpe.model",
    "source.spm",
    "target.spm",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates",
    /* processors of images, sound and video */
    "*processor_config.json",
    "feature_extractor_config.json",
    "audio_tokenizer_config.json",
    /* sentence-transformers */
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]*_[A-Z]*", /* folders of modules: 1_Pooling */
    /* code that a config names */
    "configuration_*.py",
    "modeling_*.py",
    "tokenization_*.py",
    "processing_*.py",
    "*image_processing_*.py",
};

bool heft__is_side_file_name(const char *name)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (fnmatch(known[i], name, 0) == 0) {
            return true;
        }
    }
    return false;
}

/* "'a', 'b' and 3 others" */
static void name_all(const char *const *names, size_t count, char text[400])
{
    size_t used = 0;
    const size_t most = count > NAMED_MOST ? NAMED_MOST - 1 : count;
    text[0] = '\0';
    for (size_t i = 0; i < most; i++) {
        const char *joint = i == 0 ? "" : i + 1 == count ? " and " : ", ";
        used += (size_t)snprintf(text + used, 400 - used, "%s'%.60s'", joint, names[i]);
    }
    if (most < count) {
        snprintf(text + used, 400 - used, " and %zu others", count - most);
    }
}

heft_status heft__side_files_check(heft__folder_writer *folder, const heft__map *written,
                                   heft__beside_fn beside, void *user, bool may_keep,
                                   heft_error *err)
{
    const char *const *names = NULL;
    const char *others[NAMED_MOST], *ours = NULL;
    size_t count = 0, found = 0;
    char text[400];
    heft_status status = heft__folder_list(folder, &names, &count, err);
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        const bool replaced =
            written && heft__map_get(written, names[i], strlen(names[i])) != HEFT__MAP_NONE;
        if (replaced || !heft__is_side_file_name(names[i])) {
            continue;
        }
        ours = ours || !beside ? ours : beside(user);
        if (!(ours && heft__folder_has_copy(folder, ours, names[i])) && found++ < NAMED_MOST) {
            others[found - 1] = names[i];
        }
    }
    if (status != HEFT_OK || found == 0) {
        return status;
    }
    name_all(others, found, text);
    return heft__fail(
        err, HEFT_EXISTS,
        "contains %s of another checkpoint, which loaders would use with the new weights; "
        "write to another folder%s%s",
        text,
        !may_keep   ? ""
        : found > 1 ? ", or keep them with "
                    : ", or keep it with ",
        may_keep ? "'keep_side_files' (--keep-side-files)" : "");
}
