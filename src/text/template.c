/* template.c - post-processors: the ids that go around those of a text.
 *
 * All of them put fixed ids before and behind a text, and a Sequence puts the later ones outside, so that a
 * template is two lists. Templates of pairs are not read. */
#include "text/tokenizer.h"

#define IDS_MAX 1024

struct reading {
    heft__arena *arena;
    heft__template *out;  /* lists of IDS_MAX */
    size_t offset_before; /* `before` is filled from its end: later ones go in front */
};

static heft_status add_before(struct reading *r, const uint32_t *ids, size_t count, uint64_t offset,
                              heft_error *err)
{
    if (count > r->offset_before) {
        return heft__fail_at(err, HEFT_LIMIT, offset, "more than %d ids around a text", IDS_MAX);
    }
    r->offset_before -= count;
    if (count) {
        memcpy(r->out->before + r->offset_before, ids, count * sizeof *ids);
    }
    return HEFT_OK;
}

static heft_status add_after(struct reading *r, uint32_t id, uint64_t offset, heft_error *err)
{
    if (r->out->after_count == IDS_MAX) {
        return heft__fail_at(err, HEFT_LIMIT, offset, "more than %d ids around a text", IDS_MAX);
    }
    r->out->after[r->out->after_count++] = id;
    return HEFT_OK;
}

static heft_status as_id(const heft__json_value *value, uint32_t *id, heft_error *err)
{
    uint64_t number;
    if (!heft__json_as_u64(value, &number) || number >= INT32_MAX) {
        return heft__fail_at(err, HEFT_FORMAT, value->offset, "an id that is not one");
    }
    *id = (uint32_t)number;
    return HEFT_OK;
}

/* ["[CLS]", 101] */
static heft_status read_pair(const heft__json_value *step, const char *key, uint32_t *id,
                             heft_error *err)
{
    const heft__json_value *pair = heft__json_member(step, key);
    if (!pair || pair->type != HEFT__JSON_TYPE_ARRAY || pair->count != 2) {
        return heft__fail_at(err, HEFT_FORMAT, step->offset, "'%s' is no pair of token and id",
                             key);
    }
    return as_id(pair->last, id, err);
}

static heft_status read_bert(struct reading *r, const heft__json_value *step, heft_error *err)
{
    uint32_t cls = 0, sep = 0;
    heft_status status = read_pair(step, "cls", &cls, err);
    if (status == HEFT_OK) {
        status = read_pair(step, "sep", &sep, err);
    }
    if (status == HEFT_OK) {
        status = add_before(r, &cls, 1, step->offset, err);
    }
    return status == HEFT_OK ? add_after(r, sep, step->offset, err) : status;
}

/* The ids of a special token of the template. */
static heft_status find_ids(const heft__json_value *tokens, const heft__json_value *piece,
                            const heft__json_value **ids, heft_error *err)
{
    heft__string name;
    heft_status status = heft__fields_known(piece, "id type_id", err);
    if (status == HEFT_OK) {
        status = heft__field_needed(piece, "id", &name, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    const heft__json_value *token = heft__json_member(tokens, name.text);
    *ids = token ? heft__json_member(token, "ids") : NULL;
    if (!*ids || (*ids)->type != HEFT__JSON_TYPE_ARRAY) {
        return heft__fail_at(err, HEFT_FORMAT, piece->offset,
                             "'%.64s' is not among the special tokens", name.text);
    }
    return HEFT_OK;
}

/* {"Sequence": ...} or {"SpecialToken": ...}, the text itself or ids. */
static heft_status read_piece(struct reading *r, const heft__json_value *tokens,
                              const heft__json_value *piece, uint32_t *before, size_t *before_count,
                              bool *text, heft_error *err)
{
    const heft__json_value *special = heft__json_member(piece, "SpecialToken");
    const heft__json_value *sequence = heft__json_member(piece, "Sequence");
    if (!special == !sequence) {
        return heft__fail_at(err, HEFT_FORMAT, piece->offset,
                             "expected a 'Sequence' or a 'SpecialToken'");
    }
    if (sequence) {
        heft__string id;
        heft_status status = heft__field_needed(sequence, "id", &id, err);
        if (status == HEFT_OK && (*text || !heft__string_is(id, "A"))) {
            return heft__fail_at(err, HEFT_UNSUPPORTED, piece->offset,
                                 "a template that is not one text with ids around it");
        }
        *text = true;
        return status;
    }
    const heft__json_value *ids = NULL;
    heft_status status = find_ids(tokens, special, &ids, err);
    for (const heft__json_value *v = status == HEFT_OK ? ids->first : NULL; v; v = v->next) {
        uint32_t id = 0;
        status = as_id(v, &id, err);
        if (status == HEFT_OK && *text) {
            status = add_after(r, id, v->offset, err);
        } else if (status == HEFT_OK && *before_count == IDS_MAX) {
            status = heft__fail_at(err, HEFT_LIMIT, v->offset, "more than %d ids", IDS_MAX);
        } else if (status == HEFT_OK) {
            before[(*before_count)++] = id;
        }
        if (status != HEFT_OK) {
            break;
        }
    }
    return status;
}

static heft_status read_template(struct reading *r, const heft__json_value *step, heft_error *err)
{
    const heft__json_value *single = heft__json_member(step, "single");
    const heft__json_value *tokens = heft__json_member(step, "special_tokens");
    if (!single || single->type != HEFT__JSON_TYPE_ARRAY || !tokens ||
        tokens->type != HEFT__JSON_TYPE_OBJECT) {
        return heft__fail_at(err, HEFT_FORMAT, step->offset,
                             "a template without 'single' or 'special_tokens'");
    }
    uint32_t before[IDS_MAX];
    size_t before_count = 0;
    bool text = false;
    heft_status status = HEFT_OK;
    for (const heft__json_value *piece = single->first; piece && status == HEFT_OK;
         piece = piece->next) {
        status = read_piece(r, tokens, piece, before, &before_count, &text, err);
    }
    if (status == HEFT_OK && !text) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, step->offset, "a template without the text");
    }
    return status == HEFT_OK ? add_before(r, before, before_count, step->offset, err) : status;
}

static heft_status read_step(void *user, heft__string type, const heft__json_value *step,
                             heft_error *err)
{
    struct reading *r = user;
    enum { BYTE_LEVEL, BERT, ROBERTA, TEMPLATE };
    static const char *const names[] = {"ByteLevel", "BertProcessing", "RobertaProcessing",
                                        "TemplateProcessing", NULL};
    static const char *const members[] = {
        "type add_prefix_space trim_offsets use_regex", "type sep cls",
        "type sep cls trim_offsets add_prefix_space", "type single pair special_tokens"};
    size_t kind;
    heft_status status = heft__field_choice(type, names, step->offset, &kind, err);
    if (status == HEFT_OK) {
        status = heft__fields_known(step, members[kind], err);
    }
    if (status != HEFT_OK || kind == BYTE_LEVEL) { /* which changes offsets only */
        return status;
    }
    return kind == TEMPLATE ? read_template(r, step, err) : read_bert(r, step, err);
}

heft_status heft__template_read(heft__arena *arena, const heft__json_value *part,
                                heft__template *out, heft_error *err)
{
    out->before = heft__arena_array(arena, IDS_MAX, sizeof *out->before);
    out->after = heft__arena_array(arena, IDS_MAX, sizeof *out->after);
    if (!out->before || !out->after) {
        return heft__fail_nomem(err, IDS_MAX * sizeof *out->before);
    }
    struct reading r = {arena, out, IDS_MAX};
    heft_status status = heft__each_step(part, "processors", read_step, &r, err);
    out->before += r.offset_before;
    out->before_count = IDS_MAX - r.offset_before;
    return heft__add_item(status, err, "post_processor");
}
