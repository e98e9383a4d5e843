/* generation.c - the ids that generation begins and ends with.
 *
 * generation_config.json, which a loaded model keeps, else config.json. */
#include "run/pass_state.h"

#include <heft/session.h>

#define STOPS_MOST 64

struct ids {
    int32_t stop[STOPS_MOST];
    size_t stop_count;
    int32_t start, begin, pad;
};

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

/* An id, or a list of them. */
static void read_stops(const heft__json_value *value, struct ids *ids)
{
    const bool list = value && value->type == HEFT__JSON_TYPE_ARRAY;
    for (const heft__json_value *item = list ? value->first : value; item;
         item = list ? item->next : NULL) {
        if (ids->stop_count < STOPS_MOST && as_id(item, &ids->stop[ids->stop_count])) {
            ids->stop_count++;
        }
    }
}

/* What an object says of ids that are not known yet. */
static void read_object(const heft__json_value *object, struct ids *ids)
{
    if (!object || object->type != HEFT__JSON_TYPE_OBJECT) {
        return;
    }
    if (ids->stop_count == 0) {
        read_stops(heft__json_member(object, "eos_token_id"), ids);
    }
    if (ids->start < 0) {
        (void)as_id(heft__json_member(object, "decoder_start_token_id"), &ids->start);
    }
    if (ids->begin < 0) {
        (void)as_id(heft__json_member(object, "bos_token_id"), &ids->begin);
    }
    if (ids->pad < 0) {
        (void)as_id(heft__json_member(object, "pad_token_id"), &ids->pad);
    }
}

heft_status heft__generation_read(const heft_model *model, heft__arena *arena,
                                  heft_generation_ids *out, heft_error *err)
{
    struct ids *ids = heft__arena_array(arena, 1, sizeof *ids);
    heft_config *kept = NULL;
    heft_status status = HEFT_OK;
    if (!ids) {
        return heft__fail_nomem(err, sizeof *ids);
    }
    ids->start = ids->begin = ids->pad = -1;
    for (size_t i = 0; i < model->kept_count && !kept && status == HEFT_OK; i++) {
        const heft__kept_file *file = &model->kept[i];
        if (strcmp(file->name, "generation_config.json") == 0) {
            status =
                heft__config_parse(model->ctx, file->name, file->text, file->length, &kept, err);
        }
    }
    if (status == HEFT_OK) {
        read_object(kept ? kept->root : NULL, ids);
        read_object(model->config->root, ids);
        *out = (heft_generation_ids){.stop = ids->stop,
                                     .stop_count = ids->stop_count,
                                     .decoder_start = ids->start,
                                     .begin = ids->begin,
                                     .pad = ids->pad};
    }
    heft_config_free(kept);
    return status;
}
