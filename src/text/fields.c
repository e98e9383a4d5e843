/* fields.c - members of the objects in a tokenizer.json, each with the type that it must have. */
#include "text/tokenizer.h"

bool heft__string_is(heft__string string, const char *text)
{
    const size_t length = strlen(text);
    return string.text && string.length == length && memcmp(string.text, text, length) == 0;
}

size_t heft__place_in(const char *names, heft__string name)
{
    for (size_t place = 0; *names; place++) {
        const size_t span = strcspn(names, " ");
        if (span == name.length && memcmp(names, name.text, span) == 0) {
            return place;
        }
        names += span;
        names += strspn(names, " ");
    }
    return SIZE_MAX;
}

heft_status heft__fields_known(const heft__json_value *object, const char *names, heft_error *err)
{
    if (object->type != HEFT__JSON_TYPE_OBJECT) {
        return heft__fail_at(err, HEFT_FORMAT, object->offset, "expected an object");
    }
    for (const heft__json_value *m = object->first; m; m = m->next) {
        if (heft__place_in(names, (heft__string){m->key, m->key_length}) == SIZE_MAX) {
            return heft__fail_at(err, HEFT_UNSUPPORTED, m->offset, "member '%.64s' is not known",
                                 m->key);
        }
    }
    return HEFT_OK;
}

/* The member, NULL where it is absent or null. */
static const heft__json_value *member(const heft__json_value *object, const char *key)
{
    const heft__json_value *value = heft__json_member(object, key);
    return value && value->type != HEFT__JSON_TYPE_NULL ? value : NULL;
}

heft_status heft__field_bool(const heft__json_value *object, const char *key, bool fallback,
                             bool *out, heft_error *err)
{
    const heft__json_value *value = member(object, key);
    if (value && value->type != HEFT__JSON_TYPE_BOOL) {
        return heft__fail_at(err, HEFT_FORMAT, value->offset, "'%s' is neither true nor false",
                             key);
    }
    *out = value ? value->boolean : fallback;
    return HEFT_OK;
}

heft_status heft__field_u64(const heft__json_value *object, const char *key, uint64_t fallback,
                            uint64_t *out, heft_error *err)
{
    const heft__json_value *value = member(object, key);
    uint64_t number = fallback;
    if (value && !heft__json_as_u64(value, &number)) {
        return heft__fail_at(err, HEFT_FORMAT, value->offset, "'%s' is not a whole number", key);
    }
    *out = number;
    return HEFT_OK;
}

heft_status heft__field_text(const heft__json_value *object, const char *key, heft__string *out,
                             heft_error *err)
{
    const heft__json_value *value = member(object, key);
    if (value && value->type != HEFT__JSON_TYPE_STRING) {
        return heft__fail_at(err, HEFT_FORMAT, value->offset, "'%s' is not a string", key);
    }
    *out = value ? (heft__string){value->text, value->length} : (heft__string){NULL, 0};
    return HEFT_OK;
}

heft_status heft__field_needed(const heft__json_value *object, const char *key, heft__string *out,
                               heft_error *err)
{
    heft_status status = heft__field_text(object, key, out, err);
    if (status == HEFT_OK && !out->text) {
        return heft__fail_at(err, HEFT_FORMAT, object->offset, "'%s' is missing", key);
    }
    return status;
}

heft_status heft__field_choice(heft__string name, const char *const *names, uint64_t offset,
                               size_t *out, heft_error *err)
{
    for (size_t i = 0; names[i]; i++) {
        if (heft__string_is(name, names[i])) {
            *out = i;
            return HEFT_OK;
        }
    }
    return heft__fail_at(err, HEFT_UNSUPPORTED, offset, "'%.64s' is not supported", name.text);
}

/* A Sequence of steps is walked without recursion: the place in each of the lists that are open. */
struct walk {
    const heft__json_value *open[16];
    size_t depth;
};

static heft_status open_list(struct walk *walk, const heft__json_value *step, const char *list,
                             heft_error *err)
{
    char names[64];
    (void)snprintf(names, sizeof names, "type %s", list);
    heft_status status = heft__fields_known(step, names, err);
    if (status != HEFT_OK) {
        return status;
    }
    const heft__json_value *steps = heft__json_member(step, list);
    if (!steps || steps->type != HEFT__JSON_TYPE_ARRAY) {
        return heft__fail_at(err, HEFT_FORMAT, step->offset, "a Sequence without '%s'", list);
    }
    if (walk->depth == sizeof walk->open / sizeof *walk->open) {
        return heft__fail_at(err, HEFT_LIMIT, step->offset, "a Sequence more than 16 deep");
    }
    walk->open[walk->depth++] = steps->first;
    return HEFT_OK;
}

heft_status heft__each_step(const heft__json_value *part, const char *list, heft__step_fn read,
                            void *user, heft_error *err)
{
    if (!part || part->type == HEFT__JSON_TYPE_NULL) {
        return HEFT_OK;
    }
    struct walk walk = {.depth = 0};
    const heft__json_value *step = part;
    size_t steps = 0;
    for (;;) {
        if (step->type != HEFT__JSON_TYPE_OBJECT) {
            return heft__fail_at(err, HEFT_FORMAT, step->offset, "expected an object");
        }
        if (steps++ == HEFT__STEPS_MAX) {
            return heft__fail_at(err, HEFT_LIMIT, step->offset, "more than %d steps",
                                 HEFT__STEPS_MAX);
        }
        heft__string type;
        heft_status status = heft__field_needed(step, "type", &type, err);
        if (status == HEFT_OK) {
            status = heft__string_is(type, "Sequence") ? open_list(&walk, step, list, err)
                                                       : read(user, type, step, err);
        }
        if (status != HEFT_OK) {
            return status;
        }
        while (walk.depth > 0 && !walk.open[walk.depth - 1]) {
            walk.depth--;
        }
        if (walk.depth == 0) {
            return HEFT_OK;
        }
        step = walk.open[walk.depth - 1];
        walk.open[walk.depth - 1] = step->next;
    }
}
