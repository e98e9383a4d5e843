/* skeleton_config.c - typed look-ups of a config, for the builder of skeleton.c.
 *
 * Nothing of a config is trusted: who asks for a number says what range it may have. The first
 * failure sticks to the builder, with the key and the byte of its value.
 *
 * Source: docs/howto/architecture.md. */
#include "model/skeleton.h"

#include <math.h>

#define DIMENSION_MOST (((uint64_t)1 << 31) - 1)

const heft__json_value *heft__sk_member(const heft__skeleton *s, const char *key)
{
    const char *const(*other)[2] = s->model->family->other_keys;
    const heft__json_value *value = s->object ? heft__json_member(s->object, key) : NULL;
    for (; s->object && !value && other && (*other)[0]; other++) {
        if (strcmp((*other)[0], key) == 0) {
            value = heft__json_member(s->object, (*other)[1]);
        }
    }
    return value;
}

void heft__sk_config_enter(heft__skeleton *s, const char *key)
{
    const heft__json_value *value = heft__json_member(s->config->root, key);
    s->object = value && value->type == HEFT__JSON_TYPE_OBJECT ? value : NULL;
    if (value && !s->object && value->type != HEFT__JSON_TYPE_NULL) {
        s->object = s->config->root;
        heft__sk_fail(s, HEFT_FORMAT, key, "expected an object");
    }
}

void heft__sk_config_leave(heft__skeleton *s)
{
    s->object = s->config->root;
}

const char *heft__sk_class(const heft__skeleton *s)
{
    return s->model->class_name;
}

/* A key's value; NULL if it is absent or the builder has failed. */
static const heft__json_value *look_up(const heft__skeleton *s, const char *key)
{
    return heft__sk_going(s) ? heft__sk_member(s, key) : NULL;
}

/* The same; null counts as absent. */
static const heft__json_value *look_up_set(const heft__skeleton *s, const char *key)
{
    const heft__json_value *value = look_up(s, key);
    return value && value->type != HEFT__JSON_TYPE_NULL ? value : NULL;
}

/* "expected ..., found ..." with the value as it stands in the file. */
static void refuse(heft__skeleton *s, heft_status status, const char *key, const char *expected,
                   const heft__json_value *value)
{
    switch (value->type) {
    case HEFT__JSON_TYPE_NUMBER:
        heft__sk_fail(s, status, key, "expected %s, found %.60s", expected, value->text);
        break;
    case HEFT__JSON_TYPE_STRING:
        heft__sk_fail(s, status, key, "expected %s, found the string '%.60s'", expected,
                      value->text);
        break;
    case HEFT__JSON_TYPE_BOOL:
        heft__sk_fail(s, status, key, "expected %s, found %s", expected,
                      value->boolean ? "true" : "false");
        break;
    case HEFT__JSON_TYPE_NULL:
        heft__sk_fail(s, status, key, "expected %s, found null", expected);
        break;
    case HEFT__JSON_TYPE_ARRAY:
    case HEFT__JSON_TYPE_OBJECT:
        heft__sk_fail(s, status, key, "expected %s, found an %s of %zu", expected,
                      value->type == HEFT__JSON_TYPE_ARRAY ? "array" : "object", value->count);
        break;
    }
}

/* Whether a number is a positive integer, of any size. */
static bool is_positive_integer(const heft__json_value *value)
{
    return value->type == HEFT__JSON_TYPE_NUMBER &&
           value->text[strspn(value->text, "0123456789")] == '\0' &&
           value->text[strspn(value->text, "0")] != '\0';
}

static bool read_count(const heft__json_value *value, uint64_t most, uint64_t *number)
{
    return is_positive_integer(value) && heft__json_as_u64(value, number) && *number <= most;
}

static uint64_t count_to(heft__skeleton *s, const char *key, uint64_t standard, uint64_t most)
{
    const heft__json_value *value = look_up(s, key);
    uint64_t number = 0;
    if (!value) {
        return standard;
    }
    if (read_count(value, most, &number)) {
        return number;
    }
    char expected[80];
    snprintf(expected, sizeof expected, "an integer from 1 to %llu", (unsigned long long)most);
    refuse(s, is_positive_integer(value) ? HEFT_LIMIT : HEFT_FORMAT, key, expected, value);
    return 1;
}

uint64_t heft__sk_count(heft__skeleton *s, const char *key, uint64_t standard)
{
    return count_to(s, key, standard, DIMENSION_MOST);
}

uint64_t heft__sk_count_or(heft__skeleton *s, const char *key, uint64_t standard, uint64_t null)
{
    return look_up(s, key) && !look_up_set(s, key) ? null : heft__sk_count(s, key, standard);
}

uint64_t heft__sk_layers(heft__skeleton *s, const char *key, uint64_t standard)
{
    return count_to(s, key, standard, HEFT__LAYERS_MOST);
}

uint64_t heft__sk_count_if(const heft__skeleton *s, const char *key, uint64_t standard)
{
    const heft__json_value *value = look_up(s, key);
    uint64_t number = 0;
    if (!value) {
        return standard;
    }
    return read_count(value, DIMENSION_MOST, &number) ? number : 0;
}

bool heft__sk_true(const heft__skeleton *s, const char *key)
{
    const heft__json_value *value = look_up(s, key);
    return value && value->type == HEFT__JSON_TYPE_BOOL && value->boolean;
}

bool heft__sk_list_is(const heft__skeleton *s, const char *key, uint64_t i, const char *text,
                      bool standard)
{
    const heft__json_value *list = look_up_set(s, key);
    const heft__json_value *item =
        list && list->type == HEFT__JSON_TYPE_ARRAY && list->count <= HEFT__LAYERS_MOST
            ? list->first
            : NULL;
    while (item && i-- > 0) {
        item = item->next;
    }
    return item ? item->type == HEFT__JSON_TYPE_STRING && strcmp(item->text, text) == 0 : standard;
}

int64_t heft__sk_integer(heft__skeleton *s, const char *key, int64_t standard)
{
    const heft__json_value *value = look_up_set(s, key);
    int64_t number = standard;
    if (value && !heft__json_as_i64(value, &number)) {
        refuse(s, HEFT_FORMAT, key, "a 64-bit integer", value);
    }
    return number;
}

bool heft__sk_flag(heft__skeleton *s, const char *key, bool standard)
{
    const heft__json_value *value = look_up_set(s, key);
    if (value && value->type != HEFT__JSON_TYPE_BOOL) {
        refuse(s, HEFT_FORMAT, key, "true or false", value);
    }
    return value && heft__sk_going(s) ? value->boolean : standard;
}

bool heft__sk_flag_or(heft__skeleton *s, const char *key, bool standard, bool null)
{
    return look_up(s, key) && !look_up_set(s, key) ? null : heft__sk_flag(s, key, standard);
}

double heft__sk_real(heft__skeleton *s, const char *key, double standard)
{
    const heft__json_value *value = look_up_set(s, key);
    double number = standard;
    if (value && (!heft__json_as_double(value, &number) || !isfinite(number))) {
        refuse(s, HEFT_FORMAT, key, "a finite number", value);
        number = standard;
    }
    return number;
}

double heft__sk_real_or(heft__skeleton *s, const char *key, double standard, double null)
{
    return look_up(s, key) && !look_up_set(s, key) ? null : heft__sk_real(s, key, standard);
}

int64_t heft__sk_integer_or(heft__skeleton *s, const char *key, int64_t standard, int64_t null)
{
    return look_up(s, key) && !look_up_set(s, key) ? null : heft__sk_integer(s, key, standard);
}

const char *heft__sk_text(heft__skeleton *s, const char *key, const char *standard)
{
    const heft__json_value *value = look_up_set(s, key);
    if (value && (value->type != HEFT__JSON_TYPE_STRING || strlen(value->text) != value->length)) {
        refuse(s, HEFT_FORMAT, key, "a string without NUL", value);
    }
    return value && heft__sk_going(s) ? value->text : standard;
}

uint64_t heft__sk_members(heft__skeleton *s, const char *key, uint64_t standard)
{
    const heft__json_value *value = look_up_set(s, key);
    if (value && (value->type != HEFT__JSON_TYPE_OBJECT || value->count == 0)) {
        refuse(s, HEFT_FORMAT, key, "an object with members", value);
    }
    return value && heft__sk_going(s) ? value->count : standard;
}

bool heft__sk_has(const heft__skeleton *s, const char *key)
{
    return look_up_set(s, key) != NULL;
}

void heft__sk_pair(heft__skeleton *s, const char *key, uint64_t standard, uint64_t pair[2])
{
    const heft__json_value *value = look_up_set(s, key);
    pair[0] = pair[1] = standard;
    if (value && value->type == HEFT__JSON_TYPE_ARRAY) {
        if (value->count != 2 || !read_count(value->first, DIMENSION_MOST, &pair[0]) ||
            !read_count(value->first->next, DIMENSION_MOST, &pair[1])) {
            refuse(s, HEFT_FORMAT, key, "one count or two", value);
            pair[0] = pair[1] = standard;
        }
    } else if (value) {
        pair[0] = pair[1] = heft__sk_count(s, key, standard);
    }
}

bool heft__sk_list_has(heft__skeleton *s, const char *key, uint64_t wanted)
{
    const heft__json_value *list = look_up_set(s, key);
    if (!list) {
        return false;
    }
    if (list->type != HEFT__JSON_TYPE_ARRAY || list->count > HEFT__LAYERS_MOST) {
        refuse(s, HEFT_FORMAT, key, "a list of layers", list);
        return false;
    }
    for (const heft__json_value *item = list->first; item; item = item->next) {
        int64_t number;
        if (!heft__json_as_i64(item, &number)) {
            refuse(s, HEFT_FORMAT, key, "a list of integers", list);
            return false;
        }
        if (number >= 0 && (uint64_t)number == wanted) {
            return true;
        }
    }
    return false;
}

const char *heft__sk_list_text(heft__skeleton *s, const char *key, uint64_t i)
{
    const heft__json_value *list = look_up_set(s, key);
    const heft__json_value *item = list ? list->first : NULL;
    if (!list) {
        return NULL;
    }
    if (list->type != HEFT__JSON_TYPE_ARRAY || i >= list->count) {
        refuse(s, HEFT_FORMAT, key, "a list with an item for each layer", list);
        return NULL;
    }
    while (item && i-- > 0) {
        item = item->next;
    }
    if (!item || item->type != HEFT__JSON_TYPE_STRING || strlen(item->text) != item->length) {
        refuse(s, HEFT_FORMAT, key, "a list of strings", list);
        return NULL;
    }
    return item->text;
}

int64_t heft__sk_padding_row(heft__skeleton *s, const char *key, int64_t standard, uint64_t rows)
{
    const heft__json_value *value = look_up(s, key);
    int64_t row = standard, end = (int64_t)rows; /* a count: below 2^31 */
    if (!value || value->type == HEFT__JSON_TYPE_NULL) {
        return value ? -1 : standard;
    }
    if (!heft__json_as_i64(value, &row) || row < -end || row >= end) {
        char expected[80];
        snprintf(expected, sizeof expected, "null or one of %llu rows", (unsigned long long)rows);
        refuse(s, HEFT_FORMAT, key, expected, value);
        return -1;
    }
    return row < 0 ? row + end : row;
}

uint64_t heft__sk_labels_or(heft__skeleton *s, uint64_t standard)
{
    return heft__sk_has(s, "num_labels") ? heft__sk_count(s, "num_labels", standard)
                                         : heft__sk_members(s, "id2label", standard);
}

uint64_t heft__sk_labels(heft__skeleton *s)
{
    return heft__sk_labels_or(s, 2);
}

void heft__sk_initializer_range(heft__skeleton *s, double standard)
{
    double std = heft__sk_real(s, "initializer_range", standard);
    if (std < 0 || std > 1e6) {
        heft__sk_fail(s, HEFT_FORMAT, "initializer_range", "expected 0 to 1e6, found %g", std);
    }
    heft__sk_std(s, std == 0 ? 0.02 : std);
}
