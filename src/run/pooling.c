/* pooling.c - how sentence-transformers makes one embedding of a text's last hidden states.
 *
 *   modules.json                 [{"path": "", "type": "...Transformer"}, {"path": "1_Pooling", ...}, ...]
 *   1_Pooling/config.json        {"pooling_mode_mean_tokens": true, ...}
 *   sentence_bert_config.json    {"max_seq_length": 256, "do_lower_case": false}
 *   tokenizer_config.json        {"model_max_length": 512}: texts are cut to it, and to config.json's
 *                                max_position_embeddings, if the file above has no max_seq_length
 *   config_sentence_transformers.json
 *                                {"prompts": {"query": "query: "}, "default_prompt_name": "query", "truncate_dim": 64}
 *
 * Without modules.json it is the mean, or the last token for an architecture ...ForCausalLM, and the other two files of
 * sentence-transformers count for nothing, as there. Modules that change the embedding and that heft does not compute
 * are refused by name. */
#include "run/pass_state.h"

#include <heft/session.h>

#include <math.h>

struct found {
    heft_pooling pooling;
    bool pools, leaves_prompt_out;
};

/* A file of the folder as JSON; NULL if it is not there. */
static heft_status read_json(heft_ctx *ctx, heft__arena *arena, const char *folder,
                             const char *name, heft__json_value **out, heft_error *err)
{
    const heft_limits *limits = heft__limits(ctx);
    char *text = NULL;
    size_t length = 0;
    *out = NULL;
    heft_status status =
        heft__read_beside(arena, folder, name, limits->tokenizer_bytes, &text, &length, err);
    if (status == HEFT_OK && text) {
        status = heft__json_parse(arena, text, length, limits->json_depth, out, err);
        status = heft__add_path(status, err, heft__path_join(arena, folder, name));
    }
    return status;
}

/* A number above 0; 0 for anything else, such as the 1e30 that means none. */
static uint64_t count_of(const heft__json_value *object, const char *key)
{
    const heft__json_value *value = heft__json_member(object, key);
    uint64_t count = 0;
    return value && heft__json_as_u64(value, &count) ? count : 0;
}

static const char *text_of(const heft__json_value *object, const char *key)
{
    const heft__json_value *value = heft__json_member(object, key);
    return value && value->type == HEFT__JSON_TYPE_STRING ? value->text : NULL;
}

static bool is_bool(const heft__json_value *object, const char *key, bool wanted)
{
    const heft__json_value *value = heft__json_member(object, key);
    return value && value->type == HEFT__JSON_TYPE_BOOL && value->boolean == wanted;
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
        if (name ? strcmp(name, modes[i].name) == 0 : is_bool(object, modes[i].flag, true)) {
            out->mode = modes[i].mode;
            found++;
        }
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        found += !name && is_bool(object, others[i], true) ? 2 : 0;
    }
    return found == 1
               ? HEFT_OK
               : heft__fail(err, HEFT_UNSUPPORTED,
                            "the pooling mode is not exactly one of cls, mean and lasttoken");
}

static bool begins_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

static bool ends_with(const char *text, const char *end)
{
    const size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

static heft_status read_module(heft_ctx *ctx, heft__arena *arena, const char *folder,
                               const heft__json_value *module, struct found *found, heft_error *err)
{
    const char *type = text_of(module, "type"), *path = text_of(module, "path");
    heft__json_value *config = NULL;
    if (!type || !path) {
        return heft__fail(err, HEFT_FORMAT, "a module in modules.json has no type or path");
    }
    const bool own = begins_with(type, "sentence_transformers.");
    if (own && ends_with(type, ".Transformer")) {
        return *path ? heft__fail(err, HEFT_UNSUPPORTED, "the model is in the folder '%.60s'", path)
                     : HEFT_OK;
    }
    if (own && ends_with(type, ".Dropout")) { /* nothing, outside of training */
        return HEFT_OK;
    }
    if (own && ends_with(type, ".Normalize")) {
        found->pooling.normalize = true;
        return HEFT_OK;
    }
    if (!own || !ends_with(type, ".Pooling")) {
        return heft__fail(err, HEFT_UNSUPPORTED, "heft does not compute the module %.100s", type);
    }
    const char *inner = heft__path_join(arena, folder, path);
    heft_status status = inner ? read_json(ctx, arena, inner, "config.json", &config, err)
                               : heft__fail_nomem(err, 0);
    if (status == HEFT_OK && (!config || config->type != HEFT__JSON_TYPE_OBJECT)) {
        status = heft__fail(err, HEFT_FORMAT, "the module '%.60s' has no config.json", path);
    }
    found->pools = true;
    found->leaves_prompt_out = is_bool(config, "include_prompt", false);
    return status == HEFT_OK ? read_mode(config, &found->pooling, err) : status;
}

static heft_status read_modules(heft_ctx *ctx, heft__arena *arena, const char *folder,
                                struct found *found, heft_error *err)
{
    heft__json_value *modules = NULL;
    heft_status status = read_json(ctx, arena, folder, "modules.json", &modules, err);
    if (status == HEFT_OK && modules && modules->type != HEFT__JSON_TYPE_ARRAY) {
        status = heft__fail(err, HEFT_FORMAT, "modules.json is not a list");
    }
    for (const heft__json_value *module = modules && status == HEFT_OK ? modules->first : NULL;
         module && status == HEFT_OK; module = module->next) {
        status = read_module(ctx, arena, folder, module, found, err);
    }
    found->pooling.known = modules != NULL;
    return status != HEFT_OK || !modules || found->pools
               ? status
               : heft__fail(err, HEFT_UNSUPPORTED, "modules.json has no Pooling module");
}

/* ---- texts ---------------------------------------------------------------------------------------- */
static bool lowers(const heft__json_value *normalizer)
{
    const char *type = text_of(normalizer, "type");
    const heft__json_value *parts = heft__json_member(normalizer, "normalizers");
    bool found =
        type && (strcmp(type, "Lowercase") == 0 ||
                 (strcmp(type, "BertNormalizer") == 0 && is_bool(normalizer, "lowercase", true)));
    for (const heft__json_value *part = parts && parts->type == HEFT__JSON_TYPE_ARRAY ? parts->first
                                                                                      : NULL;
         part && !found; part = part->next) {
        found = lowers(part);
    }
    return found;
}

/* The first of them that says anything, as there. */
static heft_status read_transformer(heft_ctx *ctx, heft__arena *arena, const char *folder,
                                    struct found *found, heft_error *err)
{
    static const char *const names[] = {
        "sentence_bert_config.json",       "sentence_roberta_config.json",
        "sentence_distilbert_config.json", "sentence_camembert_config.json",
        "sentence_albert_config.json",     "sentence_xlm-roberta_config.json",
        "sentence_xlnet_config.json"};
    static const char *const inner[] = {"processor_kwargs", "tokenizer_args"};
    heft__json_value *config = NULL, *tokenizer = NULL;
    heft_status status = HEFT_OK;
    for (size_t i = 0;
         i < sizeof names / sizeof *names && status == HEFT_OK && !(config && config->first); i++) {
        status = read_json(ctx, arena, folder, names[i], &config, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    uint64_t most = 0;
    for (size_t i = 0; i < sizeof inner / sizeof *inner && most == 0; i++) {
        most = count_of(heft__json_member(config, inner[i]), "model_max_length");
    }
    found->pooling.most_tokens = most ? most : count_of(config, "max_seq_length");
    if (!is_bool(config, "do_lower_case", true)) {
        return HEFT_OK;
    }
    status = read_json(ctx, arena, folder, "tokenizer.json", &tokenizer, err);
    return status != HEFT_OK || lowers(heft__json_member(tokenizer, "normalizer"))
               ? status
               : heft__fail(err, HEFT_UNSUPPORTED,
                            "do_lower_case is true, and the tokenizer does not lowercase texts");
}

/* What the folder's tokenizer and model say, where sentence-transformers' files do not. */
static heft_status read_model(heft_ctx *ctx, heft__arena *arena, const char *folder,
                              struct found *found, heft_error *err)
{
    heft__json_value *config = NULL, *tokenizer = NULL;
    heft_status status = read_json(ctx, arena, folder, "config.json", &config, err);
    if (status == HEFT_OK) {
        status = read_json(ctx, arena, folder, "tokenizer_config.json", &tokenizer, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    const heft__json_value *classes = heft__json_member(config, "architectures");
    const heft__json_value *first =
        classes && classes->type == HEFT__JSON_TYPE_ARRAY ? classes->first : NULL;
    if (!found->pooling.known && first && first->type == HEFT__JSON_TYPE_STRING &&
        ends_with(first->text, "ForCausalLM") && !is_bool(config, "is_causal", false)) {
        found->pooling.mode = HEFT_POOLING_LAST;
    }
    const char *type = text_of(config, "model_type");
    const bool older = type && strcmp(type, "gpt2") == 0; /* T5's n_positions count nothing */
    const uint64_t positions = count_of(config, older ? "n_positions" : "max_position_embeddings");
    const uint64_t most = count_of(tokenizer, "model_max_length");
    if (found->pooling.most_tokens == 0) {
        found->pooling.most_tokens = most && (!positions || most < positions) ? most : positions;
    }
    return HEFT_OK;
}

static heft_status read_prompt(const heft__json_value *config, struct found *found, heft_error *err)
{
    const char *name = text_of(config, "default_prompt_name");
    const heft__json_value *prompts = heft__json_member(config, "prompts");
    const heft__json_value *value = name ? heft__json_member(prompts, name) : NULL;
    const char *prompt = value && value->type == HEFT__JSON_TYPE_STRING ? value->text : "";
    const size_t bytes = value && value->type == HEFT__JSON_TYPE_STRING ? value->length : 0;
    const bool is_there = value || !name || strcmp(name, "query") == 0 || /* empty ones */
                          strcmp(name, "document") == 0;
    if (!is_there) {
        return heft__fail(err, HEFT_FORMAT, "the default prompt '%.60s' is not in prompts", name);
    }
    if (bytes >= sizeof found->pooling.prompt || strlen(prompt) != bytes) {
        return heft__fail(
            err, HEFT_UNSUPPORTED,
            "the default prompt '%.60s' has %zu bytes, of at most %zu, or a zero byte", name, bytes,
            sizeof found->pooling.prompt - 1);
    }
    if (bytes > 0 && found->leaves_prompt_out) {
        return heft__fail(err, HEFT_UNSUPPORTED,
                          "pooling leaves out the default prompt '%.60s' (include_prompt)", name);
    }
    memcpy(found->pooling.prompt, prompt, bytes);
    return HEFT_OK;
}

static heft_status read_all(heft_ctx *ctx, heft__arena *arena, const char *folder,
                            struct found *found, heft_error *err)
{
    heft__json_value *config = NULL;
    heft_status status = read_modules(ctx, arena, folder, found, err);
    if (status == HEFT_OK && found->pooling.known) {
        status = read_transformer(ctx, arena, folder, found, err);
    }
    if (status == HEFT_OK) {
        status = read_model(ctx, arena, folder, found, err);
    }
    if (status == HEFT_OK && found->pooling.known) {
        status = read_json(ctx, arena, folder, "config_sentence_transformers.json", &config, err);
    }
    found->pooling.most_width = count_of(config, "truncate_dim");
    return status == HEFT_OK ? read_prompt(config, found, err) : status;
}

heft_status heft_pooling_read(heft_ctx *ctx, const char *folder, heft_pooling *out, heft_error *err)
{
    struct found found = {.pooling.mode = HEFT_POOLING_MEAN};
    heft__arena arena;
    if (!ctx || !folder || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, folder or result is NULL");
    }
    heft__arena_init(&arena, ctx);
    heft_status status = read_all(ctx, &arena, folder, &found, err);
    if (status == HEFT_OK) {
        status = HEFT__GIVE_SIZED(out, &found.pooling, err);
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
    const size_t width = taken.most_width > 0 && taken.most_width < states->width
                             ? (size_t)taken.most_width
                             : states->width;
    rows = 0;
    for (size_t i = 0; i < count; i++) {
        /* The next one overwrites what is behind the width. */
        pool_one(heft__kernels_best(), &taken, states->data + rows * states->width, tokens[i],
                 states->width, out + i * width);
        rows += tokens[i];
    }
    return HEFT_OK;
}
