/* pooling.c - how sentence-transformers makes one embedding of a text's last hidden states.
 *
 *   modules.json                 [{"path": "", "type": "...Transformer"}, {"path": "1_Pooling", ...}, ...]
 *   1_Pooling/config.json        {"pooling_mode_mean_tokens": true, ...}
 *   sentence_bert_config.json    {"max_seq_length": 256}
 *
 * Modules that change the embedding and that heft does not compute are refused by name. */
#include "run/pass_state.h"

#include <heft/session.h>

#include <math.h>

#define FILE_BYTES ((uint64_t)1 << 20)

/* A file of the folder as JSON; NULL if it is not there. */
static heft_status read_json(heft_ctx *ctx, heft__arena *arena, const char *folder,
                             const char *name, heft__json_value **out, heft_error *err)
{
    char *text = NULL;
    size_t length = 0;
    const char *path = heft__path_join(arena, folder, name);
    *out = NULL;
    if (!path) {
        return heft__fail_nomem(err, strlen(name));
    }
    if (!heft__path_is_file(path)) {
        return HEFT_OK;
    }
    heft_status status = heft__read_file(arena, path, FILE_BYTES, &text, &length, err);
    if (status == HEFT_OK) {
        status = heft__json_parse(arena, text, length, heft__limits(ctx)->json_depth, out, err);
    }
    return heft__add_path(status, err, path);
}

static const char *text_of(const heft__json_value *object, const char *key)
{
    const heft__json_value *value =
        object && object->type == HEFT__JSON_TYPE_OBJECT ? heft__json_member(object, key) : NULL;
    return value && value->type == HEFT__JSON_TYPE_STRING ? value->text : NULL;
}

static bool is_true(const heft__json_value *object, const char *key)
{
    const heft__json_value *value = heft__json_member(object, key);
    return value && value->type == HEFT__JSON_TYPE_BOOL && value->boolean;
}

/* The mode of a Pooling module: one flag, or a name. */
static heft_status read_mode(const heft__json_value *object, heft_pooling *out, heft_error *err)
{
    static const struct {
        const char *flag, *name;
        heft_pooling_mode mode;
    } modes[] = {
        {"pooling_mode_cls_token",   "cls",       HEFT_POOLING_CLS },
        {"pooling_mode_mean_tokens", "mean",      HEFT_POOLING_MEAN},
        {"pooling_mode_lasttoken",   "lasttoken", HEFT_POOLING_LAST},
    };
    static const char *const others[] = {"pooling_mode_max_tokens",
                                         "pooling_mode_mean_sqrt_len_tokens",
                                         "pooling_mode_weightedmean_tokens"};
    const char *name = text_of(object, "pooling_mode");
    size_t found = 0;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (name ? strcmp(name, modes[i].name) == 0 : is_true(object, modes[i].flag)) {
            out->mode = modes[i].mode;
            found++;
        }
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        found += !name && is_true(object, others[i]) ? 2 : 0;
    }
    return found == 1
               ? HEFT_OK
               : heft__fail(err, HEFT_UNSUPPORTED,
                            "the pooling mode is not exactly one of cls, mean and lasttoken");
}

static bool ends_with(const char *text, const char *end)
{
    const size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

static heft_status read_module(heft_ctx *ctx, heft__arena *arena, const char *folder,
                               const heft__json_value *module, heft_pooling *out, heft_error *err)
{
    const char *type = text_of(module, "type"), *path = text_of(module, "path");
    heft__json_value *config = NULL;
    if (!type || !path) {
        return heft__fail(err, HEFT_FORMAT, "a module in modules.json has no type or path");
    }
    if (ends_with(type, ".Transformer")) {
        return *path ? heft__fail(err, HEFT_UNSUPPORTED, "the model is in the folder '%.60s'", path)
                     : HEFT_OK;
    }
    if (ends_with(type, ".Normalize")) {
        out->normalize = true;
        return HEFT_OK;
    }
    if (!ends_with(type, ".Pooling")) {
        return heft__fail(err, HEFT_UNSUPPORTED, "heft does not compute the module %.100s", type);
    }
    const char *inner = heft__path_join(arena, folder, path);
    heft_status status = inner ? read_json(ctx, arena, inner, "config.json", &config, err)
                               : heft__fail_nomem(err, 0);
    if (status == HEFT_OK && (!config || config->type != HEFT__JSON_TYPE_OBJECT)) {
        status = heft__fail(err, HEFT_FORMAT, "the module '%.60s' has no config.json", path);
    }
    return status == HEFT_OK ? read_mode(config, out, err) : status;
}

heft_status heft_pooling_read(heft_ctx *ctx, const char *folder, heft_pooling *out, heft_error *err)
{
    heft_pooling found = {.mode = HEFT_POOLING_MEAN};
    heft__json_value *modules = NULL, *limits = NULL;
    heft__arena arena;
    if (!ctx || !folder || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, folder or result is NULL");
    }
    heft__arena_init(&arena, ctx);
    heft_status status = read_json(ctx, &arena, folder, "modules.json", &modules, err);
    if (status == HEFT_OK && modules && modules->type != HEFT__JSON_TYPE_ARRAY) {
        status = heft__fail(err, HEFT_FORMAT, "modules.json is not a list");
    }
    for (const heft__json_value *module = modules && status == HEFT_OK ? modules->first : NULL;
         module && status == HEFT_OK; module = module->next) {
        status = read_module(ctx, &arena, folder, module, &found, err);
    }
    if (status == HEFT_OK) {
        status = read_json(ctx, &arena, folder, "sentence_bert_config.json", &limits, err);
    }
    if (status == HEFT_OK) {
        const heft__json_value *most = limits && limits->type == HEFT__JSON_TYPE_OBJECT
                                           ? heft__json_member(limits, "max_seq_length")
                                           : NULL;
        uint64_t tokens = 0;
        found.most_tokens = most && heft__json_as_u64(most, &tokens) ? tokens : 0;
        found.known = modules != NULL;
        status = HEFT__GIVE_SIZED(out, &found, err);
    }
    heft__arena_fini(&arena);
    return heft__add_path(status, err, folder);
}

/* ---- embeddings ----------------------------------------------------------------------------------- */
static void pool_one(const heft__kernels *kernels, const heft_pooling *pooling, const float *rows,
                     size_t count, size_t width, float *out)
{
    memset(out, 0, width * sizeof *out);
    if (pooling->mode == HEFT_POOLING_MEAN) {
        for (size_t i = 0; i < count; i++) {
            kernels->add(out, rows + i * width, width);
        }
        kernels->scale(out, 1 / (float)(count ? count : 1), width);
    } else if (count > 0) {
        const size_t i = pooling->mode == HEFT_POOLING_CLS ? 0 : count - 1;
        memcpy(out, rows + i * width, width * sizeof *out);
    }
    if (pooling->normalize) {
        kernels->unit(out, out, width);
    }
}

heft_status heft_pooling_apply(const heft_pooling *pooling, const heft_output *states,
                               const size_t *tokens, size_t count, float *out, heft_error *err)
{
    size_t rows = 0;
    heft_pooling taken;
    heft_status status = HEFT__TAKE_OPTIONS(&taken, pooling, err);
    if (status != HEFT_OK || !states || !states->data || !tokens || !out) {
        return status != HEFT_OK
                   ? status
                   : heft__fail(err, HEFT_INVALID_ARG, "states, tokens or result is NULL");
    }
    for (size_t i = 0; i < count; i++) {
        rows += tokens[i];
    }
    if (rows != states->rows) {
        return heft__fail(err, HEFT_INVALID_ARG, "%zu rows of %zu sequences, found %zu", rows,
                          count, states->rows);
    }
    rows = 0;
    for (size_t i = 0; i < count; i++) {
        pool_one(heft__kernels_best(), &taken, states->data + rows * states->width, tokens[i],
                 states->width, out + i * states->width);
        rows += tokens[i];
    }
    return HEFT_OK;
}
