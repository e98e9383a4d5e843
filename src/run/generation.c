/* generation.c - what a model's files say of generation.
 *
 * Ids that begin and end a text: generation_config.json, which a loaded model keeps, and for those that are missing
 * there config.json. Ids that are suppressed or forced, and the penalty: generation_config.json, or if there is none
 * config.json, as Transformers; sample.c follows them where it is asked to. Other settings that change greedy results
 * are not followed, and named for a warning. */
#include "run/pass_state.h"

#include <heft/session.h>

static bool as_id(const heft__json_value *value, int32_t *id)
{
    int64_t number;
    const bool good =
        value && heft__json_as_i64(value, &number) && number >= 0 && number <= INT32_MAX;
    if (good) {
        *id = (int32_t)number;
    }
    return good;
}

/* An id, or a list of them; nothing else counts. */
static heft_status read_ids(const heft__json_value *value, heft__arena *arena, const int32_t **out,
                            size_t *count, heft_error *err)
{
    const bool list = value && value->type == HEFT__JSON_TYPE_ARRAY;
    size_t most = 0, found = 0;
    for (const heft__json_value *item = list ? value->first : value; item;
         item = list ? item->next : NULL) {
        most++;
    }
    int32_t *ids = most > 0 ? heft__arena_array(arena, most, sizeof *ids) : NULL;
    if (most > 0 && !ids) {
        return heft__fail_nomem(err, most * sizeof *ids);
    }
    for (const heft__json_value *item = list ? value->first : value; item;
         item = list ? item->next : NULL) {
        found += as_id(item, &ids[found]);
    }
    *out = ids;
    *count = found;
    return HEFT_OK;
}

/* The id of a key, or the smallest of a list: the one that is chosen where all of them are equally likely. */
static int32_t smallest_id(const heft__json_value *value)
{
    const bool list = value && value->type == HEFT__JSON_TYPE_ARRAY;
    int32_t least = -1, id;
    for (const heft__json_value *item = list ? value->first : value; item;
         item = list ? item->next : NULL) {
        least = as_id(item, &id) && (least < 0 || id < least) ? id : least;
    }
    return least;
}

/* What an object says of ids that are not known yet. */
static heft_status read_special(const heft__json_value *object, heft__arena *arena,
                                heft_generation_ids *ids, heft_error *err)
{
    heft_status status = HEFT_OK;
    if (ids->stop_count == 0) {
        status = read_ids(heft__json_member(object, "eos_token_id"), arena, &ids->stop,
                          &ids->stop_count, err);
    }
    if (ids->decoder_start < 0) {
        (void)as_id(heft__json_member(object, "decoder_start_token_id"), &ids->decoder_start);
    }
    if (ids->begin < 0) {
        (void)as_id(heft__json_member(object, "bos_token_id"), &ids->begin);
    }
    if (ids->pad < 0) {
        (void)as_id(heft__json_member(object, "pad_token_id"), &ids->pad);
    }
    return status;
}

/* ---- settings that are not followed ----------------------------------------------------------------- */
/* Of all that `generate(do_sample=False)` obeys, with a number that changes nothing. */
static const struct {
    const char *key;
    double unused;
} not_followed[] = {
    {"num_beams",                        1},
    {"num_beam_groups",                  1},
    {"no_repeat_ngram_size",             0},
    {"encoder_no_repeat_ngram_size",     0},
    {"encoder_repetition_penalty",       1},
    {"bad_words_ids",                    0},
    {"force_words_ids",                  0},
    {"constraints",                      0},
    {"sequence_bias",                    0},
    {"min_length",                       0},
    {"min_new_tokens",                   0},
    {"exponential_decay_length_penalty", 0},
    {"guidance_scale",                   1},
    {"penalty_alpha",                    0},
    {"dola_layers",                      0},
    {"watermarking_config",              0},
    {"stop_strings",                     0},
    {"max_time",                         0},
    {"forced_decoder_ids",               0},
    {"lang_to_id",                       0}, /* Whisper's: it begins with a language and a task */
};

static bool is_used(const heft__json_value *value, double unused)
{
    double number = 0;
    if (!value || value->type == HEFT__JSON_TYPE_NULL) {
        return false;
    }
    if (value->type == HEFT__JSON_TYPE_NUMBER) {
        return !heft__json_as_double(value, &number) || number != unused;
    }
    if (value->type == HEFT__JSON_TYPE_ARRAY || value->type == HEFT__JSON_TYPE_OBJECT) {
        return value->first != NULL;
    }
    return value->type != HEFT__JSON_TYPE_BOOL || value->boolean;
}

/* "num_beams, no_repeat_ngram_size"; "" if there are none. NULL without memory. */
static const char *name_ignored(const heft__json_value *object, heft__arena *arena)
{
    const size_t count = sizeof not_followed / sizeof *not_followed;
    size_t bytes = 1;
    for (size_t i = 0; i < count; i++) {
        bytes += strlen(not_followed[i].key) + 2;
    }
    char *names = heft__arena_array(arena, bytes, 1);
    size_t length = 0;
    for (size_t i = 0; names && i < count; i++) {
        if (is_used(heft__json_member(object, not_followed[i].key), not_followed[i].unused)) {
            length += (size_t)snprintf(names + length, bytes - length, "%s%s", length ? ", " : "",
                                       not_followed[i].key);
        }
    }
    return names;
}

static heft_status read_settings(const heft__json_value *object, heft__arena *arena,
                                 heft_generation_ids *ids, heft_error *err)
{
    double penalty = 0;
    const heft__json_value *value = heft__json_member(object, "repetition_penalty");
    heft_status status = read_ids(heft__json_member(object, "suppress_tokens"), arena,
                                  &ids->suppress, &ids->suppress_count, err);
    if (status == HEFT_OK) {
        status = read_ids(heft__json_member(object, "begin_suppress_tokens"), arena,
                          &ids->begin_suppress, &ids->begin_suppress_count, err);
    }
    ids->forced_begin = smallest_id(heft__json_member(object, "forced_bos_token_id"));
    ids->forced_end = smallest_id(heft__json_member(object, "forced_eos_token_id"));
    if (value && heft__json_as_double(value, &penalty) && penalty > 0 && penalty <= 1000) {
        ids->repetition_penalty = (float)penalty;
    }
    ids->not_followed = name_ignored(object, arena);
    return status == HEFT_OK && !ids->not_followed ? heft__fail_nomem(err, 0) : status;
}

heft_status heft__generation_read(const heft_model *model, heft__arena *arena,
                                  heft_generation_ids *out, heft_error *err)
{
    heft_generation_ids ids = {.decoder_start = -1, .begin = -1, .pad = -1};
    heft_config *kept = NULL;
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < model->kept_count && !kept && status == HEFT_OK; i++) {
        const heft__kept_file *file = &model->kept[i];
        if (strcmp(file->name, "generation_config.json") == 0) {
            status =
                heft__config_parse(model->ctx, file->name, file->text, file->length, &kept, err);
        }
    }
    if (status == HEFT_OK && kept) {
        status = read_special(kept->root, arena, &ids, err);
    }
    if (status == HEFT_OK) {
        status = read_special(model->config->root, arena, &ids, err);
    }
    if (status == HEFT_OK) {
        status = read_settings(kept ? kept->root : model->config->root, arena, &ids, err);
    }
    if (status == HEFT_OK) {
        *out = ids;
    }
    heft_config_free(kept);
    return status;
}
