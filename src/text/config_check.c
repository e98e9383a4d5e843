/* config_check.c - what a tokenizer_config.json says otherwise than the tokenizer.json beside it.
 *
 * heft reads tokenizer.json alone. Transformers' AutoTokenizer changes it by tokenizer_config.json: tokens that it lacks
 * are added, flags of those it has are replaced, and classes of one family make their normalizer and pre-tokenizer
 * anew. Files that were saved together agree; what does not is named, so that a caller can warn.
 * Source: Transformers 5, tokenization_utils_tokenizers.py. */
#include "text/tokenizer.h"

#include "io/io.h"

#define NAMED_MOST 5 /* further ones are counted */

struct finding {
    const heft_tokenizer *t;
    const heft__json_value *config;
    heft__buffer out;
    size_t count;
};

static bool says(const heft__json_value *object, const char *key, bool value)
{
    const heft__json_value *found = heft__json_member(object, key);
    return found && found->type == HEFT__JSON_TYPE_BOOL && found->boolean == value;
}

/* The same, where the classes of Transformers take `fallback` for what is not said. */
static bool is_set(const heft__json_value *object, const char *key, bool fallback, bool value)
{
    const heft__json_value *found = heft__json_member(object, key);
    return found && found->type == HEFT__JSON_TYPE_BOOL ? found->boolean == value
                                                        : fallback == value;
}

static void name(struct finding *f, const char *before, heft__string what)
{
    if (f->count++ >= NAMED_MOST) {
        return;
    }
    heft__buffer_append(&f->out, ", ", f->out.size > 0 ? 2 : 0);
    heft__buffer_append(&f->out, before, strlen(before));
    heft__buffer_append(&f->out, what.text, what.length);
}

static void name_key(struct finding *f, const char *key)
{
    name(f, "", (heft__string){key, strlen(key)});
}

/* ---- tokens --------------------------------------------------------------------------------------- */
/* A token's text, or an object with it. */
static void check_token(struct finding *f, const heft__json_value *token, bool with_flags)
{
    const heft__json_value *content = token && token->type == HEFT__JSON_TYPE_OBJECT
                                          ? heft__json_member(token, "content")
                                          : token;
    if (!content || content->type != HEFT__JSON_TYPE_STRING || content->length == 0) {
        return;
    }
    const size_t at = heft__map_get(&f->t->added.by_text, content->text, content->length);
    const heft__string text = {content->text, content->length};
    if (at == HEFT__MAP_NONE) {
        name(f, "token ", text);
        return;
    }
    const heft__added_token *own = &f->t->added.list[at];
    if (with_flags &&
        (says(token, "lstrip", !own->lstrip) || says(token, "rstrip", !own->rstrip) ||
         says(token, "single_word", !own->single_word) ||
         says(token, "normalized", !own->normalized) || says(token, "special", !own->special))) {
        name(f, "flags of token ", text);
    }
}

static void check_tokens(struct finding *f)
{
    static const char *const keys[] = {
        "bos_token",           "eos_token", "unk_token",  "sep_token",
        "pad_token",           "cls_token", "mask_token", "additional_special_tokens",
        "extra_special_tokens"};
    const heft__json_value *decoder = heft__json_member(f->config, "added_tokens_decoder");
    for (const heft__json_value *item =
             decoder && decoder->type == HEFT__JSON_TYPE_OBJECT ? decoder->first : NULL;
         item; item = item->next) {
        check_token(f, item, true);
    }
    if (f->count > 0) {
        return; /* the same ones have further names */
    }
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const heft__json_value *value = heft__json_member(f->config, keys[i]);
        const bool many =
            value &&
            (value->type == HEFT__JSON_TYPE_ARRAY ||
             (value->type == HEFT__JSON_TYPE_OBJECT && i + 1 == sizeof keys / sizeof *keys));
        for (const heft__json_value *item = many ? value->first : value; item;
             item = many ? item->next : NULL) {
            check_token(f, item, false);
        }
    }
}

/* ---- steps ---------------------------------------------------------------------------------------- */
static bool is_class(const heft__json_value *config, const char *const *names)
{
    const heft__json_value *value = heft__json_member(config, "tokenizer_class");
    bool found = false;
    for (size_t i = 0; names[i] && value && value->type == HEFT__JSON_TYPE_STRING && !found; i++) {
        found = strcmp(value->text, names[i]) == 0;
    }
    return found;
}

static void check_normalizer(struct finding *f, const heft__normalizer *n)
{
    if (is_set(f->config, "do_lower_case", true, !n->lowercase)) {
        name_key(f, "do_lower_case");
    }
    if (says(f->config, "strip_accents", !n->strip_accents)) {
        name_key(f, "strip_accents");
    }
    if (is_set(f->config, "tokenize_chinese_chars", true, !n->chinese)) {
        name_key(f, "tokenize_chinese_chars");
    }
}

/* Classes for any file leave its steps as they are; others make them anew. */
static void check_steps(struct finding *f)
{
    static const char *const any[] = {"PreTrainedTokenizerFast", "PreTrainedTokenizer",
                                      "TokenizersBackend", NULL};
    static const char *const llama[] = {"LlamaTokenizer", "LlamaTokenizerFast", NULL};
    const heft__normalizers *normalizers = &f->t->normalizers;
    const heft__pre_tokenizers *pre = &f->t->pre_tokenizers;
    const bool of_llama = is_class(f->config, llama);
    bool prefix = false; /* it is another one */
    if (!heft__json_member(f->config, "tokenizer_class") || is_class(f->config, any)) {
        return;
    }
    for (size_t i = 0; i < normalizers->count; i++) {
        if (normalizers->list[i].kind == HEFT__NORM_BERT) {
            check_normalizer(f, &normalizers->list[i]);
        }
        prefix = prefix || (of_llama && normalizers->list[i].kind == HEFT__NORM_PREPEND &&
                            says(f->config, "add_prefix_space", false));
    }
    for (size_t i = 0; i < pre->count; i++) {
        const heft__pre_tokenizer *p = &pre->list[i];
        if (p->kind == HEFT__PRE_BYTE_LEVEL && !of_llama) {
            prefix = prefix || is_set(f->config, "add_prefix_space", false, !p->add_prefix_space);
        }
        prefix = prefix ||
                 (of_llama && p->kind == HEFT__PRE_METASPACE && p->prepend != HEFT__PREPEND_NEVER &&
                  says(f->config, "add_prefix_space", false));
    }
    if (prefix) {
        name_key(f, "add_prefix_space");
    }
}

/* ---- all of it ------------------------------------------------------------------------------------ */
static heft_status read_config(heft_ctx *ctx, heft__arena *arena, const char *folder,
                               heft__json_value **out, heft_error *err)
{
    const heft_limits *limits = heft__limits(ctx);
    char *text = NULL;
    size_t length = 0;
    heft_status status = heft__read_beside(arena, folder, "tokenizer_config.json",
                                           limits->tokenizer_bytes, &text, &length, err);
    if (status == HEFT_OK && text) {
        status = heft__json_parse(arena, text, length, limits->json_depth, out, err);
    }
    return heft__add_path(status, err, folder);
}

static heft_status give(struct finding *f, char **text, size_t *length, heft_error *err)
{
    char more[48];
    if (f->count > NAMED_MOST) {
        const int bytes = snprintf(more, sizeof more, " and %zu more", f->count - NAMED_MOST);
        heft__buffer_append(&f->out, more, (size_t)bytes);
    }
    const size_t bytes = f->out.size;
    heft__buffer_byte(&f->out, 0);
    heft_status status = heft__buffer_check(&f->out, err);
    char *copy = status == HEFT_OK ? heft__alloc(f->t->ctx, bytes + 1) : NULL;
    if (status == HEFT_OK && !copy) {
        status = heft__fail_nomem(err, bytes + 1);
    }
    if (status == HEFT_OK) {
        memcpy(copy, f->out.data, bytes + 1);
        *text = copy;
        *length = bytes;
    }
    return status;
}

heft_status heft_tokenizer_check_config(const heft_tokenizer *t, const char *folder, char **text,
                                        size_t *length, heft_error *err)
{
    heft__arena arena;
    heft__json_value *config = NULL;
    if (!t || !folder || !text || !length) {
        return heft__fail(err, HEFT_INVALID_ARG, "an argument is NULL");
    }
    struct finding f = {.t = t};
    heft__arena_init(&arena, t->ctx);
    heft__buffer_init(&f.out, t->ctx);
    heft_status status = read_config(t->ctx, &arena, folder, &config, err);
    if (status == HEFT_OK) {
        f.config = config;
        check_tokens(&f);
        check_steps(&f);
        status = give(&f, text, length, err);
    }
    heft__buffer_fini(&f.out);
    heft__arena_fini(&arena);
    return status;
}
