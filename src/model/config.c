/* config.c - config.json: read, copied, and written back as Transformers does.
 *
 * Keys that heft does not know are kept. `dtype` (since 4.56) wins over `torch_dtype`. Nothing of
 * it is trusted: who asks for a number says what range it may have (skeleton.c).
 *
 * Source: docs/config.md. */
#include "model/model.h"

#include "io/io.h"

static heft_status config_new(heft_ctx *ctx, const char *path, heft_config **out, heft_error *err)
{
    heft_config *config = heft__alloc_zero(ctx, 1, sizeof *config);
    if (!config) {
        return heft__fail_nomem(err, sizeof *config);
    }
    config->ctx = heft__ctx_ref(ctx);
    heft__arena_init(&config->arena, ctx);
    config->path = heft__arena_text(&config->arena, path, strlen(path));
    *out = config;
    return config->path ? HEFT_OK : heft__fail_nomem(err, strlen(path));
}

heft_status heft__config_parse(heft_ctx *ctx, const char *path, const void *text, size_t length,
                               heft_config **out, heft_error *err)
{
    heft_config *config = NULL;
    heft_status status = config_new(ctx, path, &config, err);
    if (status == HEFT_OK) {
        status = heft__json_parse(&config->arena, text, length, heft__limits(ctx)->json_depth,
                                  &config->root, err);
    }
    if (status == HEFT_OK && config && config->root->type != HEFT__JSON_TYPE_OBJECT) {
        status = heft__fail_at(err, HEFT_FORMAT, config->root->offset, "expected a JSON object");
    }
    if (status == HEFT_OK) {
        *out = config;
    } else {
        heft_config_free(config);
    }
    return heft__add_path(status, err, path);
}

heft_status heft_config_new(heft_ctx *ctx, const char *text, size_t length, heft_config **out,
                            heft_error *err)
{
    if (!ctx || (!text && length > 0) || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, text or result is NULL");
    }
    const uint64_t most = heft__limits(ctx)->config_bytes;
    heft_status status =
        length > most ? heft__fail(err, HEFT_LIMIT,
                                   "the text has %zu bytes, the limit is %llu (limit config_bytes)",
                                   length, (unsigned long long)most)
                      : heft__config_parse(ctx, "config.json", text, length, out, err);
    return heft__add_path(status, err, "config.json");
}

heft_status heft_config_read(heft_ctx *ctx, const char *path, heft_config **out, heft_error *err)
{
    if (!ctx || !path || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, path or result is NULL");
    }
    heft__arena arena;
    char *text = NULL;
    size_t length = 0;
    heft__arena_init(&arena, ctx);
    const char *base = heft__path_base(path);
    const bool is_folder = heft__path_is_folder(path);
    const char *file = is_folder ? heft__path_join(&arena, path, "config.json") : path;
    const char *folder = is_folder      ? path
                         : base == path ? "."
                                        : heft__arena_text(&arena, path, (size_t)(base - path));
    heft_status status = file && folder ? heft__folder_recover(ctx, folder, err)
                                        : heft__fail_nomem(err, strlen(path));
    if (status == HEFT_OK) {
        status =
            heft__read_file(&arena, file, heft__limits(ctx)->config_bytes, &text, &length, err);
        heft__add_limit(status, err, "config_bytes");
    }
    if (status == HEFT_OK) {
        status = heft__config_parse(ctx, file, text, length, out, err);
    }
    if (status == HEFT_OK) {
        (*out)->is_file = true;
    }
    heft__arena_fini(&arena);
    return heft__add_path(status, err, path);
}

void heft_config_free(heft_config *config)
{
    if (config) {
        heft_ctx *ctx = config->ctx;
        heft__arena_fini(&config->arena);
        heft__free(ctx, config, sizeof *config);
        heft_ctx_free(ctx);
    }
}

/* ---- copy ------------------------------------------------------------------------------------ */
/* As deep as the file is nested, which the reader has bounded. NULL if there is no memory. */
static heft__json_value *copy_value(heft__arena *arena, const heft__json_value *from)
{
    heft__json_value *to = heft__arena_alloc(arena, sizeof *to);
    if (!to) {
        return NULL;
    }
    *to = *from;
    to->first = to->last = to->next = NULL;
    to->count = 0;
    to->text = from->text ? heft__arena_text(arena, from->text, from->length) : NULL;
    to->key = from->key ? heft__arena_text(arena, from->key, from->key_length) : NULL;
    if ((from->text && !to->text) || (from->key && !to->key)) {
        return NULL;
    }
    for (const heft__json_value *member = from->first; member; member = member->next) {
        heft__json_value *copy = copy_value(arena, member);
        if (!copy) {
            return NULL;
        }
        heft__json_append(to, copy);
    }
    return to;
}

heft_status heft__config_copy(const heft_config *config, heft_config **out, heft_error *err)
{
    heft_config *copy = NULL;
    heft_status status = config_new(config->ctx, config->path, &copy, err);
    if (status == HEFT_OK) {
        copy->is_file = config->is_file;
        copy->root = copy_value(&copy->arena, config->root);
        status = copy->root ? HEFT_OK
                            : heft__fail(err, HEFT_NOMEM, "no memory for a copy of the config");
    }
    if (status == HEFT_OK) {
        *out = copy;
    } else {
        heft_config_free(copy);
    }
    return status;
}

/* ---- look-ups -------------------------------------------------------------------------------- */
/* A string without a NUL in it, else NULL. */
static const char *text_of(const heft__json_value *value)
{
    bool plain =
        value && value->type == HEFT__JSON_TYPE_STRING && strlen(value->text) == value->length;
    return plain ? value->text : NULL;
}

const char *heft_config_model_type(const heft_config *config)
{
    const char *text = text_of(heft__json_member(config->root, "model_type"));
    return text ? text : "";
}

const char *heft_config_architecture(const heft_config *config)
{
    const heft__json_value *list = heft__json_member(config->root, "architectures");
    return list && list->type == HEFT__JSON_TYPE_ARRAY ? text_of(list->first) : NULL;
}

heft_dtype heft_config_dtype(const heft_config *config)
{
    static const char *const keys[] = {"dtype", "torch_dtype"};
    for (size_t i = 0; i < 2; i++) {
        heft_dtype dtype;
        const char *text = text_of(heft__json_member(config->root, keys[i]));
        if (text && heft_dtype_parse(text, &dtype, NULL) == HEFT_OK &&
            heft_dtype_is_floating(dtype)) {
            return dtype;
        }
    }
    return HEFT_DTYPE_NONE;
}

/* ---- writing --------------------------------------------------------------------------------- */
/* Keys that heft sets itself, and runtime-only keys, which Transformers never saves. */
static bool is_left_out(const char *key)
{
    static const char *const keys[] = {
        "architectures",
        "dtype",
        "torch_dtype",
        "_name_or_path",
        "_commit_hash",
        "_auto_class",
        "_attn_implementation_internal",
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (strcmp(key, keys[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* The config as it is saved. Values are shared with the config, only the top level is new. */
static heft__json_value *saved_form(heft__arena *arena, const heft_config *config,
                                    const char *class_name, heft_dtype dtype)
{
    heft__json_value *root = heft__json_new_object(arena), *classes = heft__json_new_array(arena);
    heft__json_value *name = heft__json_new_string(arena, class_name);
    if (!root || !classes || !name) {
        return NULL;
    }
    for (const heft__json_value *member = config->root->first; member; member = member->next) {
        heft__json_value *copy =
            is_left_out(member->key) ? NULL : heft__arena_alloc(arena, sizeof *copy);
        if (copy) {
            *copy = *member;
            heft__json_append(root, copy);
        } else if (!is_left_out(member->key)) {
            return NULL;
        }
    }
    heft__json_append(classes, name);
    bool done =
        heft__json_set(arena, root, "architectures", classes) &&
        heft__json_set(arena, root, "dtype", heft__json_new_string(arena, heft_dtype_name(dtype)));
    const heft__family *family = heft__family_of_class(class_name);
    if (done && family && !heft__json_member(root, "model_type")) {
        done = heft__json_set(arena, root, "model_type",
                              heft__json_new_string(arena, family->model_type));
    }
    return done ? root : NULL;
}

heft_status heft__config_write(const heft_config *config, const char *class_name, heft_dtype dtype,
                               heft__buffer *out, heft_error *err)
{
    heft__arena arena;
    heft__arena_init(&arena, config->ctx);
    const heft__json_value *root = saved_form(&arena, config, class_name, dtype);
    heft_status status = HEFT_OK;
    if (root) {
        heft__json_write_python(out, root);
        heft__buffer_byte(out, '\n');
        status = heft__buffer_check(out, err);
    } else {
        status = heft__fail(err, HEFT_NOMEM, "no memory for the text of the config");
    }
    heft__arena_fini(&arena);
    return heft__add_path(status, err, config->path);
}
