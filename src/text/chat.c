/* chat.c - the chat template of a folder, and messages through it.
 *
 * What a template sees is what Transformers' apply_chat_template() gives it: messages, in which members that
 * are null are left out and reasoning is there by all of its names; tools and documents, none unless given;
 * add_generation_prompt; the special tokens of tokenizer_config.json by their keys (special_tokens_map.json
 * where older files have them); the variables of the caller.
 *
 * A special token that the config lacks may have a default in the tokenizer's class: to read it is refused,
 * unless the class is known to have none. */
#include "text/jinja.h"

#include "io/io.h"

#include <heft/chat.h>
#include <time.h>

#define FOLDER "additional_chat_templates"

struct heft_chat {
    heft_ctx *ctx;
    heft__arena arena; /* of the tokens */
    const char *path;
    heft__jinja_tree tree;
    heft__jinja_pair *tokens; /* names and values, REFUSED among them */
    size_t token_count, token_cap;
};

/* ---- special tokens --------------------------------------------------------------------------------------- */
static const char *const token_names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                          "pad_token", "cls_token", "mask_token"};

static bool set_token(heft_chat *chat, const char *name, heft__jinja_value value)
{
    const size_t length = strlen(name);
    size_t i = 0;
    while (i < chat->token_count && !heft__string_is(chat->tokens[i].key.string, name)) {
        i++;
    }
    if (i == chat->token_count) {
        const size_t cap = chat->token_cap ? 2 * chat->token_cap : 16;
        heft__jinja_pair *tokens = chat->tokens;
        if (i == chat->token_cap) {
            tokens = heft__arena_array(&chat->arena, cap, sizeof *tokens);
            if (!tokens) {
                return false;
            }
            if (i > 0) {
                memcpy(tokens, chat->tokens, i * sizeof *tokens);
            }
            chat->tokens = tokens;
            chat->token_cap = cap;
        }
        char *copy = heft__arena_text(&chat->arena, name, length);
        if (!copy) {
            return false;
        }
        tokens[i].key = heft__jinja_string(copy, length);
        chat->token_count++;
    }
    chat->tokens[i].value = value;
    return true;
}

/* A string, or {"content": "..."}; NULL otherwise. */
static const heft__json_value *token_text(const heft__json_value *value)
{
    if (value && value->type == HEFT__JSON_TYPE_OBJECT) {
        value = heft__json_member(value, "content");
    }
    return value && value->type == HEFT__JSON_TYPE_STRING ? value : NULL;
}

static bool ends_as_token(const heft__json_value *member)
{
    return member->key_length > 6 && memcmp(member->key + member->key_length - 6, "_token", 6) == 0;
}

/* The members of an object that are special tokens. */
static bool add_tokens(heft_chat *chat, const heft__json_value *object, bool all)
{
    for (const heft__json_value *m = object ? object->first : NULL; m; m = m->next) {
        const heft__json_value *text = all || ends_as_token(m) ? token_text(m) : NULL;
        if (text) {
            char *copy = heft__arena_text(&chat->arena, text->text, text->length);
            if (!copy || !set_token(chat, m->key, heft__jinja_string(copy, text->length))) {
                return false;
            }
        }
    }
    return true;
}

/* Classes of tokenizers that have no special tokens of their own. */
static bool is_plain_class(const heft__json_value *config)
{
    static const char *const names[] = {"PreTrainedTokenizerFast", "TokenizersBackend"};
    const heft__json_value *name = heft__json_member(config, "tokenizer_class");
    for (size_t i = 0; name && name->type == HEFT__JSON_TYPE_STRING && i < 2; i++) {
        if (heft__string_is((heft__string){name->text, name->length}, names[i])) {
            return true;
        }
    }
    return false;
}

/* Special tokens of the config, and of special_tokens_map.json, which is NULL if it is not to be read. */
static heft_status read_tokens(heft_chat *chat, const heft__json_value *config,
                               const heft__json_value *map, heft_error *err)
{
    static const char reason[] =
        "is not in tokenizer_config.json, and the default of its tokenizer is not known";
    const heft__json_value *extra = heft__json_member(config, "extra_special_tokens");
    bool good = true;
    for (size_t i = 0; i < sizeof token_names / sizeof *token_names && good; i++) {
        if (!is_plain_class(config) && !heft__json_member(config, token_names[i])) {
            good =
                set_token(chat, token_names[i],
                          (heft__jinja_value){
                              .kind = HEFT__JINJA_REFUSED, .string = {reason, sizeof reason - 1}
            });
        }
    }
    good = good && add_tokens(chat, config, false) && add_tokens(chat, map, false);
    if (extra && extra->type == HEFT__JSON_TYPE_OBJECT) {
        good = good && add_tokens(chat, extra, true);
    }
    return good ? HEFT_OK : heft__fail_nomem(err, sizeof *chat->tokens);
}

/* ---- opening ---------------------------------------------------------------------------------------------- */
static heft_status new_chat(heft_ctx *ctx, heft_chat **out, heft_error *err)
{
    heft_chat *chat = heft__alloc_zero(ctx, 1, sizeof *chat);
    if (!chat) {
        return heft__fail_nomem(err, sizeof *chat);
    }
    chat->ctx = heft__ctx_ref(ctx);
    heft__arena_init(&chat->arena, ctx);
    *out = chat;
    return HEFT_OK;
}

void heft_chat_close(heft_chat *chat)
{
    if (chat) {
        heft_ctx *ctx = chat->ctx;
        if (chat->tree.ctx) {
            heft__jinja_tree_fini(&chat->tree);
        }
        heft__arena_fini(&chat->arena);
        heft__free(ctx, chat, sizeof *chat);
        heft_ctx_free(ctx);
    }
}

const char *heft_chat_token(const heft_chat *chat, const char *key, size_t *length)
{
    for (size_t i = 0; i < chat->token_count; i++) {
        const heft__jinja_pair *token = &chat->tokens[i];
        if (heft__string_is(token->key.string, key) && token->value.kind == HEFT__JINJA_STRING) {
            *length = token->value.string.length;
            return token->value.string.text;
        }
    }
    return NULL;
}

static heft_status set_template(heft_chat *chat, const char *path, heft__string text,
                                heft_error *err)
{
    chat->path = heft__arena_text(&chat->arena, path, strlen(path));
    if (!chat->path) {
        return heft__fail_nomem(err, strlen(path));
    }
    return heft__add_path(heft__jinja_parse(chat->ctx, text.text, text.length, &chat->tree, err),
                          err, path);
}

static heft_status parse_object(heft_ctx *ctx, heft__arena *arena, const char *text, size_t length,
                                heft__json_value **out, heft_error *err)
{
    heft_status status =
        heft__json_parse(arena, text, length, heft__limits(ctx)->json_depth, out, err);
    if (status == HEFT_OK && (*out)->type != HEFT__JSON_TYPE_OBJECT) {
        status = heft__fail_at(err, HEFT_FORMAT, (*out)->offset, "expected an object");
    }
    return status;
}

heft_status heft_chat_open_bytes(heft_ctx *ctx, const char *name, const char *text, size_t length,
                                 const char *config, size_t config_length, heft_chat **out,
                                 heft_error *err)
{
    if (!ctx || !name || (!text && length) || (!config && config_length) || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "an argument is NULL");
    }
    heft__arena arena;
    heft__arena_init(&arena, ctx);
    heft__json_value *object = NULL;
    heft_chat *chat = NULL;
    heft_status status = new_chat(ctx, &chat, err);
    if (status == HEFT_OK && config) {
        status = heft__add_path(parse_object(ctx, &arena, config, config_length, &object, err), err,
                                "tokenizer_config.json");
        if (status == HEFT_OK) {
            status = read_tokens(chat, object, NULL, err);
        }
    }
    if (status == HEFT_OK) {
        status = set_template(chat, name, (heft__string){text ? text : "", length}, err);
    }
    heft__arena_fini(&arena);
    if (status != HEFT_OK) {
        heft_chat_close(chat);
        return status;
    }
    *out = chat;
    return HEFT_OK;
}

/* ---- a folder --------------------------------------------------------------------------------------------- */
struct folder {
    heft_ctx *ctx;
    heft__arena arena;
    const char *path, *name; /* of the template that is asked for; NULL: the default */
    heft__json_value *config;
    const char *found; /* the path of the file that has the template */
    heft__string text; /* NULL: not found yet */
};

/* A file of the folder; text NULL if there is none. */
static heft_status read_file(struct folder *f, const char *name, const char **path,
                             heft__string *out, heft_error *err)
{
    char *text = NULL;
    size_t length = 0;
    *out = (heft__string){NULL, 0};
    *path = heft__path_join(&f->arena, f->path, name);
    if (!*path) {
        return heft__fail_nomem(err, strlen(name));
    }
    if (!heft__path_exists(*path)) {
        return HEFT_OK;
    }
    heft_status status = heft__read_file(&f->arena, *path, heft__limits(f->ctx)->tokenizer_bytes,
                                         &text, &length, err);
    *out = (heft__string){text, length};
    return heft__add_limit(status, err, "tokenizer_bytes");
}

/* The same as an object; NULL if there is none. */
static heft_status read_object(struct folder *f, const char *name, heft__json_value **out,
                               heft_error *err)
{
    const char *path;
    heft__string text;
    *out = NULL;
    heft_status status = read_file(f, name, &path, &text, err);
    return status == HEFT_OK && text.text
               ? heft__add_path(parse_object(f->ctx, &f->arena, text.text, text.length, out, err),
                                err, path)
               : status;
}

/* A .jinja file; the default has a place of its own. */
static heft_status find_file(struct folder *f, heft_error *err)
{
    const char *wanted = f->name ? f->name : "default", *path;
    heft_status status = HEFT_OK;
    if (strcmp(wanted, "default") == 0) {
        status = read_file(f, "chat_template.jinja", &path, &f->text, err);
    }
    if (status == HEFT_OK && !f->text.text && !strchr(wanted, '/')) {
        const char *name = heft__arena_format(&f->arena, FOLDER "/%s.jinja", wanted);
        status =
            name ? read_file(f, name, &path, &f->text, err) : heft__fail_nomem(err, strlen(wanted));
    }
    f->found = path;
    return status;
}

/* Whether there are .jinja files, which are then all that there is. */
static heft_status has_files(struct folder *f, bool *out, heft_error *err)
{
    const char *const *names = NULL;
    size_t count = 0;
    const char *single = heft__path_join(&f->arena, f->path, "chat_template.jinja");
    const char *path = heft__path_join(&f->arena, f->path, FOLDER);
    if (!single || !path) {
        return heft__fail_nomem(err, 0);
    }
    *out = heft__path_exists(single);
    heft_status status = HEFT_OK;
    if (heft__path_is_folder(path)) {
        status = heft__folder_names(&f->arena, path, &names, &count, err);
    }
    for (size_t i = 0; status == HEFT_OK && i < count; i++) {
        const size_t length = strlen(names[i]);
        *out = *out || (length >= 6 && strcmp(names[i] + length - 6, ".jinja") == 0);
    }
    return status;
}

/* `chat_template` of a JSON file: a template, or [{"name", "template"}]. */
static heft_status find_member(struct folder *f, const heft__json_value *object, const char *file,
                               heft_error *err)
{
    const char *wanted = f->name ? f->name : "default";
    const heft__json_value *value = heft__json_member(object, "chat_template");
    f->found = heft__path_join(&f->arena, f->path, file);
    if (!f->found) {
        return heft__fail_nomem(err, strlen(file));
    }
    if (!value || value->type == HEFT__JSON_TYPE_NULL) {
        return HEFT_OK;
    }
    if (value->type == HEFT__JSON_TYPE_STRING) {
        f->text = strcmp(wanted, "default") == 0 ? (heft__string){value->text, value->length}
                                                 : (heft__string){NULL, 0};
        return HEFT_OK;
    }
    if (value->type != HEFT__JSON_TYPE_ARRAY) {
        return heft__add_path(heft__fail_at(err, HEFT_FORMAT, value->offset,
                                            "'chat_template' is neither a string nor a list"),
                              err, f->found);
    }
    for (const heft__json_value *item = value->first; item; item = item->next) {
        const heft__json_value *name = heft__json_member(item, "name");
        const heft__json_value *text = heft__json_member(item, "template");
        if (!name || name->type != HEFT__JSON_TYPE_STRING || !text ||
            text->type != HEFT__JSON_TYPE_STRING) {
            return heft__add_path(heft__fail_at(err, HEFT_FORMAT, item->offset,
                                                "a chat template without 'name' or 'template'"),
                                  err, f->found);
        }
        if (heft__string_is((heft__string){name->text, name->length}, wanted)) {
            f->text = (heft__string){text->text, text->length}; /* the last one of a name */
        }
    }
    return HEFT_OK;
}

static heft_status find_template(struct folder *f, heft_error *err)
{
    heft__json_value *older = NULL;
    bool files = false;
    heft_status status = has_files(f, &files, err);
    if (status == HEFT_OK && files) {
        status = find_file(f, err);
    } else if (status == HEFT_OK) {
        status = find_member(f, f->config, "tokenizer_config.json", err);
        if (status == HEFT_OK && !f->text.text) {
            status = read_object(f, "chat_template.json", &older, err);
        }
        if (status == HEFT_OK && older) {
            status = find_member(f, older, "chat_template.json", err);
        }
    }
    if (status == HEFT_OK && !f->text.text) {
        status = f->name ? heft__fail(err, HEFT_NOT_FOUND, "no chat template '%.64s'", f->name)
                         : heft__fail(err, HEFT_NOT_FOUND, "%s",
                                      files ? "several chat templates, and none is the default"
                                            : "no chat template: neither chat_template.jinja nor "
                                              "'chat_template' in tokenizer_config.json");
        return heft__add_path(status, err, f->path);
    }
    return status;
}

heft_status heft_chat_open(heft_ctx *ctx, const char *path, const char *name, heft_chat **out,
                           heft_error *err)
{
    if (!ctx || !path || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "an argument is NULL");
    }
    struct folder f = {.ctx = ctx, .path = path, .name = name};
    heft__json_value *map = NULL;
    heft_chat *chat = NULL;
    heft__arena_init(&f.arena, ctx);
    heft_status status = new_chat(ctx, &chat, err);
    if (status == HEFT_OK) {
        status = read_object(&f, "tokenizer_config.json", &f.config, err);
    }
    if (status == HEFT_OK) {
        status = find_template(&f, err);
    }
    if (status == HEFT_OK && !heft__json_member(f.config, "added_tokens_decoder")) {
        status = read_object(&f, "special_tokens_map.json", &map, err);
    }
    if (status == HEFT_OK) {
        status = read_tokens(chat, f.config, map, err);
    }
    if (status == HEFT_OK) {
        status = set_template(chat, f.found, f.text, err);
    }
    heft__arena_fini(&f.arena);
    if (status != HEFT_OK) {
        heft_chat_close(chat);
        return status;
    }
    *out = chat;
    return HEFT_OK;
}

/* ---- messages --------------------------------------------------------------------------------------------- */
/* The reasoning of a message, under the first of its names that it has; NULL: none. */
static const heft__jinja_value *reasoning_of(const heft__jinja_dict *message)
{
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    for (size_t i = 0; i < 3; i++) {
        const heft__jinja_pair *pair = heft__jinja_find_text(message, names[i]);
        if (pair) {
            return &pair->value;
        }
    }
    return NULL;
}

/* A message as a template sees it: without members that are null; reasoning under two names more. */
static bool complete(heft__jinja_run *run, heft__jinja_value *message)
{
    heft__jinja_dict *all = message->dict;
    heft__jinja_value copy;
    size_t count = 0;
    for (size_t i = 0; i < all->count; i++) {
        if (all->pairs[i].value.kind != HEFT__JINJA_NONE) {
            all->pairs[count++] = all->pairs[i];
        }
    }
    all->count = count;
    const heft__jinja_value *reasoning = reasoning_of(all);
    if (!reasoning) {
        return true;
    }
    const heft__jinja_value kept = *reasoning;
    if (!heft__jinja_new_dict(run, HEFT__JINJA_DICT, count + 2, &copy) ||
        !heft__jinja_dict_set(run, copy.dict, heft__jinja_string("thinking", 8), kept)) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        if (!heft__jinja_dict_set(run, copy.dict, all->pairs[i].key, all->pairs[i].value)) {
            return false;
        }
    }
    *message = copy;
    return heft__jinja_dict_set(run, copy.dict, heft__jinja_string("reasoning_content", 17), kept);
}

static bool read_messages(heft__jinja_run *run, const heft__json_value *json,
                          heft__jinja_value *out)
{
    if (json->type != HEFT__JSON_TYPE_ARRAY || json->count == 0) {
        run->status = heft__fail(run->err, HEFT_INVALID_ARG,
                                 "the messages are not a list of at least one message");
        return false;
    }
    if (!heft__jinja_from_json(run, json, out)) {
        return false;
    }
    for (size_t i = 0; i < out->list->count; i++) {
        if (out->list->items[i].kind != HEFT__JINJA_DICT) {
            run->status = heft__fail(run->err, HEFT_INVALID_ARG, "message %zu is %s, not an object",
                                     i + 1, heft__jinja_kind_name(out->list->items[i]));
            return false;
        }
        if (!complete(run, &out->list->items[i])) {
            return false;
        }
    }
    return true;
}

/* ---- rendering -------------------------------------------------------------------------------------------- */
static bool define_functions(heft__jinja_run *run)
{
    static const char *const refused[] = {"lipsum", "cycler", "joiner", "self"};
    static const char reason[] = "is not known";
    bool good = true;
    for (size_t i = 0; heft__jinja_functions[i] && good; i++) {
        good = heft__jinja_define(run, heft__jinja_functions[i],
                                  (heft__jinja_value){.kind = HEFT__JINJA_FUNCTION, .function = i});
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused && good; i++) {
        good = heft__jinja_define(
            run, refused[i],
            (heft__jinja_value){
                .kind = HEFT__JINJA_REFUSED, .string = {reason, sizeof reason - 1}
        });
    }
    return good;
}

/* The caller's variables, which come last. */
static bool define_variables(heft__jinja_run *run, const heft__json_value *variables)
{
    for (const heft__json_value *m = variables ? variables->first : NULL; m; m = m->next) {
        heft__jinja_value value;
        if (strcmp(m->key, "messages") == 0 || strcmp(m->key, "add_generation_prompt") == 0) {
            run->status = heft__fail(run->err, HEFT_INVALID_ARG,
                                     "'%s' cannot be among the variables", m->key);
            return false;
        }
        if (!heft__jinja_from_json(run, m, &value) || !heft__jinja_define(run, m->key, value)) {
            return false;
        }
    }
    return true;
}

static bool run_template(heft__jinja_run *run, const heft_chat *chat,
                         const heft__json_value *messages, const heft__json_value *variables,
                         bool prompt)
{
    const heft__jinja_value none = {.kind = HEFT__JINJA_NONE};
    heft__jinja_value list;
    bool good = read_messages(run, messages, &list) && heft__jinja_scope_push(run, NULL) &&
                define_functions(run);
    for (size_t i = 0; i < chat->token_count && good; i++) {
        good = heft__jinja_define(run, chat->tokens[i].key.string.text, chat->tokens[i].value);
    }
    return good && heft__jinja_define(run, "messages", list) &&
           heft__jinja_define(run, "tools", none) && heft__jinja_define(run, "documents", none) &&
           heft__jinja_define(run, "add_generation_prompt", heft__jinja_bool(prompt)) &&
           define_variables(run, variables) && heft__jinja_scope_push(run, run->scope) &&
           heft__jinja_statements(run, chat->tree.body);
}

static heft_status parse_inputs(const heft_chat *chat, heft__arena *arena, const char *messages,
                                size_t length, const char *variables_json, heft__json_value **list,
                                heft__json_value **variables, heft_error *err)
{
    heft_status status =
        heft__json_parse(arena, messages, length, heft__limits(chat->ctx)->json_depth, list, err);
    status = heft__add_item(status, err, "messages");
    if (status == HEFT_OK && variables_json) {
        status = heft__add_item(
            parse_object(chat->ctx, arena, variables_json, strlen(variables_json), variables, err),
            err, "variables");
    }
    if (status == HEFT_FORMAT) { /* not of a file */
        status = HEFT_INVALID_ARG;
        if (err) {
            err->status = status;
        }
    }
    return status;
}

static heft_status take_text(const heft_chat *chat, const heft__buffer *from, char **text,
                             size_t *length, heft_error *err)
{
    char *copy = heft__alloc(chat->ctx, from->size + 1);
    if (!copy) {
        return heft__fail_nomem(err, from->size + 1);
    }
    if (from->size) {
        memcpy(copy, from->data, from->size);
    }
    copy[from->size] = '\0';
    *text = copy;
    *length = from->size;
    return HEFT_OK;
}

heft_status heft_chat_render(const heft_chat *chat, const char *messages, size_t length,
                             const heft_chat_options *options, char **text, size_t *text_length,
                             heft_error *err)
{
    heft_chat_options chosen;
    heft_error own = {0};
    err = err ? err : &own;
    if (!chat || (!messages && length) || !text || !text_length) {
        return heft__fail(err, HEFT_INVALID_ARG, "an argument is NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&chosen, options, err);
    if (status != HEFT_OK) {
        return status;
    }
    heft__arena arena;
    heft__json_value *list = NULL, *variables = NULL;
    heft__jinja_tree tree = chat->tree; /* it is only read */
    heft__jinja_run run = {.ctx = chat->ctx,
                           .tree = &tree,
                           .limit = heft__limits(chat->ctx)->chat_bytes,
                           .now = chosen.now ? chosen.now : (int64_t)time(NULL),
                           .err = err};
    heft__arena_init(&arena, chat->ctx);
    heft__arena_init(&run.arena, chat->ctx);
    heft__buffer_init(&run.out, chat->ctx);
    status = parse_inputs(chat, &arena, messages ? messages : "", length, chosen.variables_json,
                          &list, &variables, err);
    if (status == HEFT_OK &&
        !run_template(&run, chat, list, variables, !chosen.no_generation_prompt)) {
        status = heft__add_path(run.status, err, run.status == HEFT_INVALID_ARG ? "" : chat->path);
    }
    if (status == HEFT_OK) {
        status = take_text(chat, &run.out, text, text_length, err);
    }
    heft__buffer_fini(&run.out);
    heft__arena_fini(&run.arena);
    heft__arena_fini(&arena);
    return status;
}

void heft_chat_free_text(const heft_chat *chat, char *text, size_t length)
{
    if (text) {
        heft__free(chat->ctx, text, length + 1);
    }
}
